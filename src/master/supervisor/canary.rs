//! The canary: the first workers of a new generation serve beside the old ones for a while, and both are compared, before
//! the new ones take over. It is a part of the way in `rolling`:
//!
//! | Step | Event | Next | What is done |
//! |---|---|---|---|
//! | Measuring | there is room for the canary | Placing | its workers boot, and serve when they are ready |
//! | Measuring | fewer than four workers, no room, nobody serves | abandoned | |
//! | Placing | all of them serve | Holding | both are counted from now on |
//! | Placing | its time is over, boots fail | abandoned | |
//! | Holding | a look | Holding | what leaves no doubt ends it |
//! | Holding | its time is over: good, or too little traffic | Measuring | the others boot, and all take over |
//! | Holding | `promote` | Measuring | as above |
//! | Holding | its time is over: worse | abandoned | whoever asked hears the table |
//! | Placing, Holding | a worker of it dies or is stuck, `abandon` | abandoned | as above |
//! | Placing, Holding | an operator takes too many of the old workers away | abandoned | whoever asked hears why |
//!
//! The old generation is whole meanwhile: it fills its slots and replaces its workers as ever, and none of it drains. What is
//! right and wrong is arithmetic (`verdict`).

use std::fmt;
use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;

use super::asks::AskId;
use super::generation::{Generation, State, Step};
use super::pace::{Measured, Room};
use super::rolling::step_limit;
use super::verdict::{self, Bounds, Counts, Verdict};
use super::worker::{Stuck, Worker};
use super::{Action, Supervisor};
use crate::config::canary::BESIDE_MIN;
use crate::facts::canary::{show_points, show_times, Canary, Side, RUNNING};
use crate::facts::note::{Note, WorkerName};
use crate::facts::outcome::{Outcome, Refusal};

/// How often both are looked at. A short hold has ten looks.
const LOOKS: u32 = 10;
const LOOK_EVERY_MIN: Duration = Duration::from_millis(50);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// What `[reload.canary]` or `reload --canary` asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CanaryPlan {
    pub workers: u32,
    pub hold: Duration,
    pub bounds: Bounds,
}

/// A worker of a canary is lost, which is the canary's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    worker: WorkerName,
    /// It was given up for that; None: it died.
    stuck: Option<Stuck>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worker = self.worker;
        match self.stuck {
            None => write!(f, "{worker} died; the log has its cause"),
            Some(Stuck::Request(_)) => write!(f, "{worker} hung in a request; the log has its stacks"),
            Some(Stuck::Silent) => write!(f, "{worker} gave no sign of life; the log has its stacks"),
        }
    }
}

impl CanaryPlan {
    fn look_every(&self) -> Duration {
        (self.hold / LOOKS).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)
    }
}

impl Generation {
    /// A canary of it boots or serves.
    pub(super) fn is_trying(&self) -> bool {
        matches!(self.state, State::Rolling { step: Step::Placing { .. } | Step::Holding { .. }, .. })
    }
}

impl Supervisor {
    /// The canary that is still to come before this generation takes over. A first start has nothing to compare with.
    pub(super) fn canary_to_come(&self, at: usize) -> Option<CanaryPlan> {
        self.generations[at].canary.filter(|_| self.serving().is_some())
    }

    pub(super) fn begin_canary(&mut self, at: usize, plan: CanaryPlan, room: Room, now: Instant) {
        let generation = &self.generations[at];
        let (id, wanted) = (generation.id, self.wanted(at));
        let measured = Measured {
            room,
            candidate: generation.candidate,
            missing: plan.workers.saturating_sub(generation.present() as u32),
            processes: self.processes() as u32,
        };
        let decided = self.pace_or_give_up(at, measured, now);
        let fits = decided.one_step || decided.processes.is_none();
        let impossible = too_few_beside(plan.workers, wanted).or_else(|| {
            if self.is_held() {
                Some("the service is paused, so there is nothing to compare a canary with".to_owned())
            } else if !fits {
                Some("there is no room for a canary beside the old workers".to_owned())
            } else {
                None
            }
        });
        if let Some(reason) = impossible {
            return self.refuse_canary(id, &reason, now);
        }
        if let State::Rolling { pace, .. } = &mut self.generations[at].state {
            *pace = decided;
        }
        let deadline = now + step_limit(&self.generations[at].plan);
        self.change_step(at, Step::Placing { deadline });
    }

