//! Writing down what is written in a database that is one lane's, or will be copied for lanes.

use postgres::Client;

use super::capture::{self, Home, table};
use super::connection::readable;
use super::renewal::{self, Renewals};
use crate::settings::Track;
use crate::touch::Ground;

/// Puts triggers on the tables of the database of `client`, as far as they are to be watched; on
/// all of them where what is written will be undone, and the login may do that.
pub fn watch(client: &mut Client, track: &Track, renewals: Option<&Renewals>, login: &str) -> anyhow::Result<()> {
    if let Some(renewals) = renewals {
        match renewal::refusal(client) {
            None => return install(client, track, Some(renewals)),
            Some(why) => renewals.is_impossible(no_undoing(&why, login)),
        }
    }
    if track.is_off() { Ok(()) } else { install(client, track, None) }
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
