//! A program on a terminal: the kernel's own, with us at the other end.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::libc;
use nix::pty::openpty;
use nix::unistd::{Pid, setsid};

use super::program::{Program, wait_until};

/// A program that leads a session on a terminal.
pub struct OnTerminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Program {
    /// Starts it on a terminal of its own.
    pub fn start_on_terminal(self) -> OnTerminal {
        let pty = openpty(None, None).expect("a terminal");
        let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a copy"));
        let mut command = self.into_command();
        command.stdin(side(&pty.slave)).stdout(side(&pty.slave)).stderr(side(&pty.slave));
        let terminal = pty.slave.as_raw_fd();
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
        drop((pty.slave, command));
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().expect("a copy");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The kernel answers EIO when nobody has the terminal open any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().expect("no panic inside").extend_from_slice(&buffer[..count]);
            }
        });
        OnTerminal { child, keyboard, screen }
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
        self.keyboard.write_all(b"\x03").expect("the terminal");
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
