//! What isolane does on a server for every kind of lane: hold connections, end sessions,
//! drop things. It knows an address and names, so it serves a run that is dead as well.

mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Config};
use postgres_protocol::escape::escape_literal;

use super::capture;
use super::claim;
use super::connection::{self, AFTERGLOW, KeptOpen, Pool, readable};
use super::identifier;
use crate::address::PostgresAddress;
use crate::mark::{self, Mark};
use crate::name::Tag;
use crate::provider::{Census, Resource, ResourceKind, Rows, Sink, Site};

/// The database that is there to be connected to.
pub const COMMON: &str = "postgres";
/// How long after the server's start everybody who lives has said so.
const SETTLED: Duration = Duration::from_secs(4);
/// How long sessions may take to end after they were told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// The server that an address names, on behalf of one run.
#[derive(Debug)]
pub struct Server {
    id: String,
    config: Config,
    /// Connections to the user's own database.
    pub own: Arc<Pool>,
    /// Connections for CREATE and DROP DATABASE, to a database that is no source.
    pub maintenance: Arc<Pool>,
    application: String,
    tag: Tag,
    /// How often isolane itself was in lanes' own databases.
    visits: AtomicI64,
}

/// Sessions of this name may still make something, after the process that asked for it is dead.
const END_MAKERS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = ANY ($1) AND usename = current_user AND pid <> pg_backend_pid()";
const END_SESSIONS_IN_DATABASE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = $1 AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')";
const USERS: &str = "SELECT string_agg(DISTINCT coalesce(usename, 'the server'), ', ')
    FROM pg_stat_activity WHERE datname = $1";
/// Without roles nothing tells a lane's sessions from others, except the name that
/// libpq's clients take from `PGAPPNAME`.
const END_SESSIONS_OF_LANE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE (usename = $1 OR application_name = $1) AND pid <> pg_backend_pid()";

/// Those of them that may have something locked, or all; and whether they wrote or are at work.
const END_TRANSACTIONS_OF_LANE: &str = "SELECT pid, left(regexp_replace(coalesce(query, ''), '\\s+', ' ', 'g'), 80),
           state = 'active' OR backend_xid IS NOT NULL OR backend_xmin IS NOT NULL, pg_terminate_backend(pid)
      FROM pg_stat_activity WHERE (usename = $1 OR application_name = $1) AND pid <> pg_backend_pid() AND (state <> 'idle' OR $2)";

/// A lane's role may be a member of the login, which has no power over it then: they change
/// places. (A superuser has it anyway.)
const REACH: &str = "DECLARE member text; BEGIN
    FOR member IN SELECT r.rolname FROM pg_roles r JOIN pg_auth_members m ON m.member = r.oid JOIN pg_roles u ON u.oid = m.roleid
        WHERE r.rolname IN ({names}) AND u.rolname = session_user AND NOT pg_has_role(session_user, r.oid, 'USAGE') LOOP
        EXECUTE format('REVOKE %I FROM %I', session_user, member);
        EXECUTE format('GRANT %I TO %I', member, session_user);
    END LOOP; END;";

impl Server {
    /// How the id of every server begins.
    pub const SCHEME: &str = "postgresql:";

