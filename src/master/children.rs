//! The processes that the master has started, by pid, each proved and each in the books once. The only place of the
//! program that sends a signal, and the only one that reaps.
//!
//! A claim is believed for the kernel's sake, not for the claimant's: a template is this process's own child, and a
//! worker's pid comes from the credentials of a packet on its channel. From the claim on a pidfd stands for the
//! process, so that a signal never reaches whoever gets the number next. A pid that is in the books already is refused.
//!
//! An ended child is looked at first (`ended`) and reaped later: in between the master reads its channel, and until it
//! is reaped the kernel gives its number to nobody else. The bare system calls, since nix's types know no real-time
//! signals and would hide a child that died of one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forkmaster_wire::channel::Sender;
use forkmaster_wire::message::{GenerationId, WorkerId};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::supervisor::services::ServiceId;
use crate::supervisor::worker::Exit;

/// For what no descriptor tells.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// One run of a command, unique over the life of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookId(pub u64);

/// Whose process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Template(GenerationId),
    Worker(WorkerId),
    /// A command of `[hooks]`.
    Hook(HookId),
    /// The command of a paused reload. It leads a process group of its own.
    Command(GenerationId),
    /// A service. The same.
    Service(ServiceId),
    /// A new binary of the master that looks at a copy of the state.
    NewBinary,
    /// Given up, or found at the end, holding what only this service's processes have.
    Stray,
}

/// Why a pid is believed to be somebody's.
pub enum Proof {
    /// This process has just forked it and has not reaped it.
    OwnChild { pid: i32 },
    /// It sent a packet, says the kernel. `session` is its template's pid: the template leads a session of its own, and
    /// whoever it forks is in there.
    Sender { sender: Sender, session: i32 },
}

/// A claim that is not believed.
#[derive(Debug, PartialEq, Eq)]
pub enum FalseClaim {
    /// Somebody else's, or the claimant has another pid already.
    Taken { pid: i32 },
    /// No process of this service.
    Stranger { pid: i32 },
}

struct Child {
    who: Who,
    /// None where pidfd_open(2) is forbidden or missing (Linux before 5.3). The pid does as well then, since nobody but
    /// `reap` can free it while the child is in the books.
    pidfd: Option<OwnedFd>,
}

/// Who is still there after the sweep.
pub struct Swept {
    /// SIGKILL did not end them.
    pub undying: Vec<i32>,
    /// The application started them.
    pub others: Vec<i32>,
}

/// pid -> who.
#[derive(Default)]
pub struct Children(BTreeMap<i32, Child>);

