//! What callers get while nobody listens at the server's address, and how soon after somebody does again.
//!
//! All pools connect by the same dial, to an address that is taken and not listened at: so it stays ours, and every attempt
//! is refused.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use heliosdb_network::connection_pool::{Connector, Disposition};
use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool, HeliosError};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::contestants::OURS;
use super::sqlx::{self, Dial};
use super::{CONNECTIONS, runtime};
use crate::statistics::{Spread, percentile};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each is measured, by turns
    #[arg(long, default_value_t = 5, value_name = "NUMBER")]
    rounds: usize,
    /// How long callers ask while the server is down
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    time: Duration,
    /// How long an acquire may take while the server is down
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Callers at the same time while the server is down
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    tasks: Vec<usize>,
    /// How long the server is away before it comes back
    #[arg(long, value_delimiter = ',', default_value = "100ms,2s", value_parser = humantime::parse_duration)]
    outages: Vec<Duration>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            rounds: 5,
            time: Duration::from_millis(500),
            patience: Duration::from_secs(1),
            tasks: vec![1, 64],
            outages: vec![Duration::from_millis(100), Duration::from_secs(2)],
        }
    }
}

/// Acquires, and gives back at once. What went wrong is told in the words of the pool.
type Acquire = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

type Make = fn(Dialer, Duration) -> anyhow::Result<Acquire>;

const POOLS: [(&str, Make); 5] = [
    (OURS, ours),
    ("deadpool", deadpool),
    ("bb8", bb8),
    ("mobc", mobc),
    ("sqlx", sqlx),
];

/// What bb8, mobc, sqlx and ours allow an acquire by default; deadpool has no bound unless it is given one.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30);

/// A caller comes again so long after it was refused.
const PAUSE: Duration = Duration::from_millis(1);

/// Who is not served so long after the server came back is not waited for.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// An error, as its caller sees it.
#[derive(Debug)]
struct Failure {
    text: String,
    /// It says that the connection was refused, in its own words or in those of a source.
    names_cause: bool,
}

impl Failure {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = std::iter::successors(Some(error), |error| error.source());
        Self {
            text: error.to_string(),
            names_cause: chain.any(|error| error.to_string().contains("refused")),
        }
    }
}

pub(super) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "no rounds");
    let runtime = runtime()?;
    runtime.block_on(async {
        while_down(args, out).await?;
        writeln!(out)?;
        when_back(args, out).await
    })
}

/// One pool's times while the server is down.
#[derive(Default)]
struct Down {
    first_ms: Vec<f64>,
    later_ns: Vec<u64>,
    attempts_s: Vec<f64>,
    says: String,
    names_cause: bool,
}

async fn while_down(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut found: BTreeMap<(usize, usize), Down> = BTreeMap::new();
    for _ in 0..args.rounds {
        for &tasks in &args.tasks {
            for (at, (_, make)) in POOLS.iter().enumerate() {
                ask_in_vain(args, tasks, *make, found.entry((tasks, at)).or_default()).await?;
            }
        }
    }
    writeln!(
        out,
        "## Server down\n\nNobody listens at the address. Pools of {CONNECTIONS}, new for each of {} rounds by turns, as by \
         default but for the bound on an acquire: {:?} (by default bb8, mobc, sqlx and {OURS} have {DEFAULT_PATIENCE:?}, \
         deadpool none). Each task asks, and again {PAUSE:?} after every failure, for {:?} behind the first failure. The \
         first: median and range; the others: of all of them.\n",
        args.rounds, args.patience, args.time
    )?;
    writeln!(
        out,
        "| tasks | pool | first failure ms | others p50 ms | p99 ms | max ms | connects tried/s | names the cause |"
    )?;
    writeln!(out, "| --: | --- | --: | --: | --: | --: | --: | --- |")?;
    for ((tasks, at), down) in &found {
        let milliseconds = |percent| {
            let later = percentile(&down.later_ns, percent).context("nobody asked again")?;
            anyhow::Ok(later as f64 / 1e6)
        };
        writeln!(
            out,
            "| {tasks} | {} | {:.2} | {:.3} | {:.3} | {:.3} | {:.0} | {} |",
            POOLS[*at].0,
            Spread::of(down.first_ms.iter().copied()).context("no round")?,
            milliseconds(50)?,
            milliseconds(99)?,
            milliseconds(100)?,
            Spread::of(down.attempts_s.iter().copied())
                .context("no round")?
                .median,
            if down.names_cause { "yes" } else { "no" },
        )?;
    }
    writeln!(out, "\nWhat the error says:\n")?;
    for ((_, at), down) in found
        .iter()
        .filter(|((tasks, _), _)| Some(tasks) == args.tasks.first())
    {
        writeln!(out, "* {}: `{}`", POOLS[*at].0, down.says)?;
    }
    Ok(())
}

