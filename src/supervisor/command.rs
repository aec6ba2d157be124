//! Commands that a run starts: the user's own, its setup, its cleaners.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::phase::{Action, Event, Progress};
use crate::api::Api;
use crate::clock::Timestamp;
use crate::error::{ExitCode, Stop};
use crate::keeper::{self, Grant, Keeper};
use crate::name::{Lane, Place};
use crate::os::port::PortBlock;
use crate::os::process::{self, Ended, PidFd, descendants};
use crate::os::signal::Signals;
use crate::roster::{Kind, Roster};
use crate::run::{Environment, Run};
use crate::runner::{Recognised, Shims};
use crate::settings::{Cleaner, Runner, Settings, Setup};

/// How long a command may take to end by itself after a second signal.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How long a signal may take to be known here that has ended somebody else.
pub const HEARSAY: Duration = Duration::from_millis(10);

/// The program that a command names, found as a shell finds it.
pub fn resolve(program: &OsStr, settings: &Settings) -> anyhow::Result<PathBuf> {
    let name = program.to_string_lossy().into_owned();
    let path = settings.variables.get("PATH").map(OsString::from);
    which::which_in(program, path.as_deref(), &settings.cwd).map_err(|_| {
        let there = settings.cwd.join(program);
        if name.contains('/') && there.exists() {
            let why = if there.is_dir() { "it is a directory" } else { "it is not executable (chmod +x?)" };
            Stop::with(ExitCode::NotExecutable, format!("cannot execute {name}: {why}"))
        } else {
            let message = format!("cannot find the command {name}; is it installed, and in PATH?");
            Stop::with(ExitCode::NotFound, message)
        }
    })
}

/// Runs the setup command in the template, once. A signal ends it, and the run with it.
pub fn set_up(setup: &Setup, run: &Run, signals: &Signals) -> anyhow::Result<()> {
    let ports = PortBlock::reserve(0).context("no block of free ports is left on this machine")?;
    let child = process::command("sh")
        .args(["-c", &setup.command])
        .current_dir(&setup.folder)
        .envs(run.worker_environment(Place::Template, "setup", ports.base()))
        .env_remove("ISOLANE_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start sh for --setup")?;
    let pid = i32::try_from(child.id())?;
    let held = PidFd::open(pid).context("cannot hold the setup command")?;
    let (output, arrival) = std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut first = None;
            while let Ok(Some(arrival)) = signals.wait(Some(held.as_fd())) {
                // The second time it is not asked any more.
                let signal = if first.is_none() { Signal::SIGTERM } else { Signal::SIGKILL };
                first.get_or_insert(arrival);
                for process in descendants(pid).into_iter().chain([pid]).filter_map(|pid| PidFd::open(pid).ok()) {
                    let _ = process.signal(signal);
                }
            }
            if first.is_some() {
                // What it started while it was told would hold its output open.
                process::stop_descendants(LAST_MOMENT);
            }
            first
        });
        let output = child.wait_with_output();
        (output, listener.join().ok().flatten())
    });
    if let Some(arrival) = arrival {
        return Err(came_early(arrival.signal));
    }
    let output = output.context("cannot wait for the setup command")?;
    if output.status.success() {
        return Ok(());
    }
    // Whole, as the command printed it: it is all that tells what went wrong.
    let text = [output.stdout, output.stderr].concat();
    let text = run.vault.mask(String::from_utf8_lossy(&text).trim_end());
    let _ = writeln!(std::io::stderr().lock(), "{text}");
    bail!(Stop::not_started(format!("the setup command failed ({}): {}", describe(output.status), setup.command)))
}

/// The end of a run that was called off before it began.
pub fn came_early(signal: Signal) -> anyhow::Error {
    Stop::with(128 + signal as i32, format!("{signal} came before the command was started; nothing is left"))
}

/// Runs the cleaner of one record.
pub fn clean(cleaner: &Cleaner, key: &str, run: &Run) -> anyhow::Result<()> {
    let quoted = shlex::try_quote(key).context("the key has a NUL byte")?;
    let line = cleaner.run.replace("{key}", &quoted);
    let output = process::command("sh")
        .args(["-c", &line])
        .env("ISOLANE_RUN_ID", run.id.to_string())
        .stdin(Stdio::null())
        .output()
        .context("cannot start sh")?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = run.vault.mask(text.lines().last().unwrap_or_default());
    bail!("`{line}` failed ({}): {last}", describe(output.status))
}

