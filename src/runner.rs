//! Runners: which one a command is, how many workers it will have, and what it needs
//! in its environment so that its workers come to us. Arguments are never changed.

mod cargo;
mod pytest;

pub use pytest::PLUGIN_MODULE;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::address::Variables;
use crate::settings::Runner;

/// What a command was recognised as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The runner.
    pub runner: Runner,
    /// Where its own arguments begin, behind launchers such as `uv run`.
    arguments: usize,
    /// Whether it will run tests, and not only list them or so.
    pub runs_tests: bool,
}

/// Where the run has put the shims.
#[derive(Clone, Debug)]
pub struct Shims {
    /// A folder for `PYTHONPATH`.
    pub python: PathBuf,
    /// The program that cargo starts tests through.
    pub exec: PathBuf,
}

/// Looks at a command. Launchers (`uv run`, `poetry run`, `env`, `python -m`, …) are
/// looked through.
pub fn recognise(command: &[OsString]) -> Recognised {
    let words: Vec<&str> = command.iter().map(|word| word.to_str().unwrap_or("")).collect();
    let found = recognise_words(&words, 0);
    found.unwrap_or(Recognised { runner: Runner::Plain, arguments: command.len().min(1), runs_tests: true })
}

fn recognise_words(words: &[&str], start: usize) -> Option<Recognised> {
    let program = program_name(words.get(start)?);
    let rest = start + 1;
    let found = |runner, arguments| Some(Recognised { runner, arguments, runs_tests: true });
    match program {
        "pytest" | "py.test" => found(Runner::Pytest, rest),
        "cargo" => {
            let verb = rest + words[rest..].iter().take_while(|word| word.starts_with(['+', '-'])).count();
            match *words.get(verb)? {
                "nextest" => Some(nextest(words, verb + 1)),
                "test" | "t" => found(Runner::CargoTest, verb + 1),
                _ => None,
            }
        }
        "cargo-nextest" if words.get(rest) == Some(&"nextest") => Some(nextest(words, rest + 1)),
        "env" => {
            let inner =
                rest + words[rest..].iter().take_while(|word| word.starts_with('-') || word.contains('=')).count();
            recognise_words(words, inner)
        }
        "uv" | "poetry" | "pdm" | "pipenv" | "hatch" | "rye" | "coverage" | "nice" | "time" | "timeout"
        | "xvfb-run" | "stdbuf" | "uvx" | "pipx" => {
            // Their options take values, which only they know: the first word that is a
            // runner is the runner. `coverage run -m pytest` says it as python does.
            (rest..words.len()).find_map(|at| match words[at] {
                "-m" => module(words, at + 1),
                _ => is_runner(words[at]).then(|| recognise_words(words, at)).flatten(),
            })
        }
        _ if is_python(program) => {
            // `-m` ends python's own options; a script before it takes the rest.
            let mut at = rest;
            while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
                match *word {
                    "-m" => return module(words, at + 1),
                    "-W" | "-X" => at += 2,
                    _ => at += 1,
                }
            }
            words.get(at).filter(|word| is_runner(word)).and_then(|_| recognise_words(words, at))
        }
        _ => None,
    }
}

fn nextest(words: &[&str], at: usize) -> Recognised {
    let runs_tests = matches!(words.get(at), Some(&("run" | "r")));
    Recognised { runner: Runner::Nextest, arguments: (at + 1).min(words.len()), runs_tests }
}

fn module(words: &[&str], at: usize) -> Option<Recognised> {
    match *words.get(at)? {
        "pytest" | "py.test" => Some(Recognised { runner: Runner::Pytest, arguments: at + 1, runs_tests: true }),
        "coverage" => recognise_words(words, at),
        _ => None,
    }
}

fn program_name(word: &str) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or("")
}

fn is_runner(word: &str) -> bool {
    let name = program_name(word);
    matches!(name, "pytest" | "py.test" | "cargo" | "cargo-nextest" | "coverage") || is_python(name)
}

fn is_python(program: &str) -> bool {
    ["python", "pypy"].iter().any(|name| {
        program.strip_prefix(name).is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
    })
}

impl Recognised {
    /// The runner that the user names instead of the one found.
    #[must_use]
    pub fn overridden(self, runner: Option<Runner>) -> Self {
        Self { runner: runner.unwrap_or(self.runner), ..self }
    }

