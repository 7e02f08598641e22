//! Answers that go out together, and queues that go out when the socket takes them.

use std::time::Duration;

use crate::serve::base::names::{TimerKind, Token};
use crate::serve::base::pace::{Pace, Window};
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::Drained;
use crate::serve::io::epoll::Interest;

use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    /// The leader enters the application with this request: whether its answer may wait for others.
    pub(super) fn defer_answer(&mut self, request: &mut Request) {
        if self.has_more() && self.flush_batch.may_defer(self.now) {
            self.flush_batch.push(request.token, self.now);
            request.answer.may_defer = true;
        }
    }

    /// The monitor has taken over.
    pub(super) fn monitor_took_over(&mut self) {
        self.flush_batch.record(Duration::MAX, self.now);
    }

    /// Sends the answers that wait for others.
    pub(super) fn flush(&mut self) {
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

    /// Bytes lie in the queue: send them when the socket takes them, and count the time.
    pub(super) fn watch_queue(&mut self, token: Token) {
        if self.table.write_half(token.index).is_queued() {
            let deadline = self.now + self.shared.rules.settings.write_timeout;
            let acked = self.table.write_half(token.index).acked_bytes();
            self.table.slot(token.index).ack_window = Window::begin(self.now, acked);
            self.timers.set(token.index, TimerKind::Write, deadline);
            // Adding or changing an interest reports a socket that is writable already (epoll_ctl(2)).
            self.register(token, Interest::ReadWrite);
        }
    }

    pub(super) fn drain(&mut self, token: Token) {
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
    pub(super) fn drop_reader(&mut self, index: u32) {
        let slot = self.table.slot(index);
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Flushing(request) => {
                log::info!("{} does not take its answer: closed (write_timeout)", request.peer);
                self.close(request);
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
    pub(super) fn flushed(&mut self, token: Token, broken: bool) {
        let Some(slot) = self.table.current(token) else { return };
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Flushing(request) if broken => self.close(request),
            SlotState::Flushing(request) => self.settle(request),
            state @ (SlotState::Dispatched | SlotState::Waiting(_) | SlotState::Lingering(..) | SlotState::Free(_)) => {
                slot.state = state;
            }
        }
    }
}
