//! Those who hold something and wait for more may wait for each other, for ever. Nobody else
//! can end that, so the last who came is refused.

use std::collections::HashMap;
use std::time::Duration;

use super::{Board, joint};
use crate::lease::ask::{Ask, Holder, Want};
use crate::lease::grant::Lease;
use crate::lease::item::{Item, ItemKey};
use crate::lease::refusal::Refusal;

/// A worker: its run, its name, and who it is besides.
type Worker<'a> = (Option<&'a str>, &'a str, Option<&'a str>);

fn worker_of(holder: &Holder) -> Option<Worker<'_>> {
    // A person at several shells is not one worker.
    Some((holder.run.as_deref(), holder.worker.as_deref()?, holder.client.as_deref()))
}

/// Everybody who waits, and the one who would wait now; and who of them can go on some time.
struct Line<'a> {
    asks: Vec<&'a Ask>,
    can_go_on: Vec<bool>,
    /// How many of a worker's waits are still without hope.
    stuck: HashMap<Worker<'a>, usize>,
    /// The leases of those who wait, which they do not let go of before.
    leases: HashMap<Worker<'a>, Vec<&'a Lease>>,
    /// What they would get by one wait, and keep as long as they wait for something else as well.
    gained: HashMap<Worker<'a>, Vec<ItemKey>>,
    places: Places,
}

/// How the places of items would be held some time.
#[derive(Default)]
struct Places {
    /// How many are held by those without hope.
    held: HashMap<ItemKey, u32>,
    /// The order of uses that would come until then.
    used: HashMap<ItemKey, u64>,
}

impl Board {
    /// The refusal of an ask that would wait for ever, if it would.
    pub(super) fn deadlock_with(&self, ask: &Ask) -> Option<Refusal> {
        let worker = worker_of(&ask.holder)?;
        // Nobody waits for one who holds nothing.
        if !self.leases.values().any(|lease| worker_of(&lease.holder) == Some(worker)) || self.waits_for_itself(ask) {
            return None;
        }
        let mut line = self.line_with(ask);
        let last = line.asks.len() - 1;
        // Who can get what they wait for goes on, and lets go of all they hold in the end.
        loop {
            let (mut granted, mut taken) = (Vec::new(), HashMap::new());
            for at in 0..line.asks.len() {
                if line.can_go_on[at] {
                    continue;
                }
                let (items, is_all) = self.find_in(line.asks[at], &line.places, &taken);
                // What there is of it is kept for it, whoever comes later.
                for item in &items {
                    *taken.entry(*item).or_default() += 1;
                }
                if is_all {
                    granted.push((at, items));
                }
            }
            let is_over = granted.is_empty();
            for (at, items) in granted {
                for item in &items {
                    let next = self.head.used + 1 + line.places.used.len() as u64;
                    line.places.used.insert(*item, next);
                }
                let is_lasting = self.is_lasting(line.asks[at], ask.wait);
                line.goes_on(at, if is_lasting { items } else { Vec::new() });
            }
            if line.can_go_on[last] {
                return None;
            }
            if is_over {
                return Some(Refusal::Deadlock { cycle: self.cycle(&line) });
            }
        }
    }

    /// Whether all that an ask lacks is held by its own worker, and not for the same test: a worker
    /// may do several things at once (threads, jobs of a shell), and each ends some time.
    fn waits_for_itself(&self, ask: &Ask) -> bool {
        let is_other_deed = |holder: &Holder| holder.test.is_none() || holder.test != ask.holder.test;
        let mut places = Places::default();
        for lease in self.leases.values() {
            if worker_of(&lease.holder) != worker_of(&ask.holder) || !is_other_deed(&lease.holder) {
                lease.items.iter().for_each(|its| *places.held.entry(its.item).or_default() += 1);
            }
        }
        self.find_in(ask, &places, &HashMap::new()).1
    }

    /// Whether a lease for this ask would not end by time before somebody waits no more.
    fn is_lasting(&self, ask: &Ask, patience: Duration) -> bool {
        let is_kept = ask.ttl.is_none() && ask.holder.run.is_some();
        is_kept || self.ttl_of(ask) > patience
    }

    fn line_with<'a>(&'a self, ask: &'a Ask) -> Line<'a> {
        let asks: Vec<&Ask> = self.waiters.values().map(|waiter| &waiter.ask).chain([ask]).collect();
        let mut stuck: HashMap<Worker<'_>, usize> = HashMap::new();
        for worker in asks.iter().filter_map(|ask| worker_of(&ask.holder)) {
            *stuck.entry(worker).or_default() += 1;
        }
        let patience = self.now.after(ask.wait);
        let mut leases: HashMap<Worker<'_>, Vec<&Lease>> = HashMap::new();
        let mut places = Places::default();
        for lease in self.leases.values() {
            let Some(worker) = worker_of(&lease.holder).filter(|worker| stuck.contains_key(worker)) else { continue };
            // One that is not renewed may end in time.
            if lease.is_kept || lease.expires_at > patience {
                leases.entry(worker).or_default().push(lease);
                lease.items.iter().for_each(|its| *places.held.entry(its.item).or_default() += 1);
            }
        }
        Line { can_go_on: vec![false; asks.len()], asks, stuck, leases, gained: HashMap::new(), places }
    }

