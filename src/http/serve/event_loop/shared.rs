//! What the loop, the app threads and the handles share, and how the loop is woken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::run_queue::RunQueue;
use crate::serve::base::budget::Budget;
use crate::serve::base::names::Token;
use crate::serve::base::settings::{Settings, MEMORY_BYTES_MAX};
use crate::serve::conn::connection::{Connection, Rules};
use crate::serve::io::spool::TempFiles;

/// From the app side to the loop.
pub enum Notice {
    /// Bytes lie in this connection's queue: drain it.
    Queued(Token),
    /// The request was answered; the connection is the loop's again.
    Returned(Box<Connection>),
}

/// From a handle to the loop.
#[derive(Debug)]
pub enum Command {
    Serve,
    Drain { keep: Vec<u32> },
    CloseListeners(Vec<u32>),
    Stop { idle: Duration },
    Retire,
}

#[derive(Default)]
pub struct Inbox {
    pub notices: VecDeque<Notice>,
    pub commands: VecDeque<Command>,
}

impl Inbox {
    /// At most two notices a connection, and the few commands of a worker's life.
    pub fn new(connections: usize) -> Inbox {
        Inbox { notices: VecDeque::with_capacity(2 * connections), commands: VecDeque::with_capacity(8) }
    }
}

pub struct Shared {
    pub rules: Rules,
    pub run_queue: RunQueue<Box<Connection>>,
    /// The descriptor of each slot's socket, plus one: memory that was never written to is all zeroes, and costs nothing
    /// in the pages that are never used.
    sockets: Box<[AtomicI32]>,
    inbox: Mutex<Inbox>,
    pending: AtomicBool,
    asleep: AtomicBool,
    waker: EventFd,
    /// Every answer from now on says `Connection: close`.
    closing: AtomicBool,
    forked: AtomicBool,
    forgotten: AtomicBool,
    /// Requests that the app side has given back since the start.
    completed: AtomicU64,
    /// Epoll and listeners, for `forget_in_child`; -1: none.
    fds: Vec<AtomicI32>,
}

impl Shared {
    pub fn new(settings: Settings, fds: &[RawFd]) -> io::Result<Shared> {
        let memory = Budget::new(MEMORY_BYTES_MAX);
        let run_queue = RunQueue::new(settings.threads, settings.connections)?;
        let inbox = Inbox::new(settings.connections);
        let sockets = zeroes(settings.connections);
        let temp = TempFiles::new(settings.temp_dir.clone(), settings.temp_limit);
        let limits = settings.limits();
        Ok(Shared {
            rules: Rules { settings, limits, temp, memory, buffers: Arc::default() },
            run_queue,
            sockets,
            inbox: Mutex::new(inbox),
            pending: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            waker: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            closing: AtomicBool::new(false),
            forked: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            fds: fds.iter().map(|&fd| AtomicI32::new(fd)).collect(),
        })
    }

    pub fn waker(&self) -> RawFd {
        self.waker.as_raw_fd()
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics while it is held.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn notify(&self, notice: Notice) {
        self.inbox().notices.push_back(notice);
        self.wake();
    }

    pub fn command(&self, command: Command) {
        if self.is_forgotten() {
            return;
        }
        self.inbox().commands.push_back(command);
        self.wake();
    }

    /// An app thread has answered a request.
    pub fn complete(&self) {
        self.completed.fetch_add(1, Ordering::Release);
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// The loop shall look at what there is. One eventfd write where it sleeps, none where it is awake: it looks at
    /// `pending` before it sleeps.
    pub fn wake(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter would overflow, and then it is readable already. It is never read:
            // edge-triggered, every write is an event.
            let _ = self.waker.write(1);
        }
    }

    /// The loop is about to sleep; false: there is work.
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Exchanges the full inbox for an empty one, so that both keep their memory.
    pub fn collect(&self, empty: &mut Inbox) {
        if self.pending.swap(false, Ordering::SeqCst) {
            std::mem::swap(&mut *self.inbox(), empty);
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub fn set_closing(&self, closing: bool) {
        self.closing.store(closing, Ordering::Relaxed);
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

    /// Only calls that are safe in a child of a threaded process: no lock, no allocation (fork(2)).
    pub fn forget_in_child(&self) {
        if self.forgotten.swap(true, Ordering::SeqCst) {
            return;
        }
        let sockets = self.sockets.iter().map(|socket| socket.load(Ordering::Relaxed) - 1);
        let others = self.fds.iter().map(|fd| fd.load(Ordering::Relaxed));
        for fd in sockets.chain(others).chain(self.run_queue.fds()).chain([self.waker.as_raw_fd()]) {
            if fd >= 0 {
                // SAFETY: the child's copy of a descriptor of ours; its owners live in a thread that the child
                // does not have, and `forgotten` keeps everyone else from using or closing it.
                unsafe { libc::close(fd) };
            }
        }
    }

    /// What a forked child has to close.
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
