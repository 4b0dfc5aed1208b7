//! Random clients that listen, notify, and end their transactions in every way hear through helios what they hear directly.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::support::Stack;
use crate::support::raw::{Wire, extended, query};

const CLIENTS: usize = 4;
const STEPS: usize = 120;
const CHANNELS: [&str; 3] = ["a", "b", "c"];

/// A step of a script: who says what, and whether by the extended protocol.
struct Said {
    client: usize,
    sql: String,
    is_extended: bool,
}

/// What is known of a client while a script is made.
#[derive(Clone, Default)]
struct State {
    listens: BTreeSet<&'static str>,
    transaction: Option<Transaction>,
}

#[derive(Clone, Default)]
struct Transaction {
    has_failed: bool,
    /// `None` is a savepoint.
    listens: Vec<Option<&'static str>>,
    /// What it tells, if it commits.
    told: Vec<(&'static str, String)>,
    /// Others' notifications since it began, by their payloads.
    meanwhile: Vec<(&'static str, String)>,
    listened_before: BTreeSet<&'static str>,
}

/// A script, and which payloads a client may hear or not: PostgreSQL tells a session that listens to something already
/// what was committed on another channel shortly before its LISTEN was.
struct Script {
    said: Vec<Said>,
    doubtful: BTreeMap<usize, BTreeSet<String>>,
}

impl Script {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mut script = Self {
            said: Vec::new(),
            doubtful: BTreeMap::new(),
        };
        let mut states = vec![State::default(); CLIENTS];
        for step in 0..STEPS {
            let client = random.usize(..CLIENTS);
            script.step(step, client, &mut states, random);
        }
        for (client, state) in states.iter().enumerate() {
            if state.transaction.is_some() {
                script.say(client, "ROLLBACK", false);
            }
        }
        for client in 0..CLIENTS {
            // By then everything was told.
            script.say(client, "SELECT pg_backend_pid() IS NULL", false);
        }
        script
    }

    fn say(&mut self, client: usize, sql: impl Into<String>, is_extended: bool) {
        self.said.push(Said {
            client,
            sql: sql.into(),
            is_extended,
        });
    }

    fn step(
        &mut self,
        step: usize,
        client: usize,
        states: &mut [State],
        random: &mut fastrand::Rng,
    ) {
        let channel = CHANNELS[random.usize(..CHANNELS.len())];
        let is_extended = random.bool();
        let state = &mut states[client];
        let can_change = state
            .transaction
            .as_ref()
            .is_none_or(|open| !open.has_failed);
        match random.u8(..16) {
            0..4 => {
                self.say(client, format!("LISTEN {channel}"), is_extended);
                match &mut state.transaction {
                    Some(open) if can_change => open.listens.push(Some(channel)),
                    Some(_) => {}
                    None => {
                        state.listens.insert(channel);
                    }
                }
            }
            4 => {
                // In a transaction it would have to be modelled in the order of the changes.
                if state.transaction.is_none() {
                    self.say(client, format!("UNLISTEN {channel}"), is_extended);
                    state.listens.remove(channel);
                }
            }
            5 => {
                if state.transaction.is_none() {
                    let sql = ["UNLISTEN *", "DISCARD ALL"][random.usize(..2)];
                    self.say(client, sql, is_extended);
                    state.listens.clear();
                }
            }
            6 | 7 => {
                if state.transaction.is_none() {
                    self.say(client, "BEGIN", is_extended);
                    state.transaction = Some(Transaction {
                        listened_before: state.listens.clone(),
                        ..Transaction::default()
                    });
                }
            }
            8 => {
                let committed = random.u8(..4) > 0;
                if state.transaction.is_some() {
                    self.say(
                        client,
                        if committed { "COMMIT" } else { "ROLLBACK" },
                        is_extended,
                    );
                    self.end(client, states, committed);
                }
            }
            9 => {
                if let Some(open) = state.transaction.as_mut().filter(|_| can_change) {
                    self.say(client, "SAVEPOINT s", is_extended);
                    open.listens.push(None);
                }
            }
            10 => {
                if let Some(open) = &mut state.transaction
                    && let Some(at) = open.listens.iter().rposition(Option::is_none)
                {
                    self.say(client, "ROLLBACK TO s", is_extended);
                    open.listens.truncate(at + 1);
                    open.has_failed = false;
                    // What it told since is modelled as doubtful to all.
                    let told = std::mem::take(&mut open.told);
                    for everybody in 0..CLIENTS {
                        let doubtful = self.doubtful.entry(everybody).or_default();
                        doubtful.extend(told.iter().map(|(_, payload)| payload.clone()));
                    }
                }
            }
            11 => {
                if state.transaction.is_some() {
                    self.say(client, "SELECT 1/0", is_extended);
                    if let Some(open) = &mut state.transaction {
                        open.has_failed = true;
                    }
                }
            }
            12 => self.say(client, "SELECT count(*) FROM t", is_extended),
            _ => {
                let payload = format!("{step}");
                let sql = if random.bool() {
                    format!("NOTIFY {channel}, '{payload}'")
                } else {
                    format!("SELECT pg_notify('{channel}', '{payload}')")
                };
                self.say(client, sql, is_extended);
                match &mut state.transaction {
                    Some(open) if can_change => open.told.push((channel, payload)),
                    Some(_) => {}
                    None => tell(client, channel, &payload, states),
                }
            }
        }
    }

    fn end(&mut self, client: usize, states: &mut [State], committed: bool) {
        let Some(open) = states[client].transaction.take() else {
            return;
        };
        if !committed || open.has_failed {
            return;
        }
        let new: BTreeSet<_> = open.listens.into_iter().flatten().collect();
        if !open.listened_before.is_empty() {
            let doubtful = self.doubtful.entry(client).or_default();
            for (channel, payload) in open.meanwhile {
                if new.contains(channel) && !open.listened_before.contains(channel) {
                    doubtful.insert(payload);
                }
            }
        }
        states[client].listens.extend(new);
        for (channel, payload) in open.told {
            tell(client, channel, &payload, states);
        }
    }
}

fn tell(by: usize, channel: &'static str, payload: &str, states: &mut [State]) {
    for (client, state) in states.iter_mut().enumerate() {
        if let Some(open) = state.transaction.as_mut().filter(|_| client != by) {
            open.meanwhile.push((channel, payload.to_owned()));
        }
    }
}

/// What each client heard, and what it was answered, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    heard: Vec<String>,
    answered: Vec<String>,
}

