//! A PostgreSQL server for each lane, started from its programs.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::lab::{Lab, Program, Server, alive_in, many_tests, wait_until};

/// Nobody listens there.
const AWAY: &str = "postgresql://shop_owner:s3cret-word@127.0.0.1:1/shop";
const HANGING: &str = "
import pytest, time, witness
@pytest.mark.parametrize('n', range(2))
def test_hangs(n):
    witness.note(f'hangs{n}')
    time.sleep(600)
";

fn lab() -> Lab {
    Lab::new().open_to_others()
}

fn pytest(lab: &Lab, options: &str, args: &str) -> Program {
    lab.wrap(&format!("--isolation server {options}"), &format!("pytest -q -p no:cacheprovider {args}"))
}

/// What psql says in the only lane of a run.
#[track_caller]
fn psql(lab: &Lab, options: &str, sql: &str) -> String {
    let command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql];
    let outcome = lab.run(&format!("--isolation server {options}"), command).run().assert_code(0);
    outcome.out().trim_end().to_owned()
}

/// The kept clusters.
fn kept(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.home().join("home/.cache/isolane/servers")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.retain(|name| !name.contains('.'));
    names.sort();
    names
}

/// The folders of the servers that there are.
fn servers(lab: &Lab) -> Vec<PathBuf> {
    let runs = fs::read_dir(lab.tmp()).expect("a folder").flatten();
    let within = runs.flat_map(|run| fs::read_dir(run.path()).into_iter().flatten().flatten());
    within.map(|entry| entry.path()).filter(|path| path.join("data/postmaster.pid").exists()).collect()
}

/// The shared memory that a server has: its number.
fn segment(server: &Path) -> String {
    let note = fs::read_to_string(server.join("data/postmaster.pid")).expect("a running server");
    note.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).expect("a number").to_owned()
}

fn has_segment(number: &str) -> bool {
    let table = fs::read_to_string("/proc/sysvipc/shm").expect("the kernel's list");
    table.lines().any(|line| line.split_whitespace().nth(1) == Some(number))
}

#[test]
fn four_workers_use_the_names_that_are_written_into_their_suite() {
    let lab = lab().with("DATABASE_URL", AWAY.replace("postgresql:", "postgresql+psycopg:"));
    lab.file(
        "test_names.py",
        "
import os, psycopg, pytest, witness
@pytest.mark.parametrize('n', range(8))
def test_names(n):
    witness.note(f'names{n}')
    witness.meet(4)
    way = dict(host=os.environ['PGHOST'], port=os.environ['PGPORT'], dbname='shop')
    with psycopg.connect(user='shop_owner', password='s3cret-word', autocommit=True, **way) as db:
        db.execute('DROP TABLE IF EXISTS orders')
        db.execute('DROP ROLE IF EXISTS cashier')
        db.execute('CREATE TABLE orders (id int)')
        db.execute(\"CREATE ROLE cashier LOGIN SUPERUSER PASSWORD 'till'\")
        db.execute('CREATE EXTENSION IF NOT EXISTS plpgsql')
        db.execute('CREATE DATABASE extra')
        with psycopg.connect(user='cashier', password='till', **way) as other:
            assert other.execute('SELECT count(*) FROM orders').fetchone() == (0,)
        db.execute('DROP DATABASE extra')
    url = os.environ['DATABASE_URL']
    assert url == f\"postgresql+psycopg://shop_owner:s3cret-word@127.0.0.1:{way['port']}/shop\", url
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(user='shop_owner', password='wrong', **way)
",
    );
    let outcome = pytest(&lab, "", "-n 4").run().assert_code(0);
    assert!(!outcome.all().contains("s3cret-word"), "{}", outcome.all());
    outcome.assert_says("a server for each lane, with an empty database shop (no server answers at 127.0.0.1:1)");
    let seen = lab.seen();
    assert_eq!(seen.distinct("PGPORT").len(), 4);
    assert_eq!(seen.distinct("ISOLANE_SCHEMA"), ["shop"]);
    lab.assert_nothing_left();
    let ledger = fs::read(lab.ledger_path()).expect("a ledger");
    assert!(!String::from_utf8_lossy(&ledger).contains("s3cret-word"));
}

#[test]
fn without_any_address_the_names_are_those_that_libpq_takes() {
    let lab = lab().with("USER", "ann");
    let who = "SELECT current_user, current_database(), (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)";
    assert_eq!(psql(&lab, "", who), "ann|ann|t");
    assert_eq!(kept(&lab).len(), 2, "a base, and what is prepared: {:?}", kept(&lab));
    let before = kept(&lab);
    let lab = lab.with("PGSSLMODE", "require").with("PGHOSTADDR", "127.9.9.9");
    assert_eq!(psql(&lab, "", who), "ann|ann|t");
    assert_eq!(kept(&lab), before, "the same again");
    let lab = lab.with("PGUSER", "postgres");
    assert_eq!(psql(&lab, "", who), "postgres|postgres|t");
    lab.assert_nothing_left();
}

#[test]
fn nextest_and_copies_of_a_command_have_servers_too() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.sh("--isolation server -n 2", "psql -qXc 'CREATE TABLE t (id int)' && psql -XAtc 'SELECT 42'")
        .run()
        .assert_code(0)
        .assert_shows("w0 | 42")
        .assert_shows("w1 | 42");
    let body = "let psql = std::process::Command::new(\"psql\").args([\"-qXc\", \"DROP TABLE IF EXISTS t; CREATE TABLE t (id int)\"]).arg(std::env::var(\"DATABASE_URL\").unwrap()).status().unwrap(); assert!(psql.success());";
    lab.cargo("shop", &many_tests(8, "orders", body));
    lab.wrap("--isolation server", "cargo nextest run -j 2").run().assert_code(0).assert_says("8 passed");
    lab.assert_nothing_left();
}

