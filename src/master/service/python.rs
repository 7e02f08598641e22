//! Starting a template: fork and exec of the release's own interpreter, as the right user, with nothing inherited
//! but what `wire::inherit` lists.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use forkmaster_wire::channel::Channel;
use forkmaster_wire::inherit::{Inherited, BOOTSTRAP};

use super::not_started::NotStarted;
use crate::config::settings::Identity;

/// What a template is started with.
pub struct Start<'a> {
    pub executable: PathBuf,
    pub directory: PathBuf,
    pub environment: Vec<(OsString, OsString)>,
    pub identity: Option<Identity>,
    pub umask: Option<u32>,
    pub channel: &'a Channel,
    pub library: BorrowedFd<'a>,
    pub lifeline: BorrowedFd<'a>,
}

/// Forks and executes; returns when the exec has succeeded or failed. Called from the master's main thread only: the
/// parent-death signal is sent when the *thread* ends that forked (prctl(2)).
pub fn template(start: Start<'_>) -> Result<i32, NotStarted> {
    let inherited = Inherited {
        channel: start.channel.as_raw_fd(),
        library: start.library.as_raw_fd(),
        lifeline: start.lifeline.as_raw_fd(),
    };
    let (release, executable, identity) = (start.directory.clone(), start.executable.clone(), start.identity.clone());
    let failed = |error: io::Error| NotStarted::of(error, executable.clone(), identity.as_ref());
    let mut command = Command::new(&start.executable);
    command.arg("-c").arg(BOOTSTRAP).arg(inherited.to_string());
    command.env_clear().envs(start.environment).stdin(Stdio::null());
    let child = Prepared {
        fds: inherited.all(),
        // Allocating is not allowed after the fork.
        directory: std::ffi::CString::new(start.directory.into_os_string().into_encoded_bytes())
            .map_err(|error| failed(error.into()))?,
        groups: start.identity.as_ref().map(|identity| identity.groups.clone()),
        ids: start.identity.as_ref().map(|identity| (identity.uid, identity.gid)),
        umask: start.umask,
        // SAFETY: getpid(2) cannot fail.
        master: unsafe { libc::getpid() },
    };
    // SAFETY: `enter` makes system calls only, each of them async-signal-safe (signal-safety(7)), and allocates
    // nothing.
    unsafe { command.pre_exec(move || child.enter()) };
    // The standard library's Child does not kill on drop; the pid is reaped in `reap`.
    let child: Child = command.spawn().map_err(|error| failed(without_release(error, &release)))?;
    Ok(child.id() as i32)
}

/// "No such file or directory" is said of the interpreter and of the working directory alike.
fn without_release(error: io::Error, release: &Path) -> io::Error {
    match error.kind() == io::ErrorKind::NotFound && !release.exists() {
        true => io::Error::new(error.kind(), format!("the release directory {} is gone", release.display())),
        false => error,
    }
}

/// All that the child needs between fork and exec, made before the fork.
struct Prepared {
    fds: [RawFd; 3],
    directory: std::ffi::CString,
    groups: Option<Vec<u32>>,
    ids: Option<(u32, u32)>,
    umask: Option<u32>,
    master: i32,
}

impl Prepared {
    /// Runs in the child between fork and exec. Identity and umask change here and not in Python, because `site`
    /// runs `.pth` files and `sitecustomize` from a directory that the deploy user owns: no byte of a release is
    /// read as root.
    fn enter(&self) -> io::Result<()> {
        reset_signals();
        // A session of its own: Ctrl-C in a terminal reaches the master only.
        // SAFETY: no memory is involved; it fails only for a process group leader, which a new child is not.
        check(unsafe { libc::setsid() })?;
        if let Some(umask) = self.umask {
            // SAFETY: cannot fail.
            unsafe { libc::umask(umask) };
        }
        if let Some(groups) = &self.groups {
            // SAFETY: the pointer and length are those of a living slice.
            check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        }
        if let Some((uid, gid)) = self.ids {
            // The group first: without root it could not be changed any more.
            // SAFETY: no memory is involved.
            check(unsafe { libc::setgid(gid) })?;
            // SAFETY: as above.
            check(unsafe { libc::setuid(uid) })?;
        }
        // SAFETY: a NUL-terminated string that lives.
        check(unsafe { libc::chdir(self.directory.as_ptr()) })?;
        // After the uid change, which clears it (prctl(2)).
        // SAFETY: no memory is involved.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // The master may have died before that.
        // SAFETY: cannot fail.
        if unsafe { libc::getppid() } != self.master {
            // SAFETY: ends the process without running anything of the master's.
            unsafe { libc::_exit(1) };
        }
        // What the master was started with (a shell's redirections, a supervisor's descriptors) is not for the release.
        // Kernels before 5.11 refuse, and there it stays as it is.
        // SAFETY: no memory is involved.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        for fd in self.fds {
            // SAFETY: changes a flag of a descriptor that is open.
            check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
        }
        Ok(())
    }
}

/// Dispositions of ignored signals and the mask survive exec: whatever the master was started with (nohup ignores
/// HUP) must not reach the application.
fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: resetting a disposition to the default needs no memory; KILL, STOP and the C library's own
        // signals refuse, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is the empty set on Linux, and the pointer is to a living value.
    unsafe {
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut());
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
