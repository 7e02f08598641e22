//! The rehearsal: before a release takes over, its candidate answers requests that the old generation has answered of late,
//! and the answers are compared (`answers`). It is the last part of proving: nobody serves for it, and no client notices.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | Off | a reload begins, and the settings ask for it | ToCome | |
//! | Off | a first start, a rollback, `--pause` | Off | the last two are noted |
//! | ToCome | the candidate is ready | Recalling | the workers that serve are asked what they remember |
//! | ToCome | the old generation was not told to remember | Off | noted |
//! | Recalling | all have said it, are gone, or a second is over | Answering | the candidate is asked the first |
//! | Recalling | they remember nothing | Off | noted |
//! | Answering | an answer | Answering | the next request |
//! | Answering | no answer in time | Answering, looked | its stacks are asked for, and stand in the refusal |
//! | Answering | still none | Off | the candidate is killed, and its answers are judged |
//! | Answering | the last answer, or the time is over | Off | judged: refused, or noted and it goes on |
//! | Answering | the candidate dies or leaves | abandoned | the request is named |
//! | any | superseded, TERM | Off | the candidate is killed: nobody waits for its answer |
//!
//! Requests are asked one by one, so that the one is known in which a release hangs or dies. What workers say is believed within
//! the bounds of `wire::rehearsal`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forkmaster_wire::message::WorkerId;
use forkmaster_wire::rehearsal::Remembered;

use super::answers::{merge, Answers};
use super::dump::STACKS_WITHIN;
use super::generation::{Generation, State};
use super::worker::State as WorkerState;
use super::{Action, Supervisor, EXIT_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;
use crate::facts::rehearsal::{Rehearsal as Told, Verdict};

/// A worker's control thread answers in milliseconds, whatever its application does; one that is stopped never does.
const RECALLED_WITHIN: Duration = Duration::from_secs(1);

/// For both ways to a worker's stacks.
const LOOKED_AT_WITHIN: Duration = Duration::from_millis(2 * STACKS_WITHIN.as_millis() as u64 + 100);

/// What `[reload] rehearse` and its neighbours ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RehearsalPlan {
    pub requests: u32,
    /// A difference refuses the release; else it is only told.
    pub refuses: bool,
    /// For all requests together: who is not asked by then is not asked.
    pub timeout: Duration,
    /// For each.
    pub request_timeout: Duration,
}

#[derive(Clone, Debug, Default)]
pub enum Rehearsal {
    /// There is none, or it is over.
    #[default]
    Off,
    /// The candidate boots.
    ToCome,
    /// These workers were asked what they remember and have not said all of it yet, but so many requests; the others have.
    Recalling {
        missing: BTreeMap<WorkerId, u32>,
        heard: Heard,
        answer_by: Instant,
    },
    Answering(Box<Trial>),
}

/// What a candidate has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    pub number: u32,
    /// 0: none was begun.
    pub status: u16,
    pub details: String,
}

/// What workers remember.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    requests: Vec<Remembered>,
    /// So many workers have said something, of those that were asked.
    workers: usize,
    of: usize,
}

/// A candidate in its rehearsal.
#[derive(Clone, Debug)]
pub struct Trial {
    worker: WorkerId,
    /// The first that has no answer is the one that was asked.
    requests: Vec<Remembered>,
    answers: Answers,
    /// For the sentence at the end: whose requests are missing.
    silence: String,
    began: Instant,
    until: Instant,
    answer_by: Instant,
    /// Its time is over, and its stacks were asked for.
    looked: bool,
}

impl Trial {
    fn number(&self) -> u32 {
        self.answers.number() as u32
    }

    fn asked(&self) -> Option<&Remembered> {
        self.requests.get(self.answers.number())
    }
}

