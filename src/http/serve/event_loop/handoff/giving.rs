//! Giving connections away. A connection leaves the epoll set before it is sent, because its open file description lives on
//! elsewhere and epoll would go on to report it here (epoll(7), "Q6"). From then on nothing is read from it here, and what
//! the client sends stays in its socket.

use std::os::fd::AsFd;

use crate::serve::base::address::Local;
use crate::serve::base::handoff::{Given, Luggage};
use crate::serve::base::observers::{Giving, HandoffRefusal};
use crate::serve::conn::request::Request;
use crate::serve::event_loop::mode::Mode;
use crate::serve::event_loop::table::SlotState;
use crate::serve::event_loop::EventLoop;

use super::rules::{Standing, Whole};
use super::RETRY;

impl EventLoop {
    /// This worker finishes, and its connections go to others: idle ones at once, the others when they are answered. Those
    /// from the listeners `keep` stay: their address is given up, so no other worker has it.
    pub(in crate::serve::event_loop) fn begin_giving(&mut self, keep: &[u32]) {
        self.handoff.begin_giving();
        for index in 0..self.table.slots() {
            let slot = self.table.slot(index);
            slot.write_half.set_last(keep.contains(&slot.listener));
        }
        for _ in 0..self.ready.len() {
            if let Some(request) = self.ready.pop_front().and_then(|request| self.give_dispatched(request)) {
                self.ready.push_back(request);
            }
        }
        for _ in 0..self.later.len() {
            if let Some(request) = self.later.pop_front().and_then(|request| self.give_dispatched(request)) {
                self.later.push_back(request);
            }
        }
        for _ in 0..self.shared.run_queue.waiting() {
            if let Some(request) = self.shared.run_queue.take().and_then(|request| self.give_dispatched(request)) {
                self.shared.run_queue.push(request);
            }
        }
        for index in 0..self.table.slots() {
            if let Some(request) = self.take_waiting(index) {
                self.part_or_wait(request);
            }
        }
        self.send_leaving();
    }

