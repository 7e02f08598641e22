//! What workers say of themselves and what became of them: each report is noted in the state that it concerns. What
//! follows for slots and generations is `settle`'s and `transaction`'s.

use std::time::{Duration, Instant};

use forkmaster_wire::message::WorkerId;

use super::backoff;
use super::generation::{NoRoom, State, Step};
use super::worker::{Due, Event, Exit, State as WorkerState, Worker, CHECK_STUCK_EVERY};
use super::{Action, Supervisor, EXIT_WITHIN};
use crate::facts::note::{Note, WorkerName};
use crate::facts::outcome::Refusal;

/// Boots that may fail while a proved generation rolls; the first one could be an accident.
pub(super) const FAILED_BOOTS_MAX: u32 = 3;

/// How long a reload tries to make a worker that a limit of the machine leaves no room for. What was in the way may be leaving.
const NO_ROOM_WITHIN: Duration = Duration::from_secs(10);

/// The longest pause between two tries. They cost a few system calls.
const NO_ROOM_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a worker did not come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    ToBoot,
    /// It was ready.
    ToServe,
}

impl Supervisor {
    pub(super) fn on_worker(&mut self, id: WorkerId, event: Event, now: Instant) {
        let Some(at) = self.generations.iter().position(|generation| generation.worker(id).is_some()) else {
            // It was given up, and a template that had been stopped forks it after all.
            if let Event::Forked { .. } = event {
                self.actions.push(Action::Kill { worker: id });
            }
            return;
        };
        let may_terminate = self.may_terminate(at);
        let generation = &mut self.generations[at];
        let Some(worker) = generation.worker_mut(id) else { return };
        let (state, before) = (worker.state.clone(), worker.clone());
        let name = generation.name(&before);
        use WorkerState as S;
        match (state, event) {
            (state, Event::Forked { pid }) => {
                if before.pid.is_none() {
                    self.born(at, id, pid, now);
                    // It was given up before anyone knew its pid.
                    if matches!(state, S::Killed { .. }) {
                        self.actions.push(Action::Kill { worker: id });
                    }
                }
            }

            (S::Starting { .. }, Event::Ready(boot)) => {
                self.change(at, id, S::Ready, now);
                self.progress(at, now);
                let generation = &mut self.generations[at];
                if generation.state == State::Proving {
                    generation.candidate = boot;
                }
                generation.slot_mut(before.slot).proved = true;
                // A terminated worker of this slot need not be waited for any longer.
                for other in generation.workers.iter_mut().filter(|other| other.slot == before.slot) {
                    if let S::Terminating { check_at, .. } = &mut other.state {
                        *check_at = now;
                    }
                }
            }
            (S::Starting { .. }, Event::Failed(refusal)) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: true }, now);
                self.not_come_up(at, name, Failed::ToBoot, refusal, now);
            }

            (S::Opening { due, .. }, Event::Serving) => self.change(at, id, S::Serving { since: now, due }, now),
            (S::Pausing { due }, Event::Paused) => self.change(at, id, S::Paused { due }, now),
            (_state, Event::Probed(failure)) => self.on_probed(at, id, failure, now),
            (_state, Event::Remembered { requests, more }) => self.on_remembered(id, requests, more),
            (_state, Event::Rehearsed(answer)) => self.on_rehearsed(at, id, answer, now),
            (S::Closing { deadline, .. }, Event::Draining) => self.change(at, id, S::Draining { deadline }, now),

            (S::Closing { .. } | S::Draining { .. } | S::Terminating { .. }, Event::Drained { threads }) => {
                self.drained(at, id, threads, now);
            }
            // It was told to serve again, too late for it.
            (
                S::Opening { .. } | S::Serving { .. } | S::Pausing { .. } | S::Paused { .. },
                Event::Drained { threads },
            ) => {
                self.drained(at, id, threads, now);
                self.slot_lost(at, &before, now);
            }

            (
                S::Serving { due: None, .. } | S::Pausing { due: None } | S::Paused { due: None },
                Event::RequestsServed,
            ) => {
                self.mark_due(at, id, Due::Requests);
            }
            (S::Serving { due: None, .. } | S::Pausing { due: None } | S::Paused { due: None }, Event::TooBig) => {
                self.mark_due(at, id, Due::Memory);
            }

            (S::Starting { .. }, Event::Leaving { reason }) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: true }, now);
                let refusal = Refusal::new(format!("the worker ended itself: {reason}"));
                self.not_come_up(at, name, Failed::ToBoot, refusal, now);
            }
            // Its successor comes first, as for every healthy worker. It also may be that TERM went to all processes, and
            // the master's own is still on its way: then nobody would take what this worker gives away.
            (S::Serving { due: Some(Due::Leaving), .. }, Event::Leaving { .. }) => {}
            (S::Serving { .. }, Event::Leaving { reason }) => {
                self.note(Note::WorkerLeaves { worker: name, reason });
                self.set_due(at, id, Due::Leaving);
                self.slot_lost(at, &before, now);
            }
            (
                S::Ready | S::Opening { .. } | S::Pausing { .. } | S::Paused { .. },
                Event::Leaving { reason },
            ) => {
                self.note(Note::WorkerLeaves { worker: name, reason });
                self.drain(at, id, now);
                self.slot_lost(at, &before, now);
            }

            // One that is to be kept is wanted as it is.
            (S::Serving { .. } | S::Pausing { .. } | S::Paused { .. }, Event::Stuck(stuck))
                if may_terminate && !before.is_kept() =>
            {
                self.terminate(at, id, stuck, now);
                self.canary_died(at, &before, Some(stuck), now);
            }
            (S::Closing { .. } | S::Draining { .. }, Event::Stuck(stuck)) => self.terminate(at, id, stuck, now),
            (S::Terminating { .. }, Event::StillStuck { others: 0 }) => self.kill(at, id, now),
            (S::Terminating { stuck, deadline, .. }, Event::StillStuck { .. }) => {
                let check_at = now + CHECK_STUCK_EVERY;
                self.change(at, id, S::Terminating { stuck, check_at, deadline }, now);
            }
            (S::Terminating { deadline, .. }, Event::Unstuck) => self.change(at, id, S::Draining { deadline }, now),
            (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Kept { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Stacks { text },
            ) => self.on_stacks(at, id, text),

            (
                S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. },
                Event::Slow,
            ) => self.look_at_slow(at, id, now),

            // Usually it is dying; the exit status, which says more, follows at once. Without a pid there is nobody
            // whose exit could follow, and the hands say so.
            (S::Starting { deadline, .. }, Event::ChannelLost | Event::Garbled) => {
                let deadline = deadline.min(now + EXIT_WITHIN);
                self.change(at, id, S::Starting { deadline, look_at: None }, now);
            }
            (S::Ready, Event::ChannelLost | Event::Garbled) => {
                self.change(at, id, S::Lost { kill_at: now + EXIT_WITHIN }, now);
            }
            (
                S::Opening { .. } | S::Serving { .. } | S::Pausing { .. } | S::Paused { .. },
                Event::ChannelLost,
            ) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: false }, now);
                self.slot_lost(at, &before, now);
            }
            // It goes on serving, and cannot be told to drain.
            (S::Opening { .. } | S::Serving { .. } | S::Pausing { .. } | S::Paused { .. }, Event::Garbled) => {
                self.slot_lost(at, &before, now);
                self.kill(at, id, now);
            }
            (
                S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. },
                Event::Garbled,
            ) => self.kill(at, id, now),
            (S::Lost { .. } | S::Killed { .. }, Event::Garbled) => {}
            // It is out of service, and may stand still in a debugger: neither silence nor its requests are a reason.
            (S::Kept { until, .. }, Event::Paused) => self.change(at, id, S::Kept { until, quiet: true }, now),
            (S::Kept { .. }, Event::Leaving { .. }) => self.end_kept(at, id, now),
            (S::Kept { .. }, Event::Drained { threads }) => self.drained(at, id, threads, now),
            (S::Kept { .. }, Event::ChannelLost) => {
                self.change(at, id, S::Exiting { kill_at: now + EXIT_WITHIN, said_why: true }, now);
            }
            (S::Kept { .. }, Event::Garbled) => self.kill(at, id, now),
            (
                S::Kept { .. },
                Event::Ready(_)
                | Event::Failed(_)
                | Event::Serving
                | Event::Draining
                | Event::RequestsServed
                | Event::TooBig
                | Event::Stuck(_)
                | Event::Slow
                | Event::StillStuck { .. }
                | Event::Unstuck,
            ) => {}
            // A draining worker closes its channel at its end and may still join threads within its deadline.
            (
                S::Lost { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::ChannelLost,
            ) => {}

            (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Kept { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Exited(exit),
            ) => self.worker_gone(at, id, &exit, now),

            // Messages that crossed with a command, or that a broken worker makes up: no state believes them.
            (
                S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Ready(_) | Event::Failed(_),
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Serving,
            )
            | (S::Starting { .. } | S::Finishing { .. } | S::Exiting { .. } | S::Killed { .. }, Event::Slow)
            | (
                S::Starting { .. } | S::Ready | S::Lost { .. } | S::Finishing { .. } | S::Exiting { .. } | S::Killed { .. },
                Event::Drained { .. },
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Draining,
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::RequestsServed | Event::TooBig,
            )
            | (
                S::Lost { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Leaving { .. },
            )
            // Reported again with the next scan, when fewer are being replaced, or when it is not to be kept.
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Stuck(_),
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Pausing { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::StillStuck { .. } | Event::Unstuck,
            )
            | (
                S::Starting { .. }
                | S::Ready
                | S::Lost { .. }
                | S::Opening { .. }
                | S::Serving { .. }
                | S::Paused { .. }
                | S::Closing { .. }
                | S::Draining { .. }
                | S::Terminating { .. }
                | S::Finishing { .. }
                | S::Exiting { .. }
                | S::Killed { .. },
                Event::Paused,
            ) => {}
        }
    }

    /// It serves nothing any more.
    fn drained(&mut self, at: usize, id: WorkerId, threads: Vec<String>, now: Instant) {
        let generation = &self.generations[at];
        let kill_at = now + generation.plan.graceful_timeout;
        if let Some(worker) = generation.worker(id).filter(|_| !threads.is_empty()) {
            self.note(Note::WaitsForThreads { worker: generation.name(worker), threads: threads.clone() });
        }
        self.change(at, id, WorkerState::Finishing { kill_at, threads }, now);
    }

    /// Its pid is known: it is a process from here on.
    fn born(&mut self, at: usize, id: WorkerId, pid: i32, now: Instant) {
        let generation = &mut self.generations[at];
        let Some(worker) = generation.worker_mut(id) else { return };
        worker.pid = Some(pid);
        let (worker, to) = (worker.clone(), worker.state.word());
        generation.no_room = None;
        let worker = generation.name(&worker);
        self.note(Note::Worker { worker, from: None, to, after_ms: 0 });
        self.watch_forks(at, true, now);
    }

    /// A worker is gone, or is given up, before it has served.
    pub(super) fn not_come_up(
        &mut self,
        at: usize,
        worker: WorkerName,
        failed: Failed,
        refusal: Refusal,
        now: Instant,
    ) {
        let generation = &mut self.generations[at];
        let pause = generation.slot_mut(worker.slot).backoff.after_failed_boot();
        generation.slot_mut(worker.slot).backoff_until = Some(now + pause);
        match &generation.state {
            State::Proving => {
                let generation = generation.id;
                self.refuse(generation, refusal, now);
            }
            State::Rolling { failed_boots, .. } => {
                let (count, max) = (failed_boots + 1, self.failed_boots_max(at));
                let told = refusal.clone();
                self.note(match failed {
                    Failed::ToBoot => Note::BootFailed { worker, count, max, refusal: told },
                    Failed::ToServe => Note::Lost { worker, next_s: None, refusal: told },
                });
                self.count_failed_boot(at, refusal, now);
            }
            State::Serving => {
                let next_s = pause.as_secs_f64();
                self.note(match failed {
                    Failed::ToBoot => Note::BootFailedAgain { worker, next_s, refusal },
                    Failed::ToServe => Note::Lost { worker, next_s: Some(next_s), refusal },
                });
            }
            State::Draining | State::Kept | State::Abandoned => {}
        }
    }

    /// So many failures end a generation that rolls.
    fn failed_boots_max(&self, at: usize) -> u32 {
        let is_proved = self.generations[at].slots.iter().any(|slot| slot.proved);
        if self.is_taking_over(at) {
            // Nobody else serves: the old workers come back at once.
            1
        } else if is_proved {
            FAILED_BOOTS_MAX
        } else {
            // One that had no candidate: where each of its workers has failed, there is nothing to wait for.
            FAILED_BOOTS_MAX.min(self.wanted(at)).max(1)
        }
    }

    /// A generation that rolls may not fail too often.
    pub(super) fn count_failed_boot(&mut self, at: usize, refusal: Refusal, now: Instant) {
        let id = self.generations[at].id;
        let most = self.failed_boots_max(at);
        let generation = &mut self.generations[at];
        if let State::Rolling { failed_boots, step, .. } = &mut generation.state {
            *failed_boots += 1;
            // Nobody serves before the command has ended; then it counts.
            let command_runs = matches!(step, Step::Commanding { .. });
            if *failed_boots >= most && !command_runs {
                self.refuse(id, refusal, now);
            }
        }
    }

    /// Nobody forks it any more. Its template's own end counts, and says more.
    fn lost_at_birth(&mut self, at: usize, worker: WorkerName, now: Instant) {
        match self.generations[at].state {
            State::Rolling { .. } => {
                let generation = &mut self.generations[at];
                let pause = generation.slot_mut(worker.slot).backoff.after_failed_boot();
                generation.slot_mut(worker.slot).backoff_until = Some(now + pause);
            }
            State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned => {
                let refusal = Exit::LostAtBirth.refusal("the worker died while it booted");
                self.not_come_up(at, worker, Failed::ToBoot, refusal, now);
            }
        }
    }

    /// A limit of the machine leaves no room for it, and the release is not to blame. It is tried again; where somebody waits for
    /// a reload, not for ever.
    fn no_room(&mut self, at: usize, refusal: Refusal, now: Instant) {
        let generation = &mut self.generations[at];
        let id = generation.id;
        let before = generation.no_room;
        if before.is_some_and(|no_room| no_room.until.is_some()) {
            return;
        }
        let pause = before.map_or(backoff::FIRST, |no_room| (no_room.pause * 2).min(NO_ROOM_PAUSE_MAX));
        let since = before.map_or(now, |no_room| no_room.since);
        generation.no_room = Some(NoRoom { since, until: Some(now + pause), pause });
        let in_transaction = matches!(generation.state, State::Proving | State::Rolling { .. });
        if in_transaction && now.saturating_duration_since(since) >= NO_ROOM_WITHIN {
            self.refuse(id, refusal, now);
        } else if before.is_none() {
            self.note(Note::NoRoom { generation: id, refusal });
        }
    }

    /// A worker that had come up is gone or going by itself: its slot rests as its history asks for.
    pub(super) fn slot_lost(&mut self, at: usize, worker: &Worker, now: Instant) {
        let served = match worker.state {
            WorkerState::Serving { since, .. } => now.saturating_duration_since(since),
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => Duration::ZERO,
        };
        let generation = &mut self.generations[at];
        let pause = generation.slot_mut(worker.slot).backoff.after_death(served);
        generation.slot_mut(worker.slot).backoff_until = Some(now + pause);
        if self.canary_died(at, worker, None, now) {
            return;
        }
        self.count_failed_boot(at, Refusal::new("its workers die as soon as they serve"), now);
    }

    /// The process has been reaped (or was never born): from here on nobody can signal its pid.
    fn worker_gone(&mut self, at: usize, id: WorkerId, exit: &Exit, now: Instant) {
        let generation = &mut self.generations[at];
        let Some(place) = generation.workers.iter().position(|worker| worker.id == id) else { return };
        let worker = generation.workers.remove(place);
        let name = generation.name(&worker);
        // Room for whoever waits for it.
        if let Some(rolling) = self.generations.iter().position(|other| matches!(other.state, State::Rolling { .. })) {
            self.progress(rolling, now);
        }
        let expected = match worker.state {
            WorkerState::Draining { .. } | WorkerState::Closing { .. } | WorkerState::Finishing { .. } => {
                *exit == Exit::Code(0)
            }
            // INT and QUIT end it at once.
            WorkerState::Serving { due: Some(Due::Leaving), .. } => *exit == Exit::Code(0),
            WorkerState::Exiting { said_why, .. } => said_why,
            WorkerState::Killed { .. } | WorkerState::Terminating { .. } | WorkerState::Kept { .. } => true,
            // A line of its own tells of it, once.
            WorkerState::Starting { .. } if matches!(exit, Exit::NoRoom(_)) => true,
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Serving { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. } => false,
        };
        let age_s = now.saturating_duration_since(worker.born).as_secs_f64();
        let (from, cause) = (worker.state.word(), exit.to_string());
        self.note(Note::WorkerGone { worker: name, from, cause, age_s, expected });
        if worker.pid.is_none() {
            self.watch_forks(at, true, now);
        }
        match worker.state {
            WorkerState::Starting { .. } if *exit == Exit::LostAtBirth => self.lost_at_birth(at, name, now),
            WorkerState::Starting { .. } if matches!(exit, Exit::NoRoom(_)) => {
                self.no_room(at, exit.refusal("there is no room"), now);
            }
            WorkerState::Starting { .. } => {
                self.not_come_up(at, name, Failed::ToBoot, exit.refusal("the worker died while it booted"), now);
            }
            WorkerState::Ready | WorkerState::Lost { .. } => {
                let what = match self.rehearsed_by(at, Some(id)) {
                    Some(words) => format!("the candidate died in {words}"),
                    None => "the worker died before it served".to_owned(),
                };
                self.not_come_up(at, name, Failed::ToServe, exit.refusal(&what), now);
            }
            // Counted when it said so.
            WorkerState::Serving { due: Some(Due::Leaving), .. } => {}
            WorkerState::Opening { .. }
            | WorkerState::Serving { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. } => self.slot_lost(at, &worker, now),
            WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => {}
        }
    }
}
