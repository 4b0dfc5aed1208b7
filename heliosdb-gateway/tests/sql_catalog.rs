//! Classification against a real server: what it says a statement reads and writes is held against
//! the locks that the server takes when the statement runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use heliosdb_gateway::sql::{
    Catalog, Class, Effect, NameScope, Read, Write, classify, is_pure_parameter_type,
    quote_setting_name, split_identifiers,
};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const SCHEMA: &str = r#"
CREATE ROLE bob;
CREATE ROLE app;
CREATE SCHEMA app;
CREATE SCHEMA bob;
GRANT USAGE ON SCHEMA bob TO bob;
CREATE TABLE users (id int PRIMARY KEY, name text, since timestamptz DEFAULT now());
CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE);
CREATE TABLE items (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE SET NULL ON UPDATE CASCADE);
CREATE TABLE notes (id int PRIMARY KEY, item_id int REFERENCES items ON DELETE CASCADE);
CREATE TABLE plain_reference (id int PRIMARY KEY, user_id int REFERENCES users);
CREATE TABLE "Orders" (id int, "Total" numeric);
CREATE TABLE parts (id int, day date) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200) PARTITION BY LIST (id);
CREATE TABLE parts_2a PARTITION OF parts_2 DEFAULT;
CREATE TABLE parent (id int);
CREATE TABLE child (extra int) INHERITS (parent);
CREATE TABLE app.users (id int);
CREATE TABLE app.only_here (id int);
CREATE TABLE bob.users (id int);
CREATE TABLE hidden (id int);
CREATE TABLE secret (id int);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE TABLE acl (id int, who text);
CREATE POLICY p ON secret USING (id IN (SELECT id FROM acl WHERE who = current_user));
CREATE TABLE audited (id int);
CREATE UNLOGGED TABLE scratch (id int);
CREATE TABLE with_regclass (id int, r regclass);
CREATE TABLE shifts (opens time);
CREATE SEQUENCE ids;
CREATE FUNCTION reads_hidden() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT count(*) FROM hidden); END';
CREATE FUNCTION says_immutable(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT max(id) FROM hidden';
CREATE FUNCTION writes_hidden() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO hidden VALUES (1) RETURNING id';
CREATE FUNCTION users_badge(users) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM hidden';
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO hidden VALUES (NEW.id); RETURN NEW; END';
CREATE TRIGGER audit AFTER INSERT ON audited FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TABLE with_default (id int DEFAULT writes_hidden());
CREATE TABLE with_check (id int CHECK (says_immutable(id) IS NULL OR id > 0));
CREATE DOMAIN small AS int CHECK (VALUE < 100);
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE VIEW adults AS SELECT id, name FROM users;
CREATE VIEW nested AS WITH users AS (SELECT 1 AS id) SELECT o.id FROM orders o JOIN adults a ON a.id = o.user_id, users;
CREATE VIEW over_parts AS SELECT p.id, to_char(p.day, 'YYYY') AS year FROM parts p;
CREATE VIEW calls_hidden AS SELECT id FROM users WHERE reads_hidden() >= 0;
CREATE VIEW calls_writer AS SELECT writes_hidden() AS id;
CREATE VIEW with_secret AS SELECT id FROM secret;
CREATE VIEW quoted AS SELECT id, "Total" FROM "Orders";
CREATE VIEW uses_clock AS SELECT id FROM users WHERE since < now();
CREATE VIEW with_backslash AS SELECT id FROM users WHERE name = E'a\\b''c';
CREATE VIEW ruled AS SELECT id FROM users;
CREATE RULE r AS ON INSERT TO ruled DO INSTEAD INSERT INTO hidden VALUES (NEW.id);
CREATE MATERIALIZED VIEW totals AS SELECT count(*)::int AS id FROM orders;
CREATE VIEW over_totals AS SELECT id FROM totals;
CREATE TABLE second_parent (id int);
CREATE TABLE grandchild () INHERITS (child, second_parent);
CREATE VIEW on_nested AS SELECT n.id FROM nested n LEFT JOIN over_totals t USING (id);
CREATE MATERIALIZED VIEW kept AS SELECT id FROM on_nested;
CREATE VIEW over_kept AS SELECT id FROM kept UNION SELECT id FROM parts_2a;
CREATE VIEW over_child AS SELECT c.id FROM child c, LATERAL (SELECT id FROM second_parent s WHERE s.id = c.id) l;
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
INSERT INTO users SELECT n, 'n' || n FROM generate_series(1, 5) n;
INSERT INTO orders SELECT n, n FROM generate_series(1, 5) n;
INSERT INTO items SELECT n, n FROM generate_series(1, 5) n;
INSERT INTO notes SELECT n, n FROM generate_series(1, 5) n;
INSERT INTO parts SELECT n * 40, '2026-01-01' FROM generate_series(0, 4) n;
GRANT SELECT ON ALL TABLES IN SCHEMA public, app, bob TO bob;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO app;
"#;

/// A server with [`SCHEMA`], one connection to it, and its catalog.
struct Fixture {
    client: Client,
    catalog: Catalog,
    _server: Server,
}

impl Fixture {
    async fn new() -> Self {
        let server = Server::start();
        let (client, connection) = tokio_postgres::connect(&server.url(), NoTls)
            .await
            .expect("the server accepts connections");
        tokio::spawn(connection);
        client
            .batch_execute(SCHEMA)
            .await
            .expect("the schema is valid");
        // An ordinary role must be able to load it.
        client.batch_execute("SET ROLE app").await.expect("role");
        let catalog = load(&client).await;
        client.batch_execute("RESET ROLE").await.expect("role");
        Self {
            client,
            catalog,
            _server: server,
        }
    }

    fn classify(&self, sql: &str, user: &str, path: &[&str]) -> Class {
        classify(sql, &self.catalog, &scope(user, path))
    }

    async fn rows(&self, sql: &str) -> Vec<String> {
        let messages = self.client.simple_query(sql).await.expect(sql);
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect()
    }

    /// Keys of the tables that the server locks in `modes` to run `sql`, which is then rolled back;
    /// `None` if it fails.
    async fn locked(&self, setup: &str, sql: &str, modes: &str) -> Option<BTreeSet<u32>> {
        let begin = format!("BEGIN; {setup}");
        self.client.batch_execute(&begin).await.expect("setup");
        let outcome = self.client.simple_query(sql).await;
        let locks = match outcome {
            Ok(_) => Some(
                self.rows(&format!(
                    "RESET ROLE; SELECT DISTINCT l.relation FROM pg_catalog.pg_locks l \
                     JOIN pg_catalog.pg_class c ON c.oid = l.relation \
                     WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' \
                     AND c.relkind IN ('r', 'p', 'm', 'f') AND c.relnamespace <> 11 AND l.mode ~ '{modes}'"
                ))
                .await,
            ),
            Err(_) => None,
        };
        self.client
            .batch_execute("ROLLBACK")
            .await
            .expect("rollback");
        locks.map(|locks| {
            locks
                .iter()
                .map(|oid| self.catalog.key_of(oid.parse().expect("an identifier")))
                .collect()
        })
    }

    /// Holds what a read is said to depend on against what the server locks. Gives whether the read
    /// is cacheable and ran.
    async fn check_read(&self, sql: &str, user: &str, path: &[&str]) -> bool {
        let class = self.classify(sql, user, path);
        let Some(relations) = class.cacheable() else {
            return false;
        };
        let resolved: BTreeSet<u32> = relations.iter().map(|relation| relation.key).collect();
        let path = path
            .iter()
            .map(|entry| format!("\"{entry}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let path = if path.is_empty() {
            "''".to_owned()
        } else {
            path
        };
        let setup = format!(
            "SET LOCAL search_path = {path}; SET LOCAL statement_timeout = '250ms'; SET LOCAL ROLE {user}"
        );
        let Some(observed) = self.locked(&setup, sql, ".").await else {
            return false;
        };
        assert!(
            observed.is_subset(&resolved),
            "{sql}\n  as {user} on {path}\n  resolved {relations:?}\n  but the server locked {observed:?}"
        );
        true
    }

    /// Holds what a write is said to touch against what the server locks to write.
    async fn check_write(&self, sql: &str) -> Write {
        let class = self.classify(sql, "postgres", &["public"]);
        let observed = self
            .locked(
                "SET LOCAL search_path = public",
                sql,
                "RowExclusive|^AccessExclusive",
            )
            .await
            .unwrap_or_else(|| panic!("{sql} fails"));
        assert!(!observed.is_empty(), "{sql} writes");
        let write = class.statements[0].write.clone();
        match &write {
            Write::None => panic!("{sql} is said to write nothing"),
            Write::Relations(relations) => {
                let resolved: BTreeSet<u32> = relations.iter().map(|r| r.key).collect();
                assert!(
                    observed.is_subset(&resolved),
                    "{sql}: resolved {relations:?}, but the server locked {observed:?}"
                );
            }
            _ => {}
        }
        write
    }
}

async fn load(client: &Client) -> Catalog {
    let messages = client
        .simple_query(Catalog::LOAD)
        .await
        .expect("the load runs");
    let mut results: Vec<Vec<Vec<Option<String>>>> = Vec::new();
    for message in &messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => results.push(Vec::new()),
            SimpleQueryMessage::Row(row) => {
                results.last_mut().expect("a description comes first").push(
                    (0..row.len())
                        .map(|at| row.get(at).map(str::to_owned))
                        .collect(),
                )
            }
            _ => {}
        }
    }
    Catalog::from_results(1, results).expect("the load is understood")
}

