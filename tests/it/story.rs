//! Who touched which row, as a failing test, the summary and the commands tell it.

use serde_json::Value;

use crate::lab::{Database, Lab, Outcome, Server};

const CONFTEST: &str = "
import os, pathlib, time, psycopg, pytest

@pytest.fixture
def db():
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as connection:
        yield connection

@pytest.fixture
def step():
    def reached(name):
        (pathlib.Path(os.environ['SEEN']) / name).touch()
    def wait_for(name):
        while not (pathlib.Path(os.environ['SEEN']) / name).exists():
            time.sleep(0.005)
    return reached, wait_for
";

/// Two files, a worker each.
fn lab<'a>(schema: &str, first: &str, second: &str) -> (Lab, Database<'a>) {
    let database = Server::shared().database("SUPERUSER");
    database.sql(schema);
    let lab = Lab::on(&database);
    lab.file("conftest.py", CONFTEST).file("test_a.py", first).file("test_b.py", second);
    (lab, database)
}

fn run(lab: &Lab, options: &str) -> Outcome {
    lab.wrap(&format!("--isolation shared {options}"), "pytest -n 2 --dist loadfile -q -p no:cacheprovider").run()
}

const ORDERS: &str = "CREATE TABLE orders (id bigserial PRIMARY KEY, customer text);
    INSERT INTO orders (customer) SELECT 'theirs' FROM generate_series(1, 9)";
