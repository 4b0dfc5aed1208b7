//! The history checker: what many clients of helios see while things go wrong, and whether they may see it.
//!
//! ```text
//! cargo xtask check-consistency            a million reads in every mode that helios has
//! cargo xtask check-consistency --short    a minute, as in the tests
//! cargo xtask check-consistency --self-test
//!                                          helios without one protection after the other: each must be found out
//! ```
//! It shares no code with helios, which it runs as a process in front of a real PostgreSQL, behind a proxy that cuts
//! connections at bad moments. Clients write and read in every form that drivers use; each operation is recorded with the
//! time before its request and the time after its answer, on one clock, and checked at once. `docs/consistency-checker.md`
//! says how to read what it prints.
//!
//! # What is checked
//! Every row that is written carries a *version*, which each write raises by one under the server's row lock, and the *tags* of
//! its last eight writes, which no two writes share. So an answer says which writes it holds.
//!
//! * **Linearizability** of each key, for all clients of helios and the server itself ([`Level::Session`] where all writes
//!   pass through helios, and [`Level::Strict`]). The versions give the order of the writes; then a history has a
//!   linearization if and only if no operation shows an older version than one that had ended before it began (Gibbons and
//!   Korach, *Testing Shared Memories*, SIAM J. Comput. 1997, with the order of writes known). Operations are checked in the
//!   order of their ends against the newest version that was known at their start: one binary search among the versions of
//!   the last minute. A write whose acknowledgement was lost may have happened or not; it binds others once it is seen.
//! * **Session guarantees**: a client sees what it wrote, and does not go back. Where all of the above holds these follow;
//!   they are told apart in what is printed.
//! * **One snapshot an answer**: rows that are only changed together have one version within an answer; balances have a
//!   constant sum; of any two answers over the same rows, one holds all writes of the other (no long fork); all reads of a
//!   block at REPEATABLE READ are of one state.
//! * **No update is lost, nothing is dirty**: no two writes make the same version; what was rolled back, or overwritten in
//!   its own transaction, or not written yet, is never seen; a transaction sees its own writes.
//! * **Bounded age** ([`Level::Bounded`], and writes made elsewhere): the same rule, with the newest version that was known
//!   so long before the start.
//!
//! `tests/brute_force.rs` compares the verdict with that of trying all orders; `tests/bad_histories.rs` has a history for
//! each check.
//!
//! # Memory
//! Nothing is kept but the versions that came to be known in the last minute, their makers (256 for each key), and the
//! latest writes of each client: a few megabytes, however long the run.
//!
//! [`Level::Session`]: history::Level::Session
//! [`Level::Strict`]: history::Level::Strict
//! [`Level::Bounded`]: history::Level::Bounded
#![forbid(unsafe_code)]

pub mod checker;
mod cli;
mod faults;
mod helios;
pub mod history;
mod proxy;
mod reader;
mod recorder;
mod register;
mod run;
mod schema;
mod session;
pub mod violation;
mod world;
mod writer;

pub use cli::main;
pub use faults::{FaultCounts, Faults};
pub use run::{Mode, Plan, Refusal, Report};
