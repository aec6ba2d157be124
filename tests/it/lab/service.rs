//! `isolane serve` of a lab, in a folder and with a ledger of its own.

use std::fs;
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::program::{Outcome, Program, wait_until};
use super::{Lab, read_ledger};

/// A service that goes on.
pub struct Service<'a> {
    lab: &'a Lab,
    child: Child,
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
        let mut service = Self::begin(lab, options);
        service.admin = admin;
        service
    }

    /// Starts it where it has no token yet: it makes one.
    pub fn start_without_token(lab: &'a Lab, options: &str, configuration: &str) -> Self {
        lab.file(&format!("{FOLDER}/isolane.toml"), configuration);
        let mut service = Self::begin(lab, options);
        let said = fs::read_to_string(lab.path(&format!("{FOLDER}/log"))).expect("its log");
        let token = said.lines().find_map(|line| line.split_once("shown only now: "));
        token.expect("it shows a token").1.clone_into(&mut service.admin);
        service
    }

    fn begin(lab: &'a Lab, options: &str) -> Self {
        let log = lab.path(&format!("{FOLDER}/log"));
        let err = fs::File::create(&log).expect("a file");
        let listen = if options.contains("--listen") { "" } else { "--listen 127.0.0.1:0" };
        let program = lab.isolane(&format!("serve {listen} {options}")).within(&lab.path(FOLDER));
        let mut command = program.into_command();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err).spawn().expect("it starts");
        let mut service = Self { lab, child, url: String::new(), admin: String::new() };
        wait_until("it serves", || {
            let said = fs::read_to_string(&log).expect("its log");
            assert!(service.child.try_wait().expect("a child").is_none(), "it ended: {said}");
            let url = said.lines().find_map(|line| Some(line.split_once(" at http")?.1.to_owned()));
            service.url = url.map(|rest| format!("http{rest}")).unwrap_or_default();
            said.ends_with('\n') && !service.url.is_empty()
        });
        service
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
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it lives");
    }

    /// Waits for its end; what it said comes with it.
    pub fn finish(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("a child of ours");
        (status, fs::read_to_string(self.lab.path(&format!("{FOLDER}/log"))).expect("its log"))
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
