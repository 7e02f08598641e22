//! What may move to another worker, and in which order. Decides only: no socket is touched here.
//!
//! | A connection is | Its worker drains or retires | otherwise |
//! |---|---|---|
//! | between requests, nothing read | moves at once | stays |
//! | in the middle of a head, or with further requests read | moves at once where the bytes fit | stays |
//! | complete, and no thread has begun it | is offered once, and else served here | stays |
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
