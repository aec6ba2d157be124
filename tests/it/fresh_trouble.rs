//! A lane for each test, after tests that leave more than rows: what is still open is ended and told
//! of, and whatever becomes of the lane, the next test finds it as it should be.

use crate::fresh::{fresh, leftovers, suite};
use crate::lab::{Database, Lab, Server, no_rows};

const SCHEMA: &str = "CREATE TABLE items (id serial PRIMARY KEY, v int); INSERT INTO items (v) VALUES (1), (2);
    CREATE TABLE other (id int PRIMARY KEY)";

fn shop<'a>(server: &'a Server, rights: &str) -> (Database<'a>, Lab) {
    let database = server.database(rights);
    database.sql(SCHEMA);
    let lab = Lab::on(&database);
    lab.pristine_suite(&database);
    (database, lab)
}

/// Tests of Python, each with this body; `left(name)` is what is told of the test `name`.
fn tests(lab: &Lab, bodies: &[(&str, &str)]) {
    let tests: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(n, (name, body))| format!("def test_{n:02}_{name}():\n    {}\n\n", body.replace('\n', "\n    ")))
        .collect();
    let head = "import os, pool, psycopg, pytest, threading, time\nKEPT = []
def connect(**options):
    KEPT.append(psycopg.connect(os.environ['DATABASE_URL'], **options))
    return KEPT[-1]
def elsewhere(): return psycopg.connect(os.environ['DATABASE_URL'].rpartition('/')[0] + '/postgres', autocommit=True)
NAME = os.environ['ISOLANE_SCHEMA']\n\n";
    lab.file("test_trouble.py", &format!("{head}{}def test_zz_last():\n    pass\n", tests.concat()));
}

#[test]
fn what_a_test_leaves_open_is_ended_and_told_of_and_counts_as_a_leak() {
    let server = Server::shared();
    let (database, lab) = shop(server, "CREATEDB SUPERUSER REPLICATION");
    tests(
        &lab,
        &[
            ("written", "connect().execute('INSERT INTO items (v) VALUES (9)')"),
            ("cursor", "c = connect()\nc.execute('DECLARE x CURSOR FOR SELECT * FROM items')\nc.execute('FETCH x')"),
            ("locked", "connect().execute('LOCK TABLE items IN ACCESS EXCLUSIVE MODE')"),
            (
                "asleep",
                "c = connect()\nthreading.Thread(target=lambda: c.execute('SELECT pg_sleep(60)'), daemon=True).start()\ntime.sleep(0.2)",
            ),
            (
                "prepared",
                "c = connect(autocommit=True)\nc.execute('BEGIN')\nc.execute('UPDATE items SET v = 7')\nc.execute(f\"PREPARE TRANSACTION '{NAME}'\")",
            ),
            (
                "slot",
                "connect(autocommit=True).execute(f\"SELECT pg_create_logical_replication_slot('{NAME}', 'test_decoding')\")",
            ),
            (
                "snapshot",
                "connect(options='-c default_transaction_isolation=serializable').execute('SELECT * FROM items')",
            ),
            (
                "failed",
                "c = connect()\nc.execute('INSERT INTO items (v) VALUES (9)')\ntry: c.execute('nonsense')\nexcept psycopg.Error: pass",
            ),
        ],
    );
    let outcome = fresh(&lab, "--fail-on leak", "").assert_code(121);
    let told =
        lab.ledger("SELECT substr(test_id, 26), kind, n FROM leaks WHERE kind NOT LIKE 'public.%' ORDER BY test_id");
    assert_eq!(
        told,
        [
            ["written", "transaction", "1"],
            ["cursor", "transaction", "1"],
            ["locked", "transaction", "1"],
            ["asleep", "transaction", "1"],
            ["prepared", "prepared transaction", "1"],
            ["slot", "replication slot", "1"],
            ["snapshot", "transaction", "1"],
        ],
        "{}",
        outcome.all()
    );
    let outcome = outcome.assert_says("test_00_written").assert_says("test_04_prepared").assert_says("test_05_slot");
    let outcome = outcome.assert_says("isolane leaks").assert_does_not_say("made again");
    outcome.assert_says("5 tests left a transaction open").assert_says("INSERT INTO items");
    let shown = lab.isolane("leaks").run().assert_code(0);
    shown.assert_shows("prepared transaction");
    database.assert_nothing_left(&lab);
    assert_eq!(server.texts("postgres", "SELECT gid FROM pg_prepared_xacts"), Vec::<String>::new());
}

#[test]
fn a_connection_that_only_read_is_not_cut() {
    let (_database, lab) = shop(Server::shared(), "CREATEDB SUPERUSER");
    let read = "c = KEPT[0] if KEPT else connect()\nassert c.execute('SELECT count(*) FROM items').fetchone() == (2,)";
    let write = "pool.db().execute('DELETE FROM items')\npool.db().execute('INSERT INTO items (v) VALUES (5)')";
    tests(
        &lab,
        &[
            ("read", read),
            ("again", read),
            ("write", write),
            ("after", read),
            ("truncate", "pool.db().execute('TRUNCATE other')"),
            ("last", read),
        ],
    );
    let outcome = fresh(&lab, "--fail-on leak", "");
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    outcome.assert_code(121);
}

