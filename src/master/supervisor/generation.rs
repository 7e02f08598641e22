//! One generation: its state, its template, its slots and its workers. Only the supervisor changes them.

use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, SlotIndex, WorkerId};

use super::backoff::Backoff;
use super::worker::{State as WorkerState, Worker};

/// What the supervisor must know of a generation's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub workers: u32,
    pub surge: Surge,
    pub unavailable: u32,
    pub boot_timeout: Duration,
    /// Never less than the keep-alive timeout, so that a reload closes nothing that would have lived.
    pub drain_timeout: Duration,
    pub graceful_timeout: Duration,
    pub shutdown_delay: Duration,
    pub max_lifetime: Option<Duration>,
}

/// How many processes a reload may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    Workers(u32),
    /// All new workers wait paused and take over in one step.
    All,
}

#[derive(Debug)]
pub struct Generation {
    pub id: GenerationId,
    pub plan: Plan,
    pub state: State,
    pub template: Template,
    pub template_backoff: Backoff,
    pub slots: Vec<Slot>,
    pub workers: Vec<Worker>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Its template starts, then one candidate boots. Touches no connection. The deadlines are the processes' own.
    Proving,
    /// Proved; it takes over slot by slot.
    Rolling { step: Step, failed_boots: u32 },
    /// The one that serves.
    Serving,
    /// A successor has committed: its workers finish.
    Draining,
    /// Refused, failed while rolling, or superseded: what serves of it serves on until the predecessor can.
    Abandoned,
}

/// How far a rolling generation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Too many older generations drain; it goes on when one of them is gone.
    Waiting,
    /// Its listeners are being opened; the answer is the next event.
    Opening,
    /// The predecessor's template was asked whether it could still refill the old slots.
    Asking { ping: u64, answer_by: Instant },
    /// Workers change places; each change sets the deadline of the next.
    Exchanging { deadline: Instant },
}

/// The generation's first process, as far as it lives.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    Starting {
        deadline: Instant,
    },
    Ready {
        since: Instant,
    },
    /// Its channel is closed: it should be gone in a moment.
    Lost {
        kill_at: Instant,
    },
    /// It died; the next start waits.
    Backoff {
        until: Instant,
    },
    /// Told to stop.
    Stopping {
        kill_at: Instant,
    },
    /// SIGKILL was sent, once.
    Killed,
    Gone,
}

/// A place for one worker. It outlives its workers.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub backoff: Backoff,
    /// No worker is forked for this slot before.
    pub backoff_until: Option<Instant>,
    /// A worker of this slot has been ready once; later ones need not prove the release again.
    pub proved: bool,
    /// Given up to the successor that rolls now; taken back if that one is abandoned.
    pub yielded: bool,
}

impl Generation {
    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.id == id)
    }

    pub fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    pub fn present(&self) -> usize {
        self.workers.iter().filter(|worker| worker.is_present()).count()
    }

    pub fn serving(&self) -> usize {
        self.workers.iter().filter(|worker| worker.is_serving()).count()
    }

    pub fn present_in(&self, slot: SlotIndex) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| worker.slot == slot && worker.is_present())
    }

    /// Slots up to `wanted` without a worker, whose rest is over.
    pub fn vacant(&self, wanted: u32) -> Vec<SlotIndex> {
        (0..wanted)
            .map(SlotIndex)
            .filter(|index| {
                let slot = &self.slots[index.0 as usize];
                !slot.yielded && slot.backoff_until.is_none() && self.present_in(*index).next().is_none()
            })
            .collect()
    }

    /// Every slot up to `wanted` has a worker that has said that it accepts.
    pub fn all_serving(&self, wanted: u32) -> bool {
        (0..wanted).all(|slot| self.present_in(SlotIndex(slot)).any(Worker::is_serving))
    }

    /// Every slot up to `wanted` has a worker that has booted.
    pub fn all_booted(&self, wanted: u32) -> bool {
        (0..wanted).all(|slot| {
            self.present_in(SlotIndex(slot)).any(|worker| !matches!(worker.state, WorkerState::Starting { .. }))
        })
    }

    /// Workers on their way out that occupy memory all the same.
    pub fn leaving(&self) -> usize {
        self.workers.len() - self.present()
    }

    pub fn slot_mut(&mut self, slot: SlotIndex) -> &mut Slot {
        &mut self.slots[slot.0 as usize]
    }

    /// Makes sure that there are that many slots. Slots are never removed: their numbers name them.
    pub fn grow_slots(&mut self, wanted: u32) {
        if self.slots.len() < wanted as usize {
            self.slots.resize_with(wanted as usize, Slot::default);
        }
    }
}

impl State {
    /// The word for log lines and `status`.
    pub fn word(&self) -> &'static str {
        match self {
            State::Proving => "proving",
            State::Rolling { .. } => "rolling",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Abandoned => "abandoned",
        }
    }
}

impl Template {
    pub fn word(&self) -> &'static str {
        match self {
            Template::Starting { .. } => "starting",
            Template::Ready { .. } => "ready",
            Template::Lost { .. } => "lost",
            Template::Backoff { .. } => "resting",
            Template::Stopping { .. } => "stopping",
            Template::Killed => "killed",
            Template::Gone => "gone",
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match *self {
            Template::Starting { deadline } => Some(deadline),
            Template::Backoff { until } => Some(until),
            Template::Stopping { kill_at } | Template::Lost { kill_at } => Some(kill_at),
            Template::Ready { .. } | Template::Killed | Template::Gone => None,
        }
    }
}
