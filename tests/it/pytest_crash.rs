//! Workers of pytest that die.

use crate::lab::{Lab, Server, is_alive};

/// One test kills its worker in the middle; the others wait until its replacement works.
const CRASH: &str = "
import os, pytest, sqlite3, witness
connection = None
@pytest.fixture
def users():
    db = sqlite3.connect(os.environ['ISOLANE_SCHEMA'])
    db.execute('CREATE TABLE IF NOT EXISTS users (email TEXT UNIQUE)')
    yield db
    db.close()
def test_crash(users):
    users.execute(\"INSERT INTO users VALUES ('a@example.com')\")
    users.commit()
    witness.meet(4)
    witness.note('crashed')
    os.kill(os.getpid(), 9)
@pytest.mark.parametrize('n', range(40))
def test_other(users, n):
    witness.meet(4)
    if os.environ['WORKER_ID'] == 'gw4':
        witness.note('replacement', ROWS=str(users.execute('SELECT count(*) FROM users').fetchone()[0]))
    witness.wait(lambda: os.path.exists(witness.place('replacement')), 'the replacement works')
";

#[test]
fn a_worker_that_dies_is_replaced_in_a_clean_lane_and_the_others_go_on() {
    let lab = Lab::new();
    lab.file("test_crash.py", CRASH);
    lab.pytest("-n 4").run().assert_code(1).assert_says("crashed");
    let seen = lab.seen();
    assert_eq!(seen.get("replacement", "WORKER_ID"), "gw4");
    assert_eq!(seen.get("replacement", "ROWS"), "0", "the dead worker's rows are not there");
    let lane: u32 = seen.get("replacement", "ISOLANE_LANE").parse().expect("a number");
    assert!(lane < 4 || seen.get("crashed", "ISOLANE_LANE") != lane.to_string(), "lane {lane}");

    let crashed = seen.get("crashed", "WORKER_ID");
    let worker = lab.ledger("SELECT worker_id, pid FROM workers WHERE outcome = 'crashed'");
    assert_eq!(worker, [[crashed, seen.get("crashed", "PID")]]);
    let test = lab.ledger("SELECT test_id, worker_id FROM tests WHERE outcome = 'crashed'");
    assert_eq!(test, [["test_crash.py::test_crash", crashed]]);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "40");
    assert_eq!(lab.value("SELECT count(*) FROM workers WHERE outcome = 'ok'"), "4");
    lab.assert_nothing_left();
}

#[test]
fn lanes_stay_dense_when_many_workers_die() {
    let lab = Lab::new();
    lab.file(
        "test_crashes.py",
        "
import os, pytest, witness
@pytest.mark.parametrize('n', range(12))
def test_crashes_often(n):
    witness.note(f\"{os.environ['WORKER_ID']}-{n}\")
    # The first four processes die in their first tests, so that others are needed for the rest.
    for death in range(4):
        try: open(f'death{death}', 'x')
        except FileExistsError: continue
        os.kill(os.getpid(), 9)
",
    );
    lab.pytest("-n 2").run().assert_code(1);
    let seen = lab.seen();
    assert!(seen.distinct("WORKER_ID").len() > 4, "{:?}", seen.names());
    assert_eq!(seen.distinct("ISOLANE_LANE"), ["0", "1"]);
    assert_eq!(lab.value("SELECT count(*) FROM workers WHERE outcome = 'crashed'"), "4");
    lab.assert_nothing_left();
}

#[test]
fn an_open_transaction_of_a_dead_worker_does_not_hold_its_lane() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    database.sql("CREATE TABLE users (email text UNIQUE)");
    let suite = "
import os, pytest, psycopg, threading, witness
def test_dies_inside_a_query():
    db = psycopg.connect(os.environ['DATABASE_URL'])
    db.execute(\"INSERT INTO users VALUES ('a@example.com')\")
    other = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True)
    def die():
        busy = \"SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep(600)'\"
        witness.wait(lambda: other.execute(busy, [db.info.backend_pid]).fetchone()[0], 'the server is busy')
        os.kill(os.getpid(), 9)
    threading.Thread(target=die).start()
    db.execute('SELECT pg_sleep(600)')
@pytest.mark.parametrize('n', range(8))
def test_goes_on(n):
    with psycopg.connect(os.environ['DATABASE_URL']) as db:
        db.execute(\"INSERT INTO users VALUES ('a@example.com')\")
        db.execute('DELETE FROM users')
";
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        lab.file("test_open.py", suite);
        let command = "pytest -q -p no:cacheprovider -n 2";
        lab.wrap(&format!("--isolation {isolation}"), command).run().assert_code(1);
        assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "8", "{isolation}");
        assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'crashed'"), "1", "{isolation}");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn workers_do_not_outlive_a_killed_pytest() {
    let lab = Lab::new();
    let suite = |signal: u32| {
        format!(
            "
import os, pytest, threading, witness
def test_kills_the_controller():
    witness.meet(2)
    witness.note('killer')
    os.kill(os.getppid(), {signal})
    threading.Event().wait()
def test_hangs():
    witness.note('other')
    witness.meet(2)
    threading.Event().wait()
"
        )
    };
    for (signal, code) in [(9, 137), (15, 143)] {
        lab.file("test_kill.py", &suite(signal));
        lab.pytest("-n 2").run().assert_code(code);
        for pid in lab.seen().all("PID") {
            assert!(!is_alive(pid.parse().expect("a pid")), "{pid} lives on");
        }
        lab.assert_nothing_left();
        lab.forget_seen();
    }
    assert_eq!(lab.column("SELECT DISTINCT outcome FROM workers"), ["killed"]);
}

#[test]
fn what_a_fixture_writes_at_the_very_end_still_finds_its_database() {
    let lab = Lab::new();
    lab.file(
        "conftest.py",
        "
import os, pytest, sqlite3
@pytest.fixture(scope='session', autouse=True)
def closes_late():
    db = sqlite3.connect(os.environ['ISOLANE_SCHEMA'])
    db.execute('CREATE TABLE log (line TEXT)')
    yield
    db.execute(\"INSERT INTO log VALUES ('end')\")
    db.commit()
    assert os.path.exists(os.environ['ISOLANE_SCHEMA'])
def pytest_sessionfinish():
    assert os.path.isdir(os.environ['ISOLANE_DIR'])
def pytest_unconfigure():
    assert os.path.exists(os.environ['ISOLANE_SCHEMA'])
",
    );
    lab.file("test_late.py", "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_late(n): pass\n");
    lab.pytest("-n 2").run().assert_code(0);
    lab.pytest("-p no:xdist").run().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn what_tests_leave_running_is_stopped_even_where_titles_hide_it() {
    let lab = Lab::new();
    lab.file(
        "test_daemon.py",
        "
import os, setproctitle, subprocess, sys, witness
def test_leaves_a_daemon():
    code = 'import setproctitle, time, os, sys; setproctitle.setproctitle(\"something else\"); '
    code += 'open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(600)'
    subprocess.Popen([sys.executable, '-c', code, os.path.abspath('daemon')], cwd='/', start_new_session=True)
    witness.wait(lambda: os.path.exists('daemon') and os.path.getsize('daemon') > 0, 'it runs')
",
    );
    lab.pytest("-n 2").run().assert_code(0);
    let pid = lab.read("daemon").parse().expect("a pid");
    assert!(!is_alive(pid), "the daemon {pid} lives on");
    lab.assert_nothing_left();
}
