//! System V shared memory, which outlives the processes that used it (shmget(2)). PostgreSQL
//! holds one small segment for each server, and takes it along when it ends in order.

use std::io;

use nix::libc;

/// What every segment of a PostgreSQL server begins with (`PGShmemMagic` of its source).
const MAGIC: i32 = 679_834_894;

/// Removes the segment `id` if it is the one that a server with this pid has made under this
/// key, and nobody is attached to it. The number may be somebody else's by now.
pub fn remove_abandoned(id: i32, key: u32, pid: i32) -> io::Result<()> {
    let Some(found) = status(id) else { return Ok(()) };
    if found.shm_perm.__key.cast_unsigned() != key || found.shm_nattch != 0 || header(id)? != (MAGIC, pid) {
        return Ok(());
    }
    // SAFETY: removing takes no buffer.
    match unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel knows of a segment; `None` where there is none, or none of ours to read.
fn status(id: i32) -> Option<libc::shmid_ds> {
    let mut found = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the call writes one structure of this type.
    let asked = unsafe { libc::shmctl(id, libc::IPC_STAT, found.as_mut_ptr()) };
    // SAFETY: zeroed before, and written by the call where it succeeded.
    (asked == 0).then(|| unsafe { found.assume_init() })
}

/// The first two words of a segment of at least that size: magic number, and pid of its maker.
fn header(id: i32) -> io::Result<(i32, i32)> {
    // SAFETY: attached anywhere, to be read only.
    let address = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if address.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a segment has a page at least, and is aligned to one.
    let words = unsafe { *address.cast::<[i32; 2]>() };
    // SAFETY: attached just now, and not used any more.
    unsafe { libc::shmdt(address) };
    Ok((words[0], words[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_segment_of_that_server_goes() {
        // SAFETY: a new segment of one page, for this user only.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 56, libc::IPC_CREAT | 0o600) };
        assert!(id >= 0, "{}", io::Error::last_os_error());
        // SAFETY: attached anywhere, written within its size, and let go.
        unsafe {
            let address = libc::shmat(id, std::ptr::null(), 0);
            *address.cast::<[i32; 2]>() = [MAGIC, 7];
            remove_abandoned(id, 0, 7).expect("somebody is attached");
            libc::shmdt(address);
        }
        for (key, pid) in [(1, 7), (0, 8)] {
            remove_abandoned(id, key, pid).expect("another's");
            assert!(status(id).is_some());
        }
        remove_abandoned(id, 0, 7).expect("removed");
        assert!(status(id).is_none());
        remove_abandoned(id, 0, 7).expect("removed twice");
    }
}
