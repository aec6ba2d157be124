//! Workers in the ledger.

use rusqlite::{Connection, Result, params};

use super::RunKey;
use crate::clock::Timestamp;
use crate::name::Lane;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerOutcome {
    /// By itself, when its work was done.
    Ok,
    /// By a signal, or without ever saying that it was done.
    Crashed,
    /// isolane stopped it.
    Killed,
}

impl WorkerOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Crashed => "crashed",
            Self::Killed => "killed",
        }
    }
}

/// Enters a worker.
pub fn begin(db: &Connection, run: RunKey, worker_id: &str, lane: Lane, pid: Option<i32>, at: Timestamp) -> Result<()> {
    db.execute(
        "INSERT INTO worker (run, worker_id, lane, pid, started_at, outcome) VALUES (?, ?, ?, ?, ?, 'running')",
        params![run.0, worker_id, lane.0, pid, at.to_string()],
    )
    .map(drop)
}

/// Notes that what was taken for a worker is the controller of workers.
pub fn is_controller(db: &Connection, run: RunKey, worker_id: &str) -> Result<()> {
    db.execute("UPDATE worker SET controller = 1 WHERE run = ?1 AND worker_id = ?2", params![run.0, worker_id])
        .map(drop)
}

/// Ends a worker that runs.
pub fn end(db: &Connection, run: RunKey, worker_id: &str, outcome: WorkerOutcome, at: Timestamp) -> Result<()> {
    db.execute(
        "UPDATE worker SET ended_at = ?4, outcome = ?3 WHERE run = ?1 AND worker_id = ?2 AND outcome = 'running'",
        params![run.0, worker_id, outcome.as_str(), at.to_string()],
    )
    .map(drop)
}
