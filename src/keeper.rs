//! The keeper gives lanes to workers: makes them ahead of demand, cleans them after a
//! crash, and lets the others go on meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};

use crate::error::one_line;
use crate::fault::{self, Step};
use crate::lane::{LaneBook, Stage};
use crate::name::{Lane, Place};
use crate::os::port::PortBlock;
use crate::os::process::{Ended, PidFd};
use crate::renewal::{self, Renewed};
use crate::run::{Environment, Run};
use crate::sweep::{Scope, sweep};

/// How many lanes are made or cleaned at once.
const AT_ONCE: usize = 8;

/// A lane as a worker gets it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Which.
    pub lane: Lane,
    /// Whose.
    pub worker: String,
    /// What the worker finds in its environment.
    pub environment: Environment,
}

/// The keeper of a run's lanes.
#[derive(Debug)]
pub struct Keeper {
    run: Arc<Run>,
    state: Mutex<State>,
    changed: Notify,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    book: LaneBook,
    /// Blocks stay with their lane from its first making to the end of the run.
    ports: HashMap<Lane, PortBlock>,
    /// Processes that hold lanes, by the name they hold it under.
    processes: HashMap<String, Arc<AsyncFd<PidFd>>>,
    /// Why a lane is stuck.
    failures: HashMap<Lane, String>,
}

impl Keeper {
    /// A keeper without lanes.
    pub fn new(run: Arc<Run>) -> Self {
        Self { run, state: Mutex::default(), changed: Notify::new(), turns: Semaphore::new(AT_ONCE) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes lanes 0 to `lanes` - 1 in the background, so that workers find them ready.
    pub fn expect(self: &Arc<Self>, lanes: u32) {
        self.state().book.expect(lanes);
        for lane in (0..lanes).map(Lane) {
            let keeper = Arc::clone(self);
            // A failure is told to the worker that asks for the lane.
            tokio::spawn(async move { drop(keeper.ready(lane).await) });
        }
    }

    /// Makes a copy for the next run to begin with, if that would be glad of it, once the lanes are
    /// ready that workers are expected for. If that does not go, there is none.
    pub fn make_spare(self: &Arc<Self>) {
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            let expected = keeper.state().book.len();
            for lane in (0..expected).map(Lane) {
                if keeper.ready(lane).await.is_err() {
                    return;
                }
            }
            let run = Arc::clone(&keeper.run);
            let making = tokio::task::spawn_blocking(move || {
                for provider in run.providers.iter().filter(|provider| provider.wants_spare()) {
                    let made = run.inventory.make(std::slice::from_ref(provider), Place::Spare, None);
                    if made.is_err() {
                        sweep(&run.inventory, &run.sites(), Scope::Place(Place::Spare));
                    }
                }
            });
            drop(making.await);
        });
    }

    /// Leaves the numbers below `lanes` to workers that will come.
    pub fn reserve(&self, lanes: u32) {
        self.state().book.expect(lanes);
    }

