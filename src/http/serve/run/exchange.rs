//! One request and the means to answer it: the app thread's hold on a connection.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::refusal;
use crate::proto::response::{Added, EarlyHints};
use crate::proto::Version;
use crate::serve::base::address::{Local, Peer};
use crate::serve::base::budget::Charge;
use crate::serve::base::names::Token;
use crate::serve::base::piece::Piece;
use crate::serve::base::settings::{BUFFER_KEPT_BYTES, LIVE_WINDOW, SEGMENT_BYTES};
use crate::serve::conn::answering::{Delivery, End, Fault, Part};
use crate::serve::conn::live_body::Failure;
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::Sent;
use crate::serve::conn::write_queue::Hold;
use crate::serve::event_loop::mailbox::Notice;
use crate::serve::event_loop::shared::Shared;
use crate::serve::event_loop::EventLoop;
use crate::serve::io::socket::{self, HangUp};

use super::app_times::Times;
use super::close_look::CloseLook;
use super::follower::Taken;
use super::leader::{Leader, Lease};
use super::live_input::LiveInput;

pub enum Body<'a> {
    Memory(&'a [u8]),
    /// An unlinked temporary file, positioned at 0.
    File {
        file: BorrowedFd<'a>,
        length: u64,
    },
    /// It comes as it is read.
    Live(LiveInput),
}

/// How far a write got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Sent or buffered; go on.
    Done,
    /// Buffered, and the buffers are full: call `wait_for_room`, without the interpreter's lock, before the next.
    Full,
    /// Nobody wants further bytes, and they are dropped: the client is gone, or the answer has no content (HEAD, 204, 304)
    /// and its head is out. Not an error of the application.
    Gone,
}

/// What the application said wrong; nothing was sent. The text is for the log.
#[derive(Clone, Debug)]
pub struct BadResponse(pub String);

/// A piece of an answer that is smaller may wait beside the bounds.
const IN_HAND_BYTES_MIN: usize = 1024 * 1024;

/// A large piece in the hand of a thread (`Exchange::in_hand`).
#[derive(Debug)]
pub struct InHand {
    _charge: Charge,
}

/// One complete request (its body was read to the end) and the means to answer it. Dropped without `finish`:
/// 500 and close if no byte of an answer went out, else the connection is cut so that the client can tell.
pub struct Exchange {
    leader: Arc<Leader<EventLoop>>,
    /// Of the thread that took it from the loop, and entered the application with it.
    lease: Option<Lease>,
    /// None: given back to the loop.
    request: Option<Box<Request>>,
    begun: Instant,
    look: Option<CloseLook>,
    from_loop: bool,
}

impl Exchange {
    pub fn new(leader: Arc<Leader<EventLoop>>, taken: Taken<Box<Request>>) -> Exchange {
        let Taken { request, lease, begun, look, from_loop } = taken;
        Exchange { leader, lease, request: Some(request), begun, look, from_loop }
    }

    fn shared(&self) -> &Shared {
        self.leader.doors()
    }

