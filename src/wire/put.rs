//! How bytes get into a log without waiting, for the master's lines and the workers'. O_NONBLOCK is never changed: the flag
//! belongs to the open file description, which others hold too (fcntl(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{send, MsgFlags};
use nix::sys::stat::SFlag;

/// A pipe that poll(2) calls writable takes so much without waiting (pipe(7), PIPE_BUF).
const PIPE_BYTES_AT_ONCE: usize = 4096;

/// What a descriptor stands for, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pipe,
    Socket,
    /// A regular file, a terminal or another device: a write may wait for it, so only a thread of the log's own does it.
    Other,
}

impl Kind {
    /// `st_mode` of stat(2).
    pub fn of(mode: libc::mode_t) -> Kind {
        match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFIFO => Kind::Pipe,
            SFlag::S_IFSOCK => Kind::Socket,
            _other => Kind::Other,
        }
    }
}

/// Writes what fits now; `WouldBlock` where nothing does.
pub fn put(fd: BorrowedFd<'_>, kind: Kind, bytes: &[u8]) -> io::Result<usize> {
    match kind {
        Kind::Pipe => put_into_pipe(fd, bytes),
        Kind::Socket => Ok(send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?),
        Kind::Other => Ok(nix::unistd::write(fd, bytes)?),
    }
}

fn put_into_pipe(pipe: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let slice = io::IoSlice::new(bytes);
    // An offset of -1, in both halves, means write(2) (pwritev2(2)). IoSlice is an iovec (its documentation).
    let offset: libc::c_long = -1;
    // SAFETY: the descriptor is open, and the one iovec is of a living slice.
    let written = unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            pipe.as_raw_fd(),
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
            if poll(&mut [PollFd::new(pipe, PollFlags::POLLOUT)], PollTimeout::ZERO)? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(nix::unistd::write(pipe, &bytes[..bytes.len().min(PIPE_BYTES_AT_ONCE)])?)
        }
        Some(_) | None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Writes until it would wait; the bytes that went.
    fn fill(fd: BorrowedFd<'_>, kind: Kind) -> usize {
        let mut bytes = 0;
        loop {
            match put(fd, kind, &[b'x'; 1000]) {
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
        let flags = || nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        let before = flags();
        let kind = Kind::of(nix::sys::stat::fstat(&write).unwrap().st_mode);
        assert_eq!(kind, Kind::Pipe);
        let bytes = fill(write.as_fd(), kind);
        assert!(bytes >= PIPE_BYTES_AT_ONCE, "{bytes}");
        assert_eq!(flags(), before);
        let mut text = vec![0; bytes];
        std::fs::File::from(read).read_exact(&mut text).unwrap();
        assert_eq!(put(write.as_fd(), kind, b"again").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_socket_is_none_either() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let kind = Kind::of(nix::sys::stat::fstat(&ours).unwrap().st_mode);
        assert_eq!(kind, Kind::Socket);
        assert!(fill(ours.as_fd(), kind) > 0);
        drop(theirs);
        assert_eq!(put(ours.as_fd(), kind, b"again").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
