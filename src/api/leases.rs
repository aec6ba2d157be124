//! Leases over HTTP: asking, renewing, releasing, revoking, and looking at who has what.
//!
//! * `POST /v1/leases` asks for items, and waits for them where it says so. What a generator can
//!   make is made, and that is waited for in any case.
//! * `GET /v1/leases` lists the leases that are held, `GET /v1/waiters` those who wait and for whom.
//! * `GET /v1/leases/{id}?wait=30s` answers when the lease has ended, or after that time.
//! * `POST /v1/leases/{id}/renew`, `DELETE /v1/leases/{id}`, `POST /v1/leases/{id}/revoke`.
//! * `DELETE /v1/leases?run=…&worker=…&test=…&prefix=…` revokes all that these hold.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::desk::{Desk, Granted};
use crate::lease::ask::{self, Ask, Holder};
use crate::lease::board::Board;
use crate::lease::grant::{Lease, LeaseState};
use crate::lease::refusal::Refusal;
use crate::name::{Lane, RunId};

/// Completes who asks, as far as whoever listens at a door knows it: from the request's extensions.
pub type Introduce = dyn Fn(&axum::http::Extensions, &mut Holder) + Send + Sync;

/// Where leases are asked for.
#[derive(Clone)]
pub struct Counter {
    /// Who keeps them.
    pub desk: Desk,
    /// Who asks.
    pub introduce: Arc<Introduce>,
}

/// By which token a request comes that may not touch what came by others: in its extensions.
#[derive(Clone, Debug)]
pub struct Party(pub Arc<str>);

/// Whether a request may touch this lease; what is another's is not there for it.
fn check(board: &Board, id: &str, party: Option<Extension<Party>>) -> Result<(), Refusal> {
    let is_anothers = |Extension(Party(party))| {
        board.lease(id).is_some_and(|lease| lease.holder.party().is_some_and(|its| *its != *party))
    };
    if party.is_some_and(is_anothers) { Err(Refusal::LeaseUnknown { lease: id.to_owned() }) } else { Ok(()) }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counter").field("desk", &self.desk).finish_non_exhaustive()
    }
}

impl Counter {
    /// A counter at which everybody is believed.
    pub fn open(desk: Desk) -> Self {
        Self { desk, introduce: Arc::new(|_, _| ()) }
    }
}

/// The paths below `/v1/leases`.
pub fn routes(counter: Counter) -> Router {
    Router::new()
        .route("/v1/leases", post(acquire).get(list).delete(revoke_all))
        .route("/v1/leases/{id}", get(watch).delete(release))
        .route("/v1/leases/{id}/renew", post(renew))
        .route("/v1/leases/{id}/revoke", post(revoke))
        .route("/v1/waiters", get(waiters))
        .with_state(counter)
}

async fn acquire(State(counter): State<Counter>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, super::LONGEST_BODY).await.map_err(Problem::too_large)?;
    let mut ask = Ask::from_json(&body).map_err(Problem::malformed)?;
    (counter.introduce)(&parts.extensions, &mut ask.holder);
    let granted = counter.desk.acquire(ask).await??;
    Ok((StatusCode::CREATED, Json(document(&granted))).into_response())
}

/// What a holder gets: the attributes of each item, and what proves that they are its.
fn document(Granted { lease, attributes }: &Granted) -> Value {
    let items: Vec<Value> = attributes.iter().map(|its| json!(its.as_deref())).collect();
    let names: Vec<_> = lease.items.iter().map(|held| json!({"pool": &*held.pool, "item": &*held.name})).collect();
    json!({
        "id": lease.id, "items": items, "fence": lease.fence, "state": lease.state.as_str(),
        "acquired_at": lease.acquired_at.to_string(), "expires_at": lease.expires_at.to_string(), "names": names,
    })
}

/// A lease as the view `leases` has it: a row for each item.
pub fn rows(lease: &Lease) -> impl Iterator<Item = Value> {
    let row = |held: &crate::lease::grant::Held| {
        json!({
            "lease_id": lease.id, "run_id": lease.holder.run, "worker_id": lease.holder.worker,
            "test_id": lease.holder.test, "pool": &*held.pool, "item": &*held.name, "state": lease.state.as_str(),
            "acquired_at": lease.acquired_at.to_string(), "expires_at": lease.expires_at.to_string(),
            "ended_at": lease.ended_at.map(|at| at.to_string()), "fence": lease.fence,
        })
    };
    lease.items.iter().map(row).collect::<Vec<_>>().into_iter()
}

async fn list(State(counter): State<Counter>) -> Result<Json<Value>, Problem> {
    let held = counter.desk.ask(|session| session.board.held()).await?;
    Ok(Json(held.iter().flat_map(rows).collect()))
}

async fn waiters(State(counter): State<Counter>) -> Result<Json<Value>, Problem> {
    Ok(Json(counter.desk.ask(|session| waiting(session.board, usize::MAX)).await?))
}

