//! Forking a worker so that it becomes the master's child: the template forks a middle process, the middle forks
//! the worker and ends at once, and the orphan goes to the nearest subreaper (PR_SET_CHILD_SUBREAPER), the
//! master.
//!
//! Both forks together are one fork to Python, bracketed as CPython brackets its own (`os_fork_impl` in posixmodule.c):
//! `PyOS_BeforeFork` in the template, where the threads live whose locks it takes; `PyOS_AfterFork_Child` in the worker;
//! `PyOS_AfterFork_Parent` in the template. So fork handlers run once, and agents that stop their threads before a fork
//! can. The middle runs no Python at all.
//!
//! A `before` or `after_in_parent` handler that hangs hangs the template: the master notices that no worker introduces
//! itself. An `after_in_child` handler that hangs hangs a worker that is tied to its master already: see `Birth::begin`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::limits;
use forkmaster_wire::message::ToTemplate;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{getpid, getppid, Pid};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The middle lives for microseconds. A C library's fork handler (pthread_atfork) that hangs in it must not hang the
/// template.
const MIDDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long modules that other threads import are waited for. Most take milliseconds.
const IMPORTS_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks at them.
const IMPORTS_EVERY: Duration = Duration::from_millis(2);

/// Messages that are kept while the middle is waited for. More stay in the channel.
const INBOX_MAX: usize = 256;

pub enum Forked<T> {
    /// We are the worker, and this is what its first act made.
    Worker(T),
    /// We are the template, and this is the middle, to be given to `reap`.
    Template(Pid),
}

/// Messages of the master that came while the template waited for something else.
pub type Inbox = VecDeque<(ToTemplate, Vec<OwnedFd>)>;

/// How the middle ended.
pub enum Reaped {
    /// There is a worker.
    Well,
    /// There is none, and this is why.
    Failed { reason: String, no_room: bool },
    /// The master has gone or said Stop meanwhile: the middle is gone too.
    MustEnd,
}

/// `first_act` runs in the worker before any Python does.
pub fn fork<T>(py: Python<'_>, first_act: impl FnOnce() -> T) -> Result<Forked<T>, Errno> {
    let template = getpid();
    before_fork(py);
    // SAFETY: the child is this thread alone. It calls prctl, getppid, fork and _exit; the worker that comes out of it
    // is bracketed by what CPython itself calls around fork(2).
    let outcome = Errno::result(unsafe { libc::fork() });
    if outcome == Ok(0) {
        be_the_middle(template);
        let made = first_act();
        // SAFETY: we are the child of a fork that was prepared by `PyOS_BeforeFork`, in the thread that called it.
        unsafe { ffi::PyOS_AfterFork_Child() };
        return Ok(Forked::Worker(made));
    }
    // At once, and not when the middle has been reaped: until then the locks of `import` and `logging` are ours.
    // SAFETY: as with `PyOS_BeforeFork`; also where the fork failed.
    unsafe { ffi::PyOS_AfterFork_Parent() };
    outcome.map(|middle| Forked::Template(Pid::from_raw(middle)))
}

/// `PyOS_BeforeFork`, at a moment in which no other thread imports a module. It takes the lock of `import` itself, so that no
/// other import begins, but each module that is being imported has a lock of its own (importlib, `_ModuleLock`). A worker
/// would have that as a copy which nobody ever releases, and would hang where it needs the module.
fn before_fork(py: Python<'_>) {
    let deadline = Instant::now() + IMPORTS_WITHIN;
    loop {
        let mut module = importing(py);
        if module.is_none() {
            // SAFETY: the interpreter's lock is held.
            unsafe { ffi::PyOS_BeforeFork() };
            // Handlers may have let other threads run.
            module = importing(py);
            if module.is_none() || Instant::now() >= deadline {
                return;
            }
            // SAFETY: undoes `PyOS_BeforeFork`.
            unsafe { ffi::PyOS_AfterFork_Parent() };
        }
        if let Some(module) = module.filter(|_| Instant::now() >= deadline) {
            log::warn!(
                "a thread has been importing {module} for {} s while a worker is forked: the worker would hang where it \
                 imports that; import it before the thread starts",
                IMPORTS_WITHIN.as_secs()
            );
            // SAFETY: the interpreter's lock is held.
            unsafe { ffi::PyOS_BeforeFork() };
            return;
        }
        // Not a wait for something that tells: such a lock cannot be waited for with a limit.
        py.detach(|| std::thread::sleep(IMPORTS_EVERY));
    }
}

