//! The gateway behind the program `helios`: it stands in front of a PostgreSQL server, lets thousands of clients
//! share a few connections, and answers a repeated read from memory.
//!
//! The program is the interface; what is public here serves its tests.
#![forbid(unsafe_code)]

mod access;
mod admin;
mod advice;
pub mod cli;
mod clients;
mod clock;
mod commands;
pub mod config;
mod error;
mod fault;
mod gateway;
mod handover;
mod hidb;
mod invalidate;
mod level;
mod listen;
mod log;
mod metrics;
mod notifications;
mod policies;
mod query;
mod reload;
mod server;
mod session;
pub mod sql;
mod statements;
mod stats;
mod traffic;
mod upstream;

pub use commands::run;
