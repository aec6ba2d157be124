//! The supervisor: one trip from the command line to the exit code.
//!
//! Announce, promise and make, open the door, go, and home: whatever happens after the
//! announcement, the same sweep undoes what was made.

mod command;
mod phase;
mod start;
mod template;

pub use command::resolve;
pub use template::{Built, build_template};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Api, Stories};
use crate::clock::Timestamp;
use crate::desk::Desk;
use crate::error::{Stop, one_line};
use crate::fault::{self, Step};
use crate::harvest::Harvester;
use crate::keeper::Keeper;
use crate::ledger::finding::Findings;
use crate::ledger::lease::LedgerStore;
use crate::ledger::record::{self, RecordState};
use crate::ledger::resource::ResourceEvent;
use crate::ledger::run::RunState;
use crate::ledger::{self, Durability};
use crate::name::Place;
use crate::os::process::{self, Ended};
use crate::os::signal::Signals;
use crate::pools;
use crate::provider::{Directories, Provider, Resource, ResourceKind};
use crate::remote::{self, Away, Remote};
use crate::roster::{Roster, Tally};
use crate::run::Run;
use crate::runner::Recognised;
use crate::settings::{Isolation, Keep, Runner, Settings};
use crate::stock::{self, Stock};
use crate::sweep::{Scope, SweepReport, leave, patiently, sweep};
use command::{Commands, came_early};
use phase::{Event, Progress};
use start::Started;

/// How long processes that outlive the command may take to end by themselves, once told.
const GRACE: Duration = Duration::from_secs(2);

/// How long a process that ended is left to who may be waiting for it.
const MOURNING: Duration = Duration::from_millis(100);

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// How the command ended.
    pub ended: Ended,
    /// Its workers and tests.
    pub tally: Tally,
    /// What was undone, by kind.
    pub removed: BTreeMap<ResourceKind, usize>,
    /// What could not be undone.
    pub swept: SweepReport,
    /// How many things were left on the user's wish.
    pub kept: usize,
    /// Records whose cleaner failed, with why.
    pub uncleaned: Vec<(String, String)>,
    /// How many records there are of each kind that has no cleaner.
    pub without_cleaner: BTreeMap<String, usize>,
    /// Time that isolane itself took while neither the command nor its setup was running.
    pub own_time: Duration,
    /// Time that the setup command took.
    pub setup_time: Duration,
    /// What the ledger's tests are, when they are not tests one by one.
    pub test_word: &'static str,
    /// What each provider did.
    pub providers: Vec<String>,
    /// The run's id.
    pub run_id: String,
    /// What is odd, and the user should know.
    pub notices: Vec<String>,
    /// The command that removes what is left.
    pub sweep_command: String,
    /// What the rows say that tests touched.
    pub findings: Findings,
    /// How many rows were removed among the user's own.
    pub rows_removed: u64,
}

