//! How the shim gets in front of test programs: silent where it has nothing to do, in
//! front of the user's own runner, and noticed where it got lost.

use crate::lab::tools::{host_triple, runner_variable};
use crate::lab::{Lab, Server, many_tests};

const NOTE: &str = "witness::note(NAME);";
/// A user's runner: notes that it was there and does what it is for.
const USERS_RUNNER: &str = "#!/bin/sh\necho \"$@\" >>\"$SEEN/../project/runner.log\"\nUSERS_RUNNER=yes exec \"$@\"\n";

#[track_caller]
fn assert_lanes(lab: &Lab, tests: usize) {
    let seen = lab.seen();
    assert_eq!(seen.names().len(), tests, "{:?}", seen.names());
    for (_, env) in seen.iter() {
        assert!(env["DATABASE_URL"].contains(&env["ISOLANE_SCHEMA"]), "{env:#?}");
        assert!(env["WORKER_ID"].starts_with("slot"), "{env:#?}");
    }
    lab.assert_nothing_left();
}

#[test]
fn listing_tests_takes_no_lane_and_changes_no_output() {
    let lab = Lab::new();
    lab.cargo("shop", &many_tests(3, "notes", NOTE));
    let words = ["cargo", "nextest", "list", "--message-format", "json"];
    let bare = lab.program(words[0]).arg_all(&words[1..]).run().assert_code(0);
    let wrapped = lab.run("", words).run().assert_code(0).assert_does_not_say("did not report");
    assert_eq!(wrapped.out(), bare.out());
    assert_eq!(lab.value("SELECT count(*) FROM tests"), "0");
    assert_eq!(lab.value("SELECT count(*) FROM workers"), "0");

    lab.nextest("").run().assert_code(0);
    assert_eq!(lab.value("SELECT count(*) FROM tests"), "3");
}

#[test]
fn the_users_runner_in_a_file_is_called_behind_the_shim() {
    let own_target = format!("[target.{}]\nrunner = [\"./own runner.sh\"]\n", host_triple());
    for config in [own_target.as_str(), "[target.'cfg(unix)']\nrunner = \"./runner.sh\"\n"] {
        let lab = Lab::new();
        lab.cargo("shop", &many_tests(2, "notes", NOTE)).file(".cargo/config.toml", config);
        lab.script("runner.sh", USERS_RUNNER).script("own runner.sh", USERS_RUNNER);
        lab.nextest("").run().assert_code(0);
        assert_lanes(&lab, 2);
        assert_eq!(lab.seen().distinct("USERS_RUNNER"), ["yes"], "{config}");
        lab.wrap("", "cargo test -q -- --test-threads=1").run().assert_code(0);
        assert_eq!(lab.seen().distinct("USERS_RUNNER"), ["yes"], "{config}");
        assert!(lab.read("runner.log").contains("--exact"));
    }
}

#[test]
fn the_users_runner_in_the_environment_is_called_behind_the_shim() {
    let lab = Lab::new();
    lab.cargo("shop", &many_tests(2, "notes", NOTE)).script("runner.sh", USERS_RUNNER);
    let runner = format!("{} ", lab.path("runner.sh").display());
    lab.nextest("").env(&runner_variable(), format!("{runner} env EXTRA=1")).run().assert_code(0);
    assert_lanes(&lab, 2);
    assert_eq!(lab.seen().distinct("USERS_RUNNER"), ["yes"]);
    assert_eq!(lab.seen().distinct("EXTRA"), ["1"]);
}

#[test]
fn a_runner_on_the_command_line_that_pushes_the_shim_out_is_noticed() {
    let lab = Lab::new();
    lab.cargo("shop", &many_tests(2, "passes", "")).script("runner.sh", USERS_RUNNER);
    let config = format!("target.{}.runner=[\"{}\"]", host_triple(), lab.path("runner.sh").display());
    for command in ["cargo nextest run --config", "cargo nextest run -j 2 --config"] {
        let outcome = lab.wrap("", command).arg(&config).run().assert_code(0).assert_says("did not report");
        assert!(outcome.said().len() <= 10, "{}", outcome.all());
    }
    lab.assert_nothing_left();
}

