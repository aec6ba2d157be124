//! The capture: triggers that write down who wrote which rows, in a schema of isolane's own.
//!
//! One log row a statement and table, with the keys of all rows that it wrote: what a
//! statement costs does not grow by a row of ours for each of the user's. The log is unlogged,
//! which is all the durability that a test run needs. A trigger must never fail, nor change
//! anything that the user's session can see: it uses no sequence (`lastval()` is the
//! session's), no name of the session's search path, and no column that may be gone.
//!
//! Rows that changed or went are kept in `image` as they were before, to be put back.

pub mod harvest;
pub mod lookup;
mod replay;
pub mod rows;
pub mod table;

use postgres::Client;
use postgres::error::SqlState;

use super::identifier;
use crate::name::{Identifier, Tag};
use crate::touch::Ground;
use table::Table;

/// How long a lock on one of the user's tables is waited for. Less than the second after
/// which the server looks for deadlocks: it is always isolane that gives way.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";
/// How often the locks are tried for.
const TRIES: u32 = 20;

/// How a writer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// All that is written here is one lane's.
    OneLane,
    /// Sessions of lanes have logins or application names that begin with the run's name;
    /// others may have a lane's prefix in what they write.
    Sessions,
}

/// Where the log of a run is.
#[derive(Clone, Debug)]
pub struct Home {
    schema: Identifier,
    tag: Tag,
    mark: String,
    writers: Writers,
}

impl Home {
    /// The schema `name` of the run with this tag, marked so.
    pub fn new(name: &str, tag: &Tag, mark: String, writers: Writers) -> anyhow::Result<Self> {
        Ok(Self { schema: identifier(name)?, tag: tag.clone(), mark, writers })
    }

