//! Which directory a path led to. Whoever reads the path later can tell whether another one has its name. It reads
//! metadata, so only chores may call it.

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
    fn the_number_counts_where_nobody_knows_when_it_was_made() {
        let id = |inode, made_ns| DirectoryId { inode, made_ns };
        assert!(id(1, Some(5)) == id(2, Some(5)) && id(1, Some(5)) != id(1, Some(6)));
        assert!(id(1, None) == id(1, Some(5)) && id(1, None) != id(2, None));
    }
}
