//! Leases against a model: whatever is done to random pools, by two processes with one store,
//! whatever dies and whatever fails, they are as the rules say after every step, in memory and
//! in the store, and whoever asked has heard what the rules say.
//!
//! ```text
//! cargo test --test leases                          as CI does
//! ISOLANE_SEED=$RANDOM PROPTEST_CASES=2000 cargo test --test leases      others, for a while longer
//! ```
#![allow(missing_docs, reason = "it has no readers in code")]

#[allow(dead_code, unused_imports, reason = "the laboratory serves the other tests first")]
#[path = "../it/lab/mod.rs"]
mod lab;
mod model;
mod step;
mod store;
mod trouble;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use step::Step;
use world::World;

/// How many stories, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 120;
/// The same on a server, where each has a database of its own.
const CASES_ON_A_SERVER: u32 = 8;
/// What they are made from, unless `ISOLANE_SEED` says otherwise: all that can happen happens in
/// them, and who changes something and sees a failure has made it.
const SEED: u64 = 6;

/// Plays so many random stories against a store that `make` makes.
fn play(usual: u32, make: &dyn Fn() -> World) {
    let read = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = read("PROPTEST_CASES").and_then(|n| u32::try_from(n).ok()).unwrap_or(usual);
    let seed = read("ISOLANE_SEED");
    let counts = tell(cases, seed.unwrap_or(SEED), make);
    if seed.is_some() {
        return;
    }
    // What never happened was not tested.
    for word in Step::OUTCOMES {
        let n = counts.get(word).copied().unwrap_or(0);
        assert!(cases < CASES || n > 0, "nothing was ever {word}: {counts:?}");
    }
}

/// Plays stories made from `seed`; how often what happened.
fn tell(cases: u32, seed: u64, make: &dyn Fn() -> World) -> BTreeMap<&'static str, usize> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 3000,
        max_shrink_time: 15_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (mut counts, told) = (BTreeMap::new(), RefCell::new(Vec::new()));
    let outcome = runner.run(&step::story(), |steps| {
        let mut world = make();
        for step in &steps {
            world.take(step).map_err(|why| TestCaseError::fail(format!("at {step:?}: {why}")))?;
        }
        told.borrow_mut().extend(world.told());
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("with ISOLANE_SEED={seed}: {error}");
    }
    for word in told.into_inner() {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

#[test]
fn after_every_step_leases_in_a_ledger_are_as_the_rules_say() {
    play(CASES, &World::on_a_ledger);
}

#[test]
fn after_every_step_leases_on_a_server_are_as_the_rules_say() {
    let server = lab::Server::own();
    play(CASES_ON_A_SERVER, &|| World::on_a_server(&server.database("")));
}
