//! Pools and leases in the ledger: what [`crate::lease`] keeps there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Durability, Writer};
use crate::clock::Timestamp;
use crate::lease::ask::{Ask, Holder};
use crate::lease::grant::{Held, Lease, LeaseState};
use crate::lease::item::{Item, ItemState};
use crate::lease::queue::{Waiter, WaiterState};
use crate::lease::store::{After, Head, Pool, Rows, Store, StoreError, Transaction, Work};
use crate::os::boot::{self, Boot};
use crate::os::process;
use crate::os::watched::Watched;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}

/// How long what was written just after a look can wait for the next one. Most of it is what this
/// process writes itself, in several steps each time.
const PAUSE: Duration = Duration::from_millis(5);

/// The leases of a ledger.
#[derive(Debug)]
pub struct LedgerStore {
    writer: Writer,
    /// The file, where others may write as well.
    path: std::path::PathBuf,
    /// The file was removed, as far as somebody listens. What is written to it is lost with this
    /// process, and others make a new one.
    is_gone: Arc<AtomicBool>,
}

impl LedgerStore {
    /// The leases of the ledger at `path`, which `writer` writes.
    pub fn new(writer: Writer, path: &std::path::Path) -> Self {
        Self { writer, path: path.to_owned(), is_gone: Arc::default() }
    }
}

impl Store for LedgerStore {
    fn submit(&self, work: Work, after: After) {
        if self.is_gone.load(Ordering::Acquire) {
            let path = self.path.display();
            return after(Err(StoreError(format!("the ledger {path} was removed while it was in use; start again"))));
        }
        let change = move |db: &Connection| {
            db.execute_batch("SAVEPOINT leases")?;
            let done = work(&mut LedgerTransaction { db, fence: None, now: None });
            // A part of it is worse than nothing.
            let end = if done.is_ok() { "RELEASE leases" } else { "ROLLBACK TO leases; RELEASE leases" };
            let ended = db.execute_batch(end);
            // Why it failed says more than that there was nothing left to undo.
            done.map_err(|StoreError(why)| {
                rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR), Some(why))
            })?;
            ended
        };
        // A lease that its holder was told of is on the disk.
        let after = move |kept: rusqlite::Result<()>| after(kept.map_err(StoreError::from));
        self.writer.queue(Durability::Machine, change, after);
    }

    fn owner(&self) -> String {
        process::name_of(i32::try_from(std::process::id()).unwrap_or(0)).unwrap_or_default()
    }

    fn listen(&self, changed: Box<dyn Fn() -> bool + Send>) {
        // What anybody writes comes to this file first (WAL).
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let Ok(watched) = Watched::open(log.as_ref()) else { return };
        let is_gone = Arc::clone(&self.is_gone);
        std::thread::spawn(move || {
            while watched.wait() {
                is_gone.store(!watched.is_there(), Ordering::Release);
                if is_gone.load(Ordering::Acquire) || !changed() {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        });
    }
}

/// Whether a run holds anything, or waits for something.
pub fn holds(db: &Connection, run_id: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM lease WHERE state = 'held' AND run_id = ?1)
                   OR EXISTS (SELECT 1 FROM waiter WHERE state = 'waiting' AND json_extract(ask, '$.run') = ?1)";
    db.query_row(sql, [run_id], |row| row.get(0))
}

/// Whether there are items that have to be reset or retired.
pub fn has_chores(db: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM item WHERE state IN ('dirty', 'resetting', 'retiring'))";
    db.query_row(sql, [], |row| row.get(0))
}

struct LedgerTransaction<'a> {
    db: &'a Connection,
    /// The last that was given before, if that was asked.
    fence: Option<u64>,
    /// The clock is looked at once.
    now: Option<Timestamp>,
}

const POOL: &str = "SELECT name, definition, removed FROM pool";
const ITEM: &str =
    "SELECT item, pool, name, attributes, state, held, fence, used, failures, soiled, leaving, configured,
    origin, note FROM item";
const LEASE: &str = "SELECT lease_id, items, run_id, worker_id, test_id, lane, client, key, substance, fence, state,
    acquired, expires, ended, ttl, kept FROM lease";
const WAITER: &str = "SELECT ticket, ask, since, until, state, lease_id, owner FROM waiter";

