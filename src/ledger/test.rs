//! Tests in the ledger.

use rusqlite::{Connection, Result, params};
use serde::Deserialize;

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

/// Enters what a test that failed has said, where its end came first.
pub fn said(db: &Connection, run: RunKey, number: i64, message: &str) -> Result<()> {
    db.execute(
        "UPDATE test SET message = ? WHERE run = ? AND number = ? AND outcome = 'failed'",
        params![message, run.0, number],
    )
    .map(drop)
}

/// How far a fixture is that lives longer than a test, in the words of shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FixturePhase {
    /// It is being set up.
    Begin,
    /// It is there for tests.
    Ready,
    /// It is being taken down.
    Leaving,
    /// It is gone.
    End,
}

/// Enters a fixture that begins.
pub fn begin_fixture(
    db: &Connection,
    run: RunKey,
    number: i64,
    worker_id: &str,
    fixture: &str,
    scope: &str,
    at: Timestamp,
) -> Result<()> {
    db.execute(
        "INSERT INTO test (run, number, worker_id, test_id, scope, began) VALUES (?, ?, ?, ?, ?, ?)",
        params![run.0, number, worker_id, fixture, scope, at.micros()],
    )
    .map(drop)
}

/// Notes how far a fixture has come.
pub fn fixture_reached(db: &Connection, run: RunKey, number: i64, phase: FixturePhase, at: Timestamp) -> Result<()> {
    let column = match phase {
        FixturePhase::Begin => "began",
        FixturePhase::Ready => "ready",
        FixturePhase::Leaving => "leaving",
        FixturePhase::End => "ended",
    };
    db.execute(
        &format!("UPDATE test SET {column} = ? WHERE run = ? AND number = ?"),
        params![at.micros(), run.0, number],
    )
    .map(drop)
}
