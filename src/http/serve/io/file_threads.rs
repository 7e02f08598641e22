//! The threads that may wait for a disk, so that the leader never does: they write bodies to their files, and read what is to
//! be sent of a file and not in the page cache. They also give large amounts of memory back. There are a few of them, started
//! when there is something to do; none knows what its work is for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::serve::base::piece::{Disposal, Spent};

use super::memory;

/// A disk seldom gains from more at a time, and one that hangs holds no more than these.
const THREADS_MAX: usize = 4;

/// Where the kernel is asked whether a part of a file lies in memory: it reads ahead, and forgets, in steps that are larger.
const SAMPLE_BYTES: u64 = 64 * 1024;

/// What a thread reads at a time of what will be sent.
const READ_BYTES: usize = 64 * 1024;

pub type Work = Box<dyn FnOnce() + Send>;

#[derive(Clone, Debug)]
pub struct FileThreads {
    shared: Arc<Line>,
}

struct Line {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
    /// In a test: the disk does not answer.
    #[cfg(test)]
    stuck: bool,
    /// In a test: nothing lies in memory.
    #[cfg(test)]
    cold: bool,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Line")
    }
}

impl FileThreads {
    pub fn new() -> FileThreads {
        FileThreads { shared: Arc::new(Line { state: Mutex::new(State::default()), bell: Condvar::new() }) }
    }

    /// Has it done by the next thread that is free. Each connection gives one piece of work at a time, so there is a bound.
    pub fn give(&self, work: Work) {
        let mut state = self.shared.lock();
        state.work.push_back(work);
        if state.idle >= state.work.len() {
            self.shared.bell.notify_one();
            return;
        }
        if state.threads == THREADS_MAX {
            return;
        }
        state.threads += 1;
        drop(state);
        if let Err(error) = start(&self.shared) {
            self.not_started(&error);
        }
    }

    /// A thread could not be started. Where it was the last one that others counted on, all work is done here: late is better
    /// than never.
    fn not_started(&self, error: &io::Error) {
        let mut state = self.shared.lock();
        state.threads -= 1;
        if state.threads > 0 {
            self.shared.bell.notify_one();
            return;
        }
        log::warn!("no thread for files: {error}");
        let work = std::mem::take(&mut state.work);
        drop(state);
        work.into_iter().for_each(|work| work());
    }

    /// Whether sending this part of a file waits for no disk.
    pub fn is_in_memory(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> bool {
        #[cfg(test)]
        if self.shared.lock().cold {
            return false;
        }
        is_in_memory(file, offset, length)
    }

    #[cfg(test)]
    pub fn set_stuck(&self, stuck: bool) {
        self.shared.lock().stuck = stuck;
        self.shared.bell.notify_all();
    }

    #[cfg(test)]
    pub fn set_cold(&self, cold: bool) {
        self.shared.lock().cold = cold;
    }

    /// Threads that were started, and work that nobody has begun with.
    #[cfg(test)]
    pub fn count(&self) -> (usize, usize) {
        let state = self.shared.lock();
        (state.threads, state.work.len())
    }
}

impl Disposal for FileThreads {
    fn dispose(&self, spent: Spent) {
        self.give(Box::new(move || memory::give_back(spent)));
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            #[cfg(test)]
            let work = if state.stuck { None } else { state.work.pop_front() };
            #[cfg(not(test))]
            let work = state.work.pop_front();
            let Some(work) = work else {
                state.idle += 1;
                state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            drop(state);
            work();
            state = self.lock();
        }
    }
}

/// It lives as long as the process. A thread inherits its maker's mask: signals are the main thread's alone.
fn start(line: &Arc<Line>) -> io::Result<()> {
    let theirs = Arc::clone(line);
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = std::thread::Builder::new().name("files".to_string()).spawn(move || theirs.run());
    before.thread_set_mask()?;
    started.map(drop)
}

/// Reads a part of a file, so that it lies in memory. What goes wrong shows when it is sent.
pub fn read_ahead(file: &impl AsFd, offset: u64, length: u64) {
    let Ok(file) = file.as_fd().try_clone_to_owned() else { return };
    let file = std::fs::File::from(file);
    let mut scratch = vec![0; READ_BYTES];
    let (mut at, end) = (offset, offset.saturating_add(length));
    while at < end {
        let room = usize::try_from(end - at).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        match file.read_at(&mut scratch[..room], at) {
            Ok(read) if read > 0 => at += read as u64,
            Ok(_) | Err(_) => return,
        }
    }
}

fn is_in_memory(file: BorrowedFd<'_>, offset: u64, length: u64) -> bool {
    let last = offset.saturating_add(length.saturating_sub(1));
    let mut at = offset;
    loop {
        match read_at_once(file, at) {
            // At the end of a file that was longer there is nothing to wait for.
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return false,
                // A file system that cannot say (NFS, FUSE) may wait for anything. One in memory does not.
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => return lies_in_memory(file),
                Some(libc::EINTR) => continue,
                // Sending tells what is wrong.
                Some(_) | None => return true,
            },
        }
        if at == last {
            return true;
        }
        at = at.saturating_add(SAMPLE_BYTES).min(last);
    }
}

