//! The channel: one SOCK_SEQPACKET pair per template and per worker. A message is one packet of JSON, file
//! descriptors travel in the same packet, and end-of-file means that the peer is gone. JSON, because there are
//! a handful of messages in a process's life and a person can read them in `strace`; the request path never
//! comes here.
//!
//! SEQPACKET keeps message borders, and unlike DGRAM it has an end-of-file (unix(7)).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    recv, sendmsg, socketpair, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
};

use crate::message::{FromTemplate, FromWorker, ToTemplate, ToWorker};
use crate::{json, large};

/// The largest packet. The kernel's default send buffer (212,992 bytes) holds it three times. Free text in a message is
/// cut for it (`text`); a message that is larger all the same travels beside its packet (`large`).
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// unix(7): SCM_MAX_FD is 253.
pub const FDS_MAX: usize = 253;

#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

/// Who sent a packet, by the kernel's word (unix(7), SCM_CREDENTIALS).
#[derive(Debug)]
pub struct Sender {
    pub pid: i32,
    /// The very process, also when its pid belongs to another one by now. None before Linux 6.5.
    pub pidfd: Option<OwnedFd>,
}

#[derive(Debug)]
pub enum Received<M> {
    /// A message and the file descriptors that came with it (CLOEXEC).
    Message(M, Vec<OwnedFd>),
    /// Nothing now (non-blocking receive only).
    Empty,
    /// The peer is gone.
    Eof,
}

/// What a packet holds. How it is read and written is a part of this crate and not of those that send and receive: it happens a
/// few times in a process's life, so its code is made small (Cargo.toml), where that of the worker is made fast.
pub trait Packet: Sized {
    fn read(packet: &[u8]) -> serde_json::Result<Self>;
    fn write(&self) -> serde_json::Result<Vec<u8>>;
}

macro_rules! packets {
    ($($message:ty)*) => {$(
        impl Packet for $message {
            fn read(packet: &[u8]) -> serde_json::Result<$message> {
                json::read(packet)
            }

            fn write(&self) -> serde_json::Result<Vec<u8>> {
                serde_json::to_vec(self)
            }
        }
    )*};
}

packets! {
    ToTemplate FromTemplate ToWorker FromWorker
    Option<ToTemplate> Option<FromTemplate> Option<ToWorker> Option<FromWorker>
}

