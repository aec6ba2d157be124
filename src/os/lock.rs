//! The run lock: held as long as the run's supervisor lives, freed by the kernel
//! whatever ends it. No clock, no heartbeat, no pid says so.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A locked file, unlocked and removed by [`RunLock::release`], or unlocked by the
/// kernel at the end of the process. It is not inherited by programs started.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    file: File,
}

impl RunLock {
    /// Makes and locks the file.
    pub fn hold(path: &Path) -> io::Result<Self> {
        loop {
            let lock = Self { path: path.to_owned(), file: Self::open(path)? };
            lock.wait()?;
            // Who tidies may have taken the file away before it was locked.
            if lock.is_of_its_path() {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock of a run that may be dead; `None` where somebody holds it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let lock = Self { path: path.to_owned(), file: Self::open(path)? };
        match lock.file.try_lock() {
            Ok(()) => Ok(Some(lock).filter(Self::is_of_its_path)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn open(path: &Path) -> io::Result<File> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        OpenOptions::new().create(true).truncate(false).write(true).open(path)
    }

    fn is_of_its_path(&self) -> bool {
        let id = |meta: io::Result<Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
        id(self.file.metadata()) == id(std::fs::metadata(&self.path))
    }

    /// The lock of another process, without taking it yet.
    pub fn other(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)? })
    }

    /// Sleeps until the process that holds it is gone or lets go, and takes it.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match self.file.lock() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Removes the file of a run that has been undone.
    pub fn remove(&self) {
        // One that stays is a dead run's, and says nothing else.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the run that holds this lock lives. A missing file is a dead run's.
    pub fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => true,
            // Unlocked again when the file is dropped.
            Ok(()) | Err(TryLockError::Error(_)) => false,
        }
    }

    /// Ends the hold and removes the file.
    pub fn release(self) -> io::Result<()> {
        // Removed first: nobody finds an unlocked file of a run that ended well.
        std::fs::remove_file(&self.path)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        self.file.unlock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_it_is_released() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("run.lock");
        assert!(!RunLock::is_held(&path));
        let lock = RunLock::hold(&path).expect("lock");
        assert!(RunLock::is_held(&path));
        lock.release().expect("release");
        assert!(!RunLock::is_held(&path) && !path.exists());
    }
}
