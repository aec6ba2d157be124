//! Making and removing lanes, beside who makes and removes databases by hand; and how both grow.

use std::collections::BTreeMap;

use isolane::address::Address;
use isolane::name::Tag;
use isolane::provider::Server as Site;

use crate::figure::{Figure, Pairs, median, rounds, seconds, shown, wall};
use crate::ground::{Ground, kept, multiply, project};
use crate::lab::Lab;

/// From the announcement of the latest run to the last of its lanes.
const READY: &str = "SELECT (julianday(max(r.created_at)) - julianday(runs.started_at)) * 86400.0
    FROM resources r JOIN runs USING (run_id)
    WHERE r.kind = 'database' AND r.name LIKE '%\\_w%' ESCAPE '\\' AND run_id = (SELECT max(run_id) FROM runs)";
/// From the end of its last worker to the last of its lanes gone.
const GONE: &str = "SELECT (julianday(max(r.removed_at)) - (SELECT julianday(max(ended_at)) FROM workers WHERE run_id = runs.run_id)) * 86400.0
    FROM resources r JOIN runs USING (run_id)
    WHERE r.kind = 'database' AND r.name LIKE '%\\_w%' ESCAPE '\\' AND run_id = (SELECT max(run_id) FROM runs)";

fn asked(lab: &Lab, sql: &str) -> f64 {
    lab.value(sql).parse().expect("seconds")
}

/// Eight at once.
pub fn ready(ground: &Ground) -> Vec<Figure> {
    const LANES: usize = 8;
    let seeded = ground.seeded();
    let empty = ground.database();
    let (as_it_stands, of_template) = (Lab::on(&seeded), project(&empty, ""));
    seconds(kept(&of_template, "", &["true"]));
    let mut callers: Vec<_> = (0..LANES).map(|_| ground.server.admin("postgres")).collect();
    let mut each = |sql: &(dyn Fn(usize) -> String + Sync)| {
        wall(|| {
            std::thread::scope(|scope| {
                for (n, caller) in callers.iter_mut().enumerate() {
                    scope.spawn(move || caller.batch_execute(&sql(n)).expect("the owner may"));
                }
            });
        })
    };
    let (mut beside_template, mut beside_database) = (Pairs::default(), Pairs::default());
    for _ in 0..rounds(7) {
        let by_hand = each(&|n| format!("CREATE DATABASE by_hand_{n} TEMPLATE {} STRATEGY WAL_LOG", seeded.name));
        each(&|n| format!("DROP DATABASE by_hand_{n}"));
        seconds(kept(&of_template, "-n 8", &["true"]));
        beside_template.push(by_hand, asked(&of_template, READY));
        seconds(as_it_stands.run("--quiet -n 8", ["true"]));
        beside_database.push(by_hand, asked(&as_it_stands, READY));
    }
    vec![
        Figure::new(
            "8 databases at once: WAL_LOG / lanes of a kept template",
            beside_template.times_faster(),
            "at least 4",
        ),
        Figure::new("the same / lanes copied from the database as it stands", beside_database.times_faster(), "-"),
    ]
}

/// One that somebody is connected to.
pub fn drop_of_one(ground: &Ground) -> Vec<Figure> {
    let database = ground.seeded();
    let folder = std::env::temp_dir();
    let Ok(Address::Postgres(address)) = Address::parse(&database.url(), &BTreeMap::new(), &folder) else {
        unreachable!("it is PostgreSQL's")
    };
    let site = Site::new(&address, &Tag::parse("0123456789ab").expect("a tag")).expect("a server");
    let _open = site.keep_open();
    site.drop_database("not_there").expect("a connection");
    let mut admin = ground.server.admin("postgres");
    let mut pairs = Pairs::default();
    for _ in 0..rounds(9) {
        let idle = ["forced", "ended"].map(|name| {
            let sql = format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY FILE_COPY", database.name);
            admin.batch_execute(&sql).expect("the owner may");
            ground.server.admin(name)
        });
        let by_force = wall(|| admin.batch_execute("DROP DATABASE forced WITH (FORCE)").expect("the owner may"));
        pairs.push(by_force, wall(|| site.drop_database("ended").expect("it goes")));
        drop(idle);
    }
    vec![Figure::new("a database with a connection gone: WITH (FORCE) / isolane", pairs.times_faster(), "at least 8")]
}

/// Whether many lanes, or lanes of many rows, cost more each.
pub fn growth(ground: &Ground) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (rows, most) in [(1, 64), (10, 8)] {
        let database = ground.database();
        let lab = project(&database, &multiply(&[], rows));
        // A few seconds, or a few more: the laboratory's own patience is shorter.
        seconds(kept(&lab, "", &["true"]));
        let counts: Vec<u32> = [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|n| *n <= most).collect();
        let mut found: BTreeMap<u32, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for _ in 0..rounds(3) {
            for &n in &counts {
                seconds(kept(&lab, &format!("-n {n}"), &["true"]));
                let (made, gone) = found.entry(n).or_default();
                made.push(asked(&lab, READY) / f64::from(n));
                gone.push(asked(&lab, GONE) / f64::from(n));
            }
        }
        for (n, (made, gone)) in found {
            let lanes = if n == 1 { "1 lane".to_owned() } else { format!("{n} lanes") };
            let rows = if rows == 1 { String::new() } else { format!(" of {rows} times the rows") };
            figures.push(Figure::new(
                format!("{lanes}{rows}: each ready, gone after"),
                format!("{}, {}", shown(median(made)), shown(median(gone))),
                "-",
            ));
        }
        seconds(lab.isolane("template remove --all"));
    }
    figures
}
