//! What a pool is: what its items are for, and what is done to them. One definition serves
//! leasing, resetting and expiry.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::item::MOST_FAILURES;
use crate::clock::Timestamp;

/// The longest pause of a generator that fails, in seconds.
const LONGEST_PAUSE: u64 = 600;

/// How long resetting or retiring an item may take unless its pool says otherwise, in seconds.
pub const TIMEOUT: u64 = 60;

/// How long a lease lives whose pool and holder say nothing, in seconds.
pub const TTL: u64 = 60;

/// What a pool is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Definition {
    /// How many may hold one item, and what becomes of it after.
    #[serde(rename = "use")]
    pub usage: Usage,
    /// How long its leases live unless the holder says otherwise, in seconds.
    pub ttl: Option<u64>,
    /// The command that makes an item as it was: after an unclean end, or after each use.
    pub reset: Option<String>,
    /// When it is reset.
    pub reset_after: ResetAfter,
    /// The command that removes an item for good.
    pub retire: Option<String>,
    /// The command that makes items, and how many.
    pub generator: Option<Generator>,
    /// The table whose rows are its items.
    pub table: Option<Table>,
    /// Where its commands run.
    pub folder: PathBuf,
    /// How long resetting or retiring an item may take, in seconds.
    pub timeout: Option<u64>,
    /// Its generator failed the last times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// It is there only until its last item is retired.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_leaving: bool,
}

/// What became of a generator's last runs, where they failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// How many failed in a row.
    pub failures: u32,
    /// When it is tried again by itself, in microseconds since 1970.
    pub until: u64,
    /// Why the last one failed.
    pub why: String,
}

impl Trouble {
    /// One more failure, at `now`.
    pub fn after(before: Option<&Self>, now: Timestamp, why: String) -> Self {
        let failures = before.map_or(0, |it| it.failures).saturating_add(1);
        // 1, 2 and, as a pause, 5, 10, 20 … seconds.
        let seconds = match failures {
            0..MOST_FAILURES => u64::from(failures),
            _ => (5 << (failures - MOST_FAILURES).min(10)).min(LONGEST_PAUSE),
        };
        Self { failures, until: now.after(Duration::from_secs(seconds)).0, why }
    }

    /// Whether the pool pauses at `now`: nobody but who fills it by hand has it try again.
    pub fn is_pause(&self, now: Timestamp) -> bool {
        self.failures >= MOST_FAILURES && self.until > now.0
    }
}

/// How an item may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Usage {
    /// By one holder at a time.
    #[default]
    Exclusive,
    /// By so many holders at a time.
    Shared(u32),
    /// Once: it is retired when its holder lets go.
    Consume,
}

impl Usage {
    /// How many may hold one item at a time.
    pub fn places(self) -> u32 {
        match self {
            Self::Shared(n) => n,
            Self::Exclusive | Self::Consume => 1,
        }
    }
}

/// When an item has to be reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResetAfter {
    /// After the end of a lease that its holder did not release.
    #[default]
    Unclean,
    /// After every lease.
    Each,
}

/// What makes items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Generator {
    /// The command: one JSON document in, one out.
    pub run: String,
    /// What it takes, and what a form asks for.
    pub inputs: Vec<Input>,
    /// How many items are kept in stock, of which inputs.
    pub stock: Vec<Stock>,
    /// How many items there are at most.
    pub maximum: Option<u32>,
    /// Items of other pools that one run of it needs.
    pub needs: Vec<Need>,
    /// How long one run of it may take, in seconds.
    pub timeout: u64,
    /// What it is made from: items made from something else are made again.
    pub fingerprint: String,
}

/// One input of a generator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Input {
    /// Its name.
    pub name: String,
    /// `text`, `number` or `boolean`.
    pub kind: String,
    /// The values that it may have; any where there are none.
    pub values: Vec<Value>,
    /// Its value where nobody gives one.
    pub default: Option<Value>,
    /// What it means.
    pub about: Option<String>,
}

/// How many items of one kind are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Stock {
    /// The inputs that they are made with.
    pub input: Map<String, Value>,
    /// How many of them are free at least.
    pub minimum: u32,
}

/// Items of another pool that a generator needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Need {
    /// Of which pool.
    pub pool: String,
    /// How many.
    pub count: u32,
    /// What they must be like, as [`super::predicate::Predicate::from_json`] reads it.
    #[serde(rename = "where")]
    pub conditions: Map<String, Value>,
}

/// A table of the user's whose rows are items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Table {
    /// Its name, with or without its schema.
    pub name: String,
    /// SQL: which rows; all where there is none.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The column that tells one from another.
    pub key: String,
    /// What is done about a write to a leased row by somebody who does not hold it.
    pub guard: Guard,
}

/// What is done about writes of others to a leased row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Nothing.
    #[default]
    Off,
    /// They are noted.
    Note,
    /// They are refused.
    Refuse,
}

impl Definition {
    /// How long a lease of this pool lives unless its holder says otherwise, in seconds.
    pub fn ttl(&self) -> u64 {
        self.ttl.unwrap_or(TTL)
    }

    /// Whether an item has to be reset after a lease that ended so.
    pub fn is_reset_after(&self, unclean: bool) -> bool {
        self.reset.is_some() && (unclean || self.reset_after == ResetAfter::Each)
    }

    /// How long resetting or retiring an item may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(TIMEOUT))
    }

    /// Whether more items can be made.
    pub fn can_make(&self, has: usize) -> bool {
        let makes = |generator: &Generator| generator.maximum.is_none_or(|most| has < most as usize);
        self.generator.as_ref().is_some_and(makes)
    }
}
