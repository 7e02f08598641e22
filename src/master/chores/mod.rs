//! What may wait, and how long: reading the configuration (NSS, NFS) and opening logs. The loop gives it away and goes
//! on; the start, which has no loop yet, waits for it and for a signal to stop.

pub mod gauges;
mod history;
mod page;
mod pool;
mod removals;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, Page};
use forkmaster_wire::mutant::{self, Mutant};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::config::again::{self, Barred};
use crate::config::change::Fixed;
use crate::config::problem::Problems;
use crate::config::process_context::ProcessContext;
use crate::config::settings::{AccessTarget, App, LogTarget};
use crate::config::{self, Loaded, Source};
use crate::facts::history::Entry;
use crate::files::Made;
use crate::logs::{self, AccessLog, ErrorLog, Named, NotOpened, Opened};
use crate::signals::Signals;

use gauges::Gauges;
use pool::Pool;
pub use pool::{ChoreId, NotDone};
use removals::Removals;

/// A directory service that does not answer in this time will not do so in another (nss_ldap's own limit is 30 s).
pub const CONFIGURATION_WITHIN: Duration = Duration::from_secs(30);

pub const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// Everything that the loop has done by a thread.
pub enum Chore {
    ReadConfiguration(Box<Reading>),
    /// Whether what an earlier generation was made of is still there.
    FindAgain(Box<Result<Loaded, Problems>>),
    /// Those of a new generation.
    OpenLogs {
        error: Named<LogTarget>,
        access: Option<Named<AccessTarget>>,
    },
    /// All that there are, again by their names.
    ReopenLogs {
        error: Option<Named<LogTarget>>,
        access: Vec<(GenerationId, Named<AccessTarget>)>,
    },
    /// What a reload that was refused has made.
    Remove(Vec<Made>),
    /// What earlier masters remember of deploys, also of the release that is started.
    ReadHistory {
        path: PathBuf,
        app: Box<App>,
    },
    /// Lines for them.
    KeepHistory {
        path: PathBuf,
        lines: Vec<String>,
    },
    /// What clients are shown during a maintenance.
    ReadPage(PathBuf),
    /// Of a process that is gone.
    RemoveGauges {
        gauges: Gauges,
        pid: i32,
    },
}

/// What the configuration is read from.
pub struct Reading {
    pub source: Source,
    pub context: ProcessContext,
    pub fixed: Option<Fixed>,
    /// A release that it must not lead to.
    pub barred: Option<Barred>,
}

pub enum Done {
    Configuration(Box<Result<Loaded, Problems>>),
    Logs(Result<Opened, NotOpened>),
    Reopened(Reopened),
    Removed,
    HistoryRead { entries: Vec<Entry>, warning: Option<String> },
    HistoryKept(io::Result<()>),
    Page(Result<Page, String>),
}

pub struct Reopened {
    pub error: Option<io::Result<ErrorLog>>,
    pub access: Vec<(GenerationId, io::Result<AccessLog>)>,
}

pub struct Chores {
    pool: Pool<Done>,
    removals: Removals,
}

impl Chores {
    pub fn new() -> io::Result<Chores> {
        Ok(Chores { pool: Pool::new()?, removals: Removals::default() })
    }

    pub fn give(&mut self, chore: Chore, now: Instant) -> ChoreId {
        let (what, within) = match &chore {
            Chore::ReadConfiguration(_) => ("reading the configuration", CONFIGURATION_WITHIN),
            Chore::FindAgain(_) => ("looking for the earlier release", CONFIGURATION_WITHIN),
            Chore::OpenLogs { .. } => ("opening the logs", OPEN_WITHIN),
            Chore::ReopenLogs { .. } => ("opening the logs again", OPEN_WITHIN),
            Chore::Remove(_) => ("removing new logs", OPEN_WITHIN),
            Chore::ReadHistory { .. } => ("reading the history", OPEN_WITHIN),
            Chore::KeepHistory { .. } => ("writing the history", OPEN_WITHIN),
            Chore::ReadPage(_) => ("reading the page", OPEN_WITHIN),
            Chore::RemoveGauges { .. } => ("removing live gauges", OPEN_WITHIN),
        };
        let chore = match chore {
            Chore::Remove(made) => {
                self.removals.add(made);
                Chore::Remove(Vec::new())
            }
            Chore::ReadConfiguration(_)
            | Chore::FindAgain(_)
            | Chore::OpenLogs { .. }
            | Chore::ReopenLogs { .. }
            | Chore::ReadHistory { .. }
            | Chore::KeepHistory { .. }
            | Chore::ReadPage(_)
            | Chore::RemoveGauges { .. } => chore,
        };
        let removals = self.removals.clone();
        self.pool.give(what, within, now, move || chore.carry_out(&removals))
    }

