//! What operators ask, and who waits for what. An ask comes in with a number, and exactly one `Action::Answer` with
//! that number goes out, whatever happens meanwhile. Signals are asks that nobody waits for.

use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, SlotIndex, WorkerId};

use super::dump::Dump;
use super::generation::{Generation, Plan};
use super::maintenance::MaintenancePlan;
use super::pause::Pause;
use super::services::ServiceId;
use super::target::Target;
use super::worker::{Due, State as WorkerState, Worker};
use super::{Action, Event, Phase, Supervisor};
use crate::facts::canary::Canary;
use crate::facts::note::{Note, WorkerName};
use crate::facts::outcome::{End, Outcome, Refusal, Reload, Stacks, Verb};

/// Workers that are kept at once (`recycle --keep`), each with the memory of a worker, and for how long at most.
const KEPT_MAX: usize = 3;
const KEPT_FOR_MAX: Duration = Duration::from_secs(3600);

/// One ask, unique while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new generation. Answered when it has committed or was refused; without `wait` as soon as it has a number.
    Reload { deploy: Deploy, wait: bool },
    /// Answered when a worker serves.
    Ready,
    /// The canary has shown enough: its generation takes over. Answered like a reload.
    Promote { wait: bool },
    /// The canary has shown enough: its generation is given up.
    Abandon,
    /// So many workers more or fewer; survives reloads. Answered when they serve; without `wait` at once.
    Scale { by: i32, wait: bool },
    /// So many workers. 0: all leave, and the sockets are held.
    ScaleTo { workers: u32, wait: bool },
    /// A successor for the worker in this slot. Answered when that serves; without `wait` at once.
    /// `keep`: for how long the old worker stays alive, out of service.
    Recycle { slot: SlotIndex, keep: Option<Duration>, wait: bool },
    /// So many processes of a service, which survives reloads. Answered when they run; without `wait` at once.
    ScaleService { name: String, amount: Amount, wait: bool },
    /// The processes of a service, or the one with this number, end and begin anew. Answered when the new ones run; without
    /// `wait` at once.
    RecycleService { name: String, number: Option<u32>, wait: bool },
    /// Requests that run are finished, nothing is begun. Answered when no request is in the application any more; given up
    /// after `timeout`.
    Pause { timeout: Duration, maintenance: Option<MaintenancePlan> },
    /// Go on. Answered when the workers serve again.
    Resume,
    /// Another binary takes over this very process in a quiet moment, which is waited for. The new one answers.
    Upgrade { timeout: Duration },
    /// The Python stacks of the workers, or of those in this slot.
    Dump { slot: Option<SlotIndex> },
    /// Finish what was begun, then exit.
    Stop,
    /// Exit at once.
    StopNow,
}

/// How many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    By(i32),
    To(u32),
}

/// What a new generation is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deploy {
    /// What the configuration leads to now. `force`: also what was rolled back from.
    OnDisk { force: bool, canary: Option<AskedCanary> },
    /// The same, and requests are held back while this command runs, with nobody serving; at most for that long. Without
    /// words there is no command.
    Paused { force: bool, command: Vec<String>, timeout: Duration, maintenance: Option<MaintenancePlan> },
    /// The pinned directories and the settings of a generation that has served. None: of the one before this one.
    Back { to: Option<GenerationId> },
}

/// A canary that was asked for, in place of the one of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedCanary {
    /// 0: none.
    pub workers: u32,
    /// None: as the settings say.
    pub hold: Option<Duration>,
}

/// An ask that has no answer yet. Each kind is bounded by something that has a deadline.
#[derive(Debug)]
pub(super) struct Waiting {
    ask: AskId,
    on: On,
}

#[derive(Debug, PartialEq)]
pub(super) enum On {
    /// Whoever reads the configuration has a deadline for it.
    Configuration { wait: bool },
    /// A transaction ends: each of its steps has a deadline.
    Transaction(GenerationId),
    /// The asker's own limit: it leaves.
    Ready,
    /// So many workers serve. The asker's own limit as well, since boots may fail for ever.
    Scaled { workers: u32 },
    /// Another worker than this one serves in its slot. As above.
    Recycled { slot: SlotIndex, old: WorkerId },
    /// So many processes of a service run. As above.
    ServiceScaled { name: String, wanted: u32 },
    /// These processes are gone, and as many as are wanted run. As above.
    ServiceRecycled { name: String, number: Option<u32>, old: Vec<ServiceId> },
    /// The last request leaves the application, which has a time of its own.
    Paused,
    /// Workers that were told to serve say so, or are gone; both have a deadline.
    Resumed,
    /// The transaction has ended so, and workers that a pause of it held back still have to say that they serve again, or be
    /// gone; both have a deadline. Who is told of the end must not be answered as in the pause any more.
    Ended { reload: Box<Reload> },
    /// Each of these has told its stacks, by itself or by a signal, or is gone; both have a deadline.
    Dumped { workers: Vec<WorkerId> },
}

