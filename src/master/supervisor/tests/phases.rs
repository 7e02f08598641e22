//! Whatever comes in whichever phase of a paused reload: a table of both. In each cell the phase stands still, something comes,
//! and the phase goes on.

use super::super::generation::Step;
use super::super::pause::PausePlan;
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Boot,
    Pausing,
    Command,
    Probe,
    Step,
}

const PHASES: [Phase; 5] = [Phase::Boot, Phase::Pausing, Phase::Command, Phase::Probe, Phase::Step];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    Nothing,
    Hup,
    /// Of a client, who waits for the outcome.
    Reload,
    Left,
    Pause,
    Term,
    TermTwice,
    Kill,
    OldWorkerDies,
    OldTemplateDies,
    NewWorkerDies,
    NewTemplateDies,
    /// The phase does not go on.
    Hangs,
}

const COMES: [Comes; 13] = [
    Comes::Nothing,
    Comes::Hup,
    Comes::Reload,
    Comes::Left,
    Comes::Pause,
    Comes::Term,
    Comes::TermTwice,
    Comes::Kill,
    Comes::OldWorkerDies,
    Comes::OldTemplateDies,
    Comes::NewWorkerDies,
    Comes::NewTemplateDies,
    Comes::Hangs,
];

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    /// The new release serves.
    Committed,
    /// The old one does.
    Refused,
    /// A later reload serves, and this one was given up for it.
    Superseded,
    /// Both have committed, one after the other.
    Followed,
    Stopped,
    /// At once.
    Killed,
}

const ASKER: AskId = AskId(1);
const LATER: AskId = AskId(2);

fn paused() -> Plan {
    let pause = PausePlan { timeout: MINUTE, has_command: true, has_probe: true, maintenance: None };
    Plan { surge: Surge::Auto, pause: Some(Box::new(pause)), ..plan(2) }
}

fn expected(phase: Phase, comes: Comes) -> Becomes {
    let beyond_return = matches!(phase, Phase::Command | Phase::Probe | Phase::Step);
    match comes {
        Comes::Nothing | Comes::Left | Comes::Pause | Comes::OldWorkerDies | Comes::OldTemplateDies => {
            Becomes::Committed
        }
        Comes::Hup | Comes::Reload if beyond_return => Becomes::Followed,
        Comes::Hup | Comes::Reload => Becomes::Superseded,
        Comes::Term => Becomes::Stopped,
        Comes::TermTwice | Comes::Kill => Becomes::Killed,
        // Nobody else serves in the step, and nobody has proved itself at the boot. Else another one boots in time.
        Comes::NewWorkerDies if matches!(phase, Phase::Probe | Phase::Step) => Becomes::Refused,
        Comes::NewWorkerDies => Becomes::Committed,
        // The old workers are back at once where nobody else is sure to serve.
        Comes::NewTemplateDies if matches!(phase, Phase::Boot | Phase::Step) => Becomes::Refused,
        Comes::NewTemplateDies => Becomes::Committed,
        Comes::Hangs => Becomes::Refused,
    }
}

impl World {
    /// Answers the reload that was asked for with this plan.
    fn configure_all(&mut self, plan: Plan, behaviour: Behaviour) {
        while let Some(asker) = self.configure.pop_front() {
            self.generation += 1;
            let generation = GenerationId(self.generation);
            self.behaviour.insert(generation, behaviour);
            let result = Ok((generation, plan.clone()));
            self.event(Event::Configured {
                verb: Verb::Reload,
                askers: asker.into_iter().collect(),
                began: self.now,
                result,
            });
        }
    }

    fn stands_in(phase: Phase) -> World {
        let mut world = World::serving(plan(2));
        world.event(Event::Ask { asker: Some(ASKER), ask: Ask::Reload { deploy: ON_DISK, wait: true } });
        world.carry_out_all();
        let behaviour = match phase {
            Phase::Boot => Behaviour::TemplateHangs,
            Phase::Step => Behaviour::ServesMutely,
            Phase::Pausing | Phase::Command | Phase::Probe => Behaviour::Healthy,
        };
        if phase == Phase::Pausing {
            world.behaviour.insert(GenerationId(1), Behaviour::Streams);
        }
        if phase == Phase::Command {
            world.command = CommandBehaviour::Hangs;
        }
        world.probe_hangs = phase == Phase::Probe;
        world.configure_all(paused(), behaviour);
        world.run();
        let state = &world.supervisor.in_transaction().expect("it is under way").state;
        let stands = match (phase, state) {
            (Phase::Boot, State::Proving) => true,
            (_, State::Rolling { step, .. }) => match phase {
                Phase::Boot => false,
                Phase::Pausing => matches!(step, Step::Pausing { .. }),
                Phase::Command => matches!(step, Step::Commanding { .. }),
                Phase::Probe => matches!(step, Step::Probing { .. }),
                Phase::Step => matches!(step, Step::TakingOver { .. }),
            },
            (_, State::Proving | State::Serving | State::Draining | State::Kept | State::Abandoned) => false,
        };
        assert!(stands, "{phase:?}: {state:?}");
        assert_eq!(world.supervisor.held().is_some(), !matches!(phase, Phase::Boot | Phase::Step));
        world
    }

    fn new_worker(&self) -> Option<WorkerId> {
        self.alive.iter().find(|(_, of)| of.0 == 2).map(|(worker, _)| *worker)
    }