#[test]
fn a_database_that_is_there_is_copied_and_kept_as_long_as_nobody_writes_to_it() {
    let server = Server::own();
    let database = server.database("CREATEROLE");
    let (owner, name) = (&database.login, &database.name);
    server.sql(name, "CREATE EXTENSION citext; CREATE ROLE \"Chief Clerk\" NOLOGIN; CREATE ROLE reader LOGIN");
    server.sql(name, &format!("GRANT \"Chief Clerk\" TO {owner}; ALTER ROLE {owner} SET search_path = sales, public"));
    server.sql(name, &format!("ALTER DATABASE {name} SET work_mem = '5MB'; CREATE SCHEMA sales AUTHORIZATION {owner}"));
    server.sql(name, "GRANT CREATE ON SCHEMA sales TO \"Chief Clerk\"");
    database.sql(
        "CREATE TABLE sales.orders (id serial PRIMARY KEY, who public.citext); INSERT INTO sales.orders (who) VALUES ('Ann'), ('Bob');
         GRANT SELECT ON sales.orders TO reader; CREATE TABLE sales.books (id int); ALTER TABLE sales.books OWNER TO \"Chief Clerk\"",
    );
    let before = (server.snapshot(), database.dump());
    let lab = lab().with("DATABASE_URL", database.url());
    let sql =
        "SELECT current_setting('work_mem'), count(*), min(who), has_table_privilege('reader', 'orders', 'SELECT'),
        (SELECT tableowner FROM pg_tables WHERE tablename = 'books') FROM orders";
    let found = "5MB|2|Ann|t|Chief Clerk";
    assert_eq!(psql(&lab, "", sql), found);
    let again = lab.run("--isolation server", ["psql", "-XAtqc", sql]).run().assert_code(0).assert_shows(found);
    again.assert_says("that an earlier run had made");
    assert_eq!((server.snapshot(), database.dump()), before);
    database.sql("INSERT INTO sales.orders (who) VALUES ('Cem')");
    assert_eq!(psql(&lab, "", sql), found.replace("|2|", "|3|"));
    assert_eq!(psql(&lab, "", "DELETE FROM orders; SELECT count(*) FROM orders"), "0");
    assert_eq!(psql(&lab, "", sql), found.replace("|2|", "|3|"));
    assert_eq!(server.texts(name, "SELECT count(*)::text FROM sales.orders"), ["3"]);
    lab.assert_nothing_left();
}

#[test]
fn setup_runs_once_and_every_server_has_what_it_made() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file("setup.sh", "echo once >>runs; psql -qX -v ON_ERROR_STOP=1 -c 'CREATE TABLE stock (n int)' -c 'INSERT INTO stock VALUES (7)' -c \"ALTER ROLE postgres PASSWORD 'other'\" -c 'CREATE ROLE packer'");
    let run = || lab.isolane("run --isolation server -n 3").arg_all(["--setup", "sh setup.sh", "--"]);
    let sql = "SELECT n, (SELECT count(*) FROM pg_roles WHERE rolname = 'packer') FROM stock";
    let outcome = run().arg_all(["psql", "-XAtc", sql]).run().assert_code(0);
    assert_eq!(outcome.out().matches("7|1").count(), 3, "{}", outcome.all());
    outcome.assert_says("as --setup made it");
    assert_eq!(lab.read("runs"), "once\n");
    lab.file("setup.sh", "psql -qXc 'SELECT wrong'; exit 3");
    run().arg("true").run().assert_code(125).assert_says("exit code 3");
    lab.assert_nothing_left();
}

