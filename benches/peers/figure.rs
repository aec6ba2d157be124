//! A row of the table, and what goes into it.

use std::process::Stdio;
use std::time::Instant;

use crate::ground::Ground;
use crate::lab::Program;

/// What was measured on one ground.
pub struct Figure {
    pub what: String,
    /// The ratio first, where there is one.
    pub found: String,
    pub goal: &'static str,
}

impl Figure {
    pub fn new(what: impl Into<String>, found: impl Into<String>, goal: &'static str) -> Self {
        Self { what: what.into(), found: found.into(), goal }
    }
}

/// Rounds in which two take turns, as seconds of each.
#[derive(Default)]
pub struct Pairs(Vec<(f64, f64)>);

impl Pairs {
    /// Lets both be measured `rounds` times, each of them first in every other round.
    pub fn measure(rounds: u32, mut theirs: impl FnMut() -> f64, mut ours: impl FnMut() -> f64) -> Self {
        let mut round = |n| {
            if n % 2 == 0 {
                return (theirs(), ours());
            }
            let ours = ours();
            (theirs(), ours)
        };
        Self((0..self::rounds(rounds)).map(&mut round).collect())
    }

    pub fn push(&mut self, theirs: f64, ours: f64) {
        self.0.push((theirs, ours));
    }

    /// How many times as long theirs took, and how long each.
    pub fn times_faster(&self) -> String {
        let ratio = median(self.0.iter().map(|(theirs, ours)| theirs / ours));
        format!("{ratio:.1} x ({} / {})", shown(self.theirs()), shown(self.ours()))
    }

    /// How many times as long ours took.
    pub fn cost(&self) -> String {
        let ratio = median(self.0.iter().map(|(theirs, ours)| ours / theirs));
        format!("{ratio:.3} x ({} / {})", shown(self.ours()), shown(self.theirs()))
    }

    fn theirs(&self) -> f64 {
        median(self.0.iter().map(|(theirs, _)| *theirs))
    }

    fn ours(&self) -> f64 {
        median(self.0.iter().map(|(_, ours)| *ours))
    }
}

/// Seconds in the unit that suits them.
pub fn shown(seconds: f64) -> String {
    match seconds {
        10.0.. => format!("{seconds:.1} s"),
        1.0.. => format!("{seconds:.2} s"),
        0.1.. => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{:.1} ms", seconds * 1e3),
    }
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value that this part of all is below.
pub fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a part of a small length")]
    let at = (values.len() as f64 * part) as usize;
    values[at.min(values.len() - 1)]
}

pub fn wall(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// Seconds of a program from its start to its end, which must be a success. It may take as long
/// as it does.
#[track_caller]
pub fn seconds(program: Program) -> f64 {
    let mut command = program.into_command();
    command.stdin(Stdio::null());
    let began = Instant::now();
    let output = command.output().expect("it starts");
    let took = began.elapsed().as_secs_f64();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}\n{}", said(&output.stdout), said(&output.stderr));
    took
}

/// How many rounds are made: as many as this, or as `ISOLANE_BENCH_ROUNDS` says if that is less,
/// for a quick look.
pub fn rounds(most: u32) -> u32 {
    let asked = std::env::var("ISOLANE_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(most).clamp(1, most)
}

pub fn print_head(ground: &Ground) {
    println!("{} with 60 tables and 60,000 rows; times in parentheses\n", ground.version());
    println!("{:<68} {:<36} {:<36} goal", "", "files in memory", "files on the disk");
}

pub fn print_row(memory: &Figure, disk: &Figure) {
    println!("{:<68} {:<36} {:<36} {}", memory.what, memory.found, disk.found, memory.goal);
}
