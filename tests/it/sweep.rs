//! `isolane sweep`: what it finds, what it removes, and what it never touches.

use nix::sys::signal::Signal;

use crate::lab::{Lab, Server, wait_until};
use crate::watchdog::lose_the_machine;

const HANGS: &str = ": >$SEEN/there; sleep 600";

/// A lab whose only run was lost with its machine, in this isolation.
fn lost(database: &crate::lab::Database, isolation: &str) -> Lab {
    let lab = Lab::on(database);
    lose_the_machine(&lab, lab.sh(&format!("-n 2 --isolation {isolation}"), HANGS), "there");
    lab
}

#[test]
fn strays_are_listed_and_then_removed_from_any_machine() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    for made in ["DATABASE", "ROLE"] {
        server.sql("postgres", &format!("CREATE {made} isolane_000000000000_w0"));
    }
    database.sql("CREATE SCHEMA isolane_000000000000_w0");
    let before = server.snapshot();
    for (isolation, kinds) in
        [("database", vec!["database", "database"]), ("schema", vec!["role", "role", "schema", "schema", "schema"])]
    {
        let lab = lost(&database, isolation);
        let with_strays = server.snapshot();
        assert_ne!(with_strays, before);
        // It has no ledger of that run, and makes none.
        let elsewhere = Lab::on(&database);
        let listed = elsewhere.isolane("sweep --format json").run().assert_code(0);
        listed.assert_says("things of 1 dead run would be removed: --apply removes them");
        assert_eq!(server.snapshot(), with_strays, "a dry run");
        let listed = elsewhere.isolane("sweep --format json").run().out();
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        let mut found: Vec<_> =
            listed.as_array().expect("rows").iter().map(|row| row["kind"].as_str().expect("text")).collect();
        found.sort_unstable();
        assert_eq!(found, kinds);
        for row in listed.as_array().expect("rows") {
            assert_eq!(row["run_id"], lab.value("SELECT run_id FROM runs"), "{row}");
            // What is the run's own is no worker's.
            let is_log = row["name"].as_str().is_some_and(|name| !name.contains("_w"));
            assert!(is_log || row["worker_id"].as_str().is_some_and(|worker| worker.starts_with('w')), "{row}");
            assert_eq!(row["host"], lab.value("SELECT host FROM runs"), "{row}");
            assert_eq!(row["since"], lab.value("SELECT started_at FROM runs"), "{row}");
            assert!(row["reason"].as_str().is_some_and(|reason| reason.contains("dead")), "{row}");
            assert_eq!(row["state"], "stray", "{row}");
        }
        elsewhere
            .isolane("sweep --apply")
            .run()
            .assert_code(0)
            .assert_says("of 1 dead run removed")
            .assert_shows("removed");
        assert_eq!(server.snapshot(), before);
        elsewhere.isolane("sweep --apply").run().assert_code(0).assert_says("nothing to sweep");
        assert!(!elsewhere.ledger_path().exists());
        // The files are on the machine that was lost, in its ledger.
        lab.isolane("sweep").run().assert_code(0).assert_shows("directory").assert_shows("nobody holds the lock");
        lab.isolane("sweep --apply").run().assert_code(0);
        assert_eq!(lab.column("SELECT state FROM runs"), ["swept"]);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_run_that_lives_is_left_alone_wherever_the_sweeper_is() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let script = ": >$SEEN/there; until [ -e go ]; do sleep 0.01; done; psql -qXc 'CREATE TABLE mine (id int)'";
        let run = lab.sh(&format!("--isolation {isolation}"), script).start();
        wait_until("the run works", || lab.path("../seen/there").exists());
        let elsewhere = Lab::on(&database);
        for sweeper in [&lab, &elsewhere] {
            let swept = sweeper.isolane("sweep --apply").run().assert_code(0);
            swept.assert_says("nothing to sweep").assert_says("of runs that live stay");
        }
        // Its claim is there again when the server was away for a moment. (This one is set to
        // forget the last of its commits then.)
        server.sql("postgres", "CHECKPOINT");
        server.restart();
        elsewhere.isolane("sweep --apply").run().assert_code(0).assert_says("of runs that live stay");
        server.sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'isolane claim %'",
        );
        wait_until("the claim is made again", || {
            !server
                .texts(
                    "postgres",
                    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) \
                                       WHERE locktype = 'advisory' AND application_name LIKE 'isolane claim %'",
                )
                .is_empty()
        });
        elsewhere.isolane("sweep --apply").run().assert_code(0).assert_says("of runs that live stay");
        lab.file("go", "");
        run.finish().assert_code(0);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_copy_of_the_ledger_of_a_run_that_lives_knows_that_it_does() {
    let lab = Lab::new();
    let script = ": >$SEEN/there; until [ -e go ]; do sleep 0.01; done; test -e $ISOLANE_SCHEMA";
    let run = lab.sh("", script).start();
    wait_until("the run works", || lab.path("../seen/there").exists());
    std::fs::create_dir(lab.path("copy")).expect("a new folder");
    let copied = rusqlite::Connection::open(lab.ledger_path()).expect("a ledger");
    copied.execute("VACUUM INTO ?", [lab.path("copy/ledger.db").to_str().expect("UTF-8")]).expect("a copy");
    for sweeper in ["sweep --apply --ledger copy/ledger.db", "run --ledger copy/ledger.db -- true"] {
        lab.isolane(sweeper).run().assert_code(0).assert_does_not_say("killed");
    }
    lab.file("go", "");
    run.finish().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn two_sweepers_at_once_are_one() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let before = server.snapshot();
    let labs: Vec<_> =
        ["database", "schema", "database", "schema"].iter().map(|isolation| lost(&database, isolation)).collect();
    let sweepers: Vec<_> = (0..3).map(|_| Lab::on(&database)).collect();
    let running: Vec<_> = sweepers.iter().chain(&labs).map(|lab| lab.isolane("sweep --apply").start()).collect();
    for sweeper in running {
        sweeper.finish().assert_code(0);
    }
    assert_eq!(server.snapshot(), before);
    for lab in &labs {
        database.assert_nothing_left(lab);
    }
}

