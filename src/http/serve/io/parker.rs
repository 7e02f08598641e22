//! Where an app thread sleeps until it is told, or, the main thread, until a signal comes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::serve::base::sync::{Condvar, Mutex};

/// Why a sleep ended.
pub enum Parked {
    Told,
    Signal,
}

pub enum Parker {
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
    pub fn main() -> io::Result<Parker> {
        let waker = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Parker::Main { waker, wakeup: OnceLock::new(), wakeup_ended: AtomicBool::new(false) })
    }

    pub fn plain() -> Parker {
        Parker::Plain { told: Mutex::new(false), waker: Condvar::new() }
    }

    /// Whatever becomes readable here ends the main thread's sleep; at most once. It is read without waiting.
    pub fn watch(&self, wakeup: OwnedFd) -> io::Result<()> {
        nix::fcntl::fcntl(&wakeup, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        match self {
            Parker::Main { wakeup: place, .. } => drop(place.set(wakeup)),
            Parker::Plain { .. } => {}
        }
        Ok(())
    }

    /// What a forked child has to close.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Parker::Main { waker, .. } => Some(waker.as_raw_fd()),
            Parker::Plain { .. } => None,
        }
    }

    pub fn unpark(&self) {
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
    pub fn park(&self) -> Parked {
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

    /// What a signal left for the main thread was seen.
    pub fn read_wakeup(&self) {
        match self {
            Parker::Main { wakeup, wakeup_ended, .. } => {
                if let Some(wakeup) = wakeup.get() {
                    read_wakeup(wakeup, wakeup_ended);
                }
            }
            Parker::Plain { .. } => {}
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
