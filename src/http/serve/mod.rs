//! The server of one process: an event loop and `threads` app threads that pull complete requests from it. Whichever
//! of them is free runs the loop, or the monitor thread while all are in the application (`leader`).
//!
//! The application's side pulls (`AppThread::poll`, `AppThread::wait`) rather than being called, because the
//! caller knows when its interpreter lock must be given up: never around `poll`, always around `wait`.

mod base;
mod conn;
mod event_loop;
mod io;
mod run;

#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};

use base::names::Token;
use event_loop::listeners::Listeners;
use event_loop::mailbox::Notice;
use event_loop::mode::Command;
use event_loop::shared::Shared;
use event_loop::EventLoop;
use io::epoll::{Epoll, Interest};
use run::leader::Leader;
use run::monitor::{run_monitor, Patience};

pub use crate::proto::proxy::ProxyVersion;
pub use crate::proto::response::EarlyHints;
pub use crate::proto::syntax::is_request_id;
pub use crate::proto::Version;
pub use base::address::{Local, Peer};
pub use base::handoff::{Given, HandoffQueue, Luggage, Taken};
pub use base::observers::{Ending, Giving, HandoffRefusal, How, Metrics, Reports};
pub use base::piece::Piece;
pub use base::refused::{FirstLine, Refused, Why};
pub use base::settings::{IsProxy, QueueLimit, Settings, StreamBodies, LIVE_BYTES_PER_S_MIN};
pub use event_loop::listeners::{Listener, Proxy};
pub use event_loop::maintenance::Page;
pub use run::app_thread::{AppThread, Wake};
pub use run::exchange::{BadResponse, Body, Exchange, InHand, Written};
pub use run::live_input::{LiveInput, Read};

pub struct Server {
    shared: Arc<Shared>,
    event_loop: EventLoop,
}

/// Commands to a running server from any thread; wakes the loop.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Server {
    /// Makes the loop's own things (epoll, eventfds, connection table). Nothing runs yet. Call after the last
    /// fork. The listeners must be non-blocking.
    pub fn new(
        settings: Settings,
        listeners: Vec<Listener>,
        queue: Option<Box<dyn HandoffQueue>>,
        metrics: Arc<dyn Metrics>,
        reports: Arc<dyn Reports>,
    ) -> std::io::Result<Server> {
        if settings.threads == 0 || settings.connections == 0 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "threads and connections must be at least 1",
            ));
        }
        let listeners = Listeners::new(listeners)?;
        let epoll = Epoll::new()?;
        let fds: Vec<RawFd> = listeners.fds().chain([epoll.as_raw_fd()]).collect();
        let shared = Arc::new(Shared::new(settings, &fds, queue.as_ref().map(|queue| queue.receiver()))?);
        epoll.add(shared.mailbox.waker(), Token::WAKE, Interest::Read)?;
        let event_loop = EventLoop::new(Arc::clone(&shared), epoll, listeners, queue, metrics, reports);
        Ok(Server { shared, event_loop })
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// For a test that runs the loop itself.
    #[cfg(test)]
    pub fn into_loop(self) -> EventLoop {
        self.event_loop
    }

    /// Starts whatever native threads the dispatch needs and returns one `AppThread` per configured thread; the
    /// first is for the process's main thread, which also is told of signals through `wakeup`: the read end of
    /// the pipe or socket given to `signal.set_wakeup_fd`.
    pub fn start(self, wakeup: Option<OwnedFd>) -> std::io::Result<Vec<AppThread>> {
        let Server { shared, event_loop } = self;
        let threads = shared.rules.settings.threads;
        if let Some(wakeup) = wakeup {
            event_loop.watch_signals(wakeup.as_raw_fd())?;
            shared.run_queue.watch(wakeup)?;
        }
        let leader = Arc::new(Leader::new(Arc::clone(&shared), event_loop, threads));
        let theirs = Arc::clone(&leader);
        // A thread inherits its maker's mask: signals are the main thread's alone.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let closer = shared.rules.temp.start_closer();
        let monitor = std::thread::Builder::new()
            .name("monitor".to_string())
            .spawn(move || run_monitor(&theirs, Patience::of(threads)));
        before.thread_set_mask()?;
        closer?;
        monitor?;
        Ok((0..threads).map(|index| AppThread::new(Arc::clone(&leader), index)).collect())
    }
}

impl Handle {
    /// Begin to accept (also again after `drain`).
    pub fn serve(&self) {
        self.shared.command(Command::Serve);
    }

    /// Leave the epoll set of all listeners but `keep`; finish what was begun. Connections go to other workers through the
    /// handoff queue; where there is none, and for those from the listeners `keep`, each gets one more answer with
    /// `Connection: close`. When nothing is left, `AppThread::wait` returns `Done`.
    pub fn drain(&self, keep: Vec<u32>) {
        self.shared.command(Command::Drain { keep });
    }

    /// Accept until EAGAIN, then close these listeners (those that were being accepted from; others are closed
    /// as they are).
    pub fn close_listeners(&self, listeners: Vec<u32>) {
        self.shared.command(Command::CloseListeners(listeners));
    }

    /// The service stops: `Connection: close` on every answer, accept all until EAGAIN and close the listeners,
    /// close connections that stay idle for `idle`; then `Done`.
    pub fn stop(&self, idle: Duration) {
        self.shared.command(Command::Stop { idle });
    }

    /// As `drain`, and it does not end before `stand_aside`: its successors are not yet told to serve.
    pub fn yield_to_successors(&self) {
        self.shared.command(Command::Yield);
    }

    /// After `drain`: another release serves in this one's place. What waits for whoever is free is left to others from now on,
    /// also at a stop.
    pub fn stand_aside(&self) {
        self.shared.command(Command::StandAside);
    }

    /// Whoever commands is gone: as `stop`, and who has yielded accepts what waits too, since nobody else may have been told to.
    pub fn orphaned(&self) {
        self.shared.command(Command::Orphaned);
    }

    /// This process will be killed: as `drain`, but requests that no app thread has begun go to other workers too, and get
    /// 503 and close where they cannot.
    pub fn retire(&self) {
        self.shared.command(Command::Retire);
    }

    /// Begin nothing until `serve`: what was begun is finished, connections between requests go to the handoff queue or wait
    /// here, unread. `Reports::paused` tells when no request is under way any more.
    pub fn pause(&self) {
        self.shared.command(Command::Pause);
    }

    /// After `pause`: take connections, and answer each request with 503 and this page, or a line of text. Nothing is begun, and
    /// `Reports::paused` comes as it would without.
    pub fn maintenance(&self, page: Option<Page>) {
        self.shared.command(Command::Maintenance(page.map(Arc::new)));
    }

    /// The request with this number (`Exchange::set_number`) takes too long: its client gets 504, unless the head of an answer
    /// has gone out. What the application still writes is dropped.
    pub fn overdue(&self, number: u64) {
        if !self.shared.is_forgotten() {
            self.shared.mailbox.notify(Notice::Overdue(number));
        }
    }

    /// Look whether connections wait, although nothing told so: another process that was woken for one may have died.
    pub fn look(&self) {
        self.shared.command(Command::Look);
    }

    /// This process has forked (flag for closing: EPOLL_CTL_DEL, shutdown, close, since a child may hold copies).
    pub fn forked(&self) {
        self.shared.copies.set_forked();
    }

    /// In a child that the application forked without exec: close every descriptor of the server (connections,
    /// listeners, epoll, eventfds) without shutdown, and never serve.
    pub fn forget_in_child(&self) {
        self.shared.forget_in_child();
    }
}