    /// The next result, or what was given up; to be called until there is none.
    pub fn done(&mut self, now: Instant) -> Option<(ChoreId, Result<Done, NotDone>)> {
        self.pool.done(now)
    }

    /// What is being done, and since when; None as the time: for too long.
    pub fn busy(&self) -> Option<(&'static str, Option<Instant>)> {
        self.pool.busy()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.pool.next_deadline()
    }
}

/// Readable when something is done.
impl AsRawFd for Chores {
    fn as_raw_fd(&self) -> RawFd {
        self.pool.as_fd().as_raw_fd()
    }
}

impl Chore {
    fn carry_out(self, removals: &Removals) -> Done {
        match self {
            Chore::ReadConfiguration(reading) => {
                assert!(!mutant::is(Mutant::ReadingPanics), "as the mutant wants it");
                let Reading { source, context, fixed, barred } = *reading;
                let read = config::read(&source, &context, fixed.as_ref());
                let allowed = |loaded| again::check_barred(loaded, barred.as_ref());
                Done::Configuration(Box::new(read.and_then(allowed)))
            }
            Chore::FindAgain(found) => Done::Configuration(Box::new(found.and_then(again::still_there))),
            Chore::OpenLogs { error, access } => {
                removals.carry_out();
                Done::Logs(logs::open(&error, access.as_ref()))
            }
            Chore::ReopenLogs { error, access } => {
                removals.carry_out();
                Done::Reopened(Reopened {
                    error: error.map(|named| ErrorLog::open(&named)),
                    access: access.into_iter().map(|(id, named)| (id, AccessLog::open(&named))).collect(),
                })
            }
            Chore::Remove(_) => {
                removals.carry_out();
                Done::Removed
            }
            Chore::ReadHistory { path, app } => {
                let entries = history::read(&path);
                let warning = again::rolled_back_before(&app, &entries);
                Done::HistoryRead { entries, warning }
            }
            Chore::KeepHistory { path, lines } => Done::HistoryKept(history::keep(&path, &lines)),
            Chore::ReadPage(path) => Done::Page(page::read(&path)),
            Chore::RemoveGauges { gauges, pid } => {
                gauges.remove(Some(pid));
                Done::Removed
            }
        }
    }
}

/// Why the start goes on without a result.
pub enum NotStarted {
    /// TERM, INT or QUIT came first.
    Stopped,
    NotDone(NotDone),
}

/// Something that is done before there is a loop.
pub struct AtStart<D> {
    what: &'static str,
    /// An error: it could not even be begun.
    pool: io::Result<Pool<D>>,
}

impl<D: Send + 'static> AtStart<D> {
    pub fn begin(what: &'static str, within: Duration, work: impl FnOnce() -> D + Send + 'static) -> AtStart<D> {
        let pool = Pool::new().map(|mut pool| {
            pool.give(what, within, Instant::now(), work);
            pool
        });
        AtStart { what, pool }
    }

    /// Waits for it, and for a signal to stop.
    pub fn wait(self, signals: &mut Signals) -> Result<D, NotStarted> {
        let what = self.what;
        let mut pool = self.pool.map_err(|error| NotStarted::NotDone(NotDone(format!("{what}: {error}"))))?;
        loop {
            match pool.done(Instant::now()) {
                Some((_, done)) => return done.map_err(NotStarted::NotDone),
                None if signals.stop_is_asked() => return Err(NotStarted::Stopped),
                None => {}
            }
            let left = pool.next_deadline().map(|by| by.saturating_duration_since(Instant::now()));
            // Rounded up, so that it does not wake a moment too early again and again.
            let timeout = left.and_then(|left| PollTimeout::try_from(left + Duration::from_millis(1)).ok());
            let mut fds =
                [PollFd::new(pool.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            // Whatever it says, all of it is looked at again.
            let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX));
        }
    }
}
