//! The ledger: which run, which worker, in which test, made what. An SQLite file in
//! WAL mode, so that any SQLite tool reads it while a run goes on.
//!
//! A supervisor writes through one [`Writer`]; workers never open the file. SQL about
//! isolane's own tables stands here and nowhere else.

pub mod author;
pub mod collision;
pub mod finding;
pub mod lease;
pub mod leftover;
pub mod row;
pub mod live;
pub mod reading;
pub mod record;
pub mod resource;
pub mod run;
pub mod test;
pub mod token;
pub mod touch;
pub mod worker;
mod writer;

pub use run::RunKey;
pub use writer::{Durability, Writer};

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ErrorCode, OpenFlags};

/// Marks the file as a ledger (`PRAGMA application_id`): "isol".
const APPLICATION_ID: i32 = 0x6973_6f6c;
/// The form of the tables (`PRAGMA user_version`).
const VERSION: i32 = 4;
/// From the first form of the tables to the second, around `story.sql`.
const BEFORE_FORM_2: &str = "ALTER TABLE test RENAME TO test_1;";
const AFTER_FORM_1: &str = "
    INSERT INTO test (run, number, worker_id, test_id, attempt, began, ended, outcome, message)
        SELECT run, number, worker_id, test_id, attempt,
               CAST(round(1000000 * unixepoch(started_at, 'subsec')) AS INTEGER),
               CAST(round(1000000 * unixepoch(ended_at, 'subsec')) AS INTEGER), outcome, message FROM test_1;
    DROP TABLE test_1;";
/// Room for pages, in negative KiB: the ends of the indexes of a million touches.
const CACHE: i32 = -16_384;
/// How many pages of the log are written into the file at once (32 MiB of them): that waits for the
/// disk, and pages that are written often are written once.
const CHECKPOINT: i32 = 8192;
/// How long one writer waits for another run's.
const BUSY: Duration = Duration::from_secs(30);

/// Opens the ledger for writing; makes the file and its folder where there is none, and
/// brings an older one up to date.
/// A file that is no ledger, or a newer isolane's, is refused and stays as it is.
pub fn open(path: &Path) -> anyhow::Result<Connection> {
    let folder = path.parent().context("the path of a ledger names a file")?;
    if !folder.is_dir() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        if folder.file_name().is_some_and(|name| name == ".isolane") {
            // Local state: nobody wants to commit it, and nobody should have to say so.
            std::fs::write(folder.join(".gitignore"), "*\n")
                .with_context(|| format!("cannot write into {}", folder.display()))?;
        }
    }
    let mut db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    match version(&db)? {
        VERSION => {}
        older if older < VERSION => create(&mut db)?,
        newer => {
            bail!("it was written by a newer isolane (form {newer}, this one knows {VERSION}); it was not touched")
        }
    }
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.pragma_update(None, "cache_size", CACHE)?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    db.set_prepared_statement_cache_capacity(64);
    // Else a statement is prepared again where a value may fit an index that is partial.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(db)
}

/// Opens a ledger that exists; none is made where it does not.
pub fn open_existing(path: &Path) -> anyhow::Result<Option<Connection>> {
    if path.exists() { open(path).map(Some) } else { Ok(None) }
}

/// A ledger that nobody else sees, and that is forgotten.
pub fn in_memory() -> anyhow::Result<Connection> {
    let mut db = Connection::open_in_memory()?;
    create(&mut db)?;
    Ok(db)
}

/// The ledger's version; 0 for an empty file.
fn version(db: &Connection) -> anyhow::Result<i32> {
    // One statement sees one state, whatever another run is just making.
    let (application, version, tables): (i32, i32, i64) = db.query_row(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    ensure!(
        application == APPLICATION_ID || (application == 0 && tables == 0),
        "it is an SQLite file of something else; it was not touched"
    );
    Ok(if tables == 0 { 0 } else { version })
}

fn create(db: &mut Connection) -> anyhow::Result<()> {
    // Changing the mode does not wait for others as everything else does.
    let deadline = Instant::now() + BUSY;
    while let Err(error) = db.pragma_update(None, "journal_mode", "WAL") {
        let is_busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        ensure!(is_busy && Instant::now() < deadline, error);
        std::thread::sleep(Duration::from_millis(5));
    }
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another run may have been faster.
    let found = version(&tx)?;
    if found < VERSION {
        drop_views(&tx)?;
        if found == 1 {
            let has_lock = "SELECT count(*) > 0 FROM pragma_table_info('run') WHERE name = 'lock'";
            if !tx.query_row(has_lock, [], |row| row.get::<_, bool>(0))? {
                tx.execute_batch("ALTER TABLE run ADD COLUMN lock TEXT NOT NULL DEFAULT ''")?;
            }
            // From tests that had their times as text.
            tx.execute_batch(BEFORE_FORM_2)?;
            tx.execute_batch(include_str!("ledger/story.sql"))?;
            tx.execute_batch(AFTER_FORM_1)?;
        } else if found == 0 {
            tx.execute_batch(include_str!("ledger/schema.sql"))?;
            tx.execute_batch(include_str!("ledger/story.sql"))?;
        }
        if found < 3 {
            tx.execute_batch(include_str!("ledger/leftover.sql"))?;
        }
        // The fourth form brought them.
        tx.execute_batch(include_str!("ledger/lease.sql"))?;
        tx.execute_batch(include_str!("ledger/views.sql"))?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(tx.commit()?)
}

/// Views are made anew in each form.
fn drop_views(db: &Connection) -> anyhow::Result<()> {
    let mut names = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'view'")?;
    let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names.iter().try_for_each(|name| db.execute_batch(&format!("DROP VIEW {name}")))?)
}

/// Fails where there is no ledger, for those who only look into one and make none.
pub fn require(path: &Path) -> anyhow::Result<()> {
    ensure!(
        path.exists(),
        "there is no ledger at {}; `isolane run` makes one, and --ledger names another",
        path.display()
    );
    Ok(())
}

/// Opens a ledger that exists, and cannot write into it.
fn open_read_only(path: &Path) -> anyhow::Result<Connection> {
    require(path)?;
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY)?;
    Ok(db)
}

