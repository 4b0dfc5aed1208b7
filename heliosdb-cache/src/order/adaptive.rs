//! The default: the rule that has saved the most lately.

use std::sync::Arc;

use super::Order;

use super::duel::{Contest, FIRST_RULE, RULES, VALUE_RULE};
use super::history::{Ghosts, Sketch};
use super::ranking::{Arrival, Log, Ranking, Rule, short};

/// One ranking under a rule that may change, and what it takes to choose the rule.
#[derive(Debug)]
pub struct Adaptive {
    ranking: Ranking,
    sketch: Sketch,
    ghosts: Ghosts,
    /// None if the rule is fixed.
    contest: Option<Arc<Contest>>,
    rule: usize,
    /// Insertions until now.
    now: u32,
    bytes: usize,
    /// Of the entries, in bytes and in microseconds.
    mean_weight: f32,
    mean_cost: f32,
    /// The number of entries that fit was seen, and need not be guessed from their weight.
    is_full: bool,
    /// Of the values that came until now.
    values: Option<(Log, Log)>,
    /// What sketch, ghosts and miniatures were last made for.
    sized_for: usize,
    recent: Recent,
}

/// Favourites of the sample: what was asked for just now is there whatever the rule, and asking all miniatures would tell
/// nothing. One key may be a tenth of all requests.
#[derive(Debug, Default)]
struct Recent([(u32, u32); 4]);

impl Recent {
    /// False if the same was asked for before less than one insertion into the sample ago.
    fn is_news(&mut self, hash: u32, now: u32, entries: usize) -> bool {
        let recent = &mut self.0[hash as usize & 3];
        let (last, at) = *recent;
        let is_news = last != hash || now.wrapping_sub(at) as usize > entries / 1024;
        if is_news {
            *recent = (hash, now);
        }
        is_news
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self::new(Arc::new(Contest::new(1)))
    }
}

impl Order for Adaptive {
    fn insert(&mut self, place: u32, hash: u64, weight: u32, cost: f32) {
        let hash = short(hash);
        self.now = self.now.wrapping_add(1);
        if !self.is_full {
            self.guess_capacity(weight);
        }
        let age = self.ghosts.age(hash, self.now);
        if age.is_some() {
            self.ghosts.remove(hash);
        }
        let arrival = Arrival {
            hash,
            weight: Log::of(weight.max(1) as f32),
            value: Log::of(self.known_cost(cost) / weight.max(1) as f32),
            age,
            now: self.now,
        };
        self.prefer_value(arrival.value);
        self.follow();
        self.sketch.grow(self.ranking.len() + 1);
        self.ranking.insert(place, arrival, &self.sketch);
        if let Some(contest) = self.contest_of(hash) {
            contest.insert(arrival, false);
        }
    }

    fn hit(&mut self, place: u32) {
        let (hash, used) = (self.ranking.hash(place), self.ranking.used(place));
        if self.ranking.hit(place, self.now) {
            self.sketch.add(hash);
        }
        if self.contest_of(hash).is_some()
            && self.recent.is_news(hash, self.now, self.ranking.len())
            && let Some(contest) = &self.contest
        {
            contest.request(hash, true);
            let arrival = Arrival {
                hash,
                weight: self.ranking.weight(place),
                value: self.ranking.value(place),
                age: Some(self.now.wrapping_sub(used)),
                now: self.now,
            };
            // A miniature that doesn't have the entry would have fetched it.
            contest.insert(arrival, true);
        }
        self.follow();
    }

    fn miss(&mut self, hash: u64) {
        let hash = short(hash);
        self.sketch.add(hash);
        if let Some(contest) = self.contest_of(hash) {
            contest.request(hash, false);
        }
        self.follow();
    }

