//! A private PostgreSQL server: its own folder and port, on loopback only, run by a user
//! who is not root, gone with the test process however that ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, User, chown, geteuid};
use postgres::{Client, NoTls};

use super::tools;

const ADMIN: &str = "admin";
const ADMIN_PASSWORD: &str = "top-secret-of-admin";
/// Settings that make a server quick, and that no test may notice.
const SETTINGS: [&str; 9] = [
    "listen_addresses=127.0.0.1",
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "max_connections=200",
    "max_prepared_transactions=8",
    "log_min_messages=warning",
    "wal_level=logical",
];
/// Waits for the end of its input, which comes with the end of the test process, and
/// stops the server then. A server that is to come again does so.
const GUARDIAN: &str = r#"
folder=$1; shift
while :; do
    "$@" >>"$folder/log" 2>&1 </dev/null
    rm "$folder/again" 2>/dev/null || break
    while [ -e "$folder/hold" ] && [ ! -e "$folder/over" ]; do sleep 0.01; done
    [ ! -e "$folder/over" ] || break
done &
keeper=$!
cat >/dev/null
: >"$folder/over"
read -r server _ <"$folder/data/postmaster.pid" && kill -QUIT $server
wait $keeper
rm -rf "$folder"
"#;

/// A running server.
pub struct Server {
    folder: PathBuf,
    port: u16,
    guardian: Child,
}

