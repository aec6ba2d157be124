//! Granting, keeping and ending leases.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

use super::{Answer, Board, News, PoolOnBoard, joint, pools_of};
use crate::clock::Timestamp;
use crate::lease::ask::{Ask, LONGEST, Want};
use crate::lease::grant::{Held, Lease, LeaseState};
use crate::lease::item::{Item, ItemKey};
use crate::lease::queue::{Ticket, Waiter, WaiterState};
use crate::lease::refusal::Refusal;
use crate::lease::shelf::Taken;

/// How many holders a refusal carries.
const MOST_OBSTACLES: usize = 50;

/// Up to so many items that can be had are looked at one by one for those who wait.
const FEW: u64 = 16;

/// What is found for somebody who asks.
enum Found {
    /// All of it.
    All(Vec<ItemKey>),
    /// This much of it.
    Part(Vec<ItemKey>),
}

/// What is left over in one look at the line.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Places that are kept for those who came first.
    taken: Taken,
    /// Wants of which nothing is left.
    spent: HashSet<(String, String)>,
}

impl Rest {
    fn keep(&mut self, items: Vec<ItemKey>) {
        for item in items {
            *self.taken.entry(item).or_default() += 1;
        }
    }
}

/// What tells wants apart that find different items.
fn id_of(want: &Want) -> (String, String) {
    (want.pool.clone(), want.predicate.to_string())
}

impl Board {
    /// Grants what is asked for, all or nothing. Nobody gets what somebody who waits longer
    /// could use.
    pub fn acquire(&mut self, ask: Ask) -> Answer {
        if let Some(answer) = self.repeated(&ask) {
            return answer;
        }
        if let Some(refusal) = ask.wants.iter().find_map(|want| self.missing(&want.pool)) {
            return Answer::Refused(refusal);
        }
        let mut rest = self.serve_queue();
        let part = match self.find(&ask, &mut rest) {
            Found::All(items) => {
                self.rest = Some(rest);
                return Answer::Granted(self.grant(ask, &items, self.now));
            }
            Found::Part(items) => items,
        };
        if let Some(refusal) = self.never(&ask) {
            return Answer::Refused(refusal);
        }
        // What can be made is worth its making, also to somebody who does not wait for others.
        let wait = if ask.wait.is_zero() { self.making_time(&ask) } else { ask.wait };
        if wait.is_zero() {
            return Answer::Refused(self.exhausted(&ask, Duration::ZERO, None));
        }
        if let Some(refusal) = self.deadlock_with(&ask) {
            return Answer::Refused(refusal);
        }
        self.head.ticket += 1;
        let ticket = self.head.ticket;
        let until = self.now.after(wait.min(LONGEST));
        let (state, lease, owner) = (WaiterState::Waiting, None, self.owner.clone());
        let waiter = Waiter { ticket, ask, since: self.now, until, state, lease, owner };
        self.changes.waiters.insert(ticket, waiter.clone());
        self.queue(waiter);
        rest.keep(part);
        self.rest = Some(rest);
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
        let id = (ask.holder.circle(), key.clone());
        let waiter = self.waiters.get(self.waiting_by_key.get(&id)?)?;
        if waiter.ask.substance() != ask.substance() {
            return Some(mismatch());
        }
        let ticket = waiter.ticket;
        if ask.wait.is_zero() {
            return Some(Answer::Refused(self.exhausted(ask, Duration::ZERO, Some(ticket))));
        }
        // It keeps its place, and waits where it was asked last, for as long as was asked last.
        let mut waiter = self.unqueue(ticket)?;
        waiter.owner.clone_from(&self.owner);
        waiter.until = waiter.until.max(self.now.after(ask.wait.min(LONGEST)));
        self.changes.waiters.insert(ticket, waiter.clone());
        self.queue(waiter);
        Some(Answer::Waits(ticket))
    }

