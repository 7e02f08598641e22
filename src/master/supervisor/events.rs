//! What processes say of themselves and what became of them: each event is noted in the state that it concerns.
//! What follows for slots and generations is `settle`'s and `transaction`'s.

use std::time::{Duration, Instant};

use forkmaster_wire::message::{Failure, GenerationId, ProofStep, SlotIndex, WorkerId};
use log::Level;

use super::generation::{State, Template};
use super::worker::{Due, Event as WorkerEvent, Exit, State as WorkerState, Stuck, Worker};
use super::{failure, on_new_line, replacements_max, Action, Phase, Supervisor, TemplateEvent};
use super::{CHECK_STUCK_EVERY, EXIT_WITHIN, FAILED_BOOTS_MAX};

impl Supervisor {
    pub(super) fn on_template(&mut self, id: GenerationId, event: TemplateEvent, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let generation = &mut self.generations[at];
        let proving = generation.state == State::Proving;
        match (&generation.template, event) {
            (Template::Starting { .. }, TemplateEvent::Loaded) => {
                generation.template = Template::Ready { since: now };
                self.log(Level::Info, format!("template gen={id} starting -> ready"));
            }
            (Template::Starting { .. }, TemplateEvent::Failed(failure)) => {
                generation.template = Template::Stopping { kill_at: now + EXIT_WITHIN };
                if proving {
                    self.refuse(id, failure, now);
                } else {
                    let Failure { reason, details, .. } = failure;
                    let hint = "its workers cannot be replaced until it starts";
                    self.log(
                        Level::Error,
                        format!("template gen={id} failed: {reason}; {hint}{}", on_new_line(&details)),
                    );
                }
            }
            (Template::Ready { .. }, TemplateEvent::Pong { ping }) => self.on_pong(ping, now),
            (Template::Starting { .. } | Template::Ready { .. }, TemplateEvent::Broken { reason }) => {
                generation.template = Template::Killed;
                self.actions.push(Action::KillTemplate { generation: id });
                self.log(Level::Error, format!("template gen={id} is broken: {reason}; killed"));
                if proving {
                    self.refuse(id, failure(ProofStep::Start, format!("the template is broken: {reason}")), now);
                }
            }
            (_, TemplateEvent::Exited(exit)) => self.on_template_exit(at, exit, now),
            (Template::Starting { deadline }, TemplateEvent::ChannelLost) => {
                generation.template = Template::Starting { deadline: (*deadline).min(now + EXIT_WITHIN) };
            }
            (Template::Ready { .. }, TemplateEvent::ChannelLost) => {
                generation.template = Template::Lost { kill_at: now + EXIT_WITHIN };
                self.roll_without_a_way_back(id, now);
            }
            // A message that was on its way when the template was told to stop, or came twice.
            (
                Template::Ready { .. }
                | Template::Lost { .. }
                | Template::Backoff { .. }
                | Template::Stopping { .. }
                | Template::Killed
                | Template::Gone,
                TemplateEvent::Loaded | TemplateEvent::Failed(_),
            )
            | (
                Template::Starting { .. }
                | Template::Lost { .. }
                | Template::Backoff { .. }
                | Template::Stopping { .. }
                | Template::Killed
                | Template::Gone,
                TemplateEvent::Pong { .. },
            )
            | (
                Template::Lost { .. }
                | Template::Backoff { .. }
                | Template::Stopping { .. }
                | Template::Killed
                | Template::Gone,
                TemplateEvent::Broken { .. } | TemplateEvent::ChannelLost,
            ) => {}
        }
    }

