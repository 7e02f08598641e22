//! The handoff queue: one SOCK_SEQPACKET pair for the whole service, through which live connections go from worker to
//! worker. The master makes it before its first worker. Workers of all generations hold both ends: whoever has a connection
//! to give sends, whoever has a free thread receives. What lies in the queue belongs to nobody and is not lost while the
//! master lives, so there are no acknowledgements.
//!
//! Nothing here waits, and nothing ever calls shutdown(2): it would end the queue for all who hold it.

pub mod message;

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{getrlimit, Resource};
use nix::sys::socket::{
    sendmsg, setsockopt, socketpair, sockopt, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
};

use crate::channel::{receive_packet, refuse_descriptors};
use message::{Header, Malformed, BYTES_MAX, HEADER_BYTES_MAX};

/// What the kernel is asked to hold: some 10,900 idle connections. Without privilege it gives what `net.core.wmem_max`
/// allows, usually 556 connections, and senders wait for room.
const SEND_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// What the kernel charges for the smallest message, so that the bytes that lie in the queue tell how many messages do.
const MESSAGE_CHARGE_BYTES: u64 = 768;

/// A part of RLIMIT_NOFILE: the kernel counts the descriptors on their way of all processes of a user, and refuses more than
/// that limit (ETOOMANYREFS), also those that the master sends to a template.
const DESCRIPTORS_PART: u64 = 4;

/// The two ends.
#[derive(Debug)]
pub struct Queue {
    sender: OwnedFd,
    receiver: OwnedFd,
    /// Closed before each receive, so that there is a free descriptor, and taken back afterwards: a process without one
    /// would lose the connection, since the kernel takes the message from the queue all the same.
    spare: Option<OwnedFd>,
    messages_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    Sent,
    /// No room now. The connection stays where it is.
    Full,
    /// There is no queue any more.
    Broken,
}

#[derive(Debug)]
pub enum Receiving {
    /// A connection. The client's bytes begin there in the packet.
    Connection {
        socket: OwnedFd,
        header: Header,
        bytes_at: usize,
    },
    Empty,
    /// This process has no descriptor free, so it leaves the queue to others for now.
    NoDescriptor,
    /// A message that nobody can use; it is gone.
    Unusable(Unusable),
    /// There is no queue any more.
    Broken,
}

/// Why a message cannot be used. Only a hostile or broken sender makes one, except for `Lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    Malformed(Malformed),
    /// The descriptor did not arrive: another thread took the one that was kept free for it.
    Lost,
    /// No descriptor, or several.
    Descriptors(usize),
    NoSocket,
    /// The socket is blocking, and sendfile(2) would wait for the client.
    Blocking,
}

impl Queue {
    /// For the master. Call it before the first worker.
    pub fn create() -> io::Result<Queue> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (sender, receiver) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // The second is for processes without CAP_NET_ADMIN: the kernel cuts it to what is allowed (socket(7)).
        if setsockopt(&sender, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
            setsockopt(&sender, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        }
        // Nobody reads from this end, so nothing may be left there.
        refuse_descriptors(&sender);
        Ok(Queue::from_ends(sender, receiver))
    }

