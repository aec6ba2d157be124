//! What is done for items by commands: who has taken it upon itself, what came of it, and what
//! made items keep of other pools.

use super::{Board, News};
use crate::lease::ask::Holder;
use crate::lease::grant::{Lease, LeaseState};
use crate::lease::item::{Item, ItemKey, ItemState};
use crate::lease::origin::Origin;
use crate::lease::queue::WaiterState;

/// How the key of a lease begins that somebody has to make something of it; its process follows.
const MAKING: &str = "making by ";

/// The process in whose name a lease with this key was asked for.
pub(super) fn maker_of(key: &str) -> Option<&str> {
    key.strip_prefix(MAKING)?.split(' ').next()
}

impl Board {
    /// What this process is called in the store.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Whether commands may have something to do here.
    pub fn has_chores(&self) -> bool {
        !self.unready.is_empty() || self.pools.values().any(|its| its.pool.definition.generator.is_some())
    }

    /// Takes an item that has to be reset, to do it; nothing where another was faster.
    pub fn begin_reset(&mut self, key: ItemKey) -> Option<Item> {
        self.begin_care(key, ItemState::Dirty)
    }

    /// Takes an item that has to be retired, to do it; nothing where another was faster.
    pub fn begin_retire(&mut self, key: ItemKey) -> Option<Item> {
        self.begin_care(key, ItemState::Retiring)
    }

    fn begin_care(&mut self, key: ItemKey, from: ItemState) -> Option<Item> {
        self.items.get(&key).filter(|item| item.state == from)?;
        let owner = self.owner.clone();
        self.change_item(key, |item, _| {
            item.state = ItemState::Resetting;
            item.note = Some(owner);
        });
        self.items.get(&key).cloned()
    }

    /// An item was reset, or that failed, which may be `why`.
    pub fn was_reset(&mut self, key: ItemKey, failed: Option<String>) {
        self.change_item(key, |item, definition| item.was_reset(definition, failed));
        if let Some(item) = self.items.get(&key).filter(|item| item.state == ItemState::Quarantined) {
            self.tell_hopeless(&item.pool.clone());
        }
    }

    /// Those who wait for what can never be had any more wait no longer.
    fn tell_hopeless(&mut self, pool: &str) {
        let its = self.waiters.values().filter(|waiter| waiter.ask.wants.iter().any(|want| want.pool == pool));
        let hopeless: Vec<_> = its.filter_map(|waiter| Some((waiter.ticket, self.never(&waiter.ask)?))).collect();
        for (ticket, refusal) in hopeless {
            self.leave_queue(ticket, WaiterState::Gone, None);
            self.news.push(News::Refused(ticket, refusal));
        }
    }

    /// An item was retired, or that failed, which may be `why`.
    pub fn was_retired(&mut self, key: ItemKey, failed: Option<String>) {
        self.change_item(key, |item, _| item.was_retired(failed));
    }

    /// What was begun for an item was not done to its end: it is to do again.
    pub fn put_back(&mut self, key: ItemKey) {
        self.change_item(key, |item, definition| item.put_back(definition, None));
    }

    /// Whether this process has leased what it wants to make something of.
    pub fn is_making(&self, owner: &str) -> bool {
        self.makers.iter().any(|(id, its)| its == owner && !self.kept_for.contains_key(id))
    }

    /// Who asks for what a generator of this pool needs: the pool itself.
    pub fn maker(pool: &str) -> Holder {
        Holder { client: Some(format!("pool {pool}")), ..Holder::default() }
    }

    /// The key of a lease that this process wants to make something of.
    pub fn key_of_making(owner: &str, number: impl std::fmt::Display) -> String {
        format!("{MAKING}{owner} {number}")
    }

    /// The lease of what an item was made of, if there is one.
    pub fn needs_of(&self, item: &Item) -> Option<&Lease> {
        self.leases.get(&Origin::of(item)?.needs?)
    }

    pub(super) fn note_needs(&mut self, item: &Item) {
        // Most items are not made, and nothing is read for them.
        if let Some(lease) = Origin::of(item).and_then(|origin| origin.needs) {
            self.kept_for.entry(lease).or_default().insert(item.key);
        }
    }

    pub(super) fn forget_needs(&mut self, item: &Item) {
        let Some(lease) = Origin::of(item).and_then(|origin| origin.needs) else { return };
        if let Some(keys) = self.kept_for.get_mut(&lease) {
            keys.remove(&item.key);
            if keys.is_empty() {
                self.kept_for.remove(&lease);
            }
        }
    }

    /// What was kept for items that are gone is free again.
    pub(super) fn release_needs(&mut self) {
        loop {
            let is_gone = |key: &&ItemKey| self.items.get(key).is_some_and(|it| it.state == ItemState::Retired);
            let gone: Vec<Item> =
                self.changes.items.iter().filter(is_gone).filter_map(|key| self.items.get(key)).cloned().collect();
            let mut has_ended = false;
            for item in gone {
                let Some(lease) = Origin::of(&item).and_then(|origin| origin.needs) else { continue };
                self.forget_needs(&item);
                if !self.kept_for.contains_key(&lease) && self.leases.contains_key(&lease) {
                    // It may have been the last of another's as well.
                    self.end(&lease, LeaseState::Released);
                    has_ended = true;
                }
            }
            if !has_ended {
                break;
            }
        }
    }
}
