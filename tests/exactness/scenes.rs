//! Collisions: each scene is made so that it is known who meets whom.

use std::collections::BTreeSet;

use isolane::collision::Pattern;

use crate::errors;
use crate::plan::Step;
use crate::world::{RowOf, Table, Who, World};

type Scene = fn(&mut World);

/// Every scene, and how often it is played in relation to the others.
pub const SCENES: [(Scene, usize); 19] = [
    (clobber, 6),
    (clobber_of_a_fixture, 2),
    (clobber_on_behalf, 2),
    (clobber_of_a_remade_row, 2),
    (clobber_of_a_renamed_row, 2),
    (clobber_in_a_long_transaction, 3),
    (pollution, 6),
    (pollution_at_once, 4),
    (pollution_of_a_late_row, 2),
    (hot_row, 4),
    (hot_row_to_and_fro, 2),
    (hot_row_of_a_stranger, 2),
    (broad, 3),
    (broad_over_own, 3),
    (truncate, 2),
    (errors::duplicate_key, 2),
    (errors::duplicate_of_a_changed_row, 1),
    (errors::foreign_key, 2),
    (errors::deadlock, 2),
];

/// Plays one of them.
pub fn play(w: &mut World) {
    let sum: usize = SCENES.iter().map(|(_, weight)| weight).sum();
    let mut at = w.rng.usize(..sum);
    for (scene, weight) in SCENES {
        if at < weight {
            return scene(w);
        }
        at -= weight;
    }
}

/// `b` changes or removes a row of somebody else's, in one of several ways.
fn meddle(w: &mut World, b: usize, row: RowOf, pattern: Pattern, a: Who) {
    w.within(b);
    match w.rng.u8(..5) {
        0 | 1 => {
            let who = w.update(b, row);
            w.expect(pattern, row, (a, "insert"), (who, "update"));
        }
        2 => {
            let who = w.delete(b, row);
            w.expect(pattern, row, (a, "insert"), (who, "delete"));
        }
        3 => {
            // Its key is another one afterwards, and the story goes on under that.
            let n = w.fresh();
            let row = w.rename(b, row, n);
            let who = w.who(b);
            w.expect(pattern, row, (a, "insert"), (who, "update"));
        }
        _ => {
            let target = match row.0 {
                Table::Tags => "(a, b)",
                Table::Codes => "(code)",
                _ => "(id)",
            };
            let who = w.who(b);
            w.sql(b, format!("{} ON CONFLICT {target} DO UPDATE SET v = EXCLUDED.v", row.0.insert(row.1)));
            w.touch(Some(&who), row.0, "update", 1);
            w.expect(pattern, row, (a, "insert"), (who, "update"));
        }
    }
}

fn clobber(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    let who = w.insert(a, row);
    let test = w.within(a);
    w.meanwhile(test, move |w| {
        meddle(w, b, row, Pattern::Clobber, who);
        // To the very end of the test.
        if w.rng.bool() {
            w.end(a);
        }
    });
}

fn clobber_of_a_fixture(w: &mut World) {
    let (a, b) = w.two();
    let fixture = w.workers[a].fixture.clone();
    let its = w.rows.iter().find_map(|(row, (_, who))| (who.test == fixture).then_some(*row));
    // Each fixture is met once.
    if let Some(row) = its.filter(|_| !std::mem::replace(&mut w.workers[a].is_met, true)) {
        meddle(w, b, row, Pattern::Clobber, Who { worker: a, test: fixture });
    }
}

/// Somebody who is no worker makes a row with a worker's prefix in it.
fn clobber_on_behalf(w: &mut World) {
    let (a, b) = w.two();
    let n = w.fresh();
    w.stranger(format!("INSERT INTO public.users VALUES ({n}, '{{prefix{a}}}-{n}@example.com', 0)"));
    let who = w.who(a);
    w.has_made(&who, (Table::Users, n));
    let by = w.update(b, (Table::Users, n));
    w.expect(Pattern::Clobber, (Table::Users, n), (who, "insert"), (by, "update"));
}

