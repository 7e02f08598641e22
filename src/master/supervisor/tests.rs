//! The supervisor on a fake clock. `World` plays the operating system: it carries actions out as a healthy system
//! would, unless a test has told it that a generation is broken, and it keeps what an operator would see.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use forkmaster_wire::message::{Failure, GenerationId, ProofStep, WorkerId};

use super::backoff;
use super::generation::{Generation, Plan, State, Surge};
use super::worker::{Event as WorkerEvent, Exit, State as WorkerState, Stuck, Worker};
use super::{Action, Event, Phase, Supervisor, TemplateEvent, Verdict};

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
}

enum Happening {
    Template(GenerationId, TemplateEvent),
    Worker(WorkerId, WorkerEvent),
}

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
    /// The fewest workers that accepted at any moment since it was set.
    fewest_accepting: usize,
    most_present: usize,
    verdicts: Vec<(GenerationId, Verdict)>,
    log: Vec<String>,
    exit: Option<i32>,
    refuse_listeners: Option<i32>,
    /// Templates do not answer.
    pings_are_lost: bool,
    generation: u32,
}

fn plan(workers: u32) -> Plan {
    Plan {
        workers,
        surge: Surge::Workers(1),
        unavailable: 0,
        boot_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(600),
        graceful_timeout: Duration::from_secs(25),
        shutdown_delay: Duration::ZERO,
        max_lifetime: None,
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
            fewest_accepting: usize::MAX,
            most_present: 0,
            verdicts: Vec::new(),
            log: Vec::new(),
            exit: None,
            refuse_listeners: None,
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
        world
    }

    fn reload(&mut self, plan: Plan, behaviour: Behaviour) -> GenerationId {
        self.generation += 1;
        let generation = GenerationId(self.generation);
        self.behaviour.insert(generation, behaviour);
        self.event(Event::Reload { generation, plan });
        generation
    }

    fn event(&mut self, event: Event) {
        let actions = self.supervisor.handle(event, self.now);
        self.todo.extend(actions);
    }

    /// Something happens to a worker, now.
    fn worker_event(&mut self, worker: WorkerId, event: WorkerEvent) {
        if let WorkerEvent::Exited(_) = event {
            self.alive.remove(&worker);
            self.accepting.remove(&worker);
            self.fewest_accepting = self.fewest_accepting.min(self.accepting.len());
        }
        self.event(Event::Worker { worker, event });
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
            // It died meanwhile.
            Some(_) => {}
            None => return !self.todo.is_empty(),
        }
        true
    }

    fn carry_out_all(&mut self) {
        while let Some(action) = self.todo.pop_front() {
            self.carry_out(action);
            self.fewest_accepting = self.fewest_accepting.min(self.accepting.len());
            let present = self.supervisor.generations().iter().map(Generation::present).sum();
            self.most_present = self.most_present.max(present);
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
                    self.event(Event::Tick);
                    return self.run();
                }
            }
        }
        panic!("the supervisor's deadlines never pass");
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
                    | Behaviour::DrainsForEver => TemplateEvent::Loaded,
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
                self.soon_template(generation, TemplateEvent::Exited(killed()));
            }
            Action::PingTemplate { .. } if self.pings_are_lost => {}
            Action::PingTemplate { generation, ping } => self.soon_template(generation, TemplateEvent::Pong { ping }),
            Action::Spawn { generation, worker, .. } => {
                self.alive.insert(worker, generation);
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
                    | Behaviour::TemplateHangs
                    | Behaviour::TemplateFails
                    | Behaviour::TemplateDies => self.soon(worker, WorkerEvent::Ready),
                }
            }
            Action::Serve { worker } => {
                if self.alive.contains_key(&worker) {
                    self.accepting.insert(worker);
                    self.soon(worker, WorkerEvent::Serving);
                }
            }
            Action::Drain { worker } | Action::StopWorker { worker } => {
                self.accepting.remove(&worker);
                if let Some(generation) = self.alive.get(&worker).copied() {
                    self.soon(worker, WorkerEvent::Draining);
                    if behaviour(self, generation) != Behaviour::DrainsForEver {
                        self.soon(worker, WorkerEvent::Exited(Exit::Code(0)));
                    }
                }
            }
            Action::Retire { worker } => {
                self.accepting.remove(&worker);
            }
            Action::Kill { worker } => {
                // The master can only signal a pid that it knows.
                if self.supervisor.worker(worker).is_some_and(|(_, worker)| worker.pid.is_none()) {
                    return;
                }
                *self.kills.entry(worker).or_default() += 1;
                assert!(self.alive.contains_key(&worker), "a reaped worker was signalled");
                self.soon(worker, WorkerEvent::Exited(killed()));
            }
            Action::CheckStuck { worker, .. } => self.worker_event(worker, WorkerEvent::StillStuck { others: 0 }),
            Action::OpenListeners { generation } => match self.refuse_listeners {
                None => self.event(Event::ListenersOpen { generation }),
                Some(exit_code) => {
                    let reason = "address in use".to_owned();
                    self.event(Event::ListenersRefused { generation, reason, exit_code });
                }
            },
            Action::Verdict { generation, verdict } => self.verdicts.push((generation, verdict)),
            Action::Log { line, .. } => self.log.push(line),
            Action::Exit { code } => self.exit = Some(code),
            Action::Commit { .. }
            | Action::AbandonListeners { .. }
            | Action::CloseAllListeners
            | Action::Forget { .. }
            | Action::DumpStacks { .. } => {}
        }
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

    fn last_verdict(&self) -> &Verdict {
        &self.verdicts.last().unwrap().1
    }
}

