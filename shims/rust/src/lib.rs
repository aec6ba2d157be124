//! What a test asks of the `isolane run` that it is in.
//!
//! ```no_run
//! let user = isolane::lease("premium_user").attribute("tier", "gold").acquire().unwrap();
//! println!("{} is mine in {}", user["id"], isolane::lane().unwrap().worker_id);
//! ```
//!
//! [`lane`] tells who a test is and where its database is, [`lease`] and [`lease_all`] get it test
//! data that nobody else has meanwhile, and [`record`] notes a thing that it makes outside of its
//! lane. All calls block. The requests of a thread share one connection to the run's Unix socket.
//!
//! Outside of `isolane run` each of them is an error with one line that says so.

mod door;
mod lane;
mod lease;
mod refusal;
mod request;

pub use lane::{lane, Lane};
pub use lease::Lease;
pub use refusal::{Holder, LeaseError};
pub use request::{lease, lease_all, want, Request, Want};

/// Attributes are [`serde_json::Value`]s, and [`serde_json::json`] writes comparisons.
pub use serde_json;

use serde_json::json;

/// Registers a thing that this test has made outside of its lane, such as a customer in an API.
/// At the end of the run `[cleaner.KIND]` of `isolane.toml` removes it, whatever happens.
///
/// ```no_run
/// # fn sign_up() -> u64 { 17 }
/// let customer = sign_up();
/// isolane::record("stripe_customer", customer).unwrap();
/// ```
pub fn record(kind: &str, key: impl std::fmt::Display) -> std::io::Result<()> {
    let mut body = json!({"kind": kind, "key": key.to_string(), "worker": lane::worker()?});
    if let Some(test) = lane::test() {
        body["test"] = test.into();
    }
    let answer = door::call("POST", "/v1/records", Some(&body))?;
    if answer.is_good() {
        Ok(())
    } else {
        Err(std::io::Error::other(answer.detail()))
    }
}
