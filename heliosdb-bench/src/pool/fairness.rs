//! Who is served how often.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::task::{JoinSet, yield_now};

use super::contestants::{self, Contestant, Visitor};
use super::{CONNECTIONS, runtime};
use crate::statistics::percentile;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each is watched
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Tasks at the same time
    #[arg(long, default_value_t = 64, value_name = "NUMBER")]
    tasks: usize,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(3),
            tasks: 64,
        }
    }
}

struct Watch<'a, W> {
    args: &'a Args,
    runtime: &'a Runtime,
    out: &'a mut W,
}

impl<W: Write> Visitor for Watch<'_, W> {
    fn visit<C: Contestant>(&mut self, name: &'static str, pool: Arc<C>) -> anyhow::Result<()> {
        for is_greedy in [true, false] {
            let watched = watch(Arc::clone(&pool), self.args, is_greedy);
            let (served, waits) = self.runtime.block_on(watched)?;
            let milliseconds = |percent| {
                let wait = percentile(&waits, percent).context("nobody acquired anything")?;
                anyhow::Ok(wait as f64 / 1e6)
            };
            writeln!(
                self.out,
                "| {name} | {} | {:.0} | {:.1} | {:.1} | {:.3} |",
                if is_greedy {
                    "at once"
                } else {
                    "after a yield"
                },
                served.iter().sum::<u64>() as f64 / self.args.time.as_secs_f64(),
                milliseconds(50)?,
                milliseconds(99)?,
                jain(&served),
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "## Fairness\n\n{} tasks share {CONNECTIONS} connections for {:?}, hold each for a millisecond, and ask for another at \
         once (in the same poll) or after a yield. Jain's index is 1 where all are served as often, and 1/n where one has \
         everything.\n",
        args.tasks, args.time
    )?;
    writeln!(
        out,
        "| pool | asks again | served/s | p50 ms | p99 ms | Jain |"
    )?;
    writeln!(out, "| --- | --- | --: | --: | --: | --: |")?;
    let runtime = runtime()?;
    let _in_runtime = runtime.enter();
    contestants::visit(&mut Watch {
        args,
        runtime: &runtime,
        out,
    })
}

/// How often each task was served, and how long each wait took.
async fn watch<C: Contestant>(
    pool: Arc<C>,
    args: &Args,
    is_greedy: bool,
) -> anyhow::Result<(Vec<u64>, Vec<u64>)> {
    let end = Instant::now() + args.time;
    let mut tasks = JoinSet::new();
    for _ in 0..args.tasks {
        let pool = Arc::clone(&pool);
        tasks.spawn(async move {
            let (mut served, mut waits) = (0, Vec::new());
            loop {
                let asked = Instant::now();
                // One that is never served has to be counted, too.
                let until_end = tokio::time::Instant::from_std(end);
                let Ok(lease) = tokio::time::timeout_at(until_end, pool.acquire()).await else {
                    return (served, waits);
                };
                waits.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                tokio::time::sleep(Duration::from_millis(1)).await;
                drop(lease);
                served += 1;
                if Instant::now() >= end {
                    return (served, waits);
                }
                if !is_greedy {
                    yield_now().await;
                }
            }
        });
    }
    let (mut served, mut waits) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (of_task, mut waits_of_task) = done?;
        served.push(of_task);
        waits.append(&mut waits_of_task);
    }
    Ok((served, waits))
}

/// Jain, Chiu, Hawe: "A Quantitative Measure of Fairness" (DEC-TR-301, 1984).
fn jain(served: &[u64]) -> f64 {
    let served = served.iter().map(|&served| served as f64);
    let (n, sum) = (served.len() as f64, served.clone().sum::<f64>());
    sum * sum / (n * served.map(|one| one * one).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_is_one_for_equals_and_its_least_for_one_who_has_everything() {
        assert_eq!(jain(&[7, 7, 7, 7]), 1.0);
        assert_eq!(jain(&[9, 0, 0, 0]), 0.25);
    }
}
