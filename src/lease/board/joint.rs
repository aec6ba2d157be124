//! Several wants of one pool in one request: who is given what, so that there is enough for all.

use std::collections::HashMap;

use crate::lease::ask::{Ask, Want};
use crate::lease::item::ItemKey;

/// A request for more items than this of a pool that it names twice is not looked at so closely.
pub const MOST: usize = 500;

/// Whether it wants items of one pool twice, such as any user and a golden one.
pub fn is_joint(ask: &Ask) -> bool {
    let is_again = |(at, want): (usize, &Want)| ask.wants[..at].iter().any(|other| other.pool == want.pool);
    ask.wants.iter().enumerate().any(is_again)
}

/// Gives each want as many items as it asks for, no item twice. `find` says which are fit for a
/// want, up to that many.
pub fn assign(ask: &Ask, mut find: impl FnMut(&Want, usize) -> Vec<ItemKey>) -> Option<Vec<ItemKey>> {
    let total: usize = ask.wants.iter().map(|want| want.count as usize).sum();
    if total > MOST {
        return None;
    }
    // More than there are places for are never needed.
    let fit: Vec<Vec<ItemKey>> = ask.wants.iter().map(|want| find(want, total)).collect();
    let counts = ask.wants.iter().enumerate();
    let places: Vec<usize> = counts.flat_map(|(at, want)| std::iter::repeat_n(at, want.count as usize)).collect();
    let mut given: HashMap<ItemKey, usize> = HashMap::new();
    for place in 0..places.len() {
        if !make_room(place, &places, &fit, &mut given, &mut Vec::new()) {
            return None;
        }
    }
    let mut items: Vec<(usize, ItemKey)> = given.into_iter().map(|(item, place)| (place, item)).collect();
    items.sort_unstable();
    Some(items.into_iter().map(|(_, item)| item).collect())
}

/// Finds an item for a place, if need be one of another place that can have another.
fn make_room(
    place: usize,
    places: &[usize],
    fit: &[Vec<ItemKey>],
    given: &mut HashMap<ItemKey, usize>,
    asked: &mut Vec<ItemKey>,
) -> bool {
    for item in &fit[places[place]] {
        if asked.contains(item) {
            continue;
        }
        asked.push(*item);
        let other = given.get(item).copied();
        if other.is_none_or(|other| make_room(other, places, fit, given, asked)) {
            given.insert(*item, place);
            return true;
        }
    }
    false
}
