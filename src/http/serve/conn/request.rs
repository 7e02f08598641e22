//! One request: its head, its body and its answer in the making. It is with the loop until it is complete, then with an
//! app thread until it is answered; never with both. Its memory serves one request of its slot after the other.

use std::sync::Arc;
use std::time::Instant;

use crate::proto::framing::Framing;
use crate::proto::head::Head;
use crate::serve::base::address::{Local, Peer};
use crate::serve::base::buffers::InputBuffers;
use crate::serve::base::names::Token;
use crate::serve::base::settings::{ABANDONED_AFTER, BUFFER_IDLE_BYTES};
use crate::serve::io::socket::{self, HangUp};

use super::answer::Answer;
use super::body::RequestBody;
use super::rules::Rules;
use super::write_half::WriteHalf;

#[derive(Debug)]
pub struct Request {
    pub token: Token,
    pub write_half: Arc<WriteHalf>,
    pub peer: Peer,
    pub local: Arc<Local>,
    /// A PROXY header said that the client speaks TLS.
    pub secure: bool,
    /// Where in `bytes` what lies. Until the request is complete, where in the reader's.
    pub head: Head,
    /// The head as it came; none: the request is not complete.
    bytes: Vec<u8>,
    pub body: RequestBody,
    pub answer: Answer,
    /// The last answer's head was large, and others have its memory now.
    head_was_large: bool,
    /// What is to be told when the answer has ended; empty: nothing.
    pub record: Vec<u8>,
    /// A field that its answer has, unless the application sets it: `X-Request-Id: 4f1c`. Empty: none.
    pub id: Vec<u8>,
    /// When the request was complete.
    pub ready_at: Instant,
    /// It was complete before it came here, since then: at another worker, or in the kernel's queue.
    pub waits_since: Option<Instant>,
    /// Nobody is to begin with it later than this.
    pub begin_by: Option<Instant>,
    /// It came as a whole from another worker. It moves once, or it could be on its way for ever.
    pub moved: bool,
}

impl Request {
    pub fn new(token: Token, write_half: Arc<WriteHalf>, local: Arc<Local>, rules: &Rules, now: Instant) -> Request {
        Request {
            token,
            write_half,
            peer: Peer::Unix,
            local,
            secure: false,
            head: Head::default(),
            bytes: Vec::new(),
            body: RequestBody::new(rules),
            answer: Answer::default(),
            head_was_large: false,
            record: Vec::new(),
            id: Vec::new(),
            ready_at: now,
            waits_since: None,
            begin_by: None,
            moved: false,
        }
    }

    /// Another client takes the slot.
    pub fn open(&mut self, token: Token, peer: Peer, local: Arc<Local>) {
        self.token = token;
        self.peer = peer;
        self.local = local;
        self.secure = false;
        self.waits_since = None;
        self.moved = false;
    }

    pub fn complete(&mut self, head: Vec<u8>, inputs: &mut InputBuffers) {
        self.bytes = head;
        inputs.lend(self.answer.head.memory(), &mut self.head_was_large);
    }

    /// Head and body, as they were sent where `is_raw`.
    pub fn raw(&self) -> [&[u8]; 2] {
        [&self.bytes, self.body.memory()]
    }

    pub fn raw_bytes(&self) -> usize {
        self.bytes.len() + self.body.memory().len()
    }

    /// What was sent can be given back: the body was not decoded, and does not lie in a file.
    pub fn is_raw(&self) -> bool {
        self.body.file().is_none()
            && self.body.live().is_none()
            && match self.head.framing {
                Framing::None | Framing::Length(_) => true,
                Framing::Chunked => false,
            }
    }

    pub fn is_complete(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Nobody has begun with it, and it has waited for longer than it may.
    pub fn is_late(&self, now: Instant) -> bool {
        self.begin_by.is_some_and(|by| now > by)
    }

    /// Nobody has begun with it, and its client has gone.
    pub fn is_abandoned(&self, now: Instant) -> bool {
        let has_waited = || now.saturating_duration_since(self.ready_at) >= ABANDONED_AFTER;
        let is_gone = || socket::hang_up(self.write_half.fd()) == HangUp::Full;
        // Most are begun in the turn in which they came.
        self.write_half.is_gone() || (now != self.ready_at && has_waited() && is_gone())
    }

    /// It was answered, or nobody will. The buffer of its head, without bytes.
    pub fn end(&mut self) -> Vec<u8> {
        self.moved = false;
        self.id.clear();
        self.body.clear();
        self.answer.clear();
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        bytes
    }

    /// The connection is idle, or nobody has it: large memory is for those that are not.
    pub fn keep_large(&mut self, inputs: &mut InputBuffers) {
        debug_assert!(self.record.is_empty(), "it was told when the answer ended");
        inputs.keep_large(self.answer.head.memory(), &mut self.head_was_large);
        if self.record.capacity() > BUFFER_IDLE_BYTES {
            self.record = Vec::new();
        }
        self.body.keep_large(inputs);
    }

    #[cfg(test)]
    pub fn kept_bytes(&mut self) -> usize {
        self.bytes.capacity() + self.answer.head.memory().capacity() + self.body.kept_bytes()
    }

    pub fn method(&self) -> &[u8] {
        self.head.method(&self.bytes)
    }

    /// The request target as it was sent.
    pub fn target(&self) -> &[u8] {
        self.head.target(&self.bytes)
    }

    pub fn path(&self) -> &[u8] {
        self.head.path(&self.bytes)
    }

    pub fn query(&self) -> &[u8] {
        self.head.query(&self.bytes)
    }

    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.head.fields(&self.bytes)
    }
}
