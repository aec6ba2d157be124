//! A run in a file: a page for people, JSON for programs, JUnit for CI. All of it is read
//! from the ledger and written a row at a time.

mod data;
mod html;
mod json;
mod junit;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::error::{Stop, one_line};
use crate::ledger::reading::{Question, Reading};

/// Colours, letters and controls of everything that isolane shows in a browser.
pub const TONE: &str = include_str!("page/web/tone.css");

/// What a file becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Xml,
}

/// A file to be written.
#[derive(Clone, Debug)]
pub struct Report {
    path: PathBuf,
    form: Form,
}

impl Report {
    /// A file whose ending says what it becomes; another ending is a usage error.
    pub fn new(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let form = match ending.as_deref() {
            Some("html" | "htm") => Form::Html,
            Some("json") => Form::Json,
            Some("xml") => Form::Xml,
            _ => {
                let path = path.display();
                return Err(Stop::usage(format!("a report is called .html, .json or .xml (JUnit), and not {path}")));
            }
        };
        Ok(Self { path, form })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A run that is being read, and its own row.
#[derive(Debug)]
struct Story<'a> {
    reading: Reading,
    run_id: &'a str,
    run: Value,
}

impl Story<'_> {
    fn each(
        &self,
        question: Question,
        most: u32,
        visit: impl FnMut(&[&str], Vec<Value>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.reading.each(question, self.run_id, most, visit)
    }

    fn one(&self, question: Question) -> anyhow::Result<Value> {
        self.reading.one(question, self.run_id)
    }
}

/// Writes the run to the file; folders that it needs are made.
pub fn write(ledger: &Path, run_id: &str, report: &Report) -> anyhow::Result<()> {
    let path = report.path.display();
    fill(ledger, run_id, report)
        .map_err(|error| Stop::not_started(format!("cannot write the report {path}: {}", one_line(&error))))
}

fn fill(ledger: &Path, run_id: &str, report: &Report) -> anyhow::Result<()> {
    // Before the file: where there is nothing to tell, an older report stays as it was.
    let reading = Reading::open(ledger).with_context(|| format!("the ledger {}", ledger.display()))?;
    let run = reading.one(Question::RUN, run_id)?;
    ensure!(!run.is_null(), "the ledger {} does not know the run {run_id}", ledger.display());
    let story = Story { reading, run_id, run };
    if let Some(folder) = report.path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = BufWriter::with_capacity(1 << 16, File::create(&report.path)?);
    match report.form {
        Form::Html => html::write(&story, &mut file)?,
        Form::Json => json::write(&story, &mut file)?,
        Form::Xml => junit::write(&story, &mut file)?,
    }
    Ok(file.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_decides() {
        for (name, form) in
            [("a.html", Form::Html), ("a.HTM", Form::Html), ("b.json", Form::Json), ("c.x.xml", Form::Xml)]
        {
            assert_eq!(Report::new(name).expect(name).form, form);
        }
        for name in ["a", "a.pdf", ".html", "html", "a.html.gz"] {
            let error = Report::new(name).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
