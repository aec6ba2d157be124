//! Connections of isolane's own, and their errors in words.

use std::error::Error as _;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::bail;
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

/// Connects, and says in one line why not.
pub fn connect(config: &Config) -> anyhow::Result<Client> {
    config.connect(NoTls).map_err(|error| Stop::not_started(why_not(&error, config)))
}

fn why_not(error: &postgres::Error, config: &Config) -> String {
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

/// Connections to one database, made when they are needed and kept.
pub struct Pool {
    config: Config,
    idle: Mutex<Vec<Client>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(config: Config) -> Self {
        Self { config, idle: Mutex::default() }
    }

    /// Works with a connection of its own, which is closed afterwards: a session that stayed
    /// in the user's database would stop the server from copying it.
    pub fn once<T>(&self, work: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> anyhow::Result<T> {
        let mut client = connect(&self.config)?;
        let done = work(&mut client)?;
        client.close()?;
        Ok(done)
    }

    /// Works with a connection. One that broke since it was used last (a restarted
    /// server) is replaced and the work repeated: `work` must bear that.
    pub fn with<T>(&self, mut work: impl FnMut(&mut Client) -> Result<T, postgres::Error>) -> anyhow::Result<T> {
        let idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let was_idle = idle.is_some();
        let mut client = match idle.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => connect(&self.config)?,
        };
        let mut done = work(&mut client);
        if was_idle && done.is_err() && client.is_closed() {
            client = connect(&self.config)?;
            done = work(&mut client);
        }
        if !client.is_closed() {
            self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(client);
        }
        done.map_err(anyhow::Error::new)
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