/// Opens the ledger for queries of the user: whatever would write is refused.
pub fn open_for_queries(path: &Path) -> anyhow::Result<Connection> {
    let mut db = open_read_only(path)?;
    version(&db)?;
    db.authorizer(Some(|context: AuthContext<'_>| match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Function { .. } | AuthAction::Recursive => {
            Authorization::Allow
        }
        AuthAction::Pragma { pragma_value: None, .. } => Authorization::Allow,
        _ => Authorization::Deny,
    }))?;
    Ok(db)
}

/// Whether an error of SQLite says that the file is not a database.
pub fn is_corrupt(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code)
        .is_some_and(|code| matches!(code, ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_opens_again_and_foreign_files_stay_untouched() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(".isolane/ledger.db");
        drop(open(&path).expect("made"));
        open(&path).expect("opened again");

        let foreign = dir.path().join("app.db");
        Connection::open(&foreign).and_then(|db| db.execute_batch("create table users(id)")).expect("app.db");
        let before = std::fs::read(&foreign).expect("read");
        assert!(open(&foreign).expect_err("foreign").to_string().contains("something else"));
        assert_eq!(std::fs::read(&foreign).expect("read"), before);

        std::fs::write(dir.path().join("text"), "no database, but long enough to be looked at".repeat(40))
            .expect("write");
        assert!(is_corrupt(&open(&dir.path().join("text")).expect_err("no database")));

        Connection::open(&path).and_then(|db| db.pragma_update(None, "user_version", 99)).expect("newer");
        assert!(open(&path).expect_err("newer").to_string().contains("newer isolane"));
    }

    #[test]
    fn a_ledger_of_the_first_form_is_brought_up_to_date() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ledger.db");
        let old = include_str!("ledger/schema.sql").replace("    lock TEXT NOT NULL,\n", "")
            + "CREATE TABLE test (run INTEGER, number INTEGER, worker_id TEXT, test_id TEXT, attempt INTEGER, started_at TEXT,
                   ended_at TEXT, outcome TEXT, message TEXT, PRIMARY KEY (run, number)) WITHOUT ROWID;
               CREATE VIEW runs AS SELECT 1; CREATE VIEW workers AS SELECT 1; CREATE VIEW tests AS SELECT 1;
               CREATE VIEW resources AS SELECT 1; CREATE VIEW records AS SELECT 1;
               INSERT INTO run (run_id, tag, command, runner, host, cwd, started_at, state) VALUES ('r', 't', '', '', '', '', '', 'passed');
               INSERT INTO test VALUES (1, 0, 'gw0', 'a', 1, '2026-03-01T12:00:00.005Z', NULL, NULL, NULL);";
        let db = Connection::open(&path).expect("made");
        db.execute_batch(&old).expect("the old form");
        db.pragma_update(None, "application_id", APPLICATION_ID).expect("marked");
        db.pragma_update(None, "user_version", 1).expect("marked");
        drop(db);
        let db = open(&path).expect("brought up to date");
        let times = "SELECT started_at || coalesce(ended_at, '-') FROM tests";
        let times: String = db.query_row(times, [], |row| row.get(0)).expect("a test");
        assert_eq!(times, "2026-03-01T12:00:00.005Z-");
        assert_eq!(db.query_row("SELECT count(*) FROM touches", [], |row| row.get::<_, i64>(0)), Ok(0));
    }

    #[test]
    fn a_ledger_of_the_third_form_gets_room_for_leases() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ledger.db");
        let db = open(&path).expect("made");
        let back = "DROP VIEW leases; DROP TABLE lease_head; DROP TABLE pool; DROP TABLE item; DROP TABLE lease; DROP TABLE waiter; DROP TABLE token;
                    INSERT INTO leftover VALUES (1, 1, 1, 'transaction', 'open'); PRAGMA user_version = 3";
        db.execute_batch(back).expect("the third form");
        drop(db);
        let db = open(&path).expect("brought up to date");
        let counts = "SELECT (SELECT count(*) FROM leases) || (SELECT count(*) FROM leftover)";
        assert_eq!(db.query_row(counts, [], |row| row.get::<_, String>(0)), Ok("01".to_owned()));
    }

    #[test]
    fn queries_cannot_write() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ledger.db");
        drop(open(&path).expect("made"));
        let db = open_for_queries(&path).expect("opened");
        for sql in [
            "DELETE FROM run",
            "CREATE TABLE x(y)",
            "ATTACH 'other.db' AS o",
            "PRAGMA user_version = 3",
            "VACUUM INTO 'copy.db'",
        ] {
            let done = db.prepare(sql).and_then(|mut statement| statement.query([])?.next().map(drop));
            assert!(done.is_err(), "{sql}");
        }
        assert!(
            db.prepare(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3) SELECT count(*) FROM n, runs"
            )
            .is_ok()
        );
    }
}
