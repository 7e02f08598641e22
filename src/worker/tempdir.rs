//! Where large bodies go: the first of the configured directories in which a file can really be made, tried as
//! the user that the worker runs as.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::sys::stat::Mode;
use nix::sys::statfs::{statfs, TMPFS_MAGIC};

/// Names tried in a directory before it counts as not writable.
const NAMES_MAX: u32 = 100;

/// `tell`: log what an operator should know of the choice. `alone`: how many bytes of bodies may lie in memory where
/// there are no files.
pub fn choose(directories: &[PathBuf], alone: u64, tell: bool) -> Option<PathBuf> {
    let chosen = directories.iter().find(|directory| writable(directory));
    match chosen {
        None if tell => {
            let tried = list(directories);
            log::warn!(
                "no temporary directory is writable ({tried}): request bodies lie in memory, at most {alone} bytes of them \
                 together (body_memory)"
            );
        }
        Some(chosen) if tell && in_memory(chosen) => {
            log::warn!("temporary directory {} is a tmpfs: large bodies go to memory", chosen.display());
        }
        None | Some(_) => {}
    }
    chosen.cloned()
}

/// Makes a file and removes it. Not O_TMPFILE, which some file systems lack (overlayfs before Linux 6.1). A name may
/// be taken by a process that was killed between the two: in a container its pid soon comes again.
fn writable(directory: &Path) -> bool {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    for attempt in 0..NAMES_MAX {
        let path = directory.join(format!(".forkmaster-{}-{attempt}", std::process::id()));
        match open(&path, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(_file) => return std::fs::remove_file(&path).is_ok(),
            Err(Errno::EEXIST) => {}
            Err(_) => return false,
        }
    }
    false
}

fn in_memory(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

fn list(directories: &[PathBuf]) -> String {
    let names: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_makes_no_directory_unwritable() {
        let directory = tempfile::tempdir().expect("directory");
        let taken = directory.path().join(format!(".forkmaster-{}-0", std::process::id()));
        std::fs::write(&taken, "").expect("file");
        let chosen = choose(&[directory.path().to_owned()], 0, false);
        assert_eq!(chosen.as_deref(), Some(directory.path()));
        assert_eq!(std::fs::read_dir(directory.path()).expect("listing").count(), 1, "only the one that was there");
    }

    #[test]
    fn the_first_directory_that_takes_a_file_is_chosen() {
        let directory = tempfile::tempdir().expect("directory");
        let missing = directory.path().join("missing");
        let chosen = choose(&[missing.clone(), directory.path().to_owned()], 0, false);
        assert_eq!(chosen.as_deref(), Some(directory.path()));
        assert_eq!(choose(&[missing], 0, false), None);
    }
}
