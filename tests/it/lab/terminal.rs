//! A program on a terminal: the kernel's own, with us at the other end.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::{Pid, setsid};

use super::program::{PATIENCE, Program, wait_until};

/// A program that leads a session on a terminal.
pub struct OnTerminal {
    child: Child,
    keyboard: Option<File>,
    screen: Arc<Mutex<Vec<u8>>>,
    is_closed: Arc<AtomicBool>,
}

impl Program {
    /// Starts it on a terminal of its own.
    pub fn start_on_terminal(self) -> OnTerminal {
        // Closed in every program: who had our end as well would keep the terminal open.
        let keyboard = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal");
        grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("a terminal of our own");
        let name = ptsname_r(&keyboard).expect("it has a name");
        let flags = OFlag::O_NOCTTY.bits();
        let slave = OpenOptions::new().read(true).write(true).custom_flags(flags).open(name).expect("its other end");
        let side = || Stdio::from(slave.try_clone().expect("a copy"));
        let mut command = self.into_command();
        command.stdin(side()).stdout(side()).stderr(side());
        let terminal = slave.as_raw_fd();
        // Safety: setsid and ioctl are async-signal-safe and touch no memory of ours.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                if libc::ioctl(terminal, libc::TIOCSCTTY, 0) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program");
        drop((slave, command));
        let keyboard = File::from(OwnedFd::from(keyboard));
        let mut reader = keyboard.try_clone().expect("a copy");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let is_closed = Arc::new(AtomicBool::new(false));
        let (shown, closed) = (Arc::clone(&screen), Arc::clone(&is_closed));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !closed.load(Ordering::Relaxed) {
                let mut waits = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
                if poll(&mut waits, PollTimeout::from(20u8)) == Ok(0) {
                    continue;
                }
                // The kernel answers EIO when nobody has the terminal open any more.
                let Ok(count @ 1..) = reader.read(&mut buffer) else { break };
                shown.lock().expect("no panic inside").extend_from_slice(&buffer[..count]);
            }
        });
        OnTerminal { child, keyboard: Some(keyboard), screen, is_closed }
    }
}

impl OnTerminal {
    /// What the terminal has shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic inside")).into_owned()
    }

    /// The program's process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Presses Ctrl-C: the kernel signals the foreground processes.
    pub fn press_ctrl_c(&mut self) {
        self.press(b"\x03");
    }

    /// Presses Ctrl-Z.
    pub fn press_ctrl_z(&mut self) {
        self.press(b"\x1a");
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        self.press(format!("{line}\n").as_bytes());
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.as_mut().expect("not closed").write_all(keys).expect("the terminal");
    }

    /// Waits until it shows this.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let shown = Instant::now() + PATIENCE;
        while !self.screen().contains(text) {
            assert!(Instant::now() < shown, "it does not show {text:?}\n{}", self.screen());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes the terminal, as who closes its window: the kernel hangs up on the session.
    pub fn hang_up(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.keyboard = None;
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("the program on the terminal ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        (status.expect("it ended"), self.screen())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