fn refusal(reason: &str) -> Failure {
    Failure { stage: ProofStep::Import, reason: reason.to_owned(), details: "Traceback ...".to_owned() }
}

fn killed() -> Exit {
    Exit::Signal { number: 9, core: false }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn the_first_start_boots_all_slots_and_is_committed_by_the_first_worker() {
    let world = World::serving(plan(4));
    assert_eq!(world.accepting(1), 4);
    assert_eq!(world.verdicts, [(GenerationId(1), Verdict::Committed)]);
}

#[test]
fn a_first_start_that_fails_ends_the_master() {
    for behaviour in [Behaviour::TemplateFails, Behaviour::TemplateDies, Behaviour::WorkersFail, Behaviour::WorkersDie]
    {
        let mut world = World::new();
        world.reload(plan(2), behaviour);
        world.run();
        assert_eq!(world.exit, Some(69), "{behaviour:?}");
        assert!(world.alive.is_empty() && world.templates.is_empty());
    }
    for behaviour in [Behaviour::TemplateHangs, Behaviour::WorkersHang] {
        let mut world = World::new();
        world.reload(plan(2), behaviour);
        world.pass(MINUTE * 3);
        assert_eq!(world.exit, Some(69), "{behaviour:?}");
    }
}

#[test]
fn an_address_in_use_at_first_start_has_its_own_exit_code() {
    let mut world = World::new();
    world.refuse_listeners = Some(75);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!(world.exit, Some(75));
}

#[test]
fn a_reload_changes_every_worker_and_never_has_fewer() {
    for (workers, next) in [(1, 1), (4, 4), (2, 5), (5, 2)] {
        let mut world = World::serving(plan(workers));
        world.reload(plan(next), Behaviour::Healthy);
        world.run();
        assert_eq!((world.state(1), world.state(2)), (None, Some("serving")), "{workers} to {next}");
        assert_eq!(world.accepting(2), next as usize);
        assert!(
            world.fewest_accepting >= workers.min(next) as usize,
            "{workers} to {next}: {}",
            world.fewest_accepting
        );
        assert!(world.most_present <= workers.max(next) as usize + 1);
        assert_eq!(*world.last_verdict(), Verdict::Committed);
        assert!(world.kills.is_empty());
    }
}

#[test]
fn with_full_surge_no_old_worker_drains_before_all_new_ones_wait() {
    let full = Plan { surge: Surge::All, ..plan(3) };
    let mut world = World::serving(full.clone());
    world.reload(full, Behaviour::Healthy);
    while world.accepting(2) == 0 {
        world.step();
    }
    assert_eq!(world.alive.len(), 6);
    world.run();
    assert_eq!((world.accepting(2), world.alive.len()), (3, 3));
    assert!(world.fewest_accepting >= 3);
}

#[test]
fn without_surge_a_successor_waits_for_the_exit_of_the_old_process() {
    let thrifty = Plan { surge: Surge::Workers(0), unavailable: 1, ..plan(3) };
    let mut world = World::serving(thrifty.clone());
    world.most_present = 0;
    world.reload(thrifty, Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(2), world.alive.len()), (3, 3));
    assert!(world.most_present <= 4, "only the candidate is extra: {}", world.most_present);
    assert!(world.fewest_accepting >= 2);
}

