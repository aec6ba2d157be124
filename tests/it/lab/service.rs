//! `isolane serve` of a lab, in a folder and with a ledger of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::program::{Outcome, PATIENCE, Program, wait_until};
use super::{Lab, read_ledger};

/// A service that goes on.
pub struct Service<'a> {
    lab: &'a Lab,
    child: Child,
    options: String,
    /// What it says is in this file.
    log: PathBuf,
    /// Where it is.
    pub url: String,
    /// A token that allows everything.
    pub admin: String,
}

/// The name of its folder in the project.
const FOLDER: &str = "service";

impl<'a> Service<'a> {
    /// Starts it with these options and this configuration.
    pub fn start(lab: &'a Lab, options: &str, configuration: &str) -> Self {
        lab.file(&format!("{FOLDER}/isolane.toml"), configuration);
        let admin = token(lab, "boss", "--role admin");
        let mut service = Self::begin(lab, options, "log");
        service.admin = admin;
        service
    }

    /// Starts it where it has no token yet: it makes one.
    pub fn start_without_token(lab: &'a Lab, options: &str, configuration: &str) -> Self {
        lab.file(&format!("{FOLDER}/isolane.toml"), configuration);
        let mut service = Self::begin(lab, options, "log");
        let said = fs::read_to_string(&service.log).expect("its log");
        let token = said.lines().find_map(|line| line.split_once("shown only now: "));
        token.expect("it shows a token").1.clone_into(&mut service.admin);
        service
    }

    /// Starts another in the same folder, so that the same tokens are known to both.
    pub fn beside(&self, options: &str, name: &str) -> Self {
        let mut service = Self::begin(self.lab, options, &format!("log of {name}"));
        service.admin.clone_from(&self.admin);
        service
    }

    fn begin(lab: &'a Lab, options: &str, log: &str) -> Self {
        let log = lab.path(&format!("{FOLDER}/{log}"));
        let listen = if options.contains("--listen") { "" } else { "--listen 127.0.0.1:0" };
        let child = spawn(lab, &format!("{listen} {options}"), &log);
        let options = options.to_owned();
        let mut service = Self { lab, child, options, log, url: String::new(), admin: String::new() };
        if let Err(said) = service.serves() {
            panic!("it ended: {said}");
        }
        service
    }

    /// Waits until it serves; where it ends instead, what it said comes back.
    fn serves(&mut self) -> Result<(), String> {
        let mut ended = None;
        wait_until("it serves", || {
            // Looked at first: what it said last is in the log then.
            let is_over = self.child.try_wait().expect("a child").is_some();
            let said = fs::read_to_string(&self.log).expect("its log");
            if is_over {
                ended = Some(said);
                return true;
            }
            let url = said.lines().find_map(|line| Some(line.split_once(" at http")?.1.to_owned()));
            let Some(rest) = url.filter(|_| said.ends_with('\n')) else { return false };
            self.url = format!("http{rest}");
            true
        });
        ended.map_or(Ok(()), Err)
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Kills it; it can be started again.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// Starts it again where it was.
    pub fn start_again(&mut self) {
        let (_, address) = self.url.split_once("://").expect("an address");
        let options = format!("--listen {address} {}", self.options);
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.child = spawn(self.lab, &options, &self.log);
            let Err(said) = self.serves() else { return };
            // A connection of anybody's may have got its port meanwhile, and leaves it.
            let is_taken = said.contains("Address already in use") && Instant::now() < deadline;
            assert!(is_taken, "it ended: {said}");
        }
    }

    /// A new token.
    pub fn token(&self, name: &str, options: &str) -> String {
        token(self.lab, name, options)
    }

    /// `isolane serve ARGS…` for its ledger, which ends at once.
    pub fn serve(&self, args: &str) -> Program {
        self.lab.isolane(&format!("serve {args}")).within(&self.lab.path(FOLDER))
    }

    /// `curl ARGS… URL/PATH` with a token; the head of the answer comes before its body.
    pub fn curl(&self, token: &str, path: &str, args: &[&str]) -> Program {
        let program = self.lab.program("curl").arg_all(["-sS", "-i", "--max-time", "50"]);
        let program =
            if token.is_empty() { program } else { program.arg("-H").arg(format!("Authorization: Bearer {token}")) };
        program.arg_all(args).arg(format!("{}{path}", self.url))
    }

    /// The status of an answer, its head, and its document.
    #[track_caller]
    pub fn ask(&self, token: &str, path: &str, args: &[&str]) -> (u16, String, Value) {
        answer(&self.curl(token, path, args).run())
    }

    /// `isolane ARGS…` as somebody elsewhere, who has this token.
    pub fn elsewhere(&self, token: &str, args: &str) -> Program {
        self.lab.isolane(args).env("ISOLANE_LEASES", &self.url).env("ISOLANE_TOKEN", token)
    }

    /// What a query finds in its ledger.
    #[track_caller]
    pub fn ledger(&self, sql: &str) -> Vec<Vec<String>> {
        read_ledger(&self.lab.path(&format!("{FOLDER}/.isolane/ledger.db")), sql)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it lives");
    }

    /// Waits for its end; what it said comes with it.
    pub fn finish(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("a child of ours");
        (status, fs::read_to_string(&self.log).expect("its log"))
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(lab: &Lab, options: &str, log: &Path) -> Child {
    let err = fs::File::create(log).expect("a file");
    let program = lab.isolane(&format!("serve {options}")).within(&lab.path(FOLDER));
    let mut command = program.into_command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err).spawn().expect("it starts")
}

fn token(lab: &Lab, name: &str, options: &str) -> String {
    let made = lab.isolane(&format!("serve --new-token {name} {options}")).within(&lab.path(FOLDER)).run();
    made.assert_code(0).out().trim().to_owned()
}

/// The status of the last answer that curl shows, its head, and its document.
#[track_caller]
pub fn answer(outcome: &Outcome) -> (u16, String, Value) {
    let text = outcome.out();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer\n{}", outcome.all()));
    // What only says that more may be sent is no answer.
    let (head, body) =
        if head.contains(" 100 ") { body.split_once("\r\n\r\n").expect("an answer") } else { (head, body) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or_default())
}
