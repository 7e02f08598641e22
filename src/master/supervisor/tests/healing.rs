//! Processes that die, hang or get stuck while a generation serves.

use super::super::worker::CHECK_STUCK_EVERY;
use super::*;

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
    world.worker_event(unborn.unwrap(), WorkerEvent::Exited(Exit::LostAtBirth));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting(1), 1);
}

/// As found: three workers that met the limit of open files ended a start, and no line named it.
#[test]
fn a_worker_that_there_is_no_room_for_now_is_tried_again() {
    let mut world = World::serving(plan(1));
    let worker = world.some_worker(1);
    let todo = world.supervisor.handle(Event::Worker { worker, event: WorkerEvent::Exited(killed()) }, world.now);
    world.alive.remove(&worker);
    world.accepting.remove(&worker);
    let unborn = todo.iter().find_map(|action| match action {
        Action::Spawn { worker, .. } => Some(*worker),
        _ => None,
    });
    world.worker_event(unborn.unwrap(), WorkerEvent::Exited(Exit::NoRoom(refusal("EMFILE"))));
    world.run();
    assert!(world.logged("generation gen=1 tries again to make a worker: EMFILE"), "{:#?}", world.log);
    assert_eq!(world.accepting(1), 0, "the next try waits");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting(1), 1);
    assert_eq!(world.supervisor.generations()[0].no_room, None);
}

#[test]
fn a_reload_does_not_wait_for_room_for_ever() {
    let mut world = World::serving(plan(1));
    let generation = world.reload(plan(1), Behaviour::ForksSlowly);
    world.run();
    let (began, mut tries) = (world.now, 0);
    while world.state(generation.0) == Some("proving") {
        let unborn = world.alive.iter().find(|(_, of)| **of == generation).map(|(worker, _)| *worker);
        let Some(unborn) = unborn else {
            world.pass(Duration::from_millis(100));
            continue;
        };
        tries += 1;
        world.exit(unborn, Exit::NoRoom(refusal("EMFILE")));
        world.run();
    }
    assert!(matches!(world.last_verdict(), End::Refused(refusal) if refusal.reason == "EMFILE"));
    assert!(world.now - began >= Duration::from_secs(10) && (4..10).contains(&tries), "{tries}");
    assert_eq!(world.accepting(1), 1);
}

#[test]
fn a_stuck_worker_is_replaced_first_and_then_killed() {
    let mut world = World::serving(plan(1));
    let stuck = world.some_worker(1);
    world.worker_event(stuck, WorkerEvent::Stuck(Stuck::Request(7)));
    let dumped = world.todo.iter().position(|action| *action == Action::AskStacks { worker: stuck });
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
fn a_stuck_worker_is_asked_after_once_each_time() {
    let mut world = World::serving(plan(1));
    let stuck = world.some_worker(1);
    world.worker_event(stuck, WorkerEvent::Stuck(Stuck::Request(7)));
    world.worker_event(stuck, WorkerEvent::Stacks { text: "stacks".to_owned() });
    // Nothing more is carried out: nobody answers, and no successor comes.
    world.now += plan(1).graceful_timeout;
    for _ in 0..3 {
        let actions = world.supervisor.handle(Event::Tick, world.now);
        let asked = actions.iter().filter(|action| matches!(action, Action::CheckStuck { .. })).count();
        assert_eq!(asked, 1, "{actions:?}");
        world.now += CHECK_STUCK_EVERY;
    }
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

/// TERM to a worker, or an application that ends itself.
#[test]
fn a_worker_that_wants_to_leave_serves_until_its_successor_does() {
    let mut world = World::serving(plan(1));
    let leaving = world.some_worker(1);
    world.worker_event(leaving, WorkerEvent::Leaving { reason: "signal TERM".to_owned() });
    world.worker_event(leaving, WorkerEvent::Leaving { reason: "signal TERM".to_owned() });
    assert!(world.accepting.contains(&leaving));
    world.run();
    assert!(!world.alive.contains_key(&leaving));
    assert_eq!(world.accepting(1), 1);
    assert!(world.fewest_accepting >= 1 && world.kills.is_empty());
}

/// systemd sends TERM to all processes at once, and the master may be the last to hear of it.
#[test]
fn workers_that_were_told_before_their_master_serve_until_it_stops_them() {
    let mut world = World::serving(plan(2));
    let workers: Vec<_> = world.accepting.iter().copied().collect();
    for worker in &workers {
        world.worker_event(*worker, WorkerEvent::Leaving { reason: "signal TERM".to_owned() });
    }
    assert!(workers.iter().all(|worker| world.accepting.contains(worker)));
    world.ask(Ask::Stop);
    for worker in workers {
        assert!(world.todo.contains(&Action::StopWorker { worker }), "{:?}", world.todo);
    }
    world.run();
    assert_eq!((world.exit, world.alive.len()), (Some(0), 0));
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
fn a_template_that_dies_during_the_shutdown_delay_comes_back() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(2) });
    world.ask(Ask::Stop);
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
    assert!(matches!(world.last_verdict(), End::Refused(_)), "{:?}", world.verdicts);
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
    assert_eq!(*world.last_verdict(), End::Committed);
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
    world.pass(Duration::from_secs(4));
    assert!(!world.log.iter().any(|line| line.contains("does not fork")));
    world.pass(Duration::from_secs(2));
    assert!(world.log.iter().any(|line| line.contains("template gen=1 does not fork: killed")), "{:#?}", world.log);
    // What it held was its copy of the worker's channel.
    world.alive.remove(&unborn);
    world.worker_event(unborn, WorkerEvent::Exited(Exit::LostAtBirth));
    world.pass(Duration::from_secs(10));
    assert_eq!((world.accepting(1), world.alive.len(), world.templates.len()), (2, 2, 1));
}

