//! Strays: what dead runs left, as the ledger of this place and the marks on servers tell.
//! A ledger's run is dead when nobody holds its lock on this machine; a mark's when no
//! session on the server holds its lock there. What carries no mark is nobody's business
//! here, however it is called.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

use super::{Memory, SweepReport, beside, living, lock_of, patiently, sweep_run};
use crate::address::{Address, PostgresAddress};
use crate::clock::Timestamp;
use crate::error::one_line;
use crate::inventory::resource_of;
use crate::ledger;
use crate::ledger::resource::{self, ResourceState};
use crate::ledger::run::{self, OpenRun};
use crate::mark::Mark;
use crate::name::{RunId, Tag};
use crate::os::lock::RunLock;
use crate::os::marked;
use crate::provider::{Census, Directories, Resource, ResourceKind, Server, Site, read_label, stop_below};

/// A session that was cut off has taken its run's lock again after this long: the first try
/// is made at once.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// How many schemas or roles are removed in one statement: the proof costs more than the
/// removal of an empty one.
const TOGETHER: usize = 20;

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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// In the ledger; its run has this lock.
    Ledger { lock: PathBuf },
    /// By what it says of itself, in the folder of runs; its run has this lock.
    Folder { lock: PathBuf },
    /// By its mark, on this one of the servers.
    Server { index: usize, mark: Mark },
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
    /// Servers that could not be asked, and why.
    pub unreachable: Vec<String>,
    /// Runs of the ledger that are dead and left nothing.
    empty: Vec<(RunId, PathBuf)>,
    servers: Vec<Server>,
}

