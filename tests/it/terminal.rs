//! Runs on a real terminal: who gets Ctrl-C, how often, and what is clean afterwards.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::lab::{Lab, OnTerminal, Server, wait_until};

/// Both tests say when they run, and hang.
const HANGING: &str = "
import pytest, threading, witness
@pytest.fixture
def torn_down():
    yield
    witness.note('teardown')
@pytest.mark.parametrize('n', range(2))
def test_hangs(n, torn_down):
    witness.note(f'hangs{n}')
    threading.Event().wait()
";
const HANGING_RUST: &str = "witness::note(NAME); loop { std::thread::park() }";

#[track_caller]
fn wait_for(lab: &Lab, names: &[&str]) {
    wait_until(&format!("{names:?} run"), || {
        let seen = lab.seen();
        names.iter().all(|name| seen.names().contains(name))
    });
}

#[track_caller]
fn assert_ends(terminal: OnTerminal, code: i32) -> String {
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(code), "signal {:?}\n{screen}", status.signal());
    screen
}

#[test]
fn one_ctrl_c_ends_pytest_its_own_way() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("test_hang.py", HANGING);
    for args in ["-p no:xdist", "-n 2"] {
        let mut terminal = lab.pytest(args).start_on_terminal();
        wait_for(&lab, &["hangs0"]);
        terminal.press_ctrl_c();
        let screen = assert_ends(terminal, 2);
        assert!(screen.contains("KeyboardInterrupt"), "{screen}");
        assert!(lab.seen().names().contains(&"teardown"), "fixtures get their end");
        database.assert_nothing_left(&lab);
        assert_eq!(lab.value("SELECT exit_code || state FROM runs ORDER BY started_at DESC LIMIT 1"), "2failed");
        lab.forget_seen();
    }
}

#[test]
fn one_ctrl_c_ends_nextest_its_own_way() {
    let lab = Lab::new();
    lab.cargo("shop", &crate::lab::many_tests(2, "hangs", HANGING_RUST));
    let mut terminal = lab.nextest("-j 2").start_on_terminal();
    wait_for(&lab, &["hangs_0", "hangs_1"]);
    terminal.press_ctrl_c();
    let screen = assert_ends(terminal, 100);
    assert!(!screen.contains("second signal"), "the signal came once\n{screen}");
    assert_eq!(lab.column("SELECT DISTINCT outcome IS NULL FROM tests"), ["1"], "interrupted and not crashed");
    assert_eq!(lab.value("SELECT state FROM runs"), "failed");
    lab.assert_nothing_left();

    // A command that Ctrl-C kills.
    let mut terminal = lab.sh("-n 2", ": >$SEEN/$WORKER_ID; exec sleep 600").start_on_terminal();
    wait_for(&lab, &["w0", "w1"]);
    terminal.press_ctrl_c();
    let screen = assert_ends(terminal, 130);
    assert!(!screen.contains("crashed"), "{screen}");
    assert_eq!(lab.column("SELECT outcome FROM workers WHERE worker_id LIKE 'w%'"), ["killed", "killed"]);
}

#[test]
fn a_test_that_ignores_one_ctrl_c_does_not_survive_the_second() {
    let lab = Lab::new();
    lab.file("stubborn.sh", "trap ': >$SEEN/got' INT TERM; : >$SEEN/ready; while :; do sleep 0.05; done");
    let mut terminal = lab.wrap("", "sh stubborn.sh").start_on_terminal();
    wait_for(&lab, &["ready"]);
    terminal.press_ctrl_c();
    // Two that come at once would count as one.
    wait_for(&lab, &["got"]);
    terminal.press_ctrl_c();
    assert_ends(terminal, 137);
    lab.assert_nothing_left();
}

