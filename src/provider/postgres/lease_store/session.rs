//! The session that works in the store: it makes the tables, comes back when the server does, and
//! holds the lock that says that this process lives.

use std::time::{Duration, Instant};

use anyhow::bail;
use postgres::error::SqlState;
use postgres::{Client, Config};

use super::super::connection::text;
use super::super::{claim, connection};
use super::CHANNEL;
use super::ears;
use super::owner::Name;
use super::pace::Pace;
use super::transaction::{BEGIN, Begun, LeaseTransaction};
use crate::error::{Stop, one_line};
use crate::lease::store::StoreError;
use crate::os::boot;

const TABLES: &str = include_str!("tables.sql");
const WRITES: &str = include_str!("writes.sql");
/// What the tables look like that this isolane knows.
const LAYOUT: i32 = 2;
/// What makes the tables of layout 1 these.
const NEWER: &str = "ALTER TABLE isolane_leases.lease_head ADD COLUMN IF NOT EXISTS ahead bigint NOT NULL DEFAULT 0;
    UPDATE isolane_leases.lease_head SET layout = 2 WHERE layout = 1;";
/// Two who come first make the tables one after another.
const MAKING: i64 = 0x696c_6d61_6b65;
/// How long a server that is away is waited for, before those who ask are told.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long between two tries, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));
/// A process that stops in the middle of a transaction stands in everybody's way: its session ends
/// then. And plans need not be made anew for arrays of each length.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '30s'; SET lock_timeout = '60s';
    SET statement_timeout = 0; SET plan_cache_mode = force_generic_plan";

/// A session, as often as it has to be begun again.
pub struct Session {
    config: Config,
    name: Name,
    client: Option<Client>,
    pace: Pace,
}

impl Session {
    /// Logs in, makes the tables where there are none, and gives this process a name.
    pub fn first(config: Config) -> anyhow::Result<(Self, Name)> {
        let mut client = claim::session(&config)?;
        let now: i64 = make(&mut client, &config)?;
        let name = Name::new(now);
        prepare(&mut client, &name).map_err(|error| cannot(&error, &config))?;
        Ok((Self { config, name: name.clone(), client: Some(client), pace: Pace::default() }, name))
    }

