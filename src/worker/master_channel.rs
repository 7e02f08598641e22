//! The worker's side of its master: what it tells, and the commands it gets. Commands that come before there is
//! a server (during the import) wait here for it.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use forkmaster_http::serve::{Handle, Page, Reports};
use forkmaster_wire::channel::{Channel, Received};
use forkmaster_wire::message::{Failure, FromWorker, ListenerId, ProofStep, ToWorker};
use forkmaster_wire::mutant::{self, Mutant};

use crate::beside::Beside;
use crate::development::Refusal;
use crate::failure::failure;
use crate::recall::Recall;
use crate::rehearsal::Prompt;
use crate::sockets;
use crate::title::Title;

/// None: the application has answered as it should.
pub type Prober = Box<dyn Fn() -> Option<Failure> + Send + Sync>;

pub struct MasterChannel {
    channel: Channel,
    title: Title,
    /// `forkmaster: shop worker gen=3 slot=1`; the state follows.
    who: String,
    /// Commands that wait for the server.
    waiting: Mutex<Vec<ToWorker>>,
    /// Set once, when the server is there. Apart from the mutex, since a forked child must not take locks that
    /// another thread may have held at the fork.
    handle: OnceLock<Handle>,
    served: AtomicBool,
    /// Sends the probe once more. Set once, before `Ready`.
    prober: OnceLock<Prober>,
    pub refusal: Refusal,
    pub beside: Arc<Beside>,
    /// What it has answered of late. Set once; never where nobody will ask.
    recall: OnceLock<Arc<Recall>>,
    pub prompt: Prompt,
    /// What the channel's number means as long as nobody else has closed it.
    identity: Option<u64>,
}

impl MasterChannel {
    pub fn new(channel: Channel, title: Title, who: String) -> MasterChannel {
        let identity = sockets::identity(channel.as_raw_fd());
        let (waiting, handle, served) = (Mutex::default(), OnceLock::new(), AtomicBool::new(false));
        let (refusal, prober, recall) = (Refusal::default(), OnceLock::new(), OnceLock::new());
        let (prompt, beside) = (Prompt::default(), Arc::default());
        let master = MasterChannel {
            channel,
            title,
            who,
            waiting,
            handle,
            served,
            refusal,
            beside,
            prober,
            recall,
            prompt,
            identity,
        };
        master.show("starting");
        master
    }

    /// Sends without waiting. A master that is gone is noticed by the control thread.
    pub fn tell(&self, message: &FromWorker) {
        match self.channel.send(message, &[]) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(error) => log::error!("the master cannot be told {message:?}: {error}"),
        }
    }

    /// False: the application has closed it, and the number may be another file's by now.
    pub fn is_open(&self) -> bool {
        self.identity.is_some() && sockets::identity(self.channel.as_raw_fd()) == self.identity
    }

    /// It was told to serve at least once.
    pub fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    pub fn receive(&self) -> std::io::Result<Received<ToWorker>> {
        self.channel.receive_large(false)
    }

    /// Shows a state in the process title.
    pub fn show(&self, state: &str) {
        self.title.set(&format!("{} {state}", self.who));
    }

    /// Carries out a command, or keeps it until there is a server.
    pub fn obey(&self, command: ToWorker) {
        let mut waiting = self.waiting();
        match self.handle.get() {
            Some(handle) => obey(handle, command),
            None => waiting.push(command),
        }
    }

    /// The server is there.
    pub fn serve_with(&self, handle: Handle) {
        let mut waiting = self.waiting();
        for command in waiting.drain(..) {
            obey(&handle, command);
        }
        // Called once in the life of a worker.
        let _ = self.handle.set(handle);
    }

    /// The application is there.
    pub fn probe_with(&self, prober: Prober) {
        // Called once in the life of a worker.
        let _ = self.prober.set(prober);
    }

    /// Sends the probe once more and tells what came of it. Waits for the interpreter's lock and for the application.
    pub fn probe(&self) {
        let failure = match self.prober.get() {
            Some(prober) => prober(),
            None => Some(failure(ProofStep::Probe, "there is no application yet", "")),
        };
        self.tell(&FromWorker::Probed { failure });
    }

    pub fn recall_from(&self, recall: Arc<Recall>) {
        // Called once in the life of a worker.
        let _ = self.recall.set(recall);
    }

    /// Tells what this worker has answered of late.
    pub fn recall(&self, requests: u32, skip: u32) {
        let latest = self.recall.get().map(|recall| recall.latest(requests, skip, Instant::now()));
        let (requests, more) = latest.unwrap_or_default();
        self.tell(&FromWorker::Remembered { requests, more });
    }

    pub fn handle(&self) -> Option<&Handle> {
        self.handle.get()
    }

    /// The worker wants to end, and drains when its master says so: who takes its connections, the master knows. False:
    /// there is no server yet, so there is nothing to finish either.
    pub fn leave(&self, reason: &str) -> bool {
        let serves = self.handle.get().is_some();
        if serves {
            self.tell(&FromWorker::Leaving { reason: reason.to_owned() });
        }
        serves
    }

    /// The title of a child that the application forked.
    pub fn show_child(&self) {
        self.title.set_if_free(&format!("{} child", self.who));
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<ToWorker>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl AsFd for MasterChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl AsRawFd for MasterChannel {
    fn as_raw_fd(&self) -> i32 {
        self.channel.as_raw_fd()
    }
}

impl Reports for MasterChannel {
    fn serving(&self) {
        self.served.store(true, Ordering::Relaxed);
        self.show("serving");
        self.tell(&FromWorker::Serving);
    }

    fn draining(&self) {
        self.show("draining");
        self.tell(&FromWorker::Draining);
    }

    fn paused(&self) {
        self.show("paused");
        self.tell(&FromWorker::Paused);
    }

    fn maintenance(&self) {
        self.show("maintenance");
    }
}

fn obey(handle: &Handle, command: ToWorker) {
    let ids = |listeners: Vec<ListenerId>| listeners.into_iter().map(|listener| listener.0).collect();
    match command {
        ToWorker::Serve => handle.serve(),
        ToWorker::Drain { .. } if mutant::is(Mutant::DrainClosesIdle) => handle.stop(Duration::ZERO),
        ToWorker::Drain { keep, yields: true } if keep.is_empty() => handle.yield_to_successors(),
        ToWorker::Drain { keep, .. } => handle.drain(ids(keep)),
        ToWorker::CloseListeners { listeners } => handle.close_listeners(ids(listeners)),
        ToWorker::StandAside => handle.stand_aside(),
        ToWorker::Stop { idle_ms } => handle.stop(Duration::from_millis(idle_ms)),
        ToWorker::Retire => handle.retire(),
        ToWorker::Pause => handle.pause(),
        ToWorker::Maintenance { page } => handle.maintenance(
            page.map(|page| Page { content_type: page.content_type.into_bytes(), body: page.body.into_bytes() }),
        ),
        ToWorker::Overdue { request } => handle.overdue(request),
        ToWorker::Look => handle.look(),
        // Dealt with by the control thread, with or without a server.
        ToWorker::Probe
        | ToWorker::Beside { .. }
        | ToWorker::Recall { .. }
        | ToWorker::Rehearse { .. }
        | ToWorker::Stacks { .. }
        | ToWorker::Refused { .. }
        | ToWorker::Logs => {}
    }
}
