//! What all sessions share.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use heliosdb_cache::{CacheManager, HashedStr};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::access::Access;
use crate::cli::Source;
use crate::clients::{ClientRegistry, Signal};
use crate::config::Config;
use crate::policies::Policies;
use crate::session::pins::Pin;
use crate::session::prepared::{Interner, KnownClass, Prepared};
use crate::sql::memo::ClassMemo;
use crate::sql::{Class, NameScope};
use crate::statements::Statements;
use crate::stats::Stats;
use crate::traffic::Traffic;
use crate::upstream::Upstream;
use crate::upstream::database::{Database, LoadedCatalog};

/// Where the program is heading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    Serve,
    /// Clients that are in may go on; a successor has the listening sockets.
    HandOver,
    /// Nobody is let in any more but administrators over Unix-domain sockets; ends when the last client has left.
    AwaitClients,
    /// As that; clients that have no server connection are told to go, and the rest as they give theirs back.
    AwaitServers,
    /// Clients are told to go.
    Stop,
    /// The end, whatever is under way.
    Quit,
}

impl Course {
    /// True once clients are told to go.
    pub(crate) fn is_stop(self) -> bool {
        matches!(self, Self::Stop | Self::Quit)
    }

    /// True while this process waits for its clients to leave.
    pub(crate) fn is_awaiting(self) -> bool {
        matches!(self, Self::AwaitClients | Self::AwaitServers)
    }
}

/// A wish for a successor, and where to say what came of it.
pub(crate) type HandoverRequest = oneshot::Sender<Result<(), String>>;

/// The gateway: configuration, cache, server connections and clients.
#[derive(Debug)]
pub(crate) struct Gateway {
    config: ArcSwap<Config>,
    /// These as in `config`: asked for each request.
    cache_enabled: AtomicBool,
    /// Another process serves the same clients: what is written there is not seen here.
    cache_paused: AtomicBool,
    affinity_enabled: AtomicBool,
    defers_transactions: AtomicBool,
    max_prepared_statements: AtomicUsize,
    prepares_unnamed: AtomicBool,
    /// Who is let in.
    pub(crate) access: ArcSwap<Access>,
    pub(crate) cache: CacheManager,
    pub(crate) upstream: Upstream,
    pub(crate) clients: Arc<ClientRegistry>,
    pub(crate) interner: Interner,
    pub(crate) stats: Stats,
    pub(crate) statements: Statements,
    pub(crate) policies: Policies,
    pub(crate) course: watch::Sender<Course>,
    /// Whoever accepts clients has a receiver.
    pub(crate) accepting: watch::Sender<()>,
    pub(crate) handovers: mpsc::UnboundedSender<HandoverRequest>,
    /// Open as long as this process lives.
    pub(crate) successor: OnceLock<UnixStream>,
    /// Where the configuration was read.
    pub(crate) source: OnceLock<Source>,
    /// Held while a configuration is taken over.
    pub(crate) reloading: Mutex<()>,
    pub(crate) traffic: Traffic,
    memo: ClassMemo,
    /// The class of what is not understood at all.
    unknown: Arc<Class>,
    /// No other run of a gateway has the same.
    pub(crate) instance: NonZeroU64,
    pub(crate) started_at: SystemTime,
    pub(crate) started: Instant,
}

/// Bytes of statement classes that are remembered.
const MEMO_BYTES: usize = 32 << 20;

impl Gateway {
    /// `handovers` is where wishes for a successor go.
    pub(crate) fn new(
        config: Config,
        access: Access,
        cache: CacheManager,
        upstream: Upstream,
        handovers: mpsc::UnboundedSender<HandoverRequest>,
    ) -> Arc<Self> {
        // A text that no grammar accepts has the worst of all classes.
        let unknown = Arc::new(crate::sql::classify_without_catalog(
            "\u{1}",
            &NameScope::unknown(),
        ));
        // Before anything is marked or stored.
        cache.versions().feed();
        Arc::new(Self {
            cache_enabled: AtomicBool::new(config.cache.enabled),
            cache_paused: AtomicBool::new(false),
            course: watch::Sender::new(Course::Serve),
            accepting: watch::Sender::new(()),
            handovers,
            successor: OnceLock::new(),
            affinity_enabled: AtomicBool::new(config.pool.affinity),
            defers_transactions: AtomicBool::new(config.cache_in_transactions.defers()),
            max_prepared_statements: AtomicUsize::new(config.pool.max_prepared_statements),
            prepares_unnamed: AtomicBool::new(config.pool.prepare_unnamed),
            config: ArcSwap::from_pointee(config),
            access: ArcSwap::from_pointee(access),
            cache,
            upstream,
            clients: Arc::default(),
            interner: Interner::new(),
            stats: Stats::default(),
            statements: Statements::default(),
            policies: Policies::default(),
            source: OnceLock::new(),
            reloading: Mutex::default(),
            traffic: Traffic::new(Instant::now()),
            memo: ClassMemo::new(MEMO_BYTES),
            unknown,
            instance: rand::random(),
            started_at: SystemTime::now(),
            started: Instant::now(),
        })
    }

    /// Heads somewhere else, unless the end is near already.
    pub(crate) fn steer_to(&self, course: Course) {
        self.course.send_if_modified(|now| {
            let is_new = *now != course && (!now.is_stop() || course == Course::Quit);
            if is_new {
                *now = course;
            }
            is_new
        });
    }

