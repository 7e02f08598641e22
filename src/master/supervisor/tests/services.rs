//! Services begin with the commit and end with it, rest when they die, and never hurt what serves.

use super::super::asks::Amount;
use super::super::pause::PausePlan;
use super::*;

fn with_service(workers: u32) -> Plan {
    Plan { services: Box::new([service("celery", 2)]), ..plan(workers) }
}

fn service(name: &str, count: u32) -> ServicePlan {
    ServicePlan { name: name.to_owned(), count, stop_timeout: MINUTE, ready_within: None, every: None }
}

impl World {
    fn ids(&self, generation: u32) -> Vec<ServiceId> {
        let services = self.supervisor.services().iter();
        services.filter(|service| service.generation.0 == generation).map(|service| service.id).collect()
    }

    fn words(&self) -> Vec<&'static str> {
        self.supervisor.services().iter().map(|service| service.word()).collect()
    }

    fn says_ready(&mut self, service: ServiceId) {
        self.event(Event::Service { service, event: ServiceEvent::Ready });
        self.run();
    }

    fn end(&mut self, service: ServiceId, exit: Exit) {
        self.services.remove(&service);
        self.event(Event::Service { service, event: ServiceEvent::Exited(exit) });
        self.run();
    }
}

#[test]
fn they_begin_when_their_generation_commits_and_the_old_ones_end_then() {
    let mut world = World::serving(with_service(2));
    assert_eq!((world.services.len(), world.supervisor.running_services(1)), (2, 2));
    world.behaviour.insert(GenerationId(1), Behaviour::DrainsForEver);
    world.services_stop = false;
    world.reload(with_service(2), Behaviour::Healthy);
    while world.state(2) != Some("serving") {
        assert!(world.supervisor.running_services(2) == 0 && world.supervisor.running_services(1) == 2);
        assert!(world.step());
    }
    world.run();
    // Both run side by side for at most `stop_timeout`.
    assert_eq!((world.supervisor.running_services(2), world.ids(1).len(), world.services.len()), (2, 2, 4));
    world.pass(MINUTE);
    assert_eq!((world.ids(1).len(), world.services.len()), (0, 2), "{:#?}", world.log);
}

#[test]
fn a_refused_release_leaves_them_alone() {
    let mut world = World::serving(with_service(1));
    let before = world.ids(1);
    world.reload(with_service(1), Behaviour::WorkersFail);
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), End::Refused(_)));
    assert_eq!((world.ids(1), world.supervisor.running_services(1)), (before, 2));
}

#[test]
fn one_that_dies_again_and_again_rests_longer_each_time_and_the_site_serves() {
    let mut world = World::serving(with_service(2));
    let service = world.ids(1)[0];
    let mut starts = Vec::new();
    for _ in 0..8 {
        let began = world.now;
        world.end(service, Exit::Code(1));
        while !world.services.contains(&service) {
            let next = world.supervisor.next_deadline().expect("it begins again");
            world.pass(next - world.now);
        }
        starts.push((world.now - began).as_millis());
    }
    assert_eq!(starts, [0, 100, 200, 400, 800, 1600, 3200, 6400]);
    assert_eq!((world.accepting(1), world.fewest_accepting, world.supervisor.word()), (2, 2, "running"));
    // Nor does one that cannot even be started.
    world.end(service, Exit::NeverBorn(refusal("no such file")));
    world.pass(MINUTE);
    assert_eq!(world.accepting(1), 2);
}

