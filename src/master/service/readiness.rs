//! The socket at which services say that they are ready (sd_notify(3)). Its name is one that the kernel gives (unix(7),
//! autobind): nobody can take it first, and it needs no directory. Anybody may send to it, so only the kernel says who has sent.
//! It believes no number in a message, and it never waits.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use forkmaster_wire::channel::{prove_senders, receive_datagram, Sender};
use mio::Token;
use nix::sys::socket::{bind, getsockname, socket, AddressFamily, SockFlag, SockType, UnixAddr};

use super::output::Pass;
use crate::sources::{Source, Sources};

/// A datagram that is longer is cut: READY=1 stands at its beginning or is missed.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// Read in one pass: who sends all the time must not keep the master from anything.
const READS_PER_PASS_MAX: usize = 64;

pub struct Readiness {
    socket: OwnedFd,
    pub token: Token,
    /// For NOTIFY_SOCKET: `@` stands for the NUL byte of an abstract name.
    pub address: OsString,
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Readiness {
    pub fn new(sources: &mut Sources) -> io::Result<Readiness> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before it has a name, so that no datagram comes unproved.
        prove_senders(&socket)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        Readiness::at(socket, sources)
    }

    /// With a socket that has its name, from before an exec.
    pub fn at(socket: OwnedFd, sources: &mut Sources) -> io::Result<Readiness> {
        let named: UnixAddr = getsockname(socket.as_raw_fd())?;
        let name = named.as_abstract().ok_or_else(|| io::Error::other("the kernel gave it no name"))?;
        let address = OsStr::from_bytes(&[b"@", name].concat()).to_owned();
        let token = sources.add(&socket, Source::Readiness)?;
        Ok(Readiness { socket, token, address })
    }

    /// The senders of READY=1.
    pub fn read(&self) -> (Vec<Sender>, Pass) {
        let mut ready = Vec::new();
        let mut datagram = [0; DATAGRAM_BYTES_MAX];
        for _ in 0..READS_PER_PASS_MAX {
            match receive_datagram(&self.socket, &mut datagram) {
                Ok((length, sender)) => {
                    let says_so = datagram[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
                    ready.extend(sender.filter(|_| says_so));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return (ready, Pass::Empty),
            }
        }
        (ready, Pass::More)
    }
}
