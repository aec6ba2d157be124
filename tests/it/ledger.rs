//! The ledger: its views, and that anybody may read it while a run goes on.

use std::path::{Path, PathBuf};

use regex_lite::Regex;

use crate::lab::{Lab, Server, no_rows, wait_until};

#[test]
fn the_views_have_the_columns_that_users_rely_on() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    let views = [
        ("runs", "run_id tag command runner host cwd started_at ended_at exit_code state"),
        ("workers", "run_id worker_id lane pid started_at ended_at outcome"),
        ("tests", "run_id worker_id test_id attempt started_at ended_at outcome message"),
        ("resources", "run_id worker_id provider kind name state created_at removed_at error"),
        ("records", "run_id worker_id test_id kind key created_at source state"),
    ];
    for (view, columns) in views {
        let found = lab.column(&format!("SELECT name FROM pragma_table_info('{view}') ORDER BY cid"));
        assert_eq!(found.join(" "), columns, "{view}");
        assert_eq!(lab.value(&format!("SELECT type FROM sqlite_master WHERE name = '{view}'")), "view");
    }
}

#[test]
fn a_run_is_told_from_its_beginning_to_its_end() {
    let lab = Lab::new();
    lab.file("test_one.py", "def test_one(isolane): isolane.record('bucket', 'photos')\n");
    lab.pytest("-n 2").run().assert_code(0);
    let run = lab.ledger("SELECT run_id, tag, runner, cwd, exit_code, state, command, host FROM runs");
    let run = &run[0];
    assert!(run[0].ends_with(&run[1]), "{run:?}");
    let cwd = lab.dir().canonicalize().expect("it is there").display().to_string();
    assert_eq!(run[2..6], ["pytest".to_owned(), cwd, "0".to_owned(), "passed".to_owned()]);
    assert!(run[6].contains("pytest") && run[6].contains("-n"), "{run:?}");
    assert!(!run[7].is_empty(), "{run:?}");

    let time = Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$").expect("a pattern");
    for (view, begin, end) in [
        ("runs", "started_at", "ended_at"),
        ("workers", "started_at", "ended_at"),
        ("tests", "started_at", "ended_at"),
        ("resources", "created_at", "removed_at"),
        ("records", "created_at", "created_at"),
    ] {
        let rows = lab.ledger(&format!("SELECT {begin}, {end} FROM {view}"));
        assert!(!rows.is_empty(), "{view}");
        for row in rows {
            assert!(row.iter().all(|at| time.is_match(at)) && row[0] <= row[1], "{view}: {row:?}");
        }
    }
    let workers = lab.ledger("SELECT worker_id, lane, outcome FROM workers ORDER BY 1");
    assert_eq!(workers, [["gw0", "0", "ok"], ["gw1", "1", "ok"]]);
    let resources = lab.ledger("SELECT DISTINCT provider, kind, state, error FROM resources ORDER BY 1, 2");
    assert!(resources.iter().any(|row| row[0].starts_with("sqlite") && row[1] == "file"), "{resources:?}");
    assert!(resources.iter().all(|row| row[2] == "removed" && row[3] == "NULL"), "{resources:?}");
}

#[test]
fn it_can_be_read_while_a_run_goes_on() {
    let lab = Lab::new();
    lab.file(
        "test_waits.py",
        "
import os, pytest, witness
def test_done(): pass
def test_waits():
    witness.note('waits')
    witness.wait(lambda: os.path.exists('go'), 'somebody has read')
",
    );
    let run = lab.pytest("-p no:xdist").start();
    wait_until("the second test runs", || lab.seen().names().contains(&"waits"));
    wait_until("the ledger knows", || {
        lab.ledger("SELECT test_id, outcome FROM tests ORDER BY test_id")
            == [["test_waits.py::test_done", "passed"], ["test_waits.py::test_waits", "NULL"]]
    });
    assert_eq!(lab.value("SELECT state FROM runs"), "running");
    assert_eq!(lab.value("SELECT ended_at FROM runs"), "NULL");
    assert_eq!(lab.value("SELECT outcome FROM workers"), "running");
    let file = lab.ledger("SELECT state, name FROM resources WHERE kind = 'file' AND name LIKE '%_w0.db'");
    assert_eq!((file.len(), file[0][0].as_str()), (1, "created"), "{file:?}");
    assert!(Path::new(&file[0][1]).exists());
    let outcome = lab.program("isolane").arg("query").arg("SELECT state FROM runs").run().assert_code(0);
    outcome.assert_shows("running");
    lab.file("go", "");
    run.finish().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn resources_are_of_the_kinds_that_were_made() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    for (isolation, kinds) in [("database", vec!["database"]), ("schema", vec!["role", "schema"])] {
        let lab = Lab::on(&database);
        lab.wrap(&format!("-n 2 --isolation {isolation}"), "true").run().assert_code(0);
        let kinds_made = lab.column("SELECT DISTINCT kind FROM resources WHERE provider LIKE 'postgres%' ORDER BY 1");
        assert_eq!(kinds_made, kinds);
        for kind in kinds {
            let names =
                format!("SELECT count(DISTINCT name) FROM resources WHERE kind = '{kind}' AND name LIKE '%_w_%'");
            assert_eq!(lab.value(&names), "2", "{kind}");
        }
    }
}