impl LedgerTransaction<'_> {
    fn all<T>(
        &self,
        sql: &str,
        since: Option<u64>,
        live: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let (sql, since) = match since {
            Some(since) => (format!("{sql} WHERE version > ?1"), number(since)),
            None => (format!("{sql} WHERE {live} AND ?1 IS NOT NULL"), 0),
        };
        let mut statement = self.db.prepare_cached(&sql)?;
        let rows = statement.query_map([since], |row| read(row))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Transaction for LedgerTransaction<'_> {
    fn head(&mut self) -> Result<Head, StoreError> {
        let sql = "SELECT version, fence, ticket, used, item FROM lease_head";
        let head = self.db.prepare_cached(sql)?.query_row([], |row| {
            Ok(Head {
                version: unsigned(row.get(0)?),
                fence: unsigned(row.get(1)?),
                ticket: unsigned(row.get(2)?),
                used: unsigned(row.get(3)?),
                item: row.get(4)?,
            })
        })?;
        self.fence = Some(head.fence);
        Ok(head)
    }

    fn now(&mut self) -> Result<Timestamp, StoreError> {
        if let Some(now) = self.now {
            return Ok(now);
        }
        let now = self.look_at_clock()?;
        self.now = Some(now);
        Ok(now)
    }

    fn rows(&mut self, since: Option<u64>) -> Result<Rows, StoreError> {
        Ok(Rows {
            pools: self.all(POOL, since, "NOT removed", pool)?,
            // What the configuration names and is gone all the same must not come again.
            new_items: self.all(ITEM, since, "(state <> 'retired' OR configured)", item)?,
            items: Vec::new(),
            leases: self.all(LEASE, since, "state = 'held'", lease)?,
            waiters: self.all(WAITER, since, "state = 'waiting'", waiter)?,
        })
    }

    fn lease(&mut self, id: &str) -> Result<Option<Lease>, StoreError> {
        let sql = format!("{LEASE} WHERE lease_id = ?1");
        Ok(self.db.prepare_cached(&sql)?.query_row([id], lease).optional()?)
    }

    fn write(&mut self, head: Head, rows: &Rows) -> Result<(), StoreError> {
        let version = number(head.version);
        let now = self.now()?.micros();
        self.db
            .prepare_cached("UPDATE lease_head SET version = ?, fence = ?, ticket = ?, used = ?, item = ?, now = ?")?
            .execute(params![version, number(head.fence), number(head.ticket), number(head.used), head.item, now])?;
        for pool in &rows.pools {
            let definition = serde_json::to_string(&pool.definition).map_err(|error| StoreError(error.to_string()))?;
            self.db.prepare_cached("INSERT OR REPLACE INTO pool VALUES (?, ?, ?, ?)")?.execute(params![
                pool.name,
                definition,
                pool.is_removed,
                version
            ])?;
        }
        for it in &rows.new_items {
            let attributes = serde_json::to_string(&*it.attributes).map_err(|error| StoreError(error.to_string()))?;
            self.db
                .prepare_cached("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?
                .execute(params![
                    it.key,
                    &*it.pool,
                    &*it.name,
                    attributes,
                    it.state.as_str(),
                    it.held,
                    number(it.fence),
                    number(it.used),
                    it.failures,
                    it.is_soiled,
                    it.is_leaving,
                    it.is_configured,
                    it.origin,
                    it.note,
                    version
                ])?;
        }
        for it in &rows.items {
            self.db
                .prepare_cached(
                    "UPDATE item SET state = ?, held = ?, fence = ?, used = ?, failures = ?, soiled = ?, leaving = ?, note = ?,
                         version = ? WHERE item = ?",
                )?
                .execute(params![
                    it.state.as_str(), it.held, number(it.fence), number(it.used), it.failures, it.is_soiled, it.is_leaving,
                    it.note, version, it.key
                ])?;
        }
        for it in &rows.leases {
            self.write_lease(it, version)?;
        }
        for it in &rows.waiters {
            self.db.prepare_cached("INSERT OR REPLACE INTO waiter VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?.execute(
                params![
                    number(it.ticket),
                    it.ask.to_json().to_string(),
                    it.since.micros(),
                    it.until.micros(),
                    it.state.as_str(),
                    it.lease,
                    it.owner,
                    version
                ],
            )?;
        }
        Ok(())
    }

    fn is_there(&mut self, owner: &str) -> bool {
        process::is_there(owner)
    }
}

impl LedgerTransaction<'_> {
    fn look_at_clock(&self) -> Result<Timestamp, StoreError> {
        let sql = "SELECT boot, epoch, now FROM lease_head";
        let (boot, epoch, latest): (String, i64, i64) =
            self.db.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let Boot { id, since } = boot::now();
        let since = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
        if boot == id {
            return Ok(Timestamp(unsigned(epoch + since)));
        }
        // The first look at this clock since the machine started. The wall clock may have been set
        // back meanwhile, and no lease may get younger by that.
        let now = Timestamp::now().micros().max(latest);
        self.db.execute("UPDATE lease_head SET boot = ?1, epoch = ?2", params![id, now - since])?;
        Ok(Timestamp(unsigned(now)))
    }

    fn write_lease(&self, it: &Lease, version: i64) -> Result<(), StoreError> {
        let ended = it.ended_at.map(Timestamp::micros);
        let (expires, ttl) = (it.expires_at.micros(), number(it.ttl));
        // Fences grow: one that is above all that were given before is that of a new lease.
        if self.fence.is_none_or(|fence| it.fence <= fence) {
            let sql = "UPDATE lease SET state = ?, expires = ?, ended = ?, ttl = ?, version = ? WHERE lease_id = ?";
            let mut end = self.db.prepare_cached(sql)?;
            if end.execute(params![it.state.as_str(), expires, ended, ttl, version, it.id])? > 0 {
                return Ok(());
            }
        }
        let items: Vec<_> = it.items.iter().map(|held| (held.item, &*held.pool, &*held.name)).collect();
        let items = serde_json::to_string(&items).map_err(|error| StoreError(error.to_string()))?;
        let (key, substance) = it.key.clone().map_or((None, None), |(key, substance)| (Some(key), Some(substance)));
        let Holder { run, worker, test, lane, client } = &it.holder;
        self.db
            .prepare_cached("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?
            .execute(params![
                it.id,
                items,
                run,
                worker,
                test,
                lane,
                client,
                key,
                substance,
                number(it.fence),
                it.state.as_str(),
                it.acquired_at.micros(),
                expires,
                ended,
                ttl,
                it.is_kept,
                version
            ])?;
        Ok(())
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A value that is not what this isolane writes.
fn odd(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Sql::Null.data_type(), what.to_owned().into())
}

fn read_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| odd(column, &error.to_string()))
}