    /// Does `work` in a transaction.
    pub fn transact(
        &mut self,
        work: impl FnOnce(&mut LeaseTransaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let begun = self.begin()?;
        let Some(client) = &mut self.client else { return Err(StoreError("the store is away".to_owned())) };
        let mut transaction = LeaseTransaction::new(client, &self.name, &begun, &mut self.pace)?;
        let done = work(&mut transaction);
        let (client, last) = transaction.last();
        let kept = match done {
            Ok(()) => client.simple_query(&last).map(drop).map_err(|error| {
                // The server says so of what it refuses; of a session that it ends it is not known.
                if error.code().is_some_and(|code| !code.code().starts_with("57P")) {
                    return error.into();
                }
                StoreError("the PostgreSQL server went away before it said whether this is kept; ask again".to_owned())
            }),
            Err(why) => Err(why),
        };
        if kept.is_err() && (client.is_closed() || client.simple_query("ROLLBACK").is_err()) {
            self.client = None;
        }
        kept
    }

    /// Begins a transaction: nothing has been done yet, so it is tried for a while.
    fn begin(&mut self) -> Result<Begun, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let (mut pause, longest) = PAUSES;
        loop {
            let error = match self.client() {
                Ok(client) => match begin(client) {
                    Ok(begun) => return Ok(begun),
                    Err(error) if client.is_closed() || client.simple_query("ROLLBACK").is_err() => {
                        self.client = None;
                        anyhow::Error::new(error)
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(error) => error,
            };
            if Instant::now() + pause > deadline {
                return Err(StoreError(one_line(&connection::readable(error))));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// Makes sure that there is a session, if the server is there.
    pub fn be_there(&mut self) {
        // Where it is away still, the next who asks is told.
        let _ = self.client();
    }

    fn client(&mut self) -> anyhow::Result<&mut Client> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = None;
            let mut client = claim::session(&self.config)?;
            prepare(&mut client, &self.name)?;
            self.client = Some(client);
        }
        Ok(self.client.as_mut().expect("there is one now"))
    }

    /// Ends the session, and this process's ears.
    pub fn close(self) {
        if let Some(mut client) = self.client {
            let bye = super::sql::text(&ears::goodbye(&self.name.to_string()));
            let _ = client.simple_query(&format!("NOTIFY {CHANNEL}, {bye}"));
            let _ = client.close();
        }
    }
}

fn begin(client: &mut Client) -> Result<Begun, postgres::Error> {
    let before = boot::now().since;
    let answer = client.simple_query(BEGIN)?;
    Ok(Begun { answer, between: (before, boot::now().since) })
}

/// Makes the tables where there are none. The server's time comes back.
fn make(client: &mut Client, config: &Config) -> anyhow::Result<i64> {
    let ask = "SELECT to_regclass('isolane_leases.lease_head') IS NOT NULL AND to_regclass('isolane_leases.leases') IS NOT NULL,
        current_setting('server_encoding'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let row = client.query_one(ask, &[]).map_err(|error| cannot(&error, config))?;
    let (is_there, encoding): (bool, String) = (row.get(0), row.get(1));
    if encoding != "UTF8" {
        let database = config.get_dbname().unwrap_or_default();
        bail!(Stop::usage(format!(
            "the database {database} is in {encoding}, and leases need one in UTF8; `createdb -E UTF8 -T template0 NAME` makes one"
        )));
    }
    if !is_there {
        let making = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {TABLES} COMMIT");
        client.batch_execute(&making).map_err(|error| cannot(&error, config))?;
    }
    let mut layout = layout_of(client, config)?;
    if layout < LAYOUT {
        let making = format!("BEGIN; SELECT pg_advisory_xact_lock({MAKING}); {NEWER} COMMIT");
        client.batch_execute(&making).map_err(|error| cannot(&error, config))?;
        layout = layout_of(client, config)?;
    }
    if layout != LAYOUT {
        bail!(Stop::usage(format!(
            "the leases in this database were written by a newer isolane (layout {layout}, and this one knows {LAYOUT}); use that one"
        )));
    }
    Ok(row.get(2))
}

fn layout_of(client: &mut Client, config: &Config) -> anyhow::Result<i32> {
    let layout = client.query_one("SELECT layout FROM isolane_leases.lease_head", &[]);
    Ok(layout.map_err(|error| cannot(&error, config))?.get(0))
}

/// Makes a session fit for work.
fn prepare(client: &mut Client, name: &Name) -> Result<(), postgres::Error> {
    client.batch_execute(&format!("{SETTINGS}; {WRITES}"))?;
    if claim::lock(client, claim::LOCK, name.key)? {
        return Ok(());
    }
    // The session that this one follows lingers on the server, and is of use to nobody.
    let key = name.key;
    client.batch_execute(&format!(
        "SELECT pg_terminate_backend(pid) {} AND {} = {key} AND pid <> pg_backend_pid(); SELECT pg_advisory_lock({key})",
        claim::HELD,
        claim::NUMBER,
    ))
}

/// Why the store cannot be used, and what to do.
fn cannot(error: &postgres::Error, config: &Config) -> anyhow::Error {
    let (user, database) = (config.get_user().unwrap_or_default(), config.get_dbname().unwrap_or_default());
    let why = match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => format!(
            "the login {user} may not keep leases in the database {database} ({}); `GRANT CREATE ON DATABASE {database} TO {user}` allows the schema isolane_leases, and a schema of that name that is there already has to be its own",
            text(error)
        ),
        _ => format!("the database {database} cannot keep leases: {}", text(error)),
    };
    Stop::usage(why)
}
