//! From the loop to the app threads: complete requests wait in a ring, in order, until a thread is free. A
//! thread that finds none says so and sleeps; the loop wakes one sleeper a request.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::connection::Connection;
use super::exchange::Exchange;
use super::shared::Shared;

pub enum Wake {
    Request(Exchange),
    /// A signal arrived (main thread only): run the interpreter's handlers, then wait again.
    Signal,
    /// Drained or stopped: nothing more will come.
    Done,
}

/// One app thread's side of the server.
pub struct AppThread {
    shared: Arc<Shared>,
    index: usize,
}

impl AppThread {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> AppThread {
        AppThread { shared, index }
    }

    /// A request that is ready now. Never waits.
    pub fn poll(&mut self) -> Option<Exchange> {
        if self.shared.is_forgotten() {
            return None;
        }
        let connection = self.shared.ring.take()?;
        Some(Exchange::new(Arc::clone(&self.shared), connection))
    }

    /// Waits for a request. To be called without the interpreter's lock.
    pub fn wait(&mut self) -> Wake {
        if self.shared.is_forgotten() {
            return Wake::Done;
        }
        match self.shared.ring.wait(self.index) {
            Waited::Request(connection) => Wake::Request(Exchange::new(Arc::clone(&self.shared), connection)),
            Waited::Signal => Wake::Signal,
            Waited::Done => Wake::Done,
        }
    }
}

enum Waited {
    Request(Box<Connection>),
    Signal,
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

    /// Whatever becomes readable here ends the main thread's sleep; at most once.
    pub fn watch(&self, wakeup: OwnedFd) {
        if let Some(Parker::Main { wakeup: place, .. }) = self.parkers.first() {
            let _ = place.set(wakeup);
        }
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

    /// Nothing more will come.
    pub fn finish(&self) {
        self.lock().done = true;
        for parker in &self.parkers {
            parker.unpark();
        }
    }

    fn wait(&self, index: usize) -> Waited {
        loop {
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
            let parked = self.parkers[index].park();
            let mut state = self.lock();
            state.idle.retain(|&sleeper| sleeper != index);
            match parked {
                Parked::Told => {}
                // The loop may have chosen this thread for a request at the same moment: then the request goes
                // first, or it would wait although others sleep. The interpreter runs the handler all the same.
                Parked::Signal => match self.take_from(&mut state) {
                    Some(connection) => return Waited::Request(connection),
                    None => return Waited::Signal,
                },
            }
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
    let wakeup = wakeup.filter(|_| !wakeup_ended.load(Ordering::Relaxed)).map_or(-1, AsRawFd::as_raw_fd);
    let mut fds = [entry(bell.as_raw_fd()), entry(wakeup)];
    // SAFETY: the array outlives the call and its length is given.
    let outcome = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    if outcome < 0 {
        return Parked::Signal;
    }
    if fds[0].revents != 0 {
        let _ = bell.read();
    }
    if fds[1].revents == 0 {
        return Parked::Told;
    }
    let mut bytes = [0u8; 64];
    // SAFETY: the kernel writes at most the array's length into it; poll said that this does not wait.
    let length = unsafe { libc::read(wakeup, bytes.as_mut_ptr().cast(), bytes.len()) };
    // At its end it would be readable for ever.
    wakeup_ended.store(length == 0, Ordering::Relaxed);
    Parked::Signal
}
