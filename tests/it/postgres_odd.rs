//! Servers and databases that are not as a fresh installation leaves them.

use crate::lab::{Lab, Server};

#[test]
fn a_database_that_tests_make_can_be_made_where_the_users_own_is_postgres() {
    let server = Server::own();
    let before = server.snapshot();
    let lab = Lab::new().with("DATABASE_URL", server.admin_url("postgres"));
    let script = "psql -qX \"$DATABASE_URL\" -c 'CREATE DATABASE made' -c 'DROP DATABASE made'";
    lab.sh("-n 2", "sleep 0.2").run().assert_code(0);
    lab.sh("", script).run().assert_code(0);
    assert_eq!(server.snapshot(), before);
}

#[test]
fn the_logins_places_are_for_the_tests() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    // One is isolane's, which says with it that the run lives.
    server.sql("postgres", &format!("ALTER ROLE {} CONNECTION LIMIT 5", database.login));
    let lab = Lab::on(&database);
    lab.file("sessions.sh", "psql -qXc 'SELECT pg_sleep(0.5)' >/dev/null");
    lab.wrap("-n 4", "sh sessions.sh").run().assert_code(0);
    // Fewer than isolane would take, too.
    server.sql("postgres", &format!("ALTER ROLE {} CONNECTION LIMIT 3", database.login));
    lab.wrap("-n 8", "true").run().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn settings_that_the_login_may_not_repeat_are_left_out_and_named() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    for setting in ["log_min_duration_statement = 0", "work_mem = '7MB'"] {
        server.sql("postgres", &format!("ALTER DATABASE {} SET {setting}", database.name));
    }
    let lab = Lab::on(&database);
    let outcome = lab.run("-n 2", ["psql", "-qXAtc", "SHOW work_mem"]).run().assert_code(0);
    assert!(outcome.out().lines().all(|line| line.ends_with("7MB")), "{}", outcome.all());
    outcome.assert_says("without the setting log_min_duration_statement, which the login may not repeat");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_suite_that_looks_elsewhere_for_its_database_is_told_so() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database).with("REAL", database.url());
    let suite = "import os, psycopg\ndef test_select(): psycopg.connect(os.environ['WHERE']).execute('SELECT 1')\n";
    lab.file("test_elsewhere.py", &suite.replace("WHERE", "REAL"));
    lab.pytest("-n 2").run().assert_code(0).assert_says("no test came to its lane's database");
    lab.file("test_elsewhere.py", &suite.replace("WHERE", "DATABASE_URL"));
    lab.pytest("-n 2").run().assert_code(0).assert_does_not_say("no test came");
    database.assert_nothing_left(&lab);
}

#[test]
fn what_was_prepared_for_a_commit_in_two_phases_does_not_hold_a_lane() {
    let database = Server::shared().database("CREATEDB");
    database.sql("CREATE TABLE orders (name int)");
    let lab = Lab::on(&database);
    let sql = "BEGIN; INSERT INTO orders VALUES (1); PREPARE TRANSACTION 'it''s'";
    lab.run("", ["psql", "-qXc", sql]).run().assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn sessions_of_others_are_seen_by_a_login_that_may_not_look_at_them() {
    let database = Server::shared().database("CREATEDB");
    let _session = Server::shared().admin(&database.name);
    let lab = Lab::on(&database);
    lab.wrap("-n 2", "true").run().assert_code(0).assert_says("copied by pg_dump, because others are connected");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_server_whose_own_databases_are_closed_to_the_login_serves_all_the_same() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = Lab::on(&database);
    for closed in ["postgres", "template1"] {
        server.sql("postgres", &format!("REVOKE CONNECT ON DATABASE {closed} FROM PUBLIC"));
        lab.wrap("-n 2", "true").run().assert_code(0);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_name_that_reads_like_a_connection_string_is_a_name() {
    let server = Server::own();
    let database = server.database_named("a=b c", "odd", "CREATEROLE CREATEDB");
    database.sql("CREATE TABLE t (id int)");
    let _session = database.client();
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let sql = "SELECT count(*) FROM t";
        lab.run(&format!("--isolation {isolation}"), ["psql", "-qXAtc", sql]).run().assert_code(0).assert_shows("0");
        lab.assert_nothing_left();
    }
}

#[test]
fn the_common_database_itself_may_be_the_users_own() {
    let server = Server::own();
    let login = server.database("CREATEDB");
    server.sql("postgres", &format!("ALTER DATABASE postgres OWNER TO {}", login.login));
    server.sql("postgres", "CREATE TABLE goods AS SELECT 42 AS id; GRANT SELECT ON goods TO PUBLIC");
    let before = server.snapshot();
    let url = login.url().replace(&format!("/{}", login.name), "/postgres");
    for keep in ["", "--keep always"] {
        let lab = Lab::new().with("DATABASE_URL", &url);
        let script = "psql -qXAtc 'SELECT id FROM goods'; : >$SEEN/$WORKER_ID; until [ -e go ]; do sleep 0.01; done";
        let run = lab.sh(&format!("-n 2 {keep}"), script).start();
        crate::lab::wait_until("both work", || ["w0", "w1"].iter().all(|w| lab.path("../seen").join(w).exists()));
        // Nobody is in it, so that the server can copy it, and the run says all the same that it lives.
        let within = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid() AND usename IS NOT NULL";
        assert_eq!(server.texts("postgres", within), ["0"]);
        Lab::new().with("DATABASE_URL", &url).isolane("sweep --apply").run().assert_says("of runs that live stay");
        lab.file("go", "");
        run.finish().assert_code(0).assert_shows("42");
        if !keep.is_empty() {
            let kept = lab.column("SELECT name FROM resources WHERE kind = 'database' AND state = 'kept' ORDER BY 1");
            assert_eq!(kept.len(), 2, "{kept:?}");
            lab.isolane("sweep --apply").run().assert_code(0);
        }
        assert_eq!(server.snapshot(), before);
        lab.assert_nothing_left();
    }
}
