//! What goes from the user's own tables at the end of a run in shared isolation, and what stays.

use crate::lab::{Database, Lab, Outcome, Server};

/// `own SQL` is a worker's session, `other SQL` somebody else's.
const SESSIONS: &str = r#"set -e
own() { psql -XAtq -v ON_ERROR_STOP=1 -c "$1"; }
other() { PGAPPNAME=theirs psql -XAtq -v ON_ERROR_STOP=1 -c "$1" "$OTHER"; }
"#;

/// A lab whose shell commands have sessions in `database`.
pub fn lab(database: &Database) -> Lab {
    Lab::on(database).with("OTHER", database.url())
}

/// Runs a script of sessions.
pub fn play(lab: &Lab, options: &str, script: &str) -> Outcome {
    lab.file("script.sh", &format!("{SESSIONS}{script}"));
    lab.wrap(&format!("--isolation shared {options}"), "sh script.sh").run()
}

fn states(lab: &Lab) -> Vec<String> {
    lab.column("SELECT kind || ' ' || key || ' ' || state FROM records ORDER BY 1")
}

#[test]
fn rows_that_refer_to_one_another_go_whatever_the_references_are_like() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree);
         CREATE TABLE strict_tree (id int PRIMARY KEY, parent int REFERENCES strict_tree ON DELETE RESTRICT);
         CREATE TABLE hen (id int PRIMARY KEY, egg int);
         CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen);
         ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg;
         CREATE TABLE sun (id int PRIMARY KEY, moon int NOT NULL);
         CREATE TABLE moon (id int PRIMARY KEY, sun int NOT NULL REFERENCES sun DEFERRABLE INITIALLY DEFERRED);
         ALTER TABLE sun ADD FOREIGN KEY (moon) REFERENCES moon ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED;
         CREATE TABLE a (x int, y text, PRIMARY KEY (x, y));
         CREATE TABLE b (id int PRIMARY KEY, ax int, ay text, FOREIGN KEY (ax, ay) REFERENCES a ON DELETE SET NULL);
         CREATE TABLE c (b int PRIMARY KEY REFERENCES b ON DELETE CASCADE);
         CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (0) TO (100);
         CREATE TABLE of_whole (id int PRIMARY KEY, w int REFERENCES whole);
         INSERT INTO tree VALUES (-1, NULL), (-2, -1); INSERT INTO strict_tree VALUES (-1, -1);
         INSERT INTO hen VALUES (-1, NULL); INSERT INTO egg VALUES (-1, -1); UPDATE hen SET egg = -1;
         INSERT INTO a VALUES (-1, 'a'); INSERT INTO b VALUES (-1, -1, 'a'); INSERT INTO c VALUES (-1);
         INSERT INTO whole VALUES (0); INSERT INTO of_whole VALUES (0, 0)",
    );
    let before = database.dump();
    let lab = lab(&database);
    let script = r#"
own "INSERT INTO tree VALUES (1, -2); INSERT INTO tree SELECT n, n - 1 FROM generate_series(2, 500) n;
     INSERT INTO strict_tree VALUES (1, -1); INSERT INTO strict_tree SELECT n, n - 1 FROM generate_series(2, 50) n;
     INSERT INTO hen VALUES (1, -1), (2, NULL); INSERT INTO egg VALUES (1, 2), (2, 1); UPDATE hen SET egg = 3 - id WHERE id > 0"
own "BEGIN; INSERT INTO sun VALUES (1, 1); INSERT INTO moon VALUES (1, 1); COMMIT"
own "INSERT INTO a VALUES (1, 'b'); INSERT INTO b VALUES (1, 1, 'b'), (2, -1, 'a'); INSERT INTO c VALUES (1), (2);
     INSERT INTO whole VALUES (1), (2); INSERT INTO of_whole VALUES (1, 1), (2, 0)"
