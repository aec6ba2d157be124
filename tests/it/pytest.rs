//! The plugin inside pytest: what the ledger learns, the fixture, and pytest's own ways.

use crate::lab::{Lab, no_rows};

const OUTCOMES: &str = "
import pytest, unittest
def test_passes(): pass
def test_fails(): assert 1 == 2, 'the sum is wrong'
def test_skips(): pytest.skip('not today')
@pytest.mark.xfail
def test_fails_as_expected(): assert False
@pytest.mark.xfail
def test_passes_unexpectedly(): pass
@pytest.fixture
def broken(): raise RuntimeError('no table')
def test_cannot_start(broken): pass
@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError('no way back')
def test_cannot_end(breaks_later): pass
class TestShop:
    @pytest.mark.parametrize('what', ['a b', 'ü', '[x]'])
    def test_buys(self, what): pass
class Old(unittest.TestCase):
    def test_old(self): pass
";

#[test]
fn the_ledger_has_every_test_with_its_outcome() {
    let lab = Lab::new();
    lab.file("tests/test_shop.py", OUTCOMES);
    for args in ["-n 2", "-p no:xdist"] {
        lab.pytest(args).run().assert_code(1);
        let newest = "run_id = (SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1)";
        let tests = lab.ledger(&format!("SELECT test_id, outcome, attempt FROM tests WHERE {newest} ORDER BY test_id"));
        let tests: Vec<_> = tests.iter().map(|row| row.join(" ")).collect();
        assert_eq!(
            tests,
            [
                "tests/test_shop.py::Old::test_old passed 1",
                "tests/test_shop.py::TestShop::test_buys[[x]] passed 1",
                "tests/test_shop.py::TestShop::test_buys[\\xfc] passed 1",
                "tests/test_shop.py::TestShop::test_buys[a b] passed 1",
                "tests/test_shop.py::test_cannot_end error 1",
                "tests/test_shop.py::test_cannot_start error 1",
                "tests/test_shop.py::test_fails failed 1",
                "tests/test_shop.py::test_fails_as_expected xfailed 1",
                "tests/test_shop.py::test_passes passed 1",
                "tests/test_shop.py::test_passes_unexpectedly xpassed 1",
                "tests/test_shop.py::test_skips skipped 1",
            ],
            "{args}"
        );
        let message = format!("SELECT message FROM tests WHERE {newest} AND test_id LIKE '%test_fails'");
        assert!(lab.value(&message).contains("the sum is wrong"), "{}", lab.value(&message));
    }
    let unfinished = "SELECT * FROM tests WHERE started_at IS NULL OR ended_at IS NULL OR ended_at < started_at";
    assert_eq!(lab.ledger(unfinished), no_rows());
    lab.assert_nothing_left();
}

#[test]
fn tests_of_all_workers_add_up() {
    let lab = Lab::new();
    lab.file("test_many.py", "import pytest\n@pytest.mark.parametrize('n', range(60))\ndef test_one(n): pass\n");
    lab.pytest("-n 3").run().assert_code(0).assert_says("60 passed");
    let outcome = lab.program("isolane").arg("query").arg("select worker_id, count(*) from tests group by 1").run();
    let outcome = outcome.assert_code(0);
    let counted = lab.ledger("SELECT worker_id, count(*) FROM tests GROUP BY 1 ORDER BY 1");
    assert_eq!(counted.iter().map(|row| row[1].parse::<u32>().expect("a number")).sum::<u32>(), 60);
    for row in counted {
        let line = outcome.out().lines().find(|line| line.contains(&row[0])).map(str::to_owned);
        assert!(line.is_some_and(|line| line.contains(&row[1])), "{row:?}\n{}", outcome.all());
    }
}

