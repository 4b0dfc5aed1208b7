//! The cache's benches run, and say what they are there to say.

use std::io::Write as _;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

/// What `cargo xtask bench cache` prints.
fn bench(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_heliosdb-bench"))
        .arg("cache")
        .args(args)
        .output()
        .expect("starts");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out.into_owned()
}

/// The cells of the tables' rows whose first or second cell is `name`.
fn rows<'a>(text: &'a str, name: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| line.split('|').map(str::trim).collect::<Vec<_>>();
    text.lines()
        .map(cells)
        .filter(|cells| cells.iter().skip(1).take(2).any(|cell| *cell == name))
        .collect()
}

#[test]
fn throughput_is_measured_beside_the_peers() {
    let small = [
        "throughput",
        "--rounds",
        "1",
        "--operations",
        "3000",
        "--keys",
        "1000",
        "--capacity",
        "1",
        "--threads",
        "1,2",
    ];
    let out = bench(&small);
    for name in ["quick_cache", "heliosdb-cache", "moka", "foyer, s3fifo"] {
        assert_eq!(rows(&out, name).len(), 2, "{name}: {out}");
    }
    assert!(rows(&out, "quick_cache")[0][4].starts_with("1.00"), "{out}");
}

#[test]
fn invalidation_is_measured_with_few_and_many_entries() {
    let out = bench(&["invalidation"]);
    for entries in ["1000", "1000000"] {
        let row = rows(&out, entries).remove(0);
        for cell in &row[2..4] {
            let (median, _) = cell.split_once(' ').expect("a range");
            assert!(median.parse::<f64>().expect("a number") > 0.0, "{out}");
        }
    }
}

#[test]
fn a_stampede_computes_once() {
    let out = bench(&["stampede"]);
    assert_eq!(rows(&out, "heliosdb-cache")[0][2], "1", "{out}");
}

#[test]
fn hit_ratios_of_a_recorded_loop_are_those_that_are_possible() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = std::fs::File::create(folder.path().join("lirs_loop.gz")).expect("a file");
    let mut file = GzEncoder::new(file, Compression::fast());
    for n in 0..20_000 {
        writeln!(file, "{}", n % 100).expect("written");
    }
    file.finish().expect("written");
    let traces = folder.path().to_str().expect("UTF-8");
    let out = bench(&[
        "hit-ratio",
        "--traces",
        traces,
        "--capacities",
        "50",
        "--json",
    ]);
    let ratio = |cache: &str| -> f64 {
        let of_cache = |line: &&str| line.contains(&format!("\"cache\":\"{cache}\""));
        let line = out.lines().find(of_cache).expect("a line");
        let cell: serde_json::Value = serde_json::from_str(line).expect("JSON");
        cell["hits"].as_f64().expect("a number")
    };
    // A loop of twice what fits: LRU has always just dropped what comes next, and no order keeps more than half.
    assert_eq!(ratio("lru"), 0.0, "{out}");
    let ours = ratio("adaptive");
    assert!(0.4 < ours && ours <= 0.5, "{out}");
}
