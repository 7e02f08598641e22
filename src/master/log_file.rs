//! Where the master's log lines go: stderr, or a file that is opened again by name on USR1, so that logrotate can
//! move it away. A line is one write(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use forkmaster_wire::message::LogLevel;
use log::LevelFilter;

use crate::config::settings::LogTarget;

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

/// O_CLOEXEC is the standard library's own habit.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}
