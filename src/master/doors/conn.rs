//! A peer that is never waited for: bytes in up to a bound, bytes out up to a bound, and an instant from which on it
//! may be closed as idle. It knows bytes and lines, and neither what they mean nor who may send them.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{recvmsg, send, shutdown, ControlMessageOwned, MsgFlags, Shutdown};

use super::closer::Closer;

/// SCM_MAX_FD of the kernel (include/net/scm.h): no packet carries more descriptors.
const PASSED_MAX: usize = 253;

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What it may have sent that is not yet asked for.
    pub in_bytes_max: usize,
    /// What it may have left unread.
    pub out_bytes_max: usize,
    pub idle: Duration,
}

/// Whether a peer can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Still {
    Open,
    /// It has closed its sending side. It may still read.
    HalfClosed,
    /// Gone, or beyond a bound.
    Over,
}

pub struct Conn {
    /// None only while it is dropped.
    socket: Option<OwnedFd>,
    closer: Closer,
    bounds: Bounds,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    half_closed: bool,
    /// When bytes last went either way.
    active_at: Instant,
}

impl Conn {
    pub fn new(socket: OwnedFd, closer: Closer, bounds: Bounds, now: Instant) -> Conn {
        let (unread, unsent) = (Vec::new(), Vec::new());
        Conn { socket: Some(socket), closer, bounds, unread, unsent, half_closed: false, active_at: now }
    }

    /// What was read and not taken, and what was not sent.
    pub fn bytes(&self) -> (&[u8], &[u8]) {
        (&self.unread, &self.unsent)
    }

    /// As it was before an exec. Whether its peer has closed its side, the socket tells again.
    pub fn with_bytes(mut self, unread: Vec<u8>, unsent: Vec<u8>) -> Conn {
        (self.unread, self.unsent) = (unread, unsent);
        self
    }

    /// Reads and writes what is possible now.
    pub fn ready(&mut self, now: Instant) -> Still {
        if self.read(now).is_err() || self.flush(now).is_err() || self.unread.len() > self.bounds.in_bytes_max {
            return Still::Over;
        }
        match self.half_closed {
            false => Still::Open,
            true if self.has_hung_up() => Still::Over,
            true => Still::HalfClosed,
        }
    }

