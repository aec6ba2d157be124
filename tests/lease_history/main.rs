//! A history of real processes: runs side by side on one ledger, whose workers take and give
//! back and are killed, and so are some of the runs. Afterwards the workers' own notes and the
//! ledger must prove that nobody ever had what another had.
//!
//! ```text
//! cargo test --test lease_history                       as CI does
//! ISOLANE_SEED=7 cargo test --test lease_history        the same choices again
//! ```
#![allow(clippy::print_stdout, missing_docs, reason = "it prints its seed and has no readers in code")]

#[allow(dead_code, unused_imports, reason = "the laboratory serves the other tests first")]
#[path = "../it/lab/mod.rs"]
mod lab;
mod proof;

use std::time::{Duration, Instant};

use lab::program::wait_until;
use lab::{Lab, no_rows};
use nix::sys::signal::Signal;

use proof::{Grant, Note};

/// How long a history goes on.
const LENGTH: Duration = Duration::from_secs(20);
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
    let seed: u64 =
        std::env::var("ISOLANE_SEED").map_or_else(|_| fastrand::u64(..), |it| it.parse().expect("a number"));
    println!("ISOLANE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::new();
    lab.file("isolane.toml", POOLS).file("worker.py", include_str!("worker.py"));
    std::fs::create_dir(lab.path("notes")).expect("a new folder");
    let began = Instant::now();
    let (mut round, mut killed) = (0, 0);
    while began.elapsed() < LENGTH || killed == 0 {
        round += 1;
        let runs: Vec<_> = (0..RUNS)
            .map(|run| {
                let name = format!("{seed}-{round}-{run}");
                lab.wrap(&format!("-n {WORKERS} --quiet"), &format!("python3 worker.py {name}")).start()
            })
            .collect();
        for (at, run) in runs.into_iter().enumerate() {
            // The last one of some rounds is killed while its workers are at it.
            if at == RUNS - 1 && random.u8(..) < 160 {
                let stamp = format!("{seed}-{round}-{at}");
                wait_until("its workers hold something", || notes(&lab, &stamp).len() > 5);
                run.signal(Signal::SIGKILL);
                killed += 1;
                drop(run);
            } else {
                run.finish();
            }
        }
    }
    wait_until("nothing is held", || lab.ledger("SELECT * FROM leases WHERE state = 'held'") == no_rows());
    wait_until("nobody waits", || lab.ledger("SELECT * FROM waiter WHERE state = 'waiting'") == no_rows());

    let grants = grants(&lab);
    let states = lab.column("SELECT DISTINCT state FROM leases");
    assert!(grants.len() > 100, "seed {seed}: a history of {} grants proves little", grants.len());
    for state in ["released", "expired", "lost"] {
        assert!(states.iter().any(|it| it == state), "seed {seed}: no lease was {state} in {} grants", grants.len());
    }
    let wrong = proof::of_ledger(&grants);
    assert!(wrong.is_empty(), "seed {seed}: by the ledger\n{}", wrong.join("\n"));
    let noted = notes(&lab, "");
    let wrong = proof::of_notes(&noted, &grants);
    assert!(wrong.is_empty(), "seed {seed}: by what the workers noted\n{}", wrong.join("\n"));
    // All ask for the same of this pool, so who came first has the smaller fence.
    let order = "SELECT lease.fence FROM waiter JOIN lease USING (lease_id)
                   WHERE waiter.state = 'granted' AND json_extract(ask, '$.want') = '[{\"pool\":\"line\",\"count\":1,\"where\":{}}]'
                   ORDER BY ticket";
    let fences: Vec<u64> = lab.column(order).iter().map(|it| it.parse().expect("a fence")).collect();
    assert!(fences.len() > 10, "seed {seed}: {} waited in line", fences.len());
    assert!(fences.is_sorted(), "seed {seed}: somebody was served before their turn: {fences:?}");
    println!(
        "{round} rounds, {killed} runs killed, {} grants, {} notes, {} in line",
        grants.len(),
        noted.len(),
        fences.len()
    );
}

/// What the ledger says of all leases, an item each.
fn grants(lab: &Lab) -> Vec<Grant> {
    let sql = "SELECT lease_id, json_extract(it.value, '$[0]'), fence, acquired, ended, state FROM lease, json_each(items) it";
    let rows = lab.ledger(sql);
    let number = |text: &String| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    let grant = |row: &Vec<String>| Grant {
        lease: row[0].clone(),
        item: number(&row[1]),
        fence: number(&row[2]),
        from: number(&row[3]),
        until: number(&row[4]),
        state: row[5].clone(),
    };
    rows.iter().map(grant).collect()
}

/// What the workers of these runs noted. A line that was cut off by a death says nothing.
fn notes(lab: &Lab, prefix: &str) -> Vec<Note> {
    let mut notes = Vec::new();
    for file in std::fs::read_dir(lab.path("notes")).expect("a folder") {
        let file = file.expect("an entry");
        if file.file_name().to_string_lossy().starts_with(prefix) {
            let text = std::fs::read_to_string(file.path()).expect("notes");
            notes.extend(text.lines().filter_map(|line| serde_json::from_str::<Note>(line).ok()));
        }
    }
    notes
}