#[test]
fn what_setup_made_is_kept_until_one_of_its_inputs_changes() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file("schema.sql", "CREATE TABLE stock (n int); INSERT INTO stock VALUES (7)");
    lab.file("isolane.toml", "setup = 'echo once >>runs; psql -qXf schema.sql'\nsetup-input = ['*.sql']");
    let sql = "SELECT n FROM stock";
    assert_eq!([psql(&lab, "", sql), psql(&lab, "", sql)], ["7", "7"]);
    assert_eq!(lab.read("runs"), "once\n");
    lab.file("schema.sql", "CREATE TABLE stock (n int); INSERT INTO stock VALUES (8)");
    let runs: Vec<_> = (0..2).map(|_| lab.run("--isolation server", ["psql", "-XAtqc", sql]).start()).collect();
    for run in runs {
        run.finish().assert_code(0).assert_shows("8");
    }
    assert_eq!(lab.read("runs"), "once\nonce\n");
    lab.assert_nothing_left();
}

#[test]
fn a_crashed_worker_gets_a_new_server_and_the_others_keep_theirs() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file(
        "test_crash.py",
        "
import os, psycopg, pytest
@pytest.mark.parametrize('n', range(8))
def test_makes(n):
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        db.execute('CREATE TABLE IF NOT EXISTS made (n int)')
        if n == 3:
            db.execute('CREATE TABLE left_by_the_dead (n int)')
            os.kill(os.getpid(), 9)
        if os.environ['WORKER_ID'] not in ('gw0', 'gw1'):
            assert db.execute(\"SELECT to_regclass('left_by_the_dead')\").fetchone() == (None,)
",
    );
    pytest(&lab, "", "-n 2").run().assert_code(1);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "7");
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'crashed'"), "1");
    lab.assert_nothing_left();
}

#[test]
fn ctrl_c_reaches_the_tests_and_not_their_servers() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file(
        "test_hang.py",
        "
import os, psycopg, pytest, threading, witness
@pytest.fixture
def db():
    with psycopg.connect(os.environ['DATABASE_URL']) as db:
        yield db
        assert db.execute('SELECT 1').fetchone() == (1,)
        witness.note('still_there')
def test_hangs(db):
    witness.note('hangs0')
    threading.Event().wait()
",
    );
    let mut terminal = pytest(&lab, "", "-p no:xdist").start_on_terminal();
    wait_until("it hangs", || lab.seen().names().contains(&"hangs0"));
    terminal.press_ctrl_c();
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(2), "{screen}");
    assert!(lab.seen().names().contains(&"still_there"), "{screen}");
    lab.assert_nothing_left();
}

#[test]
fn a_run_that_is_killed_while_its_cluster_is_made_leaves_no_shared_memory() {
    let lab = lab().with("DATABASE_URL", AWAY);
    let run = lab.run("--isolation server", ["sleep", "600"]).start();
    // A server that initdb works with has a negative number.
    let made_by_initdb = || {
        let notes = servers(&lab).into_iter().map(|server| fs::read_to_string(server.join("data/postmaster.pid")));
        let its = notes.flatten().find(|note| note.starts_with('-'))?;
        let line = fs::read(format!("/proc/{}/cmdline", its.lines().next()?.trim_start_matches('-'))).ok()?;
        if !String::from_utf8_lossy(&line).contains("--single") {
            return None;
        }
        its.lines().nth(6)?.split_whitespace().nth(1).map(str::to_owned).filter(|number| has_segment(number))
    };
    let mut segment = None;
    wait_until("initdb is at work", || {
        segment = made_by_initdb();
        segment.is_some()
    });
    kill(run.pid(), Signal::SIGKILL).expect("it is there");
    run.finish();
    wait_until("the watchdog has left", || alive_in(lab.home()).is_empty());
    assert!(!has_segment(&segment.expect("a number")));
    lab.assert_nothing_left();
}

