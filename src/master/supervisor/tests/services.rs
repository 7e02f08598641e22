//! Services begin with the commit and end with it, rest when they die, and never hurt what serves.

use super::*;

fn with_service(workers: u32) -> Plan {
    Plan { services: vec![service("celery", 2)], ..plan(workers) }
}

fn service(name: &str, count: u32) -> ServicePlan {
    ServicePlan { name: name.to_owned(), count, stop_timeout: MINUTE, ready_within: None }
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
    let mut world = World::serving(Plan { services: vec![notifies], ..plan(1) });
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
    world.reload(Plan { services: vec![service("beat", 1)], ..plan(1) }, Behaviour::Healthy);
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
