//! Facts about reads and writes by primary key, on the catalog of [`super::fixture`].
//!
//! Keys there: `users (id int4)`, `orders (id int8)` in the second column, `items (order_id int4, line int2)` in the third
//! and first, `events (id text)`, `app.notes (id uuid)`, `"Orders" (code varchar(3))` in the second, and for `parent`,
//! `parts`, `scratch` and `shifts` keys by which no row can be told.

use super::fixture::{catalog, class_of, results, scope};
use super::{
    Catalog, EncodedKey, NameScope, Parameters, Read, Relation, RowKey, Rows, Values, Write,
    classify,
};

/// Parameters without declared types: 101, 102, and so on.
const BIND: &[u8] = b"\0\0\0\x04\0\0\0\x03101\0\0\0\x03102\0\0\0\x03103\0\0\0\x03104\0\0";

fn values(sql: &str) -> Values<'_> {
    Values {
        text: sql,
        parameters: Some(Parameters {
            types: b"\0\0",
            bind: BIND,
            parsed_under_catalog: true,
        }),
    }
}

/// The columns' values with commas between them; `?` if they can't be told.
fn shown(key: &RowKey, sql: &str) -> String {
    let Some(key) = key.encode(&values(sql)) else {
        return "?".to_owned();
    };
    let mut rest = key.as_bytes();
    let mut parts = Vec::new();
    while let Some((len, more)) = rest.split_first_chunk::<8>() {
        let (value, more) = more.split_at(usize::from_le_bytes(*len));
        parts.push(String::from_utf8_lossy(value).into_owned());
        rest = more;
    }
    parts.join(",")
}

/// A table's name alone: all of it. `t=key`: a row that is found or not. `t[key key]`: rows. `t+[key key]`: those and
/// new ones.
fn rows_of(relations: &[Relation], sql: &str) -> Vec<String> {
    let mut all: Vec<String> = relations
        .iter()
        .map(|relation| {
            let name = relation
                .name
                .strip_prefix("public.")
                .unwrap_or(&relation.name);
            let list = |keys: &[RowKey]| {
                let keys: Vec<String> = keys.iter().map(|key| shown(key, sql)).collect();
                keys.join(" ")
            };
            match &relation.rows {
                Rows::All => name.to_owned(),
                Rows::Found(key) => format!("{name}={}", shown(key, sql)),
                Rows::Keys(keys) => format!("{name}[{}]", list(keys)),
                Rows::New(keys) => format!("{name}+[{}]", list(keys)),
            }
        })
        .collect();
    all.sort_unstable();
    all
}

#[track_caller]
fn reads(sql: &str) -> String {
    match class_of(sql).read {
        Read::Cacheable(relations) => rows_of(&relations, sql).join(" "),
        Read::Refused(why) => panic!("{sql}: {why}"),
    }
}

#[track_caller]
fn writes(sql: &str) -> String {
    match class_of(sql).write {
        Write::None => String::new(),
        Write::Relations(relations) => rows_of(&relations, sql).join(" "),
        Write::Everything(why) => format!("*{}", why.label()),
    }
}

#[track_caller]
fn all_read(cases: &[(&str, &str)]) {
    for (sql, expected) in cases {
        assert_eq!(reads(sql), *expected, "{sql}");
    }
}

#[track_caller]
fn all_write(cases: &[(&str, &str)]) {
    for (sql, expected) in cases {
        assert_eq!(writes(sql), *expected, "{sql}");
    }
}

