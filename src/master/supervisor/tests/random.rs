//! Random events at random moments.

use super::super::asks::Amount;
use super::super::canary::CanaryPlan;
use super::super::pause::PausePlan;
use super::super::rehearsal::RehearsalPlan;
use super::*;

/// Random events at random moments: whatever comes, the invariants hold, no deadline is overlooked, and in the end
/// the service is as it was configured. The numbers of a failure are in its message.
#[test]
fn whatever_comes_the_service_is_whole_in_the_end() {
    let mut seen = BTreeSet::new();
    for seed in 0..200u64 {
        let mut dice = Dice::new(seed);
        let mut world = World::serving(Plan { pause: None, ..any_plan(&mut dice) });
        let mut asked = 0;
        for _ in 0..60 {
            world.carry_out_all();
            let free = [None, Some(0), Some(100), Some(1 << 40)];
            world.room.bytes = free[dice.roll(4)];
            world.boot.private_bytes = 40;
            if world.commanding.is_none() {
                world.command = COMMANDS[dice.roll(COMMANDS.len())];
            }
            // Good, too little, worse at the end, worse beyond doubt.
            let failed = [1, 0, 15, 200][dice.roll(4)];
            let new =
                Counts { answered: 300, compared: if failed == 0 { 10 } else { 300 }, failed, ..Counts::default() };
            world.seen = (Counts { answered: 900, compared: 900, failed: 1, ..Counts::default() }, new);
            world.probe_fails = dice.roll(4) == 0;
            world.rehearses = REHEARSALS[dice.roll(REHEARSALS.len())];
            world.remembered = rehearsal::requests(dice.roll(3));
            world.recall_is_lost = dice.roll(5) == 0;
            let someone = world.alive.keys().nth(dice.roll(world.alive.len().max(1))).copied();
            let template = world.templates.iter().nth(dice.roll(world.templates.len().max(1))).copied();
            world.services_stop = dice.roll(2) == 0;
            world.services_say_ready = dice.roll(2) == 0;
            world.runs_end = dice.roll(2) == 0;
            let service = world.services.iter().nth(dice.roll(world.services.len().max(1))).copied();
            if let Some(service) = service.filter(|_| dice.roll(4) == 0) {
                world.happenings.push_back(Happening::Service(service, ServiceEvent::Exited(killed())));
            }
            if let Some(service) = service.filter(|_| dice.roll(4) == 0) {
                world.happenings.push_back(Happening::Service(service, ServiceEvent::Ready));
            }
            match (dice.roll(15), someone, template) {
                (0 | 1, _, _) => {
                    let plan = any_plan(&mut dice);
                    world.reload(plan, BEHAVIOURS[dice.roll(BEHAVIOURS.len())]);
                }
                (2, Some(worker), _) => world.exit(worker, killed()),
                (3, Some(worker), _) => match world.supervisor.worker(worker) {
                    Some((_, Worker { pid: Some(_), .. })) => {
                        let lost = world.generation % 2 == 0;
                        let event = if lost { WorkerEvent::ChannelLost } else { WorkerEvent::Garbled };
                        world.worker_event(worker, event);
                    }
                    // Nobody knows its pid: it was never born.
                    Some(_) if world.generation % 2 == 0 => world.exit(worker, Exit::NoRoom(refusal("EMFILE"))),
                    Some(_) | None => world.exit(worker, Exit::LostAtBirth),
                },
                (4, Some(worker), _) => world.worker_event(worker, WorkerEvent::RequestsServed),
                (5, Some(worker), _) => world.worker_event(worker, WorkerEvent::Stuck(Stuck::Silent)),
                (6, Some(worker), _) => {
                    world.accepting.remove(&worker);
                    world.worker_event(worker, WorkerEvent::Leaving { reason: "TERM".to_owned() });
                }
                (7, _, Some(template)) => world.template_event(template, TemplateEvent::Exited(killed())),
                (8, _, Some(template)) => world.template_event(template, TemplateEvent::ChannelLost),
                (10, _, _) => {
                    asked += 1;
                    let asks = [
                        Ask::Reload { deploy: ON_DISK, wait: true },
                        Ask::Reload { deploy: ON_DISK, wait: false },
                        Ask::Ready,
                        Ask::Scale { by: 1, wait: false },
                        Ask::ScaleTo { workers: dice.roll(4) as u32, wait: true },
                        Ask::Recycle {
                            slot: SlotIndex(dice.roll(4) as u32),
                            keep: (asked % 3 == 0).then_some(Duration::from_secs(600)),
                            wait: true,
                        },
                        Ask::ScaleService { name: "service0".to_owned(), amount: Amount::By(1), wait: true },
                        Ask::ScaleService {
                            name: "service1".to_owned(),
                            amount: Amount::To(dice.roll(3) as u32),
                            wait: true,
                        },
                        Ask::RecycleService { name: "service0".to_owned(), number: None, wait: true },
                        Ask::Dump { slot: None },
                        Ask::Pause {
                            timeout: Duration::from_secs(dice.roll(20) as u64),
                            maintenance: any_maintenance(&mut dice),
                        },
                        Ask::Resume,
                    ];
                    world.event(Event::Ask { asker: Some(AskId(asked)), ask: asks[dice.roll(asks.len())].clone() });
                }
                (11, Some(worker), _) => {
                    world.worker_event(worker, WorkerEvent::Drained { threads: Vec::new() });
                    world.accepting.remove(&worker);
                    world.drained.insert(worker);
                }
                (12, _, _) => {
                    asked += 1;
                    let ask =
                        [Ask::Promote { wait: true }, Ask::Promote { wait: false }, Ask::Abandon][dice.roll(3)].clone();
                    world.event(Event::Ask { asker: Some(AskId(asked)), ask });
                }
                (9, _, _) => world.ask(Ask::Scale { by: dice.roll(5) as i32 - 2, wait: false }),
                (_, _, _) => world.pass(Duration::from_secs(dice.roll(20) as u64)),
            }
            for _ in 0..dice.roll(6) {
                world.step();
            }
            while let Some(asker) = world.configure.pop_front() {
                world.generation += 1;
                let generation = GenerationId(world.generation);
                let result = match dice.roll(3) {
                    0 => Err(Refusal::new("no")),
                    _ => Ok((generation, any_plan(&mut dice))),
                };
                world.behaviour.insert(generation, BEHAVIOURS[dice.roll(BEHAVIOURS.len())]);
                world.event(Event::Configured {
                    verb: Verb::Reload,
                    askers: asker.into_iter().collect(),
                    began: world.now,
                    result,
                });
            }
            let busy = world.supervisor.generations().iter().filter(|generation| generation.state == State::Proving);
            assert!(busy.count() <= 1 && world.exit.is_none(), "seed {seed}: {:#?}", world.log);
        }
        for behaviour in world.behaviour.values_mut() {
            *behaviour = Behaviour::Healthy;
        }
        world.services_stop = true;
        (world.services_say_ready, world.runs_end) = (true, true);
        world.rehearses = RehearsalBehaviour::AsBefore;
        (world.command, world.probe_fails) = (CommandBehaviour::EndsWell, false);
        // A reload that waited for a command is asked for when that has ended.
        world.pass(MINUTE * 2);
        while let Some(asker) = world.configure.pop_front() {
            let (askers, result) = (asker.into_iter().collect(), Err(Refusal::new("no")));
            world.event(Event::Configured { verb: Verb::Reload, askers, began: world.now, result });
        }
        // Room for it: without, a refusal would be right.
        world.room.bytes = None;
        let last = Plan { max_processes: None, pause: None, canary: None, ..any_plan(&mut dice) };
        world.ask(Ask::Resume);
        world.ask(Ask::Scale { by: 1, wait: false });
        world.reload(last, Behaviour::Healthy);
        world.pass(MINUTE * 60);
        let serving = world.supervisor.serving().expect("one always serves");
        let wanted = world.supervisor.wanted_of(serving) as usize;
        let found = (serving.id.0, world.supervisor.generations().len(), world.accepting.len(), world.templates.len());
        assert_eq!(found, (world.generation, 1, wanted, 1), "seed {seed}: {:#?}", world.log);
        assert_eq!(world.alive.len(), wanted, "seed {seed}");
        assert!(world.kills.values().all(|kills| *kills == 1), "seed {seed}");
        for ask in (1..=asked).map(AskId) {
            let answers = world.answers.iter().filter(|(answered, _)| *answered == ask).count();
            assert_eq!(answers, 1, "seed {seed}: {ask:?}");
        }
        // What serves was never closed, and what only others had is.
        let open = serving_listeners(&world);
        let closed: BTreeSet<ListenerId> = world.closed.iter().flat_map(|(_, closed)| closed.iter().copied()).collect();
        assert!(world.supervisor.knows_listener(ListenerId(1)) && !closed.contains(&ListenerId(1)), "seed {seed}");
        for listener in (1..5).map(ListenerId) {
            assert_eq!(world.supervisor.knows_listener(listener), open.contains(&listener), "seed {seed}");
        }
        let always = serving.plan.services.iter().filter(|plan| plan.every.is_none());
        let services: u32 = always.map(|plan| world.supervisor.wanted_processes(plan)).sum();
        assert_eq!(world.services.len(), services as usize, "seed {seed}: {:#?}", world.log);
        seen.extend(RARE.into_iter().filter(|ways| ways.iter().any(|words| world.logged(words))));
        world.ask(Ask::Stop);
        world.pass(MINUTE);
        assert!(world.services.is_empty(), "seed {seed}");
        assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0), "seed {seed}");
    }
    assert_eq!(seen, BTreeSet::from(RARE));
}

