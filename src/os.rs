//! The operating system (Linux): processes, signals, locks, ports.

pub mod lock;
pub mod marked;
pub mod port;
pub mod process;
pub mod signal;
