//! The command line, as clap reads it, and nothing else.

pub mod lease;
pub mod serve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::clock::duration;
use crate::report::Format;
use crate::settings::env_template::EnvTemplate;
use crate::settings::{Choices, FailOn, Fresh, Inputs, Isolation, Keep, Runner, Setup, Track};

/// Runs a parallel test command so that every worker has a database, a prefix and a
/// directory of its own, and removes exactly what the run made.
#[derive(Debug, Parser)]
#[command(name = "isolane", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments; where they are no good, ends the process as clap does.
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            if error.kind() == clap::error::ErrorKind::InvalidSubcommand {
                let _ = error.print();
                let words: Vec<_> =
                    std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
                eprintln!("\nTo run a command in lanes: isolane run -- {}", words.join(" "));
                std::process::exit(error.exit_code());
            }
            error.exit()
        })
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments are documented where they are declared")]
pub enum Command {
    /// Run a test command, each of its workers in a lane of its own
    Run(Box<RunArgs>),
    /// List runs
    Runs {
        #[command(flatten)]
        ledger: LedgerArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Ask the ledger, in SQL (read-only): views runs, workers, tests, resources, records, touches, collisions, leaks, leases
    Query {
        /// The question, such as "select worker_id, count(*) from tests group by 1"
        sql: String,
        #[command(flatten)]
        ledger: LedgerArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Write a run to a file: a page to look at (.html), all of it (.json), or JUnit (.xml)
    Report(ReportArgs),
    /// Say who made a row, in which test, and who touched it since
    Who(WhoArgs),
    /// List which tests of two workers met over which rows, worst first
    Collisions(OfRunArgs),
    /// List the rows that tests left behind, by table
    Leaks(OfRunArgs),
    /// Show a failed test's error beside the story of the rows that it is about
    Why(WhyArgs),
    /// Register a thing that the running test made elsewhere, to be removed with the run
    #[command(
        after_help = "Works inside of `isolane run`. `[cleaner.KIND] run = \"… {key} …\"` in isolane.toml says how one is removed."
    )]
    Record {
        /// What it is, such as bucket
        kind: String,
        /// Which one
        key: String,
    },
    /// Lease pooled test data: one holder at a time, freed when that dies
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// List who holds what of which pool, and who waits for them
    Leases {
        #[command(flatten)]
        ledger: LeasesArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Fill pools of test data, look into them, and empty them
    #[command(subcommand)]
    Pool(lease::PoolCommand),
    /// Serve pools and leases to a team and to machines of CI
    Serve(Box<serve::ServeArgs>),
    /// List what dead runs left, and remove it with --apply; safe beside runs that live
    Sweep(Box<SweepArgs>),
    /// Make, list and remove the pristine states that are kept on a server
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Say what would work here, and why not
    Doctor {
        #[command(flatten)]
        settings: SettingsArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Write a commented isolane.toml
    Init {
        /// Replace the file that is there
        #[arg(long)]
        force: bool,
    },
    /// Undo a run whose supervisor dies; `run` starts this by itself
    #[command(hide = true)]
    Watchdog { ledger: PathBuf, lock: PathBuf, run: String },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `isolane run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code: the command's own, 128+n when signal n ended it. Of isolane's own: 2 usage, \
121 leaks and 122 collisions with --fail-on, 123 all passed and something could not be removed, 125 the run could not start (nothing \
is left), 126 the command cannot be executed, 127 it was not found.

Examples:
  isolane run -- pytest -n 4
  isolane run --setup 'python -m shop.migrate' -- pytest -n auto
  isolane run --database-url postgresql://localhost/shop -- cargo nextest run
  isolane run -n 4 -- ./suite.sh")]
pub struct RunArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Copies of a plain command; pytest's -n and nextest's -j stay theirs
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    workers: Option<u32>,
    #[command(flatten)]
    setup: SetupArgs,
    /// How often a lane starts from the pristine state again [default: worker]
    #[arg(long, value_enum)]
    fresh: Option<Fresh>,
    /// Keep what the run made, to look into it [default: never]
    #[arg(long, value_enum)]
    keep: Option<Keep>,
    /// Lease at this service, an `isolane serve`, with the token in ISOLANE_TOKEN [default: $ISOLANE_LEASES, else the ledger]
    #[arg(long, value_name = "URL")]
    leases: Option<String>,
    /// One more variable for every worker, such as SHOP_DB={database}; may be repeated
    #[arg(long, value_name = "NAME=TEMPLATE", value_parser = env_pair)]
    env: Vec<(String, EnvTemplate)>,
    /// Watch the rows of these tables, such as public.* or !public.audit_* [default: all]
    #[arg(long, value_name = "PATTERN", conflicts_with = "no_track", value_parser = pattern)]
    track: Vec<String>,
    /// Watch no rows
    #[arg(long)]
    no_track: bool,
    /// Fail although tests passed: code 122 for a collision, 121 for a leak
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    fail_on: Vec<FailOn>,
    /// Take the command for this runner's
    #[arg(long, value_enum)]
    runner: Option<Runner>,
    /// Write the run to this file at its end, as .html, .json or .xml (JUnit); may be repeated
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Print no summary
    #[arg(short, long)]
    quiet: bool,
    /// The command, with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `isolane template`.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments are documented where they are declared")]
pub enum TemplateCommand {
    /// Make the one that runs with these settings take, unless it is there
    Build(Box<BuildArgs>),
    /// List them: by what command, since when, used when and by whom
    List {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Remove some; what a run uses stays
    Remove {
        /// The beginning of its fingerprint, or its name; may be repeated
        #[arg(value_name = "FINGERPRINT", required_unless_present = "all", conflicts_with = "all")]
        which: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// `isolane template build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  isolane template build --setup 'python -m shop.migrate' --setup-input shop/migrations")]
pub struct BuildArgs {
    /// Where it is made.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// By what, and from what.
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// Which servers.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// A server to look at [default: $DATABASE_URL]; may be repeated
    #[arg(long, value_name = "URL")]
    database_url: Vec<String>,
    /// A variable with such an address, besides DATABASE_URL
    #[arg(long, value_name = "NAME")]
    url_var: Vec<String>,
    /// The configuration [default: isolane.toml here or in a folder above]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// `isolane report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  isolane report -o run.html                         the latest run
  isolane report 3f9c2a7b10de -o run.html -o junit.xml")]
pub struct ReportArgs {
    /// Its id, the beginning of it, or its tag [default: the latest run]
    pub run: Option<String>,
    /// The file; its ending says what it becomes: .html, .json or .xml (JUnit); may be repeated
    #[arg(short, long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
    /// Where the ledger is.
    #[command(flatten)]
    pub ledger: LedgerArgs,
}

/// `isolane who`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  isolane who orders 17
  isolane who public.orders id=17
  isolane who i3f9c2a7b10dew3x-alice@example.com     whose value that is
  isolane who gw3                                    a worker")]
pub struct WhoArgs {
    /// A table and a key, a value with a worker's prefix, or a worker
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Where the ledger is.
    #[command(flatten)]
    pub ledger: LedgerArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What tells something of one run.
#[derive(Debug, Args)]
pub struct OfRunArgs {
    /// The run: its id, its tag, or how its id begins [default: the latest]
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Where the ledger is.
    #[command(flatten)]
    pub ledger: LedgerArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `isolane why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The test, by its id or a part of it [default: all that failed]
    pub test: Option<String>,
    /// Of which run.
    #[command(flatten)]
    pub of: OfRunArgs,
}

/// `isolane sweep`.
#[derive(Debug, Args)]
#[command(after_help = "\
A thing is removed where the ledger or the mark on it says whose it is, and that run is dead.
Examples:
  isolane sweep                                      what would be removed
  isolane sweep --apply                              remove it
  isolane sweep --database-url postgresql://ci@db/shop --older-than 1h --every 10m --apply")]
pub struct SweepArgs {
    /// A server to look at [default: $DATABASE_URL]; may be repeated
    #[arg(long, value_name = "URL")]
    database_url: Vec<String>,
    /// A variable with such an address, besides DATABASE_URL
    #[arg(long, value_name = "NAME")]
    url_var: Vec<String>,
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Leave what runs left that started less than this ago, such as 90s, 10m, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Remove it
    #[arg(long)]
    pub apply: bool,
    /// Do it again and again, this long after each end
    #[arg(long, value_name = "TIME", value_parser = pause)]
    pub every: Option<Duration>,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// What more than one command asks for.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// The database to give every worker a copy of [default: $DATABASE_URL, else SQLite]
    #[arg(long, value_name = "URL")]
    database_url: Vec<String>,
    /// What separates lanes
    #[arg(long, value_enum)]
    isolation: Option<Isolation>,
    /// A variable in which the suite looks for its database, besides DATABASE_URL
    #[arg(long, value_name = "NAME")]
    url_var: Vec<String>,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// What the pristine state is made by and from.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Make the pristine state with this command, once, in an empty database
    #[arg(long, value_name = "COMMAND")]
    setup: Option<String>,
    /// Keep that state for later runs until the command or one of these files changes; a pattern
    /// such as migrations/*.sql, or a folder; may be repeated
    #[arg(long, value_name = "GLOB")]
    setup_input: Vec<String>,
}

/// Where the ledger and the configuration are.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// The ledger's file [default: .isolane/ledger.db beside isolane.toml, else here; $ISOLANE_LEDGER]
    #[arg(long, value_name = "PATH")]
    ledger: Option<PathBuf>,
    /// The configuration [default: isolane.toml here or in a folder above]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

/// Where leases are: at a service, or in the ledger.
#[derive(Debug, Args)]
pub struct LeasesArgs {
    /// The service that has them, an `isolane serve`; its token is in ISOLANE_TOKEN [default: $ISOLANE_LEASES, else the ledger]
    #[arg(id = "service", long = "leases", value_name = "URL")]
    pub leases: Option<String>,
    /// The PostgreSQL database that keeps pools and leases for several machines, in place of the run and the ledger [$ISOLANE_STORE]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The PostgreSQL database with the tables whose rows are items [$DATABASE_URL]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl LeasesArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>) {
        let (choices, config) = self.ledger.choices();
        let database_urls = self.database_url.into_iter().collect();
        (Choices { leases: self.leases, store: self.store, database_urls, ..choices }, config)
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = duration(text)?;
    if pause < Duration::from_secs(1) { Err("it takes a second at least".to_owned()) } else { Ok(pause) }
}

fn env_pair(text: &str) -> Result<(String, EnvTemplate), String> {
    match text.split_once('=') {
        Some((name, template)) if !name.is_empty() => Ok((name.to_owned(), EnvTemplate::parse(template)?)),
        _ => Err("it takes NAME=TEMPLATE".to_owned()),
    }
}

fn pattern(text: &str) -> Result<String, String> {
    Track::parse(&[text.to_owned()]).map(|_| text.to_owned())
}

impl RunArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>, Vec<OsString>) {
        let (common, config) = self.settings.choices();
        let choices = Choices {
            workers: self.workers,
            fresh: self.fresh,
            keep: self.keep,
            env: self.env,
            runner: self.runner,
            quiet: self.quiet.then_some(true),
            track: match (self.no_track, self.track.is_empty()) {
                (true, _) => Some(Track::nothing()),
                (false, true) => None,
                // Each was looked at when it was read.
                (false, false) => Track::parse(&self.track).ok(),
            },
            fail_on: self.fail_on,
            leases: self.leases,
            reports: self.report,
            ..self.setup.over(common)
        };
        (choices, config, self.command)
    }
}

impl SweepArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>) {
        let (choices, config) = self.ledger.choices();
        (Choices { database_urls: self.database_url, url_vars: self.url_var, ..choices }, config)
    }
}

impl ServerArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>) {
        let choices = Choices { database_urls: self.database_url, url_vars: self.url_var, ..Choices::default() };
        (choices, self.config)
    }
}

impl SettingsArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>) {
        let choices = Choices {
            database_urls: self.database_url,
            isolation: self.isolation,
            url_vars: self.url_var,
            ledger: self.ledger.ledger,
            ..Choices::default()
        };
        (choices, self.ledger.config)
    }
}

impl SetupArgs {
    /// What the flags say, with the other choices of the command line.
    pub fn over(self, common: Choices) -> Choices {
        let inputs = Inputs::of_setup(self.setup_input, PathBuf::new());
        Choices {
            setup: self.setup.map(|command| Setup { command, folder: PathBuf::new() }),
            inputs: Some(inputs).filter(|inputs| !inputs.patterns.is_empty()),
            ..common
        }
    }
}

impl LedgerArgs {
    /// What the flags say, and where the configuration is.
    pub fn choices(self) -> (Choices, Option<PathBuf>) {
        (Choices { ledger: self.ledger, ..Choices::default() }, self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
