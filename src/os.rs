//! The operating system (Linux): processes, signals, locks, ports.

pub mod arguments;
pub mod boot;
pub mod lock;
pub mod marked;
pub mod port;
pub mod process;
pub mod shared_memory;
pub mod signal;
pub mod watched;

/// This machine's name.
pub fn host() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
