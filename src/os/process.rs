//! Processes: whom we started, who lives, how one ended. A pid names a process only
//! while somebody holds it; what is waited for or signalled is held by a pidfd.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process held by a file descriptor: it stays the same process, whatever becomes
/// of its number (pidfd_open(2)).
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
    /// It is gone, and this kernel does not tell how.
    Unknown,
}

impl Ended {
    /// From a status as wait(2) gives it.
    pub fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signalled(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }

    /// The exit code that a shell shows: `128 + n` for signal n.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128 + signal,
            Self::Unknown => 1,
        }
    }
}

impl PidFd {
    /// Holds the process that has this pid now.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::O_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, pid })
    }

    /// Readable when the process has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a signal; a process that is gone is success.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.send(signal as i32) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    fn send(&self, signal: i32) -> io::Result<()> {
        // SAFETY: pidfd_send_signal with a null siginfo acts like kill(2).
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, std::ptr::null::<libc::c_void>(), 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the process is gone, collected by its parent or not.
    pub fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry, and no waiting.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    /// How the process ended; `None` while it lives. Of a process that its parent has
    /// collected, only Linux 6.15 and later tell it (`PIDFD_GET_INFO`); before it is
    /// collected, proc(5) does. [`Ended::Unknown`] is all that is left otherwise.
    pub fn ended(&self) -> Option<Ended> {
        if !self.has_ended() {
            return None;
        }
        Some(self.ended_before_collection().or_else(|| self.ended_after_collection()).unwrap_or(Ended::Unknown))
    }

    /// Field 52 of `/proc/<pid>/stat` of a zombie.
    fn ended_before_collection(&self) -> Option<Ended> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let status = fields.get(49)?.parse().ok()?;
        // Asked last: as long as the zombie is there, nobody else has its number.
        (fields[0] == "Z" && self.send(0).is_ok()).then(|| Ended::from_wait_status(status))
    }

    fn ended_after_collection(&self) -> Option<Ended> {
        // Laid out as `struct pidfd_info` of linux/pidfd.h: mask, cgroup, pids and ids, exit code.
        #[repr(C)]
        struct PidfdInfo {
            mask: u64,
            cgroup_id: u64,
            ids: [u32; 11],
            exit_code: i32,
        }
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        const PIDFD_GET_INFO: libc::c_ulong = 0xC000_FF0B | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16);
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, cgroup_id: 0, ids: [0; 11], exit_code: 0 };
        // SAFETY: the ioctl writes at most the size encoded in its number.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
        (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| Ended::from_wait_status(info.exit_code))
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A command whose process gets no blocked signals from us: we block those that we read
/// from a descriptor, and a mask is inherited (sigprocmask(2)).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let unblock = || SigSet::empty().thread_set_mask().map_err(io::Error::from);
    // SAFETY: between fork and exec only sigprocmask is called, which is allowed there.
    unsafe { command.pre_exec(unblock) };
    command
}

/// Makes this process the one that its orphaned descendants fall to (prctl(2)), so
/// that a test which outlives its runner stays in reach.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Children that are none of the command's: the watchdog, and servers of lanes.
static SPARED: RwLock<BTreeSet<i32>> = RwLock::new(BTreeSet::new());

/// Starts a child that is left out, with all that descends from it, of all that is said and done
/// about descendants. Nobody who looks for those sees it before it is left out.
pub fn spawn_spared<C>(spawn: impl FnOnce() -> io::Result<C>, id: impl FnOnce(&C) -> Option<u32>) -> io::Result<C> {
    let mut spared = SPARED.write().unwrap_or_else(PoisonError::into_inner);
    let child = spawn()?;
    spared.extend(id(&child).and_then(|pid| i32::try_from(pid).ok()));
    Ok(child)
}

/// Such a child has ended, and was collected.
pub fn spare_no_more(pid: i32) {
    SPARED.write().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// Collects such a child, which has ended.
pub fn bury(pid: i32) {
    collect(pid);
    spare_no_more(pid);
}

/// Of these processes, seen just now, those that are not left out. Asked in this order, because a
/// child that is started in between must not count.
fn not_spared(pids: Vec<i32>) -> Vec<i32> {
    let spared = SPARED.read().unwrap_or_else(PoisonError::into_inner);
    pids.into_iter().filter(|pid| !spared.contains(pid)).collect()
}

/// What a process is called by others on this machine, now and after its end: its number, when
/// it started, where that number counts, and since which start of the machine.
pub fn name_of(pid: i32) -> Option<String> {
    Some(format!("{pid}.{}.{}@{}", started(pid)?, namespace()?, super::boot::now().id))
}

/// Whether the process of this name lives. One whose numbers do not count here may.
pub fn is_there(name: &str) -> bool {
    let Some((process, boot)) = name.split_once('@') else { return false };
    let words: Vec<_> = process.split('.').collect();
    let [pid, start, at] = words[..] else { return false };
    if boot != super::boot::now().id {
        return false;
    }
    if namespace().is_none_or(|here| here != at) {
        return true;
    }
    pid.parse().is_ok_and(|pid| {
        parent_and_state(pid).is_some_and(|(_, is_dead)| !is_dead) && started(pid).as_deref() == Some(start)
    })
}

/// When a process started, in ticks since the machine did: field 22 of `/proc/<pid>/stat`.
fn started(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19).map(str::to_owned)
}

