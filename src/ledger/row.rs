//! Rows in the ledger, and who touched them: what `who` and `why` tell.

use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::RunKey;
use crate::touch::Op;

/// A row of the user's, or one in a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The number of its table.
    pub kind: i64,
    /// The table: `public.orders`.
    pub name: String,
    /// Its key, as JSON.
    pub key: String,
    /// In whose own database it is; nothing where all share it.
    pub lane: Option<i64>,
    /// How the error of the test that this is about names it, if it does.
    pub named: Option<String>,
}

/// A touch of a row, in words.
#[derive(Clone, Debug)]
pub struct Told {
    /// The worker.
    pub worker: Option<String>,
    /// Somebody else.
    pub stranger: Option<String>,
    /// The number of the test or fixture.
    pub number: Option<i64>,
    /// Its id.
    pub test: Option<String>,
    /// When that ended, in microseconds.
    pub ended: Option<i64>,
    /// What was done.
    pub op: Op,
    /// When, in microseconds.
    pub at: i64,
    /// What became of a row that was made.
    pub state: Option<String>,
    /// Why.
    pub note: Option<String>,
}

/// Who touched a row, in the order of time.
pub fn story(db: &Connection, run: RunKey, row: &Known) -> Result<Vec<Told>> {
    let mut rows = db.prepare_cached(
        "SELECT w.worker_id AS worker, stranger, t.test AS number, e.test_id AS test, e.ended, op, at, state, note
           FROM touch t LEFT JOIN worker w USING (worker) LEFT JOIN test e ON e.run = t.run AND e.number = t.test
          WHERE t.run = ?1 AND t.kind = ?2 AND t.key = ?3 AND t.lane IS ?4 ORDER BY at, touch LIMIT 1000",
    )?;
    rows.query_map(params![run.0, row.kind, row.key, row.lane], told)?.collect()
}

fn told(row: &Row<'_>) -> Result<Told> {
    Ok(Told {
        worker: row.get("worker")?,
        stranger: row.get("stranger")?,
        number: row.get("number")?,
        test: row.get("test")?,
        ended: row.get("ended")?,
        op: Op::parse(&row.get::<_, String>("op")?).unwrap_or(Op::Update),
        at: row.get("at")?,
        state: row.get("state")?,
        note: row.get("note")?,
    })
}

