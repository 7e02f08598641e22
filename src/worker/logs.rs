//! The descriptors of the logs, which the master has opened. When it opens them again (USR1), the new ones take the
//! places of the old: whoever writes has only a number and notices nothing, `faulthandler` included.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::logger;

/// Open for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Logs {
    /// None: stderr, until the master has sent another.
    error: Option<RawFd>,
    access: Option<RawFd>,
}

impl Logs {
    /// The descriptors that came with `Boot`.
    pub fn new(error: Option<OwnedFd>, access: Option<OwnedFd>) -> Logs {
        let logs = Logs { error: error.map(IntoRawFd::into_raw_fd), access: access.map(IntoRawFd::into_raw_fd) };
        if let Some(error) = logs.error {
            logger::write_to(error);
        }
        logs
    }

    pub fn access(&self) -> Option<RawFd> {
        self.access
    }

    /// The descriptors that came with `Logs`.
    pub fn replace(&self, fds: &[OwnedFd]) {
        for (fd, place) in fds.iter().zip([self.error, self.access]) {
            if let Some(place) = place {
                replace(fd, place);
            }
        }
    }
}

/// Puts a new log in the place of an old one.
pub fn replace(fd: &OwnedFd, place: RawFd) {
    loop {
        // SAFETY: replaces a descriptor of ours, whose number stays with those who write to it.
        let outcome = unsafe { libc::dup3(fd.as_raw_fd(), place, libc::O_CLOEXEC) };
        match Errno::result(outcome) {
            Ok(_) => return,
            // dup(2): a race with open() in another thread.
            Err(Errno::EBUSY | Errno::EINTR) => {}
            Err(error) => return log::error!("the log cannot be changed for a new one: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn whoever_writes_to_a_number_writes_to_the_new_log() {
        let pipe = || nix::unistd::pipe().unwrap();
        let ((old, old_end), (new, new_end), (_access, access_end)) = (pipe(), pipe(), pipe());
        let logs = Logs::new(Some(old_end), Some(access_end.try_clone().unwrap()));
        logger::write(b"old");
        logs.replace(&[new_end, access_end]);
        logger::write(b"new");
        logger::write_to(libc::STDERR_FILENO);
        for number in [logs.error, logs.access].into_iter().flatten() {
            nix::unistd::close(number).unwrap();
        }
        for (reading, expected) in [(old, "old"), (new, "new")] {
            let mut text = String::new();
            std::fs::File::from(reading).read_to_string(&mut text).unwrap();
            // Other tests of this process may log meanwhile.
            assert!(text.contains(expected), "{text}");
        }
        Logs::new(None, None).replace(&[]);
        assert!(logs.access().is_some());
    }
}
