//! Runs over HTTP, as the ledger has them: rows with the names of the views' columns.
//!
//! * `GET /v1/runs?limit=100` lists the latest runs, `GET /v1/runs/{id}` tells of one, with its
//!   workers and how many there are of what.
//! * `GET /v1/collisions?run=…&limit=1000` lists collisions, worst first; of the latest run where
//!   none is named.

use std::path::{Path as FilePath, PathBuf};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::error::one_line;
use crate::ledger::reading::{Found, Question, Reading};

/// How many rows there are at most.
const MOST: u32 = 10_000;

/// The paths below `/v1/runs` and `/v1/collisions`, of the ledger at this path.
pub fn routes(ledger: PathBuf) -> Router {
    Router::new()
        .route("/v1/runs", get(runs))
        .route("/v1/runs/{id}", get(run))
        .route("/v1/collisions", get(collisions))
        .with_state(ledger)
}

#[derive(Deserialize)]
struct Wanted {
    run: Option<String>,
    limit: Option<u32>,
}

async fn runs(State(ledger): State<PathBuf>, Query(wanted): Query<Wanted>) -> Result<Json<Value>, Problem> {
    let most = wanted.limit.unwrap_or(100).min(MOST);
    look(ledger, move |reading| Ok(rows(reading, Question::RUNS, "", most)?)).await
}

async fn run(State(ledger): State<PathBuf>, Path(which): Path<String>) -> Result<Json<Value>, Problem> {
    look(ledger, move |reading| {
        let id = meant(reading, Some(&which))?.ok_or_else(|| unknown(&which))?;
        let mut run = reading.one(Question::RUN, &id).map_err(Trouble::Ledger)?;
        if let Value::Object(run) = &mut run {
            run.insert("workers".to_owned(), rows(reading, Question::WORKERS, &id, MOST)?);
            run.insert("counts".to_owned(), reading.one(Question::COUNTS, &id).map_err(Trouble::Ledger)?);
        }
        Ok(run)
    })
    .await
}

async fn collisions(State(ledger): State<PathBuf>, Query(wanted): Query<Wanted>) -> Result<Json<Value>, Problem> {
    let most = wanted.limit.unwrap_or(1000).min(MOST);
    look(ledger, move |reading| match (meant(reading, wanted.run.as_deref())?, wanted.run) {
        (Some(id), _) => Ok(rows(reading, Question::COLLISIONS, &id, most)?),
        (None, Some(which)) => Err(unknown(&which)),
        (None, None) => Ok(Value::Array(Vec::new())),
    })
    .await
}

/// Why there is no answer.
enum Trouble {
    Ledger(anyhow::Error),
    Run(StatusCode, &'static str, String),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Ledger(error)
    }
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Ledger(error) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "ledger", one_line(&error)),
            Trouble::Run(status, code, detail) => Self::new(status, code, detail),
        }
    }
}

fn unknown(which: &str) -> Trouble {
    Trouble::Run(StatusCode::NOT_FOUND, "run-unknown", format!("the ledger has no run {which}"))
}

fn meant(reading: &Reading, which: Option<&str>) -> Result<Option<String>, Trouble> {
    match reading.find(which)? {
        Found::One(id) => Ok(Some(id)),
        Found::None => Ok(None),
        Found::Many(runs) => {
            let detail = format!("more than one run begins so: {}", runs.join(", "));
            Err(Trouble::Run(StatusCode::CONFLICT, "run-ambiguous", detail))
        }
    }
}

fn rows(reading: &Reading, question: Question, run: &str, most: u32) -> anyhow::Result<Value> {
    let mut found = Vec::new();
    reading.each(question, run, most, |names, values| {
        let row: Map<_, _> = names.iter().map(|name| (*name).to_owned()).zip(values).collect();
        found.push(Value::Object(row));
        Ok(())
    })?;
    Ok(found.into())
}

/// Reads the ledger where nobody waits for it.
async fn look(
    ledger: PathBuf,
    answer: impl FnOnce(&Reading) -> Result<Value, Trouble> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let path: PathBuf = ledger;
    let open = |path: &FilePath| Reading::open(path).map_err(Trouble::Ledger);
    let reading = tokio::task::spawn_blocking(move || open(&path).and_then(|reading| answer(&reading)));
    let internal =
        |error: tokio::task::JoinError| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string());
    Ok(Json(reading.await.map_err(internal)??))
}
