//! Granting, keeping and ending leases.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::{Answer, Board, News, PoolOnBoard, pools_of};
use crate::clock::Timestamp;
use crate::lease::ask::{Ask, LONGEST, Want};
use crate::lease::grant::{Held, Lease, LeaseState};
use crate::lease::item::ItemKey;
use crate::lease::queue::{Ticket, Waiter, WaiterState};
use crate::lease::refusal::Refusal;
use crate::lease::shelf::Taken;

/// How many holders a refusal carries.
const MOST_OBSTACLES: usize = 50;

/// What is found for somebody who asks.
enum Found {
    /// All of it.
    All(Vec<ItemKey>),
    /// This much of it.
    Part(Vec<ItemKey>),
}

/// What is left over in one look at the line.
#[derive(Default)]
pub(super) struct Rest {
    /// Places that are kept for those who came first.
    taken: Taken,
    /// Wants of which nothing is left.
    spent: HashSet<(String, String)>,
}

impl Board {
    /// Grants what is asked for, all or nothing. Nobody gets what somebody who waits longer
    /// could use.
    pub fn acquire(&mut self, ask: Ask) -> Answer {
        if let Some(answer) = self.repeated(&ask) {
            return answer;
        }
        for want in &ask.wants {
            if self.pools.get(&want.pool).is_none_or(|its| its.pool.is_removed) {
                return Answer::Refused(self.no_pool(&want.pool));
            }
        }
        let mut rest = self.serve_queue();
        if let Found::All(items) = self.find(&ask, &mut rest) {
            return Answer::Granted(self.grant(ask, &items, self.now));
        }
        if let Some(refusal) = self.never(&ask) {
            return Answer::Refused(refusal);
        }
        if ask.wait.is_zero() {
            return Answer::Refused(self.exhausted(&ask, Duration::ZERO, None));
        }
        if let Some(refusal) = self.deadlock_with(&ask) {
            return Answer::Refused(refusal);
        }
        self.head.ticket += 1;
        let ticket = self.head.ticket;
        let until = self.now.after(ask.wait.min(LONGEST));
        let (state, lease, owner) = (WaiterState::Waiting, None, self.owner.clone());
        let waiter = Waiter { ticket, ask, since: self.now, until, state, lease, owner };
        self.changes.waiters.insert(ticket, waiter.clone());
        self.queue(waiter);
        Answer::Waits(ticket)
    }

    /// The answer to a request that was made before.
    fn repeated(&mut self, ask: &Ask) -> Option<Answer> {
        let key = ask.key.as_ref()?;
        let mismatch = || Answer::Refused(Refusal::KeyMismatch { key: key.clone() });
        if let Some(id) = self.by_key.get(&(ask.holder.circle(), key.clone())) {
            let lease = self.leases.get(id)?;
            let is_same = lease.key.as_ref().is_some_and(|(_, substance)| *substance == ask.substance());
            return Some(if is_same { Answer::Granted(lease.clone()) } else { mismatch() });
        }
        let is_its = |waiter: &&Waiter| {
            waiter.ask.key.as_ref() == Some(key) && waiter.ask.holder.circle() == ask.holder.circle()
        };
        let waiter = self.waiters.values().find(is_its)?;
        if waiter.ask.substance() != ask.substance() {
            return Some(mismatch());
        }
        // It is told there where it was asked last.
        let mut waiter = waiter.clone();
        waiter.owner.clone_from(&self.owner);
        let ticket = waiter.ticket;
        self.changes.waiters.insert(ticket, waiter.clone());
        self.waiters.insert(ticket, waiter);
        Some(Answer::Waits(ticket))
    }

    /// Gives those who wait what they can get, first come first. What comes back is what is
    /// left for others.
    pub(super) fn serve_queue(&mut self) -> Rest {
        let mut rest = Rest::default();
        if self.waiters.is_empty() {
            self.is_moved = false;
            return rest;
        }
        let awaited: Vec<String> =
            self.pools.iter().filter(|(_, its)| its.awaited > 0).map(|(name, _)| name.clone()).collect();
        for ticket in self.waiters.keys().copied().collect::<Vec<_>>() {
            if self.open_in(&awaited) <= rest.taken.values().map(|n| u64::from(*n)).sum() {
                break;
            }
            let Some(waiter) = self.waiters.get(&ticket) else { continue };
            let (ask, since) = (waiter.ask.clone(), waiter.since);
            match self.find(&ask, &mut rest) {
                Found::All(items) => {
                    let lease = self.grant(ask, &items, since);
                    self.leave_queue(ticket, WaiterState::Granted, Some(lease.id.clone()));
                    self.news.push(News::Granted(ticket, lease));
                }
                // It is kept for it: who comes later and wants less would always be faster.
                Found::Part(items) => {
                    for item in items {
                        *rest.taken.entry(item).or_default() += 1;
                    }
                }
            }
        }
        self.is_moved = false;
        rest
    }

