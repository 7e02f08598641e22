//! The listeners: bound once, kept for the life of the master, shared by all workers. Nothing but this room binds,
//! listens or unlinks.
//!
//! A listener is *bound* (for a reload that may still be refused; no client can reach it) or *listening*. It
//! changes from the one to the other in `open`, just before the first worker of the new generation serves, since a
//! client that queued on a socket which is then closed gets a reset. Never done here: `shutdown` (the socket is one
//! open file description in many processes), SO_REUSEPORT (closing one of its sockets resets the clients queued on
//! it), toggling O_NONBLOCK.

mod error;
mod inherited;
pub mod saved;
mod tcp;
mod unix;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use forkmaster_wire::message::{self, ListenerId, ProxyProtocol};
use socket2::Socket;

pub use error::{ListenError, ListenErrorClass};

use crate::config::passed::Passed;
use crate::config::settings::{Bind, SocketFile};
use error::{explain, refused};
pub use unix::missing_directory;
use unix::{node_of, set_access, Placed, Temporary};

/// All listeners there are. A generation knows its own by their numbers.
#[derive(Debug)]
pub struct Listeners {
    /// What the service manager has passed: open from the start to the end.
    passed: Vec<Passed>,
    listeners: BTreeMap<ListenerId, Listener>,
    id_next: u32,
}

/// What a generation's settings ask of its listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub backlog: u32,
    pub socket_file: SocketFile,
}

#[derive(Debug)]
struct Listener {
    bind: Bind,
    /// As configured and bound: with port 0, the port that the kernel gave.
    address: String,
    socket: Socket,
    stage: ListenerState,
}

#[derive(Debug)]
enum ListenerState {
    /// Bound, not listening.
    Bound {
        file: Option<Temporary>,
    },
    Listening {
        backlog: u32,
        file: Option<Placed>,
    },
    /// It came listening and belongs to whoever handed it over: its backlog, mode and file are not ours.
    Inherited,
}

impl Listeners {
    pub fn new(passed: Vec<Passed>) -> Listeners {
        inherited::keep_from_children(&passed);
        Listeners { passed, listeners: BTreeMap::new(), id_next: 1 }
    }