fn scope(user: &str, path: &[&str]) -> NameScope {
    NameScope {
        user: user.to_owned(),
        search_path: path.iter().map(|&entry| entry.to_owned()).collect(),
        standard_conforming_strings: true,
        client_encoding_utf8: true,
    }
}

const PATHS: [(&str, &[&str]); 5] = [
    ("postgres", &["public"]),
    ("postgres", &["app", "public"]),
    // bob may not use app: for him its names mean those of public.
    ("bob", &["app", "public"]),
    ("bob", &["$user", "public"]),
    ("postgres", &[]),
];

#[tokio::test]
async fn reads_depend_on_everything_the_server_locks() {
    let fixture = Fixture::new().await;
    let mut cacheable = 0;
    for (user, path) in PATHS {
        for sql in READS {
            cacheable += usize::from(fixture.check_read(sql, user, path).await);
        }
    }
    // On the first path all of them are cacheable.
    assert!(cacheable > READS.len() * 3, "{cacheable}");
    for sql in READS {
        let class = fixture.classify(sql, "postgres", &["public"]);
        assert!(
            class.cacheable().is_some(),
            "{sql}: {:?}",
            class.statements[0].read
        );
    }
    for sql in REFUSED {
        let class = fixture.classify(sql, "postgres", &["public"]);
        assert!(class.parsed && class.cacheable().is_none(), "{sql}");
        assert!(
            fixture.locked("", sql, ".").await.is_some(),
            "{sql} is not valid"
        );
    }
}

