//! Touches in the ledger: whose they were, in which test, and what became of the rows.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::RunKey;
use crate::clock::Timestamp;
use crate::name::Lane;
use crate::touch::{Fate, Op, Seen, Statement, Writer};

/// How far the clocks of a shim and of isolane, which are the same machine's, may seem to be
/// apart: what it takes to tell of a test. In microseconds.
const TELLING: i64 = 200;

/// Who wrote, as the ledger knows it.
struct Author {
    /// Of `worker`.
    worker: Option<i64>,
    /// Of `test`.
    test: Option<i64>,
    stranger: Option<String>,
    by_prefix: bool,
}

/// Enters what a server saw. Where a crash may have come between an earlier entering and the
/// server's forgetting, `again` looks for what is there already.
pub fn enter(db: &Connection, run: RunKey, seen: &Seen, again: bool) -> Result<()> {
    let mut kinds = HashMap::new();
    let mut last: Option<(i64, (i64, i32, i64, Op))> = None;
    let mut insert = db.prepare_cached(
        "INSERT INTO touch (run, worker, stranger, test, lane, kind, key, op, at, statement, pid, by_prefix)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    let mut known = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM touch WHERE run = ?1 AND kind = ?2 AND key IS ?3 AND op = ?4 AND at = ?5 AND pid = ?6)",
    )?;
    for statement in &seen.statements {
        let kind = match kinds.get(&statement.kind) {
            Some(kind) => *kind,
            None => *kinds.entry(&statement.kind).or_insert(kind_of(db, &statement.kind)?),
        };
        let author = author(db, run, statement, seen.uncertainty)?;
        let lane = statement.ground.number();
        let part_of = (statement.at, statement.pid, kind, statement.op);
        let number = match last {
            // A long statement comes in parts.
            Some((number, whole)) if whole == part_of => number,
            _ => next_touch(db)?,
        };
        last = Some((number, part_of));
        if !statement.was.is_empty() {
            rename(db, run, kind, statement)?;
        }
        let op = statement.op.as_str();
        let truncated = (statement.op == Op::Truncate).then_some(None);
        for key in statement.keys.iter().map(Some).chain(truncated) {
            if again && known.query_row(params![run.0, kind, key, op, statement.at, statement.pid], |row| row.get(0))? {
                continue;
            }
            insert.execute(params![
                run.0,
                author.worker,
                author.stranger,
                author.test,
                lane,
                kind,
                key,
                op,
                statement.at,
                number,
                statement.pid,
                author.by_prefix
            ])?;
        }
        match statement.op {
            Op::Delete => {
                let mut gone = db.prepare_cached(
                    "UPDATE touch SET state = 'gone' WHERE run = ?1 AND kind = ?2 AND key = ?3 AND lane IS ?4 AND op = 'insert' AND state IS NULL",
                )?;
                for key in &statement.keys {
                    gone.execute(params![run.0, kind, key, lane])?;
                }
            }
            Op::Truncate => {
                db.execute(
                    "UPDATE touch SET state = 'gone' WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND op = 'insert' AND state IS NULL",
                    params![run.0, kind, lane],
                )?;
            }
            Op::Insert | Op::Update => {}
        }
    }
    Ok(())
}

/// The number that the next touch gets, and with it its statement.
fn next_touch(db: &Connection) -> Result<i64> {
    db.prepare_cached("SELECT coalesce(max(touch), 0) + 1 FROM touch")?.query_row([], |row| row.get(0))
}

/// The number of a kind of rows.
pub fn kind_of(db: &Connection, name: &str) -> Result<i64> {
    db.prepare_cached("INSERT INTO kind (name) VALUES (?) ON CONFLICT DO NOTHING")?.execute([name])?;
    db.prepare_cached("SELECT kind FROM kind WHERE name = ?")?.query_row([name], |row| row.get(0))
}

/// An update that changed keys: the story of a row goes on under its new one.
fn rename(db: &Connection, run: RunKey, kind: i64, statement: &Statement) -> Result<()> {
    let lane = statement.ground.number();
    let mut rename =
        db.prepare_cached("UPDATE touch SET key = ?5 WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND key = ?4")?;
    let changed: Vec<_> = statement.was.iter().zip(&statement.keys).filter(|(was, is)| was != is).collect();
    // By way of names that no row has, because keys may change places.
    for (was, is) in &changed {
        rename.execute(params![run.0, kind, lane, was, format!("\u{1}{is}")])?;
    }
    for (_, is) in &changed {
        rename.execute(params![run.0, kind, lane, format!("\u{1}{is}"), is])?;
    }
    Ok(())
}

fn author(db: &Connection, run: RunKey, statement: &Statement, uncertainty: i64) -> Result<Author> {
    let (lane, by_prefix) = match &statement.writer {
        Writer::Lane(lane) => (*lane, false),
        Writer::OnBehalfOf(lane) => (*lane, true),
        Writer::Stranger(who) => {
            return Ok(Author { worker: None, test: None, stranger: Some(who.clone()), by_prefix: false });
        }
    };
    let Some((worker, name)) = worker_in(db, run, lane, statement.at)? else {
        let stranger = Some(format!("lane {lane}"));
        return Ok(Author { worker: None, test: None, stranger, by_prefix });
    };
    let test = test_at(db, run, &name, statement.at, uncertainty + TELLING)?;
    Ok(Author { worker: Some(worker), test, stranger: None, by_prefix })
}

