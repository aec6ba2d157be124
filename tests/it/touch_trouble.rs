//! Locks of others, deaths of the server, and very many rows.

use std::time::{Duration, Instant};

use crate::lab::program::PATIENCE;
use crate::lab::{Lab, Server, wait_until};
use crate::shared_rows::{lab, play};

#[test]
fn who_reads_for_long_does_not_keep_a_run_from_starting_and_its_rows_go() {
    let database = Server::shared().database("CREATEROLE");
    database.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (-1)");
    let before = database.dump();
    let lab = lab(&database);
    let mut reader = database.client();
    let mut reading = reader.transaction().expect("a transaction");
    reading.query("SELECT * FROM t", &[]).expect("rows");
    let outcome = play(&lab, "-n 1", "own 'INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)'").assert_code(123);
    outcome.assert_says("has a lock on public.t and does not end its transaction").assert_says("sweep --apply");
    // All but the triggers is gone, and they do nothing.
    let left = "SELECT (SELECT count(*) FROM t)::text || (SELECT count(*) FROM u)";
    assert_eq!(database.server.texts(&database.name, left), ["10"]);
    database.sql("INSERT INTO t VALUES (5); DELETE FROM t WHERE id = 5");
    reading.commit().expect("the end");
    lab.isolane("sweep --apply").run().assert_code(0);
    assert_eq!(database.dump(), before);
    database.assert_nothing_left(&lab);
}

#[test]
fn who_writes_for_long_is_named_and_nobody_waits_for_isolane() {
    let database = Server::shared().database("CREATEROLE");
    database.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let lab = lab(&database);
    let mut writer = database.client();
    let mut writing = writer.transaction().expect("a transaction");
    writing.execute("INSERT INTO t VALUES (1)", &[]).expect("a row");
    let run = lab.wrap("--isolation shared", "touch ran").start();
    let mut other = database.client();
    let mut longest = Duration::ZERO;
    let began = Instant::now();
    for n in 100.. {
        let asked = Instant::now();
        other.execute("INSERT INTO t VALUES ($1)", &[&n]).expect("a row");
        longest = longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(5));
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
    assert!(longest < Duration::from_millis(1500), "somebody waited for {longest:?}");
    let outcome = run.finish().assert_code(125);
    assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
    outcome.assert_says("has a lock on public.t and does not end its transaction");
    assert!(!lab.path("ran").exists());
    writing.commit().expect("its own end");
    lab.assert_nothing_left();
    // A shorter one is waited for.
    let mut writing = writer.transaction().expect("a transaction");
    writing.execute("INSERT INTO t VALUES (2)", &[]).expect("a row");
    let run = lab.wrap("--isolation shared", "touch ran").start();
    std::thread::sleep(Duration::from_secs(1));
    writing.commit().expect("its own end");
    run.finish().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_server_that_broke_down_is_told_of_and_what_it_had_told_goes() {
    let server = Server::own();
    let database = server.database("CREATEROLE");
    database.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (-1)");
    let lab = lab(&database);
    let script =
        "psql -Xqc 'INSERT INTO t SELECT generate_series(1, 10)'; : >$SEEN/there; until [ -e go ]; do sleep 0.01; done";
    let run = lab.sh("--isolation shared", script).start();
    wait_until("it has written", || lab.path("../seen/there").exists());
    wait_until("that is told", || lab.value("SELECT count(*) FROM touches") == "10");
    server.sql("postgres", "CHECKPOINT");
    server.restart();
    lab.file("go", "");
    let outcome = run.finish().assert_code(0);
    outcome.assert_says("the server broke down during the run").assert_does_not_say("could not");
    assert_eq!(server.texts(&database.name, "SELECT id::text FROM t"), ["-1"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_million_touches_are_taken_in_with_little_memory() {
    let database = Server::shared().database("CREATEROLE");
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE wide (what text)");
    let lab = Lab::on(&database);
    let script = "psql -Xqc 'INSERT INTO t SELECT generate_series(1, 200000); UPDATE t SET v = 1; UPDATE t SET v = 2; DELETE FROM t' \
                  -c \"DO \\$\\$ BEGIN FOR n IN 1..20 LOOP INSERT INTO t SELECT generate_series(n * 10000, n * 10000 + 9999); END LOOP; END \\$\\$\" \
                  -c \"INSERT INTO wide SELECT repeat('x', 2000) || n FROM generate_series(1, 20000) n\"
                  sleep 2; grep VmHWM /proc/$PPID/status >memory";
    lab.sh("--isolation shared", script).start().finish_within(5 * PATIENCE).assert_code(0);
    assert_eq!(lab.value("SELECT count(*) FROM touches"), "1020000");
    let memory = lab.read("memory");
    let kilobytes: u32 = memory.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    assert!(kilobytes < 128 * 1024, "{memory}");
    database.assert_nothing_left(&lab);
}
