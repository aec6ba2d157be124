//! Generators: items are made by a command of the user's, just in time and ahead, out of items of
//! other pools; and what fails leaves nothing.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::program::{Outcome, wait_until};
use crate::lab::{Lab, alive_in, is_alive, no_rows};

/// Makes a folder for each item, with a number that none had before, and prints what it was given.
const MAKER: &str = r#"import json, os, sys
given = json.load(sys.stdin)
n = 1
while True:
    try:
        os.makedirs(f"numbers/{n}")
        break
    except FileExistsError:
        n += 1
os.makedirs(f"things/{n}")
print("a line of the log", file=sys.stderr)
print(json.dumps({"id": n, "given": given}))
"#;

fn rows(lab: &Lab, args: &str) -> Value {
    let out = lab.isolane(&format!("{args} --format json")).run().assert_code(0).out();
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{out}: {error}"))
}

fn count(lab: &Lab, pool: &str, and: &str) -> String {
    lab.value(&format!("SELECT count(*) FROM item WHERE pool = '{pool}' AND state = 'free' {and}"))
}

fn things(lab: &Lab) -> usize {
    fs::read_dir(lab.path("things")).map_or(0, Iterator::count)
}

/// A pool whose generator is a line of shell.
fn pool_of(lab: &Lab, generator: &str) {
    let text = format!("[pool.thing]\ntimeout = \"2s\"\ngenerator = '''{generator}'''\n");
    lab.file("isolane.toml", &text);
}

