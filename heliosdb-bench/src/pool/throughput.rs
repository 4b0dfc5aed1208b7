//! What acquire and release cost.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};

use super::contestants::{self, Contestant, FLOOR, Visitor};
use super::{CONNECTIONS, runtime};
use crate::statistics::{Spread, percentile};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each is measured, by turns
    #[arg(long, default_value_t = 7, value_name = "NUMBER")]
    rounds: usize,
    /// How long each time
    #[arg(long, default_value = "400ms", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Tasks at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    tasks: Vec<usize>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 7,
            time: Duration::from_millis(400),
            tasks: vec![1, 8, 64],
        }
    }
}

/// One in so many waits is measured.
const SAMPLED: u64 = 8;

/// What a task does with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// Gives it back at once: the bare cost.
    Nothing,
    /// Lets another task run first, so that there is a queue.
    Yield,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Yield => "yield",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Round {
    operations_s: f64,
    cpu_ns: f64,
    p50_ns: u64,
    p99_ns: u64,
}

type Rounds = BTreeMap<(usize, Use, usize), Vec<Round>>;

struct Turn<'a> {
    args: &'a Args,
    runtime: &'a Runtime,
    names: Vec<&'static str>,
    rounds: Rounds,
}

impl Visitor for Turn<'_> {
    fn visit<C: Contestant>(&mut self, name: &'static str, pool: Arc<C>) -> anyhow::Result<()> {
        let at = self.names.iter().position(|known| *known == name);
        let at = at.unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        });
        for &tasks in &self.args.tasks {
            for usage in [Use::Nothing, Use::Yield] {
                // Without a pause nobody queues, and two tasks have both threads.
                if usage == Use::Nothing && tasks > 1 {
                    continue;
                }
                let time = self.args.time;
                let round =
                    self.runtime
                        .block_on(measure(Arc::clone(&pool), tasks, usage, time))?;
                self.rounds
                    .entry((tasks, usage, at))
                    .or_default()
                    .push(round);
            }
        }
        Ok(())
    }
}

pub(super) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut turn = Turn {
        args,
        runtime: &runtime,
        names: Vec::new(),
        rounds: Rounds::new(),
    };
    for _ in 0..args.rounds {
        let _in_runtime = runtime.enter();
        contestants::visit(&mut turn)?;
    }
    writeln!(
        out,
        "## Acquire and release\n\n{CONNECTIONS} connections that do nothing, two worker threads, {} rounds of {:?} by turns: \
         median and range. Ratios of CPU time are of rounds that followed each other. Waiting is from the call to the \
         connection, one in {SAMPLED} of them, the reading of the clock included.\n",
        args.rounds, args.time
    )?;
    writeln!(
        out,
        "| tasks | holding | pool | CPU ns/op | / {FLOOR} | M op/s | p50 µs | p99 µs |"
    )?;
    writeln!(out, "| --: | --- | --- | --: | --: | --: | --: | --: |")?;
    for ((tasks, usage, at), own) in &turn.rounds {
        let floor = &turn.rounds[&(*tasks, *usage, 0)];
        let ratios = own
            .iter()
            .zip(floor)
            .map(|(own, floor)| own.cpu_ns / floor.cpu_ns);
        let spread =
            |figure: fn(&Round) -> f64| Spread::of(own.iter().map(figure)).context("no round");
        writeln!(
            out,
            "| {tasks} | {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} |",
            usage.name(),
            turn.names[*at],
            spread(|round| round.cpu_ns)?,
            Spread::of(ratios).context("no round")?,
            spread(|round| round.operations_s / 1e6)?,
            spread(|round| round.p50_ns as f64 / 1e3)?.median,
            spread(|round| round.p99_ns as f64 / 1e3)?,
        )?;
    }
    Ok(())
}

async fn measure<C: Contestant>(
    pool: Arc<C>,
    tasks: usize,
    usage: Use,
    time: Duration,
) -> anyhow::Result<Round> {
    // All connections stand before anything is measured.
    let mut held = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        held.push(pool.acquire().await);
    }
    drop(held);
    let stop = Arc::new(AtomicBool::new(false));
    let begin = Arc::new(Barrier::new(tasks + 1));
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (pool, stop, begin) = (Arc::clone(&pool), Arc::clone(&stop), Arc::clone(&begin));
        running.spawn(async move {
            let (mut operations, mut waits) = (0_u64, Vec::new());
            begin.wait().await;
            while !stop.load(Ordering::Relaxed) {
                let asked = (operations % SAMPLED == 0).then(Instant::now);
                let lease = pool.acquire().await;
                if let Some(asked) = asked {
                    waits.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                if usage == Use::Yield {
                    yield_now().await;
                }
                drop(lease);
                operations += 1;
            }
            (operations, waits)
        });
    }
    begin.wait().await;
    let (cpu, began) = (process_cpu_ns(), Instant::now());
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let (mut operations, mut waits) = (0, Vec::new());
    while let Some(done) = running.join_next().await {
        let (of_task, mut waits_of_task) = done?;
        operations += of_task;
        waits.append(&mut waits_of_task);
    }
    let (cpu, elapsed) = (process_cpu_ns() - cpu, began.elapsed());
    let operations = operations as f64;
    Ok(Round {
        operations_s: operations / elapsed.as_secs_f64(),
        cpu_ns: cpu / operations,
        p50_ns: percentile(&waits, 50).context("nobody acquired anything")?,
        p99_ns: percentile(&waits, 99).context("nobody acquired anything")?,
    })
}

fn process_cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
