//! Whether anybody gets the interpreter's lock. A native thread of the application that keeps it lets no request be
//! answered, while the event loop, which needs no lock, turns on. So a thread asks for it now and then, unless requests are
//! being answered; a worker in which it waits in vain is not alive, whatever its loop does.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forkmaster_wire::scoreboard::{monotonic_ns, Cell};
use pyo3::prelude::*;

use crate::memory;

/// How often the lock is asked for.
const EVERY: Duration = Duration::from_secs(1);

/// How often in a worker that has had nothing to do for some seconds: there may be many of them, and each look wakes a
/// thread.
const EVERY_IDLE: Duration = Duration::from_secs(4);

/// Whoever asks gets it within CPython's switch interval (5 ms) from other Python code.
const MISSED_AFTER_NS: u64 = 2_000_000_000;

/// The time between two measurements of this process's memory, which the same thread takes; the first is at its first look.
const MEASURED_EVERY: Duration = Duration::from_secs(30);

pub struct LockWatch {
    /// CLOCK_MONOTONIC in nanoseconds: since when the lock is waited for; 0: it is not.
    wanted_ns: AtomicU64,
    ending: Mutex<bool>,
    bell: Condvar,
}

impl LockWatch {
    pub const fn new() -> LockWatch {
        LockWatch { wanted_ns: AtomicU64::new(0), ending: Mutex::new(false), bell: Condvar::new() }
    }

    /// The lock has been asked for and was not to be had.
    pub fn is_missed(&self, now_ns: u64) -> bool {
        let wanted = self.wanted_ns.load(Ordering::Relaxed);
        wanted != 0 && now_ns.saturating_sub(wanted) > MISSED_AFTER_NS
    }

    /// Starts the thread; signals are blocked by the caller.
    pub fn start(&'static self, cell: &'static Cell) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("fm-lock".into()).spawn(move || self.run(cell))
    }

    /// Before the interpreter ends: nobody may ask for its lock then. Not with the lock, which the thread may wait for.
    pub fn end(&self, thread: JoinHandle<()>) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
        // It does not panic.
        let _ = thread.join();
    }

    fn run(&self, cell: &Cell) {
        let mut answered = cell.requests.load(Ordering::Relaxed);
        let mut measured = None;
        let (mut every, mut unmeasured) = (EVERY, MEASURED_EVERY);
        loop {
            let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.bell.wait_timeout_while(ending, every, |ending| !*ending);
            if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            // Whoever answered a request has had the lock.
            let before = std::mem::replace(&mut answered, cell.requests.load(Ordering::Relaxed));
            let is_idle = before == answered;
            unmeasured += every;
            // Who does nothing grows little.
            if unmeasured >= MEASURED_EVERY && measured != Some(answered) {
                (measured, unmeasured) = (Some(answered), Duration::ZERO);
                let used = memory::used();
                cell.set_memory(used.private, used.pss);
            }
            if is_idle {
                self.wanted_ns.store(monotonic_ns(), Ordering::Relaxed);
                // None: the interpreter is ending.
                let _ = Python::try_attach(|_| ());
                self.wanted_ns.store(0, Ordering::Relaxed);
            }
            every = if is_idle { (every * 2).min(EVERY_IDLE) } else { EVERY };
        }
    }
}
