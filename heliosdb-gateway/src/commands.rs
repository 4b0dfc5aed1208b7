//! What the program does for each of its commands.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use heliosdb_cache::{
    AdaptivePolicy, CacheConfig, CacheManager, CostAwarePolicy, HybridPolicy, InMemoryBackend,
    LfuPolicy, LruPolicy,
};
use heliosdb_network::postgres::{PgConnection, PgTarget};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::advice;
use crate::cli::{self, Command};
use crate::clients::timeouts;
use crate::config::names::Dialect;
use crate::config::pgbouncer::{self, Note};
use crate::config::{Config, Eviction, LogConfig, PoolMode};
use crate::gateway::{Course, Gateway, HandoverRequest};
use crate::handover::{self, Predecessor};
use crate::hidb;
use crate::invalidate::replication::{Mode, report};
use crate::listen::{Inherited, Listener};
use crate::log;
use crate::metrics;
use crate::query;
use crate::reload;
use crate::server;
use crate::sql::{self, Catalog, NameScope};
use crate::traffic;
#[cfg(feature = "embedded")]
use crate::upstream;
use crate::upstream::Upstream;
use crate::upstream::control::ControlError;
use crate::upstream::routes::Routes;
use crate::upstream::upkeep;

/// Runs the program and returns its exit code: 0 done, 1 it failed, 2 it was asked for something impossible.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match cli::parse(args) {
        Ok(command) => command,
        Err(error) => return error.exit(),
    };
    // Before there are other threads.
    let inherited = Inherited::take();
    let config = command.config();
    let started = match config {
        Some(config) => log::start(&config.log),
        None => log::start(&LogConfig::quiet()),
    };
    if let Err(error) = started {
        return failed(&anyhow::Error::new(error).context("cannot open the log file"));
    }
    let mut runtime = match config.map_or(1, |config| threads(config.threads)) {
        // There is nobody to share the work with: its bookkeeping costs a fifteenth of what a query takes.
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            runtime.worker_threads(threads);
            runtime
        }
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return failed(&anyhow::Error::new(error).context("cannot start the runtime"));
        }
    };
    let done = runtime.block_on(async {
        match command {
            Command::Serve(source) => serve(source, inherited).await,
            Command::Check(source) => check(source.config).await,
            Command::Explain(source, statement) => explain(source.config, &statement).await,
            Command::Migrate(read) => migrate(&read.0, &read.1),
            Command::Query(options) => query::run(options).await,
        }
    });
    // The embedded server's threads may be in a blocking read: they must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Half of the processors by default: the other half is the kernel's network work and, on many a machine, the server's.
fn threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, |processors| (processors.get() / 2).max(1)),
        threads => threads,
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "helios: {error:#}");
    ExitCode::FAILURE
}

/// `helios migrate`: PgBouncer's configuration as helios's.
fn migrate(config: &Config, notes: &[Note]) -> anyhow::Result<()> {
    let text = pgbouncer::to_toml(config, notes);
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// The servers to stand in front of. Holds the embedded one, which ends with it.
struct Backend {
    /// That of `upstream.url`, or the embedded one.
    target: Option<PgTarget>,
    #[cfg(feature = "embedded")]
    embedded: Option<upstream::embedded::EmbeddedServer>,
}

impl Backend {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        if let Some(url) = &config.upstream.url {
            let mut target = PgTarget::from_url(url).context("`upstream.url`")?;
            target.connect_timeout = config.upstream.connect_timeout;
            return Ok(Self {
                target: Some(target),
                #[cfg(feature = "embedded")]
                embedded: None,
            });
        }
        if !config.databases.is_empty() {
            return Ok(Self {
                target: None,
                #[cfg(feature = "embedded")]
                embedded: None,
            });
        }
        #[cfg(feature = "embedded")]
        {
            let folder = config.data.clone();
            let server = tokio::task::spawn_blocking(move || {
                upstream::embedded::EmbeddedServer::start(&folder)
            })
            .await
            .context("the embedded PostgreSQL failed to start")??;
            let target = server.target(config.upstream.connect_timeout);
            Ok(Self {
                target: Some(target),
                embedded: Some(server),
            })
        }
        #[cfg(not(feature = "embedded"))]
        bail!(
            "this helios was built without the embedded PostgreSQL: name a server with --upstream \
             postgres://user@host/database"
        )
    }

    /// The server to look at: where there are several, that of the first database.
    fn main_target(&self, config: &Config) -> anyhow::Result<PgTarget> {
        let routes = Routes::new(self.target.as_ref(), self.is_embedded(), config)?;
        let listed = routes.listed();
        let first = self
            .target
            .as_ref()
            .or_else(|| listed.first().map(|(_, target)| *target));
        first.cloned().context("there is no server")
    }

    fn is_embedded(&self) -> bool {
        #[cfg(feature = "embedded")]
        return self.embedded.is_some();
        #[cfg(not(feature = "embedded"))]
        false
    }
}

