//! Pools over HTTP: what there is, and what is added and taken away.
//!
//! * `GET /v1/pools` lists them, `DELETE /v1/pools/{pool}` removes one.
//! * `GET /v1/pools/{pool}/items` lists its items, `POST` adds some.
//! * `DELETE /v1/pools/{pool}/items/{item}` retires one.
//! * `POST /v1/pools/{pool}/fill` has its generator make some: `{"count":3,"input":{"tier":"gold"}}`.
//!
//! Commands of a pool come from a configuration and never over HTTP.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::leases::Counter;
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::lease::board::Board;
use crate::lease::definition::{Definition, Usage};
use crate::lease::item::{ItemState, attributes_of};
use crate::stock::Stock;

/// The paths below `/v1/pools`.
pub fn routes(counter: Counter) -> Router {
    Router::new()
        .route("/v1/pools", get(list))
        .route("/v1/pools/{pool}", delete(remove))
        .route("/v1/pools/{pool}/items", get(items).post(add))
        .route("/v1/pools/{pool}/items/{item}", delete(retire))
        .with_state(counter)
}

/// The path at which a stock makes items.
pub fn fill_routes(stock: Stock) -> Router {
    Router::new().route("/v1/pools/{pool}/fill", post(fill)).with_state(stock)
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object such as {\"count\": 2}")]
struct FillRequest {
    count: u32,
    input: Map<String, Value>,
}

impl Default for FillRequest {
    fn default() -> Self {
        Self { count: 1, input: Map::new() }
    }
}

async fn fill(State(stock): State<Stock>, Path(pool): Path<String>, body: Bytes) -> Result<Response, Problem> {
    let request: FillRequest =
        if body.iter().all(u8::is_ascii_whitespace) { FillRequest::default() } else { super::read(&body)? };
    let made = stock.fill(&pool, request.count, &request.input).await??;
    Ok((StatusCode::CREATED, Json(json!({"made": made.len(), "items": made}))).into_response())
}

async fn list(State(counter): State<Counter>) -> Result<Json<Value>, Problem> {
    Ok(Json(counter.desk.ask(|session| pools(session.board)).await?))
}

/// All pools, with how many items stand how.
pub fn pools(board: &Board) -> Value {
    let row = |name: &str, definition: &Definition| {
        let mut counts = [0; 4];
        for item in board.items_of(name) {
            let place = match item.state {
                ItemState::Free if item.places(definition) > 0 => 0,
                ItemState::Free => 1,
                ItemState::Dirty | ItemState::Resetting => 2,
                ItemState::Quarantined | ItemState::Retiring | ItemState::Retired => 3,
            };
            counts[place] += 1;
        }
        let waiting = board.waiting().filter(|it| it.ask.wants.iter().any(|want| want.pool == name)).count();
        json!({
            "pool": name, "use": usage(definition.usage), "items": counts.iter().sum::<usize>(), "free": counts[0],
            "held": counts[1], "dirty": counts[2], "quarantined": counts[3], "waiting": waiting,
            "source": source(definition), "ttl_s": definition.ttl(), "trouble": trouble(board, definition),
        })
    };
    board.pools().map(|pool| row(&pool.name, &pool.definition)).collect()
}

/// What is wrong with a pool's generator.
fn trouble(board: &Board, definition: &Definition) -> Option<String> {
    let trouble = definition.trouble.as_ref()?;
    let until = Timestamp(trouble.until);
    Some(match trouble.failures {
        0 => format!("makes none yet: {}", trouble.why),
        n if trouble.is_pause(board.now()) => {
            format!("pauses until {until} after {n} failures in a row: {}", trouble.why)
        }
        n => format!("failures in a row: {n}: {}", trouble.why),
    })
}

/// How many may hold an item, in a word.
pub fn usage(usage: Usage) -> String {
    match usage {
        Usage::Exclusive => "exclusive".to_owned(),
        Usage::Consume => "consume".to_owned(),
        Usage::Shared(n) => format!("shared({n})"),
    }
}

