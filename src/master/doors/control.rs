//! The control socket: a Unix stream socket of the owner's own, one JSON object a line in each direction. The master
//! never waits for a client: what cannot be read or written at once is kept, within bounds, or the client is dropped.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forkmaster_wire::message::GenerationId;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{getsockopt, sockopt};

use crate::config::settings::{ControlAddress, ControlSocket};
use crate::doors::protocol::{Refused, Reply, Request};
use crate::sources::Sources;

/// A request is one short line.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The largest answer is a status with thousands of workers.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Operators and supervisors, not the public.
const CLIENTS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    No,
    Verdict {
        generation: GenerationId,
    },
    Ready,
    /// The connection is held open until the master is gone.
    End,
}

struct Client {
    stream: UnixStream,
    token: Token,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    waiting: Waiting,
}

pub struct Control {
    listener: UnixListener,
    /// The file to unlink at the end, while it is ours.
    file: Option<(PathBuf, u64, u64)>,
    clients: BTreeMap<ClientId, Client>,
    last: u64,
    owner: u32,
}

impl Control {
    /// Opens the first socket of the list that works. None: control is off, or nothing of the list is possible,
    /// which is no error.
    pub fn open(socket: &ControlSocket, registry: &Registry, token: Token) -> io::Result<Option<Control>> {
        let (listener, file) = match socket {
            ControlSocket::Off => return Ok(None),
            ControlSocket::Path(path) => {
                let (listener, file) = listen_at(path)?;
                log::info!("control socket at {}", path.display());
                (listener, Some(file))
            }
            ControlSocket::Auto(addresses) => match listen_at_first(addresses)? {
                Some(listening) => listening,
                None => return Ok(None),
            },
        };
        listener.set_nonblocking(true)?;
        registry.register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)?;
        let owner = nix::unistd::geteuid().as_raw();
        Ok(Some(Control { listener, file, clients: BTreeMap::new(), last: 0, owner }))
    }

    /// Accepts who is there. Anybody but the owner and root is turned away: an abstract name has no file mode. False:
    /// there may be more, but no descriptor for them.
    pub fn accept(&mut self, sources: &mut Sources) -> bool {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
            let uid = getsockopt(&stream, sockopt::PeerCredentials).map(|peer| peer.uid());
            let known = uid.is_ok_and(|uid| uid == self.owner || uid == 0);
            let who = uid.map_or_else(|_| "unknown uid".to_owned(), |uid| format!("uid {uid}"));
            if !known || self.clients.len() >= CLIENTS_MAX || stream.set_nonblocking(true).is_err() {
                log::warn!("control client turned away: {who}, {} clients", self.clients.len());
                continue;
            }
            let token = sources.token();
            let interest = Interest::READABLE | Interest::WRITABLE;
            if sources.registry().register(&mut SourceFd(&stream.as_raw_fd()), token, interest).is_ok() {
                self.last += 1;
                let client = Client { stream, token, unread: Vec::new(), unsent: Vec::new(), waiting: Waiting::No };
                self.clients.insert(ClientId(self.last), client);
            }
        }
    }

    pub fn client(&self, token: Token) -> Option<ClientId> {
        self.clients.iter().find(|(_, client)| client.token == token).map(|(id, _)| *id)
    }

    /// Reads and writes what is possible. Drops a client that is gone, or that asks more than it waits for.
    pub fn ready(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let open = client.read();
        let flushed = client.flush();
        // A client that has sent its request and closed its writing side may still read its answer.
        let idle = client.waiting == Waiting::No && client.unsent.is_empty() && client.line_end().is_none();
        let gone = !open && (idle || client.is_gone());
        if !flushed || gone || client.unread.len() > REQUEST_BYTES_MAX {
            self.clients.remove(&id);
        }
    }

    /// The next request of a client that does not wait for an answer, or what is wrong with its line.
    pub fn next_request(&mut self, id: ClientId) -> Option<Result<Request, Refused>> {
        let client = self.clients.get_mut(&id).filter(|client| client.waiting == Waiting::No)?;
        let end = client.line_end()?;
        let line: Vec<u8> = client.unread.drain(..=end).collect();
        Some(Request::from_line(&line))
    }

    /// Clients that have sent their next request while they waited, and have their answer now.
    pub fn pending(&self) -> Vec<ClientId> {
        let is_pending = |client: &Client| client.waiting == Waiting::No && client.line_end().is_some();
        self.clients.iter().filter(|(_, client)| is_pending(client)).map(|(id, _)| *id).collect()
    }

    pub fn wait(&mut self, id: ClientId, waiting: Waiting) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.waiting = waiting;
        }
    }

    /// Clients that wait for something that `matches`.
    pub fn waiting(&self, matches: impl Fn(Waiting) -> bool) -> Vec<(ClientId, Waiting)> {
        let waiting = self.clients.iter().filter(|(_, client)| matches(client.waiting));
        waiting.map(|(id, client)| (*id, client.waiting)).collect()
    }

    pub fn answer(&mut self, id: ClientId, reply: &Reply) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.waiting = Waiting::No;
        client.unsent.extend_from_slice(reply.to_line().as_bytes());
        if client.unsent.len() > ANSWER_BYTES_MAX || !client.flush() {
            self.clients.remove(&id);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some((path, device, inode)) = &self.file {
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.dev() == *device && found.ino() == *inode) {
                // Left behind, it would be found stale by the next start.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Client {
    /// False at end-of-file or an error.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        while self.unread.len() <= REQUEST_BYTES_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(read) => self.unread.extend_from_slice(&bytes[..read]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn line_end(&self) -> Option<usize> {
        self.unread.iter().position(|byte| *byte == b'\n')
    }

    /// Has closed both directions: poll(2) reports POLLHUP, which a client that only stopped sending does not cause.
    fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|events| events > 0)
    }

    /// False when the client is gone.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

