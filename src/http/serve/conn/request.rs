//! One request: its head, its body and its answer in the making. It is with the loop until it is complete, then with an
//! app thread until it is answered; never with both. Its memory serves one request of its slot after the other.

use std::sync::Arc;
use std::time::Instant;

use crate::proto::framing::Framing;
use crate::proto::head::Head;
use crate::serve::base::address::{Local, Peer};
use crate::serve::base::buffers::InputBuffers;
use crate::serve::base::names::Token;

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
    /// When the request was complete.
    pub ready_at: Instant,
    /// It was complete at another worker, since then.
    pub waits_since: Option<Instant>,
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
            ready_at: now,
            waits_since: None,
        }
    }

    /// Another client takes the slot.
    pub fn open(&mut self, token: Token, peer: Peer, local: Arc<Local>) {
        self.token = token;
        self.peer = peer;
        self.local = local;
        self.secure = false;
        self.waits_since = None;
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
            && match self.head.framing {
                Framing::None | Framing::Length(_) => true,
                Framing::Chunked => false,
            }
    }

    pub fn is_complete(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// It was answered, or nobody will. The buffer of its head, without bytes.
    pub fn end(&mut self) -> Vec<u8> {
        self.body.clear();
        self.answer.clear();
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        bytes
    }

    /// The connection is idle, or nobody has it: large memory is for those that are not.
    pub fn keep_large(&mut self, inputs: &mut InputBuffers) {
        inputs.keep_large(self.answer.head.memory(), &mut self.head_was_large);
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