    fn refuse_canary(&mut self, id: GenerationId, reason: &str, now: Instant) {
        let reason = format!("{reason}; `forkmaster reload --canary 0` deploys without one");
        self.refuse(id, Refusal::new(reason), now);
    }

    /// So few workers are wanted by now that the canary would have the traffic. True: its generation was refused.
    fn canary_is_alone(&mut self, at: usize, workers: u32, now: Instant) -> bool {
        let Some(reason) = too_few_beside(workers, self.wanted(at)) else { return false };
        self.refuse_canary(self.generations[at].id, &reason, now);
        true
    }

    pub(super) fn place_canary(&mut self, at: usize, now: Instant) {
        let (Some(plan), State::Rolling { pace, .. }) = (self.generations[at].canary, &self.generations[at].state)
        else {
            return;
        };
        let pace = *pace;
        if self.canary_is_alone(at, plan.workers, now) {
            return;
        }
        self.boot(at, plan.workers, usize::MAX, pace, now);
        self.serve_ready(at, now);
        if !self.generations[at].all_serving(plan.workers) {
            return;
        }
        let (generation, hold_s) = (self.generations[at].id, plan.hold.as_secs_f64());
        self.note(Note::CanaryServes { generation, workers: plan.workers, hold_s });
        let until = now + plan.hold;
        let step = Step::Holding { until, look_at: until.min(now + plan.look_every()), died: None };
        self.change_step(at, step);
        self.compare(at);
    }

    /// Whoever has died of it while it is still looked at is no reason to boot another one.
    pub(super) fn hold_canary(&mut self, at: usize, died: Option<Loss>, now: Instant) {
        let (Some(plan), State::Rolling { pace, .. }) = (self.generations[at].canary, &self.generations[at].state)
        else {
            return;
        };
        let pace = *pace;
        if self.canary_is_alone(at, plan.workers, now) {
            return;
        }
        if died.is_none() {
            self.boot(at, plan.workers, usize::MAX, pace, now);
            self.serve_ready(at, now);
        }
    }

    /// `Event::Compared` is the answer.
    fn compare(&mut self, at: usize) {
        let Some(against) = self.serving().map(|generation| generation.id) else { return };
        self.actions.push(Action::Compare { generation: self.generations[at].id, against });
    }

    pub(super) fn expire_placing(&mut self, at: usize, now: Instant) {
        let generation = &self.generations[at];
        let limit = step_limit(&generation.plan);
        match self.is_held() {
            // Nobody is told to serve while the service is paused.
            true => self.change_step(at, Step::Placing { deadline: now + limit }),
            false => {
                let reason = "its canary does not serve in time (boot_timeout)";
                self.refuse(generation.id, Refusal::new(reason), now);
            }
        }
    }

    /// It is time for a look; the last one is when the time is over. While the service is paused nothing is seen, and no time
    /// passes.
    pub(super) fn look_at_canary(&mut self, at: usize, now: Instant) {
        let State::Rolling { step: Step::Holding { until, died, .. }, .. } = self.generations[at].state else { return };
        let Some(plan) = self.generations[at].canary else { return };
        let every = plan.look_every();
        let until = if self.is_held() { until + every } else { until };
        // Once the last look was asked for, its answer decides.
        let look_at = if until > now { until.min(now + every) } else { now + every };
        self.change_step(at, Step::Holding { until, look_at, died });
        self.compare(at);
    }

    /// What both have counted since the canary serves.
    pub(super) fn on_compared(&mut self, id: GenerationId, old: &Counts, new: &Counts, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let State::Rolling { step: Step::Holding { until, died, .. }, .. } = self.generations[at].state else { return };
        let Some(plan) = self.generations[at].canary else { return };
        self.generations[at].tried = self.tried(at, &plan.bounds, old, new).map(Box::new);
        if let Some(loss) = died {
            return self.canary_fails(at, "died", loss.to_string(), now);
        }
        if until > now {
            if let Some(why) = verdict::doubtless(old, new, &plan.bounds) {
                self.canary_fails(at, "worse", why, now);
            }
            return;
        }
        match verdict::judge(old, new, &plan.bounds) {
            Verdict::Good => self.canary_passes(at, "good", "it is no worse than the old generation".to_owned(), now),
            Verdict::TooLittle(why) => self.canary_passes(at, "too_little_traffic", why, now),
            Verdict::Worse(why) => self.canary_fails(at, "worse", why, now),
        }
    }

