//! Facts about classification, on the catalog of [`super::fixture`].

use super::fixture::{
    catalog, class_of, classify_all, effects, oid_of, reads, refusal, results, scope, writes,
};
use super::{
    Catalog, CatalogError, Class, Effect, Isolation, Read, TransactionModes, Unbounded, Write,
    classify, classify_without_catalog,
};

fn set(name: &str, value: &str, local: bool) -> Effect {
    Effect::Set {
        name: name.to_owned(),
        value: value.to_owned(),
        local,
    }
}

#[track_caller]
fn assert_settings_unknown(sql: &str) {
    let effects = effects(sql);
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::SettingsUnknown(_))),
        "{sql}: {effects:?}"
    );
}

// What may be cached, and what it depends on

#[test]
fn plain_reads_depend_on_their_tables() {
    assert_eq!(reads("SELECT * FROM users"), ["users"]);
    assert_eq!(reads("TABLE users"), ["users"]);
    assert_eq!(reads("VALUES (1), (2)"), [""; 0]);
    assert_eq!(reads("SELECT 1"), [""; 0]);
    assert_eq!(
        reads("SELECT * FROM users u, orders o"),
        ["orders", "users"]
    );
    assert_eq!(
        reads("SELECT * FROM users JOIN orders USING (id) LEFT JOIN items ON true"),
        ["items", "orders", "users"]
    );
    assert_eq!(reads("SELECT * FROM totals"), ["totals"]);
    assert_eq!(reads("SELECT * FROM ONLY users"), ["users"]);
    assert_eq!(
        reads("SELECT id FROM users UNION SELECT id FROM orders EXCEPT SELECT id FROM items"),
        ["items", "orders", "users"]
    );
}

#[test]
fn subqueries_are_found_wherever_an_expression_may_stand() {
    for sql in [
        "SELECT (SELECT max(id) FROM users)",
        "SELECT 1 WHERE EXISTS (SELECT FROM users)",
        "SELECT 1 WHERE 1 IN (SELECT id FROM users)",
        "SELECT 1 WHERE 1 = ANY (ARRAY(SELECT id FROM users))",
        "SELECT * FROM (SELECT * FROM users) s",
        "SELECT 1 ORDER BY (SELECT id FROM users LIMIT 1)",
        "SELECT 1 LIMIT (SELECT id FROM users LIMIT 1)",
        "SELECT 1 OFFSET (SELECT id FROM users LIMIT 1)",
        "SELECT count(*) GROUP BY (SELECT id FROM users) HAVING true",
        "SELECT count(*) HAVING (SELECT true FROM users)",
        "SELECT count(*) FILTER (WHERE (SELECT true FROM users))",
        "SELECT rank() OVER (ORDER BY (SELECT id FROM users))",
        "SELECT rank() OVER w WINDOW w AS (PARTITION BY (SELECT id FROM users))",
        "SELECT string_agg('a', 'b' ORDER BY (SELECT id FROM users))",
        "SELECT DISTINCT ON ((SELECT id FROM users)) 1",
        "VALUES ((SELECT id FROM users))",
        "SELECT CASE WHEN (SELECT true FROM users) THEN 1 END",
        "SELECT CASE 1 WHEN 2 THEN 3 ELSE (SELECT id FROM users) END",
        "SELECT coalesce(1, (SELECT id FROM users))",
        "SELECT greatest(1, (SELECT id FROM users))",
        "SELECT ROW(1, (SELECT id FROM users))",
        "SELECT (ARRAY[1])[(SELECT id FROM users)]",
        "SELECT (SELECT id FROM users) IS NULL",
        "SELECT (SELECT true FROM users) IS TRUE",
        "SELECT NOT (SELECT true FROM users)",
        "SELECT (SELECT 'a' FROM users) COLLATE \"C\"",
        "SELECT (SELECT 1 FROM users)::text",
        "SELECT 1 BETWEEN 0 AND (SELECT id FROM users)",
        "SELECT 1 FROM (VALUES (1)) v JOIN LATERAL (SELECT FROM users) u ON true",
        "SELECT 1 FROM generate_series(1, (SELECT id FROM users)) g",
        "SELECT 1 GROUP BY GROUPING SETS (((SELECT id FROM users)), ())",
    ] {
        assert_eq!(reads(sql), ["users"], "{sql}");
    }
}

#[test]
fn the_search_path_decides_and_all_its_meanings_count() {
    let of = |path: &[&str], sql: &str| {
        let class = classify(sql, &catalog(), &scope(path));
        match &class.statements[0].read {
            Read::Cacheable(on) => on.iter().map(|r| r.name.to_string()).collect(),
            Read::Refused(why) => vec![format!("!{}", why.label())],
        }
    };
    assert_eq!(of(&["app"], "SELECT * FROM users"), ["app.users"]);
    assert_eq!(of(&["$user"], "SELECT * FROM users"), ["alice.users"]);
    // The role may lack USAGE on app, in which case the server reads public.users.
    assert_eq!(
        of(&["app", "public"], "SELECT * FROM users"),
        ["public.users", "app.users"]
    );
    assert_eq!(of(&["app"], "SELECT * FROM public.users"), ["public.users"]);
    assert_eq!(of(&["app"], "SELECT * FROM orders"), ["!unknown_relation"]);
    assert_eq!(of(&[], "SELECT * FROM users"), ["!unknown_relation"]);
    // app.lower(..) is volatile and may hide or join the built-in.
    assert_eq!(of(&["public"], "SELECT lower('A')"), [""; 0]);
    assert_eq!(of(&["app"], "SELECT lower('A')"), ["!function"]);
    assert_eq!(of(&["app"], "SELECT pg_catalog.lower('A')"), [""; 0]);
}

#[test]
fn quoted_names_keep_their_case() {
    assert_eq!(reads("SELECT * FROM \"Orders\""), ["Orders"]);
    assert_eq!(reads("SELECT * FROM Orders"), ["orders"]);
    assert_eq!(reads("SELECT * FROM \"public\".\"Orders\""), ["Orders"]);
}