    /// Gives those who wait what they can get, first come first. What comes back is what is
    /// left for others.
    pub(super) fn serve_queue(&mut self) -> Rest {
        if !self.is_moved
            && let Some(rest) = self.rest.take()
        {
            return rest;
        }
        let mut rest = Rest::default();
        self.is_moved = false;
        let awaited: Vec<String> =
            self.pools.iter().filter(|(_, its)| its.awaited > 0).map(|(name, _)| name.clone()).collect();
        let few = self.few_in(&awaited);
        // The first of each line, the one first who came first.
        let firsts = self.lines.values().filter_map(|line| line.first());
        let mut next: BinaryHeap<Reverse<Ticket>> = firsts.map(|ticket| Reverse(*ticket)).collect();
        while let Some(Reverse(ticket)) = next.pop() {
            if self.open_in(&awaited) <= rest.taken.values().map(|n| u64::from(*n)).sum() {
                break;
            }
            let Some(waiter) = self.waiters.get(&ticket) else { continue };
            // Most who wait each for an item of their own are not touched by what there is.
            let is_like_none = |want: &Want| {
                let its = few.get(&want.pool);
                its.is_some_and(|keys| !keys.iter().any(|key| self.is_like(*key, want)))
            };
            if waiter.ask.wants.iter().all(is_like_none) {
                continue;
            }
            let (ask, since) = (waiter.ask.clone(), waiter.since);
            let behind = self.lines.get(&ask.substance()).and_then(|line| line.range(ticket + 1..).next()).copied();
            match self.find(&ask, &mut rest) {
                Found::All(items) => {
                    let lease = self.grant(ask, &items, since);
                    self.leave_queue(ticket, WaiterState::Granted, Some(lease.id.clone()));
                    self.news.push(News::Granted(ticket, lease));
                    next.extend(behind.map(Reverse));
                }
                // It is kept for it: who comes later and wants less would always be faster.
                Found::Part(items) => {
                    rest.keep(items);
                    // Who wants the same finds nothing where nothing is left at all.
                    if !ask.wants.iter().all(|want| rest.spent.contains(&id_of(want))) {
                        next.extend(behind.map(Reverse));
                    }
                }
            }
        }
        self.is_moved = false;
        rest
    }

    /// The items that can be had in those of these pools where there are few.
    fn few_in(&mut self, pools: &[String]) -> HashMap<String, Vec<ItemKey>> {
        let mut few = HashMap::new();
        for name in pools {
            if let Some(its) = self.pools.get_mut(name)
                && its.shelf.open(&self.items, &its.pool.definition) <= FEW
            {
                few.insert(name.clone(), its.shelf.free().collect());
            }
        }
        few
    }

