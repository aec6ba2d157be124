//! The items of one pool, so arranged that the right one is found without a look at all.
//!
//! Items that are alike in what others share as well, a tier or a region, stand together in a
//! profile; within it, the one that was used longest ago is first. Who asks for anything gets
//! an item of the profile that most others are like, so that the rare ones are left to those
//! who ask for them. What tells one item from all others, an id or an address, is in an index
//! that is made when it is first asked for.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::ask::Want;
use super::definition::Definition;
use super::item::{Item, ItemKey};
use super::predicate::{Attributes, Predicate, index_of};

/// An attribute with more values than this tells items apart, and not kinds of items.
const MOST_VALUES: usize = 256;
/// The most profiles that attributes may make together.
const MOST_PROFILES: usize = 4096;

/// All items of the stores' pools, by their numbers.
pub type Items = HashMap<ItemKey, Item>;
/// How many places of items are spoken for.
pub type Taken = HashMap<ItemKey, u32>;

/// Items that are alike in what several share.
#[derive(Debug, Default)]
struct Profile {
    attributes: Attributes,
    /// How many items share the rarest of these values.
    plenty: usize,
    /// Those that can be had, the one first that was used longest ago.
    free: BTreeSet<(u64, ItemKey)>,
}

/// The items of a pool.
#[derive(Debug, Default)]
pub struct Shelf {
    keys: BTreeSet<ItemKey>,
    /// The attributes that make profiles.
    kinds: Vec<String>,
    /// Those that most items are like come first.
    profiles: Vec<Profile>,
    places: HashMap<ItemKey, (usize, u64, u32)>,
    /// Of attributes that tell items apart: who has which value.
    indexes: HashMap<String, HashMap<String, Vec<ItemKey>>>,
    is_stale: bool,
    /// How many holders could be given an item now.
    open: u64,
}

impl Shelf {
    /// An item has come, or its attributes have changed.
    pub fn put(&mut self, key: ItemKey) {
        self.keys.insert(key);
        self.is_stale = true;
    }

    /// An item is gone.
    pub fn drop(&mut self, key: ItemKey) {
        self.keys.remove(&key);
        self.is_stale = true;
    }

