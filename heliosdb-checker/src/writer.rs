//! Clients that write, and read what they wrote.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::checker::{Fate, Outcome, Seen, Written};
use crate::history::{Family, Key, Tag, Time, What};
use crate::reader::{Pick, of_written};
use crate::schema::{
    BUMP_BY_FUNCTION, CELLS, COME, GO, GROUP_ROWS, GROUPS, LOG, TABLES, cell_key, group_key, place,
};
use crate::session::{Failure, Form, Param, Session, Value};
use crate::world::{Actor, Around, Spot, what};

/// A row that only this client inserts and deletes.
#[derive(Debug, Clone, Copy)]
struct Coming {
    slot: u32,
    id: u32,
    version: u64,
}

/// A writer's own state.
#[derive(Debug)]
struct Desk {
    comings: Vec<Coming>,
    pause: Duration,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    /// The connection is cut before.
    Cut,
    /// The connection is cut while the commit is under way.
    CutCommit,
    RollBack,
}

impl Actor {
    /// `slots` are the rows that come and go which are this client's; `pause` is about the time between two writes.
    pub(crate) async fn write_for_ever(mut self, slots: Vec<u32>, pause: Duration) {
        let comings = slots.into_iter().map(|slot| Coming {
            slot,
            id: self.world.comings[slot as usize].load(Ordering::SeqCst),
            version: 0,
        });
        let mut desk = Desk {
            comings: comings.collect(),
            pause,
        };
        while let Some(mut session) = self.connect().await {
            while !self.world.recorder.is_over() {
                // Without pauses a write would always be pending, and nothing would be cached.
                tokio::time::sleep(desk.pause.mul_f64(2.0 * self.random.f64())).await;
                if self.world.proxy.is_calm_for(self.origin) {
                    continue;
                }
                match self.write(&mut session, &mut desk).await {
                    Ok(()) => {}
                    Err(Failure::Refused(_)) => {
                        if session.rows(Form::Simple, "ROLLBACK", &[]).await.is_err() {
                            break;
                        }
                    }
                    Err(Failure::Lost) => break,
                }
            }
        }
    }

    async fn write(&mut self, session: &mut Session, desk: &mut Desk) -> Result<(), Failure> {
        let Spot { group, cell, .. } = self.spot();
        match self.random.u32(..100) {
            0..20 => self.write_cell(session, cell).await,
            20..30 => self.transfer(session, cell).await,
            30..40 => self.write_group_at_once(session, group).await,
            40..78 => self.write_groups(session, group).await,
            78..90 => self.come_or_go(session, desk).await,
            _ => self.log(session).await,
        }
    }

    /// One statement that changes one row, by itself a transaction.
    async fn write_cell(&mut self, session: &mut Session, cell: u32) -> Result<(), Failure> {
        let form = self.form();
        // What a function changes can't be told: it counts as a write to everything, and makes the cache useless.
        let (name, sql) = if self.random.u32(..20) == 0 {
            ("cell by a function", BUMP_BY_FUNCTION.to_owned())
        } else {
            ("cell by key", self.world.sql.bump_cell.clone())
        };
        let made =
            |rows: &[Vec<Value>]| Some(vec![(cell_key(cell), rows.first()?.first()?.as_count()?)]);
        self.write_alone(
            session,
            what(name, form, Around::Nothing),
            form,
            &sql,
            &[cell],
            made,
        )
        .await?;
        self.read_back(session, Pick::Cell(cell)).await
    }

    /// Two rows and a constant sum.
    async fn transfer(&mut self, session: &mut Session, from: u32) -> Result<(), Failure> {
        let to = self.random.u32(..CELLS);
        if from == to {
            return Ok(());
        }
        let form = self.form();
        let sql = self.world.sql.transfer.clone();
        let made = |rows: &[Vec<Value>]| {
            let version = |row: &Vec<Value>| {
                let cell = u32::try_from(row.first()?.as_count()?).ok()?;
                Some((cell_key(cell), row.get(1)?.as_count()?))
            };
            rows.iter().map(version).collect()
        };
        self.write_alone(
            session,
            what("transfer", form, Around::Nothing),
            form,
            &sql,
            &[from, to],
            made,
        )
        .await?;
        self.read_back(session, Pick::Balance).await?;
        self.read_back(session, Pick::Cell(to)).await
    }

