//! A reload as a transaction: prove, roll, commit; or refuse and abandon, and the predecessor is as before.

use std::time::Instant;

use forkmaster_wire::message::{Failure, GenerationId, ProofStep};
use log::Level;

use super::backoff::Backoff;
use super::generation::{Generation, Plan, Slot, State, Step, Surge, Template};
use super::worker::{State as WorkerState, Worker};
use super::{
    failure, on_new_line, step_limit, Action, Phase, Supervisor, Verdict, DRAINING_GENERATIONS_MAX, PONG_WITHIN,
};
use crate::exit_code::ExitCode;

impl Supervisor {
    pub(super) fn on_reload(&mut self, id: GenerationId, plan: Plan, now: Instant) {
        if self.phase != Phase::Running {
            self.verdict(id, Verdict::Stopped);
            self.actions.push(Action::AbandonListeners { generation: id });
            self.actions.push(Action::Forget { generation: id });
            return;
        }
        if let Some(current) = self.in_transaction().map(|generation| generation.id) {
            self.log(Level::Info, format!("generation gen={current} superseded by gen={id}"));
            self.verdict(current, Verdict::Superseded { by: id });
            self.abandon(current, now);
        }
        let deadline = now + plan.boot_timeout;
        self.log(Level::Info, format!("generation gen={id} -> proving"));
        self.actions.push(Action::StartTemplate { generation: id });
        self.generations.push(Generation {
            id,
            plan,
            state: State::Proving,
            template: Template::Starting { deadline },
            template_backoff: Backoff::default(),
            slots: vec![Slot::default()],
            workers: Vec::new(),
        });
    }

    pub(super) fn on_listeners_open(&mut self, id: GenerationId, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let predecessor = self.generations.iter().find(|generation| generation.state == State::Serving);
        let can_refill =
            predecessor.map(|generation| (generation.id, matches!(generation.template, Template::Ready { .. })));
        let limit = step_limit(&self.generations[at].plan);
        let exchanging = Step::Exchanging { deadline: now + limit };
        let next = match can_refill {
            None => exchanging,
            Some((predecessor, true)) => {
                self.last_ping += 1;
                let ping = self.last_ping;
                self.actions.push(Action::PingTemplate { generation: predecessor, ping });
                Step::Asking { ping, answer_by: now + PONG_WITHIN }
            }
            Some((predecessor, false)) => {
                self.warn_of_no_way_back(id, predecessor);
                exchanging
            }
        };
        if let State::Rolling { step: step @ Step::Opening, .. } = &mut self.generations[at].state {
            *step = next;
        }
    }

    /// The template that was asked is gone: its answer will never come.
    pub(super) fn roll_without_a_way_back(&mut self, predecessor: GenerationId, now: Instant) {
        let Some(asking) = self.generations.iter_mut().find(|generation| {
            generation.id != predecessor && matches!(generation.state, State::Rolling { step: Step::Asking { .. }, .. })
        }) else {
            return;
        };
        let id = asking.id;
        let deadline = now + step_limit(&asking.plan);
        if let State::Rolling { step, .. } = &mut asking.state {
            *step = Step::Exchanging { deadline };
        }
        self.warn_of_no_way_back(id, predecessor);
    }

    fn warn_of_no_way_back(&mut self, id: GenerationId, predecessor: GenerationId) {
        let line = format!("template gen={predecessor} is not there: gen={id} rolls without a way back");
        self.log(Level::Warn, line);
    }

    pub(super) fn on_listeners_refused(&mut self, id: GenerationId, reason: String, exit_code: i32, now: Instant) {
        self.refuse_with(id, failure(ProofStep::Start, reason), exit_code, now);
    }

    pub(super) fn on_pong(&mut self, pong: u64, now: Instant) {
        for generation in &mut self.generations {
            if let State::Rolling { step: step @ Step::Asking { .. }, .. } = &mut generation.state {
                if matches!(step, Step::Asking { ping, .. } if *ping == pong) {
                    *step = Step::Exchanging { deadline: now + step_limit(&generation.plan) };
                }
            }
        }
    }

    /// The reload failed: the asker hears why, and the predecessor is as before.
    pub(super) fn refuse(&mut self, id: GenerationId, failure: Failure, now: Instant) {
        self.refuse_with(id, failure, ExitCode::Unavailable.into(), now);
    }

