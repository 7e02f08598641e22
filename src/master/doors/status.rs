//! The listener of `[status] bind`, for probes, Prometheus and people with a browser: one GET a connection, then it is
//! closed. Everything has a bound: the bytes of a head, the time of a connection, connections, and what one pass of the
//! loop does. It knows HTTP as far as that goes, and not what the pages say.

pub mod saved;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use forkmaster_wire::message::ListenerId;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::errno::Errno;
use nix::sys::socket::{accept4, getsockname, SockFlag, SockaddrStorage};

use super::closer::Closer;
use super::conn::{Bounds, Conn, Still};
use super::page;
use crate::config::settings::{Bind, SocketFile};
use crate::listeners::{Access, ListenError, Listeners};
use crate::sources::{Source, Sources};

/// A probe sends a few hundred bytes. A page of metrics of 4,096 workers has some hundred kilobytes.
const BOUNDS: Bounds = Bounds { in_bytes_max: 8 * 1024, out_bytes_max: 4 * 1024 * 1024, idle: Duration::from_secs(10) };

/// From accept to close. Prometheus and kubelet give up after 10 s and 1 s.
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);

/// A handful of probes and scrapers. Where there are more, the oldest makes room.
const CLIENTS_MAX: usize = 64;

/// Connections accepted, and pages made, in one pass of the master's loop.
const PER_PASS_MAX: usize = 16;

/// Without a free descriptor nobody can be accepted, and nothing tells when there is one.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);

const BACKLOG: u32 = 128;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The loop turns.
    Live,
    /// Somebody answers requests.
    Ready,
    Metrics,
    /// What the status page shows. `among_us`: nobody can ask for it from elsewhere.
    State {
        among_us: bool,
    },
}

/// What a page says.
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    /// Further lines of the head, each with its end.
    pub fields: &'static str,
    pub text: String,
}

impl Answer {
    pub fn plain(status: u16, text: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", fields: "", text: text.into() }
    }

    /// The bytes of the whole response. HEAD has a length and no body.
    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let phrase = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            503 => "Service Unavailable",
            _other => "",
        };
        let head = format!(
            "HTTP/1.1 {} {phrase}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             {}Connection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.text.len(),
            self.fields
        );
        head.into_bytes().into_iter().chain(if with_body { self.text.bytes() } else { "".bytes() }).collect()
    }
}

/// How far a client has come.
enum Stage {
    /// Its head arrives: the first line, and the bytes until now.
    Head { first: Option<Vec<u8>>, bytes: usize },
    /// It waits for its page.
    Asked { page: Page, with_body: bool },
    /// What is left of its answer is being sent.
    Answered,
}

struct Client {
    conn: Conn,
    stage: Stage,
    /// It came to a loopback address or a Unix socket, and not by a name that somebody's web page may have.
    among_us: bool,
    close_at: Instant,
}

/// One of the listeners, and what must be known of those who come there.
#[derive(Clone)]
struct Accepting {
    token: Token,
    listener: ListenerId,
    /// Only this machine can reach it.
    is_local: bool,
    /// Closes its connections. Over a Unix socket a peer may have passed descriptors, and then close(2) may wait.
    closer: Closer,
}

impl Accepting {
    fn watch(listener: ListenerId, socket: BorrowedFd<'_>, sources: &mut Sources) -> io::Result<Accepting> {
        let address = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        let is_unix = address.as_unix_addr().is_some();
        let closer = if is_unix { Closer::for_listener(&socket)? } else { Closer::Here };
        let token = sources.add(&socket, Source::Status)?;
        Ok(Accepting { token, listener, is_local: is_unix || is_loopback(&address), closer })
    }
}

pub struct StatusDoor {
    /// Its own: the service's are closed when it stops, and whether it is ready is asked until the end.
    listeners: Listeners,
    accepting: Vec<Accepting>,
    clients: BTreeMap<Token, Client>,
    accept_at: Option<Instant>,
}

impl StatusDoor {
    /// Listens from now on. None: no address is configured.
    pub fn open(
        binds: &[Bind],
        mut listeners: Listeners,
        sources: &mut Sources,
    ) -> Result<Option<StatusDoor>, ListenError> {
        if binds.is_empty() {
            return Ok(None);
        }
        let ids = listeners.bind(binds)?;
        let socket_file = SocketFile { mode: 0o660, uid: None, gid: None };
        listeners.open(&ids, &Access { backlog: BACKLOG, socket_file })?;
        let mut accepting = Vec::new();
        for (listener, socket) in listeners.wire(&ids, &[]) {
            match Accepting::watch(listener.id, socket, sources) {
                Ok(watched) => accepting.push(watched),
                Err(error) => log::error!("status at {} cannot be watched: {error}", listener.address),
            }
            log::info!("status at {}: /livez, /readyz, /metrics", listener.address);
        }
        Ok(Some(StatusDoor { listeners, accepting, clients: BTreeMap::new(), accept_at: None }))
    }

