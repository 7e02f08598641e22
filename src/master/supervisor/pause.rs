//! Pausing: requests that run are finished and nothing is begun, while clients wait in the backlog, in the handoff queue
//! and in their sockets. It is no phase and no state of a generation: workers come and go, and a reload proves and commits,
//! while it lasts.
//!
//! There are two reasons for it. An operator's `pause`:
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | Off | pause | Finishing | all workers are told |
//! | Finishing | the last request has left the application | On | the asker hears it |
//! | Finishing | its time is over | Off | what still runs is named; the asker hears it |
//! | Finishing, On | resume, TERM | Off | all workers are told to serve |
//!
//! And a reload's own (`reload --pause`), which are steps of the rolling generation, all of whose workers have booted:
//!
//! | Step | Event | Next | What is done |
//! |---|---|---|---|
//! | Exchanging | all its workers are ready | Pausing | all workers of others are told |
//! | Pausing | the last request has left the application | Commanding | the command is started |
//! | Pausing | its time is over | abandoned | what still runs is named |
//! | Commanding | it ends well | Probing | a ready worker sends the probe once more |
//! | Commanding | it fails | abandoned | its output is the reason |
//! | Commanding | its time is over, TERM | Commanding, ending | TERM to it, and KILL after `graceful_timeout` |
//! | Probing | the release answers | Refilling | workers that have died meanwhile boot again |
//! | Probing | it does not | abandoned | |
//! | Refilling | all are ready | Exchanging | one step: it takes over, and clients go on |
//!
//! Either may have a term after which clients are answered rather than held: see `maintenance`.
//!
//! From Commanding on a later reload waits until this one has ended: the command may be half-way through a migration.

use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, WorkerId};

use super::asks::{Ask, AskId};
use super::generation::{State, Step};
use super::maintenance::MaintenancePlan;
use super::reports::FAILED_BOOTS_MAX;
use super::worker::{Exit, State as WorkerState, Worker};
use super::{Action, Event, Phase, Supervisor, KILLED_WITHIN};
use crate::facts::note::{Note, WorkerName};
use crate::facts::outcome::{End, Outcome, Refusal};

/// Reading the scoreboard is a matter of microseconds; who is not named in time stays unnamed.
const NAMED_WITHIN: Duration = Duration::from_secs(1);

/// What `reload --pause` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausePlan {
    /// So long from its beginning the pause may last until the command has ended.
    pub timeout: Duration,
    /// There is a command to run.
    pub has_command: bool,
    /// There is a probe to send after it.
    pub has_probe: bool,
    /// Clients are answered rather than held.
    pub maintenance: Option<Box<MaintenancePlan>>,
}

/// An operator's pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pause {
    #[default]
    Off,
    /// Requests still run. `named`: they were asked for by name, since the time is over.
    Finishing { give_up: Instant, timeout: Duration, named: bool },
    /// No request is in the application.
    On,
}

impl Pause {
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Pause::Finishing { give_up, .. } => Some(give_up),
            Pause::Off | Pause::On => None,
        }
    }
}

/// Since when requests are held back, for whatever reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub since: Instant,
    /// The last request has left the application.
    pub quiet: bool,
}

/// The command of a paused reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Running {
        until: Instant,
    },
    /// TERM was sent.
    Ending {
        kill_at: Instant,
        why: Ending,
    },
    /// KILL was sent.
    Killed {
        give_up: Instant,
        why: Ending,
    },
}

/// Why the command was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Late,
    /// The master was told to stop.
    Stop,
}

impl Command {
    pub fn deadline(self) -> Instant {
        match self {
            Command::Running { until } => until,
            Command::Ending { kill_at, .. } => kill_at,
            Command::Killed { give_up, .. } => give_up,
        }
    }
}

impl Supervisor {
    /// Whoever asks again asks for other terms.
    pub(super) fn on_pause(
        &mut self,
        asker: Option<AskId>,
        timeout: Duration,
        maintenance: Option<MaintenancePlan>,
        now: Instant,
    ) {
        self.maintenance = maintenance.map(|plan| plan.begin(now));
        self.pause = match self.pause {
            // Its last request is out, so there is nothing that could take too long.
            Pause::On => Pause::On,
            Pause::Off | Pause::Finishing { .. } => Pause::Finishing { give_up: now + timeout, timeout, named: false },
        };
        // Answered by `answer_waiting`, perhaps at once.
        self.wait_for_pause(asker);
    }

