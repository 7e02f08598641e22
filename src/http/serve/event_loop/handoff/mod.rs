//! The loop's end of the handoff queue: whether this worker receives, how epoll knows the queue, and what waits for room
//! in it. Giving, sharing and adopting are in files of those names; what may move is decided in `rules`.

mod adopting;
mod giving;
mod rules;
pub mod sharing;

use std::time::{Duration, Instant};

use crate::serve::base::handoff::HandoffQueue;
use crate::serve::base::names::Token;
use crate::serve::io::epoll::{Epoll, Interest};

use rules::Line;

/// When a full queue is tried again. Its receivers take a connection in some microseconds, so it is nearly empty by then.
/// EPOLLOUT would wake every sender at each receive once the queue is a quarter full (unix_writable).
const RETRY: Duration = Duration::from_millis(5);

pub struct Handoff {
    /// None: there is none, or it is broken.
    queue: Option<Box<dyn HandoffQueue>>,
    /// This worker takes connections from the queue.
    receives: bool,
    /// Epoll knows the queue.
    is_watched: bool,
    /// An event of this turn.
    ready: bool,
    /// It was the queue's turn last, and not a listener's.
    had_turn: bool,
    /// This worker gives away what it has.
    gives: bool,
    line: Line,
    /// The queue was full: nothing is sent until then.
    retry_at: Option<Instant>,
    /// The latest try to receive failed for want of a descriptor, and was logged.
    short: bool,
}

impl Handoff {
    pub fn new(queue: Option<Box<dyn HandoffQueue>>) -> Handoff {
        Handoff {
            queue,
            receives: false,
            is_watched: false,
            ready: false,
            had_turn: false,
            gives: false,
            line: Line::default(),
            retry_at: None,
            short: false,
        }
    }

    pub fn exists(&self) -> bool {
        self.queue.is_some()
    }

    /// How many connections lie in the queue, about.
    fn lying(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.lying())
    }

    pub fn gives(&self) -> bool {
        self.gives
    }

    /// An event: handled last in the turn.
    pub fn mark_ready(&mut self) {
        self.ready = self.is_watched;
    }

    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Something lies there, whether or not an event told so.
    pub fn look(&mut self) {
        self.ready |= self.is_watched && self.lying() > 0;
    }

    /// The turn's events were handled; what still lies there is reported again.
    pub fn end_pass(&mut self) {
        self.ready = false;
    }

    /// When a full queue is to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether it is the queue's turn, where a listener waits too.
    pub fn takes_turn(&mut self, listener_waits: bool) -> bool {
        let queue = self.ready && !(listener_waits && self.had_turn);
        self.had_turn = queue;
        queue
    }

    /// Makes epoll's interest in the queue what it should be. `masked`: nothing of it is to be heard for now.
    pub fn watch(&mut self, epoll: &Epoll, masked: bool) {
        let Some(queue) = &self.queue else { return };
        let wanted = self.receives && !masked;
        if wanted == self.is_watched {
            return;
        }
        let outcome = match wanted {
            true => epoll.add(queue.receiver(), Token::QUEUE, Interest::Door),
            false => epoll.remove(queue.receiver()),
        };
        self.ready &= wanted;
        match outcome {
            Ok(()) => self.is_watched = wanted,
            Err(error) => log::error!("the handoff queue cannot be watched: {error}"),
        }
    }

    /// Those that watch the queue too are woken before this worker.
    pub fn go_to_back(&mut self, epoll: &Epoll) {
        let masked = !self.is_watched;
        self.watch(epoll, true);
        self.watch(epoll, masked);
    }

    /// From now on connections are given away.
    fn begin_giving(&mut self) {
        self.gives = true;
        self.retry_at = None;
    }

    /// From now on connections stay.
    fn end_giving(&mut self) {
        self.gives = false;
        self.line = Line::default();
        self.retry_at = None;
    }
}