/// Two hundred boots leave the template little of the processors: it is late, and does not hang.
#[test]
fn a_template_among_many_workers_that_boot_has_longer_to_fork() {
    for (workers, limit) in [(3, 5), (200, 10)] {
        let mut world = World::new();
        world.reload(plan(workers), Behaviour::Healthy);
        let (candidate, last) = (WorkerId(1), WorkerId(u64::from(workers)));
        loop {
            // All but the first one boot for long, and the last one is not forked.
            world.happenings.retain(|happening| match happening {
                Happening::Worker(worker, WorkerEvent::Ready(_)) => *worker == candidate,
                Happening::Worker(worker, WorkerEvent::Forked { .. }) => *worker != last,
                Happening::Worker(..) | Happening::Template(..) | Happening::Command(_) | Happening::Service(..) => {
                    true
                }
            });
            if !world.step() {
                break;
            }
        }
        let does_not_fork = "template gen=1 does not fork";
        world.pass(Duration::from_secs(limit) - Duration::from_millis(200));
        assert!(!world.logged(does_not_fork), "{workers} workers");
        world.pass(Duration::from_secs(3));
        assert!(world.logged(does_not_fork), "{workers} workers: {:#?}", world.log.last());
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
        assert!(matches!(world.last_verdict(), End::Refused(_)));
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

/// It goes on serving, and nobody could tell it to drain.
#[test]
fn a_serving_worker_that_talks_nonsense_is_killed_and_replaced() {
    let mut world = World::serving(plan(1));
    let worker = world.some_worker(1);
    world.worker_event(worker, WorkerEvent::Garbled);
    world.run();
    assert_eq!(world.kills.get(&worker), Some(&1));
    world.pass(Duration::from_secs(1));
    assert_ne!(world.some_worker(1), worker);
}

#[test]
fn a_serving_worker_that_ends_without_a_word_is_an_error_also_with_exit_code_0() {
    for exit in [Exit::Code(0), Exit::Code(7), killed()] {
        let mut world = World::serving(plan(1));
        let worker = world.some_worker(1);
        world.worker_event(worker, WorkerEvent::ChannelLost);
        let actions = world.supervisor.handle(Event::Worker { worker, event: WorkerEvent::Exited(exit) }, world.now);
        let error = |action: &Action| matches!(action, Action::Note(note) if note.level() == log::Level::Error && note.to_string().contains("-> gone"));
        assert!(actions.iter().any(error), "{actions:#?}");
    }
}

/// As found: a stuck request gave a worker that drains its whole time again, and the next one once more.
#[test]
fn a_stuck_request_gives_a_draining_worker_no_more_time() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    let old = world.some_worker(1);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    // Of its 600 seconds.
    world.pass(Duration::from_secs(590));
    world.worker_event(old, WorkerEvent::Stuck(Stuck::Request(7)));
    world.worker_event(old, WorkerEvent::Unstuck);
    world.pass(Duration::from_secs(11));
    assert_eq!(world.kills.get(&old), Some(&1), "{:#?}", world.log);
}

/// As found: a worker that had been recycled, and still drained, was called back in place of the one that served in its slot.
#[test]
fn a_refused_release_calls_back_who_served_and_nobody_who_had_left_before() {
    let plan = Plan { surge: Surge::All, ..plan(1) };
    let mut world = World::serving(plan.clone());
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    let recycled = world.some_worker(1);
    world.ask(Ask::Recycle { slot: SlotIndex(0), keep: None, wait: false });
    world.run();
    let served = world.some_worker(1);
    assert_ne!(recycled, served);
    world.reload(plan, Behaviour::DiesServing);
    world.run();
    assert_eq!(world.accepting, BTreeSet::from([served]), "{:#?}", world.log);
}

/// As found: where the one that served was gone by then, the one that had been recycled was called back after all.
#[test]
fn a_refused_release_calls_back_nobody_in_place_of_who_died() {
    let plan = Plan { surge: Surge::All, ..plan(1) };
    let mut world = World::serving(plan.clone());
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    let recycled = world.some_worker(1);
    world.ask(Ask::Recycle { slot: SlotIndex(0), keep: None, wait: false });
    world.run();
    let served = world.some_worker(1);
    world.reload(plan, Behaviour::ServesMutely);
    world.run();
    assert!(world.accepting.is_empty(), "{:#?}", world.log);
    world.worker_event(served, WorkerEvent::Exited(Exit::Signal { number: 9, core: false }));
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), End::Refused(_)));
    assert!(world.accepting(1) == 1 && !world.accepting.contains(&recycled), "{:#?}", world.log);
}

