//! What a run removes, and what it does not touch.

use crate::lab::{Lab, Server};

#[test]
fn removing_what_is_gone_already_is_no_error() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let script = "rm -rf \"$ISOLANE_DIR\"; case $ISOLANE_SCHEMA in
        /*) rm \"$ISOLANE_SCHEMA\";;
        *) psql -qX -d \"$BASE\" -c \"$DROP\";;
    esac";
    let lab = Lab::new();
    lab.sh("-n 2", script).run().assert_code(0).assert_says("nothing is left");
    lab.assert_nothing_left();

    for (isolation, drop) in [("database", "DROP DATABASE {schema}"), ("schema", "DROP SCHEMA {schema} CASCADE")] {
        let lab = Lab::on(&database).with("BASE", database.url());
        let options = ["run", "--isolation", isolation, "--env"];
        let run = lab.program("isolane").arg_all(options).arg(format!("DROP={drop}"));
        run.arg_all(["--", "sh", "-c", script]).run().assert_code(0).assert_says("nothing is left");
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn what_tests_make_in_their_lane_goes_with_it() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let before = database.dump();
    let sql = "CREATE TABLE a (id serial); CREATE VIEW b AS SELECT * FROM a; CREATE TYPE c AS ENUM ('x');
        CREATE FUNCTION d() RETURNS int LANGUAGE sql AS 'SELECT 1'; GRANT SELECT ON a TO PUBLIC; SELECT lo_create(0);";
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        lab.run(&format!("-n 2 --isolation {isolation}"), ["psql", "-qXc", sql]).run().assert_code(0);
        database.assert_nothing_left(&lab);
    }
    assert_eq!(database.dump(), before);

    let lab = Lab::new();
    let script = "cd $TMPDIR; mkdir -p deep/er; echo x >deep/er/file; ln -s / root; chmod -R a-w deep; mkfifo pipe";
    lab.sh("", script).run().assert_code(0);
    lab.assert_nothing_left();
    assert!(std::path::Path::new("/bin/sh").exists(), "links are not followed");
}

#[test]
fn sessions_that_are_still_open_do_not_hold_a_lane() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        // It leaves the process group and the session of the test.
        let script = "setsid psql -qXc 'BEGIN; CREATE TABLE held (id int); SELECT pg_sleep(600)' >/dev/null 2>&1 &
            sql=\"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()\"
            while :; do n=$(psql -XAtc \"$sql\") || exit 9; [ $n = 0 ] || exit 0; done";
        lab.sh(&format!("--isolation {isolation}"), script).run().assert_code(0);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn things_with_names_like_ours_are_not_touched() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    server.look_alikes(&database);
    let before = server.snapshot();
    let lab = Lab::on(&database);
    let folder = lab.tmp().join("isolane-0123456789ab");
    std::fs::create_dir(&folder).expect("a new folder");
    for isolation in ["database", "schema"] {
        lab.wrap(&format!("-n 2 --isolation {isolation}"), "true").run().assert_code(0);
    }
    assert_eq!(server.snapshot(), before);
    std::fs::remove_dir(folder).expect("it is still there");
    lab.assert_nothing_left();
}

#[test]
fn what_cannot_be_removed_is_named_and_changes_only_a_code_of_0() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = Lab::on(&database).with("ADMIN", server.admin_url("postgres"));
    let take = "psql -qX \"$ADMIN\" -c \"ALTER DATABASE $ISOLANE_SCHEMA OWNER TO admin\"";
    for (ending, code) in [("", 123), ("; exit 4", 4)] {
        let outcome = lab.sh("", &format!("{take}{ending}")).run().assert_code(code);
        let stuck = lab.ledger("SELECT name, error FROM resources WHERE state = 'stuck' ORDER BY created_at DESC");
        assert!(stuck[0][0].starts_with("isolane_") && stuck[0][1] != "NULL", "{stuck:?}");
        outcome.assert_says(&stuck[0][0]);
    }
    assert!(lab.column("SELECT state FROM runs").iter().all(|state| state != "running"));
}

#[test]
fn a_run_that_is_over_holds_no_sessions() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let lab = Lab::on(&database);
    for isolation in ["database", "schema"] {
        lab.wrap(&format!("-n 3 --isolation {isolation}"), "psql -qXc SELECT").run().assert_code(0);
        let sql = format!("SELECT count(*)::text FROM pg_stat_activity WHERE usename = '{}'", database.login);
        crate::lab::wait_until("the server has seen the sessions end", || server.texts("postgres", &sql) == ["0"]);
    }
}
