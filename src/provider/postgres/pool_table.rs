//! Rows of a table of the user's own database, as items of a pool: read as the user's login sees
//! them, in a transaction that can write nothing and ends soon.
//!
//! In `database` and `schema` isolation each lane has a copy of the table; what is leased is a row
//! of the one that all share.

use anyhow::{Context, bail};
use postgres::error::SqlState;
use postgres::{Client, Transaction};

use super::connection::{self, readable, text};
use super::identifier;
use crate::address::PostgresAddress;
use crate::error::{Stop, one_line};
use crate::lease::definition::Table;
use crate::lease::predicate::Attributes;

/// What the sessions are called that read items.
const APPLICATION: &str = "isolane pools";
/// How long it may take to read them.
const TIMEOUT: &str = "SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'";
/// How many rows a pool may have.
const MOST: usize = 100_000;

/// Reads the rows of tables in one database: of each pool's, in the order of their keys.
pub fn read_rows<'a>(
    address: &PostgresAddress,
    pools: impl Iterator<Item = (&'a str, &'a Table)>,
) -> anyhow::Result<Vec<Vec<Attributes>>> {
    let mut client = connection::connect(&connection::config(address, APPLICATION)?)?;
    let rows = |(pool, table): (&str, &Table)| {
        rows(&mut client, address, table)
            .map_err(|error| Stop::usage(format!("pool {pool}: {}", one_line(&readable(error)))))
    };
    let all: anyhow::Result<_> = pools.map(rows).collect();
    // What was read is there, whatever becomes of the session.
    let _ = client.close();
    all
}

fn rows(client: &mut Client, address: &PostgresAddress, table: &Table) -> anyhow::Result<Vec<Attributes>> {
    let mut transaction = client.build_transaction().read_only(true).start()?;
    transaction.batch_execute(TIMEOUT)?;
    check(&mut transaction, address, table)?;
    let (name, key) = (quoted(&table.name)?, identifier(&table.key)?);
    // A line of its own: a comment at the end of the condition ends with it.
    let condition = table.condition.as_ref().map(|it| format!("WHERE (\n{it}\n)")).unwrap_or_default();
    let sql = format!(
        "SELECT to_json(isolane_row)::text FROM {name} AS isolane_row {condition} ORDER BY isolane_row.{key} LIMIT {}",
        MOST + 1
    );
    let found = transaction.query(&sql, &[]).map_err(|error| refused(&error, address, table))?;
    if found.len() > MOST {
        bail!("the table {} has more than {MOST} rows; `where` says which of them are meant", table.name);
    }
    let mut items: Vec<Attributes> = Vec::with_capacity(found.len());
    let mut keys = std::collections::HashSet::new();
    for row in found {
        let attributes: Attributes = serde_json::from_str(row.get(0)).context("a row is no JSON")?;
        let value = attributes.get(&table.key).filter(|value| !value.is_null());
        let Some(value) = value else {
            bail!("a row of the table {} has no `{}`, which tells one from another", table.name, table.key)
        };
        if !keys.insert(value.to_string()) {
            bail!(
                "two rows of the table {} have the `{}` {value}; `key` is a column that tells one from another",
                table.name,
                table.key
            );
        }
        items.push(attributes);
    }
    Ok(items)
}

/// Whether the table and its key are there, for words that help.
fn check(transaction: &mut Transaction<'_>, address: &PostgresAddress, table: &Table) -> anyhow::Result<()> {
    let sql = "SELECT a.attname::text FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
    let name = quoted(&table.name)?;
    let columns = transaction.query(sql, &[&name]).map_err(|error| refused(&error, address, table))?;
    let columns: Vec<String> = columns.iter().map(|row| row.get(0)).collect();
    if columns.is_empty() {
        let database = address.database();
        bail!(
            "the database {database} has no table {}, as far as {} sees it; `table` takes its name as it is written there, with its schema where that is on no search path",
            table.name,
            address.user()
        );
    }
    if !columns.contains(&table.key) {
        bail!("the table {} has no column {}; `key` is one of {}", table.name, table.key, columns.join(", "));
    }
    Ok(())
}

/// A table's name, with or without its schema.
pub fn quoted(name: &str) -> anyhow::Result<String> {
    let parts: anyhow::Result<Vec<String>> = name.split('.').map(|part| Ok(identifier(part)?.to_string())).collect();
    Ok(parts?.join("."))
}

/// Why rows cannot be read, and what to do.
fn refused(error: &postgres::Error, address: &PostgresAddress, table: &Table) -> anyhow::Error {
    let (name, user) = (&table.name, address.user());
    let why = text(error);
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            anyhow::anyhow!(
                "the login {user} may not read the table {name} ({why}); `GRANT SELECT ON {name} TO {user}` allows it"
            )
        }
        Some(code) if *code == SqlState::QUERY_CANCELED => {
            anyhow::anyhow!("the rows of the table {name} could not be read within 10 seconds ({why})")
        }
        _ => anyhow::anyhow!(
            "the rows of the table {name} cannot be read: {why}; `where` is a condition of SQL, such as profile_type = 'premium'"
        ),
    }
}
