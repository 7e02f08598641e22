//! How a proved generation takes the old one's places: in one step where all new workers fit beside the old ones, else
//! a few at a time. What has served before waits for no batch: whatever has booted of it serves.
//!
//! | Step | Event | Next | What is done |
//! |---|---|---|---|
//! | Opening | the listeners are open | Asking, Measuring or Exchanging | asks the old template whether it still forks |
//! | Asking | it answers, is gone, or does not in time | Measuring or Exchanging | killed where it does not answer |
//! | Measuring | the room was measured, or not in time | Placing or Exchanging | only with `max_surge = "auto"` |
//! | Placing, Holding | | Measuring or abandoned | see `canary` |
//! | Exchanging | all have changed places | commit | one Serve here, one Drain there |
//! | Exchanging, in one step | all new workers are ready | HandingOver | Drain to all old ones, who stay until the commit |
//! | HandingOver | all have confirmed, or 100 ms | TakingOver | Serve to all new ones |
//! | TakingOver | all serve, no old one accepts | commit | |
//! | HandingOver, TakingOver | a new worker fails | abandoned | the old ones are told to serve again |
//! | Exchanging, `--pause` | all new workers are ready | Pausing | see `pause` |
//! | any | a step's time is over | abandoned | |

use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;

use super::generation::{Generation, Plan, State, Step, Surge};
use super::pace::{Measured, Pace, Room};
use super::pause::PausePlan;
use super::worker::{State as WorkerState, Worker};
use super::{Action, Supervisor, ANSWER_WITHIN, EXIT_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;

/// Opening a bound listener is one system call.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// A template that can fork answers a ping at once.
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// Reading a few files below /proc and /sys; without them memory is no bound.
const MEASURED_WITHIN: Duration = Duration::from_secs(2);

/// A worker that works stops accepting within a millisecond; whoever does not is not waited for, since nobody else
/// accepts meanwhile.
const HANDED_OVER_WITHIN: Duration = Duration::from_millis(100);

/// Nobody else accepts while the new workers begin to: the old ones come back soon.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(3);

/// And so much more for each of them, since they share the processors: 400 workers on two took longer than that.
const TAKEN_OVER_EACH: Duration = Duration::from_millis(25);

impl Supervisor {
    /// Takes a proved generation a step further.
    pub(super) fn roll(&mut self, now: Instant) {
        let Some(id) = self.in_transaction().map(|generation| generation.id) else { return };
        let Some(at) = self.index(id) else { return };
        match self.generations[at].state {
            State::Proving if self.needs_no_candidate(at) => self.open_unproved(at, now),
            State::Proving => self.open_when_proved(at, now),
            State::Rolling { step: Step::Opening { .. } | Step::Asking { .. } | Step::Measuring { .. }, .. } => {}
            State::Rolling { step: Step::Placing { .. }, .. } => self.place_canary(at, now),
            State::Rolling { step: Step::Holding { died, .. }, .. } => self.hold_canary(at, died, now),
            State::Rolling { step: Step::Exchanging { .. }, pace, .. } => self.exchange(at, pace, now),
            State::Rolling { step: Step::Pausing { .. }, .. } => self.pausing(at, now),
            // Its end is an event.
            State::Rolling { step: Step::Commanding { .. }, .. } => {}
            State::Rolling { step: Step::Probing { worker, .. }, .. } => self.probing(at, worker, now),
            State::Rolling { step: Step::Refilling { .. }, .. } => self.refilling(at, now),
            State::Rolling { step: Step::HandingOver { serve_at }, .. } => self.hand_over(at, serve_at, now),
            State::Rolling { step: Step::TakingOver { .. }, .. } => self.take_over(at, now),
            State::Serving | State::Draining | State::Kept | State::Abandoned => {}
        }
    }

    fn open_when_proved(&mut self, at: usize, now: Instant) {
        self.check_rehearsal(at, now);
        let generation = &self.generations[at];
        let Some(candidate) = generation.workers.iter().find(|worker| worker.state == WorkerState::Ready) else {
            return;
        };
        let (id, candidate, after) = (generation.id, candidate.id, now.saturating_duration_since(candidate.born));
        // Nothing is ready of a release that was refused just now.
        if !self.rehearse(at, candidate, now) || self.generations[at].state != State::Proving {
            return;
        }
        self.note(Note::Proved { generation: id, after_ms: after.as_millis() as u64 });
        self.open(at, now);
    }

    /// It has served before, and its template can fork: all its workers boot at once and prove themselves, rather than one
    /// first, since an import would be paid for twice. One that is alone is its own candidate, where nobody is wanted nobody
    /// else would prove it, and where none may boot beside the old ones one of these would have to go for it.
    fn needs_no_candidate(&self, at: usize) -> bool {
        let generation = &self.generations[at];
        let can_fork = generation.template.ready_since().is_some() && generation.workers.is_empty();
        let has_others = self.wanted(at) > 1 && generation.plan.surge != Surge::Workers(0);
        generation.plan.origin.is_some() && can_fork && has_others
    }

    /// What a boot takes is known from those that have booted.
    fn open_unproved(&mut self, at: usize, now: Instant) {
        let origin = self.generations[at].origin;
        let others = || self.generations.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other);
        let known = others().find(|other| other.origin == origin).or_else(|| self.serving());
        if let Some(boot) = known.map(|known| known.candidate) {
            self.generations[at].candidate = boot;
        }
        self.note(Note::NoCandidate { generation: self.generations[at].id });
        self.open(at, now);
    }

    /// It begins to roll.
    pub(super) fn open(&mut self, at: usize, now: Instant) {
        let step = Step::Opening { answer_by: now + OPEN_WITHIN };
        let pace = Pace::by_number(&self.generations[at].plan);
        self.change_generation(at, State::Rolling { step, failed_boots: 0, pace });
        self.actions.push(Action::OpenListeners { generation: self.generations[at].id });
    }

    pub(super) fn on_listeners_open(&mut self, id: GenerationId, now: Instant) {
        let Some(at) = self.index(id) else { return };
        if !matches!(self.generations[at].state, State::Rolling { step: Step::Opening { .. }, .. }) {
            return;
        }
        match self.serving().map(|predecessor| (predecessor.id, predecessor.template.ready_since().is_some())) {
            None => self.begin_exchange(at, now),
            Some((predecessor, true)) => {
                self.last_ping += 1;
                let ping = self.last_ping;
                self.actions.push(Action::PingTemplate { generation: predecessor, ping });
                self.change_step(at, Step::Asking { ping, answer_by: now + PONG_WITHIN });
            }
            Some((predecessor, false)) => {
                self.note(Note::NoWayBack { generation: id, predecessor, killed: false });
                self.measure(at, now);
            }
        }
    }

    pub(super) fn on_listeners_refused(&mut self, id: GenerationId, refusal: Refusal, now: Instant) {
        let Some(at) = self.index(id) else { return };
        if matches!(self.generations[at].state, State::Rolling { step: Step::Opening { .. }, .. }) {
            self.refuse(id, refusal, now);
        }
    }

    pub(super) fn on_pong(&mut self, pong: u64, now: Instant) {
        let asked = |generation: &Generation| match generation.state {
            State::Rolling { step: Step::Asking { ping, .. }, .. } => ping == pong,
            State::Rolling { .. }
            | State::Proving
            | State::Serving
            | State::Draining
            | State::Kept
            | State::Abandoned => false,
        };
        if let Some(at) = self.generations.iter().position(asked) {
            self.measure(at, now);
        }
    }

    /// The template that was asked is gone: its answer will never come.
    pub(super) fn roll_without_a_way_back(&mut self, predecessor: GenerationId, now: Instant) {
        let Some(at) = self.generations.iter().position(|generation| {
            generation.id != predecessor && matches!(generation.state, State::Rolling { step: Step::Asking { .. }, .. })
        }) else {
            return;
        };
        self.note(Note::NoWayBack { generation: self.generations[at].id, predecessor, killed: false });
        self.measure(at, now);
    }

    pub(super) fn measure(&mut self, at: usize, now: Instant) {
        if self.generations[at].plan.surge != Surge::Auto {
            return self.decide(at, Room::UNKNOWN, now);
        }
        self.change_step(at, Step::Measuring { answer_by: now + MEASURED_WITHIN });
        self.actions.push(Action::MeasureRoom { generation: self.generations[at].id });
    }

    pub(super) fn on_room(&mut self, id: GenerationId, room: Room, kept_bytes: u64, now: Instant) {
        self.kept_bytes = kept_bytes;
        let Some(at) = self.index(id) else { return };
        if matches!(self.generations[at].state, State::Rolling { step: Step::Measuring { .. }, .. }) {
            self.decide(at, room, now);
        }
    }

    /// How it rolls from here on.
    fn decide(&mut self, at: usize, room: Room, now: Instant) {
        if let Some(plan) = self.canary_to_come(at) {
            return self.begin_canary(at, plan, room, now);
        }
        let generation = &self.generations[at];
        let wanted = self.wanted(at);
        let measured = Measured {
            room,
            candidate: generation.candidate,
            missing: wanted.saturating_sub(generation.present() as u32),
            processes: self.processes() as u32,
        };
        let mut decided = self.pace_or_give_up(at, measured, now);
        let generation = &self.generations[at];
        if generation.plan.origin.is_some() && generation.plan.pause.is_none() && decided.boots < measured.missing {
            // Whoever goes back is in a hurry: what has booted serves, while others boot after it.
            decided.one_step = false;
        }
        let waves = decided.processes.map(|processes| processes.saturating_sub(measured.processes));
        let at_once = match (generation.plan.surge, waves) {
            (Surge::Workers(surge), None | Some(_)) => surge.min(wanted),
            (Surge::All | Surge::Auto, None) => wanted,
            (Surge::All | Surge::Auto, Some(waves)) => waves,
        };
        self.note(Note::Rolling {
            generation: generation.id,
            at_once,
            of: wanted,
            boots: decided.boots.min(at_once.max(1)),
            bytes_each: decided.bytes_each,
            bytes_free: decided.bytes_free,
        });
        if let State::Rolling { pace, .. } = &mut self.generations[at].state {
            *pace = decided;
        }
        self.begin_exchange(at, now);
    }

    pub(super) fn begin_exchange(&mut self, at: usize, now: Instant) {
        let deadline = now + step_limit(&self.generations[at].plan);
        self.change_step(at, Step::Exchanging { deadline });
    }

    pub(super) fn change_step(&mut self, at: usize, to: Step) {
        if let State::Rolling { step, .. } = &mut self.generations[at].state {
            *step = to;
        }
    }

    /// Starts, serves and drains as its pace allows, and commits when all have changed.
    pub(super) fn exchange(&mut self, at: usize, pace: Pace, now: Instant) {
        let wanted = self.wanted(at);
        if let Some(plan) = self.generations[at].pause.clone() {
            return self.exchange_with_pause(at, &plan, wanted, pace, now);
        }
        let Some(predecessor) = self.serving_index() else { return self.first_start(at, wanted, now) };
        if self.is_held() {
            return self.exchange_held(at, wanted, pace, now);
        }
        if wanted == 0 {
            // Nobody serves, and nobody is to: the release counts from now on.
            while self.drain_other(at, now) {}
            if !self.others(at).any(Worker::may_accept) {
                self.commit(at, now);
            }
            return;
        }
        if pace.one_step {
            self.boot(at, wanted, usize::MAX, pace, now);
            if self.generations[at].all_booted(wanted) {
                // Beside a canary there is no moment to keep clear, and it should not get all that the old ones give away.
                if self.generations[at].serving() > 0 {
                    self.serve_ready(at, now);
                }
                while self.drain_other_as(at, true, now) {}
                self.change_step(at, Step::HandingOver { serve_at: now + HANDED_OVER_WITHIN });
                self.hand_over(at, now + HANDED_OVER_WITHIN, now);
            }
            return;
        }
        self.serve_ready(at, now);
        if self.generations[at].all_serving(wanted) {
            while self.drain_other(at, now) {}
            if !self.others(at).any(Worker::may_accept) {
                self.commit(at, now);
            }
            return;
        }
        let target = wanted.max(self.wanted(predecessor)) as usize;
        let room = self.room_beside(at, target, pace);
        let vacant = self.generations[at].vacant(wanted).len();
        self.boot(at, wanted, room, pace, now);
        let floor = target.saturating_sub(pace.unavailable as usize);
        let mut drained = false;
        loop {
            let available: usize = self.generations.iter().map(Generation::serving).sum();
            let surplus = available > target;
            let blocked = vacant > room && self.generations[at].serving() > 0;
            if !(surplus || blocked) || available <= floor || !self.drain_other(at, now) {
                break;
            }
            drained = true;
        }
        // Also an old one that was told to serve and has not said so: it will, or it is killed and leaves its room.
        let mut workers = self.generations.iter().flat_map(|generation| &generation.workers);
        let coming = workers.any(|worker| worker.is_present() && !worker.is_serving());
        let waits_for_exits = self.generations[at].plan.surge == Surge::Workers(0) && pace.processes.is_none();
        if vacant > 0 && room == 0 && !coming && !drained && !waits_for_exits {
            self.generations[at].denied = vacant;
        }
    }

    /// Everything that can refuse the release by itself comes before anything is paused.
    fn exchange_with_pause(&mut self, at: usize, plan: &PausePlan, wanted: u32, pace: Pace, now: Instant) {
        let impossible = match self.serving_index() {
            None => Some("nothing serves yet that could be paused"),
            Some(_) if wanted == 0 => Some("the workers are switched off: run the command yourself, then reload"),
            Some(_) if !pace.one_step => {
                Some("there is no room for all new workers beside the old ones, and a paused reload needs that")
            }
            Some(_) => None,
        };
        if let Some(reason) = impossible {
            return self.refuse(self.generations[at].id, Refusal::new(reason), now);
        }
        self.boot(at, wanted, usize::MAX, pace, now);
        if self.generations[at].all_booted(wanted) {
            self.generations[at].pause = None;
            self.begin_pausing(at, plan, now);
        }
    }

    /// Nobody serves meanwhile, so nobody is missed: the new workers boot and wait as the old ones did.
    fn exchange_held(&mut self, at: usize, wanted: u32, pace: Pace, now: Instant) {
        let room = self.room_beside(at, wanted as usize, pace);
        let vacant = self.generations[at].vacant(wanted).len();
        self.boot(at, wanted, room, pace, now);
        if self.generations[at].all_booted(wanted) {
            while self.drain_other(at, now) {}
            if !self.others(at).any(Worker::may_accept) {
                self.commit(at, now);
            }
        } else if vacant > room {
            self.drain_other(at, now);
        }
    }

    /// The other slots boot in parallel, and the first worker that serves is enough.
    fn first_start(&mut self, at: usize, wanted: u32, now: Instant) {
        self.serve_ready(at, now);
        for slot in self.generations[at].vacant(wanted) {
            self.spawn(at, slot, now);
        }
        if self.generations[at].serving() > 0 {
            self.commit(at, now);
        }
    }

    /// How many more workers may be there beside the old ones.
    fn room_beside(&self, at: usize, target: usize, pace: Pace) -> usize {
        let by_surge = match (self.generations[at].plan.surge, pace.processes) {
            // One beside the old ones at the least, whatever has become of them since it was measured.
            (Surge::Workers(_) | Surge::All | Surge::Auto, Some(processes)) => {
                (processes as usize).max(target + 1).saturating_sub(self.processes())
            }
            // Without surge a successor waits for the old process's exit.
            (Surge::Workers(0), None) => target.saturating_sub(self.processes()),
            (Surge::Workers(surge), None) => (target + surge as usize).saturating_sub(self.all_present()),
            (Surge::All | Surge::Auto, None) => usize::MAX,
        };
        self.free_processes().map_or(by_surge, |free| by_surge.min(free))
    }

    /// Starts workers for vacant slots, as many as there is room for and as boot at a time.
    pub(super) fn boot(&mut self, at: usize, wanted: u32, room: usize, pace: Pace, now: Instant) {
        let booting = self.generations[at].workers.iter();
        let booting = booting
            .filter(|worker| matches!(worker.state, WorkerState::Starting { .. } | WorkerState::Lost { .. }))
            .count();
        let more = (pace.boots as usize).saturating_sub(booting).min(room);
        for slot in self.generations[at].vacant(wanted).into_iter().take(more) {
            self.spawn(at, slot, now);
        }
    }

    /// Nobody accepts from here on until the new workers do: what comes meanwhile waits in the backlog.
    fn hand_over(&mut self, at: usize, serve_at: Instant, now: Instant) {
        if self.others(at).any(Worker::may_accept) && now < serve_at {
            return;
        }
        let limit = step_limit(&self.generations[at].plan);
        self.change_step(at, Step::TakingOver { deadline: now + limit });
        self.take_over(at, now);
    }

    fn take_over(&mut self, at: usize, now: Instant) {
        let ids = self.worker_ids(at);
        let limit = TAKEN_OVER_WITHIN + TAKEN_OVER_EACH * ids.len() as u32;
        for id in ids {
            if self.generations[at].worker(id).is_some_and(|worker| worker.state == WorkerState::Ready) {
                self.serve_within(at, id, limit, now);
            }
        }
        while self.drain_other(at, now) {}
        let opening = |worker: &Worker| matches!(worker.state, WorkerState::Opening { .. });
        let generation = &self.generations[at];
        let all = generation.serving() > 0 && !generation.workers.iter().any(opening);
        if all && !self.others(at).any(Worker::may_accept) {
            self.commit(at, now);
        }
    }

    /// Drains one worker that serves for another generation: abandoned ones first. False if there is none.
    pub(super) fn drain_other(&mut self, at: usize, now: Instant) -> bool {
        self.drain_other_as(at, false, now)
    }

    /// `yields`: nobody of this generation is told to serve yet.
    fn drain_other_as(&mut self, at: usize, yields: bool, now: Instant) -> bool {
        let mut others: Vec<(usize, &Worker)> = Vec::new();
        for (index, generation) in self.generations.iter().enumerate().filter(|(index, _)| *index != at) {
            let serving = generation.workers.iter().filter(|worker| worker.is_in_service());
            others.extend(serving.map(|worker| (index, worker)));
        }
        let abandoned_first =
            |entry: &(usize, &Worker)| (self.generations[entry.0].state != State::Abandoned, entry.1.id);
        let Some((index, worker)) = others.into_iter().min_by_key(abandoned_first) else {
            return false;
        };
        let (slot, worker) = (worker.slot, worker.id);
        self.generations[index].slot_mut(slot).yielded = Some(worker);
        let yields = yields && self.generations[index].state == State::Serving;
        self.drain_as(index, worker, yields, now);
        self.progress(at, now);
        true
    }

    /// A rolling generation came a step further: the next step has its own time.
    pub(super) fn progress(&mut self, at: usize, now: Instant) {
        let generation = &mut self.generations[at];
        let next = now + step_limit(&generation.plan);
        if let State::Rolling { step: Step::Exchanging { deadline } | Step::Placing { deadline }, .. } =
            &mut generation.state
        {
            *deadline = (*deadline).max(next);
        }
    }

    /// Its workers are about to be the only ones, or are: one that fails now would be missed.
    pub(super) fn is_taking_over(&self, at: usize) -> bool {
        let step = match self.generations[at].state {
            State::Rolling { step, .. } => step,
            State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned => return false,
        };
        matches!(step, Step::HandingOver { .. } | Step::TakingOver { .. })
    }

    pub(super) fn expire_step(&mut self, at: usize, now: Instant) {
        let generation = &self.generations[at];
        let id = generation.id;
        let State::Rolling { step, .. } = generation.state else { return };
        match step {
            Step::Opening { answer_by } if answer_by <= now => {
                self.refuse(id, Refusal::new("its listeners could not be opened in time"), now);
            }
            Step::Asking { answer_by, .. } if answer_by <= now => {
                if let Some(predecessor) = self.serving_index() {
                    let old = self.generations[predecessor].id;
                    self.note(Note::NoWayBack { generation: id, predecessor: old, killed: true });
                    self.kill_template(predecessor, now);
                }
                self.measure(at, now);
            }
            Step::Measuring { answer_by } if answer_by <= now => {
                self.decide(at, Room::UNKNOWN, now);
            }
            Step::Exchanging { deadline } | Step::TakingOver { deadline } if deadline <= now => {
                self.refuse(id, Refusal::new("rolling made no progress in time (boot_timeout)"), now);
            }
            Step::Placing { deadline } if deadline <= now => self.expire_placing(at, now),
            Step::Holding { look_at, .. } if look_at <= now => self.look_at_canary(at, now),
            Step::Pausing { give_up: due, .. }
            | Step::Probing { answer_by: due, .. }
            | Step::Refilling { deadline: due }
                if due <= now =>
            {
                self.expire_pausing(at, step, now);
            }
            Step::Commanding { command } if command.deadline() <= now => self.expire_pausing(at, step, now),
            // `roll` acts on it.
            Step::HandingOver { .. }
            | Step::Opening { .. }
            | Step::Asking { .. }
            | Step::Measuring { .. }
            | Step::Placing { .. }
            | Step::Holding { .. }
            | Step::Exchanging { .. }
            | Step::Pausing { .. }
            | Step::Commanding { .. }
            | Step::Probing { .. }
            | Step::Refilling { .. }
            | Step::TakingOver { .. } => {}
        }
    }
}

/// How long one exchange of workers may take. An old worker may need `ANSWER_WITHIN` to confirm that it drains,
/// whatever the boot timeout is.
pub(super) fn step_limit(plan: &Plan) -> Duration {
    match plan.surge {
        Surge::Workers(0) => plan.boot_timeout + plan.drain_timeout,
        Surge::Workers(_) | Surge::All | Surge::Auto => plan.boot_timeout.max(ANSWER_WITHIN + EXIT_WITHIN),
    }
}
