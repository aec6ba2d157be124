//! Kept templates: the pristine state that `--setup` made, for later runs.

use std::path::Path;

use nix::sys::signal::Signal;
use postgres::{Client, NoTls};

use crate::lab::{Database, Lab, Outcome, Program, Server, wait_until};

const KEPT: &str = "SELECT datname::text FROM pg_database WHERE datname LIKE 'isolane\\_template\\_%' ORDER BY 1";
/// Counts how often it ran, and fills a table from its input.
const SETUP: &str = "echo $$ >>setups; psql -qX -v ON_ERROR_STOP=1 -f input.sql";
const INPUT: &str = "CREATE TABLE goods (id serial PRIMARY KEY, name text); INSERT INTO goods (name) VALUES ('lamp');";
const COUNT: &str = "psql -XAtqc 'SELECT count(*) FROM goods'";

/// A project whose setup counts how often it ran.
fn lab(database: &Database<'_>) -> Lab {
    let lab = Lab::on(database);
    lab.file("setup.sh", SETUP).file("input.sql", INPUT).file("count.sh", COUNT).file("setups", "");
    lab
}

/// A run of it with one more option, or none.
fn run(lab: &Lab, options: &str, script: &str) -> Program {
    lab.isolane(&format!("run {options} --setup")).arg("sh setup.sh").arg_all([
        "--setup-input",
        "*.sql",
        "--",
        "sh",
        "-c",
        script,
    ])
}

fn goods(lab: &Lab) -> String {
    run(lab, "", COUNT).run().assert_code(0).out().trim_end().to_owned()
}

fn setups(lab: &Lab) -> usize {
    lab.read("setups").lines().count()
}

fn kept(server: &Server) -> Vec<String> {
    server.texts("postgres", KEPT)
}

#[track_caller]
fn list(lab: &Lab) -> Vec<serde_json::Value> {
    let listed = lab.isolane("template list --format json").run().assert_code(0);
    serde_json::from_str(&listed.out()).unwrap_or_else(|error| panic!("{error}\n{}", listed.all()))
}

#[test]
fn what_the_setup_made_serves_later_runs_until_an_input_changes() {
    let server = Server::own();
    // A login that may create databases, and nothing else.
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    let first = run(&lab, "-n 3", "sh count.sh; psql -qXc 'DELETE FROM goods'").run().assert_code(0);
    assert_eq!(first.out().matches("| 1\n").count(), 3, "{}", first.all());
    let name = kept(&server)[0].clone();
    let first = first.assert_says(&format!("({name}, kept for later runs)"));
    // Three lanes went, and the template did not.
    let first = first.assert_says("removed 3 databases,");
    assert!(first.said().iter().any(|line| line.contains("setup took")), "{}", first.all());
    database.assert_nothing_left(&lab);
    for _ in 0..2 {
        let later = run(&lab, "-n 2", "sh count.sh; psql -qXc 'DELETE FROM goods'").run().assert_code(0);
        assert_eq!(later.out().matches("| 1\n").count(), 2, "{}", later.all());
        let later = later.assert_says(&format!("({name}, kept since ")).assert_says("removed 2 databases,");
        later.assert_does_not_say("setup took");
    }
    assert_eq!(setups(&lab), 1);
    // From another checkout, on another ledger.
    let other = self::lab(&database);
    assert_eq!(goods(&other), "1");
    assert_eq!(setups(&other), 0);
    // A sweep has no business with it.
    other.isolane("sweep --apply").run().assert_code(0).assert_says("nothing to sweep");
    assert_eq!(kept(&server), [name]);

    lab.file("input.sql", &format!("{INPUT} INSERT INTO goods (name) VALUES ('chair');"));
    assert_eq!(goods(&lab), "2");
    lab.file("more.sql", "");
    assert_eq!(goods(&lab), "2");
    assert_eq!((setups(&lab), kept(&server).len()), (3, 3));
    assert_eq!(goods(&other), "1");
    assert_eq!(setups(&other), 0);
    database.assert_nothing_left(&lab);
}

