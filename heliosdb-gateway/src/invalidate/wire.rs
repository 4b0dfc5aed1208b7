//! Invalidation by the writes that pass through this gateway.
//!
//! A write is marked on the version slots of what it may change *before* it is sent. The mark stays until the server
//! has said that the transaction is over; then the versions go up, the marks go down, and only then the client hears
//! of it. While a slot is marked, nothing that depends on it is served from the cache or stored in it.
//!
//! A connection that is lost in between leaves the outcome unknown: the server may still be working on the commit.
//! The mark then stays until the server no longer shows that process ([`settle`]).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use heliosdb_cache::{SlotId, VersionSlots, WriteIntent};
use heliosdb_network::connection_pool::EnhancedConnectionPool;
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::clients::ClientInfo;
use crate::fault::is_removed;
use crate::session::link::{Expect, Link};
use crate::sql::{
    Class, Effect, Statement, Values, Write, concerns_all_databases, makes_no_event_trigger,
};
use crate::upstream::ServerPool;
use crate::upstream::connection::{BackendProcess, ServerConnector};
use crate::upstream::database::Database;

/// Slots that one transaction marks before it counts as a write to any row of its tables: each statement looks through
/// those that are marked, and a load of a million rows by their keys is no change of single rows any more.
const MARKS_MAX: usize = 256;

/// Marks what the statements may write, adding to the marks of the transaction so far.
pub(crate) fn mark(
    intent: &mut Option<WriteIntent>,
    class: &Class,
    values: &Values<'_>,
    database: &Database,
    versions: &Arc<VersionSlots>,
) {
    let marked = intent.as_ref().map_or(0, WriteIntent::slot_count);
    let rows_max = MARKS_MAX.saturating_sub(marked);
    let slots = written_slots(class, values, database, versions, rows_max);
    if slots.is_empty() {
        return;
    }
    match intent {
        Some(intent) => intent.extend(&slots),
        None => *intent = Some(versions.begin_write(&slots)),
    }
    if class.statements.iter().any(may_make_event_trigger) {
        database.doubt_event_triggers();
    }
}

fn may_make_event_trigger(statement: &Statement) -> bool {
    let changes_schema =
        |effect: &Effect| matches!(effect, Effect::Ddl | Effect::TwoPhaseEnd { .. });
    statement.effects.iter().any(changes_schema) && !makes_no_event_trigger(statement.tag)
}

fn written_slots(
    class: &Class,
    values: &Values<'_>,
    database: &Database,
    versions: &VersionSlots,
    rows_max: usize,
) -> SmallVec<[SlotId; 4]> {
    let mut slots = SmallVec::new();
    for statement in &class.statements {
        match &statement.write {
            Write::None => {}
            Write::Relations(relations) => {
                database.slots_written(relations, values, rows_max, &mut slots);
            }
            Write::Everything(_) if is_removed("everything") => {}
            Write::Everything(_) => slots.push(database.everything),
        }
        for effect in &statement.effects {
            match effect {
                Effect::Ddl => {
                    slots.extend([database.schema, database.everything]);
                    if concerns_all_databases(statement.tag) {
                        slots.extend(versions.slot_at(EVERYBODYS));
                    }
                }
                // What was prepared under that name, and by whom, is not known here.
                Effect::TwoPhaseEnd { .. } => slots.extend([database.schema, database.everything]),
                _ => {}
            }
        }
    }
    slots
}

/// Ends a session's use of a connection on which replies are outstanding: stops the statement, reads what is left, and
/// gives the connection back clean; where that fails, closes it and settles the write.
pub(crate) async fn abandon(
    pool: Arc<ServerPool>,
    client: Arc<ClientInfo>,
    mut link: Link,
    intent: Option<WriteIntent>,
) {
    let process = link.process();
    if link.lease.broken {
        drop(link);
        if let Some(intent) = intent {
            settle(pool, process, intent).await;
        }
        return;
    }
    // The embedded server has no second connection for a cancel request, and its only one is worth waiting for.
    let patience = if pool.embedded {
        EMBEDDED_PATIENCE
    } else {
        PATIENCE
    };
    if !pool.embedded {
        let key = Arc::clone(&link.lease.key);
        let _ = heliosdb_network::postgres::cancel(&key.target, key.pid, &key.secret).await;
    }
    match tokio::time::timeout(patience, drain(&mut link)).await {
        Ok(Ok(status)) => {
            // The next client must not be hit by a cancel request that is on its way.
            client.cancel_delivered().await;
            let mut lease = link.into_lease();
            lease.pg.set_transaction_status(status);
            lease.dirty = true;
            // What is left open dies in the pool's reset, without a commit.
            drop(intent);
        }
        Ok(Err(_)) | Err(_) => {
            link.lease.broken = true;
            drop(link);
            if let Some(intent) = intent {
                settle(pool, process, intent).await;
            }
        }
    }
}

