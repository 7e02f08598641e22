//! The supervisor on a fake clock. `World` plays the operating system: it carries actions out as a healthy system
//! would, unless a test has told it that a generation is broken, and it keeps what an operator would see.

mod asks;
mod canary;
mod ending;
mod healing;
mod kept;
mod leftovers;
mod pause;
mod phases;
mod random;
mod rehearsal;
mod rollback;
mod rolling;
mod services;
mod stopping;
mod transaction;
mod upgrade;
mod verbs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkmaster_wire::message::{GenerationId, ListenerId, Page, SlotIndex, WorkerId};
use forkmaster_wire::rehearsal::Remembered;

use super::asks::{Ask, AskId, Deploy};
use super::backoff;
use super::generation::{Generation, Plan, State, Surge};
use super::maintenance::MaintenancePlan;
use super::pace::{Boot, Room};
use super::rehearsal::Rehearsed;
use super::services::{Event as ServiceEvent, ServiceId, ServicePlan};
use super::template::Template;
use super::verdict::Counts;
use super::worker::{Event as WorkerEvent, Exit, State as WorkerState, Stuck, Worker};
use super::{Action, Event, Phase, Supervisor, TemplateEvent};
use crate::exit_code::ExitCode;
use crate::facts::note::Note;
use crate::facts::outcome::{End, Outcome, Refusal, Reload, Verb};

const ON_DISK: Deploy = Deploy::OnDisk { force: false, canary: None };

/// How the processes of a generation behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Healthy,
    TemplateHangs,
    TemplateFails,
    TemplateDies,
    WorkersFail,
    WorkersDie,
    WorkersHang,
    /// The fork is under way, and nobody knows the pid yet.
    ForksSlowly,
    /// The candidate boots, every later worker fails.
    OnlyCandidateBoots,
    /// Workers that are told to drain never finish.
    DrainsForEver,
    /// They serve nothing any more and do not end, since a thread of the application runs on.
    ThreadRunsOn,
    /// They were stopped (SIGSTOP): told to drain they say nothing.
    DrainsMutely,
    /// Told to serve they say nothing.
    ServesMutely,
    /// Told to serve they die.
    DiesServing,
    /// They answer requests that never end: told to pause they say nothing.
    Streams,
}

/// How the command of a paused reload behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CommandBehaviour {
    EndsWell,
    Fails,
    /// Until it is told to end.
    Hangs,
    /// Until it is killed.
    IgnoresTerm,
    CannotStart,
}

/// How a candidate answers in its rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RehearsalBehaviour {
    AsBefore,
    /// The last request fails.
    Differs,
    Hangs,
    Dies,
    /// It closes its channel and lives on.
    IsLost,
    /// It ends itself.
    Leaves,
    /// It answers what nobody has asked.
    Babbles,
}

enum Happening {
    Template(GenerationId, TemplateEvent),
    Worker(WorkerId, WorkerEvent),
    Command(Exit),
    Service(ServiceId, ServiceEvent),
}

/// So many requests that a worker remembers fit into a message.
const REMEMBERED_A_MESSAGE: usize = 4;