    /// Connections stay from now on; those that wait for room in the queue are read again.
    pub(in crate::serve::event_loop) fn end_giving(&mut self) {
        self.handoff.end_giving();
        for index in 0..self.table.slots() {
            let slot = self.table.slot(index);
            slot.write_half.set_last(false);
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                SlotState::Leaving(request) => {
                    slot.reader.wake(false);
                    self.receive(request);
                }
                state @ (SlotState::Free(_)
                | SlotState::Waiting(_)
                | SlotState::Dispatched
                | SlotState::Flushing(_)
                | SlotState::Lingering(..)) => slot.state = state,
            }
        }
    }

    /// A connection that waits for something to read: it goes, or goes on waiting.
    fn part_or_wait(&mut self, request: Box<Request>) {
        let standing = self.standing(&request);
        if self.handoff.gives && standing.may_move() {
            self.part_with(request, standing);
        } else {
            let index = request.token.index;
            self.table.slot(index).state = SlotState::Waiting(request);
        }
    }

    /// A connection that was just answered. None: it goes.
    pub(in crate::serve::event_loop) fn part_after_answer(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        let standing = self.standing(&request);
        if !(self.handoff.gives && standing.may_move()) {
            return Some(request);
        }
        self.part_with(request, standing);
        self.send_leaving();
        None
    }

    fn standing(&mut self, request: &Request) -> Standing {
        let reader = &self.table.slot(request.token.index).reader;
        let (unused, in_body) = (reader.unused().len(), reader.is_in_body());
        Standing { unused, in_body, is_last: request.write_half.is_last() }
    }

    fn part_with(&mut self, request: Box<Request>, standing: Standing) {
        let token = request.token;
        self.timers.clear(token.index);
        self.unwatch(token.index);
        self.handoff.line.push(token, standing);
        self.table.slot(token.index).state = SlotState::Leaving(request);
    }

    fn unwatch(&mut self, index: u32) {
        let leaves = self.handoff.queue.as_ref().is_none_or(|queue| queue.leaves_epoll_first());
        let slot = self.table.slot(index);
        if slot.interest.take().is_some() && leaves {
            if let Err(error) = self.epoll.remove(slot.write_half.fd()) {
                log::error!("a connection cannot leave the epoll set: {error}");
            }
        }
    }

    /// Sends what has left, as far as the queue takes it.
    pub(in crate::serve::event_loop) fn send_leaving(&mut self) {
        if self.handoff.retry_at.is_some_and(|at| at > self.now) {
            return;
        }
        self.handoff.retry_at = None;
        while let Some(token) = self.handoff.line.first() {
            let Some(slot) = self.table.current(token) else {
                self.handoff.line.pop();
                continue;
            };
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                SlotState::Leaving(request) => match self.give(&request, false) {
                    Given::Sent => {
                        self.handoff.line.pop();
                        self.given(request, Giving::Leaving);
                    }
                    Given::Full => {
                        self.metrics.handoff_refused(HandoffRefusal::Full);
                        self.table.slot(token.index).state = SlotState::Leaving(request);
                        self.handoff.retry_at = Some(self.now + RETRY);
                        return;
                    }
                    Given::Broken => {
                        self.table.slot(token.index).state = SlotState::Leaving(request);
                        return self.queue_lost();
                    }
                },
                state @ (SlotState::Free(_)
                | SlotState::Waiting(_)
                | SlotState::Dispatched
                | SlotState::Flushing(_)
                | SlotState::Lingering(..)) => {
                    slot.state = state;
                    self.handoff.line.pop();
                }
            }
        }
    }

    /// As `give_whole`, of a request that was counted as given to the app side.
    fn give_dispatched(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        let kept = self.give_whole(request);
        self.dispatched -= u64::from(kept.is_none());
        kept
    }

    /// Offers a whole request that no thread has begun. Some: it stays, or cannot travel.
    #[cold]
    pub(in crate::serve::event_loop) fn give_whole(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        match self.handoff.gives {
            true => self.offer_whole(request, Giving::Leaving),
            false => Some(request),
        }
    }

    #[cold]
    pub(super) fn offer_whole(&mut self, request: Box<Request>, why: Giving) -> Option<Box<Request>> {
        let index = request.token.index;
        let unused = self.table.slot(index).reader.unused().len();
        let whole = Whole {
            bytes: request.raw_bytes() + unused,
            is_raw: request.is_raw(),
            is_last: request.write_half.is_last(),
        };
        let is_full = self.handoff.retry_at.is_some_and(|at| at > self.now);
        if is_full || !self.handoff.exists() || request.write_half.is_gone() || !whole.may_move() {
            return Some(request);
        }
        let interest = self.table.slot(index).interest;
        self.unwatch(index);
        match self.give(&request, true) {
            Given::Sent => {
                self.given(request, why);
                None
            }
            outcome @ (Given::Full | Given::Broken) => {
                if let Some(interest) = interest {
                    self.register(request.token, interest);
                }
                match outcome {
                    Given::Broken => self.queue_lost(),
                    Given::Full | Given::Sent => self.handoff.retry_at = Some(self.now + RETRY),
                }
                Some(request)
            }
        }
    }

    /// The table is full, and nobody has been idle for longer: it goes where there is a place for it. Some: there is none.
    pub(in crate::serve::event_loop) fn hand_over_idle(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        let standing = self.standing(&request);
        let has_room = || self.metrics.has_room_elsewhere(self.shared.rules.settings.connections);
        let is_full = self.handoff.retry_at.is_some_and(|at| at > self.now);
        if is_full || !self.handoff.exists() || !standing.may_move() || !has_room() {
            return Some(request);
        }
        self.timers.clear(request.token.index);
        self.unwatch(request.token.index);
        match self.give(&request, false) {
            Given::Sent => {
                self.given(request, Giving::Crowded);
                None
            }
            Given::Full => {
                self.metrics.handoff_refused(HandoffRefusal::Full);
                Some(request)
            }
            // It is found out where it is received from.
            Given::Broken => Some(request),
        }
    }

    fn give(&mut self, request: &Request, whole: bool) -> Given {
        let forked = self.shared.copies.has_forked();
        let slot = self.table.slot(request.token.index);
        let (Some(queue), Some(socket)) = (&mut self.handoff.queue, &slot.socket) else { return Given::Broken };
        let reader = &slot.reader;
        let begun = whole || reader.has_begun();
        let luggage = Luggage {
            listener: slot.listener,
            peer: request.peer.clone(),
            local: match *request.local {
                Local::Inet(address) => Some(address),
                Local::Unix(_) => None,
            },
            secure: request.secure,
            awaits_proxy: reader.awaits_proxy(),
            forked,
            limits: begun.then(|| reader.limits(&self.shared.rules).clone()),
            waits_since: whole.then_some(request.ready_at),
        };
        let [head, body] = if whole { request.raw() } else { [&b""[..]; 2] };
        queue.give(socket.as_fd(), &luggage, [head, body, reader.unused()])
    }

    /// It is another's now: no shutdown, and nothing is sent.
    fn given(&mut self, mut request: Box<Request>, why: Giving) {
        let index = request.token.index;
        request.write_half.close();
        self.shared.copies.note_socket(index, None);
        self.table.slot(index).reader.forget(&mut request, &mut self.inputs);
        drop(self.table.release(request));
        self.metrics.given(why);
    }

    /// Somebody has shut the queue down, for all who hold it. What this process has it serves itself, as if there had never
    /// been a queue.
    #[cold]
    pub(in crate::serve::event_loop) fn queue_lost(&mut self) {
        if self.handoff.queue.is_none() {
            return;
        }
        log::error!("the handoff queue is gone: connections stay with their workers");
        self.handoff.receives = false;
        self.handoff.watch(&self.epoll, true);
        self.handoff.queue = None;
        // What is held back stays so, unread.
        if self.mode == Mode::Held {
            return;
        }
        let gave = self.handoff.gives;
        self.end_giving();
        if gave {
            self.shared.set_closing(true);
        }
    }
}
