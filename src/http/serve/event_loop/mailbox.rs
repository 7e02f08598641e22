//! What others leave for the loop, and how the loop is woken: never where it is awake.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::serve::base::names::Token;
use crate::serve::conn::body::Batch;
use crate::serve::conn::request::Request;

use super::mode::Command;

/// From the app side, those who watch it, and the file threads, to the loop.
pub enum Notice {
    /// Bytes lie in this connection's queue: drain it.
    Queued(Token),
    /// The request was answered; the connection is the loop's again.
    Returned(Box<Request>),
    /// Nobody has begun with the request, and it has waited for too long.
    Late(Box<Request>),
    /// The request of this number takes too long.
    Overdue(u64),
    /// A part of this connection's body is in its file, or could not be written.
    Written(Token, Box<Batch>),
    /// What is to be sent to it next of a file lies in memory, up to this place.
    ReadAhead(Token, u64),
}

#[derive(Default)]
pub struct Inbox {
    pub notices: VecDeque<Notice>,
    pub commands: VecDeque<Command>,
}

impl Inbox {
    /// At most two notices a connection, but for those whose file is read or written, and the few commands of a worker's life.
    pub fn new(connections: usize) -> Inbox {
        Inbox { notices: VecDeque::with_capacity(2 * connections), commands: VecDeque::with_capacity(8) }
    }
}

pub struct Mailbox {
    inbox: Mutex<Inbox>,
    pending: AtomicBool,
    asleep: AtomicBool,
    waker: EventFd,
}

impl Mailbox {
    pub fn new(connections: usize) -> io::Result<Mailbox> {
        Ok(Mailbox {
            inbox: Mutex::new(Inbox::new(connections)),
            pending: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            waker: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Readable when the loop shall wake up.
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

    #[cold]
    pub fn command(&self, command: Command) {
        self.inbox().commands.push_back(command);
        self.wake();
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
        // Whoever sees it late writes to the eventfd once more than needed.
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Something has come since the inbox was collected.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Exchanges the full inbox for an empty one, so that both keep their memory.
    pub fn collect(&self, empty: &mut Inbox) {
        if self.pending.swap(false, Ordering::SeqCst) {
            std::mem::swap(&mut *self.inbox(), empty);
        }
    }
}
