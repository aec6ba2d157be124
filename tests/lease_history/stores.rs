//! What a history is read from: the tables of a ledger, or those on a server.

use std::path::PathBuf;

use crate::lab::{Database, read_ledger};
use crate::proof::Grant;

/// Where leases are kept.
pub enum Store<'a> {
    Ledger(PathBuf),
    Server(&'a Database<'a>),
}

impl Store<'_> {
    /// The rows of a query, whose columns are no text with spaces.
    fn rows(&self, columns: &str, on_ledger: &str, on_server: &str) -> Vec<Vec<String>> {
        match self {
            Self::Ledger(path) => read_ledger(path, &format!("SELECT {columns} {on_ledger}")),
            Self::Server(database) => {
                let sql = format!("SELECT concat_ws(' ', {columns}) {on_server}");
                let lines = database.server.texts(&database.name, &sql);
                lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
            }
        }
    }

    /// How many rows of a table are in a state.
    pub fn count(&self, table: &str, state: &str) -> usize {
        let of = |schema: &str| format!("FROM {schema}{table} WHERE state = '{state}'");
        self.rows("version", &of(""), &of("isolane_leases.")).len()
    }

    /// All leases, an item each.
    pub fn grants(&self) -> Vec<Grant> {
        let rows = self.rows(
            "lease_id, it.value ->> 0, fence, acquired, ended, state",
            "FROM lease, json_each(items) it",
            "FROM isolane_leases.lease, json_array_elements(items) it (value)",
        );
        let number = |text: &String| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let grant = |row: &Vec<String>| Grant {
            lease: row[0].clone(),
            item: number(&row[1]),
            fence: number(&row[2]),
            from: number(&row[3]),
            until: number(&row[4]),
            state: row[5].clone(),
        };
        rows.iter().map(grant).collect()
    }

    /// The fences of those who waited for one of the pool `line` and nothing else, as they came.
    pub fn line(&self) -> Vec<u64> {
        let who = r#"WHERE w.state = 'granted' AND ask ->> 'want' = '[{"pool":"line","count":1,"where":{}}]' ORDER BY ticket"#;
        let rows = self.rows(
            "l.fence",
            &format!("FROM waiter w JOIN lease l USING (lease_id) {who}"),
            &format!("FROM isolane_leases.waiter w JOIN isolane_leases.lease l USING (lease_id) {who}"),
        );
        rows.iter().map(|row| row[0].parse().expect("a fence")).collect()
    }
}
