//! What may wait, and how long: reading the configuration (NSS, NFS), opening logs and pid files. The loop gives it
//! away and goes on; the start waits for it, and for a signal to stop.

mod pool;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::signals::Signals;

use pool::{Pool, TooLate};

/// A directory service that does not answer in this time will not do so in another (nss_ldap's own limit is 30 s).
pub const CONFIGURATION_WITHIN: Duration = Duration::from_secs(30);

pub const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// Why the start goes on without a result.
pub enum NotDone {
    /// TERM, INT or QUIT came first.
    Stopped,
    /// A sentence.
    TooLate(String),
    NoThread(io::Error),
}

/// Has something done before there is a loop, and waits for it, and for a signal to stop.
pub fn at_start<D: Send + 'static>(
    signals: &mut Signals,
    what: &'static str,
    within: Duration,
    work: impl FnOnce() -> D + Send + 'static,
) -> Result<D, NotDone> {
    let mut pool = Pool::new().map_err(NotDone::NoThread)?;
    pool.give(what, within, Instant::now(), work).map_err(NotDone::NoThread)?;
    loop {
        match pool.done(Instant::now()) {
            Some((_, Ok(done))) => return Ok(done),
            Some((_, Err(TooLate(sentence)))) => return Err(NotDone::TooLate(sentence)),
            None if signals.stop_is_asked() => return Err(NotDone::Stopped),
            None => {}
        }
        let left = pool.next_deadline().map(|by| by.saturating_duration_since(Instant::now()));
        // Rounded up, so that it does not wake a moment too early again and again.
        let timeout = left.and_then(|left| PollTimeout::try_from(left + Duration::from_millis(1)).ok());
        let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        // Whatever it says, all of it is looked at again.
        let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX));
    }
}
