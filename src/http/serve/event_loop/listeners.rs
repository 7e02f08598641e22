//! Listening sockets. How many connections to take from them is decided elsewhere (`admission`).
//!
//! All workers share the sockets, and the kernel wakes one of them for a connection (EPOLLEXCLUSIVE). So a worker is in the
//! epoll set of a listener only while it could take a connection, and takes one before it does anything else when it was
//! woken: nobody else knows of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::proxy::ProxyVersion;
use crate::serve::base::address::{Local, Peer};
use crate::serve::base::names::Token;
use crate::serve::base::settings::{ACCEPT_PAUSE, DEFER_ACCEPT_S, LOOPBACK_UNSENT_BYTES_MAX};
use crate::serve::io::epoll::{Epoll, Interest};
use crate::serve::io::socket;

use super::admission::{Admission, Load};

pub struct Listener {
    /// The caller's number for it; commands name it.
    pub id: u32,
    /// Must be non-blocking already: the description is shared with other processes, so it is not for this one
    /// to change, and a blocking accept would stop the loop when a sibling was faster.
    pub fd: OwnedFd,
    /// None: clients speak HTTP from their first byte on.
    pub proxy: Option<Proxy>,
}

/// A listener whose connections begin with a PROXY header: always, and in this version.
#[derive(Clone)]
pub struct Proxy {
    pub version: ProxyVersion,
    /// The peers that may name their clients; others get 403. Who else could reach the listener could claim any
    /// address.
    pub trusts: Arc<dyn Fn(&Peer) -> bool + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerState {
    /// Open, not in the epoll set.
    Paused,
    /// In the epoll set, unless that is masked.
    Accepting,
    /// To be emptied, whatever threads are free, and then closed.
    Closing,
}

struct Socket {
    id: u32,
    /// None: closed.
    fd: Option<OwnedFd>,
    local: Arc<Local>,
    /// Bound to all addresses: only the connection knows which one it came to.
    wildcard: bool,
    proxy: Option<Proxy>,
    state: ListenerState,
    /// An event of this turn.
    ready: bool,
}

pub struct Listeners {
    sockets: Vec<Socket>,
    pub admission: Admission,
    /// The last try to accept failed for want of descriptors or memory, and was logged.
    short: bool,
    /// Where the next pass begins, so that no listener is always last.
    first_looked_at: usize,
}

/// Where a connection comes from.
pub struct Origin {
    pub listener: u32,
    pub peer: Peer,
    pub local: Arc<Local>,
    /// The version of the PROXY header that must come first, and whether this peer is believed.
    pub proxy: Option<(ProxyVersion, bool)>,
}

/// What came of trying to accept.
pub enum Accepted {
    Connection {
        socket: OwnedFd,
        origin: Origin,
        /// Its client has sent what is there so long ago. None: nobody asked, or the kernel does not say.
        waited: Option<Duration>,
    },
    Empty,
    /// Not now.
    Stalled,
}

/// Connections that broke before they were accepted are skipped, but not without end.
const TRIES_MAX: u32 = 64;

impl Listeners {
    pub fn new(listeners: Vec<Listener>) -> io::Result<Listeners> {
        let sockets = listeners.into_iter().map(Socket::new).collect::<io::Result<Vec<_>>>()?;
        Ok(Listeners { sockets, admission: Admission::new(), short: false, first_looked_at: 0 })
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.sockets.iter().filter_map(|socket| socket.fd.as_ref()).map(AsRawFd::as_raw_fd)
    }

    /// An event: handled last in the turn.
    pub fn mark_ready(&mut self, index: usize) {
        if let Some(socket) = self.sockets.get_mut(index) {
            socket.ready = socket.state == ListenerState::Accepting;
        }
    }

    /// Puts all open listeners into the epoll set.
    pub fn resume(&mut self, epoll: &Epoll) {
        let masked = self.admission.is_masked();
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            match (socket.state, &socket.fd) {
                (ListenerState::Paused, Some(_)) => {
                    if masked || socket.watch(epoll, index) {
                        socket.state = ListenerState::Accepting;
                    }
                }
                (ListenerState::Paused | ListenerState::Accepting | ListenerState::Closing, _) => {}
            }
        }
    }

    /// Takes listeners out of the epoll set. They stay open.
    pub fn pause(&mut self, epoll: &Epoll, which: impl Fn(u32) -> bool) {
        let masked = self.admission.is_masked();
        for socket in self.sockets.iter_mut().filter(|socket| which(socket.id)) {
            match socket.state {
                ListenerState::Accepting => {
                    if !masked {
                        socket.leave(epoll);
                    }
                    socket.state = ListenerState::Paused;
                }
                ListenerState::Paused | ListenerState::Closing => {}
            }
        }
    }

