//! What the master's parts share: the machine's side of it, without the application's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use forkmaster_wire::handoff::Queue;
use mio::unix::SourceFd;
use mio::Interest;
use nix::fcntl::OFlag;

use crate::children::Children;
use crate::chores::Chores;
use crate::clock::Clock;
use crate::config::passed;
use crate::config::process_context::ProcessContext;
use crate::library::Library;
use crate::listeners::{self, Listeners};
use crate::logs::LogFile;
use crate::saved::Claims;
use crate::sources::{Sources, CHORES};

pub struct Shared {
    pub context: ProcessContext,
    pub sources: Sources,
    pub clock: Clock,
    pub chores: Chores,
    pub children: Children,
    pub listeners: Listeners,
    pub log: LogFile,
    pub library: Library,
    /// Workers of all generations give each other connections through it. The master keeps it open, so that what lies there
    /// is not lost while nobody receives.
    pub queue: Queue,
    /// Workers and templates hold the read end; its end-of-file tells them that the master is gone.
    pub lifeline: (OwnedFd, OwnedFd),
}

/// What workers of all generations hold as well.
pub struct Ends {
    pub queue: Queue,
    pub lifeline: (OwnedFd, OwnedFd),
}

impl Shared {
    pub fn new(context: ProcessContext, log: LogFile, library: Library) -> io::Result<Shared> {
        let lifeline = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?;
        let ends = Ends { queue: Queue::create()?, lifeline };
        let listeners = Listeners::new(passed::sockets(&context.environment, std::process::id()));
        Shared::with(context, log, library, Clock::new(), ends, listeners)
    }

    /// Of a process that was this one before an exec.
    pub fn restore(
        context: ProcessContext,
        log: LogFile,
        frozen: Duration,
        ends: Ends,
        listeners: listeners::saved::Saved,
        claims: &mut Claims,
    ) -> io::Result<Shared> {
        let passed = passed::sockets(&context.environment, std::process::id());
        let listeners = Listeners::restore(listeners, "listener", passed, claims)?;
        Shared::with(context, log, Library::embed()?, Clock::with_frozen(frozen), ends, listeners)
    }

    fn with(
        context: ProcessContext,
        log: LogFile,
        library: Library,
        clock: Clock,
        ends: Ends,
        listeners: Listeners,
    ) -> io::Result<Shared> {
        let (sources, chores) = (Sources::new()?, Chores::new()?);
        sources.registry().register(&mut SourceFd(&chores.as_raw_fd()), CHORES, Interest::READABLE)?;
        Ok(Shared {
            context,
            sources,
            chores,
            clock,
            children: Children::adopt_orphans()?,
            listeners,
            log,
            library,
            queue: ends.queue,
            lifeline: ends.lifeline,
        })
    }
}
