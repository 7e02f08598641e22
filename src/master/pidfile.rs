//! The pid file, for those who ask for one: written once, locked while the master lives, so that a stale one is told
//! from a live one without guessing. Never rewritten on a reload: the pid stays the same for life. What does not look
//! like a pid file is never overwritten.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{AtFlags, Flock, FlockArg};
use nix::sys::stat::{fstat, fstatat};
use nix::unistd::{unlinkat, UnlinkatFlags};
use serde::{Deserialize, Serialize};

use crate::files::{self, Rights};
use crate::saved::{Claims, Kept};

/// A pid has ten digits at most.
const BYTES_MAX: u64 = 32;

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    name: OsString,
}

pub struct PidFile {
    directory: OwnedFd,
    name: OsString,
    /// The lock ends with it. A forked child shares the description, but every exec closes it (O_CLOEXEC).
    lock: Flock<File>,
}

impl PidFile {
    pub fn write(path: &Path, application: Option<&Rights>) -> io::Result<PidFile> {
        let place = files::pid_file(path, application)?;
        let mut lock = Flock::lock(place.file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            let text = format!("another process holds its lock ({error}); is the service running already?");
            io::Error::new(io::ErrorKind::AddrInUse, text)
        })?;
        let mut before = Vec::new();
        Read::by_ref(&mut *lock).take(BYTES_MAX).read_to_end(&mut before)?;
        if !before.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace()) {
            let text = "it holds something else than a pid; remove it, or choose another name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        lock.set_len(0)?;
        io::Seek::rewind(&mut *lock)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(PidFile { directory: place.directory, name: place.name, lock })
    }

    pub fn save(&self, kept: &mut Kept) -> Saved {
        kept.keep("pidfile.directory", &self.directory);
        kept.keep("pidfile.lock", &*self.lock);
        Saved { name: self.name.clone() }
    }

    /// The lock is that of the open file and has lived on.
    pub fn restore(saved: Saved, claims: &mut Claims) -> io::Result<PidFile> {
        let (directory, file) = (claims.claim("pidfile.directory")?, claims.claim("pidfile.lock")?);
        let lock = Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        Ok(PidFile { directory, name: saved.name, lock })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // By the directory that it was opened in: the path may lead elsewhere by now. Left behind it is harmless, since
        // it is not locked.
        let there = fstatat(&self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        let ours = fstat(&*self.lock);
        if let (Ok(there), Ok(ours)) = (there, ours) {
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) {
                let _ = unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_master_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        std::fs::write(&path, "9999999 \n").unwrap();
        let first = PidFile::write(&path, None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(PidFile::write(&path, None).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_holds_no_pid_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        std::fs::write(&path, "root:x:0:0\n").unwrap();
        let error = PidFile::write(&path, None).err().unwrap();
        assert!(error.to_string().contains("something else than a pid"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "root:x:0:0\n");
    }

    #[test]
    fn another_file_in_its_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        let first = PidFile::write(&path, None).unwrap();
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(first);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
    }
}
