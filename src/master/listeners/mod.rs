//! The listeners: bound once, kept for the life of the master, shared by all workers. Nothing but this file binds,
//! listens or unlinks.
//!
//! A listener is *bound* (for a reload that may still be refused; no client can reach it) or *listening*. It
//! changes from the one to the other in `open`, just before the first worker of the new generation serves, since a
//! client that queued on a socket which is then closed gets a reset. Never done here: `shutdown` (the socket is one
//! open file description in many processes), SO_REUSEPORT (closing one of its sockets resets the clients queued on
//! it), toggling O_NONBLOCK.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use forkmaster_wire::message::{self, ListenerId, ProxyProtocol};
use nix::errno::Errno;
use nix::fcntl::{fcntl, AtFlags, FcntlArg, FdFlag, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{fchownat, Gid, Uid};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::settings::{Bind, SocketFile};
use crate::config::SUN_PATH_BYTES_MAX;

/// Names tried for a Unix socket before it is renamed into place; each is taken only by a master that was killed
/// within the moment between the two.
const TEMPORARY_NAMES_MAX: u32 = 16;

/// All listeners there are. A generation knows its own by their numbers.
#[derive(Debug)]
pub struct Listeners {
    listeners: BTreeMap<ListenerId, Listener>,
    id_next: u32,
    wanted: Wanted,
}

/// What the latest settings ask of all listeners; carried out by `open`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    backlog: u32,
    socket_file: SocketFile,
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

/// A Unix socket that still has the name it was bound under.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    node: Node,
}

/// A Unix socket in its place.
#[derive(Debug)]
struct Placed {
    path: PathBuf,
    node: Node,
    socket_file: SocketFile,
}

/// Tells our socket file from one that somebody else put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    device: u64,
    inode: u64,
}

/// Why an address cannot be had, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenError {
    /// As configured.
    pub address: String,
    pub reason: String,
    pub fix: String,
    pub class: ListenErrorClass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenErrorClass {
    InUse,
    Permission,
    Configuration,
}

impl ListenError {
    /// sysexits.h: EX_TEMPFAIL, EX_NOPERM, EX_CONFIG.
    pub fn exit_code(&self) -> u8 {
        match self.class {
            ListenErrorClass::InUse => 75,
            ListenErrorClass::Permission => 77,
            ListenErrorClass::Configuration => 78,
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}; {}", self.address, self.reason, self.fix)
    }
}

impl std::error::Error for ListenError {}

impl Listeners {
    pub fn new() -> Listeners {
        let wanted = Wanted { backlog: 0, socket_file: SocketFile { mode: 0o600, uid: None, gid: None } };
        Listeners { listeners: BTreeMap::new(), id_next: 1, wanted }
    }

    /// Binds what is new, keeps what is there already under the same address; the numbers come in the order of the
    /// settings. Nothing listens yet, and if one address cannot be had, nothing has changed.
    pub fn bind(
        &mut self,
        binds: &[Bind],
        socket_file: &SocketFile,
        backlog: u32,
    ) -> Result<Vec<ListenerId>, ListenError> {
        let mut ids = Vec::new();
        let mut new = Vec::new();
        for bind in binds {
            let known = self.listeners.iter().find(|(_, listener)| listener.bind == *bind);
            if let Some((id, _)) = known {
                ids.push(*id);
                continue;
            }
            match self.bind_one(bind) {
                Ok(listener) => {
                    let id = ListenerId(self.id_next);
                    self.id_next += 1;
                    self.listeners.insert(id, listener);
                    ids.push(id);
                    new.push(id);
                }
                Err(error) => {
                    self.close(&new);
                    return Err(error);
                }
            }
        }
        self.wanted = Wanted { backlog, socket_file: socket_file.clone() };
        Ok(ids)
    }

