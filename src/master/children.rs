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

/// Whether this is a child of ours that has not been reaped, or one that will be in a moment: a worker whose middle
/// process still exits is in its template's session, and nobody else can be.
pub fn is_ours(pid: i32, session: Option<i32>) -> bool {
    // 0 and less stand for groups of processes (kill(2)).
    if pid <= 1 {
        return false;
    }
    // SAFETY: an all-zero siginfo_t is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a living value. ECHILD: not a child.
    let is_child = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) } == 0;
    // SAFETY: no memory is involved.
    is_child || session.is_some_and(|session| unsafe { libc::getsid(pid) } == session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_is_not_a_child_is_never_ours() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(is_ours(pid, None));
        child.kill().unwrap();
        child.wait().unwrap();
        // SAFETY: no memory is involved.
        let parent = unsafe { libc::getppid() };
        for other in [pid, -1, 0, 1, -pid, parent] {
            assert!(!is_ours(other, Some(1 << 30)), "{other}");
        }
    }
}