#[test]
fn one_that_says_when_it_is_ready_is_starting_until_then_and_late_after_its_time() {
    let notifies = ServicePlan { ready_within: Some(MINUTE), ..service("web", 1) };
    let mut world = World::serving(Plan { services: Box::new([notifies]), ..plan(1) });
    let web = world.ids(1)[0];
    assert_eq!((world.words(), world.supervisor.word()), (vec!["starting"], "running"));
    world.pass(MINUTE);
    // The release serves all the same.
    assert_eq!((world.words(), world.supervisor.word(), world.accepting(1)), (vec!["late"], "degraded", 1));
    assert!(world.supervisor.is_ready());
    world.says_ready(web);
    assert_eq!((world.words(), world.supervisor.word()), (vec!["running"], "running"));
    // The next process has to say so again, and a crash loop does not begin the time anew.
    for _ in 0..8 {
        world.end(web, Exit::Code(1));
        world.pass(MINUTE / 6);
    }
    assert_eq!(world.supervisor.word(), "degraded");
    assert!(!world.words().contains(&"running"));
    while world.words() != ["late"] {
        world.pass(MINUTE / 6);
    }
    world.says_ready(web);
    assert_eq!((world.words(), world.supervisor.word()), (vec!["running"], "running"));
}

#[test]
fn a_service_that_the_next_release_does_not_have_ends_and_a_new_one_begins() {
    let mut world = World::serving(with_service(1));
    world.reload(Plan { services: Box::new([service("beat", 1)]), ..plan(1) }, Behaviour::Healthy);
    world.run();
    let names: Vec<&str> = world.supervisor.services().iter().map(|service| service.name.as_str()).collect();
    assert_eq!((names, world.supervisor.running_services(2)), (vec!["beat"], 1));
    assert_eq!(world.supervisor.generations().len(), 1, "the old generation is gone with its services");
}

#[test]
fn the_master_ends_with_its_services_and_kills_those_that_do_not_end() {
    for stops in [true, false] {
        let mut world = World::serving(with_service(1));
        world.services_stop = stops;
        world.ask(Ask::Stop);
        world.run();
        assert_eq!(world.exit.is_some(), stops);
        world.pass(MINUTE);
        assert_eq!((world.exit, world.services.len()), (Some(0), 0), "{:#?}", world.log);
    }
    let mut world = World::serving(with_service(1));
    world.services_stop = false;
    world.ask(Ask::StopNow);
    world.run();
    assert_eq!((world.exit, world.services.len()), (Some(0), 0));
}

fn hourly() -> Plan {
    Plan { services: Box::new([ServicePlan { every: Some(MINUTE * 60), ..service("clean", 1) }]), ..plan(1) }
}

fn runs(world: &World) -> (u64, u64, u64) {
    let book = world.supervisor.book("clean").and_then(|book| book.rhythm.clone()).expect("it has a rhythm");
    (book.runs, book.failed, book.skipped)
}

#[test]
fn one_that_runs_every_so_often_runs_once_at_a_time_and_deploys_do_not_shift_it() {
    let mut world = World::serving(hourly());
    world.runs_end = false;
    assert_eq!((world.words(), world.services.len()), (vec!["waiting"], 0));
    world.pass(MINUTE * 50);
    world.reload(hourly(), Behaviour::Healthy);
    world.run();
    assert_eq!((world.words(), world.services.len()), (vec!["waiting"], 0));
    world.pass(MINUTE * 10);
    let run = world.ids(2)[0];
    assert_eq!((world.words(), runs(&world)), (vec!["running"], (0, 0, 0)));
    // It takes two hours and a half: two runs are left out.
    world.pass(MINUTE * 150);
    assert_eq!((world.words(), runs(&world)), (vec!["running"], (0, 0, 2)));
    world.end(run, Exit::Code(3));
    // A run that fails is not tried again before its time.
    assert_eq!((world.words(), runs(&world)), (vec!["waiting"], (1, 1, 2)));
    world.runs_end = true;
    world.pass(MINUTE * 30);
    assert_eq!((world.words(), runs(&world)), (vec!["waiting"], (2, 1, 2)));
    assert_eq!(world.supervisor.word(), "running");
}