    pub(super) fn on_template_exit(&mut self, at: usize, exit: Exit, now: Instant) {
        let generation = &mut self.generations[at];
        let id = generation.id;
        let was = std::mem::replace(&mut generation.template, Template::Gone);
        let expected = matches!(was, Template::Stopping { .. } | Template::Killed);
        let level = if expected { Level::Info } else { Level::Error };
        self.log(level, format!("template gen={id} {} -> gone cause=\"{exit}\"", was.word()));
        let generation = &mut self.generations[at];
        match generation.state {
            State::Proving => {
                self.refuse(id, failure(ProofStep::Import, format!("the process died while it booted: {exit}")), now);
            }
            // Its workers live on; it is started again from the pinned release.
            State::Rolling { .. } | State::Serving if matches!(self.phase, Phase::Running | Phase::Delaying { .. }) => {
                let pause = match was {
                    Template::Ready { since } => {
                        generation.template_backoff.after_death(now.saturating_duration_since(since))
                    }
                    Template::Starting { .. }
                    | Template::Lost { .. }
                    | Template::Backoff { .. }
                    | Template::Stopping { .. }
                    | Template::Killed
                    | Template::Gone => generation.template_backoff.after_failed_boot(),
                };
                generation.template = Template::Backoff { until: now + pause };
                self.roll_without_a_way_back(id, now);
            }
            State::Rolling { .. } | State::Serving | State::Draining | State::Abandoned => {}
        }
    }

    pub(super) fn on_scale(&mut self, by: i32) {
        let Some(configured) = self.serving().map(|generation| generation.plan.workers as i32) else {
            return;
        };
        self.extra = (self.extra + by).max(1 - configured);
        self.log(Level::Info, format!("scaled by {by:+}: {} workers wanted", configured + self.extra));
    }

