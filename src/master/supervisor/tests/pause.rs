//! Pauses: an operator's, and that of a reload, in which a command runs while nobody serves.

use super::super::pause::PausePlan;
use super::*;

const PAUSE: PausePlan = PausePlan { timeout: MINUTE, has_command: true, has_probe: true, maintenance: None };

/// Reloads with a pause. All its workers boot first, and nothing but `run` of the world follows.
fn pausing(workers: u32) -> Plan {
    Plan { surge: Surge::Auto, pause: Some(Box::new(PAUSE)), ..plan(workers) }
}

impl World {
    /// Runs until the command does.
    fn run_to_command(&mut self) {
        self.command = CommandBehaviour::Hangs;
        self.run();
        assert!(self.commanding.is_some(), "{:#?}", self.log);
    }

    fn says(&self, number: u64) -> Option<&Outcome> {
        self.answers.iter().find(|(ask, _)| *ask == AskId(number)).map(|(_, outcome)| outcome)
    }

    /// The order in which lines with these words came.
    fn in_order(&self, words: &[&str]) {
        let mut lines = self.log.iter();
        for word in words {
            assert!(lines.any(|line| line.contains(word)), "{word} does not come in its place: {:#?}", self.log);
        }
    }

    /// The first generation serves with all its workers, and nothing is left of another.
    fn is_as_before(&mut self, workers: usize) {
        self.run();
        let alone = self.supervisor.generations().len() == 1;
        assert!(alone && self.accepting(1) == workers && self.supervisor.held().is_none(), "{:#?}", self.log);
    }
}

#[test]
fn everything_boots_before_the_pause_and_takes_over_after_the_command() {
    let mut world = World::serving(plan(3));
    world.reload(pausing(3), Behaviour::Healthy);
    world.run();
    assert_eq!((world.last_verdict(), world.commanded.len(), world.accepting(2)), (&End::Committed, 1, 3));
    // `carry_out_all` asserts that nobody accepts while the command runs.
    world.in_order(&["slot=2 pid=1006 starting -> ready", "pausing", "paused after", "resumed", "rolling -> serving"]);
    assert!(!world.log.iter().any(|line| line.contains("paused -> opening")), "an old worker served again");
}

#[test]
fn a_release_that_refuses_itself_does_so_before_anything_is_paused_or_run() {
    for behaviour in
        [Behaviour::WorkersFail, Behaviour::TemplateFails, Behaviour::OnlyCandidateBoots, Behaviour::WorkersHang]
    {
        let mut world = World::serving(plan(2));
        world.reload(pausing(2), behaviour);
        world.pass(MINUTE * 5);
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}");
        assert!(world.commanded.is_empty() && !world.logged("pausing"), "{behaviour:?}: {:#?}", world.log);
        world.is_as_before(2);
        assert_eq!(world.fewest_accepting, 2, "{behaviour:?}");
    }
    // Nor is there a pause where not all fit.
    let mut world = World::serving(plan(4));
    world.room.bytes = Some(100);
    world.boot.private_bytes = 40;
    world.reload(pausing(4), Behaviour::Healthy);
    world.run();
    let End::Refused(refusal) = world.last_verdict() else { panic!("refused") };
    assert!(refusal.reason.contains("no room for all new workers"), "{}", refusal.reason);
    assert!(world.commanded.is_empty());
    world.is_as_before(4);
}

