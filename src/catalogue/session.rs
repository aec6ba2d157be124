//! Sessions: who has logged in, remembered on the server and known by a random cookie.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::secret::Secret;

/// How long one lasts.
pub const LASTS: Duration = Duration::from_secs(12 * 3600);
/// How many there are at most; the oldest has to go.
const MOST: usize = 10_000;

/// What a session is called here. The cookie itself is nowhere.
pub type Key = [u8; 32];

/// Something that is said once, on the next page.
#[derive(Clone, Debug, Serialize)]
pub struct Notice {
    /// Whether something was done.
    pub is_good: bool,
    /// What is said.
    pub text: String,
}

#[derive(Debug)]
struct Session {
    token: Secret,
    proof: String,
    until: Instant,
    notice: Option<Notice>,
}

/// A session that was found.
#[derive(Clone, Debug)]
pub struct Seat {
    /// What it is called.
    pub key: Key,
    /// The token that it was begun with.
    pub token: Secret,
    /// What every form of it carries.
    pub proof: String,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<Key, Session>>);

impl Sessions {
    /// Begins one; its cookie comes back.
    pub fn begin(&self, token: Secret) -> String {
        let cookie = random();
        let now = Instant::now();
        let mut all = self.all();
        all.retain(|_, session| session.until > now);
        if all.len() >= MOST
            && let Some(oldest) = all.iter().min_by_key(|(_, session)| session.until).map(|(key, _)| *key)
        {
            all.remove(&oldest);
        }
        all.insert(digest(&cookie), Session { token, proof: random(), until: now + LASTS, notice: None });
        cookie
    }

    /// The session of a cookie.
    pub fn find(&self, cookie: &str) -> Option<Seat> {
        let key = digest(cookie);
        let all = self.all();
        let session = all.get(&key).filter(|session| session.until > Instant::now())?;
        Some(Seat { key, token: session.token.clone(), proof: session.proof.clone() })
    }

    /// Whether one goes on.
    pub fn is_there(&self, key: &Key) -> bool {
        self.all().get(key).is_some_and(|session| session.until > Instant::now())
    }

    /// Ends one.
    pub fn end(&self, key: &Key) {
        self.all().remove(key);
    }

    /// Says something on the next page.
    pub fn say(&self, key: &Key, notice: Notice) {
        if let Some(session) = self.all().get_mut(key) {
            session.notice = Some(notice);
        }
    }

    /// What is to be said.
    pub fn said(&self, key: &Key) -> Option<Notice> {
        self.all().get_mut(key)?.notice.take()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Key, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text that nobody guesses: 244 random bits.
pub fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Whether two texts are the same. How long it takes tells nothing of either.
pub fn is_same(a: &str, b: &str) -> bool {
    digest(a) == digest(b)
}

fn digest(text: &str) -> Key {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_by_its_cookie_until_it_ends_and_says_a_thing_once() {
        let sessions = Sessions::default();
        let (a, b) = (sessions.begin(Secret::new("token a")), sessions.begin(Secret::new("token b")));
        let seat = sessions.find(&a).expect("found");
        assert_eq!(seat.token.reveal(), "token a");
        assert_ne!(seat.proof, sessions.find(&b).expect("found").proof);
        assert!(a.len() == 64 && sessions.find("").is_none() && sessions.find(&seat.proof).is_none());
        sessions.say(&seat.key, Notice { is_good: true, text: "done".into() });
        assert_eq!(sessions.said(&seat.key).map(|it| it.text).as_deref(), Some("done"));
        assert!(sessions.said(&seat.key).is_none());
        sessions.end(&seat.key);
        assert!(sessions.find(&a).is_none() && !sessions.is_there(&seat.key) && sessions.find(&b).is_some());
    }

    #[test]
    fn there_are_not_more_and_more_of_them() {
        let sessions = Sessions::default();
        let first = sessions.begin(Secret::new("t"));
        for _ in 0..MOST {
            sessions.begin(Secret::new("t"));
        }
        assert_eq!(sessions.all().len(), MOST);
        assert!(sessions.find(&first).is_none(), "the oldest is gone");
    }
}
