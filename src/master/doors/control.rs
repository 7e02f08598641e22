//! The control socket: a Unix stream socket of the owner's own, one JSON object a line in each direction. It knows who
//! is connected, what each may ask (`rights`), and who waits for what; not how anything is done. It never waits for a client: what
//! cannot be read or written at once is kept, within bounds, or the client is dropped.

mod farewell;
pub mod saved;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{accept4, SockFlag};
use serde::{Deserialize, Serialize};

use super::conn::{Bounds, Conn, Still};
use super::events;
use super::peer::Peer;
use super::protocol::{Done, Refused, Reply, Request, ANSWER_BYTES_MAX};
use super::rights::{May, Rights};
use super::socket_file::SocketFile;
use crate::config::settings::{ControlSocket, Reader};
use crate::sources::{Sources, CONTROL};

/// A request is one short line, and the largest answer a status with thousands of workers. A person at a prompt is not
/// idle for a minute: each verb is a connection of its own.
const BOUNDS: Bounds =
    Bounds { in_bytes_max: 64 * 1024, out_bytes_max: ANSWER_BYTES_MAX, idle: Duration::from_secs(60) };

/// Operators and supervisors, not the public.
const CLIENTS_MAX: usize = 64;

/// Clients accepted in one pass of the master's loop: others get their turn however many there are.
const ACCEPTS_PER_PASS_MAX: usize = 16;

/// How often it is logged that clients were turned away.
const TURNED_AWAY_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked whether the socket's file is still there: a system call. Cleaners of /run and /tmp come once a day.
const LOOK_EVERY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waiting {
    No,
    /// What it asked is being done.
    Answer,
    /// It hears of every event until the master is gone.
    Events,
    /// The connection is held open until the master is gone.
    End,
}

/// How an accepting pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Accepted {
    All,
    /// The pass is over, and there may be more.
    More,
    /// There may be more, but no descriptor for them, and nothing tells when there is one.
    NoDescriptor,
}

struct Client {
    conn: Conn,
    peer: Peer,
    may: May,
    token: Token,
    waiting: Waiting,
    /// Events that it did not read in time.
    lost: u64,
}

impl Client {
    /// It has a request to be taken.
    fn is_pending(&self) -> bool {
        self.waiting == Waiting::No && self.conn.has_line()
    }
}

pub struct Control {
    socket: SocketFile,
    clients: BTreeMap<ClientId, Client>,
    last: u64,
    rights: Rights,
    turned_away: TurnedAway,
    /// None: it was not looked for yet.
    look_at: Option<Instant>,
    /// Its file is gone and cannot be made again, and that was said.
    said_lost: bool,
}

impl Control {
    /// None: control is off, or there is no place for it, which is no error.
    pub fn open(socket: &ControlSocket, readers: &[Reader], registry: &Registry) -> io::Result<Option<Control>> {
        let rights = Rights::new(nix::unistd::geteuid().as_raw(), readers);
        let Some(socket) = SocketFile::open(socket)? else { return Ok(None) };
        if rights.is_open() {
            socket.let_all_connect()?;
        }
        registry.register(&mut SourceFd(&socket.as_fd().as_raw_fd()), CONTROL, Interest::READABLE)?;
        let turned_away = TurnedAway::default();
        Ok(Some(Control {
            socket,
            clients: BTreeMap::new(),
            last: 0,
            rights,
            turned_away,
            look_at: None,
            said_lost: false,
        }))
    }

    /// Looks now and then whether the socket's file is still there.
    pub fn tick(&mut self, sources: &mut Sources, now: Instant) {
        if self.look_at.is_none_or(|look_at| look_at <= now) {
            self.look_for_file(sources, now);
        }
    }

    /// Makes the socket's file again where somebody has removed it.
    pub fn look_for_file(&mut self, sources: &mut Sources, now: Instant) {
        self.look_at = Some(now + LOOK_EVERY);
        if !self.socket.is_lost() {
            self.said_lost = false;
            return;
        }
        // Those who have found the old one in time.
        while self.accept(sources, now) == Accepted::More {}
        let again = self.socket.make_again().and_then(|()| {
            // Closing the old one has ended that it was watched.
            sources.registry().register(
                &mut SourceFd(&self.socket.as_fd().as_raw_fd()),
                CONTROL,
                Interest::READABLE,
            )?;
            if self.rights.is_open() {
                self.socket.let_all_connect()
            } else {
                Ok(())
            }
        });
        match again {
            Ok(()) => {
                self.said_lost = false;
                log::warn!(
                    "control socket at {}: its file was removed, and is made again",
                    self.socket.path().display()
                );
            }
            Err(error) if !self.said_lost => {
                self.said_lost = true;
                log::warn!("control socket: its file was removed, and cannot be made again: {error}; signals work");
            }
            Err(_) => {}
        }
    }

