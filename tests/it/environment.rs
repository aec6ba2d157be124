//! What a worker finds in its environment, under every runner.

use regex_lite::Regex;

use crate::lab::{Env, Lab, Seen, Server, many_tests};

/// Four tests that cannot end before four workers run them.
const SUITE: &str = "
import os, pytest, witness
@pytest.mark.parametrize('n', range(4))
def test_meets(n):
    witness.meet(int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1)))
    witness.note(os.environ['WORKER_ID'])
";
const CONFTEST: &str = "
import os, witness
witness.note('import-' + os.environ.get('PYTEST_XDIST_WORKER', 'controller'))
";
const RUST_TEST: &str = "witness::meet(3); witness::note(&std::env::var(\"WORKER_ID\").unwrap());";

/// What every worker has, whatever the runner and the database.
#[track_caller]
fn assert_identity(seen: &Seen, names: &[&str]) {
    assert_eq!(seen.names(), names);
    let ids = seen.distinct("ISOLANE_RUN_ID");
    assert_eq!(ids.len(), 1, "one run: {ids:?}");
    let id = Regex::new("^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$").expect("a pattern");
    assert!(id.is_match(ids[0]), "a UUID of version 7: {ids:?}");
    let tag = &ids[0][24..];
    let mut lanes: Vec<usize> = seen.all("ISOLANE_LANE").iter().map(|lane| lane.parse().expect("a number")).collect();
    lanes.sort_unstable();
    assert_eq!(lanes, (0..names.len()).collect::<Vec<_>>(), "dense lanes");
    for (name, env) in seen.iter() {
        let lane = &env["ISOLANE_LANE"];
        assert_eq!(&env["WORKER_ID"], name);
        assert_eq!(env["ISOLANE_PREFIX"], format!("i{tag}w{lane}x"));
        assert_eq!(env["SOCKET_MODE"], "0o700", "nobody else reaches the socket");
        assert_eq!(env["SOCKET_IS_THERE"], "True");
        assert_eq!(env["DIR_IS_THERE"], "True");
        assert!(env["TMPDIR"].starts_with(&env["ISOLANE_DIR"]), "{env:#?}");
        assert_eq!(env["FREE_PORTS"], "20");
        assert!(env["DATABASE_URL"].contains(&env["ISOLANE_SCHEMA"]), "{env:#?}");
    }
    for own in ["ISOLANE_SCHEMA", "ISOLANE_DIR", "TMPDIR", "DATABASE_URL"] {
        assert_eq!(seen.distinct(own).len(), names.len(), "{own} belongs to one lane: {:?}", seen.all(own));
    }
    assert_ports_are_apart(seen);
}

#[track_caller]
fn assert_ports_are_apart(seen: &Seen) {
    let mut bases: Vec<u16> = seen.all("ISOLANE_PORT_BASE").iter().map(|base| base.parse().expect("a port")).collect();
    bases.sort_unstable();
    assert!(bases.windows(2).all(|pair| pair[1] - pair[0] >= 20), "twenty ports for each: {bases:?}");
}

/// A file for each lane, named after it.
#[track_caller]
fn assert_sqlite(seen: &Seen) {
    for env in seen.iter().map(|(_, env)| env) {
        let tag = &env["ISOLANE_RUN_ID"][24..];
        let file = format!("/isolane_{tag}_w{}.db", env["ISOLANE_LANE"]);
        assert!(env["ISOLANE_SCHEMA"].ends_with(&file), "{}", env["ISOLANE_SCHEMA"]);
        assert_eq!(env["DATABASE_URL"], format!("sqlite:///{}", env["ISOLANE_SCHEMA"]));
    }
}

/// A database for each lane, named after it, for clients of every kind.
#[track_caller]
fn assert_postgres(env: &Env, database: &crate::lab::Database<'_>) {
    let tag = &env["ISOLANE_RUN_ID"][24..];
    let own = format!("isolane_{tag}_w{}", env["ISOLANE_LANE"]);
    assert_eq!(env["ISOLANE_SCHEMA"], own);
    assert_eq!(env["DATABASE_URL"], database.url().replace(&format!("/{}", database.name), &format!("/{own}")));
    assert_eq!(env["PGHOST"], "127.0.0.1");
    assert_eq!(env["PGPORT"], database.server.port().to_string());
    assert_eq!(env["PGUSER"], database.login);
    assert_eq!(env["PGPASSWORD"], database.password);
    assert_eq!(env["PGDATABASE"], own);
    assert!(env["PGAPPNAME"].contains("isolane"), "{env:#?}");
}

#[test]
fn workers_of_xdist_find_all_of_it_on_sqlite() {
    let lab = Lab::new();
    lab.file("conftest.py", CONFTEST).file("test_suite.py", SUITE);
    lab.pytest("-n 4").run().assert_code(0);
    let seen = lab.seen();
    let workers = ["gw0", "gw1", "gw2", "gw3"];
    assert_identity(&seen.only("gw"), &workers);
    assert_sqlite(&seen.only("gw"));
    for (number, worker) in workers.iter().enumerate() {
        assert_eq!(seen.get(worker, "ISOLANE_LANE"), number.to_string());
        // It is there before the first line of the user's code.
        assert_eq!(seen.get(&format!("import-{worker}"), "DATABASE_URL"), seen.get(worker, "DATABASE_URL"));
    }
    lab.assert_nothing_left();
}