fn describe(status: ExitStatus) -> String {
    status.code().map_or_else(|| format!("signal {}", status.signal().unwrap_or(0)), |code| format!("exit code {code}"))
}

/// The user's command, in one or several copies.
#[derive(Debug)]
pub struct Commands {
    copies: Vec<CommandCopy>,
    children: Vec<Child>,
    /// Readers of marked output.
    pumps: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct CommandCopy {
    command: Command,
    /// The worker that the copy is, and its lane.
    worker: Option<(String, Lane)>,
    is_marked: bool,
}

impl Commands {
    /// Gets lanes for the command, as its runner wants them, and sets its environment.
    pub async fn prepare(
        run: &Arc<Run>,
        keeper: &Arc<Keeper>,
        program: &Path,
        words: &[OsString],
        recognised: &Recognised,
        shims: &Shims,
    ) -> anyhow::Result<Self> {
        let variables = &run.settings.variables;
        let expected = recognised.expected_workers(words, variables);
        let equipment = recognised.equipment(words, variables, shims, &run.settings.cwd);
        let cannot = |error: anyhow::Error| error.context("cannot make a lane");
        let mut copies = Vec::new();
        let mut add = |environment: Environment, grant: Option<&Grant>, is_marked: bool| {
            let mut command = Command::from(process::command(program));
            command.arg0(&words[0]).args(&words[1..]).envs(environment).envs(equipment.iter().cloned());
            let worker = grant.map(|grant| (grant.worker.clone(), grant.lane));
            copies.push(CommandCopy { command, worker, is_marked });
        };
        match recognised.runner {
            Runner::Pytest => {
                // Workers have the first numbers; the process that hands out tests comes behind.
                keeper.reserve(expected);
                let grant = keeper.lease("master", Some(Lane(expected))).await.map_err(cannot)?;
                keeper.expect(expected);
                add(grant.environment.clone(), Some(&grant), false);
            }
            Runner::Nextest | Runner::CargoTest => {
                // Tests get lanes, each when it starts. The build is in none: it sees the
                // user's own database, as queries that are checked at compile time need it.
                if recognised.runs_tests {
                    keeper.expect(expected.max(1));
                }
                add(run.base_environment(), None, false);
            }
            Runner::Plain => {
                let count = run.settings.workers;
                keeper.expect(count);
                for number in 0..count {
                    let worker = format!("w{number}");
                    let grant = keeper.lease(&worker, Some(Lane(number))).await.map_err(cannot)?;
                    add(grant.environment.clone(), Some(&grant), count > 1);
                }
            }
        }
        Ok(Self { copies, children: Vec::new(), pumps: Vec::new() })
    }

