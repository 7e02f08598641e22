//! What becomes of a connection once its answer is made: the next request, a lingering close, an end.

use std::time::Instant;

use crate::proto::refusal::{self, Refusal};
use crate::proto::response::Asked;
use crate::proto::{syntax, Version};
use crate::serve::base::names::TimerKind;
use crate::serve::base::observers::{Ending, How};
use crate::serve::base::refused::{Refused, Why};
use crate::serve::base::settings::{LINGER, LINGER_SILENCE, READ_BODY_BYTES};
use crate::serve::conn::answer::After;
use crate::serve::conn::answering::split_id;
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::Sent;
use crate::serve::io::epoll::Interest;
use crate::serve::io::socket;

use super::flushing::is_proxy;
use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    /// An answered connection: what is next?
    pub(super) fn settle(&mut self, mut request: Box<Request>) {
        let token = request.token;
        if request.write_half.is_gone() {
            self.close(request);
            return;
        }
        if request.write_half.is_queued() {
            self.table.slot(token.index).state = SlotState::Flushing(request);
            let waits = self.flush_batch.has(token) && self.table.write_half(token.index).is_deferred();
            if self.timers.kind(token.index).is_none() && !waits {
                self.watch_queue(token);
            }
            return;
        }
        self.timers.clear(token.index);
        let how = request.answer.how;
        self.ended(&mut request, how);
        let reader = &mut self.table.slot(token.index).reader;
        match request.answer.after {
            After::KeepAlive => {
                reader.next_request(&mut request, &mut self.inputs);
                if let Some(request) = self.part_after_answer(request) {
                    self.receive(request);
                }
            }
            After::Close | After::Linger => {
                let has_unread = reader.has_unread();
                if std::mem::take(&mut request.answer.ends_by_reset) {
                    socket::set_end_by_reset(request.write_half.fd(), false);
                }
                if request.answer.after == After::Close && !has_unread {
                    // The answer may still wait in the kernel for this end (MSG_MORE). Should the client have sent more by now,
                    // close(2) would send RST and throw the answer away.
                    socket::shutdown_write(request.write_half.fd());
                    self.close(request);
                } else {
                    self.linger(request);
                }
            }
            After::Reset => self.close(request),
        }
    }

    /// The last byte of an answer was handed to the kernel, or nobody will do that any more. Each request of which something
    /// is to be told comes here once.
    fn ended(&self, request: &mut Request, how: How) {
        if request.record.is_empty() {
            return;
        }
        let unsent = match how {
            How::Complete | How::Refused => 0,
            How::ClientLeft | How::WriteTimeout | How::Cut | How::TimedOut => request.write_half.unsent(),
        };
        let body_bytes = request.answer.sent.saturating_sub(unsent);
        let took = self.now.saturating_duration_since(request.ready_at);
        self.metrics.ended(&mut request.record, Ending { how, took, body_bytes });
        request.record.clear();
    }

    /// Later, by somebody who may block. Its timer ends here: until then nobody waits for the client.
    #[cold]
    pub(super) fn refuse_later(&mut self, request: Box<Request>, refusal: Refusal) {
        self.timers.clear(request.token.index);
        self.refused.push_back((request, refusal));
    }

    /// Answers a request that the application will not see, and closes.
    pub(super) fn refuse(&mut self, mut request: Box<Request>, refusal: Refusal) {
        if refusal == refusal::MAINTENANCE {
            return self.turn_away(request);
        }
        let index = request.token.index;
        self.timers.clear(index);
        self.end_unread(&mut request);
        let Refusal { status, reason, limit } = refusal;
        let limit = limit.map_or_else(String::new, |limit| format!(" ({limit})"));
        let id = self.id_of(&request);
        let id_text = id.as_ref().map_or_else(String::new, |id| format!(" id={id}"));
        log::info!("refused {}: {status} {reason}{limit}{id_text}", request.peer);
        let head = self.table.slot(index).reader.asks_for_head(&request);
        let asked = Asked { version: Version::Http11, head, keep_alive: false };
        self.tell_refused(&mut request, Why::Unfit, status, id.as_deref());
        let sent = request.refuse(status, reason, asked, &self.shared.rules.no_files);
        request.answer.how = How::Refused;
        request.answer.after = After::Linger;
        match sent {
            Sent::All | Sent::Queued { .. } | Sent::Gone => self.settle(request),
        }
    }

    /// Asks what is to be told of a request that the application will not see.
    pub(super) fn tell_refused(&mut self, request: &mut Request, why: Why, status: u16, id: Option<&str>) {
        // One that was never complete has not waited for a thread, but perhaps in the kernel's queue.
        if !request.is_complete() {
            request.ready_at = request.waits_since.take().unwrap_or(self.now);
        }
        let mut record = std::mem::take(&mut request.record);
        record.clear();
        let refused = Refused {
            why,
            status,
            peer: &request.peer,
            id: id.map(str::as_bytes),
            waited: self.now.saturating_duration_since(request.ready_at),
            head: self.table.slot(request.token.index).reader.read_so_far(request),
        };
        self.metrics.refused(&refused, &mut record);
        request.record = record;
    }

    /// What a proxy of ours calls a request that the application will not see.
    pub(super) fn id_of(&mut self, request: &Request) -> Option<String> {
        let settings = &self.shared.rules.settings;
        let slot = self.table.slot(request.token.index);
        let name = settings.request_id_header.as_ref()?;
        let id = slot.reader.field(request, name).filter(|id| syntax::is_request_id(id))?;
        let id = String::from_utf8_lossy(id).into_owned();
        is_proxy(slot, settings).then_some(id)
    }

    /// Closing with unread bytes makes the kernel send RST, which destroys the answer on its way to the client
    /// (RFC 9112 section 9.6). So: FIN, read what comes for a while, close.
    pub(super) fn linger(&mut self, mut request: Box<Request>) {
        if !socket::shutdown_write(request.write_half.fd()) {
            self.close(request);
            return;
        }
        let reader = &mut self.table.slot(request.token.index).reader;
        reader.forget(&mut request, &mut self.inputs);
        self.timers.set(request.token.index, TimerKind::Linger, self.now + LINGER_SILENCE);
        self.discard(request, self.now);
    }

    #[cold]
    pub(super) fn discard(&mut self, request: Box<Request>, since: Instant) {
        let token = request.token;
        self.scratch.reserve(READ_BODY_BYTES);
        let whole = self.share();
        let mut share = whole;
        // A process that winds up does not wait for clients that do not look at their answer.
        let patience = if self.mode.is_ending() { LINGER_SILENCE } else { LINGER };
        loop {
            if share == 0 {
                self.run_again(token);
                break;
            }
            match socket::discard(request.write_half.fd(), self.scratch.spare_capacity_mut()) {
                Ok(length) if length > 0 && self.now < since + patience => share = share.saturating_sub(length),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // The client has closed, the connection broke, or it was long enough.
                Ok(_) | Err(_) => return self.close(request),
            }
        }
        self.spend(whole - share);
        if share < whole {
            self.timers.set(token.index, TimerKind::Linger, self.now + LINGER_SILENCE);
        }
        self.table.slot(token.index).state = SlotState::Lingering(request, since);
        self.register(token, Interest::Read);
    }

    /// A live body for which no thread was found.
    pub(super) fn end_unread(&self, request: &mut Request) {
        if let Some(ended) = request.body.end_live() {
            self.shared.streams().end(ended.waited, false, false, self.now);
        }
    }

    pub(super) fn close(&mut self, mut request: Box<Request>) {
        let index = request.token.index;
        self.timers.clear(index);
        self.end_unread(&mut request);
        // Where the loop has answered, it has told so.
        if !request.write_half.is_answered() {
            let write_half = &request.write_half;
            let how = match (write_half.is_dropped(), write_half.is_cut()) {
                (true, _) => How::WriteTimeout,
                (false, true) => {
                    log::error!(
                        "the file that answers {} cannot be sent to its end: {}",
                        named(&request),
                        write_half.why_cut()
                    );
                    How::Cut
                }
                (false, false) => How::ClientLeft,
            };
            self.ended(&mut request, how);
        }
        request.record.clear();
        let slot = self.table.slot(index);
        if request.answer.ends_by_reset {
            socket::reset(request.write_half.fd());
        }
        if self.shared.copies.has_forked() {
            // A child of the application may hold a copy: without this the client would never see the end, and
            // epoll would go on to report it (epoll(7), "Q6").
            let fd = request.write_half.fd();
            if slot.interest.is_some() {
                // Fails only for a descriptor that epoll does not know, and then there is nothing to remove.
                let _ = self.epoll.remove(fd);
            }
            socket::shutdown_both(fd);
        }
        request.write_half.close();
        self.shared.copies.note_socket(index, None);
        self.table.slot(index).reader.forget(&mut request, &mut self.inputs);
        drop(self.table.release(request));
    }
}

/// A request for a line of the log.
fn named(request: &Request) -> String {
    let id = split_id(&request.id).map_or_else(String::new, |(_, id)| format!(" id={}", id.escape_ascii()));
    format!("{} {}{id}", request.method().escape_ascii(), request.target().escape_ascii())
}
