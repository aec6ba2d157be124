//! The claim: a lock that a session of the run holds on the server, which says to every
//! machine that the run lives, without clocks. The server frees it when the session is
//! gone; when only the session was lost, the lock is taken again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Config, SimpleQueryMessage};

use super::connection::{self, AFTERGLOW};
use crate::name::Tag;

/// Says of an advisory lock that it is a run's: "is" before the tag's six bytes.
const CLASS: i64 = 0x6973 << 48;
/// How long to wait before the lock is tried again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// A machine that is lost is found out within half a minute, and not after two hours. A
/// claim waits as long as the run takes, which a server may have set a limit for.
const OUTLAST: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SELECT set_config('idle_session_timeout', '0', false) WHERE current_setting('server_version_num')::int >= 140000";
/// Takes a lock if nobody has it.
pub const LOCK: &str = "pg_try_advisory_lock";
/// The advisory locks that any session holds, in whichever database.
pub const HELD: &str = "FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted";
/// The number that one was taken by; pg_locks divides it in two.
pub const NUMBER: &str = "((classid::bigint << 32) | objid::bigint)";

/// The number of the run's lock.
pub fn key(tag: &Tag) -> i64 {
    // A tag is twelve hex digits.
    CLASS | i64::from_str_radix(tag.as_str(), 16).unwrap_or(0)
}

/// The lock, held until the process ends, whatever happens to a session.
#[derive(Debug)]
pub struct Claim {
    is_over: Arc<AtomicBool>,
}

impl Claim {
    /// Holds the lock by `client`, a session that `config` made, and by others after it.
    pub fn hold(client: Client, config: Config, tag: &Tag) -> Self {
        let (key, is_over) = (key(tag), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&is_over);
        std::thread::spawn(move || hold(client, &config, key, &over));
        Self { is_over }
    }

    /// No other session follows the one that holds it now.
    pub fn let_go(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Waits until no other session of this name is left: the server takes a moment to free the place
/// of one that was closed.
pub fn outwait(client: &mut Client, application: &str) {
    let began = Instant::now();
    let sql = "SELECT FROM pg_stat_activity WHERE usename = current_user AND application_name = $1";
    // What cannot be asked is not waited for.
    while client.query(sql, &[&application]).is_ok_and(|left| !left.is_empty()) && began.elapsed() < AFTERGLOW {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A session of `config` that holds the lock of `tag`; `None` where the run has one already,
/// by another address of the same server.
pub fn take(config: &Config, tag: &Tag) -> anyhow::Result<Option<Client>> {
    take_by(session(config)?, tag)
}

/// The same with a session that is there.
pub fn take_by(mut client: Client, tag: &Tag) -> anyhow::Result<Option<Client>> {
    Ok(lock(&mut client, LOCK, key(tag))?.then_some(client))
}

/// A session to hold locks by for as long as the run takes.
pub fn session(config: &Config) -> anyhow::Result<Client> {
    let mut client = connection::connect(config)?;
    client.batch_execute(&format!("{}; {OUTLAST}", connection::OWN_SETTINGS))?;
    Ok(client)
}

/// What the sessions are called that hold a lock. They do not count as the run's own, which
/// are gone in a moment.
pub fn application(tag: &Tag) -> String {
    format!("isolane claim {tag}")
}

/// Whether a function of the server's such as [`LOCK`] took the advisory lock of this number.
pub fn lock(client: &mut Client, function: &str, key: i64) -> Result<bool, postgres::Error> {
    // One message, where a statement with a parameter takes three.
    let told = client.simple_query(&format!("SELECT {function}({key})"))?;
    Ok(told.iter().any(|told| matches!(told, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
}

fn hold(mut client: Client, config: &Config, key: i64, is_over: &AtomicBool) {
    loop {
        // Nobody notifies: this sleeps until the session ends.
        while let Ok(Some(_)) = client.notifications().blocking_iter().next() {}
        match again(config, key, is_over) {
            Some(other) => client = other,
            None => return,
        }
    }
}

/// The server was restarted, or the way to it was cut. The old session may linger there, and
/// holds the lock as long as it does.
fn again(config: &Config, key: i64, is_over: &AtomicBool) -> Option<Client> {
    let (mut pause, longest) = PAUSES;
    while !is_over.load(Ordering::Relaxed) {
        if let Ok(mut client) = session(config)
            && let Ok(true) = lock(&mut client, LOCK, key)
        {
            return Some(client);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
    None
}