#[test]
fn sigterm_is_passed_on_and_everything_is_cleaned() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("test_hang.py", HANGING).cargo("shop", &crate::lab::many_tests(1, "stays", HANGING_RUST));

    let pytest = lab.pytest("-n 2").start();
    wait_for(&lab, &["hangs0", "hangs1"]);
    pytest.signal(Signal::SIGTERM);
    pytest.finish().assert_code(143);
    database.assert_nothing_left(&lab);

    let nextest = lab.nextest("").start();
    wait_for(&lab, &["stays_0"]);
    nextest.signal(Signal::SIGTERM);
    nextest.finish().assert_code(100);
    database.assert_nothing_left(&lab);

    let script = lab.sh("", "trap 'exit 7' TERM; : >$SEEN/script; while :; do sleep 0.01; done").start();
    wait_for(&lab, &["script"]);
    script.signal(Signal::SIGTERM);
    script.finish().assert_code(7);
    database.assert_nothing_left(&lab);
}

#[test]
fn a_sigint_that_is_not_from_a_terminal_is_passed_on() {
    let lab = Lab::new();
    let script = lab.sh("", "trap 'exit 9' INT; : >$SEEN/script; while :; do sleep 0.01; done").start();
    wait_for(&lab, &["script"]);
    script.signal(Signal::SIGINT);
    script.finish().assert_code(9);
    lab.assert_nothing_left();
}

#[test]
fn the_command_has_the_terminal_its_group_and_ordinary_signals() {
    let lab = Lab::new();
    lab.file(
        "look.py",
        "
import os, signal, sys
print('streams', [os.isatty(fd) for fd in (0, 1, 2)])
print('size', os.get_terminal_size().columns >= 0)
print('parent group', os.getpgrp() == os.getpgid(os.getppid()))
print('foreground', os.tcgetpgrp(0) == os.getpgrp())
ordinary = all(signal.getsignal(s) != signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP))
print('signals', ordinary, signal.pthread_sigmask(signal.SIG_BLOCK, []) == set())
",
    );
    let terminal = lab.wrap("", "python look.py").start_on_terminal();
    let screen = assert_ends(terminal, 0);
    for fact in ["streams [True, True, True]", "size True", "parent group True", "foreground True", "signals True True"]
    {
        assert!(screen.contains(fact), "no {fact:?} in\n{screen}");
    }
}

#[test]
fn a_stopped_run_goes_on_in_the_foreground() {
    let lab = Lab::new();
    lab.file("wait.sh", "trap 'echo continued; exit 0' CONT; : >$SEEN/ready; while :; do sleep 0.01; done");
    let terminal = lab.wrap("", "sh wait.sh").start_on_terminal();
    wait_for(&lab, &["ready"]);
    // What a shell sends to the whole job for `fg`.
    nix::sys::signal::killpg(terminal.pid(), Signal::SIGCONT).expect("the group is there");
    let screen = assert_ends(terminal, 0);
    assert!(screen.contains("continued"), "{screen}");
    lab.assert_nothing_left();
}

#[test]
fn sigterm_during_setup_ends_it_and_leaves_nothing() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    let run = lab.isolane("run --setup").arg(": >$SEEN/setup; sleep 600; sleep 600").arg_all(["--", "true"]).start();
    wait_for(&lab, &["setup"]);
    run.signal(Signal::SIGTERM);
    run.finish().assert_code(143).assert_says("nothing is left");
    database.assert_nothing_left(&lab);
}

#[test]
fn an_orphan_that_ends_is_gone_while_the_run_goes_on() {
    let lab = Lab::new();
    let script = "pid=$(sh -c 'sleep 600 >/dev/null 2>&1 & echo $!'); kill $pid
        n=0; while kill -0 $pid 2>/dev/null; do n=$((n + 1)); [ $n -lt 2000 ] || exit 9; sleep 0.01; done";
    lab.sh("", script).run().assert_code(0);
    lab.assert_nothing_left();
}

#[test]
fn ctrl_c_during_setup_leaves_nothing() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("setup.sh", "psql -qXc 'CREATE TABLE half (id int)'; : >$SEEN/setup; exec sleep 600");
    let program = lab.isolane("run --setup").arg("sh setup.sh").arg_all(["--", "true"]);
    let mut terminal = program.start_on_terminal();
    wait_for(&lab, &["setup"]);
    terminal.press_ctrl_c();
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(130), "{screen}");
    database.assert_nothing_left(&lab);
}
