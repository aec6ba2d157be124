//! The desk: where pools and leases are asked for. Requests that come while a transaction is
//! being written share the next one, so that a safe write of the disk serves many. What happens
//! to those who wait is told to them when it is kept, and not before.

mod outside;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot, watch};

use crate::lease::ask::{Ask, Holder, LONGEST};
use crate::lease::board::{Answer, Board, News};
use crate::lease::grant::{Lease, LeaseState};
use crate::lease::predicate::Attributes;
use crate::lease::queue::Ticket;
use crate::lease::refusal::Refusal;
use crate::lease::store::{Head, Rows, Store, StoreError, Transaction};
use crate::os::marked;
use outside::{Guard, Spring};

/// How many ends of leases are remembered for a listener that is slow.
const BACKLOG: usize = 1024;

/// A lease, with the attributes of its items as they stood in the same transaction.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The lease.
    pub lease: Lease,
    /// What its items are like; none for one that is gone.
    pub attributes: Vec<Option<Arc<Attributes>>>,
}

impl Granted {
    /// With what the board knows of its items.
    pub fn of(lease: Lease, board: &Board) -> Self {
        let attributes = lease.items.iter().map(|held| board.attributes(held.item)).collect();
        Self { lease, attributes }
    }
}

/// What somebody who asked for items is told in the end.
pub type Reply = Result<Granted, Refusal>;

/// How much longer than it is to wait somebody is kept who hears nothing, as when the store is
/// away.
const GRACE: Duration = Duration::from_secs(30);
/// For how long a failure of the store counts as what is to be expected of it.
const LATELY: Duration = Duration::from_secs(5);
/// When a store that failed is asked again to keep what must be kept.
const AGAIN: Duration = Duration::from_secs(1);

type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Ear = oneshot::Sender<Box<Reply>>;
/// What is answered at once: a place in the line, or all that there is to say.
type First = Result<Result<Ticket, Box<Reply>>, StoreError>;