const READS: [&str; 32] = [
    "SELECT * FROM users",
    "SELECT * FROM adults",
    "SELECT * FROM nested",
    "SELECT * FROM over_parts",
    "SELECT * FROM over_totals",
    "SELECT * FROM quoted",
    "SELECT \"Total\" FROM \"Orders\"",
    "SELECT * FROM with_backslash",
    "SELECT * FROM parts WHERE id = 40",
    "SELECT * FROM parts_1",
    "SELECT * FROM parts_2",
    "SELECT * FROM parent",
    "SELECT * FROM ONLY parent",
    "SELECT * FROM child",
    "SELECT * FROM grandchild",
    "SELECT * FROM second_parent",
    "SELECT * FROM on_nested",
    "SELECT * FROM over_kept",
    "SELECT * FROM over_child",
    "SELECT * FROM parts_2a",
    "SELECT * FROM scratch",
    "SELECT * FROM public.users, app.users u2",
    "WITH users AS (SELECT * FROM users) SELECT * FROM users",
    "WITH users AS (SELECT 1) SELECT * FROM users, (SELECT id FROM orders) o",
    "WITH RECURSIVE t AS (SELECT id FROM orders UNION SELECT t.id + 1 FROM t WHERE id < 9) SELECT * FROM t",
    "SELECT u.since::date, (SELECT count(*) FROM items) FROM users u",
    "SELECT json_agg(o) FROM orders o",
    "SELECT string_agg(name, ',' ORDER BY id) FROM users GROUP BY GROUPING SETS ((id), ())",
    "SELECT row_number() OVER (PARTITION BY user_id ORDER BY id) FROM orders",
    "SELECT * FROM users u, LATERAL (SELECT * FROM orders o WHERE o.user_id = u.id) l",
    "SELECT 'sad'::mood, '1'::int, date_trunc('day', timestamptz '2026-01-01')",
    "SELECT DISTINCT ON (user_id) * FROM orders ORDER BY user_id, id DESC LIMIT 3",
];