#[test]
fn a_read_by_the_whole_key_is_of_that_row() {
    all_read(&[
        ("SELECT * FROM users WHERE id = 7", "users=7"),
        ("SELECT * FROM users WHERE 7 = id", "users=7"),
        (
            "SELECT * FROM users WHERE users.id = $2 AND active",
            "users=102",
        ),
        (
            "SELECT u.* FROM users AS u WHERE a = 1 AND (b = 2 AND u.id = 3)",
            "users=3",
        ),
        ("SELECT * FROM public.users WHERE users.id = 7", "users=7"),
        ("SELECT * FROM users WHERE id = -7", "users=-7"),
        ("SELECT * FROM users WHERE id = - 7", "users=-7"),
        ("SELECT * FROM users WHERE id = '7'", "users=7"),
        ("SELECT * FROM users WHERE id = '7'::int4", "users=7"),
        ("SELECT * FROM users WHERE id = 7::bigint", "users=7"),
        (
            "SELECT * FROM users WHERE id = CAST($1 AS int)",
            "users=101",
        ),
        (
            "SELECT * FROM users WHERE id OPERATOR(pg_catalog.=) 7",
            "users=7",
        ),
        (
            "SELECT * FROM users WHERE id = 2147483647",
            "users=2147483647",
        ),
        ("SELECT /* x */ * FROM users WHERE id = 07", "users=7"),
        (
            "SELECT * FROM users WHERE id = 12345678901",
            "users=12345678901",
        ),
        (
            "SELECT DISTINCT a FROM users WHERE id = 7 ORDER BY b LIMIT 1",
            "users=7",
        ),
        ("SELECT * FROM orders WHERE id = 7", "orders=7"),
        (
            "SELECT * FROM items WHERE line = 2 AND order_id = 1",
            "items=1,2",
        ),
        (
            "SELECT * FROM items WHERE line = $1 AND order_id = 1",
            "items=1,101",
        ),
        ("SELECT * FROM events WHERE id = 'it''s'", "events=it's"),
        ("SELECT * FROM events WHERE id = E'a\\tb'", "events=a\tb"),
        ("SELECT * FROM events WHERE id = 'a'::varchar", "events=a"),
        (
            "SELECT * FROM \"Orders\" WHERE code = 'abcdef'",
            "Orders=abcdef",
        ),
    ]);
}

#[test]
fn anything_else_reads_the_table() {
    for sql in [
        "SELECT * FROM users",
        "SELECT * FROM users WHERE id = 7 OR a",
        "SELECT * FROM users WHERE NOT id = 7",
        "SELECT * FROM users WHERE (id = 7) = true",
        "SELECT * FROM users WHERE id <> 7",
        "SELECT * FROM users WHERE id >= 7",
        "SELECT * FROM users WHERE id IN (7)",
        "SELECT * FROM users WHERE id = ANY (ARRAY[7])",
        "SELECT * FROM users WHERE id IS NOT DISTINCT FROM 7",
        "SELECT * FROM users WHERE id BETWEEN 7 AND 7",
        "SELECT * FROM users WHERE id = 7 + 0",
        "SELECT * FROM users WHERE id + 0 = 7",
        "SELECT * FROM users WHERE id = abs(7)",
        "SELECT * FROM users WHERE id = (SELECT 7)",
        "SELECT * FROM users WHERE id = other",
        "SELECT * FROM users WHERE id = NULL",
        "SELECT * FROM users WHERE id = 7::numeric",
        "SELECT * FROM users WHERE id = $1::numeric",
        "SELECT * FROM users WHERE id = '7'::text::int",
        "SELECT * FROM users WHERE id = -(7)",
        "SELECT * FROM users WHERE id = - -7",
        "SELECT * FROM users WHERE (id, a) = (7, 1)",
        "SELECT * FROM users WHERE name = 'x'",
        "SELECT * FROM users WHERE public.users.id = 7",
        "SELECT * FROM users AS u (id) WHERE id = 7",
        "SELECT * FROM users AS u (id) WHERE u.id = 7",
        "SELECT id = 7 FROM users",
        "SELECT * FROM users GROUP BY id HAVING id = 7",
        "SELECT * FROM (SELECT * FROM users) u WHERE u.id = 7",
        "WITH u AS (SELECT * FROM users) SELECT * FROM u WHERE id = 7",
        "SELECT * FROM active_users WHERE id = 7",
    ] {
        assert_eq!(reads(sql), "users", "{sql}");
    }
    all_read(&[
        ("SELECT * FROM items WHERE line = 2", "items"),
        ("SELECT * FROM events WHERE id = 'a'::varchar(3)", "events"),
        (
            "SELECT * FROM events WHERE id = 'a' COLLATE \"C\"",
            "events",
        ),
        // Numbers of other forms, which the text at hand decides.
        ("SELECT * FROM users WHERE id = 7.0", "users=?"),
        ("SELECT * FROM users WHERE id = ' 7'", "users=?"),
        (
            "SELECT * FROM users WHERE id = 99999999999999999999",
            "users=?",
        ),
        // Keys that tell no row: trees, numeric, a collation of its own.
        ("SELECT * FROM parent WHERE id = 7", "parent"),
        ("SELECT * FROM ONLY parent WHERE id = 7", "parent"),
        ("SELECT * FROM parts WHERE id = 7", "parts"),
        ("SELECT * FROM scratch WHERE id = 7", "scratch"),
        ("SELECT * FROM shifts WHERE id = 'a'", "shifts"),
    ]);
}