    fn is_like(&self, key: ItemKey, want: &Want) -> bool {
        self.items.get(&key).is_some_and(|item| want.predicate.holds(&item.attributes))
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
            if !rest.spent.is_empty() && rest.spent.contains(&id_of(want)) {
                is_all = false;
                continue;
            }
            let found = its.shelf.pick(want, &self.items, &its.pool.definition, &rest.taken, &chosen);
            if found.len() < want.count as usize {
                is_all = false;
                // What there was is kept now, so the next who wants the same finds nothing; unless
                // one item has places for several.
                if its.pool.definition.usage.places() == 1 {
                    rest.spent.insert(id_of(want));
                }
            }
            chosen.extend(found);
        }
        if !is_all
            && joint::is_joint(ask)
            && let Some(items) = joint::assign(ask, |want, count| self.fit(want, count, &rest.taken))
        {
            return Found::All(items);
        }
        if is_all { Found::All(chosen) } else { Found::Part(chosen) }
    }

    /// The best items for a want, up to `count`.
    fn fit(&mut self, want: &Want, count: usize, taken: &Taken) -> Vec<ItemKey> {
        let Some(its) = self.pools.get_mut(&want.pool) else { return Vec::new() };
        let want = Want { count: u32::try_from(count).unwrap_or(u32::MAX), ..want.clone() };
        its.shelf.pick(&want, &self.items, &its.pool.definition, taken, &[])
    }

    fn grant(&mut self, ask: Ask, items: &[ItemKey], since: Timestamp) -> Lease {
        // What is granted was kept for nobody else.
        let is_moved = self.is_moved;
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
        let ttl = self.ttl_of(&ask);
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
        self.is_moved = is_moved;
        lease
    }

    /// How long a lease for this ask lives.
    pub(super) fn ttl_of(&self, ask: &Ask) -> Duration {
        let of_pool =
            |want: &Want| self.definition(&want.pool).map_or(Duration::ZERO, |its| Duration::from_secs(its.ttl()));
        let usual = ask.wants.iter().map(of_pool).min().unwrap_or_default();
        ask.ttl.unwrap_or(usual).min(LONGEST)
    }

    /// Why this will not be granted, whatever is released.
    pub(super) fn never(&self, ask: &Ask) -> Option<Refusal> {
        let alone = self.never_alone(ask);
        let can_make = |want: &Want| self.pools.get(&want.pool).is_some_and(PoolOnBoard::can_make);
        if alone.is_some() || !joint::is_joint(ask) || ask.wants.iter().any(can_make) {
            return alone;
        }
        let total: usize = ask.wants.iter().map(|want| want.count as usize).sum();
        let like_it = |want: &Want, most: usize| self.like(want).take(most).map(|item| item.key).collect();
        // Of so many it cannot be told.
        if total > joint::MOST || joint::assign(ask, like_it).is_some() {
            return None;
        }
        // The first pool that it names twice.
        let is_again = |(at, want): &(usize, &Want)| ask.wants[..*at].iter().any(|other| other.pool == want.pool);
        let (_, again) = ask.wants.iter().enumerate().find(is_again)?;
        let its: Vec<&Want> = ask.wants.iter().filter(|want| want.pool == again.pool).collect();
        let is_future = |item: &&Item| item.has_future();
        let is_like = |item: &&Item| its.iter().any(|want| want.predicate.holds(&item.attributes));
        Some(Refusal::Unsatisfiable {
            pool: again.pool.clone(),
            wanted: its.iter().map(|want| want.count).sum(),
            matching: self.items_of(&again.pool).filter(is_future).filter(is_like).count(),
            total: self.items_of(&again.pool).filter(is_future).count(),
            nearest: None,
        })
    }

    fn never_alone(&self, ask: &Ask) -> Option<Refusal> {
        ask.wants.iter().find_map(|want| {
            let its = self.pools.get(&want.pool)?;
            let wanted = want.count as usize;
            let matching = its.shelf.matching(&want.predicate, &self.items, wanted);
            if matching >= wanted {
                return None;
            }
            if let Some(generator) = &its.pool.definition.generator
                && its.pool.definition.can_make(its.shelf.len())
            {
                let unmakeable = |why| Refusal::Unmakeable { pool: want.pool.clone(), why };
                return generator.input_for(&want.predicate).err().map(unmakeable);
            }
            let nearest = if matching == 0 { its.shelf.nearest(&want.predicate, &self.items) } else { None };
            let total = its.shelf.keys().filter_map(|key| self.items.get(&key)).filter(|it| it.has_future()).count();
            Some(Refusal::Unsatisfiable { pool: want.pool.clone(), wanted: want.count, matching, total, nearest })
        })
    }

    /// Who is in the way of the first want that cannot be met now. Where there is nothing like it, and
    /// what makes it waits for items itself, that is who is in the way of those.
    pub(super) fn exhausted(&mut self, ask: &Ask, waited: Duration, ticket: Option<Ticket>) -> Refusal {
        let refusal = self.in_the_way(ask, waited, ticket);
        let Refusal::Exhausted { pool, matching: 0, .. } = &refusal else { return refusal };
        let maker = Self::maker(pool);
        let Some(making) = self.waiters.values().find(|it| it.ask.holder == maker) else { return refusal };
        let (needs, ticket) = (making.ask.clone(), making.ticket);
        Refusal::Lacks { pool: pool.clone(), refusal: Box::new(self.in_the_way(&needs, waited, Some(ticket))) }
    }

    fn in_the_way(&mut self, ask: &Ask, waited: Duration, ticket: Option<Ticket>) -> Refusal {
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

    /// Ends a wait whose asker is gone.
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
        let its = self.leases.values().filter(|lease| whose(lease));
        let mut ids: Vec<_> = its.map(|lease| (lease.fence, lease.id.clone())).collect();
        ids.sort_unstable();
        for (_, id) in &ids {
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
            self.refuse(ticket, Refusal::WaitEnded);
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
            // What was made of it is not what it was.
            for key in self.kept_for.get(id).cloned().unwrap_or_default() {
                self.retire_item(key);
            }
            self.news.push(News::Ended(lease));
        }
    }
}
