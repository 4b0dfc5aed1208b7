//! The lock, in a module of its own so that a model checker can put its own in its place (`tests/handoff_model.rs`).

pub(super) use parking_lot::Mutex;
