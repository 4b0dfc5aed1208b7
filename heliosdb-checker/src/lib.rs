//! stub
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