    pub(super) fn on_worker(&mut self, id: WorkerId, event: WorkerEvent, now: Instant) {
        let Some(at) = self.generations.iter().position(|generation| generation.worker(id).is_some()) else {
            return;
        };
        // What the process says of itself is noted in its state; what follows from it is `settle`'s.
        let generation = &mut self.generations[at];
        let (drain_timeout, graceful) = (generation.plan.drain_timeout, generation.plan.graceful_timeout);
        let terminating =
            generation.workers.iter().filter(|w| matches!(w.state, WorkerState::Terminating { .. })).count();
        let may_terminate = terminating < replacements_max(&generation.plan);
        let Some(worker) = generation.worker_mut(id) else {
            return;
        };
        let (state, slot, before) = (worker.state.clone(), worker.slot, worker.clone());
        use WorkerState as S;
        match (state, event) {
            (state, WorkerEvent::Forked { pid }) => {
                if worker.pid.replace(pid).is_none() {
                    let line = format!("{} -> starting", self.name(at, id));
                    self.log(Level::Info, line);
                    // It was given up before anyone knew its pid.
                    if matches!(state, S::Killed { .. }) {
                        self.actions.push(Action::Kill { worker: id });
                    }
                }
            }

            (S::Starting { .. }, WorkerEvent::Ready) => {
                self.change(at, id, S::Ready, now);
                let generation = &mut self.generations[at];
                generation.slot_mut(slot).proved = true;
                // A terminated worker of this slot need not be waited for any longer.
                for other in generation.workers.iter_mut().filter(|other| other.slot == slot) {
                    if let S::Terminating { check_at, .. } = &mut other.state {
                        *check_at = now;
                    }
                }
            }
            (S::Starting { .. }, WorkerEvent::Failed(failure)) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: true }, now);
                self.boot_failed(at, &self.name(at, id), slot, failure, now);
            }

            (S::Opening { .. }, WorkerEvent::Serving) => self.change(at, id, S::Serving { since: now, due: None }, now),
            (S::Closing { deadline, .. }, WorkerEvent::Draining) => self.change(at, id, S::Draining { deadline }, now),

            (S::Serving { due: None, .. }, WorkerEvent::RequestsServed) => self.mark_due(at, id, Due::Requests),
            (S::Serving { due: None, .. }, WorkerEvent::TooBig) => self.mark_due(at, id, Due::Memory),

            (S::Starting { .. }, WorkerEvent::Leaving { reason }) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: true }, now);
                let failure = failure(ProofStep::Import, format!("the worker ended itself: {reason}"));
                self.boot_failed(at, &self.name(at, id), slot, failure, now);
            }
            (S::Ready | S::Opening { .. } | S::Serving { .. } | S::Closing { .. }, WorkerEvent::Leaving { reason }) => {
                let line = format!("{} leaves: {reason}", self.name(at, id));
                self.log(Level::Info, line);
                self.slot_lost(at, &before, now);
                self.change(at, id, S::Draining { deadline: now + drain_timeout }, now);
            }

            (S::Serving { .. }, WorkerEvent::Stuck(stuck)) if may_terminate => {
                self.terminate(at, id, stuck, now, graceful, drain_timeout);
            }
            (S::Closing { .. } | S::Draining { .. }, WorkerEvent::Stuck(stuck)) => {
                self.terminate(at, id, stuck, now, graceful, drain_timeout);
            }
            (S::Terminating { .. }, WorkerEvent::StillStuck { others: 0 }) => self.kill(at, id, now),
            (S::Terminating { stuck, deadline, .. }, WorkerEvent::StillStuck { .. }) => {
                worker.state = S::Terminating { stuck, check_at: now + CHECK_STUCK_EVERY, deadline };
            }
            (S::Terminating { deadline, .. }, WorkerEvent::Unstuck) => self.change(at, id, S::Draining { deadline }, now),

            (_, WorkerEvent::ChannelLost) if worker.pid.is_none() => {
                self.worker_gone(at, id, Exit::NeverBorn, now);
            }
            // Usually it is dying; the exit status, which says more, follows at once.
            (S::Starting { deadline }, WorkerEvent::ChannelLost) => {
                worker.state = S::Starting { deadline: deadline.min(now + EXIT_WITHIN) };
            }
            (S::Ready, WorkerEvent::ChannelLost) => worker.state = S::Starting { deadline: now + EXIT_WITHIN },
            (S::Opening { .. } | S::Serving { .. }, WorkerEvent::ChannelLost) => {
                self.slot_lost(at, &before, now);
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: false }, now);
            }
            // A draining worker closes its channel at its end and may still join threads within its deadline.
            (
                S::Closing { .. } | S::Draining { .. } | S::Terminating { .. } | S::Exiting { .. } | S::Killed { .. },
                WorkerEvent::ChannelLost,
            ) => {}

            (_, WorkerEvent::Exited(exit)) => self.worker_gone(at, id, exit, now),

            // Messages that crossed with a command, or that a broken worker makes up: no state believes them.
            (
                S::Ready
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                WorkerEvent::Ready | WorkerEvent::Failed(_),
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Serving { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                WorkerEvent::Serving,
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                WorkerEvent::Draining,
            )
            | (_, WorkerEvent::RequestsServed | WorkerEvent::TooBig)
            | (
                S::Draining { .. } | S::Terminating { .. } | S::Exiting { .. } | S::Killed { .. },
                WorkerEvent::Leaving { .. },
            )
            // Reported again with the next scan, when fewer are being replaced.
            | (_, WorkerEvent::Stuck(_))
            | (_, WorkerEvent::StillStuck { .. } | WorkerEvent::Unstuck) => {}
        }
    }

    /// A worker of this slot failed before it was ready.
    pub(super) fn boot_failed(&mut self, at: usize, name: &str, slot: SlotIndex, failure: Failure, now: Instant) {
        let generation = &mut self.generations[at];
        let pause = generation.slot_mut(slot).backoff.after_failed_boot();
        generation.slot_mut(slot).backoff_until = Some(now + pause);
        match &mut generation.state {
            State::Proving => {
                let generation = generation.id;
                self.refuse(generation, failure, now);
            }
            State::Rolling { failed_boots, .. } => {
                *failed_boots += 1;
                let failed_boots = *failed_boots;
                let generation = generation.id;
                let Failure { reason, details, .. } = &failure;
                let details = on_new_line(details);
                let count = format!("{failed_boots} of {FAILED_BOOTS_MAX}");
                self.log(Level::Error, format!("{name} failed to boot ({count}): {reason}{details}"));
                if failed_boots >= FAILED_BOOTS_MAX {
                    self.refuse(generation, failure, now);
                }
            }
            State::Serving => {
                let Failure { reason, details, .. } = failure;
                let (next, details) = (pause.as_secs_f64(), on_new_line(&details));
                self.log(Level::Error, format!("{name} failed to boot, next try in {next:.1}s: {reason}{details}"));
            }
            State::Draining | State::Abandoned => {}
        }
    }

    /// A worker that had come up is gone or going by itself: its slot rests as its history asks for.
    pub(super) fn slot_lost(&mut self, at: usize, worker: &Worker, now: Instant) {
        let served = match worker.state {
            WorkerState::Serving { since, .. } => now.saturating_duration_since(since),
            WorkerState::Starting { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => Duration::ZERO,
        };
        let generation = &mut self.generations[at];
        let pause = generation.slot_mut(worker.slot).backoff.after_death(served);
        generation.slot_mut(worker.slot).backoff_until = Some(now + pause);
        if let State::Rolling { failed_boots, .. } = &mut generation.state {
            *failed_boots += 1;
            if *failed_boots >= FAILED_BOOTS_MAX {
                let id = generation.id;
                self.refuse(id, failure(ProofStep::Import, "its workers die as soon as they serve".to_owned()), now);
            }
        }
    }

    /// The process has been reaped (or was never born): from here on nobody can signal its pid.
    fn worker_gone(&mut self, at: usize, id: WorkerId, exit: Exit, now: Instant) {
        let name = self.name(at, id);
        let generation = &mut self.generations[at];
        let Some(place) = generation.workers.iter().position(|worker| worker.id == id) else { return };
        let worker = generation.workers.remove(place);
        let expected = match worker.state {
            WorkerState::Draining { .. } | WorkerState::Closing { .. } => exit == Exit::Code(0),
            WorkerState::Exiting { said_why, .. } => said_why,
            WorkerState::Killed { .. } | WorkerState::Terminating { .. } => true,
            WorkerState::Starting { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Serving { .. } => false,
        };
        let level = if expected { Level::Info } else { Level::Error };
        let age = now.saturating_duration_since(worker.born).as_secs_f64();
        self.log(level, format!("{name} {} -> gone cause=\"{exit}\" age={age:.3}s", worker.state.word()));
        match worker.state {
            WorkerState::Starting { .. } | WorkerState::Ready => {
                let reason = format!("the worker died while it booted: {exit}");
                self.boot_failed(at, &name, worker.slot, failure(ProofStep::Import, reason), now);
            }
            WorkerState::Opening { .. } | WorkerState::Serving { .. } => self.slot_lost(at, &worker, now),
            WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => {}
        }
    }

    pub(super) fn mark_due(&mut self, at: usize, id: WorkerId, why: Due) {
        let line = format!("{} reached {why}: replacing it", self.name(at, id));
        let Some(worker) = self.generations[at].worker_mut(id) else {
            return;
        };
        if let WorkerState::Serving { due, .. } = &mut worker.state {
            *due = Some(why);
            self.log(Level::Info, line);
        }
    }

    pub(super) fn terminate(
        &mut self,
        at: usize,
        id: WorkerId,
        stuck: Stuck,
        now: Instant,
        graceful: Duration,
        drain_timeout: Duration,
    ) {
        self.actions.push(Action::DumpStacks { worker: id });
        self.actions.push(Action::Retire { worker: id });
        let (check_at, deadline) = (now + graceful, now + drain_timeout.max(graceful));
        self.change(at, id, WorkerState::Terminating { stuck, check_at, deadline }, now);
    }
}