#[test]
fn what_only_looks_like_a_stray_stays() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lost(&database, "database");
    let tag = lab.tag();
    let stray = format!("isolane_{tag}_w0");
    let mark = server.texts(
        "postgres",
        &format!("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{stray}'"),
    );
    let mark = &mark[0];
    assert!(mark.contains(&lab.value("SELECT run_id FROM runs")) && mark.contains("worker w0"), "{mark}");
    // The mark under another name, its name without the mark, and a mark that was added to.
    let theirs = [
        ("their_copy", mark.clone()),
        (&format!("isolane_{tag}_w9") as &str, String::new()),
        (&format!("isolane_{tag}_w1x"), mark.clone()),
    ];
    for (name, comment) in &theirs {
        server.sql("postgres", &format!("CREATE DATABASE \"{name}\""));
        server.sql("postgres", &format!("COMMENT ON DATABASE \"{name}\" IS '{comment}'"));
    }
    server.sql("postgres", &format!("COMMENT ON DATABASE \"isolane_{tag}_w1\" IS '{mark} and more'"));
    let elsewhere = Lab::on(&database);
    let swept = elsewhere.isolane("sweep --apply").run().assert_code(0).assert_says("1 thing of 1 dead run removed");
    swept.assert_shows(&stray);
    let left = server.texts(
        "postgres",
        "SELECT datname::text FROM pg_database WHERE datname LIKE 'isolane%' OR datname = 'their_copy' ORDER BY 1",
    );
    assert_eq!(
        left,
        [
            format!("isolane_{tag}_w1"),
            format!("isolane_{tag}_w1x"),
            format!("isolane_{tag}_w9"),
            "their_copy".to_owned()
        ]
    );
}

