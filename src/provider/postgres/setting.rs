//! Settings of the user's database or role, which lanes are given as well.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use postgres_protocol::escape::escape_literal;

use super::identifier;

/// What a setting `key=value` sets, and SQL that gives it to `of`, such as `ROLE r IN DATABASE d`,
/// within a transaction.
pub fn repeat<'a>(setting: &'a str, of: &str) -> anyhow::Result<Option<(&'a str, String)>> {
    let Some((key, value)) = setting.split_once('=') else { return Ok(None) };
    // Through the session, because a list such as a search path must not be quoted as one.
    let sql = format!(
        "SELECT set_config({}, {}, true); ALTER {of} SET {} FROM CURRENT;",
        escape_literal(key),
        escape_literal(value),
        identifier(key)?
    );
    Ok(Some((key, sql)))
}

/// Settings that lanes have to do without: somebody with more rights made them, and the login may
/// not repeat them. Tests may well do without.
#[derive(Debug, Default)]
pub struct Skipped(Mutex<BTreeSet<String>>);

impl Skipped {
    /// Adds one.
    pub fn add(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
    }

    /// What they are called.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
