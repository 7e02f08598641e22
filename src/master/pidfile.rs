//! The pid file, for those who ask for one: written once, locked while the master lives, so that a stale one is told
//! from a live one without guessing. Never rewritten on a reload: the pid stays the same for life.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

pub struct PidFile {
    path: PathBuf,
    /// The lock ends with it. A forked child shares the description, but every exec closes it (O_CLOEXEC).
    _lock: Flock<File>,
}

impl PidFile {
    pub fn write(path: &Path) -> io::Result<PidFile> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path)?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            let text = format!("another process holds its lock ({error}); is the service running already?");
            io::Error::new(io::ErrorKind::AddrInUse, text)
        })?;
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(PidFile { path: path.to_owned(), _lock: lock })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // It holds no pid any more that means anything; left behind it is harmless, since it is not locked.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_master_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        std::fs::write(&path, "99999 stale\n").unwrap();
        let first = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(PidFile::write(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
    }
}
