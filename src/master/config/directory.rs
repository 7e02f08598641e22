//! Which directory a path led to. Whoever reads the path later can tell whether another one has its name. It reads
//! metadata, so only chores may call it, and children between fork and exec.

use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DirectoryId {
    inode: u64,
    made_ns: Option<u64>,
}

impl DirectoryId {
    /// None: it is not there, or not to be looked at.
    pub fn of(path: &Path) -> Option<DirectoryId> {
        let found = path.metadata().ok()?;
        let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let made_ns = made.and_then(|made| u64::try_from(made.as_nanos()).ok());
        Some(DirectoryId { inode: found.ino(), made_ns })
    }

    /// The working directory, by a bare system call: a child may do nothing else between fork and exec. None: the kernel, or a
    /// filter, does not know statx(2).
    pub fn here() -> Option<DirectoryId> {
        let mut found = MaybeUninit::<libc::statx>::zeroed();
        let wanted = libc::STATX_INO | libc::STATX_BTIME;
        // SAFETY: the path is a NUL-terminated string, and the place is that of a living value.
        let result = unsafe {
            libc::syscall(libc::SYS_statx, libc::AT_FDCWD, c".".as_ptr(), 0, wanted as libc::c_int, found.as_mut_ptr())
        };
        if result != 0 {
            return None;
        }
        // SAFETY: all of it is numbers, for which zeros are good.
        let found = unsafe { found.assume_init() };
        let made = (found.stx_mask & libc::STATX_BTIME != 0).then_some(found.stx_btime);
        let nanoseconds = |seconds: u64, rest: u32| seconds.checked_mul(1_000_000_000)?.checked_add(u64::from(rest));
        let made_ns = made.and_then(|made| nanoseconds(u64::try_from(made.tv_sec).ok()?, made.tv_nsec));
        Some(DirectoryId { inode: found.stx_ino, made_ns })
    }
}

/// When a directory was made says most (statx(2), STATX_BTIME): a file system gives the number of a removed one to the next,
/// often at once, and an overlay may give another number to the same one. Where that is not known the number has to do.
impl PartialEq for DirectoryId {
    fn eq(&self, other: &DirectoryId) -> bool {
        match (self.made_ns, other.made_ns) {
            (Some(made), Some(other)) => made == other,
            (None, _) | (_, None) => self.inode == other.inode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_directory_of_the_same_name_is_another() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("42");
        assert_eq!(DirectoryId::of(&path), None);
        std::fs::create_dir(&path).unwrap();
        let before = DirectoryId::of(&path);
        std::fs::write(path.join("app.py"), "").unwrap();
        assert!(before.is_some() && DirectoryId::of(&path) == before, "what is written into it changes nothing");
        std::fs::rename(&path, parent.path().join("41")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_ne!(DirectoryId::of(&path), before);
    }

    #[test]
    fn a_bare_system_call_sees_the_same() {
        let here = DirectoryId::here();
        assert!(here.is_some() && here == DirectoryId::of(Path::new(".")));
        assert_ne!(here, DirectoryId::of(Path::new("/")));
    }

    #[test]
    fn the_number_counts_where_nobody_knows_when_it_was_made() {
        let id = |inode, made_ns| DirectoryId { inode, made_ns };
        assert!(id(1, Some(5)) == id(2, Some(5)) && id(1, Some(5)) != id(1, Some(6)));
        assert!(id(1, None) == id(1, Some(5)) && id(1, None) != id(2, None));
    }
}
