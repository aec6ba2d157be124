//! isolane as a job of a shell and under a debugger: the terminal is the command's.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::lab::{Lab, Server, alive_in, wait_until};

/// The state letters of the lab's processes whose command line says `what` (proc(5)).
fn states(lab: &Lab, what: &str) -> String {
    let pids = alive_in(lab.home()).into_iter().filter(|process| process.contains(what));
    pids.filter_map(|process| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.split(' ').next()?)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    })
    .collect()
}

#[test]
fn ctrl_z_stops_the_job_and_fg_goes_on() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("work.sh", ": >$SEEN/ready; until [ -e go ]; do sleep 0.01; done; echo worked on");
    let mut terminal = lab.program("bash").arg_all(["--norc", "--noprofile", "-i"]).start_on_terminal();
    terminal.type_line("isolane run -- sh work.sh");
    wait_until("it works", || lab.path("../seen/ready").exists());
    terminal.press_ctrl_z();
    terminal.wait_for("Stopped");
    wait_until("both are stopped", || states(&lab, "isolane run") == "T" && states(&lab, "sh work.sh").contains('T'));
    terminal.type_line("fg");
    wait_until("both go on", || {
        !states(&lab, "isolane run").contains('T') && !states(&lab, "sh work.sh").contains('T')
    });
    lab.file("go", "");
    terminal.wait_for("nothing is left");
    terminal.type_line("echo code=$?; exit");
    terminal.wait_for("code=0");
    assert!(terminal.screen().contains("worked on"));
    terminal.finish();
    database.assert_nothing_left(&lab);
}

/// Whether a process has taken all signals that came for it (proc(5)).
fn hung_up(pid: nix::unistd::Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("ShdPnd") || line.starts_with("SigPnd"))
        .all(|line| line.ends_with("0000000000000000"))
        && fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|path| path.to_string_lossy().contains("deleted"))
}

#[test]
fn a_terminal_that_hangs_up_ends_the_run_and_leaves_nothing() {
    let database = Server::shared().database("CREATEDB");
    for ignores in ["", "trap '' HUP; "] {
        let lab = Lab::on(&database);
        let mut terminal = lab.sh("-n 2", &format!("{ignores}: >$SEEN/$WORKER_ID; exec sleep 600")).start_on_terminal();
        wait_until("both work", || ["w0", "w1"].iter().all(|worker| lab.path("../seen").join(worker).exists()));
        let pid = terminal.pid();
        terminal.hang_up();
        if !ignores.is_empty() {
            // isolane waits for a command that wants to go on, until it is told again.
            wait_until("it was heard", || hung_up(pid));
            nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it waits");
        }
        let (status, _) = terminal.finish();
        assert!(matches!(status.code(), Some(129 | 137)), "{status:?} {:?}", status.signal());
        database.assert_nothing_left(&lab);
    }
}

#[test]
fn the_debugger_of_pytest_is_at_the_terminal() {
    let lab = Lab::new();
    lab.file("test_wrong.py", "def test_wrong():\n    answer = 41\n    assert answer == 42\n");
    let mut terminal = lab.wrap("", "pytest -q -p no:cacheprovider --pdb").start_on_terminal();
    terminal.wait_for("(Pdb)");
    terminal.type_line("p answer + 959");
    terminal.wait_for("1000");
    terminal.type_line("q");
    let (status, screen) = terminal.finish();
    assert_eq!(status.code(), Some(2), "{screen}");
    lab.assert_nothing_left();
}

#[test]
fn a_daemon_that_forked_twice_is_stopped_with_its_run() {
    let lab = Lab::new();
    lab.file(
        "daemon.py",
        "
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.chdir('/')
open(os.environ['SEEN'] + '/daemon', 'w').write(str(os.getpid()))
time.sleep(600)
",
    );
    let script = "python daemon.py; until [ -s $SEEN/daemon ]; do sleep 0.01; done; : >$SEEN/ready";
    lab.sh("", script).run().assert_code(0);
    lab.assert_nothing_left();
    let stubborn = "trap ': >$SEEN/got' INT; while :; do sleep 0.05; done";
    for (then, signals) in [("exec sleep 600", 1), (stubborn, 2)] {
        for seen in ["daemon", "ready"] {
            fs::remove_file(lab.path("../seen").join(seen)).expect("it was there");
        }
        let mut terminal = lab.sh("", &format!("{script}; {then}")).start_on_terminal();
        wait_until("it is ready", || lab.path("../seen/ready").exists());
        terminal.press_ctrl_c();
        if signals == 2 {
            // Two that come at once would count as one.
            wait_until("it got the first", || lab.path("../seen/got").exists());
            terminal.press_ctrl_c();
        }
        terminal.finish();
        lab.assert_nothing_left();
    }
}
