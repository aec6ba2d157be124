//! Collisions in the ledger: the rules applied to all rows of a run.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::{RunKey, author, touch as touches};
use crate::collision::{Collision, Pattern, Span, Spans, Touch, of_row};
use crate::touch::Op;

/// Finds all collisions of a run, in place of those that were found before.
pub fn settle(db: &Connection, run: RunKey) -> Result<()> {
    db.execute("DELETE FROM collision WHERE run = ?", [run.0])?;
    author::attribute(db, run)?;
    let spans = spans(db, run)?;
    met_over_rows(db, run, &spans)?;
    swept_over(db, run)?;
    truncated(db, run, &spans)?;
    escaped(db, run, &spans)?;
    named(db, run, &spans)
}

/// When the tests and fixtures of a run were.
pub fn spans(db: &Connection, run: RunKey) -> Result<Spans> {
    let mut tests =
        db.prepare("SELECT number, began, ended, outcome IN ('failed', 'error', 'crashed') FROM test WHERE run = ?")?;
    let rows = tests.query_map([run.0], |row| {
        let failed: Option<bool> = row.get(3)?;
        Ok((row.get(0)?, Span { began: row.get(1)?, ended: row.get(2)?, failed: failed.unwrap_or(false) }))
    })?;
    rows.collect()
}

/// The columns that [`touch`] reads.
const COLUMNS: &str = "worker, test, op, at, statement";

fn touch(row: &Row<'_>) -> Result<Touch> {
    let op: String = row.get("op")?;
    Ok(Touch {
        worker: row.get("worker")?,
        test: row.get("test")?,
        // What the table's check lets in.
        op: Op::parse(&op).unwrap_or(Op::Update),
        at: row.get("at")?,
        statement: row.get("statement")?,
    })
}

/// The story of a row that all share.
pub fn history(db: &Connection, run: RunKey, kind: i64, key: &str) -> Result<Vec<Touch>> {
    let mut rows = db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM touch WHERE run = ?1 AND kind = ?2 AND key = ?3 AND (lane IS NULL OR lane < 0) ORDER BY past DESC, at, touch"
    ))?;
    rows.query_map(params![run.0, kind, key], touch)?.collect()
}

fn keep(db: &Connection, run: RunKey, kind: i64, key: Option<&str>, met: &Collision) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO collision (run, kind, key, pattern, worker_a, test_a, op_a, at_a, worker_b, test_b, op_b, at_b, statement_b, overlap_us, failed_test)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        run.0,
        kind,
        key,
        met.pattern.as_str(),
        met.a.and_then(|a| a.worker),
        met.a.and_then(|a| a.test),
        met.a.map(|a| a.op.as_str()),
        met.a.map(|a| a.at),
        met.b.worker,
        met.b.test,
        met.b.op.as_str(),
        met.b.at,
        met.b.statement,
        met.overlap,
        met.failed_test
    ])
    .map(drop)
}

fn met_over_rows(db: &Connection, run: RunKey, spans: &Spans) -> Result<()> {
    // In lanes of their own, workers do not meet.
    let is_shared = "SELECT EXISTS (SELECT 1 FROM touch WHERE run = ? AND (lane IS NULL OR lane < 0))";
    if !db.query_row(is_shared, [run.0], |row| row.get::<_, bool>(0))? {
        return Ok(());
    }
    let mut several = db.prepare(
        "SELECT kind, key FROM touch WHERE run = ? AND key IS NOT NULL GROUP BY kind, key HAVING min(worker) <> max(worker)",
    )?;
    let mut rows = several.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (kind, key): (i64, String) = (row.get(0)?, row.get(1)?);
        for met in of_row(&history(db, run, kind, &key)?, spans) {
            keep(db, run, kind, Some(&key), &met)?;
        }
    }
    Ok(())
}

/// Statements that went over rows of several other workers: they were aimed at nobody.
fn swept_over(db: &Connection, run: RunKey) -> Result<()> {
    db.execute(
        "UPDATE collision SET pattern = 'broad' WHERE run = ?1 AND pattern IN ('clobber', 'pollution') AND statement_b IN (
             SELECT statement_b FROM collision WHERE run = ?1 AND pattern IN ('clobber', 'pollution')
              GROUP BY statement_b HAVING count(DISTINCT worker_a) > 1)",
        [run.0],
    )
    .map(drop)
}

