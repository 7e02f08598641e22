//! One connection's reading side: bytes from the socket become a complete request. The connection is owned
//! either by the loop or, while its request is answered, by the app side; never by both.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use crate::proto::chunked::{Decoder, Piece};
use crate::proto::framing::Framing;
use crate::proto::head::{Head, Limits, Scan, Scanner};
use crate::proto::proxy::{self, Parsed, ProxyVersion};
use crate::proto::refusal::{self, Refusal};

use crate::serve::base::address::{Local, Peer};
use crate::serve::base::budget::{Budget, Charge};
use crate::serve::base::buffers::Buffers;
use crate::serve::base::names::{Blocking, TimerKind, Token};
use crate::serve::base::pace::Window;
use crate::serve::base::settings::{
    Settings, BUFFER_KEPT_BYTES, GATHER_BYTES, READ_BODY_BYTES, READ_HEAD_BYTES, TURN_BYTES_MAX,
};
use crate::serve::conn::answer::Answer;
use crate::serve::conn::write_queue::WriteHalf;
use crate::serve::event_loop::listeners::Origin;
use crate::serve::io::socket;
use crate::serve::io::spool::{Failed, Spool, TempFiles};

/// What reading needs to know and may use.
#[derive(Debug)]
pub struct Rules {
    pub settings: Settings,
    pub limits: Limits,
    pub temp: TempFiles,
    pub memory: Arc<Budget>,
    pub buffers: Arc<Buffers>,
}

#[derive(Debug)]
pub struct Connection {
    pub token: Token,
    pub write_half: Arc<WriteHalf>,
    pub peer: Peer,
    pub local: Arc<Local>,
    /// A PROXY header said that the client speaks TLS.
    pub secure: bool,
    pub head: Head,
    pub body: RequestBody,
    pub answer: Answer,
    /// When the request was complete.
    pub ready_at: Instant,
    /// The head at the front, then what has not been looked at.
    pub input: Vec<u8>,
    /// Bytes received on this connection.
    pub received: u64,
    /// What comes while a body is awaited.
    pub coming: Window,
    head_end: usize,
    phase: ReadPhase,
    scanner: Scanner,
    /// The socket may hold bytes: an edge was seen, and no read came short since.
    may_hold: bool,
    /// FIN, HUP or ERR was seen: only a read of nothing says that all was read.
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
    Complete,
}

/// What a round of reading came to.
#[derive(Debug)]
pub enum Received {
    /// The socket is empty; this timer runs until more comes.
    Waiting(TimerKind),
    /// As `Waiting`, but this turn's share was used up before the socket was empty.
    Again(TimerKind),
    Complete,
    Refused(Refusal),
    /// The client sends no more, and nothing of a request has come.
    Ended,
    /// The connection broke.
    Lost {
        in_the_middle: bool,
    },
}

impl Connection {
    pub fn new(token: Token, write_half: Arc<WriteHalf>, local: Arc<Local>, rules: &Rules, now: Instant) -> Connection {
        Connection {
            token,
            write_half,
            peer: Peer::Unix,
            local,
            secure: false,
            head: Head::default(),
            body: RequestBody {
                present: false,
                memory: Vec::new(),
                memory_bytes_max: 0,
                charge: rules.memory.charge(),
                buffers: Arc::clone(&rules.buffers),
                file: None,
                length: 0,
            },
            answer: Answer::default(),
            ready_at: Instant::now(),
            input: Vec::new(),
            received: 0,
            coming: Window::begin(now, 0),
            head_end: 0,
            phase: ReadPhase::Head,
            scanner: Scanner::default(),
            may_hold: false,
            read_on: false,
        }
    }

    /// Another client takes the slot.
    pub fn open(&mut self, token: Token, origin: Origin) {
        let Origin { peer, local, proxy } = origin;
        self.token = token;
        self.peer = peer;
        self.local = local;
        self.secure = false;
        self.input.clear();
        self.received = 0;
        self.may_hold = true;
        self.read_on = false;
        self.begin();
        if let Some((version, trusted)) = proxy {
            self.phase = ReadPhase::Proxy { version, trusted };
        }
    }

