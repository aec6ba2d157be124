//! What isolane costs, as ratios in one run: medians of rounds in which the bare command
//! and the wrapped one take turns, so that a machine that changes its speed changes both.
//!
//! `cargo bench` after `tests/run` has installed what is measured; `cargo bench -- start`
//! for one part. Nothing here passes or fails: it prints, and a reader judges.
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "it prints figures and has no readers in code"
)]

#[allow(dead_code, unused_imports, reason = "the laboratory serves the tests first")]
#[path = "../../tests/it/lab/mod.rs"]
mod lab;

mod capture;
mod cleanup;
mod leases;
mod postgres_leases;
mod rows;
mod touches;

use std::time::{Duration, Instant};

use isolane::clock::Timestamp;
use isolane::ledger::run::NewRun;
use isolane::ledger::{self, Durability, Writer};
use isolane::name::RunId;
use lab::{Lab, Server};
use nix::sys::resource::{UsageWho, getrusage};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let parts: [(&str, fn()); 15] = [
        ("pytest", pytest),
        ("nextest", nextest),
        ("start", start),
        ("lanes", lanes),
        ("ingest", ingest),
        ("killed", cleanup::killed),
        ("strays", cleanup::strays),
        ("history", cleanup::history),
        ("capture", capture::capture),
        ("suite", capture::suite),
        ("touches", touches::touches),
        ("rows", rows::rows),
        ("leases", leases::leases),
        ("leases-served", leases::served),
        ("leases-postgres", postgres_leases::postgres),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            part();
        }
    }
}

fn line(what: &str, figure: &str, goal: &str) {
    println!("{what:<58} {figure:<44} goal: {goal}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of all children that were waited for, theirs included.
fn children_cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0).as_secs_f64() + time.tv_usec() as f64 / 1e6
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// CPU seconds of `work`.
fn cpu(work: impl FnOnce()) -> f64 {
    let before = children_cpu();
    work();
    children_cpu() - before
}

fn wall(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn pytest() {
    let lab = Lab::new();
    lab.file(
        "test_many.py",
        "import pytest\n\n@pytest.mark.parametrize('n', range(1000))\ndef test_nothing(n):\n    pass\n",
    );
    let mut pairs = Vec::new();
    for _ in 0..11 {
        let bare = cpu(|| {
            drop(lab.program("pytest").arg_all(["-q", "-p", "no:cacheprovider", "-n", "2"]).run().assert_code(0));
        });
        let wrapped = cpu(|| drop(lab.pytest("-n 2").run().assert_code(0)));
        pairs.push((bare, wrapped));
    }
    let ratio = median(pairs.iter().map(|(bare, wrapped)| wrapped / bare).collect());
    let bare = median(pairs.iter().map(|(bare, _)| *bare).collect());
    line(
        "1,000 empty pytest tests, -n 2: CPU, wrapped / bare",
        &format!("{ratio:.2} (bare {bare:.2} s)"),
        "at most 1.10",
    );
}

fn nextest() {
    let lab = Lab::new();
    lab.cargo("many", &lab::many_tests(200, "nothing", ""));
    let bare =
        || drop(lab.program("cargo").arg_all(["nextest", "run", "-j2", "--hide-progress-bar"]).run().assert_code(0));
    let wrapped = || drop(lab.nextest("-j2 --hide-progress-bar").run().assert_code(0));
    bare();
    wrapped();
    let mut more = Vec::new();
    let mut bares = Vec::new();
    for _ in 0..7 {
        let (bare, wrapped) = (cpu(bare), cpu(wrapped));
        bares.push(bare);
        more.push((wrapped - bare) * 1000.0 / 200.0);
    }
    let bare = median(bares) * 1000.0 / 200.0;
    line(
        "200 empty nextest tests, -j2: CPU a test over bare",
        &format!("{:.2} ms (bare {bare:.2} ms)", median(more)),
        "at most 1.5 ms",
    );
}

fn start() {
    let lab = Lab::new();
    let run = || drop(lab.run("--quiet", ["true"]).run().assert_code(0));
    run();
    let walls = median((0..15).map(|_| wall(run)).collect());
    let bare = median((0..15).map(|_| wall(|| drop(lab.program("true").run().assert_code(0)))).collect());
    line(
        "isolane run -- true, SQLite, wall time",
        &format!("{:.0} ms ({:.0} ms bare)", walls * 1e3, bare * 1e3),
        "under 60 ms",
    );
}

fn lanes() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = Lab::on(&database);
    let mut ratios = Vec::new();
    let mut by_hands = Vec::new();
    for round in 0..7 {
        let by_hand = wall(|| {
            std::thread::scope(|scope| {
                for n in 0..8 {
                    let server = &server;
                    scope.spawn(move || server.sql("postgres", &format!("CREATE DATABASE by_hand_{round}_{n}")));
                }
            });
        });
        for n in 0..8 {
            server.sql("postgres", &format!("DROP DATABASE by_hand_{round}_{n}"));
        }
        lab.run("--quiet -n 8", ["true"]).run().assert_code(0);
        // From the announcement of the run to the last of eight databases.
        let ready: f64 = lab
            .value(
                "SELECT (julianday(max(r.created_at)) - julianday(runs.started_at)) * 86400.0
                 FROM resources r JOIN runs USING (run_id)
                 WHERE r.kind = 'database' AND run_id = (SELECT max(run_id) FROM runs)",
            )
            .parse()
            .expect("seconds");
        ratios.push(ready / by_hand);
        by_hands.push(by_hand);
    }
    let by_hand = median(by_hands);
    line(
        "8 PostgreSQL lanes ready / 8 CREATE DATABASE at once",
        &format!("{:.2} (by hand {:.0} ms)", median(ratios), by_hand * 1e3),
        "at most 1.2",
    );
}

fn ingest() {
    const TESTS: i64 = 200_000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let db = ledger::open(&folder.path().join("ledger.db")).expect("a ledger");
    let (writer, thread) = Writer::start(db);
    let run = NewRun::unknown(RunId::new(0), Timestamp(0));
    let key = writer.commit(Durability::Process, move |db| ledger::run::begin(db, &run)).expect("a run");
    let seconds = wall(|| {
        for number in 0..TESTS {
            let id = format!("tests/test_shop.py::test_order[{number}]");
            writer.tell(move |db| ledger::test::begin(db, key, number, "gw0", &id, 1, Timestamp::now()));
            writer.tell(move |db| ledger::test::end(db, key, number, Some("passed"), None, Timestamp::now()));
        }
        writer.close();
        assert!(thread.join().expect("the writer").is_none(), "all was written");
    });
    let rate = 2.0 * TESTS as f64 / seconds;
    line("test events through the ledger's writer", &format!("{rate:.0} a second"), "at least 100,000");
}
