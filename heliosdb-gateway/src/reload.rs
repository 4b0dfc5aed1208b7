//! Taking over a changed configuration while the program runs.

use std::sync::Arc;

use anyhow::Context as _;

use crate::access::{Access, Unfit};
use crate::config::Config;
use crate::gateway::Gateway;

/// Reads the configuration again, from where it was read at the start.
///
/// # Errors
/// It can't be read or can't work. The one before stays in force.
pub(crate) fn reload(gateway: &Arc<Gateway>) -> anyhow::Result<()> {
    let reloaded = gateway
        .source
        .get()
        .context("there is nothing to read again")
        .and_then(|source| Ok(source.reload()?))
        .and_then(|config| apply(gateway, &config));
    if let Err(error) = &reloaded {
        tracing::error!("configuration not reloaded, the one before stays in force: {error:#}");
    }
    reloaded
}

/// Takes over those values of `new` that can change while the program runs.
///
/// # Errors
/// A server's URL or a file that is named can't be used. Nothing changes then.
pub(crate) fn apply(gateway: &Arc<Gateway>, new: &Config) -> anyhow::Result<()> {
    apply_as(gateway, new, Unfit::IsRefused).map(|_| ())
}

/// As [`apply`], for a single key that was changed: where files for TLS with clients do not fit together, those before stay in
/// force until they do, and the error is returned. They can be named one after the other only.
///
/// # Errors
/// As [`apply`].
pub(crate) fn apply_one(
    gateway: &Arc<Gateway>,
    new: &Config,
) -> anyhow::Result<Option<anyhow::Error>> {
    apply_as(gateway, new, Unfit::Waits)
}

fn apply_as(
    gateway: &Arc<Gateway>,
    new: &Config,
    unfit: Unfit,
) -> anyhow::Result<Option<anyhow::Error>> {
    // One at a time: what is changed goes by what is in force.
    let _one = gateway.reloading.lock();
    let diff = gateway.config().reloadable_diff(new);
    let merged = gateway.config().reloaded(new);
    let (access, waits) = Access::reopen(&merged, &gateway.access.load(), unfit)?;
    gateway.upstream.reload(&merged)?;
    gateway.access.store(Arc::new(access));
    if gateway.config().cache.enabled && !merged.cache.enabled {
        gateway.cache.clear();
    }
    if gateway.config().log.level != merged.log.level {
        crate::log::set_level(&merged.log.level);
    }
    gateway.replace_config(merged);
    gateway.close_fast();
    crate::log::reopen();
    tracing::info!(applied = ?diff.applied, needs_restart = ?diff.needs_restart, "configuration reloaded");
    Ok(waits)
}