/// Reads a byte if that waits for no disk: EAGAIN (preadv2(2), RWF_NOWAIT).
fn read_at_once(file: BorrowedFd<'_>, at: u64) -> io::Result<usize> {
    let Ok(at) = i64::try_from(at) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut byte = 0_u8;
    let part = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    // The offset comes in two halves, of which 64-bit kernels look at the first alone (preadv2(2), "C library/kernel differences").
    let (low, high) = (at as libc::c_long, (at >> 32) as libc::c_long);
    // SAFETY: the descriptor is open, and the kernel writes one byte, which outlives the call. musl has no wrapper before 1.2.5.
    let read =
        unsafe { libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), &part, 1_usize, low, high, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

fn lies_in_memory(file: BorrowedFd<'_>) -> bool {
    let kind = nix::sys::statfs::fstatfs(file).map(|stat| stat.filesystem_type());
    kind.is_ok_and(|kind| kind == nix::sys::statfs::TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn threads_are_started_as_they_are_needed_and_are_few() {
        let threads = FileThreads::new();
        assert_eq!(threads.count(), (0, 0));
        let (sender, done) = channel();
        threads.set_stuck(true);
        for number in 0..100 {
            let sender = sender.clone();
            threads.give(Box::new(move || sender.send(number).expect("the test waits")));
        }
        assert_eq!(threads.count(), (THREADS_MAX, 100));
        threads.set_stuck(false);
        let mut numbers: Vec<i32> = (0..100).map(|_| done.recv().expect("all are done")).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..100));
        threads.give(Box::new(move || sender.send(100).expect("the test waits")));
        assert_eq!((done.recv(), threads.count().0), (Ok(100), THREADS_MAX));
    }

    /// As found: two threads gave work at once, neither's thread could be started, and only one's work was done.
    #[test]
    fn where_no_thread_can_be_started_all_work_is_done_all_the_same() {
        let threads = FileThreads::new();
        let (sender, done) = channel();
        let mut state = threads.shared.lock();
        for number in 0..2 {
            let sender = sender.clone();
            state.work.push_back(Box::new(move || sender.send(number).expect("the test waits")));
            state.threads += 1;
        }
        drop(state);
        let error = io::Error::from_raw_os_error(libc::EAGAIN);
        threads.not_started(&error);
        assert_eq!(threads.count(), (1, 2), "the other one is still to come");
        threads.not_started(&error);
        assert_eq!((threads.count(), done.try_iter().collect::<Vec<_>>()), ((0, 0), vec![0, 1]));
    }

    /// Where the kernel has dropped a part of a file it is read by whoever may wait, and lies in memory then.
    #[test]
    fn what_does_not_lie_in_memory_is_found_out_and_read() {
        const LENGTH: u64 = 4 << 20;
        let path = std::env::temp_dir().join(format!("forkmaster-cold-{}", std::process::id()));
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("file");
        std::fs::remove_file(&path).expect("it is ours");
        file.write_all(&vec![b'x'; LENGTH as usize]).expect("a disk");
        let threads = FileThreads::new();
        assert!(threads.is_in_memory(file.as_fd(), 0, LENGTH));
        assert!(threads.is_in_memory(file.as_fd(), LENGTH, 1), "there is nothing to wait for");
        file.sync_all().expect("a disk");
        // SAFETY: a system call on an open descriptor.
        let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(dropped, 0);
        if lies_in_memory(file.as_fd()) {
            assert!(threads.is_in_memory(file.as_fd(), 0, LENGTH));
            return;
        }
        assert!(!threads.is_in_memory(file.as_fd(), 1 << 20, 1 << 20));
        read_ahead(&file, 1 << 20, 1 << 20);
        // A file system that cannot say is never believed.
        if read_at_once(file.as_fd(), 0).err().and_then(|error| error.raw_os_error()) != Some(libc::EOPNOTSUPP) {
            assert!(threads.is_in_memory(file.as_fd(), 1 << 20, 1 << 20));
        }
        assert!(!threads.is_in_memory(file.as_fd(), 0, LENGTH), "the rest is not there");
    }
}