"#;
    play(&lab, "-n 1", script).assert_code(0).assert_does_not_say("could not");
    assert_eq!(database.dump(), before);
    assert_eq!(lab.column("SELECT DISTINCT state FROM records"), ["removed"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn rows_that_were_there_before_stay_whatever_became_of_their_keys() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
         INSERT INTO t SELECT n, 'theirs' FROM generate_series(-20, -1) n",
    );
    let lab = lab(&database);
    let script = r#"
# Removed and made again: its key was there before.
own "DELETE FROM t WHERE id = -1; INSERT INTO t VALUES (-1, 'again')"
# Made, and its key left to a row that was there before.
own "INSERT INTO t VALUES (5, 'gone'); DELETE FROM t WHERE id = 5; UPDATE t SET id = 5 WHERE id = -2"
# The same, and made anew under the key that the older left.
own "UPDATE t SET id = 6 WHERE id = -3; INSERT INTO t VALUES (-3, 'in its place')"
# They change places: the run's is 8 in the end.
own "INSERT INTO t VALUES (7, 'ours')"; other "INSERT INTO t VALUES (8, 'theirs')"
own "UPDATE t SET id = 15 - id WHERE id IN (7, 8)"
# It moves on, and somebody else takes its place.
own "INSERT INTO t VALUES (10, 'ours'); UPDATE t SET id = 11 WHERE id = 10"; other "INSERT INTO t VALUES (10, 'theirs')"
# It moves on, and another of the run's takes its place.
own "INSERT INTO t VALUES (12, 'ours'); UPDATE t SET id = 13 WHERE id = 12; INSERT INTO t VALUES (12, 'ours')"
# It went, and somebody else made one like it.
own "INSERT INTO t VALUES (14, 'ours')"; other "DELETE FROM t WHERE id = 14; INSERT INTO t VALUES (14, 'theirs')"
# It was somebody else's, and the run made it again.
other "INSERT INTO t VALUES (16, 'theirs')"; own "DELETE FROM t WHERE id = 16; INSERT INTO t VALUES (16, 'ours')"
"#;
    let outcome = play(&lab, "-n 1", script).assert_code(0);
    outcome.assert_says("2 rows left alone, such as public.t {\"id\":-").assert_does_not_say("could not");
    let left = "SELECT id || ' ' || v FROM t WHERE id NOT BETWEEN -20 AND -4 ORDER BY id";
    assert_eq!(
        database.server.texts(&database.name, left),
        ["-3 in its place", "-1 again", "5 theirs", "6 theirs", "7 theirs", "10 theirs", "14 theirs"]
    );
    let states = states(&lab);
    for kept in ["{\"id\":-1} kept", "{\"id\":-3} kept"] {
        assert!(states.iter().any(|line| line.contains(kept)), "{states:?}");
    }
    database.assert_nothing_left(&lab);
}

