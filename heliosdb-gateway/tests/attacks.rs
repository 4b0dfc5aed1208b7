//! Statements that were made to get a wrong answer out of a cache.
//!
//! Each case is read through helios until it would come from memory, something is changed through helios (data, schema,
//! rights, or nothing but the time), and it is read again by the same session and by a new one: every answer must be
//! the one that the server gives to a session in the same state. Each case also says why it is not cached, as
//! `helios explain` and `SHOW STATEMENTS` name it, or that it is.
//!
//! What is a reason to refuse for a whole database (operators, casts, operator classes of users) has databases of its own.

use std::collections::BTreeSet;

use heliosdb_gateway::sql::{Catalog, NameScope, Read, classify};
use tokio_postgres::SimpleQueryMessage;

use crate::support::Stack;
use crate::support::raw::{Wire, bind_with, execute, message, parse, sync};

const SCHEMA: &str = r#"
CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE readers; GRANT alice TO bob;
CREATE SCHEMA a; CREATE SCHEMA b; CREATE SCHEMA alice; CREATE SCHEMA bob;
GRANT USAGE ON SCHEMA a, b, alice, bob TO PUBLIC;
CREATE TABLE t (id int PRIMARY KEY, n int, v text, d date, at timestamptz, tags text[], doc jsonb);
INSERT INTO t VALUES (1, 10, 'today', '2024-01-01', '2024-01-01 00:00+00', '{x,y}', '{"d": "today"}'),
    (2, 20, 'two', '2024-02-02', '2024-02-02 00:00+00', '{z}', '{"d": "2024-01-01"}');