#[test]
fn in_a_join_each_table_is_looked_at_by_itself() {
    all_read(&[
        (
            "SELECT * FROM users u JOIN orders o ON o.user_id = u.id WHERE u.id = 7",
            "orders users[7]",
        ),
        (
            "SELECT * FROM users u JOIN orders o ON o.id = 8 AND o.user_id = u.id WHERE u.id = 7",
            "orders[8] users[7]",
        ),
        (
            "SELECT * FROM users, orders WHERE users.id = 7 AND orders.id = 8",
            "orders[8] users[7]",
        ),
        (
            "SELECT * FROM users u, users v WHERE u.id = 7 AND v.id = 8",
            "users[7 8]",
        ),
        (
            "SELECT * FROM users u, users v WHERE u.id = 7 AND v.id = u.id",
            "users",
        ),
        // Only rows that pass WHERE are left of an outer join; its own condition leaves others.
        (
            "SELECT * FROM users u LEFT JOIN orders o ON o.id = 8 WHERE u.id = 7",
            "orders users[7]",
        ),
        (
            "SELECT * FROM orders o LEFT JOIN users u ON true WHERE u.id = 7",
            "orders users[7]",
        ),
        (
            "SELECT * FROM users u LEFT JOIN orders o ON u.id = 7",
            "orders users",
        ),
        (
            "SELECT * FROM users u FULL JOIN orders o ON u.id = 7",
            "orders users",
        ),
        (
            "SELECT * FROM items LEFT JOIN (users u JOIN orders o ON u.id = 7) ON true",
            "items orders users[7]",
        ),
        // A condition is about the tables of its own join.
        (
            "SELECT 1 FROM users u WHERE EXISTS (SELECT FROM orders o JOIN items i ON u.id = 7)",
            "items orders users",
        ),
        // The name of a join, or of a column that two tables share, is neither table's.
        (
            "SELECT * FROM (users u JOIN orders o ON true) AS users WHERE users.id = 7",
            "orders users",
        ),
        (
            "SELECT * FROM users u JOIN orders o USING (id) WHERE id = 7",
            "orders users",
        ),
        (
            "SELECT * FROM users u JOIN orders o USING (id) WHERE u.id = 7",
            "orders users[7]",
        ),
        (
            "SELECT * FROM users u NATURAL JOIN orders o WHERE id = 7",
            "orders users",
        ),
        (
            "SELECT * FROM users u JOIN orders o USING (id) AS u2 WHERE u2.id = 7",
            "orders users",
        ),
    ]);
}

