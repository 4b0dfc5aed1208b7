//! A client for the gateway `helios`, over HIDB: many requests share few connections, and repeated reads are answered from
//! a cache in the client's own memory (the *near cache*) that the gateway keeps true.
//!
//! ```no_run
//! use heliosdb_client::{Client, Statement};
//!
//! # async fn run() -> heliosdb_client::Result<()> {
//! let client = Client::connect("hidb://app@127.0.0.1:6433/shop").await?;
//! let reply = client.query(Statement::new("SELECT name, price FROM items WHERE id = $1").bind(7)).await?;
//! for row in reply.rows() {
//!     println!("{:?} costs {:?}", row.text("name")?, row.get::<f64>("price")?);
//! }
//! // Asked again, it is answered without a message, until somebody writes to `items` through the gateway.
//! # Ok(()) }
//! ```
//!
//! # What a read from the near cache is worth
//! 1. **It is never older than what this client was told.** Whatever this client learnt, from an answer, from the
//!    acknowledgement of a write, or from a [position](Client::position) that it was [given](Client::observe), no later read
//!    of it goes back behind. So it reads its own writes, and never sees an older state after a newer one.
//! 2. **It is at most [`NearConfig::max_lag`] old**: a write acknowledged to anybody longer ago than that is seen. The
//!    client proves it by its own clock: the gateway answers a ping behind all changes from before the ping. Without such a
//!    proof (connection lost, gateway or network stuck), reads go to the gateway.
//! 3. **It ends with the subscription**: when the connection that brings the changes is lost, the near cache is emptied, and
//!    begins anew with the next one.
//!
//! A write that is under way is enough to end an answer: from the moment in which the gateway sends it to the database
//! until its transaction has ended, what it may change is asked of the database.
//!
//! To read what another process has just written, have it hand over its position with its message:
//! ```no_run
//! # use heliosdb_client::Client;
//! # async fn run(writer: Client, reader: Client) -> heliosdb_client::Result<()> {
//! writer.query("UPDATE items SET price = 5 WHERE id = 7").await?;
//! let position = writer.position().to_string(); // goes along with the message to the other process
//! reader.observe(position.parse()?);
//! reader.query("SELECT price FROM items WHERE id = 7").await?; // 5, wherever it comes from
//! # Ok(()) }
//! ```
//! Like the gateway's own answers, this holds for writes that go through the gateway. A position means something to clients
//! of the same gateway process, until it ends; one of another gateway empties the near cache, and has no other effect.
//!
//! # Cancellation
//! Every future can be dropped at any point. What was asked is stopped at the server then; whether a write took effect is
//! not known.
//!
//! # Limits
//! A key is a statement's text with its parameters, byte for byte. Answers are held in memory as a whole, at most
//! [`HidbTarget::answer_max`] bytes. Several misses of one question at the same time are as many requests; the gateway asks
//! the database once. Statements in a [`Session`] do not use the near cache.
#![forbid(unsafe_code)]

mod client;
mod follow;
mod near;
mod position;

pub use client::{Client, ClientConfig, ClientStats, NearConfig, Session};
pub use heliosdb_network::client::{ColumnInfo, Reply, Row, Rows};
pub use heliosdb_network::protocol::{AnswerSource, CacheUse, Facts};
pub use heliosdb_network::{HeliosError, HidbTarget, Param, Result, Statement};
pub use position::Position;
