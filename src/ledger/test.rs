//! Tests in the ledger.

use rusqlite::{Connection, Result, params};

use super::RunKey;
use crate::clock::Timestamp;

/// Enters a test that begins; `number` is its place in the run.
pub fn begin(
    db: &Connection,
    run: RunKey,
    number: i64,
    worker_id: &str,
    test_id: &str,
    attempt: u32,
    at: Timestamp,
) -> Result<()> {
    db.prepare_cached("INSERT INTO test (run, number, worker_id, test_id, attempt, began) VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![run.0, number, worker_id, test_id, attempt, at.micros()])
        .map(drop)
}

/// Ends a test. `outcome` is the runner's word for it, or `None` where nobody told.
pub fn end(
    db: &Connection,
    run: RunKey,
    number: i64,
    outcome: Option<&str>,
    message: Option<&str>,
    at: Timestamp,
) -> Result<()> {
    db.prepare_cached("UPDATE test SET ended = ?, outcome = ?, message = ? WHERE run = ? AND number = ?")?
        .execute(params![at.micros(), outcome, message, run.0, number])
        .map(drop)
}
