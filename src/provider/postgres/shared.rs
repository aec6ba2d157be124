//! The user's own schema for all lanes. Each lane has a login role of its own, where the
//! user's login may make one: a member of the user's role that becomes it at login, so that
//! ownership and privileges are the user's while `session_user` tells the lane. Else lanes
//! have the user's own login and are told apart by the name that they give to the server.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use postgres::error::SqlState;

use super::capture::Home;
use super::capture::table::{self, Table};
use super::connection::{self, readable};
use super::facts::Facts;
use super::guard;
use super::password::Passwords;
use super::server::Server;
use super::setting::{self, Skipped};
use super::{Names, identifier};
use crate::address::{Address, PostgresAddress};
use crate::error::Stop;
use crate::lease::definition::{Guard, Table as LeasedTable};
use crate::name::Place;
use crate::settings::{Settings, Track};
use crate::touch::Ground;

/// The schema that lanes share.
#[derive(Debug)]
pub struct Shared {
    server: Arc<Server>,
    address: PostgresAddress,
    names: Names,
    track: Track,
    /// Tables whose leased rows are guarded.
    guarded: Vec<LeasedTable>,
    /// Why lanes have no roles of their own; nothing where they have.
    pub no_roles: Option<String>,
    /// Settings of the user's role, which another login does not get: `name=value`, and
    /// whether for this database only.
    settings: Vec<(String, bool)>,
    /// Why no rows are watched; nothing where they are.
    pub no_capture: Option<String>,
    /// Tables that are not watched, for want of a privilege.
    pub unwatched: Vec<String>,
    /// Who lanes become: the user's role, or who that becomes at login.
    becomes: String,
    /// Settings that lanes have to do without.
    pub skipped: Skipped,
    /// Of lanes' roles.
    pub passwords: Passwords,
}

const SETTINGS: &str = "SELECT unnest(s.setconfig) AS setting, s.setdatabase <> 0 AS here
    FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
   WHERE r.rolname = session_user AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   ORDER BY here";

impl Shared {
    /// Looks at what can be done.
    pub fn new(
        server: &Arc<Server>,
        address: &PostgresAddress,
        facts: &Facts,
        names: &Names,
        settings: &Settings,
    ) -> anyhow::Result<Self> {
        let track = &settings.track;
        let guarded = guarded(settings, address);
        let may_grant = facts.is_superuser || (facts.may_create_roles && facts.version < 160_000);
        let user = address.user();
        let no_roles = (!may_grant).then(|| {
            let which = if facts.may_create_roles { "make members of itself" } else { "create roles" };
            format!("the role {user} may not {which}, so sessions are told apart by application_name")
        });
        let tables = server.own.with(|client| table::watched(client, track)).map_err(readable)?;
        let unwatched: Vec<_> =
            tables.iter().filter(|table| !table.may_watch).map(|table| table.kind.clone()).collect();
        let no_capture = if track.is_off() {
            Some("track is off".to_owned())
        } else if !facts.may_create_schemas {
            let database = address.database();
            Some(format!(
                "the role {user} may not make a schema for triggers in {database}; `GRANT CREATE ON DATABASE {database} TO {user}` allows it"
            ))
        } else if !tables.is_empty() && unwatched.len() == tables.len() {
            Some(format!(
                "the role {user} may not make triggers; `GRANT TRIGGER ON ALL TABLES IN SCHEMA … TO {user}` allows it"
            ))
        } else {
            None
        };
        if let (Some(table), Some(why)) = (guarded.first(), &no_capture) {
            bail!(Stop::not_started(format!("the table {} cannot be guarded: {why}", table.name)));
        }
        let settings = if no_roles.is_none() {
            server.own.with(|client| client.query(SETTINGS, &[])).map_err(readable)?
        } else {
            Vec::new()
        };
        let becomes =
            server.own.with(|client| client.query_one("SELECT current_user::text", &[])).map_err(readable)?.get(0);
        Ok(Self {
            becomes,
            skipped: Skipped::default(),
            server: Arc::clone(server),
            address: address.clone(),
            names: names.clone(),
            track: track.clone(),
            guarded,
            no_roles,
            settings: settings.iter().map(|row| (row.get("setting"), row.get("here"))).collect(),
            no_capture,
            unwatched,
            passwords: Passwords::default(),
        })
    }

    /// Whether each lane has a role of its own.
    pub fn has_roles(&self) -> bool {
        self.no_roles.is_none()
    }

