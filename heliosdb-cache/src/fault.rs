//! Protections that a test takes away, to see that the history checker finds out.
//!
//! Nothing of this is in a build without the feature `fault-switches`: [`is_removed`] is the constant `false` there. With
//! it, `HELIOS_REMOVE_PROTECTION` names the protection that is taken away; some then wait a little where a race would
//! otherwise be too rare to be seen.

#[cfg(all(feature = "fault-switches", not(debug_assertions)))]
compile_error!("the feature `fault-switches` takes protections away: it is not for release builds");

/// Whether the protection of that name is taken away.
#[cfg(not(feature = "fault-switches"))]
#[inline(always)]
#[must_use]
pub const fn is_removed(_name: &str) -> bool {
    false
}

/// Waits a little, where the protection of that name is taken away.
#[cfg(not(feature = "fault-switches"))]
#[inline(always)]
pub const fn pause(_name: &str) {}

/// Whether the protection of that name is taken away.
#[cfg(feature = "fault-switches")]
#[must_use]
pub fn is_removed(name: &str) -> bool {
    removed() == Some(name)
}

/// Waits a little, where the protection of that name is taken away.
#[cfg(feature = "fault-switches")]
pub fn pause(name: &str) {
    if is_removed(name) {
        std::thread::sleep(std::time::Duration::from_micros(fastrand::u64(
            ..PAUSE_MAX_US,
        )));
    }
}

/// What `HELIOS_REMOVE_PROTECTION` said when it was first looked at.
#[cfg(feature = "fault-switches")]
#[must_use]
pub fn removed() -> Option<&'static str> {
    static REMOVED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    REMOVED
        .get_or_init(|| std::env::var("HELIOS_REMOVE_PROTECTION").ok())
        .as_deref()
}

#[cfg(feature = "fault-switches")]
const PAUSE_MAX_US: u64 = 20_000;
