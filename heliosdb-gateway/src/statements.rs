//! What becomes of each statement, for `SHOW STATEMENTS`.

use std::cell::RefCell;
use std::collections::HashMap;

use heliosdb_pooling::{PoolOptimizer, QueryFingerprint, StatementHandle, StatementStats};
use rapidhash::fast::RandomState;
use rapidhash::v3::rapidhash_v3;

use crate::sql::Class;

/// The statements that ran lately, without their values.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    optimizer: PoolOptimizer,
}

/// Texts, and shapes of texts, whose statement a thread knows without looking into them. A collision costs a wrong count.
type Known = HashMap<u64, StatementHandle, RandomState>;

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Texts that a thread knows at the most; then it forgets all of them.
const KNOWN_MAX: usize = 2048;

impl Statements {
    /// Where a text is counted.
    pub(crate) fn of(&self, text: &str) -> StatementHandle {
        self.known_as(rapidhash_v3(text.as_bytes()), text)
    }

    /// The same for a text of this class.
    pub(crate) fn of_class(&self, text: &str, class: &Class) -> StatementHandle {
        match class.shape {
            0 => self.of(text),
            // Values of its own make no other statement of it.
            shape => self.known_as(shape, text),
        }
    }

    fn known_as(&self, hash: u64, text: &str) -> StatementHandle {
        KNOWN.with_borrow_mut(|known| {
            if let Some(handle) = known.get(&hash)
                && !handle.is_forgotten()
            {
                return handle.clone();
            }
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            let handle = self.optimizer.statement(QueryFingerprint::of(text));
            known.insert(hash, handle.clone());
            handle
        })
    }

    /// Those first that took the most time in all.
    pub(crate) fn list(&self) -> Vec<StatementStats> {
        self.optimizer.statements()
    }
}
