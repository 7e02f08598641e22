//! Who asks, and what each hears: exactly one answer, with the true reason.

use super::*;

impl World {
    /// A client asks.
    fn client(&mut self, number: u64, ask: Ask) {
        self.event(Event::Ask { asker: Some(AskId(number)), ask });
        self.carry_out_all();
    }

    /// The configuration that a client has asked for is good.
    fn configured(&mut self, plan: Plan, behaviour: Behaviour) -> GenerationId {
        let asker = self.configure.pop_front().expect("the configuration was asked for");
        self.generation += 1;
        let generation = GenerationId(self.generation);
        self.behaviour.insert(generation, behaviour);
        self.event(Event::Configured {
            verb: Verb::Reload,
            askers: asker.into_iter().collect(),
            began: self.now,
            result: Ok((generation, plan)),
        });
        generation
    }

    fn ends(&self, number: u64) -> Vec<&End> {
        let of = |answer: &&(AskId, Outcome)| answer.0 == AskId(number);
        let end = |(_, outcome): &'_ (AskId, Outcome)| matches!(outcome, Outcome::Reload(_));
        let found = self.answers.iter().filter(of).filter(|answer| end(answer));
        found
            .map(|(_, outcome)| match outcome {
                Outcome::Reload(reload) => &reload.end,
                Outcome::Begun { .. }
                | Outcome::Ready
                | Outcome::Scaled { .. }
                | Outcome::ServiceScaled { .. }
                | Outcome::Recycled { .. }
                | Outcome::Dumped(_)
                | Outcome::Paused
                | Outcome::Resumed
                | Outcome::Asked
                | Outcome::Stopping
                | Outcome::Refused(_) => unreachable!("filtered"),
            })
            .collect()
    }
}

#[test]
fn a_reload_is_answered_once_with_how_it_ended() {
    let mut world = World::serving(plan(1));
    world.client(1, Ask::Reload { deploy: ON_DISK, wait: true });
    world.configured(plan(1), Behaviour::WorkersHang);
    world.run();
    assert!(world.answers.is_empty());
    world.client(2, Ask::Reload { deploy: ON_DISK, wait: true });
    let third = world.configured(plan(1), Behaviour::WorkersFail);
    assert_eq!(world.ends(1), Vec::<&End>::new(), "the answer is on its way");
    world.run();
    assert_eq!(world.ends(1), [&End::Superseded { by: third }]);
    assert!(matches!(world.ends(2)[..], [End::Refused(refusal)] if refusal.reason == "ImportError: no"));
    world.client(3, Ask::Reload { deploy: ON_DISK, wait: true });
    world.configured(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!(world.ends(3), [&End::Committed]);
    world.client(4, Ask::Reload { deploy: ON_DISK, wait: true });
    world.configured(plan(1), Behaviour::WorkersHang);
    world.run();
    world.ask(Ask::Stop);
    world.run();
    assert_eq!(world.ends(4), [&End::Stopped]);
    assert_eq!(world.answers.len(), 4);
}

#[test]
fn a_configuration_that_is_refused_changes_nothing_and_says_why() {
    let mut world = World::serving(plan(1));
    world.client(1, Ask::Reload { deploy: ON_DISK, wait: true });
    let asker = world.configure.pop_front().unwrap();
    world.event(Event::Configured {
        verb: Verb::Reload,
        askers: asker.into_iter().collect(),
        began: world.now,
        result: Err(Refusal::new("workers: not a number")),
    });
    world.run();
    assert!(matches!(world.ends(1)[..], [End::Refused(refusal)] if refusal.reason == "workers: not a number"));
    assert!(world.logged("reload refused, nothing has changed: workers: not a number"));
    assert_eq!(world.state(1), Some("serving"));
}

/// As found: the log called a rollback that was refused a reload.
#[test]
fn what_is_refused_is_called_what_was_asked_for() {
    let mut world = World::serving(plan(1));
    for deploy in [ON_DISK, Deploy::Back { to: None }] {
        let (verb, result) = (deploy.verb(), Err(Refusal::new("it is gone")));
        world.event(Event::Configured { verb, askers: Vec::new(), began: world.now, result });
        world.run();
        assert_eq!(world.log.last().unwrap(), &format!("{verb} refused, nothing has changed: it is gone"));
        assert_eq!(world.concluded.last().unwrap().verb, verb);
    }
    assert_eq!(world.concluded.last().unwrap().verb, Verb::Rollback);
}

/// The configuration takes long to read: everybody who asks meanwhile has the next reading.
#[test]
fn those_who_asked_meanwhile_have_one_generation() {
    let mut world = World::serving(plan(1));
    let waits = [(1, true), (2, false), (3, true)];
    for (number, wait) in waits {
        world.client(number, Ask::Reload { deploy: ON_DISK, wait });
    }
    world.configure.clear();
    let generation = GenerationId(2);
    world.generation = 2;
    world.behaviour.insert(generation, Behaviour::Healthy);
    let askers: Vec<AskId> = waits.iter().map(|(number, _)| AskId(*number)).collect();
    world.event(Event::Configured {
        verb: Verb::Reload,
        askers: askers.clone(),
        began: world.now,
        result: Ok((generation, plan(1))),
    });
    world.run();
    assert_eq!((world.ends(1), world.ends(3)), (vec![&End::Committed], vec![&End::Committed]));
    assert!(world.answers.contains(&(AskId(2), Outcome::Begun { generation })));
    world.client(1, Ask::Reload { deploy: ON_DISK, wait: true });
    world.client(3, Ask::Reload { deploy: ON_DISK, wait: true });
    world.configure.clear();
    let result = Err(Refusal::new("workers: not a number"));
    world.event(Event::Configured { verb: Verb::Reload, askers, began: world.now, result });
    world.run();
    assert_eq!((world.ends(1).len(), world.ends(3).len(), world.answers.len()), (2, 2, 5));
}

#[test]
fn whoever_does_not_wait_hears_the_number_at_once() {
    let mut world = World::serving(plan(1));
    world.client(1, Ask::Reload { deploy: ON_DISK, wait: false });
    let generation = world.configured(plan(1), Behaviour::WorkersHang);
    world.run();
    assert_eq!(world.answers, [(AskId(1), Outcome::Begun { generation })]);
}

#[test]
fn whoever_left_is_not_answered_and_not_kept() {
    let mut world = World::new();
    world.client(1, Ask::Ready);
    assert_eq!(world.supervisor.asking().collect::<Vec<_>>(), [AskId(1)]);
    world.event(Event::Left { ask: AskId(1) });
    assert_eq!(world.supervisor.asking().count(), 0);
    world.client(2, Ask::Ready);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!(world.answers, [(AskId(2), Outcome::Ready)]);
}

#[test]
fn whoever_waits_for_readiness_hears_of_the_stop() {
    let mut world = World::new();
    world.reload(plan(1), Behaviour::WorkersHang);
    world.client(1, Ask::Ready);
    world.client(2, Ask::Reload { deploy: ON_DISK, wait: true });
    world.ask(Ask::Stop);
    world.run();
    let refused = Outcome::Refused(Refusal::stopping());
    assert_eq!(world.answers, [(AskId(1), refused.clone()), (AskId(2), refused.clone())]);
    world.client(3, Ask::Reload { deploy: ON_DISK, wait: true });
    assert_eq!(world.answers.last(), Some(&(AskId(3), refused)));
}

#[test]
fn more_workers_than_the_scoreboard_has_room_for_are_refused() {
    let mut world = World::serving(plan(1));
    for _ in 0..100 {
        world.ask(Ask::Scale { by: 1, wait: false });
    }
    world.run();
    assert_eq!(world.accepting(1), 22);
    world.client(1, Ask::Scale { by: 1, wait: false });
    assert!(matches!(world.answers.last(), Some((AskId(1), Outcome::Refused(_)))));
    world.client(2, Ask::Scale { by: -1, wait: false });
    assert_eq!(world.answers.last(), Some(&(AskId(2), Outcome::Scaled { workers: 21 })));
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(2), world.accepting(2)), (Some("serving"), 21));
}

