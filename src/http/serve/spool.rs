//! Temporary files for what does not fit into memory: without a name from birth (O_TMPFILE, open(2)), or
//! unlinked at once where the file system has no O_TMPFILE, so that nothing is left after a crash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::budget::{Budget, Charge};

/// Where files may be made, and how much they may hold in sum.
#[derive(Debug)]
pub struct TempFiles {
    directory: Option<PathBuf>,
    budget: Arc<Budget>,
}

impl TempFiles {
    pub fn new(directory: Option<PathBuf>, bytes_max: u64) -> TempFiles {
        TempFiles { directory, budget: Budget::new(bytes_max) }
    }

    pub fn available(&self) -> bool {
        self.directory.is_some()
    }

    /// Bytes that new files may still take.
    pub fn left(&self) -> u64 {
        if self.available() {
            self.budget.left()
        } else {
            0
        }
    }

    /// A new file with room for `bytes`.
    pub fn create(&self, bytes: u64) -> Result<Spool, Failed> {
        let Some(directory) = &self.directory else { return Err(Failed::Full) };
        let mut charge = self.budget.charge();
        if !charge.grow(bytes) {
            return Err(Failed::Full);
        }
        let file = unnamed(directory).map_err(Failed::Io)?;
        Ok(Spool { file, length: 0, charge })
    }
}

/// Why a file could not take bytes.
#[derive(Debug)]
pub enum Failed {
    /// `temp_limit`.
    Full,
    Io(io::Error),
}

#[derive(Debug)]
pub struct Spool {
    file: File,
    length: u64,
    charge: Charge,
}

impl Spool {
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends all or fails. The file's own position stays at 0 (pwrite).
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let end = self.length + bytes.len() as u64;
        if let Some(missing) = end.checked_sub(self.charge.bytes()).filter(|&missing| missing > 0) {
            if !self.charge.grow(missing) {
                return Err(Failed::Full);
            }
        }
        self.file.write_all_at(bytes, self.length).map_err(Failed::Io)?;
        self.length = end;
        Ok(())
    }

    /// Forgets the contents, gives the room back and keeps the file.
    pub fn reset(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        self.charge.clear();
        Ok(())
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn unnamed(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(directory) {
        // EISDIR: a kernel without it; EOPNOTSUPP: a file system without it; ENOENT: some overlays (open(2)).
        Err(error) if matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EOPNOTSUPP | libc::ENOENT)) => {
            named(&mut options, directory)
        }
        outcome => outcome,
    }
}

fn named(options: &mut OpenOptions, directory: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    /// Names left over from a process with our pid that was killed between open and unlink.
    const TRIES_MAX: u32 = 100;
    for _ in 0..TRIES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".forkmaster-{}-{number}", std::process::id()));
        match options.create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn files_have_no_name_and_a_bound() {
        let directory = std::env::temp_dir().join(format!("forkmaster-spool-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        let temp = TempFiles::new(Some(directory.clone()), 10);
        let mut spool = temp.create(4).expect("file");
        spool.append(b"hello ").expect("within the bound");
        assert!(matches!(spool.append(b"world"), Err(Failed::Full)));
        assert!(matches!(temp.create(5), Err(Failed::Full)));
        let mut text = String::new();
        spool.file.read_to_string(&mut text).expect("position is 0");
        assert_eq!(text, "hello ");
        assert_eq!(std::fs::read_dir(&directory).expect("listing").count(), 0);
        let mut options = OpenOptions::new();
        named(options.read(true).write(true), &directory).expect("file");
        assert_eq!(std::fs::read_dir(&directory).expect("listing").count(), 0);
        drop(spool);
        assert_eq!(temp.left(), 10);
        std::fs::remove_dir(&directory).expect("empty");
        assert!(matches!(temp.create(1), Err(Failed::Io(_))));
        assert!(matches!(TempFiles::new(None, 10).create(1), Err(Failed::Full)));
    }
}
