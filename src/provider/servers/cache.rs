//! Clusters that are kept for later runs, in the user's cache: each in a folder of its own,
//! beside a lock that whoever makes it holds alone, and whoever copies it with others.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::cluster::Cluster;
use crate::address::Variables;
use crate::recipe::digest;

/// How many are kept.
const MOST: usize = 6;
/// How long to wait for another run that makes the same. After that each makes its own.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long between two looks.
const BREATH: Duration = Duration::from_millis(20);
/// What a kept cluster is a copy of.
const FINGERPRINT: &str = "fingerprint";

/// The folder, where there is one that only this user can write to.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// A place in the cache, locked. The kernel frees it with the process.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    lock: File,
}

impl Cache {
    /// `$XDG_CACHE_HOME/isolane/servers`, else below `~/.cache`.
    pub fn open(variables: &Variables) -> Self {
        let absolute = |name: &str| variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        let folder = base.map(|base| base.join("isolane/servers")).filter(|folder| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            // Whoever may write there may choose what a server runs.
            let is_ours = |meta: fs::Metadata| {
                meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0
            };
            made.is_ok() && fs::symlink_metadata(folder).is_ok_and(is_ours)
        });
        Self { folder }
    }

    /// The name of what is made from these parts.
    pub fn name(kind: &str, parts: &[&str]) -> String {
        format!("{kind}-{}", &digest(parts)[..20])
    }

    /// The cluster of this name and fingerprint, for copying.
    pub fn find(&self, name: &str, fingerprint: &str) -> Option<Place> {
        let path = self.folder.as_ref()?.join(name);
        if !is_of(&path, fingerprint) {
            return None;
        }
        let place = Place { lock: lock(&path, File::try_lock_shared)?, path };
        // It may have been replaced before it was locked.
        is_of(&place.path, fingerprint).then(|| {
            place.touch();
            place
        })
    }

    /// The place for a cluster of this name, for making it, once nobody else does or copies it.
    pub fn reserve(&self, name: &str) -> Option<Place> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_there() && Instant::now() < deadline {
            if let Some(place) = self.try_reserve(name) {
                return Some(place);
            }
            std::thread::sleep(BREATH);
        }
        None
    }

    /// The same if nobody does now.
    pub fn try_reserve(&self, name: &str) -> Option<Place> {
        let path = self.folder.as_ref()?.join(name);
        Some(Place { lock: lock(&path, File::try_lock)?, path })
    }

    /// Whether anything can be kept.
    pub fn is_there(&self) -> bool {
        self.folder.is_some()
    }

    /// Removes what was used least recently, and by nobody now.
    fn tidy(&self) {
        let Some(folder) = &self.folder else { return };
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let age = |lock: &Path| fs::metadata(lock).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut locks: Vec<_> = entries.filter(|path| path.extension().is_some_and(|it| it == "lock")).collect();
        locks.sort_by_key(|lock| std::cmp::Reverse(age(lock)));
        for path in locks.into_iter().skip(MOST) {
            let cluster = path.with_extension("");
            let Some(lock) = lock(&cluster, File::try_lock) else { continue };
            let gone = remove(&cluster).and_then(|()| remove(&being_made(&cluster)));
            if gone.is_ok() {
                let _ = fs::remove_file(path);
            }
            drop(lock);
        }
    }
}

impl Place {
    /// The cluster there.
    pub fn cluster(&self) -> Cluster {
        Cluster::at(&self.path)
    }

    /// Whether a cluster with this fingerprint is there by now.
    pub fn has(&self, fingerprint: &str) -> bool {
        is_of(&self.path, fingerprint)
    }

    /// Keeps a copy of `cluster`, where no server is running, in a place that was reserved.
    pub fn keep(&self, cache: &Cache, cluster: &Cluster, fingerprint: &str) -> anyhow::Result<()> {
        let new = being_made(&self.path);
        let copied = (|| {
            remove(&new)?;
            let kept = Cluster::at(&new);
            kept.make_folder(None)?;
            kept.copy_from(cluster, None, true)?;
            fs::write(new.join(FINGERPRINT), fingerprint)?;
            remove(&self.path)?;
            fs::rename(&new, &self.path).context("cannot rename it")
        })();
        if copied.is_err() {
            // A full disk, mostly: what is not kept is made again.
            let _ = remove(&new);
        }
        self.touch();
        cache.tidy();
        copied
    }

    /// Lets others copy as well, as who reserved it does from now on.
    pub fn share(&self) {
        // Nobody can come in between who would remove what was just used.
        let _ = self.lock.lock_shared();
    }

    fn touch(&self) {
        let _ = self.lock.set_modified(SystemTime::now());
    }
}

fn being_made(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn is_of(path: &Path, fingerprint: &str) -> bool {
    fs::read_to_string(path.join(FINGERPRINT)).is_ok_and(|text| text == fingerprint) && Cluster::at(path).is_whole()
}

fn remove(path: &Path) -> io::Result<()> {
    super::super::directory::remove_tree(path)
}

/// The lock beside `path`, if it can be had now.
fn lock(path: &Path, take: impl Fn(&File) -> Result<(), TryLockError>) -> Option<File> {
    let beside = path.with_extension("lock");
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside).ok()?;
        take(&file).ok()?;
        // Who tidies may have taken the file away before it was locked.
        let id = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
        if id(file.metadata()) == id(fs::metadata(&beside)) {
            return Some(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(folder: &Path) -> Cluster {
        fs::create_dir_all(folder.join("data/global")).expect("mkdir");
        fs::write(folder.join("data/global/pg_control"), "x").expect("write");
        fs::write(folder.join("password"), "x").expect("write");
        Cluster::at(folder)
    }

    #[test]
    fn the_least_recently_used_goes_unless_it_is_in_use() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let variables = Variables::from([("XDG_CACHE_HOME".to_owned(), dir.path().display().to_string())]);
        let cache = Cache::open(&variables);
        let made = cluster(&dir.path().join("made"));
        let keep = |number: usize| {
            let place = cache.reserve(&format!("n-{number}")).expect("free");
            place.keep(&cache, &made, "same").expect("kept");
            let age = Duration::from_secs(1000 - 10 * number as u64);
            place.lock.set_modified(SystemTime::now() - age).expect("a time");
        };
        (0..MOST).for_each(keep);
        let used = cache.find("n-0", "same").expect("kept");
        used.lock.set_modified(SystemTime::UNIX_EPOCH).expect("a time");
        assert!(cache.find("n-1", "other").is_none());
        (MOST..MOST + 2).for_each(keep);
        assert!(cache.find("n-0", "same").is_some(), "it was in use");
        assert!(cache.find("n-1", "same").is_none() && cache.find("n-2", "same").is_some());
    }

    #[test]
    fn names_are_of_their_parts() {
        assert_ne!(Cache::name("x", &["ab", "c"]), Cache::name("x", &["a", "bc"]));
        assert_eq!(Cache::name("x", &["a"]), Cache::name("x", &["a"]));
    }
}
