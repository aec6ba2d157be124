//! Leases at the door of a run that uses a service: what is asked here is asked there, with who
//! asks filled in. Who goes away here has gone away there.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::Value;

use super::leases::Introduce;
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::lease::ask::Ask;
use crate::remote::{Away, Remote, Reply};

/// What is passed back of an answer, besides status and body.
const PASSED: [HeaderName; 2] = [header::CONTENT_TYPE, header::RETRY_AFTER];

/// The way there.
#[derive(Clone)]
struct Way {
    remote: Arc<Remote>,
    introduce: Arc<Introduce>,
}

/// The paths that are asked for there.
pub fn routes(remote: Arc<Remote>, introduce: Arc<Introduce>) -> Router {
    Router::new()
        .route("/v1/leases", any(pass))
        .route("/v1/leases/{*rest}", any(pass))
        .route("/v1/waiters", any(pass))
        .route("/v1/pools", any(pass))
        .route("/v1/pools/{*rest}", any(pass))
        .with_state(Way { remote, introduce })
}

async fn pass(State(way): State<Way>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let mut body = axum::body::to_bytes(body, super::LONGEST_BODY).await.map_err(Problem::too_large)?;
    let path = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |path| path.as_str());
    let is_ask = parts.method == Method::POST && parts.uri.path() == "/v1/leases";
    let mut is_kept = false;
    if is_ask {
        let mut ask = Ask::from_json(&body).map_err(Problem::malformed)?;
        (way.introduce)(&parts.extensions, &mut ask.holder);
        is_kept = ask.ttl.is_none();
        body = ask.to_json().to_string().into();
    }
    let reply = way.remote.call(parts.method, path, body).await?;
    if is_kept && reply.status == StatusCode::CREATED.as_u16() {
        keep(&way.remote, &reply.json());
    }
    Ok(answer(reply))
}

/// A lease without a time of its own lives as long as its holder: the service hears of that.
fn keep(remote: &Remote, lease: &Value) {
    let time = |name: &str| lease[name].as_str().and_then(Timestamp::parse);
    if let (Some(since), Some(until)) = (time("acquired_at"), time("expires_at")) {
        remote.keeps(since.age(until) / 3);
    }
}

fn answer(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = (status, reply.body).into_response();
    for name in PASSED {
        match reply.headers.get(&name) {
            Some(value) => response.headers_mut().insert(name, value.clone()),
            None => response.headers_mut().remove(name),
        };
    }
    response
}

impl From<Away> for Problem {
    fn from(away: Away) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "leases-away", away.to_string())
    }
}
