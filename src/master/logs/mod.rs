//! The logs: stderr and stdout, or files that are opened again by name on USR1, so that logrotate can move them away.
//! Only the master opens them, since workers may not be allowed to; they get the descriptors. A line is one write(2)
//! at the file's end (O_APPEND), so that lines of several processes do not mix. Whoever logs never waits: `writer`
//! has a queue and a thread of its own.

mod outlet;
mod writer;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forkmaster_wire::message::LogLevel;
use log::{LevelFilter, Log, Metadata, Record};

use crate::config::settings::{AccessTarget, LogTarget};

use outlet::Outlet;
use writer::Writer;

/// The last words of a process may take so long, where nobody reads them.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);

/// A handle to the running log; cheap to clone.
#[derive(Clone)]
pub struct LogFile {
    writer: Writer,
    current: Arc<Mutex<Current>>,
}

/// Where lines go now.
struct Current {
    target: LogTarget,
    outlet: Arc<Outlet>,
}

impl LogFile {
    /// Starts logging to stderr. Called once, before anything is known of the settings.
    pub fn start() -> io::Result<LogFile> {
        let outlet = Arc::new(open_outlet(&LogTarget::Stderr)?);
        let writer = Writer::start(Arc::clone(&outlet))?;
        // It lives as long as the process.
        log::set_logger(Box::leak(Box::new(Lines(writer.clone()))))
            .map_err(|error| io::Error::other(error.to_string()))?;
        log::set_max_level(LevelFilter::Info);
        let current = Arc::new(Mutex::new(Current { target: LogTarget::Stderr, outlet }));
        let log = LogFile { writer, current };
        log.tell_of_panics();
        Ok(log)
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
        self.turn_to(target.clone(), open_outlet(target)?);
        Ok(())
    }

    /// Opens the file again by its name; false where there is none. The old one is kept where that fails: better a
    /// line in a moved file than none.
    pub fn reopen(&self) -> io::Result<bool> {
        let target = self.lock().target.clone();
        if target == LogTarget::Stderr {
            return Ok(false);
        }
        let outlet = open_outlet(&target)?;
        self.turn_to(target, outlet);
        Ok(true)
    }

    /// A copy of the descriptor that is written to, for workers.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        self.lock().outlet.as_fd().try_clone_to_owned()
    }

    /// Writes what can be written in a moment. Nothing is logged after it.
    pub fn finish(&self) {
        self.writer.finish(LAST_WORDS_WITHIN);
    }

    fn turn_to(&self, target: LogTarget, outlet: Outlet) {
        let outlet = Arc::new(outlet);
        self.writer.turn_to(Arc::clone(&outlet));
        *self.lock() = Current { target, outlet };
    }

    /// The standard library's own hook would write to stderr and wait for its reader.
    fn tell_of_panics(&self) {
        let writer = self.writer.clone();
        std::panic::set_hook(Box::new(move |panic| {
            log::error!("{panic}\n{}", std::backtrace::Backtrace::capture());
            writer.finish(LAST_WORDS_WITHIN);
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // Nothing panics while it is held; and a log that was poisoned all the same must still log.
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The `log` crate's macros end here.
struct Lines(Writer);

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The level is `log::max_level`. Others' details (mio tells of each registration) are not ours to print.
        metadata.level() <= LevelFilter::Info || metadata.target().starts_with("forkmaster")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut line = String::with_capacity(160);
            forkmaster_wire::timestamp::push_now(&mut line);
            line.push_str(&format!(" {:<5} {}\n", record.level(), record.args()));
            self.0.line(line.into_bytes());
        }
    }

    fn flush(&self) {}
}

/// Says to stderr why there is no start. It does not wait longer than a moment for a reader.
pub fn say(text: &str) {
    if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
        writer::write_within(stderr, format!("{text}\n").as_bytes(), LAST_WORDS_WITHIN);
    }
}

fn open_outlet(target: &LogTarget) -> io::Result<Outlet> {
    Ok(Outlet::new(match target {
        LogTarget::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
        LogTarget::File(path) => open(path)?.into(),
    }))
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
