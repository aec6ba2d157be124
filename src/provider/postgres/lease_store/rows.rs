//! Rows of the store, as the server writes them in JSON, and the values that they stand for.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::lease::ask::{Ask, Holder};
use crate::lease::definition::Definition;
use crate::lease::grant::{Held, Lease, LeaseState};
use crate::lease::item::{Item, ItemState};
use crate::lease::predicate::Attributes;
use crate::lease::queue::{Waiter, WaiterState};
use crate::lease::store::{Pool, Rows, StoreError};

const LEASE: &str = "SELECT 'lease', row_to_json(it)::text FROM isolane_leases.lease AS it WHERE ";

/// The question for all that counts still, to a process of this name; or for what was changed
/// after a version.
pub fn question(since: Option<u64>, owner: &str) -> String {
    let (pools, items, leases, waiters) = match since {
        Some(since) => {
            let changed = format!("version > {since}");
            (changed.clone(), changed.clone(), changed.clone(), changed)
        }
        None => (
            "NOT removed".to_owned(),
            "(state <> 'retired' OR configured)".to_owned(),
            "state = 'held'".to_owned(),
            // Somebody in this process may still want to know that it was granted what it awaits.
            format!(
                "state = 'waiting' OR state = 'granted' AND owner = {} AND lease_id IN
                     (SELECT lease_id FROM isolane_leases.lease WHERE state = 'held')",
                super::sql::text(owner)
            ),
        ),
    };
    format!(
        "SELECT 'pool', row_to_json(it)::text FROM isolane_leases.pool AS it WHERE {pools}
         UNION ALL SELECT 'item', row_to_json(it)::text FROM isolane_leases.item AS it WHERE {items}
         UNION ALL {LEASE} {leases}
         UNION ALL SELECT 'waiter', row_to_json(it)::text FROM isolane_leases.waiter AS it WHERE {waiters}"
    )
}

/// The question for one lease.
pub fn question_for(lease: &str) -> String {
    format!("{LEASE} lease_id = {}", super::sql::text(lease))
}

/// Adds a row of an answer.
pub fn add(rows: &mut Rows, kind: &str, json: &str) -> Result<(), StoreError> {
    match kind {
        "pool" => rows.pools.push(read::<PoolRow>(json)?.into()),
        "item" => rows.new_items.push(read::<ItemRow>(json)?.item()?),
        "lease" => rows.leases.push(read::<LeaseRow>(json)?.lease()?),
        _ => rows.waiters.push(read::<WaiterRow>(json)?.waiter()?),
    }
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| odd(&error))
}

/// What this isolane does not write.
fn odd(what: &dyn std::fmt::Display) -> StoreError {
    StoreError(format!("the store has a row that this isolane cannot read: {what}"))
}

#[derive(Deserialize)]
struct PoolRow {
    name: String,
    definition: Definition,
    removed: bool,
}

impl From<PoolRow> for Pool {
    fn from(row: PoolRow) -> Self {
        Self { name: row.name, definition: row.definition, is_removed: row.removed }
    }
}

#[derive(Deserialize)]
struct ItemRow {
    item: i64,
    pool: String,
    name: String,
    attributes: Attributes,
    state: String,
    held: u32,
    fence: u64,
    used: u64,
    failures: u32,
    soiled: bool,
    leaving: bool,
    configured: bool,
    origin: Option<String>,
    note: Option<String>,
}

impl ItemRow {
    fn item(self) -> Result<Item, StoreError> {
        Ok(Item {
            key: self.item,
            pool: self.pool.into(),
            name: self.name.into(),
            attributes: Arc::new(self.attributes),
            state: ItemState::parse(&self.state).ok_or_else(|| odd(&self.state))?,
            held: self.held,
            fence: self.fence,
            used: self.used,
            failures: self.failures,
            is_soiled: self.soiled,
            is_leaving: self.leaving,
            is_configured: self.configured,
            origin: self.origin,
            note: self.note,
        })
    }
}

#[derive(Deserialize)]
struct LeaseRow {
    lease_id: String,
    items: Vec<(i64, String, String)>,
    run_id: Option<String>,
    worker_id: Option<String>,
    test_id: Option<String>,
    lane: Option<u32>,
    client: Option<String>,
    key: Option<String>,
    substance: Option<String>,
    fence: u64,
    state: String,
    acquired: u64,
    expires: u64,
    ended: Option<u64>,
    ttl: u64,
    kept: bool,
}

impl LeaseRow {
    fn lease(self) -> Result<Lease, StoreError> {
        let held = |(item, pool, name): (i64, String, String)| Held { item, pool: pool.into(), name: name.into() };
        Ok(Lease {
            id: self.lease_id,
            items: self.items.into_iter().map(held).collect(),
            holder: Holder {
                run: self.run_id,
                worker: self.worker_id,
                test: self.test_id,
                lane: self.lane,
                client: self.client,
            },
            key: self.key.zip(self.substance),
            fence: self.fence,
            state: LeaseState::parse(&self.state).ok_or_else(|| odd(&self.state))?,
            acquired_at: Timestamp(self.acquired),
            expires_at: Timestamp(self.expires),
            ended_at: self.ended.map(Timestamp),
            ttl: self.ttl,
            is_kept: self.kept,
        })
    }
}

#[derive(Deserialize)]
struct WaiterRow {
    ticket: u64,
    ask: Box<RawValue>,
    since: u64,
    until: u64,
    state: String,
    lease_id: Option<String>,
    owner: String,
}

impl WaiterRow {
    fn waiter(self) -> Result<Waiter, StoreError> {
        Ok(Waiter {
            ticket: self.ticket,
            ask: Ask::from_json(self.ask.get().as_bytes()).map_err(|error| odd(&error))?,
            since: Timestamp(self.since),
            until: Timestamp(self.until),
            state: WaiterState::parse(&self.state).ok_or_else(|| odd(&self.state))?,
            lease: self.lease_id,
            owner: self.owner,
        })
    }
}
