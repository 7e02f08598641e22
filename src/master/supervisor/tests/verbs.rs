//! Every verb in every state of the master: each ask has exactly one answer, and a true one.

use super::super::canary::CanaryPlan;
use super::super::pause::PausePlan;
use super::*;

/// What a verb is answered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hears {
    /// It was done.
    Done,
    /// Not done, and why.
    No,
    /// Nothing yet: what it asked for is not so. Its asker may leave.
    Waits,
}

use Hears::{Done, No, Waits};

const ASKER: AskId = AskId(77);

fn verbs() -> [Ask; 13] {
    [
        Ask::Ready,
        Ask::Scale { by: 1, wait: false },
        Ask::Scale { by: 1, wait: true },
        Ask::ScaleTo { workers: 0, wait: true },
        Ask::Recycle { slot: SlotIndex(0), keep: None, wait: true },
        Ask::Dump { slot: None },
        Ask::Stop,
        Ask::StopNow,
        Ask::Pause { timeout: MINUTE, maintenance: None },
        Ask::Resume,
        Ask::Promote { wait: true },
        Ask::Abandon,
        Ask::Upgrade { timeout: MINUTE },
    ]
}

/// A master in each state that it can be in, by name.
fn states() -> Vec<(&'static str, World)> {
    let rolling = Plan { surge: Surge::Workers(1), ..plan(2) };
    let mut proving_first = World::new();
    proving_first.reload(plan(2), Behaviour::WorkersHang);
    proving_first.run();
    let mut proving = World::serving(plan(2));
    proving.reload(plan(2), Behaviour::WorkersHang);
    proving.run();
    let mut rolls = World::serving(rolling.clone());
    rolls.behaviour.insert(GenerationId(1), Behaviour::DrainsMutely);
    rolls.reload(rolling, Behaviour::Healthy);
    rolls.run();
    assert_eq!(rolls.state(2), Some("rolling"));
    let mut draining = World::serving(plan(2));
    draining.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    draining.reload(plan(2), Behaviour::Healthy);
    draining.run();
    let mut off = World::serving(plan(2));
    off.ask(Ask::ScaleTo { workers: 0, wait: false });
    off.run();
    let mut dead = World::serving(plan(2));
    dead.behaviour.insert(GenerationId(1), Behaviour::WorkersDie);
    for worker in dead.alive.keys().copied().collect::<Vec<_>>() {
        dead.exit(worker, killed());
    }
    dead.run();
    let mut delaying = World::serving(Plan { shutdown_delay: MINUTE, ..plan(2) });
    delaying.ask(Ask::Stop);
    delaying.run();
    let mut stopping = World::serving(plan(2));
    stopping.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    stopping.ask(Ask::Stop);
    stopping.run();
    let mut paused = World::serving(plan(2));
    paused.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    paused.run();
    let mut commanding = World::serving(plan(2));
    commanding.command = CommandBehaviour::Hangs;
    let pause = PausePlan { timeout: MINUTE, has_command: true, has_probe: false, maintenance: None };
    commanding.reload(Plan { surge: Surge::Auto, pause: Some(Box::new(pause)), ..plan(2) }, Behaviour::Healthy);
    commanding.run();
    let mut trying = World::serving(plan(4));
    let canary = CanaryPlan { workers: 1, hold: MINUTE, bounds: super::canary::BOUNDS };
    trying.reload(Plan { canary: Some(Box::new(canary)), ..plan(4) }, Behaviour::Healthy);
    trying.run();
    vec![
        ("proving at the start", proving_first),
        ("serving", World::serving(plan(2))),
        ("proving", proving),
        ("rolling", rolls),
        ("draining", draining),
        ("off", off),
        ("no worker alive", dead),
        ("delaying", delaying),
        ("stopping", stopping),
        ("paused", paused),
        ("command runs", commanding),
        ("canary serves", trying),
    ]
}

