//! One server's folder: its data, its log and its socket; how a server is started there, and
//! stopped, by whoever knows the folder.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{User, chown};

use super::programs::Programs;
use crate::os::process::{self, Ended, PidFd};
use crate::os::shared_memory;
use crate::secret::Secret;

/// The superuser that every cluster begins with, as nearly every server's does.
pub const ADMIN: &str = "postgres";
/// How a lane's server is set: its data need not survive the machine. What could outlive a
/// server that is killed (shared memory) is in its folder, as far as PostgreSQL lets it be.
const SETTINGS: &str = "
# Data to be thrown away.
fsync = off
synchronous_commit = off
full_page_writes = off
listen_addresses = '127.0.0.1'
shared_buffers = 32MB
dynamic_shared_memory_type = mmap
min_wal_size = 2MB
max_wal_size = 256MB
log_min_messages = warning
lc_messages = 'C'
";
/// Nobody comes in without a password: who does may run programs as the server's user.
const LOGINS: &str = "\
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
local replication all scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
";
/// How long a server may take to come up.
const STARTING: Duration = Duration::from_secs(60);
/// How long to end in order: it gives its own processes five seconds.
const QUITTING: Duration = Duration::from_secs(7);
/// How long killed processes may take to be gone.
const DYING: Duration = Duration::from_secs(10);
/// How long a server may take to write everything down.
const CLOSING: Duration = Duration::from_secs(120);
/// How long between two looks.
const BREATH: Duration = Duration::from_millis(1);
/// The longest path of a socket (unix(7)).
const LONGEST: usize = 107;
/// Files below this number are a new cluster's own (`FirstNormalObjectId`).
const FIRST_OF_USERS: u32 = 16_384;

/// The folder of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cluster {
    folder: PathBuf,
}

/// A server that was started.
#[derive(Debug)]
pub struct Running {
    pub port: u16,
    process: PidFd,
    pid: i32,
}

/// Why a server did not come up.
#[derive(Debug)]
pub enum NotUp {
    /// Somebody has its port.
    PortTaken,
    /// It cannot.
    Failed(anyhow::Error),
}

impl Cluster {
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn password_file(&self) -> PathBuf {
        self.folder.join("password")
    }

    /// The password of [`ADMIN`] in a cluster that was prepared.
    pub fn password(&self) -> anyhow::Result<Secret> {
        let path = self.password_file();
        fs::read_to_string(&path).map(Secret::new).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Whether a whole cluster is there.
    pub fn is_whole(&self) -> bool {
        self.data().join("global/pg_control").is_file() && self.password_file().is_file()
    }

    /// Makes the folder, for `user` alone; one that is there is emptied.
    pub fn make_folder(&self, user: Option<&User>) -> anyhow::Result<()> {
        super::super::directory::remove_tree(&self.folder)
            .and_then(|()| make_private(&self.folder, user))
            .with_context(|| format!("cannot make the directory {}", self.folder.display()))
    }

    /// Makes a cluster from nothing.
    pub fn init(&self, programs: &Programs, locale: &str) -> anyhow::Result<()> {
        let user = programs.user.as_ref();
        let password = uuid::Uuid::new_v4().simple().to_string();
        let file = self.password_file();
        write_private(&file, &password, user)?;
        let output = programs
            .server("initdb")
            .args(["--no-sync", "--encoding=UTF8", "--wal-segsize=1", "--auth=scram-sha-256"])
            .args([format!("--locale={locale}"), format!("--username={ADMIN}")])
            .arg("--pwfile")
            .arg(&file)
            .arg("-D")
            .arg(self.data())
            .output()
            .context("cannot start initdb")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().find(|line| line.contains("error:") || line.contains("FATAL"));
            bail!("initdb failed: {}", line.or(text.lines().next()).unwrap_or("it said nothing").trim());
        }
        let settings = self.data().join("postgresql.conf");
        let written = fs::read_to_string(&settings).and_then(|text| fs::write(&settings, text + SETTINGS));
        written.and_then(|()| fs::write(self.data().join("pg_hba.conf"), LOGINS)).context("cannot set up the server")
    }

