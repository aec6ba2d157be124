//! Pools as the configuration has them, brought to the store.

use std::collections::BTreeMap;

use anyhow::anyhow;

use crate::address::{Address, PostgresAddress};
use crate::desk::Desk;
use crate::error::Stop;
use crate::lease::definition::{Definition, Table};
use crate::lease::predicate::Attributes;
use crate::provider::read_rows;
use crate::recipe;
use crate::settings::{PoolSettings, Settings};

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
