//! Children that ended. The master is the subreaper, so these are templates, workers (re-parented when their middle
//! process exits), and whatever the application left behind.
//!
//! A pid is looked at first and reaped later: in between the master reads the channels, so that it knows whose pid
//! it is, and until it is reaped the kernel gives the number to nobody else.

//!
//! The bare system calls, since nix's types know no real-time signals and would hide a child that died of one.

use crate::supervisor::worker::Exit;

/// A child that has ended and is not yet reaped.
pub fn peek() -> Option<i32> {
    // SAFETY: an all-zero siginfo_t is a valid value, and what waitid(2) leaves for "none" has pid 0.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a living value. WNOHANG never blocks, so there is no EINTR; ECHILD: no child at all.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) };
    // SAFETY: waitid(2) has filled in the fields of a child's siginfo, or left the zeroes.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid != 0).then_some(pid)
}

/// Reaps it: from here on its pid may belong to somebody else.
pub fn reap(pid: i32) -> Option<Exit> {
    let mut status = 0;
    // SAFETY: the pointer is to a living value.
    if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } != pid {
        return None;
    }
    if libc::WIFSIGNALED(status) {
        return Some(Exit::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) });
    }
    Some(Exit::Code(libc::WEXITSTATUS(status)))
}

/// Workers become our children when the middle process that forked them exits (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}
