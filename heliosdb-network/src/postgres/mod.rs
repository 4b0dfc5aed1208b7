//! PostgreSQL's protocol, version 3: messages, the first packet of a client, and connections to a server.

mod auth;
mod connection;
mod error_fields;
pub mod message;
pub mod startup;
mod stream;
mod target;

pub use connection::{PgConnection, QueryResult, cancel};
pub use error_fields::ErrorFields;
pub use stream::Stream;
pub use target::{Host, PgTarget};