struct World {
    supervisor: Supervisor,
    now: Instant,
    behaviour: BTreeMap<GenerationId, Behaviour>,
    /// Actions not yet carried out.
    todo: VecDeque<Action>,
    /// What processes will do next. The master hears of it when it has done its own work, as in its event loop.
    happenings: VecDeque<Happening>,
    alive: BTreeMap<WorkerId, GenerationId>,
    booted: BTreeMap<GenerationId, u32>,
    templates: BTreeSet<GenerationId>,
    /// Signals sent, by worker.
    kills: BTreeMap<WorkerId, u32>,
    accepting: BTreeSet<WorkerId>,
    /// They have drained, and stay until they are told that others have what waits.
    yielding: BTreeSet<WorkerId>,
    aside: BTreeSet<WorkerId>,
    /// Paused ones that answer with 503, and the page.
    turning_away: BTreeMap<WorkerId, Option<String>>,
    paused: BTreeSet<WorkerId>,
    /// The fewest workers that accepted at any moment since it was set.
    fewest_accepting: usize,
    most_present: usize,
    /// Somebody who asked at some moment since it was set heard that the service is not ready.
    unready: bool,
    verdicts: Vec<(GenerationId, End)>,
    concluded: Vec<Reload>,
    /// What the old generation and the canary have counted.
    seen: (Counts, Counts),
    answers: Vec<(AskId, Outcome)>,
    notes: Vec<Note>,
    log: Vec<String>,
    exit: Option<i32>,
    refuse_listeners: Option<ExitCode>,
    room: Room,
    /// Workers that were asked what memory they take.
    weighed: usize,
    /// What workers say of their boots.
    boot: Boot,
    /// Serve nothing any more.
    drained: BTreeSet<WorkerId>,
    most_processes: usize,
    /// SIGKILL ends nobody.
    nobody_dies: bool,
    command: CommandBehaviour,
    /// Processes of services that live, and whether they stop when they are told to.
    services: BTreeSet<ServiceId>,
    services_stop: bool,
    /// Those that are asked to say so become ready.
    services_say_ready: bool,
    /// Those that run every so often end.
    runs_end: bool,
    /// The command that runs, and those that have run.
    commanding: Option<GenerationId>,
    commanded: Vec<GenerationId>,
    /// The release does not answer the probe after the command.
    probe_fails: bool,
    /// What every worker remembers, or whether it says nothing.
    remembered: Vec<Remembered>,
    recall_is_lost: bool,
    rehearses: RehearsalBehaviour,
    /// Requests that candidates were asked.
    rehearsed: Vec<String>,
    /// It says nothing at all: this worker was asked.
    probe_hangs: bool,
    probed: Option<WorkerId>,
    /// The configuration was asked for, by whom.
    configure: VecDeque<Option<AskId>>,
    /// Closed by a commit, an abandonment, or all at the end.
    closed: Vec<(GenerationId, Vec<ListenerId>)>,
    /// Templates do not answer.
    pings_are_lost: bool,
    generation: u32,
}

pub fn plan(workers: u32) -> Plan {
    Plan {
        workers,
        cells: workers * 4 + 64,
        max_processes: None,
        open_files: None,
        unborn_max: 64,
        listeners: vec![ListenerId(1)],
        surge: Surge::Workers(1),
        unavailable: 0,
        boot_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(600),
        graceful_timeout: Duration::from_secs(25),
        shutdown_delay: Duration::ZERO,
        max_requests: 0,
        max_requests_jitter: 0,
        max_lifetime: None,
        pause: None,
        canary: None,
        rehearsal: None,
        rollback_window: Duration::ZERO,
        origin: None,
        services: Box::default(),
    }
}

impl World {
    fn new() -> World {
        World {
            supervisor: Supervisor::new(),
            now: Instant::now(),
            behaviour: BTreeMap::new(),
            todo: VecDeque::new(),
            happenings: VecDeque::new(),
            alive: BTreeMap::new(),
            booted: BTreeMap::new(),
            templates: BTreeSet::new(),
            kills: BTreeMap::new(),
            accepting: BTreeSet::new(),
            yielding: BTreeSet::new(),
            aside: BTreeSet::new(),
            turning_away: BTreeMap::new(),
            paused: BTreeSet::new(),
            fewest_accepting: usize::MAX,
            most_present: 0,
            unready: false,
            verdicts: Vec::new(),
            concluded: Vec::new(),
            seen: (Counts::default(), Counts::default()),
            answers: Vec::new(),
            notes: Vec::new(),
            log: Vec::new(),
            exit: None,
            refuse_listeners: None,
            weighed: 0,
            room: Room { bytes: None, processors: 2, worker_bytes: 0 },
            boot: Boot::default(),
            drained: BTreeSet::new(),
            most_processes: 0,
            nobody_dies: false,
            command: CommandBehaviour::EndsWell,
            services: BTreeSet::new(),
            services_stop: true,
            services_say_ready: false,
            runs_end: true,
            commanding: None,
            commanded: Vec::new(),
            probe_fails: false,
            remembered: Vec::new(),
            recall_is_lost: false,
            rehearses: RehearsalBehaviour::AsBefore,
            rehearsed: Vec::new(),
            probe_hangs: false,
            probed: None,
            configure: VecDeque::new(),
            closed: Vec::new(),
            pings_are_lost: false,
            generation: 0,
        }
    }

