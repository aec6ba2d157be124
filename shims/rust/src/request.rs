//! What is asked for.

use std::time::Duration;

use serde_json::{json, Map, Value};

use crate::lane;
use crate::lease::Lease;
use crate::refusal::{self, LeaseError};

/// Items of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    pool: String,
    count: u32,
    conditions: Map<String, Value>,
}

/// One item of a pool, for [`lease_all`].
pub fn want(pool: &str) -> Want {
    Want { pool: pool.to_owned(), count: 1, conditions: Map::new() }
}

impl Want {
    /// Only items that have this attribute: `("tier", "gold")`, one of several values
    /// (`("tier", vec!["gold", "silver"])`), or a comparison (`("age", json!({"ge": 18}))`, with
    /// [`serde_json::json`]).
    #[must_use]
    pub fn attribute(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.conditions.insert(name.to_owned(), value.into());
        self
    }

    /// So many, and not one.
    #[must_use]
    pub fn count(mut self, count: u32) -> Self {
        self.count = count;
        self
    }
}

/// A lease that is about to be asked for.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "nothing is asked for before `acquire`"]
pub struct Request {
    wants: Vec<Want>,
    ttl: Option<Duration>,
    wait: Duration,
    key: Option<String>,
}

/// A lease of an item of this pool, until it is dropped.
///
/// ```no_run
/// let users = isolane::lease("premium_user").attribute("tier", "gold").count(2).acquire().unwrap();
/// let (payer, payee) = (&users.items[0], &users.items[1]);
/// ```
pub fn lease(pool: &str) -> Request {
    lease_all([want(pool)])
}

/// A lease of items of several pools, all or none: who asks for them one after another may wait
/// for somebody who waits for it.
///
/// ```no_run
/// use isolane::want;
///
/// let both = isolane::lease_all([want("user").attribute("tier", "gold"), want("licence")]).acquire().unwrap();
/// let (user, licence) = (&both.items[0], &both.items[1]);
/// ```
pub fn lease_all(wants: impl IntoIterator<Item = Want>) -> Request {
    Request { wants: wants.into_iter().collect(), ttl: None, wait: Duration::from_secs(30), key: None }
}

impl Request {
    /// As [`Want::attribute`], of the pool that was named last.
    pub fn attribute(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.wants = match self.wants.pop() {
            Some(last) => self.wants.into_iter().chain([last.attribute(name, value)]).collect(),
            None => self.wants,
        };
        self
    }

    /// As [`Want::count`], of the pool that was named last.
    pub fn count(mut self, count: u32) -> Self {
        if let Some(last) = self.wants.last_mut() {
            last.count = count;
        }
        self
    }

    /// Ends the lease after this time, unless it is renewed. Otherwise it lasts as long as the
    /// test's process.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long to wait where somebody else has them: 30 seconds, if nothing is said.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// A name for this request: asked again with it, it is the same lease.
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Asks, and waits for it.
    pub fn acquire(self) -> Result<Lease, LeaseError> {
        let wants: Vec<Value> = self
            .wants
            .into_iter()
            .map(|want| json!({"pool": want.pool, "count": want.count, "where": want.conditions}))
            .collect();
        let (worker, test) = (lane::worker().map_err(LeaseError::Away)?, lane::test());
        // With `client`, the tests that cargo test runs at once in one process are told apart: one
        // that waits for another does not wait for itself.
        let body = json!({
            "want": wants, "ttl": self.ttl.map(seconds), "wait": seconds(self.wait), "key": self.key,
            "worker": worker, "test": test, "client": test,
        });
        Lease::of(&refusal::call("POST", "/v1/leases", Some(&body))?)
    }
}

/// A time as the run reads it.
pub(crate) fn seconds(time: Duration) -> Value {
    time.as_secs_f64().into()
}
