//! The pool's benches run, and find what they are there to find.

mod support;

use support::{figure, rows};

const POOLS: [&str; 6] = [
    "semaphore and list",
    "heliosdb-network",
    "deadpool",
    "bb8",
    "mobc",
    "sqlx",
];

#[test]
fn acquire_and_release_are_measured_beside_the_peers() {
    let rows = rows(&[
        "pool",
        "throughput",
        "--rounds",
        "1",
        "--time",
        "20ms",
        "--tasks",
        "1,12",
    ]);
    for pool in POOLS {
        let own = rows.iter().filter(|row| row[2] == pool);
        // Alone with and without a pause, and many with one.
        assert_eq!(own.count(), 3, "{pool}: {rows:?}");
    }
}

#[test]
fn the_storm_empties_the_control_and_not_this_pool() {
    let rows = rows(&["pool", "storm", "--abandoned", "20000"]);
    let obtainable = |pool: &str| {
        let row = rows.iter().find(|row| row[0] == pool);
        row.unwrap_or_else(|| panic!("{rows:?}"))[3].clone()
    };
    assert_eq!(obtainable("control"), "0 of 10");
    assert_eq!(obtainable("heliosdb-network"), "10 of 10");
}

#[test]
fn everybody_is_served_as_often() {
    let rows = rows(&["pool", "fairness", "--time", "300ms"]);
    let own = rows.iter().filter(|row| row[0] == "heliosdb-network");
    let jain: Vec<f64> = own.map(|row| row[5].parse().expect("a number")).collect();
    assert!(
        jain.len() == 2 && jain.iter().all(|jain| *jain > 0.95),
        "{rows:?}"
    );
}

#[test]
fn an_outage_is_told_at_once_and_its_end_is_noticed() {
    let args = [
        ["pool", "outage"],
        ["--rounds", "1"],
        ["--time", "50ms"],
        ["--patience", "300ms"],
        ["--tasks", "1,4"],
        ["--outages", "100ms"],
    ];
    let rows = rows(&args.concat());
    // The floor connects to nothing.
    for pool in &POOLS[1..] {
        let down = rows.iter().filter(|row| row.len() == 8 && row[1] == *pool);
        assert_eq!(down.count(), 2, "{pool}: {rows:?}");
        let back = rows.iter().find(|row| row.len() == 3 && row[1] == *pool);
        let back = back.unwrap_or_else(|| panic!("{pool}: {rows:?}"));
        assert!(figure(&back[2]) < 10_000.0, "{back:?}");
    }
    for row in rows
        .iter()
        .filter(|row| row.len() == 8 && row[1] == POOLS[1])
    {
        assert!(figure(&row[3]) < 5.0, "half of them failed later: {row:?}");
        assert_eq!(row[7], "yes", "{row:?}");
    }
}
