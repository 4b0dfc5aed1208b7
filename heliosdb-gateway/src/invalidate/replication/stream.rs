//! The stream of one connection, from the slot to its loss.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use heliosdb_cache::{VersionSlots, WriteIntent};
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::replication::pgoutput::{Message, Old, Tuple};
use heliosdb_network::postgres::replication::{Lsn, ReplicationStream, StreamMessage};
use tokio::sync::mpsc;

use crate::config::ReplicationConfig;
use crate::fault::is_removed;
use crate::upstream::database::Database;

use super::Follower;
use super::control::{News, Probe};
use super::proof::{Early, Proof};
use super::server::MESSAGE_PREFIX;
use super::transaction::{RowChange, Tables, Transaction};

/// A transaction that has been received and can't be seen by others yet.
struct Unseen {
    xid: u32,
    received_at: Instant,
    /// What it changed is marked until it can be seen.
    intent: WriteIntent,
    /// What it was looked up in was out of date already, or `everything` is marked.
    transaction: Transaction,
}

/// What is known of the stream.
pub(super) struct Following<'a> {
    database: &'a Arc<Database>,
    follower: &'a Follower,
    config: &'a ReplicationConfig,
    versions: &'a Arc<VersionSlots>,
    proof: Proof,
    tables: Tables,
    open: Option<Transaction>,
    unseen: VecDeque<Unseen>,
    early: Option<Early>,
    /// While it is there, nothing of the database is served from memory or stored.
    closed: &'a mut Option<WriteIntent>,
    /// When the server is asked next how far it is, while a proof is owed.
    next_question: Option<Instant>,
    pause: Duration,
    next_report: Instant,
    next_flush: Option<Instant>,
}

impl<'a> Following<'a> {
    pub(super) fn new(
        database: &'a Arc<Database>,
        config: &'a ReplicationConfig,
        wal_block: u64,
        early: Early,
        closed: &'a mut Option<WriteIntent>,
    ) -> Self {
        Self {
            database,
            follower: &database.follower,
            config,
            versions: database.versions(),
            proof: Proof::new(wal_block),
            tables: Tables::default(),
            open: None,
            unseen: VecDeque::new(),
            early: Some(early),
            closed,
            next_question: None,
            pause: PAUSE_MIN,
            next_report: Instant::now() + REPORT_EVERY,
            next_flush: None,
        }
    }

