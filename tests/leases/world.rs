//! Two processes with one store, those who ask there, and the model beside them.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::Database;
use isolane::address::Variables;
use isolane::desk::{Desk, Reply, Session};
use isolane::lease::board::Board;
use isolane::lease::grant::LeaseState;
use isolane::lease::refusal::Refusal;
use isolane::lease::store::{Store, StoreError};
use isolane::ledger::lease::LedgerStore;
use isolane::ledger::{self, Writer};
use isolane::provider::open_store;
use tokio::task::JoinHandle;

use crate::model::{Answer, Model};
use crate::step::{Fence, Looks, Move, POOLS, Request, Step, definition, holder};
use crate::store::{Staged, Surroundings};

/// How long somebody may take to hear what they must hear.
const PATIENCE: Duration = Duration::from_secs(3);

struct Process {
    desk: Desk,
    store: Staged,
    run: Option<&'static str>,
}

/// Somebody who waits.
struct Asker {
    ticket: u64,
    process: usize,
    is_keyed: bool,
    task: JoinHandle<Result<Reply, StoreError>>,
}

pub struct World {
    runtime: tokio::runtime::Runtime,
    inner: Arc<dyn Store>,
    surroundings: Arc<Surroundings>,
    processes: Vec<Process>,
    started: usize,
    askers: Vec<Asker>,
    model: Model,
    /// The ids of leases by their fences.
    ids: BTreeMap<u64, String>,
    told: Vec<&'static str>,
    _folder: tempfile::TempDir,
}

type Wrong = Result<(), String>;

