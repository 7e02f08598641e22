//! Reloads from the ask to their outcome, as an operator sees them.

use super::*;

#[test]
fn the_first_start_boots_all_slots_and_is_committed_by_the_first_worker() {
    let world = World::serving(plan(4));
    assert_eq!(world.accepting(1), 4);
    assert_eq!(world.verdicts, [(GenerationId(1), End::Committed)]);
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
    world.refuse_listeners = Some(ExitCode::InUse);
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
        assert_eq!(*world.last_verdict(), End::Committed);
        assert!(world.kills.is_empty());
    }
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
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}");
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
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}");
        assert_eq!(world.accepting, before);
        assert_eq!((world.alive.len(), world.templates.len()), (2, 1));
    }
}

#[test]
fn a_refusal_half_way_through_rolling_gives_the_old_release_all_its_workers_back() {
    let mut world = World::serving(plan(4));
    world.reload(plan(4), Behaviour::OnlyCandidateBoots);
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), End::Refused(_)));
    assert_eq!((world.accepting(1), world.alive.len(), world.templates.len()), (4, 4, 1));
    assert!(world.fewest_accepting >= 4, "capacity fell to {}", world.fewest_accepting);
}

#[test]
fn a_listener_that_cannot_be_opened_refuses_the_reload() {
    let mut world = World::serving(plan(2));
    let before = world.accepting.clone();
    world.refuse_listeners = Some(ExitCode::InUse);
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert!(matches!(world.last_verdict(), End::Refused(_)));
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
fn scaling_survives_a_reload() {
    let mut world = World::serving(plan(2));
    world.ask(Ask::Scale { by: 2, wait: false });
    world.run();
    assert_eq!(world.accepting(1), 4);
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!(world.accepting(2), 4);
    world.ask(Ask::Scale { by: -10, wait: false });
    world.run();
    assert_eq!(world.accepting(2), 1);
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