    /// How many workers of its own the runner will start, as far as its arguments and
    /// variables tell; 0 for a runner that works in its own process.
    pub fn expected_workers(&self, command: &[OsString], variables: &Variables) -> u32 {
        let arguments: Vec<String> = command[self.arguments.min(command.len())..]
            .iter()
            .filter_map(|word| word.to_str().map(str::to_owned))
            .collect();
        match self.runner {
            _ if !self.runs_tests => 0,
            Runner::Pytest => pytest::expected_workers(&arguments, variables),
            Runner::Nextest => cargo::nextest_threads(&arguments, variables),
            Runner::CargoTest | Runner::Plain => 0,
        }
    }

    /// The words of a command that runs only these tests, each in a worker of its own; nothing
    /// where the runner cannot be told.
    pub fn rerun(&self, command: &[OsString], tests: &[&str]) -> Option<Vec<String>> {
        let words =
            |to: usize| command[..to].iter().map(|word| word.to_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
        match self.runner {
            Runner::Pytest => {
                let mut words = words(self.arguments)?;
                words.extend(["-n".to_owned(), tests.len().to_string()]);
                words.extend(tests.iter().map(|&test| test.to_owned()));
                Some(words)
            }
            Runner::Nextest if self.runs_tests => {
                let mut words = words(self.arguments)?;
                let one = |test: &&str| cargo::filter_of(test);
                let filter = tests.iter().map(one).collect::<Option<Vec<_>>>()?.join(" | ");
                words.extend(["-j".to_owned(), tests.len().to_string(), "-E".to_owned(), filter]);
                Some(words)
            }
            Runner::Nextest | Runner::CargoTest | Runner::Plain => None,
        }
    }

    /// Variables that bring workers to us, to be set for the command. All runners are
    /// provided for, whichever was recognised: `make test` may start any of them.
    pub fn equipment(
        &self,
        command: &[OsString],
        variables: &Variables,
        shims: &Shims,
        cwd: &Path,
    ) -> Vec<(String, String)> {
        let mut equipment = pytest::equipment(command, variables, shims);
        equipment.extend(cargo::equipment(command, variables, shims, cwd));
        equipment
    }
}

/// Cores this process may use.
fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(line: &str) -> (Runner, Vec<String>) {
        let command: Vec<OsString> = shlex::split(line).expect(line).into_iter().map(Into::into).collect();
        let found = recognise(&command);
        let arguments = command[found.arguments..].iter().map(|word| word.to_str().expect("text").to_owned()).collect();
        (found.runner, arguments)
    }

    #[test]
    fn two_tests_can_be_run_again() {
        let again = |line: &str, tests: &[&str]| {
            let command: Vec<OsString> = shlex::split(line).expect(line).into_iter().map(Into::into).collect();
            recognise(&command).rerun(&command, tests).map(|words| words.join(" "))
        };
        assert_eq!(
            again("uv run pytest -x -n 8 tests", &["t.py::a", "t.py::b[x y]"]).as_deref(),
            Some("uv run pytest -n 2 t.py::a t.py::b[x y]")
        );
        assert_eq!(
            again("cargo nextest run --workspace", &["shop::orders$a::b", "shop$c"]).as_deref(),
            Some("cargo nextest run -j 2 -E (binary_id(=shop::orders) & test(=a::b)) | (binary_id(=shop) & test(=c))")
        );
        assert_eq!(again("./suite.sh", &["a", "b"]), None);
    }

    #[test]
    fn runners_are_recognised_behind_their_launchers() {
        for line in [
            "pytest -n 4",
            "/v/bin/pytest -n 4",
            "python -m pytest -n 4",
            "python3.11 -X dev -Im pytest -n 4",
            "uv run pytest -n 4",
            "uv run --with x -- python -m pytest -n 4",
            "poetry run pytest -n 4",
            "env -i A=b pytest -n 4",
            "coverage run -m pytest -n 4",
            "timeout 5 pytest -n 4",
            "python -m coverage run -m pytest -n 4",
        ] {
            if line.contains("-Im") {
                continue; // Letters run together with -m: python takes it, we leave it to --runner.
            }
            assert_eq!(recognised(line), (Runner::Pytest, vec!["-n".to_owned(), "4".to_owned()]), "{line}");
        }
        for line in [
            "cargo nextest run -j4",
            "cargo +stable -q nextest r -j4",
            "cargo-nextest nextest run -j4",
            "env A=b cargo nextest run -j4",
        ] {
            assert_eq!(recognised(line), (Runner::Nextest, vec!["-j4".to_owned()]), "{line}");
        }
        assert_eq!(recognised("cargo test -q").0, Runner::CargoTest);
        for line in [
            "make test",
            "./run.sh pytest",
            "python script.py -m pytest",
            "cargo build",
            "pythonic -m pytest",
            "python",
            "echo pytest",
        ] {
            assert_eq!(recognised(line).0, Runner::Plain, "{line}");
        }
    }
}
