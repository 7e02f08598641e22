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
//! - `App` -> `Monitor`: the monitor thread saw the same epoch for a whole tick.
//! - `Loop`, `App`, `Monitor` -> `Free`: given up, for the monitor (the application is slow, or waits for the loop's own
//!   work) or for an app thread that has nothing else to do. `Free` -> `Loop` or `Monitor`: whoever is first.
//! - any -> `Ended`: drained.
//!
//! Every request and every change of the leader begin a new epoch, so that a thread that comes back late finds that its
//! lease is over.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::serve::base::sync::{AtomicBool, AtomicU64, Thread, ThreadMark};
use crate::serve::event_loop::interface::{Doors, Loop};

/// From this on, on average, an application is slow: then the monitor keeps the loop and hands requests to app threads,
/// two switches of threads for each, which matters little to requests that take so long.
const SLOW_ALONE: Duration = Duration::from_millis(1);

/// With several app threads it is slow earlier: it may be waiting for a database, and then others could run.
const SLOW_TOGETHER: Duration = Duration::from_micros(200);

/// From this on, on average, a client has dealt with an answer and sleeps before the next one is there.
const CLIENT_SLEEPS: Duration = Duration::from_micros(10);

/// The average is over about so many of the latest requests.
const WEIGHT: u64 = 16;

/// A request counts for at most so many times the bound, so that a single long one does not make an application slow
/// for long.
const COUNTED_MAX: u64 = 16;

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
    /// What a request has taken in the application, on average of the latest.
    mean_ns: AtomicU64,
    slow_ns: u64,
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
        let slow = if threads == 1 { SLOW_ALONE } else { SLOW_TOGETHER };
        Leader {
            word: AtomicU64::new(Word::new(0, Owner::Free).0),
            event_loop: UnsafeCell::new(Some(event_loop)),
            doors,
            monitor: OnceLock::new(),
            parked: AtomicBool::new(false),
            mean_ns: AtomicU64::new(0),
            slow_ns: slow.as_nanos() as u64,
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

    /// Nobody has taken over yet. Whoever does looks for queued answers: ours was queued before we looked.
    pub fn is_kept(&self, lease: Lease) -> bool {
        self.word() == lease.word
    }

    /// Leads if nobody does. Not while the application is slow: then the monitor does.
    pub fn acquire(&self) -> Option<LeaderGuard<'_, L>> {
        let word = self.word();
        if word.owner() != Owner::Free || self.is_slow() {
            return None;
        }
        let mine = word.next(Owner::Loop);
        self.change(word, mine).then_some(LeaderGuard { leader: self, word: mine })
    }

    /// The monitor takes over from whoever the word names, or from nobody.
    pub fn take_over(&self, word: Word) -> Option<LeaderGuard<'_, L>> {
        let mine = word.next(Owner::Monitor);
        self.change(word, mine).then_some(LeaderGuard { leader: self, word: mine })
    }

    /// An app thread has nothing to do. True: nobody leads, and it may; else it will be woken when it may.
    pub fn may_lead(&self) -> bool {
        if self.is_slow() {
            return false;
        }
        match self.word().owner() {
            Owner::Free => true,
            // It looks for idle threads before it waits for events again.
            Owner::Monitor => {
                self.doors.wake();
                false
            }
            Owner::Loop | Owner::App | Owner::Ended => false,
        }
    }

    /// A request has been in the application for so long. Threads may overwrite each other's figure: it is an estimate.
    pub fn record(&self, time: Duration) {
        let ns = (time.as_nanos() as u64).min(self.slow_ns * COUNTED_MAX);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        self.mean_ns.store(mean - mean / WEIGHT + ns / WEIGHT, Ordering::Relaxed);
    }

    pub fn is_slow(&self) -> bool {
        self.mean_ns.load(Ordering::Relaxed) >= self.slow_ns
    }

    /// The thread with the lease, in the application, is going to wait for the loop's work: the monitor shall take over
    /// now and not a tick later.
    pub fn hand_over(&self, lease: Lease) {
        if lease.thread == ThreadMark::here() && self.change(lease.word, lease.word.next(Owner::Free)) {
            self.wake_monitor();
        }
    }

    /// The calling thread is the monitor. A server has one.
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

    /// Into the application with a request. The way back; none where the application is slow, and the monitor is woken
    /// at once.
    pub fn enter_app(self) -> Option<Lease> {
        if self.leader.is_slow() {
            let leader = self.leader;
            self.release();
            leader.wake_monitor();
            return None;
        }
        Some(self.give_lease(self.word.next(Owner::App)))
    }

    /// As `enter_app`, with a request from the loop, whose answer may wait for others.
    pub fn enter_app_with(mut self, request: &mut L::Request) -> Option<Lease> {
        let mean_ns = self.leader.mean_ns.load(Ordering::Relaxed);
        if mean_ns >= CLIENT_SLEEPS.as_nanos() as u64 && !self.leader.is_slow() {
            self.event_loop().defer_answer(request);
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
