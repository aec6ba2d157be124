//! A file that others may write: who waits for that sleeps (inotify(7)).

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// A file that is watched.
#[derive(Debug)]
pub struct Watched {
    inotify: Inotify,
}

impl Watched {
    /// Watches the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)?;
        Ok(Self { inotify })
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
