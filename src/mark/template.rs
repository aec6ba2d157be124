//! The mark of a kept template: a comment that says what it was made by. It belongs to no run,
//! and does not begin as the marks of runs do: no sweep takes it.

use std::fmt;

use crate::clock::Timestamp;

/// How every mark of a kept template begins; the number is the form of what follows.
pub const HEAD: &str = "isolane template 1 ";
/// How the name of every kept template begins.
const NAME: &str = "isolane_template_";
/// How that of a spare does.
const SPARE: &str = "isolane_spare_";
/// How many digits of the fingerprint are in the name.
const DIGITS: usize = 16;
/// The longest command that is kept whole.
const COMMAND: usize = 200;

/// What a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateMark {
    /// Of all that it was made from: 64 hex digits.
    pub fingerprint: String,
    /// When it was made.
    pub made: Timestamp,
    /// When a run took it last, give or take a minute.
    pub used: Timestamp,
    /// The machine of the run that made it.
    pub host: String,
    /// The command that made it, as a person reads it.
    pub command: String,
}

/// The name of the template with this fingerprint.
pub fn name_of(fingerprint: &str) -> String {
    format!("{NAME}{}", &fingerprint[..DIGITS.min(fingerprint.len())])
}

/// The name of a copy of it that is ready to be somebody's first lane.
pub fn spare_of(fingerprint: &str) -> String {
    format!("{SPARE}{}", &fingerprint[..DIGITS.min(fingerprint.len())])
}

impl TemplateMark {
    /// The mark of what was made now by `command`, which holds no password.
    pub fn new(fingerprint: &str, host: &str, command: &str, now: Timestamp) -> Self {
        let line: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let short: String = line.trim().chars().take(COMMAND).collect();
        Self {
            fingerprint: fingerprint.to_owned(),
            made: now,
            used: now,
            host: host.chars().filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c)).collect(),
            command: short,
        }
    }

    /// Reads the mark of the database `name`; `None` for any other comment, or another name.
    pub fn parse(comment: &str, name: &str) -> Option<Self> {
        let words: Vec<&str> = comment.strip_prefix(HEAD)?.splitn(9, ' ').collect();
        let [fingerprint, "made", made, "used", used, "host", host, "command", command] = words[..] else {
            return None;
        };
        let is_digest = fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mark = Self {
            fingerprint: fingerprint.to_owned(),
            made: Timestamp::parse(made)?,
            used: Timestamp::parse(used)?,
            host: host.to_owned(),
            command: command.to_owned(),
        };
        // A copy under another name is whoever's made it.
        let is_its = name == name_of(fingerprint) || name == spare_of(fingerprint);
        (is_digest && is_its && !comment.contains(char::is_control)).then_some(mark)
    }
}

impl fmt::Display for TemplateMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fingerprint, made, used, host, command } = self;
        write!(f, "{HEAD}{fingerprint} made {made} used {used} host {host} command {command}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{self, Mark};

    #[test]
    fn a_mark_reads_as_it_was_written_and_is_no_runs() {
        let fingerprint = "0123456789abcdef".repeat(4);
        let now = Timestamp(1_790_000_000_123_000);
        let mark = TemplateMark::new(&fingerprint, "build-7", "psql -c 'it''s'\n  && echo \x1b[31m", now);
        let (text, name) = (mark.to_string(), name_of(&fingerprint));
        assert_eq!(name, "isolane_template_0123456789abcdef");
        assert_eq!(TemplateMark::parse(&text, &name), Some(mark));
        assert_eq!(
            TemplateMark::parse(&text, &spare_of(&fingerprint)).as_ref(),
            TemplateMark::parse(&text, &name).as_ref()
        );
        assert_eq!(TemplateMark::parse(&text, "shop"), None);
        assert_eq!(TemplateMark::parse(&text.replace(" used ", " use "), &name), None);
        assert!(!text.starts_with(mark::HEAD) && Mark::parse(&text).is_none());
        assert!(!text.contains(char::is_control));
        let empty = TemplateMark::new(&fingerprint, "", "", now);
        assert_eq!(TemplateMark::parse(&empty.to_string(), &name), Some(empty));
    }
}
