//! The Python side of forkmaster: a library that the release's own interpreter loads (see wire's `bootstrap.py`).
//! Here is all the pyo3 there is; the master knows no Python, and the http crate neither.
//!
//! `run` is the life of a process: first of a template, which forks; in its forks that of a worker.

mod access;
#[cfg(debug_assertions)]
mod allocations;
mod application;
mod beside;
mod birth;
mod control_thread;
mod development;
mod failure;
mod fork;
mod forked_child;
mod handoff;
mod hooks;
mod kind;
mod line_rate;
mod lock_watch;
mod log_queue;
mod logger;
mod logs;
mod master_channel;
mod memory;
mod metrics;
mod native_threads;
mod pinned;
mod probe;
mod put;
mod recall;
mod refusal_recorder;
mod rehearsal;
mod signals;
mod sockets;
mod stacks;
mod startup;
mod tempdir;
mod template;
mod threads;
mod title;
mod worker;
mod wsgi;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use pyo3::prelude::*;

#[pymodule]
fn _forkmaster(module: &Bound<'_, PyModule>) -> PyResult<()> {
    #[cfg(debug_assertions)]
    module.add_function(wrap_pyfunction!(allocations::allocations, module)?)?;
    wsgi::input::Input::register(module.py())?;
    module.add_function(wrap_pyfunction!(run, module)?)
}

/// Called by the bootstrap with the inherited file descriptors. Returns in a worker that has ended well, so that
/// the interpreter ends as it does for every Python program: `atexit` runs, threads are joined.
#[pyfunction]
fn run(py: Python<'_>, channel: RawFd, library: RawFd, lifeline: RawFd) -> PyResult<()> {
    abort_on_panic();
    // The library's file stays open at its number for the life of the process: its path names it.
    let _stays_open = library;
    // SAFETY: the master made this descriptor for us; the bootstrap gives it away with this call.
    let channel = unsafe { OwnedFd::from_raw_fd(channel) };
    // SAFETY: as above.
    let lifeline = unsafe { OwnedFd::from_raw_fd(lifeline) };
    template::run(py, channel.into(), lifeline)
}

/// A panic is a broken invariant of ours. The process ends at once, in whichever thread it was: unwinding would
/// leave a worker that looks alive and has lost its loop or an app thread. The abort also makes `faulthandler`
/// write the Python stacks, and the master sees a signal and replaces the process.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        logger::finish_if_free();
        std::process::abort();
    }));
}
