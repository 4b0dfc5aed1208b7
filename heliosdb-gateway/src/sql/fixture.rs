//! A small catalog for unit tests, written as the server would send it.

use super::{Catalog, Class, Effect, NameScope, Read, Statement, Write, classify};

/// Schema, name, kind, persistence, row security, trigger, rule, unstable column, trigger with DDL,
/// column of type time.
/// The n-th relation has the identifier 1001 + n.
const RELATIONS: &str = "
public users r p f f f f f f
public orders r p f f f f f f
public items r p f f f f f f
public logged r p f t f f f f
public ruled r p f f t f f f
public coded r p f f f f f f
public secret r p t f f f f f
public parts p p f f f f f f
public parts_1 r p f f f f f f
public parts_2 r p f f f f f f
public parent r p f f f f f f
public child r p f f f f f f
public remote f p f f f f f f
public remote_parts p p f f f f f f
public remote_part f p f f f f f f
public totals m p f f f f f f
public ids S p f f f f f f
public scratch r u f f f f f f
public registry r p f f f t f f
public events r p f f f f f f
public shifts r p f f f f f t
public active_users v p f f f f f f
public order_summary v p f f f f f f
public todays_events v p f f f f f f
public calls_writer v p f f f f f f
public ping v p f f f f f f
public pong v p f f f f f f
public editable v p f t f f f f
public partition_maker r p f t f f t f
public tree_a r p f f f f f f
public tree_b r p f f f f f f
public tree_c r p f f f f f f
public Orders r p f f f f f f
public all_secret v p f f f f f f
public ruled_view v p f f t f f f
app users r p f f f f f f
app notes r p f f f f f f
alice users r p f f f f f f
pg_catalog pg_class r p f f f f f f
information_schema tables v p f f f f f f
";

const INHERITS: &str = "
parts_1 parts
parts_2 parts
child parent
remote_part remote_parts
tree_c tree_a
tree_c tree_b
";

/// Referenced, referencing, ON DELETE, ON UPDATE.
const FOREIGN_KEYS: &str = "
public.users orders c a
public.orders items n a
public.items notes a c
";

/// Columns of primary keys, in their order: relation, column, type, modifier, place in the table, comparable.
const KEYS: &str = "
users id 23 -1 0 t
orders id 20 -1 1 t
items order_id 23 -1 2 t
items line 21 -1 0 t
parts id 23 -1 0 t
parent id 23 -1 0 t
child id 23 -1 0 t
logged id 23 -1 0 t
events id 25 -1 0 t
app.notes id 2950 -1 0 t
app.users id 23 -1 0 t
Orders code 1043 7 1 t
scratch id 1700 -1 0 t
shifts id 25 -1 0 f
coded id 23 -1 0 t
secret id 23 -1 0 t
";

/// Column whose change a foreign key passes on, and whether it changes unnamed.
const PASSED_ON: &str = "
items sku f
";

const IMMUTABLE: &str = "abs avg btrim count generate_subscripts greatest jsonb_array_elements_text
jsonb_each_text lag like_escape lower max md5 min now_like pg_partition_root rank round row_number
string_agg sum unnest upper to_tsvector";

const STABLE: &str =
    "age concat current_setting date date_trunc enum_range extract generate_series make_time
json_populate_record now pg_backend_pid row_to_json timestamptz to_char to_tsvector table_to_xml
to_regclass txid_current version timezone";

const VOLATILE: &str = "clock_timestamp currval lo_unlink nextval pg_advisory_lock
pg_advisory_unlock_all pg_advisory_xact_lock pg_notify pg_reload_conf pg_sleep query_to_xml random
set_config setval pg_try_advisory_lock";

/// Built-ins with a result that may be text.
const TEXT_RESULT: &str = "btrim concat current_setting lower max min string_agg to_char upper lag
jsonb_array_elements_text version";

/// Schema, name, volatility, compiled, extension, row argument, text result, sets settings, DDL, a function it calls.
/// The n-th function has the identifier 20001 + n.
const FUNCTIONS: &str = "
public user_immutable i f - f f f f -
public user_stable s f - f f f f -
public user_volatile v f - f f f f -
public user_aggregate i t - f f f f -
public makes_tables v f - f f f t -
public full_name i f - t t f f -
public similarity i t pg_trgm f f f f -
public similarity_sql i f pg_trgm f f f f -
public uuid_generate_v4 v t uuid-ossp f f f f -
public dblink v t dblink f f f f -
app lower v f - f t f f -
public vector_distance i t vector f f f f -
public wraps_writer s f - f f f f user_volatile
public wraps_wrapper i f - f f f f wraps_writer
public sets_quietly s f - f f t f -
";

