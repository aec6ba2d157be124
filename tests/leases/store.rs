//! A store whose time the test moves, and which fails, or dies with its process, when it says so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use isolane::clock::Timestamp;
use isolane::lease::grant::Lease;
use isolane::lease::store::{After, Head, Rows, Store, StoreError, Transaction, Work};

/// What the processes of a test share.
#[derive(Debug, Default)]
pub struct Surroundings {
    pub now: AtomicU64,
    pub alive: Mutex<BTreeSet<String>>,
}

/// The store of one process.
#[derive(Clone, Debug)]
pub struct Staged {
    pub inner: Arc<dyn Store>,
    pub owner: String,
    pub surroundings: Arc<Surroundings>,
    /// The process was killed: it does nothing and hears nothing any more.
    pub is_dead: Arc<AtomicBool>,
    /// The next transaction that writes anything is not kept.
    pub fails: Arc<AtomicBool>,
}

impl Store for Staged {
    fn submit(&self, work: Work, after: After) {
        if self.is_dead.load(Ordering::SeqCst) {
            return;
        }
        let (surroundings, fails) = (Arc::clone(&self.surroundings), Arc::clone(&self.fails));
        let work = move |transaction: &mut dyn Transaction| {
            work(&mut StagedTransaction { inner: transaction, surroundings: &surroundings, fails: &fails })
        };
        self.inner.submit(Box::new(work), after);
    }

    fn owner(&self) -> String {
        self.owner.clone()
    }

    // Each process is made to look after every step.
    fn listen(&self, _: Box<dyn Fn() -> bool + Send>) {}
}

struct StagedTransaction<'a> {
    inner: &'a mut dyn Transaction,
    surroundings: &'a Surroundings,
    fails: &'a AtomicBool,
}

impl Transaction for StagedTransaction<'_> {
    fn head(&mut self) -> Result<Head, StoreError> {
        self.inner.head()
    }

    fn now(&mut self) -> Result<Timestamp, StoreError> {
        Ok(Timestamp(self.surroundings.now.load(Ordering::SeqCst)))
    }

    fn rows(&mut self, since: Option<u64>) -> Result<Rows, StoreError> {
        self.inner.rows(since)
    }

    fn lease(&mut self, id: &str) -> Result<Option<Lease>, StoreError> {
        self.inner.lease(id)
    }

    fn write(&mut self, head: Head, rows: &Rows) -> Result<(), StoreError> {
        self.inner.write(head, rows)?;
        if self.fails.swap(false, Ordering::SeqCst) { Err(StoreError("the disk is full".to_owned())) } else { Ok(()) }
    }

    fn is_there(&mut self, owner: &str) -> bool {
        self.surroundings.alive.lock().expect("no panic inside").contains(owner)
    }
}
