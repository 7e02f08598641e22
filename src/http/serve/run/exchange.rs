//! One request and the means to answer it: the app thread's hold on a connection.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::response::{Asked, ChunkLine, Framing};
use crate::proto::Version;

use crate::serve::base::address::{Local, Peer};
use crate::serve::base::names::Token;
use crate::serve::base::settings::{BUFFER_KEPT_BYTES, DEFERRED_ANSWER_BYTES_MAX};
use crate::serve::conn::answer::{date_now, After};
use crate::serve::conn::connection::Connection;
use crate::serve::conn::write_queue::{Hold, Sent, WriteHalf, GATHERED_BYTES_MAX};
use crate::serve::event_loop::shared::{Notice, Shared};
use crate::serve::event_loop::EventLoop;

use super::follower::Taken;
use super::leader::{Leader, Lease};

pub enum Body<'a> {
    Memory(&'a [u8]),
    /// An unlinked temporary file, positioned at 0.
    File {
        file: BorrowedFd<'a>,
        length: u64,
    },
}

/// How far a write got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Sent or buffered; go on.
    Done,
    /// Buffered, and the buffers are full: call `wait_for_room`, without the interpreter's lock, before the next.
    Full,
    /// The client is gone; further bytes are dropped. Not an error of the application.
    Gone,
}

/// What the application said wrong; nothing was sent. The text is for the log.
#[derive(Clone, Debug)]
pub struct BadResponse(pub String);

/// One complete request (its body was read to the end) and the means to answer it. Dropped without `finish`:
/// 500 and close if no byte of an answer went out, else the connection is cut so that the client can tell.
pub struct Exchange {
    leader: Arc<Leader<EventLoop>>,
    /// Of the thread that took it from the loop, and entered the application with it.
    lease: Option<Lease>,
    /// None: given back to the loop.
    connection: Option<Box<Connection>>,
    begun: Instant,
}

impl Exchange {
    pub fn new(leader: Arc<Leader<EventLoop>>, taken: Taken<Box<Connection>>) -> Exchange {
        let Taken { request, lease, begun } = taken;
        Exchange { leader, lease, connection: Some(request), begun }
    }

    fn shared(&self) -> &Shared {
        self.leader.doors()
    }