/// Schema, name, kind, category, extension. The n-th has the identifier 3001 + n, or 30001 + n
/// outside of pg_catalog.
const TYPES: &str = "
pg_catalog int4 b N f
pg_catalog text b S f
pg_catalog varchar b S f
pg_catalog bool b B f
pg_catalog date b D f
pg_catalog time b D f
pg_catalog timestamptz b D f
pg_catalog timestamp b D f
pg_catalog timetz b D f
pg_catalog interval b T f
pg_catalog regclass b N f
pg_catalog daterange r R f
pg_catalog int4range r R f
pg_catalog jsonb b U f
pg_catalog record p P f
public vector b U t
public mood e E f
public email d S f
public users c C f
public upper d S f
public money_bag b U f
pg_catalog int8 b N f
pg_catalog numeric b N f
pg_catalog uuid b U f
";

/// Relation, column, whether it is a date or time there.
const TIME_COLUMNS: &str = "
events at t
events note f
app.notes note t
active_users since t
";

const VIEWS: &[(&str, &str)] = &[
    (
        "active_users",
        " SELECT users.id, users.since FROM public.users WHERE users.active;",
    ),
    (
        "order_summary",
        " SELECT u.id, count(*) AS n FROM (public.active_users u JOIN public.orders o ON ((o.user_id = u.id))) GROUP BY u.id;",
    ),
    (
        "todays_events",
        " SELECT events.at FROM public.events WHERE (events.at > now());",
    ),
    (
        "calls_writer",
        " SELECT public.user_volatile() AS f FROM public.events;",
    ),
    ("ping", " SELECT pong.id FROM public.pong, public.pong p2;"),
    ("pong", " SELECT ping.id FROM public.ping, public.ping p2;"),
    ("editable", " SELECT events.at FROM public.events;"),
    ("ruled_view", " SELECT events.at FROM public.events;"),
    ("all_secret", " SELECT secret.id FROM public.secret;"),
    (
        "totals",
        " SELECT sum(orders.amount) AS sum FROM public.orders;",
    ),
];

type Rows = Vec<Vec<Option<String>>>;

/// What the server sends for this catalog.
pub(super) fn results() -> Vec<Rows> {
    let row = |cells: &[&str]| -> Vec<Option<String>> {
        cells
            .iter()
            .map(|cell| (*cell != "-").then(|| (*cell).to_owned()))
            .collect()
    };
    let oid = |name: &str| oid_of(name).to_string();
    let relations = lines(RELATIONS)
        .map(|cells| {
            let mut with_oid = vec![oid(&format!("{}.{}", cells[0], cells[1]))];
            with_oid.extend(cells.iter().map(|cell| (*cell).to_owned()));
            with_oid.into_iter().map(Some).collect()
        })
        .collect();
    let mut builtins: Rows = Vec::new();
    let mut names: Vec<&str> = [IMMUTABLE, STABLE, VOLATILE]
        .iter()
        .flat_map(|list| list.split_whitespace())
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let listed = |list: &str| {
            if list.split_whitespace().any(|n| n == name) {
                "t"
            } else {
                "f"
            }
        };
        let row_argument = if name == "row_to_json" || name == "count" {
            "t"
        } else {
            "f"
        };
        builtins.push(row(&[
            name,
            listed(IMMUTABLE),
            listed(STABLE),
            listed(VOLATILE),
            row_argument,
            listed(TEXT_RESULT),
        ]));
    }
    let functions = lines(FUNCTIONS)
        .enumerate()
        .map(|(n, cells)| {
            let oid = (20_001 + n).to_string();
            let mut all = vec![oid.as_str()];
            all.extend(cells);
            row(&all)
        })
        .collect();
    let types = lines(TYPES)
        .enumerate()
        .map(|(n, cells)| {
            let oid = if cells[0] == "pg_catalog" {
                3001 + n
            } else {
                30_001 + n
            };
            let oid = oid.to_string();
            let mut all = vec![oid.as_str()];
            all.extend(cells);
            row(&all)
        })
        .collect();
    vec![
        vec![row(&["UTF8", "0", "f"])],
        relations,
        lines(INHERITS)
            .map(|cells| row(&[&oid(cells[0]), &oid(cells[1])]))
            .collect(),
        lines(FOREIGN_KEYS)
            .map(|cells| row(&[&oid(cells[0]), &oid(cells[1]), cells[2], cells[3]]))
            .collect(),
        builtins,
        functions,
        // user_aggregate runs user_volatile.
        vec![row(&["20004", "20003"])],
        // ~~~ is user_immutable, <-> comes with vector, @! is user_volatile.
        vec![
            row(&["~~~", "20001", "f"]),
            row(&["<->", "20012", "f"]),
            row(&["@!", "20003", "f"]),
        ],
        // An explicit cast to jsonb runs user_immutable.
        vec![row(&["3014", "20001", "e"])],
        types,
        // A default of coded calls user_volatile; one of orders calls user_stable.
        vec![
            row(&[&oid("coded"), "20003"]),
            row(&[&oid("orders"), "20002"]),
        ],
        lines(TIME_COLUMNS)
            .map(|cells| row(&[&oid(cells[0]), cells[1], cells[2]]))
            .collect(),
        VIEWS
            .iter()
            .map(|(name, text)| row(&[&oid(name), text]))
            .collect(),
        lines(KEYS)
            .map(|cells| {
                let mut all = cells;
                let oid = oid(all[0]);
                all[0] = &oid;
                row(&all)
            })
            .collect(),
        lines(PASSED_ON)
            .map(|cells| row(&[&oid(cells[0]), cells[1], cells[2]]))
            .collect(),
    ]
}

