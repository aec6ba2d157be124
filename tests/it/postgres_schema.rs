//! A schema for each lane, for logins that may not create databases.

use crate::lab::{Database, Lab, Server};

/// A schema with everything that refers to something else in it.
const SHOP: &str = "
    CREATE TYPE colour AS ENUM ('red', 'blue');
    CREATE DOMAIN amount AS int CHECK (VALUE >= 0);
    CREATE TABLE customers (id serial PRIMARY KEY, email text UNIQUE NOT NULL, likes colour DEFAULT 'blue');
    CREATE TABLE orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer int NOT NULL REFERENCES customers (id), n amount NOT NULL, total int GENERATED ALWAYS AS (n * 10) STORED);
    CREATE SEQUENCE invoice START 1000;
    CREATE VIEW spent AS SELECT c.email, sum(o.total) AS total FROM customers c JOIN orders o ON o.customer = c.id GROUP BY 1;
    CREATE MATERIALIZED VIEW names AS SELECT email FROM customers;
    CREATE FUNCTION buy(who int, n int) RETURNS bigint LANGUAGE sql AS
        'INSERT INTO orders (customer, n) VALUES (who, n) RETURNING id';
    CREATE FUNCTION lower_email() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.email := lower(NEW.email); RETURN NEW; END';
    CREATE TRIGGER lower_email BEFORE INSERT ON customers FOR EACH ROW EXECUTE FUNCTION lower_email();
    CREATE INDEX orders_customer ON orders (customer) WHERE n > 0;
    INSERT INTO customers (email) VALUES ('A@example.com'), ('b@example.com');
    SELECT buy(1, 2), nextval('invoice');
    REFRESH MATERIALIZED VIEW names;";

/// Every line holds in a lane; psql prints `t` for each.
const CHECKS: &str = "
    SELECT current_schema() = :'lane';
    SELECT string_agg(email || likes, ' ' ORDER BY id) = 'a@example.comblue b@example.comblue' FROM customers;
    SELECT total = 20 FROM spent WHERE email = 'a@example.com';
    SELECT count(*) = 2 FROM names;
    SELECT nextval('invoice') = 1001;
    SELECT buy(2, 5) = 2;
    SELECT total = 50 FROM spent WHERE email = 'b@example.com';
    INSERT INTO customers (email) VALUES ('NEW@example.com') RETURNING email = 'new@example.com' AND id = 3;
    SELECT count(*) = 3 FROM pg_constraint WHERE contype IN ('f', 'p') AND connamespace = current_schema()::regnamespace;
    SELECT confrelid = 'customers'::regclass FROM pg_constraint WHERE conrelid = 'orders'::regclass AND contype = 'f';
    SELECT typnamespace = current_schema()::regnamespace FROM pg_type WHERE oid = 'colour'::regtype;
    SELECT bool_and(n.nspname IN (current_schema(), 'pg_catalog')) FROM unnest(current_schemas(true)) AS n(nspname);
    SELECT pg_get_serial_sequence('customers', 'id') LIKE current_schema() || '.%';
    SELECT count(*) = 0 FROM pg_depend d JOIN pg_class c ON c.oid = d.refobjid JOIN pg_attrdef a ON a.oid = d.objid
        WHERE a.adrelid = 'customers'::regclass AND c.relnamespace <> current_schema()::regnamespace;";

const CHECK_SCRIPT: &str =
    "set -e; psql -XAtq -v ON_ERROR_STOP=1 -v lane=\"$ISOLANE_SCHEMA\" -f checks.sql \"$DATABASE_URL\" >$WORKER_ID.out";

#[track_caller]
fn assert_whole(lab: &Lab, options: &str) -> crate::lab::Outcome {
    lab.file("checks.sql", CHECKS);
    let outcome = lab.sh(&format!("-n 2 {options}"), CHECK_SCRIPT).run().assert_code(0);
    for worker in ["w0", "w1"] {
        let lines = lab.read(&format!("{worker}.out"));
        let expected = "t\n".repeat(CHECKS.matches(';').count());
        assert_eq!(lines, expected, "{worker} {options}\n{}", outcome.all());
    }
    outcome
}

fn shop(rights: &str) -> Database<'static> {
    let database = Server::shared().database(rights);
    database.sql(SHOP);
    database
}

#[test]
fn a_lane_has_all_of_the_users_schema_and_nothing_points_out_of_it() {
    let database = shop("CREATEROLE");
    let dump = database.dump();
    let lab = Lab::on(&database);
    assert_whole(&lab, "--isolation schema");
    assert_eq!(database.dump(), dump);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_lane_has_a_login_of_its_own_whose_path_survives_a_reset() {
    let database = shop("CREATEROLE");
    let lab = Lab::on(&database);
    let sql = "RESET ALL; SELECT current_schema(), session_user, current_setting('search_path'), current_database()";
    let outcome = lab.run("--isolation schema", ["psql", "-XAtqc", sql]).run().assert_code(0);
    let lane = format!("isolane_{}_w0", lab.tag());
    let shown: Vec<_> = outcome.out().trim_end().split('|').map(str::to_owned).collect();
    assert_eq!(shown[0], lane);
    assert!(shown[1].contains(&lab.tag()), "the lane's own role: {shown:?}");
    assert_eq!(shown[2].trim_matches('"'), lane, "nothing else on the path");
    assert_eq!(shown[3], database.name);
    let url = lab.sh("--isolation schema", "echo $DATABASE_URL; echo $PGUSER").run().assert_code(0).out();
    assert!(!url.contains(&format!("{}:", database.login)) && !url.contains("search_path"), "{url}");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_lane_does_not_get_at_the_users_own_tables() {
    let database = shop("CREATEROLE");
    let lab = Lab::on(&database);
    let outcome = lab.run("--isolation schema", ["psql", "-XAtqc", "DELETE FROM public.orders"]).run();
    assert!(outcome.status.code() != Some(0) && outcome.err().contains("permission denied"), "{}", outcome.all());
    database.assert_nothing_left(&lab);
}

#[test]
fn a_login_that_may_create_no_roles_gets_its_path_by_options_and_is_told_so() {
    let database = shop("");
    let lab = Lab::on(&database);
    let outcome = assert_whole(&lab, "");
    outcome.assert_says("the search path is in the address and PGOPTIONS");
    let shown = lab.sh("", "echo $DATABASE_URL; echo $PGOPTIONS; echo $PGUSER").run().assert_code(0).out();
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].contains("options=") && lines[0].contains("search_path"), "{shown}");
    assert!(lines[1].contains("search_path"), "{shown}");
    assert_eq!(lines[2], database.login);
    database.assert_nothing_left(&lab);
}

