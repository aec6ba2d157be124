//! How isolane ends when it cannot do what it was asked, and with which code.
//!
//! Most errors are read by a person and by nobody else: they travel as
//! [`anyhow::Error`]. The few that a caller acts upon are a [`Stop`].

use std::fmt;

/// The exit codes that are isolane's own; every other is the wrapped command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command line or the configuration is not usable.
    Usage = 2,
    /// What was asked for was refused: a lease that is lost, an item that is not there.
    Refused = 1,
    /// What was asked for can never be had (`EX_DATAERR`).
    Unsatisfiable = 65,
    /// What was asked for is not to be had just now (`EX_TEMPFAIL`).
    Exhausted = 75,
    /// A service that the command needs is away (`EX_UNAVAILABLE` of sysexits.h).
    Unavailable = 69,
    /// All tests passed, and `--fail-on leak` was asked for.
    Leak = 121,
    /// All tests passed, and `--fail-on collision` was asked for.
    Collision = 122,
    /// All tests passed, and something could not be removed.
    NotRemoved = 123,
    /// The run could not be started; nothing is left behind.
    NotStarted = 125,
    /// The command was found and cannot be executed.
    NotExecutable = 126,
    /// The command was not found.
    NotFound = 127,
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        code as Self
    }
}

/// An end with a code of its own and one line that says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Stop {
    /// What the process exits with.
    pub code: i32,
    /// The line.
    pub message: String,
}

impl Stop {
    /// A usage error.
    pub fn usage(message: impl fmt::Display) -> anyhow::Error {
        Self::with(ExitCode::Usage, message)
    }

    /// The run cannot start.
    pub fn not_started(message: impl fmt::Display) -> anyhow::Error {
        Self::with(ExitCode::NotStarted, message)
    }

    /// An end with this code and line.
    pub fn with(code: impl Into<i32>, message: impl fmt::Display) -> anyhow::Error {
        anyhow::Error::new(Self { code: code.into(), message: message.to_string() })
    }
}

/// The code that `error` ends the process with.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    error.downcast_ref::<Stop>().map_or(ExitCode::NotStarted as i32, |stop| stop.code)
}

/// The error and its causes on one line, as a person reads it.
pub fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split('\n').map(str::trim).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `text` as it is shown to a person: what would move the cursor, break the line or colour the
/// rest of a terminal is spelled out, such as `\u{1b}`. Names are anybody's to choose.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_spelled_out() {
        assert_eq!(
            visible("a\u{1b}[2J\r\nb\u{7}\u{9b}\u{7f}\tc\\ \"é\""),
            "a\\u{1b}[2J\\r\\nb\\u{7}\\u{9b}\\u{7f}\tc\\ \"é\""
        );
    }
}
