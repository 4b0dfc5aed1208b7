//! One run: a server, a helios, clients, faults, and what came of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use heliosdb_testkit::PostgresCluster;
use tokio::task::JoinSet;

use crate::checker::{Counts, Promises};
use crate::faults::{FaultCounts, Faults, inject};
use crate::helios::Helios;
use crate::history::{Level, Origin};
use crate::proxy::Proxy;
use crate::recorder::Recorder;
use crate::schema::{COMINGS, create};
use crate::violation::Violation;
use crate::world::{Actor, World};

/// What helios is asked to promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[non_exhaustive]
pub enum Mode {
    /// All writes come through helios: linearizable.
    Wire,
    /// Writes come from elsewhere too, and helios follows the server's log.
    Replication,
    /// As `replication`, and each client asks for level `strict`: linearizable.
    Strict,
    /// Writes come from elsewhere too, and each client asks for level `bounded`.
    Bounded,
}

impl Mode {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Replication => "replication",
            Self::Strict => "strict",
            Self::Bounded => "bounded",
        }
    }

    fn invalidation(self) -> &'static str {
        match self {
            Self::Wire | Self::Bounded => "wire",
            Self::Replication | Self::Strict => "replication",
        }
    }

    fn level(self) -> Level {
        match self {
            Self::Wire | Self::Replication => Level::Session,
            Self::Strict => Level::Strict,
            Self::Bounded => Level::Bounded,
        }
    }
}

/// How to run.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct Plan {
    /// The program.
    pub helios: PathBuf,
    /// What it is asked to promise.
    pub mode: Mode,
    /// Ends after so many reads through helios.
    pub reads: u64,
    /// Ends after this time, however many reads there were.
    pub time: Option<Duration>,
    /// Of all choices of clients and faults.
    pub seed: u64,
    /// Clients, writers and readers together.
    pub clients: u32,
    /// What goes wrong meanwhile.
    pub faults: Faults,
    /// The bounds that are checked.
    pub promises: Promises,
    /// The protection that is taken away from a helios built for that.
    pub removed: Option<String>,
    /// Ends after so many broken promises.
    pub violations: usize,
}

/// What came of a run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// What was asked for.
    pub plan: Plan,
    /// How much was checked.
    pub counts: Counts,
    /// Answers from helios' memory.
    pub hits: u64,
    /// What went wrong meanwhile.
    pub faults: FaultCounts,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The share of the reads that were answered from memory.
    #[must_use]
    pub fn hit_share(&self) -> f64 {
        self.hits as f64 / self.counts.reads.max(1) as f64
    }

    /// That the run was one in which something could have gone wrong.
    ///
    /// # Errors
    /// If it proves nothing.
    pub fn check_worth(&self) -> anyhow::Result<()> {
        let Counts {
            reads, committed, ..
        } = self.counts;
        ensure!(
            reads >= 1000 && committed >= 50 && self.hit_share() > 0.02,
            "a run that proves nothing: {reads} reads, {committed} writes, {} hits",
            self.hits
        );
        Ok(())
    }
}

