//! Every way to write that PostgreSQL knows: behind it, each read that helios had in memory is what the server now says,
//! for every client, by the simple and by the extended protocol.
//!
//! The test has been seen to fail with each of these broken:
//! * foreign-key actions not followed (`Targets::reach` without its cascades);
//! * `PREPARE TRANSACTION` and `COMMIT PREPARED` taken for nothing (`Effect::TwoPhaseEnd` in `written_slots`);
//! * SQL-level EXECUTE taken for a read (`writes_anything` in `Builder::execute`).

use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{
    Wire, bind, bind_with, copy_data, copy_done, execute, message, parse, query, step, sync,
};
use crate::support::{Helios, Stack};

const SCHEMA: &str = "
CREATE ROLE app; CREATE SCHEMA early; CREATE SCHEMA late;
CREATE TABLE users (id int PRIMARY KEY, name text, n int DEFAULT 0);
CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE items (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE SET NULL);
CREATE TABLE notes (id int PRIMARY KEY, item_id int REFERENCES items ON DELETE SET NULL);
CREATE TABLE tags (id int PRIMARY KEY, user_id int DEFAULT 1 REFERENCES users ON DELETE SET DEFAULT ON UPDATE SET DEFAULT);
CREATE TABLE logs (id serial, text text);
CREATE TABLE targets (id int PRIMARY KEY, n int);
CREATE VIEW names AS SELECT id, name FROM users;
CREATE VIEW short_names AS SELECT id, name FROM names WHERE length(name) < 9;
CREATE VIEW by_trigger AS SELECT id, name FROM users;
CREATE VIEW by_rule AS SELECT id, name FROM users;
CREATE FUNCTION write_log() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO public.logs (text) VALUES (TG_TABLE_NAME || TG_OP); RETURN NULL; END';
CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN UPDATE public.users SET name = NEW.name WHERE id = NEW.id; RETURN NEW; END';
CREATE TRIGGER instead INSTEAD OF UPDATE ON by_trigger FOR EACH ROW EXECUTE FUNCTION instead();
CREATE RULE instead AS ON UPDATE TO by_rule DO INSTEAD UPDATE targets SET n = n + 1;
CREATE TABLE watched (id int); CREATE TABLE watched_rows (id int); CREATE TABLE watched_late (id int);
CREATE TRIGGER log AFTER INSERT ON watched FOR EACH STATEMENT EXECUTE FUNCTION write_log();
CREATE TRIGGER log AFTER INSERT ON watched_rows FOR EACH ROW EXECUTE FUNCTION write_log();
CREATE CONSTRAINT TRIGGER log AFTER INSERT ON watched_late DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION write_log();
CREATE TABLE also (id int); CREATE RULE also AS ON INSERT TO also DO ALSO INSERT INTO logs (text) VALUES ('also');
CREATE FUNCTION adds() RETURNS int LANGUAGE sql AS 'UPDATE public.targets SET n = n + 1 RETURNING n';
CREATE TABLE by_default (id int, n int DEFAULT adds());
CREATE PROCEDURE adds_in_two() LANGUAGE plpgsql AS
    'BEGIN UPDATE public.targets SET n = n + 1; COMMIT; UPDATE public.targets SET n = n + 1; END';
CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
CREATE TABLE parts_lowest PARTITION OF parts_low FOR VALUES FROM (0) TO (50);
CREATE TABLE parts_mid PARTITION OF parts_low FOR VALUES FROM (50) TO (100);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200);
CREATE TABLE parts_new (id int, v text); INSERT INTO parts_new VALUES (250, 'new');
CREATE TABLE parent (id int); CREATE TABLE child (id int) INHERITS (parent); CREATE TABLE stranger (id int);
INSERT INTO stranger VALUES (77);
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n, max(name) AS name FROM users;
CREATE UNIQUE INDEX ON counted (n);
CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE moods (m mood); INSERT INTO moods VALUES ('sad');
CREATE TABLE late.shadowed (v text); INSERT INTO late.shadowed VALUES ('late');
CREATE EXTENSION dblink;
INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 40) n;
INSERT INTO orders SELECT n, n FROM generate_series(1, 40) n;
INSERT INTO items SELECT n, n FROM generate_series(1, 40) n;
INSERT INTO notes SELECT n, n FROM generate_series(1, 40) n;
INSERT INTO tags SELECT n, n FROM generate_series(1, 40) n;
INSERT INTO targets SELECT n, 0 FROM generate_series(1, 5) n;
INSERT INTO parts SELECT n * 10, 'part ' || n FROM generate_series(0, 15) n;
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2);
";