#[test]
fn rows_are_watched_in_lanes_of_a_kept_template() {
    let database = Server::shared().database("CREATEDB");
    let lab = lab(&database);
    for n in 1..=2 {
        run(&lab, "", "psql -qXc \"INSERT INTO goods (name) VALUES ('chair')\"").run().assert_code(0);
        assert_eq!(lab.column("SELECT key FROM touches WHERE op = 'insert' AND kind = 'public.goods'").len(), n);
        assert_eq!(setups(&lab), 1);
    }
    run(&lab, "--no-track", "true").run().assert_code(0);
    assert_eq!(setups(&lab), 2, "triggers are inside of a template");
    lab.isolane("template remove --all").run();
}

#[test]
fn lanes_of_a_kept_template_are_put_back_for_each_test() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    let suite = "import os, psycopg, pytest
@pytest.mark.parametrize('n', range(6))
def test_sells_all(n):
    with psycopg.connect(os.environ['DATABASE_URL']) as db:
        assert db.execute('DELETE FROM goods RETURNING name').fetchall() == [('lamp',)]
";
    lab.file("test_goods.py", suite);
    let run = || {
        let words = "--setup-input *.sql --fresh test -- pytest -q -p no:cacheprovider -n 2";
        lab.isolane("run --setup").arg("sh setup.sh").arg_all(words.split(' ')).run().assert_code(0)
    };
    // Once by copies, as the login may not do otherwise, and then by what the triggers saw.
    for may in [false, false, true, true] {
        if may {
            server.sql("postgres", &format!("ALTER ROLE {} SUPERUSER", database.login));
        }
        let outcome = run();
        assert!(outcome.out().contains("6 passed"), "{}", outcome.all());
        assert_eq!(outcome.err().contains("GRANT SET ON PARAMETER"), !may, "{}", outcome.all());
    }
    assert_eq!(setups(&lab), 2);
    database.assert_nothing_left(&lab);
}

#[test]
fn the_file_says_it_as_well() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    for text in [
        "setup = 'sh setup.sh'\nsetup-input = ['*.sql']\n",
        "[template]\nsetup = 'sh setup.sh'\ninputs = ['*.sql']\nkeep = 3\n",
    ] {
        let lab = lab(&database);
        lab.file("isolane.toml", text).file("deep/x", "");
        for _ in 0..2 {
            lab.sh("", COUNT).within(&lab.path("deep")).run().assert_code(0).assert_shows("1");
        }
        assert!(setups(&lab) < 2);
        // Files that one command reads say nothing of another.
        lab.isolane("run --setup").arg("sh setup.sh; true").arg_all(["--", "true"]).run().assert_code(0);
        assert_eq!(kept(&server).len(), 1);
    }
}

#[test]
fn runs_side_by_side_make_it_once() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let labs = [lab(&database), lab(&database), lab(&database)];
    for lab in &labs {
        // The first waits until the others have come.
        lab.file("setup.sh", &format!("sleep 3; echo $$ >>{}; {SETUP}", labs[0].path("all").display()));
    }
    // The command is a part of the recipe, and so the same for all.
    let runs: Vec<_> = labs.iter().map(|lab| run(lab, "", COUNT).start()).collect();
    let mut said = 0;
    for run in runs {
        let outcome = run.finish().assert_code(0).assert_shows("1");
        said += usize::from(outcome.err().contains("another run is making the same pristine state"));
    }
    assert_eq!(labs[0].read("all").lines().count(), 1);
    assert_eq!(said, 2);
    assert_eq!(kept(&server).len(), 1);
    for lab in &labs {
        database.assert_nothing_left(lab);
    }
}

#[test]
fn a_builder_that_is_killed_leaves_nothing_and_who_waits_builds_it_anew() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    for blow in ["supervisor", "machine"] {
        let killed = lab(&database);
        killed.file("setup.sh", "psql -qXc 'CREATE TABLE half (id int)'; : >$SEEN/setup; exec sleep 600");
        let dying = run(&killed, "", "true").start();
        wait_until("the setup runs", || killed.path("../seen/setup").exists());
        let other = lab(&database);
        let waiting = run(&other, "", COUNT).start();
        wait_until("the other waits", || looking(&server) == 2);
        assert_eq!(setups(&other), 0);
        if blow == "supervisor" {
            dying.signal(Signal::SIGKILL);
        } else {
            killed.lose_machine();
        }
        drop(dying.finish());
        waiting.finish().assert_code(0).assert_shows("1");
        assert_eq!((setups(&other), kept(&server).len()), (1, 1));
        wait_until("its watchdog is done", || blow == "machine" || crate::lab::alive_in(killed.home()).is_empty());
        killed.isolane("sweep --apply").run().assert_code(0);
        other.isolane("template remove --all").run().assert_code(0);
        assert_eq!(server.snapshot(), before, "{blow}");
    }
}

