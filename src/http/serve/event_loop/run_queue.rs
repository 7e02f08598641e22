//! Requests that wait for a thread, in order (`fair_line`), where the monitor runs the loop. A thread that finds none says so
//! and sleeps; one sleeper is woken a request.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use std::time::Duration;

use crate::serve::base::sync::{AtomicUsize, Mutex, MutexGuard};
use crate::serve::io::parker::{Parked, Parker};

use super::fair_line::{Alike, FairLine};

/// Why a thread waits no longer.
pub enum Waited<T> {
    Request(T),
    Signal,
    /// The lead is there to be taken, as far as is known.
    Leader,
    Done,
}

/// Bounded by the connection table: a connection has one request in here at most.
pub struct RunQueue<T> {
    state: Mutex<State<T>>,
    /// The number of ready requests, to be looked at without the lock.
    ready: AtomicUsize,
    parkers: Vec<Parker>,
}

struct State<T> {
    ready: FairLine<T>,
    /// Sleeping threads; the last to fall asleep is woken first, its caches are warm.
    idle: Vec<usize>,
    done: bool,
}

impl<T: Alike> RunQueue<T> {
    /// The first thread is the process's main thread.
    pub fn new(threads: usize, connections: usize) -> io::Result<RunQueue<T>> {
        let mut parkers = Vec::with_capacity(threads);
        parkers.push(Parker::main()?);
        parkers.extend((1..threads).map(|_| Parker::plain()));
        Ok(RunQueue::with_parkers(parkers, connections))
    }

    /// A place to sleep for each thread.
    pub fn with_parkers(parkers: Vec<Parker>, connections: usize) -> RunQueue<T> {
        let state = State { ready: FairLine::new(connections), idle: Vec::with_capacity(parkers.len()), done: false };
        RunQueue { state: Mutex::new(state), ready: AtomicUsize::new(0), parkers }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever becomes readable here ends the main thread's sleep; at most once. It is read without waiting.
    pub fn watch(&self, wakeup: OwnedFd) -> io::Result<()> {
        self.parkers.first().map_or(Ok(()), |parker| parker.watch(wakeup))
    }

    /// What a signal left for the main thread was seen.
    pub fn read_wakeup(&self) {
        if let Some(parker) = self.parkers.first() {
            parker.read_wakeup();
        }
    }

    /// The descriptors that a forked child has to close.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.parkers.iter().filter_map(Parker::fd)
    }

    pub fn push(&self, request: T) {
        let sleeper = {
            let mut state = self.lock();
            state.ready.push(request);
            self.ready.store(state.ready.len(), Ordering::Release);
            state.idle.pop()
        };
        if let Some(index) = sleeper {
            self.parkers[index].unpark();
        }
    }

    /// Requests wait for a thread: so many.
    pub fn waiting(&self) -> usize {
        self.ready.load(Ordering::Acquire)
    }

    pub fn has_waiting(&self) -> bool {
        self.waiting() > 0
    }

    /// It was taken, and stays the first in line after all.
    pub fn put_back(&self, request: T) {
        let sleeper = {
            let mut state = self.lock();
            state.ready.put_back(request);
            self.ready.store(state.ready.len(), Ordering::Release);
            state.idle.pop()
        };
        if let Some(index) = sleeper {
            self.parkers[index].unpark();
        }
    }

    pub fn take(&self) -> Option<T> {
        if self.ready.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.take_from(&mut self.lock())
    }

    /// One that is the first of those like it, and such a one.
    pub fn take_if(&self, is_meant: impl Fn(&T) -> bool) -> Option<T> {
        if !self.has_waiting() {
            return None;
        }
        let mut state = self.lock();
        let request = state.ready.pop_if(is_meant);
        self.ready.store(state.ready.len(), Ordering::Release);
        request
    }

    fn take_from(&self, state: &mut State<T>) -> Option<T> {
        let request = state.ready.pop();
        self.ready.store(state.ready.len(), Ordering::Release);
        request
    }

    /// A request that came from here, or one like it, has kept its thread for so long.
    pub fn learn(&self, likeness: &[u8], took: Duration) {
        self.lock().ready.learn(likeness, took);
    }

    /// Threads sleep, and no request is there for them.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.ready.is_empty() && !state.idle.is_empty()
    }

    /// The lead is there to be taken.
    pub fn wake_one(&self) {
        let sleeper = self.lock().idle.pop();
        if let Some(index) = sleeper {
            self.parkers[index].unpark();
        }
    }

    /// Nothing more will come.
    pub fn finish(&self) {
        self.lock().done = true;
        for parker in &self.parkers {
            parker.unpark();
        }
    }

    /// Sleeps until there is something to do. `may_lead` is asked when this thread can already be found among the
    /// sleepers: whoever gives up the lead from then on wakes one.
    pub fn wait(&self, index: usize, may_lead: impl FnOnce() -> bool) -> Waited<T> {
        {
            let mut state = self.lock();
            if let Some(request) = self.take_from(&mut state) {
                return Waited::Request(request);
            }
            if state.done {
                return Waited::Done;
            }
            state.idle.push(index);
        }
        let parked = if may_lead() { Parked::Told } else { self.parkers[index].park() };
        let mut state = self.lock();
        state.idle.retain(|&sleeper| sleeper != index);
        // A request may have been meant for this thread at the same moment: it goes first, or it would wait although
        // others sleep. The interpreter runs the handler of a signal all the same.
        match (self.take_from(&mut state), parked) {
            (Some(request), Parked::Told | Parked::Signal) => Waited::Request(request),
            (None, Parked::Signal) => Waited::Signal,
            (None, Parked::Told) if state.done => Waited::Done,
            (None, Parked::Told) => Waited::Leader,
        }
    }
}