#[test]
fn whoever_asked_hears_why_a_worker_was_never_born() {
    let mut world = World::serving(plan(1));
    let generation = world.reload(plan(1), Behaviour::ForksSlowly);
    world.run();
    let unborn = *world.alive.iter().find(|(_, of)| **of == generation).unwrap().0;
    world.exit(unborn, Exit::NeverBorn(Refusal::new("the worker could not be forked: EAGAIN")));
    world.run();
    assert!(matches!(world.last_verdict(), End::Refused(refusal) if refusal.reason.ends_with("EAGAIN")));
}

#[test]
fn a_template_that_does_not_fork_the_candidate_is_the_reason_that_the_asker_hears() {
    let mut world = World::serving(plan(1));
    world.reload(plan(1), Behaviour::ForksSlowly);
    world.pass(Duration::from_secs(6));
    let End::Refused(refusal) = world.last_verdict() else { panic!("{:#?}", world.log) };
    assert!(refusal.reason.contains("did not fork for 5.0s"), "{refusal:?}");
}

#[test]
fn listeners_are_closed_by_a_commit_and_kept_by_those_who_drain_before() {
    let mut world = World::serving(plan(1));
    let listeners = vec![ListenerId(2)];
    world.reload(Plan { listeners: listeners.clone(), ..plan(1) }, Behaviour::WorkersFail);
    world.run();
    assert_eq!(world.closed.last(), Some(&(GenerationId(2), listeners.clone())), "what was bound for it");
    let mut kept = None;
    world.reload(Plan { listeners: vec![ListenerId(3)], ..plan(1) }, Behaviour::Healthy);
    while world.state(3) != Some("serving") {
        kept = kept.or(world.todo.iter().find_map(|action| match action {
            Action::Drain { keep, .. } => Some(keep.clone()),
            _ => None,
        }));
        assert!(world.step());
    }
    world.run();
    assert_eq!(kept, Some(vec![ListenerId(1)]));
    assert_eq!(world.closed.last(), Some(&(GenerationId(3), vec![ListenerId(1)])));
}
