//! Upgrades in place: when the new binary may look and when it may take over, what each asker hears, and what the next binary
//! has of the state.

use super::super::upgrade::{Event as UpgradeEvent, TRIED_WITHIN};
use super::*;

const ASKER: AskId = AskId(5);

impl World {
    fn ask_upgrade(&mut self, asker: AskId) {
        self.event(Event::Ask { asker: Some(asker), ask: Ask::Upgrade { timeout: MINUTE } });
        self.run();
    }

    fn tried(&mut self, said: Result<(), Refusal>) {
        self.event(Event::Upgrade(UpgradeEvent::Tried(said)));
        self.run();
    }

    fn may_be_taken_over(&self) -> bool {
        self.supervisor.may_be_taken_over().is_some()
    }

    /// The reason that this asker heard, if it did.
    fn refused(&self, asker: AskId) -> Option<&str> {
        self.answers.iter().find_map(|(ask, outcome)| match outcome {
            Outcome::Refused(refusal) if *ask == asker => Some(refusal.reason.as_str()),
            _other => None,
        })
    }
}

#[test]
fn a_quiet_service_is_taken_over_once_the_new_binary_has_accepted_it() {
    let mut world = World::serving(plan(2));
    world.ask_upgrade(ASKER);
    assert!(!world.may_be_taken_over(), "it has not said anything yet");
    // One at a time.
    world.ask_upgrade(AskId(6));
    assert_eq!(world.refused(AskId(6)), Some("an upgrade is under way already"));
    world.tried(Ok(()));
    assert!(world.may_be_taken_over());
    assert_eq!(world.supervisor.may_be_taken_over().and_then(|asked| asked.asker), Some(ASKER));
    // It could not be executed: the old one goes on, and says so.
    world.event(Event::Upgrade(UpgradeEvent::Failed(Refusal::new("gone"))));
    world.run();
    assert_eq!(world.refused(ASKER), Some("gone"));
    assert!(!world.may_be_taken_over());
    // Nothing has changed, and the next one may try.
    world.ask_upgrade(AskId(7));
    world.tried(Err(Refusal::new("it does not like it")));
    assert_eq!(world.refused(AskId(7)), Some("it does not like it"));
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn what_is_under_way_is_waited_for_and_named_when_the_time_is_over() {
    let mut world = World::serving(plan(2));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.reload(plan(2), Behaviour::Healthy);
    world.run();
    world.ask_upgrade(ASKER);
    world.tried(Ok(()));
    assert!(!world.may_be_taken_over(), "nobody was asked to look");
    world.pass(MINUTE);
    let reason = world.refused(ASKER).unwrap_or_default();
    assert!(reason.contains("no quiet moment for 60.0s: generation 1 is draining (2 workers)"), "{reason}");
}

/// It is the one thing that is not carried: the next rollback starts Python anew.
#[test]
fn a_template_that_is_kept_for_a_rollback_is_given_up() {
    let plan = Plan { rollback_window: MINUTE * 60, ..plan(2) };
    let mut world = World::serving(plan.clone());
    world.reload(plan, Behaviour::Healthy);
    world.run();
    assert_eq!(world.state(1), Some("kept"));
    world.ask_upgrade(ASKER);
    assert_eq!(world.state(1), None);
    world.tried(Ok(()));
    assert!(world.may_be_taken_over());
}

#[test]
fn what_begins_meanwhile_comes_first_and_the_new_binary_looks_again() {
    let mut world = World::serving(plan(2));
    world.ask_upgrade(ASKER);
    world.tried(Ok(()));
    assert!(world.may_be_taken_over());
    let worker = *world.accepting.first().expect("two serve");
    world.exit(worker, killed());
    assert!(!world.may_be_taken_over());
    world.run();
    assert_eq!(world.accepting(1), 2, "its successor serves");
    assert!(!world.may_be_taken_over(), "the state is another one");
    world.tried(Ok(()));
    assert!(world.may_be_taken_over());
}

#[test]
fn a_new_binary_that_says_nothing_is_not_waited_for_beyond_its_time() {
    let mut world = World::serving(plan(1));
    world.ask_upgrade(ASKER);
    world.event(Event::Upgrade(UpgradeEvent::Begun));
    world.pass(TRIED_WITHIN);
    let reason = world.refused(ASKER).unwrap_or_default();
    assert!(reason.contains("has not said within 10.0s"), "{reason}");
    // One that was never started had nothing to say.
    world.ask_upgrade(AskId(6));
    world.pass(TRIED_WITHIN);
    let reason = world.refused(AskId(6)).unwrap_or_default();
    assert!(reason.contains("no quiet moment for 10.0s: something else is being done"), "{reason}");
    // What it says later is nobody's.
    world.tried(Ok(()));
    assert!(!world.may_be_taken_over());
}

#[test]
fn a_stop_comes_before_an_upgrade() {
    for says in [None, Some(Ok(()))] {
        let mut world = World::serving(plan(1));
        world.ask_upgrade(ASKER);
        if let Some(says) = says {
            world.tried(says);
        }
        world.ask(Ask::Stop);
        world.run();
        assert_eq!(world.refused(ASKER), Some("the master was told to stop"));
        assert_eq!(world.exit, Some(0));
    }
}

/// The next binary knows as much: it saves the same, and goes on from there.
#[test]
fn a_restored_supervisor_goes_on_as_if_nothing_had_happened() {
    let service = ServicePlan {
        name: "celery".to_owned(),
        count: 1,
        stop_timeout: MINUTE,
        ready_within: Some(MINUTE),
        every: None,
    };
    // One that waits for its time is in its book only.
    let hourly =
        ServicePlan { name: "clean".to_owned(), ready_within: None, every: Some(MINUTE * 60), ..service.clone() };
    let plan = Plan { services: Box::new([service, hourly]), ..plan(2) };
    let mut world = World::new();
    world.boot.private_bytes = 77;
    world.reload(plan.clone(), Behaviour::Healthy);
    world.run();
    world.ask(Ask::Scale { by: 1, wait: false });
    world.run();
    // A slot that has failed before rests for longer the next time.
    let died = *world.accepting.first().expect("three serve");
    world.exit(died, killed());
    world.run();
    let saved = world.supervisor.save().expect("it is quiet");
    let text = serde_json::to_string(&saved).unwrap();
    let read = serde_json::from_str(&text).unwrap();
    assert_eq!(saved, read);
    let deadline = world.supervisor.next_deadline();
    world.supervisor = Supervisor::restore(read, plan.clone(), world.now);
    assert_eq!(world.supervisor.save(), Some(saved));
    // What its boot took is what the next rollback goes by.
    assert_eq!(world.supervisor.serving().map(|generation| generation.candidate.private_bytes), Some(77));
    assert_eq!((world.supervisor.next_deadline(), world.supervisor.word()), (deadline, "running"));
    // It has nothing to do, and heals, reloads and stops.
    world.event(Event::Tick);
    assert!(world.todo.is_empty(), "{:?}", world.todo);
    let worker = *world.accepting.first().expect("three serve");
    world.exit(worker, killed());
    world.pass(MINUTE);
    assert_eq!(world.accepting(1), 3);
    let before = world.alive.clone();
    world.generation = 1;
    world.reload(plan, Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(2), world.accepting(1)), (3, 0));
    assert!(world.alive.keys().all(|worker| !before.contains_key(worker)), "numbers are not used twice");
    world.ask(Ask::Stop);
    world.run();
    assert_eq!(world.exit, Some(0));
}

#[test]
fn a_worker_that_is_kept_for_a_debugger_is_carried_with_its_time() {
    let mut world = World::serving(plan(2));
    world.ask(Ask::Recycle { slot: SlotIndex(0), keep: Some(MINUTE * 10), wait: false });
    world.run();
    assert_eq!((world.alive.len(), world.accepting(1)), (3, 2));
    let saved = world.supervisor.save().expect("it is quiet");
    let deadline = world.supervisor.next_deadline();
    world.supervisor = Supervisor::restore(saved, plan(2), world.now);
    assert_eq!(world.supervisor.next_deadline(), deadline);
    world.pass(MINUTE * 11);
    assert_eq!((world.alive.len(), world.accepting(1)), (2, 2));
}

#[test]
fn a_service_that_is_not_quiet_has_no_state_to_save() {
    let mut world = World::serving(plan(2));
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.run();
    assert!(world.supervisor.save().is_none());
    let mut world = World::serving(plan(2));
    world.reload(plan(2), Behaviour::WorkersHang);
    world.run();
    assert!(world.supervisor.save().is_none());
}
