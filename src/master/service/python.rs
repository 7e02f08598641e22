//! Starting a template: fork and exec of the release's own interpreter, as the right user, with nothing inherited
//! but what `wire::inherit` lists.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use forkmaster_wire::channel::Channel;
use forkmaster_wire::inherit::{Inherited, BOOTSTRAP};

use super::child::Entering;
use super::not_started::NotStarted;
use crate::config::settings::Identity;

/// What a template is started with.
pub struct Start<'a> {
    pub executable: PathBuf,
    pub directory: PathBuf,
    pub environment: Vec<(OsString, OsString)>,
    pub identity: Option<Identity>,
    pub umask: Option<u32>,
    pub no_new_privileges: bool,
    /// The application may read from the terminal.
    pub with_stdin: bool,
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
    command.env_clear().envs(start.environment);
    command.stdin(if start.with_stdin { Stdio::inherit() } else { Stdio::null() });
    let child = Entering::new(start.identity.as_ref(), start.umask, &start.directory, &inherited.all())
        .map_err(failed)?
        .with_no_new_privileges(start.no_new_privileges);
    // SAFETY: `enter` makes system calls only, each of them async-signal-safe (signal-safety(7)), and allocates
    // nothing.
    unsafe { command.pre_exec(move || child.enter()) };
    // The standard library's Child does not kill on drop; the pid is reaped in `reap`.
    let child: Child = command.spawn().map_err(|error| failed(without_release(error, &release)))?;
    Ok(child.id() as i32)
}

/// "No such file or directory" is said of the interpreter and of the working directory alike.
pub(super) fn without_release(error: io::Error, release: &Path) -> io::Error {
    match error.kind() == io::ErrorKind::NotFound && !release.exists() {
        true => io::Error::new(error.kind(), format!("the release directory {} is gone", release.display())),
        false => error,
    }
}