/// Runs `command` under `settings`.
pub fn run(settings: Settings, command: &[OsString], recognised: &Recognised) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    // Its leases would be others than those in the store, and one item be had by two.
    if let Some(store) = settings.store.as_ref().filter(|_| settings.leases.is_none()) {
        return Err(Stop::usage(format!(
            "{} names a store of leases, which a run reaches through a service: `isolane serve --store …`, and its address in --leases; or unset it",
            store.place
        )));
    }
    let program = resolve(&command[0], &settings)?;
    // Before any thread is there, because threads inherit what is blocked.
    let signals = Signals::listen()?;
    process::become_subreaper()?;
    let progress = Arc::new(Progress::begin());
    let mut started = start::start(settings, command, recognised, &signals).map_err(|error| match signals.read() {
        Ok(Some(arrival)) => came_early(arrival.signal),
        _ => error,
    })?;
    let run = Arc::clone(&started.run);
    let roster = Arc::new(Roster::new(run.key, run.writer.clone(), run.vault.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let keeper = Arc::new(Keeper::new(Arc::clone(&run)));
    let harvester = Harvester::start(&run);
    let store = LedgerStore::new(run.writer.clone(), &run.settings.ledger);
    let desk = Desk::new(Box::new(store), Some(run.id.to_string()));
    let stock = Stock::new(&desk, Some(run.id.to_string()), run.vault.clone(), true);
    let served = runtime.block_on(serve(
        &run, &keeper, &roster, &stock, &desk, signals, &program, command, recognised, &started, &progress,
    ));
    progress.step(Event::Ended)?;
    command::heed(&progress);
    // Whatever the command left behind would go on writing into what is undone next.
    let stopped = fault::before(Step::Stop);
    process::stop_descendants(GRACE);
    let stopped = stopped.and_then(|()| fault::after(Step::Stop));
    // Tasks that still make or clean a lane finish; then nothing is made any more.
    drop(runtime);
    drop(keeper);
    harvester.stop();
    started.notices.extend(free_leases(&run, &desk));
    started.notices.extend(stock.settle(stock::SETTLING));
    let served = match served.and_then(|served| stopped.map(|()| served)) {
        Ok(served) => served,
        Err(error) => {
            return Err(started.take_back(error));
        }
    };
    leave_spare(&run);
    let outcome = home(started, &roster, &served, began, command, recognised, &progress);
    progress.step(Event::Cleaned)?;
    Ok(outcome)
}

/// How the command came out.
#[derive(Debug)]
struct Served {
    ended: Ended,
    began: Instant,
    notices: Vec<String>,
}

#[expect(clippy::too_many_arguments, reason = "they are the parts of a run, and this is where they meet")]
async fn serve(
    run: &Arc<Run>,
    keeper: &Arc<Keeper>,
    roster: &Arc<Roster>,
    stock: &Stock,
    desk: &Desk,
    signals: Signals,
    program: &std::path::Path,
    command: &[OsString],
    recognised: &Recognised,
    started: &Started,
    progress: &Progress,
) -> anyhow::Result<Served> {
    let listener = UnixListener::bind(run.socket())
        .map_err(|e| Stop::not_started(format!("cannot open the socket {}: {e}", run.socket().display())))?;
    let stories = Stories::default();
    let (remote, notices) = join_service(run).await?.unzip();
    let notices = Vec::from_iter(notices.flatten());
    let api = Api {
        run: Arc::clone(run),
        keeper: Arc::clone(keeper),
        roster: Arc::clone(roster),
        desk: desk.clone(),
        remote: remote.clone(),
        stock: stock.clone(),
        stories: stories.clone(),
        told: AtomicUsize::new(0),
    };
    let api = Arc::new(api);
    let door = tokio::spawn(api::serve(listener, Arc::clone(&api)));
    let clock = tokio::spawn({
        let (desk, id) = (desk.clone(), run.id.to_string());
        async move {
            match remote {
                Some(remote) => remote.keep_alive(&id).await,
                None => desk.keep_time().await,
            }
        }
    });
    let tender = tokio::spawn({
        let stock = stock.clone();
        async move { stock.tend().await }
    });
    let mut guard = None;
    if run.settings.leases.is_none() {
        guard = pools::guard(desk, &run.settings, &run.tag).map_err(|error| Stop::not_started(one_line(&error)))?;
        pools::configure(desk, &run.settings).await.map_err(|error| Stop::not_started(one_line(&error)))?;
    }
    let undertaker = tokio::spawn(collect_orphans(signal(SignalKind::child())?));
    // SAFETY: it owns its descriptor, which stays open and the same as long as it lives.
    let signals = unsafe { AsyncFd::register(signals) }?;
    let mut commands = Commands::prepare(run, keeper, program, command, recognised, &started.shims).await?;
    if let Some(arrival) = signals.get_ref().read()? {
        progress.step(Event::Signal)?;
        return Err(came_early(arrival.signal));
    }
    let its = Arc::clone(run);
    tokio::task::spawn_blocking(move || its.providers.iter().for_each(|provider| provider.make_room())).await?;
    let began = Instant::now();
    fault::before(Step::Start)?;
    commands.spawn(roster, &api)?;
    fault::after(Step::Start)?;
    let its = Arc::clone(run);
    tokio::task::spawn_blocking(move || its.providers.iter().for_each(|provider| provider.goes_on()));
    keeper.make_spare();
    progress.step(Event::Started)?;
    let ended = commands.wait(&signals, roster, progress).await?;
    // What shims wrote with their last breath is read before the door closes.
    tokio::time::sleep(Duration::from_millis(1)).await;
    stories.told().await;
    door.abort();
    clock.abort();
    tender.abort();
    guard.iter().for_each(tokio::task::JoinHandle::abort);
    undertaker.abort();
    Ok(Served { ended, began, notices })
}

/// Goes to the service of leases, where there is one: whoever cannot lease there finds out before
/// any test does. Pools of the run's own configuration that it does not have are named.
async fn join_service(run: &Run) -> anyhow::Result<Option<(Arc<Remote>, Option<String>)>> {
    let Some(server) = &run.settings.leases else { return Ok(None) };
    let cannot = |error: Away| Stop::not_started(error);
    let remote = Remote::new(server.clone()).map_err(cannot)?;
    remote.alive(&run.id.to_string()).await.map_err(cannot)?;
    let mut unused: Vec<&str> = run.settings.pools.iter().map(|pool| pool.name.as_str()).collect();
    if !unused.is_empty() {
        let there = remote.pools().await.map_err(cannot)?;
        unused.retain(|name| !there.iter().any(|pool| pool == name));
    }
    let notice = (!unused.is_empty()).then(|| {
        format!(
            "leases are asked for at {}, which has no pool {}: it knows the pools of the isolane.toml it was started with",
            remote.url(),
            unused.join(", ")
        )
    });
    Ok(Some((Arc::new(remote), notice)))
}

/// Collects orphans that end: they fall to us and not to init, which would do it. Whoever is
/// waited for by somebody here is collected long before this looks again.
async fn collect_orphans(mut ends: tokio::signal::unix::Signal) {
    while ends.recv().await.is_some() {
        tokio::time::sleep(MOURNING).await;
        let dead = process::zombies();
        if dead.is_empty() {
            continue;
        }
        tokio::time::sleep(MOURNING).await;
        let still: Vec<_> = process::zombies().into_iter().filter(|pid| dead.contains(pid)).collect();
        still.into_iter().for_each(process::collect);
    }
}

fn home(
    started: Started,
    roster: &Roster,
    served: &Served,
    began: Instant,
    command: &[OsString],
    recognised: &Recognised,
    progress: &Progress,
) -> Outcome {
    let run = Arc::clone(&started.run);
    let back = Instant::now();
    roster.end_of_run(served.ended, Timestamp::now());
    let failed = served.ended != Ended::Exited(0);
    let keep = match run.settings.keep {
        Keep::Never => false,
        Keep::Failed => failed,
        Keep::Always => true,
    };
    let (uncleaned, without_cleaner) = clean_records(&run, roster, keep);
    let mut kept = 0;
    let mut notices_of_leaving = Vec::new();
    if keep {
        notices_of_leaving = leave(&run.inventory, &run.sites());
        // What only says on a server that the run lives is of no use to anybody.
        let is_of_use = |resource: &Resource| resource.place != Place::Run || resource.kind != ResourceKind::Database;
        for item in run.inventory.owed().into_iter().filter(|item| is_of_use(&item.resource)) {
            // What is stuck stays so.
            kept += usize::from(run.inventory.happened(&item.resource, ResourceEvent::Keep, None).is_ok());
        }
    }
    let untouched = untouched(&run, &roster.tally());
    let swept = patiently(|| sweep(&run.inventory, &run.sites(), Scope::Run));
    let tally = roster.tally();
    let mut notices = started.notices.clone();
    notices.extend(served.notices.iter().cloned());
    notices.extend(tally.notices.iter().cloned());
    notices.extend(untouched);
    notices.extend(notices_of_leaving);
    notices.extend(run.inventory.rows().notices());
    notices.extend(missing_reports(&tally, served.ended, command, recognised));
    let state = match served.ended {
        Ended::Exited(0) => RunState::Passed,
        Ended::Exited(_) => RunState::Failed,
        // The user's own wish is no crash.
        Ended::Signalled(_) if progress.was_asked() => RunState::Failed,
        Ended::Signalled(_) | Ended::Unknown => RunState::Crashed,
    };
    let (key, code) = (run.key, served.ended.shell_code());
    let findings = run.writer.commit(Durability::Process, move |db| Findings::settle(db, key)).unwrap_or_default();
    let closed = fault::before(Step::Close)
        .and_then(|()| {
            let end = move |db: &_| ledger::run::end(db, key, Some(code), state, Timestamp::now());
            Ok(run.writer.commit(Durability::Process, end)?)
        })
        .and_then(|()| fault::after(Step::Close));
    notices.extend(ledger_trouble(&run, closed.as_ref().err(), &started));
    let outcome = Outcome {
        ended: served.ended,
        tally,
        removed: run.inventory.removed(),
        swept,
        kept,
        uncleaned,
        without_cleaner,
        own_time: (served.began - began).saturating_sub(started.setup_time) + back.elapsed(),
        setup_time: started.setup_time,
        test_word: if recognised.runner == Runner::CargoTest { "test binary" } else { "test" },
        providers: summaries(&run),
        run_id: run.id.to_string(),
        notices,
        sweep_command: run.settings.sweep_command.clone(),
        findings,
        rows_removed: run.inventory.rows().removed,
    };
    started.finish();
    outcome
}

/// Nobody of the run lives any more who could hold anything.
fn free_leases(run: &Run, desk: &Desk) -> Option<String> {
    let id = run.id.to_string();
    if let Some(server) = &run.settings.leases {
        let told = remote::run_ended(server, &id);
        return told.err().map(|away| format!("{}: what the run held there ends by time", one_line(&away)));
    }
    if desk.is_used() {
        // What cannot be written is freed by the next run, or by time.
        let _ = desk.holder_died_blocking(move |holder| holder.run.as_deref() == Some(id.as_str()));
    }
    None
}

/// Leaves what was made for the next run to that.
fn leave_spare(run: &Run) {
    for spare in run.inventory.made().into_iter().filter(|resource| resource.place == Place::Spare) {
        let Some(provider) = run.providers.iter().find(|provider| provider.id() == spare.provider) else { continue };
        // What is not given is removed with the rest.
        if fault::before(Step::Keep).and_then(|()| provider.give_spare()).unwrap_or(false) {
            let _ = run.inventory.handed_over(&spare);
            let _ = fault::after(Step::Keep);
        }
    }
}

/// What became of the ledger, where it is not as it should be. It is first of all a story:
/// a run without one is cleaned up all the same.
fn ledger_trouble(run: &Run, error: Option<&anyhow::Error>, started: &Started) -> Option<String> {
    let path = run.settings.ledger.display();
    let what = match (run.inventory.lost().map(str::to_owned).or(error.map(one_line)), started.has_ledger()) {
        (_, false) => "was deleted or replaced while the run went on".to_owned(),
        (Some(why), true) => format!("could not be written ({why})"),
        (None, true) => return None,
    };
    Some(format!("the ledger {path} {what}: what it says of this run is not complete; cleanup did not need it"))
}

/// A word to those whose tests work in some database, and not in the lanes'.
fn untouched(run: &Run, tally: &Tally) -> Option<String> {
    if tally.tests == 0 {
        return None;
    }
    let owed = run.inventory.owed();
    let lanes_of = |provider: &dyn Provider| -> Vec<_> {
        let its = owed.iter().map(|item| &item.resource).filter(|it| it.provider == provider.id());
        its.filter(|it| it.place.lane().is_some()).cloned().collect()
    };
    let is_untouched = run.providers.iter().any(|provider| provider.is_untouched(&lanes_of(&**provider)));
    is_untouched.then(|| {
        let names: Vec<_> = run.settings.url_variables.iter().map(|variable| variable.name.as_str()).collect();
        format!(
            "no test came to its lane's database; if yours use one, they do not take its address from {} (--url-var names another variable)",
            names.join(", ")
        )
    })
}

/// What each provider did, for the summary.
fn summaries(run: &Run) -> Vec<String> {
    if run.settings.isolation == Isolation::None && !run.settings.embedded {
        return vec!["no isolation of the database, as asked: workers shared yours".to_owned()];
    }
    let databases = run.providers.iter().filter(|provider| provider.id() != Directories::ID);
    let mut lines: Vec<_> = databases.map(|provider| provider.summary()).collect();
    if run.settings.embedded && run.settings.isolation != Isolation::Server {
        // Whoever has a database after all must see that isolane has not found it.
        let names: Vec<_> = run.settings.url_variables.iter().map(|variable| variable.name.as_str()).collect();
        let names = names.join(", ");
        for line in &mut lines {
            let _ = write!(line, ", because no database is named ({names} is not set)");
        }
    }
    lines
}

/// Runs the cleaner of every record, newest first; what could not be cleaned comes back
/// with why, and beside it how many have no cleaner.
fn clean_records(run: &Run, roster: &Roster, keep: bool) -> (Vec<(String, String)>, BTreeMap<String, usize>) {
    let mut uncleaned = Vec::new();
    let mut without_cleaner = BTreeMap::new();
    for registered in roster.records().into_iter().rev() {
        let name = format!("{} {}", registered.kind, registered.name);
        let state = if keep {
            RecordState::Kept
        } else if let Some(cleaner) = run.settings.cleaners.get(&registered.kind) {
            match command::clean(cleaner, &registered.name, run) {
                Ok(()) => RecordState::Removed,
                Err(error) => {
                    uncleaned.push((name, one_line(&error)));
                    RecordState::Stuck
                }
            }
        } else {
            *without_cleaner.entry(registered.kind).or_default() += 1;
            continue;
        };
        run.writer.tell(move |db| record::ended(db, registered.key, state));
    }
    (uncleaned, without_cleaner)
}

/// Counts who spoke against who should have: an injection that was lost must not pass
/// for isolation.
fn missing_reports(tally: &Tally, ended: Ended, command: &[OsString], recognised: &Recognised) -> Vec<String> {
    let says = |words: &[&str]| command.iter().any(|word| words.iter().any(|w| word == w));
    let mut missing = Vec::new();
    let Ended::Exited(code) = ended else { return missing };
    match recognised.runner {
        // Other codes say that pytest did not come to run anything.
        Runner::Pytest
            if !tally.pytest_reported && [0, 1, 5].contains(&code) && !says(&["--version", "-V", "--help", "-h"]) =>
        {
            missing.push("pytest did not report: isolane's plugin was not loaded (python -I or -E? -p no:isolane_pytest? a wrapper that resets PYTHONPATH?), so workers had no lanes of their own".to_owned());
        }
        Runner::Nextest
            if tally.tests == 0 && recognised.runs_tests && [0, 100].contains(&code) && !says(&["--no-run"]) =>
        {
            missing.push("nextest's tests did not report: another target runner took the place of isolane's (--config target.….runner?), so tests had no lanes".to_owned());
        }
        Runner::Nextest if code == 0 && recognised.runs_tests && tally.tests < tally.listed && !has_filter(command) => {
            missing.push(format!(
                "{} of {} tests did not report and had no lanes, unless a filter left them out (a wrapper script without `target-runner = \"within-wrapper\"`?)",
                tally.listed - tally.tests, tally.listed
            ));
        }
        Runner::CargoTest
            if tally.tests == 0 && [0, 101].contains(&code) && !says(&["--no-run", "--doc", "--help"]) =>
        {
            missing.push(
                "the test binaries did not report: another target runner took the place of isolane's, so tests had no lanes"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if !tally.silent.is_empty() && tally.pytest_reported && [0, 1].contains(&code) {
        missing
            .push(format!("{} did not report (-p no:isolane_pytest in their own options?)", tally.silent.join(", ")));
    }
    missing
}

/// Whether nextest was told to run a part of its tests only.
fn has_filter(command: &[OsString]) -> bool {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let run = words.iter().position(|word| word == "run" || word == "r").map_or(words.len(), |at| at + 1);
    let filters = [
        "-E",
        "--filter-expr",
        "--filterset",
        "--partition",
        "--run-ignored",
        "-P",
        "--profile",
        "--ignore-default-filter",
        "-R",
        "--rerun",
        "--stress-count",
    ];
    words[run..]
        .iter()
        .any(|word| filters.iter().any(|filter| word == filter || word.starts_with(&format!("{filter}="))))
        || words[run..]
            .iter()
            .zip(&words[run.saturating_sub(1)..])
            .any(|(word, before)| !word.starts_with('-') && (!before.starts_with('-') || before.contains('=')))
}
