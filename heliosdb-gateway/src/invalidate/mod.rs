//! How cached answers end: by writes that are seen on the wire.

pub(crate) mod wire;