impl World {
    /// With the ledger of a run as its store.
    pub fn on_a_ledger() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.db");
        let (writer, _) = Writer::start(ledger::open(&path).expect("a ledger"));
        Self::new(Arc::new(LedgerStore::new(writer, &path)), folder)
    }

    /// With a PostgreSQL database as its store.
    pub fn on_a_server(database: &Database<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(&database.url(), "the test", &Variables::new(), folder.path()).expect("a store");
        Self::new(Arc::from(store), folder)
    }

    pub fn new(inner: Arc<dyn Store>, folder: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let surroundings = Arc::new(Surroundings::default());
        surroundings.now.store(1_000_000_000, Ordering::SeqCst);
        let model = Model { now: 1_000_000_000, ..Model::default() };
        let mut world = Self {
            runtime,
            inner,
            surroundings,
            processes: Vec::new(),
            started: 0,
            askers: Vec::new(),
            model,
            ids: BTreeMap::new(),
            told: Vec::new(),
            _folder: folder,
        };
        for run in [Some("r1"), None] {
            let process = world.start(run);
            world.processes.push(process);
        }
        world
    }

    fn start(&mut self, run: Option<&'static str>) -> Process {
        self.started += 1;
        let owner = format!("p{}", self.started);
        self.surroundings.alive.lock().expect("no panic inside").insert(owner.clone());
        let store = Staged {
            inner: Arc::clone(&self.inner),
            owner,
            surroundings: Arc::clone(&self.surroundings),
            is_dead: Arc::new(AtomicBool::new(false)),
            fails: Arc::new(AtomicBool::new(false)),
        };
        Process { desk: Desk::new(Box::new(store.clone()), run.map(str::to_owned)), store, run }
    }

    /// What askers were told.
    pub fn told(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.told)
    }

    /// Takes one step, and looks whether all is as it must be.
    pub fn take(&mut self, it: &Move) -> Wrong {
        let is_fallible = !matches!(it.step, Step::Cancel(_) | Step::Kill(_) | Step::Pass(_) | Step::Crash);
        let before = self.model.clone();
        if it.fails && is_fallible {
            self.processes[it.process].store.fails.store(true, Ordering::SeqCst);
        }
        self.model.begin(self.processes[it.process].run);
        let outcome = self.step(it)?;
        if self.processes[it.process].store.fails.swap(false, Ordering::SeqCst) {
            // Nothing was asked of the store.
        } else if it.fails && is_fallible {
            self.model = before;
            self.told.push("not kept");
        }
        if let Some(word) = outcome {
            self.told.push(word);
        }
        self.look(it.process)?;
        self.listen()
    }

    /// Does it in both worlds; the model answers first.
    #[expect(clippy::too_many_lines, reason = "a table of what may happen")]
    fn step(&mut self, it: &Move) -> Result<Option<&'static str>, String> {
        let process = it.process;
        let pick = |n: u8, of: usize| usize::from(n) % of.max(1);
        match &it.step {
            Step::Define(pool, ttl) => {
                let (name, what) = (POOLS[*pool], definition(*pool, *ttl));
                self.model.define(name, &what);
                self.ask(it, move |session| session.board.define(name, &what), ()).map(|()| None)
            }
            Step::Add(pool, items) => {
                let (name, items) = (POOLS[*pool], attributes(items));
                if !self.model.pools.contains_key(name) {
                    return Ok(None);
                }
                self.model.add(name, items.clone(), false);
                self.ask(it, move |session| session.board.add(name, items, None), ()).map(|()| None)
            }
            Step::Configure(pool, items) => {
                let (name, what, items) = (POOLS[*pool], definition(*pool, 3), attributes(items));
                self.model.configure(name, &what, items.clone());
                self.ask(it, move |session| session.board.configure(name, &what, items), ()).map(|()| None)
            }
            Step::Retire(pool, n) => {
                let pool = POOLS[*pool];
                let names: Vec<String> = self.model.of_pool(pool).map(|item| item.name.clone()).collect();
                let name = names.get(pick(*n, names.len())).cloned().unwrap_or_else(|| "none".to_owned());
                let expected = self.model.retire(pool, &name);
                self.ask(it, move |session| code(session.board.retire(pool, &[name]).map(drop)), expected)
            }
            Step::Remove(pool, when_released) => {
                let (pool, when_released) = (POOLS[*pool], *when_released);
                let expected = self.model.remove(pool, when_released);
                self.ask(it, move |session| code(session.board.remove_pool(pool, when_released)), expected)
            }
            Step::Acquire(request) => self.acquire(it, request),
            Step::Cancel(n) => {
                let candidates: Vec<usize> =
                    (0..self.askers.len()).filter(|n| self.askers[*n].process == process).collect();
                let Some(at) = candidates.get(pick(*n, candidates.len())) else { return Ok(None) };
                let asker = self.askers.remove(*at);
                asker.task.abort();
                let _ = self.runtime.block_on(asker.task);
                if !asker.is_keyed {
                    self.model.waiters.remove(&asker.ticket);
                }
                Ok(None)
            }
            Step::Renew(n, ttl, is_right) => {
                let Some((fence, id)) = self.some_lease(*n) else { return Ok(None) };
                let given = (!*is_right).then_some(fence + 1);
                let expected = self.model.renew(fence, given, *ttl);
                let ttl = ttl.map(Duration::from_millis);
                let work = move |session: &mut Session<'_>| {
                    session.recall(&id);
                    code(session.board.renew(&id, given, ttl).map(drop))
                };
                self.ask(it, work, expected)
            }
            Step::Release(n, given) => {
                let Some((fence, id)) = self.some_lease(*n) else { return Ok(None) };
                let given = match given {
                    Fence::None => None,
                    Fence::Right => Some(fence),
                    Fence::Wrong => Some(fence + 1),
                };
                let expected = self.model.release(fence, given);
                let work = move |session: &mut Session<'_>| {
                    session.recall(&id);
                    code(session.board.release(&id, given))
                };
                self.ask(it, work, expected)
            }
            Step::Revoke(n) => {
                let Some((fence, id)) = self.some_lease(*n) else { return Ok(None) };
                self.model.revoke(fence);
                let work = move |session: &mut Session<'_>| {
                    session.recall(&id);
                    code(session.board.revoke(&id))
                };
                self.ask(it, work, Ok(()))
            }
            Step::Kill(n) => {
                let its = holder(*n);
                let is_its = move |other: &isolane::lease::ask::Holder| *other == its;
                self.model.end_all("lost", &is_its);
                self.processes[process].desk.holder_died(is_its);
                Ok(None)
            }
            Step::RevokeAll(n) => {
                let its = holder(*n);
                let is_its = move |other: &isolane::lease::ask::Holder| *other == its;
                self.model.end_all("revoked", &is_its);
                let work = move |session: &mut Session<'_>| {
                    isolane::desk::end_all(session.board, LeaseState::Revoked, &is_its);
                };
                self.ask(it, work, ()).map(|()| None)
            }
            Step::Pass(millis) => {
                self.model.now += millis * 1000;
                self.surroundings.now.store(self.model.now, Ordering::SeqCst);
                self.model.begin(self.processes[process].run);
                Ok(None)
            }
            Step::Crash => {
                self.crash(process);
                Ok(None)
            }
            Step::BeginReset(n) => {
                let Some(key) = self.some_item(*n, isolane::lease::item::ItemState::Dirty) else { return Ok(None) };
                let owner = self.processes[process].store.owner.clone();
                self.model.begin_reset(key, &owner);
                self.ask(it, move |session| drop(session.board.begin_reset(key)), ()).map(|()| None)
            }
            Step::WasReset(n, is_good) => {
                let Some(key) = self.some_item(*n, isolane::lease::item::ItemState::Resetting) else { return Ok(None) };
                let failed = (!is_good).then(|| "it fails".to_owned());
                self.model.was_reset(key, *is_good);
                self.ask(it, move |session| session.board.was_reset(key, failed), ()).map(|()| None)
            }
            Step::WasRetired(n) => {
                let Some(key) = self.some_item(*n, isolane::lease::item::ItemState::Retiring) else { return Ok(None) };
                self.model.was_retired(key);
                let retire = move |session: &mut Session<'_>| {
                    if session.board.begin_retire(key).is_some() {
                        session.board.was_retired(key, None);
                    }
                };
                self.ask(it, retire, ()).map(|()| None)
            }
        }
    }

    fn some_lease(&self, n: u8) -> Option<(u64, String)> {
        // Mostly one that is held.
        let held: Vec<u64> = self.model.leases.keys().copied().filter(|fence| self.ids.contains_key(fence)).collect();
        let all: Vec<u64> = if n < 200 && !held.is_empty() { held } else { self.ids.keys().copied().collect() };
        let fence = *all.get(usize::from(n) % all.len().max(1))?;
        Some((fence, self.ids[&fence].clone()))
    }

    fn some_item(&self, n: u8, state: isolane::lease::item::ItemState) -> Option<i64> {
        let such: Vec<i64> = self.model.items.values().filter(|it| it.state == state).map(|it| it.key).collect();
        such.get(usize::from(n) % such.len().max(1)).copied()
    }

    /// Asks for something that answers at once.
    fn ask<T: Told + Send + 'static>(
        &mut self,
        it: &Move,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
        expected: impl Borrow<T::Expected>,
    ) -> Result<T::Word, String> {
        let answer = self.runtime.block_on(self.processes[it.process].desk.ask(work));
        let has_failed = self.has_failed(it);
        match answer {
            Ok(answer) if !has_failed => answer.compare(expected.borrow()),
            Err(_) if has_failed => Ok(T::Word::default()),
            Ok(_) => Err("it says that it was kept".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn acquire(&mut self, it: &Move, request: &Request) -> Result<Option<&'static str>, String> {
        let (desk, ask) = (self.processes[it.process].desk.clone(), request.ask());
        let owner = self.processes[it.process].store.owner.clone();
        let expected = self.model.acquire(&ask, &owner);
        let is_keyed = ask.key.is_some();
        let looker = desk.clone();
        let task = self.runtime.spawn(async move { desk.acquire(ask).await });
        self.runtime.block_on(async move {
            // Its request is at the desk when this one is.
            tokio::task::yield_now().await;
            let _ = looker.ask(|_| ()).await;
        });
        if self.has_failed(it) {
            return match self.hear(task)? {
                Err(_) => Ok(None),
                Ok(reply) => Err(format!("it says that it was kept: {reply:?}")),
            };
        }
        if let Answer::Waits(ticket) = expected {
            self.askers.push(Asker { ticket, process: it.process, is_keyed, task });
            return Ok(None);
        }
        let reply =
            self.hear(task).map_err(|why| format!("{expected:?}: {why}"))?.map_err(|error| error.to_string())?;
        is_answer(&reply, &expected)
    }

    /// Whether it was to fail, and had anything to write.
    fn has_failed(&self, it: &Move) -> bool {
        it.fails && !self.processes[it.process].store.fails.load(Ordering::SeqCst)
    }

    fn hear(&self, task: JoinHandle<Result<Reply, StoreError>>) -> Result<Result<Reply, StoreError>, String> {
        let heard = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, task).await });
        heard.map_err(|_| "somebody is never told".to_owned())?.map_err(|error| error.to_string())
    }

    fn crash(&mut self, at: usize) {
        let run = self.processes[at].run;
        let Staged { owner, is_dead, .. } = self.processes[at].store.clone();
        is_dead.store(true, Ordering::SeqCst);
        self.surroundings.alive.lock().expect("no panic inside").remove(&owner);
        let (its, others) = std::mem::take(&mut self.askers).into_iter().partition(|asker| asker.process == at);
        self.askers = others;
        for asker in Vec::<Asker>::from_iter(its) {
            asker.task.abort();
            let _ = self.runtime.block_on(asker.task);
        }
        self.processes[at] = self.start(run);
        self.model.lost_process(&owner);
    }

    /// Both processes, and one that has just started, must see what the model says.
    fn look(&mut self, first: usize) -> Wrong {
        let order = [first, 1 - first];
        for at in order {
            self.model.begin(self.processes[at].run);
            self.model.finish();
        }
        self.model.begin(None);
        self.model.finish();
        self.model.is_sound()?;
        let expected = lines_of_model(&self.model);
        let fresh = self.start(None);
        let desks = order.map(|at| self.processes[at].desk.clone());
        // All look once before any is compared: what one of them does, the others must see.
        for desk in desks.iter().chain([&fresh.desk]) {
            self.runtime.block_on(desk.ask(|_| ())).map_err(|error| error.to_string())?;
        }
        for (desk, who) in desks.iter().zip(["here", "there"]).chain([(&fresh.desk, "afresh")]) {
            let look = |session: &mut Session<'_>| {
                let ids: Vec<_> = session.board.held().into_iter().map(|lease| (lease.fence, lease.id)).collect();
                (lines_of_board(session.board), ids)
            };
            let (found, ids) = self.runtime.block_on(desk.ask(look)).map_err(|error| error.to_string())?;
            self.ids.extend(ids);
            if found != expected {
                let missing = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("\n  - {line}"));
                let more = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("\n  + {line}"));
                return Err(format!("{who} it is not as the rules say:{}", missing.chain(more).collect::<String>()));
            }
        }
        self.surroundings.alive.lock().expect("no panic inside").remove(&fresh.store.owner);
        Ok(())
    }

    /// Whoever has an answer by the model has heard it, and nobody else has heard anything.
    fn listen(&mut self) -> Wrong {
        for asker in std::mem::take(&mut self.askers) {
            let Some(expected) = self.model.told.get(&asker.ticket).cloned() else {
                if asker.task.is_finished() {
                    let reply = self.hear(asker.task)?;
                    return Err(format!("who waits with ticket {} hears {reply:?}", asker.ticket));
                }
                self.askers.push(asker);
                continue;
            };
            let ticket = asker.ticket;
            let reply = self.hear(asker.task).map_err(|why| format!("ticket {ticket}, {expected:?}: {why}"))?;
            let reply = reply.map_err(|error| error.to_string())?;
            let word = match is_answer(&reply, &expected) {
                Err(_) if self.model.is_as_right(ticket, &answer_of(&reply)) => None,
                word => word?,
            };
            let late = [
                ("granted", "granted late"),
                ("exhausted", "exhausted late"),
                ("unsatisfiable", "unsatisfiable late"),
                ("pool-unknown", "pool-unknown late"),
                ("lease-lost", "lease-lost late"),
            ];
            self.told.extend(late.iter().find(|(now, _)| Some(*now) == word).map(|(_, late)| *late));
        }
        Ok(())
    }
}

