//! A schema for each lane, in the user's own database, with a login role of its own
//! whose search path is that schema and nothing else: a name without a schema can
//! never fall through into a shared one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use postgres::error::SqlState;

use super::capture::{Home, Unwatched, table};
use super::connection::{self, readable};
use super::dump::{Programs, SchemaDump};
use super::facts::Facts;
use super::password::Passwords;
use super::server::Server;
use super::{Names, identifier};
use crate::address::PostgresAddress;
use crate::fault::{self, Step};
use crate::name::Place;
use crate::provider::{Again, Renewal};
use crate::settings::Track;
use crate::touch::Ground;

/// Schemas as lanes.
#[derive(Debug)]
pub struct Schemas {
    server: Arc<Server>,
    address: PostgresAddress,
    facts: Facts,
    names: Names,
    has_roles: bool,
    /// What the user's own schema is called and holds.
    source: Source,
    /// Where the dump is that lanes are filled from.
    dump_file: PathBuf,
    /// Of lanes' roles.
    pub passwords: Passwords,
    track: Track,
    /// Why rows are not watched, where they should be.
    pub unwatched: Unwatched,
}

#[derive(Debug)]
struct Source {
    /// As it is.
    name: String,
    /// As SQL spells it, in quotes where it needs them.
    schema: String,
    is_empty: bool,
    /// Members of extensions in it: they exist once for all lanes.
    shared: Vec<String>,
    extensions: Vec<String>,
}

const SOURCE: &str = "
SELECT quote_ident(n.nspname) AS schema, n.nspname::text AS name,
       NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid)
       AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = n.oid)
       AND NOT EXISTS (SELECT FROM pg_type WHERE typnamespace = n.oid) AS is_empty,
       ARRAY(SELECT DISTINCT o.name FROM pg_depend d
               JOIN (SELECT 'pg_class'::regclass AS class, oid, relname AS name FROM pg_class WHERE relnamespace = n.oid
                     UNION ALL SELECT 'pg_proc'::regclass, oid, proname FROM pg_proc WHERE pronamespace = n.oid
                     UNION ALL SELECT 'pg_type'::regclass, oid, typname FROM pg_type WHERE typnamespace = n.oid
                     UNION ALL SELECT 'pg_opclass'::regclass, oid, opcname FROM pg_opclass WHERE opcnamespace = n.oid
                     UNION ALL SELECT 'pg_operator'::regclass, oid, oprname FROM pg_operator WHERE oprnamespace = n.oid) o
                 ON d.classid = o.class AND d.objid = o.oid
              WHERE d.deptype = 'e')::text[] AS shared,
       ARRAY(SELECT extname FROM pg_extension WHERE extnamespace = n.oid ORDER BY 1)::text[] AS extensions
  FROM pg_namespace n WHERE n.nspname = $1";

impl Schemas {
    /// Looks at the user's schema.
    pub fn new(
        server: Arc<Server>,
        address: &PostgresAddress,
        facts: &Facts,
        names: Names,
        root: &Path,
        track: &Track,
    ) -> anyhow::Result<Self> {
        // Asked in a session with the user's own settings, and nothing but that.
        let mut plain = connection::connect(&server.config_of(address.database(), server.application()))?;
        let schema: Option<String> =
            plain.query_one("SELECT pg_catalog.current_schema()::pg_catalog.text", &[])?.get(0);
        plain.close()?;
        let row = server.own.with(|client| client.query_opt(SOURCE, &[&schema])).map_err(readable)?;
        let row = row.context("the login's search path names no schema that exists")?;
        let source = Source {
            name: row.get("name"),
            schema: row.get("schema"),
            is_empty: row.get("is_empty"),
            shared: row.get("shared"),
            extensions: row.get("extensions"),
        };
        let dump_file = root.join(format!("template{}.sql", names.suffix));
        Ok(Self {
            server,
            address: address.clone(),
            has_roles: facts.may_create_roles,
            facts: facts.clone(),
            names,
            source,
            dump_file,
            passwords: Passwords::default(),
            track: track.clone(),
            unwatched: Unwatched::default(),
        })
    }

    /// A lane's schema is always filled again, and who is connected goes on in it; but nobody may
    /// have it locked.
    pub fn renew(&self, place: Place, is_alone: bool) -> Renewal {
        let mut renewal = Renewal { again: Some(Again::InPlace), ..Renewal::default() };
        match self.server.end_transactions_of(&self.names.of(place), is_alone) {
            Ok(_) if is_alone => {}
            Ok(open) => open.iter().for_each(|statement| renewal.left("transaction", statement)),
            // All that is in the way is ended then.
            Err(_) => renewal.again = Some(Again::Always),
        }
        renewal
    }

    /// Whether rows are watched, as far as is known.
    pub fn is_watching(&self) -> bool {
        !self.track.is_off()
    }

    fn home(&self) -> anyhow::Result<Home> {
        let name = self.names.of(Place::Run);
        Home::of_run(&name, &self.names.tag, self.names.mark(Place::Run))
    }

    /// Makes the log of all lanes. Tables of the user's own are watched only where they were
    /// named: who writes into them has left its lane.
    pub fn create_log(&self) -> anyhow::Result<()> {
        let home = self.home()?;
        let made = self.server.own.with(|client| {
            let tables = if self.track.is_explicit { table::watched(client, &self.track)? } else { Vec::new() };
            home.install(client, &tables, Ground::Outside)
        });
        made.map_err(readable)
    }

