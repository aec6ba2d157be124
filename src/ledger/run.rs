//! Runs in the ledger.

use std::path::PathBuf;

use rusqlite::{Connection, Result, params};

use crate::clock::Timestamp;
use crate::name::RunId;

/// The number of a run within its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunKey(pub i64);

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its tests passed.
    Passed,
    /// Its tests failed.
    Failed,
    /// It was ended by a signal.
    Crashed,
    /// Its supervisor died, and another process undid what it had made.
    Swept,
}

impl RunState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::Swept => "swept",
        }
    }
}

/// What is known of a run when it starts.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// The command as a shell would be given it, passwords masked.
    pub command: String,
    /// The runner's name.
    pub runner: &'static str,
    /// This machine's name.
    pub host: String,
    /// The working directory.
    pub cwd: String,
    /// The file of the run lock.
    pub lock: PathBuf,
    /// When.
    pub started_at: Timestamp,
}

impl NewRun {
    /// A run of which no more is known.
    pub fn unknown(id: RunId, started_at: Timestamp) -> Self {
        let unknown = String::new;
        let (command, host, cwd) = (unknown(), unknown(), unknown());
        Self { id, command, runner: "", host, cwd, lock: PathBuf::new(), started_at }
    }
}

/// Enters a run.
pub fn begin(db: &Connection, run: &NewRun) -> Result<RunKey> {
    db.execute(
        "INSERT INTO run (run_id, tag, command, runner, host, cwd, lock, started_at, state)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running')",
        params![
            run.id.to_string(),
            run.id.tag().as_str(),
            run.command,
            run.runner,
            run.host,
            run.cwd,
            run.lock.to_string_lossy(),
            run.started_at.to_string()
        ],
    )?;
    Ok(RunKey(db.last_insert_rowid()))
}

/// Ends a run. Workers that are still listed as running were stopped by isolane, and
/// a test that never ended went down with its worker.
pub fn end(db: &Connection, run: RunKey, exit_code: Option<i32>, state: RunState, at: Timestamp) -> Result<()> {
    let (time, at) = (at.micros(), at.to_string());
    db.execute(
        "UPDATE worker SET ended_at = ?2, outcome = 'killed' WHERE run = ?1 AND outcome = 'running'",
        params![run.0, at],
    )?;
    db.execute("UPDATE test SET ended = ?2 WHERE run = ?1 AND ended IS NULL", params![run.0, time])?;
    db.execute(
        "UPDATE run SET ended_at = ?2, exit_code = ?3, state = ?4 WHERE run = ?1",
        params![run.0, at, exit_code, state.as_str()],
    )?;
    Ok(())
}

/// A run that has not ended, or that owes something still.
#[derive(Clone, Debug)]
pub struct OpenRun {
    /// Its number.
    pub key: RunKey,
    /// Its id.
    pub id: RunId,
    /// The machine that it is on.
    pub host: String,
    /// The file of its lock.
    pub lock: PathBuf,
    /// When it started.
    pub started_at: Timestamp,
    /// Whether its supervisor has written its end.
    pub has_ended: bool,
}

/// All runs that have not ended or owe something still, oldest first; with those from which
/// something was kept, where that is asked for.
pub fn open(db: &Connection, with_kept: bool) -> Result<Vec<OpenRun>> {
    let kept = if with_kept { "UNION SELECT run FROM resource WHERE state = 'kept'" } else { "" };
    let sql = format!(
        "SELECT run, run_id, host, lock, started_at, state NOT IN ('running', 'crashed') AS has_ended FROM run
          WHERE run IN (SELECT run FROM run WHERE state = 'running'
                        UNION SELECT run FROM resource WHERE state IN ('planned', 'created', 'stuck') {kept})
          ORDER BY run"
    );
    let mut statement = db.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        let (id, started_at): (String, String) = (row.get("run_id")?, row.get("started_at")?);
        let (Some(id), Some(started_at)) = (RunId::parse(&id), Timestamp::parse(&started_at)) else { return Ok(None) };
        let (host, has_ended) = (row.get("host")?, row.get("has_ended")?);
        let lock = PathBuf::from(row.get::<_, String>("lock")?);
        Ok(Some(OpenRun { key: RunKey(row.get("run")?), id, host, lock, started_at, has_ended }))
    })?;
    rows.filter_map(Result::transpose).collect()
}

/// Takes a run back that could not be started.
pub fn forget(db: &Connection, run: RunKey) -> Result<()> {
    for table in ["touch", "named", "collision", "test", "record", "worker", "resource", "run"] {
        db.execute(&format!("DELETE FROM {table} WHERE run = ?"), [run.0])?;
    }
    Ok(())
}
