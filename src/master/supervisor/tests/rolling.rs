//! How the new workers take the old ones' places: in one step, in waves, and back again when one fails.

use super::*;

const MIB: u64 = 1024 * 1024;

fn all(workers: u32) -> Plan {
    Plan { surge: Surge::All, ..plan(workers) }
}

fn auto(workers: u32) -> Plan {
    Plan { surge: Surge::Auto, ..plan(workers) }
}

/// A world with so much free memory for `auto`, in which a worker costs 100 MiB and its boot sleeps.
fn with_room(plan: Plan, free_mib: u64) -> World {
    let mut world = World::serving(plan);
    world.room = Room { bytes: Some(free_mib * MIB), processors: 2, worker_bytes: 0 };
    let (wall, cpu) = (Duration::from_millis(800), Duration::from_millis(50));
    world.boot = Boot { private_bytes: 80 * MIB, wall, cpu };
    world.most_processes = 0;
    world
}

#[test]
fn in_one_step_no_old_worker_accepts_when_the_first_new_one_does() {
    for surge in [Surge::All, Surge::Auto] {
        let mut world = with_room(Plan { surge, ..plan(3) }, 4096);
        world.reload(Plan { surge, ..plan(3) }, Behaviour::Healthy);
        while world.accepting(2) == 0 {
            assert_eq!(world.accepting(1) + world.accepting(2), 3, "nobody drains before all new ones are ready");
            let action = world.todo.pop_front();
            match action {
                // All are told in one breath: what is between them is the gap.
                Some(Action::Drain { worker, keep, yields }) => {
                    assert!(yields, "it must stay until the new ones are told to serve");
                    world.carry_out(Action::Drain { worker, keep, yields });
                    while world.accepting(1) > 0 {
                        let action = world.todo.pop_front().expect("all old workers are told to drain at once");
                        assert!(!matches!(action, Action::Serve { .. }), "a new one serves beside an old one");
                        world.carry_out(action);
                    }
                    while world.accepting(2) == 0 {
                        assert!(world.step());
                        assert_eq!(world.accepting(1), 0);
                    }
                }
                Some(action) => world.carry_out(action),
                None => assert!(world.step()),
            }
        }
        assert_eq!(world.most_processes, 6, "{surge:?}");
        world.run();
        assert_eq!((world.accepting(2), world.alive.len()), (3, 3));
        assert_eq!(*world.last_verdict(), End::Committed);
    }
}

#[test]
fn a_service_is_ready_at_each_moment_of_a_reload_good_or_bad() {
    let short = |surge| Plan { surge, ..plan(2) };
    for surge in [Surge::All, Surge::Auto, Surge::Workers(1)] {
        for behaviour in [Behaviour::Healthy, Behaviour::WorkersFail, Behaviour::DiesServing, Behaviour::ServesMutely] {
            let mut world = with_room(short(surge), 4096);
            world.unready = false;
            world.reload(short(surge), behaviour);
            world.pass(MINUTE);
            let committed = *world.last_verdict() == End::Committed;
            assert_eq!(committed, behaviour == Behaviour::Healthy, "{surge:?} {behaviour:?}");
            assert!(!world.unready, "{surge:?} {behaviour:?} {:#?}", world.log);
        }
    }
}

#[test]
fn an_old_worker_that_does_not_confirm_is_not_waited_for() {
    let mut world = World::serving(all(2));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsMutely);
    world.reload(all(2), Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(1), world.accepting(2)), (0, 0));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.accepting(2), 2);
    world.pass(Duration::from_secs(11));
    assert_eq!(*world.last_verdict(), End::Committed);
}

#[test]
fn a_stopped_old_worker_does_not_make_a_reload_fail_whose_boot_timeout_is_short() {
    for surge in [Surge::Workers(1), Surge::All] {
        let short = Plan { surge, boot_timeout: Duration::from_secs(3), ..plan(2) };
        let mut world = World::serving(short.clone());
        world.behaviour.insert(GenerationId(1), Behaviour::DrainsMutely);
        world.reload(short, Behaviour::Healthy);
        world.pass(Duration::from_secs(25));
        assert_eq!(*world.last_verdict(), End::Committed, "{surge:?} {:#?}", world.log);
    }
}