fn play(script: &Script, port: u16, database: &str) -> Vec<Outcome> {
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| (Wire::connect_known(port, database), Outcome::default()))
        .collect();
    for Said {
        client,
        sql,
        is_extended,
    } in &script.said
    {
        let ((wire, pid), outcome) = &mut clients[*client];
        if *is_extended {
            wire.send(&extended(sql, "", &[]));
        } else {
            wire.send(&[query(sql)]);
        }
        let mut answer = format!("{sql}:");
        for message in wire.messages() {
            let body = &message[5..];
            if message[0] == b'A' {
                let is_own = body[..4] == pid.to_be_bytes();
                let text = String::from_utf8_lossy(&body[4..]).replace('\0', " ");
                let own = if is_own { "own" } else { "" };
                outcome.heard.push(format!("{text}{own}"));
            } else {
                answer.push(char::from(message[0]));
                if matches!(message[0], b'C' | b'Z') {
                    answer.push_str(&body.escape_ascii().to_string());
                }
            }
        }
        outcome.answered.push(answer);
    }
    clients.into_iter().map(|(_, outcome)| outcome).collect()
}

#[test]
fn many_interleavings_are_heard_as_directly() {
    let stack = Stack::start_twice(
        &format!("[pool]\nsize = {CLIENTS}\n"),
        "CREATE TABLE t (a int)",
    );
    let seeds = match std::env::var("LISTEN_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..60).collect(),
    };
    let mut heard_of = HashMap::<bool, usize>::new();
    for seed in seeds {
        let script = Script::new(&mut fastrand::Rng::with_seed(seed));
        let through = play(&script, stack.helios.port, "postgres");
        let direct = play(&script, stack.cluster.port(), "twin");
        for (client, (through, direct)) in through.into_iter().zip(direct).enumerate() {
            let shown = || {
                let said = script
                    .said
                    .iter()
                    .map(|said| format!("{}: {}", said.client, said.sql));
                said.collect::<Vec<_>>().join("\n")
            };
            assert_eq!(
                through.answered,
                direct.answered,
                "seed {seed}, client {client}\n{}",
                shown()
            );
            let none = BTreeSet::new();
            let doubtful = script.doubtful.get(&client).unwrap_or(&none);
            let certain = |heard: Vec<String>| -> Vec<String> {
                let is_certain = |line: &String| {
                    line.split(' ')
                        .nth(1)
                        .is_some_and(|payload| !doubtful.contains(payload))
                };
                heard.into_iter().filter(is_certain).collect()
            };
            let (through, direct) = (certain(through.heard), certain(direct.heard));
            for line in &direct {
                *heard_of.entry(line.ends_with("own")).or_default() += 1;
            }
            assert_eq!(through, direct, "seed {seed}, client {client}\n{}", shown());
        }
    }
    assert!(
        heard_of.values().all(|n| *n > 20) || std::env::var("LISTEN_SEED").is_ok(),
        "{heard_of:?}"
    );
}