/// What has to have come about in some of the runs, in one way or another, or they would say nothing of it.
const RARE: [&[&str]; 9] = [
    &["maintenance after="],
    &[" good: ", " too_little_traffic: ", " promoted: "],
    &[" worse: ", " died: ", " abandoned: an operator"],
    &[": 1 of 1 as before", ": 2 of 2 as before"],
    &["refused: rehearsal: "],
    &["died in the rehearsal"],
    &["draining -> kept"],
    &[" forks for gen="],
    &["is kept no longer, since memory is short"],
];

pub const BEHAVIOURS: [Behaviour; 16] = [
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
    Behaviour::ThreadRunsOn,
    Behaviour::DrainsMutely,
    Behaviour::ServesMutely,
    Behaviour::DiesServing,
    Behaviour::Streams,
];

pub const COMMANDS: [CommandBehaviour; 6] = [
    CommandBehaviour::EndsWell,
    CommandBehaviour::EndsWell,
    CommandBehaviour::Fails,
    CommandBehaviour::Hangs,
    CommandBehaviour::IgnoresTerm,
    CommandBehaviour::CannotStart,
];

pub const REHEARSALS: [RehearsalBehaviour; 8] = [
    RehearsalBehaviour::AsBefore,
    RehearsalBehaviour::AsBefore,
    RehearsalBehaviour::Differs,
    RehearsalBehaviour::Hangs,
    RehearsalBehaviour::Dies,
    RehearsalBehaviour::IsLost,
    RehearsalBehaviour::Leaves,
    RehearsalBehaviour::Babbles,
];

