//! The commands, one short function each. Each returns the code to exit with.

mod ask;
mod doctor;
pub mod lease;
mod report;
mod serve;
mod sweep;
pub mod template;

pub use ask::{collisions, leaks, who, why};
pub use doctor::doctor;
pub use report::report;
pub use serve::serve;
pub use sweep::sweep;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::CommandFactory;
use rusqlite::{Params, Statement};
use serde_json::{Value, json};

use crate::cli::{Cli, LedgerArgs, RunArgs};
use crate::error::{ExitCode, Stop, one_line};
use crate::ledger;
use crate::ledger::reading::{self, Found, Reading};
use crate::os::process::Ended;
use crate::page::{self, Report};
use crate::report::{Format, Rows, say, summary};
use crate::runner::{self, Shims};
use crate::settings::{Choices, FailOn, Runner, Settings, file};
use crate::supervisor;
use crate::watchdog;

fn settings(choices: Choices, config: Option<&Path>) -> anyhow::Result<Settings> {
    let cwd = std::env::current_dir().context("cannot tell the current directory")?;
    Settings::fold(choices, config, std::env::vars_os(), &cwd)
}

/// `isolane run`.
pub fn run(args: RunArgs) -> anyhow::Result<i32> {
    let (choices, config, command) = args.choices();
    let copies = choices.workers;
    let settings = settings(choices, config.as_deref())?;
    let reports = settings.reports.iter().map(Report::new).collect::<anyhow::Result<Vec<_>>>()?;
    let recognised = runner::recognise(&command).overridden(settings.runner);
    if let Some(socket) = settings.variables.get("ISOLANE_SOCKET").filter(|socket| Path::new(socket).exists()) {
        let root = Path::new(socket).ancestors().nth(2).unwrap_or(Path::new("/"));
        let shims = Shims { python: root.join("python"), exec: root.join("isolane-exec") };
        return join_outer_run(&settings, &command, &recognised, &shims);
    }
    if copies.is_some() && recognised.runner != Runner::Plain {
        say(&format!(
            "--workers is for plain commands; {} has an option of its own for that",
            recognised.runner.as_str()
        ));
    }
    let quiet = settings.quiet;
    let fail_on = settings.fail_on.clone();
    let (path, cwd) = (settings.ledger.clone(), settings.cwd.clone());
    let ledger = shown_path(&path, &cwd);
    let outcome = supervisor::run(settings, &command, &recognised)?;
    if !quiet {
        for line in summary(&outcome, &ledger) {
            say(&line);
        }
    }
    for report in &reports {
        // Whatever becomes of a report, the tests were as good as they were.
        match page::write(&path, &outcome.run_id, report) {
            Ok(()) if quiet => {}
            Ok(()) => say(&format!("report {}", shown_path(report.path(), &cwd))),
            Err(error) => say(&one_line(&error)),
        }
    }
    let left = !outcome.swept.stuck.is_empty() || !outcome.uncleaned.is_empty();
    let has_leaks = fail_on.contains(&FailOn::Leak) && outcome.findings.rows.left + outcome.findings.rows.open > 0;
    let has_collisions = fail_on.contains(&FailOn::Collision) && outcome.findings.collided() > 0;
    Ok(match outcome.ended {
        Ended::Exited(0) if left => ExitCode::NotRemoved as i32,
        Ended::Exited(0) if has_collisions => ExitCode::Collision as i32,
        Ended::Exited(0) if has_leaks => ExitCode::Leak as i32,
        ended => ended.shell_code(),
    })
}

/// A run within a run: the outer one gives the lanes, so the command is started as it is.
fn join_outer_run(
    settings: &Settings,
    command: &[std::ffi::OsString],
    recognised: &runner::Recognised,
    shims: &Shims,
) -> anyhow::Result<i32> {
    let program = supervisor::resolve(&command[0], settings)?;
    let mut inner = std::process::Command::new(program);
    inner.arg0(&command[0]).args(&command[1..]);
    // Within a test there is a lane already, and no more are given.
    if !settings.variables.contains_key("ISOLANE_IN_TEST") {
        inner.envs(recognised.equipment(command, &settings.variables, shims, &settings.cwd));
    }
    let error = inner.exec();
    bail!(Stop::with(ExitCode::NotExecutable, format!("cannot execute {}: {error}", command[0].display())))
}

/// The path as a person in `cwd` would type it.
fn shown_path(path: &Path, cwd: &Path) -> String {
    path.strip_prefix(cwd).unwrap_or(path).display().to_string()
}

/// `isolane runs`.
pub fn runs(ledger: LedgerArgs, format: Format) -> anyhow::Result<i32> {
    query("SELECT * FROM runs ORDER BY started_at", ledger, format)
}