    /// The request was answered; what was read beyond it is the beginning of the next.
    pub fn next_request(&mut self) {
        self.input.drain(..self.head_end);
        self.begin();
    }

    fn begin(&mut self) {
        if self.input.capacity() > BUFFER_KEPT_BYTES {
            self.input.shrink_to(BUFFER_KEPT_BYTES);
        }
        self.head_end = 0;
        self.phase = ReadPhase::Head;
        self.scanner = Scanner::default();
        self.body.clear();
        self.answer.clear();
    }

    /// The client's bytes are no longer of interest; gives the buffers back.
    pub fn forget(&mut self) {
        self.input.clear();
        self.begin();
    }

    /// An event said that there is something to read.
    pub fn wake(&mut self, half_closed: bool) {
        self.may_hold = true;
        self.read_on |= half_closed;
    }

    /// Something lies unread here or, as far as is known, in the socket.
    pub fn has_unread(&self) -> bool {
        self.input.len() > self.head_end || self.may_hold
    }

    /// Whether the method is HEAD, as far as can be told: then not even a refusal has a body.
    pub fn asks_for_head(&self) -> bool {
        match self.head_end {
            0 => self.scanner.request_line(&self.input).starts_with(b"HEAD "),
            _ => self.head.method(&self.input) == b"HEAD",
        }
    }

    /// A body is awaited.
    pub fn is_in_body(&self) -> bool {
        matches!(self.phase, ReadPhase::Length { .. } | ReadPhase::Chunked(_))
    }

