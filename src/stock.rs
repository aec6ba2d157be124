//! The stock: runs the commands of pools. Items that have to be reset or retired are, by one
//! process at a time; generators make items for those who wait, and some ahead.
//!
//! Whoever has a desk for longer has a stock with it: a run, a service, a command at a shell as
//! long as it lasts, the watchdog of a run that was killed. What is to be done stands on the board,
//! so whatever dies, the next who looks there goes on. The work has a thread of its own, which is
//! started when there is a pool with a command, and not before.

mod answer;
mod care;
mod generate;
mod step;

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, Semaphore, watch};

use crate::desk::Desk;
use crate::lease::board::{Board, Demand, Plan};
use crate::ledger::lease::LedgerStore;
use crate::ledger::{self, Writer};
use crate::secret::Vault;
use care::{Care, Rests};

/// How long the end of a run, or of a service, waits for what is being done.
pub const SETTLING: Duration = Duration::from_secs(5);
/// How long a command at a shell, or a watchdog, does so: it has nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(70);
/// How often is looked for what others have left.
const TICK: Duration = Duration::from_secs(1);
/// How many generators run at once; their commands may be heavy.
const MOST_MAKING: usize = 4;
/// How many items are reset or retired at once.
const MOST_CARES: usize = 16;
/// How many lines of trouble are kept to be told.
const MOST_LINES: usize = 5;

/// The stock of a desk; clones share it.
#[derive(Clone, Debug)]
pub struct Stock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    desk: Desk,
    run: Option<String>,
    vault: Vault,
    keeps_stock: bool,
    state: Mutex<State>,
    /// Somebody has something new for the thread.
    wake: Notify,
    /// What is not done yet is not to be done any more.
    halt: watch::Sender<bool>,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    thread: Option<(JoinHandle<()>, Receiver<()>)>,
    handle: Option<Handle>,
    is_closing: bool,
    cares: usize,
    makings: usize,
    making: Plan,
    rests: Rests,
    has_looked: bool,
    /// The generators that were seen, by their pools.
    prints: HashMap<String, String>,
    lines: Vec<String>,
}

/// What is begun in one look.
#[derive(Debug, Default)]
struct Begun {
    cares: Vec<Care>,
    demands: Vec<Demand>,
    prints: HashMap<String, String>,
    next: Option<Instant>,
}

