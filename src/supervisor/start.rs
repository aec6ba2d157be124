//! The start of a run: everything that can refuse does so before anything is made.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::command;
use crate::address::Address;
use crate::clock::Timestamp;
use crate::error::{Stop, exit_code, one_line};
use crate::fault::{self, Step};
use crate::inventory::Inventory;
use crate::ledger::run::{NewRun, RunState};
use crate::ledger::{self, Durability, RunKey, Writer};
use crate::mark::Owner;
use crate::name::{Lane, Place, RunId};
use crate::os::lock::RunLock;
use crate::os::signal::Signals;
use crate::provider::{Directories, Postgres, Provider, Servers, Shelf, Sqlite};
use crate::recipe::Recipe;
use crate::run::{API_FOLDER, Run};
use crate::runner::{PLUGIN_MODULE, Recognised, Shims};
use crate::secret::{Vault, mask_command};
use crate::settings::{Fresh, Isolation, Keep, Runner, Settings};
use crate::sweep::{Scope, SweepReport, Swept, lock_path, patiently, sweep, sweep_dead_runs};
use crate::watchdog::Watchdog;

const EXEC_SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/isolane-exec"));
const PYTEST_SHIM: &str = include_str!("../../shims/pytest/isolane_pytest.py");

/// How long another run may take to make the same pristine state until that is said.
const SILENCE: Duration = Duration::from_secs(2);
/// How long between two looks whether it has.
const BREATH: Duration = Duration::from_millis(20);

/// A run that was announced and is ready to go.
#[derive(Debug)]
pub struct Started {
    pub run: Arc<Run>,
    pub shims: Shims,
    /// How long the user's setup command took.
    pub setup_time: Duration,
    /// What became of dead runs before this one.
    pub notices: Vec<String>,
    /// What the pristine state is made by, where it outlives the run.
    recipe: Option<Recipe>,
    lock: RunLock,
    watchdog: Watchdog,
    /// Which file the ledger is: device and inode.
    ledger_file: Option<(u64, u64)>,
    writer_thread: JoinHandle<Option<rusqlite::Error>>,
}

/// Starts a run; after an error nothing of it is left.
pub fn start(
    settings: Settings,
    command: &[OsString],
    recognised: &Recognised,
    signals: &Signals,
) -> anyhow::Result<Started> {
    let recipe = Recipe::read(&settings)?;
    let now = Timestamp::now();
    let id = RunId::new(now.millis());
    let tag = id.tag();
    let host = crate::os::host();
    // pytest's own process has the lane behind those of its workers.
    let is_pytest = recognised.runner == Runner::Pytest;
    let master = is_pytest.then(|| Lane(recognised.expected_workers(command, &settings.variables)));
    let owner = Owner { run: id, host: host.clone(), since: now, worker: recognised.runner.worker_word(), master };
    let root = settings.folder_of_runs().join(format!("isolane-{tag}"));
    let providers = providers(&settings, &root, &owner)?;
    let vault = Vault::new(settings.secrets());

    let ledger_path = settings.ledger.clone();
    let cannot = |error: &anyhow::Error| {
        let corrupt = if ledger::is_corrupt(error) { "; the file was not touched" } else { "" };
        Stop::not_started(format!(
            "cannot use the ledger {}: {}{corrupt}; --ledger names another place",
            ledger_path.display(),
            one_line(error)
        ))
    };
    let db = ledger::open(&ledger_path).map_err(|e| cannot(&e))?;
    let (writer, writer_thread) = Writer::start(db);
    fault::before(Step::Lock)?;
    let lock = hold_lock(&ledger_path, id).map_err(|e| cannot(&e.into()))?;
    let notices = tidy(&ledger_path, &host, &settings);
    let new_run = NewRun {
        id,
        command: vault.mask(&mask_command(&shell_line(command))),
        runner: recognised.runner.as_str(),
        host,
        cwd: settings.cwd.display().to_string(),
        lock: lock.path().to_owned(),
        started_at: now,
    };
    let key = match fault::after(Step::Lock).and_then(|()| announce(&writer, new_run)) {
        Ok(key) => key,
        Err(error) => {
            let _ = lock.release();
            return Err(cannot(&error));
        }
    };
    let (watchdog, ear) = match arm(&settings, &lock, id) {
        Ok(armed) => armed,
        Err(error) => {
            let _ = writer.commit(Durability::Process, move |db| ledger::run::forget(db, key));
            let _ = lock.release();
            return Err(Stop::not_started(format!("cannot start the watchdog: {}", one_line(&error))));
        }
    };
    let shims = Shims { python: root.join("python"), exec: root.join("isolane-exec") };
    let inventory = Inventory::new(writer.clone(), key, Some(ear));
    let run = Arc::new(Run { id, tag, key, writer, settings, providers, inventory, root, vault });
    let mut started = Started {
        run,
        shims,
        setup_time: Duration::ZERO,
        notices,
        recipe,
        lock,
        watchdog,
        ledger_file: file_id(&ledger_path),
        writer_thread,
    };
    match started.make(signals) {
        Ok(()) => Ok(started),
        Err(error) => Err(started.take_back(error)),
    }
}

