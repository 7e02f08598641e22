//! What operators ask, and who waits for what. An ask comes in with a number, and exactly one `Action::Answer` with
//! that number goes out, whatever happens meanwhile. Signals are asks that nobody waits for.

use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;

use super::generation::Generation;
use super::{Action, Phase, Supervisor};
use crate::facts::note::Note;
use crate::facts::outcome::{End, Outcome, Refusal, Reload};

/// One ask, unique while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new generation. Answered when it has committed or was refused; without `wait` as soon as it has a number.
    Reload { deploy: Deploy, wait: bool },
    /// Answered when a worker serves.
    Ready,
    /// So many workers more or fewer; survives reloads.
    Scale { by: i32 },
    /// Finish what was begun, then exit.
    Stop,
    /// Exit at once.
    StopNow,
}

/// What a new generation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deploy {
    /// What the configuration leads to now. `force`: also what was rolled back from.
    OnDisk { force: bool },
    /// The pinned directories and the settings of a generation that has served. None: of the one before this one.
    Back { to: Option<GenerationId> },
}

/// An ask that has no answer yet. Each kind is bounded by something that has a deadline.
#[derive(Debug)]
pub(super) struct Waiting {
    ask: AskId,
    on: On,
}

#[derive(Debug, PartialEq)]
enum On {
    /// Whoever reads the configuration has a deadline for it.
    Configuration { wait: bool },
    /// A transaction ends: each of its steps has a deadline.
    Transaction(GenerationId),
    /// The asker's own limit: it leaves.
    Ready,
}

impl Supervisor {
    pub(super) fn on_ask(&mut self, asker: Option<AskId>, ask: Ask, now: Instant) {
        match ask {
            Ask::Reload { .. } if self.phase != Phase::Running => {
                self.note(Note::ReloadIgnored);
                self.answer(asker, Outcome::Refused(Refusal::stopping()));
            }
            Ask::Reload { deploy, wait } => {
                self.wait(asker, On::Configuration { wait });
                self.actions.push(Action::Configure { asker, deploy });
            }
            Ask::Ready if self.phase != Phase::Running => self.answer(asker, Outcome::Refused(Refusal::stopping())),
            // Answered by `answer_ready`, perhaps at once.
            Ask::Ready => self.wait(asker, On::Ready),
            Ask::Scale { by } => self.on_scale(asker, by),
            Ask::Stop => {
                self.answer(asker, Outcome::Stopping);
                self.on_stop(asker.is_none(), now);
            }
            Ask::StopNow => {
                self.answer(asker, Outcome::Stopping);
                self.end(0, now);
            }
        }
    }

    fn on_scale(&mut self, asker: Option<AskId>, by: i32) {
        let Some(at) = self.serving_index() else {
            let refusal = Refusal::new("no generation serves yet");
            return self.answer(asker, Outcome::Refused(refusal));
        };
        match self.target.scale(by, &self.generations[at].plan) {
            Ok(wanted) => {
                self.note(Note::Scaled { by, wanted });
                self.answer(asker, Outcome::Scaled { workers: wanted });
            }
            Err(refusal) => {
                self.note(Note::ScaleRefused { by, refusal: refusal.clone() });
                self.answer(asker, Outcome::Refused(refusal));
            }
        }
    }

    /// The asker does not wait any more: nobody is left to answer.
    pub(super) fn on_left(&mut self, ask: AskId) {
        self.waiting.retain(|waiting| waiting.ask != ask);
    }

    /// Asks without an answer, for whoever knows which askers have left.
    pub fn asking(&self) -> impl Iterator<Item = AskId> + '_ {
        self.waiting.iter().map(|waiting| waiting.ask)
    }

    fn wait(&mut self, asker: Option<AskId>, on: On) {
        if let Some(ask) = asker {
            self.waiting.push(Waiting { ask, on });
        }
    }

    fn answer(&mut self, asker: Option<AskId>, outcome: Outcome) {
        if let Some(ask) = asker {
            self.actions.push(Action::Answer { ask, outcome });
        }
    }

    /// Takes the asks that wait for this.
    fn take_waiting(&mut self, matches: impl Fn(&On) -> bool) -> Vec<AskId> {
        let taken = self.waiting.iter().filter(|waiting| matches(&waiting.on)).map(|waiting| waiting.ask).collect();
        self.waiting.retain(|waiting| !matches(&waiting.on));
        taken
    }

    /// The configuration that was asked for has become this generation.
    pub(super) fn reload_begun(&mut self, asker: AskId, generation: GenerationId) {
        let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.ask == asker) else { return };
        if waiting.on == (On::Configuration { wait: true }) {
            waiting.on = On::Transaction(generation);
        } else {
            self.waiting.retain(|waiting| waiting.ask != asker);
            self.answer(Some(asker), Outcome::Begun { generation });
        }
    }

    /// It was refused before it became a generation: nothing has changed.
    pub(super) fn reload_refused(&mut self, askers: &[AskId], refusal: Refusal, took: Duration) {
        self.note(Note::Refused { generation: None, refusal: refusal.clone() });
        let reload = Reload { generation: None, took, end: End::Refused(refusal) };
        self.actions.push(Action::Concluded(reload.clone()));
        for asker in askers {
            // It may have left, or TERM has answered it.
            if self.waiting.iter().any(|waiting| waiting.ask == *asker) {
                self.waiting.retain(|waiting| waiting.ask != *asker);
                self.answer(Some(*asker), Outcome::Reload(reload.clone()));
            }
        }
    }

    /// A transaction has ended.
    pub(super) fn conclude(&mut self, id: GenerationId, began: Instant, end: End, now: Instant) {
        let took = now.saturating_duration_since(began);
        let reload = Reload { generation: Some(id), took, end };
        self.actions.push(Action::Concluded(reload.clone()));
        for ask in self.take_waiting(|on| *on == On::Transaction(id)) {
            self.answer(Some(ask), Outcome::Reload(reload.clone()));
        }
    }

    /// A worker serves: whoever waits for that is told with the first chance.
    pub(super) fn answer_ready(&mut self) {
        if self.is_ready() {
            for ask in self.take_waiting(|on| *on == On::Ready) {
                self.answer(Some(ask), Outcome::Ready);
            }
        }
    }

    /// The master stops: nobody waits on for what will not come.
    pub(super) fn answer_stopping(&mut self) {
        for ask in self.take_waiting(|on| matches!(on, On::Ready | On::Configuration { .. })) {
            self.answer(Some(ask), Outcome::Refused(Refusal::stopping()));
        }
    }

    /// A worker serves, and the master was not told to stop.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running
            && self.serving().is_some()
            && self.generations.iter().any(|generation| generation.serving() > 0)
    }

    /// The word for the whole service.
    pub fn word(&self) -> &'static str {
        let lacks = |generation: &Generation| generation.serving() < self.wanted_of(generation) as usize;
        match self.phase {
            Phase::Delaying { .. } | Phase::Stopping { .. } => "stopping",
            Phase::Ending { .. } | Phase::Ended => "ending",
            Phase::Running => match (self.serving(), self.in_transaction()) {
                (None, _) => "starting",
                (Some(_), Some(_)) => "reloading",
                (Some(generation), None) if lacks(generation) => "degraded",
                (Some(_), None) => "running",
            },
        }
    }
}
