//! What may move to another worker, and in which order. Decides only: no socket is touched here.
//!
//! | A connection is | Its worker drains or retires | otherwise |
//! |---|---|---|
//! | between requests, nothing read | moves at once | stays |
//! | in the middle of a head, or with further requests read | moves at once where the bytes fit | stays |
//! | complete, and no thread has begun it | is offered once, and else served here | the same where no thread is free for it |
//! | in the middle of a body, in the application, or with an answer that is not all sent | stays until it is answered | stays |
//! | from an address that is given up | stays, and is told to close | stays |

use std::collections::VecDeque;

use crate::serve::base::names::Token;
use crate::serve::base::settings::TRAVELLING_BYTES_MAX;

/// A connection that waits for something to read, as far as moving it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Bytes that were read and not used.
    pub unused: usize,
    /// A body is awaited, of which a part may have been decoded or written to a file.
    pub in_body: bool,
    /// The address where it came in is given up: no other worker knows it.
    pub is_last: bool,
}

impl Standing {
    pub fn may_move(self) -> bool {
        !self.in_body && !self.is_last && self.unused <= TRAVELLING_BYTES_MAX
    }
}

/// A whole request that no thread has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Head, body, and what came after them.
    pub bytes: usize,
    /// The body is as it was sent: not chunked, and not in a file.
    pub is_raw: bool,
    pub is_last: bool,
}

impl Whole {
    pub fn may_move(self) -> bool {
        self.is_raw && !self.is_last && self.bytes <= TRAVELLING_BYTES_MAX
    }
}

/// Where a whole request stands that no thread has begun.
#[derive(Clone, Copy, Debug)]
pub struct InLine {
    pub threads: u64,
    /// Requests that are in the application, or before this one in the line for a thread.
    pub before: u64,
    /// So many may lie in the queue at a time: there are no more threads that could take them, and what lies there is nobody's
    /// to count or to refuse. 0: there are no other workers.
    pub lying_max: usize,
}

impl InLine {
    /// While an app thread runs the loop it is free for the next request itself. So this is about the time when the monitor
    /// runs it, and a fast application, whose bursts are over before a connection could move, moves none.
    pub fn would_wait(self) -> bool {
        self.lying_max > 0 && self.before >= self.threads
    }

    /// Whether somebody would take it at once. Where all workers are busy a request stays: a thread that has its next
    /// request at hand need not wait until the loop has fetched one.
    pub fn has_taker(self, free_siblings: usize, lying: impl FnOnce() -> usize) -> bool {
        free_siblings > 0 && lying() < self.lying_max.min(free_siblings)
    }
}

/// Connections that have left the epoll set and wait for room in the queue.
#[derive(Debug, Default)]
pub struct Line {
    /// Somebody waits for an answer to these.
    begun: VecDeque<Token>,
    idle: VecDeque<Token>,
}

impl Line {
    pub fn push(&mut self, token: Token, standing: Standing) {
        if standing.unused > 0 {
            self.begun.push_back(token);
        } else {
            self.idle.push_back(token);
        }
    }

    /// Whose turn it is.
    pub fn first(&self) -> Option<Token> {
        self.begun.front().or_else(|| self.idle.front()).copied()
    }

    /// It was sent, or it is gone.
    pub fn pop(&mut self) -> Option<Token> {
        self.begun.pop_front().or_else(|| self.idle.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Standing = Standing { unused: 0, in_body: false, is_last: false };

    #[test]
    fn what_cannot_be_given_back_as_bytes_stays() {
        assert!(IDLE.may_move());
        assert!(Standing { unused: TRAVELLING_BYTES_MAX, ..IDLE }.may_move());
        assert!(!Standing { unused: TRAVELLING_BYTES_MAX + 1, ..IDLE }.may_move());
        assert!(!Standing { in_body: true, ..IDLE }.may_move());
        assert!(!Standing { is_last: true, ..IDLE }.may_move());
        let whole = Whole { bytes: TRAVELLING_BYTES_MAX, is_raw: true, is_last: false };
        assert!(whole.may_move());
        assert!(!Whole { bytes: whole.bytes + 1, ..whole }.may_move());
        assert!(!Whole { is_raw: false, ..whole }.may_move() && !Whole { is_last: true, ..whole }.may_move());
    }

    #[test]
    fn a_request_is_shared_where_it_would_wait() {
        let line = InLine { threads: 2, before: 2, lying_max: 4 };
        assert!(line.would_wait() && line.has_taker(9, || 3) && !line.has_taker(9, || 4));
        assert!(line.has_taker(2, || 1) && !line.has_taker(2, || 2) && !line.has_taker(0, || 0));
        assert!(!InLine { before: 1, ..line }.would_wait());
        assert!(!InLine { lying_max: 0, ..line }.would_wait());
    }

    #[test]
    fn those_who_wait_for_an_answer_go_first_and_else_the_first_come() {
        let token = |index| Token { index, generation: 0 };
        let mut line = Line::default();
        let begun = Standing { unused: 1, ..IDLE };
        for (index, standing) in [(0, IDLE), (1, begun), (2, IDLE), (3, begun)] {
            line.push(token(index), standing);
        }
        let mut order = Vec::new();
        while let Some(first) = line.first() {
            assert_eq!(line.pop(), Some(first));
            order.push(first.index);
        }
        assert_eq!(order, [1, 3, 0, 2]);
    }
}
