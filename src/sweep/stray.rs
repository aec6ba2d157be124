//! Strays: what dead runs left, as the ledger of this place and the marks on servers tell.
//! A ledger's run is dead when nobody holds its lock on this machine; a mark's when no
//! session on the server holds its lock there. What carries no mark is nobody's business
//! here, however it is called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Memory, SweepReport, lock_path, patiently, sweep_run, undo_beside};
use crate::address::Address;
use crate::clock::Timestamp;
use crate::error::one_line;
use crate::inventory::{Inventory, resource_of};
use crate::ledger::resource::{self, ResourceState};
use crate::ledger::run::{self, NewRun, OpenRun};
use crate::ledger::{self, Writer};
use crate::mark::Mark;
use crate::name::{Place, RunId, Tag};
use crate::os::lock::RunLock;
use crate::provider::{Census, Resource, ResourceKind, Server, Site};

/// A session that was cut off has taken its run's lock again after this long.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Why something is a stray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nobody on this machine holds the lock of its run.
    NoLock,
    /// No session on the server says that its run lives.
    NoClaim,
    /// It was kept on its user's wish, and its run is over.
    Kept,
}

impl Reason {
    /// It as a person reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoLock => "its run is dead: nobody holds the lock",
            Self::NoClaim => "its run is dead: no session claims it",
            Self::Kept => "kept as asked; its run is over",
        }
    }
}

/// Something that a dead run left.
#[derive(Clone, Debug)]
pub struct Stray {
    /// What it is.
    pub resource: Resource,
    /// Whose it is.
    pub run: RunId,
    /// For which worker it was made, as far as that is known.
    pub worker: Option<String>,
    /// The machine of its run.
    pub host: String,
    /// When its run started.
    pub since: Timestamp,
    /// Why it is one.
    pub reason: Reason,
    found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// In the ledger.
    Ledger,
    /// By its mark, on this one of the servers.
    Server(usize),
}

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// What dead runs left.
    pub strays: Vec<Stray>,
    /// How many things stay, because their runs live.
    pub living: usize,
    /// How many stay, because their runs are younger than was asked for.
    pub young: usize,
    /// Runs of the ledger that are dead and left nothing.
    empty: Vec<RunId>,
    servers: Vec<Server>,
}

/// Looks for strays: in the ledger at `ledger`, if there is one, and on the servers that
/// `addresses` name. Those of runs that are younger than `older_than` at `now` stay.
pub fn survey(
    ledger: &Path,
    host: &str,
    addresses: &[Address],
    older_than: Duration,
    now: Timestamp,
) -> anyhow::Result<Survey> {
    let mut survey = Survey::default();
    let locked = survey.read_ledger(ledger, host)?;
    for address in addresses {
        let Address::Postgres(postgres) = address else { continue };
        // It makes nothing, so no run's name is on its sessions.
        let server = Server::new(postgres, &RunId::new(now.0).tag())?;
        let marked = server.marked()?;
        let living = server.living(&marked.iter().map(|(_, mark)| mark.run.tag()).collect())?;
        for (resource, mark) in marked {
            if living.contains(&mark.run.tag()) || locked.contains(&mark.run.tag()) {
                survey.living += 1;
            } else if survey.strays.iter().all(|stray| stray.resource != resource) {
                survey.strays.push(Stray {
                    resource,
                    run: mark.run,
                    worker: Some(mark.worker),
                    host: mark.host,
                    since: mark.since,
                    reason: Reason::NoClaim,
                    found: Found::Server(survey.servers.len()),
                });
            }
        }
        survey.servers.push(server);
    }
    let all = survey.strays.len();
    survey.strays.retain(|stray| stray.since.age(now) >= older_than);
    survey.young = all - survey.strays.len();
    Ok(survey)
}

impl Survey {
    /// Adds what the ledger knows; comes back with the tags of its runs that live.
    fn read_ledger(&mut self, ledger: &Path, host: &str) -> anyhow::Result<BTreeSet<Tag>> {
        let mut locked = BTreeSet::new();
        let db =
            ledger::open_existing(ledger).with_context(|| format!("cannot use the ledger {}", ledger.display()))?;
        let Some(db) = db else { return Ok(locked) };
        for OpenRun { key, id, host: its, started_at, .. } in run::open(&db, true)? {
            // Of a run of another machine neither files nor lock are here.
            if its != host {
                continue;
            }
            let entries = resource::owed(&db, key, true)?;
            if RunLock::is_held(&lock_path(ledger, id)) {
                locked.insert(id.tag());
                continue;
            }
            if entries.is_empty() {
                self.empty.push(id);
            }
            for entry in entries {
                let Some(resource) = resource_of(entry.words) else { continue };
                let kept = entry.state == ResourceState::Kept;
                self.strays.push(Stray {
                    resource,
                    run: id,
                    worker: entry.worker_id,
                    host: its.clone(),
                    since: started_at,
                    reason: if kept { Reason::Kept } else { Reason::NoLock },
                    found: Found::Ledger,
                });
            }
        }
        Ok(locked)
    }
}

