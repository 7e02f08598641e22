//! Forking a worker so that it becomes the master's child: the template forks a middle process, the middle forks
//! the worker and ends at once, and the orphan goes to the nearest subreaper (PR_SET_CHILD_SUBREAPER), the
//! master.
//!
//! The first fork is the bare system call's, without Python's handlers: those run once, in the second one, which
//! is `os.fork()` and makes the worker a proper Python process.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use forkmaster_wire::channel::Channel;
use forkmaster_wire::message::FromWorker;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::Pid;
use pyo3::prelude::*;

use crate::failure::summary;

/// The middle lives for microseconds. A fork handler of the application that hangs must not hang the template.
const MIDDLE_TIMEOUT: Duration = Duration::from_secs(5);

pub enum Forked {
    /// We are the worker.
    Worker,
    /// We are the template; the worker will introduce itself.
    Template,
}

#[derive(Debug)]
pub struct ForkError {
    pub reason: String,
    /// The middle process hung: it will hang again.
    pub hung: bool,
}

/// `channel` is the worker's end; the middle sends `Forked` on it.
pub fn fork(py: Python<'_>, channel: &Channel) -> Result<Forked, ForkError> {
    // SAFETY: the child is this thread alone. It calls `os.fork()`, which is made for that, and `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(ForkError { reason: format!("fork: {}", Errno::last()), hung: false }),
        0 => middle(py, channel),
        pid => py.detach(|| wait_for(Pid::from_raw(pid))).map(|()| Forked::Template),
    }
}

/// Python 3.12 warns when a process with several threads forks; it asks the kernel how many there are, and the
/// middle has only one.
fn middle(py: Python<'_>, channel: &Channel) -> Result<Forked, ForkError> {
    let code = match py.import("os").and_then(|os| os.call_method0("fork")?.extract::<i32>()) {
        Ok(0) => return Ok(Forked::Worker),
        // Where the master is gone already, the worker notices it too.
        Ok(pid) => i32::from(channel.send(&FromWorker::Forked { pid }, &[]).is_err()),
        Err(error) => {
            log::error!("os.fork() raised {}", summary(py, &error));
            1
        }
    };
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(code) }
}

/// Reaps the middle, which says by its exit status whether there is a worker.
fn wait_for(middle: Pid) -> Result<(), ForkError> {
    let hung = !ends_within(middle, MIDDLE_TIMEOUT);
    if hung {
        // The pid is ours until it is reaped below.
        let _ = kill(middle, Signal::SIGKILL);
    }
    let status = loop {
        match waitpid(middle, None) {
            Ok(status) => break status,
            Err(Errno::EINTR) => {}
            // The application ignores SIGCHLD, or reaps what is not its own. If there is no worker, the master learns
            // it from the channel's end of file.
            Err(Errno::ECHILD) if !hung => return Ok(()),
            Err(error) => return Err(ForkError { reason: format!("waitpid: {error}"), hung }),
        }
    };
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        _failed if hung => {
            let reason =
                format!("the forking process hung for {} s, likely in a fork handler", MIDDLE_TIMEOUT.as_secs());
            Err(ForkError { reason, hung })
        }
        failed => Err(ForkError { reason: format!("the forking process ended with {failed:?}"), hung: false }),
    }
}

/// Where pidfd_open(2) is forbidden or missing (seccomp, Linux before 5.3), there is no limit to the wait.
fn ends_within(process: Pid, timeout: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(process) else { return true };
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // A pidfd is readable when its process has ended.
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(_) => return true,
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
