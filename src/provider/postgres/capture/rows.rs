//! Removing the rows that a run made among the user's own, as the log on the server knows
//! them: it needs no ledger.
//!
//! Children go before their parents. A row that somebody else's row refers to stays, whatever
//! the foreign key would do about it, and so does one whose key was there before the run.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Context;
use postgres::error::SqlState;
use postgres::{Client, Transaction};

use super::super::connection::{readable, text};
use super::replay;
use super::table::{Form, Key};
use crate::name::{Identifier, Tag};
use crate::provider::Rows;
use crate::touch::Fate;

/// How many rows go in one transaction.
const BATCH: i64 = 5000;
/// What a transaction waits for at most; nobody of the user's waits longer for us.
const PATIENCE: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '60s'";
/// How many refusals of the server are looked into, each by halving what was refused.
const MOST_REFUSALS: u32 = 200;
/// How many rows are named that somebody else's rows refer to.
const MOST_NAMED: i64 = 10_000;

/// A table in which the run made rows.
struct Target {
    oid: u32,
    sql: String,
    kind: String,
    key: Key,
    /// Where the keys of the run's rows stand.
    ours: String,
    count: i64,
    /// Foreign keys that refer to it.
    children: Vec<Reference>,
}

/// A foreign key of another table, or of the same.
struct Reference {
    child: u32,
    sql: String,
    columns: Vec<(String, String)>,
}

/// Removes what the log in `home` knows the run with this tag to have made.
pub fn remove(client: &mut Client, home: &Identifier, tag: &Tag) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let exists =
        client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("{home}.watched")]).map_err(server)?;
    if !exists.get::<_, bool>(0) {
        return Ok(rows);
    }
    // Whatever is removed from now on is no touch.
    super::stop(client, home).map_err(server).context("the triggers could not be taken off the tables")?;
    let mut targets = targets(client, home).map_err(server)?;
    for target in &mut targets {
        let done = find(client, home, tag, target, &mut rows);
        done.with_context(|| format!("cannot tell which rows of {} are the run's", target.kind))?;
    }
    targets.retain(|target| target.count > 0);
    refer(client, &mut targets).map_err(server)?;
    for group in in_order(targets) {
        remove_group(client, &group, &mut rows)?;
    }
    Ok(rows)
}

fn server(error: postgres::Error) -> anyhow::Error {
    readable(anyhow::Error::new(error))
}

/// The watched tables that are there still. Partitions count as the whole.
fn targets(client: &mut Client, home: &Identifier) -> Result<Vec<Target>, postgres::Error> {
    let sql = format!(
        "SELECT root.oid, root.oid::regclass::text AS sql, w.kind, w.columns, w.types, w.form::text AS form
           FROM {home}.watched w JOIN pg_class c ON c.oid = w.oid
           JOIN pg_class root ON root.oid = CASE WHEN c.relispartition THEN pg_partition_root(c.oid) ELSE c.oid END
          WHERE EXISTS (SELECT FROM {home}.log l WHERE l.rel = w.rel AND l.op = 'I')
             OR EXISTS (SELECT FROM {home}.harvested l WHERE l.rel = w.rel AND l.op = 'I')"
    );
    let mut targets: BTreeMap<u32, Target> = BTreeMap::new();
    for row in client.query(&sql, &[])? {
        let oid = row.get("oid");
        targets.entry(oid).or_insert_with(|| Target {
            oid,
            sql: row.get("sql"),
            kind: row.get("kind"),
            key: Key::recall(row.get("columns"), row.get("types"), row.get("form")),
            ours: format!("{home}.ours_{oid}"),
            count: 0,
            children: Vec::new(),
        });
    }
    Ok(targets.into_values().collect())
}

