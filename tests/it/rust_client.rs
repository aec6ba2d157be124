//! The Rust client (`shims/rust`), in a real crate under nextest and cargo test.

use crate::lab::{Lab, many_tests, no_rows, tools};

/// A lab whose cargo finds what this project was built from.
fn lab() -> Lab {
    Lab::new().with("CARGO_HOME", tools::cargo_home()).with("CARGO_NET_OFFLINE", "true")
}

const POOLS: &str = "[pool.acct]
items = [{id=1, tier='gold'}, {id=2, tier='silver'}]
[pool.licence]
items = ['x']
[cleaner.customer]
run = 'echo {key} >> cleaned'
";

/// Tests that pass in a run.
const TESTS: &str = r#"
use isolane::{want, LeaseError};
use std::time::Duration;

#[test] fn knows_its_lane() {
    let lane = isolane::lane().unwrap();
    let variable = |name: &str| std::env::var(name).unwrap();
    assert_eq!((lane.run_id, lane.worker_id), (variable("ISOLANE_RUN_ID"), variable("WORKER_ID")));
    assert_eq!((lane.lane.to_string(), lane.prefix), (variable("ISOLANE_LANE"), variable("ISOLANE_PREFIX")));
    assert_eq!(lane.database_url, Some(variable("DATABASE_URL")));
    assert_eq!(lane.schema, Some(variable("ISOLANE_SCHEMA")));
}
#[test] fn records() {
    isolane::record("customer", 17).unwrap();
    let refused = isolane::record("", 17).unwrap_err().to_string();
    assert!(refused.contains("must not be empty"), "{refused}");
}
#[test] fn refusals_tell_apart() {
    let mine = isolane::lease("acct").attribute("tier", "gold").acquire().unwrap();
    assert_eq!((mine["id"].as_i64(), &mine["none"], mine.items.len()), (Some(1), &isolane::serde_json::Value::Null, 1));
    let why = isolane::lease("acct").attribute("id", vec![1]).wait(Duration::ZERO).acquire().unwrap_err();
    let LeaseError::Exhausted { holders, message } = &why else { panic!("{why}") };
    let test = holders[0].test_id.as_deref().unwrap();
    assert!(test.ends_with("tests::refusals_tell_apart"), "{test}");
    assert!(message.contains("held are 1 by") && holders[0].item == "1", "{message}");
    assert_eq!(format!("{why:?}"), *message, "unwrap shows the run's words");
    let why = isolane::lease("acct").attribute("tier", "platinum").acquire().unwrap_err();
    assert!(matches!(&why, LeaseError::Unsatisfiable { message } if message.contains("is not tier=platinum")), "{why}");
    let why = isolane::lease("acct").count(3).acquire().unwrap_err();
    assert_eq!(why.code(), Some("unsatisfiable"));
    let why = isolane::lease("accts").acquire().unwrap_err();
    assert!(matches!(&why, LeaseError::PoolUnknown { message } if message.contains("did you mean acct?")), "{why}");
    let why = isolane::lease("acct").count(0).acquire().unwrap_err();
    assert!(matches!(&why, LeaseError::Refused { code, .. } if code == "malformed-request"), "{why}");
    let why = isolane::lease_all([]).count(2).acquire().unwrap_err();
    assert_eq!(why.code(), Some("malformed-request"), "{why}");
}
#[test] fn a_key_is_granted_once() {
    let ask = |count| isolane::lease("licence").key("mine").count(count).acquire();
    let (first, second) = (ask(1).unwrap(), ask(1).unwrap());
    assert_eq!((&first.id, first.fence), (&second.id, second.fence));
    assert_eq!(ask(2).unwrap_err().code(), Some("key-mismatch"));
    first.release().unwrap();
    second.release().unwrap();
}
#[test] fn several_are_leased_at_once() {
    let both = isolane::lease_all([want("acct").count(2), want("licence")]).acquire().unwrap();
    assert_eq!((both.items.len(), &both.items[2]["id"]), (3, &"x".into()));
    drop(both);
    isolane::lease("licence").acquire().unwrap().release().unwrap();
}
#[test] fn a_lost_lease_says_so() {
    let mut lease = isolane::lease("acct").ttl(Duration::from_secs(60)).acquire().unwrap();
    let before = lease.expires_at.clone();
    lease.check().unwrap();
    lease.renew().unwrap();
    lease.renew_for(Duration::from_secs(600)).unwrap();
    assert!(lease.expires_at > before, "{} {before}", lease.expires_at);
    let revoked = std::process::Command::new("isolane").args(["lease", "revoke", &lease.id]).status().unwrap();
    assert!(revoked.success());
    for why in [lease.check(), lease.renew()] {
        assert!(matches!(&why, Err(LeaseError::Lost { message }) if message.contains("is revoked since")), "{why:?}");
    }
    assert!(matches!(lease.release(), Err(LeaseError::Lost { .. })));
}
"#;

