//! Closes what strangers had a hand in. Whoever may connect to a Unix socket can pass a descriptor along, and the
//! last close(2) of a TCP socket with SO_LINGER and unsent bytes waits for hours. A master that waits there serves
//! nobody. So no descriptor is accepted at all where the kernel can refuse it; elsewhere a thread does the closing.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::mpsc::{sync_channel, SyncSender};

use forkmaster_wire::channel::refuse_descriptors;

use crate::signals::start_thread;

/// Descriptors that wait for the thread while it is held up. Beyond it they are left open: only the owner and root
/// may connect, and a full table of descriptors is an error that can be seen, unlike a master that stands still.
const WAITING_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub enum Closer {
    /// Nothing foreign can arrive, so close(2) does not wait.
    Here,
    Thread(SyncSender<OwnedFd>),
}

impl Closer {
    /// Refuses descriptors on this socket, and on all that are accepted from it, where the kernel can do that.
    pub fn for_listener(socket: &impl AsFd) -> std::io::Result<Closer> {
        match refuse_descriptors(socket) {
            true => Ok(Closer::Here),
            false => Closer::thread(),
        }
    }

    fn thread() -> std::io::Result<Closer> {
        let (sender, waiting) = sync_channel::<OwnedFd>(WAITING_MAX);
        start_thread("closer", move || waiting.into_iter().for_each(drop))?;
        Ok(Closer::Thread(sender))
    }

    pub fn close(&self, descriptor: OwnedFd) {
        match self {
            Closer::Here => drop(descriptor),
            Closer::Thread(sender) => {
                if let Err(not_taken) = sender.try_send(descriptor) {
                    let descriptor = match not_taken {
                        std::sync::mpsc::TrySendError::Full(descriptor)
                        | std::sync::mpsc::TrySendError::Disconnected(descriptor) => descriptor,
                    };
                    let _left_open = descriptor.into_raw_fd();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use nix::errno::Errno;
    use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

    use super::*;

    /// A descriptor whose last close(2) waits: a TCP connection that lingers, with bytes that nobody reads. Both ends.
    fn one_that_lingers() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingering = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        socket2::SockRef::from(&lingering).set_linger(Some(Duration::from_secs(5))).unwrap();
        lingering.set_nonblocking(true).unwrap();
        while lingering.write(&[0; 65536]).is_ok() {}
        lingering.set_nonblocking(false).unwrap();
        (lingering, peer)
    }

    #[test]
    fn a_thread_closes_what_would_hold_the_loop_up() {
        let (lingering, peer) = one_that_lingers();
        let closer = Closer::thread().unwrap();
        let began = Instant::now();
        closer.close(lingering.into());
        for _ in 0..WAITING_MAX + 10 {
            closer.close(std::fs::File::open("/dev/null").unwrap().into());
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        drop(peer);
    }

    #[test]
    fn the_kernel_refuses_descriptors_where_it_can() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        if !refuse_descriptors(&ours) {
            // Older than Linux 6.16: the other test has the way that is taken there.
            return;
        }
        let passed = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&passed)];
        let sent = sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None);
        assert_eq!(sent, Err(Errno::EPERM));
    }
}
