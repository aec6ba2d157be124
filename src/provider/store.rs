//! The store of leases that an address names.

use std::path::Path;

use super::postgres::LeaseStore;
use crate::address::{Address, Variables};
use crate::error::{ExitCode, Stop, exit_code};
use crate::lease::store::Store;

/// Opens the store at `url`, `postgresql://…`; what it needs is made there. `place` is where the
/// address was given, for words about it.
pub fn open(url: &str, place: &str, variables: &Variables, cwd: &Path) -> anyhow::Result<Box<dyn Store>> {
    let address = Address::parse(url, variables, cwd);
    match address.map_err(|bad| Stop::usage(format!("the address in {place} {bad}")))? {
        Address::Postgres(address) => match LeaseStore::open(&address) {
            Ok(store) => Ok(Box::new(store)),
            // A service that is away, for those who only wanted to ask it.
            Err(error) if exit_code(&error) == ExitCode::NotStarted as i32 => {
                Err(Stop::with(ExitCode::Unavailable, error))
            }
            Err(error) => Err(error),
        },
        Address::Sqlite(_) | Address::InMemory(_) => Err(Stop::usage(format!(
            "{place} takes the address of a PostgreSQL database; leases in a file are those of a ledger, which --ledger names"
        ))),
    }
}
