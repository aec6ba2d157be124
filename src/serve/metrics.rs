//! Figures of a service, in the text form that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;

use super::Service;
use crate::api::pools::pools;
use crate::api::problem::Code;
use crate::desk::Desk;
use crate::lease::store::StoreError;

/// Upper ends of how long leases were waited for, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(&'static str, u16), u64>,
    granted: u64,
    refused: BTreeMap<&'static str, u64>,
    ended: BTreeMap<&'static str, u64>,
    /// How many were waited for so long, and no shorter.
    waits: [u64; BOUNDS.len() + 1],
    waited: Duration,
}

/// What is counted of a request.
#[derive(Debug)]
pub struct Counted {
    method: &'static str,
    is_lease: bool,
    is_ask: bool,
    began: Instant,
}

impl Counted {
    /// A request that comes now.
    pub fn begin(request: &Request) -> Self {
        let path = request.uri().path();
        // A method that somebody made up is no name of a series.
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let is_ask = method == "POST" && path == "/v1/leases";
        Self { method, is_lease: path.starts_with("/v1/leases"), is_ask, began: Instant::now() }
    }
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that was answered so.
    pub fn count(&self, request: &Counted, response: &Response) {
        let &Counted { method, is_lease, is_ask, began } = request;
        let took = began.elapsed();
        let status = response.status();
        let mut counts = self.counts();
        *counts.requests.entry((method, status.as_u16())).or_default() += 1;
        if is_ask && status == StatusCode::CREATED {
            counts.granted += 1;
            let place = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
            counts.waits[place] += 1;
            counts.waited += took;
        } else if is_ask && let Some(Code(code)) = response.extensions().get() {
            *counts.refused.entry(code).or_default() += 1;
        } else if is_lease && method == "DELETE" && status == StatusCode::NO_CONTENT {
            *counts.ended.entry("released").or_default() += 1;
        }
    }

    /// Counts leases that end without their holders' doing, as long as it is polled.
    pub async fn hear(&self, desk: &Desk) {
        let mut endings = desk.endings();
        loop {
            match endings.recv().await {
                Ok(lease) => *self.counts().ended.entry(lease.state.as_str()).or_default() += 1,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// All figures.
pub async fn text(service: &Service) -> Result<String, StoreError> {
    let seen = service.desk.ask(|session| {
        let waiting = session.board.waiting().count();
        (pools(session.board), session.board.held().len(), waiting)
    });
    let (pools, held, waiting) = seen.await?;
    let mut text = String::new();
    let about = |name: &str, kind: &str, help: &str| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    text += &about("isolane_pool_items", "gauge", "Items of a pool, by state.");
    let pools: Vec<&Value> = pools.as_array().into_iter().flatten().collect();
    for pool in &pools {
        for state in ["free", "held", "dirty", "quarantined"] {
            let _ =
                writeln!(text, "isolane_pool_items{{pool={},state=\"{state}\"}} {}", label(&pool["pool"]), pool[state]);
        }
    }
    text += &about("isolane_pool_waiters", "gauge", "Requests that wait for items of a pool.");
    for pool in &pools {
        let _ = writeln!(text, "isolane_pool_waiters{{pool={}}} {}", label(&pool["pool"]), pool["waiting"]);
    }
    text += &about("isolane_leases_held", "gauge", "Leases that are held.");
    let _ = writeln!(text, "isolane_leases_held {held}");
    text += &about("isolane_waiters", "gauge", "Requests that wait.");
    let _ = writeln!(text, "isolane_waiters {waiting}");
    let counts = service.metrics.counts();
    text += &about("isolane_leases_granted_total", "counter", "Leases that were granted here.");
    let _ = writeln!(text, "isolane_leases_granted_total {}", counts.granted);
    text += &about("isolane_leases_refused_total", "counter", "Requests for leases that were refused here, by code.");
    for (code, count) in &counts.refused {
        let _ = writeln!(text, "isolane_leases_refused_total{{code=\"{code}\"}} {count}");
    }
    text += &about("isolane_leases_ended_total", "counter", "Leases that ended, by how.");
    for how in ["released", "expired", "lost", "revoked"] {
        let count = counts.ended.get(how).copied().unwrap_or(0);
        let _ = writeln!(text, "isolane_leases_ended_total{{how=\"{how}\"}} {count}");
    }
    text += &about("isolane_lease_wait_seconds", "histogram", "How long granted leases were waited for.");
    let mut sum = 0;
    for (bound, count) in BOUNDS.iter().zip(counts.waits) {
        sum += count;
        let _ = writeln!(text, "isolane_lease_wait_seconds_bucket{{le=\"{bound}\"}} {sum}");
    }
    sum += counts.waits[BOUNDS.len()];
    let _ = writeln!(text, "isolane_lease_wait_seconds_bucket{{le=\"+Inf\"}} {sum}");
    let _ = writeln!(text, "isolane_lease_wait_seconds_sum {}", counts.waited.as_secs_f64());
    let _ = writeln!(text, "isolane_lease_wait_seconds_count {sum}");
    text += &about("isolane_requests_total", "counter", "Requests that were answered, by method and status.");
    for ((method, status), count) in &counts.requests {
        let _ = writeln!(text, "isolane_requests_total{{method=\"{method}\",status=\"{status}\"}} {count}");
    }
    Ok(text)
}

/// A value of a label: quoted, as the form has it.
fn label(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