const REFUSED: [&str; 23] = [
    "SELECT * FROM pg_class",
    "SELECT * FROM information_schema.tables LIMIT 1",
    "SELECT * FROM secret",
    "SELECT * FROM with_secret",
    "SELECT * FROM calls_hidden",
    "SELECT * FROM uses_clock",
    "SELECT reads_hidden()",
    "SELECT says_immutable(1)",
    "SELECT u.users_badge FROM users u",
    "SELECT (u).users_badge FROM users u",
    "SELECT 1 === 1",
    "SELECT 1::small",
    "SELECT string_to_array('1,2', ',')::date[] WHERE false",
    "SELECT opens AT TIME ZONE 'Europe/Berlin' FROM shifts",
    "SELECT 'users'::regclass",
    "SELECT * FROM with_regclass",
    "SELECT last_value FROM ids",
    "SELECT * FROM users TABLESAMPLE system (50)",
    "SELECT name::text::date FROM users WHERE false",
    "SELECT current_user",
    "SELECT 'yesterday'::date",
    "SELECT pg_relation_size('users')",
    "SELECT query_to_xml('SELECT * FROM hidden', true, true, '')",
];

#[tokio::test]
async fn generated_reads_depend_on_everything_the_server_locks() {
    let fixture = Fixture::new().await;
    let mut ran = 0;
    // Thousands in a long run, which has a seed of its own.
    let number_of = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let reads = number_of("HELIOS_ORACLE_READS").unwrap_or(600);
    let seed = number_of("HELIOS_ORACLE_SEED").unwrap_or(0x2026_1123);
    println!("{reads} statements, HELIOS_ORACLE_SEED={seed}");
    let mut random = Random(seed as u64);
    for n in 0..reads {
        let (user, path) = PATHS[random.below(4)];
        let sql = Generator {
            random: &mut random,
            aliases: 0,
        }
        .select(3, &mut Vec::new());
        ran += usize::from(fixture.check_read(&sql, user, path).await);
        assert!(
            n < 100 || ran > n / 4,
            "too few of the statements are valid and cacheable: {ran} of {n}"
        );
    }
}

/// A source of numbers that are the same on each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

/// Writes SELECT statements with one column, `id`, out of relations that all have one.
struct Generator<'a> {
    random: &'a mut Random,
    aliases: usize,
}

