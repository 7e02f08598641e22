//! What waits to be written to a worker's log, in order, and the thread that writes it, from the first line on: most
//! workers never log, and a thread is part of the time that a start takes. Whoever logs leaves a line and goes on: where the
//! log takes nothing, lines are dropped and counted, and the log says how many as soon as it can be written again. The lock
//! is never held over a write that may wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::native_threads::start_with_all_blocked;
use crate::put::{put, wait_for_room};

/// What waits at most: some thousand lines, or the tracebacks of some hundred requests.
const WAITING_BYTES_MAX: usize = 512 * 1024;

/// How long the thread waits for a log that takes nothing before it looks whether there is another one by now.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub struct LogQueue {
    /// Where lines go now.
    fd: fn() -> RawFd,
    /// Makes the line that tells of others that were lost.
    lost: fn(u64) -> String,
    state: Mutex<State>,
    /// There is something to write, or nobody writes any more.
    bell: Condvar,
    /// Nothing waits and nobody writes.
    idle: Condvar,
}

struct State {
    /// The thread is there; it goes with the process.
    has_writer: bool,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines for which there was no room.
    lost: u64,
    /// Somebody is between taking a line and having written it.
    writing: bool,
}

impl State {
    /// In the order in which they came; what does not fit at once stays.
    fn write_what_fits(&mut self, fd: RawFd) {
        while let Some(line) = self.lines.front_mut() {
            let Ok(written) = put(fd, line) else { return };
            self.bytes -= written;
            line.drain(..written);
            if line.is_empty() {
                self.lines.pop_front();
            }
        }
    }
}

impl LogQueue {
    pub const fn new(fd: fn() -> RawFd, lost: fn(u64) -> String) -> LogQueue {
        let state = State { has_writer: false, lines: VecDeque::new(), bytes: 0, lost: 0, writing: false };
        LogQueue { fd, lost, state: Mutex::new(state), bell: Condvar::new(), idle: Condvar::new() }
    }

