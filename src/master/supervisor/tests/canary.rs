//! Canaries: the first workers of a new generation beside the old ones, the verdict, and whatever comes in between.

use super::super::canary::CanaryPlan;
use super::super::verdict::{Bounds, Counts};
use super::*;

pub const BOUNDS: Bounds = Bounds { min_requests: 100, max_errors: 1.0, max_latency: 1.5 };

/// So many of its workers serve for a minute first.
fn trying(workers: u32, canary: u32) -> Plan {
    let canary = CanaryPlan { workers: canary, hold: MINUTE, bounds: BOUNDS };
    Plan { canary: Some(Box::new(canary)), surge: Surge::Auto, ..plan(workers) }
}

fn counts(compared: u64, failed: u64) -> Counts {
    let mut counts = Counts { answered: compared + 20, compared, failed, ..Counts::default() };
    counts.latency.buckets[12] = compared;
    counts
}

/// As seen of a release that is as good as the old one.
fn good() -> (Counts, Counts) {
    (counts(3000, 3), counts(1000, 1))
}

/// The canary of generation 2 serves beside the four workers of generation 1.
fn canary_serves(seen: (Counts, Counts)) -> World {
    let mut world = World::serving(plan(4));
    world.seen = seen;
    world.reload(trying(4, 1), Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(1), world.accepting(2)), (4, 1), "{:#?}", world.log);
    assert!(world.logged("canary gen=2 serves: 1 workers beside the old ones for 60.0s"), "{:#?}", world.log);
    world
}

impl World {
    #[track_caller]
    fn refused_for(&mut self, reason: &str) {
        self.run();
        let End::Refused(refusal) = self.last_verdict() else { panic!("{:?}", self.last_verdict()) };
        assert!(refusal.reason.contains(reason), "{}", refusal.reason);
    }

    /// The first generation serves with all its workers, and nothing is left of another.
    #[track_caller]
    fn only_the_old_one_serves(&mut self) {
        self.run();
        let all = (self.accepting(1), self.alive.len(), self.templates.len(), self.supervisor.generations().len());
        assert_eq!(all, (4, 4, 1, 1), "{:#?}", self.log);
    }

    fn one_of(&self, generation: u32) -> WorkerId {
        let of = |(_, of): &(&WorkerId, &GenerationId)| **of == GenerationId(generation);
        *self.alive.iter().find(of).expect("there is one").0
    }
}

#[test]
fn a_good_release_takes_over_when_its_time_is_over_and_the_old_one_is_whole_until_then() {
    let mut world = canary_serves(good());
    world.fewest_accepting = 5;
    world.pass(MINUTE - Duration::from_secs(1));
    assert_eq!((world.accepting(1), world.accepting(2), world.alive.len()), (4, 1, 5));
    world.pass(Duration::from_secs(1));
    assert_eq!((world.last_verdict(), world.accepting(2), world.alive.len()), (&End::Committed, 4, 4));
    assert!(
        world.logged("canary gen=2 good: it is no worse") && world.logged("rolling: 4 at once"),
        "{:#?}",
        world.log
    );
    // What the old ones give away is for all new ones.
    assert!(world.fewest_accepting >= 4, "{}", world.fewest_accepting);
    let tried = world.concluded.last().and_then(|reload| reload.canary.clone()).expect("it is told");
    assert_eq!((tried.verdict.as_str(), tried.new.compared, tried.old.generation), ("good", 1000, 1));
}

#[test]
fn every_way_to_roll_goes_on_after_the_canary() {
    for surge in [Surge::Workers(1), Surge::Workers(0), Surge::All, Surge::Auto] {
        let mut world = World::serving(plan(5));
        world.seen = good();
        world.reload(Plan { surge, unavailable: 1, ..trying(5, 2) }, Behaviour::Healthy);
        world.run();
        assert_eq!((world.accepting(1), world.accepting(2)), (5, 2), "{surge:?}: {:#?}", world.log);
        world.pass(MINUTE);
        assert_eq!((world.last_verdict(), world.accepting(2), world.alive.len()), (&End::Committed, 5, 5), "{surge:?}");
    }
}

