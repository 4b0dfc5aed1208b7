//! Clients that take too long: over a statement, over a transaction, in one, or over nothing at all.
//!
//! No message costs a look at a clock or a timer. A session only leaves word of what it is at whenever it goes to sleep
//! ([`Pace`]); one task looks at all of them, at most twenty times in the shortest bound there is, and notes since when
//! each has been at the same ([`watch`]). So a client is never ended before its bound is over, and at the latest a tenth
//! of the shortest bound after it, or 10 ms where that is longer, or a second where that is shorter. The session has the
//! last word: what has ended or gone on meanwhile is no reason any more.

use std::collections::HashMap;
use std::sync::Weak;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::{Config, names};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;

use super::{ClientInfo, ClientKind, Counters, Signal};

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// A statement on the server.
    Query,
    /// A transaction.
    Transaction,
    /// The client, in a transaction.
    IdleTransaction,
    /// The client, outside of one.
    Idle,
    /// The client, at taking what the server has for it.
    Write,
}

impl Timeout {
    const ALL: [Self; 5] = [
        Self::Query,
        Self::Transaction,
        Self::IdleTransaction,
        Self::Idle,
        Self::Write,
    ];

    /// What the client is told, with the codes that PostgreSQL has for it.
    pub(crate) fn error(self) -> ClientError {
        let (sqlstate, what, key) = match self {
            Self::Query => ("57014", "query timeout", "query_timeout"),
            Self::Transaction => ("25P04", "transaction timeout", "transaction_timeout"),
            Self::IdleTransaction => (
                "25P03",
                "idle-in-transaction timeout",
                "idle_transaction_timeout",
            ),
            Self::Idle => ("57P05", "idle-session timeout", "idle_timeout"),
            Self::Write => ("08006", "write timeout", "write_timeout"),
        };
        let message = format!("terminating connection due to {what}");
        let known_as = match self {
            Self::Query | Self::Transaction | Self::Write => what,
            Self::IdleTransaction => "idle transaction timeout",
            Self::Idle => "client_idle_timeout",
        };
        let general = names::key(&format!("clients.{key}"));
        let own = names::key(&format!("users.NAME.{key}"));
        let place = names::place();
        ClientError::new(ErrorKind::Client, sqlstate, message)
            .hint(format!(
                "Raise {general} in {place}, or {own} where it is set for the user."
            ))
            .known_as(known_as)
            .fatal()
    }
}

/// What a session is at. Written by the session alone, but for `due` and `as_of`.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// A [`Phase`] below, the number of times that the server became ready above.
    state: AtomicU64,
    /// A [`Timeout`] by its place in [`Timeout::ALL`].
    due: AtomicU8,
    /// The mark of what took too long.
    as_of: AtomicU64,
}

/// What a session is at, when it goes to sleep.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Phase(u64);

impl Phase {
    /// The server owes a reply.
    pub(crate) const BUSY: Self = Self(1);
    /// A transaction is open, on the server or here.
    pub(crate) const IN_TRANSACTION: Self = Self(2);
    /// It waits for something that helios has to get first.
    pub(crate) const AT_WORK: Self = Self(4);
    /// The client does not take what a server connection has for it.
    pub(crate) const STUCK: Self = Self(8);

    pub(crate) fn with(self, other: Self, is_so: bool) -> Self {
        Self(self.0 | if is_so { other.0 } else { 0 })
    }
}

const TURN: u64 = 16;

impl Pace {
    /// Notes what the session is at.
    pub(crate) fn set(&self, phase: Phase) {
        let state = self.state.load(Ordering::Relaxed);
        self.state
            .store(state & !(TURN - 1) | phase.0, Ordering::Relaxed);
    }

    /// Notes that the server is ready: what comes next is another statement.
    pub(crate) fn end_turn(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state
            .store(state.wrapping_add(TURN), Ordering::Relaxed);
    }

