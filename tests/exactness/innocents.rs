//! What looks like a collision and is none.

use crate::plan::Step;
use crate::world::{Table, World};

type Scene = fn(&mut World);

/// All of them.
pub const INNOCENTS: [Scene; 20] = [
    same_values,
    same_worker,
    one_worker_after_another_test,
    rolled_back,
    rolled_back_to_a_savepoint,
    rolled_back_key,
    made_again,
    made_again_by_many,
    strangers_change,
    strangers_make,
    own_fixture,
    module_fixture,
    old_row_of_one,
    own_duplicate,
    own_duplicate_made_again,
    duplicate_of_an_old_row,
    no_rows,
    keys_change_places,
    renamed_to_a_used_key,
    old_row_under_a_used_key,
];

/// Plays one of them.
pub fn play(w: &mut World) {
    let scene = INNOCENTS[w.rng.usize(..INNOCENTS.len())];
    w.innocents += 1;
    scene(w);
}

/// A test's own work: it makes rows, changes them, and removes some.
pub fn work(w: &mut World) {
    let worker = w.rng.usize(..w.workers.len());
    w.within(worker);
    let row = (w.plain(), w.fresh());
    w.insert(worker, row);
    if w.rng.bool() {
        w.update(worker, row);
    }
    if w.rng.u8(..3) > 0 {
        w.delete(worker, row);
    }
}

fn same_values(w: &mut World) {
    let (a, b) = w.two();
    let table = w.plain();
    for worker in [a, b, a] {
        let n = w.fresh();
        w.insert(worker, (table, n));
        w.update(worker, (table, n));
    }
}

fn same_worker(w: &mut World) {
    let (a, _) = w.two();
    let row = (w.plain(), w.fresh());
    w.insert(a, row);
    let test = w.within(a);
    w.after(test, move |w| {
        w.within(a);
        w.update(a, row);
        if w.rng.bool() {
            w.delete(a, row);
        }
    });
}

/// At the edge of two tests of one worker: each has its own row.
fn one_worker_after_another_test(w: &mut World) {
    let (a, _) = w.two();
    let table = w.plain();
    for _ in 0..4 {
        w.within(a);
        let n = w.fresh();
        w.insert(a, (table, n));
        if !w.end(a) {
            return;
        }
    }
}

fn rolled_back(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.insert(a, row);
    let what = if w.rng.bool() { row.0.update(row.1) } else { row.0.delete(row.1) };
    w.sql(b, format!("BEGIN; {what}; ROLLBACK"));
}

fn rolled_back_to_a_savepoint(w: &mut World) {
    let (a, b) = w.two();
    let (row, own) = ((w.plain(), w.fresh()), (w.plain(), w.fresh()));
    w.insert(a, row);
    let who = w.who(b);
    let (delete, insert) = (row.0.delete(row.1), own.0.insert(own.1));
    w.sql(b, format!("BEGIN; SAVEPOINT s; {delete}; ROLLBACK TO s; {insert}; COMMIT"));
    w.has_made(&who, own);
}

fn rolled_back_key(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.sql(b, format!("BEGIN; {}; ROLLBACK", row.0.insert(row.1)));
    w.insert(a, row);
    w.update(a, row);
}

fn made_again(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.insert(a, row);
    w.delete(a, row);
    w.insert(b, row);
    w.update(b, row);
    w.delete(b, row);
}

fn made_again_by_many(w: &mut World) {
    let row = (w.plain(), w.fresh());
    for worker in w.several(8) {
        w.insert(worker, row);
        w.update(worker, row);
        w.delete(worker, row);
    }
}

fn strangers_change(w: &mut World) {
    let (a, _) = w.two();
    let row = (w.plain(), w.fresh());
    w.insert(a, row);
    w.stranger(row.0.update(row.1));
    w.touch(None, row.0, "update", 1);
    w.update(a, row);
}

fn strangers_make(w: &mut World) {
    let (a, b) = w.two();
    let row = (w.plain(), w.fresh());
    w.stranger(row.0.insert(row.1));
    w.touch(None, row.0, "insert", 1);
    w.update(a, row);
    w.stranger(row.0.delete(row.1));
    w.touch(None, row.0, "delete", 1);
    w.insert(b, row);
    w.update(b, row);
}

fn own_fixture(w: &mut World) {
    let (a, _) = w.two();
    let fixture = w.workers[a].fixture.clone();
    let row = w.rows.iter().find_map(|(row, (_, who))| (who.test == fixture && who.worker == a).then_some(*row));
    if let Some(row) = row.filter(|_| !w.workers[a].is_met) {
        w.update(a, row);
    }
}