#[test]
fn a_run_of_the_old_generation_ends_at_the_commit_and_none_begins_beside_it() {
    let mut world = World::serving(hourly());
    (world.runs_end, world.services_stop) = (false, false);
    world.pass(MINUTE * 60);
    world.pass(MINUTE * 60 - Duration::from_secs(30));
    world.reload(hourly(), Behaviour::Healthy);
    world.run();
    assert_eq!(world.words(), ["stopping", "waiting"]);
    // Due while the old one still runs.
    world.pass(Duration::from_secs(31));
    assert_eq!((world.words(), runs(&world)), (vec!["stopping", "waiting"], (0, 0, 1)));
    world.pass(MINUTE);
    assert_eq!((world.words(), runs(&world)), (vec!["waiting"], (1, 1, 1)));
}

#[test]
fn services_are_scaled_and_recycled_by_name_and_that_survives_reloads() {
    let ask = |world: &mut World, number: u64, ask: Ask| {
        world.event(Event::Ask { asker: Some(AskId(number)), ask });
        world.run();
        world.answers.iter().find(|(asker, _)| *asker == AskId(number)).map(|(_, outcome)| outcome.clone())
    };
    let scale = |amount| Ask::ScaleService { name: "celery".to_owned(), amount, wait: true };
    let recycle = |number| Ask::RecycleService { name: "celery".to_owned(), number, wait: true };
    let mut world = World::serving(with_service(1));
    assert_eq!(ask(&mut world, 1, scale(Amount::By(2))), Some(Outcome::ServiceScaled { processes: 4 }));
    world.reload(with_service(1), Behaviour::Healthy);
    world.run();
    assert_eq!(world.ids(2).len(), 4);
    assert_eq!(ask(&mut world, 2, scale(Amount::To(1))), Some(Outcome::ServiceScaled { processes: 1 }));
    let before = world.ids(2);
    assert_eq!(ask(&mut world, 3, recycle(None)), Some(Outcome::Asked));
    assert!(world.ids(2).len() == 1 && world.ids(2) != before);
    assert_eq!(ask(&mut world, 4, scale(Amount::By(-5))), Some(Outcome::ServiceScaled { processes: 1 }));
    assert_eq!(ask(&mut world, 5, scale(Amount::To(0))), Some(Outcome::ServiceScaled { processes: 0 }));
    let refused = |outcome: Option<Outcome>, words: &str| match outcome {
        Some(Outcome::Refused(refusal)) => assert!(refusal.reason.contains(words), "{}", refusal.reason),
        other => panic!("{other:?}"),
    };
    refused(ask(&mut world, 6, recycle(Some(0))), "no process of celery is wanted");
    refused(ask(&mut world, 7, scale(Amount::To(65))), "at most 64");
    let unknown = Ask::RecycleService { name: "cel".to_owned(), number: None, wait: true };
    refused(ask(&mut world, 8, unknown), "there is no service cel; there is celery");
    // What waits for a service that the next release does not have hears so.
    world.services_stop = false;
    assert_eq!(ask(&mut world, 9, scale(Amount::To(2))), Some(Outcome::ServiceScaled { processes: 2 }));
    refused(ask(&mut world, 10, recycle(Some(2))), "celery has no process 2; 2 are wanted");
    assert_eq!(ask(&mut world, 11, recycle(Some(1))), None);
    world.reload(plan(1), Behaviour::Healthy);
    world.run();
    let heard = world.answers.iter().find(|(asker, _)| *asker == AskId(11)).map(|(_, outcome)| outcome.clone());
    refused(heard, "the generation that serves has no [[service]]");
}

#[test]
fn a_run_can_be_asked_for_before_its_time() {
    let mut world = World::serving(hourly());
    let run = Ask::RecycleService { name: "clean".to_owned(), number: None, wait: true };
    world.event(Event::Ask { asker: Some(AskId(1)), ask: run });
    world.run();
    assert_eq!((world.answers.len(), runs(&world), world.words()), (1, (1, 0, 0), vec!["waiting"]));
    let two = Ask::ScaleService { name: "clean".to_owned(), amount: Amount::To(2), wait: true };
    world.event(Event::Ask { asker: Some(AskId(2)), ask: two });
    world.run();
    assert!(
        matches!(&world.answers.last().unwrap().1, Outcome::Refused(refusal) if refusal.reason.contains("one run at a time"))
    );
    // Switched off, nothing runs.
    world.ask(Ask::ScaleService { name: "clean".to_owned(), amount: Amount::To(0), wait: false });
    world.pass(MINUTE * 120);
    assert_eq!((world.words(), runs(&world)), (vec![], (1, 0, 0)));
}