#[test]
fn a_killed_run_leaves_no_server_no_folder_and_no_shared_memory() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file("test_hang.py", HANGING).file("isolane.toml", "isolation = \"server\"");
    let hang = || {
        lab.forget_seen();
        let run = pytest(&lab, "", "-n 2").start();
        wait_until("both hang", || ["hangs0", "hangs1"].iter().all(|name| lab.seen().names().contains(name)));
        let segments: Vec<_> = servers(&lab).iter().map(|server| segment(server)).collect();
        assert!(segments.len() >= 2 && segments.iter().all(|number| has_segment(number)), "{segments:?}");
        (run, segments)
    };
    let assert_gone = |segments: &[String]| {
        assert_eq!(servers(&lab), Vec::<PathBuf>::new());
        let left: Vec<_> = segments.iter().filter(|number| has_segment(number)).collect();
        assert!(left.is_empty(), "shared memory is left: {left:?}");
        lab.assert_nothing_left();
    };

    // The watchdog does it.
    let (run, segments) = hang();
    kill(run.pid(), Signal::SIGKILL).expect("it is there");
    run.finish();
    wait_until("the watchdog has left", || alive_in(lab.home()).is_empty());
    assert_eq!(lab.column("SELECT state FROM runs ORDER BY started_at DESC LIMIT 1"), ["swept"]);
    assert_gone(&segments);

    // Isolane and its watchdog are killed, and the servers go on: the next run does it.
    let (run, segments) = hang();
    kill(lab.pid_of("isolane watchdog"), Signal::SIGKILL).expect("it is there");
    kill(run.pid(), Signal::SIGKILL).expect("it is there");
    assert!(alive_in(lab.home()).iter().any(|process| process.contains("postgres")), "servers go on");
    lab.wrap("--isolation none", "true").run().assert_code(0).assert_says("what it left is removed now");
    run.finish();
    assert_gone(&segments);

    // All is killed at once, servers too, which leave their shared memory.
    let (run, segments) = hang();
    lab.lose_machine();
    run.finish();
    assert!(segments.iter().any(|number| has_segment(number)), "nobody has removed it yet");
    lab.isolane("sweep --apply").run().assert_code(0);
    assert_gone(&segments);

    // And the ledger is lost as well.
    let (run, segments) = hang();
    kill(lab.pid_of("isolane watchdog"), Signal::SIGKILL).expect("it is there");
    kill(run.pid(), Signal::SIGKILL).expect("it is there");
    fs::remove_dir_all(lab.path(".isolane")).expect("our own folder");
    lab.isolane("sweep --apply").run().assert_code(0);
    run.finish();
    assert_gone(&segments);
}

#[test]
fn what_is_kept_on_the_users_wish_goes_on_until_the_sweep() {
    let lab = lab().with("DATABASE_URL", AWAY);
    lab.file("isolane.toml", "isolation = \"server\"");
    lab.sh("--keep always", "psql -qXc 'CREATE TABLE made (n int)'; echo $DATABASE_URL >url").run().assert_code(0);
    let looks = lab.program("psql").arg(lab.read("url").trim()).arg_all(["-XAtc", "SELECT count(*) FROM made"]).run();
    looks.assert_code(0).assert_shows("0");
    lab.isolane("sweep --apply").run().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn two_runs_at_once_prepare_one_cluster() {
    let lab = lab().with("DATABASE_URL", AWAY);
    let script = "psql -qXc 'CREATE TABLE t (id int)'";
    let runs: Vec<_> = (0..3).map(|_| lab.sh("--isolation server -n 2", script).start()).collect();
    for run in runs {
        run.finish().assert_code(0);
    }
    assert_eq!(kept(&lab).len(), 2, "{:?}", kept(&lab));
    lab.assert_nothing_left();
}

#[test]
fn an_ordinary_user_has_servers_of_their_own() {
    let lab = lab().with("DATABASE_URL", AWAY);
    if nix::unistd::geteuid().is_root() {
        let owned = Command::new("chown").args(["-R", "nobody"]).arg(lab.home()).status().expect("chown");
        assert!(owned.success());
    }
    let mut command = lab
        .sh("--isolation server -n 2", "psql -XAtc 'SELECT current_user'; ps -o user= -C postgres >who")
        .into_command();
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    Program::new(command).run().assert_code(0).assert_shows("w0 | shop_owner").assert_shows("w1 | shop_owner");
    lab.assert_nothing_left();
}

#[test]
fn what_makes_no_sense_is_refused_in_a_line() {
    let lab = lab();
    lab.sh("--isolation server --database-url sqlite:///x.db", "true")
        .run()
        .assert_code(125)
        .assert_says("--isolation server starts PostgreSQL for each lane");
    let server = Server::shared();
    let database = server.database("");
    let wrong = database.url().replace(&database.password, "wrong");
    lab.sh("--isolation server", "true")
        .env("DATABASE_URL", &wrong)
        .run()
        .assert_code(125)
        .assert_says("refuses the login")
        .assert_says("--setup makes the state without it");
    // Setup asks nothing of it.
    lab.isolane("run --isolation server --setup true -- true").env("DATABASE_URL", &wrong).run().assert_code(0);
    let missing = database.url().replace(&database.name, "not_there");
    lab.sh("--isolation server", "psql -XAtc 'SELECT current_database()'")
        .env("DATABASE_URL", missing)
        .run()
        .assert_code(0)
        .assert_shows("not_there")
        .assert_says("the server has no database not_there");
    lab.isolane("doctor --isolation server").run().assert_code(0).assert_shows("for --isolation server");
    lab.assert_nothing_left();
}