#[test]
fn subqueries_and_set_operations_have_conditions_of_their_own() {
    all_read(&[
        ("SELECT (SELECT a FROM users WHERE id = 7)", "users[7]"),
        (
            "SELECT (SELECT a FROM users u WHERE u.id = 7) FROM orders WHERE id = 8",
            "orders[8] users[7]",
        ),
        (
            "SELECT 1 FROM orders WHERE EXISTS (SELECT FROM users WHERE users.id = 7)",
            "orders users[7]",
        ),
        (
            "SELECT 1 FROM users WHERE id = 7 UNION SELECT 1 FROM users WHERE id = 8",
            "users[7 8]",
        ),
        (
            "SELECT 1 FROM users WHERE id = 7 UNION SELECT 1 FROM users",
            "users",
        ),
        (
            "SELECT * FROM users WHERE id = 7 AND a > (SELECT max(a) FROM users)",
            "users",
        ),
        (
            "SELECT u.id FROM users u, active_users WHERE u.id = 7",
            "users",
        ),
        // The inner table hides the outer one.
        (
            "SELECT 1 FROM users WHERE EXISTS (SELECT FROM orders users WHERE users.id = 7)",
            "orders[7] users",
        ),
        (
            "WITH users AS (SELECT 1 AS id) SELECT * FROM users WHERE id = 7",
            "",
        ),
        (
            "WITH u AS (SELECT * FROM users WHERE id = 7) SELECT * FROM u",
            "users[7]",
        ),
    ]);
}

#[test]
fn only_an_answer_of_rows_as_they_are_shows_that_a_row_was_found() {
    for sql in [
        "SELECT count(*) FROM users WHERE id = 7",
        "SELECT lower(name) FROM users WHERE id = 7",
        "SELECT users.count FROM users WHERE id = 7",
        "SELECT 1 FROM users WHERE id = 7 GROUP BY a",
        "SELECT 1 FROM users WHERE id = 7 HAVING true",
        "SELECT 1 FROM users WHERE id = 7 AND EXISTS (SELECT 1)",
        "SELECT 1 FROM users WHERE id = 7 UNION ALL SELECT 2",
        "SELECT 1 UNION ALL SELECT 2 FROM users WHERE id = 7",
        "SELECT (SELECT 1 FROM users WHERE id = 7)",
        "WITH x AS (SELECT 1) SELECT 1 FROM users WHERE id = 7",
        "SELECT 1 FROM users, (VALUES (1)) v WHERE id = 7",
        "SELECT 1 FROM (VALUES (1)) v LEFT JOIN users ON true WHERE id = 7",
    ] {
        assert_eq!(reads(sql), "users[7]", "{sql}");
    }
}

#[test]
fn a_name_with_several_meanings_is_no_row() {
    let class = classify(
        "SELECT * FROM users WHERE id = 7",
        &catalog(),
        &scope(&["app", "public"]),
    );
    let Read::Cacheable(relations) = &class.statements[0].read else {
        panic!("refused")
    };
    assert!(relations.iter().all(|relation| relation.rows == Rows::All));
}

#[test]
fn texts_are_compared_where_the_client_speaks_utf8() {
    let sql = "SELECT * FROM events WHERE id = 'a'";
    let latin = NameScope {
        client_encoding_utf8: false,
        ..scope(&["public"])
    };
    let rows =
        |sql: &str, scope: &NameScope| match &classify(sql, &catalog(), scope).statements[0].read {
            Read::Cacheable(on) => rows_of(on, sql).join(" "),
            Read::Refused(why) => panic!("{why}"),
        };
    assert_eq!(rows(sql, &scope(&["public"])), "events=a");
    assert_eq!(rows(sql, &latin), "events");
    assert_eq!(rows("SELECT * FROM users WHERE id = 7", &latin), "users=7");
}

