//! One app thread's side of the server. It pulls requests rather than being called, because the caller knows when its
//! interpreter lock must be given up.

use std::sync::Arc;

use crate::serve::event_loop::EventLoop;

use super::exchange::Exchange;
use super::follower::{Event, Follower};
use super::leader::Leader;

pub enum Wake {
    Request(Exchange),
    /// A signal arrived (main thread only): run the interpreter's handlers, then wait again.
    Signal,
    /// Drained or stopped: nothing more will come.
    Done,
}

pub struct AppThread {
    follower: Follower<EventLoop>,
}

impl AppThread {
    pub(in crate::serve) fn new(leader: Arc<Leader<EventLoop>>, index: usize) -> AppThread {
        AppThread { follower: Follower::new(leader, index) }
    }

    /// A request that is ready now. Never waits, for a disk neither, so that it may be called with the interpreter's
    /// lock: what takes longer is left to `wait`.
    pub fn poll(&mut self) -> Option<Exchange> {
        let taken = self.follower.poll()?;
        Some(Exchange::new(Arc::clone(self.follower.leader()), taken))
    }

    /// Waits for a request. To be called without the interpreter's lock.
    pub fn wait(&mut self) -> Wake {
        match self.follower.wait() {
            Event::Request(taken) => Wake::Request(Exchange::new(Arc::clone(self.follower.leader()), taken)),
            Event::Signal => Wake::Signal,
            Event::Done => Wake::Done,
        }
    }
}