    /// The same server under the id that it had in an address spelled otherwise.
    #[must_use]
    pub fn called(self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self }
    }

    /// Nothing is connected yet.
    pub fn new(address: &PostgresAddress, tag: &Tag) -> anyhow::Result<Self> {
        let application = application(tag);
        let own = connection::config(address, &application)?;
        let maintenance = maintenance_databases(address).map(|database| own.clone().dbname(database).clone()).collect();
        Ok(Self {
            id: address.id(),
            maintenance: Pool::new(maintenance),
            own: Pool::new(vec![own.clone()]),
            config: own,
            application,
            tag: tag.clone(),
            visits: AtomicI64::new(0),
        })
    }

    /// How to connect to one of its databases under this name.
    pub fn config_of(&self, database: &str, application: &str) -> Config {
        let mut config = self.config.clone();
        config.dbname(database).application_name(application);
        // A way that forgets quiet sessions must not forget one that is quiet for hours.
        let (idle, pause) = (Duration::from_secs(10), Duration::from_secs(5));
        config.keepalives_idle(idle).keepalives_interval(pause).keepalives_retries(3);
        config
    }

    /// Removes things of one kind, all or none, if their runs are dead and they still carry
    /// these marks; what is not there is removed. Of databases it takes one.
    pub fn remove_proven(&self, things: &[(&Resource, &Mark)]) -> anyhow::Result<()> {
        let Some((first, _)) = things.first() else { return Ok(()) };
        let list =
            |each: &dyn Fn(&(&Resource, &Mark)) -> String| things.iter().map(each).collect::<Vec<_>>().join(", ");
        let is_database = first.kind == ResourceKind::Database;
        let (catalog, name, comment, drop) = match first.kind {
            ResourceKind::Database => ("pg_database", "datname", "shobj_description(oid, 'pg_database')", "NULL;"),
            ResourceKind::Schema => (
                "pg_namespace",
                "nspname",
                "obj_description(oid, 'pg_namespace')",
                "EXECUTE format('DROP SCHEMA %I CASCADE', thing.name);",
            ),
            ResourceKind::Role => (
                "pg_roles",
                "rolname",
                "shobj_description(oid, 'pg_authid')",
                "EXECUTE format('DROP OWNED BY %I CASCADE; DROP ROLE %I', thing.name, thing.name);",
            ),
            ResourceKind::File | ResourceKind::Directory | ResourceKind::Process => {
                bail!("a server has no {}", first.kind.as_str())
            }
        };
        let names = list(&|(resource, _)| escape_literal(&resource.name));
        let within = if is_database {
            format!("datid IN (SELECT oid FROM pg_database WHERE datname IN ({names}))")
        } else {
            format!(
                "(usesysid IN (SELECT oid FROM pg_roles WHERE rolname IN ({names})) OR application_name IN ({names}))"
            )
        };
        // In one statement, so that nothing comes between the proof and the deed. Only the
        // removal of a database must be one of its own. (The view of all sessions would join
        // every role and database each time.)
        let sql = format!(
            "DO $proven$ DECLARE thing record; BEGIN
                 IF EXISTS (SELECT {held} AND {number} IN ({keys})) THEN RAISE 'its run lives'; END IF;
                 FOR thing IN SELECT {name}::text AS name, {comment} AS comment, mark
                     FROM {catalog} JOIN (VALUES {marks}) AS found (wanted, mark) ON {name} = wanted LOOP
                     IF thing.comment IS DISTINCT FROM thing.mark THEN RAISE 'it carries another mark now'; END IF;
                 END LOOP;
                 {reach}
                 PERFORM pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL)
                   WHERE {within} AND pid <> pg_backend_pid();
                 FOR thing IN SELECT {name}::text AS name FROM {catalog} WHERE {name} IN ({names}) LOOP
                     {drop}
                 END LOOP;
             END $proven$",
            held = claim::HELD,
            number = claim::NUMBER,
            reach = if first.kind == ResourceKind::Role { REACH.replace("{names}", &names) } else { String::new() },
            keys = list(&|(_, mark)| claim::key(&mark.run.tag()).to_string()),
            marks = list(&|(resource, mark)| format!(
                "({}, {})",
                escape_literal(&resource.name),
                escape_literal(&mark.to_string())
            )),
        );
        let proven = self.own.with(|client| client.batch_execute(&sql)).map_err(readable);
        let removed = proven.and_then(|()| if is_database { self.drop_database_at_once(&first.name) } else { Ok(()) });
        removed.with_context(|| format!("cannot remove the {} {}", first.kind.as_str(), first.name))
    }

    /// Keeps sessions open between two pieces of work.
    pub fn keep_open(&self) -> (KeptOpen, KeptOpen) {
        (self.own.keep_open(), self.maintenance.keep_open())
    }

    /// Ends the sessions that may still make something for these dead runs.
    pub fn end_makers<'a>(&self, dead: impl Iterator<Item = &'a Tag>) -> anyhow::Result<()> {
        let names: Vec<String> = dead.map(application).collect();
        end(&self.maintenance, END_MAKERS, &names)
    }

    /// What this run's own sessions are called on the server.
    pub fn application(&self) -> &str {
        &self.application
    }

    /// Ends all sessions in a database.
    pub fn end_sessions_in(&self, database: &str) -> anyhow::Result<()> {
        end(&self.maintenance, END_SESSIONS_IN_DATABASE, &database)
    }

    /// Ends the open transactions of a lane (of everybody in it, if `all`); what comes back are the last
    /// statements of those that wrote or were at work.
    pub fn end_transactions_of(&self, lane: &str, all: bool) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut open = BTreeMap::new();
        loop {
            let rows =
                self.own.with(|client| client.query(END_TRANSACTIONS_OF_LANE, &[&lane, &all])).map_err(readable)?;
            if rows.is_empty() {
                return Ok(open.into_values().collect());
            }
            ensure!(Instant::now() < deadline, "{} sessions do not end", rows.len());
            let at_work = rows.iter().filter(|row| row.get(2));
            open.extend(at_work.map(|row| (row.get::<_, i32>(0), row.get::<_, String>(1))));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Drops a database whose sessions were ended, and takes the longer way where something
    /// stands in the way still.
    fn drop_database_at_once(&self, name: &str) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {}", identifier(name)?);
        match self.maintenance.with(|client| client.batch_execute(&sql)) {
            Ok(()) => Ok(()),
            Err(_) => self.drop_database(name),
        }
    }

    /// Drops a database of the run's.
    pub fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {}", identifier(name)?);
        self.roll_back_prepared(name)?;
        let mut last = None;
        for _ in 0..3 {
            self.end_sessions_in(name)?;
            let dropped = self.maintenance.with(|client| client.batch_execute(&sql));
            match dropped.as_ref().map_err(connection::code) {
                // A new session came in between; the next round ends it.
                Err(Some(code)) if *code == SqlState::OBJECT_IN_USE => {}
                // A test made a template of it.
                Err(Some(code)) if *code == SqlState::WRONG_OBJECT_TYPE => {
                    let ordinary = format!("ALTER DATABASE {} IS_TEMPLATE false", identifier(name)?);
                    self.maintenance.with(|client| client.batch_execute(&ordinary)).map_err(readable)?;
                }
                _ => return dropped.map_err(readable),
            }
            last = dropped.err();
        }
        let who = self.maintenance.with(|client| client.query_one(USERS, &[&name])).map_err(readable)?;
        match (who.get::<_, Option<String>>(0), last) {
            (Some(who), _) => bail!("sessions of {who} in it do not end, or new ones keep coming in"),
            (None, Some(error)) => Err(readable(error)),
            (None, None) => bail!("new sessions keep coming in"),
        }
    }

    /// Gives up what was prepared for a commit in two phases, which outlives its session and
    /// can be ended in its own database only.
    fn roll_back_prepared(&self, database: &str) -> anyhow::Result<()> {
        let sql = "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = $1";
        let prepared = self.maintenance.with(|client| client.query(sql, &[&database])).map_err(readable)?;
        if prepared.is_empty() {
            return Ok(());
        }
        let inside = Pool::new(vec![self.config.clone().dbname(database).clone()]);
        for row in prepared {
            let sql = format!("ROLLBACK PREPARED {}", row.get::<_, String>(0));
            inside.with(|client| client.batch_execute(&sql)).map_err(readable)?;
        }
        Ok(())
    }

    /// A session of isolane's own in one of its databases.
    pub fn visit(&self, database: &str) -> Result<Client, postgres::Error> {
        self.visits.fetch_add(1, Ordering::Relaxed);
        let config = self.config_of(database, &self.application);
        connection::patiently(AFTERGLOW, || connection::own_session(&config))
    }

    /// How many such sessions there were.
    pub fn visits(&self) -> i64 {
        self.visits.load(Ordering::Relaxed)
    }

    /// Drops a schema of the run's with what is in it.
    pub fn drop_schema(&self, name: &str) -> anyhow::Result<()> {
        let schema = identifier(name)?;
        // It may have triggers on tables that others work with.
        let dropped = self.own.with(|client| capture::drop_schema(client, &schema)).map_err(readable);
        self.tell_who(dropped, |client| capture::watched_by(client, &schema), true)
    }

    /// Drops a role of the run's with what it owns in the user's database.
    pub fn drop_role(&self, name: &str) -> anyhow::Result<()> {
        let role = identifier(name)?;
        let exists = self
            .own
            .with(|client| client.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&name]))
            .map_err(readable)?
            .is_some();
        if !exists {
            return Ok(());
        }
        // In one transaction: what the role owns goes only together with the role.
        let sql = format!("{} DROP OWNED BY {role} CASCADE; DROP ROLE {role};", reach(name));
        self.own.with(|client| client.batch_execute(&sql)).map_err(readable)
    }
}

