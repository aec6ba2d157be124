//! The desk: where pools and leases are asked for. Requests that come while a transaction is
//! being written share the next one, so that a safe write of the disk serves many. What happens
//! to those who wait is told to them when it is kept, and not before.

mod outside;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot, watch};

use crate::lease::ask::{Ask, Holder};
use crate::lease::board::{Answer, Board, News};
use crate::lease::grant::{Lease, LeaseState};
use crate::lease::queue::{Ticket, Waiter};
use crate::lease::refusal::Refusal;
use crate::lease::store::{Store, StoreError, Transaction};
use outside::{Guard, Spring};

/// How many ends of leases are remembered for a listener that is slow.
const BACKLOG: usize = 1024;

/// How soon a store that failed is tried again for those who wait.
const RETRY: Duration = Duration::from_secs(1);
/// How much longer than somebody waits for items they wait for an answer.
const ANSWER: Duration = Duration::from_secs(15);

/// What somebody who asked for items is told in the end.
pub type Reply = Result<Lease, Refusal>;

type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Session<'_>) -> After + Send>;

/// One job's place in a transaction.
pub struct Session<'a> {
    /// What there is.
    pub board: &'a mut Board,
    transaction: &'a mut dyn Transaction,
    ears: &'a Mutex<HashMap<Ticket, oneshot::Sender<Box<Reply>>>>,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session<'_> {
    /// Makes known what became of a lease that ended before this process looked.
    pub fn recall(&mut self, id: &str) {
        // What cannot be read is unknown, and that is said.
        if !self.board.knows(id)
            && let Ok(Some(lease)) = self.transaction.lease(id)
        {
            self.board.remember(&lease);
        }
    }
}

/// The desk of one store.
#[derive(Clone, Debug)]
pub struct Desk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Box<dyn Store>,
    jobs: Mutex<Jobs>,
    is_due: AtomicBool,
    board: Mutex<Board>,
    /// The board shows what was not kept.
    is_stale: AtomicBool,
    ears: Mutex<HashMap<Ticket, oneshot::Sender<Box<Reply>>>>,
    ended: broadcast::Sender<Arc<Lease>>,
    /// When something ends by itself next.
    alarm: watch::Sender<Option<Instant>>,
    /// Counts transactions that changed something.
    changed: watch::Sender<u64>,
    /// The run whose leases are renewed here.
    run: Option<String>,
    is_listening: AtomicBool,
    is_used: AtomicBool,
    /// What reads items again where they come from somewhere else.
    spring: OnceLock<Spring>,
    /// Who is told of a lease before its holder is.
    guard: OnceLock<Guard>,
    /// Why a transaction was not kept, the last that was not.
    why: Mutex<Option<StoreError>>,
}

#[derive(Default)]
struct Jobs(Vec<Job>);

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.0.len())
    }
}

