//! The end: TERM lets everything finish that was begun, a second TERM, INT or QUIT does not.

use std::time::{Duration, Instant};

use log::Level;

use super::generation::{State, Template};
use super::worker::State as WorkerState;
use super::{Action, Phase, Supervisor, Verdict, ANSWER_WITHIN, KILLED_WITHIN};

impl Supervisor {
    pub(super) fn on_stop(&mut self, now: Instant) {
        match self.phase {
            Phase::Running => {}
            Phase::Delaying { .. } | Phase::Stopping { .. } => return self.end(0, now),
            Phase::Ending { .. } | Phase::Ended => return,
        }
        let Some((graceful, delay)) =
            self.serving().map(|generation| (generation.plan.graceful_timeout, generation.plan.shutdown_delay))
        else {
            // Nobody serves yet: there is nothing to finish.
            return self.end(0, now);
        };
        self.log(Level::Info, "stopping: finishing what was begun".to_owned());
        if let Some(id) = self.in_transaction().map(|generation| generation.id) {
            self.verdict(id, Verdict::Stopped);
            self.abandon(id, now);
        }
        if delay.is_zero() {
            self.stop_workers(now, graceful);
        } else {
            self.phase = Phase::Delaying { until: now + delay };
        }
    }

    pub(super) fn stop_workers(&mut self, now: Instant, graceful: Duration) {
        let deadline = now + graceful;
        self.phase = Phase::Stopping { deadline };
        self.actions.push(Action::CloseAllListeners);
        for at in 0..self.generations.len() {
            self.stop_template(at, now);
            for worker in self.generations[at].workers.clone() {
                match worker.state {
                    WorkerState::Starting { .. } => self.kill(at, worker.id, now),
                    WorkerState::Ready
                    | WorkerState::Opening { .. }
                    | WorkerState::Serving { .. }
                    | WorkerState::Closing { .. }
                    | WorkerState::Draining { .. }
                    | WorkerState::Terminating { .. } => {
                        self.actions.push(Action::StopWorker { worker: worker.id });
                        let heard_by = now + ANSWER_WITHIN;
                        self.change(at, worker.id, WorkerState::Closing { heard_by, deadline }, now);
                    }
                    WorkerState::Exiting { .. } | WorkerState::Killed { .. } => {}
                }
            }
        }
    }

    /// Kills what is left and exits with this code.
    pub(super) fn end(&mut self, code: i32, now: Instant) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            return;
        }
        self.phase = Phase::Ending { code, give_up: now + KILLED_WITHIN };
        if let Some(id) = self.in_transaction().map(|generation| generation.id) {
            self.verdict(id, Verdict::Stopped);
            // So that the deaths of its processes refuse nothing any more.
            self.index(id).into_iter().for_each(|at| self.change_generation(at, State::Abandoned));
        }
        self.actions.push(Action::CloseAllListeners);
        for at in 0..self.generations.len() {
            self.kill_template(at);
            for worker in self.generations[at].workers.clone() {
                self.kill(at, worker.id, now);
            }
        }
    }

    /// Removes generations whose last process is gone, and ends when none is left.
    pub(super) fn collect(&mut self, now: Instant) {
        for at in (0..self.generations.len()).rev() {
            let generation = &self.generations[at];
            let done = match generation.state {
                State::Proving | State::Rolling { .. } => false,
                State::Serving => !matches!(self.phase, Phase::Running | Phase::Delaying { .. }),
                State::Draining | State::Abandoned => true,
            };
            let ending = matches!(self.phase, Phase::Ending { .. });
            if (done || ending) && generation.workers.is_empty() && generation.template == Template::Gone {
                let id = generation.id;
                self.log(Level::Info, format!("generation gen={id} {} -> gone", self.generations[at].state.word()));
                self.actions.push(Action::Forget { generation: id });
                self.generations.remove(at);
            }
        }
        let code = match self.phase {
            Phase::Stopping { .. } if self.generations.is_empty() => 0,
            Phase::Ending { code, give_up } if self.generations.is_empty() || give_up <= now => code,
            Phase::Running | Phase::Delaying { .. } | Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Ended => {
                return
            }
        };
        self.phase = Phase::Ended;
        self.actions.push(Action::Exit { code });
    }
}
