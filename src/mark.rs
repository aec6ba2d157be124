//! The mark: a comment on everything that a run makes on a server, which says whose it is.
//!
//! It is what proves ownership to a machine that never saw the run's ledger, together with
//! the name, which is the run's as well: a copy that somebody made of a marked thing under
//! a name of their own is theirs.

pub mod template;

use std::fmt;

use crate::clock::Timestamp;
use crate::name::{Lane, Place, RunId};

/// How every mark begins.
pub const HEAD: &str = "isolane run ";

/// The run for which things are made.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The run.
    pub run: RunId,
    /// The machine it runs on.
    pub host: String,
    /// When it started.
    pub since: Timestamp,
    /// What its runner calls its workers: `gw`, `slot` or `w`.
    pub worker: &'static str,
    /// The lane of pytest's own process, where that is the runner.
    pub master: Option<Lane>,
}

impl Owner {
    /// The mark of what is made for `place`.
    pub fn mark(&self, place: Place) -> Mark {
        // A comment is one line of plain words: no host name needs more than these letters.
        let host = self.host.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect();
        let worker = match place {
            Place::Lane(lane) if self.master == Some(lane) => "master".to_owned(),
            Place::Lane(lane) => format!("{}{lane}", self.worker),
            Place::Template => "setup".to_owned(),
            Place::Spare | Place::Run => "isolane".to_owned(),
        };
        Mark { run: self.run, place, worker, host, since: self.since }
    }
}

/// What a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Whose it is.
    pub run: RunId,
    /// The lane, or the template.
    pub place: Place,
    /// The worker that it was made for; a lane may serve others later.
    pub worker: String,
    /// The machine of the run.
    pub host: String,
    /// When the run started, by that machine's clock.
    pub since: Timestamp,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, place, worker, host, since } = self;
        write!(f, "{HEAD}{run} place {} worker {worker} host {host} since {since}", place.word())
    }
}

impl Mark {
    /// Reads a mark; `None` for any other comment, and for one that was added to.
    pub fn parse(comment: &str) -> Option<Self> {
        let words: Vec<&str> = comment.strip_prefix(HEAD)?.split(' ').collect();
        let [run, "place", place, "worker", worker, "host", host, "since", since] = words[..] else { return None };
        // Whoever may comment may forge a mark; it has no letters that mean anything anywhere.
        let is_plain = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !is_plain(worker) || !is_plain(host) {
            return None;
        }
        let mark = Self {
            run: RunId::parse(run)?,
            place: Place::parse(place)?,
            worker: worker.to_owned(),
            host: host.to_owned(),
            since: Timestamp::parse(since)?,
        };
        // One spelling only.
        (mark.to_string() == comment).then_some(mark)
    }

    /// Whether a thing of this name is what the mark was put on: the run's own name for the
    /// place, where the run has several databases with a number behind it.
    pub fn is_of(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(&self.place.schema(&self.run.tag())) else { return false };
        let number = rest.strip_prefix('_').unwrap_or_default();
        rest.is_empty() || (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            run: RunId::new(1),
            host: "build-7.example".to_owned(),
            since: Timestamp(1_790_000_000_123_000),
            worker: "gw",
            master: Some(Lane(4)),
        }
    }

    #[test]
    fn a_mark_reads_as_it_was_written_and_nothing_else_does() {
        for place in [Place::Lane(Lane(11)), Place::Template] {
            let mark = owner().mark(place);
            let text = mark.to_string();
            assert_eq!(Mark::parse(&text), Some(mark));
            for other in [
                format!("{text} "),
                format!(" {text}"),
                text.replace("host", "Host"),
                text.to_uppercase(),
                text.replace("build-7", "'b'"),
                text.replace("build-7", "\x1b[31m"),
            ] {
                assert_eq!(Mark::parse(&other), None, "{other}");
            }
        }
        assert_eq!(Mark::parse("isolane run of ours"), None);
        let worker = |place| owner().mark(place).worker;
        assert_eq!([3, 4].map(|lane| worker(Place::Lane(Lane(lane)))), ["gw3", "master"]);
    }

    #[test]
    fn a_mark_is_of_its_own_name_only() {
        let owner = owner();
        let mark = owner.mark(Place::Lane(Lane(1)));
        let name = Place::Lane(Lane(1)).schema(&owner.run.tag());
        assert!(mark.is_of(&name) && mark.is_of(&format!("{name}_2")));
        for other in
            [format!("{name}1"), format!("{name}_"), format!("{name}_x"), format!("x{name}"), "shop".to_owned()]
        {
            assert!(!mark.is_of(&other), "{other}");
        }
    }
}
