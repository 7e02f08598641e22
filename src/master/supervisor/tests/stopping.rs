//! TERM, and TERM again.

use super::*;

#[test]
fn term_finishes_what_runs_in_every_state() {
    // Serving.
    let mut world = World::serving(plan(2));
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
    assert!(world.kills.is_empty());

    // Proving, at first start and later.
    let mut world = World::new();
    world.reload(plan(2), Behaviour::WorkersHang);
    world.run();
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
    let mut world = World::serving(plan(2));
    world.reload(plan(2), Behaviour::WorkersHang);
    world.run();
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (Some(0), 1), "only the candidate is killed");
    assert_eq!(*world.last_verdict(), End::Stopped);

    // At every step of rolling.
    for steps in 0..20 {
        let mut world = World::serving(plan(2));
        world.reload(plan(2), Behaviour::Healthy);
        for _ in 0..steps {
            world.step();
        }
        world.ask(Ask::Stop);
        world.pass(MINUTE);
        assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0), "after {steps} steps");
    }

    // Draining.
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    world.ask(Ask::Stop);
    world.pass(Duration::from_secs(24));
    assert_eq!((world.exit, world.alive.len()), (None, 1));
    world.pass(Duration::from_secs(2));
    assert_eq!((world.exit, world.kills.len()), (Some(0), 1));
}

/// As found: at a stop a worker that was drained took what lay in the queue, and answered with its old release.
#[test]
fn what_waits_at_a_stop_is_for_the_release_that_serves() {
    let mut world = World::serving(plan(1));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    let old: Vec<_> =
        world.alive.iter().filter(|(_, generation)| generation.0 == 1).map(|(worker, _)| *worker).collect();
    assert_eq!(world.aside, old.into_iter().collect(), "the new release has committed");

    // Given up in the middle of taking over.
    let mut seen = 0;
    for steps in 0..40 {
        let mut world = World::serving(plan(1));
        world.reload(Plan { surge: Surge::All, ..plan(1) }, Behaviour::Healthy);
        for _ in 0..steps {
            world.step();
        }
        let (alive, committed) = (world.alive.clone(), world.state(2) == Some("serving"));
        world.ask(Ask::Stop);
        world.run();
        // Who is not among them had ended before.
        let is_replaced = |worker: &WorkerId| {
            alive.get(worker).is_none_or(|generation| generation.0 == if committed { 1 } else { 2 })
        };
        assert!(world.aside.iter().all(is_replaced), "after {steps} steps: {:?} of {alive:?}", world.aside);
        seen += usize::from(!committed && !world.aside.is_empty());
    }
    assert!(seen > 0, "no stop came while the new release had served and the old one was to serve again");
}

#[test]
fn the_shutdown_delay_goes_on_accepting_and_a_second_term_ends_it() {
    let delayed = Plan { shutdown_delay: Duration::from_secs(10), ..plan(2) };
    let mut world = World::serving(delayed.clone());
    world.ask(Ask::Stop);
    world.pass(Duration::from_secs(9));
    assert_eq!(world.accepting(1), 2);
    assert!(matches!(world.supervisor.phase(), Phase::Delaying { .. }));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.exit, Some(0));
    assert!(world.kills.is_empty());

    let mut world = World::serving(delayed);
    world.ask(Ask::Stop);
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (Some(0), 2));
}

/// A service manager's own limit counts from its TERM as well.
#[test]
fn the_shutdown_delay_is_part_of_the_graceful_timeout() {
    let delayed = Plan { shutdown_delay: Duration::from_secs(10), ..plan(1) };
    let mut world = World::serving(delayed);
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.ask(Ask::Stop);
    world.pass(Duration::from_secs(24));
    assert_eq!(world.exit, None);
    world.pass(Duration::from_secs(2));
    assert_eq!((world.exit, world.kills.len()), (Some(0), 1));
}

#[test]
fn a_hup_after_term_changes_nothing() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(1) });
    world.ask(Ask::Stop);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!(*world.last_verdict(), End::Stopped);
    assert_eq!((world.state(1), world.state(2)), (Some("serving"), None));
}

#[test]
fn scaling_during_the_shutdown_delay_does_not_end_the_master() {
    let mut world = World::serving(Plan { shutdown_delay: MINUTE, ..plan(2) });
    world.ask(Ask::Stop);
    world.ask(Ask::Scale { by: 1, wait: false });
    world.run();
    assert_eq!(world.accepting(1), 3);
    world.pass(MINUTE * 2);
    assert_eq!((world.exit, world.alive.len()), (Some(0), 0));
}

