//! The board: all pools and items, who holds them and who waits, as they stand in one
//! transaction. What is done on it is done in memory; what changed is written at the end.

mod care;
mod deadlock;
mod joint;
mod leasing;
mod making;
mod pools;

pub use making::{Demand, Failure, Made, Plan, canonical};

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::ask::Ask;
use super::definition::Definition;
use super::grant::{Lease, LeaseState};
use super::item::{Item, ItemKey, ItemState};
use super::pulse::Pulse;
use super::queue::{Ticket, Waiter, WaiterState};
use super::refusal::{Obstacle, Refusal};
use super::shelf::{Items, Shelf};
use super::store::{Head, Pool, Rows};
use crate::clock::Timestamp;

/// What is noted of an item whose reset did not end before its process did; that one's name
/// follows.
pub const BROKE_OFF: &str = "broke off with process ";

/// How many ended leases are remembered without asking the store.
const REMEMBERED: usize = 20_000;

/// What is answered to somebody who asks for items.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// They have them.
    Granted(Lease),
    /// They wait, in this place of the line.
    Waits(Ticket),
    /// They get nothing.
    Refused(Refusal),
}

/// What happened to somebody who did not ask just then.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A waiter has got its lease.
    Granted(Ticket, Lease),
    /// A waiter waits no more.
    Refused(Ticket, Refusal),
    /// A lease has ended, and its holder did not end it.
    Ended(Lease),
}

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    state: LeaseState,
    at: Option<Timestamp>,
    fence: u64,
}

/// A run and a party: see [`super::ask::Holder::circle`].
type Circle = (Option<String>, Option<String>);

/// A pool and its items.
#[derive(Debug)]
struct PoolOnBoard {
    pool: Pool,
    shelf: Shelf,
    names: HashMap<std::sync::Arc<str>, ItemKey>,
    /// Items that the configuration names and that are gone for good all the same, by their names:
    /// used up, or retired by hand.
    spent: HashMap<std::sync::Arc<str>, Item>,
    /// How many wait for items of it.
    awaited: usize,
}

impl PoolOnBoard {
    fn can_make(&self) -> bool {
        self.pool.definition.can_make(self.shelf.len())
    }
}

/// What has to be written.
#[derive(Debug, Default)]
struct Changes {
    pools: BTreeSet<String>,
    new_items: BTreeSet<ItemKey>,
    items: BTreeSet<ItemKey>,
    /// Items that are gone, and that the configuration names no more.
    forgotten: Vec<Item>,
    leases: BTreeMap<String, Lease>,
    waiters: BTreeMap<Ticket, Waiter>,
}

/// A key, and among whom it is one.
type AskKey = ((Option<String>, Option<String>), String);

/// The board.
#[derive(Debug, Default)]
pub struct Board {
    head: Head,
    now: Timestamp,
    /// What this process is called in the store.
    owner: String,
    /// The run whose leases are renewed here, as long as their holders live.
    run: Option<String>,
    pools: BTreeMap<String, PoolOnBoard>,
    items: Items,
    leases: HashMap<String, Lease>,
    /// Leases by the time at which something has to be done about them.
    by_due: BTreeSet<(Timestamp, String)>,
    /// Leases by whose they are and the keys that they were asked for with.
    by_key: HashMap<(Circle, String), String>,
    /// The leases that have an item.
    holders: HashMap<ItemKey, Vec<String>>,
    ended: HashMap<String, Ending>,
    ended_first: VecDeque<String>,
    waiters: BTreeMap<Ticket, Waiter>,
    /// Those who wait for the same, in the order of their coming.
    lines: BTreeMap<String, BTreeSet<Ticket>>,
    /// Those who wait, by the time at which they do not any more.
    by_until: BTreeSet<(Timestamp, Ticket)>,
    /// Those who wait, by their runs and the keys that they asked with.
    waiting_by_key: HashMap<AskKey, Ticket>,
    /// Those whose wait another process has ended, and who are not told yet.
    gone: Vec<Waiter>,
    /// Items that somebody has to do something about, or does.
    unready: BTreeSet<ItemKey>,
    /// The leases that items keep which were made of them.
    kept_for: HashMap<String, BTreeSet<ItemKey>>,
    /// The leases of processes that make something of them just now.
    makers: BTreeMap<String, String>,
    /// Those for whom something was made that is not what they want.
    vain: BTreeSet<Ticket>,
    /// Whether those who wait may get something now.
    is_moved: bool,
    /// What is left for others since those who wait were served last.
    rest: Option<leasing::Rest>,
    /// Whether something that others wait for may never be had any more.
    is_shrunk: bool,
    /// What was granted and given back in the last minutes.
    pulse: Pulse,
    changes: Changes,
    news: Vec<News>,
}

