//! The cache against a model: a map of what was put, and when the tables it depends on were last written.
#![cfg(not(loom))]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use heliosdb_cache::{
    AdaptivePolicy, CacheConfig, CacheEntry, CacheManager, CostAwarePolicy, ENTRY_OVERHEAD,
    EvictionPolicy, Flight, HybridPolicy, InMemoryBackend, LfuPolicy, LruPolicy, PutOutcome,
    QueryKey, StorageBackend, WriteIntent,
};
use proptest::prelude::*;
use tokio::runtime::Builder;

const KEYS: usize = 12;
const TABLES: usize = 4;
/// In tests of what the cache must not lose, nothing is evicted.
const ROOMY: usize = 64 << 20;

#[derive(Debug, Clone)]
enum Step {
    Put {
        key: usize,
        size: usize,
        tables: Vec<usize>,
        milliseconds: f64,
    },
    Get {
        key: usize,
    },
    /// A computation that another step comes into the middle of.
    Fill {
        key: usize,
        size: usize,
        table: usize,
        overtaken: bool,
    },
    Remove {
        key: usize,
    },
    Invalidate {
        table: usize,
    },
    BeginWrite {
        table: usize,
    },
    FinishWrite,
    Evict {
        bytes: usize,
    },
    Clear,
}

fn step(size_max: usize) -> impl Strategy<Value = Step> {
    let tables = proptest::collection::vec(0..TABLES, 0..3);
    prop_oneof![
        6 => (0..KEYS, 0..=size_max, tables, 0.0..20.0_f64)
            .prop_map(|(key, size, tables, milliseconds)| Step::Put { key, size, tables, milliseconds }),
        6 => (0..KEYS).prop_map(|key| Step::Get { key }),
        3 => (0..KEYS, 0..=size_max, 0..TABLES, any::<bool>())
            .prop_map(|(key, size, table, overtaken)| Step::Fill { key, size, table, overtaken }),
        1 => (0..KEYS).prop_map(|key| Step::Remove { key }),
        2 => (0..TABLES).prop_map(|table| Step::Invalidate { table }),
        1 => (0..TABLES).prop_map(|table| Step::BeginWrite { table }),
        2 => Just(Step::FinishWrite),
        1 => (0..=size_max * 2).prop_map(|bytes| Step::Evict { bytes }),
        1 => Just(Step::Clear),
    ]
}

/// A key whose parts are easily mistaken for another's.
fn key(n: usize) -> QueryKey {
    let params: &[&str] = [&[][..], &[""], &["a", "b"], &["ab"]][n % 4];
    QueryKey::new(
        ["SELECT 1", "SELECT 2"][n / 4 % 2],
        params,
        ["x", "y"][n / 8],
    )
}

fn table(n: usize) -> String {
    format!("t{n}")
}

/// A policy of a user's, known by its scores alone; some of them are not numbers.
struct LargestFirst;

impl EvictionPolicy for LargestFirst {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        match entry.data.len() {
            len if len % 7 == 0 => f64::NAN,
            len => -(len as f64),
        }
    }

    fn name(&self) -> &str {
        "largest first"
    }
}

struct Subject {
    storage: Arc<InMemoryBackend>,
    cache: CacheManager,
    capacity: usize,
    min_milliseconds: f64,
    min_size: usize,
    /// What may be served for a key, and nothing else; what was evicted is still in here.
    model: HashMap<usize, (Bytes, Vec<usize>)>,
    pending: Vec<(usize, WriteIntent)>,
    /// Makes each value different from all before it.
    puts: u64,
    hits: u64,
}

impl Subject {
    fn new(
        capacity: usize,
        policy: Arc<dyn EvictionPolicy>,
        learned: bool,
        min_milliseconds: f64,
        min_size: usize,
    ) -> Self {
        let storage = Arc::new(InMemoryBackend::new(capacity));
        let mut config = CacheConfig::default();
        config.max_size_bytes = capacity;
        config.eviction_policy = policy;
        config.enable_ml_eviction = learned;
        config.min_execution_time_ms = min_milliseconds;
        config.min_result_size = min_size;
        Self {
            cache: CacheManager::new(Arc::clone(&storage), config),
            storage,
            capacity,
            min_milliseconds,
            min_size,
            model: HashMap::new(),
            pending: Vec::new(),
            puts: 0,
            hits: 0,
        }
    }

    fn value(&mut self, size: usize) -> Bytes {
        self.puts += 1;
        self.puts
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(size)
            .collect::<Vec<u8>>()
            .into()
    }

    fn fits(&self, n: usize, size: usize, tables: &[usize]) -> bool {
        let key = key(n);
        let tables: HashSet<_> = tables.iter().collect();
        let weight =
            key.query.len() + key.params().len() + size + 4 * tables.len() + ENTRY_OVERHEAD;
        weight <= self.capacity / 2
    }

    fn is_pending(&self, tables: &[usize]) -> bool {
        self.pending.iter().any(|(table, _)| tables.contains(table))
    }

    fn forget_table(&mut self, table: usize) {
        self.model.retain(|_, (_, tables)| !tables.contains(&table));
    }