impl Generator<'_> {
    fn select(&mut self, depth: usize, ctes: &mut Vec<&'static str>) -> String {
        const CTE_NAMES: [&str; 6] = ["users", "orders", "parts", "nested", "a", "b"];
        let outer = ctes.len();
        let mut sql = String::new();
        if depth > 0 && self.random.below(3) == 0 {
            let recursive = self.random.below(3) == 0;
            let count = 1 + self.random.below(2);
            let names: Vec<&'static str> = (0..count)
                .map(|n| CTE_NAMES[self.random.below(5) + n % 2])
                .collect();
            let names = if count == 2 && names[0] == names[1] {
                names[..1].to_vec()
            } else {
                names
            };
            let mut bodies = Vec::new();
            for name in names {
                let body = self.select(depth - 1, ctes);
                bodies.push(format!("{name} AS ({body})"));
                ctes.push(name);
            }
            let key_word = if recursive { "RECURSIVE " } else { "" };
            sql = format!("WITH {key_word}{} ", bodies.join(", "));
        }
        let first = self.alias();
        let mut from = format!("{} {first}", self.source(depth, ctes));
        for _ in 0..self.random.below(3) {
            let alias = self.alias();
            let source = self.source(depth, ctes);
            from += &match self.random.below(3) {
                0 => format!(", {source} {alias}"),
                1 => format!(" JOIN {source} {alias} USING (id)"),
                _ => format!(" LEFT JOIN {source} {alias} ON {alias}.id = {first}.id"),
            };
        }
        if depth > 0 && self.random.below(8) == 0 {
            let (alias, inner) = (self.alias(), self.select(depth - 1, ctes));
            from += &format!(
                " CROSS JOIN LATERAL (SELECT FROM ({inner}) s WHERE s.id = {first}.id) {alias}"
            );
        }
        let column = match self.random.below(5) {
            0 if depth > 0 => {
                let inner = self.select(depth - 1, ctes);
                format!("(SELECT max(s.id) FROM ({inner}) s) AS id")
            }
            1 => format!("coalesce({first}.id, abs(-1)) AS id"),
            2 if self.random.below(3) == 0 => {
                format!(
                    "DISTINCT ON ({first}.id) first_value({first}.id) OVER (ORDER BY {first}.id) AS id"
                )
            }
            _ => format!("{first}.id"),
        };
        sql += &format!("SELECT {column} FROM {from}");
        match self.random.below(5) {
            0 if depth > 0 => {
                let inner = self.select(depth - 1, ctes);
                sql += &format!(" WHERE EXISTS ({inner})");
            }
            1 if depth > 0 => {
                let inner = self.select(depth - 1, ctes);
                sql += &format!(" WHERE {first}.id IN ({inner})");
            }
            2 => sql += &format!(" WHERE {first}.id < 50"),
            _ => {}
        }
        if depth > 0 && self.random.below(6) == 0 {
            let other = self.select(depth - 1, ctes);
            let operator = ["UNION ALL", "UNION", "INTERSECT", "EXCEPT ALL"][self.random.below(4)];
            sql += &format!(" {operator} ({other})");
        }
        ctes.truncate(outer);
        sql
    }

    fn source(&mut self, depth: usize, ctes: &mut Vec<&'static str>) -> String {
        const RELATIONS: [&str; 28] = [
            "parts_2a",
            "grandchild",
            "second_parent",
            "on_nested",
            "kept",
            "over_kept",
            "over_child",
            "ONLY parent",
            "users",
            "orders",
            "items",
            "\"Orders\"",
            "parts",
            "parts_1",
            "parts_2",
            "parent",
            "child",
            "app.users",
            "public.users",
            "adults",
            "nested",
            "over_parts",
            "over_totals",
            "quoted",
            "totals",
            "scratch",
            "notes",
            "public.\"orders\"",
        ];
        match self.random.below(6) {
            0 if depth > 0 => format!("({})", self.select(depth - 1, ctes)),
            1 | 2 if !ctes.is_empty() => ctes[self.random.below(ctes.len())].to_owned(),
            _ => RELATIONS[self.random.below(RELATIONS.len())].to_owned(),
        }
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("t{}", self.aliases)
    }
}

#[tokio::test]
async fn writes_touch_everything_the_server_locks_to_write() {
    let fixture = Fixture::new().await;
    for sql in [
        "INSERT INTO users VALUES (9, 'x')",
        "INSERT INTO orders VALUES (9, 1)",
        "INSERT INTO orders VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET user_id = 2",
        "UPDATE users SET name = 'x'",
        "UPDATE orders SET id = id + 100",
        "DELETE FROM users WHERE id = 1",
        "DELETE FROM orders WHERE id = 1",
        "DELETE FROM items",
        "DELETE FROM adults WHERE id = 2",
        "UPDATE adults SET name = 'y'",
        "UPDATE parts SET id = 150 WHERE id = 40",
        "UPDATE parts_1 SET day = '2026-02-02'",
        "INSERT INTO parts VALUES (160)",
        "DELETE FROM parent",
        "TRUNCATE notes",
        "TRUNCATE users CASCADE",
        "TRUNCATE parts",
        "WITH d AS (DELETE FROM orders RETURNING id) INSERT INTO scratch SELECT id FROM d",
        "MERGE INTO users u USING orders o ON u.id = o.id WHEN MATCHED THEN DELETE",
        "EXPLAIN ANALYZE DELETE FROM users",
    ] {
        let write = fixture.check_write(sql).await;
        assert!(matches!(write, Write::Relations(_)), "{sql}: {write:?}");
    }
    for sql in [
        "INSERT INTO audited VALUES (1)",
        "INSERT INTO ruled VALUES (1)",
        "INSERT INTO with_default DEFAULT VALUES",
        "SELECT writes_hidden()",
        "SELECT * FROM calls_writer",
        "DO 'BEGIN DELETE FROM users; END'",
        "CREATE TABLE fresh AS SELECT * FROM users",
        "SELECT query_to_xml('SELECT writes_hidden()', true, true, '')",
    ] {
        let write = fixture.check_write(sql).await;
        assert!(matches!(write, Write::Everything(_)), "{sql}: {write:?}");
    }
    // A CHECK is IMMUTABLE by the server's own rules.
    let write = fixture
        .check_write("INSERT INTO with_check VALUES (1)")
        .await;
    assert!(matches!(write, Write::Relations(_)), "{write:?}");
}