#[test]
fn a_refused_release_touches_nothing() {
    let broken = [Behaviour::TemplateFails, Behaviour::TemplateDies, Behaviour::WorkersFail, Behaviour::WorkersDie];
    for behaviour in broken {
        let mut world = World::serving(plan(3));
        let before = world.accepting.clone();
        world.reload(plan(3), behaviour);
        world.run();
        assert!(matches!(world.last_verdict(), Verdict::Refused(_)), "{behaviour:?}");
        assert_eq!((world.state(1), world.state(2)), (Some("serving"), None));
        assert_eq!(world.accepting, before);
        assert_eq!(world.templates.len(), 1);
        world.reload(plan(3), Behaviour::Healthy);
        world.run();
        assert_eq!(world.state(3), Some("serving"));
    }
}

#[test]
fn an_import_that_hangs_is_refused_at_its_deadline() {
    for behaviour in [Behaviour::TemplateHangs, Behaviour::WorkersHang] {
        let mut world = World::serving(plan(2));
        let before = world.accepting.clone();
        world.reload(plan(2), behaviour);
        world.pass(MINUTE - Duration::from_secs(1));
        assert_eq!(world.state(2), Some("proving"));
        world.pass(MINUTE);
        assert!(matches!(world.last_verdict(), Verdict::Refused(_)), "{behaviour:?}");
        assert_eq!(world.accepting, before);
        assert_eq!((world.alive.len(), world.templates.len()), (2, 1));
    }
}

#[test]
fn a_refusal_half_way_through_rolling_gives_the_old_release_all_its_workers_back() {
    let mut world = World::serving(plan(4));
    world.reload(plan(4), Behaviour::OnlyCandidateBoots);
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), Verdict::Refused(_)));
    assert_eq!((world.accepting(1), world.alive.len(), world.templates.len()), (4, 4, 1));
    assert!(world.fewest_accepting >= 4, "capacity fell to {}", world.fewest_accepting);
}

#[test]
fn a_listener_that_cannot_be_opened_refuses_the_reload() {
    let mut world = World::serving(plan(2));
    let before = world.accepting.clone();
    world.refuse_listeners = Some(75);
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert!(matches!(world.last_verdict(), Verdict::Refused(_)));
    assert_eq!(world.accepting, before);
    assert_eq!(world.exit, None);
}

#[test]
fn a_storm_of_hups_ends_in_the_last_one() {
    let mut world = World::serving(plan(2));
    for storm in 0..30 {
        world.reload(plan(2), Behaviour::Healthy);
        // Some come while it proves, some while it rolls.
        for _ in 0..storm % 12 {
            world.step();
        }
        assert!(
            world
                .supervisor
                .generations()
                .iter()
                .filter(|g| !matches!(g.state, State::Draining | State::Abandoned))
                .count()
                <= 2
        );
    }
    world.run();
    assert_eq!(world.state(31), Some("serving"));
    assert_eq!((world.accepting(31), world.alive.len(), world.templates.len()), (2, 2, 1));
    assert!(world.fewest_accepting >= 2);
    assert!(world.kills.values().all(|kills| *kills == 1));
}

#[test]
fn at_most_three_generations_drain_and_a_further_one_waits() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    for _ in 0..3 {
        world.reload(plan(1), Behaviour::DrainsForEver);
        world.run();
    }
    assert_eq!(world.alive.len(), 4);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(4), world.state(5)), (Some("serving"), Some("rolling")));
    let oldest = *world.alive.keys().next().unwrap();
    world.exit(oldest, Exit::Code(0));
    world.run();
    assert_eq!(world.state(5), Some("serving"));
}

#[test]
fn a_draining_worker_is_killed_at_its_deadline_and_not_before() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan(1), Behaviour::Healthy);
    world.pass(Duration::from_secs(599));
    assert_eq!(world.alive.len(), 2);
    world.pass(Duration::from_secs(2));
    assert_eq!((world.alive.len(), world.kills.len()), (1, 1));
    assert_eq!(world.state(1), None);
}