impl Stock {
    /// The stock of a desk, of this run if it is one; `keeps_stock` where it makes items ahead as
    /// well.
    pub fn new(desk: &Desk, run: Option<String>, vault: Vault, keeps_stock: bool) -> Self {
        Self(Arc::new(Inner {
            desk: desk.clone(),
            run,
            vault,
            keeps_stock,
            state: Mutex::default(),
            wake: Notify::new(),
            halt: watch::channel(false).0,
            turns: Semaphore::new(MOST_MAKING),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to work as soon as there is a pool with a command.
    pub async fn tend(&self) {
        let mut chores = self.0.desk.chores();
        if chores.wait_for(|count| *count > 0).await.is_ok() {
            // Without a thread, nothing is done by itself; who asks for something is told.
            let _ = self.start();
        }
    }

    /// Begins to work.
    fn start(&self) -> std::io::Result<Handle> {
        let mut state = self.state();
        if let Some(handle) = &state.handle {
            return Ok(handle.clone());
        }
        if state.is_closing {
            return Err(std::io::Error::other("it is about to end"));
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (done, over) = channel();
        let stock = self.clone();
        let work = move || {
            runtime.block_on(stock.work());
            // Nobody may wait for it any more.
            let _ = done.send(());
        };
        let thread = std::thread::Builder::new().name("isolane-stock".to_owned()).spawn(work)?;
        state.thread = Some((thread, over));
        state.handle = Some(handle.clone());
        Ok(handle)
    }

    /// Does what can be done now, within `limit`, and ends. What went wrong comes back; what is
    /// left, others do.
    pub fn settle(&self, limit: Duration) -> Vec<String> {
        let is_idle = self.state().handle.is_none();
        if is_idle && self.0.desk.is_used() {
            let is_due = self.0.desk.ask_blocking(|session| session.board.unready().next().is_some());
            if is_due.unwrap_or(false) {
                let _ = self.start();
            }
        }
        let thread = {
            let mut state = self.state();
            state.is_closing = true;
            state.thread.take()
        };
        if let Some((thread, over)) = thread {
            self.0.wake.notify_one();
            if over.recv_timeout(limit).is_err() {
                self.0.halt.send_replace(true);
                self.0.wake.notify_one();
            }
            let _ = thread.join();
        }
        std::mem::take(&mut self.state().lines)
    }

    async fn work(&self) {
        let mut chores = self.0.desk.chores();
        loop {
            chores.borrow_and_update();
            let next = self.look().await;
            {
                let state = self.state();
                let is_idle = state.cares == 0 && state.makings == 0;
                if state.is_closing && is_idle {
                    return;
                }
            }
            let due = next.unwrap_or_else(|| Instant::now() + TICK).min(Instant::now() + TICK);
            tokio::select! {
                changed = chores.changed() => if changed.is_err() { return },
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    /// Looks what is to be done, and begins it. When to look again comes back.
    async fn look(&self) -> Option<Instant> {
        if *self.0.halt.borrow() {
            return None;
        }
        let stock = self.clone();
        // A store that is away is asked again a little later.
        let begun = self.0.desk.ask(move |session| stock.plan(session.board)).await.ok()?;
        {
            let mut state = self.state();
            state.cares += begun.cares.len();
            state.makings += begun.demands.len();
            state.prints.extend(begun.prints);
            for demand in &begun.demands {
                *state.making.entry(key_of(demand)).or_default() += 1;
            }
        }
        for care in begun.cares {
            let stock = self.clone();
            tokio::spawn(async move {
                stock.care(care).await;
                stock.state().cares -= 1;
                stock.0.wake.notify_one();
            });
        }
        for demand in begun.demands {
            let stock = self.clone();
            tokio::spawn(async move {
                // Who waits for it was told, and the board knows.
                let _ = stock.make(&demand).await;
                stock.is_made(&demand);
            });
        }
        begun.next
    }

    /// One that was to be made is, or is not.
    fn is_made(&self, demand: &Demand) {
        let mut state = self.state();
        state.makings -= 1;
        let key = key_of(demand);
        if let Some(count) = state.making.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                state.making.remove(&key);
            }
        }
        drop(state);
        self.0.wake.notify_one();
    }

    fn plan(&self, board: &mut Board) -> Begun {
        let mut state = self.state();
        let mut begun = Begun::default();
        let is_closing = state.is_closing;
        if !is_closing {
            let prints: Vec<(String, String)> = board
                .pools()
                .filter_map(|pool| Some((pool.name.clone(), pool.definition.generator.as_ref()?.fingerprint.clone())))
                .filter(|(pool, print)| state.prints.get(pool) != Some(print))
                .collect();
            for (pool, print) in prints {
                generate::retire_outdated(board, &pool, &print);
                begun.prints.insert(pool, print);
            }
        }
        let room = MOST_CARES.saturating_sub(state.cares);
        let has_looked = std::mem::replace(&mut state.has_looked, true);
        (begun.cares, begun.next) = care::begin(board, &mut state.rests, has_looked, room);
        if !is_closing {
            begun.demands = board.demands(&state.making, self.0.keeps_stock);
        }
        begun
    }

    /// Something went wrong that whoever began all this should know.
    fn note(&self, line: String) {
        let mut state = self.state();
        if state.lines.len() < MOST_LINES {
            state.lines.push(line);
        }
    }

    /// Comes back when nothing more is to be done.
    async fn halted(&self) {
        let mut halt = self.0.halt.subscribe();
        let _ = halt.wait_for(|is| *is).await;
    }
}

fn key_of(demand: &Demand) -> (String, String) {
    (demand.pool.clone(), crate::lease::board::canonical(&demand.input))
}

/// Does in a ledger what its pools' commands can do now: what a run left that was killed.
pub fn settle_ledger(path: &Path, limit: Duration) -> anyhow::Result<()> {
    let Some(db) = ledger::open_existing(path)? else { return Ok(()) };
    if !ledger::lease::has_chores(&db)? {
        return Ok(());
    }
    let (writer, thread) = Writer::start(db);
    let desk = Desk::new(Box::new(LedgerStore::new(writer.clone(), path)), None);
    let stock = Stock::new(&desk, None, Vault::default(), false);
    if stock.start().is_ok() {
        stock.settle(limit);
    }
    writer.close();
    let _ = thread.join();
    Ok(())
}
