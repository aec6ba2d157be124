//! Runs that go on: their workers, and the test that each is in.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Result};

use super::open_read_only;
use crate::clock::Timestamp;
use crate::os::{self, lock::RunLock};

/// How many runs are looked at, the latest first.
const MOST_RUNS: u32 = 50;

/// A run that the ledger has no end of.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub struct LiveRun {
    pub run_id: String,
    pub tag: String,
    pub command: String,
    pub runner: String,
    pub host: String,
    pub started_at: String,
    /// Its supervisor is gone, and it waits to be swept.
    pub is_dead: bool,
    /// How many tests have ended.
    pub tests: u32,
    /// How many of them failed.
    pub failed: u32,
    /// Its workers, by lane.
    pub lanes: Vec<LiveLane>,
}

/// A worker in its lane.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the column of that name")]
pub struct LiveLane {
    pub lane: u32,
    pub worker_id: String,
    /// The test that it is in, and since when.
    pub test: Option<(String, Timestamp)>,
}

/// The runs of a ledger that go on; none where there is no ledger.
pub fn runs(path: &Path) -> anyhow::Result<Vec<LiveRun>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut db = open_read_only(path)?;
    // All of it as it stands at one moment.
    let db = db.transaction()?;
    Ok(read(&db)?)
}

fn read(db: &Connection) -> Result<Vec<LiveRun>> {
    let host = os::host();
    let mut runs = db.prepare(
        "SELECT run, run_id, tag, command, runner, host, started_at, lock FROM run
          WHERE state = 'running' ORDER BY run DESC LIMIT ?",
    )?;
    let found = runs.query_map([MOST_RUNS], |row| {
        let lock: PathBuf = row.get::<_, String>("lock")?.into();
        let on: String = row.get("host")?;
        let run = LiveRun {
            run_id: row.get("run_id")?,
            tag: row.get("tag")?,
            command: row.get("command")?,
            runner: row.get("runner")?,
            started_at: row.get("started_at")?,
            // Locks of other machines are not seen here.
            is_dead: on == host && lock.exists() && !RunLock::is_held(&lock),
            host: on,
            tests: 0,
            failed: 0,
            lanes: Vec::new(),
        };
        Ok((row.get::<_, i64>("run")?, run))
    })?;
    let mut all = Vec::new();
    for found in found {
        let (key, mut run) = found?;
        (run.tests, run.failed) = db.query_row(
            "SELECT count(*), count(*) FILTER (WHERE outcome IN ('failed', 'error', 'crashed'))
               FROM test WHERE run = ? AND scope IS NULL AND ended IS NOT NULL",
            [key],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        run.lanes = lanes(db, key)?;
        all.push(run);
    }
    Ok(all)
}

fn lanes(db: &Connection, run: i64) -> Result<Vec<LiveLane>> {
    let mut workers = db.prepare_cached(
        "SELECT lane, worker_id FROM worker WHERE run = ? AND ended_at IS NULL AND NOT controller ORDER BY lane, worker",
    )?;
    let workers: Vec<(u32, String)> =
        workers.query_map([run], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
    // Its last, unless that has ended.
    let mut last = db.prepare_cached(
        "SELECT test_id, began, ended FROM test WHERE run = ? AND worker_id = ? AND scope IS NULL
          ORDER BY began DESC LIMIT 1",
    )?;
    let lane = |(lane, worker_id): (u32, String)| {
        let test = last
            .query_row((run, &worker_id), |row| {
                let began: i64 = row.get(1)?;
                let is_over = row.get::<_, Option<i64>>(2)?.is_some();
                Ok((!is_over).then_some((row.get(0)?, Timestamp(u64::try_from(began).unwrap_or(0)))))
            })
            .optional()?
            .flatten();
        Ok(LiveLane { lane, worker_id, test })
    };
    workers.into_iter().map(lane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_shows_the_test_that_its_worker_is_in() {
        let db = super::super::in_memory().expect("a ledger");
        db.execute_batch(
            "INSERT INTO run VALUES (7, 'r7', 'cafe', 'pytest -n 2', 'pytest', 'elsewhere', '/', '/run/lock',
                 '2026-03-01T12:00:00.000Z', NULL, NULL, 'running');
             INSERT INTO run VALUES (8, 'r8', 'beef', 'true', 'plain', 'elsewhere', '/', '', '2026-03-01T12:00:00.000Z',
                 '2026-03-01T12:00:01.000Z', 0, 'passed');
             INSERT INTO worker (run, worker_id, lane, started_at, outcome, controller, ended_at) VALUES
                 (7, 'master', 0, 'x', 'running', 1, NULL), (7, 'gw0', 0, 'x', 'running', 0, NULL),
                 (7, 'gw1', 1, 'x', 'running', 0, NULL), (7, 'gw2', 2, 'x', 'crashed', 0, 'y');
             INSERT INTO test (run, number, worker_id, test_id, began, ended, outcome) VALUES
                 (7, 0, 'gw0', 'a', 10, 20, 'failed'), (7, 1, 'gw0', 'b', 30, NULL, NULL), (7, 2, 'gw1', 'c', 10, 20, 'passed');
             INSERT INTO test (run, number, worker_id, test_id, scope, began) VALUES (7, 3, 'gw1', 'f', 'session', 99);",
        )
        .expect("rows");
        let runs = read(&db).expect("read");
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].tests, runs[0].failed, runs[0].is_dead), (2, 1, false));
        let lanes: Vec<_> = runs[0].lanes.iter().map(|it| (it.lane, it.test.as_ref().map(|(id, _)| &**id))).collect();
        assert_eq!(lanes, [(0, Some("b")), (1, None)]);
    }
}