    /// When an app thread took it.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    fn connection(&self) -> &Connection {
        // Only `finish`, `fail` and `drop` take it, and nothing can be called after those.
        self.connection.as_ref().expect("an exchange has its connection until it ends")
    }

    fn connection_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("an exchange has its connection until it ends")
    }

    pub fn method(&self) -> &[u8] {
        let connection = self.connection();
        connection.head.method(&connection.input)
    }

    /// The request target as it was sent.
    pub fn target(&self) -> &[u8] {
        let connection = self.connection();
        connection.head.target(&connection.input)
    }

    /// The target's path, still percent-encoded (of an absolute-form target, its path; `*` for asterisk-form).
    pub fn path(&self) -> &[u8] {
        let connection = self.connection();
        connection.head.path(&connection.input)
    }

    /// Without `?`; empty if there is none.
    pub fn query(&self) -> &[u8] {
        let connection = self.connection();
        connection.head.query(&connection.input)
    }

    pub fn version(&self) -> Version {
        self.connection().head.version
    }

    /// Field lines in order, names as sent, values trimmed. Repeated fields are not joined here. Host is the
    /// authority of an absolute-form target where there is one.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let connection = self.connection();
        connection.head.fields(&connection.input)
    }

    pub fn peer(&self) -> &Peer {
        &self.connection().peer
    }

    pub fn local(&self) -> &Local {
        &self.connection().local
    }

    /// A proxy said by its PROXY header that the client's connection to it is TLS.
    pub fn secure(&self) -> bool {
        self.connection().secure
    }

    /// The whole body. `chunked` bodies are decoded; `content_length` then is the decoded length.
    pub fn body(&self) -> Body<'_> {
        let body = &self.connection().body;
        match body.file() {
            Some(file) => Body::File { file: file.as_fd(), length: file.length() },
            None => Body::Memory(body.memory()),
        }
    }

    /// A large body that lies in memory, to be kept without copying it; `body` is empty from then on. None: it is small,
    /// in a file, or there is none.
    pub fn take_body(&mut self) -> Option<Vec<u8>> {
        let body = &mut self.connection_mut().body;
        (body.file().is_none() && body.memory().len() > BUFFER_KEPT_BYTES).then(|| body.take())
    }

    /// What `take_body` gave is no longer needed.
    pub fn give_body_back(&self, body: Vec<u8>) {
        self.connection().body.give_back(body);
    }

    /// As declared, or counted for chunked bodies; None where the request has no body.
    pub fn content_length(&self) -> Option<u64> {
        self.connection().body.length()
    }

    /// Sets the answer's status line and fields; checks them; sends nothing yet. `status` is `200 OK`. May be
    /// called again until the head has gone out (`start_response` with `exc_info`).
    pub fn start(&mut self, status: &[u8], fields: &[(&[u8], &[u8])]) -> Result<(), BadResponse> {
        self.begin_head(status)?;
        for (name, value) in fields {
            self.add_field(name, value)?;
        }
        self.end_head();
        Ok(())
    }

    /// `start` in steps: the status line; then `add_field`, and `end_head`, without which nothing was said.
    pub fn begin_head(&mut self, status: &[u8]) -> Result<(), BadResponse> {
        if self.head_sent() {
            return Err(BadResponse("the head of the answer has been sent already".to_string()));
        }
        self.connection_mut().answer.head.begin(status).map_err(BadResponse)
    }

    pub fn add_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadResponse> {
        self.connection_mut().answer.head.add(name, value).map_err(BadResponse)
    }

    pub fn end_head(&mut self) {
        self.connection_mut().answer.head.end();
    }

    /// True once bytes of the head were handed to the socket or its queue.
    pub fn head_sent(&self) -> bool {
        self.connection().answer.framing.is_some()
    }

    /// Sends a piece of the body, with the head before it if that has not gone out. The framing is decided here.
    /// An empty piece sends nothing. Bytes beyond the declared Content-Length are cut and reported by `finish`.
    /// All of the piece is taken, even if it is larger than every buffer; see `write_some`.
    pub fn write(&mut self, piece: &[u8]) -> Written {
        if piece.is_empty() {
            return if self.gone() { Written::Gone } else { Written::Done };
        }
        self.send(piece, None, None, false)
    }

    /// As `write`, but takes no more of the piece than the buffers have room for and says how many bytes it
    /// took. `Full` with less than the whole: `wait_for_room`, then write the rest.
    pub fn write_some(&mut self, piece: &[u8]) -> (usize, Written) {
        if self.shared().is_forgotten() {
            return (0, Written::Gone);
        }
        let connection = self.connection();
        let room = if connection.write_half.is_queued() {
            connection.write_half.room(&self.shared().rules.temp)
        } else {
            self.shared().rules.settings.response_buffer
        };
        let taken = piece.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if taken == 0 && !piece.is_empty() {
            return (0, if self.gone() { Written::Gone } else { Written::Full });
        }
        let written = self.write(&piece[..taken]);
        match written {
            Written::Done if taken < piece.len() => (taken, Written::Full),
            Written::Done | Written::Full | Written::Gone => (taken, written),
        }
    }

    /// The whole body at once: head and body in one sendmsg, Content-Length added where missing.
    pub fn write_all(&mut self, body: &[u8]) -> Written {
        if self.head_sent() {
            return self.write(body);
        }
        self.send(body, Some(body.len() as u64), None, false)
    }

    /// As `write_all`, before anything was sent, for a body that somebody else owns: what the socket does not take is not
    /// copied but held. `last`: `finish` follows at once. Where the connection ends with this answer, the kernel then
    /// waits for that, so that the client gets all of it in one packet.
    pub fn write_all_held(&mut self, body: &[u8], hold: Hold<'_>, last: bool) -> Written {
        self.send(body, Some(body.len() as u64), Some(hold), last)
    }

    fn send(&mut self, piece: &[u8], whole: Option<u64>, hold: Option<Hold<'_>>, last: bool) -> Written {
        if self.shared().is_forgotten() {
            return Written::Gone;
        }
        if !self.connection().answer.head.is_set() {
            self.connection_mut().answer.unstarted = true;
            return Written::Done;
        }
        let begins = !self.head_sent();
        let framing = self.frame(whole);
        let Exchange { leader, connection, .. } = self;
        let connection = connection.as_mut().expect("an exchange has its connection until it ends");
        let shared = leader.doors();
        let answer = &mut connection.answer;
        let (piece, line) = match framing {
            Framing::None => (&piece[..0], None),
            Framing::Length(length) => {
                let left = usize::try_from(length - answer.sent).unwrap_or(usize::MAX);
                answer.excess |= piece.len() > left;
                (&piece[..piece.len().min(left)], None)
            }
            Framing::Chunked => (piece, (!piece.is_empty()).then(|| ChunkLine::new(piece.len()))),
            Framing::UntilClose => (piece, None),
        };
        answer.sent += piece.len() as u64;
        // Where the client did not ask for the end it may still be sending, and the close lingers.
        let closes = last && !answer.keep && !connection.head.keep_alive;
        let head = if begins { answer.head.bytes() } else { b"" };
        let (line, end) = line.as_ref().map_or((&b""[..], &b""[..]), |line| (line.bytes(), &b"\r\n"[..]));
        let temp = &shared.rules.temp;
        if begins && answer.may_defer && answer.is_complete() && head.len() + piece.len() <= DEFERRED_ANSWER_BYTES_MAX {
            let deferred =
                self.lease.and_then(|lease| Some((lease, connection.write_half.defer(&[head, piece], temp)?)));
            match deferred {
                Some((lease, Sent::Queued { .. })) if leader.is_kept(lease) => return Written::Done,
                Some((_, sent)) => return written(shared, connection.token, sent),
                None => {}
            }
        }
        let sent = match framing {
            Framing::Chunked => connection.write_half.send(&[head, line, piece, end], temp),
            Framing::None | Framing::Length(_) | Framing::UntilClose
                if begins && head.len() + piece.len() <= GATHERED_BYTES_MAX =>
            {
                let write_half = &connection.write_half;
                answer.head.with_body(piece, |bytes| write_half.send_held(&[bytes], None, closes, temp))
            }
            Framing::None | Framing::Length(_) | Framing::UntilClose => {
                connection.write_half.send_held(&[head, piece], hold, closes, temp)
            }
        };
        written(shared, connection.token, sent)
    }

    /// The framing, decided now if it was not yet.
    fn frame(&mut self, whole: Option<u64>) -> Framing {
        let closing = self.shared().is_closing();
        let asked = self.asked();
        let answer = &mut self.connection_mut().answer;
        if let Some(framing) = answer.framing {
            return framing;
        }
        let asked = Asked { keep_alive: asked.keep_alive && !closing, ..asked };
        let (framing, keep) = answer.head.complete(asked, whole, &date_now());
        answer.framing = Some(framing);
        answer.keep = keep;
        framing
    }

    fn asked(&self) -> Asked {
        let head = self.method() == b"HEAD";
        let connection = self.connection();
        Asked { version: connection.head.version, head, keep_alive: connection.head.keep_alive }
    }

    /// `wsgi.file_wrapper`: sends from this offset by sendfile, up to the declared Content-Length or the file's end.
    /// None: not a regular file, or not possible here; write its pieces instead. The file may be closed afterwards;
    /// its own offset does not move.
    pub fn send_file(&mut self, file: RawFd, offset: u64) -> io::Result<Option<Written>> {
        if self.shared().is_forgotten() {
            return Ok(Some(Written::Gone));
        }
        if !self.connection().answer.head.is_set() {
            return Ok(None);
        }
        // SAFETY: the caller's descriptor is open for the time of this call.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        let Some((file, left)) = regular_file(file, offset)? else { return Ok(None) };
        // A chunk would need its length before the file, and gains nothing.
        match self.connection().answer.framing {
            Some(Framing::Chunked) => return Ok(None),
            Some(Framing::None | Framing::Length(_) | Framing::UntilClose) | None => {}
        }
        let begins = !self.head_sent();
        let length = match self.frame(Some(left)) {
            Framing::None => 0,
            Framing::Length(length) => left.min(length - self.connection().answer.sent),
            Framing::Chunked | Framing::UntilClose => left,
        };
        let Exchange { leader, connection, .. } = self;
        let connection = connection.as_mut().expect("an exchange has its connection until it ends");
        let shared = leader.doors();
        connection.answer.sent += length;
        let head = if begins { connection.answer.head.bytes() } else { b"" };
        let temp = &shared.rules.temp;
        let sent = without_sigpipe(|| connection.write_half.send_file(head, file, offset, length, temp));
        Ok(Some(written(shared, connection.token, sent)))
    }

    /// Waits until buffers have room (or the client is gone, or `write_timeout`). Without the interpreter's lock.
    pub fn wait_for_room(&mut self) -> Written {
        if self.shared().is_forgotten() {
            return Written::Gone;
        }
        /// The loop watches `write_timeout`; this is only for a loop that is late.
        const GRACE: Duration = Duration::from_secs(2);
        if let Some(lease) = self.lease.take() {
            self.leader.hand_over(lease);
        }
        let rules = &self.shared().rules;
        let write_half = &self.connection().write_half;
        write_half.wait_for_room(rules.settings.write_timeout + GRACE, &rules.temp);
        if write_half.is_gone() {
            Written::Gone
        } else {
            Written::Done
        }
    }

    /// The client has left (as far as we know).
    pub fn gone(&self) -> bool {
        self.shared().is_forgotten() || self.connection().write_half.is_gone()
    }

    /// Body bytes sent so far, and the status, for the access log.
    pub fn sent(&self) -> (u16, u64) {
        let answer = &self.connection().answer;
        (answer.head.status(), answer.sent)
    }

    /// When the request was complete.
    pub fn ready_at(&self) -> Instant {
        self.connection().ready_at
    }

    /// The answer's status line and fields as far as they are known: all of them once the head was sent.
    pub fn answer_head(&self) -> &[u8] {
        self.connection().answer.head.bytes()
    }

    /// Ends the answer. `Err` tells what the application did wrong (shorter or longer than its Content-Length, no
    /// `start`); the connection's fate is already decided then.
    pub fn finish(self) -> Result<(), BadResponse> {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.begun);
        self.finish_at(now, took)
    }

    /// `finish` for a caller who has just looked at the clock: the time, and how long it is since `begun`.
    pub fn finish_at(mut self, now: Instant, took: Duration) -> Result<(), BadResponse> {
        if self.shared().is_forgotten() {
            return Ok(());
        }
        if !self.connection().answer.head.is_set() {
            let wrote = self.connection().answer.unstarted;
            self.fail(500);
            let what = if wrote { "wrote a body without calling" } else { "did not call" };
            return Err(BadResponse(format!("the application {what} start_response")));
        }
        if !self.head_sent() {
            self.write_all(b"");
        }
        let answer = &self.connection().answer;
        let (sent, excess, gone) = (answer.sent, answer.excess, self.gone());
        let outcome = match answer.framing {
            Some(Framing::Length(length)) if sent < length && !gone => {
                Err(BadResponse(format!("the body has {sent} bytes, its Content-Length says {length}")))
            }
            Some(Framing::Length(length)) if excess => {
                Err(BadResponse(format!("the body is longer than its Content-Length, {length} bytes")))
            }
            Some(Framing::Chunked) => {
                let connection = self.connection();
                emit(self.shared(), &connection.write_half, connection.token, &[b"0\r\n\r\n"]);
                Ok(())
            }
            Some(Framing::Length(_) | Framing::None | Framing::UntilClose) | None => Ok(()),
        };
        // Also where it was too long: what the application meant to be the body, the client cannot know.
        self.end(if outcome.is_err() { End::Cut } else { End::Complete }, now, took);
        outcome
    }

    /// A plain error answer if nothing was sent yet, else cuts the connection so that the client can tell.
    pub fn fail(mut self, status: u16) {
        self.fail_in_place(status);
    }

    fn fail_in_place(&mut self, status: u16) {
        if self.shared().is_forgotten() {
            return;
        }
        if self.head_sent() {
            self.end_now(End::Cut);
            return;
        }
        let asked = self.asked();
        let Exchange { leader, connection, .. } = self;
        let connection = connection.as_mut().expect("an exchange has its connection until it ends");
        let body = connection.answer.refuse(status, "", asked);
        connection.answer.sent = body.len() as u64;
        emit(
            leader.doors(),
            &connection.write_half,
            connection.token,
            &[connection.answer.head.bytes(), body.as_bytes()],
        );
        self.end_now(End::Complete);
    }

    fn end_now(&mut self, end: End) {
        let now = Instant::now();
        self.end(end, now, now.saturating_duration_since(self.begun));
    }

    /// Gives the connection back to the loop: directly, where nobody has taken over meanwhile.
    fn end(&mut self, end: End, now: Instant, took: Duration) {
        let Some(mut connection) = self.connection.take() else { return };
        let answer = &mut connection.answer;
        answer.after = match (end, answer.framing) {
            (End::Complete, _) if answer.keep => After::KeepAlive,
            (End::Complete, _) if connection.head.keep_alive => After::Linger,
            (End::Complete, _) => After::Close,
            // Closing early tells the client that something is missing, except where closing is the end.
            (End::Cut, Some(Framing::UntilClose)) => After::Reset,
            (End::Cut, Some(Framing::None | Framing::Length(_) | Framing::Chunked) | None) => After::Linger,
        };
        self.leader.record(took);
        let shared = self.leader.doors();
        shared.complete();
        match self.lease.take().and_then(|lease| self.leader.exit_app(lease)) {
            Some(mut guard) => {
                guard.event_loop().take_back(connection, now, took);
                // The thread has its own copy of the lease.
                let _ = guard.yield_loop();
            }
            None => shared.notify(Notice::Returned(connection)),
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Complete,
    Cut,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.shared().is_forgotten() {
            // The parent answers; this copy must not touch anything that the parent's threads may hold.
            std::mem::forget(self.connection.take());
        } else if self.connection.is_some() {
            self.fail_in_place(500);
        }
    }
}

