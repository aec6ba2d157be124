//! Resources in the ledger: what isolane made, or promised to make, and owes to undo.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::RunKey;
use crate::clock::Timestamp;

/// The number of a resource in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResourceKey(pub i64);

/// How a resource stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceState {
    /// Promised; it may exist or not.
    Planned,
    /// Made.
    Created,
    /// Undone.
    Removed,
    /// Left on the user's wish.
    Kept,
    /// Could not be undone.
    Stuck,
}

/// What can happen to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceEvent {
    /// It was made.
    Create,
    /// It was undone, or was not there.
    Remove,
    /// The user wants to look at it.
    Keep,
    /// Undoing it failed.
    Fail,
}

/// Something happened to a resource that cannot in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a resource that is {}", state.as_str())]
pub struct IllegalStep {
    state: ResourceState,
    event: ResourceEvent,
}

impl ResourceState {
    /// The table: the state after `event`. Undoing may be repeated from every state: it is
    /// idempotent.
    pub fn next(self, event: ResourceEvent) -> Result<Self, IllegalStep> {
        match (self, event) {
            (Self::Planned, ResourceEvent::Create) => Ok(Self::Created),
            (_, ResourceEvent::Remove) => Ok(Self::Removed),
            (Self::Planned | Self::Created, ResourceEvent::Keep) => Ok(Self::Kept),
            (Self::Planned | Self::Created | Self::Kept | Self::Stuck, ResourceEvent::Fail) => Ok(Self::Stuck),
            (Self::Created | Self::Removed | Self::Kept | Self::Stuck, ResourceEvent::Create)
            | (Self::Removed | Self::Kept | Self::Stuck, ResourceEvent::Keep)
            | (Self::Removed, ResourceEvent::Fail) => Err(IllegalStep { state: self, event }),
        }
    }

    /// The word for it in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Created => "created",
            Self::Removed => "removed",
            Self::Kept => "kept",
            Self::Stuck => "stuck",
        }
    }
}

/// A resource in the words of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The site's id.
    pub provider: String,
    /// The word for its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The word for the place it belongs to.
    pub place: String,
}

/// Enters a promise.
pub fn plan(db: &Connection, run: RunKey, worker_id: Option<&str>, resource: &Words) -> rusqlite::Result<ResourceKey> {
    db.execute(
        "INSERT INTO resource (run, worker_id, provider, kind, name, place, state)
         VALUES (?, ?, ?, ?, ?, ?, 'planned')",
        params![run.0, worker_id, resource.provider, resource.kind, resource.name, resource.place],
    )?;
    Ok(ResourceKey(db.last_insert_rowid()))
}

/// A resource as the ledger knows it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number.
    pub key: ResourceKey,
    /// What it is.
    pub words: Words,
    /// How it stands.
    pub state: ResourceState,
    /// Whom it served last.
    pub worker_id: Option<String>,
}

/// What a run owes still, in the order of promising; with what was kept, where that is asked
/// for.
pub fn owed(db: &Connection, run: RunKey, with_kept: bool) -> rusqlite::Result<Vec<Entry>> {
    let sql = "SELECT resource, provider, kind, name, place, state, worker_id FROM resource
                WHERE run = ? AND (state IN ('planned', 'created', 'stuck') OR (? AND state = 'kept'))
                ORDER BY resource";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map(params![run.0, with_kept], |row| {
        let state = match row.get_ref("state")?.as_str()? {
            "planned" => ResourceState::Planned,
            "created" => ResourceState::Created,
            "kept" => ResourceState::Kept,
            _ => ResourceState::Stuck,
        };
        let words = Words {
            provider: row.get("provider")?,
            kind: row.get("kind")?,
            name: row.get("name")?,
            place: row.get("place")?,
        };
        Ok(Entry { key: ResourceKey(row.get("resource")?), words, state, worker_id: row.get("worker_id")? })
    })?;
    rows.collect()
}

/// Notes the state a resource has come to, and why where it is stuck.
pub fn reached(
    db: &Connection,
    resource: ResourceKey,
    state: ResourceState,
    error: Option<&str>,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let column = match state {
        ResourceState::Created => "created_at = ?2,",
        ResourceState::Removed => "removed_at = ?2,",
        _ => "",
    };
    let sql = format!("UPDATE resource SET {column} state = ?3, error = ?4 WHERE resource = ?1");
    db.execute(&sql, params![resource.0, at.to_string(), state.as_str(), error]).map(drop)
}

/// Notes which worker a lane's resources serve now.
pub fn serves(db: &Connection, resource: ResourceKey, worker_id: &str) -> rusqlite::Result<()> {
    db.execute("UPDATE resource SET worker_id = ?2 WHERE resource = ?1", params![resource.0, worker_id]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{ResourceEvent as E, ResourceState as S};

    #[test]
    fn every_step_of_a_resource_is_decided() {
        let states = [S::Planned, S::Created, S::Removed, S::Kept, S::Stuck];
        let table = [
            (E::Create, [Some(S::Created), None, None, None, None]),
            (E::Remove, [Some(S::Removed); 5]),
            (E::Keep, [Some(S::Kept), Some(S::Kept), None, None, None]),
            (E::Fail, [Some(S::Stuck), Some(S::Stuck), None, Some(S::Stuck), Some(S::Stuck)]),
        ];
        for (event, expected) in table {
            assert_eq!(states.map(|state| state.next(event).ok()), expected, "{event:?}");
        }
    }
}