/// How many runs hold locks on templates, or wait for them.
fn looking(server: &Server) -> usize {
    let sessions = "SELECT pid::text FROM pg_stat_activity WHERE application_name LIKE 'isolane template %'";
    server.texts("postgres", sessions).len()
}

#[test]
fn whoever_waits_can_be_interrupted() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let slow = lab(&database);
    slow.file("setup.sh", ": >$SEEN/setup; until [ -e go ]; do sleep 0.01; done");
    let building = run(&slow, "", "true").start();
    wait_until("the setup runs", || slow.path("../seen/setup").exists());
    let other = lab(&database);
    let waiting = run(&other, "", "true").start();
    wait_until("the other waits", || looking(&server) == 2);
    waiting.signal(Signal::SIGTERM);
    waiting.finish().assert_code(143);
    database.assert_nothing_left(&other);
    slow.file("go", "");
    building.finish().assert_code(0);
}

#[test]
fn a_death_at_any_step_leaves_a_whole_template_or_none() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    for point in ["create:before", "create:after", "seal:before", "seal:after", "keep:before", "keep:after"] {
        for deed in ["kill", "error"] {
            let lab = lab(&database);
            let outcome = run(&lab, "", "true").env("ISOLANE_FAULT", format!("{point}={deed}")).run();
            assert!(outcome.err().contains("isolane: fault"), "{}", outcome.all());
            wait_until("nobody is left", || crate::lab::alive_in(lab.home()).is_empty());
            let left = kept(&server);
            assert_eq!(left.len(), usize::from(point == "keep:after"), "{point}={deed}: {left:?}");
            let count = setups(&lab);
            assert_eq!(goods(&lab), "1", "{point}={deed}");
            assert_eq!(setups(&lab), if left.is_empty() { count + 1 } else { count }, "{point}={deed}");
            lab.isolane("template remove --all").run().assert_code(0);
            assert_eq!(server.snapshot(), before, "{point}={deed}");
            database.assert_nothing_left(&lab);
        }
    }
}

#[test]
fn a_setup_that_fails_leaves_no_template_and_shows_its_output() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    let lab = lab(&database);
    lab.file("input.sql", "CREATE TABLE half (id int); SELECT nonsense;");
    for program in [run(&lab, "", "touch started"), build(&lab)] {
        let outcome = program.run().assert_code(125);
        assert!(outcome.err().contains("nonsense"), "{}", outcome.all());
        assert!(!lab.path("started").exists());
        assert_eq!(server.snapshot(), before);
        database.assert_nothing_left(&lab);
    }
    lab.file("input.sql", INPUT);
    assert_eq!(goods(&lab), "1");
}

#[test]
fn a_lane_that_nobody_had_is_the_next_runs_first() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    let lab = lab(&database);
    let spares =
        || server.texts("postgres", "SELECT oid::text FROM pg_database WHERE datname LIKE 'isolane\\_spare\\_%'");
    // A run that goes on for as long as the spare takes.
    let patient = "sh count.sh; until [ $(psql -qXAtc \"SELECT count(*) FROM pg_database WHERE datname LIKE 'isolane%\\_spare'\") = 1 ]; do sleep 0.05; done; sleep 0.3";
    let lane = "psql -qXAtc 'SELECT oid FROM pg_database WHERE datname = current_database()'";
    run(&lab, "-n 2", patient).run().assert_code(0);
    let spare = spares();
    assert_eq!(spare.len(), 1);
    assert_eq!(list(&lab)[0]["spare"], true);
    // Nobody who has it may be told from one who had a copy, and it is there once.
    let oids = run(&lab, "-n 2", &format!("sh count.sh; {lane}")).run().assert_code(0);
    assert_eq!(oids.out().matches("| 1\n").count(), 2, "{}", oids.all());
    assert_eq!(oids.out().matches(&format!("| {}\n", spare[0])).count(), 1, "{}", oids.all());
    assert_ne!(spares(), spare);
    run(&lab, "-n 2", patient).run().assert_code(0);
    // One that was opened may have been written to.
    server.sql("postgres", "DO $$ DECLARE name text; BEGIN SELECT datname INTO name FROM pg_database WHERE datname LIKE 'isolane\\_spare%';
        EXECUTE format('ALTER DATABASE %I ALLOW_CONNECTIONS true', name); END $$");
    let opened = spares();
    assert_eq!(opened.len(), 1);
    run(&lab, "", "sh count.sh; sleep 0.5").run().assert_code(0);
    assert_eq!(spares(), opened, "an open one is nobody's lane");
    assert_eq!(setups(&lab), 1);
    // One whose template is gone is listed, and goes as a template does.
    server.sql("postgres", &format!("DROP DATABASE {}", kept(&server)[0]));
    assert_eq!(list(&lab).len(), 1);
    lab.isolane("template remove --all").run().assert_code(0);
    assert_eq!(server.snapshot(), before);
    database.assert_nothing_left(&lab);
}