impl Children {
    /// Workers become children of this process when the middle process that forked them exits (prctl(2),
    /// PR_SET_CHILD_SUBREAPER).
    pub fn adopt_orphans() -> io::Result<Children> {
        nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)?;
        Ok(Children::default())
    }

    /// Writes a process into the books and returns its pid.
    pub fn claim(&mut self, who: Who, proof: Proof) -> Result<i32, FalseClaim> {
        let pid = match &proof {
            Proof::OwnChild { pid } => *pid,
            Proof::Sender { sender, .. } => sender.pid,
        };
        let known = self.0.get(&pid).map(|child| child.who);
        let before = self.pid_of(who);
        if known == Some(who) {
            return Ok(pid);
        }
        if known.is_some() || before.is_some() {
            return Err(FalseClaim::Taken { pid });
        }
        // 0 and less stand for groups of processes (kill(2)), and 1 is never a worker.
        if pid <= 1 {
            return Err(FalseClaim::Stranger { pid });
        }
        let pidfd = match proof {
            Proof::OwnChild { .. } => pidfd_open(pid).ok(),
            Proof::Sender { sender, session } => {
                let pidfd = sender.pidfd.or_else(|| pidfd_open(pid).ok());
                // After the pidfd was opened: what is true of the number now is true of that process.
                // SAFETY: no memory is involved.
                let in_session = unsafe { libc::getsid(pid) } == session;
                if !in_session && !is_own_child(pid) {
                    return Err(FalseClaim::Stranger { pid });
                }
                pidfd
            }
        };
        self.0.insert(pid, Child { who, pidfd });
        Ok(pid)
    }

    /// The same process is another's from now on.
    pub fn rename(&mut self, from: Who, to: Who) {
        self.0.values_mut().filter(|child| child.who == from).for_each(|child| child.who = to);
    }

    /// A child from before an exec, which has kept all children, also those that have ended since. None of them was reaped,
    /// so each still has its number.
    pub fn take_over(&mut self, who: Who, pid: i32) -> Result<(), FalseClaim> {
        if !is_own_child(pid) {
            return Err(FalseClaim::Stranger { pid });
        }
        self.claim(who, Proof::OwnChild { pid }).map(drop)
    }

    /// Whether the process after an exec will believe these claims. A worker is not a child of this process while the middle
    /// process that forked it still lives.
    pub fn can_be_taken_over(&self) -> bool {
        let carried = self.0.iter().filter(|(_, child)| match child.who {
            Who::Template(_) | Who::Worker(_) | Who::Service(_) => true,
            Who::Hook(_) | Who::Command(_) | Who::NewBinary | Who::Stray => false,
        });
        carried.map(|(pid, _)| *pid).all(is_own_child)
    }

    pub fn pid_of(&self, who: Who) -> Option<i32> {
        self.0.iter().find(|(_, child)| child.who == who).map(|(pid, _)| *pid)
    }

    pub fn who(&self, pid: i32) -> Option<Who> {
        self.0.get(&pid).map(|child| child.who)
    }

    /// Whose session the sender is in: a service leads one, and whatever it has started speaks for it.
    pub fn leader_of(&self, sender: &Sender) -> Option<Who> {
        // SAFETY: no memory is involved. ESRCH: it has ended, and is nobody's.
        self.who(unsafe { libc::getsid(sender.pid) })
    }

    /// SIGKILL. False: nobody of that name is in the books, so no exit will follow.
    pub fn kill(&self, who: Who) -> bool {
        self.signal(who, libc::SIGKILL)
    }

    /// Sends a signal to a process in the books. False: it is not there.
    pub fn signal(&self, who: Who, signal: i32) -> bool {
        let Some((pid, child)) = self.0.iter().find(|(_, child)| child.who == who) else { return false };
        child.signal(*pid, signal);
        true
    }

    /// The same to a process that leads a group, and to all in it. Its number stands for the group until it is reaped.
    pub fn signal_group(&self, who: Who, signal: i32) -> bool {
        let Some(pid) = self.pid_of(who) else { return false };
        // SAFETY: no memory is involved.
        if unsafe { libc::kill(-pid, signal) } == -1 {
            // ESRCH: it has not made its group yet, and is alone. Or the whole group has ended.
            self.signal(who, signal);
        }
        true
    }

    /// SIGKILL did not end it, so the kernel itself hangs (state D). Its name is free for a successor; it is still reaped,
    /// as nobody's, should it end after all.
    pub fn give_up(&mut self, who: Who) {
        for child in self.0.values_mut().filter(|child| child.who == who) {
            child.who = Who::Stray;
        }
    }

    /// SIGKILL to a process that was just started and that nobody can look after. Its name is free for the next one at once:
    /// its exit must not be taken for that one's.
    pub fn disown(&mut self, who: Who) {
        match who {
            Who::Command(_) | Who::Service(_) => drop(self.signal_group(who, libc::SIGKILL)),
            Who::Template(_) | Who::Worker(_) | Who::Hook(_) | Who::NewBinary | Who::Stray => drop(self.kill(who)),
        }
        self.give_up(who);
    }

    /// SIGKILL to all that are left.
    pub fn kill_all(&self) {
        for (pid, child) in &self.0 {
            match child.who {
                Who::Command(_) | Who::Service(_) => drop(self.signal_group(child.who, libc::SIGKILL)),
                Who::Template(_) | Who::Worker(_) | Who::Hook(_) | Who::NewBinary | Who::Stray => {
                    child.signal(*pid, libc::SIGKILL)
                }
            }
        }
    }

    /// A child that has ended and is not yet reaped.
    pub fn ended() -> Option<i32> {
        wait_for_any(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    }

    /// Reaps it: from here on its pid may belong to somebody else. Nobody's name stands for what the application left
    /// behind.
    pub fn reap(&mut self, pid: i32) -> Option<(Option<Who>, Exit)> {
        let mut status = 0;
        // SAFETY: the pointer is to a living value.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } != pid {
            return None;
        }
        let exit = match libc::WIFSIGNALED(status) {
            true => Exit::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) },
            false => Exit::Code(libc::WEXITSTATUS(status)),
        };
        Some((self.0.remove(&pid).map(|child| child.who), exit))
    }

    /// The end: kills and reaps what is left in the books, and then whoever else still holds `held`, which only processes
    /// of this service have: a middle process that hung in a fork handler, a child that C code forked. Other children were
    /// left behind by the application: those are not ours to end.
    pub fn sweep(&mut self, held: &OwnedFd, deadline: Instant) -> Swept {
        let name = link_of("self", held.as_raw_fd());
        loop {
            self.kill_all();
            self.wait_for_all(deadline);
            while let Some(pid) = Children::ended() {
                self.reap(pid);
            }
            let unknown = own_children().into_iter().filter(|pid| !self.0.contains_key(pid));
            let (ours, others): (Vec<i32>, Vec<i32>) =
                unknown.partition(|pid| name.is_some() && holds(*pid, name.as_deref()));
            if ours.is_empty() || Instant::now() >= deadline {
                return Swept { undying: self.0.keys().copied().chain(ours).collect(), others };
            }
            for pid in ours {
                log::warn!("pid={pid} holds what belongs to the service: killed");
                self.0.entry(pid).or_insert(Child { who: Who::Stray, pidfd: pidfd_open(pid).ok() });
            }
        }
    }

    /// Waits until that one has ended, at most until the deadline, and reaps it: how it ended. As `wait_for_all`.
    pub fn wait_for(&mut self, who: Who, deadline: Instant) -> Option<Exit> {
        let pid = self.pid_of(who)?;
        loop {
            if let Some((_, exit)) = self.reap(pid) {
                return Some(exit);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let pidfd = self.0.get(&pid)?.pidfd.as_ref();
            let mut polled: Vec<PollFd<'_>> =
                pidfd.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
            let left = if polled.is_empty() { left.min(LOOK_AGAIN_AFTER) } else { left };
            let _ = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            if !is_own_child(pid) {
                return None;
            }
        }
    }

    /// Waits until all in the books have ended, at most until the deadline, and reaps them. For those who have nothing
    /// else to do; the master's loop reaps as it is told.
    pub fn wait_for_all(&mut self, deadline: Instant) {
        while let Some((&pid, child)) = self.0.iter().next() {
            let left = deadline.saturating_duration_since(Instant::now());
            // A pidfd is readable when its process has ended. Without one the child is looked at every few milliseconds.
            let polled = child.pidfd.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
            let mut polled: Vec<PollFd<'_>> = polled.collect();
            let left = if polled.is_empty() { left.min(LOOK_AGAIN_AFTER) } else { left };
            // An error (EINTR) only means to look earlier.
            let _ = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            if self.reap(pid).is_some() {
                continue;
            }
            if Instant::now() >= deadline {
                return;
            }
            // Reaped by somebody else: a worker whose middle process has not exited yet is not our child.
            if !is_own_child(pid) {
                self.0.remove(&pid);
                continue;
            }
            // Ended, and not ours to reap while a debugger has it (ptrace(2)): its pidfd stays readable.
            let _ = poll(&mut [], PollTimeout::try_from(LOOK_AGAIN_AFTER.min(left)).unwrap_or(PollTimeout::ZERO));
        }
    }
}

