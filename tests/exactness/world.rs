//! The world of a plan while it is being made: who is in which test, which rows there are and
//! who made them. It knows nothing of isolane's rules.

use std::collections::BTreeMap;

use fastrand::Rng;
use isolane::collision::Pattern;

use crate::plan::{Met, Plan, Setting, Step, Truth};
pub use crate::table::Table;

/// How many goods, tags and codes each there are before the run.
pub const BEFORE: i64 = 400;

pub type RowOf = (Table, i64);
type Later = Box<dyn FnOnce(&mut World)>;

pub struct Worker {
    /// Its open test: a number of `tests`.
    pub open: Option<usize>,
    /// A fixture that lives, and is at work.
    pub at_work: Option<String>,
    pub fixture: String,
    /// Whether somebody else has met a row of that.
    pub is_met: bool,
    /// Whether its second session is in a transaction.
    pub is_aside: bool,
}

pub struct Test {
    pub id: String,
    pub worker: usize,
    pub failed: bool,
    /// Whether it has got an error already, of which there is one for a test.
    pub refused: bool,
    /// It must not end before these are done.
    pub pins: usize,
    pub over: bool,
}

/// Somebody at a moment: worker and test or fixture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub worker: usize,
    pub test: String,
}

/// A pair whose failed test is known when all tests are.
pub struct Pair {
    pub pattern: Pattern,
    pub row: RowOf,
    pub a: Option<(Who, &'static str)>,
    pub b: (Who, &'static str),
}

pub struct World {
    pub rng: Rng,
    pub workers: Vec<Worker>,
    pub tests: Vec<Test>,
    pub steps: Vec<Step>,
    /// Rows that workers made, in the order of making, and by whom.
    pub rows: BTreeMap<RowOf, (usize, Who)>,
    pub made: usize,
    next: i64,
    before: i64,
    pub met: Vec<Pair>,
    /// What is done at some time, while a test runs still.
    pub soon: Vec<(usize, Later)>,
    /// What is done when a test is over.
    pub later: Vec<(usize, Later)>,
    pub truth: Truth,
    pub innocents: usize,
    pub strangers: Vec<RowOf>,
    pub next_fixture: u64,
}

impl World {
    pub fn new(mut rng: Rng, workers: usize) -> Self {
        let next = rng.i64(100_000..900_000);
        let worker = |n: usize| Worker {
            open: None,
            at_work: None,
            fixture: format!("session fixture of gw{n}"),
            is_met: false,
            is_aside: false,
        };
        Self {
            rng,
            workers: (0..workers).map(worker).collect(),
            tests: Vec::new(),
            steps: Vec::new(),
            rows: BTreeMap::new(),
            made: 0,
            next,
            before: 0,
            met: Vec::new(),
            soon: Vec::new(),
            later: Vec::new(),
            truth: Truth::default(),
            innocents: 0,
            strangers: Vec::new(),
            next_fixture: 0,
        }
    }

    /// A number that no row has had.
    pub fn fresh(&mut self) -> i64 {
        // Some have a digit more than others.
        self.next += self.rng.i64(1..20);
        self.next
    }

    /// A row that was there before the run and that nobody was given yet.
    pub fn old(&mut self) -> Option<RowOf> {
        self.before += 1;
        let table = self.plain();
        (self.before <= BEFORE).then_some((table, self.before))
    }

    pub fn plain(&mut self) -> Table {
        Table::PLAIN[self.rng.usize(..3)]
    }

    /// Who this worker is now: in which test or fixture.
    pub fn who(&self, worker: usize) -> Who {
        let it = &self.workers[worker];
        let test = it.at_work.clone().or_else(|| it.open.map(|test| self.tests[test].id.clone()));
        Who { worker, test: test.expect("it is in a test") }
    }

    /// The number of the test that this worker is in; it begins one if need be.
    pub fn within(&mut self, worker: usize) -> usize {
        if let Some(test) = self.workers[worker].open {
            return test;
        }
        let test = self.tests.len();
        let id = format!("tests/test_{}.py::test_{test}", test % 7);
        let failed = self.rng.u8(..20) == 0;
        self.tests.push(Test { id: id.clone(), worker, failed, refused: false, pins: 0, over: false });
        self.workers[worker].open = Some(test);
        self.steps.push(Step::Begin { worker, test: id });
        test
    }

    /// Ends the test of a worker, unless somebody needs it still.
    pub fn end(&mut self, worker: usize) -> bool {
        let Some(test) = self.workers[worker].open else { return true };
        if self.tests[test].pins > 0 {
            return false;
        }
        let Test { id, failed, over, .. } = &mut self.tests[test];
        *over = true;
        self.steps.push(Step::End { worker, test: id.clone(), failed: *failed });
        self.workers[worker].open = None;
        true
    }

    /// Another worker, both in tests.
    pub fn two(&mut self) -> (usize, usize) {
        let all = self.several(2);
        (all[0], all[1])
    }

    /// Several workers, as far as there are so many, all in tests.
    pub fn several(&mut self, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.workers.len()).collect();
        self.rng.shuffle(&mut all);
        all.truncate(n);
        for worker in &all {
            self.within(*worker);
        }
        all
    }

    pub fn sql(&mut self, worker: usize, sql: impl Into<String>) {
        self.steps.push(Step::Sql { worker, sql: sql.into() });
    }

    pub fn stranger(&mut self, sql: impl Into<String>) {
        self.steps.push(Step::Stranger { sql: sql.into() });
    }

    /// A touch that the ledger must have.
    pub fn touch(&mut self, who: Option<&Who>, table: Table, op: &str, n: usize) {
        let (worker, test) =
            who.map_or(("NULL".to_owned(), "NULL".to_owned()), |who| (name(who.worker), who.test.clone()));
        *self.truth.touches.entry([worker, test, table.name().to_owned(), op.to_owned()]).or_default() += n;
    }

    /// Notes that a worker has made a row, now.
    pub fn has_made(&mut self, who: &Who, row: RowOf) {
        self.touch(Some(who), row.0, "insert", 1);
        self.made += 1;
        self.rows.insert(row, (self.made, who.clone()));
    }

    /// Notes that a row is gone, and enters what became of it.
    pub fn is_gone(&mut self, row: RowOf) {
        if let Some((_, who)) = self.rows.remove(&row) {
            let record = [name(who.worker), who.test, row.0.name().to_owned(), "gone".to_owned()];
            *self.truth.records.entry(record).or_default() += 1;
        }
    }

    pub fn insert(&mut self, worker: usize, row: RowOf) -> Who {
        let who = self.who(worker);
        self.sql(worker, row.0.insert(row.1));
        self.has_made(&who, row);
        who
    }

    pub fn update(&mut self, worker: usize, row: RowOf) -> Who {
        let who = self.who(worker);
        self.sql(worker, row.0.update(row.1));
        self.touch(Some(&who), row.0, "update", 1);
        who
    }

    pub fn delete(&mut self, worker: usize, row: RowOf) -> Who {
        let who = self.who(worker);
        self.sql(worker, row.0.delete(row.1));
        self.touch(Some(&who), row.0, "delete", 1);
        self.is_gone(row);
        who
    }

    /// A row gets another key.
    pub fn rename(&mut self, worker: usize, row: RowOf, n: i64) -> RowOf {
        let who = self.who(worker);
        let sql = format!("UPDATE {} SET {} WHERE {}", row.0.name(), row.0.becomes(n), row.0.is(row.1));
        self.sql(worker, sql);
        self.touch(Some(&who), row.0, "update", 1);
        if let Some(made) = self.rows.remove(&row) {
            self.rows.insert((row.0, n), made);
        }
        (row.0, n)
    }

    pub fn expect(&mut self, pattern: Pattern, row: RowOf, a: (Who, &'static str), b: (Who, &'static str)) {
        self.met.push(Pair { pattern, row, a: Some(a), b });
    }

    /// The server refuses what a worker does: its test fails, and tells why.
    pub fn refused(&mut self, worker: usize, sql: String) -> Who {
        let test = self.workers[worker].open.expect("it is in a test");
        self.steps.push(Step::Refused { worker, sql });
        self.has_failed(test)
    }

    /// A test has failed with the last error of its worker.
    pub fn has_failed(&mut self, test: usize) -> Who {
        let Test { id, worker, failed, refused, .. } = &mut self.tests[test];
        (*failed, *refused) = (true, true);
        self.steps.push(Step::Failure { worker: *worker, test: id.clone() });
        Who { worker: *worker, test: id.clone() }
    }

    /// Whether a test of this worker may still fail over an error.
    pub fn may_fail(&self, worker: usize) -> bool {
        self.workers[worker].open.is_some_and(|test| !self.tests[test].refused)
    }

    /// Whether the test of this worker must go on for somebody.
    pub fn is_needed(&self, worker: usize) -> bool {
        self.workers[worker].open.is_some_and(|test| self.tests[test].pins > 0)
    }

    /// Does something while a test runs still, at some time.
    pub fn meanwhile(&mut self, test: usize, what: impl FnOnce(&mut Self) + 'static) {
        self.tests[test].pins += 1;
        self.soon.push((test, Box::new(what)));
    }

    /// Does something that waits for nothing.
    pub fn hurry(&mut self) -> bool {
        if self.soon.is_empty() {
            return false;
        }
        let at = self.rng.usize(..self.soon.len());
        let (test, what) = self.soon.swap_remove(at);
        what(self);
        self.tests[test].pins -= 1;
        true
    }

    /// Does something when a test is over, at some time.
    pub fn after(&mut self, test: usize, what: impl FnOnce(&mut Self) + 'static) {
        self.later.push((test, Box::new(what)));
    }

    /// Does something that waited, if its time has come.
    pub fn go_on(&mut self) -> bool {
        let due: Vec<usize> = (0..self.later.len()).filter(|at| self.tests[self.later[*at].0].over).collect();
        let Some(at) = self.rng.choice(&due) else { return false };
        let (_, what) = self.later.swap_remove(*at);
        what(self);
        true
    }

    /// The whole plan.
    pub fn done(mut self, seed: u64, setting: Setting) -> Plan {
        for (row, (_, who)) in &self.rows {
            let [worker, test, kind] = [name(who.worker), who.test.clone(), row.0.name().to_owned()];
            *self.truth.leaks.entry([worker.clone(), test.clone(), kind.clone()]).or_default() += 1;
            *self.truth.records.entry([worker, test, kind, "removed".to_owned()]).or_default() += 1;
        }
        let mut planned = BTreeMap::new();
        for pair in &self.met {
            *planned.entry(pair.pattern).or_default() += 1;
            *self.truth.met.entry(self.row_of_view(pair)).or_default() += 1;
        }
        self.truth.tests = self.tests.len();
        let (workers, innocents) = (self.workers.len(), self.innocents);
        let strangers = self.strangers.iter().map(|row| row.0.delete(row.1)).collect();
        Plan { seed, workers, setting, steps: self.steps, truth: self.truth, planned, innocents, strangers }
    }

    fn row_of_view(&self, pair: &Pair) -> Met {
        let failed =
            |who: &Who| self.tests.iter().any(|test| test.id == who.test && test.failed).then(|| who.test.clone());
        let nothing = || "NULL".to_owned();
        let (a, b) = (pair.a.as_ref().and_then(|(who, _)| failed(who)), failed(&pair.b.0));
        // Who got an error is its victim; else who had the row.
        let is_error = matches!(pair.pattern, Pattern::DuplicateKey | Pattern::ForeignKey | Pattern::Deadlock);
        let victim = if is_error { b.or(a) } else { a.or(b) };
        let first = pair.a.clone().map(|(who, op)| (name(who.worker), who.test, op.to_owned()));
        let (worker_a, test_a, op_a) = first.unwrap_or_else(|| (nothing(), nothing(), nothing()));
        let (kind, key) = (pair.row.0.name().to_owned(), pair.row.0.key(pair.row.1));
        let (b, op_b) = &pair.b;
        let pattern = pair.pattern.as_str().to_owned();
        let victim = victim.unwrap_or_else(nothing);
        (pattern, kind, key, worker_a, test_a, op_a, name(b.worker), b.test.clone(), (*op_b).to_owned(), victim)
    }
}

/// What a worker is called.
pub fn name(worker: usize) -> String {
    format!("gw{worker}")
}
