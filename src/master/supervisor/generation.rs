//! One generation: its plan, its state, its slots and its workers, and the one place where its state changes.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | - | configured | Proving | starts the template, then one candidate |
//! | Proving | the candidate is ready, and its rehearsal over | Rolling | opens new listeners, asks the predecessor's template whether it could take back |
//! | Proving | it has served before, and its template is ready | Rolling | the same, without a candidate |
//! | Proving | failed, died, deadline, answers that differ | Abandoned | the predecessor is untouched; at first start the master exits |
//! | Rolling | every slot serves, nobody else accepts | Serving | commit: the predecessor drains, listeners without use are closed |
//! | Rolling | too many failed boots, no progress, no room | Abandoned | the predecessor takes its slots back |
//! | Proving, Rolling | a later reload, TERM | Abandoned | as above; the asker hears which |
//! | Serving | a successor commits | Draining | its workers finish |
//! | Serving | TERM | Serving | its workers finish, and the master exits |
//! | Draining | its last worker is gone, its template is kept | Kept | see `kept` |
//! | Draining, Kept, Abandoned | the last process is gone | gone | |
//!
//! First start: there is no predecessor, the candidate serves at once and the first worker that serves commits.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, ListenerId, SlotIndex, WorkerId};

use super::backoff::Backoff;
use super::canary::{CanaryPlan, Loss};
use super::kept::Keep;
use super::maintenance::Maintenance;
use super::pace::{Boot, Pace};
use super::pause::{Command, PausePlan};
use super::rehearsal::{Rehearsal, RehearsalPlan};
use super::services::ServicePlan;
use super::template::Template;
use super::worker::{State as WorkerState, Worker};
use super::Supervisor;
use crate::facts::canary::Canary;
use crate::facts::note::{Note, WorkerName};
use crate::facts::outcome::Verb;

/// What the supervisor must know of a generation's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub workers: u32,
    /// Processes that its scoreboard has room for.
    pub cells: u32,
    /// Worker processes of all generations together: serving, booting and draining.
    pub max_processes: Option<u32>,
    /// The limit of open files, where that bound follows from it.
    pub open_files: Option<NonZeroU32>,
    /// Workers that its template may have been told to fork and has not yet.
    pub unborn_max: u16,
    pub listeners: Vec<ListenerId>,
    pub surge: Surge,
    pub unavailable: u32,
    pub boot_timeout: Duration,
    /// Never less than the keep-alive timeout, so that a reload closes nothing that would have lived.
    pub drain_timeout: Duration,
    pub graceful_timeout: Duration,
    pub shutdown_delay: Duration,
    /// 0: no limit.
    pub max_requests: u64,
    pub max_requests_jitter: u64,
    pub max_lifetime: Option<Duration>,
    /// Requests are held back before it takes over.
    pub pause: Option<Box<PausePlan>>,
    /// How long the template of its predecessor is kept when it has committed. 0: not at all.
    pub rollback_window: Duration,
    /// What it is made as, if a rollback makes it.
    pub origin: Option<GenerationId>,
    /// Its first workers serve beside the old ones for a while.
    pub canary: Option<Box<CanaryPlan>>,
    /// Its workers remember requests, and its candidate answers those that the workers before it remember.
    pub rehearsal: Option<Box<RehearsalPlan>>,
    pub services: Box<[ServicePlan]>,
}

impl Plan {
    /// What bounds the number of worker processes, in words.
    pub fn bound(&self) -> Option<String> {
        let max = self.max_processes?;
        Some(match self.open_files {
            Some(limit) => format!(
                "the limit of {limit} open files has room for {max} (raise LimitNOFILE= in the unit, or `ulimit -n`, and \
                 restart)"
            ),
            None => format!("max_processes = {max}"),
        })
    }
}

/// How many processes a reload may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    Workers(u32),
    /// All new workers wait paused and take over in one step.
    All,
    /// As many as processors and memory allow, in one step where that is all of them.
    Auto,
}

