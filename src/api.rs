//! The run's API: HTTP and JSON over a Unix socket that only the user can reach.
//! Errors are problem documents (RFC 9457) with a stable `code`.
//!
//! * `POST /v1/lanes` gives the caller's worker its lane.
//! * `POST /v1/tests` takes events: begins and ends of tests, comings and goings of
//!   workers. As `application/x-ndjson` the body may stay open as long as the worker
//!   lives; each line counts when it arrives.
//! * `POST /v1/records` enters an outside thing.
//! * `GET /v1/runs` tells which run this is.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use crate::clock::Timestamp;
use crate::error::one_line;
use crate::keeper::{self, Grant, Keeper};
use crate::ledger::worker::WorkerOutcome;
use crate::os::process::{Ended, PidFd};
use crate::roster::{Kind, Roster};
use crate::run::Run;

/// The answer to `POST /v1/lanes` for callers without a JSON reader: variables as
/// `env -0` prints them.
const PLAIN_ENVIRONMENT: &str = "application/x-isolane-env";
/// The longest line of an event stream, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// How long events of a stream gather before they are taken in.
const BATCHING: Duration = Duration::from_millis(10);
/// How long what a dead process has said may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the API answers from.
#[derive(Debug)]
pub struct Api {
    /// The run.
    pub run: Arc<Run>,
    /// Its lanes.
    pub keeper: Arc<Keeper>,
    /// Its workers and tests.
    pub roster: Arc<Roster>,
}

/// Who is at the other end of a connection, as the kernel tells it.
#[derive(Clone, Copy, Debug)]
struct Peer {
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { pid: stream.io().peer_cred().ok().and_then(|credentials| credentials.pid()) }
    }
}

/// Serves the API until the task is dropped.
pub async fn serve(listener: UnixListener, api: Arc<Api>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/lanes", post(lanes))
        .route("/v1/tests", post(tests))
        .route("/v1/records", post(records))
        .route("/v1/runs", get(runs))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "unknown-path", "there is nothing at this path") })
        .with_state(api);
    axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await
}

