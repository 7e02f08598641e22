//! What the master's loop waits for: descriptors with the names of what they stand for, and which of them were not
//! read to their end. mio is edge-triggered and will not tell of those again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::supervisor::services::ServiceId;
use forkmaster_wire::message::{GenerationId, WorkerId};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Signals,
    Control,
    Chores,
    /// A listener of `[status] bind`.
    Status,
    Template(GenerationId),
    Worker(WorkerId),
    /// The pipe that faulthandler writes to.
    Stacks(WorkerId),
    /// What a command of a paused reload writes.
    Command(GenerationId),
    /// Where services say that they are ready.
    Readiness,
    /// What a service writes.
    Service(ServiceId),
    /// What a new binary of the master says of the state.
    NewBinary,
}

pub const SIGNALS: Token = Token(0);
pub const CONTROL: Token = Token(1);
pub const CHORES: Token = Token(2);

/// Tokens from here on are handed out and never used again.
const FIRST_FREE_TOKEN: usize = 3;

/// Ready descriptors that one wait can return; the others come with the next.
const EVENTS_MAX: usize = 256;

pub struct Sources {
    poll: Poll,
    events: Events,
    watched: BTreeMap<Token, Source>,
    unread: BTreeSet<Token>,
    next_token: usize,
}

impl Sources {
    pub fn new() -> io::Result<Sources> {
        let mut watched = BTreeMap::new();
        watched.extend([(SIGNALS, Source::Signals), (CONTROL, Source::Control), (CHORES, Source::Chores)]);
        Ok(Sources {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_MAX),
            watched,
            unread: BTreeSet::new(),
            next_token: FIRST_FREE_TOKEN,
        })
    }

    /// For those who register themselves.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// A token that was never used before.
    pub fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token - 1)
    }

    /// Watches a descriptor until `remove`.
    pub fn add(&mut self, fd: &impl AsRawFd, source: Source) -> io::Result<Token> {
        let token = self.token();
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        self.watched.insert(token, source);
        Ok(token)
    }

    /// Watches it no longer. False: it was not watched any more.
    pub fn remove(&mut self, token: Token, fd: &impl AsRawFd) -> bool {
        self.unread.remove(&token);
        if self.watched.remove(&token).is_none() {
            return false;
        }
        // It was registered once, and is deregistered once.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
        true
    }

    pub fn is_watched(&self, token: Token) -> bool {
        self.watched.contains_key(&token)
    }

    /// None: a control client's, and the control socket knows whose. Or that of a process that was closed since.
    pub fn source(&self, token: Token) -> Option<Source> {
        self.watched.get(&token).copied()
    }

    /// There is more to read than one pass may take.
    pub fn mark_unread(&mut self, token: Token) {
        self.unread.insert(token);
    }

    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Waits and returns the tokens that are to be looked at, in the order in which they were handed out.
    pub fn wait(&mut self, at_most: Duration) -> BTreeSet<Token> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(at_most)) {
            if error.kind() != io::ErrorKind::Interrupted {
                // EBADF or ENOMEM: nothing that waiting here would mend, and nothing that ends a service.
                log::error!("epoll_wait: {error}");
            }
        }
        let mut tokens = std::mem::take(&mut self.unread);
        tokens.extend(self.events.iter().map(|event| event.token()));
        tokens
    }
}
