//! Invalidation by the server's replication stream: the writes of others, made without this gateway.
//!
//! One follower for each database that clients use. It has two connections: a walsender with a temporary logical slot,
//! over which committed transactions come (`stream`), and an ordinary one that is asked where the server is
//! (`control`). Nothing of it outlives the connections.
//!
//! # What is promised
//! An answer from memory, to a request that came at `t`, lacks no transaction that anybody knew to be committed at
//! `t - max_lag`. It rests on three things.
//!
//! **Nothing is missing from the stream.** The slot is made first; then everything is invalidated, the catalog is read
//! anew, and answers are stored. A transaction that was writing its commit while the slot was made may be missing from
//! the stream *and* from an answer that was computed before it became visible; so while any of the transactions that
//! were under way then is left, everything is invalidated whenever one of them has gone. When the stream is lost, the
//! gate closes, and the next slot begins it all over. Tables that the publication does not cover in full are not
//! cached.
//!
//! **A transaction is visible when its invalidation ends.** The server decodes a commit record as soon as it is on disk,
//! and makes the transaction visible after that: with synchronous replication, as long after as a standby takes. An
//! answer computed in between lacks it. So what a transaction changed is *marked* when its commit is received, and its
//! versions go up when `pg_current_snapshot()`, asked for later, shows that it has ended. While the mark stands,
//! nothing that depends on it is served or stored, as with the writes that pass through here.
//!
//! **The lag is proved.** A keepalive says how far the walsender has decoded, and it answers at once, whatever lies
//! undecoded behind that: the answer alone proves nothing about what was committed before the question. So the server
//! is asked, at `t0`, over the other connection, where the next record of its log would go
//! (`pg_current_wal_insert_lsn`). Commits that anybody knew of at `t0` lie before that place. Not so for the place up
//! to which the log is on disk, which commits with `synchronous_commit = off` lie behind. Once a keepalive or a commit
//! says that the log has been decoded up to there, everything from before `t0` was received, and the gate is open
//! until `t0 + max_lag`. Nobody has to close it: each hit compares the clock. What is not on disk is not decoded, and
//! a transaction that is open may leave the log's end in memory for long; then the server is made to write it, by a
//! logical message outside of a transaction, which takes no transaction id.
//!
//! DDL does not show in the stream: a digest of the catalogs is compared every `ddl_poll`, or an event trigger emits a
//! message. So what others do to the schema is seen within `ddl_poll` and the time of the look, and until then a table
//! that they attached to another is taken for one apart. The writes that pass through here are invalidated as ever
//! ([`wire`](super::wire)): clients see their own at once.
//!
//! Positions of [`VersionSlots`](heliosdb_cache::VersionSlots) are not told: the array is shared by all databases, and
//! each has a stream of its own, so that there is no one position up to which everything is known.

mod control;
mod gate;
mod proof;
pub(crate) mod report;
pub(crate) mod server;
mod stream;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use heliosdb_cache::WriteIntent;
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::replication::{Lsn, ReplicationConnection};
use heliosdb_network::postgres::{PgConnection, PgTarget};
use tokio::sync::{Notify, mpsc, watch};

use crate::config::{Invalidation, ReplicationConfig};
use crate::fault::is_removed;
use crate::upstream::database::Database;

use control::{Control, SharedWishes, Unused, Wishes};
pub(crate) use gate::Mode;
use gate::{FOLLOWING, Gate};
use proof::Early;
use server::{Facts, Published, quote_name};
use stream::{Applied, Following};

/// How the writes of others reach the cache of one database: what sessions ask, and what they can wait for.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) gate: Gate,
    wishes: SharedWishes,
    applied: watch::Sender<Applied>,
    decided: watch::Sender<bool>,
    /// A task is at work.
    is_running: AtomicBool,
    /// Nobody is in the database, and the server needs it for itself.
    rests: Notify,
}

/// How a follower is to follow.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) target: PgTarget,
    pub(crate) mode: Invalidation,
    pub(crate) config: ReplicationConfig,
}

impl Follower {
    /// Closed until [`start`](Self::start) has found out what can be done.
    pub(crate) fn new() -> Self {
        Self {
            gate: Gate::undecided(),
            wishes: Arc::new(Wishes::default()),
            applied: watch::Sender::new(None),
            decided: watch::Sender::new(false),
            is_running: AtomicBool::new(false),
            rests: Notify::new(),
        }
    }

    /// For a database that nobody else writes to, or whose other writes are nobody's concern.
    pub(crate) fn wire(why: &str) -> Self {
        let follower = Self::new();
        follower.decide(Mode::Wire(why.to_owned()));
        follower
    }

