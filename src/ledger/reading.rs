//! A run as it is told afterwards: all of it in the state of one moment, a row at a time, so
//! that a run of any size fits into little memory.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::{VERSION, open, open_read_only, version};
use crate::name::RunId;

/// What may be asked about a run.
#[derive(Clone, Copy, Debug)]
pub struct Question(&'static str);

// `?1` is the run's id, `?2` the most rows that are wanted.
impl Question {
    /// The latest runs.
    pub const RUNS: Self =
        Self("SELECT * FROM runs WHERE ?1 IS NOT NULL ORDER BY started_at DESC, run_id DESC LIMIT ?2");
    /// The run itself, as its view has it.
    pub const RUN: Self = Self("SELECT * FROM runs WHERE run_id = ?1 LIMIT ?2");
    /// Its workers, by lane.
    pub const WORKERS: Self = Self("SELECT * FROM workers WHERE run_id = ?1 ORDER BY lane, started_at LIMIT ?2");
    /// Its tests, in the order of their beginning.
    pub const TESTS: Self = Self("SELECT * FROM tests WHERE run_id = ?1 LIMIT ?2");
    /// Its collisions, worst first: a test failed, tests overlapped, then the rest.
    pub const COLLISIONS: Self = Self(
        "SELECT * FROM collisions WHERE run_id = ?1
          ORDER BY failed_test IS NULL, overlap_ms DESC, coalesce(at_b, at_a) LIMIT ?2",
    );
    /// What tests left behind, most first.
    pub const LEAKS: Self = Self("SELECT * FROM leaks WHERE run_id = ?1 ORDER BY n DESC, kind, test_id LIMIT ?2");
    /// Its records.
    pub const RECORDS: Self = Self("SELECT * FROM records WHERE run_id = ?1 LIMIT ?2");
    /// What it made.
    pub const RESOURCES: Self = Self("SELECT * FROM resources WHERE run_id = ?1 LIMIT ?2");

    /// How many there are of what is cut short on a page.
    pub const COUNTS: Self = Self(
        "SELECT (SELECT count(*) FROM test t WHERE t.run = r.run AND scope IS NULL) AS tests,
                (SELECT count(*) FROM collision c WHERE c.run = r.run) AS collisions,
                (SELECT count(*) FROM leaks l WHERE l.run_id = r.run_id) AS leaks,
                (SELECT count(*) FROM records e WHERE e.run_id = r.run_id) AS records,
                (SELECT count(*) FROM touch t WHERE t.run = r.run) AS touches,
                (SELECT count(*) FROM resource o WHERE o.run = r.run) AS resources
           FROM run r WHERE run_id = ?1 LIMIT ?2",
    );
    /// Tests by their numbers and with microseconds, which the view rounds, and the fixtures
    /// that outlive them.
    pub const SPANS: Self = Self(
        "SELECT number, worker_id, test_id, attempt, scope, began, ended, outcome, substr(message, 1, 4000) AS message
           FROM test JOIN run USING (run) WHERE run_id = ?1 ORDER BY scope IS NOT NULL, number LIMIT ?2",
    );
    /// Collisions with the numbers of their tests, in the order of [`Question::COLLISIONS`].
    pub const MEETINGS: Self = Self(
        "SELECT k.name AS kind, key, pattern, a.worker_id AS worker_a, test_a, op_a, at_a,
                b.worker_id AS worker_b, test_b, op_b, at_b, overlap_us, failed_test
           FROM collision c JOIN run USING (run) JOIN kind k USING (kind)
                LEFT JOIN worker a ON a.worker = worker_a LEFT JOIN worker b ON b.worker = worker_b
          WHERE run_id = ?1
          ORDER BY failed_test IS NULL, overlap_us DESC, coalesce(at_b, at_a) LIMIT ?2",
    );
    /// What was made and is not removed.
    pub const LEFT: Self = Self("SELECT * FROM resources WHERE run_id = ?1 AND state <> 'removed' LIMIT ?2");
    /// Counts and length of a JUnit suite.
    pub const SUITE: Self = Self(
        "SELECT count(*) AS tests,
                count(*) FILTER (WHERE outcome IN ('error', 'crashed')) AS errors,
                count(*) FILTER (WHERE outcome IN ('skipped', 'xfailed')) AS skipped,
                count(*) FILTER (WHERE outcome NOT IN ('error', 'crashed', 'skipped', 'xfailed', 'passed', 'xpassed'))
                    AS failures,
                (max(ended) - min(began)) / 1e6 AS time
           FROM test JOIN run USING (run) WHERE run_id = ?1 AND scope IS NULL LIMIT ?2",
    );
    /// Tests as JUnit wants them, with the lane of the worker that was there at their beginning.
    pub const CASES: Self = Self(
        "SELECT t.worker_id, test_id, attempt, (ended - began) / 1e6 AS time, outcome, message,
                (SELECT lane FROM worker w WHERE w.run = t.run AND w.worker_id = t.worker_id
                  ORDER BY w.worker DESC LIMIT 1) AS lane
           FROM test t JOIN run USING (run) WHERE run_id = ?1 AND scope IS NULL LIMIT ?2",
    );
}

/// The run that somebody meant.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// This one, by its id.
    One(String),
    /// None.
    None,
    /// Any of these, and perhaps of more.
    Many(Vec<String>),
}

