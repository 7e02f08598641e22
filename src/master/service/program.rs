//! Starting a program of the release that is no worker: as the generation's user, in its pinned directory and
//! environment, in a session of its own, with its output in a pipe that the master reads. It inherits nothing else but the
//! sockets that are its own: no listener of the workers, no channel.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use forkmaster_wire::alias::{self, Alias};

use super::birth::{Birth, Failure, Program};
use super::child::Entering;
use super::not_started::NotStarted;
use super::python::without_release;
use crate::config::settings::{Identity, Settings};

/// A program that runs, or will, and what it writes.
pub struct Started {
    pub pid: i32,
    /// Does not block.
    pub output: OwnedFd,
    pub start: Start,
}

/// How its start went, for whoever asks when it has ended.
pub struct Start {
    failure: Failure,
    name: PathBuf,
    release: PathBuf,
    identity: Option<Identity>,
}

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

/// Forks, and does not wait for the exec. Called from the master's main thread only, as `Program::start`.
pub fn start(words: &[String], settings: &Settings, given: &Given<'_>) -> Result<Started, NotStarted> {
    let identity = &settings.server.identity;
    let words = pinned(words, &settings.app.aliases);
    let name = PathBuf::from(words.first().map_or("", String::as_str));
    let born = born(&words, settings, given);
    let (Birth { pid, failure }, output) =
        born.map_err(|error| NotStarted::of(error, name.clone(), &settings.app.release, identity.as_ref()))?;
    let start = Start { failure, name, release: settings.app.release.clone(), identity: identity.clone() };
    Ok(Started { pid, output, start })
}

/// A word that is a path through the release's link means what the link led to when the generation was made.
fn pinned(words: &[String], aliases: &[Alias]) -> Vec<String> {
    let pinned = |word: &String| alias::pinned(aliases, Path::new(word))?.into_os_string().into_string().ok();
    words.iter().map(|word| pinned(word).unwrap_or_else(|| word.clone())).collect()
}

fn born(words: &[String], settings: &Settings, given: &Given<'_>) -> io::Result<(Birth, OwnedFd)> {
    let (app, server) = (&settings.app, &settings.server);
    let entering = Entering::new(server.identity.as_ref(), server.umask, &app.release, &[])?
        .pinned_to(app.release_id)
        .with_no_new_privileges(given.no_new_privileges);
    let environment = app.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let environment = environment.chain(given.notify_socket.map(|path| (OsStr::new("NOTIFY_SOCKET"), path)));
    let program = Program::new(words, environment, &app.release, entering)?.without_input()?;
    let (program, output) = program.with_sockets(&given.sockets, given.name)?.with_output()?;
    Ok((program.start()?, output))
}

impl Start {
    /// Why the program never ran. None: it did.
    pub fn failure(&self) -> Option<NotStarted> {
        let error = self.failure.read()?;
        let error = without_release(error, &self.release);
        Some(NotStarted::of(error, self.name.clone(), &self.release, self.identity.as_ref()))
    }
}
