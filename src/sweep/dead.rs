//! Sweeping a run whose supervisor is dead, from the ledger and the addresses of servers:
//! what its watchdog does, and the next run on the same ledger where that died as well.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{Scope, SweepReport, leave, patiently, sweep};
use crate::address::Address;
use crate::clock::Timestamp;
use crate::desk::Desk;
use crate::inventory::Inventory;
use crate::ledger::lease::LedgerStore;
use crate::ledger::resource::{self, Entry, ResourceEvent};
use crate::ledger::run::{self, NewRun, OpenRun, RunState};
use crate::ledger::{self, Durability, RunKey, Writer, collision};
use crate::name::{RunId, Tag};
use crate::os::lock::RunLock;
use crate::os::marked;
use crate::provider::{Census, Directories, Resource, Server, ServerFolders, Site, SqliteFiles};

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

/// Removes the locks of runs that died when they had said nothing yet or everything.
fn remove_stale_locks(ledger: &Path, open: &[OpenRun]) -> anyhow::Result<()> {
    let Some(folder) = lock_path(ledger, RunId::new(0)).parent().and_then(|folder| fs::read_dir(folder).ok()) else {
        return Ok(());
    };
    for entry in folder.flatten() {
        let path = entry.path();
        let is_open = open.iter().any(|open| lock_of(ledger, open) == path);
        if !is_open && let Some(lock) = RunLock::take(&path)? {
            lock.release()?;
        }
    }
    Ok(())
}

/// What is known of a dead run besides the ledger.
#[derive(Debug, Default)]
pub struct Memory {
    /// What it promised to make, as far as its watchdog heard.
    pub promised: Vec<Resource>,
    /// Leave everything, as the user of that run wanted it.
    pub keep: bool,
    /// What was kept is wanted no more.
    pub with_kept: bool,
}

/// The lock of a run on the ledger at `ledger`.
pub fn lock_path(ledger: &Path, run: RunId) -> PathBuf {
    ledger.parent().unwrap_or(Path::new(".")).join("locks").join(format!("{run}.lock"))
}

/// Where the lock of a run in the ledger at `ledger` is: where the run has made it, though
/// this be a copy of its ledger; beside this one, where the project has moved.
pub fn lock_of(ledger: &Path, run: &OpenRun) -> PathBuf {
    if run.lock.exists() { run.lock.clone() } else { lock_path(ledger, run.id) }
}

/// Sweeps every run of the ledger that is dead and owes something still. A run of another
/// machine is that machine's business, as its lock may not be seen here.
pub fn sweep_dead_runs(ledger: &Path, host: &str, addresses: &[Address]) -> anyhow::Result<Vec<Swept>> {
    let open = run::open(&ledger::open(ledger)?, false)?;
    let mut all = Vec::new();
    remove_stale_locks(ledger, &open)?;
    // Who holds a lock lives, or is being swept by somebody else.
    let is_quiet = |open: &OpenRun| open.host == host && !RunLock::is_held(&lock_of(ledger, open));
    let quiet: Vec<_> = open.into_iter().filter(is_quiet).collect();
    let living = living(&quiet.iter().map(|open| open.id).collect(), addresses);
    for open in quiet.into_iter().filter(|open| !living.contains(&open.id)) {
        let Some(lock) = RunLock::take(&lock_of(ledger, &open))? else { continue };
        all.extend(sweep_run(ledger, open.id, addresses, Memory::default())?);
        lock.release()?;
    }
    Ok(all)
}

/// Those of these runs that live, whoever holds which lock: the watchdog is there, or a session
/// on one of the servers says so. Locks get lost with folders that are copied, moved or tidied
/// up.
pub fn living(runs: &BTreeSet<RunId>, addresses: &[Address]) -> BTreeSet<RunId> {
    let Some(any) = runs.first() else { return BTreeSet::new() };
    let tags = runs.iter().map(RunId::tag).collect();
    // A server that cannot be asked cannot be swept either.
    let claimed: BTreeSet<Tag> =
        servers_of(addresses, &any.tag()).filter_map(|server| server.living(&tags).ok()).flatten().collect();
    let watchdogs = marked::watchdogs();
    let lives = |run: &&RunId| watchdogs.contains(&run.to_string()) || claimed.contains(&run.tag());
    runs.iter().filter(lives).copied().collect()
}