    /// When an app thread took it.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    fn request(&self) -> &Request {
        // Only `finish`, `fail` and `drop` take it, and nothing can be called after those.
        self.request.as_ref().expect("an exchange has its request until it ends")
    }

    fn request_mut(&mut self) -> &mut Request {
        self.request.as_mut().expect("an exchange has its request until it ends")
    }

    /// How the caller calls this request. No two of a server have the same number, and none has 0 (`Handle::overdue`).
    pub fn set_number(&self, number: u64) {
        self.request().write_half.set_number(number);
    }

    /// A field for the answer to this request, unless the application sets it itself. Both are good as they are.
    pub fn set_id(&mut self, name: &[u8], value: &[u8]) {
        let id = &mut self.request_mut().id;
        id.clear();
        for part in [name, b": ", value] {
            id.extend_from_slice(part);
        }
    }

    /// The answer is complete as far as the application is concerned, whatever of it was sent. False: the client was
    /// answered in its place (`Handle::overdue`), and nothing of this answer is sent or told.
    pub fn claim(&self) -> bool {
        self.shared().is_forgotten() || self.request().write_half.claim()
    }

    pub fn method(&self) -> &[u8] {
        self.request().method()
    }

    /// The request target as it was sent.
    pub fn target(&self) -> &[u8] {
        self.request().target()
    }

    /// The target's path, still percent-encoded (of an absolute-form target, its path; `*` for asterisk-form).
    pub fn path(&self) -> &[u8] {
        self.request().path()
    }

    /// Without `?`; empty if there is none.
    pub fn query(&self) -> &[u8] {
        self.request().query()
    }

    pub fn version(&self) -> Version {
        self.request().head.version
    }

    /// Field lines in order, names as sent, values trimmed. Repeated fields are not joined here. Host is the
    /// authority of an absolute-form target where there is one.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.request().fields()
    }

    pub fn peer(&self) -> &Peer {
        &self.request().peer
    }

    pub fn local(&self) -> &Local {
        &self.request().local
    }

    /// A proxy said by its PROXY header that the client's connection to it is TLS.
    pub fn secure(&self) -> bool {
        self.request().secure
    }

    /// The body. `chunked` bodies are decoded; `content_length` then is the decoded length.
    pub fn body(&self) -> Body<'_> {
        let body = &self.request().body;
        match (body.live(), body.file()) {
            (Some(live), _) => Body::Live(LiveInput::new(&self.leader, live)),
            (None, Some(file)) => Body::File { file: file.as_fd(), length: file.length() },
            (None, None) => Body::Memory(body.memory()),
        }
    }

    /// Why a live body could not be read to its end: the status for the client, unless it has left, and the reason.
    pub fn body_failure(&self) -> Option<(u16, String)> {
        let failure = self.request().body.live()?.failure()?;
        let status = match failure {
            Failure::Refused(refusal) => refusal.status,
            Failure::ClientLeft | Failure::Over => 400,
        };
        Some((status, failure.to_string()))
    }

    /// A large body that lies in memory, to be kept without copying it; `body` is empty from then on. None: it is small,
    /// in a file, or there is none.
    pub fn take_body(&mut self) -> Option<Vec<u8>> {
        let body = &mut self.request_mut().body;
        (body.file().is_none() && body.memory().len() > BUFFER_KEPT_BYTES).then(|| body.take())
    }

    /// What `take_body` gave is no longer needed.
    pub fn give_body_back(&self, body: Vec<u8>) {
        self.request().body.give_back(body);
    }

    /// As declared, or counted for chunked bodies; None where the request has no body, or it is not known yet.
    pub fn content_length(&self) -> Option<u64> {
        self.request().body.length()
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
        self.request_mut().answer.head.begin(status).map_err(BadResponse)
    }

    pub fn add_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadResponse> {
        match self.request_mut().answer.head.add(name, value).map_err(BadResponse)? {
            Added::Kept => {}
            Added::Dropped => self.shared().rules.hops.warn(name),
        }
        Ok(())
    }

    /// Sends an interim answer (103) with these fields, if the client knows such answers and the head has not gone out.
    pub fn early_hints(&mut self, hints: EarlyHints) {
        let Exchange { leader, request, .. } = self;
        let shared = leader.doors();
        let request = request.as_mut().expect("an exchange has its request until it ends");
        if shared.is_forgotten() || request.head.version == Version::Http10 || request.answer.framing.is_some() {
            return;
        }
        if !request.write_half.claim() {
            return;
        }
        // What may be queued now has to go out before anything that is left for the loop.
        request.answer.may_defer = false;
        let sent = request.write_half.send(&[&hints.end()], &shared.rules.temp);
        request.write_half.unclaim();
        written(shared, request.token, sent);
    }

    pub fn end_head(&mut self) {
        self.request_mut().end_head();
    }

    /// True once bytes of the head were handed to the socket or its queue.
    pub fn head_sent(&self) -> bool {
        self.request().answer.framing.is_some()
    }

    /// Sends a piece of the body, with the head before it if that has not gone out. The framing is decided here.
    /// An empty piece sends nothing. Bytes beyond the declared Content-Length are cut and reported by `finish`.
    /// After such bytes the answer is said to be gone: an application that never ends would go on for ever (PEP 3333:
    /// "should stop iterating over the response when enough data has been sent").
    /// All of the piece is taken, even if it is larger than every buffer; see `write_some`.
    pub fn write(&mut self, piece: &[u8]) -> Written {
        if piece.is_empty() {
            return if self.gone() { Written::Gone } else { Written::Done };
        }
        self.send(Part::new(piece))
    }

    /// As `write`, but takes no more of the piece than the buffers have room for and says how many bytes it
    /// took. `Full` with less than the whole: `wait_for_room`, then write the rest.
    pub fn write_some(&mut self, piece: &[u8]) -> (usize, Written) {
        self.write_some_of(piece, None)
    }

    /// As `write_some`, for the first piece of a body whose length is known.
    pub fn write_some_of(&mut self, piece: &[u8], whole: Option<u64>) -> (usize, Written) {
        if self.shared().is_forgotten() {
            return (0, Written::Gone);
        }
        let request = self.request();
        let room = request.write_half.room(&self.shared().rules.temp);
        let taken = piece.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if taken == 0 && !piece.is_empty() {
            return (0, if self.gone() { Written::Gone } else { Written::Full });
        }
        let written = match whole {
            Some(whole) if !self.head_sent() => self.send(Part { whole: Some(whole), ..Part::new(&piece[..taken]) }),
            Some(_) | None => self.write(&piece[..taken]),
        };
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
        self.send(Part { whole: Some(body.len() as u64), ..Part::new(body) })
    }

    /// Whether a body of this length can be given at once: what the client does not take of it finds a place. Else it is to
    /// be given by `write_some_of`.
    pub fn has_room_for(&self, length: usize) -> bool {
        let rules = &self.shared().rules;
        let (length, memory) = (length as u64, &rules.memory);
        // Where no file takes the next one, the thread keeps that in its hand, and both must fit.
        let fits = 2 * length <= memory.left() || (memory.used() == 0 && length <= memory.left());
        length <= SEGMENT_BYTES as u64 || fits || length <= rules.temp.left()
    }

    /// For the time in which a thread has a large piece in its hand, and may wait with it: what others may have is less by
    /// that. None: it is small.
    pub fn in_hand(&self, length: usize) -> Option<InHand> {
        (length >= IN_HAND_BYTES_MIN).then(|| {
            let mut charge = self.shared().rules.memory.charge();
            charge.force(length as u64);
            InHand { _charge: charge }
        })
    }

    /// Frees a piece of the answer that nobody has any more, and that waits in no queue.
    pub fn let_go(&self, piece: Box<dyn Piece>) {
        // A child that the application forked has no thread for it.
        if !self.shared().is_forgotten() {
            let memory = &self.shared().rules.memory;
            let mut charge = memory.charge();
            charge.force(piece.bytes().len() as u64);
            memory.let_go(piece, charge);
        }
    }

    /// As `write_all`, before anything was sent, for a body that somebody else owns: what the socket does not take is not
    /// copied but held. `last`: `finish` follows at once. Where the connection ends with this answer, the kernel then
    /// waits for that, so that the client gets all of it in one packet.
    pub fn write_all_held(&mut self, body: &[u8], hold: Hold<'_>, last: bool) -> Written {
        self.send(Part { bytes: body, whole: Some(body.len() as u64), hold: Some(hold), last })
    }

    fn send(&mut self, part: Part<'_>) -> Written {
        if !self.look.as_ref().is_some_and(|look| look.clocks_sends()) {
            return self.deliver(part);
        }
        let begun = Instant::now();
        let written = self.deliver(part);
        if let Some(look) = &mut self.look {
            look.sent(begun.elapsed());
        }
        written
    }

    fn deliver(&mut self, part: Part<'_>) -> Written {
        let Exchange { leader, request, lease, .. } = self;
        let shared = leader.doors();
        if shared.is_forgotten() {
            return Written::Gone;
        }
        let request = request.as_mut().expect("an exchange has its request until it ends");
        // Only the thread with the lease may leave an answer for the loop to send.
        request.answer.may_defer &= lease.is_some();
        let written = match request.send(part, &shared.rules.temp, shared.is_closing()) {
            Delivery::Unstarted => return Written::Done,
            Delivery::Deferred(Sent::Queued { .. }) if lease.is_some_and(|lease| leader.keeps_answer(lease)) => {
                Written::Done
            }
            Delivery::Deferred(sent) | Delivery::Sent(sent) => written(shared, request.token, sent),
        };
        match written {
            // Or an application that never ends would go on for ever, and nothing that is sent could meet a reset.
            Written::Done | Written::Full if request.answer.takes_no_more() => Written::Gone,
            Written::Done | Written::Full | Written::Gone => written,
        }
    }

    /// `wsgi.file_wrapper`: sends from this offset by sendfile, up to the declared Content-Length or the file's end.
    /// None: not a regular file, or not possible here; write its pieces instead. The file may be closed afterwards;
    /// its own offset does not move.
    pub fn send_file(&mut self, file: RawFd, offset: u64) -> io::Result<Option<Written>> {
        if self.shared().is_forgotten() {
            return Ok(Some(Written::Gone));
        }
        if !self.request().answer.head.is_set() {
            return Ok(None);
        }
        // SAFETY: the caller's descriptor is open for the time of this call.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        let Some((file, left)) = regular_file(file, offset)? else { return Ok(None) };
        let Exchange { leader, request, .. } = self;
        let shared = leader.doors();
        let request = request.as_mut().expect("an exchange has its request until it ends");
        let (temp, closing) = (&shared.rules.temp, shared.is_closing());
        let sent = without_sigpipe(|| request.send_file(file, offset, left, temp, closing))?;
        Ok(sent.map(|sent| written(shared, request.token, sent)))
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
        let write_half = &self.request().write_half;
        let patience = rules.settings.write_timeout.max(rules.settings.proxy_write_timeout);
        write_half.wait_for_room(patience + GRACE, &rules.temp);
        if write_half.is_gone() {
            Written::Gone
        } else {
            Written::Done
        }
    }

    /// The body has as many bytes as were declared, and more were given.
    pub fn is_beyond_length(&self) -> bool {
        self.request().answer.excess
    }

    /// The client has left (as far as we know).
    pub fn gone(&self) -> bool {
        self.shared().is_forgotten() || self.request().write_half.is_gone()
    }

    /// The client has left, or at least it sends no more, as those do that close a connection.
    pub fn disconnected(&self) -> bool {
        let write_half = &self.request().write_half;
        self.gone() || write_half.is_half_closed() || socket::hang_up(write_half.fd()) != HangUp::None
    }

    /// As the application said it; 0: it has not yet.
    pub fn status(&self) -> u16 {
        self.request().answer.head.status()
    }

    /// Memory for a record of this request. `leave_record` gives it back, and it is told when the answer has ended
    /// (`Metrics::ended`).
    pub fn take_record(&mut self) -> Vec<u8> {
        let mut record = std::mem::take(&mut self.request_mut().record);
        record.clear();
        record
    }

    pub fn leave_record(&mut self, record: Vec<u8>) {
        self.request_mut().record = record;
    }

    /// When the request was complete.
    pub fn ready_at(&self) -> Instant {
        self.request().ready_at
    }

    /// The answer's status line and fields as far as they are known: all of them once the head was sent.
    pub fn answer_head(&self) -> &[u8] {
        self.request().answer.head.bytes()
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
        if !self.request().answer.head.is_set() {
            let wrote = self.request().answer.unstarted;
            self.fail(500);
            let what = if wrote { "wrote a body without calling" } else { "did not call" };
            return Err(BadResponse(format!("the application {what} start_response")));
        }
        if !self.head_sent() {
            self.write_all(b"");
        }
        let Exchange { leader, request, .. } = &mut self;
        let shared = leader.doors();
        let request = request.as_mut().expect("an exchange has its request until it ends");
        let outcome = match request.finish(&shared.rules.temp) {
            Ok(sent) => {
                if let Some(sent) = sent {
                    written(shared, request.token, sent);
                }
                Ok(())
            }
            Err(Fault::Short { sent, length }) => {
                Err(BadResponse(format!("the body has {sent} bytes, its Content-Length says {length}")))
            }
            Err(Fault::Long { length }) => {
                Err(BadResponse(format!("the body is longer than its Content-Length, {length} bytes")))
            }
        };
        // Also where it was too long: what the application meant to be the body, the client cannot know.
        self.end(if outcome.is_err() { End::Cut } else { End::Complete }, now, took);
        outcome
    }

    /// A plain error answer if nothing was sent yet, else cuts the connection so that the client can tell.
    pub fn fail(mut self, status: u16) {
        self.fail_in_place(status);
    }

    #[cold]
    fn fail_in_place(&mut self, status: u16) {
        if self.shared().is_forgotten() {
            return;
        }
        if self.head_sent() || !self.claim() {
            self.end_now(End::Cut);
            return;
        }
        let Exchange { leader, request, .. } = self;
        let shared = leader.doors();
        let request = request.as_mut().expect("an exchange has its request until it ends");
        let asked = request.asked();
        let sent = request.refuse(status, "", asked, &shared.rules.temp);
        written(shared, request.token, sent);
        self.end_now(End::Complete);
    }

    fn end_now(&mut self, end: End) {
        let now = Instant::now();
        self.end(end, now, now.saturating_duration_since(self.begun));
    }

    /// Gives the connection back to the loop: directly, where nobody has taken over meanwhile.
    fn end(&mut self, end: End, now: Instant, took: Duration) {
        let Some(mut request) = self.request.take() else { return };
        request.decide_after(end);
        let shared = self.leader.doors();
        if let Some(ended) = request.body.end_live() {
            let slow = ended.failure == Some(Failure::Refused(refusal::BODY_SLOW));
            let wanted = ended.waited >= LIVE_WINDOW && shared.is_wanted();
            if shared.streams().end(ended.waited, slow, wanted, now) {
                log::info!(
                    "{} sent its body too slowly for a thread to wait: bodies go to files for a while",
                    request.peer
                );
            }
            if ended.failure == Some(Failure::ClientLeft) {
                request.write_half.mark_gone();
            }
        }
        if !self.from_loop {
            shared.run_queue.learn(request.path(), took);
        }
        self.leader.times().note(request.path(), took);
        match self.lease.take().and_then(|lease| self.leader.exit_app(lease)) {
            Some(mut guard) => {
                // Only now: what measuring costs must not keep the leader in the application for longer.
                self.record(now, took);
                guard.event_loop().take_back(request, now);
                // The thread has its own copy of the lease.
                let _ = guard.yield_loop();
            }
            None => {
                shared.mailbox.notify(Notice::Returned(request));
                self.record(now, took);
            }
        }
        if let Some(look) = self.look.take() {
            look.end();
        }
    }

    fn record(&self, now: Instant, took: Duration) {
        let look = self.look.as_ref();
        let took = look.map_or(took, |look| look.took(now, took));
        let inside = look.and_then(|look| look.inside(now));
        let waited = look.and_then(|look| look.waited(now));
        let (begun, from_loop) = (self.begun, self.from_loop);
        self.leader.times().record(Times { begun, ended: now, took, inside, waited, from_loop });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.shared().is_forgotten() {
            // The parent answers; this copy must not touch anything that the parent's threads may hold.
            std::mem::forget(self.request.take());
        } else if self.request.is_some() {
            self.fail_in_place(500);
        }
    }
}

/// Tells the loop of a new queue.
fn written(shared: &Shared, token: Token, sent: Sent) -> Written {
    match sent {
        Sent::All => Written::Done,
        Sent::Queued { is_new, full } => {
            if is_new {
                shared.mailbox.notify(Notice::Queued(token));
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

/// A descriptor of our own, and the bytes from the offset to the end; None: not a regular file, or none whose length says
/// how much can be read (files of proc(5) have length 0).
fn regular_file(file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(OwnedFd, u64)>> {
    let file = File::from(file.try_clone_to_owned()?);
    let metadata = file.metadata()?;
    let left = metadata.len().saturating_sub(offset);
    Ok((metadata.is_file() && left > 0).then(|| (file.into(), left)))
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
    // sigprocmask(2) fails only for a bad address or a bad `how`.
    let _ = before.thread_set_mask();
    outcome
}

fn is_sigpipe_pending() -> bool {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigpending fills the set, and it is read only if that succeeded.
    unsafe { libc::sigpending(set.as_mut_ptr()) == 0 && libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1 }
}
