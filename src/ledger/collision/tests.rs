//! Schedules in which something was found that was not there, or not found that was.

use super::*;
use crate::clock::Timestamp;
use crate::ledger::run::NewRun;
use crate::ledger::{self, test, worker};
use crate::name::{Lane, RunId};
use crate::touch::{Fate, Ground, Seen, Statement, Writer};

/// Three workers, each in a test of its name from 0 to 1000.
fn begun() -> (Connection, RunKey) {
    let db = ledger::in_memory().expect("a ledger");
    let run = ledger::run::begin(&db, &NewRun::unknown(RunId::new(0), Timestamp(0))).expect("a run");
    for (number, name) in (0..).zip(["gw0", "gw1", "gw2"]) {
        worker::begin(&db, run, name, Lane(number), None, Timestamp(0)).expect("a worker");
        test::begin(&db, run, number.into(), name, &format!("test of {name}"), 1, Timestamp(0)).expect("a test");
    }
    (db, run)
}

fn statement(lane: u32, op: Op, at: i64, keys: &[&str]) -> Statement {
    let keys = keys.iter().map(|&key| key.to_owned()).collect();
    let (writer, kind) = (Writer::Lane(Lane(lane)), "public.t".into());
    let pid = i32::try_from(lane).expect("small");
    Statement { writer, ground: Ground::Shared, kind, op, keys, was: Vec::new(), at, pid }
}

fn enter(db: &Connection, run: RunKey, statements: Vec<Statement>) {
    touches::enter(db, run, &Seen { statements, uncertainty: 10 }, false).expect("entered");
}

fn end(db: &Connection, run: RunKey, number: i64, outcome: &str, at: u64) {
    test::end(db, run, number, Some(outcome), None, Timestamp(at)).expect("a test");
}

/// Pattern, key, and the tests of the two.
fn found(db: &Connection, run: RunKey) -> Vec<String> {
    settle(db, run).expect("settled");
    let sql = "SELECT concat_ws(' ', pattern, key, test_a, test_b) FROM collisions ORDER BY 1";
    let mut rows = db.prepare(sql).expect("SQL");
    rows.query_map([], |row| row.get(0)).expect("rows").collect::<Result<_>>().expect("rows")
}

#[test]
fn a_row_made_again_is_another_row() {
    let (db, run) = begun();
    let all = [(1, Op::Insert), (1, Op::Delete), (0, Op::Insert), (1, Op::Update)];
    enter(&db, run, (1..).zip(all).map(|(at, (lane, op))| statement(lane, op, at, &["5"])).collect());
    // It was no row of its own that the statement went over.
    assert_eq!(found(&db, run), ["clobber 5 test of gw0 test of gw1"]);
}

#[test]
fn a_test_that_runs_into_its_own_row_has_met_nobody_who_had_the_key_before() {
    let (db, run) = begun();
    let all = [(0, Op::Insert), (0, Op::Delete), (1, Op::Insert)];
    enter(&db, run, (1..).zip(all).map(|(at, (lane, op))| statement(lane, op, at, &["5"])).collect());
    let row = Some(("public.t".to_owned(), "5".to_owned()));
    name(&db, run, 1, &Named { pattern: Pattern::DuplicateKey, row, pid: None }, 10).expect("named");
    assert_eq!(found(&db, run), no_one());
}

#[test]
fn a_row_that_gets_the_key_of_another_has_not_lived_its_life() {
    let (db, run) = begun();
    let renamed = Statement { was: vec!["6".to_owned()], ..statement(1, Op::Update, 5, &["5"]) };
    let all = vec![
        statement(0, Op::Insert, 1, &["5"]),
        statement(1, Op::Insert, 2, &["6"]),
        statement(0, Op::Update, 3, &["5"]),
        statement(0, Op::Delete, 4, &["5"]),
        renamed,
        statement(1, Op::Update, 6, &["5"]),
    ];
    enter(&db, run, all);
    assert_eq!(found(&db, run), no_one());
    enter(&db, run, vec![statement(0, Op::Update, 7, &["5"])]);
    assert_eq!(found(&db, run), ["clobber 5 test of gw1 test of gw0"]);
}

#[test]
fn a_test_that_is_told_of_late_has_its_touches_all_the_same() {
    let (db, run) = begun();
    enter(&db, run, vec![statement(0, Op::Insert, 400, &["5"]), statement(1, Op::Update, 600, &["5"])]);
    end(&db, run, 0, "passed", 300);
    test::begin(&db, run, 3, "gw0", "the next", 1, Timestamp(350)).expect("a test");
    end(&db, run, 3, "passed", 500);
    assert_eq!(found(&db, run), ["pollution 5 the next test of gw1"]);
}

#[test]
fn a_statement_that_comes_in_parts_is_one() {
    let (db, run) = begun();
    enter(&db, run, vec![statement(0, Op::Insert, 1, &["5"]), statement(2, Op::Insert, 2, &["6"])]);
    enter(&db, run, vec![statement(1, Op::Update, 3, &["5"])]);
    enter(&db, run, vec![statement(1, Op::Update, 3, &["6"])]);
    assert_eq!(found(&db, run), ["broad 5 test of gw0 test of gw1", "broad 6 test of gw2 test of gw1"]);
}

#[test]
fn what_the_survivor_of_a_deadlock_wrote_after_the_other_test_has_nothing_to_do_with_it() {
    let (db, run) = begun();
    enter(&db, run, vec![statement(0, Op::Update, 80, &["5"]), statement(0, Op::Insert, 105, &["6"])]);
    end(&db, run, 1, "failed", 100);
    name(&db, run, 1, &Named { pattern: Pattern::Deadlock, row: None, pid: Some(0) }, 100).expect("named");
    assert_eq!(found(&db, run), ["deadlock 5 test of gw0 test of gw1"]);
}

#[test]
fn rows_made_outside_of_the_lane_are_removed_in_the_ledger_as_well() {
    let (db, run) = begun();
    let outside = Statement { ground: Ground::Outside, ..statement(0, Op::Insert, 1, &["5", "6"]) };
    enter(&db, run, vec![outside]);
    let fate = Fate { kind: "public.t".to_owned(), key: "6".to_owned(), stays: false, why: "held".to_owned() };
    touches::removed(&db, run, &[fate], true).expect("noted");
    let states: String =
        db.query_row("SELECT group_concat(key || state) FROM records", [], |row| row.get(0)).expect("rows");
    assert_eq!(states, "5removed,6stuck");
}

fn no_one() -> Vec<String> {
    Vec::new()
}