#[test]
fn a_release_that_fails_more_is_given_up_with_the_table() {
    // So much leaves no doubt; less is waited for.
    let mut world = canary_serves(good());
    world.seen = (counts(3000, 3), counts(1000, 50));
    world.pass(Duration::from_secs(2));
    world.refused_for("the canary was abandoned: 5.0 % of its requests failed, and 0.1 % of the old generation's");
    let End::Refused(refusal) = world.last_verdict() else { unreachable!() };
    assert!(refusal.details.contains("50 (5.0 %)") && refusal.details.contains("+1pp"), "{}", refusal.details);
    world.only_the_old_one_serves();

    let mut world = canary_serves((counts(1000, 2), counts(300, 10)));
    world.pass(MINUTE - Duration::from_secs(1));
    assert_eq!(world.accepting(2), 1);
    world.pass(Duration::from_secs(1));
    world.refused_for("3.3 % of its requests failed");
    world.only_the_old_one_serves();
}

#[test]
fn too_little_traffic_is_said_and_the_release_takes_over() {
    let mut world = canary_serves((counts(3000, 3), counts(99, 3)));
    world.pass(MINUTE);
    assert_eq!((world.last_verdict(), world.accepting(2)), (&End::Committed, 4));
    assert!(world.logged("canary gen=2 too_little_traffic: too little traffic for a verdict"), "{:#?}", world.log);
}

#[test]
fn one_death_is_enough() {
    for exit in [killed(), Exit::Code(0)] {
        let mut world = canary_serves(good());
        let canary = world.one_of(2);
        world.exit(canary, exit);
        world.refused_for("the canary was abandoned: worker gen=2 slot=0 pid=1005 died");
        world.only_the_old_one_serves();
    }
    // It dies as it begins to serve.
    let mut world = World::serving(plan(4));
    world.reload(trying(4, 1), Behaviour::DiesServing);
    world.refused_for("the canary was abandoned");
    world.only_the_old_one_serves();
    // A death of the old ones is none of its.
    let mut world = canary_serves(good());
    let old = world.one_of(1);
    world.exit(old, killed());
    world.pass(MINUTE);
    assert_eq!(world.last_verdict(), &End::Committed, "{:#?}", world.log);
}

#[test]
fn a_canary_that_is_stuck_is_given_up() {
    for (stuck, why) in [(Stuck::Request(1), "hung in a request"), (Stuck::Silent, "gave no sign of life")] {
        let mut world = canary_serves(good());
        let canary = world.one_of(2);
        world.worker_event(canary, WorkerEvent::Stuck(stuck));
        world.refused_for(&format!(
            "the canary was abandoned: worker gen=2 slot=0 pid=1005 {why}; the log has its stacks"
        ));
        assert_eq!(world.concluded[1].canary.as_ref().map(|canary| canary.verdict.as_str()), Some("died"));
        world.pass(MINUTE);
        world.only_the_old_one_serves();
    }
    // Already while another one of it boots.
    let mut world = World::serving(plan(4));
    world.reload(trying(4, 2), Behaviour::OnlyCandidateBoots);
    while world.accepting(2) == 0 {
        assert!(world.step());
    }
    while world.supervisor.generation(GenerationId(2)).is_none_or(|generation| generation.serving() != 1) {
        assert!(world.step());
    }
    let canary = world.some_worker(2);
    world.worker_event(canary, WorkerEvent::Stuck(Stuck::Request(1)));
    world.refused_for("hung in a request");
    world.pass(MINUTE);
    world.only_the_old_one_serves();
    // Of the old ones it is none of its.
    let mut world = canary_serves(good());
    let old = world.one_of(1);
    world.worker_event(old, WorkerEvent::Stuck(Stuck::Request(1)));
    world.pass(MINUTE);
    assert_eq!((world.last_verdict(), world.accepting(2)), (&End::Committed, 4), "{:#?}", world.log);
}

