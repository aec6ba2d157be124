//! Which rows are the run's: those whose last maker it was, and whose first sight was not their
//! end.

use std::collections::{HashMap, HashSet};

use postgres::{Client, Transaction};

use super::Target;
use crate::name::{Identifier, Tag};
use crate::provider::Rows;
use crate::provider::postgres::capture::table::{Form, Key};
use crate::touch::Fate;

/// How many events are looked at at once.
const BATCH: i32 = 4096;

/// Writes down which rows of a table are the run's, unless an earlier try has: what that has
/// removed since, somebody else may have made again.
pub fn find(
    client: &mut Client,
    home: &Identifier,
    tag: &Tag,
    target: &mut Target,
    rows: &mut Rows,
) -> Result<(), postgres::Error> {
    let found = format!("{home}.found_{}", target.oid);
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&target.ours])?.get::<_, bool>(0);
    if !exists || rows.is_broken {
        let mut transaction = client.transaction()?;
        look(&mut transaction, home, tag, target, &found, rows)?;
        transaction.commit()?;
    }
    let state = format!("SELECT coalesce(max(n), 0), to_regclass($1) IS NOT NULL FROM {}", target.ours);
    let state = client.query_one(&state, &[&found])?;
    target.last = state.get(0);
    // Where nothing but new rows was seen, there is no such table.
    if !state.get::<_, bool>(1) {
        return Ok(());
    }
    for row in client.query(&format!("SELECT k FROM {found} WHERE NOT is_new"), &[])? {
        let key = target.key.json(&row.get::<_, String>(0));
        let why = "its key was there before the run".to_owned();
        rows.left.push(Fate { kind: target.kind.clone(), key, stays: true, why });
    }
    Ok(())
}

fn look(
    transaction: &mut Transaction<'_>,
    home: &Identifier,
    tag: &Tag,
    target: &Target,
    found: &str,
    rows: &mut Rows,
) -> Result<(), postgres::Error> {
    let begins = format!("'isolane_{tag}_w'");
    let ours =
        format!("(starts_with(who::text, {begins}) OR starts_with(coalesce(app, ''), {begins}) OR lane IS NOT NULL)");
    let all = format!("(SELECT * FROM {home}.log UNION ALL SELECT * FROM {home}.harvested)");
    // What was there before all rows went is of no interest any more.
    let emptied = format!(
        "SELECT max(e.at)::text FROM {all} AS e JOIN {home}.watched w USING (rel) WHERE w.oid = {} AND e.op = 'T'",
        target.oid
    );
    let emptied: Option<String> = transaction.query_one(&emptied, &[])?.get(0);
    let truncated = emptied.map(|at| format!(" AND l.at > '{at}'")).unwrap_or_default();
    let rels = format!("SELECT string_agg(rel::text, ',') FROM ({}) AS its", target.rels(home));
    let rels: String = transaction.query_one(&rels, &[])?.get(0);
    let log = format!(
        "(SELECT l.at, l.op, l.keys, l.was, {ours} AS ours, coalesce(app, '') LIKE 'isolane run %' AS tidies FROM {all} AS l
           WHERE l.rel = ANY ('{{{rels}}}'){truncated}) AS log",
    );
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS {}", target.ours))?;
    let is_plain = format!("SELECT NOT EXISTS (SELECT FROM {log} WHERE op <> 'I' OR NOT ours)");
    let is_plain: bool = transaction.query_one(&is_plain, &[])?.get(0);
    let moved = format!("{home}.moved_{}", target.oid);
    if is_plain && target.key.form != Form::Row {
        let keys = format!(
            "(SELECT DISTINCT k, 1::bigint AS copies FROM {log}, unnest(keys) AS k WHERE k IS NOT NULL) AS new"
        );
        transaction.batch_execute(&format!("DROP TABLE IF EXISTS {found}"))?;
        return list(transaction, target, &keys);
    }
    // Of rows that are alike, it matters in which order they came and went.
    let or_went = if target.key.form == Form::Row { " OR op = 'D'" } else { "" };
    transaction.batch_execute(&format!(
        "DROP TABLE IF EXISTS {moved};
         CREATE UNLOGGED TABLE {moved} AS SELECT DISTINCT k FROM (
             SELECT unnest(ARRAY[u.was, u.k]) AS k FROM {log}, unnest(keys, was) AS u (k, was) WHERE (op = 'U' AND u.was <> u.k){or_went}) AS m
          WHERE k IS NOT NULL"
    ))?;
    let (copies, is_there) = if target.key.form == Form::Row {
        ("count(*) FILTER (WHERE op = 'I' AND ours)", "bool_or(op = 'I' AND ours)")
    } else {
        ("1::bigint", "(array_agg(op = 'I' AND ours ORDER BY at DESC))[1]")
    };
    let keys = format!(
        "SELECT k, (array_agg(op ORDER BY at))[1] = 'I' AS is_new, {copies} AS copies
           FROM {log}, unnest(keys) AS k WHERE op IN ('I', 'D') AND k IS NOT NULL AND k NOT IN (SELECT k FROM {moved})
          GROUP BY k HAVING {is_there}"
    );
    transaction.batch_execute(&format!("DROP TABLE IF EXISTS {found}; CREATE UNLOGGED TABLE {found} AS {keys}"))?;
    follow(transaction, target, &log, &moved, found)?;
    list(transaction, target, &format!("{found} WHERE is_new AND copies > 0"))?;
    let sql = format!(
        "SELECT count(DISTINCT k) FROM {log}, unnest(keys) AS k JOIN {} AS o USING (k) WHERE op = 'U' AND NOT ours",
        target.ours
    );
    let changed: i64 = transaction.query_one(&sql, &[])?.get(0);
    if changed > 0 {
        rows.changed.push((target.kind.clone(), u64::try_from(changed).unwrap_or(0)));
    }
    Ok(())
}

