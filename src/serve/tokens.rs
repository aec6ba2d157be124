//! The tokens of a store: made, listed, removed, and read by a service that goes on.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::Open;
use super::access::{Read, hash, invent};
use crate::clock::Timestamp;
use crate::error::{ExitCode, Stop, one_line};
use crate::ledger::token::{self, Role, Token};
use crate::ledger::{self, Durability, Writer};
use crate::secret::Secret;
use crate::settings::Settings;

/// The name of the token that a service makes where there is none.
const FIRST: &str = "admin";

/// Makes a token, and keeps its hash.
pub fn make(settings: &Settings, name: &str, role: Role, valid: Option<Duration>) -> anyhow::Result<Secret> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(Stop::usage(format!(
            "{name:?} is no name for a token: it takes letters, digits, `.`, `_` and `-`"
        )));
    }
    let open = Open::new(settings)?;
    let made = keep(&open.writer, name, role, valid);
    open.close();
    made?.ok_or_else(|| {
        Stop::with(ExitCode::Refused, format!("there is a token {name} already; --remove-token {name} removes it"))
    })
}

/// Makes a token; nothing comes back where its name is taken.
fn keep(writer: &Writer, name: &str, role: Role, valid: Option<Duration>) -> anyhow::Result<Option<Secret>> {
    let secret = invent().map_err(Stop::not_started)?;
    let made = Timestamp::now();
    let expires = valid.map(|valid| made.after(valid));
    let kept = Token { name: name.to_owned(), role, hash: hash(secret.reveal()), made, expires };
    let is_new = writer.commit(Durability::Machine, move |db| token::add(db, &kept))?;
    Ok(is_new.then_some(secret))
}

/// Makes the first token of a store that has none.
pub fn first(writer: &Writer) -> anyhow::Result<Option<Secret>> {
    let has_some = writer.commit(Durability::Process, |db| Ok(!token::all(db)?.is_empty()))?;
    if has_some { Ok(None) } else { keep(writer, FIRST, Role::Admin, None) }
}

/// Forgets a token.
pub fn remove(settings: &Settings, name: &str) -> anyhow::Result<()> {
    let open = Open::new(settings)?;
    let its = name.to_owned();
    let removed = open.writer.commit(Durability::Machine, move |db| token::remove(db, &its));
    open.close();
    if removed? { Ok(()) } else { Err(Stop::with(ExitCode::Refused, format!("there is no token {name}"))) }
}

/// All tokens, as rows.
pub fn list(settings: &Settings) -> anyhow::Result<Value> {
    let open = Open::new(settings)?;
    let found = open.writer.commit(Durability::Process, token::all);
    open.close();
    let row = |token: &Token| {
        json!({
            "token": token.name, "role": token.role.as_str(), "made_at": token.made.to_string(),
            "expires_at": token.expires.map(|at| at.to_string()),
        })
    };
    Ok(found?.iter().map(row).collect())
}

/// Reads the tokens of a ledger again and again.
pub fn reader(path: &Path) -> anyhow::Result<Box<Read>> {
    let db = Mutex::new(ledger::open(path)?);
    Ok(Box::new(move || {
        let db = db.lock().unwrap_or_else(PoisonError::into_inner);
        token::all(&db).map_err(|error| one_line(&error.into()))
    }))
}