/// The rows that a failure may be about: those that its error names, then those that the test
/// and another worker both touched. `most` of them.
pub fn of_failure(db: &Connection, run: RunKey, test: i64, most: usize) -> Result<Vec<Known>> {
    let known = |row: &Row<'_>| {
        Ok(Known {
            kind: row.get("kind")?,
            name: row.get("name")?,
            key: row.get("key")?,
            lane: row.get("lane")?,
            named: row.get("named")?,
        })
    };
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    let mut named = db.prepare_cached(
        "SELECT DISTINCT t.kind, k.name, t.key, t.lane, n.pattern AS named FROM named n JOIN kind k USING (kind)
           JOIN touch t ON t.run = n.run AND t.kind = n.kind AND t.key = n.key
          WHERE n.run = ?1 AND n.test = ?2 AND (t.lane IS NULL OR t.lane = (
                SELECT w.lane FROM test e JOIN worker w ON w.run = e.run AND w.worker_id = e.worker_id WHERE e.run = ?1 AND e.number = ?2
                 ORDER BY w.worker DESC LIMIT 1)) LIMIT ?3",
    )?;
    let mut rows: Vec<Known> = named.query_map(params![run.0, test, limit], known)?.collect::<Result<_>>()?;
    let mut both = db.prepare_cached(
        "SELECT DISTINCT t.kind, k.name, t.key, t.lane, NULL AS named FROM touch t JOIN kind k USING (kind)
          WHERE t.run = ?1 AND t.test = ?2 AND t.lane IS NULL AND t.key IS NOT NULL
            AND EXISTS (SELECT 1 FROM touch o WHERE o.run = t.run AND o.kind = t.kind AND o.key = t.key AND o.worker <> t.worker) LIMIT ?3",
    )?;
    for row in both.query_map(params![run.0, test, limit], known)? {
        let row = row?;
        if rows.len() < most && !rows.iter().any(|other| (other.kind, &other.key) == (row.kind, &row.key)) {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Tables that were emptied by another worker while a test ran, or after, that had made rows in
/// them: the table and the touch.
pub fn emptied(db: &Connection, run: RunKey, test: i64) -> Result<Vec<(String, Told)>> {
    let mut rows = db.prepare_cached(
        "SELECT DISTINCT k.name, w.worker_id AS worker, t.stranger, t.test AS number, e.test_id AS test, e.ended, t.op, t.at, NULL AS state, NULL AS note
           FROM touch mine JOIN touch t ON t.run = mine.run AND t.kind = mine.kind AND t.key IS NULL AND t.op = 'truncate' AND t.at > mine.at
           JOIN kind k ON k.kind = t.kind LEFT JOIN worker w ON w.worker = t.worker LEFT JOIN test e ON e.run = t.run AND e.number = t.test
          WHERE mine.run = ?1 AND mine.test = ?2 AND mine.op = 'insert' AND mine.lane IS NULL AND t.lane IS NULL AND t.worker <> mine.worker
          ORDER BY t.at LIMIT 3",
    )?;
    rows.query_map(params![run.0, test], |row| Ok((row.get(0)?, told(row)?)))?.collect()
}

/// The command of a run, and whether its lanes shared the user's own tables.
pub fn command(db: &Connection, run: RunKey) -> Result<Option<(String, bool)>> {
    db.query_row(
        "SELECT command, EXISTS (SELECT 1 FROM touch t WHERE t.run = r.run AND t.lane IS NULL) FROM run r WHERE run = ?",
        [run.0],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
    .optional()
}

/// Tables that are called so, with or without their schema.
pub fn kinds(db: &Connection, name: &str) -> Result<Vec<(i64, String)>> {
    let mut rows = db.prepare_cached(
        "SELECT kind, name FROM kind WHERE name = ?1 COLLATE NOCASE OR substr(name, instr(name, '.') + 1) = ?1 COLLATE NOCASE",
    )?;
    rows.query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// All tables.
pub fn all_kinds(db: &Connection) -> Result<Vec<(i64, String)>> {
    db.prepare_cached("SELECT kind, name FROM kind")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// A key of this table, to see what its columns are called.
pub fn sample(db: &Connection, kind: i64) -> Result<Option<String>> {
    db.query_row(
        "SELECT (SELECT key FROM touch t WHERE t.run = r.run AND t.kind = ?1 AND key IS NOT NULL LIMIT 1) AS key FROM run r
          WHERE key IS NOT NULL ORDER BY run DESC LIMIT 1",
        [kind],
        |row| row.get(0),
    )
    .optional()
}

/// What `isolane who` shows of a row: every touch, run by run, the latest first. A cross join
/// is SQLite's word for the order given; else it looks through all touches.
pub const TOUCHES: &str = "
SELECT run_id, r.state AS run_state, coalesce(w.worker_id, stranger) AS worker_id, e.test_id, k.name AS kind, key, op,
       strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000 / 1000.0, 'unixepoch') AS at, t.lane, t.state
  FROM run r CROSS JOIN touch t ON t.run = r.run AND t.kind = ?1 AND t.key = ?2 JOIN kind k ON k.kind = t.kind
       LEFT JOIN worker w ON w.worker = t.worker LEFT JOIN test e ON e.run = t.run AND e.number = t.test
 ORDER BY r.run DESC, t.lane, at, touch LIMIT 500";

/// The same of a thing that was registered.
pub const REGISTERED: &str = "
SELECT run_id, r.state AS run_state, worker_id, test_id, kind, key, 'insert' AS op, created_at AS at, NULL AS lane, c.state
  FROM record c JOIN run r USING (run) WHERE (?1 IS NULL OR kind = ?1) AND key = ?2 ORDER BY run DESC LIMIT 500";

/// The same of a worker: of this name in the latest run that has one, or in this lane of the
/// run with this tag.
pub const WORKER: &str = "
SELECT run_id, r.state AS run_state, w.worker_id, w.lane, w.pid, w.started_at, w.ended_at, w.outcome,
       (SELECT count(*) FROM test t WHERE t.run = w.run AND t.worker_id = w.worker_id AND scope IS NULL) AS tests,
       (SELECT count(*) FROM record c WHERE c.run = w.run AND c.worker_id = w.worker_id) AS records
  FROM worker w JOIN run r USING (run)
 WHERE CASE WHEN ?2 IS NULL THEN w.worker_id = ?1 AND w.run = (SELECT max(run) FROM worker WHERE worker_id = ?1)
            ELSE r.tag = ?1 AND w.lane = ?2 END
 ORDER BY w.worker";

/// A test that was run.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Its number.
    pub number: i64,
    /// Its id.
    pub id: String,
    /// Its worker.
    pub worker: String,
    /// How it came out.
    pub outcome: Option<String>,
    /// Its error.
    pub message: Option<String>,
    /// When it ended, in microseconds.
    pub ended: Option<i64>,
}

/// The tests of a run that are meant: those that failed, or by id, else by a part of it.
pub fn tried(db: &Connection, run: RunKey, which: Option<&str>) -> Result<Vec<Tried>> {
    let read = |row: &Row<'_>| {
        Ok(Tried {
            number: row.get("number")?,
            id: row.get("test_id")?,
            worker: row.get("worker_id")?,
            outcome: row.get("outcome")?,
            message: row.get("message")?,
            ended: row.get("ended")?,
        })
    };
    let ask = |condition: &str, which: &str| -> Result<Vec<Tried>> {
        let sql = format!(
            "SELECT * FROM test WHERE run = ?1 AND scope IS NULL AND ({condition}) AND ?2 IS NOT NULL ORDER BY number LIMIT 50"
        );
        db.prepare(&sql)?.query_map(params![run.0, which], read)?.collect()
    };
    let Some(which) = which else { return ask("outcome IN ('failed', 'error', 'crashed')", "") };
    let exact = ask("test_id = ?2", which)?;
    if exact.is_empty() { ask("instr(test_id, ?2) > 0", which) } else { Ok(exact) }
}

/// The number of a run.
pub fn run_key(db: &Connection, run_id: &str) -> Result<RunKey> {
    db.query_row("SELECT run FROM run WHERE run_id = ?", [run_id], |row| row.get(0)).map(RunKey)
}
