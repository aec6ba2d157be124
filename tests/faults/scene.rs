//! Where the drills take place: a server of its own, strangers' things beside it that look
//! like isolane's, a run that lives all the time; and what must be true after each death.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::lab::program::Running;
use crate::lab::{Database, Lab, Program, Server, alive_in};

/// Within this time after a death nothing is left.
const LIMIT: Duration = Duration::from_secs(5);
/// A file that a stranger called like isolane's own.
const LOOK_ALIKE: &str = "isolane_000000000000_w0";
/// Rows of others in the user's own schema, and which there are.
const THEIRS: &str = "CREATE TABLE customers (id serial PRIMARY KEY, who text);
    CREATE TABLE orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers ON DELETE CASCADE);
    CREATE TABLE alike (what text);
    INSERT INTO customers (who) VALUES ('theirs'), ('theirs'); INSERT INTO orders (customer) VALUES (1), (2);
    INSERT INTO alike VALUES ('same'), ('same')";
const ROWS: &str =
    "SELECT 'row of customers ' || c FROM customers c UNION ALL SELECT 'row of orders ' || o FROM orders o
    UNION ALL SELECT count(*) || ' rows of alike ' || a FROM alike a GROUP BY a UNION ALL
    SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal";
/// What a worker writes there.
const WRITES: &str = "INSERT INTO customers (who) VALUES (''$WORKER_ID''), (''$WORKER_ID'');
    INSERT INTO orders (customer) SELECT id FROM customers WHERE who = ''$WORKER_ID''; INSERT INTO alike VALUES (''same'');
    UPDATE customers SET id = id + 1000 WHERE who = ''none''";

/// Asks for the lane as it was.
const RENEW: &str = r#"
import json, os, socket
body = json.dumps({"worker": os.environ["WORKER_ID"]})
door = socket.socket(socket.AF_UNIX)
door.connect(os.environ["ISOLANE_SOCKET"])
head = "POST /v1/renewals HTTP/1.1\r\nHost: isolane\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
door.sendall((head % (len(body), body)).encode())
door.recv(100)
"#;

/// Where lanes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Sqlite,
    Database,
    Schema,
    Shared,
    Server,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Sqlite, Self::Database, Self::Schema, Self::Shared, Self::Server];

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Shared => "shared",
            Self::Server => "server",
        }
    }
}

/// Whether the run makes a pristine state first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    No,
    /// For itself.
    Own,
    /// For later runs as well.
    Kept,
}

/// A template for later runs, or the spare of one: sealed, of that name, and marked.
fn is_whole_template(line: &str) -> bool {
    let is_called_so = ["template", "spare"].iter().any(|word| line.starts_with(&format!("database isolane_{word}_")));
    is_called_so && line.contains(" -1 f f ") && line.contains(" isolane template 1 ")
}

/// Dynamic shared memory of all servers of this machine.
fn segments() -> Vec<String> {
    let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("PostgreSQL.")).collect()
}

/// A server with strangers' things on it, and a run that lives.
pub struct Scene<'a> {
    pub server: &'a Server,
    pub database: Database<'a>,
    /// All that was on the server before.
    before: Vec<String>,
    living: Option<(Lab, Running)>,
    /// Shared memory that was there before.
    memory_before: Vec<String>,
    /// Clusters that are kept from one run to the next.
    cache: TempDir,
}

impl<'a> Scene<'a> {
    pub fn on(server: &'a Server) -> Self {
        let database = server.database("CREATEDB CREATEROLE");
        server.look_alikes(&database);
        database.sql(THEIRS);
        let other = server.database("CREATEDB CREATEROLE");
        let lab = Lab::on(&other);
        let living = lab.sh("", ": >$SEEN/there; exec sleep 3600").start();
        crate::lab::wait_until("the other run lives", || lab.path("../seen/there").exists());
        let cache = tempfile::tempdir().expect("a temporary folder");
        let mut scene = Self {
            server,
            database,
            before: Vec::new(),
            living: Some((lab, living)),
            memory_before: segments(),
            cache,
        };
        scene.before = scene.now();
        scene
    }

    /// All that is on the server.
    fn now(&self) -> Vec<String> {
        let mut now = self.server.snapshot();
        now.extend(self.server.texts(&self.database.name, ROWS));
        now
    }

    /// Removes rows that nobody can know of any more.
    pub fn forget_rows(&self) {
        self.database.sql(
            "DELETE FROM customers WHERE who <> 'theirs'; TRUNCATE alike; INSERT INTO alike VALUES ('same'), ('same')",
        );
    }

    /// A project with a command for `workers` that each make something.
    pub fn lab(&self, kind: Kind) -> Lab {
        let lab = match kind {
            Kind::Sqlite => Lab::new().with("DATABASE_URL", "sqlite:///shop.db"),
            // Nobody listens there.
            Kind::Server => Lab::new()
                .open_to_others()
                .with("DATABASE_URL", "postgresql://ann:pw@127.0.0.1:1/shop")
                .with("XDG_CACHE_HOME", self.cache.path()),
            Kind::Database | Kind::Schema | Kind::Shared => Lab::on(&self.database),
        };
        if kind == Kind::Server {
            lab.file("isolane.toml", "isolation = 'server'");
        }
        let writes = format!("psql -qXc \"{}\"; : >$TMPDIR/mine", WRITES.replace("''", "'"));
        let (setup, work) = match kind {
            Kind::Sqlite => (": >$ISOLANE_SCHEMA", ": >>$ISOLANE_SCHEMA; : >$TMPDIR/mine"),
            Kind::Shared => ("", &writes as &str),
            Kind::Database | Kind::Schema | Kind::Server => {
                ("psql -qXc 'CREATE TABLE goods (id int)'", "psql -qXc 'CREATE TABLE mine (id int)'; : >$TMPDIR/mine")
            }
        };
        lab.file("setup.sh", setup).file("work.sh", work);
        // Beside what is isolane's own: it must stay.
        fs::create_dir(lab.path("../beside")).expect("a new folder");
        fs::write(lab.path("../beside").join(LOOK_ALIKE), "theirs").expect("a file");
        lab
    }

