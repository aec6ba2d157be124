//! The guard: triggers on tables whose rows are leased, which refuse a write to a leased row by
//! anybody but its holder, or only warn of it.
//!
//! It stands in the schema of the run's log, so it goes with that: at the run's end, by the
//! watchdog, the next run or a sweep. Who is not the holder is refused, whoever that is: a lane, the
//! user at a shell, a superuser, replication; only who switches triggers off is not. A transaction that sees the database as it was before
//! (`REPEATABLE READ`) sees its leases as they were, too.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use postgres::{Client, Config};

use super::connection::{self, readable};
use super::{identifier, pool_table};
use crate::address::PostgresAddress;
use crate::lease::definition::{Guard, Table};
use crate::lease::grant::Lease;
use crate::name::{Identifier, Lane, Place, RunId, Tag};

/// What the sessions are called that tell the guard who holds what.
const APPLICATION: &str = "isolane guard";

/// Puts the guard on these tables, into a schema that is there. Where lanes have no roles of their
/// own, sessions are told apart by what they call themselves.
pub fn install(client: &mut Client, schema: &str, tag: &Tag, tables: &[Table], has_roles: bool) -> anyhow::Result<()> {
    let guarded: Vec<&Table> = tables.iter().filter(|table| table.guard != Guard::Off).collect();
    if guarded.is_empty() {
        return Ok(());
    }
    let schema = identifier(schema)?;
    let mut sql = made(&schema, has_roles);
    let mut names: Vec<&str> = Vec::new();
    for table in guarded {
        if names.contains(&&*table.name) {
            bail!("two pools guard the table {}; one of them can", table.name);
        }
        names.push(&table.name);
        let on = pool_table::quoted(&table.name)?;
        let on: Option<String> = client
            .query_one("SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)", &[&on])
            .map(|row| row.get(0))
            .with_context(|| format!("the table {} cannot be guarded", table.name))?;
        let on = on.with_context(|| format!("the database has no table {}", table.name))?;
        let how = if table.guard == Guard::Refuse { "refuse" } else { "note" };
        let literal = postgres_protocol::escape::escape_literal;
        let its = [&*table.name, &*table.key, how].map(literal).join(", ");
        sql.push_str(&format!(
            "CREATE TRIGGER isolane_{tag}_guard AFTER UPDATE OR DELETE ON {on} FOR EACH ROW EXECUTE FUNCTION {schema}.guard({its});
             CREATE TRIGGER isolane_{tag}_guard_all BEFORE TRUNCATE ON {on} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.guard({its});
             ALTER TABLE {on} ENABLE ALWAYS TRIGGER isolane_{tag}_guard, ENABLE ALWAYS TRIGGER isolane_{tag}_guard_all;\n"
        ));
    }
    let done = client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '10s'; {sql} COMMIT;"));
    if done.is_err() {
        client.batch_execute("ROLLBACK")?;
    }
    done.map_err(|error| readable(error.into())).context("the leased rows cannot be guarded")
}

/// What all guarded tables share.
fn made(schema: &Identifier, has_roles: bool) -> String {
    let ours = if has_roles { "session_user::text" } else { "current_setting('application_name')" };
    format!(
        "CREATE TABLE {schema}.leased (tab text NOT NULL, key text NOT NULL, lease_id text NOT NULL, fence bigint NOT NULL,
             who text NOT NULL, holder text NOT NULL, PRIMARY KEY (tab, key, lease_id));
         CREATE FUNCTION {schema}.guard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $isolane$
         DECLARE key_ text; it record; said text;
         BEGIN
             IF TG_OP <> 'TRUNCATE' THEN key_ := to_jsonb(OLD) ->> TG_ARGV[1]; END IF;
             SELECT l.* INTO it FROM {schema}.leased l
              WHERE l.tab = TG_ARGV[0] AND (key_ IS NULL OR l.key = key_)
                AND NOT EXISTS (SELECT FROM {schema}.leased o WHERE o.tab = l.tab AND o.key = l.key
                                   AND o.who = {ours})
              LIMIT 1;
             IF FOUND THEN
                 said := format('%s %s=%s is leased by %s, lease %s, and %s is not its holder',
                     TG_ARGV[0], TG_ARGV[1], it.key, it.holder, it.lease_id, session_user);
                 IF TG_ARGV[2] = 'refuse' THEN
                     RAISE EXCEPTION '%', said USING ERRCODE = 'object_in_use',
                         HINT = 'Lease the row before writing to it, or wait until its lease ends.';
                 END IF;
                 RAISE WARNING '%', said;
             END IF;
             RETURN NULL;
         END $isolane$;\n"
    )
}

/// Tells the guard of a run who holds what.
pub struct Guardian {
    config: Config,
    schema: Identifier,
    tag: Tag,
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Guardian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guardian").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Guardian {
    /// That of the run with this tag in the database at `address`.
    pub fn new(address: &PostgresAddress, tag: &Tag) -> anyhow::Result<Self> {
        let schema = identifier(&Place::Run.schema(tag))?;
        let config = connection::config(address, APPLICATION)?;
        Ok(Self { config, schema, tag: tag.clone(), client: Mutex::default() })
    }

    /// From now on, the items of this lease that are rows of `table_of` their pools are its
    /// holder's; before the holder is told that it has them.
    pub fn holds<'a>(&self, lease: &Lease, table_of: impl Fn(&str) -> Option<&'a Table>) -> anyhow::Result<()> {
        let is_ours = lease.holder.run.as_deref().and_then(RunId::parse).is_some_and(|run| run.tag() == self.tag);
        // Who has no lane cannot be told from others on the server, so its rows stay unguarded.
        let Some(lane) = lease.holder.lane.filter(|_| is_ours) else { return Ok(()) };
        let who = Place::Lane(Lane(lane)).schema(&self.tag);
        let rows: Vec<(&str, &str)> =
            lease.items.iter().filter_map(|held| Some((&*table_of(&held.pool)?.name, &*held.name))).collect();
        let (tables, keys): (Vec<&str>, Vec<&str>) = rows.into_iter().unzip();
        let fence = i64::try_from(lease.fence).unwrap_or(i64::MAX);
        let sql = format!(
            "INSERT INTO {}.leased SELECT tab, key, $3, $4, $5, $6 FROM unnest($1::text[], $2::text[]) AS it (tab, key)
             ON CONFLICT DO NOTHING",
            self.schema
        );
        self.with(|client| client.execute(&sql, &[&tables, &keys, &lease.id, &fence, &who, &lease.holder.to_string()]))
    }

    /// Of the leases up to this fence, these are held and no others.
    pub fn held(&self, leases: &[String], fence: u64) -> anyhow::Result<()> {
        let sql = format!("DELETE FROM {}.leased WHERE fence <= $1 AND lease_id <> ALL ($2)", self.schema);
        let fence = i64::try_from(fence).unwrap_or(i64::MAX);
        self.with(|client| client.execute(&sql, &[&fence, &leases]))
    }

    fn with(&self, work: impl Fn(&mut Client) -> Result<u64, postgres::Error>) -> anyhow::Result<()> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        loop {
            if client.as_ref().is_none_or(Client::is_closed) {
                *client = Some(connection::own_session(&self.config)?);
                is_new = true;
            }
            let Some(session) = client.as_mut() else { bail!("the guard has no session") };
            match work(session) {
                Ok(_) => return Ok(()),
                // Both may be done twice.
                Err(_) if session.is_closed() && !is_new => {}
                Err(error) => return Err(readable(error.into())),
            }
        }
    }
}