    fn start_writer(&'static self) -> io::Result<()> {
        start_with_all_blocked(|| thread::Builder::new().name("fm-log".into()).spawn(move || self.run()))?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: there was no room, and the line is counted.
    pub fn push(&'static self, line: Vec<u8>) -> bool {
        let mut state = self.lock();
        if state.bytes + line.len() > WAITING_BYTES_MAX {
            state.lost += 1;
            return false;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        if !state.has_writer {
            match self.start_writer() {
                Ok(()) => state.has_writer = true,
                // No thread can be had now (pthread_create(3): EAGAIN); the next line tries again.
                Err(_) if !state.writing => state.write_what_fits((self.fd)()),
                Err(_) => {}
            }
        }
        drop(state);
        self.bell.notify_one();
        true
    }

    /// Writes in the caller's thread, after all that was there before, and waits for the log as long as it takes.
    pub fn write_in_turn(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.writing || (state.has_writer && !state.lines.is_empty()) {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writing = true;
        // Lines are left here only where nobody else writes them.
        let before = std::mem::take(&mut state.lines);
        state.bytes = 0;
        drop(state);
        before.iter().for_each(|line| write_all(self.fd, line, None));
        write_all(self.fd, bytes, None);
        self.written();
    }

    /// Waits until all that was left before is written, at most for a moment: somebody is told next who may end the process.
    pub fn settle(&self, moment: Duration) {
        let waits = |state: &mut State| state.writing || (state.has_writer && !state.lines.is_empty());
        // What is not written by then comes later.
        let _ = self.idle.wait_timeout_while(self.lock(), moment, waits);
    }

    /// Writes what waits as far as the log takes it at once: the process ends. Somebody who is writing at the moment
    /// gets a moment for it.
    pub fn finish(&self, moment: Duration) {
        let state = self.lock();
        let waited = self.idle.wait_timeout_while(state, moment, |state| state.writing);
        let (mut state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            return;
        }
        state.write_what_fits((self.fd)());
    }

    /// As `finish`, where the process may have been inside the lock.
    pub fn finish_if_free(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            if !state.writing {
                state.write_what_fits((self.fd)());
            }
        }
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            while state.writing || (state.lines.is_empty() && state.lost == 0) {
                state = self.bell.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let line = match state.lines.pop_front() {
                Some(line) => {
                    state.bytes -= line.len();
                    line
                }
                // After those for which there was room.
                None => (self.lost)(std::mem::take(&mut state.lost)).into_bytes(),
            };
            state.writing = true;
            drop(state);
            write_all(self.fd, &line, Some(LOOK_EVERY));
            self.written();
        }
    }

    fn written(&self) {
        let mut state = self.lock();
        state.writing = false;
        let done = state.lines.is_empty();
        drop(state);
        if done {
            self.idle.notify_all();
        }
        // Whoever waited for the writer to finish may write now.
        self.bell.notify_one();
        self.idle.notify_all();
    }
}

/// Waits for a log that takes nothing, and for its successor where it is opened again meanwhile: whoever is inside write(2)
/// would stay there. Nobody is left to be told that the log cannot be written at all.
fn write_all(fd: fn() -> RawFd, bytes: &[u8], look_every: Option<Duration>) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match put(fd(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for_room(fd(), look_every),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::time::Instant;

    use super::*;

    static FD: AtomicI32 = AtomicI32::new(-1);
    static QUEUE: LogQueue = LogQueue::new(fd, |lost| format!("{lost} lost\n"));

    fn fd() -> RawFd {
        FD.load(Ordering::Relaxed)
    }

    #[test]
    fn whoever_settles_finds_in_the_log_what_was_left_before() {
        static LOG: AtomicI32 = AtomicI32::new(-1);
        static LINES: LogQueue = LogQueue::new(|| LOG.load(Ordering::Relaxed), |lost| format!("{lost} lost\n"));
        let (reading, writing) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        LOG.store(writing.into_raw_fd(), Ordering::Relaxed);
        // The first line starts the thread.
        for _ in 0..50 {
            LINES.push(b"line\n".to_vec());
            LINES.settle(Duration::from_secs(30));
            assert_eq!(nix::unistd::read(&reading, &mut [0; 16]), Ok(5));
        }
        LINES.settle(Duration::ZERO);
    }

    #[test]
    fn a_log_that_is_not_read_holds_nobody_up_and_says_afterwards_what_is_lost() {
        let (reading, writing) = nix::unistd::pipe().unwrap();
        FD.store(writing.into_raw_fd(), Ordering::Relaxed);
        let began = Instant::now();
        let line = [b"x".repeat(99).as_slice(), b"\n"].concat();
        for _ in 0..20_000 {
            QUEUE.push(line.clone());
        }
        QUEUE.finish(Duration::from_millis(20));
        assert!(began.elapsed() < Duration::from_secs(5));
        let lost = QUEUE.lock().lost;
        assert!(lost > 10_000, "{lost}");
        // An app thread waits, and its line comes after all others.
        let writer = thread::spawn(|| QUEUE.write_in_turn(b"end\n"));
        let mut reading = std::fs::File::from(reading);
        let (mut text, mut bytes) = (Vec::new(), [0; 65536]);
        while !text.ends_with(b"end\n") {
            let read = reading.read(&mut bytes).unwrap();
            text.extend_from_slice(&bytes[..read]);
        }
        writer.join().unwrap();
        let text = String::from_utf8(text).unwrap();
        let whole = text.lines().filter(|line| line.len() == 99).count() as u64;
        assert_eq!(whole + lost, 20_000);
        // Between the last of the waiting lines and the app thread's, or after it: whoever was first.
        QUEUE.write_in_turn(b"more\n");
        let read = if text.contains(" lost") { 0 } else { reading.read(&mut bytes).unwrap() };
        let told = text + std::str::from_utf8(&bytes[..read]).unwrap();
        assert!(told.contains(&format!("{lost} lost\n")), "{}", &told[told.len().saturating_sub(300)..]);
    }
}
