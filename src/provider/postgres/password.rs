//! Passwords of lanes' roles.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::name::Place;
use crate::secret::Secret;

/// The passwords of the roles of a run: they are made up here and kept nowhere else.
#[derive(Debug, Default)]
pub struct Passwords(Mutex<HashMap<Place, Secret>>);

impl Passwords {
    /// The password of the role in this place.
    pub fn of(&self, place: Place) -> Secret {
        let mut passwords = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passwords.entry(place).or_insert_with(|| Secret::new(Uuid::new_v4().simple().to_string())).clone()
    }

    /// What the server is told: a verifier and not the password stands in no log of the
    /// server, and a client hashes faster than the server would (RFC 5802).
    pub fn verifier(&self, place: Place) -> String {
        postgres_protocol::password::scram_sha_256(self.of(place).reveal().as_bytes())
    }
}
