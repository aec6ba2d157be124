//! Points in time, as the ledger writes them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970, UTC: tests follow one another within a millisecond. It prints as
/// ISO-8601 with milliseconds: `2026-03-01T12:00:00.000Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time by this machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// Microseconds since 1970, as the ledger keeps them.
    pub fn micros(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 / 1000
    }

    /// From seconds with a fraction, as Python's `time.time()` gives them.
    pub fn from_seconds(seconds: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates, which is what is wanted of a bad clock"
        )]
        Self((seconds * 1_000_000.0).round() as u64)
    }
}

impl Timestamp {
    /// Reads what [`Timestamp`] prints.
    pub fn parse(text: &str) -> Option<Self> {
        let time: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(time.as_microsecond()).ok().map(Self)
    }

    /// The time this much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long ago it was at `now`; nothing, where it is still to come.
    pub fn age(self, now: Self) -> Duration {
        Duration::from_micros(now.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
        write!(f, "{:.3}", time.unwrap_or(jiff::Timestamp::MAX))
    }
}

/// Reads a length of time: `90s`, `1h 30m`, `2d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let usage = || "it takes a time such as 90s, 10m, 1h or 2d".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| usage())?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| usage())?;
    Duration::try_from(duration).map_err(|_| usage())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_prints_with_milliseconds_in_utc() {
        assert_eq!(Timestamp(1_772_366_400_005_999).to_string(), "2026-03-01T12:00:00.005Z");
        assert_eq!(Timestamp::from_seconds(1_772_366_400.0).to_string(), "2026-03-01T12:00:00.000Z");
        assert_eq!(Timestamp::parse("2026-03-01T12:00:00.005Z"), Some(Timestamp(1_772_366_400_005_000)));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