#[test]
fn stopping_at_once_while_a_release_proves_itself_is_no_refusal() {
    for first_start in [true, false] {
        let mut world = if first_start { World::new() } else { World::serving(plan(1)) };
        world.reload(plan(1), Behaviour::WorkersHang);
        world.run();
        world.verdicts.clear();
        world.ask(Ask::StopNow);
        world.run();
        assert_eq!(world.exit, Some(0));
        assert_eq!(world.verdicts, [(GenerationId(world.generation), End::Stopped)]);
        assert!(!world.log.iter().any(|line| line.contains("refused")), "{:#?}", world.log);
    }
}

#[test]
fn a_term_after_a_clients_stop_is_in_no_hurry() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Stop });
    // systemd sends it when ExecStop has returned.
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (None, 0));
    assert_eq!(world.answers, [(AskId(1), Outcome::Stopping)]);
    world.ask(Ask::Stop);
    world.run();
    assert_eq!((world.exit, world.kills.len()), (Some(0), 2));
}

#[test]
fn the_end_of_the_graceful_time_says_what_is_cut_and_what_only_does_not_end() {
    for (drained, words) in [
        (false, "graceful_timeout is over: cutting what still runs"),
        (true, "graceful_timeout is over: killing 2 processes that serve nothing and do not end"),
    ] {
        let mut world = World::serving(plan(2));
        world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
        world.ask(Ask::Stop);
        world.pass(Duration::from_secs(5));
        for worker in world.alive.keys().filter(|_| drained).copied().collect::<Vec<_>>() {
            world.worker_event(worker, WorkerEvent::Drained { threads: vec!["bg".to_owned()] });
        }
        world.pass(Duration::from_secs(21));
        assert!(world.logged(words), "{:#?}", world.log);
        assert_eq!(drained, world.logged("since thread 'bg' is not a daemon"));
        assert_eq!((world.exit, world.alive.len()), (Some(0), 0));
    }
}

/// As found: the end of a first start killed the workers, and the one whose word had brought it about was told to drain after that.
#[test]
fn who_was_killed_at_the_end_of_a_first_start_is_told_nothing_more() {
    let words = [
        WorkerEvent::Leaving { reason: "TERM".to_owned() },
        WorkerEvent::ChannelLost,
        WorkerEvent::Drained { threads: Vec::new() },
    ];
    for word in words {
        let mut world = World::new();
        world.reload(plan(3), Behaviour::ServesMutely);
        world.run();
        for worker in world.alive.keys().copied().collect::<Vec<_>>() {
            world.worker_event(worker, word.clone());
        }
        world.pass(MINUTE);
        assert!(world.exit.is_some_and(|code| code != 0), "{word:?}");
        assert!(world.kills.values().all(|kills| *kills == 1), "{word:?}: {:#?}", world.log);
        let goes_on = |line: &String| line.contains(" killed -> ") && !line.contains(" killed -> gone ");
        assert!(!world.log.iter().any(goes_on), "{word:?}: {:#?}", world.log);
    }
}

/// As found: whoever asked while the shutdown was delayed, and waited, had no answer.
#[test]
fn who_asks_while_the_shutdown_is_delayed_hears_that_it_stops() {
    let mut world = World::serving(Plan { shutdown_delay: Duration::from_secs(10), ..plan(2) });
    world.behaviour.insert(GenerationId(1), Behaviour::WorkersHang);
    world.ask(Ask::Stop);
    let asks = [Ask::Scale { by: 1, wait: true }, Ask::Recycle { slot: SlotIndex(0), keep: None, wait: true }];
    for (ask, number) in asks.into_iter().zip(1..) {
        world.event(Event::Ask { asker: Some(AskId(number)), ask });
    }
    world.pass(MINUTE);
    assert_eq!(world.exit, Some(0));
    let refused = |outcome: &Outcome| *outcome == Outcome::Refused(Refusal::stopping());
    assert_eq!(world.answers.len(), 2, "{:#?}", world.answers);
    assert!(world.answers.iter().all(|(_, outcome)| refused(outcome)), "{:#?}", world.answers);
}

/// As found: the moment at which clients were to be turned away passed after the end, and the master never slept again.
#[test]
fn a_pause_has_no_deadlines_after_the_end() {
    for state in [Duration::from_secs(5), MINUTE] {
        let mut world = World::serving(plan(1));
        world.behaviour.insert(GenerationId(1), Behaviour::Streams);
        let maintenance = Some(maintenance(Duration::from_secs(20), None));
        world.ask(Ask::Pause { timeout: state, maintenance });
        world.run();
        world.ask(Ask::StopNow);
        world.pass(MINUTE * 2);
        assert_eq!((world.exit, world.supervisor.next_deadline()), (Some(0), None));
    }
}
