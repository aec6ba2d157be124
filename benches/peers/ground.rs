//! The server that everything is measured on, with its files in one place or another.

use std::path::Path;

use crate::lab::{Database, Lab, Server};

/// 60 tables and 60,000 rows, 37 MB in a database.
pub const SCHEMA: &str = include_str!("../../tests/data/schema60.sql");
/// Where its tables end and its rows begin.
pub const SEED: &str = "-- ---- seed ----";

/// Makes the pristine state, as users of `--setup` would.
const SETUP: &str = "psql -qX -v ON_ERROR_STOP=1 -o /dev/null -f schema.sql";

/// A private server.
pub struct Ground {
    pub server: Server,
    /// Where its files are.
    pub folder: &'static Path,
}

impl Ground {
    pub fn memory() -> Self {
        Self::below("/dev/shm")
    }

    pub fn disk() -> Self {
        // `/tmp` may be in memory; what is here outlives a restart of the machine.
        Self::below("/var/tmp")
    }

    fn below(folder: &'static str) -> Self {
        let folder = Path::new(folder);
        Self { server: Server::own_in(folder), folder }
    }

    /// What the server calls itself.
    pub fn version(&self) -> String {
        let version = self.server.texts("postgres", "SELECT current_setting('server_version')").remove(0);
        format!("PostgreSQL {}", version.split(' ').next().unwrap_or_default())
    }

    /// An empty database, and a login that may do what each of the peers wants to do.
    pub fn database(&self) -> Database<'_> {
        self.server.database("SUPERUSER")
    }

    /// A database with the tables and rows in it.
    pub fn seeded(&self) -> Database<'_> {
        let database = self.database();
        database.sql(SCHEMA);
        database
    }
}

/// A project whose setup is the schema, and a little more.
pub fn project(database: &Database<'_>, more: &str) -> Lab {
    let lab = Lab::on(database);
    lab.file("schema.sql", &format!("{SCHEMA}\n{more}"));
    lab
}

/// `isolane run OPTIONS… -- COMMAND…` in lanes of the kept template that the setup made.
pub fn kept(lab: &Lab, options: &str, command: &[&str]) -> crate::lab::Program {
    let run = lab.isolane("run --quiet").arg_all(options.split_whitespace()).arg("--setup").arg(SETUP);
    run.arg_all(["--setup-input", "schema.sql", "--"]).arg_all(command)
}

/// SQL that gives each of these tables `times` as many rows as it has; all of them where none is
/// named.
pub fn multiply(tables: &[&str], times: u32) -> String {
    let which = if tables.is_empty() { String::new() } else { format!("AND relname IN ('{}')", tables.join("','")) };
    format!(
        "DO $$ DECLARE which regclass; names text; BEGIN
             FOR which, names IN
                 SELECT c.oid, string_agg(quote_ident(attname), ', ') FROM pg_class c JOIN pg_attribute ON attrelid = c.oid
                  WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND attnum > 0 AND attname NOT IN ('id', 'code') {which}
                  GROUP BY c.oid LOOP
                 EXECUTE format('INSERT INTO %1$s (code, %2$s) SELECT code || ''-'' || n, %2$s FROM %1$s, generate_series(2, {times}) AS n', which, names);
             END LOOP; END $$; ANALYZE;"
    )
}
