//! Input that isolane cannot work with: each is one clear line, and leaves nothing behind.

use crate::lab::{Lab, Outcome, Program, Server};

/// A run that must not start: `program` ends with `code` and one line with all `words`.
#[track_caller]
fn refused(lab: &Lab, program: Program, code: i32, words: &[&str]) -> Outcome {
    let outcome = program.run().assert_code(code);
    assert_eq!(outcome.err().lines().count(), 1, "one line\n{}", outcome.all());
    let line = outcome.err();
    assert!(line.starts_with("isolane: "), "{}", outcome.all());
    for word in words {
        assert!(line.contains(word), "no {word:?}\n{}", outcome.all());
    }
    assert_eq!(outcome.out(), "");
    assert!(!lab.path("started").exists(), "the command was started\n{}", outcome.all());
    lab.assert_nothing_left();
    outcome
}

/// `isolane run OPTIONS -- touch started`.
fn touch(lab: &Lab, options: &str) -> Program {
    lab.wrap(options, "touch started")
}

#[test]
fn an_unknown_option_is_answered_with_the_nearest_one() {
    let lab = Lab::new();
    for (given, nearest) in
        [("--isolatoin=schema", "--isolation"), ("--kep=never", "--keep"), ("--database-ulr=x", "--database-url")]
    {
        let outcome = touch(&lab, given).run().assert_code(2);
        assert!(outcome.err().contains(nearest), "{}", outcome.all());
    }
    for given in ["--isolation sometimes", "--keep maybe", "--workers many", "--workers 0", "--runner junit"] {
        let outcome = touch(&lab, given).run().assert_code(2);
        assert!(outcome.err().contains(given.split(' ').nth(1).expect("two words")), "{}", outcome.all());
    }
    lab.isolane("run").run().assert_code(2);
    lab.isolane("pytest -n 4").run().assert_code(2);
    let forgotten = lab.program("isolane").arg_all(["pytest", "-q"]).run().assert_code(2);
    assert!(forgotten.err().contains("isolane run -- pytest -q"), "{}", forgotten.all());
    lab.isolane("").run().assert_code(2);
    assert!(!lab.path("started").exists() && !lab.path(".isolane").exists());
}

#[test]
fn an_unknown_setting_is_answered_with_the_nearest_one_and_its_place() {
    let lab = Lab::new();
    for (text, words) in [
        ("quiet = true\nisolatoin = \"schema\"\n", ["isolatoin", "isolation", "isolane.toml"]),
        ("[enw]\nA = \"b\"\n", ["enw", "env", "isolane.toml"]),
        ("[cleaner.bucket]\nrnu = \"x\"\n", ["rnu", "run", "isolane.toml"]),
        ("keep = \"maybe\"\n", ["maybe", "never", "isolane.toml"]),
        ("workers = \"many\"\n", ["workers", "number", "isolane.toml"]),
        ("isolation = \n", ["isolane.toml", "1", ""]),
    ] {
        lab.file("isolane.toml", text);
        let outcome = touch(&lab, "").run();
        assert!([Some(2), Some(125)].contains(&outcome.status.code()), "{}", outcome.all());
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        assert!(words.iter().all(|word| outcome.err().contains(word)), "{words:?}\n{}", outcome.all());
        assert!(!lab.path("started").exists());
    }
    let outcome = touch(&lab, "--config no-such.toml").run();
    assert!([Some(2), Some(125)].contains(&outcome.status.code()), "{}", outcome.all());
    assert!(outcome.err().contains("no-such.toml"), "{}", outcome.all());
    assert!(!lab.path(".isolane").exists(), "no ledger for what never began");
}

#[test]
fn a_template_with_an_unknown_name_is_answered_with_the_known_ones() {
    let lab = Lab::new();
    for template in ["A={shcema}", "A={port:20}", "A={schema", "no-equals-sign", "=x"] {
        let outcome = touch(&lab, &format!("--env {template}")).run();
        assert!([Some(2), Some(125)].contains(&outcome.status.code()), "{template}\n{}", outcome.all());
        assert!(!outcome.err().contains("panicked"), "{}", outcome.all());
        assert!(!lab.path("started").exists());
    }
    let outcome = touch(&lab, "--env A={shcema}").run();
    assert!(outcome.err().contains("{schema}") || outcome.err().contains("`schema`"), "{}", outcome.all());
    lab.assert_nothing_left();
}