    /// Accepts some of those who are there. Who may ask nothing is told so and turned away, whatever the file's mode.
    pub fn accept(&mut self, sources: &mut Sources, now: Instant) -> Accepted {
        for _ in 0..ACCEPTS_PER_PASS_MAX {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = match accept4(self.socket.as_fd().as_raw_fd(), flags) {
                // SAFETY: the kernel has just made it for this process, and nobody else knows its number.
                Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
                Err(Errno::EAGAIN) => return Accepted::All,
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(_) => return Accepted::NoDescriptor,
            };
            let peer = Peer::of(&socket).ok();
            let may = peer.and_then(|peer| self.rights.of(peer, &socket));
            let mut conn = Conn::new(socket, self.socket.closer().clone(), BOUNDS, now);
            let (Some(peer), Some(may)) = (peer, may) else {
                if let Some(peer) = peer {
                    // What fits is sent at once, and nobody waits for the rest.
                    let _ = conn.send(Reply::Refused(self.rights.refuse_stranger(peer)).to_line().as_bytes(), now);
                }
                self.turned_away.one(peer, self.clients.len(), now);
                continue;
            };
            if !self.has_room(may) {
                self.turned_away.one(Some(peer), self.clients.len(), now);
                continue;
            }
            let token = sources.token();
            let interest = Interest::READABLE | Interest::WRITABLE;
            if sources.registry().register(&mut SourceFd(&conn.as_fd().as_raw_fd()), token, interest).is_ok() {
                self.last += 1;
                self.clients
                    .insert(ClientId(self.last), Client { conn, peer, may, token, waiting: Waiting::No, lost: 0 });
            }
        }
        Accepted::More
    }

    /// Where the table is full, whoever has been idle for longest makes room. Those who wait for an answer are not idle. Those
    /// who may only look have half of it, and make room for each other.
    fn has_room(&mut self, may: May) -> bool {
        let is_alike = |client: &Client| may == May::Everything || client.may == may;
        let most = if may == May::Everything { CLIENTS_MAX } else { CLIENTS_MAX / 2 };
        if self.clients.values().filter(|client| is_alike(client)).count() < most {
            return true;
        }
        let idle = self.clients.iter().filter(|(_, client)| client.waiting == Waiting::No && is_alike(client));
        let longest = idle.min_by_key(|(_, client)| client.conn.active_at()).map(|(id, _)| *id);
        longest.and_then(|id| self.clients.remove(&id)).is_some()
    }

    /// Who is connected, as the kernel says.
    pub fn peer(&self, id: ClientId) -> Option<Peer> {
        self.clients.get(&id).map(|client| client.peer)
    }

    pub fn client(&self, token: Token) -> Option<ClientId> {
        self.clients.iter().find(|(_, client)| client.token == token).map(|(id, _)| *id)
    }

    /// Reads and writes what is possible. Drops a client that is gone, or that asks more than it waits for.
    pub fn ready(&mut self, id: ClientId, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let is_done = match client.conn.ready(now) {
            Still::Open => false,
            // It has sent its request and closed its sending side; it may still read its answer.
            Still::HalfClosed => client.waiting == Waiting::No && !client.conn.has_unsent() && !client.conn.has_line(),
            Still::Over => true,
        };
        if is_done {
            self.clients.remove(&id);
        }
    }

    /// The next request of a client that does not wait for an answer, or what is wrong with its line.
    pub fn next_request(&mut self, id: ClientId) -> Option<Result<Request, Refused>> {
        let client = self.clients.get_mut(&id).filter(|client| client.waiting == Waiting::No)?;
        let request = Request::from_line(&client.conn.next_line()?);
        Some(request.and_then(|request| match self.rights.refuse(client.peer, client.may, &request) {
            Some(refused) => Err(refused),
            None => Ok(request),
        }))
    }

