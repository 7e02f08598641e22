//! Starting a program of the release that is no worker: as the generation's user, in its pinned directory and
//! environment, in a session of its own, with its output in a pipe that the master reads. It inherits nothing else: no
//! listener, no channel.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::fcntl::OFlag;

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

/// Forks and executes; returns when the exec has succeeded or failed. Called from the master's main thread only, as
/// `python::template`.
pub fn start(words: &[String], settings: &Settings) -> Result<Started, NotStarted> {
    let (app, server) = (&settings.app, &settings.server);
    let (name, arguments) = words.split_first().map_or(("", words), |(name, rest)| (name.as_str(), rest));
    let failed = |error: io::Error| NotStarted::of(error, name.into(), server.identity.as_ref());
    let (output, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(error.into()))?;
    // Only this end: the program's own writes wait as it expects.
    nix::fcntl::fcntl(&output, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|error| failed(error.into()))?;
    let both = theirs.try_clone().map_err(failed)?;
    let mut command = std::process::Command::new(name);
    command.args(arguments).env_clear().envs(app.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::from(theirs)).stderr(Stdio::from(both));
    let entering = Entering::new(server.identity.as_ref(), server.umask, &app.release, &[]).map_err(failed)?;
    // SAFETY: `enter` makes system calls only, each of them async-signal-safe (signal-safety(7)), and allocates nothing.
    unsafe { command.pre_exec(move || entering.enter()) };
    let child = command.spawn().map_err(|error| failed(python::without_release(error, &app.release)))?;
    Ok(Started { pid: child.id() as i32, output })
}
