//! The reading half of a connection: bytes from the socket become a complete request (`Request`), which then leaves for an
//! app thread. The reader stays with the loop, and holds what came after the request.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use crate::proto::chunked::{Decoder, Piece};
use crate::proto::framing::Framing;
use crate::proto::head::{Limits, Scanner};
use crate::proto::proxy::{self, Parsed, ProxyVersion};
use crate::proto::refusal::{self, Refusal};
use crate::serve::base::address::{Local, Peer};
use crate::serve::base::buffers::InputBuffers;
use crate::serve::base::names::{Blocking, TimerKind};
use crate::serve::base::pace::Window;
use crate::serve::base::refused::ReadSoFar;
use crate::serve::base::settings::{BUFFER_KEPT_BYTES, READ_BODY_BYTES, READ_HEAD_BYTES};
use crate::serve::io::socket;

use super::live_body::Rest;
use super::request::Request;
use super::rules::Rules;

#[derive(Debug)]
pub struct Reader {
    /// The head of a request that is not complete at the front, then what has not been looked at.
    input: Vec<u8>,
    /// Bytes received on this connection.
    received: u64,
    /// What comes while a body is awaited.
    pub coming: Window,
    head_end: usize,
    phase: ReadPhase,
    scanner: Scanner,
    /// Of the head that had begun at another worker. None: our own.
    limits: Option<Limits>,
    /// The socket may hold bytes: an edge was seen, and no read came short since.
    may_hold: bool,
    /// FIN, HUP, ERR or an urgent byte was seen: only a read of nothing says that all was read.
    read_on: bool,
}

#[derive(Debug)]
enum ReadPhase {
    /// Before the first request of a connection from a proxy.
    Proxy {
        version: ProxyVersion,
        trusted: bool,
    },
    Head,
    Length {
        left: u64,
    },
    Chunked(Decoder),
    /// All of the body has come, and not all of it is in its file.
    LastBatch,
    Complete,
}

/// How a round of reading is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Where it is forbidden a body is left for later, where it did not come with its head.
    pub blocking: Blocking,
    /// So many bytes at most, more or less.
    pub share: usize,
    /// A body that is still to come is waited for.
    pub takes_body: bool,
}

/// What a round of reading came to.
#[derive(Debug)]
pub enum Received {
    /// The socket is empty; this timer runs until more comes.
    Waiting(TimerKind),
    /// As `Waiting`, but this turn's share was used up before the socket was empty.
    Again(TimerKind),
    Complete,
    /// So much of the body has come that it is to be written to its file (`RequestBody::take_batch`).
    Batch,
    /// The body does not fit into memory: it goes live (`go_live`), or to a file (`RequestBody::go_to_file`).
    Beyond,
    /// The head is there, and a body would come that nobody waits for (`Round::takes_body`).
    Unwanted,
    Refused(Refusal),
    /// The client sends no more, and nothing of a request has come.
    Ended,
    /// The connection broke.
    Lost {
        in_the_middle: bool,
    },
}

impl Reader {
    pub fn new(now: Instant) -> Reader {
        Reader {
            input: Vec::new(),
            received: 0,
            coming: Window::begin(now, 0),
            head_end: 0,
            phase: ReadPhase::Head,
            scanner: Scanner::default(),
            limits: None,
            may_hold: false,
            read_on: false,
        }
    }

    /// Another client takes the slot. `proxy`: the version of the PROXY header that comes first, and whether its sender is
    /// believed.
    pub fn open(&mut self, proxy: Option<(ProxyVersion, bool)>) {
        self.received = 0;
        self.may_hold = true;
        self.read_on = false;
        self.begin();
        if let Some((version, trusted)) = proxy {
            self.phase = ReadPhase::Proxy { version, trusted };
        }
    }

