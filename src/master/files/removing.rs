//! Removing and renaming files of a directory in which somebody else may have a hand, by the rule of opening: with the rights
//! of whoever owns the directory, never through a stranger's link, and regular files only.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{renameat, AtFlags, OFlag};
use nix::sys::stat::{fstat, fstatat, Mode, SFlag};
use nix::unistd::{geteuid, unlinkat, UnlinkatFlags};

use super::{kind, node, with_rights, Purpose, Rights};
use crate::progress;

/// Removes what is chosen by its name, and says how many files that were. It may wait for a disk.
pub fn remove(
    directory: &Path,
    application: Option<&Rights>,
    is_chosen: impl Fn(&OsStr) -> bool + Send + Sync,
) -> io::Result<usize> {
    progress::note(format!("removing files of {}", directory.display()));
    with_rights(application, |walk| {
        let found = walk.open(directory, Purpose::Directory)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listed = Dir::openat(&found.file, ".", flags, Mode::empty())?;
        let names: Vec<_> = listed.iter().collect::<Result<_, _>>()?;
        let mut removed = 0;
        for entry in names {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if !is_chosen(name) {
                continue;
            }
            let is_file = fstatat(found.file.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG);
            if is_file {
                unlinkat(found.file.as_fd(), name, UnlinkatFlags::NoRemoveDir)?;
                removed += 1;
            }
        }
        Ok(removed)
    })
}

/// Gives a file another name in its directory, and takes that from whichever file has it. Where another file has its name by
/// now, nothing is done.
pub fn rename(path: &Path, file: impl AsFd, to: impl FnOnce(OsString) -> OsString + Send) -> io::Result<()> {
    progress::note(format!("renaming {}", path.display()));
    let wanted = node(&fstat(file)?);
    with_rights(None, |walk| {
        let found = walk.open(path, Purpose::Append)?;
        if node(&fstat(&found.file)?) == wanted {
            let to = to(found.name.clone());
            renameat(&found.directory, found.name.as_os_str(), &found.directory, to.as_os_str())?;
        }
        Ok(())
    })
}

/// Whether files can be made in a directory. It makes none that has a name, and where the file system cannot do that it
/// says yes.
pub fn may_make(directory: &Path, application: Option<&Rights>) -> bool {
    let made = with_rights(None, |_walk| {
        if let Some(rights) = application.filter(|_| geteuid().is_root()) {
            rights.take()?;
        }
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(drop)?)
    });
    let is_no = |error: &io::Error| {
        let refusals = [libc::EACCES, libc::EPERM, libc::EROFS, libc::ENOENT, libc::ENOTDIR];
        error.raw_os_error().is_some_and(|code| refusals.contains(&code))
    };
    !made.is_err_and(|error| is_no(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_gets_another_name_as_long_as_its_name_is_still_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("a"), "first").unwrap();
        std::fs::write(path("a.1"), "older").unwrap();
        let file = std::fs::File::open(path("a")).unwrap();
        let second = |mut name: OsString| {
            name.push(".1");
            name
        };
        rename(&path("a"), &file, second).unwrap();
        assert!(!path("a").exists() && std::fs::read(path("a.1")).unwrap() == b"first");
        // Somebody has made another one.
        std::fs::write(path("a"), "second").unwrap();
        rename(&path("a"), &file, second).unwrap();
        assert_eq!(
            (std::fs::read(path("a")).unwrap(), std::fs::read(path("a.1")).unwrap()),
            (b"second".into(), b"first".into())
        );
    }

    #[test]
    fn only_regular_files_that_are_chosen_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["a.db", "b.db", "a.txt"] {
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::create_dir(path("d.db")).unwrap();
        symlink(path("a.txt"), path("l.db")).unwrap();
        let removed = remove(directory.path(), None, |name| name.as_bytes().ends_with(b".db")).unwrap();
        assert_eq!(removed, 2);
        let mut left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, ["a.txt", "d.db", "l.db"]);
        assert_eq!(remove(&path("gone"), None, |_| true).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(remove(&path("a.txt"), None, |_| true).is_err());
    }
}
