//! Lanes' databases as their template again, without being made again: see [`super::capture::undo`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, Statement};
use postgres_protocol::escape::escape_literal;

use super::capture::{LANE_LOG, shape, undo};
use super::connection::{self, readable};
use super::identifier;
use super::server::Server;
use crate::error::one_line;
use crate::name::Place;
use crate::provider::{Again, Renewal};

/// How long what a test has started may take to end by itself: a session that was closed, or a
/// statement at work.
const MOMENT: Duration = Duration::from_millis(25);
/// How long it may take once it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// The session that undoes what is done in one lane. It stays open from test to test, because a
/// login costs more than what it does.
struct Session {
    client: Client,
    undo: Statement,
}

/// What is needed to undo.
#[derive(Default)]
pub struct Renewals {
    sessions: Mutex<HashMap<Place, Arc<Mutex<Option<Session>>>>>,
    /// What settings each lane was given.
    settings: Mutex<HashMap<Place, String>>,
    /// Why nothing can be undone here.
    impossible: Mutex<Option<String>>,
    /// Whether a lane had to be made again.
    was_again: AtomicBool,
    /// Whether the server broke down, which empties the template's log as well.
    was_broken: AtomicBool,
}

impl std::fmt::Debug for Renewals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewals").finish_non_exhaustive()
    }
}

impl Renewals {
    /// Notes what settings a lane has from the beginning.
    pub fn has_settings(&self, place: Place, settings: String) {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).insert(place, settings);
    }

    /// Notes that nothing can be undone, and why.
    pub fn is_impossible(&self, why: String) {
        self.impossible.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// Why nothing can be undone; nothing where it can.
    pub fn impossible(&self) -> Option<String> {
        self.impossible.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a lane had to be made again: what the server counts of it began anew.
    pub fn was_again(&self) -> bool {
        self.was_again.load(Ordering::Relaxed)
    }

    /// SQL for a new copy, should the server have broken down: its log begins anew.
    pub fn mend(&self) -> Option<&'static str> {
        self.was_broken.load(Ordering::Relaxed).then_some("INSERT INTO isolane_log.unbroken VALUES (1)")
    }

    /// Undoes what was written in the database `name` of this lane. If nobody of the lane `is_alone`
    /// with it any more, all sessions in it end.
    pub fn renew(&self, server: &Server, place: Place, name: &str, is_alone: bool) -> Renewal {
        if self.impossible().is_some() {
            self.was_again.store(true, Ordering::Relaxed);
            return Renewal { again: Some(Again::Always), ..Renewal::default() };
        }
        let slot = Arc::clone(self.sessions.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default());
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        let mut renewal = Renewal::default();
        let done = undo_all(&mut slot, server, name, is_alone, &settings.unwrap_or_default(), &mut renewal);
        if let Err(error) = done {
            renewal.again = Some(Again::Changed(one_line(&error)));
        }
        if let Some(Again::Changed(why)) = &renewal.again {
            self.was_broken.fetch_or(why.starts_with(shape::BROKEN), Ordering::Relaxed);
            // The database goes, and nobody may be in it.
            *slot = None;
            self.was_again.store(true, Ordering::Relaxed);
        }
        renewal
    }
}

fn undo_all(
    slot: &mut Option<Session>,
    server: &Server,
    name: &str,
    is_alone: bool,
    settings: &str,
    renewal: &mut Renewal,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut told = HashSet::new();
    loop {
        let session = match slot {
            Some(session) if !session.client.is_closed() => session,
            _ => slot.insert(open(server, name)?),
        };
        let found = match session.client.query(&session.undo, &[&is_alone, &settings]) {
            // The server was restarted, the session was idle for long, or the test ended all
            // sessions in its database.
            Err(error) if is_lost(&session.client, &error) && began.elapsed() < PATIENCE => {
                *slot = None;
                continue;
            }
            found => found.map_err(|error| readable(anyhow::Error::new(error)))?,
        };
        if found.is_empty() {
            return Ok(());
        }
        for row in found {
            let (what, which, detail): (&str, &str, Option<&str>) = (row.get(0), row.get(1), row.get(2));
            let client = &mut session.client;
            match what {
                "again" => {
                    renewal.again = Some(Again::Changed(which.to_owned()));
                    return Ok(());
                }
                "session" if is_alone || began.elapsed() > MOMENT => {
                    let pid: i32 = which.parse()?;
                    let end = client.query_one("SELECT pg_terminate_backend($1)", &[&pid]);
                    end.map_err(|error| readable(anyhow::Error::new(error)))?;
                    if told.insert(pid) && !is_alone {
                        renewal.left("transaction", detail.unwrap_or_default());
                    }
                }
                "session" => {}
                "prepared" => {
                    renewal.left("prepared transaction", which);
                    client.batch_execute(&format!("ROLLBACK PREPARED {}", escape_literal(which)))?;
                }
                _ => {
                    renewal.left("replication slot", which);
                    client.query("SELECT pg_drop_replication_slot($1::name)", &[&which])?;
                }
            }
        }
        if began.elapsed() > PATIENCE {
            anyhow::bail!("sessions in it do not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the server ended the session: it says so before the connection is closed.
fn is_lost(client: &Client, error: &postgres::Error) -> bool {
    client.is_closed() || error.code().is_some_and(|code| code.code().starts_with("57P"))
}

fn open(server: &Server, name: &str) -> anyhow::Result<Session> {
    let mut client = match server.visit(name) {
        Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => anyhow::bail!("the database is gone"),
        client => client.map_err(|error| readable(anyhow::Error::new(error)))?,
    };
    let ready = client.batch_execute(undo::SESSION).and_then(|()| {
        let undo = client.prepare(&format!("SELECT * FROM {}.undo($1, $2)", identifier(LANE_LOG).expect("a name")));
        undo.map(|undo| (client, undo))
    });
    let (client, undo) = ready.map_err(|error| readable(anyhow::Error::new(error)))?;
    Ok(Session { client, undo })
}

/// Why a login could not undo; nothing where it can.
pub fn refusal(client: &mut Client) -> Option<String> {
    let allowed = client.batch_execute("BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK");
    let error = allowed.err()?;
    let _ = client.batch_execute("ROLLBACK");
    Some(connection::text(&error))
}
