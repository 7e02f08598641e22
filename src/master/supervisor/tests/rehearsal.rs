//! Rehearsals: the candidate answers what the old workers remember, what follows from its answers, and whatever comes in
//! between.

use super::super::canary::CanaryPlan;
use super::super::pause::PausePlan;
use super::super::rehearsal::RehearsalPlan;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

pub const PLAN: RehearsalPlan = RehearsalPlan {
    requests: 10,
    refuses: true,
    timeout: Duration::from_secs(30),
    request_timeout: Duration::from_secs(5),
};

fn rehearsing(workers: u32) -> Plan {
    Plan { rehearsal: Some(Box::new(PLAN)), ..plan(workers) }
}

fn warning(workers: u32) -> Plan {
    Plan { rehearsal: Some(Box::new(RehearsalPlan { refuses: false, ..PLAN })), ..plan(workers) }
}

/// `/0`, `/1`, ... with 200, the latest first.
pub fn requests(number: usize) -> Vec<Remembered> {
    let request = |number: usize| Remembered {
        target: format!("/{number}"),
        host: "shop.example".to_owned(),
        https: false,
        forwarded_proto: false,
        forwarded_host: None,
        status: 200,
        age_us: number as u64,
    };
    (0..number).map(request).collect()
}

/// Two workers of generation 1 serve and remember three requests.
fn world() -> World {
    let mut world = World::serving(rehearsing(2));
    world.remembered = requests(3);
    world
}

impl World {
    #[track_caller]
    fn generation_1_serves_alone(&mut self) {
        self.run();
        let all = (self.accepting(1), self.alive.len(), self.templates.len(), self.supervisor.generations().len());
        assert_eq!(all, (2, 2, 1, 1), "{:#?}", self.log);
    }

    #[track_caller]
    fn generation_serves(&mut self, number: u32) {
        self.run();
        assert_eq!(
            (self.last_verdict(), self.accepting(number), self.alive.len()),
            (&End::Committed, 2, 2),
            "{:#?}",
            self.log
        );
    }

    #[track_caller]
    fn rehearsal_refused_for(&mut self, reason: &str) -> String {
        self.run();
        let End::Refused(refusal) = self.last_verdict() else { panic!("{:?}: {:#?}", self.last_verdict(), self.log) };
        assert_eq!(refusal.reason, reason);
        refusal.details.clone()
    }

    fn waits_for(&self, generation: u32) -> String {
        self.supervisor.generation(GenerationId(generation)).and_then(Generation::waiting).unwrap_or_default()
    }
}

#[test]
fn a_release_that_answers_as_before_takes_over() {
    let mut world = world();
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(2);
    // Two workers remember the same three.
    assert_eq!(world.rehearsed, ["/0", "/1", "/2"]);
    assert!(world.logged("rehearsal gen=2 after=0ms: 3 of 3 as before"), "{:#?}", world.log);
    let concluded = world.concluded.last().expect("it has ended");
    assert_eq!(concluded.rehearsal.as_deref(), Some("3 of 3 as before"));
    let proved = world.log.iter().position(|line| line.contains("gen=2 proved"));
    assert!(proved > world.log.iter().position(|line| line.starts_with("rehearsal gen=2")));
}

#[test]
fn a_release_that_answers_otherwise_is_refused_and_nobody_notices() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Differs;
    world.reload(rehearsing(2), Behaviour::Healthy);
    let details = world.rehearsal_refused_for("rehearsal: 2 of 3 as before; /2 200 -> 500");
    assert_eq!(details, "GET /2\nTraceback");
    world.generation_1_serves_alone();
    assert_eq!(world.fewest_accepting, 2);
    let concluded = world.concluded.last().expect("it has ended");
    assert_eq!(concluded.rehearsal.as_deref(), Some("2 of 3 as before; /2 200 -> 500"));
    // The next one is another.
    world.rehearses = RehearsalBehaviour::AsBefore;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(3);
}

#[test]
fn a_difference_may_be_a_warning_only() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Differs;
    world.reload(warning(2), Behaviour::Healthy);
    world.generation_serves(2);
    let warned = |note: &Note| matches!(note, Note::Rehearsal(told) if told.level() == log::Level::Warn);
    assert!(world.notes.iter().any(warned), "{:#?}", world.log);
}

#[test]
fn a_release_that_hangs_is_told_in_which_request_with_its_stacks() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Hangs;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    assert_eq!(
        (world.state(2), world.waits_for(2)),
        (Some("proving"), "the rehearsal, in which 0 of 3 requests are answered".to_owned())
    );
    world.pass(SECOND * 5);
    assert_eq!(world.state(2), Some("proving"), "its stacks are asked for");
    world.pass(SECOND);
    let details = world
        .rehearsal_refused_for("rehearsal: 0 of 1 as before; /0 200 -> no answer within 5.0s; 2 not asked after that");
    assert!(details.starts_with("GET /0\nstacks of "), "{details}");
    world.generation_1_serves_alone();
    assert_eq!(world.kills.len(), 1);
}

