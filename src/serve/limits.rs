//! What keeps one caller from being a burden to all: bodies end, and come in time; and at the
//! end, nobody is waited for who waits.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::watch;

use crate::api::problem::Problem;

/// The longest body of a request.
const LONGEST_BODY: usize = 1 << 20;
/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is read and thrown away of a body that is too long, so that its sender hears the answer
/// and no broken connection.
const LINGER: usize = 16 << 20;
/// And how long.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How long after the stop a request that may wait can still get what is there.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// Reads the body of a request before anybody works on it.
pub async fn bodies(request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > LONGEST_BODY as u64 {
        linger(request);
        return too_large();
    }
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(PATIENCE, collect(body)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(problem)) => return problem,
        Err(_) => {
            let detail = format!("the request's body did not come within {} s", PATIENCE.as_secs());
            return Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", detail).into_response();
        }
    };
    next.run(Request::from_parts(parts, Body::from(body))).await
}

async fn collect(mut body: Body) -> Result<Vec<u8>, Response> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let broken = |error| Problem::malformed(format!("the request's body breaks off: {error}")).into_response();
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() + data.len() > LONGEST_BODY {
            linger(Request::new(body));
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn too_large() -> Response {
    let mut response = Problem::too_large(format!("at most {LONGEST_BODY} bytes are taken")).into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Takes the body of a request that nobody wants, for a while.
pub fn linger(request: Request) {
    // Who has sent no byte yet, and asks whether to, is told by the answer itself.
    let is_asked = request.headers().contains_key(header::EXPECT);
    if !is_asked && request.body().size_hint().upper() != Some(0) {
        tokio::spawn(tokio::time::timeout(LINGER_TIME, discard(request.into_body())));
    }
}

async fn discard(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, hyper::body::Buf::remaining);
        if read > LINGER {
            return;
        }
    }
}

/// Ends requests that wait for something when the service stops.
pub async fn waits(stopping: &watch::Receiver<bool>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_lease = path.starts_with("/v1/leases");
    if !(is_lease && matches!(*request.method(), Method::GET | Method::POST)) {
        return next.run(request).await;
    }
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = stopped(stopping.clone()) => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the service stops; ask again");
            problem.into_response()
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    if stopping.wait_for(|is| *is).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LAST_MOMENT).await;
}
