//! What a child that the application forks has to close: it has copies of all descriptors, and must never serve.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

pub struct Copies {
    /// The descriptor of each slot's socket, plus one: memory that was never written to is all zeroes, and costs nothing
    /// in the pages that are never used.
    sockets: Box<[AtomicI32]>,
    /// Listeners, and last epoll; -1: none.
    fds: Vec<AtomicI32>,
    /// This process has forked.
    forked: AtomicBool,
    /// This is the child.
    forgotten: AtomicBool,
}

impl Copies {
    pub fn new(connections: usize, fds: &[RawFd]) -> Copies {
        Copies {
            sockets: zeroes(connections),
            fds: fds.iter().map(|&fd| AtomicI32::new(fd)).collect(),
            forked: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        }
    }

    pub fn set_forked(&self) {
        self.forked.store(true, Ordering::SeqCst);
    }

    pub fn has_forked(&self) -> bool {
        self.forked.load(Ordering::SeqCst)
    }

    pub fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Closes all, in the child. Only calls that are safe in a child of a threaded process: no lock, no allocation
    /// (fork(2)).
    pub fn forget(&self, others: impl Iterator<Item = RawFd>) {
        if self.forgotten.swap(true, Ordering::SeqCst) {
            return;
        }
        let sockets = self.sockets.iter().map(|socket| socket.load(Ordering::Relaxed) - 1);
        let fds = self.fds.iter().map(|fd| fd.load(Ordering::Relaxed));
        for fd in sockets.chain(fds).chain(others) {
            if fd >= 0 {
                // SAFETY: the child's copy of a descriptor of ours; its owners live in a thread that the child
                // does not have, and `forgotten` keeps everyone else from using or closing it.
                unsafe { libc::close(fd) };
            }
        }
    }

    /// Those that are open.
    pub fn listeners(&self) -> impl Iterator<Item = RawFd> + '_ {
        let listeners = self.fds.split_last().map_or(&[][..], |(_epoll, listeners)| listeners);
        listeners.iter().map(|fd| fd.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
    }

    pub fn note_socket(&self, index: u32, socket: Option<RawFd>) {
        self.sockets[index as usize].store(socket.map_or(0, |fd| fd + 1), Ordering::Relaxed);
    }

    /// A descriptor was closed and its number may be another's now.
    pub fn forget_fd(&self, fd: RawFd) {
        if let Some(place) = self.fds.iter().find(|place| place.load(Ordering::Relaxed) == fd) {
            place.store(-1, Ordering::Relaxed);
        }
    }
}

fn zeroes(count: usize) -> Box<[AtomicI32]> {
    let zeroes = vec![0i32; count].into_boxed_slice();
    // SAFETY: an AtomicI32 has the size, alignment and values of an i32, and the slice is nobody else's.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicI32]) }
}