    fn tried(&self, at: usize, bounds: &Bounds, old: &Counts, new: &Counts) -> Option<Canary> {
        let of_100 = verdict::of_100(old, new);
        let side = |generation: &Generation, counts: &Counts| Side {
            generation: generation.id.0,
            workers: generation.serving() as u32,
            answered: counts.answered,
            compared: counts.compared,
            failed: counts.failed,
            cut: counts.cut,
            running_us: counts.running_us,
            within_us: verdict::quantile(&counts.latency, f64::from(of_100) / 100.0).map(|micros| micros as u64),
        };
        Some(Canary {
            verdict: RUNNING.to_owned(),
            why: String::new(),
            new: side(&self.generations[at], new),
            old: side(self.serving()?, old),
            of_100,
            max_errors: show_points(bounds.max_errors),
            max_latency: show_times(bounds.max_latency),
        })
    }

    /// A worker of a canary has died, or is given up since it is stuck. True: it was one, and it is looked at for the last
    /// time.
    pub(super) fn canary_died(&mut self, at: usize, worker: &Worker, stuck: Option<Stuck>, now: Instant) -> bool {
        let loss = Loss { worker: self.generations[at].name(worker), stuck };
        match self.generations[at].state {
            State::Rolling { step: Step::Holding { until, look_at, died }, .. } => {
                self.change_step(at, Step::Holding { until, look_at, died: died.or(Some(loss)) });
                self.compare(at);
                true
            }
            State::Rolling { step: Step::Placing { .. }, .. } => {
                self.canary_fails(at, "died", loss.to_string(), now);
                true
            }
            State::Rolling { .. }
            | State::Proving
            | State::Serving
            | State::Draining
            | State::Kept
            | State::Abandoned => false,
        }
    }

    fn conclude_canary(&mut self, at: usize, verdict: &str, why: &str) {
        let generation = self.generations[at].id;
        if let Some(tried) = &mut self.generations[at].tried {
            (tried.verdict, tried.why) = (verdict.to_owned(), why.to_owned());
        }
        let canary = self.generations[at].tried.clone();
        self.note(Note::CanaryJudged { generation, verdict: verdict.to_owned(), why: why.to_owned(), canary });
    }

    fn canary_fails(&mut self, at: usize, verdict: &str, why: String, now: Instant) {
        self.conclude_canary(at, verdict, &why);
        let details = self.generations[at].tried.as_ref().map_or_else(String::new, ToString::to_string);
        let refusal = Refusal { details, ..Refusal::new(format!("the canary was abandoned: {why}")) };
        self.refuse(self.generations[at].id, refusal, now);
    }

    /// The others boot, and all take over.
    fn canary_passes(&mut self, at: usize, verdict: &str, why: String, now: Instant) {
        self.conclude_canary(at, verdict, &why);
        self.generations[at].canary = None;
        self.measure(at, now);
    }

    pub(super) fn on_promote(&mut self, asker: Option<AskId>, wait: bool, now: Instant) {
        let Some(at) = self.generations.iter().position(Generation::is_trying) else {
            return self.answer(asker, Outcome::Refused(no_canary()));
        };
        if matches!(self.generations[at].state, State::Rolling { step: Step::Placing { .. }, .. }) {
            let refusal = Refusal::new("the canary does not serve yet");
            return self.answer(asker, Outcome::Refused(refusal));
        }
        self.wait_for_end(asker, self.generations[at].id, wait);
        self.canary_passes(at, "promoted", "an operator has promoted it".to_owned(), now);
    }

    pub(super) fn on_abandon(&mut self, asker: Option<AskId>, now: Instant) {
        let Some(at) = self.generations.iter().position(Generation::is_trying) else {
            return self.answer(asker, Outcome::Refused(no_canary()));
        };
        self.answer(asker, Outcome::Asked);
        self.canary_fails(at, "abandoned", "an operator has abandoned it".to_owned(), now);
    }
}

/// Why a canary of so many workers would show nothing, or endanger the service, where so many are wanted.
fn too_few_beside(workers: u32, wanted: u32) -> Option<String> {
    if wanted == 0 {
        Some("the workers are switched off, so there is nothing to compare a canary with".to_owned())
    } else if wanted < BESIDE_MIN {
        Some(format!("a canary needs at least {BESIDE_MIN} workers beside it, and {wanted} are wanted"))
    } else if workers > wanted / 2 {
        Some(format!("a canary of {workers} workers is more than half of the {wanted} that are wanted"))
    } else {
        None
    }
}

fn no_canary() -> Refusal {
    Refusal::new("there is no canary")
}
