//! Who runs the event loop. Whoever holds the helm does: normally an app thread, which takes the next request from
//! the loop and runs it itself, so that a fast request costs no switch between threads. It leaves the helm while it is
//! in the application; if that takes long, the relief thread takes over, so that a slow application never stops the
//! reading and writing for others.
//!
//! One word, `voyage << 3 | hand`, says all of it. Only this file changes it:
//!
//! - `Loop` -> `App` (the holder goes into the application, or anywhere out of the loop), `App` -> `Loop` (it is back, and
//!   nobody has taken over): one atomic operation each, no system call.
//! - `App` -> `Relief`: the relief thread saw the same voyage for a whole tick.
//! - `Loop`, `App`, `Relief` -> `Free`: given up, for the relief (the application is slow, or waits for the loop's own
//!   work) or for an app thread that has nothing else to do. `Free` -> `Loop` or `Relief`: whoever is first.
//! - any -> `Ended`: drained.
//!
//! Every request and every change of the holder begin a new voyage, so that whoever comes back late finds that the helm
//! has gone.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use super::connection::Connection;
use super::event_loop::{Attention, EventLoop, Step};
use super::shared::Shared;

/// How long a request may be in the application before the relief takes over: at least one tick, at most two. Each
/// costs a switch of threads, one percent of a processor at a thousand a second.
const TICK_TOGETHER: Duration = Duration::from_millis(1);

/// With one app thread nobody else could run the next request anyway; then the relief only reads, writes, and keeps
/// deadlines.
const TICK_ALONE: Duration = Duration::from_millis(4);

/// After so many ticks without a request the relief sleeps until it is called.
const IDLE_TICKS: u32 = 20;

/// From this on, on average, an application is slow: then the relief keeps the loop and hands requests to app threads,
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
enum Hand {
    Free = 0,
    /// An app thread runs the loop.
    Loop = 1,
    /// An app thread is in the application and will be back.
    App = 2,
    Relief = 3,
    Ended = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(voyage: u64, hand: Hand) -> Word {
        Word(voyage << 3 | hand as u64)
    }

    fn voyage(self) -> u64 {
        self.0 >> 3
    }

    fn hand(self) -> Hand {
        match self.0 & 7 {
            0 => Hand::Free,
            1 => Hand::Loop,
            2 => Hand::App,
            3 => Hand::Relief,
            _ => Hand::Ended,
        }
    }

    /// The same voyage in another hand.
    fn in_hand(self, hand: Hand) -> Word {
        Word::new(self.voyage(), hand)
    }

    fn next(self, hand: Hand) -> Word {
        Word::new(self.voyage() + 1, hand)
    }
}

/// The way back to the helm for the thread that left it, and for no other.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
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

pub struct Helm {
    word: AtomicU64,
    /// Only for the holder (`Loop`, `Relief`). None: ended.
    event_loop: UnsafeCell<Option<EventLoop>>,
    shared: Arc<Shared>,
    relief: OnceLock<Thread>,
    /// The relief sleeps until it is called.
    dozing: AtomicBool,
    /// What a request has taken in the application, on average of the latest.
    mean_ns: AtomicU64,
    slow_ns: u64,
    tick: Duration,
}

// SAFETY: the loop is reached only through `Held`, of which the word allows one at a time.
unsafe impl Sync for Helm {}

/// The helm in one's hands, from which only the methods that take it lead away. An app thread has it while it is in the
/// loop and never a moment longer: whatever else it does may take long, and then the relief must see that it is away.
#[must_use]
pub struct Held<'a> {
    helm: &'a Helm,
    word: Word,
}

impl Helm {
    pub fn new(shared: Arc<Shared>, event_loop: EventLoop) -> Helm {
        let alone = shared.rules.settings.threads == 1;
        let (slow, tick) = if alone { (SLOW_ALONE, TICK_ALONE) } else { (SLOW_TOGETHER, TICK_TOGETHER) };
        Helm {
            word: AtomicU64::new(Word::new(0, Hand::Free).0),
            event_loop: UnsafeCell::new(Some(event_loop)),
            shared,
            relief: OnceLock::new(),
            dozing: AtomicBool::new(false),
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
    pub fn resume(&self, ticket: Ticket) -> Option<Held<'_>> {
        let word = ticket.word.in_hand(Hand::Loop);
        let back = ticket.thread == Mark::here() && self.change(ticket.word, word);
        back.then_some(Held { helm: self, word })
    }

    /// Nobody has taken over yet. Whoever does looks for queued answers: ours was queued before we looked.
    pub fn is_kept(&self, ticket: Ticket) -> bool {
        self.word() == ticket.word
    }

    /// Takes the helm if nobody has it. Not while the application is slow: then it is the relief's.
    pub fn take_free(&self) -> Option<Held<'_>> {
        let word = self.word();
        if word.hand() != Hand::Free || self.is_slow() {
            return None;
        }
        let mine = word.next(Hand::Loop);
        self.change(word, mine).then_some(Held { helm: self, word: mine })
    }

    /// An app thread has nothing to do. True: the helm is there to be taken; else it will be woken when it is.
    pub fn ask(&self) -> bool {
        if self.is_slow() {
            return false;
        }
        match self.word().hand() {
            Hand::Free => true,
            // It looks for idle threads before it waits for events again.
            Hand::Relief => {
                self.shared.wake();
                false
            }
            Hand::Loop | Hand::App | Hand::Ended => false,
        }
    }

    /// A request has been in the application for so long. Threads may overwrite each other's figure: it is an estimate.
    pub fn took(&self, time: Duration) {
        let ns = (time.as_nanos() as u64).min(self.slow_ns * COUNTED_MAX);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        self.mean_ns.store(mean - mean / WEIGHT + ns / WEIGHT, Ordering::Relaxed);
    }

