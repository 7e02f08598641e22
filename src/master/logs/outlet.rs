//! A descriptor that log lines go to, and how bytes get there without waiting. It never changes O_NONBLOCK: the flag
//! belongs to the open file description, which others hold too (fcntl(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{send, MsgFlags};
use nix::sys::stat::{fstat, SFlag};

/// A pipe that poll(2) calls writable takes so much without waiting (pipe(7), PIPE_BUF).
const PIPE_BYTES_AT_ONCE: usize = 4096;

pub struct Outlet {
    fd: OwnedFd,
    kind: Kind,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe,
    Socket,
    /// A regular file, a terminal or another device: a write may wait for it, and only the log's own thread does.
    Other,
}

impl Outlet {
    pub fn new(fd: OwnedFd) -> Outlet {
        let stat = fstat(&fd).ok();
        let kind = stat.map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()));
        let kind = match kind {
            Some(SFlag::S_IFIFO) => Kind::Pipe,
            Some(SFlag::S_IFSOCK) => Kind::Socket,
            Some(_) | None => Kind::Other,
        };
        Outlet { fd, kind, file: stat.map(|stat| (stat.st_dev, stat.st_ino)) }
    }

    /// Whether both lead to the same file: where one has no room, the other has none.
    pub fn is_same_file(&self, other: &Outlet) -> bool {
        self.file.is_some() && self.file == other.file
    }

    /// Writes what fits now; `WouldBlock` where nothing does.
    pub fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Pipe => self.put_into_pipe(bytes),
            Kind::Socket => Ok(send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?),
            Kind::Other => Ok(nix::unistd::write(&self.fd, bytes)?),
        }
    }

    fn put_into_pipe(&self, bytes: &[u8]) -> io::Result<usize> {
        let slice = io::IoSlice::new(bytes);
        // An offset of -1, in both halves, means write(2) (pwritev2(2)). IoSlice is an iovec (its documentation).
        let offset: libc::c_long = -1;
        // SAFETY: the descriptor is open, and the one iovec is of a living slice.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                self.fd.as_raw_fd(),
                std::ptr::from_ref(&slice).cast::<libc::iovec>(),
                1,
                offset,
                offset,
                libc::RWF_NOWAIT,
            )
        };
        if written >= 0 {
            return Ok(written as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Kernels that know the flag for files only, or not at all.
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => {
                let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::ZERO)? == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(nix::unistd::write(&self.fd, &bytes[..bytes.len().min(PIPE_BYTES_AT_ONCE)])?)
            }
            Some(_) | None => Err(error),
        }
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// Writes until it would wait; the bytes that went.
    fn fill(outlet: &Outlet) -> usize {
        let mut bytes = 0;
        loop {
            match outlet.put(&[b'x'; 1000]) {
                Ok(written) => bytes += written,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return bytes;
                }
            }
        }
    }

    #[test]
    fn a_full_pipe_is_no_reason_to_wait_and_its_flags_stay() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let before = nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        let outlet = Outlet::new(write);
        let bytes = fill(&outlet);
        assert!(bytes >= PIPE_BYTES_AT_ONCE, "{bytes}");
        assert_eq!(nix::fcntl::fcntl(outlet.as_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap(), before);
        let mut text = vec![0; bytes];
        std::fs::File::from(read).read_exact(&mut text).unwrap();
        assert_eq!(outlet.put(b"again").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_socket_is_none_either() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let outlet = Outlet::new(ours.into());
        assert!(fill(&outlet) > 0);
        drop(theirs);
        assert_eq!(outlet.put(b"again").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
