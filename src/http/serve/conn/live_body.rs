//! A body that the application reads as it comes. Who reads it reads from the socket: there is no copy in between, and where
//! nobody reads, the client is held up by TCP. The loop has nothing to do with it until the request is answered, and takes
//! over what was read beyond the body's end.
//!
//! A thread that waits here waits for a client. So the client must keep a pace while it does; the time in which nobody waits
//! does not count.

use std::fmt;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::proto::chunked::{Decoder, Piece};
use crate::proto::refusal::{self, Refusal};
use crate::serve::base::settings::READ_BODY_BYTES;
use crate::serve::io::socket;

use super::write_half::WriteHalf;

#[derive(Debug)]
pub struct LiveBody {
    /// Of the connection, whose socket stays open for as long as its request is not back with the loop.
    write_half: Arc<WriteHalf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Of the body, and not yet taken from `at` on.
    ahead: Vec<u8>,
    at: usize,
    /// As it was received, of a chunked body; behind the body's end it belongs to the next request.
    input: Vec<u8>,
    /// Bytes of the body that have come.
    came: u64,
    bytes_max: u64,
    /// The thread has waited for so long in this window, and so much had come when it began.
    waited: Duration,
    came_before: u64,
    /// In all windows.
    waited_in_all: Duration,
}

/// How the rest of a body comes.
#[derive(Debug)]
pub enum Rest {
    Length(u64),
    Chunked(Decoder),
}

#[derive(Debug)]
enum Phase {
    Coming(Rest),
    Complete,
    Failed(Failure),
}

/// Why there is no more to read, although the body is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It came too slowly, or is no body.
    Refused(Refusal),
    ClientLeft,
    /// The request is over.
    Over,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(refusal) => formatter.write_str(refusal.reason),
            Failure::ClientLeft => formatter.write_str("the client has left in the middle of the request"),
            Failure::Over => formatter.write_str("this request is over"),
        }
    }
}

/// For how long threads have waited for a client so far.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    /// Since it was last judged.
    pub in_window: Duration,
    pub in_all: Duration,
}

/// Of a thread with a client: in so much waiting, so much must come.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub window: Duration,
    pub bytes_per_s_min: u64,
}

/// What a look at the body came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Bytes(usize),
    /// The body is complete.
    End,
    /// It goes on, and nothing is there.
    Nothing,
}

/// What became of a live body.
#[derive(Debug)]
pub struct Ended {
    /// Of the next request; None: the body was not read to its end.
    pub next: Option<Vec<u8>>,
    pub failure: Option<Failure>,
    /// For how long a thread has waited for it.
    pub waited: Duration,
}

