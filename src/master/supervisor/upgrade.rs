//! An upgrade in place: another binary of the master takes over this very process. When that may happen, and who hears how
//! it went.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | Off | asked | Waiting | |
//! | Waiting | the service is quiet | Trying | the new binary looks at a copy of the state |
//! | Waiting, Accepted | its time is over, TERM | Off | refused, with what it waited for |
//! | Trying | it accepts the state | Accepted | |
//! | Trying | it does not, or its time is over, TERM | Off | refused |
//! | Accepted | something begins | Waiting | the state is another one then |
//! | Accepted | it could not be executed | Off | refused |
//!
//! Accepted ends well with an exec, and so with this process's memory: the new binary answers whoever asked. Quiet is a
//! service in which one generation serves and nothing is under way; so there is little that can be carried wrongly.
//! A refusal changes nothing, except that a template that was kept for a rollback is given up as soon as an upgrade waits.

use std::time::{Duration, Instant};

use super::asks::AskId;
use super::dump::Dump;
use super::generation::State;
use super::pause::Pause;
use super::services::State as ServiceState;
use super::template::Template;
use super::worker::State as WorkerState;
use super::{Action, Phase, Supervisor};
use crate::facts::note::Note;
use crate::facts::outcome::{End, Outcome, Refusal, Reload, Verb};

/// A new binary reads a configuration and a few kilobytes of state. A directory service that hangs may take longer, and
/// then the next reload would hang as well.
pub const TRIED_WITHIN: Duration = Duration::from_secs(10);

/// What a signal, which has no time of its own, may wait for a quiet moment.
pub const QUIET_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    #[default]
    Off,
    Waiting(Asked),
    /// The new binary is to run, or runs, in a process of its own.
    Trying {
        asked: Asked,
        answer_by: Instant,
        /// False: the hands have not found a moment to start it.
        begun: bool,
    },
    /// The hands may take over whenever nothing is in their way.
    Accepted(Asked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// None: a signal, or one that has left.
    pub asker: Option<AskId>,
    pub began: Instant,
    give_up: Instant,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The new binary was started, to look at a copy of the state.
    Begun,
    /// The new binary accepts the state, or why not.
    Tried(Result<(), Refusal>),
    /// It could not be executed, or must not be.
    Failed(Refusal),
}

impl Upgrade {
    fn asked(&self) -> Option<Asked> {
        match self {
            Upgrade::Off => None,
            Upgrade::Waiting(asked) | Upgrade::Trying { asked, .. } | Upgrade::Accepted(asked) => Some(*asked),
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Upgrade::Off => None,
            Upgrade::Waiting(asked) | Upgrade::Accepted(asked) => Some(asked.give_up),
            Upgrade::Trying { answer_by, .. } => Some(*answer_by),
        }
    }

    pub fn asker(&self) -> Option<AskId> {
        self.asked().and_then(|asked| asked.asker)
    }

    /// It goes on without.
    pub fn forget(&mut self, ask: AskId) {
        match self {
            Upgrade::Off => {}
            Upgrade::Waiting(asked) | Upgrade::Trying { asked, .. } | Upgrade::Accepted(asked) => {
                asked.asker = asked.asker.filter(|asker| *asker != ask);
            }
        }
    }
}

impl Supervisor {
    pub(super) fn on_ask_upgrade(&mut self, asker: Option<AskId>, timeout: Duration, now: Instant) {
        let refusal = match (self.phase, self.serving(), self.pause, self.upgrade) {
            (Phase::Running, None, ..) => Refusal::new("no generation serves yet"),
            (Phase::Running, Some(_), Pause::Finishing { .. } | Pause::On, _) => {
                Refusal::new("the service is paused; `forkmaster resume` first")
            }
            (Phase::Running, Some(_), Pause::Off, Upgrade::Off) => {
                self.upgrade = Upgrade::Waiting(Asked { asker, began: now, give_up: now + timeout });
                return;
            }
            (
                Phase::Running,
                Some(_),
                Pause::Off,
                Upgrade::Waiting(_) | Upgrade::Trying { .. } | Upgrade::Accepted(_),
            ) => Refusal::new("an upgrade is under way already"),
            (
                Phase::Interrupting
                | Phase::Delaying { .. }
                | Phase::Stopping { .. }
                | Phase::Ending { .. }
                | Phase::Ended,
                ..,
            ) => Refusal::stopping(),
        };
        // The one that is under way has nothing to do with it.
        self.refused_upgrade(Asked { asker, began: now, give_up: now }, refusal, now);
    }

    pub(super) fn on_upgrade(&mut self, event: Event, now: Instant) {
        match (self.upgrade, event) {
            (Upgrade::Trying { asked, .. }, Event::Tried(Ok(()))) => self.upgrade = Upgrade::Accepted(asked),
            (Upgrade::Trying { .. }, Event::Tried(Err(refusal)) | Event::Failed(refusal)) => {
                self.refuse_upgrade(refusal, now);
            }
            (Upgrade::Trying { asked, answer_by, .. }, Event::Begun) => {
                self.upgrade = Upgrade::Trying { asked, answer_by, begun: true };
            }
            (Upgrade::Accepted(_), Event::Failed(refusal)) => self.refuse_upgrade(refusal, now),
            // It was refused meanwhile.
            (Upgrade::Off | Upgrade::Waiting(_), Event::Begun | Event::Tried(_) | Event::Failed(_))
            | (Upgrade::Accepted(_), Event::Begun | Event::Tried(_)) => {}
        }
    }