/// Where its items come from, in a word.
pub fn source(definition: &Definition) -> &'static str {
    match (&definition.table, &definition.generator) {
        (Some(_), _) => "table",
        (None, Some(_)) => "generator",
        (None, None) => "items",
    }
}

async fn items(State(counter): State<Counter>, Path(pool): Path<String>) -> Result<Json<Value>, Problem> {
    let found = counter.desk.ask(move |session| {
        let board = &session.board;
        let definition = board.definition(&pool).ok_or_else(|| board.no_pool(&pool))?;
        let row = |item: &crate::lease::item::Item| {
            let holders: Vec<_> = board
                .obstacles(item.key)
                .into_iter()
                .map(|it| json!({"lease_id": it.lease, "run_id": it.holder.run, "worker_id": it.holder.worker, "test_id": it.holder.test, "client": it.holder.client, "since": it.since.to_string(), "until": it.until.to_string()}))
                .collect();
            let state = if item.held > 0 { "leased" } else { item.state.as_str() };
            json!({
                "pool": &*item.pool, "item": &*item.name, "attributes": &*item.attributes, "state": state,
                "places": item.places(definition), "fence": item.fence, "failures": item.failures, "note": item.note, "holders": holders,
            })
        };
        Ok::<_, crate::lease::refusal::Refusal>(board.items_of(&pool).map(row).collect::<Value>())
    });
    Ok(Json(found.await??))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AddRequest {
    items: Vec<Value>,
    #[serde(rename = "use")]
    usage: Option<Usage>,
    ttl: Option<Value>,
}

async fn add(State(counter): State<Counter>, Path(pool): Path<String>, body: Bytes) -> Result<Response, Problem> {
    let request = match super::read::<Value>(&body)? {
        Value::Array(items) => AddRequest { items, ..AddRequest::default() },
        Value::Object(object) if object.contains_key("items") => {
            serde_json::from_value(Value::Object(object)).map_err(Problem::malformed)?
        }
        item => AddRequest { items: vec![item], ..AddRequest::default() },
    };
    if pool.trim().is_empty() || pool.len() > 200 || pool.chars().any(char::is_control) {
        return Err(Problem::malformed("a pool's name has 1 to 200 characters, and no control characters"));
    }
    let items: Vec<_> =
        request.items.into_iter().map(attributes_of).collect::<Result<_, _>>().map_err(Problem::malformed)?;
    let ttl = request.ttl.map(|ttl| crate::lease::ask::duration(&ttl)).transpose().map_err(Problem::malformed)?;
    if request.usage == Some(Usage::Shared(0)) {
        return Err(Problem::malformed("`shared` takes a number from 1 on"));
    }
    if (request.usage.is_some() || ttl.is_some()) && counter.desk.is_configured(&pool) {
        return Err(Problem::malformed(format!(
            "pool {pool} is defined in isolane.toml: how its items may be used, and for how long, is changed there"
        )));
    }
    let added = counter.desk.ask(move |session| {
        let board = &mut *session.board;
        let known = board.definition(&pool).cloned();
        if known.is_none() || request.usage.is_some() || ttl.is_some() {
            let mut definition = known.unwrap_or_default();
            definition.usage = request.usage.unwrap_or(definition.usage);
            definition.ttl = ttl.map(|ttl| ttl.as_secs().max(1)).or(definition.ttl);
            board.define(&pool, &definition);
        }
        board.add(&pool, items, None)
    });
    Ok((StatusCode::CREATED, Json(json!({"added": added.await?}))).into_response())
}

async fn retire(
    State(counter): State<Counter>,
    Path((pool, item)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    counter.desk.ask(move |session| session.board.retire(&pool, &[item])).await??;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct RemoveQuery {
    #[serde(default)]
    when_released: bool,
}

async fn remove(
    State(counter): State<Counter>,
    Path(pool): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, Problem> {
    counter.desk.ask(move |session| session.board.remove_pool(&pool, query.when_released)).await??;
    Ok(StatusCode::NO_CONTENT)
}