impl Deploy {
    pub fn verb(&self) -> Verb {
        match self {
            Deploy::OnDisk { .. } | Deploy::Paused { .. } => Verb::Reload,
            Deploy::Back { .. } => Verb::Rollback,
        }
    }
}

impl Supervisor {
    pub(super) fn on_ask(&mut self, asker: Option<AskId>, ask: Ask, now: Instant) {
        match ask {
            Ask::Reload { .. } if self.phase != Phase::Running => {
                self.note(Note::ReloadIgnored);
                self.answer(asker, Outcome::Refused(Refusal::stopping()));
            }
            Ask::Reload { .. } if self.is_commanding() => self.delay(Event::Ask { asker, ask }),
            Ask::Reload { deploy, wait } => {
                self.wait(asker, On::Configuration { wait });
                self.actions.push(Action::Configure { asker, deploy });
            }
            Ask::Ready if self.phase != Phase::Running => self.answer(asker, Outcome::Refused(Refusal::stopping())),
            // Answered by `answer_waiting`, perhaps at once.
            Ask::Ready => self.wait(asker, On::Ready),
            Ask::Pause { .. }
            | Ask::Resume
            | Ask::Promote { .. }
            | Ask::Abandon
            | Ask::ScaleService { .. }
            | Ask::RecycleService { .. }
                if self.phase != Phase::Running =>
            {
                self.answer(asker, Outcome::Refused(Refusal::stopping()));
            }
            Ask::Promote { wait } => self.on_promote(asker, wait, now),
            Ask::Abandon => self.on_abandon(asker, now),
            Ask::Scale { .. }
            | Ask::ScaleTo { .. }
            | Ask::Recycle { .. }
            | Ask::ScaleService { .. }
            | Ask::RecycleService { .. }
            | Ask::Pause { .. }
            | Ask::Resume
                if !self.is_begun() =>
            {
                let stops = match self.phase {
                    Phase::Interrupting | Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Ended => true,
                    Phase::Running | Phase::Delaying { .. } => false,
                };
                let refusal = if stops { Refusal::stopping() } else { Refusal::new("no generation serves yet") };
                self.answer(asker, Outcome::Refused(refusal));
            }
            Ask::Scale { by, wait } => self.on_scale(asker, wait, |target, plan| target.scale(by, plan), Some(by)),
            Ask::ScaleTo { workers, wait } => {
                self.on_scale(asker, wait, |target, plan| target.set(workers, plan), None);
            }
            Ask::Recycle { slot, keep, wait } => self.on_recycle(asker, slot, keep, wait),
            Ask::ScaleService { name, amount, wait } => self.on_scale_service(asker, &name, amount, wait),
            Ask::RecycleService { name, number, wait } => self.on_recycle_service(asker, &name, number, wait, now),
            Ask::Pause { timeout, maintenance } => self.on_pause(asker, timeout, maintenance, now),
            Ask::Resume => self.on_resume(asker),
            Ask::Upgrade { timeout } => self.on_ask_upgrade(asker, timeout, now),
            Ask::Dump { slot } => self.on_dump(asker, slot, now),
            Ask::Stop => {
                self.answer(asker, Outcome::Stopping);
                self.on_stop(asker.is_none(), now);
            }
            Ask::StopNow => {
                self.answer(asker, Outcome::Stopping);
                self.end(0, now);
            }
        }
    }

