//! mio's epoll, and raw `epoll_ctl` on its descriptor: mio knows edge-triggered interest only, listeners need
//! level-triggered, and connections are registered by number without a mio source of their own.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::serve::base::names::Token;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// A listener, or the handoff queue, which all workers watch. Level-triggered and exclusive: the kernel wakes the
    /// first worker in the line of those that watch it and sleep in epoll_wait(2), and passes over one that does something
    /// else. Such an interest cannot be modified: add and remove. Kernels before 4.5 do not know the flag and wake all.
    Door,
    /// Edge-triggered, with RDHUP and PRI: a connection, or the eventfd.
    Read,
    ReadWrite,
    /// Somebody else reads from the connection.
    HangUp,
}

impl Interest {
    fn bits(self) -> u32 {
        let bits = match self {
            Interest::Door => libc::EPOLLIN | libc::EPOLLEXCLUSIVE,
            Interest::Read => libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLET,
            Interest::HangUp => libc::EPOLLRDHUP | libc::EPOLLET,
            Interest::ReadWrite => libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET,
        };
        bits as u32
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    /// The peer sends no more (FIN); it may still read.
    pub half_closed: bool,
    /// A byte was sent as urgent (tcp(7)). A read stops before it, although more lies behind.
    pub urgent: bool,
    /// The connection is gone.
    pub gone: bool,
}

/// The poll, its fetched events, and how far they were handled: all of it moves together, because
/// edge-triggered events that were fetched are never reported again.
pub struct Epoll {
    poll: mio::Poll,
    events: mio::Events,
    fetched: Vec<Event>,
    cursor: usize,
}

/// A batch; the connections of one are handled before the next is fetched, and before a new one is accepted.
const EVENTS_MAX: usize = 64;

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        let poll = mio::Poll::new()?;
        let events = mio::Events::with_capacity(EVENTS_MAX);
        Ok(Epoll { poll, events, fetched: Vec::with_capacity(EVENTS_MAX), cursor: 0 })
    }

    /// Fetches a batch of events; true and none if a signal came first.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        debug_assert!(self.cursor == self.fetched.len(), "events of the last batch are lost");
        self.cursor = 0;
        self.fetched.clear();
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        self.fetched.extend(self.events.iter().map(|event| Event {
            token: Token::from_u64(event.token().0 as u64),
            readable: event.is_readable(),
            writable: event.is_writable(),
            half_closed: event.is_read_closed(),
            urgent: event.is_priority(),
            gone: event.is_write_closed() || event.is_error(),
        }));
        Ok(false)
    }

    /// There may be more events than this batch has.
    pub fn was_full(&self) -> bool {
        self.fetched.len() == EVENTS_MAX
    }

    /// All events of the batch.
    pub fn fetched(&self) -> impl Iterator<Item = Event> + '_ {
        self.fetched.iter().copied()
    }

    /// The next event of the batch.
    pub fn peek(&self) -> Option<Event> {
        self.fetched.get(self.cursor).copied()
    }

    /// It was taken.
    pub fn advance(&mut self) {
        self.cursor += 1;
    }

    pub fn add(&self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest.bits())
    }

    pub fn modify(&self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest.bits())
    }

    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, Token::WAKE, 0)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: Token, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token.to_u64() };
        // SAFETY: the event outlives the call; a closed fd is an error, nothing worse.
        match unsafe { libc::epoll_ctl(self.poll.as_raw_fd(), operation, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}
