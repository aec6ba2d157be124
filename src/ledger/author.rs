//! Whose a touch is: which worker had a lane at a time, and in which test or fixture it was.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::RunKey;
use crate::clock::Timestamp;
use crate::name::Lane;
use crate::touch::{Statement, Writer};

/// How far the clocks of a shim and of isolane, which are the same machine's, may seem to be
/// apart: what it takes to tell of a test. In microseconds.
const TELLING: i64 = 200;

/// Who wrote, as the ledger knows it.
#[derive(Debug)]
pub struct Author {
    /// Of `worker`.
    pub worker: Option<i64>,
    /// Of `test`.
    pub test: Option<i64>,
    /// In words, where it was nobody of the run.
    pub stranger: Option<String>,
    /// Whether a prefix in the row tells it, and not the session.
    pub by_prefix: bool,
}

/// Attributes touches again, now that all tests were told of: a busy machine may bring a
/// touch before the beginning or the end of its test.
pub fn attribute(db: &Connection, run: RunKey) -> Result<()> {
    let mut spans: HashMap<i64, (i64, i64)> = HashMap::new();
    // When fixtures were at work, by worker, beside their number.
    let mut work: HashMap<String, Vec<(i64, i64, i64)>> = HashMap::new();
    let mut tests = db
        .prepare("SELECT number, worker_id, scope IS NOT NULL, began, ended, ready, leaving FROM test WHERE run = ?")?;
    let mut rows = tests.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (number, began): (i64, i64) = (row.get(0)?, row.get(3)?);
        let time = |column| row.get::<_, Option<i64>>(column);
        let ended = time(4)?.unwrap_or(i64::MAX);
        if row.get(2)? {
            let of_worker = work.entry(row.get(1)?).or_default();
            let leaving = time(6)?;
            of_worker.push((began, time(5)?.unwrap_or(leaving.unwrap_or(ended)), number));
            of_worker.extend(leaving.map(|leaving| (leaving, ended, number)));
        } else {
            spans.insert(number, (began, ended));
        }
    }
    let mut doubtful = Vec::new();
    let mut touches = db.prepare(
        "SELECT touch, test, at, uncertainty, worker_id FROM touch t JOIN worker w USING (worker) WHERE t.run = ? AND worker IS NOT NULL",
    )?;
    let mut rows = touches.query([run.0])?;
    while let Some(row) = rows.next()? {
        let (touch, test, at): (i64, Option<i64>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let worker = row.get_ref(4)?.as_str()?;
        let within = |(began, ended, _): &&(i64, i64, i64)| *began <= at && at <= *ended;
        let is_sure = match work.get(worker).and_then(|work| work.iter().find(within)) {
            Some(_) => false,
            None => test.and_then(|test| spans.get(&test)).is_some_and(|(began, ended)| *began <= at && at <= *ended),
        };
        if !is_sure {
            doubtful.push((touch, test, at, row.get::<_, i64>(3)?, worker.to_owned()));
        }
    }
    let mut change = db.prepare("UPDATE touch SET test = ? WHERE touch = ?")?;
    for (touch, was, at, uncertainty, worker) in doubtful {
        let is = test_at(db, run, &worker, at, uncertainty + TELLING)?;
        if is != was {
            change.execute(params![is, touch])?;
        }
    }
    Ok(())
}

/// Who wrote a statement, as far as tests were told of by now.
pub fn author(db: &Connection, run: RunKey, statement: &Statement, uncertainty: i64) -> Result<Author> {
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
    // Here and below nothing is sorted by SQLite, which makes a table for that each time.
    let mut those = db.prepare_cached(
        "SELECT worker, worker_id, started_at <= ?3 FROM worker WHERE run = ?1 AND lane = ?2 ORDER BY worker DESC",
    )?;
    let mut rows = those.query(params![run.0, lane.0, by])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let worker = (row.get(0)?, row.get(1)?);
        if row.get(2)? {
            return Ok(Some(worker));
        }
        last.get_or_insert(worker);
    }
    Ok(last)
}

/// The test or fixture that a worker was in at a time. What comes after a test's end and
/// before another begins is that test's still, and late.
fn test_at(db: &Connection, run: RunKey, worker: &str, at: i64, tolerance: i64) -> Result<Option<i64>> {
    // Left to itself, SQLite looks through all tests of the run.
    let mut fixtures = db.prepare_cached(
        "SELECT number, max(began, coalesce(leaving, 0)) FROM test INDEXED BY fixture_of_worker
          WHERE run = ?1 AND worker_id = ?2 AND scope IS NOT NULL AND began <= ?3
            AND (ended IS NULL OR ended >= ?3) AND (ready IS NULL OR ready >= ?3 OR leaving <= ?3)",
    )?;
    let mut rows = fixtures.query(params![run.0, worker, at])?;
    let mut latest: Option<(i64, i64)> = None;
    while let Some(row) = rows.next()? {
        let (number, since) = (row.get(0)?, row.get(1)?);
        if latest.is_none_or(|(_, before)| since > before) {
            latest = Some((number, since));
        }
    }
    let fixture = latest.map(|(number, _)| number);
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
