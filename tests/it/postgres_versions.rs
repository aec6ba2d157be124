//! The oldest and the newest PostgreSQL that is supported.

use crate::lab::{Lab, Server};

fn assert_both_isolations(version: u32) {
    let server = Server::of_version(version);
    let database = server.database("CREATEDB CREATEROLE");
    database.sql(
        "CREATE TABLE users (id serial PRIMARY KEY, email text UNIQUE);
         INSERT INTO users (email) VALUES ('a@example.com');
         CREATE VIEW emails AS SELECT email FROM users",
    );
    let count = |sql: &str| -> i64 { database.client().query_one(sql, &[]).expect("a count").get(0) };
    let before = server.snapshot();
    for isolation in ["auto", "database", "schema"] {
        let lab = Lab::on(&database).postgres(version);
        lab.file(
            "test_users.py",
            "
import os, psycopg, pytest
@pytest.mark.parametrize('n', range(20))
def test_signs_up(n):
    with psycopg.connect(os.environ['DATABASE_URL'], autocommit=True) as db:
        db.execute(\"INSERT INTO users (email) VALUES ('b@example.com')\")
        assert db.execute('SELECT count(*) FROM emails').fetchone() == (2,)
        db.execute(\"DELETE FROM users WHERE email LIKE 'b%'\")
",
        );
        let outcome = lab.wrap(&format!("--isolation {isolation}"), "pytest -q -n 2").run().assert_code(0);
        outcome.assert_says(&format!("PostgreSQL {version}."));
        database.assert_nothing_left(&lab);
    }
    // A suite that is killed leaves nothing either.
    let lab = Lab::on(&database).postgres(version);
    lab.sh("-n 2 --isolation schema", "psql -qXc 'INSERT INTO users VALUES (7)'; kill -9 $$").run().assert_code(137);
    database.assert_nothing_left(&lab);
    assert_eq!(server.snapshot(), before);
    assert_eq!(count("SELECT count(*) FROM users"), 1);
}

#[test]
fn postgresql_13_works_with_databases_and_schemas() {
    assert_both_isolations(13);
}

#[test]
fn postgresql_17_works_with_databases_and_schemas() {
    assert_both_isolations(17);
}

#[test]
fn client_programs_older_than_the_server_are_named() {
    let server = Server::of_version(17);
    let database = server.database("");
    database.sql("CREATE TABLE users (id int)");
    let before = server.snapshot();
    let lab = Lab::on(&database);
    let outcome = lab.wrap("--isolation schema", "true").run();
    // The system's may be as new as the server: then there is nothing to complain about.
    let system = lab.program("pg_dump").arg("--version").run().assert_code(0).out();
    let major: u32 = system.split(' ').nth(2).and_then(|v| v.split('.').next()?.parse().ok()).expect("a version");
    if major < 17 {
        let outcome = outcome.assert_code(125).assert_says("pg_dump").assert_says("postgresql-client-17");
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
    } else {
        outcome.assert_code(0);
    }
    assert_eq!(server.snapshot(), before);
    database.assert_nothing_left(&lab);
}
