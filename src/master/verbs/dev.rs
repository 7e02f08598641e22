//! `dev`: serving while somebody works at the application. It is the master as always with settings of its own (see
//! `config::layers`) and a watcher. Where the application does not even start, the next saved file starts it again.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{signal, SigHandler, Signal};
use nix::sys::termios::{tcgetattr, tcsetattr, SetArg, Termios};

use super::output;
use crate::config::process_context::ProcessContext;
use crate::config::settings::Settings;
use crate::config::{self, Source};
use crate::exit_code::ExitCode;
use crate::watcher::{self, Watched};

/// Serves by `run`, which returns the exit code.
pub fn develop(source: &Source, context: &ProcessContext, run: impl FnOnce() -> i32) -> i32 {
    let terminal = Terminal::now();
    let code = run();
    terminal.restore();
    let is_mendable = [ExitCode::Unavailable, ExitCode::Configuration].into_iter().any(|one| i32::from(one) == code);
    if !is_mendable {
        return code;
    }
    let watched = match config::read(source, context, None) {
        Ok(loaded) => watched(&loaded.settings, source),
        Err(_said_already) => Watched { trees: vec![place(source, context)], files: Vec::new() },
    };
    output::complain("waiting for a saved file; Ctrl-C ends");
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP] {
        // SAFETY: the default action runs no code of ours. Whoever handled these signals has ended.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    match watcher::wait(&watched) {
        Ok(what) => {
            output::complain(format_args!("{what} saved: starting again"));
            let mut words = std::env::args_os();
            let mut again = Command::new("/proc/self/exe");
            // Where it was called from says which Python it finds.
            if let Some(name) = words.next() {
                again.arg0(name);
            }
            let error = again.args(words).exec();
            output::complain(format_args!("it cannot be started again: {error}"));
        }
        Err(error) => output::complain(format_args!("files cannot be watched: {error}")),
    }
    code
}

/// What somebody may save: the release, what it imports from elsewhere, its configuration.
pub fn watched(settings: &Settings, source: &Source) -> Watched {
    let app = &settings.app;
    let trees = std::iter::once(&app.release).chain(&app.pythonpath).cloned().collect();
    let configuration = source.file.as_ref().map(|file| file.path.clone());
    Watched { trees, files: configuration.into_iter().chain(app.env_file.clone()).collect() }
}

/// Where the application is looked for while its configuration cannot be read.
fn place(source: &Source, context: &ProcessContext) -> PathBuf {
    let configured = source.file.as_ref().and_then(|file| file.path.parent().map(Path::to_path_buf));
    let named = source.overrides.release.as_ref().map(PathBuf::from);
    named.or(configured).unwrap_or_else(|| context.cwd.clone())
}

/// How the terminal was: a debugger that is killed at its prompt leaves it without an echo.
struct Terminal(Option<Termios>);

impl Terminal {
    fn now() -> Terminal {
        Terminal(tcgetattr(std::io::stdin().as_fd()).ok())
    }

    fn restore(self) {
        if let Some(before) = self.0 {
            // It may have gone meanwhile.
            let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &before);
        }
    }
}
