//! The rules of leases, as plainly as they can be written: everything is looked at every time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use isolane::lease::ask::{Ask, Holder};
use isolane::lease::definition::{Definition, Usage};
use isolane::lease::item::ItemState;
use isolane::lease::predicate::{Attributes, index_of, plain};

#[derive(Clone, Debug)]
pub struct Item {
    pub key: i64,
    pub pool: String,
    pub name: String,
    pub attributes: Attributes,
    pub state: ItemState,
    pub held: u32,
    pub fence: u64,
    pub used: u64,
    pub failures: u32,
    pub soiled: bool,
    pub leaving: bool,
    pub configured: bool,
    /// The process that resets it.
    pub resetter: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Lease {
    pub fence: u64,
    pub items: Vec<i64>,
    pub holder: Holder,
    pub key: Option<(String, String)>,
    pub acquired: u64,
    pub expires: u64,
    pub ttl: u64,
    pub kept: bool,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    pub ask: Ask,
    pub since: u64,
    pub until: u64,
    pub owner: String,
}

/// What somebody is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted(u64),
    Waits(u64),
    Refused(&'static str),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now: u64,
    pub pools: BTreeMap<String, Definition>,
    pub items: BTreeMap<i64, Item>,
    /// By fence.
    pub leases: BTreeMap<u64, Lease>,
    /// By ticket.
    pub waiters: BTreeMap<u64, Waiter>,
    pub ended: BTreeMap<u64, &'static str>,
    /// What the configuration names and is gone all the same: pools and names.
    pub spent: BTreeSet<(String, String)>,
    /// What became of those who waited.
    pub told: BTreeMap<u64, Answer>,
    /// What those had asked for.
    pub asked: BTreeMap<u64, Ask>,
    pub fence: u64,
    pub ticket: u64,
    pub used: u64,
    pub item: i64,
}

type Refused = Result<(), &'static str>;

impl Model {
    fn definition(&self, item: &Item) -> &Definition {
        &self.pools[&item.pool]
    }

    fn places(&self, item: &Item) -> u32 {
        let is_open = item.state == ItemState::Free && !item.soiled && !item.leaving;
        if is_open { self.definition(item).usage.places().saturating_sub(item.held) } else { 0 }
    }

    fn has_future(item: &Item) -> bool {
        matches!(item.state, ItemState::Free | ItemState::Dirty | ItemState::Resetting) && !item.leaving
    }

    pub fn of_pool<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a Item> {
        self.items.values().filter(move |item| item.pool == pool)
    }

    /// How many items of its pool share the rarest value of an item that others have as well.
    fn plenty(&self, item: &Item) -> usize {
        let count = |attribute: &str, value: &str| {
            let same = |other: &&Item| other.attributes.get(attribute).map(index_of).as_deref() == Some(value);
            self.of_pool(&item.pool).filter(same).count()
        };
        let is_shared = |attribute: &str| {
            let mut values = self.of_pool(&item.pool).filter_map(|other| other.attributes.get(attribute));
            values.any(|value| count(attribute, &index_of(value)) > 1)
        };
        let counts = item.attributes.iter().filter(|(name, _)| is_shared(name));
        counts.map(|(name, value)| count(name, &index_of(value))).min().unwrap_or(self.of_pool(&item.pool).count())
    }

    /// What there is for this ask, and whether that is all of it.
    fn find(&self, ask: &Ask, taken: &HashMap<i64, u32>) -> (Vec<i64>, bool) {
        let (mut chosen, mut is_all) = (Vec::new(), true);
        for want in &ask.wants {
            let is_open = |item: &&Item| {
                self.places(item) > taken.get(&item.key).copied().unwrap_or(0) && want.predicate.holds(&item.attributes)
            };
            let mut found: Vec<&Item> = self.of_pool(&want.pool).filter(is_open).collect();
            found.sort_by_key(|item| (std::cmp::Reverse(self.plenty(item)), item.used, item.key));
            found.truncate(want.count as usize);
            is_all &= found.len() == want.count as usize;
            chosen.extend(found.iter().map(|item| item.key));
        }
        (chosen, is_all)
    }

    /// Whether something of it can never be had.
    fn never(&self, ask: &Ask) -> bool {
        ask.wants.iter().any(|want| {
            let like_it = |item: &&Item| Self::has_future(item) && want.predicate.holds(&item.attributes);
            self.of_pool(&want.pool).filter(like_it).count() < want.count as usize
        })
    }