    /// Gives `worker` a lane of its own, and waits until it is ready. The lane is the one
    /// named, or the best that is free.
    pub async fn lease(self: &Arc<Self>, worker: &str, named: Option<Lane>) -> anyhow::Result<Grant> {
        let lane = loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                let lane = named.unwrap_or_else(|| state.book.choose(worker));
                // Rather than make another lane, wait for one whose process is gone already
                // and whose end has only not been dealt with.
                let is_new = state.book.stage(lane) != Stage::Ready;
                let ending =
                    state.processes.iter().any(|(holder, process)| (is_new || holder == worker) && has_ended(process));
                if named.is_some() || !ending {
                    state.book.give(lane, worker);
                    break lane;
                }
            }
            changed.await;
        };
        match self.ready(lane).await {
            Ok(()) => {}
            Err(error) => {
                self.state().book.take_back(lane);
                return Err(error);
            }
        }
        let handed = fault::before(Step::HandOut).and_then(|()| {
            self.run.inventory.serves(Place::Lane(lane), worker);
            fault::after(Step::HandOut)
        });
        if let Err(error) = handed {
            self.release(worker);
            return Err(error);
        }
        let port_base = self.state().ports.get(&lane).map_or(0, PortBlock::base);
        let environment = self.run.worker_environment(Place::Lane(lane), worker, port_base);
        Ok(Grant { lane, worker: worker.to_owned(), environment })
    }

    /// Binds a lane to a process: it is held until the process is gone.
    pub fn bind(&self, worker: &str, process: &Arc<AsyncFd<PidFd>>) {
        self.state().processes.insert(worker.to_owned(), Arc::clone(process));
    }

    /// The lane of `worker` is free again; it stays as it is.
    pub fn release(&self, worker: &str) {
        {
            let mut state = self.state();
            state.processes.remove(worker);
            if let Some(lane) = state.book.held_by(worker) {
                state.book.take_back(lane);
            }
        }
        self.changed.notify_waiters();
    }

    /// The lane of `worker`, whose process is gone, becomes as its template again, and is free
    /// then.
    pub async fn release_renewed(self: &Arc<Self>, worker: &str) -> Renewed {
        let lane = {
            let mut state = self.state();
            state.processes.remove(worker);
            let Some(lane) = state.book.held_by(worker) else { return Renewed::default() };
            state.book.take_back(lane);
            state.book.set_stage(lane, Stage::Used);
            lane
        };
        self.changed.notify_waiters();
        match self.renewed(lane, true).await {
            Ok(renewed) => {
                self.state().book.set_stage(lane, Stage::Ready);
                self.changed.notify_waiters();
                renewed
            }
            Err(error) => {
                self.state().book.set_stage(lane, Stage::Dirty);
                Arc::clone(self).clean(lane).await;
                Renewed { again: vec![one_line(&error)], ..Renewed::default() }
            }
        }
    }

    /// The lane of `worker`, which goes on in it, becomes as its template again.
    pub async fn renew(&self, worker: &str) -> anyhow::Result<Renewed> {
        let lane = self.state().book.held_by(worker).context("it has no lane")?;
        self.renewed(lane, false).await
    }

    async fn renewed(&self, lane: Lane, is_alone: bool) -> anyhow::Result<Renewed> {
        let run = Arc::clone(&self.run);
        let renewing = tokio::task::spawn_blocking(move || renewal::renew(&run, Place::Lane(lane), is_alone));
        renewing.await.unwrap_or_else(|panicked| Err(anyhow!("it broke off: {panicked}")))
    }

    /// Whether the worker's process is known, so that its end will be noticed.
    pub fn is_bound(&self, worker: &str) -> bool {
        self.state().processes.contains_key(worker)
    }

    /// The worker crashed: nobody gets its lane before everything in it was undone.
    pub fn crashed(self: &Arc<Self>, worker: &str) {
        let lane = {
            let mut state = self.state();
            state.processes.remove(worker);
            let Some(lane) = state.book.held_by(worker) else { return };
            state.book.take_back(lane);
            state.book.set_stage(lane, Stage::Dirty);
            lane
        };
        let keeper = Arc::clone(self);
        tokio::spawn(async move { keeper.clean(lane).await });
    }

    async fn clean(self: Arc<Self>, lane: Lane) {
        let run = Arc::clone(&self.run);
        let swept =
            tokio::task::spawn_blocking(move || sweep(&run.inventory, &run.sites(), Scope::Place(Place::Lane(lane))))
                .await;
        {
            let mut state = self.state();
            match swept {
                Ok(report) if report.stuck.is_empty() => state.book.set_stage(lane, Stage::Unmade),
                Ok(report) => {
                    state.failures.insert(lane, report.stuck[0].1.clone());
                    state.book.set_stage(lane, Stage::Stuck);
                }
                Err(panicked) => {
                    state.failures.insert(lane, panicked.to_string());
                    state.book.set_stage(lane, Stage::Stuck);
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Waits until the lane is ready, and makes it if nobody else does.
    async fn ready(self: &Arc<Self>, lane: Lane) -> anyhow::Result<()> {
        loop {
            let changed = self.changed.notified();
            let found = {
                let mut state = self.state();
                let found = state.book.stage(lane);
                if found == Stage::Unmade {
                    state.book.set_stage(lane, Stage::Making);
                }
                found
            };
            match found {
                Stage::Ready => return Ok(()),
                Stage::Unmade => return self.make(lane).await,
                Stage::Stuck => {
                    return Err(anyhow!(
                        "lane {lane} is out of use: {}",
                        self.state().failures.get(&lane).cloned().unwrap_or_default()
                    ));
                }
                Stage::Making | Stage::Used | Stage::Dirty => changed.await,
            }
        }
    }

    async fn make(self: &Arc<Self>, lane: Lane) -> anyhow::Result<()> {
        let turn = self.turns.acquire().await.context("the keeper is there as long as its run")?;
        let keeper = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || keeper.make_now(lane)).await;
        let made = made.unwrap_or_else(|panicked| Err(anyhow!("making a lane broke off: {panicked}")));
        drop(turn);
        {
            let mut state = self.state();
            // After a failure the next one who asks tries again.
            state.book.set_stage(lane, if made.is_ok() { Stage::Ready } else { Stage::Unmade });
        }
        self.changed.notify_waiters();
        made
    }

    fn make_now(&self, lane: Lane) -> anyhow::Result<()> {
        let place = Place::Lane(lane);
        if !self.state().ports.contains_key(&lane) {
            // Runs look in different places first, so that they seldom get in each other's way.
            let seed = u64::from_str_radix(self.run.tag.as_str(), 16).unwrap_or(0) + u64::from(lane.0);
            let block = PortBlock::reserve(seed).context("no block of free ports is left on this machine")?;
            self.state().ports.insert(lane, block);
        }
        let made = self.run.inventory.make(&self.run.providers, place, None);
        if made.is_err() {
            // Half a lane is none; what cannot be undone now is owed to the end of the run.
            sweep(&self.run.inventory, &self.run.sites(), Scope::Place(place));
        }
        made.map_err(|error| anyhow!("{}", one_line(&error)))
    }
}

/// Holds a process so that its end can be waited for.
pub fn hold(pid: i32) -> std::io::Result<AsyncFd<PidFd>> {
    let process = PidFd::open(pid)?;
    // SAFETY: it owns its descriptor, which stays open and the same as long as it lives.
    Ok(unsafe { AsyncFd::register(process) }?)
}

fn has_ended(process: &AsyncFd<PidFd>) -> bool {
    process.get_ref().has_ended()
}

/// Waits until a process is gone and tells how it ended.
pub async fn ended(process: &AsyncFd<PidFd>) -> Ended {
    if process.readable().await.is_err() {
        return Ended::Unknown;
    }
    process.get_ref().ended().unwrap_or(Ended::Unknown)
}
