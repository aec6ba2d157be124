//! Leases, as a person at a shell, a test in pytest and a program at the socket have them.

use serde_json::Value;

use crate::lab::program::wait_until;
use crate::lab::{Lab, no_rows};
use nix::sys::signal::Signal;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn acquire(lab: &Lab, args: &str) -> Value {
    let out = lab.isolane(&format!("lease acquire {args} --format json")).run().assert_code(0).out();
    json(&out)[0].clone()
}

#[test]
fn at_a_shell_an_item_has_one_holder_and_refusals_tell_apart() {
    let lab = Lab::new();
    lab.isolane("pool add acct id=1,tier=gold id=2,tier=silver id=3,tier=silver")
        .run()
        .assert_code(0)
        .assert_says("3 added");
    let first = acquire(&lab, "acct");
    assert_ne!(first["item"], "1", "what is scarce is left to who asks for it");
    let second = acquire(&lab, "acct --where tier=gold");
    assert_eq!((&second["item"], &second["attributes"]["tier"]), (&json("\"1\""), &json("\"gold\"")));
    assert!(second["fence"].as_u64() > first["fence"].as_u64());
    lab.isolane("lease acquire acct --where tier=gold").run().assert_code(75).assert_says("held are 1 by");
    lab.isolane("lease acquire acct --where tier=platinum").run().assert_code(65).assert_says("is not tier=platinum");
    lab.isolane("lease acquire accts").run().assert_code(69).assert_says("did you mean acct?");
    lab.isolane("lease acquire acct --where tier=gold --wait 200ms").run().assert_code(75).assert_says("waited 0.");
    let id = second["lease_id"].as_str().expect("an id");
    lab.isolane(&format!("lease release {id} --fence 99999")).run().assert_code(1);
    lab.isolane(&format!("lease release {id}")).run().assert_code(0);
    lab.isolane(&format!("lease release {id}")).run().assert_code(0);
    lab.isolane(&format!("lease renew {id}")).run().assert_code(1).assert_says("is released since");
    let held = lab.column("SELECT item FROM leases WHERE state = 'held'");
    assert_eq!(held, [first["item"].as_str().expect("a name")]);
    let name = first["item"].as_str().expect("a name");
    let waiter = lab.isolane(&format!("lease acquire acct --where id={name} --wait 60s")).start();
    wait_until("somebody waits", || lab.ledger("SELECT * FROM waiter WHERE state = 'waiting'") != no_rows());
    let leases = json(&lab.isolane("leases --format json").run().assert_code(0).out());
    assert!(leases[0]["awaited_by"].as_str().is_some_and(|who| who.contains(" since ")), "{leases}");
    drop(waiter);
    lab.isolane("pool remove acct").run().assert_code(75).assert_says("is held");
}

#[test]
fn a_lease_of_several_is_all_or_nothing_and_a_key_is_granted_once() {
    let lab = Lab::new();
    lab.isolane("pool add user a b").run().assert_code(0);
    lab.isolane("pool add licence x").run().assert_code(0);
    let both = acquire(&lab, "user licence --key once");
    assert_eq!(both["lease_id"], acquire(&lab, "user licence --key once")["lease_id"]);
    lab.isolane("lease acquire user --key once").run().assert_code(1).assert_says("another request");
    lab.isolane("lease acquire user licence").run().assert_code(75).assert_says("pool licence");
    assert_eq!(lab.column("SELECT count(*) FROM leases"), ["2"], "nothing is held of what was not granted whole");
    assert_eq!(acquire(&lab, "user")["fence"].as_u64(), Some(2));
}

#[test]
fn time_ends_a_lease_and_renewing_keeps_it() {
    let lab = Lab::new();
    lab.isolane("pool add acct a b").run().assert_code(0);
    let (short, long) = (acquire(&lab, "acct --ttl 300ms"), acquire(&lab, "acct --ttl 300ms"));
    let id = long["lease_id"].as_str().expect("an id");
    lab.isolane(&format!("lease renew {id} --ttl 1h")).run().assert_code(0);
    let next = acquire(&lab, "acct --wait 30s");
    assert_eq!(next["item"], short["item"]);
    let states = "SELECT state FROM leases ORDER BY fence";
    assert_eq!(lab.column(states), ["expired", "held", "held"]);
    lab.isolane(&format!("lease revoke {id}")).run().assert_code(0);
    lab.isolane(&format!("lease renew {id}")).run().assert_code(1).assert_says("is revoked since");
}

const CONFIGURED: &str = "[pool.acct]\nitems = [{id=1},{id=2}]\n";

