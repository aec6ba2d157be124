//! A program that a test runs, and how it ended: status, stdout and stderr are always
//! shown together.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, killpg, signal};
use nix::unistd::Pid;

/// No program of these tests takes as long when all is well, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `what` holds, looking again every few milliseconds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program about to be run.
pub struct Program {
    command: Command,
    input: Option<Vec<u8>>,
}

impl Program {
    /// A command whose environment and folder are set already. It begins with ordinary
    /// signals: whoever runs these tests in the background has a shell that ignores some.
    pub fn new(mut command: Command) -> Self {
        let ordinary = || {
            for kind in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP] {
                // Safety: it is the default that is set, and no handler.
                unsafe { signal(kind, SigHandler::SigDfl) }?;
            }
            Ok(())
        };
        // Safety: signal(2) is async-signal-safe, and nothing of ours is touched.
        unsafe { command.pre_exec(ordinary) };
        Self { command, input: None }
    }

    /// The command itself.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in another folder.
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn arg_all<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Gives it bytes on its standard input.
    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = Some(bytes.to_vec());
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.start().finish()
    }

    /// Starts it and comes back at once.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let words: Vec<_> = std::iter::once(self.command.get_program()).chain(self.command.get_args()).collect();
        let line = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        // A group of its own: a test that gives up can stop all of it.
        self.command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        if let (Some(bytes), Some(mut stdin)) = (self.input, child.stdin.take()) {
            thread::spawn(move || stdin.write_all(&bytes));
        }
        let stdout = collect(child.stdout.take().expect("piped"));
        let stderr = collect(child.stderr.take().expect("piped"));
        Running { line, child, stdout, stderr, over: false }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A program that is running.
pub struct Running {
    line: String,
    child: Child,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
    over: bool,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends it, and it alone, a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the program is running");
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.finish_within(PATIENCE)
    }

    /// The same for what takes longer.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = killpg(self.pid(), Signal::SIGKILL);
                let shown = [&self.stdout, &self.stderr].map(|pipe| text_of(pipe).unwrap_or_default());
                panic!("{}: not over after {limit:?}\n{}\n{}", self.line, shown[0], shown[1]);
            }
            thread::sleep(Duration::from_millis(2));
        };
        self.over = true;
        // What still holds the pipes open outlived the program.
        let bytes = [&self.stdout, &self.stderr].map(|pipe| {
            pipe.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| {
                panic!("{}: ended ({status}), and something that it started still holds its output", self.line)
            })
        });
        let [stdout, stderr] = bytes;
        Outcome { line: self.line.clone(), status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn text_of(pipe: &Receiver<Vec<u8>>) -> Option<String> {
    let bytes = pipe.recv_timeout(Duration::from_secs(1)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// How a program ended.
pub struct Outcome {
    line: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Its standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The lines of its standard error that isolane itself wrote.
    pub fn said(&self) -> Vec<String> {
        self.err().lines().filter(|line| line.starts_with("isolane: ")).map(str::to_owned).collect()
    }

    /// Everything, for a message.
    pub fn all(&self) -> String {
        let ended = self.status.signal().map_or_else(|| self.status.to_string(), |signal| format!("signal {signal}"));
        format!("$ {}\n{ended}\n--- stdout\n{}--- stderr\n{}---", self.line, self.out(), self.err())
    }

    /// Fails unless it ended with this code.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit code\n{}", self.all());
        self
    }

    /// Fails unless isolane itself said this.
    #[track_caller]
    pub fn assert_says(self, text: &str) -> Self {
        assert!(self.said().iter().any(|line| line.contains(text)), "isolane does not say {text:?}\n{}", self.all());
        self
    }

    /// Fails where isolane itself said this.
    #[track_caller]
    pub fn assert_does_not_say(self, text: &str) -> Self {
        assert!(!self.err().contains(text), "it says {text:?}\n{}", self.all());
        self
    }

    /// Fails unless stdout contains this.
    #[track_caller]
    pub fn assert_shows(self, text: &str) -> Self {
        assert!(self.out().contains(text), "stdout lacks {text:?}\n{}", self.all());
        self
    }
}
