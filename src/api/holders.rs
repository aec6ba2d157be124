//! Holders that are somewhere else: a run tells a service that it lives, or that one of its
//! workers does not any more.
//!
//! * `POST /v1/holders/alive` with `{"run":…}` renews what the run keeps as long as it lives.
//! * `POST /v1/holders/ended` with `{"run":…,"worker":…}` ends what they hold, as lost; without
//!   a worker, all of the run.
//!
//! Both are about leases that were taken with the caller's own token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::leases::Counter;
use super::problem::Problem;
use crate::desk::end_all;
use crate::lease::ask::Holder;
use crate::lease::grant::LeaseState;

/// The paths below `/v1/holders`.
pub fn routes(counter: Counter) -> Router {
    Router::new().route("/v1/holders/alive", post(alive)).route("/v1/holders/ended", post(ended)).with_state(counter)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alive {
    run: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ended {
    run: String,
    worker: Option<String>,
}

/// Whom a request is about, and by whose token.
struct Whose {
    run: String,
    worker: Option<String>,
    token: Option<Arc<str>>,
}

impl Whose {
    fn is(&self, holder: &Holder) -> bool {
        let is_worker = self.worker.is_none() || self.worker == holder.worker;
        self.token.as_deref() == holder.party() && holder.run.as_deref() == Some(self.run.as_str()) && is_worker
    }
}

async fn read<T: serde::de::DeserializeOwned>(
    counter: &Counter,
    request: Request,
) -> Result<(T, Option<Arc<str>>), Problem> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, super::LONGEST_BODY).await.map_err(Problem::too_large)?;
    let mut caller = Holder::default();
    (counter.introduce)(&parts.extensions, &mut caller);
    Ok((super::read(&body)?, caller.client.map(Into::into)))
}

async fn alive(State(counter): State<Counter>, request: Request) -> Result<Json<Value>, Problem> {
    let (Alive { run }, token) = read(&counter, request).await?;
    let whose = Whose { run, worker: None, token };
    let (kept, again) =
        counter.desk.ask(move |session| session.board.keep_all(|lease| whose.is(&lease.holder))).await?;
    let again = again.map(|again| u64::try_from(again.as_millis()).unwrap_or(u64::MAX));
    Ok(Json(json!({"kept": kept, "again_in_ms": again})))
}

async fn ended(State(counter): State<Counter>, request: Request) -> Result<Json<Value>, Problem> {
    let (Ended { run, worker }, token) = read(&counter, request).await?;
    let whose = Whose { run, worker, token };
    let ended = counter.desk.ask(move |session| {
        let is_its = |holder: &Holder| whose.is(holder);
        let before = session.board.held().len();
        end_all(session.board, LeaseState::Lost, &is_its);
        before - session.board.held().len()
    });
    Ok(Json(json!({"ended": ended.await?})))
}