    /// Answered by `answer_waiting` when all workers serve again.
    pub(super) fn on_resume(&mut self, asker: Option<AskId>) {
        self.end_pause();
        self.refuse_paused(&Refusal::new("resumed before the last request had left the application"));
        self.wait_for_resume(asker);
    }

    pub(super) fn end_pause(&mut self) {
        (self.pause, self.maintenance) = (Pause::Off, None);
    }

    /// Requests are held back. Where new workers are about to take over they serve first, since nobody else does.
    pub(super) fn is_held(&self) -> bool {
        if (0..self.generations.len()).any(|at| self.is_taking_over(at)) {
            return false;
        }
        self.pause != Pause::Off || self.in_transaction().is_some_and(|generation| generation.state.pauses())
    }

    /// Held back since then, for `status`.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// What was done to the service cannot be undone by a later reload: that one waits.
    pub(super) fn is_commanding(&self) -> bool {
        self.in_transaction().is_some_and(|generation| {
            let begun = generation.plan.pause.is_some() && generation.pause.is_none();
            begun && !matches!(generation.state, State::Rolling { step: Step::Pausing { .. }, .. })
        })
    }

    /// No request is in the application, and none will begin.
    fn is_quiet(&self) -> bool {
        self.generations.iter().flat_map(|generation| &generation.workers).all(|worker| !may_run(worker))
    }

    /// Makes every worker what it should be: held back, or serving.
    pub(super) fn hold(&mut self, now: Instant) {
        let is_held = self.is_held();
        match (self.held, is_held) {
            (None, true) => {
                self.held = Some(Held { since: now, quiet: false });
                self.note(Note::Pausing);
            }
            (Some(held), false) => {
                self.held = None;
                let after_ms = now.saturating_duration_since(held.since).as_millis() as u64;
                self.note(Note::Resumed { after_ms });
            }
            (None, false) | (Some(_), true) => {}
        }
        self.show(is_held, now);
        for at in 0..self.generations.len() {
            // Those who have never served answer nobody, unless somebody has to say that nobody serves.
            let answers = self.turns_away() && self.generations[at].state == State::Serving && self.wanted(at) > 0;
            for worker in self.generations[at].workers.clone() {
                match worker.state {
                    WorkerState::Ready if is_held && answers => self.pause_worker(at, &worker, now),
                    WorkerState::Opening { .. } | WorkerState::Serving { .. } if is_held => {
                        self.pause_worker(at, &worker, now);
                    }
                    WorkerState::Pausing { .. } | WorkerState::Paused { .. } if !is_held => {
                        self.serve(at, worker.id, now);
                    }
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
                    | WorkerState::Terminating { .. }
                    | WorkerState::Finishing { .. }
                    | WorkerState::Exiting { .. }
                    | WorkerState::Killed { .. } => {}
                }
            }
        }
        self.note_quiet(now);
    }

    fn note_quiet(&mut self, now: Instant) {
        let Some(held) = self.held.filter(|_| self.is_quiet()) else { return };
        if !held.quiet {
            self.held = Some(Held { quiet: true, ..held });
            let after_ms = now.saturating_duration_since(held.since).as_millis() as u64;
            self.note(Note::Paused { after_ms });
        }
        if let Pause::Finishing { .. } = self.pause {
            self.pause = Pause::On;
        }
    }

    pub(super) fn pause_worker(&mut self, at: usize, worker: &Worker, now: Instant) {
        let due = match worker.state {
            WorkerState::Serving { due, .. } | WorkerState::Opening { due, .. } => due,
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => None,
        };
        self.actions.push(Action::Pause { worker: worker.id });
        self.show_by(worker.id);
        self.change(at, worker.id, WorkerState::Pausing { due }, now);
    }

    /// The pause of an operator may have lasted too long before it even began.
    pub(super) fn expire_pause(&mut self, now: Instant) {
        let Pause::Finishing { give_up, timeout, named } = self.pause else { return };
        if give_up > now {
            return;
        }
        if named {
            return self.give_up_pause("");
        }
        self.pause = Pause::Finishing { give_up: now + NAMED_WITHIN, timeout, named: true };
        self.name_running();
    }

