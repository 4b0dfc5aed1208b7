//! Warm restarts: what was saved is served again, and nothing else is.
#![cfg(not(loom))]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heliosdb_cache::{
    CacheConfig, CacheError, CacheManager, InMemoryBackend, Lifetime, Lineage, QueryKey,
};
use proptest::prelude::*;
use tokio::runtime::Builder;

const LINEAGE: Lineage = *b"a database, at 7";

fn cache() -> CacheManager {
    let mut config = CacheConfig::default();
    config.version_slot_bits = 10;
    config.sweep_interval = Duration::ZERO;
    CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), config)
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &[&n.to_string()], "shop")
}

async fn put(cache: &CacheManager, n: usize, lifetime: Lifetime) {
    let tables = vec![format!("t{}", n % 3)];
    let value = format!("value {n}").repeat(n % 5);
    cache
        .put_with(key(n), value, tables, n as f64, lifetime)
        .await
        .expect("in memory");
}

async fn filled(n: usize) -> CacheManager {
    let cache = cache();
    for n in 0..n {
        put(&cache, n, Lifetime::default()).await;
    }
    cache
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn files(&self) -> usize {
        let entries = std::fs::read_dir(self.0.path());
        entries.expect("the folder").count()
    }
}

fn reason(result: Result<usize, CacheError>) -> String {
    match result {
        Err(CacheError::Snapshot { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_saved_is_served_after_a_restart() {
    let folder = Folder::new();
    let before = filled(100).await;
    assert_eq!(before.save(folder.file(), &LINEAGE), Ok(100));
    let after = cache();
    assert_eq!(after.load(folder.file(), &LINEAGE), Ok(100));
    for n in 0..100 {
        let expected = format!("value {n}").repeat(n % 5);
        assert_eq!(after.get(&key(n)).await.unwrap().unwrap(), expected);
    }
    let saved = after.stats().time_saved;
    assert_eq!(saved, Duration::from_millis((0..100).sum()));
    // They are invalidated as the others.
    after.invalidate_table("t1");
    assert_eq!(after.get(&key(1)).await.unwrap(), None);
    assert!(after.get(&key(2)).await.unwrap().is_some());
    assert_eq!(folder.files(), 1, "nothing else is left behind");
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    filled(1).await.save(folder.file(), &LINEAGE).unwrap();
    let mode = std::fs::metadata(folder.file())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn only_what_may_be_served_is_saved_and_time_goes_on() {
    let folder = Folder::new();
    let before = filled(9).await;
    put(&before, 9, Lifetime::of(Duration::from_millis(40))).await;
    put(&before, 10, Lifetime::of(Duration::from_secs(60))).await;
    before.invalidate_table("t0");
    assert_eq!(before.save(folder.file(), &LINEAGE), Ok(7));
    tokio::time::sleep(Duration::from_millis(80)).await;
    let after = cache();
    after.load(folder.file(), &LINEAGE).unwrap();
    let mut served = Vec::new();
    for n in 0..11 {
        if after.get(&key(n)).await.unwrap().is_some() {
            served.push(n);
        }
    }
    assert_eq!(served, [1, 2, 4, 5, 7, 8, 10]);
}

#[tokio::test]
async fn foreign_files_are_refused_by_name() {
    let folder = Folder::new();
    let file = folder.file();
    filled(3).await.save(&file, &LINEAGE).unwrap();
    let other = *b"another database";
    assert_eq!(
        reason(cache().load(&file, &other)),
        "it is of another lineage"
    );
    let mut config = CacheConfig::default();
    config.version_slot_bits = 11;
    let larger = CacheManager::new(Arc::new(InMemoryBackend::new(1 << 20)), config);
    assert!(reason(larger.load(&file, &LINEAGE)).contains("version slots"));
    assert_eq!(larger.stats().entries, 0);
    for foreign in [&b""[..], b"#!/bin/sh\n", &[0; 4096], b"heliosdb"] {
        std::fs::write(&file, foreign).unwrap();
        let reason = reason(cache().load(&file, &LINEAGE));
        assert_eq!(reason, "it is not a snapshot of a cache");
    }
    std::fs::write(&file, [b"heliosdb".as_slice(), &[9; 100]].concat()).unwrap();
    assert!(reason(cache().load(&file, &LINEAGE)).contains("another version"));
    let missing = cache().load(Path::new("/nonexistent/file"), &LINEAGE);
    let error = missing.unwrap_err().to_string();
    assert!(error.starts_with("snapshot /nonexistent/file: "), "{error}");
    assert!(cache().save("/nonexistent/file", &LINEAGE).is_err());
}

#[tokio::test]
async fn a_cache_that_was_written_to_loads_nothing() {
    let folder = Folder::new();
    filled(3).await.save(folder.file(), &LINEAGE).unwrap();
    let after = cache();
    after
        .versions()
        .begin_write(&[after.table_slot("t1")])
        .finish();
    assert!(reason(after.load(folder.file(), &LINEAGE)).contains("invalidated"));
    assert_eq!(after.stats().entries, 0);
}

/// A file that is saved while something is written would hold what was replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_holds_what_was_replaced_while_it_was_saved() {
    let folder = Folder::new();
    let before = filled(2000).await;
    let writer = {
        let before = before.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1));
            before.invalidate_table("t1");
        })
    };
    let saved = before.save(folder.file(), &LINEAGE);
    writer.join().unwrap();
    // Either the write came later than the file, or before it began, or it is refused.
    match saved {
        Ok(count) => assert!([2000, 1333].contains(&count), "{count}"),
        Err(error) => {
            assert!(error.to_string().contains("try again"), "{error}");
            assert_eq!(folder.files(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_loads_nothing(at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = Folder::new();
            filled(5).await.save(folder.file(), &LINEAGE).unwrap();
            let mut bytes = std::fs::read(folder.file()).unwrap();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= flip;
            }
            std::fs::write(folder.file(), bytes).unwrap();
            let after = cache();
            let loaded = after.load(folder.file(), &LINEAGE);
            prop_assert!(loaded.is_err(), "byte {}: {:?}", at, loaded);
            prop_assert_eq!(after.stats().entries, 0);
            Ok(())
        })?;
    }
}