#[test]
fn a_with_query_hides_a_table_only_in_its_scope() {
    assert_eq!(
        reads("WITH users AS (SELECT 1) SELECT * FROM users"),
        [""; 0]
    );
    // The query itself does not see its own name...
    assert_eq!(
        reads("WITH users AS (SELECT * FROM users) SELECT * FROM users"),
        ["users"]
    );
    // ... unless it is recursive.
    assert_eq!(
        reads("WITH RECURSIVE users AS (SELECT 1 UNION SELECT * FROM users) SELECT * FROM users"),
        [""; 0]
    );
    assert_eq!(
        reads("WITH a AS (SELECT * FROM orders), orders AS (SELECT 1) SELECT * FROM a, orders"),
        ["orders"]
    );
    assert_eq!(
        reads("WITH RECURSIVE a AS (SELECT * FROM orders), orders AS (SELECT 1) SELECT * FROM a"),
        [""; 0]
    );
    assert_eq!(
        reads("SELECT * FROM (WITH users AS (SELECT 1) SELECT * FROM users) s, users"),
        ["users"]
    );
    assert_eq!(
        reads("WITH users AS (SELECT 1) SELECT * FROM (SELECT * FROM users) s"),
        [""; 0]
    );
    // With its schema, a name never means a WITH query.
    assert_eq!(
        reads("WITH users AS (SELECT 1) SELECT * FROM public.users"),
        ["users"]
    );
    assert_eq!(
        reads("(WITH users AS (SELECT 1) SELECT * FROM users) UNION SELECT id FROM users"),
        ["users"]
    );
}

#[test]
fn views_stand_for_the_tables_they_read() {
    assert_eq!(reads("SELECT * FROM active_users"), ["users"]);
    assert_eq!(reads("SELECT * FROM order_summary"), ["orders", "users"]);
    assert_eq!(refusal("SELECT * FROM todays_events"), "function");
    assert_eq!(refusal("SELECT * FROM all_secret"), "row_security");
    // The WITH queries outside are not in sight of the view's own query.
    assert_eq!(
        reads("WITH users AS (SELECT 1) SELECT * FROM active_users"),
        ["users"]
    );
}

#[test]
fn views_that_read_each_other_are_refused_and_end() {
    assert_eq!(refusal("SELECT * FROM ping"), "unsupported");
    assert_eq!(refusal("SELECT * FROM pong"), "unsupported");
}

#[test]
fn a_partition_has_the_key_of_its_parent() {
    let key = |sql: &str| match class_of(sql).read {
        Read::Cacheable(on) => on[0].key,
        Read::Refused(why) => panic!("{why}"),
    };
    assert_eq!(key("SELECT * FROM parts"), oid_of("parts"));
    assert_eq!(key("SELECT * FROM parts_2"), oid_of("parts"));
    assert_eq!(key("SELECT * FROM child"), oid_of("parent"));
    assert_eq!(key("SELECT * FROM tree_b"), key("SELECT * FROM tree_a"));
    assert_eq!(key("SELECT * FROM tree_c"), key("SELECT * FROM tree_a"));
    assert_eq!(catalog().key_of(oid_of("parts_1")), oid_of("parts"));
    assert_eq!(catalog().key_of(4_000_000_000), 4_000_000_000);
}

#[test]
fn only_what_decoding_shows_is_marked_as_decoded() {
    let decoded = |sql: &str| match class_of(sql).read {
        Read::Cacheable(on) => on[0].decoded,
        Read::Refused(why) => panic!("{why}"),
    };
    assert!(decoded("SELECT * FROM users"));
    assert!(!decoded("SELECT * FROM scratch"));
    assert!(!decoded("SELECT * FROM totals"));
}

#[test]
fn relations_that_answer_for_more_than_their_rows_are_refused() {
    for (sql, label) in [
        ("SELECT * FROM pg_class", "system_catalog"),
        ("SELECT * FROM pg_catalog.pg_class", "system_catalog"),
        ("SELECT * FROM information_schema.tables", "system_catalog"),
        ("SELECT * FROM remote", "foreign_table"),
        ("SELECT * FROM remote_parts", "foreign_table"),
        ("SELECT * FROM secret", "row_security"),
        ("SELECT * FROM ids", "sequence"),
        ("SELECT * FROM registry", "column_type"),
        ("SELECT * FROM nowhere", "unknown_relation"),
        ("SELECT * FROM pg_temp.users", "temporary"),
        ("SELECT * FROM users TABLESAMPLE system (10)", "tablesample"),
    ] {
        assert_eq!(refusal(sql), label, "{sql}");
    }
}

#[test]
fn statements_that_are_no_plain_read_are_refused() {
    for (sql, label) in [
        ("SELECT * INTO t FROM users", "not_select"),
        ("SELECT * FROM users FOR UPDATE", "locking_clause"),
        ("SELECT * FROM users FOR NO KEY UPDATE", "locking_clause"),
        ("SELECT * FROM users FOR SHARE", "locking_clause"),
        ("SELECT * FROM users FOR\nKEY SHARE", "locking_clause"),
        (
            "SELECT * FROM (SELECT * FROM users FOR UPDATE) s",
            "locking_clause",
        ),
        (
            "WITH d AS (DELETE FROM users RETURNING *) SELECT * FROM d",
            "data_modifying_with",
        ),
        (
            "WITH d AS (INSERT INTO users DEFAULT VALUES RETURNING *) SELECT 1",
            "data_modifying_with",
        ),
        (
            "WITH d AS (UPDATE users SET id = 1 RETURNING *) SELECT 1",
            "data_modifying_with",
        ),
        (
            "WITH d AS (MERGE INTO users u USING orders o ON true WHEN MATCHED THEN DELETE RETURNING 1) SELECT 1",
            "data_modifying_with",
        ),
        ("EXPLAIN SELECT * FROM users", "not_select"),
        ("COPY users TO STDOUT", "not_select"),
        ("EXECUTE q", "not_select"),
        ("FETCH c", "not_select"),
        ("SHOW search_path", "not_select"),
        ("DECLARE c CURSOR FOR SELECT * FROM users", "not_select"),
    ] {
        assert_eq!(refusal(sql), label, "{sql}");
    }
    let class = classify_all("SELECT 1; SELECT 2");
    assert!(
        class
            .statements
            .iter()
            .all(|one| matches!(one.read, Read::Refused(_)))
    );
    assert_eq!(class.cacheable(), None);
    assert!(classify_all("").statements.is_empty());
    assert!(classify_all(" ; ").statements.is_empty());
}

