//! Processes that are on their way out and still there. A deploy never waits for them in silence: there may be so many,
//! and when there are more, or the room that they take is needed, the oldest get `graceful_timeout` and are cut then.

use std::time::Instant;

use super::generation::{Blocked, Generation, Plan, State, Step};
use super::worker::State as WorkerState;
use super::{Supervisor, EXIT_WITHIN, KILLED_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;

/// Leftover processes for each worker that is wanted: three deploys whose predecessors still drain.
const LEFTOVERS_A_WORKER: u32 = 3;

impl Supervisor {
    /// All worker processes there are.
    pub(super) fn processes(&self) -> usize {
        self.generations.iter().map(|generation| generation.workers.len()).sum()
    }

    /// Processes that may still be started; None: as many as you like.
    pub(super) fn free_processes(&self) -> Option<usize> {
        Some((self.max_processes()? as usize).saturating_sub(self.processes()))
    }

    /// As the latest settings say that have not been refused.
    fn max_processes(&self) -> Option<u32> {
        self.bounding()?.max_processes
    }

    fn bounding(&self) -> Option<&Plan> {
        Some(&self.in_transaction().or(self.serving())?.plan)
    }

    /// There may be three times as many leftovers as there are workers, or would be were they not switched off: those who are
    /// switched off have their whole time, and so have those before them.
    pub(super) fn bound_leftovers(&mut self, now: Instant) {
        let Some(serving) = self.serving() else { return };
        let most = (self.wanted_when_on(serving) * LEFTOVERS_A_WORKER) as usize;
        let is_left_over = |generation: &Generation| matches!(generation.state, State::Draining | State::Abandoned);
        for generation in &mut self.generations {
            generation.condemned &= generation.leaving() > 0;
        }
        for at in 0..self.generations.len() {
            let left = |generation: &Generation| match is_left_over(generation) && !generation.condemned {
                true => generation.leaving(),
                false => 0,
            };
            let all: usize = self.generations.iter().map(left).sum();
            if all <= most {
                return;
            }
            if left(&self.generations[at]) > 0 {
                let text = format!("{all} processes are left over, and {most} may be (three times `workers`)");
                self.condemn(at, text, now);
            }
        }
    }

    /// Whoever found no room in this turn says so, and the oldest leftovers get out of its way.
    pub(super) fn make_room(&mut self, now: Instant) {
        for at in 0..self.generations.len() {
            let denied = std::mem::take(&mut self.generations[at].denied);
            if denied == 0 {
                self.generations[at].blocked = None;
                continue;
            }
            let leaving: usize = self.generations.iter().map(Generation::leaving).sum();
            let until = now + self.generations[at].plan.graceful_timeout + KILLED_WITHIN + EXIT_WITHIN;
            if self.generations[at].blocked.is_none() {
                let of = self.generations.iter().filter(|other| other.leaving() > 0).map(|other| other.id).collect();
                let max_processes = self.max_processes();
                let open_files = self.bounding().and_then(|plan| plan.open_files);
                let id = self.generations[at].id;
                self.note(Note::Waiting { generation: id, leaving, of, max_processes, open_files });
                self.generations[at].blocked = Some(Blocked { until, leaving });
                // The wait has a time of its own.
                if let State::Rolling { step: Step::Exchanging { deadline } | Step::Placing { deadline }, .. } =
                    &mut self.generations[at].state
                {
                    *deadline = (*deadline).max(until);
                }
            }
            let in_transaction = matches!(self.generations[at].state, State::Proving | State::Rolling { .. });
            let too_late = self.generations[at].blocked.is_some_and(|blocked| blocked.until <= now);
            if in_transaction && (too_late || leaving == 0) {
                self.refuse_without_room(at, now);
            } else {
                // Whoever serves waits on.
                if too_late {
                    self.generations[at].blocked = Some(Blocked { until, leaving });
                }
                self.condemn_for(denied, now);
            }
        }
    }

    fn refuse_without_room(&mut self, at: usize, now: Instant) {
        let (id, processes) = (self.generations[at].id, self.processes());
        let reason = match self.bounding().and_then(Plan::bound) {
            Some(bound) => format!("there is no room for a worker: {processes} processes are there, {bound}"),
            None => "there is no memory for a worker".to_owned(),
        };
        self.refuse(id, Refusal::new(reason), now);
    }

    /// Oldest first, until as many go as are in the way.
    fn condemn_for(&mut self, denied: usize, now: Instant) {
        let mut going = 0;
        for at in 0..self.generations.len() {
            if going >= denied {
                return;
            }
            let leaving = self.generations[at].leaving();
            if leaving > 0 && !self.generations[at].condemned {
                self.condemn(at, "their room is needed".to_owned(), now);
            }
            going += leaving;
        }
    }

    /// What is on its way out here has `graceful_timeout` from now on. Whoever is kept is told to go at once, and has it, too.
    fn condemn(&mut self, at: usize, why: String, now: Instant) {
        let generation = &mut self.generations[at];
        let by = now + generation.plan.graceful_timeout;
        generation.condemned = true;
        let mut kept = Vec::new();
        for worker in &mut generation.workers {
            match &mut worker.state {
                WorkerState::Closing { deadline, .. }
                | WorkerState::Draining { deadline }
                | WorkerState::Terminating { deadline, .. } => *deadline = (*deadline).min(by),
                WorkerState::Kept { .. } => kept.push(worker.id),
                WorkerState::Starting { .. } | WorkerState::Lost { .. }
                | WorkerState::Ready
                | WorkerState::Opening { .. }
                | WorkerState::Serving { .. }
                | WorkerState::Pausing { .. }
                | WorkerState::Paused { .. }
                // Their own deadlines are no longer than this.
                | WorkerState::Finishing { .. }
                | WorkerState::Exiting { .. }
                | WorkerState::Killed { .. } => {}
            }
        }
        let (id, processes) = (generation.id, generation.leaving());
        let within_s = generation.plan.graceful_timeout.as_secs_f64();
        self.note(Note::LeftoversCut { generation: id, processes, within_s, why });
        for worker in kept {
            self.end_kept(at, worker, now);
        }
    }
}