#[test]
fn who_refers_to_a_row_of_the_run_keeps_it_until_they_are_gone() {
    for action in ["NO ACTION", "CASCADE", "SET NULL"] {
        let database = Server::shared().database("CREATEROLE");
        database.sql(&format!(
            "CREATE TABLE customers (id int PRIMARY KEY, v text);
             CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers ON DELETE {action});
             CREATE TABLE lines (id int PRIMARY KEY, orders int REFERENCES orders);
             INSERT INTO customers VALUES (0, 'theirs')"
        ));
        let lab = lab(&database);
        let script = r#"
own "INSERT INTO customers VALUES (1, ''), (2, ''), (3, ''); INSERT INTO orders VALUES (1, 3), (2, 3); INSERT INTO lines VALUES (1, 1)"
other "INSERT INTO orders VALUES (10, 1)"
other "INSERT INTO lines VALUES (11, 2)"
"#;
        let outcome = play(&lab, "-n 1", script).assert_code(123);
        let outcome = outcome.assert_says("refer to it").assert_says("sweep");
        let ids = |table: &str| {
            database.server.texts(&database.name, &format!("SELECT id::text FROM {table} ORDER BY {table}.id"))
        };
        assert_eq!(ids("customers"), ["0", "1", "3"], "{action}");
        assert_eq!(ids("orders"), ["2", "10"], "{action}");
        assert_eq!(ids("lines"), ["11"], "{action}");
        assert_eq!(
            database
                .server
                .texts(&database.name, "SELECT coalesce(customer::text, 'nobody') FROM orders ORDER BY orders.id"),
            ["3", "1"],
            "{action}"
        );
        let stuck = lab.column("SELECT kind || ' ' || key FROM records WHERE state = 'stuck' ORDER BY 1");
        assert_eq!(
            stuck,
            [r#"public.customers {"id":1}"#, r#"public.customers {"id":3}"#, r#"public.orders {"id":2}"#]
        );
        let triggers = "SELECT tgname::text FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid WHERE tgname LIKE 'isolane%' AND prosrc <> 'BEGIN RETURN NULL; END'";
        assert!(database.server.texts(&database.name, triggers).is_empty(), "{}", outcome.all());

        // Meanwhile somebody makes a row like one that was removed.
        database.sql("INSERT INTO customers VALUES (2, 'theirs')");
        lab.isolane("sweep --apply").run().assert_code(123);
        database.sql("DELETE FROM lines; DELETE FROM orders WHERE id = 10");
        lab.isolane("sweep --apply").run().assert_code(0);
        assert_eq!(ids("customers"), ["0", "2"], "{action}");
        assert!(ids("orders").is_empty(), "{action}");
        assert_eq!(lab.column("SELECT DISTINCT state FROM records"), ["removed"]);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn of_rows_that_are_alike_those_of_others_stay_in_number() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE log (t text, n int, at timestamptz, x real); ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo';
         INSERT INTO log SELECT 'same', 1, '2020-01-01 00:00Z', 0.1 FROM generate_series(1, 3)",
    );
    let lab = lab(&database);
    let script = r#"
own "INSERT INTO log SELECT 'same', 1, '2020-01-01 00:00Z', 0.1 FROM generate_series(1, 4)"
other "INSERT INTO log SELECT 'same', 1, '2020-01-01 00:00Z', 0.1 FROM generate_series(1, 2)"
own "INSERT INTO log SELECT 'moves', 1 FROM generate_series(1, 3); UPDATE log SET t = 'moved' WHERE t = 'moves'"
own "INSERT INTO log VALUES ('emptied', 1)"
own "SET timezone = 'America/New_York'; SET extra_float_digits = -5; INSERT INTO log VALUES ('time', 1, '2020-01-01 00:00Z', 0.1)"
"#;
    play(&lab, "-n 1", script).assert_code(0);
    let left = "SELECT t || ' ' || count(*) FROM log GROUP BY t ORDER BY 1";
    assert_eq!(database.server.texts(&database.name, left), ["same 5"]);
    let script = r#"own "INSERT INTO log VALUES ('same', 1, '2020-01-01 00:00Z', 0.1); TRUNCATE log"
other "INSERT INTO log VALUES ('same', 1, '2020-01-01 00:00Z', 0.1)""#;
    play(&lab, "-n 1", script).assert_code(0);
    assert_eq!(database.server.texts(&database.name, left), ["same 1"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn what_a_server_wrote_for_a_worker_goes_and_changes_by_others_are_told() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE users (id serial PRIMARY KEY, email text, note text);
         CREATE TABLE i_like (id serial PRIMARY KEY, \"isolane row\" text);
         INSERT INTO users (email) VALUES ('theirs@example.com')",
    );
    let before = database.dump();
    let lab = lab(&database);
    let script = r#"
other "INSERT INTO users (email) VALUES ('$ISOLANE_PREFIX-alice@example.com'), ('stranger@example.com')"
other "INSERT INTO i_like (\"isolane row\") SELECT '$ISOLANE_PREFIX' || n FROM generate_series(1, 3) n"
own "INSERT INTO users (email) VALUES ('own')"
other "UPDATE users SET note = 'seen' WHERE email = 'own'"
other "DELETE FROM users WHERE email = 'stranger@example.com'"
"#;
    let outcome = play(&lab, "-n 1", script).assert_code(0);
    outcome.assert_says("1 row of public.users that the run had made, others had changed meanwhile");
    let dump =
        |dump: String| dump.lines().filter(|line| !line.contains("setval")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(dump(database.dump()), dump(before));
    let sources = "SELECT source || ' ' || count(*) FROM records GROUP BY source ORDER BY 1";
    assert_eq!(lab.column(sources), ["prefix 4", "trigger 1"]);
    assert_eq!(lab.column("SELECT DISTINCT worker_id || ' ' || state FROM records"), ["w0 removed"]);
    database.assert_nothing_left(&lab);
}

#[test]
fn what_the_users_own_triggers_write_goes_with_the_rows() {
    let database = Server::shared().database("CREATEROLE");
    database.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE audit (at timestamptz DEFAULT clock_timestamp(), op text, id int);
         CREATE TABLE steps (id serial PRIMARY KEY, op text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO audit (op, id) VALUES (TG_OP, coalesce(NEW.id, OLD.id)); INSERT INTO steps (op) VALUES (TG_OP); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
         INSERT INTO t VALUES (-1, 'theirs')",
    );
    let before = database.dump();
    let lab = lab(&database);
    let outcome =
        play(&lab, "-n 1", "own \"INSERT INTO t VALUES (1, 'a'), (2, 'b'); UPDATE t SET v = 'c' WHERE id > 0\"")
            .assert_code(0);
    outcome.assert_does_not_say("could not");
    let dump = |dump: &str| dump.lines().filter(|line| !line.contains("setval")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(dump(&database.dump()), dump(&before));
    assert_eq!(lab.value("SELECT count(*) FROM records WHERE state = 'removed'"), "10");
    database.assert_nothing_left(&lab);
}

#[test]
fn what_was_kept_loses_its_triggers_and_goes_when_it_is_wanted_no_more() {
    for (options, ends) in [("--keep always", "true"), ("--keep failed", "false")] {
        let database = Server::shared().database("CREATEROLE");
        database.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'theirs')");
        let lab = lab(&database);
        let script = format!("own \"INSERT INTO t VALUES (1, 'ours'), (2, 'ours')\"\n{ends}");
        let outcome = play(&lab, &format!("{options} -n 1"), &script);
        outcome.assert_code(i32::from(ends == "false")).assert_says("kept as asked").assert_says("sweep --apply");
        assert_eq!(states(&lab), [r#"public.t {"id":1} kept"#, r#"public.t {"id":2} kept"#]);
        let triggers = "SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'isolane%'";
        assert!(database.server.texts(&database.name, triggers).is_empty());
        lab.isolane("sweep").run().assert_code(0).assert_shows("kept as asked").assert_shows("schema");
        assert_eq!(database.server.texts(&database.name, "SELECT id::text FROM t ORDER BY t.id"), ["-1", "1", "2"]);
        // From another machine as well.
        if ends == "true" {
            Lab::on(&database).isolane("sweep --apply").run().assert_code(0);
        }
        let swept = lab.isolane("sweep --apply").run().assert_code(0);
        let left = database.server.texts(&database.name, "SELECT id::text FROM t ORDER BY t.id");
        assert_eq!(left, ["-1"], "{ends}: {}", swept.all());
        if ends == "false" {
            assert_eq!(lab.column("SELECT DISTINCT state FROM records"), ["removed"]);
        }
        database.assert_nothing_left(&lab);
    }
}
