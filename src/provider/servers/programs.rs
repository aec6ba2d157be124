//! PostgreSQL's own programs on this machine, and the user they run as.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::bail;
use nix::unistd::User;

use crate::error::Stop;
use crate::os::process;

/// The programs of one version.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
    /// `15`
    pub major: i32,
    /// `15.18`
    pub version_text: String,
    /// Whom they run as, where that is not the present user: they refuse root.
    pub user: Option<User>,
}

impl Programs {
    /// Finds the programs: those of version `wanted`, else of the next newer one; without a
    /// wish, the first of PATH, of `pg_config`, and of where systems put them.
    pub fn find(wanted: Option<i32>) -> anyhow::Result<Self> {
        let user = server_user()?;
        let mut found = Vec::new();
        for bin in folders() {
            if found.iter().any(|known: &Self| known.bin == bin) {
                continue;
            }
            let Some(version_text) = version(&bin, user.as_ref()) else { continue };
            let Some(major) = version_text.split('.').next().and_then(|major| major.parse().ok()) else { continue };
            let programs = Self { bin, major, version_text, user: user.clone() };
            if wanted.is_none_or(|wanted| wanted == major) {
                return Ok(programs);
            }
            found.push(programs);
        }
        let Some(wanted) = wanted else {
            bail!(Stop::not_started(
                "--isolation server needs PostgreSQL's own programs (initdb, postgres), and none are in PATH or where systems put them; install them (Debian: apt-get install postgresql)"
            ));
        };
        let newest = found.iter().map(|programs| programs.major).max().unwrap_or(0);
        match found.into_iter().filter(|programs| programs.major > wanted).min_by_key(|programs| programs.major) {
            Some(newer) => Ok(newer),
            None if newest == 0 => Self::find(None),
            None => bail!(Stop::not_started(format!(
                "the database is on PostgreSQL {wanted}, and the newest programs on this machine are of version {newest}; install them (Debian: apt-get install postgresql-{wanted})"
            ))),
        }
    }

    /// What `doctor` says of them.
    pub fn describe(&self) -> String {
        format!("PostgreSQL {} in {}, for --isolation server", self.version_text, self.bin.display())
    }

    /// One of the server's programs, as the server's user.
    pub fn server(&self, name: &str) -> Command {
        as_user(&self.bin.join(name), self.user.as_ref())
    }

    /// One of the clients: of this version, else the one on PATH.
    pub fn client(&self, name: &str) -> anyhow::Result<Command> {
        let own = self.bin.join(name);
        let path = if own.is_file() { Ok(own) } else { which::which(name) };
        let path = path.map_err(|_| {
            Stop::not_started(format!(
                "the program {name} is missing, which copies your database into each server; install it (Debian: apt-get install postgresql-client)"
            ))
        })?;
        let mut command = process::command(path);
        clean(&mut command);
        Ok(command)
    }
}

/// A command with nothing of the environment that would tell PostgreSQL anything, or say that
/// it belongs to a test.
fn as_user(program: &Path, user: Option<&User>) -> Command {
    let mut command = process::command(program);
    command.current_dir("/").stdin(Stdio::null());
    clean(&mut command);
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("ISOLANE_") {
            command.env_remove(&name);
        }
    }
}

/// Whom servers run as where isolane is root.
fn server_user() -> anyhow::Result<Option<User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let find = |name| User::from_name(name).ok().flatten();
    match find("postgres").or_else(|| find("nobody")) {
        Some(user) => Ok(Some(user)),
        None => bail!(Stop::not_started(
            "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody; run isolane as an ordinary user"
        )),
    }
}

/// Where programs may be, the best place first.
fn folders() -> Vec<PathBuf> {
    let beside = |program: PathBuf| fs::canonicalize(program).ok()?.parent().map(Path::to_owned);
    let mut all: Vec<_> = which::which_all("initdb").into_iter().flatten().filter_map(beside).collect();
    let configured = process::command("pg_config").arg("--bindir").stderr(Stdio::null()).output();
    let configured = configured.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    all.extend(configured.filter(|path| !path.is_empty()).map(PathBuf::from));
    for (folder, head, tail) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
    ] {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.strip_prefix(head)?.parse().ok()?;
                Some((version, entry.path().join(tail)))
            })
            .collect();
        versions.sort();
        all.extend(versions.into_iter().rev().map(|(_, bin)| bin));
    }
    all.extend(["/usr/local/pgsql/bin", "/usr/bin"].map(PathBuf::from));
    all.retain(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file());
    all
}

/// The version, as far as the server's user can run the programs.
fn version(bin: &Path, user: Option<&User>) -> Option<String> {
    let output = as_user(&bin.join("postgres"), user).arg("-V").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    // `18beta1` is 18.
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    output.status.success().then(|| word[..end].to_owned())
}