/// Writes down `keys` as those of the rows that are to be removed. What goes in one batch is
/// found as quickly without an index.
fn list(transaction: &mut Transaction<'_>, target: &Target, keys: &str) -> Result<(), postgres::Error> {
    let ours = &target.ours;
    let listed = transaction.execute(
        &format!(
            "CREATE UNLOGGED TABLE {ours} AS SELECT row_number() OVER (ORDER BY k) AS n, k, copies, false AS held, {typed} FROM {keys}",
            typed = typed(&target.key)
        ),
        &[],
    )?;
    if listed > super::delete::BATCH.unsigned_abs() {
        transaction.batch_execute(&format!(
            "CREATE UNIQUE INDEX ON {ours} (n); CREATE INDEX ON {ours} (c0); ANALYZE {ours};"
        ))?;
    }
    Ok(())
}

/// SQL for the columns of a key `k`.
pub fn typed(key: &Key) -> String {
    let columns: Vec<_> = match key.form {
        Form::Row => vec!["k::jsonb AS c0".to_owned()],
        Form::Integer | Form::Text => vec![format!("k::{} AS c0", key.types[0])],
        Form::Array => {
            key.types.iter().enumerate().map(|(n, kind)| format!("(k::jsonb ->> {n})::{kind} AS c{n}")).collect()
        }
    };
    columns.join(", ")
}

/// Follows rows whose keys were changed from one to the next.
fn follow(
    transaction: &mut Transaction<'_>,
    target: &Target,
    log: &str,
    moved: &str,
    found: &str,
) -> Result<(), postgres::Error> {
    let events = transaction.prepare(&format!(
        "SELECT seq, op::text AS op, ours, tidies, u.k, u.was
           FROM (SELECT row_number() OVER (ORDER BY at) AS seq, * FROM {log}) AS e, unnest(keys, was) WITH ORDINALITY AS u (k, was, n)
          WHERE (op <> 'U' OR u.was <> u.k) AND (u.k IN (SELECT k FROM {moved}) OR u.was IN (SELECT k FROM {moved}))
          ORDER BY seq, u.n"
    ))?;
    let portal = transaction.bind(&events, &[])?;
    let mut track = Track { is_bag: target.key.form == Form::Row, ..Track::default() };
    let mut last = 0;
    loop {
        let rows = transaction.query_portal(&portal, BATCH)?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            let seq: i64 = row.get("seq");
            if seq != last {
                track.arrive();
                last = seq;
            }
            let Some(key) = row.get::<_, Option<String>>("k") else { continue };
            let who = match (row.get("ours"), row.get("tidies")) {
                (true, _) => Who::Run,
                (_, true) => Who::Tidy,
                _ => Who::Other,
            };
            match (row.get::<_, &str>("op"), row.get::<_, Option<String>>("was")) {
                ("I", _) => track.made(key, who),
                ("D", _) => {
                    track.ended(&key, who);
                }
                (_, Some(was)) => track.left(&was, key, who),
                _ => {}
            }
        }
    }
    track.arrive();
    let (mut keys, mut new, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for (key, mine) in track.mine.into_iter().filter(|(_, mine)| *mine > 0) {
        new.push(track.is_bag || !track.before.contains(&key));
        keys.push(key);
        copies.push(mine);
    }
    let sql = format!("INSERT INTO {found} SELECT * FROM unnest($1::text[], $2::bool[], $3::bigint[])");
    transaction.execute(&sql, &[&keys, &new, &copies])?;
    Ok(())
}

