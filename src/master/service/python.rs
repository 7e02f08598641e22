//! Starting a template: fork and exec of the release's own interpreter, as the right user, with nothing inherited
//! but what `wire::inherit` lists.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use forkmaster_wire::channel::Channel;
use forkmaster_wire::inherit::{Inherited, BOOTSTRAP};

use super::birth::{Birth, Failure, Program};
use super::child::{Entering, ANOTHER_DIRECTORY};
use super::not_started::NotStarted;
use crate::config::directory::DirectoryId;
use crate::config::settings::{Identity, Settings};
use crate::supervisor::worker::Exit;

/// What a template is started with.
pub struct Start<'a> {
    pub executable: PathBuf,
    pub directory: PathBuf,
    pub directory_id: Option<DirectoryId>,
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

/// Forks, and does not wait for the exec. Called from the master's main thread only, as `Program::start`.
pub fn template(start: Start<'_>) -> Result<Birth, NotStarted> {
    let (executable, identity, directory) = (start.executable.clone(), start.identity.clone(), start.directory.clone());
    born(start).map_err(|error| NotStarted::of(error, executable, &directory, identity.as_ref()))
}

fn born(start: Start<'_>) -> io::Result<Birth> {
    let inherited = Inherited {
        channel: start.channel.as_raw_fd(),
        library: start.library.as_raw_fd(),
        lifeline: start.lifeline.as_raw_fd(),
    };
    let entering = Entering::new(start.identity.as_ref(), start.umask, &start.directory, &inherited.all())?
        .pinned_to(start.directory_id)
        .with_no_new_privileges(start.no_new_privileges);
    let told = inherited.to_string();
    let words = [start.executable.as_os_str(), "-c".as_ref(), BOOTSTRAP.as_ref(), told.as_ref()];
    let environment = start.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let program = Program::new(&words, environment, &start.directory, entering)?;
    match start.with_stdin {
        true => program.start(),
        false => program.without_input()?.start(),
    }
}

/// Why it never became Python, for whoever asks when it has ended.
pub fn failure(failure: &Failure, settings: &Settings) -> Option<NotStarted> {
    Some(explain(failure.read()?, settings))
}

/// The same, for those who have nothing else to do: waits until that is known.
pub fn wait_for_exec(failure: &Failure, settings: &Settings) -> Result<(), NotStarted> {
    failure.wait().map_or(Ok(()), |error| Err(explain(error, settings)))
}

/// It was executed and ended before it said anything: a script that hands over to nobody, another program.
pub fn stillborn(exit: &Exit, settings: &Settings) -> Option<String> {
    let executable = settings.app.interpreter.executable.display();
    match exit {
        Exit::Code(_) => Some(format!(
            "{executable} ended with {exit} before it ran anything of the server: a .pth file, sitecustomize or \
             usercustomize ends it, its installation is damaged, or it is no CPython; what it wrote is in the log"
        )),
        // Killed, by the master or from outside.
        Exit::Signal { .. } | Exit::OutOfMemory(_) | Exit::NeverBorn(_) | Exit::NoRoom(_) | Exit::LostAtBirth => None,
    }
}

fn explain(error: io::Error, settings: &Settings) -> NotStarted {
    let error = without_release(error, &settings.app.release);
    let executable = settings.app.interpreter.executable.clone();
    NotStarted::of(error, executable, &settings.app.release, settings.server.identity.as_ref())
}

/// "No such file or directory" is said of the interpreter and of the working directory alike. Where another directory has
/// the release's name, the child says so.
pub(super) fn without_release(error: io::Error, release: &Path) -> io::Error {
    if error.raw_os_error() == Some(ANOTHER_DIRECTORY) {
        let text = format!(
            "another directory has the name {} by now, and is another release; `forkmaster reload` deploys it",
            release.display()
        );
        return io::Error::other(text);
    }
    match error.kind() == io::ErrorKind::NotFound && !release.exists() {
        true => io::Error::new(error.kind(), format!("the release directory {} is gone", release.display())),
        false => error,
    }
}
