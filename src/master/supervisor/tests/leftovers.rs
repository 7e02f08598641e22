//! Processes that are on their way out: named, counted, bounded, and never waited for in silence.

use super::*;

#[test]
fn ten_deploys_of_an_application_with_a_thread_that_runs_on_each_end_at_once() {
    for surge in [Surge::Workers(1), Surge::All, Surge::Auto] {
        let mut world = World::new();
        let workers = Plan { surge, ..plan(2) };
        for generation in 1..=10 {
            world.reload(workers.clone(), Behaviour::ThreadRunsOn);
            world.pass(Duration::from_millis(100));
            assert_eq!(world.state(generation), Some("serving"), "{surge:?} {generation}: {:#?}", world.log);
        }
        world.pass(Duration::from_secs(26));
        assert_eq!(world.alive.len(), 2);
        assert!(world.logged("since thread 'bg' is not a daemon: killed"), "{:#?}", world.log);
    }
}

#[test]
fn ten_deploys_during_long_requests_each_end_at_once_and_the_oldest_requests_are_cut() {
    let mut world = World::new();
    for generation in 1..=10 {
        world.reload(plan(2), Behaviour::DrainsForEver);
        world.run();
        assert_eq!(world.state(generation), Some("serving"), "{:#?}", world.log);
    }
    // Three times two are left alone, the others have graceful_timeout.
    assert!(world.logged("leftovers gen=1: 2 processes have graceful_timeout (25.0s)"), "{:#?}", world.log);
    assert!(world.kills.is_empty());
    world.pass(Duration::from_secs(24));
    assert!(world.kills.is_empty());
    world.pass(Duration::from_secs(2));
    assert_eq!(world.alive.len(), 2 + 3 * 2);
    assert_eq!((world.state(6), world.state(7)), (None, Some("draining")));
}

#[test]
fn three_failed_deploys_do_not_block_the_one_that_repairs_it() {
    let mut world = World::serving(plan(2));
    for _ in 0..3 {
        world.reload(plan(2), Behaviour::OnlyCandidateBoots);
        while world.accepting(world.generation) == 0 {
            assert!(world.step());
        }
        world.behaviour.insert(GenerationId(world.generation), Behaviour::DrainsForEver);
        world.reload(plan(2), Behaviour::TemplateFails);
        world.run();
    }
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    assert_eq!(*world.last_verdict(), End::Committed);
}

#[test]
fn max_processes_bounds_all_processes_and_whoever_waits_for_room_says_so() {
    let bounded = Plan { max_processes: Some(6), ..plan(4) };
    let mut world = World::serving(bounded.clone());
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(bounded.clone(), Behaviour::Healthy);
    world.run();
    assert_eq!(world.state(2), Some("rolling"));
    assert!(world.logged("generation gen=2 waits for room for a worker (max_processes = 6)"), "{:#?}", world.log);
    let waiting = world.supervisor.generation(GenerationId(2)).and_then(Generation::waiting);
    assert!(waiting.is_some_and(|waiting| waiting.contains("processes that leave")));
    world.pass(MINUTE * 2);
    assert_eq!(*world.last_verdict(), End::Committed, "{:#?}", world.log);
    assert_eq!(world.most_processes, 6);
}

#[test]
fn without_room_for_a_candidate_the_asker_hears_why() {
    let bounded = Plan { max_processes: Some(4), ..plan(4) };
    let mut world = World::serving(bounded.clone());
    world.reload(bounded, Behaviour::Healthy);
    world.run();
    let End::Refused(refusal) = world.last_verdict() else { panic!("{:?}", world.verdicts) };
    assert!(refusal.reason.contains("max_processes = 4"), "{refusal:?}");
    assert_eq!((world.state(1), world.accepting(1)), (Some("serving"), 4));
}