    /// The rows of a group in two tables, by one statement or by one message.
    async fn write_group_at_once(
        &mut self,
        session: &mut Session,
        group: u32,
    ) -> Result<(), Failure> {
        let (table, number) = place(group);
        let any = self.form();
        let sql = &self.world.sql.groups[table as usize];
        let (name, form, text) = if self.random.bool() {
            ("group by WITH", any, sql.bump_all.clone())
        } else {
            let text = format!("BEGIN; {}; {}; COMMIT", sql.bump_mirror, sql.bump_rows);
            ("group by one message", Form::Simple, text)
        };
        let key = group_key(table, number);
        let made = |rows: &[Vec<Value>]| Some(vec![(key, rows.first()?.first()?.as_count()?)]);
        self.write_alone(
            session,
            what(name, form, Around::Nothing),
            form,
            &text,
            &[number],
            made,
        )
        .await?;
        let pick = of_written(&mut self.random, group);
        self.read_back(session, pick).await
    }

    /// A write that is one message. The parameters are the first key, the tag, the other keys.
    async fn write_alone(
        &mut self,
        session: &mut Session,
        what: What,
        form: Form,
        sql: &str,
        keys: &[u32],
        made: impl FnOnce(&[Vec<Value>]) -> Option<Vec<(Key, u64)>>,
    ) -> Result<(), Failure> {
        let tag = self.world.recorder.begin_write(self.id, Fate::Kept, None);
        let start = self.world.recorder.now();
        let mut params = vec![Param::Key(keys[0]), Param::Big(tag.to_row())];
        params.extend(keys.iter().skip(1).map(|key| Param::Key(*key)));
        let done = session.rows(form, sql, &params).await;
        let (made, outcome) = match &done {
            Ok(rows) => (made(rows).unwrap_or_default(), Outcome::Committed),
            Err(Failure::Refused(_)) => (Vec::new(), Outcome::Aborted),
            Err(Failure::Lost) => (Vec::new(), Outcome::Unknown),
        };
        self.world.recorder.end_write(&Written {
            tag,
            what,
            start,
            made,
            outcome,
        });
        done.map(drop)
    }

    /// One or two groups in a block, with reads before, in between and after.
    async fn write_groups(&mut self, session: &mut Session, group: u32) -> Result<(), Failure> {
        let mut groups = vec![group];
        if self.random.u32(..4) == 0 {
            groups.push(self.random.u32(..TABLES * GROUPS));
        }
        // In one order, or they would wait for each other.
        groups.sort_unstable();
        groups.dedup();
        let end = match self.random.u32(..100) {
            0..80 => End::Commit,
            80..94 => End::RollBack,
            94..97 => End::Cut,
            _ => End::CutCommit,
        };
        let fate = match end {
            End::Commit | End::CutCommit => Fate::Kept,
            End::Cut | End::RollBack => Fate::Doomed,
        };
        let form = self.form();
        let mut writes = Vec::new();
        let done = self
            .write_in_block(session, &groups, fate, form, &mut writes)
            .await;
        let what = what("groups in a block", form, Around::Block);
        if let Err(failure) = done {
            // Nobody has asked for a commit.
            for write in &writes {
                self.world.recorder.abort(write.tag, what);
            }
            return Err(failure);
        }
        let (outcome, ended) = self.end_block(session, end).await;
        for (tag, start, made) in writes.into_iter().map(Write::into_parts) {
            self.world.recorder.end_write(&Written {
                tag,
                what,
                start,
                made,
                outcome,
            });
        }
        ended?;
        for group in groups {
            let pick = of_written(&mut self.random, group);
            self.read_back(session, pick).await?;
        }
        Ok(())
    }

