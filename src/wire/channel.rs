//! The channel: one SOCK_SEQPACKET pair per template and per worker. A message is one packet of JSON, file
//! descriptors travel in the same packet, and end-of-file means that the peer is gone. JSON, because there are
//! a handful of messages in a process's life and a person can read them in `strace`; the request path never
//! comes here.
//!
//! SEQPACKET keeps message borders, and unlike DGRAM it has an end-of-file (unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    recv, recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr,
};
use serde::de::DeserializeOwned;
use serde::Serialize;

/// The largest packet. The kernel's default send buffer (212,992 bytes) holds it three times.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Free text in a message (tracebacks, stacks) is cut to this, so that with JSON's escapes the packet stays
/// below its bound for any text that people write; `send` cuts nothing and fails above the bound.
pub const TEXT_BYTES_MAX: usize = 24 * 1024;

/// unix(7): SCM_MAX_FD is 253.
pub const FDS_MAX: usize = 253;

#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
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

impl Channel {
    /// Both ends are CLOEXEC. `SOCK_NONBLOCK` is a flag of each end's own description, so the master can be
    /// non-blocking while its peer is not; here both are blocking.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)?;
        Ok((Channel { fd: one }, Channel { fd: other }))
    }

    /// Sends without waiting: `WouldBlock` when the peer has not read for a long time.
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = serde_json::to_vec(message).map_err(io::Error::other)?;
        if packet.len() > PACKET_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message exceeds the channel's packet size"));
        }
        let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<UnixAddr>(self.fd.as_raw_fd(), &[IoSlice::new(&packet)], control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes one message. With `wait` false, returns `Empty` where there is none. EINTR is returned as an
    /// error of kind `Interrupted`, so that a Python caller can run its signal handlers.
    pub fn receive<M: DeserializeOwned>(&self, wait: bool) -> io::Result<Received<M>> {
        let bytes = match self.next_packet_bytes(wait) {
            Ok(0) => return Ok(Received::Eof),
            Ok(bytes) => bytes,
            Err(Errno::EAGAIN) => return Ok(Received::Empty),
            // The peer died with messages of ours unread. The kernel says so once, before what the peer had
            // sent; its last words and then the end of file follow.
            Err(Errno::ECONNRESET) => return self.receive(wait),
            Err(error) => return Err(error.into()),
        };
        let mut packet = vec![0u8; bytes.min(PACKET_BYTES_MAX)];
        let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let (length, fds, truncated) = {
            let mut parts = [IoSliceMut::new(&mut packet)];
            let received = recvmsg::<UnixAddr>(self.fd.as_raw_fd(), &mut parts, Some(&mut control), flags)
                .map_err(io::Error::from)?;
            let mut fds = Vec::new();
            for message in received.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel has just installed these descriptors for us, nobody else owns them.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            (received.bytes, fds, received.flags.contains(MsgFlags::MSG_CTRUNC))
        };
        if truncated {
            // EMFILE on our side: the kernel drops the descriptors silently and sets only this flag.
            return Err(io::Error::other("file descriptors of a message were lost (too many open files)"));
        }
        let message = serde_json::from_slice(&packet[..length]).map_err(io::Error::other)?;
        Ok(Received::Message(message, fds))
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

/// Cuts a text for a message: the first and the last part are kept, since a traceback's last line says the most.
pub fn cut_text(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut head = TEXT_BYTES_MAX / 4;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - (TEXT_BYTES_MAX - head);
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}\n[... {} bytes left out ...]\n{}", &text[..head], tail - head, &text[tail..])
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
        let error = other.send(&FromWorker::Ready, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_arrive() {
        let (one, other) = Channel::pair().unwrap();
        other.send(&ToWorker::Serve, &[]).unwrap();
        one.send(&FromWorker::Ready, &[]).unwrap();
        drop(one);
        assert!(matches!(other.receive(true).unwrap(), Received::Message(FromWorker::Ready, _)));
        assert!(matches!(other.receive::<FromWorker>(true).unwrap(), Received::Eof));
    }

    #[test]
    fn a_long_traceback_keeps_both_ends() {
        let long = format!("first{}last", "é".repeat(TEXT_BYTES_MAX));
        let cut = cut_text(&long);
        assert!(cut.starts_with("first") && cut.ends_with("last") && cut.len() < TEXT_BYTES_MAX + 64);
        let (one, _other) = Channel::pair().unwrap();
        one.send(&FromWorker::Stacks { id: 1, text: cut_text(&"\n\"".repeat(TEXT_BYTES_MAX)) }, &[]).unwrap();
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&"no such message", &[]).unwrap();
        assert!(other.receive::<ToWorker>(true).is_err());
        // Nor does a packet beyond the bound stay in the way of the next one.
        let large = vec![b' '; PACKET_BYTES_MAX + 1];
        nix::unistd::write(&one, &large).unwrap();
        one.send(&ToWorker::Serve, &[]).unwrap();
        assert!(other.receive::<ToWorker>(true).is_err());
        assert!(matches!(other.receive(true).unwrap(), Received::Message(ToWorker::Serve, _)));
    }
}
