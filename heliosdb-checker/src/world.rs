//! What all clients of a run share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::history::{ClientId, Level, Origin, Time, What};
use crate::proxy::Proxy;
use crate::recorder::Recorder;
use crate::schema::{CELLS, COMINGS, GROUPS, Sql, TABLES};
use crate::session::{Form, Session};

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) recorder: Recorder,
    pub(crate) sql: Sql,
    pub(crate) helios: u16,
    pub(crate) server: u16,
    pub(crate) max_age: Duration,
    pub(crate) proxy: Arc<Proxy>,
    /// The rows that come and go at present.
    pub(crate) comings: Vec<AtomicU32>,
    next_coming: AtomicU32,
    /// The newest row of the log that a client was told of.
    pub(crate) logged: AtomicU32,
    /// Connections that clients cut themselves.
    pub(crate) dropped: AtomicU64,
}

impl World {
    pub(crate) fn new(
        recorder: Recorder,
        helios: u16,
        server: u16,
        max_age: Duration,
        proxy: Arc<Proxy>,
    ) -> Arc<Self> {
        Arc::new(Self {
            recorder,
            sql: Sql::new(),
            helios,
            server,
            max_age,
            proxy,
            comings: (0..COMINGS).map(AtomicU32::new).collect(),
            next_coming: AtomicU32::new(COMINGS),
            logged: AtomicU32::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    /// What most clients are at now; `back` is how many places before.
    pub(crate) fn spot(&self, back: u64) -> Spot {
        // Nobody moves while there is calm.
        let now = self
            .recorder
            .now()
            .before(self.proxy.calm().unwrap_or_default());
        let place = now.since(Time::default()).as_millis() / SPOT_MS;
        let place = u64::try_from(place).unwrap_or(0).saturating_sub(back);
        let mut random = fastrand::Rng::with_seed(place);
        Spot {
            group: random.u32(..TABLES * GROUPS),
            cell: random.u32(..CELLS),
            coming: random.u32(..COMINGS),
            form: Form::ALL[random.usize(..Form::ALL.len())],
        }
    }

    /// A row in place of one whose state nobody knows.
    pub(crate) fn replace_coming(&self, slot: usize) -> u32 {
        let id = self.next_coming.fetch_add(1, Ordering::SeqCst);
        self.comings[slot].store(id, Ordering::SeqCst);
        id
    }
}

/// Where reads and writes meet: if they were spread evenly, what goes wrong in a short moment would rarely be seen. It
/// moves, so that there are times of rest too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) group: u32,
    pub(crate) cell: u32,
    pub(crate) coming: u32,
    form: Form,
}

const SPOT_MS: u128 = 250;

/// One client.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) world: Arc<World>,
    pub(crate) id: ClientId,
    pub(crate) random: fastrand::Rng,
    pub(crate) origin: Origin,
    level: Level,
}

impl Actor {
    pub(crate) fn new(world: &Arc<World>, origin: Origin, level: Level, seed: u64) -> Self {
        Self {
            id: world.recorder.join(origin, level),
            world: Arc::clone(world),
            random: fastrand::Rng::with_seed(seed),
            origin,
            level,
        }
    }

    /// A connection; `None` if the run is over before there is one.
    pub(crate) async fn connect(&self) -> Option<Session> {
        let port = match self.origin {
            Origin::Direct => self.world.server,
            Origin::Gateway => self.world.helios,
        };
        loop {
            if self.world.recorder.is_over() {
                return None;
            }
            match Session::connect(port, self.level, self.world.max_age).await {
                Ok(session) => return Some(session),
                Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    pub(crate) fn form(&mut self) -> Form {
        Form::ALL[self.random.usize(..Form::ALL.len())]
    }

    /// The form in which most read what most read.
    pub(crate) fn form_at(&mut self, spot: Spot) -> Form {
        if self.random.u32(..4) > 0 {
            spot.form
        } else {
            self.form()
        }
    }

    /// Where most are, were just before, or anywhere.
    pub(crate) fn spot(&mut self) -> Spot {
        match self.random.u32(..100) {
            0..55 => self.world.spot(0),
            55..75 => self.world.spot(1),
            _ => Spot {
                group: self.random.u32(..TABLES * GROUPS),
                cell: self.random.u32(..CELLS),
                coming: self.random.u32(..COMINGS),
                form: self.form(),
            },
        }
    }
}

/// What is around a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Around {
    Block,
    Nothing,
    /// A block at level REPEATABLE READ.
    Snapshot,
}

pub(crate) fn what(statement: &'static str, form: Form, around: Around) -> What {
    let form = match (form, around) {
        (Form::Extended, Around::Nothing) => "extended",
        (Form::Prepared, Around::Nothing) => "prepared",
        (Form::Simple, Around::Nothing) => "simple",
        (Form::Typed, Around::Nothing) => "typed",
        (Form::Extended, Around::Block) => "extended, in a block",
        (Form::Prepared, Around::Block) => "prepared, in a block",
        (Form::Simple, Around::Block) => "simple, in a block",
        (Form::Typed, Around::Block) => "typed, in a block",
        (Form::Extended, Around::Snapshot) => "extended, repeatable read",
        (Form::Prepared, Around::Snapshot) => "prepared, repeatable read",
        (Form::Simple, Around::Snapshot) => "simple, repeatable read",
        (Form::Typed, Around::Snapshot) => "typed, repeatable read",
    };
    What { statement, form }
}

const RETRY_PAUSE: Duration = Duration::from_millis(10);