/// Tables that were emptied while rows of other workers were in them.
fn truncated(db: &Connection, run: RunKey, spans: &Spans) -> Result<()> {
    let mut emptied = db.prepare(&format!(
        "SELECT kind, {COLUMNS} FROM touch WHERE run = ? AND op = 'truncate' AND lane IS NULL AND worker IS NOT NULL"
    ))?;
    let mut victims = db.prepare(
        "SELECT key, worker, test, op, min(at) AS at, statement FROM touch made
          WHERE run = ?1 AND kind = ?2 AND lane IS NULL AND op = 'insert' AND worker IS NOT NULL AND worker <> ?3 AND at < ?4
            AND NOT EXISTS (SELECT 1 FROM touch gone WHERE gone.run = made.run AND gone.kind = made.kind AND gone.key = made.key
                             AND gone.past = made.past AND gone.op = 'delete' AND gone.lane IS NULL AND gone.at BETWEEN made.at AND ?4)
            AND NOT EXISTS (SELECT 1 FROM touch gone WHERE gone.run = made.run AND gone.kind = made.kind AND gone.key IS NULL
                             AND gone.op = 'truncate' AND gone.lane IS NULL AND gone.at > made.at AND gone.at < ?4)
          GROUP BY worker, test",
    )?;
    let mut rows = emptied.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (kind, b): (i64, Touch) = (row.get("kind")?, touch(row)?);
        let mut hit = victims.query(params![run.0, kind, b.worker, b.at])?;
        while let Some(row) = hit.next()? {
            let key: String = row.get("key")?;
            keep(db, run, kind, Some(&key), &Collision::of(Pattern::Broad, Some(touch(row)?), b, spans))?;
        }
    }
    Ok(())
}

/// Writes in other lanes' places, or in nobody's; the first of each test in each table.
fn escaped(db: &Connection, run: RunKey, spans: &Spans) -> Result<()> {
    let mut outside = db.prepare(
        "SELECT t.kind, t.key, t.lane, t.worker, t.test, t.op, min(t.at) AS at, t.statement FROM touch t JOIN worker w USING (worker)
          WHERE t.run = ? AND t.lane IS NOT NULL AND t.lane <> w.lane GROUP BY t.worker, t.test, t.kind, t.lane",
    )?;
    let mut rows = outside.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (kind, key, lane): (i64, Option<String>, i64) = (row.get("kind")?, row.get("key")?, row.get("lane")?);
        let b = touch(row)?;
        // Whose place it was, and in which test its worker was then.
        let host: Option<(i64, Option<i64>)> = db
            .query_row(
                "SELECT w.worker, (SELECT number FROM test e WHERE e.run = w.run AND e.worker_id = w.worker_id AND scope IS NULL
                                      AND began <= ?3 AND (ended IS NULL OR ended >= ?3) LIMIT 1)
                   FROM worker w WHERE run = ?1 AND lane = ?2 ORDER BY worker DESC LIMIT 1",
                params![run.0, lane, b.at],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let a = host.map(|(worker, test)| Touch { worker: Some(worker), test, ..b });
        let mut met = Collision::of(Pattern::Escape, a, b, spans);
        // It had the place, and did nothing there that is known.
        if lane < 0 {
            met.a = None;
        }
        keep(db, run, kind, key.as_deref(), &met)?;
    }
    Ok(())
}