    pub(crate) fn config(&self) -> arc_swap::Guard<Arc<Config>> {
        self.config.load()
    }

    pub(crate) fn replace_config(&self, config: Config) {
        self.affinity_enabled
            .store(config.pool.affinity, Ordering::Relaxed);
        self.defers_transactions
            .store(config.cache_in_transactions.defers(), Ordering::Relaxed);
        self.max_prepared_statements
            .store(config.pool.max_prepared_statements, Ordering::Relaxed);
        self.prepares_unnamed
            .store(config.pool.prepare_unnamed, Ordering::Relaxed);
        self.config.store(Arc::new(config));
        self.decide_on_cache();
    }

    /// Stops using the cache, or goes on, whatever the configuration says.
    pub(crate) fn pause_cache(&self, paused: bool) {
        self.cache_paused.store(paused, Ordering::SeqCst);
        self.decide_on_cache();
    }

    fn decide_on_cache(&self) {
        let enabled = self.config.load().cache.enabled && !self.cache_paused.load(Ordering::SeqCst);
        self.cache_enabled.store(enabled, Ordering::SeqCst);
    }

    pub(crate) fn cache_enabled(&self) -> bool {
        self.cache_enabled.load(Ordering::Relaxed)
    }

    /// Whether connections are chosen by what they have prepared.
    pub(crate) fn affinity_enabled(&self) -> bool {
        self.affinity_enabled.load(Ordering::Relaxed)
    }

    /// Whether the server hears of a transaction only when it has to.
    pub(crate) fn defers_transactions(&self) -> bool {
        self.defers_transactions.load(Ordering::Relaxed)
    }

    /// The largest answer that is collected for the cache, in bytes.
    pub(crate) fn max_entry(&self) -> usize {
        usize::try_from(self.config.load().cache.max_entry.as_u64()).unwrap_or(usize::MAX)
    }

    /// The longest message that is taken from a client, in bytes.
    pub(crate) fn max_message(&self) -> usize {
        usize::try_from(self.config.load().clients.max_message.as_u64()).unwrap_or(usize::MAX)
    }

    pub(crate) fn max_prepared_statements(&self) -> usize {
        self.max_prepared_statements.load(Ordering::Relaxed)
    }

    /// Whether unnamed statements are prepared under names on server connections.
    pub(crate) fn prepares_unnamed(&self) -> bool {
        self.prepares_unnamed.load(Ordering::Relaxed)
    }

    /// Bytes that the statements of all clients may take.
    pub(crate) fn prepared_memory(&self) -> usize {
        let memory = self.config.load().pool.prepared_memory;
        usize::try_from(memory.as_u64()).unwrap_or(usize::MAX)
    }

    /// Where it is wanted, ends the sessions that would keep an outdated server connection to their end, each when no
    /// transaction is open.
    pub(crate) fn close_fast(&self) {
        if !self.config.load().pool.fast_close {
            return;
        }
        let holders = self.upstream.servers.holders_of_outdated();
        for client in self.clients.list() {
            if holders.contains(&client.id) && client.pins() & Pin::SessionMode as u32 != 0 {
                client.signal(Signal::Renew);
            }
        }
    }

    /// The class of a function call and of statements that nobody has seen the text of.
    pub(crate) fn unknown_class(&self) -> Arc<Class> {
        Arc::clone(&self.unknown)
    }

    /// The class of a text: remembered, or found out. Without a catalog nothing is remembered.
    pub(crate) fn classify(
        &self,
        text: &str,
        catalog: Option<&LoadedCatalog>,
        names: &Arc<NameScope>,
        scratch: &mut Vec<u8>,
    ) -> Arc<Class> {
        match catalog {
            Some(loaded) => self.memo.classify(text, &loaded.catalog, names, scratch),
            None => Arc::new(crate::sql::classify_without_catalog(text, names)),
        }
    }

    /// The class of a prepared statement.
    pub(crate) fn classify_prepared(
        &self,
        statement: &Prepared,
        loaded: &LoadedCatalog,
        names: &Arc<NameScope>,
        scratch: &mut Vec<u8>,
    ) -> Arc<Class> {
        let epoch = loaded.catalog.epoch();
        if let Some(known) = &*statement.class.load()
            && known.epoch == epoch
            && (Arc::ptr_eq(&known.names, names) || known.names == *names)
        {
            return Arc::clone(&known.class);
        }
        let class = self
            .memo
            .classify(&statement.text, &loaded.catalog, names, scratch);
        statement.class.store(Some(Arc::new(KnownClass {
            epoch,
            names: Arc::clone(names),
            class: Arc::clone(&class),
        })));
        class
    }

    /// The statement that a Parse stands for; named ones are shared between the sessions that prepared the same.
    pub(crate) fn prepare(
        &self,
        name: &[u8],
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        database: &Database,
    ) -> Arc<Prepared> {
        let epoch = epoch_of(database);
        if name.is_empty() {
            self.interner
                .unnamed(HashedStr::new(text), types, scope, epoch)
        } else {
            self.interner.named(text, types, scope, epoch)
        }
    }

    /// The statement that a Parse under a name stands for, if some client has it already.
    pub(crate) fn find_prepared(
        &self,
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        database: &Database,
    ) -> Option<Arc<Prepared>> {
        self.interner.find(text, types, scope, epoch_of(database))
    }
}

/// Of the catalog that statements are prepared under.
pub(crate) fn epoch_of(database: &Database) -> u64 {
    database.epoch_now().unwrap_or(0)
}
