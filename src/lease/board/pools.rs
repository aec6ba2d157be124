//! Making, filling and emptying pools, and what becomes of items after use.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Board;
use crate::lease::definition::Definition;
use crate::lease::item::{Item, ItemKey, ItemState};
use crate::lease::predicate::Attributes;
use crate::lease::refusal::Refusal;
use crate::lease::store::Pool;

impl Board {
    /// Says what a pool is; it is made where there is none.
    pub fn define(&mut self, name: &str, definition: &Definition) {
        let mut definition = definition.clone();
        // What its generator came to is no part of what somebody says of it.
        if let Some(known) = self.definition(name)
            && known.generator == definition.generator
        {
            definition.trouble.clone_from(&known.trouble);
        }
        let definition = &definition;
        if self.pools.get(name).is_some_and(|its| its.pool.definition == *definition && !its.pool.is_removed) {
            return;
        }
        self.put_pool(Pool { name: name.to_owned(), definition: definition.clone(), is_removed: false });
        self.changes.pools.insert(name.to_owned());
        self.is_moved = true;
        self.is_shrunk = true;
        // What waits for a command that is no more would wait for ever.
        let idle: Vec<ItemKey> = self.items_of(name).filter(|item| item.is_idle(definition)).map(|it| it.key).collect();
        for key in idle {
            self.change_item(key, |item, definition| {
                item.is_soiled = false;
                item.state = ItemState::Free;
                item.settle(definition);
            });
        }
    }

    /// Makes a pool as the configuration has it: items that stood there before and do not any
    /// more go, as soon as nobody holds them. What was used up or retired by hand stays away.
    pub fn configure(&mut self, name: &str, definition: &Definition, items: Vec<Attributes>) {
        self.define(name, definition);
        let names = items.iter().map(|it| Item::of(name, it.clone(), definition).name.to_string()).collect();
        for attributes in items {
            self.put(name, attributes, false, |item| item.is_configured = true);
        }
        self.unlist(name, &names);
    }

    /// Takes out of a pool what the configuration had and does not have any more: its items are
    /// these.
    fn unlist(&mut self, name: &str, names: &BTreeSet<String>) {
        let listed = self.items_of(name).filter(|item| item.is_configured && !names.contains(&*item.name));
        for key in listed.map(|item| item.key).collect::<Vec<_>>() {
            self.change_item(key, |item, definition| {
                item.is_configured = false;
                if !item.is_leaving {
                    item.leave(definition);
                }
            });
            self.changes.new_items.insert(key);
        }
        self.forget_spent(name, |name| !names.contains(name));
    }

    /// What is gone of these names may come again.
    fn forget_spent(&mut self, pool: &str, is_it: impl Fn(&str) -> bool) {
        let Some(its) = self.pools.get_mut(pool) else { return };
        let forgotten = its.spent.extract_if(|name, _| is_it(name));
        self.changes.forgotten.extend(forgotten.map(|(_, item)| Item { is_configured: false, ..item }));
    }

    /// Makes the items of a pool the rows of its table as they are now: what is as it was stays as
    /// it stands, in quarantine too.
    pub fn refresh(&mut self, name: &str, definition: &Definition, rows: Vec<Attributes>) {
        let Some(its) = self.pools.get(name) else { return self.configure(name, definition, rows) };
        let names: BTreeSet<String> =
            rows.iter().map(|row| Item::of(name, row.clone(), definition).name.to_string()).collect();
        let is_known = |row: &Attributes| {
            let key = its.names.get(&Item::of(name, row.clone(), definition).name);
            key.and_then(|key| self.items.get(key)).is_some_and(|item| *item.attributes == *row && !item.is_leaving)
        };
        let changed: Vec<Attributes> = rows.into_iter().filter(|row| !is_known(row)).collect();
        for attributes in changed {
            self.put(name, attributes, false, |item| item.is_configured = true);
        }
        self.unlist(name, &names);
    }

    /// Adds items to a pool, which is made where there is none. One that is there already gets
    /// its attributes, and can be had again if it was in quarantine. How many are new comes back.
    pub fn add(&mut self, pool: &str, items: Vec<Attributes>, origin: Option<&str>) -> usize {
        if self.missing(pool).is_some() {
            let known = self.definition(pool).cloned().unwrap_or_default();
            self.define(pool, &Definition { is_leaving: false, ..known });
        }
        let before = self.pools.get(pool).map_or(0, |its| its.shelf.len());
        for attributes in items {
            self.put(pool, attributes, true, |item| item.origin = origin.map(str::to_owned));
        }
        self.pools.get(pool).map_or(0, |its| its.shelf.len()) - before
    }

