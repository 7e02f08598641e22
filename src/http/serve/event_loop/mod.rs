//! The loop: accepts, reads, parses, buffers, drains, and keeps the deadlines. All of its state lies in one struct,
//! fetched events and how far they were handled included, so that whoever holds the struct can go on with the loop:
//! `step` until it is idle, then `fetch` (see `leader`).
//!
//! It never waits for anything but events, and in `fetch` only; no error leaves it: what goes wrong with a connection
//! ends that connection.

pub mod flush_batch;
pub mod interface;
pub mod listeners;
pub mod run_queue;
pub mod shared;
pub mod table;
pub mod timers;

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::refusal::{self, Refusal};
use crate::proto::response::Asked;
use crate::proto::Version;

use crate::serve::base::names::{Blocking, TimerKind, Token};
use crate::serve::base::observers::{Metrics, Reports};
use crate::serve::base::pace::{Pace, Window};
use crate::serve::base::settings::{
    BUFFERS_KEPT, HEARTBEAT, LINGER, LINGER_SILENCE, READ_BODY_BYTES, TURN_ACCEPTS_MAX, TURN_BYTES_MAX,
    TURN_FOLLOWERS_MAX,
};
use crate::serve::conn::answer::After;
use crate::serve::conn::connection::{Connection, Received};
use crate::serve::conn::write_queue::{Drained, Sent, WriteHalf};
use crate::serve::io::epoll::{Epoll, Event, Interest};
use crate::serve::io::socket;
use flush_batch::FlushBatch;
use interface::Step;
use listeners::{Accepted, Listeners, Load, Origin};
use shared::{Command, Inbox, Notice, Shared};
use table::{SlotState, Table};
use timers::Timers;

/// What the process was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Not yet told to serve.
    Paused,
    Serving,
    /// Finishing what was begun; ends when no connection is left.
    Draining,
    /// As `Draining`, and requests that have not begun get 503.
    Retiring,
}

/// What a turn of the loop, from one fetch of events to the next, is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TurnPhase {
    Events,
    /// What the app threads and the handles have left in the inbox, and what has come due.
    Chores,
    Accepting,
    /// Everything was done that can be done now.
    Idle,
}

pub struct EventLoop {
    shared: Arc<Shared>,
    epoll: Epoll,
    table: Table,
    timers: Timers,
    flush_batch: FlushBatch,
    listeners: Listeners,
    metrics: Arc<dyn Metrics>,
    reports: Arc<dyn Reports>,
    mode: Mode,
    /// `Reports::draining` is due when all listeners are quiet.
    report_draining: bool,
    /// As configured, or shorter once the service stops.
    keepalive: Duration,
    now: Instant,
    phase: TurnPhase,
    /// Complete requests. Whoever steps gets them before anything else is done.
    ready: VecDeque<Box<Connection>>,
    /// More of them, for the next turn: a client that has sent many at once must not have all of this one.
    later: VecDeque<Box<Connection>>,
    /// A connection that was just answered is being looked at; and how many had their next request there in this turn.
    follows: bool,
    followed: u32,
    /// To be refused by somebody who may block, since that is logged, and a log may have to be waited for.
    refused: VecDeque<(Box<Connection>, Refusal)>,
    /// Buffers of connections that wait for a request: idle ones hold none.
    buffers: Vec<Vec<u8>>,
    blocking: Blocking,
    /// The main thread shall look for signals.
    signalled: bool,
    /// Events can no longer be waited for.
    broken: bool,
    /// Connections taken in this turn.
    accepted_this_turn: u32,
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
            metrics,
            reports,
            mode: Mode::Paused,
            report_draining: false,
            keepalive: shared.rules.settings.keepalive_timeout,
            now,
            phase: TurnPhase::Idle,
            ready: VecDeque::with_capacity(connections),
            later: VecDeque::with_capacity(connections),
            follows: false,
            followed: 0,
            refused: VecDeque::new(),
            scratch: Vec::new(),
            buffers: Vec::with_capacity(BUFFERS_KEPT),
            blocking: Blocking::Allowed,
            signalled: false,
            broken: false,
            accepted_this_turn: 0,
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