    /// A world in which generation 1 serves with this plan.
    fn serving(plan: Plan) -> World {
        let mut world = World::new();
        world.reload(plan, Behaviour::Healthy);
        world.run();
        assert_eq!(world.state(1), Some("serving"));
        world.fewest_accepting = world.accepting.len();
        world.unready = false;
        world
    }

    fn reload(&mut self, plan: Plan, behaviour: Behaviour) -> GenerationId {
        self.generation += 1;
        let generation = GenerationId(self.generation);
        self.behaviour.insert(generation, behaviour);
        self.event(Event::Configured {
            verb: Verb::Reload,
            askers: Vec::new(),
            began: self.now,
            result: Ok((generation, plan)),
        });
        generation
    }

    fn event(&mut self, event: Event) {
        let actions = self.supervisor.handle(event, self.now);
        self.services_are_of_what_serves(&actions);
        self.todo.extend(actions);
        self.unready |= !self.supervisor.is_ready();
        if let Some(what) = self.unbounded() {
            panic!("{what} waits without a deadline: {:#?}", self.log);
        }
    }

    /// None of an old release begins after the commit, and none of a new one before it.
    fn services_are_of_what_serves(&self, actions: &[Action]) {
        for action in actions {
            if let Action::StartService { generation, .. } = action {
                assert!(self.supervisor.is_serving(*generation), "a service of {generation} begins: {:#?}", self.log);
            }
        }
    }

    /// Whatever waits for something that need not come. Serving, and a template that can fork, wait for nothing.
    fn unbounded(&self) -> Option<String> {
        let running = self.supervisor.phase() == Phase::Running;
        for generation in self.supervisor.generations() {
            let id = generation.id;
            let rolling = matches!(generation.state, State::Rolling { .. });
            if matches!(generation.state, State::Proving | State::Rolling { .. }) {
                if generation.deadline(true).is_none() {
                    return Some(format!("generation {id} {}", generation.state.word()));
                }
                if generation.waiting().is_none() {
                    return Some(format!("generation {id} {} has no word and", generation.state.word()));
                }
            }
            for worker in &generation.workers {
                let bounded = match worker.state {
                    // As long as the pause lasts, which is an operator's or has its own deadline.
                    WorkerState::Serving { .. } | WorkerState::Pausing { .. } | WorkerState::Paused { .. } => true,
                    WorkerState::Ready if self.supervisor.is_held() => true,
                    // Its turn comes with its generation's step, or its successor's.
                    WorkerState::Ready if generation.rehearsal.deadline().is_some() => true,
                    WorkerState::Ready => rolling || self.supervisor.exchanging().is_some() || !running,
                    WorkerState::Starting { .. }
                    | WorkerState::Lost { .. }
                    | WorkerState::Opening { .. }
                    | WorkerState::Kept { .. }
                    | WorkerState::Closing { .. }
                    | WorkerState::Draining { .. }
                    | WorkerState::Finishing { .. }
                    | WorkerState::Terminating { .. }
                    | WorkerState::Exiting { .. }
                    | WorkerState::Killed { .. } => worker.deadline(None).is_some(),
                };
                if !bounded {
                    return Some(format!("worker {} of {id} {}", worker.id, worker.state.word()));
                }
            }
            let bounded = match generation.template {
                Template::Ready { .. } | Template::Gone => true,
                Template::Starting { .. }
                | Template::Forking { .. }
                | Template::Dumping { .. }
                | Template::Lost { .. }
                | Template::Backoff { .. }
                | Template::Stopping { .. }
                | Template::Killed { .. } => generation.template.deadline().is_some(),
            };
            if !bounded {
                return Some(format!("template {id} {}", generation.template.word()));
            }
            let wanted = self.supervisor.wanted_of(generation) as usize;
            let paused = self.supervisor.is_held();
            if running && !paused && generation.state == State::Serving && generation.serving() < wanted {
                // Its own deadlines, or those of the exchange that takes its places.
                if generation.deadline(true).is_none() && self.supervisor.exchanging().is_none() {
                    return Some(format!("the lack of workers of {id}"));
                }
            }
        }
        None
    }

