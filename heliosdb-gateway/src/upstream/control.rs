//! What administrators hold up or refuse: PAUSE, SUSPEND, DISABLE, RECONNECT and their undoing.
//!
//! **While a database is paused no server connection of it stands for longer than the client that has it needs it, and
//! nothing of it is answered from memory**: administrators pause a database to restart its server, or to put another one
//! in its place, and its answers are those of a server that may not be there any more. With RESUME the answers in memory
//! are dropped, and so is what is known of its tables: what happened to the server meanwhile was seen by nobody.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::error::{ClientError, ErrorKind};

use super::{ServerPool, Upstream};

/// How a pool is held up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    #[default]
    None,
    /// Requests wait, and connections are closed as they come back.
    Paused,
    /// Requests wait.
    Suspended,
}

/// Why a command of an administrator can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("already suspended/paused")]
    AlreadyHeld,
    #[error("cannot suspend with paused databases")]
    DatabasesPaused,
    #[error("no such database: {0}")]
    NoDatabase(String),
    #[error("database {0} is not paused")]
    NotPaused(String),
    #[error("pooler is not paused/suspended")]
    NothingHeld,
}

/// What administrators asked for.
#[derive(Debug, Default)]
pub(super) struct Controls {
    /// Why a lock: a look-up where a pool is made and where a client logs in. It is taken under that of the pools.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of all databases.
    hold: Hold,
    databases: BTreeMap<String, OfDatabase>,
}

/// What was asked for one database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OfDatabase {
    pub(crate) is_paused: bool,
    pub(crate) is_disabled: bool,
}

impl State {
    fn hold_on(&self, database: &str) -> Hold {
        let is_paused = self
            .databases
            .get(database)
            .is_some_and(|asked| asked.is_paused);
        match self.hold {
            Hold::None if is_paused => Hold::Paused,
            hold => hold,
        }
    }

    fn paused(&self) -> impl Iterator<Item = &str> {
        let paused = self.databases.iter().filter(|(_, asked)| asked.is_paused);
        paused.map(|(name, _)| &**name)
    }

    fn change(&mut self, database: &str, change: impl FnOnce(&mut OfDatabase)) {
        let mut asked = self.databases.get(database).copied().unwrap_or_default();
        change(&mut asked);
        if asked == OfDatabase::default() {
            self.databases.remove(database);
        } else {
            self.databases.insert(database.to_owned(), asked);
        }
    }
}

impl Controls {
    pub(super) fn hold_on(&self, database: &str) -> Hold {
        self.state.lock().hold_on(database)
    }
}

impl Upstream {
    /// Pauses one database or all. [`let_go`](Self::let_go) says when no connection is left.
    pub(crate) fn pause(&self, database: Option<&str>) -> Result<(), ControlError> {
        self.change_holds(database, |state| {
            if state.hold != Hold::None {
                return Err(ControlError::AlreadyHeld);
            }
            match database {
                None => state.hold = Hold::Paused,
                Some(name) => state.change(name, |asked| asked.is_paused = true),
            }
            Ok(())
        })
    }

    /// Has all requests wait; connections stay.
    pub(crate) fn suspend(&self) -> Result<(), ControlError> {
        self.change_holds(None, |state| {
            if state.hold != Hold::None {
                return Err(ControlError::AlreadyHeld);
            }
            if state.paused().next().is_some() {
                return Err(ControlError::DatabasesPaused);
            }
            state.hold = Hold::Suspended;
            Ok(())
        })
    }

    /// Undoes [`pause`](Self::pause) or [`suspend`](Self::suspend). After a pause, answers in memory are dropped before
    /// anything is answered.
    pub(crate) fn resume(&self, database: Option<&str>) -> Result<(), ControlError> {
        // Before anybody may look for answers, and again for what was being stored just now.
        self.forget_answers(database);
        let resumed = self.change_holds(database, |state| {
            match database {
                None if state.hold != Hold::None => state.hold = Hold::None,
                // After a KILL of all.
                None => {
                    let paused: Vec<String> = state.paused().map(str::to_owned).collect();
                    if paused.is_empty() {
                        return Err(ControlError::NothingHeld);
                    }
                    for name in &paused {
                        state.change(name, |asked| asked.is_paused = false);
                    }
                }
                Some(name) => {
                    if !state
                        .databases
                        .get(name)
                        .is_some_and(|asked| asked.is_paused)
                    {
                        return Err(ControlError::NotPaused(name.to_owned()));
                    }
                    state.change(name, |asked| asked.is_paused = false);
                }
            }
            Ok(())
        });
        self.forget_answers(database);
        resumed
    }