impl Child {
    fn signal(&self, pid: i32, signal: i32) {
        if let Err(error) = send_signal(pid, self.pidfd.as_ref(), signal) {
            // ESRCH: it has ended and waits to be reaped.
            if error.raw_os_error() != Some(libc::ESRCH) {
                log::error!("signal {signal} cannot be sent to pid={pid}: {error}");
            }
        }
    }
}

impl fmt::Display for FalseClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FalseClaim::Taken { pid } => write!(f, "pid {pid} is somebody else's, or another one was known before"),
            FalseClaim::Stranger { pid } => write!(f, "pid {pid} is not a process of this service"),
        }
    }
}

/// Children of this process that have not ended: the third field (no Z) and the fourth one of proc_pid_stat(5), behind
/// the name in parentheses.
fn own_children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let is_child = |pid: &i32| {
        // The name may be any bytes: the kernel cuts it to 15, also in the middle of a character.
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = behind_name.split_ascii_whitespace();
        let (state, parent) = (fields.next(), fields.next());
        state != Some("Z") && parent == Some(own.as_str())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// What a descriptor stands for, as `pipe:[4711]`: proc_pid_fd(5).
fn link_of(pid: &str, fd: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()
}

/// Whether a process has a descriptor of that pipe.
fn holds(pid: i32, name: Option<&Path>) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|link| Some(link.as_path()) == name)
}