/// Who wrote.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Run,
    /// The end of another run, which removes that run's own.
    Tidy,
    Other,
}

/// Where rows are while their keys change.
#[derive(Default)]
struct Track {
    /// Without a key many may be alike.
    is_bag: bool,
    /// How many of a key are the run's.
    mine: HashMap<String, i64>,
    /// Of a bag, how many others have made meanwhile.
    theirs: HashMap<String, i64>,
    /// Of a bag, how many the run has removed that were there before.
    owed: HashMap<String, i64>,
    /// Keys that were seen, and those of rows that were there before.
    seen: HashSet<String>,
    before: HashSet<String>,
    /// What a statement moves, until all of it has left.
    moving: Vec<(String, i64)>,
}

/// Takes one, if there is one.
fn take(from: &mut HashMap<String, i64>, key: &str) -> bool {
    match from.get_mut(key) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

impl Track {
    fn made(&mut self, key: String, who: Who) {
        self.seen.insert(key.clone());
        if !self.is_bag {
            self.mine.insert(key, i64::from(who == Who::Run));
        } else if who != Who::Run {
            *self.theirs.entry(key).or_default() += 1;
        } else if !take(&mut self.owed, &key) {
            // Else it is in place of one that was there before.
            *self.mine.entry(key).or_default() += 1;
        }
    }

    /// One went; whether it was the run's. Of those that are alike everybody removes their own first.
    fn ended(&mut self, key: &str, who: Who) -> bool {
        if self.seen.insert(key.to_owned()) {
            self.before.insert(key.to_owned());
        }
        if !self.is_bag {
            return take(&mut self.mine, key);
        }
        match who {
            Who::Run if take(&mut self.mine, key) => true,
            Who::Run => {
                if !take(&mut self.theirs, key) {
                    *self.owed.entry(key.to_owned()).or_default() += 1;
                }
                false
            }
            _ if take(&mut self.theirs, key) => false,
            Who::Tidy => false,
            Who::Other => take(&mut self.mine, key),
        }
    }

    fn left(&mut self, was: &str, key: String, who: Who) {
        let is_mine = self.ended(was, who);
        self.moving.push((key, i64::from(is_mine)));
    }

    /// Keys may change places within a statement.
    fn arrive(&mut self) {
        for (key, mine) in std::mem::take(&mut self.moving) {
            self.seen.insert(key.clone());
            if self.is_bag {
                *self.mine.entry(key.clone()).or_default() += mine;
                *self.theirs.entry(key).or_default() += 1 - mine;
            } else {
                self.mine.insert(key, mine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mine(track: &Track) -> Vec<(&str, i64)> {
        let mut mine: Vec<_> = track.mine.iter().filter(|(_, n)| **n > 0).map(|(key, n)| (key.as_str(), *n)).collect();
        mine.sort_unstable();
        mine
    }

    #[test]
    fn rows_are_followed_from_key_to_key() {
        let mut track = Track::default();
        track.made("1".into(), Who::Run);
        track.made("2".into(), Who::Other);
        // They change places, and a row that was there before leaves its key to one of the run's.
        track.left("1", "2".into(), Who::Run);
        track.left("2", "1".into(), Who::Run);
        track.arrive();
        assert_eq!(mine(&track), [("2", 1)]);
        track.left("9", "3".into(), Who::Run);
        track.arrive();
        track.made("9".into(), Who::Run);
        assert_eq!(mine(&track), [("2", 1), ("9", 1)]);
        assert!(track.before.contains("9") && !track.before.contains("2"));
    }

    #[test]
    fn of_rows_that_are_alike_the_runs_are_counted() {
        let mut track = Track { is_bag: true, ..Track::default() };
        (0..3).for_each(|_| track.made("a".into(), Who::Run));
        // One more than the run has made.
        (0..4).for_each(|_| track.left("a", "b".into(), Who::Run));
        track.arrive();
        track.made("a".into(), Who::Run);
        assert_eq!(mine(&track), [("b", 3)]);
        // Another run's end takes that run's; somebody else may have taken one of ours.
        for _ in 0..5 {
            track.ended("b", Who::Tidy);
        }
        assert_eq!(mine(&track), [("b", 3)]);
        track.ended("b", Who::Other);
        assert_eq!(mine(&track), [("b", 2)]);
    }
}