impl Rehearsal {
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            // Where nobody is missing the candidate's turn has come, or that of the one after it.
            Rehearsal::Recalling { missing, answer_by, .. } => (!missing.is_empty()).then_some(*answer_by),
            Rehearsal::Answering(trial) => Some(trial.answer_by),
            Rehearsal::Off | Rehearsal::ToCome => None,
        }
    }

    /// What it waits for, for `status`.
    pub fn waiting(&self) -> Option<String> {
        match self {
            Rehearsal::Recalling { .. } => Some("the requests that the old workers remember".to_owned()),
            Rehearsal::Answering(trial) => {
                let (answered, all) = (trial.answers.number(), trial.requests.len());
                Some(format!("the rehearsal, in which {answered} of {all} requests are answered"))
            }
            Rehearsal::Off | Rehearsal::ToCome => None,
        }
    }
}

impl Generation {
    fn rehearsal_plan(&self) -> Option<RehearsalPlan> {
        self.plan.rehearsal.as_deref().copied()
    }
}

impl Supervisor {
    /// A generation begins to prove itself.
    pub(super) fn plan_rehearsal(&mut self, at: usize) {
        let generation = &self.generations[at];
        let plan = &generation.plan;
        if plan.rehearsal.is_none() || self.serving().is_none() {
            return;
        }
        let why = if plan.origin.is_some() {
            Some("a rollback goes back to what has served")
        } else if plan.pause.is_some() {
            Some("the release can only answer after its pause has begun, and then everybody waits")
        } else {
            None
        };
        match why {
            Some(why) => self.skip_rehearsal(at, why.to_owned()),
            None => self.generations[at].rehearsal = Rehearsal::ToCome,
        }
    }

    /// The candidate is ready. True: it has nothing to rehearse, or has done so.
    pub(super) fn rehearse(&mut self, at: usize, candidate: WorkerId, now: Instant) -> bool {
        if let Rehearsal::ToCome = self.generations[at].rehearsal {
            self.begin_recalling(at, now);
        }
        self.stop_waiting_for_the_dead(at);
        match std::mem::take(&mut self.generations[at].rehearsal) {
            Rehearsal::Recalling { missing, heard, .. } if missing.is_empty() => {
                self.begin_answering(at, candidate, heard, now);
            }
            goes_on => self.generations[at].rehearsal = goes_on,
        }
        matches!(self.generations[at].rehearsal, Rehearsal::Off)
    }

    fn begin_recalling(&mut self, at: usize, now: Instant) {
        let (Some(plan), Some(serving)) = (self.generations[at].rehearsal_plan(), self.serving()) else {
            return self.skip_rehearsal(at, "nobody serves any more".to_owned());
        };
        if serving.plan.rehearsal.is_none() {
            let why = format!("generation {} was started without `rehearse`, and remembers no requests", serving.id);
            return self.skip_rehearsal(at, why);
        }
        let asked = serving.workers.iter().filter(|worker| worker.is_in_service());
        let mut missing: BTreeMap<WorkerId, u32> = BTreeMap::new();
        missing.extend(asked.map(|worker| (worker.id, 0)));
        let requests = plan.requests;
        self.actions.extend(missing.keys().map(|worker| Action::Recall { worker: *worker, requests, skip: 0 }));
        let (heard, answer_by) = (Heard { of: missing.len(), ..Heard::default() }, now + RECALLED_WITHIN);
        self.generations[at].rehearsal = Rehearsal::Recalling { missing, heard, answer_by };
    }

    fn stop_waiting_for_the_dead(&mut self, at: usize) {
        let workers = self.generations.iter().flat_map(|generation| &generation.workers);
        let alive: Vec<WorkerId> = workers.map(|worker| worker.id).collect();
        if let Rehearsal::Recalling { missing, .. } = &mut self.generations[at].rehearsal {
            missing.retain(|worker, _| alive.contains(worker));
        }
    }

