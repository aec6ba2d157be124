//! Those who wait, in the order of their coming.

use super::ask::Ask;
use crate::clock::Timestamp;

/// The place of a waiter in the line: who came later has a greater one.
pub type Ticket = u64;

/// What became of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaiterState {
    /// It waits.
    Waiting,
    /// It was granted a lease.
    Granted,
    /// It waits no more.
    Gone,
}

impl WaiterState {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Waiting, "waiting"), (Self::Granted, "granted"), (Self::Gone, "gone")];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// The state that has this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// Somebody who waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiter {
    /// Its place in the line.
    pub ticket: Ticket,
    /// What it waits for.
    pub ask: Ask,
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// How it stands.
    pub state: WaiterState,
    /// The lease that it was granted.
    pub lease: Option<String>,
    /// The process that it waits in, as the store knows processes: it does not outlive that.
    pub owner: String,
}
