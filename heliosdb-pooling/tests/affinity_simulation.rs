//! Affinity beside a choice that knows nothing: which share of the executions finds its statement prepared, in a simulated
//! pool whose connections keep a few statements each, the least recently used given up first.
//!
//! The table of all rules: `cargo test --release -p heliosdb-pooling --test affinity_simulation -- --ignored --nocapture`.

use std::fmt;

use heliosdb_pooling::StatementAffinity;

/// Statements that a connection keeps.
const KEPT: usize = 32;

/// How one of the idle connections is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Any of them.
    Random,
    /// That was used last, as a pool does that keeps its caches hot.
    Hottest,
    /// One that has the statement; where there is none, by another rule.
    Affinity(Otherwise),
}

/// Which connection learns a statement that no idle one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Otherwise {
    Hottest,
    Coldest,
    /// By a hash of statement and connection (rendezvous hashing).
    Hashed,
    /// With the fewest statements.
    Emptiest,
    /// The hottest that has room for one more, else the coldest: what the pool of `heliosdb-network` does.
    Room,
}

const RULES: [Rule; 7] = [
    Rule::Random,
    Rule::Hottest,
    Rule::Affinity(Otherwise::Hottest),
    Rule::Affinity(Otherwise::Hashed),
    Rule::Affinity(Otherwise::Emptiest),
    Rule::Affinity(Otherwise::Coldest),
    Rule::Affinity(Otherwise::Room),
];
const RANDOM: Rule = Rule::Random;
const AFFINITY: Rule = Rule::Affinity(Otherwise::Room);

/// What is asked of a pool.
#[derive(Debug, Clone, Copy)]
struct Load {
    connections: usize,
    /// Clients that always execute something, each a statement by chance: so many connections are in use, but one, when a
    /// connection is chosen.
    clients: usize,
    statements: usize,
    /// Exponent of Zipf's law; 0: all statements are as popular.
    skew: f64,
}

#[derive(Debug, Default)]
struct Connection {
    /// With the time of their last use. The order says nothing.
    statements: Vec<(usize, u64)>,
}

struct Simulation {
    load: Load,
    rule: Rule,
    random: u64,
    popularity: Vec<f64>,
    connections: Vec<Connection>,
    affinities: Vec<StatementAffinity>,
    /// The hottest is the last.
    idle: Vec<usize>,
    busy: Vec<usize>,
    now: u64,
}

