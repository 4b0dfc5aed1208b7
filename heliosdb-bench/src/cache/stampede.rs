//! Many tasks that ask for the same answer, which nobody has.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, QueryKey};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

use crate::statistics::Spread;

const TASKS: usize = 10_000;
const ROUNDS: usize = 9;
/// The database's time.
const COMPUTATION: Duration = Duration::from_millis(100);

pub(crate) fn run(out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "## Stampede\n\n{TASKS} tasks ask for one missing key, whose computation takes {} ms; two worker threads. CPU time of the \
         process for a task, with and without the tasks' own; medians of {ROUNDS} rounds by turns, with their range.\n",
        COMPUTATION.as_millis()
    )?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut figures: [Vec<(usize, f64)>; 4] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        figures[0].push(round(&runtime, |_| async { Bytes::new() }));
        figures[1].push(helios(&runtime));
        figures[2].push(moka(&runtime));
        figures[3].push(quick_cache(&runtime));
    }
    let floors: Vec<_> = figures[0].iter().map(|figure| figure.1).collect();
    writeln!(
        out,
        "| cache | computations | ns a task | beyond a task that only sleeps |"
    )?;
    writeln!(out, "| --- | --: | --: | --: |")?;
    let names = ["none: sleep", "heliosdb-cache", "moka", "quick_cache"];
    for (name, figures) in names.iter().zip(&figures) {
        let computations = figures.iter().map(|figure| figure.0);
        let most = computations.max().context("no round")?;
        ensure!(
            *name != "heliosdb-cache" || most == 1,
            "{most} computations"
        );
        let own = Spread::of(figures.iter().map(|figure| figure.1)).context("no round")?;
        let beyond = figures
            .iter()
            .zip(&floors)
            .map(|(figure, floor)| figure.1 - floor);
        let beyond = Spread::of(beyond).context("no round")?;
        writeln!(out, "| {name} | {most} | {own:.0} | {beyond:.0} |")?;
    }
    Ok(())
}

/// Computations, and CPU time for a task in nanoseconds.
fn round<F>(runtime: &Runtime, ask: impl Fn(Arc<AtomicUsize>) -> F) -> (usize, f64)
where
    F: Future<Output = Bytes> + Send + 'static,
{
    let computations = Arc::new(AtomicUsize::new(0));
    let began = cpu_ns();
    runtime.block_on(async {
        // The same sleep for all: the floor's tasks are woken as many at a time.
        let wake = tokio::time::Instant::now() + COMPUTATION;
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let asked = ask(Arc::clone(&computations));
                tokio::spawn(async move {
                    let answer = asked.await;
                    if answer.is_empty() {
                        tokio::time::sleep_until(wake).await;
                    }
                    answer
                })
            })
            .collect();
        for task in tasks {
            let _ = task.await;
        }
    });
    let took = cpu_ns() - began;
    (computations.load(Ordering::Acquire), took / TASKS as f64)
}

async fn compute(computations: Arc<AtomicUsize>) -> Bytes {
    computations.fetch_add(1, Ordering::AcqRel);
    tokio::time::sleep(COMPUTATION).await;
    Bytes::from_static(b"an answer")
}

fn helios(runtime: &Runtime) -> (usize, f64) {
    let _guard = runtime.enter();
    let mut config = CacheConfig::default();
    config.sweep_interval = Duration::ZERO;
    let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), config);
    let key = Arc::new(QueryKey::new("SELECT count(*) FROM orders", &[], "bench"));
    round(runtime, |computations| {
        let (cache, key) = (cache.clone(), Arc::clone(&key));
        async move {
            let compute = async { Ok(compute(computations).await) };
            let answer = cache.get_or_compute(&key, &["orders"], compute).await;
            answer.map(Bytes::from).unwrap_or_default()
        }
    })
}

fn moka(runtime: &Runtime) -> (usize, f64) {
    let cache = moka::future::Cache::<u64, Bytes>::new(1000);
    round(runtime, |computations| {
        let cache = cache.clone();
        async move { cache.get_with(0, compute(computations)).await }
    })
}

fn quick_cache(runtime: &Runtime) -> (usize, f64) {
    let cache = Arc::new(quick_cache::sync::Cache::<u64, Bytes>::new(1000));
    round(runtime, |computations| {
        let cache = Arc::clone(&cache);
        async move {
            let compute = async { Ok::<_, std::convert::Infallible>(compute(computations).await) };
            let answer = cache.get_or_insert_async(&0, compute).await;
            answer.unwrap_or_default()
        }
    })
}

/// Of all threads of this process.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