#[test]
fn an_equality_of_the_users_tells_no_rows() {
    let mut results = results();
    results[0][0][2] = Some("t".to_owned());
    let catalog = Catalog::from_results(1, results).expect("well-formed");
    for sql in [
        "SELECT * FROM users WHERE id = 7",
        "DELETE FROM users WHERE id = 7",
    ] {
        let class = classify(sql, &catalog, &scope(&["public"]));
        let statement = &class.statements[0];
        if let Read::Cacheable(on) = &statement.read {
            assert_eq!(rows_of(on, sql), ["users"]);
        }
        if let Write::Relations(to) = &statement.write {
            assert!(rows_of(to, sql).contains(&"users".to_owned()));
        }
    }
}

#[test]
fn a_parameter_that_occurs_twice_may_get_its_type_elsewhere() {
    // As numeric, say.
    assert_eq!(
        reads("SELECT * FROM users WHERE amount = $1 AND id = $1"),
        "users=?"
    );
    assert_eq!(
        reads("SELECT $1, a FROM users WHERE id = $1::int"),
        "users=?"
    );
    assert_eq!(writes("UPDATE users SET a = $1 WHERE id = $1"), "users[?]");
    assert_eq!(
        writes("INSERT INTO users (a, id) VALUES ($1, $1)"),
        "users[?]"
    );
}

#[test]
fn one_class_serves_the_literals_of_all_texts_of_its_shape() {
    let one = class_of("UPDATE users SET a = 'x' WHERE b = 1.5 AND id = -7");
    let other = class_of("UPDATE users SET a = 'it''s' WHERE b = 2.25 AND id = -123");
    assert_eq!(one, other);
    let (Write::Relations(to), sql) = (
        &one.write,
        "UPDATE users SET a = '(7' WHERE b = .5 AND id = -42",
    ) else {
        panic!("bounded")
    };
    assert_eq!(rows_of(to, sql), ["users[-42]"]);
}

#[test]
fn updates_and_deletes_by_the_whole_key_write_that_row() {
    all_write(&[
        ("UPDATE logged SET a = 1 WHERE id = 7", "*trigger"),
        ("UPDATE events SET a = 1 WHERE id = 'x'", "events[x]"),
        ("UPDATE users SET a = a + 1 WHERE id = 7 AND b", "users[7]"),
        ("UPDATE users SET a = $1 WHERE id = $2", "users[102]"),
        (
            "UPDATE users u SET a = 1 WHERE u.id = 7 RETURNING *",
            "users[7]",
        ),
        (
            "UPDATE users SET a = o.a FROM orders o WHERE users.id = 7",
            "users[7]",
        ),
        (
            "UPDATE users SET a = v.a FROM users v WHERE v.id = 7",
            "users",
        ),
        (
            "UPDATE users SET (a, b) = (SELECT 1, 2) WHERE id = 7",
            "users[7]",
        ),
        ("UPDATE users SET a = 1", "users"),
        ("UPDATE users SET a = 1 WHERE id > 7", "users"),
        ("UPDATE users SET a = 1 WHERE CURRENT OF c", "users"),
        // To change a key is to take a row away and to bring another.
        ("UPDATE users SET id = 8 WHERE id = 7", "users"),
        ("UPDATE users SET (a, id) = (1, 8) WHERE id = 7", "users"),
        (
            "UPDATE items SET line = 3 WHERE order_id = 1 AND line = 2",
            "items",
        ),
        ("UPDATE parent SET a = 1 WHERE id = 7", "parent"),
        ("DELETE FROM events WHERE id = 'x'", "events[x]"),
        (
            "DELETE FROM items WHERE order_id = 1 AND line = 2",
            "items[1,2]",
        ),
        ("DELETE FROM items WHERE order_id = 1", "items"),
        // Rows of other tables that go with it are not told.
        (
            "DELETE FROM users WHERE id = 7",
            "app.notes items orders users[7]",
        ),
        (
            "DELETE FROM orders USING users WHERE orders.id = 7",
            "app.notes items orders[7]",
        ),
        (
            "WITH d AS (DELETE FROM events WHERE id = 'x') DELETE FROM events WHERE id = 'y'",
            "events[y x]",
        ),
        (
            "WITH d AS (DELETE FROM events WHERE id = 'x') DELETE FROM events",
            "events",
        ),
        (
            "MERGE INTO events USING orders o ON true WHEN MATCHED THEN DELETE",
            "events",
        ),
        ("TRUNCATE events", "events"),
        ("UPDATE editable SET at = NULL", "*trigger"),
    ]);
}

