//! Undo: a lane's own database as it was, at the price of what was written since. All that it
//! needs is on the server, and comes with a copy of the template.
//!
//! Rows go back by the log and the images beside it. What was there first is what counts of
//! each key: the earliest event that names it tells whether there was such a row, and how it
//! looked. So the order in which rows go back does not matter, and a table costs two statements
//! however many the test had. Events are in the order of the server's own log of changes
//! (`lsn`), because a clock may be set.
//!
//! Sequences are compared one by one, catalogs by what is cheap to see of them (see
//! [`super::shape`]). What cannot be undone is found out and said: the lane is made again then.

use std::collections::HashMap;

use postgres::{Client, Row};
use postgres_protocol::escape::escape_literal;

use super::shape;
use super::table::{Form, Table, quoted};
use crate::name::Identifier;

/// Set in the session that undoes: what it writes is nobody's.
pub const UNDOING: &str = "isolane.undoing";

/// What a session is set to that undoes. Foreign keys and the user's triggers rest, for which the
/// login must be allowed to set `session_replication_role`. Rows are found by their keys'
/// indexes, however few the planner believes there are, and plans are made once. Who drops the
/// database waits five seconds for sessions in it: from PostgreSQL 14 on this one is gone before.
/// Nothing of it has to be on the disk before the next test begins: a server that breaks down
/// forgets what it knew of rows, and the lane is made again.
pub const SESSION: &str = "SET session_replication_role = replica; SET isolane.undoing = 'on';
    SET synchronous_commit = off; SET row_security = off; SET lock_timeout = '5s'; SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'idle_session_timeout'";

/// SQL: the tables that undoing needs besides the log.
pub fn tables(schema: &Identifier) -> String {
    format!(
        "ALTER TABLE {schema}.log ADD lsn pg_catalog.pg_lsn NOT NULL DEFAULT pg_catalog.pg_current_wal_insert_lsn();
         DROP TABLE {schema}.harvested, {schema}.image;
         CREATE UNLOGGED TABLE {schema}.harvested (LIKE {schema}.log INCLUDING STORAGE);
         CREATE UNLOGGED TABLE {schema}.backlog (LIKE {schema}.log INCLUDING STORAGE);
         CREATE UNLOGGED TABLE {schema}.image (at timestamptz NOT NULL, lsn pg_lsn NOT NULL, rel int NOT NULL, key text NOT NULL, row text NOT NULL);
         CREATE TABLE {schema}.part (rel int PRIMARY KEY, root int NOT NULL);
         CREATE VIEW {schema}.event AS SELECT at, lsn, rel, op, keys FROM {schema}.log UNION ALL SELECT at, lsn, rel, op, keys FROM {schema}.harvested;\n"
    )
}

/// What has to be known of tables to undo what happens to their rows.
const ANATOMY: &str = "
SELECT c.oid, CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END AS root,
       ARRAY(SELECT quote_ident(attname) FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum) AS columns,
       ARRAY(SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS attnums,
       ARRAY(SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS types,
       ARRAY(SELECT t.typcategory IN ('N', 'S', 'B', 'D', 'T', 'E', 'I', 'V') OR t.oid IN ('uuid'::regtype, 'bytea'::regtype)
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS has_text,
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum) AS layout,
       CASE WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class h ON h.oid = i.inhrelid WHERE i.inhparent = c.oid AND NOT h.relispartition)
                 THEN 'other tables inherit from it'
            WHEN EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled IN ('A', 'R') AND NOT tgisinternal AND NOT starts_with(tgname::text, 'isolane_'))
                 THEN 'it has a trigger that is enabled always' END AS odd,
       c.relkind = 'p' AS is_partitioned
  FROM pg_class c WHERE c.oid = ANY ($1)";

/// SQL that makes it possible to undo what happens to these tables, which are watched as
/// numbered, and keeps the present state of everything else as what is to come back.
pub fn install(client: &mut Client, schema: &Identifier, tables: &[(i32, &Table)]) -> Result<String, postgres::Error> {
    let oids: Vec<u32> = tables.iter().map(|(_, table)| table.oid).collect();
    let anatomy = client.query(ANATOMY, &[&oids])?;
    let anatomy: HashMap<u32, &Row> = anatomy.iter().map(|row| (row.get("oid"), row)).collect();
    let rels: HashMap<u32, i32> = tables.iter().map(|(rel, table)| (table.oid, *rel)).collect();
    let mut wholes: HashMap<u32, Vec<Part>> = HashMap::new();
    for (rel, table) in tables {
        let Some(its) = anatomy.get(&table.oid) else { continue };
        let part = Part { rel: *rel, sql: &table.sql, layout: its.get("layout") };
        wholes.entry(its.get("root")).or_default().push(part);
    }
    let mut sql = String::new();
    for (rel, table) in tables {
        let Some(its) = anatomy.get(&table.oid) else { continue };
        let root: u32 = its.get("root");
        if root != table.oid {
            if let Some(root) = rels.get(&root) {
                sql.push_str(&format!("INSERT INTO {schema}.part VALUES ({rel}, {root});\n"));
            }
            continue;
        }
        let parts = wholes.remove(&root).unwrap_or_default();
        let (settings, body) = undo_rows(schema, table, its, &parts);
        sql.push_str(&format!(
            "CREATE FUNCTION {schema}.u{rel}(has_images bool) RETURNS void LANGUAGE plpgsql {settings} AS $isolane$\n#variable_conflict use_column\nBEGIN {body} END $isolane$;\n"
        ));
    }
    sql.push_str(&shape::install(client, schema)?);
    let told: Vec<_> = tables.iter().filter(|(_, table)| table.is_told).map(|(rel, _)| rel.to_string()).collect();
    sql.push_str(&undo(schema, &told.join(",")));
    Ok(sql)
}