    /// From now on these are only emptied and closed. One that this process was not accepting from is not for it
    /// to empty (it never served, or it drains and its successor serves): it is left to the others.
    pub fn begin_closing(&mut self, epoll: &Epoll, which: impl Fn(u32) -> bool, forget: impl Fn(RawFd)) {
        let masked = self.admission.is_masked();
        for socket in self.sockets.iter_mut().filter(|socket| which(socket.id)) {
            match socket.state {
                ListenerState::Accepting => {
                    if !masked {
                        socket.leave(epoll);
                    }
                    socket.state = ListenerState::Closing;
                }
                ListenerState::Paused => {
                    if let Some(fd) = socket.fd.take() {
                        forget(fd.as_raw_fd());
                    }
                }
                ListenerState::Closing => {}
            }
        }
    }

    /// The next listener that is to be emptied.
    pub fn closing(&self) -> Option<usize> {
        self.sockets.iter().position(|socket| socket.state == ListenerState::Closing && socket.fd.is_some())
    }

    /// It is empty: its descriptor, to be closed.
    pub fn take(&mut self, index: usize) -> Option<OwnedFd> {
        self.sockets[index].fd.take()
    }

    /// No event of this turn names a listener, none is to be emptied, and no connection waits as far as is known.
    pub fn are_idle(&self) -> bool {
        let is_idle = |socket: &Socket| !socket.ready && socket.state != ListenerState::Closing;
        self.admission.is_calm() && self.sockets.iter().all(is_idle)
    }

    /// Nothing will be accepted any more unless a command says so.
    pub fn are_quiet(&self) -> bool {
        self.sockets.iter().all(|socket| match socket.state {
            ListenerState::Paused => true,
            ListenerState::Accepting | ListenerState::Closing => socket.fd.is_none(),
        })
    }

    /// Those in the epoll set are taken for ready, whether or not an event told so.
    pub fn look(&mut self) {
        let masked = self.admission.is_masked();
        for socket in &mut self.sockets {
            socket.ready |= socket.state == ListenerState::Accepting && !masked;
        }
    }

    /// The first from which nothing was taken yet of those that this turn's events name.
    pub fn called(&mut self, from: usize) -> Option<usize> {
        (from..self.sockets.len()).find(|&index| self.sockets[index].ready)
    }

    /// Whether anything is waiting, as far as this turn's events say.
    pub fn next_ready(&mut self) -> Option<usize> {
        let count = self.sockets.len();
        let mut order = (self.first_looked_at..count).chain(0..self.first_looked_at);
        let found = order.find(|&index| self.sockets[index].ready)?;
        self.first_looked_at = if found + 1 < count { found + 1 } else { 0 };
        Some(found)
    }

    /// The turn's events were handled; what is still waiting is reported again, since epoll is level-triggered.
    pub fn end_pass(&mut self) {
        self.admission.end_pass();
        for socket in &mut self.sockets {
            socket.ready = false;
        }
    }

    /// An open listener has this number.
    pub fn has(&self, id: u32) -> bool {
        self.sockets.iter().any(|socket| socket.id == id && socket.fd.is_some())
    }

    /// What a listener is bound to, also one that was closed.
    pub fn local(&self, id: u32) -> Option<Arc<Local>> {
        self.sockets.iter().find(|socket| socket.id == id).map(|socket| Arc::clone(&socket.local))
    }

    /// No thread or no slot is free: what waits takes a place in the line. `handed`: connections that other workers have
    /// left, as far as is known.
    pub fn line_up(&mut self, load: Load, handed: u64) {
        let connections: u64 = self.sockets.iter().filter(|socket| socket.ready).map(Socket::waiting).sum();
        self.admission.line_up(load, connections + handed);
    }