/// A ledger that is being read.
#[derive(Debug)]
pub struct Reading(Connection);

impl Reading {
    /// Opens a ledger that exists. One of an older form is brought up to date first.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut db = open_read_only(path)?;
        if version(&db)? != VERSION {
            db = open(path)?;
        }
        // From here on it is seen as it stands now, whatever a run writes.
        db.execute_batch("BEGIN")?;
        Ok(Self(db))
    }

    /// Opens a ledger as [`Reading::open`] does, with the collisions of a run that goes on as
    /// they would be if it ended now. Nothing of that is written.
    pub fn open_settled(path: &Path) -> anyhow::Result<Self> {
        let reading = Self::open(path)?;
        let sql = "SELECT run FROM run WHERE state = 'running'";
        let running: Vec<i64> = reading.0.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if running.is_empty() {
            return Ok(reading);
        }
        drop(reading);
        let db = open(path)?;
        // It is rolled back when this is closed.
        db.execute_batch("BEGIN IMMEDIATE")?;
        for run in running {
            super::collision::settle(&db, super::RunKey(run))?;
        }
        Ok(Self(db))
    }

    /// The ledger itself.
    pub fn db(&self) -> &Connection {
        &self.0
    }

    /// The run with this id, this tag, or an id that begins so; or else the latest.
    pub fn find(&self, which: Option<&str>) -> anyhow::Result<Found> {
        let Some(which) = which else {
            let sql = "SELECT run_id FROM runs ORDER BY started_at DESC, run_id DESC LIMIT 1";
            let latest = self.0.query_row(sql, [], |row| row.get(0)).optional()?;
            return Ok(latest.map_or(Found::None, Found::One));
        };
        let which = RunId::parse(which).map_or_else(|| which.to_lowercase(), |id| id.to_string());
        let mut statement = self.0.prepare(
            "SELECT run_id FROM runs WHERE tag = ?1 OR substr(run_id, 1, length(?1)) = ?1 AND ?1 <> ''
              ORDER BY run_id LIMIT 4",
        )?;
        let mut runs = statement.query_map([which], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        Ok(match runs.len() {
            0 => Found::None,
            1 => Found::One(runs.remove(0)),
            _ => Found::Many(runs),
        })
    }

    /// Hands each row of the answer to `visit`, with the columns' names.
    pub fn each(
        &self,
        question: Question,
        run_id: &str,
        most: u32,
        mut visit: impl FnMut(&[&str], Vec<Value>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut statement = self.0.prepare(question.0)?;
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut rows = statement.query((run_id, most))?;
        while let Some(row) = rows.next()? {
            let values = (0..names.len()).map(|column| row.get_ref(column).map(value)).collect::<Result<_, _>>()?;
            visit(&names, values)?;
        }
        Ok(())
    }

    /// The only row of an answer, its values under their names; nothing where there is none.
    pub fn one(&self, question: Question, run_id: &str) -> anyhow::Result<Value> {
        let mut found = Value::Null;
        self.each(question, run_id, 1, |names, values| {
            found = names.iter().map(|name| (*name).to_owned()).zip(values).collect();
            Ok(())
        })?;
        Ok(found)
    }
}

/// A value of the ledger as JSON has it.
pub fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}