#[test]
fn a_killed_worker_is_replaced_at_once_and_a_crash_loop_slows_down() {
    let mut world = World::serving(plan(2));
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.run();
    assert_eq!(world.accepting(1), 2);

    world.behaviour.insert(GenerationId(1), Behaviour::WorkersDie);
    let worker = world.some_worker(1);
    let before = world.booted[&GenerationId(1)];
    world.exit(worker, killed());
    world.pass(MINUTE * 5);
    let boots = world.booted[&GenerationId(1)] - before;
    assert!((10..30).contains(&boots), "{boots} boots in five minutes");
    assert_eq!((world.accepting(1), world.exit), (1, None));

    world.behaviour.insert(GenerationId(1), Behaviour::Healthy);
    world.pass(backoff::LONGEST);
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn a_dead_template_is_started_again_and_touches_no_worker() {
    let mut world = World::serving(plan(2));
    let before = world.accepting.clone();
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting, before);
    assert_eq!(world.templates.len(), 1);
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.run();
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn a_template_that_dies_in_the_middle_of_a_spawn_costs_no_deadline() {
    let mut world = World::serving(plan(1));
    let worker = world.some_worker(1);
    let todo = world.supervisor.handle(Event::Worker { worker, event: WorkerEvent::Exited(killed()) }, world.now);
    world.alive.remove(&worker);
    world.accepting.remove(&worker);
    let unborn = todo.iter().find_map(|action| match action {
        Action::Spawn { worker, .. } => Some(*worker),
        _ => None,
    });
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    world.worker_event(unborn.unwrap(), WorkerEvent::ChannelLost);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting(1), 1);
}

#[test]
fn a_stuck_worker_is_replaced_first_and_then_killed() {
    let mut world = World::serving(plan(1));
    let stuck = world.some_worker(1);
    world.worker_event(stuck, WorkerEvent::Stuck(Stuck::Request(7)));
    let dumped = world.todo.iter().position(|action| *action == Action::DumpStacks { worker: stuck });
    let retired = world.todo.iter().position(|action| *action == Action::Retire { worker: stuck });
    assert!(dumped.is_some() && dumped < retired);
    while world.alive.len() < 2 {
        world.step();
    }
    assert!(world.kills.is_empty(), "killed before its replacement was ready");
    world.run();
    assert_eq!(world.kills[&stuck], 1);
    assert_eq!(world.accepting(1), 1);
}

#[test]
fn a_worker_that_is_due_serves_until_its_successor_does() {
    let mut world = World::serving(plan(2));
    let due = world.some_worker(1);
    world.worker_event(due, WorkerEvent::RequestsServed);
    world.run();
    assert!(!world.alive.contains_key(&due));
    assert_eq!(world.accepting(1), 2);
    assert!(world.fewest_accepting >= 2 && world.kills.is_empty());

    let lifetime = Plan { max_lifetime: Some(MINUTE), ..plan(2) };
    let mut world = World::serving(lifetime);
    let before = world.accepting.clone();
    world.pass(MINUTE + Duration::from_secs(1));
    assert_eq!(world.accepting(1), 2);
    assert!(world.accepting.is_disjoint(&before) && world.fewest_accepting >= 2);
}

#[test]
fn a_successor_that_cannot_boot_leaves_the_due_worker_serving() {
    let mut world = World::serving(plan(1));
    let due = world.some_worker(1);
    world.behaviour.insert(GenerationId(1), Behaviour::WorkersFail);
    world.worker_event(due, WorkerEvent::RequestsServed);
    world.pass(MINUTE * 2);
    assert!(world.accepting.contains(&due));
    assert!(world.booted[&GenerationId(1)] < 20);
}

#[test]
fn term_finishes_what_runs_in_every_state() {
    // Serving.
    let mut world = World::serving(plan(2));
    world.event(Event::Stop);
    world.run();
    assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
    assert!(world.kills.is_empty());

    // Proving, at first start and later.
    let mut world = World::new();
    world.reload(plan(2), Behaviour::WorkersHang);
    world.run();
    world.event(Event::Stop);
    world.run();
    assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
    let mut world = World::serving(plan(2));
    world.reload(plan(2), Behaviour::WorkersHang);
    world.run();
    world.event(Event::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (Some(0), 1), "only the candidate is killed");
    assert_eq!(*world.last_verdict(), Verdict::Stopped);

    // At every step of rolling.
    for steps in 0..20 {
        let mut world = World::serving(plan(2));
        world.reload(plan(2), Behaviour::Healthy);
        for _ in 0..steps {
            world.step();
        }
        world.event(Event::Stop);
        world.pass(MINUTE);
        assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0), "after {steps} steps");
    }

    // Draining.
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    world.event(Event::Stop);
    world.pass(Duration::from_secs(24));
    assert_eq!((world.exit, world.alive.len()), (None, 1));
    world.pass(Duration::from_secs(2));
    assert_eq!((world.exit, world.kills.len()), (Some(0), 1));
}

