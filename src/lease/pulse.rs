//! The pulse of pools: how fast their items were granted and given back in the last minutes,
//! how long those waited who got them, and when, if it goes on so, nothing is left.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::grant::{Lease, LeaseState};
use crate::clock::Timestamp;

/// How far back is looked.
pub const WINDOW: Duration = Duration::from_secs(300);
/// How finely, in microseconds.
const STEP: u64 = 5_000_000;
/// How many waits are remembered of a pool.
const WAITS: usize = 500;
/// Who watched for less than this has seen nothing yet.
const SHORTEST: Duration = Duration::from_secs(30);
/// What is farther away than this is not in sight.
const SIGHT: Duration = Duration::from_secs(24 * 3600);

/// Places of a pool that were taken and given back in one step of time.
#[derive(Clone, Copy, Debug, Default)]
struct Beat {
    granted: u32,
    returned: u32,
}

#[derive(Debug, Default)]
struct Beats {
    by_step: BTreeMap<u64, Beat>,
    /// When something was granted, and how long it had been awaited.
    waits: VecDeque<(Timestamp, Duration)>,
}

/// All pools' beats.
#[derive(Debug, Default)]
pub struct Pulse {
    began: Option<Timestamp>,
    now: Timestamp,
    pools: HashMap<Arc<str>, Beats>,
}

/// How fast a pool empties.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tempo {
    /// Places that were taken.
    pub granted: u32,
    /// Places that were given back.
    pub returned: u32,
    /// In how long.
    pub within: Duration,
    /// How long those waited who got something, shortest first.
    pub waits: Vec<Duration>,
}

impl Pulse {
    /// It is `now`.
    pub fn begin(&mut self, now: Timestamp) {
        self.began.get_or_insert(now);
        self.now = now;
    }

    /// A lease was granted to somebody who asked at `since`.
    pub fn granted(&mut self, lease: &Lease, since: Timestamp) {
        self.each(lease, lease.acquired_at, |beat| beat.granted += 1);
        let wait = (lease.acquired_at, since.age(lease.acquired_at));
        let mut last = None;
        for held in &lease.items {
            // Several items of one pool were one wait.
            if last.replace(&held.pool) == Some(&held.pool) {
                continue;
            }
            let Some(beats) = self.pools.get_mut(&held.pool) else { continue };
            if beats.waits.len() == WAITS {
                beats.waits.pop_front();
            }
            beats.waits.push_back(wait);
        }
    }

    /// A lease has ended.
    pub fn ended(&mut self, lease: &Lease) {
        self.each(lease, lease.ended_at.unwrap_or(self.now), |beat| beat.returned += 1);
    }

    /// What another process did to a lease, which was known here as one that is held or was not;
    /// whoever got it had waited from `since` on.
    pub fn heard(&mut self, lease: &Lease, is_known: bool, since: Option<Timestamp>) {
        // Else it may have been forgotten, and its grant was seen long ago.
        let is_new = lease.state == LeaseState::Held || self.began.is_some_and(|began| lease.acquired_at > began);
        if !is_known && is_new {
            self.granted(lease, since.unwrap_or(lease.acquired_at));
        }
        if lease.state != LeaseState::Held {
            self.ended(lease);
        }
    }

    fn each(&mut self, lease: &Lease, at: Timestamp, count: impl Fn(&mut Beat)) {
        let oldest = self.oldest();
        for held in &lease.items {
            let beats = match self.pools.get_mut(&held.pool) {
                Some(beats) => beats,
                None => self.pools.entry(Arc::clone(&held.pool)).or_default(),
            };
            count(beats.by_step.entry(at.0 / STEP).or_default());
            while beats.by_step.first_key_value().is_some_and(|(step, _)| *step < oldest) {
                beats.by_step.pop_first();
            }
        }
    }

    /// The first step that counts.
    fn oldest(&self) -> u64 {
        let window = u64::try_from(WINDOW.as_micros()).unwrap_or(u64::MAX);
        self.now.0.saturating_sub(window) / STEP
    }

