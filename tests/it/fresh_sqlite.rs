//! A lane for each test on SQLite: the file's content is put back, and who has it open sees that.

use crate::fresh::leftovers;
use crate::lab::Lab;

fn shop() -> Lab {
    let lab = Lab::new().with("DATABASE_URL", "sqlite:///shop.db");
    let made = rusqlite::Connection::open(lab.path("shop.db")).expect("a file");
    let schema = "CREATE TABLE goods (id INTEGER PRIMARY KEY AUTOINCREMENT, v int); INSERT INTO goods (v) VALUES (1)";
    made.execute_batch(schema).expect("good SQL");
    lab
}

/// Tests that each find one row on one connection of all, write, and do this.
fn tests(lab: &Lab, bodies: &[&str]) {
    let tests: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| format!("def test_{n:02}():\n    db = check()\n    {}\n\n", body.replace('\n', "\n    ")))
        .collect();
    let head = "import os, sqlite3
FILE = os.environ['ISOLANE_SCHEMA']
OPEN = []
def connect(): return sqlite3.connect(FILE, isolation_level=None, timeout=0)
def check():
    if not OPEN: OPEN.append(connect())
    db = OPEN[0]
    assert db.execute('SELECT id, v FROM goods').fetchall() == [(1, 1)]
    db.execute('INSERT INTO goods (v) VALUES (5)')
    assert db.execute('SELECT max(id) FROM goods').fetchone() == (2,)
    db.execute('UPDATE goods SET v = 7')
    return db\n\n";
    lab.file("test_goods.py", &format!("{head}{}", tests.concat()));
}

#[test]
fn a_connection_that_stays_open_sees_the_content_put_back() {
    let lab = shop();
    tests(
        &lab,
        &[
            "pass",
            "db.execute('DROP TABLE goods')",
            "db.execute('CREATE TABLE more (id int)')",
            "db.execute('VACUUM')",
            "pass",
        ],
    );
    let outcome = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").run().assert_code(0);
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    lab.wrap("--fresh test", "pytest -q -p no:cacheprovider -n 2").run().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn so_it_does_with_a_write_ahead_log() {
    let lab = shop();
    let wal = "db.execute('PRAGMA journal_mode = wal')\ndb.execute('UPDATE goods SET v = 8')";
    tests(&lab, &[wal, "pass", wal, "db.execute('PRAGMA wal_checkpoint(TRUNCATE)')", "pass"]);
    let outcome = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").run();
    assert_eq!(leftovers(&lab), Vec::<String>::new(), "{}", outcome.all());
    outcome.assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn a_file_that_is_gone_or_locked_is_made_again() {
    let lab = shop();
    let reopened = "OPEN.pop().close()";
    tests(
        &lab,
        &[
            &format!("{reopened}\nos.unlink(FILE)"),
            &format!("{reopened}\nopen(FILE, 'w').write('no database at all, only text' * 100)"),
            "db.execute('BEGIN IMMEDIATE')\ndb.execute('DELETE FROM goods')\nLOCKED = OPEN.pop()\nglobals()['KEPT'] = LOCKED",
            "pass",
        ],
    );
    let outcome = lab.wrap("--fresh test", "pytest -q -p no:cacheprovider").run().assert_code(0);
    let left = leftovers(&lab);
    assert!(left.iter().any(|line| line.contains("test_02") && line.contains("lock")), "{left:#?}\n{}", outcome.all());
    lab.assert_nothing_left();
}

#[test]
fn each_test_of_nextest_finds_the_file_as_it_was() {
    let lab = shop();
    let body = "use std::io::{Read, Write};
        let file = std::env::var(\"ISOLANE_SCHEMA\").unwrap();
        let mut bytes = Vec::new();
        std::fs::File::open(&file).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b\"SQLite\"), \"{}\", bytes.len());
        std::fs::File::create(&file).unwrap().write_all(b\"spoilt\").unwrap();";
    lab.cargo("shop", &crate::lab::many_tests(5, "spoils", body));
    lab.wrap("--fresh test", "cargo nextest run --no-fail-fast -j 1").run().assert_code(0);
    lab.assert_nothing_left();
}
