//! What a run's summary says of the rows that its tests touched.

use rusqlite::{Connection, Result};

use super::RunKey;
use super::{collision, touch};

/// One pair of tests that met, and over how many rows.
#[derive(Clone, Debug)]
pub struct Pair {
    /// How they met.
    pub pattern: String,
    /// Who had the rows: worker and test.
    pub a: (Option<String>, Option<String>),
    /// Who came.
    pub b: (Option<String>, Option<String>),
    /// The table, and one of the rows.
    pub kind: String,
    /// Its key.
    pub key: Option<String>,
    /// How many rows.
    pub rows: i64,
    /// How long both ran, in milliseconds.
    pub overlap_ms: f64,
    /// One of the two that failed.
    pub failed: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Rows made and left.
    pub rows: touch::Count,
    /// Collisions: how many, and how many of them with a failed test, by pattern.
    pub collisions: Vec<(String, i64, i64)>,
    /// The worst pairs.
    pub worst: Vec<Pair>,
}

impl Findings {
    /// Finds all there is to find.
    pub fn settle(db: &Connection, run: RunKey) -> Result<Self> {
        collision::settle(db, run)?;
        let rows = touch::count(db, run)?;
        Ok(Self { rows, collisions: collision::count(db, run)?, worst: pairs(db, run, 3)? })
    }

    /// How many collisions there were.
    pub fn collided(&self) -> i64 {
        self.collisions.iter().map(|(_, n, _)| n).sum()
    }
}

/// The pairs of tests that met, worst first: tests failed, then overlapping in time, then the
/// rest.
pub fn pairs(db: &Connection, run: RunKey, most: usize) -> Result<Vec<Pair>> {
    let mut rows = db.prepare(
        "SELECT pattern, wa.worker_id AS worker_a, a.test_id AS test_a, wb.worker_id AS worker_b, b.test_id AS test_b,
                k.name AS kind, min(key) AS key, count(*) AS n, max(overlap_us) / 1000.0 AS overlap, f.test_id AS failed
           FROM collision c JOIN kind k USING (kind)
                LEFT JOIN worker wa ON wa.worker = worker_a LEFT JOIN worker wb ON wb.worker = worker_b
                LEFT JOIN test a ON a.run = c.run AND a.number = test_a LEFT JOIN test b ON b.run = c.run AND b.number = test_b
                LEFT JOIN test f ON f.run = c.run AND f.number = failed_test
          WHERE c.run = ?1 GROUP BY pattern, test_a, test_b, worker_a, worker_b, c.kind
          ORDER BY failed IS NULL, overlap DESC, n DESC, min(at_b) LIMIT ?2",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    rows.query_map((run.0, most), |row| {
        Ok(Pair {
            pattern: row.get("pattern")?,
            a: (row.get("worker_a")?, row.get("test_a")?),
            b: (row.get("worker_b")?, row.get("test_b")?),
            kind: row.get("kind")?,
            key: row.get("key")?,
            rows: row.get("n")?,
            overlap_ms: row.get("overlap")?,
            failed: row.get("failed")?,
        })
    })?
    .collect()
}
