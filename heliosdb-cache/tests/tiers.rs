//! Two tiers, the second of which several nodes share: no node is served what it knows to have changed, however far
//! behind the others are that wrote there.
#![cfg(not(loom))]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliosdb_cache::{
    CacheConfig, CacheManager, Clock, InMemoryBackend, Lifetime, Position, QueryKey, SecondTier,
    TieredBackend,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::runtime::Builder;

/// A second tier in this process, for what does not depend on where it is; `redis_tier.rs` has the real one.
#[derive(Debug, Clone, Default)]
struct SharedMap(Arc<Mutex<HashMap<Vec<u8>, Bytes>>>);

impl SecondTier for SharedMap {
    async fn fetch(&self, id: &[u8]) -> Option<Bytes> {
        self.0.lock().get(id).cloned()
    }

    fn store(&self, id: &[u8], value: Bytes) -> bool {
        self.0.lock().insert(id.to_vec(), value);
        true
    }

    fn remove(&self, id: &[u8]) {
        self.0.lock().remove(id);
    }
}

type Tiered = TieredBackend<InMemoryBackend, SharedMap>;

fn node(map: &SharedMap, configure: impl FnOnce(&mut CacheConfig)) -> CacheManager<Tiered> {
    let mut config = CacheConfig::default();
    config.sweep_interval = Duration::ZERO;
    configure(&mut config);
    let backend = TieredBackend::new(InMemoryBackend::new(1 << 20), map.clone());
    CacheManager::new(Arc::new(backend), config)
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &["p"], "shop")
}

const LINEAGE: [u8; 16] = *b"a database's log";

fn following(map: &SharedMap, position: u64) -> CacheManager<Tiered> {
    let node = node(map, |_| {});
    assert!(node.versions().follow(LINEAGE, Position(position)));
    node.versions().begin_fence().end(Position(position));
    node
}

async fn ask(node: &CacheManager<Tiered>, key: &QueryKey, value: &str) -> String {
    let compute = async { Ok(Bytes::copy_from_slice(value.as_bytes())) };
    let answer = node.get_or_compute(key, &["t"], compute).await;
    let answer = answer.expect("computed").to_vec();
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn what_one_node_computed_the_other_is_served() {
    let map = SharedMap::default();
    let (a, b) = (following(&map, 10), following(&map, 10));
    assert_eq!(ask(&a, &key(1), "by a").await, "by a");
    assert_eq!(ask(&b, &key(1), "by b").await, "by a");
    // From its own memory now.
    map.0.lock().clear();
    assert_eq!(ask(&b, &key(1), "by b").await, "by a");
    let stats = b.stats();
    assert_eq!((stats.behind_hits, stats.hits, stats.fills), (1, 1, 1));
    assert!(a.remove(&key(1)).await.unwrap());
}

#[tokio::test]
async fn a_node_is_not_served_what_it_knows_to_have_changed() {
    let map = SharedMap::default();
    let (lagging, ahead) = (following(&map, 10), following(&map, 10));
    let table = ahead.table_slot("t");
    ahead.versions().invalidate_at(&[table], Position(15));
    ahead.versions().advance(Position(20));
    // Written by one who has not heard of the change.
    assert_eq!(ask(&lagging, &key(1), "old").await, "old");
    assert_eq!(ask(&ahead, &key(1), "new").await, "new");
    assert_eq!(ahead.stats().behind_refused, 1);
    // And the other way round: the lagging node is not served what it can't place yet.
    lagging.invalidate_all();
    assert_eq!(ask(&lagging, &key(1), "its own").await, "its own");
}

#[tokio::test]
async fn a_write_through_a_node_closes_the_second_tier_until_its_place_is_known() {
    let map = SharedMap::default();
    let (a, b) = (following(&map, 10), following(&map, 10));
    ask(&b, &key(1), "old").await;
    a.versions().begin_write(&[a.table_slot("t")]).finish();
    assert_eq!(ask(&a, &key(1), "new").await, "new");
    a.remove(&key(1)).await.unwrap();
    b.versions().advance(Position(30));
    b.invalidate_all();
    ask(&b, &key(1), "from b, at 30").await;
    assert_eq!(
        ask(&a, &key(1), "new").await,
        "new",
        "its place is not known"
    );
    a.remove(&key(1)).await.unwrap();
    ask(&b, &key(2), "b").await;
    let fence = a.versions().begin_fence();
    fence.end(Position(25));
    a.versions().advance(Position(30));
    b.invalidate_all();
    b.versions().begin_fence().end(Position(30));
    ask(&b, &key(1), "from b, at 30").await;
    assert_eq!(ask(&a, &key(1), "new").await, "from b, at 30");
}

#[tokio::test]
async fn nodes_without_a_common_log_share_nothing() {
    let map = SharedMap::default();
    let (a, b) = (node(&map, |_| {}), node(&map, |_| {}));
    ask(&a, &key(1), "by a").await;
    assert_eq!(ask(&b, &key(1), "by b").await, "by b");
    assert_eq!(map.0.lock().len(), 2);
    // Each has its own second tier, of which it is told when something changes.
    a.remove(&key(9)).await.unwrap();
    a.evict_entries(usize::MAX).await.unwrap();
    assert_eq!(ask(&a, &key(1), "again").await, "by a");
    a.evict_entries(usize::MAX).await.unwrap();
    a.invalidate_table("t");
    assert_eq!(ask(&a, &key(1), "again").await, "again");
}

#[tokio::test]
async fn damaged_foreign_and_expired_values_are_refused() {
    let map = SharedMap::default();
    let clock = Clock::manual();
    let a = node(&map, |config| config.clock = clock.clone());
    ask(&a, &key(1), "value").await;
    let (id, good) = map
        .0
        .lock()
        .iter()
        .next()
        .map(|(k, v)| (k.clone(), v.clone()))
        .unwrap();
    let mut damaged: Vec<Bytes> = (0..good.len()).map(|len| good.slice(..len)).collect();
    damaged.extend((0..good.len()).map(|at| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x55;
        bytes.into()
    }));
    let total = damaged.len() as u64;
    for bytes in damaged {
        a.evict_entries(usize::MAX).await.unwrap();
        map.0.lock().insert(id.clone(), bytes);
        assert_eq!(ask(&a, &key(1), "anew").await, "anew");
    }
    assert_eq!(a.stats().behind_refused, total);
    // The time that is left goes with the answer.
    let compute = async { Ok("short".into()) };
    let lifetime = Lifetime::of(Duration::from_millis(30));
    a.get_or_compute_with(&key(2), &["t"], lifetime, compute)
        .await
        .unwrap();
    a.evict_entries(usize::MAX).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(ask(&a, &key(2), "anew").await, "anew");
}

