//! What the ledger knows of rows: `who`, `collisions`, `leaks`, `why`.

use std::path::PathBuf;

use rusqlite::Params;
use serde_json::{Map, Value, json};

use super::{answer, run_meant, settings_of_ledger};
use crate::cli::{LedgerArgs, OfRunArgs, WhoArgs, WhyArgs};
use crate::error::{Stop, one_line, visible};
use crate::ledger;
use crate::ledger::reading::{Question, Reading};
use crate::ledger::row::{self, Tried};
use crate::name::Tag;
use crate::report::{Format, Rows, say};
use crate::story::{self, Failed};

/// `isolane collisions`.
pub fn collisions(args: OfRunArgs) -> anyhow::Result<i32> {
    of_run(Question::COLLISIONS, "collision", args)
}

/// `isolane leaks`.
pub fn leaks(args: OfRunArgs) -> anyhow::Result<i32> {
    of_run(Question::LEAKS, "leak", args)
}

fn of_run(question: Question, what: &str, args: OfRunArgs) -> anyhow::Result<i32> {
    let format = args.format.format;
    let (reading, run) = open(args.run.as_deref(), args.ledger)?;
    let mut found = Rows::default();
    reading.each(question, &run, u32::MAX, |columns, values| {
        if found.columns.is_empty() {
            found.columns = columns.iter().map(|&name| name.to_owned()).collect();
        }
        found.rows.push(values);
        Ok(())
    })?;
    if found.rows.is_empty() {
        say(&format!("no {what} in run {run}"));
        if format == Format::Table {
            return Ok(0);
        }
    }
    found.print(format)?;
    Ok(0)
}

/// The ledger, and the run that is meant.
fn open(run: Option<&str>, ledger: LedgerArgs) -> anyhow::Result<(Reading, String)> {
    let path = path(ledger)?;
    let reading = Reading::open_settled(&path).map_err(|e| Stop::usage(one_line(&e)))?;
    let run = run_meant(&reading, &path, run)?;
    Ok((reading, run))
}

fn path(ledger: LedgerArgs) -> anyhow::Result<PathBuf> {
    let (choices, config) = ledger.choices();
    settings_of_ledger(choices, config.as_deref())
}

/// `isolane who`.
pub fn who(args: WhoArgs) -> anyhow::Result<i32> {
    let db = ledger::open_for_queries(&path(args.ledger)?).map_err(|e| Stop::usage(one_line(&e)))?;
    let words: Vec<&str> = args.what.iter().map(String::as_str).collect();
    let mut found = Rows::default();
    if let [word] = words[..] {
        if let Some((tag, lane)) = prefix_in(word) {
            found = rows(&db, row::WORKER, (tag.as_str(), Some(lane)))?;
            let more = keyed(&db, None, &[word])?;
            if !more.rows.is_empty() {
                found = more;
            }
        } else {
            found = rows(&db, row::WORKER, (word, None::<u32>))?;
        }
    } else if let [kind, key @ ..] = &words[..] {
        found = keyed(&db, Some(kind), key)?;
    }
    if found.rows.is_empty() {
        let hint = if words.len() == 1 {
            "it takes a table and a key (orders 17), a value with a worker's prefix, or a worker (gw3)"
        } else {
            "no run of this ledger is known to have touched it"
        };
        say(&format!("nothing is known of {}: {hint}", words.join(" ")));
        if args.format.format == Format::Table {
            return Ok(0);
        }
    }
    found.print(args.format.format)?;
    Ok(0)
}

fn rows(db: &rusqlite::Connection, sql: &str, parameters: impl Params) -> anyhow::Result<Rows> {
    Ok(answer(&mut db.prepare(sql)?, parameters)?)
}

/// The touches of a row, and things that were registered under this name.
fn keyed(db: &rusqlite::Connection, kind: Option<&str>, key: &[&str]) -> anyhow::Result<Rows> {
    let mut found = Rows::default();
    let kinds = match kind {
        Some(name) => row::kinds(db, name)?,
        None => row::all_kinds(db)?,
    };
    for (number, _) in kinds {
        let Some(sample) = row::sample(db, number)? else { continue };
        for candidate in keys_like(&sample, key) {
            let more = rows(db, row::TOUCHES, (number, candidate))?;
            found.columns = more.columns;
            found.rows.extend(more.rows);
        }
    }
    let registered = rows(db, row::REGISTERED, (kind, key.join(" ")))?;
    if found.columns.is_empty() {
        found.columns = registered.columns;
    }
    found.rows.extend(registered.rows);
    Ok(found)
}