#[test]
fn the_process_that_only_hands_out_tests_has_a_database_too_and_it_is_no_workers() {
    let lab = Lab::new();
    lab.file("conftest.py", CONFTEST).file("test_suite.py", SUITE);
    lab.pytest("-n 2").run().assert_code(0);
    let seen = lab.seen();
    let controller = seen.get("import-controller", "DATABASE_URL");
    assert!(!seen.only("gw").all("DATABASE_URL").contains(&controller), "{controller}");
    assert_eq!(lab.column("SELECT worker_id FROM workers ORDER BY 1"), ["gw0", "gw1"], "it is no worker");
}

#[test]
fn workers_of_xdist_find_all_of_it_on_postgresql() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("conftest.py", CONFTEST).file("test_suite.py", SUITE);
    lab.file(
        "test_clients.py",
        "
import os, psycopg, subprocess
def test_every_client_gets_to_the_same_place():
    by_url = psycopg.connect(os.environ['DATABASE_URL']).execute('select current_database()').fetchone()[0]
    by_variables = psycopg.connect('').execute('select current_database()').fetchone()[0]
    by_psql = subprocess.check_output(['psql', '-AtXc', 'select current_database()'], text=True).strip()
    assert by_url == by_variables == by_psql == os.environ['ISOLANE_SCHEMA']
",
    );
    lab.pytest("-n 3").run().assert_code(0);
    let workers = lab.seen().only("gw");
    assert_identity(&workers, &["gw0", "gw1", "gw2"]);
    workers.iter().for_each(|(_, env)| assert_postgres(env, &database));
    database.assert_nothing_left(&lab);
}

#[test]
fn pytest_without_workers_is_one_worker_called_master() {
    let lab = Lab::new();
    lab.file("test_suite.py", SUITE);
    for command in ["pytest -q", "pytest -q -n 0", "python -m pytest -q -p no:xdist"] {
        lab.wrap("", command).run().assert_code(0);
        assert_identity(&lab.seen(), &["master"]);
        assert_sqlite(&lab.seen());
    }
    assert_eq!(lab.column("SELECT DISTINCT worker_id FROM workers"), ["master"]);
    lab.assert_nothing_left();
}

#[test]
fn slots_of_nextest_find_all_of_it_on_sqlite_and_on_postgresql() {
    let lab = Lab::new();
    lab.cargo("slots", &many_tests(3, "meets", RUST_TEST));
    lab.nextest("-j 3").run().assert_code(0);
    assert_identity(&lab.seen(), &["slot0", "slot1", "slot2"]);
    assert_sqlite(&lab.seen());
    lab.assert_nothing_left();

    let database = Server::shared().database("CREATEDB");
    lab.forget_seen();
    lab.nextest("-j 3").env("DATABASE_URL", database.url()).run().assert_code(0);
    assert_identity(&lab.seen(), &["slot0", "slot1", "slot2"]);
    lab.seen().iter().for_each(|(_, env)| assert_postgres(env, &database));
    database.assert_nothing_left(&lab);
}

#[test]
fn a_test_program_of_cargo_test_is_a_worker_named_after_its_lane() {
    let lab = Lab::new();
    let note = "#[test] fn notes() { witness::note(&std::env::var(\"WORKER_ID\").unwrap()); }";
    lab.cargo("shop", &(note.to_owned() + "#[test] fn other() {} #[test] fn another() {}"));
    lab.wrap("", "cargo test -q").run().assert_code(0);
    assert_identity(&lab.seen(), &["slot0"]);
    assert_sqlite(&lab.seen());
    assert_eq!(lab.value("SELECT count(*) FROM tests WHERE worker_id = 'slot0'"), "1", "one for the whole program");
    lab.assert_nothing_left();
}

#[test]
fn copies_of_a_plain_command_find_all_of_it() {
    let lab = Lab::new();
    lab.wrap("-n 3", "python witness.py 3").run().assert_code(0);
    assert_identity(&lab.seen(), &["w0", "w1", "w2"]);
    assert_sqlite(&lab.seen());
    lab.assert_nothing_left();

    let database = Server::shared().database("CREATEDB");
    lab.forget_seen();
    lab.wrap("-n 3", "python witness.py 3").env("DATABASE_URL", database.url()).run().assert_code(0);
    assert_identity(&lab.seen(), &["w0", "w1", "w2"]);
    lab.seen().iter().for_each(|(_, env)| assert_postgres(env, &database));
    database.assert_nothing_left(&lab);
}

