//! A ledger of 1,000,000 touches, and what is asked of it.

use std::path::Path;
use std::sync::Arc;

use isolane::clock::Timestamp;
use isolane::ledger::run::{NewRun, RunState};
use isolane::ledger::{self, RunKey, finding, test, touch, worker};
use isolane::name::{Lane, RunId};
use isolane::touch::{Ground, Op, Seen, Statement, Writer};
use rusqlite::Connection;

use crate::lab::{Lab, Outcome};
use crate::{line, median, wall};

const WORKERS: i64 = 8;
const TESTS: i64 = 20_000;
/// Statements of a test, a row each.
const STATEMENTS: i64 = 50;
/// How long a test is, in microseconds.
const TEST: i64 = 10_000;
/// As many as come from a server at once.
const BATCH: usize = 256;

pub fn touches() {
    let lab = Lab::new();
    let path = lab.ledger_path();
    let mut db = ledger::open(&path).expect("a ledger");
    let key = tests(&mut db);
    let before = memory("VmHWM");
    let seconds = wall(|| enter_all(&mut db, key));
    let more = (memory("VmHWM") - before).max(0.0);
    line(
        "1,000,000 touches into the ledger",
        &format!("{:.0} a second, {more:.0} MB more", (TESTS * STATEMENTS) as f64 / seconds),
        "-",
    );
    let settle = wall(|| {
        let all = db.transaction().expect("a transaction");
        let found = finding::Findings::settle(&all, key).expect("findings");
        assert!(found.collided() > 0, "some met");
        all.commit().expect("kept");
    });
    line("what a run's end finds in them", &format!("{settle:.2} s"), "-");
    ledger::run::end(&db, key, Some(1), RunState::Failed, Timestamp::now()).expect("a row");
    drop(db);
    asked(&lab, "who orders 16", 15, "under 20 ms");
    asked(&lab, "collisions", 7, "under 1,000 ms");
    asked(&lab, "leaks", 5, "-");
    asked(&lab, "why", 5, "-");
    let lab = &lab;
    let query = || lab.isolane("query").arg("select count(*) from touches").run();
    answered("query \"select count(*) from touches\"", lab, query, 5, "-");
    going_on(&path);
    asked(lab, "collisions", 3, "-");
}

/// Makes the run one that goes on: then its collisions are found when they are asked for.
fn going_on(path: &Path) {
    let db = Connection::open(path).expect("a ledger");
    db.execute_batch("UPDATE run SET state = 'running', ended_at = NULL").expect("a change");
    line("and while the run goes on:", "", "-");
}

/// A run with its workers and tests, which follow one another.
fn tests(db: &mut Connection) -> RunKey {
    let all = db.transaction().expect("a transaction");
    let key = ledger::run::begin(&all, &NewRun::unknown(RunId::new(0), Timestamp(0))).expect("a run");
    for n in 0..WORKERS {
        let lane = Lane(u32::try_from(n).expect("few"));
        worker::begin(&all, key, &format!("gw{n}"), lane, None, Timestamp(0)).expect("a worker");
    }
    for number in 0..TESTS {
        let at = |micros: i64| Timestamp(u64::try_from(micros).expect("positive"));
        let began = number / WORKERS * TEST;
        let id = format!("tests/test_shop.py::test_order[{number}]");
        let outcome = if number % 2000 == 7 { "failed" } else { "passed" };
        test::begin(&all, key, number, &format!("gw{}", number % WORKERS), &id, 1, at(began)).expect("a test");
        test::end(&all, key, number, Some(outcome), None, at(began + TEST - 1000)).expect("a test");
    }
    all.commit().expect("kept");
    key
}

/// What the tests did: most rows are of one test, which changes and removes some of them; every
/// hundredth test changes a row of its neighbour's.
fn enter_all(db: &mut Connection, key: RunKey) {
    let kinds: Vec<Arc<str>> = ["orders", "customers", "products", "payments", "carts", "refunds", "stock", "users"]
        .iter()
        .map(|name| Arc::from(format!("public.{name}")))
        .collect();
    let mut statements = Vec::with_capacity(BATCH);
    let mut enter = |statements: &mut Vec<Statement>| {
        let seen = Seen { statements: std::mem::take(statements), uncertainty: 20 };
        let all = db.transaction().expect("a transaction");
        touch::enter(&all, key, &seen, false).expect("entered");
        all.commit().expect("kept");
    };
    for round in 0..TESTS / WORKERS {
        for n in 0..STATEMENTS {
            for worker in 0..WORKERS {
                let number = round * WORKERS + worker;
                let whose = if number % 100 == 0 && n == 40 { number + 1 } else { number };
                let (op, row) = match n {
                    0..30 => (Op::Insert, n),
                    30..42 => (Op::Update, n - 30),
                    _ => (Op::Delete, n - 30),
                };
                statements.push(Statement {
                    writer: Writer::Lane(Lane(u32::try_from(worker).expect("few"))),
                    ground: Ground::Shared,
                    kind: Arc::clone(&kinds[usize::try_from(row % 8).expect("few")]),
                    op,
                    keys: vec![format!("{{\"id\":{}}}", whose * 30 + row)],
                    was: Vec::new(),
                    at: round * TEST + n * 150 + worker,
                    pid: i32::try_from(worker).expect("few"),
                });
                if statements.len() == BATCH {
                    enter(&mut statements);
                }
            }
        }
    }
    enter(&mut statements);
}

/// Megabytes of this process.
fn memory(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(what)).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).expect("kB") / 1024.0
}

fn asked(lab: &Lab, question: &str, times: usize, goal: &str) {
    answered(question, lab, || lab.isolane(question).run(), times, goal);
}

/// The time of a question, less that of a process that asks nothing.
fn answered(what: &str, lab: &Lab, ask: impl Fn() -> Outcome, times: usize, goal: &str) {
    drop(ask().assert_code(0));
    let (mut times_asked, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..times {
        times_asked.push(wall(|| drop(ask())));
        starts.push(wall(|| drop(lab.isolane("--version").run())));
    }
    let (asked, start) = (median(times_asked) * 1e3, median(starts) * 1e3);
    line(&format!("isolane {what}"), &format!("{:.1} ms (and {start:.1} ms to start)", asked - start), goal);
}