    /// For a database that can't be followed and must be: nothing of it is cached.
    pub(crate) fn unavailable(why: &str) -> Self {
        let follower = Self::new();
        follower.decide(Mode::Unavailable(why.to_owned()));
        follower
    }

    /// True if a task should be started: none is at work, and there is something to do.
    pub(crate) fn claim(&self) -> bool {
        !matches!(self.gate.mode(), Mode::Wire(_)) && !self.is_running.swap(true, Ordering::AcqRel)
    }

    /// Has the task at work give up what it has in the database. Whoever comes there starts another.
    pub(crate) fn rest(&self) {
        self.rests.notify_waiters();
    }

    /// Waits until the mode is known, at most for so long.
    pub(crate) async fn decided(&self, patience: Duration) {
        let mut decided = self.decided.subscribe();
        let _ = tokio::time::timeout(patience, decided.wait_for(|decided| *decided)).await;
    }

    /// Waits until everything that anybody knew to be committed at the time of the call is known to the cache: an
    /// answer that is looked up afterwards lacks none of it. Those who call at the same time share one question to the
    /// server. False if that can't be said in time, or at all: in wire mode, and while nobody follows.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn fence(&self, patience: Duration) -> bool {
        let passed = async {
            if self.applied.borrow().is_none() {
                return false;
            }
            match self.wishes.fence().await {
                Ok(end) => self.applied_to(end).await,
                Err(_) => false,
            }
        };
        tokio::time::timeout(patience, passed)
            .await
            .unwrap_or(false)
    }

    async fn applied_to(&self, position: Lsn) -> bool {
        let mut applied = self.applied.subscribe();
        let come = applied
            .wait_for(|applied| applied.is_none_or(|applied| applied >= position))
            .await;
        come.is_ok_and(|applied| applied.is_some())
    }

    fn set_applied(&self, position: Lsn) {
        let is_news = self.applied.send_if_modified(|applied| {
            let is_news = *applied != Some(position);
            *applied = Some(position);
            is_news
        });
        if is_news {
            self.gate.set_applied(position);
        }
    }

    fn decide(&self, mode: Mode) {
        self.gate.set_mode(mode);
        self.decided.send_replace(true);
    }

    /// Nothing is known any more.
    fn lose(&self) {
        self.gate.close();
        self.applied.send_replace(None);
        self.wishes.give_up();
    }
}

/// Finds out how the database can be followed and follows it, until `stop` changes or nobody uses the cache.
pub(crate) async fn run(database: Arc<Database>, plan: Plan, mut stop: watch::Receiver<bool>) {
    let follower = &database.follower;
    // From here on, until the gate opens: what near caches have, they drop.
    let mut closed = Some(database.versions().begin_write(&[database.everything]));
    let mut made_publication = false;
    let mut pause = PAUSE_MIN;
    let mut told = String::new();
    loop {
        let began = Instant::now();
        let end = tokio::select! {
            end = follow(&database, &plan, &mut closed, &mut made_publication) => end,
            _ = stop.wait_for(|stop| *stop) => End::Stopped,
            () = follower.rests.notified() => End::Idle,
        };
        if !matches!(end, End::Wire) {
            follower.lose();
            if closed.is_none() {
                // It was followed since.
                told.clear();
            }
            if !is_removed("gate") && !is_removed("flush-on-reconnect") {
                closed
                    .get_or_insert_with(|| database.versions().begin_write(&[database.everything]));
            }
        }
        let is_refused = matches!(end, End::Refused(_));
        match end {
            // The gate is open for good.
            End::Wire => return,
            End::Stopped => break,
            End::Idle => {
                follower.gate.set_mode(Mode::Undecided);
                break;
            }
            End::Failed(reason) | End::Refused(reason) => {
                follower.gate.set_state("waiting to connect again");
                // Clients need not wait for more: they are served by the server.
                follower.decided.send_replace(true);
                if began.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                // Where somebody has to change the server first, each try is but a connection more for it.
                let (shortest, longest) = if is_refused {
                    (PAUSE_MAX, PAUSE_REFUSED_MAX)
                } else {
                    (PAUSE_MIN, PAUSE_MAX)
                };
                pause = pause.clamp(shortest, longest);
                // The same reason once more is no news.
                if reason != told {
                    tracing::warn!(
                        database = database.name,
                        reason,
                        "replication: not followed, nothing is cached until it is"
                    );
                    told = reason;
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = stop.wait_for(|stop| *stop) => break,
                }
                pause = (pause * 2).min(longest);
            }
        }
    }
    if made_publication {
        drop_publication(&plan).await;
    }
    follower.is_running.store(false, Ordering::Release);
}