#[test]
fn what_fails_during_the_pause_leaves_the_old_generation_serving() {
    let cases: [(CommandBehaviour, bool, &str); 5] = [
        (CommandBehaviour::Fails, false, "the command failed: exit code 3"),
        (CommandBehaviour::CannotStart, false, "the command could not be run"),
        (CommandBehaviour::Hangs, false, "the command did not end within 60.0s (--timeout)"),
        (CommandBehaviour::IgnoresTerm, false, "the command did not end within 60.0s (--timeout)"),
        (CommandBehaviour::EndsWell, true, "probe GET / answered 500"),
    ];
    for (command, probe_fails, reason) in cases {
        let mut world = World::serving(plan(2));
        (world.command, world.probe_fails) = (command, probe_fails);
        world.reload(pausing(2), Behaviour::Healthy);
        world.pass(MINUTE * 5);
        let End::Refused(refusal) = world.last_verdict() else { panic!("{command:?}: {:#?}", world.log) };
        assert_eq!(refusal.reason, reason);
        assert!(world.log.iter().any(|line| line.starts_with("resumed after")));
        world.is_as_before(2);
        assert!(world.kills.values().all(|kills| *kills == 1) && world.commanding.is_none());
    }
}

#[test]
fn a_stream_that_never_ends_is_named_and_the_service_goes_on() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::Streams);
    world.reload(pausing(2), Behaviour::Healthy);
    world.run();
    assert!(world.logged("pausing") && world.commanded.is_empty());
    world.pass(MINUTE);
    let End::Refused(refusal) = world.last_verdict() else { panic!("refused") };
    let reason = "requests still run after 60.0s, in worker gen=1 slot=0 pid=1001, worker gen=1 slot=1 pid=1002";
    assert_eq!((refusal.reason.as_str(), refusal.details.as_str()), (reason, "2 workers run requests"));
    world.is_as_before(2);
    // The same of an operator's pause.
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Pause { timeout: MINUTE, maintenance: None } });
    world.pass(MINUTE);
    assert!(matches!(world.says(1), Some(Outcome::Refused(refusal)) if refusal.reason == reason));
    world.is_as_before(2);
}

/// As found: whoever asked again while requests ran heard of the time that was asked for first.
#[test]
fn the_latest_pause_says_how_long_requests_may_run() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (first, second) in [(HOUR, MINUTE), (MINUTE, HOUR)] {
        let mut world = World::serving(plan(1));
        world.behaviour.insert(GenerationId(1), Behaviour::Streams);
        for (ask, timeout) in [(1, first), (2, second)] {
            world.event(Event::Ask { asker: Some(AskId(ask)), ask: Ask::Pause { timeout, maintenance: None } });
            world.run();
        }
        world.pass(second - Duration::from_secs(1));
        assert!(world.says(1).is_none() && world.says(2).is_none(), "{:#?}", world.log);
        world.pass(Duration::from_secs(2));
        let Some(Outcome::Refused(refusal)) = world.says(2) else { panic!("{:#?}", world.log) };
        let words = format!("requests still run after {:.1}s", second.as_secs_f64());
        assert!(refusal.reason.starts_with(&words), "{}", refusal.reason);
        world.is_as_before(1);
    }
}

#[test]
fn a_later_reload_waits_for_the_command_and_its_asker_too() {
    let mut world = World::serving(plan(2));
    world.reload(pausing(2), Behaviour::Healthy);
    world.run_to_command();
    let reload = || Ask::Reload { deploy: ON_DISK, wait: true };
    for _ in 0..3 {
        world.ask(Ask::Reload { deploy: ON_DISK, wait: false });
    }
    world.event(Event::Ask { asker: Some(AskId(1)), ask: reload() });
    // One whose configuration was being read already.
    let late = world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert!(world.configure.is_empty() && world.commanding.is_some() && world.state(late.0).is_none());
    world.happenings.push_back(Happening::Command(Exit::Code(0)));
    world.run();
    assert_eq!(
        world.verdicts.iter().map(|(id, end)| (id.0, end)).collect::<Vec<_>>()[1..],
        [(2, &End::Committed), (3, &End::Committed)]
    );
    // Three signals are one, and the client is another.
    assert_eq!(world.configure, [None, Some(AskId(1))]);
}

#[test]
fn while_requests_still_finish_a_later_reload_wins() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::Streams);
    world.reload(pausing(2), Behaviour::Healthy);
    world.run();
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(3), world.accepting(3)), (Some("serving"), 2));
    assert!(world.commanded.is_empty());
}