/// Sends or queues, and tells the loop of a new queue.
fn emit(shared: &Shared, write_half: &WriteHalf, token: Token, parts: &[&[u8]]) -> Written {
    written(shared, token, write_half.send(parts, &shared.rules.temp))
}

fn written(shared: &Shared, token: Token, sent: Sent) -> Written {
    match sent {
        Sent::All => Written::Done,
        Sent::Queued { is_new, full } => {
            if is_new {
                shared.notify(Notice::Queued(token));
            }
            if full {
                Written::Full
            } else {
                Written::Done
            }
        }
        Sent::Gone => Written::Gone,
    }
}

/// A descriptor of our own, and the bytes from the offset to the end; None: not a regular file.
fn regular_file(file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(OwnedFd, u64)>> {
    let file = File::from(file.try_clone_to_owned()?);
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then(|| (file.into(), metadata.len().saturating_sub(offset))))
}

/// sendfile has no MSG_NOSIGNAL: SIGPIPE is blocked for this thread, and taken back if it came (it is sent to
/// the thread that wrote, pipe(7)), unless one was pending before.
fn without_sigpipe<T>(work: impl FnOnce() -> T) -> T {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let Ok(before) = pipe.thread_swap_mask(SigmaskHow::SIG_BLOCK) else { return work() };
    let pending = is_sigpipe_pending();
    let outcome = work();
    if !pending && is_sigpipe_pending() {
        // Pending, so this does not wait.
        let _ = pipe.wait();
    }
    let _ = before.thread_set_mask();
    outcome
}

fn is_sigpipe_pending() -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending fills the set, and it is read only if that succeeded.
    unsafe { libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1 }
}
