//! Touches in the ledger: whose they were, in which test, and what became of the rows.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::RunKey;
use super::author::author;
use super::leftover::MADE_AGAIN;
use crate::touch::{Fate, Op, Seen, Statement};

/// What all parts of a statement have in common: when, by which session, in which table, what.
type Whole = (i64, i32, i64, Op);

/// Enters what a server saw. Where a crash may have come between an earlier entering and the
/// server's forgetting, `again` looks for what is there already.
pub fn enter(db: &Connection, run: RunKey, seen: &Seen, again: bool) -> Result<()> {
    let mut kinds = HashMap::new();
    let mut last = last_statement(db, run)?;
    let mut insert = db.prepare_cached(
        "INSERT INTO touch (run, worker, stranger, test, lane, kind, key, op, at, statement, pid, by_prefix, uncertainty)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
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
                author.by_prefix,
                seen.uncertainty
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

/// The statement that was entered last, of which more may come, and what tells it from others.
fn last_statement(db: &Connection, run: RunKey) -> Result<Option<(i64, Whole)>> {
    db.prepare_cached(
        "SELECT statement, at, pid, kind, op FROM touch WHERE touch = (SELECT max(touch) FROM touch) AND run = ?",
    )?
    .query_row([run.0], |row| {
        let op = Op::parse(row.get_ref(4)?.as_str()?).unwrap_or(Op::Update);
        Ok((row.get(0)?, (row.get(1)?, row.get(2)?, row.get(3)?, op)))
    })
    .optional()
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
    let changed: Vec<_> = statement.was.iter().zip(&statement.keys).filter(|(was, is)| was != is).collect();
    // The row that is there now, and not those that had its key and are gone. By way of names
    // that no row has, because keys may change places.
    let mut leave = db.prepare_cached(
        "UPDATE touch SET key = ?5 WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND key = ?4 AND past = 0 AND touch > (
             SELECT coalesce(max(touch), 0) FROM touch WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND key = ?4 AND past = 0 AND op = 'delete')",
    )?;
    for (was, is) in &changed {
        leave.execute(params![run.0, kind, lane, was, format!("\u{1}{is}")])?;
    }
    let mut past =
        db.prepare_cached("UPDATE touch SET past = past + 1 WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND key = ?4")?;
    let mut arrive =
        db.prepare_cached("UPDATE touch SET key = ?5 WHERE run = ?1 AND kind = ?2 AND lane IS ?3 AND key = ?4")?;
    for (_, is) in &changed {
        past.execute(params![run.0, kind, lane, is])?;
        arrive.execute(params![run.0, kind, lane, format!("\u{1}{is}"), is])?;
    }
    Ok(())
}

/// Writes down what became of the rows that the run had made among the user's own: all were
/// removed but these. Where that is not known any more, those that were left alone stay so.
pub fn removed(db: &Connection, run: RunKey, left: &[Fate], is_known: bool) -> Result<()> {
    let of_run = "run = ?1 AND coalesce(lane, -1) < 0 AND op = 'insert' AND worker IS NOT NULL";
    let again = if is_known { "state IN ('stuck', 'kept')" } else { "state = 'stuck'" };
    db.execute(&format!("UPDATE touch SET state = NULL, note = NULL WHERE {of_run} AND {again}"), [run.0])?;
    let mut stays = db.prepare_cached(
        "UPDATE touch SET state = ?4, note = ?5 WHERE run = ?1 AND kind = ?2 AND key = ?3 AND coalesce(lane, -1) < 0 AND op = 'insert' AND state IS NULL",
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
        "UPDATE touch SET state = 'kept' WHERE run = ? AND coalesce(lane, -1) < 0 AND op = 'insert' AND worker IS NOT NULL AND state IS NULL",
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
    /// Transactions and the like that tests left open.
    pub open: i64,
}

/// Counts the touches of a run.
pub fn count(db: &Connection, run: RunKey) -> Result<Count> {
    let leak = "op = 'insert' AND state IS NOT 'gone' AND test IS NOT NULL AND worker IS NOT NULL";
    db.query_row(
        &format!(
            "SELECT count(*), count(*) FILTER (WHERE op = 'insert' AND worker IS NOT NULL), count(*) FILTER (WHERE {leak}),
                    count(DISTINCT iif({leak}, test, NULL)), (SELECT count(*) FROM leftover WHERE run = ?1 AND kind <> ?2)
               FROM touch WHERE run = ?1"
        ),
        params![run.0, MADE_AGAIN],
        |row| {
            let (touches, made, left) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(Count { touches, made, left, tests: row.get(3)?, open: row.get(4)? })
        },
    )
}
