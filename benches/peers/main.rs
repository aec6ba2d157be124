//! isolane beside other ways to give tests a database of their own, in one run: the same tests
//! on the same server, in turn, as medians of the ratios of rounds, so that a machine that
//! changes its speed changes both. Everything is measured twice, with the server's files in
//! memory and on the disk.
//!
//! `cargo bench --bench peers` after `tests/run` has installed what the laboratory needs;
//! `cargo bench --bench peers -- sqlx` for one part. The peers themselves are installed into
//! `target/bench-env`. Nothing here passes or fails: it prints one table, and a reader judges.
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "it prints figures and has no readers in code"
)]

#[allow(dead_code, unused_imports, reason = "the laboratory serves the tests first")]
#[path = "../../tests/it/lab/mod.rs"]
mod lab;

mod django;
mod figure;
mod ground;
mod installed;
mod lanes;
mod nextest;
mod pytest;
mod reset;
mod start;
mod together;

use figure::{Figure, print_head, print_row};
use ground::Ground;

/// What is measured on a ground.
type Part = fn(&Ground) -> Vec<Figure>;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let parts: [(&str, Part); 12] = [
        ("pytest-postgresql", pytest::beside_pytest_postgresql),
        ("sqlx", nextest::beside_sqlx),
        ("pgtestdb", nextest::beside_pgtestdb),
        ("integresql", nextest::beside_integresql),
        ("pytest-django", django::beside_pytest_django),
        ("reset", reset::reset),
        ("ready", lanes::ready),
        ("drop", lanes::drop_of_one),
        ("growth", lanes::growth),
        ("together", together::together),
        ("start", start::start),
        ("servers", start::servers),
    ];
    let names = parts.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|word| !names.contains(&word.as_str())) {
        println!("there is no part {unknown}: {}", names.join(", "));
        std::process::exit(2);
    }
    let grounds = [Ground::memory(), Ground::disk()];
    print_head(&grounds[0]);
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            let [memory, disk] = grounds.each_ref().map(part);
            for (memory, disk) in memory.iter().zip(&disk) {
                print_row(memory, disk);
            }
        }
    }
}
