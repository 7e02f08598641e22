//! Where an app thread's requests come from. While it leads it takes them from the loop itself; where the monitor leads
//! they wait in the run queue.

use std::sync::Arc;
use std::time::Instant;

use crate::serve::base::names::Blocking;
use crate::serve::event_loop::interface::{Doors, Loop, Step};
use crate::serve::event_loop::run_queue::Waited;

use super::close_look::CloseLook;
use super::leader::{Leader, LeaderGuard, Lease};

/// A request, and the way back to the loop for the thread that took it from there.
pub struct Taken<R> {
    pub request: R,
    pub lease: Option<Lease>,
    /// When the thread took it.
    pub begun: Instant,
    pub look: Option<CloseLook>,
    pub from_loop: bool,
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
    /// It was in the application with a request.
    busy: bool,
}

enum LoopEvent<R> {
    Request(R),
    Signal,
    Done,
}

impl<L: Loop> Follower<L> {
    pub fn new(leader: Arc<Leader<L>>, index: usize) -> Follower<L> {
        Follower { leader, index, lease: None, busy: false }
    }

    pub fn leader(&self) -> &Arc<Leader<L>> {
        &self.leader
    }

    /// A request that is ready now. Never waits.
    pub fn poll(&mut self) -> Option<Taken<L::Request>> {
        self.come_back();
        let taken = self.try_take();
        self.busy = taken.is_some();
        taken
    }

    fn come_back(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.leader.doors().complete();
        }
    }

    fn try_take(&mut self) -> Option<Taken<L::Request>> {
        let Follower { leader, lease, .. } = self;
        if leader.doors().is_forgotten() {
            return None;
        }
        let guard = come_back_to_loop(leader, lease).or_else(|| leader.reclaim());
        let guard = match take_queued(leader, lease, guard) {
            Ok(taken) => return Some(taken),
            Err(guard) => guard,
        };
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
        self.come_back();
        let event = self.await_event();
        self.busy = matches!(event, Event::Request(_));
        event
    }

    fn await_event(&mut self) -> Event<L::Request> {
        let Follower { leader, index, lease, .. } = self;
        let run_queue = leader.doors().run_queue();
        loop {
            if leader.doors().is_forgotten() {
                return Event::Done;
            }
            let guard = come_back_to_loop(leader, lease).or_else(|| leader.acquire());
            let guard = match take_queued(leader, lease, guard) {
                Ok(taken) => return Event::Request(taken),
                Err(guard) => guard,
            };
            let Some(mut guard) = guard else {
                match run_queue.wait(*index, || leader.may_lead(*lease)) {
                    Waited::Request(request) => match leader.doors().if_wanted(request) {
                        Some(request) => return Event::Request(from_queue(leader, None, request)),
                        None => continue,
                    },
                    Waited::Signal => return Event::Signal,
                    Waited::Leader => continue,
                    Waited::Done => return Event::Done,
                }
            };
            match run_until_request(&mut guard, *index == 0) {
                LoopEvent::Request(request) => return Event::Request(from_loop(lease, guard, request)),
                LoopEvent::Signal => {
                    *lease = Some(guard.yield_loop());
                    run_queue.read_wakeup();
                    return Event::Signal;
                }
                LoopEvent::Done => guard.end(),
            }
        }
    }
}

/// A lease that is not good may become so again, while the thread has no other.
fn come_back_to_loop<'a, L: Loop>(leader: &'a Leader<L>, lease: &mut Option<Lease>) -> Option<LeaderGuard<'a, L>> {
    let guard = leader.exit_app((*lease)?)?;
    *lease = None;
    Some(guard)
}

/// The next request of the queue, in which only a leader puts one: whoever leads now has to look there first, or a request
/// would wait there until somebody else comes. Else the guard.
fn take_queued<'a, L: Loop>(
    leader: &'a Leader<L>,
    lease: &mut Option<Lease>,
    guard: Option<LeaderGuard<'a, L>>,
) -> Result<Taken<L::Request>, Option<LeaderGuard<'a, L>>> {
    let Some(request) = leader.doors().take_request() else { return Err(guard) };
    let entered = guard.and_then(|mut guard| {
        guard.event_loop().flush();
        guard.enter_app()
    });
    // An older one may become good again.
    *lease = entered.or(*lease);
    Ok(from_queue(leader, entered, request))
}

/// Runs the loop, as an app thread without the interpreter's lock, until there is something for it to do.
fn run_until_request<L: Loop>(guard: &mut LeaderGuard<'_, L>, is_main: bool) -> LoopEvent<L::Request> {
    loop {
        match guard.event_loop().step(Blocking::Allowed) {
            Step::Request(request) => return LoopEvent::Request(request),
            Step::Idle => {
                if guard.event_loop().fetch(is_main) {
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
    let look = CloseLook::begin(guard.leader().times());
    *lease = guard.enter_app_with(&mut request);
    Taken { request, lease: *lease, begun, look, from_loop: true }
}

/// A request that waited in the run queue.
fn from_queue<L: Loop>(leader: &Leader<L>, lease: Option<Lease>, request: L::Request) -> Taken<L::Request> {
    let look = CloseLook::begin(leader.times());
    Taken { request, lease, begun: Instant::now(), look, from_loop: false }
}