    /// Clients whose next request has arrived. They have sent many at once, or sent it while they waited.
    pub fn pending(&self) -> Vec<ClientId> {
        self.clients.iter().filter(|(_, client)| client.is_pending()).map(|(id, _)| *id).collect()
    }

    pub fn has_pending(&self) -> bool {
        self.clients.values().any(Client::is_pending)
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

    pub fn answer(&mut self, id: ClientId, reply: &Reply, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.waiting = Waiting::No;
        let mut line = reply.to_line();
        if line.len() > BOUNDS.out_bytes_max {
            let reason = format!("the answer has {} bytes, more than the {ANSWER_BYTES_MAX} of one answer", line.len());
            line = Reply::Refused(Refused::because(reason)).to_line();
        }
        match client.conn.send(line.as_bytes(), now) {
            Still::Open | Still::HalfClosed => {}
            Still::Over => drop(self.clients.remove(&id)),
        }
    }

    /// It hears of every event from now on. False: there are enough who do.
    pub fn listen(&mut self, id: ClientId, now: Instant) -> bool {
        let only_looks = self.clients.get(&id).is_some_and(|client| client.may == May::Look);
        let counted = |client: &&Client| client.waiting == Waiting::Events && (!only_looks || client.may == May::Look);
        let most = if only_looks { events::LISTENERS_MAX / 2 } else { events::LISTENERS_MAX };
        if self.clients.values().filter(counted).count() >= most {
            return false;
        }
        self.answer(id, &Reply::Done(Done::default()), now);
        self.wait(id, Waiting::Events);
        true
    }

    pub fn has_listeners(&self) -> bool {
        self.clients.values().any(|client| client.waiting == Waiting::Events)
    }

    /// Tells everybody who listens. Who has not read enough loses it.
    pub fn tell(&mut self, event: &str, now: Instant) {
        self.clients.retain(|_, client| {
            if client.waiting != Waiting::Events {
                return true;
            }
            if client.conn.unsent_bytes() + event.len() > events::UNREAD_BYTES_MAX {
                client.lost += 1;
                return true;
            }
            let lost = std::mem::take(&mut client.lost);
            let lines = if lost > 0 { events::lost(lost) + event } else { event.to_owned() };
            client.conn.send(lines.as_bytes(), now) != Still::Over
        });
    }

    /// When the next client has been idle for too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle = self.clients.values().filter(|client| client.waiting == Waiting::No);
        idle.map(|client| client.conn.idle_at()).chain(self.turned_away.log_at()).chain(self.look_at).min()
    }

    /// Closes idle clients, also those that do not read their answer.
    pub fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, client| client.waiting != Waiting::No || client.conn.idle_at() > now);
        self.turned_away.tick(now);
    }
}

/// Whoever may not ask can still knock, as often as it likes. The log gets one line in a while, with a count.
#[derive(Debug, Default)]
struct TurnedAway {
    logged_at: Option<Instant>,
    /// Since then.
    count: u32,
    last: String,
}

impl TurnedAway {
    fn one(&mut self, peer: Option<Peer>, clients: usize, now: Instant) {
        let who = peer.map_or_else(|| "unknown uid".to_owned(), |peer| format!("uid {}", peer.uid));
        self.last = format!("{who}, {clients} clients");
        self.count = self.count.saturating_add(1);
        self.tick(now);
    }

    fn log_at(&self) -> Option<Instant> {
        self.logged_at.filter(|_| self.count > 0).map(|logged_at| logged_at + TURNED_AWAY_EVERY)
    }

