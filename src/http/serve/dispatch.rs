//! The app threads' side: where requests come from. An app thread that holds the helm takes them from the loop itself
//! (`helm`). Where the relief thread runs the loop, requests wait in a ring, in order, until a thread is free; a
//! thread that finds none says so and sleeps, and one sleeper is woken a request.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;
use super::event_loop::{Attention, Step};
use super::exchange::Exchange;
use super::helm::{Held, Helm, Steered, Ticket};

pub enum Wake {
    Request(Exchange),
    /// A signal arrived (main thread only): run the interpreter's handlers, then wait again.
    Signal,
    /// Drained or stopped: nothing more will come.
    Done,
}

/// One app thread's side of the server.
pub struct AppThread {
    helm: Arc<Helm>,
    index: usize,
    /// The way back to the helm, where this thread was the last to hold it.
    ticket: Option<Ticket>,
}

impl AppThread {
    pub(super) fn new(helm: Arc<Helm>, index: usize) -> AppThread {
        AppThread { helm, index, ticket: None }
    }

    /// A request that is ready now. Never waits, for a disk neither, so that it may be called with the interpreter's
    /// lock: what takes longer is left to `wait`.
    pub fn poll(&mut self) -> Option<Exchange> {
        let AppThread { helm, ticket, .. } = self;
        if helm.shared().is_forgotten() {
            return None;
        }
        let held = ticket.take().and_then(|ticket| helm.resume(ticket));
        if let Some(connection) = helm.shared().ring.take() {
            *ticket = held.and_then(|mut held| {
                held.event_loop().fire();
                held.leave()
            });
            return Some(late(helm, *ticket, connection));
        }
        let mut held = held?;
        match held.event_loop().step(Attention::Light) {
            Step::Request(connection) => Some(begin(helm, ticket, held, connection)),
            Step::Idle => {
                *ticket = Some(held.step_out());
                None
            }
            Step::Done => {
                held.end();
                None
            }
        }
    }

    /// Waits for a request. To be called without the interpreter's lock.
    pub fn wait(&mut self) -> Wake {
        let AppThread { helm, index, ticket } = self;
        let ring = &helm.shared().ring;
        loop {
            if helm.shared().is_forgotten() {
                return Wake::Done;
            }
            let held = ticket.take().and_then(|ticket| helm.resume(ticket)).or_else(|| helm.take_free());
            let Some(mut held) = held else {
                match ring.wait(*index, helm) {
                    Waited::Request(connection) => return Wake::Request(late(helm, None, connection)),
                    Waited::Signal => return Wake::Signal,
                    Waited::Helm => continue,
                    Waited::Done => return Wake::Done,
                }
            };
            match held.steer() {
                Steered::Request(connection) => return Wake::Request(begin(helm, ticket, held, connection)),
                Steered::Signal => {
                    *ticket = Some(held.step_out());
                    // Signals are the main thread's. In another one the interrupted wait just goes on.
                    if *index == 0 {
                        ring.read_wakeup();
                        return Wake::Signal;
                    }
                }
                Steered::Done => held.end(),
            }
        }
    }
}

/// A request straight from the loop, whose clock is fresh.
fn begin(
    helm: &Arc<Helm>,
    ticket: &mut Option<Ticket>,
    mut held: Held<'_>,
    mut connection: Box<Connection>,
) -> Exchange {
    let now = held.event_loop().now();
    *ticket = held.leave_with(&mut connection);
    Exchange::new(Arc::clone(helm), *ticket, connection, now)
}

/// A request that waited in the ring.
fn late(helm: &Arc<Helm>, ticket: Option<Ticket>, connection: Box<Connection>) -> Exchange {
    Exchange::new(Arc::clone(helm), ticket, connection, Instant::now())
}

enum Waited {
    Request(Box<Connection>),
    Signal,
    /// The helm is there to be taken, as far as is known.
    Helm,
    Done,
}

