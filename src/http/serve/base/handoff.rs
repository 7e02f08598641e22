//! The handoff queue as the loop sees it: the place where one worker leaves a live connection and another takes it. How a
//! connection travels is for the process around the server; here are only the names.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Instant;

use crate::proto::head::Limits;
use crate::proto::proxy::ProxyVersion;

use super::address::Peer;

/// What a connection takes along, besides its socket and the bytes that were read and not used.
#[derive(Clone, Debug)]
pub struct Luggage {
    /// The listener where it came in (`Listener::id`).
    pub listener: u32,
    /// As it is believed, by whoever's word.
    pub peer: Peer,
    /// The address that the client came to. None: a Unix socket, which the listener knows.
    pub local: Option<SocketAddr>,
    pub secure: bool,
    /// A PROXY header must still come, in this version; and whether its sender is believed.
    pub awaits_proxy: Option<(ProxyVersion, bool)>,
    /// A child of the sender may hold a copy of the socket.
    pub forked: bool,
    /// The limits of the head that has begun.
    pub limits: Option<Limits>,
    /// Since when a whole request waits for a thread.
    pub waits_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// It is another's now. Our descriptor is to be closed, and nothing else.
    Sent,
    /// The queue takes nothing now.
    Full,
    /// There is no queue any more.
    Broken,
}

#[derive(Debug)]
pub enum Taken {
    Connection {
        socket: OwnedFd,
        luggage: Luggage,
    },
    Empty,
    /// This process has no free descriptor; the connection waits for another one.
    NoDescriptor,
    /// Something lay there that is no connection. It is gone, and was logged.
    Unusable,
    /// There is no queue any more.
    Broken,
}

/// Used by the loop only. Nothing of it waits.
pub trait HandoffQueue: Send {
    /// Readable when something lies in the queue; never read from but by `take`.
    fn receiver(&self) -> RawFd;

    /// Sends a connection and the bytes that were read from it, at most `TRAVELLING_BYTES_MAX`.
    fn give(&mut self, socket: BorrowedFd<'_>, luggage: &Luggage, bytes: [&[u8]; 3]) -> Given;

    /// Takes the connection that lies first in the queue, and appends its bytes to `bytes`.
    fn take(&mut self, bytes: &mut Vec<u8>) -> Taken;

    /// How many connections lie in the queue, about.
    fn lying(&self) -> usize;

    /// For tests that show what comes of it: false, and a connection is given away without leaving the epoll set first.
    fn leaves_epoll_first(&self) -> bool {
        true
    }
}