/// The worker had made a row of this key itself, once.
fn clobber_of_a_remade_row(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.insert(b, row);
    w.delete(b, row);
    let who = w.insert(a, row);
    let by = w.update(b, row);
    w.expect(Pattern::Clobber, row, (who, "insert"), (by, "update"));
}

fn clobber_of_a_renamed_row(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    let who = w.insert(a, row);
    let n = w.fresh();
    let row = w.rename(a, row, n);
    let by = w.update(b, row);
    w.expect(Pattern::Clobber, row, (who, "insert"), (by, "update"));
}

/// What is committed late was written when it was written.
fn clobber_in_a_long_transaction(w: &mut World) {
    let (a, b) = w.two();
    if std::mem::replace(&mut w.workers[a].is_aside, true) {
        return;
    }
    let row = (w.plain(), w.fresh());
    let who = w.who(a);
    w.steps.push(Step::Aside { worker: a, sql: format!("BEGIN; {}", row.0.insert(row.1)) });
    w.has_made(&who, row);
    let test = w.within(a);
    let commit = move |w: &mut World| {
        w.steps.push(Step::Aside { worker: a, sql: "COMMIT".to_owned() });
        w.workers[a].is_aside = false;
    };
    if w.rng.bool() {
        w.meanwhile(test, move |w| {
            commit(w);
            meddle(w, b, row, Pattern::Clobber, who);
        });
    } else {
        w.after(test, move |w| {
            commit(w);
            meddle(w, b, row, Pattern::Pollution, who);
        });
    }
}

fn pollution(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    let who = w.insert(a, row);
    let test = w.within(a);
    w.after(test, move |w| meddle(w, b, row, Pattern::Pollution, who));
}

/// The next thing after the test's end, and its worker is in the next one.
fn pollution_at_once(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    let who = w.insert(a, row);
    if w.end(a) {
        if w.rng.bool() {
            w.within(a);
        }
        meddle(w, b, row, Pattern::Pollution, who);
    } else {
        meddle(w, b, row, Pattern::Clobber, who);
    }
}

/// What a worker does between two tests belongs to the first.
fn pollution_of_a_late_row(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    let who = w.who(a);
    if !w.end(a) {
        return;
    }
    w.sql(a, row.0.insert(row.1));
    w.has_made(&who, row);
    w.steps.push(Step::Pause);
    meddle(w, b, row, Pattern::Pollution, who);
}

fn hot_row(w: &mut World) {
    let (a, b) = w.two();
    let Some(row) = w.old() else { return };
    let who = w.update(a, row);
    let test = w.within(a);
    let meet = move |w: &mut World| {
        w.within(b);
        let by = w.update(b, row);
        w.expect(Pattern::HotRow, row, (who, "update"), (by, "update"));
    };
    if w.rng.bool() { w.meanwhile(test, meet) } else { w.after(test, meet) }
}

fn hot_row_to_and_fro(w: &mut World) {
    let (a, b) = w.two();
    let Some(row) = w.old() else { return };
    let (first, second) = (w.update(a, row), w.update(b, row));
    w.expect(Pattern::HotRow, row, (first.clone(), "update"), (second.clone(), "update"));
    w.update(a, row);
    w.expect(Pattern::HotRow, row, (second, "update"), (first, "update"));
    // The same pair once more.
    w.update(b, row);
    w.update(a, row);
}

fn hot_row_of_a_stranger(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.stranger(row.0.insert(row.1));
    w.touch(None, row.0, "insert", 1);
    w.strangers.push(row);
    let (first, second) = (w.update(a, row), w.update(b, row));
    w.expect(Pattern::HotRow, row, (first, "update"), (second, "update"));
}