fn announce(writer: &Writer, run: NewRun) -> anyhow::Result<RunKey> {
    fault::before(Step::Announce)?;
    let key = writer.commit(Durability::Process, move |db| ledger::run::begin(db, &run))?;
    fault::after(Step::Announce).inspect_err(|_| {
        let _ = writer.commit(Durability::Process, move |db| ledger::run::forget(db, key));
    })?;
    Ok(key)
}

fn arm(settings: &Settings, lock: &RunLock, id: RunId) -> anyhow::Result<(Watchdog, File)> {
    fault::before(Step::Arm)?;
    let addresses: Vec<_> = settings.addresses().collect();
    let keep = settings.keep == Keep::Always;
    Watchdog::arm(&settings.ledger, lock.path(), id, &addresses, keep, settings.leases.as_ref())
}

impl Started {
    /// Makes what all lanes share: the run's directory with the shims, and the template.
    fn make(&mut self, signals: &Signals) -> anyhow::Result<()> {
        let run = &Arc::clone(&self.run);
        fault::after(Step::Arm)?;
        fault::before(Step::Claim)?;
        for provider in &run.providers {
            provider.claim().context("cannot say on the server that this run lives")?;
        }
        fault::after(Step::Claim)?;
        run.inventory.make(&run.providers, Place::Run, None)?;
        self.write_shims().with_context(|| format!("cannot write into {}", run.root.display()))?;
        let makers: Vec<&dyn Provider> =
            run.providers.iter().map(|provider| &**provider).filter(|provider| provider.needs_template()).collect();
        if makers.is_empty() && run.settings.setup.is_none() {
            return Ok(());
        }
        let kept = self.find_template(&makers, signals)?;
        if kept == Shelf::Found {
            return Ok(());
        }
        run.inventory.make(&run.providers, Place::Template, Some("setup"))?;
        if let Some(setup) = &run.settings.setup {
            run.providers.iter().for_each(|provider| provider.goes_on());
            let began = Instant::now();
            command::set_up(setup, run, signals)?;
            self.setup_time += began.elapsed();
        }
        fault::before(Step::Seal)?;
        for provider in &makers {
            provider.seal_template().context("cannot make the template ready")?;
        }
        fault::after(Step::Seal)?;
        if kept == Shelf::Wanted {
            makers.iter().try_for_each(|provider| self.keep_template(*provider))?;
        }
        Ok(())
    }

    /// Looks for what an earlier run made by the same recipe, and waits for one that is just
    /// making it.
    fn find_template(&mut self, makers: &[&dyn Provider], signals: &Signals) -> anyhow::Result<Shelf> {
        let Some(recipe) = &self.recipe else { return Ok(Shelf::None) };
        let began = Instant::now();
        let (mut has_waited, mut is_told) = (false, self.run.settings.quiet);
        loop {
            // Of several databases that one setup fills, none may be older than another.
            let found = if let [only] = makers { only.find_template(recipe)? } else { Shelf::None };
            match found {
                Shelf::Busy => has_waited = true,
                Shelf::None => {
                    self.notices.push(
                        "--setup-input keeps the pristine state where each lane is a PostgreSQL database or server, and one database is named; here each run makes it".to_owned(),
                    );
                    return Ok(found);
                }
                Shelf::Found | Shelf::Wanted => {
                    self.setup_time += if has_waited { began.elapsed() } else { Duration::ZERO };
                    return Ok(found);
                }
            }
            if let Some(arrival) = signals.read()? {
                return Err(command::came_early(arrival.signal));
            }
            if !is_told && began.elapsed() > SILENCE {
                let line = "isolane: another run is making the same pristine state; this one waits for it";
                let _ = writeln!(io::stderr().lock(), "{line}");
                is_told = true;
            }
            std::thread::sleep(BREATH);
        }
    }