#[test]
fn an_address_that_is_none_is_refused_without_showing_a_password() {
    let lab = Lab::new();
    for address in [
        "postgresql://ann:pw-secret@[::1/shop",
        "postgresql://ann:pw-secret@host:port/shop",
        "postgres//ann:pw-secret@host/shop",
        "oracle://ann:pw-secret@host/shop",
        "just a name",
    ] {
        let outcome = refused(&lab, touch(&lab, "").env("DATABASE_URL", address), 125, &["DATABASE_URL"]);
        assert!(!outcome.err().contains("pw-secret"), "{}", outcome.all());
    }
    let by_option = touch(&lab, "--database-url nonsense");
    refused(&lab, by_option, 125, &["--database-url"]);
    let by_name = touch(&lab, "--url-var SHOP_URL").env("SHOP_URL", "nonsense");
    refused(&lab, by_name, 125, &["SHOP_URL"]);
}

#[test]
fn a_server_that_is_away_is_named() {
    let lab = Lab::new();
    let address = "postgresql://ann:pw-secret@127.0.0.1:1/shop";
    let outcome = refused(&lab, touch(&lab, "").env("DATABASE_URL", address), 125, &["127.0.0.1", "refused"]);
    assert!(!outcome.err().contains("pw-secret"), "{}", outcome.all());
    let nowhere = "postgresql://ann@no-such-host.invalid/shop";
    refused(&lab, touch(&lab, "").env("DATABASE_URL", nowhere), 125, &["no-such-host.invalid"]);
}

#[test]
fn a_login_that_is_refused_and_a_database_that_is_not_there_are_named() {
    let server = Server::own();
    let database = server.database("CREATEDB");
    let before = server.snapshot();
    let lab = Lab::new();
    let wrong = database.url().replace(&database.password, "pw-wrong");
    let outcome = refused(&lab, touch(&lab, "").env("DATABASE_URL", wrong), 125, &[&database.login, "password"]);
    assert!(!outcome.err().contains("pw-wrong"), "{}", outcome.all());
    let nobody = database.url().replace(&database.login, "nobody_here");
    refused(&lab, touch(&lab, "").env("DATABASE_URL", nobody), 125, &["nobody_here"]);
    let silent = database.url().replace(&format!(":{}@", database.password), "@");
    refused(&lab, touch(&lab, "").env("DATABASE_URL", silent), 125, &["asks for the password of", "PGPASSWORD"]);
    let missing = database.url().replace(&format!("/{}", database.name), "/not_there");
    refused(&lab, touch(&lab, "").env("DATABASE_URL", missing), 125, &["not_there"]);
    assert_eq!(server.snapshot(), before);
}

#[test]
fn a_missing_right_is_named_with_what_gives_it() {
    let server = Server::own();
    let owner = server.database("");
    let before = server.snapshot();
    let lab = Lab::on(&owner);
    let give = format!("ALTER ROLE {} CREATEDB", owner.login);
    refused(&lab, touch(&lab, "--isolation database"), 125, &["CREATEDB", &give]);
    assert_eq!(server.snapshot(), before);

    // A login that may only connect: neither a database nor a schema.
    server.sql("postgres", "CREATE ROLE guest LOGIN PASSWORD 'pw-guest'");
    let before = server.snapshot();
    let guest = format!("postgresql://guest:pw-guest@127.0.0.1:{}/{}", server.port(), owner.name);
    let give = format!("GRANT CREATE ON DATABASE {} TO guest", owner.name);
    for isolation in ["schema", "auto"] {
        let program = touch(&lab, &format!("--isolation {isolation}")).env("DATABASE_URL", &guest);
        refused(&lab, program, 125, &[&give]);
    }
    assert_eq!(server.snapshot(), before);
}

#[test]
fn a_table_that_the_login_may_not_read_stops_the_copy_before_anything_starts() {
    let server = Server::own();
    let database = server.database("");
    server.sql(&database.name, "CREATE TABLE public.hidden (id int); INSERT INTO public.hidden VALUES (1)");
    let before = server.snapshot();
    let lab = Lab::on(&database);
    refused(&lab, touch(&lab, "--isolation schema"), 125, &["hidden"]);
    assert_eq!(server.snapshot(), before);
}