#[test]
fn every_way_to_divide_tests_works() {
    let lab = Lab::new();
    lab.file("test_ways.py", "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test_one(n): pass\n");
    let ways = ["load", "loadscope", "loadfile", "loadgroup", "worksteal"];
    for way in ways {
        lab.pytest(&format!("-n 2 --dist {way}")).run().assert_code(0).assert_says("6 passed");
    }
    // Here every worker runs every test.
    lab.pytest("-n 2 --dist each").run().assert_code(0).assert_says("12 passed");
    lab.wrap("", "pytest -q -n auto").run().assert_code(0).assert_says("6 passed");
    lab.assert_nothing_left();
}

#[test]
fn the_number_of_workers_may_come_from_settings() {
    let lab = Lab::new();
    lab.file("pytest.ini", "[pytest]\naddopts = -n 2\n");
    lab.file(
        "test_two.py",
        "
import os, pytest, witness
@pytest.mark.parametrize('n', range(4))
def test_meets(n):
    witness.meet(2)
    witness.note(os.environ['WORKER_ID'])
",
    );
    lab.pytest("").run().assert_code(0);
    let seen = lab.seen();
    assert_eq!(seen.names(), ["gw0", "gw1"]);
    assert_eq!(seen.distinct("DATABASE_URL").len(), 2);
    lab.pytest("").env("PYTEST_ADDOPTS", "-n 2 -v").run().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn ids_in_the_ledger_can_be_given_to_pytest_again() {
    // Up to pytest 9.1, xdist adds the group to the id.
    let lab = Lab::new().python("pytest8");
    lab.file(
        "test_groups.py",
        "
import pytest
@pytest.mark.xdist_group('db')
@pytest.mark.parametrize('n', range(3))
def test_grouped(n): pass
",
    );
    lab.pytest("-n 2 --dist loadgroup").run().assert_code(0);
    let ids = lab.column("SELECT test_id FROM tests ORDER BY test_id");
    assert_eq!(ids.len(), 3);
    lab.program("pytest").arg("-q").arg_all(&ids).run().assert_code(0).assert_shows("3 passed");
    assert_eq!(lab.column("SELECT DISTINCT worker_id FROM tests").len(), 1, "the group stays together");
}

#[test]
fn older_pytest_and_xdist_work_too() {
    let lab = Lab::new().python("pytest8");
    lab.file(
        "test_meets.py",
        "
import os, pytest, witness
@pytest.mark.parametrize('n', range(8))
def test_meets(n, isolane):
    witness.meet(3)
    witness.note(isolane.worker_id)
",
    );
    lab.pytest("-n 3").run().assert_code(0).assert_says("8 passed");
    assert_eq!(lab.seen().names(), ["gw0", "gw1", "gw2"]);
    assert_eq!(lab.seen().distinct("DATABASE_URL").len(), 3);
    lab.assert_nothing_left();
}

#[test]
fn attempts_of_one_test_are_told_apart() {
    let lab = Lab::new().python("plugins");
    lab.file(
        "test_flaky.py",
        "
import os
def test_flaky():
    seen = os.path.join(os.environ['SEEN'], 'attempts')
    with open(seen, 'a') as file: file.write('x')
    assert os.path.getsize(seen) == 3
def test_steady(): pass
",
    );
    lab.pytest("-n 2 --reruns 4").run().assert_code(0);
    let attempts = lab.ledger("SELECT attempt, outcome FROM tests WHERE test_id LIKE '%test_flaky' ORDER BY attempt");
    assert_eq!(attempts, [["1", "failed"], ["2", "failed"], ["3", "passed"]]);
    assert_eq!(lab.column("SELECT attempt FROM tests WHERE test_id LIKE '%test_steady'"), ["1"]);
    lab.assert_nothing_left();
}

#[test]
fn the_fixture_tells_the_identity_and_records_outside_things() {
    let lab = Lab::new();
    lab.file(
        "test_fixture.py",
        "
import os
def test_identity(isolane):
    assert isolane.run_id == os.environ['ISOLANE_RUN_ID']
    assert isolane.worker_id == os.environ['WORKER_ID']
    assert isolane.prefix == os.environ['ISOLANE_PREFIX']
    assert isolane.schema == os.environ['ISOLANE_SCHEMA']
    assert isolane.database_url == os.environ['DATABASE_URL']
def test_records(isolane):
    isolane.record('bucket', isolane.prefix + '-photos')
    isolane.record('customer', 17)
",
    );
    lab.pytest("-n 2").run().assert_code(0);
    let prefix = lab.value("SELECT 'i' || tag || 'w' FROM runs");
    let records = lab.ledger("SELECT kind, key, source, test_id FROM records ORDER BY kind");
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!((records[0][0].as_str(), records[0][2].as_str()), ("bucket", "api"));
    assert!(records[0][1].contains(&prefix) && records[0][1].contains("-photos"), "{records:?}");
    assert_eq!(records[0][3], "test_fixture.py::test_records");
    assert_eq!(records[1][0], "customer");
    assert!(records[1][1].contains("17"), "{records:?}");
    lab.assert_nothing_left();
}

#[test]
fn codes_of_pytest_itself_come_through() {
    let lab = Lab::new();
    lab.file("test_none.py", "");
    lab.pytest("").run().assert_code(5);
    lab.pytest("-n 2").run().assert_code(5);
    lab.pytest("--no-such-option").run().assert_code(4);
    lab.file("test_broken.py", "import no_such_module\n");
    lab.pytest("-n 2").run().assert_code(1);
    lab.pytest("").run().assert_code(2);
    lab.assert_nothing_left();
}

#[test]
fn a_test_that_fails_over_a_file_or_port_of_everybody_is_told_from_a_database() {
    let lab = Lab::new();
    lab.file(
        "test_shared.py",
        "
import os, socket
def test_file(): os.mkdir('there')
def test_port():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        socket.create_server(taken.getsockname())
def test_file_again(): os.mkdir('there')
",
    );
    lab.file("there/README", "");
    lab.pytest("-n 2")
        .run()
        .assert_code(1)
        .assert_says("2 tests failed over a file that was there already")
        .assert_says("ISOLANE_DIR is their own")
        .assert_says("1 test failed over a port in use, not over the database (test_shared.py::test_port)");
    lab.pytest("-p no:xdist").run().assert_code(1).assert_does_not_say("over a");
}

#[test]
fn what_a_test_does_to_the_clock_and_to_sockets_is_its_own_business() {
    let lab = Lab::new();
    lab.file(
        "test_clock.py",
        "
import pytest, socket, time
from unittest import mock
@pytest.fixture(scope='module')
def clock():
    with mock.patch('time.time', side_effect=[100.0, 101.0]), mock.patch('socket.socket', side_effect=OSError):
        yield
def test_a(clock): assert time.time() == 100.0
def test_b(clock): assert time.time() == 101.0
",
    );
    lab.pytest("-p no:xdist").run().assert_code(0);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed' AND ended_at > '2020'"), "2");
}

#[test]
fn a_test_that_did_not_come_to_its_end_has_no_outcome() {
    let lab = Lab::new();
    lab.file("test_stop.py", "def test_a(): pass\ndef test_b(): raise KeyboardInterrupt\n");
    lab.pytest("-p no:xdist").run().assert_code(2);
    let tests = lab.ledger("SELECT test_id, coalesce(outcome, 'nobody can tell') FROM tests ORDER BY 1");
    assert_eq!(tests, [["test_stop.py::test_a", "passed"], ["test_stop.py::test_b", "nobody can tell"]]);
}

#[test]
fn messages_of_any_length_and_with_no_characters_lose_no_test() {
    let lab = Lab::new();
    lab.file(
        "test_odd.py",
        "
import os
def test_bytes(): raise Exception(os.fsdecode(b'caf\\xe9'))
def test_long(): raise Exception('x' * 2_000_000)
def test_after(): pass
",
    );
    lab.pytest("-p no:xdist").run().assert_code(1).assert_does_not_say("could not be read");
    let tests = lab.ledger("SELECT outcome, length(message) BETWEEN 1 AND 4000 FROM tests ORDER BY test_id");
    assert_eq!(tests, [["passed", "NULL"], ["failed", "1"], ["failed", "1"]]);
}
