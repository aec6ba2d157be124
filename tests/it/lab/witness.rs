//! Witnesses: small modules for the suites of the tests, in Python and in Rust, that
//! write down what a worker found in its environment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The environment of a worker as it was when it wrote it down.
pub type Env = BTreeMap<String, String>;

/// `witness.note(name)` writes the environment down; `witness.meet(n)` waits until n
/// workers met. As a program it does the first, named after the worker.
pub const PYTHON: &str = r#"
import os, socket, stat, sys, time

SEEN = os.environ["SEEN"]


def place(name):
    return os.path.join(SEEN, name.replace("/", "_"))


def note(name, **more):
    seen = dict(os.environ, PID=str(os.getpid()), PARENT=str(os.getppid()), **more)
    if "ISOLANE_SOCKET" in seen:
        folder = os.path.dirname(seen["ISOLANE_SOCKET"])
        seen["SOCKET_MODE"] = oct(stat.S_IMODE(os.stat(folder).st_mode))
        seen["SOCKET_IS_THERE"] = str(stat.S_ISSOCK(os.stat(seen["ISOLANE_SOCKET"]).st_mode))
        seen["DIR_IS_THERE"] = str(os.path.isdir(seen["ISOLANE_DIR"]) and os.path.isdir(seen["TMPDIR"]))
        seen["FREE_PORTS"] = str(free_ports(int(seen["ISOLANE_PORT_BASE"])))
    with open(place(name) + ".part", "w") as file:
        file.write("\0".join(f"{name}={value}" for name, value in seen.items()))
    os.rename(place(name) + ".part", place(name))


def free_ports(base):
    held = []
    for port in range(base, base + 20):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        held.append(listener)
    return len(held)


def meet(n, where="meeting"):
    os.makedirs(place(where), exist_ok=True)
    open(os.path.join(place(where), str(os.getpid())), "w").close()
    wait(lambda: len(os.listdir(place(where))) >= n, f"{n} workers met at {where}")


def wait(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        meet(int(sys.argv[1]))
    note(os.environ["WORKER_ID"])
"#;

/// The same in Rust, as the module `witness` of a crate.
pub const RUST: &str = r#"
use std::{env, fs, net::TcpListener, os::unix::fs::PermissionsExt, path::PathBuf, process, thread, time::Duration};

fn place(name: &str) -> PathBuf {
    PathBuf::from(env::var("SEEN").unwrap()).join(name.replace('/', "_"))
}

#[allow(dead_code)]
pub fn note(name: &str) {
    let mut seen: Vec<String> = env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    seen.push(format!("PID={}", process::id()));
    seen.push(format!("PARENT={}", std::os::unix::process::parent_id()));
    if let Ok(socket) = env::var("ISOLANE_SOCKET") {
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        seen.push(format!("SOCKET_MODE=0o{:o}", mode(PathBuf::from(&socket).parent().unwrap().into())));
        seen.push(format!("SOCKET_IS_THERE={}", if PathBuf::from(&socket).exists() { "True" } else { "False" }));
        let there = ["ISOLANE_DIR", "TMPDIR"].iter().all(|name| PathBuf::from(env::var(name).unwrap()).is_dir());
        seen.push(format!("DIR_IS_THERE={}", if there { "True" } else { "False" }));
        let base: u16 = env::var("ISOLANE_PORT_BASE").unwrap().parse().unwrap();
        let held: Vec<_> = (base..base + 20).map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap()).collect();
        seen.push(format!("FREE_PORTS={}", held.len()));
    }
    let part = place(&format!("{name}.part"));
    fs::write(&part, seen.join("\0")).unwrap();
    fs::rename(part, place(name)).unwrap();
}

#[allow(dead_code)]
pub fn meet(n: usize) {
    fs::create_dir_all(place("meeting")).unwrap();
    fs::write(place("meeting").join(process::id().to_string()), "").unwrap();
    for _ in 0..12_000 {
        if fs::read_dir(place("meeting")).unwrap().count() >= n {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("waited in vain until {n} workers met");
}
"#;

/// Everything that was written down, by name.
#[derive(Debug)]
pub struct Seen(BTreeMap<String, Env>);

impl Seen {
    pub(super) fn read(folder: &Path) -> Self {
        let files = fs::read_dir(folder).expect("a folder").flatten().filter(|entry| entry.path().is_file());
        let read = |path: &Path| {
            let text = fs::read_to_string(path).expect("a file");
            text.split('\0').filter_map(|line| line.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect()
        };
        Self(files.map(|entry| (entry.file_name().to_string_lossy().into_owned(), read(&entry.path()))).collect())
    }

    /// The names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// What is under this name.
    #[track_caller]
    pub fn of(&self, name: &str) -> &Env {
        self.0.get(name).unwrap_or_else(|| panic!("nothing is seen of {name}, only of {:?}", self.names()))
    }

    /// A variable under this name.
    #[track_caller]
    pub fn get(&self, name: &str, variable: &str) -> &str {
        let env = self.of(name);
        env.get(variable).unwrap_or_else(|| panic!("{name} has no {variable}: {env:#?}"))
    }

    /// A variable of everybody, sorted by their names.
    #[track_caller]
    pub fn all(&self, variable: &str) -> Vec<&str> {
        self.0.keys().map(|name| self.get(name, variable)).collect()
    }

    /// The different values of a variable, sorted.
    #[track_caller]
    pub fn distinct(&self, variable: &str) -> Vec<&str> {
        let mut values = self.all(variable);
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Those whose name begins like this.
    pub fn only(&self, begin: &str) -> Self {
        let matching = self.0.iter().filter(|(name, _)| name.starts_with(begin));
        Self(matching.map(|(name, env)| (name.clone(), env.clone())).collect())
    }

    /// Names and environments.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Env)> {
        self.0.iter()
    }
}
