//! What a run says at its end: a few quiet lines when all is well.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use crate::error::visible;
use crate::ledger::finding::{Findings, Pair};
use crate::settings::file;
use crate::supervisor::Outcome;

/// The most lines that things gone wrong may take each.
const SHOWN: usize = 5;

/// Prints one line of isolane's own to stderr, whatever is in the names in it.
pub fn say(line: &str) {
    // A closed stderr is nobody's fault here.
    let _ = writeln!(std::io::stderr().lock(), "isolane: {}", visible(line));
}

/// The summary of a run; `ledger` is where to ask for more.
pub fn summary(outcome: &Outcome, ledger: &str) -> Vec<String> {
    let mut lines = vec![counts(outcome)];
    lines.extend(outcome.providers.iter().cloned());
    lines.extend(rows(outcome));
    lines.push(removed(outcome));
    if !outcome.tally.crashed.is_empty() {
        lines.push(format!("crashed: {}", outcome.tally.crashed.join(", ")));
    }
    lines.extend(cut(outcome.notices.clone()));
    lines.extend(outcome.without_cleaner.iter().map(|(kind, n)| {
        format!("{} of kind {kind} left alone: no [cleaner.{kind}] in {}", plural(*n, "record"), file::NAME)
    }));
    lines.extend(cut(outcome
        .uncleaned
        .iter()
        .map(|(name, why)| format!("not cleaned: record {name} ({why})"))
        .collect()));
    lines.extend(cut(outcome
        .swept
        .stuck
        .iter()
        .map(|(resource, why)| {
            format!("not removed: {} {} at {} ({why})", resource.kind.as_str(), resource.name, resource.provider)
        })
        .collect()));
    if !outcome.swept.stuck.is_empty() {
        lines.push(format!("what is left: `{}` removes it, and so does the next run", outcome.sweep_command));
    }
    lines.push(format!("run {}, ledger {ledger}", outcome.run_id));
    lines
}

/// What tests did to rows: how many they made and left, and who met over which.
fn rows(outcome: &Outcome) -> Vec<String> {
    let Findings { rows, collisions, worst } = &outcome.findings;
    if rows.touches == 0 && collisions.is_empty() {
        return Vec::new();
    }
    let met: Vec<_> = collisions.iter().map(|(pattern, n, _)| format!("{n} {pattern}")).collect();
    let met = if met.is_empty() {
        "no collision".to_owned()
    } else {
        let failed: i64 = collisions.iter().map(|(_, _, failed)| failed).sum();
        format!("collisions: {} ({failed} with a failed test)", met.join(", "))
    };
    let left = if rows.left == 0 {
        String::new()
    } else {
        format!(
            ", {} left by {} (`isolane leaks`)",
            rows.left,
            plural(usize::try_from(rows.tests).unwrap_or(0), "test")
        )
    };
    let mut lines = vec![format!("{} made{left}; {met}", plural(usize::try_from(rows.made).unwrap_or(0), "row"))];
    lines.extend(worst.iter().map(pair));
    if collisions.iter().map(|(_, n, _)| n).sum::<i64>() > 0 {
        lines.push("who met whom, over which row: `isolane collisions`; of one test: `isolane why TEST`".to_owned());
    }
    lines
}

/// One pair of tests that met.
fn pair(pair: &Pair) -> String {
    let side = |(worker, test): &(Option<String>, Option<String>)| {
        let test = test.as_deref().unwrap_or("outside of any test");
        worker.as_ref().map_or(test.to_owned(), |worker| format!("{test} ({worker})"))
    };
    let rows = match (pair.rows, &pair.key) {
        (1, Some(key)) => format!("{} {key}", pair.kind),
        (n, Some(key)) => format!("{n} rows of {}, such as {key}", pair.kind),
        (_, None) => pair.kind.clone(),
    };
    let overlap =
        if pair.overlap_ms > 0.0 { format!(", {:.0} ms side by side", pair.overlap_ms.ceil()) } else { String::new() };
    let failed = pair.failed.as_ref().map(|test| format!("; {test} failed")).unwrap_or_default();
    format!("{}: {rows} of {}, met by {}{overlap}{failed}", pair.pattern, side(&pair.a), side(&pair.b))
}