impl Server {
    /// The server that all tests of this process share: assert only about what the test
    /// itself made there.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::own)
    }

    /// A server of the test's own.
    pub fn own() -> Self {
        Self::own_in(&std::env::temp_dir())
    }

    /// A server of the test's own, in a new folder in `parent`.
    pub fn own_in(parent: &Path) -> Self {
        Self::with_programs(&tools::postgres_bin(None), parent, &[])
    }

    /// A server of the test's own, of another major version.
    pub fn of_version(version: u32) -> Self {
        Self::with_programs(&tools::postgres_bin(Some(version)), &std::env::temp_dir(), &[])
    }

    /// A server of the test's own that finds these variables.
    #[allow(dead_code, reason = "tests/lease_history sets its clock")]
    pub fn with_variables(variables: &[(&str, &Path)]) -> Self {
        Self::with_programs(&tools::postgres_bin(None), &std::env::temp_dir(), variables)
    }

    fn with_programs(bin: &Path, parent: &Path, variables: &[(&str, &Path)]) -> Self {
        let folder = tempfile::Builder::new().prefix("isolane-test-server-").tempdir_in(parent);
        let folder = folder.expect("a temporary folder");
        let folder = folder.keep(); // the guardian removes it
        let user = server_user();
        if let Some(user) = &user {
            chown(&folder, Some(user.uid), Some(user.gid)).expect("root may give a folder away");
        }
        let bin = reachable(bin, &folder, user.as_ref());
        let password = folder.join("password");
        fs::write(&password, ADMIN_PASSWORD).expect("a file");
        let data = folder.join("data");
        let mut initdb = as_user(&bin.join("initdb"), user.as_ref());
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"]);
        initdb.arg(format!("--username={ADMIN}")).arg("--pwfile").arg(&password).arg("-D").arg(&data);
        let made = initdb.output().expect("initdb");
        assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        loop {
            // Somebody else may take the port in between: then another one is tried.
            if let Some(server) = Self::start(&bin, &folder, user.as_ref(), variables) {
                return server;
            }
        }
    }

    fn start(bin: &Path, folder: &Path, user: Option<&User>, variables: &[(&str, &Path)]) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let mut guardian = as_user(Path::new("/bin/sh"), user);
        // A group of its own: Ctrl-C at the terminal of the tests does not reach it.
        guardian.process_group(0).args(["-c", GUARDIAN, "guardian"]).arg(folder);
        guardian.arg(bin.join("postgres")).arg("-D").arg(folder.join("data")).arg("-p").arg(port.to_string());
        guardian.arg("-k").arg(folder);
        guardian.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        guardian.envs(variables.iter().copied());
        let guardian = guardian.stdin(Stdio::piped()).spawn().expect("sh");
        let server = Self { folder: folder.to_owned(), port, guardian };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let Err(refusal) = server.connect(ADMIN, ADMIN_PASSWORD, "postgres") else { return Some(server) };
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            if log.contains("Address already in use") {
                std::mem::forget(server); // its folder is still needed; it ends by itself
                return None;
            }
            assert!(Instant::now() < deadline, "the server does not answer: {refusal}\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it at once, as a crash does, and starts it again.
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// Stops it at once; it can be started again.
    pub fn stop(&self) {
        self.stop_by(Signal::SIGQUIT);
    }

    /// Stops it by a signal to its first process; it can be started again when the others are gone
    /// as well.
    pub fn stop_by(&self, signal: Signal) {
        fs::write(self.folder.join("hold"), "").expect("a file");
        fs::write(self.folder.join("again"), "").expect("a file");
        let pid = fs::read_to_string(self.folder.join("data/postmaster.pid")).expect("a running server");
        let pid = pid.lines().next().and_then(|line| line.parse().ok()).expect("a pid");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("ours");
        super::wait_until("the server is gone", || !self.folder.join("again").exists());
        // Those that the first process left behind end when they notice, and hold its memory until
        // then.
        let data = self.folder.join("data");
        super::wait_until("all of it is gone", || super::alive_in(&data).is_empty());
        // It says who the server is, and one that was killed could not remove it.
        let _ = fs::remove_file(data.join("postmaster.pid"));
    }

    /// Starts it again.
    pub fn start_again(&self) {
        fs::remove_file(self.folder.join("hold")).expect("it was stopped");
        super::wait_until("the server is there again", || self.connect(ADMIN, ADMIN_PASSWORD, "postgres").is_ok());
    }

    fn connect(&self, login: &str, password: &str, database: &str) -> Result<Client, postgres::Error> {
        let mut settings = postgres::Config::new();
        settings.host("127.0.0.1").port(self.port).user(login).password(password).dbname(database);
        settings.connect(NoTls)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A session of the server's owner.
    #[track_caller]
    pub fn admin(&self, database: &str) -> Client {
        self.connect(ADMIN, ADMIN_PASSWORD, database).expect("the owner may connect")
    }

    /// The owner's address of a database.
    pub fn admin_url(&self, database: &str) -> String {
        format!("postgresql://{ADMIN}:{ADMIN_PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL as the server's owner.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) {
        self.admin(database).batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The first column of a query's rows, which must be text.
    #[track_caller]
    pub fn texts(&self, database: &str, sql: &str) -> Vec<String> {
        let rows = self.admin(database).query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// A new login with these rights (`CREATEDB CREATEROLE`), and a database of its own.
    pub fn database(&self, rights: &str) -> Database<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.database_named(&format!("shop{number}"), &format!("tester{number}"), rights)
    }

    /// The same with given names.
    pub fn database_named(&self, name: &str, login: &str, rights: &str) -> Database<'_> {
        let password = format!("s3cret-of-{login}");
        self.sql("postgres", &format!("CREATE ROLE \"{login}\" LOGIN {rights} PASSWORD '{password}'"));
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\" OWNER \"{login}\""));
        let own = format!("ALTER SCHEMA public OWNER TO \"{login}\"");
        self.sql(name, &own);
        Database { server: self, name: name.to_owned(), login: login.to_owned(), password }
    }

    /// Everything that a run could leave on the server: databases with their settings,
    /// schemas of each, roles with theirs, comments on all of them.
    pub fn snapshot(&self) -> Vec<String> {
        let everywhere = "
            SELECT concat_ws(' ', 'database', d.datname, 'of', d.datdba::regrole, d.datconnlimit, d.datallowconn,
                d.datistemplate, d.datacl, s.setconfig, shobj_description(d.oid, 'pg_database'))
            FROM pg_database d LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0
            UNION ALL
            SELECT concat_ws(' ', 'role', r.rolname, r.rolsuper, r.rolcreatedb, r.rolcreaterole, r.rolcanlogin,
                r.rolconfig, shobj_description(r.oid, 'pg_authid'))
            FROM pg_roles r
            UNION ALL
            SELECT concat_ws(' ', 'member', m.member::regrole, 'of', m.roleid::regrole) FROM pg_auth_members m";
        let within = "
            SELECT concat_ws(' ', n.nspname, 'of', n.nspowner::regrole, n.nspacl, obj_description(n.oid, 'pg_namespace'))
            FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg\\_%'";
        let mut lines = self.texts("postgres", everywhere);
        for database in self.texts("postgres", "SELECT datname::text FROM pg_database WHERE datallowconn") {
            let schemas = self.texts(&database, within);
            lines.extend(schemas.into_iter().map(|schema| format!("schema {database}.{schema}")));
        }
        lines.sort();
        lines
    }

    /// Makes things of others that are called as isolane calls its own.
    pub fn look_alikes(&self, database: &Database<'_>) {
        const NAME: &str = "isolane_0123456789ab_w0";
        for made in ["DATABASE", "ROLE"] {
            self.sql("postgres", &format!("CREATE {made} {NAME}"));
        }
        database.sql(&format!("CREATE SCHEMA {NAME}; CREATE TABLE {NAME}.theirs (id int)"));
    }

    /// What carries a run's tag in its name, in `database` and beside it.
    pub fn marked(&self, tag: &str, database: &str) -> Vec<String> {
        self.texts(
            database,
            &format!(
                "SELECT 'database ' || datname FROM pg_database WHERE datname LIKE '%{tag}%'
                 UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname LIKE '%{tag}%'
                 UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname LIKE '%{tag}%'"
            ),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A database of a test, and the login that owns it.
pub struct Database<'a> {
    /// The server it is on.
    pub server: &'a Server,
    /// Its name.
    pub name: String,
    /// The login.
    pub login: String,
    /// The login's password.
    pub password: String,
}

impl Database<'_> {
    /// The address as a user would write it.
    pub fn url(&self) -> String {
        self.url_with("postgresql", "")
    }

    /// The address with another scheme and with parameters (`?sslmode=disable`).
    pub fn url_with(&self, scheme: &str, parameters: &str) -> String {
        let [login, name] = [&self.login, &self.name].map(|text| text.replace(' ', "%20"));
        format!(
            "{scheme}://{login}:{}@127.0.0.1:{}/{name}{parameters}",
            self.password.replace(' ', "%20"),
            self.server.port
        )
    }

    /// A session of the login.
    #[track_caller]
    pub fn client(&self) -> Client {
        self.server.connect(&self.login, &self.password, &self.name).expect("the login may connect")
    }

    /// Runs SQL as the login.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> &Self {
        self.client().batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        self
    }

    /// What `pg_dump` says of it, without what is different every time.
    pub fn dump(&self) -> String {
        let pg_dump = tools::postgres_bin(None).join("pg_dump");
        let output = Command::new(pg_dump).arg(self.server.admin_url(&self.name)).output().expect("pg_dump");
        assert!(output.status.success(), "pg_dump: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let of_any_time = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(of_any_time).collect::<Vec<_>>().join("\n")
    }

    /// Fails if anything is left on the server of the runs in this lab.
    #[track_caller]
    pub fn assert_nothing_left(&self, lab: &super::Lab) {
        lab.assert_nothing_left();
        for tag in lab.column("SELECT tag FROM runs") {
            let left = self.server.marked(&tag, &self.name);
            assert!(left.is_empty(), "left on the server: {left:#?}");
        }
    }
}

// PostgreSQL refuses to be run by root.
fn server_user() -> Option<User> {
    if !geteuid().is_root() {
        return None;
    }
    let find = |name| User::from_name(name).expect("the list of users");
    Some(find("postgres").or_else(|| find("nobody")).expect("a user to run PostgreSQL as"))
}

fn as_user(program: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

// The programs may stand where only the present user gets to: then the server gets a copy.
fn reachable(bin: &Path, folder: &Path, user: Option<&User>) -> PathBuf {
    let can_run = as_user(Path::new("/bin/sh"), user)
        .args(["-c", "exec \"$1\" --version", "sh"])
        .arg(bin.join("postgres"))
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("reach.log")).expect("a file"))
        .status()
        .expect("sh");
    if can_run.success() {
        return bin.to_owned();
    }
    let copy = folder.join("programs");
    let whole = fs::canonicalize(bin).expect("the programs");
    let whole = whole.parent().expect("the folder above bin");
    let copied = Command::new("cp").arg("-R").arg(whole).arg(&copy).status().expect("cp");
    assert!(copied.success(), "{} cannot be copied", whole.display());
    copy.join("bin")
}
