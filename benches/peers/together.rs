//! Two runs of one suite at once, on one server.

use std::process::Stdio;

use crate::figure::Figure;
use crate::ground::Ground;
use crate::lab::{Database, Lab, Program};
use crate::{nextest, pytest};

pub fn together(ground: &Ground) -> Vec<Figure> {
    let database = ground.database();
    let labs = [pytest::suite(&database), pytest::suite(&database)];
    let (failed, all) = at_once(labs.each_ref().map(pytest::in_lanes));
    let krate = nextest::krate();
    let theirs: Database = ground.database();
    let labs = [Lab::on(&theirs), Lab::on(&theirs)].map(nextest::lab_of);
    let (sqlx_failed, sqlx_all) = at_once(labs.each_ref().map(|lab| nextest::in_copies(lab, &krate)));
    vec![
        Figure::new("two runs of one suite at once, isolane: failed", format!("{failed} of {all}"), "0 of 1000"),
        Figure::new("the same with sqlx::test", format!("{sqlx_failed} of {sqlx_all}"), "-"),
    ]
}

/// How many tests failed in two programs at once, and how many there were.
fn at_once(programs: [Program; 2]) -> (u32, u32) {
    let running = programs.map(|program| {
        let mut command = program.into_command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        std::thread::spawn(move || command.output().expect("it starts"))
    });
    let mut sums = (0, 0);
    for thread in running {
        let output = thread.join().expect("it ends");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let (failed, passed) = counted(&said);
        assert!(failed + passed > 0, "{said}");
        sums = (sums.0 + failed, sums.1 + failed + passed);
    }
    sums
}

/// `3 failed, 97 passed`, in the last line that has numbers of these; an error in pytest is a
/// failure.
fn counted(said: &str) -> (u32, u32) {
    let counts = |line: &str| {
        let words: Vec<&str> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let of = |word: &str| -> u32 {
            let counts = words.windows(2).filter(|pair| pair[1].trim_end_matches('s') == word);
            counts.filter_map(|pair| pair[0].parse::<u32>().ok()).sum()
        };
        (of("failed") + of("error"), of("passed"))
    };
    said.lines().rev().map(counts).find(|(failed, passed)| failed + passed > 0).unwrap_or_default()
}