/// Looks for strays: in the ledger at `ledger`, if there is one, in the `folder` of runs, and
/// on the servers that `addresses` name. Those of runs younger than `older_than` at `now` stay.
pub fn survey(
    ledger: &Path,
    host: &str,
    addresses: &[Address],
    folder: &Path,
    older_than: Duration,
    now: Timestamp,
) -> anyhow::Result<Survey> {
    let mut survey = Survey::default();
    let locked = survey.read_ledger(ledger, host, addresses)?;
    survey.read_folder(folder, host, addresses);
    // A run's names are its own, by whichever name a server goes.
    let id = |resource: &Resource| (resource.kind, resource.name.clone());
    for address in addresses {
        let Address::Postgres(postgres) = address else { continue };
        let known: BTreeSet<_> = survey.strays.iter().map(|stray| id(&stray.resource)).collect();
        let (server, marked, living) = match ask(postgres, host, now) {
            Ok(answers) => answers,
            Err(error) => {
                // The others and the ledger need not wait for it.
                survey.unreachable.push(one_line(&error));
                continue;
            }
        };
        for (resource, mark) in marked {
            if living.contains(&mark.run.tag()) || locked.contains(&mark.run.tag()) {
                survey.living += 1;
            } else if !known.contains(&id(&resource)) {
                survey.strays.push(Stray {
                    resource,
                    run: mark.run,
                    worker: Some(mark.worker.clone()),
                    host: mark.host.clone(),
                    since: mark.since,
                    reason: Reason::NoClaim,
                    found: Found::Server { index: survey.servers.len(), mark },
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

/// Everything on a server that carries a mark, and which of their runs live.
type Answers = (Server, Vec<(Resource, Mark)>, BTreeSet<Tag>);

fn ask(address: &PostgresAddress, host: &str, now: Timestamp) -> anyhow::Result<Answers> {
    // It makes nothing, so no run's name is on its sessions.
    let server = Server::new(address, &RunId::new(now.millis()).tag())?;
    let marked = server.marked()?;
    server.settle()?;
    let mut living = server.living(&marked.iter().map(|(_, mark)| mark.run.tag()).collect())?;
    // On this machine there is a second sign: a run that was cut off from its server lives.
    let watchdogs = marked::watchdogs();
    let is_guarded = |mark: &Mark| mark.host == host && watchdogs.contains(&mark.run.to_string());
    living.extend(marked.iter().filter(|(_, mark)| is_guarded(mark)).map(|(_, mark)| mark.run.tag()));
    Ok((server, marked, living))
}

impl Survey {
    /// Adds what the ledger knows; comes back with the tags of its runs that live.
    fn read_ledger(&mut self, ledger: &Path, host: &str, addresses: &[Address]) -> anyhow::Result<BTreeSet<Tag>> {
        let mut locked = BTreeSet::new();
        let db =
            ledger::open_existing(ledger).with_context(|| format!("cannot use the ledger {}", ledger.display()))?;
        let Some(db) = db else { return Ok(locked) };
        // Of a run of another machine neither files nor lock are here.
        let open: Vec<_> = run::open(&db, true)?.into_iter().filter(|open| open.host == host).collect();
        let shown = living(&open.iter().map(|open| open.id).collect(), addresses);
        for open in open {
            let lock = lock_of(ledger, &open);
            let OpenRun { key, id, host: its, started_at, .. } = open;
            if shown.contains(&id) || RunLock::is_held(&lock) {
                locked.insert(id.tag());
                continue;
            }
            let entries = resource::owed(&db, key, true)?;
            if entries.is_empty() {
                self.empty.push((id, lock.clone()));
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
                    found: Found::Ledger { lock: lock.clone() },
                });
            }
        }
        Ok(locked)
    }

    /// Adds the directories of runs whose ledger is another, or lost.
    fn read_folder(&mut self, folder: &Path, host: &str, addresses: &[Address]) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let labels = entries.filter_map(|entry| read_label(&entry.path()).map(|label| (entry.path(), label)));
        let labels: Vec<_> = labels.filter(|(_, (mark, _))| mark.host == host).collect();
        let shown = living(&labels.iter().map(|(_, (mark, _))| mark.run).collect(), addresses);
        for (path, (mark, lock)) in labels {
            let name = path.display().to_string();
            let is_known = self.strays.iter().any(|stray| stray.resource.name == name);
            if is_known || shown.contains(&mark.run) || RunLock::is_held(&lock) {
                continue;
            }
            self.strays.push(Stray {
                resource: Resource {
                    provider: Directories::ID.to_owned(),
                    kind: ResourceKind::Directory,
                    name,
                    place: mark.place,
                },
                run: mark.run,
                worker: None,
                host: mark.host,
                since: mark.since,
                reason: Reason::NoLock,
                found: Found::Folder { lock },
            });
        }
    }
}

fn lives(run: RunId, addresses: &[Address]) -> bool {
    !living(&BTreeSet::from([run]), addresses).is_empty()
}

/// Removes what the survey found. Comes back with what could not be removed, and why.
pub fn apply(survey: &Survey, ledger: &Path, addresses: &[Address]) -> anyhow::Result<SweepReport> {
    let mut report = SweepReport::default();
    let in_ledger = survey.strays.iter().filter_map(|stray| match &stray.found {
        Found::Ledger { lock } => Some((stray.run, lock.clone())),
        Found::Folder { .. } | Found::Server { .. } => None,
    });
    let mut runs: Vec<_> = in_ledger.chain(survey.empty.iter().cloned()).collect();
    runs.dedup();
    for (run, lock) in runs {
        // Whoever holds the lock sweeps it already.
        if lives(run, addresses) {
            continue;
        }
        let Some(lock) = RunLock::take(&lock)? else { continue };
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
    for stray in &survey.strays {
        let Found::Folder { lock } = &stray.found else { continue };
        if lives(stray.run, addresses) || RunLock::is_held(lock) {
            continue;
        }
        marked::kill("ISOLANE_RUN_ID", &stray.run.to_string());
        let stopped = stop_below(Path::new(&stray.resource.name));
        let directories = Directories::new(PathBuf::new(), stray.run.tag());
        if let Err(error) = stopped.and_then(|()| directories.remove(&stray.resource)) {
            report.stuck.push((stray.resource.clone(), one_line(&error)));
        }
    }
    if survey.strays.iter().any(|stray| matches!(stray.found, Found::Server { .. })) {
        std::thread::sleep(SECOND_LOOK);
    }
    for (number, server) in survey.servers.iter().enumerate() {
        let marked = survey.strays.iter().filter_map(|stray| match &stray.found {
            Found::Server { index, mark } if *index == number => Some((stray, mark)),
            _ => None,
        });
        report.stuck.extend(remove_marked(server, &marked.collect::<Vec<_>>()).stuck);
    }
    Ok(report)
}

/// Removes what carries a mark still and whose run is dead still.
fn remove_marked(server: &Server, strays: &[(&Stray, &Mark)]) -> SweepReport {
    let _open = server.keep_open();
    let mut left = strays.to_vec();
    patiently(|| {
        let tags: BTreeSet<Tag> = left.iter().map(|(stray, _)| stray.run.tag()).collect();
        // If this fails, so does what follows, and says so.
        let _ = server.living(&tags).and_then(|living| server.end_makers(tags.difference(&living)));
        let stuck = Mutex::new(Vec::new());
        // Removals of databases that go at the same time share a checkpoint, and roles go after
        // the schemas that they own.
        // What a run wrote among the user's own goes when nobody of it writes any more.
        let kinds = [
            (ResourceKind::Database, false),
            (ResourceKind::Schema, false),
            (ResourceKind::Role, false),
            (ResourceKind::Schema, true),
        ];
        for (kind, knows_rows) in kinds {
            let is_one = |stray: &Stray| stray.resource.kind == kind && stray.resource.knows_rows() == knows_rows;
            let of_kind: Vec<_> = left.iter().filter(|(stray, _)| is_one(stray)).copied().collect();
            let together = if kind == ResourceKind::Database { 1 } else { TOGETHER };
            beside(of_kind.chunks(together), |some| {
                let stuck_now = remove_some(server, some);
                stuck.lock().unwrap_or_else(PoisonError::into_inner).extend(stuck_now);
            });
        }
        let stuck = stuck.into_inner().unwrap_or_else(PoisonError::into_inner);
        left.retain(|(stray, _)| stuck.iter().any(|(resource, _)| *resource == stray.resource));
        SweepReport { stuck }
    })
}

/// Removes these together, or each alone where that does not go; what does not go alone
/// either comes back, with why.
fn remove_some(server: &Server, some: &[(&Stray, &Mark)]) -> Vec<(Resource, String)> {
    let mut stuck = Vec::new();
    let mut things: Vec<_> = some.iter().map(|(stray, mark)| (&stray.resource, *mark)).collect();
    things.retain(|(resource, mark)| {
        let rows = if resource.knows_rows() { server.remove_rows_proven(resource, mark) } else { return true };
        let gone = rows.and_then(|rows| rows.ensure_gone());
        stuck.extend(gone.as_ref().err().map(|why| ((*resource).clone(), one_line(why))));
        gone.is_ok()
    });
    if things.len() > 1 && server.remove_proven(&things).is_ok() {
        return stuck;
    }
    let alone = things.into_iter().filter_map(|(resource, mark)| {
        let why = server.remove_proven(&[(resource, mark)]).err()?;
        Some((resource.clone(), one_line(&why)))
    });
    stuck.extend(alone);
    stuck
}