    /// All items.
    pub fn keys(&self) -> impl Iterator<Item = ItemKey> {
        self.keys.iter().copied()
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many holders could be given an item now.
    pub fn open(&mut self, items: &Items, definition: &Definition) -> u64 {
        self.arrange(items, definition);
        self.open
    }

    /// The items that can be had; as it was when somebody last looked for one.
    pub fn free(&self) -> impl Iterator<Item = ItemKey> {
        self.profiles.iter().flat_map(|profile| profile.free.iter().map(|(_, key)| *key))
    }

    /// How many items share the rarest thing of an item that it shares with others; as it was
    /// when somebody last looked for one.
    pub fn plenty_of(&self, key: ItemKey) -> usize {
        self.places.get(&key).and_then(|(profile, ..)| self.profiles.get(*profile)).map_or(0, |it| it.plenty)
    }

    /// The state of an item has changed.
    pub fn moved(&mut self, item: &Item, definition: &Definition) {
        if self.is_stale {
            return;
        }
        let Some((profile, used, before)) = self.places.get(&item.key).copied() else { return };
        let now = item.places(definition);
        let free = &mut self.profiles[profile].free;
        if before > 0 {
            free.remove(&(used, item.key));
        }
        if now > 0 {
            free.insert((item.used, item.key));
        }
        self.open = self.open + u64::from(now) - u64::from(before);
        self.places.insert(item.key, (profile, item.used, now));
    }

    fn arrange(&mut self, items: &Items, definition: &Definition) {
        if !self.is_stale {
            return;
        }
        self.is_stale = false;
        self.indexes.clear();
        let all: Vec<&Item> = self.keys.iter().filter_map(|key| items.get(key)).collect();
        let mut counts: HashMap<&str, HashMap<String, usize>> = HashMap::new();
        for item in &all {
            for (attribute, value) in item.attributes.iter() {
                let counts = counts.entry(attribute).or_default();
                if counts.len() <= MOST_VALUES {
                    *counts.entry(index_of(value)).or_default() += 1;
                }
            }
        }
        // Those with few values first: they divide the items into few profiles.
        let mut kinds: Vec<(usize, &str)> = counts
            .iter()
            .filter(|(_, values)| values.len() <= MOST_VALUES && values.values().any(|count| *count > 1))
            .map(|(attribute, values)| (values.len(), *attribute))
            .collect();
        kinds.sort_unstable();
        let mut room = MOST_PROFILES;
        // One more for items that lack it.
        kinds.retain(|(values, _)| {
            let fits = room > *values;
            room /= if fits { values + 1 } else { 1 };
            fits
        });
        self.kinds = kinds.into_iter().map(|(_, attribute)| attribute.to_owned()).collect();
        let mut found: HashMap<Vec<Option<String>>, usize> = HashMap::new();
        let mut profiles: Vec<Profile> = Vec::new();
        let mut places = Vec::with_capacity(all.len());
        for item in &all {
            let key: Vec<_> = self.kinds.iter().map(|kind| item.attributes.get(kind).map(index_of)).collect();
            let at = *found.entry(key).or_insert_with(|| {
                let of_item = |kind: &String| Some((kind.clone(), item.attributes.get(kind)?.clone()));
                let attributes: Attributes = self.kinds.iter().filter_map(of_item).collect();
                let count =
                    |(kind, value): (&String, &Value)| counts.get(kind.as_str())?.get(&index_of(value)).copied();
                let plenty = attributes.iter().filter_map(count).min().unwrap_or(all.len());
                profiles.push(Profile { attributes, plenty, free: BTreeSet::new() });
                profiles.len() - 1
            });
            places.push((item.key, at, item.used, item.places(definition)));
        }
        let mut order: Vec<usize> = (0..profiles.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(profiles[*at].plenty));
        let mut place_of = vec![0; profiles.len()];
        for (new, old) in order.iter().enumerate() {
            place_of[*old] = new;
        }
        let mut sorted: Vec<Profile> = Vec::with_capacity(profiles.len());
        for old in order {
            sorted.push(std::mem::take(&mut profiles[old]));
        }
        self.profiles = sorted;
        self.open = places.iter().map(|(.., open)| u64::from(*open)).sum();
        self.places.clear();
        for (key, old, used, open) in places {
            let at = place_of[old];
            if open > 0 {
                self.profiles[at].free.insert((used, key));
            }
            self.places.insert(key, (at, used, open));
        }
    }

    /// The best items for `want`, up to as many as it asks for; `taken` says which places are
    /// spoken for.
    pub fn pick(
        &mut self,
        want: &Want,
        items: &Items,
        definition: &Definition,
        taken: &Taken,
        chosen: &[ItemKey],
    ) -> Vec<ItemKey> {
        self.arrange(items, definition);
        let count = want.count as usize;
        let is_open = |key: ItemKey| {
            let places = self.places.get(&key).map_or(0, |(.., places)| *places);
            places > taken.get(&key).copied().unwrap_or(0) && !chosen.contains(&key)
        };
        let (of_profile, of_item): (Vec<_>, Vec<_>) =
            want.predicate.conditions().iter().cloned().partition(|it| self.kinds.contains(&it.attribute));
        if let Some((attribute, value)) =
            of_item.iter().find_map(|condition| Some((&condition.attribute, condition.only()?)))
        {
            let index = self.indexes.entry(attribute.clone()).or_insert_with(|| {
                let mut index: HashMap<String, Vec<ItemKey>> = HashMap::new();
                for item in self.keys.iter().filter_map(|key| items.get(key)) {
                    if let Some(value) = item.attributes.get(attribute) {
                        index.entry(index_of(value)).or_default().push(item.key);
                    }
                }
                index
            });
            let mut found: Vec<ItemKey> = index.get(&index_of(value)).cloned().unwrap_or_default();
            found.retain(|key| is_open(*key) && items.get(key).is_some_and(|it| want.predicate.holds(&it.attributes)));
            let rarity = |profile: &usize| self.profiles.get(*profile).map(|it| std::cmp::Reverse(it.plenty));
            found.sort_by_key(|key| self.places.get(key).map(|(profile, used, _)| (rarity(profile), *used, *key)));
            found.truncate(count);
            return found;
        }
        let (of_profile, of_item) = (Predicate::new(of_profile), Predicate::new(of_item));
        let fits = |key: ItemKey| items.get(&key).is_some_and(|item| of_item.holds(&item.attributes));
        let mut found = Vec::new();
        let mut rest = self.profiles.iter().filter(|profile| of_profile.holds(&profile.attributes)).peekable();
        while let Some(first) = rest.next() {
            // Of profiles that are equally rare, the item that was used longest ago.
            let mut beside = vec![first.free.iter().peekable()];
            while let Some(next) = rest.next_if(|next| next.plenty == first.plenty) {
                beside.push(next.free.iter().peekable());
            }
            while found.len() < count {
                let first = beside.iter_mut().filter_map(|free| Some((*free.peek()?, free))).min_by_key(|(at, _)| *at);
                let Some((&(_, key), free)) = first else { break };
                free.next();
                if is_open(key) && fits(key) {
                    found.push(key);
                }
            }
            if found.len() == count {
                break;
            }
        }
        found
    }

    /// How many items are like that and may be had some time; counting ends at `enough`.
    pub fn matching(&self, predicate: &Predicate, items: &Items, enough: usize) -> usize {
        let fits = |item: &&Item| item.has_future() && predicate.holds(&item.attributes);
        self.keys.iter().filter_map(|key| items.get(key)).filter(fits).take(enough).count()
    }

    /// The item that meets most conditions, and those that it does not meet.
    pub fn nearest(&self, predicate: &Predicate, items: &Items) -> Option<(String, Vec<String>)> {
        let missed = |item: &Item| {
            let missed = predicate.conditions().iter().filter(|condition| !condition.holds(&item.attributes));
            missed.map(ToString::to_string).collect::<Vec<_>>()
        };
        let usable = self.keys.iter().filter_map(|key| items.get(key)).filter(|item| item.has_future());
        usable.map(|item| (item.name.to_string(), missed(item))).min_by_key(|(_, missed)| missed.len())
    }
}
