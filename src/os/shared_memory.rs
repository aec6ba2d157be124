//! Shared memory, which outlives the processes that used it (shmget(2), shm_open(3)). PostgreSQL
//! holds one small System V segment for each server, whose head says which others of it there
//! are, and takes all along when it ends in order.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{fs, io};

use nix::libc;

/// What every segment of a PostgreSQL server begins with (`PGShmemMagic` of its source).
const MAGIC: i32 = 679_834_894;
/// What the list of a server's dynamic segments begins with (`PG_DYNSHMEM_CONTROL_MAGIC`).
const LIST_MAGIC: u32 = 0x9a50_3d32;
/// Where the first of the list is.
const LIST_HEAD: usize = 16;

/// Removes the segment `id` if it is the one that a server with this pid has made under this
/// key; and the dynamic ones with it, as the next server in the same directory would. The number
/// may be somebody else's by now. It stays as long as somebody is attached to it, as a killed
/// process is until the kernel has cleared it away; whether it is gone comes back.
pub fn remove_abandoned(id: i32, key: u32, pid: i32) -> io::Result<bool> {
    let Some(found) = status(id).filter(|found| found.shm_perm.__key.cast_unsigned() == key) else { return Ok(true) };
    let header = match header(id) {
        Ok(header) => header,
        // Another user's, or it went meanwhile.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EIDRM | libc::EINVAL)) => {
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    if (header.magic, header.pid) != (MAGIC, pid) {
        return Ok(true);
    }
    if found.shm_nattch != 0 {
        return Ok(false);
    }
    remove_dynamic(header.list, found.shm_perm.uid)?;
    // SAFETY: removing takes no buffer.
    match unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) } {
        0 => Ok(true),
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

/// What a segment of a server begins with (`PGShmemHeader`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    magic: i32,
    pid: i32,
    _size: usize,
    _free: usize,
    /// The number of the dynamic segment that lists the others; zero where there is none yet.
    list: u32,
}

/// Removes the dynamic segments of a server that is gone, if they are this user's: the one that
/// lists them last.
fn remove_dynamic(list: u32, user: u32) -> io::Result<()> {
    // Where shm_open(3) has them.
    let path_of = |number: u32| PathBuf::from(format!("/dev/shm/PostgreSQL.{number}"));
    let is_its = |number: u32| {
        number != 0 && fs::symlink_metadata(path_of(number)).is_ok_and(|it| it.is_file() && it.uid() == user)
    };
    if !is_its(list) {
        return Ok(());
    }
    let content = fs::read(path_of(list))?;
    let word = |at: usize| content.get(at..at + 4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
    if word(0) != Some(LIST_MAGIC) {
        return Ok(());
    }
    // Versions have more or less beside the number of a segment, which always begins eight bytes.
    for number in (LIST_HEAD..content.len()).step_by(8).filter_map(word).filter(|number| is_its(*number)) {
        fs::remove_file(path_of(number))?;
    }
    fs::remove_file(path_of(list))
}

/// The head of a segment.
fn header(id: i32) -> io::Result<Header> {
    // SAFETY: attached anywhere, to be read only.
    let address = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
    if address.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a segment has a page at least, and is aligned to one; any bytes are a head.
    let header = unsafe { *address.cast::<Header>() };
    // SAFETY: attached just now, and not used any more.
    unsafe { libc::shmdt(address) };
    Ok(header)
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
            assert!(!remove_abandoned(id, 0, 7).expect("somebody is attached"));
            libc::shmdt(address);
        }
        for (key, pid) in [(1, 7), (0, 8)] {
            assert!(remove_abandoned(id, key, pid).expect("another's"));
            assert!(status(id).is_some());
        }
        assert!(remove_abandoned(id, 0, 7).expect("removed"));
        assert!(status(id).is_none());
        assert!(remove_abandoned(id, 0, 7).expect("removed twice"));
    }

    #[test]
    fn dynamic_segments_go_with_the_list_that_names_them() {
        let write = |number: u32, words: &[u32]| {
            let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            fs::write(format!("/dev/shm/PostgreSQL.{number}"), bytes).expect("a new segment");
        };
        let is_there = |number: u32| fs::exists(format!("/dev/shm/PostgreSQL.{number}")).expect("a folder");
        // Larger than any that PostgreSQL draws.
        let [list, one, other, no_list] = [1, 2, 3, 4].map(|n| u32::MAX - std::process::id() * 8 - n);
        write(one, &[0]);
        write(other, &[0]);
        write(no_list, &[1, 1, 64, 0, other, 2, 0, 0]);
        write(list, &[LIST_MAGIC, 1, 64, 0, one, 2, 0, 0, 0, other]);
        let user = fs::metadata(format!("/dev/shm/PostgreSQL.{list}")).expect("just written").uid();
        remove_dynamic(list, user + 1).expect("another's");
        remove_dynamic(no_list, user).expect("no list");
        remove_dynamic(0, user).expect("none");
        assert!([list, one, other, no_list].into_iter().all(is_there));
        remove_dynamic(list, user).expect("removed");
        assert_eq!([list, one, other, no_list].map(is_there), [false, false, true, true]);
        for number in [other, no_list] {
            fs::remove_file(format!("/dev/shm/PostgreSQL.{number}")).expect("ours");
        }
    }
}
