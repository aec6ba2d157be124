//! The watchdog: a process of isolane's own that undoes a run whose supervisor died.
//!
//! It is there before the first resource is made, in a session of its own, so that what
//! ends a terminal's foreground group does not end it. It sleeps on the run's lock, which
//! the kernel frees when the supervisor is gone; nothing is polled. If the supervisor has
//! said goodbye before, there is nothing to do. If it has not, the watchdog kills what is
//! left of the run's processes, ends what the server is still making for it, and calls the
//! same sweep that the supervisor would have called.
//!
//! Addresses come to it through a pipe, because arguments are for everybody to read.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::address::{Address, LaneTarget, Variables};
use crate::clock::Timestamp;
use crate::inventory::Inventory;
use crate::ledger::resource::ResourceEvent;
use crate::ledger::run::RunState;
use crate::ledger::{self, Durability, Writer, resource};
use crate::name::{RunId, Tag};
use crate::os::lock::RunLock;
use crate::os::{marked, process};
use crate::provider::{Directories, Server, Site, SqliteFiles};
use crate::sweep::{Scope, SweepReport, sweep};

/// What the watchdog says when it is ready.
const ARMED: &str = "armed\n";
/// What the supervisor says before it leaves.
const GOODBYE: &str = "goodbye\n";
/// How often a sweep is tried: a server may just be starting again.
const TRIES: u32 = 5;
/// How long it waits between two.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// How long the supervisor waits for the watchdog to leave, after a goodbye.
const LEAVING: Duration = Duration::from_secs(1);

/// What the watchdog needs to know besides the ledger.
#[derive(Serialize, Deserialize)]
struct Charge {
    /// The servers, as the user wrote them.
    addresses: Vec<String>,
    /// Whether the user wants everything kept, whatever happens.
    keep: bool,
}

/// The supervisor's hold on its watchdog.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    line: ChildStdin,
}

impl Watchdog {
    /// Starts the watchdog of a run and waits until it is on guard.
    pub fn arm(ledger: &Path, lock: &Path, run: RunId, addresses: &[&Address], keep: bool) -> anyhow::Result<Self> {
        let addresses = addresses
            .iter()
            .filter_map(|address| match address {
                Address::Postgres(postgres) => Some(postgres.with(&LaneTarget::default())),
                Address::Sqlite(_) | Address::InMemory(_) => None,
            })
            .collect();
        let charge = serde_json::to_string(&Charge { addresses, keep })?;
        // This program, also when its file was replaced meanwhile.
        let mut command = process::command("/proc/self/exe");
        command.arg0("isolane").arg("watchdog").arg(ledger).arg(lock).arg(run.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let leave = || nix::unistd::setsid().map(drop).map_err(std::io::Error::from);
        // SAFETY: between fork and exec only setsid(2) is called, which is allowed there.
        unsafe { command.pre_exec(leave) };
        let mut child = command.spawn().context("cannot start it")?;
        process::spare(i32::try_from(child.id())?);
        let mut line = child.stdin.take().context("it has no input")?;
        writeln!(line, "{charge}").context("cannot talk to it")?;
        let mut answer = [0; ARMED.len()];
        child.stdout.take().context("it has no output")?.read_exact(&mut answer).context("it did not come up")?;
        ensure!(answer == ARMED.as_bytes(), "it did not come up");
        Ok(Self { child, line })
    }

    /// Tells it that all is done, once the lock is free.
    pub fn say_goodbye(&mut self) {
        // If it is gone, nobody needs to be told.
        let _ = self.line.write_all(GOODBYE.as_bytes());
    }

    /// Waits until it has left, which takes no longer than to notice that the lock is free.
    pub fn wait(self) {
        let Self { mut child, line } = self;
        drop(line);
        let deadline = Instant::now() + LEAVING;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// The watchdog's own life: `isolane watchdog LEDGER LOCK RUN`.
pub fn guard(ledger: &Path, lock: &Path, run: RunId) -> anyhow::Result<()> {
    let mut line = BufReader::new(std::io::stdin());
    let mut charge = String::new();
    line.read_line(&mut charge)?;
    let charge: Charge = serde_json::from_str(&charge)?;
    let lock = RunLock::other(lock)?;
    std::io::stdout().write_all(ARMED.as_bytes())?;
    std::io::stdout().flush()?;
    lock.wait()?;
    let mut last_words = String::new();
    line.read_to_string(&mut last_words)?;
    if last_words != GOODBYE {
        undo(ledger, run, &charge)?;
        lock.remove();
    }
    Ok(())
}

fn undo(ledger: &Path, run: RunId, charge: &Charge) -> anyhow::Result<()> {
    marked::kill("ISOLANE_RUN_ID", &run.to_string());
    let db = ledger::open(ledger)?;
    let Some(key) = ledger::run::find_running(&db, run)? else { return Ok(()) };
    let owed = resource::owed(&db, key)?;
    let (writer, thread) = Writer::start(db);
    let inventory = Inventory::recall(writer.clone(), key, owed);
    let state = if charge.keep {
        for item in inventory.owed() {
            inventory.happened(&item.resource, ResourceEvent::Keep, None);
        }
        RunState::Crashed
    } else if remove(&inventory, &run.tag(), charge).stuck.is_empty() {
        RunState::Swept
    } else {
        RunState::Crashed
    };
    writer.commit(Durability::Process, move |db| ledger::run::end(db, key, None, state, Timestamp::now()))?;
    writer.close();
    let _ = thread.join();
    Ok(())
}

fn remove(inventory: &Inventory, tag: &Tag, charge: &Charge) -> SweepReport {
    let mut report = SweepReport::default();
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep(BETWEEN_TRIES);
        }
        let sites = sites(inventory, tag, &charge.addresses);
        let sites: Vec<&dyn Site> = sites.iter().map(|site| &**site).collect();
        for site in &sites {
            // If this fails, so does what follows, and says so.
            let _ = site.take_over(tag);
        }
        report = sweep(inventory, &sites, Scope::Run);
        if report.stuck.is_empty() {
            break;
        }
    }
    report
}

/// Where the things are that are owed.
fn sites(inventory: &Inventory, tag: &Tag, addresses: &[String]) -> Vec<Box<dyn Site>> {
    let mut ids: Vec<String> = inventory.owed().into_iter().map(|item| item.resource.provider).collect();
    ids.sort();
    ids.dedup();
    let variables: Variables = std::env::vars().collect();
    let here = std::env::current_dir().unwrap_or_default();
    let servers = addresses.iter().filter_map(|text| match Address::parse(text, &variables, &here).ok()? {
        Address::Postgres(postgres) => Server::new(&postgres, tag).ok(),
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
            sites.push(Box::new(Directories::new(std::path::PathBuf::new(), tag.clone())));
        } else if id.starts_with(SqliteFiles::SCHEME) {
            sites.push(Box::new(SqliteFiles::new(id)));
        }
    }
    sites
}
