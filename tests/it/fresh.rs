//! A lane for each test: rows and sequences as they were, on connections that live on.

use crate::lab::{Database, Lab, Outcome, Server, no_rows};

/// Tables of every kind that a schema may have, with rows.
const SCHEMA: &str = r#"
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TYPE pair AS (a int, b text);
CREATE TABLE customers (id serial PRIMARY KEY, name text, raw json, at timestamptz DEFAULT now());
CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL REFERENCES customers ON DELETE CASCADE, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE log (what text, n int);
CREATE TABLE parts (id int, place text, PRIMARY KEY (id, place)) PARTITION BY LIST (place);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_b (place text NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b');
CREATE TABLE typed (a uuid, b bytea, c timestamptz, d colour, e pair, f float8, g text[], PRIMARY KEY (a, b, c, d, e));
CREATE TABLE narrowed (gone int, id int PRIMARY KEY, v text);
ALTER TABLE narrowed DROP COLUMN gone;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE swapped (id int PRIMARY KEY, rank int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE UNLOGGED TABLE quick (id int PRIMARY KEY, v int);
CREATE SCHEMA "My Shop";
CREATE TABLE "My Shop"."Odd ""Table'" ("Id %" int PRIMARY KEY, "b c'" text);
CREATE TABLE audit (id serial PRIMARY KEY, what text);
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit (what) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON customers FOR EACH ROW EXECUTE FUNCTION audited();
INSERT INTO customers (name, raw) VALUES ('ann', '{"b" : 1,  "a":2, "b":3}'), ('bob', NULL);
INSERT INTO orders (customer, n) VALUES (1, 5), (1, 6), (2, 7);
INSERT INTO log VALUES ('same', 1), ('same', 1), ('same', 1), (NULL, NULL);
INSERT INTO parts VALUES (1, 'a'), (2, 'b');
INSERT INTO typed VALUES ('00000000-0000-0000-0000-000000000001', '\x00ff', '2020-02-29 12:00+02', 'red', ROW(1, 'it''s (a) "b"'), 0.1, '{"a b",NULL}');
INSERT INTO narrowed VALUES (1, 'a'), (2, 'b');
INSERT INTO tree VALUES (1, 2), (2, 1);
INSERT INTO swapped VALUES (1, 1), (2, 2);
INSERT INTO quick VALUES (1, 1);
INSERT INTO "My Shop"."Odd ""Table'" VALUES (1, '%');
SELECT lo_from_bytea(4242, 'seed');
"#;

/// What tests do that can be undone where the lane stands.
pub const WRITES: &[(&str, &str)] = &[
    (
        "insert",
        "INSERT INTO customers (name) VALUES ('eve'); INSERT INTO orders (customer, n) VALUES (currval('customers_id_seq'), 1)",
    ),
    ("update", "UPDATE customers SET name = 'x', raw = '{}'; UPDATE orders SET n = n + 1 WHERE id = 2"),
    ("cascade", "DELETE FROM customers WHERE id = 1"),
    (
        "keys",
        "UPDATE tree SET parent = NULL; UPDATE tree SET id = id + 10; UPDATE swapped SET id = 3 - id WHERE id = 9; BEGIN; UPDATE swapped SET rank = 3 - rank; COMMIT",
    ),
    (
        "again",
        "DELETE FROM narrowed; INSERT INTO narrowed VALUES (1, 'other'), (7, 'new'); UPDATE narrowed SET id = 2 WHERE id = 7; DELETE FROM narrowed WHERE id = 1",
    ),
    (
        "truncate",
        "TRUNCATE customers, orders, log, parts RESTART IDENTITY; INSERT INTO customers (name) VALUES ('first')",
    ),
    (
        "truncate_cascade",
        "TRUNCATE customers CASCADE; INSERT INTO log VALUES ('after', 1); TRUNCATE log; INSERT INTO log VALUES ('same', 1)",
    ),
    (
        "alike",
        "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE what = 'same' LIMIT 2); INSERT INTO log VALUES (NULL, NULL), ('same', 2); UPDATE log SET n = 3 WHERE n = 2",
    ),
    (
        "partitions",
        "UPDATE parts SET place = 'b' WHERE id = 1; INSERT INTO parts_a VALUES (9, 'a'); DELETE FROM parts_b WHERE id = 2; TRUNCATE parts_a",
    ),
    (
        "types",
        "UPDATE typed SET f = 0.3, g = '{}', e = ROW(2, 'c'); INSERT INTO typed VALUES (gen_random_uuid(), '', now(), 'green', ROW(NULL, NULL), 'NaN', NULL)",
    ),
    (
        "unlogged",
        "UPDATE quick SET v = 2; INSERT INTO quick VALUES (2, 2); UPDATE quick SET id = 3 WHERE id = 1; DELETE FROM quick",
    ),
    (
        "odd_names",
        r#"UPDATE "My Shop"."Odd ""Table'" SET "b c'" = $$'$$; INSERT INTO "My Shop"."Odd ""Table'" VALUES (2, NULL)"#,
    ),
    (
        "replica",
        "SET session_replication_role = replica; DELETE FROM customers WHERE id = 1; INSERT INTO orders (customer, n) VALUES (99, 1); RESET session_replication_role",
    ),
    ("sequence", "SELECT nextval('customers_id_seq'); SELECT setval('audit_id_seq', 500)"),
    (
        "rolled_back",
        "BEGIN; DELETE FROM log; INSERT INTO log VALUES ('not', 0); ROLLBACK; BEGIN; SAVEPOINT s; DELETE FROM log; ROLLBACK TO s; INSERT INTO log VALUES ('kept', 1); COMMIT",
    ),
    (
        "settings",
        "SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY'; SET extra_float_digits = -3; UPDATE typed SET f = 0.2; UPDATE customers SET at = now(); RESET ALL",
    ),
    (
        "copy",
        "CREATE TEMP TABLE t AS SELECT * FROM customers; INSERT INTO customers SELECT id + 100, name, raw, at FROM t; DROP TABLE t",
    ),
    ("upsert", "INSERT INTO narrowed VALUES (1, 'x'), (3, 'y') ON CONFLICT (id) DO UPDATE SET v = excluded.v"),
    ("large_object_made", "SELECT lo_from_bytea(0, 'new')"),
];

/// A suite whose tests each run one of these texts, on a connection of all, and one at the end.
pub fn suite(lab: &Lab, writes: &[(&str, &str)]) {
    let named: Vec<_> = writes.iter().map(|(name, sql)| format!("    {name:?}: r\"\"\" {sql} \"\"\",\n")).collect();
    lab.file(
        "test_writes.py",
        &format!(
            "import pool, pytest\nWRITES = {{\n{}}}\n
@pytest.mark.parametrize('name', WRITES)
def test_write(name):
    pool.db().execute(WRITES[name])

def test_zz_last():
    pool.db()
",
            named.concat()
        ),
    );
}

/// A database with all of it, and a project for it.
fn shop(server: &Server) -> (Database<'_>, Lab) {
    let database = server.database("CREATEDB SUPERUSER");
    database.sql(SCHEMA);
    let lab = Lab::on(&database);
    lab.pristine_suite(&database);
    (database, lab)
}

/// `isolane run --fresh test -- pytest …`.
pub fn fresh(lab: &Lab, options: &str, args: &str) -> Outcome {
    lab.wrap(&format!("--fresh test {options}"), &format!("pytest -q -p no:cacheprovider {args}")).run()
}

/// Which tests left what, and why lanes were made again.
pub fn leftovers(lab: &Lab) -> Vec<String> {
    let sql = "SELECT replace(replace(coalesce(test_id, 'nobody'), 'test_writes.py::', ''), 'test_write', '') || ' ' || l.kind || ': ' || detail
               FROM leftover l LEFT JOIN test e ON e.run = l.run AND e.number = l.test ORDER BY l.rowid";
    lab.column(sql)
}

#[test]
fn each_test_finds_all_rows_and_sequences_as_they_were() {
    let (database, lab) = shop(Server::shared());
    suite(&lab, WRITES);
    lab.file("test_zzz.py", "import pool\ndef test_one_connection(): assert pool.db() and pool.opened == 1");
    let outcome = fresh(&lab, "", "");
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    outcome.assert_code(0);
    database.assert_nothing_left(&lab);
}

#[test]
fn so_does_each_test_of_every_worker_in_whatever_order() {
    let (database, lab) = shop(Server::shared());
    let twice: Vec<_> =
        WRITES.iter().chain(WRITES).enumerate().map(|(n, (name, sql))| (format!("{name}{n}"), *sql)).collect();
    let twice: Vec<_> = twice.iter().map(|(name, sql)| (name.as_str(), *sql)).collect();
    suite(&lab, &twice);
    let outcome = fresh(&lab, "", "-n 2").assert_code(0);
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    assert_eq!(lab.ledger("SELECT DISTINCT worker_id FROM tests").len(), 2);
    database.assert_nothing_left(&lab);
}

#[test]
fn rows_of_fixtures_of_a_session_are_undone_too_and_the_users_triggers_rest() {
    let (_database, lab) = shop(Server::shared());
    lab.file(
        "test_fixture.py",
        "import pool, pytest
@pytest.fixture(scope='session', autouse=True)
def seeded(): pool.db().execute(\"INSERT INTO log VALUES ('fixture', 1)\")
def rows(): return pool.db().execute(\"SELECT count(*) FROM log WHERE what = 'fixture'\").fetchone()[0]
def test_a(): assert rows() == 1
def test_b(): assert rows() == 0
",
    );
    // Only the first test has the fixture's row, so the suite's own look would be in its way.
    lab.file("conftest.py", "");
    fresh(&lab, "", "").assert_code(0);
}

#[test]
fn what_is_watched_for_the_ledger_and_what_is_undone_are_two_things() {
    let (_database, lab) = shop(Server::shared());
    suite(&lab, WRITES);
    fresh(&lab, "--no-track", "").assert_code(0);
    assert_eq!(lab.ledger("SELECT * FROM touches"), no_rows());
    fresh(&lab, "--track public.log", "").assert_code(0);
    assert_eq!(lab.column("SELECT DISTINCT kind FROM touches"), ["public.log"]);
    assert_eq!(leftovers(&lab), Vec::<String>::new());
}

#[test]
fn the_ledger_knows_of_rows_although_they_were_undone() {
    let (_database, lab) = shop(Server::shared());
    suite(&lab, &[("one", "INSERT INTO log VALUES ('a', 1)"), ("two", "INSERT INTO narrowed VALUES (5, 'a')")]);
    fresh(&lab, "", "").assert_code(0);
    let touches = lab.ledger("SELECT test_id, kind, op FROM touches ORDER BY at");
    assert_eq!(
        touches,
        [
            ["test_writes.py::test_write[one]", "public.log", "insert"],
            ["test_writes.py::test_write[two]", "public.narrowed", "insert"]
        ]
    );
}

#[test]
fn tables_of_extensions_are_put_back_too() {
    let server = Server::shared();
    let database = server.database("CREATEDB SUPERUSER");
    database.sql("CREATE EXTENSION hstore; CREATE TABLE own (id int PRIMARY KEY, v hstore); INSERT INTO own VALUES (1, 'a=>1'); ALTER EXTENSION hstore ADD TABLE own");
    let lab = Lab::on(&database);
    lab.pristine_suite(&database);
    suite(&lab, &[("own", "UPDATE own SET v = 'b=>2'; INSERT INTO own VALUES (2, NULL)")]);
    fresh(&lab, "", "").assert_code(0);
    assert_eq!(lab.ledger("SELECT * FROM touches"), no_rows());
}

#[test]
fn a_template_that_setup_made_is_what_each_test_finds() {
    let server = Server::shared();
    let database = server.database("CREATEDB SUPERUSER");
    database.sql("CREATE TABLE here (id int)");
    let lab = Lab::on(&database);
    lab.file("setup.sql", "CREATE TABLE goods (id serial PRIMARY KEY, v int); INSERT INTO goods (v) VALUES (1)");
    lab.file("pool.py", "").pristine_suite(&database).file("conftest.py", "");
    lab.file(
        "test_goods.py",
        "import pool, pytest
@pytest.mark.parametrize('n', range(4))
def test_goods(n):
    assert pool.db().execute('SELECT id, v FROM goods').fetchall() == [(1, 1)]
    assert pool.db().execute('INSERT INTO goods (v) VALUES (7) RETURNING id').fetchone() == (2,)
    pool.db().execute('UPDATE goods SET v = 8')
    assert pool.opened == 1
",
    );
    let run = lab.isolane("run --fresh test").arg_all(["--setup", "psql -qX -f setup.sql"]);
    run.arg_all(["--", "pytest", "-q", "-p", "no:cacheprovider"]).run().assert_code(0);
    assert_eq!(leftovers(&lab), Vec::<String>::new());
    database.assert_nothing_left(&lab);
}

#[test]
fn two_databases_of_one_run_are_both_put_back() {
    let server = Server::shared();
    let [one, two] = [server.database("CREATEDB SUPERUSER"), server.database("CREATEDB SUPERUSER")];
    for database in [&one, &two] {
        database.sql("CREATE TABLE goods (id serial PRIMARY KEY); INSERT INTO goods DEFAULT VALUES");
    }
    let lab = Lab::on(&one).with("AUDIT_URL", two.url());
    lab.file(
        "test_goods.py",
        "import os, psycopg, pytest
DB = {}
@pytest.mark.parametrize('n', range(4))
def test_goods(n):
    for name in ('DATABASE_URL', 'AUDIT_URL'):
        db = DB.setdefault(name, psycopg.connect(os.environ[name], autocommit=True) if name not in DB else None)
        assert db.execute('INSERT INTO goods DEFAULT VALUES RETURNING id').fetchone() == (2,)
        if n == 2 and name == 'AUDIT_URL': db.execute('DROP TABLE goods'); DB.pop(name).close()
",
    );
    fresh(&lab, "--url-var DATABASE_URL --url-var AUDIT_URL", "").assert_code(0).assert_says("AUDIT_URL");
    one.assert_nothing_left(&lab);
    two.assert_nothing_left(&lab);
}

#[test]
fn who_is_connected_to_the_users_database_does_not_matter() {
    let (database, lab) = shop(Server::shared());
    let mut other = database.client();
    other.batch_execute("BEGIN; LOCK TABLE log IN ACCESS SHARE MODE").expect("a lock");
    suite(&lab, WRITES);
    let outcome = fresh(&lab, "", "").assert_code(0);
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
}