    /// The answer to `Action::Recall`. From whoever was not asked it means nothing.
    pub(super) fn on_remembered(&mut self, worker: WorkerId, requests: Vec<Remembered>, more: bool) {
        let transaction = self.generations.iter_mut().find(|generation| generation.state == State::Proving);
        let Some(generation) = transaction else { return };
        let most = generation.rehearsal_plan().map_or(0, |plan| plan.requests);
        let Rehearsal::Recalling { missing, heard, .. } = &mut generation.rehearsal else { return };
        let Some(told) = missing.get_mut(&worker) else { return };
        let before = *told;
        heard.requests.extend(requests.into_iter().take((most - before) as usize).inspect(|_| *told += 1));
        // One that says `more` and tells nothing would be asked for ever.
        if more && (before + 1..most).contains(told) {
            let skip = *told;
            return self.actions.push(Action::Recall { worker, requests: most, skip });
        }
        missing.remove(&worker);
        heard.workers += 1;
    }

    fn begin_answering(&mut self, at: usize, worker: WorkerId, heard: Heard, now: Instant) {
        let Some(plan) = self.generations[at].rehearsal_plan() else { return };
        let silence = heard.silence();
        let requests = merge(heard.requests, plan.requests);
        if requests.is_empty() {
            return self.skip_rehearsal(at, format!("the old workers remember no request{silence}"));
        }
        let (began, until, answer_by) = (now, now + plan.timeout, now + plan.request_timeout);
        let answers = Answers::default();
        let trial = Trial { worker, requests, answers, silence, began, until, answer_by, looked: false };
        self.ask_candidate(&trial);
        self.generations[at].rehearsal = Rehearsal::Answering(Box::new(trial));
    }

    fn ask_candidate(&mut self, trial: &Trial) {
        if let Some(request) = trial.asked().cloned() {
            self.actions.push(Action::Rehearse { worker: trial.worker, number: trial.number(), request });
        }
    }

    /// The answer to `Action::Rehearse`. One that was not asked for means nothing.
    pub(super) fn on_rehearsed(&mut self, at: usize, worker: WorkerId, answer: Rehearsed, now: Instant) {
        let generation = &mut self.generations[at];
        let Some(plan) = generation.rehearsal_plan() else { return };
        let mut trial = match std::mem::take(&mut generation.rehearsal) {
            Rehearsal::Answering(trial) if trial.worker == worker && trial.number() == answer.number => trial,
            goes_on => return generation.rehearsal = goes_on,
        };
        let Trial { requests, answers, .. } = &mut *trial;
        if let Some(request) = requests.get(answers.number()) {
            answers.answered(request, answer.status, answer.details);
        }
        (trial.answer_by, trial.looked) = (now + plan.request_timeout, false);
        if trial.asked().is_none() || now >= trial.until {
            return self.end_rehearsal(at, *trial, now);
        }
        self.ask_candidate(&trial);
        self.generations[at].rehearsal = Rehearsal::Answering(trial);
    }

    /// What it answers is judged: the release is refused, or goes on.
    fn end_rehearsal(&mut self, at: usize, trial: Trial, now: Instant) {
        let Trial { requests, answers, silence, began, .. } = trial;
        let Some(plan) = self.generations[at].rehearsal_plan() else { return };
        self.generations[at].rehearsal = Rehearsal::Off;
        let unasked = match requests.len() - answers.number() {
            0 => String::new(),
            unasked if now >= trial.until => {
                format!("; {unasked} not asked within {:.1}s (rehearse_timeout)", plan.timeout.as_secs_f64())
            }
            unasked => format!("; {unasked} not asked after that"),
        };
        let (generation, words) = (self.generations[at].id, format!("{answers}{unasked}{silence}"));
        self.generations[at].rehearsed = Some(words.clone());
        let after_ms = now.saturating_duration_since(began).as_millis() as u64;
        let is_good = answers.are_as_before();
        if !is_good && plan.refuses {
            let reason = format!("rehearsal: {words}");
            return self.refuse(generation, Refusal { details: answers.details(), ..Refusal::new(reason) }, now);
        }
        let result = if is_good { Verdict::AsBefore } else { Verdict::Differs };
        self.note(Note::Rehearsal(Told { generation, result, words, details: answers.details(), after_ms }));
    }

