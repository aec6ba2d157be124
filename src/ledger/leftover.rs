//! What tests left that is no row: open transactions and the like, and what they changed so that
//! their lane had to be made again.

use rusqlite::{Connection, Result, params};

use super::RunKey;

/// How a lane is noted that had to be made again.
pub const MADE_AGAIN: &str = "lane made again";

/// Enters something that a test left; `kind` is `transaction`, `prepared transaction`, … or
/// [`MADE_AGAIN`].
pub fn enter(db: &Connection, run: RunKey, test: Option<i64>, worker: &str, kind: &str, detail: &str) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO leftover (run, test, worker, kind, detail)
         VALUES (?1, ?2, (SELECT max(worker) FROM worker WHERE run = ?1 AND worker_id = ?3), ?4, ?5)",
    )?
    .execute(params![run.0, test, worker, kind, detail])
    .map(drop)
}
