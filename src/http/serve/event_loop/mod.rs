//! The loop: accepts, reads, parses, buffers, drains, and keeps the deadlines. All of its state lies in one struct,
//! fetched events and how far they were handled included, so that whoever holds the struct can go on with the loop:
//! `step` until it is idle, then `fetch` (`turn`). Which thread that is the loop does not know.
//!
//! It never waits for anything but events, and in `fetch` only; no error leaves it: what goes wrong with a connection
//! ends that connection.

mod accepting;
pub mod admission;
mod bulk;
mod closing;
pub mod fair_line;
mod files;
mod flush_batch;
mod flushing;
pub mod handoff;
mod health;
pub mod interface;
pub mod listeners;
pub mod mailbox;
pub mod maintenance;
pub mod mode;
mod overdue;
mod reading;
pub mod run_queue;
pub mod shared;
mod shedding;
pub mod streams;
mod table;
mod timers;
mod turn;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::refusal::Refusal;
use crate::serve::base::buffers::InputBuffers;
use crate::serve::base::handoff::HandoffQueue;
use crate::serve::base::names::{Blocking, Token};
use crate::serve::base::observers::{Metrics, Reports};
use crate::serve::base::settings::{HEARTBEAT, TURN_BYTES_MAX};
use crate::serve::conn::request::Request;
use crate::serve::io::epoll::{Epoll, Interest};

use flush_batch::FlushBatch;
use handoff::Handoff;
use listeners::Listeners;
use mailbox::Inbox;
use maintenance::Page;
use mode::Mode;
use shared::Shared;
use shedding::Shedding;
use table::Table;
use timers::Timers;
use turn::TurnPhase;

pub struct EventLoop {
    shared: Arc<Shared>,
    epoll: Epoll,
    table: Table,
    timers: Timers,
    flush_batch: FlushBatch,
    listeners: Listeners,
    handoff: Handoff,
    shedding: Shedding,
    metrics: Arc<dyn Metrics>,
    reports: Arc<dyn Reports>,
    mode: Mode,
    /// `Reports::draining` is due when all listeners are quiet.
    report_draining: bool,
    /// `Reports::paused` is due when no request is under way.
    report_paused: bool,
    /// What clients are shown during a maintenance.
    page: Arc<Page>,
    /// As configured, or shorter once the service stops.
    keepalive: Duration,
    /// The whole service stops.
    stopping: bool,
    now: Instant,
    /// When this turn's events were fetched.
    fetched_at: Instant,
    phase: TurnPhase,
    /// Complete requests. Whoever steps gets them before anything else is done.
    ready: VecDeque<Box<Request>>,
    /// More of them, for the next turn: a client that has sent many at once must not have all of this one.
    later: VecDeque<Box<Request>>,
    /// A connection that was just answered is being looked at; and how many had their next request there in this turn.
    follows: bool,
    followed: u32,
    /// To be refused by somebody who may block, since that is logged, and a log may have to be waited for.
    refused: VecDeque<(Box<Request>, Refusal)>,
    inputs: InputBuffers,
    blocking: Blocking,
    /// A signal came, and the main thread has not been told.
    signalled: bool,
    /// Events can no longer be waited for.
    broken: bool,
    /// When it is next tried out whether connections wait. A process that was woken for one may be stopped, or may not get
    /// a processor, and then only this tells the others.
    look_at: Instant,
    /// What may still be moved in this turn.
    turn_left: usize,
    /// Connections whose share of the last turn was used up.
    runnable: Vec<Token>,
    /// For what is read and dropped; has no bytes.
    scratch: Vec<u8>,
    /// Empty; `runnable` of the turn before.
    batch: Vec<Token>,
    /// Requests given to the app side since the start.
    dispatched: u64,
    /// The number of connections last told to the metrics.
    reported: usize,
    inbox: Inbox,
}

impl EventLoop {
    pub fn new(
        shared: Arc<Shared>,
        epoll: Epoll,
        listeners: Listeners,
        queue: Option<Box<dyn HandoffQueue>>,
        metrics: Arc<dyn Metrics>,
        reports: Arc<dyn Reports>,
    ) -> EventLoop {
        let now = Instant::now();
        let connections = shared.rules.settings.connections;
        EventLoop {
            epoll,
            table: Table::new(connections),
            timers: Timers::new(connections),
            flush_batch: FlushBatch::new(now),
            listeners,
            handoff: Handoff::new(queue),
            shedding: Shedding::new(now),
            metrics,
            reports,
            mode: Mode::Paused,
            report_draining: false,
            page: Arc::new(Page { content_type: Vec::new(), body: Vec::new() }),
            keepalive: shared.rules.settings.idle_timeout(),
            stopping: false,
            report_paused: false,
            now,
            fetched_at: now,
            phase: TurnPhase::Idle,
            ready: VecDeque::with_capacity(connections),
            later: VecDeque::with_capacity(connections),
            follows: false,
            followed: 0,
            refused: VecDeque::new(),
            scratch: Vec::new(),
            inputs: InputBuffers::new(),
            blocking: Blocking::Allowed,
            signalled: false,
            broken: false,
            look_at: now + HEARTBEAT,
            turn_left: TURN_BYTES_MAX,
            runnable: Vec::with_capacity(connections),
            batch: Vec::with_capacity(connections),
            dispatched: 0,
            reported: 0,
            inbox: Inbox::new(connections),
            shared,
        }
    }

    /// Whoever runs the loop is told of what becomes readable here.
    pub fn watch_signals(&self, wakeup: RawFd) -> std::io::Result<()> {
        self.epoll.add(wakeup, Token::SIGNAL, Interest::Read)
    }

    #[cfg(test)]
    pub fn open_connections(&self) -> usize {
        self.table.open()
    }

    #[cfg(test)]
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// From all open connections.
    #[cfg(test)]
    pub fn received_bytes(&mut self) -> u64 {
        self.table.received_bytes()
    }

    #[cfg(test)]
    pub fn kept_bytes(&mut self) -> (usize, usize) {
        self.table.kept_bytes()
    }

    /// The time of the latest fetch, or of the latest answer.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// An answered connection comes back from whoever runs the loop.
    pub fn take_back(&mut self, request: Box<Request>, now: Instant) {
        self.now = now;
        self.blocking = Blocking::Forbidden;
        self.follows = true;
        self.settle(request);
        self.follows = false;
    }
}

impl Drop for EventLoop {
    /// The descriptors are closed now, and their numbers may become others'.
    fn drop(&mut self) {
        let fds: Vec<RawFd> = self.listeners.fds().chain([self.epoll.as_raw_fd()]).collect();
        for fd in fds {
            self.shared.copies.forget_fd(fd);
        }
    }
}
