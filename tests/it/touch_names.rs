//! Whose a write was: the worker by its session, the test by the time.

use crate::lab::{Database, Lab, Server};
use crate::shared_rows::{lab, play};

const TABLE: &str = "CREATE TABLE t (id serial PRIMARY KEY, what text UNIQUE)";

const SUITE: &str = "
import os, psycopg, pytest, threading, time

def write(what):
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        db.execute('INSERT INTO t (what) VALUES (%s)', [what + ' ' + os.environ['WORKER_ID']])

@pytest.fixture(scope='session', autouse=True)
def whole():
    write('session setup')
    yield
    write('session teardown')

@pytest.fixture(scope='module')
def part():
    write('module setup')
    yield
    write('module teardown')

@pytest.fixture
def one():
    write('test setup')
    yield
    write('test teardown')

class TestClass:
    @pytest.fixture(scope='class', autouse=True)
    def of_class(self):
        write('class setup')
        yield
        write('class teardown')

    def test_in_class(self, part):
        write('in class')

def test_alone(one):
    write('test call')

def test_rolls_back():
    with psycopg.connect(os.environ['DATABASE_URL']) as db:
        db.execute(\"INSERT INTO t (what) VALUES ('never')\")
        db.rollback()

def test_late():
    threading.Thread(target=lambda: (time.sleep(0.5), write('late'))).start()
";

const STORY: &str = "SELECT coalesce(test_id, 'nothing'), key, kind, worker_id, op FROM touches ORDER BY at";

/// What was written and in which test, by the ids that the rows had.
fn whose(lab: &Lab, written: &[String]) -> Vec<String> {
    let rows = lab.ledger(STORY);
    let of = |what: &String| {
        let (id, what) = what.split_once('|').expect("id|what");
        let row = rows.iter().find(|row| row[1] == format!("{{\"id\":{id}}}"));
        let row = row.unwrap_or_else(|| panic!("{what} is not among {rows:#?}"));
        assert!(what.ends_with(&row[3]), "{what}: {row:?}");
        format!("{}: {}", what.rsplit_once(' ').expect("a worker").0, row[0])
    };
    written.iter().map(of).collect()
}

/// What the suite writes, read by a session of its own at the end.
const READ: &str = "
def pytest_sessionfinish(session):
    import os, psycopg, threading
    [thread.join() for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if os.environ['WORKER_ID'] == 'gw0' or not hasattr(session.config, 'workerinput'):
        with psycopg.connect(os.environ['DATABASE_URL']) as db, open(os.environ['SEEN'] + '/../written', 'w') as file:
            rows = db.execute('SELECT id, what FROM t ORDER BY id').fetchall()
            if rows:
                file.write(''.join(f'{id}|{what}\\n' for id, what in rows))
";

fn expected() -> Vec<&'static str> {
    vec![
        "session setup: session fixture whole",
        "module setup: module fixture part of test_names.py",
        "class setup: class fixture of_class of test_names.py::TestClass",
        "in class: test_names.py::TestClass::test_in_class",
        "class teardown: class fixture of_class of test_names.py::TestClass",
        "test setup: test_names.py::test_alone",
        "test call: test_names.py::test_alone",
        "test teardown: test_names.py::test_alone",
        "late: test_names.py::test_late",
        "module teardown: module fixture part of test_names.py",
        "session teardown: session fixture whole",
    ]
}

fn assert_story(database: &Database, options: &str, kind: &str) {
    let lab = Lab::on(database);
    lab.file("test_names.py", SUITE).file("conftest.py", READ);
    lab.wrap(options, "pytest -q -p no:cacheprovider -p no:xdist").run().assert_code(0);
    let written = std::fs::read_to_string(lab.path("../written")).expect("it was written down");
    let written: Vec<_> = written.lines().map(str::to_owned).collect();
    let never = written.iter().position(|line| line.contains("never"));
    assert_eq!(never, None);
    let mut whose = whose(&lab, &written);
    whose.sort();
    let mut expected = expected();
    expected.sort_unstable();
    assert_eq!(whose, expected, "{options}");
    assert_eq!(lab.column("SELECT DISTINCT kind FROM touches"), [kind], "{options}");
    let late = "SELECT test_id FROM records r JOIN tests t USING (run_id, test_id) WHERE r.created_at > t.ended_at";
    assert_eq!(lab.column(late), ["test_names.py::test_late"], "{options}");
    assert_eq!(lab.column("SELECT DISTINCT state || ' ' || source FROM records"), ["removed trigger"], "{options}");
    database.assert_nothing_left(&lab);
}

#[test]
fn fixtures_tests_setup_and_teardown_are_told_apart_wherever_lanes_are() {
    let server = Server::own();
    for (rights, isolation) in [
        ("CREATEROLE", "shared"),
        ("", "shared"),
        ("CREATEDB", "database"),
        ("CREATEDB", "database --setup ./migrate"),
        ("CREATEROLE", "schema"),
    ] {
        let database = server.database(rights);
        if isolation.contains("setup") {
            let lab = Lab::on(&database);
            lab.script("migrate", &format!("#!/bin/sh\nexec psql -Xqc '{TABLE}'\n"));
            lab.file("test_names.py", SUITE).file("conftest.py", READ);
            lab.wrap(&format!("--isolation {isolation}"), "pytest -q -p no:cacheprovider -p no:xdist")
                .run()
                .assert_code(0);
            assert_eq!(lab.value("SELECT count(*) FROM records WHERE kind = 'public.t' AND state = 'removed'"), "11");
            continue;
        }
        database.sql(TABLE);
        assert_story(&database, &format!("--isolation {isolation}"), "public.t");
    }
}

#[test]
fn a_login_of_seventeen_without_and_with_roles_is_attributed() {
    let server = Server::of_version(17);
    for rights in ["CREATEROLE", "SUPERUSER", ""] {
        let database = server.database(rights);
        database.sql(TABLE);
        let lab = Lab::on(&database).postgres(17);
        let outcome = lab
            .run("--isolation shared -n 2", ["sh", "-c", "psql -Xqc \"INSERT INTO t (what) VALUES ('$WORKER_ID')\""]);
        let outcome = outcome.run().assert_code(0).assert_does_not_say("could not");
        assert_eq!(
            outcome.all().contains("told apart by application_name"),
            rights != "SUPERUSER",
            "{}",
            outcome.all()
        );
        assert_eq!(lab.column("SELECT worker_id || state FROM records ORDER BY 1"), ["w0removed", "w1removed"]);
        lab.assert_nothing_left();
        assert!(server.marked(&lab.tag(), &database.name).is_empty());
    }
}

#[test]
fn a_server_under_test_is_known_by_its_name_or_by_the_prefix_and_others_are_not() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(TABLE);
    let lab = lab(&database);
    let script = r#"
PGAPPNAME=$ISOLANE_SCHEMA psql -XAtqc "INSERT INTO t (what) VALUES ('named')" "$OTHER"
other "INSERT INTO t (what) VALUES ('https://$ISOLANE_PREFIX.example.com/')"
other "INSERT INTO t (what) VALUES ('theirs')"
other "UPDATE t SET what = what || '!' WHERE what = 'theirs'"
"#;
    play(&lab, "-n 1", script).assert_code(0);
    let rows = "SELECT coalesce(worker_id, '-') || ' ' || op FROM touch LEFT JOIN worker USING (worker) ORDER BY at";
    assert_eq!(lab.column(rows), ["w0 insert", "w0 insert", "- insert", "- update"]);
    assert_eq!(lab.column("SELECT source FROM records ORDER BY 1"), ["prefix", "trigger"]);
    assert_eq!(database.server.texts(&database.name, "SELECT what FROM t"), ["theirs!"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_lane_that_is_made_again_after_a_crash_is_watched_again() {
    for isolation in ["database", "schema", "shared"] {
        let database = Server::shared().database("CREATEDB CREATEROLE");
        database.sql(TABLE);
        let lab = Lab::on(&database);
        lab.file(
            "test_crash.py",
            "
import os, psycopg, pytest
@pytest.mark.parametrize('n', range(6))
def test_writes(n):
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        db.execute('INSERT INTO t (what) VALUES (%s)', [str(n)])
    if n == 1:
        os.abort()
",
        );
        let outcome =
            lab.wrap(&format!("--isolation {isolation}"), "pytest -q -n 1 -p no:cacheprovider").run().assert_code(1);
        outcome.assert_does_not_say("not watched");
        let tests = lab.column("SELECT test_id || ' ' || state FROM records ORDER BY 1");
        // What a crash leaves in a lane's own database goes with it.
        let expected: Vec<_> = (0..6).map(|n| format!("test_crash.py::test_writes[{n}] removed")).collect();
        assert_eq!(tests, expected, "{isolation}");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_session_that_calls_itself_otherwise_is_the_lanes_in_whose_schema_it_works() {
    // Lanes without roles: they have one login for all.
    let database = Server::shared().database("");
    database.sql(TABLE);
    let lab = Lab::on(&database);
    let script = "psql -XAtq -v ON_ERROR_STOP=1 -c \"INSERT INTO t (what) VALUES ('x')\" \"$DATABASE_URL&application_name=mine\"";
    lab.sh("-n 2", script).run().assert_code(0);
    assert_eq!(lab.column("SELECT worker_id FROM touches ORDER BY 1"), ["w0", "w1"]);
    database.assert_nothing_left(&lab);
}
