//! The pool's benches run, and find what they are there to find.

use std::process::Command;

/// The rows of the tables that `cargo xtask bench pool` prints, by their cells.
fn rows(args: &[&str]) -> Vec<Vec<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_heliosdb-bench"))
        .arg("pool")
        .args(args)
        .output()
        .expect("starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {err}");
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(cells)
        .collect()
}

const POOLS: [&str; 5] = [
    "semaphore and list",
    "heliosdb-network",
    "deadpool",
    "bb8",
    "mobc",
];

#[test]
fn acquire_and_release_are_measured_beside_the_peers() {
    let rows = rows(&[
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
    let rows = rows(&["storm", "--abandoned", "20000"]);
    let obtainable = |pool: &str| {
        let row = rows.iter().find(|row| row[0] == pool);
        row.unwrap_or_else(|| panic!("{rows:?}"))[3].clone()
    };
    assert_eq!(obtainable("control"), "0 of 10");
    assert_eq!(obtainable("heliosdb-network"), "10 of 10");
}

#[test]
fn everybody_is_served_as_often() {
    let rows = rows(&["fairness", "--time", "300ms"]);
    let own = rows.iter().filter(|row| row[0] == "heliosdb-network");
    let jain: Vec<f64> = own.map(|row| row[5].parse().expect("a number")).collect();
    assert!(
        jain.len() == 2 && jain.iter().all(|jain| *jain > 0.95),
        "{rows:?}"
    );
}