#[test]
fn a_worker_that_has_finished_has_the_graceful_time_to_end() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::ThreadRunsOn);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert!(world.logged("draining -> finishing"), "{:#?}", world.log);
    world.pass(Duration::from_secs(24));
    assert!(world.kills.is_empty());
    world.pass(Duration::from_secs(2));
    assert_eq!((world.kills.len(), world.alive.len(), world.state(1)), (1, 1, None));
}

#[test]
fn recycling_does_not_pile_up_processes_that_leave() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    for _ in 0..20 {
        for worker in world.accepting.clone() {
            world.worker_event(worker, WorkerEvent::RequestsServed);
        }
        world.run();
    }
    assert_eq!((world.accepting(1), world.alive.len()), (2, 4), "as many leave as serve");
    // When they have left, the next ones go.
    let oldest = *world.alive.keys().next().unwrap();
    world.exit(oldest, Exit::Code(0));
    world.run();
    assert_eq!((world.accepting(1), world.alive.len()), (2, 4));
}

#[test]
fn what_does_not_die_is_given_up() {
    let mut world = World::serving(plan(1));
    world.nobody_dies = true;
    let stuck = world.some_worker(1);
    world.worker_event(stuck, WorkerEvent::Stuck(Stuck::Silent));
    world.pass(Duration::from_secs(40));
    assert!(world.logged("is still there after SIGKILL (state D?): given up"), "{:#?}", world.log);
    assert_eq!((world.accepting(1), world.supervisor.serving().unwrap().workers.len()), (1, 1));
    // Its end is nobody's news any more.
    world.worker_event(stuck, WorkerEvent::Exited(killed()));
    world.template_event(GenerationId(1), TemplateEvent::ChannelLost);
    world.pass(MINUTE);
    assert!(world.logged("template gen=1 is still there after SIGKILL"), "{:#?}", world.log);
    assert_eq!(world.templates.len(), 1, "another one was started");
}

#[test]
fn a_generation_that_serves_and_finds_no_room_for_a_worker_waits_on() {
    let mut world = World::serving(plan(2));
    // While the service is paused nobody is drained whose successor has not served.
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.run();
    for worker in world.alive.keys().copied().collect::<Vec<_>>() {
        world.exit(worker, killed());
    }
    world.pass(MINUTE);
    world.reload(Plan { max_processes: Some(4), ..plan(4) }, Behaviour::Healthy);
    world.run();
    // The new one takes the place of a worker whose template is away.
    world.template_event(GenerationId(1), TemplateEvent::Exited(killed()));
    let old = *world.alive.iter().find(|(_, of)| of.0 == 1).expect("there are two").0;
    world.exit(old, killed());
    world.pass(MINUTE * 5);
    assert!(world.logged("generation gen=1 waits for room for a worker (max_processes = 4)"), "{:#?}", world.log);
    world.ask(Ask::Resume);
    world.pass(MINUTE);
    assert_eq!((world.accepting(1), world.alive.len()), (2, 2), "{:#?}", world.log);
}

/// As found: a reload that waited for the room for its candidate waited for ever where its template was lost meanwhile, and
/// the kernel did not let that die.
#[test]
fn a_template_that_is_given_up_before_there_is_a_candidate_refuses_the_reload() {
    let plan = Plan { max_processes: Some(2), ..plan(1) };
    let mut world = World::serving(plan.clone());
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan.clone(), Behaviour::Healthy);
    world.run();
    let waits = world.reload(plan, Behaviour::Healthy);
    world.run();
    assert!(world.supervisor.generation(waits).is_some_and(|generation| generation.workers.is_empty()));
    world.nobody_dies = true;
    world.template_event(waits, TemplateEvent::ChannelLost);
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), End::Refused(_)), "{:#?}", world.log);
}

/// As found: where the workers were switched off, those of the release before were cut at once.
#[test]
fn switching_the_workers_off_takes_no_time_from_those_that_drain_already() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    let old = world.some_worker(1);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    world.ask(Ask::ScaleTo { workers: 0, wait: false });
    world.pass(Duration::from_secs(599));
    assert!(world.kills.is_empty(), "{:#?}", world.log);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.kills.get(&old), Some(&1));
}
