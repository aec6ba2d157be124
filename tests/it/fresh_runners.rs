//! A lane for each test under nextest, cargo test and Django, and when processes die.

use crate::fresh::leftovers;
use crate::lab::{Database, Lab, Server};

const SCHEMA: &str = "CREATE TABLE goods (id serial PRIMARY KEY, v int); INSERT INTO goods (v) VALUES (1)";

fn shop(server: &Server) -> (Database<'_>, Lab) {
    let database = server.database("CREATEDB SUPERUSER");
    database.sql(SCHEMA);
    let lab = Lab::on(&database);
    (database, lab)
}

/// Tests in Rust that each fail unless they find one row and the next number, and then write; each
/// ends by `end`.
fn tests(names: &[(&str, &str)]) -> String {
    let check = r#"fn sql(sql: &str) -> String {
        let output = std::process::Command::new("psql").args(["-qXAtc", sql]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned() + String::from_utf8_lossy(&output.stderr).trim()
    }
    fn check() {
        assert_eq!(sql("SELECT string_agg(id || ' ' || v, ',') FROM goods"), "1 1");
        assert_eq!(sql("INSERT INTO goods (v) VALUES (7) RETURNING id"), "2");
        assert_eq!(sql("UPDATE goods SET v = 9; TRUNCATE goods; INSERT INTO goods (v) VALUES (8)"), "");
    }"#;
    let tests = names.iter().map(|(name, end)| format!("#[test] fn {name}() {{ check(); {end} }}\n"));
    check.to_owned() + &tests.collect::<String>()
}

#[test]
fn each_test_of_nextest_finds_the_template_also_after_a_crash_and_when_it_is_tried_again() {
    let (database, lab) = shop(Server::shared());
    let flaky = "let mark = format!(\"{}/tried\", std::env::var(\"SEEN\").unwrap());
        if !std::path::Path::new(&mark).exists() { std::fs::write(mark, \"\").unwrap(); panic!(\"once\") }";
    let kill = "std::process::Command::new(\"kill\").args([\"-9\", &std::process::id().to_string()]).status().unwrap(); loop {}";
    let mut all = vec![("flaky", flaky), ("aborts", "std::process::abort()"), ("killed", kill)];
    let names: Vec<_> = (0..6).map(|n| format!("plain_{n}")).collect();
    all.extend(names.iter().map(|name| (name.as_str(), "")));
    all.push(("alters", "sql(\"ALTER TABLE goods ADD extra int\");"));
    lab.cargo("shop", &tests(&all));
    let outcome = lab.wrap("--fresh test", "cargo nextest run --no-fail-fast -j 2 --retries 1").run().assert_code(100);
    let failed = lab.column("SELECT test_id || ' ' || attempt FROM tests WHERE outcome = 'failed'");
    assert_eq!(failed, ["shop$tests::flaky 1"], "{}", outcome.all());
    let passed = lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'");
    assert_eq!(passed, "8", "{}", outcome.all());
    assert_eq!(leftovers(&lab), ["shop$tests::alters lane made again: new or changed: table public.goods"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn each_test_binary_of_cargo_test_finds_the_template() {
    let (database, lab) = shop(Server::shared());
    lab.cargo("shop", &tests(&[("one", "")]));
    lab.file("tests/two.rs", &tests(&[("two", "")])).file("tests/three.rs", &tests(&[("three", "")]));
    lab.wrap("--fresh test", "cargo test --no-fail-fast").run().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn tests_of_django_find_rows_and_sequences_on_djangos_own_connection() {
    let (database, lab) = shop(Server::shared());
    let lab = lab.python("django");
    lab.file(
        "conftest.py",
        "import os
from urllib.parse import urlsplit
import pytest
from django.conf import settings

def pytest_configure():
    url = urlsplit(os.environ['DATABASE_URL'])
    own = dict(ENGINE='django.db.backends.postgresql', NAME=url.path[1:], USER=url.username, PASSWORD=url.password, HOST=url.hostname, PORT=url.port, CONN_MAX_AGE=None)
    settings.configure(DATABASES={'default': own}, INSTALLED_APPS=[], USE_TZ=True)

@pytest.fixture(scope='session')
def django_db_setup(): pass
",
    );
    lab.file(
        "test_goods.py",
        "import pytest
from django.core.management.color import no_style
from django.db import connection
PIDS = set()

def one(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize('n', range(5))
def test_goods(n):
    assert one('SELECT count(*) FROM goods') == 1
    assert one('INSERT INTO goods (v) VALUES (2) RETURNING id') == 2
    with connection.cursor() as cursor:
        for sql in connection.ops.sql_flush(no_style(), ['goods'], reset_sequences=True, allow_cascade=True): cursor.execute(sql)
    assert one('SELECT count(*) FROM goods') == 0

@pytest.mark.django_db
@pytest.mark.parametrize('n', range(3))
def test_within_a_transaction(n):
    PIDS.add(one('SELECT pg_backend_pid()'))
    assert len(PIDS) == 1
    assert one('SELECT count(*) FROM goods') == 1
    assert one('INSERT INTO goods (v) VALUES (2) RETURNING id') == 2
",
    );
    let outcome = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").run();
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    outcome.assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_worker_that_a_test_kills_leaves_a_clean_lane_to_the_next() {
    let (database, lab) = shop(Server::shared());
    lab.pristine_suite(&database);
    lab.file(
        "test_goods.py",
        "import os, pool, pytest, signal
@pytest.mark.parametrize('n', range(8))
def test_goods(n):
    pool.db().execute('DELETE FROM goods')
    if n == 2: os._exit(3)
    if n == 5:
        pool.db().execute('BEGIN'); pool.db().execute('INSERT INTO goods (v) VALUES (7)')
        os.kill(os.getpid(), signal.SIGKILL)
",
    );
    let outcome = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider -n 2").run().assert_code(1);
    let passed = lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'");
    assert_eq!(passed, "6", "{}", outcome.all());
    database.assert_nothing_left(&lab);
}

#[test]
fn a_death_in_the_middle_leaves_nothing() {
    let (database, lab) = shop(Server::shared());
    lab.pristine_suite(&database);
    lab.file(
        "test_goods.py",
        "import pool, pytest
@pytest.mark.parametrize('n', range(4))
def test_goods(n): pool.db().execute('DELETE FROM goods' if n < 2 else 'ALTER TABLE goods ADD extra int')
",
    );
    for fault in [
        "renew:before:2=kill",
        "renew:after:2=kill",
        "renew:before:4=kill",
        "remove:after:1=kill",
        "create:before:3=kill",
    ] {
        let run = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").env("ISOLANE_FAULT", fault).run();
        assert_ne!(run.status.code(), Some(0), "{fault}\n{}", run.all());
        crate::lab::wait_until("all is gone", || lab.marked_nowhere(&database));
    }
    lab.wrap("", "true").run().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_renewal_that_fails_fails_the_test_that_asked_for_it_and_no_other() {
    let (database, lab) = shop(Server::shared());
    lab.pristine_suite(&database);
    lab.file(
        "test_goods.py",
        "import pool, pytest
@pytest.mark.parametrize('n', range(4))
def test_goods(n): pool.db().execute('DELETE FROM goods')
",
    );
    let run =
        lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").env("ISOLANE_FAULT", "renew:before:2=error").run();
    let outcome = run
        .assert_code(1)
        .assert_shows("isolane: the lane could not be put back for this test")
        .assert_shows("3 passed, 1 error");
    assert_eq!(lab.column("SELECT DISTINCT outcome FROM tests ORDER BY 1"), ["error", "passed"], "{}", outcome.all());
    database.assert_nothing_left(&lab);
}
