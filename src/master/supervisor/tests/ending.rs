//! Random events before an end and after it was asked for. The service is as broken as it happens to be, and ends all the
//! same.

use super::super::asks::Amount;
use super::random::{any_maintenance, any_plan, Dice, BEHAVIOURS, COMMANDS, REHEARSALS};
use super::*;

/// From the first start on, which may fail; whatever comes before TERM, INT or `stop`, and after it: the master ends, signals
/// nobody twice, and has answered everybody once.
#[test]
fn whatever_comes_an_end_is_an_end() {
    let mut exits = BTreeSet::new();
    for seed in 0..300u64 {
        let mut dice = Dice::new(seed);
        let mut world = World::new();
        let mut asked: BTreeSet<AskId> = BTreeSet::new();
        let shutdown_delay = Duration::from_secs([0, 0, 7][dice.roll(3)]);
        world.reload(
            Plan { pause: None, shutdown_delay, ..any_plan(&mut dice) },
            BEHAVIOURS[if dice.roll(3) == 0 { dice.roll(16) } else { 0 }],
        );
        world.room.bytes = [None, Some(0), Some(100)][dice.roll(3)];
        let end_at = dice.roll(40);
        for turn in 0..end_at + 10 {
            disturb(&mut world, &mut dice, &mut asked);
            if turn >= end_at && dice.roll(3) == 0 {
                let stop = [Ask::Stop, Ask::Stop, Ask::StopNow][dice.roll(3)].clone();
                let asker = (dice.roll(2) == 0).then(|| ask_id(&mut asked));
                world.event(Event::Ask { asker, ask: stop });
            }
            for _ in 0..dice.roll(6) {
                world.step();
            }
            assert!(world.kills.values().all(|kills| *kills == 1), "seed {seed}: {:#?}", world.log);
        }
        world.carry_out_all();
        world.nobody_dies = dice.roll(4) == 0;
        world.ask(Ask::Stop);
        world.pass(MINUTE * 60);
        assert!(world.exit.is_some(), "seed {seed}: {:#?}", world.log);
        exits.extend(world.exit);
        assert!(world.kills.values().all(|kills| *kills == 1), "seed {seed}: {:#?}", world.log);
        for ask in asked {
            let answers = world.answers.iter().filter(|(answered, _)| *answered == ask).count();
            assert_eq!(answers, 1, "seed {seed}: {ask:?} {:#?}", world.log);
        }
        let is_left = world.alive.len() + world.templates.len() + world.services.len();
        assert!(world.nobody_dies || is_left == 0, "seed {seed}: {:#?}", world.log);
    }
    assert_eq!(exits, BTreeSet::from([0, 69, 75]));
}

fn ask_id(asked: &mut BTreeSet<AskId>) -> AskId {
    let ask = AskId(asked.len() as u64 + 1);
    asked.insert(ask);
    ask
}