    /// Accepts some of those who are there.
    pub fn accept(&mut self, sources: &mut Sources, now: Instant) {
        self.accept_at = None;
        for from in self.accepting.clone() {
            let Some((_, socket)) = self.listeners.wire(&[from.listener], &[]).pop() else { continue };
            let socket = socket.as_raw_fd();
            let mut taken = 0;
            while taken < PER_PASS_MAX {
                taken += 1;
                match accept4(socket, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                    // SAFETY: the kernel has just made it for this process, and nobody else knows its number.
                    Ok(socket) => self.take(unsafe { OwnedFd::from_raw_fd(socket) }, &from, sources, now),
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                    Err(_) => {
                        self.accept_at = Some(now + ACCEPT_AGAIN_AFTER);
                        break;
                    }
                }
            }
            if taken == PER_PASS_MAX {
                sources.mark_unread(from.token);
            }
        }
    }

    fn take(&mut self, socket: OwnedFd, from: &Accepting, sources: &mut Sources, now: Instant) {
        if self.clients.len() >= CLIENTS_MAX {
            let oldest = self.clients.iter().min_by_key(|(token, client)| (client.close_at, **token));
            let oldest = oldest.map(|(token, _)| *token);
            oldest.and_then(|token| self.clients.remove(&token));
        }
        let conn = Conn::new(socket, from.closer.clone(), BOUNDS, now);
        let token = sources.token();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if sources.registry().register(&mut SourceFd(&conn.as_fd().as_raw_fd()), token, interest).is_ok() {
            let (stage, among_us) = (Stage::Head { first: None, bytes: 0 }, from.is_local);
            self.clients.insert(token, Client { conn, stage, among_us, close_at: now + CONNECTION_WITHIN });
        }
    }

    /// Reads and writes what is possible; other doors' tokens are none of ours.
    pub fn ready(&mut self, token: Token, now: Instant) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let still = client.conn.ready(now);
        let is_over = match still {
            Still::Over => true,
            Still::Open | Still::HalfClosed => client.advance(still == Still::HalfClosed, now),
        };
        if is_over {
            self.clients.remove(&token);
        }
    }

    /// Clients that wait for their page; some of them, since others have their turn.
    pub fn asked(&self) -> Vec<(Token, Page)> {
        let asked = self.clients.iter().filter_map(|(token, client)| match client.stage {
            Stage::Asked { page, .. } => Some((*token, page)),
            Stage::Head { .. } | Stage::Answered => None,
        });
        asked.take(PER_PASS_MAX).collect()
    }

    pub fn answer(&mut self, token: Token, answer: &Answer, now: Instant) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let Stage::Asked { with_body, .. } = client.stage else { return };
        if client.send(answer, with_body, now) {
            self.clients.remove(&token);
        }
    }

    /// When something must be done although nobody does anything.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.clients.values().map(|client| client.close_at).chain(self.accept_at).min()
    }

    pub fn should_accept(&self, now: Instant) -> bool {
        self.accept_at.is_some_and(|at| at <= now)
    }

    /// Closes those whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, client| client.close_at > now);
    }

    /// As bound.
    #[cfg(test)]
    fn addresses(&self) -> Vec<String> {
        self.listeners.addresses()
    }
}

impl Client {
    /// Takes what has arrived of its head. True: it is done with.
    fn advance(&mut self, half_closed: bool, now: Instant) -> bool {
        while let Stage::Head { first, bytes } = &mut self.stage {
            let Some(mut line) = self.conn.next_line() else { return half_closed };
            *bytes += line.len() + 1;
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            match first {
                // RFC 9112 section 2.2: empty lines before the first are passed over.
                None if line.is_empty() => {}
                None => *first = Some(line),
                Some(first) if line.is_empty() => match asked(first) {
                    Ok((Wanted::Html, with_body)) => return self.send(&page::html(), with_body, now),
                    Ok((Wanted::State, with_body)) => {
                        let page = Page::State { among_us: self.among_us };
                        self.stage = Stage::Asked { page, with_body };
                    }
                    Ok((Wanted::Page(page), with_body)) => self.stage = Stage::Asked { page, with_body },
                    Err(answer) => return self.send(&answer, true, now),
                },
                Some(_) => self.among_us &= !names_a_host(&line),
            }
            if matches!(&self.stage, Stage::Head { bytes, .. } if *bytes > BOUNDS.in_bytes_max) {
                return true;
            }
        }
        matches!(self.stage, Stage::Answered) && !self.conn.has_unsent()
    }

