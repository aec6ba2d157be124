//! The other commands: runs, query, record, doctor, init, completions.

use serde_json::Value;

use crate::lab::{Lab, Outcome, Server};

#[track_caller]
fn json(outcome: &Outcome) -> Vec<Value> {
    let value: Value =
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}\n{}", outcome.all()));
    value.as_array().unwrap_or_else(|| panic!("no array\n{}", outcome.all())).clone()
}

#[track_caller]
fn query(lab: &Lab, format: &str, sql: &str) -> Outcome {
    lab.isolane("query --format").arg(format).arg(sql).run()
}

#[test]
fn help_names_every_command_and_every_option() {
    let lab = Lab::new();
    let help = lab.isolane("--help").run().assert_code(0);
    let commands = ["run", "runs", "query", "report", "record", "template", "doctor", "init", "completions"];
    for command in commands {
        let starts = |line: &str| line.trim_start().strip_prefix(command).is_some_and(|rest| rest.starts_with(' '));
        assert!(help.out().lines().any(starts), "no {command}\n{}", help.all());
        let own = lab.isolane(command).arg("--help").run().assert_code(0);
        assert!(own.out().contains("Usage: isolane"), "{}", own.all());
    }
    let run = lab.isolane("run --help").run().assert_code(0).out();
    let options = [
        "--runner",
        "--database-url",
        "--isolation",
        "--setup",
        "--setup-input",
        "--workers",
        "--keep",
        "--env",
        "--url-var",
        "--ledger",
        "--report",
        "--quiet",
        "--config",
    ];
    for option in options {
        assert!(run.contains(option), "no {option} in\n{run}");
    }
    lab.isolane("--version").run().assert_code(0).assert_shows(env!("CARGO_PKG_VERSION"));
}

#[test]
fn runs_lists_the_runs_as_a_table_as_json_and_as_csv() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    lab.wrap("", "false").run().assert_code(1);
    let rows = json(&lab.isolane("runs --format json").run().assert_code(0));
    assert_eq!(rows.len(), 2);
    let mut states: Vec<_> = rows.iter().map(|row| row["state"].as_str().expect("text")).collect();
    states.sort_unstable();
    assert_eq!(states, ["failed", "passed"]);
    let columns: Vec<_> = rows[0].as_object().expect("an object").keys().map(String::as_str).collect();
    for column in ["run_id", "tag", "command", "runner", "host", "cwd", "started_at", "ended_at", "exit_code", "state"]
    {
        assert!(columns.contains(&column), "{columns:?}");
    }
    let failed = rows.iter().find(|row| row["state"] == "failed").expect("the second");
    assert_eq!(failed["exit_code"], 1, "a number stays a number");

    let csv = lab.isolane("runs --format csv").run().assert_code(0).out();
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(lines[0].starts_with("run_id,tag,command,"), "{csv}");
    for output in [csv, lab.isolane("runs").run().assert_code(0).out()] {
        assert!(lab.column("SELECT tag FROM runs").iter().all(|tag| output.contains(tag)), "{output}");
    }
}

#[test]
fn query_answers_in_every_format() {
    let lab = Lab::new();
    lab.wrap("-n 2", "true").run().assert_code(0);
    let sql = "SELECT worker_id, lane, NULL AS empty, 1.5 AS half, 'a,\"b' AS odd FROM workers ORDER BY lane";
    let rows = json(&query(&lab, "json", sql).assert_code(0));
    let expected = serde_json::json!([
        {"worker_id": "w0", "lane": 0, "empty": null, "half": 1.5, "odd": "a,\"b"},
        {"worker_id": "w1", "lane": 1, "empty": null, "half": 1.5, "odd": "a,\"b"},
    ]);
    assert_eq!(Value::Array(rows), expected);
    let csv = query(&lab, "csv", sql).assert_code(0).out();
    assert_eq!(csv, "worker_id,lane,empty,half,odd\nw0,0,,1.5,\"a,\"\"b\"\nw1,1,,1.5,\"a,\"\"b\"\n");
    let table = query(&lab, "table", sql).assert_code(0).assert_shows("worker_id").assert_shows("w1");
    assert_eq!(table.err(), "", "data goes to stdout, and nothing else anywhere");
    assert_eq!(json(&query(&lab, "json", "SELECT * FROM tests").assert_code(0)), Vec::<Value>::new());
}