    fn name_running(&mut self) {
        let workers = self.generations.iter().flat_map(|generation| &generation.workers);
        let workers = workers.filter(|worker| may_run(worker)).map(|worker| worker.id).collect();
        self.actions.push(Action::NameRunning { workers });
    }

    fn give_up_pause(&mut self, details: &str) {
        let Pause::Finishing { timeout, .. } = self.pause else { return };
        self.end_pause();
        let refusal = still_run(timeout, self.who_runs(), details);
        self.note(Note::PauseRefused { refusal: refusal.clone() });
        self.refuse_paused(&refusal);
    }

    fn who_runs(&self) -> Vec<WorkerName> {
        let names = |generation: &super::Generation| {
            let running = generation.workers.iter().filter(|worker| may_run(worker));
            running.map(|worker| generation.name(worker)).collect::<Vec<_>>()
        };
        self.generations.iter().flat_map(names).collect()
    }

    /// The answer to `Action::NameRunning`.
    pub(super) fn on_still_running(&mut self, text: &str, now: Instant) {
        if let Pause::Finishing { named: true, .. } = self.pause {
            self.give_up_pause(text);
        }
        let pausing = |generation: &&super::Generation| {
            matches!(generation.state, State::Rolling { step: Step::Pausing { named: true, .. }, .. })
        };
        if let Some(id) = self.in_transaction().filter(pausing).map(|generation| generation.id) {
            self.refuse_pausing(id, text, now);
        }
    }

    fn refuse_pausing(&mut self, id: GenerationId, details: &str, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let timeout = self.generations[at].plan.pause.as_ref().map_or(Duration::ZERO, |plan| plan.timeout);
        let refusal = still_run(timeout, self.who_runs(), details);
        self.refuse(id, refusal, now);
    }

    // --- the steps of a paused reload ----------------------------------------------------------------------------

    /// All its workers are ready, and nothing was paused or run yet.
    pub(super) fn begin_pausing(&mut self, at: usize, plan: &PausePlan, now: Instant) {
        self.generations[at].maintenance = plan.maintenance.as_ref().map(|maintenance| maintenance.begin(now));
        self.change_step(at, Step::Pausing { give_up: now + plan.timeout, named: false });
        self.hold(now);
        self.pausing(at, now);
    }

    pub(super) fn pausing(&mut self, at: usize, now: Instant) {
        let State::Rolling { step: Step::Pausing { give_up, .. }, .. } = self.generations[at].state else { return };
        if !self.is_quiet() {
            return;
        }
        let id = self.generations[at].id;
        match self.generations[at].plan.pause.as_ref().is_some_and(|plan| plan.has_command) {
            true => {
                self.change_step(at, Step::Commanding { command: Command::Running { until: give_up } });
                self.actions.push(Action::RunCommand { generation: id });
            }
            false => self.begin_probing(at, now),
        }
    }

    /// The command has ended, or could not be started.
    pub(super) fn on_command_ended(&mut self, id: GenerationId, exit: &Exit, output: String, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let State::Rolling { step: Step::Commanding { command }, .. } = self.generations[at].state else { return };
        let timeout_s = self.generations[at].plan.pause.as_ref().map_or(0.0, |plan| plan.timeout.as_secs_f64());
        let late = || Refusal::new(format!("the command did not end within {timeout_s:.1}s (--timeout)"));
        let refusal = match command {
            Command::Running { .. } if *exit == Exit::Code(0) => return self.begin_probing(at, now),
            Command::Running { .. } => exit.refusal("the command failed"),
            Command::Ending { why: Ending::Late, .. } | Command::Killed { why: Ending::Late, .. } => late(),
            Command::Ending { why: Ending::Stop, .. } | Command::Killed { why: Ending::Stop, .. } => {
                return self.stop_after_command(id, now);
            }
        };
        self.refuse(id, Refusal { details: output, ..refusal }, now);
    }

    /// TERM came while it ran, and it has ended.
    fn stop_after_command(&mut self, id: GenerationId, now: Instant) {
        self.abandon(id, End::Stopped, now);
        if self.phase == Phase::Interrupting {
            self.phase = Phase::Running;
            self.on_stop(false, now);
        }
    }

