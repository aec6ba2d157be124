//! Pools whose items are rows of a table of the user's own database.

use serde_json::{Value, json};

use crate::lab::{Database, Lab, Server};

const CONFIGURED: &str =
    "[pool.premium]\ntable = \"test_users\"\nwhere = \"profile_type = 'premium' -- those who pay\"\nkey = \"login\"\n";
const USERS: &str = "CREATE TABLE test_users (login text PRIMARY KEY, profile_type text, age int, tags jsonb);
    INSERT INTO test_users VALUES ('ann', 'premium', 31, '{\"eu\": true}'), ('bob', 'premium', 17, NULL), ('cy', 'free', 50, NULL)";

fn lab(database: &Database<'_>) -> Lab {
    let lab = Lab::on(database);
    lab.file("isolane.toml", CONFIGURED);
    lab
}

fn leased(lab: &Lab, args: &str) -> Value {
    let out = lab.isolane(&format!("lease acquire {args} --format json")).run().assert_code(0).out();
    let lease: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{out}: {error}"));
    lease[0].clone()
}

#[test]
fn rows_are_leased_by_their_columns_and_follow_the_table() {
    let database = Server::shared().database("");
    database.sql(USERS);
    let lab = lab(&database);
    let ann = leased(&lab, "premium --where age>=18");
    assert_eq!(ann["item"], "ann");
    let columns = json!({"login": "ann", "profile_type": "premium", "age": 31, "tags": {"eu": true}});
    assert_eq!(ann["attributes"], columns);
    lab.isolane("lease acquire premium --where age>=18").run().assert_code(75).assert_says("held are ann by");
    lab.isolane("lease acquire premium --where login=cy").run().assert_code(65);
    database.sql(
        "INSERT INTO test_users VALUES ('dee', 'premium', 40, NULL); UPDATE test_users SET age = 18 WHERE login = 'bob';
         DELETE FROM test_users WHERE login = 'ann'",
    );
    let found = [leased(&lab, "premium --where age=18"), leased(&lab, "premium --where age=40")];
    assert_eq!(found.map(|lease| lease["item"].clone()), ["bob", "dee"]);
    // What is held goes when it is released.
    let id = ann["lease_id"].as_str().expect("an id");
    lab.isolane(&format!("lease release {id}")).run().assert_code(0);
    lab.isolane("lease acquire premium --where login=ann").run().assert_code(65);
    // Another address than the variable's, and a store that is not the ledger.
    let (other, lab) = (Server::shared().database(""), lab.with("ISOLANE_STORE", database.url()));
    other.sql(USERS);
    let list = lab.isolane("pool list premium --format json").arg("--database-url").arg(other.url());
    list.run().assert_code(0).assert_shows("\"ann\"").assert_shows("\"bob\"");
}