#[test]
fn query_refuses_everything_that_writes() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    let writes = [
        "DELETE FROM runs",
        "DROP VIEW runs",
        "CREATE TABLE x (y)",
        "PRAGMA user_version = 7",
        "ATTACH 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "SELECT 1; DROP VIEW runs",
    ];
    let before = lab.column("SELECT sql FROM sqlite_master ORDER BY name");
    for sql in writes {
        let outcome = query(&lab, "json", sql);
        assert!(!outcome.status.success() && outcome.err().lines().count() == 1, "{}", outcome.all());
        assert_eq!(outcome.out(), "", "{sql}");
    }
    assert_eq!(lab.column("SELECT sql FROM sqlite_master ORDER BY name"), before);
    assert_eq!(lab.value("SELECT count(*) FROM runs"), "1");
    for name in ["other.db", "copy.db"] {
        assert!(!lab.path(name).exists(), "{name} was made");
    }
    let wrong = query(&lab, "json", "SELECT no_such_column FROM runs");
    assert!(!wrong.status.success() && wrong.err().contains("no_such_column"), "{}", wrong.all());
}

#[test]
fn without_a_ledger_there_is_a_clear_word_and_no_file() {
    let lab = Lab::new();
    for args in ["runs", "query SELECT"] {
        let outcome = lab.isolane(args).run();
        assert!(outcome.status.code() != Some(101) && outcome.err().lines().count() <= 1, "{}", outcome.all());
        assert!(!lab.path(".isolane").exists(), "{args} makes no ledger");
    }
    let none = |args: &str, place: &str| {
        let outcome = lab.isolane(&format!("{args} {place}")).run().assert_code(2);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        outcome.assert_says("there is no ledger at ").assert_says("ledger.db");
    };
    for args in
        ["runs", "lease list", "lease list --waiting", "leases", "pool list", "pool list acct", "serve --tokens"]
    {
        none(args, "--ledger no/such/ledger.db");
    }
    none("runs", "");
    none("serve --tokens", "");
    assert!(!lab.path(".isolane").exists() && !lab.path("no").exists(), "looking makes no ledger");
    // In the usual place nothing is held before the first run, and what the configuration says can
    // be looked at.
    lab.isolane("lease list").run().assert_code(0).assert_says("no lease is held");
    lab.file("isolane.toml", "[pool.acct]\nitems = [7]\n");
    lab.isolane("pool list acct --ledger no/such/ledger.db").run().assert_code(2);
    lab.isolane("pool list acct").run().assert_code(0).assert_shows("free");
}

#[test]
fn record_registers_an_outside_thing_and_its_cleaner_removes_it() {
    let lab = Lab::new();
    lab.file("isolane.toml", "[cleaner.bucket]\nrun = \"echo gone {key} >>cleaned; test {key} != stubborn\"\n");
    let script =
        "isolane record bucket photos-$WORKER_ID && isolane record bucket \"it's; here\" && isolane record other 1";
    let outcome = lab.sh("-n 2", script).run().assert_code(0);
    let outcome = outcome.assert_says("2 records of kind other left alone").assert_says("nothing is left");
    let cleaned = lab.read("cleaned");
    for key in ["photos-w0", "photos-w1", "it's; here"] {
        assert!(cleaned.lines().any(|line| line == format!("gone {key}")), "{cleaned}{}", outcome.all());
    }
    let states = lab.ledger("SELECT DISTINCT kind, state, source FROM records ORDER BY 1");
    assert_eq!(states[0], ["bucket", "removed", "api"], "{states:?}");
    assert_eq!(states[1][0], "other", "{states:?}");
    assert_eq!(lab.column("SELECT DISTINCT worker_id FROM records ORDER BY 1"), ["w0", "w1"]);

    let outcome = lab.sh("", "isolane record bucket stubborn").run().assert_code(123).assert_says("stubborn");
    assert_eq!(lab.ledger("SELECT state FROM records WHERE key LIKE '%stubborn%'"), [["stuck"]], "{}", outcome.all());
    let failed = lab.sh("", "isolane record bucket stubborn; exit 4").run();
    failed.assert_code(4).assert_says("stubborn");
}

#[test]
fn record_knows_the_test_that_made_the_thing() {
    let lab = Lab::new();
    lab.file(
        "test_makes.py",
        "import subprocess\ndef test_makes(): subprocess.run(['isolane', 'record', 'customer', '17'], check=True)\n",
    );
    lab.pytest("-n 2").run().assert_code(0);
    assert_eq!(lab.column("SELECT test_id FROM records"), ["test_makes.py::test_makes"]);
}

#[test]
fn setup_in_the_file_runs_beside_the_file() {
    let lab = Lab::new();
    lab.file("isolane.toml", "setup = \"pwd >where\"\n").file("deep/er/x", "");
    lab.wrap("", "true").within(&lab.path("deep/er")).run().assert_code(0);
    assert_eq!(lab.read("where").trim(), lab.dir().to_str().expect("text"));
    lab.isolane("run --setup").arg("pwd >here").arg_all(["--", "true"]).within(&lab.path("deep")).run().assert_code(0);
    assert!(lab.path("deep/here").exists());
}

