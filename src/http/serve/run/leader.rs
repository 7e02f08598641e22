//! Who runs the event loop: the leader. Normally it is an app thread, which takes the next request from the loop and runs
//! it itself, so that a fast request costs no switch between threads. While the leader is in the application it has a
//! lease on the loop; if that takes long, the monitor thread takes over, so that a slow application never stops the
//! reading and writing for others. (The pattern is Leader/Followers; Go's `sysmon` retakes a processor from a thread in a
//! system call in the same way.)
//!
//! One word, `epoch << 3 | owner`, says all of it. Only this file changes it:
//!
//! - `Loop` -> `App` (the leader enters the application, or anything else outside the loop), `App` -> `Loop` (it is back,
//!   and nobody has taken over): one atomic operation each, no system call.
//! - `App` -> `Monitor`: the monitor thread saw the same epoch for a whole tick. Or it sends the answers that wait for others,
//!   in a moment, and puts the same word back: the lease is good again.
//! - `Loop`, `App`, `Monitor` -> `Free`: given up, for the monitor (the application waits for something, or for the loop's own
//!   work) or for an app thread that has nothing else to do. `Free` -> `Loop` or `Monitor`: whoever is first.
//! - any -> `Ended`: drained.
//!
//! Every request and every change of the leader begin a new epoch, so that a thread that comes back late finds that its
//! lease is over.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::serve::base::sync::{AtomicBool, AtomicU64, Thread, ThreadMark};
use crate::serve::event_loop::fair_line::Alike;
use crate::serve::event_loop::interface::{Doors, Loop};

use super::app_times::AppTimes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Free = 0,
    /// An app thread runs the loop.
    Loop = 1,
    /// An app thread is in the application and will be back.
    App = 2,
    Monitor = 3,
    Ended = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    fn new(epoch: u64, owner: Owner) -> Word {
        Word(epoch << 3 | owner as u64)
    }

    fn epoch(self) -> u64 {
        self.0 >> 3
    }

    pub fn owner(self) -> Owner {
        match self.0 & 7 {
            0 => Owner::Free,
            1 => Owner::Loop,
            2 => Owner::App,
            3 => Owner::Monitor,
            _ => Owner::Ended,
        }
    }

    /// The same epoch with another owner.
    fn owned_by(self, owner: Owner) -> Word {
        Word::new(self.epoch(), owner)
    }

    fn next(self, owner: Owner) -> Word {
        Word::new(self.epoch() + 1, owner)
    }
}

/// The way back to the loop for the thread that left it for the application, and for no other.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    word: Word,
    thread: ThreadMark,
}

pub struct Leader<L: Loop> {
    word: AtomicU64,
    /// Only for the leader (`Loop`, `Monitor`). None: ended.
    event_loop: UnsafeCell<Option<L>>,
    doors: Arc<L::Doors>,
    monitor: OnceLock<Thread>,
    /// The monitor sleeps until it is woken.
    parked: AtomicBool,
    times: AppTimes,
    /// An answer has been left to wait for others since the monitor last looked.
    deferring: AtomicBool,
    /// The monitor looks again within `FLUSH_DELAY_MAX`.
    watched: AtomicBool,
    /// Answers wait for others while the leader is in the application.
    holding: AtomicBool,
    /// A thread has come back, or is going to wait, while the monitor led.
    wanted: AtomicBool,
}

// SAFETY: the loop is reached only through `LeaderGuard`, of which the word allows one at a time.
unsafe impl<L: Loop + Send> Sync for Leader<L> where L::Doors: Sync + Send {}

/// Whoever has it leads. Only the methods that take it by value end that. An app thread has it while it is in the loop and
/// never a moment longer: whatever else it does may take long, and then the monitor must see that it is away.
#[must_use]
pub struct LeaderGuard<'a, L: Loop> {
    leader: &'a Leader<L>,
    word: Word,
}

impl<L: Loop> Leader<L> {
    pub fn new(doors: Arc<L::Doors>, event_loop: L, threads: usize) -> Leader<L> {
        Leader {
            word: AtomicU64::new(Word::new(0, Owner::Free).0),
            event_loop: UnsafeCell::new(Some(event_loop)),
            doors,
            monitor: OnceLock::new(),
            parked: AtomicBool::new(false),
            times: AppTimes::new(threads),
            deferring: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
        }
    }

    pub fn doors(&self) -> &Arc<L::Doors> {
        &self.doors
    }

    pub fn word(&self) -> Word {
        Word(self.word.load(Ordering::SeqCst))
    }

