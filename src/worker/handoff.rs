//! The handoff queue for the server: it knows connections, and `wire` knows how they travel.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use forkmaster_http::proto::head::Limits;
use forkmaster_http::serve::{Given, HandoffQueue, Luggage, Peer, ProxyVersion, Taken};
use forkmaster_wire::handoff::message::{AwaitedProxy, HeadLimits, Header};
use forkmaster_wire::handoff::{Queue, Receiving, Sending};
use forkmaster_wire::message::{ListenerId, ProxyProtocol};
use forkmaster_wire::mutant::{self, Mutant};
use forkmaster_wire::scoreboard::monotonic_ns;

pub struct Handoff {
    queue: Queue,
    /// What was received last.
    packet: Vec<u8>,
    /// For `Mutant::QueueLoses` only.
    given: u32,
    /// For `Mutant::QueueMixes` only: what was read of the one before.
    mixed: Vec<u8>,
}

/// One connection of so many is lost: a worker seldom gives away more than some dozens.
const LOSES_EACH: u32 = 10;

impl Handoff {
    pub fn new(queue: Queue) -> Handoff {
        Handoff { queue, packet: Vec::new(), given: 0, mixed: Vec::new() }
    }
}

impl HandoffQueue for Handoff {
    fn receiver(&self) -> RawFd {
        self.queue.receiver().as_raw_fd()
    }

    fn give(&mut self, socket: BorrowedFd<'_>, luggage: &Luggage, bytes: [&[u8]; 3]) -> Given {
        self.given = self.given.wrapping_add(1);
        if self.given % LOSES_EACH == 0 && mutant::is(Mutant::QueueLoses) {
            return Given::Sent;
        }
        if mutant::is(Mutant::QueueMixes) {
            let before = std::mem::replace(&mut self.mixed, bytes.concat());
            return sent(self.queue.send(socket, &header(luggage), [&before, &[], &[]]));
        }
        sent(self.queue.send(socket, &header(luggage), bytes))
    }

    fn take(&mut self, bytes: &mut Vec<u8>) -> Taken {
        match self.queue.receive(&mut self.packet) {
            Receiving::Connection { socket, header, bytes_at } => {
                bytes.extend_from_slice(&self.packet[bytes_at..]);
                Taken::Connection { socket, luggage: luggage(&header) }
            }
            Receiving::Empty => Taken::Empty,
            Receiving::NoDescriptor => Taken::NoDescriptor,
            Receiving::Unusable(unusable) => {
                // Whoever floods this worker with it must not fill the log: limited like lines that clients cause.
                log::warn!(target: "forkmaster_http::handoff", "a connection that another worker gave away cannot be used: {}", unusable.reason());
                Taken::Unusable
            }
            Receiving::Broken => Taken::Broken,
        }
    }

    fn lying(&self) -> usize {
        self.queue.lying()
    }

    fn leaves_epoll_first(&self) -> bool {
        !mutant::is(Mutant::GivenIsWatched)
    }
}

fn sent(sending: Sending) -> Given {
    match sending {
        Sending::Sent => Given::Sent,
        Sending::Full => Given::Full,
        Sending::Broken => Given::Broken,
    }
}

fn header(luggage: &Luggage) -> Header {
    let Luggage { listener, peer, local, secure, awaits_proxy, forked, limits, waits_since } = luggage;
    let version = |version| match version {
        ProxyVersion::V1 => ProxyProtocol::V1,
        ProxyVersion::V2 => ProxyProtocol::V2,
    };
    let bound = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    Header {
        listener: ListenerId(*listener),
        peer: match peer {
            Peer::Inet(address) => Some(*address),
            Peer::Unix => None,
        },
        local: *local,
        secure: *secure,
        awaits_proxy: awaits_proxy.map(|(awaited, trusted)| AwaitedProxy { version: version(awaited), trusted }),
        forked: *forked,
        limits: limits.as_ref().map(|limits| HeadLimits {
            request_line: bound(limits.request_line),
            field_size: bound(limits.field_size),
            fields: bound(limits.fields),
            head: bound(limits.head),
        }),
        waits_since_ns: waits_since.map_or(0, |since| monotonic_ns().saturating_sub(since.elapsed().as_nanos() as u64)),
    }
}

fn luggage(header: &Header) -> Luggage {
    let Header { listener, peer, local, secure, awaits_proxy, forked, limits, waits_since_ns } = *header;
    let version = |version| match version {
        ProxyProtocol::V1 => ProxyVersion::V1,
        ProxyProtocol::V2 => ProxyVersion::V2,
    };
    let waited = Duration::from_nanos(monotonic_ns().saturating_sub(waits_since_ns));
    Luggage {
        listener: listener.0,
        peer: peer.map_or(Peer::Unix, Peer::Inet),
        local,
        secure,
        awaits_proxy: awaits_proxy.map(|proxy| (version(proxy.version), proxy.trusted)),
        forked,
        limits: limits.map(|limits| Limits {
            request_line: limits.request_line as usize,
            field_size: limits.field_size as usize,
            fields: limits.fields as usize,
            head: limits.head as usize,
        }),
        waits_since: Some(waits_since_ns).filter(|&since| since > 0).and_then(|_| Instant::now().checked_sub(waited)),
    }
}
