//! Temporary files for what does not fit into memory: without a name from birth (O_TMPFILE, open(2)), or
//! unlinked at once where the file system has no O_TMPFILE, so that nothing is left after a crash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::serve::base::budget::{Budget, Charge};

/// Where files may be made, and how much they may hold in sum.
#[derive(Debug)]
pub struct TempFiles {
    directory: Option<PathBuf>,
    budget: Arc<Budget>,
    /// To the thread that closes; empty until it was started.
    closer: OnceLock<Sender<OpenFile>>,
    #[cfg(test)]
    disk: tests::Disk,
}

/// A file and the room that it takes, which is free when the file is closed and not before.
#[derive(Debug)]
struct OpenFile {
    file: File,
    charge: Mutex<Charge>,
}

/// Closing the last descriptor of a file frees its blocks and pages, which takes a millisecond for some megabytes
/// and longer on a busy disk; a thousand clients that leave at once would hold up the loop for a second. Smaller
/// files are closed where they are.
const CLOSED_APART_BYTES: u64 = 256 * 1024;

impl TempFiles {
    pub fn new(directory: Option<PathBuf>, bytes_max: u64) -> TempFiles {
        TempFiles {
            directory,
            budget: Budget::new(bytes_max),
            closer: OnceLock::new(),
            #[cfg(test)]
            disk: tests::Disk::default(),
        }
    }

    /// Starts the thread that closes large files. It has nothing to do with an application and lives as long as the
    /// process.
    pub fn start_closer(&self) -> io::Result<()> {
        let (sender, open_file) = channel::<OpenFile>();
        std::thread::Builder::new().name("closer".to_string()).spawn(move || open_file.into_iter().for_each(drop))?;
        // A second one would find no sender and end at once.
        let _ = self.closer.set(sender);
        Ok(())
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

    /// A new file. What is written to it is charged as it comes: a client that only announces much takes no
    /// room from others.
    pub fn create(&self) -> Result<Spool, Failed> {
        let Some(directory) = &self.directory else { return Err(Failed::Full) };
        let file = unnamed(directory).map_err(Failed::Io)?;
        let open_file = OpenFile { file, charge: Mutex::new(self.budget.charge()) };
        Ok(Spool { open_file: Some(open_file), length: AtomicU64::new(0), closer: self.closer.get().cloned() })
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
    /// None: it is being dropped.
    open_file: Option<OpenFile>,
    length: AtomicU64,
    closer: Option<Sender<OpenFile>>,
}

impl Spool {
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    fn open_file(&self) -> &OpenFile {
        self.open_file.as_ref().expect("only drop takes it")
    }

    /// Appends all or fails, and may wait for the disk. One thread at a time does so; others may read what is there. The
    /// file's own position stays at 0 (pwrite).
    pub fn append(&self, bytes: &[u8]) -> Result<(), Failed> {
        let length = self.length();
        let end = length + bytes.len() as u64;
        let open_file = self.open_file();
        {
            let mut charge = open_file.charge.lock().unwrap_or_else(PoisonError::into_inner);
            let missing = end.saturating_sub(charge.bytes());
            if missing > 0 && !charge.grow(missing) {
                return Err(Failed::Full);
            }
        }
        open_file.file.write_all_at(bytes, length).map_err(Failed::Io)?;
        self.length.store(end, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let (Some(closer), Some(open_file)) = (&self.closer, self.open_file.take()) {
            if self.length() > CLOSED_APART_BYTES {
                // Where the thread is gone the file comes back in the error and is closed here.
                let _ = closer.send(open_file);
            }
        }
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.open_file().file.as_fd()
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
    use std::time::{Duration, Instant};

    use std::sync::Condvar;

    use super::*;

    /// A disk that takes nothing for a while; and how many wait for it.
    #[derive(Debug, Default)]
    pub struct Disk {
        state: Mutex<(bool, usize)>,
        changed: Condvar,
    }

    impl TempFiles {
        pub fn set_stuck(&self, stuck: bool) {
            self.disk.state.lock().expect("no panic while locked").0 = stuck;
            self.disk.changed.notify_all();
        }

        pub fn is_waited_for(&self) -> bool {
            self.disk.state.lock().expect("no panic while locked").1 > 0
        }

        pub fn wait_for_disk(&self) {
            let mut state = self.disk.state.lock().expect("no panic while locked");
            state.1 += 1;
            let mut state = self.disk.changed.wait_while(state, |state| state.0).expect("no panic while locked");
            state.1 -= 1;
        }
    }

    /// The room is free again only when the file is closed.
    #[test]
    fn large_files_are_closed_apart() {
        let temp = TempFiles::new(Some(std::env::temp_dir()), 1 << 20);
        temp.start_closer().expect("a thread");
        let spool = temp.create().expect("file");
        spool.append(&vec![b'x'; 1 << 20]).expect("within the bound");
        assert_eq!(temp.left(), 0);
        drop(spool);
        let deadline = Instant::now() + Duration::from_secs(10);
        while temp.left() < 1 << 20 {
            assert!(Instant::now() < deadline, "the file is never closed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn files_have_no_name_and_a_bound() {
        let directory = std::env::temp_dir().join(format!("forkmaster-spool-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        let temp = TempFiles::new(Some(directory.clone()), 10);
        let mut spool = temp.create().expect("file");
        spool.append(b"hello ").expect("within the bound");
        assert!(matches!(spool.append(b"world"), Err(Failed::Full)));
        assert!(matches!(temp.create().expect("file").append(b"12345"), Err(Failed::Full)));
        let mut text = String::new();
        spool.open_file.as_mut().expect("not dropped").file.read_to_string(&mut text).expect("position is 0");
        assert_eq!(text, "hello ");
        assert_eq!(std::fs::read_dir(&directory).expect("listing").count(), 0);
        let mut options = OpenOptions::new();
        named(options.read(true).write(true), &directory).expect("file");
        assert_eq!(std::fs::read_dir(&directory).expect("listing").count(), 0);
        drop(spool);
        assert_eq!(temp.left(), 10);
        std::fs::remove_dir(&directory).expect("empty");
        assert!(matches!(temp.create(), Err(Failed::Io(_))));
        assert!(matches!(TempFiles::new(None, 10).create(), Err(Failed::Full)));
    }
}
