//! Which directory a path led to. Whoever reads the path later can tell whether another one has its name. It reads
//! metadata, so only chores may call it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// A file system gives the number of a removed directory to the next one, often at once. When it was made tells the two
/// apart, where the file system knows that (statx(2), STATX_BTIME).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    device: u64,
    inode: u64,
    made_ns: Option<u64>,
}

impl DirectoryId {
    /// None: it is not there, or not to be looked at.
    pub fn of(path: &Path) -> Option<DirectoryId> {
        let found = path.metadata().ok()?;
        let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        let made_ns = made.and_then(|made| u64::try_from(made.as_nanos()).ok());
        Some(DirectoryId { device: found.dev(), inode: found.ino(), made_ns })
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
}