    /// The time of the latest fetch, or of the latest answer.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// An answered connection comes back from whoever runs the loop.
    pub fn take_back(&mut self, connection: Box<Connection>, now: Instant, took: Duration) {
        self.now = now;
        self.flush_batch.record(took, now);
        self.blocking = Blocking::Forbidden;
        self.follows = true;
        self.settle(connection);
        self.follows = false;
    }

    /// The leader enters the application with this request: whether its answer may wait for others.
    pub fn defer_answer(&mut self, connection: &mut Connection) {
        if self.has_more() && self.flush_batch.may_defer(self.now) {
            self.flush_batch.push(connection.token, self.now);
            connection.answer.may_defer = true;
        }
    }

    /// The monitor has taken over.
    pub fn monitor_took_over(&mut self) {
        self.flush_batch.record(Duration::MAX, self.now);
    }

    /// Sends the answers that wait for others.
    pub fn flush(&mut self) {
        self.follows = true;
        while let Some(token) = self.flush_batch.next() {
            if self.table.current(token).is_none() {
                continue;
            }
            match self.table.write_half(token.index).drain_deferred() {
                // It went out at once, or is queued as too large: then the loop is told, and has its time for it.
                None => {}
                Some(Drained::Empty) => self.flushed(token, false),
                Some(Drained::Broken) => {
                    self.table.write_half(token.index).mark_gone();
                    self.flushed(token, true);
                }
                Some(Drained::Blocked { .. } | Drained::Again) => self.watch_queue(token),
            }
        }
        self.follows = false;
    }

    /// More requests may come of what was fetched.
    fn has_more(&self) -> bool {
        !self.ready.is_empty() || (self.phase == TurnPhase::Events && self.epoll.peek().is_some())
    }

    /// Goes on with what was fetched until there is a request, or nothing more to do. Never waits.
    pub fn step(&mut self, blocking: Blocking) -> Step<Box<Connection>> {
        self.blocking = blocking;
        loop {
            if !self.flush_batch.is_empty() {
                let waits = blocking == Blocking::Forbidden && self.has_more() && !self.flush_batch.is_due(self.now);
                if !waits {
                    self.flush();
                }
            }
            if let Some(connection) = self.ready.pop_front() {
                if self.mode == Mode::Retiring {
                    self.dispatched -= 1;
                    self.refuse_later(connection, refusal::RETIRING);
                    continue;
                }
                self.report_connections();
                return Step::Request(connection);
            }
            if let Some((connection, refusal)) = self.refused.pop_front() {
                if blocking == Blocking::Forbidden {
                    self.refused.push_front((connection, refusal));
                    return Step::Idle;
                }
                self.refuse(connection, refusal);
                continue;
            }
            match self.phase {
                TurnPhase::Events => match self.epoll.peek() {
                    Some(event) if blocking == Blocking::Forbidden && self.table.is_heavy(event.token) => {
                        return Step::Idle;
                    }
                    Some(event) => {
                        self.epoll.advance();
                        self.event(event);
                    }
                    None => self.phase = TurnPhase::Chores,
                },
                TurnPhase::Chores if blocking == Blocking::Forbidden && self.has_chores() => return Step::Idle,
                TurnPhase::Chores => {
                    self.do_chores();
                    self.phase = TurnPhase::Accepting;
                }
                TurnPhase::Accepting => {
                    if !self.accept() {
                        self.report_connections();
                        self.phase = TurnPhase::Idle;
                    }
                }
                TurnPhase::Idle if self.is_done() => return Step::Done,
                TurnPhase::Idle => return Step::Idle,
            }
        }
    }