    /// A generation serves and its workers may still come and go.
    fn is_begun(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Delaying { .. }) && self.serving().is_some()
    }

    fn on_scale(
        &mut self,
        asker: Option<AskId>,
        wait: bool,
        scale: impl FnOnce(&mut Target, &Plan) -> Result<u32, Refusal>,
        by: Option<i32>,
    ) {
        let Some(at) = self.serving_index() else { return };
        let before = self.wanted(at);
        match scale(&mut self.target, &self.generations[at].plan) {
            Ok(wanted) => {
                self.note(Note::Scaled { by: by.unwrap_or(wanted as i32 - before as i32), wanted });
                match wait {
                    true => self.wait(asker, On::Scaled { workers: wanted }),
                    false => self.answer(asker, Outcome::Scaled { workers: wanted }),
                }
            }
            Err(refusal) => {
                self.note(Note::ScaleRefused { by, refusal: refusal.clone() });
                self.answer(asker, Outcome::Refused(refusal));
            }
        }
    }

    fn on_recycle(&mut self, asker: Option<AskId>, slot: SlotIndex, keep: Option<Duration>, wait: bool) {
        let Some(at) = self.serving_index() else { return };
        let wanted = self.wanted(at);
        let serves = |worker: &&Worker| worker.slot == slot && matches!(worker.state, WorkerState::Serving { .. });
        let Some(old) = self.generations[at].workers.iter().find(serves).map(|worker| worker.id) else {
            let reason = match slot.0 < wanted {
                true if self.is_held() => "the service is paused".to_owned(),
                true => format!("no worker serves in slot {slot} right now"),
                false => format!("there is no slot {slot}; {wanted} workers are wanted, numbered from 0"),
            };
            return self.answer(asker, Outcome::Refused(Refusal::new(reason)));
        };
        if let Some(refusal) = keep.and_then(|time| self.cannot_keep(time)) {
            return self.answer(asker, Outcome::Refused(refusal));
        }
        self.mark_due(at, old, keep.map_or(Due::Asked, Due::Kept));
        match wait {
            true => self.wait(asker, On::Recycled { slot, old }),
            false => self.answer(asker, Outcome::Asked),
        }
    }

    /// Each takes the memory of a worker.
    fn cannot_keep(&self, time: Duration) -> Option<Refusal> {
        if time > KEPT_FOR_MAX {
            return Some(Refusal::new("a worker is kept for an hour at most".to_owned()));
        }
        (self.kept_workers() >= KEPT_MAX)
            .then(|| Refusal::new(format!("{KEPT_MAX} workers are kept already, and that is all")))
    }

    fn on_dump(&mut self, asker: Option<AskId>, slot: Option<SlotIndex>, now: Instant) {
        let mut asked = Vec::new();
        for at in 0..self.generations.len() {
            for worker in self.generations[at].workers.clone() {
                let gone = matches!(worker.state, WorkerState::Exiting { .. } | WorkerState::Killed { .. });
                if gone || worker.pid.is_none() || slot.is_some_and(|slot| slot != worker.slot) {
                    continue;
                }
                asked.push(worker.id);
                // Where it does not answer, nothing older stands for it.
                if let Some(worker) = self.generations[at].worker_mut(worker.id) {
                    worker.stacks.clear();
                }
                // Where it is asked already, that answer is this one's, too.
                if worker.dump == Dump::None {
                    self.actions.push(Action::LookAt { worker: worker.id });
                    self.await_stacks(at, worker.id, now);
                }
            }
        }
        if asked.is_empty() {
            let which = slot.map_or_else(String::new, |slot| format!(" in slot {slot}"));
            return self.answer(asker, Outcome::Refused(Refusal::new(format!("there is no worker{which}"))));
        }
        self.wait(asker, On::Dumped { workers: asked });
    }

    /// Answers whoever waits for what is so now.
    pub(super) fn answer_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            match self.outcome(&waiting.on) {
                Some(outcome) => self.answer(Some(waiting.ask), outcome),
                None => self.waiting.push(waiting),
            }
        }
    }

    /// None: it is waited for.
    fn outcome(&self, on: &On) -> Option<Outcome> {
        match on {
            // Answered where it is concluded.
            On::Configuration { .. } | On::Transaction(_) => None,
            On::Ready => self.is_ready().then_some(Outcome::Ready),
            On::Scaled { workers } => self.scaled(*workers),
            On::Recycled { slot, old } => self.recycled(*slot, *old),
            On::ServiceScaled { name, wanted } => self.service_scaled(name, *wanted),
            On::ServiceRecycled { name, number, old } => self.service_recycled(name, *number, old),
            On::Dumped { workers } => self.dumped(workers),
            On::Paused => self.paused(),
            On::Resumed => self.resumed(),
            On::Ended { reload } => self.resumed().map(|_| Outcome::Reload(Reload::clone(reload))),
        }
    }

    fn scaled(&self, workers: u32) -> Option<Outcome> {
        let wanted = self.serving().map_or(0, |generation| self.wanted_of(generation));
        if wanted != workers {
            let reason = format!("superseded: {wanted} workers are wanted now");
            return Some(Outcome::Refused(Refusal::new(reason)));
        }
        let is_held = self.is_held();
        let counts = |worker: &&Worker| match worker.state {
            WorkerState::Serving { .. } => true,
            // They will serve when the pause is over.
            WorkerState::Ready | WorkerState::Paused { .. } => is_held,
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Opening { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => false,
        };
        // A canary serves beside those that are wanted, and may do so for hours.
        let beside = |generation: &&Generation| !generation.is_trying();
        let accepting = self.generations.iter().filter(beside).flat_map(|of| &of.workers).filter(counts).count();
        let is_over = self.in_transaction().is_none_or(Generation::is_trying);
        (accepting == workers as usize && is_over).then_some(Outcome::Scaled { workers })
    }

    fn recycled(&self, slot: SlotIndex, old: WorkerId) -> Option<Outcome> {
        let serving = self.serving()?;
        if slot.0 >= self.wanted_of(serving) {
            return Some(Outcome::Refused(Refusal::new(format!("slot {slot} is not wanted any more"))));
        }
        let another = serving.present_in(slot).find(|worker| worker.id != old && worker.is_serving())?;
        let leaves = serving.worker(old).is_none_or(|worker| !worker.is_serving());
        let is_kept = |worker: &&Worker| matches!(worker.state, WorkerState::Kept { .. });
        let kept = serving.worker(old).filter(is_kept).and_then(|worker| worker.pid);
        leaves.then_some(Outcome::Recycled { slot, pid: another.pid, kept })
    }

    fn dumped(&self, workers: &[WorkerId]) -> Option<Outcome> {
        let find = |id: &WorkerId| {
            let generation = self.generations.iter().find(|generation| generation.worker(*id).is_some())?;
            generation.worker(*id).map(|worker| (generation.name(worker), worker))
        };
        let found: Vec<_> = workers.iter().filter_map(find).collect();
        if found.iter().any(|(_, worker)| worker.dump != Dump::None) {
            return None;
        }
        let told = |(name, worker): (WorkerName, &Worker)| Stacks { worker: name, text: worker.stacks.clone() };
        Some(Outcome::Dumped(found.into_iter().map(told).collect()))
    }

    /// The asker does not wait any more: nobody is left to answer.
    pub(super) fn on_left(&mut self, ask: AskId) {
        self.waiting.retain(|waiting| waiting.ask != ask);
        self.upgrade.forget(ask);
    }

    /// Asks without an answer, for whoever knows which askers have left.
    pub fn asking(&self) -> impl Iterator<Item = AskId> + '_ {
        self.waiting.iter().map(|waiting| waiting.ask).chain(self.upgrade.asker())
    }

    pub(super) fn wait(&mut self, asker: Option<AskId>, on: On) {
        if let Some(ask) = asker {
            self.waiting.push(Waiting { ask, on });
        }
    }

    pub(super) fn answer(&mut self, asker: Option<AskId>, outcome: Outcome) {
        if let Some(ask) = asker {
            self.actions.push(Action::Answer { ask, outcome });
        }
    }

    /// Waits for the end of a transaction; without `wait` only asks.
    pub(super) fn wait_for_end(&mut self, asker: Option<AskId>, generation: GenerationId, wait: bool) {
        match wait {
            true => self.wait(asker, On::Transaction(generation)),
            false => self.answer(asker, Outcome::Begun { generation }),
        }
    }

    pub(super) fn wait_for_pause(&mut self, asker: Option<AskId>) {
        self.wait(asker, On::Paused);
    }

    pub(super) fn wait_for_resume(&mut self, asker: Option<AskId>) {
        self.wait(asker, On::Resumed);
    }

    /// Whoever waits for the pause hears why there is none.
    pub(super) fn refuse_paused(&mut self, refusal: &Refusal) {
        for ask in self.take_waiting(|on| *on == On::Paused) {
            self.answer(Some(ask), Outcome::Refused(refusal.clone()));
        }
    }

    /// Takes the asks that wait for this.
    fn take_waiting(&mut self, matches: impl Fn(&On) -> bool) -> Vec<AskId> {
        let taken = self.waiting.iter().filter(|waiting| matches(&waiting.on)).map(|waiting| waiting.ask).collect();
        self.waiting.retain(|waiting| !matches(&waiting.on));
        taken
    }

    /// The configuration that was asked for has become this generation.
    pub(super) fn reload_begun(&mut self, asker: AskId, generation: GenerationId) {
        let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ask == asker) else { return };
        if waiting.on == (On::Configuration { wait: true }) {
            waiting.on = On::Transaction(generation);
        } else {
            self.waiting.retain(|waiting| waiting.ask != asker);
            self.answer(Some(asker), Outcome::Begun { generation });
        }
    }

    /// It was refused before it became a generation: nothing has changed.
    pub(super) fn reload_refused(&mut self, verb: Verb, askers: &[AskId], refusal: Refusal, took: Duration) {
        self.note(Note::Refused { verb, generation: None, refusal: refusal.clone() });
        let end = End::Refused(refusal);
        let reload = Reload { verb, generation: None, took, end, canary: None, rehearsal: None };
        self.actions.push(Action::Concluded(reload.clone()));
        for asker in askers {
            // It may have left, or TERM has answered it.
            if self.waiting.iter().any(|waiting| waiting.ask == *asker) {
                self.waiting.retain(|waiting| waiting.ask != *asker);
                self.answer(Some(*asker), Outcome::Reload(reload.clone()));
            }
        }
    }

    /// A transaction has ended.
    pub(super) fn conclude(&mut self, id: GenerationId, verb: Verb, began: Instant, end: End, now: Instant) {
        let took = now.saturating_duration_since(began);
        let canary = self.index(id).and_then(|at| self.generations[at].tried.clone()).map(Canary::ended);
        let rehearsal = self.index(id).and_then(|at| self.generations[at].rehearsed.clone());
        let reload = Reload { verb, generation: Some(id), took, end, canary, rehearsal };
        self.actions.push(Action::Concluded(reload.clone()));
        for ask in self.take_waiting(|on| *on == On::Transaction(id)) {
            self.wait(Some(ask), On::Ended { reload: Box::new(reload.clone()) });
        }
    }

    /// The master stops: nobody waits on for what will not come.
    pub(super) fn answer_stopping(&mut self) {
        let is_over = |on: &On| match on {
            On::Ready | On::Configuration { .. } | On::Scaled { .. } | On::Recycled { .. } => true,
            On::ServiceScaled { .. } | On::ServiceRecycled { .. } => true,
            On::Paused | On::Resumed => true,
            // They have their own ends.
            On::Transaction(_) | On::Ended { .. } | On::Dumped { .. } => false,
        };
        for ask in self.take_waiting(is_over) {
            self.answer(Some(ask), Outcome::Refused(Refusal::stopping()));
        }
    }

    /// A worker serves or was told to, and the master was not told to stop.
    pub fn is_ready(&self) -> bool {
        let mut workers = self.generations.iter().flat_map(|generation| &generation.workers);
        let serves =
            |worker: &Worker| matches!(worker.state, WorkerState::Serving { .. } | WorkerState::Opening { .. });
        self.phase == Phase::Running && self.serving().is_some() && (workers.any(serves) || self.changes_hands())
    }

    /// The old workers stop accepting, and the new ones begin when that is done. Connections wait in the backlog
    /// meanwhile, for some milliseconds as a rule, and nobody is refused. The step has a deadline.
    fn changes_hands(&self) -> bool {
        (0..self.generations.len()).any(|at| self.is_taking_over(at))
    }

    /// The word for the whole service.
    pub fn word(&self) -> &'static str {
        let lacks = |generation: &Generation| generation.serving() < self.wanted_of(generation) as usize;
        match self.phase {
            Phase::Interrupting | Phase::Delaying { .. } | Phase::Stopping { .. } => "stopping",
            Phase::Ending { .. } | Phase::Ended => "ending",
            Phase::Running => match (self.serving(), self.in_transaction()) {
                (None, _) => "starting",
                // What an operator has paused stays so, whatever a reload does meanwhile.
                (Some(_), Some(_)) if self.pause == Pause::Off => "reloading",
                (Some(_), _) if self.held().is_some_and(|held| held.quiet) => match self.turns_away() {
                    true => "maintenance",
                    false => "paused",
                },
                (Some(_), _) if self.held().is_some() => "pausing",
                // The new workers take over just then.
                (Some(_), Some(_)) => "reloading",
                (Some(_), None) if self.target.is_off() => "off",
                (Some(generation), None) if lacks(generation) || self.is_service_late() => "degraded",
                (Some(_), None) => "running",
            },
        }
    }
}