    /// SQL that makes it, in place of one that a template or an earlier try brought.
    fn found(&self) -> String {
        let Self { schema, mark, .. } = self;
        format!(
            "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS '{mark}';
             CREATE TABLE {schema}.watched (rel int PRIMARY KEY, oid oid NOT NULL, kind text NOT NULL, own_kind text NOT NULL,
                 lane int, columns text[] NOT NULL, types text[] NOT NULL, form \"char\" NOT NULL);
             CREATE UNLOGGED TABLE {schema}.log (at timestamptz NOT NULL, pid int NOT NULL, rel int NOT NULL, op \"char\" NOT NULL,
                 who name NOT NULL, app text, lane int, keys text[] NOT NULL, was text[]);
             ALTER TABLE {schema}.log ALTER keys SET STORAGE EXTERNAL;
             CREATE UNLOGGED TABLE {schema}.harvested (LIKE {schema}.log INCLUDING STORAGE);
             CREATE UNLOGGED TABLE {schema}.image (at timestamptz NOT NULL, rel int NOT NULL, key text, row jsonb NOT NULL);
             CREATE FUNCTION {schema}.truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $isolane$ BEGIN
                 INSERT INTO {schema}.log (at, pid, rel, op, who, app, keys) VALUES (pg_catalog.clock_timestamp(), pg_catalog.pg_backend_pid(),
                     TG_ARGV[0]::pg_catalog.int4, 'T', session_user, pg_catalog.current_setting('application_name'), '{{}}');
                 RETURN NULL; END $isolane$;\n"
        )
    }

    /// SQL that watches `table`, known here as `rel`.
    fn watch(&self, table: &Table, rel: i32, ground: Ground) -> String {
        let Self { schema, tag, .. } = self;
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let list = |texts: &[String]| {
            format!("ARRAY[{}]::text[]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
        };
        let name = &table.sql;
        let trigger = |what: &str| format!("isolane_{tag}_{what}");
        let after = |what: &str, transition: &str| {
            format!(
                "CREATE TRIGGER {} AFTER {what} ON {name} REFERENCING {transition} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.t{rel}();\n",
                trigger(&what.to_lowercase())
            )
        };
        format!(
            "INSERT INTO {schema}.watched VALUES ({rel}, {oid}, {kind}, {own_kind}, {lane}, {columns}, {types}, '{form}');
             CREATE FUNCTION {schema}.t{rel}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $isolane$ {body} $isolane$;
             {insert}{update}{delete}CREATE TRIGGER {truncate} BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.truncated({rel});\n",
            oid = table.oid,
            kind = quoted(&table.kind),
            own_kind = quoted(&table.own_kind),
            lane = ground.number().map_or("NULL".to_owned(), |number| number.to_string()),
            columns = list(&table.key.columns),
            types = list(&table.key.types),
            form = table.key.form.letter(),
            body = self.body(table, rel),
            insert = after("INSERT", "NEW TABLE AS isolane_new"),
            update = after("UPDATE", "NEW TABLE AS isolane_new OLD TABLE AS isolane_old"),
            delete = after("DELETE", "OLD TABLE AS isolane_old"),
            truncate = trigger("truncate"),
        )
    }

    /// What the trigger does: for an insert, which is most of what tests do, one statement.
    fn body(&self, table: &Table, rel: i32) -> String {
        let schema = &self.schema;
        let keys = |rows: &str| format!("ARRAY({})", table.key.of_each(rows, ""));
        let log = format!("INSERT INTO {schema}.log (at, pid, rel, op, who, app, lane, keys, was)");
        let head = |op: char| {
            format!(
                "now_, pg_catalog.pg_backend_pid(), {rel}, '{op}', session_user, pg_catalog.current_setting('application_name')"
            )
        };
        let image = format!(
            "INSERT INTO {schema}.image (at, rel, key, row) SELECT now_, {rel}, o.k, o.image FROM ({}) AS o;",
            table.key.of_each("isolane_old", ", pg_catalog.to_jsonb(n) AS image")
        );
        let note = |op: char, keys: &str, rows: &str| {
            let plain = format!("{log} VALUES ({}, NULL, {keys}, NULL);", head(op));
            if self.writers == Writers::OneLane {
                return plain;
            }
            let lane = format!(
                ", pg_catalog.substring(n::pg_catalog.text, 'i{}w([0-9]{{1,4}})x')::pg_catalog.int4 AS lane",
                self.tag
            );
            format!(
                "IF {ours} THEN {plain} ELSE {log} SELECT {head}, s.lane, pg_catalog.array_agg(s.k), NULL FROM ({each}) AS s GROUP BY s.lane; END IF;",
                ours = self.is_ours(),
                head = head(op),
                each = table.key.of_each(rows, &lane),
            )
        };
        format!(
            "DECLARE now_ pg_catalog.timestamptz := pg_catalog.clock_timestamp(); new_ pg_catalog.text[]; old_ pg_catalog.text[]; BEGIN
             IF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN
                 {insert}
             ELSE
                 old_ := {old};
                 IF pg_catalog.cardinality(old_) OPERATOR(pg_catalog.=) 0 THEN
                     RETURN NULL;
                 ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
                     {delete}
                 ELSE
                     new_ := {new};
                     IF new_ OPERATOR(pg_catalog.<>) old_ THEN
                         {log} VALUES ({head_u}, NULL, new_, old_);
                     ELSE
                         {update}
                     END IF;
                 END IF;
                 {image}
             END IF;
             RETURN NULL; END",
            insert = note('I', &keys("isolane_new"), "isolane_new"),
            old = keys("isolane_old"),
            delete = note('D', "old_", "isolane_old"),
            new = keys("isolane_new"),
            head_u = head('U'),
            update = note('U', "new_", "isolane_new"),
        )
    }

    /// SQL: whether the session is a lane's.
    fn is_ours(&self) -> String {
        let begins = format!("'isolane_{}_w'", self.tag);
        format!(
            "pg_catalog.starts_with(session_user::pg_catalog.text, {begins}) OR pg_catalog.starts_with(pg_catalog.current_setting('application_name'), {begins})"
        )
    }

    /// Makes the log and watches these tables, all or nothing.
    pub fn install(&self, client: &mut Client, tables: &[Table], ground: Ground) -> Result<(), postgres::Error> {
        begin(client, &(self.found() + &self.watch_all(tables, ground)))
    }

    /// Watches these tables as well.
    pub fn extend(&self, client: &mut Client, tables: &[Table], ground: Ground) -> Result<(), postgres::Error> {
        begin(client, &self.watch_all(tables, ground))
    }

    fn watch_all(&self, tables: &[Table], ground: Ground) -> String {
        // Lanes that share a log have numbers of their own.
        let base = (ground.number().unwrap_or(-1) + 1) * 100_000;
        let tables = tables.iter().filter(|table| table.may_watch);
        (base..).zip(tables).map(|(rel, table)| self.watch(table, rel, ground)).collect()
    }
}

/// Watches tables in one transaction.
fn begin(client: &mut Client, sql: &str) -> Result<(), postgres::Error> {
    // Bodies are looked at when they run, and these are known to be good.
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; SET LOCAL check_function_bodies = off; {sql} COMMIT;"))
}

/// Does this in a transaction that needs locks on the user's tables, again and again until it
/// gets them.
fn patiently(client: &mut Client, sql: &str) -> Result<(), postgres::Error> {
    let mut tries = 0;
    loop {
        let error = match client.batch_execute(sql) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        client.batch_execute("ROLLBACK")?;
        tries += 1;
        let in_the_way = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED]
            .iter()
            .any(|code| error.code() == Some(code));
        if !in_the_way || tries == TRIES {
            return Err(error);
        }
        // Whoever waits behind us gets a turn.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Takes the triggers of this schema's log away, and leaves the log.
pub fn stop(client: &mut Client, schema: &Identifier) -> Result<(), postgres::Error> {
    // Nothing but the triggers hangs on them.
    let functions = "SELECT string_agg(format('%I.%I()', n.nspname, p.proname), ', ')
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE format('\"%s\"', n.nspname) = $1";
    let functions: Option<String> = client.query_one(functions, &[&schema.to_string()])?.get(0);
    let Some(functions) = functions else { return Ok(()) };
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; DROP FUNCTION {functions} CASCADE; COMMIT;"))
}

/// Drops a schema with what is in it, and its triggers wherever they are, all at once.
pub fn drop_schema(client: &mut Client, schema: &Identifier) -> Result<(), postgres::Error> {
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; DROP SCHEMA IF EXISTS {schema} CASCADE; COMMIT;"))
}

/// SQL that takes away what a copy has of other runs' logs, as far as the login may.
pub fn forget_others(tag: &Tag) -> String {
    format!(
        "DO $others$ DECLARE name text; BEGIN
             FOR name IN SELECT nspname FROM pg_namespace
                 WHERE starts_with(obj_description(oid, 'pg_namespace'), '{}') AND nspname !~ '^isolane_{tag}' LOOP
                 BEGIN EXECUTE format('DROP SCHEMA %I CASCADE', name); EXCEPTION WHEN insufficient_privilege THEN NULL; END;
             END LOOP;
         END $others$",
        crate::mark::HEAD
    )
}

/// SQL that takes other runs' triggers off the tables of `schema`, which a dump brought there.
pub fn forget_triggers_of_others(schema: &Identifier) -> String {
    format!(
        "DO $others$ DECLARE its record; BEGIN
             FOR its IN SELECT t.tgname, t.tgrelid::regclass AS name FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                 JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE c.relnamespace = '{schema}'::regnamespace AND starts_with(obj_description(n.oid, 'pg_namespace'), '{}') LOOP
                 EXECUTE format('DROP TRIGGER %I ON %s', its.tgname, its.name);
             END LOOP;
         END $others$",
        crate::mark::HEAD
    )
}
