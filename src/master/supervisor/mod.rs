//! The supervisor: what the master decides. It takes an event and the time and appends actions; it does no
//! system call, reads no clock, cannot fail and cannot wait. `master` carries the actions out.
//!
//! A reload is a transaction: prove, roll, commit (DESIGN section 4). An event is first noted in the state it
//! concerns; then `settle` derives from the whole state what is due now. So there is one place that fills slots
//! and one that exchanges workers, whatever brought the vacancy about.
//!
//! Always true: at most one generation is proving or rolling; exactly one is serving from the first commit to the
//! end; no listener is closed before a commit.

pub mod backoff;
mod events;
pub mod generation;
mod stop;
mod transaction;
pub mod worker;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use forkmaster_wire::message::{Failure, GenerationId, ProofStep, SlotIndex, WorkerId};
use log::Level;

use generation::{Generation, Plan, Slot, State, Step, Surge, Template};
use worker::{Due, Event as WorkerEvent, Exit, State as WorkerState, Stuck, Worker};

/// Boots that may fail while a proved generation rolls; the first one could be an accident.
const FAILED_BOOTS_MAX: u32 = 3;

/// Generations that may drain at once; a further one proves itself but waits to roll, so that HUPs during long
/// requests do not pile up processes.
const DRAINING_GENERATIONS_MAX: usize = 3;

/// A worker told to serve or drain answers within microseconds; one that does not within this is broken.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A template that can fork answers a ping at once.
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// From a closed channel, or the last message, to the exit: the interpreter's own end.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

/// A stopped template has nothing to finish.
const TEMPLATE_STOP_WITHIN: Duration = Duration::from_secs(2);

/// How often a terminated worker is asked whether only stuck requests are left.
const CHECK_STUCK_EVERY: Duration = Duration::from_millis(100);

/// After SIGKILL a process is gone, unless the kernel itself hangs; the master does not wait for that for ever.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub enum Event {
    /// A HUP whose configuration is valid and whose new addresses are bound (not yet listening).
    Reload {
        generation: GenerationId,
        plan: Plan,
    },
    Template {
        generation: GenerationId,
        event: TemplateEvent,
    },
    Worker {
        worker: WorkerId,
        event: WorkerEvent,
    },
    /// The answer to `Action::OpenListeners`.
    ListenersOpen {
        generation: GenerationId,
    },
    /// The other answer, with the exit code it means at first start.
    ListenersRefused {
        generation: GenerationId,
        reason: String,
        exit_code: i32,
    },
    /// Workers more or fewer; survives reloads.
    Scale {
        by: i32,
    },
    /// TERM.
    Stop,
    /// A second TERM, INT or QUIT.
    StopNow,
    /// A deadline may have passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TemplateEvent {
    Loaded,
    Failed(Failure),
    Pong {
        ping: u64,
    },
    /// It says that it cannot fork any more, or what it says makes no sense.
    Broken {
        reason: String,
    },
    /// Its channel is closed. The exit status follows, unless the application closed descriptors that are not its.
    ChannelLost,
    Exited(Exit),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    StartTemplate {
        generation: GenerationId,
    },
    StopTemplate {
        generation: GenerationId,
    },
    KillTemplate {
        generation: GenerationId,
    },
    PingTemplate {
        generation: GenerationId,
        ping: u64,
    },
    Spawn {
        generation: GenerationId,
        slot: SlotIndex,
        worker: WorkerId,
        prove: bool,
    },
    Serve {
        worker: WorkerId,
    },
    Drain {
        worker: WorkerId,
    },
    Retire {
        worker: WorkerId,
    },
    StopWorker {
        worker: WorkerId,
    },
    /// Log every request that is cut, then SIGKILL.
    Kill {
        worker: WorkerId,
    },
    /// Log the Python stacks of all threads.
    DumpStacks {
        worker: WorkerId,
    },
    /// Say (as an event) whether the worker's stuck requests still run, and how many others do.
    CheckStuck {
        worker: WorkerId,
        stuck: Stuck,
    },
    OpenListeners {
        generation: GenerationId,
    },
    /// This generation serves now: listeners that it does not have are closed.
    Commit {
        generation: GenerationId,
    },
    /// Undo what the generation's listeners have changed.
    AbandonListeners {
        generation: GenerationId,
    },
    CloseAllListeners,
    /// The generation's last process is gone.
    Forget {
        generation: GenerationId,
    },
    /// What becomes of a reload, for whoever asked.
    Verdict {
        generation: GenerationId,
        verdict: Verdict,
    },
    Log {
        level: Level,
        line: String,
    },
    Exit {
        code: i32,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Committed,
    Refused(Failure),
    Superseded {
        by: GenerationId,
    },
    /// TERM came first.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// TERM was taken; workers go on accepting while load balancers notice.
    Delaying {
        until: Instant,
    },
    /// Listeners are closed, workers finish.
    Stopping {
        deadline: Instant,
    },
    /// Everything was killed; only exits are left.
    Ending {
        code: i32,
        give_up: Instant,
    },
    Ended,
}

