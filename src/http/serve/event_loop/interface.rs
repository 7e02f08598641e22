//! The event loop as whoever leads sees it. The leader (`run/leader.rs`) knows these traits and no loop, so that it can be
//! run with a toy one.

use std::time::Instant;

use crate::serve::base::names::Blocking;
use crate::serve::conn::request::Request;

use super::fair_line::Alike;
use super::mailbox::Notice;
use super::run_queue::RunQueue;
use super::shared::Shared;
use super::EventLoop;

/// What came of a step.
#[derive(Debug)]
pub enum Step<R> {
    /// A complete request, for an app thread. Step again after it.
    Request(R),
    /// Fetch events (after `Blocking::Forbidden`: or step again with `Allowed`).
    Idle,
    /// Everything is drained.
    Done,
}

/// Only the leader has it.
pub trait Loop {
    type Request: Alike;
    type Doors: Doors<Self::Request>;

    /// Goes on with what was fetched. Never waits.
    fn step(&mut self, blocking: Blocking) -> Step<Self::Request>;

    /// Waits for events. True: a signal came. Signals are the main thread's: where another one waits, they are kept for it.
    fn fetch(&mut self, is_main: bool) -> bool;

    /// The time of the latest fetch, or of the latest answer.
    fn now(&self) -> Instant;

    /// The leader enters the application with a request. Those behind it go to other workers, if they have waited for long and
    /// somebody has nothing to do.
    fn share_rest(&mut self);

    /// Whether the answer to this request may wait for others: more requests are there, so that it would not wait alone.
    fn may_defer(&self, request: &Self::Request) -> bool;

    /// The leader enters the application with this request, whose answer may wait for others.
    fn defer_answer(&mut self, request: &mut Self::Request);

    /// Answers wait for others, or may before long.
    fn holds_answers(&self) -> bool;

    /// Sends the answers that wait for each other.
    fn flush(&mut self);

    /// The same while an app thread that leads is in the application.
    fn flush_early(&mut self);
}

/// What threads that do not lead have of the loop.
pub trait Doors<R: Alike> {
    fn run_queue(&self) -> &RunQueue<R>;

    /// The loop shall look at what there is before it sleeps again.
    fn wake(&self);

    /// The next request of the queue whose client is still there and which has not waited for too long. Others go back to the
    /// loop, which closes or refuses them: nobody would have anything of running them, and after an overload they are many.
    fn take_request(&self) -> Option<R>;

    /// The same for a request that was taken already.
    fn if_wanted(&self, request: R) -> Option<R>;

    /// Somebody has waited too long to be taken in: the loop is needed, whatever the threads are at.
    fn is_behind(&self) -> bool;

    /// A thread has come back from the application, whoever still has the request.
    fn complete(&self);

    /// This process is a forked child, and serves nobody.
    fn is_forgotten(&self) -> bool;
}

impl Loop for EventLoop {
    type Request = Box<Request>;
    type Doors = Shared;

    fn step(&mut self, blocking: Blocking) -> Step<Box<Request>> {
        EventLoop::step(self, blocking)
    }

    fn fetch(&mut self, is_main: bool) -> bool {
        EventLoop::fetch(self, is_main)
    }

    fn now(&self) -> Instant {
        EventLoop::now(self)
    }

    fn share_rest(&mut self) {
        EventLoop::share_rest(self);
    }

    fn may_defer(&self, request: &Box<Request>) -> bool {
        EventLoop::may_defer(self, request)
    }

    fn defer_answer(&mut self, request: &mut Box<Request>) {
        EventLoop::defer_answer(self, request);
    }

    fn holds_answers(&self) -> bool {
        EventLoop::holds_answers(self)
    }

    fn flush(&mut self) {
        EventLoop::flush(self);
    }

    fn flush_early(&mut self) {
        EventLoop::flush_early(self);
    }
}

impl Doors<Box<Request>> for Shared {
    fn run_queue(&self) -> &RunQueue<Box<Request>> {
        &self.run_queue
    }

    fn wake(&self) {
        self.mailbox.wake();
    }

    fn take_request(&self) -> Option<Box<Request>> {
        std::iter::from_fn(|| self.run_queue.take()).find_map(|request| self.if_wanted(request))
    }

    fn if_wanted(&self, request: Box<Request>) -> Option<Box<Request>> {
        let now = Instant::now();
        let notice = if request.is_late(now) {
            Notice::Late(request)
        } else if request.is_abandoned(now) {
            request.write_half.mark_gone();
            Notice::Returned(request)
        } else {
            return Some(request);
        };
        self.complete();
        self.mailbox.notify(notice);
        None
    }

    fn is_behind(&self) -> bool {
        Shared::is_behind(self)
    }

    fn complete(&self) {
        Shared::complete(self);
    }

    fn is_forgotten(&self) -> bool {
        Shared::is_forgotten(self)
    }
}
