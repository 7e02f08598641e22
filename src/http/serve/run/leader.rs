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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::serve::base::names::Blocking;
use crate::serve::conn::connection::Connection;
use crate::serve::event_loop::shared::Shared;
use crate::serve::event_loop::{EventLoop, Step};

/// How long a request may be in the application before the monitor takes over: at least one tick, at most two. Each
/// costs a switch of threads, one percent of a processor at a thousand a second.
const TICK_TOGETHER: Duration = Duration::from_millis(1);

/// With one app thread nobody else could run the next request anyway; then the monitor only reads, writes, and keeps
/// deadlines.
const TICK_ALONE: Duration = Duration::from_millis(4);

/// After so many ticks without a request the monitor sleeps until it is woken.
const IDLE_TICKS: u32 = 20;

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
enum Owner {
    Free = 0,
    /// An app thread runs the loop.
    Loop = 1,
    /// An app thread is in the application and will be back.
    App = 2,
    Monitor = 3,
    Ended = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(epoch: u64, owner: Owner) -> Word {
        Word(epoch << 3 | owner as u64)
    }

    fn epoch(self) -> u64 {
        self.0 >> 3
    }

    fn owner(self) -> Owner {
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
    thread: Mark,
}

/// Tells threads apart, for the price of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark(usize);

impl Mark {
    fn here() -> Mark {
        thread_local! {
            static HERE: u8 = const { 0 };
        }
        HERE.with(|here| Mark(std::ptr::from_ref(here) as usize))
    }
}

pub struct Leader {
    word: AtomicU64,
    /// Only for the leader (`Loop`, `Monitor`). None: ended.
    event_loop: UnsafeCell<Option<EventLoop>>,
    shared: Arc<Shared>,
    monitor: OnceLock<Thread>,
    /// The monitor sleeps until it is woken.
    parked: AtomicBool,
    /// What a request has taken in the application, on average of the latest.
    mean_ns: AtomicU64,
    slow_ns: u64,
    tick: Duration,
}

// SAFETY: the loop is reached only through `LeaderGuard`, of which the word allows one at a time.
unsafe impl Sync for Leader {}

/// Whoever has it leads. Only the methods that take it by value end that. An app thread has it while it is in the loop and
/// never a moment longer: whatever else it does may take long, and then the monitor must see that it is away.
#[must_use]
pub struct LeaderGuard<'a> {
    leader: &'a Leader,
    word: Word,
}

impl Leader {
    pub fn new(shared: Arc<Shared>, event_loop: EventLoop) -> Leader {
        let alone = shared.rules.settings.threads == 1;
        let (slow, tick) = if alone { (SLOW_ALONE, TICK_ALONE) } else { (SLOW_TOGETHER, TICK_TOGETHER) };
        Leader {
            word: AtomicU64::new(Word::new(0, Owner::Free).0),
            event_loop: UnsafeCell::new(Some(event_loop)),
            shared,
            monitor: OnceLock::new(),
            parked: AtomicBool::new(false),
            mean_ns: AtomicU64::new(0),
            slow_ns: slow.as_nanos() as u64,
            tick,
        }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn word(&self) -> Word {
        Word(self.word.load(Ordering::SeqCst))
    }

    fn change(&self, from: Word, to: Word) -> bool {
        self.word.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Back from the application. None: somebody has taken over.
    pub fn exit_app(&self, lease: Lease) -> Option<LeaderGuard<'_>> {
        let word = lease.word.owned_by(Owner::Loop);
        let back = lease.thread == Mark::here() && self.change(lease.word, word);
        back.then_some(LeaderGuard { leader: self, word })
    }

    /// Nobody has taken over yet. Whoever does looks for queued answers: ours was queued before we looked.
    pub fn is_kept(&self, lease: Lease) -> bool {
        self.word() == lease.word
    }

    /// Leads if nobody does. Not while the application is slow: then the monitor does.
    pub fn acquire(&self) -> Option<LeaderGuard<'_>> {
        let word = self.word();
        if word.owner() != Owner::Free || self.is_slow() {
            return None;
        }
        let mine = word.next(Owner::Loop);
        self.change(word, mine).then_some(LeaderGuard { leader: self, word: mine })
    }

