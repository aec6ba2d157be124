//! Records in the ledger.

use rusqlite::{Connection, Result, params};

use super::RunKey;
use crate::clock::Timestamp;

/// The number of a record in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordKey(pub i64);

/// How a record stands after its cleaner ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// Its cleaner removed it.
    Removed,
    /// The user asked to keep it.
    Kept,
    /// Its cleaner failed.
    Stuck,
}

impl RecordState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Kept => "kept",
            Self::Stuck => "stuck",
        }
    }
}

/// Enters an outside thing that a worker said it made.
pub fn register(
    db: &Connection,
    run: RunKey,
    worker_id: &str,
    test_id: Option<&str>,
    kind: &str,
    key: &str,
    at: Timestamp,
) -> Result<RecordKey> {
    db.execute(
        "INSERT INTO record (run, worker_id, test_id, kind, key, created_at, source, state)
         VALUES (?, ?, ?, ?, ?, ?, 'api', 'live')",
        params![run.0, worker_id, test_id, kind, key, at.to_string()],
    )?;
    Ok(RecordKey(db.last_insert_rowid()))
}

/// Notes what became of a record.
pub fn ended(db: &Connection, record: RecordKey, state: RecordState) -> Result<()> {
    db.execute("UPDATE record SET state = ?2 WHERE record = ?1", params![record.0, state.as_str()]).map(drop)
}