/// The worker that had a lane at a time.
fn worker_in(db: &Connection, run: RunKey, lane: Lane, at: i64) -> Result<Option<(i64, String)>> {
    // To the millisecond, as workers' times are kept, and the next one.
    let by = Timestamp(u64::try_from(at + 1000).unwrap_or(0)).to_string();
    db.prepare_cached(
        "SELECT worker, worker_id FROM worker WHERE run = ?1 AND lane = ?2 ORDER BY started_at <= ?3 DESC, worker DESC LIMIT 1",
    )?
    .query_row(params![run.0, lane.0, by], |row| Ok((row.get(0)?, row.get(1)?)))
    .optional()
}

/// The test or fixture that a worker was in at a time. What comes after a test's end and
/// before another begins is that test's still, and late.
fn test_at(db: &Connection, run: RunKey, worker: &str, at: i64, tolerance: i64) -> Result<Option<i64>> {
    let fixture = db
        .prepare_cached(
            "SELECT number FROM test WHERE run = ?1 AND worker_id = ?2 AND scope IS NOT NULL AND began <= ?3
                AND (ended IS NULL OR ended >= ?3) AND (ready IS NULL OR ready >= ?3 OR leaving <= ?3)
              ORDER BY max(began, coalesce(leaving, 0)) DESC LIMIT 1",
        )?
        .query_row(params![run.0, worker, at], |row| row.get(0))
        .optional()?;
    if fixture.is_some() {
        return Ok(fixture);
    }
    let last: Option<(i64, Option<i64>)> = db
        .prepare_cached(
            "SELECT number, ended FROM test WHERE run = ?1 AND worker_id = ?2 AND scope IS NULL AND began <= ?3
              ORDER BY began DESC LIMIT 1",
        )?
        .query_row(params![run.0, worker, at], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((number, ended)) = last
        && ended.is_none_or(|ended| at <= ended)
    {
        return Ok(Some(number));
    }
    let next: Option<(i64, i64)> = db
        .prepare_cached(
            "SELECT number, began FROM test WHERE run = ?1 AND worker_id = ?2 AND scope IS NULL AND began > ?3
              ORDER BY began LIMIT 1",
        )?
        .query_row(params![run.0, worker, at], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let to_last = last.and_then(|(_, ended)| ended).map(|ended| at - ended);
    Ok(match next {
        Some((number, began)) if began - at <= tolerance && to_last.is_none_or(|past| began - at < past) => {
            Some(number)
        }
        _ => last.map(|(number, _)| number),
    })
}

/// Writes down what became of the rows that the run had made among the user's own: all were
/// removed but these. Where that is not known any more, those that were left alone stay so.
pub fn removed(db: &Connection, run: RunKey, left: &[Fate], is_known: bool) -> Result<()> {
    let of_run = "run = ?1 AND lane IS NULL AND op = 'insert' AND worker IS NOT NULL";
    let again = if is_known { "state IN ('stuck', 'kept')" } else { "state = 'stuck'" };
    db.execute(&format!("UPDATE touch SET state = NULL, note = NULL WHERE {of_run} AND {again}"), [run.0])?;
    let mut stays = db.prepare_cached(
        "UPDATE touch SET state = ?4, note = ?5 WHERE run = ?1 AND kind = ?2 AND key = ?3 AND lane IS NULL AND op = 'insert' AND state IS NULL",
    )?;
    for fate in left {
        let state = if fate.stays { "kept" } else { "stuck" };
        stays.execute(params![run.0, kind_of(db, &fate.kind)?, fate.key, state, fate.why])?;
    }
    db.execute(&format!("UPDATE touch SET state = 'removed' WHERE {of_run} AND state IS NULL"), [run.0]).map(drop)
}

/// Writes down that the rows stay on the user's wish.
pub fn kept(db: &Connection, run: RunKey) -> Result<()> {
    db.execute(
        "UPDATE touch SET state = 'kept' WHERE run = ? AND lane IS NULL AND op = 'insert' AND worker IS NOT NULL AND state IS NULL",
        [run.0],
    )
    .map(drop)
}

/// How many rows workers made, and how many of them tests left behind, in how many tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Touches of all kinds.
    pub touches: i64,
    /// Rows made.
    pub made: i64,
    /// Rows left.
    pub left: i64,
    /// Tests that left any.
    pub tests: i64,
}

/// Counts the touches of a run.
pub fn count(db: &Connection, run: RunKey) -> Result<Count> {
    let leak = "op = 'insert' AND state IS NOT 'gone' AND test IS NOT NULL AND worker IS NOT NULL";
    db.query_row(
        &format!(
            "SELECT count(*), count(*) FILTER (WHERE op = 'insert' AND worker IS NOT NULL), count(*) FILTER (WHERE {leak}),
                    count(DISTINCT iif({leak}, test, NULL)) FROM touch WHERE run = ?"
        ),
        [run.0],
        |row| Ok(Count { touches: row.get(0)?, made: row.get(1)?, left: row.get(2)?, tests: row.get(3)? }),
    )
}