pub fn any_maintenance(dice: &mut Dice) -> Option<MaintenancePlan> {
    let after = Duration::from_secs([0, 3, 20][dice.roll(3)]);
    let body = ["back soon", "closed"][dice.roll(2)];
    (dice.roll(3) > 0).then(|| maintenance(after, (dice.roll(2) == 0).then_some(body)))
}

pub fn any_plan(dice: &mut Dice) -> Plan {
    let surges = [Surge::Workers(1), Surge::Workers(2), Surge::Workers(0), Surge::All, Surge::Auto];
    let surge = surges[dice.roll(5)];
    let unavailable = if surge == Surge::Workers(0) { 1 } else { dice.roll(2) as u32 };
    let workers = 1 + dice.roll(6) as u32;
    let max_processes = (dice.roll(4) == 0).then(|| workers + 1 + dice.roll(4) as u32);
    let listeners = vec![ListenerId(1), ListenerId(2 + dice.roll(3) as u32)];
    let surge_of = |pause: &Option<PausePlan>| if pause.is_some() { Surge::Auto } else { surge };
    let pause = (dice.roll(4) == 0).then(|| PausePlan {
        timeout: Duration::from_secs(5 + dice.roll(30) as u64),
        has_command: dice.roll(4) > 0,
        has_probe: dice.roll(2) == 0,
        maintenance: any_maintenance(dice).map(Box::new),
    });
    let canary = (dice.roll(2) == 0 && pause.is_none()).then(|| {
        Box::new(CanaryPlan {
            workers: 1 + dice.roll(2) as u32,
            hold: Duration::from_secs(1 + dice.roll(6) as u64),
            bounds: super::canary::BOUNDS,
        })
    });
    let rehearsal = (dice.roll(3) > 0).then(|| {
        Box::new(RehearsalPlan {
            refuses: dice.roll(3) > 0,
            timeout: Duration::from_secs(1 + dice.roll(10) as u64),
            ..rehearsal::PLAN
        })
    });
    let services = (0..dice.roll(3)).map(|number| {
        let every = (dice.roll(3) == 0).then(|| Duration::from_secs(20 + dice.roll(3) as u64));
        ServicePlan {
            name: format!("service{number}"),
            count: if every.is_some() { 1 } else { 1 + dice.roll(2) as u32 },
            stop_timeout: MINUTE,
            ready_within: (every.is_none() && dice.roll(2) == 0).then_some(MINUTE),
            every,
        }
    });
    let services = services.collect();
    let rollback_window = Duration::from_secs([0, 20, 60][dice.roll(3)]);
    let origin = (dice.roll(3) > 0).then(|| GenerationId(1 + dice.roll(3) as u32));
    Plan {
        rollback_window,
        origin,
        surge: surge_of(&pause),
        pause: pause.map(Box::new),
        canary,
        rehearsal,
        services,
        unavailable,
        max_processes,
        listeners,
        ..plan(workers)
    }
}

fn serving_listeners(world: &World) -> Vec<ListenerId> {
    world.supervisor.serving().map_or_else(Vec::new, |generation| generation.plan.listeners.clone())
}

/// Marsaglia's xorshift: the same numbers in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}