/// SQL that lets the login end a role of the run's and its sessions.
fn reach(name: &str) -> String {
    format!("DO $reach$ BEGIN {} END $reach$;", REACH.replace("{names}", &format!("'{name}'")))
}

/// The databases to be connected to while databases are made and dropped, the best first:
/// not the one that is copied, if that can be.
pub fn maintenance_databases(address: &PostgresAddress) -> impl Iterator<Item = &str> {
    [COMMON, "template1"].into_iter().filter(|name| *name != address.database()).chain([address.database()])
}

/// What the sessions of the run with this tag are called on the server.
fn application(tag: &Tag) -> String {
    format!("isolane run {tag}")
}

fn end(pool: &Pool, sql: &str, names: &(impl ToSql + Sync)) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: i64 = pool.with(|client| client.query_one(sql, &[names])).map_err(readable)?.get(0);
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{left} sessions do not end");
        }
        // A session ends within a millisecond or so; DROP itself would look every 100 ms.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything on the server with a comment that begins as a mark does. Schemas are those of
/// the database that is connected to.
const MARKED: &str = "
    SELECT 'database' AS kind, d.datname::text AS name, c.description AS comment
      FROM pg_shdescription c JOIN pg_database d ON d.oid = c.objoid AND c.classoid = 'pg_database'::regclass
     WHERE starts_with(c.description, $1)
    UNION ALL
    SELECT 'role', r.rolname, c.description
      FROM pg_shdescription c JOIN pg_roles r ON r.oid = c.objoid AND c.classoid = 'pg_authid'::regclass
     WHERE starts_with(c.description, $1)
    UNION ALL
    SELECT 'schema', n.nspname, c.description
      FROM pg_description c JOIN pg_namespace n ON n.oid = c.objoid AND c.classoid = 'pg_namespace'::regclass
     WHERE starts_with(c.description, $1)
    ORDER BY name, kind";
