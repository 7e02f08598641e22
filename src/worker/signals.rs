//! Signals. The handlers are Python's own, installed before the application is imported, so that its own win.
//! Nothing depends on them: drain and stop are messages.
//!
//! A worker ignores HUP and USR2 (someone will `pkill -HUP forkmaster`), drains on TERM, ends at once on INT and
//! QUIT. A template ignores them all: only its master's messages and KILL end it; what the application installed
//! while a template imported it is kept for the workers.
//!
//! Ignored by handlers that do nothing, not by SIG_IGN: exec resets a handler and keeps SIG_IGN, and the application's
//! subprocesses are to hear their signals (signal(7)).

use std::ffi::c_int;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};

use nix::fcntl::OFlag;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use crate::logger;
use crate::worker::Worker;

/// Ignored everywhere: a terminal's window size, and what is meant for the master.
const IGNORED: [c_int; 4] = [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// With a meaning in a worker.
const HANDLED: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// The Python signal handlers of a process and the worker that they act on, once there is one.
pub struct Signals {
    worker: Arc<OnceLock<Arc<Worker>>>,
    /// What a template's workers get back.
    muted: Vec<(c_int, Py<PyAny>)>,
}

impl Signals {
    /// Installs the worker's handlers, before the application is imported.
    pub fn install(py: Python<'_>) -> PyResult<Signals> {
        let signal = py.import("signal")?;
        let ignore = does_nothing(py)?;
        for number in IGNORED {
            signal.call_method1("signal", (number, &ignore))?;
            // System calls go on: the signal means nothing to whoever is in one.
            signal.call_method1("siginterrupt", (number, false))?;
        }
        let worker: Arc<OnceLock<Arc<Worker>>> = Arc::default();
        for number in HANDLED {
            let acting = Arc::clone(&worker);
            let act = move |arguments: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>| {
                handle(arguments.py(), acting.get().map(Arc::as_ref), number);
            };
            let handler = PyCFunction::new_closure(py, Some(c"forkmaster"), None, act)?;
            signal.call_method1("signal", (number, handler))?;
        }
        Ok(Signals { worker, muted: Vec::new() })
    }

    /// In a template, after the import: ignores everything and remembers what was installed.
    pub fn mute(&mut self, py: Python<'_>) -> PyResult<()> {
        let signal = py.import("signal")?;
        let ignore = does_nothing(py)?;
        for number in IGNORED.into_iter().chain(HANDLED) {
            let handler = signal.call_method1("signal", (number, &ignore))?;
            self.muted.push((number, handler.unbind()));
        }
        Ok(())
    }

    /// In a new worker: what `mute` took away.
    pub fn restore(&mut self, py: Python<'_>) -> PyResult<()> {
        let signal = py.import("signal")?;
        for (number, handler) in self.muted.drain(..) {
            // None: a handler that was not installed through Python, of which nothing more is known.
            if !handler.is_none(py) {
                signal.call_method1("signal", (number, handler))?;
                if IGNORED.contains(&number) {
                    signal.call_method1("siginterrupt", (number, false))?;
                }
            }
        }
        Ok(())
    }

    /// From now on the handlers act on this worker.
    pub fn act_on(&self, worker: &Arc<Worker>) {
        // A process becomes a worker once.
        let _ = self.worker.set(Arc::clone(worker));
    }
}

fn does_nothing(py: Python<'_>) -> PyResult<Bound<'_, PyCFunction>> {
    let nothing = |_: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {};
    PyCFunction::new_closure(py, Some(c"forkmaster_ignores"), None, nothing)
}

/// One of our handlers runs, in the main thread.
fn handle(py: Python<'_>, worker: Option<&Worker>, number: c_int) {
    // While a template imports the application: its master decides about it.
    let Some(worker) = worker else { return };
    if worker.is_forked_child() {
        // `multiprocessing` ends its processes with TERM: there it means what it means elsewhere.
        die_of(number);
    }
    match number {
        libc::SIGTERM if worker.leave("signal TERM") => {}
        // Nothing is served yet, so there is nothing to finish.
        libc::SIGTERM => die_of(number),
        _int_or_quit => {
            worker.leave(if number == libc::SIGINT { "signal INT" } else { "signal QUIT" });
            py.detach(|| worker.finish_logs());
            exit_now(py, 0);
        }
    }
}

/// Ends the process as if it had never had a handler.
fn die_of(number: c_int) {
    // SAFETY: the default disposition of a valid signal.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(number) };
}

/// Ends the process without running the interpreter's end, which waits for the application's threads. What was
/// printed is not lost.
pub fn exit_now(py: Python<'_>, code: c_int) -> ! {
    flush(py);
    logger::finish();
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(code) }
}

/// Flushes Python's stdout and stderr. Errors are of the kind that nobody can be told (a closed pipe).
pub fn flush(py: Python<'_>) {
    let Ok(sys) = py.import("sys") else { return };
    for name in ["stdout", "stderr"] {
        let _ = sys.getattr(name).and_then(|stream| stream.call_method0("flush"));
    }
}

/// The pipe into which Python writes a byte for each signal, so that a main thread that waits in the server wakes
/// up: the end to watch, and Python's.
pub fn wakeup_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(io::Error::from)
}

/// -1: Python forgets the pipe, before its end is closed.
pub fn set_wakeup(py: Python<'_>, end: RawFd) -> PyResult<()> {
    let arguments = PyDict::new(py);
    // A full pipe wakes as well as one byte more.
    arguments.set_item("warn_on_full_buffer", false)?;
    py.import("signal")?.call_method("set_wakeup_fd", (end,), Some(&arguments))?;
    Ok(())
}

/// `faulthandler`: the Python traceback in the log when the process crashes (SEGV, ABRT and their like).
pub fn enable_crash_dumps(py: Python<'_>, log: RawFd) -> PyResult<()> {
    let arguments = PyDict::new(py);
    arguments.set_item("file", log)?;
    py.import("faulthandler")?.call_method("enable", (), Some(&arguments))?;
    Ok(())
}

/// The stacks of all threads into the master's pipe on SIGRTMIN+3, also while C code holds the interpreter's lock.
pub fn register_stack_dumps(py: Python<'_>, stacks: RawFd) -> PyResult<()> {
    let arguments = PyDict::new(py);
    arguments.set_item("file", stacks)?;
    arguments.set_item("all_threads", true)?;
    py.import("faulthandler")?.call_method("register", (libc::SIGRTMIN() + 3,), Some(&arguments))?;
    Ok(())
}