CREATE TABLE other (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE); INSERT INTO other VALUES (1, 1), (2, 2);
CREATE TABLE a.same (v text); INSERT INTO a.same VALUES ('in a');
CREATE TABLE b.same (v text); INSERT INTO b.same VALUES ('in b');
CREATE TABLE alice.own (v text); INSERT INTO alice.own VALUES ('of alice');
CREATE TABLE bob.own (v text); INSERT INTO bob.own VALUES ('of bob');
CREATE TABLE hidden (n int); INSERT INTO hidden VALUES (1);
CREATE TABLE "Mixed" (v text); INSERT INTO "Mixed" VALUES ('mixed');
CREATE TABLE parent (id int); CREATE TABLE child (extra int) INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 2);
CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id);
CREATE TABLE parts_1a PARTITION OF parts_1 DEFAULT;
INSERT INTO parts VALUES (1, 'one');
CREATE TABLE secret (v text, who text); INSERT INTO secret VALUES ('of alice', 'alice'), ('of bob', 'bob');
CREATE TABLE acl (who text, allowed bool); INSERT INTO acl VALUES ('alice', true), ('bob', false);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON secret USING (who = current_user AND (SELECT allowed FROM acl WHERE acl.who = current_user));
CREATE TABLE names_tables (r regclass); INSERT INTO names_tables VALUES ('hidden');
CREATE TYPE holds_name AS (r regclass); CREATE TABLE names_deep (h holds_name[]);
INSERT INTO names_deep VALUES (ARRAY[ROW('hidden')::holds_name]);
CREATE TABLE shifts (opens time, many time[]); INSERT INTO shifts VALUES ('08:00', '{09:00}');
CREATE TYPE hours AS (t time); CREATE TABLE deep_shifts (h hours); INSERT INTO deep_shifts VALUES (ROW('08:00'));
CREATE TYPE time_span AS RANGE (subtype = time); CREATE TABLE spans (s time_span); INSERT INTO spans VALUES ('[08:00,09:00]');
CREATE TABLE computed (n int, twice int GENERATED ALWAYS AS (n * 2) STORED); INSERT INTO computed VALUES (1);
CREATE TABLE collated (v text COLLATE "C"); INSERT INTO collated VALUES ('a'), ('B');
CREATE SEQUENCE ids;
CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE moods (m mood); INSERT INTO moods VALUES ('sad'), ('glad');
CREATE FUNCTION reads_hidden() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT max(n) FROM hidden); END';
CREATE FUNCTION says_immutable() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT max(n) FROM hidden';
CREATE FUNCTION atomic() RETURNS int STABLE BEGIN ATOMIC SELECT max(n) FROM hidden; END;
CREATE FUNCTION lists_hidden() RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT n FROM hidden';
CREATE FUNCTION badge(t) RETURNS int LANGUAGE sql STABLE AS 'SELECT max(n) + ($1).id FROM hidden';
CREATE FUNCTION fits(int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT EXISTS (SELECT FROM hidden WHERE n >= $1)';
CREATE FUNCTION adds(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2 + max(n) FROM hidden';
CREATE AGGREGATE sum_and_hidden(int) (SFUNC = adds, STYPE = int, INITCOND = '0');
CREATE FUNCTION indexed(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1 || (SELECT max(n) FROM public.hidden)';
CREATE INDEX ON t (indexed(v));
CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'UPDATE public.hidden SET n = n + 1 RETURNING n';
CREATE FUNCTION quietly_writes() RETURNS int LANGUAGE sql STABLE AS 'SELECT public.writes()';
CREATE FUNCTION calls_one_that_writes() RETURNS int STABLE BEGIN ATOMIC SELECT public.quietly_writes(); END;
CREATE FUNCTION uses_setting() RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT current_setting(''my.word'', true)';
CREATE FUNCTION a.shadowed() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE FUNCTION b.shadowed() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2';
CREATE FUNCTION a.lower(int) RETURNS text LANGUAGE sql STABLE AS 'SELECT max(n)::text FROM public.hidden';
CREATE DOMAIN fitting AS int CHECK (fits(VALUE));
CREATE VIEW over_t AS SELECT id, v FROM t;
CREATE VIEW over_view AS SELECT id FROM over_t;
CREATE VIEW barrier WITH (security_barrier) AS SELECT id, v FROM t WHERE n < 15;
CREATE VIEW calls AS SELECT reads_hidden() AS n;
CREATE VIEW clock AS SELECT count(*) AS n, now() AS at FROM t;
CREATE VIEW locks AS SELECT id FROM t FOR SHARE;
CREATE VIEW samples AS SELECT id FROM t TABLESAMPLE bernoulli (50);
CREATE VIEW over_secret AS SELECT v FROM secret;
CREATE VIEW by_invoker WITH (security_invoker) AS SELECT v FROM a.same;
CREATE VIEW upcoming AS SELECT id FROM t WHERE at < 'tomorrow'::timestamptz;
CREATE MATERIALIZED VIEW counted AS SELECT count(*)::int AS n FROM t;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO alice, bob;
GRANT SELECT ON a.same TO alice; GRANT SELECT ON alice.own TO alice; GRANT SELECT ON bob.own TO bob;
"#;

struct Case {
    /// Why it is not cached; empty if it is.
    reason: &'static str,
    read: &'static str,
    change: &'static str,
    /// What the session does first.
    before: &'static [&'static str],
}

const fn case(reason: &'static str, read: &'static str, change: &'static str) -> Case {
    Case {
        reason,
        read,
        change,
        before: &[],
    }
}

const fn session(
    before: &'static [&'static str],
    reason: &'static str,
    read: &'static str,
    change: &'static str,
) -> Case {
    Case {
        reason,
        read,
        change,
        before,
    }
}

const RAISE: &str = "UPDATE hidden SET n = n + 1";
const MORE: &str = "INSERT INTO t SELECT max(id) + 1, max(n) + 1, 'more', max(d) + 1, max(at) + '1 day', '{m}', '{}' FROM t";

const CASES: &[Case] = &[
    // Functions, in all the ways to call one.
    case("function", "SELECT reads_hidden()", RAISE),
    case("function", "SELECT says_immutable()", RAISE),
    case("function", "SELECT atomic()", RAISE),
    case("function", "SELECT * FROM lists_hidden()", RAISE),
    case(
        "function",
        "SELECT FROM lists_hidden()",
        "INSERT INTO hidden SELECT max(n) + 1 FROM hidden",
    ),
    case(
        "function",
        "SELECT x.* FROM ROWS FROM (lists_hidden(), generate_series(1, 2)) x",
        RAISE,
    ),
    case("function", "SELECT t.badge FROM t ORDER BY id", RAISE),
    case("function", "SELECT (t).badge FROM t ORDER BY id", RAISE),
    case("function", "SELECT badge(t) FROM t ORDER BY id", RAISE),
    case(
        "function",
        "SELECT id FROM t WHERE public.fits(id) ORDER BY id",
        RAISE,
    ),
    case(
        "function",
        "SELECT id FROM t ORDER BY reads_hidden() * id",
        RAISE,
    ),
    case("function", "SELECT sum_and_hidden(id) FROM t", RAISE),
    case(
        "function",
        "SELECT sum(id) FILTER (WHERE fits(id)) FROM t",
        RAISE,
    ),
    case(
        "function",
        "SELECT array_agg(id ORDER BY id * reads_hidden()) FROM t",
        RAISE,
    ),
    case(
        "function",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY n * says_immutable()) FROM t",
        RAISE,
    ),
    case(
        "function",
        "SELECT sum_and_hidden(id) OVER (ORDER BY id) FROM t",
        RAISE,
    ),
    case(
        "function",
        "SELECT count(*) OVER w FROM t WINDOW w AS (ORDER BY reads_hidden() + id) ORDER BY id",
        RAISE,
    ),
    case(
        "function",
        "SELECT count(*) FROM t GROUP BY GROUPING SETS ((n + reads_hidden()), ()) ORDER BY 1",
        RAISE,
    ),
    case(
        "function",
        "SELECT count(*) FROM t HAVING count(*) > reads_hidden()",
        RAISE,
    ),
    case(
        "function",
        "SELECT id FROM t ORDER BY id LIMIT reads_hidden()",
        RAISE,
    ),
    case(
        "function",
        "SELECT id FROM t ORDER BY id OFFSET reads_hidden()",
        RAISE,
    ),
    case(
        "function",
        "SELECT l.x FROM t, LATERAL (SELECT t.id + reads_hidden() AS x) l ORDER BY 1",
        RAISE,
    ),
    case(
        "function",
        "SELECT CASE WHEN reads_hidden() > 2 THEN 1 ELSE 0 END",
        RAISE,
    ),
    case("function", "SELECT coalesce(NULL, reads_hidden())", RAISE),
    case(
        "function",
        "SELECT (ARRAY[1,2,3,4,5,6,7,8,9])[reads_hidden()]",
        RAISE,
    ),
    case("function", "VALUES (1, reads_hidden())", RAISE),
    case(
        "function",
        "WITH RECURSIVE r AS (SELECT reads_hidden() AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT max(n), min(n) FROM r",
        RAISE,
    ),
    case(
        "function",
        "SELECT id FROM t WHERE indexed(v) = 'two1'",
        RAISE,
    ),
    case("function", "SELECT U&\"reads\\005fhidden\"()", RAISE),
    case("function", "SELECT nextval('ids')", ""),
    case("function", "SELECT setval('ids', 5)", ""),
    case("function", "SELECT random() > 2", ""),
    case(
        "function",
        "SELECT now() > '2000-01-01', clock_timestamp()::text = now()::text",
        "",
    ),
    case(
        "function",
        "SELECT age(timestamp '2000-01-01') > interval '1 day'",
        "",
    ),
    case(
        "function",
        "SELECT current_setting('server_version_num')",
        "",
    ),
    case("function", "SELECT current_setting('my.word', true)", ""),
    case("function", "SELECT txid_current() IS NULL", ""),
    case("function", "SELECT pg_advisory_xact_lock(1)", ""),
    case("function", "SELECT pg_sleep(0)", ""),
    case("function", "SELECT pg_backend_pid() = 0", ""),
    case(
        "function",
        "SELECT has_table_privilege('alice', 'b.same', 'SELECT')",
        "GRANT SELECT ON b.same TO alice",
    ),
    case(
        "function",
        "SELECT pg_get_viewdef('over_t')",
        "CREATE OR REPLACE VIEW over_t AS SELECT id, v || '!' AS v FROM t",
    ),
    case(
        "function",
        "SELECT query_to_xml('SELECT max(n) FROM hidden', true, true, '')",
        RAISE,
    ),
    case(
        "function",
        "SELECT table_to_xml('hidden', true, true, '')",
        RAISE,
    ),
    case(
        "function",
        "SELECT to_regclass('fresh_table')",
        "CREATE TABLE fresh_table ()",
    ),
    case(
        "function",
        "SELECT enum_range(NULL::mood)",
        "ALTER TYPE mood ADD VALUE 'mad'",
    ),
    case(
        "function",
        "SELECT pg_relation_size('hidden') > 8192",
        "INSERT INTO hidden SELECT 0 FROM generate_series(1, 1000)",
    ),
    case(
        "function",
        "SELECT obj_description(1)",
        "COMMENT ON TABLE t IS 'new'",
    ),
    case("function", "SELECT date_in(textout('2024-01-01'))", ""),
    case(
        "function",
        "SELECT jsonb_populate_record(t, doc) IS NULL FROM t WHERE id = 1",
        "",
    ),
    session(
        &["SET my.word = 'one'"],
        "function",
        "SELECT uses_setting()",
        "",
    ),
    session(
        &["SET my.word = 'two'"],
        "function",
        "SELECT uses_setting()",
        "",
    ),
    session(
        &["SET search_path = a, public"],
        "function",
        "SELECT shadowed()",
        "CREATE OR REPLACE FUNCTION a.shadowed() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 3'",
    ),
    session(
        &["SET search_path = a, public"],
        "function",
        "SELECT lower(1)",
        RAISE,
    ),
    case(
        "unknown_function",
        "SELECT no_such_function()",
        "CREATE FUNCTION no_such_function() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ),
    case("function", "SELECT quietly_writes()", ""),
    case("", "SELECT n FROM hidden", "SELECT quietly_writes()"),
    case("", "SELECT n FROM hidden", "SELECT calls_one_that_writes()"),
    // Values of the session and of the moment.
    case("value_function", "SELECT current_date > '2000-01-01'", ""),
    case("value_function", "SELECT localtimestamp IS NULL", ""),
    session(
        &["SET ROLE alice"],
        "value_function",
        "SELECT current_user, session_user",
        "",
    ),
    session(
        &["SET ROLE bob"],
        "value_function",
        "SELECT current_user, session_user",
        "",
    ),
    session(
        &["SET search_path = b"],
        "value_function",
        "SELECT current_schema",
        "",
    ),
    // Words for the moment.
    case("time_word", "SELECT 'now'::timestamptz < now()", ""),
    case("time_word", "SELECT date 'ToDay' = current_date", ""),
    case("time_word", "SELECT timestamp E'tom\\x6frrow' > now()", ""),
    case("time_word", "SELECT date U&'t\\006fday' IS NULL", ""),
    case("time_word", "SELECT '{yesterday}'::date[] IS NULL", ""),
    case(
        "time_word",
        "SELECT '[today,tomorrow)'::daterange @> current_date",
        "",
    ),
    case("time_word", "SELECT id FROM t WHERE at > 'yesterday'", ""),
    case(
        "time_word",
        "SELECT date_part('year', timestamptz ' now ') > 2000",
        "",
    ),
    case("text_to_time", "SELECT ('to' || 'day')::date IS NULL", ""),
    case(
        "text_to_time",
        "SELECT CAST(concat('to', 'day') AS date) IS NULL",
        "",
    ),
    case(
        "text_to_time",
        "SELECT v::date > '2024-01-01' FROM t WHERE id = 1",
        "UPDATE t SET v = 'yesterday' WHERE id = 1",
    ),
    case(
        "text_to_time",
        "SELECT date(v) IS NULL FROM t WHERE id = 1",
        "",
    ),
    case(
        "text_to_time",
        "SELECT lower(v)::timestamptz IS NULL FROM t WHERE id = 1",
        "",
    ),
    case(
        "text_to_time",
        "SELECT (doc ->> 'd')::date IS NULL FROM t WHERE id = 1",
        "",
    ),
    case(
        "function",
        "SELECT x.d IS NULL FROM t, jsonb_to_record(doc) AS x(d date) WHERE id = 1",
        "",
    ),
    case(
        "text_to_time",
        "SELECT (SELECT v FROM t WHERE id = 1)::timestamp IS NULL",
        "",
    ),
    case(
        "text_to_time",
        "SELECT (CASE WHEN id > 0 THEN v END)::date IS NULL FROM t WHERE id = 1",
        "",
    ),
    case(
        "text_to_time",
        "SELECT s.d::date IS NULL FROM (SELECT v AS d FROM t WHERE id = 1) s",
        "",
    ),
    case(
        "text_to_time",
        "WITH s(d) AS (SELECT v FROM t WHERE id = 1) SELECT d::date IS NULL FROM s",
        "",
    ),
    case(
        "text_to_time",
        "SELECT ('[' || v || ',]')::daterange IS NULL FROM t WHERE id = 1",
        "",
    ),
    case(
        "text_to_time",
        "SELECT tags::date[] IS NULL FROM t WHERE false",
        "",
    ),
    case(
        "function",
        "SELECT opens AT TIME ZONE 'Europe/Berlin' IS NULL FROM shifts",
        "",
    ),
    case(
        "function",
        "SELECT many[1] AT TIME ZONE 'Europe/Berlin' IS NULL FROM shifts",
        "",
    ),
    case(
        "function",
        "SELECT (h).t AT TIME ZONE 'Europe/Berlin' IS NULL FROM deep_shifts",
        "",
    ),
    case(
        "function",
        "SELECT lower(s) AT TIME ZONE 'Europe/Berlin' IS NULL FROM spans",
        "",
    ),
    case("type", "SELECT '08:00'::timetz IS NULL", ""),
    // Names.
    session(
        &["SET search_path = a"],
        "",
        "SELECT v FROM same",
        "UPDATE a.same SET v = v || '!'",
    ),
    session(
        &["SET search_path = b"],
        "",
        "SELECT v FROM same",
        "UPDATE b.same SET v = v || '!'",
    ),
    session(
        &["SET search_path = pg_temp, b"],
        "",
        "SELECT v FROM same",
        "UPDATE b.same SET v = v || '!'",
    ),
    session(
        &["SET ROLE alice"],
        "",
        "SELECT v FROM own",
        "UPDATE alice.own SET v = v || '!'",
    ),
    session(
        &["SET ROLE bob"],
        "",
        "SELECT v FROM own",
        "UPDATE bob.own SET v = v || '!'",
    ),
    session(
        &["SET search_path = a"],
        "",
        "SELECT v FROM same",
        "ALTER TABLE a.same SET SCHEMA alice",
    ),
    session(
        &["SET search_path = a, b"],
        "",
        "SELECT v FROM same",
        "CREATE TABLE a.same (v text)",
    ),
    case(
        "",
        "SELECT v FROM \"Mixed\"",
        "UPDATE \"Mixed\" SET v = v || '!'",
    ),
    case(
        "",
        "SELECT v FROM U&\"\\004dixed\"",
        "UPDATE \"Mixed\" SET v = v || '!'",
    ),
    case(
        "",
        "WITH t AS (SELECT n FROM hidden) SELECT n FROM t",
        RAISE,
    ),
    case(
        "",
        "WITH hidden AS (SELECT n FROM hidden) SELECT n FROM hidden",
        RAISE,
    ),
    case(
        "",
        "SELECT (WITH t AS (SELECT 1 AS n) SELECT n FROM t), count(*) FROM t",
        MORE,
    ),
    case("", "TABLE hidden", RAISE),
    case(
        "unknown_relation",
        "SELECT * FROM later",
        "CREATE TABLE later (n int)",
    ),
    case(
        "",
        "SELECT * FROM later",
        "DROP TABLE later; CREATE VIEW later AS SELECT max(n) AS n FROM hidden",
    ),
    case("", "SELECT * FROM later", RAISE),
    case("temporary", "SELECT * FROM pg_temp.nothing", ""),
    session(
        &["CREATE TEMP TABLE hidden (n int)"],
        "",
        "SELECT count(*) FROM hidden",
        RAISE,
    ),
    session(
        &["CREATE TEMP VIEW t AS SELECT max(n) AS id FROM public.hidden"],
        "",
        "SELECT id FROM t",
        RAISE,
    ),
    session(
        &[
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT max(n) FROM public.hidden'",
        ],
        "unknown_function",
        "SELECT pg_temp.f()",
        RAISE,
    ),
    // Relations.
    case("", "SELECT * FROM over_view ORDER BY id", MORE),
    case("", "SELECT count(*) FROM barrier", "UPDATE t SET n = n + 1"),
    case("function", "SELECT n FROM calls", RAISE),
    case("function", "SELECT n, at IS NULL FROM clock", MORE),
    case("locking_clause", "SELECT id FROM locks ORDER BY id", MORE),
    case("tablesample", "SELECT count(*) >= 0 FROM samples", ""),
    case(
        "tablesample",
        "SELECT count(*) FROM t TABLESAMPLE system (100) REPEATABLE (1)",
        MORE,
    ),
    case("", "SELECT id FROM upcoming ORDER BY id", MORE),
    case(
        "",
        "SELECT n FROM counted",
        "REFRESH MATERIALIZED VIEW counted",
    ),
    case(
        "",
        "SELECT n FROM counted",
        "DROP MATERIALIZED VIEW counted; CREATE MATERIALIZED VIEW counted AS SELECT -1 AS n",
    ),
    case("", "SELECT count(*) FROM ONLY parent", "DELETE FROM child"),
    case(
        "",
        "SELECT count(*) FROM parent",
        "INSERT INTO child VALUES (7)",
    ),
    case(
        "",
        "SELECT count(*) FROM child",
        "UPDATE parent SET id = id + 1; DELETE FROM parent",
    ),
    case(
        "",
        "SELECT v FROM parts WHERE id = 1",
        "UPDATE parts_1a SET v = v || '!'",
    ),
    case(
        "",
        "SELECT v FROM parts_1a",
        "UPDATE parts SET v = v || '!'",
    ),
    case(
        "",
        "SELECT count(*) FROM parts",
        "CREATE TABLE fresh (id int, v text); INSERT INTO fresh VALUES (20, 'x'); ALTER TABLE parts ATTACH PARTITION fresh FOR VALUES FROM (20) TO (30)",
    ),
    case(
        "",
        "SELECT count(*) FROM parts",
        "INSERT INTO fresh VALUES (21, 'y')",
    ),
    case(
        "",
        "SELECT count(*) FROM parts",
        "ALTER TABLE parts DETACH PARTITION fresh",
    ),
    case(
        "",
        "SELECT twice FROM computed",
        "UPDATE computed SET n = n + 1",
    ),
    case(
        "",
        "SELECT v FROM collated ORDER BY v",
        "ALTER TABLE collated ALTER v TYPE text COLLATE \"POSIX\"; INSERT INTO collated VALUES ('c')",
    ),
    case(
        "",
        "SELECT m FROM moods ORDER BY m",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    ),
    case(
        "",
        "SELECT count(*) FROM t JOIN other ON other.t = t.id",
        "DELETE FROM t WHERE id = 2",
    ),
    case(
        "column_type",
        "SELECT r FROM names_tables",
        "ALTER TABLE hidden RENAME TO hidden_2; ALTER TABLE hidden_2 RENAME TO hidden",
    ),
    case("column_type", "SELECT h FROM names_deep", ""),
    case(
        "system_catalog",
        "SELECT count(*) FROM pg_class",
        "CREATE TABLE one_more ()",
    ),
    case(
        "system_catalog",
        "SELECT count(*) FROM information_schema.tables",
        "CREATE TABLE two_more ()",
    ),
    case(
        "system_catalog",
        "SELECT count(*) FROM pg_stat_activity WHERE pid = 0",
        "",
    ),
    case(
        "sequence",
        "SELECT last_value FROM ids",
        "SELECT nextval('ids')",
    ),
    case(
        "type",
        "SELECT 'hidden'::regclass",
        "ALTER TABLE hidden RENAME TO hidden_3; CREATE TABLE hidden (n int); DROP TABLE hidden; ALTER TABLE hidden_3 RENAME TO hidden",
    ),
    case("type", "SELECT 1::fitting", "DELETE FROM hidden"),
    case("type", "SELECT 'postgres'::regrole", ""),
    case(
        "system_column",
        "SELECT ctid FROM hidden",
        "INSERT INTO hidden VALUES (5), (6); DELETE FROM hidden WHERE n = 5; VACUUM FULL hidden",
    ),
    case("system_column", "SELECT hidden.xmax = 0 FROM hidden", ""),
    case("", "SELECT xmin::text, n FROM hidden", RAISE),
    // Rights.
    session(
        &["SET ROLE alice"],
        "row_security",
        "SELECT v FROM secret",
        "UPDATE acl SET allowed = NOT allowed",
    ),
    session(
        &["SET ROLE bob"],
        "row_security",
        "SELECT v FROM secret",
        "UPDATE acl SET allowed = NOT allowed",
    ),
    session(
        &["SET ROLE alice", "SET row_security = off"],
        "row_security",
        "SELECT v FROM secret",
        "",
    ),
    session(
        &["SET ROLE alice"],
        "row_security",
        "SELECT v FROM over_secret",
        "UPDATE acl SET allowed = NOT allowed",
    ),
    session(
        &["SET ROLE alice"],
        "",
        "SELECT n FROM hidden",
        "REVOKE SELECT ON hidden FROM alice",
    ),
    session(
        &["SET ROLE bob"],
        "",
        "SELECT v FROM alice.own",
        "REVOKE alice FROM bob",
    ),
    session(
        &["SET ROLE alice"],
        "",
        "SELECT v FROM collated",
        "ALTER TABLE collated ENABLE ROW LEVEL SECURITY",
    ),
    session(
        &["SET ROLE readers"],
        "unknown_relation",
        "SELECT count(*) FROM by_default",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readers; CREATE TABLE by_default ()",
    ),
    session(
        &["SET ROLE bob"],
        "",
        "SELECT v FROM by_invoker",
        "GRANT SELECT ON alice.same TO bob",
    ),
    // Clauses.
    case("locking_clause", "SELECT id FROM t FOR UPDATE", MORE),
    case("locking_clause", "SELECT id FROM t FOR NO KEY UPDATE", MORE),
    case(
        "locking_clause",
        "SELECT id FROM t FOR SHARE SKIP LOCKED",
        MORE,
    ),
    case(
        "locking_clause",
        "SELECT id FROM t FOR\nKEY SHARE NOWAIT",
        MORE,
    ),
    case(
        "locking_clause",
        "SELECT s.id FROM (SELECT id FROM t FOR UPDATE) s",
        MORE,
    ),
    case(
        "locking_clause",
        "WITH s AS (SELECT id FROM t FOR SHARE) SELECT count(*) FROM s",
        MORE,
    ),
    case(
        "locking_clause",
        "SELECT (SELECT count(*) FROM (SELECT id FROM t FOR KEY SHARE) s)",
        MORE,
    ),
    case(
        "data_modifying_with",
        "WITH d AS (INSERT INTO hidden VALUES (3) RETURNING n) SELECT count(*) FROM d",
        "",
    ),
    case(
        "data_modifying_with",
        "WITH d AS (DELETE FROM hidden WHERE n = 3 RETURNING n) SELECT 1",
        "",
    ),
    case(
        "several_statements",
        "SELECT 1; SELECT n FROM hidden",
        RAISE,
    ),
    case(
        "not_select",
        "EXPLAIN (COSTS off) SELECT n FROM hidden",
        "CREATE INDEX ON hidden (n)",
    ),
    case("not_select", "COPY hidden TO STDOUT", RAISE),
    case("not_select", "SHOW search_path", ""),
    case("not_select", "SELECT n INTO made_by_select FROM hidden", ""),
    case(
        "unsupported",
        "SELECT x.n FROM hidden, XMLTABLE('/a' PASSING xmlelement(name a, n) COLUMNS n int PATH '.') x",
        RAISE,
    ),
    case("unsupported", "SELECT xmlforest(n) FROM hidden", RAISE),
    case("unparsed", "SELECT FROM WHERE", ""),
    case("", "SELECT * FROM t", "ALTER TABLE t DROP COLUMN tags"),
];

/// Setup, reason, statement, change: each in a database of its own.
const POISONED: &[(&str, &str, &str, &str)] = &[
    (
        "CREATE FUNCTION eq(int, text) RETURNS bool LANGUAGE sql STABLE AS 'SELECT EXISTS (SELECT FROM public.hidden WHERE n = $1)';
         CREATE OPERATOR = (LEFTARG = int, RIGHTARG = text, FUNCTION = eq)",
        "operator",
        "SELECT 1 = 'x'::text",
        RAISE,
    ),
    (
        "CREATE FUNCTION near(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < max(n) FROM public.hidden';
         CREATE OPERATOR <<| (LEFTARG = int, RIGHTARG = int, FUNCTION = near)",
        "operator",
        "SELECT 1 <<| 1",
        RAISE,
    ),
    (
        "CREATE TYPE ranked AS (x int);
         CREATE FUNCTION rank_of(ranked) RETURNS int LANGUAGE sql STABLE AS 'SELECT ($1).x * (3 - 2 * max(n)) FROM public.hidden';
         CREATE FUNCTION lt(ranked, ranked) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT public.rank_of($1) < public.rank_of($2)';
         CREATE FUNCTION eq(ranked, ranked) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT public.rank_of($1) = public.rank_of($2)';
         CREATE FUNCTION cmp(ranked, ranked) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT public.rank_of($1) - public.rank_of($2)';
         CREATE OPERATOR #< (LEFTARG = ranked, RIGHTARG = ranked, FUNCTION = lt);
         CREATE OPERATOR #= (LEFTARG = ranked, RIGHTARG = ranked, FUNCTION = eq);
         CREATE OPERATOR CLASS by_rank DEFAULT FOR TYPE ranked USING btree AS OPERATOR 1 #<, OPERATOR 3 #=, FUNCTION 1 cmp(ranked, ranked);
         CREATE TABLE entries (v ranked); INSERT INTO entries VALUES (ROW(1)), (ROW(2))",
        "operator",
        "SELECT v FROM entries ORDER BY v",
        RAISE,
    ),
    (
        "CREATE TYPE celsius AS (t int);
         CREATE FUNCTION offset_by(int) RETURNS celsius LANGUAGE sql STABLE AS 'SELECT ROW($1 + max(n))::public.celsius FROM public.hidden';
         CREATE CAST (int AS celsius) WITH FUNCTION offset_by(int)",
        "type",
        "SELECT 1::celsius",
        RAISE,
    ),
    (
        "CREATE TYPE kelvin AS (t int);
         CREATE FUNCTION zero(kelvin) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT ($1).t + max(n) FROM public.hidden';
         CREATE CAST (kelvin AS int) WITH FUNCTION zero(kelvin) AS IMPLICIT;
         CREATE TABLE readings (k kelvin); INSERT INTO readings VALUES (ROW(1))",
        "user_cast",
        "SELECT abs(k) FROM readings",
        RAISE,
    ),
    (
        "CREATE CAST (text AS date) WITH INOUT AS IMPLICIT;
         CREATE TABLE remarks (v text); INSERT INTO remarks VALUES ('today')",
        "user_cast",
        "SELECT date_part('year', v) > 2000 FROM remarks",
        "",
    ),
    (
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE lines (v text) SERVER files OPTIONS (program 'date +%N')",
        "foreign_table",
        "SELECT v = '' FROM lines",
        "",
    ),
    // Safe, and common: text that turns into an enum unasked.
    (
        "CREATE TYPE state AS ENUM ('on', 'off'); CREATE CAST (varchar AS state) WITH INOUT AS IMPLICIT;
         CREATE TABLE switches (s state); INSERT INTO switches VALUES ('on')",
        "",
        "SELECT s FROM switches",
        "UPDATE switches SET s = 'off'",
    ),
];

/// The lines of an answer, and the line of an error without its place in the text.
fn read(wire: &mut Wire, sql: &str) -> String {
    wire.query(sql)
}

fn opened(mut wire: Wire, before: &[&str]) -> Wire {
    for sql in before {
        wire.run(sql);
    }
    wire
}

/// What the session's search path and role are, for the classifier.
async fn scope(client: &tokio_postgres::Client) -> NameScope {
    let row = client
        .query_one(
            "SELECT current_setting('search_path'), current_user::text",
            &[],
        )
        .await
        .expect("a row");
    let path: String = row.get(0);
    NameScope {
        user: row.get(1),
        search_path: heliosdb_gateway::sql::split_identifiers(&path).expect("a list"),
        standard_conforming_strings: true,
        client_encoding_utf8: true,
    }
}

async fn load(client: &tokio_postgres::Client) -> Catalog {
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

/// Why a statement is not cached; empty if it is.
fn reason(catalog: &Catalog, scope: &NameScope, sql: &str) -> String {
    let class = classify(sql, catalog, scope);
    if class.cacheable().is_some() {
        return String::new();
    }
    let refusal = class
        .statements
        .iter()
        .find_map(|statement| match &statement.read {
            Read::Refused(refusal) => Some(refusal.label().to_owned()),
            _ => None,
        });
    refusal.unwrap_or_else(|| "side_effects".to_owned())
}

async fn console_reasons(stack: &Stack) -> BTreeSet<String> {
    let console = stack.helios.client("postgres", "helios").await;
    let messages = console
        .simple_query("SHOW STATEMENTS")
        .await
        .expect("answered");
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get("why_not").map(str::to_owned),
            _ => None,
        })
        .collect()
}

