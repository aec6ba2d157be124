//! Signals to the supervisor, read as events.
//!
//! They are taken from a signalfd(2) and not by a handler, because its records tell
//! whether the terminal sent a signal to the whole foreground group (the runner has
//! it already) or somebody sent it to us alone (the runner must get it from us).
//! SIGTSTP is left alone: Ctrl-Z stops us and the runner together, as in any job.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{getpid, getsid};

/// One signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Which.
    pub signal: Signal,
    /// Whether the kernel sent it, to every process of the foreground group.
    pub from_terminal: bool,
}

/// The signals that end a run: SIGINT, SIGTERM, SIGHUP, SIGQUIT.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in this thread, and so in every thread it starts later, and
    /// reads them from here. Programs must be started by [`super::process::command`], which
    /// does not hand the mask on.
    /// A signal that was ignored when we were started (`nohup`) stays ignored, by us and
    /// by them.
    pub fn listen() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            if !is_ignored(signal) {
                set.add(signal);
            }
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// Sleeps until a signal arrives, or until `other` is readable: then there is none.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>) -> io::Result<Option<Arrival>> {
        loop {
            if let Some(arrival) = self.read()? {
                return Ok(Some(arrival));
            }
            let mut waits = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            waits.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if waits.get(1).and_then(PollFd::any) == Some(true) {
                return Ok(None);
            }
        }
    }

    /// The next signal, if one has arrived.
    pub fn read(&self) -> io::Result<Option<Arrival>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
        let signal = Signal::try_from(number)?;
        // A terminal that hangs up tells the leader of its session and nobody else (tty_ioctl(4)):
        // telling the others is up to it, as it is to a shell.
        let for_us_alone = signal == Signal::SIGHUP && getsid(None) == Ok(getpid());
        Ok(Some(Arrival { signal, from_terminal: info.ssi_code == libc::SI_KERNEL && !for_us_alone }))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action, sigaction(2) only writes the present one.
    let asked = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroed before, and written by the call where it succeeded.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}