/// Where the numbers of processes count that this one sees (pid_namespaces(7)).
fn namespace() -> Option<String> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_string_lossy().chars().filter(char::is_ascii_digit).collect())
}

/// The pids of all processes.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The pids of all living descendants of process `root`, but for those who are spared.
pub fn descendants(root: i32) -> Vec<i32> {
    below(root, not_spared(all()))
}

/// The same with those who are spared.
pub fn all_below(root: i32) -> Vec<i32> {
    below(root, all())
}

fn below(root: i32, pids: Vec<i32>) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in pids {
        if let Some(parent) = living_parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.push(child);
            open.push(child);
        }
    }
    found
}

/// A process and all that it descends from.
pub fn with_ancestors(pid: i32) -> Vec<i32> {
    std::iter::successors(Some(pid), |pid| living_parent(*pid).filter(|parent| *parent > 0)).collect()
}

/// The parent of a process that is not a zombie.
fn living_parent(pid: i32) -> Option<i32> {
    parent_and_state(pid).and_then(|(parent, is_dead)| (!is_dead).then_some(parent))
}

/// The parent of a process, and whether it is a zombie (proc(5), `stat`).
fn parent_and_state(pid: i32) -> Option<(i32, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold parentheses and spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    Some((fields.next()?.parse().ok()?, state == "Z" || state == "X"))
}

/// Stops every descendant: SIGTERM, then SIGKILL to those left after `grace`.
/// Returns how many were there.
pub fn stop_descendants(grace: Duration) -> usize {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let first = descendants(own);
    let found = first.len();
    if found == 0 {
        reap();
        return 0;
    }
    signal_all(&first, Signal::SIGTERM);
    let deadline = Instant::now() + grace;
    // New ones may have been started meanwhile, so each look is a fresh one.
    while Instant::now() < deadline {
        reap();
        if descendants(own).is_empty() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // A process that keeps on forking is bounded, too: at most a second of this.
    for _ in 0..100 {
        let left = descendants(own);
        if left.is_empty() {
            break;
        }
        signal_all(&left, Signal::SIGKILL);
        reap();
        std::thread::sleep(Duration::from_millis(10));
    }
    reap();
    found
}

/// Kills what is left of the process group `group`, as far as it descends from us: the
/// children of a test that was stopped.
pub fn kill_group(group: i32) {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let members: Vec<i32> = descendants(own).into_iter().filter(|pid| group_of(*pid) == Some(group)).collect();
    // Never our own group: the runner is in it.
    if group_of(own) != Some(group) {
        signal_all(&members, Signal::SIGKILL);
    }
}

fn group_of(pid: i32) -> Option<i32> {
    nix::unistd::getpgid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        if let Ok(held) = PidFd::open(*pid) {
            // A process that ended meanwhile is what was wanted.
            let _ = held.signal(signal);
        }
    }
}

/// Children that ended and were not collected yet.
pub fn zombies() -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    not_spared(all()).into_iter().filter(|pid| parent_and_state(*pid) == Some((own, true))).collect()
}

/// Collects a child that nobody waits for.
pub fn collect(pid: i32) {
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Collects children that ended and that nobody waits for.
fn reap() {
    zombies().into_iter().for_each(collect);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfd_tells_how_a_process_ended() {
        for (script, expected) in [("exit 7", Ended::Exited(7)), ("kill -9 $$", Ended::Signalled(9))] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().expect("sh");
            let held = PidFd::open(i32::try_from(child.id()).expect("pid")).expect("pidfd");
            child.wait().expect("wait");
            let ended = held.ended().expect("it was collected");
            assert!(ended == expected || ended == Ended::Unknown, "{script}: {ended:?}");
        }
    }

    #[test]
    fn a_child_is_among_our_descendants_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = i32::try_from(child.id()).expect("pid");
        let own = i32::try_from(std::process::id()).expect("pid");
        assert!(descendants(own).contains(&pid));
        PidFd::open(pid).expect("pidfd").signal(Signal::SIGKILL).expect("signal");
        child.wait().expect("wait");
        assert!(!descendants(own).contains(&pid));
    }

    #[test]
    fn who_looks_for_descendants_never_sees_one_that_is_left_out() {
        let own = i32::try_from(std::process::id()).expect("pid");
        let (mut seen, mut started) = (BTreeSet::new(), BTreeSet::new());
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| {
                let starts = (0..200).map(|_| {
                    let spawned = spawn_spared(|| Command::new("true").spawn(), |child| Some(child.id()));
                    let mut child = spawned.expect("true");
                    let pid = i32::try_from(child.id()).expect("pid");
                    child.wait().expect("wait");
                    spare_no_more(pid);
                    pid
                });
                starts.collect::<BTreeSet<_>>()
            });
            while !starting.is_finished() {
                seen.extend(descendants(own));
                seen.extend(zombies());
            }
            started = starting.join().expect("the thread");
        });
        assert_eq!(seen.intersection(&started).count(), 0);
    }
}