/// Writes down which rows of a table are the run's: whose last maker it was, and whose first
/// sight was not their end.
fn find(client: &mut Client, home: &Identifier, tag: &Tag, target: &mut Target, rows: &mut Rows) -> anyhow::Result<()> {
    let begins = format!("'isolane_{tag}_w'");
    let ours =
        format!("(starts_with(who::text, {begins}) OR starts_with(coalesce(app, ''), {begins}) OR lane IS NOT NULL)");
    let log = format!(
        "(SELECT l.at, l.op, l.keys, l.was, {ours} AS ours FROM (SELECT * FROM {home}.log UNION ALL SELECT * FROM {home}.harvested) AS l
           WHERE l.rel IN (SELECT rel FROM {home}.watched w JOIN pg_class c ON c.oid = w.oid
                            WHERE CASE WHEN c.relispartition THEN pg_partition_root(c.oid) ELSE c.oid END = {oid})) AS log",
        oid = target.oid
    );
    let is_plain = format!("SELECT NOT EXISTS (SELECT FROM {log} WHERE op <> 'I' OR NOT ours)");
    let is_plain: bool = client.query_one(&is_plain, &[]).map_err(server)?.get(0);
    let keys = if is_plain && target.key.form != Form::Row {
        format!(
            "SELECT DISTINCT k, true AS is_new, 1::bigint AS copies FROM {log}, unnest(keys) AS k WHERE k IS NOT NULL"
        )
    } else {
        format!(
            "SELECT k, (array_agg(op ORDER BY at))[1] = 'I' AS is_new,
                    count(*) FILTER (WHERE op = 'I' AND ours) - count(*) FILTER (WHERE op = 'D') AS copies
               FROM (SELECT k, at, op, ours FROM {log}, unnest(keys) AS k WHERE op IN ('I', 'D') AND k IS NOT NULL
                     UNION ALL SELECT k, at, 'D', ours FROM {log}, unnest(was) AS k WHERE op = 'U' AND k IS NOT NULL) AS event
              GROUP BY k HAVING coalesce((array_agg(ours ORDER BY at DESC) FILTER (WHERE op = 'I'))[1], false)"
        )
    };
    let moves = format!(
        "SELECT was[n], keys[n] FROM {log}, generate_series(1, cardinality(was)) AS n WHERE op = 'U' AND was[n] <> keys[n] ORDER BY at, n"
    );
    let found = format!("{}_found", target.ours.replace(&format!("{home}."), ""));
    client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS {ours}; DROP TABLE IF EXISTS {home}.{found}; CREATE UNLOGGED TABLE {home}.{found} AS {keys}",
            ours = target.ours
        ))
        .map_err(server)?;
    if !is_plain && target.key.form == Form::Row {
        for row in client.query(&moves, &[]).map_err(server)? {
            let (was, is): (Option<String>, Option<String>) = (row.get(0), row.get(1));
            let sql = format!("UPDATE {home}.{found} SET k = $2, copies = 1 WHERE k = $1");
            client.execute(&sql, &[&was, &is]).map_err(server)?;
        }
    } else if !is_plain {
        replay_moves(client, &log, &format!("{home}.{found}")).map_err(server)?;
    }
    let typed: Vec<_> = match target.key.form {
        Form::Row => vec!["k::jsonb AS c0".to_owned()],
        Form::Integer | Form::Text => vec![format!("k::{} AS c0", target.key.types[0])],
        Form::Array => {
            target.key.types.iter().enumerate().map(|(n, kind)| format!("(k::jsonb ->> {n})::{kind} AS c{n}")).collect()
        }
    };
    client
        .batch_execute(&format!(
            "CREATE UNLOGGED TABLE {ours} AS SELECT row_number() OVER (ORDER BY k) AS n, k, copies, false AS held, {typed} FROM {home}.{found} WHERE is_new;
             CREATE UNIQUE INDEX ON {ours} (n); CREATE INDEX ON {ours} (c0); ANALYZE {ours};",
            ours = target.ours,
            typed = typed.join(", ")
        ))
        .map_err(server)?;
    target.count = client.query_one(&format!("SELECT count(*) FROM {}", target.ours), &[]).map_err(server)?.get(0);
    for row in client.query(&format!("SELECT k FROM {home}.{found} WHERE NOT is_new"), &[]).map_err(server)? {
        let key = target.key.json(&row.get::<_, String>(0));
        let why = "its key was there before the run".to_owned();
        rows.left.push(Fate { kind: target.kind.clone(), key, stays: true, why });
    }
    if !is_plain {
        let sql = format!(
            "SELECT count(DISTINCT k) FROM {log}, unnest(keys) AS k JOIN {} AS o USING (k) WHERE op = 'U' AND NOT ours",
            target.ours
        );
        let changed: i64 = client.query_one(&sql, &[]).map_err(server)?.get(0);
        if changed > 0 {
            rows.changed.push((target.kind.clone(), u64::try_from(changed).unwrap_or(0)));
        }
    }
    Ok(())
}

