//! A maintenance: clients of a paused service are answered with 503 rather than held. It is no state of its own but a term of
//! a pause, an operator's or a reload's, and it begins at once or when the pause has lasted for a while. Here is decided when
//! it begins and who is told; what clients are shown nobody looks into.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{Page, WorkerId};

use super::pause::Pause;
use super::worker::State as WorkerState;
use super::{Action, Supervisor};
use crate::facts::note::Note;

/// A term of a pause, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenancePlan {
    /// So long after the pause has begun.
    pub after: Duration,
    /// None: a line of text.
    pub page: Option<Arc<Page>>,
}

/// The same of a pause that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    begins: Instant,
    page: Option<Arc<Page>>,
}

/// What clients are answered with now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    page: Option<Arc<Page>>,
}

impl MaintenancePlan {
    pub fn begin(&self, now: Instant) -> Maintenance {
        Maintenance { begins: now + self.after, page: self.page.clone() }
    }
}

impl Supervisor {
    /// Clients get 503, for `status`.
    pub fn turns_away(&self) -> bool {
        self.shown.is_some()
    }

    /// Of the pauses that last.
    fn maintenances(&self) -> impl Iterator<Item = &Maintenance> {
        let of_operator = self.maintenance.as_ref().filter(|_| self.pause != Pause::Off);
        let pauses = self.in_transaction().filter(|generation| generation.state.pauses());
        of_operator.into_iter().chain(pauses.and_then(|generation| generation.maintenance.as_ref()))
    }

    /// When the next one begins. Once one has begun it is the one that counts.
    pub(super) fn maintenance_deadline(&self) -> Option<Instant> {
        let waits = self.held().is_some() && self.shown.is_none();
        self.maintenances().map(|maintenance| maintenance.begins).min().filter(|_| waits)
    }

    /// Tells the workers that are paused already, where something has changed.
    pub(super) fn show(&mut self, is_held: bool, now: Instant) {
        let begun = self.maintenances().filter(|maintenance| is_held && maintenance.begins <= now);
        let first = begun.min_by_key(|maintenance| maintenance.begins);
        let due = first.map(|maintenance| Shown { page: maintenance.page.clone() });
        if due == self.shown {
            return;
        }
        let before = std::mem::replace(&mut self.shown, due);
        // Else they are about to serve.
        let Some(held) = self.held().filter(|_| is_held) else { return };
        match self.shown {
            Some(_) => {
                let after_ms = now.saturating_duration_since(held.since).as_millis() as u64;
                self.note(Note::Maintenance { after_ms });
            }
            None => self.note(Note::Pausing),
        }
        for at in 0..self.generations.len() {
            for worker in self.generations[at].workers.clone() {
                match worker.state {
                    // Whoever asks for other terms hears of them when nobody shows the former page any more.
                    WorkerState::Paused { due } if before.is_some() => {
                        self.actions.push(Action::Pause { worker: worker.id });
                        self.show_by(worker.id);
                        self.change(at, worker.id, WorkerState::Pausing { due }, now);
                    }
                    WorkerState::Pausing { .. } | WorkerState::Paused { .. } if self.shown.is_some() => {
                        self.show_by(worker.id);
                    }
                    WorkerState::Pausing { .. } => self.actions.push(Action::Pause { worker: worker.id }),
                    WorkerState::Starting { .. }
                    | WorkerState::Lost { .. }
                    | WorkerState::Ready
                    | WorkerState::Opening { .. }
                    | WorkerState::Serving { .. }
                    | WorkerState::Paused { .. }
                    | WorkerState::Kept { .. }
                    | WorkerState::Closing { .. }
                    | WorkerState::Draining { .. }
                    | WorkerState::Terminating { .. }
                    | WorkerState::Finishing { .. }
                    | WorkerState::Exiting { .. }
                    | WorkerState::Killed { .. } => {}
                }
            }
        }
    }

    /// The page, for one that is told to pause just now, or has been.
    pub(super) fn show_by(&mut self, worker: WorkerId) {
        if let Some(Shown { page }) = &self.shown {
            self.actions.push(Action::Maintenance { worker, page: page.clone() });
        }
    }
}