    fn change(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Back from the application. None: somebody has taken over.
    pub fn exit_app(&self, lease: Lease) -> Option<LeaderGuard<'_, L>> {
        let word = lease.word.owned_by(Owner::Loop);
        let back = lease.thread == ThreadMark::here() && self.change(lease.word, word);
        back.then_some(LeaderGuard { leader: self, word })
    }

    /// The thread with the lease has left its answer for others to send. True: nobody has taken over yet, and whoever does
    /// looks for queued answers, of which this was one before we looked.
    pub fn keeps_answer(&self, lease: Lease) -> bool {
        let kept = self.word() == lease.word;
        if kept && !self.is_holding() {
            self.holding.store(true, Ordering::Relaxed);
        }
        kept
    }

    /// The monitor leads throughout: the application waits, or clients have waited too long to be taken in.
    pub fn is_monitors(&self) -> bool {
        self.times.waits() || self.doors.is_behind()
    }

    /// Leads if nobody does, and the lead is not the monitor's.
    pub fn acquire(&self) -> Option<LeaderGuard<'_, L>> {
        let word = self.word();
        if word.owner() != Owner::Free || self.is_monitors() {
            return None;
        }
        let mine = word.next(Owner::Loop);
        self.change(word, mine).then_some(LeaderGuard { leader: self, word: mine })
    }

    /// An app thread is back from the application, and has no lease. Where the monitor leads, it gives the lead up before it
    /// waits for events again: as long as requests are there no thread would sleep, and without being asked for it the
    /// monitor would keep the lead, for which each request costs a wait of its own.
    pub fn reclaim(&self) -> Option<LeaderGuard<'_, L>> {
        match self.word().owner() {
            Owner::Free => self.acquire(),
            Owner::Monitor if !self.is_monitors() => {
                self.wanted.store(true, Ordering::SeqCst);
                self.doors.wake();
                None
            }
            Owner::Monitor | Owner::Loop | Owner::App | Owner::Ended => None,
        }
    }

    /// Whether a thread has asked for the lead since the monitor has it.
    pub fn was_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// The monitor takes over from whoever the word names, or from nobody.
    pub fn take_over(&self, word: Word) -> Option<LeaderGuard<'_, L>> {
        // Whoever asked before may have what it wanted by now.
        self.wanted.store(false, Ordering::SeqCst);
        let mine = word.next(Owner::Monitor);
        self.change(word, mine).then_some(LeaderGuard { leader: self, word: mine })
    }

    /// An app thread has nothing to do. True: nobody leads, and it may, or its lease is good; else it will be woken when it
    /// may.
    pub fn may_lead(&self, lease: Option<Lease>) -> bool {
        let mut word = self.word();
        if word.owner() == Owner::Monitor {
            // It puts a word back before it looks at `wanted`, we the other way round: one of us sees the other.
            self.wanted.store(true, Ordering::SeqCst);
            word = self.word();
        }
        if lease.is_some_and(|lease| lease.word == word) {
            return true;
        }
        if self.is_monitors() {
            return false;
        }
        match word.owner() {
            Owner::Free => true,
            // It looks for idle threads before it waits for events again.
            Owner::Monitor => {
                self.doors.wake();
                false
            }
            Owner::Loop | Owner::App | Owner::Ended => false,
        }
    }

    pub fn times(&self) -> &AppTimes {
        &self.times
    }

    /// An answer is left for the loop: the monitor looks soon, or is woken to do so.
    fn note_deferral(&self) {
        // The monitor stores `watched` before it looks at `deferring`, we the other way round: one of us sees the other.
        self.deferring.store(true, Ordering::SeqCst);
        if !self.watched.load(Ordering::SeqCst) {
            self.wake_monitor();
        }
    }

    /// Answers wait while the leader is in the application.
    pub fn is_holding(&self) -> bool {
        self.holding.load(Ordering::Relaxed)
    }

    /// The monitor sends the answers that wait, in the name of whoever has the lease, which is good again afterwards. A
    /// garbage collection or a neighbour on the processor costs the leader nothing by this: the sends were to be made anyway.
    pub fn flush_for(&self, word: Word) {
        let Some(mut guard) = self.take_over(word) else { return };
        self.holding.store(false, Ordering::Relaxed);
        guard.event_loop().flush_early();
        self.word.store(word.0, Ordering::SeqCst);
        // It found its lease taken, and may sleep by now.
        if self.was_wanted() {
            if let Some(guard) = self.take_over(word) {
                guard.release();
                self.doors.run_queue().wake_one();
            }
        }
    }

    /// Whether an answer has been left since the monitor last asked.
    pub fn was_deferring(&self) -> bool {
        self.deferring.swap(false, Ordering::SeqCst)
    }

    /// The monitor looks again within `FLUSH_DELAY_MAX`, or not. True: an answer has been left at this moment.
    pub fn set_watched(&self, watched: bool) -> bool {
        self.watched.store(watched, Ordering::SeqCst);
        self.deferring.load(Ordering::SeqCst)
    }

    /// The thread with the lease, in the application, is going to wait for the loop's work: the monitor shall take over
    /// now and not a tick later.
    pub fn hand_over(&self, lease: Lease) {
        if lease.thread != ThreadMark::here() {
            return;
        }
        let free = lease.word.next(Owner::Free);
        let handed_over = self.change(lease.word, free) || {
            // The monitor may have it for a moment only.
            self.wanted.store(true, Ordering::SeqCst);
            self.change(lease.word, free)
        };
        if handed_over {
            self.wake_monitor();
        }
    }

    /// The calling thread is the monitor. A server has one: whoever calls second changes nothing.
    pub fn set_monitor(&self, monitor: Thread) {
        let _ = self.monitor.set(monitor);
    }

    /// The monitor is going to sleep without an end unless the word has changed. False: it has.
    pub fn park_monitor(&self, seen: Word) -> bool {
        self.parked.store(true, Ordering::SeqCst);
        self.word() == seen
    }

    pub fn monitor_woke(&self) {
        self.parked.store(false, Ordering::SeqCst);
    }

    fn wake_monitor(&self) {
        if let Some(monitor) = self.monitor.get() {
            monitor.unpark();
        }
    }
}

