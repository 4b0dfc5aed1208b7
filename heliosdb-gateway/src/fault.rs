//! The protections that a test may take away: see `heliosdb_cache::fault`. The history checker goes through them.

pub(crate) use heliosdb_cache::fault::is_removed;

/// Their names. Each is asked for in one place.
#[cfg(feature = "fault-switches")]
const PROTECTIONS: &[&str] = &[
    // A follower takes an answer only from a flight that began under versions which stand when it arrives.
    "arrival-rule",
    // The marks of a transaction stay until all its versions are up.
    "atomic-bump",
    // The versions go up before the writer hears of it.
    "bump-before-ack",
    // The marks of a write in doubt stay until the server no longer shows its process.
    "doubt",
    // What can't be bounded counts as a write to everything.
    "everything",
    // At level strict, what is served from memory waits for the log to come to where the server is.
    "fence",
    // What was cached before the log was lost is not served after it.
    "flush-on-reconnect",
    // Without a proof that nothing is missing, nothing is served from memory.
    "gate",
    // An answer of a bounded age is not served beyond it.
    "max-age",
    // A write is marked before it is sent.
    "pending-marks",
    // Blocks at REPEATABLE READ get nothing from memory.
    "repeatable-read",
    // A write that does not name the whole key changes all rows.
    "row-any",
    // A row whose key the server makes may be one that was not found.
    "row-new",
    // Behind its first write a transaction gets nothing from memory.
    "tx-write-bypass",
    // A fill goes by the versions from before its query was sent.
    "versions-before-send",
];

/// That the protection to be taken away is one that there is.
#[cfg(feature = "fault-switches")]
pub(crate) fn check() -> anyhow::Result<()> {
    let Some(removed) = heliosdb_cache::fault::removed() else {
        return Ok(());
    };
    anyhow::ensure!(
        PROTECTIONS.contains(&removed),
        "HELIOS_REMOVE_PROTECTION: there is no protection {removed:?}"
    );
    tracing::warn!("running without the protection {removed}: answers may be wrong");
    Ok(())
}

#[cfg(not(feature = "fault-switches"))]
#[expect(clippy::unnecessary_wraps, reason = "as with the feature")]
pub(crate) const fn check() -> anyhow::Result<()> {
    Ok(())
}
