//! A lease.

use std::io;
use std::ops::Index;
use std::time::Duration;

use serde_json::{json, Value};

use crate::refusal::{self, LeaseError};
use crate::request::seconds;

/// Items that are this test's until it is dropped.
///
/// Dropping it releases it. An error is not told then, since there is nobody to be told: whoever
/// wants to know whether the items were its own to the end calls [`Lease::release`]. Where the
/// process ends without either, the run releases it.
#[derive(Debug)]
#[must_use = "the lease is released when it is dropped"]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// The number of this grant: greater than those of all grants before it.
    pub fence: u64,
    /// What each of its items is like, in the order in which they were asked for.
    pub items: Vec<Value>,
    /// Until when it lasts, unless it is renewed: UTC, ISO 8601.
    pub expires_at: String,
    is_over: bool,
}

impl Lease {
    pub(crate) fn of(answer: &Value) -> Result<Self, LeaseError> {
        let mut lease =
            Self { id: String::new(), fence: 0, items: Vec::new(), expires_at: String::new(), is_over: true };
        lease.take(answer)?;
        lease.is_over = false;
        Ok(lease)
    }

    fn take(&mut self, answer: &Value) -> Result<(), LeaseError> {
        let told = (|| {
            let text = |name: &str| Some(answer[name].as_str()?.to_owned());
            Some((text("id")?, answer["fence"].as_u64()?, answer["items"].as_array()?.clone(), text("expires_at")?))
        })();
        let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("the run's answer is no lease: {answer}"));
        (self.id, self.fence, self.items, self.expires_at) = told.ok_or_else(|| LeaseError::Away(odd()))?;
        Ok(())
    }

    /// For as long again. It is [`LeaseError::Lost`] where it has ended.
    pub fn renew(&mut self) -> Result<(), LeaseError> {
        self.renew_as(&json!({"fence": self.fence}))
    }

    /// For this time from now on.
    pub fn renew_for(&mut self, ttl: Duration) -> Result<(), LeaseError> {
        self.renew_as(&json!({"fence": self.fence, "ttl": seconds(ttl)}))
    }

    fn renew_as(&mut self, body: &Value) -> Result<(), LeaseError> {
        let answer = refusal::call("POST", &format!("/v1/leases/{}/renew", self.id), Some(body))?;
        self.take(&answer)
    }

    /// It is [`LeaseError::Lost`] where it has ended: somebody else may have the items.
    pub fn check(&self) -> Result<(), LeaseError> {
        refusal::call("GET", &format!("/v1/leases/{}", self.id), None).map(drop)
    }

    /// Gives the items back. It is [`LeaseError::Lost`] where the lease had ended before.
    pub fn release(mut self) -> Result<(), LeaseError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LeaseError> {
        self.is_over = true;
        let body = json!({"fence": self.fence});
        refusal::call("DELETE", &format!("/v1/leases/{}", self.id), Some(&body)).map(drop)
    }
}

/// An attribute of the first item; null where it has none of that name.
impl Index<&str> for Lease {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.items.first().and_then(|item| item.get(name)).unwrap_or(&Value::Null)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.end();
        }
    }
}