/// How `words` may stand in the ledger as a key of a table that has keys like `sample`: `17` or
/// `id=17`, as a number or as a text; or the key itself, in JSON.
fn keys_like(sample: &str, words: &[&str]) -> Vec<String> {
    let whole = words.join(" ");
    if whole.trim_start().starts_with('{') {
        let compact = serde_json::from_str::<Value>(&whole).map(|value| value.to_string());
        return compact.into_iter().chain([whole]).collect();
    }
    let columns: Vec<String> = serde_json::from_str::<Map<String, Value>>(sample)
        .map(|object| object.keys().cloned().collect())
        .unwrap_or_default();
    let named: Option<Vec<(&str, &str)>> =
        words.iter().map(|word| word.split_once('=').filter(|(name, _)| columns.iter().any(|c| c == name))).collect();
    let values: Vec<String> = match named {
        Some(pairs) if !pairs.is_empty() => {
            let value =
                |column: &String| pairs.iter().find(|(name, _)| name == column).map(|(_, value)| (*value).to_owned());
            match columns.iter().map(value).collect::<Option<_>>() {
                Some(values) => values,
                None => return Vec::new(),
            }
        }
        _ if columns.len() == 1 => vec![whole],
        _ if columns.len() == words.len() => words.iter().map(|&word| word.to_owned()).collect(),
        _ => return Vec::new(),
    };
    // Each value as JSON as it stands, and as a text.
    let mut candidates = vec![String::new()];
    for (column, value) in columns.iter().zip(&values) {
        let plain = serde_json::from_str::<Value>(value).is_ok().then(|| value.clone());
        let forms: Vec<String> = plain.into_iter().chain([Value::from(value.as_str()).to_string()]).collect();
        candidates = candidates
            .iter()
            .flat_map(|start| {
                let comma = if start.is_empty() { "" } else { "," };
                forms.iter().map(move |form| format!("{start}{comma}{}:{form}", Value::from(column.as_str())))
            })
            .collect();
    }
    candidates.into_iter().map(|inner| format!("{{{inner}}}")).collect()
}

/// The tag and lane of the first lane's prefix in a text.
fn prefix_in(text: &str) -> Option<(Tag, u32)> {
    let at = |start: usize| {
        let rest = text.get(start..)?.strip_prefix('i')?;
        let (tag, rest) = (rest.get(..12)?, rest.get(12..)?.strip_prefix('w')?);
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest[digits..].strip_prefix('x')?;
        Some((Tag::parse(tag)?, rest[..digits].parse().ok()?))
    };
    (0..text.len()).filter(|&start| text.is_char_boundary(start)).find_map(at)
}

/// `isolane why`.
pub fn why(args: WhyArgs) -> anyhow::Result<i32> {
    let WhyArgs { test: which, of: OfRunArgs { run, ledger, format } } = args;
    let (reading, run_id) = open(run.as_deref(), ledger)?;
    let run = row::run_key(reading.db(), &run_id)?;
    let tests = row::tried(reading.db(), run, which.as_deref())?;
    if tests.is_empty() {
        match which {
            Some(test) => anyhow::bail!(Stop::usage(format!(
                "run {run_id} has no test {test}; `isolane query \"select test_id from tests\"` lists them"
            ))),
            None => say(&format!("no test failed in run {run_id}")),
        }
    }
    let mut documents = Vec::new();
    for test in &tests {
        let Tried { number, id, worker, .. } = test;
        let at = test.ended.unwrap_or(i64::MAX);
        let failed = Failed { run, number: *number, id, worker, at };
        documents.push((test, story::tell(reading.db(), &failed)?));
    }
    match format.format {
        Format::Table => documents.iter().try_for_each(|(test, story)| tell(test, story))?,
        format => {
            let columns = ["test_id", "worker_id", "outcome", "message", "story"].map(str::to_owned).to_vec();
            let rows = documents.into_iter().map(|(test, story)| {
                vec![
                    json!(test.id),
                    json!(test.worker),
                    json!(test.outcome),
                    json!(test.message),
                    json!(story.join("\n")),
                ]
            });
            Rows { columns, rows: rows.collect() }.print(format)?;
        }
    }
    Ok(0)
}

fn tell(test: &Tried, story: &[String]) -> anyhow::Result<()> {
    let outcome = test.outcome.as_deref().unwrap_or("unfinished or unknown");
    let mut shown = visible(&format!("{} ({}): {outcome}", test.id, test.worker)) + "\n";
    for line in test.message.iter().flat_map(|message| message.lines()) {
        shown.push_str(&format!("    {}\n", visible(line)));
    }
    if story.is_empty() {
        shown.push_str("  no row is known that it shared with another worker's test, or that its error names\n");
    }
    for line in story {
        shown.push_str(&format!("  {}\n", visible(line)));
    }
    crate::report::print(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_however_they_are_written() {
        let id = r#"{"id":1}"#;
        assert_eq!(keys_like(id, &["17"]), [r#"{"id":17}"#, r#"{"id":"17"}"#]);
        assert_eq!(keys_like(id, &["id=17"]), keys_like(id, &["17"]));
        assert_eq!(keys_like(r#"{"email":"x"}"#, &["a=b"]), [r#"{"email":"a=b"}"#]);
        assert!(keys_like(r#"{"a":1,"b":"x"}"#, &["b=y", "a=2"]).contains(&r#"{"a":2,"b":"y"}"#.to_owned()));
        assert!(keys_like(r#"{"a":1,"b":"x"}"#, &["2"]).is_empty());
        assert_eq!(keys_like(id, &[r#"{"id": 17}"#])[0], r#"{"id":17}"#);
    }

    #[test]
    fn a_prefix_is_found_anywhere_in_a_value() {
        let (tag, lane) = prefix_in("i3f9c2a7b10dew3x-alice@example.com").expect("a prefix");
        assert_eq!((tag.as_str(), lane), ("3f9c2a7b10de", 3));
        assert!(prefix_in("alice+i3f9c2a7b10dew12x@example.com").is_some());
        assert!(prefix_in("i3f9c2a7b10zew3x").is_none() && prefix_in("iéééé").is_none());
    }
}