    /// Keeps what the setup made for later runs. From then on it is the run's no more.
    fn keep_template(&mut self, provider: &dyn Provider) -> anyhow::Result<()> {
        let settings = &self.run.settings;
        // Nobody knows whether the setup had read a file before it changed, or after.
        let is_same = Recipe::read(settings).ok().flatten() == self.recipe;
        if !is_same {
            self.notices.push(
                "files of --setup-input changed while the setup ran: what it made serves this run only".to_owned(),
            );
        }
        fault::before(Step::Keep)?;
        let limit = is_same.then_some(settings.keep_templates);
        self.notices.extend(provider.keep_template(limit).context("cannot keep the template")?);
        if provider.kept_template().is_some() {
            for resource in provider.plan(Place::Template) {
                self.run.inventory.handed_over(&resource)?;
            }
        }
        fault::after(Step::Keep)
    }

    fn write_shims(&self) -> io::Result<()> {
        let folder = self.run.root.join(API_FOLDER);
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        fs::write(&self.shims.exec, EXEC_SHIM)?;
        fs::set_permissions(&self.shims.exec, fs::Permissions::from_mode(0o700))?;
        fs::create_dir(&self.shims.python)?;
        fs::write(self.shims.python.join(format!("{PLUGIN_MODULE}.py")), PYTEST_SHIM)?;
        // Found as an installed plugin is: by the metadata beside it (entry points).
        let version = env!("CARGO_PKG_VERSION");
        let metadata = self.shims.python.join(format!("{PLUGIN_MODULE}-{version}.dist-info"));
        fs::create_dir(&metadata)?;
        let text = format!("Metadata-Version: 2.1\nName: isolane-pytest\nVersion: {version}\n");
        fs::write(metadata.join("METADATA"), text)?;
        fs::write(metadata.join("entry_points.txt"), format!("[pytest11]\n{PLUGIN_MODULE} = {PLUGIN_MODULE}\n"))
    }

    /// Whether the ledger is still the file that it was.
    pub fn has_ledger(&self) -> bool {
        self.ledger_file == file_id(&self.run.settings.ledger)
    }

    /// Undoes a run that did not come to start because of `error`, which comes back. Where all
    /// is undone, the ledger forgets it; else it stays there, with what is left.
    pub fn take_back(self, error: anyhow::Error) -> anyhow::Error {
        let command = self.run.settings.sweep_command.clone();
        let swept = self.undo();
        let Some((resource, why)) = swept.stuck.first() else { return error };
        let left = format!(
            "not removed: {} {} ({why}), and {} more; `{}` removes what is left",
            resource.kind.as_str(),
            resource.name,
            swept.stuck.len() - 1,
            command
        );
        Stop::with(exit_code(&error), format!("{}; {left}", one_line(&error)))
    }

    /// Undoes a run that no command was started in.
    pub fn undo(self) -> SweepReport {
        let swept = patiently(|| sweep(&self.run.inventory, &self.run.sites(), Scope::Run));
        let key = self.run.key;
        let forget = swept.stuck.is_empty();
        let _ = self.run.writer.commit(Durability::Process, move |db| {
            if forget {
                ledger::run::forget(db, key)
            } else {
                ledger::run::end(db, key, Some(125), RunState::Crashed, Timestamp::now())
            }
        });
        self.finish();
        swept
    }