/// A problem document.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    fn malformed(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed-request", detail.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let document = json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "code": self.code, "detail": self.detail});
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], document.to_string()).into_response()
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(Problem::malformed)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LaneRequest {
    /// The worker's name, where the runner has one.
    worker: Option<String>,
    /// Bind the lane to the caller's process: it is free when that is gone.
    #[serde(default)]
    bind: bool,
    /// How many workers there will be, so that their lanes can be made at once.
    expect: Option<u32>,
    /// The test that the caller's process is going to be.
    test: Option<TestOfLane>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestOfLane {
    id: String,
    attempt: Option<u32>,
}

async fn lanes(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request: LaneRequest = read(&body)?;
    if let Some(expected) = request.expect {
        // More than any machine has workers is a slip, not a wish.
        api.keeper.expect(expected.min(1024));
    }
    // In a task of its own: a caller that dies while it waits must not leave a lane that
    // nobody holds and nobody frees.
    let lease = tokio::spawn(lease(Arc::clone(&api), request, peer));
    let grant = lease
        .await
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))??;
    if headers.get(header::ACCEPT).is_some_and(|accept| accept == PLAIN_ENVIRONMENT) {
        let text: String = grant.environment.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
        return Ok((StatusCode::CREATED, [(header::CONTENT_TYPE, PLAIN_ENVIRONMENT)], text).into_response());
    }
    let environment: serde_json::Map<_, _> =
        grant.environment.into_iter().map(|(name, value)| (name, value.into())).collect();
    let answer = json!({
        "lane": grant.lane.0,
        "worker_id": grant.worker,
        "prefix": environment.get("ISOLANE_PREFIX"),
        "schema": environment.get("ISOLANE_SCHEMA"),
        "environment": environment,
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn lease(api: Arc<Api>, request: LaneRequest, peer: Peer) -> Result<Grant, Problem> {
    let no_lane = |error: anyhow::Error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-lane", one_line(&error));
    if !request.bind {
        let worker = request.worker.ok_or_else(|| Problem::malformed("`worker` is missing"))?;
        api.roster.announce(&worker);
        return api.keeper.lease(&worker, None).await.map_err(no_lane);
    }
    let gone = || Problem::new(StatusCode::GONE, "caller-gone", "the calling process is gone");
    let pid = peer.pid.ok_or_else(gone)?;
    let process = Arc::new(keeper::hold(pid).map_err(|_| gone())?);
    // A process without a name is known by its lane: `slot0` in lane 0.
    let holder = request.worker.clone().unwrap_or_else(|| format!("process {pid}"));
    let mut grant = api.keeper.lease(&holder, None).await.map_err(no_lane)?;
    let worker = request.worker.unwrap_or_else(|| format!("slot{}", grant.lane));
    for (name, value) in &mut grant.environment {
        if name == "WORKER_ID" {
            value.clone_from(&worker);
        }
    }
    grant.worker.clone_from(&worker);
    api.keeper.bind(&holder, &process);
    let at = Timestamp::now();
    api.roster.join(&worker, Kind::Slot, grant.lane, Some(pid), at);
    if let Some(test) = &request.test {
        api.roster.test_began(&worker, &test.id, test.attempt, at);
    }
    let test = request.test.map(|test| test.id);
    tokio::spawn(async move {
        let how = keeper::ended(&process).await;
        if let Some(test) = test {
            let (outcome, message) = outcome_of_process(how);
            api.roster.test_ended(&worker, &test, outcome, message.as_deref(), Timestamp::now());
        }
        match how {
            Ended::Exited(_) => api.keeper.release(&holder),
            // It may have left a transaction open, or children at work.
            Ended::Signalled(_) | Ended::Unknown => {
                let stopped = tokio::task::spawn_blocking(move || crate::os::process::kill_group(pid)).await;
                drop(stopped);
                api.keeper.crashed(&holder);
            }
        }
    });
    Ok(grant)
}

/// The outcome of a test that is a process.
fn outcome_of_process(how: Ended) -> (Option<&'static str>, Option<String>) {
    match how {
        Ended::Exited(0) => (Some("passed"), None),
        Ended::Exited(code) => (Some("failed"), Some(format!("it exited with code {code}"))),
        Ended::Signalled(signal) => (Some("crashed"), Some(format!("signal {signal} ended it"))),
        Ended::Unknown => (None, None),
    }
}

/// What a shim reports.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
enum Event {
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
        outcome: String,
        message: Option<String>,
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
enum Role {
    /// It runs tests by itself.
    Alone,
    /// It hands tests to workers.
    Controller,
    /// It is handed tests.
    Worker,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Batch {
    Many(Vec<Event>),
    One(Box<Event>),
}

async fn tests(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let streamed = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-ndjson");
    if !streamed {
        let body = axum::body::to_bytes(body, LONGEST_LINE).await.map_err(Problem::malformed)?;
        let events = match read(&body)? {
            Batch::Many(events) => events,
            Batch::One(event) => vec![*event],
        };
        for event in events {
            happened(&api, event, peer, None);
        }
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let mut speaker = None;
    // Dropped when the story has ended, however it does.
    let (story, told) = tokio::sync::watch::channel(());
    let mut line = Vec::new();
    let mut data = body.into_data_stream();
    while let Some(Ok(bytes)) = data.next().await {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > LONGEST_LINE {
                return Err(Problem::malformed("a line is longer than 1 MiB"));
            }
            if line.last() == Some(&b'\n') {
                let event: Event = read(&line)?;
                if let Event::Hello { worker, role: Role::Alone, .. } = &event {
                    speaker = Some(worker.clone());
                }
                happened(&api, event, peer, Some(&told));
                line.clear();
            }
        }
        // Nobody waits for an answer, and a batch costs little more than an event.
        tokio::time::sleep(BATCHING).await;
    }
    drop(story);
    // It ran tests by itself and will not tell of them any more.
    if let Some(worker) = speaker {
        api.roster.abandon(&worker, Timestamp::now());
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

/// Takes in an event; `story` is the stream that it came in, if it was one.
fn happened(api: &Arc<Api>, event: Event, peer: Peer, story: Option<&Story>) {
    let time = |at: Option<f64>| at.map_or_else(Timestamp::now, Timestamp::from_seconds);
    let roster = &api.roster;
    match event {
        Event::Hello { worker, role, lane } => {
            roster.pytest_reported();
            match (role, peer.pid) {
                (Role::Alone, _) => {}
                (Role::Controller, _) => roster.is_controller(&worker),
                (Role::Worker, pid) => {
                    roster.join(&worker, Kind::Process, crate::name::Lane(lane.unwrap_or(0)), pid, Timestamp::now());
                    if let Some(process) = pid.and_then(|pid| keeper::hold(pid).ok()) {
                        watch(api, worker, Arc::new(process), story.cloned());
                    }
                }
            }
        }
        Event::Begin { worker, test, attempt, at } => roster.test_began(&worker, &test, attempt, time(at)),
        Event::End { worker, test, outcome, message, at } => {
            roster.test_ended(&worker, &test, Some(&outcome), message.as_deref(), time(at));
        }
        Event::Goodbye { worker } => roster.said_goodbye(&worker),
        // Its lane is taken at once, before its controller asks for another; how it ended,
        // its process tells.
        Event::Lost { worker } if api.keeper.is_bound(&worker) => api.keeper.crashed(&worker),
        Event::Lost { worker } => lost(api, &worker, Ended::Unknown),
        Event::Listed { binary, tests } => roster.listed(&binary, tests),
        Event::Notice { text } => roster.notice(&text),
    }
}

/// A stream of events: it is closed when all of them were taken in.
type Story = tokio::sync::watch::Receiver<()>;

/// Waits for the end of a worker that is a process.
fn watch(api: &Arc<Api>, worker: String, process: Arc<AsyncFd<PidFd>>, story: Option<Story>) {
    api.keeper.bind(&worker, &process);
    let api = Arc::clone(api);
    tokio::spawn(async move {
        let how = keeper::ended(&process).await;
        // What it said before it died counts: in which test it was, for one. A child of its
        // may hold the stream open, so this has an end.
        if let Some(mut story) = story {
            let _ = tokio::time::timeout(LAST_WORDS, story.changed()).await;
        }
        lost(&api, &worker, how);
    });
}

fn lost(api: &Arc<Api>, worker: &str, how: Ended) {
    match api.roster.left(worker, how, Timestamp::now()) {
        Some(WorkerOutcome::Crashed) => api.keeper.crashed(worker),
        Some(_) => api.keeper.release(worker),
        None => {}
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordRequest {
    worker: String,
    test: Option<String>,
    kind: String,
    key: String,
}

async fn records(State(api): State<Arc<Api>>, body: Bytes) -> Result<Response, Problem> {
    let request: RecordRequest = read(&body)?;
    if request.kind.is_empty() || request.key.is_empty() {
        return Err(Problem::malformed("`kind` and `key` must not be empty"));
    }
    let registering = tokio::task::spawn_blocking(move || {
        api.roster.register(&request.worker, request.test.as_deref(), &request.kind, &request.key)
    });
    match registering.await {
        Ok(Ok(())) => Ok(StatusCode::CREATED.into_response()),
        Ok(Err(error)) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "ledger", error.to_string())),
        Err(error) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())),
    }
}

async fn runs(State(api): State<Arc<Api>>) -> Json<serde_json::Value> {
    Json(json!([{"run_id": api.run.id.to_string(), "tag": api.run.tag.as_str(), "state": "running"}]))
}
