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
pub mod rows;
pub mod shape;
pub mod table;
pub mod undo;

use std::sync::{Mutex, PoisonError};

use postgres::Client;
use postgres::error::SqlState;
use postgres_protocol::escape::escape_literal;

use super::connection::readable;
use super::identifier;
use crate::error::one_line;
use crate::name::{Identifier, Tag};
use crate::touch::Ground;
use table::Table;

/// Changes with whatever is installed here: a template that is kept has it inside.
pub const VERSION: u32 = 2;
/// How long a lock on one of the user's tables is waited for. Less than the second after
/// which the server looks for deadlocks: it is always isolane that gives way.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '500ms'";
/// How often the locks are tried for, to watch tables and to leave them alone: what is not undone is
/// tried again by who undoes it.
const TRIES: (u32, u32) = (20, 4);

/// How far the numbers of two lanes' tables are apart.
const LANES_APART: i32 = 100_000;
/// What a value looks like as text must not hang on the session: keys are compared by it.
pub const TEXTS: &str = "SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1";

/// SQL, as one more column: a row as it was, for who looks for it.
const IMAGE_AS_JSON: &str = ", pg_catalog.to_jsonb(isolane_row) AS image";
/// The same for who puts it back: JSON would not give every type back as it was.
const IMAGE_AS_TEXT: &str = ", isolane_row::pg_catalog.text AS image";

/// SQL: what the session calls itself.
const APP: &str = "pg_catalog.current_setting('application_name')";

/// The log's schema in a database that is one lane's. It says nothing of the run, so that a
/// template can have it.
pub const LANE_LOG: &str = "isolane_log";
/// Its comment. It begins as a mark does and is none.
const LANE_MARK: &str = "isolane run log: what was written in this lane";

/// Whose writing a log is of.
#[derive(Clone, Debug)]
enum Writers {
    /// All that is written here is one lane's; it may have to be undone.
    OneLane { is_undone: bool },
    /// Sessions of the run with this tag have logins or application names that begin with the
    /// run's name; others may have a lane's prefix in what they write.
    Sessions(Tag),
}

/// Why rows of lanes are not watched, where they should be.
#[derive(Debug, Default)]
pub struct Unwatched(Mutex<Option<String>>);

impl Unwatched {
    /// Notes how it went with one lane; the first reason is told.
    pub fn note(&self, watched: anyhow::Result<()>) {
        if let Err(error) = watched {
            let why = one_line(&readable(error));
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        }
    }