#[test]
fn functions_are_allowed_by_purity_and_not_by_label() {
    for sql in [
        "SELECT lower('A'), abs(1), count(*)",
        "SELECT to_char(at, 'YYYY') FROM events",
        "SELECT age(at, at) FROM events",
        "SELECT EXTRACT(year FROM at) FROM events",
        "SELECT at AT TIME ZONE 'UTC' FROM events",
        "SELECT similarity('a', 'b')",
        "SELECT * FROM generate_series(1, 3)",
        "SELECT * FROM ROWS FROM (generate_series(1, 3), unnest(ARRAY[1])) AS t (a, b)",
        "SELECT lower('A') IN (SELECT md5('a'))",
    ] {
        reads(sql);
    }
    for sql in [
        "SELECT now()",
        "SELECT age(at) FROM events",
        "SELECT random()",
        "SELECT nextval('s')",
        "SELECT clock_timestamp()",
        "SELECT current_setting('a')",
        "SELECT pg_backend_pid()",
        "SELECT txid_current()",
        "SELECT currval('ids')",
        "SELECT pg_sleep(1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT version()",
        "SELECT enum_range(NULL::mood)",
        "SELECT pg_partition_root('parts')",
        "SELECT user_immutable(1)",
        "SELECT user_stable(1)",
        "SELECT user_volatile()",
        "SELECT user_aggregate(1)",
        "SELECT similarity_sql('a', 'b')",
        "SELECT json_populate_record(NULL, '{}')",
        "SELECT * FROM table_to_xml('users', true, true, '')",
    ] {
        assert_eq!(refusal(sql), "function", "{sql}");
    }
    assert_eq!(refusal("SELECT no_such_function()"), "unknown_function");
    for sql in [
        "SELECT CURRENT_DATE",
        "SELECT CURRENT_TIMESTAMP(3)",
        "SELECT LOCALTIME",
        "SELECT CURRENT_USER",
        "SELECT SESSION_USER",
        "SELECT CURRENT_ROLE",
        "SELECT CURRENT_SCHEMA",
        "SELECT CURRENT_CATALOG",
    ] {
        assert_eq!(refusal(sql), "value_function", "{sql}");
    }
}

#[test]
fn a_column_may_be_a_function_of_its_row() {
    assert_eq!(refusal("SELECT u.full_name FROM users u"), "function");
    assert_eq!(refusal("SELECT (u).full_name FROM users u"), "function");
    assert_eq!(
        refusal("SELECT 1 FROM users u WHERE u.full_name = 'x'"),
        "function"
    );
    assert_eq!(reads("SELECT full_name FROM users"), ["users"]);
    assert_eq!(reads("SELECT u.user_immutable FROM users u"), ["users"]);
}

#[test]
fn operators_with_user_defined_variants_are_refused() {
    assert_eq!(refusal("SELECT 1 ~~~ 2"), "operator");
    assert_eq!(refusal("SELECT 1 OPERATOR(public.~~~) 2"), "operator");
    assert_eq!(
        refusal("SELECT 1 FROM users ORDER BY id USING ~~~"),
        "operator"
    );
    assert_eq!(
        refusal("SELECT 1 ~~~ ANY (SELECT id FROM users)"),
        "operator"
    );
    assert_eq!(reads("SELECT '[1]'::vector <-> '[2]'::vector"), [""; 0]);
    // Comparisons without an operator in the text: somebody has redefined = for their type.
    let mut redefined = results();
    redefined[7].push(vec![
        Some("=".into()),
        Some("20001".into()),
        Some("f".into()),
    ]);
    let redefined = Catalog::from_results(1, redefined).expect("well-formed");
    for sql in [
        "SELECT DISTINCT id FROM users",
        "SELECT id FROM users GROUP BY id",
    ] {
        let class = classify(sql, &redefined, &scope(&["public"]));
        assert_eq!(class.cacheable(), None, "{sql}");
        assert!(classify_all(sql).cacheable().is_some(), "{sql}");
    }
}

#[test]
fn casts_are_allowed_to_types_whose_input_is_pure() {
    for sql in [
        "SELECT '1'::int4, '1'::text, 1::varchar(3), '{1}'::int4[]",
        "SELECT CAST('2026-01-01' AS date)",
        "SELECT 'sad'::mood",
        "SELECT '[1]'::vector",
        "SELECT '[1,2)'::int4range",
        "SELECT interval '1 day'",
        "SELECT 1::int, true::bool",
    ] {
        reads(sql);
    }
    for sql in [
        "SELECT 'users'::regclass",
        "SELECT 'users'::pg_catalog.regclass",
        "SELECT '{users}'::regclass[]",
        "SELECT '1'::email",
        "SELECT '10:00'::timetz",
        "SELECT NULL::users",
        "SELECT NULL::record",
        "SELECT 1::money_bag",
        "SELECT '1'::jsonb",
        "SELECT '{1}'::jsonb[]",
        "SELECT 1::no_such_type",
        // A domain of this name makes upper('x') a cast if no function fits.
        "SELECT upper('x')",
    ] {
        assert_eq!(refusal(sql), "type", "{sql}");
    }
    let mut implicit = results();
    implicit[8].push(vec![
        Some("3001".into()),
        Some("20001".into()),
        Some("i".into()),
    ]);
    let implicit = Catalog::from_results(1, implicit).expect("well-formed");
    let class = classify("SELECT 1", &implicit, &scope(&["public"]));
    assert_eq!(class.cacheable(), None);
}

#[test]
fn literals_that_mean_the_current_moment_are_refused() {
    for sql in [
        "SELECT 'now'::date",
        "SELECT * FROM events WHERE at > 'yesterday'",
        "SELECT * FROM events WHERE at > ' TODAY '",
        "SELECT * FROM events WHERE at > E'\\x6eow'",
        "SELECT '[today,)'::daterange",
        "SELECT '{tomorrow}'::date[]",
        "SELECT date 'tomorrow'",
        "SELECT timestamptz 'now'",
        "SELECT 'to'\n'day'::date",
        "SELECT U&'\\006eow'::date",
        "SELECT $$now$$::date",
        "SELECT * FROM users LIMIT 'now'",
    ] {
        assert_eq!(refusal(sql), "time_word", "{sql}");
    }
    reads("SELECT * FROM events WHERE at > 'infinity'");
    reads("SELECT 'nowhere', 'know', 'todays'");
}

#[test]
fn stored_text_is_not_turned_into_dates() {
    for sql in [
        "SELECT at::date FROM events",
        "SELECT e.at::date AS day FROM events e",
        "SELECT date(at) FROM events",
        "SELECT date_trunc('day', at)::date FROM events",
        "SELECT max(at)::date FROM events",
        "SELECT (at + interval '1 day')::date FROM events",
        "SELECT (SELECT max(at) FROM events)::date",
        "SELECT coalesce(at, '2026-01-01')::date FROM events",
        "SELECT CASE WHEN true THEN at END::date FROM events",
        "SELECT at::timestamptz::date FROM events",
        "SELECT $1::date",
        "SELECT since::date FROM active_users",
        "SELECT at::date AS at FROM events ORDER BY at",
    ] {
        reads(sql);
    }
    for sql in [
        "SELECT note::date FROM events",
        "SELECT note::timestamptz FROM events",
        "SELECT note::daterange FROM events",
        "SELECT date(note) FROM events",
        "SELECT timestamptz(note) FROM events",
        "SELECT lower(note)::date FROM events",
        "SELECT ('to' || 'day')::date",
        "SELECT max(note)::date FROM events",
        "SELECT d::date FROM (SELECT note AS d FROM events) s",
        "SELECT at::date FROM (SELECT note AS at FROM events) s, events e",
        "SELECT at::date FROM (SELECT note FROM events) s (at), events e",
        "WITH s (at) AS (SELECT note FROM events) SELECT s.at::date FROM s, events e",
        "SELECT at::date FROM jsonb_each_text('{}') j (at), events e",
        "SELECT (e).note::date FROM events e",
        "SELECT 'x'::text::date",
        "SELECT id::date FROM users",
        // note is text in events and a date in app.notes.
        "SELECT e.note::date FROM events e, app.notes n",
        "SELECT (SELECT note FROM events)::date",
        "SELECT coalesce(at, note)::date FROM events",
    ] {
        assert_eq!(refusal(sql), "text_to_time", "{sql}");
    }
}