#[test]
fn no_password_gets_into_it_or_into_any_message() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let lab = Lab::on(&database);
    let url = database.url();
    lab.file(
        "test_fails.py",
        "import os\ndef test_fails(): raise RuntimeError('cannot reach ' + os.environ['DATABASE_URL'])\n",
    );
    let mut seen = Vec::new();
    for isolation in ["database", "schema", "none"] {
        let command = ["pytest", "-q", "-p", "no:cacheprovider", "--tb=no"];
        let outcome = lab.run(&format!("--isolation {isolation} --database-url {url}"), command).run().assert_code(1);
        seen.extend(outcome.stderr);
    }
    // On the command line of the command, too.
    let outcome = lab.run("", ["true", &url]).run().assert_code(0);
    seen.extend(outcome.stderr);
    let doctor = lab.isolane("doctor").run();
    seen.extend([doctor.stdout, doctor.stderr].concat());
    let runs = lab.isolane("runs --format json").run().assert_code(0);
    seen.extend(runs.stdout);
    for file in files_in(&lab.path(".isolane")) {
        seen.extend(std::fs::read(file).expect("a file"));
    }
    let needle = database.password.as_bytes();
    let at = seen.windows(needle.len()).position(|window| window == needle);
    let around = at.map(|at| String::from_utf8_lossy(&seen[at.saturating_sub(200)..at + 40]).into_owned());
    assert_eq!(around, None, "the password is shown");
    assert!(!lab.column("SELECT message FROM tests WHERE message LIKE '%cannot reach postgresql://%'").is_empty());
}

#[test]
fn the_password_of_a_lane_is_one_as_well() {
    let database = Server::shared().database("CREATEROLE");
    let lab = Lab::on(&database);
    let suite = "
import os, pytest
def test_shows(): raise RuntimeError('password ' + os.environ['PGPASSWORD'])
@pytest.mark.parametrize('url', [os.environ['DATABASE_URL']])
def test_id(url): pass
";
    lab.file("test_shows.py", suite);
    lab.wrap("--isolation schema", "pytest -q -p no:cacheprovider").run().assert_code(1);
    let tests = lab.ledger("SELECT message FROM tests WHERE outcome = 'failed'");
    assert_eq!(tests, [["RuntimeError: password ***"]]);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE test_id LIKE '%[postgresql://%:***@%'"), "1");
}

#[test]
fn no_password_is_on_the_command_line_of_a_helper() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    database.sql("CREATE TABLE users (id int)");
    let _somebody = database.client(); // now the server itself cannot copy the database
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        for program in ["pg_dump", "pg_restore", "psql"] {
            let real = crate::lab::tools::postgres_bin(None).join(program);
            let script =
                format!("#!/bin/sh\necho {program} \"$@\" >>\"$SEEN/../calls\"\nexec {} \"$@\"\n", real.display());
            lab.script(&format!("../bin/{program}"), &script);
        }
        lab.wrap(&format!("--isolation {isolation}"), "true").run().assert_code(0);
        let calls = lab.read("../calls");
        assert!(calls.contains("pg_dump"), "the helper in PATH is used: {calls}");
        assert!(!calls.contains(&database.password), "{calls}");
        database.assert_nothing_left(&lab);
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

#[test]
fn the_folder_of_the_ledger_stays_out_of_version_control() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    assert_eq!(lab.read(".isolane/.gitignore").trim(), "*");
}

#[test]
fn it_stands_beside_the_configuration_or_where_the_user_wants_it() {
    let lab = Lab::new();
    lab.file("isolane.toml", "").file("deep/down/here.txt", "");
    lab.wrap("", "true").within(&lab.path("deep/down")).run().assert_code(0);
    assert_eq!(lab.value("SELECT count(*) FROM runs"), "1");
    let elsewhere = lab.path("deep/other.db");
    lab.wrap("--ledger deep/other.db", "true").run().assert_code(0);
    lab.wrap("", "true").env("ISOLANE_LEDGER", &elsewhere).run().assert_code(0);
    assert_eq!(lab.value("SELECT count(*) FROM runs"), "1");
    assert_eq!(crate::lab::read_ledger(&elsewhere, "SELECT count(*) FROM runs"), [["2"]]);
    lab.file("isolane.toml", "ledger = \"third.db\"\n");
    lab.wrap("", "true").run().assert_code(0);
    assert_eq!(crate::lab::read_ledger(&lab.path("third.db"), "SELECT count(*) FROM runs"), [["1"]]);
}

#[test]
fn runs_of_many_processes_at_once_all_get_in() {
    let lab = Lab::new();
    let runs: Vec<_> = (0..8).map(|_| lab.wrap("-n 2", "true").start()).collect();
    for run in runs {
        run.finish().assert_code(0);
    }
    assert_eq!(lab.value("SELECT count(*) FROM runs WHERE state = 'passed'"), "8");
    assert_eq!(lab.value("SELECT count(*) FROM workers WHERE outcome = 'ok'"), "16");
    assert_eq!(lab.ledger("SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'"), no_rows());
    lab.assert_nothing_left();
}
