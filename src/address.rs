//! Addresses of databases, as users write them: `postgresql+psycopg://ann@db/shop?x=y`,
//! `host=db dbname=shop`, `sqlite:///shop.db`, or several with commas between.
//!
//! What a worker gets is the user's own text with only the database, the login or the
//! path exchanged: driver suffixes, parameters and spelling stay.

mod postgres;
mod sqlite;

pub use postgres::{LOOPBACK, LaneTarget, PostgresAddress};
pub use sqlite::SqliteAddress;

use std::collections::BTreeMap;
use std::path::Path;

/// The variables of a process, as they were when isolane started.
pub type Variables = BTreeMap<String, String>;

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A PostgreSQL database.
    Postgres(PostgresAddress),
    /// An SQLite file.
    Sqlite(SqliteAddress),
    /// An SQLite database in memory: every process has its own already.
    InMemory(String),
}

/// Why a text is no address, in words that fit behind "the address in `DATABASE_URL`".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(String);

impl Address {
    /// Reads one address. `variables` supply what libpq would take from its own
    /// (`PGHOST`, `PGUSER`, …); relative paths count from `cwd`.
    pub fn parse(text: &str, variables: &Variables, cwd: &Path) -> Result<Self, BadAddress> {
        let text = text.trim();
        let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme) {
            "postgres" | "postgresql" => PostgresAddress::from_url(text, variables).map(Self::Postgres),
            "sqlite" | "sqlite3" => {
                Ok(SqliteAddress::parse(text, cwd).map_or_else(|| Self::InMemory(text.to_owned()), Self::Sqlite))
            }
            "mysql" | "mariadb" | "redis" | "rediss" => Err(BadAddress(format!(
                "begins with `{scheme}:`, and this version of isolane knows postgresql: and sqlite: only"
            ))),
            _ if !text.contains("://") && text.contains('=') => {
                PostgresAddress::from_keywords(text, variables).map(Self::Postgres)
            }
            _ => Err(BadAddress(
                "is no database address; it should look like postgresql://user@host/database or sqlite:///file.db"
                    .to_owned(),
            )),
        }
    }

    /// Reads a list with commas between. A comma inside one address (several hosts)
    /// separates nothing: only one that a scheme follows does.
    pub fn parse_list(text: &str, variables: &Variables, cwd: &Path) -> Result<Vec<Self>, BadAddress> {
        let mut parts: Vec<String> = Vec::new();
        for part in text.split(',') {
            match parts.last_mut() {
                Some(last) if !starts_with_scheme(part.trim_start()) => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => parts.push(part.trim().to_owned()),
            }
        }
        parts.iter().map(|part| Self::parse(part, variables, cwd)).collect()
    }
}

fn starts_with_scheme(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let known =
        ["postgres", "postgresql", "sqlite", "sqlite3", "mysql", "mariadb", "redis", "rediss", "mssql", "oracle"];
    known.contains(&scheme.split('+').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_list(text: &str) -> Vec<Address> {
        Address::parse_list(text, &Variables::new(), Path::new("/w")).expect("addresses")
    }

    #[test]
    fn a_list_is_split_between_addresses_and_not_between_hosts() {
        let list = parse_list("postgresql://u@a:1,b:2/x, sqlite:///x.db,sqlite://");
        assert_eq!(list.len(), 3);
        let Address::Postgres(first) = &list[0] else { panic!("{list:?}") };
        assert_eq!(first.hosts(), ["a", "b"]);
        assert_eq!(first.ports(), [1, 2]);
        assert!(matches!(&list[2], Address::InMemory(_)));
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for text in [
            "",
            "shop",
            "ftp://h/x",
            "mysql://ann:secret@h/x",
            "postgresql://ann:secret@h:port/x",
            "postgresql://ann:secret@h/a/b",
        ] {
            let refusal = Address::parse(text, &Variables::new(), Path::new("/")).expect_err(text);
            assert!(!refusal.to_string().contains("secret"), "{refusal}");
        }
    }
}
