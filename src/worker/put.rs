//! A log by its number, which stays while USR1 puts another file in its place: what it is is asked each time. Nothing is
//! opened or closed here.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use forkmaster_wire::put::Kind;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::stat::fstat;

/// Writes what fits now; `WouldBlock` where nothing does. A regular file or a terminal always takes all.
pub fn put(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the log's number stays open for the life of the process.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    forkmaster_wire::put::put(log, Kind::of(fstat(log)?.st_mode), bytes)
}

/// Waits until the log takes something again, or for as long as that.
pub fn wait_for_room(fd: RawFd, at_most: Option<Duration>) {
    // SAFETY: as in `put`.
    let log = unsafe { BorrowedFd::borrow_raw(fd) };
    let limit = at_most.and_then(|limit| PollTimeout::try_from(limit).ok()).unwrap_or(PollTimeout::NONE);
    // An error shows at the next write.
    let _ = poll(&mut [PollFd::new(log, PollFlags::POLLOUT)], limit);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn another_file_in_its_place_is_written_to_as_what_it_is() {
        let (_reading, writing) = nix::unistd::pipe().unwrap();
        let log = writing.as_raw_fd();
        while put(log, &[b'x'; 1000]).is_ok() {}
        wait_for_room(log, Some(Duration::from_millis(1)));
        let file = std::fs::File::options().write(true).open("/dev/null").unwrap();
        // SAFETY: both are open; the number is that of `writing`, which owns what it stands for from now on.
        assert_eq!(unsafe { libc::dup3(file.as_raw_fd(), log, libc::O_CLOEXEC) }, log);
        assert_eq!(put(log, &[b'x'; 100_000]).unwrap(), 100_000);
    }
}