#[tokio::test]
async fn built_in_functions_that_are_not_pure_are_refused() {
    let fixture = Fixture::new().await;
    let volatile = fixture
        .rows("SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 11 AND provolatile = 'v'")
        .await;
    assert!(volatile.len() > 100);
    for name in volatile {
        let class = fixture.classify(&format!("SELECT \"{name}\"(1)"), "postgres", &["public"]);
        assert!(class.cacheable().is_none(), "{name}");
    }
    let immutable = fixture
        .rows(
            "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 11 AND provolatile = 'i' \
             AND proname IN ('lower', 'upper', 'abs', 'count', 'sum', 'jsonb_array_elements', 'md5', 'unnest')",
        )
        .await;
    assert_eq!(immutable.len(), 8);
    for name in immutable {
        let class = fixture.classify(
            &format!("SELECT {name}(id) FROM users"),
            "postgres",
            &["public"],
        );
        assert!(class.cacheable().is_some(), "{name}");
    }
    // Whoever reads the clock, the session or the catalogs; all are STABLE.
    for name in [
        "now",
        "statement_timestamp",
        "transaction_timestamp",
        "current_setting",
        "pg_backend_pid",
        "txid_current",
        "inet_client_addr",
        "has_table_privilege",
        "to_regclass",
        "pg_get_viewdef",
        "json_populate_record",
        "version",
        "obj_description",
        "pg_table_is_visible",
        "enum_range",
        "pg_typeof",
        "timetz",
        "table_to_xml",
    ] {
        let class = fixture.classify(
            &format!("SELECT {name}(id) FROM users"),
            "postgres",
            &["public"],
        );
        assert!(class.cacheable().is_none(), "{name}");
    }
}

#[tokio::test]
async fn impure_parameter_types_are_known_by_their_identifiers() {
    let fixture = Fixture::new().await;
    let impure = fixture
        .rows(
            "SELECT t.oid FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' \
             WHERE t.oid < 10000 AND COALESCE(e.typname, t.typname) ~ '^(reg|aclitem$|timetz$|time$)'",
        )
        .await;
    assert!(impure.len() > 20);
    let all = fixture
        .rows("SELECT oid FROM pg_type WHERE oid < 10000")
        .await;
    for oid in all {
        let pure = is_pure_parameter_type(oid.parse().expect("an identifier"));
        assert_eq!(pure, !impure.contains(&oid), "{oid}");
    }
}

#[tokio::test]
async fn repeated_settings_mean_the_same() {
    let fixture = Fixture::new().await;
    for (setting, sql) in [
        (
            "search_path",
            "SET search_path TO \"$user\", Public, \"My Own\"",
        ),
        (
            "search_path",
            "SELECT set_config('search_path', '\"$user\", Public,app', false)",
        ),
        ("search_path", "SET SCHEMA 'app'"),
        ("datestyle", "SET DateStyle = SQL, DMY"),
        (
            "datestyle",
            "SELECT set_config('datestyle', 'sql, dmy', false)",
        ),
        ("timezone", "SET TIME ZONE 'Europe/Berlin'"),
        ("timezone", "SET TIME ZONE -7"),
        ("timezone", "SET TIME ZONE '<+02>-02'"),
        ("timezone", "SET TIME ZONE LOCAL"),
        ("work_mem", "SET work_mem = '12MB'"),
        ("work_mem", "SET work_mem TO 6400"),
        ("jit", "SET jit TO off"),
        ("my.setting", "SET my.setting = 'it''s a \"quote\"'"),
        (
            "my.setting",
            "SET my.setting = E'back\\\\slash and ''quote'",
        ),
        ("my.setting", "SET my.setting = -1.5"),
        ("role", "SET ROLE bob"),
        (
            "default_transaction_isolation",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        ),
        ("extra_float_digits", "SET extra_float_digits = -3"),
        ("xmloption", "SET XML OPTION DOCUMENT"),
        ("client_encoding", "SET NAMES 'UTF8'"),
    ] {
        let show = format!("SHOW {setting}");
        fixture
            .client
            .batch_execute("RESET ALL; RESET ROLE")
            .await
            .expect("reset");
        fixture.client.batch_execute(sql).await.expect(sql);
        let wanted = fixture.rows(&show).await;
        let class = fixture.classify(sql, "postgres", &["public"]);
        let [
            Effect::Set {
                name,
                value,
                local: false,
            },
        ] = class.statements[0].effects.as_slice()
        else {
            panic!("{sql}: {class:?}");
        };
        assert_eq!(name, setting);
        for conforming in ["on", "off"] {
            let repeat = format!(
                "RESET ALL; RESET ROLE; SET standard_conforming_strings = {conforming}; SET escape_string_warning = off;"
            );
            fixture.client.batch_execute(&repeat).await.expect("reset");
            let repeat = format!("SET {} TO {value}", quote_setting_name(name));
            fixture.client.batch_execute(&repeat).await.expect(&repeat);
            let shown = fixture.rows(&show).await;
            if setting == "search_path" {
                // set_config() keeps the list as it was written, SET quotes it anew.
                assert_eq!(
                    split_identifiers(&shown[0]),
                    split_identifiers(&wanted[0]),
                    "{repeat}"
                );
            } else {
                assert_eq!(shown, wanted, "{repeat}");
            }
        }
    }
}