impl<'a, L: Loop> LeaderGuard<'a, L> {
    pub fn leader(&self) -> &'a Leader<L> {
        self.leader
    }

    pub fn event_loop(&mut self) -> &mut L {
        // SAFETY: the word says that the loop is this thread's until the word is changed, which takes the `LeaderGuard`; and
        // a thread has one `LeaderGuard` at a time: none lives while Python code runs, where exchanges end.
        let event_loop = unsafe { &mut *self.leader.event_loop.get() };
        event_loop.as_mut().expect("whoever ends the loop leads no more")
    }

    /// Into the application with a request. The way back; none where the monitor leads throughout, and it is woken at once.
    pub fn enter_app(mut self) -> Option<Lease> {
        let holds = self.event_loop().holds_answers();
        if self.leader.holding.load(Ordering::Relaxed) != holds {
            self.leader.holding.store(holds, Ordering::Relaxed);
        }
        if self.leader.is_monitors() {
            let leader = self.leader;
            self.release();
            leader.wake_monitor();
            return None;
        }
        Some(self.give_lease(self.word.next(Owner::App)))
    }

    /// As `enter_app`, with a request from the loop, whose answer may wait for others. Nothing waits for one that will
    /// probably take long.
    pub fn enter_app_with(mut self, request: &mut L::Request) -> Option<Lease> {
        if self.leader.times.are_worth_moving() {
            self.event_loop().share_rest();
        }
        if self.leader.times.is_long(request.likeness()) {
            self.event_loop().flush();
        } else if self.leader.times.may_defer() && self.event_loop().may_defer(request) {
            self.event_loop().defer_answer(request);
            self.leader.note_deferral();
        }
        self.enter_app()
    }

    /// As `enter_app`, back to where the thread came from: it has been in the loop for a moment, and now Python code may run
    /// again, or the interpreter's lock is waited for. The lease it was entered with stays good.
    pub fn yield_loop(self) -> Lease {
        self.give_lease(self.word.owned_by(Owner::App))
    }

    fn give_lease(&self, word: Word) -> Lease {
        // The monitor stores `parked` before it looks at the word, we the other way round: one of us sees the other.
        self.leader.word.store(word.0, Ordering::SeqCst);
        if self.leader.parked.load(Ordering::SeqCst) {
            self.leader.wake_monitor();
        }
        Lease { word, thread: ThreadMark::here() }
    }

    /// To whoever takes it.
    pub fn release(self) -> Word {
        let word = self.word.next(Owner::Free);
        self.leader.word.store(word.0, Ordering::SeqCst);
        word
    }

    /// Nothing more will come: everyone may go.
    pub fn end(self) {
        let leader = self.leader;
        // SAFETY: `self` is the only one, and it ends here.
        let event_loop = unsafe { (*leader.event_loop.get()).take() };
        drop(event_loop);
        leader.word.store(self.word.next(Owner::Ended).0, Ordering::SeqCst);
        leader.doors.run_queue().finish();
        leader.wake_monitor();
    }
}
