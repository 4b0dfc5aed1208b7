//! The tables that are written and read, and the statements.
//!
//! Every row that is written carries a version, which each write raises by one, and the tags of its last eight writes.
//!
//! * Groups: three rows of `rows_n` and one of `mirror_n`, always changed together; `view_n` joins them. A group is one key.
//! * Cells: rows of `cells`, each a key by itself. Their balances have a constant sum.
//! * Comings: rows of `comings`, inserted and deleted in turn.
//! * Log: rows of `log`, whose keys the server makes.

use crate::history::{Family, Key};

/// Tables with groups.
pub(crate) const TABLES: u32 = 4;
/// Groups in each of them.
pub(crate) const GROUPS: u32 = 16;
/// Rows of a group in `rows_n`.
pub(crate) const GROUP_ROWS: u32 = 3;
pub(crate) const CELLS: u32 = 48;
/// Balance of a cell at the start.
pub(crate) const BALANCE: i64 = 1000;
/// Rows that come and go at the same time.
pub(crate) const COMINGS: u32 = 12;

/// The next version, by the tag in `$2`.
const BUMP: &str =
    "v = v + 1, recent = (recent || $2::int8)[greatest(1, cardinality(recent) - 6):]";

/// What makes the tables.
pub(crate) fn create() -> String {
    let mut sql = String::new();
    for table in 0..TABLES {
        sql += &format!(
            "CREATE TABLE rows_{table} (id int PRIMARY KEY, grp int NOT NULL, v int8 NOT NULL DEFAULT 0,
                 recent int8[] NOT NULL DEFAULT '{{}}');
             CREATE INDEX ON rows_{table} (grp);
             CREATE TABLE mirror_{table} (grp int PRIMARY KEY, v int8 NOT NULL DEFAULT 0,
                 recent int8[] NOT NULL DEFAULT '{{}}');
             CREATE VIEW view_{table} AS SELECT r.grp, r.v, m.v AS mirrored
                 FROM rows_{table} r JOIN mirror_{table} m USING (grp);
             INSERT INTO rows_{table} (id, grp) SELECT i, i / {GROUP_ROWS}
                 FROM generate_series(0, {GROUPS} * {GROUP_ROWS} - 1) i;
             INSERT INTO mirror_{table} (grp) SELECT i FROM generate_series(0, {GROUPS} - 1) i;"
        );
    }
    sql += &format!(
        "CREATE TABLE cells (id int PRIMARY KEY, balance int8 NOT NULL, v int8 NOT NULL DEFAULT 0,
             recent int8[] NOT NULL DEFAULT '{{}}');
         INSERT INTO cells (id, balance) SELECT i, {BALANCE} FROM generate_series(0, {CELLS} - 1) i;
         CREATE TABLE comings (id int PRIMARY KEY, n int8 NOT NULL);
         CREATE TABLE log (id serial PRIMARY KEY, tag int8 NOT NULL);
         CREATE FUNCTION bump(cell int, tag int8) RETURNS int8 LANGUAGE sql AS
             'UPDATE cells SET v = v + 1, recent = (recent || tag)[greatest(1, cardinality(recent) - 6):]
              WHERE id = cell RETURNING v';"
    );
    sql
}

/// The group of that number: its table, and its number there.
pub(crate) fn place(group: u32) -> (u32, u32) {
    (group % TABLES, group / TABLES)
}

pub(crate) fn group_key(table: u32, number: u32) -> Key {
    Key {
        family: Family::Group,
        number: number * TABLES + table,
    }
}

pub(crate) fn cell_key(number: u32) -> Key {
    Key {
        family: Family::Cell,
        number,
    }
}

/// Texts that name a table of groups.
#[derive(Debug)]
pub(crate) struct GroupSql {
    /// Parameters: the row, the tag.
    pub(crate) bump_row: String,
    /// Parameters: the group, the tag. Does not name the whole key.
    pub(crate) bump_rows: String,
    /// Parameters: the group, the tag. Returns the version.
    pub(crate) bump_mirror: String,
    /// Parameters: the group, the tag. All four rows in one statement. Returns the version.
    pub(crate) bump_all: String,
    /// Parameter: the row.
    pub(crate) row: String,
    /// Parameter: the group.
    pub(crate) mirror: String,
    /// Parameter: the group.
    pub(crate) rows: String,
    /// Parameter: the group.
    pub(crate) view: String,
    /// Parameter: the group.
    pub(crate) sums: String,
    pub(crate) all: String,
}