    /// Follows until something fails; returns the reason.
    pub(super) async fn run(
        mut self,
        stream: &mut ReplicationStream,
        mut news: mpsc::UnboundedReceiver<News>,
    ) -> String {
        loop {
            let wake = self.next_wake();
            let done = tokio::select! {
                message = stream.receive() => self.received_all(message, stream).await,
                Some(news) = news.recv() => {
                    match news {
                        News::Probe(probe) => self.probed(probe),
                        News::SchemaChanged => self.schema_changed("a catalog changed"),
                    }
                    self.ask_if_owed(stream).await
                }
                () = tokio::time::sleep_until(wake.into()) => self.on_time(stream).await,
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    fn next_wake(&self) -> Instant {
        // Often enough to notice that the gate has closed by itself.
        let look = Instant::now() + self.config.lag_probe;
        let question = self.next_question.unwrap_or(look);
        look.min(question).min(self.next_report)
    }

    /// Works on a message and on those that came with it.
    async fn received_all(
        &mut self,
        first: Result<StreamMessage, HeliosError>,
        stream: &mut ReplicationStream,
    ) -> Result<(), String> {
        let first = first.map_err(|error| error.to_string())?;
        self.received(first, stream).await?;
        for _ in 0..BURST {
            let next = stream.buffered().map_err(|error| error.to_string())?;
            let Some(message) = next else { break };
            self.received(message, stream).await?;
        }
        Ok(())
    }

    async fn received(
        &mut self,
        message: StreamMessage,
        stream: &mut ReplicationStream,
    ) -> Result<(), String> {
        match message {
            StreamMessage::Keepalive {
                decoded,
                reply_requested,
            } => {
                self.proof.decoded(decoded);
                self.advanced();
                if reply_requested {
                    self.report(stream, false).await?;
                }
                Ok(())
            }
            StreamMessage::Data(data) => {
                let message = Message::decode(&data).map_err(|error| error.to_string())?;
                self.apply(message)
            }
            other => Err(format!("a message that is not understood: {other:?}")),
        }
    }

    fn apply(&mut self, message: Message<'_>) -> Result<(), String> {
        match message {
            Message::Begin(begin) => {
                let open = Transaction::begin(begin.xid, self.database);
                if self.open.replace(open).is_some() {
                    return Err("a transaction inside of a transaction".to_owned());
                }
            }
            Message::Commit(commit) => {
                let transaction = self.open.take().ok_or_else(outside)?;
                self.commit(transaction)?;
                self.proof.decoded(commit.end_lsn);
                self.advanced();
            }
            Message::Insert(insert) => self.change(insert.relation, None, Some(insert.new))?,
            Message::Update(update) => {
                self.change(update.relation, update.old, Some(update.new))?;
            }
            Message::Delete(delete) => self.change(delete.relation, Some(delete.old), None)?,
            Message::Truncate(truncate) => {
                let open = self.open.as_mut().ok_or_else(outside)?;
                for oid in truncate.relations() {
                    open.truncate(oid, self.database);
                }
            }
            Message::Relation(relation) => {
                if self.tables.describe(&relation)?
                    && let Some(open) = &mut self.open
                {
                    open.schema = true;
                }
            }
            Message::Logical(message) => {
                if message.prefix == MESSAGE_PREFIX {
                    match &mut self.open {
                        Some(open) if message.is_transactional => {
                            (open.schema, open.everything) = (true, true);
                        }
                        _ => self.schema_changed("a message says so"),
                    }
                }
            }
            Message::Origin(_) | Message::Type(_) => {}
            other => return Err(format!("a message that is not understood: {other:?}")),
        }
        Ok(())
    }

    fn change(
        &mut self,
        oid: u32,
        old: Option<Old<'_>>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), String> {
        let open = self.open.as_mut().ok_or_else(outside)?;
        let table = self.tables.get(oid)?;
        open.change(RowChange { table, old, new }, self.database);
        Ok(())
    }

    /// A transaction has come whole. The server sends it as soon as its commit record is on disk, which is *before*
    /// others can see it (with synchronous replication, long before). What it changed is marked until they can, so that
    /// no answer without it is stored under versions from after it.
    fn commit(&mut self, transaction: Transaction) -> Result<(), String> {
        let gate = &self.follower.gate;
        gate.transactions.fetch_add(1, Ordering::Relaxed);
        gate.changes
            .fetch_add(transaction.changes, Ordering::Relaxed);
        let slots = transaction.slots(self.database);
        if slots.is_empty() {
            return Ok(());
        }
        if transaction.schema {
            gate.schema_changes.fetch_add(1, Ordering::Relaxed);
        }
        if self.unseen.len() >= UNSEEN_MAX {
            return Err(format!(
                "{UNSEEN_MAX} transactions are committed that nobody can see yet"
            ));
        }
        self.unseen.push_back(Unseen {
            xid: transaction.xid,
            received_at: Instant::now(),
            intent: self.versions.begin_write(&slots),
            transaction,
        });
        self.follower.wishes.probe();
        Ok(())
    }

    /// The server said where it is.
    fn probed(&mut self, probe: Probe) {
        let database = self.database;
        let mut still = VecDeque::new();
        for mut unseen in self.unseen.drain(..) {
            if unseen.received_at > probe.asked_at || probe.snapshot.is_running(unseen.xid) {
                still.push_back(unseen);
                continue;
            }
            if unseen.transaction.is_outdated(database) {
                // It was looked up in a catalog that is out of date: its tables may have other slots by now.
                unseen.intent.extend(&[database.everything]);
            }
            unseen.intent.finish();
        }
        self.unseen = still;
        if let Some(early) = &mut self.early {
            if early.has_fewer(&probe.snapshot) && !is_removed("flush-on-reconnect") {
                self.versions.invalidate(&[database.everything]);
            }
            if early.is_over() {
                self.early = None;
            }
        }
        if !self.unseen.is_empty() {
            self.next_question = Some(Instant::now() + self.pause);
        }
        // All that was committed before the question and is not in the stream yet is known to lie before this.
        let end = self.proof.asked(probe.asked_at, probe.end);
        for fence in probe.fences {
            // Whoever waited may have gone.
            let _ = fence.send(end);
        }
        self.advanced();
    }

    /// The stream or the server's word may have brought a proof.
    fn advanced(&mut self) {
        let applied = self.proof.position();
        self.follower.set_applied(applied);
        let Some(proved_at) = self.proof.proved() else {
            return;
        };
        self.pause = PAUSE_MIN;
        self.next_flush = None;
        self.follower.gate.prove(proved_at, self.config.max_lag);
        if self.closed.is_some() && self.follower.gate.is_open() {
            if let Some(closed) = self.closed.take() {
                closed.finish();
            }
            tracing::info!(
                database = self.database.name,
                position = %applied,
                "replication: all writes up to now are known, reads are cached"
            );
        }
    }

    /// Asks the server how far it is, where that would prove something.
    async fn ask_if_owed(&mut self, stream: &mut ReplicationStream) -> Result<(), String> {
        if self.proof.waiting_since().is_none() {
            if self.unseen.is_empty() {
                self.next_question = None;
            }
            return Ok(());
        }
        self.report(stream, true).await?;
        self.next_question = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    async fn on_time(&mut self, stream: &mut ReplicationStream) -> Result<(), String> {
        let now = Instant::now();
        if self.next_question.is_some_and(|at| at <= now) {
            if !self.unseen.is_empty() {
                self.follower.wishes.probe();
                self.next_question = Some(now + self.pause);
            }
            self.ask_if_owed(stream).await?;
        }
        if let Some(since) = self.proof.waiting_since() {
            let flush_at = *self.next_flush.get_or_insert(since + FLUSH_AFTER);
            if flush_at <= now {
                self.next_flush = Some(now + FLUSH_AFTER);
                self.follower.wishes.flush();
            }
        }
        if self.next_report <= now {
            self.report(stream, false).await?;
        }
        if self.closed.is_none()
            && !self.follower.gate.is_open()
            && !is_removed("flush-on-reconnect")
        {
            // Near caches have no clock of ours: they hear of it by the mark.
            *self.closed = Some(self.versions.begin_write(&[self.database.everything]));
            self.follower.gate.closings.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                database = self.database.name,
                max_lag = ?self.config.max_lag,
                "replication: the server is behind, nothing is cached until it has caught up"
            );
        }
        Ok(())
    }

    async fn report(
        &mut self,
        stream: &mut ReplicationStream,
        request_reply: bool,
    ) -> Result<(), String> {
        self.next_report = Instant::now() + REPORT_EVERY;
        let report = stream.report(self.proof.position(), request_reply);
        match tokio::time::timeout(REPORT_PATIENCE, report).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the server takes no reports".to_owned()),
        }
    }

    /// DDL by somebody else: nothing that was learnt from the catalogs stands.
    fn schema_changed(&self, why: &str) {
        let database = self.database;
        self.versions
            .invalidate(&[database.schema, database.everything]);
        database.doubt_event_triggers();
        self.follower
            .gate
            .schema_changes
            .fetch_add(1, Ordering::Relaxed);
        tracing::debug!(
            database = database.name,
            why,
            "replication: the schema changed"
        );
    }
}

fn outside() -> String {
    "a change outside of a transaction".to_owned()
}

/// Messages that are worked on before anything else gets its turn.
const BURST: usize = 1000;
/// Everything up to here is known; nothing is, while nobody follows.
pub(super) type Applied = Option<Lsn>;

/// A server that is idle has decoded its log within this time after it was asked for its end.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// A log that is not decoded by then is probably not on disk.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// The server hears from us at least so often, or it would end the connection.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Transactions that were received and can't be seen.
const UNSEEN_MAX: usize = 10_000;
