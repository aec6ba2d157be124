//! cargo: tests are started through the exec shim, which cargo calls a target runner
//! (The Cargo Book, `target.<triple>.runner`). A runner of the user's own is chained.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::Shims;
use crate::address::Variables;
use crate::os::process;

/// Separates the words of the user's own runner in `ISOLANE_INNER_RUNNER`; no path or
/// argument has it (ASCII's unit separator).
const SEPARATOR: &str = "\u{1f}";

/// nextest's number of tests at once.
pub fn nextest_threads(arguments: &[String], variables: &Variables) -> u32 {
    let mut number = variables.get("NEXTEST_TEST_THREADS").map(String::as_str);
    for (at, word) in arguments.iter().enumerate() {
        if word == "--" {
            break;
        }
        let value = match word.as_str() {
            "-j" | "--test-threads" | "--jobs" => arguments.get(at + 1).map(String::as_str),
            word => word
                .strip_prefix("--test-threads=")
                .or_else(|| word.strip_prefix("--jobs="))
                .or_else(|| word.strip_prefix("-j").filter(|rest| !rest.is_empty())),
        };
        number = value.map(|value| value.trim_start_matches('=')).or(number);
    }
    match number.map(str::parse::<i64>) {
        Some(Ok(n)) if n > 0 => u32::try_from(n).unwrap_or(1),
        // A negative number counts from the cores down.
        Some(Ok(n)) if n < 0 => u32::try_from(i64::from(super::cores()) + n).unwrap_or(1).max(1),
        _ => super::cores(),
    }
}

pub fn equipment(command: &[OsString], variables: &Variables, shims: &Shims, cwd: &Path) -> Vec<(String, String)> {
    let words: Vec<&str> = command.iter().filter_map(|word| word.to_str()).collect();
    let mut triples = vec![host().to_owned()];
    // A host may run either C library's programs, and cargo may be of either.
    triples.extend(
        ["gnu", "musl"]
            .into_iter()
            .filter_map(|libc| host().rsplit_once('-').map(|(head, _)| format!("{head}-{libc}"))),
    );
    triples.extend(variables.get("CARGO_BUILD_TARGET").cloned());
    for (at, word) in words.iter().enumerate() {
        let target = if *word == "--target" { words.get(at + 1).copied() } else { word.strip_prefix("--target=") };
        triples.extend(target.map(str::to_owned));
    }
    triples.sort();
    triples.dedup();
    let mut equipment = Vec::new();
    let mut inner = None;
    for triple in triples.iter().filter(|triple| triple.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
    {
        let name = format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace(['-', '.'], "_"));
        if let Some(own) = variables.get(&name).filter(|own| !own.is_empty()) {
            inner = Some(own.split_whitespace().map(str::to_owned).collect());
        }
        equipment.push((name, shims.exec.display().to_string()));
    }
    let inner = inner.or_else(|| configured_runner(&triples, variables, cwd));
    equipment.extend(inner.map(|words: Vec<String>| ("ISOLANE_INNER_RUNNER".to_owned(), words.join(SEPARATOR))));
    equipment
}

/// The triple that isolane was built for, which is the host's but for the C library.
fn host() -> &'static str {
    env!("ISOLANE_TARGET")
}

/// The runner from cargo's configuration files. cargo is asked only where one of them
/// mentions a runner: the question costs as much as all of isolane's start.
fn configured_runner(triples: &[String], variables: &Variables, cwd: &Path) -> Option<Vec<String>> {
    let home = variables
        .get("CARGO_HOME")
        .map(Into::into)
        .or_else(|| variables.get("HOME").map(|home| Path::new(home).join(".cargo")));
    let folders = cwd.ancestors().map(|folder| folder.join(".cargo")).chain(home);
    let mut files = folders.flat_map(|folder| ["config.toml", "config"].map(|name| folder.join(name)));
    files.find(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains("runner")))?;
    let output = process::command("cargo")
        .args(["-Z", "unstable-options", "config", "get", "target", "--format", "json"])
        // The subcommand is not stable yet, and is there all the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(cwd)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let config: Value = serde_json::from_slice(&output.stdout).ok()?;
    pick_runner(config.get("target")?, triples)
}

/// The exact triple wins over `cfg()`, as in cargo.
fn pick_runner(targets: &Value, triples: &[String]) -> Option<Vec<String>> {
    let exact = triples.iter().find_map(|triple| words_of(targets.get(triple)?.get("runner")?));
    exact.or_else(|| {
        let cfgs = host_cfgs()?;
        targets.as_object()?.iter().find_map(|(key, table)| {
            let platform: cargo_platform::Platform = key.parse().ok().filter(|_| key.starts_with("cfg("))?;
            platform.matches(host(), &cfgs).then(|| words_of(table.get("runner")?)).flatten()
        })
    })
}

fn host_cfgs() -> Option<Vec<cargo_platform::Cfg>> {
    let output =
        process::command("rustc").args(["--print", "cfg"]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// A runner is a text that cargo splits at spaces, or a list.
fn words_of(runner: &Value) -> Option<Vec<String>> {
    match runner {
        Value::String(text) => Some(text.split_whitespace().map(str::to_owned).collect()),
        Value::Array(words) => words.iter().map(|word| word.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// nextest's filter for a test as the exec shim calls it: `binary$test`.
pub fn filter_of(test: &str) -> Option<String> {
    let (binary, name) = test.split_once('$')?;
    let binary = binary.split_once("@stress-").map_or(binary, |(binary, _)| binary);
    Some(format!("(binary_id(={binary}) & test(={name}))"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn threads_are_read_as_nextest_reads_them() {
        let threads = |line: &str, variable: Option<&str>| {
            let variables = variable.map(|v| ("NEXTEST_TEST_THREADS".to_owned(), v.to_owned())).into_iter().collect();
            nextest_threads(&shlex::split(line).expect("words"), &variables)
        };
        assert_eq!(threads("-j4", None), 4);
        assert_eq!(threads("-j 3", Some("9")), 3);
        assert_eq!(threads("--test-threads=5 -- -j9", None), 5);
        assert_eq!(threads("", Some("6")), 6);
        assert_eq!(threads("-j num-cpus", None), super::super::cores());
        assert!(threads("-j -100", None) == 1);
    }

    #[test]
    fn the_exact_runner_wins_over_one_for_a_cfg() {
        let triples = [host().to_owned()];
        let exact = json!({"cfg(unix)": {"runner": "a b"}, host(): {"runner": ["c d", "e"]}});
        assert_eq!(pick_runner(&exact, &triples), Some(vec!["c d".to_owned(), "e".to_owned()]));
        let by_cfg = json!({"cfg(windows)": {"runner": "w"}, "cfg(unix)": {"runner": "a b"}});
        assert_eq!(pick_runner(&by_cfg, &triples), Some(vec!["a".to_owned(), "b".to_owned()]));
    }
}