impl LiveBody {
    /// `begun`: what has come and lies in memory. `input`: what was received and not looked at.
    pub fn new(write_half: Arc<WriteHalf>, rest: Rest, begun: Vec<u8>, input: Vec<u8>, bytes_max: u64) -> LiveBody {
        let came = begun.len() as u64;
        let state = State {
            phase: Phase::Coming(rest),
            ahead: begun,
            at: 0,
            input,
            came,
            bytes_max,
            waited: Duration::ZERO,
            came_before: came,
            waited_in_all: Duration::ZERO,
        };
        LiveBody { write_half, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is there, up to the place's end. Never waits.
    pub fn read(&self, place: &mut [u8]) -> Result<Came, Failure> {
        let mut state = self.lock();
        match state.take_ahead(place) {
            0 if place.is_empty() => Ok(Came::Bytes(0)),
            // The loop has answered in place of the application, and drops what still comes.
            0 if self.write_half.is_answered() => Err(Failure::Over),
            0 => state.receive(self.write_half.fd(), place),
            taken => Ok(Came::Bytes(taken)),
        }
    }

    /// Waits for the client, for as long as it may take. The lock is not held meanwhile: whoever ends the request need not wait.
    /// `patience` is asked before and after, since somebody else may have come. It is told for how long threads have waited.
    pub fn wait(&self, patience: impl Fn(Waited) -> Patience) {
        let before = {
            let state = self.lock();
            Waited { in_window: state.waited, in_all: state.waited_in_all }
        };
        let left = patience(before).window.saturating_sub(before.in_window);
        let begun = Instant::now();
        socket::wait_readable(self.write_half.fd(), left);
        let took = begun.elapsed();
        let patience = patience(Waited { in_window: before.in_window + took, in_all: before.in_all + took });
        self.lock().judge(took, patience);
    }

    /// As far as is known without a system call.
    pub fn is_complete(&self) -> bool {
        matches!(self.lock().phase, Phase::Complete)
    }

    pub fn failure(&self) -> Option<Failure> {
        match self.lock().phase {
            Phase::Failed(failure) => Some(failure),
            Phase::Coming(_) | Phase::Complete => None,
        }
    }

    /// The request is over, and whoever still has the body reads no more. A little that was not read is read now, so that
    /// the connection can go on.
    pub fn end(&self) -> Ended {
        let mut state = self.lock();
        state.finish(self.write_half.fd());
        let (next, failure) = match std::mem::replace(&mut state.phase, Phase::Failed(Failure::Over)) {
            Phase::Complete => (Some(std::mem::take(&mut state.input)), None),
            Phase::Coming(_) => (None, None),
            Phase::Failed(failure) => (None, Some(failure)),
        };
        state.ahead = Vec::new();
        Ended { next, failure, waited: state.waited_in_all }
    }
}

impl State {
    fn take_ahead(&mut self, place: &mut [u8]) -> usize {
        let there = &self.ahead[self.at..];
        let taken = there.len().min(place.len());
        place[..taken].copy_from_slice(&there[..taken]);
        self.at += taken;
        if self.at == self.ahead.len() && self.at > 0 {
            self.at = 0;
            // Half a megabyte that came before is not needed again.
            self.ahead = match self.ahead.capacity() > READ_BODY_BYTES {
                true => Vec::new(),
                false => std::mem::take(&mut self.ahead),
            };
            self.ahead.clear();
        }
        taken
    }

    fn receive(&mut self, fd: RawFd, place: &mut [u8]) -> Result<Came, Failure> {
        loop {
            let outcome = match &mut self.phase {
                Phase::Complete => return Ok(Came::End),
                Phase::Failed(failure) => return Err(*failure),
                Phase::Coming(Rest::Length(left)) => {
                    let room = usize::try_from(*left).map_or(place.len(), |left| left.min(place.len()));
                    let received = socket::receive_into(fd, &mut place[..room]);
                    if let Ok(bytes @ 1..) = received {
                        self.came += bytes as u64;
                        *left -= bytes as u64;
                        if *left == 0 {
                            self.phase = Phase::Complete;
                        }
                        return Ok(Came::Bytes(bytes));
                    }
                    received
                }
                Phase::Coming(Rest::Chunked(_)) => {
                    self.decode();
                    match self.take_ahead(place) {
                        0 => {}
                        taken => return Ok(Came::Bytes(taken)),
                    }
                    if !matches!(self.phase, Phase::Coming(_)) {
                        continue;
                    }
                    self.input.reserve(READ_BODY_BYTES);
                    socket::receive(fd, &mut self.input, READ_BODY_BYTES)
                }
            };
            match outcome {
                Ok(0) => self.phase = Phase::Failed(Failure::Refused(refusal::UNFINISHED)),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Came::Nothing),
                Err(_) => self.phase = Phase::Failed(Failure::ClientLeft),
            }
        }
    }

    /// What was received of a chunked body, as far as it is complete.
    fn decode(&mut self) {
        let Phase::Coming(Rest::Chunked(decoder)) = &mut self.phase else { return };
        let mut rest = &self.input[..];
        let phase = loop {
            match decoder.next(&mut rest) {
                Ok(Piece::Data(data)) => {
                    self.came += data.len() as u64;
                    if self.came > self.bytes_max {
                        break Some(Phase::Failed(Failure::Refused(refusal::BODY_LONG)));
                    }
                    self.ahead.extend_from_slice(data);
                }
                Ok(Piece::More) => break None,
                Ok(Piece::End) => break Some(Phase::Complete),
                Err(refusal) => break Some(Phase::Failed(Failure::Refused(refusal))),
            }
        };
        let used = self.input.len() - rest.len();
        self.input.drain(..used);
        if let Some(phase) = phase {
            self.phase = phase;
        }
    }

    fn finish(&mut self, fd: RawFd) {
        let mut swallowed = [0; 4096];
        for _ in 0..READ_BODY_BYTES / swallowed.len() {
            self.at = 0;
            self.ahead.clear();
            if !matches!(self.receive(fd, &mut swallowed), Ok(Came::Bytes(_))) {
                return;
            }
        }
    }

    /// A thread has waited for so long.
    fn judge(&mut self, waited: Duration, patience: Patience) {
        self.waited += waited;
        self.waited_in_all += waited;
        if self.waited < patience.window {
            return;
        }
        let window_ms = u64::try_from(patience.window.as_millis()).unwrap_or(u64::MAX);
        let wanted = patience.bytes_per_s_min.saturating_mul(window_ms) / 1000;
        if self.came - self.came_before < wanted {
            if let Phase::Coming(_) = self.phase {
                self.phase = Phase::Failed(Failure::Refused(refusal::BODY_SLOW));
            }
        }
        self.waited = Duration::ZERO;
        self.came_before = self.came;
    }
}
