//! Tokens: who may ask a service for what. Only their hashes are here.

use std::fmt;

use rusqlite::{Connection, Row, params};

use crate::clock::Timestamp;

/// What a token allows; each role allows what those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looking.
    Read,
    /// Asking for leases, renewing and releasing them.
    Lease,
    /// Everything.
    Admin,
}

impl Role {
    const ALL: [(Self, &'static str); 3] = [(Self::Read, "read"), (Self::Lease, "lease"), (Self::Admin, "admin")];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(role, _)| *role == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(role, _)| *role).ok_or_else(|| "it takes read, lease or admin".to_owned())
    }
}

/// A token, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Its SHA-256.
    pub hash: [u8; 32],
    /// Since when it is there.
    pub made: Timestamp,
    /// Until when it counts.
    pub expires: Option<Timestamp>,
}

/// Keeps one more token; says whether its name was still free.
pub fn add(db: &Connection, token: &Token) -> rusqlite::Result<bool> {
    let Token { name, role, hash, made, expires } = token;
    let sql = "INSERT OR IGNORE INTO token VALUES (?, ?, ?, ?, ?)";
    let expires = expires.map(Timestamp::micros);
    Ok(db.execute(sql, params![name, role.as_str(), hash, made.micros(), expires])? > 0)
}

/// Forgets a token; says whether there was one.
pub fn remove(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    Ok(db.execute("DELETE FROM token WHERE name = ?", [name])? > 0)
}

/// All tokens, by name.
pub fn all(db: &Connection) -> rusqlite::Result<Vec<Token>> {
    let mut statement = db.prepare_cached("SELECT name, role, hash, made, expires FROM token ORDER BY name")?;
    let tokens = statement.query_map([], token)?;
    tokens.collect()
}

fn token(row: &Row<'_>) -> rusqlite::Result<Token> {
    let role: String = row.get(1)?;
    let time = |at: i64| Timestamp(u64::try_from(at).unwrap_or(0));
    Ok(Token {
        name: row.get(0)?,
        // The table has no other.
        role: role.parse().unwrap_or(Role::Read),
        hash: row.get(2)?,
        made: time(row.get(3)?),
        expires: row.get::<_, Option<i64>>(4)?.map(time),
    })
}

/// Writes to the ledger, and changes nothing: whether that can be done.
pub fn touch(db: &Connection) -> rusqlite::Result<()> {
    db.execute("UPDATE lease_head SET now = now", []).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_token() {
        let db = crate::ledger::in_memory().expect("a ledger");
        let token = |role| Token { name: "ci".to_owned(), role, hash: [7; 32], made: Timestamp(1), expires: None };
        assert_eq!(add(&db, &token(Role::Lease)), Ok(true));
        assert_eq!(add(&db, &token(Role::Admin)), Ok(false));
        assert_eq!(all(&db), Ok(vec![token(Role::Lease)]));
        assert_eq!((remove(&db, "ci"), remove(&db, "ci")), (Ok(true), Ok(false)));
        touch(&db).expect("it can be written");
    }

    #[test]
    fn a_role_allows_what_lesser_ones_do() {
        assert!(Role::Admin > Role::Lease && Role::Lease > Role::Read);
        assert_eq!("lease".parse(), Ok(Role::Lease));
        assert!("root".parse::<Role>().is_err());
    }
}
