//! Requests to the run, over its Unix socket. Each thread has a connection, which stays open.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::lane::variable;

/// What is longer was not sent by a run.
const LONGEST: u64 = 64 << 20;

/// An answer.
pub(crate) struct Answer {
    status: u16,
    /// Its document; null where it has none.
    pub(crate) body: Value,
}

impl Answer {
    /// Whether what was asked for was done.
    pub(crate) fn is_good(&self) -> bool {
        self.status < 300
    }

    /// What the run says of a problem, on one line.
    pub(crate) fn detail(&self) -> String {
        self.body["detail"]
            .as_str()
            .map_or_else(|| format!("the run answers with status {}", self.status), str::to_owned)
    }
}

struct Door {
    socket: String,
    /// The process that opened it: a child that was forked has its own.
    process: u32,
    stream: BufReader<UnixStream>,
}

thread_local! {
    static DOOR: RefCell<Option<Door>> = const { RefCell::new(None) };
}

/// Asks, and waits for the answer.
pub(crate) fn call(method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
    let socket = variable("ISOLANE_SOCKET")?;
    let known = DOOR.try_with(RefCell::take).ok().flatten();
    let is_ours = |door: &Door| door.process == std::process::id() && door.socket == socket;
    let mut door = match known.filter(is_ours) {
        Some(door) => door,
        None => Door::open(socket).map_err(away)?,
    };
    // What was answered in part only is no connection any more: it is dropped, and not asked
    // again, since nobody knows what was done.
    let answer = door.call(method, path, body).map_err(away)?;
    // A thread that is ending has none to keep it in.
    let _ = DOOR.try_with(|kept| kept.replace(Some(door)));
    Ok(answer)
}

#[allow(clippy::needless_pass_by_value)] // as `map_err` has it
fn away(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the run does not answer: {error}"))
}

impl Door {
    fn open(socket: String) -> io::Result<Self> {
        let stream = BufReader::new(UnixStream::connect(&socket)?);
        Ok(Self { socket, process: std::process::id(), stream })
    }

    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: isolane\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| odd("a status"))?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let header = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            if let Some((_, value)) = header {
                length = value.trim().parse().ok().filter(|n| *n <= LONGEST).ok_or_else(|| odd("a length"))?;
            }
        }
        let mut bytes = Vec::new();
        if (&mut self.stream).take(length).read_to_end(&mut bytes)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        Ok(Answer { status, body })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(1 << 16).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its answer has not {what}"))
}