#[test]
fn a_time_of_day_has_no_offset_of_its_own() {
    reads("SELECT at AT TIME ZONE 'Europe/Berlin' FROM events");
    reads("SELECT opens FROM shifts");
    for sql in [
        "SELECT opens AT TIME ZONE 'Europe/Berlin' FROM shifts",
        "SELECT time '10:00' AT TIME ZONE 'Europe/Berlin'",
        "SELECT timezone('Europe/Berlin', at::time) FROM events",
        "SELECT timezone('Europe/Berlin', make_time(10, 0, 0))",
    ] {
        assert_eq!(refusal(sql), "function", "{sql}");
    }
}

#[test]
fn a_text_in_another_encoding_is_not_read() {
    let mut other = scope(&["public"]);
    other.client_encoding_utf8 = false;
    let class = classify("SELECT 'é' FROM users", &catalog(), &other);
    assert!(!class.parsed);
    assert!(matches!(class.statements[0].write, Write::Everything(_)));
    assert!(
        classify("SELECT 'e' FROM users", &catalog(), &other)
            .cacheable()
            .is_some()
    );
    // A server with a one-byte encoding folds É to é, and we don't.
    let mut latin1 = results();
    latin1[0][0][0] = Some("LATIN1".into());
    let latin1 = Catalog::from_results(1, latin1).expect("well-formed");
    let scope = scope(&["public"]);
    assert_eq!(
        classify("SELECT 'é' FROM users", &latin1, &scope).cacheable(),
        None
    );
    assert!(
        classify("SELECT 'e' FROM users", &latin1, &scope)
            .cacheable()
            .is_some()
    );
}

#[test]
fn backslashes_are_read_as_the_session_has_them() {
    let sql = "SELECT 'a\\' FROM users -- '";
    let mut lax = scope(&["public"]);
    lax.standard_conforming_strings = false;
    assert!(
        classify(sql, &catalog(), &scope(&["public"]))
            .cacheable()
            .is_some()
    );
    // The string ends at the comment's quote: there is no FROM.
    let class = classify(sql, &catalog(), &lax);
    assert_eq!(class.cacheable().map(<[_]>::len), Some(0));
}

#[test]
fn what_is_not_understood_counts_as_the_worst() {
    for sql in [
        "SELEC 1",
        "SELECT 1 FROM",
        "\u{1}",
        "SELECT 1\u{0}",
        "SELECT 'a",
    ] {
        let class = classify_all(sql);
        assert!(!class.parsed, "{sql}");
        assert_eq!(class.cacheable(), None);
        let [statement] = class.statements.as_slice() else {
            panic!("{sql}");
        };
        assert!(matches!(statement.write, Write::Everything(_)));
        assert!(
            statement
                .effects
                .iter()
                .any(|e| matches!(e, Effect::SettingsUnknown(_)))
        );
    }
    let deep = format!("SELECT {}1", "1 || ".repeat(5000));
    assert_eq!(classify_all(&deep).cacheable(), None);
}

// What is written

#[test]
fn writes_touch_their_targets() {
    assert_eq!(writes("INSERT INTO logged VALUES (1)"), ["*trigger"]);
    assert_eq!(writes("INSERT INTO users VALUES (1)"), ["users"]);
    assert_eq!(
        writes("INSERT INTO app.notes SELECT * FROM users"),
        ["app.notes"]
    );
    assert_eq!(writes("UPDATE \"Orders\" SET a = 1"), ["Orders"]);
    assert_eq!(writes("DELETE FROM ONLY events"), ["events"]);
    assert_eq!(writes("COPY events FROM STDIN"), ["events"]);
    assert_eq!(writes("COPY events TO STDOUT"), [""; 0]);
    assert_eq!(
        writes("COPY (DELETE FROM events RETURNING *) TO STDOUT"),
        ["events"]
    );
    assert_eq!(writes("TRUNCATE events, \"Orders\""), ["Orders", "events"]);
    assert!(matches!(
        class_of("UPDATE parts_1 SET a = 1").write,
        Write::Relations(relations) if relations[0].key == oid_of("parts")
    ));
    assert_eq!(
        writes("MERGE INTO events e USING users u ON true WHEN MATCHED THEN DELETE"),
        ["events"]
    );
    assert_eq!(
        writes("WITH d AS (DELETE FROM events RETURNING *) INSERT INTO \"Orders\" SELECT * FROM d"),
        ["Orders", "events"]
    );
    assert_eq!(
        writes("WITH d AS (WITH e AS (DELETE FROM events RETURNING *) SELECT * FROM e) SELECT 1"),
        ["events"]
    );
    assert_eq!(writes("EXPLAIN ANALYZE DELETE FROM events"), ["events"]);
    assert_eq!(
        writes("EXPLAIN (ANALYZE, BUFFERS) DELETE FROM events"),
        ["events"]
    );
    assert_eq!(
        writes("EXPLAIN (ANALYZE false) DELETE FROM events"),
        [""; 0]
    );
    assert_eq!(writes("EXPLAIN DELETE FROM events"), [""; 0]);
    assert_eq!(writes("SELECT * FROM users FOR UPDATE"), [""; 0]);
    assert_eq!(writes("LOCK TABLE users"), [""; 0]);
    // A WITH query is never the target of a write.
    assert_eq!(
        writes("WITH events AS (SELECT 1) DELETE FROM events"),
        ["events"]
    );
}

#[test]
fn foreign_key_actions_are_followed() {
    // Rows of orders are deleted, so those of items set to null, that is updated, and so those of
    // app.notes.
    assert_eq!(
        writes("DELETE FROM users"),
        ["app.notes", "items", "orders", "users"]
    );
    assert_eq!(writes("UPDATE users SET id = 1"), ["users"]);
    assert_eq!(
        writes("DELETE FROM orders"),
        ["app.notes", "items", "orders"]
    );
    assert_eq!(writes("UPDATE items SET sku = 1"), ["app.notes", "items"]);
    assert_eq!(writes("DELETE FROM items"), ["items"]);
    assert_eq!(writes("INSERT INTO users VALUES (1)"), ["users"]);
    assert_eq!(
        writes("INSERT INTO items VALUES (1) ON CONFLICT (id) DO UPDATE SET sku = 2"),
        ["app.notes", "items"]
    );
    assert_eq!(writes("TRUNCATE users"), ["users"]);
    assert_eq!(
        writes("TRUNCATE users CASCADE"),
        ["app.notes", "items", "orders", "users"]
    );
}