/// What is told when a transaction is over.
#[derive(Default)]
struct Batch {
    afters: Vec<After>,
    news: Vec<News>,
    alarm: Option<Instant>,
    has_changed: bool,
    /// The last place in the line before it.
    last: Option<Ticket>,
    /// Places that are gone, of which nobody was told.
    vanished: Vec<Ticket>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// The desk of this store; it keeps the leases of this run, whose holders live as long as
    /// nobody says otherwise.
    pub fn new(store: Box<dyn Store>, run: Option<String>) -> Self {
        let board = Board::new(&store.owner(), run.as_deref());
        let shared = Shared {
            store,
            jobs: Mutex::default(),
            is_due: AtomicBool::new(false),
            board: Mutex::new(board),
            is_stale: AtomicBool::new(false),
            ears: Mutex::default(),
            ended: broadcast::channel(BACKLOG).0,
            alarm: watch::channel(None).0,
            changed: watch::channel(0).0,
            run,
            is_listening: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            spring: OnceLock::new(),
            guard: OnceLock::new(),
            why: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Does `work` in a transaction. Its value comes back when that is kept.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.queue(work);
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// The same for callers without a runtime.
    pub fn ask_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.queue(work);
        answer.blocking_recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// Does `work` in a transaction, and goes on.
    pub fn tell(&self, work: impl FnOnce(&mut Session<'_>) + Send + 'static) {
        self.push(Box::new(move |session| {
            work(session);
            Box::new(|_| ())
        }));
    }

    fn queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (sender, receiver) = oneshot::channel();
        self.push(Box::new(move |session| {
            let value = work(session);
            Box::new(move |kept| {
                let _ = sender.send(kept.map(|()| value));
            })
        }));
        receiver
    }

    /// Asks for items of those that are here.
    async fn acquire_here(&self, ask: Ask) -> Result<Reply, StoreError> {
        let (sender, receiver) = oneshot::channel::<Result<Result<Ticket, Box<Reply>>, StoreError>>();
        let (ear, heard) = oneshot::channel();
        let desk = self.clone();
        // With a key, who asked asks again, and finds it.
        let (is_kept, patience) = (ask.key.is_some(), ask.wait.saturating_add(ANSWER));
        self.push(Box::new(move |session| {
            let answer = match session.board.acquire(ask) {
                Answer::Granted(lease) => Err(Box::new(Ok(lease))),
                Answer::Refused(refusal) => Err(Box::new(Err(refusal))),
                Answer::Waits(ticket) => {
                    locked(session.ears).insert(ticket, ear);
                    Ok(ticket)
                }
            };
            Box::new(move |kept| {
                if let Err(Ok(answer)) = sender.send(kept.map(|()| answer))
                    && !is_kept
                {
                    match answer {
                        Ok(ticket) => desk.tell(move |session| session.board.abandon(ticket)),
                        Err(reply) => desk.take_back(*reply),
                    }
                }
            })
        }));
        let ticket = match receiver.await.unwrap_or_else(|_| Err(self.gone()))? {
            Err(reply) => return Ok(*reply),
            Ok(ticket) => ticket,
        };
        self.listen();
        let mut place = Place { desk: self, ticket, is_left: is_kept };
        // A store that is away for long tells nobody that the time is over.
        let Ok(reply) = tokio::time::timeout(patience, heard).await else { return Err(self.gone()) };
        place.is_left = true;
        reply.map(|reply| *reply).map_err(|_| self.gone())
    }

    /// Why there is no answer.
    fn gone(&self) -> StoreError {
        let why = locked(&self.shared.why).clone();
        why.unwrap_or_else(|| StoreError("the store has not kept it; ask again".to_owned()))
    }

    /// Nobody is there to take what was granted.
    fn take_back(&self, reply: Reply) {
        if let Ok(lease) = reply {
            self.tell(move |session| {
                let _ = session.board.release(&lease.id, None);
            });
        }
    }

    /// The holder is gone, with all that it had and waited for.
    pub fn holder_died(&self, whose: impl Fn(&Holder) -> bool + Send + 'static) {
        self.tell(move |session| end_all(session.board, LeaseState::Lost, &whose));
    }

    /// The same, and waits until it is kept.
    pub fn holder_died_blocking(&self, whose: impl Fn(&Holder) -> bool + Send + 'static) -> Result<(), StoreError> {
        self.ask_blocking(move |session| end_all(session.board, LeaseState::Lost, &whose))
    }

    /// Leases that end without their holders' doing, from now on.
    pub fn endings(&self) -> broadcast::Receiver<Arc<Lease>> {
        self.shared.ended.subscribe()
    }

    /// Changes whenever something has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Ends what ends by itself when its time has come, as long as it is polled.
    pub async fn keep_time(&self) {
        let mut alarm = self.shared.alarm.subscribe();
        loop {
            let at = *alarm.borrow_and_update();
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    if self.ask(|_| ()).await.is_err() {
                        // A store that is away is not asked all the time.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    // It may be the same moment again, where the store's clock is behind.
                    if *alarm.borrow() == at {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                changed = alarm.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Whether anybody has asked for anything here.
    pub fn is_used(&self) -> bool {
        self.shared.is_used.load(Ordering::Relaxed)
    }

    /// Hears from now on what other processes change, as long as somebody here waits for it.
    pub fn listen(&self) {
        if self.shared.is_listening.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::downgrade(&self.shared);
        self.shared.store.listen(Box::new(move || {
            let Some(shared) = shared.upgrade() else { return false };
            let is_awaited = !locked(&shared.ears).is_empty() || shared.ended.receiver_count() > 0;
            if is_awaited {
                Desk { shared }.due();
            }
            true
        }));
        // What they changed just before was not heard.
        self.due();
    }

    fn push(&self, job: Job) {
        self.shared.is_used.store(true, Ordering::Relaxed);
        locked(&self.shared.jobs).0.push(job);
        self.due();
    }

    fn due(&self) {
        if self.shared.is_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let batch = Arc::new(Mutex::new(Batch::default()));
        let (its, desk) = (Arc::clone(&batch), self.clone());
        let work = move |transaction: &mut dyn Transaction| desk.shared.transact(transaction, &mut locked(&its));
        let desk = self.clone();
        let after = move |kept| desk.over(std::mem::take(&mut *locked(&batch)), &kept);
        self.shared.store.submit(Box::new(work), Box::new(after));
    }

    /// A transaction is over.
    fn over(&self, batch: Batch, kept: &Result<(), StoreError>) {
        let Shared { is_due, is_stale, ears, ended, alarm, changed, jobs, .. } = &*self.shared;
        if let Err(error) = kept {
            *locked(&self.shared.why) = Some(error.clone());
            is_stale.store(true, Ordering::Release);
            if batch.last.is_none() {
                // A store that broke down has not come to them. What is asked from now on is tried.
                is_due.store(false, Ordering::Release);
                drop(std::mem::take(&mut locked(jobs).0));
            }
        }
        for after in batch.afters {
            after(kept.clone());
        }
        if kept.is_err() {
            let mut ears = locked(ears);
            // Who came just then has no place, and asks again. All others keep theirs.
            ears.retain(|ticket, _| batch.last.is_none_or(|last| *ticket <= last));
            if !ears.is_empty() {
                let again = Instant::now() + RETRY;
                alarm.send_if_modified(|at| at.is_none_or(|at| at > again) && at.replace(again) != Some(again));
            }
            return;
        }
        *locked(&self.shared.why) = None;
        for news in batch.news {
            match news {
                News::Granted(ticket, lease) => self.reply(ticket, Ok(lease)),
                News::Refused(ticket, refusal) => self.reply(ticket, Err(refusal)),
                News::Ended(lease) => {
                    let _ = ended.send(Arc::new(lease));
                }
            }
        }
        for ticket in batch.vanished {
            // Who waits there asks again.
            locked(ears).remove(&ticket);
        }
        alarm.send_if_modified(|at| std::mem::replace(at, batch.alarm) != batch.alarm);
        if batch.has_changed {
            changed.send_modify(|count| *count += 1);
        }
    }

    fn reply(&self, ticket: Ticket, reply: Reply) {
        let ear = locked(&self.shared.ears).remove(&ticket);
        if let Some(Err(reply)) = ear.map(|ear| ear.send(Box::new(reply)))
            && (*reply).as_ref().is_ok_and(|lease| lease.key.is_none())
        {
            self.take_back(*reply);
        }
    }
}

impl Shared {
    fn transact(&self, transaction: &mut dyn Transaction, batch: &mut Batch) -> Result<(), StoreError> {
        self.is_due.store(false, Ordering::Release);
        let mut board = locked(&self.board);
        let head = transaction.head()?;
        let mut has_absorbed = false;
        let is_ahead = board.version() > head.version;
        let is_stale = self.is_stale.swap(false, Ordering::AcqRel);
        if is_stale || is_ahead || board.version() == 0 {
            *board = Board::new(&self.store.owner(), self.run.as_deref());
            board.absorb(head, transaction.rows(None)?);
            let news = board.take_news().into_iter();
            batch.news = news.filter(|news| matches!(news, News::Granted(..))).collect();
            if is_stale {
                self.leave_lost_places(&mut board);
            }
            has_absorbed = true;
        } else if board.version() < head.version {
            let rows = transaction.rows(Some(board.version()))?;
            board.absorb(head, rows);
            has_absorbed = true;
        }
        let before = head.version;
        batch.last = Some(head.ticket);
        for other in board.others() {
            if !transaction.is_there(&other) {
                board.lost_process(&other);
            }
        }
        board.begin(transaction.now()?);
        for job in std::mem::take(&mut locked(&self.jobs).0) {
            let mut session = Session { board: &mut board, transaction: &mut *transaction, ears: &self.ears };
            batch.afters.push(job(&mut session));
        }
        let rows = board.finish();
        batch.news.extend(board.take_news());
        if has_absorbed {
            // Others may have taken this process for dead.
            let is_told = |ticket: &Ticket| {
                batch
                    .news
                    .iter()
                    .any(|news| matches!(news, News::Granted(it, _) | News::Refused(it, _) if it == ticket))
            };
            let ears = locked(&self.ears);
            batch.vanished = ears.keys().filter(|it| !board.is_waiting(**it) && !is_told(it)).copied().collect();
        }
        batch.has_changed = board.version() > before || !batch.news.is_empty();
        let now = board.now();
        batch.alarm = board.next_end().map(|at| Instant::now() + now.age(at));
        if rows.is_empty() { Ok(()) } else { transaction.write(board.head(), &rows) }
    }
}

impl Shared {
    /// Leaves places that nobody waits in here: whether they were kept was unknown.
    fn leave_lost_places(&self, board: &mut Board) {
        let owner = self.store.owner();
        let ears = locked(&self.ears);
        let is_lost =
            |waiter: &&Waiter| waiter.owner == owner && waiter.ask.key.is_none() && !ears.contains_key(&waiter.ticket);
        let lost: Vec<Ticket> = board.waiting().filter(is_lost).map(|waiter| waiter.ticket).collect();
        for ticket in lost {
            board.abandon(ticket);
        }
    }
}

/// A place in the line, left when nobody waits in it any more.
struct Place<'a> {
    desk: &'a Desk,
    ticket: Ticket,
    is_left: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.is_left {
            let ticket = self.ticket;
            self.desk.tell(move |session| session.board.abandon(ticket));
        }
    }
}

/// Ends all that these hold and wait for.
pub fn end_all(board: &mut Board, state: LeaseState, whose: &dyn Fn(&Holder) -> bool) {
    board.abandon_all(|ask| whose(&ask.holder));
    board.end_all(state, |lease| whose(&lease.holder));
}
