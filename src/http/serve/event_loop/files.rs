//! What a disk has to do with connections: bodies that go to a file, and files that are sent. Whoever leads waits for neither
//! (`io/file_threads.rs`). A connection has one piece of work there at a time, and rests until it is done; no timer of its
//! client runs meanwhile.

use std::sync::Arc;

use crate::serve::base::names::{TimerKind, Token};
use crate::serve::base::pace::Window;
use crate::serve::conn::body::Batch;
use crate::serve::conn::request::Request;
use crate::serve::io::epoll::Interest;
use crate::serve::io::file_threads;

use super::mailbox::Notice;
use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    /// What has come of a body goes to its file, and the body is read on afterwards.
    #[cold]
    pub(super) fn write_batch(&mut self, mut request: Box<Request>) {
        let token = request.token;
        self.timers.clear(token.index);
        let mut batch = Box::new(request.body.take_batch());
        self.table.slot(token.index).state = SlotState::Waiting(request);
        // What comes meanwhile stays in the socket. That the client leaves is heard.
        self.register(token, Interest::Read);
        let shared = Arc::clone(&self.shared);
        self.shared.files.give(Box::new(move || {
            batch.write(&shared.rules.temp);
            shared.mailbox.notify(Notice::Written(token, batch));
        }));
    }

    pub(super) fn batch_written(&mut self, token: Token, batch: Batch) {
        // The connection may have ended meanwhile, and then its file ends here.
        let Some(slot) = self.table.current(token) else { return };
        match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Waiting(mut request) if request.body.is_away() => match request.body.put_back(batch) {
                Ok(()) => self.receive(request),
                Err(refusal) => self.refuse_later(request, refusal),
            },
            state @ (SlotState::Waiting(_)
            | SlotState::Dispatched
            | SlotState::Flushing(_)
            | SlotState::Leaving(_)
            | SlotState::Lingering(..)
            | SlotState::Free(_)) => slot.state = state,
        }
    }

    /// What is to be sent next of a file does not lie in memory.
    #[cold]
    pub(super) fn await_file(&mut self, token: Token) {
        self.timers.clear(token.index);
        let slot = self.table.slot(token.index);
        if slot.awaits_file {
            return;
        }
        let Some(part) = slot.write_half.next_of_file() else { return };
        slot.awaits_file = true;
        let shared = Arc::clone(&self.shared);
        self.shared.files.give(Box::new(move || {
            file_threads::read_ahead(&part.file, part.offset, part.length);
            shared.mailbox.notify(Notice::ReadAhead(token, part.offset + part.length));
        }));
    }

    pub(super) fn read_ahead(&mut self, token: Token, until: u64) {
        let Some(slot) = self.table.current(token) else { return };
        slot.awaits_file = false;
        slot.write_half.note_read_ahead(until);
        if !slot.write_half.is_queued() {
            return;
        }
        // The client's time goes on now.
        slot.ack_window = Window::begin(self.now, slot.write_half.acked_bytes());
        self.timers.set(token.index, TimerKind::Write, self.now + self.shared.rules.settings.write_timeout);
        self.run_again(token);
    }
}
