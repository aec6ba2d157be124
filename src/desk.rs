//! The desk: where pools and leases are asked for. Requests that come while a transaction is
//! being written share the next one, so that a safe write of the disk serves many. What happens
//! to those who wait is told to them when it is kept, and not before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, oneshot, watch};

use crate::lease::ask::{Ask, Holder};
use crate::lease::board::{Answer, Board, News};
use crate::lease::grant::{Lease, LeaseState};
use crate::lease::queue::Ticket;
use crate::lease::refusal::Refusal;
use crate::lease::store::{Store, StoreError, Transaction};

/// How many ends of leases are remembered for a listener that is slow.
const BACKLOG: usize = 1024;

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
        };
        Self { shared: Arc::new(shared) }
    }

    /// Does `work` in a transaction. Its value comes back when that is kept.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.queue(work);
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The same for callers without a runtime.
    pub fn ask_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session<'_>) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let answer = self.queue(work);
        answer.blocking_recv().unwrap_or_else(|_| Err(gone()))
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

    /// Asks for items, and waits for them as long as the ask says. Who does not wait any more
    /// when they are there has not got them.
    pub async fn acquire(&self, ask: Ask) -> Result<Reply, StoreError> {
        let (sender, receiver) = oneshot::channel::<Result<Result<Ticket, Box<Reply>>, StoreError>>();
        let (ear, heard) = oneshot::channel();
        let desk = self.clone();
        // With a key, who asked asks again, and finds it.
        let is_kept = ask.key.is_some();
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
        let ticket = match receiver.await.unwrap_or_else(|_| Err(gone()))? {
            Err(reply) => return Ok(*reply),
            Ok(ticket) => ticket,
        };
        self.listen();
        let mut place = Place { desk: self, ticket, is_left: is_kept };
        let reply = heard.await.map(|reply| *reply).map_err(|_| gone());
        place.is_left = true;
        reply
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
        if kept.is_err() {
            is_stale.store(true, Ordering::Release);
            // A store that broke down may not have come to it.
            is_due.store(false, Ordering::Release);
        }
        for after in batch.afters {
            after(kept.clone());
        }
        if kept.is_err() {
            let left = std::mem::take(&mut locked(jobs).0);
            drop(left);
            // Who waits asks again.
            locked(ears).clear();
            return;
        }
        for news in batch.news {
            match news {
                News::Granted(ticket, lease) => self.reply(ticket, Ok(lease)),
                News::Refused(ticket, refusal) => self.reply(ticket, Err(refusal)),
                News::Ended(lease) => {
                    let _ = ended.send(Arc::new(lease));
                }
            }
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
        let shown = board.version();
        let is_ahead = board.version() > head.version;
        if self.is_stale.swap(false, Ordering::AcqRel) || is_ahead || board.version() == 0 {
            *board = Board::new(&self.store.owner(), self.run.as_deref());
            board.absorb(head, transaction.rows(None)?);
            board.take_news();
        } else if board.version() < head.version {
            let rows = transaction.rows(Some(board.version()))?;
            board.absorb(head, rows);
        }
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
        batch.news = board.take_news();
        batch.has_changed = board.version() != shown || !batch.news.is_empty();
        let now = board.now();
        batch.alarm = board.next_end().map(|at| Instant::now() + now.age(at));
        if rows.is_empty() { Ok(()) } else { transaction.write(board.head(), &rows) }
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

fn gone() -> StoreError {
    StoreError("the store has not kept it; ask again".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{self, Writer, lease::LedgerStore};
    use serde_json::json;

    fn desk(folder: &std::path::Path) -> (Desk, Writer) {
        let path = folder.join("ledger.db");
        let (writer, _) = Writer::start(ledger::open(&path).expect("a ledger"));
        (Desk::new(Box::new(LedgerStore::new(writer.clone(), &path)), None), writer)
    }

    fn ask(text: &serde_json::Value) -> Ask {
        Ask::from_json(text.to_string().as_bytes()).expect("an ask")
    }

    fn items(n: i64) -> Vec<crate::lease::predicate::Attributes> {
        (1..=n).map(|id| std::iter::once(("id".to_owned(), json!(id))).collect()).collect()
    }

    #[tokio::test]
    async fn who_waits_gets_the_item_when_it_is_released_and_who_left_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (desk, _writer) = desk(folder.path());
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
        let refused = desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect_err("held");
        assert_eq!(refused.code(), "exhausted");
        let (leaver, waiter) = (desk.clone(), desk.clone());
        let leaver = tokio::spawn(async move { leaver.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await });
        while desk.ask(|session| session.board.waiting().count()).await.expect("kept") < 1 {}
        let waiter = tokio::spawn(async move { waiter.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await });
        while desk.ask(|session| session.board.waiting().count()).await.expect("kept") < 2 {}
        leaver.abort();
        let _ = leaver.await;
        let id = first.id.clone();
        desk.ask(move |session| session.board.release(&id, None)).await.expect("kept").expect("released");
        let second = waiter.await.expect("it ends").expect("kept").expect("granted");
        assert!(second.fence > first.fence);
        let id = first.id.clone();
        assert_eq!(desk.ask(move |session| session.board.release(&id, None)).await.expect("kept"), Ok(()));
        assert_eq!(desk.ask(|session| session.board.held().len()).await.expect("kept"), 1);
    }

    #[tokio::test]
    async fn two_processes_with_one_ledger_see_what_the_other_did() {
        let folder = tempfile::tempdir().expect("a folder");
        let ((a, _wa), (b, _wb)) = (desk(folder.path()), desk(folder.path()));
        a.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let lease = a.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
        assert!(b.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").is_err());
        let waiter = b.clone();
        let waiter = tokio::spawn(async move { waiter.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await });
        while a.ask(|session| session.board.waiting().count()).await.expect("kept") == 0 {}
        let id = lease.id.clone();
        a.ask(move |session| session.board.release(&id, Some(lease.fence))).await.expect("kept").expect("released");
        let second = waiter.await.expect("it ends").expect("kept").expect("granted");
        let id = second.id.clone();
        a.ask(move |session| session.board.revoke(&id)).await.expect("kept").expect("revoked");
        let id = second.id.clone();
        let lost = b.ask(move |session| session.board.renew(&id, None, None)).await.expect("kept");
        assert!(matches!(lost, Err(Refusal::Lost { how: "revoked", .. })), "{lost:?}");
    }

    #[tokio::test]
    async fn a_lease_ends_by_time_and_its_wait_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (desk, _writer) = desk(folder.path());
        let timer = desk.clone();
        tokio::spawn(async move { timer.keep_time().await });
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let lease = desk.acquire(ask(&json!({"pool": "acct", "ttl": "50ms"}))).await.expect("kept").expect("granted");
        let next = desk.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await.expect("kept").expect("granted");
        assert!(next.acquired_at >= lease.expires_at);
        let late = desk.acquire(ask(&json!({"pool": "acct", "wait": "50ms"}))).await.expect("kept");
        assert!(matches!(late, Err(Refusal::Exhausted { waited, .. }) if waited >= Duration::from_millis(50)));
        let lost = desk.ask(move |session| session.board.renew(&lease.id, None, None)).await.expect("kept");
        assert!(matches!(lost, Err(Refusal::Lost { how: "expired", .. })), "{lost:?}");
    }
}