    fn tick(&mut self, now: Instant) {
        if self.count == 0 || self.log_at().is_some_and(|log_at| log_at > now) {
            return;
        }
        match self.count {
            1 => log::warn!("control client turned away: {}", self.last),
            count => log::warn!("control client turned away: {}; {count} since the last line", self.last),
        }
        self.count = 0;
        self.logged_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;

    struct Door {
        sources: Sources,
        control: Control,
        path: PathBuf,
        _directory: tempfile::TempDir,
        now: Instant,
    }

    impl Door {
        fn open() -> Door {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("control.sock");
            let sources = Sources::new().unwrap();
            let socket = ControlSocket::Path(path.clone());
            let control = Control::open(&socket, &[], sources.registry()).unwrap().unwrap();
            Door { sources, control, path, _directory: directory, now: Instant::now() }
        }

        /// connect(2) to a Unix socket is done when it returns, so one pass finds the client.
        fn connect(&mut self) -> (UnixStream, ClientId) {
            let stream = UnixStream::connect(&self.path).unwrap();
            assert_eq!(self.accept(), Accepted::All);
            (stream, ClientId(self.control.last))
        }

        fn accept(&mut self) -> Accepted {
            self.control.accept(&mut self.sources, self.now)
        }

        fn ready(&mut self, id: ClientId) {
            self.control.ready(id, self.now);
        }

        fn answer(&mut self, id: ClientId) {
            self.control.answer(id, &Reply::Ready {}, self.now);
        }
    }

    #[test]
    fn a_request_is_a_line_and_so_is_its_answer() {
        let mut door = Door::open();
        let (mut client, id) = door.connect();
        client.write_all(b"{\"command\":\"reload\",\"wait\":true}\n").unwrap();
        door.ready(id);
        assert_eq!(door.control.next_request(id), Some(Ok(Request::Reload { wait: true, force: false })));
        assert_eq!(door.control.next_request(id), None);
        door.answer(id);
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        assert_eq!(answer, "{\"ok\":true,\"v\":1}\n");
    }

    #[test]
    fn a_request_sent_while_another_waits_does_not_cost_its_answer() {
        let mut door = Door::open();
        let (mut client, id) = door.connect();
        client.write_all(b"{\"command\":\"wait_ready\"}\n{\"command\":\"status\"}\n").unwrap();
        door.ready(id);
        assert_eq!(door.control.next_request(id), Some(Ok(Request::WaitReady)));
        door.control.wait(id, Waiting::Answer);
        door.ready(id);
        assert_eq!(door.control.next_request(id), None);
        assert!(!door.control.has_pending());
        assert_eq!(door.control.waiting(|waiting| waiting == Waiting::Answer).len(), 1);
        door.answer(id);
        assert_eq!(door.control.pending(), [id]);
        assert_eq!(door.control.next_request(id), Some(Ok(Request::Status)));
    }

    #[test]
    fn a_client_that_left_while_it_waited_takes_no_place() {
        let mut door = Door::open();
        let (client, id) = door.connect();
        door.control.wait(id, Waiting::Answer);
        // It has nothing more to say, but listens.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        door.ready(id);
        assert_eq!(door.control.clients.len(), 1);
        drop(client);
        door.ready(id);
        assert!(door.control.clients.is_empty());
    }

    #[test]
    fn a_client_that_floods_is_dropped() {
        let mut door = Door::open();
        let (mut client, id) = door.connect();
        client.set_nonblocking(true).unwrap();
        let written = client.write("{\"command\":\"status\"}\n".repeat(5000).as_bytes()).unwrap();
        assert!(written > BOUNDS.in_bytes_max);
        door.ready(id);
        assert!(door.control.clients.is_empty() && door.control.next_request(id).is_none());
    }

    #[test]
    fn a_pass_accepts_a_bounded_number() {
        let mut door = Door::open();
        let _clients: Vec<_> = (0..40).map(|_| UnixStream::connect(&door.path).unwrap()).collect();
        assert_eq!((door.accept(), door.control.clients.len()), (Accepted::More, 16));
        assert_eq!((door.accept(), door.control.clients.len()), (Accepted::More, 32));
        assert_eq!((door.accept(), door.control.clients.len()), (Accepted::All, 40));
    }

    #[test]
    fn idle_clients_are_closed_and_waiting_ones_are_not() {
        let mut door = Door::open();
        let (mut idle, _) = door.connect();
        let (_waits, waits) = door.connect();
        door.control.wait(waits, Waiting::Answer);
        let opened_at = door.now;
        assert_eq!(door.control.next_deadline(), Some(opened_at + BOUNDS.idle));
        door.control.expire(opened_at + BOUNDS.idle - Duration::from_millis(1));
        assert_eq!(door.control.clients.len(), 2);
        door.control.expire(opened_at + BOUNDS.idle);
        assert_eq!((door.control.clients.len(), door.control.next_deadline()), (1, None));
        assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    }

    /// As found: whoever cleaned up in /run left a master that no client could reach any more.
    #[test]
    fn a_file_that_was_removed_is_made_again_within_half_a_minute_and_connections_stay() {
        let mut door = Door::open();
        door.control.tick(&mut door.sources, door.now);
        let (client, id) = door.connect();
        let late = UnixStream::connect(&door.path).unwrap();
        std::fs::remove_file(&door.path).unwrap();
        door.now += LOOK_EVERY - Duration::from_millis(1);
        door.control.tick(&mut door.sources, door.now);
        assert!(!door.path.exists());
        assert_eq!(door.control.next_deadline(), Some(door.now + Duration::from_millis(1)));
        door.now += Duration::from_millis(1);
        door.control.tick(&mut door.sources, door.now);
        let third = UnixStream::connect(&door.path).unwrap();
        let woken = door.sources.wait(Duration::ZERO);
        assert!(woken.contains(&CONTROL), "the new one is watched: {woken:?}");
        assert_eq!((door.accept(), door.control.clients.len()), (Accepted::All, 3));
        assert!(door.control.clients.contains_key(&id));
        drop((client, late, third));
    }

    #[test]
    fn the_longest_idle_makes_room_for_the_operator() {
        let mut door = Door::open();
        let clients: Vec<_> = (0..CLIENTS_MAX).map(|_| door.connect()).collect();
        door.now += Duration::from_secs(1);
        // All but one have done something since, and another waits for an answer.
        for (at, (mut stream, id)) in clients.iter().map(|(stream, id)| (stream, *id)).enumerate().skip(1) {
            stream.write_all(b" ").unwrap();
            door.ready(id);
            assert!(at < CLIENTS_MAX);
        }
        door.control.wait(clients[1].1, Waiting::Answer);
        let (_operator, operator) = door.connect();
        assert_eq!(door.control.clients.len(), CLIENTS_MAX);
        assert!(!door.control.clients.contains_key(&clients[0].1));
        assert!(door.control.clients.contains_key(&operator) && door.control.clients.contains_key(&clients[1].1));
        // Where everybody waits for an answer nobody is idle.
        for id in door.control.clients.keys().copied().collect::<Vec<_>>() {
            door.control.wait(id, Waiting::Answer);
        }
        let mut late = UnixStream::connect(&door.path).unwrap();
        assert_eq!((door.accept(), door.control.clients.len()), (Accepted::All, CLIENTS_MAX));
        assert_eq!(late.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn who_listens_and_does_not_read_loses_events_and_nothing_else() {
        let mut door = Door::open();
        let (client, id) = door.connect();
        assert!(door.control.listen(id, door.now) && door.control.has_listeners());
        let event = format!("{{\"text\":\"{}\"}}\n", "x".repeat(1000));
        for _ in 0..5000 {
            door.control.tell(&event, door.now);
        }
        let lost = door.control.clients[&id].lost;
        assert!(lost > 1000 && door.control.clients[&id].conn.unsent_bytes() <= events::UNREAD_BYTES_MAX, "{lost}");
        // It reads on, and hears how many there were.
        client.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        let read_all = |door: &mut Door, text: &mut Vec<u8>| loop {
            let read = (&client).read_to_end(text);
            assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
            if !door.control.clients[&id].conn.has_unsent() {
                return;
            }
            door.ready(id);
        };
        read_all(&mut door, &mut text);
        door.control.tell(&event, door.now);
        read_all(&mut door, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with(&event) && text.contains(&format!("\"notes\":{lost}")), "{lost}");
        // There is a bound for those who listen.
        let others: Vec<_> = (1..=events::LISTENERS_MAX).map(|_| door.connect()).collect();
        let heard: Vec<bool> = others.iter().map(|(_, other)| door.control.listen(*other, door.now)).collect();
        assert_eq!(heard.iter().filter(|heard| !**heard).count(), 1);
    }

    #[test]
    fn strangers_are_counted_and_logged_now_and_then() {
        let began = Instant::now();
        let mut turned_away = TurnedAway::default();
        let stranger = Some(Peer { uid: 7, pid: 1 });
        turned_away.one(stranger, 0, began);
        assert_eq!((turned_away.count, turned_away.logged_at), (0, Some(began)));
        for _ in 0..1000 {
            turned_away.one(stranger, 0, began + Duration::from_secs(1));
        }
        assert_eq!((turned_away.count, turned_away.logged_at), (1000, Some(began)));
        let log_at = began + TURNED_AWAY_EVERY;
        assert_eq!(turned_away.log_at(), Some(log_at));
        turned_away.tick(log_at);
        assert_eq!((turned_away.count, turned_away.log_at()), (0, None));
    }
}