    fn comes(&mut self, comes: Comes) {
        let later = |asker| Event::Ask { asker, ask: Ask::Reload { deploy: ON_DISK, wait: asker.is_some() } };
        match comes {
            Comes::Nothing | Comes::Hangs => {}
            Comes::Hup => self.event(later(None)),
            Comes::Reload => self.event(later(Some(LATER))),
            Comes::Left => self.event(Event::Left { ask: ASKER }),
            Comes::Pause => self.ask(Ask::Pause { timeout: MINUTE, maintenance: None }),
            Comes::Term => self.ask(Ask::Stop),
            Comes::TermTwice => {
                self.ask(Ask::Stop);
                self.ask(Ask::Stop);
            }
            Comes::Kill => self.ask(Ask::StopNow),
            Comes::OldWorkerDies => {
                let old = self.alive.iter().find(|(_, of)| of.0 == 1).map(|(worker, _)| *worker);
                old.into_iter().for_each(|old| self.exit(old, killed()));
            }
            Comes::OldTemplateDies => self.template_event(GenerationId(1), TemplateEvent::Exited(killed())),
            Comes::NewWorkerDies => match (self.probed, self.new_worker()) {
                (Some(worker), _) | (None, Some(worker)) => self.exit(worker, killed()),
                // There is none yet.
                (None, None) => {}
            },
            Comes::NewTemplateDies => self.template_event(GenerationId(2), TemplateEvent::Exited(killed())),
        }
        self.carry_out_all();
        self.configure_all(plan(2), Behaviour::Healthy);
    }

    fn goes_on(&mut self, phase: Phase) {
        self.command = CommandBehaviour::EndsWell;
        self.probe_hangs = false;
        for behaviour in self.behaviour.values_mut() {
            *behaviour = Behaviour::Healthy;
        }
        match phase {
            Phase::Boot => self.soon_template(GenerationId(2), TemplateEvent::Loaded),
            Phase::Pausing => {
                for worker in
                    self.alive.iter().filter(|(_, of)| of.0 == 1).map(|(worker, _)| *worker).collect::<Vec<_>>()
                {
                    self.soon(worker, WorkerEvent::Paused);
                }
            }
            Phase::Command => self.happenings.push_back(Happening::Command(Exit::Code(0))),
            Phase::Probe => {
                let probed = self.probed.expect("it was asked");
                self.soon(probed, WorkerEvent::Probed(None));
            }
            Phase::Step => {
                for worker in
                    self.alive.iter().filter(|(_, of)| of.0 == 2).map(|(worker, _)| *worker).collect::<Vec<_>>()
                {
                    self.accepting.insert(worker);
                    self.soon(worker, WorkerEvent::Serving);
                }
            }
        }
        self.run();
        self.configure_all(plan(2), Behaviour::Healthy);
        self.run();
    }
}

#[test]
fn whatever_comes_in_each_phase_one_release_serves_and_everybody_is_answered() {
    let mut others = Vec::new();
    for (phase, comes) in PHASES.into_iter().flat_map(|phase| COMES.map(|comes| (phase, comes))) {
        let cell = format!("{comes:?} in {phase:?}");
        let mut world = World::stands_in(phase);
        world.comes(comes);
        if comes == Comes::Hangs {
            world.pass(MINUTE * 3);
        } else if world.exit.is_none() {
            world.goes_on(phase);
        }
        if comes == Comes::Pause {
            world.ask(Ask::Resume);
        }
        for behaviour in world.behaviour.values_mut() {
            *behaviour = Behaviour::Healthy;
        }
        world.pass(MINUTE * 3);
        world.configure_all(plan(2), Behaviour::Healthy);
        world.pass(MINUTE * 15);
        let end = |of: u32| world.verdicts.iter().find(|(id, _)| id.0 == of).map(|(_, end)| end.clone());
        let became = match (end(2), end(3), world.exit) {
            (Some(End::Committed), None, None) => Becomes::Committed,
            (Some(End::Committed), Some(End::Committed), None) => Becomes::Followed,
            (Some(End::Superseded { .. }), Some(End::Committed), None) => Becomes::Superseded,
            (Some(End::Refused(_)), None, None) => Becomes::Refused,
            (Some(End::Stopped), None, Some(0)) if matches!(comes, Comes::TermTwice | Comes::Kill) => Becomes::Killed,
            (Some(End::Stopped), None, Some(0)) => Becomes::Stopped,
            (second, third, exit) => panic!("{cell}: {second:?}, {third:?}, {exit:?}: {:#?}", world.log),
        };
        if became != expected(phase, comes) {
            others.push((cell, became, world.log));
            continue;
        }
        let serves = match became {
            Becomes::Committed => Some(2),
            Becomes::Refused => Some(1),
            Becomes::Superseded | Becomes::Followed => Some(3),
            Becomes::Stopped | Becomes::Killed => None,
        };
        match serves {
            Some(serves) => {
                let alone = world.supervisor.generations().len() == 1 && world.accepting(serves) == 2;
                assert!(alone && world.supervisor.held().is_none(), "{cell}: {:#?}", world.log);
            }
            None => assert!(world.alive.is_empty() && world.templates.is_empty(), "{cell}: {:#?}", world.log),
        }
        assert_eq!(world.commanding, None, "{cell}");
        let answers = |ask: AskId| world.answers.iter().filter(|(answered, _)| *answered == ask).count();
        assert_eq!(answers(ASKER), usize::from(comes != Comes::Left), "{cell}");
        assert_eq!(answers(LATER), usize::from(comes == Comes::Reload), "{cell}");
    }
    assert!(others.is_empty(), "{others:#?}");
}
