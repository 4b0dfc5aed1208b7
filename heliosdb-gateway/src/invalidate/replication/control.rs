//! The ordinary connection beside the stream: asks the server where it is, and whether its schema changed.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use heliosdb_network::error::{HeliosError, Result};
use heliosdb_network::postgres::replication::Lsn;
use heliosdb_network::postgres::{PgConnection, QueryResult};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::config::ReplicationConfig;

use super::gate::Gate;
use super::proof::Snapshot;
use super::server::{PROBE, XID, flush_sql, schema_digest_sql};

/// What the control connection found out.
#[derive(Debug)]
pub(super) enum News {
    Probe(Probe),
    SchemaChanged,
}

/// Where the server was.
#[derive(Debug)]
pub(super) struct Probe {
    /// Before the question was sent.
    pub(super) asked_at: Instant,
    /// Where the next record of the log would begin.
    pub(super) end: Lsn,
    pub(super) snapshot: Snapshot,
    /// Who waits until the stream has come there.
    pub(super) fences: Vec<Fence>,
}

/// Told the end of the log as of a time after it was made.
pub(super) type Fence = oneshot::Sender<Lsn>;

/// Nobody has used the cache for long.
#[derive(Debug)]
pub(super) struct Unused;

/// How others ask the control connection for something.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Something is wished for.
    news: Notify,
    probe: AtomicBool,
    flush: AtomicBool,
    /// Why a lock: a push for each strict read, a swap for each probe.
    fences: Mutex<Vec<Fence>>,
}

impl Wishes {
    /// Wants to know where the server is, as of now.
    pub(super) fn probe(&self) {
        self.probe.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Wants what is in the server's memory of the log to be written.
    pub(super) fn flush(&self) {
        self.flush.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Wants to know the end of the log, as of now or later: whoever asks while a question is under way gets the answer
    /// to the next.
    pub(super) fn fence(&self) -> oneshot::Receiver<Lsn> {
        let (fence, answer) = oneshot::channel();
        self.fences.lock().push(fence);
        self.probe();
        answer
    }

    /// Nobody is going to answer.
    pub(super) fn give_up(&self) {
        drop(self.take_fences());
    }

    /// Those who wait for the answer to a question that is about to be asked.
    pub(super) fn take_fences(&self) -> Vec<Fence> {
        std::mem::take(&mut *self.fences.lock())
    }

    #[cfg(test)]
    pub(super) fn has_fences(&self) -> bool {
        !self.fences.lock().is_empty()
    }
}

/// The connection and what it was told.
#[derive(Debug)]
pub(super) struct Control {
    pg: PgConnection,
    version: u32,
    digest_sql: String,
    digest: String,
}

impl Control {
    /// Notes the schema as it is now: what changes from here on is news.
    pub(super) async fn new(
        pg: PgConnection,
        version: u32,
        has_event_trigger: bool,
    ) -> Result<Self> {
        let mut control = Self {
            pg,
            version,
            digest_sql: schema_digest_sql(version, has_event_trigger),
            digest: String::new(),
        };
        control.look_at_schema().await?;
        Ok(control)
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.pg
    }

    /// An id above those of all transactions that have written until now.
    pub(super) async fn next_xid(&mut self) -> Result<u64> {
        let results = self.query(XID).await?;
        cell(&results, 0)
            .and_then(|id| id.parse().ok())
            .ok_or_else(unclear)
    }

    pub(super) async fn probe(&mut self, fences: Vec<Fence>) -> Result<Probe> {
        let asked_at = Instant::now();
        let results = self.query(PROBE).await?;
        let read = || {
            Some(Probe {
                asked_at,
                end: cell(&results, 0)?.parse().ok()?,
                snapshot: cell(&results, 1)?.parse().ok()?,
                fences,
            })
        };
        read().ok_or_else(unclear)
    }

    /// True if the schema is not what it was when it was last looked at.
    async fn look_at_schema(&mut self) -> Result<bool> {
        let sql = std::mem::take(&mut self.digest_sql);
        let results = self.query(&sql).await;
        self.digest_sql = sql;
        let digest = cell(&results?, 0).ok_or_else(unclear)?.to_owned();
        let is_new = digest != self.digest;
        self.digest = digest;
        Ok(is_new)
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<QueryResult>> {
        match tokio::time::timeout(PATIENCE, self.pg.simple_query(sql)).await {
            Ok(results) => results,
            Err(_) => Err(HeliosError::Network(format!(
                "the server did not answer within {PATIENCE:?}"
            ))),
        }
    }

    /// Asks again and again: each `lag_probe` while the cache is used, often enough to keep the gate open where it is
    /// not, and whenever somebody wishes. Ends with an error, or when nobody has looked at the gate for long.
    pub(super) async fn run(
        &mut self,
        config: &ReplicationConfig,
        gate: &Gate,
        wishes: &Wishes,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Unused> {
        let mut next_probe = Instant::now();
        let mut next_look = Instant::now() + config.ddl_poll;
        let mut used_at = Instant::now();
        loop {
            let wished = async {
                loop {
                    if wishes.probe.swap(false, Ordering::AcqRel)
                        || wishes.flush.load(Ordering::Acquire)
                    {
                        return;
                    }
                    wishes.news.notified().await;
                }
            };
            tokio::select! {
                () = wished => {}
                () = tokio::time::sleep_until(next_probe.min(next_look).into()) => {}
                () = news.closed() => pending().await,
            }
            if gate.take_used() {
                used_at = Instant::now();
            }
            if used_at.elapsed() >= UNUSED_AFTER {
                return Ok(Unused);
            }
            self.ask(config, wishes, &news, &mut next_look).await?;
            let pause = if used_at.elapsed() < IDLE_AFTER {
                config.lag_probe
            } else {
                config.lag_probe.max(config.max_lag / 3)
            };
            next_probe = Instant::now() + pause;
        }
    }

    async fn ask(
        &mut self,
        config: &ReplicationConfig,
        wishes: &Wishes,
        news: &mpsc::UnboundedSender<News>,
        next_look: &mut Instant,
    ) -> Result<()> {
        if wishes.flush.swap(false, Ordering::AcqRel) {
            self.query(flush_sql(self.version)).await?;
        }
        if Instant::now() >= *next_look {
            *next_look = Instant::now() + config.ddl_poll;
            if self.look_at_schema().await? {
                let _ = news.send(News::SchemaChanged);
            }
        }
        let probe = self.probe(wishes.take_fences()).await?;
        let _ = news.send(News::Probe(probe));
        Ok(())
    }

    pub(super) async fn terminate(self) {
        self.pg.terminate().await;
    }
}

/// Shared between the follower's task and those who ask.
pub(super) type SharedWishes = Arc<Wishes>;

fn cell(results: &[QueryResult], column: usize) -> Option<&str> {
    results
        .iter()
        .flat_map(|result| &result.rows)
        .next()?
        .get(column)?
        .as_deref()
}

fn unclear() -> HeliosError {
    HeliosError::Protocol("the server did not say where it is".to_owned())
}

/// No question of ours takes longer on a server that is well.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so long without a look at the gate the proof is renewed only as often as keeps it open.
const IDLE_AFTER: Duration = Duration::from_secs(10);
/// After so long the connections are given up until somebody looks again.
const UNUSED_AFTER: Duration = Duration::from_secs(600);