/// Rows that the errors of failed tests name, where another worker had written them before.
fn named(db: &Connection, run: RunKey, spans: &Spans) -> Result<()> {
    let mut named =
        db.prepare("SELECT DISTINCT test, kind, key, pid, pattern, at FROM named WHERE run = ? ORDER BY at")?;
    let mut told = HashSet::new();
    let mut rows = named.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (test, at): (i64, i64) = (row.get("test")?, row.get("at")?);
        let Some(pattern) = Pattern::parse(&row.get::<_, String>("pattern")?) else { continue };
        // An error that a test expects is no failure.
        if !spans.get(&test).is_some_and(|span| span.failed) {
            continue;
        }
        let worker = worker_of(db, run, test)?;
        let found = match (row.get("kind")?, row.get::<_, Option<String>>("key")?, row.get::<_, Option<i64>>("pid")?) {
            (Some(kind), Some(key), _) => {
                let before: Vec<_> = history(db, run, kind, &key)?.into_iter().filter(|touch| touch.at <= at).collect();
                in_the_way(&before, worker).map(|touch| (kind, key, touch))
            }
            (_, _, Some(pid)) => {
                let ended = spans.get(&test).map_or(i64::MAX, Span::end);
                touched_by(db, run, pid, at, ended)?.filter(|(_, _, touch)| touch.worker != worker)
            }
            _ => None,
        };
        if let Some((kind, key, a)) = found
            && told.insert((test, a.test, kind, key.clone()))
        {
            // What it tried, and the server refused, is no touch.
            let op = if pattern == Pattern::DuplicateKey { Op::Insert } else { Op::Update };
            let b = Touch { worker, test: Some(test), op, at, statement: 0 };
            keep(db, run, kind, Some(&key), &Collision::of(pattern, Some(a), b, spans))?;
        }
    }
    Ok(())
}

/// Who of others wrote a row last, before this worker ran into it: the row that is there, and not
/// one that had its key before.
fn in_the_way(before: &[Touch], worker: Option<i64>) -> Option<Touch> {
    let made = before.iter().rposition(|touch| touch.op == Op::Insert).unwrap_or(0);
    before[made..].iter().rev().find(|touch| touch.worker.is_some() && touch.worker != worker).copied()
}

/// What a session of the server's wrote nearest to this time: it went on when another was ended,
/// and before the test of that one was over.
fn touched_by(db: &Connection, run: RunKey, pid: i64, at: i64, ended: i64) -> Result<Option<(i64, String, Touch)>> {
    db.query_row(
        &format!(
            "SELECT kind, key, {COLUMNS} FROM touch WHERE run = ?1 AND pid = ?2 AND key IS NOT NULL AND worker IS NOT NULL AND at <= ?4
              ORDER BY abs(at - ?3) LIMIT 1"
        ),
        params![run.0, pid, at, ended],
        |row| Ok((row.get("kind")?, row.get("key")?, touch(row)?)),
    )
    .optional()
}

fn worker_of(db: &Connection, run: RunKey, test: i64) -> Result<Option<i64>> {
    db.query_row(
        "SELECT w.worker FROM test e JOIN worker w ON w.run = e.run AND w.worker_id = e.worker_id
          WHERE e.run = ? AND e.number = ? ORDER BY w.worker DESC LIMIT 1",
        [run.0, test],
        |row| row.get(0),
    )
    .optional()
}

/// What the error of a failed test names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// How that makes a collision, where another worker wrote it.
    pub pattern: Pattern,
    /// A row: its table and key.
    pub row: Option<(String, String)>,
    /// A session of the server's.
    pub pid: Option<i32>,
}

/// Notes what the error of a failed test names.
pub fn name(db: &Connection, run: RunKey, test: i64, named: &Named, at: i64) -> Result<()> {
    let kind = named.row.as_ref().map(|(kind, _)| touches::kind_of(db, kind)).transpose()?;
    let key = named.row.as_ref().map(|(_, key)| key);
    db.execute(
        "INSERT INTO named (run, test, kind, key, pid, pattern, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![run.0, test, kind, key, named.pid, named.pattern.as_str(), at],
    )
    .map(drop)
}

/// How many collisions a run had, how many of them with a failed test, by pattern.
pub fn count(db: &Connection, run: RunKey) -> Result<Vec<(String, i64, i64)>> {
    let mut rows = db.prepare(
        "SELECT pattern, count(*), count(failed_test) FROM collision WHERE run = ? GROUP BY pattern ORDER BY 3 DESC, 2 DESC, 1",
    )?;
    rows.query_map([run.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

#[cfg(test)]
mod tests;