    /// Takes over what `other`, where no server is running, has.
    pub fn copy_from(&self, other: &Self, user: Option<&User>, with_password: bool) -> anyhow::Result<()> {
        let copied = Copying { user, shares_blocks: true }.folder(&other.data(), &self.data());
        copied.with_context(|| format!("cannot copy {} to {}", other.data().display(), self.data().display()))?;
        if with_password {
            write_private(&self.password_file(), other.password()?.reveal(), user)?;
        }
        Ok(())
    }

    /// Starts the server on `port`, and waits until it takes connections.
    pub fn start(&self, programs: &Programs, port: u16) -> Result<Running, NotUp> {
        self.spawn(programs, port).map_err(NotUp::Failed).and_then(|running| self.wait_until_up(running))
    }

    fn spawn(&self, programs: &Programs, port: u16) -> anyhow::Result<Running> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(self.log());
        let log = log.with_context(|| format!("cannot write {}", self.log().display()))?;
        let mut command = programs.server("postgres");
        command.arg("-D").arg(self.data()).arg("-p").arg(port.to_string()).arg("-k");
        let socket = self.folder.join(format!(".s.PGSQL.{port}"));
        // Without a socket it is reached by its port.
        command.arg(if socket.as_os_str().len() > LONGEST { Path::new("") } else { &self.folder });
        command.stdout(log.try_clone()?).stderr(log);
        // What ends a terminal's foreground group does not end a server before its tests.
        let leave = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
        // SAFETY: between fork and exec only setsid(2) is called, which is allowed there.
        unsafe { command.pre_exec(leave) };
        let spawned = process::spawn_spared(|| command.spawn(), |child| Some(child.id()));
        let pid = i32::try_from(spawned.context("cannot start postgres")?.id())?;
        let held = PidFd::open(pid).context("cannot hold the server's process")?;
        Ok(Running { port, process: held, pid })
    }

    fn wait_until_up(&self, running: Running) -> Result<Running, NotUp> {
        let deadline = Instant::now() + STARTING;
        let note = self.data().join("postmaster.pid");
        loop {
            let text = fs::read_to_string(&note).unwrap_or_default();
            let mut lines = text.lines();
            let is_its = lines.next().and_then(|line| line.trim().parse().ok()) == Some(running.pid);
            // The eighth line says how far it has come.
            if is_its && lines.nth(6).is_some_and(|line| line.trim() == "ready") {
                return Ok(running);
            }
            let has_ended = running.process.has_ended();
            if !has_ended && Instant::now() < deadline {
                std::thread::sleep(BREATH);
                continue;
            }
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            if has_ended {
                process::bury(running.pid);
                if log.contains("could not create any TCP/IP sockets") || log.contains("Address already in use") {
                    let _ = fs::remove_file(self.log());
                    return Err(NotUp::PortTaken);
                }
            }
            let said = log.lines().rev().find(|line| line.contains("FATAL") || line.contains("PANIC"));
            let said = said.or(log.lines().last()).unwrap_or("it said nothing");
            return Err(NotUp::Failed(anyhow::anyhow!("the server does not come up: {said}")));
        }
    }

    /// Ends a server in order, so that its data may be copied, and takes away what a server
    /// makes again.
    pub fn close(&self, running: &Running) -> anyhow::Result<()> {
        running.process.signal(Signal::SIGINT).context("cannot stop the server")?;
        let deadline = Instant::now() + CLOSING;
        while !running.process.has_ended() {
            ensure!(Instant::now() < deadline, "the server does not stop");
            std::thread::sleep(BREATH);
        }
        let ended = running.process.ended();
        process::bury(running.pid);
        let is_clean = matches!(ended, Some(Ended::Exited(0) | Ended::Unknown));
        ensure!(is_clean && !self.data().join("postmaster.pid").exists(), "the server broke down when it was stopped");
        for entry in fs::read_dir(self.data().join("pg_tblspc"))?.flatten() {
            ensure!(
                !entry.file_type()?.is_symlink(),
                "a tablespace was made, which lanes of their own cannot have: its folder would be the same for all"
            );
        }
        Self::thin(&self.data()).context("cannot make the data smaller")
    }

    /// Maps of free and of visible pages: a third of a small cluster's files, and missing ones
    /// are as good for the few pages of the system's own tables.
    fn thin(folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_type()?.is_dir() {
                Self::thin(&entry.path())?;
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let map = name.strip_suffix("_fsm").or_else(|| name.strip_suffix("_vm"));
            if map.and_then(|number| number.parse().ok()).is_some_and(|number: u32| number < FIRST_OF_USERS) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Stops whatever runs there, at once, and takes its shared memory away. Nothing running
    /// is success.
    pub fn stop(&self) -> anyhow::Result<()> {
        let data = self.data();
        end_makers_of(&data);
        // A server that is killed outright leaves shared memory behind; one that quits does not.
        let servers = servers_of(&data);
        // Programs that a session has started go as well.
        let family = servers.iter().flat_map(|(pid, _)| process::all_below(*pid));
        let family: Vec<_> = family.filter_map(|pid| PidFd::open(pid).ok()).collect();
        for (_, server) in &servers {
            let _ = server.signal(Signal::SIGQUIT);
            // One that stands still hears it when it goes on.
            let _ = server.signal(Signal::SIGCONT);
        }
        wait_for(servers.iter().map(|(_, server)| server), QUITTING);
        let deadline = Instant::now() + DYING;
        loop {
            let left = servers_of(&data).into_iter().chain(orphans_of(&data)).map(|(_, held)| held);
            let left: Vec<_> = left.collect();
            let more = family.iter().filter(|held| !held.has_ended());
            let left: Vec<&PidFd> = left.iter().chain(more).collect();
            if left.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "processes of the server in {} do not end", data.display());
            for held in &left {
                let _ = held.signal(Signal::SIGKILL);
            }
            wait_for(left.into_iter(), Duration::from_millis(100));
        }
        // A process that was killed is not found any more when its memory still is.
        while !self.free_memory().context("cannot remove the server's shared memory")? {
            ensure!(Instant::now() < deadline, "somebody holds the shared memory of the server in {}", data.display());
            std::thread::sleep(BREATH);
        }
        Ok(())
    }

    /// Whether it is gone.
    fn free_memory(&self) -> io::Result<bool> {
        let note = self.data().join("postmaster.pid");
        let text = fs::read_to_string(&note).unwrap_or_default();
        let mut lines = text.lines();
        // A server that initdb works with has a negative number.
        let pid = lines.next().and_then(|line| line.trim().parse().ok()).map(i32::abs);
        // The seventh line: the key of the segment, and its number.
        let segment: Vec<_> = lines.nth(5).unwrap_or_default().split_whitespace().collect();
        let ([key, id], Some(pid)) = (&segment[..], pid) else { return Ok(true) };
        // A key is written as a long, and is an int.
        let (Ok(key), Ok(id)) = (key.parse::<i64>(), id.parse()) else { return Ok(true) };
        let key = u32::try_from(key & 0xFFFF_FFFF).unwrap_or(0);
        if !shared_memory::remove_abandoned(id, key, pid)? {
            return Ok(false);
        }
        let removed = fs::remove_file(note);
        removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }).map(|()| true)
    }

    /// Stops what runs there, and removes it all.
    pub fn remove(&self) -> anyhow::Result<()> {
        self.stop()?;
        super::super::directory::remove_tree(&self.folder)
            .with_context(|| format!("cannot remove the directory {}", self.folder.display()))
    }
}