    /// Those who wait get what they can, first come first; what is kept for them comes back.
    fn serve(&mut self) -> HashMap<i64, u32> {
        let mut taken = HashMap::new();
        for (ticket, waiter) in self.waiters.clone() {
            let (items, is_all) = self.find(&waiter.ask, &taken);
            if is_all {
                let fence = self.grant(&waiter.ask, &items);
                self.leaves(ticket, Answer::Granted(fence));
            } else {
                for item in items {
                    *taken.entry(item).or_default() += 1;
                }
            }
        }
        taken
    }

    fn leaves(&mut self, ticket: u64, answer: Answer) {
        if let Some(waiter) = self.waiters.remove(&ticket) {
            self.asked.insert(ticket, waiter.ask);
        }
        self.told.insert(ticket, answer);
    }

    fn grant(&mut self, ask: &Ask, items: &[i64]) -> u64 {
        self.fence += 1;
        for key in items {
            self.used += 1;
            let item = self.items.get_mut(key).expect("an item");
            (item.held, item.fence, item.used) = (item.held + 1, self.fence, self.used);
        }
        let of_pools = ask.wants.iter().map(|want| self.pools[&want.pool].ttl()).min().expect("a pool") * 1_000_000;
        let ttl = ask.ttl.map_or(of_pools, micros);
        let lease = Lease {
            fence: self.fence,
            items: items.to_vec(),
            holder: ask.holder.clone(),
            key: ask.key.clone().map(|key| (key, ask.substance())),
            acquired: self.now,
            expires: self.now + ttl,
            ttl,
            kept: ask.ttl.is_none() && ask.holder.run.is_some(),
        };
        self.leases.insert(self.fence, lease);
        self.fence
    }

    /// A process of this run begins: time ends what it ends, and what is kept here is renewed.
    pub fn begin(&mut self, run: Option<&str>) {
        let due = |lease: &Lease| {
            let is_kept_here = lease.kept && lease.holder.run.as_deref() == run;
            lease.expires - if is_kept_here { lease.ttl / 3 } else { 0 }
        };
        let mut over: Vec<_> = self.leases.values().map(|it| (due(it), it.fence)).collect();
        over.retain(|(at, _)| *at <= self.now);
        over.sort_unstable();
        for (_, fence) in over {
            let lease = self.leases.get_mut(&fence).expect("a lease");
            if lease.expires > self.now {
                lease.expires = self.now + lease.ttl;
            } else {
                self.end(fence, "expired");
            }
        }
        let late: Vec<u64> =
            self.waiters.iter().filter(|(_, it)| it.until <= self.now).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            self.leaves(ticket, Answer::Refused("exhausted"));
        }
    }

    /// Whether this answer is as right: why a wait ended that another process has ended is not kept,
    /// so its asker is told what is seen to be in its way now.
    pub fn is_as_right(&self, ticket: u64, found: &Answer) -> bool {
        let ended = Answer::Refused("lease-lost");
        self.told.get(&ticket) == Some(&ended)
            && self.asked.get(&ticket).is_some_and(|ask| {
                let is_gone = |pool: &String| self.pools.get(pool).is_none_or(|its| its.is_leaving);
                let why =
                    if ask.wants.iter().any(|want| is_gone(&want.pool)) { "pool-unknown" } else { "unsatisfiable" };
                *found == Answer::Refused(why) && (why == "pool-unknown" || self.never(ask))
            })
    }

