//! The app threads' side: where requests come from. An app thread that leads takes them from the loop itself
//! (`leader`). Where the monitor thread runs the loop, requests wait in a run queue, in order, until a thread is free; a
//! thread that finds none says so and sleeps, and one sleeper is woken a request.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;
use super::event_loop::{Blocking, Step};
use super::exchange::Exchange;
use super::leader::{Leader, LeaderGuard, Lease, LoopEvent};

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
    pub(super) fn new(leader: Arc<Leader>, index: usize) -> AppThread {
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
                match run_queue.wait(*index, leader) {
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

enum Waited {
    Request(Box<Connection>),
    Signal,
    /// The lead is there to be taken, as far as is known.
    Leader,
    Done,
}

/// Bounded by the connection table: a connection is in here at most once.
pub struct RunQueue {
    state: Mutex<QueueState>,
    /// The number of ready requests, to be looked at without the lock.
    ready: AtomicUsize,
    parkers: Vec<Parker>,
}

struct QueueState {
    ready: VecDeque<Box<Connection>>,
    /// Sleeping threads; the last to fall asleep is woken first, its caches are warm.
    idle: Vec<usize>,
    done: bool,
}

impl RunQueue {
    /// The first thread is the process's main thread.
    pub fn new(threads: usize, connections: usize) -> io::Result<RunQueue> {
        let mut parkers = Vec::with_capacity(threads);
        parkers.push(Parker::main()?);
        parkers.extend((1..threads).map(|_| Parker::Plain { told: Mutex::new(false), waker: Condvar::new() }));
        let state =
            QueueState { ready: VecDeque::with_capacity(connections), idle: Vec::with_capacity(threads), done: false };
        Ok(RunQueue { state: Mutex::new(state), ready: AtomicUsize::new(0), parkers })
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever becomes readable here ends the main thread's sleep; at most once. It is read without waiting.
    pub fn watch(&self, wakeup: OwnedFd) -> io::Result<()> {
        nix::fcntl::fcntl(&wakeup, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        if let Some(Parker::Main { wakeup: place, .. }) = self.parkers.first() {
            let _ = place.set(wakeup);
        }
        Ok(())
    }

    /// The descriptors that a forked child has to close.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.parkers.iter().filter_map(|parker| match parker {
            Parker::Main { waker, .. } => Some(waker.as_raw_fd()),
            Parker::Plain { .. } => None,
        })
    }

    pub fn push(&self, connection: Box<Connection>) {
        let sleeper = {
            let mut state = self.lock();
            state.ready.push_back(connection);
            self.ready.store(state.ready.len(), Ordering::Release);
            state.idle.pop()
        };
        if let Some(index) = sleeper {
            self.parkers[index].unpark();
        }
    }

    pub fn take(&self) -> Option<Box<Connection>> {
        if self.ready.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.take_from(&mut self.lock())
    }

    fn take_from(&self, state: &mut QueueState) -> Option<Box<Connection>> {
        let connection = state.ready.pop_front();
        self.ready.store(state.ready.len(), Ordering::Release);
        connection
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

    /// What a signal left for the main thread was seen.
    pub fn read_wakeup(&self) {
        match self.parkers.first() {
            Some(Parker::Main { wakeup, wakeup_ended, .. }) => {
                if let Some(wakeup) = wakeup.get() {
                    read_wakeup(wakeup, wakeup_ended);
                }
            }
            Some(Parker::Plain { .. }) | None => {}
        }
    }

    /// Nothing more will come.
    pub fn finish(&self) {
        self.lock().done = true;
        for parker in &self.parkers {
            parker.unpark();
        }
    }

    fn wait(&self, index: usize, leader: &Leader) -> Waited {
        {
            let mut state = self.lock();
            if let Some(connection) = self.take_from(&mut state) {
                return Waited::Request(connection);
            }
            if state.done {
                return Waited::Done;
            }
            state.idle.push(index);
        }
        // Only now: whoever gives up the lead from here on finds us.
        let parked = if leader.ask() { Parked::Told } else { self.parkers[index].park() };
        let mut state = self.lock();
        state.idle.retain(|&sleeper| sleeper != index);
        // A request may have been meant for this thread at the same moment: it goes first, or it would wait although
        // others sleep. The interpreter runs the handler of a signal all the same.
        match (self.take_from(&mut state), parked) {
            (Some(connection), Parked::Told | Parked::Signal) => Waited::Request(connection),
            (None, Parked::Signal) => Waited::Signal,
            (None, Parked::Told) if state.done => Waited::Done,
            (None, Parked::Told) => Waited::Leader,
        }
    }
}

enum Parked {
    Told,
    Signal,
}

/// Where an app thread sleeps.
enum Parker {
    /// The main thread: poll(2) returns for a signal, by EINTR or through the interpreter's wakeup descriptor.
    Main {
        waker: EventFd,
        wakeup: OnceLock<OwnedFd>,
        wakeup_ended: AtomicBool,
    },
    Plain {
        told: Mutex<bool>,
        waker: Condvar,
    },
}

impl Parker {
    fn main() -> io::Result<Parker> {
        let waker = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Parker::Main { waker, wakeup: OnceLock::new(), wakeup_ended: AtomicBool::new(false) })
    }

    fn unpark(&self) {
        match self {
            // Fails only when the counter would overflow; it is not 0 then.
            Parker::Main { waker, .. } => drop(waker.write(1)),
            Parker::Plain { told, waker } => {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = true;
                waker.notify_one();
            }
        }
    }

    /// There is no deadline: an app thread without a request has nothing else to do.
    fn park(&self) -> Parked {
        match self {
            Parker::Main { waker, wakeup, wakeup_ended } => park_main(waker, wakeup.get(), wakeup_ended),
            Parker::Plain { told, waker } => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                while !std::mem::take(&mut *told) {
                    told = waker.wait(told).unwrap_or_else(PoisonError::into_inner);
                }
                Parked::Told
            }
        }
    }
}

fn park_main(waker: &EventFd, wakeup: Option<&OwnedFd>, wakeup_ended: &AtomicBool) -> Parked {
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // poll(2) ignores negative descriptors.
    let wakeup = wakeup.filter(|_| !wakeup_ended.load(Ordering::Relaxed));
    let mut fds = [entry(waker.as_raw_fd()), entry(wakeup.map_or(-1, AsRawFd::as_raw_fd))];
    // SAFETY: the array outlives the call and its length is given.
    let outcome = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    if outcome < 0 {
        return Parked::Signal;
    }
    if fds[0].revents != 0 {
        let _ = waker.read();
    }
    let Some(wakeup) = wakeup.filter(|_| fds[1].revents != 0) else { return Parked::Told };
    read_wakeup(wakeup, wakeup_ended);
    Parked::Signal
}

fn read_wakeup(wakeup: &OwnedFd, wakeup_ended: &AtomicBool) {
    let mut bytes = [0u8; 64];
    // SAFETY: the kernel writes at most the array's length into it. The descriptor is non-blocking.
    let length = unsafe { libc::read(wakeup.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    // At its end it would be readable for ever.
    if length == 0 {
        wakeup_ended.store(true, Ordering::Relaxed);
    }
}
