//! Workloads: what tests do, at random.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use postgres::Client;
use proptest::prelude::*;

use super::odd;

/// One statement; numbers choose tables and rows.
#[derive(Clone, Debug)]
pub enum Step {
    Insert { table: usize, from: u16, n: u8 },
    Upsert { table: usize, from: u16, n: u8 },
    Copy { table: usize, n: u8 },
    Update { table: usize, from: u16, n: u8 },
    Rekey { table: usize, from: u16, n: u8 },
    Delete { table: usize, from: u16, n: u8 },
    Truncate { table: usize, restart: bool },
    Sequence { table: usize, to: u16, is_called: bool },
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackTo,
    Odd { which: usize },
    Shape { which: usize },
}

impl Step {
    pub const KINDS: [&'static str; 15] = [
        "Insert",
        "Upsert",
        "Copy",
        "Update",
        "Rekey",
        "Delete",
        "Truncate",
        "Sequence",
        "Begin",
        "Commit",
        "Rollback",
        "Savepoint",
        "RollbackTo",
        "Odd",
        "Shape",
    ];

    fn kind(&self) -> &'static str {
        let text = format!("{self:?}");
        let name = text.split(' ').next().unwrap_or_default();
        Self::KINDS.into_iter().find(|kind| *kind == name).expect("every kind is listed")
    }
}

fn step() -> impl Strategy<Value = Step> {
    let table = || any::<prop::sample::Index>().prop_map(|index| index.index(60));
    let rows = || (table(), 0..2_000_u16, 1..40_u8);
    prop_oneof![
        12 => rows().prop_map(|(table, from, n)| Step::Insert { table, from, n }),
        4 => rows().prop_map(|(table, from, n)| Step::Upsert { table, from, n }),
        3 => rows().prop_map(|(table, _, n)| Step::Copy { table, n }),
        12 => rows().prop_map(|(table, from, n)| Step::Update { table, from, n }),
        3 => rows().prop_map(|(table, from, n)| Step::Rekey { table, from, n }),
        8 => rows().prop_map(|(table, from, n)| Step::Delete { table, from, n }),
        1 => (table(), any::<bool>()).prop_map(|(table, restart)| Step::Truncate { table, restart }),
        3 => (table(), any::<u16>(), any::<bool>()).prop_map(|(table, to, is_called)| Step::Sequence { table, to, is_called }),
        4 => Just(Step::Begin),
        3 => Just(Step::Commit),
        2 => Just(Step::Rollback),
        5 => Just(Step::Savepoint),
        8 => Just(Step::RollbackTo),
        20 => (0..odd::WORK.len()).prop_map(|which| Step::Odd { which }),
    ]
}

/// A test's worth of statements; one in eight changes the shape as well.
pub fn workload() -> impl Strategy<Value = Vec<Step>> {
    let shape = prop_oneof![
        7 => Just(None),
        1 => (0..odd::SHAPE.len()).prop_map(Some),
    ];
    (prop::collection::vec(step(), 1..14), shape).prop_map(|(mut steps, shape)| {
        steps.extend(shape.map(|which| Step::Shape { which }));
        steps
    })
}

static DONE: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static SUCCEEDED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// How many statements were done, and how many the server refused.
pub fn counts() -> (u64, u64) {
    (DONE.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed))
}

/// Whether one of this kind was done.
pub fn succeeded(kind: &'static str) -> bool {
    SUCCEEDED.lock().expect("no panic inside").contains(kind)
}

