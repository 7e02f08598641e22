//! Taking connections, and carrying out commands. What to do is decided elsewhere (`admission`, `mode`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::proto::refusal;
use crate::serve::base::names::{TimerKind, Token};
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::WriteHalf;

use super::admission::{Decision, Load, View};
use super::listeners::{Accepted, Origin};
use super::mode::{Change, Command, Handoff, Keepalive, Mode, Report};
use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    #[cold]
    pub(super) fn command(&mut self, command: Command) {
        let page = match &command {
            Command::Maintenance(page) => Some(page.clone()),
            Command::Serve
            | Command::Drain { .. }
            | Command::CloseListeners(_)
            | Command::Yield
            | Command::StandAside
            | Command::Stop { .. }
            | Command::Orphaned
            | Command::Retire
            | Command::Pause
            | Command::Look => None,
        };
        if let Some(page) = page {
            self.set_page(page);
        }
        let (mode, effects) = self.mode.obey(command);
        self.mode = mode;
        if let Some(accepting) = effects.accepting {
            self.metrics.accepting(accepting);
            self.shedding.serves_since = self.now;
            self.shared.set_closing(!accepting);
            self.report_draining &= !accepting;
            self.report_paused &= self.mode == Mode::Maintenance;
        }
        self.hand_off(&effects.handoff);
        match effects.listeners {
            Change::Resume => self.listeners.resume(&self.epoll),
            Change::Look => self.look_at_doors(),
            Change::PauseAllBut(keep) => self.listeners.pause(&self.epoll, |id| !keep.contains(&id)),
            Change::Close(which) => self.close_listeners(|id| which.contains(&id)),
            Change::CloseAll => self.close_listeners(|_| true),
            Change::ResumeAndCloseAll => {
                self.listeners.resume(&self.epoll);
                self.close_listeners(|_| true);
            }
        }
        match effects.keepalive {
            Keepalive::Unchanged => {}
            Keepalive::AsConfigured => {
                self.keepalive = self.shared.rules.settings.idle_timeout();
                self.stopping = false;
            }
            Keepalive::AtMost(idle) => {
                self.stopping = true;
                self.keepalive = self.keepalive.min(idle);
                self.timers.bring_forward(TimerKind::Keepalive, self.now + self.keepalive);
            }
        }
        while let Some(request) = effects.recall.then(|| self.shared.run_queue.take()).flatten() {
            self.dispatched -= 1;
            if let Some(request) = self.give_whole(request) {
                self.refuse_later(request, refusal::RETIRING);
            }
        }
        match effects.report {
            Report::Nothing => {}
            Report::Serving => self.reports.serving(),
            Report::Draining => self.reports.draining(),
            Report::DrainingOnceQuiet => self.report_draining = true,
            Report::PausedOnceQuiet => self.report_paused = true,
            Report::Maintenance => {
                self.turn_bodies_away();
                self.reports.maintenance();
            }
        }
    }

    fn hand_off(&mut self, handoff: &Handoff) {
        match handoff {
            Handoff::Unchanged => return,
            Handoff::Receive | Handoff::Empty => {
                self.handoff.receive(true);
                self.end_giving();
            }
            Handoff::Nothing => {
                self.handoff.receive(false);
                self.end_giving();
            }
            Handoff::GiveAllBut(keep) => {
                self.handoff.receive(false);
                if self.handoff.exists() {
                    self.shared.set_closing(false);
                    self.begin_giving(keep);
                } else {
                    // It may have been held back.
                    self.end_giving();
                }
            }
            Handoff::HoldBack => {
                self.handoff.receive(false);
                self.shared.set_closing(false);
                self.begin_giving(&[]);
            }
        }
        self.watch_queue_of_others();
    }

    /// Nothing is heard of the queue while nothing would be taken from it.
    pub(super) fn watch_queue_of_others(&mut self) {
        let admission = &self.listeners.admission;
        let takes_in_only = admission.is_behind() && !admission.has_time(self.load());
        let masked = admission.is_masked() || self.table.is_full() || takes_in_only;
        self.handoff.watch(&self.epoll, masked);
    }

    fn close_listeners(&mut self, which: impl Fn(u32) -> bool) {
        self.listeners.begin_closing(&self.epoll, which, |fd| self.shared.copies.forget_fd(fd));
    }

    /// Whether connections wait is tried out in this turn.
    pub(super) fn look_at_doors(&mut self) {
        self.listeners.look();
        self.handoff.look();
    }

    /// What an event of this turn tells of listeners and the queue.
    pub(super) fn note_doors(&mut self) {
        for event in self.epoll.fetched() {
            if event.token == Token::QUEUE && !event.gone {
                self.handoff.mark_ready();
            } else if let Some(index) = event.token.as_listener() {
                self.listeners.mark_ready(index);
            }
        }
    }

    /// This worker slept, and the kernel has woken nobody else for what waits at these doors. So one connection is taken from
    /// each before a thread is given anything else to do, which may take long.
    pub(super) fn answer_call(&mut self) {
        // It would cost an idle connection its place, whose next request may be among this turn's events.
        if self.table.is_full() {
            return;
        }
        let mut next = 0;
        while let Some(index) = self.listeners.called(next) {
            next = index + 1;
            if matches!(self.accept_one(index), Outcome::Taken) {
                self.listeners.admission.count();
            }
        }
        if self.handoff.is_ready() && matches!(self.adopt_one(), Outcome::Taken) {
            self.listeners.admission.count();
        }
    }

    /// Before the loop sleeps: a worker that could take nothing must not be woken, and one that has more than others is woken
    /// after them.
    pub(super) fn prepare_to_sleep(&mut self) {
        let view = self.view();
        if !self.listeners.admission.could_take(view) {
            // What waits is not known: when it is a new one's turn, it is looked up.
            self.listeners.admission.line_up(view.load, 1);
            self.mask_doors(true);
        }
        if self.listeners.admission.is_masked() {
            // Threads may have come back, and have told nobody before this.
            let view = self.view();
            if self.listeners.admission.should_unmask(view) {
                self.mask_doors(false);
            }
        }
        let open = self.table.open();
        if self.listeners.admission.may_be_ahead(open) {
            self.listeners.admission.looked_ahead();
            if self.metrics.is_ahead(open) {
                self.listeners.go_to_back(&self.epoll);
                self.handoff.go_to_back(&self.epoll);
            }
        }
        self.watch_queue_of_others();
    }

    fn view(&mut self) -> View {
        let load = self.load();
        View {
            now: self.now,
            load,
            has_slot: self.has_slot(),
            waits: false,
            may_be_more: self.epoll.was_full(),
            leaves_rest: false,
            takes_in: self.takes_in(load),
        }
    }

    #[cold]
    fn mask_doors(&mut self, masked: bool) {
        self.shared.set_awaits_thread(masked);
        self.listeners.set_masked(&self.epoll, masked);
    }

    /// Takes one connection. False: that is all for this turn.
    pub(super) fn accept(&mut self) -> bool {
        self.share_waiting();
        let more = self.accept_next();
        // If that is all, the next look is before the loop sleeps.
        if more {
            self.watch_queue_of_others();
        }
        more
    }

    /// Nobody waits, nobody has waited, and nothing ends: `accept` would change nothing. Most turns are like this, since
    /// most requests come on connections that are there.
    pub(super) fn are_doors_quiet(&self) -> bool {
        let reports = self.report_draining || self.report_paused;
        let waits = self.handoff.is_ready() || self.shared.run_queue.has_waiting();
        self.listeners.are_idle() && !waits && !reports
    }

    #[inline(never)]
    fn accept_next(&mut self) -> bool {
        if let Some(index) = self.listeners.closing() {
            match self.accept_one(index) {
                Outcome::Taken => return true,
                Outcome::Empty => {
                    if let Some(fd) = self.listeners.take(index) {
                        self.shared.copies.forget_fd(fd.as_raw_fd());
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
        if self.report_paused && self.table.nothing_under_way(self.mode == Mode::Maintenance) {
            self.report_paused = false;
            self.reports.paused();
        }
        let mut view = self.view();
        if self.listeners.admission.should_unmask(view) {
            self.mask_doors(false);
        }
        self.watch_queue_of_others();
        let listener = self.listeners.next_ready();
        // What lies in the queue is for whoever has a free thread.
        let may_adopt = !view.takes_in || listener.is_none();
        let ready = match may_adopt && self.handoff.takes_turn(listener.is_some()) {
            true => Some(Door::Queue),
            false => listener.map(Door::Listener),
        };
        view.takes_in &= matches!(ready, Some(Door::Listener(_)));
        view.waits = ready.is_some();
        let open = self.table.open();
        view.leaves_rest = view.waits
            && self.listeners.admission.may_leave_rest(open)
            && self.metrics.is_ahead(open)
            && self.metrics.free_siblings() > 0;
        let decision = self.listeners.admission.decide(view);
        let outcome = match (decision, ready) {
            (Decision::Accept, Some(Door::Listener(index))) => self.accept_one(index),
            (Decision::Accept, Some(Door::Queue)) => self.adopt_one(),
            (Decision::Mask, _) => Outcome::Stalled,
            (Decision::Rest | Decision::Accept, _) => {
                self.end_pass();
                return false;
            }
        };
        match outcome {
            Outcome::Taken => self.listeners.admission.count(),
            Outcome::Empty => {}
            Outcome::Stalled => {
                self.listeners.line_up(view.load, u64::from(self.handoff.is_ready()));
                self.mask_doors(true);
                self.end_pass();
            }
        }
        !matches!(outcome, Outcome::Stalled)
    }

    fn end_pass(&mut self) {
        self.listeners.end_pass();
        self.handoff.end_pass();
        self.listeners.admission.end_turn(self.shared.run_queue.has_waiting());
        self.shared.set_behind(self.listeners.admission.is_behind());
        self.shared.set_lined_up(self.listeners.admission.has_line());
    }

    /// Connections are taken in although no thread is free for them: some have waited for too long, and no sibling has a free
    /// thread either.
    fn takes_in(&self, load: Load) -> bool {
        let admission = &self.listeners.admission;
        admission.is_behind() && !admission.has_time(load) && !self.table.is_full() && self.metrics.free_siblings() == 0
    }

    pub(super) fn load(&self) -> Load {
        let (threads, completed) = (self.shared.rules.settings.threads as u64, self.shared.completed());
        // Whoever is turned away needs no thread, so it does not matter what those are at.
        let dispatched = if self.mode == Mode::Maintenance { completed } else { self.dispatched };
        Load { threads, dispatched, completed }
    }

    /// Whether a new connection would find a slot, by closing the longest-idle one if need be.
    fn has_slot(&self) -> bool {
        !self.table.is_full() || self.timers.first(TimerKind::Keepalive).is_some()
    }

    fn accept_one(&mut self, index: usize) -> Outcome {
        if !self.has_slot() || self.listeners.admission.is_paused(self.now) {
            return Outcome::Stalled;
        }
        let sheds = self.shared.rules.settings.queue_limit.is_some_and(|limit| limit.sheds);
        match self.listeners.accept(index, self.now, sheds) {
            Accepted::Connection { socket, origin, waited } => {
                self.open(socket, origin, waited);
                Outcome::Taken
            }
            Accepted::Empty => Outcome::Empty,
            Accepted::Stalled => Outcome::Stalled,
        }
    }

    /// `waited`: since its client has sent what is there.
    fn open(&mut self, socket: OwnedFd, origin: Origin, waited: Option<Duration>) {
        if let Some(mut request) = self.open_slot(socket, origin) {
            request.waits_since = waited.and_then(|waited| self.now.checked_sub(waited));
            // Who accepts while it gives connections away does so from an address that is given up.
            request.write_half.set_last(self.handoff.gives());
            self.metrics.accepted();
            // The request often is there already; then epoll need not know of a connection that ends with it.
            self.receive(request);
        }
    }

    /// The table has a new connection; nothing of it has been read here.
    pub(super) fn open_slot(&mut self, socket: OwnedFd, origin: Origin) -> Option<Box<Request>> {
        if self.table.is_full() {
            if let Some(request) = self.timers.first(TimerKind::Keepalive).and_then(|index| self.take_waiting(index)) {
                if let Some(request) = self.hand_over_idle(request) {
                    self.close(request);
                }
            }
        }
        let fd = socket.as_raw_fd();
        let rules = &self.shared.rules;
        let make = || WriteHalf::new(rules.memory.charge(), rules.settings.response_buffer);
        let (slot, memory) = self.table.take(socket, self.now, make)?;
        let token = slot.token;
        slot.write_half.open(fd);
        self.shared.copies.note_socket(token.index, Some(fd));
        let Origin { listener, peer, local, proxy } = origin;
        slot.listener = listener;
        let mut request = memory.unwrap_or_else(|| {
            let (write_half, local) = (Arc::clone(&slot.write_half), Arc::clone(&local));
            Box::new(Request::new(token, write_half, local, rules, self.now))
        });
        request.open(token, peer, local);
        slot.reader.open(proxy);
        Some(request)
    }

    pub(super) fn take_waiting(&mut self, index: u32) -> Option<Box<Request>> {
        let slot = self.table.slot(index);
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Waiting(request) => Some(request),
            state @ (SlotState::Free(_)
            | SlotState::Dispatched
            | SlotState::Flushing(_)
            | SlotState::Leaving(_)
            | SlotState::Lingering(..)) => {
                slot.state = state;
                None
            }
        }
    }
}

/// Where the next connection comes from.
#[derive(Clone, Copy)]
enum Door {
    Listener(usize),
    /// Other workers.
    Queue,
}

pub(super) enum Outcome {
    Taken,
    Empty,
    Stalled,
}