/// Tries whether the server lets a walsender be had; if not, says why.
pub(crate) async fn try_walsender(target: &PgTarget) -> Option<String> {
    ReplicationConnection::connect(target)
        .await
        .err()
        .map(|error| refused(&error))
}

/// Why a follower does not follow any longer.
enum End {
    /// Something failed: to be tried again.
    Failed(String),
    /// Nobody used the cache for long, or the server needs the database.
    Idle,
    /// The server's configuration does not allow it: to be tried again now and then.
    Refused(String),
    /// The program stops.
    Stopped,
    /// There is nothing to follow.
    Wire,
}

impl From<HeliosError> for End {
    fn from(error: HeliosError) -> Self {
        Self::Failed(error.to_string())
    }
}

async fn follow(
    database: &Arc<Database>,
    plan: &Plan,
    closed: &mut Option<WriteIntent>,
    made_publication: &mut bool,
) -> End {
    match connect_and_follow(database, plan, closed, made_publication).await {
        Ok(end) | Err(end) => end,
    }
}

async fn connect_and_follow(
    database: &Arc<Database>,
    plan: &Plan,
    closed: &mut Option<WriteIntent>,
    made_publication: &mut bool,
) -> Result<End, End> {
    let Plan { target, config, .. } = plan;
    let follower = &database.follower;
    let gate = &follower.gate;
    let mut pg = PgConnection::connect(target).await?;
    pg.simple_query(CONTROL_SETTINGS).await?;
    let facts = Facts::ask(&mut pg, config).await?;
    let mut why: Vec<String> = facts
        .missing(config)
        .into_iter()
        .map(|missing| missing.what)
        .collect();
    // What the settings allow may be refused all the same, by a pooler in between for instance.
    let walsender = if why.is_empty() {
        let connected = ReplicationConnection::connect(target).await;
        connected.map_err(|error| why.push(refused(&error))).ok()
    } else {
        None
    };
    decide(database, plan, &why.join("; "), closed)?;
    let Some(mut walsender) = walsender else {
        return Err(End::Wire);
    };
    if facts.publication == Published::Absent {
        create_publication(&mut pg, config).await?;
        *made_publication = true;
    }
    gate.connects.fetch_add(1, Ordering::Relaxed);
    // It may take as long as the transactions that are under way.
    gate.set_state("waiting for open transactions");
    let slot = format!("helios_{:016x}", rand::random::<u64>());
    walsender.create_temporary_slot(&slot).await?;
    let mut control = Control::new(pg, facts.version, facts.has_event_trigger).await?;
    let limit = control.next_xid().await?;
    let early = Early::new(limit, &control.probe(Vec::new()).await?.snapshot);
    let mut stream = walsender.start(&slot, &[&config.publication]).await?;
    // The slot has everything from before this on.
    if !is_removed("flush-on-reconnect") {
        database
            .versions()
            .invalidate(&[database.schema, database.everything]);
        database.doubt_event_triggers();
    }
    {
        let _only_one = database.lock_loading().await;
        if database.catalog_now().is_none() {
            database.load(control.connection()).await;
        }
    }
    gate.set_state(FOLLOWING);
    follower.set_applied(Lsn(0));
    let (news, incoming) = mpsc::unbounded_channel();
    let end = {
        let following = Following::new(database, config, facts.wal_block, early, closed);
        tokio::select! {
            reason = following.run(&mut stream, incoming) => End::Failed(reason),
            ended = control.run(config, gate, &follower.wishes, news) => match ended {
                Ok(Unused) => End::Idle,
                Err(error) => End::from(error),
            },
        }
    };
    follower.lose();
    if matches!(end, End::Idle) {
        let farewell = async { tokio::join!(control.terminate(), stream.terminate()) };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
    Ok(end)
}

/// What is missing where a replication connection is.
fn refused(error: &HeliosError) -> String {
    format!("a replication connection is refused: {error}")
}

/// Chooses the mode: replication unless there is a reason why not. An error ends this attempt.
fn decide(
    database: &Database,
    plan: &Plan,
    why: &str,
    closed: &mut Option<WriteIntent>,
) -> Result<(), End> {
    let follower = &database.follower;
    let was = follower.gate.mode();
    if why.is_empty() {
        if was != Mode::Replication {
            tracing::info!(
                database = database.name,
                max_lag = ?plan.config.max_lag,
                "invalidation by replication: the writes of others are seen"
            );
            follower.decide(Mode::Replication);
        }
        return Ok(());
    }
    // What was promised once is not taken back silently: then nothing is cached.
    if plan.mode == Invalidation::Auto && was == Mode::Undecided {
        tracing::info!(
            database = database.name,
            why,
            "invalidation by wire: writes that go to the server by another way are not seen"
        );
        if let Some(closed) = closed.take() {
            closed.finish();
        }
        follower.decide(Mode::Wire(why.to_owned()));
        return Err(End::Wire);
    }
    follower.decide(Mode::Unavailable(why.to_owned()));
    Err(End::Refused(why.to_owned()))
}

/// Names all tables that have a replica identity: with others in it, their UPDATEs would fail.
async fn create_publication(
    pg: &mut PgConnection,
    config: &ReplicationConfig,
) -> Result<(), HeliosError> {
    let tables: Vec<String> = pg
        .simple_query(server::publishable_sql())
        .await?
        .into_iter()
        .flat_map(|result| result.rows)
        .flatten()
        .flatten()
        .collect();
    let name = quote_name(&config.publication);
    let tables = match tables.as_slice() {
        [] => String::new(),
        tables => format!(" FOR TABLE {}", tables.join(", ")),
    };
    pg.simple_query(&format!("CREATE PUBLICATION {name}{tables}"))
        .await?;
    tracing::info!(publication = name, "publication created");
    Ok(())
}

/// What was made here goes with us.
async fn drop_publication(plan: &Plan) {
    let name = quote_name(&plan.config.publication);
    let dropped = async {
        let mut pg = PgConnection::connect(&plan.target).await?;
        pg.simple_query(&format!("DROP PUBLICATION IF EXISTS {name}"))
            .await?;
        pg.terminate().await;
        Ok::<(), HeliosError>(())
    };
    match tokio::time::timeout(FAREWELL, dropped).await {
        Ok(Ok(())) => tracing::info!(publication = name, "publication dropped"),
        Ok(Err(error)) => {
            tracing::warn!(publication = name, %error, "cannot drop the publication");
        }
        Err(_) => tracing::warn!(publication = name, "cannot drop the publication in time"),
    }
}

/// The settings of the role are not ours: names mean what they say, and no question is cut short or left waiting.
const CONTROL_SETTINGS: &str = "SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = 0; \
     SET default_transaction_read_only = off; SET synchronous_commit = local; SET application_name = 'helios replication'; \
     SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'idle_session_timeout'";
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_REFUSED_MAX: Duration = Duration::from_secs(30);
const FAREWELL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait_applied(follower: &Follower, position: Lsn, patience: Duration) -> bool {
        tokio::time::timeout(patience, follower.applied_to(position))
            .await
            .unwrap_or(false)
    }

    #[tokio::test]
    async fn a_fence_passes_when_the_stream_has_come_to_the_place_that_was_asked_for() {
        let follower = Arc::new(Follower::new());
        assert!(!follower.fence(PAUSE_MAX).await, "nobody follows");
        follower.set_applied(Lsn(4));
        let waiting = {
            let follower = Arc::clone(&follower);
            tokio::spawn(async move { follower.fence(PAUSE_MAX).await })
        };
        let fence = loop {
            if let Some(fence) = follower.wishes.take_fences().pop() {
                break fence;
            }
            tokio::task::yield_now().await;
        };
        fence.send(Lsn(6)).expect("waited for");
        follower.set_applied(Lsn(5));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        follower.set_applied(Lsn(6));
        assert!(waiting.await.expect("ended"));
        assert!(wait_applied(&follower, Lsn(6), PAUSE_MAX).await);
        assert!(!wait_applied(&follower, Lsn(7), Duration::from_millis(5)).await);
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_stream_is_lost() {
        let follower = Arc::new(Follower::new());
        follower.set_applied(Lsn(4));
        let waiting = ["fence", "position"].map(|what| {
            let follower = Arc::clone(&follower);
            tokio::spawn(async move {
                match what {
                    "fence" => follower.fence(Duration::from_secs(60)).await,
                    _ => wait_applied(&follower, Lsn(9), Duration::from_secs(60)).await,
                }
            })
        });
        while !follower.wishes.has_fences() {
            tokio::task::yield_now().await;
        }
        follower.lose();
        for waiting in waiting {
            assert!(!waiting.await.expect("ended"));
        }
        // Not by a position from before.
        assert!(!wait_applied(&follower, Lsn(1), Duration::from_millis(5)).await);
    }
}
