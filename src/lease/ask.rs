//! What a holder asks for, and who that is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::predicate::Predicate;
use crate::clock;

/// The longest lease, and the longest wait for one.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The most items that one lease may have.
pub const MOST: u32 = 10_000;

/// Who holds or awaits something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// The run's id, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The run's worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The test that the worker is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// The worker's lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<u32>,
    /// Who it is, where it is no run: a person, a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

impl Holder {
    /// Whether this one and that one wait for each other's things: they are one worker, which
    /// is in one test at a time.
    pub fn is_same_worker(&self, other: &Self) -> bool {
        // A person at several shells is not one worker.
        self.worker.is_some() && self.run == other.run && self.worker == other.worker && self.client == other.client
    }
}

impl Holder {
    /// By which token it came, where it came through a service: what its client's name begins with.
    pub fn party(&self) -> Option<&str> {
        self.client.as_deref().and_then(|client| client.split('/').next())
    }

    /// Among whose requests one key stands for one request.
    pub fn circle(&self) -> (Option<String>, Option<String>) {
        (self.run.clone(), self.party().map(str::to_owned))
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let worker = self.worker.as_deref().or(self.client.as_deref());
        match (&self.test, worker) {
            (Some(test), Some(worker)) => write!(f, "{test} ({worker})"),
            (Some(test), None) => f.write_str(test),
            (None, Some(worker)) => f.write_str(worker),
            (None, None) => f.write_str("somebody"),
        }
    }
}

/// Items of one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// Of which pool.
    pub pool: String,
    /// How many.
    pub count: u32,
    /// What each must be like.
    pub predicate: Predicate,
}

/// All that one lease is to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// What, all or nothing.
    pub wants: Vec<Want>,
    /// How long the lease is to live; as long as its holder where none is given.
    pub ttl: Option<Duration>,
    /// How long to wait for it.
    pub wait: Duration,
    /// The caller's own name for this request: asked twice, it is granted once.
    pub key: Option<String>,
    /// Who asks.
    pub holder: Holder,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"pool\": \"acct\", \"count\": 2}")]
struct RawWant {
    pool: String,
    count: Option<u32>,
    #[serde(rename = "where")]
    conditions: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"pool\": \"acct\"}")]
struct Raw {
    pool: Option<String>,
    count: Option<u32>,
    #[serde(rename = "where")]
    conditions: Option<Value>,
    want: Option<Vec<RawWant>>,
    ttl: Option<Value>,
    wait: Option<Value>,
    key: Option<String>,
    worker: Option<String>,
    test: Option<String>,
    run: Option<String>,
    lane: Option<u32>,
    client: Option<String>,
}

impl Ask {
    /// Reads `{"pool":"acct","count":1,"where":{"tier":"gold"},"ttl":"60s","wait":"30s","key":"…"}`
    /// or, for several pools, `{"want":[{"pool":…},{…}], …}`.
    pub fn from_json(body: &[u8]) -> Result<Self, String> {
        if body.trim_ascii_start().starts_with(b"[") {
            return Err("a request is an object such as {\"pool\": \"acct\"}, and no list".to_owned());
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let raws = match (raw.pool, raw.want) {
            (Some(pool), None) => vec![RawWant { pool, count: raw.count, conditions: raw.conditions }],
            (None, Some(wants)) if raw.count.is_none() && raw.conditions.is_none() && !wants.is_empty() => wants,
            (Some(_), Some(_)) => return Err("`pool` and `want` exclude each other".to_owned()),
            (None, Some(wants)) if wants.is_empty() => return Err("`want` is empty".to_owned()),
            (None, Some(_)) => return Err("`count` and `where` stand within `want`".to_owned()),
            (None, None) => return Err("`pool` is missing".to_owned()),
        };
        let mut wants = Vec::new();
        for RawWant { pool, count, conditions } in raws {
            let predicate = conditions.filter(|it| !it.is_null());
            let predicate = predicate.map_or(Ok(Predicate::default()), |value| Predicate::from_json(&value))?;
            wants.push(Want { pool, count: count.unwrap_or(1), predicate });
        }
        let time = |name: &str, value: Option<Value>| {
            let value = value.filter(|it| !it.is_null());
            value.map(|value| duration(&value).map_err(|why| format!("`{name}`: {why}"))).transpose()
        };
        let ask = Self {
            wants,
            ttl: time("ttl", raw.ttl)?.map(whole),
            wait: time("wait", raw.wait)?.map(whole).unwrap_or_default(),
            key: raw.key,
            holder: Holder { run: raw.run, worker: raw.worker, test: raw.test, lane: raw.lane, client: raw.client },
        };
        ask.check()?;
        Ok(ask)
    }

    fn check(&self) -> Result<(), String> {
        let total: u64 = self.wants.iter().map(|want| u64::from(want.count)).sum();
        if self.wants.iter().any(|want| want.count == 0) {
            return Err("`count` takes a number from 1 on".to_owned());
        }
        if total > u64::from(MOST) {
            return Err(format!("one lease has {MOST} items at most"));
        }
        if self.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err("`ttl` takes a time above 0".to_owned());
        }
        if self.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 512) {
            return Err("`key` takes 1 to 512 bytes".to_owned());
        }
        Ok(())
    }

    /// What [`Ask::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let wants: Vec<_> = self
            .wants
            .iter()
            .map(|want| json!({"pool": want.pool, "count": want.count, "where": want.predicate.to_json()}))
            .collect();
        let mut body = Map::new();
        body.insert("want".to_owned(), wants.into());
        if let Some(ttl) = self.ttl {
            body.insert("ttl".to_owned(), format!("{}ms", ttl.as_millis()).into());
        }
        body.insert("wait".to_owned(), format!("{}ms", self.wait.as_millis()).into());
        if let Some(key) = &self.key {
            body.insert("key".to_owned(), key.as_str().into());
        }
        if let Ok(Value::Object(holder)) = serde_json::to_value(&self.holder) {
            body.extend(holder);
        }
        Value::Object(body)
    }

    /// What is asked for, apart from who asks and how long they wait: what a key stands for.
    pub fn substance(&self) -> String {
        let wants: Vec<_> =
            self.wants.iter().map(|want| json!([want.pool, want.count, want.predicate.to_json()])).collect();
        Value::from(wants).to_string()
    }
}