pub(super) fn catalog() -> Catalog {
    Catalog::from_results(1, results()).expect("the fixture is well-formed")
}

/// Identifier of a relation; of one in `public` if no schema is written.
pub(super) fn oid_of(name: &str) -> u32 {
    let (schema, name) = name.split_once('.').unwrap_or(("", name));
    let at = lines(RELATIONS)
        .position(|cells| (schema.is_empty() || cells[0] == schema) && cells[1] == name)
        .unwrap_or_else(|| panic!("no relation {name}"));
    1001 + u32::try_from(at).expect("few relations")
}

fn lines(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split(' ').collect())
}

pub(super) fn scope(path: &[&str]) -> NameScope {
    NameScope {
        user: "alice".to_owned(),
        search_path: path.iter().map(|&entry| entry.to_owned()).collect(),
        standard_conforming_strings: true,
        client_encoding_utf8: true,
    }
}

pub(super) fn classify_all(sql: &str) -> Class {
    classify(sql, &catalog(), &scope(&["public"]))
}

/// The class of the one statement in `sql`, with `public` as the search path.
pub(super) fn class_of(sql: &str) -> Statement {
    let class = classify_all(sql);
    assert!(class.parsed, "{sql}");
    let [statement] = class.statements.as_slice() else {
        panic!("one statement expected: {sql}");
    };
    statement.clone()
}

/// Names of what a cacheable statement depends on; panics with the reason if it is refused.
#[track_caller]
pub(super) fn reads(sql: &str) -> Vec<String> {
    let statement = class_of(sql);
    match &statement.read {
        Read::Cacheable(relations) => names(relations),
        Read::Refused(why) => panic!("{sql}: {why}"),
    }
}

/// Label of the reason why a statement is not cacheable; panics if it is.
#[track_caller]
pub(super) fn refusal(sql: &str) -> &'static str {
    match class_of(sql).read {
        Read::Refused(why) => {
            assert!(!why.to_string().is_empty());
            why.label()
        }
        Read::Cacheable(on) => panic!("{sql} is cacheable, on {on:?}"),
    }
}

/// Names of what a statement writes; `*label` if it may be anything.
pub(super) fn writes(sql: &str) -> Vec<String> {
    match class_of(sql).write {
        Write::None => Vec::new(),
        Write::Relations(relations) => names(&relations),
        Write::Everything(why) => {
            assert!(!why.to_string().is_empty());
            vec![format!("*{}", why.label())]
        }
    }
}

pub(super) fn effects(sql: &str) -> Vec<Effect> {
    class_of(sql).effects.to_vec()
}

fn names(relations: &[super::Relation]) -> Vec<String> {
    let mut names: Vec<String> = relations
        .iter()
        .map(|relation| {
            assert_eq!(catalog().key_of(relation.key), relation.key, "{relation:?}");
            relation
                .name
                .strip_prefix("public.")
                .unwrap_or(&relation.name)
                .to_owned()
        })
        .collect();
    names.sort_unstable();
    names
}
