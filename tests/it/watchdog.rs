//! What happens when isolane itself is killed.

use nix::sys::signal::{Signal, kill, killpg};

use crate::lab::{Lab, Program, Server, alive_in, is_alive, many_tests, wait_until};

const HANGING: &str = "
import os, psycopg, pytest, time, witness
@pytest.mark.parametrize('n', range(2))
def test_hangs(n):
    url = os.environ.get('DATABASE_URL', '')
    if url.startswith('postgresql'):
        db = psycopg.connect(url)
        db.execute('CREATE TABLE held (id int)')
    witness.note(f'hangs{n}')
    time.sleep(600)
";

/// How the supervisor is killed.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Supervisor,
    ForegroundGroup,
}

/// Starts a run, kills it when `names` were noted, and waits until all is over.
fn kill_when(lab: &Lab, program: Program, names: &[&str], blow: Blow) {
    // A session of its own, so that it leads its group as a shell's job does.
    let terminal = program.start_on_terminal();
    wait_until("the tests hang", || names.iter().all(|name| lab.path("../seen").join(name).exists()));
    match blow {
        Blow::Supervisor => kill(terminal.pid(), Signal::SIGKILL),
        Blow::ForegroundGroup => killpg(terminal.pid(), Signal::SIGKILL),
    }
    .expect("it is there");
    terminal.finish();
    wait_until("the watchdog has left", || alive_in(lab.home()).is_empty());
}

fn assert_swept(lab: &Lab) {
    assert_eq!(lab.column("SELECT state FROM runs ORDER BY started_at DESC LIMIT 1"), ["swept"]);
    lab.assert_nothing_left();
    assert!(!std::fs::read_dir(lab.path(".isolane/locks")).expect("a folder").any(|_| true), "a lock is left");
}

#[test]
fn a_killed_run_of_pytest_is_undone_whole_and_nothing_else() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    server.look_alikes(&database);
    let before = server.snapshot();
    for isolation in ["database", "schema"] {
        for blow in [Blow::Supervisor, Blow::ForegroundGroup] {
            let lab = Lab::on(&database);
            lab.file("test_hang.py", HANGING);
            let run = lab.wrap(&format!("--isolation {isolation}"), "pytest -q -n 2");
            kill_when(&lab, run, &["hangs0", "hangs1"], blow);
            assert_swept(&lab);
            database.assert_nothing_left(&lab);
            assert_eq!(server.snapshot(), before, "{isolation} {blow:?}");
        }
    }
}

#[test]
fn a_killed_run_on_sqlite_is_undone() {
    for blow in [Blow::Supervisor, Blow::ForegroundGroup] {
        let lab = Lab::new();
        lab.file("test_hang.py", HANGING);
        kill_when(&lab, lab.pytest("-n 2"), &["hangs0", "hangs1"], blow);
        assert_swept(&lab);
        assert_eq!(lab.column("SELECT DISTINCT outcome FROM workers"), ["killed"]);
    }
}

#[test]
fn a_killed_run_of_nextest_is_undone() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    let body = "witness::note(NAME); std::thread::sleep(std::time::Duration::from_secs(600));";
    lab.cargo("shop", &many_tests(2, "hangs", body));
    kill_when(&lab, lab.nextest("-j 2"), &["hangs_0", "hangs_1"], Blow::Supervisor);
    assert_swept(&lab);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_run_that_is_killed_while_its_template_is_made_is_undone() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        lab.file("setup.sh", "psql -qXc 'CREATE TABLE half (id int)'; : >$SEEN/setup; exec sleep 600");
        let program = lab.isolane(&format!("run --isolation {isolation} --setup")).arg("sh setup.sh");
        kill_when(&lab, program.arg_all(["--", "true"]), &["setup"], Blow::Supervisor);
        assert_swept(&lab);
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn a_daemon_of_a_test_does_not_outlive_a_killed_run() {
    let lab = Lab::new();
    // It leaves its parent, its group, its session and its environment.
    let script = "(setsid sleep 600 >/dev/null 2>&1 &); env -i sleep 600 & : >$SEEN/daemon; wait";
    kill_when(&lab, lab.sh("", script), &["daemon"], Blow::Supervisor);
    assert_swept(&lab);
}

