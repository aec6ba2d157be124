//! The story of a failed test's rows, in a few lines: who made a row and who came, when, and
//! the command that runs the two tests again.

use rusqlite::{Connection, Result};

use crate::clock::Timestamp;
use crate::collision::Pattern;
use crate::ledger::RunKey;
use crate::ledger::row::{self, Known, Told};
use crate::runner;
use crate::touch::Op;

/// How many rows are told of.
const ROWS: usize = 4;

/// A failed test whose rows are told of.
#[derive(Clone, Debug)]
pub struct Failed<'a> {
    /// The run.
    pub run: RunKey,
    /// Its number.
    pub number: i64,
    /// Its id.
    pub id: &'a str,
    /// Its worker.
    pub worker: &'a str,
    /// When it failed, in microseconds.
    pub at: i64,
}

/// The lines; none where nothing is known that would help.
pub fn tell(db: &Connection, failed: &Failed<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut other = None;
    for known in row::of_failure(db, failed.run, failed.number, ROWS + 1)? {
        if lines.len() >= 3 * ROWS {
            lines.push("… and more: `isolane collisions`".to_owned());
            break;
        }
        let story = row::story(db, failed.run, &known)?;
        lines.extend(of_row(&known, &story, failed, &mut other));
    }
    for (kind, told) in row::emptied(db, failed.run, failed.number)? {
        lines.push(format!("{kind}, in which this test had made rows"));
        lines.push(format!("  {}", line(&told, failed, None)));
        other = other.or(told.test.filter(|_| told.worker.as_deref() != Some(failed.worker)));
    }
    if let Some(other) = other
        && let Some(again) = rerun(db, failed.run, &[failed.id, &other])?
    {
        lines.push(format!("both again, side by side: {again}"));
    }
    Ok(lines)
}

/// Who made it, and who came.
fn of_row(known: &Known, story: &[Told], failed: &Failed<'_>, other: &mut Option<String>) -> Vec<String> {
    let is_mine = |told: &Told| told.number == Some(failed.number);
    let mut shown: Vec<&Told> = Vec::new();
    // What happened last to the row that there was; of its maker, the last one.
    shown.extend(story.iter().rev().find(|told| told.op == Op::Insert));
    let last_of_others = story.iter().rev().find(|told| !is_mine(told) && told.op != Op::Insert);
    let last_of_mine = story.iter().rev().find(|told| is_mine(told) && told.op != Op::Insert);
    shown.extend(last_of_others);
    if shown.iter().all(|told| !is_mine(told)) {
        shown.extend(last_of_mine);
    }
    shown.sort_by_key(|told| told.at);
    if shown.is_empty() || (shown.iter().all(|told| is_mine(told)) && known.named.is_none()) {
        return Vec::new();
    }
    *other = other.take().or_else(|| {
        let foreign = shown.iter().rev().find(|told| !is_mine(told) && told.worker.as_deref() != Some(failed.worker));
        foreign.and_then(|told| told.test.clone())
    });
    let mut lines = vec![format!("{} {}", known.name, known.key)];
    let mut before = None;
    for told in &shown {
        lines.push(format!("  {}", line(told, failed, before)));
        before = Some(told.at);
    }
    if let Some(pattern) = known.named.as_deref().and_then(Pattern::parse) {
        let after = before.map(|at| format!(" {} later", length(failed.at - at))).unwrap_or_default();
        let what = match pattern {
            Pattern::DuplicateKey => "this test could not write the same key",
            Pattern::Deadlock => "this test was ended by the server to break a deadlock",
            _ => "this test ran into it",
        };
        let how = shown.last().filter(|told| !is_mine(told)).map(|told| standing(told, failed.at)).unwrap_or_default();
        lines.push(format!("  {what}{after}{how}"));
    }
    lines
}

fn line(told: &Told, failed: &Failed<'_>, before: Option<i64>) -> String {
    let when = match before {
        None => format!("at {}", &Timestamp(u64::try_from(told.at).unwrap_or(0)).to_string()[11..23]),
        Some(before) => format!("{} later", length(told.at - before)),
    };
    let who = if told.number == Some(failed.number) { "this test".to_owned() } else { who(told, failed.worker) };
    let past = told.op.past();
    let standing = if told.number == Some(failed.number) || before.is_none() || told.op == Op::Insert {
        String::new()
    } else {
        ", while this test was running".to_owned()
    };
    format!("{past} by {who} {when}{standing}")
}

/// Whether a test was over when something happened.
fn standing(told: &Told, at: i64) -> String {
    match (told.ended, &told.test) {
        (Some(ended), Some(_)) if ended < at => {
            format!(", {} after that one had ended and left the row", length(at - ended))
        }
        (None | Some(_), Some(_)) => ", while that one was running".to_owned(),
        (_, None) => String::new(),
    }
}

/// Who it was, in words.
fn who(told: &Told, own: &str) -> String {
    let worker = told.worker.as_deref().unwrap_or_default();
    match (&told.test, &told.stranger) {
        (Some(test), _) if worker == own => format!("{test} ({worker}, the same worker)"),
        (Some(test), _) => format!("{test} ({worker})"),
        (None, Some(stranger)) => format!("{stranger}, who is no worker of this run"),
        (None, None) => format!("{worker}, outside of any test"),
    }
}

/// A time in the unit that reads best.
fn length(micros: i64) -> String {
    match micros.max(0) {
        less @ 0..1_000 => format!("{less} µs"),
        less @ 1_000..1_000_000 => format!("{} ms", less / 1_000),
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        more => format!("{:.1} s", more as f64 / 1e6),
    }
}

/// The command that runs these tests again, each in a worker of its own.
fn rerun(db: &Connection, run: RunKey, tests: &[&str]) -> Result<Option<String>> {
    // A fixture cannot be run.
    if tests.iter().any(|test| test.contains(" fixture ")) || tests.is_empty() {
        return Ok(None);
    }
    let Some((command, is_shared)) = row::command(db, run)? else { return Ok(None) };
    let words: Vec<std::ffi::OsString> =
        shlex::split(&command).unwrap_or_default().into_iter().map(Into::into).collect();
    if words.is_empty() {
        return Ok(None);
    }
    let Some(words) = runner::recognise(&words).rerun(&words, tests) else { return Ok(None) };
    let Ok(line) = shlex::try_join(words.iter().map(String::as_str)) else { return Ok(None) };
    let shared = if is_shared { " --isolation shared" } else { "" };
    Ok(Some(format!("isolane run{shared} -- {line}")))
}