    /// The run that is going to die.
    pub fn run(lab: &Lab, kind: Kind, workers: u32, setup: Setup, then: &str) -> Program {
        Self::run_fresh(lab, kind, workers, setup, then, "worker")
    }

    /// The same with lanes that are put back when their workers ask for it.
    pub fn run_renewing(lab: &Lab, kind: Kind) -> Program {
        lab.file("renew.py", RENEW);
        Self::run_fresh(
            lab,
            kind,
            2,
            Setup::Own,
            " && python3 renew.py",
            if kind == Kind::Shared { "worker" } else { "test" },
        )
    }

    fn run_fresh(lab: &Lab, kind: Kind, workers: u32, setup: Setup, then: &str, fresh: &str) -> Program {
        let isolation = if kind == Kind::Sqlite { "database" } else { kind.word() };
        let script = format!("sh work.sh{then}");
        let run = lab.isolane(&format!("run --isolation {isolation} --fresh {fresh} -n {workers}"));
        let run = if setup == Setup::Kept { run.arg_all(["--setup-input", "setup.sh"]) } else { run };
        let has_setup = setup != Setup::No && kind != Kind::Shared;
        let run = if has_setup { run.arg_all(["--setup", "sh setup.sh"]) } else { run };
        run.arg_all(["--", "sh", "-c", &script])
    }

    /// Waits until nothing is left; what is left in the end comes back.
    pub fn leftovers(&self, lab: &Lab) -> (Vec<String>, Duration) {
        let began = Instant::now();
        loop {
            let left = self.left(lab);
            if left.is_empty() || began.elapsed() > LIMIT {
                return (left, began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn left(&self, lab: &Lab) -> Vec<String> {
        // The cheapest first: while the watchdog is there, nobody needs to look further.
        let mut left: Vec<_> = alive_in(lab.home()).into_iter().map(|process| format!("process {process}")).collect();
        if !left.is_empty() {
            return left;
        }
        let files = fs::read_dir(lab.tmp()).expect("a folder").flatten();
        left.extend(files.map(|entry| format!("file {}", entry.path().display())));
        let now = self.now();
        left.extend(
            now.iter()
                .filter(|line| !self.before.contains(line) && !is_whole_template(line))
                .map(|line| format!("new: {line}")),
        );
        left.extend(self.before.iter().filter(|line| !now.contains(line)).map(|line| format!("gone: {line}")));
        if !lab.path("../beside").join(LOOK_ALIKE).exists() {
            left.push(format!("gone: the file {LOOK_ALIKE}"));
        }
        if left.is_empty() {
            left.extend(self.abandoned_memory().into_iter().map(|segment| format!("shared memory {segment}")));
        }
        left
    }

    /// Shared memory of servers that nobody has mapped, and that was not there before.
    fn abandoned_memory(&self) -> Vec<String> {
        let mut segments = segments();
        segments.retain(|segment| !self.memory_before.contains(segment));
        if !segments.is_empty() {
            let processes = fs::read_dir("/proc").expect("the kernel's list").flatten();
            let maps: Vec<_> = processes.filter_map(|it| fs::read_to_string(it.path().join("maps")).ok()).collect();
            segments.retain(|segment| !maps.iter().any(|map| map.contains(segment)));
        }
        segments
    }

    /// Removes the templates that were kept; what is left of them then comes back.
    pub fn remove_templates(&self, lab: &Lab) -> Vec<String> {
        let removed = lab.isolane("template remove --all").env("DATABASE_URL", self.database.url()).run();
        let left =
            self.now().into_iter().filter(|line| line.contains("isolane_template_") || line.contains("isolane_spare_"));
        let failed = (removed.status.code() != Some(0)).then(|| removed.all());
        left.map(|line| format!("kept: {line}")).chain(failed).collect()
    }

    /// A later run on the same ledger, which must find all in order.
    pub fn next_run(lab: &Lab) -> Vec<String> {
        let next = lab.wrap("--isolation none", "true").run();
        let mut wrong = Vec::new();
        if next.status.code() != Some(0) {
            wrong.push(format!("the next run: {}", next.all()));
        }
        let open = lab.column("SELECT run_id FROM runs WHERE state = 'running'");
        wrong.extend(open.into_iter().map(|run| format!("run {run} is in the ledger as running")));
        let locks = fs::read_dir(lab.path(".isolane/locks")).expect("a folder").flatten();
        wrong.extend(locks.map(|entry| format!("lock {}", entry.path().display())));
        wrong
    }

    /// Ends the run that lived all the time: it must not have noticed anything.
    pub fn close(mut self) -> Vec<String> {
        let (lab, living) = self.living.take().expect("until now");
        let lanes = "SELECT name FROM resources WHERE kind = 'database' AND state = 'created'";
        let lane = lab.value(lanes);
        let mut wrong = Vec::new();
        if self
            .server
            .texts("postgres", &format!("SELECT datname::text FROM pg_database WHERE datname = '{lane}'"))
            .is_empty()
        {
            wrong.push("the run that lived has lost its database".to_owned());
        }
        living.signal(Signal::SIGTERM);
        let outcome = living.finish();
        if outcome.status.code() != Some(143) || outcome.err().contains("could not") {
            wrong.push(format!("the run that lived: {}", outcome.all()));
        }
        wrong
    }
}
