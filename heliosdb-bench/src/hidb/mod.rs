//! `hidb`: what a hit costs over HIDB and over PostgreSQL's protocol, on one connection, and what one in the client's own
//! memory costs.

mod near;
mod site;
mod ways;
mod wire;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use crate::cpu::{ProcessTable, machine_busy_ticks, seconds};
use crate::interrupt::Interrupt;
use crate::statistics::Spread;

use site::Site;
use ways::{Shape, Way};

/// What is measured. The defaults take about five minutes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Times that each is measured, by turns
    #[arg(long, default_value_t = 5, value_name = "NUMBER")]
    rounds: usize,
    /// How long each time
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Requests on the connection at the same time
    #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
    in_flight: Vec<usize>,
    /// Tasks that read by one client with a near cache
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    tasks: Vec<usize>,
    /// Only clients whose names hold this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// Measures, and prints the report.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "no rounds");
    ensure!(!args.in_flight.contains(&0), "nothing in flight");
    let interrupt = Interrupt::watch()?;
    let site = Site::start(args.helios.as_deref(), &interrupt)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let bench = Bench {
        args,
        site: &site,
        runtime: &runtime,
        interrupt: &interrupt,
    };
    let mut out = std::io::stdout().lock();
    bench.pipelined(&mut out)?;
    writeln!(out)?;
    near::run(&bench, &mut out)?;
    let mut environment = String::new();
    site.environment()?.write(&mut environment)?;
    write!(out, "{environment}")?;
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    site: &'a Site,
    runtime: &'a Runtime,
    interrupt: &'a Interrupt,
}

/// What one turn came to.
#[derive(Debug, Clone, Copy)]
struct Turn {
    requests_s: f64,
    gateway_us: f64,
    client_us: f64,
    /// What somebody else used of the machine.
    other_cores: f64,
}

/// Requests that were answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    requests: u64,
    elapsed: Duration,
}

impl Bench<'_> {
    fn pipelined(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let mut ways = ways::all(self.site, self.runtime)?;
        ways.retain(|(name, _)| name.contains(&self.args.only));
        ensure!(!ways.is_empty(), "no client is named {}", self.args.only);
        self.verify(&mut ways)?;
        let mut turns: BTreeMap<(Shape, usize, usize), Vec<Turn>> = BTreeMap::new();
        for round in 1..=self.args.rounds {
            eprintln!("pipelined, round {round}");
            for shape in Shape::ALL {
                for &in_flight in &self.args.in_flight {
                    for (at, (name, way)) in ways.iter_mut().enumerate() {
                        self.interrupt.check()?;
                        let turn = self
                            .measure(|time| way.drive(shape, in_flight, time))
                            .with_context(|| format!("{name}, {in_flight} in flight"))?;
                        turns.entry((shape, in_flight, at)).or_default().push(turn);
                    }
                }
            }
        }
        self.tell(&ways, &turns, out)
    }

    /// Everybody gets what PostgreSQL says, and not from PostgreSQL.
    fn verify(&self, ways: &mut [(&'static str, Box<dyn Way>)]) -> anyhow::Result<()> {
        for shape in Shape::ALL {
            let right = self.site.psql(shape.sql())?;
            ensure!(right.lines().count() == shape.rows(), "{right}");
            for (name, way) in &mut *ways {
                // The first may be a miss.
                way.rows(shape)?;
                let before = self.site.hits(self.runtime)?;
                let rows = way.rows(shape)?;
                let hits = self.site.hits(self.runtime)? - before;
                ensure!(rows == right, "{name} got {rows:?} instead of {right:?}");
                ensure!(hits == 1, "{name}: {hits} hits for one request");
            }
        }
        Ok(())
    }

    /// Has requests asked, all of which have to be hits.
    fn measure(
        &self,
        ask: impl FnOnce(Duration) -> anyhow::Result<Answered>,
    ) -> anyhow::Result<Turn> {
        let helios = self.site.helios_pid();
        let hits = self.site.hits(self.runtime)?;
        let before = ProcessTable::read_at_rest(&[helios])?;
        let (busy, began) = (machine_busy_ticks()?, Instant::now());
        let client = process_cpu_us();
        let Answered { requests, elapsed } = ask(self.args.time)?;
        let client = process_cpu_us() - client;
        let after = ProcessTable::read_at_rest(&[helios])?;
        let (busy, took) = (machine_busy_ticks()?.saturating_sub(busy), began.elapsed());
        let hits = self.site.hits(self.runtime)? - hits;
        ensure!(requests > 0, "nothing was answered");
        ensure!(hits == requests, "{hits} hits for {requests} requests");
        let used = |root| seconds(after.ticks(root).saturating_sub(before.ticks(root)));
        let n = requests as f64;
        Ok(Turn {
            requests_s: n / elapsed.as_secs_f64(),
            gateway_us: used(helios) * 1e6 / n,
            client_us: client / n,
            other_cores: (seconds(busy) - used(std::process::id())) / took.as_secs_f64(),
        })
    }

    fn tell(
        &self,
        ways: &[(&'static str, Box<dyn Way>)],
        turns: &BTreeMap<(Shape, usize, usize), Vec<Turn>>,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let others = turns.values().flatten().map(|turn| turn.other_cores);
        let others = Spread::of(others).context("nothing was measured")?;
        writeln!(
            out,
            "## Hits on one connection\n\n{} rounds of {:?} by turns: median and range. Ratios are of the gateway's CPU time, \
             to the first of the table in the same round. Other load on the machine: {others:.2} cores.\n",
            self.args.rounds, self.args.time
        )?;
        writeln!(
            out,
            "| rows | in flight | client | requests/s | gateway CPU µs/request | / {} | client CPU µs/request |",
            ways[0].0
        )?;
        writeln!(out, "| --: | --: | --- | --: | --: | --: | --: |")?;
        for ((shape, in_flight, at), own) in turns {
            let first = &turns[&(*shape, *in_flight, 0)];
            let ratios = own
                .iter()
                .zip(first)
                .map(|(own, first)| own.gateway_us / first.gateway_us);
            let spread =
                |figure: fn(&Turn) -> f64| Spread::of(own.iter().map(figure)).context("no round");
            writeln!(
                out,
                "| {} | {in_flight} | {} | {:.0} | {:.2} | {:.2} | {:.2} |",
                shape.rows(),
                ways[*at].0,
                spread(|turn| turn.requests_s)?,
                spread(|turn| turn.gateway_us)?,
                Spread::of(ratios).context("no round")?,
                spread(|turn| turn.client_us)?,
            )?;
        }
        Ok(())
    }
}

/// The CPU time that this process has used, in microseconds.
fn process_cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
