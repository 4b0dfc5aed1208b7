//! Clients that read.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::checker::{Read, Seen};
use crate::history::{Family, Key, Tag, Time, What};
use crate::schema::{
    ALL_CELLS, BALANCE, CELL, CELLS, CELLS_IN, COMING, COMING_EXISTS, GROUP_ROWS, GROUPS, LOGGED,
    SUM_OF_BALANCES, TABLES, cell_key, group_key, place,
};
use crate::session::{Failure, Form, Param, Session, Value};
use crate::violation::Kind;
use crate::world::{Actor, Around, Spot, what};

/// What to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pick {
    AllCells,
    AllGroups {
        table: u32,
    },
    Balance,
    Cell(u32),
    /// Three neighbours.
    Cells(u32),
    Coming {
        slot: u32,
        counted: bool,
    },
    Everything,
    /// A row near the end of the log.
    Logged {
        ahead: u32,
    },
    Mirror {
        table: u32,
        group: u32,
    },
    Row {
        table: u32,
        group: u32,
        row: u32,
    },
    Rows {
        table: u32,
        group: u32,
    },
    Sums {
        table: u32,
        group: u32,
    },
    View {
        table: u32,
        group: u32,
    },
}

impl Pick {
    pub(crate) fn at(random: &mut fastrand::Rng, spot: Spot) -> Self {
        let (table, group) = place(spot.group);
        match random.u32(..100) {
            0..55 => Self::of_group(random, table, group),
            55..75 => Self::Cell(spot.cell),
            75..79 => Self::Cells(spot.cell.min(CELLS - 3)),
            79..81 => Self::AllCells,
            81..84 => Self::Balance,
            84..91 => Self::Coming {
                slot: spot.coming,
                counted: random.u32(..4) == 0,
            },
            91..96 => Self::Logged {
                ahead: random.u32(..14),
            },
            96..99 => Self::AllGroups { table },
            _ => Self::Everything,
        }
    }

    pub(crate) fn of_group(random: &mut fastrand::Rng, table: u32, group: u32) -> Self {
        match random.u32(..10) {
            0..4 => Self::Row {
                table,
                group,
                row: random.u32(..GROUP_ROWS) * random.u32(..2),
            },
            4..6 => Self::Mirror { table, group },
            6 | 7 => Self::Rows { table, group },
            8 => Self::View { table, group },
            _ => Self::Sums { table, group },
        }
    }
}

/// What an answer showed, in the checker's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) seen: Vec<Seen>,
    chain: Option<u16>,
    balance: Option<i64>,
}