#[test]
fn moving_a_row_between_partitions_fires_delete_actions() {
    let mut keys = results();
    keys[3].push(vec![
        Some(oid_of("parts").to_string()),
        Some(oid_of("events").to_string()),
        Some("c".into()),
        Some("a".into()),
    ]);
    let keys = Catalog::from_results(1, keys).expect("well-formed");
    let class = classify("UPDATE parts SET a = 1", &keys, &scope(&["public"]));
    let Write::Relations(relations) = &class.statements[0].write else {
        panic!("{class:?}");
    };
    assert!(
        relations.iter().any(|r| &*r.name == "public.events"),
        "{relations:?}"
    );
}

#[test]
fn code_that_runs_on_a_write_makes_it_unbounded() {
    for (sql, label) in [
        ("INSERT INTO logged VALUES (1)", "*trigger"),
        ("DELETE FROM ruled", "*rule"),
        ("INSERT INTO coded VALUES (1)", "*table_code"),
        ("INSERT INTO remote VALUES (1)", "*foreign_table"),
        ("INSERT INTO remote_parts VALUES (1)", "*foreign_table"),
        ("INSERT INTO nowhere VALUES (1)", "*unknown_relation"),
        ("UPDATE pg_class SET relname = 'x'", "*system_catalog"),
        ("UPDATE events SET note = user_volatile()", "*user_function"),
        ("DELETE FROM events WHERE user_volatile()", "*user_function"),
        (
            "INSERT INTO events SELECT user_volatile()",
            "*user_function",
        ),
        (
            "INSERT INTO events VALUES (1) RETURNING user_volatile()",
            "*user_function",
        ),
        (
            "INSERT INTO events VALUES (1) ON CONFLICT DO UPDATE SET note = user_volatile()",
            "*user_function",
        ),
        ("DELETE FROM events WHERE 1 @! 2", "*operator"),
        (
            "COPY events FROM STDIN WHERE user_volatile()",
            "*user_function",
        ),
        ("CALL p()", "*code"),
        ("DO $$ BEGIN END $$", "*code"),
        ("EXECUTE q", "*execute"),
        ("COMMIT PREPARED 'x'", "*two_phase"),
    ] {
        assert_eq!(writes(sql), [label], "{sql}");
    }
    assert!(effects("UPDATE pg_class SET relname = 'x'").contains(&Effect::Ddl));
    assert!(effects("INSERT INTO partition_maker VALUES (1)").contains(&Effect::Ddl));
    assert!(!effects("INSERT INTO logged VALUES (1)").contains(&Effect::Ddl));
}

#[test]
fn a_write_to_a_view_goes_to_its_tables_or_to_code() {
    assert_eq!(
        writes("DELETE FROM active_users"),
        writes("DELETE FROM users")
    );
    assert_eq!(writes("INSERT INTO active_users VALUES (1)"), ["users"]);
    assert_eq!(
        writes("UPDATE editable SET at = '2026-01-01'"),
        ["*trigger"]
    );
    assert_eq!(writes("INSERT INTO ruled_view VALUES (1)"), ["*rule"]);
    assert_eq!(writes("UPDATE totals SET sum = 1"), ["*unknown_relation"]);
    // Reading a view is no write to its tables.
    assert_eq!(
        writes("INSERT INTO events SELECT * FROM active_users"),
        ["events"]
    );
}

#[test]
fn a_select_that_calls_code_counts_as_a_write() {
    for (sql, label) in [
        ("SELECT user_volatile()", "*user_function"),
        ("SELECT wraps_writer()", "*user_function"),
        ("SELECT wraps_wrapper()", "*user_function"),
        ("SELECT sets_quietly()", "*user_function"),
        ("SELECT * FROM user_volatile()", "*user_function"),
        ("SELECT user_aggregate(id) FROM users", "*user_function"),
        ("SELECT * FROM calls_writer", "*user_function"),
        ("SELECT (SELECT user_volatile())", "*user_function"),
        ("SELECT 1 @! 2", "*operator"),
        ("SELECT dblink('a', 'DELETE FROM users')", "*user_function"),
        ("SELECT no_such_function()", "*unknown_function"),
        (
            "SELECT query_to_xml('DELETE FROM users', true, true, '')",
            "*server_function",
        ),
        (
            "SELECT table_to_xml('users', true, true, '')",
            "*server_function",
        ),
        ("SELECT pg_reload_conf()", "*server_function"),
        ("COPY (SELECT user_volatile()) TO STDOUT", "*user_function"),
        (
            "DECLARE c CURSOR FOR SELECT user_volatile()",
            "*user_function",
        ),
        ("EXPLAIN ANALYZE SELECT user_volatile()", "*user_function"),
        (
            "CREATE TEMP TABLE t AS SELECT user_volatile()",
            "*user_function",
        ),
    ] {
        assert_eq!(writes(sql), [label], "{sql}");
        assert_settings_unknown(sql);
    }
    for sql in [
        "SELECT nextval('ids')",
        "SELECT setval('ids', 1)",
        "SELECT random(), clock_timestamp(), pg_sleep(0)",
        "SELECT uuid_generate_v4()",
        "SELECT pg_notify('a', 'b')",
        "SELECT user_stable(1), user_immutable(1)",
        "EXPLAIN SELECT user_volatile()",
    ] {
        assert_eq!(writes(sql), [""; 0], "{sql}");
        assert_eq!(effects(sql), [], "{sql}");
    }
    assert_eq!(writes("SELECT lo_unlink(1)"), ["*server_function"]);
    assert_eq!(effects("SELECT lo_unlink(1)"), []);
    assert!(effects("SELECT makes_tables()").contains(&Effect::Ddl));
}