    fn remove(&mut self, place: u32) {
        let hash = self.ranking.hash(place);
        self.ranking.remove(place);
        if let Some(contest) = self.contest_of(hash) {
            contest.remove(hash);
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let place = self.ranking.evict(self.now, &self.sketch)?;
        let (hash, used) = (self.ranking.hash(place), self.ranking.used(place));
        self.ghosts.insert(hash, used, self.now);
        self.is_full = true;
        self.resize(self.ranking.len());
        Some(place)
    }

    fn set_capacity(&mut self, bytes: usize) {
        let entries = self.ranking.len() as u64 * bytes as u64 / self.bytes.max(1) as u64;
        if self.is_full && bytes != self.bytes {
            // The next eviction tells it exactly.
            self.bytes = bytes;
            self.sized_for = 0;
            self.resize(usize::try_from(entries).unwrap_or(usize::MAX));
        }
        self.bytes = bytes;
    }

    fn len(&self) -> usize {
        self.ranking.len()
    }
}

impl Adaptive {
    /// One shard's part of a cache.
    #[must_use]
    pub fn new(contest: Arc<Contest>) -> Self {
        Self {
            contest: Some(contest),
            ..Self::fixed(RULES[FIRST_RULE])
        }
    }

    /// Under the same rule always.
    fn fixed(rule: Rule) -> Self {
        Self {
            ranking: Ranking::new(rule),
            sketch: Sketch::default(),
            ghosts: Ghosts::default(),
            contest: None,
            rule: FIRST_RULE,
            now: 0,
            bytes: 0,
            mean_weight: 0.0,
            mean_cost: 0.0,
            is_full: false,
            values: None,
            sized_for: 0,
            recent: Recent::default(),
        }
    }

    /// The most cost saved for each byte, whatever the load.
    #[must_use]
    pub fn cost_aware() -> Self {
        Self::fixed(Rule::Valued)
    }

    /// Begins with the ranking by value if values differ. Later it has to be the best.
    fn prefer_value(&mut self, value: Log) {
        let (least, most) = self.values.unwrap_or((value, value));
        let (least, most) = (least.min(value), most.max(value));
        self.values = Some((least, most));
        let differ = most.octaves_above(least) > 2.0;
        if let Some(contest) = &self.contest
            && differ
            && !self.is_full
            && contest.leader() == FIRST_RULE
        {
            contest.prefer(VALUE_RULE);
        }
    }

    /// The duel, if a hash is in its sample.
    fn contest_of(&self, hash: u32) -> Option<&Contest> {
        let contest = self.contest.as_deref()?;
        contest.is_sampled(hash).then_some(contest)
    }

    /// Goes by the rule in force.
    fn follow(&mut self) {
        let rule = self.contest.as_ref().map(|contest| contest.leader());
        if let Some(rule) = rule
            && rule != self.rule
        {
            self.rule = rule;
            self.ranking.set_rule(RULES[rule]);
        }
    }

    /// `cost`, or the mean of the others if it is not known.
    fn known_cost(&mut self, cost: f32) -> f32 {
        /// The mean is of about so many entries.
        const ENTRIES: f32 = 256.0;
        let is_known = cost.is_finite() && cost > 0.0;
        match (is_known, self.mean_cost > 0.0) {
            (true, true) => self.mean_cost += (cost - self.mean_cost) / ENTRIES,
            (true, false) => self.mean_cost = cost,
            (false, true) => return self.mean_cost,
            (false, false) => return 1.0,
        }
        cost
    }

    fn guess_capacity(&mut self, weight: u32) {
        /// The mean is of about so many entries.
        const ENTRIES: f32 = 64.0;
        let weight = weight.max(1) as f32;
        if self.mean_weight == 0.0 {
            self.mean_weight = weight;
        }
        self.mean_weight += (weight - self.mean_weight) / ENTRIES;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturates"
        )]
        self.resize((self.bytes as f32 / self.mean_weight) as usize);
    }

    /// `entries` fit.
    fn resize(&mut self, entries: usize) {
        let entries = entries.max(1);
        self.ranking.resize(entries);
        // Not for every entry more or less, where they differ in weight.
        if entries.abs_diff(self.sized_for) > self.sized_for / 64 {
            self.sized_for = entries;
            self.sketch.set_capacity(entries);
            if self.is_full {
                self.sketch.grow(entries);
            }
            if let Some(contest) = &self.contest {
                self.ghosts.resize(entries);
                contest.resize(entries, self.bytes);
            }
        }
    }
}