/// `isolane query`.
pub fn query(sql: &str, ledger: LedgerArgs, format: Format) -> anyhow::Result<i32> {
    let (choices, config) = ledger.choices();
    let path = settings_of_ledger(choices, config.as_deref())?;
    let usage = |error: rusqlite::Error| Stop::usage(format!("cannot answer that: {error}"));
    let db = ledger::open_for_queries(&path).map_err(|e| Stop::usage(one_line(&e)))?;
    let mut statement = db.prepare(sql).map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::AuthorizationForStatementDenied) => {
            Stop::usage("the ledger is read-only here: a query may only SELECT")
        }
        _ => usage(error),
    })?;
    answer(&mut statement, []).map_err(usage)?.print(format)?;
    Ok(0)
}

/// All rows of the answer to a question.
fn answer(statement: &mut Statement<'_>, parameters: impl Params) -> rusqlite::Result<Rows> {
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let count = columns.len();
    let mut found = Rows { columns, rows: Vec::new() };
    let mut rows = statement.query(parameters)?;
    while let Some(row) = rows.next()? {
        found.rows.push((0..count).map(|column| row.get_ref(column).map(reading::value)).collect::<Result<_, _>>()?);
    }
    Ok(found)
}

/// The id of the run that is meant, in the ledger at `path`.
fn run_meant(reading: &Reading, path: &Path, which: Option<&str>) -> anyhow::Result<String> {
    match reading.find(which)? {
        Found::One(run) => Ok(run),
        Found::None => {
            let missing = which.map_or("it has no run yet".to_owned(), |which| format!("it has no run {which}"));
            Err(Stop::usage(format!("{}: {missing}; `isolane runs` lists them", path.display())))
        }
        Found::Many(runs) => {
            let runs = runs.join(", ");
            Err(Stop::usage(format!("more than one run begins with {}: {runs}", which.unwrap_or_default())))
        }
    }
}

/// Where the ledger is. A database address that cannot be used does not matter here.
fn settings_of_ledger(choices: Choices, config: Option<&Path>) -> anyhow::Result<PathBuf> {
    let cwd = std::env::current_dir().context("cannot tell the current directory")?;
    let only_ledger = std::env::vars_os().filter(|(name, _)| name == "ISOLANE_LEDGER");
    Ok(Settings::fold(choices, config, only_ledger, &cwd)?.ledger)
}

/// `isolane record`.
pub fn record(kind: &str, key: &str) -> anyhow::Result<i32> {
    let away = |why: String| Stop::with(ExitCode::Unavailable, why);
    let socket = std::env::var_os("ISOLANE_SOCKET")
        .ok_or_else(|| away("`isolane record` works inside of `isolane run` only; there is no run here".to_owned()))?;
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    // pytest's own name for the running test, with its phase behind it.
    let test = variable("PYTEST_CURRENT_TEST").and_then(|text| Some(text.rsplit_once(" (")?.0.to_owned()));
    let worker = variable("WORKER_ID").unwrap_or_default();
    let body = json!({"worker": worker, "test": test, "kind": kind, "key": key}).to_string();
    let mut stream =
        std::os::unix::net::UnixStream::connect(socket).map_err(|e| away(format!("the run does not answer: {e}")))?;
    write!(
        stream,
        "POST /v1/records HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let answer = std::io::read_to_string(stream)?;
    if answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
        return Ok(0);
    }
    let problem: Value =
        serde_json::from_str(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)).unwrap_or_default();
    bail!(Stop::usage(format!("the record was not taken: {}", problem["detail"].as_str().unwrap_or("no reason given"))))
}

/// `isolane init`.
pub fn init(force: bool) -> anyhow::Result<i32> {
    let text = include_str!("settings/init.toml").replace("#: ", "# ");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(!force).create(force).truncate(force);
    match options.open(file::NAME).and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => say(&format!("wrote {}; every line of it is optional", file::NAME)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!(Stop::usage(format!("{} is there already; --force replaces it", file::NAME)))
        }
        Err(error) => bail!(Stop::not_started(format!("cannot write {}: {error}", file::NAME))),
    }
    Ok(0)
}

/// `isolane watchdog`, which `isolane run` starts.
pub fn watchdog(ledger: &Path, lock: &Path, run: &str) -> anyhow::Result<i32> {
    let run = crate::name::RunId::parse(run).ok_or_else(|| Stop::usage("`isolane run` starts this by itself"))?;
    watchdog::guard(ledger, lock, run)?;
    Ok(0)
}

/// `isolane completions`.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<i32> {
    clap_complete::generate(shell, &mut Cli::command(), "isolane", &mut std::io::stdout());
    Ok(0)
}