/// What is to be done in a transaction.
enum Job {
    /// Somebody waits to hear whether it was kept.
    Asked(Box<dyn FnOnce(&mut Session<'_>) -> After + Send>),
    /// Nobody does, so it is done again until it is kept.
    Told(Told),
}

type Told = Box<dyn Fn(&mut Session<'_>) + Send>;

/// One job's place in a transaction.
pub struct Session<'a> {
    /// What there is.
    pub board: &'a mut Board,
    transaction: &'a mut dyn Transaction,
    must_write: &'a mut bool,
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
    /// Who waits here; with a key, that may be several for one place in the line.
    ears: Mutex<HashMap<Ticket, Vec<Ear>>>,
    /// The version of the store up to which everybody has been told.
    told: AtomicU64,
    ended: broadcast::Sender<Arc<Lease>>,
    /// When something ends by itself next.
    alarm: watch::Sender<Option<Instant>>,
    /// Counts transactions that changed something.
    changed: watch::Sender<u64>,
    /// Counts those after which commands may have something to do.
    chores: watch::Sender<u64>,
    /// The run whose leases are renewed here.
    run: Option<String>,
    is_listening: AtomicBool,
    is_used: AtomicBool,
    /// What reads items again where they come from somewhere else.
    spring: OnceLock<Spring>,
    /// The pools that the configuration of this process defines.
    configured: OnceLock<BTreeSet<String>>,
    /// Who is told of a lease before its holder is.
    guard: OnceLock<Guard>,
    /// Why a transaction was not kept, the last that was not.
    why: Mutex<Option<StoreError>>,
    /// The same, whatever was kept since, and when that was.
    trouble: Mutex<Option<(Instant, StoreError)>>,
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
    /// Whether it came to the jobs at all.
    has_begun: bool,
    afters: Vec<After>,
    told: Vec<Told>,
    /// The version that it made, or saw.
    version: u64,
    news: Vec<Word>,
    alarm: Option<Instant>,
    has_changed: bool,
    has_chores: bool,
}

/// What is told to somebody who did not ask just then.
enum Word {
    Reply(Ticket, Box<Reply>),
    Ended(Arc<Lease>),
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
            told: AtomicU64::new(0),
            ended: broadcast::channel(BACKLOG).0,
            alarm: watch::channel(None).0,
            changed: watch::channel(0).0,
            chores: watch::channel(0).0,
            run,
            is_listening: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            spring: OnceLock::new(),
            configured: OnceLock::new(),
            guard: OnceLock::new(),
            why: Mutex::default(),
            trouble: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says which pools the configuration of this process defines: what it says of them counts.
    pub fn configured_by(&self, names: BTreeSet<String>) {
        // One process has one configuration.
        let _ = self.shared.configured.set(names);
    }

    /// Whether the configuration of this process defines this pool.
    pub fn is_configured(&self, pool: &str) -> bool {
        self.shared.configured.get().is_some_and(|names| names.contains(pool))
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

    /// Does `work` in a transaction, and goes on. Where the store does not keep it, it is done
    /// again until it does.
    pub fn tell(&self, work: impl Fn(&mut Session<'_>) + Send + 'static) {
        self.push(Job::Told(Box::new(work)));
    }

    fn queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> oneshot::Receiver<Result<T, StoreError>> {
        let (sender, receiver) = oneshot::channel();
        self.push(Job::Asked(Box::new(move |session| {
            let value = work(session);
            Box::new(move |kept| {
                let _ = sender.send(kept.map(|()| value));
            })
        })));
        receiver
    }

    /// Asks for items of those that are here. Who does not wait any more when they are there has not
    /// got them; with a key, who asks again finds them.
    async fn acquire_here(&self, ask: Ask) -> Result<Reply, StoreError> {
        let (sender, receiver) = oneshot::channel::<First>();
        let (ear, heard) = oneshot::channel();
        let patience = ask.wait.min(LONGEST) + GRACE;
        let is_kept = ask.key.is_some();
        let left = move |desk: &Desk, answer: Option<First>| match answer {
            Some(Ok(Ok(ticket))) if !is_kept => desk.leave(ticket),
            Some(Ok(Err(reply))) => desk.take_back(*reply),
            _ => (),
        };
        let desk = self.clone();
        self.push(Job::Asked(Box::new(move |session| {
            let answer = match session.board.acquire(ask) {
                Answer::Granted(lease) => Err(Box::new(Ok(Granted::of(lease, session.board)))),
                Answer::Refused(refusal) => Err(Box::new(Err(refusal))),
                Answer::Waits(ticket) => Ok(ticket),
            };
            Box::new(move |kept| {
                // There is no such place in the line before that is kept.
                if let (Ok(()), Ok(ticket)) = (&kept, &answer) {
                    desk.hears(*ticket, ear);
                }
                if let Err(answer) = sender.send(kept.map(|()| answer)) {
                    left(&desk, Some(answer));
                }
            })
        })));
        let answer = Pending::new(self, receiver, left).hear().await.ok_or_else(|| self.gone())??;
        let ticket = match answer {
            Err(reply) => return Ok(*reply),
            Ok(ticket) => ticket,
        };
        let left = move |desk: &Desk, reply: Option<Box<Reply>>| match reply {
            Some(reply) => desk.take_back(*reply),
            None if !is_kept => desk.leave(ticket),
            None => (),
        };
        let mut place = Pending::new(self, heard, left);
        self.listen();
        let reply = tokio::time::timeout(patience, place.hear()).await;
        reply.ok().flatten().map(|reply| *reply).ok_or_else(|| self.gone())
    }

    /// Why there is no answer.
    fn gone(&self) -> StoreError {
        let why = locked(&self.shared.why).clone();
        why.unwrap_or_else(|| StoreError("the store has not kept it; ask again".to_owned()))
    }

    /// Whoever waits at this place in the line is told there.
    fn hears(&self, ticket: Ticket, ear: Ear) {
        let mut ears = locked(&self.shared.ears);
        let its = ears.entry(ticket).or_default();
        its.retain(|other| !other.is_closed());
        its.push(ear);
    }

    /// Nobody waits at this place any more.
    fn leave(&self, ticket: Ticket) {
        self.tell(move |session| session.board.abandon(ticket));
        let desk = self.clone();
        // Not before it is kept: what was granted until then finds nobody who hears it.
        self.push(Job::Asked(Box::new(move |_| {
            Box::new(move |_| {
                locked(&desk.shared.ears).retain(|other, its| *other != ticket || !its.iter().all(Ear::is_closed));
            })
        })));
    }

    /// Nobody is there to take what was granted.
    fn take_back(&self, reply: Reply) {
        if let Ok(Granted { lease, .. }) = reply
            && lease.key.is_none()
        {
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

    /// Whether the store can be written, and did so lately: a little may find room where more does
    /// not.
    pub async fn check(&self) -> Result<(), StoreError> {
        let trouble = locked(&self.shared.trouble).clone();
        if let Some((at, why)) = trouble
            && at.elapsed() < LATELY
        {
            return Err(why);
        }
        self.ask(|session| *session.must_write = true).await
    }

    /// What this process is called in the store.
    pub fn owner(&self) -> String {
        self.shared.store.owner()
    }

    /// Leases that end without their holders' doing, from now on.
    pub fn endings(&self) -> broadcast::Receiver<Arc<Lease>> {
        self.shared.ended.subscribe()
    }

    /// Changes whenever something has changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Changes whenever commands of pools may have something to do.
    pub fn chores(&self) -> watch::Receiver<u64> {
        self.shared.chores.subscribe()
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
        // What was told is done again when the store fails, and its listeners stay.
        let batch = Arc::new(Mutex::new(Batch::default()));
        let (its, desk) = (Arc::clone(&batch), self.clone());
        let work = move |transaction: &mut dyn Transaction| desk.shared.transact(transaction, &mut locked(&its));
        let desk = self.clone();
        let after = move |kept| desk.over(std::mem::take(&mut *locked(&batch)), &kept);
        self.shared.store.submit(Box::new(work), Box::new(after));
    }

    /// A transaction is over.
    fn over(&self, batch: Batch, kept: &Result<(), StoreError>) {
        if kept.is_err() {
            self.failed(batch, kept);
            return;
        }
        let Shared { told, ended, alarm, changed, chores, .. } = &*self.shared;
        *locked(&self.shared.why) = None;
        for after in batch.afters {
            after(Ok(()));
        }
        for news in batch.news {
            match news {
                Word::Reply(ticket, reply) => self.reply(ticket, &reply),
                Word::Ended(lease) => {
                    let _ = ended.send(lease);
                }
            }
        }
        told.store(batch.version, Ordering::Release);
        alarm.send_if_modified(|at| std::mem::replace(at, batch.alarm) != batch.alarm);
        if batch.has_changed {
            changed.send_modify(|count| *count += 1);
        }
        if batch.has_chores {
            chores.send_modify(|count| *count += 1);
        }
    }

    /// A transaction was not kept. Who asked is told so; who waits has their place still.
    fn failed(&self, batch: Batch, kept: &Result<(), StoreError>) {
        let Shared { jobs, is_due, is_stale, alarm, .. } = &*self.shared;
        *locked(&self.shared.why) = kept.as_ref().err().cloned();
        *locked(&self.shared.trouble) = kept.as_ref().err().map(|why| (Instant::now(), why.clone()));
        is_stale.store(true, Ordering::Release);
        let again = batch.told.into_iter().map(Job::Told);
        let mut unanswered = Vec::new();
        let mut left = locked(jobs);
        if !batch.has_begun {
            // It did not come to the jobs, and nothing else will: the next who asks tries again.
            is_due.store(false, Ordering::Release);
            let (asked, told) = std::mem::take(&mut left.0).into_iter().partition(|job| matches!(job, Job::Asked(_)));
            (unanswered, left.0) = (asked, told);
        }
        left.0.splice(0..0, again);
        let is_owed = !left.0.is_empty();
        drop(left);
        for after in batch.afters {
            after(kept.clone());
        }
        drop::<Vec<Job>>(unanswered);
        if is_owed {
            let then = Instant::now() + AGAIN;
            alarm.send_modify(|at| *at = Some(at.map_or(then, |at| at.min(then))));
        }
    }

    fn reply(&self, ticket: Ticket, reply: &Reply) {
        // Who waits in another process is told there.
        let Some(ears) = locked(&self.shared.ears).remove(&ticket) else { return };
        let heard = ears.into_iter().filter_map(|ear| ear.send(Box::new(reply.clone())).ok()).count();
        if heard == 0 {
            self.take_back(reply.clone());
        }
    }
}

impl Shared {
    /// The board as the store has it, with what those who wait here have not been told.
    fn reload(&self, head: Head, transaction: &mut dyn Transaction) -> Result<Board, StoreError> {
        let mut board = Board::new(&self.store.owner(), self.run.as_deref());
        board.absorb(head, transaction.rows(None)?);
        board.take_news();
        let told = self.told.load(Ordering::Acquire);
        if told > 0 && told < head.version {
            let Rows { mut leases, waiters, .. } = transaction.rows(Some(told))?;
            leases.retain(|lease| lease.state != LeaseState::Held);
            board.absorb(head, Rows { leases, waiters, ..Rows::default() });
        }
        Ok(board)
    }

    fn transact(&self, transaction: &mut dyn Transaction, batch: &mut Batch) -> Result<(), StoreError> {
        self.is_due.store(false, Ordering::Release);
        let mut board = locked(&self.board);
        let head = transaction.head()?;
        let known = board.version();
        let is_ahead = known > head.version;
        if self.is_stale.swap(false, Ordering::AcqRel) || is_ahead || board.version() == 0 {
            *board = self.reload(head, transaction)?;
        } else if board.version() < head.version {
            let rows = transaction.rows(Some(board.version()))?;
            board.absorb(head, rows);
        }
        for other in board.others() {
            if !transaction.is_there(&other) {
                if board.is_making(&other) {
                    // Its generator may have outlived it, and nobody else gets what that works with.
                    marked::kill_all(marked::STEP, &format!("{other}:"));
                }
                board.lost_process(&other);
            }
        }
        board.begin(transaction.now()?);
        batch.has_begun = true;
        let mut must_write = false;
        for job in std::mem::take(&mut locked(&self.jobs).0) {
            let (must_write, transaction) = (&mut must_write, &mut *transaction);
            let mut session = Session { board: &mut board, transaction, must_write };
            match job {
                Job::Asked(work) => batch.afters.push(work(&mut session)),
                Job::Told(work) => {
                    work(&mut session);
                    batch.told.push(work);
                }
            }
        }
        let rows = board.finish();
        let word = |news, board: &Board| match news {
            News::Granted(ticket, lease) => Word::Reply(ticket, Box::new(Ok(Granted::of(lease, board)))),
            News::Refused(ticket, refusal) => Word::Reply(ticket, Box::new(Err(refusal))),
            News::Ended(lease) => Word::Ended(Arc::new(lease)),
        };
        batch.news = board.take_news().into_iter().map(|news| word(news, &board)).collect();
        batch.has_changed = board.version() != known || !batch.news.is_empty();
        batch.has_chores = board.version() != known && board.has_chores();
        batch.version = board.version();
        let now = board.now();
        batch.alarm = board.next_end().map(|at| Instant::now() + now.age(at));
        if rows.is_empty() && !must_write { Ok(()) } else { transaction.write(board.head(), &rows) }
    }
}

/// An answer that somebody waits for; `left` is told when they do not any more, and what came
/// just then.
struct Pending<'a, T, F: FnOnce(&Desk, Option<T>)> {
    desk: &'a Desk,
    waits: Option<(oneshot::Receiver<T>, F)>,
}

impl<'a, T, F: FnOnce(&Desk, Option<T>)> Pending<'a, T, F> {
    fn new(desk: &'a Desk, receiver: oneshot::Receiver<T>, left: F) -> Self {
        Self { desk, waits: Some((receiver, left)) }
    }

    async fn hear(&mut self) -> Option<T> {
        let (receiver, _) = self.waits.as_mut()?;
        let heard = receiver.await;
        self.waits = None;
        heard.ok()
    }
}

impl<T, F: FnOnce(&Desk, Option<T>)> Drop for Pending<'_, T, F> {
    fn drop(&mut self) {
        if let Some((mut receiver, left)) = self.waits.take() {
            receiver.close();
            left(self.desk, receiver.try_recv().ok());
        }
    }
}

/// Ends all that these hold and wait for.
pub fn end_all(board: &mut Board, state: LeaseState, whose: &dyn Fn(&Holder) -> bool) {
    board.abandon_all(|ask| whose(&ask.holder));
    board.end_all(state, |lease| whose(&lease.holder));
}
