//! The watchdog: a process of isolane's own that undoes a run whose supervisor died.
//!
//! It is there before the first resource is made, in a session of its own, so that what
//! ends a terminal's foreground group does not end it. It sleeps on the run's lock, which
//! the kernel frees when the supervisor is gone; nothing is polled. If the supervisor has
//! said goodbye before, there is nothing to do. If it has not, the watchdog kills what is
//! left of the run's processes, ends what the server is still making for it, and calls the
//! same sweep that the supervisor would have called.
//!
//! Addresses come to it through a pipe, because arguments are for everybody to read. So do
//! the run's promises, so that the ledger may be lost as well.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::address::{Address, LaneTarget, Variables};
use crate::inventory::promised;
use crate::name::RunId;
use crate::os::lock::RunLock;
use crate::os::{marked, process};
use crate::provider::Resource;
use crate::remote;
use crate::secret::Secret;
use crate::settings::LeaseServer;
use crate::stock;
use crate::sweep::{Memory, sweep_run};

/// What the watchdog says when it is ready.
const ARMED: &str = "armed\n";
/// What the supervisor says before it leaves.
const GOODBYE: &str = "goodbye";
/// How long the supervisor waits for the watchdog to leave, after a goodbye.
const LEAVING: Duration = Duration::from_secs(1);

/// What the watchdog needs to know besides the ledger.
#[derive(Serialize, Deserialize)]
struct Charge {
    /// The servers, as the user wrote them.
    addresses: Vec<String>,
    /// Whether the user wants everything kept, whatever happens.
    keep: bool,
    /// Where the run's leases are, and the token for that.
    leases: Option<(String, Option<String>)>,
}

/// The supervisor's hold on its watchdog.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    line: File,
}

impl Watchdog {
    /// Starts the watchdog of a run and waits until it is on guard. The file is the way for
    /// promises to it.
    pub fn arm(
        ledger: &Path,
        lock: &Path,
        run: RunId,
        addresses: &[&Address],
        keep: bool,
        leases: Option<&LeaseServer>,
    ) -> anyhow::Result<(Self, File)> {
        let addresses = addresses
            .iter()
            .filter_map(|address| match address {
                Address::Postgres(postgres) => Some(postgres.with(&LaneTarget::default())),
                Address::Sqlite(_) | Address::InMemory(_) => None,
            })
            .collect();
        let token = |server: &LeaseServer| server.token.as_ref().map(|token| token.reveal().to_owned());
        let leases = leases.map(|server| (server.url.clone(), token(server)));
        let charge = serde_json::to_string(&Charge { addresses, keep, leases })?;
        // This program, also when its file was replaced meanwhile.
        let mut command = process::command("/proc/self/exe");
        command.arg0("isolane").arg("watchdog").arg(ledger).arg(lock).arg(run.to_string());
        // What a test does to the supervisor, it does not do to the watchdog.
        command.env_remove("ISOLANE_FAULT");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let leave = || nix::unistd::setsid().map(drop).map_err(std::io::Error::from);
        // SAFETY: between fork and exec only setsid(2) is called, which is allowed there.
        unsafe { command.pre_exec(leave) };
        let spawned = process::spawn_spared(|| command.spawn(), |child| Some(child.id()));
        let mut child = spawned.context("cannot start it")?;
        let line: OwnedFd = child.stdin.take().context("it has no input")?.into();
        let mut line = File::from(line);
        writeln!(line, "{charge}").context("cannot talk to it")?;
        let mut answer = [0; ARMED.len()];
        child.stdout.take().context("it has no output")?.read_exact(&mut answer).context("it did not come up")?;
        ensure!(answer == ARMED.as_bytes(), "it did not come up");
        // Should it ever stand still, nobody waits for it.
        fcntl(line.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let ear = line.try_clone()?;
        Ok((Self { child, line }, ear))
    }

    /// Tells it that all is done, once the lock is free.
    pub fn say_goodbye(&mut self) {
        // If it is gone, nobody needs to be told.
        let _ = writeln!(self.line, "{GOODBYE}");
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
    let listener = std::thread::spawn(move || listen(line));
    lock.wait()?;
    // With the lock, the supervisor's end of the line is closed, or goodbye was said before.
    let (promised, all_is_done) = listener.join().unwrap_or_default();
    if !all_is_done {
        // Not while what holds them is still at work.
        let freeing = charge.leases.map(|(url, token)| {
            marked::kill("ISOLANE_RUN_ID", &run.to_string());
            let server = LeaseServer { url, token: token.map(Secret::new) };
            std::thread::spawn(move || remote::run_ended(&server, &run.to_string()))
        });
        let variables: Variables = std::env::vars().collect();
        let here = std::env::current_dir().unwrap_or_default();
        let addresses: Vec<_> =
            charge.addresses.iter().filter_map(|text| Address::parse(text, &variables, &here).ok()).collect();
        let swept = sweep_run(ledger, run, &addresses, Memory { promised, keep: charge.keep, with_kept: false });
        // What is not freed now is freed by time.
        let _ = freeing.map(std::thread::JoinHandle::join);
        swept?;
        lock.remove();
        // What the run's workers had leased is reset for others.
        stock::settle_ledger(ledger, stock::PATIENCE)?;
    }
    Ok(())
}

/// What the supervisor promised, and whether it said goodbye.
fn listen(line: impl BufRead) -> (Vec<Resource>, bool) {
    let mut resources = Vec::new();
    for text in line.lines().map_while(Result::ok) {
        if text == GOODBYE {
            return (resources, true);
        }
        resources.extend(promised(&text));
    }
    (resources, false)
}