    /// For a worker.
    pub fn from_ends(sender: OwnedFd, receiver: OwnedFd) -> Queue {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Queue { sender, receiver, spare: None, messages_max: (limit / DESCRIPTORS_PART).max(1) }
    }

    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.sender.as_fd(), self.receiver.as_fd()]
    }

    pub fn receiver(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    /// Sends a connection. The caller has taken it out of its epoll set and closes its own descriptor once it is sent.
    pub fn send(&self, socket: BorrowedFd<'_>, header: &Header, bytes: [&[u8]; 3]) -> Sending {
        debug_assert!(bytes.iter().map(|part| part.len()).sum::<usize>() <= BYTES_MAX);
        if self.charged_bytes() / MESSAGE_CHARGE_BYTES >= self.messages_max {
            return Sending::Full;
        }
        let header = header.encode();
        let parts = [&header[..], bytes[0], bytes[1], bytes[2]].map(IoSlice::new);
        let rights = [socket.as_raw_fd()];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            let control = [ControlMessage::ScmRights(&rights)];
            match sendmsg::<UnixAddr>(self.sender.as_raw_fd(), &parts, &control, flags, None) {
                Ok(_) => return Sending::Sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => return Sending::Full,
                Err(_) => return Sending::Broken,
            }
        }
    }

    /// How many messages lie in the queue, about: large ones count for several.
    pub fn lying(&self) -> usize {
        (self.charged_bytes() / MESSAGE_CHARGE_BYTES) as usize
    }

    /// Takes what lies first in the queue. `packet` is overwritten.
    pub fn receive(&mut self, packet: &mut Vec<u8>) -> Receiving {
        if self.spare.is_none() && !self.take_spare() {
            return Receiving::NoDescriptor;
        }
        packet.resize(HEADER_BYTES_MAX + BYTES_MAX, 0);
        self.spare = None;
        let received = receive_packet(&self.receiver, packet);
        self.take_spare();
        let (length, ancillary) = match received {
            Ok((0, ancillary)) if ancillary.fds.is_empty() && !ancillary.truncated => return self.nothing(),
            Ok(received) => received,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => return Receiving::Empty,
            Err(_) => return Receiving::Broken,
        };
        // The sender may have set it, also where the message is of no use: then close(2) would wait for the client (socket(7)).
        for fd in &ancillary.fds {
            let _ = setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
        }
        if ancillary.truncated && ancillary.fds.is_empty() {
            return Receiving::Unusable(Unusable::Lost);
        }
        let count = ancillary.fds.len();
        let mut fds = ancillary.fds.into_iter();
        let (Some(socket), None) = (fds.next(), fds.next()) else {
            return Receiving::Unusable(Unusable::Descriptors(count));
        };
        let checked = check(&socket).and_then(|()| Header::decode(&packet[..length]).map_err(Unusable::Malformed));
        match checked {
            Ok((header, bytes_at)) => {
                packet.truncate(length);
                Receiving::Connection { socket, header, bytes_at }
            }
            Err(unusable) => Receiving::Unusable(unusable),
        }
    }

    /// For the master, when no worker is left: closes what nobody has taken. How many connections it was.
    pub fn close_all(&mut self) -> u32 {
        let (mut packet, mut closed) = (Vec::new(), 0);
        loop {
            match self.receive(&mut packet) {
                Receiving::Connection { .. } => closed += 1,
                Receiving::Unusable(_) => {}
                Receiving::Empty | Receiving::NoDescriptor | Receiving::Broken => return closed,
            }
        }
    }

    /// The packet has no byte: that is the end of the queue, or an empty packet.
    fn nothing(&self) -> Receiving {
        let is_over = PollFlags::POLLHUP | PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut ends = [PollFd::new(self.receiver.as_fd(), is_over)];
        let polled = poll(&mut ends, PollTimeout::ZERO);
        // nix does not know POLLRDHUP, and where the kernel sets it there is no set of flags.
        let hung_up = ends[0].revents().is_none_or(|events| events.intersects(is_over));
        match polled {
            Ok(_) if hung_up => Receiving::Broken,
            Ok(_) | Err(_) => Receiving::Unusable(Unusable::Descriptors(0)),
        }
    }

    fn take_spare(&mut self) -> bool {
        self.spare = File::open("/dev/null").ok().map(OwnedFd::from);
        self.spare.is_some()
    }

    /// What lies in the queue, as the kernel charges it (SIOCOUTQ, unix(7)).
    fn charged_bytes(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int, and `bytes` outlives the call.
        match unsafe { libc::ioctl(self.sender.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } {
            0 => u64::try_from(bytes).unwrap_or(0),
            _ => 0,
        }
    }
}

fn check(socket: &OwnedFd) -> Result<(), Unusable> {
    let is_socket = nix::sys::stat::fstat(socket).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFSOCK);
    if !is_socket {
        return Err(Unusable::NoSocket);
    }
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 || flags & libc::O_NONBLOCK == 0 {
        return Err(Unusable::Blocking);
    }
    Ok(())
}