#[test]
fn where_a_hang_is_a_warning_another_candidate_proves_the_release() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Hangs;
    world.reload(warning(2), Behaviour::Healthy);
    world.pass(SECOND * 6);
    world.generation_serves(2);
    assert_eq!((world.rehearsed.len(), world.kills.len()), (1, 1));
    let proofs = world.booted[&GenerationId(2)];
    assert_eq!(proofs, 3, "the one that hung, and two that serve");
}

#[test]
fn an_answer_that_comes_while_stacks_are_looked_at_counts() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Hangs;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.pass(SECOND * 5);
    world.rehearses = RehearsalBehaviour::AsBefore;
    let candidate = *world.alive.iter().find(|(_, of)| of.0 == 2).expect("it rehearses").0;
    let answer = Rehearsed { number: 0, status: 200, details: String::new() };
    world.worker_event(candidate, WorkerEvent::Rehearsed(answer));
    world.generation_serves(2);
    assert!(world.kills.is_empty() && world.logged("3 of 3 as before"), "{:#?}", world.log);
}

#[test]
fn a_release_that_dies_is_told_in_which_request() {
    for plan in [rehearsing(2), warning(2)] {
        let mut world = world();
        world.rehearses = RehearsalBehaviour::Dies;
        world.reload(plan, Behaviour::Healthy);
        world.rehearsal_refused_for("the candidate died in the rehearsal, in GET /0: SIGSEGV");
        world.generation_1_serves_alone();
    }
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Leaves;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.rehearsal_refused_for("the candidate left the rehearsal, in GET /0");
    world.generation_1_serves_alone();
}

/// Its channel is closed and it does not end.
#[test]
fn a_candidate_that_is_not_heard_any_more_ends_the_rehearsal() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::IsLost;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.pass(SECOND * 20);
    assert!(matches!(world.last_verdict(), End::Refused(_)), "{:#?}", world.log);
    world.generation_1_serves_alone();
}

#[test]
fn what_nobody_asked_is_not_believed() {
    let mut world = world();
    world.rehearses = RehearsalBehaviour::Babbles;
    let stranger = world.some_worker(1);
    world.worker_event(stranger, WorkerEvent::Remembered { requests: requests(9), more: false });
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(2);
    assert!(world.logged("3 of 3 as before"), "{:#?}", world.log);
    // A worker tells more than was asked, and what no worker of ours would.
    let mut world = World::serving(rehearsing(2));
    world.remembered = vec![Remembered { status: 500, ..requests(1)[0].clone() }];
    world.recall_is_lost = true;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    let worker = world.some_worker(1);
    world.worker_event(worker, WorkerEvent::Remembered { requests: requests(100), more: false });
    world.worker_event(worker, WorkerEvent::Remembered { requests: requests(100), more: false });
    world.pass(SECOND);
    world.generation_serves(2);
    assert_eq!(world.rehearsed.len(), 10);
    assert!(world.logged("10 of 10 as before; 1 of 2 old workers did not say what they remember"), "{:#?}", world.log);
}

/// As found: a worker that remembered more than fits into a message told no more.
#[test]
fn what_does_not_fit_into_a_message_is_asked_for() {
    let mut world = world();
    world.remembered = requests(9);
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(2);
    assert!(world.logged("9 of 9 as before"), "{:#?}", world.log);
    // Whoever never says all is believed as far as was asked, and is not asked for ever.
    let mut world = World::serving(rehearsing(2));
    world.remembered = requests(4);
    world.recall_is_lost = true;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    for worker in world.alive.keys().copied().collect::<Vec<_>>() {
        for _ in 0..3 {
            world.worker_event(worker, WorkerEvent::Remembered { requests: requests(4), more: true });
        }
    }
    world.generation_serves(2);
    assert!(world.logged("4 of 4 as before"), "{:#?}", world.log);
}

#[test]
fn workers_that_say_nothing_are_waited_for_for_a_second() {
    let mut world = world();
    world.recall_is_lost = true;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    assert_eq!(world.waits_for(2), "the requests that the old workers remember");
    world.pass(SECOND);
    world.generation_serves(2);
    let why = "rehearsal gen=2 left out: the old workers remember no request; 2 of 2 old workers did not say";
    assert!(world.logged(why), "{:#?}", world.log);
}

#[test]
fn one_that_dies_meanwhile_is_not_waited_for() {
    let mut world = world();
    world.recall_is_lost = true;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    let (dies, answers) = (world.some_worker(1), *world.accepting.iter().last().expect("two serve"));
    world.worker_event(answers, WorkerEvent::Remembered { requests: requests(1), more: false });
    assert_eq!(world.state(2), Some("proving"));
    world.exit(dies, killed());
    assert!(world.logged("-> rolling") || !world.rehearsed.is_empty(), "{:#?}", world.log);
    world.pass(SECOND * 5);
    world.generation_serves(2);
}