#[test]
fn a_foreign_key_passes_on_the_columns_that_it_references() {
    all_write(&[
        (
            "UPDATE items SET a = 1 WHERE order_id = 1 AND line = 2",
            "items[1,2]",
        ),
        (
            "UPDATE items SET sku = 1 WHERE order_id = 1 AND line = 2",
            "app.notes items[1,2]",
        ),
        ("UPDATE items SET a = 1", "items"),
        (
            "INSERT INTO items (order_id, line) VALUES (1, 2) \
             ON CONFLICT (line, order_id) DO UPDATE SET a = 1",
            "items[1,2]",
        ),
        (
            "INSERT INTO items (order_id, line) VALUES (1, 2) \
             ON CONFLICT (line, order_id) DO UPDATE SET sku = 1",
            "app.notes items[1,2]",
        ),
    ]);
    let mut results = results();
    results[14][0][2] = Some("t".to_owned());
    let catalog = Catalog::from_results(1, results).expect("well-formed");
    let sql = "UPDATE items SET a = 1 WHERE order_id = 1 AND line = 2";
    let class = classify(sql, &catalog, &scope(&["public"]));
    let Write::Relations(to) = &class.statements[0].write else {
        panic!("bounded")
    };
    assert_eq!(
        rows_of(to, sql),
        ["app.notes", "items[1,2]"],
        "a generated column"
    );
}

#[test]
fn an_insert_writes_the_rows_that_it_names_or_new_ones() {
    all_write(&[
        ("INSERT INTO users VALUES (7, 'x')", "users[7]"),
        (
            "INSERT INTO users (name, id) VALUES ('x', $1), ('y', 8)",
            "users[101 8]",
        ),
        ("INSERT INTO orders VALUES (1, 7)", "orders[7]"),
        ("INSERT INTO items VALUES (2, 'x', 1)", "items[1,2]"),
        (
            "INSERT INTO app.notes (id) VALUES ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11')",
            "app.notes[a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11]",
        ),
        (
            "INSERT INTO \"Orders\" (code) VALUES ('abc')",
            "Orders[abc]",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT DO NOTHING",
            "users[7]",
        ),
        (
            "INSERT INTO users (id) OVERRIDING SYSTEM VALUE VALUES (7)",
            "users[7]",
        ),
        // Cut to the column's length, it may be another value.
        ("INSERT INTO \"Orders\" (code) VALUES ('abc ')", "Orders[?]"),
        ("INSERT INTO users DEFAULT VALUES", "users+[]"),
        ("INSERT INTO users (name) VALUES ('x')", "users+[]"),
        ("INSERT INTO users VALUES (DEFAULT, 'x')", "users+[]"),
        (
            "INSERT INTO users VALUES (7), (DEFAULT), (1 + 1)",
            "users+[7]",
        ),
        ("INSERT INTO orders VALUES (1)", "orders+[]"),
        (
            "INSERT INTO users (id) OVERRIDING USER VALUE VALUES (7)",
            "users+[]",
        ),
        ("INSERT INTO users SELECT 7", "users+[]"),
        ("INSERT INTO users VALUES (7), (8) ORDER BY 1", "users+[]"),
        ("INSERT INTO users VALUES (7) UNION VALUES (8)", "users+[]"),
        ("INSERT INTO scratch VALUES (7)", "scratch+[]"),
        ("COPY users FROM STDIN", "users+[]"),
        ("COPY users (id) FROM STDIN WHERE id = 7", "users+[]"),
    ]);
}