#[test]
fn two_runs_at_once_share_nothing() {
    let lab = Lab::new();
    // Each copy goes by run and worker; all four meet, so both runs are alive at once.
    lab.file(
        "both.py",
        "import os, witness\nwitness.meet(4)\nwitness.note(os.environ['ISOLANE_PREFIX'])\nwitness.meet(4, 'noted')\n",
    );
    let runs = [0, 1].map(|_| lab.wrap("-n 2", "python both.py").start());
    for run in runs {
        run.finish().assert_code(0);
    }
    let seen = lab.seen();
    assert_eq!(seen.names().len(), 4);
    assert_ports_are_apart(&seen);
    for own in ["ISOLANE_SCHEMA", "ISOLANE_DIR", "DATABASE_URL", "ISOLANE_PORT_BASE"] {
        assert_eq!(seen.distinct(own).len(), 4, "{own}: {:?}", seen.all(own));
    }
    assert_eq!(seen.distinct("ISOLANE_SOCKET").len(), 2);
    assert_eq!(lab.column("SELECT state FROM runs"), ["passed", "passed"]);
    lab.assert_nothing_left();
}

#[test]
fn a_port_that_somebody_holds_is_not_given_out() {
    let lab = Lab::new();
    // The witness fails if one of the twenty is taken: twice at once would be.
    lab.file(
        "hold.py",
        "import os, witness\nwitness.free_ports(int(os.environ['ISOLANE_PORT_BASE']))\nwitness.meet(3)",
    );
    lab.wrap("-n 3", "python hold.py").run().assert_code(0);
}

#[test]
fn templates_give_suites_the_parts_under_their_own_names() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::on(&database);
    lab.file("isolane.toml", "[env]\nFROM_FILE = \"{prefix}-{lane}\"\nPORT = \"{port:0}\"\nNEXT = \"{port:1}\"\n");
    let parts = "{host}|{port}|{user}|{password}|{database}|{schema}|{prefix}|{lane}|{worker}";
    let options = format!("--env PARTS={parts} --env SHOP_DB=at:{{database_url}}");
    lab.wrap(&options, "python witness.py").run().assert_code(0);
    let seen = lab.seen();
    let env = seen.of("w0");
    let own = &env["ISOLANE_SCHEMA"];
    let (port, prefix) = (database.server.port(), &env["ISOLANE_PREFIX"]);
    let expected = format!("127.0.0.1|{port}|{}|{}|{own}|{own}|{prefix}|0|w0", database.login, database.password);
    assert_eq!(env["PARTS"], expected);
    assert_eq!(env["SHOP_DB"], format!("at:{}", env["DATABASE_URL"]));
    assert_eq!(env["FROM_FILE"], format!("{prefix}-0"));
    assert_eq!(env["PORT"], env["ISOLANE_PORT_BASE"]);
    assert_eq!(env["NEXT"].parse::<u16>().expect("a port"), env["PORT"].parse::<u16>().expect("a port") + 1);
}

#[test]
fn addresses_under_other_names_keep_driver_and_parameters() {
    let database = Server::shared().database("CREATEDB");
    let lab = Lab::new();
    let shop = database.url_with("postgresql+psycopg", "?application_name=unit&connect_timeout=7");
    lab.wrap("--url-var SHOP_URL --url-var TEST_URLS", "python witness.py")
        .env("SHOP_URL", &shop)
        .env("TEST_URLS", format!("{},sqlite+aiosqlite:///lite.db?timeout=9", database.url_with("postgres", "")))
        .run()
        .assert_code(0);
    let seen = lab.seen();
    let tag = lab.tag();
    let lane = format!("isolane_{tag}_w0");
    assert_eq!(seen.get("w0", "SHOP_URL"), shop.replace(&format!("/{}?", database.name), &format!("/{lane}?")));
    let urls: Vec<_> = seen.get("w0", "TEST_URLS").split(',').collect();
    assert_eq!(urls.len(), 2, "{urls:?}");
    assert!(urls[0].starts_with("postgres://") && urls[0].ends_with(&lane), "{urls:?}");
    assert!(urls[1].starts_with("sqlite+aiosqlite:///") && urls[1].ends_with("?timeout=9"), "{urls:?}");
    assert!(urls[1].contains(&tag), "a file of the lane's own: {urls:?}");
    assert!(seen.get("w0", "DATABASE_URL").contains(&tag));
    database.assert_nothing_left(&lab);
}

#[test]
fn isolation_none_gives_an_identity_and_leaves_the_address_alone() {
    let database = Server::shared().database("");
    database.sql("CREATE TABLE customers (id int)");
    let before = database.dump();
    let lab = Lab::on(&database);
    lab.wrap("-n 2 --isolation none", "python witness.py 2").run().assert_code(0);
    let seen = lab.seen();
    assert_eq!(seen.names(), ["w0", "w1"]);
    assert_eq!(seen.distinct("DATABASE_URL"), [database.url()]);
    assert_eq!(seen.distinct("ISOLANE_PREFIX").len(), 2);
    assert_eq!(database.dump(), before);
    database.assert_nothing_left(&lab);
}
