//! Reading from connections, and what follows from what came or did not come in time.

use std::time::Instant;

use crate::proto::refusal;
use crate::serve::base::names::{TimerKind, Token};
use crate::serve::base::pace::{Pace, Window};
use crate::serve::base::settings::{LINGER_SILENCE, READ_BODY_BYTES, TURN_FOLLOWERS_MAX};
use crate::serve::conn::reader::{Received, Round};
use crate::serve::conn::request::Request;
use crate::serve::io::epoll::{Event, Interest};

use super::mode::Mode;
use super::streams::{Candidate, Threads};
use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    pub(super) fn readable(&mut self, event: Event) {
        let token = event.token;
        // Draining may have closed it.
        let Some(slot) = self.table.current(token) else { return };
        if event.half_closed {
            slot.write_half.note_half_closed();
        }
        let read_on = event.half_closed || event.urgent;
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            // Requests first, bulk last.
            SlotState::Waiting(request) if slot.reader.is_in_body() => {
                slot.reader.wake(read_on);
                slot.state = SlotState::Waiting(request);
                self.run_again(token);
            }
            SlotState::Waiting(request) => {
                slot.reader.wake(read_on);
                self.receive(request);
            }
            SlotState::Dispatched => {
                slot.reader.wake(read_on);
                self.drop_after_answer(token);
            }
            SlotState::Flushing(request) => {
                slot.reader.wake(read_on);
                slot.state = SlotState::Flushing(request);
            }
            SlotState::Lingering(request, since) => self.discard(request, since),
            // An event of before it left.
            SlotState::Leaving(request) => slot.state = SlotState::Leaving(request),
            SlotState::Free(_) => unreachable!("`current` gives no free slot"),
        }
    }

    /// Reads on; the connection's next state follows from what came.
    pub(super) fn receive(&mut self, mut request: Box<Request>) {
        if request.body.is_away() {
            let index = request.token.index;
            self.table.slot(index).state = SlotState::Waiting(request);
            return;
        }
        let received = self.read(&mut request, self.share());
        self.go_on(request, received);
    }

    /// A body is waited for unless its request would be refused at the body's end, whatever came.
    fn takes_body(&self, request: &Request) -> bool {
        let is_late = || request.waits_since.and_then(|since| self.begin_by(since)).is_some_and(|by| self.now > by);
        self.mode != Mode::Maintenance && !is_late()
    }

    fn read(&mut self, request: &mut Request, share: usize) -> Received {
        let round = Round { blocking: self.blocking, share, takes_body: self.takes_body(request) };
        let reader = &mut self.table.slot(request.token.index).reader;
        let before = reader.received();
        let received = reader.receive(request, &self.shared.rules, &mut self.inputs, round);
        let bytes = reader.received() - before;
        self.spend(usize::try_from(bytes).unwrap_or(usize::MAX));
        received
    }

    fn go_on(&mut self, mut request: Box<Request>, received: Received) {
        match received {
            Received::Waiting(kind) => self.wait_for(request, kind),
            Received::Again(kind) => {
                self.run_again(request.token);
                self.wait_for(request, kind);
            }
            Received::Complete if self.mode == Mode::Retiring => {
                request.ready_at = self.now;
                if let Some(request) = self.give_whole(request) {
                    self.refuse_later(request, refusal::RETIRING);
                }
            }
            Received::Complete | Received::Unwanted if self.mode == Mode::Maintenance => {
                request.ready_at = request.waits_since.take().unwrap_or(self.now);
                self.refuse_later(request, refusal::MAINTENANCE);
            }
            Received::Unwanted => self.shed(request),
            Received::Complete => self.dispatch(request),
            Received::Batch => self.write_batch(request),
            Received::Beyond => self.stream_or_spool(request),
            Received::Refused(refusal) => self.refuse_later(request, refusal),
            Received::Ended => self.close(request),
            Received::Lost { in_the_middle } => {
                if in_the_middle {
                    log::debug!("{} left in the middle of a request", request.peer);
                }
                self.close(request);
            }
        }
    }

    fn dispatch(&mut self, mut request: Box<Request>) {
        self.timers.clear(request.token.index);
        self.dispatched += 1;
        request.ready_at = request.waits_since.take().unwrap_or(self.now);
        request.begin_by = self.begin_by(request.ready_at);
        request.write_half.begin_request();
        let slot = self.table.slot(request.token.index);
        (slot.asked, slot.ready_at) = (request.asked(), request.ready_at);
        self.followed += u32::from(self.follows);
        if self.followed <= TURN_FOLLOWERS_MAX {
            self.ready.push_back(request);
        } else {
            self.later.push_back(request);
        }
    }

    /// A body does not fit into memory: the application gets it as it comes, or a file takes it.
    #[cold]
    fn stream_or_spool(&mut self, mut request: Box<Request>) {
        let Some((came, since)) = request.body.reached() else { return self.receive(request) };
        let reader = &mut self.table.slot(request.token.index).reader;
        let now = Instant::now();
        let candidate = Candidate { came, took: now.saturating_duration_since(since), left: reader.left() };
        let load = self.load();
        let requests = load.dispatched.saturating_sub(load.completed);
        let threads = Threads { count: self.shared.rules.settings.threads, requests };
        // A worker that ends waits for no client any longer than it must.
        if self.mode == Mode::Serving && self.shared.streams().admits(candidate, threads, now) {
            self.shared.streams().begin();
            let reader = &mut self.table.slot(request.token.index).reader;
            reader.go_live(&mut request, &self.shared.rules, &mut self.inputs);
            // Whoever reads the body sees what comes; the loop would be woken for each packet.
            self.register(request.token, Interest::HangUp);
            return self.dispatch(request);
        }
        match request.body.go_to_file(&self.shared.rules) {
            Ok(()) => self.receive(request),
            Err(refusal) => self.refuse_later(request, refusal),
        }
    }

    pub(super) fn wait_for(&mut self, mut request: Box<Request>, kind: TimerKind) {
        let index = request.token.index;
        // What lay in the kernel's queue was not all of it.
        request.waits_since = None;
        let settings = &self.shared.rules.settings;
        let timeout = match kind {
            TimerKind::Keepalive => self.keepalive,
            TimerKind::Header => settings.header_timeout,
            TimerKind::Body => settings.body_timeout,
            TimerKind::Write => settings.write_timeout,
            TimerKind::Linger => LINGER_SILENCE,
        };
        if kind == TimerKind::Body {
            let reader = &mut self.table.slot(index).reader;
            let received = reader.received();
            if self.timers.kind(index) != Some(TimerKind::Body) {
                reader.coming = Window::begin(self.now, received);
            }
            match reader.coming.look(self.now, received, timeout) {
                Pace::Open | Pace::Kept => {}
                Pace::Slow => return self.refuse(request, refusal::BODY_SLOW),
            }
        }
        // A head's time is counted from its first byte, not from its last.
        if !(kind == TimerKind::Header && self.timers.kind(index) == Some(TimerKind::Header)) {
            self.timers.set(index, kind, self.now + timeout);
        }
        if kind == TimerKind::Keepalive {
            self.table.slot(index).reader.keep_buffers(&mut request, &mut self.inputs);
        }
        let token = request.token;
        self.table.slot(index).state = SlotState::Waiting(request);
        self.register(token, Interest::Read);
    }

    /// Makes epoll's interest in a connection what it should be; a connection that cannot be watched is closed.
    pub(super) fn register(&mut self, token: Token, interest: Interest) {
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
                    SlotState::Waiting(request)
                    | SlotState::Flushing(request)
                    | SlotState::Leaving(request)
                    | SlotState::Lingering(request, _) => {
                        self.close(request);
                    }
                    SlotState::Free(_) => unreachable!("only open connections are registered"),
                }
            }
        }
    }

    /// The client's time is over by the clock. What counts is what it has sent: where the loop, or the whole process, did
    /// not run for a while, that lies in the kernel.
    #[cold]
    fn read_or_end(&mut self, mut request: Box<Request>, kind: TimerKind) {
        let index = request.token.index;
        let reader = &mut self.table.slot(index).reader;
        reader.wake(false);
        let before = reader.received();
        // A little in any case: whether anything came must not depend on what others have moved in this turn.
        let received = self.read(&mut request, self.share().max(READ_BODY_BYTES));
        let came = self.table.slot(index).reader.received() > before;
        match (received, kind) {
            // Its time is counted from its first byte, however many come in the end.
            (Received::Waiting(TimerKind::Header) | Received::Again(TimerKind::Header), TimerKind::Header) => {
                self.refuse(request, refusal::HEAD_SLOW);
            }
            (Received::Waiting(_) | Received::Again(_), TimerKind::Keepalive) if !came => {
                // Silently: balancers' checks and browsers' spare connections send nothing.
                self.close(request);
            }
            (Received::Waiting(_) | Received::Again(_), TimerKind::Body) if !came => {
                self.refuse(request, refusal::BODY_SLOW);
            }
            (received, _) => self.go_on(request, received),
        }
    }

    pub(super) fn expire(&mut self) {
        while let Some((index, kind)) = self.timers.expired(self.now) {
            let slot = self.table.slot(index);
            let state = std::mem::replace(&mut slot.state, SlotState::Dispatched);
            match (kind, state) {
                (TimerKind::Keepalive | TimerKind::Header | TimerKind::Body, SlotState::Waiting(request)) => {
                    self.read_or_end(request, kind);
                }
                (TimerKind::Linger, SlotState::Lingering(request, _)) => self.close(request),
                (TimerKind::Write, state @ (SlotState::Flushing(_) | SlotState::Dispatched)) => {
                    slot.state = state;
                    self.judge_reader(index);
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
}
