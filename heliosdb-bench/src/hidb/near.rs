//! Reads from the client's own memory, beside reads that the gateway answers from its.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use heliosdb_client::{Client, ClientConfig};
use heliosdb_network::protocol::AnswerSource;
use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};

use super::ways::Shape;
use super::{Bench, process_cpu_us};
use crate::statistics::Spread;

/// A task lets others run after so many reads: those from the client's own memory never wait for anything.
const BURST: usize = 64;

/// How long the subscription may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
struct Turn {
    reads_s: f64,
    wall_ns: f64,
    cpu_ns: f64,
    near_percent: f64,
}

pub(super) fn run(bench: &Bench<'_>, out: &mut impl Write) -> anyhow::Result<()> {
    let clients = bench.runtime.block_on(async {
        let near = open(bench, ClientConfig::default()).await?;
        let mut config = ClientConfig::default();
        config.near = None;
        anyhow::Ok([
            ("near cache", near),
            ("gateway's cache", open(bench, config).await?),
        ])
    })?;
    let mut turns: BTreeMap<(Shape, usize, usize), Vec<Turn>> = BTreeMap::new();
    for round in 1..=bench.args.rounds {
        eprintln!("near cache, round {round}");
        for shape in Shape::ALL {
            for &tasks in &bench.args.tasks {
                for (at, (name, client)) in clients.iter().enumerate() {
                    bench.interrupt.check()?;
                    let turn = bench
                        .runtime
                        .block_on(read(client, shape, tasks, bench.args.time));
                    let turn = turn.with_context(|| format!("{name}, {tasks} tasks"))?;
                    turns.entry((shape, tasks, at)).or_default().push(turn);
                }
            }
        }
    }
    writeln!(
        out,
        "## Near cache\n\n`heliosdb_client::Client`, one client for all tasks, {} rounds of {:?} by turns: median and range. \
         CPU time is of the client's process. A task yields after every {BURST} reads.\n",
        bench.args.rounds, bench.args.time
    )?;
    writeln!(
        out,
        "| rows | tasks | answered from | reads/s | ns/read of a task | CPU ns/read | % near |"
    )?;
    writeln!(out, "| --: | --: | --- | --: | --: | --: | --: |")?;
    for ((shape, tasks, at), own) in &turns {
        let spread =
            |figure: fn(&Turn) -> f64| Spread::of(own.iter().map(figure)).context("no round");
        writeln!(
            out,
            "| {} | {tasks} | {} | {:.0} | {:.0} | {:.0} | {:.2} |",
            shape.rows(),
            clients[*at].0,
            spread(|turn| turn.reads_s)?,
            spread(|turn| turn.wall_ns)?,
            spread(|turn| turn.cpu_ns)?,
            spread(|turn| turn.near_percent)?.median,
        )?;
    }
    Ok(())
}

/// A client that has asked everything once, so that whatever it remembers it knows now.
async fn open(bench: &Bench<'_>, config: ClientConfig) -> anyhow::Result<Client> {
    let is_near = config.near.is_some();
    let client = Client::open(bench.site.hidb_target(), config).await?;
    let began = Instant::now();
    while is_near && !client.stats().is_near_live {
        ensure!(began.elapsed() < PATIENCE, "the subscription did not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let expected = if is_near {
        AnswerSource::Near
    } else {
        AnswerSource::Hit
    };
    for shape in Shape::ALL {
        let first = client.query(shape.sql()).await?;
        let second = client.query(shape.sql()).await?;
        let source = second.facts().source;
        ensure!(source == expected, "answered by {source:?}");
        ensure!(first.bytes() == second.bytes(), "two different answers");
    }
    Ok(client)
}

async fn read(client: &Client, shape: Shape, tasks: usize, time: Duration) -> anyhow::Result<Turn> {
    let stop = Arc::new(AtomicBool::new(false));
    let begin = Arc::new(Barrier::new(tasks + 1));
    let mut reading = JoinSet::new();
    let hits = client.stats().near_hits;
    for _ in 0..tasks {
        let (client, stop, begin) = (client.clone(), Arc::clone(&stop), Arc::clone(&begin));
        reading.spawn(async move {
            let mut reads = 0_u64;
            begin.wait().await;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    let reply = client.query(shape.sql()).await?;
                    let source = reply.facts().source;
                    ensure!(source != AnswerSource::Server, "not from memory");
                    ensure!(reply.len() == shape.rows(), "{} rows", reply.len());
                }
                reads += BURST as u64;
                yield_now().await;
            }
            Ok(reads)
        });
    }
    begin.wait().await;
    let (cpu, began) = (process_cpu_us(), Instant::now());
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut reads = 0;
    while let Some(done) = reading.join_next().await {
        reads += done??;
    }
    let (cpu, elapsed) = (process_cpu_us() - cpu, began.elapsed());
    ensure!(reads > 0, "nothing was read");
    let stats = client.stats();
    let near = stats.near_hits - hits;
    if stats.near.is_some() {
        // Where the machine is busy, a proof may come late once: then the gateway is asked.
        ensure!(near * 10 > reads * 9, "{near} of {reads} reads were near");
    }
    let reads = reads as f64;
    Ok(Turn {
        reads_s: reads / elapsed.as_secs_f64(),
        wall_ns: elapsed.as_secs_f64() * 1e9 * tasks as f64 / reads,
        cpu_ns: cpu * 1e3 / reads,
        near_percent: near as f64 * 100.0 / reads,
    })
}