#[test]
fn sql_json_and_sql_xml_are_refused_but_are_no_writes() {
    for sql in [
        "SELECT JSON_OBJECT('a': id) FROM users",
        "SELECT JSON_ARRAY(1, 2), JSON_ARRAY(SELECT id FROM users)",
        "SELECT JSON_ARRAYAGG(id ORDER BY id), JSON_OBJECTAGG('a': id) FROM users",
        "SELECT JSON_VALUE('{}', '$.a' RETURNING int DEFAULT 1 ON EMPTY)",
        "SELECT JSON_QUERY('{}', '$.a'), JSON_EXISTS('{}', '$.a' PASSING 1 AS x)",
        "SELECT JSON('{}'), JSON_SCALAR(1), JSON_SERIALIZE('{}')",
        "SELECT '{}' IS JSON OBJECT",
        "SELECT * FROM JSON_TABLE('[]', '$[*]' COLUMNS (a int PATH '$', NESTED '$.b' COLUMNS (c text))) j",
        "SELECT xmlelement(name a, id) FROM users",
        "SELECT xmlserialize(content '<a/>' AS text)",
        "SELECT * FROM XMLTABLE('/a' PASSING '<a/>' COLUMNS b int)",
    ] {
        assert_eq!(refusal(sql), "unsupported", "{sql}");
        assert_eq!(writes(sql), [""; 0], "{sql}");
        assert_eq!(effects(sql), [], "{sql}");
    }
    for sql in [
        "SELECT JSON_OBJECT('a': user_volatile())",
        "SELECT JSON_ARRAY(SELECT user_volatile())",
        "SELECT JSON_ARRAYAGG(user_volatile())",
        "SELECT JSON_OBJECTAGG('a': 1) FILTER (WHERE user_volatile())",
        "SELECT JSON_VALUE('{}', '$.a' DEFAULT user_volatile() ON EMPTY)",
        "SELECT JSON_EXISTS('{}', '$.a' PASSING user_volatile() AS x)",
        "SELECT * FROM JSON_TABLE(user_volatile(), '$[*]' COLUMNS (a int PATH '$')) j",
        "SELECT * FROM XMLTABLE('/a' PASSING user_volatile() COLUMNS b int DEFAULT 1)",
        "SELECT xmlelement(name a, user_volatile())",
    ] {
        assert_eq!(writes(sql), ["*user_function"], "{sql}");
    }
}

#[test]
fn hidden_code_makes_every_statement_unbounded() {
    // A domain's check calls user_volatile.
    let mut hidden = results();
    hidden[10].push(vec![Some("0".into()), Some("20003".into())]);
    let hidden = Catalog::from_results(1, hidden).expect("well-formed");
    let class = classify("SELECT 1", &hidden, &scope(&["public"]));
    assert!(matches!(class.statements[0].write, Write::Everything(_)));
    assert_eq!(class.cacheable(), None);
}

#[test]
fn ddl_is_recognised_by_default() {
    for sql in [
        "CREATE TABLE t (a int)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX ON users (id)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION x",
        "CREATE TABLE t AS SELECT 1",
        "CREATE MATERIALIZED VIEW v AS SELECT 1",
        "SELECT * INTO t FROM users",
        "ALTER TABLE users ADD a int",
        "ALTER ROLE alice SET search_path = app",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "ALTER FUNCTION f() VOLATILE",
        "ALTER TYPE mood ADD VALUE 'x'",
        "DROP TABLE users",
        "GRANT SELECT ON users TO alice",
        "REVOKE SELECT ON users FROM alice",
        "COMMENT ON TABLE users IS 'x'",
        "CREATE POLICY p ON users USING (true)",
        "CREATE TRIGGER t AFTER INSERT ON users EXECUTE FUNCTION f()",
        "DROP OWNED BY alice",
        "REASSIGN OWNED BY alice TO bob",
        "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c",
        "CREATE STATISTICS s ON a, b FROM users",
        "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p",
        "ALTER DATABASE d SET a = 1",
        "SECURITY LABEL ON TABLE users IS 'x'",
    ] {
        assert!(effects(sql).contains(&Effect::Ddl), "{sql}");
        assert_eq!(writes(sql), ["*ddl"], "{sql}");
    }
}

#[test]
fn refreshing_a_materialised_view_writes_it_alone() {
    assert_eq!(writes("REFRESH MATERIALIZED VIEW totals"), ["totals"]);
    assert_eq!(effects("REFRESH MATERIALIZED VIEW totals"), []);
    assert_eq!(writes("REFRESH MATERIALIZED VIEW nowhere"), ["*ddl"]);
}

#[test]
fn maintenance_changes_nothing_that_is_cached() {
    for sql in [
        "VACUUM users",
        "VACUUM FULL",
        "ANALYZE",
        "CHECKPOINT",
        "REINDEX TABLE users",
        "CLUSTER users",
    ] {
        assert_eq!(writes(sql), [""; 0], "{sql}");
        assert_eq!(effects(sql), [], "{sql}");
    }
}

#[test]
fn event_triggers_make_temporary_tables_unbounded() {
    assert_eq!(writes("CREATE TEMP TABLE t (a int)"), [""; 0]);
    let mut triggers = results();
    triggers[0][0][1] = Some("1".into());
    let triggers = Catalog::from_results(1, triggers).expect("well-formed");
    for sql in [
        "CREATE TEMP TABLE t (a int)",
        "REFRESH MATERIALIZED VIEW totals",
    ] {
        let class = classify(sql, &triggers, &scope(&["public"]));
        assert!(
            matches!(class.statements[0].write, Write::Everything(_)),
            "{sql}"
        );
    }
}

#[test]
fn statements_after_a_change_of_meaning_are_read_without_a_catalog() {
    for first in [
        "CREATE TABLE t (a int)",
        "SET search_path = app",
        "SELECT user_volatile()",
        "ROLLBACK",
        "RESET ALL",
        "DO 'x'",
    ] {
        let class = classify_all(&format!("{first}; INSERT INTO events VALUES (1)"));
        assert!(
            matches!(class.statements[1].write, Write::Everything(_)),
            "{first}"
        );
    }
    let class = classify_all("BEGIN; INSERT INTO events VALUES (1); COMMIT");
    assert!(matches!(&class.statements[1].write, Write::Relations(r) if r.len() == 1));
}

#[test]
fn without_a_catalog_nothing_is_cacheable_and_all_writes_are_unbounded() {
    let of = |sql: &str| classify_without_catalog(sql, &scope(&["public"])).statements[0].clone();
    for sql in ["SELECT 1", "SELECT * FROM users", "VALUES (1)"] {
        assert!(matches!(of(sql).read, Read::Refused(_)), "{sql}");
    }
    for sql in [
        "SELECT * FROM users",
        "INSERT INTO users VALUES (1)",
        "DELETE FROM users",
        "SELECT f()",
    ] {
        assert!(matches!(of(sql).write, Write::Everything(_)), "{sql}");
    }
    assert_eq!(of("SELECT 1").write, Write::None);
    assert_eq!(of("SELECT count(*), now()").effects.len(), 0);
    assert!(matches!(
        of("SELECT f()").effects[..],
        [Effect::SettingsUnknown(_)]
    ));
    assert_eq!(of("SET a = 1").effects[..], [set("a", "1", false)]);
    assert_eq!(
        of("SELECT pg_advisory_lock(1)").effects[..],
        [Effect::AdvisoryLock]
    );
}