async fn serve(source: cli::Source, inherited: Inherited) -> anyhow::Result<()> {
    crate::fault::check()?;
    let config = source.config.clone();
    if source.is_pgbouncer() {
        Dialect::PgBouncer.speak();
    }
    for note in &source.notes {
        tracing::info!("{note}");
    }
    server::raise_file_limit(&config);
    let hidb_door = hidb::door(&config.hidb)?;
    let access = Access::open(&config)?;
    let doors = Doors::open(&config, inherited)?;
    let backend = Backend::open(&config).await?;
    let cache = cache(&config)?;
    let upstream = Upstream::new(
        backend.target.clone(),
        backend.is_embedded(),
        &config,
        cache.versions(),
    )?;
    let (handovers, mut wishes) = mpsc::unbounded_channel();
    let gateway = Gateway::new(config.clone(), access, cache, upstream, handovers);
    let version = server_version(&gateway).await;
    // Before anybody can know that there is something to send a signal to.
    let signals = Signals::listen()?;
    announce(&gateway, &config, version.as_deref(), &doors)?;
    // For a successor.
    let sockets = doors.duplicates()?;
    if let Some(predecessor) = Predecessor::find() {
        let taken = predecessor.take_over(&gateway).await;
        taken.context("cannot take over from the predecessor")?;
    }
    let _pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;

    let Doors {
        postgres,
        hidb,
        http,
    } = doors;
    let mut serving = tokio::spawn(server::serve(Arc::clone(&gateway), postgres));
    tokio::spawn(hidb::serve(Arc::clone(&gateway), hidb_door, hidb));
    if let Some(listener) = http {
        tokio::spawn(metrics::serve(Arc::clone(&gateway), listener));
    }
    let _ = gateway.source.set(source);
    let advising = tokio::spawn(advice::run(Arc::downgrade(&gateway)));
    let sampling = tokio::spawn(traffic::run(Arc::downgrade(&gateway)));
    let watching = tokio::spawn(timeouts::watch(Arc::downgrade(&gateway)));
    let upkeep = tokio::spawn(upkeep::run(Arc::downgrade(&gateway)));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    steer(&gateway, signals, sockets, &mut wishes, &mut serving).await?;
    advising.abort();
    sampling.abort();
    watching.abort();
    upkeep.abort();
    let mut impatient = signal(SignalKind::interrupt())?;
    if !serving.is_finished() {
        tokio::select! {
            served = serving => served.context("the server task failed")?,
            _ = impatient.recv() => tracing::warn!("second interrupt: not waiting any longer"),
        }
    }
    drop(gateway);
    drop(backend);
    Ok(())
}

/// The sockets that clients come in by.
struct Doors {
    postgres: Vec<Listener>,
    hidb: Vec<TcpListener>,
    http: Option<TcpListener>,
}

impl Doors {
    /// Before the server is started, so that an address in use is found out at once.
    fn open(config: &Config, mut inherited: Inherited) -> anyhow::Result<Self> {
        let hidb = config.hidb.listen.iter();
        let doors = Self {
            postgres: inherited.postgres(config)?,
            hidb: hidb
                .map(|address| inherited.tcp(*address))
                .collect::<anyhow::Result<_>>()?,
            http: config
                .http
                .map(|address| inherited.tcp(address))
                .transpose()?,
        };
        inherited.close_rest();
        Ok(doors)
    }

    fn duplicates(&self) -> std::io::Result<Vec<OwnedFd>> {
        let tcp = self.hidb.iter().chain(&self.http);
        let postgres = self.postgres.iter().map(Listener::duplicate);
        postgres
            .chain(tcp.map(|listener| listener.as_fd().try_clone_to_owned()))
            .collect()
    }
}

/// The file with this process's id, for scripts.
struct PidFile<'a>(&'a Path);

