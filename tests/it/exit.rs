//! Exit codes, and that the command's arguments, input and output stay its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::lab::Lab;

#[test]
fn the_codes_of_the_command_are_the_codes_of_the_run() {
    let lab = Lab::new();
    for code in [0, 1, 2, 42, 100, 255] {
        lab.sh("", &format!("exit {code}")).run().assert_code(code);
    }
    let ended = lab.column("SELECT exit_code || ' ' || state FROM runs ORDER BY started_at, run_id");
    assert_eq!(ended, ["0 passed", "1 failed", "2 failed", "42 failed", "100 failed", "255 failed"]);
    lab.assert_nothing_left();
}

#[test]
fn a_signal_that_ends_the_command_counts_128_more() {
    let lab = Lab::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("INT", 130), ("SEGV", 139)] {
        lab.sh("", &format!("kill -{signal} $$")).run().assert_code(code);
    }
    lab.assert_nothing_left();
}

#[test]
fn what_is_not_found_is_127_and_what_cannot_be_executed_126() {
    let lab = Lab::new();
    lab.file("no-program", "just text");
    for (command, code) in [("no-such-command-here", 127), ("./no-such-file", 127), ("./no-program", 126)] {
        let outcome = lab.wrap("", command).run().assert_code(code).assert_says(command);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
    }
    lab.assert_nothing_left();
}

#[test]
fn a_run_that_cannot_start_is_125() {
    let lab = Lab::new();
    lab.sh("", "echo started >started").env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x").run().assert_code(125);
    assert!(!lab.path("started").exists());
    lab.assert_nothing_left();
}

#[test]
fn the_first_copy_that_fails_decides_the_code() {
    let lab = Lab::new();
    // w0 fails too, but only once w1 is seen to be over.
    let script = "case $WORKER_ID in
        w0) until [ -s pid ]; do sleep 0.01; done; while kill -0 $(cat pid) 2>/dev/null; do sleep 0.01; done; exit 3;;
        w1) echo $$ >pid.part; mv pid.part pid; exit 7;;
        w2) exit 0;;
    esac";
    lab.sh("-n 3", script).run().assert_code(7);
    lab.assert_nothing_left();
}

#[test]
fn stdout_is_the_commands_own_byte_for_byte() {
    let lab = Lab::new();
    let outcome = lab.sh("", r"printf '\000\377\033[1mno newline at the end'; printf 'on stderr\n' >&2").run();
    assert_eq!(outcome.stdout, b"\0\xff\x1b[1mno newline at the end");
    assert!(outcome.err().lines().any(|line| line == "on stderr"), "{}", outcome.all());

    lab.file("test_one.py", "def test_one():\n    print('x')\n");
    // How long it takes is another each time.
    let command = "pytest -q -rA -p no:cacheprovider --durations=0 --durations-min=60";
    let words: Vec<&str> = command.split(' ').collect();
    let bare = lab.program(words[0]).arg_all(&words[1..]).run().assert_code(0);
    let wrapped = lab.wrap("", command).run().assert_code(0);
    let without_times =
        |text: String| text.lines().map(|line| line.split(" in 0.").next().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(without_times(wrapped.out()), without_times(bare.out()));
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let lab = Lab::new();
    let args: [&[u8]; 6] = [b"", b"two words", b"--", b"-n", b"\xff\xfe", b"$HOME '\"\n"];
    let command = ["printf", "<%s>"].into_iter().map(OsStr::new);
    let outcome = lab.run("", command.chain(args.map(OsStr::from_bytes))).run().assert_code(0);
    assert_eq!(outcome.stdout, b"<><two words><--><-n><\xff\xfe><$HOME '\"\n>");
}

#[test]
fn arguments_need_no_dashes_before_them() {
    let lab = Lab::new();
    let outcome = lab.isolane("run printf %s-%s -n --quiet").run().assert_code(0);
    assert_eq!(outcome.out(), "-n---quiet");
}

#[test]
fn input_is_passed_on() {
    let lab = Lab::new();
    let input: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let outcome = lab.wrap("", "cat").input(&input).run().assert_code(0);
    assert!(outcome.stdout == input, "{} bytes came back of {}", outcome.stdout.len(), input.len());
}

#[test]
fn the_working_folder_is_the_users() {
    let lab = Lab::new();
    let outcome = lab.wrap("", "pwd -P").run().assert_code(0);
    assert_eq!(outcome.out().trim_end(), lab.dir().canonicalize().expect("it is there").to_str().expect("UTF-8"));
}

#[test]
fn lines_of_several_copies_say_whose_they_are() {
    let lab = Lab::new();
    let script = "echo out of $WORKER_ID; echo err of $WORKER_ID >&2; printf unfinished";
    let outcome = lab.sh("-n 2", script).run().assert_code(0);
    let mut lines: Vec<_> = outcome.out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["w0 | out of w0", "w0 | unfinished", "w1 | out of w1", "w1 | unfinished"], "{}", outcome.all());
    for worker in ["w0", "w1"] {
        let expected = format!("{worker} | err of {worker}");
        assert!(outcome.err().lines().any(|line| line == expected), "{}", outcome.all());
    }
}

#[test]
fn a_summary_of_at_most_ten_lines_ends_the_run() {
    let lab = Lab::new();
    lab.file("test_one.py", "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_one(n): pass\n");
    let outcome = lab.pytest("-n 2").run().assert_code(0);
    let said = outcome.said();
    assert!((1..=10).contains(&said.len()), "{}", outcome.all());
    assert_eq!(said.len(), outcome.err().lines().count(), "every line says whose it is\n{}", outcome.all());
    let text = said.join("\n");
    for fact in ["2 workers", "9 tests", "9 passed", "nothing is left", "ledger"] {
        assert!(text.contains(fact), "no {fact:?}\n{}", outcome.all());
    }
    assert!(text.contains(&lab.value("SELECT run_id FROM runs")), "{}", outcome.all());
}

#[test]
fn quiet_says_nothing_when_all_went_well() {
    let lab = Lab::new();
    let outcome = lab.sh("--quiet", "echo text").run().assert_code(0);
    assert_eq!((outcome.out().as_str(), outcome.err().as_str()), ("text\n", ""));
    lab.file("isolane.toml", "quiet = true\n");
    let outcome = lab.sh("", "exit 3").run().assert_code(3);
    assert_eq!(outcome.err(), "");
}

#[test]
fn a_run_inside_a_run_joins_it() {
    let lab = Lab::new();
    let script = "isolane run -- python witness.py; echo inner ended with $?; isolane run -- sh -c 'exit 5'";
    lab.sh("", script).run().assert_code(5).assert_shows("inner ended with 0");
    assert_eq!(lab.value("SELECT count(*) FROM runs"), "1");
    assert_eq!(lab.seen().all("ISOLANE_RUN_ID"), [lab.value("SELECT run_id FROM runs")]);
    lab.assert_nothing_left();
}
