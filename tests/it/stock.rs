//! Items are reset after use and retired in the end, by real commands, whatever dies meanwhile.

use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};

use crate::lab::program::wait_until;
use crate::lab::{Lab, alive_in};

fn states(lab: &Lab, pool: &str) -> Vec<String> {
    lab.column(&format!("SELECT state || CASE held WHEN 0 THEN '' ELSE ' held' END FROM item WHERE pool = '{pool}' AND state <> 'retired' ORDER BY item"))
}

fn lines(lab: &Lab, file: &str) -> Vec<String> {
    fs::read_to_string(lab.path(file)).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn acquire(lab: &Lab, args: &str) -> String {
    let out = lab.isolane(&format!("lease acquire {args} --format json")).run().assert_code(0).out();
    let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
    rows[0]["lease_id"].as_str().expect("an id").to_owned()
}

#[test]
fn an_item_is_reset_after_each_use_and_its_command_knows_it() {
    let lab = Lab::new();
    lab.file("run/reset", "echo \"$1|$2|$ISOLANE_ITEM|$(cat)|$ISOLANE_POOL\" >> ../log");
    lab.file(
        "isolane.toml",
        "[pool.acct]\nitems = [{id=1,name=\"o'hara $(rm -rf x) {id}\"}]\nreset-after = \"each\"\nreset = \"cd run && sh reset {id} {name}\"\n",
    );
    let lease = acquire(&lab, "acct");
    lab.isolane(&format!("lease release {lease}")).run().assert_code(0);
    let json = r#"{"id":1,"name":"o'hara $(rm -rf x) {id}"}"#;
    assert_eq!(lines(&lab, "log"), [format!("1|o'hara $(rm -rf x) {{id}}|{json}|{json}|acct")]);
    assert_eq!(states(&lab, "acct"), ["free"]);
    // What is given back within a run is free for who waits there.
    let script = "isolane lease acquire acct --format csv > got; id=$(sed -n 2p got | cut -d, -f1)
        isolane lease release $id && isolane lease acquire acct --wait 30s > second";
    lab.sh("", script).run().assert_code(0);
    assert_eq!(lines(&lab, "log").len(), 3, "after each of two, the second at the end of the run");
    assert_eq!(states(&lab, "acct"), ["free"]);
    lab.assert_nothing_left();
}

#[test]
fn a_reset_that_fails_three_times_is_a_quarantine_and_adding_the_item_brings_it_back() {
    let lab = Lab::new();
    let url = "postgres://ann:hunter22@h/d";
    lab.file(
        "isolane.toml",
        &format!(
            "[pool.acct]\nitems = [{{id=1}}]\nreset = \"echo $(date +%s%N) >> tries; echo gone to {url} >&2; exit 3\"\n"
        ),
    );
    let script = "isolane lease acquire acct --ttl 100ms > got; isolane lease acquire acct --wait 50s";
    // Who waits for it is told when it is hopeless, and not after all that time.
    let run = lab.sh("", script).run().assert_code(65);
    let run = run.assert_says("pool acct: 1 is in quarantine: it could not be reset (attempt 3): `echo");
    assert!(run.err().contains("failed (exit code 3): gone to postgres://ann:***@h/d"), "{}", run.all());
    let tries: Vec<u128> = lines(&lab, "tries").iter().map(|text| text.parse().expect("a time")).collect();
    assert_eq!(tries.len(), 3);
    assert!(tries[2] - tries[1] > 2 * (tries[1] - tries[0]), "pauses grow: {tries:?}");
    assert_eq!(states(&lab, "acct"), ["quarantined"]);
    let items = lab.isolane("pool list acct --format json").run().assert_code(0);
    assert!(items.out().contains("postgres://ann:***@h/d") && !items.out().contains("hunter22"), "{}", items.all());
    // Nobody tries it again by himself.
    lab.sh("", "exit 0").run().assert_code(0);
    assert_eq!(lines(&lab, "tries").len(), 3);
    lab.isolane("pool add acct id=1").run().assert_code(0);
    assert_eq!(states(&lab, "acct"), ["free"]);
}

#[test]
fn a_reset_that_hangs_is_killed_with_all_that_it_forked() {
    let lab = Lab::new();
    lab.file(
        "isolane.toml",
        "[pool.acct]\nitems = [{id=1}]\ntimeout = \"1s\"\nreset-after = \"each\"\nreset = \"setsid sleep 611 & sleep 612 & env -i sleep 613\"\n",
    );
    let lease = acquire(&lab, "acct");
    let released = lab.isolane(&format!("lease release {lease}")).run().assert_code(0);
    released.assert_says("pool acct: 1 is not free: could not be reset (attempt 1): `setsid sleep 611").assert_code(0);
    let left: Vec<_> = alive_in(lab.home()).into_iter().filter(|it| it.contains("sleep 61")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(states(&lab, "acct"), ["dirty"]);
}

#[test]
fn what_a_killed_worker_held_is_reset_and_free_at_once() {
    let lab = Lab::new();
    lab.file("isolane.toml", "[pool.acct]\nitems = [{id=1}]\nreset = \"sleep 0.2; touch reset\"\n");
    let script = r"import json, os, subprocess, sys, time
if os.environ['WORKER_ID'] == 'w0':
    subprocess.check_call(['isolane', 'lease', 'acquire', 'acct'], stdout=subprocess.DEVNULL)
    open('ready', 'w').close()
    while not os.path.exists('waits'): time.sleep(0.001)
    open('died.tmp', 'w').write(repr(time.time())); os.rename('died.tmp', 'died')
    os.kill(os.getpid(), 9)
while not os.path.exists('ready'): time.sleep(0.001)
waiting = subprocess.Popen(['isolane', 'lease', 'acquire', 'acct', '--wait', '30s'], stdout=subprocess.DEVNULL)
while json.loads(subprocess.check_output(['isolane', 'lease', 'list', '--waiting', '--format', 'json'])) == []: pass
open('waits', 'w').close()
assert waiting.wait() == 0
open('took', 'w').write(repr(time.time() - float(open('died').read())))
assert os.path.exists('reset')
";
    lab.file("work.py", script);
    lab.wrap("-n 2", "python work.py").run().assert_code(137);
    let took: f64 = lab.read("took").parse().expect("seconds");
    // 100 ms beside the command, and what starting two programs takes on a machine that is busy.
    assert!((0.2..1.5).contains(&took), "{took}");
}

#[test]
fn the_watchdog_resets_what_a_killed_isolane_left_and_no_two_resets_meet() {
    let lab = Lab::new();
    // One at a time, or the folder is there already.
    lab.file("reset", "mkdir at-work || { echo twice >> met; exit 1; }; echo began >> log; [ -e slow ] && sleep 600; rmdir at-work; echo done >> log\n");
    lab.file("isolane.toml", "[pool.acct]\nitems = [{id=1},{id=2}]\nreset = \"sh reset\"\n");
    lab.file("slow", "");
    let script = "isolane lease acquire acct --ttl 100ms > got; exec sleep 600";
    let running = lab.sh("", script).start();
    wait_until("the reset of the first has begun", || lines(&lab, "log") == ["began"]);
    fs::remove_file(lab.path("slow")).expect("our own file");
    fs::remove_dir(lab.path("at-work")).expect("our own folder");
    running.signal(Signal::SIGKILL);
    wait_until("the watchdog has reset it", || states(&lab, "acct") == ["free", "free"]);
    assert_eq!(lines(&lab, "log"), ["began", "began", "done"]);
    assert!(!lab.path("met").exists());
    let left: Vec<_> = alive_in(lab.home()).into_iter().filter(|it| it.contains("sleep 600")).collect();
    assert!(left.is_empty(), "{left:?}");
    drop(running);
}

#[test]
fn a_reset_is_taken_over_from_a_process_that_died_with_its_command_killed_first() {
    let lab = Lab::new();
    lab.file("reset", "echo $$ >> log; [ -e slow ] && sleep 600; echo done >> log\n");
    lab.file("isolane.toml", "[pool.acct]\nitems = [{id=1}]\nreset-after = \"each\"\nreset = \"sh reset\"\n");
    lab.file("slow", "");
    let lease = acquire(&lab, "acct");
    let releasing = lab.isolane(&format!("lease release {lease}")).start();
    wait_until("the reset has begun", || lines(&lab, "log").len() == 1);
    assert_eq!(states(&lab, "acct"), ["resetting"]);
    // Meanwhile nobody else begins it.
    lab.isolane("pool add other x").run().assert_code(0);
    assert_eq!(lines(&lab, "log").len(), 1);
    fs::remove_file(lab.path("slow")).expect("our own file");
    kill(releasing.pid(), Signal::SIGKILL).expect("ours");
    // Only the program dies, and not what it had started.
    lab.isolane("pool add other y").run().assert_code(0);
    assert_eq!(lines(&lab, "log")[1..].iter().filter(|line| *line == "done").count(), 1, "{:?}", lines(&lab, "log"));
    assert_eq!(states(&lab, "acct"), ["free"]);
    let left: Vec<_> = alive_in(lab.home()).into_iter().filter(|it| it.contains("sleep 600")).collect();
    assert!(left.is_empty(), "{left:?}");
    drop(releasing);
}

#[test]
fn a_run_ends_soon_though_a_reset_does_not_and_leaves_it_to_the_next() {
    let lab = Lab::new();
    lab.file("isolane.toml", "[pool.acct]\nitems = [{id=1}]\nreset = \"echo x >> log; [ -e fast ] || sleep 600\"\n");
    let began = Instant::now();
    lab.sh("", "isolane lease acquire acct").run().assert_code(0);
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    assert_eq!(states(&lab, "acct"), ["dirty"]);
    lab.assert_nothing_left();
    lab.file("fast", "");
    lab.sh("", "isolane lease acquire acct --wait 30s").run().assert_code(0);
    assert_eq!(lines(&lab, "log").len(), 3, "left, taken up, and after the second run's own use");
}

#[test]
fn a_retired_item_is_retired_by_its_command_and_three_failures_are_told() {
    let lab = Lab::new();
    lab.file(
        "isolane.toml",
        "[pool.acct]\nretire = \"[ -e ok ] || { echo {id} is stuck >&2; exit 1; }; echo {id} >> gone\"\n",
    );
    lab.isolane("pool add acct a b").run().assert_code(0);
    let lease = acquire(&lab, "acct --where id=b --ttl 1h");
    // The command at the shell waits for the one that is free, and the pauses are left to others.
    lab.isolane("pool retire acct a b").run().assert_code(0).assert_says("could not be retired (attempt 1)");
    assert_eq!(states(&lab, "acct"), ["retiring", "free held"]);
    let script = "while ! isolane pool list acct | grep -q quarantined; do :; done";
    lab.sh("", script)
        .run()
        .assert_code(0)
        .assert_says("pool acct: a is in quarantine: it could not be retired (attempt 3)");
    lab.file("ok", "");
    lab.isolane(&format!("lease release {lease}")).run().assert_code(0);
    assert_eq!(lines(&lab, "gone"), ["b"]);
    lab.isolane("pool retire acct a").run().assert_code(0);
    assert_eq!(lines(&lab, "gone"), ["b", "a"]);
    assert!(states(&lab, "acct").is_empty());
    lab.file("isolane.toml", "[pool.once]\nuse = \"consume\"\nitems = [\"x\",\"y\"]\nretire = \"echo {id} >> gone\"\n");
    lab.isolane("pool remove once").run().assert_code(0);
    assert_eq!(lab.column("SELECT removed FROM pool WHERE name = 'once'"), ["1"], "with its last item");
    assert_eq!(lines(&lab, "gone").len(), 4);
}

#[test]
fn what_was_used_up_or_retired_by_hand_does_not_come_back_with_the_configuration() {
    let lab = Lab::new();
    let configure = |items: &str| {
        lab.file(
            "isolane.toml",
            &format!("[pool.voucher]\nuse = \"consume\"\nitems = [{items}]\n[pool.acct]\nitems = [{items}]\n"),
        );
    };
    let items = |pool: &str| {
        lab.isolane("pool list").run().assert_code(0);
        lab.column(&format!("SELECT name FROM item WHERE pool = '{pool}' AND state <> 'retired' ORDER BY name"))
    };
    configure("\"a\", \"b\", \"c\"");
    lab.sh("--isolation none", "isolane lease acquire voucher --where id=a").run().assert_code(0);
    lab.isolane("pool retire acct b").run().assert_code(0);
    assert_eq!((items("voucher"), items("acct")), (texts(["b", "c"]), texts(["a", "c"])));
    lab.isolane("lease acquire voucher --where id=a").run().assert_code(65);
    // By hand it can be had again, and gone again.
    lab.isolane("pool add acct b").run().assert_code(0);
    assert_eq!(items("acct"), ["a", "b", "c"]);
    lab.isolane("pool retire acct b").run().assert_code(0);
    assert_eq!(items("acct"), ["a", "c"]);
    // Who takes it out of the configuration and puts it in again means another.
    configure("\"c\"");
    assert_eq!((items("voucher"), items("acct")), (texts(["c"]), texts(["c"])));
    configure("\"a\", \"b\", \"c\"");
    assert_eq!((items("voucher"), items("acct")), (texts(["a", "b", "c"]), texts(["a", "b", "c"])));
    lab.isolane("pool remove acct").run().assert_code(0).assert_says("pool acct stands in isolane.toml");
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}