impl Unusable {
    pub fn reason(self) -> String {
        match self {
            Unusable::Malformed(malformed) => malformed.reason().to_owned(),
            Unusable::Lost => "its descriptor was lost (too many open files)".to_owned(),
            Unusable::Descriptors(count) => format!("it came with {count} descriptors"),
            Unusable::NoSocket => "its descriptor is no socket".to_owned(),
            Unusable::Blocking => "its socket is blocking".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::message::ListenerId;

    fn header(listener: u32) -> Header {
        Header {
            listener: ListenerId(listener),
            peer: None,
            local: None,
            secure: false,
            awaits_proxy: None,
            forked: false,
            limits: None,
            waits_since_ns: 0,
        }
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, server)
    }

    fn raw_send(queue: &Queue, bytes: &[u8], fds: &[i32]) {
        let control = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &control[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sender = queue.sender.as_raw_fd();
        sendmsg::<UnixAddr>(sender, &[IoSlice::new(bytes)], control, flags, None).unwrap();
    }

    #[test]
    fn a_connection_and_its_bytes_arrive() {
        let mut queue = Queue::create().unwrap();
        let mut packet = Vec::new();
        assert!(matches!(queue.receive(&mut packet), Receiving::Empty));
        let (mut client, server) = connection();
        assert_eq!(queue.send(server.as_fd(), &header(3), [b"GET ", b"", b"/"]), Sending::Sent);
        drop(server);
        client.write_all(b" HTTP/1.1").unwrap();
        let Receiving::Connection { socket, header, bytes_at } = queue.receive(&mut packet) else { panic!() };
        assert_eq!((header.listener, &packet[bytes_at..]), (ListenerId(3), &b"GET /"[..]));
        let mut server = TcpStream::from(socket);
        let mut bytes = [0; 16];
        server.set_nonblocking(false).unwrap();
        let length = server.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b" HTTP/1.1");
        server.write_all(b"x").unwrap();
        assert_eq!(client.read(&mut bytes).unwrap(), 1);
        assert!(matches!(queue.receive(&mut packet), Receiving::Empty));
    }

    #[test]
    fn what_nobody_takes_is_closed() {
        let mut queue = Queue::create().unwrap();
        let mut clients = Vec::new();
        for number in 0..3 {
            let (client, server) = connection();
            assert_eq!(queue.send(server.as_fd(), &header(number), [b"", b"", b""]), Sending::Sent);
            clients.push(client);
        }
        assert_eq!((queue.close_all(), queue.close_all()), (3, 0));
        for mut client in clients {
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn it_is_first_in_first_out_and_says_when_it_is_full() {
        let mut queue = Queue::create().unwrap();
        let (_client, server) = connection();
        queue.messages_max = 5;
        let sent = (0..100)
            .take_while(|number| queue.send(server.as_fd(), &header(*number), [b"", b"", b""]) == Sending::Sent);
        let sent = sent.count() as u32;
        assert!((1..=5).contains(&sent), "{sent}");
        let mut packet = Vec::new();
        for number in 0..sent {
            let Receiving::Connection { header, .. } = queue.receive(&mut packet) else { panic!() };
            assert_eq!(header.listener, ListenerId(number));
        }
        assert_eq!(queue.send(server.as_fd(), &header(0), [b"", b"", b""]), Sending::Sent);
    }

    #[test]
    fn the_kernel_too_says_when_it_is_full() {
        let queue = Queue::create().unwrap();
        setsockopt(&queue.sender, sockopt::SndBuf, &65536).unwrap();
        let (_client, server) = connection();
        let bytes = [b'x'; BYTES_MAX];
        let sent = (0..100).take_while(|_| queue.send(server.as_fd(), &header(0), [&bytes, b"", b""]) == Sending::Sent);
        assert!((1..100).contains(&sent.count()));
    }

    #[test]
    fn what_a_hostile_sender_makes_is_dropped_and_the_next_one_arrives() {
        let mut queue = Queue::create().unwrap();
        let mut packet = Vec::new();
        let (_client, server) = connection();
        let socket = server.as_raw_fd();
        let good = [&header(1).encode()[..], b"abc"].concat();
        let file = File::open("/dev/null").unwrap();
        let (_other, blocking) = connection();
        blocking.set_nonblocking(false).unwrap();
        let mut expect = |bytes: &[u8], fds: &[i32], wanted: Unusable| {
            raw_send(&queue, bytes, fds);
            match queue.receive(&mut packet) {
                Receiving::Unusable(unusable) => assert_eq!(unusable, wanted),
                other => panic!("{other:?} instead of {wanted:?}"),
            }
        };
        expect(b"", &[], Unusable::Descriptors(0));
        expect(b"", &[socket], Unusable::Malformed(Malformed::Short));
        expect(b"abc", &[socket], Unusable::Malformed(Malformed::Short));
        expect(&good, &[], Unusable::Descriptors(0));
        expect(&good, &[socket, socket], Unusable::Descriptors(2));
        expect(&good, &[file.as_raw_fd()], Unusable::NoSocket);
        expect(&good, &[blocking.as_raw_fd()], Unusable::Blocking);
        let long = [&good[..], &[b'x'; BYTES_MAX]].concat();
        expect(&long, &[socket], Unusable::Malformed(Malformed::Long));
        raw_send(&queue, &good, &[socket]);
        assert!(matches!(queue.receive(&mut packet), Receiving::Connection { .. }));
    }

    #[test]
    fn a_queue_that_somebody_has_shut_down_is_none() {
        for how in [libc::SHUT_RDWR, libc::SHUT_WR] {
            let mut queue = Queue::create().unwrap();
            let (_client, server) = connection();
            // SAFETY: a call with two numbers.
            unsafe { libc::shutdown(queue.sender.as_raw_fd(), how) };
            assert_eq!(queue.send(server.as_fd(), &header(0), [b"", b"", b""]), Sending::Broken);
            let received = queue.receive(&mut Vec::new());
            assert!(matches!(received, Receiving::Broken), "{received:?}");
        }
    }
}
