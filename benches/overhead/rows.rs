//! Removing rows that a run made among the user's own.

use std::collections::BTreeMap;

use isolane::address::Address;
use isolane::name::{Place, Tag};
use isolane::provider::{Resource, ResourceKind, Server as Site};
use postgres::{Client, NoTls};

use crate::capture::{COLUMNS, VALUES, idle_run};
use crate::lab::{Database, Lab, Server};
use crate::{line, median, wall};

const TABLES: usize = 60;
/// Rows that somebody else has, and that the run makes.
const OTHERS: usize = 50_000;
const ROWS: usize = 100_000;

/// Tables of six generations; each of a later one refers to one or two of those before.
fn tables() -> String {
    let parents = |n: usize| match n {
        0..6 => Vec::new(),
        n if n % 3 == 0 => vec![n / 2, n / 4],
        n => vec![n / 2],
    };
    (0..TABLES)
        .map(|n| {
            let keys: String = parents(n)
                .iter()
                .map(|p| format!(", parent_{p} bigint NOT NULL DEFAULT 1 REFERENCES t{p} ON DELETE CASCADE"))
                .collect();
            let indexes: String = parents(n).iter().map(|p| format!("CREATE INDEX ON t{n} (parent_{p});")).collect();
            format!("CREATE TABLE t{n} ({COLUMNS}{keys}); CREATE INDEX ON t{n} (status, created_at); {indexes}\n")
        })
        .collect()
}

/// 100,000 rows, each of a statement of its own. Children refer to rows that are made as well.
fn fill(client: &mut Client) {
    for n in 0..TABLES {
        let parents = client
            .query(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname LIKE 'parent%'",
                &[&format!("t{n}")],
            )
            .expect("columns");
        let parents: Vec<String> = parents.iter().map(|row| row.get(0)).collect();
        let columns: String = parents.iter().map(|name| format!(", {name}")).collect();
        let values: String = parents.iter().map(|name| format!(", last_{name} - i")).collect();
        let declared: String = parents.iter().map(|name| format!("last_{name} bigint;")).collect();
        let found: String = parents
            .iter()
            .map(|name| format!("SELECT max(id) INTO last_{name} FROM {};", name.replace("parent_", "t")))
            .collect();
        let sql = format!(
            "DO $$ DECLARE base bigint; {declared} BEGIN {found} SELECT max(id) INTO base FROM t{n};
                 FOR i IN 0..{last} LOOP INSERT INTO t{n} (code, name, amount, payload{columns}) VALUES ('c' || base + i, {VALUES}{values}); END LOOP; END $$",
            last = ROWS / TABLES - 1
        );
        client.batch_execute(&sql).expect("the owner may");
    }
}

/// From a log of single-row statements on the server to the last row gone.
pub fn rows() {
    let server = Server::own();
    let database = server.database("CREATEROLE");
    database.sql(&tables());
    for n in 0..TABLES {
        let others = OTHERS / TABLES;
        database.sql(&format!(
            "INSERT INTO t{n} (code, name, amount, payload) SELECT 'other-' || i, {VALUES} FROM generate_series(1, {others}) AS i"
        ));
    }
    let mut admin = server.admin(&database.name);
    let mut tidy = || ["VACUUM (ANALYZE)", "CHECKPOINT"].map(|sql| admin.batch_execute(sql).expect("the owner may"));
    let (mut ratios, mut by_hands) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        fill(&mut database.client());
        tidy();
        let by_range = wall(|| by_hand(&database, false));
        fill(&mut database.client());
        tidy();
        let by_ids = wall(|| by_hand(&database, true));
        let lab = Lab::on(&database);
        let (_run, url) = idle_run(&lab, "public.*");
        fill(&mut Client::connect(&url, NoTls).expect("the lane's login"));
        // Nobody is left who would remove anything.
        lab.lose_machine();
        tidy();
        let tag = Tag::parse(&lab.tag()).expect("a tag");
        let address = Address::parse(&database.url(), &BTreeMap::new(), lab.home()).expect("an address");
        let Address::Postgres(address) = address else { unreachable!("it is PostgreSQL's") };
        let site = Site::new(&address, &tag).expect("a server");
        let log = Resource {
            provider: address.id(),
            kind: ResourceKind::Schema,
            name: Place::Run.schema(&tag),
            place: Place::Run,
        };
        let ours = wall(|| {
            let rows = site.remove_rows(&log).expect("they go");
            assert_eq!(rows.removed, (ROWS / TABLES * TABLES) as u64, "all are gone");
        });
        site.drop_schema(&log.name).expect("it goes");
        ratios.push(ours / by_range.min(by_ids));
        by_hands.push(by_range.min(by_ids));
        if std::env::var_os("ISOLANE_BENCH_ALL").is_some() {
            println!("  ranges {by_range:.2} s, ids {by_ids:.2} s, isolane {ours:.2} s");
        }
    }
    line(
        "cleanup of 100,000 rows in 60 tables / DELETEs by hand",
        &format!("{:.2} (by hand {:.0} ms)", median(ratios), median(by_hands) * 1e3),
        "at most 1.5",
    );
}

/// Children first, as who knows the tables would: by ranges of keys, or by a list of them.
fn by_hand(database: &Database, with_list: bool) {
    let mut client = database.client();
    for n in (0..TABLES).rev() {
        let first = OTHERS / TABLES;
        let sql = if with_list {
            format!(
                "CREATE TEMP TABLE ids_{n} AS SELECT id FROM t{n} WHERE id > {first}; ANALYZE ids_{n};
                 DELETE FROM t{n} USING ids_{n} WHERE t{n}.id = ids_{n}.id"
            )
        } else {
            format!("DELETE FROM t{n} WHERE id > {first}")
        };
        client.batch_execute(&sql).expect("the owner may");
    }
}