#[test]
fn a_wrapper_script_that_pushes_the_shim_out_is_noticed() {
    let lab = Lab::new();
    lab.cargo("shop", &(many_tests(2, "notes", NOTE) + "#[test] fn wrapped() {}"));
    lab.script("wrapper.sh", "#!/bin/sh\nexec \"$@\"\n");
    let config = "experimental = [\"wrapper-scripts\"]\n[scripts.wrapper.mine]\ncommand = \"./wrapper.sh\"\n\
         [[profile.default.scripts]]\nfilter = \"test(wrapped)\"\nrun-wrapper = \"mine\"\n";
    lab.file(".config/nextest.toml", config);
    lab.nextest("").run().assert_code(0).assert_says("did not report");
    assert_lanes(&lab, 2);

    let inside =
        config.replace("command = \"./wrapper.sh\"", "command = \"./wrapper.sh\"\ntarget-runner = \"within-wrapper\"");
    lab.file(".config/nextest.toml", &inside);
    lab.nextest("").run().assert_code(0).assert_does_not_say("did not report");
}

#[test]
fn a_temporary_folder_with_a_space_in_its_name_does_no_harm() {
    let lab = Lab::new();
    lab.cargo("shop", &many_tests(2, "notes", NOTE));
    let folder = lab.path("my tmp");
    std::fs::create_dir(&folder).expect("a new folder");
    lab.nextest("").env("TMPDIR", &folder).run().assert_code(0);
    assert_lanes(&lab, 2);
    assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);
    lab.file("test_one.py", "def test_one(): pass");
    lab.pytest("-n 2").env("TMPDIR", &folder).run().assert_code(0).assert_says("1 passed");
}

#[test]
fn a_database_that_cargo_forces_on_everybody_is_the_lanes_all_the_same() {
    let lab = Lab::new().with("DATABASE_URL", "sqlite:///shop.db");
    lab.cargo("shop", &many_tests(2, "notes", NOTE));
    let forced = "DATABASE_URL = { value = \"sqlite:////nowhere/shared.db\", force = true }";
    lab.file(".cargo/config.toml", &format!("[env]\n{forced}\nOTHER = {{ value = \"kept\", force = true }}\n"));
    lab.nextest("").run().assert_code(0);
    assert_lanes(&lab, 2);
    assert_eq!(lab.seen().distinct("OTHER"), ["kept"]);
}

#[test]
fn the_build_sees_the_users_own_database_and_is_not_done_again() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    let test = "#[test] fn compiled() {
        witness::note(\"compiled\");
        assert_eq!(option_env!(\"DATABASE_URL\"), Some(env!(\"BUILT_WITH\")));
        std::fs::write(format!(\"{}/../project/base\", std::env::var(\"SEEN\").unwrap()), env!(\"DATABASE_URL\")).unwrap();
    }";
    lab.cargo("shop", test);
    lab.file(
        "build.rs",
        "fn main() {
            println!(\"cargo::rerun-if-env-changed=DATABASE_URL\");
            println!(\"cargo::rustc-env=BUILT_WITH={}\", std::env::var(\"DATABASE_URL\").unwrap());
            use std::io::Write;
            let mut log = std::fs::File::options().append(true).create(true).open(\"builds.log\").unwrap();
            writeln!(log, \"built\").unwrap();
        }",
    );
    lab.program("cargo").arg_all(["nextest", "run"]).run().assert_code(0);
    lab.nextest("").run().assert_code(0);
    lab.nextest("").run().assert_code(0);
    assert_eq!(lab.read("base"), database.url());
    assert_eq!(lab.read("builds.log").lines().count(), 1, "one build for all three runs");
    assert_lanes(&lab, 1);
    database.assert_nothing_left(&lab);
}
