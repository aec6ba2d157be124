//! Leased rows that only their holders may write to.

use nix::sys::signal::Signal;

use crate::lab::{Database, Lab, Server, wait_until};

const USERS: &str = "CREATE TABLE test_users (id int PRIMARY KEY, name text);
    INSERT INTO test_users VALUES (1, 'ann'), (2, 'bob')";

fn lab(database: &Database<'_>, guard: &str) -> Lab {
    let lab = Lab::on(database).with("ADMIN", database.server.admin_url(&database.name));
    lab.file("isolane.toml", &format!("[pool.users]\ntable = \"test_users\"\nguard = \"{guard}\"\n"));
    lab
}

/// What a test writes with: its own lane's login, or somebody else's at a shell.
const HELP: &str = "
import os, subprocess, time, pytest
def write(url, sql):
    return subprocess.run(['psql', '-qX', '-v', 'ON_ERROR_STOP=1', url, '-c', sql], capture_output=True, text=True)
OWN, ADMIN = os.environ['DATABASE_URL'], os.environ['ADMIN']
def until(name):
    deadline = time.monotonic() + 50
    while not os.path.exists(name):
        assert time.monotonic() < deadline, name
        time.sleep(0.01)
";

fn triggers(database: &Database<'_>) -> Vec<String> {
    database.server.texts(&database.name, "SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'isolane%'")
}

#[test]
fn a_write_by_another_is_refused_and_names_the_holder_and_its_test() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(USERS);
    let lab = lab(&database, "refuse");
    lab.file("help.py", HELP);
    lab.file(
        "test_it.py",
        "from help import *
UPDATE = \"UPDATE test_users SET name = 'x' WHERE id = 1\"
def test_holder(isolane):
    with isolane.lease('users', id=1) as lease:
        assert lease['name'] == 'ann'
        mine = write(OWN, \"UPDATE test_users SET name = 'mine' WHERE id = 1\")
        assert mine.returncode == 0, mine.stderr
        open('held', 'w').close()
        until('refused')
        replica = 'SET session_replication_role = replica; '
        for sql in (UPDATE, replica + UPDATE, 'DELETE FROM test_users WHERE id = 1', 'TRUNCATE test_users', 'UPDATE test_users SET id = 9 WHERE id = 1'):
            other = write(ADMIN, sql)
            assert other.returncode != 0 and 'test_users id=1 is leased by test_it.py::test_holder (gw' in other.stderr, (sql, other)
            assert lease.id in other.stderr
        free = write(ADMIN, \"UPDATE test_users SET name = 'free' WHERE id = 2\")
        assert free.returncode == 0, free.stderr
    deadline = time.monotonic() + 30
    while write(ADMIN, UPDATE).returncode != 0:
        assert time.monotonic() < deadline
def test_other():
    until('held')
    other = write(OWN, UPDATE)
    assert other.returncode != 0 and 'is leased by test_it.py::test_holder (gw' in other.stderr, other
    open('refused', 'w').close()
",
    );
    lab.wrap("--isolation shared", "pytest -q -n 2 -p no:cacheprovider").run().assert_code(0).assert_shows("2 passed");
    assert_eq!(triggers(&database), [""; 0]);
    let names = "SELECT name FROM test_users ORDER BY id";
    assert_eq!(database.server.texts(&database.name, names), ["x", "free"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn one_that_only_notes_warns_and_lets_write() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(USERS);
    let lab = lab(&database, "note");
    lab.file("help.py", HELP);
    lab.file(
        "test_it.py",
        "from help import *
def test_it(isolane):
    with isolane.lease('users', id=1):
        other = write(ADMIN, \"UPDATE test_users SET name = 'x' WHERE id = 1\")
        assert other.returncode == 0 and 'WARNING:  test_users id=1 is leased by test_it.py::test_it' in other.stderr, other
        mine = write(OWN, \"UPDATE test_users SET name = 'y' WHERE id = 1\")
        assert mine.returncode == 0 and 'WARNING' not in mine.stderr, mine
",
    );
    lab.wrap("--isolation shared", "pytest -q -n 0 -p no:cacheprovider").run().assert_code(0).assert_shows("1 passed");
    assert_eq!(triggers(&database), [""; 0]);
}

#[test]
fn the_guard_goes_with_its_run_however_that_ends() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(USERS);
    let lab = lab(&database, "refuse");
    let running = lab.sh("--isolation shared", "isolane lease acquire users users > got; exec sleep 600").start();
    wait_until("it has its lease", || std::fs::read_to_string(lab.path("got")).is_ok_and(|text| text.contains("held")));
    assert_eq!(triggers(&database).iter().filter(|name| name.contains("_guard")).count(), 2);
    let update = "UPDATE test_users SET name = 'x' RETURNING name";
    let refused = database.client().query(update, &[]).expect_err("it is leased");
    assert!(refused.as_db_error().is_some_and(|error| error.message().contains("is leased by w0")), "{refused:?}");
    running.signal(Signal::SIGKILL);
    wait_until("the watchdog has cleaned", || triggers(&database).is_empty());
    assert_eq!(database.server.texts(&database.name, update), ["x", "x"]);
    drop(running);
}

#[test]
fn where_no_guard_can_stand_it_is_said() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    database.sql(USERS);
    let lab = lab(&database, "refuse");
    lab.run("", ["true"]).run().assert_code(125).assert_says("pool users: `guard` is for tables that workers share");
    lab.file("isolane.toml", "[pool.users]\ntable = \"no_users\"\nguard = \"refuse\"\n");
    lab.run("--isolation shared", ["true"]).run().assert_code(125).assert_says("no_users");
    database.assert_nothing_left(&lab);
}