    async fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Put {
                key: n,
                size,
                tables,
                milliseconds,
            } => {
                let value = self.value(size);
                let names = tables.iter().map(|n| table(*n)).collect();
                let outcome = self
                    .cache
                    .put(key(n), value.clone(), names, milliseconds)
                    .await
                    .expect("in memory");
                let admitted = size >= self.min_size
                    && milliseconds >= self.min_milliseconds
                    && self.fits(n, size, &tables)
                    && !self.is_pending(&tables);
                if outcome == PutOutcome::Stored {
                    prop_assert!(admitted);
                    self.model.insert(n, (value, tables));
                } else if admitted {
                    prop_assert!(self.capacity != ROOMY, "refused, and there is room");
                    self.model.remove(&n);
                }
            }
            Step::Get { key: n } => self.check(n).await?,
            Step::Fill {
                key: n,
                size,
                table: t,
                overtaken,
            } => {
                let value = self.value(size);
                let slot = self.cache.table_slot(&table(t));
                match self.cache.join(&key(n).as_ref(), &[slot]) {
                    Flight::Leader(fill) => {
                        prop_assert!(!self.is_pending(&[t]));
                        if overtaken {
                            self.cache.invalidate_table(&table(t));
                            self.forget_table(t);
                        }
                        fill.complete(value.clone(), std::time::Duration::from_secs(1));
                        if !overtaken && size >= self.min_size && self.fits(n, size, &[t]) {
                            self.model.insert(n, (value, vec![t]));
                        }
                    }
                    Flight::Uncached => prop_assert!(self.is_pending(&[t])),
                    other => prop_assert!(
                        false,
                        "nobody else computes, and there is room: {:?}",
                        other
                    ),
                }
            }
            Step::Remove { key: n } => {
                let removed = self.storage.remove(&key(n)).await.expect("in memory");
                prop_assert!(
                    self.storage
                        .get(&key(n))
                        .await
                        .expect("in memory")
                        .is_none()
                );
                if self.model.remove(&n).is_some() && self.capacity == ROOMY {
                    prop_assert!(removed, "nothing was evicted");
                }
            }
            Step::Invalidate { table: t } => {
                self.cache.invalidate_table(&table(t));
                self.forget_table(t);
            }
            Step::BeginWrite { table: t } => {
                let intent = self
                    .cache
                    .versions()
                    .begin_write(&[self.cache.table_slot(&table(t))]);
                self.pending.push((t, intent));
                // Not served while the write is pending, and out of date once it is over.
                self.forget_table(t);
            }
            Step::FinishWrite => {
                if !self.pending.is_empty() {
                    let (t, intent) = self.pending.remove(0);
                    intent.finish();
                    self.forget_table(t);
                }
            }
            Step::Evict { bytes } => {
                // In a roomy cache this would evict what the test wants to find.
                if self.capacity != ROOMY {
                    let before = self.cache.stats().size_bytes;
                    self.cache.evict_entries(bytes).await.expect("in memory");
                    let after = self.cache.stats().size_bytes;
                    prop_assert!(after == 0 || before - after >= bytes);
                }
            }
            Step::Clear => {
                self.cache.clear();
                self.model.clear();
                prop_assert_eq!(self.cache.stats().size_bytes, 0);
            }
        }
        self.check_bounds().await
    }

    /// What is served is what was put last, if that is still true; what is true is served, unless it was evicted.
    async fn check(&mut self, n: usize) -> Result<(), TestCaseError> {
        let served = self.cache.get(&key(n)).await.expect("in memory");
        let expected = self.model.get(&n).map(|(value, _)| value);
        match (&served, expected) {
            (Some(served), Some(expected)) => prop_assert_eq!(served, expected),
            (Some(served), None) => prop_assert!(false, "{:?} is wrong or out of date", served),
            (None, Some(_)) => prop_assert!(self.capacity != ROOMY, "lost"),
            (None, None) => {}
        }
        self.hits += u64::from(served.is_some());
        prop_assert_eq!(self.cache.stats().hits, self.hits);
        Ok(())
    }

    async fn check_bounds(&self) -> Result<(), TestCaseError> {
        let stats = self.cache.stats();
        prop_assert!(
            stats.size_bytes <= self.capacity,
            "{} > {}",
            stats.size_bytes,
            self.capacity
        );
        let keys = self.storage.keys().await.expect("in memory");
        prop_assert_eq!(keys.len(), stats.entries);
        let mut sum = 0;
        for key in keys {
            let entry = self.storage.get(&key).await.expect("in memory");
            let entry = entry.expect("nobody else removes it");
            let slots = entry.dependencies().slots().count();
            let weight = key.query.len()
                + key.params().len()
                + entry.data.len()
                + 4 * slots
                + ENTRY_OVERHEAD;
            prop_assert_eq!(entry.metadata.size_bytes, weight);
            prop_assert_eq!(entry.key, key);
            sum += weight;
        }
        prop_assert_eq!(
            sum,
            stats.size_bytes,
            "every byte charged belongs to an entry"
        );
        prop_assert_eq!(stats.in_flight, 0);
        Ok(())
    }
}

fn run(mut subject: Subject, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for step in steps {
            subject.take(step).await?;
        }
        for n in 0..KEYS {
            subject.check(n).await?;
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_wrong_is_served_and_the_bound_holds_under_pressure(
        capacity in 0..6_000_usize,
        policy in 0..7_usize,
        steps in proptest::collection::vec(step(1_500), 1..120),
    ) {
        let policies: [Arc<dyn EvictionPolicy>; 6] = [
            Arc::new(LruPolicy),
            Arc::new(LfuPolicy),
            Arc::new(HybridPolicy::default_balanced()),
            Arc::new(AdaptivePolicy),
            Arc::new(CostAwarePolicy),
            Arc::new(LargestFirst),
        ];
        let learned = policy == 6;
        let policy = Arc::clone(&policies[policy % 6]);
        run(Subject::new(capacity, policy, learned, 0.0, 0), steps)?;
    }

    #[test]
    fn nothing_is_lost_while_there_is_room(
        min_milliseconds in prop_oneof![Just(0.0), Just(10.0)],
        min_size in prop_oneof![Just(0), Just(200_usize)],
        steps in proptest::collection::vec(step(1_500), 1..120),
    ) {
        run(Subject::new(ROOMY, Arc::new(LruPolicy), false, min_milliseconds, min_size), steps)?;
    }
}
