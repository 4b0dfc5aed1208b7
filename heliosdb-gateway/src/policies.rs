//! Statements that an administrator has given a level of their own: `CREATE CACHE` on the console.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heliosdb_pooling::{MAX_FINGERPRINT_BYTES, QueryFingerprint};
use parking_lot::RwLock;

use crate::level::AgeBound;

/// One `CREATE CACHE`.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    /// The statements it is for, without their values.
    pub(crate) fingerprint: QueryFingerprint,
    pub(crate) bound: AgeBound,
    /// How often it was gone by.
    pub(crate) uses: AtomicU64,
}

/// The policies in force.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// Asked of each statement.
    any: AtomicBool,
    /// Few, and read by statements only while there are any.
    list: RwLock<Vec<Arc<Policy>>>,
}

/// More would slow down each statement.
const POLICIES_MAX: usize = 1000;

/// Why a policy is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("cache \"{0}\" already exists")]
    NameTaken(String),
    #[error("cache \"{0}\" is for the same statement")]
    StatementTaken(String),
    #[error("the statement is too long to be told from others")]
    TooLong,
    #[error("there are {POLICIES_MAX} caches already")]
    TooMany,
}

impl Policies {
    /// What the statement is kept under, if an administrator has said so.
    pub(crate) fn of(&self, text: &str) -> Option<AgeBound> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let fingerprint = QueryFingerprint::of(text);
        let list = self.list.read();
        let policy = list
            .iter()
            .find(|policy| policy.fingerprint == fingerprint)?;
        policy.uses.fetch_add(1, Ordering::Relaxed);
        Some(policy.bound)
    }

    /// Makes one; without a name it gets one.
    pub(crate) fn create(
        &self,
        name: Option<String>,
        statement: &str,
        bound: AgeBound,
    ) -> Result<Arc<Policy>, PolicyError> {
        let fingerprint = QueryFingerprint::of(statement);
        // Beyond that, statements are told apart by a hash alone.
        if fingerprint.as_str().len() + 4 > MAX_FINGERPRINT_BYTES {
            return Err(PolicyError::TooLong);
        }
        let mut list = self.list.write();
        if list.len() >= POLICIES_MAX {
            return Err(PolicyError::TooMany);
        }
        let name = name.unwrap_or_else(|| {
            (1..)
                .map(|n| format!("cache_{n}"))
                .find(|name| list.iter().all(|policy| policy.name != *name))
                .unwrap_or_default()
        });
        for policy in list.iter() {
            if policy.name == name {
                return Err(PolicyError::NameTaken(name));
            }
            if policy.fingerprint == fingerprint {
                return Err(PolicyError::StatementTaken(policy.name.clone()));
            }
        }
        let policy = Arc::new(Policy {
            name,
            fingerprint,
            bound,
            uses: AtomicU64::new(0),
        });
        list.push(Arc::clone(&policy));
        self.any.store(true, Ordering::Relaxed);
        Ok(policy)
    }

    /// True if there was one of that name.
    pub(crate) fn drop_named(&self, name: &str) -> bool {
        let mut list = self.list.write();
        let before = list.len();
        list.retain(|policy| policy.name != name);
        self.any.store(!list.is_empty(), Ordering::Relaxed);
        list.len() < before
    }

    pub(crate) fn list(&self) -> Vec<Arc<Policy>> {
        self.list.read().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_policy_is_for_statements_that_differ_in_values_alone() {
        let policies = Policies::default();
        let bound = AgeBound::new(Duration::from_secs(1), Duration::ZERO).expect("in range");
        let other = AgeBound::new(Duration::from_secs(2), Duration::ZERO).expect("in range");
        let text = "SELECT a FROM t WHERE b = 1";
        assert_eq!(policies.of(text), None);
        let made = policies.create(None, text, bound).expect("made");
        assert_eq!(made.name, "cache_1");
        assert_eq!(policies.of("select a from t where b = 22"), Some(bound));
        assert_eq!(policies.of("SELECT a FROM u WHERE b = 1"), None);
        assert_eq!(made.uses.load(Ordering::Relaxed), 1);
        let again = policies.create(Some("x".to_owned()), text, other);
        assert_eq!(
            again.err(),
            Some(PolicyError::StatementTaken("cache_1".to_owned()))
        );
        let taken = policies.create(Some("cache_1".to_owned()), "SELECT 2", other);
        assert_eq!(
            taken.err(),
            Some(PolicyError::NameTaken("cache_1".to_owned()))
        );
        policies.create(None, "SELECT 2", other).expect("made");
        assert!(policies.drop_named("cache_1") && !policies.drop_named("cache_1"));
        assert_eq!(policies.of(text), None);
        assert_eq!(policies.of("SELECT 3"), Some(other));
    }
}
