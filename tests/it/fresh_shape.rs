//! A lane for each test, where tests change more than rows: what counts is noticed, the lane is made
//! again, and it is said which test did what; what counts for nothing costs nothing.

use crate::fresh::{fresh, leftovers, suite};
use crate::lab::{Database, Lab, Server};

const SCHEMA: &str = "
CREATE TYPE colour AS ENUM ('red');
CREATE TABLE items (id serial PRIMARY KEY, v int DEFAULT 1, c colour);
CREATE TABLE other (id int PRIMARY KEY, item int REFERENCES items);
CREATE VIEW seen AS SELECT id FROM items;
CREATE MATERIALIZED VIEW sums AS SELECT id, v FROM items;
CREATE UNIQUE INDEX ON sums (id);
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
INSERT INTO items (v) VALUES (1), (2); INSERT INTO other VALUES (1, 1);
REFRESH MATERIALIZED VIEW sums;
SELECT lo_from_bytea(4242, 'seed');
";

/// What changes the lane for good, and how that is called.
const CHANGES: &[(&str, &str, &str)] = &[
    ("add_column", "ALTER TABLE items ADD extra int", "table public.items"),
    ("default", "ALTER TABLE items ALTER v SET DEFAULT 2", "items"),
    ("drop_column", "ALTER TABLE items DROP v CASCADE", "does not exist"),
    ("create_table", "CREATE TABLE made (id int)", "table public.made"),
    ("drop_table", "DROP TABLE other", "table public.other"),
    ("drop_schema", "DROP SCHEMA public CASCADE; CREATE SCHEMA public", "does not exist"),
    ("extension", "CREATE EXTENSION citext", "extension citext"),
    ("index", "CREATE INDEX by_v ON items (v)", "index public.by_v"),
    ("drop_index", "DROP INDEX sums_id_idx", "index"),
    ("grant", "GRANT SELECT ON items TO PUBLIC", "table public.items"),
    ("comment", "COMMENT ON TABLE items IS 'things'", "table public.items"),
    ("function", "CREATE FUNCTION two() RETURNS int LANGUAGE sql AS 'SELECT 2'", "function public.two()"),
    (
        "function_again",
        "CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 3'",
        "function public.one()",
    ),
    (
        "setting",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''5MB''', current_database()); END $$",
        "settings",
    ),
    (
        "role_setting",
        "DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET work_mem = ''6MB''', current_database()); END $$",
        "settings",
    ),
    ("refresh", "UPDATE items SET v = 9; REFRESH MATERIALIZED VIEW sums", "sums"),
    ("refresh_concurrently", "UPDATE items SET v = 9; REFRESH MATERIALIZED VIEW CONCURRENTLY sums", "sums"),
    ("sequence", "ALTER SEQUENCE items_id_seq INCREMENT 5", "items_id_seq"),
    (
        "triggers_off",
        "ALTER TABLE items DISABLE TRIGGER ALL; INSERT INTO items (v) VALUES (5)",
        "triggers of public.items",
    ),
    (
        "user_triggers_off",
        "ALTER TABLE items DISABLE TRIGGER USER; DELETE FROM items WHERE id = 2",
        "triggers of public.items",
    ),
    ("enum", "ALTER TYPE colour ADD VALUE 'blue'", "colour"),
    ("constraint", "ALTER TABLE items ADD CONSTRAINT small CHECK (v < 100)", "items"),
    ("view", "CREATE OR REPLACE VIEW seen AS SELECT id FROM items WHERE v = 1", "definition of public.seen"),
    ("rename", "ALTER TABLE other RENAME TO another", "table public.another"),
    ("clustered", "CLUSTER items USING items_pkey", "indexes of public.items"),
    ("policy", "ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON items USING (true)", "items"),
    ("large_object_gone", "SELECT lo_unlink(4242)", "large object"),
    ("large_object_changed", "SELECT lo_put(4242, 0, 'other')", "large object"),
    ("logged", "ALTER TABLE other SET UNLOGGED", "table public.other"),
    ("own_log_gone", "DROP SCHEMA isolane_log CASCADE; UPDATE items SET v = 0", "isolane_log"),
];