/// A table that rows of a whole are in: the whole itself, or a partition of it.
struct Part<'a> {
    rel: i32,
    sql: &'a str,
    /// Its columns in their order, which may be another than the whole's.
    layout: Vec<String>,
}

/// SQL, a list of parts' numbers.
fn numbers<'a>(parts: impl Iterator<Item = &'a Part<'a>>) -> String {
    let parts: Vec<_> = parts.map(|part| part.rel.to_string()).collect();
    format!("ANY ('{{{}}}'::pg_catalog.int4[])", parts.join(","))
}

/// SQL that puts the rows of one table back. Where there are no images, rows were only made, and
/// nothing has to come again: that is most of what tests do.
fn undo_rows(schema: &Identifier, table: &Table, its: &Row, parts: &[Part<'_>]) -> (&'static str, String) {
    let name = &table.sql;
    let refuse = |why: &str| {
        let text = escape_literal(&format!("{} cannot be undone: {why}", table.own_kind));
        ("", format!("RAISE EXCEPTION USING MESSAGE = {text};"))
    };
    if let Some(why) = its.get::<_, Option<String>>("odd") {
        return refuse(&why);
    }
    let of_it = format!("rel = {}", numbers(parts.iter()));
    let columns: Vec<String> = its.get("columns");
    let (into, from): (Vec<_>, Vec<_>) =
        columns.iter().map(|column| (column.clone(), format!("(isolane_it.r).{column}"))).unzip();
    // An image is a row of the table that it was taken from.
    let insert = |form: &str, images: &str| {
        format!(
            "INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM (SELECT isolane_image.row::{form} AS r FROM ({images}) AS isolane_image OFFSET 0) AS isolane_it;",
            into.join(", "),
            from.join(", ")
        )
    };
    if table.key.form == Form::Row {
        if its.get("is_partitioned") {
            return refuse("it is partitioned and has no key");
        }
        // Rows that are alike count: there were so many more or less of them.
        let delta = format!(
            "SELECT k, pg_catalog.sum(d) AS n FROM (SELECT pg_catalog.unnest(keys) AS k, 1 AS d FROM {schema}.event WHERE {of_it} AND op IN ('I', 'U')
                 UNION ALL SELECT key, -1 FROM {schema}.image WHERE {of_it}) AS x GROUP BY k HAVING pg_catalog.sum(d) <> 0"
        );
        let body = format!(
            "DELETE FROM {name} WHERE ctid = ANY (ARRAY(SELECT x.at_ FROM (SELECT isolane_row.ctid AS at_, pg_catalog.to_jsonb(isolane_row)::pg_catalog.text AS k,
                 pg_catalog.row_number() OVER (PARTITION BY pg_catalog.to_jsonb(isolane_row)::pg_catalog.text) AS i FROM {name} AS isolane_row) AS x
                 JOIN ({delta}) AS d ON d.k = x.k WHERE x.i <= d.n));
             IF has_images THEN {} END IF;",
            insert(name, &format!(
                "SELECT i.row FROM ({delta}) AS d, LATERAL (SELECT row FROM {schema}.image WHERE {of_it} AND key = d.k LIMIT 1) AS i, pg_catalog.generate_series(1, -d.n)"
            ))
        );
        return ("SET enable_hashjoin = on SET enable_seqscan = on", body);
    }
    let attnums: Vec<i16> = its.get("attnums");
    let (types, has_text): (Vec<String>, Vec<bool>) = (its.get("types"), its.get("has_text"));
    let type_of = |attnum: &i16| {
        let at = attnums.iter().position(|known| known == attnum);
        at.map_or(("text", true), |at| (types[at].as_str(), has_text[at]))
    };
    let key: Vec<_> =
        table.key.columns.iter().map(|name| quoted(name)).zip(table.attnums.iter().map(type_of)).collect();
    let made = format!("SELECT pg_catalog.unnest(keys) AS k FROM {schema}.event WHERE {of_it} AND op IN ('I', 'U')");
    let keys = format!("{made} UNION SELECT key FROM {schema}.image WHERE {of_it}");
    let delete = |keys: &str| {
        if let (Form::Integer | Form::Text, [(column, (its_type, _))]) = (table.key.form, &key[..]) {
            return format!(
                "DELETE FROM {name} WHERE {column} = ANY (ARRAY(SELECT x.k::{its_type} FROM ({keys}) AS x));"
            );
        }
        let same: Vec<_> = key
            .iter()
            .enumerate()
            .map(|(at, (column, (its_type, has_text)))| {
                if *has_text {
                    format!("isolane_row.{column} = (isolane_key.k ->> {at})::{its_type}")
                } else {
                    // What JSON makes of it is not how the type is written.
                    format!("pg_catalog.to_jsonb(isolane_row.{column}) = isolane_key.k -> {at}")
                }
            })
            .collect();
        format!(
            "DELETE FROM {name} AS isolane_row USING (SELECT x.k::pg_catalog.jsonb AS k FROM ({keys}) AS x) AS isolane_key WHERE {};",
            same.join(" AND ")
        )
    };
    let first = format!(
        "SELECT f.row FROM (SELECT DISTINCT ON (e.key) e.key, e.row, e.rel FROM (
             SELECT key, row, rel, lsn, at, 0 AS p FROM {schema}.image WHERE {of_it}
             UNION ALL SELECT pg_catalog.unnest(keys), NULL, NULL, lsn, at, 1 FROM {schema}.event WHERE {of_it} AND op IN ('I', 'U')) AS e
             ORDER BY e.key, e.lsn, e.at, e.p) AS f WHERE f.row IS NOT NULL"
    );
    let layout: Vec<String> = its.get("layout");
    let (alike, other): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.layout == layout);
    let is_plain = other.is_empty();
    let mut body = delete(&keys);
    for (form, parts) in
        std::iter::once((name.as_str(), alike)).chain(other.into_iter().map(|part| (part.sql, vec![part])))
    {
        let images =
            if is_plain { first.clone() } else { format!("{first} AND f.rel = {}", numbers(parts.into_iter())) };
        body.push_str(&insert(form, &images));
    }
    ("", format!("IF has_images THEN {body} ELSE {} END IF;", delete(&made)))
}

