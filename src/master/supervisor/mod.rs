//! The supervisor: what the master decides. It takes an event and the time and appends actions; it does no
//! system call, reads no clock, cannot fail and cannot wait. `master` carries the actions out.
//!
//! A reload is a transaction: prove, roll, commit. An event is first noted in the state it concerns; then `settle`
//! derives from the whole state what is due now. So there is one place that fills slots and one that exchanges
//! workers, whatever brought the vacancy about.
//!
//! Always true: at most one generation is proving or rolling; exactly one is serving from the first commit to the
//! end; no listener is closed before a commit; whatever waits has a deadline.

mod answers;
pub mod asks;
pub mod backoff;
pub mod canary;
mod dump;
pub mod generation;
pub mod kept;
mod leftovers;
pub mod maintenance;
pub mod pace;
pub mod pause;
mod recycle;
pub mod rehearsal;
mod reports;
pub mod rhythm;
mod rolling;
pub mod saved;
mod service_asks;
pub mod services;
mod stop;
mod target;
pub mod template;
mod transaction;
pub mod upgrade;
pub mod verdict;
pub mod worker;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, ListenerId, Page, SlotIndex, WorkerId};
use forkmaster_wire::rehearsal::Remembered;

use crate::facts::note::Note;
use crate::facts::outcome::{Outcome, Refusal, Reload, Verb};
use asks::{Ask, AskId, Deploy, Waiting};
use generation::{Generation, Plan, State, Step};
use maintenance::{Maintenance, Shown};
use pace::Room;
use pause::{Held, Pause};
use rhythm::Book;
use services::{Event as ServiceEvent, Service, ServiceId};
use target::Target;
use template::{Event as TemplateEvent, Template};
use upgrade::{Event as UpgradeEvent, Upgrade};
use verdict::Counts;
use worker::{Event as WorkerEvent, Exit, Stuck, Worker};

/// A worker told to serve or drain answers within microseconds; one that does not within this is broken.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// From a closed channel, or the last message, to the exit: the interpreter's own end.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

/// What one round of `settle` decides may make room for more: a worker that drains, for another that boots. Two rounds do
/// nearly always.
const SETTLED_AFTER_MAX: usize = 8;