    /// The next line that has arrived whole, without its end.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.unread.drain(..=end).collect();
        line.pop();
        Some(line)
    }

    pub fn has_line(&self) -> bool {
        self.unread.contains(&b'\n')
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// Sends what is possible now and keeps the rest.
    pub fn send(&mut self, bytes: &[u8], now: Instant) -> Still {
        self.unsent.extend_from_slice(bytes);
        match self.flush(now) {
            Ok(()) if self.unsent.len() <= self.bounds.out_bytes_max => Still::Open,
            Ok(()) | Err(_) => Still::Over,
        }
    }

    /// The peer reads end-of-file after what was sent. It may still be there.
    pub fn finish(&self) {
        let _ = shutdown(self.socket().as_raw_fd(), Shutdown::Write);
    }

    pub fn active_at(&self) -> Instant {
        self.active_at
    }

    /// From then on it is idle, unless it does something before.
    pub fn idle_at(&self) -> Instant {
        self.active_at + self.bounds.idle
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("it is taken in drop only").as_fd()
    }

    fn read(&mut self, now: Instant) -> nix::Result<()> {
        while !self.half_closed && self.unread.len() <= self.bounds.in_bytes_max {
            let mut bytes = [0; 4096];
            match self.receive(&mut bytes) {
                Ok(0) => self.half_closed = true,
                Ok(read) => {
                    self.unread.extend_from_slice(&bytes[..read]);
                    self.active_at = now;
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// recv(2) would drop passed descriptors here and now, and their last close may wait. So they are taken, and handed
    /// to whoever closes.
    fn receive(&self, bytes: &mut [u8]) -> nix::Result<usize> {
        let mut parts = [IoSliceMut::new(bytes)];
        let mut space = nix::cmsg_space!([RawFd; PASSED_MAX]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(passed) = part {
                for descriptor in passed {
                    // SAFETY: the kernel has just made it for this process, and nobody else knows its number.
                    self.closer.close(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        Ok(message.bytes)
    }

    fn flush(&mut self, now: Instant) -> nix::Result<()> {
        let mut sent = 0;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while sent < self.unsent.len() {
            match send(self.socket().as_raw_fd(), &self.unsent[sent..], flags) {
                Ok(more) => sent += more,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        if sent > 0 {
            self.unsent.drain(..sent);
            self.active_at = now;
        }
        Ok(())
    }

    /// Both directions are closed: poll(2) reports POLLHUP, which a peer that only stopped sending does not cause.
    fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(self.socket(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|events| events > 0)
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket()
    }
}

impl Drop for Conn {
    /// What was not read may hold passed descriptors, and goes with the socket.
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.closer.close(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const BOUNDS: Bounds = Bounds { in_bytes_max: 64, out_bytes_max: 4 << 20, idle: Duration::from_secs(60) };

    fn pair(now: Instant) -> (Conn, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Conn::new(ours.into(), Closer::Here, BOUNDS, now), theirs)
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let now = Instant::now();
        let (mut conn, mut peer) = pair(now);
        peer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(conn.ready(now), Still::Open);
        assert_eq!(conn.next_line().unwrap(), b"one");
        assert!(conn.has_line());
        assert_eq!(conn.next_line().unwrap(), b"two");
        assert_eq!(conn.next_line(), None);
        peer.write_all(b"ee\n").unwrap();
        assert_eq!(conn.ready(now), Still::Open);
        assert_eq!(conn.next_line().unwrap(), b"three");
    }

    #[test]
    fn who_sends_too_much_is_over() {
        let now = Instant::now();
        let (mut conn, mut peer) = pair(now);
        peer.write_all(&[b'x'; 64]).unwrap();
        assert_eq!(conn.ready(now), Still::Open);
        peer.write_all(b"x").unwrap();
        assert_eq!(conn.ready(now), Still::Over);
    }

    #[test]
    fn who_reads_nothing_is_over_at_the_bound() {
        let now = Instant::now();
        let (mut conn, mut peer) = pair(now);
        let megabyte = vec![b'x'; 1 << 20];
        let sent = (0..100).take_while(|_| conn.send(&megabyte, now) == Still::Open).count();
        assert!((4..6).contains(&sent), "{sent}");
        assert!(conn.has_unsent());
        // What was kept goes out when there is room.
        let (mut conn, mut other) = pair(now);
        assert_eq!(conn.send(&megabyte, now), Still::Open);
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 20];
            other.read_exact(&mut bytes).unwrap();
            (bytes, other)
        });
        while conn.has_unsent() {
            assert!(now.elapsed() < Duration::from_secs(10));
            assert_eq!(conn.ready(now), Still::Open);
        }
        assert_eq!(reading.join().unwrap().0, megabyte);
        peer.set_nonblocking(true).unwrap();
        let _ = peer.read(&mut [0; 1]);
    }

    #[test]
    fn who_only_stops_sending_can_still_be_answered() {
        let now = Instant::now();
        let (mut conn, mut peer) = pair(now);
        peer.write_all(b"ask\n").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(conn.ready(now), Still::HalfClosed);
        assert_eq!(conn.next_line().unwrap(), b"ask");
        assert_eq!(conn.send(b"answer\n", now), Still::Open);
        let mut answer = [0; 7];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer\n");
        drop(peer);
        assert_eq!(conn.ready(now), Still::Over);
    }

    #[test]
    fn idleness_counts_from_the_last_byte_either_way() {
        let began = Instant::now();
        let (mut conn, mut peer) = pair(began);
        let later = began + Duration::from_secs(30);
        assert_eq!(conn.ready(later), Still::Open);
        assert_eq!(conn.idle_at(), began + BOUNDS.idle);
        peer.write_all(b"x").unwrap();
        assert_eq!(conn.ready(later), Still::Open);
        assert_eq!(conn.idle_at(), later + BOUNDS.idle);
        let last = later + Duration::from_secs(1);
        assert_eq!(conn.send(b"y", last), Still::Open);
        assert_eq!(conn.idle_at(), last + BOUNDS.idle);
    }

    #[test]
    fn passed_descriptors_are_not_kept() {
        use nix::sys::socket::{sendmsg, ControlMessage};
        let now = Instant::now();
        let (mut conn, peer) = pair(now);
        let (passed, mut other) = UnixStream::pair().unwrap();
        let descriptors = [passed.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let line = [std::io::IoSlice::new(b"ask\n")];
        sendmsg::<()>(peer.as_raw_fd(), &line, &rights, MsgFlags::empty(), None).unwrap();
        drop(passed);
        assert_eq!(conn.ready(now), Still::Open);
        assert_eq!(conn.next_line().unwrap(), b"ask");
        // End-of-file: no copy is left anywhere.
        assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
    }
}