pub struct Supervisor {
    phase: Phase,
    /// Oldest first.
    generations: Vec<Generation>,
    /// Workers more (or fewer) than the settings say, from TTIN and TTOU.
    extra: i32,
    last_worker: u64,
    last_ping: u64,
    actions: Vec<Action>,
}

impl Supervisor {
    pub fn new() -> Supervisor {
        Supervisor {
            phase: Phase::Running,
            generations: Vec::new(),
            extra: 0,
            last_worker: 0,
            last_ping: 0,
            actions: Vec::new(),
        }
    }

    /// Notes the event, settles, and returns what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Reload { generation, plan } => self.on_reload(generation, plan, now),
            Event::Template { generation, event } => self.on_template(generation, event, now),
            Event::Worker { worker, event } => self.on_worker(worker, event, now),
            Event::ListenersOpen { generation } => self.on_listeners_open(generation, now),
            Event::ListenersRefused { generation, reason, exit_code } => {
                self.on_listeners_refused(generation, reason, exit_code, now)
            }
            Event::Scale { by } => self.on_scale(by),
            Event::Stop => self.on_stop(now),
            Event::StopNow => self.end(0, now),
            Event::Tick => {}
        }
        self.settle(now);
        self.check();
        std::mem::take(&mut self.actions)
    }

    /// When `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Running | Phase::Ended => None,
            Phase::Delaying { until } => Some(until),
            Phase::Stopping { deadline } => Some(deadline),
            Phase::Ending { give_up, .. } => Some(give_up),
        };
        self.generations.iter().filter_map(generation_deadline).chain(phase).min()
    }

    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    #[cfg(test)]
    pub fn generation(&self, id: GenerationId) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.id == id)
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The generation that serves.
    pub fn serving(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.state == State::Serving)
    }

    /// Proving or rolling.
    pub fn in_transaction(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| matches!(generation.state, State::Proving | State::Rolling { .. }))
    }

    /// The generation whose workers take the places of the serving one's right now.
    pub fn exchanging(&self) -> Option<&Generation> {
        self.in_transaction()
            .filter(|generation| matches!(generation.state, State::Rolling { step: Step::Exchanging { .. }, .. }))
    }

    #[cfg(test)]
    pub fn worker(&self, id: WorkerId) -> Option<(&Generation, &Worker)> {
        self.generations.iter().find_map(|generation| Some((generation, generation.worker(id)?)))
    }

    /// Derives what is due from the whole state. Idempotent: settling twice at the same time does nothing new.
    fn settle(&mut self, now: Instant) {
        self.expire(now);
        match self.phase {
            Phase::Running => {
                self.fix_slots();
                self.roll(now);
                self.recycle(now);
                self.fill(now);
                self.drain_surplus(now);
            }
            Phase::Delaying { until } if now >= until => {
                let graceful = self.serving().map_or(Duration::ZERO, |generation| generation.plan.graceful_timeout);
                self.stop_workers(now, graceful);
            }
            Phase::Delaying { .. } => {
                self.fix_slots();
                self.fill(now);
            }
            Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Ended => {}
        }
        self.collect(now);
    }

    /// Acts on every deadline that has passed.
    fn expire(&mut self, now: Instant) {
        for at in 0..self.generations.len() {
            self.expire_template(at, now);
            for slot in &mut self.generations[at].slots {
                slot.backoff_until = slot.backoff_until.filter(|until| *until > now);
            }
            let max_lifetime = self.generations[at].plan.max_lifetime;
            for worker in self.generations[at].workers.clone() {
                if worker.deadline(max_lifetime).is_some_and(|deadline| deadline <= now) {
                    self.expire_worker(at, &worker, now);
                }
            }
            self.expire_step(at, now);
        }
        if let Phase::Stopping { deadline } = self.phase {
            if deadline <= now {
                self.log(Level::Warn, "graceful_timeout is over: cutting what still runs".to_owned());
                self.end(0, now);
            }
        }
    }

    fn expire_template(&mut self, at: usize, now: Instant) {
        let generation = &mut self.generations[at];
        let id = generation.id;
        if generation.template.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match generation.template {
            Template::Starting { .. } => {
                let limit = generation.plan.boot_timeout.as_secs_f64();
                let proving = generation.state == State::Proving;
                self.kill_template(at);
                let reason = format!("not loaded within boot_timeout ({limit:.1}s)");
                self.log(Level::Error, format!("template gen={id} {reason}: killed"));
                if proving {
                    self.refuse(id, failure(ProofStep::Import, reason), now);
                }
            }
            Template::Backoff { .. } => {
                generation.template = Template::Starting { deadline: now + generation.plan.boot_timeout };
                self.actions.push(Action::StartTemplate { generation: id });
            }
            Template::Stopping { .. } | Template::Lost { .. } => self.kill_template(at),
            Template::Ready { .. } | Template::Killed | Template::Gone => {}
        }
    }

    fn expire_worker(&mut self, at: usize, worker: &Worker, now: Instant) {
        let id = worker.id;
        match worker.state {
            WorkerState::Starting { .. } => {
                let limit = self.generations[at].plan.boot_timeout.as_secs_f64();
                self.kill(at, id, now);
                if worker.pid.is_none() && matches!(self.generations[at].template, Template::Ready { .. }) {
                    // Nothing is known of this fork, and what waits behind it in the template's channel would wait too.
                    let line = format!("template gen={} does not fork: killed", self.generations[at].id);
                    self.log(Level::Error, line);
                    self.kill_template(at);
                }
                let reason = format!("the worker was not ready within boot_timeout ({limit:.1}s)");
                self.boot_failed(at, &self.name(at, id), worker.slot, failure(ProofStep::Import, reason), now);
            }
            WorkerState::Opening { .. } => {
                let line = format!("{} did not begin to serve: killed", self.name(at, id));
                self.log(Level::Error, line);
                self.slot_lost(at, worker, now);
                self.kill(at, id, now);
            }
            WorkerState::Serving { due: None, .. } => self.mark_due(at, id, Due::Lifetime),
            WorkerState::Closing { heard_by, deadline } if deadline > heard_by => {
                let line = format!("{} did not confirm that it stopped accepting", self.name(at, id));
                self.log(Level::Warn, line);
                self.change(at, id, WorkerState::Draining { deadline }, now);
            }
            WorkerState::Closing { .. } | WorkerState::Draining { .. } => {
                let line = format!("{} has not finished in time: killed", self.name(at, id));
                self.log(Level::Warn, line);
                self.kill(at, id, now);
            }
            WorkerState::Terminating { deadline, .. } if deadline <= now => self.kill(at, id, now),
            WorkerState::Terminating { stuck, .. } => self.actions.push(Action::CheckStuck { worker: id, stuck }),
            WorkerState::Exiting { .. } => self.kill(at, id, now),
            WorkerState::Ready | WorkerState::Serving { due: Some(_), .. } | WorkerState::Killed { .. } => {}
        }
    }

    fn fix_slots(&mut self) {
        for at in 0..self.generations.len() {
            let wanted = self.wanted(at);
            self.generations[at].grow_slots(wanted);
        }
    }

    /// Gives workers that are due a successor; when that serves, the old one is surplus.
    fn recycle(&mut self, now: Instant) {
        let Some(at) = self.generations.iter().position(|generation| generation.state == State::Serving) else {
            return;
        };
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
            if alone && !rests && replacing < replacements_max(&generation.plan) {
                replacing += 1;
                self.spawn(at, slot, now);
            }
        }
    }

    /// Gives every vacant slot a worker and lets those that wait serve.
    fn fill(&mut self, now: Instant) {
        for at in 0..self.generations.len() {
            let wanted = self.wanted(at);
            match self.generations[at].state {
                State::Proving => {
                    if self.generations[at].workers.is_empty() {
                        self.spawn(at, SlotIndex(0), now);
                    }
                }
                State::Serving => {
                    for slot in self.generations[at].vacant(wanted) {
                        self.spawn(at, slot, now);
                    }
                    self.serve_ready(at, now);
                }
                State::Rolling { .. } | State::Draining | State::Abandoned => {}
            }
        }
    }

    /// Drains what serves beyond the wanted number: slots above it, all but the youngest that serve in one slot, and
    /// abandoned workers whose places are taken.
    fn drain_surplus(&mut self, now: Instant) {
        if self.exchanging().is_some() {
            return;
        }
        let Some(at) = self.generations.iter().position(|generation| generation.state == State::Serving) else {
            return;
        };
        let wanted = self.wanted(at);
        for worker in self.generations[at].workers.clone() {
            let is_younger = |other: &Worker| other.id > worker.id && other.is_serving();
            let outlived = self.generations[at].present_in(worker.slot).any(is_younger);
            if (worker.slot.0 >= wanted || outlived)
                && matches!(
                    worker.state,
                    WorkerState::Opening { .. } | WorkerState::Serving { .. } | WorkerState::Ready
                )
            {
                self.drain(at, worker.id, now);
            }
        }
        while self.generations.iter().map(Generation::serving).sum::<usize>() > wanted as usize {
            if !self.generations.iter().any(|other| other.state == State::Abandoned && other.serving() > 0) {
                return;
            }
            self.drain_other(at, now);
        }
    }

    fn spawn(&mut self, at: usize, slot: SlotIndex, now: Instant) {
        let generation = &mut self.generations[at];
        if !matches!(generation.template, Template::Ready { .. }) {
            return;
        }
        self.last_worker += 1;
        let worker = WorkerId(self.last_worker);
        let deadline = now + generation.plan.boot_timeout;
        let prove = !generation.slots[slot.0 as usize].proved;
        let state = WorkerState::Starting { deadline };
        generation.workers.push(Worker { id: worker, slot, pid: None, state, since: now, born: now });
        let generation = generation.id;
        self.actions.push(Action::Spawn { generation, slot, worker, prove });
    }

    fn serve_ready(&mut self, at: usize, now: Instant) {
        for worker in self.generations[at].workers.clone() {
            if worker.state == WorkerState::Ready {
                self.serve(at, worker.id, now);
                self.progress(at, now);
            }
        }
    }

    fn serve(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.actions.push(Action::Serve { worker: id });
        self.change(at, id, WorkerState::Opening { deadline: now + ANSWER_WITHIN }, now);
    }

    fn drain(&mut self, at: usize, id: WorkerId, now: Instant) {
        self.actions.push(Action::Drain { worker: id });
        let deadline = now + self.generations[at].plan.drain_timeout;
        self.change(at, id, WorkerState::Closing { heard_by: now + ANSWER_WITHIN, deadline }, now);
    }

    /// SIGKILL, at most once in a worker's life.
    fn kill(&mut self, at: usize, id: WorkerId, now: Instant) {
        let Some(worker) = self.generations[at].worker(id) else {
            return;
        };
        if !matches!(worker.state, WorkerState::Killed { .. }) {
            self.actions.push(Action::Kill { worker: id });
            self.change(at, id, WorkerState::Killed { at: now }, now);
        }
    }

    fn stop_template(&mut self, at: usize, now: Instant) {
        let generation = &mut self.generations[at];
        match generation.template {
            Template::Starting { .. } | Template::Lost { .. } => self.kill_template(at),
            Template::Ready { .. } => {
                generation.template = Template::Stopping { kill_at: now + TEMPLATE_STOP_WITHIN };
                let generation = generation.id;
                self.actions.push(Action::StopTemplate { generation });
            }
            Template::Backoff { .. } => generation.template = Template::Gone,
            Template::Stopping { .. } | Template::Killed | Template::Gone => {}
        }
    }

    fn kill_template(&mut self, at: usize) {
        let generation = &mut self.generations[at];
        match generation.template {
            Template::Starting { .. } | Template::Ready { .. } | Template::Lost { .. } | Template::Stopping { .. } => {
                generation.template = Template::Killed;
                let generation = generation.id;
                self.actions.push(Action::KillTemplate { generation });
            }
            Template::Backoff { .. } => generation.template = Template::Gone,
            Template::Killed | Template::Gone => {}
        }
    }

    /// The one place where a worker's state changes, and its log line.
    fn change(&mut self, at: usize, id: WorkerId, to: WorkerState, now: Instant) {
        let name = self.name(at, id);
        let Some(worker) = self.generations[at].worker_mut(id) else {
            return;
        };
        let after = now.saturating_duration_since(worker.since).as_millis();
        let line = format!("{name} {} -> {} after={after}ms", worker.state.word(), to.word());
        worker.state = to;
        worker.since = now;
        self.log(Level::Info, line);
    }

    fn change_generation(&mut self, at: usize, to: State) {
        let generation = &mut self.generations[at];
        let line = format!("generation gen={} {} -> {}", generation.id, generation.state.word(), to.word());
        generation.state = to;
        self.log(Level::Info, line);
    }

    /// How many workers a generation should have.
    pub fn wanted_of(&self, generation: &Generation) -> u32 {
        match generation.state {
            State::Proving | State::Rolling { .. } | State::Serving => {
                (i64::from(generation.plan.workers) + i64::from(self.extra)).max(1) as u32
            }
            State::Draining | State::Abandoned => 0,
        }
    }

    fn wanted(&self, at: usize) -> u32 {
        self.wanted_of(&self.generations[at])
    }

    fn others(&self, at: usize) -> impl Iterator<Item = &Worker> {
        self.generations.iter().enumerate().filter(move |(index, _)| *index != at).flat_map(|(_, other)| &other.workers)
    }

    fn all_present(&self) -> usize {
        self.generations.iter().map(Generation::present).sum()
    }

    fn index(&self, id: GenerationId) -> Option<usize> {
        self.generations.iter().position(|generation| generation.id == id)
    }

    fn name(&self, at: usize, id: WorkerId) -> String {
        let generation = &self.generations[at];
        match generation.worker(id) {
            Some(Worker { slot, pid: Some(pid), .. }) => format!("worker gen={} slot={slot} pid={pid}", generation.id),
            Some(Worker { slot, .. }) => format!("worker gen={} slot={slot} pid=?", generation.id),
            None => format!("worker gen={} id={id}", generation.id),
        }
    }

    fn log(&mut self, level: Level, line: String) {
        self.actions.push(Action::Log { level, line });
    }

    fn verdict(&mut self, generation: GenerationId, verdict: Verdict) {
        self.actions.push(Action::Verdict { generation, verdict });
    }

    /// The sentences of this file's head. A broken one is a bug: it stops a debug build, and is logged in release.
    fn check(&mut self) {
        let transactions =
            self.generations.iter().filter(|g| matches!(g.state, State::Proving | State::Rolling { .. })).count();
        let serving = self.generations.iter().filter(|g| g.state == State::Serving).count();
        debug_assert!(transactions <= 1 && serving <= 1, "{transactions} transactions, {serving} serving");
        if transactions > 1 || serving > 1 {
            let line = format!("internal error: {transactions} generations in a transaction, {serving} serving");
            self.log(Level::Error, line);
        }
    }
}

