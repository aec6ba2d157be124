//! What makes a collision: the rules, over the story of one row, without ledger or server.

use std::collections::{HashMap, HashSet};

use crate::touch::Op;

/// How two workers met over a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// A row was changed or removed while the test that had made it still ran.
    Clobber,
    /// A row was changed or removed after the test that had made it had ended.
    Pollution,
    /// Both wrote a row that neither had made.
    HotRow,
    /// A test failed over a unique key that the other had written.
    DuplicateKey,
    /// A test failed over a foreign key whose other end the other had written.
    ForeignKey,
    /// One statement went over rows of several other workers, or a table was emptied.
    Broad,
    /// A write where the lane has no business.
    Escape,
    /// The server ended one so that the other could go on.
    Deadlock,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Clobber,
        Self::Pollution,
        Self::HotRow,
        Self::DuplicateKey,
        Self::ForeignKey,
        Self::Broad,
        Self::Escape,
        Self::Deadlock,
    ];

    /// The word for it, in the ledger and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clobber => "clobber",
            Self::Pollution => "pollution",
            Self::HotRow => "hot-row",
            Self::DuplicateKey => "duplicate-key",
            Self::ForeignKey => "foreign-key",
            Self::Broad => "broad",
            Self::Escape => "escape",
            Self::Deadlock => "deadlock",
        }
    }

    /// The one that has this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.as_str() == word)
    }
}

/// A touch of one row. Numbers are the ledger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// By which worker; nothing for one who is no worker of the run.
    pub worker: Option<i64>,
    /// In which test or fixture.
    pub test: Option<i64>,
    /// What was done.
    pub op: Op,
    /// When, in microseconds.
    pub at: i64,
    /// By which statement.
    pub statement: i64,
}

/// When a test ran, or a fixture lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From, in microseconds.
    pub began: i64,
    /// To; nothing while it runs.
    pub ended: Option<i64>,
    /// Whether it failed.
    pub failed: bool,
}

impl Span {
    /// To when; the end of time while it runs.
    pub fn end(&self) -> i64 {
        self.ended.unwrap_or(i64::MAX)
    }

    /// How long both ran, in microseconds.
    pub fn overlap(&self, other: &Self) -> i64 {
        let (began, ended) = (self.began.max(other.began), self.end().min(other.end()));
        // Of two that run still, nobody knows yet.
        if ended == i64::MAX { 0 } else { (ended - began).max(0) }
    }
}

/// When tests ran, by number.
pub type Spans = HashMap<i64, Span>;

/// Two workers that met: `a` had the row, `b` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collision {
    /// How they met.
    pub pattern: Pattern,
    /// Who had it, where somebody of the run did.
    pub a: Option<Touch>,
    /// Who came.
    pub b: Touch,
    /// How long both tests ran, in microseconds.
    pub overlap: i64,
    /// One of the two tests that failed.
    pub failed_test: Option<i64>,
}

impl Collision {
    /// A collision of this pattern; how the tests stood to one another is in `spans`.
    pub fn of(pattern: Pattern, a: Option<Touch>, b: Touch, spans: &Spans) -> Self {
        let span = |touch: Option<Touch>| touch.and_then(|touch| spans.get(&touch.test?));
        let (of_a, of_b) = (span(a), span(Some(b)));
        let overlap = of_a.zip(of_b).map_or(0, |(a, b)| a.overlap(b));
        let failed = |touch: Option<Touch>, span: Option<&Span>| span.filter(|span| span.failed).and(touch?.test);
        // An error names what it ran into: that test is the victim. Else it is who had the row.
        let (first, second) = (failed(a, of_a), failed(Some(b), of_b));
        let failed_test = match pattern {
            Pattern::DuplicateKey | Pattern::ForeignKey | Pattern::Deadlock => second.or(first),
            _ => first.or(second),
        };
        Self { pattern, a, b, overlap, failed_test }
    }
}

/// The collisions over one row, whose touches come in the order of their times. Each pair of
/// tests is told once for each pattern.
pub fn of_row(history: &[Touch], spans: &Spans) -> Vec<Collision> {
    let mut found = Vec::new();
    let mut told = HashSet::new();
    let mut maker: Option<Touch> = None;
    // Who wrote a row last that nobody of the run had made: by worker.
    let mut writers: Vec<Touch> = Vec::new();
    for &touch in history {
        if touch.op == Op::Insert {
            maker = Some(touch);
            writers.clear();
            continue;
        }
        let met = match maker {
            // Strangers are nobody's collision, but what they made is not the run's either.
            Some(maker) if maker.worker.is_some() => {
                let runs_still =
                    maker.test.and_then(|test| spans.get(&test)).is_some_and(|span| touch.at <= span.end());
                let pattern = if runs_still { Pattern::Clobber } else { Pattern::Pollution };
                (maker.worker != touch.worker).then_some((pattern, maker))
            }
            _ => writers.iter().rev().find(|other| other.worker != touch.worker).map(|other| (Pattern::HotRow, *other)),
        };
        if let Some((pattern, other)) = met
            && touch.worker.is_some()
            && told.insert((pattern, other.worker, other.test, touch.worker, touch.test))
        {
            found.push(Collision::of(pattern, Some(other), touch, spans));
        }
        if touch.worker.is_some() && maker.is_none_or(|maker| maker.worker.is_none()) {
            writers.retain(|other| other.worker != touch.worker);
            writers.push(touch);
        }
        if touch.op == Op::Delete {
            maker = None;
            writers.clear();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> Spans {
        let span = |began, ended, failed| Span { began, ended: Some(ended), failed };
        HashMap::from([(1, span(0, 100, false)), (2, span(50, 150, true)), (3, span(200, 300, false))])
    }

    fn touch(test: i64, op: Op, at: i64) -> Touch {
        Touch { worker: Some(test), test: Some(test), op, at, statement: at }
    }

    fn patterns(history: &[Touch]) -> Vec<(Pattern, i64, Option<i64>)> {
        of_row(history, &spans()).into_iter().map(|met| (met.pattern, met.overlap, met.failed_test)).collect()
    }

    #[test]
    fn a_row_of_a_running_test_is_clobbered_and_of_an_ended_one_polluted() {
        let made = touch(1, Op::Insert, 10);
        assert_eq!(patterns(&[made, touch(2, Op::Update, 60)]), [(Pattern::Clobber, 50, Some(2))]);
        assert_eq!(patterns(&[made, touch(2, Op::Delete, 120)]), [(Pattern::Pollution, 50, Some(2))]);
        assert_eq!(patterns(&[made, touch(3, Op::Delete, 210)]), [(Pattern::Pollution, 0, None)]);
    }

    #[test]
    fn two_who_write_a_row_that_neither_made_are_told_once() {
        let history = [touch(1, Op::Update, 60), touch(2, Op::Update, 70), touch(2, Op::Update, 80)];
        assert_eq!(patterns(&history), [(Pattern::HotRow, 50, Some(2))]);
    }

    #[test]
    fn what_is_alone_or_new_is_innocent() {
        let own = [touch(1, Op::Insert, 10), touch(1, Op::Update, 20), touch(1, Op::Delete, 30)];
        assert!(patterns(&own).is_empty());
        // The same key, once more.
        let again = [own[0], own[2], touch(2, Op::Insert, 60), touch(2, Op::Delete, 70)];
        assert!(patterns(&again).is_empty());
        let stranger = Touch { worker: None, test: None, ..touch(1, Op::Update, 60) };
        assert!(patterns(&[own[0], stranger]).is_empty());
        assert!(patterns(&[stranger, touch(1, Op::Update, 70)]).is_empty());
    }
}
