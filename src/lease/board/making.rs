//! What generators are to make: for those who wait, and to have some in stock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Board, News};
use crate::lease::ask::{Ask, LONGEST, Want};
use crate::lease::definition::{Definition, Trouble};
use crate::lease::item::{Item, ItemKey, ItemState};
use crate::lease::origin::Origin;
use crate::lease::predicate::{Attributes, Predicate};
use crate::lease::queue::{Ticket, WaiterState};
use crate::lease::refusal::Refusal;
use crate::lease::shelf::Taken;

/// Something that has to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// In which pool.
    pub pool: String,
    /// By what.
    pub definition: Definition,
    /// With this input.
    pub input: Map<String, Value>,
    /// Who waits for it; nobody, where it is for the stock.
    pub ticket: Option<Ticket>,
    /// How long to wait for what it needs, beyond the making of that.
    pub wait: Duration,
}

/// Why nothing was made.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The generator failed.
    Failed(String),
    /// What it needs is not to be had now: it was refused so.
    Lacks(Refusal),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::Lacks(refusal) => write!(f, "it needs others: {refusal}"),
        }
    }
}

impl Failure {
    /// What is told to who asked for an item of this pool.
    pub fn refusal(self, pool: &str) -> Refusal {
        let pool = pool.to_owned();
        match self {
            Self::Failed(why) => Refusal::NotMade { pool, why },
            Self::Lacks(refusal) => Refusal::Lacks { pool, refusal: Box::new(refusal) },
        }
    }
}

/// How long a pool waits whose generator lacks something.
const SHORT_REST: Duration = Duration::from_secs(1);

/// How many are being made in a pool with which input.
pub type Plan = BTreeMap<(String, String), u32>;

/// What came of making.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// The names of those that are in the pool now.
    pub added: Vec<String>,
    /// Those that are in no pool.
    pub surplus: Vec<Attributes>,
    /// Why not all are.
    pub trouble: Option<String>,
}

/// An input as it is told from others.
pub fn canonical(input: &Map<String, Value>) -> String {
    let sorted: BTreeMap<_, _> = input.iter().collect();
    serde_json::to_string(&sorted).unwrap_or_default()
}

impl Board {
    /// How long making may take what is asked for and not there; nothing where it cannot be made.
    pub(super) fn making_time(&mut self, ask: &Ask) -> Duration {
        let mut time = Duration::ZERO;
        for want in &ask.wants {
            let Some(its) = self.pools.get_mut(&want.pool) else { return Duration::ZERO };
            let found = its.shelf.pick(want, &self.items, &its.pool.definition, &Taken::new(), &[]).len();
            if found >= want.count as usize {
                continue;
            }
            match &its.pool.definition.generator {
                Some(generator)
                    if its.pool.definition.can_make(its.shelf.len())
                        && generator.input_for(&want.predicate).is_ok() =>
                {
                    time += self.time_of(&want.pool, 0) * (want.count.min(1000));
                }
                _ => return Duration::ZERO,
            }
        }
        time.min(LONGEST)
    }

    /// How long one run of a generator may take, with the making of all that it needs.
    pub fn time_of(&self, pool: &str, depth: u32) -> Duration {
        let Some(generator) = self.definition(pool).and_then(|its| its.generator.as_ref()) else {
            return Duration::ZERO;
        };
        // Circles are refused where pools are read; a store may have some all the same.
        let needs = generator.needs.iter().filter(|_| depth < 8);
        let time: Duration = needs.map(|need| self.time_of(&need.pool, depth + 1) * need.count.min(1000)).sum();
        (Duration::from_secs(generator.timeout + 1) + time).min(LONGEST)
    }