#[test]
fn in_a_nextest_run_tests_lease_record_and_know_their_lane() {
    let lab = lab();
    lab.file("isolane.toml", POOLS);
    let aborts =
        "#[test] fn z_dies() { let _all = isolane::lease(\"licence\").acquire().unwrap(); std::process::abort() }";
    lab.cargo_with_client("shop", &(TESTS.to_owned() + aborts));
    lab.nextest("-j 3").run().assert_code(100).assert_says("7 tests");
    let failed = lab.column("SELECT test_id FROM tests WHERE outcome <> 'passed'");
    assert_eq!(failed, ["shop$tests::z_dies"]);
    let leases = lab.ledger("SELECT DISTINCT test_id, state FROM leases ORDER BY 1, 2");
    let of = |name: &str, state: &str| vec![format!("shop$tests::{name}"), state.to_owned()];
    let expected = [
        of("a_key_is_granted_once", "released"),
        of("a_lost_lease_says_so", "revoked"),
        of("refusals_tell_apart", "released"),
        of("several_are_leased_at_once", "released"),
        of("z_dies", "lost"),
    ];
    assert_eq!(leases, expected);
    let records = lab.ledger("SELECT test_id, kind, key, state FROM records");
    assert_eq!(records, [["shop$tests::records", "customer", "17", "removed"]]);
    assert_eq!(lab.read("cleaned"), "17\n");
    lab.assert_nothing_left();
}

#[test]
fn threads_of_cargo_test_are_tests_of_their_own() {
    let lab = lab();
    lab.file("isolane.toml", POOLS);
    // Creating the file anew fails while another test has the licence.
    let body = "let licence = isolane::lease(\"licence\").acquire().unwrap();
        let held = format!(\"{}/held\", std::env::var(\"SEEN\").unwrap());
        std::fs::OpenOptions::new().write(true).create_new(true).open(&held).expect(\"alone with it\");
        std::fs::remove_file(held).unwrap();
        drop(licence);";
    lab.cargo_with_client("shop", &(TESTS.to_owned() + &many_tests(30, "alone", body)));
    lab.wrap("", "cargo test -q --lib -- --test-threads 4").run().assert_code(0);
    let tests = lab.column("SELECT count(DISTINCT test_id) FROM leases WHERE test_id LIKE 'tests::alone_%'");
    assert_eq!(tests, ["30"]);
    assert_eq!(lab.ledger("SELECT * FROM leases WHERE state NOT IN ('released', 'revoked')"), no_rows());

    // The examples in the documentation are right, and each says outside of a run that it is.
    lab.program("cargo").arg_all(["test", "-q", "--doc", "-p", "isolane-client"]).run().assert_code(0);
    let outside = lab.program("cargo").arg_all(["test", "-q", "--lib", "records"]).run().assert_code(101);
    assert!(outside.out().contains("not inside of `isolane run`: ISOLANE_SOCKET is not set"), "{}", outside.all());
    lab.assert_nothing_left();
}