    /// An app thread has nothing to do. True: nobody leads, and it may; else it will be woken when it may.
    pub fn ask(&self) -> bool {
        if self.is_slow() {
            return false;
        }
        match self.word().owner() {
            Owner::Free => true,
            // It looks for idle threads before it waits for events again.
            Owner::Monitor => {
                self.shared.wake();
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

    fn is_slow(&self) -> bool {
        self.mean_ns.load(Ordering::Relaxed) >= self.slow_ns
    }

    /// The holder of the lease, in the application, is going to wait for the loop's work: the monitor shall take over
    /// now and not a tick later.
    pub fn hand_over(&self, lease: Lease) {
        if lease.thread == Mark::here() && self.change(lease.word, lease.word.next(Owner::Free)) {
            self.wake_monitor();
        }
    }

    fn wake_monitor(&self) {
        if let Some(monitor) = self.monitor.get() {
            monitor.unpark();
        }
    }
}

impl<'a> LeaderGuard<'a> {
    pub fn event_loop(&mut self) -> &mut EventLoop {
        // SAFETY: the word says that the loop is this thread's until the word is changed, which takes the `LeaderGuard`; and a
        // thread has one `LeaderGuard` at a time: none lives while Python code runs, where exchanges end.
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
    pub fn enter_app_with(mut self, connection: &mut Connection) -> Option<Lease> {
        if self.leader.mean_ns.load(Ordering::Relaxed) >= CLIENT_SLEEPS.as_nanos() as u64 && !self.leader.is_slow() {
            connection.answer.may_defer = self.event_loop().flush_later(connection.token);
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
        Lease { word, thread: Mark::here() }
    }

    /// To whoever takes it.
    fn release(self) -> Word {
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
        leader.shared.run_queue.finish();
        leader.wake_monitor();
    }

    /// Runs the loop, as an app thread without the interpreter's lock, until there is something for it to do.
    pub fn run_until_request(&mut self) -> LoopEvent {
        loop {
            match self.event_loop().step(Blocking::Allowed) {
                Step::Request(connection) => return LoopEvent::Request(connection),
                Step::Idle => {
                    if self.event_loop().fetch() {
                        return LoopEvent::Signal;
                    }
                }
                Step::Done => return LoopEvent::Done,
            }
        }
    }
}

pub enum LoopEvent {
    Request(Box<Connection>),
    /// A signal came.
    Signal,
    Done,
}

/// The monitor thread. It has no interpreter state and never runs the application.
pub fn run_monitor(leader: &Leader) {
    // Set once: a server has one monitor.
    let _ = leader.monitor.set(thread::current());
    let mut seen = leader.word();
    let mut idle = 0;
    loop {
        let word = leader.word();
        let takes = match word.owner() {
            Owner::Ended => return,
            // Given up for us, or offered to an app thread that did not come for it within a tick.
            Owner::Free => true,
            Owner::App => word == seen && idle > 0,
            Owner::Loop | Owner::Monitor => false,
        };
        idle = if word == seen { idle + 1 } else { 1 };
        seen = word;
        if takes {
            let mine = word.next(Owner::Monitor);
            if leader.change(word, mine) {
                match lead(LeaderGuard { leader, word: mine }) {
                    Some(word) => (seen, idle) = (word, 1),
                    None => return,
                }
            }
        }
        if seen.owner() == Owner::Loop && idle > IDLE_TICKS {
            park(leader, seen);
        } else {
            thread::park_timeout(leader.tick);
        }
    }
}

/// Sleeps until the leader enters the application.
fn park(leader: &Leader, seen: Word) {
    leader.parked.store(true, Ordering::SeqCst);
    if leader.word() == seen {
        thread::park();
    }
    leader.parked.store(false, Ordering::SeqCst);
}

/// Leads as the monitor, until an app thread shall have it. None: everything is drained.
fn lead(mut guard: LeaderGuard<'_>) -> Option<Word> {
    let leader = guard.leader;
    guard.event_loop().monitor_took_over();
    loop {
        match guard.event_loop().step(Blocking::Allowed) {
            Step::Request(connection) => leader.shared.run_queue.push(connection),
            Step::Idle if !leader.is_slow() && leader.shared.run_queue.is_idle() => {
                let word = guard.release();
                leader.shared.run_queue.wake_one();
                return Some(word);
            }
            Step::Idle => {
                // Signals are the main thread's, which waits for them by itself.
                guard.event_loop().fetch();
            }
            Step::Done => {
                guard.end();
                return None;
            }
        }
    }
}