    /// Ends the run: its lock is the last thing to go, and the watchdog with it.
    pub fn finish(mut self) {
        self.run.writer.close();
        let _ = self.writer_thread.join();
        // A fault here is a death or none: there is nothing left that an error could stop.
        let _ = fault::before(Step::Dismiss);
        self.watchdog.say_goodbye();
        let _ = fault::after(Step::Dismiss);
        let _ = fault::before(Step::Release);
        let _ = self.lock.release();
        let _ = fault::after(Step::Release);
        self.watchdog.wait();
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn hold_lock(ledger: &Path, id: RunId) -> io::Result<RunLock> {
    let path = lock_path(ledger, id);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    RunLock::hold(&path)
}

/// Sweeps what dead runs on this ledger left behind, and says so. Nothing of it stops a new
/// run.
fn tidy(ledger: &Path, host: &str, settings: &Settings) -> Vec<String> {
    let addresses: Vec<_> = settings.addresses().cloned().collect();
    let swept = match sweep_dead_runs(ledger, host, &addresses) {
        Ok(swept) => swept,
        Err(error) => return vec![format!("what dead runs left could not be removed: {}", one_line(&error))],
    };
    let mut notices = Vec::new();
    for Swept { run, removed, elsewhere, report } in swept {
        let stuck: Vec<_> = report.stuck.iter().map(|(resource, why)| format!("{} ({why})", resource.name)).collect();
        if removed > 0 {
            notices.push(format!("run {run} had been killed; what it left is removed now (things: {removed})"));
        }
        if !stuck.is_empty() {
            notices.push(format!("run {run} had been killed, and could not be cleaned: {}", stuck.join(", ")));
        }
        if !elsewhere.is_empty() {
            notices.push(format!(
                "run {run} had been killed, and left things at {}: a run with that address removes them",
                elsewhere.join(", ")
            ));
        }
    }
    notices
}

/// A provider for each database that the variables name, and one for directories, first.
fn providers(settings: &Settings, root: &Path, owner: &Owner) -> anyhow::Result<Vec<Box<dyn Provider>>> {
    let tag = owner.run.tag();
    let mut providers: Vec<Box<dyn Provider>> =
        vec![Box::new(Directories::of_run(root.to_owned(), owner, &lock_path(&settings.ledger, owner.run)))];
    if settings.fresh == Fresh::Test && matches!(settings.isolation, Isolation::None | Isolation::Shared) {
        return Err(Stop::not_started(
            "--fresh test puts lanes back, and --isolation none and shared have none of their own: leave one of the two out",
        ));
    }
    if settings.isolation == Isolation::None {
        return Ok(providers);
    }
    if settings.isolation == Isolation::Shared {
        refuse_to_share(settings)?;
    }
    if settings.isolation == Isolation::Server
        && settings.addresses().any(|address| !matches!(address, Address::Postgres(_)))
    {
        return Err(Stop::not_started(
            "--isolation server starts PostgreSQL for each lane, and a database that is named is SQLite: leave that option out, and each lane gets a copy of the file",
        ));
    }
    let mut known = HashSet::new();
    let has_setup = settings.setup.is_some();
    for address in settings.addresses() {
        let suffix = if known.is_empty() { String::new() } else { format!("_{}", known.len() + 1) };
        match address {
            Address::Postgres(postgres) if settings.isolation == Isolation::Server => {
                if known.insert(postgres.id()) {
                    let servers = Servers::open(postgres, settings, root, &tag, &suffix)?;
                    providers.push(Box::new(servers));
                }
            }
            Address::Postgres(postgres) => {
                if known.insert(postgres.id()) {
                    providers.push(Box::new(Postgres::open(postgres, settings, root, owner, suffix)?));
                }
            }
            Address::Sqlite(sqlite) => {
                if known.insert(sqlite.path().display().to_string()) {
                    let provider = Sqlite::open(sqlite, root, &tag, suffix, has_setup);
                    providers.push(Box::new(provider.map_err(|e| Stop::not_started(one_line(&e)))?));
                }
            }
            Address::InMemory(_) => {}
        }
    }
    Ok(providers)
}

/// What cannot be shared is refused before anything is made.
fn refuse_to_share(settings: &Settings) -> anyhow::Result<()> {
    if settings.embedded {
        return Err(Stop::not_started(
            "--isolation shared works on your own tables, and no database is named: --database-url names one",
        ));
    }
    if settings.addresses().any(|address| !matches!(address, Address::Postgres(_))) {
        return Err(Stop::not_started(
            "--isolation shared needs PostgreSQL, and a database that is named is SQLite: --isolation database gives each lane a copy of the file",
        ));
    }
    if settings.setup.is_some() {
        return Err(Stop::not_started(
            "--setup makes a state for lanes of their own, and --isolation shared has none: leave one of the two out",
        ));
    }
    Ok(())
}

/// The command as a shell would be given it.
fn shell_line(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}