    /// TERM came. True: a command runs, and the master stops when that has ended.
    pub(super) fn interrupt_command(&mut self, now: Instant) -> bool {
        let Some(id) = self.in_transaction().map(|generation| generation.id) else { return false };
        let Some(at) = self.index(id) else { return false };
        let State::Rolling { step: Step::Commanding { command }, .. } = self.generations[at].state else {
            return false;
        };
        let why = Ending::Stop;
        let command = match command {
            Command::Running { .. } => {
                self.actions.push(Action::EndCommand { generation: id, kill: false });
                Command::Ending { kill_at: now + self.generations[at].plan.graceful_timeout, why }
            }
            Command::Ending { kill_at, .. } => Command::Ending { kill_at, why },
            Command::Killed { give_up, .. } => Command::Killed { give_up, why },
        };
        self.change_step(at, Step::Commanding { command });
        self.phase = Phase::Interrupting;
        true
    }

    fn begin_probing(&mut self, at: usize, now: Instant) {
        let generation = &self.generations[at];
        let (id, limit) = (generation.id, generation.plan.boot_timeout);
        if matches!(generation.state, State::Rolling { failed_boots: FAILED_BOOTS_MAX.., .. }) {
            return self.refuse(id, Refusal::new("its processes died too often while the command ran"), now);
        }
        if !generation.plan.pause.as_ref().is_some_and(|plan| plan.has_probe) {
            return self.begin_refilling(at, now);
        }
        let ready = generation.workers.iter().find(|worker| worker.state == WorkerState::Ready);
        let Some(worker) = ready.map(|worker| worker.id) else {
            return self.refuse(id, Refusal::new("no worker is left to answer the probe"), now);
        };
        self.actions.push(Action::Probe { worker });
        self.change_step(at, Step::Probing { worker, answer_by: now + limit });
    }

    pub(super) fn on_probed(&mut self, at: usize, worker: WorkerId, failure: Option<Refusal>, now: Instant) {
        let asked = match self.generations[at].state {
            State::Rolling { step: Step::Probing { worker, .. }, .. } => worker,
            State::Rolling { .. }
            | State::Proving
            | State::Serving
            | State::Draining
            | State::Kept
            | State::Abandoned => return,
        };
        if asked != worker {
            return;
        }
        match failure {
            None => self.begin_refilling(at, now),
            Some(refusal) => self.refuse(self.generations[at].id, refusal, now),
        }
    }

    /// Whoever was to answer the probe must live until it has.
    pub(super) fn probing(&mut self, at: usize, worker: WorkerId, now: Instant) {
        let lives = self.generations[at].worker(worker).is_some_and(|worker| worker.state == WorkerState::Ready);
        if !lives {
            let refusal = Refusal::new("the worker that was to answer the probe is gone");
            self.refuse(self.generations[at].id, refusal, now);
        }
    }

    fn begin_refilling(&mut self, at: usize, now: Instant) {
        let deadline = now + self.generations[at].plan.boot_timeout;
        self.change_step(at, Step::Refilling { deadline });
        self.refilling(at, now);
    }

    pub(super) fn refilling(&mut self, at: usize, now: Instant) {
        let State::Rolling { pace, .. } = self.generations[at].state else { return };
        let wanted = self.wanted(at);
        self.boot(at, wanted, usize::MAX, pace, now);
        if self.generations[at].all_booted(wanted) {
            self.begin_exchange(at, now);
            self.exchange(at, pace, now);
        }
    }

    pub(super) fn expire_pausing(&mut self, at: usize, step: Step, now: Instant) {
        let generation = &self.generations[at];
        let (id, graceful) = (generation.id, generation.plan.graceful_timeout);
        match step {
            Step::Pausing { named: true, .. } => self.refuse_pausing(id, "", now),
            Step::Pausing { named: false, .. } => {
                self.change_step(at, Step::Pausing { give_up: now + NAMED_WITHIN, named: true });
                self.name_running();
            }
            Step::Commanding { command: Command::Running { .. } } => {
                self.actions.push(Action::EndCommand { generation: id, kill: false });
                let command = Command::Ending { kill_at: now + graceful, why: Ending::Late };
                self.change_step(at, Step::Commanding { command });
            }
            Step::Commanding { command: Command::Ending { why, .. } } => {
                self.actions.push(Action::EndCommand { generation: id, kill: true });
                let command = Command::Killed { give_up: now + KILLED_WITHIN, why };
                self.change_step(at, Step::Commanding { command });
            }
            Step::Commanding { command: Command::Killed { .. } } => {
                self.on_command_ended(id, &Exit::Signal { number: 9, core: false }, String::new(), now);
            }
            Step::Probing { .. } => {
                let limit_s = generation.plan.boot_timeout.as_secs_f64();
                let reason = format!("the probe was not answered within boot_timeout ({limit_s:.1}s)");
                self.refuse(id, Refusal::new(reason), now);
            }
            Step::Refilling { .. } => {
                self.refuse(id, Refusal::new("its workers did not boot again in time (boot_timeout)"), now);
            }
            Step::Opening { .. }
            | Step::Asking { .. }
            | Step::Measuring { .. }
            | Step::Placing { .. }
            | Step::Holding { .. }
            | Step::Exchanging { .. }
            | Step::HandingOver { .. }
            | Step::TakingOver { .. } => {}
        }
    }

