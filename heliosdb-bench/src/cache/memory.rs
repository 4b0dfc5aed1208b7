//! What an entry takes beside its key and its value.

use std::io::Write;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::contestants;

const ENTRIES: u64 = 500_000;
const VALUE: [u8; 64] = [7; 64];

#[derive(Debug, clap::Args)]
pub(crate) struct ResidentArgs {
    name: String,
}

/// In a process of its own: fills a cache, and prints by how much the process grew, in bytes.
pub(crate) fn resident(args: &ResidentArgs) -> anyhow::Result<()> {
    // Large enough that nothing is evicted.
    let cache = contestants::build(&args.name, 1 << 30, 500_000).context("no such cache")?;
    let before = resident_bytes()?;
    for key in 0..ENTRIES {
        cache.put(key, &VALUE);
    }
    let held = (0..ENTRIES).filter(|key| cache.get(*key)).count() as u64;
    ensure!(
        held > ENTRIES * 9 / 10,
        "{held} of {ENTRIES} entries are there"
    );
    let line = format!("{} {held}\n", resident_bytes()? - before);
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

pub(crate) fn run(out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "## Memory of an entry\n\n{ENTRIES} entries of {} bytes under keys of 8 bytes, each cache in a process of its own. Growth \
         of resident memory for an entry, and what of it is neither key nor value. Query keys are those with {} bytes of \
         statement, which all keys of quick_cache and heliosdb-cache share.\n",
        VALUE.len(),
        contestants::QUERY.len(),
    )?;
    writeln!(out, "| cache | bytes an entry | beside key and value |")?;
    writeln!(out, "| --- | --: | --: |")?;
    for name in contestants::NAMES {
        let program = std::env::current_exe()?;
        let output = Command::new(program)
            .args(["cache", "resident", name])
            .output()?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout)?;
        let (grown, held) = text.trim().split_once(' ').context("two numbers")?;
        let bytes = grown.parse::<f64>()? / held.parse::<f64>()?;
        let known = VALUE.len() + size_of::<u64>();
        writeln!(out, "| {name} | {bytes:.0} | {:.0} |", bytes - known as f64)?;
    }
    writeln!(
        out,
        "\nheliosdb-cache charges an entry {} bytes beside statement, parameters and value.",
        heliosdb_cache::ENTRY_OVERHEAD
    )?;
    Ok(())
}

fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? * 1024)
}
