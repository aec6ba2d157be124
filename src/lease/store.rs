//! What keeps pools and leases: transactions, one after another, and the rows in them.

use std::fmt::Debug;

use super::definition::Definition;
use super::grant::Lease;
use super::item::Item;
use super::queue::Waiter;
use crate::clock::Timestamp;

/// What counts all changes and grants of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// How many transactions have changed something.
    pub version: u64,
    /// The number of the last grant.
    pub fence: u64,
    /// The last place in the line.
    pub ticket: u64,
    /// The last use of an item.
    pub used: u64,
    /// The number of the last item.
    pub item: i64,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it is.
    pub definition: Definition,
    /// It is there no more.
    pub is_removed: bool,
}

/// Rows that were changed, as they are now.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each holds what its type says")]
pub struct Rows {
    pub pools: Vec<Pool>,
    /// Items that are new, or whose attributes have changed.
    pub new_items: Vec<Item>,
    /// Items whose state has changed.
    pub items: Vec<Item>,
    pub leases: Vec<Lease>,
    pub waiters: Vec<Waiter>,
}

impl Rows {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
            && self.new_items.is_empty()
            && self.items.is_empty()
            && self.leases.is_empty()
            && self.waiters.is_empty()
    }
}

/// Why a store could not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// One transaction; none other of the store is at work meanwhile.
pub trait Transaction {
    /// The counts as they stand.
    fn head(&mut self) -> Result<Head, StoreError>;
    /// The store's own time, which no jump of a clock changes.
    fn now(&mut self) -> Result<Timestamp, StoreError>;
    /// All rows that count still; or those that were changed after this version.
    fn rows(&mut self, since: Option<u64>) -> Result<Rows, StoreError>;
    /// A lease, also one that has ended.
    fn lease(&mut self, id: &str) -> Result<Option<Lease>, StoreError>;
    /// Writes rows over those of their keys, and the counts.
    fn write(&mut self, head: Head, rows: &Rows) -> Result<(), StoreError>;
    /// Whether a process that waits, resets or makes something is still there.
    fn is_there(&mut self, owner: &str) -> bool;
}

/// What is done in a transaction.
pub type Work = Box<dyn FnOnce(&mut dyn Transaction) -> Result<(), StoreError> + Send>;
/// What is done after it: told whether it was kept.
pub type After = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A store: does one transaction after another, of whichever process.
pub trait Store: Debug + Send + Sync {
    /// Queues work. It is kept, or nothing of it is, when `after` is called.
    fn submit(&self, work: Work, after: After);
    /// What this process is called in it.
    fn owner(&self) -> String;
    /// Calls `changed` whenever somebody else may have changed something, until that says no.
    fn listen(&self, changed: Box<dyn Fn() -> bool + Send>);
}
