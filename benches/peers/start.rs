//! How long a run takes to its first test: with a template that is kept, and with a server for
//! each lane.

use std::path::Path;
use std::time::SystemTime;

use crate::figure::{Figure, median, rounds, shown};
use crate::ground::{Ground, kept, project};
use crate::lab::{Lab, Program};

/// Says when it began.
const CLOCK: [&str; 3] = ["sh", "-c", "date +%s.%N"];

pub fn start(ground: &Ground) -> Vec<Figure> {
    let database = ground.database();
    let lab = project(&database, "");
    for _ in 0..2 {
        after(kept(&lab, "", &CLOCK));
    }
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds(15) {
        ours.push(after(kept(&lab, "", &CLOCK)));
        bare.push(after(lab.program(CLOCK[0]).arg_all(&CLOCK[1..])));
    }
    let found = format!("{} ({} bare)", shown(median(ours)), shown(median(bare)));
    vec![Figure::new("from the start of a run to its command, template kept", found, "at most 30 ms")]
}

/// Servers that have a copy of the database each.
pub fn servers(ground: &Ground) -> Vec<Figure> {
    let database = ground.seeded();
    let files = tempfile::Builder::new().prefix("isolane-bench-").tempdir_in(ground.folder).expect("a folder");
    // Where isolane is root, its servers are somebody else's.
    open(files.path());
    let cache = files.path().join("cache");
    let lab = Lab::on(&database).with("TMPDIR", files.path()).with("XDG_CACHE_HOME", &cache);
    let run = |options: &str| after(lab.run(&format!("--quiet --isolation server {options}"), CLOCK));
    let (mut first, mut eight, mut one) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds(5) {
        let _ = std::fs::remove_dir_all(&cache);
        first.push(run("-n 8"));
        // What reading the database has written into the server's log makes it look changed, once.
        run("-n 1");
        one.push(run("-n 1"));
        eight.push(run("-n 8"));
    }
    vec![
        Figure::new("8 servers ready, of a cluster that is kept", shown(median(eight)), "at most 2.5 s"),
        Figure::new("8 servers ready, nothing kept", shown(median(first)), "-"),
        Figure::new("1 server ready, of a cluster that is kept", shown(median(one)), "at most 400 ms"),
    ]
}

fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("our own folder");
}

/// How long after its start the last of a program's copies said what time it is.
fn after(program: Program) -> f64 {
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let said = program.run().assert_code(0).out();
    let times = said.lines().map(|line| line.rsplit(' ').next().and_then(|word| word.parse::<f64>().ok()));
    times.map(|time| time.expect("a time")).fold(0.0, f64::max) - began
}
