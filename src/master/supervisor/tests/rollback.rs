//! Going back where no template is kept: the template starts anew, and the import is paid for once.

use super::super::pace::Boot;
use super::*;

/// Generation 2 serves, and nothing is kept of generation 1.
fn second_serves(workers: u32) -> World {
    second_serves_with(workers, Boot::default())
}

/// Boots take this.
fn second_serves_with(workers: u32, boot: Boot) -> World {
    let mut world = World { boot, ..World::new() };
    world.reload(Plan { surge: Surge::Auto, ..plan(workers) }, Behaviour::Healthy);
    world.run();
    world.reload(Plan { surge: Surge::Auto, ..plan(workers) }, Behaviour::Healthy);
    world.run();
    assert_eq!((world.state(1), world.accepting(2)), (None, workers as usize));
    world.fewest_accepting = workers as usize;
    world
}

impl World {
    fn go_back(&mut self, workers: u32, behaviour: Behaviour) {
        self.go_back_with(workers, Surge::Auto, behaviour);
    }

    fn go_back_with(&mut self, workers: u32, surge: Surge, behaviour: Behaviour) {
        let unavailable = u32::from(surge == Surge::Workers(0));
        self.reload(Plan { origin: Some(GenerationId(1)), surge, unavailable, ..plan(workers) }, behaviour);
    }

    /// The lines of workers of generation 3 that are so.
    fn lines_of_workers(&self, is_it: impl Fn(&str) -> bool) -> Vec<usize> {
        let is_it = |line: &&String| line.contains("worker gen=3") && is_it(line);
        (0..self.log.len()).filter(|at| is_it(&&self.log[*at])).collect()
    }

    fn births(&self) -> Vec<usize> {
        self.lines_of_workers(|line| line.ends_with("-> starting"))
    }
}

#[test]
fn all_workers_boot_before_one_is_ready_and_take_over_in_one_step() {
    let mut world = second_serves(2);
    world.go_back(2, Behaviour::Healthy);
    assert_eq!(
        world.supervisor.generation(GenerationId(3)).and_then(Generation::waiting).as_deref(),
        Some("its template")
    );
    while !world.booted.contains_key(&GenerationId(3)) {
        assert!(world.step());
    }
    assert_eq!(world.booted[&GenerationId(3)], 2, "all at once: {:#?}", world.log);
    world.run();
    assert_eq!((world.accepting(3), world.last_verdict(), world.fewest_accepting), (2, &End::Committed, 0));
    assert!(world.logged("generation gen=3 has served before") && !world.logged("gen=3 proved"), "{:#?}", world.log);
}

#[test]
fn what_has_booted_serves_while_the_rest_boots_and_no_worker_is_missed() {
    // On two processors: what computes boots two at a time, what sleeps all at once, as was measured when it was proved.
    let (second, moment) = (Duration::from_secs(1), Duration::from_millis(100));
    for (cpu, at_once, fewest) in [(second, 2, 6), (moment, 6, 0)] {
        let boot = Boot { wall: second, cpu, ..Boot::default() };
        let mut world = second_serves_with(6, boot);
        world.go_back(6, Behaviour::Healthy);
        let mut most = 0;
        while world.step() {
            let booting = |generation: &Generation| {
                generation.workers.iter().filter(|worker| matches!(worker.state, WorkerState::Starting { .. })).count()
            };
            most = most.max(world.supervisor.generation(GenerationId(3)).map_or(0, booting));
        }
        assert_eq!((most, world.accepting(3), world.fewest_accepting), (at_once, 6, fewest), "{:#?}", world.log);
        let (serving, born) = (world.lines_of_workers(|line| line.contains("-> serving")), world.births());
        assert_eq!(serving[0] < *born.last().unwrap(), at_once < 6, "{:#?}", world.log);
    }
}

#[test]
fn one_that_fails_to_boot_is_refused_and_what_serves_goes_on_untouched() {
    for behaviour in [
        Behaviour::WorkersFail,
        Behaviour::WorkersDie,
        Behaviour::WorkersHang,
        Behaviour::TemplateFails,
        Behaviour::TemplateDies,
        Behaviour::TemplateHangs,
    ] {
        let mut world = second_serves(2);
        world.go_back(2, behaviour);
        world.pass(MINUTE * 2);
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{behaviour:?}: {:#?}", world.log);
        let booted = world.booted.get(&GenerationId(3)).copied().unwrap_or_default();
        assert!(booted <= 2, "{behaviour:?}: each has failed once, and that is enough: {booted}");
        assert_eq!((world.accepting(2), world.fewest_accepting, world.state(3)), (2, 2, None), "{behaviour:?}");
    }
    // What fails when it serves is refused as well, and the old workers are back.
    let mut world = second_serves(2);
    world.go_back(2, Behaviour::DiesServing);
    world.pass(MINUTE);
    assert!(matches!(world.last_verdict(), End::Refused(_)), "{:#?}", world.log);
    assert_eq!((world.accepting(2), world.state(3)), (2, None));
}

#[test]
fn one_accident_among_them_is_no_reason() {
    let mut world = second_serves(2);
    world.go_back(2, Behaviour::WorkersHang);
    world.run();
    let first = world.supervisor.generation(GenerationId(3)).unwrap().workers[0].id;
    world.behaviour.insert(GenerationId(3), Behaviour::Healthy);
    world.exit(first, killed());
    world.pass(MINUTE * 2);
    assert_eq!((world.accepting(3), world.last_verdict()), (2, &End::Committed), "{:#?}", world.log);
}

#[test]
fn who_is_alone_or_not_wanted_or_has_no_room_is_a_candidate_as_ever() {
    for (workers, is_off, surge) in [(1, false, Surge::Auto), (3, true, Surge::Auto), (3, false, Surge::Workers(0))] {
        let mut world = second_serves(workers);
        if is_off {
            world.ask(Ask::ScaleTo { workers: 0, wait: false });
            world.run();
        }
        world.go_back_with(workers, surge, Behaviour::WorkersFail);
        world.pass(MINUTE);
        assert!(matches!(world.last_verdict(), End::Refused(_)), "{workers}: {:#?}", world.log);
        assert_eq!(world.accepting(2), if is_off { 0 } else { workers as usize });
        world.go_back_with(workers, surge, Behaviour::Healthy);
        world.run();
        assert!(world.logged("gen=4 proved") && *world.last_verdict() == End::Committed, "{workers}: {:#?}", world.log);
    }
}
