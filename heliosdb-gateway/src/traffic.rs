//! What went through each database: totals since the start, and averages over the last period or two.
//!
//! One task takes a sample every `stats_period`; averages are over the time since the sample before the last one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clients::Counters;
use crate::gateway::Gateway;

/// How many counts there are of a database.
pub(crate) const COUNTS: usize = 12;

/// The counts of one database, in the order in which the console prints them: server assignments, transactions,
/// statements, bytes received and sent, microseconds in transactions, in statements and waiting, named statements of
/// clients and those prepared on servers for them, their uses, logins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals(pub(crate) [u64; COUNTS]);

/// Which counts there are.
const ASSIGNMENTS: usize = 0;
const TRANSACTIONS: usize = 1;
const QUERIES: usize = 2;
const TRANSACTION_US: usize = 5;
const QUERY_US: usize = 6;
const WAIT_US: usize = 7;

impl Totals {
    pub(crate) fn of(counters: &Counters) -> Self {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let server_parses = get(&counters.prepared_misses);
        Self([
            get(&counters.assignments),
            get(&counters.transactions),
            get(&counters.queries),
            get(&counters.bytes_received),
            get(&counters.bytes_sent),
            get(&counters.transaction_us),
            get(&counters.query_us),
            get(&counters.wait_us),
            get(&counters.parses),
            server_parses,
            get(&counters.prepared_hits) + server_parses,
            get(&counters.logins),
        ])
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(other.0) {
            *own = own.wrapping_add(other);
        }
    }

    /// What happened since `before`: counts by second, and times by what took them.
    pub(crate) fn averages_since(&self, before: &Self, elapsed: Duration) -> Self {
        let mut since = [0; COUNTS];
        for (at, since) in since.iter_mut().enumerate() {
            *since = self.0[at].saturating_sub(before.0[at]);
        }
        let micros = elapsed.as_micros().max(1);
        let per_second =
            |count: u64| u64::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let mut averages = since.map(per_second);
        for (time, count) in [
            (TRANSACTION_US, TRANSACTIONS),
            (QUERY_US, QUERIES),
            (WAIT_US, ASSIGNMENTS),
        ] {
            averages[time] = since[time].checked_div(since[count]).unwrap_or(0);
        }
        Self(averages)
    }

    fn line(&self) -> String {
        let [
            _,
            transactions,
            queries,
            received,
            sent,
            transaction_us,
            query_us,
            wait_us,
            client_parses,
            server_parses,
            binds,
            logins,
        ] = self.0;
        format!(
            "stats: {transactions} xacts/s, {queries} queries/s, {client_parses} client parses/s, {server_parses} server \
             parses/s, {binds} binds/s, {logins} client logins/s, in {received} B/s, out {sent} B/s, xact {transaction_us} us, \
             query {query_us} us, wait {wait_us} us"
        )
    }
}

/// Two samples.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Why a lock: taken once a period and by the console.
    samples: Mutex<[Sample; 2]>,
}

#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    by_database: BTreeMap<String, Totals>,
}

impl Traffic {
    pub(crate) fn new(now: Instant) -> Self {
        let empty = Sample {
            at: now,
            by_database: BTreeMap::new(),
        };
        Self {
            samples: Mutex::new([empty.clone(), empty]),
        }
    }

    fn note(&self, at: Instant, by_database: BTreeMap<String, Totals>) {
        let mut samples = self.samples.lock();
        samples.swap(0, 1);
        samples[1] = Sample { at, by_database };
    }

    /// Totals and averages by database.
    pub(crate) fn rates(&self, gateway: &Gateway) -> Rates {
        let totals = totals(gateway);
        let samples = self.samples.lock();
        let before = &samples[0];
        let elapsed = before.at.elapsed();
        totals
            .into_iter()
            .map(|(name, totals)| {
                let then = before.by_database.get(&name).copied().unwrap_or_default();
                let averages = totals.averages_since(&then, elapsed);
                (name, totals, averages)
            })
            .collect()
    }

    /// The averages over the last period, in the words of PgBouncer's log.
    fn line(&self) -> String {
        let [before, now] = self.samples.lock().clone();
        let sum = |sample: &Sample| {
            let mut sum = Totals::default();
            sample.by_database.values().for_each(|one| sum.add(one));
            sum
        };
        let elapsed = now.at.saturating_duration_since(before.at);
        sum(&now).averages_since(&sum(&before), elapsed).line()
    }

    /// Those of all databases together.
    pub(crate) fn rates_of_all(&self, gateway: &Gateway) -> (Totals, Totals) {
        let (mut now, mut then) = (Totals::default(), Totals::default());
        for totals in totals(gateway).values() {
            now.add(totals);
        }
        let samples = self.samples.lock();
        for totals in samples[0].by_database.values() {
            then.add(totals);
        }
        (now, now.averages_since(&then, samples[0].at.elapsed()))
    }
}

/// Name, totals and averages of databases.
pub(crate) type Rates = Vec<(String, Totals, Totals)>;

fn totals(gateway: &Gateway) -> BTreeMap<String, Totals> {
    let counts = gateway.clients.by_database();
    counts
        .iter()
        .map(|(name, counters)| (name.clone(), Totals::of(counters)))
        .collect()
}

/// Takes the samples, as long as there is a gateway.
pub(crate) async fn run(gateway: Weak<Gateway>) {
    loop {
        let Some(period) = gateway
            .upgrade()
            .map(|gateway| gateway.config().stats_period)
        else {
            return;
        };
        tokio::time::sleep(period).await;
        if let Some(gateway) = gateway.upgrade() {
            sample(&gateway);
            if gateway.config().log.stats {
                tracing::info!("{}", gateway.traffic.line());
            }
        }
    }
}

fn sample(gateway: &Arc<Gateway>) {
    gateway.traffic.note(Instant::now(), totals(gateway));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_in_the_log_is_pgbouncers() {
        let mut averages = Totals::default();
        let numbered = averages.0.iter_mut().zip(0..);
        numbered.for_each(|(average, number)| *average = number);
        assert_eq!(
            averages.line(),
            "stats: 1 xacts/s, 2 queries/s, 8 client parses/s, 9 server parses/s, 10 binds/s, 11 client logins/s, \
             in 3 B/s, out 4 B/s, xact 5 us, query 6 us, wait 7 us"
        );
    }

    #[test]
    fn counts_are_by_second_and_times_by_what_took_them() {
        let before = Totals([1; COUNTS]);
        let mut now = before;
        now.0[ASSIGNMENTS] += 4;
        now.0[QUERIES] += 10;
        now.0[QUERY_US] += 50;
        now.0[WAIT_US] += 8;
        now.0[TRANSACTION_US] += 7;
        let averages = now.averages_since(&before, Duration::from_secs(2)).0;
        assert_eq!((averages[ASSIGNMENTS], averages[QUERIES]), (2, 5));
        assert_eq!((averages[QUERY_US], averages[WAIT_US]), (5, 2));
        // No transaction has ended.
        assert_eq!(averages[TRANSACTION_US], 0);
    }
}
