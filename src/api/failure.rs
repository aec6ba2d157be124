//! What is known of the rows that a failure is about: asked for by a shim at the moment of the
//! failure, and looked up from the message of a test where no shim asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;

use super::Api;
use super::event::LAST_WORDS;
use crate::clock::Timestamp;
use crate::collision::Pattern;
use crate::failure::{self, Troubles};
use crate::harvest;
use crate::ledger::Durability;
use crate::ledger::collision::{self, Named};
use crate::name::{Lane, Place};
use crate::settings::Isolation;
use crate::story::{self, Failed};

/// How many failures of a run are told of that name no key.
const MOST: usize = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailureRequest {
    worker: String,
    test: String,
    /// All that the exception says.
    error: String,
    /// In seconds since 1970.
    at: Option<f64>,
}

/// Looks the rows up that `request` is about, and tells their story.
pub async fn story_of(api: Arc<Api>, request: FailureRequest) -> Vec<String> {
    // In lanes of their own tests do not meet: only an error that names a key has a story. And
    // where hundreds fail, the first of them tell it.
    let troubles = failure::read(&request.error);
    let is_shared = api.run.settings.isolation == Isolation::Shared && api.told.fetch_add(1, Ordering::Relaxed) < MOST;
    if !api.run.is_watched() || (troubles == Troubles::default() && !is_shared) {
        return Vec::new();
    }
    let at = request.at.map_or_else(Timestamp::now, Timestamp::from_seconds);
    let mut waited = Duration::ZERO;
    let (number, lane) = loop {
        // What others wrote at the same moment is there then, and the beginnings of their tests.
        // So is that of this one, which came another way and was not waited for.
        tokio::time::sleep(harvest::MARGIN).await;
        waited += harvest::MARGIN;
        match api.roster.number_of(&request.worker, &request.test) {
            Some(known) => break known,
            None if waited >= LAST_WORDS => return Vec::new(),
            None => {}
        }
    };
    let told = tokio::task::spawn_blocking(move || {
        harvest::around(&api.run, Place::Lane(lane), harvest::MARGIN);
        name(&api, number, lane, &troubles, at);
        let run = api.run.key;
        let told = api.run.writer.commit(Durability::Process, move |db| {
            let failed = Failed { run, number, id: &request.test, worker: &request.worker, at: at.micros() };
            story::tell(db, &failed)
        });
        told.unwrap_or_default()
    });
    told.await.unwrap_or_default()
}

/// Notes which rows an error names.
pub fn name(api: &Api, test: i64, lane: Lane, troubles: &Troubles, at: Timestamp) {
    let mut named: Vec<Named> = Vec::new();
    for trouble in &troubles.keys {
        for provider in &api.run.providers {
            let rows = provider.rows_named(Place::Lane(lane), trouble).unwrap_or_default();
            let pattern = trouble.pattern();
            named.extend(rows.into_iter().map(|row| Named { pattern, row: Some((row.kind, row.key)), pid: None }));
        }
    }
    named.extend(troubles.survivors.iter().map(|pid| Named { pattern: Pattern::Deadlock, row: None, pid: Some(*pid) }));
    let run = api.run.key;
    api.run.writer.tell(move |db| named.iter().try_for_each(|one| collision::name(db, run, test, one, at.micros())));
}
