//! A turn of the loop, from one fetch of events to the next: events, chores, accepting, in small steps, so that whoever
//! leads can leave after each.

use std::io;
use std::time::{Duration, Instant};

use crate::proto::refusal;
use crate::serve::base::names::{Blocking, Token};
use crate::serve::base::settings::{HEARTBEAT, TURN_BYTES_MAX};
use crate::serve::conn::request::Request;
use crate::serve::io::epoll::Event;

use super::accepting::Outcome;
use super::handoff::sharing::LOOK_AGAIN;
use super::interface::Step;
use super::mailbox::Notice;
use super::mode::Mode;
use super::table::SlotState;
use super::EventLoop;

/// What a turn of the loop, from one fetch of events to the next, is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnPhase {
    /// The loop slept, and may have been woken for a new connection.
    Called,
    Events,
    /// What the app threads and the handles have left in the inbox, and what has come due.
    Chores,
    Accepting,
    /// Everything was done that can be done now.
    Idle,
}

impl EventLoop {
    /// More requests may come of what was fetched.
    pub(super) fn has_more(&self) -> bool {
        !self.ready.is_empty() || (self.phase == TurnPhase::Events && self.epoll.peek().is_some())
    }

    /// The next request of this turn. It may have to be read for that.
    pub(super) fn next_fetched(&mut self) -> Option<Box<Request>> {
        loop {
            if let Some(request) = self.ready.pop_front() {
                return Some(request);
            }
            let event = self.epoll.peek().filter(|_| self.phase == TurnPhase::Events)?;
            if self.blocking == Blocking::Forbidden && self.table.is_heavy(event.token) {
                return None;
            }
            self.epoll.advance();
            self.event(event);
        }
    }

    /// Goes on with what was fetched until there is a request, or nothing more to do. Never waits.
    pub(super) fn step(&mut self, blocking: Blocking) -> Step<Box<Request>> {
        self.blocking = blocking;
        if self.phase == TurnPhase::Called {
            self.phase = TurnPhase::Events;
            self.answer_call();
        }
        loop {
            if !self.flush_batch.is_empty() {
                let waits = blocking == Blocking::Forbidden && self.has_more() && !self.flush_batch.is_due(self.now);
                if !waits {
                    self.flush();
                }
            }
            if let Some(request) = self.ready.pop_front() {
                // Its client has gone before anybody began with it.
                if request.is_abandoned(self.now) {
                    self.dispatched -= 1;
                    self.close(request);
                    continue;
                }
                if self.asks_for_health(&request) {
                    self.dispatched -= 1;
                    self.answer_health(request);
                    continue;
                }
                if request.is_late(self.now) {
                    self.dispatched -= 1;
                    self.shed(request);
                    continue;
                }
                if self.mode == Mode::Retiring {
                    self.dispatched -= 1;
                    if let Some(request) = self.give_whole(request) {
                        self.refuse_later(request, refusal::RETIRING);
                    }
                    continue;
                }
                let Some(request) = self.share_line(request) else { continue };
                self.report_connections();
                return Step::Request(request);
            }
            if let Some((request, refusal)) = self.refused.pop_front() {
                if blocking == Blocking::Forbidden {
                    self.refused.push_front((request, refusal));
                    return Step::Idle;
                }
                self.refuse(request, refusal);
                continue;
            }
            match self.phase {
                TurnPhase::Called | TurnPhase::Events => match self.epoll.peek() {
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
                    if self.are_doors_quiet() {
                        self.watch_queue_of_others();
                        self.report_connections();
                        self.phase = TurnPhase::Idle;
                    } else if !self.accept() {
                        self.report_connections();
                        self.phase = TurnPhase::Idle;
                    }
                }
                TurnPhase::Idle if self.broken => return Step::Done,
                // What another worker has sent before it heard of the end is still served.
                TurnPhase::Idle if self.is_done() => match self.adopt_one() {
                    Outcome::Taken => {}
                    Outcome::Empty | Outcome::Stalled => return Step::Done,
                },
                TurnPhase::Idle => return Step::Idle,
            }
        }
    }