const READS: &[&str] = &[
    "SELECT * FROM users ORDER BY 1",
    "SELECT name FROM users WHERE id = 7",
    "SELECT count(*), sum(user_id) FROM orders",
    "SELECT count(*), sum(order_id), count(order_id) FROM items",
    "SELECT count(item_id) FROM notes",
    "SELECT sum(user_id) FROM tags",
    "SELECT id, text FROM logs ORDER BY id",
    "SELECT sum(n), max(id) FROM targets",
    "SELECT * FROM short_names ORDER BY 1",
    "SELECT count(*) FROM watched, watched_rows, watched_late, also, by_default",
    "SELECT * FROM parts ORDER BY 1",
    "SELECT * FROM parts_lowest ORDER BY 1",
    "SELECT count(*) FROM parts_high",
    "SELECT * FROM parent ORDER BY 1",
    "SELECT * FROM ONLY parent ORDER BY 1",
    "SELECT * FROM stranger",
    "SELECT * FROM counted",
    "SELECT m FROM moods",
    "SELECT u.name FROM users u JOIN orders o ON o.user_id = u.id JOIN items i ON i.order_id = o.id ORDER BY 1",
    "WITH users AS (SELECT id FROM targets) SELECT count(*) FROM users",
];

/// Which client, how many ReadyForQuery are due, and what it sends.
type Steps = Vec<(usize, usize, Vec<Vec<u8>>)>;

/// Simple queries of the first client.
fn queries<const N: usize>(texts: [&str; N]) -> Steps {
    texts.map(|text| (0, 1, vec![query(text)])).into()
}

/// One unit of the extended protocol.
fn unit<const N: usize>(texts: [&str; N]) -> Steps {
    let mut messages: Vec<_> = texts.map(step).into();
    messages.push(sync());
    vec![(0, 1, messages)]
}

