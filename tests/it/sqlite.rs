//! A file for each lane, with nothing installed.

use rusqlite::Connection;

use crate::lab::{Lab, Outcome};

/// Adds a row and prints how many there are.
const ADD: &str = "
import os, sqlite3
db = sqlite3.connect(os.environ['ISOLANE_SCHEMA'])
db.execute('CREATE TABLE IF NOT EXISTS users (email TEXT UNIQUE)')
db.execute(\"INSERT INTO users VALUES ('a@example.com')\")
db.commit()
print(db.execute('SELECT count(*) FROM users').fetchone()[0])
";

fn with_users(lab: &Lab, path: &str) -> Vec<u8> {
    let file = lab.path(path);
    let db = Connection::open(&file).expect("a new file");
    db.execute_batch("CREATE TABLE users (email TEXT UNIQUE); INSERT INTO users VALUES ('first@example.com')")
        .expect("a table");
    drop(db);
    std::fs::read(file).expect("the file")
}

/// What the only copy found under its variable.
#[track_caller]
fn url_in_lane(lab: &Lab, url: &str) -> String {
    lab.wrap("", "python witness.py").env("DATABASE_URL", url).run().assert_code(0).assert_does_not_say("is not set");
    lab.seen().get("w0", "DATABASE_URL").to_owned()
}

#[test]
fn every_lane_has_an_empty_file_of_its_own() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    let outcome = lab.wrap("-n 3", "python add.py").run().assert_code(0);
    let mut lines: Vec<_> = outcome.out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["w0 | 1", "w1 | 1", "w2 | 1"]);
    outcome.assert_says("SQLite");
    lab.assert_nothing_left();
}

#[test]
fn the_users_file_is_copied_and_stays_as_it_was() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    let before = with_users(&lab, "shop.db");
    let addresses = [
        "sqlite:shop.db".to_owned(),
        "sqlite:///shop.db".to_owned(),
        "sqlite+aiosqlite:///./shop.db".to_owned(),
        format!("sqlite:///{}", lab.path("shop.db").display()),
        "sqlite://shop.db?mode=rwc".to_owned(),
    ];
    for address in addresses {
        let run = |n: &str| lab.wrap(n, "python add.py").env("DATABASE_URL", &address).run();
        assert_eq!(run("-n 1").assert_code(0).out(), "2\n", "{address}");
        assert_eq!(std::fs::read(lab.path("shop.db")).expect("the file"), before, "{address}");
        lab.assert_nothing_left();
    }
}

#[test]
fn addresses_keep_their_spelling_around_the_path() {
    let lab = Lab::new();
    with_users(&lab, "shop.db");
    let own = |url: &str| url.replace(&lab.seen().get("w0", "ISOLANE_SCHEMA").to_owned(), "PATH");
    assert_eq!(
        own(&url_in_lane(&lab, "sqlite+aiosqlite:///shop.db?timeout=20")),
        "sqlite+aiosqlite:///PATH?timeout=20"
    );
    assert!(url_in_lane(&lab, "sqlite:shop.db?mode=rwc").ends_with("?mode=rwc"));
    assert_eq!(own(&url_in_lane(&lab, "sqlite://shop.db")), "sqlite://PATH");
    assert_eq!(url_in_lane(&lab, "sqlite::memory:"), "sqlite::memory:", "every process has its own already");
}

#[test]
fn a_file_that_is_not_there_yet_is_an_empty_lane() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    let outcome = lab.wrap("", "python add.py").env("DATABASE_URL", "sqlite:///later.db").run();
    assert_eq!(outcome.assert_code(0).out(), "1\n");
    assert!(!lab.path("later.db").exists(), "the user's file is not made");
    lab.assert_nothing_left();
}

#[test]
fn rows_that_stand_only_in_the_log_of_the_file_are_copied() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    let db = Connection::open(lab.path("shop.db")).expect("a new file");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
         CREATE TABLE users (email TEXT UNIQUE); INSERT INTO users VALUES ('first@example.com');",
    )
    .expect("a table");
    // The connection stays open: nothing is moved from the log to the file.
    let outcome = lab.wrap("", "python add.py").env("DATABASE_URL", "sqlite:///shop.db").run().assert_code(0);
    assert_eq!(outcome.out(), "2\n");
    let rows: u32 = db.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).expect("a count");
    assert_eq!(rows, 1);
    lab.assert_nothing_left();
}

