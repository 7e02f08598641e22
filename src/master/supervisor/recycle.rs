//! Replacing workers of the generation that serves: those that are due (`max_requests` and the like), those that are
//! stuck, and those beyond the wanted number. A healthy worker serves until its successor does.

use std::time::{Duration, Instant};

use forkmaster_wire::message::WorkerId;

use super::generation::{Generation, Plan, State, Surge};
use super::worker::{Due, State as WorkerState, Stuck, Worker};
use super::{Action, Supervisor, ANSWER_WITHIN};
use crate::facts::note::Note;

impl Supervisor {
    pub(super) fn mark_due(&mut self, at: usize, id: WorkerId, why: Due) {
        if let Some(worker) = self.set_due(at, id, why) {
            let worker = self.generations[at].name(&worker);
            self.note(Note::Due { worker, why: why.word() });
        }
    }

    /// The same without a word in the log.
    pub(super) fn set_due(&mut self, at: usize, id: WorkerId, why: Due) -> Option<Worker> {
        let worker = self.generations[at].worker_mut(id)?;
        let (WorkerState::Serving { due, .. } | WorkerState::Pausing { due } | WorkerState::Paused { due }) =
            &mut worker.state
        else {
            return None;
        };
        *due = Some(why);
        Some(worker.clone())
    }

    /// Gives workers that are due a successor; when that serves, the old one is surplus.
    pub(super) fn recycle(&mut self, now: Instant) {
        let Some(at) = self.serving_index() else { return };
        if self.exchanging().is_some() {
            return;
        }
        let wanted = self.wanted(at);
        let generation = &self.generations[at];
        let is_due = |worker: &&Worker| matches!(worker.state, WorkerState::Serving { due: Some(_), .. });
        let due: Vec<Worker> = generation.workers.iter().filter(is_due).cloned().collect();
        let mut replacing = due.iter().filter(|worker| generation.present_in(worker.slot).count() > 1).count();
        for worker in due {
            let slot = worker.slot;
            let generation = &self.generations[at];
            if slot.0 >= wanted {
                continue;
            }
            let alone = generation.present_in(slot).count() == 1;
            let rests = generation.slots[slot.0 as usize].backoff_until.is_some();
            // Whoever leaves may keep its idle connections for a while, and its successor needs room.
            let kept =
                generation.workers.iter().filter(|worker| matches!(worker.state, WorkerState::Kept { .. })).count();
            let crowded = generation.leaving() - kept + replacing >= wanted as usize;
            if alone && !rests && !crowded && replacing < replacements_max(&generation.plan) {
                replacing += 1;
                self.spawn(at, slot, now);
            }
        }
    }

    /// Drains what serves beyond the wanted number: slots above it, all but the youngest that serve in one slot, and
    /// abandoned workers whose places are taken.
    pub(super) fn drain_surplus(&mut self, now: Instant) {
        if self.exchanging().is_some() {
            return;
        }
        let Some(at) = self.serving_index() else { return };
        let wanted = self.wanted(at);
        for worker in self.generations[at].workers.clone() {
            let is_younger = |other: &Worker| other.id > worker.id && other.is_serving();
            let outlived = self.generations[at].present_in(worker.slot).any(is_younger);
            if (worker.slot.0 >= wanted || outlived)
                && matches!(
                    worker.state,
                    WorkerState::Opening { .. }
                        | WorkerState::Serving { .. }
                        | WorkerState::Pausing { .. }
                        | WorkerState::Paused { .. }
                        | WorkerState::Ready
                )
            {
                match keeps(&worker).filter(|_| outlived && worker.slot.0 < wanted) {
                    Some(time) => self.keep(at, worker.id, time, now),
                    None => self.drain(at, worker.id, now),
                }
            }
        }
        // A canary serves beside those that are wanted.
        let counts = |other: &&Generation| !matches!(other.state, State::Rolling { .. });
        let serving = |of: &Supervisor| of.generations.iter().filter(counts).map(Generation::serving).sum::<usize>();
        while serving(self) > wanted as usize {
            if !self.generations.iter().any(|other| other.state == State::Abandoned && other.serving() > 0) {
                return;
            }
            self.drain_other(at, now);
        }
    }

    /// Takes it out of service as a pause does, and lets it live.
    fn keep(&mut self, at: usize, id: WorkerId, time: Duration, now: Instant) {
        self.actions.push(Action::Pause { worker: id });
        self.change(at, id, WorkerState::Kept { until: now + time, quiet: false }, now);
    }

    /// Its time is over. What it may still run has as long as at a stop: whoever recycled it has given it up.
    pub(super) fn end_kept(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.drain(at, id, now);
        let deadline = now + self.generations[at].plan.graceful_timeout;
        self.change(at, id, WorkerState::Closing { heard_by: now + ANSWER_WITHIN, deadline }, now);
    }

    /// Workers that are kept, or will be.
    pub(super) fn kept_workers(&self) -> usize {
        self.generations.iter().flat_map(|generation| &generation.workers).filter(|worker| worker.is_kept()).count()
    }

    /// Whether one more worker of this generation may be given up for being stuck.
    pub(super) fn may_terminate(&self, at: usize) -> bool {
        let generation = &self.generations[at];
        let terminating = |worker: &&Worker| matches!(worker.state, WorkerState::Terminating { .. });
        generation.workers.iter().filter(terminating).count() < replacements_max(&generation.plan)
    }

    pub(super) fn terminate(&mut self, at: usize, id: WorkerId, stuck: Stuck, now: Instant) {
        let plan = &self.generations[at].plan;
        let (graceful, drain_timeout) = (plan.graceful_timeout, plan.drain_timeout);
        self.ask_stacks(at, id, now);
        self.actions.push(Action::Retire { worker: id });
        let (check_at, mut deadline) = (now + graceful, now + drain_timeout.max(graceful));
        // Who is on its way out already has no more time for it than before, however many requests get stuck.
        let state = self.generations[at].worker(id).map(|worker| &worker.state);
        if let Some(WorkerState::Closing { deadline: by, .. } | WorkerState::Draining { deadline: by }) = state {
            deadline = deadline.min(*by);
        }
        self.change(at, id, WorkerState::Terminating { stuck, check_at, deadline }, now);
    }
}

/// For how long it is to live after its successor serves.
fn keeps(worker: &Worker) -> Option<Duration> {
    match worker.state {
        WorkerState::Opening { due: Some(Due::Kept(time)), .. }
        | WorkerState::Serving { due: Some(Due::Kept(time)), .. }
        | WorkerState::Pausing { due: Some(Due::Kept(time)) }
        | WorkerState::Paused { due: Some(Due::Kept(time)) } => Some(time),
        WorkerState::Starting { .. }
        | WorkerState::Lost { .. }
        | WorkerState::Ready
        | WorkerState::Opening { .. }
        | WorkerState::Serving { .. }
        | WorkerState::Pausing { .. }
        | WorkerState::Paused { .. }
        | WorkerState::Kept { .. }
        | WorkerState::Closing { .. }
        | WorkerState::Draining { .. }
        | WorkerState::Terminating { .. }
        | WorkerState::Finishing { .. }
        | WorkerState::Exiting { .. }
        | WorkerState::Killed { .. } => None,
    }
}

/// Replacements of due or stuck workers at once.
fn replacements_max(plan: &Plan) -> usize {
    match plan.surge {
        Surge::Workers(surge) => surge.max(1) as usize,
        Surge::Auto => 1,
        Surge::All => plan.workers.max(1) as usize,
    }
}
