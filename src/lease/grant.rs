//! Leases: who holds which items, since when and until when.

use std::sync::Arc;

use super::ask::Holder;
use super::item::ItemKey;
use crate::clock::Timestamp;

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Its holder has it.
    Held,
    /// Its holder gave it back.
    Released,
    /// Its time was up.
    Expired,
    /// Its holder died.
    Lost,
    /// Somebody took it away.
    Revoked,
}

impl LeaseState {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Held, "held"),
        (Self::Released, "released"),
        (Self::Expired, "expired"),
        (Self::Lost, "lost"),
        (Self::Revoked, "revoked"),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// The state that has this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// An item that a lease has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The item.
    pub item: ItemKey,
    /// Its pool.
    pub pool: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id, a UUID.
    pub id: String,
    /// What it has.
    pub items: Vec<Held>,
    /// Who has it.
    pub holder: Holder,
    /// The holder's own name for the request, and what was asked for.
    pub key: Option<(String, String)>,
    /// The number of this grant: greater than that of every grant before it.
    pub fence: u64,
    /// How it stands.
    pub state: LeaseState,
    /// Since when.
    pub acquired_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How long it lives after it was granted or renewed, in microseconds.
    pub ttl: u64,
    /// Its run renews it as long as the holder lives.
    pub is_kept: bool,
}