#[test]
fn whatever_becomes_of_the_database_the_next_test_has_one() {
    let (database, lab) = shop(Server::shared(), "CREATEDB SUPERUSER");
    let others = "for c in KEPT: c.close()\n";
    tests(
        &lab,
        &[
            ("forced", "elsewhere().execute(f'DROP DATABASE {NAME} WITH (FORCE)')"),
            ("plain", &format!("{others}elsewhere().execute(f'DROP DATABASE {{NAME}}')")),
            ("write", "connect(autocommit=True).execute('DELETE FROM items')"),
            (
                "made_again",
                &format!(
                    "{others}db = elsewhere()\ndb.execute(f'DROP DATABASE {{NAME}}')\ndb.execute(f'CREATE DATABASE {{NAME}}')"
                ),
            ),
            ("renamed", &format!("{others}elsewhere().execute(f'ALTER DATABASE {{NAME}} RENAME TO {{NAME}}_old')")),
            ("back", "elsewhere().execute(f'DROP DATABASE {NAME}_old')"),
        ],
    );
    let outcome = fresh(&lab, "", "").assert_code(0);
    let left = leftovers(&lab);
    assert!(left.iter().all(|line| line.contains("made again")) && left.len() == 4, "{left:#?}\n{}", outcome.all());
    database.assert_nothing_left(&lab);
}

#[test]
fn a_test_may_end_all_sessions_that_there_are() {
    let (database, lab) = shop(Server::shared(), "CREATEDB SUPERUSER");
    let end = "pool.db().execute('INSERT INTO items (v) VALUES (3)')
pool.db().execute('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()')";
    tests(&lab, &[("end", end), ("end_again", end)]);
    let outcome = fresh(&lab, "", "").assert_code(0);
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    database.assert_nothing_left(&lab);
}

#[test]
fn a_server_that_goes_down_and_comes_again_between_two_tests_is_no_trouble() {
    let server = Server::own();
    let (database, lab) = shop(&server, "CREATEDB SUPERUSER");
    let meet = "open(os.environ['SEEN'] + '/down', 'w')
while not os.path.exists(os.environ['SEEN'] + '/up'): time.sleep(0.01)";
    let write = "connect(autocommit=True).execute('INSERT INTO items (v) VALUES (3)')";
    tests(&lab, &[("write", write), ("restart", &format!("{write}\ntime.sleep(1)\n{meet}")), ("write_again", write)]);
    let run = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").start();
    crate::lab::wait_until("the test waits", || lab.path("../seen/down").exists());
    server.restart();
    std::fs::write(lab.path("../seen/up"), "").expect("a file");
    let outcome = run.finish().assert_code(0);
    // What was written down of rows is gone with a crash: only a new copy is sure.
    assert_eq!(leftovers(&lab).len(), 1, "{:#?}\n{}", leftovers(&lab), outcome.all());
    database.assert_nothing_left(&lab);
}

#[test]
fn a_login_that_may_not_undo_gets_a_new_copy_for_each_test_and_is_told_what_would_help() {
    let server = Server::shared();
    let (database, lab) = shop(server, "CREATEDB");
    suite(&lab, &[("a", "INSERT INTO items (v) VALUES (3)"), ("b", "DELETE FROM items")]);
    let pool = lab.read("pool.py").replace("if connection is None or connection.closed:", "if True:");
    lab.file("pool.py", &pool);
    let grant = format!("GRANT SET ON PARAMETER session_replication_role TO {}", database.login);
    let outcome = fresh(&lab, "", "").assert_code(0).assert_says(&grant);
    assert_eq!(outcome.err().matches("permission denied").count(), 1, "{}", outcome.all());
    assert_eq!(lab.ledger("SELECT * FROM leaks WHERE kind NOT LIKE 'public.%'"), no_rows());
    database.assert_nothing_left(&lab);
    server.sql("postgres", &grant);
    let outcome = fresh(&lab, "", "").assert_code(0).assert_does_not_say("session_replication_role");
    outcome.assert_does_not_say("made again");
    server.sql("postgres", &grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "));
}

#[test]
fn a_schema_is_filled_again_for_each_test_and_connections_live_on() {
    let server = Server::shared();
    let database = server.database("CREATEROLE");
    database.sql(SCHEMA).sql(&format!("GRANT CREATE ON DATABASE {} TO {}", database.name, database.login));
    let lab = Lab::on(&database);
    lab.file("pool.py", "").pristine_suite(&database).file("conftest.py", "");
    let check = "assert pool.db().execute('SELECT id, v FROM items ORDER BY 1').fetchall() == [(1, 1), (2, 2)]
assert pool.db().execute('INSERT INTO items (v) VALUES (1) RETURNING id').fetchone() == (3,)
pool.db().execute('UPDATE items SET v = 8')\npool.db().execute('DROP TABLE IF EXISTS other')\nassert pool.opened == 1";
    tests(&lab, &[("a", check), ("b", check), ("c", check)]);
    fresh(&lab, "--isolation schema", "").assert_code(0);
    fresh(&lab, "--isolation schema", "-n 2").assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn where_lanes_hold_nothing_of_their_own_it_is_refused() {
    let (_database, lab) = shop(Server::shared(), "CREATEDB");
    for isolation in ["none", "shared"] {
        let outcome = lab.wrap(&format!("--fresh test --isolation {isolation}"), "true").run().assert_code(125);
        assert_eq!(outcome.said().len(), 1, "{}", outcome.all());
    }
}