#[test]
fn the_shutdown_delay_goes_on_accepting_and_a_second_term_ends_it() {
    let delayed = Plan { shutdown_delay: Duration::from_secs(10), ..plan(2) };
    let mut world = World::serving(delayed.clone());
    world.event(Event::Stop);
    world.pass(Duration::from_secs(9));
    assert_eq!(world.accepting(1), 2);
    assert!(matches!(world.supervisor.phase(), Phase::Delaying { .. }));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.exit, Some(0));
    assert!(world.kills.is_empty());

    let mut world = World::serving(delayed);
    world.event(Event::Stop);
    world.event(Event::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (Some(0), 2));
}

#[test]
fn a_hup_after_term_changes_nothing() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(1) });
    world.event(Event::Stop);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!(*world.last_verdict(), Verdict::Stopped);
    assert_eq!((world.state(1), world.state(2)), (Some("serving"), None));
}

#[test]
fn scaling_survives_a_reload() {
    let mut world = World::serving(plan(2));
    world.event(Event::Scale { by: 2 });
    world.run();
    assert_eq!(world.accepting(1), 4);
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!(world.accepting(2), 4);
    world.event(Event::Scale { by: -10 });
    world.run();
    assert_eq!(world.accepting(2), 1);
}

#[test]
fn a_worker_given_up_before_its_pid_was_known_is_killed_once_it_is() {
    let mut world = World::serving(plan(1));
    let generation = world.reload(plan(1), Behaviour::ForksSlowly);
    world.run();
    let unborn = *world.alive.iter().find(|(_, of)| **of == generation).unwrap().0;
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert!(world.alive.contains_key(&unborn) && world.kills.is_empty(), "there is no pid to signal yet");
    world.worker_event(unborn, WorkerEvent::Forked { pid: 4711 });
    world.run();
    assert_eq!(world.kills[&unborn], 1);
    assert_eq!(world.state(3), Some("serving"));
}

#[test]
fn a_transition_is_one_line_with_its_words() {
    let world = World::serving(plan(1));
    assert!(
        world.log.contains(&"worker gen=1 slot=0 pid=1001 starting -> ready after=0ms".to_owned()),
        "{:#?}",
        world.log
    );
    assert!(world.log.contains(&"generation gen=1 rolling -> serving".to_owned()));
    assert!(world.supervisor.generations()[0]
        .workers
        .iter()
        .all(|worker| matches!(worker.state, WorkerState::Serving { .. })));
}

#[test]
fn scaling_during_the_shutdown_delay_does_not_end_the_master() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(2) });
    world.event(Event::Stop);
    world.event(Event::Scale { by: 1 });
    world.run();
    assert_eq!(world.accepting(1), 3);
    world.pass(MINUTE * 2);
    assert_eq!((world.exit, world.alive.len()), (Some(0), 0));
}

#[test]
fn a_template_that_dies_during_the_shutdown_delay_comes_back() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(2) });
    world.event(Event::Stop);
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.pass(Duration::from_secs(1));
    assert_eq!((world.accepting(1), world.templates.len()), (2, 1));
    world.pass(MINUTE * 2);
    assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
}

/// Runs until the old template was asked whether it can still fork, and gets no answer.
fn ask_in_vain(world: &mut World) {
    world.pings_are_lost = true;
    world.reload(plan(2), Behaviour::OnlyCandidateBoots);
    world.run();
    assert_eq!((world.state(2), world.accepting(2)), (Some("rolling"), 0));
}

