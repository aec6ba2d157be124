//! Writing down what is written in a database that is one lane's, or will be copied for lanes.

use postgres::Client;

use super::capture::{self, Home, Unwatched, table};
use super::connection::readable;
use super::renewal::{self, Renewals};
use crate::error::one_line;
use crate::settings::{Fresh, Settings, Track};
use crate::touch::Ground;

/// Which rows are watched in lanes that have a database of their own, and whether what is written
/// there will be undone.
#[derive(Debug)]
pub struct Watching {
    /// What the user wants to know of.
    pub track: Track,
    /// Why rows are not watched, where they should be.
    pub unwatched: Unwatched,
    /// Where lanes become as their template again for each test: what that needs.
    pub renewals: Option<Renewals>,
}

impl Watching {
    /// As the user wishes.
    pub fn new(settings: &Settings) -> Self {
        Self {
            track: settings.track.clone(),
            unwatched: Unwatched::default(),
            renewals: (settings.fresh == Fresh::Test).then(Renewals::default),
        }
    }

    /// Puts triggers on the tables of the database that `visit` leads to, where `login` works: as
    /// far as they are to be watched; on all of them where what is written will be undone, and the
    /// login may do that. Where that does not go, the lane is as good for its tests.
    pub fn begin(&self, login: &str, visit: impl FnOnce() -> anyhow::Result<Client>) {
        if self.track.is_off() && self.renewals.is_none() {
            return;
        }
        let watched = visit().and_then(|mut client| self.watch(&mut client, login));
        if let (Some(renewals), Err(error)) = (&self.renewals, &watched) {
            renewals.is_impossible(one_line(error));
        }
        self.unwatched.note(watched);
    }

    fn watch(&self, client: &mut Client, login: &str) -> anyhow::Result<()> {
        if let Some(renewals) = &self.renewals {
            match renewal::refusal(client) {
                None => return install(client, &self.track, Some(renewals)),
                Some(why) => renewals.is_impossible(no_undoing(&why, login)),
            }
        }
        if self.track.is_off() { Ok(()) } else { install(client, &self.track, None) }
    }
}

fn install(client: &mut Client, track: &Track, renewals: Option<&Renewals>) -> anyhow::Result<()> {
    client.batch_execute(&capture::forget())?;
    let tables = if renewals.is_some() { table::all(client, track) } else { table::watched(client, track) }?;
    if let (Some(renewals), Some(table)) = (renewals, tables.iter().find(|table| !table.may_watch)) {
        renewals.is_impossible(format!("the login may not make triggers on {}", table.own_kind));
    }
    Home::of_lane(renewals.is_some())?.install(client, &tables, Ground::Shared).map_err(|e| readable(e.into()))
}

/// What the user can do where the login may not undo.
pub fn no_undoing(why: &str, login: &str) -> String {
    format!("{why}; `GRANT SET ON PARAMETER session_replication_role TO {login}` allows it from PostgreSQL 15 on")
}