#[test]
fn every_verb_in_every_state_is_answered_once_and_truly() {
    // Ready, scale, scale and wait, scale 0, recycle, dump, stop, stop --now, pause, resume, promote, abandon, upgrade.
    let table = [
        ("proving at the start", [Waits, No, No, No, No, Done, Done, Done, No, No, No, No, No]),
        ("serving", [Done, Done, Done, Done, Done, Done, Done, Done, Done, Done, No, No, Waits]),
        // What is waited for comes with the end of the reload. An upgrade waits for the new binary's word everywhere.
        ("proving", [Done, Done, Waits, Waits, Done, Done, Done, Done, Done, Done, No, No, Waits]),
        // Its old workers have been told to drain.
        ("rolling", [Done, Done, Waits, Waits, No, Done, Done, Done, Waits, Done, No, No, Waits]),
        ("draining", [Done, Done, Done, Done, Done, Done, Done, Done, Waits, Done, No, No, Waits]),
        ("off", [Waits, Done, Done, Done, No, No, Done, Done, Done, Done, No, No, Waits]),
        ("no worker alive", [Waits, Done, Waits, Done, No, No, Done, Done, Done, Done, No, No, Waits]),
        ("delaying", [No, Done, Done, Waits, Waits, Done, Done, Done, No, No, No, No, No]),
        ("stopping", [No, No, No, No, No, Done, Done, Done, No, No, No, No, No]),
        ("paused", [Waits, Done, Done, Done, No, Done, Done, Done, Done, Done, No, No, No]),
        // The reload resumes when it has ended.
        ("command runs", [Waits, Done, Waits, Waits, No, Done, Done, Done, Done, Waits, No, No, Waits]),
        // The old generation goes on as ever. The reload ends where too few are left.
        ("canary serves", [Done, Done, Done, Done, Done, Done, Done, Done, Done, Done, Done, Done, Waits]),
    ];
    let names: Vec<&str> = states().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, table.map(|(name, _)| name));
    for (at, (name, row)) in table.iter().enumerate() {
        for (verb, expected) in verbs().into_iter().zip(row) {
            let (_, mut world) = states().swap_remove(at);
            let before = world.answers.len();
            world.event(Event::Ask { asker: Some(ASKER), ask: verb.clone() });
            world.run();
            let answers: Vec<Outcome> = world.answers[before..]
                .iter()
                .filter(|(ask, _)| *ask == ASKER)
                .map(|(_, outcome)| outcome.clone())
                .collect();
            let hears = match &answers[..] {
                [] => Waits,
                [Outcome::Refused(_)] => No,
                [_done] => Done,
                [_, ..] => panic!("{name}, {verb:?}: {answers:?}"),
            };
            assert_eq!(hears, *expected, "{name}, {verb:?}: {answers:?}\n{:#?}", world.log);
            // Whoever waits and leaves is forgotten; the master ends with or without.
            world.event(Event::Left { ask: ASKER });
            assert!(world.supervisor.asking().next().is_none() || hears != Waits, "{name}, {verb:?}");
            world.ask(Ask::StopNow);
            world.pass(MINUTE);
            assert!(world.exit.is_some(), "{name}, {verb:?}");
        }
    }
}

#[test]
fn scaled_to_nothing_the_sockets_are_held_and_a_reload_changes_the_release_all_the_same() {
    let mut world = World::serving(plan(2));
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::ScaleTo { workers: 0, wait: true } });
    world.run();
    assert_eq!(world.answers, [(AskId(1), Outcome::Scaled { workers: 0 })]);
    assert_eq!((world.accepting(1), world.supervisor.word()), (0, "off"));
    assert!(world.closed.iter().all(|(_, closed)| closed.is_empty()), "{:?}", world.closed);
    for surge in [Surge::Workers(1), Surge::All, Surge::Auto] {
        let generation = world.reload(Plan { surge, ..plan(2) }, Behaviour::Healthy);
        world.run();
        assert_eq!(world.state(generation.0), Some("serving"), "{surge:?}: {:#?}", world.log);
        assert_eq!(world.accepting.len(), 0, "the candidate left without having served");
    }
    assert!(world.supervisor.knows_listener(ListenerId(1)));
    // A release that proves nothing is refused as always.
    world.reload(plan(2), Behaviour::WorkersFail);
    world.run();
    assert!(matches!(world.last_verdict(), End::Refused(_)));
    world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::Scale { by: 3, wait: true } });
    world.run();
    assert_eq!(world.answers.last(), Some(&(AskId(2), Outcome::Scaled { workers: 3 })));
    assert_eq!(world.accepting.len(), 3);
    // Steps end at one.
    world.event(Event::Ask { asker: Some(AskId(3)), ask: Ask::Scale { by: -9, wait: true } });
    world.run();
    assert_eq!(world.answers.last(), Some(&(AskId(3), Outcome::Scaled { workers: 1 })));
}

#[test]
fn a_scale_that_another_one_overtakes_says_so() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::WorkersHang);
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::ScaleTo { workers: 3, wait: true } });
    world.run();
    world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::ScaleTo { workers: 1, wait: true } });
    world.run();
    let refused = Outcome::Refused(Refusal::new("superseded: 1 workers are wanted now"));
    assert_eq!(world.answers, [(AskId(1), refused), (AskId(2), Outcome::Scaled { workers: 1 })]);
}

#[test]
fn a_recycled_worker_serves_until_its_successor_does() {
    let mut world = World::serving(plan(2));
    let before = world.alive.clone();
    world.fewest_accepting = 2;
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Recycle { slot: SlotIndex(1), keep: None, wait: true } });
    world.run();
    assert!(matches!(world.answers[..], [(AskId(1), Outcome::Recycled { slot: SlotIndex(1), .. })]));
    assert_eq!((world.fewest_accepting, world.accepting.len()), (2, 2));
    let gone = before.keys().filter(|worker| !world.accepting.contains(worker)).count();
    assert_eq!(gone, 1);
    world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::Recycle { slot: SlotIndex(2), keep: None, wait: true } });
    let Some((_, Outcome::Refused(refusal))) = world.supervisor_answers().last().cloned() else { panic!("refused") };
    assert_eq!(refusal.reason, "there is no slot 2; 2 workers are wanted, numbered from 0");
}

