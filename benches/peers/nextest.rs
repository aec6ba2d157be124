//! Beside `sqlx::test`, which gives each test a new database and runs all migrations in it, and
//! beside programs that somebody else has built.

use std::path::PathBuf;

use crate::figure::{Figure, Pairs, rounds, seconds};
use crate::ground::{Ground, SCHEMA, SEED, kept, project};
use crate::installed;
use crate::lab::{Lab, Program};

const TESTS: usize = 100;

/// A crate with 100 tests on lanes and the same on databases of `sqlx::test`.
pub fn krate() -> PathBuf {
    let tests = |head: &str, each: &dyn Fn(usize) -> String| -> String {
        std::iter::once(head.to_owned()).chain((0..TESTS).map(each)).collect()
    };
    let lanes =
        tests("", &|n| format!("#[tokio::test]\nasync fn sells_{n}() {{\n    sqlx_peer::in_lane().await;\n}}\n"));
    let copies = tests("", &|n| {
        format!("#[sqlx::test]\nasync fn sells_{n}(pool: sqlx::PgPool) {{\n    sqlx_peer::in_copy(pool).await;\n}}\n")
    });
    let (tables, _) = SCHEMA.split_once(SEED).expect("tables, then rows");
    installed::cargo(
        "sqlx_peer",
        &[
            ("Cargo.toml", include_str!("suites/sqlx/manifest.toml")),
            ("src/lib.rs", include_str!("suites/sqlx/lib.rs")),
            ("tests/lanes.rs", &lanes),
            ("tests/copies.rs", &copies),
            ("migrations/1_tables.sql", tables),
        ],
    )
}

/// Where nextest finds what was built.
pub fn lab_of(lab: Lab) -> Lab {
    lab.with("CARGO_HOME", installed::cargo_home())
}

const NEXTEST: [&str; 8] = ["cargo", "nextest", "run", "-j", "2", "--no-fail-fast", "--hide-progress-bar", "--test"];

/// Its tests in lanes.
fn in_lanes(lab: &Lab, krate: &std::path::Path) -> Program {
    let command = [&NEXTEST[..], &["lanes", "--manifest-path"]].concat();
    kept(lab, "--fresh test", &command).arg(krate.join("Cargo.toml"))
}

/// Its tests with `sqlx::test`.
pub fn in_copies(lab: &Lab, krate: &std::path::Path) -> Program {
    let program = lab.program(NEXTEST[0]).arg_all(&NEXTEST[1..]).arg_all(["copies", "--manifest-path"]);
    program.arg(krate.join("Cargo.toml"))
}

pub fn beside_sqlx(ground: &Ground) -> Vec<Figure> {
    let krate = krate();
    let (database, theirs) = (ground.database(), ground.database());
    let (lab, their_lab) = (lab_of(project(&database, "")), lab_of(Lab::on(&theirs)));
    let (mut first, mut later) = (Pairs::default(), Pairs::default());
    for _ in 0..rounds(5) {
        let theirs = seconds(in_copies(&their_lab, &krate));
        seconds(lab.isolane("template remove --all"));
        first.push(theirs, seconds(in_lanes(&lab, &krate)));
        later.push(theirs, seconds(in_lanes(&lab, &krate)));
    }
    vec![
        Figure::new(
            "100 nextest tests, -j 2: sqlx::test (without the rows) / isolane",
            later.times_faster(),
            "at least 10",
        ),
        Figure::new("the same, where isolane's template is made as well", first.times_faster(), "-"),
    ]
}

pub fn beside_pgtestdb(ground: &Ground) -> Vec<Figure> {
    beside(ground, "pgtestdb", "ISOLANE_BENCH_PGTESTDB", "at least 6")
}

pub fn beside_integresql(ground: &Ground) -> Vec<Figure> {
    beside(ground, "IntegreSQL", "ISOLANE_BENCH_INTEGRESQL", "-")
}

/// A program that runs 100 tests, two at a time, each in a database of its own as `schema.sql`
/// in its folder makes it, on the server of `DATABASE_URL`.
fn beside(ground: &Ground, name: &str, variable: &str, goal: &'static str) -> Vec<Figure> {
    let what = format!("100 tests: {name} / isolane");
    let Some(program) = std::env::var_os(variable) else {
        return vec![Figure::new(what, format!("- ({variable} names none)"), goal)];
    };
    let krate = krate();
    let (database, theirs) = (ground.database(), ground.database());
    let (lab, their_lab) = (lab_of(project(&database, "")), project(&theirs, ""));
    seconds(in_lanes(&lab, &krate));
    let pairs = Pairs::measure(5, || seconds(their_lab.program(&program)), || seconds(in_lanes(&lab, &krate)));
    vec![Figure::new(what, pairs.times_faster(), goal)]
}
