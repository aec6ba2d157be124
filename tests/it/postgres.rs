//! A database for each lane on a real PostgreSQL server.

use nix::sys::signal::Signal;

use crate::lab::program::wait_until;
use crate::lab::{Database, Lab, Server, alive_in, many_tests};

const USERS: &str = "CREATE TABLE users (id serial PRIMARY KEY, email text UNIQUE NOT NULL)";
/// Two hundred tests that are right one after the other and wrong at the same time.
const PYTEST_SUITE: &str = "
import os, psycopg, pytest
@pytest.fixture(scope='module')
def db():
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db: yield db
@pytest.mark.parametrize('n', range(200))
def test_signs_up(db, n):
    db.execute(\"INSERT INTO users (email) VALUES ('a@example.com')\")
    assert db.execute('SELECT count(*) FROM users').fetchone() == (1,)
    db.execute('DELETE FROM users')
";
const RUST_BODY: &str = "
    let steps = [\"INSERT INTO users (email) VALUES ('a@example.com')\", \"SELECT 1 / (SELECT count(*) = 1 FROM users)::int\",
        \"SELECT pg_sleep(0.01)\", \"DELETE FROM users\"];
    let mut psql = std::process::Command::new(\"psql\");
    psql.args([\"-qXAt\", \"-v\", \"ON_ERROR_STOP=1\"]).arg(std::env::var(\"DATABASE_URL\").unwrap());
    let done = psql.args(steps.iter().flat_map(|step| [\"-c\", step])).output().unwrap();
    assert!(done.status.success(), \"{}\", String::from_utf8_lossy(&done.stderr));";

#[test]
fn two_hundred_pytest_tests_of_one_unique_key_pass_side_by_side() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    database.sql(USERS);
    let (before, dump) = (server.snapshot(), database.dump());
    let lab = Lab::on(&database);
    lab.file("test_users.py", PYTEST_SUITE);
    lab.program("pytest").arg_all(["-q", "-p", "no:xdist"]).run().assert_code(0);
    database.sql("ALTER SEQUENCE users_id_seq RESTART");
    let bare = lab.program("pytest").arg_all(["-q", "-n", "4"]).env("TMPDIR", lab.dir()).run().assert_code(1);
    assert!(bare.out().contains("UniqueViolation"), "{}", bare.all());
    database.sql("TRUNCATE users RESTART IDENTITY");

    let wrapped = lab.pytest("-n 4").run().assert_code(0);
    assert!(wrapped.out().contains("200 passed"), "{}", wrapped.all());
    assert_eq!(server.snapshot(), before);
    assert_eq!(database.dump(), dump);
    let counts = lab.column("SELECT count(*) FROM tests GROUP BY worker_id");
    assert_eq!(counts.len(), 4);
    assert_eq!(counts.iter().map(|count| count.parse::<u32>().expect("a number")).sum::<u32>(), 200);
    database.assert_nothing_left(&lab);
}

#[test]
fn two_hundred_nextest_tests_of_one_unique_key_pass_side_by_side() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    database.sql(USERS);
    let (before, dump) = (server.snapshot(), database.dump());
    let lab = Lab::on(&database);
    lab.cargo("users", &many_tests(200, "signs_up", RUST_BODY));
    lab.program("cargo").arg_all(["nextest", "run", "-j", "1"]).run().assert_code(0);
    lab.program("cargo").arg_all(["nextest", "run", "-j", "4"]).run().assert_code(100);
    database.sql("TRUNCATE users RESTART IDENTITY");

    lab.nextest("-j 4").run().assert_code(0).assert_says("200 passed");
    assert_eq!(server.snapshot(), before);
    assert_eq!(database.dump(), dump);
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "200");
    database.assert_nothing_left(&lab);
}

/// What psql says in the first lane of a run with these options.
#[track_caller]
fn psql(lab: &Lab, options: &str, sql: &str) -> String {
    let outcome = lab.run(options, ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]).run().assert_code(0);
    outcome.out().trim_end().to_owned()
}

fn stocked(database: &Database<'_>) {
    database.sql(
        "CREATE TABLE stock (item text PRIMARY KEY, n int CHECK (n >= 0));
         INSERT INTO stock VALUES ('lamp', 3), ('chair', 0);
         CREATE VIEW gone AS SELECT item FROM stock WHERE n = 0;",
    );
}

#[test]
fn a_lane_begins_as_a_copy_of_the_users_database() {
    let database = Server::shared().database("CREATEDB");
    stocked(&database);
    let dump = database.dump();
    let lab = Lab::on(&database);
    let write = "UPDATE stock SET n = n - 1 WHERE item = 'lamp' RETURNING n || (SELECT string_agg(item, '') FROM gone)";
    for _ in 0..2 {
        assert_eq!(psql(&lab, "", write), "2chair");
    }
    assert_eq!(database.dump(), dump);
    database.assert_nothing_left(&lab);
}

#[test]
fn auto_takes_a_database_where_the_login_may_create_one_and_a_schema_where_not() {
    let server = Server::shared();
    let may = server.database("CREATEDB");
    let lab = Lab::on(&may);
    let outcome = lab.run("", ["psql", "-XAtc", "SELECT current_database(), current_schema()"]).run().assert_code(0);
    assert_eq!(outcome.out().trim_end(), format!("isolane_{}_w0|public", lab.tag()));
    outcome.assert_says("PostgreSQL").assert_says("a database for each lane");

    let may_not = server.database("CREATEROLE");
    let lab = Lab::on(&may_not);
    let outcome = lab.run("", ["psql", "-XAtc", "SELECT current_database(), current_schema()"]).run().assert_code(0);
    assert_eq!(outcome.out().trim_end(), format!("{}|isolane_{}_w0", may_not.name, lab.tag()));
    outcome.assert_says("a schema and a role for each lane");
    may_not.assert_nothing_left(&lab);
}

#[test]
fn a_database_that_others_are_connected_to_is_copied_all_the_same() {
    let database = Server::shared().database("CREATEDB");
    stocked(&database);
    let mut other = database.client();
    other.batch_execute("BEGIN; UPDATE stock SET n = 100").expect("an open transaction");
    let lab = Lab::on(&database);
    assert_eq!(psql(&lab, "", "SELECT sum(n) || (SELECT item FROM gone) FROM stock"), "3chair");
    other.batch_execute("COMMIT").expect("nobody disturbed it");
    database.assert_nothing_left(&lab);
}

#[test]
fn settings_of_the_database_hold_in_its_copies() {
    let database = Server::shared().database("CREATEDB");
    let (name, login) = (&database.name, &database.login);
    database.sql(&format!("ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'"));
    database.sql(&format!("ALTER ROLE {login} IN DATABASE {name} SET statement_timeout = '77s'"));
    let lab = Lab::on(&database);
    let shown = psql(&lab, "", "SELECT current_setting('timezone') || current_setting('statement_timeout')");
    assert_eq!(shown, "Asia/Tokyo77s");
    database.assert_nothing_left(&lab);
}

#[test]
fn names_with_capitals_and_spaces_work() {
    let server = Server::shared();
    let database = server.database_named("My Shop", "The Tester", "CREATEDB CREATEROLE");
    database
        .sql("CREATE TABLE \"Order Items\" (\"Id\" serial PRIMARY KEY); INSERT INTO \"Order Items\" DEFAULT VALUES");
    let dump = database.dump();
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let sql = "INSERT INTO \"Order Items\" DEFAULT VALUES RETURNING \"Id\"";
        assert_eq!(psql(&lab, &format!("--isolation {isolation}"), sql), "2");
        database.assert_nothing_left(&lab);
    }
    assert_eq!(database.dump(), dump);
}

#[test]
fn setup_builds_the_pristine_state_once() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let before = database.dump();
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        lab.file("test_users.py", PYTEST_SUITE);
        let setup = format!("echo $WORKER_ID >>setups; psql -qX -v ON_ERROR_STOP=1 -c '{USERS}'");
        let words = ["run", "--isolation", isolation, "--setup", &setup, "--", "pytest", "-q", "-n", "3"];
        lab.program("isolane").arg_all(words).run().assert_code(0);
        assert_eq!(lab.read("setups"), "setup\n", "{isolation}");
        assert_eq!(database.dump(), before, "{isolation}");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_setup_that_fails_shows_its_output_and_starts_nothing() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let setup = "psql -qXc 'CREATE TABLE half (id int)'; echo migration 7 is broken >&2; exit 3";
        let words = ["run", "--isolation", isolation, "--setup", setup, "--", "touch", "started"];
        let outcome = lab.program("isolane").arg_all(words).run().assert_code(125);
        assert!(outcome.err().contains("migration 7 is broken"), "{}", outcome.all());
        assert!(outcome.said().iter().any(|line| line.contains('3')), "its code\n{}", outcome.all());
        assert!(!lab.path("started").exists());
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn two_runs_on_one_database_do_not_meet() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    database.sql(USERS);
    let dump = database.dump();
    let lab = Lab::on(&database);
    let other = Lab::on(&database);
    for lab in [&lab, &other] {
        lab.file("test_users.py", PYTEST_SUITE);
    }
    let runs = [lab.pytest("-n 2").start(), other.wrap("--isolation schema", "pytest -q -n 2").start()];
    for run in runs {
        run.finish().assert_code(0).assert_shows("200 passed");
    }
    assert_eq!(database.dump(), dump);
    database.assert_nothing_left(&lab);
    database.assert_nothing_left(&other);
}

#[test]
fn kept_lanes_stay_and_the_ledger_says_so() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = Lab::on(&database);
    lab.wrap("--keep failed", "true").run().assert_code(0);
    database.assert_nothing_left(&lab);
    lab.wrap("--keep failed", "false").run().assert_code(1);
    let kept = lab.column("SELECT name FROM resources WHERE kind = 'database' AND state = 'kept'");
    let there = server.texts("postgres", "SELECT datname::text FROM pg_database WHERE datname LIKE 'isolane%'");
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(kept[0].contains(&there[0]), "{kept:?} {there:?}");
}

#[test]
fn the_process_list_shows_no_password() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::new();
    let options = format!("--database-url {} --env PGPASSWORD={}", database.url(), database.password);
    let running = lab.sh(&options, "touch ready; exec sleep 600").start();
    wait_until("it runs", || lab.path("ready").exists());
    let all = alive_in(lab.home());
    assert!(!all.iter().any(|process| process.contains(&database.password)), "{all:#?}");
    for part in ["isolane run", "isolane watchdog", &format!("{}:*", database.login)] {
        assert!(all.iter().any(|process| process.contains(part)), "{part} is not in {all:#?}");
    }
    running.signal(Signal::SIGTERM);
    running.finish().assert_code(143);
    database.assert_nothing_left(&lab);
}
