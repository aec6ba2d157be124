//! The user's own database, as lanes' servers get it: with its name, its settings, and all
//! roles of its server by their names.

use std::process::Stdio;

use anyhow::Context;
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};

use super::cluster::ADMIN;
use super::programs::Programs;
use crate::address::{LOOPBACK, PostgresAddress};
use crate::error::Stop;
use crate::provider::postgres::connection::{self, readable};
use crate::provider::postgres::dump::succeed;
use crate::provider::postgres::facts::Facts;
use crate::secret::Secret;

/// A database that can be reached.
#[derive(Debug)]
pub struct Source {
    address: PostgresAddress,
    pub facts: Facts,
    application: String,
    /// What says that nothing was written since; `None` where nothing can say so.
    pub fingerprint: Option<String>,
}

/// Whether there is a database to be copied.
#[derive(Debug)]
pub enum Found {
    There(Box<Source>),
    /// There is none, and why.
    Not(String),
}

/// Whatever is committed moves the end of the server's log on, except for what is not logged,
/// and a sequence's next few values.
const FINGERPRINT: &str = "
SELECT concat_ws(' ', c.system_identifier, current_setting('server_version'), d.oid, pg_current_wal_insert_lsn(),
         pg_snapshot_xmax(pg_current_snapshot()),
         (SELECT md5(string_agg(concat_ws(' ', schemaname, sequencename, last_value), ',' ORDER BY schemaname, sequencename))
            FROM pg_sequences))
  FROM pg_control_system() c, pg_database d
 WHERE d.datname = current_database() AND NOT EXISTS (SELECT FROM pg_class WHERE relpersistence = 'u')";

/// All roles but the system's own, the lane's two, and those of isolane's runs.
const ROLES: &str = "
SELECT format('CREATE ROLE %I %s %s %s %s %s %s %s CONNECTION LIMIT %s%s%s;', r.rolname,
         CASE WHEN rolsuper THEN 'SUPERUSER' ELSE 'NOSUPERUSER' END,
         CASE WHEN rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END,
         CASE WHEN rolcreaterole THEN 'CREATEROLE' ELSE 'NOCREATEROLE' END,
         CASE WHEN rolcreatedb THEN 'CREATEDB' ELSE 'NOCREATEDB' END,
         CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,
         CASE WHEN rolreplication THEN 'REPLICATION' ELSE 'NOREPLICATION' END,
         CASE WHEN rolbypassrls THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END,
         rolconnlimit, {password}, CASE WHEN rolvaliduntil IS NOT NULL THEN format(' VALID UNTIL %L', rolvaliduntil) END)
  FROM {roles} r
 WHERE r.rolname !~ '^pg_' AND r.rolname <> ALL ($1)
   AND coalesce(shobj_description(r.oid, 'pg_authid'), '') NOT LIKE 'isolane run %'
 ORDER BY 1";
const MEMBERS: &str = "
SELECT DISTINCT format('GRANT %I TO %I%s;', r.rolname, m.rolname, CASE WHEN a.admin_option THEN ' WITH ADMIN OPTION' END)
  FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member
 WHERE (m.rolname !~ '^pg_') AND m.rolname <> $1
   AND coalesce(shobj_description(r.oid, 'pg_authid'), '') NOT LIKE 'isolane run %'
   AND coalesce(shobj_description(m.oid, 'pg_authid'), '') NOT LIKE 'isolane run %'
 ORDER BY 1";
/// Through the session, because a list such as a search path must not be quoted as one.
const SETTINGS: &str = "
SELECT format('SELECT set_config(%L, %L, true); ALTER ROLE %I SET %I FROM CURRENT;',
         split_part(s.setting, '=', 1), substr(s.setting, strpos(s.setting, '=') + 1), r.rolname, split_part(s.setting, '=', 1))
  FROM pg_roles r JOIN pg_db_role_setting d ON d.setrole = r.oid AND d.setdatabase = 0, unnest(d.setconfig) s (setting)
 WHERE r.rolname !~ '^pg_' AND coalesce(shobj_description(r.oid, 'pg_authid'), '') NOT LIKE 'isolane run %'";

