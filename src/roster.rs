//! The roster: which workers there are and which test each is in, as shims report it.
//! What it learns goes on to the ledger.

mod sharing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::ledger::record::{self, RecordKey};
use crate::ledger::test::FixturePhase;
use crate::ledger::worker::WorkerOutcome;
use crate::ledger::{Durability, RunKey, Writer, leftover, test, worker};
use crate::name::Lane;
use crate::os::process::{self, Ended};
use crate::renewal::Renewed;
use crate::secret::Vault;

use sharing::Shared;

/// The longest message of a failed test that is kept, in characters.
const MESSAGE_LENGTH: usize = 4000;

/// A record as its cleaner needs it.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Its number in the ledger.
    pub key: RecordKey,
    /// Its kind.
    pub kind: String,
    /// Its name among its kind.
    pub name: String,
}

/// What the run's end says of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Workers that came.
    pub workers: usize,
    /// Workers that crashed, by name.
    pub crashed: Vec<String>,
    /// Tests by outcome.
    pub outcomes: BTreeMap<String, usize>,
    /// Tests that began.
    pub tests: usize,
    /// Tests that runners listed before they ran any.
    pub listed: usize,
    /// Whether any shim of pytest spoke.
    pub pytest_reported: bool,
    /// Workers that were announced and never came, by name.
    pub silent: Vec<String>,
    /// What shims noticed and the user should read.
    pub notices: Vec<String>,
}

/// The roster of a run.
#[derive(Debug)]
pub struct Roster {
    run: RunKey,
    writer: Writer,
    vault: Vault,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    workers: HashMap<String, Member>,
    /// Which processes they are.
    pids: HashMap<i32, String>,
    /// Their names in the order of coming.
    order: Vec<String>,
    announced: Vec<String>,
    next_test: i64,
    /// Numbers are given to fixtures as well, which are no tests.
    fixtures: usize,
    attempts: HashMap<String, u32>,
    outcomes: BTreeMap<String, usize>,
    listed: HashMap<String, i64>,
    records: Vec<Registered>,
    pytest_reported: bool,
    notices: Vec<String>,
    noticed: HashSet<String>,
    interrupted: bool,
    /// How many failed tests named a thing that lanes do not separate, and the first of them.
    sharing: BTreeMap<Shared, (usize, String)>,
    /// How often tests left something of a kind that is no row, and the first of them.
    left_behind: BTreeMap<&'static str, (usize, String)>,
}

fn tests(n: usize) -> String {
    if n == 1 { "1 test".to_owned() } else { format!("{n} tests") }
}

/// What a worker is to isolane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The command itself.
    Command,
    /// A process of the runner's.
    #[default]
    Process,
    /// A place that the runner starts one process after another in.
    Slot,
}

#[derive(Debug, Default)]
struct Member {
    kind: Kind,
    lane: Lane,
    open: Vec<OpenTest>,
    /// The last test that ended.
    last: Option<OpenTest>,
    /// Fixtures that live, by the number that the shim gave them.
    fixtures: HashMap<u64, i64>,
    said_goodbye: bool,
    outcome: Option<WorkerOutcome>,
    is_controller: bool,
}

#[derive(Debug)]
struct OpenTest {
    number: i64,
    id: String,
    /// What it has said on its standard error.
    said: Option<String>,
}