/// Sessions that could see or hold back what was before: with a transaction that wrote, keeps a
/// snapshot or has a lock that is in the way, or at work still. One that only began is none of
/// them: its next statement sees the lane as it is.
const IN_THE_WAY: &str = "
SELECT 'session', a.pid::text, coalesce(nullif(left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80), ''), a.state)
  FROM pg_stat_get_activity(NULL) a
 WHERE a.datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND a.pid <> pg_backend_pid()
   AND a.backend_type = 'client backend' AND a.application_name NOT LIKE 'isolane run %'
   AND (everybody OR a.state = 'active' OR a.state = 'fastpath function call' OR a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL
        OR (a.state LIKE 'idle in transaction%' AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted
             AND l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'))))
UNION ALL SELECT 'prepared', gid, NULL FROM pg_prepared_xact() WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL SELECT 'slot', slot_name::text, NULL FROM pg_replication_slots WHERE database = current_database()";

/// SQL of the one call that undoes everything, or tells what has to be done before, or why it
/// cannot be done.
fn undo(schema: &Identifier, told: &str) -> String {
    format!(
        "CREATE FUNCTION {schema}.undo(everybody bool, settings text) RETURNS TABLE (what text, which text, detail text) LANGUAGE plpgsql AS $isolane$
         #variable_conflict use_column
         DECLARE root_ int; has_images_ bool; changed_ text; BEGIN
             RETURN QUERY {IN_THE_WAY};
             IF FOUND THEN RETURN; END IF;
             changed_ := {schema}.changed(settings);
             IF changed_ IS NOT NULL THEN
                 RETURN QUERY SELECT 'again', changed_, NULL;
                 RETURN;
             END IF;
             FOR root_, has_images_ IN SELECT coalesce(p.root, e.rel), bool_or(e.is_image)
                 FROM (SELECT rel, false AS is_image FROM {schema}.event UNION ALL SELECT rel, true FROM {schema}.image) AS e
                 LEFT JOIN {schema}.part AS p ON p.rel = e.rel GROUP BY 1 LOOP
                 EXECUTE format({undo_rows}, root_) USING has_images_;
             END LOOP;
             PERFORM {schema}.rewind();
             INSERT INTO {schema}.backlog SELECT * FROM {schema}.log WHERE rel = ANY ('{{{told}}}'::int[]);
             DELETE FROM {schema}.log; DELETE FROM {schema}.harvested; DELETE FROM {schema}.image;
             RETURN;
         END $isolane$;\n",
        undo_rows = escape_literal(&format!("SELECT {schema}.u%s($1)")),
    )
}