/// Reads, changes, and reads again; what went wrong.
fn attack(stack: &Stack, database: &str, before: &[&str], sql: &str, change: &str) -> String {
    let mut wrong = String::new();
    let through = || Wire::connect(stack.helios.port, database, &[]);
    let past = || Wire::connect(stack.cluster.port(), database, &[]);
    // A case whose read writes is read as often past helios, and there it counts too.
    let writes = ["INTO", "DELETE", "val(", "_writes("]
        .iter()
        .any(|word| sql.contains(word));
    let mut session = opened(through(), before);
    for attempt in 1..=3 {
        let expected = (!writes).then(|| read(&mut opened(past(), before), sql));
        let got = read(&mut session, sql);
        if expected.as_ref().is_some_and(|expected| *expected != got) {
            wrong += &format!("{sql}, attempt {attempt}: {got:?} instead of {expected:?}\n");
        }
    }
    if writes {
        return wrong;
    }
    let mut changer = through();
    for statement in change.split("; ").filter(|text| !text.is_empty()) {
        let told = changer.query(statement);
        if told.contains("E ERROR") {
            wrong += &format!("{statement}: {told}\n");
        }
    }
    let expected = read(&mut opened(past(), before), sql);
    let sessions = [
        ("its own session", session),
        ("a new session", opened(through(), before)),
    ];
    for (whose, mut session) in sessions {
        for attempt in 1..=2 {
            let got = read(&mut session, sql);
            if got != expected {
                wrong += &format!(
                    "{sql} behind {change}, {whose}, attempt {attempt}: {got:?} instead of {expected:?}\n"
                );
            }
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_gets_a_stale_answer_out_of_the_cache() {
    let stack = Stack::start_prepared("", SCHEMA);
    let direct = stack.direct().await;
    let mut wrong = String::new();
    let mut labels = BTreeSet::new();
    let mut catalog = load(&direct).await;
    for Case {
        reason: expected,
        read: sql,
        change,
        before,
    } in CASES
    {
        direct.batch_execute("DISCARD ALL").await.expect("reset");
        for statement in *before {
            direct.batch_execute(statement).await.expect(statement);
        }
        let found = reason(&catalog, &scope(&direct).await, sql);
        if found != *expected {
            wrong += &format!("{sql}: refused for {found:?} instead of {expected:?}\n");
        }
        // What fails may be told under another name when it has come to be.
        if before.is_empty() && !expected.starts_with("un") {
            labels.insert((*expected).to_owned());
        }
        wrong += &attack(&stack, "postgres", before, sql, change);
        let ddl = ["ALTER", "CREATE", "DROP", "INTO m"];
        if ddl
            .iter()
            .any(|word| change.contains(word) || sql.contains(word))
        {
            catalog = load(&direct).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let hits = stack.helios.cache_count("hits").await;
    assert!(hits > 50, "{hits} hits");
    // The console says the same as the classifier.
    let told = console_reasons(&stack).await;
    let untold: Vec<_> = labels.difference(&told).collect();
    assert!(untold.is_empty(), "{untold:?} are not among {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_statements_run_without_naming_it_is_seen() {
    let stack = Stack::start();
    let mut wrong = String::new();
    for (number, (setup, expected, sql, change)) in POISONED.iter().enumerate() {
        let database = format!("poisoned_{number}");
        stack.psql(&format!("CREATE DATABASE {database}"));
        let client = crate::support::connect(stack.cluster.port(), "postgres", &database).await;
        let made = format!("CREATE TABLE hidden (n int); INSERT INTO hidden VALUES (1); {setup}");
        client.batch_execute(&made).await.expect(setup);
        let catalog = load(&client).await;
        let found = reason(&catalog, &scope(&client).await, sql);
        if found != *expected {
            wrong += &format!("{sql}: refused for {found:?} instead of {expected:?}\n");
        }
        wrong += &attack(&stack, &database, &[], sql, change);
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What is done to a session unseen must not be met by the next client of its connection. Each in a database of its own, for
/// one function that changes settings makes all that a trigger could call suspect.
#[test]
fn what_code_does_to_its_session_stays_there() {
    const TRIGGER: &str =
        "CREATE TABLE fires (n int); CREATE TABLE shadow AS SELECT 'real'::text AS v;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$;
        CREATE TRIGGER f AFTER INSERT ON fires FOR EACH ROW EXECUTE FUNCTION f()";
    const FUNCTION: &str = "CREATE TABLE shadow AS SELECT 'real'::text AS v;
        CREATE FUNCTION f() RETURNS text LANGUAGE sql STABLE AS $$ {} $$";
    const FIRE: &str = "INSERT INTO fires VALUES (1)";
    const SHADOW: &str = "SELECT v FROM shadow";
    const FREE: &str = "SELECT pg_try_advisory_lock(77) AND pg_advisory_unlock(77)";
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", "SELECT 1");
    let mut wrong = Vec::new();
    let cases = [
        (
            TRIGGER,
            "CREATE TEMP TABLE shadow AS SELECT 'temporary'::text AS v;",
            FIRE,
            SHADOW,
            "real",
        ),
        (
            TRIGGER,
            "EXECUTE 'CREATE LOCAL TEMPORARY TABLE shadow AS SELECT 1 AS v';",
            FIRE,
            SHADOW,
            "real",
        ),
        (TRIGGER, "PERFORM pg_advisory_lock(77);", FIRE, FREE, "f"),
        (
            TRIGGER,
            "SET TimeZone = 'Asia/Tokyo';",
            FIRE,
            "SHOW TimeZone",
            "Etc/UTC",
        ),
        (
            FUNCTION,
            "SELECT set_config('TimeZone', 'Asia/Tokyo', false)",
            "SELECT f()",
            "SHOW TimeZone",
            "Etc/UTC",
        ),
        (
            FUNCTION,
            "SELECT pg_advisory_lock(77)::text",
            "SELECT f()",
            FREE,
            "f",
        ),
    ];
    for (number, (made, body, act, asked, expected)) in cases.into_iter().enumerate() {
        let database = format!("acts_{number}");
        let cluster = &stack.cluster;
        cluster
            .psql("postgres", &format!("CREATE DATABASE {database}"))
            .expect("made");
        cluster
            .psql(&database, &made.replace("{}", body))
            .expect("made");
        let client = || Wire::connect(stack.helios.port, &database, &[]);
        // The catalog is there before anything is done.
        client().run(SHADOW);
        let mut actor = client();
        actor.run(act);
        for _ in 0..3 {
            let got = client().value(asked);
            if got != expected {
                wrong.push(format!("{asked} behind {body}: {got}"));
            }
        }
        drop(actor);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The input of a domain runs its checks, and these may read anything.
#[test]
fn a_parameter_of_a_domain_is_checked_each_time() {
    let stack = Stack::start_prepared("", SCHEMA);
    let oid: u32 = stack
        .psql("SELECT 'fitting'::regtype::oid")
        .trim()
        .parse()
        .expect("an identifier");
    let body = [b"\0SELECT $1\0\0\x01", &oid.to_be_bytes()[..]].concat();
    let ask = [
        message(b'P', &body),
        bind_with("", "", &["1"]),
        execute("", 0),
        sync(),
    ];
    let (mut client, mut direct) = (stack.wire(), stack.wire_direct());
    for change in [
        "SELECT 1",
        "DELETE FROM hidden",
        "INSERT INTO hidden VALUES (9)",
    ] {
        client.run(change);
        for _ in 0..2 {
            assert_eq!(client.ask(&ask), direct.ask(&ask), "behind {change}");
        }
    }
}

/// EXECUTE and FETCH give rows of the form of another statement, which is the session's own.
#[test]
fn a_description_of_what_a_session_has_is_not_for_others() {
    let stack = Stack::start_prepared("", SCHEMA);
    let describe = |sql: &str| [parse("", sql), message(b'D', b"S\0"), sync()];
    for (made, asked) in [
        (
            [
                "PREPARE p AS SELECT 1 AS a",
                "PREPARE p AS SELECT 'x' AS b, 2 AS c",
            ],
            "EXECUTE p",
        ),
        (
            [
                "DECLARE c CURSOR WITH HOLD FOR SELECT 1 AS a",
                "DECLARE c CURSOR WITH HOLD FOR SELECT 'x' AS b, 2 AS c",
            ],
            "/* of c */ FETCH ALL FROM c",
        ),
    ] {
        for made in made {
            let (mut client, mut direct) = (stack.wire(), stack.wire_direct());
            client.run(made);
            direct.run(made);
            for _ in 0..2 {
                let (got, expected) = (client.ask(&describe(asked)), direct.ask(&describe(asked)));
                assert_eq!(got, expected, "{asked} behind {made}");
            }
        }
    }
}