impl Channel {
    /// Both ends are CLOEXEC. `SOCK_NONBLOCK` is a flag of each end's own description, so the master can be
    /// non-blocking while its peer is not; here both are blocking.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        Ok((Channel { fd: one }, Channel { fd: other }))
    }

    /// Sends without waiting: `WouldBlock` when the peer has not read for a long time.
    pub fn send<M: Packet>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = message.write().map_err(io::Error::other)?;
        if packet.len() > PACKET_BYTES_MAX {
            let message = large::seal(&packet)?;
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(message.as_fd()).chain(fds.iter().copied()).collect();
            return self.send_packet(large::MARK, &fds);
        }
        self.send_packet(&packet, fds)
    }

    fn send_packet(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<UnixAddr>(self.fd.as_raw_fd(), &[IoSlice::new(packet)], control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The master's end: from here on the kernel says of each packet who sent it (`receive_from`), and refuses file
    /// descriptors.
    pub fn prove_senders(&self) -> io::Result<()> {
        prove_senders(&self.fd)
    }

    /// Takes one message. With `wait` false, returns `Empty` where there is none. EINTR is returned as an
    /// error of kind `Interrupted`, so that a Python caller can run its signal handlers.
    pub fn receive<M: Packet>(&self, wait: bool) -> io::Result<Received<M>> {
        self.receive_from(wait).map(|(received, _)| received)
    }

    /// As `receive`, with the sender where `prove_senders` was called.
    pub fn receive_from<M: Packet>(&self, wait: bool) -> io::Result<(Received<M>, Option<Sender>)> {
        let bytes = match self.next_packet_bytes(wait) {
            Ok(0) => return Ok((Received::Eof, None)),
            Ok(bytes) => bytes,
            Err(Errno::EAGAIN) => return Ok((Received::Empty, None)),
            // The peer died with messages of ours unread. The kernel says so once, before what the peer had
            // sent; its last words and then the end of file follow.
            Err(Errno::ECONNRESET) => return self.receive_from(wait),
            Err(error) => return Err(error.into()),
        };
        let mut packet = vec![0u8; bytes.min(PACKET_BYTES_MAX)];
        let (length, ancillary) = receive_packet(&self.fd, &mut packet)?;
        if ancillary.truncated {
            // EMFILE on our side: the kernel drops the descriptors silently and sets only this flag.
            return Err(io::Error::other("file descriptors of a message were lost (too many open files)"));
        }
        let message = M::read(&packet[..length]).map_err(io::Error::other)?;
        Ok((Received::Message(message, ancillary.fds), ancillary.sender))
    }

    /// As `receive`, for whoever believes its peer: a large message is read from the descriptor that came with it.
    pub fn receive_large<M: Packet>(&self, wait: bool) -> io::Result<Received<M>>
    where
        Option<M>: Packet,
    {
        let mut fds = match self.receive::<Option<M>>(wait)? {
            Received::Message(Some(message), fds) => return Ok(Received::Message(message, fds)),
            Received::Message(None, fds) => fds.into_iter(),
            Received::Empty => return Ok(Received::Empty),
            Received::Eof => return Ok(Received::Eof),
        };
        let large = fds.next().ok_or_else(|| io::Error::other("a large message came without its descriptor"))?;
        let message = M::read(&large::read(large)?).map_err(io::Error::other)?;
        Ok(Received::Message(message, fds.collect()))
    }

    /// The size of the packet that is next, 0 for the end of file. A buffer for the largest packet would stay, all
    /// of it touched, in the heap of every process, and in a worker's case in pages that it shares until then.
    fn next_packet_bytes(&self, wait: bool) -> nix::Result<usize> {
        // With MSG_TRUNC the real size is returned, whatever the buffer holds (recv(2)).
        let mut flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        if !wait {
            flags |= MsgFlags::MSG_DONTWAIT;
        }
        recv(self.fd.as_raw_fd(), &mut [], flags)
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Channel { fd }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// linux/socket.h; the libc crate does not have them yet.
const SO_PASSPIDFD: libc::c_int = 76;
const SO_PASSRIGHTS: libc::c_int = 83;
const SCM_PIDFD: libc::c_int = 4;

/// Room for all descriptors that a packet can carry, the credentials and a pidfd.
const CONTROL_BYTES: usize = 2048;

#[derive(Default)]
pub(crate) struct Ancillary {
    pub fds: Vec<OwnedFd>,
    sender: Option<Sender>,
    /// Descriptors were lost.
    pub truncated: bool,
}

/// Has the kernel say of each packet who sent it, and refuse file descriptors.
pub fn prove_senders(socket: &impl AsFd) -> io::Result<()> {
    set_flag(socket, libc::SO_PASSCRED, 1)?;
    // Linux 6.5. Older kernels do without: the pid of the credentials is then opened by number.
    let _ = set_flag(socket, SO_PASSPIDFD, 1);
    refuse_descriptors(socket);
    Ok(())
}

/// Takes a datagram, as far as it fits, and who sent it; what else came with it is closed. Does not wait.
pub fn receive_datagram(socket: &OwnedFd, datagram: &mut [u8]) -> io::Result<(usize, Option<Sender>)> {
    let (length, ancillary) = receive_packet(socket, datagram)?;
    Ok((length, ancillary.sender))
}

/// Has the kernel refuse file descriptors that are sent to this Unix socket, or to one that is accepted from it: their
/// sender hears EPERM. A descriptor that nobody asked for could freeze its receiver, even one that never looks at it:
/// close(2) of a socket with SO_LINGER and unsent bytes waits. False: kernels before Linux 6.16 deliver them as before.
pub fn refuse_descriptors(socket: &impl AsFd) -> bool {
    set_flag(socket, SO_PASSRIGHTS, 0).is_ok()
}

fn set_flag(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer is to a living int, and the size is that of an int.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(&value).cast(), size) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// recvmsg(2) by hand, since nix knows no SCM_PIDFD and would leak that descriptor.
pub(crate) fn receive_packet(fd: &OwnedFd, packet: &mut [u8]) -> io::Result<(usize, Ancillary)> {
    /// cmsg(3) wants the alignment of a `cmsghdr`.
    #[repr(align(8))]
    struct Control([u8; CONTROL_BYTES]);
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    // SAFETY: an all-zero msghdr is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in the header is to a living value of the length that stands beside it.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, flags) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ancillary = Ancillary { truncated: header.msg_flags & libc::MSG_CTRUNC != 0, ..Ancillary::default() };
    let mut pidfd = None;
    // SAFETY: the kernel has filled in the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return pointers within the control buffer, or null.
        let message = unsafe { *next };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(next) };
        // SAFETY: no memory is involved.
        let bytes = message.cmsg_len as usize - unsafe { libc::CMSG_LEN(0) } as usize;
        match (message.cmsg_level, message.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for index in 0..bytes / size_of::<RawFd>() {
                    // SAFETY: the kernel wrote that many descriptors there.
                    let raw = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                    // SAFETY: the kernel has just installed it for us, nobody else owns it.
                    ancillary.fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if bytes >= size_of::<libc::ucred>() => {
                // SAFETY: the kernel wrote a ucred there.
                let credentials = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                ancillary.sender = Some(Sender { pid: credentials.pid, pidfd: None });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) if bytes >= size_of::<RawFd>() => {
                // SAFETY: the kernel wrote one descriptor there.
                let raw = unsafe { data.cast::<RawFd>().read_unaligned() };
                // An error stands there where the sender was reaped already.
                // SAFETY: as with SCM_RIGHTS.
                pidfd = (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) });
            }
            _unknown => {}
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&header, next) };
    }
    if let Some(sender) = &mut ancillary.sender {
        sender.pidfd = pidfd;
    }
    Ok((length as usize, ancillary))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FromWorker, ToWorker};

    #[test]
    fn a_message_and_its_descriptors_arrive_together_and_death_is_eof() {
        let (one, other) = Channel::pair().unwrap();
        assert!(matches!(other.receive::<ToWorker>(false).unwrap(), Received::Empty));
        one.send(&ToWorker::Serve, &[one.as_fd()]).unwrap();
        match other.receive::<ToWorker>(true).unwrap() {
            Received::Message(ToWorker::Serve, fds) => assert_eq!(fds.len(), 1),
            unexpected => panic!("{unexpected:?}"),
        }
        drop(one);
        assert!(matches!(other.receive::<FromWorker>(true).unwrap(), Received::Eof));
        let error = other.send(&FromWorker::Serving, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_kernel_says_who_sent_a_packet_and_keeps_descriptors_away() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.prove_senders().unwrap();
        theirs.send(&FromWorker::Serving, &[]).unwrap();
        let (received, sender) = ours.receive_from::<FromWorker>(true).unwrap();
        assert!(matches!(received, Received::Message(FromWorker::Serving, _)));
        assert_eq!(sender.unwrap().pid, std::process::id() as i32);
        // Linux 6.16 refuses the send; before, the descriptors come and are closed.
        if let Err(error) = theirs.send(&FromWorker::Serving, &[ours.as_fd()]) {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_arrive() {
        let (one, other) = Channel::pair().unwrap();
        other.send(&ToWorker::Serve, &[]).unwrap();
        one.send(&FromWorker::Serving, &[]).unwrap();
        drop(one);
        assert!(matches!(other.receive(true).unwrap(), Received::Message(FromWorker::Serving, _)));
        assert!(matches!(other.receive::<FromWorker>(true).unwrap(), Received::Eof));
    }

    #[test]
    fn a_large_message_travels_beside_its_packet_and_before_its_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let reason = "x".repeat(3 * PACKET_BYTES_MAX);
        one.send(&FromWorker::Leaving { reason: reason.clone() }, &[one.as_fd()]).unwrap();
        match other.receive_large(true).unwrap() {
            Received::Message(FromWorker::Leaving { reason: came }, fds) => assert_eq!((came, fds.len()), (reason, 1)),
            unexpected => panic!("{unexpected:?}"),
        }
        // Who did not ask for large messages takes none, and goes on.
        one.send(&FromWorker::Leaving { reason: "x".repeat(PACKET_BYTES_MAX) }, &[]).unwrap();
        one.send(&FromWorker::Serving, &[]).unwrap();
        assert!(other.receive::<FromWorker>(true).is_err());
        assert!(matches!(other.receive_large(true).unwrap(), Received::Message(FromWorker::Serving, _)));
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        let (one, other) = Channel::pair().unwrap();
        one.send_packet(b"\"no such message\"", &[]).unwrap();
        assert!(other.receive::<ToWorker>(true).is_err());
        // Nor does a packet beyond the bound stay in the way of the next one.
        let large = vec![b' '; PACKET_BYTES_MAX + 1];
        nix::unistd::write(&one, &large).unwrap();
        one.send(&ToWorker::Serve, &[]).unwrap();
        assert!(other.receive::<ToWorker>(true).is_err());
        assert!(matches!(other.receive(true).unwrap(), Received::Message(ToWorker::Serve, _)));
    }
}
