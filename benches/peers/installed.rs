//! The peers, in a folder beside what cargo builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::Lab;

fn folder() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_isolane"));
    program.ancestors().nth(2).expect("a target folder").join("bench-env")
}

#[track_caller]
fn done(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}\n{}\n{}", said(&output.stdout), said(&output.stderr));
}

/// The programs of a Python environment with these packages.
pub fn python(name: &str, packages: &[&str]) -> PathBuf {
    let place = folder().join(name);
    let stamp = place.join("made-from");
    let words = packages.join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == words) {
        return place.join("bin");
    }
    eprintln!("making the Python environment {}", place.display());
    let _ = fs::remove_dir_all(&place);
    done(Command::new("python3").args(["-m", "venv"]).arg(&place));
    let mut pip = Command::new(place.join("bin/python"));
    done(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages));
    fs::write(&stamp, words).expect("our own folder");
    place.join("bin")
}

/// A cargo project with these files, built; it stays from bench to bench, because its
/// dependencies take minutes.
pub fn cargo(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let place = folder().join(name);
    for (path, text) in files {
        let path = place.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("our own folder");
        // What is written again is built again.
        if fs::read_to_string(&path).ok().as_deref() != Some(*text) {
            fs::write(&path, text).expect("our own folder");
        }
    }
    eprintln!("building {}", place.display());
    let lab = Lab::new().with("CARGO_HOME", cargo_home());
    let mut build = lab.program("cargo").arg_all(["test", "--no-run", "--quiet"]).within(&place).into_command();
    done(&mut build);
    place
}

/// Where cargo keeps what it fetched, and how it is told to fetch.
pub fn cargo_home() -> PathBuf {
    let own = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(own, PathBuf::from)
}