/// Where keys were changed, what came to be of which row is told by the log as a whole only.
fn replay_moves(client: &mut Client, log: &str, found: &str) -> Result<(), postgres::Error> {
    let moves = format!("SELECT EXISTS (SELECT FROM {log} WHERE op = 'U' AND was IS NOT NULL)");
    if !client.query_one(&moves, &[])?.get::<_, bool>(0) {
        return Ok(());
    }
    let sql = format!(
        "SELECT op::text AS op, ours, keys, coalesce(was, '{{}}') AS was FROM {log} WHERE op <> 'U' OR was IS NOT NULL ORDER BY at"
    );
    let events = client.query(&sql, &[])?;
    let events = events.iter().map(|row| replay::Event {
        op: row.get::<_, &str>("op").chars().next().unwrap_or('T'),
        is_ours: row.get("ours"),
        keys: row.get("keys"),
        was: row.get("was"),
    });
    let (keys, are_new): (Vec<String>, Vec<bool>) = replay::ours(events).into_iter().unzip();
    client.batch_execute(&format!("TRUNCATE {found}"))?;
    let sql = format!(
        "INSERT INTO {found} (k, is_new, copies) SELECT k, is_new, 1 FROM unnest($1::text[], $2::bool[]) AS ours (k, is_new)"
    );
    client.execute(&sql, &[&keys, &are_new]).map(drop)
}

/// Finds the foreign keys that refer to these tables.
fn refer(client: &mut Client, targets: &mut [Target]) -> Result<(), postgres::Error> {
    let oids: Vec<u32> = targets.iter().map(|target| target.oid).collect();
    let sql = "SELECT c.conrelid, c.confrelid, c.conrelid::regclass::text AS child,
                      ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.conkey) WITH ORDINALITY AS k (n, at) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY at) AS mine,
                      ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confkey) WITH ORDINALITY AS k (n, at) JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY at) AS its
                 FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0 AND c.confrelid = ANY ($1)";
    for row in client.query(sql, &[&oids])? {
        let parent: u32 = row.get("confrelid");
        let (mine, its): (Vec<String>, Vec<String>) = (row.get("mine"), row.get("its"));
        let reference = Reference {
            child: row.get("conrelid"),
            sql: row.get("child"),
            columns: mine.into_iter().zip(its).collect(),
        };
        if let Some(target) = targets.iter_mut().find(|target| target.oid == parent) {
            target.children.push(reference);
        }
    }
    Ok(())
}

/// Children first. Tables that refer to one another in a circle, or to themselves, go together.
fn in_order(targets: Vec<Target>) -> Vec<Vec<Target>> {
    let all: BTreeSet<u32> = targets.iter().map(|target| target.oid).collect();
    let mut left: HashMap<u32, Target> = targets.into_iter().map(|target| (target.oid, target)).collect();
    let mut groups = Vec::new();
    while !left.is_empty() {
        let is_free = |target: &&Target| {
            target
                .children
                .iter()
                .all(|c| c.child == target.oid || !all.contains(&c.child) || !left.contains_key(&c.child))
        };
        let mut free: Vec<u32> = left.values().filter(is_free).map(|target| target.oid).collect();
        free.sort_unstable();
        if free.is_empty() {
            groups.push(left.drain().map(|(_, target)| target).collect());
        }
        groups.extend(free.into_iter().filter_map(|oid| left.remove(&oid)).map(|target| vec![target]));
    }
    groups
}

fn remove_group(client: &mut Client, group: &[Target], rows: &mut Rows) -> anyhow::Result<()> {
    let mut refusals = 0;
    if let [target] = group
        && target.children.iter().all(|child| child.child != target.oid)
    {
        let mut first = 1;
        while first <= target.count {
            let last = (first + BATCH - 1).min(target.count);
            remove_some(client, target, first, last, rows, &mut refusals)?;
            first = last + 1;
        }
    } else {
        let mut transaction = client.transaction().map_err(server)?;
        match remove_together(&mut transaction, group) {
            Ok(removed) => {
                transaction.commit().map_err(server)?;
                rows.removed += removed;
            }
            Err(error) => {
                drop(transaction);
                let why = text(&error);
                for target in group {
                    name_left(client, target, Some(&why), rows)?;
                }
                return Ok(());
            }
        }
    }
    for target in group {
        name_left(client, target, None, rows)?;
    }
    Ok(())
}

