//! Those who hold something and wait for more may wait for each other, for ever. Nobody else
//! can end that, so the last who came is refused.

use super::{Board, Waiter};
use crate::lease::ask::{Ask, Holder, Want};
use crate::lease::item::{Item, ItemState};
use crate::lease::refusal::Refusal;

impl Board {
    /// The refusal of an ask that would wait for ever, if it would.
    pub(super) fn deadlock_with(&self, ask: &Ask) -> Option<Refusal> {
        // Nobody waits for one who holds nothing.
        if !self.leases.values().any(|lease| lease.holder.is_same_worker(&ask.holder)) {
            return None;
        }
        let waiting: Vec<&Ask> = self.waiters.values().map(|waiter: &Waiter| &waiter.ask).chain([ask]).collect();
        let mut hopeful = vec![false; waiting.len()];
        // Who can still get what it waits for goes on some time, and lets go of what it holds.
        while let Some(next) =
            (0..waiting.len()).find(|at| !hopeful[*at] && self.can_come(waiting[*at], &waiting, &hopeful))
        {
            hopeful[next] = true;
        }
        if hopeful.last().copied().unwrap_or(true) {
            return None;
        }
        let mut cycle: Vec<(Holder, String)> = Vec::new();
        let mut at = ask;
        loop {
            let want = at.wants.iter().find(|want| !self.can_be_had(want, &waiting, &hopeful))?;
            cycle.push((at.holder.clone(), want.pool.clone()));
            let blocker = self.like(want).flat_map(|item| self.obstacles(item.key)).find_map(|obstacle| {
                waiting
                    .iter()
                    .enumerate()
                    .find(|(n, other)| !hopeful[*n] && other.holder.is_same_worker(&obstacle.holder))
            });
            let Some((_, next)) = blocker else { break };
            if let Some(again) = cycle.iter().position(|(holder, _)| holder.is_same_worker(&next.holder)) {
                cycle.drain(..again);
                break;
            }
            at = next;
        }
        Some(Refusal::Deadlock { cycle })
    }

    /// Whether all that is asked for can come free.
    fn can_come(&self, ask: &Ask, waiting: &[&Ask], hopeful: &[bool]) -> bool {
        ask.wants.iter().all(|want| self.can_be_had(want, waiting, hopeful))
    }

    fn can_be_had(&self, want: &Want, waiting: &[&Ask], hopeful: &[bool]) -> bool {
        let can_make = self.pools.get(&want.pool).is_some_and(|its| its.pool.definition.can_make(its.shelf.len()));
        let ready = self.like(want).filter(|item| self.comes_free(item, waiting, hopeful));
        can_make || ready.take(want.count as usize).count() == want.count as usize
    }

    fn like<'a>(&'a self, want: &'a Want) -> impl Iterator<Item = &'a Item> {
        self.items_of(&want.pool).filter(|item| item.has_future() && want.predicate.holds(&item.attributes))
    }

    /// Whether somebody who has the item will let go of it, by themselves or by time.
    fn comes_free(&self, item: &Item, waiting: &[&Ask], hopeful: &[bool]) -> bool {
        if item.state != ItemState::Free || item.held == 0 {
            return true;
        }
        let patience = waiting.last().map_or(self.now, |ask| self.now.after(ask.wait));
        let mut leases = self.holders.get(&item.key).into_iter().flatten().filter_map(|id| self.leases.get(id));
        leases.any(|lease| {
            // One that is not renewed may end in time.
            (!lease.is_kept && lease.expires_at <= patience)
                || waiting
                    .iter()
                    .zip(hopeful)
                    .all(|(ask, is_hopeful)| *is_hopeful || !ask.holder.is_same_worker(&lease.holder))
        })
    }
}
