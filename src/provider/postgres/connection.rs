//! Connections of isolane's own, and their errors in words.

use std::error::Error as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};

use crate::address::PostgresAddress;
use crate::error::Stop;

/// What is set for isolane's own connections, named `application` on the server: see
/// `address`, except that nothing of the user's options applies.
pub fn config(address: &PostgresAddress, application: &str) -> anyhow::Result<Config> {
    if let Some(mode @ ("require" | "verify-ca" | "verify-full")) = address.parameter("sslmode") {
        bail!(Stop::not_started(format!(
            "the address asks for TLS (sslmode={mode}), which this version of isolane does not speak"
        )));
    }
    let mut config = Config::new();
    for (host, port) in address.hosts().iter().zip(address.ports()) {
        config.host(host).port(*port);
    }
    config.user(address.user()).dbname(address.database()).application_name(application);
    let timeout =
        address.parameter("connect_timeout").and_then(|seconds| seconds.parse().ok()).filter(|seconds| *seconds > 0);
    config.connect_timeout(Duration::from_secs(timeout.unwrap_or(10)));
    if let Some(password) = address.password() {
        config.password(password.reveal());
    }
    Ok(config)
}

/// How long to wait for a place on a server that is full.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long for that of a session of our own that was closed.
pub const AFTERGLOW: Duration = Duration::from_secs(1);
/// How long between two looks.
const BREATH: Duration = Duration::from_millis(20);

/// What isolane's own sessions are set to: nothing that the owner of a database or a role has
/// set for it may choose which functions and operators are called here, or how a literal
/// ends, or what a value looks like as text. And what was removed stays so when the server crashes a moment later: many servers
/// for tests are set to forget the last of their commits then. Nothing here is worth compiling.
pub const OWN_SETTINGS: &str = "SET search_path = pg_catalog, pg_temp; SET standard_conforming_strings = on;
    SET synchronous_commit = on; SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres';
    SET bytea_output = 'hex'; SET extra_float_digits = 1; SET default_transaction_isolation = 'read committed';
    SET default_transaction_read_only = off; SET jit = off";

/// A session of isolane's own.
pub fn own_session(config: &Config) -> Result<Client, postgres::Error> {
    let mut client = config.connect(NoTls)?;
    client.batch_execute(OWN_SETTINGS)?;
    Ok(client)
}

/// Connects as a user would, and says in one line why not. Where the server has no place, it
/// waits for one.
pub fn connect(config: &Config) -> anyhow::Result<Client> {
    patiently(PATIENCE, || config.connect(NoTls)).map_err(|error| Stop::not_started(why_not(&error, config)))
}

/// Logs in, and waits up to `patience` for a place where the server has none.
pub fn patiently(
    patience: Duration,
    login: impl Fn() -> Result<Client, postgres::Error>,
) -> Result<Client, postgres::Error> {
    let began = Instant::now();
    loop {
        match login() {
            Err(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) && began.elapsed() < patience => {
                std::thread::sleep(BREATH);
            }
            done => return done,
        }
    }
}

/// A session that logs in while something else is done: that takes some milliseconds, half of them
/// on the server.
pub struct Ahead(JoinHandle<anyhow::Result<Client>>);

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

impl Ahead {
    /// Begins to log in.
    pub fn begin(login: impl FnOnce() -> anyhow::Result<Client> + Send + 'static) -> Self {
        Self(std::thread::spawn(login))
    }

    /// The session.
    pub fn arrive(self) -> anyhow::Result<Client> {
        self.0.join().unwrap_or_else(|_| Err(anyhow!("the login broke off")))
    }
}

/// Why there is no connection, and what to do.
pub fn why_not(error: &postgres::Error, config: &Config) -> String {
    let place = |host: &postgres::config::Host| match host {
        postgres::config::Host::Tcp(name) => name.clone(),
        postgres::config::Host::Unix(path) => path.display().to_string(),
    };
    let server: Vec<_> = config
        .get_hosts()
        .iter()
        .zip(config.get_ports())
        .map(|(host, port)| format!("{}:{port}", place(host)))
        .collect();
    let server = server.join(",");
    let (user, database) = (config.get_user().unwrap_or_default(), config.get_dbname().unwrap_or_default());
    match error.code() {
        Some(code) if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            format!("the PostgreSQL server at {server} refuses the login {user}: {}", text(error))
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
            format!(
                "the PostgreSQL server at {server} has no database {database}; `createdb {database}` makes one, or correct the address"
            )
        }
        Some(_) => format!("the PostgreSQL server at {server} refuses the connection: {}", text(error)),
        // The driver's own words, for a server that asks when there is nothing to answer.
        None if text(error) == "password missing" => format!(
            "the PostgreSQL server at {server} asks for the password of {user}; put it into the address, PGPASSWORD or ~/.pgpass"
        ),
        None => {
            format!("cannot reach the PostgreSQL server at {server} ({}); start it or correct the address", text(error))
        }
    }
}

