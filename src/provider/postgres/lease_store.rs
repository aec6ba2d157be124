//! Pools and leases on a PostgreSQL server, where several machines share them: the tables of
//! `lease_store/tables.sql`, in a schema of their own that is made on first use.
//!
//! Every transaction begins by locking the one row of `lease_head`, so transactions of all
//! processes follow one another and the rules of [`crate::lease::board`] hold among them as they
//! do within one. `FOR UPDATE SKIP LOCKED` on the items would let two grants happen at once, and
//! with that give up what is promised: who skips a locked item skips the line as well, takes what
//! somebody who came first waits for, and cannot take several items or none. What one row costs in
//! concurrency, batches give back: works that come while a transaction is under way are done
//! together in the next one, which takes two messages whatever their number.
//!
//! A process is known by an advisory lock that its session holds: what it waited for, or was
//! resetting, is taken over by others when the server has ended that session. So this needs a
//! session of its own, and no pooler that hands one session to many.

mod ears;
mod owner;
mod pace;
mod rows;
mod session;
mod sql;
mod transaction;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::anyhow;

use super::connection;
use crate::address::PostgresAddress;
use crate::lease::store::{After, Store, StoreError, Work};
use owner::Name;
use session::Session;

/// What sessions of a store are called on the server.
const APPLICATION: &str = "isolane leases";
/// Where processes tell one another that something has changed.
const CHANNEL: &str = "isolane_leases";

enum Message {
    Work(Work, After),
    /// The server was away: the session that says that this process lives may be gone.
    Look,
    Close,
}

/// The leases on a server.
pub struct LeaseStore {
    address: PostgresAddress,
    name: Arc<Name>,
    queue: Sender<Message>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for LeaseStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseStore").field("address", &self.address).finish_non_exhaustive()
    }
}

impl LeaseStore {
    /// Connects, and makes the tables where there are none.
    pub fn open(address: &PostgresAddress) -> anyhow::Result<Self> {
        let config = connection::config(address, APPLICATION)?;
        let (queue, messages) = channel();
        let (told, answer) = channel();
        // The driver waits for its answers by itself, which not every caller's thread allows.
        let thread = std::thread::spawn(move || match Session::first(config) {
            Ok((session, name)) => {
                if told.send(Ok(name)).is_ok() {
                    work(session, &messages);
                }
            }
            Err(error) => drop(told.send(Err(error))),
        });
        let name = Arc::new(answer.recv().unwrap_or_else(|_| Err(anyhow!("the login broke off")))?);
        let is_over = Arc::new(AtomicBool::new(false));
        Ok(Self { address: address.clone(), name, queue, is_over, thread: Some(thread) })
    }
}

impl Store for LeaseStore {
    fn submit(&self, work: Work, after: After) {
        let sent = self.queue.send(Message::Work(work, after));
        if let Err(std::sync::mpsc::SendError(Message::Work(_, after))) = sent {
            after(Err(StoreError("the store is closed".to_owned())));
        }
    }

    fn owner(&self) -> String {
        self.name.to_string()
    }

    fn listen(&self, changed: Box<dyn Fn() -> bool + Send>) {
        let Ok(config) = connection::config(&self.address, APPLICATION) else { return };
        let (name, queue, is_over) = (self.owner(), self.queue.clone(), Arc::clone(&self.is_over));
        let look = move || queue.send(Message::Look).is_ok();
        std::thread::spawn(move || ears::hear(&config, &name, &is_over, &look, &*changed));
    }
}

impl Drop for LeaseStore {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.queue.send(Message::Close);
        if let Some(thread) = self.thread.take()
            // The last work may be what held this.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Does what is queued, all that there is in one transaction.
fn work(mut session: Session, messages: &Receiver<Message>) {
    let mut works: VecDeque<(Work, After)> = VecDeque::new();
    let mut is_open = true;
    while is_open {
        let Ok(first) = messages.recv() else { return };
        let mut is_looked_for = false;
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Work(work, after) => works.push_back((work, after)),
                Message::Look => is_looked_for = true,
                Message::Close => is_open = false,
            }
        }
        if is_looked_for && works.is_empty() {
            session.be_there();
        }
        while !works.is_empty() {
            transact(&mut session, &mut works);
        }
    }
    session.close();
}

/// One transaction; works behind one that fails are left for the next.
fn transact(session: &mut Session, works: &mut VecDeque<(Work, After)>) {
    let mut afters = Vec::new();
    let kept = session.transact(|transaction| {
        while let Some((work, after)) = works.pop_front() {
            afters.push(after);
            work(transaction)?;
        }
        Ok(())
    });
    if kept.is_err() && afters.is_empty() {
        // It could not begin.
        afters.extend(works.pop_front().map(|(_, after)| after));
    }
    for after in afters {
        after(kept.clone());
    }
}