#[test]
fn on_conflict_writes_the_inserted_row_or_any() {
    all_write(&[
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (id) DO UPDATE SET a = 1",
            "users[7]",
        ),
        (
            "INSERT INTO users VALUES ($1), (8) ON CONFLICT (id) DO UPDATE SET a = 1 WHERE users.b",
            "users[101 8]",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (id) DO UPDATE SET id = 8",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (name) DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (id, name) DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (id) WHERE a DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT ((id + 0)) DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT (id COLLATE \"C\") DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (7) ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users VALUES (DEFAULT) ON CONFLICT (id) DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO users SELECT 7 ON CONFLICT (id) DO UPDATE SET a = 1",
            "users",
        ),
        (
            "INSERT INTO items VALUES (2, 'x', 1) ON CONFLICT (order_id) DO UPDATE SET a = 1",
            "items",
        ),
    ]);
}

#[test]
fn many_rows_are_new_rows_or_any() {
    let rows = |n: usize| -> String {
        let rows: Vec<String> = (0..n).map(|n| format!("({n})")).collect();
        rows.join(", ")
    };
    let count = |sql: &str| match class_of(sql).write {
        Write::Relations(to) => match &to[0].rows {
            Rows::Keys(keys) => keys.len(),
            Rows::New(keys) => 1000 + keys.len(),
            Rows::All => 0,
            Rows::Found(_) => panic!("a write"),
        },
        _ => panic!("unbounded"),
    };
    let upsert = "ON CONFLICT (id) DO UPDATE SET a = 1";
    assert_eq!(count(&format!("INSERT INTO users VALUES {}", rows(64))), 64);
    assert_eq!(
        count(&format!("INSERT INTO users VALUES {}", rows(65))),
        1000
    );
    assert_eq!(
        count(&format!("INSERT INTO users VALUES {} {upsert}", rows(64))),
        64
    );
    assert_eq!(
        count(&format!("INSERT INTO users VALUES {} {upsert}", rows(65))),
        0
    );
    let (a, b) = (rows(40), rows(40));
    let two = format!("WITH i AS (INSERT INTO users VALUES {a}) INSERT INTO users VALUES {b}");
    assert_eq!(count(&two), 1000, "together they are too many");
}

#[test]
fn a_row_that_refers_to_its_own_table_takes_others_with_it() {
    let mut results = results();
    let events = super::fixture::oid_of("events").to_string();
    let own: Vec<_> = [&*events, &*events, "c", "a"]
        .map(|cell| Some(cell.to_owned()))
        .into();
    results[3].push(own);
    let catalog = Catalog::from_results(1, results).expect("well-formed");
    let sql = "DELETE FROM events WHERE id = 'x'";
    let class = classify(sql, &catalog, &scope(&["public"]));
    let Write::Relations(to) = &class.statements[0].write else {
        panic!("bounded")
    };
    assert_eq!(rows_of(to, sql), ["events"]);
}

#[test]
fn the_columns_of_a_key_are_told_in_its_order() {
    let catalog = catalog();
    let columns =
        |table| -> Vec<&str> { catalog.key_columns(super::fixture::oid_of(table)).collect() };
    assert_eq!(columns("items"), ["order_id", "line"]);
    for table in ["parent", "parts", "scratch", "shifts", "remote"] {
        assert!(columns(table).is_empty(), "{table}");
    }
    // As who reads the log makes keys.
    let mut key = EncodedKey::default();
    ["1", "2"].iter().for_each(|value| key.push(value));
    let sql = "DELETE FROM items WHERE order_id = 01 AND line = '2'";
    let Write::Relations(to) = class_of(sql).write else {
        panic!("bounded")
    };
    let Rows::Keys(keys) = &to[0].rows else {
        panic!("by key")
    };
    assert_eq!(keys[0].encode(&values(sql)), Some(key));
}