/// The pid of a child in that state, if there is one.
fn wait_for_any(flags: i32) -> Option<i32> {
    // SAFETY: an all-zero siginfo_t is a valid value, and what waitid(2) leaves for "none" has pid 0.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a living value. WNOHANG never blocks, so there is no EINTR; ECHILD: no child at all.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) };
    // SAFETY: waitid(2) has filled in the fields of a child's siginfo, or left the zeroes.
    let pid = unsafe { info.si_pid() };
    (result == 0 && pid != 0).then_some(pid)
}

/// A child of this process that has not been reaped.
fn is_own_child(pid: i32) -> bool {
    // SAFETY: an all-zero siginfo_t is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a living value. ECHILD: not a child.
    unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0 }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes a number and flags; the descriptor that it returns is CLOEXEC (pidfd_open(2)).
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us; descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn send_signal(pid: i32, pidfd: Option<&OwnedFd>, signal: i32) -> io::Result<()> {
    let result = match pidfd {
        Some(pidfd) => {
            let no_info: *const libc::siginfo_t = std::ptr::null();
            // SAFETY: no memory is passed but a null pointer, which means "as kill(2)" (pidfd_send_signal(2)).
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) }
        }
        // SAFETY: no memory is involved. Only `reap` frees the number, and it removes the child from the books.
        None => i64::from(unsafe { libc::kill(pid, signal) }),
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: Who = Who::Template(GenerationId(1));
    const WORKER: Who = Who::Worker(WorkerId(1));

    fn sender(pid: i32) -> Proof {
        Proof::Sender { sender: Sender { pid, pidfd: None }, session: 1 << 30 }
    }

    #[test]
    fn a_pid_is_believed_once_and_only_of_a_process_of_ours() {
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = process.id() as i32;
        let mut children = Children::default();
        assert_eq!(children.claim(TEMPLATE, Proof::OwnChild { pid }), Ok(pid));
        assert_eq!(children.claim(WORKER, sender(pid)), Err(FalseClaim::Taken { pid }));
        assert_eq!(children.who(pid), Some(TEMPLATE));
        // SAFETY: no memory is involved.
        let parent = unsafe { libc::getppid() };
        for stranger in [parent, -1, 0, 1, -pid] {
            assert_eq!(children.claim(WORKER, sender(stranger)), Err(FalseClaim::Stranger { pid: stranger }));
        }
        assert!(!children.kill(WORKER));
        assert!(children.kill(TEMPLATE));
        // Given up, its name has room for a successor, and it is reaped all the same.
        children.give_up(TEMPLATE);
        assert_eq!((children.pid_of(TEMPLATE), children.who(pid)), (None, Some(Who::Stray)));
        children.wait_for_all(Instant::now() + Duration::from_secs(10));
        assert!(children.0.is_empty());
        // It was reaped here.
        assert!(process.wait().is_err());
    }

    /// As found: what was killed right after its fork had no group to be killed with, and lived on.
    #[test]
    fn who_has_not_made_its_group_yet_is_signalled_all_the_same() {
        use std::os::unix::process::ExitStatusExt;
        let mut process = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let service = Who::Service(ServiceId(1));
        let mut children = Children::default();
        children.claim(service, Proof::OwnChild { pid: process.id() as i32 }).unwrap();
        assert!(children.signal_group(service, libc::SIGKILL));
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    /// As found: a template whose channel could not be watched was killed and stayed in the books. Its exit was then taken for
    /// its successor's.
    #[test]
    fn the_exit_of_who_is_disowned_is_nobodys() {
        use std::os::unix::process::CommandExt;
        let start = || std::process::Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        for who in [TEMPLATE, Who::Service(ServiceId(1))] {
            let (mut first, mut second) = (start(), start());
            let (pid, next) = (first.id() as i32, second.id() as i32);
            let mut children = Children::default();
            children.claim(who, Proof::OwnChild { pid }).unwrap();
            children.disown(who);
            assert_eq!(children.claim(who, Proof::OwnChild { pid: next }), Ok(next));
            assert_eq!((children.who(pid), children.pid_of(who)), (Some(Who::Stray), Some(next)));
            children.kill(who);
            children.wait_for_all(Instant::now() + Duration::from_secs(10));
            assert!(children.0.is_empty() && first.wait().is_err() && second.wait().is_err());
        }
    }

    /// The descriptor that marks a process as ours is one that its parent does not close at exec.
    #[test]
    fn whoever_holds_what_is_ours_is_swept_and_others_are_named() {
        let (held, _write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut ours = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (holder, stranger) = (ours.id() as i32, other.id() as i32);
        let name = link_of("self", held.as_raw_fd());
        assert!(holds(holder, name.as_deref()) && !holds(stranger, name.as_deref()));
        let children = own_children();
        assert!(children.contains(&holder) && children.contains(&stranger));
        for process in [&mut ours, &mut other] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// As found: a process whose name the kernel had cut within a character was nobody's child, and was not swept.
    #[test]
    fn a_child_whose_name_is_no_text_is_found() {
        let directory = tempfile::tempdir().unwrap();
        // 15 bytes of it are its name (proc_pid_comm(5)), and the last is half of an `ö`.
        let program = directory.path().join("warteschlangenöffner");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut process = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let name = std::fs::read(format!("/proc/{}/comm", process.id())).unwrap();
        let is_found = own_children().contains(&(process.id() as i32));
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(String::from_utf8(name).is_err() && is_found);
    }

    #[test]
    fn a_worker_that_is_another_ones_child_cannot_be_taken_over_yet() {
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = process.id() as i32;
        let mut children = Children::default();
        children.claim(TEMPLATE, Proof::OwnChild { pid }).unwrap();
        assert!(children.can_be_taken_over());
        // SAFETY: no memory is involved.
        let parent = unsafe { libc::getppid() };
        children.0.insert(parent, Child { who: WORKER, pidfd: None });
        assert!(!children.can_be_taken_over());
        assert_eq!(Children::default().take_over(WORKER, parent), Err(FalseClaim::Stranger { pid: parent }));
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_name_has_one_process() {
        let mut first = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut second = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (one, other) = (first.id() as i32, second.id() as i32);
        let mut children = Children::default();
        assert_eq!(children.claim(WORKER, sender(one)), Ok(one));
        assert_eq!(children.claim(WORKER, sender(one)), Ok(one));
        assert_eq!(children.claim(WORKER, sender(other)), Err(FalseClaim::Taken { pid: other }));
        for process in [&mut first, &mut second] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