    /// What is to be made now besides what is `making`: for those who wait in this process, and
    /// `with_stock`. Who waits in vain is told so.
    pub fn demands(&mut self, making: &Plan, with_stock: bool) -> Vec<Demand> {
        let mut credits = making.clone();
        let mut room: HashMap<String, u32> = HashMap::new();
        let mut claimed: HashSet<ItemKey> = HashSet::new();
        let mut demands = Vec::new();
        let mut refused = Vec::new();
        for waiter in self.waiters.values() {
            for want in &waiter.ask.wants {
                let Some(definition) = self.definition(&want.pool).filter(|it| it.generator.is_some()) else {
                    continue;
                };
                let missing = want.count.saturating_sub(self.claim(want, definition, &mut claimed));
                if missing == 0 || waiter.owner != self.owner || self.vain.contains(&waiter.ticket) {
                    continue;
                }
                let input = definition.generator.as_ref().map(|it| it.input_for(&want.predicate));
                let Some(Ok(input)) = input else { continue };
                let credit = credits.entry((want.pool.clone(), canonical(&input))).or_default();
                let open = missing.saturating_sub(*credit);
                *credit = credit.saturating_sub(missing);
                if open == 0 {
                    continue;
                }
                if let Some(trouble) = definition.trouble.as_ref().filter(|it| it.is_pause(self.now)) {
                    refused.push((waiter.ticket, Some(Failure::Failed(pause(trouble)))));
                    continue;
                }
                let room = room.entry(want.pool.clone()).or_insert_with(|| self.room(&want.pool, definition, making));
                let count = open.min(*room);
                *room -= count;
                let one = Demand {
                    pool: want.pool.clone(),
                    definition: definition.clone(),
                    input,
                    ticket: Some(waiter.ticket),
                    wait: waiter.ask.wait,
                };
                demands.extend(std::iter::repeat_n(one, count as usize));
                if count < open && waiter.ask.wait.is_zero() {
                    refused.push((waiter.ticket, None));
                }
            }
        }
        let pools = self.pools.iter().filter(|_| with_stock);
        for (name, its) in pools {
            let definition = &its.pool.definition;
            let is_resting = definition.trouble.as_ref().is_some_and(|it| it.until > self.now.0);
            let Some(generator) = definition.generator.as_ref().filter(|_| !is_resting && !definition.is_leaving)
            else {
                continue;
            };
            for stock in &generator.stock {
                let Ok(input) = generator.input(&stock.input) else { continue };
                let key = canonical(&input);
                let is_such = |item: &&Item| {
                    Origin::of(item).is_some_and(|it| it.from == generator.fingerprint && canonical(&it.input) == key)
                };
                let there = self.items_of(name).filter(|it| is_there(it, definition) && !claimed.contains(&it.key));
                let there = there.filter(is_such).take(stock.minimum as usize).count();
                let missing = stock.minimum.saturating_sub(u32::try_from(there).unwrap_or(u32::MAX));
                let missing = missing.saturating_sub(credits.get(&(name.clone(), key)).copied().unwrap_or(0));
                let room = room.entry(name.clone()).or_insert_with(|| self.room(name, definition, making));
                let count = missing.min(*room);
                *room -= count;
                let one = Demand {
                    pool: name.clone(),
                    definition: definition.clone(),
                    input,
                    ticket: None,
                    wait: Duration::ZERO,
                };
                demands.extend(std::iter::repeat_n(one, count as usize));
            }
        }
        for (ticket, why) in refused {
            self.give_up(ticket, why);
        }
        demands
    }

    /// How many items that are there, or will be soon, are kept in mind for this want.
    fn claim(&self, want: &Want, definition: &Definition, claimed: &mut HashSet<ItemKey>) -> u32 {
        let mut found = 0;
        for item in self.items_of(&want.pool) {
            if found == want.count {
                break;
            }
            if is_there(item, definition) && want.predicate.holds(&item.attributes) && claimed.insert(item.key) {
                found += 1;
            }
        }
        found
    }

    fn room(&self, pool: &str, definition: &Definition, making: &Plan) -> u32 {
        let most = definition.generator.as_ref().and_then(|it| it.maximum).unwrap_or(u32::MAX);
        let has = u32::try_from(self.items_of(pool).count()).unwrap_or(u32::MAX);
        let coming: u32 = making.iter().filter(|((its, _), _)| its == pool).map(|(_, n)| n).sum();
        most.saturating_sub(has).saturating_sub(coming)
    }

    /// Somebody waits in vain, unless others have what could come back: nothing more of it can be
    /// made, or that failed, which may be `why`.
    pub fn give_up(&mut self, ticket: Ticket, why: Option<Failure>) {
        let Some(waiter) = self.waiters.get(&ticket) else { return };
        let (ask, since) = (waiter.ask.clone(), waiter.since);
        let has_future = |want: &&Want| {
            let like_it =
                self.items_of(&want.pool).filter(|it| it.has_future() && want.predicate.holds(&it.attributes));
            like_it.take(want.count as usize).count() == want.count as usize
        };
        let short = ask.wants.iter().find(|want| !has_future(want));
        let refusal = match (short, why) {
            (Some(want), Some(why)) => why.refusal(&want.pool),
            (None, _) if !ask.wait.is_zero() => return,
            _ => self.exhausted(&ask, since.age(self.now), Some(ticket)),
        };
        self.leave_queue(ticket, WaiterState::Gone, None);
        self.news.push(News::Refused(ticket, refusal));
    }

