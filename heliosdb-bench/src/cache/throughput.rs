//! Look-ups and puts a second, beside other caches.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::Context as _;
use rand::SeedableRng as _;
use rand::distr::Distribution as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand_distr::Zipf;
use rustix::time::{ClockId, clock_gettime};

use super::contestants::{self, Contestant};
use crate::statistics::Spread;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each is measured, by turns
    #[arg(long, default_value_t = 7, value_name = "NUMBER")]
    rounds: usize,
    /// Operations in a round, for each thread
    #[arg(long, default_value_t = 2_000_000, value_name = "NUMBER")]
    operations: usize,
    /// Distinct keys
    #[arg(long, default_value_t = 200_000, value_name = "NUMBER")]
    keys: u32,
    /// MiB that each may hold
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    capacity: usize,
    /// Threads at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Only these, by their names
    #[arg(long, value_delimiter = ';', value_name = "NAME")]
    only: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 7,
            operations: 2_000_000,
            keys: 200_000,
            capacity: 64,
            threads: vec![1, 2],
            only: Vec::new(),
        }
    }
}

const VALUE: [u8; 1024] = [7; 1024];
/// One in so many is a put.
const PUT: usize = 20;

/// Of one round, for an operation.
#[derive(Debug, Clone, Copy)]
struct Round {
    cpu_ns: f64,
    /// Of all threads together.
    wall_ns: f64,
    hits: f64,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let questions = questions(args)?;
    let names: Vec<_> = contestants::NAMES
        .into_iter()
        .filter(|name| args.only.is_empty() || args.only.iter().any(|only| only == name))
        .collect();
    let mut caches = Vec::new();
    for name in &names {
        let capacity = args.capacity << 20;
        let cache = contestants::build(name, capacity, capacity / 1200).context("a name")?;
        for &key in &questions {
            cache.put(u64::from(key), &VALUE);
        }
        caches.push(cache);
    }
    let mut rounds: BTreeMap<(usize, usize), Vec<Round>> = BTreeMap::new();
    for _ in 0..args.rounds {
        for &threads in &args.threads {
            for (at, cache) in caches.iter().enumerate() {
                let round = measure(&**cache, &questions, threads)?;
                rounds.entry((threads, at)).or_default().push(round);
            }
        }
    }
    writeln!(
        out,
        "## Throughput\n\nZipf 0.99 over {} keys, {} % look-ups, values of 1 KiB, {} MiB, {} operations a thread, median of {} \
         rounds by turns with their range. Ratios are of rounds that followed each other.\n",
        args.keys,
        100 - 100 / PUT,
        args.capacity,
        args.operations,
        args.rounds,
    )?;
    writeln!(
        out,
        "| threads | cache | CPU ns/op | / {} | M op/s | hits % |",
        names.first().context("none of these names")?
    )?;
    writeln!(out, "| --: | --- | --: | --: | --: | --: |")?;
    for ((threads, at), own) in &rounds {
        let measure = &rounds[&(*threads, 0)];
        let ratios = own
            .iter()
            .zip(measure)
            .map(|(own, measure)| own.cpu_ns / measure.cpu_ns);
        let spread =
            |figure: fn(&Round) -> f64| Spread::of(own.iter().map(figure)).context("no round");
        writeln!(
            out,
            "| {threads} | {} | {:.0} | {:.2} | {:.1} | {:.1} |",
            names[*at],
            spread(|round| round.cpu_ns)?,
            Spread::of(ratios).context("no round")?,
            spread(|round| 1000.0 / round.wall_ns)?,
            100.0 * spread(|round| round.hits)?.median,
        )?;
    }
    Ok(())
}

/// The keys in the order in which they are asked for; a favourite may be any key.
fn questions(args: &Args) -> anyhow::Result<Vec<u32>> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut keys: Vec<u32> = (0..args.keys).collect();
    keys.shuffle(&mut random);
    let zipf = Zipf::new(f64::from(args.keys), 0.99)?;
    let ranks = zipf.sample_iter(random);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank"
    )]
    let questions = ranks.map(|rank| keys[rank as usize - 1]);
    Ok(questions.take(args.operations).collect())
}

fn measure(cache: &dyn Contestant, questions: &[u32], threads: usize) -> anyhow::Result<Round> {
    let barrier = Barrier::new(threads);
    let one = |thread: usize| {
        // Each begins elsewhere.
        let (end, begin) = questions.split_at(questions.len() / threads * thread);
        barrier.wait();
        let (cpu, wall) = (cpu_ns(), Instant::now());
        let mut hits = 0_usize;
        for (at, &key) in begin.iter().chain(end).enumerate() {
            let key = u64::from(key);
            if at % PUT == PUT - 1 {
                cache.put(key, &VALUE);
            } else {
                hits += usize::from(cache.get(key));
            }
        }
        (cpu_ns() - cpu, wall.elapsed().as_nanos() as f64, hits)
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || one(thread)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let (mut cpu, mut wall, mut hits) = (0.0, 0.0_f64, 0);
    for done in done {
        let Ok((thread_cpu, thread_wall, thread_hits)) = done else {
            anyhow::bail!("a thread panicked");
        };
        cpu += thread_cpu;
        wall = wall.max(thread_wall);
        hits += thread_hits;
    }
    let operations = (questions.len() * threads) as f64;
    Ok(Round {
        cpu_ns: cpu / operations,
        wall_ns: wall / operations,
        hits: hits as f64 / operations / (1.0 - 1.0 / PUT as f64),
    })
}

/// Of this thread.
pub(super) fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
