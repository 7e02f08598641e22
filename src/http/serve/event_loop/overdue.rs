//! Answers in place of the application, for requests that it does not get done in time: 504. No Python is needed for that.
//! For those that still wait for a thread see `shedding`.
//!
//! The app thread keeps its request and may come back with it at any time, so the connection stays in its slot until then, or
//! until the process ends. Whatever the thread writes is dropped (`WriteHalf::claim`).

use std::sync::Arc;

use crate::proto::refusal;
use crate::serve::base::names::Token;
use crate::serve::base::observers::{Ending, How};
use crate::serve::base::settings::READ_BODY_BYTES;
use crate::serve::conn::answer::Answer;
use crate::serve::conn::answering::split_id;
use crate::serve::io::epoll::Interest;
use crate::serve::io::socket;

use super::EventLoop;

impl EventLoop {
    /// A request has been with the application for too long.
    #[cold]
    pub(super) fn answer_overdue(&mut self, number: u64) {
        let Some(token) = self.table.with_request(number) else { return };
        let slot = self.table.slot(token.index);
        let (write_half, asked) = (Arc::clone(&slot.write_half), slot.asked);
        let took = self.now.saturating_duration_since(slot.ready_at);
        let (mut record, mut id) = (Vec::new(), Vec::new());
        // First: once it is ours, the app thread may go on to its next request, of which this must not be said.
        let is_there = self.metrics.describe(number, &mut record, &mut id);
        if !is_there || write_half.is_gone() || !write_half.claim_for_loop() {
            return;
        }
        self.timers.clear(token.index);
        let mut answer = Answer::default();
        let body = answer.refuse(refusal::OVERDUE.status, refusal::OVERDUE.reason, asked, split_id(&id));
        let (how, body_bytes) = match write_half.answer(&[answer.head.bytes(), body.as_bytes()]) {
            true => (How::TimedOut, body.len() as u64),
            false => (How::ClientLeft, 0),
        };
        self.metrics.overtaken(number, &mut record, Ending { how, took, body_bytes });
        // A connection of one request is often not watched.
        self.register(token, Interest::Read);
        self.drop_after_answer(token);
    }

    /// What a client still sends that was answered so is read and dropped, as in a lingering close: with unread bytes the
    /// end of this process would be a reset, which could destroy the answer (RFC 9112 section 9.6).
    #[cold]
    pub(super) fn drop_after_answer(&mut self, token: Token) {
        let Some(slot) = self.table.current(token) else { return };
        if !slot.write_half.is_answered() {
            return;
        }
        let fd = slot.write_half.fd();
        self.scratch.reserve(READ_BODY_BYTES);
        let whole = self.share();
        let mut share = whole;
        while share > 0 {
            match socket::discard(fd, self.scratch.spare_capacity_mut()) {
                Ok(length) if length > 0 => share = share.saturating_sub(length),
                // It has closed, or sends nothing at the moment.
                Ok(_) | Err(_) => break,
            }
        }
        self.spend(whole - share);
        if share == 0 {
            self.run_again(token);
        }
    }
}