    /// As `refuse`; at first start there is no predecessor and the master exits with the code.
    pub(super) fn refuse_with(&mut self, id: GenerationId, failure: Failure, exit_code: i32, now: Instant) {
        let details = on_new_line(&failure.details);
        self.log(Level::Error, format!("generation gen={id} refused: {}{details}", failure.reason));
        self.verdict(id, Verdict::Refused(failure));
        self.abandon(id, now);
        if self.serving().is_none() {
            self.end(exit_code, now);
        }
    }

    /// Undoes a transaction. What serves of the abandoned generation is drained by `settle` as the predecessor's
    /// slots come back, so that capacity never falls for it.
    pub(super) fn abandon(&mut self, id: GenerationId, now: Instant) {
        let Some(at) = self.index(id) else { return };
        self.change_generation(at, State::Abandoned);
        self.stop_template(at, now);
        self.actions.push(Action::AbandonListeners { generation: id });
        for worker in self.generations[at].workers.clone() {
            match worker.state {
                WorkerState::Starting { .. } => self.kill(at, worker.id, now),
                WorkerState::Ready => self.drain(at, worker.id, now),
                WorkerState::Opening { .. }
                | WorkerState::Serving { .. }
                | WorkerState::Closing { .. }
                | WorkerState::Draining { .. }
                | WorkerState::Terminating { .. }
                | WorkerState::Exiting { .. }
                | WorkerState::Killed { .. } => {}
            }
        }
        let Some(at) = self.generations.iter().position(|generation| generation.state == State::Serving) else {
            return;
        };
        for slot in 0..self.generations[at].slots.len() {
            if !std::mem::take(&mut self.generations[at].slots[slot].yielded) {
                continue;
            }
            let back = self.generations[at].workers.iter().find(|worker| {
                worker.slot.0 as usize == slot
                    && matches!(worker.state, WorkerState::Closing { .. } | WorkerState::Draining { .. })
            });
            if let Some(worker) = back.map(|worker| worker.id) {
                self.serve(at, worker, now);
            }
        }
    }

    /// Every slot of the generation serves and nobody else accepts: it is the one from now on.
    pub(super) fn commit(&mut self, at: usize, now: Instant) {
        let id = self.generations[at].id;
        if let Some(predecessor) = self.generations.iter().position(|generation| generation.state == State::Serving) {
            self.change_generation(predecessor, State::Draining);
            self.stop_template(predecessor, now);
            for worker in self.generations[predecessor].workers.clone() {
                match worker.state {
                    WorkerState::Starting { .. } => self.kill(predecessor, worker.id, now),
                    WorkerState::Ready => self.drain(predecessor, worker.id, now),
                    WorkerState::Opening { .. }
                    | WorkerState::Serving { .. }
                    | WorkerState::Closing { .. }
                    | WorkerState::Draining { .. }
                    | WorkerState::Terminating { .. }
                    | WorkerState::Exiting { .. }
                    | WorkerState::Killed { .. } => {}
                }
            }
        }
        self.change_generation(at, State::Serving);
        self.actions.push(Action::Commit { generation: id });
        self.verdict(id, Verdict::Committed);
    }

    /// Takes a proved generation a step further.
    pub(super) fn roll(&mut self, now: Instant) {
        let Some(id) = self.in_transaction().map(|generation| generation.id) else {
            return;
        };
        let Some(at) = self.index(id) else { return };
        if self.generations[at].state == State::Proving {
            if !self.generations[at].workers.iter().any(|worker| worker.state == WorkerState::Ready) {
                return;
            }
            let since = self.generations[at].workers[0].born;
            let took = now.saturating_duration_since(since).as_millis();
            self.log(Level::Info, format!("generation gen={id} proved after={took}ms"));
            self.change_generation(at, State::Rolling { step: Step::Waiting, failed_boots: 0 });
        }
        let State::Rolling { step, .. } = self.generations[at].state else {
            return;
        };
        match step {
            Step::Waiting => {
                // An abandoned generation may have to serve on, where the predecessor cannot take its places back.
                let draining = self
                    .generations
                    .iter()
                    .filter(|other| matches!(other.state, State::Draining | State::Abandoned) && other.leaving() > 0);
                if draining.count() >= DRAINING_GENERATIONS_MAX {
                    return;
                }
                if let State::Rolling { step, .. } = &mut self.generations[at].state {
                    *step = Step::Opening;
                }
                self.actions.push(Action::OpenListeners { generation: id });
            }
            Step::Opening | Step::Asking { .. } => {}
            Step::Exchanging { .. } => self.exchange(at, now),
        }
    }

