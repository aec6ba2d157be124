//! Which lane is whose: a book without clock, server or ledger.
//!
//! Lanes are numbered densely. A number is given again only after its lane was cleaned,
//! or was left as a worker that ended well left it.

use crate::name::Lane;

/// How far a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing of it is there.
    Unmade,
    /// It is being made.
    Making,
    /// A worker can have it.
    Ready,
    /// Its worker is gone, and it becomes as its template again.
    Used,
    /// Its worker crashed, and it is being cleaned.
    Dirty,
    /// It could not be made or cleaned; nobody gets it.
    Stuck,
}

#[derive(Clone, Debug)]
struct Entry {
    stage: Stage,
    holder: Option<String>,
    /// Who had it last: a worker that comes back finds its own lane.
    last: Option<String>,
}

/// The book.
#[derive(Clone, Debug, Default)]
pub struct LaneBook {
    entries: Vec<Entry>,
}

impl LaneBook {
    /// Makes room for this many lanes.
    pub fn expect(&mut self, lanes: u32) {
        while self.len() < lanes {
            self.entries.push(Entry { stage: Stage::Unmade, holder: None, last: None });
        }
    }

    /// How many lanes there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The lane that `worker` would get now, without giving it: its own of before, else one
    /// that is ready, else one that will be; a new number if all are held.
    pub fn choose(&self, worker: &str) -> Lane {
        let rank = |entry: &Entry| match entry.stage {
            _ if entry.last.as_deref() == Some(worker) => 0,
            Stage::Ready => 1,
            Stage::Used => 2,
            Stage::Making => 3,
            Stage::Dirty | Stage::Unmade | Stage::Stuck => 4,
        };
        let free =
            self.entries.iter().enumerate().filter(|(_, entry)| entry.holder.is_none() && entry.stage != Stage::Stuck);
        let best = free.min_by_key(|(number, entry)| (rank(entry), *number)).map(|(number, _)| number);
        Lane(best.and_then(|number| u32::try_from(number).ok()).unwrap_or_else(|| self.len()))
    }

    /// Gives a lane to `worker`; it may still have to be made.
    pub fn give(&mut self, lane: Lane, worker: &str) {
        self.expect(lane.0 + 1);
        let entry = self.entry(lane);
        entry.holder = Some(worker.to_owned());
        entry.last = Some(worker.to_owned());
    }

    /// The lane that `worker` holds.
    pub fn held_by(&self, worker: &str) -> Option<Lane> {
        let number = self.entries.iter().position(|entry| entry.holder.as_deref() == Some(worker))?;
        u32::try_from(number).ok().map(Lane)
    }

    /// How far a lane is.
    pub fn stage(&self, lane: Lane) -> Stage {
        self.entries.get(lane.0 as usize).map_or(Stage::Unmade, |entry| entry.stage)
    }

    /// Notes how far a lane is.
    pub fn set_stage(&mut self, lane: Lane, stage: Stage) {
        self.expect(lane.0 + 1);
        self.entry(lane).stage = stage;
    }

    /// Takes a lane back from its worker.
    pub fn take_back(&mut self, lane: Lane) {
        self.expect(lane.0 + 1);
        self.entry(lane).holder = None;
    }

    fn entry(&mut self, lane: Lane) -> &mut Entry {
        &mut self.entries[lane.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(stages: &[Stage]) -> LaneBook {
        let mut book = LaneBook::default();
        for (number, stage) in (0..).zip(stages) {
            book.set_stage(Lane(number), *stage);
        }
        book
    }

    #[test]
    fn a_ready_lane_comes_first_then_one_in_the_making_then_the_lowest() {
        assert_eq!(book(&[Stage::Unmade, Stage::Making, Stage::Ready]).choose("a"), Lane(2));
        assert_eq!(book(&[Stage::Unmade, Stage::Making]).choose("a"), Lane(1));
        assert_eq!(book(&[Stage::Stuck, Stage::Dirty, Stage::Unmade]).choose("a"), Lane(1));
        assert_eq!(book(&[Stage::Stuck]).choose("a"), Lane(1));
    }

    #[test]
    fn a_held_lane_is_nobody_elses_and_its_worker_finds_it_again() {
        let mut book = book(&[Stage::Ready, Stage::Ready]);
        book.give(Lane(0), "a");
        book.give(Lane(1), "b");
        assert_eq!(book.choose("c"), Lane(2));
        assert_eq!(book.held_by("b"), Some(Lane(1)));
        book.take_back(Lane(0));
        book.take_back(Lane(1));
        assert_eq!((book.choose("b"), book.choose("c")), (Lane(1), Lane(0)));
    }
}
