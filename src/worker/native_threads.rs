//! How a thread is started that is none of Python's: no signal reaches it.

use std::io;

use forkmaster_wire::limits;
use nix::sys::signal::{pthread_sigmask, SigSet, SigmaskHow};

/// Runs `start` with all signals blocked, so that the threads it starts have them blocked too: signals are for
/// the main thread, and a native thread has no business in Python's C handler.
pub fn with_all_blocked<T>(start: impl FnOnce() -> T) -> T {
    let mut before = SigSet::empty();
    let all = SigSet::all();
    // Fails only for an invalid `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&all), Some(&mut before));
    let result = start();
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    result
}

/// The same for what may fail to start them: its error names the limit that is to be raised.
pub fn start_with_all_blocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    with_all_blocked(start).map_err(|error| io::Error::new(error.kind(), limits::explain(&error)))
}
