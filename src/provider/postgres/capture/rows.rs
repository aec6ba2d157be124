//! Removing the rows that a run made among the user's own, as the log on the server knows
//! them: it needs no ledger.
//!
//! Children go before their parents. A row that somebody else's row refers to stays, whatever
//! the foreign key would do about it, and so does one whose key was there before the run.

mod aftermath;
mod delete;
mod find;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use postgres::Client;

use super::super::connection::{readable, text};
use super::table::Key;
use crate::name::{Identifier, Tag};
use crate::provider::Rows;
use crate::touch::Fate;

/// How often triggers of the user's may write because of what triggers of theirs have written.
const MOST_ECHOES: u32 = 3;

/// SQL: the table that `c` is, or of which it is a partition.
const WHOLE: &str = "CASE WHEN c.relispartition THEN pg_partition_root(c.oid) ELSE c.oid END";

/// A table in which the run made rows.
struct Target {
    oid: u32,
    /// Its name, for SQL; what inherits from it is not meant.
    sql: String,
    kind: String,
    key: Key,
    /// What the key's columns are called now.
    columns: Vec<String>,
    /// Where the keys of the run's rows stand that are not removed yet.
    ours: String,
    /// The last of them.
    last: i64,
    /// Foreign keys that refer to it.
    children: Vec<Reference>,
}

impl Target {
    /// SQL: its numbers in the log; with partitions it has several.
    fn rels(&self, home: &Identifier) -> String {
        format!("SELECT w.rel FROM {home}.watched w JOIN pg_class c ON c.oid = w.oid WHERE {WHOLE} = {}", self.oid)
    }
}

/// A foreign key of another table, or of the same.
#[derive(Clone)]
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
    rows.is_known = true;
    // Whatever is removed from now on is no touch.
    super::quiet(client, home).map_err(server)?;
    index(client, home);
    aftermath::listen(client, home, tag).map_err(server)?;
    let whole = format!("SELECT EXISTS (SELECT FROM {home}.unbroken)");
    rows.is_broken = !client.query_one(&whole, &[]).map_err(server)?.get::<_, bool>(0);
    remove_once(client, home, tag, &mut rows)?;
    for _ in 0..MOST_ECHOES {
        if !aftermath::is_there(client, home).map_err(server)? {
            break;
        }
        let mut more = Rows { is_known: true, is_broken: false, ..Rows::default() };
        remove_once(client, home, tag, &mut more)?;
        let is_new = |fate: &Fate| !rows.left.contains(fate);
        let left: Vec<_> = more.left.into_iter().filter(|fate| !fate.stays && is_new(fate)).collect();
        rows.left.extend(left);
    }
    Ok(rows)
}

/// Each table looks into the log for what is its own. It finds it without as well, where somebody
/// who wrote into the log has not ended yet.
fn index(client: &mut Client, home: &Identifier) {
    let one =
        |log: &str| format!("CREATE INDEX IF NOT EXISTS {log}_by_rel ON {home}.{log} (rel); ANALYZE {home}.{log};");
    let both = format!("BEGIN; SET LOCAL lock_timeout = '500ms'; {} {} COMMIT;", one("log"), one("harvested"));
    if client.batch_execute(&both).is_err() {
        let _ = client.batch_execute("ROLLBACK");
    }
}

fn remove_once(client: &mut Client, home: &Identifier, tag: &Tag, rows: &mut Rows) -> anyhow::Result<()> {
    let mut targets = targets(client, home).map_err(server)?;
    for target in &mut targets {
        let found = find::find(client, home, tag, target, rows);
        let found = found.and_then(|()| aftermath::add(client, home, target));
        go_on(client, found, target, rows)?;
    }
    targets.retain(|target| target.last > 0);
    refer(client, &mut targets).map_err(server)?;
    for group in in_order(targets) {
        let removed = delete::remove_group(client, &group, rows);
        go_on(client, removed, &group[0], rows)?;
    }
    Ok(())
}

/// What goes wrong with one table does not keep the others.
fn go_on(client: &Client, done: Result<(), postgres::Error>, target: &Target, rows: &mut Rows) -> anyhow::Result<()> {
    match done {
        Err(error) if client.is_closed() => Err(server(error)),
        Err(error) => {
            let key = "(all)".to_owned();
            rows.left.push(Fate { kind: target.kind.clone(), key, stays: false, why: text(&error) });
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn server(error: postgres::Error) -> anyhow::Error {
    readable(anyhow::Error::new(error))
}

/// The watched tables that are there still. Partitions count as the whole; columns are found by
/// their numbers, because a test may have renamed them.
fn targets(client: &mut Client, home: &Identifier) -> Result<Vec<Target>, postgres::Error> {
    let sql = format!(
        "SELECT root.oid, CASE root.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END || root.oid::regclass::text AS sql,
                w.kind, w.columns, w.types, w.form::text AS form,
                CASE WHEN w.kind <> w.own_kind AND NOT c.relispartition THEN w.columns
                     ELSE ARRAY(SELECT a.attname::text FROM unnest(w.attnums) WITH ORDINALITY AS u (n, at)
                                  JOIN pg_attribute a ON a.attrelid = root.oid AND a.attnum = u.n AND NOT a.attisdropped ORDER BY at)
                END AS now
           FROM {home}.watched w JOIN pg_class c ON c.oid = w.oid
           JOIN pg_class root ON root.oid = {WHOLE}
          WHERE EXISTS (SELECT FROM {home}.log l WHERE l.rel = w.rel AND l.op = 'I')
             OR EXISTS (SELECT FROM {home}.harvested l WHERE l.rel = w.rel AND l.op = 'I')
             OR EXISTS (SELECT FROM {home}.aftermath l WHERE l.rel = w.rel)"
    );
    let mut targets: BTreeMap<u32, Target> = BTreeMap::new();
    for row in client.query(&sql, &[])? {
        let oid = row.get("oid");
        targets.entry(oid).or_insert_with(|| Target {
            oid,
            sql: row.get("sql"),
            kind: row.get("kind"),
            key: Key::recall(row.get("columns"), row.get("types"), row.get("form")),
            columns: row.get("now"),
            ours: format!("{home}.ours_{oid}"),
            last: 0,
            children: Vec::new(),
        });
    }
    Ok(targets.into_values().collect())
}

/// Finds the foreign keys that refer to these tables.
fn refer(client: &mut Client, targets: &mut [Target]) -> Result<(), postgres::Error> {
    let oids: Vec<u32> = targets.iter().map(|target| target.oid).collect();
    let sql = "SELECT c.conrelid, coalesce(pg_partition_root(c.confrelid)::oid, c.confrelid) AS parent,
                      CASE r.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END || c.conrelid::regclass::text AS child,
                      ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.conkey) WITH ORDINALITY AS k (n, at) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY at) AS mine,
                      ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confkey) WITH ORDINALITY AS k (n, at) JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY at) AS its
                 FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
                WHERE c.contype = 'f' AND c.conparentid = 0 AND coalesce(pg_partition_root(c.confrelid), c.confrelid) = ANY ($1)";
    for row in client.query(sql, &[&oids])? {
        let parent: u32 = row.get("parent");
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