#[test]
fn a_canary_that_hangs_without_a_limit_does_not_pass_for_too_little_traffic() {
    let hangs = Counts { running_us: 50_000_000, answered: 1, ..Counts::default() };
    let mut world = canary_serves((counts(3000, 3), hangs));
    world.pass(MINUTE);
    world.refused_for("the canary was abandoned: a request of it has run for 50.0 s");
    let End::Refused(refusal) = world.last_verdict() else { unreachable!() };
    assert!(refusal.details.contains("a request has run for            50.0 s"), "{}", refusal.details);
    world.only_the_old_one_serves();
}

/// With fewer old workers it would get all the traffic.
#[test]
fn a_canary_is_given_up_when_its_old_workers_are_scaled_away() {
    let scaled = [
        (0, "the workers are switched off, so there is nothing to compare a canary with"),
        (3, "a canary needs at least 4 workers beside it, and 3 are wanted"),
    ];
    for (workers, why) in scaled {
        for placing in [false, true] {
            let mut world = match placing {
                false => canary_serves(good()),
                true => World::serving(plan(4)),
            };
            if placing {
                world.reload(trying(4, 2), Behaviour::ServesMutely);
                world.run();
            }
            world.ask(Ask::ScaleTo { workers, wait: false });
            world.refused_for(&format!("{why}; `forkmaster reload --canary 0` deploys without one"));
            world.pass(MINUTE);
            assert_eq!((world.accepting(1), world.accepting(2)), (workers as usize, 0), "{:#?}", world.log);
        }
    }
}

#[test]
fn each_look_is_asked_for_once() {
    let mut world = canary_serves(good());
    for _ in 0..70 {
        let Some(due) = world.supervisor.next_deadline() else { panic!("it holds") };
        world.now = due;
        let actions = world.supervisor.handle(Event::Tick, due);
        assert_eq!(actions.iter().filter(|action| matches!(action, Action::Compare { .. })).count(), 1, "{actions:?}");
    }
}

#[test]
fn an_operator_promotes_or_abandons_it() {
    let mut world = canary_serves(good());
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Promote { wait: true } });
    world.run();
    assert_eq!((world.last_verdict(), world.accepting(2)), (&End::Committed, 4));
    assert!(matches!(&world.answers[..], [(AskId(1), Outcome::Reload(reload))] if reload.end == End::Committed));

    let mut world = canary_serves(good());
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Abandon });
    world.refused_for("the canary was abandoned: an operator has abandoned it");
    assert_eq!(world.answers, [(AskId(1), Outcome::Asked)]);
    world.only_the_old_one_serves();
}

#[test]
fn a_later_reload_supersedes_it_and_a_stop_ends_it() {
    let mut world = canary_serves(good());
    world.reload(plan(4), Behaviour::Healthy);
    world.run();
    assert_eq!((world.accepting(3), world.alive.len()), (4, 4));
    assert_eq!(world.verdicts[1], (GenerationId(2), End::Superseded { by: GenerationId(3) }));
    assert_eq!(world.concluded[1].canary.as_ref().map(|canary| canary.verdict.as_str()), Some("cut_short"));
    for ask in [Ask::Stop, Ask::StopNow] {
        let mut world = canary_serves(good());
        world.ask(ask);
        world.run();
        assert_eq!((world.exit, world.alive.len(), world.templates.len()), (Some(0), 0, 0));
        assert_eq!(world.last_verdict(), &End::Stopped);
    }
}

