//! The laboratory: runs the real program in a folder of its own, with nothing of the
//! outer environment, and looks at what is left afterwards.

mod browser;
mod cargo;
mod postgres;
mod processes;
pub mod program;
mod service;
mod state;
mod terminal;
pub mod tools;
mod witness;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

pub use browser::Browser;
pub use cargo::many_tests;
pub use postgres::{Database, Server};
pub use processes::{alive_in, is_alive};
pub use program::{Outcome, Program, wait_until};
pub use service::{Service, answer};
pub use terminal::OnTerminal;
pub use witness::{Env, Seen};

/// A folder with a project, a home and a place for temporary files, all of one test.
pub struct Lab {
    root: TempDir,
    python: PathBuf,
    postgres: PathBuf,
    variables: BTreeMap<OsString, OsString>,
}

impl Lab {
    /// An empty project, and Python with the newest pytest.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("isolane-test-").tempdir().expect("a temporary folder");
        for folder in ["project", "home", "tmp", "seen", "bin"] {
            fs::create_dir(root.path().join(folder)).expect("a new folder");
        }
        let program = root.path().join("bin/isolane");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_isolane"), program).expect("a new link");
        let lab = Self {
            root,
            python: tools::python_bin("latest"),
            postgres: tools::postgres_bin(None),
            variables: BTreeMap::new(),
        };
        lab.file("witness.py", witness::PYTHON);
        lab
    }

    /// An empty project whose suite uses `database`.
    pub fn on(database: &Database) -> Self {
        Self::new().with("DATABASE_URL", database.url())
    }

    /// The same with another of the Python environments that `tests/run` makes.
    pub fn python(self, environment: &str) -> Self {
        self.python_in(&tools::python_bin(environment))
    }

    /// The same with the Python programs in a folder.
    pub fn python_in(mut self, bin: &Path) -> Self {
        bin.clone_into(&mut self.python);
        self
    }

    /// The same with the client programs of another version of PostgreSQL, where it has some.
    pub fn postgres(mut self, version: u32) -> Self {
        let other = tools::postgres_bin(Some(version));
        if other.join("psql").exists() {
            self.postgres = other;
        }
        self
    }

    /// The same with a variable for every program.
    pub fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.insert(name.into(), value.as_ref().to_owned());
        self
    }

    /// The same in folders that every user can pass through: servers that root starts are
    /// another's.
    pub fn open_to_others(self) -> Self {
        use std::os::unix::fs::PermissionsExt;
        for folder in [self.root.path().to_owned(), self.tmp()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("our own folder");
        }
        self
    }

    /// The folder that everything of this test is in.
    pub fn home(&self) -> &Path {
        self.root.path()
    }

    /// The project's folder, in which programs run.
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("project")
    }

    /// What programs find in `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.root.path().join("tmp")
    }

    /// A path in the project.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir().join(path)
    }

    /// Writes a file of the project.
    pub fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
        self
    }

    /// Writes a program of the project.
    pub fn script(&self, path: &str, text: &str) -> &Self {
        use std::os::unix::fs::PermissionsExt;
        self.file(path, text);
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).expect("our own file");
        self
    }

    /// Reads a file of the project.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Any program, in the project and with the lab's environment only.
    pub fn program(&self, name: impl AsRef<OsStr>) -> Program {
        Program::new(self.command(name))
    }

    fn command(&self, name: impl AsRef<OsStr>) -> Command {
        let name = self.which(name.as_ref());
        let mut command = Command::new(name);
        command.current_dir(self.dir()).env_clear().envs(self.environment()).envs(&self.variables);
        command
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let home = self.root.path().join("home");
        vec![
            ("PATH", self.search_path()),
            ("HOME", home.clone().into()),
            ("CARGO_HOME", home.join(".cargo").into()),
            ("TMPDIR", self.tmp().into()),
            ("LANG", "C.UTF-8".into()),
            ("TERM", "dumb".into()),
            ("SEEN", self.root.path().join("seen").into()),
            ("CARGO_TERM_COLOR", "never".into()),
        ]
    }

    fn search_path(&self) -> OsString {
        let folders = [
            self.root.path().join("bin"),
            self.python.clone(),
            self.postgres.clone(),
            tools::rust_bin().to_owned(),
            tools::nextest_bin().to_owned(),
            tools::python_bin("tools"),
            "/usr/local/bin".into(),
            "/usr/bin".into(),
            "/bin".into(),
        ];
        std::env::join_paths(folders).expect("no colon in a folder's name")
    }

    // The child's PATH and not the test's decides what a name means.
    fn which(&self, name: &OsStr) -> PathBuf {
        let folders = self.search_path();
        let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
        found.unwrap_or_else(|| name.into())
    }

    /// `isolane ARGS…`; the arguments are divided at spaces.
    pub fn isolane(&self, args: &str) -> Program {
        args.split_whitespace().fold(self.program("isolane"), Program::arg)
    }

    /// `isolane run OPTIONS… -- COMMAND…`.
    pub fn run<I, S>(&self, options: &str, command: I) -> Program
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let program = self.isolane("run").arg_all(options.split_whitespace()).arg("--");
        program.arg_all(command)
    }

    /// `isolane run OPTIONS… -- sh -c SCRIPT`.
    pub fn sh(&self, options: &str, script: &str) -> Program {
        self.run(options, ["sh", "-c", script])
    }

    /// `isolane run OPTIONS… -- COMMAND…`, the command divided at spaces.
    pub fn wrap(&self, options: &str, command: &str) -> Program {
        self.run(options, command.split_whitespace())
    }

    /// `isolane run -- pytest ARGS…`.
    pub fn pytest(&self, args: &str) -> Program {
        self.wrap("", &format!("pytest -q -p no:cacheprovider {args}"))
    }

    /// The rows that a query finds in the ledger, as text.
    #[track_caller]
    pub fn ledger(&self, sql: &str) -> Vec<Vec<String>> {
        read_ledger(&self.ledger_path(), sql)
    }

    /// The only value of the only row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        let rows = self.ledger(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "{sql} gives {rows:?}");
        rows[0][0].clone()
    }

    /// The first column.
    #[track_caller]
    pub fn column(&self, sql: &str) -> Vec<String> {
        self.ledger(sql).into_iter().map(|row| row[0].clone()).collect()
    }

    /// Where the ledger is.
    pub fn ledger_path(&self) -> PathBuf {
        self.path(".isolane/ledger.db")
    }

    /// The tag of the only run.
    #[track_caller]
    pub fn tag(&self) -> String {
        self.value("SELECT tag FROM runs")
    }

    /// What workers wrote down, by the name that they gave.
    pub fn seen(&self) -> Seen {
        Seen::read(&self.root.path().join("seen"))
    }

    /// The process of this test whose command line says `what`.
    #[track_caller]
    pub fn pid_of(&self, what: &str) -> Pid {
        let all = alive_in(self.root.path());
        let found = all.iter().find(|process| process.contains(what));
        pid_in(found.unwrap_or_else(|| panic!("{what} is not among {all:#?}")))
    }

    /// Kills all that is in this lab, as the loss of its machine does.
    pub fn lose_machine(&self) {
        wait_until("all are dead", || {
            // The watchdog before its supervisor, so that it cannot do anything.
            let mut all = alive_in(self.root.path());
            all.sort_by_key(|process| !process.contains("isolane watchdog"));
            for process in &all {
                let _ = kill(pid_in(process), Signal::SIGKILL);
            }
            all.is_empty()
        });
    }

    /// Takes away what workers wrote down and by what they met, before another run of them.
    pub fn forget_seen(&self) {
        let folder = self.root.path().join("seen");
        fs::remove_dir_all(&folder).and_then(|()| fs::create_dir(&folder)).expect("our own folder");
    }

    /// Fails if anything is left on this machine: a file, a process, or in the ledger a
    /// run or a resource that is not finished.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let processes = alive_in(self.root.path());
        assert!(processes.is_empty(), "processes are left: {processes:#?}");
        let files: Vec<_> = fs::read_dir(self.tmp()).expect("a folder").flatten().map(|entry| entry.path()).collect();
        assert!(files.is_empty(), "left in TMPDIR: {files:?}");
        if self.ledger_path().exists() {
            assert_eq!(self.ledger("SELECT * FROM runs WHERE state = 'running'"), no_rows(), "runs");
            assert_eq!(self.ledger("SELECT * FROM workers WHERE outcome = 'running'"), no_rows(), "workers");
            let owed = "SELECT kind, name, state, error FROM resources WHERE state <> 'removed'";
            assert_eq!(self.ledger(owed), no_rows(), "resources");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that fails may leave processes behind; they must not outlive it.
        for process in alive_in(self.root.path()) {
            let _ = kill(pid_in(&process), Signal::SIGKILL);
        }
    }
}

fn pid_in(process: &str) -> Pid {
    Pid::from_raw(process.split(' ').next().and_then(|pid| pid.parse().ok()).expect("begins with the pid"))
}

/// What a query gives that finds nothing.
pub fn no_rows() -> Vec<Vec<String>> {
    Vec::new()
}

/// Reads any ledger.
#[track_caller]
pub fn read_ledger(path: &Path, sql: &str) -> Vec<Vec<String>> {
    let ledger = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let ledger = ledger.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    ledger.busy_timeout(std::time::Duration::from_secs(10)).expect("a setting");
    let mut statement = ledger.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|column| Ok(as_text(row.get_ref(column)?))).collect());
    rows.and_then(Iterator::collect).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn as_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}