/// Bounded by the connection table: a connection is in here at most once.
pub struct Ring {
    state: Mutex<State>,
    /// The number of ready requests, to be looked at without the lock.
    ready: AtomicUsize,
    parkers: Vec<Parker>,
}

struct State {
    ready: VecDeque<Box<Connection>>,
    /// Sleeping threads; the last to fall asleep is woken first, its caches are warm.
    idle: Vec<usize>,
    done: bool,
}

impl Ring {
    /// The first thread is the process's main thread.
    pub fn new(threads: usize, connections: usize) -> io::Result<Ring> {
        let mut parkers = Vec::with_capacity(threads);
        parkers.push(Parker::main()?);
        parkers.extend((1..threads).map(|_| Parker::Plain { told: Mutex::new(false), bell: Condvar::new() }));
        let state =
            State { ready: VecDeque::with_capacity(connections), idle: Vec::with_capacity(threads), done: false };
        Ok(Ring { state: Mutex::new(state), ready: AtomicUsize::new(0), parkers })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
            Parker::Main { bell, .. } => Some(bell.as_raw_fd()),
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

    fn take_from(&self, state: &mut State) -> Option<Box<Connection>> {
        let connection = state.ready.pop_front();
        self.ready.store(state.ready.len(), Ordering::Release);
        connection
    }

    /// Threads sleep, and no request is there for them.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.ready.is_empty() && !state.idle.is_empty()
    }

    /// The helm is there to be taken.
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

    fn wait(&self, index: usize, helm: &Helm) -> Waited {
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
        // Only now: whoever releases the helm from here on finds us.
        let parked = if helm.ask() { Parked::Told } else { self.parkers[index].park() };
        let mut state = self.lock();
        state.idle.retain(|&sleeper| sleeper != index);
        // A request may have been meant for this thread at the same moment: it goes first, or it would wait although
        // others sleep. The interpreter runs the handler of a signal all the same.
        match (self.take_from(&mut state), parked) {
            (Some(connection), Parked::Told | Parked::Signal) => Waited::Request(connection),
            (None, Parked::Signal) => Waited::Signal,
            (None, Parked::Told) if state.done => Waited::Done,
            (None, Parked::Told) => Waited::Helm,
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
        bell: EventFd,
        wakeup: OnceLock<OwnedFd>,
        wakeup_ended: AtomicBool,
    },
    Plain {
        told: Mutex<bool>,
        bell: Condvar,
    },
}

impl Parker {
    fn main() -> io::Result<Parker> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Parker::Main { bell, wakeup: OnceLock::new(), wakeup_ended: AtomicBool::new(false) })
    }

    fn unpark(&self) {
        match self {
            // Fails only when the counter would overflow; it is not 0 then.
            Parker::Main { bell, .. } => drop(bell.write(1)),
            Parker::Plain { told, bell } => {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = true;
                bell.notify_one();
            }
        }
    }

    /// There is no deadline: an app thread without a request has nothing else to do.
    fn park(&self) -> Parked {
        match self {
            Parker::Main { bell, wakeup, wakeup_ended } => park_main(bell, wakeup.get(), wakeup_ended),
            Parker::Plain { told, bell } => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                while !std::mem::take(&mut *told) {
                    told = bell.wait(told).unwrap_or_else(PoisonError::into_inner);
                }
                Parked::Told
            }
        }
    }
}

fn park_main(bell: &EventFd, wakeup: Option<&OwnedFd>, wakeup_ended: &AtomicBool) -> Parked {
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // poll(2) ignores negative descriptors.
    let wakeup = wakeup.filter(|_| !wakeup_ended.load(Ordering::Relaxed));
    let mut fds = [entry(bell.as_raw_fd()), entry(wakeup.map_or(-1, AsRawFd::as_raw_fd))];
    // SAFETY: the array outlives the call and its length is given.
    let outcome = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    if outcome < 0 {
        return Parked::Signal;
    }
    if fds[0].revents != 0 {
        let _ = bell.read();
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
