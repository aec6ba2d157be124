//! One command of a pool: given JSON, limited in time and in what it may say, and killed with
//! all that it has started when it goes beyond that.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use crate::lease::predicate::{Attributes, plain};
use crate::os::{marked, process};

/// The most that a command may answer.
const LONGEST_ANSWER: usize = 1 << 20;
/// How much is kept of what it says besides: enough for its last line.
const LONGEST_WORD: usize = 8 << 10;
/// How long output is read of a command that has ended, while somebody else holds it open.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// The longest value of a variable that every system takes.
const LONGEST_VARIABLE: usize = 100 << 10;

/// A command about to run.
#[derive(Debug)]
pub struct Step {
    /// What the shell is given.
    pub line: String,
    /// Where it runs.
    pub folder: PathBuf,
    /// What it finds in its environment besides isolane's own.
    pub environment: Vec<(String, String)>,
    /// What it reads.
    pub input: String,
    /// How long it may take.
    pub limit: Duration,
    /// Whose it is, as [`marked::STEP`] says.
    pub mark: String,
    /// Whether what it prints is an answer, and must not be longer than one may be.
    pub is_asked: bool,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It said that all is well, and this.
    Well(Vec<u8>),
    /// It failed: why, in what comes behind that word, on one line.
    Badly(String),
    /// It was called off.
    CalledOff,
}

impl Step {
    /// A command for one item: its attributes stand for `{name}` and are given as JSON.
    pub fn of_item(line: &str, pool: &str, attributes: &Attributes) -> Self {
        let json = serde_json::to_string(attributes).unwrap_or_default();
        let mut environment = vec![("ISOLANE_POOL".to_owned(), pool.to_owned())];
        if json.len() < LONGEST_VARIABLE {
            environment.push(("ISOLANE_ITEM".to_owned(), json.clone()));
        }
        Self {
            line: filled(line, attributes),
            folder: PathBuf::new(),
            environment,
            input: json,
            limit: Duration::ZERO,
            mark: String::new(),
            is_asked: false,
        }
    }

    /// Runs it to its end, or until it is called off.
    pub async fn run(self, called_off: impl Future<Output = ()>) -> End {
        let mut command = process::command("sh");
        command.args(["-c", &self.line]).current_dir(&self.folder).envs(self.environment).env(marked::STEP, &self.mark);
        let mut command = Command::from(command);
        // A group of its own: what ends a terminal's foreground group does not end it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match process::spawn_spared(|| command.spawn(), Child::id) {
            Ok(child) => child,
            Err(error) if !self.folder.is_dir() => {
                return End::Badly(format!("(cannot start sh in {}: {error})", self.folder.display()));
            }
            Err(error) => return End::Badly(format!("(cannot start sh: {error})")),
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        let feeder = child.stdin.take().map(|mut stdin| {
            let input = self.input;
            tokio::spawn(async move {
                // Who does not want to know is not told.
                let _ = stdin.write_all(input.as_bytes()).await;
            })
        });
        let (answer, word) = (Ear::default(), Ear::default());
        let too_long = Arc::new(Notify::new());
        let most = if self.is_asked { Some(Arc::clone(&too_long)) } else { None };
        let mut readers = vec![tokio::spawn(answer.clone().listen(child.stdout.take(), most))];
        readers.push(tokio::spawn(word.clone().listen(child.stderr.take(), None)));
        let how = tokio::select! {
            biased;
            status = child.wait() => How::Ended(status),
            () = too_long.notified() => How::TooLong,
            () = tokio::time::sleep(self.limit) => How::TooLate,
            () = called_off => How::CalledOff,
        };
        if !matches!(how, How::Ended(Ok(status)) if status.success()) {
            // All that it has forked as well, wherever that went.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let mark = self.mark.clone();
            let _ = tokio::task::spawn_blocking(move || marked::kill(marked::STEP, &mark)).await;
            let _ = child.wait().await;
        }
        process::spare_no_more(pid);
        let reading = async {
            for reader in &mut readers {
                let _ = reader.await;
            }
        };
        // A daemon may hold them open for ever.
        let _ = tokio::time::timeout(LAST_WORDS, reading).await;
        readers.iter().chain(&feeder).for_each(tokio::task::JoinHandle::abort);
        let last = || word.last().or_else(|| answer.last()).unwrap_or_default();
        let with = |what: String, last: String| {
            if last.is_empty() { format!("({what})") } else { format!("({what}): {last}") }
        };
        match how {
            How::CalledOff => End::CalledOff,
            How::TooLong => End::Badly(format!("(it printed more than {} MiB and was killed)", LONGEST_ANSWER >> 20)),
            How::TooLate => {
                End::Badly(with(format!("not over after {} s and killed", self.limit.as_secs_f64()), last()))
            }
            How::Ended(Ok(status)) if status.success() => End::Well(answer.take()),
            How::Ended(Ok(status)) => End::Badly(with(described(status), last())),
            How::Ended(Err(error)) => End::Badly(format!("(cannot wait for it: {error})")),
        }
    }
}

/// How the waiting for a command ended.
enum How {
    Ended(std::io::Result<ExitStatus>),
    TooLong,
    TooLate,
    CalledOff,
}

fn described(status: ExitStatus) -> String {
    status.code().map_or_else(|| format!("signal {}", status.signal().unwrap_or(0)), |code| format!("exit code {code}"))
}

/// What was heard of a command.
#[derive(Clone, Debug, Default)]
struct Ear(Arc<Mutex<Vec<u8>>>);

impl Ear {
    /// Listens to the end. Of an answer that is too long, that is told; of other words, the last
    /// are kept.
    async fn listen(self, from: Option<impl AsyncRead + Unpin>, too_long: Option<Arc<Notify>>) {
        let Some(mut from) = from else { return };
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            heard.extend_from_slice(&buffer[..n]);
            match &too_long {
                Some(told) if heard.len() > LONGEST_ANSWER => {
                    told.notify_one();
                    return;
                }
                None if heard.len() > 2 * LONGEST_WORD => {
                    let old = heard.len() - LONGEST_WORD;
                    heard.drain(..old);
                }
                _ => {}
            }
        }
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The last line that says something.
    fn last(&self) -> Option<String> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&heard);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(|line| cut(line, 300))
    }
}

/// The beginning of a text, on one line.
pub fn cut(text: &str, most: usize) -> String {
    let mut line: String = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line.trim().to_owned()
}

/// `line` with the attributes, quoted for a shell, in the places of their names.
fn filled(line: &str, attributes: &Attributes) -> String {
    let mut filled = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        filled.push_str(before);
        // `${name}` is the shell's own.
        let end = after.find('}').filter(|_| !before.ends_with('$'));
        let value = end.and_then(|end| Some((end, attributes.get(&after[1..end])?)));
        let quoted = value.and_then(|(end, value)| Some((end, shlex::try_quote(&plain(value)).ok()?.into_owned())));
        let (text, length) = quoted.map_or_else(|| ("{".to_owned(), 1), |(end, text)| (text, end + 1));
        filled.push_str(&text);
        rest = &after[length..];
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn attributes_stand_quoted_in_the_places_of_their_names() {
        let Value::Object(item) = json!({"id": 7, "name": "o'hara; rm {id}", "tags": [1]}) else { panic!("an object") };
        let line = "x {id} {name} {tags} ${id} {other} {{id}}";
        assert_eq!(filled(line, &item), r#"x 7 "o'hara; rm {id}" '[1]' ${id} {other} {7}"#);
    }
}
