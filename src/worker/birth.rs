//! How a worker comes into the world: what it is born with, and its first acts, which run before any Python does: it
//! says Hello, and ties itself to its master. From then on neither a fork handler of the application nor an import can
//! make it outlive the master, or keep the master from hearing of it.
//!
//! Nothing in here touches Python or takes a lock that another thread of the template could have held at the fork.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use forkmaster_wire::channel::Channel;
use forkmaster_wire::handoff::Queue;
use forkmaster_wire::limits;
use forkmaster_wire::message::{Boot, FromWorker, ProofStep, Spawn};
use nix::errno::Errno;

use crate::failure::failure;
use crate::logs::Logs;
use crate::master_channel::MasterChannel;
use crate::title::Title;
use crate::{control_thread, logger};

/// `Spawn`, the descriptors that travelled with it, and the template's logs.
pub struct Birth {
    spawn: Spawn,
    channel: Channel,
    logs: Logs,
    scoreboard: OwnedFd,
    stacks: OwnedFd,
    queue: Queue,
    listeners: Vec<OwnedFd>,
}

/// What a template keeps for the worker that it becomes in a fork.
pub struct Legacy {
    pub title: Title,
    pub lifeline: OwnedFd,
    /// The number that faulthandler writes stacks to.
    pub stacks: RawFd,
}

/// A worker that has introduced itself.
pub struct Born {
    pub spawn: Spawn,
    pub master: Arc<MasterChannel>,
    pub logs: Logs,
    pub scoreboard: OwnedFd,
    pub queue: Queue,
    pub listeners: Vec<OwnedFd>,
    /// Descriptors that belong to the worker and not to a child that the application forks.
    pub own: Vec<RawFd>,
    pub since: Instant,
}

impl Birth {
    pub fn new(spawn: Spawn, fds: Vec<OwnedFd>, logs: Logs) -> Result<Birth, String> {
        let (expected, came) = (5 + spawn.listeners.len(), fds.len());
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next(), fds.next(), fds.next(), fds.next()) {
            (Some(channel), Some(scoreboard), Some(stacks), Some(sender), Some(receiver)) if came == expected => {
                let (queue, listeners) = (Queue::from_ends(sender, receiver), fds.collect());
                Ok(Birth { spawn, channel: channel.into(), logs, scoreboard, stacks, queue, listeners })
            }
            (_, _, _, _, _) => Err(format!("{came} file descriptors came with Spawn, not {expected}")),
        }
    }

    /// The first acts of the new process.
    pub fn begin(self, boot: &Boot, legacy: Legacy) -> Born {
        let since = Instant::now();
        let Birth { spawn, channel, logs, scoreboard, stacks, queue, listeners } = self;
        let Legacy { title, lifeline, stacks: stacks_number } = legacy;
        let who = format!("forkmaster: {} worker gen={} slot={}", boot.name, spawn.generation, spawn.slot);
        let master = Arc::new(MasterChannel::new(channel, title, who));
        master.tell(&FromWorker::Hello { pid: std::process::id() as i32 });
        // faulthandler knows the template's number and has its handler: so it works in a worker from here on.
        // SAFETY: replaces a descriptor of ours by another one.
        let replaced = unsafe { libc::dup3(stacks.as_raw_fd(), stacks_number, libc::O_CLOEXEC) };
        if let Err(error) = Errno::result(replaced) {
            log::error!("stacks will go to the template's place: {error}");
        }
        let mut own = vec![master.as_raw_fd(), lifeline.as_raw_fd(), stacks_number, scoreboard.as_raw_fd()];
        own.extend(queue.ends().map(|end| end.as_raw_fd()));
        own.extend(logs.access());
        if let Err(error) = control_thread::start(Arc::clone(&master), logs, lifeline) {
            // Untied it would hold the listeners when its master is gone.
            let reason = format!("the control thread: {}", limits::explain(&error));
            master.tell(&FromWorker::Failed(failure(ProofStep::Start, reason, "")));
            // SAFETY: ends the process without running anything.
            unsafe { libc::_exit(1) }
        }
        logger::queue_lines();
        Born { spawn, master, logs, scoreboard, queue, listeners, own, since }
    }
}