/// How long the server has been up, in seconds.
const UPTIME: &str = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8";

impl Census for Server {
    fn marked(&self) -> anyhow::Result<Vec<(Resource, Mark)>> {
        let rows = self.own.with(|client| client.query(MARKED, &[&mark::HEAD])).map_err(readable)?;
        let marked = rows.iter().filter_map(|row| {
            let (kind, name): (&str, String) = (row.get("kind"), row.get("name"));
            let mark = Mark::parse(row.get("comment")).filter(|mark| mark.is_of(&name))?;
            let resource =
                Resource { provider: self.id.clone(), kind: ResourceKind::parse(kind)?, name, place: mark.place };
            Some((resource, mark))
        });
        Ok(marked.collect())
    }

    fn settle(&self) -> anyhow::Result<()> {
        let seconds: f64 = self.own.with(|client| client.query_one(UPTIME, &[])).map_err(readable)?.get(0);
        // Runs that live say so again when the server was restarted: it takes them a second.
        let early = SETTLED.saturating_sub(Duration::from_secs_f64(seconds.max(0.0)));
        std::thread::sleep(early);
        Ok(())
    }

    fn living(&self, among: &BTreeSet<Tag>) -> anyhow::Result<BTreeSet<Tag>> {
        let held = format!("SELECT DISTINCT {} {}", claim::NUMBER, claim::HELD);
        let rows = self.own.with(|client| client.query(&held, &[])).map_err(readable)?;
        let held: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        Ok(among.iter().filter(|tag| held.contains(&claim::key(tag))).cloned().collect())
    }
}

impl Site for Server {
    fn id(&self) -> &str {
        &self.id
    }

    fn take_over(&self, dead: &Tag) -> anyhow::Result<()> {
        self.end_makers(std::iter::once(dead))
    }

    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()> {
        match resource.kind {
            ResourceKind::Database => return self.end_sessions_in(&resource.name),
            ResourceKind::Role => {
                self.own.with(|client| client.batch_execute(&reach(&resource.name))).map_err(readable)?;
            }
            _ => {}
        }
        end(&self.own, END_SESSIONS_OF_LANE, &resource.name)
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        let name = &resource.name;
        let removed = match resource.kind {
            ResourceKind::Database => self.drop_database(name),
            ResourceKind::Schema => self.drop_schema(name),
            ResourceKind::Role => self.drop_role(name),
            ResourceKind::File | ResourceKind::Directory | ResourceKind::Process => {
                bail!("a server has no {}", resource.kind.as_str())
            }
        };
        removed.with_context(|| format!("cannot remove the {} {name}", resource.kind.as_str()))
    }

    fn harvest(&self, resource: &Resource, margin: Duration, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        Self::harvest(self, resource, margin, sink)
    }

    fn remove_rows(&self, resource: &Resource) -> anyhow::Result<Rows> {
        Self::remove_rows(self, resource)
    }

    fn let_go(&self, resource: &Resource) -> anyhow::Result<()> {
        Self::let_go(self, resource)
    }
}