#[tokio::test]
async fn trees_and_logging_are_read_from_the_server() {
    let fixture = Fixture::new().await;
    let key = |name: &str| {
        let class = fixture.classify(&format!("SELECT * FROM {name}"), "postgres", &["public"]);
        match &class.statements[0].read {
            Read::Cacheable(relations) => (relations[0].key, relations[0].decoded),
            refused => panic!("{name}: {refused:?}"),
        }
    };
    assert_eq!(key("parts_2a"), key("parts"));
    assert_eq!(key("child"), key("parent"));
    assert_ne!(key("parent"), key("parts"));
    let oid = fixture.rows("SELECT 'public.parts'::regclass::oid").await;
    assert_eq!(oid, [key("parts").0.to_string()]);
    assert!(key("users").1 && key("parts").1);
    assert!(!key("scratch").1 && !key("totals").1);
    assert!(fixture.catalog.relation_count() > 50);
    assert_eq!(fixture.catalog.epoch(), 1);
}

/// A server of its own for one test, on a socket in a directory that goes with it.
struct Server {
    directory: TempDir,
    binaries: PathBuf,
}

impl Server {
    fn start() -> Self {
        let server = Self {
            directory: tempfile::tempdir().expect("a directory"),
            binaries: binaries(),
        };
        let data = server.data();
        let data = data.to_str().expect("a plain path");
        if is_root() {
            let status = Command::new("chown")
                .arg("postgres")
                .arg(server.directory.path())
                .status();
            assert!(status.expect("chown runs").success());
        }
        server.run(
            "initdb",
            &[
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ],
        );
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories='{}' -c fsync=off",
            server.directory.path().display()
        );
        let log = server.directory.path().join("log");
        server.run(
            "pg_ctl",
            &[
                "-D",
                data,
                "-w",
                "-o",
                &options,
                "-l",
                log.to_str().expect("a plain path"),
                "start",
            ],
        );
        server
    }

    fn url(&self) -> String {
        format!(
            "host={} user=postgres dbname=postgres",
            self.directory.path().display()
        )
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Runs one of PostgreSQL's programs, which refuse to run as root.
    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.binaries.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
                .arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let status = command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .status();
        assert!(
            status.expect("the program runs").success(),
            "{} failed",
            program.display()
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.data();
        self.run(
            "pg_ctl",
            &[
                "-D",
                data.to_str().expect("a plain path"),
                "-m",
                "immediate",
                "-w",
                "stop",
            ],
        );
    }
}

/// Where the newest installed server's programs are; distributions keep them out of the search path.
fn binaries() -> PathBuf {
    let versions = Path::new("/usr/lib/postgresql");
    let newest = std::fs::read_dir(versions).ok().and_then(|entries| {
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .max()
    });
    newest.map_or_else(PathBuf::new, |version| {
        versions.join(version.to_string()).join("bin")
    })
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout.starts_with(b"0\n")
}
