//! The run's API: HTTP and JSON over a Unix socket that only the user can reach.
//! Errors are problem documents (RFC 9457) with a stable `code`.
//!
//! * `POST /v1/lanes` gives the caller's worker its lane.
//! * `POST /v1/tests` takes events: begins and ends of tests, comings and goings of
//!   workers; one, an array of them, or a story (see [`story`]).
//! * `POST /v1/records` enters an outside thing.
//! * `POST /v1/failures` tells what is known of the rows that a failed test's error is about.
//! * `POST /v1/renewals` makes a worker's lane as its template again.
//! * [`leases`] and [`pools`] are what test data is leased by; [`runs`] tells of runs.
//! * `GET /openapi.json` describes all of it ([`openapi`]).

mod event;
mod failure;
mod forward;
pub mod holders;
pub mod leases;
pub mod openapi;
pub mod pools;
pub mod problem;
pub mod runs;
mod story;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;

use crate::clock::Timestamp;
use crate::desk::Desk;
use crate::error::one_line;
use crate::keeper::{self, Grant, Keeper};
use crate::os::process::Ended;
use crate::remote::Remote;
use crate::roster::{Kind, Roster};
use crate::run::Run;
use crate::stock::Stock;

use event::Event;
use failure::FailureRequest;
use leases::Counter;
use problem::Problem;
pub use story::Stories;
use story::Story;

/// The answer to `POST /v1/lanes` for callers without a JSON reader: variables as
/// `env -0` prints them.
const PLAIN_ENVIRONMENT: &str = "application/x-isolane-env";
/// The longest array of events, in bytes.
const LONGEST_BODY: usize = 1 << 20;

/// How long a signal that ended a test may take to be known here.
const HEARSAY: Duration = Duration::from_millis(10);

/// What the API answers from.
#[derive(Debug)]
pub struct Api {
    /// The run.
    pub run: Arc<Run>,
    /// Its lanes.
    pub keeper: Arc<Keeper>,
    /// Its workers and tests.
    pub roster: Arc<Roster>,
    /// Its pools and leases.
    pub desk: Desk,
    /// Where they are instead.
    pub remote: Option<Arc<Remote>>,
    /// What runs its pools' commands.
    pub stock: Stock,
    /// Its processes that are telling.
    pub stories: Stories,
    /// How many failures were told of.
    pub told: AtomicUsize,
}

impl Api {
    /// A worker's process is gone: what it had leased is free again before anybody else can be
    /// called so.
    pub async fn holder_died(&self, worker: &str) {
        let (run, worker) = (self.run.id.to_string(), worker.to_owned());
        if let Some(remote) = &self.remote {
            // What cannot be told now is told at the end of the run, or time tells.
            let _ = remote.ended(&run, Some(&worker)).await;
            return;
        }
        // Most runs lease nothing, and nothing is written for them.
        if !self.desk.is_used() {
            return;
        }
        self.desk.holder_died(move |holder| {
            holder.run.as_deref() == Some(run.as_str()) && holder.worker.as_deref() == Some(worker.as_str())
        });
    }
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
    let introduce = introduction(&api);
    let leases = if let Some(remote) = &api.remote {
        forward::routes(Arc::clone(remote), introduce)
    } else {
        let counter = Counter { desk: api.desk.clone(), introduce };
        leases::routes(counter.clone()).merge(pools::routes(counter)).merge(pools::fill_routes(api.stock.clone()))
    };
    let ledger = api.run.settings.ledger.clone();
    let router = Router::new()
        .route("/v1/lanes", post(lanes))
        .route("/v1/tests", post(tests))
        .route("/v1/records", post(records))
        .route("/v1/failures", post(failures))
        .route("/v1/renewals", post(renewals))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "unknown-path", "there is nothing at this path") })
        .with_state(api)
        .merge(leases)
        .merge(runs::routes(ledger))
        .merge(openapi::routes())
        .method_not_allowed_fallback(|| async { Problem::of(StatusCode::METHOD_NOT_ALLOWED) });
    axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await
}

/// Everybody at this door is of the run: by what they say, or by whose process they are.
fn introduction(api: &Arc<Api>) -> Arc<leases::Introduce> {
    let (roster, run) = (Arc::clone(&api.roster), api.run.id.to_string());
    Arc::new(move |extensions, holder| {
        let pid = extensions.get::<ConnectInfo<Peer>>().and_then(|ConnectInfo(peer)| peer.pid);
        if holder.worker.is_none() {
            holder.worker = pid.and_then(|pid| roster.worker_of(pid));
        }
        if let Some(worker) = &holder.worker {
            holder.test = holder.test.take().or_else(|| roster.test_of(worker));
            holder.lane = roster.lane_of(worker).map(|lane| lane.0);
        }
        holder.run = Some(run.clone());
    })
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
        // The run may end with its last test, and waits to hear of that.
        let telling = api.stories.one_more();
        if matches!(how, Ended::Signalled(_)) {
            // A terminal's signal reaches the test and us at once, and we may hear of its end first.
            tokio::time::sleep(HEARSAY).await;
        }
        if let Some(test) = test {
            api.roster.test_exited(&worker, &test, how, Timestamp::now());
        }
        drop(telling);
        // Before another test can come to the same place, with the same name.
        api.holder_died(&worker).await;
        match how {
            Ended::Exited(_) if api.run.is_fresh_for_tests() => {
                let renewed = api.keeper.release_renewed(&holder).await;
                api.roster.left_behind(&worker, renewed);
            }
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

async fn tests(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
) -> Result<Response, Problem> {
    if let Some(story) = Story::of(&mut request) {
        return Ok(story.follow(api, peer.pid));
    }
    let body = axum::body::to_bytes(request.into_body(), LONGEST_BODY).await.map_err(Problem::malformed)?;
    let events = match read(&body)? {
        Batch::Many(events) => events,
        Batch::One(event) => vec![*event],
    };
    for event in events {
        event.happened(&api, peer.pid, None);
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "an event, or a list of events, of tests")]
enum Batch {
    Many(Vec<Event>),
    One(Box<Event>),
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

async fn failures(State(api): State<Arc<Api>>, body: Bytes) -> Result<Response, Problem> {
    let lines = failure::story_of(api, read::<FailureRequest>(&body)?).await;
    Ok(Json(json!({"story": lines.join("\n")})).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewalRequest {
    worker: String,
}

async fn renewals(State(api): State<Arc<Api>>, body: Bytes) -> Result<Response, Problem> {
    let RenewalRequest { worker } = read(&body)?;
    let renewed = api
        .keeper
        .renew(&worker)
        .await
        .map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-renewed", one_line(&error)))?;
    api.roster.left_behind(&worker, renewed);
    Ok(StatusCode::NO_CONTENT.into_response())
}