    /// What the user should know, for the summary.
    pub fn caveat(&self) -> Option<String> {
        let unwatched = (self.no_capture.is_none() && !self.unwatched.is_empty()).then(|| {
            format!("rows of {} are not watched: the login has no TRIGGER privilege on them", self.unwatched.join(", "))
        });
        let none = self.no_capture.as_ref().map(|why| format!("rows are not watched, and not removed: {why}"));
        let all: Vec<_> = self.no_roles.clone().into_iter().chain(none).chain(unwatched).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Makes the log and puts triggers on the user's tables.
    pub fn watch(&self, schema: &str) -> anyhow::Result<()> {
        let home = Home::of_run(schema, &self.names.tag, self.names.mark(Place::Run))?;
        let tables: Vec<Table> =
            self.server.own.with(|client| table::watched(client, &self.track)).map_err(readable)?;
        let made = self.server.own.with(|client| home.install(client, &tables, Ground::Shared)).map_err(readable);
        let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
        self.server.tell_who(made, |_| Ok(oids.clone()), false)?;
        self.guard(schema)
    }

    /// Guards leased rows. The tables are named as the user's own session sees them.
    fn guard(&self, schema: &str) -> anyhow::Result<()> {
        if self.guarded.is_empty() {
            return Ok(());
        }
        let mut client = connection::connect(&connection::config(&self.address, self.server.application())?)?;
        let installed = guard::install(&mut client, schema, &self.names.tag, &self.guarded, self.has_roles());
        let _ = client.close();
        installed
    }

    /// Makes a lane's role, marked, which becomes the user's at login.
    pub fn create_role(&self, place: Place) -> anyhow::Result<()> {
        let name = self.names.of(place);
        let (role, user) = (identifier(&name)?, identifier(self.address.user())?);
        let sql = format!(
            "BEGIN; CREATE ROLE {role} LOGIN PASSWORD '{}' IN ROLE {user}; COMMENT ON ROLE {role} IS '{}';",
            self.passwords.verifier(place),
            self.names.mark(place)
        );
        let database = identifier(self.address.database())?;
        let mut settings = Vec::new();
        for (setting, is_here) in &self.settings {
            let of = if *is_here { format!("ROLE {role} IN DATABASE {database}") } else { format!("ROLE {role}") };
            settings.extend(setting::repeat(setting, &of)?.filter(|(key, _)| *key != "role"));
        }
        let becomes = format!("ALTER ROLE {role} SET role = {};", identifier(&self.becomes)?);
        let run = |sql: &str| {
            self.server.own.with(|client| {
                client.batch_execute(sql).inspect_err(|_| {
                    let _ = client.batch_execute("ROLLBACK");
                })
            })
        };
        let all: String = settings.iter().map(|(_, set)| set.as_str()).collect();
        let create = || {
            let made = run(&format!("{sql}{all}{becomes}COMMIT;"));
            if !made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::INSUFFICIENT_PRIVILEGE)) {
                return made;
            }
            run(&format!("{sql}{becomes}COMMIT;"))?;
            for (key, set) in &settings {
                if run(&format!("BEGIN; {set} COMMIT;")).is_err() {
                    self.skipped.add(key);
                }
            }
            Ok(())
        };
        let mut made = create();
        if made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_OBJECT)) {
            // Left by a try before: the name is this run's own, so it goes and comes again.
            self.server.drop_role(&name)?;
            made = create();
        }
        made.map_err(readable)
    }

    /// Logs in as the lane's worker will and looks who that is.
    pub fn verify(&self, place: Place) -> anyhow::Result<()> {
        if !self.has_roles() || place.lane().is_none() {
            return Ok(());
        }
        let name = self.names.of(place);
        let mut config = connection::config(&self.address, self.server.application())?;
        config.user(&name).password(self.passwords.of(place).reveal());
        let mut client = connection::connect(&config).context("a worker could not log in to its lane")?;
        let row = client.query_one("SELECT session_user::text, current_user::text", &[])?;
        let (session, current): (String, String) = (row.get(0), row.get(1));
        client.close()?;
        ensure!(
            session == name && current == self.becomes,
            "a worker of {name} would be {session} and work as {current}"
        );
        Ok(())
    }
}

/// The tables in the database at `address` whose leased rows are guarded: pools are in the first.
fn guarded(settings: &Settings, address: &PostgresAddress) -> Vec<LeasedTable> {
    let first = settings.addresses().find(|it| matches!(it, Address::Postgres(_)));
    if !matches!(first, Some(Address::Postgres(first)) if first == address) {
        return Vec::new();
    }
    let tables = settings.pools.iter().filter_map(|pool| pool.definition.table.clone());
    tables.filter(|table| table.guard != Guard::Off).collect()
}