    /// True: all of it was sent, or the client is gone.
    fn send(&mut self, answer: &Answer, with_body: bool, now: Instant) -> bool {
        self.stage = Stage::Answered;
        match self.conn.send(&answer.bytes(with_body), now) {
            Still::Open | Still::HalfClosed => !self.conn.has_unsent(),
            Still::Over => true,
        }
    }
}

fn is_loopback(address: &SockaddrStorage) -> bool {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => v4.ip().is_loopback(),
        (None, Some(v6)) => v6.ip().is_loopback(),
        (None, None) => false,
    }
}

/// A Host field with a name. A web page of somebody's may have made its own name one of this machine's (DNS rebinding), and
/// then a browser here gives that page what it asks for. An address, and localhost, cannot be anybody's name.
fn names_a_host(line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    let Some((name, value)) = line.split_once(':') else { return false };
    if !name.eq_ignore_ascii_case("host") {
        return false;
    }
    let host = value.trim().to_ascii_lowercase();
    let without_port = host.rsplit_once(':').map_or(host.as_str(), |(host, _)| host);
    let is_address = |text: &str| text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let is_ours = [host.as_str(), without_port].iter().any(|text| is_address(text) || *text == "localhost");
    !is_ours && !host.is_empty()
}

/// What a target stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Html,
    State,
    Page(Page),
}