/// An answer that can be compared with what the model says.
trait Told {
    type Expected;
    type Word: Default;
    fn compare(self, expected: &Self::Expected) -> Result<Self::Word, String>;
}

impl Told for () {
    type Expected = ();
    type Word = ();
    fn compare(self, (): &()) -> Wrong {
        Ok(())
    }
}

impl Told for usize {
    type Expected = ();
    type Word = ();
    fn compare(self, (): &()) -> Wrong {
        Ok(())
    }
}

impl Told for Result<(), &'static str> {
    type Expected = Self;
    type Word = Option<&'static str>;
    fn compare(self, expected: &Self) -> Result<Self::Word, String> {
        if self == *expected { Ok(self.err()) } else { Err(format!("answered {self:?} and not {expected:?}")) }
    }
}

fn code(answer: Result<(), Refusal>) -> Result<(), &'static str> {
    answer.map_err(|refusal| refusal.code())
}

fn answer_of(reply: &Reply) -> Answer {
    match reply {
        Ok(granted) => Answer::Granted(granted.lease.fence),
        Err(refusal) => Answer::Refused(refusal.code()),
    }
}

fn is_answer(reply: &Reply, expected: &Answer) -> Result<Option<&'static str>, String> {
    let found = answer_of(reply);
    if found != *expected {
        return Err(format!("answered {found:?} and not {expected:?}"));
    }
    Ok(Some(reply.as_ref().map_or_else(Refusal::code, |_| "granted")))
}