/// SQL: whether `t` is the row of `o`.
fn is_same(target: &Target) -> String {
    let pairs: Vec<_> = match target.key.form {
        Form::Row => vec!["to_jsonb(t) = o.c0".to_owned()],
        _ => target
            .key
            .columns
            .iter()
            .enumerate()
            .filter_map(|(n, name)| Some(format!("t.{} = o.c{n}", Identifier::new(name.as_str())?)))
            .collect(),
    };
    pairs.join(" AND ")
}

/// SQL: whether a row that is not among those of `group` refers to `t`.
fn is_held(target: &Target, group: &[Target]) -> String {
    let held = target.children.iter().map(|reference| {
        let pairs: Vec<_> = reference.columns.iter().map(|(mine, its)| format!("c.{mine} = t.{its}")).collect();
        let goes = group.iter().find(|other| other.oid == reference.child).map_or(String::new(), |other| {
            let same = is_same(other).replace("t.", "c.").replace("to_jsonb(t)", "to_jsonb(c)");
            format!(" AND NOT EXISTS (SELECT FROM {} AS o WHERE NOT o.held AND {same})", other.ours)
        });
        format!("EXISTS (SELECT FROM {} AS c WHERE {}{goes})", reference.sql, pairs.join(" AND "))
    });
    let held: Vec<_> = held.collect();
    if held.is_empty() { "false".to_owned() } else { format!("({})", held.join(" OR ")) }
}

/// SQL: not held, each reason apart, so that the server can join and need not look row by row.
fn is_free(target: &Target, group: &[Target]) -> String {
    let one = |reference: &Reference| Target {
        children: vec![Reference {
            child: reference.child,
            sql: reference.sql.clone(),
            columns: reference.columns.clone(),
        }],
        oid: target.oid,
        sql: String::new(),
        kind: String::new(),
        key: target.key.clone(),
        ours: String::new(),
        count: 0,
    };
    target.children.iter().map(|reference| format!(" AND NOT {}", is_held(&one(reference), group))).collect()
}

fn delete(target: &Target, group: &[Target], within: &str) -> String {
    let (table, ours, same, free) = (&target.sql, &target.ours, is_same(target), is_free(target, group));
    if target.key.form == Form::Row {
        // Of rows that are alike as many as were made.
        return format!(
            "DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM (
                 SELECT t.ctid, o.copies, row_number() OVER (PARTITION BY o.n) AS copy FROM {table} AS t JOIN {ours} AS o ON {same}
                  WHERE {within}{free}) AS alike WHERE copy <= copies)"
        );
    }
    format!("DELETE FROM {table} AS t USING {ours} AS o WHERE {same} AND {within}{free}")
}

fn remove_some(
    client: &mut Client,
    target: &Target,
    first: i64,
    last: i64,
    rows: &mut Rows,
    refusals: &mut u32,
) -> anyhow::Result<()> {
    let within = format!("o.n BETWEEN {first} AND {last}");
    let mut work = || -> Result<u64, postgres::Error> {
        let mut transaction = client.transaction()?;
        transaction.batch_execute(PATIENCE)?;
        if !target.children.is_empty() {
            // Who would refer to one of them waits from here on, and is seen by the next statement.
            transaction.batch_execute(&format!(
                "DO $lock$ BEGIN PERFORM FROM {} AS t JOIN {} AS o ON {} WHERE {within} FOR UPDATE OF t; END $lock$",
                target.sql,
                target.ours,
                is_same(target)
            ))?;
        }
        let removed = transaction.execute(&delete(target, &[], &within), &[])?;
        transaction.commit()?;
        Ok(removed)
    };
    let error = match work() {
        Ok(removed) => {
            rows.removed += removed;
            return Ok(());
        }
        Err(error) if client.is_closed() => return Err(server(error)),
        Err(error) => error,
    };
    *refusals += 1;
    let is_timeout =
        [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED].iter().any(|code| error.code() == Some(code));
    if first < last && *refusals < if is_timeout { MOST_REFUSALS / 10 } else { MOST_REFUSALS } {
        let middle = first.midpoint(last);
        remove_some(client, target, first, middle, rows, refusals)?;
        return remove_some(client, target, middle + 1, last, rows, refusals);
    }
    let why = text(&error);
    let sql =
        format!("SELECT o.k FROM {} AS o JOIN {} AS t ON {} WHERE {within}", target.ours, target.sql, is_same(target));
    for row in client.query(&sql, &[]).map_err(server)? {
        let key = target.key.json(&row.get::<_, String>(0));
        rows.left.push(Fate { kind: target.kind.clone(), key, stays: false, why: why.clone() });
    }
    Ok(())
}