    /// What is the same as long as the client is at one and the same thing. `None` if it is not at that at all.
    fn mark(&self, timeout: Timeout, counters: &Counters) -> Option<u64> {
        let state = self.state.load(Ordering::Relaxed);
        let is = |phase: Phase| state & phase.0 != 0;
        let is_idle = !is(Phase::BUSY) && !is(Phase::AT_WORK);
        let (applies, mark) = match timeout {
            Timeout::Query => (is(Phase::BUSY), state / TURN),
            Timeout::Transaction => (
                is(Phase::BUSY) || is(Phase::IN_TRANSACTION),
                counters.transactions.load(Ordering::Relaxed),
            ),
            Timeout::IdleTransaction => (
                is_idle && is(Phase::IN_TRANSACTION),
                counters.bytes_received.load(Ordering::Relaxed),
            ),
            Timeout::Idle => (
                is_idle && !is(Phase::IN_TRANSACTION),
                counters.bytes_received.load(Ordering::Relaxed),
            ),
            Timeout::Write => (
                is(Phase::STUCK),
                counters.bytes_sent.load(Ordering::Relaxed),
            ),
        };
        applies.then_some(mark)
    }

    /// What took too long, if it is still going on.
    pub(super) fn due(&self, counters: &Counters) -> Option<Timeout> {
        let due = usize::from(self.due.load(Ordering::Acquire));
        let timeout = *Timeout::ALL.get(due)?;
        let mark = self.mark(timeout, counters)?;
        (mark == self.as_of.load(Ordering::Relaxed)).then_some(timeout)
    }
}

/// How long each of [`Timeout::ALL`] may take.
type Bounds = [Option<Duration>; Timeout::ALL.len()];

fn bounds_of(config: &Config, client: &ClientInfo) -> Bounds {
    let clients = &config.clients;
    let own = config.users.get(&client.user);
    let query = own.and_then(|own| own.query_timeout);
    let transaction = own.and_then(|own| own.transaction_timeout);
    let idle_transaction = own.and_then(|own| own.idle_transaction_timeout);
    let idle = own.and_then(|own| own.idle_timeout);
    let of_statements = [
        query.unwrap_or(clients.query_timeout).get(),
        transaction.unwrap_or(clients.transaction_timeout).get(),
        idle_transaction
            .unwrap_or(clients.idle_transaction_timeout)
            .get(),
    ];
    let [query, transaction, idle_transaction] = of_statements;
    match client.kind {
        ClientKind::Client => [
            query,
            transaction,
            idle_transaction,
            idle.unwrap_or(clients.idle_timeout).get(),
            clients.write_timeout.get(),
        ],
        // Whether it is needed is known to the connection that it serves.
        ClientKind::Lane => [query, transaction, idle_transaction, None, None],
        ClientKind::Console | ClientKind::Hidb => [None; _],
    }
}

/// The shortest bound that the configuration knows.
fn shortest(config: &Config) -> Option<Duration> {
    let clients = &config.clients;
    let general = [
        clients.query_timeout,
        clients.transaction_timeout,
        clients.idle_transaction_timeout,
        clients.idle_timeout,
        clients.write_timeout,
    ];
    let own = config.users.values().flat_map(|own| {
        [
            own.query_timeout,
            own.transaction_timeout,
            own.idle_transaction_timeout,
            own.idle_timeout,
        ]
    });
    let all = general.into_iter().chain(own.flatten());
    all.filter_map(crate::config::Bound::get).min()
}

/// Since when a client has been at what it is at, for each of [`Timeout::ALL`].
#[derive(Debug, Default)]
struct Seen([Option<(u64, Instant)>; Timeout::ALL.len()]);

impl Seen {
    /// What has been going on for longer than it may, with its mark.
    fn look(
        &mut self,
        pace: &Pace,
        counters: &Counters,
        bounds: &Bounds,
        now: Instant,
    ) -> Option<(usize, u64)> {
        let mut overdue = None;
        for (at, timeout) in Timeout::ALL.into_iter().enumerate() {
            let mark = bounds[at].and_then(|bound| Some((bound, pace.mark(timeout, counters)?)));
            let Some((bound, mark)) = mark else {
                self.0[at] = None;
                continue;
            };
            match self.0[at] {
                Some((known, since)) if known == mark => {
                    if now.saturating_duration_since(since) >= bound {
                        overdue = overdue.or(Some((at, mark)));
                    }
                }
                _ => self.0[at] = Some((mark, now)),
            }
        }
        overdue
    }
}