    /// The request was answered: its memory is used again, and what was read beyond it is the beginning of the next.
    pub fn next_request(&mut self, request: &mut Request, inputs: &mut InputBuffers) {
        let read_already = request.body.take_next();
        let bytes = request.end();
        if self.input.capacity() == 0 {
            self.input = bytes;
            self.input.shrink_to(BUFFER_KEPT_BYTES);
        } else {
            inputs.keep(bytes);
        }
        if let Some(next) = read_already {
            self.input.extend_from_slice(&next);
            self.may_hold = true;
        }
        self.begin();
    }

    /// The client's bytes that another worker has read and not used, and the limits of the head that begins with them. Right
    /// after `open`.
    pub fn refill(&mut self, bytes: Vec<u8>, limits: Option<Limits>) {
        self.received = bytes.len() as u64;
        self.input = bytes;
        self.limits = limits;
    }

    /// What was read and not used. Between two requests, or in a head, that is all there is of the connection.
    pub fn unused(&self) -> &[u8] {
        &self.input
    }

    /// A head has begun, or a whole request is there.
    pub fn has_begun(&self) -> bool {
        self.waits_for() != TimerKind::Keepalive
    }

    /// What holds for the head that has begun.
    pub fn limits<'a>(&'a self, rules: &'a Rules) -> &'a Limits {
        self.limits.as_ref().unwrap_or(&rules.limits)
    }

    /// A PROXY header must still come, in this version; and whether its sender is believed.
    pub fn awaits_proxy(&self) -> Option<(ProxyVersion, bool)> {
        match self.phase {
            ReadPhase::Proxy { version, trusted } => Some((version, trusted)),
            ReadPhase::Head
            | ReadPhase::Length { .. }
            | ReadPhase::Chunked(_)
            | ReadPhase::LastBatch
            | ReadPhase::Complete => None,
        }
    }

    fn begin(&mut self) {
        self.head_end = 0;
        self.limits = None;
        self.phase = ReadPhase::Head;
        self.scanner = Scanner::default();
    }

    /// The client's bytes are no longer of interest; gives the buffers back.
    pub fn forget(&mut self, request: &mut Request, inputs: &mut InputBuffers) {
        inputs.keep(request.end());
        request.keep_large(inputs);
        inputs.keep(std::mem::take(&mut self.input));
        self.begin();
    }

    /// Ten thousand idle connections need not hold a buffer each.
    pub fn keep_buffers(&mut self, request: &mut Request, inputs: &mut InputBuffers) {
        request.keep_large(inputs);
        if self.input.is_empty() {
            inputs.keep(std::mem::take(&mut self.input));
        }
    }

    /// An event said that there is something to read. `read_on`: a read that comes short does not say that it was all.
    pub fn wake(&mut self, read_on: bool) {
        self.may_hold = true;
        self.read_on |= read_on;
    }

    /// Something lies unread here or, as far as is known, in the socket.
    pub fn has_unread(&self) -> bool {
        self.input.len() > self.head_end || self.may_hold
    }

    /// Whether the method is HEAD, as far as can be told: then not even a refusal has a body.
    pub fn asks_for_head(&self, request: &Request) -> bool {
        match self.head_end {
            _ if request.is_complete() => request.method() == b"HEAD",
            0 => self.scanner.request_line(&self.input).starts_with(b"HEAD "),
            _ => request.head.method(&self.input) == b"HEAD",
        }
    }

    /// The value of a field, where the head could be read and has it once.
    pub fn field<'a>(&'a self, request: &'a Request, name: &str) -> Option<&'a [u8]> {
        let [whole, _] = request.raw();
        let bytes = match self.head_end {
            _ if request.is_complete() => whole,
            0 => return None,
            _ => &self.input,
        };
        let is_it = |(known, _): &(&[u8], &[u8])| known.eq_ignore_ascii_case(name.as_bytes());
        let mut values = request.head.fields(bytes).filter(is_it).map(|(_, value)| value);
        let first = values.next();
        first.filter(|_| values.next().is_none())
    }