fn cut(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("… and {more} more; `isolane query` shows them"));
    }
    lines
}

fn counts(outcome: &Outcome) -> String {
    let tally = &outcome.tally;
    let workers = plural(tally.workers, "worker");
    if tally.tests == 0 {
        return workers;
    }
    // The good ones first, as runners say it.
    let order = ["passed", "failed", "error", "crashed"];
    let rank = |word: &str| order.iter().position(|known| *known == word).unwrap_or(order.len());
    let mut outcomes: Vec<_> = tally.outcomes.iter().collect();
    outcomes.sort_by_key(|(word, _)| (rank(word), word.as_str()));
    let outcomes: Vec<_> = outcomes.into_iter().map(|(word, n)| format!("{n} {word}")).collect();
    format!("{workers}, {}: {}", plural(tally.tests, outcome.test_word), outcomes.join(", "))
}

fn removed(outcome: &Outcome) -> String {
    let counted: BTreeMap<_, _> = outcome.removed.iter().filter(|(_, n)| **n > 0).collect();
    let mut things: Vec<_> = counted.into_iter().map(|(kind, n)| plural(*n, kind.as_str())).collect();
    if outcome.rows_removed > 0 {
        things.push(plural(usize::try_from(outcome.rows_removed).unwrap_or(usize::MAX), "row"));
    }
    let things = if things.is_empty() { "nothing".to_owned() } else { things.join(", ") };
    let left = match (outcome.kept, outcome.swept.stuck.len() + outcome.uncleaned.len()) {
        (0, 0) => "nothing is left".to_owned(),
        (0, stuck) => format!("{stuck} could not be removed"),
        (kept, 0) => {
            format!("{kept} kept as asked (`{}` removes them, and lists them without --apply)", outcome.sweep_command)
        }
        (kept, stuck) => format!("{kept} kept as asked, {stuck} could not be removed"),
    };
    let setup = if outcome.setup_time.is_zero() {
        String::new()
    } else {
        format!("setup took {:.2} s, ", outcome.setup_time.as_secs_f64())
    };
    format!("removed {things}; {left}; {setup}isolane itself took {:.2} s", outcome.own_time.as_secs_f64())
}

fn plural(n: usize, word: &str) -> String {
    match (n, word) {
        (1, _) => format!("1 {word}"),
        (n, "directory") => format!("{n} directories"),
        (n, "process") => format!("{n} processes"),
        (n, "test binary") => format!("{n} test binaries"),
        (n, _) => format!("{n} {word}s"),
    }
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// An array of objects.
    Json,
    /// Comma-separated values with a head (RFC 4180).
    Csv,
}

/// Rows of values under names.
#[derive(Debug, Default)]
pub struct Rows {
    /// The names.
    pub columns: Vec<String>,
    /// The values, one for each name.
    pub rows: Vec<Vec<serde_json::Value>>,
}

impl Rows {
    /// Writes them to stdout. A reader that goes away early (`| head`) is no error.
    pub fn print(self, format: Format) -> anyhow::Result<()> {
        let text = match format {
            Format::Table => self.table(),
            Format::Json => self.json()?,
            Format::Csv => self.csv()?,
        };
        print(&text)
    }

    fn table(self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if std::io::stdout().is_terminal() {
            table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
        }
        table.set_header(self.columns.iter().map(|name| visible(name)));
        for row in self.rows {
            table.add_row(row.iter().map(|value| visible(&plain(value))));
        }
        // Cells are padded on the right; nobody needs that at the end of a line.
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    fn json(self) -> anyhow::Result<String> {
        let objects: Vec<serde_json::Map<_, _>> =
            self.rows.into_iter().map(|row| self.columns.iter().cloned().zip(row).collect()).collect();
        Ok(serde_json::to_string_pretty(&objects)? + "\n")
    }

    fn csv(self) -> anyhow::Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.columns)?;
        for row in &self.rows {
            writer.write_record(row.iter().map(plain))?;
        }
        Ok(String::from_utf8(writer.into_inner()?)?)
    }
}

/// Writes to stdout. A reader that goes away early (`| head`) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