    async fn end_block(
        &mut self,
        session: &mut Session,
        end: End,
    ) -> (Outcome, Result<(), Failure>) {
        let (form, sql) = match (end, self.random.u32(..3)) {
            (End::RollBack, _) => (Form::Simple, "ROLLBACK"),
            (_, 0) => (Form::Extended, "COMMIT"),
            (_, _) => (Form::Simple, "COMMIT"),
        };
        if end == End::Cut {
            self.world.dropped.fetch_add(1, Ordering::Relaxed);
            return (Outcome::Aborted, Err(Failure::Lost));
        }
        let ended = session.rows(form, sql, &[]);
        if end == End::CutCommit {
            // On its way, or done: who knows.
            let moment = Duration::from_micros(self.random.u64(..2000));
            let ended = tokio::time::timeout(moment, ended).await;
            self.world.dropped.fetch_add(1, Ordering::Relaxed);
            let outcome = match ended {
                Ok(Ok(_)) => Outcome::Committed,
                Ok(Err(Failure::Refused(_))) => Outcome::Aborted,
                Ok(Err(Failure::Lost)) | Err(_) => Outcome::Unknown,
            };
            return (outcome, Err(Failure::Lost));
        }
        match ended.await {
            Ok(_) if end == End::RollBack => (Outcome::Aborted, Ok(())),
            Ok(_) => (Outcome::Committed, Ok(())),
            Err(Failure::Refused(why)) => (Outcome::Aborted, Err(Failure::Refused(why))),
            Err(Failure::Lost) if end == End::RollBack => (Outcome::Aborted, Err(Failure::Lost)),
            Err(Failure::Lost) => (Outcome::Unknown, Err(Failure::Lost)),
        }
    }

    /// Everything up to the end of the block. What was begun is in `writes`, also if it fails.
    async fn write_in_block(
        &mut self,
        session: &mut Session,
        groups: &[u32],
        fate: Fate,
        form: Form,
        writes: &mut Vec<Write>,
    ) -> Result<(), Failure> {
        let begin = if self.random.bool() {
            Form::Simple
        } else {
            Form::Extended
        };
        session.rows(begin, "BEGIN", &[]).await?;
        if self.random.u32(..3) == 0 {
            let (pick, form) = self.pick();
            self.read(session, pick, form, Around::Block, None).await?;
        }
        for group in groups {
            if self.random.u32(..8) == 0 {
                session.rows(Form::Simple, "SAVEPOINT s", &[]).await?;
                self.bump_group(session, *group, Fate::Doomed, form, writes)
                    .await?;
                session
                    .rows(Form::Simple, "ROLLBACK TO SAVEPOINT s", &[])
                    .await?;
                if let Some(doomed) = writes.pop() {
                    self.world.recorder.abort(
                        doomed.tag,
                        what("rolled back to a savepoint", form, Around::Block),
                    );
                }
            }
            if self.random.u32(..8) == 0 {
                let overwritten = if fate == Fate::Doomed {
                    fate
                } else {
                    Fate::Overwritten
                };
                self.bump_group(session, *group, overwritten, form, writes)
                    .await?;
            }
            self.bump_group(session, *group, fate, form, writes).await?;
        }
        if self.random.u32(..4) == 0 {
            // Of others, in the same transaction, behind a write.
            let pick = Pick::Cell(self.random.u32(..CELLS));
            self.read(session, pick, form, Around::Block, None).await?;
        }
        Ok(())
    }

    /// Writes all rows of a group, and reads some of them.
    async fn bump_group(
        &mut self,
        session: &mut Session,
        group: u32,
        fate: Fate,
        form: Form,
        writes: &mut Vec<Write>,
    ) -> Result<(), Failure> {
        let (table, number) = place(group);
        let tag = self.world.recorder.begin_write(self.id, fate, None);
        let start = self.world.recorder.now();
        writes.push(Write {
            tag,
            start,
            made: None,
        });
        let sql = &self.world.sql.groups[table as usize];
        let tag_param = Param::Big(tag.to_row());
        let rows = session
            .rows(form, &sql.bump_mirror, &[Param::Key(number), tag_param])
            .await?;
        let Some(version) = rows.first().and_then(|row| row.first()?.as_count()) else {
            return Err(Failure::Lost);
        };
        let key = group_key(table, number);
        if let Some(write) = writes.last_mut() {
            write.made = Some((key, version));
        }
        if self.random.bool() {
            session
                .rows(form, &sql.bump_rows, &[Param::Key(number), tag_param])
                .await?;
        } else {
            for row in 0..GROUP_ROWS {
                let row = Param::Key(number * GROUP_ROWS + row);
                session.rows(form, &sql.bump_row, &[row, tag_param]).await?;
            }
        }
        if self.random.bool() {
            let (pick, form) = (of_written(&mut self.random, group), self.form());
            let (what, shown) = self.ask(session, pick, form, Around::Block).await?;
            for seen in &shown.seen {
                let Seen::Register {
                    versions, recent, ..
                } = seen
                else {
                    continue;
                };
                for seen in versions {
                    let seen = Some((*seen, recent.last().copied()));
                    self.world
                        .recorder
                        .own_read(self.id, what, (key, version, tag), seen);
                }
            }
        }
        Ok(())
    }

