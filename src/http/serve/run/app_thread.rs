//! The app threads' side: where requests come from. An app thread that leads takes them from the loop itself
//! (`leader`). Where the monitor thread runs the loop, requests wait in a run queue, in order, until a thread is free; a
//! thread that finds none says so and sleeps, and one sleeper is woken a request.

use std::sync::Arc;
use std::time::Instant;

use crate::serve::base::names::Blocking;
use crate::serve::conn::connection::Connection;
use crate::serve::event_loop::run_queue::Waited;
use crate::serve::event_loop::Step;
use crate::serve::run::exchange::Exchange;
use crate::serve::run::leader::{Leader, LeaderGuard, Lease, LoopEvent};

pub enum Wake {
    Request(Exchange),
    /// A signal arrived (main thread only): run the interpreter's handlers, then wait again.
    Signal,
    /// Drained or stopped: nothing more will come.
    Done,
}

/// One app thread's side of the server.
pub struct AppThread {
    leader: Arc<Leader>,
    index: usize,
    /// The way back to the lead, where this thread was the last to have it.
    lease: Option<Lease>,
}

impl AppThread {
    pub fn new(leader: Arc<Leader>, index: usize) -> AppThread {
        AppThread { leader, index, lease: None }
    }

    /// A request that is ready now. Never waits, for a disk neither, so that it may be called with the interpreter's
    /// lock: what takes longer is left to `wait`.
    pub fn poll(&mut self) -> Option<Exchange> {
        let AppThread { leader, lease, .. } = self;
        if leader.shared().is_forgotten() {
            return None;
        }
        let guard = lease.take().and_then(|lease| leader.exit_app(lease));
        if let Some(connection) = leader.shared().run_queue.take() {
            *lease = guard.and_then(|mut guard| {
                guard.event_loop().flush();
                guard.enter_app()
            });
            return Some(from_queue(leader, *lease, connection));
        }
        let mut guard = guard?;
        match guard.event_loop().step(Blocking::Forbidden) {
            Step::Request(connection) => Some(from_loop(leader, lease, guard, connection)),
            Step::Idle => {
                *lease = Some(guard.yield_loop());
                None
            }
            Step::Done => {
                guard.end();
                None
            }
        }
    }

    /// Waits for a request. To be called without the interpreter's lock.
    pub fn wait(&mut self) -> Wake {
        let AppThread { leader, index, lease } = self;
        let run_queue = &leader.shared().run_queue;
        loop {
            if leader.shared().is_forgotten() {
                return Wake::Done;
            }
            let guard = lease.take().and_then(|lease| leader.exit_app(lease)).or_else(|| leader.acquire());
            let Some(mut guard) = guard else {
                match run_queue.wait(*index, || leader.ask()) {
                    Waited::Request(connection) => return Wake::Request(from_queue(leader, None, connection)),
                    Waited::Signal => return Wake::Signal,
                    Waited::Leader => continue,
                    Waited::Done => return Wake::Done,
                }
            };
            match guard.run_until_request() {
                LoopEvent::Request(connection) => return Wake::Request(from_loop(leader, lease, guard, connection)),
                LoopEvent::Signal => {
                    *lease = Some(guard.yield_loop());
                    // Signals are the main thread's. In another one the interrupted wait just goes on.
                    if *index == 0 {
                        run_queue.read_wakeup();
                        return Wake::Signal;
                    }
                }
                LoopEvent::Done => guard.end(),
            }
        }
    }
}

/// A request straight from the loop, whose clock is fresh.
fn from_loop(
    leader: &Arc<Leader>,
    lease: &mut Option<Lease>,
    mut guard: LeaderGuard<'_>,
    mut connection: Box<Connection>,
) -> Exchange {
    let now = guard.event_loop().now();
    *lease = guard.enter_app_with(&mut connection);
    Exchange::new(Arc::clone(leader), *lease, connection, now)
}

/// A request that waited in the run queue.
fn from_queue(leader: &Arc<Leader>, lease: Option<Lease>, connection: Box<Connection>) -> Exchange {
    Exchange::new(Arc::clone(leader), lease, connection, Instant::now())
}
