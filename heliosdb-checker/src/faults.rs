//! What goes wrong while clients work.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use heliosdb_testkit::PostgresCluster;
use rustix::process::{Pid, Signal, kill_process};

use crate::history::Level;
use crate::proxy::{Cut, Proxy};
use crate::session::{Form, Session, Value};
use crate::world::World;

/// Which faults are injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[non_exhaustive]
pub enum Faults {
    /// All kinds.
    All,
    /// Those that leave the server running.
    Light,
    /// Those of the process that sends the log.
    Log,
    /// None, but for clients that leave.
    None,
}

/// How many of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Immediate and fast restarts of the server.
    pub restarts: u64,
    /// Server processes ended by `pg_terminate_backend`.
    pub terminated: u64,
    /// Server processes stopped for a while.
    pub stopped: u64,
    /// Connections between helios and the server cut or stalled in the middle of a write.
    pub cut: u64,
    /// Processes that send the log ended.
    pub walsenders: u64,
    /// Clients that left in the middle of a transaction.
    pub dropped: u64,
}

impl FaultCounts {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self {
            restarts,
            terminated,
            stopped,
            cut,
            walsenders,
            dropped,
        } = self;
        restarts + terminated + stopped + cut + walsenders + dropped
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            restarts,
            terminated,
            stopped,
            cut,
            walsenders,
            dropped,
        } = self;
        write!(
            f,
            "{restarts} server restarts, {terminated} server processes ended and {stopped} stopped, {cut} connections cut \
             in a write, {walsenders} walsenders ended, {dropped} clients gone in a transaction"
        )
    }
}

/// Injects faults until the run is over. Returns the server as it was given.
pub(crate) async fn inject(
    world: Arc<World>,
    mut cluster: PostgresCluster,
    proxy: Arc<Proxy>,
    faults: Faults,
    max_lag: Duration,
    seed: u64,
) -> anyhow::Result<(PostgresCluster, FaultCounts)> {
    let mut counts = FaultCounts::default();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut killer = None;
    let mut round = 0_u32;
    while !world.recorder.is_over() {
        let pause = Duration::from_millis(random.u64(50..450));
        tokio::time::sleep(pause).await;
        if faults == Faults::None {
            continue;
        }
        round += 1;
        let kind = if faults == Faults::Log {
            random.u32(88..100)
        } else {
            random.u32(..100)
        };
        // One early, so that a short run has one too.
        if faults == Faults::All && (round == 8 || kind < 3) {
            killer = None;
            let is_fast = random.bool();
            cluster = tokio::task::spawn_blocking(move || restart(cluster, is_fast)).await??;
            counts.restarts += 1;
            continue;
        }
        let session = match killer.take() {
            Some(session) => session,
            None => match Session::connect(world.server, Level::Server, world.max_age).await {
                Ok(session) => session,
                Err(_) => continue,
            },
        };
        killer = hurt(session, &proxy, &mut random, kind, max_lag, &mut counts).await;
    }
    counts.cut = proxy.cuts();
    counts.dropped = world.dropped.load(std::sync::atomic::Ordering::Relaxed);
    Ok((cluster, counts))
}

/// One fault that leaves the server running.
async fn hurt(
    mut session: Session,
    proxy: &Proxy,
    random: &mut fastrand::Rng,
    kind: u32,
    max_lag: Duration,
    counts: &mut FaultCounts,
) -> Option<Session> {
    match kind {
        0..25 => {
            session.rows(Form::Simple, TERMINATE, &[]).await.ok()?;
            counts.terminated += 1;
        }
        25..45 => proxy.arm(Cut::Late),
        45..62 => proxy.arm(Cut::Reply),
        62..74 => proxy.arm(Cut::Request),
        74..80 => proxy.arm(Cut::Stall),
        80..88 => {
            let rows = session.rows(Form::Simple, ANY_PROCESS, &[]).await.ok()?;
            stop(&rows, Duration::from_millis(random.u64(20..400)), counts).await;
        }
        _ => {
            let rows = session.rows(Form::Simple, WALSENDER, &[]).await.ok()?;
            if !rows.is_empty() {
                hurt_walsender(&mut session, &rows, proxy, kind, max_lag, counts).await?;
            }
        }
    }
    Some(session)
}

/// Faults of the log. Those who write through helios pause, so that what is cached is as old as it can get; others write on.
async fn hurt_walsender(
    session: &mut Session,
    rows: &[Vec<Value>],
    proxy: &Proxy,
    kind: u32,
    max_lag: Duration,
    counts: &mut FaultCounts,
) -> Option<()> {
    if kind < 94 {
        proxy.calm_down(WARM_UP + MISSED, false);
        tokio::time::sleep(WARM_UP).await;
    }
    if kind < 97 {
        session
            .rows(Form::Simple, TERMINATE_WALSENDERS, &[])
            .await
            .ok()?;
        counts.walsenders += rows.len() as u64;
        if kind < 94 {
            // What is written now is not in the next stream, and is not written again soon.
            tokio::time::sleep(MISSED).await;
            proxy.calm_down(2 * max_lag, true);
            tokio::time::sleep(2 * max_lag).await;
        }
    } else {
        // The log stands still for longer than helios may lag.
        proxy.calm_down(WARM_UP + 3 * max_lag, false);
        tokio::time::sleep(WARM_UP).await;
        stop(rows, 3 * max_lag, counts).await;
    }
    Some(())
}

/// Stops the process that is named, if one is, for that time.
async fn stop(rows: &[Vec<Value>], time: Duration, counts: &mut FaultCounts) {
    let pid = rows.first().and_then(|row| row.first()?.as_count());
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid
        && kill_process(pid, Signal::STOP).is_ok()
    {
        counts.stopped += 1;
        tokio::time::sleep(time).await;
        let _ = kill_process(pid, Signal::CONT);
    }
}

fn restart(mut cluster: PostgresCluster, is_fast: bool) -> anyhow::Result<PostgresCluster> {
    if is_fast {
        cluster.stop_fast()?;
    } else {
        cluster.stop()?;
    }
    cluster.launch()?;
    Ok(cluster)
}

const ANY_PROCESS: &str = "SELECT pid FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1) one";
/// In this time what is read is cached.
const WARM_UP: Duration = Duration::from_millis(300);
/// A new stream does not begin sooner.
const MISSED: Duration = Duration::from_millis(150);
const WALSENDER: &str = "SELECT pid FROM pg_stat_replication LIMIT 1";
const TERMINATE_WALSENDERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
