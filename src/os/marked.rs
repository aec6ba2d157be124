//! Processes that carry a mark in their environment: what a dead supervisor's command has
//! started and what that has started in turn, whoever their parent is by now.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::process::{self, PidFd};

/// How long processes may take to be gone after SIGKILL. One in the middle of a disk write
/// takes its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the environment of a pool's command says: the process in whose name it works, a colon, and
/// for what.
pub const STEP: &str = "ISOLANE_STEP";

/// Kills every process whose environment says `name=value`, with all its descendants, and
/// waits until they are gone. One that took the mark off and left its parents is missed.
pub fn kill(name: &str, value: &str) {
    let mark = format!("{name}={value}").into_bytes();
    kill_those(|variable| variable == mark);
}

/// The same for all whose value begins so.
pub fn kill_all(name: &str, beginning: &str) {
    let mark = format!("{name}={beginning}").into_bytes();
    kill_those(|variable| variable.starts_with(&mark));
}

fn kill_those(is_mark: impl Fn(&[u8]) -> bool) {
    // One of them may have asked for this.
    let spared = process::with_ancestors(i32::try_from(std::process::id()).unwrap_or(0));
    let deadline = Instant::now() + PATIENCE;
    // New ones may have been started meanwhile, so each look is a fresh one.
    while Instant::now() < deadline {
        let marked: Vec<i32> =
            process::all().into_iter().filter(|pid| carries(*pid, &is_mark) && !spared.contains(pid)).collect();
        if marked.is_empty() {
            return;
        }
        let family = || marked.iter().flat_map(|pid| process::descendants(*pid)).chain(marked.iter().copied());
        let held: Vec<_> = family().filter_map(|pid| Some((pid, PidFd::open(pid).ok()?))).collect();
        // Asked again while they are held: who is killed is who was asked.
        let family: Vec<i32> = family().filter(|pid| !spared.contains(pid)).collect();
        for (_, process) in held.iter().filter(|(pid, _)| family.contains(pid)) {
            let _ = process.signal(Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The ids of the runs whose watchdogs are there, and so the run or who undoes it.
pub fn watchdogs() -> HashSet<String> {
    let guarded = |pid: i32| {
        // `isolane watchdog LEDGER LOCK RUN`
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let run = words.get(4).filter(|_| words[1] == b"watchdog")?;
        Some(String::from_utf8_lossy(run).into_owned())
    };
    process::all().into_iter().filter_map(guarded).collect()
}

/// The environment as it was at the process's start (proc(5)); of others' processes and of
/// the dead there is none to read.
fn carries(pid: i32, is_mark: impl Fn(&[u8]) -> bool) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| environment.split(|byte| *byte == 0).any(is_mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_marked_and_their_children_go_and_nobody_else() {
        let value = format!("{}", std::process::id());
        // The child has no environment at all.
        let script = "env -i sleep 600 & wait";
        let mut marked = Command::new("sh").args(["-c", script]).env("ISOLANE_MARK", &value).spawn().expect("sh");
        let mut other =
            Command::new("sleep").arg("600").env("ISOLANE_MARK", format!("{value}0")).spawn().expect("sleep");
        let root = i32::try_from(marked.id()).expect("pid");
        while process::descendants(root).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let child = PidFd::open(process::descendants(root)[0]).expect("pidfd");
        kill("ISOLANE_MARK", &value);
        assert!(child.has_ended());
        assert!(other.try_wait().expect("wait").is_none());
        marked.wait().expect("wait");
        other.kill().expect("kill");
        other.wait().expect("wait");
    }
}