impl Source {
    /// Looks for the database that an address names.
    pub fn find(address: &PostgresAddress, application: String) -> anyhow::Result<Found> {
        let config = connection::config(address, &application)?;
        let mut client = match connection::own_session(&config) {
            Ok(client) => client,
            Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => {
                return Ok(Found::Not(format!("the server has no database {}", address.database())));
            }
            // No server has answered at all.
            Err(error) if error.code().is_none() && connection::text(&error) != "password missing" => {
                let server = format!("{}:{}", address.hosts()[0], address.ports()[0]);
                return Ok(Found::Not(format!("no server answers at {server}")));
            }
            Err(error) => {
                let why = connection::why_not(&error, &config);
                return Err(Stop::not_started(format!(
                    "{why}; it is copied into each lane's server: --setup makes the state without it"
                )));
            }
        };
        let facts = Facts::ask(&mut client, address.database()).map_err(|error| readable(error.into()))?;
        let facts = facts.context("somebody dropped it a moment ago")?;
        // Of a standby, or by a login that may not ask, nothing is known, and nothing is kept.
        let fingerprint = client.query_opt(FINGERPRINT, &[]).ok().flatten().and_then(|row| row.get(0));
        Ok(Found::There(Box::new(Self { address: address.clone(), facts, application, fingerprint })))
    }

    /// Makes the database, and the roles beside it, on the server at `port`, where `admin` is
    /// the password of the superuser.
    pub fn copy_to(&self, programs: &Programs, port: u16, admin: &Secret) -> anyhow::Result<()> {
        let config = connection::config(&self.address, &self.application)?;
        let mut own = connection::own_session(&config)?;
        let sql = self.roles(&mut own).map_err(|error| readable(error.into())).context("cannot read the roles")?;
        drop(own);
        let mut target = session(port, ADMIN, admin, "template1")?;
        target.batch_execute(&sql).map_err(|error| readable(error.into())).context("cannot make the roles")?;
        if self.address.database() == ADMIN {
            // It comes with every server, and comes again with the copy.
            target.batch_execute("DROP DATABASE postgres").map_err(|error| readable(error.into()))?;
        }
        drop(target);
        self.copy_database(programs, port, admin)
    }

    fn roles(&self, client: &mut Client) -> Result<String, postgres::Error> {
        let (table, password) = if self.facts.is_superuser {
            ("pg_authid", "CASE WHEN rolpassword IS NOT NULL THEN format(' PASSWORD %L', rolpassword) END")
        } else {
            ("pg_roles", "NULL::text")
        };
        let roles = ROLES.replace("{roles}", table).replace("{password}", password);
        let user = self.address.user();
        let mut lines: Vec<String> = Vec::new();
        lines.extend(client.query(&roles, &[&vec![ADMIN, user]])?.iter().map(|row| row.get::<_, String>(0)));
        lines.extend(client.query(MEMBERS, &[&ADMIN])?.iter().map(|row| row.get::<_, String>(0)));
        lines.extend(client.query(SETTINGS, &[])?.iter().map(|row| row.get::<_, String>(0)));
        Ok(lines.join("\n"))
    }

    fn copy_database(&self, programs: &Programs, port: u16, admin: &Secret) -> anyhow::Result<()> {
        let address = &self.address;
        let ports: Vec<_> = address.ports().iter().map(u16::to_string).collect();
        let mut dump = programs.client("pg_dump")?;
        // Through the environment: arguments are for everybody to read.
        dump.env("PGHOST", address.hosts().join(",")).env("PGPORT", ports.join(","));
        dump.env("PGUSER", address.user()).env("PGDATABASE", address.database()).env("PGAPPNAME", &self.application);
        if let Some(password) = address.password() {
            dump.env("PGPASSWORD", password.reveal());
        }
        dump.args(["--create", "--no-tablespaces", "--no-subscriptions", "--no-password"]);
        let mut dump = dump
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start pg_dump")?;
        let text = dump.stdout.take().context("pg_dump has an output")?;
        let mut restore = programs.client("psql")?;
        restore.args(["--no-psqlrc", "--quiet", "--no-password", "--set", "ON_ERROR_STOP=1"]);
        restore.env("PGHOST", LOOPBACK).env("PGPORT", port.to_string()).env("PGUSER", ADMIN);
        restore.env("PGPASSWORD", admin.reveal()).env("PGDATABASE", "template1");
        let restored = restore.stdin(text).stdout(Stdio::null()).stderr(Stdio::piped()).output();
        let restored = restored.context("cannot start psql")?;
        let dumped = dump.wait_with_output()?;
        // Where psql has stopped, pg_dump complains that nobody reads; and the other way round.
        let has_refused = String::from_utf8_lossy(&restored.stderr).contains("ERROR:");
        let dumped = if has_refused { Ok(()) } else { succeed("pg_dump", dumped.status, &dumped.stderr) };
        dumped
            .and_then(|()| succeed("psql", restored.status, &restored.stderr))
            .with_context(|| format!("cannot copy the database {}", address.database()))
    }
}

/// A session on the server of a lane.
pub fn session(port: u16, user: &str, password: &Secret, database: &str) -> anyhow::Result<Client> {
    let mut config = Config::new();
    config.host(LOOPBACK).port(port).user(user).password(password.reveal()).dbname(database);
    let client = config.application_name("isolane").connect(NoTls);
    client.map_err(|error| readable(error.into()))
}
