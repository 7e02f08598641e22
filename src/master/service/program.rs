//! Starting a program of the release that is no worker: as the generation's user, in its pinned directory and
//! environment, in a session of its own, with its output in a pipe that the master reads. It inherits nothing else but the
//! sockets that are its own: no listener of the workers, no channel.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::fcntl::{fcntl, FcntlArg, OFlag};

use super::child::Entering;
use super::not_started::NotStarted;
use super::python;
use crate::config::settings::Settings;

/// A program that runs, and what it writes.
pub struct Started {
    pub pid: i32,
    /// Does not block.
    pub output: OwnedFd,
}

/// Where the sockets that are handed over begin (sd_listen_fds(3)).
const FIRST_FD: RawFd = 3;

/// The digits of any pid.
const PID_DIGITS: usize = 10;

/// What a program gets beyond its release's environment.
#[derive(Default)]
pub struct Given<'a> {
    /// Listening sockets, under one name.
    pub sockets: Vec<BorrowedFd<'a>>,
    pub name: &'a str,
    /// Where it is to say that it is ready.
    pub notify_socket: Option<&'a OsStr>,
    /// It is the release's own, and no command of the operator's.
    pub no_new_privileges: bool,
}

/// Forks and executes; returns when the exec has succeeded or failed. Called from the master's main thread only, as
/// `python::template`.
pub fn start(words: &[String], settings: &Settings, given: &Given<'_>) -> Result<Started, NotStarted> {
    let (app, server) = (&settings.app, &settings.server);
    let (name, arguments) = words.split_first().map_or(("", words), |(name, rest)| (name.as_str(), rest));
    let failed = |error: io::Error| NotStarted::of(error, name.into(), server.identity.as_ref());
    let (output, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    // Only this end: the program's own writes wait as it expects.
    fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| failed(error.into()))?;
    let both = theirs.try_clone().map_err(failed)?;
    let mut command = std::process::Command::new(name);
    command.args(arguments);
    let environment = app.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let environment = environment.chain(given.notify_socket.map(|path| (OsStr::new("NOTIFY_SOCKET"), path)));
    let mut handed_over = HandedOver::new(given, environment).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::from(theirs)).stderr(Stdio::from(both));
    let entering = Entering::new(server.identity.as_ref(), server.umask, &app.release, &[])
        .map_err(failed)?
        .with_no_new_privileges(given.no_new_privileges);
    // SAFETY: `enter` makes system calls only, each of them async-signal-safe (signal-safety(7)), and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            entering.enter()?;
            handed_over.take()
        })
    };
    let child = command.spawn().map_err(|error| failed(python::without_release(error, &app.release)))?;
    Ok(Started { pid: child.id() as i32, output })
}

extern "C" {
    /// environ(7). execvp(3) takes the environment from here, and PATH as well.
    static mut environ: *const *const libc::c_char;
}

/// The sockets of a program and its environment, made ready before the fork: LISTEN_PID is known only after it, and
/// allocating is not allowed then.
struct HandedOver {
    /// Above the numbers that the program knows them by.
    sockets: Vec<OwnedFd>,
    /// Keeps the numbers from what is opened until the exec.
    _reserved: Vec<OwnedFd>,
    /// `NAME=value`, each with its NUL. The last is LISTEN_PID's, where there are sockets.
    environment: Vec<Vec<u8>>,
    pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers are to the buffers beside them, which nobody else has.
unsafe impl Send for HandedOver {}
// SAFETY: as above.
unsafe impl Sync for HandedOver {}

impl HandedOver {
    fn new<'a>(given: &Given<'_>, environment: impl Iterator<Item = (&'a OsStr, &'a OsStr)>) -> io::Result<HandedOver> {
        let end = FIRST_FD + given.sockets.len() as RawFd;
        let (mut sockets, mut reserved) = (Vec::new(), Vec::new());
        for socket in &given.sockets {
            sockets.push(duplicate(*socket, end)?);
        }
        if let Some(socket) = given.sockets.first() {
            loop {
                let copy = duplicate(*socket, FIRST_FD)?;
                if copy.as_raw_fd() >= end {
                    break;
                }
                reserved.push(copy);
            }
        }
        let variable = |name: &OsStr, value: &OsStr| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat();
        let mut variables: Vec<Vec<u8>> = environment.map(|(name, value)| variable(name, value)).collect();
        if !sockets.is_empty() {
            let names = vec![given.name; sockets.len()].join(":");
            let count = sockets.len().to_string();
            variables.push(variable("LISTEN_FDS".as_ref(), count.as_ref()));
            variables.push(variable("LISTEN_FDNAMES".as_ref(), names.as_ref()));
            variables.push([b"LISTEN_PID=".as_slice(), &[0; PID_DIGITS + 1]].concat());
        }
        let pointers = variables.iter().map(|variable| variable.as_ptr().cast()).chain([std::ptr::null()]).collect();
        Ok(HandedOver { sockets, _reserved: reserved, environment: variables, pointers })
    }

    /// In the child, between fork and exec: system calls only.
    fn take(&mut self) -> io::Result<()> {
        for (at, socket) in self.sockets.iter().enumerate() {
            // Without CLOEXEC, as dup2(2) has it.
            // SAFETY: both numbers are ours: one is open, the other is kept free for it.
            if unsafe { libc::dup2(socket.as_raw_fd(), FIRST_FD + at as RawFd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(variable) = self.environment.last_mut().filter(|_| !self.sockets.is_empty()) {
            // SAFETY: getpid(2) cannot fail.
            let mut pid = unsafe { libc::getpid() };
            let (mut digits, mut length) = ([0; PID_DIGITS], 0);
            while pid > 0 {
                digits[length] = b'0' + (pid % 10) as u8;
                (pid, length) = (pid / 10, length + 1);
            }
            let begin = b"LISTEN_PID=".len();
            for at in 0..length {
                variable[begin + at] = digits[length - 1 - at];
            }
        }
        // SAFETY: this process has one thread, and the array and what it points to live until the exec.
        unsafe { environ = self.pointers.as_ptr() };
        Ok(())
    }
}

fn duplicate(fd: BorrowedFd<'_>, from: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(from))?;
    // SAFETY: fcntl has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
