//! How many connections to take, and when. Decides only: no socket is touched here.
//!
//! All workers share the listeners, and whoever has a free thread takes a connection, so that the kernel's queue balances
//! between them. Therefore: never more at a time than there are free threads, nothing is heard of listeners while there
//! is none, and new connections stand in one line with the requests that wait for a thread. The one that was woken for a
//! connection takes it, and never leaves it to others: a worker that has more to do than the others makes that the kernel
//! wakes them first.
//!
//! The kernel's queue knows no order but arrival. Who comes behind a thousand costly requests would wait for all of them. So
//! where somebody has waited there for too long and no sibling has a free thread, all are taken in, and their requests wait
//! here in an order that lets a stranger through (`fair_line`).

use std::time::{Duration, Instant};

use crate::serve::base::settings::{ASK_WAIT_EVERY, BEHIND_AFTER, TURN_ACCEPTS_MAX};

#[derive(Debug)]
pub struct Admission {
    masked: bool,
    /// This turn's events were fetched while masked, and say nothing.
    unheard: bool,
    /// Out of descriptors or memory until then.
    paused_until: Option<Instant>,
    line: Option<Line>,
    behind: Behind,
    asked_at: Option<Instant>,
    accepted_this_turn: u32,
    /// Since the others were last put before this worker.
    accepted_in_front: u32,
}

/// Whether those who wait are taken in before a thread is free for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    No,
    /// Somebody has waited in the kernel's queue for too long.
    Yes,
    /// Nobody waits there any more, but requests do here.
    TakenIn,
}

/// In the same line as the requests that wait for a thread, for connections that wait to be taken. Without it keep-alive
/// clients that keep every thread busy would shut out new ones for ever.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// The number of requests before the next of them.
    at: u64,
    /// How many there are: who came together waits together, and not each for a line of its own.
    connections: u64,
}

/// How busy the app threads are.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub threads: u64,
    pub dispatched: u64,
    pub completed: u64,
}

/// What the loop sees when it looks whether to accept.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub now: Instant,
    pub load: Load,
    /// A new connection would find a slot.
    pub has_slot: bool,
    /// By this turn's events a connection waits.
    pub waits: bool,
    /// There may be more events than were fetched.
    pub may_be_more: bool,
    /// A sibling has less to do, and a free thread: it was woken for one of those that wait.
    pub leaves_rest: bool,
    /// Nobody has a free thread, here or elsewhere, and there are free slots.
    pub takes_in: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Accept,
    /// Nothing more in this turn.
    Rest,
    /// Nothing more, and nothing shall be heard until there is time.
    Mask,
}

/// Connections that a worker takes before it looks whether others have taken fewer: each time it steps back costs two
/// system calls, so that they are not felt.
const FRONT_ACCEPTS: u32 = 16;

impl Line {
    /// One of them was taken.
    fn next(self) -> Option<Line> {
        let connections = self.connections.checked_sub(1).filter(|&left| left > 0)?;
        Some(Line { at: self.at + 1, connections })
    }
}

impl Load {
    fn free(self) -> u64 {
        (self.threads + self.completed).saturating_sub(self.dispatched)
    }
}

impl Admission {
    pub fn new() -> Admission {
        Admission {
            masked: false,
            unheard: false,
            paused_until: None,
            line: None,
            behind: Behind::No,
            asked_at: None,
            accepted_this_turn: 0,
            accepted_in_front: 0,
        }
    }

    pub fn begin_turn(&mut self) {
        self.accepted_this_turn = 0;
    }

    /// Whether accepting rests; ends a rest that is over.
    pub fn is_paused(&mut self, now: Instant) -> bool {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        self.paused_until.is_some()
    }

    pub fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    /// How many connections the threads have time for.
    fn budget(&self, load: Load) -> u64 {
        let in_line =
            self.line.map_or(0, |line| (load.threads + load.completed).saturating_sub(line.at).min(line.connections));
        load.free().max(in_line)
    }

    /// The threads have time for another connection.
    pub fn has_time(&self, load: Load) -> bool {
        self.budget(load) > 0
    }

    /// Whether listeners, masked until now, shall be heard again.
    pub fn should_unmask(&mut self, view: View) -> bool {
        self.masked && self.could_take(view)
    }

    /// Whether a connection that comes now could be taken.
    pub fn could_take(&mut self, view: View) -> bool {
        !self.is_paused(view.now) && view.has_slot && (self.has_time(view.load) || view.takes_in)
    }

    /// It may be time to have others woken first: this worker has so many connections that others may have fewer, or has
    /// taken some.
    pub fn may_be_ahead(&self, open: usize) -> bool {
        (self.accepted_in_front > 0 && open > 0) || self.accepted_in_front >= FRONT_ACCEPTS
    }

    /// Some were taken in this turn.
    pub fn has_accepted(&self) -> bool {
        self.accepted_this_turn > 0
    }

    /// One was taken in this turn, and stays: what else waits may be for others.
    pub fn may_leave_rest(&self, open: usize) -> bool {
        self.accepted_this_turn > 0 && open > 0
    }

