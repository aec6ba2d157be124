//! Deleting what is the run's, in batches or, where tables refer to one another, at once.

use std::collections::BTreeSet;

use postgres::error::SqlState;
use postgres::{Client, Transaction};
use postgres_protocol::escape::escape_literal;

use super::{Reference, Target};
use crate::name::Identifier;
use crate::provider::Rows;
use crate::provider::postgres::capture::table::Form;
use crate::provider::postgres::connection::text;
use crate::touch::Fate;

/// How many rows go in one transaction.
pub const BATCH: i64 = 5000;
/// What a transaction waits for at most; nobody of the user's waits longer for us. Triggers of the
/// user's find what they name where they do for the user.
const PATIENCE: &str =
    "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '60s'; SET LOCAL search_path TO DEFAULT";
/// How many refusals of the server are looked into, each by halving what was refused.
const MOST_REFUSALS: u32 = 200;
/// How many rows are named that somebody else's rows refer to.
const MOST_NAMED: i64 = 10_000;

/// Removes what is the run's of these tables, which refer to one another or are one.
pub fn remove_group(client: &mut Client, group: &[Target], rows: &mut Rows) -> Result<(), postgres::Error> {
    let mut refusals = 0;
    if let [target] = group
        && target.children.iter().all(|child| child.child != target.oid)
    {
        let mut first = 1;
        while first <= target.last {
            let last = (first + BATCH - 1).min(target.last);
            remove_some(client, target, first, last, rows, &mut refusals)?;
            first = last + 1;
        }
    } else {
        let mut transaction = client.transaction()?;
        match remove_together(&mut transaction, group) {
            Ok(removed) => {
                transaction.commit()?;
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
    is_same_as(target, "t")
}

/// SQL: whether `row` is that of `o`.
fn is_same_as(target: &Target, row: &str) -> String {
    if target.key.form == Form::Row {
        return format!("to_jsonb({row}.*) = o.c0");
    }
    let column = |(n, name): (usize, &String)| {
        // A type that is not the server's own may have its operators anywhere.
        let as_text = if target.key.types[n] == "text" { "::text" } else { "" };
        Some(format!("{row}.{}{as_text} = o.c{n}", Identifier::new(name.as_str())?))
    };
    let pairs: Vec<_> = target.columns.iter().enumerate().filter_map(column).collect();
    pairs.join(" AND ")
}

impl Target {
    fn without_children(&self) -> Self {
        Self {
            oid: self.oid,
            sql: self.sql.clone(),
            kind: self.kind.clone(),
            key: self.key.clone(),
            columns: self.columns.clone(),
            ours: self.ours.clone(),
            last: self.last,
            children: Vec::new(),
        }
    }
}

/// SQL: whether a row that is not among those of `group` refers to `t`.
fn is_held(target: &Target, group: &[Target]) -> String {
    let held = target.children.iter().map(|reference| {
        let pairs: Vec<_> = reference.columns.iter().map(|(mine, its)| format!("c.{mine} = t.{its}")).collect();
        let goes = group.iter().find(|other| other.oid == reference.child).map_or(String::new(), |other| {
            let same = is_same_as(other, "c");
            format!(" AND NOT EXISTS (SELECT FROM {} AS o WHERE NOT o.held AND {same})", other.ours)
        });
        format!("EXISTS (SELECT FROM {} AS c WHERE {}{goes})", reference.sql, pairs.join(" AND "))
    });
    let held: Vec<_> = held.collect();
    if held.is_empty() { "false".to_owned() } else { format!("({})", held.join(" OR ")) }
}

/// SQL: not held, each reason apart, so that the server can join and need not look row by row.
fn is_free(target: &Target, group: &[Target]) -> String {
    let one = |reference: &Reference| Target { children: vec![reference.clone()], ..target.without_children() };
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
) -> Result<(), postgres::Error> {
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
        // Should somebody else make such a row now, a later try must not take it for ours.
        let stays = if target.children.is_empty() {
            String::new()
        } else {
            format!(" AND NOT EXISTS (SELECT FROM {} AS t WHERE {})", target.sql, is_same(target))
        };
        transaction.batch_execute(&format!("DELETE FROM {} AS o WHERE {within}{stays}", target.ours))?;
        transaction.commit()?;
        Ok(removed)
    };
    let error = match work() {
        Ok(removed) => {
            rows.removed += removed;
            return Ok(());
        }
        Err(error) if client.is_closed() => return Err(error),
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
    for row in client.query(&sql, &[])? {
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
            "UPDATE {ours} SET held = false WHERE held;
             DO $lock$ BEGIN PERFORM FROM {} AS t JOIN {ours} AS o ON {} FOR UPDATE OF t; END $lock$",
            target.sql,
            is_same(target),
            ours = target.ours
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
        .map(|(n, target)| format!("d{n} AS ({} RETURNING 1)", delete(&target.without_children(), group, "NOT o.held")))
        .collect();
    let sum: Vec<_> = (0..group.len()).map(|n| format!("(SELECT count(*) FROM d{n})")).collect();
    let row = transaction.query_one(&format!("WITH {} SELECT {}", parts.join(", "), sum.join(" + ")), &[])?;
    for target in group {
        transaction.batch_execute(&format!("DELETE FROM {} WHERE NOT held", target.ours))?;
    }
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Names the rows that are there still, and who holds them.
fn name_left(client: &mut Client, target: &Target, why: Option<&str>, rows: &mut Rows) -> Result<(), postgres::Error> {
    let whose: Vec<_> = target
        .children
        .iter()
        .map(|reference| {
            let pairs: Vec<_> = reference.columns.iter().map(|(mine, its)| format!("c.{mine} = t.{its}")).collect();
            format!(
                "CASE WHEN EXISTS (SELECT FROM {child} AS c WHERE {}) THEN {} END",
                pairs.join(" AND "),
                escape_literal(reference.sql.trim_start_matches("ONLY ")),
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
    for row in client.query(&sql, &[])? {
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
