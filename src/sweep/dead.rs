//! Sweeping a run whose supervisor is dead, from the ledger and the addresses of servers:
//! what its watchdog does, and the next run on the same ledger where that died as well.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Scope, SweepReport, sweep};
use crate::address::Address;
use crate::clock::Timestamp;
use crate::inventory::Inventory;
use crate::ledger::resource::ResourceEvent;
use crate::ledger::run::{self, OpenRun, RunState};
use crate::ledger::{self, Durability, Writer, resource};
use crate::name::{RunId, Tag};
use crate::os::lock::RunLock;
use crate::os::marked;
use crate::provider::{Directories, Server, Site, SqliteFiles};

/// How long to wait before another try: a server may just be starting again.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// What became of a dead run.
#[derive(Debug)]
pub struct Swept {
    /// Which it was.
    pub run: RunId,
    /// How many things of it were removed.
    pub removed: usize,
    /// Where things of it are that were left, because nobody named that place now.
    pub elsewhere: Vec<String>,
    /// What could not be removed.
    pub report: SweepReport,
}

/// How a dead run is swept.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Leave everything, as the user of that run wanted it.
    pub keep: bool,
    /// How often to try.
    pub tries: u32,
}

/// The lock of a run on the ledger at `ledger`.
pub fn lock_path(ledger: &Path, run: RunId) -> PathBuf {
    ledger.parent().unwrap_or(Path::new(".")).join("locks").join(format!("{run}.lock"))
}

/// Sweeps every run of the ledger that is dead and owes something still. A run of another
/// machine is that machine's business, as its lock may not be seen here.
pub fn sweep_dead_runs(ledger: &Path, host: &str, addresses: &[Address]) -> anyhow::Result<Vec<Swept>> {
    let open = run::open(&ledger::open(ledger)?)?;
    let mut all = Vec::new();
    for OpenRun { id, .. } in open.into_iter().filter(|open| open.host == host) {
        // Who holds the lock lives, or is being swept by somebody else.
        let Some(lock) = RunLock::take(&lock_path(ledger, id))? else { continue };
        all.extend(sweep_run(ledger, id, addresses, Manner { keep: false, tries: 1 })?);
        lock.release()?;
    }
    Ok(all)
}

/// Sweeps the dead run `id`, whose lock the caller holds; `None` if it owes nothing.
pub fn sweep_run(ledger: &Path, id: RunId, addresses: &[Address], manner: Manner) -> anyhow::Result<Option<Swept>> {
    marked::kill("ISOLANE_RUN_ID", &id.to_string());
    let db = ledger::open(ledger)?;
    let Some(open) = run::open(&db)?.into_iter().find(|open| open.id == id) else { return Ok(None) };
    let owed = resource::owed(&db, open.key)?;
    let (writer, thread) = Writer::start(db);
    let inventory = Inventory::recall(writer.clone(), open.key, owed);
    let mut swept = Swept { run: id, removed: 0, elsewhere: Vec::new(), report: SweepReport::default() };
    if manner.keep {
        for item in inventory.owed() {
            inventory.happened(&item.resource, ResourceEvent::Keep, None);
        }
    } else {
        remove(&inventory, &id.tag(), addresses, manner.tries, &mut swept);
    }
    let clean = !manner.keep && swept.elsewhere.is_empty() && swept.report.stuck.is_empty();
    let state = if clean { RunState::Swept } else { RunState::Crashed };
    writer.commit(Durability::Process, move |db| run::end(db, open.key, None, state, Timestamp::now()))?;
    writer.close();
    let _ = thread.join();
    Ok(Some(swept))
}

fn remove(inventory: &Inventory, tag: &Tag, addresses: &[Address], tries: u32, swept: &mut Swept) {
    for attempt in 0..tries {
        if attempt > 0 {
            std::thread::sleep(BETWEEN_TRIES);
        }
        let sites = sites(inventory, tag, addresses);
        let sites: Vec<&dyn Site> = sites.iter().map(|site| &**site).collect();
        for site in &sites {
            // If this fails, so does what follows, and says so.
            let _ = site.take_over(tag);
        }
        swept.elsewhere = places(inventory);
        swept.elsewhere.retain(|id| sites.iter().all(|site| site.id() != *id));
        swept.report = sweep(inventory, &sites, Scope::Sites);
        if swept.report.stuck.is_empty() {
            break;
        }
    }
    swept.removed = inventory.removed().values().sum();
}

/// The ids of the sites where something is owed.
fn places(inventory: &Inventory) -> Vec<String> {
    let mut ids: Vec<String> = inventory.owed().into_iter().map(|item| item.resource.provider).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn sites(inventory: &Inventory, tag: &Tag, addresses: &[Address]) -> Vec<Box<dyn Site>> {
    let ids = places(inventory);
    let servers = addresses.iter().filter_map(|address| match address {
        Address::Postgres(postgres) => Server::new(postgres, tag).ok(),
        Address::Sqlite(_) | Address::InMemory(_) => None,
    });
    let mut sites: Vec<Box<dyn Site>> = Vec::new();
    for server in servers {
        // Two addresses may be one server's.
        if ids.iter().any(|id| id == server.id()) && sites.iter().all(|site| site.id() != server.id()) {
            sites.push(Box::new(server));
        }
    }
    for id in ids {
        if id == Directories::ID {
            sites.push(Box::new(Directories::new(PathBuf::new(), tag.clone())));
        } else if id.starts_with(SqliteFiles::SCHEME) {
            sites.push(Box::new(SqliteFiles::new(id)));
        }
    }
    sites
}