#[derive(Debug)]
pub struct Generation {
    pub id: GenerationId,
    /// How it came about.
    pub verb: Verb,
    pub plan: Plan,
    /// The pause that is still to come.
    pub pause: Option<PausePlan>,
    /// A term of the pause that has begun.
    pub maintenance: Option<Maintenance>,
    /// The canary that is still to come, or serves.
    pub canary: Option<CanaryPlan>,
    /// What that has shown.
    pub tried: Option<Box<Canary>>,
    /// The rehearsal that is still to come, or goes on while it proves itself.
    pub rehearsal: Rehearsal,
    /// How that went.
    pub rehearsed: Option<String>,
    pub state: State,
    /// When it was asked for.
    pub began: Instant,
    pub template: Template,
    /// What becomes of it when the workers are done.
    pub keep: Keep,
    /// The generation that this one is made as, back to the first; itself where it is not made as another one. Those of one
    /// origin have the same directories and settings.
    pub origin: GenerationId,
    /// Whom its template is of, until it commits.
    pub lender: Option<GenerationId>,
    pub template_backoff: Backoff,
    pub slots: Vec<Slot>,
    pub workers: Vec<Worker>,
    /// What the worker that proved it has measured of its boot.
    pub candidate: Boot,
    /// Whoever leaves has `graceful_timeout` for it, since its room is needed.
    pub condemned: bool,
    /// Workers that found no room in this turn.
    pub denied: usize,
    pub blocked: Option<Blocked>,
    /// A limit of the machine was met.
    pub no_room: Option<NoRoom>,
}

/// The machine lets no worker be made: the next try waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Since when there was no birth.
    pub since: Instant,
    /// None: it may be tried.
    pub until: Option<Instant>,
    pub pause: Duration,
}

/// There is no room for its next worker until others have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub until: Instant,
    /// Processes on their way out when it began to wait.
    pub leaving: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Its template starts, then one candidate boots. Touches no connection. The deadlines are the processes' own.
    Proving,
    /// Proved; it takes over, as `rolling` tells.
    Rolling { step: Step, failed_boots: u32, pace: Pace },
    /// The one that serves.
    Serving,
    /// A successor has committed: its workers finish.
    Draining,
    /// Its last worker is gone, and its template lives on for a rollback.
    Kept,
    /// Refused, failed while rolling, or superseded: what serves of it serves on until the predecessor can.
    Abandoned,
}

/// How far a rolling generation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its listeners are being opened.
    Opening { answer_by: Instant },
    /// The predecessor's template was asked whether it could still refill the old slots.
    Asking { ping: u64, answer_by: Instant },
    /// The room for its workers is being measured.
    Measuring { answer_by: Instant },
    /// Its canary boots and begins to serve.
    Placing { deadline: Instant },
    /// Its canary serves beside the old workers, and both are compared. `died`: one of it has, or is
    /// stuck. `look_at` is never beyond `until`, unless the last look was asked for.
    Holding { until: Instant, look_at: Instant, died: Option<Loss> },
    /// Workers boot and change places; each change sets the deadline of the next.
    Exchanging { deadline: Instant },
    /// All new workers are ready, and requests are held back, until none runs any more. `named`: its time is over, and
    /// what still runs was asked for by name.
    Pausing { give_up: Instant, named: bool },
    /// Nothing runs but the command.
    Commanding { command: Command },
    /// The command has ended well, and this worker sends the probe.
    Probing { worker: WorkerId, answer_by: Instant },
    /// Workers that have died meanwhile boot again.
    Refilling { deadline: Instant },
    /// All new workers are ready, all old ones were told to drain.
    HandingOver { serve_at: Instant },
    /// All new workers were told to serve.
    TakingOver { deadline: Instant },
}

impl Step {
    fn deadline(self) -> Instant {
        match self {
            Step::Opening { answer_by } | Step::Asking { answer_by, .. } | Step::Measuring { answer_by } => answer_by,
            Step::Placing { deadline } | Step::Exchanging { deadline } | Step::TakingOver { deadline } => deadline,
            Step::Holding { look_at, .. } => look_at,
            Step::HandingOver { serve_at } => serve_at,
            Step::Pausing { give_up, .. } => give_up,
            Step::Commanding { command } => command.deadline(),
            Step::Probing { answer_by, .. } => answer_by,
            Step::Refilling { deadline } => deadline,
        }
    }

    /// What it waits for, for `status`.
    fn word(self) -> &'static str {
        match self {
            Step::Opening { .. } => "its listeners",
            Step::Asking { .. } => "the old template's answer",
            Step::Measuring { .. } => "the measure of memory",
            Step::Placing { .. } => "its canary to serve",
            Step::Holding { .. } => "the verdict on its canary",
            Step::Exchanging { .. } => "workers to change places",
            Step::Pausing { .. } => "the last request to leave the application",
            Step::Commanding { .. } => "the command",
            Step::Probing { .. } => "the probe",
            Step::Refilling { .. } => "its workers to boot again",
            Step::HandingOver { .. } => "the old workers to stop accepting",
            Step::TakingOver { .. } => "the new workers to accept",
        }
    }
}

