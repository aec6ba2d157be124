//! Where the programs are that `tests/run` installs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder that `tests/run` fills: beside the profile folder that holds the program.
pub fn test_env() -> PathBuf {
    let found = std::env::var_os("ISOLANE_TEST_ENV").map_or_else(
        || {
            let program = Path::new(env!("CARGO_BIN_EXE_isolane"));
            program.ancestors().nth(2).expect("a target folder").join("test-env")
        },
        PathBuf::from,
    );
    assert!(found.is_dir(), "{} is missing: run tests/run, which makes it", found.display());
    found
}

/// The programs of one of the Python environments.
pub fn python_bin(environment: &str) -> PathBuf {
    installed(test_env().join(environment).join("bin"))
}

/// The programs of a PostgreSQL server: the system's newest, or another major version.
pub fn postgres_bin(version: Option<u32>) -> PathBuf {
    static SYSTEM: OnceLock<PathBuf> = OnceLock::new();
    match version {
        Some(version) => installed(test_env().join(format!("postgresql-{version}/native/bin"))),
        None => SYSTEM.get_or_init(newest_system_postgres).clone(),
    }
}

fn newest_system_postgres() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    versions.sort();
    if let Some((_, bin)) = versions.pop() {
        return bin;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|bin| bin.join("initdb").exists());
    found.expect("no PostgreSQL server on this machine: run tests/run, which installs one")
}

/// The programs of the Rust toolchain itself, not rustup's stand-ins, which look for
/// their settings in the home folder.
pub fn rust_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| PathBuf::from(rustc(&["--print", "sysroot"]).trim()).join("bin"))
}

/// The triple this machine builds for, `x86_64-unknown-linux-gnu`.
pub fn host_triple() -> &'static str {
    static TRIPLE: OnceLock<String> = OnceLock::new();
    TRIPLE.get_or_init(|| {
        let version = rustc(&["-vV"]);
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        host.expect("rustc names its host").to_owned()
    })
}

/// The browser.
pub fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).chain(["/usr/bin".into()]).collect();
    let programs = ["chromium", "chromium-browser", "google-chrome"];
    let found = programs.iter().flat_map(|name| folders.iter().map(move |bin| bin.join(name))).find(|p| p.is_file());
    found.expect("Chromium is missing: run tests/run, which installs it")
}

/// The variable in which cargo looks for a runner of test programs.
pub fn runner_variable() -> String {
    format!("CARGO_TARGET_{}_RUNNER", host_triple().to_uppercase().replace('-', "_"))
}

/// Where cargo keeps what it has downloaded.
pub fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home folder")).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// The folder of `cargo-nextest`.
pub fn nextest_bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([cargo_home().join("bin")]);
        let found = folders.into_iter().find(|bin| bin.join("cargo-nextest").exists());
        found.expect("cargo-nextest is missing: run tests/run, which installs it")
    })
}

fn rustc(args: &[&str]) -> String {
    let output = Command::new("rustc").args(args).output().expect("rustc is on the PATH");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn installed(folder: PathBuf) -> PathBuf {
    assert!(folder.is_dir(), "{} is missing: run tests/run, which makes it", folder.display());
    folder
}