#[test]
fn what_was_to_be_kept_always_is_kept() {
    let lab = Lab::new();
    kill_when(&lab, lab.sh("--keep always", ": >$SEEN/there; sleep 600"), &["there"], Blow::Supervisor);
    assert_eq!(lab.column("SELECT DISTINCT state FROM resources"), ["kept"]);
    assert_eq!(lab.column("SELECT state FROM runs"), ["crashed"]);
    let kept = lab.value("SELECT name FROM resources WHERE kind = 'file'");
    assert!(std::path::Path::new(&kept).exists(), "{kept}");
    std::fs::remove_dir_all(std::path::Path::new(&kept).parent().expect("a folder")).expect("ours");
}

#[test]
fn the_watchdog_is_there_before_anything_else_and_takes_little() {
    let lab = Lab::new();
    let setup = "for p in /proc/[0-9]*; do grep -q watchdog $p/cmdline && grep -q $ISOLANE_RUN_ID $p/cmdline && \
                 grep RssAnon $p/status >$SEEN/memory; done; true";
    lab.isolane("run --setup").arg(setup).arg_all(["--", "true"]).run().assert_code(0);
    // Beside the program's own text, which it shares with its supervisor.
    let memory = lab.read("../seen/memory");
    let kilobytes: u32 = memory.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    assert!(kilobytes < 10_240, "{memory}");
    lab.assert_nothing_left();
}

#[test]
fn the_third_ctrl_c_leaves_the_cleaning_to_the_watchdog() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    // Cleaning takes long, because a record's cleaner does.
    lab.file("isolane.toml", "[cleaner.slow]\nrun = \"trap '' INT; : >$SEEN/cleaning; sleep 600; : {key}\"\n");
    // `exec`: a shell that is about to fork may keep an interrupt to itself.
    let mut terminal = lab.sh("", "isolane record slow x; : >$SEEN/ready; exec sleep 600").start_on_terminal();
    let seen = |name: &str| wait_until(name, || lab.path("../seen").join(name).exists());
    seen("ready");
    terminal.press_ctrl_c();
    seen("cleaning");
    // Two that come at once count as one, so there is no telling how many it takes.
    let pid = u32::try_from(terminal.pid().as_raw()).expect("a pid");
    wait_until("isolane has left", || {
        terminal.press_ctrl_c();
        !is_alive(pid)
    });
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(130), "{screen}");
    wait_until("the watchdog has left", || alive_in(lab.home()).is_empty());
    assert_swept(&lab);
    database.assert_nothing_left(&lab);
}

/// Kills the watchdog and then the supervisor, as the loss of the machine does.
pub fn lose_the_machine(lab: &Lab, program: Program, name: &str) {
    let terminal = program.start_on_terminal();
    wait_until("the command runs", || lab.path("../seen").join(name).exists());
    lab.lose_machine();
    terminal.finish();
}

#[test]
fn what_even_the_watchdog_could_not_remove_the_next_run_does() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    for isolation in ["database", "schema"] {
        let lab = Lab::on(&database);
        let script = ": >$SEEN/there; psql -qXc 'CREATE TABLE made (id int)'; sleep 600";
        lose_the_machine(&lab, lab.sh(&format!("--isolation {isolation}"), script), "there");
        let tag = lab.tag();
        assert!(!database.server.marked(&tag, &database.name).is_empty(), "there is something to remove");

        // A run that does not know the server removes what is here, and says where the rest is.
        let without = lab.wrap("--isolation none", "true").env("DATABASE_URL", "").run().assert_code(0);
        without.assert_says("had been killed, and left things at postgresql://");
        assert!(!database.server.marked(&tag, &database.name).is_empty(), "it is still there");

        let outcome = lab.wrap(&format!("--isolation {isolation}"), "true").run().assert_code(0);
        outcome.assert_says("had been killed").assert_does_not_say("could not be");
        assert_eq!(lab.column("SELECT state FROM runs ORDER BY started_at"), ["swept", "passed", "passed"]);
        database.assert_nothing_left(&lab);
        lab.wrap("", "true").run().assert_code(0).assert_does_not_say("killed");
    }
}

#[test]
fn a_run_that_lives_is_not_swept_by_the_next() {
    let lab = Lab::new();
    let first = lab.sh("", ": >$SEEN/first; until [ -e go ]; do sleep 0.01; done; test -e $ISOLANE_SCHEMA").start();
    wait_until("the first run works", || lab.path("../seen/first").exists());
    lab.wrap("", "true").run().assert_code(0).assert_does_not_say("killed");
    lab.file("go", "");
    first.finish().assert_code(0);
    lab.assert_nothing_left();
}
