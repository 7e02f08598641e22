//! How bytes get into a log without waiting. O_NONBLOCK is never changed: the flag belongs to the open file description,
//! which others hold too (fcntl(2)).

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{send, MsgFlags};
use nix::sys::stat::fstat;

/// A pipe that poll(2) calls writable takes so much without waiting (pipe(7), PIPE_BUF).
const PIPE_BYTES_AT_ONCE: usize = 4096;

/// Writes what fits now; `WouldBlock` where nothing does. A regular file or a terminal always takes all.
pub fn put(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the log's number stays open for the life of the process.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    match fstat(log)?.st_mode & libc::S_IFMT {
        libc::S_IFIFO => put_into_pipe(log, fd, bytes),
        libc::S_IFSOCK => Ok(send(fd, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?),
        _ => Ok(nix::unistd::write(log, bytes)?),
    }
}

/// Waits until the log takes something again, or for as long as that.
pub fn wait_for_room(fd: RawFd, at_most: Option<Duration>) {
    // SAFETY: as in `put`.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    let limit = at_most.and_then(|limit| PollTimeout::try_from(limit).ok()).unwrap_or(PollTimeout::NONE);
    // An error shows at the next write.
    let _ = poll(&mut [PollFd::new(log, PollFlags::POLLOUT)], limit);
}

fn put_into_pipe(pipe: BorrowedFd<'_>, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // An offset of -1 means write(2) (pwritev2(2)).
    // SAFETY: the one iovec is of a living slice, which is only read.
    let written = unsafe { libc::pwritev2(fd, &part, 1, -1, libc::RWF_NOWAIT) };
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
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn fill(fd: RawFd) -> usize {
        let mut bytes = 0;
        loop {
            match put(fd, &[b'x'; 1000]) {
                Ok(written) => bytes += written,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    wait_for_room(fd, Some(Duration::from_millis(1)));
                    return bytes;
                }
            }
        }
    }

    #[test]
    fn full_pipes_and_sockets_are_no_reason_to_wait() {
        let (_reading, writing) = nix::unistd::pipe().unwrap();
        assert!(fill(writing.as_raw_fd()) >= PIPE_BYTES_AT_ONCE);
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(fill(ours.as_raw_fd()) > 0);
        drop(theirs);
        assert_eq!(put(ours.as_raw_fd(), b"again").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
