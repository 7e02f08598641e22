//! The end: TERM lets everything finish that was begun, a second TERM, INT or QUIT does not.

use std::time::{Duration, Instant};

use super::generation::{State, Step};
use super::kept::Keep;
use super::template::Template;
use super::worker::{State as WorkerState, Worker};
use super::{Action, Phase, Supervisor, ANSWER_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::End;

/// After everything was killed only the kernel itself can keep a process; the master does not wait for it for ever.
const ENDING_WITHIN: Duration = Duration::from_secs(5);

impl Supervisor {
    /// TERM (`signal`), or a client's `stop`. Only a second signal is in a hurry: systemd sends the first one after
    /// `ExecStop=forkmaster stop`.
    pub(super) fn on_stop(&mut self, signal: bool, now: Instant) {
        let again = self.term_taken && signal;
        self.term_taken |= signal;
        match self.phase {
            Phase::Running => {}
            Phase::Interrupting | Phase::Delaying { .. } | Phase::Stopping { .. } if again => return self.end(0, now),
            Phase::Interrupting
            | Phase::Delaying { .. }
            | Phase::Stopping { .. }
            | Phase::Ending { .. }
            | Phase::Ended => return,
        }
        let Some((graceful, delay)) =
            self.serving().map(|generation| (generation.plan.graceful_timeout, generation.plan.shutdown_delay))
        else {
            // Nobody serves yet: there is nothing to finish.
            return self.end(0, now);
        };
        self.end_pause();
        self.answer_stopping();
        if self.interrupt_command(now) {
            return self.note(Note::StopWaits);
        }
        self.note(Note::Stopping);
        if let Some(id) = self.in_transaction().map(|generation| generation.id) {
            self.abandon(id, End::Stopped, now);
        }
        let deadline = now + graceful.max(delay);
        if delay.is_zero() {
            self.stop_workers(now, deadline);
        } else {
            self.phase = Phase::Delaying { until: now + delay, deadline };
        }
    }

    pub(super) fn stop_workers(&mut self, now: Instant, deadline: Instant) {
        self.phase = Phase::Stopping { deadline };
        self.actions.push(Action::CloseAllListeners);
        // Whoever has asked since TERM: workers came and went until now.
        self.answer_stopping();
        self.stop_services(now);
        let others_answer = self.serving().is_some_and(|serving| serving.workers.iter().any(answers));
        for at in 0..self.generations.len() {
            self.stop_template(at, now);
            let leaves = others_answer && self.generations[at].state != State::Serving;
            for worker in self.generations[at].workers.clone() {
                match worker.state {
                    WorkerState::Starting { .. } | WorkerState::Lost { .. } => self.kill(at, worker.id, now),
                    WorkerState::Ready
                    | WorkerState::Opening { .. }
                    | WorkerState::Serving { .. }
                    | WorkerState::Pausing { .. }
                    | WorkerState::Paused { .. }
                    | WorkerState::Kept { .. }
                    | WorkerState::Closing { .. }
                    | WorkerState::Draining { .. }
                    | WorkerState::Terminating { .. } => {
                        // Whoever has never served leaves to others what waits. Where the service was paused there may
                        // be no others.
                        if worker.state == WorkerState::Ready && self.generations[at].state == State::Serving {
                            self.actions.push(Action::Serve { worker: worker.id });
                        }
                        if leaves {
                            self.leave_to_others(&worker);
                        }
                        self.actions.push(Action::StopWorker { worker: worker.id });
                        let heard_by = now + ANSWER_WITHIN;
                        self.change(at, worker.id, WorkerState::Closing { heard_by, deadline }, now);
                    }
                    WorkerState::Finishing { .. } | WorkerState::Exiting { .. } | WorkerState::Killed { .. } => {}
                }
            }
        }
    }

    /// A request that waits for whoever is free is not for a release that was replaced or given up. A worker that still serves
    /// goes on: it may be the only one with a free thread.
    fn leave_to_others(&mut self, worker: &Worker) {
        match worker.state {
            WorkerState::Kept { .. } => {
                self.actions.push(Action::Drain { worker: worker.id, keep: Vec::new(), yields: false });
                self.actions.push(Action::StandAside { worker: worker.id });
            }
            WorkerState::Closing { .. } | WorkerState::Draining { .. } => {
                self.actions.push(Action::StandAside { worker: worker.id });
            }
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Serving { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => {}
        }
    }

    /// Whoever still has requests is cut; whoever has none did not end by itself.
    pub(super) fn graceful_over(&mut self, now: Instant) {
        let (mut running, mut idle) = (0, Vec::new());
        for generation in &self.generations {
            let limit_s = generation.plan.graceful_timeout.as_secs_f64();
            for worker in &generation.workers {
                match &worker.state {
                    WorkerState::Finishing { threads, .. } => {
                        let (worker, threads) = (generation.name(worker), threads.clone());
                        idle.push(Note::Held { worker, threads, limit_s });
                    }
                    WorkerState::Exiting { .. } | WorkerState::Killed { .. } => {}
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
                    | WorkerState::Terminating { .. } => running += 1,
                }
            }
        }
        self.note(Note::GracefulOver { running, idle: idle.len() });
        idle.into_iter().for_each(|note| self.note(note));
        self.end(0, now);
    }

    /// Kills what is left and exits with this code.
    pub(super) fn end(&mut self, code: i32, now: Instant) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            return;
        }
        self.phase = Phase::Ending { code, give_up: now + ENDING_WITHIN };
        // Nobody tends it from here on, and its deadlines would wake the master again and again.
        self.end_pause();
        self.answer_stopping();
        let runs = |state: &State| matches!(state, State::Rolling { step: Step::Commanding { .. }, .. });
        if let Some(generation) = self.in_transaction().filter(|generation| runs(&generation.state)) {
            let generation = generation.id;
            self.actions.push(Action::EndCommand { generation, kill: true });
        }
        let begun = self.in_transaction().map(|generation| (generation.id, generation.verb, generation.began));
        if let Some((id, verb, began)) = begun {
            self.conclude(id, verb, began, End::Stopped, now);
            // So that the deaths of its processes refuse nothing any more.
            self.index(id).into_iter().for_each(|at| self.change_generation(at, State::Abandoned));
        }
        self.actions.push(Action::CloseAllListeners);
        self.kill_services(now);
        for at in 0..self.generations.len() {
            self.kill_template(at, now);
            for worker in self.generations[at].workers.clone() {
                self.kill(at, worker.id, now);
            }
        }
    }

    /// Removes generations whose last process is gone, and ends when none is left.
    pub(super) fn collect(&mut self, now: Instant) {
        for at in (0..self.generations.len()).rev() {
            self.settle_kept(at);
            let generation = &self.generations[at];
            let done = match generation.state {
                State::Proving | State::Rolling { .. } => false,
                State::Serving => !matches!(self.phase, Phase::Running | Phase::Interrupting | Phase::Delaying { .. }),
                State::Draining | State::Kept | State::Abandoned => {
                    self.phase != Phase::Running || !matches!(generation.keep, Keep::Lent { .. })
                }
            };
            let ending = matches!(self.phase, Phase::Ending { .. });
            let is_empty = generation.workers.is_empty() && generation.template == Template::Gone;
            if (done || ending) && is_empty && !self.has_services(generation.id) {
                let id = generation.id;
                let from = Some(self.generations[at].state.word());
                self.note(Note::Generation { generation: id, from, to: "gone" });
                self.actions.push(Action::Forget { generation: id });
                self.generations.remove(at);
            }
        }
        let code = match self.phase {
            Phase::Stopping { .. } if self.generations.is_empty() => 0,
            Phase::Ending { code, give_up } if self.generations.is_empty() || give_up <= now => code,
            Phase::Running
            | Phase::Interrupting
            | Phase::Delaying { .. }
            | Phase::Stopping { .. }
            | Phase::Ending { .. }
            | Phase::Ended => return,
        };
        self.phase = Phase::Ended;
        self.actions.push(Action::Exit { code });
    }
}

/// It is told to serve, or has served: at a stop it takes what waits.
fn answers(worker: &Worker) -> bool {
    match worker.state {
        WorkerState::Ready
        | WorkerState::Opening { .. }
        | WorkerState::Serving { .. }
        | WorkerState::Pausing { .. }
        | WorkerState::Paused { .. }
        | WorkerState::Kept { .. }
        | WorkerState::Closing { .. }
        | WorkerState::Draining { .. } => true,
        WorkerState::Starting { .. }
        | WorkerState::Lost { .. }
        | WorkerState::Terminating { .. }
        | WorkerState::Finishing { .. }
        | WorkerState::Exiting { .. }
        | WorkerState::Killed { .. } => false,
    }
}