#[test]
fn a_template_that_dies_before_it_answers_a_ping_is_started_again() {
    let mut world = World::serving(plan(2));
    ask_in_vain(&mut world);
    // It fails to start again and again, so that it rests or starts when the answer is overdue.
    world.behaviour.insert(GenerationId(1), Behaviour::TemplateDies);
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    world.pass(Duration::from_secs(30));
    assert!(matches!(world.last_verdict(), Verdict::Refused(_)), "{:?}", world.verdicts);
    world.behaviour.insert(GenerationId(1), Behaviour::Healthy);
    world.pass(MINUTE);
    assert_eq!(world.templates.len(), 1);
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn a_template_that_dies_before_it_answers_a_ping_costs_no_deadline() {
    let mut world = World::serving(plan(2));
    ask_in_vain(&mut world);
    world.behaviour.insert(GenerationId(2), Behaviour::Healthy);
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    world.run();
    assert_eq!(*world.last_verdict(), Verdict::Committed);
}

#[test]
fn a_template_that_does_not_fork_any_more_is_killed_and_started_again() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::ForksSlowly);
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.run();
    let unborn = *world.alive.keys().last().unwrap();
    world.behaviour.insert(GenerationId(1), Behaviour::Healthy);
    world.pass(MINUTE - Duration::from_secs(1));
    assert_eq!(world.templates.len(), 1);
    world.pass(Duration::from_secs(2));
    assert!(world.log.iter().any(|line| line.contains("template gen=1 does not fork")), "{:#?}", world.log);
    // What it held was its copy of the worker's channel.
    world.alive.remove(&unborn);
    world.worker_event(unborn, WorkerEvent::ChannelLost);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.accepting(1), world.alive.len(), world.templates.len()), (2, 2, 1));
}

#[test]
fn stopping_at_once_while_a_release_proves_itself_is_no_refusal() {
    for first_start in [true, false] {
        let mut world = if first_start { World::new() } else { World::serving(plan(1)) };
        world.reload(plan(1), Behaviour::WorkersHang);
        world.run();
        world.verdicts.clear();
        world.event(Event::StopNow);
        world.run();
        assert_eq!(world.exit, Some(0));
        assert_eq!(world.verdicts, [(GenerationId(world.generation), Verdict::Stopped)]);
        assert!(!world.log.iter().any(|line| line.contains("refused")), "{:#?}", world.log);
    }
}

#[test]
fn a_seat_that_two_workers_serve_from_after_a_refused_reload_keeps_the_younger_one() {
    for due_again in [false, true] {
        let mut world = World::serving(plan(1));
        let due = world.some_worker(1);
        // Its successor boots until the next reload rolls.
        world.worker_event(due, WorkerEvent::RequestsServed);
        while world.alive.len() < 2 {
            world.step();
        }
        let successor = *world.alive.keys().last().unwrap();
        let held: Vec<Happening> = world.happenings.drain(..).collect();
        world.reload(Plan { surge: Surge::All, ..plan(3) }, Behaviour::OnlyCandidateBoots);
        while world.state(2) != Some("rolling") {
            assert!(world.step());
        }
        world.happenings.extend(held);
        world.run();
        if due_again {
            world.worker_event(successor, WorkerEvent::RequestsServed);
        }
        world.pass(MINUTE);
        assert!(matches!(world.last_verdict(), Verdict::Refused(_)));
        assert_eq!((world.accepting(1), world.alive.len()), (1, 1), "due again: {due_again}");
        assert!(!world.alive.contains_key(&due));
        assert!(world.fewest_accepting >= 1);
    }
}

#[test]
fn nonsense_on_a_channel_does_not_move_the_deadline_of_a_boot() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::WorkersHang);
    let worker = world.some_worker(1);
    world.exit(worker, killed());
    world.run();
    let booting = *world.alive.keys().last().unwrap();
    for _ in 0..20 {
        world.worker_event(booting, WorkerEvent::ChannelLost);
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.kills[&booting], 1);
}

