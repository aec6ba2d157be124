//! The one writer of a run: a thread that puts what has queued up into one
//! transaction (group commit), so that a hundred thousand events a second cost a
//! few hundred commits.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use rusqlite::{Connection, Result, TransactionBehavior};

/// How many changes share a transaction at most.
const BATCH: usize = 4096;

/// What a change must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The loss of this process. Enough for what only tells a story.
    Process,
    /// The loss of the machine: on the disk before the call returns. For promises:
    /// what is made next is owed from then on.
    Machine,
}

type Change = Box<dyn FnOnce(&Connection) -> Result<()> + Send>;
type Done = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Debug)]
enum Message {
    Change(Queued),
    Close,
}

struct Queued {
    change: Change,
    durability: Durability,
    done: Option<Done>,
}

impl std::fmt::Debug for Queued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.durability.fmt(f)
    }
}

/// The handle to the writer thread; clones share it.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: Sender<Message>,
}

impl Writer {
    /// Starts the thread. It ends at [`Writer::close`], with everything written that was
    /// queued before; joining it yields the first error that nobody was waiting for.
    pub fn start(db: Connection) -> (Self, JoinHandle<Option<rusqlite::Error>>) {
        let (queue, messages) = channel();
        let thread = std::thread::spawn(move || work(db, &messages));
        (Self { queue }, thread)
    }

    /// Queues a change and goes on.
    pub fn tell(&self, change: impl FnOnce(&Connection) -> Result<()> + Send + 'static) {
        self.send(Message::Change(Queued { change: Box::new(change), durability: Durability::Process, done: None }));
    }

    /// Makes a change, with all that was queued before it, and waits until it is kept.
    pub fn commit<T: Send + 'static>(
        &self,
        durability: Durability,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = sync_channel(1);
        let (made, value) = sync_channel(1);
        let change = move |db: &Connection| {
            let _ = made.send(change(db)?);
            Ok(())
        };
        self.queue(durability, change, move |kept| {
            let _ = done.send(kept);
        });
        answer.recv().unwrap_or(Err(rusqlite::Error::UnwindingPanic))?;
        value.recv().map_err(|_| rusqlite::Error::UnwindingPanic)
    }

    /// Queues a change, and calls `done` when it is kept or lost. That must not take long: the
    /// next changes wait for it.
    pub fn queue(
        &self,
        durability: Durability,
        change: impl FnOnce(&Connection) -> Result<()> + Send + 'static,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let queued = Queued { change: Box::new(change), durability, done: Some(Box::new(done)) };
        if let Err(std::sync::mpsc::SendError(Message::Change(Queued { done: Some(done), .. }))) =
            self.queue.send(Message::Change(queued))
        {
            done(Err(rusqlite::Error::UnwindingPanic));
        }
    }

    /// Ends the thread once all is written; later changes fail.
    pub fn close(&self) {
        self.send(Message::Close);
    }

    fn send(&self, message: Message) {
        // After the end of the thread, who waits for an answer is told; nobody else cares.
        let _ = self.queue.send(message);
    }
}

fn work(mut db: Connection, messages: &Receiver<Message>) -> Option<rusqlite::Error> {
    let mut lost = None;
    let mut open = true;
    let mut kept = None;
    while open && let Ok(first) = messages.recv() {
        let mut batch = Vec::new();
        for message in std::iter::once(first).chain(messages.try_iter()).take(BATCH) {
            match message {
                Message::Change(queued) => batch.push(queued),
                Message::Close => {
                    open = false;
                    break;
                }
            }
        }
        if let Some(error) = apply(&mut db, batch, &mut kept) {
            lost.get_or_insert(error);
        }
    }
    lost
}

/// Applies a batch; the error of a change that nobody waits for, if there is one.
/// `kept` is what the connection keeps now.
fn apply(db: &mut Connection, batch: Vec<Queued>, kept: &mut Option<Durability>) -> Option<rusqlite::Error> {
    let is_safe = batch.iter().any(|queued| queued.durability == Durability::Machine);
    let mut lost = None;
    let mut waiting = Vec::new();
    let durability = if is_safe { Durability::Machine } else { Durability::Process };
    let committed = keep(db, durability, kept).and_then(|()| {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for message in batch {
            // A change that fails is undone by SQLite itself and does not harm the others; unless that
            // undid everything, as when the disk is full: outside of a transaction each of the rest
            // would be kept by itself, though everybody is told that nothing was.
            let made = if tx.is_autocommit() { Err(undone()) } else { (message.change)(&tx) };
            match (message.done, made) {
                (Some(done), result) => waiting.push((done, result)),
                (None, Err(error)) => lost = Some(error),
                (None, Ok(())) => {}
            }
        }
        tx.commit()
    });
    for (done, result) in waiting {
        let kept = committed.as_ref().copied().map_err(repeat);
        done(result.and(kept));
    }
    committed.err().or(lost)
}

/// Makes the connection keep what is written next.
fn keep(db: &Connection, durability: Durability, kept: &mut Option<Durability>) -> Result<()> {
    if *kept != Some(durability) {
        let synchronous = if durability == Durability::Machine { "FULL" } else { "NORMAL" };
        db.pragma_update(None, "synchronous", synchronous)?;
        *kept = Some(durability);
    }
    Ok(())
}

fn undone() -> rusqlite::Error {
    let text = "what it was written with could not be written".to_owned();
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT), Some(text))
}

/// The same error once more: SQLite's errors cannot be cloned.
fn repeat(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, text) => rusqlite::Error::SqliteFailure(*code, text.clone()),
        other => rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
            Some(other.to_string()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_there_when_a_commit_returns_and_a_bad_change_harms_no_other() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("x.db");
        let db = Connection::open(&path).expect("open");
        db.execute_batch("CREATE TABLE t(n INTEGER PRIMARY KEY)").expect("table");
        let (writer, thread) = Writer::start(db);
        for n in 0..1000 {
            writer.tell(move |db| db.execute("INSERT INTO t VALUES (?)", [n]).map(drop));
        }
        writer.tell(|db| db.execute("INSERT INTO t VALUES (7)", []).map(drop));
        assert!(writer.commit(Durability::Process, |db| db.execute("INSERT INTO t VALUES (8)", []).map(drop)).is_err());
        writer.commit(Durability::Machine, |db| db.execute("INSERT INTO t VALUES (-1)", []).map(drop)).expect("kept");
        let reader = Connection::open(&path).expect("open");
        let count: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
        assert_eq!(count, 1001);
        // What SQLite does by itself when the disk is full.
        let (go, wait) = channel::<()>();
        writer.tell(move |_| wait.recv().map_err(|_| undone()));
        let (answers, answered) = channel();
        let queue = |change: fn(&Connection) -> Result<()>| {
            let answers = answers.clone();
            writer.queue(Durability::Process, change, move |kept| answers.send(kept.is_ok()).expect("a listener"));
        };
        queue(|db| db.execute("INSERT INTO t VALUES (-2)", []).map(drop));
        queue(|db| db.execute_batch("ROLLBACK").and_then(|()| Err(undone())));
        queue(|db| db.execute("INSERT INTO t VALUES (-3)", []).map(drop));
        go.send(()).expect("the writer waits");
        let kept: Vec<bool> = answered.iter().take(3).collect();
        assert_eq!(kept, [false, false, false]);
        writer.commit(Durability::Process, |db| db.execute("INSERT INTO t VALUES (-4)", []).map(drop)).expect("kept");
        let count: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
        assert_eq!(count, 1002, "nothing of what was said to be lost is there");
        writer.close();
        assert!(thread.join().expect("thread").is_some(), "the lost change is reported");
    }
}
