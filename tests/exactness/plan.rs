//! What a driver does, step by step, and what isolane must find.

use std::collections::BTreeMap;

use isolane::collision::Pattern;
use serde::{Deserialize, Serialize};

/// One thing that happens; the next one happens when this is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    Begin {
        worker: usize,
        test: String,
    },
    /// Of a failed test the message is the last error that its worker got, if there was one.
    End {
        worker: usize,
        test: String,
        failed: bool,
    },
    /// A fixture that lives longer than a test: `begin`, `ready`, `leaving` or `end`.
    Fixture {
        worker: usize,
        key: u64,
        name: String,
        scope: String,
        phase: String,
    },
    /// A worker's own session. `{prefix}` and `{schemaN}` are those of lanes.
    Sql {
        worker: usize,
        sql: String,
    },
    /// A worker's second session.
    Aside {
        worker: usize,
        sql: String,
    },
    /// Somebody who is no worker.
    Stranger {
        sql: String,
    },
    /// The server refuses it.
    Refused {
        worker: usize,
        sql: String,
    },
    /// Tells isolane of the last error, where the runner does so at once.
    Failure {
        worker: usize,
        test: String,
    },
    /// Both wait for one another until the server ends what `victim` does.
    Deadlock {
        survivor: usize,
        victim: usize,
        rows: [String; 2],
    },
    /// A moment passes.
    Pause,
}

/// Who met whom over which row, as the ledger's view has it.
pub type Met = (String, String, String, String, String, String, String, String, String, String);

/// The columns of the view, in the order of [`Met`].
pub const COLUMNS: &str = "pattern, kind, key, worker_a, test_a, op_a, worker_b, test_b, op_b, failed_test";

/// What a ledger must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    pub met: BTreeMap<Met, usize>,
    /// By worker, test, kind and operation.
    pub touches: BTreeMap<[String; 4], usize>,
    /// By worker, test, kind and state.
    pub records: BTreeMap<[String; 4], usize>,
    /// By worker, test and kind.
    pub leaks: BTreeMap<[String; 3], usize>,
    pub tests: usize,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub setting: Setting,
    pub steps: Vec<Step>,
    pub truth: Truth,
    pub planned: BTreeMap<Pattern, usize>,
    pub innocents: usize,
    /// SQL that removes rows that are not isolane's to remove, each one.
    pub strangers: Vec<String>,
}

/// What a driver must know beside the steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// Whether lanes are schemas; else all share the user's own.
    pub schemas: bool,
    /// Whether the runner tells of failures at once, as pytest's shim does; else the message
    /// comes with the end of a test.
    pub tells_at_once: bool,
    /// How long at most what a worker tells is on its way, in milliseconds.
    pub late: u64,
    /// Whether lanes have logins of their own.
    pub roles: bool,
}

/// The file that a driver reads.
#[derive(Serialize, Deserialize)]
pub struct Script {
    pub seed: u64,
    pub workers: usize,
    pub setting: Setting,
    pub stranger: String,
    pub steps: Vec<Step>,
}