/// Brings the exchange to its end and returns the transaction status.
async fn drain(link: &mut Link) -> std::io::Result<u8> {
    let is_copying_in = link.is_copying_in();
    if is_copying_in {
        link.out.extend_from_slice(b"f\0\0\0\x10client gone\0");
    }
    if !link.awaits_ready() {
        if link.unit_open {
            // What the client did not finish is not committed: a text that no grammar accepts fails the unit.
            link.out.extend_from_slice(b"P\0\0\0\x11\0abandoned\0\0\0");
        }
        link.out.extend_from_slice(b"S\0\0\0\x04");
        link.expect(Expect::Sync);
    }
    let mut owed = link
        .expects
        .iter()
        .filter(|expect| matches!(expect, Expect::Sync | Expect::Query { .. }))
        .count();
    // A COPY swallows the Syncs that came before its data, unless it is cancelled before it reads them. So the answers are
    // not counted, but awaited up to that of an empty query, which has one of its own.
    let mut is_counted = true;
    if is_copying_in {
        link.out.extend_from_slice(b"Q\0\0\0\x05\0");
        (owed, is_counted) = (1, false);
    }
    let (stream, buffer) = link.lease.pg.parts();
    stream.write_all(&link.out).await?;
    let mut status = b'I';
    let mut skip = link.skip;
    while owed > 0 {
        let part = skip.min(buffer.len());
        bytes::Buf::advance(buffer, part);
        skip -= part;
        let head = if skip == 0 {
            buffer.first_chunk::<6>().copied()
        } else {
            None
        };
        match head {
            Some(head) => {
                skip = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
                match head[0] {
                    // EmptyQueryResponse.
                    b'I' => is_counted = true,
                    b'Z' if is_counted => {
                        owed -= 1;
                        status = head[5];
                    }
                    _ => {}
                }
            }
            None => {
                if stream.read_buf(buffer).await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
    buffer.clear();
    Ok(status)
}

/// Holds a write's marks until the server no longer shows the process that may still commit it.
pub(crate) async fn settle(pool: Arc<ServerPool>, process: BackendProcess, intent: WriteIntent) {
    if is_removed("doubt") {
        intent.finish();
        return;
    }
    if pool.embedded {
        // One connection, one process: when another can be had, the one before is gone.
        let _ = pool.acquire(0, None).await;
        intent.finish();
        return;
    }
    tracing::info!(
        pid = process.pid,
        "a write is in doubt: what it may have changed is not cached until its process is gone"
    );
    // The same process id with another start is another process. Without the right to see it, the id must do.
    let same_start = match &process.started {
        Some(started) => format!(
            "AND (backend_start IS NULL OR extract(epoch FROM backend_start)::text = '{started}')"
        ),
        None => String::new(),
    };
    let question = format!(
        "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = {} {same_start}",
        process.pid
    );
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = ask_as_login(&pool.connections, &question).await;
        if answer.is_some_and(|rows| rows.is_empty()) {
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    intent.finish();
    tracing::info!(pid = process.pid, "the write in doubt is settled");
}

/// Holds marks on everything until what others have begun has ended: statements that clients of this user, from this
/// machine, were running when this process came to the database. They are those of a gateway before this one that ended
/// without waiting for them, or was killed, and may still commit writes that nobody here knows of. (A transaction of
/// several statements dies with its client.)
pub(crate) async fn settle_strangers(
    connections: Arc<EnhancedConnectionPool<ServerConnector>>,
    intent: WriteIntent,
) {
    tracing::info!(
        "statements from before this process are running: nothing is cached until they have ended"
    );
    let mut strangers: Option<Vec<String>> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(rows) = ask_as_login(&connections, &strangers_question()).await {
            let running: Vec<String> = rows
                .into_iter()
                .filter_map(|row| row.into_iter().next().flatten())
                .collect();
            let left = strangers.get_or_insert_with(|| running.clone());
            left.retain(|stranger| running.contains(stranger));
            if left.is_empty() {
                break;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    intent.finish();
}

/// Each statement that is running, as a process and the statement's beginning.
fn strangers_question() -> String {
    format!(
        "{}SELECT pid || ' ' || query_start {}",
        *LOOKING_AROUND,
        strangers()
    )
}

/// Of sessions of the same user on the same database, from the same machine, those that are running a statement.
/// Connections of this process that are looking around themselves do not count.
pub(crate) fn strangers() -> String {
    let mark = &*LOOKING_AROUND;
    format!(
        "FROM pg_catalog.pg_stat_activity WHERE state = 'active' \
         AND datname = pg_catalog.current_database() AND usename = session_user \
         AND client_addr IS NOT DISTINCT FROM pg_catalog.inet_client_addr() AND pid <> pg_catalog.pg_backend_pid() \
         AND pg_catalog.left(query, {}) <> '{mark}'",
        mark.len()
    )
}

/// What statements begin with that look for strangers. Nobody else's do: it is made up by this process.
pub(crate) static LOOKING_AROUND: LazyLock<String> =
    LazyLock::new(|| format!("/* helios {:016x} */ ", rand::random::<u64>()));

/// Asks a question as the user that the pool logs in as. `None` where there is no answer.
async fn ask_as_login(
    connections: &EnhancedConnectionPool<ServerConnector>,
    question: &str,
) -> Option<Vec<Vec<Option<String>>>> {
    let mut lease = connections.acquire_labelled(0).await.ok()?;
    lease.broken = true;
    // Whoever had it before may have taken a role that sees less.
    let asked = async {
        lease.simple_query("RESET SESSION AUTHORIZATION").await?;
        lease.simple_query("RESET ROLE").await?;
        lease.simple_query(question).await
    };
    let results = asked.await.ok()?;
    lease.broken = false;
    lease.dirty = true;
    Some(results.into_iter().flat_map(|result| result.rows).collect())
}

/// The version slot that all answers of all databases depend on.
const EVERYBODYS: u32 = 0;
/// A server that was told to stop a statement does so in this time, or the connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);
const EMBEDDED_PATIENCE: Duration = Duration::from_secs(600);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);