    /// Waits for events, unless there is something else to do. True: a signal came.
    pub fn fetch(&mut self) -> bool {
        if std::mem::take(&mut self.signalled) {
            return true;
        }
        // A step that must not block has left something.
        if self.phase != TurnPhase::Idle || !self.refused.is_empty() {
            return false;
        }
        self.ready.append(&mut self.later);
        let timeout = self.timeout();
        let interrupted = match self.epoll.wait(timeout) {
            Ok(interrupted) => interrupted,
            Err(error) => {
                // EBADF or EINVAL: the descriptor was closed under us. Nothing can be served any more.
                log::error!("the event loop ends: {error}");
                self.broken = true;
                return false;
            }
        };
        self.shared.awake();
        self.now = Instant::now();
        self.metrics.heartbeat();
        (self.accepted_this_turn, self.followed) = (0, 0);
        self.phase = TurnPhase::Events;
        interrupted
    }

    fn is_done(&self) -> bool {
        let drains = matches!(self.mode, Mode::Draining | Mode::Retiring);
        self.broken || (drains && self.table.open() == 0 && self.listeners.are_quiet())
    }

    /// Ones for somebody who may block.
    fn has_chores(&self) -> bool {
        !self.runnable.is_empty() || self.timers.next_deadline().is_some_and(|deadline| deadline <= self.now)
    }

    fn do_chores(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.collect(&mut inbox);
        while let Some(notice) = inbox.notices.pop_front() {
            self.notice(notice);
        }
        while let Some(command) = inbox.commands.pop_front() {
            self.command(command);
        }
        self.inbox = inbox;
        self.run_runnable();
        self.expire();
    }

    fn timeout(&self) -> Duration {
        if !self.runnable.is_empty() || !self.ready.is_empty() || !self.shared.fall_asleep() {
            return Duration::ZERO;
        }
        let deadline = [self.timers.next_deadline(), self.listeners.next_deadline()].into_iter().flatten().min();
        // The clock may be late by what the events of a turn took; so then are timers.
        deadline.map_or(HEARTBEAT, |deadline| deadline.saturating_duration_since(self.now).min(HEARTBEAT))
    }

