//! A body that the application reads as it comes, as the application's side has it: to be read and waited for without the
//! interpreter's lock. It may live longer than its request, and says then that this is over.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::proto::refusal;
use crate::serve::base::settings::LIVE_WINDOW_MISTRUSTED;
use crate::serve::conn::live_body::{Came, Failure, LiveBody};
use crate::serve::event_loop::EventLoop;

use super::leader::Leader;

#[derive(Clone)]
pub struct LiveInput {
    leader: Arc<Leader<EventLoop>>,
    body: Arc<LiveBody>,
}

/// What a look at a live body came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    /// The body is complete.
    End,
    /// It goes on, and nothing is there: `wait`.
    Nothing,
}

impl fmt::Debug for LiveInput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.body.fmt(formatter)
    }
}

impl LiveInput {
    pub(super) fn new(leader: &Arc<Leader<EventLoop>>, body: &Arc<LiveBody>) -> LiveInput {
        LiveInput { leader: Arc::clone(leader), body: Arc::clone(body) }
    }

    /// Takes what is there, up to the place's end. Never waits.
    pub fn read(&self, place: &mut [u8]) -> io::Result<Read> {
        // The number of its socket may be another's in a forked child.
        if self.leader.doors().is_forgotten() {
            return Err(error_of(Failure::Over));
        }
        match self.body.read(place) {
            Ok(Came::Bytes(bytes)) => Ok(Read::Bytes(bytes)),
            Ok(Came::End) => Ok(Read::End),
            Ok(Came::Nothing) => Ok(Read::Nothing),
            Err(failure) => Err(error_of(failure)),
        }
    }

    /// Waits until there may be more, or a signal comes.
    pub fn wait(&self) {
        let shared = self.leader.doors();
        if shared.is_forgotten() {
            return;
        }
        let threads = shared.rules.settings.threads;
        self.body.wait(|waited| {
            // A client that pauses for a moment costs no look at the listeners.
            let wanted = match waited.in_window < LIVE_WINDOW_MISTRUSTED {
                true => shared.may_be_wanted(),
                false => shared.is_wanted(),
            };
            shared.streams().patience(threads, wanted, waited.in_all, Instant::now())
        });
    }
}

fn error_of(failure: Failure) -> io::Error {
    let kind = match failure {
        Failure::Refused(refusal::BODY_SLOW) => io::ErrorKind::TimedOut,
        Failure::Refused(_) => io::ErrorKind::InvalidData,
        Failure::ClientLeft => io::ErrorKind::ConnectionReset,
        Failure::Over => io::ErrorKind::Other,
    };
    io::Error::new(kind, failure.to_string())
}