/// The answer may depend on other tables now, though its text is the same.
#[tokio::test]
async fn what_depended_on_something_else_is_refused() {
    let map = SharedMap::default();
    let (a, b) = (following(&map, 10), following(&map, 10));
    let compute = async { Ok("by a".into()) };
    a.get_or_compute(&key(1), &["t", "u"], compute)
        .await
        .unwrap();
    assert_eq!(ask(&b, &key(1), "by b").await, "by b");
}

#[derive(Debug, Clone)]
enum Step {
    /// Something changes in the database, through nobody.
    Change(usize),
    /// Something changes through a node, which hears of it at once and does not know where in the log it is.
    Write(usize, usize),
    /// A node reads the log up to a share of what it has not read yet.
    Read(usize, u8),
    Fence(usize),
    Ask(usize, usize),
    Forget(usize),
}

const NODES: usize = 3;
const TABLES: usize = 2;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..TABLES).prop_map(Step::Change),
        2 => (0..NODES, 0..TABLES).prop_map(|(node, table)| Step::Write(node, table)),
        3 => (0..NODES, any::<u8>()).prop_map(|(node, share)| Step::Read(node, share)),
        1 => (0..NODES).prop_map(Step::Fence),
        8 => (0..NODES, 0..TABLES).prop_map(|(node, table)| Step::Ask(node, table)),
        1 => (0..NODES).prop_map(Step::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The value of a table is the position of its last change. A node that has read the log up to some position, or has
    /// written itself, is never served an older one.
    #[test]
    fn no_node_is_served_what_it_knows_to_have_changed(steps in proptest::collection::vec(step(), 1..80)) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let map = SharedMap::default();
            let nodes: Vec<_> = (0..NODES).map(|_| following(&map, 0)).collect();
            let mut log: Vec<(usize, u64)> = Vec::new();
            let mut position = 1;
            let mut read = [0_usize; NODES];
            let mut known = [[0_u64; TABLES]; NODES];
            let mut values = [0_u64; TABLES];
            let names = ["t0", "t1"];
            for step in steps {
                match step {
                    Step::Change(table) => {
                        position += 1;
                        values[table] = position;
                        log.push((table, position));
                    }
                    Step::Write(node, table) => {
                        let slot = nodes[node].table_slot(names[table]);
                        let write = nodes[node].versions().begin_write(&[slot]);
                        position += 1;
                        values[table] = position;
                        log.push((table, position));
                        write.finish();
                        known[node][table] = position;
                    }
                    Step::Read(node, share) => {
                        let to = read[node] + (log.len() - read[node]) * usize::from(share) / 255;
                        for &(table, at) in &log[read[node]..to] {
                            let slot = nodes[node].table_slot(names[table]);
                            nodes[node].versions().invalidate_at(&[slot], Position(at));
                            nodes[node].versions().advance(Position(at));
                            known[node][table] = known[node][table].max(at);
                        }
                        read[node] = to;
                    }
                    Step::Fence(node) => {
                        nodes[node].versions().begin_fence().end(Position(position));
                    }
                    Step::Ask(node, table) => {
                        let key = QueryKey::new(names[table], &[], "shop");
                        let value = values[table];
                        let compute = async move { Ok(Bytes::from(value.to_string())) };
                        let tables = [names[table]];
                        let answer = nodes[node].get_or_compute(&key, &tables, compute).await.unwrap();
                        let served: u64 = std::str::from_utf8(&answer).unwrap().parse().unwrap();
                        prop_assert!(
                            served >= known[node][table],
                            "node {} knows of {} and was served {}", node, known[node][table], served
                        );
                    }
                    Step::Forget(node) => nodes[node].evict_entries(usize::MAX).await.unwrap(),
                }
            }
            Ok(())
        })?;
    }
}
