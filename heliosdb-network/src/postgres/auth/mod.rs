//! Who somebody is: both ends of authentication, the secrets it rests on, and the rules that say what is asked of whom.
//!
//! Nothing here touches a socket.

mod client;
mod hba;
mod ident;
mod secret;
mod server;
mod userlist;

pub use hba::{Asked, CertName, ClientCert, Hba, HbaMethod, HbaRule};
pub use ident::IdentMap;
pub use secret::{PlainPassword, StoredSecret};
pub use server::{Challenge, Granted, PROOF_MESSAGE_MAX, PlainText, Proof, Step};
pub use userlist::UserList;

pub(crate) use client::Login;

// The methods, as the protocol numbers them.
const OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// A line of a file that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
#[non_exhaustive]
pub struct LineError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl LineError {
    fn new(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            message: message.into(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
