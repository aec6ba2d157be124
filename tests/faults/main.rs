//! Nothing is left behind, whatever dies, at whichever step.
//!
//! `matrix` lets every fault point of isolane be struck by every fault in every isolation;
//! `random` lets runs die at random moments. Both print what they found.
//!
//! ```text
//! tests/run --test faults                                      both, as CI does
//! tests/run --test faults -- random --rounds 1000 --seed 7     more rounds, or the same again
//! tests/run --test faults -- random --rounds 100 --on database --workers 8
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "it prints tables and has no readers in code")]

mod matrix;
mod random;
mod scene;

#[allow(dead_code, unused_imports, reason = "the laboratory serves the other tests first")]
#[path = "../it/lab/mod.rs"]
mod lab;

use std::time::Instant;

use scene::Kind;

/// What was asked for.
struct Wishes {
    /// Words that the name of a test must have.
    words: Vec<String>,
    rounds: usize,
    seed: u64,
    on: Option<Kind>,
    workers: Option<u32>,
}

impl Wishes {
    fn read() -> Self {
        let mut wishes = Self { words: Vec::new(), rounds: 200, seed: fastrand::u64(..), on: None, workers: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} takes a value"));
            match word.as_str() {
                "--rounds" => wishes.rounds = value().parse().expect("--rounds takes a number"),
                "--seed" => wishes.seed = value().parse().expect("--seed takes a number"),
                "--workers" => wishes.workers = Some(value().parse().expect("--workers takes a number")),
                "--on" => {
                    wishes.on =
                        Some(Kind::parse(&value()).expect("--on takes sqlite, database, schema, shared or server"));
                }
                // Options of Rust's own test programs mean nothing here.
                option if option.starts_with('-') => {}
                _ => wishes.words.push(word),
            }
        }
        wishes
    }

    fn wants(&self, test: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| test.contains(word.as_str()))
    }
}

/// A test; what comes back are its failures.
type Test = fn(&Wishes) -> Vec<String>;

fn main() {
    let wishes = Wishes::read();
    let began = Instant::now();
    let tests: [(&str, Test); 2] = [("matrix", matrix::run), ("random", random::run)];
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        if !wishes.wants(name) {
            continue;
        }
        let failures = test(&wishes);
        for failure in &failures {
            println!("{failure}\n");
        }
        let outcome = if failures.is_empty() { "ok" } else { "FAILED" };
        println!("test faults::{name} ... {outcome}");
        *(if failures.is_empty() { &mut passed } else { &mut failed }) += 1;
    }
    // As Rust's own test programs say it, so that all are counted alike.
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {outcome}. {passed} passed; {failed} failed; finished in {:.2}s\n",
        began.elapsed().as_secs_f64()
    );
    std::process::exit(i32::from(failed > 0));
}