/// Random events at random moments: whatever comes, the invariants hold, no deadline is overlooked, and in the end
/// the service is as it was configured. The numbers of a failure are in its message.
#[test]
fn whatever_comes_the_service_is_whole_in_the_end() {
    for seed in 0..400u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let surges = [Surge::Workers(1), Surge::Workers(2), Surge::Workers(0), Surge::All];
        let any_plan = |dice: &mut Dice| {
            let surge = surges[dice.roll(4)];
            let unavailable = if surge == Surge::Workers(0) { 1 } else { dice.roll(2) as u32 };
            Plan { surge, unavailable, ..plan(1 + dice.roll(4) as u32) }
        };
        let mut world = World::serving(any_plan(&mut dice));
        for _ in 0..60 {
            world.carry_out_all();
            let behaviours = [
                Behaviour::Healthy,
                Behaviour::Healthy,
                Behaviour::Healthy,
                Behaviour::TemplateHangs,
                Behaviour::TemplateFails,
                Behaviour::TemplateDies,
                Behaviour::WorkersFail,
                Behaviour::WorkersDie,
                Behaviour::WorkersHang,
                Behaviour::OnlyCandidateBoots,
                Behaviour::DrainsForEver,
            ];
            let someone = world.alive.keys().nth(dice.roll(world.alive.len().max(1))).copied();
            let template = world.templates.iter().nth(dice.roll(world.templates.len().max(1))).copied();
            match (dice.roll(12), someone, template) {
                (0 | 1, _, _) => {
                    let plan = any_plan(&mut dice);
                    world.reload(plan, behaviours[dice.roll(behaviours.len())]);
                }
                (2, Some(worker), _) => world.exit(worker, killed()),
                (3, Some(worker), _) => match world.supervisor.worker(worker) {
                    Some((_, Worker { pid: Some(_), .. })) => world.worker_event(worker, WorkerEvent::ChannelLost),
                    // Nobody knows its pid: it was never born.
                    Some(_) | None => world.exit(worker, Exit::NeverBorn),
                },
                (4, Some(worker), _) => world.worker_event(worker, WorkerEvent::RequestsServed),
                (5, Some(worker), _) => world.worker_event(worker, WorkerEvent::Stuck(Stuck::Silent)),
                (6, Some(worker), _) => {
                    world.accepting.remove(&worker);
                    world.worker_event(worker, WorkerEvent::Leaving { reason: "TERM".to_owned() });
                }
                (7, _, Some(template)) => world.template_event(template, TemplateEvent::Exited(killed())),
                (8, _, Some(template)) => world.template_event(template, TemplateEvent::ChannelLost),
                (9, _, _) => world.event(Event::Scale { by: dice.roll(5) as i32 - 2 }),
                (_, _, _) => world.pass(Duration::from_secs(dice.roll(20) as u64)),
            }
            for _ in 0..dice.roll(6) {
                world.step();
            }
            let busy = world.supervisor.generations().iter().filter(|generation| generation.state == State::Proving);
            assert!(busy.count() <= 1 && world.exit.is_none(), "seed {seed}: {:#?}", world.log);
        }
        for behaviour in world.behaviour.values_mut() {
            *behaviour = Behaviour::Healthy;
        }
        let last = any_plan(&mut dice);
        world.reload(last, Behaviour::Healthy);
        world.pass(MINUTE * 60);
        let serving = world.supervisor.serving().expect("one always serves");
        let wanted = world.supervisor.wanted_of(serving) as usize;
        let found = (serving.id.0, world.supervisor.generations().len(), world.accepting.len(), world.templates.len());
        assert_eq!(found, (world.generation, 1, wanted, 1), "seed {seed}: {:#?}", world.log);
        assert_eq!(world.alive.len(), wanted, "seed {seed}");
        assert!(world.kills.values().all(|kills| *kills == 1), "seed {seed}");
        world.event(Event::Stop);
        world.pass(MINUTE);
        assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0), "seed {seed}");
    }
}

/// Marsaglia's xorshift: the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

#[test]
fn superseded_reloads_that_had_begun_to_serve_do_not_block_the_last_one() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::TemplateDies);
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    for generation in 2..=4 {
        // One new worker serves, the second one boots, and the old release cannot take the place back.
        world.reload(plan(2), Behaviour::Healthy);
        while world.accepting(generation) == 0 {
            assert!(world.step());
        }
        for (worker, of) in world.alive.clone() {
            if of == GenerationId(1) {
                world.exit(worker, killed());
            }
        }
    }
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(5), world.accepting(5)), (Some("serving"), 2));
}

#[test]
fn a_serving_worker_that_ends_without_a_word_is_an_error_also_with_exit_code_0() {
    for exit in [Exit::Code(0), Exit::Code(7), killed()] {
        let mut world = World::serving(plan(1));
        let worker = world.some_worker(1);
        world.worker_event(worker, WorkerEvent::ChannelLost);
        let actions = world.supervisor.handle(Event::Worker { worker, event: WorkerEvent::Exited(exit) }, world.now);
        let error = |action: &Action| matches!(action, Action::Log { level: log::Level::Error, line } if line.contains("-> gone"));
        assert!(actions.iter().any(error), "{actions:#?}");
    }
}
