//! `SHOW ADVICE`: how large a pool should be, worked out from what it does; and followed where that is wished.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;

use crate::support::Stack;

/// The pools' rows, by column, that have advice.
async fn advice(stack: &Stack) -> Vec<BTreeMap<String, String>> {
    let console = stack.helios.client("postgres", "helios").await;
    let messages = console.simple_query("SHOW ADVICE").await.expect("answered");
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            row.columns()
                .iter()
                .enumerate()
                .map(|(at, column)| {
                    let value = row.get(at).unwrap_or_default().to_owned();
                    (column.name().to_owned(), value)
                })
                .collect::<BTreeMap<_, _>>(),
        ),
        _ => None,
    });
    rows.filter(|row| !row["advised"].is_empty()).collect()
}

/// The load of one client needs few connections: the pool gets smaller, a tenth at a time, and goes on serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_too_large_shrinks_where_advice_is_followed() {
    let cluster = heliosdb_testkit::PostgresCluster::builder();
    let stack = Stack::start_with(cluster, "[pool]\nadvice = \"auto\"\nsize = 20\n");
    let client = stack.client().await;
    let began = Instant::now();
    let mut served = 0_u32;
    let last = loop {
        client
            .simple_query("SELECT pg_sleep(0.002)")
            .await
            .expect("served, whatever the size");
        served += 1;
        if served.is_multiple_of(50) {
            let rows = advice(&stack).await;
            if let Some(row) = rows.first()
                && row["size"] != "20"
            {
                break row.clone();
            }
        }
        assert!(
            began.elapsed() < Duration::from_secs(90),
            "{:?}",
            advice(&stack).await
        );
    };
    assert_eq!(last["size"], "18", "{last:?}");
    assert_eq!(last["advised"], "18", "{last:?}");
    assert_eq!(last["reason"], "what the load needs");
    let number = |column: &str| -> f64 { last[column].parse().expect("a number") };
    assert!(number("target") <= 4.0, "{last:?}");
    assert!((2.0..20.0).contains(&number("hold_mean_ms")), "{last:?}");
    assert!(
        number("in_use_max") >= 1.0 && number("acquires_per_s") > 10.0,
        "{last:?}"
    );
    client.simple_query("SELECT 1").await.expect("served");
}