impl<'a> PidFile<'a> {
    fn write(path: &'a Path) -> anyhow::Result<Self> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        // A successor's is left alone.
        let text = std::fs::read_to_string(self.0).unwrap_or_default();
        if text.trim() == std::process::id().to_string() {
            let _ = std::fs::remove_file(self.0);
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Reload,
    Pause,
    Resume,
    Stop(Course),
}

/// The signals that the program knows: from when they are listened for, none ends it at once.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Returns when the program should stop and has begun to. Reloads the configuration on SIGHUP, pauses on SIGUSR1, resumes
/// on SIGUSR2, and hands over when asked.
async fn steer(
    gateway: &Arc<Gateway>,
    mut signals: Signals,
    mut sockets: Vec<OwnedFd>,
    wishes: &mut mpsc::UnboundedReceiver<HandoverRequest>,
    serving: &mut JoinHandle<()>,
) -> anyhow::Result<()> {
    let mut course = gateway.course.subscribe();
    let mut awaiting = gateway.course.subscribe();
    // Who comes from PgBouncer has scripts that go by what its signals mean.
    let patient = gateway.source.get().is_some_and(cli::Source::is_pgbouncer);
    let (on_interrupt, on_terminate) = if patient {
        (Course::AwaitServers, Course::AwaitClients)
    } else {
        (Course::Stop, Course::Stop)
    };
    loop {
        let asked = tokio::select! {
            _ = signals.interrupt.recv() => Asked::Stop(on_interrupt),
            _ = signals.terminate.recv() => Asked::Stop(on_terminate),
            _ = signals.quit.recv() => Asked::Stop(Course::Quit),
            _ = signals.hangup.recv() => Asked::Reload,
            _ = signals.user1.recv() => Asked::Pause,
            _ = signals.user2.recv() => Asked::Resume,
            _ = course.wait_for(|course| course.is_stop()) => break,
            _ = awaiting.wait_for(|course| course.is_awaiting()), if !sockets.is_empty() => {
                // As long as one of these is open, clients are queued there.
                sockets.clear();
                continue;
            }
            _ = &mut *serving => break,
            Some(told) = wishes.recv() => {
                let duplicates = sockets.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
                let done = match *gateway.course.borrow() {
                    Course::Serve => None,
                    _ => Some("helios is stopping already".to_owned()),
                };
                let done = match done {
                    Some(refused) => Err(refused),
                    None => handover::hand_over(gateway, duplicates).await.map_err(|error| {
                        tracing::error!("not handed over: {error:#}");
                        format!("{error:#}")
                    }),
                };
                let _ = told.send(done);
                continue;
            }
        };
        match asked {
            // Errors are in the log.
            Asked::Reload => drop(reload::reload(gateway)),
            Asked::Pause => say(gateway.upstream.pause(None), "paused"),
            Asked::Resume if *gateway.course.borrow() != Course::Serve => {
                tracing::info!("got SIGUSR2 while shutting down, ignoring");
            }
            Asked::Resume => say(gateway.upstream.resume(None), "resumed"),
            // Asked once more, it does not wait any longer.
            Asked::Stop(_) if gateway.course.borrow().is_awaiting() => {
                gateway.steer_to(Course::Quit);
            }
            Asked::Stop(_) if *gateway.course.borrow() == Course::HandOver => {
                gateway.steer_to(Course::Stop);
            }
            Asked::Stop(course) => {
                gateway.steer_to(course);
                if !course.is_stop() {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                }
            }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    gateway.steer_to(Course::Stop);
    Ok(())
}

fn say(done: Result<(), ControlError>, what: &str) {
    match done {
        Ok(()) => tracing::info!("{what}"),
        Err(error) => tracing::info!("not {what}: {error}"),
    }
}

fn cache(config: &Config) -> anyhow::Result<CacheManager> {
    let capacity = usize::try_from(config.cache.size.as_u64()).context("`cache.size`")?;
    let mut cache = CacheConfig::default();
    cache.max_size_bytes = capacity;
    cache.min_result_size = 0;
    // Checked against `cache.max_entry`, which can be reloaded, before they come here.
    cache.max_result_size = usize::MAX;
    cache.min_execution_time_ms = config.cache.min_execution_time.as_secs_f64() * 1000.0;
    cache.max_in_flight = config.cache.max_in_flight;
    cache.flight_timeout = config.cache.flight_timeout;
    cache.eviction_policy = match config.cache.eviction {
        Eviction::Adaptive => Arc::new(AdaptivePolicy),
        Eviction::CostAware => Arc::new(CostAwarePolicy),
        Eviction::Hybrid => Arc::new(HybridPolicy::default_balanced()),
        Eviction::Lfu => Arc::new(LfuPolicy),
        Eviction::Lru => Arc::new(LruPolicy),
    };
    cache.validate().context("`[cache]`")?;
    Ok(CacheManager::new(
        Arc::new(InMemoryBackend::new(capacity)),
        cache,
    ))
}

/// What the server says it is. `None` where it can't be reached yet: the gateway starts all the same, and clients get
/// the reason.
async fn server_version(gateway: &Gateway) -> Option<String> {
    let target = gateway.upstream.main_target()?;
    let pool = match gateway.upstream.pool(&target.user, &target.database) {
        Ok(pool) => pool,
        Err(error) => {
            tracing::warn!("{error}");
            return None;
        }
    };
    match pool.learn_baseline().await {
        Ok(baseline) => {
            if gateway.cache_enabled() {
                gateway.upstream.follow_decided(&pool.database).await;
            }
            // The first of many databases was as good as any: none of its clients has asked for the connection.
            if gateway.config().upstream.url.is_none() && !gateway.upstream.is_embedded() {
                let keep = pool.limits.load().min_idle;
                pool.connections.evict_idle(usize::MAX, keep);
            }
            baseline.parameter("server_version").map(str::to_owned)
        }
        Err(error) => {
            tracing::warn!("the database server cannot be reached yet: {error}");
            None
        }
    }
}

/// The few lines that a person wants to read at the start.
fn announce(
    gateway: &Gateway,
    config: &Config,
    version: Option<&str>,
    doors: &Doors,
) -> std::io::Result<()> {
    let routes = gateway.upstream.routes();
    let version = version.map_or_else(
        || "not reachable yet".to_owned(),
        |version| format!("PostgreSQL {version}"),
    );
    let mut out = std::io::stdout().lock();
    writeln!(out, "helios {}", env!("CARGO_PKG_VERSION"))?;
    if gateway.upstream.is_embedded() {
        writeln!(
            out,
            "  server       embedded, {version}, data in {}",
            config.data.display()
        )?;
        writeln!(
            out,
            "               one connection, shared by all clients; every user and database name leads to it"
        )?;
    } else {
        announce_servers(&routes, &version, &mut out)?;
    }
    let mode = match config.pool.mode {
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
        PoolMode::Transaction => "transaction",
    };
    let size = if gateway.upstream.is_embedded() {
        1
    } else {
        config.pool.size
    };
    writeln!(
        out,
        "  pooling      {mode} mode, at most {size} server connections per user and database"
    )?;
    if config.cache.enabled {
        writeln!(
            out,
            "  cache        {}; a repeated read is answered from memory",
            config.cache.size
        )?;
        announce_invalidation(gateway, config, &mut out)?;
    } else {
        writeln!(out, "  cache        off")?;
    }
    if let Some(http) = config.http {
        writeln!(
            out,
            "  metrics      http://{http}/metrics   health http://{http}/health"
        )?;
    }
    for listener in &doors.hidb {
        writeln!(out, "  HIDB         hidb://{}", listener.local_addr()?)?;
    }
    let mut first = None;
    for listener in &doors.postgres {
        match listener {
            Listener::Tcp(listener) => {
                let address = listener.local_addr()?;
                first.get_or_insert(address);
                writeln!(out, "  listening on {address}")?;
            }
            Listener::Unix(_, path) => writeln!(out, "  listening on {}", path.display())?,
        }
    }
    if let Some(address) = first {
        let (host, port) = (address.ip(), address.port());
        writeln!(out)?;
        if let Some((name, target)) = routes.listed().first() {
            let database = if *name == "*" {
                &target.database
            } else {
                *name
            };
            writeln!(
                out,
                "  psql -h {host} -p {port} -U {} {database}",
                target.user
            )?;
        }
        writeln!(out, "  psql -h {host} -p {port} helios -c 'SHOW CACHE'")?;
    }
    out.flush()
}

/// Where each database's name leads.
fn announce_servers(
    routes: &Routes,
    version: &str,
    out: &mut impl std::io::Write,
) -> std::io::Result<()> {
    let listed = routes.listed();
    if let [(_, target)] = listed.as_slice() {
        return writeln!(out, "  server       {target}, {version}");
    }
    for (at, (name, target)) in listed.into_iter().enumerate() {
        let head = if at == 0 { "databases" } else { "" };
        writeln!(out, "  {head:<12} {name} -> {target}")?;
    }
    Ok(())
}

/// How the writes of others reach the cache of the database that the URL names.
fn announce_invalidation(
    gateway: &Gateway,
    config: &Config,
    out: &mut impl std::io::Write,
) -> std::io::Result<()> {
    let name = gateway.upstream.main_target().map(|target| target.database);
    let databases = gateway.upstream.databases();
    let database = databases
        .iter()
        .find(|database| Some(&database.name) == name.as_ref());
    match database.map(|database| database.follower.gate.view().mode) {
        Some(Mode::Wire(why)) => {
            writeln!(
                out,
                "  invalidation wire: no cached answer is older than the last write that came through here;"
            )?;
            writeln!(
                out,
                "               writes that go to the server by another way are not seen ({why})"
            )
        }
        Some(Mode::Replication) => {
            writeln!(
                out,
                "  invalidation replication: no cached answer is older than the last write that came through here,"
            )?;
            writeln!(
                out,
                "               nor lacks what was committed by others {} before it was asked for",
                humantime::format_duration(config.replication.max_lag)
            )
        }
        Some(Mode::Unavailable(why)) => {
            writeln!(
                out,
                "  invalidation replication, which is not possible: {why};"
            )?;
            writeln!(out, "               nothing is cached until it is")
        }
        Some(Mode::Undecided) | None => {
            writeln!(
                out,
                "  invalidation not decided yet: nothing is cached until it is"
            )
        }
    }
}

/// `helios check`: the configuration is valid by now; is the server there?
async fn check(config: Config) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    Access::open(&config)?;
    writeln!(out, "configuration: ok")?;
    let backend = Backend::open(&config).await?;
    let target = backend.main_target(&config)?;
    let mut connection = PgConnection::connect(&target)
        .await
        .with_context(|| format!("cannot log in to {target}"))?;
    let version = parameter(&connection, "server_version");
    writeln!(out, "server:        {target}, PostgreSQL {version}")?;
    let catalog = load_catalog(&mut connection).await?;
    writeln!(out, "catalog:       {} relations", catalog.relation_count())?;
    if !backend.is_embedded() {
        report::replication(&mut connection, &target, &config, &mut out).await?;
    }
    connection.terminate().await;
    Ok(())
}

/// `helios explain`: what would become of a statement.
async fn explain(config: Config, statement: &str) -> anyhow::Result<()> {
    let backend = Backend::open(&config).await?;
    let target = backend.main_target(&config)?;
    let mut connection = PgConnection::connect(&target)
        .await
        .with_context(|| format!("cannot log in to {target}"))?;
    let catalog = load_catalog(&mut connection).await?;
    let results = connection.simple_query("SHOW search_path").await?;
    let search_path = results
        .first()
        .and_then(|result| result.rows.first()?.first()?.as_deref().map(str::to_owned));
    let Some(search_path) = search_path.and_then(|path| sql::split_identifiers(&path)) else {
        bail!("the server's search_path cannot be read");
    };
    let names = NameScope {
        user: target.user.clone(),
        search_path,
        standard_conforming_strings: parameter(&connection, "standard_conforming_strings") == "on",
        client_encoding_utf8: parameter(&connection, "client_encoding") == "UTF8",
    };
    let class = sql::classify(statement, &catalog, &names);
    let mut out = std::io::stdout().lock();
    write!(out, "{}", sql::explain::explain(statement, &class, &names))?;
    if !backend.is_embedded()
        && let Some(relations) = class.cacheable()
    {
        report::uncovered(&mut connection, &config, &catalog, relations, &mut out).await?;
    }
    connection.terminate().await;
    Ok(())
}

async fn load_catalog(connection: &mut PgConnection) -> anyhow::Result<Catalog> {
    let results = connection
        .simple_query(Catalog::LOAD)
        .await
        .context("cannot read the catalog")?;
    let rows = results
        .into_iter()
        .filter(|result| !result.columns.is_empty())
        .map(|result| result.rows)
        .collect();
    Catalog::from_results(1, rows).context("cannot understand the catalog")
}

fn parameter(connection: &PgConnection, name: &str) -> String {
    connection
        .parameters()
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.clone())
        .unwrap_or_default()
}
