//! Which rows a run made, where keys changed: the log of a table, replayed from its beginning.

use std::collections::HashMap;

/// One statement of the log.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its letter.
    pub op: char,
    /// Whether it was the run's.
    pub is_ours: bool,
    /// The rows' keys; after it, where it was an update.
    pub keys: Vec<Option<String>>,
    /// Their keys before it, where an update changed them.
    pub was: Vec<Option<String>>,
}

/// A row that somebody made since the log began.
#[derive(Clone, Copy, Debug)]
struct Made {
    is_ours: bool,
    /// Whether no row had its key before the log began, as far as that was seen.
    is_new: bool,
}

/// The keys of rows that the run made and that are there still, and whether each had no row
/// when the log began.
pub fn ours(events: impl IntoIterator<Item = Event>) -> Vec<(String, bool)> {
    let mut made: HashMap<String, Made> = HashMap::new();
    // What was seen of a key first: that it was free, or that there was a row.
    let mut was_free: HashMap<String, bool> = HashMap::new();
    for Event { op, is_ours, keys, was } in events {
        match op {
            'I' => {
                for key in keys.into_iter().flatten() {
                    let is_new = *was_free.entry(key.clone()).or_insert(true);
                    made.insert(key, Made { is_ours, is_new });
                }
            }
            'D' => {
                for key in keys.into_iter().flatten() {
                    made.remove(&key);
                    was_free.entry(key).or_insert(false);
                }
            }
            'U' => {
                // All rows leave before one arrives: keys may change places.
                let pairs: Vec<_> = was.into_iter().zip(keys).filter(|(was, is)| was != is).collect();
                let mut moved = Vec::new();
                for (was, is) in pairs {
                    let Some(was) = was else { continue };
                    let row = made.remove(&was);
                    was_free.entry(was).or_insert(false);
                    moved.push((is, row));
                }
                for (is, row) in moved {
                    let Some(is) = is else { continue };
                    was_free.entry(is.clone()).or_insert(true);
                    match row {
                        Some(row) => drop(made.insert(is, row)),
                        None => drop(made.remove(&is)),
                    }
                }
            }
            // What was emptied is not there to be removed, and a partition is not the whole.
            _ => {}
        }
    }
    let ours = made.into_iter().filter(|(_, row)| row.is_ours);
    let mut ours: Vec<_> = ours.map(|(key, row)| (key, row.is_new)).collect();
    ours.sort();
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(op: char, is_ours: bool, keys: &[&str], was: &[&str]) -> Event {
        let texts = |all: &[&str]| all.iter().map(|&key| Some(key.to_owned())).collect();
        Event { op, is_ours, keys: texts(keys), was: texts(was) }
    }

    fn left(events: &[Event]) -> Vec<(String, bool)> {
        ours(events.iter().cloned())
    }

    #[test]
    fn a_row_that_was_there_is_not_ours_under_whichever_key() {
        let all = [
            event('I', true, &["9"], &[]),
            event('D', true, &["9"], &[]),
            event('U', true, &["9"], &["3"]),
            event('U', true, &["3"], &["9"]),
        ];
        assert!(left(&all[..3]).is_empty());
        assert!(left(&all).is_empty());
    }

    #[test]
    fn a_row_of_ours_goes_under_its_last_key() {
        let all = [event('I', true, &["1", "2"], &[]), event('I', false, &["7"], &[])];
        let changed = event('U', false, &["2", "1"], &["1", "2"]);
        let on = event('U', true, &["8"], &["2"]);
        assert_eq!(left(&[all[0].clone(), all[1].clone(), changed, on]), [("1".into(), true), ("8".into(), true)]);
    }

    #[test]
    fn a_key_that_was_there_before_is_told_apart() {
        let all = [event('D', true, &["3"], &[]), event('I', true, &["3"], &[]), event('U', true, &["4"], &["3"])];
        assert_eq!(left(&all), [("4".into(), false)]);
    }
}