#[test]
fn a_new_worker_that_fails_as_it_takes_over_brings_all_old_ones_back() {
    for (behaviour, within) in [(Behaviour::DiesServing, 0), (Behaviour::ServesMutely, 4)] {
        let mut world = World::serving(all(3));
        world.reload(all(3), behaviour);
        world.pass(Duration::from_secs(within));
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?} {:#?}", world.log);
        assert_eq!(world.accepting(1), 3, "{behaviour:?}");
        world.pass(MINUTE);
        assert_eq!((world.accepting(1), world.alive.len(), world.templates.len()), (3, 3, 1));
    }
}

#[test]
fn room_for_two_more_makes_waves_and_never_fewer_workers() {
    let mut world = with_room(auto(8), 230);
    world.reload(auto(8), Behaviour::Healthy);
    world.run();
    assert_eq!(*world.last_verdict(), End::Committed);
    assert_eq!(world.most_processes, 8 + 1 + 2, "the candidate and two more");
    assert!(world.fewest_accepting >= 8, "{}", world.fewest_accepting);
    assert!(world.logged("generation gen=2 rolling: 2 at once (100 MiB each, 230 MiB free)"), "{:#?}", world.log);
}

#[test]
fn room_for_none_changes_one_by_one_with_a_worker_fewer() {
    let mut world = with_room(auto(4), 20);
    world.reload(auto(4), Behaviour::Healthy);
    world.run();
    assert_eq!(*world.last_verdict(), End::Committed);
    assert_eq!(world.most_processes, 5, "no more than the candidate");
    assert!(world.fewest_accepting >= 3, "{}", world.fewest_accepting);

    let mut world = with_room(auto(1), 0);
    world.reload(auto(1), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(2), world.most_processes), (Some("serving"), 2));
}

#[test]
fn waves_do_not_wait_for_long_requests_beyond_the_graceful_time() {
    let mut world = with_room(auto(4), 120);
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(auto(4), Behaviour::Healthy);
    world.run();
    assert_eq!(world.state(2), Some("rolling"));
    assert!(world.logged("generation gen=2 waits for room"), "{:#?}", world.log);
    world.pass(MINUTE * 3);
    assert_eq!(*world.last_verdict(), End::Committed, "{:#?}", world.log);
    assert!(world.most_processes <= 6);
}

#[test]
fn boots_that_compute_leave_processors_to_those_who_serve() {
    let mut world = with_room(auto(8), 4096);
    let second = Duration::from_secs(1);
    world.boot = Boot { private_bytes: MIB, wall: second, cpu: second };
    world.reload(auto(8), Behaviour::Healthy);
    let mut most = 0;
    while world.step() {
        let booting = |generation: &Generation| {
            generation.workers.iter().filter(|worker| matches!(worker.state, WorkerState::Starting { .. })).count()
        };
        most = most.max(world.supervisor.generation(GenerationId(2)).map_or(0, booting));
    }
    assert_eq!((most, world.state(2)), (2, Some("serving")));
    assert!(world.logged("rolling: 8 at once") && world.logged("2 boot at a time"), "{:#?}", world.log);
}

#[test]
fn only_a_candidate_that_others_follow_is_asked_for_its_memory() {
    for (workers, weighed) in [(1, 0), (4, 1)] {
        let mut world = World::serving(auto(workers));
        let at_start = world.weighed;
        world.reload(auto(workers), Behaviour::Healthy);
        world.run();
        assert_eq!((at_start, world.weighed), (weighed, 2 * weighed), "{workers} workers");
    }
}

#[test]
fn many_workers_are_forked_a_few_at_a_time() {
    let mut world = World::serving(all(150));
    world.reload(all(150), Behaviour::Healthy);
    let mut most = 0;
    while world.step() {
        most = most.max(world.supervisor.generations().iter().map(Generation::unborn).max().unwrap_or(0));
    }
    assert_eq!((most, world.accepting(2)), (64, 150));
}

#[test]
fn a_room_that_cannot_be_measured_is_not_waited_for() {
    let mut world = World::serving(auto(2));
    let generation = world.reload(auto(2), Behaviour::Healthy);
    while !world.todo.iter().any(|action| matches!(action, Action::MeasureRoom { .. })) {
        assert!(!world.todo.is_empty() || world.step());
        if let Some(action) = world.todo.pop_front() {
            match action {
                Action::MeasureRoom { .. } => break,
                action => world.carry_out(action),
            }
        }
    }
    world.todo.retain(|action| !matches!(action, Action::MeasureRoom { .. }));
    world.pass(Duration::from_secs(3));
    assert_eq!((world.accepting(generation.0), world.alive.len()), (2, 2));
}
