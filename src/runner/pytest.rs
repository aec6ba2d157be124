//! pytest: a plugin on `PYTHONPATH`, found as an installed one is. Where plugins must be
//! named (autoload switched off), `PYTEST_PLUGINS` names it.

use std::ffi::OsString;

use super::Shims;
use crate::address::Variables;
use crate::settings::Runner;

/// The plugin's module.
pub const PLUGIN_MODULE: &str = "isolane_pytest";

/// pytest-xdist's number of workers, from arguments and `PYTEST_ADDOPTS`.
pub fn expected_workers(arguments: &[String], variables: &Variables) -> u32 {
    let from_variable = variables.get("PYTEST_ADDOPTS").and_then(|text| shlex::split(text)).unwrap_or_default();
    let all: Vec<&str> = from_variable.iter().chain(arguments).map(String::as_str).collect();
    let mut number = None;
    let mut at = 0;
    while at < all.len() {
        let next = all.get(at + 1).copied();
        let value = match all[at] {
            "-n" | "--numprocesses" => next,
            "-p" if next == Some("no:xdist") => return 0,
            "--collect-only" | "--co" | "--pdb" => return 0,
            word => word
                .strip_prefix("--numprocesses=")
                .or_else(|| word.strip_prefix("-n").filter(|rest| !word.starts_with("--") && !rest.is_empty())),
        };
        if value.is_some() {
            number = value;
        }
        at += 1;
    }
    match number {
        Some("auto" | "logical") => {
            variables.get("PYTEST_XDIST_AUTO_NUM_WORKERS").and_then(|n| n.parse().ok()).unwrap_or_else(super::cores)
        }
        Some(number) => number.parse().unwrap_or(0),
        None => 0,
    }
}

pub fn equipment(command: &[OsString], variables: &Variables, shims: &Shims) -> Vec<(String, String)> {
    let own = |name: &str| variables.get(name).filter(|text| !text.is_empty());
    let mut equipment = Vec::new();
    // No empty element: python reads one as the current directory.
    let python_path = match own("PYTHONPATH") {
        Some(own) => format!("{}:{own}", shims.python.display()),
        None => shims.python.display().to_string(),
    };
    equipment.push(("PYTHONPATH".to_owned(), python_path));
    let says_no_autoload = |text: &str| text.contains("--disable-plugin-autoload");
    let no_autoload = own("PYTEST_DISABLE_PLUGIN_AUTOLOAD").is_some()
        || own("PYTEST_ADDOPTS").is_some_and(|text| says_no_autoload(text))
        || command.iter().any(|word| word.to_str().is_some_and(says_no_autoload));
    if no_autoload {
        let plugins = own("PYTEST_PLUGINS").map_or(PLUGIN_MODULE.to_owned(), |own| format!("{own},{PLUGIN_MODULE}"));
        equipment.push(("PYTEST_PLUGINS".to_owned(), plugins));
    }
    if is_tox(command) {
        // tox starts its commands with an environment of its own making.
        let mut passed = own("TOX_OVERRIDE").map(|own| format!("{own};")).unwrap_or_default();
        let names = ["PYTHONPATH", "ISOLANE_*", "WORKER_ID", "DATABASE_URL", "PG*"]
            .into_iter()
            .chain(no_autoload.then_some("PYTEST_PLUGINS"));
        passed.push_str(&names.map(|name| format!("testenv.pass_env+={name}")).collect::<Vec<_>>().join(";"));
        equipment.push(("TOX_OVERRIDE".to_owned(), passed));
    }
    equipment
}

fn is_tox(command: &[OsString]) -> bool {
    let words: Vec<&str> = command.iter().filter_map(|word| word.to_str()).collect();
    let position = words.iter().position(|word| super::program_name(word) == "tox");
    position.is_some() && super::recognise(command).runner == Runner::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(arguments: &str, addopts: &str) -> u32 {
        let variables = [("PYTEST_ADDOPTS", addopts), ("PYTEST_XDIST_AUTO_NUM_WORKERS", "7")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        expected_workers(&shlex::split(arguments).expect("words"), &variables)
    }

    #[test]
    fn the_number_of_workers_is_read_as_xdist_reads_it() {
        for (arguments, addopts, expected) in [
            ("-n 4 tests", "", 4),
            ("-n4", "", 4),
            ("--numprocesses=3", "", 3),
            ("--numprocesses 3", "", 3),
            ("-n auto", "", 7),
            ("", "-n 5", 5),
            ("-n 2", "-n 5", 2),
            ("-n 0", "", 0),
            ("tests", "", 0),
            ("-n 4 -p no:xdist", "", 0),
            ("--no-header -k n4", "", 0),
        ] {
            assert_eq!(workers(arguments, addopts), expected, "{arguments} / {addopts}");
        }
    }

    #[test]
    fn the_users_own_variables_are_kept_and_no_element_is_empty() {
        let shims = Shims { python: "/r/python".into(), exec: "/r/exec".into() };
        let variables = [("PYTHONPATH", "/a::/b"), ("PYTEST_PLUGINS", "mine"), ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let equipment = equipment(&["pytest".into()], &variables, &shims);
        assert_eq!(
            equipment,
            [
                ("PYTHONPATH".to_owned(), "/r/python:/a::/b".to_owned()),
                ("PYTEST_PLUGINS".to_owned(), "mine,isolane_pytest".to_owned())
            ]
        );
        let bare = super::equipment(&["tox".into()], &[("PYTHONPATH".to_owned(), String::new())].into(), &shims);
        assert_eq!(bare[0].1, "/r/python");
        assert!(bare[1].1.contains("testenv.pass_env+=ISOLANE_*"));
    }
}
