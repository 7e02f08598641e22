//! Readiness as s6 and dinit hear it: one newline on a descriptor that the supervisor opened, when the first worker
//! serves (https://skarnet.org/software/s6/notifywhenup.html). It is written once and closed. A master that another binary
//! goes on as opens none: the number may be something else by then.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use nix::sys::stat::{fstat, SFlag};

pub struct NotifyFd {
    pipe: OwnedFd,
    number: u32,
}

impl NotifyFd {
    /// Only what was there before this process: everything that it opens itself closes on exec.
    pub fn open(number: u32) -> Result<NotifyFd, String> {
        let advice = "set it to the number that the supervisor was told, s6's notification-fd for one, or start the \
                      service without it";
        let refused = |what: &str| Err(format!("descriptor {number} {what}; {advice}"));
        // SAFETY: the number may be open or not. It is only asked about, by fcntl and fstat, which fail with EBADF.
        let asked = unsafe { BorrowedFd::borrow_raw(number as i32) };
        match fcntl(asked, FcntlArg::F_GETFD).map(FdFlag::from_bits_truncate) {
            Ok(flags) if !flags.contains(FdFlag::FD_CLOEXEC) => {}
            Ok(_) | Err(_) => return refused("was not passed to this process"),
        }
        let kind = fstat(asked).map(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT);
        if !kind.is_ok_and(|kind| [SFlag::S_IFIFO, SFlag::S_IFSOCK].contains(&kind)) {
            return refused("is not a pipe");
        }
        let flags = fcntl(asked, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).unwrap_or(OFlag::empty());
        if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return refused("is the reading end of a pipe");
        }
        // The master waits for nobody, and its children must not keep the pipe open.
        let made = fcntl(asked, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(asked, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)));
        if let Err(errno) = made {
            return refused(&format!("cannot be used ({})", errno.desc()));
        }
        // SAFETY: it is open, as the lines above show. It closes on exec from now on, so a second call does not get it.
        let pipe = unsafe { OwnedFd::from_raw_fd(number as i32) };
        Ok(NotifyFd { pipe, number })
    }

    pub fn tell(self) {
        let NotifyFd { pipe, number } = self;
        match nix::unistd::write(&pipe, b"\n") {
            Ok(_) => log::debug!("told the supervisor on descriptor {number}: ready"),
            // Nobody waits any more, and the service serves all the same.
            Err(errno) => {
                log::warn!("[server] notify_fd: nobody hears of readiness on descriptor {number}: {}", errno.desc())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    use nix::unistd::pipe2;

    use super::*;

    /// As a supervisor leaves it open over exec.
    fn left_open(descriptor: impl AsFd + IntoRawFd) -> u32 {
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        descriptor.into_raw_fd() as u32
    }

    #[test]
    fn one_newline_is_written_and_the_pipe_is_closed() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        NotifyFd::open(left_open(writer)).unwrap().tell();
        let mut heard = String::new();
        File::from(reader).read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "\n");
    }

    #[test]
    fn what_was_not_passed_is_not_written_to() {
        let refused = |number: u32| NotifyFd::open(number).err().unwrap_or_default();
        assert!(refused(1_000_000).starts_with("descriptor 1000000 was not passed to this process; "));
        // Our own close on exec.
        let ours = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(refused(ours.as_raw_fd() as u32).contains("was not passed"));
        let (reader, _writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        assert!(refused(left_open(reader)).contains("is the reading end"));
        assert!(refused(left_open(tempfile::tempfile().unwrap())).contains("is not a pipe"));
    }

    #[test]
    fn a_supervisor_that_is_gone_costs_a_line() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let waiting = NotifyFd::open(left_open(writer)).unwrap();
        drop(reader);
        waiting.tell();
    }
}