#[test]
fn a_stop_lets_the_command_end_first() {
    for (command, after) in [(CommandBehaviour::Hangs, 0), (CommandBehaviour::IgnoresTerm, 25)] {
        let mut world = World::serving(plan(2));
        world.reload(pausing(2), Behaviour::Healthy);
        world.run_to_command();
        world.command = command;
        let began = world.now;
        world.ask(Ask::Stop);
        world.pass(MINUTE);
        assert_eq!((world.last_verdict(), world.exit), (&End::Stopped, Some(0)), "{command:?}");
        world.in_order(&["stopping: the command", "rolling -> abandoned", "stopping: finishing"]);
        assert!(world.now >= began + Duration::from_secs(after) && world.commanding.is_none());
    }
    // A second TERM waits for nothing.
    let mut world = World::serving(plan(2));
    world.reload(pausing(2), Behaviour::Healthy);
    world.run_to_command();
    world.command = CommandBehaviour::IgnoresTerm;
    world.ask(Ask::Stop);
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.alive.len(), world.commanding), (Some(0), 0, None));
}

#[test]
fn an_asker_that_leaves_stops_nothing() {
    let mut world = World::serving(plan(2));
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Reload { deploy: ON_DISK, wait: true } });
    world.carry_out_all();
    let asker = world.configure.pop_front().expect("asked");
    world.generation += 1;
    world.behaviour.insert(GenerationId(2), Behaviour::Healthy);
    let result = Ok((GenerationId(2), pausing(2)));
    world.event(Event::Configured {
        verb: Verb::Reload,
        askers: asker.into_iter().collect(),
        began: world.now,
        result,
    });
    world.run_to_command();
    world.event(Event::Left { ask: AskId(1) });
    world.happenings.push_back(Happening::Command(Exit::Code(0)));
    world.run();
    assert_eq!((world.accepting(2), world.says(1)), (2, None));
}

#[test]
fn a_new_worker_that_dies_during_the_command_boots_again_before_anybody_serves() {
    let mut world = World::serving(plan(3));
    world.reload(pausing(3), Behaviour::Healthy);
    world.run_to_command();
    let new: Vec<WorkerId> = world.alive.iter().filter(|(_, of)| of.0 == 2).map(|(id, _)| *id).collect();
    world.exit(new[2], killed());
    world.happenings.push_back(Happening::Command(Exit::Code(0)));
    world.pass(MINUTE);
    assert_eq!((world.accepting(2), world.last_verdict()), (3, &End::Committed));
    assert!(!world.log.iter().any(|line| line.contains("paused -> opening")), "an old worker served again");
}

#[test]
fn a_release_whose_processes_die_during_the_command_is_refused_when_that_has_ended() {
    let mut world = World::serving(plan(2));
    world.reload(pausing(2), Behaviour::Healthy);
    world.run_to_command();
    for _ in 0..4 {
        if world.templates.contains(&GenerationId(2)) {
            world.template_event(GenerationId(2), TemplateEvent::Exited(killed()));
        }
        world.pass(Duration::from_secs(2));
    }
    assert!(world.commanding.is_some() && world.accepting.is_empty(), "{:#?}", world.log);
    world.happenings.push_back(Happening::Command(Exit::Code(0)));
    world.run();
    assert!(matches!(world.last_verdict(), End::Refused(refusal) if refusal.reason.contains("while the command ran")));
    world.is_as_before(2);
}

#[test]
fn an_old_worker_that_dies_during_the_command_is_back_when_it_fails() {
    let mut world = World::serving(plan(2));
    world.reload(pausing(2), Behaviour::Healthy);
    world.run_to_command();
    let old: Vec<WorkerId> = world.alive.iter().filter(|(_, of)| of.0 == 1).map(|(id, _)| *id).collect();
    world.exit(old[0], killed());
    world.run();
    world.happenings.push_back(Happening::Command(Exit::Code(1)));
    world.pass(MINUTE);
    world.is_as_before(2);
}