    /// Inserts what is absent, deletes what is present.
    async fn come_or_go(&mut self, session: &mut Session, desk: &mut Desk) -> Result<(), Failure> {
        if desk.comings.is_empty() {
            return Ok(());
        }
        let place = self.random.usize(..desk.comings.len());
        let Coming { slot, id, version } = desk.comings[place];
        let key = Key {
            family: Family::Coming,
            number: id,
        };
        let version = version + 1;
        let form = self.form();
        let is_insert = version % 2 == 1;
        let row_version = Param::Big(i64::try_from(version).unwrap_or(i64::MAX));
        let (name, sql, params) = if is_insert {
            ("insert", COME, vec![Param::Key(id), row_version])
        } else {
            ("delete", GO, vec![Param::Key(id)])
        };
        let in_block = self.random.u32(..4) == 0;
        let around = if in_block {
            Around::Block
        } else {
            Around::Nothing
        };
        let makes = Some((key, version));
        let tag = self.world.recorder.begin_write(self.id, Fate::Kept, makes);
        let start = self.world.recorder.now();
        let mut done = Ok(Vec::new());
        if in_block {
            done = session.rows(Form::Simple, "BEGIN", &[]).await;
        }
        if done.is_ok() {
            done = session.rows(form, sql, &params).await;
        }
        if in_block && done.is_ok() {
            done = session.rows(Form::Simple, "COMMIT", &[]).await;
        }
        let outcome = if done.is_ok() {
            desk.comings[place].version = version;
            Outcome::Committed
        } else {
            // Whether it is there is not known: from now on another row takes its place.
            let id = self.world.replace_coming(slot as usize);
            desk.comings[place] = Coming {
                slot,
                id,
                version: 0,
            };
            Outcome::Unknown
        };
        self.world.recorder.end_write(&Written {
            tag,
            what: what(name, form, around),
            start,
            made: vec![(key, version)],
            outcome,
        });
        done?;
        let counted = self.random.u32(..4) == 0;
        self.read_back(session, Pick::Coming { slot, counted })
            .await
    }

    /// A row whose key the server makes.
    async fn log(&mut self, session: &mut Session) -> Result<(), Failure> {
        let form = self.form();
        let tag = self.world.recorder.begin_write(self.id, Fate::Kept, None);
        let start = self.world.recorder.now();
        let done = session.rows(form, LOG, &[Param::Big(tag.to_row())]).await;
        let id = match &done {
            Ok(rows) => rows
                .first()
                .and_then(|row| u32::try_from(row.first()?.as_count()?).ok()),
            Err(_) => None,
        };
        let outcome = match (&done, id) {
            (Ok(_), Some(_)) => Outcome::Committed,
            (Err(Failure::Refused(_)), _) => Outcome::Aborted,
            (Ok(_) | Err(Failure::Lost), _) => Outcome::Unknown,
        };
        let key = |number| Key {
            family: Family::Log,
            number,
        };
        self.world.recorder.end_write(&Written {
            tag,
            what: what("insert", form, Around::Nothing),
            start,
            made: id.map(|id| (key(id), 1)).into_iter().collect(),
            outcome,
        });
        done?;
        self.world
            .logged
            .fetch_max(id.unwrap_or(0), Ordering::SeqCst);
        self.read_back(session, Pick::Logged { ahead: 9 }).await
    }

    /// Reads what was written, now and then more than once.
    async fn read_back(&mut self, session: &mut Session, pick: Pick) -> Result<(), Failure> {
        for _ in 0..self.random.u32(..3) {
            let spot = self.world.spot(0);
            let form = self.form_at(spot);
            self.read(session, pick, form, Around::Nothing, None)
                .await?;
        }
        Ok(())
    }
}

/// A write whose transaction is open.
#[derive(Debug)]
struct Write {
    tag: Tag,
    start: Time,
    made: Option<(Key, u64)>,
}

impl Write {
    fn into_parts(self) -> (Tag, Time, Vec<(Key, u64)>) {
        (self.tag, self.start, self.made.into_iter().collect())
    }
}