#[test]
fn within_a_run_what_was_added_meanwhile_is_found_whatever_the_isolation() {
    let database = Server::shared().database("CREATEDB");
    database.sql(USERS);
    let lab = lab(&database);
    lab.file(
        "test_it.py",
        "import os, subprocess, pytest
def psql(sql):
    subprocess.run(['psql', '-qX', os.environ['OWN'], '-c', sql], check=True)
def test_it(isolane):
    assert isolane.lease('premium', age=31)['login'] == 'ann'
    with pytest.raises(isolane.LeaseError) as error:
        isolane.lease('premium', login='eve')
    assert error.value.code == 'unsatisfiable'
    psql(\"INSERT INTO test_users VALUES ('eve', 'premium', 20, NULL)\")
    import time
    deadline = time.monotonic() + 30
    while True:
        try:
            lease = isolane.lease('premium', login='eve')
            break
        except isolane.LeaseError as error:
            assert error.code == 'unsatisfiable' and time.monotonic() < deadline
    assert lease['age'] == 20
",
    );
    let run = lab.pytest("-n 0").env("OWN", database.url()).run();
    run.assert_code(0).assert_shows("1 passed");
    database.assert_nothing_left(&lab);
}

#[test]
fn a_condition_can_write_nothing_and_ends() {
    let database = Server::shared().database("");
    database.sql(USERS);
    database.sql(
        "CREATE FUNCTION drop_it() RETURNS bool LANGUAGE plpgsql AS 'BEGIN DELETE FROM test_users; RETURN true; END'",
    );
    let lab = lab(&database);
    let list = |condition: &str| {
        lab.file(
            "isolane.toml",
            &format!("[pool.premium]\ntable = \"test_users\"\nkey = \"login\"\nwhere = \"{condition}\"\n"),
        );
        lab.isolane("pool list").run()
    };
    list("drop_it()").assert_code(2).assert_says("read-only transaction");
    list("true); DELETE FROM test_users; SELECT (true").assert_code(2).assert_says("cannot be read");
    list("pg_sleep(60) IS NOT NULL").assert_code(2).assert_says("within 10 seconds");
    list("true").assert_code(0).assert_shows("premium");
    assert_eq!(database.server.texts(&database.name, "SELECT count(*)::text FROM test_users"), ["3"]);
}

#[test]
fn what_is_not_there_is_said_in_one_line() {
    let server = Server::shared();
    let database = server.database("");
    database.sql(USERS);
    database.sql("CREATE TABLE doubled (id int, code int); INSERT INTO doubled VALUES (1, 7), (2, 7), (3, NULL); CREATE SCHEMA s; CREATE TABLE s.\"Odd \"\"name\" (id int); INSERT INTO s.\"Odd \"\"name\" VALUES (5)");
    let lab = Lab::on(&database);
    let says = |settings: &str, part: &str| {
        lab.file("isolane.toml", &format!("[pool.p]\n{settings}\n"));
        let outcome = lab.isolane("pool list").run();
        assert_eq!(outcome.said().len(), 1, "{:?}", outcome.said());
        outcome.assert_code(2).assert_says(part).assert_does_not_say("s3cret");
    };
    says("table = 'tset_users'", "pool p: the database");
    says("table = 'tset_users'", "has no table tset_users");
    says("table = 'test_users'", "has no column id; `key` is one of login, profile_type, age, tags");
    says("table = 'test_users'\nkey = 'login'\nwhere = 'agee > 1'", "column \"agee\" does not exist");
    says("table = 'doubled'\nkey = 'code'\nwhere = 'code = 7'", "two rows of the table doubled have the `code` 7");
    says("table = 'doubled'\nkey = 'code'\nwhere = 'id = 3'", "a row of the table doubled has no `code`");
    says("table = 'doubled'\nuse = 'consume'", "`pool.p.retire` is missing");
    lab.file("isolane.toml", "[pool.p]\ntable = 's.Odd \"name'\n");
    lab.isolane("pool list p").run().assert_code(0).assert_shows("5");
    lab.file("isolane.toml", "[pool.p]\ntable = 'test_users'\nkey = 'login'\n");
    let none = lab.isolane("pool list").env("DATABASE_URL", "").run();
    none.assert_code(2).assert_says("none is named; --database-url or DATABASE_URL names it");
    let wrong = lab.isolane("pool list").env("DATABASE_URL", database.url().replace("s3cret-of", "s3cret-no")).run();
    wrong.assert_says("refuses the login").assert_does_not_say("s3cret");
    server.sql("postgres", "CREATE ROLE guest_of_pools LOGIN PASSWORD 's3cret-of-guest'");
    let guest = format!("postgresql://guest_of_pools:s3cret-of-guest@127.0.0.1:{}/{}", server.port(), database.name);
    let refused = lab.isolane("pool list").env("DATABASE_URL", guest).run();
    refused.assert_code(2).assert_says("`GRANT SELECT ON test_users TO guest_of_pools` allows it");
}