/// Removes rows of tables that refer to one another: foreign keys are looked at when a whole
/// statement is done.
fn remove_together(transaction: &mut Transaction<'_>, group: &[Target]) -> Result<u64, postgres::Error> {
    transaction.batch_execute(PATIENCE)?;
    for target in group {
        transaction.batch_execute(&format!(
            "DO $lock$ BEGIN PERFORM FROM {} AS t JOIN {} AS o ON {} FOR UPDATE OF t; END $lock$",
            target.sql,
            target.ours,
            is_same(target)
        ))?;
    }
    // What is held keeps back what it refers to within the group.
    let mut held = 1;
    while held > 0 {
        held = 0;
        for target in group {
            let sql = format!(
                "UPDATE {ours} AS mine SET held = true WHERE NOT held AND EXISTS (
                     SELECT FROM {ours} AS o JOIN {table} AS t ON {same} WHERE o.n = mine.n AND {is_held})",
                ours = target.ours,
                table = target.sql,
                same = is_same(target),
                is_held = is_held(target, group)
            );
            held += transaction.execute(&sql, &[])?;
        }
    }
    let parts: Vec<_> = group
        .iter()
        .enumerate()
        .map(|(n, target)| {
            format!(
                "d{n} AS ({} RETURNING 1)",
                delete(&Target { children: Vec::new(), ..target.copy() }, group, "NOT o.held")
            )
        })
        .collect();
    let sum: Vec<_> = (0..group.len()).map(|n| format!("(SELECT count(*) FROM d{n})")).collect();
    let row = transaction.query_one(&format!("WITH {} SELECT {}", parts.join(", "), sum.join(" + ")), &[])?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

impl Target {
    fn copy(&self) -> Self {
        Self {
            oid: self.oid,
            sql: self.sql.clone(),
            kind: self.kind.clone(),
            key: self.key.clone(),
            ours: self.ours.clone(),
            count: self.count,
            children: Vec::new(),
        }
    }
}

/// Names the rows that are there still, and who holds them.
fn name_left(client: &mut Client, target: &Target, why: Option<&str>, rows: &mut Rows) -> anyhow::Result<()> {
    let whose: Vec<_> = target
        .children
        .iter()
        .map(|reference| {
            let pairs: Vec<_> = reference.columns.iter().map(|(mine, its)| format!("c.{mine} = t.{its}")).collect();
            format!(
                "CASE WHEN EXISTS (SELECT FROM {child} AS c WHERE {}) THEN '{}' END",
                pairs.join(" AND "),
                reference.sql.replace('\'', "''"),
                child = reference.sql
            )
        })
        .collect();
    if target.children.is_empty() && why.is_none() {
        return Ok(());
    }
    let whose = if whose.is_empty() { "NULL".to_owned() } else { format!("concat_ws(', ', {})", whose.join(", ")) };
    let known: BTreeSet<String> =
        rows.left.iter().filter(|fate| fate.kind == target.kind).map(|fate| fate.key.clone()).collect();
    let sql = format!(
        "SELECT o.k, {whose} FROM {} AS o JOIN {} AS t ON {} LIMIT {MOST_NAMED}",
        target.ours,
        target.sql,
        is_same(target)
    );
    for row in client.query(&sql, &[]).map_err(server)? {
        let (key, whose): (String, Option<String>) = (row.get(0), row.get(1));
        let key = target.key.json(&key);
        if known.contains(&key) {
            continue;
        }
        let whose = whose.filter(|whose| !whose.is_empty());
        let held = whose.map_or("it came back".to_owned(), |whose| format!("rows of {whose} refer to it"));
        let why = why.map_or(held, str::to_owned);
        rows.left.push(Fate { kind: target.kind.clone(), key, stays: false, why });
    }
    Ok(())
}