fn build(lab: &Lab) -> Program {
    lab.isolane("template build --setup").arg("sh setup.sh").arg_all(["--setup-input", "*.sql"])
}

#[test]
fn templates_are_built_listed_and_removed_by_command() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    let lab = lab(&database);
    lab.isolane("template list").run().assert_code(0).assert_says("no template is kept");
    let built = build(&lab).run().assert_code(0);
    let name = kept(&server)[0].clone();
    assert!(built.out().starts_with(&format!("{name}, kept for later runs; setup took ")), "{}", built.all());
    let again = build(&lab).run().assert_code(0);
    assert!(again.out().starts_with(&format!("{name}, kept since ")), "{}", again.all());
    assert!(again.out().ends_with("; is there already\n"), "{}", again.all());
    assert_eq!(goods(&lab), "1");
    assert_eq!(setups(&lab), 1);

    let listed = list(&lab);
    assert_eq!(listed.len(), 1);
    let row = &listed[0];
    assert_eq!((row["name"].as_str(), row["command"].as_str()), (Some(name.as_str()), Some("sh setup.sh")));
    let fingerprint = row["fingerprint"].as_str().expect("text").to_owned();
    assert!(fingerprint.len() == 64 && name.ends_with(&fingerprint[..16]), "{row}");
    assert!(row["size"].as_i64().is_some_and(|size| size > 1_000_000) && row["used_by"] == "", "{row}");
    lab.isolane("template list").run().assert_code(0).assert_shows(&fingerprint);
    let csv = lab.isolane("template list --format csv").run().assert_code(0);
    assert!(csv.out().starts_with("fingerprint,name,made,used,size,spare,used_by,host,command\n"), "{}", csv.all());

    let unknown = lab.isolane("template remove ffff0000ffff").run().assert_code(2);
    assert!(unknown.err().contains("isolane template list"), "{}", unknown.all());
    lab.isolane("template remove").run().assert_code(2);
    lab.isolane("template remove").arg(&fingerprint[..6]).run().assert_code(0).assert_says(&format!("removed {name}"));
    assert_eq!(server.snapshot(), before);
    lab.isolane("template remove --all").run().assert_code(0).assert_says("no template is kept");
    // The building was no run of anybody's.
    assert_eq!(lab.column("SELECT command FROM runs").len(), 1);
    database.assert_nothing_left(&lab);
}

#[test]
fn no_password_of_the_command_is_on_the_server() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    let setup = format!("PGPASSWORD={} psql -qXf input.sql '{}'", database.password, database.url());
    let build = lab.isolane("template build --setup").arg(setup).arg_all(["--setup-input", "input.sql"]);
    // It works in the base database, which is as bad an idea as any.
    build.run().assert_code(0);
    assert!(list(&lab)[0]["command"].as_str().expect("text").contains("PGPASSWORD=***"));
    assert!(server.snapshot().iter().all(|line| !line.contains(&database.password)));
}

