//! Where large bodies go: the first of the configured directories in which a file can really be made, tried as
//! the user that the worker runs as.

use std::path::{Path, PathBuf};

use nix::fcntl::{open, OFlag};
use nix::sys::stat::Mode;
use nix::sys::statfs::{statfs, TMPFS_MAGIC};

/// With `tell`, says what an operator should know of the choice. `alone`: what bodies may have without files.
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

/// Makes a file and removes it. Not O_TMPFILE, which some file systems lack (overlayfs before Linux 6.1).
fn writable(directory: &Path) -> bool {
    let path = directory.join(format!(".forkmaster-{}", std::process::id()));
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    match open(&path, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(_file) => std::fs::remove_file(&path).is_ok(),
        Err(_) => false,
    }
}

fn in_memory(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

fn list(directories: &[PathBuf]) -> String {
    let names: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    names.join(", ")
}