#[test]
fn setup_makes_the_file_that_every_lane_gets_a_copy_of() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    lab.file("migrate.py", &ADD.replace("a@example", "seed@example"));
    let with_setup =
        |setup: &str, rest: &[&str]| -> Outcome { lab.isolane("run --setup").arg(setup).arg_all(rest).run() };
    let outcome = with_setup("echo $WORKER_ID >>setups; python migrate.py", &["-n", "3", "--", "python", "add.py"]);
    let mut lines: Vec<_> = outcome.assert_code(0).out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["w0 | 2", "w1 | 2", "w2 | 2"], "the output of the setup is not shown");
    assert_eq!(lab.read("setups"), "setup\n");
    lab.assert_nothing_left();

    let outcome = with_setup("echo nothing to migrate; exit 3", &["--", "touch", "started"]).assert_code(125);
    assert!(outcome.err().contains("nothing to migrate"), "{}", outcome.all());
    assert!(!lab.path("started").exists());
    lab.assert_nothing_left();
}

#[test]
fn a_kept_lane_stays_on_the_disk_and_in_the_ledger() {
    let lab = Lab::new();
    lab.file("add.py", ADD);
    for (keep, command, stays) in
        [("never", "false", false), ("failed", "true", false), ("failed", "false", true), ("always", "true", true)]
    {
        let script = format!("python add.py; echo $ISOLANE_SCHEMA >schema; {command}");
        let outcome = lab.sh(&format!("--keep {keep}"), &script).run();
        let file = lab.read("schema");
        assert_eq!(std::path::Path::new(file.trim()).exists(), stays, "{keep} {command}\n{}", outcome.all());
        let newest = "(SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1)";
        let kept = lab.value(&format!("SELECT count(*) > 0 FROM resources WHERE state = 'kept' AND run_id = {newest}"));
        assert_eq!(kept == "1", stays, "{keep} {command}\n{}", outcome.all());
        if stays {
            outcome.assert_says("kept");
        }
    }
}

#[test]
fn two_kinds_of_servers_in_one_run_are_both_isolated() {
    let database = crate::lab::Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    with_users(&lab, "lite.db");
    let before = std::fs::read(lab.path("lite.db")).expect("the file");
    lab.wrap("-n 2 --url-var DATABASE_URL --url-var LITE_URL", "python witness.py 2")
        .env("LITE_URL", "sqlite:///lite.db")
        .run()
        .assert_code(0);
    let seen = lab.seen();
    assert_eq!(seen.distinct("LITE_URL").len(), 2, "{:?}", seen.distinct("LITE_URL"));
    assert_eq!(seen.distinct("DATABASE_URL").len(), 2);
    assert!(seen.all("DATABASE_URL").iter().all(|url| url.starts_with("postgresql://")));
    assert_eq!(std::fs::read(lab.path("lite.db")).expect("the file"), before);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_database_that_was_not_found_is_named() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0).assert_says("(DATABASE_URL is not set)");
    lab.wrap("--url-var SHOP_DB", "true").run().assert_code(0).assert_says("SHOP_DB").assert_says("is not set)");
}

#[test]
fn nothing_stays_beside_the_users_file() {
    let lab = Lab::new().with("DATABASE_URL", "sqlite:///shop.db");
    let own = Connection::open(lab.path("shop.db")).expect("a file");
    own.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n int)").expect("a table");
    drop(own);
    let before = std::fs::read(lab.path("shop.db")).expect("a file");
    lab.wrap("-n 2", "true").run().assert_code(0);
    assert!(!lab.path("shop.db-wal").exists() && !lab.path("shop.db-shm").exists());
    assert_eq!(std::fs::read(lab.path("shop.db")).expect("a file"), before);
}

#[test]
fn a_file_that_is_a_folder_or_a_uri_is_refused() {
    let lab = Lab::new();
    lab.file("folder.db/x", "").file("plain.db", "");
    for (address, word) in [("sqlite:///folder.db", "a folder"), ("sqlite:///file:plain.db?uri=true", "file:plain.db")]
    {
        let outcome = lab.wrap("", "true").env("DATABASE_URL", address).run().assert_code(125);
        assert!(outcome.err().contains(word) && outcome.err().lines().count() == 1, "{}", outcome.all());
    }
    lab.assert_nothing_left();
}

#[test]
fn a_path_with_encoded_characters_is_the_file_that_is_there() {
    let lab = Lab::new();
    let own = Connection::open(lab.path("my shop.db")).expect("a file");
    own.execute_batch("CREATE TABLE t (n int)").expect("a table");
    let script =
        "python -c \"import os, sqlite3; sqlite3.connect(os.environ['ISOLANE_SCHEMA']).execute('SELECT n FROM t')\"";
    lab.sh("", script).env("DATABASE_URL", "sqlite:my%20shop.db").run().assert_code(0);
}