    /// The others are woken before this worker now, or it has looked, and is not ahead.
    pub fn looked_ahead(&mut self) {
        self.accepted_in_front = 0;
    }

    /// Whether to ask the kernel for how long the connection has waited that comes next.
    pub fn asks_wait(&mut self, now: Instant) -> bool {
        let asks = self.has_line() && self.asked_at.is_none_or(|at| now >= at + ASK_WAIT_EVERY);
        if asks {
            self.asked_at = Some(now);
        }
        asks
    }

    /// It has waited for so long.
    pub fn note_wait(&mut self, waited: Duration) {
        if waited >= BEHIND_AFTER {
            self.behind = Behind::Yes;
        }
    }

    /// Somebody may have waited for too long.
    pub fn fall_behind(&mut self) {
        self.behind = Behind::Yes;
    }

    /// Connections wait to be taken, as far as is known.
    pub fn has_line(&self) -> bool {
        self.line.is_some()
    }

    pub fn is_behind(&self) -> bool {
        match self.behind {
            Behind::Yes | Behind::TakenIn => true,
            Behind::No => false,
        }
    }

    /// The turn is over. `waiting`: requests wait here for a thread.
    pub fn end_turn(&mut self, waiting: bool) {
        if self.behind == Behind::TakenIn && !waiting {
            self.behind = Behind::No;
        }
    }

    fn note_empty(&mut self) {
        self.line = None;
        if self.behind == Behind::Yes {
            self.behind = Behind::TakenIn;
        }
    }

    pub fn decide(&mut self, view: View) -> Decision {
        let has_time = self.has_time(view.load) || view.takes_in;
        match view.waits {
            true if !has_time => Decision::Mask,
            true if self.accepted_this_turn >= TURN_ACCEPTS_MAX => Decision::Rest,
            // The next turn follows at once, and takes one more if none came for it.
            true if view.leaves_rest => Decision::Rest,
            true if !view.has_slot || self.is_paused(view.now) => Decision::Mask,
            true => Decision::Accept,
            false => {
                self.none_waits(view.may_be_more);
                Decision::Rest
            }
        }
    }

    /// One was taken in answer to `Accept`.
    pub fn count(&mut self) {
        self.accepted_this_turn += 1;
        self.accepted_in_front += 1;
    }

    /// One was taken, for whatever reason: the line moves on.
    pub fn accepted(&mut self) {
        self.line = self.line.and_then(Line::next);
    }

    /// A listener was found empty.
    pub fn found_none(&mut self) {
        self.note_empty();
    }

    /// No connection waits, as far as this turn's events say.
    fn none_waits(&mut self, may_be_more: bool) {
        if self.masked {
            return;
        }
        if !self.unheard && !may_be_more {
            // Siblings have taken them: their place in the line must not be there for others that come later.
            self.note_empty();
        }
    }

    /// The turn's events were handled.
    pub fn end_pass(&mut self) {
        self.unheard = false;
    }

    /// No thread or no slot is free: these connections take a place in the line.
    pub fn line_up(&mut self, load: Load, connections: u64) {
        self.line.get_or_insert(Line { at: load.dispatched, connections });
    }

    /// Nothing has to be noted of a turn in which nobody waits.
    pub fn is_calm(&self) -> bool {
        let rests = self.masked || self.unheard || self.paused_until.is_some();
        !rests && self.line.is_none() && self.behind == Behind::No
    }

    pub fn is_masked(&self) -> bool {
        self.masked
    }

