//! Tests of a crate under nextest and cargo test: what the ledger learns, retries,
//! time limits, stress, and processes that die.

use crate::lab::{Lab, is_alive, many_tests, no_rows};

#[test]
fn the_ledger_has_every_test_with_its_outcome_and_slot() {
    let lab = Lab::new();
    let tests = "#[test] fn buys() {} #[test] fn sells() { panic!(\"sold out\") }
        #[test] #[ignore] fn waits() {} mod deep { #[test] fn digs() {} }
        #[test] fn aborts() { std::process::abort() }";
    lab.cargo("shop", tests);
    lab.file("tests/front.rs", "#[test] fn opens() {}");
    lab.nextest("-j 2").run().assert_code(100).assert_says("5 tests");
    let tests = lab.ledger("SELECT test_id, outcome, attempt FROM tests ORDER BY test_id");
    let tests: Vec<_> = tests.iter().map(|row| row.join(" ")).collect();
    assert_eq!(
        tests,
        [
            "shop$tests::aborts crashed 1",
            "shop$tests::buys passed 1",
            "shop$tests::deep::digs passed 1",
            "shop$tests::sells failed 1",
            "shop::front$opens passed 1",
        ]
    );
    let workers = lab.column("SELECT DISTINCT worker_id FROM workers ORDER BY 1");
    assert!(
        !workers.is_empty() && workers.iter().all(|name| ["slot0", "slot1"].contains(&name.as_str())),
        "{workers:?}"
    );
    assert_eq!(lab.ledger("SELECT * FROM tests WHERE ended_at IS NULL"), no_rows());
    lab.assert_nothing_left();
}

#[test]
fn a_filter_and_the_number_of_threads_stay_nextests_own() {
    let lab = Lab::new();
    let note = "witness::note(NAME);";
    lab.cargo("shop", &many_tests(12, "notes", note));
    lab.wrap("", "cargo nextest r -j 1 -E test(notes_1)").run().assert_code(0);
    let seen = lab.seen();
    assert_eq!(seen.names(), ["notes_1", "notes_10", "notes_11"]);
    assert_eq!(seen.distinct("WORKER_ID"), ["slot0"]);
    assert_eq!(seen.distinct("ISOLANE_LANE"), ["0"]);
    lab.wrap("", "cargo nextest run -E test(no_such_test)").run().assert_code(4);
    lab.assert_nothing_left();
}

