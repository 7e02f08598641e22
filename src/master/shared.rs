//! What the master's parts share: the machine's side of it, without the application's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

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
use crate::listeners::Listeners;
use crate::logs::LogFile;
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

impl Shared {
    pub fn new(context: ProcessContext, log: LogFile) -> io::Result<Shared> {
        let (sources, chores) = (Sources::new()?, Chores::new()?);
        sources.registry().register(&mut SourceFd(&chores.as_raw_fd()), CHORES, Interest::READABLE)?;
        let passed = passed::sockets(&context.environment, std::process::id());
        Ok(Shared {
            context,
            sources,
            chores,
            clock: Clock::new(),
            children: Children::adopt_orphans()?,
            listeners: Listeners::new(passed),
            log,
            library: Library::embed()?,
            queue: Queue::create()?,
            lifeline: nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from)?,
        })
    }
}