/// Why there is no report.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The run failed for a reason of its own.
    Failed(anyhow::Error),
    /// This helios does not have what the plan asks for.
    Unavailable(String),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl Plan {
    /// Runs.
    ///
    /// # Errors
    /// If the server or helios does not start or ends, or this helios has no such mode or switch.
    pub async fn run(&self) -> Result<Report, Refusal> {
        let cluster = start_server()?;
        let proxy = Proxy::start(cluster.port())
            .await
            .context("no proxy")
            .map_err(Refusal::Failed)?;
        let proxy = Arc::new(proxy);
        let mut helios = self.start_helios(&proxy).await?;
        self.check_level(&helios).await?;
        let promises = match self.mode {
            // Nobody writes elsewhere.
            Mode::Wire => Promises {
                max_lag: Duration::ZERO,
                ..self.promises
            },
            _ => self.promises,
        };
        let recorder = Recorder::new(promises, self.reads, self.violations);
        let world = World::new(
            recorder,
            helios.port,
            cluster.port(),
            promises.max_age,
            Arc::clone(&proxy),
        );
        let began = Instant::now();
        let mut clients = self.start_clients(&world);
        let faults = tokio::spawn(inject(
            Arc::clone(&world),
            cluster,
            Arc::clone(&proxy),
            self.faults,
            promises.max_lag,
            self.seed ^ 0xfa17,
        ));
        let watched = self.watch(&world, &mut helios, &mut clients, began).await;
        world.recorder.stop();
        let took = began.elapsed();
        // The faults first: they end what they began, and a server must be there for the clients to end.
        let (cluster, faults) = faults
            .await
            .context("the faults failed")
            .map_err(Refusal::Failed)??;
        watched?;
        while let Some(ended) = clients.join_next().await {
            ended.context("a client failed").map_err(Refusal::Failed)?;
        }
        helios.check()?;
        let hits = helios.hits().await?;
        drop(cluster);
        Ok(Report {
            plan: self.clone(),
            counts: world.recorder.counts(),
            hits,
            faults,
            violations: world.recorder.violations(),
            took,
        })
    }

    async fn start_helios(&self, proxy: &Proxy) -> Result<Helios, Refusal> {
        let started = Helios::start(
            &self.helios,
            proxy.port,
            self.mode.invalidation(),
            "",
            self.removed.as_deref(),
        )
        .await;
        started.map_err(|error| {
            let text = format!("{error:#}");
            let is_unknown = ["unknown value `replication`", "HELIOS_REMOVE_PROTECTION"];
            if is_unknown.iter().any(|sign| text.contains(sign)) {
                Refusal::Unavailable(text)
            } else {
                Refusal::Failed(error)
            }
        })
    }

    /// A helios that doesn't know the levels passes their names on to the server, which takes any value for them.
    async fn check_level(&self, helios: &Helios) -> Result<(), Refusal> {
        if self.mode.level() == Level::Session {
            return Ok(());
        }
        // The console of one that knows them has this command.
        match helios.ask_console("SHOW CACHES").await {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Unavailable(
                "there are no levels to ask for".to_owned(),
            )),
        }
    }

    fn start_clients(&self, world: &Arc<World>) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        let mut seeds = fastrand::Rng::with_seed(self.seed);
        let level = self.mode.level();
        let writers = (self.clients * 5 / 16).max(2);
        // Elsewhere, where helios is to learn of it.
        let elsewhere = if self.mode == Mode::Wire {
            0
        } else {
            writers / 3
        };
        let pause = WRITE_PAUSE * writers;
        for n in 0..writers {
            let slots = (0..COMINGS).filter(|slot| slot % writers == n).collect();
            let (origin, level) = if n < elsewhere {
                (Origin::Direct, Level::Server)
            } else {
                (Origin::Gateway, level)
            };
            let actor = Actor::new(world, origin, level, seeds.u64(..));
            clients.spawn(actor.write_for_ever(slots, pause));
        }
        for _ in writers..self.clients.max(writers + 1) {
            let actor = Actor::new(world, Origin::Gateway, level, seeds.u64(..));
            clients.spawn(actor.read_for_ever(None));
        }
        // What the server itself shows: nobody may see less from then on.
        let witness = Actor::new(world, Origin::Direct, Level::Server, seeds.u64(..));
        clients.spawn(witness.read_for_ever(Some(WITNESS_PAUSE)));
        clients
    }

    /// Waits for the end of the run; an error if something ends that must not.
    async fn watch(
        &self,
        world: &World,
        helios: &mut Helios,
        clients: &mut JoinSet<()>,
        began: Instant,
    ) -> anyhow::Result<()> {
        let (mut reads, mut moved) = (0, Instant::now());
        while !world.recorder.is_over() && self.time.is_none_or(|time| began.elapsed() < time) {
            tokio::select! {
                Some(ended) = clients.join_next() => ended.context("a client failed")?,
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
            }
            helios.check()?;
            let now = world.recorder.counts().reads;
            if now > reads {
                (reads, moved) = (now, Instant::now());
            } else if moved.elapsed() > PATIENCE {
                bail!(
                    "nothing was answered for {PATIENCE:?}; the log of helios:\n{}",
                    helios.log()
                );
            }
        }
        Ok(())
    }
}

fn start_server() -> anyhow::Result<PostgresCluster> {
    let cluster = PostgresCluster::builder()
        .setting("wal_level", "logical")
        .setting("max_connections", "100")
        .setting("deadlock_timeout", "100ms")
        .start()?;
    cluster.psql("postgres", &create())?;
    cluster.psql("postgres", "CREATE PUBLICATION helios FOR ALL TABLES")?;
    Ok(cluster)
}

/// Between two writes of all clients together, about.
const WRITE_PAUSE: Duration = Duration::from_millis(6);
const WITNESS_PAUSE: Duration = Duration::from_millis(2);
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// Longer than any fault lasts.
const PATIENCE: Duration = Duration::from_secs(60);