#[test]
fn an_operator_pauses_and_resumes_and_a_reload_commits_meanwhile() {
    for surge in [Surge::Workers(1), Surge::Workers(0), Surge::All, Surge::Auto] {
        let plan = || Plan { surge, unavailable: 1, ..plan(2) };
        let mut world = World::serving(plan());
        world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Pause { timeout: MINUTE, maintenance: None } });
        world.run();
        assert_eq!((world.says(1), world.supervisor.word()), (Some(&Outcome::Paused), "paused"));
        assert!(world.accepting.is_empty() && !world.supervisor.is_ready());
        world.reload(plan(), Behaviour::Healthy);
        world.pass(MINUTE);
        assert_eq!((world.state(2), world.accepting.len()), (Some("serving"), 0), "{surge:?}: {:#?}", world.log);
        world.reload(plan(), Behaviour::WorkersFail);
        world.pass(MINUTE);
        world.reload(pausing(2), Behaviour::Healthy);
        world.pass(MINUTE);
        assert_eq!((world.state(4), world.accepting.len(), world.commanded.len()), (Some("serving"), 0, 1));
        world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::Resume });
        world.run();
        assert_eq!((world.says(2), world.accepting(4)), (Some(&Outcome::Resumed), 2), "{:#?}", world.log);
        assert_eq!(world.supervisor.generations().len(), 1);
    }
}

#[test]
fn a_worker_that_was_due_stays_so_over_a_pause() {
    let mut world = World::serving(plan(1));
    let old = world.some_worker(1);
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.run();
    world.worker_event(old, WorkerEvent::RequestsServed);
    world.ask(Ask::Resume);
    world.pass(MINUTE);
    assert!(!world.alive.contains_key(&old) && world.accepting(1) == 1, "{:#?}", world.log);
}

#[test]
fn a_pause_without_a_command_or_a_probe_takes_over_at_once() {
    let mut world = World::serving(plan(2));
    let plan =
        Plan { pause: Some(Box::new(PausePlan { has_command: false, has_probe: false, ..PAUSE })), ..pausing(2) };
    world.reload(plan, Behaviour::Healthy);
    world.run();
    assert_eq!((world.last_verdict(), world.accepting(2), world.commanded.len()), (&End::Committed, 2, 0));
    world.in_order(&["pausing", "paused after", "resumed"]);
}

#[test]
fn past_max_clients_are_turned_away_until_resume_whoever_the_workers_are() {
    let mut world = World::serving(plan(2));
    let asked = Some(maintenance(Duration::from_secs(30), None));
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Pause { timeout: MINUTE, maintenance: asked } });
    world.run();
    assert_eq!((world.says(1), world.supervisor.word()), (Some(&Outcome::Paused), "paused"));
    world.pass(Duration::from_secs(29));
    assert!(world.turning_away.is_empty() && !world.logged("maintenance"));
    world.pass(Duration::from_secs(1));
    assert_eq!((world.turning_away.len(), world.supervisor.word()), (2, "maintenance"));
    assert!(world.logged("maintenance after=30000ms: clients get 503"), "{:#?}", world.log);
    // A worker that is born meanwhile, and those of a release that commits meanwhile.
    let old = *world.turning_away.keys().next().expect("one");
    world.exit(old, killed());
    world.pass(Duration::from_secs(1));
    assert_eq!((world.turning_away.len(), world.supervisor.is_ready()), (2, false), "{:#?}", world.log);
    world.reload(plan(2), Behaviour::Healthy);
    world.pass(Duration::from_secs(10));
    assert_eq!((world.state(2), world.turning_away.len()), (Some("serving"), 2), "{:#?}", world.log);
    assert!(world.turning_away.keys().all(|worker| world.alive[worker] == GenerationId(2)));
    world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::Resume });
    world.run();
    assert_eq!((world.says(2), world.accepting(2)), (Some(&Outcome::Resumed), 2));
    assert!(world.turning_away.is_empty() && world.supervisor.word() == "running");
    // The next pause holds.
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.pass(MINUTE);
    assert!(world.turning_away.is_empty());
}