    fn event(&mut self, event: Event) {
        if event.token == Token::WAKE {
            return;
        }
        if event.token == Token::SIGNAL {
            self.signalled = true;
            return;
        }
        if let Some(index) = event.token.as_listener() {
            self.listeners.mark_ready(index);
            return;
        }
        let Some(slot) = self.table.current(event.token) else { return };
        let index = event.token.index;
        if event.gone {
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                // The app side has it; it learns of it by the write half.
                SlotState::Dispatched => {
                    self.timers.clear(index);
                    self.table.write_half(index).mark_gone();
                }
                SlotState::Waiting(connection)
                | SlotState::Flushing(connection)
                | SlotState::Lingering(connection, _) => {
                    self.close(connection);
                }
                SlotState::Free(_) => unreachable!("`current` gives no free slot"),
            }
            return;
        }
        if event.writable && self.table.write_half(index).is_queued() {
            self.drain(event.token);
        }
        if event.readable || event.half_closed {
            self.readable(event.token, event.half_closed);
        }
    }

    fn readable(&mut self, token: Token, half_closed: bool) {
        // Draining may have closed it.
        let Some(slot) = self.table.current(token) else { return };
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Waiting(mut connection) => {
                connection.wake(half_closed);
                self.receive(connection);
            }
            SlotState::Dispatched => {
                slot.readable = true;
                slot.half_closed |= half_closed;
            }
            SlotState::Flushing(connection) => {
                slot.readable = true;
                slot.half_closed |= half_closed;
                slot.state = SlotState::Flushing(connection);
            }
            SlotState::Lingering(connection, since) => self.discard(connection, since),
            SlotState::Free(_) => unreachable!("`current` gives no free slot"),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Queued(token) => {
                if self.table.current(token).is_some() {
                    self.watch_queue(token);
                }
            }
            Notice::Returned(connection) => self.settle(connection),
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Serve => {
                self.mode = Mode::Serving;
                self.report_draining = false;
                self.shared.set_closing(false);
                self.keepalive = self.shared.rules.settings.keepalive_timeout;
                self.listeners.resume(&self.epoll);
                self.metrics.accepting(true);
                self.reports.serving();
            }
            Command::Drain { keep } => {
                self.wind_up(Mode::Draining);
                self.listeners.pause(&self.epoll, |id| !keep.contains(&id));
                self.reports.draining();
            }
            Command::CloseListeners(which) => {
                self.close_listeners(|id| which.contains(&id));
            }
            Command::Stop { idle } => {
                self.wind_up(Mode::Draining);
                self.close_listeners(|_| true);
                self.report_draining = true;
                self.keepalive = self.keepalive.min(idle);
                self.timers.bring_forward(TimerKind::Keepalive, self.now + self.keepalive);
            }
            Command::Retire => {
                self.wind_up(Mode::Retiring);
                self.listeners.pause(&self.epoll, |_| true);
                while let Some(connection) = self.shared.run_queue.take() {
                    self.dispatched -= 1;
                    self.refuse_later(connection, refusal::RETIRING);
                }
                self.reports.draining();
            }
        }
    }

    fn close_listeners(&mut self, which: impl Fn(u32) -> bool) {
        self.listeners.begin_closing(&self.epoll, which, |fd| self.shared.forget_fd(fd));
    }

    fn wind_up(&mut self, mode: Mode) {
        self.metrics.accepting(false);
        self.mode = match (self.mode, mode) {
            // A process that will be killed begins nothing more, whatever it is told besides.
            (Mode::Retiring, Mode::Draining) => Mode::Retiring,
            (Mode::Paused | Mode::Serving | Mode::Draining | Mode::Retiring, mode) => mode,
        };
        self.shared.set_closing(true);
    }

    /// Once a turn, however many events say that there is more: else a fast client would get more turns with each.
    fn run_again(&mut self, token: Token) {
        let slot = self.table.slot(token.index);
        if !std::mem::replace(&mut slot.runnable, true) {
            self.runnable.push(token);
        }
    }

    /// Connections that had more to do than a turn's share.
    fn run_runnable(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        std::mem::swap(&mut batch, &mut self.runnable);
        for token in batch.drain(..) {
            let Some(slot) = self.table.current(token) else { continue };
            slot.runnable = false;
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                SlotState::Waiting(connection) => self.receive(connection),
                SlotState::Dispatched => self.drain(token),
                SlotState::Flushing(connection) => {
                    slot.state = SlotState::Flushing(connection);
                    self.drain(token);
                }
                SlotState::Lingering(connection, since) => self.discard(connection, since),
                SlotState::Free(_) => unreachable!("`current` gives no free slot"),
            }
        }
        self.batch = batch;
    }

    fn expire(&mut self) {
        while let Some((index, kind)) = self.timers.expired(self.now) {
            let slot = self.table.slot(index);
            let state = std::mem::replace(&mut slot.state, SlotState::Dispatched);
            match (kind, state) {
                // Silently: balancers' checks and browsers' spare connections send nothing.
                (TimerKind::Keepalive, SlotState::Waiting(connection)) => self.close(connection),
                (TimerKind::Header, SlotState::Waiting(connection)) => self.refuse(connection, refusal::HEAD_SLOW),
                (TimerKind::Body, SlotState::Waiting(connection)) => self.refuse(connection, refusal::BODY_SLOW),
                (TimerKind::Linger, SlotState::Lingering(connection, _)) => self.close(connection),
                // Nothing was sent for so long; still the client may take what lies in the socket, which can be
                // megabytes before there is room for more.
                (TimerKind::Write, state @ (SlotState::Flushing(_) | SlotState::Dispatched)) => {
                    let timeout = self.shared.rules.settings.write_timeout;
                    let pace = slot.ack_window.close(self.now, slot.write_half.acked_bytes(), timeout);
                    slot.state = state;
                    match pace {
                        Pace::Open | Pace::Kept => {
                            slot.write_half.note_ack_progress();
                            self.timers.set(index, TimerKind::Write, self.now + timeout);
                        }
                        Pace::Slow => self.drop_reader(index),
                    }
                }
                // A timer ends with the state it belongs to.
                (
                    TimerKind::Keepalive | TimerKind::Header | TimerKind::Body | TimerKind::Write | TimerKind::Linger,
                    state,
                ) => {
                    debug_assert!(false, "{kind:?} expired in {state:?}");
                    slot.state = state;
                }
            }
        }
    }

    /// Takes one connection. False: that is all for this turn.
    fn accept(&mut self) -> bool {
        if let Some(index) = self.listeners.closing() {
            match self.accept_one(index) {
                Outcome::Taken => return true,
                Outcome::Empty => {
                    if let Some(fd) = self.listeners.take(index) {
                        self.shared.forget_fd(fd.as_raw_fd());
                    }
                    return true;
                }
                // A pause has its timer, and a slot that becomes free is a turn of the loop.
                Outcome::Stalled => {}
            }
        }
        if self.report_draining && self.listeners.are_quiet() {
            self.report_draining = false;
            self.reports.draining();
        }
        let paused = self.listeners.is_paused(self.now) | self.listeners.is_yielding(self.now);
        let has_time = self.listeners.budget(self.load()) > 0;
        if self.listeners.is_masked() && !paused && has_time && self.has_slot() {
            self.listeners.unmask(&self.epoll);
        }
        let outcome = match self.listeners.next_ready() {
            Some(_) if !has_time => Outcome::Stalled,
            Some(_)
                if self.metrics.should_yield_accept(self.table.open())
                    && self.listeners.yield_accept(&self.epoll, self.now) =>
            {
                // It was woken too, but where it has to share a processor with us, it has not run yet. We fall asleep
                // soon, but not for long.
                if self.blocking == Blocking::Allowed {
                    std::thread::yield_now();
                }
                self.listeners.end_pass();
                return false;
            }
            Some(index) if self.accepted_this_turn < TURN_ACCEPTS_MAX => self.accept_one(index),
            Some(_) => {
                self.listeners.end_pass();
                return false;
            }
            None => {
                self.listeners.none_waits(self.epoll.was_full());
                self.listeners.end_pass();
                return false;
            }
        };
        match outcome {
            Outcome::Taken => self.accepted_this_turn += 1,
            Outcome::Empty => {}
            Outcome::Stalled => {
                let load = self.load();
                self.listeners.mask(&self.epoll, load);
                self.listeners.end_pass();
            }
        }
        !matches!(outcome, Outcome::Stalled)
    }

    fn load(&self) -> Load {
        let threads = self.shared.rules.settings.threads as u64;
        Load { threads, dispatched: self.dispatched, completed: self.shared.completed() }
    }

    /// Whether a new connection would find a slot, by closing the longest-idle one if need be.
    fn has_slot(&self) -> bool {
        !self.table.is_full() || self.timers.first(TimerKind::Keepalive).is_some()
    }

    fn accept_one(&mut self, index: usize) -> Outcome {
        if !self.has_slot() || self.listeners.is_paused(self.now) {
            return Outcome::Stalled;
        }
        match self.listeners.accept(index, self.now) {
            Accepted::Connection { socket, origin } => {
                self.open(socket, origin);
                Outcome::Taken
            }
            Accepted::Empty => Outcome::Empty,
            Accepted::Stalled => Outcome::Stalled,
        }
    }

    fn open(&mut self, socket: OwnedFd, origin: Origin) {
        if self.table.is_full() {
            if let Some(connection) = self.timers.first(TimerKind::Keepalive).and_then(|index| self.take_waiting(index))
            {
                self.close(connection);
            }
        }
        let fd = socket.as_raw_fd();
        let rules = &self.shared.rules;
        let make = || WriteHalf::new(rules.memory.charge(), rules.settings.response_buffer);
        let Some((slot, buffers)) = self.table.take(socket, self.now, make) else { return };
        let token = slot.token;
        slot.write_half.open(fd);
        self.shared.note_socket(token.index, Some(fd));
        let mut connection = buffers.unwrap_or_else(|| {
            let (write_half, local) = (Arc::clone(&slot.write_half), Arc::clone(&origin.local));
            Box::new(Connection::new(token, write_half, local, rules, self.now))
        });
        connection.open(token, origin);
        self.metrics.accepted();
        // The request often is there already; then epoll need not know of a connection that ends with it.
        self.receive(connection);
    }

    fn take_waiting(&mut self, index: u32) -> Option<Box<Connection>> {
        let slot = self.table.slot(index);
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Waiting(connection) => Some(connection),
            state
            @ (SlotState::Free(_) | SlotState::Dispatched | SlotState::Flushing(_) | SlotState::Lingering(..)) => {
                slot.state = state;
                None
            }
        }
    }

    /// Reads on; the connection's next state follows from what came.
    fn receive(&mut self, mut connection: Box<Connection>) {
        if connection.input.capacity() == 0 {
            connection.input = self.buffers.pop().unwrap_or_default();
        }
        match connection.receive(&self.shared.rules, self.blocking) {
            Received::Waiting(kind) => self.wait_for(connection, kind),
            Received::Again(kind) => {
                self.run_again(connection.token);
                self.wait_for(connection, kind);
            }
            Received::Complete if self.mode == Mode::Retiring => {
                self.refuse_later(connection, refusal::RETIRING);
            }
            Received::Complete => {
                self.timers.clear(connection.token.index);
                self.dispatched += 1;
                connection.ready_at = self.now;
                self.followed += u32::from(self.follows);
                if self.followed <= TURN_FOLLOWERS_MAX {
                    self.ready.push_back(connection);
                } else {
                    self.later.push_back(connection);
                }
            }
            Received::Refused(refusal) => self.refuse_later(connection, refusal),
            Received::Ended => self.close(connection),
            Received::Lost { in_the_middle } => {
                if in_the_middle {
                    log::debug!("{} left in the middle of a request", connection.peer);
                }
                self.close(connection);
            }
        }
    }

    fn wait_for(&mut self, mut connection: Box<Connection>, kind: TimerKind) {
        let index = connection.token.index;
        let settings = &self.shared.rules.settings;
        let timeout = match kind {
            TimerKind::Keepalive => self.keepalive,
            TimerKind::Header => settings.header_timeout,
            TimerKind::Body => settings.body_timeout,
            TimerKind::Write => settings.write_timeout,
            TimerKind::Linger => LINGER_SILENCE,
        };
        if kind == TimerKind::Body {
            let received = i64::try_from(connection.received).unwrap_or(i64::MAX);
            if self.timers.kind(index) != Some(TimerKind::Body) {
                connection.coming = Window::begin(self.now, received);
            }
            match connection.coming.look(self.now, received, timeout) {
                Pace::Open | Pace::Kept => {}
                Pace::Slow => return self.refuse(connection, refusal::BODY_SLOW),
            }
        }
        // A head's time is counted from its first byte, not from its last.
        if !(kind == TimerKind::Header && self.timers.kind(index) == Some(TimerKind::Header)) {
            self.timers.set(index, kind, self.now + timeout);
        }
        if kind == TimerKind::Keepalive {
            self.keep_buffer(&mut connection);
        }
        let token = connection.token;
        self.table.slot(index).state = SlotState::Waiting(connection);
        self.register(token, Interest::Read);
    }

    /// Ten thousand idle connections need not hold a buffer each.
    fn keep_buffer(&mut self, connection: &mut Connection) {
        if connection.input.is_empty() {
            let buffer = std::mem::take(&mut connection.input);
            if self.buffers.len() < BUFFERS_KEPT && buffer.capacity() > 0 {
                self.buffers.push(buffer);
            }
        }
    }

    /// Makes epoll's interest in a connection what it should be; a connection that cannot be watched is closed.
    fn register(&mut self, token: Token, interest: Interest) {
        let slot = self.table.slot(token.index);
        let fd = slot.write_half.fd();
        let outcome = match slot.interest {
            None => self.epoll.add(fd, token, interest),
            Some(now) if now != interest => self.epoll.modify(fd, token, interest),
            Some(_) => return,
        };
        match outcome {
            Ok(()) => slot.interest = Some(interest),
            Err(error) => {
                log::error!("a connection cannot be watched: {error}");
                match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                    SlotState::Dispatched => slot.write_half.mark_gone(),
                    SlotState::Waiting(connection)
                    | SlotState::Flushing(connection)
                    | SlotState::Lingering(connection, _) => {
                        self.close(connection);
                    }
                    SlotState::Free(_) => unreachable!("only open connections are registered"),
                }
            }
        }
    }

    /// Bytes lie in the queue: send them when the socket takes them, and count the time.
    fn watch_queue(&mut self, token: Token) {
        if self.table.write_half(token.index).is_queued() {
            let deadline = self.now + self.shared.rules.settings.write_timeout;
            let acked = self.table.write_half(token.index).acked_bytes();
            self.table.slot(token.index).ack_window = Window::begin(self.now, acked);
            self.timers.set(token.index, TimerKind::Write, deadline);
            // Adding or changing an interest reports a socket that is writable already (epoll_ctl(2)).
            self.register(token, Interest::ReadWrite);
        }
    }

    fn drain(&mut self, token: Token) {
        let index = token.index;
        match self.table.write_half(index).drain() {
            Drained::Blocked { progress: false } => {}
            Drained::Blocked { progress: true } => {
                let timeout = self.shared.rules.settings.write_timeout;
                let acked = self.table.write_half(index).acked_bytes();
                match self.table.slot(index).ack_window.look(self.now, acked, timeout) {
                    Pace::Open | Pace::Kept => self.timers.set(index, TimerKind::Write, self.now + timeout),
                    Pace::Slow => {
                        self.timers.clear(index);
                        self.drop_reader(index);
                    }
                }
            }
            Drained::Again => {
                let deadline = self.now + self.shared.rules.settings.write_timeout;
                self.timers.set(index, TimerKind::Write, deadline);
                self.run_again(token);
            }
            Drained::Empty => {
                self.timers.clear(index);
                self.register(token, Interest::Read);
                self.flushed(token, false);
            }
            Drained::Broken => {
                self.timers.clear(index);
                self.table.write_half(index).mark_gone();
                self.flushed(token, true);
            }
        }
    }

    /// The client takes too little of its answer.
    fn drop_reader(&mut self, index: u32) {
        let slot = self.table.slot(index);
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Flushing(connection) => {
                log::info!("{} does not take its answer: closed (write_timeout)", connection.peer);
                self.close(connection);
            }
            // The app side has it, and learns of it by the write half.
            SlotState::Dispatched => {
                log::info!("a client does not take its answer: dropped (write_timeout)");
                self.table.write_half(index).mark_gone();
            }
            state @ (SlotState::Free(_) | SlotState::Waiting(_) | SlotState::Lingering(..)) => {
                debug_assert!(false, "nothing is queued in {state:?}");
                slot.state = state;
            }
        }
    }

    /// The queue is empty or given up; if the answer had ended, so has the wait.
    fn flushed(&mut self, token: Token, broken: bool) {
        let Some(slot) = self.table.current(token) else { return };
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Flushing(connection) if broken => self.close(connection),
            SlotState::Flushing(connection) => self.settle(connection),
            state @ (SlotState::Dispatched | SlotState::Waiting(_) | SlotState::Lingering(..) | SlotState::Free(_)) => {
                slot.state = state;
            }
        }
    }

    /// An answered connection: what is next?
    fn settle(&mut self, mut connection: Box<Connection>) {
        let token = connection.token;
        if connection.write_half.is_gone() {
            self.close(connection);
            return;
        }
        if connection.write_half.is_queued() {
            self.table.slot(token.index).state = SlotState::Flushing(connection);
            let waits = self.flush_batch.has(token) && self.table.write_half(token.index).is_deferred();
            if self.timers.kind(token.index).is_none() && !waits {
                self.watch_queue(token);
            }
            return;
        }
        self.timers.clear(token.index);
        let slot = self.table.slot(token.index);
        if std::mem::take(&mut slot.readable) {
            connection.wake(slot.half_closed);
        }
        match connection.answer.after {
            After::KeepAlive => {
                connection.next_request();
                self.receive(connection);
            }
            After::Close if connection.has_unread() => self.linger(connection),
            After::Close => self.close(connection),
            After::Linger => self.linger(connection),
            After::Reset => {
                socket::reset(connection.write_half.fd());
                self.close(connection);
            }
        }
    }

    /// Later, by somebody who may block. Its timer ends here: until then nobody waits for the client.
    fn refuse_later(&mut self, connection: Box<Connection>, refusal: Refusal) {
        self.timers.clear(connection.token.index);
        self.refused.push_back((connection, refusal));
    }

    /// Answers a request that the application will not see, and closes.
    fn refuse(&mut self, mut connection: Box<Connection>, refusal: Refusal) {
        let index = connection.token.index;
        self.timers.clear(index);
        let Refusal { status, reason, limit } = refusal;
        match limit {
            Some(limit) => log::info!("refused {}: {status} {reason} ({limit})", connection.peer),
            None => log::info!("refused {}: {status} {reason}", connection.peer),
        }
        let head = connection.asks_for_head();
        let asked = Asked { version: Version::Http11, head, keep_alive: false };
        let body = connection.answer.refuse(status, reason, asked);
        connection.answer.after = After::Linger;
        let parts = [connection.answer.head.bytes(), body.as_bytes()];
        match connection.write_half.send(&parts, &self.shared.rules.temp) {
            Sent::All | Sent::Queued { .. } | Sent::Gone => self.settle(connection),
        }
    }

    /// Closing with unread bytes makes the kernel send RST, which destroys the answer on its way to the client
    /// (RFC 9112 section 9.6). So: FIN, read what comes for a while, close.
    fn linger(&mut self, mut connection: Box<Connection>) {
        if !socket::shutdown_write(connection.write_half.fd()) {
            self.close(connection);
            return;
        }
        connection.forget();
        self.timers.set(connection.token.index, TimerKind::Linger, self.now + LINGER_SILENCE);
        self.discard(connection, self.now);
    }

    fn discard(&mut self, connection: Box<Connection>, since: Instant) {
        let token = connection.token;
        self.scratch.reserve(READ_BODY_BYTES);
        let mut share = TURN_BYTES_MAX;
        // A process that winds up does not wait for clients that do not look at their answer.
        let patience = match self.mode {
            Mode::Paused | Mode::Serving => LINGER,
            Mode::Draining | Mode::Retiring => LINGER_SILENCE,
        };
        loop {
            if share == 0 {
                self.run_again(token);
                break;
            }
            match socket::discard(connection.write_half.fd(), self.scratch.spare_capacity_mut()) {
                Ok(length) if length > 0 && self.now < since + patience => share = share.saturating_sub(length),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // The client has closed, the connection broke, or it was long enough.
                Ok(_) | Err(_) => return self.close(connection),
            }
        }
        if share < TURN_BYTES_MAX {
            self.timers.set(token.index, TimerKind::Linger, self.now + LINGER_SILENCE);
        }
        self.table.slot(token.index).state = SlotState::Lingering(connection, since);
        self.register(token, Interest::Read);
    }

    fn close(&mut self, mut connection: Box<Connection>) {
        let index = connection.token.index;
        self.timers.clear(index);
        let slot = self.table.slot(index);
        if self.shared.has_forked() {
            // A child of the application may hold a copy: without this the client would never see the end, and
            // epoll would go on to report it (epoll(7), "Q6").
            let fd = connection.write_half.fd();
            if slot.interest.is_some() {
                let _ = self.epoll.remove(fd);
            }
            socket::shutdown_both(fd);
        }
        connection.write_half.close();
        self.shared.note_socket(index, None);
        connection.forget();
        self.keep_buffer(&mut connection);
        drop(self.table.release(connection));
    }

    fn report_connections(&mut self) {
        let open = self.table.open();
        if open != self.reported {
            self.reported = open;
            self.metrics.connections(open);
        }
    }
}

impl Drop for EventLoop {
    /// The descriptors are closed now, and their numbers may become others'.
    fn drop(&mut self) {
        let fds: Vec<RawFd> = self.listeners.fds().chain([self.epoll.as_raw_fd()]).collect();
        for fd in fds {
            self.shared.forget_fd(fd);
        }
    }
}

enum Outcome {
    Taken,
    Empty,
    Stalled,
}