    /// How it went with a pool.
    pub fn of(&self, pool: &str) -> Tempo {
        let within = self.began.map_or(Duration::ZERO, |began| began.age(self.now)).min(WINDOW);
        let Some(beats) = self.pools.get(pool) else { return Tempo { within, ..Tempo::default() } };
        let oldest = self.oldest();
        let mut tempo = Tempo { within, ..Tempo::default() };
        for beat in beats.by_step.range(oldest..).map(|(_, beat)| beat) {
            tempo.granted += beat.granted;
            tempo.returned += beat.returned;
        }
        let recent = beats.waits.iter().filter(|(at, _)| at.0 / STEP >= oldest);
        tempo.waits = recent.map(|(_, wait)| *wait).collect();
        tempo.waits.sort_unstable();
        tempo
    }
}

impl Tempo {
    /// In how long nothing is left of `free` places, if it goes on so; nothing where that is not
    /// in sight. What is `consumed` does not come back.
    pub fn empty_in(&self, free: u32, consumed: bool) -> Option<Duration> {
        if free == 0 {
            return Some(Duration::ZERO);
        }
        let returned = if consumed { 0 } else { self.returned };
        let net = self.granted.checked_sub(returned).filter(|net| *net > 0)?;
        if self.within < SHORTEST {
            return None;
        }
        let left = self.within.as_secs_f64() * f64::from(free) / f64::from(net);
        Duration::try_from_secs_f64(left).ok().filter(|left| *left < SIGHT)
    }

    /// The middle one of the waits.
    pub fn median(&self) -> Option<Duration> {
        self.waits.get(self.waits.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::ask::Holder;
    use crate::lease::grant::Held;

    const SECOND: u64 = 1_000_000;

    fn lease(at: u64, ended: Option<u64>) -> Lease {
        Lease {
            id: at.to_string(),
            items: vec![Held { item: 1, pool: "acct".into(), name: "1".into() }],
            holder: Holder::default(),
            key: None,
            fence: at,
            state: if ended.is_some() { LeaseState::Released } else { LeaseState::Held },
            acquired_at: Timestamp(at * SECOND),
            expires_at: Timestamp((at + 60) * SECOND),
            ended_at: ended.map(|at| Timestamp(at * SECOND)),
            ttl: 60 * SECOND,
            is_kept: false,
        }
    }

    #[test]
    fn a_pool_that_is_drained_is_empty_when_it_goes_on_so() {
        let mut pulse = Pulse::default();
        pulse.begin(Timestamp(1000 * SECOND));
        for at in 0..10 {
            pulse.granted(&lease(1000 + at * 6, None), Timestamp((1000 + at * 6 - 2 * (at % 2)) * SECOND));
        }
        pulse.begin(Timestamp(1060 * SECOND));
        let tempo = pulse.of("acct");
        assert_eq!((tempo.granted, tempo.returned, tempo.within), (10, 0, Duration::from_secs(60)));
        assert_eq!(tempo.empty_in(20, false), Some(Duration::from_secs(120)));
        assert_eq!(tempo.empty_in(0, false), Some(Duration::ZERO));
        assert_eq!((tempo.waits[0], tempo.median()), (Duration::ZERO, Some(Duration::from_secs(2))));
        // They come back as fast as they go.
        for at in 0..10 {
            pulse.heard(&lease(1000 + at * 6, Some(1059)), true, None);
        }
        assert_eq!(pulse.of("acct").empty_in(20, false), None);
        assert!(pulse.of("acct").empty_in(20, true).is_some(), "what is consumed does not come back");
        // Long ago is forgotten.
        pulse.begin(Timestamp(2000 * SECOND));
        assert_eq!((pulse.of("acct").granted, pulse.of("acct").waits.len()), (0, 0));
    }

    #[test]
    fn what_another_process_granted_and_ended_meanwhile_counts_as_both() {
        let mut pulse = Pulse::default();
        pulse.begin(Timestamp(1000 * SECOND));
        pulse.heard(&lease(1005, Some(1006)), false, Some(Timestamp(1001 * SECOND)));
        // One that was held before anybody looked, and was not known.
        pulse.heard(&lease(900, Some(1007)), false, None);
        pulse.begin(Timestamp(1010 * SECOND));
        let tempo = pulse.of("acct");
        assert_eq!((tempo.granted, tempo.returned), (1, 2));
        assert_eq!(tempo.waits, [Duration::from_secs(4)]);
        assert_eq!(pulse.of("other"), Tempo { within: Duration::from_secs(10), ..Tempo::default() });
    }
}
