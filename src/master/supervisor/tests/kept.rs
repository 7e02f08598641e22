//! Kept templates: rollbacks that import nothing, and whatever becomes of a template that nobody needs any more.

use super::super::kept::Keep;
use super::*;

const WINDOW: Duration = Duration::from_secs(600);

fn keeping(workers: u32) -> Plan {
    Plan { surge: Surge::Auto, rollback_window: WINDOW, ..plan(workers) }
}

/// Generation 2 serves, and the template of the first one is kept.
fn kept() -> World {
    let mut world = World::serving(keeping(3));
    world.reload(keeping(3), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(1), world.state(2), world.accepting(2)), (Some("kept"), Some("serving"), 3));
    assert_eq!((world.templates.len(), world.alive.len()), (2, 3));
    world
}

impl World {
    fn roll_back(&mut self, origin: u32, behaviour: Behaviour) -> GenerationId {
        self.reload(Plan { origin: Some(GenerationId(origin)), ..keeping(3) }, behaviour)
    }

    fn started(&self) -> usize {
        self.log.iter().filter(|line| line.contains("template") && line.contains("starting -> ready")).count()
    }
}

#[test]
fn a_rollback_forks_from_the_template_that_is_kept_and_so_does_the_way_forward() {
    let mut world = kept();
    for (generation, origin) in [(3, 1), (4, 2), (5, 1), (6, 2)] {
        world.roll_back(origin, Behaviour::Healthy);
        // No candidate comes first: all workers are there after one boot.
        assert_eq!(world.state(generation), Some("rolling"));
        world.run();
        assert_eq!((world.accepting(generation), world.last_verdict()), (3, &End::Committed), "{:#?}", world.log);
        assert_eq!((world.templates.len(), world.alive.len(), world.supervisor.generations().len()), (2, 3, 2));
    }
    assert_eq!(world.started(), 2, "{:#?}", world.log);
    // Another release takes the place of what was kept.
    world.reload(keeping(3), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(5), world.state(6), world.state(7)), (None, Some("kept"), Some("serving")));
    assert_eq!(world.templates.len(), 2);
}

#[test]
fn it_ends_with_its_time_and_without_a_window_at_once() {
    let mut world = kept();
    world.pass(WINDOW - Duration::from_secs(1));
    assert_eq!(world.state(1), Some("kept"));
    assert!(world.supervisor.kept().is_some());
    world.pass(Duration::from_secs(1));
    assert_eq!((world.state(1), world.templates.len(), world.supervisor.kept()), (None, 1, None));
    // The settings of what serves now decide.
    let mut world = World::serving(keeping(2));
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(1), world.templates.len()), (None, 1));
}

#[test]
fn while_the_old_workers_drain_their_template_is_kept_as_well() {
    let mut world = World::serving(keeping(3));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(keeping(3), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(1), world.templates.len()), (Some("draining"), 2));
    world.roll_back(1, Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(3), world.templates.len(), world.started()), (3, 2, 2));
    // The workers of generation 1 still drain, without a template.
    assert_eq!((world.state(1), world.state(2)), (Some("draining"), Some("kept")));
    world.pass(Duration::from_secs(601));
    assert_eq!((world.state(1), world.state(2)), (None, None), "{:#?}", world.log);
}

#[test]
fn a_rollback_that_comes_to_nothing_gives_it_back() {
    for behaviour in [Behaviour::WorkersFail, Behaviour::WorkersDie, Behaviour::DiesServing] {
        let mut world = kept();
        world.roll_back(1, behaviour);
        world.pass(MINUTE);
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}");
        assert_eq!((world.state(1), world.state(3), world.accepting(2)), (Some("kept"), None, 3), "{behaviour:?}");
        world.behaviour.insert(GenerationId(3), Behaviour::Healthy);
        world.roll_back(1, Behaviour::Healthy);
        world.run();
        assert_eq!((world.accepting(4), world.started()), (3, 2), "{behaviour:?}: {:#?}", world.log);
    }
    // Another rollback supersedes it.
    let mut world = kept();
    world.roll_back(1, Behaviour::WorkersHang);
    world.run();
    world.roll_back(1, Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(4), world.started(), world.templates.len()), (3, 2, 2));
    // Its time is over meanwhile.
    let mut world = kept();
    world.pass(WINDOW - Duration::from_secs(10));
    world.roll_back(1, Behaviour::WorkersHang);
    world.pass(MINUTE * 5);
    assert!(matches!(world.last_verdict(), End::Refused(_)));
    assert_eq!((world.state(1), world.state(3), world.templates.len()), (None, None, 1), "{:#?}", world.log);
}

#[test]
fn one_that_dies_is_forgotten_and_a_rollback_starts_python_anew() {
    let mut world = kept();
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    world.run();
    assert_eq!((world.state(1), world.supervisor.kept()), (None, None));
    world.roll_back(1, Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(3), world.started()), (3, 3));
    // It dies in the middle of the rollback: that goes on with one of its own.
    let mut world = kept();
    world.roll_back(1, Behaviour::Healthy);
    world.carry_out_all();
    world.template_event(GenerationId(3), TemplateEvent::Exited(killed()));
    world.pass(MINUTE);
    assert_eq!((world.accepting(3), world.started(), world.templates.len()), (3, 3, 2), "{:#?}", world.log);
}

#[test]
fn only_what_has_the_same_origin_is_the_way_back() {
    let mut world = kept();
    world.roll_back(7, Behaviour::Healthy);
    world.run();
    // Generation 3 is another release; what is kept from then on is the way back to generation 2.
    assert_eq!((world.accepting(3), world.started()), (3, 3));
    assert_eq!((world.state(1), world.state(2)), (None, Some("kept")));
}

#[test]
fn memory_that_a_boot_needs_comes_from_it_first() {
    let mut world = kept();
    // Beside the candidate one more fits, two are needed, and what is kept has room for one.
    (world.room.bytes, world.boot.private_bytes) = (Some(50), 32);
    world.reload(keeping(3), Behaviour::Healthy);
    world.run();
    assert!(world.logged("template gen=1 is kept no longer, since memory is short"), "{:#?}", world.log);
    assert!(world.logged("rolling: 3 at once"), "{:#?}", world.log);
    // Where it would not help, it stays.
    let mut world = kept();
    (world.room.bytes, world.boot.private_bytes) = (Some(0), 1000);
    world.reload(keeping(3), Behaviour::OnlyCandidateBoots);
    world.pass(MINUTE);
    assert_eq!((world.state(1), world.state(3)), (Some("kept"), None), "{:#?}", world.log);
    // A worker that is to be replaced at any time would not fit.
    world.event(Event::MemoryShort { kept_bytes: 77 });
    world.run();
    assert_eq!((world.state(1), world.supervisor.given_up()), (None, Some((GenerationId(1), 77))));
    world.event(Event::MemoryShort { kept_bytes: 77 });
    world.room.bytes = None;
    world.reload(keeping(3), Behaviour::Healthy);
    world.run();
    assert_eq!(world.supervisor.given_up(), None);
}

#[test]
fn at_the_end_it_ends_too() {
    for ask in [Ask::Stop, Ask::StopNow] {
        for rolls_back in [false, true] {
            let mut world = kept();
            if rolls_back {
                world.roll_back(1, Behaviour::WorkersHang);
                world.run();
                assert!(matches!(world.supervisor.generation(GenerationId(1)).unwrap().keep, Keep::Lent { .. }));
            }
            world.ask(ask.clone());
            world.pass(MINUTE);
            assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0), "{ask:?} {rolls_back}");
        }
    }
}