#[test]
fn what_extensions_made_beside_the_tables_is_named() {
    let server = Server::own();
    let database = server.database("CREATEROLE");
    server.sql(&database.name, "CREATE EXTENSION citext SCHEMA public");
    let lab = Lab::on(&database);
    let outcome = lab.wrap("--isolation schema", "true").run().assert_code(0);
    outcome.assert_says("what citext made in public is outside of a lane's search path");
}

#[test]
fn two_databases_may_be_separated_in_two_ways() {
    let (one, other) = (shop("CREATEROLE"), Server::shared().database("CREATEDB"));
    other.sql("CREATE TABLE parts (id int)");
    let lab = Lab::on(&one).with("OTHER_URL", other.url());
    let script = "psql -XAtqc 'SELECT count(*) FROM parts' \"$OTHER_URL\" && psql -XAtqc 'SELECT current_schema()'";
    let options = "--url-var DATABASE_URL --url-var OTHER_URL";
    let outcome = lab.sh(options, script).run().assert_code(0);
    assert_eq!(outcome.out().lines().collect::<Vec<_>>(), ["0", &format!("isolane_{}_w0", lab.tag())]);
    let swapped = Lab::on(&other).with("OTHER_URL", one.url());
    let script = "psql -XAtqc 'SELECT current_database() || current_schema()'";
    let outcome = swapped.sh(options, script).run().assert_code(0);
    assert_eq!(outcome.out().trim_end(), format!("isolane_{}_w0public", swapped.tag()));
    one.assert_nothing_left(&lab);
    other.assert_nothing_left(&swapped);
}

#[test]
fn options_that_the_user_has_already_stay() {
    let database = shop("");
    let lab = Lab::new().with("DATABASE_URL", database.url_with("postgresql", "?options=-c%20statement_timeout%3D77s"));
    let sql = "SELECT current_schema() LIKE 'isolane%', current_setting('statement_timeout')";
    for target in ["$DATABASE_URL", ""] {
        let script = format!("psql -XAtqc \"{sql}\" \"{target}\"");
        let outcome = lab.sh("--isolation schema", &script).env("PGOPTIONS", "-c statement_timeout=77s").run();
        assert_eq!(outcome.assert_code(0).out().trim_end(), "t|77s", "{target}");
    }
}

#[test]
fn many_rows_are_copied_too() {
    let database = Server::shared().database("");
    database.sql(
        "CREATE TABLE log (id int PRIMARY KEY, line text, more jsonb, at timestamptz DEFAULT now(), raw bytea);
         INSERT INTO log SELECT n, E'a\\tb\\\\c\\n' || n, '{\"x\": [1, null]}', now(), '\\x00ff'
         FROM generate_series(1, 20000) n;
         CREATE TABLE nobody (nothing text); INSERT INTO nobody VALUES (NULL), (''), ('\\N');
         CREATE TABLE no_columns ();",
    );
    let sum = "SELECT md5(string_agg(log::text, ',' ORDER BY id)) FROM log";
    let expected: String = database.client().query_one(sum, &[]).expect("a sum").get(0);
    let lab = Lab::on(&database);
    let both = format!("{sum}; SELECT count(*), count(nothing), max(nothing) FROM nobody");
    let outcome = lab.run("--isolation schema", ["psql", "-XAtqc", &both]).run().assert_code(0);
    let shown = outcome.out();
    assert!(shown.contains(&expected), "{shown} {expected}");
    assert!(shown.contains("3|2|\\N"), "{shown}");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_suite_that_makes_its_own_tables_needs_no_template() {
    let database = Server::shared().database("CREATEROLE");
    let lab = Lab::on(&database);
    lab.file(
        "test_makes.py",
        "
import os, psycopg, pytest
@pytest.fixture(scope='session', autouse=True)
def db():
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        db.execute('CREATE TABLE users (email text UNIQUE)')
        db.execute('CREATE TYPE colour AS ENUM (\\'red\\')')
        db.execute('CREATE FUNCTION one() RETURNS int LANGUAGE sql AS \\'SELECT 1\\'')
        yield db
@pytest.mark.parametrize('n', range(30))
def test_signs_up(db, n):
    db.execute(\"INSERT INTO users VALUES ('a@example.com')\")
    db.execute('DELETE FROM users')
",
    );
    let before = database.dump();
    lab.wrap("--isolation schema", "pytest -q -n 3").run().assert_code(0);
    assert_eq!(database.dump(), before);
    database.assert_nothing_left(&lab);
}