impl Simulation {
    fn new(load: Load, rule: Rule) -> Self {
        let popularity = (1..=load.statements).scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-load.skew);
            Some(*sum)
        });
        Self {
            load,
            rule,
            random: 0x9e37_79b9_7f4a_7c15,
            popularity: popularity.collect(),
            connections: (0..load.connections)
                .map(|_| Connection::default())
                .collect(),
            affinities: (0..load.statements)
                .map(|_| StatementAffinity::default())
                .collect(),
            idle: (0..load.connections).collect(),
            busy: Vec::new(),
            now: 0,
        }
    }

    /// The share of executions that find their statement prepared, once the pool is warm.
    fn share(load: Load, rule: Rule) -> f64 {
        let mut simulation = Self::new(load, rule);
        let executions = (10 * load.statements).max(5000);
        for _ in 0..executions {
            simulation.execute();
        }
        let found = (0..executions).filter(|_| simulation.execute()).count();
        found as f64 / executions as f64
    }

    /// Between 0 and 1, by xorshift.
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn any(&mut self, of: usize) -> usize {
        let at = self.uniform() * of as f64;
        (0..of).rev().find(|n| *n as f64 <= at).expect("of some")
    }

    /// One client after the other lets its connection go and executes something else. True if the statement was there.
    fn execute(&mut self) -> bool {
        if self.busy.len() == self.load.clients {
            let released = self.any(self.busy.len());
            let released = self.busy.swap_remove(released);
            self.idle.push(released);
        }
        let drawn = self.uniform() * self.popularity[self.popularity.len() - 1];
        let statement = self.popularity.partition_point(|sum| *sum < drawn);
        let at = self.choose(statement);
        let connection = self.idle.remove(at);
        self.busy.push(connection);
        self.run(connection, statement)
    }

    fn choose(&mut self, statement: usize) -> usize {
        let hottest = self.idle.len() - 1;
        let otherwise = match self.rule {
            Rule::Random => return self.any(self.idle.len()),
            Rule::Hottest => return hottest,
            Rule::Affinity(otherwise) => otherwise,
        };
        let preferred = self.affinities[statement].preferred_connections();
        let has_it = |at: &usize| preferred.contains(&(self.idle[*at] as u64));
        if let Some(at) = (0..=hottest).rev().find(has_it) {
            return at;
        }
        let kept = |at: &usize| self.connections[self.idle[*at]].statements.len();
        let hash = |at: &usize| {
            let mixed = (statement as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ (self.idle[*at] as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
            (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
        };
        let all = 0..=hottest;
        match otherwise {
            Otherwise::Hottest => hottest,
            Otherwise::Coldest => 0,
            Otherwise::Hashed => all.max_by_key(hash).expect("some are idle"),
            Otherwise::Emptiest => all.rev().min_by_key(kept).expect("some are idle"),
            Otherwise::Room => all.rev().find(|at| kept(at) < KEPT).unwrap_or(0),
        }
    }

    fn run(&mut self, connection: usize, statement: usize) -> bool {
        self.now += 1;
        let (id, now) = (connection as u64, self.now);
        let statements = &mut self.connections[connection].statements;
        if let Some((_, used)) = statements.iter_mut().find(|(known, _)| *known == statement) {
            *used = now;
            self.affinities[statement].record_execution(id);
            return true;
        }
        if statements.len() == KEPT {
            let oldest = (0..KEPT)
                .min_by_key(|at| statements[*at].1)
                .expect("it keeps some");
            let (given_up, _) = statements.swap_remove(oldest);
            self.affinities[given_up].forget_connection(id);
        }
        statements.push((statement, now));
        self.affinities[statement].record_prepared(id);
        false
    }
}

fn load(connections: usize, clients: usize, skew: f64) -> Load {
    Load {
        connections,
        clients,
        statements: 10 * KEPT,
        skew,
    }
}

/// Ten times as many statements as a connection keeps. A choice that knows nothing finds a tenth of them; affinity makes
/// one cache of all connections. That needs a place for each statement (ten connections at least), and is limited by how
/// often the connections that have a statement are in use.
#[test]
fn nine_of_ten_executions_find_their_statement_where_affinity_can_do_anything() {
    for (connections, clients, skew) in [
        (10, 1, 0.0),
        (12, 2, 0.8),
        (10, 2, 1.0),
        (20, 4, 0.0),
        (20, 8, 0.8),
        (20, 8, 1.0),
        (40, 10, 0.0),
    ] {
        let load = load(connections, clients, skew);
        let share = Simulation::share(load, AFFINITY);
        assert!(share >= 0.9, "{load:?}: {share}");
        // Uniform: a tenth is there. Skewed: what a connection keeps are the most popular ones, more or less.
        let random = Simulation::share(load, RANDOM);
        let expected = match skew {
            0.0 => 0.08..0.12,
            1.0 => 0.45..0.55,
            _ => 0.28..0.38,
        };
        assert!(expected.contains(&random), "{load:?}: {random}");
    }
}

#[test]
fn affinity_is_never_worse_than_chance() {
    for connections in [1, 4, 20] {
        for clients in [1, 8, 20] {
            for skew in [0.0, 1.0] {
                for times in [1, 10, 20] {
                    let load = Load {
                        statements: times * KEPT,
                        ..load(connections, clients.min(connections), skew)
                    };
                    let [affinity, random] =
                        [AFFINITY, RANDOM].map(|rule| Simulation::share(load, rule));
                    // Where all connections are in use there is nothing to choose: the same but for chance.
                    assert!(
                        affinity >= random - 0.03,
                        "{load:?}: {affinity} and {random}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_fits_on_the_connections_in_use_is_not_spread_over_more() {
    let load = Load {
        statements: KEPT,
        ..load(10, 1, 0.0)
    };
    let mut simulation = Simulation::new(load, AFFINITY);
    for _ in 0..1000 {
        simulation.execute();
    }
    let used = simulation
        .connections
        .iter()
        .filter(|connection| !connection.statements.is_empty());
    assert_eq!(used.count(), 1, "the others may be closed");
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affinity(otherwise) => write!(f, "affinity, else {otherwise:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

#[test]
#[ignore = "prints a table and asserts nothing"]
fn the_table_of_all_rules() {
    for connections in [10, 12, 20, 40] {
        for skew in [0.0, 0.8, 1.0] {
            println!("\n{connections} connections, 10 x {KEPT} statements, skew {skew}");
            println!("| rule | 1 client | 2 | 4 | 8 | 10 |");
            for rule in RULES {
                let shares = [1, 2, 4, 8, 10]
                    .map(|clients| Simulation::share(load(connections, clients, skew), rule));
                let shares = shares.map(|share| format!("{:.1} %", 100.0 * share));
                println!("| {rule} | {} |", shares.join(" | "));
            }
        }
    }
}