#[test]
fn whoever_pauses_again_asks_for_other_terms() {
    let mut world = World::serving(plan(2));
    let shown = |world: &World| world.turning_away.values().next().cloned();
    let pause = |world: &mut World, terms: Option<MaintenancePlan>| {
        world.ask(Ask::Pause { timeout: MINUTE, maintenance: terms });
        world.run();
    };
    pause(&mut world, None);
    pause(&mut world, Some(maintenance(Duration::ZERO, Some("back soon"))));
    assert_eq!(shown(&world), Some(Some("back soon".to_owned())));
    // Whoever asks for another page is answered when no worker shows the former one.
    world.event(Event::Ask {
        asker: Some(AskId(7)),
        ask: Ask::Pause { timeout: MINUTE, maintenance: Some(maintenance(Duration::ZERO, Some("at noon"))) },
    });
    assert_eq!(world.says(7), None);
    world.run();
    assert_eq!(world.says(7), Some(&Outcome::Paused));
    assert_eq!(shown(&world), Some(Some("at noon".to_owned())));
    pause(&mut world, None);
    assert_eq!((shown(&world), world.supervisor.word()), (None, "paused"));
    // A worker that serves a stream does not keep others from being told.
    world.ask(Ask::Resume);
    world.run();
    world.behaviour.insert(GenerationId(1), Behaviour::Streams);
    pause(&mut world, Some(maintenance(Duration::ZERO, None)));
    assert_eq!((world.turning_away.len(), world.supervisor.word()), (2, "pausing"));
    world.pass(MINUTE * 2);
    assert!(world.turning_away.is_empty() && world.accepting(1) == 2);
}

#[test]
fn a_paused_reload_turns_clients_away_and_the_new_workers_take_over_all_the_same() {
    for (command, probe_fails) in [
        (CommandBehaviour::EndsWell, false),
        (CommandBehaviour::EndsWell, true),
        (CommandBehaviour::Fails, false),
        (CommandBehaviour::Hangs, false),
    ] {
        let mut world = World::serving(plan(2));
        (world.command, world.probe_fails) = (command, probe_fails);
        let terms = Some(Box::new(maintenance(Duration::from_secs(10), Some("back soon"))));
        let pause = Some(PausePlan { maintenance: terms, ..PAUSE });
        world.reload(Plan { pause: pause.map(Box::new), ..pausing(2) }, Behaviour::Healthy);
        world.pass(Duration::from_secs(20));
        if command == CommandBehaviour::Hangs {
            let old = world.turning_away.keys().all(|worker| world.alive[worker] == GenerationId(1));
            assert!(old && world.turning_away.len() == 2, "{:#?}", world.log);
        }
        world.pass(MINUTE * 5);
        let serves = if command == CommandBehaviour::EndsWell && !probe_fails { 2 } else { 1 };
        assert_eq!((world.accepting(serves), world.turning_away.len()), (2, 0), "{command:?}: {:#?}", world.log);
        assert!(!world.supervisor.turns_away() && world.supervisor.held().is_none());
    }
}

#[test]
fn a_stop_ends_a_maintenance() {
    for delay in [Duration::ZERO, Duration::from_secs(5)] {
        let mut world = World::serving(Plan { shutdown_delay: delay, ..plan(2) });
        world.ask(Ask::Pause { timeout: MINUTE, maintenance: Some(maintenance(Duration::ZERO, None)) });
        world.run();
        assert_eq!(world.turning_away.len(), 2);
        world.ask(Ask::Stop);
        world.run();
        assert!(world.turning_away.is_empty(), "{:#?}", world.log);
        world.pass(MINUTE);
        assert_eq!(world.exit, Some(0));
    }
}
