//! What is proved about the stream: pure, and told the time by its caller.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Instant;

use heliosdb_network::postgres::replication::Lsn;

/// Questions that await their proof, at most: more are only asked while the server is stuck.
const QUESTIONS_MAX: usize = 64;

/// Up to when everything is known.
///
/// The server was asked for the end of its log at some time; once the stream has been decoded up to there, everything
/// that was committed before that time has been seen.
#[derive(Debug)]
pub(super) struct Proof {
    /// When the server was asked, and the end of its log then. Both grow.
    questions: VecDeque<(Instant, Lsn)>,
    decoded: Lsn,
    wal_block: u64,
}

/// The longest header of a page of the log, in bytes.
const PAGE_HEADER_MAX: u64 = 40;

impl Proof {
    /// `wal_block` is the size of a page of the log.
    pub(super) fn new(wal_block: u64) -> Self {
        Self {
            questions: VecDeque::new(),
            decoded: Lsn(0),
            wal_block: wal_block.max(1),
        }
    }

    /// The server was asked at `asked_at`, and said that the next record would be written at `end`. Returns up to where
    /// the log has to be decoded for everything before that to be known.
    pub(super) fn asked(&mut self, asked_at: Instant, end: Lsn) -> Lsn {
        // Where the last record fills its page, the next one lies behind a page header, which nobody decodes.
        let in_page = end.0 % self.wal_block;
        let end = if in_page <= PAGE_HEADER_MAX {
            Lsn(end.0 - in_page)
        } else {
            end
        };
        if self.questions.len() >= QUESTIONS_MAX {
            self.questions.pop_back();
        }
        self.questions.push_back((asked_at, end));
        end
    }

    /// Every transaction whose commit lies before `end` has been received.
    pub(super) fn decoded(&mut self, end: Lsn) {
        self.decoded = self.decoded.max(end);
    }

    /// Up to where every transaction has been received.
    pub(super) fn position(&self) -> Lsn {
        self.decoded
    }

    /// The latest time before which everything is known, if that is news.
    pub(super) fn proved(&mut self) -> Option<Instant> {
        let mut proved = None;
        while let Some((asked_at, end)) = self.questions.front()
            && *end <= self.decoded
        {
            proved = Some(*asked_at);
            self.questions.pop_front();
        }
        proved
    }

    /// Since when a question awaits its proof.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.questions.front().map(|(asked_at, _)| *asked_at)
    }
}

/// `pg_current_snapshot()`: which transactions have ended, as all others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Those from here on have not.
    xmax: u64,
    /// Nor have these.
    running: Vec<u64>,
}

/// Transactions that were writing when the slot was made.
///
/// One of them may have written its commit record before the slot's beginning, and not be visible yet: then the stream
/// will never show it, and answers that were computed before it became visible lack it.
#[derive(Debug)]
pub(super) struct Early {
    /// They have smaller ids.
    limit: u64,
    /// As of the last look.
    running: Vec<u64>,
}

impl Early {
    /// Those of the snapshot that have smaller ids than `limit`, which was taken after the slot was made and before the
    /// snapshot.
    pub(super) fn new(limit: u64, snapshot: &Snapshot) -> Self {
        Self {
            limit,
            running: snapshot.running_before(limit),
        }
    }

    /// True if one of them has ended since the last look.
    pub(super) fn has_fewer(&mut self, snapshot: &Snapshot) -> bool {
        let running = snapshot.running_before(self.limit);
        let has_fewer = running != self.running;
        self.running = running;
        has_fewer
    }

    /// True if all have ended.
    pub(super) fn is_over(&self) -> bool {
        self.running.is_empty()
    }
}

/// Without the epoch.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the epoch is what is to go"
)]
fn low(id: u64) -> u32 {
    id as u32
}

impl Snapshot {
    /// True if the transaction's changes can't be seen yet. Its id is given without the epoch, as the stream has it.
    pub(super) fn is_running(&self, xid: u32) -> bool {
        // Ids go round: which of two is later is told by the shorter way.
        let is_future = xid.wrapping_sub(low(self.xmax)) <= u32::MAX / 2;
        is_future || self.running.iter().any(|id| low(*id) == xid)
    }

    /// The transactions before `limit` that have not ended.
    fn running_before(&self, limit: u64) -> Vec<u64> {
        let mut running: Vec<u64> = self.running.clone();
        running.retain(|id| *id < limit);
        running
    }
}

