//! `clients`: what a client costs that does nothing, and how fast many are let in. Each logs in, asks one question, and is
//! idle; then the memory of the peer is looked at. And all at once: how many logins a second, and how long the last one takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use heliosdb_network::postgres::{Credential, Host, PgConnection, PgTarget};
use heliosdb_network::scram::ScramSecret;
use heliosdb_testkit::PostgresCluster;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cpu::{Memory, ProcessTable, seconds};
use crate::gateway::helios_or_built;
use crate::interrupt::Interrupt;
use crate::peers::{PASSWORD, Peer, Site, Target};
use crate::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Numbers of idle clients
    #[arg(long, value_delimiter = ',', default_value = "1000,10000",
          value_parser = clap::value_parser!(u32).range(1..=25_000))]
    clients: Vec<u32>,
    /// Logins at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    storm: u32,
    /// Storms, the peers by turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these targets
    #[arg(long, value_delimiter = ',', default_value = "helios-pass,pgbouncer")]
    only: Vec<Target>,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// Measures, and prints the report.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let most = args
        .clients
        .iter()
        .copied()
        .max()
        .unwrap_or(1)
        .max(args.storm);
    raise_file_limit(most)?;
    let helios = helios_or_built(args.helios.as_deref(), &interrupt)?;
    let cluster = PostgresCluster::builder().start()?;
    let site = Site {
        cluster: &cluster,
        clients_max: most,
        helios: Some(&helios),
        users: None,
        counts_instructions: false,
        interrupt: &interrupt,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    println!("| peer | clients | KiB before | KiB with them | bytes for each |");
    println!("| --- | --: | --: | --: | --: |");
    for &target in &args.only {
        for &clients in &args.clients {
            // Each time a new one: what an allocator keeps is not counted twice.
            let Some(peer) = Peer::start(target, &site)? else {
                eprintln!("{} is not installed", target.name());
                break;
            };
            let pid = peer.pid().context("it has no process of its own")?;
            // What the first of all costs is not each one's.
            drop(runtime.block_on(log_in(peer.port))?);
            let before = memory(pid)?;
            let port = peer.port;
            let idle = runtime.block_on(all_at(clients, AT_A_TIME, move || log_in(port)))?;
            interrupt.check()?;
            let with = memory(pid)?;
            println!(
                "| {} | {clients} | {before} | {with} | {} |",
                target.name(),
                with.saturating_sub(before) * 1024 / u64::from(clients)
            );
            drop(idle);
        }
    }
    println!();
    println!("| login | peer | logins at once | logins a second | µs of the peer's CPU for each |");
    println!("| --- | --- | --: | --: | --: |");
    storms(args, &site, "trust", &runtime, log_in)?;
    let secret = ScramSecret::from_password(PASSWORD).to_text();
    let site = Site {
        users: Some(&format!("\"postgres\" \"{secret}\"\n")),
        ..site
    };
    storms(args, &site, "SCRAM-SHA-256", &runtime, prove_and_log_in)
}

#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn storms<T: Send + 'static, F: Future<Output = anyhow::Result<T>> + Send + 'static>(
    args: &Args,
    site: &Site<'_>,
    by: &str,
    runtime: &tokio::runtime::Runtime,
    log_in: impl Fn(u16) -> F + Copy,
) -> anyhow::Result<()> {
    let mut peers = Vec::new();
    for &target in &args.only {
        if let Some(peer) = Peer::start(target, site)? {
            drop(runtime.block_on(log_in(peer.port))?);
            peers.push((peer, Vec::new(), Vec::new()));
        }
    }
    for _ in 0..args.rounds {
        for (peer, rates, costs) in &mut peers {
            site.interrupt.check()?;
            let pid = peer.pid().context("it has no process of its own")?;
            let before = ProcessTable::read()?.ticks(pid);
            let began = Instant::now();
            let port = peer.port;
            let all = all_at(args.storm, args.storm as usize, || log_in(port));
            let clients = runtime.block_on(all)?;
            let took = began.elapsed();
            rates.push(f64::from(args.storm) / took.as_secs_f64());
            drop(clients);
            let ticks = ProcessTable::read()?.ticks(pid) - before;
            costs.push(seconds(ticks) * 1e6 / f64::from(args.storm));
        }
    }
    for (peer, rates, costs) in &peers {
        let (Some(rate), Some(cost)) = (
            Spread::of(rates.iter().copied()),
            Spread::of(costs.iter().copied()),
        ) else {
            bail!("there were no rounds");
        };
        println!(
            "| {by} | {} ({}) | {} | {rate:.0} | {cost:.0} |",
            peer.target.name(),
            peer.version,
            args.storm,
        );
    }
    Ok(())
}

