//! Connections that have more to do than one turn's share, and the bytes that all of them may move in a turn.

use crate::serve::base::names::Token;
use crate::serve::base::settings::SHARE_BYTES_MAX;

use super::table::SlotState;
use super::EventLoop;

impl EventLoop {
    /// What a connection may move now.
    pub(super) fn share(&self) -> usize {
        self.turn_left.min(SHARE_BYTES_MAX)
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.turn_left = self.turn_left.saturating_sub(bytes);
    }

    /// Once a turn, however many events say that there is more: else a fast client would get more turns with each.
    pub(super) fn run_again(&mut self, token: Token) {
        let slot = self.table.slot(token.index);
        if !std::mem::replace(&mut slot.runnable, true) {
            self.runnable.push(token);
        }
    }

    /// Connections that had more to do than a turn's share.
    #[inline(never)]
    pub(super) fn run_runnable(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        std::mem::swap(&mut batch, &mut self.runnable);
        let mut handled = 0;
        for &token in &batch {
            if self.turn_left == 0 {
                break;
            }
            handled += 1;
            let Some(slot) = self.table.current(token) else { continue };
            slot.runnable = false;
            match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
                SlotState::Waiting(request) => self.receive(request),
                SlotState::Dispatched if slot.write_half.is_answered() => self.drop_after_answer(token),
                SlotState::Dispatched => self.drain(token),
                SlotState::Flushing(request) => {
                    slot.state = SlotState::Flushing(request);
                    self.drain(token);
                }
                SlotState::Lingering(request, since) => self.discard(request, since),
                SlotState::Leaving(request) => slot.state = SlotState::Leaving(request),
                SlotState::Free(_) => unreachable!("`current` gives no free slot"),
            }
        }
        // Who had no turn comes before those who had theirs.
        batch.drain(..handled);
        batch.append(&mut self.runnable);
        self.batch = std::mem::replace(&mut self.runnable, batch);
    }
}