/// Sweeps the dead run `id`, whose lock the caller holds; `None` if it owes nothing. Where
/// the ledger is gone or cannot be read, memory has to do.
pub fn sweep_run(ledger: &Path, id: RunId, addresses: &[Address], memory: Memory) -> anyhow::Result<Option<Swept>> {
    marked::kill("ISOLANE_RUN_ID", &id.to_string());
    let found = ledger::open_existing(ledger).and_then(|db| recall(db, id, memory.with_kept));
    let Recalled { db, key, has_ended, left } = match found {
        Ok(Some(found)) => found,
        Ok(None) | Err(_) if !memory.promised.is_empty() => forgotten(id)?,
        Ok(None) => return Ok(None),
        Err(error) => return Err(error),
    };
    let holds = ledger::lease::holds(&db, &id.to_string()).unwrap_or(false);
    let (writer, thread) = Writer::start(db);
    if holds {
        let (desk, run) = (Desk::new(Box::new(LedgerStore::new(writer.clone(), ledger)), None), id.to_string());
        // What is not freed now is freed by time.
        let _ = desk.holder_died_blocking(move |holder| holder.run.as_deref() == Some(run.as_str()));
    }
    let inventory = Inventory::recall(writer.clone(), key, left);
    // Something of it may be gone for long, and removing that is success.
    inventory.adopt(memory.promised);
    let mut swept = Swept { run: id, removed: 0, elsewhere: Vec::new(), report: SweepReport::default() };
    if memory.keep {
        let sites = sites(&inventory, &id.tag(), addresses);
        // There is nobody to tell: the triggers that stay do nothing.
        let _ = leave(&inventory, &sites.iter().map(|site| &**site).collect::<Vec<_>>());
        for item in inventory.owed() {
            // What is stuck stays so.
            let _ = inventory.happened(&item.resource, ResourceEvent::Keep, None);
        }
    } else {
        remove(&inventory, &id.tag(), addresses, &mut swept);
    }
    let clean = !memory.keep && swept.elsewhere.is_empty() && swept.report.stuck.is_empty();
    let state = if clean { RunState::Swept } else { RunState::Crashed };
    let settled = writer.commit(Durability::Process, move |db| collision::settle(db, key));
    let ended = writer.commit(Durability::Process, move |db| {
        if has_ended { Ok(()) } else { run::end(db, key, None, state, Timestamp::now()) }
    });
    writer.close();
    let _ = thread.join();
    ended?;
    settled?;
    Ok(Some(swept))
}

/// A run as its ledger knows it.
struct Recalled {
    db: Connection,
    key: RunKey,
    has_ended: bool,
    left: Vec<Entry>,
}

fn recall(db: Option<Connection>, id: RunId, with_kept: bool) -> anyhow::Result<Option<Recalled>> {
    let Some(db) = db else { return Ok(None) };
    let Some(OpenRun { key, has_ended, .. }) = run::open(&db, with_kept)?.into_iter().find(|open| open.id == id) else {
        return Ok(None);
    };
    let left = resource::owed(&db, key, with_kept)?;
    Ok(Some(Recalled { db, key, has_ended, left }))
}

/// A run whose ledger is lost.
fn forgotten(id: RunId) -> anyhow::Result<Recalled> {
    let db = ledger::in_memory()?;
    let key = run::begin(&db, &NewRun::unknown(id, Timestamp::now()))?;
    Ok(Recalled { db, key, has_ended: false, left: Vec::new() })
}

fn remove(inventory: &Inventory, tag: &Tag, addresses: &[Address], swept: &mut Swept) {
    let sites = sites(inventory, tag, addresses);
    let sites: Vec<&dyn Site> = sites.iter().map(|site| &**site).collect();
    swept.elsewhere = places(inventory);
    swept.elsewhere.retain(|id| sites.iter().all(|site| site.id() != *id));
    swept.report = patiently(|| {
        for site in &sites {
            // If this fails, so does what follows, and says so.
            let _ = site.take_over(tag);
        }
        sweep(inventory, &sites, Scope::Sites)
    });
    swept.removed = inventory.removed().values().sum();
}

/// The ids of the sites where something is owed.
fn places(inventory: &Inventory) -> Vec<String> {
    let mut ids: Vec<String> = inventory.owed().into_iter().map(|item| item.resource.provider).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn servers_of(addresses: &[Address], tag: &Tag) -> impl Iterator<Item = Server> {
    addresses.iter().filter_map(|address| match address {
        Address::Postgres(postgres) => Server::new(postgres, tag).ok(),
        Address::Sqlite(_) | Address::InMemory(_) => None,
    })
}

fn sites(inventory: &Inventory, tag: &Tag, addresses: &[Address]) -> Vec<Box<dyn Site>> {
    let ids = places(inventory);
    let mut sites: Vec<Box<dyn Site>> = Vec::new();
    for server in servers_of(addresses, tag) {
        // Two addresses may be one server's.
        if ids.iter().any(|id| id == server.id()) && sites.iter().all(|site| site.id() != server.id()) {
            sites.push(Box::new(server));
        }
    }
    for id in ids.iter().filter(|id| id.starts_with(Server::SCHEME)) {
        // An address that is spelled otherwise is the same server's if the run's things are there.
        let knows =
            |server: &Server| server.marked().is_ok_and(|marked| marked.iter().any(|(_, mark)| mark.run.tag() == *tag));
        if sites.iter().all(|site| site.id() != id)
            && let Some(server) = servers_of(addresses, tag).find(knows)
        {
            sites.push(Box::new(server.called(id)));
        }
    }
    for id in ids {
        if id == Directories::ID {
            sites.push(Box::new(Directories::new(PathBuf::new(), tag.clone())));
        } else if id.starts_with(SqliteFiles::SCHEME) {
            sites.push(Box::new(SqliteFiles::new(id)));
        } else if id.starts_with(ServerFolders::SCHEME) {
            sites.push(Box::new(ServerFolders::new(id)));
        }
    }
    sites
}
