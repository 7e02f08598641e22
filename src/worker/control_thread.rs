//! The control thread: a native thread that watches the channel and the lifeline from a worker's first moment on, so that
//! the master is heard, and its end is noticed, however long a fork handler, the import or anybody else keeps Python's
//! lock. It never touches Python itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use forkmaster_wire::channel::Received;
use forkmaster_wire::message::{FromWorker, ToWorker};
use forkmaster_wire::text::cut_text;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::logger;
use crate::logs::Logs;
use crate::master_channel::MasterChannel;
use crate::native_threads::with_all_blocked;
use crate::stacks;

/// Without its master a worker is in nobody's books, and the next master wants the addresses: running requests
/// get this long.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the control thread. All signals are blocked in it: they belong to the main thread.
pub fn start(master: Arc<MasterChannel>, logs: Logs, lifeline: OwnedFd) -> io::Result<()> {
    with_all_blocked(|| {
        thread::Builder::new().name("fm-control".into()).spawn(move || watch(&master, logs, &lifeline))
    })?;
    Ok(())
}

fn watch(master: &Arc<MasterChannel>, logs: Logs, lifeline: &OwnedFd) {
    let dumping = Arc::new(AtomicBool::new(false));
    loop {
        let mut watched =
            [PollFd::new(master.as_fd(), PollFlags::POLLIN), PollFd::new(lifeline.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Out of kernel memory: without this thread the worker would outlive its master.
            Err(error) => {
                end(master, Some(&format!("the master's channel cannot be watched: {error}")));
            }
        }
        let [channel, lifeline] = watched.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        // Nothing is ever written to the lifeline: any event is its end.
        if lifeline {
            end(master, Some("the master is gone"));
        }
        if channel {
            receive(master, logs, &dumping);
        }
    }
}

/// Takes all messages that are there.
fn receive(master: &Arc<MasterChannel>, logs: Logs, dumping: &Arc<AtomicBool>) {
    loop {
        match master.receive() {
            Ok(Received::Message(ToWorker::Stacks { id }, _)) => dump_stacks(master, dumping, id),
            Ok(Received::Message(ToWorker::Probe, _)) => probe(master),
            Ok(Received::Message(ToWorker::Recall { requests, skip }, _)) => master.recall(requests, skip),
            Ok(Received::Message(ToWorker::Rehearse { number, request }, _)) => master.prompt.ask(number, request),
            Ok(Received::Message(ToWorker::Refused { text }, _)) => master.refusal.set(text),
            Ok(Received::Message(ToWorker::Logs, fds)) => logs.replace(&fds),
            Ok(Received::Message(ToWorker::Beside { generation, cells, threads, layout }, fds)) => {
                master.beside.hear(generation, cells, threads, layout, fds);
            }
            Ok(Received::Message(command, _)) => master.obey(command),
            Ok(Received::Empty) => return,
            Ok(Received::Eof) => end(master, None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A message of a later version: after an upgrade in place the master's is another one. What it must be sure of is
            // answered, and what a worker does not know it does without.
            Err(error) if error.kind() == io::ErrorKind::Other => {
                log::debug!("a message of the master was not understood, as after an upgrade: {error}");
            }
            // The application has closed descriptors that are not its own: the master is not heard any more.
            Err(error) => {
                end(master, Some(&format!("the master's channel is lost: {error}")));
            }
        }
    }
}

/// On a thread of its own, since it waits for the interpreter's lock; one at a time, since that may take for ever.
fn dump_stacks(master: &Arc<MasterChannel>, dumping: &Arc<AtomicBool>, id: u64) {
    if dumping.swap(true, Ordering::Relaxed) {
        return;
    }
    let (master, done) = (Arc::clone(master), Arc::clone(dumping));
    let dump = move || {
        let text = stacks::all_threads();
        // First, so that whoever has the answer may ask again.
        done.store(false, Ordering::Relaxed);
        if let Some(text) = text {
            master.tell(&FromWorker::Stacks { id, text: cut_text(&text) });
        }
    };
    if let Err(error) = thread::Builder::new().name("fm-stacks".into()).spawn(dump) {
        dumping.store(false, Ordering::Relaxed);
        log::error!("no thread for the stacks: {error}");
    }
}

/// On a thread of its own, since the application may take its time. The master asks once, and has a deadline for it.
fn probe(master: &Arc<MasterChannel>) {
    let asked = Arc::clone(master);
    if let Err(error) = thread::Builder::new().name("fm-probe".into()).spawn(move || asked.probe()) {
        log::error!("no thread for the probe: {error}");
    }
}

/// There is no master any more. What is running may finish within the time limit; then the process ends, also where
/// Python is stuck or its exit handlers are. None: the master has closed the channel, and knows what it did.
fn end(master: &MasterChannel, reason: Option<&str>) -> ! {
    if let Some(handle) = master.handle() {
        // A worker that has never served has nothing to finish, and nobody misses it.
        if let Some(reason) = reason.filter(|_| master.has_served()) {
            log::warn!("{reason}; ending");
        }
        handle.orphaned();
        // Not a wait for something: the process normally ends by itself meanwhile.
        thread::sleep(ORPHAN_TIMEOUT);
    }
    logger::finish();
    // SAFETY: ends the process without running anything.
    unsafe { libc::_exit(0) }
}