#[test]
fn attempts_of_a_test_that_is_tried_again_are_told_apart() {
    let lab = Lab::new();
    let flaky = "#[test] fn flaky() {
        let file = format!(\"{}/counter\", std::env::var(\"SEEN\").unwrap());
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, format!(\"{before}x\")).unwrap();
        witness::note(&format!(\"attempt{}\", before.len() + 1));
        assert_eq!(before, \"xx\");
    }";
    lab.cargo("shop", flaky);
    lab.nextest("--retries 3 --flaky-result pass").run().assert_code(0);
    let attempts = lab.ledger("SELECT test_id, attempt, outcome FROM tests ORDER BY attempt");
    let id = "shop$tests::flaky";
    assert_eq!(attempts, [[id, "1", "failed"], [id, "2", "failed"], [id, "3", "passed"]]);
    assert_eq!(lab.seen().only("attempt").distinct("WORKER_ID"), ["slot0"]);
    lab.assert_nothing_left();
}

#[test]
fn every_round_of_a_stress_run_is_a_test() {
    let lab = Lab::new();
    lab.cargo("shop", "#[test] fn again() {}");
    lab.nextest("--stress-count 3").run().assert_code(0);
    let rounds = lab.ledger("SELECT test_id, outcome FROM tests");
    assert_eq!(rounds.len(), 3, "{rounds:?}");
    assert!(rounds.iter().all(|row| row[0].contains("tests::again") && row[1] == "passed"), "{rounds:?}");
    lab.assert_nothing_left();
}

#[test]
fn a_test_that_takes_too_long_keeps_its_lane_from_nobody() {
    let lab = Lab::new();
    lab.file(
        ".config/nextest.toml",
        "[profile.default]\nslow-timeout = { period = \"1s\", terminate-after = 1, grace-period = \"0s\" }\n",
    );
    // The child leaves the group of its test, which is what nextest kills.
    let slow = "#[test] fn a_slow() {
        witness::note(\"slow\");
        let script = \"echo $$ >$SEEN/../project/grandchild; exec sleep 600\";
        std::process::Command::new(\"setsid\").args([\"sh\", \"-c\", script]).spawn().unwrap();
        loop { std::thread::park() }
    }
    #[test] fn b_next() { witness::note(\"next\"); }";
    lab.cargo("shop", slow);
    lab.nextest("-j 1").run().assert_code(100);
    let seen = lab.seen();
    assert_eq!(seen.get("next", "WORKER_ID"), "slot0", "the slot is used again");
    let outcomes = lab.ledger("SELECT test_id, outcome FROM tests ORDER BY 1");
    assert_eq!(outcomes[0][0], "shop$tests::a_slow");
    assert!(["failed", "crashed"].contains(&outcomes[0][1].as_str()), "{outcomes:?}");
    assert_eq!(outcomes[1], ["shop$tests::b_next", "passed"]);
    let grandchild = lab.read("grandchild").trim().parse().expect("a pid");
    assert!(!is_alive(grandchild), "{grandchild} lives on");
    lab.assert_nothing_left();
}

#[test]
fn a_lane_is_given_to_one_test_at_a_time() {
    let lab = Lab::new();
    // Creating the file anew fails while another test has it.
    let body = "let held = format!(\"{}/held-{}\", std::env::var(\"SEEN\").unwrap(), std::env::var(\"ISOLANE_LANE\").unwrap());
        std::fs::OpenOptions::new().write(true).create_new(true).open(&held).expect(\"alone in the lane\");
        witness::note(NAME);
        std::fs::remove_file(held).unwrap();";
    lab.cargo("shop", &many_tests(40, "alone", body));
    lab.nextest("-j 4").run().assert_code(0);
    let seen = lab.seen().only("alone");
    assert_eq!(seen.names().len(), 40);
    assert!(seen.distinct("ISOLANE_LANE").iter().all(|lane| ["0", "1", "2", "3"].contains(lane)), "dense lanes");
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE outcome = 'passed'"), "40");
    lab.assert_nothing_left();
}

#[test]
fn tests_do_not_outlive_a_killed_nextest() {
    let lab = Lab::new();
    let tests = "#[test] fn kills() {
        witness::note(\"kills\"); witness::meet(2);
        let nextest = std::os::unix::process::parent_id().to_string();
        std::process::Command::new(\"kill\").args([\"-9\", &nextest]).status().unwrap();
        loop { std::thread::park() }
    }
    #[test] fn hangs() { witness::note(\"hangs\"); witness::meet(2); loop { std::thread::park() } }";
    lab.cargo("shop", tests);
    lab.nextest("-j 2").run().assert_code(137);
    for pid in lab.seen().all("PID") {
        assert!(!is_alive(pid.parse().expect("a pid")), "{pid} lives on");
    }
    lab.assert_nothing_left();
}

#[test]
fn cargo_test_runs_each_program_in_a_lane_and_keeps_its_code() {
    let lab = Lab::new();
    lab.cargo("shop", "#[test] fn buys() { witness::note(\"buys\") }");
    lab.file(
        "tests/front.rs",
        "#[path = \"../src/witness.rs\"] mod witness; #[test] fn opens() { witness::note(\"opens\"); panic!() }",
    );
    lab.wrap("", "cargo test -q --no-fail-fast").run().assert_code(101);
    let seen = lab.seen();
    assert_eq!(seen.names(), ["buys", "opens"]);
    assert!(seen.all("DATABASE_URL").iter().all(|url| url.contains("isolane_")));
    assert_eq!(lab.column("SELECT outcome FROM tests ORDER BY outcome"), ["failed", "passed"]);
    lab.assert_nothing_left();
}

#[test]
fn cargo_run_is_a_plain_command_and_inside_a_test_it_stays_in_the_tests_lane() {
    let lab = Lab::new();
    let test = "#[test] fn starts() {
        witness::note(\"outer\");
        let cargo = std::process::Command::new(\"cargo\").args([\"run\", \"-q\", \"--bin\", \"helper\"]).status();
        assert!(cargo.unwrap().success());
    }";
    lab.cargo("shop", test);
    lab.file("src/bin/helper.rs", "#[path = \"../witness.rs\"] mod witness; fn main() { witness::note(\"helper\") }");
    lab.wrap("", "cargo run -q --bin helper").run().assert_code(0);
    assert_eq!(lab.seen().get("helper", "WORKER_ID"), "w0");
    assert_eq!(lab.column("SELECT runner FROM runs"), ["plain"]);

    lab.nextest("").run().assert_code(0);
    let seen = lab.seen();
    for own in ["DATABASE_URL", "WORKER_ID", "ISOLANE_LANE"] {
        assert_eq!(seen.get("helper", own), seen.get("outer", own), "{own}");
    }
    assert_eq!(lab.value("SELECT count(*) FROM tests"), "1", "only the test is a test");
    lab.assert_nothing_left();
}