/// What the server said, or the lowest cause.
pub fn text(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
        return format!("{}{detail}", db.message());
    }
    let mut lowest: &dyn std::error::Error = error;
    while let Some(cause) = lowest.source() {
        lowest = cause;
    }
    let _ = error.source();
    lowest.to_string()
}

/// Connections to one database. They are shared while there is work, and closed when there
/// is none: a session that stays takes a place from the user's own, and nobody can copy a
/// database that it is in.
pub struct Pool {
    /// Where to connect; the second where the first is refused, and so on.
    configs: Vec<Config>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Client>,
    working: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(configs: Vec<Config>) -> Arc<Self> {
        Arc::new(Self { configs, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with a connection. One that broke since it was used last (a restarted
    /// server) is replaced and the work repeated: `work` must bear that.
    pub fn with<T>(&self, mut work: impl FnMut(&mut Client) -> Result<T, postgres::Error>) -> anyhow::Result<T> {
        let (mut client, was_idle) = self.take()?;
        let mut done = work(&mut client);
        if was_idle && done.is_err() && client.is_closed() {
            match self.connect() {
                Ok(other) => {
                    client = other;
                    done = work(&mut client);
                }
                Err(refusal) => {
                    self.give_back(None);
                    return Err(refusal.into_error());
                }
            }
        }
        self.give_back(Some(client).filter(|client| !client.is_closed()));
        done.map_err(anyhow::Error::new)
    }

    /// A connection, and whether it had been used before.
    fn take(&self) -> anyhow::Result<(Client, bool)> {
        let began = Instant::now();
        loop {
            let mut state = self.state();
            if let Some(client) = state.idle.pop() {
                state.working += 1;
                if !client.is_closed() {
                    return Ok((client, true));
                }
                state.working -= 1;
                continue;
            }
            state.working += 1;
            drop(state);
            let refusal = match self.connect() {
                Ok(client) => return Ok((client, false)),
                Err(refusal) => refusal,
            };
            let mut state = self.state();
            state.working -= 1;
            // The server has no place for one more: others here will have done with theirs, and
            // a session that was just closed takes a moment to be gone.
            let patience = if state.working == 0 { AFTERGLOW } else { PATIENCE };
            if !refusal.is_full() || began.elapsed() > patience {
                return Err(refusal.into_error());
            }
            drop(self.changed.wait_timeout(state, BREATH));
        }
    }

    fn connect(&self) -> Result<Client, Box<Refusal>> {
        let mut last = None;
        for config in &self.configs {
            let refusal = match own_session(config) {
                Ok(client) => return Ok(client),
                Err(error) => Box::new(Refusal { error, config: config.clone() }),
            };
            if !refusal.is_of_this_database() {
                return Err(refusal);
            }
            last = Some(refusal);
        }
        // That is the one that the user knows.
        Err(last.expect("a pool has an address"))
    }

    /// Keeps idle sessions as long as what comes back lives.
    pub fn keep_open(self: &Arc<Self>) -> KeptOpen {
        self.state().working += 1;
        KeptOpen(Arc::clone(self))
    }

    fn give_back(&self, client: Option<Client>) {
        let mut state = self.state();
        state.working -= 1;
        state.idle.extend(client);
        let idle = if state.working == 0 { std::mem::take(&mut state.idle) } else { Vec::new() };
        drop(state);
        self.changed.notify_one();
        // Ending a session says goodbye to the server, which takes a moment.
        drop(idle);
    }
}

/// Sessions of a pool stay open as long as this lives.
#[derive(Debug)]
pub struct KeptOpen(Arc<Pool>);

impl Drop for KeptOpen {
    fn drop(&mut self) {
        self.0.give_back(None);
    }
}

/// Why there is no connection.
struct Refusal {
    error: postgres::Error,
    config: Config,
}

impl Refusal {
    fn into_error(self: Box<Self>) -> anyhow::Error {
        Stop::not_started(why_not(&self.error, &self.config))
    }

    /// Whether the server, the database or the login has no place for one more.
    fn is_full(&self) -> bool {
        self.error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
    }

    /// Whether another database of this server may be open.
    fn is_of_this_database(&self) -> bool {
        let codes = [
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::INVALID_CATALOG_NAME,
            // The server's list of who may come from where goes by databases, too.
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        ];
        self.error.code().is_some_and(|code| codes.contains(code))
    }
}

/// The server's code for an error, where it is one of the server's.
pub fn code(error: &anyhow::Error) -> Option<&SqlState> {
    error.downcast_ref::<postgres::Error>().and_then(postgres::Error::code)
}

/// An error of the server as one readable text.
pub fn readable(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<postgres::Error>() {
        Some(server) => anyhow::anyhow!(text(server)),
        None => error,
    }
}
