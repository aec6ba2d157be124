//! What isolane finds is what happened: random schedules with known collisions, and with what
//! looks like one and is none, played by real sessions on a real server.
//!
//! ```text
//! tests/run --test exactness                          100 seeds, as CI does
//! tests/run --test exactness -- --seeds 5 --seed 7    the seeds 7 to 11
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "it prints tables and has no readers in code")]

mod drive;
mod errors;
mod escapes;
mod innocents;
mod judge;
mod make;
mod plan;
mod scenes;
mod table;
mod world;

#[allow(dead_code, unused_imports, reason = "the laboratory serves the other tests first")]
#[path = "../it/lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use isolane::collision::Pattern;

use judge::Verdict;
use plan::Plan;

/// How many runs there are at once.
const AT_ONCE: usize = 3;
/// One seed in so many has a second run, of lanes with schemas of their own.
const WITH_SCHEMAS: u64 = 8;

/// What was asked for.
struct Wishes {
    seeds: u64,
    seed: u64,
    tests: usize,
    is_wanted: bool,
}

impl Wishes {
    fn read() -> Self {
        let mut wishes = Self { seeds: 100, seed: 0, tests: 1000, is_wanted: true };
        let mut names = Vec::new();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value =
                || words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word} takes a number"));
            match word.as_str() {
                "--seeds" => wishes.seeds = value(),
                "--seed" => wishes.seed = value(),
                "--tests" => wishes.tests = usize::try_from(value()).expect("not so many"),
                // Options of Rust's own test programs mean nothing here.
                option if option.starts_with('-') => {}
                _ => names.push(word),
            }
        }
        wishes.is_wanted = names.is_empty() || names.iter().any(|name| "exactness".contains(name.as_str()));
        wishes
    }
}

/// What all plans came to.
#[derive(Default)]
struct Sum {
    /// By pattern: planned, found, missing, too many.
    patterns: BTreeMap<&'static str, [usize; 4]>,
    runs: usize,
    tests: usize,
    touches: usize,
    innocents: usize,
    failures: Vec<String>,
}

impl Sum {
    fn add(&mut self, plan: &Plan, verdict: &Verdict) {
        for pattern in Pattern::ALL {
            let word = pattern.as_str();
            let cell = self.patterns.entry(word).or_default();
            cell[0] += plan.planned.get(&pattern).copied().unwrap_or(0);
            for (sum, n) in cell[1..].iter_mut().zip(verdict.found.get(word).copied().unwrap_or_default()) {
                *sum += n;
            }
        }
        self.runs += 1;
        self.tests += plan.truth.tests;
        self.touches += verdict.touches;
        self.innocents += plan.innocents;
        if !verdict.wrong.is_empty() {
            let Plan { seed, setting, workers, .. } = plan;
            self.failures
                .push(format!("seed {seed}, {workers} workers, {setting:?}:\n  {}", verdict.wrong.join("\n  ")));
        }
    }

    fn print(&self, wishes: &Wishes, seconds: f64) {
        let Wishes { seed, seeds, .. } = wishes;
        println!(
            "\nseeds {seed} to {}: {} runs, {} tests, {} touches, {} scenes that only look alike, {seconds:.0} s\n",
            seed + seeds - 1,
            self.runs,
            self.tests,
            self.touches,
            self.innocents
        );
        println!("{:<15}{:>10}{:>10}{:>10}{:>10}", "pattern", "planned", "found", "missing", "too many");
        for (pattern, [planned, found, missing, more]) in &self.patterns {
            println!("{pattern:<15}{planned:>10}{found:>10}{missing:>10}{more:>10}");
        }
        println!();
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("drive") {
        return drive::run(&words.next().expect("a script"));
    }
    let (wishes, began) = (Wishes::read(), Instant::now());
    let mut sum = Sum::default();
    if wishes.is_wanted {
        sum = run(&wishes);
        sum.print(&wishes, began.elapsed().as_secs_f64());
        for failure in &sum.failures {
            println!("{failure}\n");
        }
    }
    let is_good = sum.failures.is_empty();
    let (passed, failed) = (usize::from(wishes.is_wanted && is_good), usize::from(!is_good));
    let outcome = if is_good { "ok" } else { "FAILED" };
    if wishes.is_wanted {
        println!("test exactness ... {outcome}");
    }
    // As Rust's own test programs say it, so that all are counted alike.
    println!(
        "\ntest result: {outcome}. {passed} passed; {failed} failed; finished in {:.2}s\n",
        began.elapsed().as_secs_f64()
    );
    std::process::exit(i32::from(!is_good));
}

fn run(wishes: &Wishes) -> Sum {
    let server = lab::Server::own();
    server.sql("postgres", "GRANT SET ON PARAMETER deadlock_timeout TO PUBLIC");
    let seeds = wishes.seed..wishes.seed + wishes.seeds;
    let plans = seeds.flat_map(|seed| {
        let schemas = seed.is_multiple_of(WITH_SCHEMAS).then(|| make::schemas(seed, wishes.tests / 10));
        std::iter::once(make::shared(seed, wishes.tests)).chain(schemas)
    });
    let (plans, sum) = (Mutex::new(plans), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = plans.lock().expect("no panic inside").next();
                    let Some(plan) = next else { break };
                    let verdict = judge::judge(&server, &plan);
                    sum.lock().expect("no panic inside").add(&plan, &verdict);
                }
            });
        }
    });
    sum.into_inner().expect("no panic inside")
}