fn attributes(items: &[Looks]) -> Vec<isolane::lease::predicate::Attributes> {
    items.iter().map(|it| it.attributes()).collect()
}

fn lines_of_board(board: &Board) -> Vec<String> {
    let mut lines = Vec::new();
    for pool in board.pools() {
        lines.push(format!("pool {} {:?} {}", pool.name, pool.definition.ttl, pool.definition.is_leaving));
        for it in board.items_of(&pool.name) {
            lines.push(format!(
                "item {} {}/{} {:?} held {} fence {} used {} failures {} soiled {} leaving {} configured {}",
                it.key,
                it.pool,
                it.name,
                it.state,
                it.held,
                it.fence,
                it.used,
                it.failures,
                it.is_soiled,
                it.is_leaving,
                it.is_configured
            ));
        }
    }
    for it in board.held() {
        let items: Vec<_> = it.items.iter().map(|held| held.item).collect();
        let key = it.key.as_ref().map(|(key, _)| key);
        lines.push(format!(
            "lease {} {items:?} of {} {key:?} from {} until {} for {} kept {}",
            it.fence, it.holder, it.acquired_at.0, it.expires_at.0, it.ttl, it.is_kept
        ));
    }
    for it in board.waiting() {
        lines.push(format!(
            "waiter {} of {} {:?} from {} until {} for {} in {}",
            it.ticket,
            it.ask.holder,
            it.ask.key,
            it.since.0,
            it.until.0,
            it.ask.substance(),
            it.owner
        ));
    }
    let head = board.head();
    lines.push(format!("fence {} ticket {} used {} item {}", head.fence, head.ticket, head.used, head.item));
    lines
}