    /// What there is for an ask when those with hope have let go of everything.
    fn find_in(&self, ask: &Ask, there: &Places, taken: &HashMap<ItemKey, u32>) -> (Vec<ItemKey>, bool) {
        let Places { held, used } = there;
        let (mut chosen, mut is_all) = (Vec::new(), true);
        for want in &ask.wants {
            let Some(its) = self.pools.get(&want.pool) else { continue };
            let (places, count) = (its.pool.definition.usage.places(), want.count as usize);
            let of = |map: &HashMap<ItemKey, u32>, key| map.get(&key).copied().unwrap_or(0);
            let mut open: Vec<(usize, u64, ItemKey)> = Vec::new();
            for item in self.like(want) {
                if of(held, item.key) + of(taken, item.key) < places && !chosen.contains(&item.key) {
                    open.push((0, used.get(&item.key).copied().unwrap_or(item.used), item.key));
                }
            }
            is_all &= open.len() >= count || its.can_make();
            if open.len() > count {
                for (plenty, _, key) in &mut open {
                    *plenty = usize::MAX - its.shelf.plenty_of(*key);
                }
                open.sort_unstable();
                open.truncate(count);
            }
            chosen.extend(open.into_iter().map(|(_, _, key)| key));
        }
        if !is_all && joint::is_joint(ask) {
            let is_open = |item: &&Item| {
                let of = |map: &HashMap<ItemKey, u32>| map.get(&item.key).copied().unwrap_or(0);
                self.definition(&item.pool).is_some_and(|its| of(held) + of(taken) < its.usage.places())
            };
            let fit = |want: &Want, most| self.like(want).filter(is_open).take(most).map(|it| it.key).collect();
            if let Some(items) = joint::assign(ask, fit) {
                return (items, true);
            }
        }
        (chosen, is_all)
    }

    pub(super) fn like<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = &'a Item> {
        self.items_of(&want.pool).filter(|item| item.has_future() && want.predicate.holds(&item.attributes))
    }

    /// Who waits for whom, the last who came first.
    fn cycle(&self, line: &Line<'_>) -> Vec<(Holder, String)> {
        let mut cycle: Vec<(Holder, String)> = Vec::new();
        let mut at = line.asks.len() - 1;
        let mut seen: Vec<usize> = Vec::new();
        while !seen.contains(&at) {
            seen.push(at);
            let ask = line.asks[at];
            let has = |want: &&Want| self.like(want).filter(|it| !line.places.held.contains_key(&it.key)).count();
            let is_short = |want: &&Want| has(want) < want.count as usize;
            let Some(want) = ask.wants.iter().find(is_short).or(ask.wants.first()) else { break };
            cycle.push((ask.holder.clone(), want.pool.clone()));
            let holds = |other: &Ask| {
                let leases = worker_of(&other.holder).and_then(|worker| line.leases.get(&worker));
                leases.into_iter().flatten().flat_map(|lease| &lease.items).any(|its| *its.pool == *want.pool)
            };
            let others = || (0..line.asks.len()).filter(|other| !line.can_go_on[*other]);
            // Somebody holds it; or somebody who came before waits for it and for more.
            let blocker = others().find(|other| holds(line.asks[*other]));
            let ahead = || others().find(|other| line.asks[*other].wants.iter().any(|it| it.pool == want.pool));
            let Some(next) = blocker.or_else(ahead) else { break };
            at = next;
        }
        if let Some(first) = seen.iter().position(|it| *it == at) {
            // What only leads to those who wait for each other is no part of it; the one that is
            // refused is named all the same.
            cycle.drain(1.min(first)..first);
        }
        cycle
    }
}

impl Line<'_> {
    fn goes_on(&mut self, at: usize, gained: Vec<ItemKey>) {
        self.can_go_on[at] = true;
        let Some(worker) = worker_of(&self.asks[at].holder) else { return };
        let Some(stuck) = self.stuck.get_mut(&worker) else { return };
        *stuck -= 1;
        if *stuck > 0 {
            for item in &gained {
                *self.places.held.entry(*item).or_default() += 1;
            }
            self.gained.entry(worker).or_default().extend(gained);
            return;
        }
        let leases = self.leases.remove(&worker).into_iter().flatten();
        let items = leases.flat_map(|lease| &lease.items).map(|its| its.item);
        for item in items.chain(self.gained.remove(&worker).into_iter().flatten()) {
            if let Some(held) = self.places.held.get_mut(&item) {
                *held -= 1;
            }
        }
    }
}