const MAKES: &str = "
def test_ship(db, step):
    reached, wait_for = step
    db.execute(\"INSERT INTO orders (customer) VALUES ('testuser_001')\")
    reached('made')
    wait_for('deleted')
    found = db.execute(\"SELECT count(*) FROM orders WHERE customer = 'testuser_001'\").fetchone()[0]
    assert found == 1, 'order not found'
";
const DELETES: &str = "
def test_tidy_up(db, step):
    reached, wait_for = step
    wait_for('made')
    db.execute(\"DELETE FROM orders WHERE customer LIKE 'testuser_%'\")
    reached('deleted')
";

#[test]
fn a_failing_test_says_who_took_its_row_and_how_to_run_both_again() {
    let (lab, database) = lab(ORDERS, MAKES, DELETES);
    let outcome = run(&lab, "").assert_code(1);
    let out = outcome.out();
    for part in [
        "- isolane -",
        "public.orders {\"id\":10}",
        "inserted by this test at ",
        "deleted by test_b.py::test_tidy_up (gw",
        "while this test was running",
        "isolane run --isolation shared -- pytest -n 2 test_a.py::test_ship test_b.py::test_tidy_up",
    ] {
        assert!(out.contains(part), "{part}\n{}", outcome.all());
    }
    let outcome = outcome.assert_says("clobber: public.orders {\"id\":10} of test_a.py::test_ship");
    assert!(outcome.said().len() <= 10, "{}", outcome.all());
    // What it proposes works, and tells the same.
    lab.forget_seen();
    let again = lab.wrap("--isolation shared", "pytest -n 2 test_a.py::test_ship test_b.py::test_tidy_up").run();
    assert!(again.assert_code(1).out().contains("deleted by test_b.py::test_tidy_up"));
    assert_eq!(database.client().query_one("SELECT count(*) FROM orders", &[]).expect("rows").get::<_, i64>(0), 9);
    database.assert_nothing_left(&lab);
}

#[test]
fn the_commands_tell_the_same_afterwards() {
    let (lab, _database) = lab(ORDERS, MAKES, DELETES);
    run(&lab, "").assert_code(1);
    let json = |args: &str| -> Vec<Value> {
        let out = lab.isolane(&format!("{args} --format json")).run().assert_code(0).out();
        serde_json::from_str::<Value>(&out).expect("JSON").as_array().expect("an array").clone()
    };
    let met = json("collisions");
    assert_eq!(met.len(), 1);
    let expected = [
        ("kind", "public.orders"),
        ("key", "{\"id\":10}"),
        ("pattern", "clobber"),
        ("test_a", "test_a.py::test_ship"),
        ("op_a", "insert"),
        ("test_b", "test_b.py::test_tidy_up"),
        ("op_b", "delete"),
        ("failed_test", "test_a.py::test_ship"),
    ];
    for (column, value) in expected {
        assert_eq!(met[0][column], value, "{}", met[0]);
    }
    assert!(met[0]["overlap_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", met[0]);
    lab.isolane("collisions --run no-such-run").run().assert_code(2).assert_says("it has no run no-such-run");
}

#[test]
fn who_knows_a_row_by_any_spelling_and_a_worker_and_a_prefix() {
    let (lab, _database) = lab(ORDERS, MAKES, DELETES);
    run(&lab, "").assert_code(1);
    for row in ["orders 10", "orders id=10", "public.orders 10", "ORDERS {\"id\":10}"] {
        let words: Vec<_> = row.split(' ').collect();
        let told = lab.isolane("who").arg_all(words).run().assert_code(0).out();
        assert!(told.contains("test_a.py::test_ship") && told.contains("test_b.py::test_tidy_up"), "{row}\n{told}");
        assert!(told.contains("insert") && told.contains("delete") && told.contains("gone"), "{row}\n{told}");
    }
    lab.isolane("who gw0").run().assert_code(0).assert_shows("gw0");
    let tag = lab.tag();
    lab.isolane(&format!("who i{tag}w1x-alice@example.com")).run().assert_code(0).assert_shows("gw1");
    let nobody = lab.isolane("who orders 4711").run().assert_code(0).assert_says("nothing is known of orders 4711");
    assert_eq!(nobody.out(), "");
    lab.isolane("why ship").run().assert_code(0).assert_shows("order not found").assert_shows("deleted by test_b.py");
    lab.isolane("why no_such_test").run().assert_code(2).assert_says("has no test no_such_test");
}

#[test]
fn a_key_that_is_taken_leads_to_who_has_it_also_within_one_lane() {
    let first = "
def test_first(db):
    db.execute(\"INSERT INTO customers (email) VALUES ('alice@example.com')\")
def test_second(db):
    db.execute(\"INSERT INTO customers (email) VALUES ('alice@example.com')\")
";
    let schema = "CREATE TABLE customers (id bigserial PRIMARY KEY, email text UNIQUE)";
    let (lab, database) = lab(schema, first, "def test_other(): pass");
    let outcome = lab.wrap("", "pytest -n 1 -q -p no:cacheprovider").run().assert_code(1);
    assert!(outcome.out().contains("inserted by test_a.py::test_first (gw0, the same worker)"), "{}", outcome.all());
    // Nobody collided: it is one worker's own affair, and a leak.
    assert_eq!(lab.column("SELECT pattern FROM collisions"), [""; 0]);
    assert_eq!(lab.ledger("SELECT test_id, kind, n FROM leaks"), [["test_a.py::test_first", "public.customers", "1"]]);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_run_may_fail_on_collisions_and_on_leaks_though_its_tests_passed() {
    let peaceful = MAKES.replace("assert found == 1, 'order not found'", "pass");
    let (lab, database) = lab(ORDERS, &peaceful, DELETES);
    run(&lab, "--fail-on collision").assert_code(122);
    lab.forget_seen();
    run(&lab, "--fail-on leak").assert_code(0);
    lab.forget_seen();
    lab.file("test_c.py", "def test_leaves(db):\n    db.execute(\"INSERT INTO orders (customer) VALUES ('x')\")\n");
    run(&lab, "--fail-on leak").assert_code(121);
    lab.forget_seen();
    run(&lab, "--fail-on collision,leak").assert_code(122);
    lab.isolane("run --fail-on rain -- true").run().assert_code(2);
    database.assert_nothing_left(&lab);
}

#[test]
fn nothing_is_told_of_rows_that_nobody_watched() {
    let (lab, database) = lab(ORDERS, MAKES, DELETES);
    let outcome =
        run(&lab, "--no-track").assert_code(1).assert_says("rows are not watched, and not removed: track is off");
    assert!(!outcome.out().contains("- isolane -"), "{}", outcome.all());
    assert_eq!(lab.value("SELECT count(*) FROM touches"), "0");
    database.assert_nothing_left(&lab);
}

#[test]
fn the_example_names_the_test_that_deletes_too_much() {
    let database = Server::shared().database("SUPERUSER");
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shared-staging");
    let text = |path: &str| std::fs::read_to_string(example.join(path)).expect("a file of the example");
    database.sql(&text("schema.sql"));
    let lab = Lab::on(&database);
    for path in ["pyproject.toml", "tests/conftest.py", "tests/test_checkout.py", "tests/test_cleanup.py"] {
        lab.file(path, &text(path));
    }
    let outcome = lab.wrap("--isolation shared", "pytest -n 2").run().assert_code(1);
    assert!(outcome.out().contains("deleted by tests/test_cleanup.py::test_tidy_up"), "{}", outcome.all());
    let left = database.client().query_one("SELECT count(*) FROM orders", &[]).expect("rows").get::<_, i64>(0);
    assert_eq!(left, 500);
    database.assert_nothing_left(&lab);
}
