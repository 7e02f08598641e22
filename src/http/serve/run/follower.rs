//! Where an app thread's requests come from. While it leads it takes them from the loop itself; where the monitor leads
//! they wait in the run queue.

use std::sync::Arc;
use std::time::Instant;

use crate::serve::base::names::Blocking;
use crate::serve::event_loop::interface::{Doors, Loop, Step};
use crate::serve::event_loop::run_queue::Waited;

use super::leader::{Leader, LeaderGuard, Lease};

/// A request, and the way back to the loop for the thread that took it from there.
pub struct Taken<R> {
    pub request: R,
    pub lease: Option<Lease>,
    /// When the thread took it.
    pub begun: Instant,
}

/// What ended a wait.
pub enum Event<R> {
    Request(Taken<R>),
    /// A signal came (main thread only).
    Signal,
    /// Nothing more will come.
    Done,
}

pub struct Follower<L: Loop> {
    leader: Arc<Leader<L>>,
    index: usize,
    /// The way back to the loop, where this thread was the last to lead.
    lease: Option<Lease>,
}

enum LoopEvent<R> {
    Request(R),
    Signal,
    Done,
}

impl<L: Loop> Follower<L> {
    pub fn new(leader: Arc<Leader<L>>, index: usize) -> Follower<L> {
        Follower { leader, index, lease: None }
    }

    pub fn leader(&self) -> &Arc<Leader<L>> {
        &self.leader
    }

    /// A request that is ready now. Never waits.
    pub fn poll(&mut self) -> Option<Taken<L::Request>> {
        let Follower { leader, lease, .. } = self;
        if leader.doors().is_forgotten() {
            return None;
        }
        let guard = lease.take().and_then(|lease| leader.exit_app(lease));
        if let Some(request) = leader.doors().run_queue().take() {
            *lease = guard.and_then(|mut guard| {
                guard.event_loop().flush();
                guard.enter_app()
            });
            return Some(from_queue(*lease, request));
        }
        let mut guard = guard?;
        match guard.event_loop().step(Blocking::Forbidden) {
            Step::Request(request) => Some(from_loop(lease, guard, request)),
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

    /// Waits for a request.
    pub fn wait(&mut self) -> Event<L::Request> {
        let Follower { leader, index, lease } = self;
        let run_queue = leader.doors().run_queue();
        loop {
            if leader.doors().is_forgotten() {
                return Event::Done;
            }
            let guard = lease.take().and_then(|lease| leader.exit_app(lease)).or_else(|| leader.acquire());
            let Some(mut guard) = guard else {
                match run_queue.wait(*index, || leader.may_lead()) {
                    Waited::Request(request) => return Event::Request(from_queue(None, request)),
                    Waited::Signal => return Event::Signal,
                    Waited::Leader => continue,
                    Waited::Done => return Event::Done,
                }
            };
            match run_until_request(&mut guard) {
                LoopEvent::Request(request) => return Event::Request(from_loop(lease, guard, request)),
                LoopEvent::Signal => {
                    *lease = Some(guard.yield_loop());
                    // Signals are the main thread's. In another one the interrupted wait just goes on.
                    if *index == 0 {
                        run_queue.read_wakeup();
                        return Event::Signal;
                    }
                }
                LoopEvent::Done => guard.end(),
            }
        }
    }
}

/// Runs the loop, as an app thread without the interpreter's lock, until there is something for it to do.
fn run_until_request<L: Loop>(guard: &mut LeaderGuard<'_, L>) -> LoopEvent<L::Request> {
    loop {
        match guard.event_loop().step(Blocking::Allowed) {
            Step::Request(request) => return LoopEvent::Request(request),
            Step::Idle => {
                if guard.event_loop().fetch() {
                    return LoopEvent::Signal;
                }
            }
            Step::Done => return LoopEvent::Done,
        }
    }
}

/// A request straight from the loop, whose clock is fresh.
fn from_loop<L: Loop>(
    lease: &mut Option<Lease>,
    mut guard: LeaderGuard<'_, L>,
    mut request: L::Request,
) -> Taken<L::Request> {
    let begun = guard.event_loop().now();
    *lease = guard.enter_app_with(&mut request);
    Taken { request, lease: *lease, begun }
}

/// A request that waited in the run queue.
fn from_queue<R>(lease: Option<Lease>, request: R) -> Taken<R> {
    Taken { request, lease, begun: Instant::now() }
}
