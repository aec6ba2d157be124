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
use crate::name::RunId;
use crate::os::lock::RunLock;
use crate::os::process;
use crate::sweep::{Manner, sweep_run};

/// What the watchdog says when it is ready.
const ARMED: &str = "armed\n";
/// What the supervisor says before it leaves.
const GOODBYE: &str = "goodbye\n";
/// How often a sweep is tried: a server may just be starting again.
const TRIES: u32 = 5;
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
        let variables: Variables = std::env::vars().collect();
        let here = std::env::current_dir().unwrap_or_default();
        let addresses: Vec<_> =
            charge.addresses.iter().filter_map(|text| Address::parse(text, &variables, &here).ok()).collect();
        sweep_run(ledger, run, &addresses, Manner { keep: charge.keep, tries: TRIES })?;
        lock.remove();
    }
    Ok(())
}
