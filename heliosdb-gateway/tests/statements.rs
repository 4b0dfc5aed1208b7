//! `SHOW STATEMENTS`: what ran, how often, for how long, and why it was not answered from memory.

use std::collections::BTreeMap;

use tokio_postgres::SimpleQueryMessage;

use crate::support::Stack;
use crate::support::raw::{step, sync};

type Row = BTreeMap<String, String>;

async fn statements(stack: &Stack) -> BTreeMap<String, Row> {
    let console = stack.helios.client("postgres", "helios").await;
    let messages = console
        .simple_query("SHOW STATEMENTS")
        .await
        .expect("answered");
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let cells = row.columns().iter().enumerate();
            let cell = |(at, column): (usize, &tokio_postgres::SimpleColumn)| {
                let value = row.get(at).unwrap_or_default().to_owned();
                (column.name().to_owned(), value)
            };
            Some(cells.map(cell).collect::<Row>())
        }
        _ => None,
    });
    rows.map(|row| (row["statement"].clone(), row)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_counted_without_their_values() {
    let stack = Stack::start();
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE shelf (id int PRIMARY KEY, title text)")
        .await
        .expect("made");
    for id in 1..=3 {
        let insert = format!("INSERT INTO shelf VALUES ({id}, 'secret {id}')");
        client.simple_query(&insert).await.expect("written");
    }
    // The same statement with two values, three times each: by text, and prepared.
    for _ in 0..3 {
        for id in 1..=2 {
            let select = format!("SELECT title FROM shelf WHERE id = {id}");
            client.simple_query(&select).await.expect("a row");
            client
                .query("SELECT id FROM shelf WHERE id = $1", &[&id])
                .await
                .expect("a row");
        }
    }
    // Three in one go: the time of each is not known, but each is a call.
    let mut wire = stack.wire();
    for _ in 0..3 {
        let steps = [1, 2, 3].map(|id| step(&format!("SELECT id + 1 FROM shelf WHERE id < {id}")));
        wire.ask(&[steps.concat(), sync()]);
    }
    for _ in 0..2 {
        let volatile = "SELECT title, random() FROM shelf";
        client.simple_query(volatile).await.expect("rows");
    }
    client
        .batch_execute("BEGIN; SELECT count(*) FROM shelf; COMMIT")
        .await
        .expect("counted");
    client.simple_query("BEGIN").await.expect("begun");
    let slow = "SELECT pg_sleep(0.2)";
    client.simple_query(slow).await.expect("slept");
    let in_block = "SELECT max(id) FROM shelf";
    client.simple_query(in_block).await.expect("a row");
    client.simple_query("COMMIT").await.expect("ended");

    let known = statements(&stack).await;
    let count = |statement: &str, column: &str| -> f64 {
        let row = known
            .get(statement)
            .unwrap_or_else(|| panic!("{statement} is not in {known:#?}"));
        row[column].parse().expect("a number")
    };
    for statement in [
        "select title from shelf where id = ?",
        "select id from shelf where id = $1",
    ] {
        assert_eq!(count(statement, "calls"), 6.0, "{known:#?}");
        assert_eq!(count(statement, "misses"), 2.0, "{known:#?}");
        assert_eq!(count(statement, "hits"), 4.0, "{known:#?}");
        assert!(count(statement, "mean_ms") > 0.0);
    }
    assert_eq!(count("select id + ? from shelf where id < ?", "calls"), 9.0);
    assert_eq!(count("insert into shelf values (?, ?)", "calls"), 3.0);
    let random = "select title, random() from shelf";
    assert_eq!(count(random, "hits"), 0.0);
    assert_eq!(count(random, "not_cached"), 2.0);
    assert_eq!(known[random]["why_not"], "function");
    assert_eq!(known["select max(id) from shelf"]["why_not"], "transaction");
    assert!((200.0..2000.0).contains(
        &count("select pg_sleep(?)", "p50_ms").max(count("select pg_sleep(?)", "mean_ms"))
    ));
    assert!(!format!("{known:?}").contains("secret"), "{known:#?}");
}