    fn skip_rehearsal(&mut self, at: usize, why: String) {
        self.generations[at].rehearsal = Rehearsal::Off;
        let generation = self.generations[at].id;
        let (result, details) = (Verdict::LeftOut, String::new());
        self.note(Note::Rehearsal(Told { generation, result, words: why, details, after_ms: 0 }));
    }

    pub(super) fn expire_rehearsal(&mut self, at: usize, now: Instant) {
        let generation = &mut self.generations[at];
        match &mut generation.rehearsal {
            Rehearsal::Recalling { missing, answer_by, .. } if *answer_by <= now => missing.clear(),
            Rehearsal::Answering(trial) if trial.answer_by <= now => {
                let id = trial.worker;
                let state = generation.workers.iter().find(|worker| worker.id == id).map(|worker| &worker.state);
                // Its channel is closed: its end, or the deadline for that, comes soon and says more.
                let is_gone = state != Some(&WorkerState::Ready);
                if is_gone || !trial.looked {
                    trial.looked = true;
                    trial.answer_by = now + if is_gone { EXIT_WITHIN } else { LOOKED_AT_WITHIN };
                    if !is_gone {
                        self.actions.push(Action::LookAt { worker: id });
                        self.await_stacks(at, id, now);
                    }
                    return;
                }
                let trial = (**trial).clone();
                self.candidate_hangs(at, trial, now);
            }
            Rehearsal::Off | Rehearsal::ToCome | Rehearsal::Recalling { .. } | Rehearsal::Answering(_) => {}
        }
    }

    /// The candidate will not serve any more: where the release goes on, another one proves it.
    fn candidate_hangs(&mut self, at: usize, mut trial: Trial, now: Instant) {
        let generation = &mut self.generations[at];
        let limit = generation.rehearsal_plan().map_or(Duration::ZERO, |plan| plan.request_timeout);
        let worker = generation.worker(trial.worker);
        let (slot, stacks) = worker.map_or_else(Default::default, |worker| (Some(worker.slot), worker.stacks.clone()));
        if let Some(request) = trial.asked().cloned() {
            trial.answers.hangs(&request, limit, stacks);
        }
        if let Some(slot) = slot {
            generation.slot_mut(slot).proved = false;
        }
        self.kill(at, trial.worker, now);
        self.end_rehearsal(at, trial, now);
    }

    /// Whoever rehearses must stay until the end. Its death is told by whoever sees it.
    pub(super) fn check_rehearsal(&mut self, at: usize, now: Instant) {
        let Some(words) = self.rehearsed_by(at, None) else { return };
        let Rehearsal::Answering(trial) = &self.generations[at].rehearsal else { return };
        let state = self.generations[at].worker(trial.worker).map(|worker| &worker.state);
        if !matches!(state, Some(WorkerState::Ready | WorkerState::Starting { .. } | WorkerState::Lost { .. })) {
            let reason = format!("the candidate left {words}");
            self.refuse(self.generations[at].id, Refusal::new(reason), now);
        }
    }

    /// The request that a worker (None: any) is asked in its rehearsal, in words.
    pub(super) fn rehearsed_by(&self, at: usize, worker: Option<WorkerId>) -> Option<String> {
        let Rehearsal::Answering(trial) = &self.generations[at].rehearsal else { return None };
        let is_it = worker.is_none_or(|worker| worker == trial.worker);
        trial.asked().filter(|_| is_it).map(|request| format!("the rehearsal, in GET {}", request.shown()))
    }

    /// Its generation is given up. Nobody waits for the answer, and a request that hangs must not keep a process.
    pub(super) fn end_of_rehearsal(&mut self, at: usize, now: Instant) {
        if let Rehearsal::Answering(trial) = std::mem::take(&mut self.generations[at].rehearsal) {
            self.kill(at, trial.worker, now);
        }
    }
}

impl Heard {
    /// Whose requests are missing.
    fn silence(&self) -> String {
        match self.of - self.workers {
            0 => String::new(),
            silent => format!("; {silent} of {} old workers did not say what they remember", self.of),
        }
    }
}