    fn put(&mut self, pool: &str, attributes: Attributes, by_hand: bool, set: impl FnOnce(&mut Item)) {
        let Some(its) = self.pools.get(pool) else { return };
        let fresh = Item::of(pool, attributes, &its.pool.definition);
        let known = its.names.get(&fresh.name).and_then(|key| self.items.get(key)).cloned();
        // Who reads the configuration does not bring back what somebody has used up or retired.
        let is_spent = |item: &Item| item.is_configured && item.is_leaving;
        if !by_hand && (its.spent.contains_key(&fresh.name) || known.as_ref().is_some_and(is_spent)) {
            return;
        }
        // One that is gone stays so; this one is called as it was.
        let (gone, known) = match known {
            Some(item) if item.state == ItemState::Retired => (Some(item.key), None),
            known => (None, known),
        };
        if let Some(gone) = gone {
            self.change_item(gone, |item, _| item.is_configured = false);
            self.changes.new_items.insert(gone);
        }
        let name = fresh.name.clone();
        let mut item = if let Some(known) = known.clone() {
            Item { attributes: fresh.attributes, ..known }
        } else {
            self.head.item += 1;
            Item { key: self.head.item, ..fresh }
        };
        set(&mut item);
        item.is_leaving = false;
        // What could not be reset or retired comes back by hand, and not with the next who reads the
        // configuration.
        let comes_back = match item.state {
            ItemState::Quarantined => by_hand,
            state => state == ItemState::Retiring,
        };
        if comes_back {
            item.state = ItemState::Free;
            item.failures = 0;
            item.note = None;
        }
        let key = item.key;
        if known.as_ref() != Some(&item) {
            self.forget_spent(pool, |other| *other == *name);
            self.put_item(item);
            self.changes.new_items.insert(key);
            self.is_moved = true;
        }
    }

    /// Takes items out of a pool for good; those that are held, when they are released.
    pub fn retire(&mut self, pool: &str, names: &[String]) -> Result<usize, Refusal> {
        let Some(its) = self.pools.get(pool) else { return Err(self.no_pool(pool)) };
        let unknown = |name: &String| Refusal::ItemUnknown { pool: pool.to_owned(), item: name.clone() };
        let keys: Vec<ItemKey> = names
            .iter()
            .map(|name| its.names.get(name.as_str()).copied().ok_or_else(|| unknown(name)))
            .collect::<Result<_, _>>()?;
        for key in &keys {
            self.retire_item(*key);
        }
        Ok(keys.len())
    }

    /// Takes an item out of its pool for good; one that is held, when it is released.
    pub fn retire_item(&mut self, key: ItemKey) {
        self.change_item(key, Item::leave);
    }

    /// Removes a pool with all its items. While any is held, that is refused, unless they are to
    /// go when they are released.
    pub fn remove_pool(&mut self, pool: &str, when_released: bool) -> Result<(), Refusal> {
        let Some(its) = self.pools.get(pool) else { return Err(self.no_pool(pool)) };
        let keys: Vec<ItemKey> = its.shelf.keys().collect();
        let obstacles: Vec<_> = keys.iter().flat_map(|key| self.obstacles(*key)).collect();
        if !obstacles.is_empty() && !when_released {
            return Err(Refusal::InUse { what: format!("pool {pool}"), obstacles });
        }
        for key in keys {
            self.retire_item(key);
            // Whoever configures it again has all of it.
            self.change_item(key, |item, _| item.is_configured = false);
            self.changes.new_items.insert(key);
        }
        self.forget_spent(pool, |_| true);
        // It goes with the last of its items; until then nobody gets anything of it.
        if let Some(its) = self.pools.get_mut(pool) {
            its.pool.definition.is_leaving = true;
            self.changes.pools.insert(pool.to_owned());
        }
        let waiting = self.waiters.values().filter(|waiter| waiter.ask.wants.iter().any(|want| want.pool == pool));
        for ticket in waiting.map(|waiter| waiter.ticket).collect::<Vec<_>>() {
            self.refuse(ticket, Refusal::PoolUnknown { pool: pool.to_owned(), nearest: None });
        }
        Ok(())
    }

    /// Retires what a generator made from something else than what it makes now, unless it is held.
    pub fn retire_outdated(&mut self, pool: &str, is_current: impl Fn(&str) -> bool) -> usize {
        let outdated: Vec<ItemKey> = self
            .items_of(pool)
            .filter(|item| !item.is_leaving && item.origin.as_deref().is_some_and(|origin| !is_current(origin)))
            .map(|item| item.key)
            .collect();
        for key in &outdated {
            self.retire_item(*key);
        }
        outdated.len()
    }

    /// What its holder gets of an item.
    pub fn attributes(&self, key: ItemKey) -> Option<Arc<Attributes>> {
        self.items.get(&key).map(|item| item.attributes.clone())
    }
}