/// The page that a request line asks for, and whether with its body; or the answer to a request that is none.
fn asked(line: &[u8]) -> Result<(Wanted, bool), Answer> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return Err(Answer::plain(400, "not a request\n")) };
    if !version.starts_with(b"HTTP/1.") {
        return Err(Answer::plain(400, "not a request\n"));
    }
    let with_body = match method {
        b"GET" => true,
        b"HEAD" => false,
        _other => return Err(Answer::plain(405, "only GET and HEAD\n")),
    };
    match target.split(|byte| *byte == b'?').next().unwrap_or_default() {
        b"/" => Ok((Wanted::Html, with_body)),
        b"/status.json" => Ok((Wanted::State, with_body)),
        b"/livez" => Ok((Wanted::Page(Page::Live), with_body)),
        b"/readyz" => Ok((Wanted::Page(Page::Ready), with_body)),
        b"/metrics" => Ok((Wanted::Page(Page::Metrics), with_body)),
        _other => Err(Answer::plain(404, "there is /, /status.json, /livez, /readyz and /metrics\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use super::*;

    struct World {
        sources: Sources,
        door: StatusDoor,
        now: Instant,
    }

    impl World {
        fn new() -> World {
            let mut sources = Sources::new().unwrap();
            let binds = [Bind::Inet("127.0.0.1:0".parse().unwrap())];
            let door = StatusDoor::open(&binds, Listeners::new(Vec::new()), &mut sources).unwrap().unwrap();
            World { sources, door, now: Instant::now() }
        }

        /// The kernel may hand over a connection, or its bytes, a moment after the client's call has returned.
        fn until(&mut self, what: &str, done: impl Fn(&StatusDoor) -> bool) {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                self.door.accept(&mut self.sources, self.now);
                for token in self.sources.wait(Duration::from_millis(1)) {
                    self.door.ready(token, self.now);
                }
                if done(&self.door) {
                    return;
                }
                assert!(Instant::now() < deadline, "waited for {what}");
            }
        }

        fn connect(&mut self) -> TcpStream {
            let newest = |door: &StatusDoor| door.clients.keys().next_back().copied();
            let before = newest(&self.door);
            let stream = TcpStream::connect(self.door.addresses()[0].as_str()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            self.until("the connection", |door| newest(door) > before);
            stream
        }

        fn answer(&mut self) {
            for (token, page) in self.door.asked() {
                self.door.answer(token, &Answer::plain(200, format!("{page:?}\n")), self.now);
            }
        }

        fn ask(&mut self, bytes: &[u8]) -> String {
            let mut client = self.connect();
            let newest = *self.door.clients.keys().next_back().unwrap();
            client.write_all(bytes).unwrap();
            // Answered at once, or to be answered.
            self.until("the request", |door| !door.clients.contains_key(&newest) || !door.asked().is_empty());
            self.answer();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            text
        }
    }

    #[test]
    fn a_request_is_answered_and_its_connection_closed() {
        let mut world = World::new();
        let answer = world.ask(b"GET /readyz?verbose HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nReady\n"), "{answer}");
        let answer = world.ask(b"HEAD /metrics HTTP/1.0\n\n");
        assert!(answer.contains("Content-Length: 8\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        assert!(world.ask(b"GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let page = world.ask(b"GET / HTTP/1.1\r\n\r\n");
        assert!(
            page.contains("\r\nContent-Security-Policy: default-src 'none';") && page.ends_with("</html>\n"),
            "{page}"
        );
        assert!(world.ask(b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(world.ask(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(world.door.clients.is_empty());
    }

    #[test]
    fn requests_are_shown_to_this_machine_and_not_to_a_name_that_somebody_may_have() {
        let mut world = World::new();
        for (host, among_us) in [
            ("Host: 127.0.0.1:9000", true),
            ("host:  localhost", true),
            ("Host: [::1]:9000", true),
            ("Accept: text/html", true),
            ("Host: evil.example:9000", false),
            ("HOST: localhost.evil.example", false),
        ] {
            let answer = world.ask(format!("GET /status.json HTTP/1.1\r\n{host}\r\n\r\n").as_bytes());
            assert!(answer.ends_with(&format!("State {{ among_us: {among_us} }}\n")), "{host}: {answer}");
        }
    }

    #[test]
    fn a_head_may_come_in_pieces_but_not_for_ever() {
        let mut world = World::new();
        let mut client = world.connect();
        for piece in ["GET /li", "vez HT", "TP/1.1\r", "\nA: b\r\n"] {
            client.write_all(piece.as_bytes()).unwrap();
            world.until("nothing", |_| true);
        }
        assert!(world.door.asked().is_empty());
        client.write_all(b"\r\n").unwrap();
        world.until("the request", |door| !door.asked().is_empty());
        world.answer();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("Live\n"), "{text}");
        // Too much.
        let mut client = world.connect();
        client.write_all(format!("GET /livez HTTP/1.1\r\n{}", "A: b\r\n".repeat(1400)).as_bytes()).unwrap();
        world.until("the client to be dropped", |door| door.clients.is_empty());
        drop(client);
        // Too slow.
        let mut client = world.connect();
        assert_eq!(world.door.next_deadline(), Some(world.now + CONNECTION_WITHIN));
        world.door.expire(world.now + CONNECTION_WITHIN);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn who_says_nothing_makes_room_for_who_asks() {
        let mut world = World::new();
        let silent: Vec<TcpStream> = (0..200).map(|_| world.connect()).collect();
        assert_eq!(world.door.clients.len(), CLIENTS_MAX);
        assert!(world.ask(b"GET /livez HTTP/1.1\r\n\r\n").ends_with("Live\n"));
        drop(silent);
        world.until("all to be gone", |door| door.clients.is_empty());
    }

    /// Where the kernel delivers passed descriptors (before Linux 6.16), closing here could wait for hours.
    #[test]
    fn who_comes_to_a_listener_is_closed_by_its_closer() {
        let mut world = World::new();
        let (closer, closed) = std::sync::mpsc::sync_channel(1);
        world.door.accepting[0].closer = Closer::Thread(closer);
        let _client = world.connect();
        world.door.clients.clear();
        assert!(closed.try_recv().is_ok());
    }

    #[test]
    fn a_unix_socket_is_closed_as_the_control_socket_is() {
        let directory = tempfile::tempdir().unwrap();
        let mut sources = Sources::new().unwrap();
        let binds = [Bind::Unix(directory.path().join("status.sock"))];
        let door = StatusDoor::open(&binds, Listeners::new(Vec::new()), &mut sources).unwrap().unwrap();
        let (socket, _) = UnixStream::pair().unwrap();
        let is_refused = forkmaster_wire::channel::refuse_descriptors(&socket);
        assert_eq!(matches!(door.accepting[0].closer, Closer::Here), is_refused);
        assert!(door.accepting[0].is_local);
    }

    #[test]
    fn a_pass_makes_a_bounded_number_of_pages() {
        let mut world = World::new();
        let clients: Vec<TcpStream> = (0..40)
            .map(|_| {
                let mut client = world.connect();
                client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                client
            })
            .collect();
        let asks = |client: &Client| matches!(client.stage, Stage::Asked { .. });
        world.until("all requests", |door| door.clients.values().all(asks));
        assert_eq!(world.door.asked().len(), PER_PASS_MAX);
        for left in [24, 8, 0] {
            world.answer();
            assert_eq!(world.door.clients.len(), left);
        }
        drop(clients);
    }
}