/// The name of a module that another thread is importing. None also where importlib cannot be asked.
fn importing(py: Python<'_>) -> Option<String> {
    let locks = py.import("_frozen_importlib").ok()?.getattr("_module_locks").ok()?;
    let own = py.import("_thread").ok()?.call_method0("get_ident").ok()?;
    // A list: whoever drops a lock meanwhile takes it out of the dict.
    for (name, reference) in locks.cast::<PyDict>().ok()?.items().extract::<Vec<(String, Py<PyAny>)>>().ok()? {
        // None: nobody has the lock any more.
        let owner = reference.bind(py).call0().and_then(|lock| lock.getattr("owner"));
        if owner.is_ok_and(|owner| !owner.is_none() && !owner.eq(&own).unwrap_or(false)) {
            return Some(name);
        }
    }
    None
}

/// Forks once more and ends. Returns in the worker only.
fn be_the_middle(template: Pid) {
    // It must not outlive the template, since it holds the listeners. A fork clears this for the worker (prctl(2)).
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let status = if getppid() != template {
        1
    } else {
        // SAFETY: as in `fork`.
        match Errno::result(unsafe { libc::fork() }) {
            Ok(0) => return,
            Ok(_worker) => 0,
            // An errno fits an exit status; see `reap`.
            Err(errno) => errno as i32,
        }
    };
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(status) }
}

/// Reaps the middle, which says by its exit status whether there is a worker. Meanwhile the master is listened to: it
/// may be gone, or have had enough.
pub fn reap(middle: Pid, channel: &Channel, inbox: &mut Inbox) -> Reaped {
    let ended = wait(middle, channel, inbox);
    if !matches!(ended, Ended::Middle) {
        // The pid is ours until it is reaped below.
        let _ = kill(middle, Signal::SIGKILL);
    }
    let status = loop {
        match waitpid(middle, None) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    match (ended, status) {
        (Ended::Master, _) => Reaped::MustEnd,
        (Ended::TooLate, _) => failed(format!("the forking process hung for {} s", MIDDLE_TIMEOUT.as_secs())),
        (Ended::Middle, Ok(WaitStatus::Exited(_, 0))) => Reaped::Well,
        (Ended::Middle, Ok(WaitStatus::Exited(_, errno))) => {
            let error = io::Error::from_raw_os_error(errno);
            Reaped::Failed { reason: not_forked(&error), no_room: limits::is_no_room(&error) }
        }
        // The application ignores SIGCHLD, or reaps what is not its own. If there is no worker, the master learns it
        // from the channel's end of file.
        (Ended::Middle, Err(Errno::ECHILD)) => Reaped::Well,
        (Ended::Middle, ended) => failed(format!("the forking process ended with {ended:?}")),
    }
}

fn failed(reason: String) -> Reaped {
    Reaped::Failed { reason, no_room: false }
}

pub fn not_forked(error: &io::Error) -> String {
    format!("fork: {}", limits::explain(error))
}

enum Ended {
    Middle,
    Master,
    TooLate,
}

/// Where pidfd_open(2) is forbidden or missing (seccomp, Linux before 5.3), there is no limit to the wait.
fn wait(middle: Pid, channel: &Channel, inbox: &mut Inbox) -> Ended {
    let Ok(pidfd) = pidfd_open(middle) else { return Ended::Middle };
    let deadline = Instant::now() + MIDDLE_TIMEOUT;
    let mut listens = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ended::TooLate;
        }
        // A pidfd is readable when its process has ended. Without POLLIN the end of the channel still shows (POLLHUP).
        let wanted = if listens && inbox.len() < INBOX_MAX { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut watched = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(channel.as_fd(), wanted)];
        match poll(&mut watched, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Ended::Middle,
        }
        let [process, master] = watched.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if !process.is_empty() {
            return Ended::Middle;
        }
        if master.contains(PollFlags::POLLIN) {
            match channel.receive_large(false) {
                Ok(Received::Message(ToTemplate::Stop, _) | Received::Eof) => return Ended::Master,
                Ok(Received::Message(message, fds)) => inbox.push_back((message, fds)),
                Ok(Received::Empty) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whatever it is, it is dealt with when the template listens again.
                Err(error) => {
                    log::error!("a message of the master was not understood: {error}");
                    listens = false;
                }
            }
        } else if master.contains(PollFlags::POLLHUP) {
            return Ended::Master;
        }
    }
}

fn pidfd_open(process: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes a number and flags; the descriptor that it returns is CLOEXEC.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us; descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
