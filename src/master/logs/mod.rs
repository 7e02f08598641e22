//! The logs: stderr and stdout, or files that are opened again by name on USR1, so that logrotate can move them away.
//! Only the master opens them, since workers may not be allowed to; they get the descriptors. A line is one write(2)
//! at the file's end (O_APPEND), so that lines of several processes do not mix. Whoever logs never waits: `writer`
//! has a queue and a thread of its own.

mod outlet;
pub mod saved;
mod writer;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forkmaster_wire::log_line::{self, LineForm, Severity};
use forkmaster_wire::message::LogLevel;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};

use crate::config::settings::{AccessTarget, Identity, LogTarget, Settings};
use crate::exit_code::ExitCode;
use crate::files::{self, Appended, Made, Node, Rights};

use outlet::Outlet;
use writer::Writer;

/// The last words of a process may take so long, where nobody reads them.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(200);

/// A handle to the running log; cheap to clone.
#[derive(Clone)]
pub struct LogFile {
    writer: Writer,
    current: Arc<Mutex<Arc<ErrorLog>>>,
}

/// Where error lines go: opened, by whoever may wait for that.
pub struct ErrorLog {
    pub named: Named<LogTarget>,
    outlet: Arc<Outlet>,
    /// A FIFO's (`files::Appended`).
    reader: Option<OwnedFd>,
    /// None: it is to stay, or was there before.
    pub made: Option<Made>,
    pub node: Option<Node>,
}

/// What is opened again by its name, and with whose rights where it is the application's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named<T> {
    pub target: T,
    pub application: Option<Rights>,
}

impl ErrorLog {
    pub fn open(named: &Named<LogTarget>) -> io::Result<ErrorLog> {
        let (named, stderr) = (named.clone(), io::stderr());
        Ok(match &named.target {
            LogTarget::Stderr => {
                let outlet = Arc::new(Outlet::new(stderr.as_fd().try_clone_to_owned()?));
                ErrorLog { named, outlet, reader: None, made: None, node: None }
            }
            LogTarget::File(path) => {
                let Appended { file, reader, made, node } = files::append(path, named.application.as_ref())?;
                ErrorLog { named, outlet: Arc::new(Outlet::new(file)), reader, made, node: Some(node) }
            }
        })
    }
}

/// The logs of a new generation.
pub struct Opened {
    /// None: it stays as it is.
    pub error: Option<ErrorLog>,
    pub access: Option<AccessLog>,
}

impl Opened {
    /// Files that were made for it are to stay, whatever comes.
    pub fn keep(&mut self) {
        let error = self.error.as_mut().and_then(|log| log.made.take());
        let access = self.access.as_mut().and_then(|log| log.made.take());
        error.into_iter().chain(access).for_each(Made::keep);
    }
}

/// A log that cannot be opened: the one rule for both is that there is no such generation.
pub struct NotOpened {
    /// As the settings call it.
    log: String,
    error: io::Error,
}

impl NotOpened {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::of(&self.error)
    }
}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be opened: {}", self.log, self.error)
    }
}

/// What the settings call the logs.
pub fn names(settings: &Settings) -> (Named<LogTarget>, Option<Named<AccessTarget>>) {
    let application = settings.server.identity.as_ref().map(Identity::rights);
    let access = settings.log.access.clone().map(|target| Named { target, application: application.clone() });
    (Named { target: settings.log.error.clone(), application }, access)
}

/// Opens the logs of a new generation.
pub fn open(error: &Named<LogTarget>, access: Option<&Named<AccessTarget>>) -> Result<Opened, NotOpened> {
    let not_opened = |key: &str, path: Option<&Path>, error| {
        let path = path.map(|path| format!(" {}", path.display())).unwrap_or_default();
        NotOpened { log: format!("[log] {key}{path}"), error }
    };
    let error = ErrorLog::open(error).map_err(|failed| not_opened("error", error.target.path(), failed))?;
    let open = |access: &Named<AccessTarget>| {
        AccessLog::open(access).map_err(|failed| not_opened("access", access.target.path(), failed))
    };
    let access = access.map(open).transpose()?;
    Ok(Opened { error: Some(error), access })
}

impl LogFile {
    /// Starts logging to stderr. Called once, before anything is known of the settings.
    pub fn start() -> io::Result<LogFile> {
        let log = ErrorLog::open(&Named { target: LogTarget::Stderr, application: None })?;
        let writer = Writer::start(Arc::clone(&log.outlet))?;
        // It lives as long as the process.
        log::set_logger(Box::leak(Box::new(Lines(writer.clone()))))
            .map_err(|error| io::Error::other(error.to_string()))?;
        log::set_max_level(LevelFilter::Info);
        let log = LogFile { writer, current: Arc::new(Mutex::new(Arc::new(log))) };
        log.tell_of_panics();
        Ok(log)
    }