    /// A signal.
    fn ask(&mut self, ask: Ask) {
        self.event(Event::Ask { asker: None, ask });
    }

    /// Something happens to a worker, now.
    fn worker_event(&mut self, worker: WorkerId, event: WorkerEvent) {
        if let WorkerEvent::Exited(_) = event {
            self.alive.remove(&worker);
            self.accepting.remove(&worker);
            self.is_not_paused(worker);
            self.fewest_accepting = self.fewest_accepting.min(self.accepting.len());
        }
        self.event(Event::Worker { worker, event });
    }

    fn drain(&mut self, worker: WorkerId, yields: bool) {
        self.yielding.remove(&worker);
        self.accepting.remove(&worker);
        self.is_not_paused(worker);
        if let Some(generation) = self.alive.get(&worker).copied() {
            match self.behaviour[&generation] {
                Behaviour::DrainsMutely => {}
                Behaviour::DrainsForEver | Behaviour::Streams => self.soon(worker, WorkerEvent::Draining),
                Behaviour::ThreadRunsOn => {
                    self.soon(worker, WorkerEvent::Draining);
                    self.drained.insert(worker);
                    self.soon(worker, WorkerEvent::Drained { threads: vec!["bg".to_owned()] });
                }
                Behaviour::Healthy
                | Behaviour::TemplateHangs
                | Behaviour::TemplateFails
                | Behaviour::TemplateDies
                | Behaviour::WorkersFail
                | Behaviour::WorkersDie
                | Behaviour::WorkersHang
                | Behaviour::ForksSlowly
                | Behaviour::OnlyCandidateBoots
                | Behaviour::ServesMutely
                | Behaviour::DiesServing => {
                    self.soon(worker, WorkerEvent::Draining);
                    match yields {
                        true => drop(self.yielding.insert(worker)),
                        false => self.has_ended(worker),
                    }
                }
            }
        }
    }

    /// It has nothing left to serve.
    fn has_ended(&mut self, worker: WorkerId) {
        self.soon(worker, WorkerEvent::Drained { threads: Vec::new() });
        self.soon(worker, WorkerEvent::Exited(Exit::Code(0)));
    }

    fn is_not_paused(&mut self, worker: WorkerId) {
        self.paused.remove(&worker);
        self.turning_away.remove(&worker);
    }

    fn template_event(&mut self, generation: GenerationId, event: TemplateEvent) {
        if let TemplateEvent::Exited(_) = event {
            self.templates.remove(&generation);
        }
        self.event(Event::Template { generation, event });
    }

    fn soon(&mut self, worker: WorkerId, event: WorkerEvent) {
        self.happenings.push_back(Happening::Worker(worker, event));
    }

    fn soon_template(&mut self, generation: GenerationId, event: TemplateEvent) {
        self.happenings.push_back(Happening::Template(generation, event));
    }

    fn exit(&mut self, worker: WorkerId, exit: Exit) {
        self.worker_event(worker, WorkerEvent::Exited(exit));
    }

    /// The master does its work, then one thing happens. False when the world is at rest.
    fn step(&mut self) -> bool {
        self.carry_out_all();
        match self.happenings.pop_front() {
            Some(Happening::Worker(worker, event)) if self.alive.contains_key(&worker) => {
                self.worker_event(worker, event)
            }
            Some(Happening::Template(generation, event)) if self.templates.contains(&generation) => {
                self.template_event(generation, event)
            }
            Some(Happening::Service(service, event)) if self.services.contains(&service) => {
                if let ServiceEvent::Exited(_) = event {
                    self.services.remove(&service);
                }
                self.event(Event::Service { service, event });
            }
            Some(Happening::Command(exit)) if self.commanding.is_some() => self.command_ended(exit),
            // It died meanwhile.
            Some(_) => {}
            None => return !self.todo.is_empty(),
        }
        true
    }

    fn carry_out_all(&mut self) {
        while let Some(action) = self.todo.pop_front() {
            self.carry_out(action);
            let served = self.commanding.is_some() && !self.accepting.is_empty();
            assert!(!served, "{:?} serve while the command runs: {:#?}", self.accepting, self.log);
            self.fewest_accepting = self.fewest_accepting.min(self.accepting.len());
            let present = self.supervisor.generations().iter().map(Generation::present).sum();
            self.most_present = self.most_present.max(present);
        }
        self.all_who_pause_do_the_same();
    }

