//! The bench as its users see it.

use std::process::Command;

/// The rows of the tables that `cargo xtask bench` prints, by their cells.
pub(crate) fn rows(args: &[&str]) -> Vec<Vec<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_heliosdb-bench"))
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

/// The figure that a cell begins with.
pub(crate) fn figure(cell: &str) -> f64 {
    let number = cell.split(' ').next().unwrap_or_default();
    number
        .parse()
        .unwrap_or_else(|_| panic!("no figure: {cell:?}"))
}
