//! What a template inherits across exec, and nothing else: every other file descriptor of the master is
//! CLOEXEC from birth. The numbers are whatever they are in the master; they are handed to the bootstrap as
//! one argument, and the bootstrap makes them CLOEXEC again at once, so that no subprocess of the application
//! gets them.

use std::fmt;
use std::os::fd::RawFd;

/// The Python source that the release's interpreter runs (`python -c BOOTSTRAP ARGUMENT`).
pub const BOOTSTRAP: &str = include_str!("bootstrap.py");

/// The file descriptors of a template, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The template's end of its SOCK_SEQPACKET pair with the master.
    pub channel: RawFd,
    /// The worker library: a sealed memfd (or a file, where loading from a memfd is forbidden).
    pub library: RawFd,
    /// The read end of the pipe whose end-of-file says that the master is gone.
    pub lifeline: RawFd,
}

impl Inherited {
    pub fn all(&self) -> [RawFd; 3] {
        [self.channel, self.library, self.lifeline]
    }
}

/// The bootstrap's argument: `channel=7,library=4,lifeline=5`.
impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel={},library={},lifeline={}", self.channel, self.library, self.lifeline)
    }
}