/// It is made in one test and goes after another.
fn module_fixture(w: &mut World) {
    let (a, b) = w.two();
    let key = 1000 + w.next_fixture;
    w.next_fixture += 1;
    let name = format!("module fixture {key}");
    let phase = move |w: &mut World, phase: &str| {
        let (name, phase) = (name.clone(), phase.to_owned());
        w.workers[a].at_work = matches!(&*phase, "begin" | "leaving").then(|| name.clone());
        w.steps.push(Step::Fixture { worker: a, key, name, scope: "module".to_owned(), phase });
    };
    let row = (w.plain(), w.fresh());
    phase(w, "begin");
    w.insert(a, row);
    phase(w, "ready");
    // The test, and another one at the same time, have rows of their own.
    for worker in [a, b] {
        let n = w.fresh();
        w.insert(worker, (row.0, n));
    }
    w.update(a, row);
    let test = w.within(a);
    w.after(test, move |w| {
        w.within(a);
        w.update(a, row);
        phase(w, "leaving");
        w.delete(a, row);
        phase(w, "end");
        let n = w.fresh();
        w.insert(a, (row.0, n));
    });
}

fn old_row_of_one(w: &mut World) {
    let (a, _) = w.two();
    let Some(row) = w.old() else { return };
    w.update(a, row);
    w.update(a, row);
    let test = w.within(a);
    w.after(test, move |w| {
        w.within(a);
        w.update(a, row);
    });
}

/// A test fails over a key that it had written itself.
fn own_duplicate(w: &mut World) {
    let (a, _) = w.two();
    if !w.may_fail(a) {
        return;
    }
    let row = (w.plain(), w.fresh());
    w.insert(a, row);
    w.refused(a, row.0.insert(row.1));
}

/// The same, and another one had a row of that key before.
fn own_duplicate_made_again(w: &mut World) {
    let (a, b) = w.two();
    if !w.may_fail(a) {
        return;
    }
    let row = (w.plain(), w.fresh());
    w.insert(b, row);
    w.delete(b, row);
    w.insert(a, row);
    w.refused(a, row.0.insert(row.1));
}

fn duplicate_of_an_old_row(w: &mut World) {
    let (a, _) = w.two();
    if let Some(row) = w.old()
        && w.may_fail(a)
    {
        w.refused(a, row.0.insert(row.1));
    }
}

/// Statements that look at rows of others and write none.
fn no_rows(w: &mut World) {
    let (a, b) = w.two();
    let row = (Table::Goods, w.fresh());
    w.insert(a, row);
    let n = row.1;
    w.sql(b, format!("SELECT FROM public.goods WHERE id = {n} FOR UPDATE"));
    w.sql(b, format!("UPDATE public.goods SET v = v WHERE id = {n} AND v = -1"));
    w.sql(b, format!("DELETE FROM public.goods WHERE id = {n} AND v = -1"));
    w.sql(b, format!("{} ON CONFLICT DO NOTHING", row.0.insert(n)));
}

fn keys_change_places(w: &mut World) {
    let (a, b) = w.two();
    let (one, two, other) = (w.fresh(), w.fresh(), w.fresh());
    for n in [one, two] {
        w.insert(a, (Table::Goods, n));
    }
    w.insert(b, (Table::Goods, other));
    // By way of a third, because keys are looked at row by row.
    let free = w.fresh();
    for (was, is) in [(one, free), (two, one), (free, two)] {
        w.rename(a, (Table::Goods, was), is);
    }
    w.update(a, (Table::Goods, one));
    w.update(b, (Table::Goods, other));
}

/// A row gets the key that another worker's row had, which lived at the same time and is gone.
fn renamed_to_a_used_key(w: &mut World) {
    let (a, b) = w.two();
    let table = w.plain();
    let (used, own) = (w.fresh(), w.fresh());
    w.insert(a, (table, used));
    w.insert(b, (table, own));
    w.update(a, (table, used));
    w.delete(a, (table, used));
    w.rename(b, (table, own), used);
    w.update(b, (table, used));
}

/// A row that was there before the run has such a key for a while.
fn old_row_under_a_used_key(w: &mut World) {
    let (a, b) = w.two();
    let Some(row) = w.old() else { return };
    let used = (row.0, w.fresh());
    w.insert(a, used);
    w.delete(a, used);
    w.rename(b, row, used.1);
    w.update(b, used);
    w.rename(b, used, row.1);
}