#[test]
fn a_ledger_that_is_none_stays_as_it_was() {
    let lab = Lab::new();
    lab.file("list.db", "this is my shopping list, and it is long enough to be read");
    refused(&lab, touch(&lab, "--ledger list.db"), 125, &["list.db"]);
    assert!(lab.read("list.db").starts_with("this is my shopping list"));

    // A database of somebody else's.
    let other = rusqlite::Connection::open(lab.path("app.db")).expect("a new file");
    other.execute_batch("CREATE TABLE users (email TEXT)").expect("a table");
    drop(other);
    let before = std::fs::read(lab.path("app.db")).expect("the file");
    refused(&lab, touch(&lab, "--ledger app.db"), 125, &["app.db"]);
    assert_eq!(std::fs::read(lab.path("app.db")).expect("the file"), before);
}

#[test]
fn a_ledger_of_a_later_isolane_stays_as_it_was() {
    let lab = Lab::new();
    lab.wrap("", "true").run().assert_code(0);
    let ledger = rusqlite::Connection::open(lab.ledger_path()).expect("a ledger");
    ledger.execute_batch("PRAGMA user_version = 9999; PRAGMA wal_checkpoint(TRUNCATE)").expect("a setting");
    drop(ledger);
    let before = std::fs::read(lab.ledger_path()).expect("the file");
    refused(&lab, touch(&lab, ""), 125, &["ledger.db", "newer"]);
    assert_eq!(std::fs::read(lab.ledger_path()).expect("the file"), before);
}

#[test]
fn a_ledger_that_cannot_be_written_is_named() {
    let lab = Lab::new();
    lab.file("plain", "").file("folder/x", "");
    refused(&lab, touch(&lab, "--ledger plain/ledger.db"), 125, &["plain/ledger.db"]);
    refused(&lab, touch(&lab, "--ledger folder"), 125, &["folder"]);
    refused(&lab, touch(&lab, "--ledger /proc/ledger.db"), 125, &["/proc/ledger.db"]);
}

/// `isolane run OPTIONS -- touch COMMAND`, in a view of the file system where `mount` was done first.
fn mounted(lab: &Lab, mount: &str, rest: &str) -> Program {
    let script = format!("{mount} && {rest}");
    lab.program("unshare").arg_all(["--user", "--map-root-user", "--mount", "sh", "-c"]).arg(script)
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_a_ledger_elsewhere_helps() {
    let lab = Lab::new();
    lab.file("readonly/x", "");
    let mount = "mount -t tmpfs -o ro none readonly && cd readonly";
    let run = mounted(&lab, mount, "isolane run -- touch ../started");
    refused(&lab, run, 125, &["readonly", "--ledger"]);
    let run = mounted(&lab, mount, "isolane run --ledger ../elsewhere.db -- touch ../started");
    run.run().assert_code(0);
    assert!(lab.path("started").exists());
}

#[test]
fn a_full_disk_is_an_error_before_the_start_and_leaves_nothing() {
    let lab = Lab::new();
    lab.file("small/x", "").file("shop.db", &"x".repeat(400_000));
    let _ = std::fs::remove_file(lab.path("shop.db"));
    let shop = rusqlite::Connection::open(lab.path("shop.db")).expect("a new file");
    shop.execute_batch("CREATE TABLE big (x); INSERT INTO big VALUES (zeroblob(400000))").expect("a table");
    drop(shop);
    // The ledger has no room.
    let mount = "mount -t tmpfs -o size=16k none small";
    let run = mounted(&lab, mount, "isolane run --ledger small/ledger.db -- touch started");
    refused(&lab, run, 125, &["small/ledger.db"]);
    // A lane has no room; the directory must be empty again, too.
    let mount = "mount -t tmpfs -o size=300k none small";
    let script = "TMPDIR=$PWD/small DATABASE_URL=sqlite:///shop.db isolane run -- touch started; code=$?; \
         ls -A small >left; exit $code";
    refused(&lab, mounted(&lab, mount, script), 125, &["space"]);
    assert_eq!(lab.read("left"), "");
}

#[test]
fn a_folder_for_temporary_files_that_cannot_be_used_is_made_up_for() {
    let lab = Lab::new();
    // A socket's name has room for 107 bytes.
    let long = lab.path(&"long".repeat(30));
    std::fs::create_dir(&long).expect("a new folder");
    for folder in ["/no/such/folder", long.to_str().expect("UTF-8")] {
        let outcome =
            lab.sh("", "test -S $ISOLANE_SOCKET && echo $ISOLANE_DIR").env("TMPDIR", folder).run().assert_code(0);
        let given = outcome.out();
        assert!(given.starts_with('/') && !std::path::Path::new(given.trim_end()).exists(), "{}", outcome.all());
    }
    assert_eq!(std::fs::read_dir(long).expect("a folder").count(), 0);
    lab.assert_nothing_left();
}

#[test]
fn a_command_that_is_not_found_makes_nothing() {
    let server = Server::own();
    let database = server.database("CREATEDB CREATEROLE");
    let before = server.snapshot();
    let lab = Lab::on(&database);
    for isolation in ["database", "schema"] {
        let program = lab.wrap(&format!("--isolation {isolation}"), "no-such-command");
        refused(&lab, program, 127, &["no-such-command"]);
    }
    assert_eq!(server.snapshot(), before);
}

#[test]
fn names_of_variables_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let outcome = touch(&lab, "--url-var A=B").run();
    assert!([Some(2), Some(125)].contains(&outcome.status.code()), "{}", outcome.all());
    assert!(!lab.path("started").exists());
    lab.assert_nothing_left();
}

