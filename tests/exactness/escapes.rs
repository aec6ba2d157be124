//! Lanes with schemas of their own, and writes outside of them.

use isolane::collision::Pattern;

use crate::plan::Step;
use crate::world::{Pair, Table, Who, World, name};

/// Work within lanes, and now and then beyond.
pub fn play(w: &mut World) {
    let (a, b) = w.two();
    match w.rng.u8(..8) {
        0..5 => {
            // The same key, in each lane.
            let n = w.fresh();
            for worker in [a, b] {
                in_lane(w, worker, n);
            }
        }
        5 | 6 => outside(w, a),
        _ => neighbour(w, a, b),
    }
}

fn in_lane(w: &mut World, worker: usize, n: i64) {
    let who = w.who(worker);
    w.sql(worker, format!("INSERT INTO goods VALUES ({n}, 0); UPDATE goods SET v = 1 WHERE id = {n}"));
    w.touch(Some(&who), Table::Goods, "insert", 1);
    w.touch(Some(&who), Table::Goods, "update", 1);
    if w.rng.bool() {
        w.sql(worker, format!("DELETE FROM goods WHERE id = {n}"));
        w.touch(Some(&who), Table::Goods, "delete", 1);
        record(w, &who, "gone");
    } else {
        record(w, &who, "removed");
        leak(w, &who);
    }
}

fn record(w: &mut World, who: &Who, state: &str) {
    let record = [name(who.worker), who.test.clone(), Table::Goods.name().to_owned(), state.to_owned()];
    *w.truth.records.entry(record).or_default() += 1;
}

fn leak(w: &mut World, who: &Who) {
    let leak = [name(who.worker), who.test.clone(), Table::Goods.name().to_owned()];
    *w.truth.leaks.entry(leak).or_default() += 1;
}

/// Into the user's own schema; of each test the first such write is told.
fn outside(w: &mut World, a: usize) {
    let who = w.who(a);
    let (n, op, sql) = if w.rng.bool() {
        let n = w.fresh();
        record(w, &who, "removed");
        leak(w, &who);
        (n, "insert", Table::Goods.insert(n))
    } else if let Some((_, n)) = w.old() {
        (n, "update", Table::Goods.update(n))
    } else {
        return;
    };
    w.sql(a, sql);
    w.touch(Some(&who), Table::Goods, op, 1);
    let is_told = w.met.iter().any(|pair| pair.a.is_none() && pair.b.0 == who);
    if !is_told {
        w.met.push(Pair { pattern: Pattern::Escape, row: (Table::Goods, n), a: None, b: (who, op) });
    }
}

/// Into the schema of another lane, which lets everybody in.
fn neighbour(w: &mut World, a: usize, b: usize) {
    let (host, who) = (w.who(b), w.who(a));
    let n = w.fresh();
    w.sql(a, format!("INSERT INTO {{schema{b}}}.goods VALUES ({n}, 0)"));
    w.touch(Some(&who), Table::Goods, "insert", 1);
    record(w, &who, "removed");
    leak(w, &who);
    let is_told = |pair: &Pair| pair.a.as_ref().is_some_and(|(other, _)| other.worker == b) && pair.b.0 == who;
    if !w.met.iter().any(is_told) {
        w.expect(Pattern::Escape, (Table::Goods, n), (host, "insert"), (who, "insert"));
    }
}

/// What a lane does first.
pub fn open_doors(worker: usize) -> Step {
    Step::Sql { worker, sql: "GRANT USAGE ON SCHEMA {schema} TO PUBLIC; GRANT ALL ON goods TO PUBLIC".to_owned() }
}
