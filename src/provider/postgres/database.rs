//! A database for each lane: the server's own copy of the user's database, or of the
//! run's template.

use std::time::{Duration, Instant};

use anyhow::bail;
use postgres::error::SqlState;

use super::connection::{self, Pool, readable};
use super::dump;
use super::facts::Facts;
use super::{Names, identifier};
use crate::address::PostgresAddress;
use crate::name::Place;

/// How long the sessions of a database may take to end after they were told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// Databases as lanes.
#[derive(Debug)]
pub struct Databases {
    /// Connections for CREATE and DROP, to a database that is no source.
    pub admin: Pool,
    /// The user's own database.
    pub source: PostgresAddress,
    /// Names and marks.
    pub names: Names,
    /// Why the server cannot copy the user's database itself.
    pub dump_because: Option<String>,
    /// What the server can do.
    pub facts: Facts,
}

impl Databases {
    /// Makes a lane's database, or the template.
    pub fn create(&self, place: Place, has_setup: bool) -> anyhow::Result<()> {
        let name = self.names.of(place);
        let has_template = has_setup || self.dump_because.is_some();
        match place {
            // Setup builds from nothing, as on a new machine.
            Place::Template if has_setup => self.create_empty(&name)?,
            Place::Template => self.create_by_dump(&name)?,
            _ if has_template => self.create_copy(&name, &self.names.of(Place::Template)).map_err(readable)?,
            _ if self.is_source_in_use()? => self.create_by_dump(&name)?,
            _ => {
                let copied = self.create_copy(&name, self.source.database());
                let in_use = copied.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::OBJECT_IN_USE));
                // Somebody came in between.
                if in_use { self.create_by_dump(&name)? } else { copied.map_err(readable)? }
            }
        }
        self.dress(&name, place)
    }

    /// Whether others are connected to the user's database now. The server would wait five
    /// seconds for them and then refuse to copy it.
    fn is_source_in_use(&self) -> anyhow::Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'
                                     AND application_name <> 'isolane')";
        let row = self.admin.with(|client| client.query_one(sql, &[&self.source.database()])).map_err(readable)?;
        Ok(row.get(0))
    }

    fn create_by_dump(&self, name: &str) -> anyhow::Result<()> {
        self.create_empty(name)?;
        dump::copy_database(&self.source, name, &self.facts)
    }

    fn create_empty(&self, name: &str) -> anyhow::Result<()> {
        self.create_from(name, &format!("TEMPLATE template0 {}", self.facts.template0_options)).map_err(readable)
    }

    fn create_copy(&self, name: &str, source: &str) -> anyhow::Result<()> {
        self.create_from(name, &format!("TEMPLATE {}", identifier(source)?))
    }

    fn create_from(&self, name: &str, options: &str) -> anyhow::Result<()> {
        let owner = if self.facts.is_owner { format!(" OWNER {}", self.facts.owner) } else { String::new() };
        let sql = format!("CREATE DATABASE {}{owner} {options}", identifier(name)?);
        let made = self.admin.with(|client| client.batch_execute(&sql));
        if made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_DATABASE)) {
            // Half made by a try before: the name is this run's own, so it goes and comes again.
            self.remove(name)?;
            return self.admin.with(|client| client.batch_execute(&sql));
        }
        made
    }

    /// Marks a database, and gives it the settings and grants that a copy lacks.
    fn dress(&self, name: &str, place: Place) -> anyhow::Result<()> {
        let database = identifier(name)?;
        let mut sql = format!("COMMENT ON DATABASE {database} IS '{}';", self.names.mark(place));
        if let Some(grants) = &self.facts.grants {
            sql.push_str(&format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC;"));
            for (grantee, privilege) in grants {
                sql.push_str(&format!("GRANT {privilege} ON DATABASE {database} TO {grantee};"));
            }
        }
        for (role, setting) in &self.facts.settings {
            let Some((key, value)) = setting.split_once('=') else { continue };
            // Through the session, because a list such as a search path must not be quoted as one.
            let of = role
                .as_ref()
                .map_or(format!("DATABASE {database}"), |role| format!("ROLE {role} IN DATABASE {database}"));
            let literal = value.replace('\'', "''");
            let key = identifier(key)?;
            sql.push_str(&format!(
                "SELECT set_config('{}', '{literal}', true); ALTER {of} SET {key} FROM CURRENT;",
                key.to_string().trim_matches('"')
            ));
        }
        self.admin.with(|client| client.batch_execute(&sql)).map_err(readable)
    }

    /// Lets nobody into the template any more: a session in it would stop every copy.
    pub fn seal(&self) -> anyhow::Result<()> {
        let name = self.names.of(Place::Template);
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", identifier(&name)?);
        self.admin.with(|client| client.batch_execute(&sql)).map_err(readable)?;
        self.end_sessions(&name)
    }

    /// Ends all sessions in a lane's database.
    pub fn disconnect(&self, place: Place) -> anyhow::Result<()> {
        self.end_sessions(&self.names.of(place))
    }

    fn end_sessions(&self, name: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = $1 AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        loop {
            let left: i64 = self.admin.with(|client| client.query_one(sql, &[&name])).map_err(readable)?.get(0);
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{left} sessions in the database {name} do not end");
            }
            // A session ends within a millisecond or so; DROP itself would look every 100 ms.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Drops a database of this run.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {}", identifier(name)?);
        for _ in 0..3 {
            self.end_sessions(name)?;
            let dropped = self.admin.with(|client| client.batch_execute(&sql));
            match dropped.as_ref().map_err(connection::code) {
                // A new session came in between; the next round ends it.
                Err(Some(code)) if *code == SqlState::OBJECT_IN_USE => {}
                _ => return dropped.map_err(readable),
            }
        }
        bail!("sessions keep coming in")
    }
}