type Listening = (UnixListener, Option<(PathBuf, u64, u64)>);

fn listen_at_first(addresses: &[ControlAddress]) -> io::Result<Option<Listening>> {
    for address in addresses {
        match address {
            ControlAddress::Path(path) => match listen_at(path) {
                Ok((listener, file)) => {
                    log::info!("control socket at {}", path.display());
                    return Ok(Some((listener, Some(file))));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                // A container without that directory, or somebody else's: the next one of the list.
                Err(error) => log::debug!("no control socket at {}: {error}", path.display()),
            },
            ControlAddress::Abstract(name) => {
                let address = SocketAddr::from_abstract_name(name.as_bytes())?;
                match UnixListener::bind_addr(&address) {
                    Ok(listener) => {
                        log::info!("control socket at @{name}");
                        return Ok(Some((listener, None)));
                    }
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        return Err(in_use(&format!("@{name}")));
                    }
                    Err(error) => log::debug!("no control socket at @{name}: {error}"),
                }
            }
        }
    }
    log::info!("no control socket: none of its places is writable; signals work");
    Ok(None)
}

/// Binds under this path, for the owner only. A stale file is replaced after a connect test; the directory (as of
/// `/run/forkmaster`) is made if its parent is there.
fn listen_at(path: &Path) -> io::Result<(UnixListener, (PathBuf, u64, u64))> {
    // connect(2) calls a file that is no socket ECONNREFUSED, too.
    if std::fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        let text = format!("a file that is not a socket is at {}; remove it, or choose another path", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixStream::connect(path) {
        Ok(_) => return Err(in_use(&path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::DirBuilder::new().mode(0o755).create(directory)?;
    }
    // The name appears with its mode already set: bound under another name first, renamed then.
    let hidden = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    let made = std::fs::symlink_metadata(&hidden)?;
    std::fs::rename(&hidden, path)?;
    Ok((listener, (path.to_owned(), made.dev(), made.ino())))
}

fn in_use(address: &str) -> io::Error {
    let text =
        format!("control socket {address}: another master of this name is running; stop it, or set another `name`");
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

/// The client's side: connects to the first of the list that answers.
pub fn connect(socket: &ControlSocket) -> Result<UnixStream, String> {
    let addresses = match socket {
        ControlSocket::Off => return Err("the control socket is switched off ([control] socket)".to_owned()),
        ControlSocket::Path(path) => vec![ControlAddress::Path(path.clone())],
        ControlSocket::Auto(addresses) => addresses.clone(),
    };
    let mut tried = Vec::new();
    for address in addresses {
        let (name, connected) = match &address {
            ControlAddress::Path(path) => (path.display().to_string(), UnixStream::connect(path)),
            ControlAddress::Abstract(name) => {
                let address = SocketAddr::from_abstract_name(name.as_bytes());
                (format!("@{name}"), address.and_then(|address| UnixStream::connect_addr(&address)))
            }
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => tried.push(format!("{name}: {error}")),
        }
    }
    Err(format!("no running master found; tried\n  {}", tried.join("\n  ")))
}

/// Sends one request and reads one line. None: the time is over.
pub fn ask(stream: &mut UnixStream, request: &Request, timeout: Option<Duration>) -> io::Result<Option<String>> {
    stream.set_read_timeout(timeout)?;
    stream.write_all(request.to_line().as_bytes())?;
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the master ended before it answered")),
            Ok(read) => answer.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if answer.ends_with(b"\n") {
            return Ok(Some(String::from_utf8_lossy(&answer).trim_end().to_owned()));
        }
    }
}

/// Waits for the end of the connection, which is the end of the master. False: the time is over.
pub fn wait_for_end(stream: &mut UnixStream, timeout: Option<Duration>) -> io::Result<bool> {
    stream.set_read_timeout(timeout)?;
    let mut bytes = [0; 256];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A socket as a supervisor would hand one over, to see that nothing but the protocol is needed.
    fn control(socket: &ControlSocket) -> (Sources, Control) {
        let sources = Sources::new().unwrap();
        let control = Control::open(socket, sources.registry(), Token(1)).unwrap().unwrap();
        (sources, control)
    }

    #[test]
    fn a_request_is_a_line_and_so_is_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::Path(directory.path().join("control.sock"));
        let (mut sources, mut control) = control(&socket);
        let mut client = connect(&socket).unwrap();
        let asking = std::thread::spawn(move || ask(&mut client, &Request::Reload { wait: true }, None).unwrap());
        let id = accepted(&mut sources, &mut control);
        assert_eq!(next(&mut control, id), Ok(Request::Reload { wait: true }));
        control.answer(id, &Reply::Ready {});
        assert_eq!(asking.join().unwrap().unwrap(), r#"{"ok":true,"v":1}"#);
    }

    /// The client that connects next.
    fn accepted(sources: &mut Sources, control: &mut Control) -> ClientId {
        let before = control.last;
        let started = Instant::now();
        while control.last == before {
            assert!(started.elapsed() < Duration::from_secs(10));
            assert!(control.accept(sources));
        }
        ClientId(control.last)
    }

    /// The request that a client sends next.
    fn next(control: &mut Control, id: ClientId) -> Result<Request, Refused> {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < Duration::from_secs(10));
            control.ready(id);
            if let Some(request) = control.next_request(id) {
                return request;
            }
        }
    }

    #[test]
    fn a_request_sent_while_another_waits_does_not_cost_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::Path(directory.path().join("control.sock"));
        let (mut sources, mut control) = control(&socket);
        let mut client = connect(&socket).unwrap();
        client.write_all(b"{\"command\":\"wait_ready\"}\n{\"command\":\"status\"}\n").unwrap();
        let id = accepted(&mut sources, &mut control);
        assert_eq!(next(&mut control, id), Ok(Request::WaitReady));
        control.wait(id, Waiting::Ready);
        control.ready(id);
        assert_eq!(control.next_request(id), None);
        assert_eq!((control.pending().len(), control.waiting(|waiting| waiting == Waiting::Ready).len()), (0, 1));
        control.answer(id, &Reply::Ready {});
        assert_eq!(control.pending(), [id]);
        assert_eq!(control.next_request(id), Some(Ok(Request::Status)));
    }

    #[test]
    fn a_client_that_left_while_it_waited_takes_no_place() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::Path(directory.path().join("control.sock"));
        let (mut sources, mut control) = control(&socket);
        let mut ask_to_wait = |control: &mut Control| {
            let mut client = connect(&socket).unwrap();
            client.write_all(b"{\"command\":\"wait_ready\"}\n").unwrap();
            let id = accepted(&mut sources, control);
            assert_eq!(next(control, id), Ok(Request::WaitReady));
            control.wait(id, Waiting::Ready);
            (client, id)
        };
        let (client, id) = ask_to_wait(&mut control);
        // It has nothing more to say, but listens.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        control.ready(id);
        assert_eq!(control.clients.len(), 1);
        drop(client);
        control.ready(id);
        assert!(control.clients.is_empty());
    }

    #[test]
    fn a_client_that_floods_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::Path(directory.path().join("control.sock"));
        let (mut sources, mut control) = control(&socket);
        let mut client = connect(&socket).unwrap();
        client.set_nonblocking(true).unwrap();
        let written = client.write("{\"command\":\"status\"}\n".repeat(5000).as_bytes()).unwrap();
        assert!(written > REQUEST_BYTES_MAX);
        let id = accepted(&mut sources, &mut control);
        control.ready(id);
        assert!(control.clients.is_empty() && control.next_request(id).is_none());
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "text").unwrap();
        let poll = mio::Poll::new().unwrap();
        let error = Control::open(&ControlSocket::Path(path.clone()), poll.registry(), Token(1)).err().unwrap();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn the_file_is_for_the_owner_only_a_stale_one_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("control.sock");
        let socket = ControlSocket::Path(path.clone());
        let (poll, first) = control(&socket);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Control::open(&socket, poll.registry(), Token(2)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        let (_poll, _second) = control(&socket);
        connect(&socket).unwrap();
    }

    #[test]
    fn where_nothing_is_writable_an_abstract_name_serves() {
        let name = format!("forkmaster/test/{}", std::process::id());
        let nowhere = ControlAddress::Path("/proc/no/such/control.sock".into());
        let socket = ControlSocket::Auto(vec![nowhere, ControlAddress::Abstract(name)]);
        let (_poll, _control) = control(&socket);
        connect(&socket).unwrap();
    }

    #[test]
    fn a_client_is_told_what_was_tried() {
        let error = connect(&ControlSocket::Path("/nonexistent/control.sock".into())).unwrap_err();
        assert!(error.contains("/nonexistent/control.sock: No such file"), "{error}");
    }
}