    /// Lets new clients of a database in, or refuses them.
    pub(crate) fn set_disabled(
        &self,
        database: &str,
        is_disabled: bool,
    ) -> Result<(), ControlError> {
        self.known(database)?;
        let mut state = self.controls.state.lock();
        state.change(database, |asked| asked.is_disabled = is_disabled);
        Ok(())
    }

    /// Closes the connections of one database or of all, each when it is free.
    pub(crate) fn reconnect(&self, database: Option<&str>) -> Result<(), ControlError> {
        if let Some(name) = database {
            self.known(name)?;
        }
        for pool in self.pools() {
            if database.is_none_or(|name| pool.name == name) {
                pool.connections.evict_all();
            }
        }
        let is_meant = |name: &str| database.is_none_or(|database| database == name);
        self.servers.need_close(is_meant);
        Ok(())
    }

    /// What clients call a database of a server.
    pub(crate) fn names_of(&self, server: &str, database: &str) -> Vec<String> {
        let pools = self.pools().into_iter();
        pools
            .filter(|pool| pool.leads_to(server, database))
            .map(|pool| pool.name.clone())
            .collect()
    }

    /// Closes what is connected to a database of a server and idle, and what is in use when it is free.
    pub(crate) fn vacate(&self, server: &str, database: &str) {
        for pool in self.pools() {
            if pool.leads_to(server, database) {
                pool.connections.evict_all();
                if let Some(listener) = &pool.listener {
                    listener.rest();
                }
                pool.database.follower.rest();
            }
        }
    }

    /// Waits until the connections are closed that were to be.
    pub(crate) async fn outdated_closed(&self, database: Option<String>) {
        let is_meant = |name: &str| database.as_deref().is_none_or(|database| database == name);
        self.servers.outdated_closed(is_meant).await;
    }

    /// Waits until a paused database, or all, have no server connection.
    pub(crate) async fn let_go(&self, database: Option<String>) {
        let pools = self.pools();
        let pools = pools
            .iter()
            .filter(|pool| database.as_ref().is_none_or(|name| pool.name == *name));
        futures_util::future::join_all(pools.map(|pool| pool.connections.emptied())).await;
    }

    /// What was asked for one database, and whether all are held up.
    pub(crate) fn asked_for(&self, database: &str) -> OfDatabase {
        let state = self.controls.state.lock();
        state.databases.get(database).copied().unwrap_or_default()
    }

    /// How all databases are held up.
    pub(crate) fn hold(&self) -> Hold {
        self.controls.state.lock().hold
    }

    /// Whether new clients may come to the database.
    pub(crate) fn let_in(&self, database: &str) -> Result<(), ClientError> {
        if !self.asked_for(database).is_disabled {
            return Ok(());
        }
        Err(ClientError::new(
            ErrorKind::Config,
            "55000",
            format!("database \"{database}\" is disabled"),
        )
        .hint("An administrator has disabled it; ENABLE on the admin console undoes that.")
        .fatal())
    }

    /// The names that clients have used.
    pub(crate) fn names_in_use(&self) -> Vec<String> {
        let mut names: Vec<String> = self.pools().iter().map(|pool| pool.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// An error if the name leads nowhere.
    pub(crate) fn known(&self, database: &str) -> Result<(), ControlError> {
        match self.routes.load().destination("", database) {
            Ok(_) => Ok(()),
            Err(_) => Err(ControlError::NoDatabase(database.to_owned())),
        }
    }

    fn change_holds(
        &self,
        database: Option<&str>,
        change: impl FnOnce(&mut State) -> Result<(), ControlError>,
    ) -> Result<(), ControlError> {
        if let Some(name) = database {
            self.known(name)?;
        }
        // In this order, as where a pool is made: no pool is missed.
        let pools = self.pools.lock();
        let mut state = self.controls.state.lock();
        change(&mut state)?;
        for pool in pools.values() {
            pool.hold(state.hold_on(&pool.name));
        }
        Ok(())
    }

    /// Drops what is in memory of the answers of one database or of all, and of what their tables are.
    fn forget_answers(&self, database: Option<&str>) {
        for pool in self.pools() {
            if database.is_none_or(|name| pool.name == name) {
                let database = &pool.database;
                database
                    .versions()
                    .invalidate(&[database.everything, database.schema]);
                database.doubt_event_triggers();
            }
        }
    }
}

impl ServerPool {
    fn leads_to(&self, server: &str, database: &str) -> bool {
        self.database.name == database && self.database.server == server
    }

    pub(super) fn hold(&self, hold: Hold) {
        let was_held = self.is_held.swap(hold != Hold::None, Ordering::AcqRel);
        match hold {
            Hold::None if was_held => self.connections.resume(),
            Hold::None => {}
            Hold::Paused => self.connections.suspend_and_empty(),
            Hold::Suspended => self.connections.suspend(),
        }
    }
}