/// How long one exchange of workers may take.
fn step_limit(plan: &Plan) -> Duration {
    match plan.surge {
        Surge::Workers(0) => plan.boot_timeout + plan.drain_timeout,
        Surge::Workers(_) | Surge::All => plan.boot_timeout,
    }
}

/// Replacements of due or stuck workers at once.
fn replacements_max(plan: &Plan) -> usize {
    match plan.surge {
        Surge::Workers(surge) => surge.max(1) as usize,
        Surge::All => plan.workers.max(1) as usize,
    }
}

fn generation_deadline(generation: &Generation) -> Option<Instant> {
    let step = match generation.state {
        State::Rolling { step: Step::Asking { answer_by, .. }, .. } => Some(answer_by),
        State::Rolling { step: Step::Exchanging { deadline }, .. } => Some(deadline),
        State::Rolling { step: Step::Waiting | Step::Opening, .. }
        | State::Proving
        | State::Serving
        | State::Draining
        | State::Abandoned => None,
    };
    let max_lifetime = generation.plan.max_lifetime;
    let workers = generation.workers.iter().filter_map(|worker| worker.deadline(max_lifetime));
    // A backoff matters only to slots that are to be filled from here.
    let rests = match generation.state {
        State::Rolling { .. } | State::Serving => &generation.slots[..],
        State::Proving | State::Draining | State::Abandoned => &[],
    };
    let vacant = |(index, _): &(usize, &Slot)| generation.present_in(SlotIndex(*index as u32)).next().is_none();
    let rests = rests.iter().enumerate().filter(vacant).filter_map(|(_, slot)| slot.backoff_until);
    workers.chain(rests).chain(generation.template.deadline()).chain(step).min()
}

fn failure(stage: ProofStep, reason: String) -> Failure {
    Failure { stage, reason, details: String::new() }
}

fn on_new_line(details: &str) -> String {
    match details.trim_end() {
        "" => String::new(),
        details => format!("\n{details}"),
    }
}
