//! The time since the machine started: it goes on while the machine sleeps, and nobody can set
//! it (CLOCK_BOOTTIME of clock_gettime(2)).

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment of this machine's time.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// Which start of the machine it counts from.
    pub id: &'static str,
    /// How long ago that was.
    pub since: Duration,
}

/// Now.
pub fn now() -> Boot {
    static ID: OnceLock<String> = OnceLock::new();
    let id = ID.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    });
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Boot { id, since }
}