    /// What is known of a request that is refused.
    pub fn read_so_far<'a>(&'a self, request: &'a Request) -> ReadSoFar<'a> {
        let [whole, _] = request.raw();
        match self.head_end {
            _ if request.is_complete() => ReadSoFar::Head(&request.head, whole),
            0 => ReadSoFar::Line(self.scanner.request_line(&self.input)),
            _ => ReadSoFar::Head(&request.head, &self.input),
        }
    }

    /// A body is awaited.
    pub fn is_in_body(&self) -> bool {
        self.awaits_body() || matches!(self.phase, ReadPhase::LastBatch)
    }

    /// A body has not come to its end.
    pub fn awaits_body(&self) -> bool {
        matches!(self.phase, ReadPhase::Length { .. } | ReadPhase::Chunked(_))
    }

    pub fn received(&self) -> i64 {
        i64::try_from(self.received).unwrap_or(i64::MAX)
    }

    /// Reads and parses until a request is complete, the socket is empty, or the share of the turn is used up.
    pub fn receive(
        &mut self,
        request: &mut Request,
        rules: &Rules,
        inputs: &mut InputBuffers,
        round: Round,
    ) -> Received {
        if self.input.capacity() == 0 {
            self.input = inputs.take();
        }
        // Heads come first: a turn whose bytes are used up still looks for them.
        let mut share = if self.is_in_body() { round.share } else { round.share.max(1) };
        loop {
            match self.parse(request, rules, inputs, round.takes_body) {
                Ok(_) if !round.takes_body && self.awaits_body() => return Received::Unwanted,
                Ok(true) => {
                    self.hand_out(request, inputs);
                    return Received::Complete;
                }
                Ok(false) if request.body.reached().is_some() => return Received::Beyond,
                Ok(false) if request.body.has_batch(self.has_all()) => return Received::Batch,
                Ok(false) => {}
                Err(refusal) => return Received::Refused(refusal),
            }
            if !self.may_hold {
                return Received::Waiting(self.waits_for());
            }
            if share == 0 || (round.blocking == Blocking::Forbidden && self.is_in_body()) {
                return Received::Again(self.waits_for());
            }
            let (outcome, room) = match self.phase {
                // Nothing of the body lies in `input`: the rest goes straight to its place.
                ReadPhase::Length { left } if self.input.len() == self.head_end => {
                    let (memory, room) = request.body.place(left);
                    (socket::receive(request.write_half.fd(), memory, room), room)
                }
                ReadPhase::Length { .. } | ReadPhase::Chunked(_) => self.read(request, READ_BODY_BYTES),
                ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::LastBatch | ReadPhase::Complete => {
                    self.read(request, READ_HEAD_BYTES)
                }
            };
            match outcome {
                Ok(0) if self.waits_for() == TimerKind::Keepalive => return Received::Ended,
                // Only its sending side may have ended: it can still be told.
                Ok(0) => return Received::Refused(refusal::UNFINISHED),
                Ok(length) => {
                    self.received += length as u64;
                    // A stream socket that gave less than was asked for is empty (epoll(7), "Q9").
                    self.may_hold = length == room || self.read_on;
                    share = share.saturating_sub(length);
                    if let Err(refusal) = self.placed(request, length, rules) {
                        return Received::Refused(refusal);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.may_hold = false,
                Err(_) => return Received::Lost { in_the_middle: self.waits_for() != TimerKind::Keepalive },
            }
        }
    }

    /// Reads into `input`: what came of it, and how much was asked for.
    fn read(&mut self, request: &Request, want: usize) -> (io::Result<usize>, usize) {
        self.input.reserve(want);
        let room = self.input.spare_capacity_mut().len();
        (socket::receive(request.write_half.fd(), &mut self.input, room), room)
    }

    /// Counts bytes that were read straight to the body's place.
    fn placed(&mut self, request: &mut Request, length: usize, rules: &Rules) -> Result<(), Refusal> {
        let ReadPhase::Length { left } = &mut self.phase else { return Ok(()) };
        if self.input.len() > self.head_end {
            return Ok(());
        }
        request.body.added(length, rules)?;
        *left -= length as u64;
        if *left == 0 {
            self.phase = ReadPhase::Complete;
        }
        Ok(())
    }

    /// Nothing more of the request is to come.
    fn has_all(&self) -> bool {
        matches!(self.phase, ReadPhase::LastBatch | ReadPhase::Complete)
    }

    fn waits_for(&self) -> TimerKind {
        match self.phase {
            ReadPhase::Proxy { .. } if !self.input.is_empty() => TimerKind::Header,
            ReadPhase::Head if self.scanner.has_begun(&self.input) => TimerKind::Header,
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::Complete => TimerKind::Keepalive,
            ReadPhase::Length { .. } | ReadPhase::Chunked(_) | ReadPhase::LastBatch => TimerKind::Body,
        }
    }

    /// Goes on with what was read; true when the request is complete. Stops before a body that is not to be taken.
    fn parse(
        &mut self,
        request: &mut Request,
        rules: &Rules,
        inputs: &mut InputBuffers,
        takes_body: bool,
    ) -> Result<bool, Refusal> {
        if let ReadPhase::Proxy { version, trusted } = self.phase {
            if !self.parse_proxy(request, version, trusted)? {
                return Ok(false);
            }
            self.phase = ReadPhase::Head;
        }
        if let ReadPhase::Head = self.phase {
            let limits = self.limits.as_ref().unwrap_or(&rules.limits);
            let Some((_, end)) = request.head.find(&mut self.scanner, &self.input, limits)? else { return Ok(false) };
            self.head_end = end;
            self.begin_body(request, rules)?;
            if !takes_body && self.awaits_body() {
                return Ok(false);
            }
            if request.head.expects_continue && self.awaits_body() && self.input.len() == self.head_end {
                send_continue(request);
            }
            let is_small = match self.phase {
                ReadPhase::Length { left } => left <= BUFFER_KEPT_BYTES as u64,
                ReadPhase::Chunked(_) => true,
                ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::LastBatch | ReadPhase::Complete => false,
            };
            if is_small {
                request.body.lend(inputs);
            }
        }
        match self.phase {
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::LastBatch | ReadPhase::Complete => {}
            ReadPhase::Length { .. } | ReadPhase::Chunked(_) => self.parse_body(request, rules)?,
        }
        if !self.has_all() {
            return Ok(false);
        }
        if request.body.has_batch(true) {
            self.phase = ReadPhase::LastBatch;
            return Ok(false);
        }
        self.phase = ReadPhase::Complete;
        request.body.complete();
        Ok(true)
    }

    /// Takes what has come of a body out of the input. Apart from `parse`, since most requests have none.
    #[inline(never)]
    fn parse_body(&mut self, request: &mut Request, rules: &Rules) -> Result<(), Refusal> {
        let mut rest = &self.input[self.head_end..];
        match &mut self.phase {
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::LastBatch | ReadPhase::Complete => {}
            ReadPhase::Length { left } => {
                let length = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                let (bytes, tail) = rest.split_at(length);
                if !bytes.is_empty() {
                    request.body.append(bytes, rules)?;
                }
                rest = tail;
                *left -= length as u64;
                if *left == 0 {
                    self.phase = ReadPhase::Complete;
                }
            }
            ReadPhase::Chunked(decoder) => loop {
                match decoder.next(&mut rest)? {
                    Piece::Data(data) => {
                        if request.body.bytes() + data.len() as u64 > rules.settings.max_body {
                            return Err(refusal::BODY_LONG);
                        }
                        request.body.append(data, rules)?;
                    }
                    Piece::More => break,
                    Piece::End => {
                        self.phase = ReadPhase::Complete;
                        break;
                    }
                }
            },
        }
        let used = self.input.len() - self.head_end - rest.len();
        if used > 0 {
            self.input.drain(self.head_end..self.head_end + used);
        }
        Ok(())
    }

    /// True when the header was read: from then on the client is who the proxy says.
    #[cold]
    fn parse_proxy(&mut self, request: &mut Request, version: ProxyVersion, trusted: bool) -> Result<bool, Refusal> {
        if self.input.is_empty() {
            return Ok(false);
        }
        if !trusted {
            return Err(refusal::PROXY_UNTRUSTED);
        }
        let Parsed::Complete { header, end } = proxy::parse(version, &self.input)? else { return Ok(false) };
        if let Some((source, destination)) = header.addresses {
            request.peer = Peer::Inet(source);
            request.local = Arc::new(Local::Inet(destination));
        }
        request.secure = header.secure;
        self.input.drain(..end);
        Ok(true)
    }

    /// Everything that can be refused before the body comes is refused here, so that a client that waits for 100
    /// never sends a body in vain.
    fn begin_body(&mut self, request: &mut Request, rules: &Rules) -> Result<(), Refusal> {
        let path = request.head.path(&self.input);
        let may_live = |has_length| rules.settings.stream_bodies.may(path, has_length);
        self.phase = match request.head.framing {
            Framing::None => ReadPhase::Complete,
            Framing::Length(length) => {
                request.body.expect(Some(length), may_live(true), rules)?;
                if length == 0 {
                    ReadPhase::Complete
                } else {
                    ReadPhase::Length { left: length }
                }
            }
            Framing::Chunked => {
                request.body.expect(None, may_live(false), rules)?;
                ReadPhase::Chunked(Decoder::default())
            }
        };
        Ok(())
    }

    /// What is still to come of a body of which the length is known.
    pub fn left(&self) -> Option<u64> {
        match self.phase {
            ReadPhase::Length { left } => Some(left),
            ReadPhase::Proxy { .. }
            | ReadPhase::Head
            | ReadPhase::Chunked(_)
            | ReadPhase::LastBatch
            | ReadPhase::Complete => None,
        }
    }

    /// The body goes to the application as it comes. The reader has nothing to do with it until the request is answered.
    pub fn go_live(&mut self, request: &mut Request, rules: &Rules, inputs: &mut InputBuffers) {
        let rest = match std::mem::replace(&mut self.phase, ReadPhase::Complete) {
            ReadPhase::Length { left } => Rest::Length(left),
            ReadPhase::Chunked(decoder) => Rest::Chunked(decoder),
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::LastBatch | ReadPhase::Complete => Rest::Length(0),
        };
        self.hand_out(request, inputs);
        let input = std::mem::take(&mut self.input);
        request.body.go_live(Arc::clone(&request.write_half), rest, input, rules.settings.max_body);
        // Whoever reads the body takes the events' bytes away.
        self.may_hold = true;
    }

    /// The request is complete: it gets the bytes of its head, and the reader keeps what came after it.
    fn hand_out(&mut self, request: &mut Request, inputs: &mut InputBuffers) {
        let mut bytes = std::mem::take(&mut self.input);
        if bytes.len() > self.head_end {
            self.input = inputs.take();
            self.input.extend_from_slice(&bytes[self.head_end..]);
            bytes.truncate(self.head_end);
        }
        self.head_end = 0;
        request.complete(bytes, inputs);
    }
}

/// Earlier answers of this connection have gone out, so the socket takes these few bytes; where it does not,
/// the client sends after a while without having seen them (RFC 9110 section 10.1.1).
fn send_continue(request: &Request) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    if let Ok(length) = socket::send(request.write_half.fd(), &[IoSlice::new(CONTINUE)], false) {
        if length < CONTINUE.len() {
            request.write_half.mark_gone();
        }
    }
}