#[test]
fn what_was_kept_is_found_and_swept_when_it_is_wanted_no_more() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    let lab = Lab::on(&database);
    let outcome = lab.sh("--keep failed", "psql -qXc 'CREATE TABLE evidence (id int)'; false").run().assert_code(1);
    outcome.assert_says("kept as asked").assert_says("isolane sweep --apply");
    // Runs after it leave it alone.
    lab.wrap("", "true").run().assert_code(0);
    let kept = lab.value("SELECT name FROM resources WHERE kind = 'database' AND state = 'kept'");
    assert_eq!(server.texts(&kept, "SELECT relname::text FROM pg_class WHERE relname = 'evidence'"), ["evidence"]);
    let listed = lab.isolane("sweep").run().assert_code(0).assert_shows("kept as asked; its run is over");
    listed.assert_shows(&kept);
    lab.isolane("sweep --older-than 1h --apply").run().assert_code(0).assert_says("of younger runs stay");
    lab.isolane("sweep --older-than 0s --apply").run().assert_code(0).assert_says("of 1 dead run removed");
    assert_eq!(server.snapshot(), before);
    assert_eq!(lab.column("SELECT state FROM runs ORDER BY started_at"), ["failed", "passed"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn it_goes_on_sweeping_where_that_is_asked_for() {
    let database = Server::shared().database("CREATEDB");
    let lab = lost(&database, "database");
    let elsewhere = Lab::on(&database);
    let sweeper = elsewhere.isolane("sweep --every 1s --older-than 0s --apply").start();
    let tag = lab.tag();
    wait_until("it is gone", || database.server.marked(&tag, &database.name).is_empty());
    sweeper.signal(Signal::SIGTERM);
    assert!(!sweeper.finish().status.success());
    lab.isolane("sweep --apply").run().assert_code(0);
}

#[test]
fn what_cannot_be_swept_is_said() {
    let lab = Lab::new();
    lab.isolane("sweep").run().assert_code(0).assert_says("nothing to sweep").assert_says("there is no ledger");
    for bad in ["--older-than", "--every"] {
        let outcome = lab.isolane(&format!("sweep {bad} soon")).run().assert_code(2);
        assert!(outcome.err().contains("90s, 10m, 1h or 2d"), "{}", outcome.all());
    }
    let away = lab.isolane("sweep --database-url postgresql://nobody@127.0.0.1:1/x").run().assert_code(125);
    away.assert_says("cannot reach the PostgreSQL server");
    let database = Server::shared().database("CREATEDB");
    let lab = lost(&database, "database");
    // The ledger knows of things on a server that nobody names.
    let swept = lab.isolane("sweep --apply").env("DATABASE_URL", "").run().assert_code(123);
    swept.assert_says("could not be removed").assert_shows("--database-url");
    lab.isolane("sweep --apply").run().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn neither_settings_of_a_database_nor_forged_marks_make_isolane_do_anything() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let login = &database.login;
    database.sql(&format!(
        "CREATE SCHEMA trap;
         CREATE FUNCTION trap.starts_with(text, text) RETURNS boolean LANGUAGE plpgsql AS
         $$BEGIN EXECUTE 'ALTER ROLE {login} SUPERUSER'; RETURN false; EXCEPTION WHEN OTHERS THEN RETURN false; END$$;
         ALTER DATABASE {name} SET search_path = trap, pg_catalog, public;
         ALTER DATABASE {name} SET standard_conforming_strings = off;
         CREATE SCHEMA isolane_c6ecba90d94f_w0",
        name = database.name
    ));
    let forged = format!(
        "isolane run 01a1ff67-7b3a-70b9-9afb-c6ecba90d94f place 0 worker \\''))/**/ALTER/**/ROLE/**/{login}/**/SUPERUSER$proven$ host h since 2026-11-21T18:35:54.149Z"
    );
    let quoted = forged.replace('\\', "\\\\").replace('\'', "\\'");
    database.sql(&format!("COMMENT ON SCHEMA isolane_c6ecba90d94f_w0 IS E'{quoted}'"));
    let lab = Lab::new().with("DATABASE_URL", server.admin_url(&database.name));
    lab.isolane("sweep --apply").run().assert_code(0).assert_says("nothing to sweep");
    for isolation in ["database", "schema"] {
        lab.wrap(&format!("--isolation {isolation}"), "true").run().assert_code(0);
    }
    let is_superuser = format!("SELECT rolsuper::text FROM pg_roles WHERE rolname = '{login}'");
    assert_eq!(server.texts("postgres", &is_superuser), ["false"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_run_whose_lock_was_tidied_away_still_shows_that_it_lives() {
    let database = Server::shared().database("CREATEDB");
    for lab in [Lab::new(), Lab::on(&database)] {
        let script = ": >$SEEN/there; until [ -e go ]; do sleep 0.01; done";
        let run = lab.sh("", script).start();
        wait_until("the run works", || lab.path("../seen/there").exists());
        std::fs::remove_dir_all(lab.path(".isolane/locks")).expect("a folder");
        lab.isolane("sweep --apply").run().assert_code(0).assert_says("nothing to sweep");
        lab.wrap("", "true").run().assert_code(0).assert_does_not_say("killed");
        lab.file("go", "");
        run.finish().assert_code(0);
        lab.assert_nothing_left();
    }
}

#[test]
fn who_sweeps_from_inside_a_dead_run_does_not_end_itself() {
    let lab = Lab::new();
    lab.file(
        "stay.sh",
        ": >$SEEN/there; until [ -e go ]; do sleep 0.01; done; isolane sweep --apply; echo $? >$SEEN/code; sleep 600",
    );
    let terminal = lab.wrap("", "setsid sh stay.sh").start_on_terminal();
    wait_until("it is there", || lab.path("../seen/there").exists());
    nix::sys::signal::kill(lab.pid_of("isolane watchdog"), Signal::SIGKILL).expect("ours");
    nix::sys::signal::kill(terminal.pid(), Signal::SIGKILL).expect("ours");
    terminal.finish();
    lab.file("go", "");
    wait_until("it has swept", || lab.path("../seen/code").exists());
    assert_eq!(lab.read("../seen/code").trim(), "0");
    assert_eq!(lab.column("SELECT state FROM runs"), ["swept"]);
}

#[test]
fn one_server_by_several_names_is_claimed_once() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let before = server.snapshot();
    let other = database.url().replace("127.0.0.1", "localhost");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database).with("OTHER", &other);
        lab.wrap(&format!("--isolation {isolation} --url-var OTHER"), "true").run().assert_code(0);
        assert_eq!(server.snapshot(), before);
        lab.assert_nothing_left();
    }
}

#[test]
fn a_lane_that_became_a_template_goes_too() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    let script = "psql -qXc \"ALTER DATABASE $ISOLANE_SCHEMA IS_TEMPLATE true\"";
    lab.sh("", script).run().assert_code(0).assert_says("nothing is left");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_server_whose_address_is_spelled_otherwise_now_is_the_same_server() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let before = server.snapshot();
    let other = database.url().replace("127.0.0.1", "localhost");
    for (isolation, by) in [("database", "sweep --apply"), ("schema", "run -- true"), ("schema", "sweep --apply")] {
        let lab = lost(&database, isolation);
        lab.isolane(by).env("DATABASE_URL", &other).run().assert_code(0).assert_does_not_say("left things at");
        assert_eq!(server.snapshot(), before);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_run_whose_ledger_is_lost_as_well_is_swept_from_its_machine() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    for lab in [Lab::new(), Lab::on(&database)] {
        // The worker outlives all who would stop it, in a session of its own.
        lab.file("stay.sh", HANGS);
        let terminal = lab.wrap("", "setsid sh stay.sh").start_on_terminal();
        wait_until("it is there", || lab.path("../seen/there").exists());
        lab.isolane("sweep --apply").run().assert_code(0).assert_says("nothing to sweep");
        nix::sys::signal::kill(lab.pid_of("isolane watchdog"), Signal::SIGKILL).expect("ours");
        nix::sys::signal::kill(terminal.pid(), Signal::SIGKILL).expect("ours");
        terminal.finish();
        std::fs::remove_dir_all(lab.path(".isolane")).expect("a folder");
        // A stranger's directory that is only called so.
        std::fs::create_dir(lab.tmp().join("isolane-0123456789ab")).expect("a new folder");
        lab.isolane("sweep").run().assert_code(0).assert_shows("directory");
        lab.isolane("sweep --apply").run().assert_code(0).assert_says("of 1 dead run removed");
        assert_eq!(server.snapshot(), before);
        std::fs::remove_dir(lab.tmp().join("isolane-0123456789ab")).expect("it is still there");
        lab.assert_nothing_left();
    }
}