impl Board {
    /// An empty board of a process that is called `owner` in the store, and that renews what is
    /// kept of a run.
    pub fn new(owner: &str, run: Option<&str>) -> Self {
        Self { owner: owner.to_owned(), run: run.map(str::to_owned), ..Self::default() }
    }

    /// The version that it shows.
    pub fn version(&self) -> u64 {
        self.head.version
    }

    /// The counts.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The time by the store's clock, as it was when this transaction began.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Takes in what others changed up to `head`.
    pub fn absorb(&mut self, head: Head, rows: Rows) {
        let is_first = self.head.version == 0;
        self.head = head;
        for pool in rows.pools {
            if pool.is_removed {
                self.drop_pool(&pool.name);
            } else {
                self.put_pool(pool);
            }
        }
        for item in rows.new_items {
            self.put_item(item);
        }
        for item in rows.items {
            self.put_item(item);
        }
        for lease in rows.leases {
            let known = self.strike(&lease.id);
            if !is_first {
                let waiter = rows.waiters.iter().find(|it| it.lease.as_ref() == Some(&lease.id));
                self.pulse.heard(&lease, known.is_some(), waiter.map(|it| it.since));
            }
            if lease.state == LeaseState::Held {
                self.enter(lease);
            } else {
                self.remember(&lease);
                self.news.push(News::Ended(lease));
            }
        }
        for waiter in rows.waiters {
            let ticket = waiter.ticket;
            self.unqueue(ticket);
            match waiter.state {
                WaiterState::Waiting => self.queue(waiter),
                WaiterState::Granted => {
                    let id = waiter.lease.unwrap_or_default();
                    // It may have ended again meanwhile.
                    let lease = self.standing(&id);
                    self.news.push(match lease {
                        Ok(lease) => News::Granted(ticket, lease),
                        Err(refusal) => News::Refused(ticket, refusal),
                    });
                }
                WaiterState::Gone => self.gone.push(waiter),
            }
        }
        self.is_moved = true;
    }

    /// Begins a transaction: what the time has ended, ends.
    pub fn begin(&mut self, now: Timestamp) {
        // The store's time never goes back, whatever a clock does.
        self.now = self.now.max(now);
        self.pulse.begin(self.now);
        while let Some((_, id)) = self.by_due.first().cloned().filter(|(at, _)| *at <= self.now) {
            let is_over = self.leases.get(&id).is_none_or(|lease| lease.expires_at <= self.now);
            // One that is kept here is renewed before.
            if (is_over && !self.kept_for.contains_key(&id)) || self.renew(&id, None, None).is_err() {
                self.end(&id, LeaseState::Expired);
            }
        }
        while let Some((_, ticket)) = self.by_until.first().copied().filter(|(at, _)| *at <= self.now) {
            let Some((ask, since)) = self.waiters.get(&ticket).map(|it| (it.ask.clone(), it.since)) else { break };
            let refusal = self.exhausted(&ask, since.age(self.now), Some(ticket));
            self.refuse(ticket, refusal);
        }
        for waiter in std::mem::take(&mut self.gone) {
            let refusal = self.why_gone(&waiter);
            self.news.push(News::Refused(waiter.ticket, refusal));
        }
    }