/// As found: the end of its rest was a deadline that nobody acted on, and the master turned without a pause.
#[test]
fn one_that_rests_while_a_command_is_waited_for_wakes_nobody() {
    let mut world = World::serving(with_service(1));
    let service = world.ids(1)[0];
    for _ in 0..6 {
        world.end(service, Exit::Code(1));
        world.pass(Duration::from_secs(10));
    }
    let pause = PausePlan { timeout: MINUTE * 10, has_command: true, has_probe: false, maintenance: None };
    world.command = CommandBehaviour::IgnoresTerm;
    world.reload(Plan { surge: Surge::Auto, pause: Some(Box::new(pause)), ..with_service(1) }, Behaviour::Healthy);
    world.run();
    assert!(world.commanding.is_some(), "{:#?}", world.log);
    world.end(service, Exit::Code(1));
    world.ask(Ask::Stop);
    let rested = world.now + Duration::from_secs(10);
    // `pass` gives up where deadlines never pass.
    world.pass(Duration::from_secs(10));
    assert!(world.exit.is_none() && world.supervisor.next_deadline().is_some_and(|next| next > rested));
}

#[test]
fn a_lower_count_leaves_one_and_only_an_operator_switches_it_off() {
    let of = |count| Plan { services: Box::new([service("celery", count)]), ..plan(1) };
    let scale = |to| Ask::ScaleService { name: "celery".to_owned(), amount: Amount::To(to), wait: false };
    let mut world = World::serving(of(4));
    world.ask(scale(2));
    world.reload(of(2), Behaviour::Healthy);
    world.run();
    assert_eq!(world.ids(2).len(), 1);
    world.ask(scale(0));
    world.reload(of(8), Behaviour::Healthy);
    world.run();
    assert_eq!(world.ids(3).len(), 0);
}

#[test]
fn who_waits_for_one_that_does_not_run_hears_so() {
    let mut world = World::serving(with_service(1));
    let second = world.ids(1)[1];
    world.end(second, Exit::Code(1));
    world.end(second, Exit::Code(1));
    assert_eq!(world.words(), ["running", "resting"]);
    let says = |world: &mut World, ask: Ask, number: u64| {
        world.event(Event::Ask { asker: Some(AskId(number)), ask });
        world.run();
        world.answers.iter().find(|(asker, _)| *asker == AskId(number)).map(|(_, outcome)| outcome.clone())
    };
    let two = Ask::ScaleService { name: "celery".to_owned(), amount: Amount::To(2), wait: true };
    let Some(Outcome::Refused(refusal)) = says(&mut world, two, 1) else { panic!("it waits") };
    assert_eq!(refusal.reason, "process 1 of celery has ended, and rests before it begins again; the log says more");
    // The other one is none of its business.
    let first = Ask::RecycleService { name: "celery".to_owned(), number: Some(0), wait: true };
    assert_eq!(says(&mut world, first, 2), Some(Outcome::Asked));
}

#[test]
fn a_run_that_is_asked_for_waits_for_the_one_of_the_old_release() {
    let mut world = World::serving(hourly());
    (world.runs_end, world.services_stop) = (false, false);
    world.pass(MINUTE * 60);
    assert_eq!(world.words(), ["running"]);
    world.reload(hourly(), Behaviour::Healthy);
    world.run();
    assert_eq!(world.words(), ["stopping", "waiting"]);
    let run = Ask::RecycleService { name: "clean".to_owned(), number: None, wait: true };
    world.event(Event::Ask { asker: Some(AskId(1)), ask: run });
    world.run();
    let Some((_, Outcome::Refused(refusal))) = world.answers.last() else { panic!("two run at once") };
    assert_eq!(refusal.reason, "a run of clean is not over, and there is one at a time");
}