fn lines_of_model(model: &Model) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, definition) in &model.pools {
        lines.push(format!("pool {name} {:?} {}", definition.ttl, definition.is_leaving));
        for it in model.of_pool(name) {
            lines.push(format!(
                "item {} {}/{} {:?} held {} fence {} used {} failures {} soiled {} leaving {} configured {}",
                it.key,
                it.pool,
                it.name,
                it.state,
                it.held,
                it.fence,
                it.used,
                it.failures,
                it.soiled,
                it.leaving,
                it.configured
            ));
        }
    }
    for it in model.leases.values() {
        let key = it.key.as_ref().map(|(key, _)| key);
        lines.push(format!(
            "lease {} {:?} of {} {key:?} from {} until {} for {} kept {}",
            it.fence, it.items, it.holder, it.acquired, it.expires, it.ttl, it.kept
        ));
    }
    for (ticket, it) in &model.waiters {
        lines.push(format!(
            "waiter {ticket} of {} {:?} from {} until {} for {} in {}",
            it.ask.holder,
            it.ask.key,
            it.since,
            it.until,
            it.ask.substance(),
            it.owner
        ));
    }
    let Model { fence, ticket, used, item, .. } = model;
    lines.push(format!("fence {fence} ticket {ticket} used {used} item {item}"));
    lines
}