#[test]
fn record_outside_a_run_is_an_error() {
    let lab = Lab::new();
    let outcome = lab.isolane("record bucket photos").run().assert_code(69);
    assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
    let away = lab.isolane("record bucket photos").env("ISOLANE_SOCKET", lab.path("no.sock")).run();
    assert_eq!(away.assert_code(69).err().lines().count(), 1);
}

#[test]
fn doctor_says_what_would_work_here_and_why_not() {
    let lab = Lab::new();
    let outcome = lab.isolane("doctor").run().assert_code(0);
    for subject in ["pytest", "nextest", "SQLite"] {
        assert!(outcome.out().to_lowercase().contains(&subject.to_lowercase()), "no {subject}\n{}", outcome.all());
    }
    let database = Server::shared().database("");
    let outcome = lab.isolane("doctor").env("DATABASE_URL", database.url()).run();
    let text = outcome.out();
    assert!(
        text.contains("PostgreSQL") && text.contains("may not create databases"),
        "the missing right is named\n{}",
        outcome.all()
    );
    assert!(!text.contains(&database.password), "{}", outcome.all());
    let rows = json(&lab.isolane("doctor --format json").run().assert_code(0));
    assert!(!rows.is_empty());
    let away = lab.isolane("doctor").env("DATABASE_URL", "postgresql://ann@127.0.0.1:1/x").run();
    assert!(away.out().contains("127.0.0.1"), "{}", away.all());
    lab.assert_nothing_left();
}

#[test]
fn init_writes_a_configuration_that_works_and_never_over_one() {
    let lab = Lab::new();
    lab.isolane("init").run().assert_code(0);
    let text = lab.read("isolane.toml");
    for key in ["database-url", "isolation", "setup", "keep", "url-var", "report", "[env]"] {
        assert!(text.contains(key), "no {key} in\n{text}");
    }
    lab.wrap("", "true").run().assert_code(0);
    lab.file("isolane.toml", "quiet = true\n");
    let outcome = lab.isolane("init").run();
    assert!(!outcome.status.success() && outcome.err().contains("isolane.toml"), "{}", outcome.all());
    assert_eq!(lab.read("isolane.toml"), "quiet = true\n");
}

#[test]
fn every_setting_that_init_shows_is_understood() {
    let lab = Lab::new();
    lab.isolane("init").run().assert_code(0);
    let shown = lab.read("isolane.toml");
    // Lines such as `# keep = "never"` are settings; the other comments are prose.
    let is_setting =
        |line: &str| line.strip_prefix("# ").is_some_and(|rest| rest.starts_with('[') || rest.contains(" = "));
    let uncommented: Vec<_> = shown.lines().map(|line| if is_setting(line) { &line[2..] } else { line }).collect();
    lab.file("isolane.toml", &uncommented.join("\n"));
    let outcome = lab.wrap("--isolation none --database-url sqlite:x.db", "true").run();
    assert!(!outcome.err().contains("unknown"), "{}\n{}", outcome.all(), uncommented.join("\n"));
}

#[test]
fn completions_are_for_every_shell() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish"] {
        lab.isolane("completions").arg(shell).run().assert_code(0).assert_shows("isolation");
    }
    let script = "eval \"$(isolane completions bash)\" && complete -p isolane";
    lab.program("bash").arg("-c").arg(script).run().assert_code(0).assert_shows("isolane");
}

#[test]
fn settings_come_from_the_file_and_options_win() {
    let lab = Lab::new();
    lab.file("isolane.toml", "workers = 3\nkeep = \"never\"\n[env]\nFROM = \"file\"\n");
    lab.wrap("", "python witness.py 3").run().assert_code(0);
    assert_eq!(lab.seen().names(), ["w0", "w1", "w2"]);
    assert_eq!(lab.seen().distinct("FROM"), ["file"]);
    lab.file("other.toml", "workers = 1\n");
    for options in ["-n 1 --env FROM=option", "--config other.toml --env FROM=option"] {
        let outcome = lab.sh(options, "echo $WORKER_ID $FROM").run().assert_code(0);
        assert_eq!(outcome.out(), "w0 option\n");
    }
    // The word of the command stands above the variable, the variable above the file.
    with_address(&lab, "file", "");
    with_address(&lab, "variable", "");
    with_address(&lab, "option", "--database-url sqlite+option:///x.db");
}

#[track_caller]
fn with_address(lab: &Lab, driver: &str, options: &str) {
    lab.file("isolane.toml", "database-url = \"sqlite+file:///x.db\"\n");
    let run = lab.sh(options, "echo $DATABASE_URL");
    let run = if driver == "file" { run } else { run.env("DATABASE_URL", "sqlite+variable:///x.db") };
    let outcome = run.run().assert_code(0);
    assert!(outcome.out().starts_with(&format!("sqlite+{driver}:")), "{}", outcome.all());
}