    /// Why another process has ended this wait, as far as that can be seen.
    fn why_gone(&mut self, waiter: &Waiter) -> Refusal {
        if let Some(refusal) = waiter.ask.wants.iter().find_map(|want| self.missing(&want.pool)) {
            refusal
        } else if waiter.until <= self.now {
            self.exhausted(&waiter.ask, waiter.since.age(waiter.until), Some(waiter.ticket))
        } else {
            self.never(&waiter.ask).unwrap_or(Refusal::WaitEnded)
        }
    }

    /// Ends a transaction: those who wait get what they can, and what has to be written comes
    /// back.
    pub fn finish(&mut self) -> Rows {
        self.release_needs();
        if self.is_moved {
            self.rest = Some(self.serve_queue());
        }
        while std::mem::take(&mut self.is_shrunk) && self.refuse_hopeless() {
            self.rest = Some(self.serve_queue());
        }
        self.end_pools();
        let changes = std::mem::take(&mut self.changes);
        let item = |key: &ItemKey| self.items.get(key).cloned();
        let rows = Rows {
            pools: changes.pools.iter().filter_map(|name| Some(self.pools.get(name)?.pool.clone())).collect(),
            new_items: changes.new_items.iter().filter_map(item).chain(changes.forgotten).collect(),
            items: changes.items.difference(&changes.new_items).filter_map(item).collect(),
            leases: changes.leases.into_values().collect(),
            waiters: changes.waiters.into_values().collect(),
        };
        if !rows.is_empty() {
            self.head.version += 1;
        }
        // What is gone is of no more use here.
        self.pools.retain(|_, it| !it.pool.is_removed);
        for key in changes.items.iter().chain(&changes.new_items) {
            if let Some(item) = self.items.get(key).filter(|item| item.state == ItemState::Retired).cloned() {
                self.put_item(item);
            }
        }
        rows
    }

    /// What happened to others; it may be told when the transaction is kept.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// When something ends by itself next.
    pub fn next_end(&self) -> Option<Timestamp> {
        let lease = self.by_due.first().map(|(at, _)| *at);
        let waiter = self.by_until.first().map(|(at, _)| *at);
        lease.into_iter().chain(waiter).min()
    }

    /// Other processes that something depends on.
    pub fn others(&self) -> BTreeSet<String> {
        let waiting = self.waiters.values().map(|waiter| &waiter.owner);
        let unready = self.unready.iter().filter_map(|key| self.items.get(key));
        let working = unready.filter(|it| it.state == ItemState::Resetting).filter_map(|it| it.note.as_ref());
        let making = self.makers.iter().filter(|(id, _)| !self.kept_for.contains_key(*id)).map(|(_, owner)| owner);
        waiting.chain(working).chain(making).filter(|owner| **owner != self.owner).cloned().collect()
    }

