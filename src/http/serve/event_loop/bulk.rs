//! Connections that have more to do than one turn's share.

use crate::serve::base::names::Token;

use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    /// Once a turn, however many events say that there is more: else a fast client would get more turns with each.
    pub(super) fn run_again(&mut self, token: Token) {
        let slot = self.table.slot(token.index);
        if !std::mem::replace(&mut slot.runnable, true) {
            self.runnable.push(token);
        }
    }

    /// Connections that had more to do than a turn's share.
    pub(super) fn run_runnable(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        std::mem::swap(&mut batch, &mut self.runnable);
        for token in batch.drain(..) {
            let Some(slot) = self.table.current(token) else { continue };
            slot.runnable = false;
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                SlotState::Waiting(request) => self.receive(request),
                SlotState::Dispatched => self.drain(token),
                SlotState::Flushing(request) => {
                    slot.state = SlotState::Flushing(request);
                    self.drain(token);
                }
                SlotState::Lingering(request, since) => self.discard(request, since),
                SlotState::Free(_) => unreachable!("`current` gives no free slot"),
            }
        }
        self.batch = batch;
    }
}