    // --- reloads that wait ---------------------------------------------------------------------------------------

    /// A reload that is asked for, or configured, while a command is under way. Signals that ask for the same are one.
    pub(super) fn delay(&mut self, event: Event) {
        let same = |other: &Event| matches!((other, &event), (Event::Ask { asker: None, ask: before }, Event::Ask { asker: None, ask }) if before == ask);
        if self.delayed.iter().any(same) {
            return;
        }
        if let Some(generation) = self.in_transaction().map(|generation| generation.id) {
            self.note(Note::ReloadWaits { generation });
        }
        self.delayed.push(event);
    }

    pub(super) fn take_up_delayed(&mut self, now: Instant) {
        if self.delayed.is_empty() || self.is_commanding() {
            return;
        }
        for event in std::mem::take(&mut self.delayed) {
            match event {
                Event::Ask { asker, ask: ask @ Ask::Reload { .. } } => self.on_ask(asker, ask, now),
                Event::Configured { verb, askers, began, result } => {
                    self.on_configured(verb, &askers, began, result, now);
                }
                Event::Ask { .. }
                | Event::Left { .. }
                | Event::Template { .. }
                | Event::Worker { .. }
                | Event::ListenersOpen { .. }
                | Event::ListenersRefused { .. }
                | Event::Room { .. }
                | Event::MemoryShort { .. }
                | Event::Service { .. }
                | Event::Compared { .. }
                | Event::StillRunning { .. }
                | Event::CommandEnded { .. }
                | Event::Upgrade(_)
                | Event::Tick => {}
            }
        }
    }

    pub(super) fn paused(&self) -> Option<Outcome> {
        // Asked again for other terms, some may still show the page of the former ones.
        (self.pause == Pause::On && self.is_quiet()).then_some(Outcome::Paused)
    }

    /// Every worker that was held back accepts again. One that dies meanwhile is no longer waited for.
    pub(super) fn resumed(&self) -> Option<Outcome> {
        if self.pause != Pause::Off {
            return Some(Outcome::Refused(Refusal::new("paused again meanwhile")));
        }
        let mut workers = self.generations.iter().flat_map(|generation| &generation.workers);
        let back = workers.all(|worker| match worker.state {
            WorkerState::Opening { .. } | WorkerState::Pausing { .. } | WorkerState::Paused { .. } => false,
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Serving { .. }
            | WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => true,
        });
        (back && !self.is_held()).then_some(Outcome::Resumed)
    }
}

/// A request may be in its application, or may get there.
fn may_run(worker: &Worker) -> bool {
    match worker.state {
        WorkerState::Opening { .. }
        | WorkerState::Serving { .. }
        | WorkerState::Pausing { .. }
        | WorkerState::Closing { .. }
        | WorkerState::Draining { .. }
        | WorkerState::Terminating { .. }
        // It has closed its channel, and may run on for a moment.
        | WorkerState::Exiting { .. } => true,
        WorkerState::Killed { .. } => worker.pid.is_some(),
        WorkerState::Kept { quiet, .. } => !quiet,
        WorkerState::Starting { .. } | WorkerState::Lost { .. }
        | WorkerState::Ready
        | WorkerState::Paused { .. }
        | WorkerState::Finishing { .. } => false,
    }
}

fn still_run(timeout: Duration, who: Vec<WorkerName>, details: &str) -> Refusal {
    let who: Vec<String> = who.iter().map(ToString::to_string).collect();
    let reason = format!("requests still run after {:.1}s, in {}", timeout.as_secs_f64(), who.join(", "));
    Refusal { details: details.to_owned(), ..Refusal::new(reason) }
}