/// One statement over rows of these, aimed at nobody where they are of several others.
fn sweep_over(w: &mut World, b: usize, table: Table, theirs: &[(i64, Who)], own: &[i64]) {
    let numbers = theirs.iter().map(|(n, _)| n).chain(own);
    let rows = if theirs.len() > 1000 {
        let list = numbers.map(i64::to_string).collect::<Vec<_>>().join(", ");
        format!("id IN ({list})")
    } else {
        numbers.map(|n| table.is(*n)).collect::<Vec<_>>().join(" OR ")
    };
    let deletes = w.rng.bool();
    let op = if deletes { "delete" } else { "update" };
    let verb = if deletes { "DELETE FROM".to_owned() } else { "UPDATE".to_owned() };
    let set = if deletes { "" } else { " SET v = v" };
    w.sql(b, format!("{verb} {}{set} WHERE {rows}", table.name()));
    let by = w.who(b);
    w.touch(Some(&by), table, op, theirs.len() + own.len());
    let others: BTreeSet<usize> = theirs.iter().map(|(_, who)| who.worker).collect();
    for (n, who) in theirs {
        let pattern = match others.len() {
            1 if w.who(who.worker).test == who.test => Pattern::Clobber,
            1 => Pattern::Pollution,
            _ => Pattern::Broad,
        };
        w.expect(pattern, (table, *n), (who.clone(), "insert"), (by.clone(), op));
    }
    if deletes {
        theirs.iter().map(|(n, _)| *n).chain(own.iter().copied()).for_each(|n| w.is_gone((table, n)));
    }
}

/// Over rows of two others.
fn broad(w: &mut World) {
    let all = w.several(3);
    if all.len() < 3 {
        return broad_over_own(w);
    }
    let table = w.plain();
    let mut theirs = Vec::new();
    for other in [all[1], all[2], all[1]] {
        let n = w.fresh();
        theirs.push((n, w.insert(other, (table, n))));
    }
    if w.rng.bool() && w.end(all[1]) {
        w.within(all[1]);
        let n = w.fresh();
        theirs.push((n, w.insert(all[1], (table, n))));
    }
    sweep_over(w, all[0], table, &theirs, &[]);
}

/// Over rows of another, and rows of its own.
fn broad_over_own(w: &mut World) {
    let (a, b) = w.two();
    let table = w.plain();
    let own = w.fresh();
    w.insert(b, (table, own));
    let mut theirs = Vec::new();
    for _ in 0..w.rng.usize(1..4) {
        let n = w.fresh();
        theirs.push((n, w.insert(a, (table, n))));
    }
    sweep_over(w, b, table, &theirs, &[own]);
}

/// So many that the log is read in parts.
pub fn broad_in_parts(w: &mut World) {
    let all = w.several(3);
    let (b, others) = (all[0], &all[1..]);
    let mut theirs = Vec::new();
    for part in 0..2_i64 {
        let (other, first) =
            (others[usize::try_from(part).expect("small") % others.len()], 10_000_000 + part * 100_000);
        let who = w.who(other);
        let last = first + 4999;
        w.sql(other, format!("INSERT INTO public.goods SELECT n, 0 FROM generate_series({first}, {last}) AS n"));
        for n in first..=last {
            w.has_made(&who, (Table::Goods, n));
            theirs.push((n, who.clone()));
        }
    }
    let own = w.fresh();
    w.insert(b, (Table::Goods, own));
    sweep_over(w, b, Table::Goods, &theirs, &[own]);
}

fn truncate(w: &mut World) {
    let all = w.several(3);
    for worker in &all {
        for _ in 0..w.rng.usize(0..3) {
            let n = w.fresh();
            w.insert(*worker, (Table::Sheets, n));
        }
    }
    let b = all[0];
    w.sql(b, "TRUNCATE public.sheets");
    let by = w.who(b);
    w.touch(Some(&by), Table::Sheets, "truncate", 1);
    // Of each test, the row that it made first.
    let mut rows: Vec<(usize, RowOf, Who)> = w
        .rows
        .iter()
        .filter(|(row, _)| row.0 == Table::Sheets)
        .map(|(row, (made, who))| (*made, *row, who.clone()))
        .collect();
    rows.sort();
    let mut told = Vec::new();
    for (_, row, who) in rows {
        if who.worker != b && !told.contains(&who) {
            told.push(who.clone());
            w.expect(Pattern::Broad, row, (who, "insert"), (by.clone(), "truncate"));
        }
        w.is_gone(row);
    }
}