fn disturb(world: &mut World, dice: &mut Dice, asked: &mut BTreeSet<AskId>) {
    world.carry_out_all();
    if world.commanding.is_none() {
        world.command = COMMANDS[dice.roll(COMMANDS.len())];
    }
    world.rehearses = REHEARSALS[dice.roll(REHEARSALS.len())];
    world.remembered = rehearsal::requests(dice.roll(3));
    (world.services_stop, world.services_say_ready) = (dice.roll(2) == 0, dice.roll(2) == 0);
    (world.runs_end, world.pings_are_lost) = (dice.roll(2) == 0, dice.roll(4) == 0);
    world.refuse_listeners = (dice.roll(10) == 0).then_some(ExitCode::InUse);
    let someone = world.alive.keys().nth(dice.roll(world.alive.len().max(1))).copied();
    let template = world.templates.iter().nth(dice.roll(world.templates.len().max(1))).copied();
    let is_born = someone.and_then(|worker| world.supervisor.worker(worker)?.1.pid).is_some();
    match (dice.roll(12), someone, template) {
        (0, _, _) => drop(world.reload(any_plan(dice), BEHAVIOURS[dice.roll(BEHAVIOURS.len())])),
        (1, Some(worker), _) if is_born => world.exit(worker, killed()),
        (1, Some(worker), _) => world.exit(worker, Exit::LostAtBirth),
        (2 | 3, Some(worker), _) if is_born => {
            let events = [
                WorkerEvent::ChannelLost,
                WorkerEvent::Garbled,
                WorkerEvent::RequestsServed,
                WorkerEvent::TooBig,
                WorkerEvent::Slow,
                WorkerEvent::Stuck(Stuck::Silent),
                WorkerEvent::Stuck(Stuck::Request(7)),
                WorkerEvent::Unstuck,
                WorkerEvent::StillStuck { others: 1 },
                WorkerEvent::Leaving { reason: "TERM".to_owned() },
                WorkerEvent::Drained { threads: Vec::new() },
                WorkerEvent::Drained { threads: vec!["bg".to_owned()] },
                WorkerEvent::Ready(Boot::default()),
                WorkerEvent::Failed(refusal("ImportError: no")),
                WorkerEvent::Serving,
                WorkerEvent::Draining,
                WorkerEvent::Paused,
                WorkerEvent::Probed(None),
                WorkerEvent::Probed(Some(refusal("500"))),
            ];
            let event = events[dice.roll(events.len())].clone();
            if matches!(event, WorkerEvent::Drained { .. } | WorkerEvent::Leaving { .. } | WorkerEvent::ChannelLost) {
                world.accepting.remove(&worker);
                world.drained.insert(worker);
            }
            world.worker_event(worker, event);
        }
        (4, _, Some(template)) => {
            let events = [
                TemplateEvent::Exited(killed()),
                TemplateEvent::ChannelLost,
                TemplateEvent::Broken { reason: "nonsense".to_owned() },
                TemplateEvent::Failed(refusal("SyntaxError")),
                TemplateEvent::Loaded,
                TemplateEvent::Pong { ping: 1 },
            ];
            world.template_event(template, events[dice.roll(events.len())].clone());
        }
        (5..=7, _, _) => {
            let asks = [
                Ask::Reload { deploy: ON_DISK, wait: true },
                Ask::Reload { deploy: ON_DISK, wait: false },
                Ask::Ready,
                Ask::Scale { by: dice.roll(5) as i32 - 2, wait: true },
                Ask::ScaleTo { workers: dice.roll(4) as u32, wait: true },
                Ask::Recycle { slot: SlotIndex(dice.roll(4) as u32), keep: None, wait: true },
                Ask::Recycle { slot: SlotIndex(dice.roll(4) as u32), keep: Some(MINUTE), wait: true },
                Ask::ScaleService { name: "service0".to_owned(), amount: Amount::To(dice.roll(3) as u32), wait: true },
                Ask::RecycleService { name: "service0".to_owned(), number: None, wait: true },
                Ask::Dump { slot: None },
                Ask::Promote { wait: true },
                Ask::Abandon,
                Ask::Upgrade { timeout: Duration::from_secs(dice.roll(20) as u64) },
                Ask::Pause { timeout: Duration::from_secs(dice.roll(20) as u64), maintenance: any_maintenance(dice) },
                Ask::Resume,
            ];
            let asker = Some(ask_id(asked));
            world.event(Event::Ask { asker, ask: asks[dice.roll(asks.len())].clone() });
        }
        (8, _, _) => world.event(Event::MemoryShort { kept_bytes: 50 }),
        (9, _, _) => {
            let ask = AskId(1 + dice.roll(asked.len().max(1)) as u64);
            let is_answered = world.answers.iter().any(|(answered, _)| *answered == ask);
            if !is_answered && world.supervisor.asking().any(|asking| asking == ask) {
                world.event(Event::Left { ask });
                // Nobody hears the answer.
                world.answers.push((ask, Outcome::Asked));
            }
        }
        (_, _, _) => world.pass(Duration::from_secs(dice.roll(20) as u64)),
    }
    world.carry_out_all();
    while let Some(asker) = world.configure.pop_front() {
        world.generation += 1;
        let generation = GenerationId(world.generation);
        let result = if dice.roll(3) == 0 { Err(Refusal::new("no")) } else { Ok((generation, any_plan(dice))) };
        world.behaviour.insert(generation, BEHAVIOURS[dice.roll(BEHAVIOURS.len())]);
        world.event(Event::Configured {
            verb: Verb::Reload,
            askers: asker.into_iter().collect(),
            began: world.now,
            result,
        });
        world.carry_out_all();
    }
}
