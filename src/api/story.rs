//! A story: the events of one process as they happen, a JSON document a line, on one
//! connection that stays open as long as the process lives.
//!
//! It begins as `POST /v1/tests` with `Upgrade: isolane-story` (RFC 9110 §7.8); what
//! follows the request is the story, and need not wait for the answer. It is over when
//! the process closes its side, and the connection is closed when all was taken in.
//!
//! A suite has thousands of tests and each says that it begins, so what counts is what
//! this costs the process that tells. Nobody sleeps on a story's socket while it is busy:
//! a message then wakes nobody, and is only put into a buffer.

use std::io::{BufRead, BufReader, Cursor, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::sync::watch;

use super::Api;
use super::event::{Event, LAST_WORDS, Role};
use crate::clock::Timestamp;

/// What a story is called in `Upgrade:`.
const PROTOCOL: &str = "isolane-story";
/// The longest line, in bytes.
const LONGEST_LINE: u64 = 1 << 20;
/// How long events gather before they are taken in.
const GATHERING: Duration = Duration::from_millis(10);

/// How many stories are being told.
#[derive(Clone, Debug)]
pub struct Stories(watch::Sender<usize>);

impl Default for Stories {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Stories {
    /// Something is being told until what comes back is dropped.
    pub fn one_more(&self) -> Telling {
        self.0.send_modify(|open| *open += 1);
        Telling(self.clone())
    }

    /// Waits until every story was told to its end, though not for long: a process that
    /// the command left behind may still be telling.
    pub async fn told(&self) {
        let mut stories = self.0.subscribe();
        let _ = tokio::time::timeout(LAST_WORDS, stories.wait_for(|open| *open == 0)).await;
    }
}

/// Something that is being told.
#[derive(Debug)]
pub struct Telling(Stories);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

/// A request to tell a story.
pub struct Story(OnUpgrade);

impl Story {
    /// The story that this request begins, if it does.
    pub fn of(request: &mut Request) -> Option<Self> {
        let asked = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
        if asked { request.extensions_mut().remove().map(Self) } else { None }
    }

    /// Takes in the story of the process `pid` from now on. The answer is for its request.
    pub fn follow(self, api: Arc<Api>, pid: Option<i32>) -> Response {
        let telling = api.stories.one_more();
        tokio::spawn(async move {
            let connection = self.0.await.ok().and_then(connection);
            let runtime = tokio::runtime::Handle::current();
            std::thread::spawn(move || {
                let _entered = runtime.enter();
                if let Some(connection) = connection {
                    listen(connection, &api, pid);
                }
                drop(telling);
            });
        });
        let switching = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
        (StatusCode::SWITCHING_PROTOCOLS, switching).into_response()
    }
}

/// The socket, and behind it what was already read of it.
fn connection(upgraded: Upgraded) -> Option<impl Read + Send> {
    let parts = downcast::<TokioIo<tokio::net::UnixStream>>(upgraded).ok()?;
    let socket: UnixStream = parts.io.into_inner().into_std().ok()?;
    socket.set_nonblocking(false).ok()?;
    Some(Cursor::new(parts.read_buf).chain(socket))
}

/// Reads on to the end of a line that is too long to be kept.
fn skip_line(story: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let (end, read) = {
            let bytes = story.fill_buf()?;
            match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => (true, at + 1),
                None => (bytes.is_empty(), bytes.len()),
            }
        };
        story.consume(read);
        if end {
            return Ok(());
        }
    }
}

fn listen(connection: impl Read, api: &Arc<Api>, pid: Option<i32>) {
    // Dropped when the story has ended, however it does.
    let (_telling, told) = watch::channel(());
    let mut speaker = None;
    let mut story = BufReader::with_capacity(1 << 16, connection);
    let mut line = Vec::new();
    while let Ok(1..) = story.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => {
                // It runs tests by itself and will not tell of them any more.
                if let Event::Hello { worker, role: Role::Alone, .. } = &event {
                    speaker = Some(worker.clone());
                }
                event.happened(api, pid, Some(&told));
            }
            Err(error) => {
                api.roster.notice(&format!("a shim's report could not be read and was left out: {error}"));
                if line.last() != Some(&b'\n') && skip_line(&mut story).is_err() {
                    break;
                }
            }
        }
        line.clear();
        if story.buffer().is_empty() {
            std::thread::sleep(GATHERING);
        }
    }
    if let Some(worker) = speaker {
        api.roster.abandon(&worker, Timestamp::now());
    }
}
