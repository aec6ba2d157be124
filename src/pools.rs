//! Pools as the configuration has them, brought to the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::anyhow;
use tokio::task::JoinHandle;

use crate::address::{Address, PostgresAddress};
use crate::desk::Desk;
use crate::error::{Stop, one_line};
use crate::lease::definition::{Definition, Guard, Table};
use crate::lease::predicate::Attributes;
use crate::lease::store::StoreError;
use crate::name::Tag;
use crate::provider::{Guardian, read_rows};
use crate::recipe;
use crate::settings::{Isolation, PoolSettings, Settings};

/// Makes the pools of a configuration what it says. Nothing is asked where it names none.
pub async fn configure(desk: &Desk, settings: &Settings) -> anyhow::Result<()> {
    if settings.pools.is_empty() {
        return Ok(());
    }
    let mut pools = settings.pools.clone();
    for pool in &mut pools {
        if let Some(generator) = &mut pool.definition.generator {
            let inputs = serde_json::to_string(&generator.inputs)?;
            let needs = serde_json::to_string(&generator.needs)?;
            generator.fingerprint = recipe::of_command(&[&generator.run, &inputs, &needs], &pool.inputs)?;
        }
    }
    desk.configured_by(pools.iter().map(|pool| pool.name.clone()).collect());
    let tables = Tables::of(&pools, settings)?;
    if let Some(tables) = tables {
        let read = {
            let tables = tables.clone();
            // The driver waits for its answers by itself.
            tokio::task::spawn_blocking(move || tables.read(None)).await?
        };
        for (name, rows) in read? {
            pools.iter_mut().filter(|pool| pool.name == name).for_each(|pool| pool.items.clone_from(&rows));
        }
        let names = tables.definitions.keys().cloned().collect();
        desk.refresh_by(names, move |desk, pools| tables.refresh(desk, pools));
    }
    desk.ask(move |session| {
        for pool in pools {
            session.board.configure(&pool.name, &pool.definition, pool.items);
        }
    })
    .await
    .map_err(|error| anyhow!("the pools of the configuration cannot be written: {error}"))
}

/// Tells the guard of a run's tables who holds which rows, until what comes back is aborted;
/// nothing where no pool has a guard. The guard itself came with the run's log.
pub fn guard(desk: &Desk, settings: &Settings, tag: &Tag) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(mut tables) = Tables::of(&settings.pools, settings)? else { return Ok(None) };
    tables.definitions.retain(|_, (_, table)| table.guard != Guard::Off);
    let Some(name) = tables.definitions.keys().next() else { return Ok(None) };
    if settings.isolation != Isolation::Shared {
        return Err(Stop::usage(format!(
            "pool {name}: `guard` is for tables that workers share, and works with --isolation shared; leave it out, or run so"
        )));
    }
    let guardian = Arc::new(Guardian::new(&tables.address, tag)?);
    let pools: BTreeSet<String> = tables.definitions.keys().cloned().collect();
    let (its, guarded) = (Arc::clone(&guardian), pools.clone());
    desk.guard_by(pools, move |lease| {
        let table_of = |pool: &str| tables.definitions.get(pool).map(|(_, table)| table);
        let told = its.holds(lease, table_of);
        told.map_err(|error| StoreError(format!("the guard of leased rows does not answer: {}", one_line(&error))))
    });
    let desk = desk.clone();
    Ok(Some(tokio::spawn(async move {
        let mut changes = desk.changes();
        while changes.changed().await.is_ok() {
            let pools = guarded.clone();
            let held = desk.ask(move |session| {
                let leases = session.board.held();
                let its = leases.iter().filter(|lease| lease.items.iter().any(|held| pools.contains(&*held.pool)));
                (its.map(|lease| lease.id.clone()).collect::<Vec<_>>(), session.board.head().fence)
            });
            // What could not be told is told after the next change.
            let Ok((leases, fence)) = held.await else { continue };
            let guardian = Arc::clone(&guardian);
            let _ = tokio::task::spawn_blocking(move || guardian.held(&leases, fence)).await;
        }
    })))
}

/// The pools whose items are rows, and the database that these are in.
#[derive(Clone, Debug)]
struct Tables {
    address: PostgresAddress,
    definitions: BTreeMap<String, (Definition, Table)>,
}

impl Tables {
    fn of(pools: &[PoolSettings], settings: &Settings) -> anyhow::Result<Option<Self>> {
        let its = |pool: &PoolSettings| {
            let table = pool.definition.table.clone()?;
            Some((pool.name.clone(), (pool.definition.clone(), table)))
        };
        let definitions: BTreeMap<_, _> = pools.iter().filter_map(its).collect();
        let Some(name) = definitions.keys().next() else { return Ok(None) };
        // In whichever isolation, what is leased is a row of the user's own: all lanes share it.
        let address = settings.addresses().find_map(|address| match address {
            Address::Postgres(address) => Some(address.clone()),
            Address::Sqlite(_) | Address::InMemory(_) => None,
        });
        let address = address.ok_or_else(|| {
            Stop::usage(format!(
                "pool {name}: the rows of a table are in a PostgreSQL database, and none is named; --database-url or DATABASE_URL names it"
            ))
        })?;
        Ok(Some(Self { address, definitions }))
    }

    /// Reads the rows of these pools, or of all.
    fn read(&self, pools: Option<&[String]>) -> anyhow::Result<Vec<(String, Vec<Attributes>)>> {
        let wanted = || {
            let all = self.definitions.iter();
            all.filter(|(name, _)| pools.is_none_or(|pools| pools.contains(name)))
        };
        let rows = read_rows(&self.address, wanted().map(|(name, (_, table))| (name.as_str(), table)))?;
        Ok(wanted().map(|(name, _)| name.clone()).zip(rows).collect())
    }

    fn refresh(&self, desk: &Desk, pools: &[String]) {
        // A database that is away keeps nobody from what is known of it.
        let Ok(read) = self.read(Some(pools)) else { return };
        let definitions = self.definitions.clone();
        // Where this is not written either, who asked is told.
        let _ = desk.ask_blocking(move |session| {
            for (name, rows) in read {
                if let Some((definition, _)) = definitions.get(&name) {
                    session.board.refresh(&name, definition, rows);
                }
            }
        });
    }
}