impl Running {
    /// Collects it, once it has been stopped.
    pub fn bury(&self) {
        if self.process.has_ended() {
            process::bury(self.pid);
        }
    }
}

fn wait_for<'a>(these: impl Iterator<Item = &'a PidFd>, patience: Duration) {
    let deadline = Instant::now() + patience;
    for held in these {
        while !held.has_ended() && Instant::now() < deadline {
            std::thread::sleep(BREATH);
        }
    }
}

/// The servers that run on this data: their arguments say so.
fn servers_of(data: &Path) -> Vec<(i32, PidFd)> {
    let is_its = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        let wanted = data.as_os_str().as_encoded_bytes();
        words[0].ends_with(b"postgres") && words.get(1) == Some(&&b"-D"[..]) && words.get(2) == Some(&wanted)
    };
    held(is_its)
}

/// Ends an `initdb` that is still making this data. The servers that it works with hear that it is
/// gone, and end in order, with their shared memory.
fn end_makers_of(data: &Path) {
    let wanted = data.as_os_str().as_encoded_bytes();
    let makers = held(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words[0].ends_with(b"initdb") && words.windows(2).any(|pair| pair[0] == b"-D" && pair[1] == wanted)
    });
    let below = makers.iter().flat_map(|(pid, _)| process::all_below(*pid));
    let below: Vec<_> = below.filter_map(|pid| PidFd::open(pid).ok()).collect();
    for (_, maker) in &makers {
        let _ = maker.signal(Signal::SIGKILL);
    }
    wait_for(below.iter(), QUITTING);
}