    /// Why; nothing where all are watched.
    pub fn why(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where a log is.
#[derive(Clone, Debug)]
pub struct Home {
    schema: Identifier,
    mark: String,
    writers: Writers,
}

impl Home {
    /// The schema `name` of the run with this tag, marked so, for what its lanes write in one
    /// database.
    pub fn of_run(name: &str, tag: &Tag, mark: String) -> anyhow::Result<Self> {
        Ok(Self { schema: identifier(name)?, mark, writers: Writers::Sessions(tag.clone()) })
    }

    /// In a database that is one lane's, or will be copied for lanes. Where it `is_undone`, it
    /// comes to be as it is now whenever that is asked for.
    pub fn of_lane(is_undone: bool) -> anyhow::Result<Self> {
        Ok(Self { schema: identifier(LANE_LOG)?, mark: LANE_MARK.to_owned(), writers: Writers::OneLane { is_undone } })
    }

    fn is_undone(&self) -> bool {
        matches!(self.writers, Writers::OneLane { is_undone: true })
    }

    /// SQL that makes it, in place of one that a template or an earlier try brought.
    fn found(&self) -> String {
        let Self { schema, mark, .. } = self;
        format!(
            "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS '{mark}';
             CREATE TABLE {schema}.watched (rel int PRIMARY KEY, oid oid NOT NULL, kind text NOT NULL, own_kind text NOT NULL,
                 lane int, columns text[] NOT NULL, attnums int2[] NOT NULL, types text[] NOT NULL, form \"char\" NOT NULL, is_told bool NOT NULL);
             CREATE UNLOGGED TABLE {schema}.log (at timestamptz NOT NULL, pid int NOT NULL, rel int NOT NULL, op \"char\" NOT NULL,
                 who name NOT NULL, app text, lane int, keys text[] NOT NULL, was text[]);
             ALTER TABLE {schema}.log ALTER keys SET STORAGE EXTERNAL;
             CREATE TABLE {schema}.harvested (LIKE {schema}.log INCLUDING STORAGE);
             CREATE UNLOGGED TABLE {schema}.unbroken AS SELECT 1 AS one;
             CREATE UNLOGGED TABLE {schema}.image (at timestamptz NOT NULL, rel int NOT NULL, key text, row jsonb NOT NULL);
             CREATE FUNCTION {schema}.truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $isolane$ BEGIN
                 INSERT INTO {schema}.log (at, pid, rel, op, who, app, keys) VALUES (pg_catalog.clock_timestamp(), pg_catalog.pg_backend_pid(),
                     TG_ARGV[0]::pg_catalog.int4, 'T', session_user, pg_catalog.current_setting('application_name'), '{{}}');
                 RETURN NULL; END $isolane$;\n"
        ) + &(if self.is_undone() { undo::tables(schema) } else { String::new() })
    }

    /// SQL that watches `table`, known here as `rel`.
    fn watch(&self, table: &Table, rel: i32, ground: Ground) -> String {
        let schema = &self.schema;
        let list = |texts: &[String]| {
            format!("ARRAY[{}]::text[]", texts.iter().map(|text| escape_literal(text)).collect::<Vec<_>>().join(", "))
        };
        let name = &table.sql;
        let trigger = |what: &str| match &self.writers {
            Writers::OneLane { .. } => format!("isolane_{what}"),
            Writers::Sessions(tag) => format!("isolane_{tag}_{what}"),
        };
        let after = |what: &str, transition: &str, function: char| {
            format!(
                "CREATE TRIGGER {} AFTER {what} ON {name} REFERENCING {transition} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{function}{rel}();\n",
                trigger(&what.to_lowercase())
            )
        };
        let keys_settings = if table.key.is_plain { "" } else { TEXTS };
        // Rows as texts hang on the session more than keys do.
        let settings = if self.is_undone() { TEXTS } else { keys_settings };
        let truncated = if self.is_undone() { format!("x{rel}()") } else { format!("truncated({rel})") };
        let mut sql = format!(
            "INSERT INTO {schema}.watched VALUES ({rel}, {oid}, {kind}, {own_kind}, {lane}, {columns}, ARRAY[{attnums}]::int2[], {types}, '{form}', {is_told});
             CREATE FUNCTION {schema}.i{rel}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {keys_settings} AS $isolane$ {made} $isolane$;
             CREATE FUNCTION {schema}.t{rel}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {settings} AS $isolane$ {changed} $isolane$;
             {insert}{update}{delete}",
            oid = table.oid,
            kind = escape_literal(&table.kind),
            own_kind = escape_literal(&table.own_kind),
            lane = ground.number().map_or("NULL".to_owned(), |number| number.to_string()),
            columns = list(&table.key.columns),
            attnums = table.attnums.iter().map(i16::to_string).collect::<Vec<_>>().join(", "),
            types = list(&table.key.types),
            form = table.key.form.letter(),
            is_told = table.is_told,
            made = self.made(table, rel),
            changed = self.changed(table, rel),
            insert = after("INSERT", "NEW TABLE AS isolane_new", 'i'),
            update = after("UPDATE", "NEW TABLE AS isolane_new OLD TABLE AS isolane_old", 't'),
            delete = after("DELETE", "OLD TABLE AS isolane_old", 't'),
        );
        if self.is_undone() {
            sql.push_str(&format!(
                "CREATE FUNCTION {schema}.x{rel}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {TEXTS} AS $isolane$ {} $isolane$;\n",
                self.emptied(table, rel)
            ));
        }
        sql.push_str(&format!(
            "CREATE TRIGGER {} BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {schema}.{truncated};\n",
            trigger("truncate")
        ));
        if self.is_undone() {
            // Suites load their fixtures with triggers at rest; what they write is theirs all the same.
            let always: Vec<_> = ["insert", "update", "delete", "truncate"]
                .map(|what| format!("ENABLE ALWAYS TRIGGER {}", trigger(what)))
                .into();
            sql.push_str(&format!("ALTER TABLE {name} {};\n", always.join(", ")));
        }
        sql
    }

    /// What a trigger does, unless it is isolane that puts rows back.
    fn unless_undoing(&self, declare: &str, body: &str) -> String {
        let declare = if declare.is_empty() { String::new() } else { format!("DECLARE {declare}") };
        if self.is_undone() {
            format!(
                "#variable_conflict use_column\n{declare} BEGIN IF pg_catalog.current_setting('{}', true) IS NULL THEN {body} END IF; RETURN NULL; END",
                undo::UNDOING
            )
        } else {
            format!("#variable_conflict use_column\n{declare} BEGIN {body} RETURN NULL; END")
        }
    }

    /// What the trigger does when rows were made, which is most of what tests do: one statement,
    /// and no variable.
    fn made(&self, table: &Table, rel: i32) -> String {
        let keys = format!("ARRAY({})", table.key.of_each("isolane_new", ""));
        self.unless_undoing("", &self.note(table, rel, 'I', "pg_catalog.clock_timestamp()", &keys, "isolane_new"))
    }

    /// What the trigger does when rows were changed or removed.
    fn changed(&self, table: &Table, rel: i32) -> String {
        let schema = &self.schema;
        let keys = |rows: &str| format!("ARRAY({})", table.key.of_each(rows, ""));
        let (order, its_order, declare, image) = if self.is_undone() {
            // The log row and its images have one place in the order.
            (", lsn", ", lsn_", " lsn_ pg_catalog.pg_lsn := pg_catalog.pg_current_wal_insert_lsn();", IMAGE_AS_TEXT)
        } else {
            ("", "", "", IMAGE_AS_JSON)
        };
        let body = format!(
            "old_ := {old};
             IF pg_catalog.cardinality(old_) OPERATOR(pg_catalog.=) 0 THEN
                 RETURN NULL;
             ELSIF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
                 {delete}
             ELSE
                 new_ := {new};
                 IF new_ OPERATOR(pg_catalog.<>) old_ THEN
                     INSERT INTO {schema}.log (at, pid, rel, op, who, app, keys, was{order})
                         VALUES (now_, pg_catalog.pg_backend_pid(), {rel}, 'U', session_user, {APP}, new_, old_{its_order});
                 ELSE
                     {update}
                 END IF;
             END IF;
             INSERT INTO {schema}.image (at, rel, key, row{order}) SELECT now_, {rel}, o.k, o.image{its_order} FROM ({images}) AS o;",
            old = keys("isolane_old"),
            delete = self.note(table, rel, 'D', "now_", "old_", "isolane_old"),
            new = keys("isolane_new"),
            update = self.note(table, rel, 'U', "now_", "new_", "isolane_new"),
            images = table.key.of_each("isolane_old", image),
        );
        self.unless_undoing(
            &format!(
                "now_ pg_catalog.timestamptz := pg_catalog.clock_timestamp(); new_ pg_catalog.text[]; old_ pg_catalog.text[];{declare}"
            ),
            &body,
        )
    }

    /// What the trigger does before a table is emptied that will have to be filled again.
    fn emptied(&self, table: &Table, rel: i32) -> String {
        let schema = &self.schema;
        let body = format!(
            "INSERT INTO {schema}.log (at, pid, rel, op, who, app, keys, lsn)
                 VALUES (now_, pg_catalog.pg_backend_pid(), {rel}, 'T', session_user, {APP}, '{{}}', lsn_);
             INSERT INTO {schema}.image (at, rel, key, row, lsn) SELECT now_, {rel}, o.k, o.image, lsn_ FROM ({images}) AS o;",
            // Partitions are emptied each by itself.
            images = table.key.of_each(&format!("ONLY {}", table.sql), IMAGE_AS_TEXT),
        );
        self.unless_undoing(
            "now_ pg_catalog.timestamptz := pg_catalog.clock_timestamp(); lsn_ pg_catalog.pg_lsn := pg_catalog.pg_current_wal_insert_lsn();",
            &body,
        )
    }

    /// SQL that writes a log row; one for each lane, where the session is nobody's and the rows
    /// must tell. What a session calls itself matters only where its login is no lane's.
    fn note(&self, table: &Table, rel: i32, op: char, now: &str, keys: &str, rows: &str) -> String {
        let log = format!("INSERT INTO {}.log (at, pid, rel, op, who, keys", self.schema);
        let head = format!("{now}, pg_catalog.pg_backend_pid(), {rel}, '{op}', session_user");
        let plain = format!("{log}) VALUES ({head}, {keys});");
        let tag = match &self.writers {
            Writers::OneLane { is_undone: true } if op != 'I' => {
                return format!("{log}, lsn) VALUES ({head}, {keys}, lsn_);");
            }
            Writers::OneLane { .. } => return plain,
            Writers::Sessions(tag) => tag,
        };
        let ours = |name: &str| format!("pg_catalog.starts_with({name}, 'isolane_{tag}_w')");
        let lane = format!(
            ", pg_catalog.substring(isolane_row::pg_catalog.text, 'i{tag}w([0-9]{{1,4}})x')::pg_catalog.int4 AS lane"
        );
        format!(
            "IF {login} THEN {plain}
             ELSIF {called} THEN {log}, app) VALUES ({head}, {keys}, {APP});
             ELSE {log}, app, lane) SELECT {head}, pg_catalog.array_agg(s.k), {APP}, s.lane FROM ({each}) AS s GROUP BY s.lane;
             END IF;",
            login = ours("session_user::pg_catalog.text"),
            called = ours(APP),
            each = table.key.of_each(rows, &lane),
        )
    }

    /// Makes the log and watches these tables, all or nothing.
    pub fn install(&self, client: &mut Client, tables: &[Table], ground: Ground) -> Result<(), postgres::Error> {
        begin(client, &(self.found() + &self.watch_all(tables, ground, base(ground))))?;
        if self.is_undone() {
            let numbered: Vec<_> = number(tables, base(ground)).collect();
            let undo = undo::install(client, &self.schema, &numbered)?;
            begin(client, &undo)?;
            client.batch_execute(&shape::begin(&self.schema))?;
        }
        Ok(())
    }

    /// Watches these tables as well.
    pub fn extend(&self, client: &mut Client, tables: &[Table], ground: Ground) -> Result<(), postgres::Error> {
        // A lane that is made again has other tables, and the log may still tell of the first.
        let next = format!(
            "SELECT coalesce(max(rel) + 1, $1) FROM {}.watched WHERE rel BETWEEN $1 AND $1 + {}",
            self.schema,
            LANES_APART - 1
        );
        let first = client.query_one(&next, &[&base(ground)])?.get(0);
        begin(client, &self.watch_all(tables, ground, first))
    }

    fn watch_all(&self, tables: &[Table], ground: Ground, first: i32) -> String {
        number(tables, first).map(|(rel, table)| self.watch(table, rel, ground)).collect()
    }
}

/// The tables that can be watched, with their numbers.
fn number(tables: &[Table], first: i32) -> impl Iterator<Item = (i32, &Table)> {
    (first..).zip(tables.iter().filter(|table| table.may_watch))
}

/// Lanes that share a log have numbers of their own for their tables, from this one on.
fn base(ground: Ground) -> i32 {
    (ground.number().unwrap_or(-1) + 1) * LANES_APART
}

/// Watches tables in one transaction.
fn begin(client: &mut Client, sql: &str) -> Result<(), postgres::Error> {
    // Bodies are looked at when they run, and these are known to be good.
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; SET LOCAL check_function_bodies = off; {sql} COMMIT;"), TRIES.0)
}

/// Does this in a transaction that needs locks on the user's tables, again and again until it
/// gets them.
fn patiently(client: &mut Client, sql: &str, most: u32) -> Result<(), postgres::Error> {
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
        if !in_the_way || tries == most {
            return Err(error);
        }
        // Whoever waits behind us gets a turn.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Lets the triggers of this schema's log do nothing from now on, for which no lock on any table
/// is needed.
pub fn quiet(client: &mut Client, schema: &Identifier) -> Result<(), postgres::Error> {
    let quiet = "DO $quiet$ DECLARE name text; BEGIN
             FOR name IN SELECT format('%I.%I()', n.nspname, p.proname)
                 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE format('\"%s\"', n.nspname) = '{schema}' LOOP
                 EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END''', name);
             END LOOP;
         END $quiet$";
    client.batch_execute(&quiet.replace("{schema}", &schema.to_string()))
}

/// Who holds a lock on one of these tables that keeps triggers from being made (or, if `any`, from
/// being taken away), in words.
pub fn in_the_way(client: &mut Client, tables: &[u32], any: bool) -> Result<Option<String>, postgres::Error> {
    let sql = "SELECT format('session %s of %s%s has a lock on %s', l.pid, coalesce(a.usename, 'nobody'),
                      coalesce(' (' || nullif(a.application_name, '') || ')', ''), l.relation::regclass)
                 FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                WHERE l.relation = ANY ($1) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
                  AND ($2 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock')) ORDER BY a.xact_start LIMIT 1";
    Ok(client.query_opt(sql, &[&tables, &any])?.map(|row| row.get(0)))
}

/// The tables that this schema's log watches.
pub fn watched_by(client: &mut Client, schema: &Identifier) -> Result<Vec<u32>, postgres::Error> {
    Ok(client.query(&format!("SELECT oid FROM {schema}.watched"), &[])?.iter().map(|row| row.get(0)).collect())
}

/// Takes the triggers of this schema's log away, and leaves the log.
pub fn stop(client: &mut Client, schema: &Identifier) -> Result<(), postgres::Error> {
    // Nothing but the triggers hangs on them.
    let functions = "SELECT string_agg(format('%I.%I()', n.nspname, p.proname), ', ')
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE format('\"%s\"', n.nspname) = $1";
    let functions: Option<String> = client.query_one(functions, &[&schema.to_string()])?.get(0);
    let Some(functions) = functions else { return Ok(()) };
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; DROP FUNCTION {functions} CASCADE; COMMIT;"), TRIES.1)
}

/// Drops a schema with what is in it, and its triggers wherever they are, all at once.
pub fn drop_schema(client: &mut Client, schema: &Identifier) -> Result<(), postgres::Error> {
    patiently(client, &format!("BEGIN; {LOCK_TIMEOUT}; DROP SCHEMA IF EXISTS {schema} CASCADE; COMMIT;"), TRIES.1)
}

/// SQL that takes away what a copy has of logs, as far as the login may.
pub fn forget() -> String {
    format!(
        "DO $others$ DECLARE name text; BEGIN
             FOR name IN SELECT nspname FROM pg_namespace WHERE starts_with(obj_description(oid, 'pg_namespace'), '{}') LOOP
                 BEGIN EXECUTE format('DROP SCHEMA %I CASCADE', name); EXCEPTION WHEN insufficient_privilege THEN NULL; END;
             END LOOP;
         END $others$",
        crate::mark::HEAD
    )
}