    /// What is due for an upgrade.
    pub(super) fn tend_upgrade(&mut self, now: Instant) {
        let Some(asked) = self.upgrade.asked() else { return };
        if self.phase != Phase::Running {
            return self.refuse_upgrade(Refusal::stopping(), now);
        }
        if matches!(self.upgrade, Upgrade::Waiting(_)) {
            // It is the one thing that is not carried: a rollback starts Python anew then.
            self.give_up_rest(now);
        }
        let unquiet = self.unquiet();
        match self.upgrade {
            Upgrade::Off => {}
            Upgrade::Waiting(_) | Upgrade::Accepted(_) if asked.give_up <= now => {
                self.refuse_upgrade(no_quiet_moment(asked, unquiet, now), now);
            }
            Upgrade::Waiting(_) if unquiet.is_none() => {
                let answer_by = asked.give_up.min(now + TRIED_WITHIN);
                self.upgrade = Upgrade::Trying { asked, answer_by, begun: false };
                self.actions.push(Action::TryUpgrade);
            }
            Upgrade::Trying { answer_by, begun: false, .. } if answer_by <= now => {
                self.refuse_upgrade(no_quiet_moment(asked, unquiet, now), now);
            }
            Upgrade::Trying { answer_by, .. } if answer_by <= now => {
                let waited_s = now.saturating_duration_since(asked.began).as_secs_f64();
                let reason = format!("the new binary has not said within {waited_s:.1}s whether it accepts the state");
                self.refuse_upgrade(Refusal::new(reason), now);
            }
            // What it has accepted is not what it would get.
            Upgrade::Accepted(_) if unquiet.is_some() => self.upgrade = Upgrade::Waiting(asked),
            Upgrade::Waiting(_) | Upgrade::Trying { .. } | Upgrade::Accepted(_) => {}
        }
    }

    /// Whoever asked for the upgrade that is under way.
    pub fn asked_for_upgrade(&self) -> Option<Asked> {
        self.upgrade.asked()
    }

    /// The new binary has accepted the state, and it is still that.
    pub fn may_be_taken_over(&self) -> Option<Asked> {
        match self.upgrade {
            Upgrade::Accepted(asked) if self.unquiet().is_none() => Some(asked),
            Upgrade::Off | Upgrade::Waiting(_) | Upgrade::Trying { .. } | Upgrade::Accepted(_) => None,
        }
    }

    fn refuse_upgrade(&mut self, refusal: Refusal, now: Instant) {
        let upgrade = std::mem::take(&mut self.upgrade);
        if matches!(upgrade, Upgrade::Trying { .. }) {
            self.actions.push(Action::EndTry);
        }
        if let Some(asked) = upgrade.asked() {
            self.refused_upgrade(asked, refusal, now);
        }
    }

    fn refused_upgrade(&mut self, asked: Asked, refusal: Refusal, now: Instant) {
        self.note(Note::UpgradeRefused { refusal: refusal.clone() });
        let took = now.saturating_duration_since(asked.began);
        let end = End::Refused(refusal.clone());
        self.actions.push(Action::UpgradeRefused(Reload {
            verb: Verb::Upgrade,
            generation: None,
            took,
            end,
            canary: None,
            rehearsal: None,
        }));
        self.answer(asked.asker, Outcome::Refused(refusal));
    }

    /// What keeps the service from being quiet, in words.
    pub(super) fn unquiet(&self) -> Option<String> {
        let Some(serving) = self.serving() else { return Some("no generation serves".to_owned()) };
        if self.pause != Pause::Off || self.held.is_some() {
            return Some("requests are held back".to_owned());
        }
        if let Some(other) = self.generations.iter().find(|other| other.id != serving.id) {
            return Some(match other.state {
                State::Proving | State::Rolling { .. } => {
                    let waits = other.waiting().map_or_else(String::new, |waits| format!(", and waits for {waits}"));
                    format!("generation {} is {}{waits}", other.id, other.state.word())
                }
                State::Serving | State::Draining | State::Kept | State::Abandoned => {
                    format!("generation {} is {} ({} workers)", other.id, other.state.word(), other.workers.len())
                }
            });
        }
        if !self.waiting.is_empty() || !self.delayed.is_empty() {
            return Some("something else was asked for and is being done".to_owned());
        }
        match serving.template {
            Template::Ready { .. } | Template::Backoff { .. } | Template::Gone => {}
            Template::Starting { .. }
            | Template::Forking { .. }
            | Template::Dumping { .. }
            | Template::Lost { .. }
            | Template::Stopping { .. }
            | Template::Killed { .. } => return Some(format!("the template is {}", serving.template.word())),
        }
        let is_quiet = |state: &WorkerState, dump: Dump| match state {
            WorkerState::Serving { due: None, .. } | WorkerState::Kept { quiet: true, .. } => dump == Dump::None,
            WorkerState::Serving { due: Some(_), .. }
            | WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Opening { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Kept { quiet: false, .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Finishing { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => false,
        };
        if let Some(worker) = serving.workers.iter().find(|worker| !is_quiet(&worker.state, worker.dump)) {
            return Some(format!("{} is {}", serving.name(worker), worker.state.word()));
        }
        let service = self.services.iter().find(|service| match service.state {
            ServiceState::Waiting | ServiceState::Running { .. } | ServiceState::Resting { .. } => {
                service.generation != serving.id
            }
            ServiceState::Stopping { .. } | ServiceState::Killed { .. } => true,
        });
        service.map(|service| format!("service {} is {}", service.name, service.word()))
    }
}

fn no_quiet_moment(asked: Asked, unquiet: Option<String>, now: Instant) -> Refusal {
    let waited_s = now.saturating_duration_since(asked.began).as_secs_f64();
    let what = unquiet.unwrap_or_else(|| "something else is being done".to_owned());
    Refusal::new(format!("there was no quiet moment for {waited_s:.1}s: {what}"))
}
