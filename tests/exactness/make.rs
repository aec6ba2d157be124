//! Making plans from a seed.

use fastrand::Rng;

use crate::plan::{Plan, Setting, Step};
use crate::world::{World, name};
use crate::{errors, escapes, innocents, scenes};

/// A plan in which all share the user's own tables.
pub fn shared(seed: u64, tests: usize) -> Plan {
    let mut rng = Rng::with_seed(seed);
    let late = if rng.u8(..3) == 0 { rng.u64(100..400) } else { 0 };
    let setting = Setting { schemas: false, tells_at_once: rng.bool(), late, roles: rng.u8(..3) > 0 };
    let workers = rng.usize(2..=8);
    let mut w = World::new(rng, workers);
    begin(&mut w);
    while w.tests.len() < tests {
        match w.rng.u8(..100) {
            0..70 => turn(&mut w),
            70..82 => innocents::work(&mut w),
            82..88 => drop(w.hurry()),
            88..94 => drop(w.go_on()),
            94..96 => scenes::play(&mut w),
            _ => innocents::play(&mut w),
        }
    }
    if seed % 10 == 3 {
        scenes::broad_in_parts(&mut w);
    }
    finish(w, seed, setting)
}

/// A plan in which each lane is a schema, and some write outside of theirs.
pub fn schemas(seed: u64, tests: usize) -> Plan {
    let mut rng = Rng::with_seed(seed);
    let setting = Setting { schemas: true, tells_at_once: rng.bool(), late: 0, roles: true };
    let workers = rng.usize(2..=4);
    let mut w = World::new(rng, workers);
    (0..workers).for_each(|worker| w.steps.push(escapes::open_doors(worker)));
    while w.tests.len() < tests {
        match w.rng.u8(..10) {
            0..7 => turn(&mut w),
            _ => escapes::play(&mut w),
        }
    }
    finish(w, seed, setting)
}

/// A test of somebody's ends, or the next one begins.
fn turn(w: &mut World) {
    let worker = w.rng.usize(..w.workers.len());
    if w.workers[worker].open.is_some() {
        w.end(worker);
    } else {
        w.within(worker);
    }
}

fn fixture(w: &mut World, worker: usize, name: &str, phase: &str) {
    w.workers[worker].at_work = matches!(phase, "begin" | "leaving").then(|| name.to_owned());
    let (key, scope) = (worker as u64, "session".to_owned());
    w.steps.push(Step::Fixture { worker, key, name: name.to_owned(), scope, phase: phase.to_owned() });
}

fn fixture_of(worker: usize) -> String {
    format!("session fixture of {}", name(worker))
}

/// Fixtures that live all the time make rows.
fn begin(w: &mut World) {
    for worker in 0..w.workers.len() {
        let name = fixture_of(worker);
        fixture(w, worker, &name, "begin");
        for _ in 0..3 {
            let row = (w.plain(), w.fresh());
            w.insert(worker, row);
        }
        fixture(w, worker, &name, "ready");
    }
}

fn finish(mut w: World, seed: u64, setting: Setting) -> Plan {
    loop {
        while w.hurry() {}
        if w.later.is_empty() {
            break;
        }
        for worker in 0..w.workers.len() {
            w.end(worker);
        }
        while w.go_on() {}
    }
    for worker in 0..w.workers.len() {
        w.end(worker);
        if setting.schemas {
            continue;
        }
        let name = fixture_of(worker);
        fixture(&mut w, worker, &name, "leaving");
        let own = w.rows.iter().find_map(|(row, (_, who))| (who.test == name).then_some(*row));
        if let Some(row) = own {
            w.delete(worker, row);
        }
        fixture(&mut w, worker, &name, "end");
    }
    if !setting.schemas {
        errors::failure_at_last(&mut w);
    }
    w.done(seed, setting)
}
