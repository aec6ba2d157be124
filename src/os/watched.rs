//! A file that others may write: who waits for that sleeps (inotify(7)).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A file that is watched.
#[derive(Debug)]
pub struct Watched {
    inotify: Inotify,
    path: PathBuf,
    inode: u64,
}

impl Watched {
    /// Watches the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        // The last link that goes is a change of its attributes, as long as somebody has it open.
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        inotify.add_watch(path, what)?;
        Ok(Self { inotify, inode: path.metadata()?.ino(), path: path.to_owned() })
    }

    /// Whether the file still is where it was.
    pub fn is_there(&self) -> bool {
        self.path.metadata().is_ok_and(|it| it.ino() == self.inode)
    }

    /// Waits until it was written; says no when it is gone.
    pub fn wait(&self) -> bool {
        loop {
            match self.inotify.read_events() {
                Ok(events) => return !events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)),
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}