    /// A process is gone: what it waited for, reset or retired is left to others.
    pub fn lost_process(&mut self, owner: &str) {
        let waiting = self.waiters.values().filter(|waiter| waiter.owner == owner).map(|waiter| waiter.ticket);
        for ticket in waiting.collect::<Vec<_>>() {
            self.refuse(ticket, Refusal::WaitEnded);
        }
        let is_its = |item: &&Item| item.state == ItemState::Resetting && item.note.as_deref() == Some(owner);
        let unready = self.unready.iter().filter_map(|key| self.items.get(key));
        for key in unready.filter(is_its).map(|item| item.key).collect::<Vec<_>>() {
            self.change_item(key, |item, definition| item.put_back(definition, Some(format!("{BROKE_OFF}{owner}"))));
        }
        let making = self.makers.iter().filter(|(id, its)| *its == owner && !self.kept_for.contains_key(*id));
        for id in making.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.end(&id, LeaseState::Lost);
        }
        self.is_moved = true;
    }

    /// A lease that is held.
    pub fn lease(&self, id: &str) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// Whether this lease is known here, held or ended.
    pub fn knows(&self, id: &str) -> bool {
        self.leases.contains_key(id) || self.ended.contains_key(id)
    }

    /// Notes what became of a lease that ended long ago.
    pub fn remember(&mut self, lease: &Lease) {
        let ending = Ending { state: lease.state, at: lease.ended_at, fence: lease.fence };
        if self.ended.insert(lease.id.clone(), ending).is_none() {
            self.ended_first.push_back(lease.id.clone());
        }
        while self.ended_first.len() > REMEMBERED {
            if let Some(first) = self.ended_first.pop_front() {
                self.ended.remove(&first);
            }
        }
    }

    /// All leases that are held, oldest first.
    pub fn held(&self) -> Vec<Lease> {
        let mut held: Vec<_> = self.leases.values().cloned().collect();
        held.sort_by_key(|lease| lease.fence);
        held
    }

    /// Those who wait, first come first.
    pub fn waiting(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.values()
    }

    /// Whether somebody has this place in the line.
    pub fn is_waiting(&self, ticket: Ticket) -> bool {
        self.waiters.contains_key(&ticket)
    }

    /// What was granted and given back in the last minutes.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// All pools.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values().map(|it| &it.pool)
    }

    /// What a pool is.
    pub fn definition(&self, pool: &str) -> Option<&Definition> {
        self.pools.get(pool).map(|it| &it.pool.definition)
    }

    /// The items of a pool, in the order of their coming.
    pub fn items_of(&self, pool: &str) -> impl Iterator<Item = &Item> {
        let keys = self.pools.get(pool).into_iter().flat_map(|it| it.shelf.keys());
        keys.filter_map(|key| self.items.get(&key))
    }

    /// An item.
    pub fn item(&self, key: ItemKey) -> Option<&Item> {
        self.items.get(&key)
    }

    /// Items that have to be reset or retired, or are being reset.
    pub fn unready(&self) -> impl Iterator<Item = &Item> {
        self.unready.iter().filter_map(|key| self.items.get(key))
    }

    /// Who has an item.
    pub fn obstacles(&self, key: ItemKey) -> Vec<Obstacle> {
        let leases = self.holders.get(&key).into_iter().flatten().filter_map(|id| self.leases.get(id));
        let name = self.items.get(&key).map(|item| item.name.to_string()).unwrap_or_default();
        let obstacle = |lease: &Lease| Obstacle {
            item: name.clone(),
            holder: lease.holder.clone(),
            lease: lease.id.clone(),
            since: lease.acquired_at,
            until: lease.expires_at,
        };
        leases.map(obstacle).collect()
    }

    /// The refusal of a pool, if it is not there, or not for long.
    fn missing(&self, pool: &str) -> Option<Refusal> {
        let is_there = |its: &PoolOnBoard| !its.pool.is_removed && !its.pool.definition.is_leaving;
        if self.pools.get(pool).is_some_and(is_there) { None } else { Some(self.no_pool(pool)) }
    }

    /// The refusal of a pool that is not there.
    pub fn no_pool(&self, pool: &str) -> Refusal {
        let likeness = |name: &&String| strsim::jaro_winkler(name, pool);
        let nearest = self
            .pools
            .keys()
            .filter(|name| *name != pool && likeness(name) > 0.8)
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Refusal::PoolUnknown { pool: pool.to_owned(), nearest: nearest.cloned() }
    }

    fn put_pool(&mut self, pool: Pool) {
        if let Some(known) = self.pools.get_mut(&pool.name) {
            known.pool = pool;
            let keys: Vec<ItemKey> = known.shelf.keys().collect();
            // How many may hold an item may be another number now.
            for key in keys {
                known.shelf.put(key);
            }
        } else {
            let name = pool.name.clone();
            let (names, spent) = (HashMap::new(), HashMap::new());
            let empty = PoolOnBoard { pool, shelf: Shelf::default(), names, spent, awaited: 0 };
            self.pools.insert(name, empty);
        }
    }

    fn drop_pool(&mut self, name: &str) {
        let keys: Vec<ItemKey> = self.pools.remove(name).iter().flat_map(|its| its.shelf.keys()).collect();
        for key in keys {
            self.items.remove(&key);
            self.unready.remove(&key);
        }
    }

    fn put_item(&mut self, item: Item) {
        let key = item.key;
        let is_gone = item.state == ItemState::Retired;
        if is_gone {
            self.forget_item(key);
        }
        let Some(its) = self.pools.get_mut(&*item.pool) else { return };
        if is_gone {
            // What is there under its name counts, and of two that are gone the later one.
            let is_last = its.spent.get(&item.name).is_none_or(|other| other.key <= key);
            if !its.names.contains_key(&item.name) && is_last {
                its.spent.remove(&item.name);
                if item.is_configured {
                    its.spent.insert(item.name.clone(), item);
                }
            }
            return;
        }
        its.spent.remove(&item.name);
        its.names.insert(item.name.clone(), key);
        if self.items.get(&key).is_some_and(|known| known.attributes == item.attributes) {
            its.shelf.moved(&item, &its.pool.definition);
        } else {
            its.shelf.put(key);
            self.is_shrunk |= its.awaited > 0;
        }
        note_unready(&mut self.unready, &item);
        self.note_needs(&item);
        self.items.insert(key, item);
    }

    fn forget_item(&mut self, key: ItemKey) {
        let Some(item) = self.items.remove(&key) else { return };
        self.unready.remove(&key);
        self.forget_needs(&item);
        if let Some(its) = self.pools.get_mut(&*item.pool) {
            its.shelf.drop(key);
            if its.names.get(&item.name) == Some(&key) {
                its.names.remove(&item.name);
            }
        }
    }

    /// Changes an item, and notes that it has to be written.
    fn change_item(&mut self, key: ItemKey, change: impl FnOnce(&mut Item, &Definition)) {
        let Some(item) = self.items.get_mut(&key) else { return };
        let Some(its) = self.pools.get_mut(&*item.pool) else { return };
        let (before, had_future) = (item.places(&its.pool.definition), item.has_future());
        change(item, &its.pool.definition);
        note_unready(&mut self.unready, item);
        its.shelf.moved(item, &its.pool.definition);
        self.is_moved |= its.awaited > 0 && item.places(&its.pool.definition) != before;
        self.is_shrunk |= its.awaited > 0 && had_future && !item.has_future();
        self.changes.items.insert(key);
    }

    fn enter(&mut self, lease: Lease) {
        self.by_due.insert((self.due(&lease), lease.id.clone()));
        if let Some((key, _)) = &lease.key {
            self.by_key.insert((lease.holder.circle(), key.clone()), lease.id.clone());
        }
        for held in &lease.items {
            self.holders.entry(held.item).or_default().push(lease.id.clone());
        }
        if let Some(owner) = lease.key.as_ref().and_then(|(key, _)| care::maker_of(key)) {
            self.makers.insert(lease.id.clone(), owner.to_owned());
        }
        self.leases.insert(lease.id.clone(), lease);
    }

    fn due(&self, lease: &Lease) -> Timestamp {
        let is_kept_here = lease.is_kept && lease.holder.run == self.run;
        Timestamp(lease.expires_at.0 - if is_kept_here { lease.ttl / 3 } else { 0 })
    }

    fn strike(&mut self, id: &str) -> Option<Lease> {
        let lease = self.leases.remove(id)?;
        self.makers.remove(id);
        self.by_due.remove(&(self.due(&lease), lease.id.clone()));
        if let Some((key, _)) = &lease.key {
            let key = (lease.holder.circle(), key.clone());
            // The key may be another lease's by now.
            if self.by_key.get(&key).is_some_and(|its| its == id) {
                self.by_key.remove(&key);
            }
        }
        for held in &lease.items {
            if let Some(holders) = self.holders.get_mut(&held.item) {
                holders.retain(|holder| holder != id);
                if holders.is_empty() {
                    self.holders.remove(&held.item);
                }
            }
        }
        Some(lease)
    }

    fn queue(&mut self, waiter: Waiter) {
        for name in pools_of(&waiter.ask) {
            if let Some(its) = self.pools.get_mut(name) {
                its.awaited += 1;
            }
        }
        self.lines.entry(waiter.ask.substance()).or_default().insert(waiter.ticket);
        self.by_until.insert((waiter.until, waiter.ticket));
        self.waiting_by_key.extend(key_of(&waiter.ask).map(|key| (key, waiter.ticket)));
        self.waiters.insert(waiter.ticket, waiter);
    }

    fn unqueue(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.vain.remove(&ticket);
        let substance = waiter.ask.substance();
        if let Some(line) = self.lines.get_mut(&substance) {
            line.remove(&ticket);
            if line.is_empty() {
                self.lines.remove(&substance);
            }
        }
        self.by_until.remove(&(waiter.until, ticket));
        if let Some(key) = key_of(&waiter.ask).filter(|key| self.waiting_by_key.get(key) == Some(&ticket)) {
            self.waiting_by_key.remove(&key);
        }
        for name in pools_of(&waiter.ask) {
            if let Some(its) = self.pools.get_mut(name) {
                its.awaited = its.awaited.saturating_sub(1);
            }
        }
        Some(waiter)
    }

    fn leave_queue(&mut self, ticket: Ticket, state: WaiterState, lease: Option<String>) {
        let Some(mut waiter) = self.unqueue(ticket) else { return };
        waiter.state = state;
        waiter.lease = lease;
        self.changes.waiters.insert(ticket, waiter);
        // What it had been kept for it may go to others.
        self.is_moved = true;
    }

    /// Ends a wait, and says why.
    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.leave_queue(ticket, WaiterState::Gone, None);
        self.news.push(News::Refused(ticket, refusal));
    }

    /// Tells those who wait for what will never come. Whether there were any comes back.
    fn refuse_hopeless(&mut self) -> bool {
        let firsts = self.lines.values().filter_map(|line| Some((line, &self.waiters.get(line.first()?)?.ask)));
        let hopeless = firsts.filter_map(|(line, ask)| Some((line.clone(), self.never(ask)?)));
        let hopeless: Vec<_> = hopeless.collect();
        for (line, refusal) in &hopeless {
            for ticket in line {
                self.refuse(*ticket, refusal.clone());
            }
        }
        !hopeless.is_empty()
    }

    /// Pools that were removed while items of them were held or had to be retired are gone with
    /// the last of these.
    fn end_pools(&mut self) {
        let (items, changes) = (&self.items, &mut self.changes);
        for (name, its) in &mut self.pools {
            let is_left = |key| items.get(&key).is_some_and(|item| item.state != ItemState::Retired);
            if its.pool.definition.is_leaving && !its.pool.is_removed && !its.shelf.keys().any(is_left) {
                its.pool.is_removed = true;
                changes.pools.insert(name.clone());
            }
        }
    }
}

fn note_unready(unready: &mut BTreeSet<ItemKey>, item: &Item) {
    if matches!(item.state, ItemState::Dirty | ItemState::Resetting | ItemState::Retiring) {
        unready.insert(item.key);
    } else {
        unready.remove(&item.key);
    }
}

/// What an ask with a key is found by.
fn key_of(ask: &Ask) -> Option<AskKey> {
    ask.key.clone().map(|key| (ask.holder.circle(), key))
}

/// The pools that an ask is about, each once.
fn pools_of(ask: &Ask) -> BTreeSet<&str> {
    ask.wants.iter().map(|want| want.pool.as_str()).collect()
}