#[test]
fn what_takes_too_long_in_all_is_not_asked() {
    let mut world = World::serving(rehearsing(2));
    world.remembered = requests(3);
    world.rehearses = RehearsalBehaviour::Hangs;
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    let candidate = *world.alive.iter().find(|(_, of)| of.0 == 2).expect("it rehearses").0;
    for (number, seconds) in [(0, 4), (1, 27)] {
        world.now += SECOND * seconds;
        let answer = Rehearsed { number, status: 200, details: String::new() };
        world.worker_event(candidate, WorkerEvent::Rehearsed(answer));
    }
    world.generation_serves(2);
    assert!(world.logged("2 of 2 as before; 1 not asked within 30.0s (rehearse_timeout)"), "{:#?}", world.log);
}

#[test]
fn there_is_nothing_to_rehearse() {
    // At a first start.
    let world = World::serving(rehearsing(2));
    assert!(!world.logged("rehearsal"), "{:#?}", world.log);
    // After a generation that was not told to remember.
    let mut world = World::serving(plan(2));
    world.remembered = requests(3);
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(2);
    assert!(world.logged("rehearsal gen=2 left out: generation 1 was started without `rehearse`"), "{:#?}", world.log);
    // Where the settings do not ask for it any more.
    world.reload(plan(2), Behaviour::Healthy);
    world.generation_serves(3);
    assert!(!world.logged("rehearsal gen=3"), "{:#?}", world.log);
    // Where nobody has asked anything, and where the workers are switched off.
    let mut world = World::serving(rehearsing(2));
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.generation_serves(2);
    assert!(world.logged("rehearsal gen=2 left out: the old workers remember no request"), "{:#?}", world.log);
    world.ask(Ask::ScaleTo { workers: 0, wait: false });
    world.run();
    world.remembered = requests(3);
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    assert_eq!((world.last_verdict(), world.alive.len(), world.rehearsed.len()), (&End::Committed, 0, 0));
}

#[test]
fn rollbacks_and_paused_reloads_have_none() {
    let mut world = world();
    world.reload(Plan { rollback_window: MINUTE, ..rehearsing(2) }, Behaviour::Healthy);
    world.generation_serves(2);
    world.rehearses = RehearsalBehaviour::Differs;
    world.reload(Plan { origin: Some(GenerationId(1)), ..rehearsing(2) }, Behaviour::Healthy);
    world.generation_serves(3);
    assert!(world.logged("rehearsal gen=3 left out: a rollback"), "{:#?}", world.log);
    let pause = PausePlan { timeout: MINUTE, has_command: true, has_probe: true, maintenance: None };
    world.reload(Plan { pause: Some(Box::new(pause)), surge: Surge::Auto, ..rehearsing(2) }, Behaviour::Healthy);
    world.generation_serves(4);
    assert!(world.logged("rehearsal gen=4 left out: "), "{:#?}", world.log);
}

#[test]
fn a_canary_comes_after_it() {
    let mut world = World::serving(rehearsing(4));
    world.remembered = requests(3);
    let canary = CanaryPlan { workers: 1, hold: MINUTE, bounds: super::canary::BOUNDS };
    let trying = Plan { canary: Some(Box::new(canary)), surge: Surge::Auto, ..rehearsing(4) };
    world.rehearses = RehearsalBehaviour::Differs;
    world.reload(trying.clone(), Behaviour::Healthy);
    world.rehearsal_refused_for("rehearsal: 2 of 3 as before; /2 200 -> 500");
    world.rehearses = RehearsalBehaviour::AsBefore;
    world.reload(trying, Behaviour::Healthy);
    world.run();
    assert!(world.logged("rehearsal gen=3") && world.logged("canary gen=3 serves"), "{:#?}", world.log);
    world.pass(MINUTE);
    assert_eq!(world.last_verdict(), &End::Committed);
}

/// Paused workers remember as well as others.
#[test]
fn an_operators_pause_changes_nothing() {
    let mut world = world();
    world.ask(Ask::Pause { timeout: MINUTE, maintenance: None });
    world.run();
    world.reload(rehearsing(2), Behaviour::Healthy);
    world.run();
    assert!(world.logged("3 of 3 as before"), "{:#?}", world.log);
    world.ask(Ask::Resume);
    world.generation_serves(2);
}

#[test]
fn whoever_comes_in_between_does_not_wait_for_an_answer() {
    for lost in [true, false] {
        // A later reload.
        let mut world = world();
        (world.recall_is_lost, world.rehearses) = (lost, RehearsalBehaviour::Hangs);
        world.reload(rehearsing(2), Behaviour::Healthy);
        world.run();
        (world.recall_is_lost, world.rehearses) = (false, RehearsalBehaviour::AsBefore);
        world.reload(rehearsing(2), Behaviour::Healthy);
        world.generation_serves(3);
        assert_eq!(world.kills.len(), usize::from(!lost), "{:#?}", world.log);
        // TERM.
        (world.recall_is_lost, world.rehearses) = (lost, RehearsalBehaviour::Hangs);
        world.reload(rehearsing(2), Behaviour::Healthy);
        world.run();
        world.ask(Ask::Stop);
        world.run();
        assert_eq!((world.exit, world.alive.len()), (Some(0), 0), "{:#?}", world.log);
    }
}