fn ways() -> Vec<(&'static str, Steps)> {
    const UPDATE: &str = "UPDATE users SET name = name || '!' WHERE id = 7";
    let named = || vec![parse("w", UPDATE), bind("p", "w"), execute("p", 0), sync()];
    let many: String = (0..200)
        .map(|n| format!("UPDATE targets SET n = n + {n} WHERE id = {}; ", n % 5 + 1))
        .collect();
    vec![
        ("autocommit", queries([UPDATE])),
        ("autocommit, extended", unit([UPDATE])),
        ("a named statement and portal", vec![(0, 1, named())]),
        (
            "the same statement again",
            vec![(0, 1, vec![bind("", "w"), execute("", 0), sync()])],
        ),
        (
            "a parameter",
            vec![(
                0,
                1,
                vec![
                    parse("", "UPDATE users SET name = $1 WHERE id = 7"),
                    bind_with("", "", &["by parameter"]),
                    execute("", 0),
                    sync(),
                ],
            )],
        ),
        (
            "a row limit",
            vec![(
                0,
                1,
                vec![
                    parse("", "UPDATE users SET n = n + 1 RETURNING id"),
                    bind("", ""),
                    execute("", 1),
                    sync(),
                ],
            )],
        ),
        ("a block", queries(["BEGIN", UPDATE, "COMMIT"])),
        (
            "a block, extended",
            [unit(["BEGIN"]), unit([UPDATE]), unit(["COMMIT"])].concat(),
        ),
        (
            "a block in one query",
            queries([&format!("BEGIN; {UPDATE}; COMMIT")]),
        ),
        ("a block in one unit", unit(["BEGIN", UPDATE, "COMMIT"])),
        (
            "an implicit block",
            queries([&format!(
                "{UPDATE}; SELECT 1; DELETE FROM items WHERE id = 40"
            )]),
        ),
        (
            "an implicit block that fails",
            queries([&format!("{UPDATE}; SELECT 1/0")]),
        ),
        ("a unit that fails", unit([UPDATE, "SELECT 1/0"])),
        (
            "a block that is rolled back",
            queries(["BEGIN", UPDATE, "ROLLBACK"]),
        ),
        (
            "a block that fails",
            queries(["BEGIN", UPDATE, "SELECT 1/0", "COMMIT"]),
        ),
        (
            "COMMIT AND CHAIN",
            queries([
                "BEGIN",
                UPDATE,
                "COMMIT AND CHAIN",
                "UPDATE targets SET n = n + 1",
                "ROLLBACK",
            ]),
        ),
        (
            "a savepoint released",
            queries(["BEGIN", "SAVEPOINT s", UPDATE, "RELEASE s", "COMMIT"]),
        ),
        (
            "a savepoint gone back to",
            queries([
                "BEGIN",
                UPDATE,
                "SAVEPOINT s",
                "UPDATE targets SET n = -1",
                "ROLLBACK TO s",
                "COMMIT",
            ]),
        ),
        (
            "savepoints in savepoints",
            queries([
                "BEGIN",
                "SAVEPOINT a",
                UPDATE,
                "SAVEPOINT b",
                "DELETE FROM items",
                "ROLLBACK TO b",
                "RELEASE a",
                "UPDATE targets SET n = n + 1",
                "COMMIT",
            ]),
        ),
        (
            "an error behind a savepoint",
            queries([
                "BEGIN",
                UPDATE,
                "SAVEPOINT s",
                "SELECT 1/0",
                "ROLLBACK TO s",
                "UPDATE targets SET n = n + 1",
                "COMMIT",
            ]),
        ),
        (
            "pipelined units",
            vec![(
                0,
                3,
                vec![
                    step(UPDATE),
                    sync(),
                    step("UPDATE targets SET n = n + 1"),
                    sync(),
                    step("DELETE FROM items WHERE id = 39"),
                    sync(),
                ],
            )],
        ),
        (
            "one unit of three",
            unit([
                UPDATE,
                "UPDATE targets SET n = n + 1",
                "DELETE FROM items WHERE id = 38",
            ]),
        ),
        (
            "pipelined queries",
            vec![(
                0,
                2,
                vec![query(UPDATE), query("UPDATE targets SET n = n + 1")],
            )],
        ),
        ("two hundred statements", queries([&many])),
        ("INSERT", queries(["INSERT INTO users VALUES (101, 'new')"])),
        (
            "INSERT by SELECT",
            queries(["INSERT INTO targets SELECT id + 100, n FROM targets"]),
        ),
        (
            "INSERT ON CONFLICT",
            queries([
                "INSERT INTO users VALUES (7, 'again') ON CONFLICT (id) DO UPDATE SET name = 'conflict'",
            ]),
        ),
        (
            "UPDATE FROM",
            queries([
                "UPDATE users u SET name = 'from' FROM orders o WHERE o.user_id = u.id AND o.id = 8",
            ]),
        ),
        (
            "DELETE USING",
            queries(["DELETE FROM items i USING orders o WHERE i.order_id = o.id AND o.id = 37"]),
        ),
        ("DELETE FROM ONLY", queries(["DELETE FROM ONLY parent"])),
        (
            "COPY",
            vec![(
                0,
                1,
                vec![
                    query("COPY users FROM STDIN"),
                    copy_data("102\tby copy\t0\n"),
                    copy_done(),
                ],
            )],
        ),
        (
            "COPY, extended",
            vec![(
                0,
                1,
                vec![
                    step("COPY users (id, name) FROM STDIN CSV"),
                    copy_data("103,by copy\n"),
                    copy_done(),
                    sync(),
                ],
            )],
        ),
        (
            "COPY that fails",
            vec![(
                0,
                1,
                vec![query("COPY users FROM STDIN"), message(b'f', b"no\0")],
            )],
        ),
        (
            "COPY to a partition",
            vec![(
                0,
                1,
                vec![
                    query("COPY parts_mid FROM STDIN"),
                    copy_data("55\tcopied\n"),
                    copy_done(),
                ],
            )],
        ),
        (
            "MERGE",
            queries([
                "MERGE INTO targets t USING users u ON t.id = u.id WHEN MATCHED AND t.id = 1 THEN DELETE \
             WHEN MATCHED THEN UPDATE SET n = -u.id WHEN NOT MATCHED THEN INSERT VALUES (u.id, 0)",
            ]),
        ),
        (
            "WITH",
            queries(["WITH d AS (DELETE FROM items WHERE id = 36 RETURNING id) SELECT id FROM d"]),
        ),
        (
            "WITH in WITH",
            queries([
                "WITH d AS (DELETE FROM notes WHERE id = 36 RETURNING id), i AS (INSERT INTO targets SELECT id + 1000, 0 FROM d RETURNING id) \
             UPDATE users SET n = n + 1 WHERE id IN (SELECT id - 1000 FROM i)",
            ]),
        ),
        (
            "ON DELETE CASCADE, SET NULL and SET DEFAULT, in a chain",
            queries(["DELETE FROM users WHERE id = 30"]),
        ),
        (
            "ON UPDATE CASCADE and SET DEFAULT",
            queries(["UPDATE users SET id = 330 WHERE id = 29"]),
        ),
        (
            "ON UPDATE SET NULL",
            queries(["UPDATE orders SET id = 300 WHERE id = 28"]),
        ),
        (
            "a view",
            queries(["UPDATE names SET name = 'by view' WHERE id = 7"]),
        ),
        (
            "a view of a view",
            queries(["DELETE FROM short_names WHERE id = 27"]),
        ),
        (
            "a view with a trigger",
            queries(["UPDATE by_trigger SET name = 'instead' WHERE id = 7"]),
        ),
        (
            "a view with a rule",
            queries(["UPDATE by_rule SET name = 'rule'"]),
        ),
        ("a rule", queries(["INSERT INTO also VALUES (1)"])),
        (
            "a trigger of a statement",
            queries(["INSERT INTO watched VALUES (1)"]),
        ),
        (
            "a trigger of a row",
            queries(["INSERT INTO watched_rows VALUES (1), (2)"]),
        ),
        (
            "a deferred trigger",
            queries(["BEGIN", "INSERT INTO watched_late VALUES (1)", "COMMIT"]),
        ),
        (
            "a trigger, by COPY",
            vec![(
                0,
                1,
                vec![
                    query("COPY watched FROM STDIN"),
                    copy_data("1\n"),
                    copy_done(),
                ],
            )],
        ),
        ("a function", queries(["SELECT adds()"])),
        ("a function, extended", unit(["SELECT adds()"])),
        (
            "a function in FROM",
            queries(["SELECT * FROM adds() a JOIN users u ON u.id = a"]),
        ),
        (
            "a function in WHERE",
            queries(["SELECT id FROM users WHERE id = adds()"]),
        ),
        (
            "a function in RETURNING",
            queries(["UPDATE users SET n = 1 WHERE id = 7 RETURNING adds()"]),
        ),
        (
            "a function in DEFAULT",
            queries(["INSERT INTO by_default (id) VALUES (1)"]),
        ),
        (
            "a function in DEFAULT, by COPY",
            vec![(
                0,
                1,
                vec![
                    query("COPY by_default (id) FROM STDIN"),
                    copy_data("1\n"),
                    copy_done(),
                ],
            )],
        ),
        (
            "DO",
            queries(["DO 'BEGIN UPDATE targets SET n = n + 1; END'"]),
        ),
        ("CALL", queries(["CALL adds_in_two()"])),
        ("CALL, extended", unit(["CALL adds_in_two()"])),
        (
            "EXPLAIN ANALYZE",
            queries(["EXPLAIN ANALYZE UPDATE targets SET n = n + 1"]),
        ),
        (
            "PREPARE and EXECUTE",
            queries(["PREPARE e AS UPDATE targets SET n = n + $1", "EXECUTE e(5)"]),
        ),
        (
            "EXECUTE in a block",
            queries(["BEGIN", "EXECUTE e(6)", "COMMIT"]),
        ),
        ("EXECUTE, extended", unit(["EXECUTE e(7)"])),
        (
            "EXPLAIN ANALYZE EXECUTE",
            queries(["EXPLAIN ANALYZE EXECUTE e(8)", "DEALLOCATE e"]),
        ),
        (
            "WHERE CURRENT OF",
            queries([
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT * FROM targets ORDER BY id FOR UPDATE",
                "FETCH 2 FROM c",
                "UPDATE targets SET n = 99 WHERE CURRENT OF c",
                "COMMIT",
            ]),
        ),
        (
            "a cursor that writes",
            queries([
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT adds()",
                "FETCH c",
                "COMMIT",
            ]),
        ),
        (
            "PREPARE TRANSACTION",
            [queries([
                "BEGIN",
                UPDATE,
                "UPDATE targets SET n = n + 1",
                "PREPARE TRANSACTION 'one'",
            ])]
            .concat(),
        ),
        (
            "COMMIT PREPARED by another",
            vec![(1, 1, vec![query("COMMIT PREPARED 'one'")])],
        ),
        (
            "ROLLBACK PREPARED by another",
            [
                queries(["BEGIN", UPDATE, "PREPARE TRANSACTION 'two'"]),
                vec![(1, 1, vec![query("ROLLBACK PREPARED 'two'")])],
            ]
            .concat(),
        ),
        (
            "another partition",
            queries(["UPDATE parts SET id = 150 WHERE id = 10"]),
        ),
        (
            "a partition by its name",
            queries(["UPDATE parts_lowest SET v = 'low'"]),
        ),
        (
            "another partition, two levels down",
            queries(["UPDATE parts_low SET id = 60 WHERE id = 20"]),
        ),
        ("a child", queries(["INSERT INTO child VALUES (3)"])),
        ("a parent", queries(["UPDATE parent SET id = id + 10"])),
        ("REFRESH", queries(["REFRESH MATERIALIZED VIEW counted"])),
        (
            "REFRESH CONCURRENTLY",
            queries([UPDATE, "REFRESH MATERIALIZED VIEW CONCURRENTLY counted"]),
        ),
        (
            "another connection of the server",
            queries([
                "SELECT dblink_exec('host=127.0.0.1 user=postgres dbname=postgres port={port}', 'UPDATE targets SET n = n + 1')",
            ]),
        ),
        ("TRUNCATE", queries(["TRUNCATE notes"])),
        ("TRUNCATE CASCADE", queries(["TRUNCATE orders CASCADE"])),
        (
            "TRUNCATE RESTART IDENTITY",
            queries([
                "TRUNCATE logs RESTART IDENTITY",
                "INSERT INTO logs (text) VALUES ('first')",
            ]),
        ),
        (
            "TRUNCATE that is rolled back",
            queries(["BEGIN", "TRUNCATE targets", "ROLLBACK"]),
        ),
    ]
}