#[test]
fn what_a_run_uses_stays() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    let using = run(&lab, "", ": >$SEEN/there; until [ -e go ]; do sleep 0.01; done").start();
    wait_until("it works", || lab.path("../seen/there").exists());
    let tag = lab.tag();
    assert_eq!(list(&lab)[0]["used_by"], tag.as_str());
    lab.isolane("template remove --all").run().assert_code(123).assert_says(&format!("in use by the run {tag}"));
    // A limit does not take it either.
    let other = self::lab(&database);
    other.file("isolane.toml", "[template]\nkeep = 1\n").file("other.sql", "");
    run(&other, "", "true").run().assert_code(0).assert_says("2 templates are kept, over the limit of 1");
    assert_eq!(kept(&server).len(), 2);
    lab.file("go", "");
    using.finish().assert_code(0);
    lab.isolane("template remove --all").run().assert_code(0);
    assert_eq!(kept(&server), [""; 0]);
}

#[test]
fn those_not_used_for_the_longest_time_go_first() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let others = server.database("CREATEDB");
    assert_eq!(goods(&lab(&others)), "1");
    let lab = lab(&database);
    lab.file("isolane.toml", "[template]\nkeep = 2\n");
    let mut made = kept(&server);
    for n in 1..=3 {
        lab.file("input.sql", &format!("{INPUT} SELECT {n};"));
        goods(&lab);
        let rows = list(&lab);
        let new = rows.iter().map(|row| row["name"].as_str().expect("text").to_owned());
        made.extend(new.filter(|name| !made.contains(name)).collect::<Vec<_>>());
        if n == 2 {
            // The first was used since: the comment says so after a minute.
            let comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = ";
            for (name, used) in [(&made[1], "2000-01-01"), (&made[2], "1999-01-01")] {
                let text = server.texts("postgres", &format!("{comment}'{name}'"))[0].clone();
                let (head, rest) = text.split_once(" used ").expect("the last use");
                let text = format!("{head} used {used}{}", &rest[10..]);
                server.sql("postgres", &format!("COMMENT ON DATABASE {name} IS '{text}'"));
            }
            lab.file("input.sql", &format!("{INPUT} SELECT 2;"));
            goods(&lab);
        }
    }
    // Those of the other login do not count.
    let left = kept(&server);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(!left.contains(&made[1]) && left.contains(&made[0]) && left.contains(&made[2]), "{made:?} {left:?}");
}

#[test]
fn one_that_vanished_is_made_again_and_said_to_be_gone_where_it_is_too_late() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    assert_eq!(goods(&lab), "1");
    server.sql("postgres", &format!("DROP DATABASE {}", kept(&server)[0]));
    assert_eq!(goods(&lab), "1");
    assert_eq!(setups(&lab), 2);
    let drop = format!("psql -qX '{}' -c 'DROP DATABASE {}'", server.admin_url("postgres"), kept(&server)[0]);
    // Between the look and the lanes.
    lab.file("drop.sh", &format!("{drop}; env | grep -q ISOLANE_LANE=1 || exec isolane-never"));
    lab.file("test_goods.py", "import subprocess\ndef test_a(): subprocess.run(['sh', 'drop.sh'])\n");
    let fault = run(&lab, "", "true").env("ISOLANE_FAULT", "hand-out:before=pause").start();
    drop_while_paused(&lab, &server, fault.pid().as_raw());
    let outcome = fault.finish();
    assert_eq!(outcome.status.code(), Some(0), "{}", outcome.all());
    assert_eq!(goods(&lab), "1");
    assert_eq!(setups(&lab), 3);
    database.assert_nothing_left(&lab);
}

