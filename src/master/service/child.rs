//! What happens in a child of the master between fork and exec: who it becomes, where it is, what it keeps. System calls
//! only, each of them async-signal-safe (signal-safety(7)).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::directory::DirectoryId;
use crate::config::settings::Identity;

/// Bits of a set of them in the kernel.
const CAPABILITIES_MAX: libc::c_ulong = 64;

/// What a start fails with where the directory is another one by now. No call of a start fails so by itself.
pub const ANOTHER_DIRECTORY: i32 = libc::ENOTUNIQ;

/// All that the child needs between fork and exec, made before the fork: allocating is not allowed after it.
pub struct Entering {
    /// What its program gets besides its standard streams.
    fds: Vec<RawFd>,
    /// The same, and what it needs itself until then. Ascending.
    kept: Vec<RawFd>,
    directory: CString,
    /// Which one that must be. None: any.
    directory_id: Option<DirectoryId>,
    /// Where it goes if that is gone.
    otherwise: Option<CString>,
    groups: Option<Vec<u32>>,
    ids: Option<(u32, u32)>,
    umask: Option<u32>,
    /// It becomes, or is, somebody else than root, and keeps none of the master's capabilities.
    without_capabilities: bool,
    no_new_privileges: bool,
    master: i32,
}

impl Entering {
    pub fn new(
        identity: Option<&Identity>,
        umask: Option<u32>,
        directory: &Path,
        fds: &[RawFd],
    ) -> io::Result<Entering> {
        Ok(Entering {
            fds: fds.to_vec(),
            kept: Vec::new(),
            directory: c_string(directory)?,
            directory_id: None,
            otherwise: None,
            groups: identity.map(|identity| identity.groups.clone()),
            ids: identity.map(|identity| (identity.uid, identity.gid)),
            umask,
            without_capabilities: identity
                .map_or_else(|| !nix::unistd::geteuid().is_root(), |identity| identity.uid != 0),
            no_new_privileges: false,
            // SAFETY: getpid(2) cannot fail.
            master: unsafe { libc::getpid() },
        })
    }

    /// Nothing that it executes gives it more rights than it has, sudo(8) for one.
    pub fn with_no_new_privileges(self, no_new_privileges: bool) -> Entering {
        Entering { no_new_privileges, ..self }
    }

    /// Its directory is this one, or it does not start: another one that has the name is another release.
    pub fn pinned_to(self, directory_id: Option<DirectoryId>) -> Entering {
        Entering { directory_id, ..self }
    }

    /// It goes to `/` where its directory is gone.
    pub fn or_root(self) -> Entering {
        Entering { otherwise: Some(CString::from(c"/")), ..self }
    }

    /// These stay open until its program has begun, besides what that gets.
    pub fn spare(&mut self, fds: &[RawFd]) {
        self.kept = [&self.fds, fds].concat();
        self.kept.sort_unstable();
    }

    /// Runs in the child between fork and exec. Identity and umask change here and not in Python, because `site`
    /// runs `.pth` files and `sitecustomize` from a directory that the deploy user owns: no byte of a release is
    /// read as root.
    pub fn enter(&self) -> io::Result<()> {
        reset_signals();
        // A session of its own: Ctrl-C in a terminal reaches the master only.
        // SAFETY: no memory is involved; it fails only for a process group leader, which a new child is not.
        check(unsafe { libc::setsid() })?;
        // Before anything that may take long, the directory and the program itself: a copy of the lifeline, of a channel or of a
        // client's connection keeps the other side from noticing its end.
        self.close_others();
        if let Some(umask) = self.umask {
            // SAFETY: cannot fail.
            unsafe { libc::umask(umask) };
        }
        // Before the uid changes, since it takes CAP_SETPCAP.
        if self.without_capabilities && self.no_new_privileges {
            empty_bounding_set();
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
        if self.without_capabilities {
            give_up_capabilities()?;
        }
        if self.no_new_privileges {
            // SAFETY: no memory is involved.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        // After uid and capabilities have changed, which clears it (prctl(2)).
        // SAFETY: no memory is involved.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // The master may have died before that.
        // SAFETY: cannot fail.
        if unsafe { libc::getppid() } != self.master {
            // SAFETY: ends the process without running anything of the master's.
            unsafe { libc::_exit(1) };
        }
        // SAFETY: a NUL-terminated string that lives.
        let entered = check(unsafe { libc::chdir(self.directory.as_ptr()) });
        match &self.otherwise {
            // SAFETY: as above.
            Some(otherwise) if entered.is_err() => check(unsafe { libc::chdir(otherwise.as_ptr()) })?,
            Some(_) | None => entered?,
        }
        if let (Some(meant), Some(found)) = (self.directory_id, self.directory_id.and_then(|_| DirectoryId::here())) {
            if meant != found {
                return Err(io::Error::from_raw_os_error(ANOTHER_DIRECTORY));
            }
        }
        for fd in &self.fds {
            // SAFETY: changes a flag of a descriptor that is open.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        Ok(())
    }

    /// What the master has, and what it was started with (a shell's redirections, a supervisor's descriptors), is not for a
    /// child. Kernels before 5.9 refuse: the master's own close on exec then, and the others stay.
    fn close_others(&self) {
        let mut from = 3;
        for fd in self.kept.iter().map(|fd| *fd as libc::c_uint) {
            if fd > from {
                close_range(from, fd - 1);
            }
            from = from.max(fd + 1);
        }
        close_range(from, libc::c_uint::MAX);
    }
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: no memory is involved, and nothing in this process uses these descriptors any more.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
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

/// What a capability is missing in can never be had again, by no file that is executed (capabilities(7)). Whoever may not do
/// this has few capabilities anyway.
fn empty_bounding_set() {
    for capability in 0..CAPABILITIES_MAX {
        // SAFETY: no memory is involved. EINVAL: the kernel does not know so many.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// The permitted set ends with the uid of root, the inheritable and the ambient set do not (capabilities(7)): systemd's
/// AmbientCapabilities= are the master's. Whoever has none makes no call: systemd's @system-service has no capset(2), and kills
/// who calls it.
fn give_up_capabilities() -> io::Result<()> {
    // linux/capability.h: _LINUX_CAPABILITY_VERSION_3, the calling thread, and twice three sets of 32.
    let mut header: [u32; 2] = [0x2008_0522, 0];
    let none = [0u32; 6];
    let mut own = [0u32; 6];
    // SAFETY: both arrays have the size that this version takes, and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), own.as_mut_ptr()) } as libc::c_int)?;
    if own == none {
        return Ok(());
    }
    // SAFETY: the same.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}