// What happens to the session

#[test]
fn settings_are_rendered_so_that_they_can_be_repeated() {
    for (sql, name, value) in [
        ("SET work_mem = '4MB'", "work_mem", "'4MB'"),
        ("SET Work_Mem TO 64", "work_mem", "64"),
        ("SET a.b = -1.5", "a.b", "-1.5"),
        ("SET enable_seqscan = off", "enable_seqscan", "'off'"),
        ("SET jit = true", "jit", "'true'"),
        (
            "SET search_path TO \"$user\", Public, \"My\"",
            "search_path",
            "'$user', 'public', 'My'",
        ),
        ("SET SCHEMA 'app'", "search_path", "'app'"),
        ("SET NAMES 'latin1'", "client_encoding", "'latin1'"),
        ("SET DateStyle = ISO, DMY", "datestyle", "'iso', 'dmy'"),
        (
            "SET TIME ZONE 'Europe/Berlin'",
            "timezone",
            "'Europe/Berlin'",
        ),
        ("SET TIME ZONE -7", "timezone", "-7"),
        ("SET TIME ZONE LOCAL", "timezone", "DEFAULT"),
        ("SET a.b = 'it''s'", "a.b", "'it''s'"),
        ("SET a.b = 'back\\slash'", "a.b", "E'back\\\\slash'"),
        ("SET a.b TO DEFAULT", "a.b", "DEFAULT"),
        ("SET ROLE bob", "role", "'bob'"),
        ("SET ROLE NONE", "role", "'none'"),
        (
            "SET SESSION AUTHORIZATION bob",
            "session_authorization",
            "'bob'",
        ),
        (
            "SET SESSION AUTHORIZATION DEFAULT",
            "session_authorization",
            "DEFAULT",
        ),
        ("SET SESSION a.b = 1", "a.b", "1"),
        ("SELECT set_config('a.b', 'x', false)", "a.b", "'x'"),
        (
            "SELECT pg_catalog.set_config('A.B', 'x', false) AS x",
            "a.b",
            "'x'",
        ),
        (
            "SELECT set_config('search_path', '\"$user\", Public', false)",
            "search_path",
            "'$user', 'public'",
        ),
        (
            "SELECT set_config('search_path', '', false)",
            "search_path",
            "''",
        ),
    ] {
        assert_eq!(effects(sql), [set(name, value, false)], "{sql}");
    }
    assert_eq!(effects("SET LOCAL a.b = 1"), [set("a.b", "1", true)]);
    assert_eq!(
        effects("SELECT set_config('a.b', '1', true)"),
        [set("a.b", "'1'", true)]
    );
    assert_eq!(
        effects("SELECT set_config('a.b', '1', false), set_config('a.c', '2', false)"),
        [set("a.b", "'1'", false), set("a.c", "'2'", false)]
    );
    assert_eq!(effects("RESET a.B"), [Effect::Reset("a.b".to_owned())]);
    assert_eq!(
        effects("RESET TIME ZONE"),
        [Effect::Reset("timezone".to_owned())]
    );
    assert_eq!(effects("RESET ALL"), [Effect::ResetAll]);
    assert_eq!(effects("RESET ROLE"), [Effect::Reset("role".to_owned())]);
}

#[test]
fn settings_that_cannot_be_told_are_reported_as_unknown() {
    for sql in [
        "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
        "SET \"a b\" = 1",
        "SET \"x; DROP TABLE users\" = 1",
        "SELECT set_config('a.b', $1, false)",
        "SELECT set_config($1, 'x', false)",
        "SELECT set_config('a.b', 'x', false) FROM users",
        "SELECT set_config('a.b', 'x', false) WHERE false",
        "SELECT set_config('a.b', lower('x'), false)",
        "SELECT set_config('a.b', 'x', false), 1",
        "SELECT lower(set_config('a.b', 'x', false))",
        "INSERT INTO events VALUES (set_config('a.b', 'x', false))",
        "WITH x AS (SELECT set_config('a.b', 'x', false)) SELECT * FROM x",
        "SELECT set_config('search_path', 'a b', false)",
        "SELECT set_config('shared_preload_libraries', 'x', false)",
        "EXPLAIN ANALYZE SELECT set_config('a.b', 'x', false)",
        "PREPARE q AS SELECT set_config('a.b', $1, false)",
        "PREPARE q AS SELECT set_config('a.b', 'x', false)",
        "CALL p()",
        "DO 'x'",
        "SELECT setseed(0.5)",
    ] {
        assert_settings_unknown(sql);
    }
}

#[test]
fn transaction_control_is_recognised() {
    let modes = |isolation, read_only, deferrable| TransactionModes {
        isolation,
        read_only,
        deferrable,
    };
    assert_eq!(effects("BEGIN"), [Effect::Begin(modes(None, None, None))]);
    assert_eq!(
        effects("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE"),
        [Effect::Begin(modes(
            Some(Isolation::RepeatableRead),
            Some(true),
            Some(false)
        ))]
    );
    assert_eq!(effects("COMMIT"), [Effect::Commit { chain: false }]);
    assert_eq!(effects("END AND CHAIN"), [Effect::Commit { chain: true }]);
    assert_eq!(effects("ABORT"), [Effect::Rollback { chain: false }]);
    assert_eq!(effects("SAVEPOINT A"), [Effect::Savepoint("a".to_owned())]);
    assert_eq!(
        effects("ROLLBACK TO a"),
        [Effect::RollbackTo("a".to_owned())]
    );
    assert_eq!(effects("RELEASE a"), [Effect::Release("a".to_owned())]);
    assert_eq!(
        effects("PREPARE TRANSACTION 'g'"),
        [Effect::PrepareTransaction("g".to_owned())]
    );
    assert_eq!(
        effects("ROLLBACK PREPARED 'g'"),
        [Effect::TwoPhaseEnd {
            gid: "g".to_owned(),
            commit: false
        }]
    );
    assert!(
        effects("COMMIT PREPARED 'g'").contains(&Effect::TwoPhaseEnd {
            gid: "g".to_owned(),
            commit: true
        })
    );
    for sql in [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET transaction_isolation = 'serializable'",
        "SET LOCAL transaction_isolation = serializable",
        "SELECT set_config('transaction_isolation', 'serializable', true)",
        "SET transaction_isolation TO DEFAULT",
    ] {
        let isolation = Some(Isolation::Serializable);
        assert_eq!(
            effects(sql),
            [Effect::SetTransaction(modes(isolation, None, None))],
            "{sql}"
        );
    }
    assert_eq!(
        effects(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"
        ),
        [
            set("default_transaction_isolation", "'serializable'", false),
            set("default_transaction_read_only", "'on'", false)
        ]
    );
}