fn ddl() -> Vec<(&'static str, Steps)> {
    vec![
        (
            "ADD COLUMN",
            queries(["ALTER TABLE users ADD extra text DEFAULT 'x'"]),
        ),
        (
            "RENAME COLUMN",
            queries(["ALTER TABLE users RENAME extra TO more"]),
        ),
        (
            "ALTER TYPE",
            queries(["ALTER TABLE users ALTER n TYPE text USING 'n' || n"]),
        ),
        ("DROP COLUMN", queries(["ALTER TABLE users DROP more"])),
        (
            "DDL in a block",
            queries([
                "BEGIN",
                "ALTER TABLE targets ADD extra int DEFAULT 1",
                "UPDATE targets SET n = 5",
                "COMMIT",
            ]),
        ),
        (
            "DDL that is rolled back",
            queries(["BEGIN", "DROP TABLE targets CASCADE", "ROLLBACK"]),
        ),
        (
            "DDL, extended",
            unit(["ALTER TABLE parts ADD extra int DEFAULT 1"]),
        ),
        (
            "DDL by a function",
            queries(["DO 'BEGIN ALTER TABLE parent ADD extra int DEFAULT 1; END'"]),
        ),
        (
            "a view replaced",
            queries([
                "CREATE OR REPLACE VIEW short_names AS SELECT id, upper(name) AS name FROM names",
            ]),
        ),
        (
            "a view's column renamed",
            queries(["ALTER VIEW short_names RENAME name TO called"]),
        ),
        (
            "ATTACH",
            queries([
                "ALTER TABLE parts_new ADD extra int",
                "ALTER TABLE parts ATTACH PARTITION parts_new FOR VALUES FROM (200) TO (300)",
            ]),
        ),
        (
            "a write to what was attached",
            queries(["UPDATE parts_new SET v = 'attached'"]),
        ),
        (
            "DETACH",
            queries(["ALTER TABLE parts DETACH PARTITION parts_high"]),
        ),
        (
            "INHERIT",
            queries([
                "ALTER TABLE stranger ADD extra int",
                "ALTER TABLE stranger INHERIT parent",
            ]),
        ),
        (
            "a write to what inherits",
            queries(["UPDATE stranger SET id = 78"]),
        ),
        (
            "NO INHERIT",
            queries(["ALTER TABLE stranger NO INHERIT parent"]),
        ),
        (
            "an enum's value renamed",
            queries(["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"]),
        ),
        (
            "a table replaced",
            queries([
                "BEGIN",
                "DROP TABLE stranger",
                "CREATE TABLE stranger AS SELECT 5 AS id",
                "COMMIT",
            ]),
        ),
        (
            "tables swapped",
            queries([
                "BEGIN",
                "ALTER TABLE stranger RENAME TO s",
                "ALTER TABLE moods RENAME TO stranger",
                "ALTER TABLE s RENAME TO moods",
                "ALTER TABLE moods RENAME id TO m",
                "COMMIT",
            ]),
        ),
        (
            "a foreign key made, and used",
            queries([
                "ALTER TABLE items ADD user_id int REFERENCES users ON DELETE CASCADE",
                "INSERT INTO items (id, user_id) VALUES (900, 9)",
                "DELETE FROM users WHERE id = 9",
            ]),
        ),
        (
            "a trigger made, and fired",
            queries([
                "CREATE TRIGGER log AFTER UPDATE ON targets FOR EACH STATEMENT EXECUTE FUNCTION write_log()",
                "UPDATE targets SET n = 6",
            ]),
        ),
        (
            "a function replaced, and called",
            queries([
                "CREATE OR REPLACE FUNCTION adds() RETURNS int LANGUAGE sql AS 'DELETE FROM public.users WHERE id = 11 RETURNING id'",
                "SELECT adds()",
            ]),
        ),
        (
            "a rule made, and used",
            queries([
                "CREATE RULE r AS ON INSERT TO tags DO INSTEAD DELETE FROM users WHERE id = 12",
                "INSERT INTO tags VALUES (999)",
            ]),
        ),
        (
            "a materialised view replaced",
            queries([
                "DROP MATERIALIZED VIEW counted",
                "CREATE TABLE counted AS SELECT 1 AS n",
            ]),
        ),
        (
            "a schema dropped",
            queries([
                "CREATE TABLE early.users (id int)",
                "DROP SCHEMA early CASCADE",
            ]),
        ),
    ]
}