    /// What must be true when a transaction ends.
    pub fn finish(&mut self) {
        loop {
            self.serve();
            let hopeless: Vec<_> = self.waiters.iter().filter(|(_, it)| self.never(&it.ask)).map(|it| *it.0).collect();
            if hopeless.is_empty() {
                break;
            }
            for ticket in hopeless {
                self.leaves(ticket, Answer::Refused("unsatisfiable"));
            }
        }
        let (gone, there): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.items).into_iter().partition(|(_, item)| item.state == ItemState::Retired);
        self.items = there;
        for item in gone.into_values().filter(|item| item.configured) {
            if !self.items.values().any(|other| other.pool == item.pool && other.name == item.name) {
                self.spent.insert((item.pool, item.name));
            }
        }
        let items = &self.items;
        self.pools.retain(|name, its| !its.is_leaving || items.values().any(|item| item.pool == *name));
    }

    pub fn acquire(&mut self, ask: &Ask, owner: &str) -> Answer {
        if let Some(key) = &ask.key {
            let is_its = |run: &Option<String>, its: Option<&String>| *run == ask.holder.run && its == Some(key);
            let held = self.leases.values().find(|it| is_its(&it.holder.run, it.key.as_ref().map(|(key, _)| key)));
            if let Some(lease) = held {
                let is_same = lease.key.as_ref().is_some_and(|(_, substance)| *substance == ask.substance());
                return if is_same { Answer::Granted(lease.fence) } else { Answer::Refused("key-mismatch") };
            }
            let waits = self.waiters.iter_mut().find(|(_, it)| is_its(&it.ask.holder.run, it.ask.key.as_ref()));
            if let Some((ticket, waiter)) = waits {
                if waiter.ask.substance() != ask.substance() {
                    return Answer::Refused("key-mismatch");
                }
                if ask.wait.is_zero() {
                    return Answer::Refused("exhausted");
                }
                waiter.until = waiter.until.max(self.now + micros(ask.wait));
                owner.clone_into(&mut waiter.owner);
                return Answer::Waits(*ticket);
            }
        }
        if ask.wants.iter().any(|want| self.pools.get(&want.pool).is_none_or(|its| its.is_leaving)) {
            return Answer::Refused("pool-unknown");
        }
        let taken = self.serve();
        let (items, is_all) = self.find(ask, &taken);
        if is_all {
            return Answer::Granted(self.grant(ask, &items));
        }
        if self.never(ask) {
            return Answer::Refused("unsatisfiable");
        }
        if ask.wait.is_zero() {
            return Answer::Refused("exhausted");
        }
        if self.is_deadlock(ask) {
            return Answer::Refused("lease-deadlock");
        }
        self.ticket += 1;
        let until = self.now + micros(ask.wait);
        let waiter = Waiter { ask: ask.clone(), since: self.now, until, owner: owner.to_owned() };
        self.waiters.insert(self.ticket, waiter);
        Answer::Waits(self.ticket)
    }

    /// Whether this ask would still wait when everybody who can go on has let go of everything.
    fn is_deadlock(&self, ask: &Ask) -> bool {
        if !self.leases.values().any(|lease| lease.holder.is_same_worker(&ask.holder)) {
            return false;
        }
        // Who waits only for what its own worker has, for something else, goes on when that ends.
        let mut then = self.clone();
        let own = |it: &Lease| it.holder.is_same_worker(&ask.holder);
        for lease in self.leases.values().filter(|it| own(it)) {
            lease.items.iter().for_each(|key| then.items.get_mut(key).expect("an item").held -= 1);
        }
        for item in then.items.values_mut().filter(|item| Self::has_future(item)) {
            (item.soiled, item.state) = (false, ItemState::Free);
        }
        if then.find(ask, &HashMap::new()).1 {
            return false;
        }
        let mut then = self.clone();
        let patience = self.now + micros(ask.wait);
        let own = then.ticket + 1;
        then.waiters.insert(own, Waiter { ask: ask.clone(), since: 0, until: 0, owner: String::new() });
        loop {
            let waits = |holder: &Holder| then.waiters.values().any(|it| it.ask.holder.is_same_worker(holder));
            let goes = |it: &&Lease| !waits(&it.holder) || (!it.kept && it.expires <= patience);
            let going: Vec<Lease> = then.leases.values().filter(goes).cloned().collect();
            for lease in &going {
                then.leases.remove(&lease.fence);
                lease.items.iter().for_each(|key| then.items.get_mut(key).expect("an item").held -= 1);
            }
            for item in then.items.values_mut().filter(|item| item.held == 0) {
                item.soiled = false;
                if matches!(item.state, ItemState::Dirty | ItemState::Resetting) {
                    item.state = ItemState::Free;
                }
            }
            let before = then.waiters.len();
            then.serve();
            if !then.waiters.contains_key(&own) {
                return false;
            }
            if going.is_empty() && then.waiters.len() == before {
                return true;
            }
        }
    }

    fn end(&mut self, fence: u64, how: &'static str) {
        let Some(lease) = self.leases.remove(&fence) else { return };
        for key in &lease.items {
            self.used += 1;
            let used = self.used;
            let Some(item) = self.items.get_mut(key) else { continue };
            let definition = &self.pools[&item.pool];
            item.used = used;
            item.held -= 1;
            item.soiled |= definition.is_reset_after(how != "released");
            item.leaving |= definition.usage == Usage::Consume;
            settle(item, definition);
        }
        self.ended.insert(fence, how);
    }

    fn check(&self, fence: u64, given: Option<u64>) -> Refused {
        let is_wrong = given.is_some_and(|given| given != fence);
        if is_wrong || !self.leases.contains_key(&fence) { Err("lease-lost") } else { Ok(()) }
    }

    pub fn renew(&mut self, fence: u64, given: Option<u64>, ttl: Option<u64>) -> Refused {
        self.check(fence, given)?;
        let lease = self.leases.get_mut(&fence).expect("a lease");
        lease.ttl = ttl.map_or(lease.ttl, |ttl| ttl * 1000);
        lease.expires = self.now + lease.ttl;
        Ok(())
    }

    pub fn release(&mut self, fence: u64, given: Option<u64>) -> Refused {
        let is_right = given.is_none_or(|given| given == fence);
        if is_right && self.ended.get(&fence) == Some(&"released") {
            return Ok(());
        }
        self.check(fence, given)?;
        self.end(fence, "released");
        Ok(())
    }

    pub fn revoke(&mut self, fence: u64) {
        self.end(fence, "revoked");
    }

    pub fn end_all(&mut self, how: &'static str, whose: impl Fn(&Holder) -> bool) {
        let its: Vec<u64> = self.waiters.iter().filter(|(_, it)| whose(&it.ask.holder)).map(|it| *it.0).collect();
        for ticket in its {
            self.leaves(ticket, Answer::Refused("lease-lost"));
        }
        let its: Vec<u64> = self.leases.values().filter(|it| whose(&it.holder)).map(|it| it.fence).collect();
        for fence in its {
            self.end(fence, how);
        }
    }

    pub fn lost_process(&mut self, owner: &str) {
        let its: Vec<u64> = self.waiters.iter().filter(|(_, it)| it.owner == owner).map(|it| *it.0).collect();
        for ticket in its {
            self.leaves(ticket, Answer::Refused("lease-lost"));
        }
        for item in self.items.values_mut().filter(|it| it.resetter.as_deref() == Some(owner)) {
            (item.state, item.resetter) = (ItemState::Dirty, None);
            settle(item, &self.pools[&item.pool]);
        }
    }

    pub fn define(&mut self, pool: &str, definition: &Definition) {
        self.pools.insert(pool.to_owned(), definition.clone());
    }

    pub fn add(&mut self, pool: &str, items: Vec<Attributes>, is_configured: bool) -> Vec<i64> {
        self.pools.entry(pool.to_owned()).or_default().is_leaving = false;
        items.into_iter().map(|it| self.put(pool, it, is_configured)).collect()
    }

    /// Whether somebody has used up or retired what the configuration names so.
    fn is_spent(&self, pool: &str, name: &str) -> bool {
        let is_it = |it: &Item| it.pool == pool && it.name == name && it.configured && it.leaving;
        self.spent.contains(&(pool.to_owned(), name.to_owned())) || self.items.values().any(is_it)
    }

    fn put(&mut self, pool: &str, attributes: Attributes, is_configured: bool) -> i64 {
        let name = plain(&attributes["id"]);
        let known =
            self.items.values_mut().find(|it| it.pool == pool && it.name == name && it.state != ItemState::Retired);
        if let Some(item) = known {
            item.attributes = attributes;
            item.leaving = false;
            item.configured |= is_configured;
            if item.state == ItemState::Retiring || (item.state == ItemState::Quarantined && !is_configured) {
                (item.state, item.failures) = (ItemState::Free, 0);
            }
            return item.key;
        }
        self.spent.remove(&(pool.to_owned(), name.clone()));
        self.item += 1;
        let item = Item {
            key: self.item,
            pool: pool.to_owned(),
            name,
            attributes,
            state: ItemState::Free,
            held: 0,
            fence: 0,
            used: 0,
            failures: 0,
            soiled: false,
            leaving: false,
            configured: is_configured,
            resetter: None,
        };
        self.items.insert(self.item, item);
        self.item
    }

    pub fn configure(&mut self, pool: &str, definition: &Definition, items: Vec<Attributes>) {
        self.define(pool, definition);
        let names: Vec<String> = items.iter().map(|it| plain(&it["id"])).collect();
        for attributes in items {
            if !self.is_spent(pool, &plain(&attributes["id"])) {
                self.add(pool, vec![attributes], true);
            }
        }
        let gone = |it: &&mut Item| it.pool == pool && it.configured && !names.contains(&it.name);
        for item in self.items.values_mut().filter(gone) {
            item.configured = false;
            if !item.leaving {
                leave(item, definition);
            }
        }
        self.spent.retain(|(its, name)| its != pool || names.contains(name));
    }

    pub fn retire(&mut self, pool: &str, name: &str) -> Refused {
        let Some(definition) = self.pools.get(pool) else { return Err("pool-unknown") };
        let Some(item) = self.items.values_mut().find(|it| it.pool == pool && it.name == name) else {
            return Err("item-unknown");
        };
        leave(item, definition);
        Ok(())
    }

    pub fn remove(&mut self, pool: &str, when_released: bool) -> Refused {
        let Some(definition) = self.pools.get_mut(pool) else { return Err("pool-unknown") };
        let its = self.items.values_mut().filter(|it| it.pool == pool);
        let mut its: Vec<_> = its.collect();
        if !when_released && its.iter().any(|item| item.held > 0) {
            return Err("in-use");
        }
        definition.is_leaving = true;
        for item in &mut its {
            leave(item, definition);
            item.configured = false;
        }
        self.spent.retain(|(its, _)| its != pool);
        let waits = |it: &Waiter| it.ask.wants.iter().any(|want| want.pool == pool);
        let waiting: Vec<u64> = self.waiters.iter().filter(|(_, it)| waits(it)).map(|it| *it.0).collect();
        for ticket in waiting {
            self.leaves(ticket, Answer::Refused("pool-unknown"));
        }
        Ok(())
    }

    pub fn begin_reset(&mut self, key: i64, owner: &str) {
        let item = self.items.get_mut(&key).expect("an item");
        if item.state == ItemState::Dirty {
            (item.state, item.resetter) = (ItemState::Resetting, Some(owner.to_owned()));
        }
    }

    pub fn was_reset(&mut self, key: i64, is_good: bool) {
        let item = self.items.get_mut(&key).expect("an item");
        if item.state != ItemState::Resetting {
            return;
        }
        item.resetter = None;
        if is_good {
            (item.state, item.failures) = (ItemState::Free, 0);
        } else {
            item.failures += 1;
            item.state = if item.failures >= 3 { ItemState::Quarantined } else { ItemState::Dirty };
        }
        settle(item, &self.pools[&item.pool]);
    }

    pub fn was_retired(&mut self, key: i64) {
        let item = self.items.get_mut(&key).expect("an item");
        if item.state == ItemState::Retiring {
            item.state = ItemState::Retired;
        }
    }

    /// No item has more holders than it may have, and holders and leases are the same thing.
    pub fn is_sound(&self) -> Result<(), String> {
        for item in self.items.values() {
            let held = self.leases.values().filter(|lease| lease.items.contains(&item.key)).count();
            if held != item.held as usize || item.held > self.definition(item).usage.places() {
                return Err(format!("{item:?} is in {held} leases"));
            }
        }
        Ok(())
    }
}

fn leave(item: &mut Item, definition: &Definition) {
    // Tries to retire it are counted from the beginning.
    if item.state == ItemState::Resetting && !item.leaving {
        item.failures = 0;
    }
    item.leaving = true;
    settle(item, definition);
}

fn settle(item: &mut Item, definition: &Definition) {
    if item.held > 0 || matches!(item.state, ItemState::Resetting | ItemState::Retired) {
        return;
    }
    if item.leaving {
        // Tries to retire it are counted from the beginning.
        if item.state != ItemState::Retiring {
            item.failures = 0;
        }
        item.state = if definition.retire.is_some() { ItemState::Retiring } else { ItemState::Retired };
    } else if item.soiled {
        (item.soiled, item.state) = (false, ItemState::Dirty);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("not so long")
}