fn pool(row: &Row<'_>) -> rusqlite::Result<Pool> {
    Ok(Pool { name: row.get(0)?, definition: read_json(row, 1)?, is_removed: row.get(2)? })
}

fn item(row: &Row<'_>) -> rusqlite::Result<Item> {
    let state: String = row.get(4)?;
    Ok(Item {
        key: row.get(0)?,
        pool: row.get::<_, String>(1)?.into(),
        name: row.get::<_, String>(2)?.into(),
        attributes: Arc::new(read_json(row, 3)?),
        state: ItemState::parse(&state).ok_or_else(|| odd(4, &state))?,
        held: row.get(5)?,
        fence: unsigned(row.get(6)?),
        used: unsigned(row.get(7)?),
        failures: row.get(8)?,
        is_soiled: row.get(9)?,
        is_leaving: row.get(10)?,
        is_configured: row.get(11)?,
        origin: row.get(12)?,
        note: row.get(13)?,
    })
}

fn lease(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let items: Vec<(i64, String, String)> = read_json(row, 1)?;
    let state: String = row.get(10)?;
    let (key, substance): (Option<String>, Option<String>) = (row.get(7)?, row.get(8)?);
    Ok(Lease {
        id: row.get(0)?,
        items: items
            .into_iter()
            .map(|(item, pool, name)| Held { item, pool: pool.into(), name: name.into() })
            .collect(),
        holder: Holder {
            run: row.get(2)?,
            worker: row.get(3)?,
            test: row.get(4)?,
            lane: row.get(5)?,
            client: row.get(6)?,
        },
        key: key.zip(substance),
        fence: unsigned(row.get(9)?),
        state: LeaseState::parse(&state).ok_or_else(|| odd(10, &state))?,
        acquired_at: Timestamp(unsigned(row.get(11)?)),
        expires_at: Timestamp(unsigned(row.get(12)?)),
        ended_at: row.get::<_, Option<i64>>(13)?.map(|at| Timestamp(unsigned(at))),
        ttl: unsigned(row.get(14)?),
        is_kept: row.get(15)?,
    })
}

fn waiter(row: &Row<'_>) -> rusqlite::Result<Waiter> {
    let (ask, state): (String, String) = (row.get(1)?, row.get(4)?);
    Ok(Waiter {
        ticket: unsigned(row.get(0)?),
        ask: Ask::from_json(ask.as_bytes()).map_err(|error| odd(1, &error))?,
        since: Timestamp(unsigned(row.get(2)?)),
        until: Timestamp(unsigned(row.get(3)?)),
        state: WaiterState::parse(&state).ok_or_else(|| odd(4, &state))?,
        lease: row.get(5)?,
        owner: row.get(6)?,
    })
}
