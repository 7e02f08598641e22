//! Where the options that all verbs share point to: a configuration file, a socket. Paths of the command line are relative to
//! where it was typed. It reads no configuration.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

use super::{Client, RunOptions, FILE_DEFAULT};
use crate::config::process_context::ProcessContext;
use crate::config::{self, ConfigFile, Overrides, Source};
use crate::verbs::words::error;

/// Where the options that all verbs share point to.
pub struct Place<'a> {
    pub config: Option<PathBuf>,
    pub socket: Option<String>,
    pub context: &'a ProcessContext,
}

impl Place<'_> {
    /// For verbs that need to know the application.
    pub fn source(&self, options: RunOptions) -> Result<Source, clap::Error> {
        let file = match (&self.config, &options.module) {
            (Some(path), _) => Some(self.file(path)),
            (None, Some(_)) => None,
            (None, None) => match (self.file_default(), options.release.as_deref()) {
                (Some(file), _) => Some(file),
                (None, release) => {
                    let directory = self.context.absolute(Path::new(release.unwrap_or(".")));
                    config::discovery::find(&directory).map(|_found| None).ok_or_else(nothing_to_serve)?
                }
            },
        };
        let absolute = |path: Option<String>| {
            path.map(|path| self.context.absolute(Path::new(&path)).to_string_lossy().into_owned())
        };
        let overrides = Overrides {
            module: options.module,
            name: options.name,
            release: absolute(options.release),
            venv: absolute(options.venv),
            python: absolute(options.python),
            preload: options.preload,
            bind: options.bind.into_iter().map(|bind| self.absolute_bind(bind)).collect(),
            workers: options.workers,
            threads: options.threads,
            notify_fd: options.notify_fd,
            log_level: options.log_level,
            dev: false,
        };
        Ok(Source { file, overrides })
    }

    /// For verbs that only look for the master: without a file, the master of a module served from here.
    pub fn client(&self) -> Result<Client, clap::Error> {
        if self.socket.as_deref().is_some_and(|socket| socket.starts_with('@')) {
            let text = "--socket takes a path: no master listens at an abstract name, which anybody could take before \
                        it; `forkmaster list` shows the paths";
            return Err(error(ErrorKind::ValueValidation, text.to_owned()));
        }
        let socket = self.socket.as_deref().map(|socket| self.context.absolute(Path::new(socket)));
        let file = self.config.as_deref().map(|path| self.file(path)).or_else(|| self.file_default());
        Ok(Client { socket, source: Source { file, overrides: Overrides::default() } })
    }

    pub fn client_options_unused(&self) -> Result<(), clap::Error> {
        match self.socket {
            None => Ok(()),
            Some(_) => {
                let text =
                    "--socket is for the verbs that talk to a running master; the master's own is [control] socket";
                Err(error(ErrorKind::ArgumentConflict, text.to_owned()))
            }
        }
    }

    pub fn file(&self, path: &Path) -> ConfigFile {
        ConfigFile { path: self.context.absolute(path), shown: path.to_string_lossy().into_owned() }
    }

    fn file_default(&self) -> Option<ConfigFile> {
        let file = self.file(Path::new(FILE_DEFAULT));
        file.path.symlink_metadata().is_ok().then_some(file)
    }

    /// What is typed in a shell is relative to where it is typed, not to a file elsewhere.
    fn absolute_bind(&self, bind: String) -> String {
        match bind.strip_prefix("unix:") {
            Some(path) => format!("unix:{}", self.context.absolute(Path::new(path)).display()),
            None => bind,
        }
    }
}

fn nothing_to_serve() -> clap::Error {
    let text =
        "nothing to serve: there is no ./app.toml, and no application in wsgi.py, app.py, main.py or manage.py\n\
                forkmaster shop.wsgi:app  serves `app` of the module shop.wsgi of this directory\n\
                forkmaster -c FILE        serves what a configuration file says; `forkmaster config init` writes one";
    error(ErrorKind::MissingRequiredArgument, text.to_owned())
}
