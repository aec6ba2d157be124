//! The database, a run that goes on, and a lane of it that is worked in and made fresh.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use postgres::{Client, NoTls};

use super::odd;
use crate::lab::program::{Running, wait_until};
use crate::lab::{Lab, Server};

/// Tables and rows, 60 and 60,000.
const SCHEMA: &str = include_str!("../../data/schema60.sql");

/// Everything that a database says of itself, by name: tables by all that their rows hold,
/// sequences by where they stand, and the definitions of things.
const STATE: &str = "
    SELECT 'column ' || c.oid::regclass || '.' || a.attname,
           format('%s %s %s %s', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl, pg_get_expr(d.adbin, d.adrelid))
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
     WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relnamespace::regnamespace::text IN ('public', 'odd')
    UNION ALL SELECT 'relation ' || oid::regclass, format('%s %s %s', relkind, relacl, obj_description(oid, 'pg_class'))
      FROM pg_class WHERE relnamespace::regnamespace::text IN ('public', 'odd')
    UNION ALL SELECT 'trigger ' || tgrelid::regclass || '.' || tgname, tgenabled::text FROM pg_trigger
     WHERE NOT tgisinternal AND NOT starts_with(tgname::text, 'isolane_')
    UNION ALL SELECT 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
     WHERE connamespace::regnamespace::text IN ('public', 'odd')
    UNION ALL SELECT 'function ' || oid::regprocedure, prosrc FROM pg_proc WHERE pronamespace::regnamespace::text IN ('public', 'odd')
    UNION ALL SELECT 'large object ' || oid, md5(lo_get(oid)) FROM pg_largeobject_metadata
    UNION ALL SELECT 'schema ' || nspname, nspacl::text FROM pg_namespace WHERE nspname !~ '^(pg_|isolane_)'
    UNION ALL SELECT 'prepared ' || gid, '' FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL SELECT 'type ' || typname, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)
      FROM pg_type t WHERE typnamespace::regnamespace::text IN ('public', 'odd') AND typtype = 'e'";
/// As texts where values may be equal and not alike; they have more rows that are ordinary.
const ROWS: &str = "SELECT format('SELECT %L AS name, count(*) || '' '' || coalesce(sum(%s), 0) AS state FROM ONLY %s AS t', 'rows of ' || c.oid::regclass,
        CASE c.relnamespace::regnamespace::text WHEN 'odd' THEN 'hashtextextended(t::text, 0)' ELSE 'hash_record_extended(t, 0)' END, c.oid::regclass)
      FROM pg_class c WHERE relkind IN ('r', 'm') AND relnamespace::regnamespace::text IN ('public', 'odd')
    UNION ALL SELECT format('SELECT %L, last_value || '' '' || is_called FROM %s', 'sequence ' || c.oid::regclass, c.oid::regclass)
      FROM pg_class c WHERE relkind = 'S' AND relnamespace::regnamespace::text IN ('public', 'odd')";

pub struct World {
    lab: Lab,
    server: Server,
    run: Running,
    lane: String,
    socket: String,
    pristine: BTreeMap<String, String>,
}

impl World {
    pub fn new() -> Self {
        let server = Server::own();
        let database = server.database("SUPERUSER");
        database.sql(SCHEMA);
        database.sql(odd::TABLES);
        let lab = Lab::on(&database);
        let script = "env -0 >there.part; mv there.part there; exec sleep 3600";
        let run = lab.sh("--fresh test", script).start();
        wait_until("the lane is there", || lab.path("there").exists());
        let environment = fs::read(lab.path("there")).expect("an environment");
        let variable = |name: &str| {
            let text =
                environment.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(format!("{name}=").as_bytes()));
            String::from_utf8(text.expect(name).to_vec()).expect("text")
        };
        let (lane, socket) = (variable("DATABASE_URL"), variable("ISOLANE_SOCKET"));
        let pristine = state(&mut Client::connect(&lane, NoTls).expect("the lane"));
        assert_eq!(pristine, state(&mut database.client()), "the lane differs from the source from the beginning");
        Self { lab, server, run, lane, socket, pristine }
    }

    /// A session in the lane, as a test has one.
    pub fn session(&self) -> Client {
        Client::connect(&self.lane, NoTls).expect("the lane")
    }

    /// The tables of the schema, with their columns.
    pub fn tables(&self) -> Vec<(String, Vec<String>)> {
        let sql = "SELECT attrelid::regclass::text, array_agg(attname::text) FROM pg_attribute
             WHERE attnum > 0 AND attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace) GROUP BY 1 ORDER BY 1";
        self.session().query(sql, &[]).expect("tables").iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Asks for the lane as its template, as shims do.
    pub fn renew(&self) -> Result<(), String> {
        let body = r#"{"worker":"w0"}"#;
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| e.to_string())?;
        let head = format!(
            "POST /v1/renewals HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        if answer.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(answer) }
    }

    /// What of the lane is not as it was.
    pub fn difference(&self) -> Vec<String> {
        let now = state(&mut self.session());
        let names: std::collections::BTreeSet<_> = now.keys().chain(self.pristine.keys()).collect();
        let differs = names.into_iter().filter(|name| now.get(*name) != self.pristine.get(*name));
        differs.map(|name| format!("{name}: was {:?}, is {:?}", self.pristine.get(name), now.get(name))).collect()
    }

    /// Ends the run; nothing is left of it.
    pub fn close(self) {
        self.run.signal(Signal::SIGTERM);
        self.run.finish().assert_code(143);
        let left = self.server.texts("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'isolane%'");
        assert_eq!(left, Vec::<String>::new(), "left behind");
    }

    /// How often a lane had to be made again.
    pub fn made_again(&self) -> u64 {
        self.lab.value("SELECT count(*) FROM leftover WHERE kind = 'lane made again'").parse().expect("a number")
    }
}

fn state(client: &mut Client) -> BTreeMap<String, String> {
    let text = |row: &postgres::Row| (row.get::<_, String>(0), row.get::<_, Option<String>>(1).unwrap_or_default());
    client.batch_execute("SET timezone = 'UTC'; SET search_path = public; SET jit = off").expect("settings");
    let mut all: BTreeMap<_, _> = client.query(STATE, &[]).expect("state").iter().map(text).collect();
    let parts: Vec<String> = client.query(ROWS, &[]).expect("tables").iter().map(|row| row.get(0)).collect();
    all.extend(client.query(&parts.join(" UNION ALL "), &[]).expect("rows").iter().map(text));
    all
}
