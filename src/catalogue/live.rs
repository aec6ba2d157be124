//! What changes on a page, told to whoever looks at it (server-sent events).
//!
//! An event `parts` carries `{"all": [id, …], "changed": {id: html}}`, at most twice a second;
//! `over` says that whoever looks has to log in again.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Hall;
use super::sheet::{Look, Page};
use super::visit::Guest;
use crate::lease::grant::Lease;

/// How far apart two events are at least.
const APART: Duration = Duration::from_millis(500);
/// When it is looked anew where nothing was heard: tests begin and forecasts change.
const ANYWAY: Duration = Duration::from_secs(2);
/// When something is said so that nobody in between thinks that the connection is dead.
const ALIVE: Duration = Duration::from_secs(15);

/// Somebody who looks at a page.
struct Watcher {
    hall: Arc<Hall>,
    guest: Guest,
    path: String,
    page: Page,
    changes: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    /// As long as somebody listens here, the desk hears what other processes do.
    _endings: broadcast::Receiver<Arc<Lease>>,
    last: Instant,
    /// What was sent of each part.
    sent: HashMap<String, [u8; 32]>,
    all: Vec<String>,
    is_over: bool,
}

/// `GET /live?page=/pools/acct&find=gold`
pub(super) async fn live(
    State(hall): State<Arc<Hall>>,
    Query(query): Query<HashMap<String, String>>,
    guest: Result<Guest, Response>,
) -> Response {
    // A stream is not sent elsewhere: the page itself has to go.
    let Ok(guest) = guest else { return StatusCode::UNAUTHORIZED.into_response() };
    let path = query.get("page").cloned().unwrap_or_else(|| "/".to_owned());
    let find = query.get("find").map(String::as_str).unwrap_or_default();
    let Some(page) = Page::at(&path, find) else { return StatusCode::NOT_FOUND.into_response() };
    let desk = &hall.catalogue.desk;
    let endings = desk.endings();
    desk.listen();
    let (changes, stopping) = (desk.changes(), hall.catalogue.stopping.clone());
    let watcher = Watcher {
        changes,
        stopping,
        _endings: endings,
        last: Instant::now(),
        sent: HashMap::new(),
        all: Vec::new(),
        is_over: false,
        hall,
        guest,
        path,
        page,
    };
    Sse::new(watcher.events()).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

impl Watcher {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((Ok(event), watcher))
        })
    }

    /// The next event, when there is one; nothing when it is all over.
    async fn next(&mut self) -> Option<Event> {
        let mut is_first = self.all.is_empty();
        while !self.is_over {
            if !std::mem::take(&mut is_first) {
                let heard = async {
                    let _ = timeout(ANYWAY, self.changes.changed()).await;
                    sleep_until(self.last + APART).await;
                };
                tokio::select! {
                    () = heard => {}
                    _ = self.stopping.wait_for(|is| *is) => return None,
                }
            }
            self.last = Instant::now();
            self.changes.mark_unchanged();
            if !self.may_look().await {
                self.is_over = true;
                return Some(Event::default().event("over").data(""));
            }
            if let Some(event) = self.look().await {
                return Some(event);
            }
        }
        None
    }

    /// Whether whoever looks may do so still.
    async fn may_look(&self) -> bool {
        let seat = &self.guest.seat;
        if !self.hall.sessions.is_there(&seat.key) {
            return false;
        }
        // What cannot be told now was so a moment ago.
        self.hall.who_has(&seat.token).await.map_or(true, |visitor| visitor.as_ref() == Some(&self.guest.visitor))
    }

    /// What has changed since the last look, if anything has.
    async fn look(&mut self) -> Option<Event> {
        // A store that is away comes back; the page shows what it was.
        let sight = self.hall.glance(&self.page).await.ok()?;
        let Some(sight) = sight else {
            self.is_over = true;
            return Some(Event::default().event("over").data(""));
        };
        let Guest { visitor, seat } = &self.guest;
        let look = Look { visitor, proof: &seat.proof, back: &self.path, sight: &sight };
        let parts = self.hall.parts(&self.page, &look).ok()?;
        let all: Vec<String> = parts.iter().map(|(id, _)| id.clone()).collect();
        let mut changed = Map::new();
        for (id, html) in parts {
            let digest: [u8; 32] = Sha256::digest(&html).into();
            if self.sent.insert(id.clone(), digest) != Some(digest) {
                changed.insert(id, Value::String(html));
            }
        }
        if changed.is_empty() && all == self.all {
            return None;
        }
        self.sent.retain(|id, _| all.contains(id));
        let event = Event::default().event("parts").data(json!({"all": all, "changed": changed}).to_string());
        self.all = all;
        Some(event)
    }
}