#[test]
fn session_state_is_recognised() {
    for (sql, effect) in [
        ("LISTEN a", Effect::Listen("a".to_owned())),
        ("UNLISTEN a", Effect::Unlisten(Some("a".to_owned()))),
        ("UNLISTEN *", Effect::Unlisten(None)),
        ("DISCARD ALL", Effect::DiscardAll),
        ("DISCARD TEMP", Effect::DiscardTemp),
        ("DISCARD PLANS", Effect::DiscardPlans),
        ("DEALLOCATE q", Effect::Deallocate(Some("q".to_owned()))),
        ("DEALLOCATE PREPARE ALL", Effect::Deallocate(None)),
        ("PREPARE q AS SELECT 1", Effect::Prepare("q".to_owned())),
        ("EXECUTE q", Effect::Execute("q".to_owned())),
        ("LOAD 'x'", Effect::Load),
        ("CLOSE ALL", Effect::CloseAll),
        ("CLOSE c", Effect::Close("c".to_owned())),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            Effect::HoldCursor("c".to_owned()),
        ),
        ("CREATE TEMP TABLE t (a int)", Effect::Temp),
        ("CREATE TEMPORARY VIEW v AS SELECT 1", Effect::Temp),
        ("CREATE TEMP SEQUENCE s", Effect::Temp),
        ("CREATE TEMP TABLE t AS SELECT 1", Effect::Temp),
        ("SELECT * INTO TEMP t FROM users", Effect::Temp),
        ("CREATE TABLE pg_temp.t (a int)", Effect::Temp),
        ("SELECT pg_advisory_lock(1)", Effect::AdvisoryLock),
        (
            "SELECT pg_try_advisory_lock(1, 2) FROM users",
            Effect::AdvisoryLock,
        ),
        ("SELECT pg_advisory_unlock_all()", Effect::AdvisoryUnlockAll),
    ] {
        assert_eq!(effects(sql), [effect], "{sql}");
    }
    for sql in [
        "SELECT pg_advisory_xact_lock(1)",
        "DISCARD SEQUENCES",
        "NOTIFY a",
        "SHOW a",
        "FETCH c",
    ] {
        assert_eq!(effects(sql), [], "{sql}");
    }
    assert!(
        effects("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS ''")
            .contains(&Effect::Temp)
    );
    assert_eq!(
        effects("PREPARE q AS SELECT pg_advisory_lock(1)"),
        [Effect::Prepare("q".to_owned()), Effect::AdvisoryLock]
    );
    let class = classify("CREATE TABLE t (a int)", &catalog(), &scope(&["pg_temp"]));
    assert!(class.statements[0].effects.contains(&Effect::Temp));
}

// The catalog

#[test]
fn a_malformed_load_is_an_error_and_not_a_panic() {
    assert_eq!(
        Catalog::from_results(1, Vec::new()).err(),
        Some(CatalogError::Results {
            expected: 15,
            found: 0
        })
    );
    for result in 0..15 {
        let mut short = results();
        if let Some(row) = short[result].first_mut() {
            row.truncate(1);
        }
        assert!(Catalog::from_results(1, short).is_err(), "{result}");
    }
    let mut wrong = results();
    wrong[1][0][0] = Some("many".into());
    assert_eq!(
        Catalog::from_results(1, wrong).err(),
        Some(CatalogError::Cell {
            result: 1,
            row: 0,
            column: 0
        })
    );
    let mut none = results();
    none[0].clear();
    assert!(Catalog::from_results(1, none).is_err());
}

// Faults of earlier proxies, as far as classification can have them

#[test]
fn comments_strings_and_layout_do_not_hide_a_lock_or_a_write() {
    assert_eq!(
        refusal("SELECT * FROM users FOR/**/UPDATE"),
        "locking_clause"
    );
    assert_eq!(refusal("SELECT pg_advisory_lock(1)"), "function");
    assert_eq!(
        reads("SELECT * FROM users WHERE note LIKE 'x;y'"),
        ["users"]
    );
    assert_eq!(
        reads("SELECT 'FOR UPDATE', 'DELETE FROM users' FROM orders"),
        ["orders"]
    );
    assert_eq!(
        reads("SELECT 1 /* now() */ FROM users -- FOR UPDATE"),
        ["users"]
    );
    assert_eq!(writes("/* SELECT */ DELETE FROM events"), ["events"]);
    assert_eq!(writes("COPY users FROM STDIN"), ["users"]);
    assert_eq!(writes("TRUNCATE TABLE events"), ["events"]);
    assert_eq!(writes("DELETE FROM ONLY events"), ["events"]);
}

#[test]
fn every_explanation_names_its_reason() {
    for sql in [
        "SELECT * FROM order_summary",
        "SELECT now()",
        "DELETE FROM users",
        "SET a.b = 1",
        "DO 'x'",
        "x",
        "",
    ] {
        let class = classify_all(sql);
        let text = super::explain::explain(sql, &class, &scope(&["public"]));
        assert!(text.contains("search_path:  public"), "{text}");
        if let Some(relations) = class.cacheable() {
            assert!(relations.iter().all(|r| text.contains(&*r.name)), "{text}");
        }
    }
}

#[test]
fn a_plain_text_is_one_that_leaves_nothing_behind() {
    for sql in [
        "SELECT 1",
        "SELECT * FROM users WHERE id = 1;",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT random()",
        "SELECT nextval('s')",
        "SELECT * FROM users FOR UPDATE",
    ] {
        let class = classify_all(sql);
        assert!(class.is_plain(), "{sql}");
        // Whoever adds to what it does is heard.
        let written = class.altered(|all| all[0].write = Write::Everything(Unbounded::Unparsed));
        assert!(!written.is_plain(), "{sql}");
        let effective = class.altered(|all| all[0].effects.push(Effect::Temp));
        assert!(!effective.is_plain(), "{sql}");
        assert_eq!(class.altered(|_| {}), class, "{sql}");
    }
    for sql in [
        "",
        "SELECT 1; SELECT 2",
        "SELECT id INTO copy FROM users",
        "SELECT set_config('a.b', 'c', false)",
        "SELECT lastval()",
        "SELECT pg_advisory_lock(1)",
        "SELECT unheard_of()",
        "WITH x AS (DELETE FROM users RETURNING id) SELECT * FROM x",
        "INSERT INTO users VALUES (1)",
        "EXPLAIN SELECT 1",
        "EXECUTE s",
        "PREPARE s AS SELECT 1",
        "CREATE TABLE copy AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "BEGIN",
        "SET a.b = 'c'",
        "SELEC 1",
    ] {
        assert!(!classify_all(sql).is_plain(), "{sql}");
    }
    assert!(!Class::default().is_plain());
}
