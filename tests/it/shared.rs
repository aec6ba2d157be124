//! Shared isolation: all workers on the user's own schema, and nothing of theirs left there.

use nix::sys::signal::{Signal, kill};

use crate::lab::{Database, Lab, Server, alive_in, wait_until};
use crate::shared_rows::{lab, play};

/// What belongs to others.
const STAGING: &str = "
CREATE TABLE customers (id serial PRIMARY KEY, email text UNIQUE NOT NULL);
CREATE TABLE orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers ON DELETE CASCADE, total numeric(8, 2));
CREATE TABLE lines (orders int REFERENCES orders, n int, what text, PRIMARY KEY (orders, n));
CREATE TABLE audit (at timestamptz DEFAULT now(), what text);
INSERT INTO customers (email) SELECT 'user' || n || '@example.com' FROM generate_series(1, 10000) n;
INSERT INTO orders (customer, total) SELECT n, n FROM generate_series(1, 10000) n;
INSERT INTO lines SELECT n, 1, 'thing' FROM generate_series(1, 10000) n;
INSERT INTO audit (what) SELECT 'same' FROM generate_series(1, 20000) n;
";

/// Rows and tables, but not how far sequences have come.
fn everything(database: &Database) -> Vec<String> {
    database.dump().lines().filter(|line| !line.contains("setval")).map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(database: &Database, before: &[String], what: &str) {
    let now = everything(database);
    let differ = now.iter().zip(before).filter(|(now, before)| now != before).take(5).collect::<Vec<_>>();
    assert!(now == before, "{what}: {} lines, {} before; {differ:#?}", now.len(), before.len());
}

const SUITE: &str = "
import os, psycopg, pytest, random, signal, time, witness

@pytest.fixture(scope='session')
def db():
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        yield db

@pytest.mark.parametrize('n', range(80))
def test_orders(db, n):
    c = db.execute('INSERT INTO customers (email) VALUES (%s) RETURNING id', [f'{n}@test']).fetchone()[0]
    with db.cursor() as cursor:
        cursor.executemany('INSERT INTO orders (customer, total) VALUES (%s, %s)', [(c, i) for i in range(10)])
    db.execute('INSERT INTO lines SELECT id, 1, %s FROM orders WHERE customer = %s', ['x', c])
    db.execute(\"INSERT INTO audit (what) VALUES ('same'), ('other')\")
    db.execute('DELETE FROM lines WHERE orders IN (SELECT min(id) FROM orders WHERE customer = %s)', [c])
    witness.note(f'did{n}')
    if n in (20, 40) and os.environ.get('KILLED'):
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 79 and os.environ.get('HANG'):
        time.sleep(600)
";

#[test]
fn nothing_of_the_run_is_left_and_nothing_else_is_touched_though_workers_are_killed() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(STAGING);
    let before = everything(&database);
    let lab = Lab::on(&database).with("KILLED", "1");
    lab.file("test_orders.py", SUITE);
    let outcome = lab.wrap("--isolation shared", "pytest -q -n 8 -p no:cacheprovider").run().assert_code(1);
    outcome.assert_does_not_say("could not");
    assert_eq!(lab.value("SELECT count(*) FROM workers WHERE outcome = 'crashed'"), "2");
    assert_same(&database, &before, "after it");
    let states = "SELECT state || ' ' || (count(*) > 70) FROM records GROUP BY state ORDER BY 1";
    assert_eq!(lab.column(states), ["gone 1", "removed 1"]);
    assert_eq!(lab.value("SELECT count(*) FROM records WHERE test_id IS NULL"), "0");
    let made = lab.value("SELECT count(*) FROM records WHERE kind = 'public.customers'");
    assert_eq!(made, "80", "each was made once, and by a test");
    database.assert_nothing_left(&lab);
}

#[test]
fn who_is_killed_himself_is_cleaned_up_after() {
    let server = Server::own();
    let database = server.database("CREATEROLE");
    database.sql(STAGING);
    let (before, things) = (everything(&database), server.snapshot());
    for way in ["watchdog", "next run", "sweep without ledger"] {
        let lab = Lab::on(&database).with("HANG", "1");
        lab.file("test_orders.py", SUITE);
        let run = lab.wrap("--isolation shared", "pytest -q -n 4 -p no:cacheprovider").start();
        wait_until("all have written", || (0..80).all(|n| lab.path(&format!("../seen/did{n}")).exists()));
        if way == "watchdog" {
            kill(run.pid(), Signal::SIGKILL).expect("it runs");
        } else {
            lab.lose_machine();
        }
        drop(run.finish());
        wait_until("all are dead", || alive_in(lab.home()).is_empty());
        match way {
            "watchdog" => {}
            "next run" => {
                assert!(everything(&database) != before);
                let next = lab.wrap("--isolation shared", "true").run().assert_code(0);
                next.assert_says("had been killed").assert_does_not_say("could not");
            }
            _ => {
                std::fs::remove_dir_all(lab.path(".isolane")).expect("a ledger");
                let sweep = format!("sweep --database-url {} --apply", database.url());
                Lab::new().isolane(&sweep).run().assert_code(0).assert_says("removed");
            }
        }
        assert_same(&database, &before, way);
        assert_eq!(server.snapshot(), things, "{way}");
        if way != "sweep without ledger" {
            assert_eq!(lab.column("SELECT DISTINCT state FROM records ORDER BY 1"), ["gone", "removed"], "{way}");
            database.assert_nothing_left(&lab);
        }
    }
}

#[test]
fn a_worker_is_the_user_with_the_users_settings_and_another_login() {
    let server = Server::own();
    for (rights, has_roles) in [("CREATEROLE", true), ("SUPERUSER", true), ("", false)] {
        let database = server.database(rights);
        let login = &database.login;
        server.sql(
            &database.name,
            &format!(
                "CREATE SCHEMA shop AUTHORIZATION \"{login}\"; ALTER ROLE \"{login}\" SET search_path = shop, \"$user\", public;
                 ALTER ROLE \"{login}\" IN DATABASE \"{}\" SET statement_timeout = '77s'; ALTER ROLE \"{login}\" SET log_min_messages = 'error'",
                database.name
            ),
        );
        database.sql("CREATE TABLE shop.t (id int PRIMARY KEY)");
        let lab = Lab::on(&database);
        let sql = "SELECT current_user, session_user, current_setting('search_path'), current_setting('statement_timeout'); \
                   INSERT INTO t VALUES (1); CREATE TABLE mine (id int); SELECT tableowner FROM pg_tables WHERE tablename = 'mine'; DROP TABLE mine";
        let outcome = lab.run("--isolation shared", ["psql", "-XAtqc", sql]).run().assert_code(0);
        let lines: Vec<_> = outcome.out().lines().map(str::to_owned).collect();
        let session = if has_roles { format!("isolane_{}_w0", lab.tag()) } else { login.clone() };
        assert_eq!(lines, [format!("{login}|{session}|shop, \"$user\", public|77s"), login.clone()], "{rights}");
        let outcome = match rights {
            "CREATEROLE" => outcome.assert_says("without the setting log_min_messages"),
            "" => outcome.assert_says("may not create roles, so sessions are told apart by application_name"),
            _ => outcome,
        };
        outcome.assert_does_not_say("could not");
        assert_eq!(lab.column("SELECT worker_id || ' ' || kind || ' ' || state FROM records"), ["w0 shop.t removed"]);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_role_that_an_earlier_try_left_is_made_again_with_the_users_settings() {
    let server = Server::shared();
    let database = server.database("CREATEROLE");
    let login = &database.login;
    server.sql("postgres", &format!("ALTER ROLE \"{login}\" SET statement_timeout = '77s'"));
    let lab = Lab::on(&database);
    let show = lab.run("--isolation shared", ["psql", "-XAtqc", "SHOW statement_timeout"]);
    let run = show.env("ISOLANE_FAULT", "claim:before=pause").start();
    wait_until("it pauses", || is_stopped(run.pid().as_raw()));
    server.sql("postgres", &format!("CREATE ROLE \"isolane_{}_w0\" IN ROLE \"{login}\"", lab.tag()));
    run.signal(Signal::SIGCONT);
    assert_eq!(run.finish().assert_code(0).out(), "77s\n");
    database.assert_nothing_left(&lab);
}

fn is_stopped(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

#[test]
fn a_session_that_a_worker_leaves_behind_is_ended() {
    let server = Server::own();
    for rights in ["CREATEROLE", "SUPERUSER"] {
        let database = server.database(rights);
        database.sql("CREATE TABLE t (id int PRIMARY KEY)");
        let lab = Lab::on(&database);
        lab.file("hang.sql", "BEGIN; INSERT INTO t VALUES (1);\n\\! touch there\nSELECT pg_sleep(600);\n");
        let script = "(setsid env -i PATH=\"$PATH\" psql \"$DATABASE_URL\" -Xqf hang.sql >/dev/null 2>&1 &); until [ -e there ]; do sleep 0.05; done";
        lab.sh("--isolation shared", script).run().assert_code(0).assert_does_not_say("could not");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn only_what_is_asked_for_is_watched() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE audit_log (id int PRIMARY KEY);
         CREATE SCHEMA other; CREATE TABLE other.orders (id int PRIMARY KEY)",
    );
    let lab = lab(&database);
    lab.file("isolane.toml", "track = [\"public.*\", \"!audit_*\"]\n");
    play(
        &lab,
        "-n 1",
        "own 'INSERT INTO orders VALUES (1); INSERT INTO audit_log VALUES (1); INSERT INTO other.orders VALUES (1)'",
    )
    .assert_code(0);
    assert_eq!(lab.column("SELECT kind FROM records"), ["public.orders"]);
    let left = "SELECT (SELECT count(*) FROM orders)::text || (SELECT count(*) FROM audit_log) || (SELECT count(*) FROM other.orders)";
    assert_eq!(database.server.texts(&database.name, left), ["011"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_login_that_may_not_watch_is_told_so_and_the_run_goes_on() {
    let server = Server::own();
    let database = server.database("");
    let guest = server.database("");
    server.sql(
        &database.name,
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
             GRANT ALL ON SCHEMA public TO {0}; GRANT SELECT, INSERT, DELETE ON t, u TO {0}",
            guest.login
        ),
    );
    let url = guest.url().replace(&guest.name, &database.name);
    let insert = "INSERT INTO t VALUES (floor(random() * 1e9)); INSERT INTO u VALUES (1) ON CONFLICT DO NOTHING";
    let run = |says: &str| {
        let lab = Lab::new().with("DATABASE_URL", &url);
        let outcome = lab.run("--isolation shared", ["psql", "-Xqc", insert]).run().assert_code(0);
        assert!(outcome.all().contains(says), "{says}: {}", outcome.all());
        let lines = outcome.said().iter().filter(|line| line.contains("not watched")).count();
        assert_eq!(lines, 1, "{}", outcome.all());
        lab.assert_nothing_left();
        assert!(server.marked(&lab.tag(), &database.name).is_empty());
    };
    run(&format!("GRANT CREATE ON DATABASE {}", database.name));
    server.sql("postgres", &format!("GRANT CREATE ON DATABASE {} TO {}", database.name, guest.login));
    run("GRANT TRIGGER ON");
    server.sql(&database.name, &format!("GRANT TRIGGER ON t TO {}", guest.login));
    run("rows of public.u are not watched");
    assert_eq!(server.texts(&database.name, "SELECT count(*)::text FROM t"), ["2"], "the last one's is gone");
}

#[test]
fn what_cannot_be_shared_is_refused_in_one_line_and_leaves_nothing() {
    let database = Server::shared().database("CREATEROLE");
    let before = database.dump();
    for (url, options, says) in [
        (database.url(), "--setup true", "--setup makes a state for lanes of their own"),
        ("sqlite:///shop.db".to_owned(), "", "--isolation shared needs PostgreSQL"),
        (String::new(), "", "no database is named"),
    ] {
        let lab = Lab::new().with("DATABASE_URL", url);
        let outcome = lab.wrap(&format!("--isolation shared {options}"), "touch ran").run().assert_code(125);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        outcome.assert_says(says);
        assert!(!lab.path("ran").exists());
        lab.assert_nothing_left();
    }
    assert_eq!(database.dump(), before);
}

#[test]
fn two_runs_on_one_database_do_not_touch_each_others_rows() {
    let database = Server::shared().database("CREATEROLE");
    database.sql("CREATE TABLE t (id serial PRIMARY KEY, who text); INSERT INTO t (who) VALUES ('theirs'); CREATE TABLE alike (who text)");
    let before = everything(&database);
    let labs = [lab(&database), lab(&database)];
    let script = |name: &str| {
        format!(
            "own \"INSERT INTO t (who) VALUES ('{name}'); INSERT INTO alike VALUES ('same')\"; : >$SEEN/there
             until [ -e go ]; do sleep 0.01; done
             own \"INSERT INTO t (who) SELECT '{name}' FROM generate_series(1, 100); INSERT INTO alike VALUES ('same')\""
        )
    };
    let start = |lab: &Lab, name: &str| {
        lab.file("work.sh", &format!("own() {{ psql -XAtq -v ON_ERROR_STOP=1 -c \"$1\"; }}\n{}", script(name)));
        lab.wrap("--isolation shared -n 2", "sh -e work.sh").start()
    };
    let runs = [start(&labs[0], "a"), start(&labs[1], "b")];
    wait_until("both work", || labs.iter().all(|lab| lab.path("../seen/there").exists()));
    let [first, second] = runs;
    labs[0].file("go", "");
    first.finish().assert_code(0).assert_does_not_say("could not");
    let counts = "SELECT who || count(*) FROM t GROUP BY who UNION ALL SELECT who || count(*) FROM alike GROUP BY who ORDER BY 1";
    assert_eq!(database.server.texts(&database.name, counts), ["b2", "same2", "theirs1"]);
    labs[1].file("go", "");
    second.finish().assert_code(0).assert_does_not_say("could not");
    assert_same(&database, &before, "after it");
    for lab in &labs {
        assert_eq!(lab.value("SELECT count(*) FROM records"), "206");
        database.assert_nothing_left(lab);
    }
}