/// Processes that a dead server has left: they work in its data, under a title of their own.
fn orphans_of(data: &Path) -> Vec<(i32, PidFd)> {
    let is_its = |pid: i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
            && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(b"postgres"))
    };
    held(is_its)
}

/// All processes that are so, held, and asked again while they are.
fn held(is_so: impl Fn(i32) -> bool) -> Vec<(i32, PidFd)> {
    let found = process::all().into_iter().filter(|pid| is_so(*pid));
    let held: Vec<_> = found.filter_map(|pid| Some((pid, PidFd::open(pid).ok()?))).collect();
    held.into_iter().filter(|(pid, held)| is_so(*pid) && !held.has_ended()).collect()
}

/// Makes a folder that only `user` can enter, or the present user.
pub fn make_private(folder: &Path, user: Option<&User>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    give(folder, user)
}

fn write_private(path: &Path, text: &str, user: Option<&User>) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .and_then(|()| give(path, user))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn give(path: &Path, user: Option<&User>) -> io::Result<()> {
    user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)).map_err(io::Error::from))
}

/// One copy of a folder, by sharing blocks where the file system can.
struct Copying<'a> {
    user: Option<&'a User>,
    shares_blocks: bool,
}

impl Copying<'_> {
    fn folder(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        make_private(to, self.user)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (kind, source, target) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
            if kind.is_dir() {
                self.folder(&source, &target)?;
            } else if kind.is_file() {
                self.file(&source, &target, entry.metadata()?.len() == 0)?;
                give(&target, self.user)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, is_empty: bool) -> io::Result<()> {
        if is_empty {
            return File::create(to)?.set_permissions(fs::Permissions::from_mode(0o600));
        }
        if self.shares_blocks {
            self.shares_blocks = reflink_copy::reflink(from, to).is_ok();
            if self.shares_blocks {
                return fs::set_permissions(to, fs::Permissions::from_mode(0o600));
            }
            // The first that cannot be shared tells of all.
            let _ = fs::remove_file(to);
        }
        fs::copy(from, to).map(drop)
    }
}

/// Stops the servers of all folders below this one: a dead run's.
pub fn stop_below(folder: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| Cluster::at(entry.path())).filter(|cluster| cluster.data().is_dir()).try_for_each(|c| c.stop())
}