    /// Starts all copies, in our own process group and on our own terminal.
    pub fn spawn(&mut self, roster: &Roster, api: &Arc<Api>) -> anyhow::Result<()> {
        for mut copy in std::mem::take(&mut self.copies) {
            if copy.is_marked {
                // Several cannot share one input or one terminal.
                copy.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            let mut child = copy.command.spawn().map_err(|error| {
                let not_found = error.kind() == std::io::ErrorKind::NotFound;
                let code = if not_found { ExitCode::NotFound } else { ExitCode::NotExecutable };
                let program = copy.command.as_std().get_program().display();
                Stop::with(code, format!("cannot execute {program}: {error}"))
            })?;
            if let Some((worker, lane)) = copy.worker {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                roster.join(&worker, Kind::Command, lane, pid, Timestamp::now());
                if let Some(process) = pid.and_then(|pid| keeper::hold(pid).ok()) {
                    let (api, worker) = (Arc::clone(api), worker.clone());
                    tokio::spawn(async move {
                        keeper::ended(&process).await;
                        api.holder_died(&worker).await;
                    });
                }
                let out = child.stdout.take().map(|out| tokio::spawn(mark(worker.clone(), out, tokio::io::stdout())));
                let err = child.stderr.take().map(|err| tokio::spawn(mark(worker.clone(), err, tokio::io::stderr())));
                self.pumps.extend(out.into_iter().chain(err));
            }
            self.children.push(child);
        }
        Ok(())
    }

    /// Waits for all copies; the first end that was no success is the one that counts.
    pub async fn wait(
        &mut self,
        signals: &AsyncFd<Signals>,
        roster: &Roster,
        progress: &Progress,
    ) -> anyhow::Result<Ended> {
        let mut result = Ended::Exited(0);
        while !self.children.is_empty() {
            tokio::select! {
                biased;
                ended = next_end(&mut self.children) => {
                    let status = ended?;
                    if result == Ended::Exited(0) {
                        result = Ended::from_wait_status(status.into_raw());
                    }
                }
                guard = signals.readable() => {
                    let mut guard = guard?;
                    self.hear(signals.get_ref(), roster, progress)?;
                    guard.clear_ready();
                }
            }
        }
        if matches!(result, Ended::Signalled(_)) {
            // A terminal's signal reaches the command and us at once, and we may have heard of
            // its end first.
            tokio::time::sleep(HEARSAY).await;
            self.hear(signals.get_ref(), roster, progress)?;
        }
        for pump in self.pumps.drain(..) {
            // A grandchild may hold the pipe open for ever; it is stopped a little later.
            let _ = tokio::time::timeout(LAST_MOMENT, pump).await;
        }
        Ok(result)
    }

    /// Does what signals ask for that have arrived.
    fn hear(&mut self, signals: &Signals, roster: &Roster, progress: &Progress) -> anyhow::Result<()> {
        while let Some(arrival) = signals.read()? {
            roster.interrupt();
            match progress.step(Event::Signal)? {
                // The terminal has told the whole group already.
                Action::PassOn if arrival.from_terminal => {}
                Action::PassOn => self.pass_on(arrival.signal),
                Action::StopTests => self.stop_now(),
                Action::Leave => leave(arrival.signal),
                Action::GoOn | Action::CallOff | Action::Clean | Action::Report => {}
            }
        }
        Ok(())
    }

    fn pass_on(&self, signal: Signal) {
        for held in self.children.iter().filter_map(hold) {
            let _ = held.signal(signal);
        }
    }

    /// Stops everything below the command at once; the command itself has a moment to say
    /// its last word.
    fn stop_now(&self) {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let pid = |child: &Child| child.id().and_then(|pid| i32::try_from(pid).ok());
        let commands: Vec<_> = self.children.iter().filter_map(pid).collect();
        for pid in descendants(own).into_iter().filter(|pid| !commands.contains(pid)) {
            if let Ok(held) = PidFd::open(pid) {
                let _ = held.signal(Signal::SIGKILL);
            }
        }
        for held in self.children.iter().filter_map(hold) {
            tokio::spawn(async move {
                tokio::time::sleep(LAST_MOMENT).await;
                let _ = held.signal(Signal::SIGKILL);
            });
        }
    }
}

/// Goes on hearing signals while the run comes home: the third of all leaves.
pub fn heed(progress: &Arc<Progress>) {
    let progress = Arc::clone(progress);
    std::thread::spawn(move || {
        let Ok(signals) = Signals::listen() else { return };
        while let Ok(Some(arrival)) = signals.wait(None) {
            if progress.step(Event::Signal) == Ok(Action::Leave) {
                leave(arrival.signal);
            }
        }
    });
}

/// Ends the supervisor on the spot. What it owes, its watchdog undoes.
fn leave(signal: Signal) -> ! {
    std::process::exit(128 + signal as i32)
}

/// A child that nobody has waited for yet keeps its number, so this cannot miss it.
fn hold(child: &Child) -> Option<PidFd> {
    PidFd::open(i32::try_from(child.id()?).ok()?).ok()
}

/// Waits until one child has ended and takes it off the list.
async fn next_end(children: &mut Vec<Child>) -> std::io::Result<ExitStatus> {
    let waits: Vec<_> = children.iter_mut().map(|child| Box::pin(child.wait())).collect();
    let (status, index, _) = futures_util::future::select_all(waits).await;
    drop(children.remove(index));
    status
}

/// Copies lines with a mark of whose they are. A line that is not ended by the end of
/// the output is ended here.
async fn mark(name: String, from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(format!("{name} | ").as_bytes());
        match from.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // Nobody reads any more: the command finds out by itself when it writes.
        if to.write_all(&line).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
}