/// It is out of service for so long, whatever becomes of it meanwhile, and no more than a few are.
#[test]
fn a_worker_that_is_kept_lives_until_its_time_is_over() {
    const KEEP: Duration = Duration::from_secs(600);
    let mut world = World::serving(plan(4));
    let mut asked = 0;
    let mut recycle = |world: &mut World, slot, keep| {
        asked += 1;
        let ask = Ask::Recycle { slot: SlotIndex(slot), keep: Some(keep), wait: true };
        world.event(Event::Ask { asker: Some(AskId(asked)), ask });
        world.run();
        world.answers.last().expect("it is answered").1.clone()
    };
    let Outcome::Refused(refusal) = recycle(&mut world, 0, KEEP * 7) else { panic!("longer than an hour") };
    assert_eq!(refusal.reason, "a worker is kept for an hour at most");
    let mut kept = Vec::new();
    for slot in 0..3 {
        let Outcome::Recycled { kept: Some(pid), .. } = recycle(&mut world, slot, KEEP) else { panic!("kept") };
        kept.push(pid);
    }
    let Outcome::Refused(refusal) = recycle(&mut world, 3, KEEP) else { panic!("a fourth") };
    assert_eq!(refusal.reason, "3 workers are kept already, and that is all");
    assert_eq!((world.alive.len(), world.accepting.len()), (7, 4));
    // Silence and requests that take long are no reason, and neither keeps a reload waiting.
    let workers = world.supervisor.serving().expect("it serves").workers.clone();
    for worker in workers.iter().filter(|worker| worker.pid.is_some_and(|pid| kept.contains(&pid))) {
        assert_eq!(worker.state.word(), "kept");
        world.worker_event(worker.id, WorkerEvent::Stuck(Stuck::Silent));
    }
    world.reload(plan(4), Behaviour::Healthy);
    world.run();
    world.pass(KEEP - Duration::from_secs(1));
    assert_eq!((world.alive.len(), world.accepting.len(), world.kills.len()), (7, 4, 0));
    world.pass(Duration::from_secs(2));
    assert_eq!((world.alive.len(), world.accepting.len(), world.kills.len()), (4, 4, 0));
}

/// Its operator wants to see why it is stuck.
#[test]
fn a_worker_that_is_to_be_kept_is_not_given_up_for_being_stuck() {
    let mut world = World::serving(plan(2));
    let ask = Ask::Recycle { slot: SlotIndex(0), keep: Some(MINUTE * 10), wait: false };
    world.event(Event::Ask { asker: None, ask });
    let wanted = world.supervisor.serving().expect("it serves").workers[0].id;
    world.worker_event(wanted, WorkerEvent::Stuck(Stuck::Request(1)));
    world.run();
    assert_eq!((world.alive.len(), world.accepting.len(), world.kills.len()), (3, 2, 0), "{:#?}", world.log);
    assert_eq!(world.supervisor.worker(wanted).map(|(_, worker)| worker.state.word()), Some("kept"));
}

/// A deploy that needs its room gets it within `graceful_timeout`, as it waits no longer.
#[test]
fn a_worker_that_is_kept_goes_when_its_room_is_needed() {
    let keeping = Plan { max_processes: Some(3), ..plan(2) };
    let mut world = World::serving(keeping.clone());
    let ask = Ask::Recycle { slot: SlotIndex(0), keep: Some(MINUTE * 10), wait: false };
    world.event(Event::Ask { asker: None, ask });
    world.run();
    assert_eq!((world.alive.len(), world.accepting.len()), (3, 2));
    // A debugger has stopped it: only its deadline ends it.
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(keeping, Behaviour::Healthy);
    world.run();
    assert!(world.logged("kept -> closing"), "{:#?}", world.log);
    world.behaviour.insert(GenerationId(1), Behaviour::Healthy);
    world.pass(plan(2).graceful_timeout + Duration::from_secs(1));
    assert_eq!(
        (world.last_verdict(), world.accepting(2), world.alive.len()),
        (&End::Committed, 2, 2),
        "{:#?}",
        world.log
    );
}

#[test]
fn a_stop_does_not_wait_for_workers_that_are_kept() {
    let mut world = World::serving(plan(1));
    let ask = Ask::Recycle { slot: SlotIndex(0), keep: Some(Duration::from_secs(600)), wait: false };
    world.event(Event::Ask { asker: None, ask });
    world.run();
    assert_eq!(world.alive.len(), 2);
    world.ask(Ask::Stop);
    world.pass(Duration::from_secs(60));
    assert_eq!((world.exit, world.alive.len()), (Some(0), 0));
}

#[test]
fn a_dump_has_the_stacks_of_each_worker_or_says_that_there_are_none() {
    let mut world = World::serving(plan(2));
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Dump { slot: None } });
    world.run();
    let [(AskId(1), Outcome::Dumped(dumped))] = &world.answers[..] else { panic!("{:?}", world.answers) };
    assert!(dumped.len() == 2 && dumped.iter().all(|one| one.text.starts_with("stacks of ")), "{dumped:?}");
}

impl World {
    fn supervisor_answers(&mut self) -> &[(AskId, Outcome)] {
        self.run();
        &self.answers
    }
}