/// Removes what the survey found. Comes back with what could not be removed, and why.
pub fn apply(survey: &Survey, ledger: &Path, addresses: &[Address]) -> anyhow::Result<SweepReport> {
    let mut report = SweepReport::default();
    let in_ledger = survey.strays.iter().filter(|stray| stray.found == Found::Ledger);
    let mut runs: Vec<RunId> = in_ledger.map(|stray| stray.run).chain(survey.empty.iter().copied()).collect();
    runs.dedup();
    for run in runs {
        // Whoever holds the lock sweeps it already.
        let Some(lock) = RunLock::take(&lock_path(ledger, run))? else { continue };
        let memory = Memory { with_kept: true, ..Memory::default() };
        if let Some(swept) = sweep_run(ledger, run, addresses, memory)? {
            let elsewhere = |stray: &&Stray| stray.run == run && swept.elsewhere.contains(&stray.resource.provider);
            let why = "no address of its server is given (--database-url)";
            let unreached = survey.strays.iter().filter(elsewhere);
            report.stuck.extend(unreached.map(|stray| (stray.resource.clone(), why.to_owned())));
            report.stuck.extend(swept.report.stuck);
        }
        lock.release()?;
    }
    let marked = |server| survey.strays.iter().filter(move |stray| stray.found == Found::Server(server));
    if survey.strays.iter().any(|stray| stray.found != Found::Ledger) {
        std::thread::sleep(SECOND_LOOK);
    }
    for (index, server) in survey.servers.iter().enumerate() {
        report.stuck.extend(remove_marked(server, &marked(index).collect::<Vec<_>>())?.stuck);
    }
    Ok(report)
}

fn remove_marked(server: &Server, strays: &[&Stray]) -> anyhow::Result<SweepReport> {
    let Some(first) = strays.first() else { return Ok(SweepReport::default()) };
    // What others' ledgers know is only remembered here for as long as it takes.
    let db = ledger::in_memory()?;
    let unknown = String::new;
    let run = NewRun {
        id: first.run,
        command: unknown(),
        runner: "",
        host: unknown(),
        cwd: unknown(),
        started_at: first.since,
    };
    let key = run::begin(&db, &run)?;
    let (writer, thread) = Writer::start(db);
    let inventory = Inventory::new(writer.clone(), key, None);
    // Roles go after the schemas that they own.
    let rank = |kind: ResourceKind| usize::from(kind != ResourceKind::Role);
    let mut resources: Vec<_> = strays.iter().map(|stray| stray.resource.clone()).collect();
    resources.sort_by_key(|resource| rank(resource.kind));
    inventory.adopt(resources);
    let owners: BTreeMap<String, Tag> =
        strays.iter().map(|stray| (stray.resource.name.clone(), stray.run.tag())).collect();
    let site = Proven { server, strays };
    let report = patiently(|| {
        for tag in owners.values().collect::<BTreeSet<_>>() {
            // If this fails, so does what follows, and says so.
            let _ = site.take_over(tag);
        }
        let mut groups: BTreeMap<(&Tag, Place), Vec<_>> = BTreeMap::new();
        for item in inventory.owed() {
            groups.entry((&owners[&item.resource.name], item.resource.place)).or_default().push(item);
        }
        undo_beside(&inventory, &[&site], groups.into_values().collect())
    });
    writer.close();
    let _ = thread.join();
    Ok(report)
}

/// A server on which a thing is removed only if it carries the mark still that it was found
/// by, and its run is dead still.
#[derive(Debug)]
struct Proven<'a> {
    server: &'a Server,
    strays: &'a [&'a Stray],
}

impl Proven<'_> {
    /// Whether the thing is there and may go.
    fn prove(&self, resource: &Resource) -> anyhow::Result<bool> {
        let Some(run) = self.strays.iter().find(|stray| stray.resource == *resource).map(|stray| stray.run) else {
            bail!("it was not found before")
        };
        if !self.server.living(&BTreeSet::from([run.tag()]))?.is_empty() {
            bail!("its run lives")
        }
        let mark = self.server.mark_of(resource)?;
        match mark.as_deref().map(Mark::parse) {
            None => Ok(false),
            Some(Some(mark)) if mark.run == run && mark.is_of(&resource.name) => Ok(true),
            Some(_) => bail!("it carries another mark now"),
        }
    }
}

impl Site for Proven<'_> {
    fn id(&self) -> &str {
        self.server.id()
    }

    fn take_over(&self, dead: &Tag) -> anyhow::Result<()> {
        if self.server.living(&BTreeSet::from([dead.clone()]))?.is_empty() {
            self.server.take_over(dead)?;
        }
        Ok(())
    }

    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()> {
        if self.prove(resource)? { self.server.disconnect(resource) } else { Ok(()) }
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        match self.prove(resource) {
            Ok(true) => self.server.remove(resource),
            Ok(false) => Ok(()),
            Err(why) => bail!(one_line(&why)),
        }
    }
}
