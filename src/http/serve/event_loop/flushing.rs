//! Answers that go out together, and queues that go out when the socket takes them.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::serve::base::names::{Blocking, TimerKind, Token};
use crate::serve::base::pace::{Pace, Window};
use crate::serve::base::settings::Settings;
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::Drained;
use crate::serve::io::epoll::Interest;
use crate::serve::io::socket;

use super::table::{Slot, SlotState};
use super::EventLoop;

impl EventLoop {
    /// Whether more requests are there, so that an answer would not wait alone, and there is room for one that waits. An answer
    /// that ends its connection never waits (`Answer::is_complete`), and the monitor need not come for it.
    pub(super) fn may_defer(&self, request: &Request) -> bool {
        request.head.keep_alive && self.has_more() && !self.flush_batch.is_full()
    }

    /// The leader enters the application with this request, whose answer may wait for others.
    pub(super) fn defer_answer(&mut self, request: &mut Request) {
        self.flush_batch.push(request.token, self.now);
        request.answer.may_defer = true;
    }

    pub(super) fn holds_answers(&self) -> bool {
        !self.flush_batch.is_empty()
    }

    /// Sends the answers that wait for others.
    pub(super) fn flush(&mut self) {
        self.follows = true;
        while let Some(token) = self.flush_batch.next() {
            self.flush_answer(token);
        }
        self.follows = false;
    }

    /// The same while the application is at one of the requests, whose answer comes later.
    pub(super) fn flush_early(&mut self) {
        // The leader will want to be back soon.
        self.blocking = Blocking::Forbidden;
        self.follows = true;
        for _ in 0..self.flush_batch.len() {
            let Some(token) = self.flush_batch.next() else { break };
            if !self.flush_answer(token) && self.table.is_dispatched(token) {
                self.flush_batch.push(token, self.now);
            }
        }
        self.follows = false;
    }

    /// False: nothing waits. It went out at once, it is still to come, or it is queued as too large: then the loop is told,
    /// and has its time for it.
    fn flush_answer(&mut self, token: Token) -> bool {
        if self.table.current(token).is_none() {
            return false;
        }
        let Some(drained) = self.table.write_half(token.index).drain_deferred() else { return false };
        match drained {
            Drained::Empty => self.flushed(token, false),
            Drained::Broken => {
                self.table.write_half(token.index).mark_gone();
                self.flushed(token, true);
            }
            Drained::Unreadable(error) => {
                self.table.write_half(token.index).cut(error);
                self.flushed(token, true);
            }
            Drained::Blocked { .. } | Drained::Again | Drained::Cold => self.watch_queue(token),
        }
        true
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

    /// Over which time it counts how much a client has taken. Its timer expires each `write_timeout` in any case.
    fn patience(&mut self, index: u32) -> Duration {
        let settings = &self.shared.rules.settings;
        if is_proxy(self.table.slot(index), settings) {
            settings.write_timeout.max(settings.proxy_write_timeout)
        } else {
            settings.write_timeout
        }
    }

    /// A client has taken nothing for `write_timeout`, as far as the queue tells. It may still take what lies in the
    /// socket, which can be megabytes before there is room for more.
    #[cold]
    pub(super) fn judge_reader(&mut self, index: u32) {
        let patience = self.patience(index);
        let settings = &self.shared.rules.settings;
        let slot = self.table.slot(index);
        let acked = slot.write_half.acked_bytes();
        let pace = if is_proxy(slot, settings) {
            slot.ack_window.look(self.now, acked, patience)
        } else {
            slot.ack_window.close(self.now, acked, patience)
        };
        match pace {
            Pace::Open | Pace::Kept => {
                slot.write_half.note_ack_progress();
                self.timers.set(index, TimerKind::Write, self.now + settings.write_timeout);
            }
            Pace::Slow => self.drop_reader(index),
        }
    }

    pub(super) fn drain(&mut self, token: Token) {
        let index = token.index;
        let files = &self.shared.files;
        let in_memory = |file: BorrowedFd<'_>, offset, length| files.is_in_memory(file, offset, length);
        let (drained, sent) = self.table.write_half(index).drain(self.share(), &in_memory);
        self.spend(sent);
        match drained {
            Drained::Blocked { progress: false } => {}
            Drained::Blocked { progress: true } => {
                let timeout = self.patience(index);
                let acked = self.table.write_half(index).acked_bytes();
                match self.table.slot(index).ack_window.look(self.now, acked, timeout) {
                    Pace::Open | Pace::Kept => {
                        let deadline = self.now + self.shared.rules.settings.write_timeout;
                        self.timers.set(index, TimerKind::Write, deadline);
                    }
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
            Drained::Cold => self.await_file(token),
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
            Drained::Unreadable(error) => {
                self.timers.clear(index);
                self.table.write_half(index).cut(error);
                self.flushed(token, true);
            }
        }
    }

    /// The client takes too little of its answer.
    #[cold]
    pub(super) fn drop_reader(&mut self, index: u32) {
        let slot = self.table.slot(index);
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Flushing(request) => {
                log::info!("{} does not take its answer: closed (write_timeout)", request.peer);
                request.write_half.drop_client();
                self.close(request);
            }
            // The app side has it, and learns of it by the write half.
            SlotState::Dispatched => {
                log::info!("a client does not take its answer: dropped (write_timeout)");
                self.table.write_half(index).drop_client();
            }
            state @ (SlotState::Free(_) | SlotState::Waiting(_) | SlotState::Leaving(_) | SlotState::Lingering(..)) => {
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
            state @ (SlotState::Dispatched
            | SlotState::Waiting(_)
            | SlotState::Leaving(_)
            | SlotState::Lingering(..)
            | SlotState::Free(_)) => {
                slot.state = state;
            }
        }
    }
}

/// Asked of the kernel and not of the request, whose peer is who a PROXY header says.
pub(super) fn is_proxy(slot: &mut Slot, settings: &Settings) -> bool {
    *slot.is_proxy.get_or_insert_with(|| {
        let peer = socket::peer(slot.write_half.fd());
        peer.is_some_and(|peer| (settings.is_proxy.0)(&peer))
    })
}
