//! Answers that go out one right after the other. Where more requests of a batch of events are waiting, a complete small
//! answer waits for theirs, for a moment: each send to a client that sleeps wakes it, which on the same machine costs
//! more than the send does, and more than a small request; a few sends in a row wake it once, with warm caches.
//!
//! The answer lies in its connection's queue (`write_queue`), where whoever runs the loop finds it: no answer waits longer
//! than until the monitor looks, whatever the application does meanwhile (`run/monitor.rs`). Whether it pays at all is
//! decided by what requests take (`run/app_times.rs`).

use std::collections::VecDeque;
use std::time::Instant;

use crate::serve::base::names::Token;
use crate::serve::base::settings::{FLUSH_ANSWERS_MAX, FLUSH_DELAY_MAX};

#[derive(Debug)]
pub struct FlushBatch {
    tokens: VecDeque<Token>,
    /// When the first one joined.
    since: Instant,
}

impl FlushBatch {
    pub fn new(now: Instant) -> FlushBatch {
        FlushBatch { tokens: VecDeque::with_capacity(FLUSH_ANSWERS_MAX), since: now }
    }

    pub fn is_full(&self) -> bool {
        self.tokens.len() == FLUSH_ANSWERS_MAX
    }

    /// From now on this connection's queue is sent with the batch, if there is anything in it.
    pub fn push(&mut self, token: Token, now: Instant) {
        if self.tokens.is_empty() {
            self.since = now;
        }
        self.tokens.push_back(token);
    }

    pub fn has(&self, token: Token) -> bool {
        self.tokens.contains(&token)
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.is_full() || now.saturating_duration_since(self.since) >= FLUSH_DELAY_MAX
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn next(&mut self) -> Option<Token> {
        self.tokens.pop_front()
    }
}