/// Reads everything by both protocols.
fn read(client: &mut Wire) -> Vec<String> {
    let mut told = Vec::new();
    for sql in READS {
        told.push(format!("{sql}: {}", client.query(sql)));
        told.push(format!("{sql}: {}", client.ask(&[step(sql), sync()])));
    }
    told
}

fn check(stack: &Stack, ways: Vec<(&str, Steps)>) {
    let port = stack.cluster.port().to_string();
    let mut writers = [stack.wire(), stack.wire()];
    let mut reader = stack.wire();
    let mut direct = stack.wire_direct();
    let mut wrong = String::new();
    read(&mut reader);
    for (way, steps) in ways {
        for (writer, replies, messages) in steps {
            let messages: Vec<Vec<u8>> = messages
                .into_iter()
                .map(|bytes| {
                    let text = String::from_utf8_lossy(&bytes[5..]);
                    match text.strip_suffix('\0') {
                        Some(text) if text.contains("{port}") => {
                            query(&text.replace("{port}", &port))
                        }
                        _ => bytes,
                    }
                })
                .collect();
            let told = writers[writer].asks(replies, &messages);
            let may_fail = way.contains("fail") || way.contains("error") || told.contains("1/0");
            if told.contains("E ERROR") && !may_fail {
                wrong += &format!("{way}: {told}\n");
            }
        }
        let expected = read(&mut direct);
        // The first of two reads puts into memory what the second gets.
        for whose in ["another's", "the writer's", "another's later"] {
            let client = match whose {
                "the writer's" => &mut writers[0],
                _ => &mut reader,
            };
            for (got, expected) in read(client).iter().zip(&expected) {
                if got != expected {
                    wrong += &format!("behind {way}, {whose} {got} instead of {expected}\n");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn stack() -> Stack {
    let cluster = PostgresCluster::builder()
        .setting("max_prepared_transactions", "5")
        .start()
        .expect("PostgreSQL starts");
    cluster.psql("postgres", SCHEMA).expect("made");
    let upstream = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &upstream], "");
    Stack { helios, cluster }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_behind_a_write_is_fresh() {
    let stack = stack();
    check(&stack, ways());
    let hits = stack.helios.cache_count("hits").await;
    assert!(hits > 1000, "{hits} hits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_behind_ddl_is_fresh() {
    let stack = stack();
    check(&stack, ddl());
    let hits = stack.helios.cache_count("hits").await;
    assert!(hits > 300, "{hits} hits");
}

/// Rights and paths: who may read, and what a name stands for.
#[test]
fn what_was_allowed_or_meant_before_is_not_answered_behind_a_change() {
    let stack = stack();
    let mut owner = stack.wire();
    let mut direct = stack.wire_direct();
    let mut client = stack.wire();
    for wire in [&mut client, &mut direct] {
        wire.run("SET search_path = early, late, public");
        wire.run("SET ROLE app");
    }
    let reads = [
        "SELECT name FROM users WHERE id = 7",
        "SELECT v FROM shadowed",
        "SELECT count(*) FROM short_names",
    ];
    for change in [
        "GRANT SELECT ON users, short_names TO app; GRANT USAGE ON SCHEMA late TO app; GRANT SELECT ON late.shadowed TO app",
        "REVOKE SELECT ON users FROM app",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY few ON users USING (id < 10)",
        "ALTER POLICY few ON users USING (id > 10)",
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE early.shadowed AS SELECT 'early'::text AS v",
        "GRANT USAGE ON SCHEMA early TO app",
        "GRANT SELECT ON early.shadowed TO app",
        "ALTER TABLE early.shadowed RENAME TO unshadowed",
        "REVOKE USAGE ON SCHEMA late FROM app",
        "ALTER TABLE users OWNER TO app",
        "REVOKE ALL ON users FROM app",
        "REASSIGN OWNED BY app TO postgres",
        "DROP OWNED BY app",
    ] {
        for read in reads {
            for _ in 0..2 {
                assert_eq!(
                    client.query(read),
                    direct.query(read),
                    "{read} before {change}"
                );
            }
        }
        owner.run(change);
        for read in reads {
            for _ in 0..2 {
                assert_eq!(
                    client.query(read),
                    direct.query(read),
                    "{read} behind {change}"
                );
            }
        }
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come to be");
    }
}

#[test]
fn a_write_that_is_cut_short_leaves_no_stale_read() {
    let stack = stack();
    let mut direct = stack.wire_direct();
    let mut reader = stack.wire();
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UPDATE users SET name = %sleep%' AND state <> 'idle'";
    let end = |how: &str| {
        format!(
            "SELECT count({how}(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE 'UPDATE users SET name = %'"
        )
    };
    // Stopped while it runs, alone and in a block with a write before it; its process ended in a block.
    for (begin, how) in [
        (vec![], "pg_cancel_backend"),
        (
            vec!["BEGIN", "UPDATE targets SET n = n + 1"],
            "pg_cancel_backend",
        ),
        (vec![], "pg_terminate_backend"),
        (
            vec!["BEGIN", "UPDATE targets SET n = n + 1"],
            "pg_terminate_backend",
        ),
    ] {
        read(&mut reader);
        let mut writer = stack.wire();
        for sql in &begin {
            writer.run(sql);
        }
        writer.send(&[query("UPDATE users SET name = name || '?' || pg_sleep(60)")]);
        until(|| direct.value(busy) == "1");
        for (got, expected) in read(&mut reader).iter().zip(read(&mut direct)) {
            assert_eq!(*got, expected, "while it runs");
        }
        direct.run(&end(how));
        if how == "pg_cancel_backend" {
            assert!(writer.replies(1).contains("57014"));
            if !begin.is_empty() {
                writer.run("COMMIT");
            }
        } else {
            writer.rest();
        }
        until(|| direct.value(busy) == "0");
        for (got, expected) in read(&mut reader).iter().zip(read(&mut direct)) {
            assert_eq!(*got, expected, "{how} behind {begin:?}");
        }
    }
}

/// A database that takes another's name is another database, and a role's rights are those it has everywhere.
#[test]
fn what_all_databases_have_in_common_is_no_matter_of_one() {
    let stack = stack();
    let mut owner = stack.wire();
    let through = |user: &str, database: &str| Wire::login(stack.helios.port, user, database, &[]);
    owner.run("CREATE DATABASE other");
    owner.run("CREATE ROLE member LOGIN");
    owner.run("GRANT app TO member");
    owner.run("GRANT SELECT ON users TO app");
    let mut member = through("member", "postgres").expect("let in");
    let read = "SELECT name FROM users WHERE id = 7";
    for _ in 0..2 {
        assert_eq!(member.value(read), "user 7");
    }
    let mut other = through("postgres", "other").expect("let in");
    other.run("REVOKE app FROM member");
    for _ in 0..2 {
        assert!(member.query(read).contains("42501"), "it may still read");
    }
    other.run("CREATE TABLE v AS SELECT 'old' AS v");
    for _ in 0..2 {
        assert_eq!(other.value("SELECT v FROM v"), "old");
    }
    drop(other);
    owner.run("DROP DATABASE other WITH (FORCE)");
    owner.run("CREATE DATABASE other");
    let cluster = &stack.cluster;
    cluster
        .psql("other", "CREATE TABLE v AS SELECT 'new' AS v")
        .expect("made");
    let mut other = through("postgres", "other").expect("let in");
    for _ in 0..2 {
        assert_eq!(other.value("SELECT v FROM v"), "new");
    }
}