/// Looks at every client now and then, as long as there is a gateway.
pub(crate) async fn watch(gateway: Weak<Gateway>) {
    let mut seen: HashMap<u64, Seen> = HashMap::new();
    let mut interval = INTERVAL_MAX;
    loop {
        tokio::time::sleep(interval).await;
        let Some(gateway) = gateway.upgrade() else {
            return;
        };
        let config = gateway.config();
        let Some(shortest) = shortest(&config) else {
            seen = HashMap::new();
            interval = INTERVAL_MAX;
            continue;
        };
        interval = (shortest / 20).clamp(INTERVAL_MIN, INTERVAL_MAX);
        let now = Instant::now();
        let before = std::mem::take(&mut seen);
        let mut before = before;
        for client in gateway.clients.list() {
            let bounds = bounds_of(&config, &client);
            let mut known = before.remove(&client.id).unwrap_or_default();
            if let Some((at, mark)) = known.look(&client.pace, &client.counters, &bounds, now) {
                client.pace.as_of.store(mark, Ordering::Relaxed);
                let at = u8::try_from(at).unwrap_or(u8::MAX);
                client.pace.due.store(at, Ordering::Release);
                client.signal(Signal::Timeout);
            }
            seen.insert(client.id, known);
        }
    }
}

const INTERVAL_MIN: Duration = Duration::from_millis(5);
const INTERVAL_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    struct World {
        pace: Pace,
        counters: Counters,
        seen: Seen,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            Self {
                pace: Pace::default(),
                counters: Counters::default(),
                seen: Seen::default(),
                start: Instant::now(),
            }
        }

        /// What is overdue at that second.
        fn look(&mut self, second: u64) -> Option<Timeout> {
            let now = self.start + Duration::from_secs(second);
            let bounds = [Some(BOUND); _];
            let (at, mark) = self.seen.look(&self.pace, &self.counters, &bounds, now)?;
            self.pace.as_of.store(mark, Ordering::Relaxed);
            self.pace
                .due
                .store(u8::try_from(at).expect("few"), Ordering::Relaxed);
            Some(Timeout::ALL[at])
        }

        fn due(&self) -> Option<Timeout> {
            self.pace.due(&self.counters)
        }
    }

    #[test]
    fn who_does_nothing_is_idle_and_who_asks_something_is_not() {
        let mut world = World::new();
        assert_eq!(world.look(0), None);
        assert_eq!(world.look(9), None);
        Counters::add(&world.counters.bytes_received, 5);
        assert_eq!(world.look(10), None, "it asked something meanwhile");
        assert_eq!(world.look(20), Some(Timeout::Idle));
        assert_eq!(world.due(), Some(Timeout::Idle));
        Counters::add(&world.counters.bytes_received, 5);
        assert_eq!(world.due(), None, "it asked something at the last moment");
    }

    #[test]
    fn statements_in_a_row_are_not_one_statement() {
        let mut world = World::new();
        world.pace.set(Phase::BUSY);
        assert_eq!(world.look(0), None);
        world.pace.end_turn();
        assert_eq!(world.look(9), None);
        assert_eq!(
            world.look(18),
            Some(Timeout::Transaction),
            "though one transaction"
        );
        Counters::add(&world.counters.transactions, 1);
        assert_eq!(world.due(), None);
        assert_eq!(world.look(19), Some(Timeout::Query));
        world.pace.end_turn();
        assert_eq!(world.due(), None, "the server was ready at the last moment");
    }

    #[test]
    fn a_transaction_is_idle_where_neither_server_nor_helios_works() {
        let mut world = World::new();
        world.pace.set(Phase::IN_TRANSACTION);
        world.look(0);
        world
            .pace
            .set(Phase::IN_TRANSACTION.with(Phase::AT_WORK, true));
        assert_eq!(world.look(9), None);
        Counters::add(&world.counters.transactions, 1);
        world.pace.set(Phase::IN_TRANSACTION);
        assert_eq!(world.look(11), None);
        assert_eq!(world.look(20), None);
        Counters::add(&world.counters.transactions, 1);
        assert_eq!(world.look(21), Some(Timeout::IdleTransaction));
    }
}