    pub fn set_level(&self, level: LogLevel) {
        log::set_max_level(match level {
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        });
    }

    /// Lines look like this from now on.
    pub fn set_form(&self, form: LineForm) {
        log_line::set_form(form);
    }

    /// Lines from now on go there.
    pub fn turn_to(&self, log: ErrorLog) {
        self.writer.turn_to(Arc::clone(&log.outlet));
        *self.lock() = Arc::new(log);
    }

    /// Device and inode of the file, where it is one.
    pub fn node(&self) -> Option<Node> {
        self.lock().node
    }

    /// What a reopening opens.
    pub fn named(&self) -> Named<LogTarget> {
        self.lock().named.clone()
    }

    /// A copy of the descriptor that is written to, for workers.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        self.lock().outlet.as_fd().try_clone_to_owned()
    }

    /// Writes what can be written in a moment. Nothing is logged after it.
    pub fn finish(&self) {
        self.writer.finish(LAST_WORDS_WITHIN);
    }

    /// Writes what can be written in a moment, and goes on. False: there is more.
    pub fn flush(&self) -> bool {
        self.writer.flush(LAST_WORDS_WITHIN)
    }

    /// The standard library's own hook would write to stderr and wait for its reader. The log goes on: only a panic of the main
    /// thread ends the process.
    fn tell_of_panics(&self) {
        let writer = self.writer.clone();
        std::panic::set_hook(Box::new(move |panic| {
            log::error!("{panic}\n{}", std::backtrace::Backtrace::capture());
            // What has no room in this time is written later, or is lost with the process.
            writer.flush(LAST_WORDS_WITHIN);
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Arc<ErrorLog>> {
        // Nothing panics while it is held; and a log that was poisoned all the same must still log.
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn line(level: Level, text: impl fmt::Display) -> String {
    let severity = match level {
        Level::Error => Severity::Error,
        Level::Warn => Severity::Warn,
        Level::Info => Severity::Info,
        Level::Debug => Severity::Debug,
        Level::Trace => Severity::Trace,
    };
    log_line::line(severity, text)
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
            self.0.line(line(record.level(), record.args()).into_bytes());
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

/// A generation's access log. The master writes only what no worker can: `LastLines`.
pub struct AccessLog {
    pub named: Named<AccessTarget>,
    fd: OwnedFd,
    /// A FIFO's (`files::Appended`).
    reader: Option<OwnedFd>,
    /// None: it is to stay, or was there before.
    pub made: Option<Made>,
    pub node: Option<Node>,
}

impl AccessLog {
    pub fn open(named: &Named<AccessTarget>) -> io::Result<AccessLog> {
        let named = named.clone();
        Ok(match &named.target {
            AccessTarget::Stdout => {
                let fd = io::stdout().as_fd().try_clone_to_owned()?;
                AccessLog { named, fd, reader: None, made: None, node: None }
            }
            AccessTarget::File(path) => {
                let Appended { file, reader, made, node } = files::append(path, named.application.as_ref())?;
                AccessLog { named, fd: file, reader, made, node: Some(node) }
            }
        })
    }
}

impl AsFd for AccessLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Writes the lines of requests whose workers are gone to their access logs. Most services never need it, so its thread
/// starts with the first line.
#[derive(Default)]
pub struct LastLines(Option<Writer>);

impl LastLines {
    pub fn write(&mut self, log: &AccessLog, lines: &[u8]) -> io::Result<()> {
        let outlet = Arc::new(Outlet::new(log.fd.try_clone()?));
        match &self.0 {
            Some(writer) => writer.turn_to(outlet),
            None => self.0 = Some(Writer::start(outlet)?),
        }
        if let Some(writer) = &self.0 {
            lines.split_inclusive(|byte| *byte == b'\n').for_each(|line| writer.line(line.to_vec()));
        }
        Ok(())
    }

    /// As `LogFile::flush`.
    pub fn flush(&self) -> bool {
        self.0.as_ref().is_none_or(|writer| writer.flush(LAST_WORDS_WITHIN))
    }

    /// As `LogFile::finish`.
    pub fn finish(&self) {
        if let Some(writer) = &self.0 {
            writer.finish(LAST_WORDS_WITHIN);
        }
    }
}