    /// Listens on what does not listen yet and puts Unix sockets into their place; applies a changed backlog, mode or
    /// owner to the others. Where it fails, the generation must be abandoned, and `close` takes back what was opened
    /// for it. Returns warnings, a sentence each.
    pub fn open(&mut self, ids: &[ListenerId]) -> Result<Vec<String>, ListenError> {
        for id in ids {
            if let Some(listener) = self.listeners.get_mut(id) {
                listener.open(&self.wanted)?;
            }
        }
        Ok(backlog_warning(self.wanted.backlog).into_iter().collect())
    }

    /// All there are. Two generations may share what one of them bound, so what may be closed is known only by
    /// looking at every generation that is left.
    pub fn ids(&self) -> Vec<ListenerId> {
        self.listeners.keys().copied().collect()
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

    /// As bound, for people. Unknown ids are left out.
    pub fn address(&self, id: ListenerId) -> Option<&str> {
        self.listeners.get(&id).map(|listener| listener.address.as_str())
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

    fn bind_one(&self, bind: &Bind) -> Result<Listener, ListenError> {
        let own = self.listeners.values().find(|listener| listener.bind.overlaps(bind));
        if let Some(own) = own {
            let reason = format!("it overlaps {}, which is served now", own.bind);
            let fix = "keep the old address, or restart to change between the two";
            return Err(refused(bind, &reason, fix, ListenErrorClass::Configuration));
        }
        match bind {
            Bind::Inet(address) => bind_inet(bind, *address),
            Bind::Unix(path) => bind_unix(bind, path),
            Bind::Fd(fd) => {
                let taken = self.listeners.values().any(|listener| listener.socket.as_raw_fd() == *fd);
                if taken {
                    let reason = "it is not one that was handed over";
                    return Err(refused(bind, reason, FIX_FD, ListenErrorClass::Configuration));
                }
                adopt(bind, *fd)
            }
        }
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Listeners::new()
    }
}

impl Listener {
    fn open(&mut self, wanted: &Wanted) -> Result<(), ListenError> {
        let Listener { bind, socket, stage, .. } = self;
        let failed = |error: io::Error| explain(bind, &error);
        match stage {
            ListenerState::Inherited => Ok(()),
            ListenerState::Bound { file } => {
                socket.listen(wanted.backlog as i32).map_err(failed)?;
                let placed = match file {
                    None => None,
                    Some(temporary) => Some(temporary.place(bind, &wanted.socket_file)?),
                };
                *stage = ListenerState::Listening { backlog: wanted.backlog, file: placed };
                Ok(())
            }
            ListenerState::Listening { backlog, file } => {
                if *backlog != wanted.backlog {
                    // listen(2) on a listening socket only sets the new backlog.
                    socket.listen(wanted.backlog as i32).map_err(failed)?;
                    *backlog = wanted.backlog;
                }
                if let Some(placed) = file.as_mut().filter(|placed| placed.socket_file != wanted.socket_file) {
                    set_access(&placed.path, placed.node, &wanted.socket_file).map_err(failed)?;
                    placed.socket_file = wanted.socket_file.clone();
                }
                Ok(())
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (path, node) = match &self.stage {
            ListenerState::Bound { file: Some(Temporary { path, node }) } => (path, node),
            ListenerState::Listening { file: Some(Placed { path, node, .. }), .. } => (path, node),
            ListenerState::Bound { file: None }
            | ListenerState::Listening { file: None, .. }
            | ListenerState::Inherited => return,
        };
        if node_of(path).ok() == Some(*node) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Temporary {
    /// Access first, so that the socket is never there with another one. The place is looked at again: much may have
    /// happened since the plan.
    fn place(&self, bind: &Bind, socket_file: &SocketFile) -> Result<Placed, ListenError> {
        let Bind::Unix(path) = bind else {
            unreachable!("only a Unix socket has a file");
        };
        set_access(&self.path, self.node, socket_file).map_err(|error| explain(bind, &error))?;
        check_place(bind, path)?;
        std::fs::rename(&self.path, path).map_err(|error| explain(bind, &error))?;
        Ok(Placed { path: path.clone(), node: self.node, socket_file: socket_file.clone() })
    }
}

// TCP.

fn bind_inet(bind: &Bind, address: std::net::SocketAddr) -> Result<Listener, ListenError> {
    let failed = |error: io::Error| explain(bind, &error);
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    // Connections of a previous master in TIME_WAIT would otherwise keep the port for a minute. On Linux this does
    // not let two sockets listen on one port (socket(7)).
    socket.set_reuse_address(true).map_err(failed)?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says: `[::]:P` and `0.0.0.0:P` are two addresses here.
        socket.set_only_v6(true).map_err(failed)?;
    }
    socket.bind(&SockAddr::from(address)).map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    let address = bound.as_socket().map_or_else(|| bind.to_string(), |address| address.to_string());
    Ok(Listener { bind: bind.clone(), address, socket, stage: ListenerState::Bound { file: None } })
}

// Unix sockets.

fn bind_unix(bind: &Bind, path: &Path) -> Result<Listener, ListenError> {
    let failed = |error: io::Error| explain(bind, &error);
    check_place(bind, path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    let mut attempt = 0;
    let temporary = loop {
        let temporary = temporary_name(path, attempt);
        if temporary.as_os_str().len() > SUN_PATH_BYTES_MAX {
            let reason = format!(
                "the kernel takes {SUN_PATH_BYTES_MAX} bytes of a path, and the name it is bound under first has more"
            );
            return Err(refused(bind, &reason, "choose a shorter directory", ListenErrorClass::Configuration));
        }
        match SockAddr::unix(&temporary).and_then(|address| socket.bind(&address)) {
            Ok(()) => break temporary,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt + 1 < TEMPORARY_NAMES_MAX => attempt += 1,
            Err(error) => return Err(failed(error)),
        }
    };
    let node = match node_of(&temporary) {
        Ok(node) => node,
        Err(error) => return Err(failed(error)),
    };
    let file = Some(Temporary { path: temporary, node });
    Ok(Listener { bind: bind.clone(), address: bind.to_string(), socket, stage: ListenerState::Bound { file } })
}

/// Beside the place, since rename(2) works within a file system only; short, since `sun_path` is. `ss` goes on showing
/// this name, so it begins like the real one where that fits.
fn temporary_name(path: &Path, attempt: u32) -> PathBuf {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let pid = std::process::id();
    let long = directory.join(format!(".{name}.{pid}-{attempt}"));
    if long.as_os_str().len() <= SUN_PATH_BYTES_MAX {
        long
    } else {
        directory.join(format!(".{pid}-{attempt}"))
    }
}

/// A path is free if nothing is there, or a socket that nobody listens on.
fn check_place(bind: &Bind, path: &Path) -> Result<(), ListenError> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            if directory.is_dir() {
                return Ok(());
            }
            let reason = format!("there is no directory {}", directory.display());
            let fix = "create it (systemd: RuntimeDirectory=)";
            return Err(refused(bind, &reason, fix, ListenErrorClass::Configuration));
        }
        Err(error) => return Err(explain(bind, &error)),
    };
    if !meta.file_type().is_socket() {
        let reason = "a file that is not a socket is there";
        let fix = "remove it, or choose another path";
        return Err(refused(bind, reason, fix, ListenErrorClass::Configuration));
    }
    let live = |reason: &str| Err(refused(bind, reason, "stop it, or choose another path", ListenErrorClass::InUse));
    let probe =
        Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(|error| explain(bind, &error))?;
    match SockAddr::unix(path).and_then(|address| probe.connect(&address)) {
        Ok(()) => live("another process listens there"),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
            // Its backlog is full: unix(7) sockets never are "in progress".
            Some(Errno::EAGAIN | Errno::EINPROGRESS) => live("another process listens there, and is busy"),
            Some(Errno::EPROTOTYPE) => live("another process has a socket of another type there"),
            Some(_) | None => Err(explain(bind, &error)),
        },
    }
}

/// Sets mode and owner of the very file that was bound: the directory may be writable by others, and chmod(2) by name
/// would follow a symlink put in its place. chmod through /proc/self/fd works with O_PATH, fchmod(2) does not.
fn set_access(path: &Path, node: Node, socket_file: &SocketFile) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = std::fs::File::from(nix::fcntl::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if (Node { device: meta.dev(), inode: meta.ino() }) != node {
        return Err(io::Error::other("the socket file was replaced by another process"));
    }
    let (uid, gid) = (socket_file.uid.map(Uid::from_raw), socket_file.gid.map(Gid::from_raw));
    if uid.is_some_and(|uid| uid.as_raw() != meta.uid()) || gid.is_some_and(|gid| gid.as_raw() != meta.gid()) {
        fchownat(&file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(by_number, std::fs::Permissions::from_mode(socket_file.mode))
}

fn node_of(path: &Path) -> io::Result<Node> {
    let meta = path.symlink_metadata()?;
    Ok(Node { device: meta.dev(), inode: meta.ino() })
}

// Sockets that were handed over.

const FIX_FD: &str = "hand over a listening stream socket under that number";

/// Takes a copy; the original stays open (a later reload may want it again) and never gets into a child. It is not
/// unlinked, its options stay: others hold the same open file description.
fn adopt(bind: &Bind, fd: i32) -> Result<Listener, ListenError> {
    let not_ours = |reason: &str| refused(bind, reason, FIX_FD, ListenErrorClass::Configuration);
    // SAFETY: fcntl with a number that may not be open: it then fails with EBADF and nothing else.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(match Errno::last() {
            Errno::EBADF => not_ours("no such file descriptor is open"),
            errno => explain(bind, &errno.into()),
        });
    }
    // SAFETY: the descriptor was made by the line above and nobody else knows it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let socket = Socket::from(copy);
    let kind = socket.r#type().map_err(|_| not_ours("it is not a socket"))?;
    let domain = socket.domain().map_err(|error| explain(bind, &error))?;
    if kind != Type::STREAM || ![Domain::IPV4, Domain::IPV6, Domain::UNIX].contains(&domain) {
        return Err(not_ours("it is not a TCP or Unix stream socket"));
    }
    if !socket.is_listener().map_err(|error| explain(bind, &error))? {
        return Err(not_ours("it does not listen"));
    }
    let flags = fcntl(&socket, FcntlArg::F_GETFL)
        .map(OFlag::from_bits_truncate)
        .map_err(|errno| explain(bind, &errno.into()))?;
    if !flags.contains(OFlag::O_NONBLOCK) {
        // It is a flag of the description that we share with whoever handed it over. Without it a worker whose
        // sibling was quicker would hang in accept; it is set once and never taken back.
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(|errno| explain(bind, &errno.into()))?;
    }
    // SAFETY: F_DUPFD succeeded above, so the number is open; it stays so, nothing here closes it.
    let original = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(original, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| explain(bind, &errno.into()))?;
    let bound = socket.local_addr().map_err(|error| explain(bind, &error))?;
    let named = bound.as_socket().map(|address| address.to_string());
    let named = named.or_else(|| bound.as_pathname().map(|path| format!("unix:{}", path.display())));
    let address = named.map_or_else(|| bind.to_string(), |named| format!("{bind} ({named})"));
    Ok(Listener { bind: bind.clone(), address, socket, stage: ListenerState::Inherited })
}

// Errors.

fn refused(bind: &Bind, reason: &str, fix: &str, class: ListenErrorClass) -> ListenError {
    ListenError { address: bind.to_string(), reason: reason.to_owned(), fix: fix.to_owned(), class }
}

fn explain(bind: &Bind, error: &io::Error) -> ListenError {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let reason = errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_lowercase());
    let (fix, class) = match (errno, bind) {
        (Some(Errno::EADDRINUSE), Bind::Inet(address)) => {
            let fix = format!(
                "stop what listens there (`ss -ltnp 'sport = :{}'` names it), or choose another port",
                address.port()
            );
            (fix, ListenErrorClass::InUse)
        }
        (Some(Errno::EADDRINUSE), Bind::Unix(_) | Bind::Fd(_)) => {
            ("stop what listens there, or choose another path".to_owned(), ListenErrorClass::InUse)
        }
        (Some(Errno::EACCES | Errno::EPERM), Bind::Inet(_)) => {
            let fix = "ports below 1024 need root, CAP_NET_BIND_SERVICE, or a socket handed over as fd://N";
            (fix.to_owned(), ListenErrorClass::Permission)
        }
        (Some(Errno::EACCES | Errno::EPERM), Bind::Unix(_) | Bind::Fd(_)) => {
            let fix = "the directory must be writable, and only root can give the socket to others";
            (fix.to_owned(), ListenErrorClass::Permission)
        }
        (Some(Errno::EROFS), _) => {
            ("choose a directory that can be written".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(Errno::EADDRNOTAVAIL), _) => {
            ("choose an address of this machine (`ip address` lists them)".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(Errno::EAFNOSUPPORT), _) => (
            "this kernel has the address family switched off; remove the address".to_owned(),
            ListenErrorClass::Configuration,
        ),
        (Some(Errno::EMFILE | Errno::ENFILE), _) => {
            ("raise the limit of open files".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(_) | None, _) => ("choose another address".to_owned(), ListenErrorClass::Configuration),
    };
    ListenError { address: bind.to_string(), reason, fix, class }
}

/// listen(2): a backlog above somaxconn is cut silently.
fn backlog_warning(backlog: u32) -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?;
    let somaxconn: u32 = text.trim().parse().ok()?;
    (backlog > somaxconn).then(|| {
        format!("backlog {backlog} is cut to {somaxconn} by the kernel; raise net.core.somaxconn or lower backlog")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn file(mode: u32) -> SocketFile {
        SocketFile { mode, uid: None, gid: None }
    }

    fn inet(text: &str) -> Bind {
        Bind::Inet(text.parse().unwrap())
    }

    fn take(listeners: &mut Listeners, binds: &[Bind]) -> Result<Vec<ListenerId>, ListenError> {
        listeners.bind(binds, &file(0o660), 16)
    }

    fn serve(listeners: &mut Listeners, binds: &[Bind]) -> Vec<ListenerId> {
        let ids = take(listeners, binds).unwrap();
        listeners.open(&ids).unwrap();
        ids
    }

    /// What a commit or a refusal does.
    fn close_but(listeners: &mut Listeners, used: &[ListenerId]) {
        let unused: Vec<_> = listeners.ids().into_iter().filter(|id| !used.contains(id)).collect();
        listeners.close(&unused);
    }

    fn name(listeners: &Listeners, id: ListenerId) -> String {
        listeners.wire(&[id], &[])[0].0.address.clone()
    }

    fn address(listeners: &Listeners, id: ListenerId) -> SocketAddr {
        name(listeners, id).parse().unwrap()
    }

    /// A client sends a byte, and the listener's accept gives it back: it really is that socket.
    fn talks(listeners: &Listeners, id: ListenerId, mut client: impl Write) {
        client.write_all(b"x").unwrap();
        let wire = listeners.wire(&[id], &[]);
        let listener = Socket::from(wire[0].1.try_clone_to_owned().unwrap());
        let (mut connection, _) = listener.accept().unwrap();
        connection.set_nonblocking(false).unwrap();
        let mut byte = [0];
        connection.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn inet_listeners_listen_only_once_they_are_opened() {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let mut listeners = Listeners::new();
            let ids = take(&mut listeners, &[inet(text)]).unwrap();
            let id = ids[0];
            let bound = address(&listeners, id);
            assert_ne!(bound.port(), 0);
            assert_eq!(TcpStream::connect(bound).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            listeners.open(&ids).unwrap();
            talks(&listeners, id, TcpStream::connect(bound).unwrap());
            let socket = &listeners.listeners[&id].socket;
            assert!(socket.reuse_address().unwrap() && !socket.reuse_port().unwrap());
            assert!(fcntl(socket, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0);
            assert!(fcntl(socket, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK != 0);
            if bound.is_ipv6() {
                assert!(socket.only_v6().unwrap());
            }
            listeners.close(&[id]);
            refuses(bound);
        }
    }

    /// Waits until nobody listens. A process that another test starts has a copy of every descriptor between fork and
    /// exec (CLOEXEC acts at exec only), so a listener may outlive its close for that moment.
    fn refuses(address: SocketAddr) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match TcpStream::connect(address) {
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
                Ok(_) => assert!(std::time::Instant::now() < deadline, "{address} still listens"),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_reload_keeps_what_is_shared_and_closes_what_no_one_uses() {
        let mut listeners = Listeners::new();
        let first = serve(&mut listeners, &[inet("127.0.0.1:0"), inet("[::1]:0")]);
        let kept = address(&listeners, first[0]);
        let gone = address(&listeners, first[1]);
        let second = take(&mut listeners, &[inet("0.0.0.0:0"), inet("127.0.0.1:0")]).unwrap();
        assert_eq!(second[1], first[0]);
        listeners.open(&second).unwrap();
        assert_eq!(address(&listeners, first[0]), kept);
        close_but(&mut listeners, &second);
        refuses(gone);
        talks(&listeners, first[0], TcpStream::connect(kept).unwrap());
        assert_eq!(listeners.wire(&[first[1], second[1]], &[]).len(), 1);
        // A number is never given twice.
        let third = take(&mut listeners, &[inet("[::1]:0")]).unwrap();
        assert!(third[0] > second[0]);
    }

    #[test]
    fn a_plan_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = Bind::Inet(other.local_addr().unwrap());
        let mut listeners = Listeners::new();
        let first = serve(&mut listeners, &[inet("127.0.0.1:0")]);
        let unix = Bind::Unix(directory.path().join("a.sock"));
        let error = take(&mut listeners, &[unix, inet("127.0.0.1:0"), taken.clone()]).unwrap_err();
        assert_eq!((error.class, error.exit_code()), (ListenErrorClass::InUse, 75));
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot listen on {taken}: address already in use; stop")), "{text}");
        assert_eq!(listeners.listeners.keys().copied().collect::<Vec<_>>(), first);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        talks(&listeners, first[0], TcpStream::connect(address(&listeners, first[0])).unwrap());
    }

    #[test]
    fn a_port_that_is_taken_between_plan_and_open_is_reported() {
        let mut listeners = Listeners::new();
        let ids = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
        let rival = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        rival.set_reuse_address(true).unwrap();
        rival.bind(&address(&listeners, ids[0]).into()).unwrap();
        rival.listen(1).unwrap();
        assert_eq!(listeners.open(&ids).unwrap_err().class, ListenErrorClass::InUse);
    }

    #[test]
    fn an_address_that_overlaps_a_served_one_is_refused_with_that_sentence() {
        let mut listeners = Listeners::new();
        let first = serve(&mut listeners, &[inet("127.0.0.1:0")]);
        let port = address(&listeners, first[0]).port();
        let again = serve(&mut listeners, &[inet("127.0.0.1:0"), inet(&format!("[::1]:{port}"))]);
        let error = take(&mut listeners, &[inet(&format!("[::]:{port}"))]).unwrap_err();
        assert!(error.reason.contains("overlaps [::1]"), "{error}");
        close_but(&mut listeners, &again[..1]);
    }

    #[test]
    fn ports_in_time_wait_can_be_bound_again() {
        let mut listeners = Listeners::new();
        let ids = serve(&mut listeners, &[inet("127.0.0.1:0")]);
        let bound = address(&listeners, ids[0]);
        let client = TcpStream::connect(bound).unwrap();
        let accepted = Socket::from(listeners.wire(&ids, &[])[0].1.try_clone_to_owned().unwrap()).accept().unwrap().0;
        // The side that closes first is the one in TIME_WAIT.
        drop(accepted);
        drop(client);
        listeners.close_all();
        serve(&mut listeners, &[Bind::Inet(bound)]);
    }

    #[test]
    fn other_addresses_and_ports_below_1024_have_their_own_words() {
        let error = take(&mut Listeners::new(), &[inet("192.0.2.1:0")]).unwrap_err();
        assert_eq!(error.exit_code(), 78);
        assert!(error.fix.contains("ip address"), "{error}");
        let error = explain(&inet("0.0.0.0:80"), &Errno::EACCES.into());
        assert_eq!(error.exit_code(), 77);
        assert!(error.fix.contains("CAP_NET_BIND_SERVICE"));
    }

    #[test]
    fn a_unix_socket_appears_in_its_place_when_opened_and_goes_when_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        let bind = Bind::Unix(path.clone());
        let mut listeners = Listeners::new();
        let socket_file = SocketFile { mode: 0o640, uid: Some(65534), gid: Some(12345) };
        let ids = listeners.bind(std::slice::from_ref(&bind), &socket_file, 16).unwrap();
        assert!(!path.exists());
        listeners.open(&ids).unwrap();
        let meta = path.symlink_metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 65534, 12345));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        talks(&listeners, ids[0], UnixStream::connect(&path).unwrap());
        assert_eq!(name(&listeners, ids[0]), format!("unix:{}", path.display()));
        // A reload changes mode and owner, and keeps the socket.
        let socket_file = SocketFile { mode: 0o600, uid: Some(0), gid: None };
        let again = listeners.bind(&[bind], &socket_file, 32).unwrap();
        listeners.open(&again).unwrap();
        assert_eq!(again, ids);
        let changed = path.symlink_metadata().unwrap();
        assert_eq!((changed.ino(), changed.mode() & 0o7777, changed.uid()), (meta.ino(), 0o600, 0));
        listeners.close_all();
        assert!(!path.exists());
    }

    #[test]
    fn an_abandoned_unix_socket_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let mut listeners = Listeners::new();
        take(&mut listeners, &[Bind::Unix(directory.path().join("a.sock"))]).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        close_but(&mut listeners, &[]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn two_plans_may_share_what_one_of_them_bound() {
        let mut listeners = Listeners::new();
        let one = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
        let two = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
        assert_eq!(one, two);
        close_but(&mut listeners, &two);
        listeners.open(&two).unwrap();
        talks(&listeners, two[0], TcpStream::connect(address(&listeners, two[0])).unwrap());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let bind = [Bind::Unix(path.clone())];
        drop(UnixListener::bind(&path).unwrap());
        serve(&mut Listeners::new(), &bind);
        assert!(!path.exists());

        let live = UnixListener::bind(&path).unwrap();
        let before = node_of(&path).unwrap();
        let error = take(&mut Listeners::new(), &bind).unwrap_err();
        assert_eq!(error.exit_code(), 75);
        assert!(error.reason.contains("another process listens"), "{error}");
        // Its backlog full: connect says EAGAIN.
        Socket::from(live.as_fd().try_clone_to_owned().unwrap()).listen(0).unwrap();
        let mut clients = Vec::new();
        loop {
            let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            match client.connect(&SockAddr::unix(&path).unwrap()) {
                Ok(()) => clients.push(client),
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(clients.len() < 64);
        }
        assert_eq!(take(&mut Listeners::new(), &bind).unwrap_err().class, ListenErrorClass::InUse);
        assert_eq!(node_of(&path).unwrap(), before);
        drop((live, clients));

        std::fs::remove_file(&path).unwrap();
        let _datagram = UnixDatagram::bind(&path).unwrap();
        assert_eq!(take(&mut Listeners::new(), &bind).unwrap_err().class, ListenErrorClass::InUse);
    }

    #[test]
    fn a_file_that_is_no_socket_and_a_missing_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = take(&mut Listeners::new(), &[Bind::Unix(path.clone())]).unwrap_err();
        assert!(error.exit_code() == 78 && error.reason.contains("not a socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let error = take(&mut Listeners::new(), &[Bind::Unix(directory.path().join("none/a.sock"))]).unwrap_err();
        assert!(error.reason.contains("there is no directory") && error.fix.contains("RuntimeDirectory"), "{error}");
        let long = directory.path().join("d".repeat(SUN_PATH_BYTES_MAX - directory.path().as_os_str().len() - 3));
        std::fs::create_dir(&long).unwrap();
        let error = take(&mut Listeners::new(), &[Bind::Unix(long.join("a"))]).unwrap_err();
        assert!(error.fix.contains("shorter"), "{error}");
    }

    #[test]
    fn a_socket_file_that_is_no_longer_ours_is_not_unlinked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let mut listeners = Listeners::new();
        serve(&mut listeners, &[Bind::Unix(path.clone())]);
        // Its file kept by another name, so that the inode cannot be used again.
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        listeners.close_all();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_place_that_was_taken_since_the_plan_is_respected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let mut listeners = Listeners::new();
        let ids = take(&mut listeners, &[Bind::Unix(path.clone())]).unwrap();
        let _rival = UnixListener::bind(&path).unwrap();
        assert_eq!(listeners.open(&ids).unwrap_err().class, ListenErrorClass::InUse);
        listeners.close_all();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn access_is_set_on_the_file_that_was_bound_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut listeners = Listeners::new();
        let ids = take(&mut listeners, &[Bind::Unix(directory.path().join("a.sock"))]).unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
        let temporary = temporary_name(&directory.path().join("a.sock"), 0);
        std::fs::rename(&temporary, directory.path().join("aside")).unwrap();
        std::os::unix::fs::symlink(&victim, &temporary).unwrap();
        let error = listeners.open(&ids).unwrap_err();
        assert!(error.reason.contains("replaced"), "{error}");
        assert_eq!(victim.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_inherited_socket_is_used_as_it_is() {
        let original = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = original.local_addr().unwrap();
        let bind = [Bind::Fd(original.as_raw_fd())];
        let mut listeners = Listeners::new();
        let ids = serve(&mut listeners, &bind);
        let id = ids[0];
        assert_eq!(name(&listeners, id), format!("fd://{} ({bound})", original.as_raw_fd()));
        assert!(fcntl(&original, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK != 0);
        assert!(fcntl(&original, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0);
        talks(&listeners, id, TcpStream::connect(bound).unwrap());
        // Closed by a reload and wanted again by the next one.
        listeners.close(&[id]);
        assert!(TcpStream::connect(bound).is_ok());
        let again = serve(&mut listeners, &bind);
        assert_ne!(again[0], id);
        // Our own copy is no socket that was handed over.
        let own = listeners.wire(&again, &[])[0].1.as_raw_fd();
        assert!(take(&mut listeners, &[Bind::Fd(own)]).unwrap_err().reason.contains("handed over"));
    }

    #[test]
    fn an_inherited_unix_socket_is_never_unlinked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let original = UnixListener::bind(&path).unwrap();
        let mode = path.metadata().unwrap().mode();
        let mut listeners = Listeners::new();
        let ids = listeners.bind(&[Bind::Fd(original.as_raw_fd())], &file(0o600), 16).unwrap();
        listeners.open(&ids).unwrap();
        assert_eq!(path.metadata().unwrap().mode(), mode);
        listeners.close_all();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn descriptors_that_are_no_listening_stream_sockets_are_refused() {
        let refusal = |fd: i32| take(&mut Listeners::new(), &[Bind::Fd(fd)]).unwrap_err();
        assert!(refusal(9999).reason.contains("no such file descriptor"));
        let file = tempfile::tempfile().unwrap();
        assert!(refusal(file.as_raw_fd()).reason.contains("not a socket"));
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(refusal(datagram.as_raw_fd()).reason.contains("not a TCP or Unix stream socket"));
        let (stream, _peer) = UnixStream::pair().unwrap();
        let error = refusal(stream.as_raw_fd());
        assert!(error.exit_code() == 78 && error.reason.contains("does not listen"), "{error}");
        // What was refused is left as it was.
        assert!(fcntl(&stream, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK == 0);
    }

    #[test]
    fn a_backlog_above_the_kernels_is_a_warning() {
        let mut listeners = Listeners::new();
        listeners.bind(&[], &file(0o660), i32::MAX as u32).unwrap();
        assert!(listeners.open(&[]).unwrap()[0].contains("net.core.somaxconn"));
        listeners.bind(&[], &file(0o660), 1).unwrap();
        assert!(listeners.open(&[]).unwrap().is_empty());
    }
}
