//! Histories of real processes: runs side by side on one ledger, and services with those who lease
//! there, whose workers take and give back. They are killed, and so are runs, services and the
//! server that keeps the leases. Afterwards the workers' own notes and the store must prove that
//! nobody ever had what another had, and that nothing was lost that was answered.
//!
//! ```text
//! cargo test --test lease_history                       as CI does
//! ISOLANE_SEED=7 cargo test --test lease_history        the same choices again
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "it prints its seed and has no readers in code")]

#[allow(dead_code, unused_imports, reason = "the laboratory serves the other tests first")]
#[path = "../it/lab/mod.rs"]
mod lab;
mod clock;
mod history;
mod proof;
mod service;
mod stores;

use std::time::{Duration, Instant};

use lab::program::wait_until;
use nix::sys::signal::Signal;

use history::History;
use stores::Store;

/// How long a history goes on.
const LENGTH: Duration = Duration::from_secs(15);
/// How many runs there are at once, and workers in each.
const RUNS: usize = 3;
const WORKERS: usize = 3;

const POOLS: &str = "[pool.line]
items = [{id=1},{id=2}]
[pool.acct]
items = [{id=1,tier='gold'},{id=2,tier='iron'},{id=3,tier='iron'}]
[pool.one]
items = [{id=1}]
ttl = '2s'
";

#[test]
fn nobody_ever_has_what_another_has_whoever_is_killed() {
    let mut history = History::begin();
    history.lab.file("isolane.toml", POOLS);
    let began = Instant::now();
    let (mut round, mut killed) = (0, 0);
    while began.elapsed() < LENGTH || killed == 0 {
        round += 1;
        let stamp = |run: usize| format!("{}-{round}-{run}", history.seed);
        let start = |run| {
            let options = format!("-n {WORKERS} --quiet");
            history.lab.wrap(&options, &format!("python3 worker.py {}", stamp(run))).start()
        };
        let runs: Vec<_> = (0..RUNS).map(start).collect();
        for (at, run) in runs.into_iter().enumerate() {
            // The last one of some rounds is killed while its workers are at it.
            if at == RUNS - 1 && history.random.u8(..) < 160 {
                let stamp = format!("{}-{round}-{at}", history.seed);
                wait_until("its workers hold something", || history.notes(&stamp).len() > 5);
                run.signal(Signal::SIGKILL);
                killed += 1;
                drop(run);
            } else {
                run.finish();
            }
        }
    }
    let proved = history.prove(&Store::Ledger(history.lab.ledger_path()));
    let states = history.lab.column("SELECT DISTINCT state FROM leases");
    for state in ["released", "expired", "lost"] {
        assert!(states.iter().any(|it| it == state), "seed {}: no lease was {state}", history.seed);
    }
    println!("{round} rounds, {killed} runs killed: {proved}");
}