    /// They are heard again, or no longer, of those that are accepted from.
    pub fn set_masked(&mut self, epoll: &Epoll, masked: bool) {
        if !self.admission.set_masked(masked) {
            return;
        }
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            match (socket.state, masked) {
                (ListenerState::Accepting, true) => socket.leave(epoll),
                (ListenerState::Accepting, false) => {
                    socket.watch(epoll, index);
                }
                (ListenerState::Paused | ListenerState::Closing, _) => {}
            }
        }
    }

    /// Other workers that watch the same sockets are woken before this one: the kernel's line is in the order in which they
    /// came, and what waits already is told of at once.
    pub fn go_to_back(&mut self, epoll: &Epoll) {
        if self.admission.is_masked() {
            return;
        }
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            match socket.state {
                ListenerState::Accepting => {
                    socket.leave(epoll);
                    socket.watch(epoll, index);
                }
                ListenerState::Paused | ListenerState::Closing => {}
            }
        }
    }

    /// Takes one connection. accept(2) lists what can go wrong with a connection or the network; none of it is a
    /// reason to stop.
    /// `sheds`: how long it has waited is always asked, and not only now and then.
    pub fn accept(&mut self, index: usize, now: Instant, sheds: bool) -> Accepted {
        let listener = &mut self.sockets[index];
        let Some(fd) = &listener.fd else { return Accepted::Empty };
        for _ in 0..TRIES_MAX {
            match socket::accept(fd.as_fd()) {
                Ok((socket, peer)) => {
                    let asks = self.admission.asks_wait(now) || sheds;
                    let waited = asks.then(|| socket::silence(socket.as_raw_fd())).flatten();
                    if let Some(waited) = waited {
                        self.admission.note_wait(waited);
                    }
                    self.admission.accepted();
                    let local = listener.local_of(&socket);
                    let proxy = listener.proxy.as_ref().map(|proxy| (proxy.version, (proxy.trusts)(&peer)));
                    if std::mem::take(&mut self.short) {
                        log::info!("accepting goes on");
                    }
                    return Accepted::Connection {
                        socket,
                        waited: waited.filter(|_| sheds),
                        origin: Origin { listener: listener.id, peer, local, proxy },
                    };
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        listener.ready = false;
                        self.admission.found_none();
                        return Accepted::Empty;
                    }
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        // Once, not five times a second for as long as it lasts.
                        if !std::mem::replace(&mut self.short, true) {
                            let every = ACCEPT_PAUSE.as_millis();
                            log::warn!("accepting pauses, new connections wait: {error}; tried again every {every} ms");
                        }
                        self.admission.pause(now + ACCEPT_PAUSE);
                        return Accepted::Stalled;
                    }
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP) => {
                        log::error!("listener {}: {error}", listener.id);
                        self.admission.pause(now + ACCEPT_PAUSE);
                        return Accepted::Stalled;
                    }
                    Some(_) | None => {}
                },
            }
        }
        Accepted::Stalled
    }
}

impl Socket {
    fn new(listener: Listener) -> io::Result<Socket> {
        let Listener { id, fd, proxy } = listener;
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        if flags & libc::O_NONBLOCK == 0 {
            let reason = format!("listener {id} must be non-blocking");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let local = socket::local(fd.as_fd())?;
        let wildcard = match &local {
            Local::Inet(address) => {
                // Linux hands these on to every accepted socket (tcp_create_openreq_child), which saves system calls for
                // each.
                socket::set_nodelay(fd.as_raw_fd())?;
                // The other options only save work: without them the server answers the same.
                let _ = socket::set_deferred(fd.as_raw_fd(), DEFER_ACCEPT_S);
                if address.ip().to_canonical().is_loopback() {
                    let _ = socket::set_unpaced(fd.as_raw_fd());
                    let _ = socket::set_unsent_max(fd.as_raw_fd(), LOOPBACK_UNSENT_BYTES_MAX);
                }
                address.ip().is_unspecified()
            }
            Local::Unix(_) => false,
        };
        Ok(Socket {
            id,
            fd: Some(fd),
            local: Arc::new(local),
            wildcard,
            proxy,
            state: ListenerState::Paused,
            ready: false,
        })
    }

    /// How many connections wait to be taken, at least: something is there.
    fn waiting(&self) -> u64 {
        let known = self.fd.as_ref().and_then(|fd| socket::waiting(fd.as_raw_fd()));
        known.map_or(1, |count| count.max(1).into())
    }

    fn watch(&self, epoll: &Epoll, index: usize) -> bool {
        let Some(fd) = &self.fd else { return false };
        let outcome = epoll.add(fd.as_raw_fd(), Token::listener(index), Interest::Door);
        if let Err(error) = &outcome {
            log::error!("listener {}: cannot be watched: {error}", self.id);
        }
        outcome.is_ok()
    }

    fn leave(&mut self, epoll: &Epoll) {
        self.ready = false;
        if let Some(fd) = &self.fd {
            if let Err(error) = epoll.remove(fd.as_raw_fd()) {
                log::error!("listener {}: cannot leave the epoll set: {error}", self.id);
            }
        }
    }

    fn local_of(&self, socket: &OwnedFd) -> Arc<Local> {
        if !self.wildcard {
            return Arc::clone(&self.local);
        }
        socket::local(socket.as_fd()).map_or_else(|_| Arc::clone(&self.local), Arc::new)
    }
}