    /// Binds what is new, keeps what is there already under the same address; the numbers come in the order of the
    /// settings. Nothing listens yet, and if one address cannot be had, nothing has changed. A Unix socket whose file was
    /// removed, or lies behind a link that was flipped, is bound anew: no client could find it.
    pub fn bind(&mut self, binds: &[Bind]) -> Result<Vec<ListenerId>, ListenError> {
        let mut ids = Vec::new();
        let mut new = Vec::new();
        for bind in binds {
            let of_this = self.listeners.iter().filter(|(_, listener)| listener.bind == *bind);
            let known: Vec<ListenerId> =
                of_this.filter(|(_, listener)| !listener.is_lost()).map(|(id, _)| *id).collect();
            if !known.is_empty() {
                ids.extend(known);
                continue;
            }
            match self.bind_one(bind, &new) {
                Ok(listeners) => {
                    for listener in listeners {
                        let id = ListenerId(self.id_next);
                        self.id_next += 1;
                        self.listeners.insert(id, listener);
                        ids.push(id);
                        new.push(id);
                    }
                }
                Err(error) => {
                    self.close(&new);
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }

    /// Listens on what does not listen yet and puts Unix sockets into their place, with their mode and owner. Others
    /// stay as they are until `adapt`: the generation may still be refused. Where this fails it must be abandoned, and
    /// `close` takes back what was opened for it. Returns warnings, a sentence each.
    pub fn open(&mut self, ids: &[ListenerId], access: &Access) -> Result<Vec<String>, ListenError> {
        let mut warnings: Vec<String> = backlog_warning(access.backlog).into_iter().collect();
        for id in ids {
            let Some(bound) = self.listeners.get(id).filter(|listener| !listener.listens()) else { continue };
            let before =
                |(of, other): (&ListenerId, &Listener)| of != id && other.bind == bound.bind && other.listens();
            if self.listeners.iter().any(before) {
                let what = "no socket of this service was there any more (a file that was removed, or a link that was flipped?)";
                warnings.push(format!("{}: {what}: it is made again", bound.bind));
            }
            if let Some(listener) = self.listeners.get_mut(id) {
                listener.open(access)?;
            }
        }
        Ok(warnings)
    }

    /// The generation has committed: its backlog, mode and owner reach the listeners that it has from its predecessor.
    /// Returns what could not be changed, a sentence each.
    pub fn adapt(&mut self, ids: &[ListenerId], access: &Access) -> Vec<String> {
        let mut failed = Vec::new();
        for id in ids {
            if let Some(Err(error)) = self.listeners.get_mut(id).map(|listener| listener.adapt(access)) {
                failed.push(format!("{} keeps its backlog, mode and owner: {error}", error.address));
            }
        }
        failed
    }

    /// Closes these and unlinks their Unix sockets, where they still are ours. Unknown ones are closed already.
    pub fn close(&mut self, ids: &[ListenerId]) {
        for id in ids {
            self.listeners.remove(id);
        }
    }

    /// The end of the master.
    pub fn close_all(&mut self) {
        self.listeners.clear();
    }

    pub fn all(&self) -> impl Iterator<Item = (ListenerId, BorrowedFd<'_>)> {
        self.listeners.iter().map(|(id, listener)| (*id, listener.socket.as_fd()))
    }

    /// As bound, for people. Unknown ids are left out.
    pub fn address(&self, id: ListenerId) -> Option<&str> {
        self.listeners.get(&id).map(|listener| listener.address.as_str())
    }

    /// As bound, all of them.
    #[cfg(test)]
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.values().map(|listener| listener.address.clone()).collect()
    }

    /// As bound, with the connections that nobody has taken yet and how many the kernel holds. None: a Unix socket, for
    /// which the kernel tells it to netlink only.
    pub fn queues(&self, ids: &[ListenerId]) -> Vec<(String, Option<(u32, u32)>)> {
        let known = ids.iter().filter_map(|id| self.listeners.get(id));
        known.map(|listener| (listener.address.clone(), tcp::queue(&listener.socket))).collect()
    }

    /// What a worker is told, and the descriptors that travel along, in the same order. Unknown ids are left out.
    /// `proxied` are the addresses whose connections begin with a PROXY header.
    pub fn wire(
        &self,
        ids: &[ListenerId],
        proxied: &[(Bind, ProxyProtocol)],
    ) -> Vec<(message::Listener, BorrowedFd<'_>)> {
        let known = |id: &ListenerId| {
            let listener = self.listeners.get(id)?;
            let proxy = proxied.iter().find(|(bind, _)| *bind == listener.bind).map(|(_, version)| *version);
            Some((message::Listener { id: *id, address: listener.address.clone(), proxy }, listener.socket.as_fd()))
        };
        ids.iter().filter_map(known).collect()
    }

    /// `new` were bound for the same generation. What another one has bound and not opened is in nobody's way: either
    /// that generation is superseded by this one, or the kernel refuses when the second of the two begins to listen.
    /// systemd may pass several sockets under one name: they are one address.
    fn bind_one(&self, bind: &Bind, new: &[ListenerId]) -> Result<Vec<Listener>, ListenError> {
        let mut overlapping = self.listeners.iter().filter(|(_, listener)| listener.bind.overlaps(bind));
        let counts =
            |(id, listener): &(&ListenerId, &Listener)| (listener.listens() && !listener.is_lost()) || new.contains(id);
        if let Some((id, own)) = overlapping.find(counts) {
            let (what, fix) = match new.contains(id) {
                true => ("is another address of the same settings", "remove one of the two"),
                false => ("is served now", "keep the old address, or restart to change between the two"),
            };
            let reason = format!("it overlaps {}, which {what}", own.bind);
            return Err(refused(bind, &reason, fix, ListenErrorClass::Configuration));
        }
        match bind {
            Bind::Inet(address) => Ok(vec![tcp::bind(bind, *address)?]),
            Bind::Unix(path) => Ok(vec![unix::bind(bind, path)?]),
            Bind::Fd(fd) => {
                let taken = self.listeners.values().any(|listener| listener.socket.as_raw_fd() == *fd);
                if taken {
                    let reason = "it is not one that was handed over";
                    return Err(refused(bind, reason, inherited::FIX, ListenErrorClass::Configuration));
                }
                Ok(vec![inherited::adopt(bind, *fd)?])
            }
            Bind::Systemd(name) => inherited::passed_under(&self.passed, bind, name),
        }
    }
}

impl Listener {
    fn listens(&self) -> bool {
        match self.stage {
            ListenerState::Bound { .. } => false,
            ListenerState::Listening { .. } | ListenerState::Inherited => true,
        }
    }

    /// It listens, and no client finds it.
    fn is_lost(&self) -> bool {
        match &self.stage {
            ListenerState::Listening { file: Some(placed), .. } => placed.is_lost(),
            ListenerState::Listening { file: None, .. } | ListenerState::Bound { .. } | ListenerState::Inherited => {
                false
            }
        }
    }

    fn open(&mut self, access: &Access) -> Result<(), ListenError> {
        let ListenerState::Bound { file } = &self.stage else { return Ok(()) };
        self.socket.listen(access.backlog as i32).map_err(|error| explain(&self.bind, &error))?;
        let file = file.as_ref().map(|temporary| temporary.place(&self.bind, &access.socket_file)).transpose()?;
        self.stage = ListenerState::Listening { backlog: access.backlog, file };
        Ok(())
    }

    fn adapt(&mut self, access: &Access) -> Result<(), ListenError> {
        let ListenerState::Listening { backlog, file } = &mut self.stage else { return Ok(()) };
        let failed = |error: io::Error| explain(&self.bind, &error);
        if *backlog != access.backlog {
            // listen(2) on a listening socket only sets the new backlog.
            self.socket.listen(access.backlog as i32).map_err(failed)?;
            *backlog = access.backlog;
        }
        if let Some(placed) = file.as_mut().filter(|placed| placed.socket_file != access.socket_file) {
            set_access(&placed.path, placed.node, &access.socket_file).map_err(failed)?;
            placed.socket_file = access.socket_file.clone();
        }
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (path, node) = match &self.stage {
            ListenerState::Bound { file: Some(Temporary { path, node, .. }) } => (path, node),
            ListenerState::Listening { file: Some(Placed { path, node, .. }), .. } => (path, node),
            ListenerState::Bound { file: None }
            | ListenerState::Listening { file: None, .. }
            | ListenerState::Inherited => return,
        };
        if node_of(path).ok() == Some(*node) {
            // A socket file that stays refuses connections, and the next bind replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// listen(2): a backlog above somaxconn is cut silently.
fn backlog_warning(backlog: u32) -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?;
    let somaxconn: u32 = text.trim().parse().ok()?;
    (backlog > somaxconn).then(|| {
        format!("backlog {backlog} is cut to {somaxconn} by the kernel; raise net.core.somaxconn or lower backlog")
    })
}
