//! Bad weather: disks fill up, ledgers vanish, servers go away, clocks and pids lie.

use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::lab::{Lab, Server, alive_in, is_alive, wait_until};
use crate::watchdog::lose_the_machine;

/// Crashes a worker, so that its lane is made again, and lets the next test hang on a wish.
const CRASHING: &str = "
import os, time, witness
def fill():
    with open('small/fill', 'wb') as file:
        try:
            while True:
                file.write(b'x' * 4096)
                file.flush()
        except OSError:
            pass
def test_crashes():
    if not os.path.exists('crashed'):
        open('crashed', 'w').close()
        if os.path.exists('small'):
            fill()
        else:
            os.system('rm -rf .isolane')
        os.kill(os.getpid(), 9)
def test_after(tmp_path):
    witness.note('after')
    time.sleep(float(os.environ.get('HANG', '0')))
";

/// The run has lost its ledger in one of two ways; its worker crashes after that.
fn without_ledger(lab: &Lab, is_full: bool) -> crate::lab::Program {
    lab.file("test_crash.py", CRASHING);
    let pytest = "pytest -q -p no:cacheprovider -n 1 test_crash.py";
    if is_full {
        lab.file("small/x", "");
        let script =
            format!("mount -t tmpfs -o size=600k none small && exec isolane run --ledger small/ledger.db -- {pytest}");
        lab.program("unshare").arg_all(["--user", "--map-root-user", "--mount", "sh", "-c"]).arg(script)
    } else {
        lab.wrap("", pytest)
    }
}

#[test]
fn a_run_that_loses_its_ledger_goes_on_and_cleans_up() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    for (is_full, says) in [(true, "could not be written"), (false, "was deleted or replaced")] {
        let lab = Lab::on(&database);
        let outcome = without_ledger(&lab, is_full).run().assert_code(1);
        outcome.assert_says(says).assert_says("cleanup did not need it").assert_shows("1 passed");
        assert_eq!(server.snapshot(), before);
        assert_eq!(fs::read_dir(lab.tmp()).expect("a folder").count(), 0);
    }
}

#[test]
fn a_killed_run_that_lost_its_ledger_is_undone_from_memory() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    for is_full in [true, false] {
        let lab = Lab::on(&database);
        let run = without_ledger(&lab, is_full).env("HANG", "600").start();
        wait_until("the second worker works", || lab.path("../seen/after").exists());
        assert_ne!(server.snapshot(), before);
        kill(lab.pid_of("isolane run"), Signal::SIGKILL).expect("it is there");
        wait_until("the watchdog has left", || alive_in(lab.home()).is_empty());
        drop(run);
        assert_eq!(server.snapshot(), before);
        assert_eq!(fs::read_dir(lab.tmp()).expect("a folder").count(), 0);
    }
}

#[test]
fn a_server_that_is_restarted_meanwhile_is_no_reason_to_stop() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let script = "psql -qXc 'SET synchronous_commit = on; CREATE TABLE mine AS SELECT 1 AS id'; : >$SEEN/ready
            until [ -e go ]; do sleep 0.01; done; psql -qXAtc 'SELECT id FROM mine'";
        let run = lab.sh(&format!("--isolation {isolation}"), script).start();
        wait_until("it works", || lab.path("../seen/ready").exists());
        server.restart();
        lab.file("go", "");
        let outcome = run.finish().assert_code(0);
        outcome.assert_does_not_say("could not").assert_says("nothing is left");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_server_that_is_gone_at_the_end_is_swept_when_it_is_back() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    for (isolation, by) in [("database", "run"), ("schema", "run"), ("database", "sweep")] {
        let lab = Lab::on(&database);
        let run =
            lab.sh(&format!("--isolation {isolation}"), ": >$SEEN/ready; until [ -e go ]; do sleep 0.01; done").start();
        wait_until("it works", || lab.path("../seen/ready").exists());
        server.stop();
        lab.file("go", "");
        let outcome = run.finish().assert_code(123).assert_says("not removed: ");
        let command =
            outcome.said().into_iter().find_map(|line| Some(line.split_once('`')?.1.split_once('`')?.0.to_owned()));
        let command = command.expect("a command to remove it");
        assert_eq!(command, "isolane sweep --apply");
        server.start_again();
        if by == "run" {
            lab.wrap("", "true").run().assert_code(0).assert_says("is removed now");
        } else {
            lab.isolane(command.strip_prefix("isolane ").expect("ours")).run().assert_code(0);
        }
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_clock_that_is_set_back_neither_kills_nor_saves_anybody() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = Lab::on(&database);
    lose_the_machine(&lab, lab.sh("", ": >$SEEN/there; sleep 600"), "there");
    // As if the run had started when the clock was years ahead.
    let tag = lab.tag();
    let name = format!("isolane_{tag}_w0");
    let mark = server.texts(
        "postgres",
        &format!("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{name}'"),
    );
    let (rest, _) = mark[0].rsplit_once(' ').expect("a mark");
    server.sql("postgres", &format!("COMMENT ON DATABASE \"{name}\" IS '{rest} 2099-01-01T00:00:00.000Z'"));
    let elsewhere = Lab::on(&database);
    elsewhere.isolane("sweep --apply --older-than 1s").run().assert_code(0).assert_says("1 thing of younger runs");
    elsewhere.isolane("sweep --apply").run().assert_code(0).assert_says("1 thing of 1 dead run removed");

    let ledger = rusqlite::Connection::open(lab.ledger_path()).expect("a ledger");
    ledger.execute("UPDATE run SET started_at = '2099-01-01T00:00:00.000Z'", []).expect("a row");
    lab.wrap("", "true").run().assert_code(0).assert_says("had been killed");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_pid_that_somebody_else_has_by_now_means_nothing() {
    let lab = Lab::new();
    lose_the_machine(&lab, lab.sh("", ": >$SEEN/there; sleep 600"), "there");
    let other = Lab::new();
    let innocent = other.program("sleep").arg("600").start();
    let pid = innocent.pid().as_raw();
    let ledger = rusqlite::Connection::open(lab.ledger_path()).expect("a ledger");
    ledger.execute("UPDATE worker SET pid = ?", [pid]).expect("a row");
    lab.wrap("", "true").run().assert_code(0).assert_says("had been killed");
    assert!(is_alive(pid.unsigned_abs()), "it was only called like one of ours");
    lab.assert_nothing_left();
}

#[test]
fn fifty_runs_at_once_on_one_database_and_one_ledger_do_not_meet() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let before = server.snapshot();
    let lab = Lab::on(&database);
    let script = "psql -qXAtc \"CREATE TABLE mine AS SELECT '$ISOLANE_RUN_ID' AS id; SELECT count(*) FROM mine\"";
    let runs: Vec<_> = (0..50)
        .map(|n| lab.sh(if n % 2 == 0 { "--isolation database" } else { "--isolation schema" }, script).start())
        .collect();
    for run in runs {
        let outcome = run.finish().assert_code(0);
        assert_eq!(outcome.out(), "1\n");
    }
    assert_eq!(server.snapshot(), before);
    assert_eq!(lab.column("SELECT count(*) FROM runs WHERE state = 'passed'"), ["50"]);
    database.assert_nothing_left(&lab);
}
