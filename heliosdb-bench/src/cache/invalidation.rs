//! What invalidating a table costs, with few entries and with many.

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heliosdb_cache::{AdaptivePolicy, CacheConfig, CacheManager, InMemoryBackend, QueryKey};

use super::contestants::{Contestant as _, Helios};
use super::throughput::cpu_ns;
use crate::statistics::Spread;

const ROUNDS: usize = 9;
const INVALIDATIONS: u32 = 100_000;

pub(crate) fn run(out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "## Invalidation\n\nOf a table that all entries depend on; medians of {ROUNDS} rounds by turns, with their range. \
         `retain` is what a cache without versions has to do.\n"
    )?;
    writeln!(
        out,
        "| entries | heliosdb-cache, ns | quick_cache `retain`, ns |"
    )?;
    writeln!(out, "| --: | --: | --: |")?;
    let sizes = [1_000_u64, 1_000_000];
    let caches = sizes.map(|entries| {
        let cache = Helios::new(1 << 30, Arc::new(AdaptivePolicy));
        let peer = quick_cache::sync::Cache::new(2_000_000);
        for key in 0..entries {
            cache.put(key, &[0; 16]);
            peer.insert(key, key);
        }
        (cache, peer)
    });
    let mut figures = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((cache, peer), figures) in caches.iter().zip(&mut figures) {
            let began = cpu_ns();
            for _ in 0..INVALIDATIONS {
                cache.cache.invalidate_table(black_box("pgbench_accounts"));
            }
            let own = (cpu_ns() - began) / f64::from(INVALIDATIONS);
            let began = cpu_ns();
            // What does not depend on the table stays: the look is what is measured.
            peer.retain(|key, _| black_box(*key) != u64::MAX);
            figures.push((own, cpu_ns() - began));
        }
    }
    for ((entries, (cache, _)), figures) in sizes.iter().zip(&caches).zip(figures) {
        ensure!(
            cache.len() as u64 > entries * 9 / 10,
            "{} of {entries}",
            cache.len()
        );
        ensure!(
            !cache.get(0),
            "an entry was served after it was invalidated"
        );
        let own = Spread::of(figures.iter().map(|figure| figure.0)).context("no round")?;
        let peer = Spread::of(figures.iter().map(|figure| figure.1)).context("no round")?;
        writeln!(out, "| {entries} | {own:.1} | {peer:.0} |")?;
    }
    sweep(out)
}

/// What the memory of the dead comes back for.
fn sweep(out: &mut impl Write) -> anyhow::Result<()> {
    let mut config = CacheConfig::default();
    config.max_size_bytes = 1 << 30;
    config.sweep_interval = Duration::ZERO;
    let cache = CacheManager::new(Arc::new(InMemoryBackend::new(1 << 30)), config);
    let slots = [cache.table_slot("t")];
    for n in 0..1_000_000_u32 {
        let key = QueryKey::new(&n.to_string(), &[], "bench");
        cache.insert(&key.as_ref(), &[0; 16], &slots, Duration::from_millis(1));
    }
    cache.invalidate_table("t");
    let began = cpu_ns();
    let freed = cache.sweep();
    let took = (cpu_ns() - began) / 1e6;
    ensure!(freed > 0 && cache.stats().entries == 0, "swept");
    writeln!(
        out,
        "\nA sweep, which frees the memory of invalidated entries that nobody asks for, took {took:.0} ms of the processor for \
         1000000 entries."
    )?;
    Ok(())
}
