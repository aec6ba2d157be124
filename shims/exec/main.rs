//! The exec shim: cargo starts every test binary through it (`target.<triple>.runner`).
//! It asks the run for a lane, puts the lane's variables into its environment and
//! becomes the test: same process, same group, nothing in between.
//!
//! It depends on the standard library only, and speaks just enough HTTP for one
//! question. What it is asked to run is its arguments.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IsTerminal, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};

/// The run's own codes, as `isolane run` has them.
const NOT_STARTED: i32 = 125;
const NOT_EXECUTABLE: i32 = 126;
/// Separates the words of the user's own runner.
const SEPARATOR: u8 = 0x1f;

/// How much of what a test says last is kept, in bytes.
const KEPT: usize = 64 * 1024;

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn dup2(from: i32, to: i32) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
}
const SIG_IGN: usize = 1;

fn main() {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.is_empty() {
        fail(2, "the exec shim is started by cargo, with a program to run");
    }
    let Some(socket) = env::var_os("ISOLANE_SOCKET") else { become_test(command(&arguments)) };
    // A test that starts cargo stays in its own lane.
    if env::var_os("ISOLANE_IN_TEST").is_some() {
        become_test(command(&arguments));
    }
    if env::var_os("NEXTEST_TEST_PHASE").is_some_and(|phase| phase == "list") {
        list(&socket, &arguments);
    }
    // A program that `cargo run` starts is no test, and a list of tests runs none.
    let is_list = arguments.iter().any(|argument| argument == "--list");
    if is_list || test(&arguments).is_none() {
        become_test(command(&arguments));
    }
    let mut command = command(&arguments);
    match lease(&socket, &arguments) {
        Ok(environment) => {
            command.env("ISOLANE_IN_TEST", "1");
            if environment.split(|byte| *byte == 0).any(|entry| entry == b"ISOLANE_WATCHED=1") {
                be_heard(&mut command, &environment, &arguments);
            }
            for entry in environment.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
                let equals = entry.iter().position(|byte| *byte == b'=').unwrap_or(entry.len());
                let value = entry.get(equals + 1..).unwrap_or_default();
                command.env(OsStr::from_bytes(&entry[..equals]), OsStr::from_bytes(value));
            }
            become_test(command);
        }
        // Without a lane the test would work in somebody else's.
        Err(why) => fail(NOT_STARTED, &format!("this test got no lane: {why}")),
    }
}

/// The program, behind the user's own runner where there is one.
fn command(arguments: &[OsString]) -> Command {
    let inner = env::var_os("ISOLANE_INNER_RUNNER").map(OsString::into_vec).unwrap_or_default();
    let inner = inner.split(|byte| *byte == SEPARATOR).filter(|word| !word.is_empty());
    let mut words = inner.map(|word| OsString::from_vec(word.to_vec())).chain(arguments.iter().cloned());
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Puts an ear between a nextest test and its standard error, which passes everything on and
/// tells the run what a failing test said: the server's error that it ran into is in there.
/// Where anything of that does not go, the test goes on without.
fn be_heard(command: &mut Command, environment: &[u8], arguments: &[OsString]) {
    let worker = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"WORKER_ID="));
    let (Some(worker), Some((id, _))) = (worker, test(arguments)) else { return };
    // A terminal stays what it is. cargo test keeps what its tests say to itself.
    if std::io::stderr().is_terminal() || env::var_os("NEXTEST_TEST_NAME").is_none() {
        return;
    }
    let Ok((reader, writer)) = std::io::pipe() else { return };
    // The ear is its grandchild: the test has no child that it does not know of. A fork of this
    // small program takes a third of what a start takes, and each test waits for it.
    // SAFETY: there is one thread, so nothing is half done in the copy.
    let child = unsafe { fork() };
    if child == 0 {
        // As long as somebody could write, there is no end to read.
        drop(writer);
        // SAFETY: as above.
        match unsafe { fork() } {
            0 => {
                let worker = json(&String::from_utf8_lossy(worker));
                listen(reader, &format!("{{\"event\":\"said\",\"worker\":{worker},\"test\":{},\"text\":", json(&id)))
            }
            ear => exit(i32::from(ear < 0)),
        }
    }
    let mut status = 0;
    // SAFETY: waitpid(2) of our own child, into our own number.
    if child > 0 && unsafe { waitpid(child, &raw mut status, 0) } == child && status == 0 {
        command.stderr(writer);
    }
}