/// Logs so many clients in, some at a time, and has each ask one question. One that fails is an error.
async fn all_at<T: Send + 'static, F: Future<Output = anyhow::Result<T>> + Send + 'static>(
    clients: u32,
    at_a_time: usize,
    log_in: impl Fn() -> F,
) -> anyhow::Result<Vec<T>> {
    let turns = Arc::new(Semaphore::new(at_a_time));
    let mut logins = JoinSet::new();
    for _ in 0..clients {
        let turns = Arc::clone(&turns);
        let logging_in = log_in();
        logins.spawn(async move {
            let _turn = turns.acquire().await?;
            logging_in.await
        });
    }
    let mut streams = Vec::with_capacity(clients as usize);
    while let Some(login) = logins.join_next().await {
        streams.push(login??);
    }
    Ok(streams)
}

async fn log_in(port: u16) -> anyhow::Result<TcpStream> {
    let logging_in = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let startup = b"\0\x03\0\0user\0postgres\0database\0postgres\0application_name\0bench\0\0";
        let len = u32::try_from(startup.len() + 4)?.to_be_bytes();
        stream.write_all(&[&len[..], startup].concat()).await?;
        until_ready(&mut stream).await?;
        stream.write_all(b"Q\0\0\0\x0dSELECT 1\0").await?;
        until_ready(&mut stream).await?;
        Ok(stream)
    };
    tokio::time::timeout(LOGIN_TIMEOUT, logging_in)
        .await
        .context("a login takes too long")?
}

/// As [`log_in`], by a password. The client's part takes thousands of rounds, the peer's a few.
async fn prove_and_log_in(port: u16) -> anyhow::Result<PgConnection> {
    let mut target = PgTarget::new(
        Host::Tcp("127.0.0.1".to_owned()),
        port,
        "postgres",
        "postgres",
    );
    target.credential = Credential::Password(PASSWORD.to_owned());
    let logging_in = async {
        let mut connection = PgConnection::connect(&target).await?;
        connection.simple_query("SELECT 1").await?;
        anyhow::Ok(connection)
    };
    tokio::time::timeout(LOGIN_TIMEOUT, logging_in)
        .await
        .context("a login takes too long")?
}

async fn until_ready(stream: &mut TcpStream) -> anyhow::Result<()> {
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).await?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; len.saturating_sub(4)];
        stream.read_exact(&mut body).await?;
        match head[0] {
            b'Z' => return Ok(()),
            b'E' => bail!("refused: {}", String::from_utf8_lossy(&body)),
            _ => {}
        }
    }
}

/// Resident memory of a process and its children, in KiB.
fn memory(pid: u32) -> anyhow::Result<u64> {
    let family = ProcessTable::read_at_rest(&[pid])?.tree(pid);
    Ok(Memory::of(&family)?.rss_kib)
}

/// Both ends of each connection are files of somebody, and what is started here inherits the limit.
fn raise_file_limit(clients: u32) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, wanted)?;
    let needed = u64::from(clients) + 256;
    ensure!(
        limit.maximum.is_none_or(|limit| limit >= needed),
        "{clients} clients need {needed} open files: raise `ulimit -Hn`"
    );
    Ok(())
}

const AT_A_TIME: usize = 50;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