/// What changes catalogs, and nothing that counts.
const HARMLESS: &[(&str, &str)] = &[
    (
        "temporary",
        "CREATE TEMP TABLE t (id serial PRIMARY KEY, v text); CREATE INDEX ON t (v); CREATE TEMP VIEW tv AS SELECT * FROM t",
    ),
    ("truncate", "TRUNCATE items, other RESTART IDENTITY"),
    ("analyze", "ANALYZE"),
    ("vacuum", "VACUUM items"),
    ("vacuum_full", "VACUUM FULL items"),
    ("rolled_back", "BEGIN; ALTER TABLE items ADD extra int; DROP TABLE other; CREATE TABLE more (id int); ROLLBACK"),
    ("savepoint", "BEGIN; SAVEPOINT s; CREATE TABLE more (id int); ROLLBACK TO s; UPDATE items SET v = 3; COMMIT"),
    (
        "made_and_gone",
        "CREATE TABLE more (id int); DROP TABLE more; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; DROP FUNCTION f()",
    ),
    ("reindex", "REINDEX TABLE items"),
    ("refresh_alike", "REFRESH MATERIALIZED VIEW sums"),
    ("large_object", "SELECT lo_from_bytea(77, 'new')"),
    ("dropped_temporary", "DISCARD ALL"),
];

fn shop(server: &Server) -> (Database<'_>, Lab) {
    let database = server.database("CREATEDB SUPERUSER");
    database.sql(SCHEMA);
    let lab = Lab::on(&database);
    lab.pristine_suite(&database);
    (database, lab)
}

/// Tests that each write on a connection of their own: a new copy ends those that there are.
fn suite_apart(lab: &Lab, writes: &[(&str, &str)]) {
    suite(lab, writes);
    let pool = lab
        .read("pool.py")
        .replace("if connection is None or connection.closed:", "if connection: connection.close()\n    if True:");
    lab.file("pool.py", &pool);
}

#[test]
fn what_was_changed_for_good_is_noticed_and_the_next_test_finds_a_new_copy() {
    let (database, lab) = shop(Server::shared());
    let changes: Vec<_> = CHANGES.iter().map(|(name, sql, _)| (*name, *sql)).collect();
    suite_apart(&lab, &changes);
    let outcome = fresh(&lab, "", "");
    let left = leftovers(&lab);
    let mut wrong = Vec::new();
    for (name, _, called) in CHANGES {
        let line = left.iter().find(|line| line.starts_with(&format!("[{name}] lane made again: ")));
        if !line.is_some_and(|line| line.contains(called)) {
            wrong.push(format!("{name} should be {called:?}: {line:?}"));
        }
    }
    assert!(wrong.is_empty() && left.len() == CHANGES.len(), "{wrong:#?}\n{left:#?}\n{}", outcome.all());
    outcome.assert_code(0).assert_says(&format!("made again after {} tests", CHANGES.len()));
    database.assert_nothing_left(&lab);
}

#[test]
fn what_counts_for_nothing_in_the_end_costs_no_new_copy() {
    let (database, lab) = shop(Server::shared());
    suite(&lab, HARMLESS);
    let outcome = fresh(&lab, "", "");
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    outcome.assert_code(0).assert_does_not_say("made again");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_database_that_has_settings_of_its_own_is_as_it_was() {
    let (database, lab) = shop(Server::shared());
    database.sql(&format!("ALTER DATABASE {} SET work_mem = '7MB'", database.name));
    lab.pristine_suite(&database);
    let reset = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$";
    suite_apart(&lab, &[("none", "SELECT 1"), ("reset", reset), ("after", "SELECT 1")]);
    fresh(&lab, "", "").assert_code(0);
    assert_eq!(leftovers(&lab), ["[reset] lane made again: changed: the settings of the database"]);
}