#[test]
fn where_nothing_could_be_learned_there_is_no_canary() {
    let few = "a canary needs at least 4 workers beside it, and 3 are wanted; `forkmaster reload --canary 0`";
    let mut world = World::serving(plan(3));
    world.reload(trying(3, 1), Behaviour::Healthy);
    world.refused_for(few);
    // Also where an operator has taken some away.
    let mut world = World::serving(plan(4));
    world.ask(Ask::Scale { by: -1, wait: false });
    world.reload(trying(4, 1), Behaviour::Healthy);
    world.refused_for(few);
    let mut world = World::serving(plan(4));
    world.reload(trying(4, 3), Behaviour::Healthy);
    world.refused_for("a canary of 3 workers is more than half of the 4 that are wanted");
    let mut world = World::serving(plan(4));
    world.ask(Ask::ScaleTo { workers: 0, wait: false });
    world.reload(trying(4, 1), Behaviour::Healthy);
    world.refused_for("the workers are switched off");
    let mut world = World::serving(plan(4));
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.run();
    world.reload(trying(4, 1), Behaviour::Healthy);
    world.refused_for("the service is paused");
    // Two more do not fit, the candidate is one of them.
    let mut world = World::serving(plan(4));
    world.room.bytes = Some(10);
    world.boot.private_bytes = 100;
    world.reload(trying(4, 2), Behaviour::Healthy);
    world.refused_for("there is no room for a canary");
    let mut world = World::serving(plan(4));
    world.reload(Plan { max_processes: Some(5), surge: Surge::Workers(1), ..trying(4, 2) }, Behaviour::Healthy);
    world.refused_for("there is no room for a worker");
    // A first start has nothing to compare with.
    let world = World::serving(trying(2, 1));
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn meanwhile_the_old_generation_goes_on_as_ever() {
    let mut world = canary_serves(good());
    // One dies, one is recycled, one is added.
    let old = world.one_of(1);
    world.exit(old, killed());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.accepting(1), 4);
    world.event(Event::Ask { asker: Some(AskId(1)), ask: Ask::Recycle { slot: SlotIndex(1), keep: None, wait: true } });
    world.run();
    assert!(matches!(&world.answers[..], [(AskId(1), Outcome::Recycled { .. })]), "{:?}", world.answers);
    world.event(Event::Ask { asker: Some(AskId(2)), ask: Ask::Scale { by: 1, wait: true } });
    world.run();
    assert_eq!((world.accepting(1), world.accepting(2)), (5, 1));
    world.event(Event::Ask { asker: Some(AskId(3)), ask: Ask::ScaleTo { workers: 4, wait: true } });
    world.run();
    assert_eq!((world.accepting(1), world.accepting(2)), (4, 1), "the canary is none of the surplus");
    // As found: who scales heard of it when the canary had ended.
    let scaled = |ask, workers| (AskId(ask), Outcome::Scaled { workers });
    assert_eq!(world.answers[1..], [scaled(2, 5), scaled(3, 4)]);
    world.pass(MINUTE);
    assert_eq!((world.last_verdict(), world.accepting(2), world.alive.len()), (&End::Committed, 4, 4));
}

#[test]
fn while_the_service_is_paused_the_canary_s_time_stands_still() {
    let mut world = canary_serves(good());
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.pass(MINUTE * 5);
    assert_eq!((world.accepting.len(), world.state(2)), (0, Some("rolling")));
    assert_eq!(world.supervisor.word(), "paused", "which nobody should have to guess");
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: Some(maintenance(Duration::ZERO, None)) });
    world.run();
    assert_eq!(world.supervisor.word(), "maintenance");
    world.ask(Ask::Resume);
    world.run();
    assert_eq!(world.supervisor.word(), "reloading");
    world.pass(MINUTE / 2);
    assert_eq!((world.accepting(1), world.accepting(2)), (4, 1), "{:#?}", world.log);
    world.pass(MINUTE);
    assert_eq!((world.last_verdict(), world.accepting(2)), (&End::Committed, 4));
}

#[test]
fn a_canary_that_does_not_boot_or_serve_changes_nothing() {
    for behaviour in [Behaviour::OnlyCandidateBoots, Behaviour::ServesMutely] {
        let mut world = World::serving(plan(4));
        world.reload(trying(4, 2), behaviour);
        world.pass(MINUTE * 3);
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}: {:#?}", world.log);
        world.only_the_old_one_serves();
    }
}