    /// Hold clients, or turn them away.
    fn all_who_pause_do_the_same(&self) {
        let turns_away = self.supervisor.turns_away();
        for generation in self.supervisor.generations() {
            let paused =
                |worker: &&Worker| matches!(worker.state, WorkerState::Pausing { .. } | WorkerState::Paused { .. });
            for worker in generation.workers.iter().filter(paused) {
                let told = self.turning_away.contains_key(&worker.id);
                assert_eq!(told, turns_away, "worker {}: {:#?}", worker.id, self.log);
            }
        }
    }

    /// Carries out all actions and their consequences, at one moment.
    fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the supervisor never comes to rest: {:#?}", self.todo);
    }

    /// Lets time pass, from deadline to deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            self.run();
            match self.supervisor.next_deadline() {
                Some(deadline) if deadline <= end => {
                    self.now = self.now.max(deadline);
                    self.event(Event::Tick);
                }
                Some(_) | None => {
                    self.now = end;
                    // The master need not tick before a deadline: whatever waits has one.
                    let early = self.supervisor.handle(Event::Tick, end);
                    assert!(early.is_empty(), "due before its deadline: {early:?}");
                    return;
                }
            }
        }
        panic!("the supervisor's deadlines never pass: {:#?}", self.log);
    }

    fn carry_out(&mut self, action: Action) {
        let behaviour = |world: &World, generation| world.behaviour[&generation];
        match action {
            Action::StartTemplate { generation } => {
                self.templates.insert(generation);
                let event = match behaviour(self, generation) {
                    Behaviour::TemplateHangs => return,
                    Behaviour::TemplateFails => TemplateEvent::Failed(refusal("SyntaxError: invalid syntax")),
                    Behaviour::TemplateDies => TemplateEvent::Exited(Exit::Code(3)),
                    Behaviour::Healthy
                    | Behaviour::WorkersFail
                    | Behaviour::WorkersDie
                    | Behaviour::WorkersHang
                    | Behaviour::ForksSlowly
                    | Behaviour::OnlyCandidateBoots
                    | Behaviour::DrainsForEver
                    | Behaviour::ThreadRunsOn
                    | Behaviour::DrainsMutely
                    | Behaviour::ServesMutely
                    | Behaviour::DiesServing
                    | Behaviour::Streams => TemplateEvent::Loaded,
                };
                let exits = matches!(event, TemplateEvent::Failed(_));
                self.soon_template(generation, event);
                if exits {
                    self.soon_template(generation, TemplateEvent::Exited(Exit::Code(1)));
                }
            }
            Action::StopTemplate { generation } => {
                self.soon_template(generation, TemplateEvent::Exited(Exit::Code(0)));
            }
            Action::KillTemplate { generation } => {
                assert!(self.templates.contains(&generation), "a reaped template was signalled");
                if self.nobody_dies {
                    return;
                }
                self.soon_template(generation, TemplateEvent::Exited(killed()));
            }
            Action::MoveTemplate { from, to } => {
                assert!(self.templates.remove(&from) && self.templates.insert(to), "{from} has no template to give");
            }
            Action::PingTemplate { .. } if self.pings_are_lost => {}
            Action::PingTemplate { generation, ping } => self.soon_template(generation, TemplateEvent::Pong { ping }),
            Action::Spawn { generation, worker, weigh, .. } => {
                self.weighed += usize::from(weigh);
                // As a worker does: whoever is not asked does not know.
                let boot = Boot { private_bytes: if weigh { self.boot.private_bytes } else { 0 }, ..self.boot };
                self.alive.insert(worker, generation);
                self.most_processes = self.most_processes.max(self.alive.len());
                if behaviour(self, generation) == Behaviour::ForksSlowly {
                    return;
                }
                self.soon(worker, WorkerEvent::Forked { pid: 1000 + worker.0 as i32 });
                let booted = self.booted.entry(generation).or_default();
                *booted += 1;
                let first = *booted == 1;
                match behaviour(self, generation) {
                    Behaviour::WorkersHang | Behaviour::ForksSlowly => {}
                    Behaviour::WorkersDie => {
                        self.soon(worker, WorkerEvent::Exited(Exit::Signal { number: 11, core: false }));
                    }
                    Behaviour::WorkersFail => self.fail(worker),
                    Behaviour::OnlyCandidateBoots if !first => self.fail(worker),
                    Behaviour::OnlyCandidateBoots
                    | Behaviour::Healthy
                    | Behaviour::DrainsForEver
                    | Behaviour::ThreadRunsOn
                    | Behaviour::DrainsMutely
                    | Behaviour::ServesMutely
                    | Behaviour::DiesServing
                    | Behaviour::Streams
                    | Behaviour::TemplateHangs
                    | Behaviour::TemplateFails
                    | Behaviour::TemplateDies => self.soon(worker, WorkerEvent::Ready(boot)),
                }
            }
            Action::Serve { worker } => {
                self.is_not_paused(worker);
                self.yielding.remove(&worker);
                // Who has ended its service does not begin it again.
                if let Some(generation) = self.alive.get(&worker).filter(|_| !self.drained.contains(&worker)) {
                    match behaviour(self, *generation) {
                        Behaviour::ServesMutely => {}
                        Behaviour::DiesServing => self.soon(worker, WorkerEvent::Exited(Exit::Code(1))),
                        Behaviour::Healthy
                        | Behaviour::TemplateHangs
                        | Behaviour::TemplateFails
                        | Behaviour::TemplateDies
                        | Behaviour::WorkersFail
                        | Behaviour::WorkersDie
                        | Behaviour::WorkersHang
                        | Behaviour::ForksSlowly
                        | Behaviour::OnlyCandidateBoots
                        | Behaviour::DrainsForEver
                        | Behaviour::ThreadRunsOn
                        | Behaviour::Streams
                        | Behaviour::DrainsMutely => {
                            self.accepting.insert(worker);
                            self.soon(worker, WorkerEvent::Serving);
                        }
                    }
                }
            }
            Action::Drain { worker, yields, .. } => self.drain(worker, yields),
            Action::StopWorker { worker } => self.drain(worker, false),
            Action::Maintenance { worker, page } => {
                assert!(self.paused.contains(&worker), "a worker that was not told to pause turns clients away");
                self.turning_away.insert(worker, page.map(|page| page.body.clone()));
            }
            Action::Pause { worker } => {
                self.accepting.remove(&worker);
                self.yielding.remove(&worker);
                self.turning_away.remove(&worker);
                self.paused.insert(worker);
                if let Some(generation) = self.alive.get(&worker).filter(|_| !self.drained.contains(&worker)) {
                    if !matches!(behaviour(self, *generation), Behaviour::Streams | Behaviour::ServesMutely) {
                        self.soon(worker, WorkerEvent::Paused);
                    }
                }
            }
            Action::Probe { worker } if self.probe_hangs => self.probed = Some(worker),
            Action::Probe { worker } => {
                let failure = self.probe_fails.then(|| refusal("probe GET / answered 500"));
                self.soon(worker, WorkerEvent::Probed(failure));
            }
            Action::Recall { worker, requests, skip } => {
                if !self.recall_is_lost {
                    let asked: Vec<_> =
                        self.remembered.iter().take(requests as usize).skip(skip as usize).cloned().collect();
                    let told: Vec<_> = asked.iter().take(REMEMBERED_A_MESSAGE).cloned().collect();
                    let more = told.len() < asked.len();
                    self.soon(worker, WorkerEvent::Remembered { requests: told, more });
                }
            }
            Action::Rehearse { worker, number, request } => {
                assert!(!self.accepting.contains(&worker), "{worker} rehearses while it serves: {:#?}", self.log);
                self.rehearsed.push(request.target.clone());
                let last = number as usize + 1 == self.remembered.len();
                let answer = |number, status| {
                    let details = if status == 500 { "Traceback".to_owned() } else { String::new() };
                    WorkerEvent::Rehearsed(Rehearsed { number, status, details })
                };
                match self.rehearses {
                    RehearsalBehaviour::Differs if last => self.soon(worker, answer(number, 500)),
                    RehearsalBehaviour::AsBefore | RehearsalBehaviour::Differs => {
                        self.soon(worker, answer(number, request.status));
                    }
                    RehearsalBehaviour::Hangs => {}
                    RehearsalBehaviour::Dies => {
                        self.soon(worker, WorkerEvent::ChannelLost);
                        self.soon(worker, WorkerEvent::Exited(Exit::Signal { number: 11, core: false }));
                    }
                    RehearsalBehaviour::IsLost => self.soon(worker, WorkerEvent::ChannelLost),
                    RehearsalBehaviour::Leaves => {
                        self.soon(worker, WorkerEvent::Leaving { reason: "TERM".to_owned() });
                    }
                    RehearsalBehaviour::Babbles => {
                        for number in [number + 1, number, number] {
                            self.soon(worker, answer(number, request.status));
                        }
                    }
                }
            }
            Action::NameRunning { workers } => {
                self.event(Event::StillRunning { text: format!("{} workers run requests", workers.len()) });
            }
            Action::StartService { generation, service, name } => {
                self.services.insert(service);
                self.happenings.push_back(Happening::Service(service, ServiceEvent::Started { pid: 1 }));
                let serving = self.supervisor.serving().filter(|serving| serving.id == generation);
                let plan = serving.and_then(|of| of.plan.services.iter().find(|plan| plan.name == name));
                let (ends, says_ready) =
                    plan.map_or((false, false), |plan| (plan.every.is_some(), plan.ready_within.is_some()));
                if ends && self.runs_end {
                    self.happenings.push_back(Happening::Service(service, ServiceEvent::Exited(Exit::Code(0))));
                }
                if says_ready && self.services_say_ready {
                    self.happenings.push_back(Happening::Service(service, ServiceEvent::Ready));
                }
            }
            Action::StopService { service, kill } => {
                assert!(self.services.contains(&service), "a reaped service was signalled");
                if (kill && !self.nobody_dies) || self.services_stop {
                    self.happenings.push_back(Happening::Service(service, ServiceEvent::Exited(killed())));
                }
            }
            Action::GiveUpService { service } => {
                self.services.remove(&service);
            }
            Action::RunCommand { generation } => {
                self.commanding = Some(generation);
                self.commanded.push(generation);
                match self.command {
                    CommandBehaviour::EndsWell => self.happenings.push_back(Happening::Command(Exit::Code(0))),
                    CommandBehaviour::Fails => self.happenings.push_back(Happening::Command(Exit::Code(3))),
                    CommandBehaviour::Hangs | CommandBehaviour::IgnoresTerm => {}
                    CommandBehaviour::CannotStart => {
                        let never = Exit::NeverBorn(refusal("the command could not be run"));
                        self.command_ended(never);
                    }
                }
            }
            Action::EndCommand { kill, .. } => {
                assert!(self.commanding.is_some(), "a command that has ended was signalled");
                if (kill && !self.nobody_dies) || self.command == CommandBehaviour::Hangs {
                    self.happenings.push_back(Happening::Command(Exit::Signal { number: 15, core: false }));
                }
            }
            Action::StandAside { worker } => {
                assert!(!self.accepting.contains(&worker), "it serves, and was told that others do");
                self.aside.insert(worker);
                if self.yielding.remove(&worker) {
                    self.has_ended(worker);
                }
            }
            Action::Retire { worker } => {
                self.accepting.remove(&worker);
                self.is_not_paused(worker);
            }
            Action::Kill { worker } => {
                // The master can only signal a pid that it knows.
                if self.supervisor.worker(worker).is_some_and(|(_, worker)| worker.pid.is_none()) {
                    return;
                }
                *self.kills.entry(worker).or_default() += 1;
                assert!(self.alive.contains_key(&worker), "a reaped worker was signalled");
                if self.nobody_dies {
                    // It hangs in the kernel, and does nothing more.
                    self.accepting.remove(&worker);
                    return;
                }
                self.soon(worker, WorkerEvent::Exited(killed()));
            }
            Action::CheckStuck { worker, .. } => self.worker_event(worker, WorkerEvent::StillStuck { others: 0 }),
            Action::OpenListeners { generation } => match self.refuse_listeners {
                None => self.event(Event::ListenersOpen { generation }),
                Some(exit_code) => {
                    let refusal = Refusal { exit_code, ..Refusal::new("address in use") };
                    self.event(Event::ListenersRefused { generation, refusal });
                }
            },
            Action::MeasureRoom { generation } => {
                let room = self.room;
                self.event(Event::Room { generation, room, kept_bytes: 50 });
            }
            Action::Compare { generation, against } => {
                assert!(
                    generation != against && self.supervisor.serving().is_some_and(|serving| serving.id == against)
                );
                let (old, new) = (Box::new(self.seen.0), Box::new(self.seen.1));
                self.event(Event::Compared { generation, old, new });
            }
            Action::Concluded(reload) => {
                self.concluded.push(reload.clone());
                self.verdicts.extend(reload.generation.map(|generation| (generation, reload.end)))
            }
            Action::Answer { ask, outcome } => {
                let is_late = |worker: &Worker| {
                    matches!(
                        worker.state,
                        WorkerState::Opening { .. } | WorkerState::Pausing { .. } | WorkerState::Paused { .. }
                    )
                };
                if matches!(&outcome, Outcome::Reload(reload) if reload.generation.is_some())
                    && self.supervisor.held().is_none()
                {
                    let mut workers = self.supervisor.generations().iter().flat_map(|generation| &generation.workers);
                    assert!(!workers.any(is_late), "told of the end while a worker is held back: {:#?}", self.log);
                }
                self.answers.push((ask, outcome));
            }
            Action::Note(note) => {
                self.log.push(note.to_string());
                self.notes.push(note);
            }
            Action::Exit { code } => self.exit = Some(code),
            Action::AskStacks { worker } | Action::LookAt { worker } | Action::LookAtSlow { worker } => {
                self.soon(worker, WorkerEvent::Stacks { text: format!("stacks of {worker}") })
            }
            Action::Commit { generation, close } | Action::Abandon { generation, close } => {
                self.closed.push((generation, close));
            }
            Action::Configure { asker, .. } => self.configure.push_back(asker),
            Action::GiveUpTemplate { generation } => {
                self.templates.remove(&generation);
            }
            Action::TakeStacks { worker } => self.soon(worker, WorkerEvent::Stacks { text: String::new() }),
            Action::CloseAllListeners
            | Action::TryUpgrade
            | Action::EndTry
            | Action::UpgradeRefused(_)
            | Action::Forget { .. }
            | Action::DumpTemplate { .. }
            | Action::SignalStacks { .. } => {}
        }
    }

    fn command_ended(&mut self, exit: Exit) {
        let Some(generation) = self.commanding.take() else { return };
        self.event(Event::CommandEnded { generation, exit, output: "its output".to_owned() });
    }

    fn fail(&mut self, worker: WorkerId) {
        self.soon(worker, WorkerEvent::Failed(refusal("ImportError: no")));
        self.soon(worker, WorkerEvent::Exited(Exit::Code(1)));
    }

    fn state(&self, generation: u32) -> Option<&'static str> {
        self.supervisor.generation(GenerationId(generation)).map(|generation| generation.state.word())
    }

    /// Workers that accept, by generation.
    fn accepting(&self, generation: u32) -> usize {
        self.accepting.iter().filter(|worker| self.alive[worker] == GenerationId(generation)).count()
    }

    fn some_worker(&self, generation: u32) -> WorkerId {
        *self.accepting.iter().find(|worker| self.alive[worker] == GenerationId(generation)).unwrap()
    }

    fn logged(&self, words: &str) -> bool {
        self.log.iter().any(|line| line.contains(words))
    }

    fn last_verdict(&self) -> &End {
        &self.verdicts.last().unwrap().1
    }
}

fn refusal(reason: &str) -> Refusal {
    Refusal { details: "Traceback ...".to_owned(), ..Refusal::new(reason) }
}

/// Clients get 503 after so long, with this page or with a line of text.
fn maintenance(after: Duration, body: Option<&str>) -> MaintenancePlan {
    let page = |body: &str| Arc::new(Page { content_type: "text/html".to_owned(), body: body.to_owned() });
    MaintenancePlan { after, page: body.map(page) }
}

fn killed() -> Exit {
    Exit::Signal { number: 9, core: false }
}

const MINUTE: Duration = Duration::from_secs(60);