#[test]
fn items_of_a_file_are_read_as_they_stand_or_refused_with_their_place() {
    let lab = Lab::new();
    for (file, text, words) in [
        ("twice.csv", "id,tier,id\n1,gold,2\n", &["twice.csv", "id", "twice"][..]),
        ("open.csv", "id,tier\n1,gold\n2,\"silver\n3,gold\n", &["open.csv", "line 3", "quote"]),
        ("tail.csv", "id\n\"a \"\"b\"\"", &["tail.csv", "line 2", "quote"]),
    ] {
        let text = if file == "tail.csv" { text.trim_end_matches('"') } else { text };
        lab.file(file, text).file("isolane.toml", &format!("[pool.acct]\nitems = \"{file}\"\n"));
        for args in ["pool list", &format!("pool add more --from {file} --config /dev/null")] {
            let outcome = lab.isolane(args).run().assert_code(2);
            assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
            assert!(words.iter().all(|word| outcome.err().contains(word)), "{words:?}\n{}", outcome.all());
        }
    }
    lab.file("isolane.toml", "");
    for (file, text) in [
        ("mark.json", "\u{feff}[{\"id\": 1}, {\"id\": 2}]"),
        ("mark.csv", "\u{feff}\"id\",note\n1,\"a \"\"b\"\"\nc\"\n2,5\" wide\n"),
    ] {
        lab.file(file, text);
        let pool = file.replace('.', "-");
        lab.isolane(&format!("pool add {pool} --from {file}")).run().assert_code(0).assert_says("2 added");
        let names = format!("SELECT name FROM item WHERE pool = '{pool}' ORDER BY 1");
        assert_eq!(lab.column(&names), ["1", "2"]);
    }
}

#[test]
fn what_is_said_of_a_pool_makes_sense_or_is_refused_in_right_words() {
    let lab = Lab::new();
    for (text, words) in [
        ("generator = \"x\"\nminimum = 5\nmaximum = 2", &["`pool.p.maximum`", "2", "5"][..]),
        ("generator = \"x\"\nminimum = 1\nstock = [{ minimum = 2 }]\nmaximum = 2", &["`pool.p.maximum`", "2", "3"]),
        ("items = [1]\ngenerator = \"x\"", &["`pool.p.items`", "leave all but one of these out"]),
        ("items = [1]\ngenerator = \"x\"\ntable = \"t\"", &["`pool.p.items`", "leave all but one of these out"]),
        ("timeout = \"2s\"", &["`pool.p.timeout`", "`reset`", "`retire`", "`generator`"]),
    ] {
        lab.file("isolane.toml", &format!("[pool.p]\n{text}\n"));
        let outcome = lab.isolane("pool list").run().assert_code(2);
        assert_eq!(outcome.err().lines().count(), 1, "{}", outcome.all());
        assert!(words.iter().all(|word| outcome.err().contains(word)), "{words:?}\n{}", outcome.all());
    }
    lab.file("isolane.toml", "[pool.made]\ngenerator = \"x\"\nminimum = 2\nmaximum = 2\n[pool.given]\nitems = []\n");
    lab.isolane("pool list made").run().assert_code(0).assert_says("`isolane pool fill made`");
    lab.isolane("pool list given").run().assert_code(0).assert_says("`isolane pool add given ITEM…`");
}