    /// Reads and parses until a request is complete or the socket is empty. Where blocking is forbidden a body is left for
    /// later, where it did not come with its head.
    pub fn receive(&mut self, rules: &Rules, blocking: Blocking) -> Received {
        let mut share = TURN_BYTES_MAX;
        loop {
            match self.parse(rules) {
                Ok(true) => return Received::Complete,
                Ok(false) => {}
                Err(refusal) => return Received::Refused(refusal),
            }
            if !self.may_hold {
                return Received::Waiting(self.waits_for());
            }
            if share == 0 || (blocking == Blocking::Forbidden && self.is_in_body()) {
                return Received::Again(self.waits_for());
            }
            let (outcome, room) = match self.phase {
                // Nothing of the body lies in `input`: the rest goes straight to its place.
                ReadPhase::Length { left } if self.input.len() == self.head_end => {
                    let (memory, room) = self.body.place(left);
                    (socket::receive(self.write_half.fd(), memory, room), room)
                }
                ReadPhase::Length { .. } | ReadPhase::Chunked(_) => self.read(READ_BODY_BYTES),
                ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::Complete => self.read(READ_HEAD_BYTES),
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
                    if let Err(refusal) = self.placed(length, rules) {
                        return Received::Refused(refusal);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.may_hold = false,
                Err(_) => return Received::Lost { in_the_middle: self.waits_for() != TimerKind::Keepalive },
            }
        }
    }

    /// Reads into `input`: what came of it, and how much was asked for.
    fn read(&mut self, want: usize) -> (io::Result<usize>, usize) {
        self.input.reserve(want);
        let room = self.input.spare_capacity_mut().len();
        (socket::receive(self.write_half.fd(), &mut self.input, room), room)
    }

    /// Counts bytes that were read straight to the body's place.
    fn placed(&mut self, length: usize, rules: &Rules) -> Result<(), Refusal> {
        let ReadPhase::Length { left } = &mut self.phase else { return Ok(()) };
        if self.input.len() > self.head_end {
            return Ok(());
        }
        self.body.added(length, rules)?;
        *left -= length as u64;
        if *left == 0 {
            self.phase = ReadPhase::Complete;
        }
        Ok(())
    }

    fn waits_for(&self) -> TimerKind {
        match self.phase {
            ReadPhase::Proxy { .. } if !self.input.is_empty() => TimerKind::Header,
            ReadPhase::Head if self.scanner.has_begun(&self.input) => TimerKind::Header,
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::Complete => TimerKind::Keepalive,
            ReadPhase::Length { .. } | ReadPhase::Chunked(_) => TimerKind::Body,
        }
    }

    /// Goes on with what was read; true when the request is complete.
    fn parse(&mut self, rules: &Rules) -> Result<bool, Refusal> {
        if let ReadPhase::Proxy { version, trusted } = self.phase {
            if !self.parse_proxy(version, trusted)? {
                return Ok(false);
            }
            self.phase = ReadPhase::Head;
        }
        if let ReadPhase::Head = self.phase {
            let Scan::Complete { start, end } = self.scanner.scan(&self.input, &rules.limits)? else {
                return Ok(false);
            };
            self.head.read(&self.input, start, end, &rules.limits)?;
            self.head_end = end;
            self.begin_body(rules)?;
        }
        let mut rest = &self.input[self.head_end..];
        match &mut self.phase {
            ReadPhase::Proxy { .. } | ReadPhase::Head | ReadPhase::Complete => {}
            ReadPhase::Length { left } => {
                let length = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                let (bytes, tail) = rest.split_at(length);
                if !bytes.is_empty() {
                    self.body.append(bytes, rules)?;
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
                        if self.body.length + data.len() as u64 > rules.settings.max_body {
                            return Err(refusal::BODY_LONG);
                        }
                        self.body.append(data, rules)?;
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
        let complete = matches!(self.phase, ReadPhase::Complete);
        if complete {
            self.body.complete()?;
        }
        Ok(complete)
    }

    /// True when the header was read: from then on the client is who the proxy says.
    fn parse_proxy(&mut self, version: ProxyVersion, trusted: bool) -> Result<bool, Refusal> {
        if self.input.is_empty() {
            return Ok(false);
        }
        if !trusted {
            return Err(refusal::PROXY_UNTRUSTED);
        }
        let Parsed::Complete { header, end } = proxy::parse(version, &self.input)? else { return Ok(false) };
        if let Some((source, destination)) = header.addresses {
            self.peer = Peer::Inet(source);
            self.local = Arc::new(Local::Inet(destination));
        }
        self.secure = header.secure;
        self.input.drain(..end);
        Ok(true)
    }

    /// Everything that can be refused before the body comes is refused here, so that a client that waits for 100
    /// never sends a body in vain.
    fn begin_body(&mut self, rules: &Rules) -> Result<(), Refusal> {
        self.phase = match self.head.framing {
            Framing::None => ReadPhase::Complete,
            Framing::Length(length) => {
                self.body.expect(Some(length), rules)?;
                if length == 0 {
                    ReadPhase::Complete
                } else {
                    ReadPhase::Length { left: length }
                }
            }
            Framing::Chunked => {
                self.body.expect(None, rules)?;
                ReadPhase::Chunked(Decoder::default())
            }
        };
        let waits = self.head.expects_continue && self.input.len() == self.head_end;
        if waits && !matches!(self.phase, ReadPhase::Complete) {
            self.send_continue();
        }
        Ok(())
    }

    /// Earlier answers of this connection have gone out, so the socket takes these few bytes; where it does not,
    /// the client sends after a while without having seen them (RFC 9110 section 10.1.1).
    fn send_continue(&self) {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        if let Ok(length) = socket::send(self.write_half.fd(), &[IoSlice::new(CONTINUE)], false) {
            if length < CONTINUE.len() {
                self.write_half.mark_gone();
            }
        }
    }
}

/// A request's body: memory first, then a file. Room is charged as bytes come, never for what was only announced.
#[derive(Debug)]
pub struct RequestBody {
    present: bool,
    /// The whole body, or what is not yet in the file.
    memory: Vec<u8>,
    /// Of this body; of one that is known to be longer than `body_memory` just a stretch worth writing.
    memory_bytes_max: u64,
    charge: Charge,
    /// Where large memory comes from and goes to.
    buffers: Arc<Buffers>,
    file: Option<Spool>,
    length: u64,
}

impl RequestBody {
    /// None: the request has no body.
    pub fn length(&self) -> Option<u64> {
        self.present.then_some(self.length)
    }

    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// A body that lies in memory, to be kept by whoever takes it.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.memory)
    }

    /// What was taken is no longer needed.
    pub fn give_back(&self, memory: Vec<u8>) {
        self.buffers.keep(memory);
    }

    pub fn file(&self) -> Option<&Spool> {
        self.file.as_ref()
    }

    fn clear(&mut self) {
        self.present = false;
        self.length = 0;
        self.file = None;
        self.charge.clear();
        self.memory.clear();
        if self.memory.capacity() > BUFFER_KEPT_BYTES {
            self.buffers.keep(std::mem::take(&mut self.memory));
        }
    }

    /// A body will come, of this length or chunked. Refuses one that would find no place, as things stand.
    fn expect(&mut self, length: Option<u64>, rules: &Rules) -> Result<(), Refusal> {
        let body_memory = rules.settings.body_memory;
        self.present = true;
        self.memory_bytes_max = body_memory;
        let Some(length) = length else { return Ok(()) };
        if length > rules.settings.max_body {
            return Err(refusal::BODY_LONG);
        }
        if length > body_memory {
            if !rules.temp.available() {
                return Err(refusal::BODY_NO_TEMP_DIR);
            }
            self.memory_bytes_max = body_memory.min(GATHER_BYTES as u64);
        }
        let memory = if length > body_memory { 0 } else { rules.memory.left() };
        if length > memory && length > rules.temp.left() {
            return Err(refusal::TEMP_FULL);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], rules: &Rules) -> Result<(), Refusal> {
        self.memory.extend_from_slice(bytes);
        self.added(bytes.len(), rules)
    }

    /// Where up to `left` bytes may be read to, and how many at once: twice as many each time, since what was only
    /// announced shall not cost memory. Memory that is asked for and not written to costs none, so there is room for all
    /// that may stay in memory from the beginning, and it need not move as it grows.
    fn place(&mut self, left: u64) -> (&mut Vec<u8>, usize) {
        if self.file.is_none() && left > BUFFER_KEPT_BYTES as u64 && self.memory.capacity() <= BUFFER_KEPT_BYTES {
            let begun = std::mem::replace(&mut self.memory, self.buffers.take());
            self.memory.reserve(begun.len() + left.min(self.memory_bytes_max) as usize);
            self.memory.extend_from_slice(&begun);
        }
        let step = match self.file {
            Some(_) => GATHER_BYTES - self.memory.len(),
            None => self.memory.len().max(READ_BODY_BYTES),
        };
        let room = usize::try_from(left).map_or(step, |left| left.min(step));
        self.memory.reserve(room);
        (&mut self.memory, room)
    }

    /// The last bytes in memory are new: counts them, and finds another place for all of them where there are too many.
    fn added(&mut self, bytes: usize, rules: &Rules) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        self.length += bytes;
        match &mut self.file {
            Some(file) => {
                self.charge.force(bytes);
                if self.memory.len() >= GATHER_BYTES {
                    file.append(&self.memory).map_err(translate)?;
                    self.memory.clear();
                    self.charge.clear();
                }
                Ok(())
            }
            None if self.length <= self.memory_bytes_max && self.charge.grow(bytes) => Ok(()),
            None => {
                let file = self.file.insert(open_file(self.length > rules.settings.body_memory, rules)?);
                file.append(&self.memory).map_err(translate)?;
                self.memory.clear();
                self.charge.clear();
                Ok(())
            }
        }
    }

    /// The last byte has come.
    fn complete(&mut self) -> Result<(), Refusal> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.append(&self.memory).map_err(translate)?;
        self.buffers.keep(std::mem::take(&mut self.memory));
        self.charge.clear();
        Ok(())
    }
}

fn open_file(too_long: bool, rules: &Rules) -> Result<Spool, Refusal> {
    match rules.temp.available() {
        true => rules.temp.create().map_err(translate),
        false if too_long => Err(refusal::BODY_NO_TEMP_DIR),
        false => Err(refusal::TEMP_FULL),
    }
}

fn translate(failed: Failed) -> Refusal {
    match failed {
        Failed::Full => refusal::TEMP_FULL,
        Failed::Io(error) => {
            log::warn!("temporary file for a request body: {error}");
            refusal::TEMP_FAILED
        }
    }
}