    /// False: it is so already.
    pub fn set_masked(&mut self, masked: bool) -> bool {
        let changes = self.masked != masked;
        if changes {
            self.masked = masked;
            self.unheard = !masked;
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::base::settings::ACCEPT_PAUSE;

    fn load(dispatched: u64, completed: u64) -> Load {
        Load { threads: 2, dispatched, completed }
    }

    fn waiting(now: Instant, load: Load) -> View {
        let (has_slot, waits) = (true, true);
        View { now, load, has_slot, waits, may_be_more: false, leaves_rest: false, takes_in: false }
    }

    /// A turn passes by the doors only where a pass would note nothing.
    #[test]
    fn whatever_a_pass_could_end_is_not_calm() {
        let now = Instant::now();
        let calm = || {
            let admission = Admission::new();
            assert!(admission.is_calm());
            admission
        };
        let mut paused = calm();
        paused.pause(now + Duration::from_millis(1));
        assert!(!paused.is_calm());
        assert!(!paused.is_paused(now + Duration::from_millis(1)) && paused.is_calm());
        let mut masked = calm();
        masked.set_masked(true);
        assert!(!masked.is_calm());
        // Unmasked, what waits has not been heard of yet.
        masked.set_masked(false);
        assert!(!masked.is_calm());
        masked.end_pass();
        assert!(masked.is_calm());
        let mut lined_up = calm();
        lined_up.line_up(load(2, 0), 1);
        assert!(!lined_up.is_calm());
        lined_up.found_none();
        assert!(lined_up.is_calm());
        let mut behind = calm();
        behind.note_wait(BEHIND_AFTER);
        assert!(!behind.is_calm());
        behind.found_none();
        assert!(!behind.is_calm(), "those who were taken in still wait");
        behind.end_turn(false);
        assert!(behind.is_calm());
    }

    /// Once somebody has waited for too long all are taken in, until nobody waits there nor here.
    #[test]
    fn who_has_waited_too_long_brings_the_others_in() {
        let now = Instant::now();
        let mut admission = Admission::new();
        let busy = waiting(now, load(2, 0));
        assert!(!admission.asks_wait(now), "nobody waits");
        assert_eq!(admission.decide(busy), Decision::Mask);
        admission.line_up(busy.load, 100);
        assert!(admission.asks_wait(now) && !admission.asks_wait(now) && admission.asks_wait(now + ASK_WAIT_EVERY));
        admission.note_wait(BEHIND_AFTER - Duration::from_millis(1));
        assert!(!admission.is_behind());
        admission.note_wait(BEHIND_AFTER);
        assert!(admission.is_behind());
        admission.set_masked(true);
        assert!(!admission.should_unmask(busy), "a sibling has a free thread");
        let busy = View { takes_in: true, ..busy };
        assert!(admission.should_unmask(busy));
        assert_eq!(admission.decide(busy), Decision::Accept);
        admission.end_turn(false);
        assert!(admission.is_behind(), "some wait outside");
        admission.found_none();
        admission.end_turn(true);
        assert!(admission.is_behind(), "some wait here");
        admission.end_turn(false);
        assert!(!admission.is_behind());
    }

    #[test]
    fn new_connections_stand_in_line_with_requests() {
        let mut admission = Admission::new();
        assert_eq!(admission.budget(load(0, 0)), 2);
        assert_eq!(admission.budget(load(11, 10)), 1);
        assert_eq!(admission.budget(load(15, 10)), 0);
        admission.line_up(load(15, 10), 2);
        assert_eq!(admission.budget(load(15, 13)), 0);
        // Fourteen of the fifteen before are answered, so a thread has begun the last and the other is ours,
        // although more requests have come since.
        assert_eq!(admission.budget(load(20, 14)), 1);
        assert_eq!(admission.budget(load(20, 18)), 2);
        // Whoever came with the first that was taken is behind it, and not at the end of the line.
        admission.accepted();
        assert_eq!(admission.budget(load(21, 14)), 0);
        assert_eq!(admission.budget(load(22, 18)), 1);
        assert!(admission.line.and_then(Line::next).is_none());
        // What siblings have taken leaves no place in the line for those who come later; only events of a turn that was
        // listened to, and all of them, say so.
        admission.set_masked(true);
        admission.none_waits(false);
        admission.set_masked(false);
        admission.none_waits(false);
        admission.end_pass();
        admission.none_waits(true);
        assert!(admission.line.is_some());
        admission.none_waits(false);
        assert!(admission.line.is_none());
    }

    #[test]
    fn one_is_taken_where_there_is_time_and_room_for_it() {
        let now = Instant::now();
        let view = waiting(now, load(0, 0));
        let decide = |view| Admission::new().decide(view);
        assert_eq!(decide(view), Decision::Accept);
        assert_eq!(decide(View { waits: false, ..view }), Decision::Rest);
        assert_eq!(decide(View { load: load(2, 0), ..view }), Decision::Mask);
        assert_eq!(decide(View { has_slot: false, ..view }), Decision::Mask);
        assert_eq!(decide(View { leaves_rest: true, ..view }), Decision::Rest);
        assert!(Admission::new().could_take(View { load: load(1, 0), ..view }));
        assert!(!Admission::new().could_take(View { load: load(2, 0), ..view }));
        assert!(Admission::new().could_take(View { load: load(2, 0), takes_in: true, ..view }));
        assert!(!Admission::new().could_take(View { has_slot: false, ..view }));
        let mut admission = Admission::new();
        admission.pause(now + ACCEPT_PAUSE);
        assert_eq!(admission.decide(view), Decision::Mask);
        assert!(!admission.could_take(view));
        let mut admission = Admission::new();
        for _ in 0..TURN_ACCEPTS_MAX {
            assert_eq!(admission.decide(view), Decision::Accept);
            admission.count();
        }
        assert_eq!(admission.decide(view), Decision::Rest);
        admission.begin_turn();
        assert_eq!(admission.decide(view), Decision::Accept);
    }

    #[test]
    fn whoever_may_be_ahead_looks() {
        let mut admission = Admission::new();
        assert!(!admission.may_be_ahead(9));
        admission.count();
        assert!(admission.may_be_ahead(1) && !admission.may_be_ahead(0));
        for _ in 1..FRONT_ACCEPTS {
            admission.count();
        }
        assert!(admission.may_be_ahead(0));
        admission.looked_ahead();
        assert!(!admission.may_be_ahead(9));
    }
}