impl Roster {
    /// An empty roster.
    pub fn new(run: RunKey, writer: Writer, vault: Vault) -> Self {
        Self { run, writer, vault, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker is to come.
    pub fn announce(&self, worker: &str) {
        self.state().announced.push(worker.to_owned());
    }

    /// A worker is there.
    pub fn join(&self, worker: &str, kind: Kind, lane: Lane, pid: Option<i32>, at: Timestamp) {
        let mut state = self.state();
        if let Some(pid) = pid {
            state.pids.retain(|_, known| known != worker);
            state.pids.insert(pid, worker.to_owned());
        }
        match state.workers.get(worker) {
            Some(member) if member.outcome.is_none() => return,
            // A second pytest within one run has a `gw0` again.
            Some(_) => {}
            None => state.order.push(worker.to_owned()),
        }
        state.workers.insert(worker.to_owned(), Member { kind, lane, ..Member::default() });
        let (run, worker) = (self.run, worker.to_owned());
        self.writer.tell(move |db| worker::begin(db, run, &worker, lane, pid, at));
    }

    /// A shim of pytest spoke.
    pub fn pytest_reported(&self) {
        self.state().pytest_reported = true;
    }

    /// Whether any shim of pytest spoke.
    pub fn has_pytest(&self) -> bool {
        self.state().pytest_reported
    }

    /// A process that was taken for a worker has workers of its own.
    pub fn is_controller(&self, worker: &str) {
        if let Some(member) = self.state().workers.get_mut(worker) {
            member.is_controller = true;
        }
        let (run, worker) = (self.run, worker.to_owned());
        self.writer.tell(move |db| worker::is_controller(db, run, &worker));
    }

    /// A runner found this many tests in a binary; with `-1` each for those it will ignore.
    pub fn listed(&self, binary: &str, tests: i64) {
        *self.state().listed.entry(binary.to_owned()).or_default() += tests;
    }

    /// Something the user should read, once.
    pub fn notice(&self, text: &str) {
        let text = self.vault.mask(text);
        let mut state = self.state();
        if state.noticed.insert(text.clone()) {
            state.notices.push(text);
        }
    }

    /// A test begins. `attempt` is the runner's own count, where it has one.
    pub fn test_began(&self, worker: &str, id: &str, attempt: Option<u32>, at: Timestamp) {
        let mut state = self.state();
        let number = state.next_test;
        state.next_test += 1;
        let counted = if let Some(count) = state.attempts.get_mut(id) {
            *count += 1;
            *count
        } else {
            state.attempts.insert(id.to_owned(), 1);
            1
        };
        let attempt = attempt.unwrap_or(counted);
        state.workers.entry(worker.to_owned()).or_default().open.push(OpenTest {
            number,
            id: id.to_owned(),
            said: None,
        });
        let (run, worker, id) = (self.run, worker.to_owned(), self.vault.mask(id));
        self.writer.tell(move |db| test::begin(db, run, number, &worker, &id, attempt, at));
    }

    /// A fixture that lives longer than a test has come this far. `key` tells it from others
    /// of its worker.
    pub fn fixture(&self, worker: &str, key: u64, id: &str, scope: &str, phase: FixturePhase, at: Timestamp) {
        let mut state = self.state();
        let (run, name) = (self.run, worker.to_owned());
        if phase == FixturePhase::Begin {
            let number = state.next_test;
            state.next_test += 1;
            state.fixtures += 1;
            state.workers.entry(name.clone()).or_default().fixtures.insert(key, number);
            let (id, scope) = (self.vault.mask(id), scope.to_owned());
            self.writer.tell(move |db| test::begin_fixture(db, run, number, &name, &id, &scope, at));
            return;
        }
        let Some(number) = state.workers.get_mut(worker).and_then(|member| {
            if phase == FixturePhase::End { member.fixtures.remove(&key) } else { member.fixtures.get(&key).copied() }
        }) else {
            return;
        };
        self.writer.tell(move |db| test::fixture_reached(db, run, number, phase, at));
    }

    /// The worker that a process is, or descends from.
    pub fn worker_of(&self, pid: i32) -> Option<String> {
        let family = process::with_ancestors(pid);
        let state = self.state();
        family.iter().find_map(|pid| state.pids.get(pid).cloned())
    }

    /// The test that a worker is in.
    pub fn test_of(&self, worker: &str) -> Option<String> {
        self.state().workers.get(worker)?.open.last().map(|test| test.id.clone())
    }

    /// The lane that a worker is in.
    pub fn lane_of(&self, worker: &str) -> Option<Lane> {
        Some(self.state().workers.get(worker)?.lane)
    }

    /// The number of a test that this worker is in, and its lane.
    pub fn number_of(&self, worker: &str, id: &str) -> Option<(i64, Lane)> {
        let state = self.state();
        let member = state.workers.get(worker)?;
        member.open.iter().rev().find(|test| test.id == id).map(|test| (test.number, member.lane))
    }

    /// A test ends. `outcome` is `None` where nobody can tell.
    pub fn test_ended(&self, worker: &str, id: &str, outcome: Option<&str>, message: Option<&str>, at: Timestamp) {
        let mut state = self.state();
        let Some(member) = state.workers.get_mut(worker) else { return };
        let Some(position) = member.open.iter().position(|test| test.id == id) else { return };
        let test = member.open.remove(position);
        self.close(&mut state, &test, outcome, message, at);
        if let Some(member) = state.workers.get_mut(worker) {
            member.last = Some(test);
        }
    }

    /// What a test has said on its standard error, which may come before or after its end is
    /// known; its number and lane come back.
    pub fn heard(&self, worker: &str, id: &str, text: &str) -> Option<(i64, Lane)> {
        let mut state = self.state();
        let member = state.workers.get_mut(worker)?;
        let lane = member.lane;
        let message = self.vault.mask(&last_words(text));
        if let Some(test) = member.open.iter_mut().rev().find(|test| test.id == id) {
            test.said = Some(message);
            return Some((test.number, lane));
        }
        let number = member.last.as_ref().filter(|test| test.id == id)?.number;
        let run = self.run;
        self.writer.tell(move |db| test::said(db, run, number, &message));
        Some((number, lane))
    }

    fn close(&self, state: &mut State, test: &OpenTest, outcome: Option<&str>, message: Option<&str>, at: Timestamp) {
        *state.outcomes.entry(outcome.unwrap_or("unfinished or unknown").to_owned()).or_default() += 1;
        if let Some(shared) = message.and_then(Shared::named_in) {
            state.sharing.entry(shared).or_insert_with(|| (0, test.id.clone())).0 += 1;
        }
        // A code says less than words.
        let said = test.said.as_deref().filter(|_| outcome == Some("failed"));
        let message =
            said.or(message).map(|text| self.vault.mask(&text.chars().take(MESSAGE_LENGTH).collect::<String>()));
        let (run, number, outcome) = (self.run, test.number, outcome.map(str::to_owned));
        self.writer.tell(move |db| test::end(db, run, number, outcome.as_deref(), message.as_deref(), at));
    }

    /// The user wants the run to end: who dies of a signal from now on has not crashed.
    pub fn interrupt(&self) {
        self.state().interrupted = true;
    }

    /// How a test came out that was a process of its own.
    pub fn test_exited(&self, worker: &str, id: &str, how: Ended, at: Timestamp) {
        let interrupted = self.state().interrupted;
        let (outcome, message) = match how {
            Ended::Exited(0) => (Some("passed"), None),
            Ended::Exited(code) => (Some("failed"), Some(format!("it exited with code {code}"))),
            Ended::Signalled(_) if interrupted => (None, Some("the run was interrupted".to_owned())),
            Ended::Signalled(signal) => (Some("crashed"), Some(format!("signal {signal} ended it"))),
            Ended::Unknown => (None, None),
        };
        self.test_ended(worker, id, outcome, message.as_deref(), at);
    }

    /// What the last test of this worker left, as was found when its lane was made fresh.
    pub fn left_behind(&self, worker: &str, renewed: Renewed) {
        if renewed.leftovers.is_empty() && renewed.again.is_empty() {
            return;
        }
        let mut state = self.state();
        // Its end may be on its way still.
        let last = state.workers.get(worker).and_then(|member| member.open.last().or(member.last.as_ref()));
        let (number, test) = (last.map(|test| test.number), last.map_or("no test", |test| test.id.as_str()).to_owned());
        let left = renewed.leftovers.into_iter().map(|left| (left.kind, left.name));
        let again = renewed.again.into_iter().map(|why| (leftover::MADE_AGAIN, why));
        for (kind, detail) in left.chain(again) {
            let detail = self.vault.mask(&detail);
            state.left_behind.entry(kind).or_insert_with(|| (0, format!("{test}: {detail}"))).0 += 1;
            let (run, worker) = (self.run, worker.to_owned());
            self.writer.tell(move |db| leftover::enter(db, run, number, &worker, kind, &detail));
        }
    }

    /// The worker says that its work is done.
    pub fn said_goodbye(&self, worker: &str) {
        if let Some(member) = self.state().workers.get_mut(worker) {
            member.said_goodbye = true;
        }
    }

    /// The worker's process is gone, or its controller has given it up; the second word
    /// of it changes nothing. Tests it was in went down with it. The outcome comes back
    /// at the first word only.
    pub fn left(&self, worker: &str, how: Ended, at: Timestamp) -> Option<WorkerOutcome> {
        let mut state = self.state();
        let interrupted = state.interrupted;
        let member = state.workers.entry(worker.to_owned()).or_default();
        if member.outcome.is_some() {
            return None;
        }
        // xdist ends processes that take their time after their work is done.
        let done = member.said_goodbye && member.open.is_empty();
        let outcome = match (done, interrupted) {
            (true, _) => WorkerOutcome::Ok,
            (false, true) => WorkerOutcome::Killed,
            (false, false) => WorkerOutcome::Crashed,
        };
        self.finish(&mut state, worker, outcome, &how_it_died(how), at);
        Some(outcome)
    }

    fn finish(&self, state: &mut State, worker: &str, outcome: WorkerOutcome, why: &str, at: Timestamp) {
        let Some(member) = state.workers.get_mut(worker) else { return };
        member.outcome = Some(outcome);
        let why = format!("{worker} {why} in this test");
        // Of a test that isolane stopped, nobody can tell how it would have ended.
        let how = if outcome == WorkerOutcome::Killed { None } else { Some("crashed") };
        for test in std::mem::take(&mut member.open) {
            self.close(state, &test, how, Some(&why), at);
        }
        let (run, worker) = (self.run, worker.to_owned());
        self.writer.tell(move |db| worker::end(db, run, &worker, outcome, at));
    }

    /// Tests that this worker was in when it fell silent.
    pub fn abandon(&self, worker: &str, at: Timestamp) {
        let mut state = self.state();
        let open = state.workers.get_mut(worker).map(|member| std::mem::take(&mut member.open)).unwrap_or_default();
        for test in open {
            self.close(&mut state, &test, Some("crashed"), Some("it fell silent in this test"), at);
        }
    }

    /// The command has ended, and isolane has stopped what still lived.
    pub fn end_of_run(&self, how: Ended, at: Timestamp) {
        let mut state = self.state();
        let waiting: Vec<_> = state
            .workers
            .iter()
            .filter(|(_, member)| member.outcome.is_none())
            .map(|(name, member)| (name.clone(), member.kind, member.open.is_empty(), member.said_goodbye))
            .collect();
        for (name, kind, idle, said_goodbye) in waiting {
            let (outcome, why) = match (kind, how) {
                (Kind::Command, Ended::Signalled(_)) if state.interrupted => (WorkerOutcome::Killed, how_it_died(how)),
                (Kind::Command, Ended::Signalled(_)) => (WorkerOutcome::Crashed, how_it_died(how)),
                (Kind::Command, _) if !idle => (WorkerOutcome::Crashed, how_it_died(how)),
                (Kind::Command | Kind::Slot, _) if idle => (WorkerOutcome::Ok, String::new()),
                (Kind::Process, _) if idle && said_goodbye => (WorkerOutcome::Ok, String::new()),
                _ => (WorkerOutcome::Killed, "was stopped by isolane at the end of the run".to_owned()),
            };
            self.finish(&mut state, &name, outcome, &why, at);
        }
    }

    /// Enters an outside thing; it is in the ledger when this returns.
    pub fn register(&self, worker: &str, test: Option<&str>, kind: &str, name: &str) -> rusqlite::Result<()> {
        let test = test.map(str::to_owned).or_else(|| {
            self.state().workers.get(worker).and_then(|member| member.open.last().map(|test| test.id.clone()))
        });
        let (run, worker, at) = (self.run, worker.to_owned(), Timestamp::now());
        let (kind_text, name_text) = (kind.to_owned(), name.to_owned());
        let key = self.writer.commit(Durability::Machine, move |db| {
            record::register(db, run, &worker, test.as_deref(), &kind_text, &name_text, at)
        })?;
        self.state().records.push(Registered { key, kind: kind.to_owned(), name: name.to_owned() });
        Ok(())
    }

    /// All records, oldest first.
    pub fn records(&self) -> Vec<Registered> {
        self.state().records.clone()
    }

    /// How it all came out.
    pub fn tally(&self) -> Tally {
        let state = self.state();
        let member = |name: &&String| state.workers.get(*name).filter(|member| !member.is_controller);
        let crashed =
            |name: &&String| member(name).is_some_and(|member| member.outcome == Some(WorkerOutcome::Crashed));
        let workers = state.order.iter().filter(|name| member(name).is_some()).count();
        let mut notices = state.notices.clone();
        // Alone, a test fails over these for reasons of its own.
        if workers > 1 {
            notices.extend(state.sharing.iter().map(|(shared, (n, test))| shared.notice(*n, test)));
        }
        notices.extend(state.left_behind.iter().map(|(kind, (n, first))| {
            if *kind == leftover::MADE_AGAIN {
                format!("lanes were made again after {} that changed more than rows, such as {first}", tests(*n))
            } else {
                format!("{} left a {kind} open, which was ended (`isolane leaks`); first {first}", tests(*n))
            }
        }));
        Tally {
            workers,
            crashed: state.order.iter().filter(crashed).cloned().collect(),
            outcomes: state.outcomes.clone(),
            tests: usize::try_from(state.next_test).unwrap_or(0) - state.fixtures,
            listed: usize::try_from(state.listed.values().sum::<i64>()).unwrap_or(0),
            pytest_reported: state.pytest_reported,
            silent: state.announced.iter().filter(|name| !state.workers.contains_key(*name)).cloned().collect(),
            notices,
        }
    }
}

/// The end of what a test has said: from where it panicked, if it did.
fn last_words(text: &str) -> String {
    let from = text.rfind("panicked at").map_or(0, |at| text[..at].rfind('\n').map_or(0, |line| line + 1));
    let text = text[from..].trim();
    let skipped = if from > 0 { 0 } else { text.chars().count().saturating_sub(MESSAGE_LENGTH) };
    text.chars().skip(skipped).take(MESSAGE_LENGTH).collect()
}

fn how_it_died(how: Ended) -> String {
    match how {
        Ended::Signalled(signal) => {
            let name = nix::sys::signal::Signal::try_from(signal)
                .map_or_else(|_| signal.to_string(), |signal| signal.to_string());
            format!("was ended by {name}")
        }
        Ended::Exited(code) => format!("exited with code {code}"),
        Ended::Unknown => "died".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger;
    use crate::ledger::run::NewRun;
    use crate::name::RunId;
    use crate::secret::Secret;

    #[test]
    fn a_crash_takes_the_open_test_down_and_is_told_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ledger.db");
        let (writer, thread) = Writer::start(ledger::open(&path).expect("ledger"));
        let run = NewRun::unknown(RunId::new(0), Timestamp(0));
        let key = writer.commit(Durability::Process, move |db| ledger::run::begin(db, &run)).expect("run");
        let roster = Roster::new(key, writer, Vault::new([Secret::new("hunter2")]));
        roster.join("gw1", Kind::Process, Lane(1), Some(7), Timestamp(0));
        roster.test_began("gw1", "a", None, Timestamp(1));
        roster.test_ended("gw1", "a", Some("failed"), Some("password hunter2"), Timestamp(2));
        roster.test_began("gw1", "a", None, Timestamp(3));
        assert_eq!(roster.left("gw1", Ended::Signalled(9), Timestamp(4)), Some(WorkerOutcome::Crashed));
        assert_eq!(roster.left("gw1", Ended::Unknown, Timestamp(5)), None);
        assert_eq!(roster.tally().crashed, ["gw1"]);
        roster.writer.close();
        assert!(thread.join().expect("writer").is_none());
        let db = ledger::open_for_queries(&path).expect("ledger");
        let mut rows = db.prepare("SELECT attempt || outcome || message FROM tests ORDER BY attempt").expect("query");
        let rows: Vec<String> =
            rows.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_, _>>().expect("rows");
        assert_eq!(rows, ["1failedpassword ***", "2crashedgw1 was ended by SIGKILL in this test"]);
    }
}