    /// Waits for events, unless there is something else to do. True: a signal came. Only the main thread is told; where another
    /// thread leads, the kernel has told that one, and would not tell the main thread again.
    pub(super) fn fetch(&mut self, is_main: bool) -> bool {
        if is_main && std::mem::take(&mut self.signalled) {
            return true;
        }
        // A step that must not block has left something.
        if self.phase != TurnPhase::Idle || !self.refused.is_empty() {
            return false;
        }
        if !self.later.is_empty() {
            self.ready.append(&mut self.later);
        }
        let timeout = self.timeout();
        let (interrupted, slept) = match self.wait(timeout) {
            Ok(waited) => waited,
            Err(error) => {
                // EBADF or EINVAL: the descriptor was closed under us. Nothing can be served any more.
                log::error!("the event loop ends: {error}");
                self.broken = true;
                return false;
            }
        };
        self.shared.mailbox.awake();
        self.now = Instant::now();
        self.fetched_at = self.now;
        self.metrics.heartbeat();
        self.listeners.admission.begin_turn();
        self.followed = 0;
        self.turn_left = TURN_BYTES_MAX;
        self.note_doors();
        if self.now >= self.look_at {
            self.look_at = self.now + HEARTBEAT;
            self.look_at_doors();
        }
        // Who does not sleep is not woken, and the kernel has told the next one too.
        self.phase = if slept { TurnPhase::Called } else { TurnPhase::Events };
        is_main && interrupted
    }

    /// Fetches a batch of events. Whether a signal came, and whether the loop slept.
    fn wait(&mut self, timeout: Duration) -> io::Result<(bool, bool)> {
        if timeout.is_zero() {
            return Ok((self.epoll.wait(timeout)?, false));
        }
        self.prepare_to_sleep();
        // Where connections come one after the other and processors are few, whoever makes them waits for this one. It makes
        // several in its turn, and nobody has to be woken for them. Where nobody waits for a processor, this is nothing.
        if self.listeners.admission.has_accepted() && self.metrics.free_siblings() > 0 {
            std::thread::yield_now();
            let interrupted = self.epoll.wait(Duration::ZERO)?;
            if interrupted || self.epoll.peek().is_some() {
                return Ok((interrupted, false));
            }
        }
        Ok((self.epoll.wait(timeout)?, true))
    }

    pub(super) fn is_done(&self) -> bool {
        self.mode.is_ending() && self.table.open() == 0 && self.listeners.are_quiet()
    }

    /// Ones for somebody who may block.
    fn has_chores(&self) -> bool {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= self.now);
        !self.runnable.is_empty() || due(self.timers.next_deadline())
    }

    fn do_chores(&mut self) {
        if self.shared.mailbox.is_pending() {
            self.empty_mailbox();
        }
        self.shed_waiting();
        if !self.runnable.is_empty() {
            self.run_runnable();
        }
        self.send_leaving();
        self.expire();
    }

    #[inline(never)]
    fn empty_mailbox(&mut self) {
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.mailbox.collect(&mut inbox);
        while let Some(notice) = inbox.notices.pop_front() {
            self.notice(notice);
        }
        while let Some(command) = inbox.commands.pop_front() {
            self.command(command);
        }
        self.inbox = inbox;
    }

    fn timeout(&self) -> Duration {
        if !self.runnable.is_empty() || !self.ready.is_empty() || !self.shared.mailbox.fall_asleep() {
            return Duration::ZERO;
        }
        let deadlines =
            [self.timers.next_deadline(), self.listeners.admission.next_deadline(), self.handoff.retry_at()];
        let line = self.has_line().then(|| self.now + LOOK_AGAIN);
        let deadline = deadlines.into_iter().flatten().chain(line).chain(self.shed_at()).min();
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
        if event.token == Token::QUEUE && event.gone {
            self.queue_lost();
        }
        // Noted when they were fetched (`note_doors`).
        if event.token == Token::QUEUE || event.token.as_listener().is_some() {
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
                SlotState::Waiting(request) | SlotState::Flushing(request) | SlotState::Lingering(request, _) => {
                    self.close(request);
                }
                // An event of before it left. Whoever takes it will find out.
                SlotState::Leaving(request) => self.table.slot(index).state = SlotState::Leaving(request),
                SlotState::Free(_) => unreachable!("`current` gives no free slot"),
            }
            return;
        }
        if event.writable && self.table.write_half(index).is_queued() {
            self.drain(event.token);
        }
        if event.readable || event.half_closed {
            self.readable(event);
        }
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Queued(token) => {
                if self.table.current(token).is_some() {
                    self.watch_queue(token);
                }
            }
            Notice::Returned(request) => self.settle(request),
            Notice::Late(request) => self.shed(request),
            Notice::Overdue(number) => self.answer_overdue(number),
            Notice::Written(token, batch) => self.batch_written(token, *batch),
            Notice::ReadAhead(token, until) => self.read_ahead(token, until),
        }
    }

    pub(super) fn report_connections(&mut self) {
        let open = self.table.open();
        if open != self.reported {
            self.reported = open;
            self.metrics.connections(open);
        }
    }
}