    /// Adds what a generator made, which keeps the lease of what it `needs` if any is added. What is
    /// of no use in the pool comes back.
    pub fn made(&mut self, demand: &Demand, items: Vec<Attributes>, needs: Option<&str>) -> Made {
        let pool = demand.pool.as_str();
        let mut made = Made::default();
        let Some(definition) = self.definition(pool).filter(|it| !it.is_leaving).cloned() else {
            return Made { surplus: items, trouble: Some("the pool was removed meanwhile".to_owned()), ..made };
        };
        let from = demand.definition.generator.as_ref().map(|it| it.fingerprint.clone()).unwrap_or_default();
        let origin = Origin { from, input: demand.input.clone(), needs: needs.map(str::to_owned) }.text();
        let mut is_like_it = demand.ticket.is_none();
        for attributes in items {
            let name = Item::new(pool, attributes.clone()).name;
            if self.pools.get(pool).is_some_and(|its| its.names.contains_key(&name)) {
                made.trouble = Some(format!("it made {name}, which the pool has already"));
            } else if !definition.can_make(self.items_of(pool).count()) {
                made.surplus.push(attributes);
            } else {
                let wanted = demand.ticket.and_then(|ticket| self.waiters.get(&ticket));
                let is_wanted = |it: &crate::lease::queue::Waiter| {
                    it.ask.wants.iter().any(|want| want.pool == pool && want.predicate.holds(&attributes))
                };
                is_like_it |= wanted.is_none_or(is_wanted);
                self.add(pool, vec![attributes], Some(&origin));
                made.added.push(name.to_string());
            }
        }
        if let Some(ticket) = demand.ticket.filter(|_| !is_like_it && !made.added.is_empty()) {
            self.vain.insert(ticket);
            let wanted = self.waiters.get(&ticket).map(|it| wanted_of(&it.ask, pool)).unwrap_or_default();
            let why = format!("it made {}, which is not {wanted}", made.added.join(", "));
            self.give_up(ticket, Some(Failure::Failed(why)));
        }
        if let Some(lease) = needs.filter(|_| !made.added.is_empty()) {
            let _ = self.renew(lease, None, Some(LONGEST));
        }
        made
    }

    /// Notes what came of a run of a generator: nothing, or why it failed. What lacks only items of
    /// other pools makes the pool wait a little, and is no reason to pause.
    pub fn generated(&mut self, pool: &str, failed: Option<Failure>) {
        let now = self.now;
        let Some(its) = self.pools.get_mut(pool) else { return };
        let before = its.pool.definition.trouble.as_ref();
        let trouble = failed.map(|failed| match failed {
            Failure::Failed(why) => Trouble::after(before, now, why),
            Failure::Lacks(_) if before.is_some_and(|it| it.failures > 0) => {
                let before = before.cloned().unwrap_or_default();
                Trouble { until: before.until.max(now.after(SHORT_REST).0), ..before }
            }
            lacks @ Failure::Lacks(_) => {
                Trouble { failures: 0, until: now.after(SHORT_REST).0, why: lacks.to_string() }
            }
        });
        if its.pool.definition.trouble != trouble {
            its.pool.definition.trouble = trouble;
            self.changes.pools.insert(pool.to_owned());
        }
    }
}

/// Whether an item can be had now, or as soon as it is reset.
fn is_there(item: &Item, definition: &Definition) -> bool {
    let is_coming = matches!(item.state, ItemState::Dirty | ItemState::Resetting);
    item.places(definition) > 0 || (is_coming && item.failures == 0 && item.has_future())
}

fn pause(trouble: &Trouble) -> String {
    let until = crate::clock::Timestamp(trouble.until);
    format!("it failed {} times in a row and pauses until {until}: {}", trouble.failures, trouble.why)
}

/// What is wanted of a pool, in words.
fn wanted_of(ask: &Ask, pool: &str) -> String {
    let its = ask.wants.iter().filter(|want| want.pool == pool);
    its.map(|want| Predicate::to_string(&want.predicate)).collect::<Vec<_>>().join(" or ")
}
