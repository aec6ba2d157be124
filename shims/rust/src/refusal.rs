//! Why something is refused.

use std::fmt;
use std::io;

use serde_json::Value;

use crate::door::{self, Answer};

/// Somebody who has what another wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Which item.
    pub item: String,
    /// Its worker.
    pub worker_id: Option<String>,
    /// The test that this is in.
    pub test_id: Option<String>,
    /// Who it is, where it is no worker of a run.
    pub client: Option<String>,
    /// Since when: UTC, ISO 8601.
    pub since: String,
    /// Until when, at the latest.
    pub until: String,
}

/// Why there is no lease. Shown, also by `{:?}` and so by `unwrap`, it is what the run says: what
/// is wrong and what to do, on one line.
#[non_exhaustive]
pub enum LeaseError {
    /// All that would do is held, or was for as long as this waited.
    Exhausted {
        /// Who has it.
        holders: Vec<Holder>,
        /// What the run says.
        message: String,
    },
    /// Those who wait for it wait for each other.
    Deadlock {
        /// What the run says.
        message: String,
    },
    /// There never will be such items, whatever anybody releases.
    Unsatisfiable {
        /// What the run says; it names the item that comes nearest.
        message: String,
    },
    /// There is no such pool.
    PoolUnknown {
        /// What the run says.
        message: String,
    },
    /// The lease has ended: by time, or because somebody took it.
    Lost {
        /// What the run says.
        message: String,
    },
    /// It was refused for another reason.
    Refused {
        /// The stable word for that: `malformed-request`, `key-mismatch`, `not-made` and so on.
        code: String,
        /// What the run says.
        message: String,
    },
    /// There is no run, or it does not answer.
    Away(io::Error),
}

impl LeaseError {
    /// The stable word for it, where it is the run's.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Exhausted { .. } => Some("exhausted"),
            Self::Deadlock { .. } => Some("lease-deadlock"),
            Self::Unsatisfiable { .. } => Some("unsatisfiable"),
            Self::PoolUnknown { .. } => Some("pool-unknown"),
            Self::Lost { .. } => Some("lease-lost"),
            Self::Refused { code, .. } => Some(code),
            Self::Away(_) => None,
        }
    }

    fn of(answer: &Answer) -> Self {
        let message = answer.detail();
        match answer.body["code"].as_str().unwrap_or_default() {
            "exhausted" => Self::Exhausted { holders: holders(&answer.body["holders"]), message },
            "lease-deadlock" => Self::Deadlock { message },
            "unsatisfiable" => Self::Unsatisfiable { message },
            "pool-unknown" => Self::PoolUnknown { message },
            "lease-lost" => Self::Lost { message },
            code => Self::Refused { code: code.to_owned(), message },
        }
    }
}

fn holders(list: &Value) -> Vec<Holder> {
    let holder = |it: &Value| {
        let text = |name: &str| it[name].as_str().map(str::to_owned);
        Holder {
            item: text("item").unwrap_or_default(),
            worker_id: text("worker_id"),
            test_id: text("test_id"),
            client: text("client"),
            since: text("since").unwrap_or_default(),
            until: text("until").unwrap_or_default(),
        }
    };
    list.as_array().map(|list| list.iter().map(holder).collect()).unwrap_or_default()
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted { message, .. }
            | Self::Deadlock { message }
            | Self::Unsatisfiable { message }
            | Self::PoolUnknown { message }
            | Self::Lost { message }
            | Self::Refused { message, .. } => f.write_str(message),
            Self::Away(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for LeaseError {}

/// Asks the run; what comes back is the document of a success.
pub(crate) fn call(method: &str, path: &str, body: Option<&Value>) -> Result<Value, LeaseError> {
    let answer = door::call(method, path, body).map_err(LeaseError::Away)?;
    if answer.is_good() {
        Ok(answer.body)
    } else {
        Err(LeaseError::of(&answer))
    }
}