/// The ear: hands its input on to standard error, byte for byte. What it says to the run begins
/// with `of`.
fn listen(mut input: PipeReader, of: &str) -> ! {
    // nextest waits for the end of the test's output, which is not ours to hold open.
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        // SAFETY: both are open.
        unsafe { dup2(null.as_raw_fd(), 1) };
    }
    for number in [1, 2, 3, 15] {
        // What ends a test by the terminal or politely ends us when the test is gone.
        // SAFETY: signal(2), and no handler.
        unsafe { signal(number, SIG_IGN) };
    }
    let mut output = std::io::stderr().lock();
    let (mut buffer, mut last) = ([0; 8192], Vec::new());
    while let Ok(length @ 1..) = input.read(&mut buffer) {
        // Who reads it may be gone; the test must not notice.
        let _ = output.write_all(&buffer[..length]);
        last.extend_from_slice(&buffer[..length]);
        if last.len() > 2 * KEPT {
            last.drain(..last.len() - KEPT);
        }
    }
    let said = String::from_utf8_lossy(&last);
    if said.contains("panicked at") || said.contains("Error") {
        if let Some(socket) = env::var_os("ISOLANE_SOCKET") {
            let _ = post(&socket, "/v1/tests", &format!("{of}{}}}", json(&said)));
        }
    }
    exit(0)
}

fn become_test(mut command: Command) -> ! {
    let error = command.exec();
    fail(NOT_EXECUTABLE, &format!("cannot execute {}: {error}", command.get_program().to_string_lossy()))
}

fn fail(code: i32, why: &str) -> ! {
    eprintln!("isolane: {why}");
    exit(code)
}

fn text(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

/// Asks for a lane; the answer is variables as `env -0` prints them.
fn lease(socket: &OsStr, arguments: &[OsString]) -> Result<Vec<u8>, String> {
    let mut request = String::from("{\"bind\":true");
    if let Some(slot) = text("NEXTEST_TEST_GLOBAL_SLOT") {
        request.push_str(&format!(",\"worker\":{}", json(&format!("slot{slot}"))));
    }
    if let Some((id, attempt)) = test(arguments) {
        request.push_str(&format!(",\"test\":{{\"id\":{},\"attempt\":{attempt}}}", json(&id)));
    }
    request.push('}');
    post(socket, "/v1/lanes", &request)
}

/// The test's id and attempt: nextest's own, or the name of the binary, in whose process
/// cargo test runs all tests.
fn test(arguments: &[OsString]) -> Option<(String, String)> {
    if let (Some(binary), Some(name)) = (text("NEXTEST_BINARY_ID"), text("NEXTEST_TEST_NAME")) {
        // A stress run repeats tests without calling them attempts.
        let stress = text("NEXTEST_STRESS_CURRENT").and_then(|n| n.parse::<u64>().ok());
        let id = stress.map_or_else(|| format!("{binary}${name}"), |n| format!("{binary}@stress-{n}${name}"));
        let attempt = text("NEXTEST_ATTEMPT").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        return Some((id, attempt.unwrap_or_else(|| "1".to_owned())));
    }
    // `cargo run` comes this way too; only test binaries are in `deps`.
    let path = Path::new(&arguments[0]);
    let in_deps = path.parent()?.file_name()? == "deps";
    let name = path.file_name()?.to_string_lossy().into_owned();
    let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _hash)| name);
    in_deps.then(|| (name.to_owned(), "null".to_owned()))
}

/// nextest lists tests: it reads our output, so it gets the binary's and nothing else.
/// The number of tests goes to the run, which counts later who did not come.
fn list(socket: &OsStr, arguments: &[OsString]) -> ! {
    let child = command(arguments).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| fail(NOT_EXECUTABLE, &format!("cannot execute the test binary: {error}")));
    let mut tests = 0i64;
    let mut out = std::io::stdout().lock();
    let mut lines = BufReader::new(child.stdout.take().unwrap_or_else(|| exit(NOT_STARTED)));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        tests += i64::from(line.trim_ascii_end().ends_with(b": test"));
        if out.write_all(&line).is_err() {
            exit(1);
        }
        line.clear();
    }
    let _ = out.flush();
    // Ignored tests are listed twice, once among all and once alone.
    let sign = if arguments.iter().any(|argument| argument == "--ignored") { -1 } else { 1 };
    let binary = text("NEXTEST_BINARY_ID").unwrap_or_default();
    let event = format!("{{\"event\":\"listed\",\"binary\":{},\"tests\":{}}}", json(&binary), sign * tests);
    // Only a count is lost if nobody listens.
    let _ = post(socket, "/v1/tests", &event);
    exit(child.wait().ok().and_then(|status| status.code()).unwrap_or(1))
}

/// One request over the run's socket; the body of its answer.
fn post(socket: &OsStr, path: &str, body: &str) -> Result<Vec<u8>, String> {
    let gone = |error: std::io::Error| format!("the run does not answer ({error})");
    let mut stream = UnixStream::connect(socket).map_err(gone)?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nAccept: application/x-isolane-env\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(gone)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(gone)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("the run's answer broke off")?;
    let (head, body) = (&answer[..end], answer[end + 4..].to_vec());
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if status.starts_with(b"2") {
        return Ok(body);
    }
    let problem = String::from_utf8_lossy(&body).into_owned();
    let detail = problem.split_once("\"detail\":\"").map(|(_, rest)| rest.split("\",\"").next().unwrap_or(rest));
    Err(detail.unwrap_or(&problem).trim_end_matches(['"', '}']).to_owned())
}

/// A text as a JSON string (RFC 8259 §7).
fn json(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