/// As the server prints it: `xmin:xmax:id,id`.
impl FromStr for Snapshot {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(());
        let xmin: u64 = next()?.parse().map_err(drop)?;
        let xmax: u64 = next()?.parse().map_err(drop)?;
        let running = next()?
            .split(',')
            .filter(|id| !id.is_empty())
            .map(|id| id.parse().map_err(drop))
            .collect::<Result<_, ()>>()?;
        (xmin <= xmax).then_some(Self { xmax, running }).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_question_is_proved_once_the_stream_has_come_so_far() {
        let mut proof = Proof::new(8192);
        let begin = Instant::now();
        let later = begin + Duration::from_secs(1);
        proof.asked(begin, Lsn(1000));
        proof.asked(later, Lsn(2000));
        proof.decoded(Lsn(999));
        assert_eq!(proof.proved(), None);
        assert_eq!(proof.waiting_since(), Some(begin));
        proof.decoded(Lsn(1999));
        assert_eq!(proof.proved(), Some(begin));
        assert_eq!(proof.proved(), None);
        // A server that says less than before takes nothing back.
        proof.decoded(Lsn(1));
        assert_eq!(proof.position(), Lsn(1999));
        proof.decoded(Lsn(2000));
        assert_eq!((proof.proved(), proof.waiting_since()), (Some(later), None));
    }

    #[test]
    fn a_log_that_ends_with_its_page_is_decoded_up_to_the_end_of_the_page() {
        let mut proof = Proof::new(8192);
        let now = Instant::now();
        proof.asked(now, Lsn(3 * 8192 + 24));
        proof.decoded(Lsn(3 * 8192));
        assert_eq!(proof.proved(), Some(now));
        // With larger pages, that is the middle of one.
        let mut proof = Proof::new(16384);
        proof.asked(now, Lsn(3 * 8192 + 24));
        proof.decoded(Lsn(3 * 8192));
        assert_eq!(proof.proved(), None);
    }

    #[test]
    fn questions_to_a_server_that_is_stuck_are_bounded_and_none_is_proved_too_early() {
        let mut proof = Proof::new(8192);
        let begin = Instant::now();
        for n in 1..1000_u64 {
            proof.asked(begin + Duration::from_secs(n), Lsn(n * 100));
        }
        assert!(proof.questions.len() <= QUESTIONS_MAX);
        proof.decoded(Lsn(150));
        assert_eq!(proof.proved(), Some(begin + Duration::from_secs(1)));
        proof.decoded(Lsn(99_900));
        assert_eq!(proof.proved(), Some(begin + Duration::from_secs(999)));
    }

    #[test]
    fn a_snapshot_tells_what_has_ended() {
        let snapshot: Snapshot = "700:705:700,703".parse().expect("valid");
        let running: Vec<u32> = (699..708).filter(|id| snapshot.is_running(*id)).collect();
        assert_eq!(running, [700, 703, 705, 706, 707]);
        assert_eq!(snapshot.running_before(703), [700]);
        assert!("5:5:".parse::<Snapshot>().is_ok());
        for text in ["", "1", "1:2", "3:2:", "1:2:x", "a:b:"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_of_each_transaction_from_before_the_slot_is_told_once() {
        let at = |text: &str| text.parse::<Snapshot>().expect("valid");
        let mut early = Early::new(704, &at("700:706:700,703,705"));
        assert!(!early.has_fewer(&at("700:708:700,703")));
        // Later ones are of no concern.
        assert!(!early.has_fewer(&at("700:708:700,703,707")));
        assert!(early.has_fewer(&at("700:709:700,707")) && !early.is_over());
        assert!(!early.has_fewer(&at("700:709:700,707")));
        assert!(early.has_fewer(&at("707:709:707")) && early.is_over());
    }

    #[test]
    fn ids_that_have_gone_round_are_compared_the_short_way() {
        let round = 1_u64 << 32;
        let text = format!("{}:{}:{}", round - 2, round + 3, round - 1);
        let snapshot: Snapshot = text.parse().expect("valid");
        assert!(snapshot.is_running(u32::MAX));
        assert!(!snapshot.is_running(u32::MAX - 1));
        assert!(!snapshot.is_running(2));
        assert!(snapshot.is_running(3));
    }
}
