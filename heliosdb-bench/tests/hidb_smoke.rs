//! The bench of HIDB runs, measures all ways to ask, and finds the near cache to be nearer than the gateway.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{figure, rows};

/// The helios that was built with the workspace's tests. Where only this package's are run, there may be none: then it is
/// built here, in the same profile.
fn helios() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_heliosdb-bench")).with_file_name("helios");
    if !beside.exists() {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "-p", "heliosdb-gateway", "--bin", "helios"])
            .arg("--no-default-features")
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success());
    }
    beside
}

#[test]
fn every_way_to_ask_is_measured_with_one_and_many_requests_in_flight() {
    let helios = helios();
    let args = [
        ["hidb", "--helios"],
        [helios.to_str().expect("UTF-8"), "--rounds"],
        ["1", "--time"],
        ["200ms", "--in-flight"],
        ["1,4", "--tasks"],
    ];
    let rows = rows(&[&args.concat()[..], &["1"]].concat());
    for way in [
        "HIDB, HidbClient",
        "HIDB, bytes",
        "PostgreSQL, tokio-postgres, prepared",
        "PostgreSQL, bytes, prepared",
        "PostgreSQL, bytes, unprepared",
        "PostgreSQL, bytes, simple",
    ] {
        let own = rows.iter().filter(|row| row[2] == way);
        let own: Vec<_> = own
            .inspect(|row| assert!(figure(&row[3]) > 0.0, "{row:?}"))
            .collect();
        // One row and a hundred, each with one request in flight and with four.
        assert_eq!(own.len(), 4, "{way}: {rows:?}");
    }
    let rate = |answered_from: &str, shape: &str| {
        let found = rows
            .iter()
            .find(|row| row[0] == shape && row[2] == answered_from);
        figure(&found.unwrap_or_else(|| panic!("{rows:?}"))[3])
    };
    for shape in ["1", "100"] {
        let (near, far) = (rate("near cache", shape), rate("gateway's cache", shape));
        assert!(near > far, "{shape} rows: {near}/s near, {far}/s far");
    }
}