/// As found: a worker that had booted, and was killed before it served, was told as `ready -> starting` and `failed to boot`.
#[test]
fn a_ready_worker_that_dies_has_not_failed_to_boot() {
    for says_before in [Some(WorkerEvent::ChannelLost), Some(WorkerEvent::Garbled), None] {
        let mut world = World::serving(plan(1));
        world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
        world.run();
        world.ask(Ask::Scale { by: 1, wait: false });
        world.run();
        let ready = *world.alive.last_key_value().unwrap().0;
        world.log.clear();
        says_before.clone().into_iter().for_each(|event| world.worker_event(ready, event));
        world.worker_event(ready, WorkerEvent::Exited(Exit::Signal { number: 9, core: false }));
        world.run();
        let told = world.log.iter().find(|line| line.contains(" lost, next try in "));
        assert!(told.is_some_and(|line| line.contains("died before it served: SIGKILL")), "{:#?}", world.log);
        assert!(!world.logged("failed to boot") && !world.logged("-> starting"), "{:#?}", world.log);
        assert_eq!(world.logged("ready -> lost"), says_before.is_some(), "{:#?}", world.log);
        world.pass(MINUTE);
        world.ask(Ask::Resume);
        world.run();
        assert_eq!(world.accepting(1), 2, "{:#?}", world.log);
    }
}

/// As found: what closed its channel and did not end was said to be late, long before it was.
#[test]
fn a_boot_that_lost_its_channel_is_not_said_to_be_late() {
    let mut world = World::serving(plan(1));
    world.reload(plan(1), Behaviour::WorkersHang);
    world.run();
    let candidate = *world.alive.keys().last().unwrap();
    world.worker_event(candidate, WorkerEvent::ChannelLost);
    world.pass(Duration::from_secs(6));
    let refused = format!("{:?}", world.last_verdict());
    assert!(refused.contains("closed its channel") && !refused.contains("boot_timeout"), "{refused}");

    let template = world.reload(plan(1), Behaviour::TemplateHangs);
    world.run();
    world.template_event(template, TemplateEvent::ChannelLost);
    world.pass(Duration::from_secs(6));
    let refused = format!("{:?}", world.last_verdict());
    assert!(refused.contains("closed its channel") && !refused.contains("boot_timeout"), "{refused}");
}
