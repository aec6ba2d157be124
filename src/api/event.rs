//! What shims report, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Api, failure};
use crate::clock::Timestamp;
use crate::failure::read;
use crate::keeper;
use crate::ledger::test::FixturePhase;
use crate::ledger::worker::WorkerOutcome;
use crate::name::Lane;
use crate::os::process::{Ended, PidFd};
use crate::roster::Kind;

/// How long what a dead process has said may take to arrive.
pub const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a shim reports. `at` is in seconds since 1970, by the clock of this machine.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The shim of pytest works in this process; `role` is its place.
    Hello {
        worker: String,
        role: Role,
        lane: Option<u32>,
    },
    Begin {
        worker: String,
        test: String,
        attempt: Option<u32>,
        at: Option<f64>,
    },
    End {
        worker: String,
        test: String,
        /// Nothing where nobody can tell.
        outcome: Option<String>,
        message: Option<String>,
        at: Option<f64>,
    },
    /// What a test that may have failed has said on its standard error.
    Said {
        worker: String,
        test: String,
        text: String,
    },
    /// A fixture that lives longer than a test; `key` tells it from others of this worker.
    Fixture {
        worker: String,
        key: u64,
        fixture: String,
        scope: String,
        phase: FixturePhase,
        at: Option<f64>,
    },
    /// The worker's work is done.
    Goodbye {
        worker: String,
    },
    /// The controller has given the worker up.
    Lost {
        worker: String,
    },
    /// A binary has this many tests; less than 0 for those that will be ignored.
    Listed {
        binary: String,
        tests: i64,
    },
    /// Something for the user to read.
    Notice {
        text: String,
    },
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs tests by itself.
    Alone,
    /// It hands tests to workers.
    Controller,
    /// It is handed tests.
    Worker,
}

impl Event {
    /// Takes it in. `pid` is the process that reports it, `told` is closed when all that
    /// this process has to say was taken in.
    pub fn happened(self, api: &Arc<Api>, pid: Option<i32>, told: Option<&watch::Receiver<()>>) {
        let time = |at: Option<f64>| at.map_or_else(Timestamp::now, Timestamp::from_seconds);
        let roster = &api.roster;
        match self {
            Self::Hello { worker, role, lane } => {
                roster.pytest_reported();
                match role {
                    Role::Alone => {}
                    Role::Controller => roster.is_controller(&worker),
                    Role::Worker => {
                        roster.join(&worker, Kind::Process, Lane(lane.unwrap_or(0)), pid, Timestamp::now());
                        if let Some(process) = pid.and_then(|pid| keeper::hold(pid).ok()) {
                            watch(api, worker, Arc::new(process), told.cloned());
                        }
                    }
                }
            }
            Self::Begin { worker, test, attempt, at } => roster.test_began(&worker, &test, attempt, time(at)),
            Self::End { worker, test, outcome, message, at } => {
                look_up(api, &worker, &test, outcome.as_deref(), message.as_deref(), time(at));
                roster.test_ended(&worker, &test, outcome.as_deref(), message.as_deref(), time(at));
            }
            Self::Said { worker, test, text } => heard(api, &worker, &test, text),
            Self::Fixture { worker, key, fixture, scope, phase, at } => {
                roster.fixture(&worker, key, &fixture, &scope, phase, time(at));
            }
            Self::Goodbye { worker } => roster.said_goodbye(&worker),
            // Its lane is taken at once, before its controller asks for another; how it ended,
            // its process tells.
            Self::Lost { worker } if api.keeper.is_bound(&worker) => api.keeper.crashed(&worker),
            Self::Lost { worker } => {
                let mut going = Box::pin(lost(Arc::clone(api), worker, Ended::Unknown));
                // Only a service far away takes its time.
                if (&mut going).now_or_never().is_none() {
                    tokio::spawn(going);
                }
            }
            Self::Listed { binary, tests } => roster.listed(&binary, tests),
            Self::Notice { text } => roster.notice(&text),
        }
    }
}

/// Looks up which rows the message of a failed test names. pytest's shim has asked for that at
/// the moment of the failure already.
fn look_up(api: &Arc<Api>, worker: &str, test: &str, outcome: Option<&str>, message: Option<&str>, at: Timestamp) {
    let has_failed = matches!(outcome, Some("failed" | "error"));
    let Some(message) =
        message.filter(|_| has_failed && api.run.is_watched() && !api.roster.has_pytest()).map(str::to_owned)
    else {
        return;
    };
    let Some((number, lane)) = api.roster.number_of(worker, test) else { return };
    let api = Arc::clone(api);
    tokio::task::spawn_blocking(move || failure::name(&api, number, lane, &read(&message), at));
}

/// A test has said something and is ending, or has ended: where it failed, that is its message.
fn heard(api: &Arc<Api>, worker: &str, test: &str, said: String) {
    let Some((number, lane)) = api.roster.heard(worker, test, &said) else { return };
    if !api.run.is_watched() {
        return;
    }
    let (api, at) = (Arc::clone(api), Timestamp::now());
    let telling = api.stories.one_more();
    tokio::task::spawn_blocking(move || {
        failure::name(&api, number, lane, &read(&said), at);
        drop(telling);
    });
}

/// Waits for the end of a worker that is a process.
fn watch(api: &Arc<Api>, worker: String, process: Arc<AsyncFd<PidFd>>, told: Option<watch::Receiver<()>>) {
    api.keeper.bind(&worker, &process);
    let api = Arc::clone(api);
    tokio::spawn(async move {
        let how = keeper::ended(&process).await;
        // What it said before it died counts: in which test it was, for one. A child of its
        // may hold the connection open, so this has an end.
        if let Some(mut told) = told {
            let _ = tokio::time::timeout(LAST_WORDS, told.changed()).await;
        }
        lost(api, worker, how).await;
    });
}

async fn lost(api: Arc<Api>, worker: String, how: Ended) {
    api.holder_died(&worker).await;
    match api.roster.left(&worker, how, Timestamp::now()) {
        Some(WorkerOutcome::Crashed) => api.keeper.crashed(&worker),
        Some(_) => api.keeper.release(&worker),
        None => {}
    }
}