/// A place for one worker. It outlives its workers.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    pub backoff: Backoff,
    /// No worker is forked for this slot before.
    pub backoff_until: Option<Instant>,
    /// A worker of this slot has been ready once; later ones need not prove the release again.
    pub proved: bool,
    /// Given up by this worker to the successor that rolls now; taken back if that one is abandoned.
    pub yielded: Option<WorkerId>,
}

impl Generation {
    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.id == id)
    }

    pub fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    /// A worker's name in log lines.
    pub fn name(&self, worker: &Worker) -> WorkerName {
        WorkerName { generation: self.id, slot: worker.slot, pid: worker.pid }
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
                slot.yielded.is_none() && slot.backoff_until.is_none() && self.present_in(*index).next().is_none()
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
            self.present_in(SlotIndex(slot))
                .any(|worker| !matches!(worker.state, WorkerState::Starting { .. } | WorkerState::Lost { .. }))
        })
    }

    /// Workers on their way out that occupy memory all the same.
    pub fn leaving(&self) -> usize {
        self.workers.len() - self.present()
    }

    /// What it waits for, for `status`.
    pub fn waiting(&self) -> Option<String> {
        if let Some(Blocked { leaving, .. }) = self.blocked {
            return Some(format!("room for a worker, behind {leaving} processes that leave"));
        }
        match self.state {
            State::Proving if self.plan.origin.is_some() && self.workers.is_empty() => Some("its template".to_owned()),
            State::Proving => Some(self.rehearsal.waiting().unwrap_or_else(|| "the candidate".to_owned())),
            State::Rolling { step, .. } => Some(step.word().to_owned()),
            State::Serving | State::Draining | State::Kept | State::Abandoned => None,
        }
    }

    /// Workers that this life of the template was told to fork and that are not known yet.
    pub fn unborn(&self) -> usize {
        let since = self.template.ready_since();
        let of_this_life = |worker: &&Worker| since.is_some_and(|since| worker.born >= since);
        self.workers.iter().filter(|worker| worker.pid.is_none()).filter(of_this_life).count()
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

    /// What the machine had no room for may be tried again when its time has come.
    pub fn end_rest(&mut self, now: Instant) {
        if let Some(no_room) = &mut self.no_room {
            no_room.until = no_room.until.filter(|until| *until > now);
        }
    }

    /// The earliest moment at which something of it must be looked at again.
    /// `makes_room`: who waits for room is looked at.
    pub fn deadline(&self, makes_room: bool) -> Option<Instant> {
        let workers = self.workers.iter().filter_map(|worker| worker.deadline(self.plan.max_lifetime));
        let backoffs = self.slots.iter().filter_map(|slot| slot.backoff_until);
        let blocked = self.blocked.filter(|_| makes_room).map(|blocked| blocked.until);
        let no_room = self.no_room.and_then(|no_room| no_room.until);
        workers
            .chain(backoffs)
            .chain(self.template.deadline())
            .chain(self.state.deadline())
            .chain(self.keep.deadline())
            .chain(self.rehearsal.deadline())
            .chain(blocked)
            .chain(no_room)
            .min()
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
            State::Kept => "kept",
            State::Abandoned => "abandoned",
        }
    }

    /// Requests are held back for it.
    pub fn pauses(&self) -> bool {
        matches!(self, State::Rolling { step: Step::Pausing { .. }, .. }) || self.commands()
    }

    /// Its command runs or has run, and it has not taken over yet.
    pub fn commands(&self) -> bool {
        match self {
            State::Rolling { step, .. } => match step {
                Step::Commanding { .. } | Step::Probing { .. } | Step::Refilling { .. } => true,
                Step::Opening { .. }
                | Step::Asking { .. }
                | Step::Measuring { .. }
                | Step::Placing { .. }
                | Step::Holding { .. }
                | Step::Exchanging { .. }
                | Step::Pausing { .. }
                | Step::HandingOver { .. }
                | Step::TakingOver { .. } => false,
            },
            State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned => false,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            State::Rolling { step, .. } => Some(step.deadline()),
            // The deadlines are the processes' own.
            State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned => None,
        }
    }
}

impl Supervisor {
    /// The one place where a generation's state changes, and its log line.
    pub(super) fn change_generation(&mut self, at: usize, to: State) {
        let generation = &mut self.generations[at];
        let from = std::mem::replace(&mut generation.state, to);
        let note = Note::Generation { generation: generation.id, from: Some(from.word()), to: generation.state.word() };
        self.note(note);
    }
}
