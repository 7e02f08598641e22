//! The logs: stderr and stdout, or files that are opened again by name on USR1, so that logrotate can move them away.
//! Only the master opens them, since workers may not be allowed to; they get the descriptors. A line is one write(2)
//! at the file's end (O_APPEND), so that lines of several processes do not mix.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use forkmaster_wire::message::LogLevel;
use log::LevelFilter;

use crate::config::settings::{AccessTarget, LogTarget};

/// A handle to the running log; cheap to clone.
#[derive(Clone)]
pub struct LogFile(Arc<Mutex<Target>>);

enum Target {
    Stderr,
    File { path: PathBuf, file: File },
}

impl LogFile {
    /// Starts logging to stderr. Called once, before anything is known of the settings.
    pub fn start() -> LogFile {
        let log = LogFile(Arc::new(Mutex::new(Target::Stderr)));
        env_logger::Builder::new()
            .filter_level(LevelFilter::Info)
            .target(env_logger::Target::Pipe(Box::new(log.clone())))
            .format(|out, record| {
                let mut line = String::with_capacity(160);
                forkmaster_wire::timestamp::push_now(&mut line);
                line.push_str(&format!(" {:<5} {}\n", record.level(), record.args()));
                out.write_all(line.as_bytes())
            })
            .init();
        log
    }

    /// Goes over to what the settings say.
    pub fn apply(&self, target: &LogTarget, level: LogLevel) -> io::Result<()> {
        log::set_max_level(match level {
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        });
        let next = match target {
            LogTarget::Stderr => Target::Stderr,
            LogTarget::File(path) => Target::File { path: path.clone(), file: open(path)? },
        };
        *self.lock() = next;
        Ok(())
    }

    /// Opens the file again by its name. The old one is kept where that fails: better a line in a moved file than
    /// none.
    pub fn reopen(&self) -> io::Result<()> {
        if let Target::File { path, file } = &mut *self.lock() {
            *file = open(path)?;
        }
        Ok(())
    }

    /// A copy of the descriptor that is written to, for workers.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        match &*self.lock() {
            Target::Stderr => io::stderr().as_fd().try_clone_to_owned(),
            Target::File { file, .. } => file.as_fd().try_clone_to_owned(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Target> {
        // Nothing panics while it is held; and a log that was poisoned all the same must still log.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.lock() {
            Target::Stderr => io::stderr().write(bytes),
            Target::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A generation's access log. The master writes nothing to it.
pub struct AccessLog {
    target: AccessTarget,
    fd: OwnedFd,
}

impl AccessLog {
    pub fn open(target: &AccessTarget) -> io::Result<AccessLog> {
        Ok(AccessLog { target: target.clone(), fd: open_access(target)? })
    }

    /// As `LogFile::reopen`.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.fd = open_access(&self.target)?;
        Ok(())
    }
}

impl AsFd for AccessLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_access(target: &AccessTarget) -> io::Result<OwnedFd> {
    match target {
        AccessTarget::Stdout => io::stdout().as_fd().try_clone_to_owned(),
        AccessTarget::File(path) => open(path).map(OwnedFd::from),
    }
}

/// O_CLOEXEC is the standard library's own habit.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