/// Who waits, in the order of their coming, for what, and who has that; the first of them.
pub fn waiting(board: &Board, most: usize) -> Value {
    let row = |(place, waiter): (usize, &crate::lease::queue::Waiter)| {
        let pools: Vec<_> = waiter.ask.wants.iter().map(|want| want.pool.as_str()).collect();
        let conditions: Vec<_> = waiter.ask.wants.iter().map(|want| want.predicate.to_string()).collect();
        let like_it = waiter.ask.wants.iter().flat_map(|want| {
            board.items_of(&want.pool).filter(|item| want.predicate.holds(&item.attributes)).map(|item| item.key)
        });
        let holders: Vec<_> = like_it
            .flat_map(|key| board.obstacles(key))
            .take(20)
            .map(|it| json!({"item": it.item, "holder": it.holder.to_string(), "since": it.since.to_string(), "until": it.until.to_string()}))
            .collect();
        let holder = &waiter.ask.holder;
        json!({
            "place": place + 1, "run_id": holder.run, "worker_id": holder.worker, "test_id": holder.test,
            "client": holder.client, "pools": pools, "where": conditions.join(" "),
            "since": waiter.since.to_string(), "until": waiter.until.to_string(), "held_by": holders,
        })
    };
    board.waiting().take(most).enumerate().map(row).collect()
}

#[derive(Deserialize)]
struct WatchQuery {
    wait: Option<String>,
}

async fn watch(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Json<Value>, Problem> {
    let wait = query.wait.map_or(Ok(Duration::ZERO), |text| ask::duration(&text.into()).map_err(Problem::malformed))?;
    // Heard from before the first look on, so that no end is missed.
    let mut endings = counter.desk.endings();
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let its = id.clone();
        let renewed = counter.desk.ask(move |session| {
            session.recall(&its);
            session.board.standing(&its)
        });
        let lease = renewed.await??;
        let ended = async {
            loop {
                match endings.recv().await {
                    Ok(ended) if ended.id != id => {}
                    _ => return,
                }
            }
        };
        if tokio::time::timeout_at(deadline, ended).await.is_err() {
            return Ok(Json(json!({
                "id": lease.id, "fence": lease.fence, "state": lease.state.as_str(), "expires_at": lease.expires_at.to_string(),
            })));
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Proof {
    fence: Option<u64>,
    ttl: Option<Value>,
}

impl Proof {
    fn read(body: &[u8]) -> Result<Self, Problem> {
        if body.iter().all(u8::is_ascii_whitespace) { Ok(Self::default()) } else { super::read(body) }
    }
}

async fn renew(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    party: Option<Extension<Party>>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let Proof { fence, ttl } = Proof::read(&body)?;
    let ttl =
        ttl.filter(|ttl| !ttl.is_null()).map(|ttl| ask::duration(&ttl)).transpose().map_err(Problem::malformed)?;
    if ttl.is_some_and(|ttl| ttl.is_zero()) {
        return Err(Problem::malformed("`ttl` takes a time above 0"));
    }
    let renewed = counter.desk.ask(move |session| {
        session.recall(&id);
        check(session.board, &id, party)?;
        session.board.renew(&id, fence, ttl).map(|lease| Granted::of(lease, session.board))
    });
    Ok(Json(document(&renewed.await??)))
}

#[derive(Deserialize)]
struct FenceQuery {
    fence: Option<u64>,
}

async fn release(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    Query(query): Query<FenceQuery>,
    party: Option<Extension<Party>>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let fence = query.fence.or(Proof::read(&body)?.fence);
    let released = counter.desk.ask(move |session| {
        session.recall(&id);
        check(session.board, &id, party)?;
        session.board.release(&id, fence)
    });
    released.await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn revoke(State(counter): State<Counter>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let revoked = counter.desk.ask(move |session| {
        session.recall(&id);
        session.board.revoke(&id)
    });
    revoked.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose leases are revoked: all that is named must be so.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    run: Option<String>,
    worker: Option<String>,
    test: Option<String>,
    prefix: Option<String>,
}

impl Whose {
    fn is(&self, holder: &Holder) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let run_id = || holder.run.as_deref().and_then(RunId::parse);
        // A run by its tag as well, or by how its id begins.
        let is_run = self.run.as_ref().is_none_or(|run| {
            holder.run.as_deref().is_some_and(|id| !run.is_empty() && id.starts_with(run.as_str()))
                || run_id().is_some_and(|id| id.tag().as_str() == run)
        });
        let is_prefix = self.prefix.as_ref().is_none_or(|prefix| {
            run_id().zip(holder.lane).is_some_and(|(id, lane)| Lane(lane).prefix(&id.tag()) == *prefix)
        });
        is_run && is_prefix && is(&self.worker, &holder.worker) && is(&self.test, &holder.test)
    }
}

async fn revoke_all(State(counter): State<Counter>, Query(whose): Query<Whose>) -> Result<Json<Value>, Problem> {
    if whose.run.is_none() && whose.worker.is_none() && whose.test.is_none() && whose.prefix.is_none() {
        return Err(Problem::malformed("name a run, a worker, a test or a prefix"));
    }
    let revoked = counter.desk.ask(move |session| {
        session.board.abandon_all(|ask| whose.is(&ask.holder));
        session.board.end_all(LeaseState::Revoked, |lease| whose.is(&lease.holder))
    });
    Ok(Json(json!({"revoked": revoked.await?})))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self { details: refusal.details(), ..Self::new(status, refusal.code(), refusal.to_string()) }
    }
}