/// After SIGKILL a process is gone, unless the kernel itself hangs; nothing waits for that for ever.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Event {
    /// Somebody asks; a signal is an ask that nobody waits for.
    Ask {
        asker: Option<AskId>,
        ask: Ask,
    },
    /// The asker does not wait for its answer any more.
    Left {
        ask: AskId,
    },
    /// The answer to `Action::Configure`, also the first start: the configuration is valid and its new addresses are
    /// bound (not yet listening), or why it is not.
    Configured {
        verb: Verb,
        /// Several who asked meanwhile have one answer.
        askers: Vec<AskId>,
        /// When it was asked for.
        began: Instant,
        result: Result<(GenerationId, Plan), Refusal>,
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
    /// The other answer.
    ListenersRefused {
        generation: GenerationId,
        refusal: Refusal,
    },
    /// The answer to `Action::MeasureRoom`, with the size of the template that is kept.
    Room {
        generation: GenerationId,
        room: Room,
        kept_bytes: u64,
    },
    /// There is no memory for one more worker; a template of this size is kept.
    MemoryShort {
        kept_bytes: u64,
    },
    /// The answer to `Action::Compare`: what both have counted since the generation's canary serves.
    Compared {
        generation: GenerationId,
        old: Box<Counts>,
        new: Box<Counts>,
    },
    Service {
        service: ServiceId,
        event: ServiceEvent,
    },
    /// The answer to `Action::NameRunning`.
    StillRunning {
        text: String,
    },
    /// The command of a paused reload has ended, or could not be started; `output` is the end of what it has written.
    CommandEnded {
        generation: GenerationId,
        exit: Exit,
        output: String,
    },
    Upgrade(UpgradeEvent),
    /// A deadline may have passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Find out what the new generation is made of and bind what is new, within a time of its own; `Event::Configured`
    /// tells the result.
    Configure {
        asker: Option<AskId>,
        deploy: Deploy,
    },
    StartTemplate {
        generation: GenerationId,
    },
    StopTemplate {
        generation: GenerationId,
    },
    KillTemplate {
        generation: GenerationId,
    },
    /// The template of one generation forks for the other from now on.
    MoveTemplate {
        from: GenerationId,
        to: GenerationId,
    },
    /// Have it write its Python stacks to the log, by a signal, which may end it.
    DumpTemplate {
        generation: GenerationId,
    },
    /// It does not die: it counts as gone, and a next one may be started.
    GiveUpTemplate {
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
        probe: bool,
        weigh: bool,
        max_requests: Option<u64>,
    },
    Serve {
        worker: WorkerId,
    },
    /// It finishes what runs and begins nothing until it is told to serve.
    Pause {
        worker: WorkerId,
    },
    /// Said to one that was told to pause: it takes connections and answers each request with 503.
    Maintenance {
        worker: WorkerId,
        page: Option<Arc<Page>>,
    },
    /// It sends the probe once more, and `WorkerEvent::Probed` tells how that went.
    Probe {
        worker: WorkerId,
    },
    /// It says what it has answered of late, and `WorkerEvent::Remembered` tells it.
    Recall {
        worker: WorkerId,
        requests: u32,
        /// It has told so many of them.
        skip: u32,
    },
    /// It answers this request for nobody, and `WorkerEvent::Rehearsed` tells how.
    Rehearse {
        worker: WorkerId,
        number: u32,
        request: Remembered,
    },
    /// Say (as an event) which requests these run, and log them.
    NameRunning {
        workers: Vec<WorkerId>,
    },
    /// Start the command of this generation; `Event::CommandEnded` tells how it ended.
    RunCommand {
        generation: GenerationId,
    },
    /// TERM to it, or KILL.
    EndCommand {
        generation: GenerationId,
        kill: bool,
    },
    /// Start this service of the generation; `ServiceEvent` tells what comes of it.
    StartService {
        generation: GenerationId,
        service: ServiceId,
        name: String,
    },
    /// Its signal to stop, or KILL to it and all that it has started.
    StopService {
        service: ServiceId,
        kill: bool,
    },
    /// It does not die: it counts as gone.
    GiveUpService {
        service: ServiceId,
    },
    /// It goes on accepting from `keep` until these are closed.
    Drain {
        worker: WorkerId,
        keep: Vec<ListenerId>,
        /// Its successors are not yet told to serve.
        yields: bool,
    },
    /// What waits for whoever is free is not for this worker, which was drained.
    StandAside {
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
    /// Log what is stuck, and ask for the Python stacks of all threads.
    AskStacks {
        worker: WorkerId,
    },
    /// A worker boots for long, or somebody wants to know: ask for the Python stacks of all threads, and log them.
    LookAt {
        worker: WorkerId,
    },
    /// The same for the lines of its slow requests only.
    LookAtSlow {
        worker: WorkerId,
    },
    /// There was no answer: have faulthandler write them, by a signal.
    SignalStacks {
        worker: WorkerId,
    },
    /// What faulthandler has written is the answer; it comes as an event, also where it is nothing.
    TakeStacks {
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
    /// Say (as an event) how much memory and how many processors there are for its workers.
    MeasureRoom {
        generation: GenerationId,
    },
    /// Say (as an event) what both have counted, from the first time that it is asked of these two on.
    Compare {
        generation: GenerationId,
        against: GenerationId,
    },
    /// This generation serves now: what only others have is closed, here and in their workers.
    Commit {
        generation: GenerationId,
        close: Vec<ListenerId>,
    },
    /// Undo what the generation has changed: listeners that only it has are closed, log files that it has made go.
    Abandon {
        generation: GenerationId,
        close: Vec<ListenerId>,
    },
    CloseAllListeners,
    /// The generation's last process is gone.
    Forget {
        generation: GenerationId,
    },
    /// Have the new binary look at a copy of the state; `UpgradeEvent::Tried` tells what it says.
    TryUpgrade,
    /// Nobody waits for that any more.
    EndTry,
    /// For `status`.
    UpgradeRefused(Reload),
    /// A reload, or the first start, has ended: for `status`.
    Concluded(Reload),
    /// For whoever asked, once.
    Answer {
        ask: AskId,
        outcome: Outcome,
    },
    /// For the log.
    Note(Note),
    Exit {
        code: i32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// TERM was taken while the command of a paused reload runs: the master stops when that has ended.
    Interrupting,
    /// TERM was taken; workers go on accepting while load balancers notice.
    Delaying {
        until: Instant,
        /// `graceful_timeout` counts from TERM.
        deadline: Instant,
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

impl Phase {
    /// Processes are begun: services that have ended rest only for a while, and whoever waits for room is looked at.
    fn begins_processes(self) -> bool {
        match self {
            Phase::Running | Phase::Delaying { .. } => true,
            Phase::Interrupting | Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Ended => false,
        }
    }
}

pub struct Supervisor {
    phase: Phase,
    /// TERM has come as a signal.
    term_taken: bool,
    /// Oldest first.
    generations: Vec<Generation>,
    target: Target,
    pause: Pause,
    /// A term of the operator's pause.
    maintenance: Option<Maintenance>,
    held: Option<Held>,
    /// What clients are answered with now. None: they are held, or served.
    shown: Option<Shown>,
    upgrade: Upgrade,
    /// Reloads that wait until a command's reload has ended: those of clients, whose number is bounded, and of signals, of
    /// which one of a kind is enough.
    delayed: Vec<Event>,
    /// The size of the template that is kept, when it was last measured.
    kept_bytes: u64,
    given_up: Option<(GenerationId, u64)>,
    services: Vec<Service>,
    last_service: u64,
    /// What lives on of services over deploys, by their names.
    books: BTreeMap<String, Book>,
    /// Asks without an answer.
    waiting: Vec<Waiting>,
    /// Bound and not closed.
    listeners: BTreeSet<ListenerId>,
    last_worker: u64,
    last_ping: u64,
    actions: Vec<Action>,
}

impl Supervisor {
    pub fn new() -> Supervisor {
        Supervisor {
            phase: Phase::Running,
            term_taken: false,
            generations: Vec::new(),
            target: Target::default(),
            pause: Pause::Off,
            maintenance: None,
            held: None,
            shown: None,
            upgrade: Upgrade::Off,
            delayed: Vec::new(),
            kept_bytes: 0,
            given_up: None,
            services: Vec::new(),
            last_service: 0,
            books: BTreeMap::new(),
            waiting: Vec::new(),
            listeners: BTreeSet::new(),
            last_worker: 0,
            last_ping: 0,
            actions: Vec::new(),
        }
    }

    /// Notes the event, settles, and returns what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Ask { asker, ask } => self.on_ask(asker, ask, now),
            Event::Left { ask } => self.on_left(ask),
            Event::Configured { verb, askers, began, result } => self.on_configured(verb, &askers, began, result, now),
            Event::Template { generation, event } => self.on_template(generation, event, now),
            Event::Worker { worker, event } => self.on_worker(worker, event, now),
            Event::ListenersOpen { generation } => self.on_listeners_open(generation, now),
            Event::ListenersRefused { generation, refusal } => self.on_listeners_refused(generation, refusal, now),
            Event::Room { generation, room, kept_bytes } => self.on_room(generation, room, kept_bytes, now),
            Event::MemoryShort { kept_bytes } => self.on_memory_short(kept_bytes, now),
            Event::Compared { generation, old, new } => self.on_compared(generation, &old, &new, now),
            Event::Service { service, event } => self.on_service(service, event, now),
            Event::StillRunning { text } => self.on_still_running(&text, now),
            Event::CommandEnded { generation, exit, output } => self.on_command_ended(generation, &exit, output, now),
            Event::Upgrade(event) => self.on_upgrade(event, now),
            Event::Tick => {}
        }
        for _ in 0..SETTLED_AFTER_MAX {
            let decided = self.actions.len();
            self.settle(now);
            if self.actions.len() == decided {
                break;
            }
        }
        self.check();
        std::mem::take(&mut self.actions)
    }

    /// When `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Running | Phase::Interrupting | Phase::Ended => None,
            Phase::Delaying { until, .. } => Some(until),
            Phase::Stopping { deadline } => Some(deadline),
            Phase::Ending { give_up, .. } => Some(give_up),
        };
        let begins = self.phase.begins_processes();
        let services = self.services.iter().filter_map(|service| service.deadline(begins));
        let run = self.next_run().filter(|_| self.phase == Phase::Running);
        self.generations
            .iter()
            .filter_map(|generation| generation.deadline(begins))
            .chain(phase)
            .chain(self.pause.deadline())
            .chain(self.maintenance_deadline())
            .chain(self.upgrade.deadline())
            .chain(services)
            .chain(run)
            .min()
    }

    pub fn generations(&self) -> &[Generation] {
        &self.generations
    }

    #[cfg(test)]
    pub fn generation(&self, id: GenerationId) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.id == id)
    }

    /// The generation serves, or did so once.
    pub fn has_committed(&self, id: GenerationId) -> bool {
        self.generations
            .iter()
            .any(|known| known.id == id && matches!(known.state, State::Serving | State::Draining | State::Kept))
    }

    /// Bound for a generation that it knows, and not closed.
    pub fn knows_listener(&self, listener: ListenerId) -> bool {
        self.listeners.contains(&listener)
    }

    #[cfg(test)]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The generation that serves.
    pub fn serving(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.state == State::Serving)
    }

    /// Nobody has told it to stop, and the first start has not failed.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Proving or rolling.
    pub fn in_transaction(&self) -> Option<&Generation> {
        self.generations.iter().find(|generation| matches!(generation.state, State::Proving | State::Rolling { .. }))
    }

    /// The generation whose workers take the places of the serving one's right now.
    fn exchanging(&self) -> Option<&Generation> {
        self.in_transaction().filter(|generation| match generation.state {
            State::Rolling { step, .. } => match step {
                Step::Exchanging { .. } | Step::HandingOver { .. } | Step::TakingOver { .. } => true,
                Step::Opening { .. }
                | Step::Asking { .. }
                | Step::Measuring { .. }
                | Step::Placing { .. }
                | Step::Holding { .. }
                | Step::Pausing { .. }
                | Step::Commanding { .. }
                | Step::Probing { .. }
                | Step::Refilling { .. } => false,
            },
            State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned => false,
        })
    }

    #[cfg(test)]
    pub fn worker(&self, id: WorkerId) -> Option<(&Generation, &Worker)> {
        self.generations.iter().find_map(|generation| Some((generation, generation.worker(id)?)))
    }

    /// Derives what is due from the whole state, in one round. `handle` repeats it until nothing new is due, so that a tick
    /// before a deadline finds nothing.
    fn settle(&mut self, now: Instant) {
        self.expire(now);
        self.take_up_delayed(now);
        match self.phase {
            Phase::Running => {
                self.fix_slots();
                self.hold(now);
                self.roll(now);
                self.recycle(now);
                self.fill(now);
                self.drain_surplus(now);
                self.hold(now);
                self.tend_services(now);
                self.bound_leftovers(now);
                self.make_room(now);
            }
            Phase::Delaying { until, deadline } if now >= until => self.stop_workers(now, deadline),
            Phase::Interrupting => self.hold(now),
            Phase::Delaying { .. } => {
                self.hold(now);
                self.fix_slots();
                self.fill(now);
                self.make_room(now);
            }
            Phase::Stopping { .. } | Phase::Ending { .. } | Phase::Ended => {}
        }
        self.answer_waiting();
        self.collect(now);
        self.tend_upgrade(now);
    }

    /// Acts on every deadline that has passed.
    fn expire(&mut self, now: Instant) {
        // First of all: it tells what is cut, and the workers' own deadlines are the same.
        if let Phase::Stopping { deadline } = self.phase {
            if deadline <= now {
                self.graceful_over(now);
            }
        }
        self.expire_pause(now);
        self.expire_services(now);
        for at in 0..self.generations.len() {
            self.expire_template(at, now);
            self.expire_kept(at, now);
            self.generations[at].end_rest(now);
            for slot in &mut self.generations[at].slots {
                slot.backoff_until = slot.backoff_until.filter(|until| *until > now);
            }
            for id in self.worker_ids(at) {
                self.expire_worker(at, id, now);
            }
            self.expire_rehearsal(at, now);
            self.expire_step(at, now);
        }
    }

    fn fix_slots(&mut self) {
        for at in 0..self.generations.len() {
            let wanted = self.wanted(at);
            // A candidate proves its release also where nobody is wanted.
            self.generations[at].grow_slots(wanted.max(1));
        }
    }

    /// Gives every vacant slot a worker and lets those that wait serve.
    fn fill(&mut self, now: Instant) {
        let taken_over = (0..self.generations.len()).any(|at| self.is_taking_over(at));
        for at in 0..self.generations.len() {
            let wanted = self.wanted(at);
            match self.generations[at].state {
                State::Proving if !self.generations[at].workers.is_empty() => {}
                // It was lost, and the kernel did not let it die: nobody else forks a candidate.
                State::Proving if self.generations[at].template == Template::Gone => {
                    let reason = "the template closed its channel, and the kernel does not let it die";
                    self.refuse(self.generations[at].id, Refusal::new(reason), now);
                }
                State::Proving => self.spawn(at, SlotIndex(0), now),
                // Its workers must not begin to serve beside those who have just taken over.
                State::Serving if taken_over => {}
                State::Serving => {
                    for slot in self.generations[at].vacant(wanted) {
                        self.spawn(at, slot, now);
                    }
                    self.serve_ready(at, now);
                }
                State::Rolling { .. } | State::Draining | State::Kept | State::Abandoned => {}
            }
        }
    }

    /// How many workers a generation should have.
    pub fn wanted_of(&self, generation: &Generation) -> u32 {
        match generation.state {
            State::Proving | State::Rolling { .. } | State::Serving => self.target.wanted(&generation.plan),
            State::Draining | State::Kept | State::Abandoned => 0,
        }
    }

    /// The same, or what it would be were they not switched off.
    pub fn wanted_when_on(&self, generation: &Generation) -> u32 {
        self.target.wanted_when_on(&generation.plan)
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

    fn serving_index(&self) -> Option<usize> {
        self.generations.iter().position(|generation| generation.state == State::Serving)
    }

    /// For going through workers while their states change.
    fn worker_ids(&self, at: usize) -> Vec<WorkerId> {
        self.generations[at].workers.iter().map(|worker| worker.id).collect()
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    /// The sentences of this file's head. A broken one is a bug: it stops a debug build, and is logged in release.
    fn check(&mut self) {
        let transactions =
            self.generations.iter().filter(|g| matches!(g.state, State::Proving | State::Rolling { .. })).count();
        let serving = self.generations.iter().filter(|g| g.state == State::Serving).count();
        debug_assert!(transactions <= 1 && serving <= 1, "{transactions} transactions, {serving} serving");
        if transactions > 1 || serving > 1 {
            let text = format!("{transactions} generations in a transaction, {serving} serving");
            self.note(Note::Broken { text });
        }
    }
}