    fn is_slow(&self) -> bool {
        self.mean_ns.load(Ordering::Relaxed) >= self.slow_ns
    }

    /// The holder of the ticket, in the application, is going to wait for the loop's work: the relief shall take over
    /// now and not a tick later.
    pub fn relieve(&self, ticket: Ticket) {
        if ticket.thread == Mark::here() && self.change(ticket.word, ticket.word.next(Hand::Free)) {
            self.call_relief();
        }
    }

    fn call_relief(&self) {
        if let Some(relief) = self.relief.get() {
            relief.unpark();
        }
    }
}

impl<'a> Held<'a> {
    pub fn event_loop(&mut self) -> &mut EventLoop {
        // SAFETY: the word says that the loop is this thread's until the word is changed, which takes the `Held`; and a
        // thread has one `Held` at a time: none lives while Python code runs, where exchanges end.
        let event_loop = unsafe { &mut *self.helm.event_loop.get() };
        event_loop.as_mut().expect("whoever ends the loop gives the helm up")
    }

    /// Into the application with a request. The way back; none where the application is slow, and the relief is called
    /// at once.
    pub fn leave(self) -> Option<Ticket> {
        if self.helm.is_slow() {
            let helm = self.helm;
            self.release();
            helm.call_relief();
            return None;
        }
        Some(self.go_away(self.word.next(Hand::App)))
    }

    /// As `leave`, with a request from the loop, whose answer may wait for others.
    pub fn leave_with(mut self, connection: &mut Connection) -> Option<Ticket> {
        if self.helm.mean_ns.load(Ordering::Relaxed) >= CLIENT_SLEEPS.as_nanos() as u64 && !self.helm.is_slow() {
            connection.answer.may_wait = self.event_loop().line_up(connection.token);
        }
        self.leave()
    }

    /// As `leave`, back to where the thread came from: it has been in the loop for a moment, and now Python code may run
    /// again, or the interpreter's lock is waited for. The ticket it was entered with stays good.
    pub fn step_out(self) -> Ticket {
        self.go_away(self.word.in_hand(Hand::App))
    }

    fn go_away(&self, word: Word) -> Ticket {
        // The relief stores `dozing` before it looks at the word, we the other way round: one of us sees the other.
        self.helm.word.store(word.0, Ordering::SeqCst);
        if self.helm.dozing.load(Ordering::SeqCst) {
            self.helm.call_relief();
        }
        Ticket { word, thread: Mark::here() }
    }

    /// To whoever takes it.
    fn release(self) -> Word {
        let word = self.word.next(Hand::Free);
        self.helm.word.store(word.0, Ordering::SeqCst);
        word
    }

    /// Nothing more will come: everyone may go.
    pub fn end(self) {
        let helm = self.helm;
        // SAFETY: `self` is the only one, and it ends here.
        let event_loop = unsafe { (*helm.event_loop.get()).take() };
        drop(event_loop);
        helm.word.store(self.word.next(Hand::Ended).0, Ordering::SeqCst);
        helm.shared.ring.finish();
        helm.call_relief();
    }

    /// Runs the loop, as an app thread without the interpreter's lock, until there is something for it to do.
    pub fn steer(&mut self) -> Steered {
        loop {
            match self.event_loop().step(Attention::Full) {
                Step::Request(connection) => return Steered::Request(connection),
                Step::Idle => {
                    if self.event_loop().fetch() {
                        return Steered::Signal;
                    }
                }
                Step::Done => return Steered::Done,
            }
        }
    }
}

pub enum Steered {
    Request(Box<Connection>),
    /// A signal came.
    Signal,
    Done,
}

/// The relief thread. It has no interpreter state and never runs the application.
pub fn stand_by(helm: &Helm) {
    // Set once: a server has one relief.
    let _ = helm.relief.set(thread::current());
    let mut seen = helm.word();
    let mut idle = 0;
    loop {
        let word = helm.word();
        let takes = match word.hand() {
            Hand::Ended => return,
            // Given up for us, or offered to an app thread that did not come for it within a tick.
            Hand::Free => true,
            Hand::App => word == seen && idle > 0,
            Hand::Loop | Hand::Relief => false,
        };
        idle = if word == seen { idle + 1 } else { 1 };
        seen = word;
        if takes {
            let mine = word.next(Hand::Relief);
            if helm.change(word, mine) {
                match relieve(Held { helm, word: mine }) {
                    Some(word) => (seen, idle) = (word, 1),
                    None => return,
                }
            }
        }
        if seen.hand() == Hand::Loop && idle > IDLE_TICKS {
            doze(helm, seen);
        } else {
            thread::park_timeout(helm.tick);
        }
    }
}

/// Sleeps until the holder leaves for the application.
fn doze(helm: &Helm, seen: Word) {
    helm.dozing.store(true, Ordering::SeqCst);
    if helm.word() == seen {
        thread::park();
    }
    helm.dozing.store(false, Ordering::SeqCst);
}

/// Runs the loop as the relief, until an app thread shall have it. None: everything is drained.
fn relieve(mut held: Held<'_>) -> Option<Word> {
    let helm = held.helm;
    held.event_loop().relieved();
    loop {
        match held.event_loop().step(Attention::Full) {
            Step::Request(connection) => helm.shared.ring.push(connection),
            Step::Idle if !helm.is_slow() && helm.shared.ring.is_idle() => {
                let word = held.release();
                helm.shared.ring.wake_one();
                return Some(word);
            }
            Step::Idle => {
                // Signals are the main thread's, which waits for them by itself.
                held.event_loop().fetch();
            }
            Step::Done => {
                held.end();
                return None;
            }
        }
    }
}