    /// Puts triggers on the tables of a lane. Where that does not go, the lane is as good for
    /// its tests.
    fn watch(&self, place: Place, name: &str) {
        let Some(lane) = place.lane().filter(|_| self.is_watching()) else { return };
        let watched = self.home().and_then(|home| {
            self.server.own.with(|client| {
                let tables = table::of_lane(client, name, &self.source.name, &self.track)?;
                home.extend(client, &tables, Ground::Lane(lane))
            })
        });
        self.unwatched.note(watched);
    }

    /// Whether each lane has a login role of its own.
    pub fn has_roles(&self) -> bool {
        self.has_roles
    }

    /// What the user should know of lanes like these; `None` where there is nothing.
    pub fn caveat(&self) -> Option<String> {
        let login = (!self.has_roles).then(|| {
            format!(
                "the role {} may not create roles, so lanes share it, and the search path is in the address and PGOPTIONS",
                self.address.user()
            )
        });
        let Source { schema, extensions, .. } = &self.source;
        let extensions = (!extensions.is_empty())
            .then(|| format!("what {} made in {schema} is outside of a lane's search path", extensions.join(", ")));
        let caveats: Vec<_> = login.into_iter().chain(extensions).collect();
        (!caveats.is_empty()).then(|| caveats.join("; "))
    }

    /// Whether there is anything to copy into a lane.
    pub fn has_source(&self) -> bool {
        !self.source.is_empty
    }

    /// Makes a lane's role, marked, with its search path.
    pub fn create_role(&self, place: Place) -> anyhow::Result<()> {
        let name = self.names.of(place);
        let role = identifier(&name)?;
        let sql = format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{}'; COMMENT ON ROLE {role} IS '{}';
             GRANT {role} TO CURRENT_USER; ALTER ROLE {role} SET search_path = {role};",
            self.passwords.verifier(place),
            self.names.mark(place)
        );
        let made = self.server.own.with(|client| client.batch_execute(&sql));
        if made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_OBJECT)) {
            self.server.drop_role(&name)?;
            return self.server.own.with(|client| client.batch_execute(&sql)).map_err(readable);
        }
        made.map_err(readable)
    }

    /// Makes a lane's schema, marked, and fills it.
    pub fn create_schema(&self, place: Place, has_setup: bool) -> anyhow::Result<()> {
        let name = self.names.of(place);
        let schema = identifier(&name)?;
        let owner = if self.has_roles { format!(" AUTHORIZATION {schema}") } else { String::new() };
        let sql = format!("CREATE SCHEMA {schema}{owner}; COMMENT ON SCHEMA {schema} IS '{}';", self.names.mark(place));
        let made = self.server.own.with(|client| client.batch_execute(&sql));
        if made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_SCHEMA)) {
            self.server.drop_schema(&name)?;
            self.server.own.with(|client| client.batch_execute(&sql)).map_err(readable)?;
        } else {
            made.map_err(readable)?;
        }
        // Setup builds from nothing, as on a new machine.
        if place == Place::Template {
            return Ok(());
        }
        if has_setup {
            self.fill(place, &self.template_dump())?;
        } else if self.has_source() {
            self.fill(place, &self.source_dump())?;
        }
        self.watch(place, &name);
        Ok(())
    }

    fn fill(&self, place: Place, dump: &SchemaDump<'_>) -> anyhow::Result<()> {
        fault::before(Step::Fill)?;
        let name = self.names.of(place);
        let password = self.passwords.of(place);
        let login = if self.has_roles { Some((name.as_str(), &password)) } else { None };
        self.programs().restore_schema(login, dump, &self.dump_file, &name)?;
        fault::after(Step::Fill)
    }

    fn programs(&self) -> Programs<'_> {
        Programs { address: &self.address, facts: &self.facts, application: self.server.application() }
    }

    fn source_dump(&self) -> SchemaDump<'_> {
        SchemaDump { schema: self.source.schema.clone(), shared: &self.source.shared }
    }

    fn template_dump(&self) -> SchemaDump<'_> {
        SchemaDump { schema: self.names.of(Place::Template), shared: &[] }
    }

    /// Writes down what lanes are filled with.
    pub fn dump(&self, has_setup: bool) -> anyhow::Result<()> {
        let schema = if has_setup { self.names.of(Place::Template) } else { self.source.schema.clone() };
        self.programs().dump_schema(&schema, &self.dump_file)
    }

    /// Logs in as the lane's worker will and looks where it comes out.
    pub fn verify(&self, place: Place) -> anyhow::Result<()> {
        let name = self.names.of(place);
        let mut config = connection::config(&self.address, self.server.application())?;
        if self.has_roles {
            config.user(&name).password(self.passwords.of(place).reveal());
        } else {
            config.options(&format!("-csearch_path={name}"));
        }
        let mut client = connection::connect(&config).context("a worker could not log in to its lane")?;
        let row = client.query_one("SELECT current_schema()::text, array_length(current_schemas(false), 1)", &[])?;
        let (schema, count): (Option<String>, Option<i32>) = (row.get(0), row.get(1));
        client.close()?;
        ensure!(
            schema.as_deref() == Some(&name) && count == Some(1),
            "a worker of {name} would work in {}",
            schema.unwrap_or_default()
        );
        Ok(())
    }
}