/// Asks a new pool for what it can't have.
async fn ask_in_vain(args: &Args, tasks: usize, make: Make, down: &mut Down) -> anyhow::Result<()> {
    let (_closed, dialer) = Dialer::to_nobody()?;
    let acquire = make(dialer.clone(), args.patience)?;
    let fails = |failed: Result<(), Failure>| failed.err().context("connected to nobody");
    let began = Instant::now();
    fails(acquire().await)?;
    down.first_ms.push(began.elapsed().as_secs_f64() * 1e3);
    let (began, attempts) = (Instant::now(), dialer.attempts());
    let mut asking = JoinSet::new();
    for _ in 0..tasks {
        let (acquire, end) = (Arc::clone(&acquire), began + args.time);
        asking.spawn(async move {
            let mut waits = Vec::new();
            loop {
                let asked = Instant::now();
                let failed = acquire().await;
                waits.push(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
                if Instant::now() >= end {
                    return (waits, failed);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        let (mut waits, failed) = asked?;
        down.later_ns.append(&mut waits);
        let Failure { text, names_cause } = fails(failed)?;
        // Another round has another port.
        down.says = text.replace(&dialer.address.to_string(), "ADDRESS");
        down.names_cause = names_cause;
    }
    let tried = dialer.attempts() - attempts;
    down.attempts_s
        .push(tried as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

async fn when_back(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut found: BTreeMap<(Duration, usize), Vec<Option<Duration>>> = BTreeMap::new();
    for _ in 0..args.rounds {
        for &outage in &args.outages {
            for (at, (_, make)) in POOLS.iter().enumerate() {
                let recovered = recover(outage, *make).await?;
                found.entry((outage, at)).or_default().push(recovered);
            }
        }
    }
    writeln!(
        out,
        "## Server back\n\nFrom the moment that somebody listens again to the first acquire that succeeds, of one task that \
         asks all the time, and again {PAUSE:?} after every failure. The pools as by default, with {DEFAULT_PATIENCE:?} for \
         an acquire; {} rounds by turns: median and range.\n",
        args.rounds
    )?;
    writeln!(out, "| away | pool | served after ms |")?;
    writeln!(out, "| --: | --- | --: |")?;
    for ((outage, at), recoveries) in &found {
        let known = recoveries
            .iter()
            .flatten()
            .map(|time| time.as_secs_f64() * 1e3);
        let spread =
            Spread::of(known).map_or_else(|| "-".to_owned(), |spread| format!("{spread:.1}"));
        let never = recoveries.iter().filter(|time| time.is_none()).count();
        let remark = if never == 0 {
            String::new()
        } else {
            format!(", {never} rounds not within {RECOVERY_MAX:?}")
        };
        writeln!(out, "| {outage:?} | {} | {spread}{remark} |", POOLS[*at].0)?;
    }
    Ok(())
}

/// How long after the server's return somebody was served who never stopped asking. `None`: too long.
async fn recover(outage: Duration, make: Make) -> anyhow::Result<Option<Duration>> {
    let (closed, dialer) = Dialer::to_nobody()?;
    let acquire = make(dialer, DEFAULT_PATIENCE)?;
    let asking = tokio::spawn(async move {
        while acquire().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        Instant::now()
    });
    tokio::time::sleep(outage).await;
    ensure!(!asking.is_finished(), "connected to nobody");
    let _listener = closed.listen(1024)?;
    let back = Instant::now();
    let stop = asking.abort_handle();
    match tokio::time::timeout(RECOVERY_MAX, asking).await {
        Ok(served) => Ok(Some(served?.saturating_duration_since(back))),
        Err(_) => {
            stop.abort();
            Ok(None)
        }
    }
}

/// Connects, and counts how often it was told to.
#[derive(Debug, Clone)]
struct Dialer {
    address: SocketAddr,
    attempts: Arc<AtomicU64>,
}

impl Dialer {
    /// To an address at which nobody listens until the socket does.
    fn to_nobody() -> anyhow::Result<(TcpSocket, Self)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let dialer = Self {
            address: socket.local_addr()?,
            attempts: Arc::default(),
        };
        Ok((socket, dialer))
    }

    fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl Dial for Dialer {
    type Stream = TcpStream;

    async fn dial(&self) -> std::io::Result<TcpStream> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        TcpStream::connect(self.address).await
    }
}

impl Connector for Dialer {
    type Connection = TcpStream;

    /// As the connectors to PostgreSQL and to HIDB put it.
    async fn connect(&self) -> heliosdb_network::Result<TcpStream> {
        let address = self.address;
        let refused = |error| HeliosError::Network(format!("cannot connect to {address}: {error}"));
        self.dial().await.map_err(refused)
    }

    async fn check(&self, _: &mut TcpStream) -> heliosdb_network::Result<()> {
        Ok(())
    }

    async fn reset(&self, _: &mut TcpStream) -> heliosdb_network::Result<()> {
        Ok(())
    }

    async fn close(&self, _: TcpStream) {}

    fn disposition(&self, _: &TcpStream) -> Disposition {
        Disposition::Clean
    }

    fn is_alive(&self, _: &mut TcpStream) -> bool {
        true
    }
}

fn ours(dialer: Dialer, patience: Duration) -> anyhow::Result<Acquire> {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = CONNECTIONS;
    config.acquire_timeout = patience;
    let pool = EnhancedConnectionPool::with_connector(dialer, config)?;
    Ok(Arc::new(move || {
        let pool = Arc::clone(&pool);
        async move {
            let acquired = pool.acquire().await;
            acquired.map(drop).map_err(|error| Failure::of(&error))
        }
        .boxed()
    }))
}

impl deadpool::managed::Manager for Dialer {
    type Type = TcpStream;
    type Error = std::io::Error;

    async fn create(&self) -> std::io::Result<TcpStream> {
        self.dial().await
    }

    async fn recycle(
        &self,
        _: &mut TcpStream,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<std::io::Error> {
        Ok(())
    }
}

fn deadpool(dialer: Dialer, patience: Duration) -> anyhow::Result<Acquire> {
    let pool: deadpool::managed::Pool<Dialer> = deadpool::managed::Pool::builder(dialer)
        .max_size(CONNECTIONS)
        .wait_timeout(Some(patience))
        .runtime(deadpool::Runtime::Tokio1)
        .build()?;
    Ok(Arc::new(move || {
        let pool = pool.clone();
        async move {
            let acquired = pool.get().await;
            acquired.map(drop).map_err(|error| Failure::of(&error))
        }
        .boxed()
    }))
}

impl bb8::ManageConnection for Dialer {
    type Connection = TcpStream;
    type Error = std::io::Error;

    async fn connect(&self) -> std::io::Result<TcpStream> {
        self.dial().await
    }

    async fn is_valid(&self, _: &mut TcpStream) -> std::io::Result<()> {
        Ok(())
    }

    fn has_broken(&self, _: &mut TcpStream) -> bool {
        false
    }
}

fn bb8(dialer: Dialer, patience: Duration) -> anyhow::Result<Acquire> {
    let pool = bb8::Pool::builder()
        .max_size(u32::try_from(CONNECTIONS)?)
        .connection_timeout(patience)
        .build_unchecked(dialer);
    Ok(Arc::new(move || {
        let pool = pool.clone();
        async move {
            let acquired = pool.get().await;
            acquired.map(drop).map_err(|error| Failure::of(&error))
        }
        .boxed()
    }))
}

#[mobc::async_trait]
impl mobc::Manager for Dialer {
    type Connection = TcpStream;
    type Error = std::io::Error;

    async fn connect(&self) -> std::io::Result<TcpStream> {
        self.dial().await
    }

    async fn check(&self, connection: TcpStream) -> std::io::Result<TcpStream> {
        Ok(connection)
    }
}

fn mobc(dialer: Dialer, patience: Duration) -> anyhow::Result<Acquire> {
    let size = u64::try_from(CONNECTIONS)?;
    let pool = mobc::Pool::builder()
        .max_open(size)
        .max_idle(size)
        .get_timeout(Some(patience))
        .build(dialer);
    Ok(Arc::new(move || {
        let pool = pool.clone();
        async move {
            let acquired = pool.get().await;
            acquired.map(drop).map_err(|error| Failure::of(&error))
        }
        .boxed()
    }))
}

#[expect(clippy::unnecessary_wraps, reason = "as the others")]
fn sqlx(dialer: Dialer, patience: Duration) -> anyhow::Result<Acquire> {
    let pool = sqlx::pool(dialer, CONNECTIONS, patience);
    Ok(Arc::new(move || {
        let pool = pool.clone();
        async move {
            let acquired = pool.acquire().await;
            acquired.map(drop).map_err(|error| Failure::of(&error))
        }
        .boxed()
    }))
}
