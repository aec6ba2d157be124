//! What it takes to leave nothing behind.

use std::sync::Mutex;
use std::time::Instant;

use isolane::clock::Timestamp;
use isolane::ledger::run::{self, NewRun, RunState};
use isolane::mark::Owner;
use isolane::name::{Lane, Place, RunId};
use isolane::{ledger, sweep};
use nix::sys::signal::{Signal, kill};

use crate::lab::{Lab, Server, wait_until};
use crate::{line, median, wall};

/// Runs these statements in eight sessions at once.
fn at_once(server: &Server, database: &str, statements: Vec<String>) {
    let next = Mutex::new(statements.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut session = server.admin(database);
                loop {
                    let Some(sql) = next.lock().expect("no panic inside").next() else { break };
                    session.batch_execute(&sql).expect("the owner may");
                }
            });
        }
    });
}

/// From SIGKILL of the supervisor to the last of eight lanes gone.
pub fn killed() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let mut session = server.admin("postgres");
    let (mut ratios, mut by_hands) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let names: Vec<_> = (0..8).map(|n| format!("by_hand_{n}")).collect();
        at_once(
            &server,
            "postgres",
            names.iter().map(|name| format!("CREATE DATABASE {name} TEMPLATE {}", database.name)).collect(),
        );
        let by_hand =
            wall(|| at_once(&server, "postgres", names.iter().map(|name| format!("DROP DATABASE {name}")).collect()));
        let lab = Lab::on(&database);
        let run = lab.sh("-n 8", ": >$SEEN/$WORKER_ID; exec sleep 600").start();
        wait_until("all work", || (0..8).all(|n| lab.path(&format!("../seen/w{n}")).exists()));
        let tag = lab.tag();
        let began = Instant::now();
        kill(run.pid(), Signal::SIGKILL).expect("it is there");
        let sql = "SELECT count(*) FROM pg_database WHERE datname LIKE '%' || $1 || '%'";
        while session.query_one(sql, &[&tag]).expect("an answer").get::<_, i64>(0) > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ratios.push((began.elapsed().as_secs_f64() - 0.1) / by_hand);
        by_hands.push(by_hand);
        wait_until("the watchdog has left", || crate::lab::alive_in(lab.home()).is_empty());
    }
    let by_hand = median(by_hands) * 1e3;
    line(
        "SIGKILL to the last of 8 lanes gone, less 100 ms / 8 DROPs",
        &format!("{:.2} (by hand {by_hand:.0} ms)", median(ratios)),
        "at most 1.5",
    );
}

/// Sweeps of marked strays: empty databases, and empty schemas and roles.
pub fn strays() {
    sweep_of(300, 300, "sweep of 300 marked databases / 300 DROPs, 8 at once");
    sweep_of(1000, 0, "sweep of 1,000 marked schemas and roles / 1,000 DROPs");
}

fn sweep_of(all: u64, databases: u64, what: &str) {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE SUPERUSER");
    let lab = Lab::on(&database);
    let mut ratios = Vec::new();
    let mut by_hands = Vec::new();
    for _ in 0..3 {
        let (mut makes, mut drops, mut marked) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..all {
            let owner = Owner {
                run: RunId::new(n),
                host: "elsewhere".to_owned(),
                since: Timestamp(n),
                worker: "gw",
                master: None,
            };
            let (name, mark) = (Place::Lane(Lane(0)).schema(&owner.run.tag()), owner.mark(Place::Lane(Lane(0))));
            let kind = match n {
                n if n < databases => "DATABASE",
                n if n % 2 == 0 => "SCHEMA",
                _ => "ROLE",
            };
            makes.push(format!("CREATE {kind} by_hand_{n}"));
            drops.push(format!("DROP {kind} by_hand_{n}"));
            makes.push(format!("CREATE {kind} {name}"));
            marked.push(format!("COMMENT ON {kind} {name} IS '{mark}'"));
        }
        at_once(&server, &database.name, makes);
        at_once(&server, &database.name, marked);
        let by_hand = wall(|| at_once(&server, &database.name, drops));
        let swept = wall(|| {
            drop(lab.isolane("sweep --apply --format csv").run().assert_code(0).assert_says(&format!("{all} things")));
        });
        ratios.push(swept / by_hand);
        by_hands.push(by_hand);
    }
    let by_hand = median(by_hands) * 1e3;
    line(what, &format!("{:.2} (by hand {by_hand:.0} ms)", median(ratios)), "at most 1.3");
}

/// The look at a ledger with 10,000 runs that ended, at the start of a run.
pub fn history() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ledger.db");
    let mut db = ledger::open(&path).expect("a ledger");
    let all = db.transaction().expect("a transaction");
    for n in 0..10_000 {
        let new = NewRun {
            id: RunId::new(n),
            command: "pytest -n 4".to_owned(),
            runner: "pytest",
            host: "here".to_owned(),
            cwd: "/srv/shop".to_owned(),
            lock: std::path::PathBuf::new(),
            started_at: Timestamp(n),
        };
        let key = run::begin(&all, &new).expect("a row");
        run::end(&all, key, Some(0), RunState::Passed, Timestamp(n + 1)).expect("a row");
    }
    all.commit().expect("kept");
    drop(db);
    let look = || drop(sweep::sweep_dead_runs(&path, "here", &[]).expect("a look"));
    let time = median((0..15).map(|_| wall(look)).collect()) * 1e3;
    line("the look for dead runs, in a ledger of 10,000", &format!("{time:.2} ms"), "under 5 ms");
}