/// Drops the kept template while the run with this pid stands still.
fn drop_while_paused(lab: &Lab, server: &Server, pid: i32) {
    let stat = format!("/proc/{pid}/stat");
    wait_until("it stands still", || {
        std::fs::read_to_string(&stat)
            .unwrap_or_default()
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    });
    assert!(Path::new(&lab.ledger_path()).exists());
    server.sql("postgres", &format!("DROP DATABASE {}", kept(server)[0]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT).expect("ours");
}

fn connect(server: &Server, database: &str) -> Client {
    server.admin_url(database).parse::<postgres::Config>().expect("an address").connect(NoTls).expect("a session")
}

#[test]
fn one_that_was_opened_is_closed_again() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    assert_eq!(goods(&lab), "1");
    let name = kept(&server)[0].clone();
    server.sql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    let mut own = {
        let url = database.url().replace(&format!("/{}", database.name), &format!("/{name}"));
        url.parse::<postgres::Config>().expect("an address").connect(NoTls).expect("a session")
    };
    let outcome = run(&lab, "-n 2", COUNT).run().assert_code(0).assert_says("which somebody had opened");
    assert_eq!(outcome.out().matches("| 1\n").count(), 2, "{}", outcome.all());
    assert!(own.batch_execute("SELECT 1").is_err(), "its session is over");
    assert_eq!(setups(&lab), 1);

    // A session that the login may not end.
    server.sql("postgres", &format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    let _session = connect(&server, &name);
    let outcome = run(&lab, "", COUNT).run().assert_code(125);
    assert_eq!(outcome.said().len(), 1, "{}", outcome.all());
    outcome.assert_says(&format!("admin is connected to the kept template {name}"));
    database.assert_nothing_left(&lab);
}

#[test]
fn a_database_that_is_only_called_alike_is_left_alone() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    assert_eq!(goods(&lab), "1");
    let name = kept(&server)[0].clone();
    server.sql("postgres", &format!("COMMENT ON DATABASE {name} IS 'mine'"));
    for _ in 0..2 {
        let outcome = run(&lab, "", COUNT).run().assert_code(0).assert_shows("1");
        outcome.assert_says(&format!("there is a database {name} already, which isolane did not mark"));
    }
    assert_eq!(setups(&lab), 3);
    // The first run may have left a spare, which is isolane's.
    lab.isolane("template remove --all").run().assert_code(0);
    lab.isolane("template list").run().assert_code(0).assert_says("no template is kept");
    assert_eq!(kept(&server), [name]);
    database.assert_nothing_left(&lab);
}

#[test]
fn what_a_removal_left_half_is_made_again() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    assert_eq!(goods(&lab), "1");
    // As a DROP DATABASE leaves it that was cut off.
    server.sql("postgres", &format!("UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'", kept(&server)[0]));
    assert_eq!(goods(&lab), "1");
    assert_eq!(goods(&lab), "1");
    assert_eq!((setups(&lab), kept(&server).len()), (2, 1));
}

#[test]
fn inputs_that_change_while_the_setup_runs_make_a_state_for_one_run() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let lab = lab(&database);
    lab.file("setup.sh", &format!("{SETUP}; echo '-- changed' >>input.sql"));
    for n in 1..=2 {
        let outcome = run(&lab, "", COUNT).run().assert_code(0).assert_shows("1");
        outcome.assert_says("changed while the setup ran");
        assert_eq!((setups(&lab), kept(&server).len()), (n, 0));
    }
    database.assert_nothing_left(&lab);
}

#[test]
fn mistakes_are_one_line_and_leave_nothing() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let lab = lab(&database);
    let refused = |program: Program, code: i32, part: &str| -> Outcome {
        let outcome = program.run().assert_code(code).assert_says(part);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        assert!(!lab.path("started").exists() && setups(&lab) == 0);
        outcome
    };
    let with = |options: &[&str]| lab.isolane("run").arg_all(options).arg_all(["--", "touch", "started"]);
    refused(with(&["--setup", "sh setup.sh", "--setup-input", "migrations/*.sq"]), 2, "matches no file in");
    refused(with(&["--setup", "sh setup.sh", "--setup-input", "a[b"]), 2, "is no pattern of files");
    refused(with(&["--setup-input", "*.sql"]), 2, "there is no --setup");
    refused(lab.isolane("template build --setup true"), 2, "--setup-input");
    refused(lab.isolane("template list --database-url sqlite:x.db"), 2, "no PostgreSQL server is named");
    let away = lab.isolane("template list --database-url postgresql://ann@127.0.0.1:1/x");
    refused(away, 125, "cannot reach the PostgreSQL server at 127.0.0.1:1");
    lab.assert_nothing_left();
}

#[test]
fn where_nothing_can_be_kept_each_run_makes_it_and_says_so() {
    let database = Server::shared().database("CREATEDB CREATEROLE");
    let lab = lab(&database);
    for n in 1..=2 {
        let outcome = run(&lab, "--isolation schema", COUNT).run().assert_code(0).assert_shows("1");
        outcome.assert_says("here each run makes it");
        assert_eq!(setups(&lab), n);
    }
    let refused = build(&lab).arg_all(["--isolation", "schema"]).run().assert_code(125);
    refused.assert_says("here each run makes it");
    database.assert_nothing_left(&lab);
}
