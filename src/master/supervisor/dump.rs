//! The stacks of a process that is stuck, before it is killed: they are the reason why. A worker is asked by message
//! first, since its own answer is the better one; by a signal when there is no answer, since C code that holds the
//! interpreter's lock lets no message be answered, and faulthandler's handler needs no lock.

use std::time::{Duration, Instant};

use forkmaster_wire::message::WorkerId;

use super::worker::Worker;
use super::{Action, Supervisor};

/// Time for a process to answer a request for its stacks, then for faulthandler to write them.
/// Together less than a second: whoever asks waits for it.
pub const STACKS_WITHIN: Duration = Duration::from_millis(400);

/// How far the dump of a worker's stacks has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    None,
    /// The message was sent.
    Asked {
        answer_by: Instant,
    },
    /// The signal was sent; faulthandler writes to the pipe.
    Signalled {
        over_at: Instant,
    },
    /// What it has written is being taken, which is answered at once.
    Taken,
}

impl Dump {
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Dump::None | Dump::Taken => None,
            Dump::Asked { answer_by } => Some(answer_by),
            Dump::Signalled { over_at } => Some(over_at),
        }
    }
}

impl Supervisor {
    /// Asks a stuck worker for its stacks.
    pub(super) fn ask_stacks(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.actions.push(Action::AskStacks { worker: id });
        self.await_stacks(at, id, now);
    }

    /// It was asked for its stacks: where it does not answer, faulthandler does.
    pub(super) fn await_stacks(&mut self, at: usize, id: WorkerId, now: Instant) {
        if let Some(worker) = self.generations[at].worker_mut(id) {
            worker.dump = Dump::Asked { answer_by: now + STACKS_WITHIN };
        }
    }

    /// A request of it is slow: its stacks are wanted, unless they are on their way.
    pub(super) fn look_at_slow(&mut self, at: usize, id: WorkerId, now: Instant) {
        if self.generations[at].worker(id).is_some_and(|worker| worker.dump == Dump::None) {
            self.actions.push(Action::LookAtSlow { worker: id });
            self.await_stacks(at, id, now);
        }
    }

    /// It has answered, or faulthandler has; an empty text: neither. The hands have logged what it said.
    pub(super) fn on_stacks(&mut self, at: usize, id: WorkerId, text: String) {
        if let Some(worker) = self.generations[at].worker_mut(id) {
            worker.dump = Dump::None;
            if !text.is_empty() {
                worker.stacks = text;
            }
        }
    }

    pub(super) fn expire_dump(&mut self, at: usize, worker: &Worker, now: Instant) {
        let (next, action) = match worker.dump {
            Dump::Asked { answer_by } if answer_by <= now => {
                (Dump::Signalled { over_at: now + STACKS_WITHIN }, Action::SignalStacks { worker: worker.id })
            }
            Dump::Signalled { over_at } if over_at <= now => (Dump::Taken, Action::TakeStacks { worker: worker.id }),
            Dump::None | Dump::Asked { .. } | Dump::Signalled { .. } | Dump::Taken => return,
        };
        if let Some(worker) = self.generations[at].worker_mut(worker.id) {
            worker.dump = next;
            self.actions.push(action);
        }
    }
}