    fn open_in(&mut self, pools: &[String]) -> u64 {
        let items = &self.items;
        let open = |its: &mut PoolOnBoard| its.shelf.open(items, &its.pool.definition);
        pools.iter().map(|name| self.pools.get_mut(name).map_or(0, open)).sum()
    }

    fn find(&mut self, ask: &Ask, rest: &mut Rest) -> Found {
        let mut chosen: Vec<ItemKey> = Vec::new();
        let mut is_all = true;
        for want in &ask.wants {
            let Some(its) = self.pools.get_mut(&want.pool) else { return Found::Part(Vec::new()) };
            let id = || (want.pool.clone(), want.predicate.to_string());
            if !rest.spent.is_empty() && rest.spent.contains(&id()) {
                is_all = false;
                continue;
            }
            let found = its.shelf.pick(want, &self.items, &its.pool.definition, &rest.taken, &chosen);
            if found.len() < want.count as usize {
                is_all = false;
                // What there was is kept now, so the next who wants the same finds nothing.
                rest.spent.insert(id());
            }
            chosen.extend(found);
        }
        if is_all { Found::All(chosen) } else { Found::Part(chosen) }
    }

    fn grant(&mut self, ask: Ask, items: &[ItemKey], since: Timestamp) -> Lease {
        self.head.fence += 1;
        let fence = self.head.fence;
        let mut held = Vec::with_capacity(items.len());
        for key in items {
            self.head.used += 1;
            let used = self.head.used;
            self.change_item(*key, |item, _| {
                item.held += 1;
                item.fence = fence;
                item.used = used;
            });
            held.extend(self.items.get(key).map(|item| Held {
                item: *key,
                pool: item.pool.clone(),
                name: item.name.clone(),
            }));
        }
        let of_pool =
            |want: &Want| self.definition(&want.pool).map_or(Duration::ZERO, |its| Duration::from_secs(its.ttl()));
        let usual = ask.wants.iter().map(of_pool).min().unwrap_or_default();
        let ttl = ask.ttl.unwrap_or(usual).min(LONGEST);
        let substance = if ask.key.is_some() { ask.substance() } else { String::new() };
        let lease = Lease {
            id: Uuid::now_v7().to_string(),
            items: held,
            key: ask.key.map(|key| (key, substance)),
            fence,
            state: LeaseState::Held,
            acquired_at: self.now,
            expires_at: self.now.after(ttl),
            ended_at: None,
            ttl: u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX),
            is_kept: ask.ttl.is_none() && ask.holder.run.is_some(),
            holder: ask.holder,
        };
        self.changes.leases.insert(lease.id.clone(), lease.clone());
        self.pulse.granted(&lease, since);
        self.enter(lease.clone());
        lease
    }

    /// Why this will not be granted, whatever is released.
    fn never(&self, ask: &Ask) -> Option<Refusal> {
        ask.wants.iter().find_map(|want| {
            let its = self.pools.get(&want.pool)?;
            let wanted = want.count as usize;
            let matching = its.shelf.matching(&want.predicate, &self.items, wanted);
            if matching >= wanted || its.pool.definition.can_make(its.shelf.len()) {
                return None;
            }
            let nearest = if matching == 0 { its.shelf.nearest(&want.predicate, &self.items) } else { None };
            let total = its.shelf.keys().filter_map(|key| self.items.get(&key)).filter(|it| it.has_future()).count();
            Some(Refusal::Unsatisfiable { pool: want.pool.clone(), wanted: want.count, matching, total, nearest })
        })
    }

    /// Who is in the way of the first want that cannot be met now.
    pub(super) fn exhausted(&mut self, ask: &Ask, waited: Duration, ticket: Option<Ticket>) -> Refusal {
        let mut short = &ask.wants[0];
        for want in &ask.wants {
            let Some(its) = self.pools.get_mut(&want.pool) else { return self.no_pool(&want.pool) };
            let found = its.shelf.pick(want, &self.items, &its.pool.definition, &Taken::new(), &[]);
            if found.len() < want.count as usize {
                short = want;
                break;
            }
        }
        let like_it: Vec<ItemKey> = self
            .items_of(&short.pool)
            .filter(|item| item.has_future() && short.predicate.holds(&item.attributes))
            .map(|item| item.key)
            .collect();
        let mut obstacles: Vec<_> = like_it.iter().flat_map(|key| self.obstacles(*key)).collect();
        obstacles.sort_by_key(|it| it.until);
        obstacles.truncate(MOST_OBSTACLES);
        let is_unready =
            |key: &&ItemKey| self.items.get(key).is_some_and(|item| item.held == 0 && item.state.as_str() != "free");
        let ahead = self.waiters.values().filter(|it| ticket.is_none_or(|own| it.ticket < own));
        Refusal::Exhausted {
            pool: short.pool.clone(),
            wanted: short.count,
            matching: like_it.len(),
            obstacles,
            ahead: ahead.filter(|it| pools_of(&it.ask).contains(short.pool.as_str())).count(),
            unready: like_it.iter().filter(is_unready).count(),
            waited,
        }
    }

    /// Ends a wait whose asker is gone; what it was granted meanwhile goes back.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.leave_queue(ticket, WaiterState::Gone, None);
    }

    /// Renews a lease, for `ttl` or for as long as it was granted for.
    pub fn renew(&mut self, id: &str, fence: Option<u64>, ttl: Option<Duration>) -> Result<Lease, Refusal> {
        self.check(id, fence)?;
        let Some(mut lease) = self.strike(id) else { return Err(Refusal::LeaseUnknown { lease: id.to_owned() }) };
        if let Some(ttl) = ttl {
            lease.ttl = u64::try_from(ttl.min(LONGEST).as_micros()).unwrap_or(u64::MAX);
        }
        lease.expires_at = self.now.after(Duration::from_micros(lease.ttl));
        self.changes.leases.insert(lease.id.clone(), lease.clone());
        self.enter(lease.clone());
        Ok(lease)
    }

    /// Gives a lease back. One that was given back already is success.
    pub fn release(&mut self, id: &str, fence: Option<u64>) -> Result<(), Refusal> {
        match self.check(id, fence) {
            Ok(()) => self.end(id, LeaseState::Released),
            Err(Refusal::Lost { how: "released", .. }) => {}
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }

    /// Takes a lease away.
    pub fn revoke(&mut self, id: &str) -> Result<(), Refusal> {
        match self.check(id, None) {
            Ok(()) => {
                self.end(id, LeaseState::Revoked);
                Ok(())
            }
            // It is nobody's any more, and that is all that was wanted.
            Err(Refusal::Lost { .. }) => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Ends all leases of those whom `whose` is true of, and their waits. How many leases that
    /// were comes back.
    pub fn end_all(&mut self, state: LeaseState, whose: impl Fn(&Lease) -> bool) -> usize {
        let ids: Vec<_> = self.leases.values().filter(|lease| whose(lease)).map(|lease| lease.id.clone()).collect();
        for id in &ids {
            self.end(id, state);
        }
        ids.len()
    }

    /// Renews those leases that are kept as long as their holders live, of those whom `whose` is
    /// true of, where a third of their time is over. What comes back is how many there are, and
    /// when the first has to be renewed again.
    pub fn keep_all(&mut self, whose: impl Fn(&Lease) -> bool) -> (usize, Option<Duration>) {
        let its = |lease: &&Lease| lease.is_kept && whose(lease);
        let kept: Vec<_> = self.leases.values().filter(its).map(|lease| (lease.id.clone(), lease.ttl)).collect();
        for (id, ttl) in &kept {
            let is_due = |lease: &Lease| lease.expires_at.0.saturating_sub(self.now.0) <= ttl - ttl / 3;
            if self.leases.get(id).is_some_and(is_due) {
                // It is held, and no number is asked for.
                let _ = self.renew(id, None, None);
            }
        }
        (kept.len(), kept.iter().map(|(_, ttl)| Duration::from_micros(ttl / 3)).min())
    }

    /// Ends all waits of those whom `whose` is true of.
    pub fn abandon_all(&mut self, whose: impl Fn(&Ask) -> bool) {
        let its = self.waiters.values().filter(|waiter| whose(&waiter.ask)).map(|waiter| waiter.ticket);
        for ticket in its.collect::<Vec<_>>() {
            self.abandon(ticket);
        }
    }

    /// A lease that is held; or why it is not.
    pub fn standing(&self, id: &str) -> Result<Lease, Refusal> {
        self.check(id, None)?;
        self.leases.get(id).cloned().ok_or_else(|| Refusal::LeaseUnknown { lease: id.to_owned() })
    }

    fn check(&self, id: &str, fence: Option<u64>) -> Result<(), Refusal> {
        let wrong = |its: u64| fence.filter(|given| *given != its);
        if let Some(lease) = self.leases.get(id) {
            return match wrong(lease.fence) {
                Some(given) => Err(Refusal::WrongFence { lease: id.to_owned(), given }),
                None => Ok(()),
            };
        }
        match self.ended.get(id) {
            Some(ending) if let Some(given) = wrong(ending.fence) => {
                Err(Refusal::WrongFence { lease: id.to_owned(), given })
            }
            Some(ending) => Err(Refusal::Lost { lease: id.to_owned(), how: ending.state.as_str(), at: ending.at }),
            None => Err(Refusal::LeaseUnknown { lease: id.to_owned() }),
        }
    }

    pub(super) fn end(&mut self, id: &str, state: LeaseState) {
        let Some(mut lease) = self.strike(id) else { return };
        lease.state = state;
        lease.ended_at = Some(self.now);
        let unclean = state != LeaseState::Released;
        for held in &lease.items {
            self.head.used += 1;
            let used = self.head.used;
            self.change_item(held.item, |item, definition| {
                item.used = used;
                item.let_go(definition, unclean);
            });
        }
        self.pulse.ended(&lease);
        self.remember(&lease);
        self.changes.leases.insert(lease.id.clone(), lease.clone());
        if unclean {
            self.news.push(News::Ended(lease));
        }
    }
}