/// Takes one step. What the server refuses is refused, as in tests.
pub fn take(step: &Step, tables: &[(String, Vec<String>)], client: &mut Client) {
    let table = |index: &usize| &tables[index % tables.len()];
    let some = |name: &str, from: &u16, n: &u8| {
        format!(
            "ctid = ANY (ARRAY(SELECT ctid FROM {name} OFFSET (SELECT {from} % greatest(count(*), 1) FROM {name}) LIMIT {n}))"
        )
    };
    let copied = |(name, columns): &(String, Vec<String>), from: &u16, n: &u8, suffix: &str| {
        let columns: Vec<_> = columns.iter().filter(|column| *column != "id").map(String::as_str).collect();
        let values: Vec<_> = columns
            .iter()
            .map(|column| if *column == "code" { format!("code || '{suffix}'") } else { (*column).to_owned() })
            .collect();
        format!(
            "INSERT INTO {name} ({}) SELECT {} FROM {name} OFFSET (SELECT {from} % greatest(count(*), 1) FROM {name}) LIMIT {n}",
            columns.join(", "),
            values.join(", ")
        )
    };
    let sql = match step {
        Step::Insert { table: index, from, n } => copied(table(index), from, n, &format!("-{from}-{n}")),
        Step::Upsert { table: index, from, n } => {
            copied(table(index), from, n, "")
                + " ON CONFLICT (code) DO UPDATE SET name = left('upserted ' || EXCLUDED.name, 100)"
        }
        Step::Copy { table: index, n } => return copy(table(index), *n, client),
        Step::Update { table: index, from, n } => {
            let name = &table(index).0;
            format!(
                "UPDATE {name} SET name = left(name || 'x', 100), amount = amount + 1 WHERE {}",
                some(name, from, n)
            )
        }
        Step::Rekey { table: index, from, n } => {
            let name = &table(index).0;
            format!("UPDATE {name} SET id = id + 1000000 WHERE {}", some(name, from, n))
        }
        Step::Delete { table: index, from, n } => {
            let name = &table(index).0;
            format!("DELETE FROM {name} WHERE {}", some(name, from, n))
        }
        Step::Truncate { table: index, restart } => {
            format!("TRUNCATE {} {} CASCADE", table(index).0, if *restart { "RESTART IDENTITY" } else { "" })
        }
        Step::Sequence { table: index, to, is_called } => {
            let name = &table(index).0;
            format!("SELECT setval(pg_get_serial_sequence('{name}', 'id'), {to} + 1, {is_called})")
        }
        Step::Begin => "BEGIN".to_owned(),
        Step::Commit => "COMMIT".to_owned(),
        Step::Rollback => "ROLLBACK".to_owned(),
        // Only a warning where there is a transaction already.
        Step::Savepoint => "BEGIN; SAVEPOINT s".to_owned(),
        Step::RollbackTo => "ROLLBACK TO s".to_owned(),
        Step::Odd { which } => odd::WORK[*which].to_owned(),
        Step::Shape { which } => format!("ROLLBACK; {}", odd::SHAPE[*which]),
    };
    note(step, client.batch_execute(&sql).is_ok());
}

fn note(step: &Step, is_done: bool) {
    if is_done {
        DONE.fetch_add(1, Ordering::Relaxed);
        SUCCEEDED.lock().expect("no panic inside").insert(step.kind());
    } else {
        REFUSED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Copies rows out of a table and in again, with other codes.
fn copy(table: &(String, Vec<String>), n: u8, client: &mut Client) {
    use std::io::{Read, Write};
    let (name, columns) = table;
    let columns: Vec<_> = columns.iter().filter(|column| *column != "id").map(String::as_str).collect();
    let out: Vec<_> =
        columns.iter().map(|column| if *column == "code" { "code || '-copied'" } else { column }).collect();
    let done = (|| -> Result<(), Box<dyn std::error::Error>> {
        let mut text = Vec::new();
        let select = format!("COPY (SELECT {} FROM {name} LIMIT {n}) TO STDOUT", out.join(", "));
        client.copy_out(&select)?.read_to_end(&mut text)?;
        let mut writer = client.copy_in(&format!("COPY {name} ({}) FROM STDIN", columns.join(", ")))?;
        writer.write_all(&text)?;
        writer.finish()?;
        Ok(())
    })();
    note(&Step::Copy { table: 0, n }, done.is_ok());
}