/// The same in whole milliseconds, as a request is kept: one that was above 0 stays so.
fn whole(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

/// A time as JSON has it: `"60s"`, or seconds as a number.
pub fn duration(value: &Value) -> Result<Duration, String> {
    let duration = match value {
        Value::String(text) => clock::duration(text)?,
        Value::Number(number) => {
            let seconds = number.as_f64().unwrap_or(-1.0);
            Duration::try_from_secs_f64(seconds).map_err(|_| "it takes a time such as \"60s\"".to_owned())?
        }
        _ => return Err("it takes a time such as \"60s\"".to_owned()),
    };
    Ok(duration.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let text = br#"{"want":[{"pool":"users","count":2,"where":{"tier":"gold"}},{"pool":"stock"}],"ttl":"60s","wait":1.5,"key":"k","worker":"gw0"}"#;
        let ask = Ask::from_json(text).expect("a request");
        assert_eq!(ask.wants.len(), 2);
        assert_eq!((ask.ttl, ask.wait), (Some(Duration::from_secs(60)), Duration::from_millis(1500)));
        assert_eq!(Ask::from_json(ask.to_json().to_string().as_bytes()), Ok(ask));
    }

    #[test]
    fn a_time_below_a_millisecond_can_be_kept_and_read_again() {
        let ask = Ask::from_json(br#"{"pool":"a","ttl":0.0004,"wait":0.0000001}"#).expect("a request");
        let kept = Ask::from_json(ask.to_json().to_string().as_bytes());
        assert_eq!(kept, Ok(ask.clone()), "a line that cannot be read again would lock up the store");
        assert_eq!((ask.ttl, ask.wait), (Some(Duration::from_millis(1)), Duration::from_millis(1)));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, part) in [
            ("{}", "`pool` is missing"),
            (r#"{"pool":"a","want":[{"pool":"b"}]}"#, "exclude"),
            (r#"{"want":[]}"#, "empty"),
            (r#"{"pool":"a","count":0}"#, "from 1 on"),
            (r#"{"pool":"a","count":-1}"#, "invalid value"),
            (r#"{"pool":"a","count":1000000}"#, "at most"),
            (r#"{"pool":"a","ttl":"0s"}"#, "above 0"),
            (r#"{"pool":"a","ttl":"soon"}"#, "`ttl`: it takes a time"),
            (r#"{"pool":"a","ttl":-1}"#, "`ttl`: it takes a time"),
            (r#"{"pool":"a","pol":1}"#, "unknown field `pol`"),
            (r#"{"pool":"a","where":{"x":{"like":1}}}"#, "is unknown"),
        ] {
            let error = Ask::from_json(text.as_bytes()).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
