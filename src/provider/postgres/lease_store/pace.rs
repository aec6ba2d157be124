//! How the store's time goes on: by the server's clock, as long as that goes on as fast as the time
//! of this machine does, which nobody can set. Where it does not, somebody has set it; then the
//! store's time is so far ahead of that clock, or behind it, as it takes to go on as it did.

use std::time::Duration;

/// How much further the server's clock may have gone than it should: what clocks are corrected by
/// without being set. Beside it, a thousandth of the time between; clocks are slewed by half of that
/// at most (adjtimex(2)).
const SLACK: i64 = 1_000_000;

/// What the store has of its time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The latest time that anything was written at.
    pub latest: i64,
    /// How far its time is ahead of the server's clock.
    pub ahead: i64,
}

/// A look at the server's clock.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What it said, in microseconds since 1970.
    pub wall: i64,
    /// The time of this machine before it was asked, and after.
    pub between: (Duration, Duration),
}

/// How time went on until the last look.
#[derive(Debug, Default)]
pub struct Pace(Option<(Look, i64)>);

impl Pace {
    /// What time it is, and how far that is ahead of the server's clock now.
    pub fn time(&mut self, clock: Clock, look: Look) -> (i64, i64) {
        let Clock { latest, mut ahead } = clock;
        if let Some((last, time)) = self.0 {
            let passed = look.wall + ahead - time;
            let least = micros(look.between.0.saturating_sub(last.between.1));
            let most = micros(look.between.1.saturating_sub(last.between.0));
            let slack = SLACK + most / 1000;
            if passed < least - slack {
                ahead += least - passed;
            } else if passed > most + slack {
                ahead -= passed - most;
            }
        } else if look.wall + ahead < latest {
            // Nobody was there when it was set back.
            ahead = latest - look.wall;
        }
        let now = latest.max(look.wall + ahead);
        self.0 = Some((look, now));
        (now, ahead)
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const DAY: i64 = 86_400 * SECOND;

    /// A look at this second of this machine, at a server whose clock is off by so much.
    fn look(second: u64, off: i64) -> Look {
        let at = Duration::from_secs(second);
        let wall = 1_000_000 * SECOND + micros(at) + off;
        Look { wall, between: (at, at + Duration::from_millis(3)) }
    }

    #[test]
    fn time_goes_on_as_it_did_whatever_the_servers_clock_is_set_to() {
        let (mut one, mut other, mut new) = (Pace::default(), Pace::default(), Pace::default());
        let mut clock = Clock { latest: 0, ahead: 0 };
        let start = look(0, 0).wall;
        let mut at = |pace: &mut Pace, second: u64, off: i64| {
            let (now, ahead) = pace.time(clock, look(second, off));
            clock = Clock { latest: now, ahead };
            let is_right = (now - start - micros(Duration::from_secs(second))).abs() < SECOND;
            assert!(is_right, "{now} at {second}, {off} off");
        };
        at(&mut one, 0, 0);
        at(&mut other, 10, 0);
        // A little is not worth a word.
        at(&mut one, 20, SECOND / 2);
        at(&mut one, 30, DAY);
        at(&mut other, 40, DAY);
        at(&mut new, 50, DAY);
        at(&mut other, 60, -DAY);
        at(&mut one, 70, -DAY);
        at(&mut new, 80, -DAY);
        at(&mut Pace::default(), 90, -DAY);
        assert!((clock.ahead - DAY).abs() < SECOND, "{clock:?}");
    }

    #[test]
    fn who_comes_after_the_clock_was_set_back_goes_on_from_what_was_written_last() {
        let latest = look(100, 0).wall;
        let mut pace = Pace::default();
        let (now, ahead) = pace.time(Clock { latest, ahead: 0 }, look(105, -DAY));
        assert_eq!(now, latest);
        let (then, _) = pace.time(Clock { latest: now, ahead }, look(115, -DAY));
        assert_eq!(then - now, 10 * SECOND);
    }
}