/// All texts.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) groups: Vec<GroupSql>,
    /// The mirrors of all tables, in one answer.
    pub(crate) everything: String,
    /// Parameters: the cell, the tag. Returns the version.
    pub(crate) bump_cell: String,
    /// Parameters: two cells, the tag behind the first. Returns cells and versions.
    pub(crate) transfer: String,
}

impl Sql {
    pub(crate) fn new() -> Self {
        let groups = (0..TABLES).map(GroupSql::new).collect();
        let parts: Vec<String> = (0..TABLES)
            .map(|table| format!("SELECT {table} AS t, grp, v FROM mirror_{table}"))
            .collect();
        Self {
            groups,
            everything: format!("{} ORDER BY t, grp", parts.join(" UNION ALL ")),
            bump_cell: format!("UPDATE cells SET {BUMP} WHERE id = $1 RETURNING v"),
            transfer: format!(
                "UPDATE cells SET {BUMP}, balance = balance + CASE id WHEN $1 THEN -7 ELSE 7 END \
                 WHERE id IN ($1, $3) RETURNING id, v"
            ),
        }
    }
}

impl GroupSql {
    fn new(table: u32) -> Self {
        Self {
            bump_row: format!("UPDATE rows_{table} SET {BUMP} WHERE id = $1"),
            bump_rows: format!("UPDATE rows_{table} SET {BUMP} WHERE grp = $1"),
            bump_mirror: format!("UPDATE mirror_{table} SET {BUMP} WHERE grp = $1 RETURNING v"),
            bump_all: format!(
                "WITH m AS (UPDATE mirror_{table} SET {BUMP} WHERE grp = $1 RETURNING grp, v), \
                 r AS (UPDATE rows_{table} SET {BUMP} WHERE grp = $1 RETURNING grp) SELECT v FROM m"
            ),
            row: format!("SELECT v, recent FROM rows_{table} WHERE id = $1"),
            mirror: format!("SELECT v, recent FROM mirror_{table} WHERE grp = $1"),
            rows: format!("SELECT id, v FROM rows_{table} WHERE grp = $1 ORDER BY id"),
            view: format!("SELECT v, mirrored FROM view_{table} WHERE grp = $1"),
            sums: format!("SELECT sum(v)::int8, count(*), min(v) FROM rows_{table} WHERE grp = $1"),
            all: format!("SELECT grp, v FROM mirror_{table} ORDER BY grp"),
        }
    }
}

/// Parameter: the cell.
pub(crate) const CELL: &str = "SELECT v, recent FROM cells WHERE id = $1";
/// Parameters: three cells.
pub(crate) const CELLS_IN: &str = "SELECT id, v FROM cells WHERE id IN ($1, $2, $3) ORDER BY id";
pub(crate) const ALL_CELLS: &str = "SELECT id, v FROM cells ORDER BY id";
pub(crate) const SUM_OF_BALANCES: &str = "SELECT sum(balance)::int8 FROM cells";
/// Parameter: the row.
pub(crate) const COMING: &str = "SELECT n FROM comings WHERE id = $1";
/// Parameter: the row.
pub(crate) const COMING_EXISTS: &str = "SELECT max(n), count(*) FROM comings WHERE id = $1";
/// Parameters: the row, the version.
pub(crate) const COME: &str = "INSERT INTO comings VALUES ($1, $2::int8)";
/// Parameter: the row.
pub(crate) const GO: &str = "DELETE FROM comings WHERE id = $1";
/// Parameter: the row.
pub(crate) const LOGGED: &str = "SELECT tag FROM log WHERE id = $1";
/// Parameter: the tag.
pub(crate) const LOG: &str = "INSERT INTO log (tag) VALUES ($1::int8) RETURNING id";
/// Parameters: the cell, the tag.
pub(crate) const BUMP_BY_FUNCTION: &str = "SELECT bump($1, $2::int8)";