#[test]
fn the_socket_answers_as_the_contract_says() {
    let lab = Lab::new();
    lab.file("isolane.toml", CONFIGURED);
    let script = r#"ask() { curl -sS --unix-socket "$ISOLANE_SOCKET" "$@"; echo; }
ask http://x/v1/leases -d '{"pool":"acct","count":1,"where":{"id":2},"ttl":"60s","wait":"30s","key":"k"}'
ask http://x/v1/leases
ask http://x/v1/pools/acct/items"#;
    let out = lab.sh("", script).run().assert_code(0).out();
    let lines: Vec<Value> = out.lines().map(json).collect();
    assert_eq!(lines[0]["items"], json(r#"[{"id":2}]"#));
    assert!(lines[0]["fence"].is_u64() && lines[0]["expires_at"].is_string(), "{out}");
    assert_eq!((&lines[1][0]["worker_id"], &lines[1][0]["state"]), (&json("\"w0\""), &json("\"held\"")));
    assert_eq!((&lines[2][0]["state"], &lines[2][1]["state"]), (&json("\"free\""), &json("\"leased\"")));
    assert_eq!(lab.ledger("SELECT state, worker_id FROM leases"), [["lost", "w0"]], "it ended with its holder");
}

#[test]
fn a_test_leases_for_as_long_as_it_lasts() {
    let lab = Lab::new();
    lab.file("isolane.toml", CONFIGURED);
    lab.file(
        "test_it.py",
        "import pytest
def test_one(isolane):
    with isolane.lease('acct', id=1) as lease:
        assert lease['id'] == 1 and lease.items == [{'id': 1}]
        with pytest.raises(isolane.PoolExhausted) as error:
            isolane.lease('acct', id=1, wait='0s')
        assert 'test_one' in str(error.value) and error.value.holders[0]['item'] == '1'
    isolane.lease('acct', count=2)
def test_two(isolane):
    isolane.lease('acct', count=2, wait='0s')
    raise RuntimeError
def test_three(isolane):
    lease = isolane.lease('acct', count=2, wait='0s')
    lease.renew()
    with pytest.raises(isolane.LeaseError) as error:
        isolane.lease('acct', id=3)
    assert error.value.code == 'unsatisfiable'
",
    );
    lab.pytest("-n 0").run().assert_code(1).assert_shows("1 failed, 2 passed");
    let rows = lab.ledger("SELECT DISTINCT test_id, state FROM leases ORDER BY fence");
    let expected = [
        ["test_it.py::test_one", "released"],
        ["test_it.py::test_two", "released"],
        ["test_it.py::test_three", "released"],
    ];
    assert_eq!(rows, expected);
}

#[test]
fn a_worker_that_dies_frees_what_it_held_at_once_and_others_get_it() {
    let lab = Lab::new();
    lab.file("isolane.toml", "[pool.acct]\nitems = [{id=1}]\n");
    lab.file(
        "test_it.py",
        "import os, signal, time, pytest
@pytest.mark.parametrize('n', range(2))
def test_it(isolane, n):
    lease = isolane.lease('acct')
    if not os.path.exists('died'):
        open('died', 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
",
    );
    lab.pytest("-n 2").run().assert_code(1).assert_shows("1 failed, 1 passed");
    assert_eq!(lab.column("SELECT state FROM leases ORDER BY fence"), ["lost", "released"]);
    // From the death that the ledger knows of to the next grant.
    let late = "SELECT max(0, (julianday(b.acquired_at) - julianday(w.ended_at)) * 86400) < 1 FROM leases a
                  JOIN leases b ON b.fence = a.fence + 1 JOIN workers w ON w.worker_id = a.worker_id WHERE a.state = 'lost'";
    assert_eq!(lab.column(late), ["1"]);
}

#[test]
fn a_killed_isolane_leaves_no_lease() {
    let lab = Lab::new();
    lab.file("isolane.toml", CONFIGURED);
    let running = lab.sh("", "isolane lease acquire acct acct > got; exec sleep 600").start();
    wait_until("it has its lease", || std::fs::read_to_string(lab.path("got")).is_ok_and(|text| text.contains("held")));
    running.signal(Signal::SIGKILL);
    wait_until("the watchdog has freed it", || lab.ledger("SELECT * FROM leases WHERE state = 'held'") == no_rows());
    assert_eq!(lab.column("SELECT DISTINCT state FROM leases"), ["lost"]);
    acquire(&lab, "acct --count 2");
    drop(running);
}

#[test]
fn items_have_names_and_two_of_one_are_said() {
    let lab = Lab::new();
    for items in ["[{tier='gold'}, {tier='gold'}]", "[1, '1']", "'items.csv'"] {
        lab.file("items.csv", "id,tier\n1,gold\n1,silver\n");
        lab.file("isolane.toml", &format!("[pool.acct]\nitems = {items}\n"));
        lab.isolane("pool list").run().assert_code(2).assert_says("`pool.acct.items` has two that are called");
    }
    lab.file("isolane.toml", "");
    for (pool, item) in [("acct", ""), ("acct", "id="), ("acct", r#"{"id":" "}"#), (" ", "1")] {
        lab.isolane("pool add").arg(pool).arg(item).run().assert_code(2);
    }
    lab.isolane("pool add acct id=2,tier=silver").run().assert_code(0).assert_says("pool acct: 1 added");
    let again = lab.isolane("pool add acct id=2,tier=gold id=3").run().assert_code(0);
    again.assert_says("pool acct: 1 added, 1 of the same name were there and are like this now");
}

#[test]
fn control_characters_are_shown_and_not_sent_to_the_terminal() {
    let lab = Lab::new();
    let name = "a\u{1b}[31mred\u{7}\u{9b}2J\nnext";
    let shown = "a\\u{1b}[31mred\\u{7}\\u{9b}2J";
    let item = serde_json::json!({"id": name}).to_string();
    lab.isolane("pool add acct").arg(item).run().assert_code(0);
    let granted = lab.isolane("lease acquire acct").run().assert_code(0);
    let refused = lab.isolane("lease acquire acct").run().assert_code(75);
    assert_eq!(refused.err().lines().count(), 1, "{}", refused.all());
    let listed = ["pool list acct", "lease list", "leases"].map(|args| lab.isolane(args).run().assert_code(0));
    assert!(granted.out().contains(&format!("{shown}\\nnext")), "{}", granted.all());
    for outcome in listed.iter().chain([&granted, &refused]) {
        let text = outcome.out() + &outcome.err();
        assert!(text.contains(shown), "{}", outcome.all());
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{}", outcome.all());
    }
    assert_eq!(json(&lab.isolane("lease list --format json").run().out())[0]["item"], name);
    assert!(lab.isolane("lease list --format csv").run().out().contains(name), "csv stays as it is");
}

#[test]
fn what_the_configuration_says_of_a_pool_is_changed_there() {
    let lab = Lab::new();
    lab.isolane("pool add hand a").run().assert_code(0);
    lab.isolane("pool add hand b --consume --ttl 2s").run().assert_code(0);
    lab.isolane("pool list").run().assert_code(0).assert_shows("consume");
    lab.file("isolane.toml", CONFIGURED);
    for option in ["--consume", "--shared 3", "--ttl 1s"] {
        let add = format!("isolane pool add acct q {option}");
        for refused in [lab.program("sh").arg_all(["-c", &add]).run(), lab.sh("--quiet", &add).run()] {
            let refused = refused.assert_code(2).assert_says("pool acct is defined in isolane.toml");
            assert_eq!(refused.err().lines().count(), 1, "{}", refused.all());
        }
    }
    lab.isolane("pool list acct").run().assert_code(0).assert_does_not_say("q");
    assert_eq!(lab.column("SELECT name FROM item WHERE pool = 'acct'"), ["1", "2"]);
    lab.isolane("pool add acct q").run().assert_code(0).assert_says("1 added");
    lab.isolane("pool add hand c --shared 2").run().assert_code(0);
}

#[test]
fn a_lease_that_its_asker_is_not_told_of_is_given_back() {
    let lab = Lab::new();
    lab.file("isolane.toml", CONFIGURED);
    let acquire = "isolane lease acquire acct --ttl 1h > /dev/full";
    for program in [lab.program("sh").arg_all(["-c", acquire]), lab.sh("--quiet", acquire)] {
        let outcome = program.run().assert_code(125);
        assert_eq!(outcome.said().len(), 1, "{}", outcome.all());
        assert!(outcome.err().contains("No space left"), "{}", outcome.all());
        assert_eq!(lab.ledger("SELECT * FROM leases WHERE state = 'held'"), no_rows());
    }
    assert_eq!(lab.column("SELECT state FROM leases"), ["released", "released"]);
    // Who gave it a key asks again with that.
    lab.program("sh").arg_all(["-c", &format!("{acquire} --key k")]).run().assert_code(125);
    assert_eq!(lab.column("SELECT state FROM leases WHERE state = 'held'").len(), 1);
}
