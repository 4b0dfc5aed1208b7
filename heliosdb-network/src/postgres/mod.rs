//! PostgreSQL's protocol, version 3: messages, the first packet of a client, and connections to a server.
//!
//! [`auth`], [`frame`], [`message`], [`parse`] and [`startup`] are pure: bytes in, bytes out. Only [`PgConnection`], with
//! [`PgConnector`] that makes a pool of them, [`replication`] and [`cancel`] touch a socket.

pub mod auth;
mod connect;
mod connection;
mod connector;
mod error_fields;
pub mod frame;
pub mod message;
pub mod parse;
pub mod replication;
pub mod startup;
mod stream;
mod target;

pub use connection::{PgConnection, QueryResult, cancel};
pub use connector::PgConnector;
pub use error_fields::ErrorFields;
pub use stream::Stream;
pub use target::{Credential, Host, PgTarget, Place, PlaceOrder, SessionAttrs};