#[test]
fn what_is_not_there_is_made_for_who_asks_as_it_is_asked_for() {
    let lab = Lab::new();
    lab.file("maker.py", MAKER);
    lab.file(
        "isolane.toml",
        "[pool.thing]\ngenerator = \"python maker.py\"\nmaximum = 3\nretire = \"rmdir things/{id}\"
inputs = { months = { default = 6 }, tier = { values = [\"silver\", \"gold\"], default = \"silver\" } }\n",
    );
    let first = rows(&lab, "lease acquire thing")[0].clone();
    let given = json!({"pool": "thing", "input": {"months": 6, "tier": "silver"}, "needs": {}, "run_id": null});
    assert_eq!(first["attributes"], json!({"id": 1, "given": given, "months": 6, "tier": "silver"}));
    let second = rows(&lab, "lease acquire thing --where months=12 --where tier=gold")[0].clone();
    assert_eq!((&second["attributes"]["months"], &second["attributes"]["tier"]), (&json!(12), &json!("gold")));
    // In a run, for who waits and for who does not.
    let script = "isolane lease acquire thing --where months=3 --wait 30s --format json";
    let out = lab.sh("", script).run().assert_code(0).out();
    let third: Value = serde_json::from_str(&out).expect("json");
    assert!(third[0]["attributes"]["given"]["run_id"].is_string(), "{out}");
    lab.isolane("lease acquire thing --where months=9").run().assert_code(65).assert_says("never");
    lab.isolane("lease acquire thing --where months=12").run().assert_code(75).assert_says("held are 2 by");
    for (args, why) in [
        ("--where moths=3", "it takes no input moths; did you mean months?"),
        ("--where tier=lead", "its input tier cannot be tier=lead; it takes silver, gold"),
    ] {
        lab.isolane("pool retire thing 3").run();
        lab.isolane(&format!("lease acquire thing {args}")).run().assert_code(65).assert_says(why);
    }
    assert_eq!(things(&lab), 2, "the third is retired");
}

#[test]
fn a_pool_is_filled_by_hand_up_to_its_maximum() {
    let lab = Lab::new();
    lab.file("maker.py", MAKER);
    lab.file(
        "isolane.toml",
        "[pool.thing]\ngenerator = \"python maker.py\"\nmaximum = 4\ninputs = { months = { default = 6 } }\n[pool.plain]\nitems = [1]\n",
    );
    lab.isolane("pool fill thing --count 3 --input months=2").run().assert_code(0).assert_says("pool thing: 3 made");
    assert_eq!(count(&lab, "thing", "AND json_extract(attributes, '$.months') = 2"), "3");
    lab.isolane("pool fill thing --count 2").run().assert_code(69).assert_says("it may make 1 more, and 2 are wanted");
    lab.isolane("pool fill thing --input months=x").run().assert_code(65).assert_says("it takes a number");
    lab.isolane("pool fill thing --input moths=1").run().assert_code(65).assert_says("did you mean months?");
    lab.isolane("pool fill plain").run().assert_code(2).assert_says("pool plain has no generator");
    lab.isolane("pool fill thng").run().assert_code(69).assert_says("did you mean thing?");
    lab.sh("", "isolane pool fill thing").run().assert_code(0);
    assert_eq!((count(&lab, "thing", ""), things(&lab)), ("4".to_owned(), 4));
}

#[test]
fn a_minimum_is_kept_in_stock_and_rebuilt_when_the_generator_changes() {
    let lab = Lab::new();
    lab.file("maker.py", MAKER);
    lab.file(
        "isolane.toml",
        "[pool.thing]\ngenerator = \"python maker.py\"\ngenerator-input = [\"maker.py\"]\nuse = \"consume\"\nretire = \"rmdir things/{id}\"
inputs = { tier = { default = \"silver\" } }\nminimum = 2\nstock = [{ minimum = 1, tier = \"gold\" }]\n",
    );
    let full = "until [ $(isolane pool list thing --format csv | grep -c ,free,) = 3 ]; do :; done";
    lab.sh("", full).run().assert_code(0);
    assert_eq!(count(&lab, "thing", "AND json_extract(attributes, '$.tier') = 'silver'"), "2");
    // One is used up, and another takes its place.
    lab.sh("", &format!("isolane lease acquire thing --where tier=gold > got; {full}")).run().assert_code(0);
    assert_eq!(count(&lab, "thing", "AND json_extract(attributes, '$.tier') = 'gold'"), "1");
    assert_eq!(things(&lab), 3, "what was used up is retired");
    let before = lab.value("SELECT max(item) FROM item");
    lab.file("maker.py", &format!("{MAKER}\n# other"));
    wait_until("all are new", || {
        lab.sh("", full).run();
        count(&lab, "thing", &format!("AND item <= {before}")) == "0" && count(&lab, "thing", "") == "3"
    });
    assert_eq!(things(&lab), 3);
}

const COMPOSED: &str = "[pool.acct]\nitems = [1, 2]\n[pool.licence]\nitems = [\"x\"]
[pool.thing]\ngenerator = \"python maker.py\"\nneeds = [{ pool = \"acct\", count = 2 }, \"licence\"]\nretire = \"[ -e held ] || rmdir things/{id}\"\n";

#[test]
fn what_an_item_is_made_of_is_leased_as_long_as_it_lives() {
    let lab = Lab::new();
    lab.file("maker.py", MAKER).file("isolane.toml", COMPOSED);
    let lease = rows(&lab, "lease acquire thing")[0].clone();
    let needs = &lease["attributes"]["given"]["needs"];
    assert_eq!(needs, &json!({"acct": [{"id": 1}, {"id": 2}], "licence": [{"id": "x"}]}));
    lab.isolane("lease acquire acct").run().assert_code(75).assert_says("by pool thing");
    // Who asks now gets no second one, because nothing is left to make it of.
    lab.isolane("lease acquire thing").run().assert_code(75);
    lab.isolane(&format!("lease release {}", lease["lease_id"].as_str().expect("an id"))).run().assert_code(0);
    lab.isolane("lease acquire acct").run().assert_code(75);
    lab.isolane("pool retire thing 1").run().assert_code(0);
    assert_eq!(lab.ledger("SELECT * FROM leases WHERE state = 'held'"), no_rows());
    assert_eq!(things(&lab), 0);
    rows(&lab, "lease acquire acct licence");
}

#[test]
fn a_composed_item_that_fails_leaves_nothing_leased() {
    let lab = Lab::new();
    lab.file("isolane.toml", &COMPOSED.replace("python maker.py", "echo the bank is away >&2; exit 4"));
    let failed = lab.isolane("lease acquire thing").run().assert_code(69);
    failed.assert_says("the generator of pool thing made none: `echo the bank is away >&2; exit 4` failed (exit code 4): the bank is away");
    assert_eq!(lab.column("SELECT state FROM leases"), ["released", "released", "released"]);
    // What one lacks, the others are not kept for.
    lab.file(
        "isolane.toml",
        &COMPOSED.replace("items = [\"x\"]", "items = []").replace("python maker.py", "touch ran"),
    );
    lab.isolane("lease acquire thing").run().assert_code(69).assert_says("pool licence will never have 1");
    assert_eq!(lab.ledger("SELECT * FROM leases WHERE state = 'held'"), no_rows());
    assert!(!lab.path("ran").exists());
}

#[test]
fn pools_may_need_what_other_generators_make() {
    let lab = Lab::new();
    lab.file("maker.py", MAKER);
    lab.file(
        "isolane.toml",
        "[pool.base]\ngenerator = \"python maker.py\"\nretire = \"rmdir things/{id}\"\n[pool.thing]\ngenerator = \"python maker.py\"\nneeds = [{ pool = \"base\", count = 2 }]\nretire = \"rmdir things/{id}\"\n",
    );
    let lease = rows(&lab, "lease acquire thing --wait 30s")[0].clone();
    assert_eq!(lease["attributes"]["given"]["needs"]["base"].as_array().map(Vec::len), Some(2));
    assert_eq!(things(&lab), 3);
    lab.file("isolane.toml", "[pool.a]\ngenerator = \"x\"\nneeds = [\"b\"]\n[pool.b]\ngenerator = \"x\"\nneeds = [\"c\"]\n[pool.c]\ngenerator = \"x\"\nneeds = [\"b\"]\n");
    lab.isolane("pool list").run().assert_code(2).assert_says("b needs c needs b");
}

fn refused(lab: &Lab, generator: &str) -> Outcome {
    pool_of(lab, generator);
    let out = lab.isolane("lease acquire thing").run().assert_code(69);
    assert_eq!(out.said().len(), 1, "{}", out.all());
    let left: Vec<_> = alive_in(lab.home()).into_iter().filter(|it| it.contains("sleep 61")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(lab.ledger("SELECT * FROM waiter WHERE state = 'waiting'"), no_rows());
    out
}

#[test]
fn a_generator_may_fail_in_every_way_and_each_is_one_clear_line() {
    for (generator, why) in [
        ("echo one >&2; echo the last >&2; exit 4", "failed (exit code 4): the last"),
        ("echo hello there", "it printed no JSON object"),
        ("true", "it printed nothing"),
        ("setsid sleep 611 & sleep 612", "failed (not over after 2 s and killed)"),
        ("exec head -c 100000000 /dev/zero", "failed (it printed more than 1 MiB and was killed)"),
        ("kill -9 $$", "failed (signal 9)"),
        ("echo 7", "(an item is one): 7"),
    ] {
        let lab = Lab::new();
        refused(&lab, generator).assert_says(why);
        assert_eq!(count(&lab, "thing", ""), "0", "{generator}");
    }
}

#[test]
fn what_comes_out_otherwise_than_it_was_asked_for_is_said_and_stays_in_the_pool() {
    let lab = Lab::new();
    pool_of(&lab, "echo x >> tries; echo '{\"id\": 1, \"colour\": \"red\"}'");
    let mail = lab.isolane("lease acquire thing --where mail? --wait 20s").run().assert_code(69);
    mail.assert_says("the generator of pool thing made none: it made 1, which is not mail?");
    assert_eq!((lab.read("tries"), count(&lab, "thing", "")), ("x\n".to_owned(), "1".to_owned()));
}

#[test]
fn a_run_that_is_killed_while_it_makes_something_frees_what_that_needed() {
    let lab = Lab::new();
    lab.file("isolane.toml", &COMPOSED.replace("python maker.py", "touch began; sleep 600"));
    let running = lab.sh("", "isolane lease acquire thing").start();
    wait_until("the generator runs", || lab.path("began").exists());
    assert_eq!(lab.value("SELECT count(*) FROM lease WHERE state = 'held'"), "1");
    running.signal(Signal::SIGKILL);
    wait_until("the generator is gone", || alive_in(lab.home()).iter().all(|it| !it.contains("sleep 600")));
    // The next who looks finds that who had it lives no more.
    rows(&lab, "lease acquire acct licence --wait 20s");
    drop(running);
}

#[test]
fn a_daemon_that_keeps_the_output_open_is_not_waited_for() {
    let lab = Lab::new();
    pool_of(&lab, "sleep 600 & echo '{\"id\": 1}'");
    assert_eq!(rows(&lab, "lease acquire thing")[0]["item"], "1");
}

#[test]
fn an_item_that_is_made_twice_is_in_the_pool_once_and_lists_and_lines_are_many() {
    let lab = Lab::new();
    pool_of(&lab, "echo '{\"id\": 1}'");
    lab.isolane("pool fill thing").run().assert_code(0);
    lab.isolane("pool fill thing").run().assert_code(69).assert_says("it made 1, which the pool has already");
    assert_eq!(count(&lab, "thing", ""), "1");
    pool_of(&lab, "echo '{\"id\": 2}'; echo '{\"id\": 3}'");
    lab.isolane("pool fill thing").run().assert_code(0).assert_says("2 made");
    pool_of(&lab, "echo '[{\"id\": 4}, {\"id\": 5}, {\"id\": 6}]'");
    lab.isolane("pool fill thing").run().assert_code(0).assert_says("3 made");
    // The others were of another generator; they went when nobody held them.
    assert_eq!(count(&lab, "thing", ""), "3");
}

#[test]
fn what_was_made_and_has_no_place_is_retired() {
    let lab = Lab::new();
    lab.file(
        "isolane.toml",
        "[pool.thing]\nmaximum = 2\ngenerator = \"echo '[1, 2, 3]' | sed 's/[0-9]/{\\\"id\\\": &}/g'\"\nretire = \"echo {id} >> gone\"\n",
    );
    lab.isolane("pool fill thing").run().assert_code(0).assert_says("2 made");
    assert_eq!((count(&lab, "thing", ""), lab.read("gone")), ("2".to_owned(), "3\n".to_owned()));
}

#[test]
fn after_three_failures_the_pool_pauses_and_says_so() {
    let lab = Lab::new();
    pool_of(&lab, "echo x >> tries; echo no luck >&2; exit 1");
    for _ in 0..3 {
        lab.isolane("lease acquire thing").run().assert_code(69).assert_says("no luck");
    }
    lab.isolane("lease acquire thing").run().assert_code(69).assert_says("it failed 3 times in a row and pauses until");
    assert_eq!(lab.read("tries"), "x\nx\nx\n");
    let trouble = rows(&lab, "pool list")[0]["trouble"].as_str().unwrap_or_default().to_owned();
    assert!(trouble.starts_with("pauses until") && trouble.contains("after 3 failures in a row"), "{trouble}");
    // By hand it is tried all the same; another generator starts anew.
    lab.isolane("pool fill thing").run().assert_code(69);
    assert_eq!(lab.read("tries"), "x\nx\nx\nx\n");
    pool_of(&lab, "echo '{\"id\": 1}'");
    rows(&lab, "lease acquire thing");
    assert_eq!(rows(&lab, "pool list")[0]["trouble"], Value::Null);
}

#[test]
fn what_a_generator_was_given_is_free_only_when_the_generator_is_gone() {
    let lab = Lab::new();
    let generator = "echo $$ > pid.new; mv pid.new pid; exec sleep 600";
    lab.file(
        "isolane.toml",
        &format!(
            "[pool.acct]\nitems = [1]\n[pool.thing]\ngenerator = \"{generator}\"\nneeds = [\"acct\"]\ntimeout = \"600s\"\n"
        ),
    );
    let asker = lab.isolane("lease acquire thing --wait 600s").start();
    wait_until("it is being made", || lab.path("pid").exists());
    let pid: u32 = lab.read("pid").trim().parse().expect("a pid");
    asker.signal(Signal::SIGKILL);
    asker.finish();
    assert!(is_alive(pid), "nobody has looked yet");
    lab.isolane("lease acquire acct").run().assert_code(0);
    assert!(!is_alive(pid));
}

#[test]
fn what_a_generator_needs_and_another_holds_is_exhausted_and_not_a_failure() {
    let lab = Lab::new();
    lab.file(
        "isolane.toml",
        "[pool.account]\nitems = [1]\n[pool.customer]\ngenerator = \"echo '{\\\"id\\\": 7}'\"\nneeds = [\"account\"]\ntimeout = \"1s\"\n",
    );
    let held = rows(&lab, "lease acquire account --ttl 1h")[0]["lease_id"].as_str().expect("an id").to_owned();
    for wait in ["", "--wait 300ms"] {
        let refused = lab.isolane(&format!("lease acquire customer {wait}")).run().assert_code(75);
        let refused = refused.assert_says("pool account has not 1 of these left").assert_says("held are 1 by");
        assert_eq!(refused.err().lines().count(), 1, "{}", refused.all());
    }
    lab.isolane("pool fill customer").run().assert_code(75).assert_says("pool account has not 1 of these left");
    let ask =
        "curl -sS -w ' %{http_code}' --unix-socket $ISOLANE_SOCKET http://x/v1/leases -d '{\"pool\":\"customer\"}'";
    let out = lab.sh("", ask).run().assert_code(0).out();
    let (problem, status) = out.rsplit_once(' ').expect("a status");
    let problem: Value = serde_json::from_str(problem).expect("JSON");
    assert_eq!((status, &problem["code"], &problem["holders"][0]["item"]), ("409", &json!("exhausted"), &json!("1")));
    lab.isolane(&format!("lease release {held}")).run().assert_code(0);
    rows(&lab, "lease acquire customer");
}