impl Actor {
    /// With a pause after each read, if there is one.
    pub(crate) async fn read_for_ever(mut self, pause: Option<Duration>) {
        while let Some(mut session) = self.connect().await {
            while !self.world.recorder.is_over() {
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                let done = match self.random.u32(..100) {
                    0..82 => {
                        let (pick, form) = self.pick();
                        self.read(&mut session, pick, form, Around::Nothing, None)
                            .await
                            .map(drop)
                    }
                    82..94 => self.read_in_block(&mut session).await,
                    _ => self.read_in_snapshot(&mut session).await,
                };
                match done {
                    Ok(()) => {}
                    // In a block everything else would be refused as well.
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

    pub(crate) fn pick(&mut self) -> (Pick, Form) {
        let spot = self.spot();
        (Pick::at(&mut self.random, spot), self.form_at(spot))
    }

    async fn read_in_block(&mut self, session: &mut Session) -> Result<(), Failure> {
        let (begin, form) = match self.random.u32(..4) {
            0 => ("BEGIN", Form::Simple),
            1 => ("BEGIN", Form::Extended),
            2 => ("START TRANSACTION READ ONLY", Form::Simple),
            _ => ("BEGIN ISOLATION LEVEL READ COMMITTED", Form::Simple),
        };
        session.rows(form, begin, &[]).await?;
        for _ in 0..self.random.u32(1..4) {
            let (pick, form) = self.pick();
            self.read(session, pick, form, Around::Block, None).await?;
        }
        let end = if self.random.bool() {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        session.rows(form, end, &[]).await.map(drop)
    }

    /// All statements of a block at REPEATABLE READ see what the first one saw.
    async fn read_in_snapshot(&mut self, session: &mut Session) -> Result<(), Failure> {
        session
            .rows(Form::Simple, "BEGIN ISOLATION LEVEL REPEATABLE READ", &[])
            .await?;
        let start = Some(self.world.recorder.now());
        let (pick, form) = self.pick();
        // The log may have grown: another row would be read.
        let pick = match pick {
            Pick::Logged { .. } | Pick::Coming { .. } => Pick::Everything,
            pick => pick,
        };
        let first = self
            .read(session, pick, form, Around::Snapshot, start)
            .await?;
        for _ in 0..self.random.u32(..3) {
            let (pick, form) = self.pick();
            self.read(session, pick, form, Around::Snapshot, start)
                .await?;
        }
        let form = self.form();
        let again = self
            .read(session, pick, form, Around::Snapshot, start)
            .await?;
        if again != first {
            let (expected, found) = differences(&first.seen, &again.seen);
            self.world.recorder.constant_changed(
                self.id,
                what("the same again", form, Around::Snapshot),
                Kind::SnapshotMoved,
                &expected,
                &found,
            );
        }
        session.rows(Form::Simple, "COMMIT", &[]).await.map(drop)
    }

    /// Reads, and has it checked. `start` is when what is read could be as it was first, if not now.
    pub(crate) async fn read(
        &mut self,
        session: &mut Session,
        pick: Pick,
        form: Form,
        around: Around,
        start: Option<Time>,
    ) -> Result<Shown, Failure> {
        let start = start.unwrap_or_else(|| self.world.recorder.now());
        let (what, shown) = self.ask(session, pick, form, around).await?;
        let recorder = &self.world.recorder;
        recorder.read(&Read {
            client: self.id,
            what,
            start,
            seen: shown.seen.clone(),
            chain: shown.chain,
        });
        let whole = i64::from(CELLS) * BALANCE;
        if let Some(sum) = shown.balance.filter(|sum| *sum != whole) {
            let (expected, found) = (whole.to_string(), sum.to_string());
            recorder.constant_changed(self.id, what, Kind::SumChanged, &expected, &found);
        }
        Ok(shown)
    }

    /// Reads, for somebody else to judge.
    pub(crate) async fn ask(
        &mut self,
        session: &mut Session,
        pick: Pick,
        form: Form,
        around: Around,
    ) -> Result<(What, Shown), Failure> {
        let sql = &self.world.sql;
        let key = Param::Key;
        let mut coming = 0;
        let (name, text, params): (_, &str, Vec<Param>) = match pick {
            Pick::AllCells => ("all cells", ALL_CELLS, Vec::new()),
            Pick::AllGroups { table } => (
                "all groups of a table",
                &sql.groups[table as usize].all,
                Vec::new(),
            ),
            Pick::Balance => ("sum of balances", SUM_OF_BALANCES, Vec::new()),
            Pick::Cell(cell) => ("cell by key", CELL, vec![key(cell)]),
            Pick::Cells(first) => (
                "cells by keys",
                CELLS_IN,
                vec![key(first), key(first + 1), key(first + 2)],
            ),
            Pick::Coming { slot, counted } => {
                coming = self.world.comings[slot as usize].load(Ordering::SeqCst);
                if counted {
                    ("coming counted", COMING_EXISTS, vec![key(coming)])
                } else {
                    ("coming by key", COMING, vec![key(coming)])
                }
            }
            Pick::Everything => ("all groups of all tables", &sql.everything, Vec::new()),
            Pick::Logged { ahead } => {
                coming = (self.world.logged.load(Ordering::SeqCst) + ahead).saturating_sub(9);
                ("log by key", LOGGED, vec![key(coming)])
            }
            Pick::Mirror { table, group } => {
                let sql = &sql.groups[table as usize];
                ("mirror by key", &sql.mirror, vec![key(group)])
            }
            Pick::Row { table, group, row } => {
                let sql = &sql.groups[table as usize];
                ("row by key", &sql.row, vec![key(group * GROUP_ROWS + row)])
            }
            Pick::Rows { table, group } => {
                let sql = &sql.groups[table as usize];
                ("rows of a group", &sql.rows, vec![key(group)])
            }
            Pick::Sums { table, group } => {
                let sql = &sql.groups[table as usize];
                ("sum over a group", &sql.sums, vec![key(group)])
            }
            Pick::View { table, group } => {
                let sql = &sql.groups[table as usize];
                ("view of a group", &sql.view, vec![key(group)])
            }
        };
        let rows = session.rows(form, text, &params).await?;
        let what = what(name, form, around);
        let shown = shown(pick, coming, &rows).unwrap_or_else(|| {
            let found = format!("{rows:?}");
            let recorder = &self.world.recorder;
            recorder.constant_changed(
                self.id,
                what,
                Kind::Torn,
                "as many rows as there are",
                &found,
            );
            Shown {
                seen: Vec::new(),
                chain: None,
                balance: None,
            }
        });
        Ok((what, shown))
    }
}

/// What two answers to the same question show differently.
fn differences(first: &[Seen], again: &[Seen]) -> (String, String) {
    let different = first
        .iter()
        .zip(again)
        .filter(|(first, again)| first != again);
    let (first, again): (Vec<_>, Vec<_>) = different.take(3).unzip();
    (format!("{first:?}"), format!("{again:?}"))
}

/// `None` if the rows are not those that there must be.
fn shown(pick: Pick, id: u32, rows: &[Vec<Value>]) -> Option<Shown> {
    let count = |row: &[Value], column: usize| row.get(column).and_then(Value::as_count);
    let mut shown = Shown {
        seen: Vec::new(),
        chain: None,
        balance: None,
    };
    let register = |key, versions, recent| Seen::Register {
        key,
        versions,
        recent,
    };
    let recent = |row: &[Value]| match row.get(1) {
        Some(Value::List(tags)) => tags.iter().map(|tag| Tag::from_row(*tag)).collect(),
        _ => Vec::new(),
    };
    // Version n is of as many writes, of which eight are named.
    let with_makers = |key, row: &[Value]| {
        let version = count(row, 0)?;
        let recent: Vec<Tag> = recent(row);
        (recent.len() as u64 == version.min(8)).then(|| register(key, vec![version], recent))
    };
    let many = |column: usize, keys: Vec<Key>| -> Option<Vec<Seen>> {
        let seen = keys.iter().zip(rows);
        let seen =
            seen.map(|(key, row)| Some(register(*key, vec![count(row, column)?], Vec::new())));
        seen.collect::<Option<Vec<Seen>>>()
            .filter(|_| keys.len() == rows.len())
    };
    match pick {
        Pick::AllCells => {
            shown.seen = many(1, (0..CELLS).map(cell_key).collect())?;
            shown.chain = Some(ALL_CELLS_CHAIN);
        }
        Pick::AllGroups { table } => {
            shown.seen = many(
                1,
                (0..GROUPS).map(|group| group_key(table, group)).collect(),
            )?;
            shown.chain = u16::try_from(table).ok();
        }
        Pick::Everything => {
            let all = (0..TABLES * GROUPS).map(|n| group_key(n / GROUPS, n % GROUPS));
            shown.seen = many(2, all.collect())?;
            shown.chain = Some(EVERYTHING_CHAIN);
        }
        Pick::Balance => match rows {
            [row] => match row.as_slice() {
                [Value::Int(sum)] => shown.balance = Some(*sum),
                _ => return None,
            },
            _ => return None,
        },
        Pick::Cell(cell) => shown.seen.push(with_makers(cell_key(cell), only(rows)?)?),
        Pick::Cells(first) => {
            shown.seen = many(1, (first..first + 3).map(cell_key).collect())?;
        }
        Pick::Coming { counted, .. } => {
            let key = Key {
                family: Family::Coming,
                number: id,
            };
            let version = match rows {
                [] if !counted => None,
                [row] if !counted => Some(count(row, 0)?),
                // Two aggregates of one answer.
                [row] if (count(row, 0).is_some() as u64) == count(row, 1)? => count(row, 0),
                _ => return None,
            };
            shown.seen.push(Seen::Presence {
                key,
                version,
                tag: None,
            });
        }
        Pick::Logged { .. } => {
            let key = Key {
                family: Family::Log,
                number: id,
            };
            let tag = match rows {
                [] => None,
                [row] => match row.first()? {
                    Value::Int(tag) => Some(Tag::from_row(*tag)),
                    Value::List(_) | Value::Null => return None,
                },
                _ => return None,
            };
            shown.seen.push(Seen::Presence {
                key,
                version: tag.map(|_| 1),
                tag,
            });
        }
        Pick::Mirror { table, group } | Pick::Row { table, group, .. } => {
            shown
                .seen
                .push(with_makers(group_key(table, group), only(rows)?)?);
        }
        Pick::Rows { table, group } => {
            let versions: Option<Vec<u64>> = rows.iter().map(|row| count(row, 1)).collect();
            let versions = versions.filter(|versions| versions.len() == GROUP_ROWS as usize)?;
            shown
                .seen
                .push(register(group_key(table, group), versions, Vec::new()));
        }
        Pick::Sums { table, group } => {
            let row = only(rows)?;
            let (sum, rows, least) = (count(row, 0)?, count(row, 1)?, count(row, 2)?);
            (rows == u64::from(GROUP_ROWS)).then_some(())?;
            let others = sum - least * (rows - 1);
            shown.seen.push(register(
                group_key(table, group),
                vec![least, others],
                Vec::new(),
            ));
        }
        Pick::View { table, group } => {
            let versions: Option<Vec<u64>> = rows
                .iter()
                .flat_map(|row| [count(row, 0), count(row, 1)])
                .collect();
            let versions = versions.filter(|versions| versions.len() == 2 * GROUP_ROWS as usize)?;
            shown
                .seen
                .push(register(group_key(table, group), versions, Vec::new()));
        }
    }
    Some(shown)
}

fn only(rows: &[Vec<Value>]) -> Option<&[Value]> {
    match rows {
        [row] => Some(row),
        _ => None,
    }
}

/// The pick that shows a group which was just written.
pub(crate) fn of_written(random: &mut fastrand::Rng, group: u32) -> Pick {
    let (table, number) = place(group);
    Pick::of_group(random, table, number)
}

/// Chains below are those of single tables.
const ALL_CELLS_CHAIN: u16 = 100;
const EVERYTHING_CHAIN: u16 = 101;

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(rows: &[&[i64]]) -> Vec<Vec<Value>> {
        rows.iter()
            .map(|row| row.iter().copied().map(Value::Int).collect())
            .collect()
    }

    fn versions(pick: Pick, rows: &[&[i64]]) -> Option<Vec<Vec<u64>>> {
        let shown = shown(pick, 0, &ints(rows))?;
        let versions = shown.seen.into_iter().map(|seen| match seen {
            Seen::Register { versions, .. } => versions,
            Seen::Presence { version, .. } => version.into_iter().collect(),
        });
        Some(versions.collect())
    }

    #[test]
    fn an_answer_shows_each_version_as_often_as_it_holds_it() {
        let (table, group) = (1, 2);
        let rows = Pick::Rows { table, group };
        assert_eq!(
            versions(rows, &[&[6, 4], &[7, 4], &[8, 5]]),
            Some(vec![vec![4, 4, 5]])
        );
        let view = Pick::View { table, group };
        assert_eq!(
            versions(view, &[&[4, 4], &[4, 4], &[4, 3]]),
            Some(vec![vec![4, 4, 4, 4, 4, 3]])
        );
        let sums = Pick::Sums { table, group };
        assert_eq!(versions(sums, &[&[12, 3, 4]]), Some(vec![vec![4, 4]]));
        assert_eq!(versions(sums, &[&[13, 3, 4]]), Some(vec![vec![4, 5]]));
        let coming = |counted| Pick::Coming { slot: 0, counted };
        assert_eq!(versions(coming(false), &[]), Some(vec![vec![]]));
        assert_eq!(versions(coming(false), &[&[3]]), Some(vec![vec![3]]));
        assert_eq!(versions(coming(true), &[&[3, 1]]), Some(vec![vec![3]]));
    }

    #[test]
    fn an_answer_with_too_few_rows_or_too_many_is_no_answer() {
        let (table, group) = (1, 2);
        assert_eq!(versions(Pick::Rows { table, group }, &[&[6, 4]]), None);
        assert_eq!(versions(Pick::Mirror { table, group }, &[]), None);
        assert_eq!(versions(Pick::Sums { table, group }, &[&[8, 2, 4]]), None);
        assert_eq!(versions(Pick::AllGroups { table }, &[&[0, 1]]), None);
        let counted = Pick::Coming {
            slot: 0,
            counted: true,
        };
        assert_eq!(versions(counted, &[&[3, 0]]), None);
        // Version 4 is of four writes, all of which must be named.
        let recent = vec![vec![Value::Int(4), Value::List(vec![1, 2, 3])]];
        assert_eq!(shown(Pick::Cell(1), 0, &recent), None);
    }
}