    /// Starts, serves and drains within `max_surge` and `max_unavailable`, and commits when all have changed.
    pub(super) fn exchange(&mut self, at: usize, now: Instant) {
        let wanted = self.wanted(at);
        let predecessor = self.generations.iter().position(|generation| generation.state == State::Serving);
        let target = wanted.max(predecessor.map_or(0, |predecessor| self.wanted(predecessor))) as usize;
        let plan = self.generations[at].plan.clone();

        if plan.surge != Surge::All || self.generations[at].all_booted(wanted) || predecessor.is_none() {
            self.serve_ready(at, now);
        }
        match predecessor {
            None => {
                // First start: the other slots boot in parallel, and the first one that serves is enough.
                for slot in self.generations[at].vacant(wanted) {
                    self.spawn(at, slot, now);
                }
                if self.generations[at].serving() > 0 {
                    self.commit(at, now);
                }
                return;
            }
            Some(_) if self.generations[at].all_serving(wanted) => {
                while self.drain_other(at, now) {}
                if !self.others(at).any(Worker::may_accept) {
                    self.commit(at, now);
                }
                return;
            }
            Some(_) => {}
        }
        // Surge counts what boots, waits and serves. Without surge a successor waits for the old process's exit.
        let room = match plan.surge {
            Surge::All => usize::MAX,
            Surge::Workers(0) => {
                let leaving: usize = self.generations.iter().map(Generation::leaving).sum();
                target.saturating_sub(self.all_present() + leaving)
            }
            Surge::Workers(surge) => (target + surge as usize).saturating_sub(self.all_present()),
        };
        let vacant = self.generations[at].vacant(wanted);
        for slot in vacant.iter().take(room) {
            self.spawn(at, *slot, now);
        }
        if plan.surge == Surge::All {
            return;
        }
        let floor = target.saturating_sub(plan.unavailable as usize);
        loop {
            let available: usize = self.generations.iter().map(Generation::serving).sum();
            let surplus = available > target;
            let blocked = vacant.len() > room && self.generations[at].serving() > 0;
            if !(surplus || blocked) || available <= floor || !self.drain_other(at, now) {
                return;
            }
        }
    }

    /// Drains one worker that serves for another generation: abandoned ones first. False if there is none.
    pub(super) fn drain_other(&mut self, at: usize, now: Instant) -> bool {
        let mut others: Vec<(usize, &Worker)> = Vec::new();
        for (index, generation) in self.generations.iter().enumerate().filter(|(index, _)| *index != at) {
            let serving =
                |worker: &&Worker| matches!(worker.state, WorkerState::Opening { .. } | WorkerState::Serving { .. });
            others.extend(generation.workers.iter().filter(serving).map(|worker| (index, worker)));
        }
        let abandoned_first =
            |entry: &(usize, &Worker)| (self.generations[entry.0].state != State::Abandoned, entry.1.id);
        let Some((index, worker)) = others.into_iter().min_by_key(abandoned_first) else {
            return false;
        };
        let (slot, worker) = (worker.slot, worker.id);
        self.generations[index].slot_mut(slot).yielded = true;
        self.drain(index, worker, now);
        self.progress(at, now);
        true
    }

    /// A rolling generation came a step further: the next step has its own time.
    pub(super) fn progress(&mut self, at: usize, now: Instant) {
        let generation = &mut self.generations[at];
        if let State::Rolling { step: Step::Exchanging { deadline }, .. } = &mut generation.state {
            *deadline = now + step_limit(&generation.plan);
        }
    }

    pub(super) fn expire_step(&mut self, at: usize, now: Instant) {
        let generation = &self.generations[at];
        let id = generation.id;
        let State::Rolling { step, .. } = generation.state else {
            return;
        };
        match step {
            Step::Asking { answer_by, .. } if answer_by <= now => {
                if let Some(predecessor) = self.generations.iter().position(|other| other.state == State::Serving) {
                    let old = self.generations[predecessor].id;
                    let line = format!("template gen={old} does not answer: killed; gen={id} rolls without a way back");
                    self.log(Level::Warn, line);
                    self.kill_template(predecessor);
                }
                let deadline = now + step_limit(&self.generations[at].plan);
                if let State::Rolling { step, .. } = &mut self.generations[at].state {
                    *step = Step::Exchanging { deadline };
                }
            }
            Step::Exchanging { deadline } if deadline <= now => {
                let reason = "rolling made no progress in time (boot_timeout)".to_owned();
                self.refuse(id, failure(ProofStep::Import, reason), now);
            }
            Step::Waiting | Step::Opening | Step::Asking { .. } | Step::Exchanging { .. } => {}
        }
    }
}
