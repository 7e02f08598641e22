//! The course of a reload before it has a generation: the configuration is read, or for a rollback the earlier release is
//! looked for; then the logs are opened. Chores do all this while the loop goes on. A HUP that comes meanwhile asks for one
//! more round after this one, since the files may have changed behind the reader. A late chore refuses the reload with the
//! name of what hung.

use std::collections::VecDeque;
use std::time::Instant;

use forkmaster_wire::message::GenerationId;

use super::prepare::refusal;
use super::{history, Service};
use crate::chores::{Chore, ChoreId, Done, NotDone, Reading, Reopened};
use crate::config::problem::{Problem, Problems};
use crate::config::settings::LogTarget;
use crate::config::Loaded;
use crate::exit_code::ExitCode;
use crate::facts::outcome::Refusal;
use crate::files::Made;
use crate::logs::{self, Opened};
use crate::shared::Shared;
use crate::supervisor::asks::{AskId, Deploy};
use crate::supervisor::generation::Plan;
use crate::supervisor::Event;

pub struct Preparing {
    step: Step,
    /// What the present round makes a generation of.
    deploy: Deploy,
    /// What the step waits for.
    chore: Option<ChoreId>,
    /// Those whom the present round answers. A signal asks as well, and waits for nothing.
    askers: Vec<AskId>,
    /// The earlier generation that the present round goes back to.
    back: Option<GenerationId>,
    /// What was asked for since it began.
    next: VecDeque<Round>,
    /// Files that are to be removed, unless the logs that are being opened are the same ones.
    pub held_back: Vec<Made>,
}

/// What one generation is made of, for all who asked for the same in a row.
struct Round {
    deploy: Deploy,
    askers: Vec<AskId>,
}

#[derive(Default)]
enum Step {
    #[default]
    Idle,
    Reading {
        began: Instant,
    },
    OpeningLogs {
        began: Instant,
        loaded: Box<Loaded>,
    },
}

impl Default for Preparing {
    fn default() -> Preparing {
        Preparing {
            step: Step::Idle,
            deploy: Deploy::OnDisk { force: false, canary: None },
            chore: None,
            askers: Vec::new(),
            back: None,
            next: VecDeque::new(),
            held_back: Vec::new(),
        }
    }
}

impl Preparing {
    /// What the present round makes a generation of.
    pub fn deploy(&self) -> &Deploy {
        &self.deploy
    }

    pub fn opens_logs(&self) -> bool {
        matches!(self.step, Step::OpeningLogs { .. })
    }

    /// The earlier generation that the present round goes back to.
    pub fn back(&self) -> Option<GenerationId> {
        self.back
    }
}

/// The reopening of all logs at USR1.
#[derive(Default)]
pub struct Reopening {
    chore: Option<ChoreId>,
    again: bool,
    /// Whom the present one answers, and who asked since it began.
    askers: Vec<AskId>,
    next: Vec<AskId>,
    failed: Vec<String>,
    /// Answers on their way.
    reopened: Vec<(AskId, Result<(), String>)>,
    /// A new generation's logs were just being opened, perhaps by names that were about to be given away.
    after_round: bool,
    /// The same of an error log that waits for the commit.
    pub at_commit: bool,
}

impl Reopening {
    fn fail(&mut self, sentence: String) {
        log::error!("{sentence}");
        self.failed.push(sentence);
    }
}

impl Service {
    /// A new generation is wanted.
    pub fn configure(&mut self, asker: Option<AskId>, deploy: Deploy, shared: &mut Shared) {
        self.reloads += 1;
        match self.preparing.next.back_mut() {
            Some(round) if round.deploy == deploy => round.askers.extend(asker),
            Some(_) | None => self.preparing.next.push_back(Round { deploy, askers: asker.into_iter().collect() }),
        }
        if matches!(self.preparing.step, Step::Idle) {
            self.begin_round(shared);
        }
    }

    /// Neither a reload is prepared nor are logs opened again.
    pub fn prepares_nothing(&self) -> bool {
        let reads = !self.pages.is_idle();
        !self.is_preparing() && self.preparing.next.is_empty() && self.reopening.chore.is_none() && !reads
    }

    /// A reload has no generation yet.
    pub fn is_preparing(&self) -> bool {
        !matches!(self.preparing.step, Step::Idle)
    }

    /// Somebody waits for it.
    pub fn reopen_logs_for(&mut self, asker: AskId, shared: &mut Shared) {
        self.reopening.next.push(asker);
        self.ask_to_reopen_logs(shared);
    }

    /// What whoever asked is to hear.
    pub fn take_reopened(&mut self) -> Vec<(AskId, Result<(), String>)> {
        std::mem::take(&mut self.reopening.reopened)
    }

    /// USR1.
    pub fn ask_to_reopen_logs(&mut self, shared: &mut Shared) {
        let opening = self.preparing.opens_logs();
        self.reopening.after_round |= opening;
        self.reopening.at_commit |= opening || self.generations.values().any(|processes| processes.error_log.is_some());
        if self.reopening.chore.is_some() {
            self.reopening.again = true;
            return;
        }
        self.reopening.askers = std::mem::take(&mut self.reopening.next);
        let named = shared.log.named();
        let access = self.generations.iter().filter_map(|(id, processes)| Some((*id, processes.access.as_ref()?)));
        let chore = Chore::ReopenLogs {
            // stderr has no name.
            error: (named.target != LogTarget::Stderr).then_some(named),
            access: access.map(|(id, access)| (id, access.named.clone())).collect(),
        };
        self.reopening.chore = Some(shared.chores.give(chore, shared.clock.now()));
    }

    /// Something was done that may wait, or was given up.
    pub fn on_chore(&mut self, id: ChoreId, done: Result<Done, NotDone>, shared: &mut Shared) -> Option<Event> {
        match done {
            Ok(Done::Configuration(read)) => match *read {
                Ok(loaded) => {
                    self.open_logs(loaded, shared);
                    None
                }
                Err(problems) => self.refuse(refusal(problems.to_string(), problems.exit_code()), shared),
            },
            Ok(Done::Logs(opened)) => self.on_logs(opened, shared),
            Ok(Done::Removed) => None,
            Ok(Done::HistoryRead { entries, warning }) => {
                self.on_history_read(entries, warning);
                None
            }
            Ok(Done::HistoryKept(result)) => {
                self.on_history_kept(id, history::kept(result), shared);
                None
            }
            Ok(Done::Page(read)) => self.on_page(id, read),
            Err(NotDone(sentence)) if self.reads_page(id) => self.on_page(id, Err(sentence)),
            Ok(Done::Reopened(reopened)) => {
                self.on_reopened(reopened, shared);
                self.end_reopening(shared);
                None
            }
            Err(NotDone(sentence)) if self.reopening.chore == Some(id) => {
                log::error!("the logs stay as they are: {sentence}");
                self.reopening.failed.push(sentence);
                self.end_reopening(shared);
                None
            }
            Err(NotDone(reason)) if self.preparing.chore == Some(id) => {
                self.refuse(refusal(reason, ExitCode::InUse), shared)
            }
            Err(NotDone(sentence)) if self.on_history_kept(id, Err(sentence.clone()), shared) => None,
            Err(NotDone(sentence)) => {
                log::warn!("{sentence}");
                None
            }
        }
    }

    /// Begins the next round, if somebody has asked for one.
    fn begin_round(&mut self, shared: &mut Shared) {
        let Some(Round { deploy, askers }) = self.preparing.next.pop_front() else { return };
        let began = shared.clock.now();
        self.preparing.back = None;
        let chore = match &deploy {
            Deploy::OnDisk { force, .. } | Deploy::Paused { force, .. } => {
                Chore::ReadConfiguration(Box::new(Reading {
                    source: self.source.clone(),
                    context: shared.context.clone(),
                    fixed: self.fixed.clone(),
                    barred: self.earlier.barred().filter(|_| !*force).cloned(),
                }))
            }
            Deploy::Back { to } => {
                let found = self.under_way(*to).map_or_else(|| self.earlier.find(*to), Err).map_err(Problems::from);
                self.preparing.back = found.as_ref().ok().map(|(generation, _)| *generation);
                Chore::FindAgain(Box::new(found.map(|(_, loaded)| loaded)))
            }
        };
        self.preparing.chore = Some(shared.chores.give(chore, began));
        (self.preparing.step, self.preparing.askers) = (Step::Reading { began }, askers);
        self.preparing.deploy = deploy;
    }

    /// Whoever goes back while a release is on its way means the one that still serves, and the one before that would come.
    fn under_way(&self, to: Option<GenerationId>) -> Option<Problem> {
        let coming = self.supervisor.in_transaction().filter(|coming| to.is_none() && coming.plan.origin.is_none())?;
        let serving = self.supervisor.serving()?.id;
        let text = format!(
            "it does not serve yet, and generation {serving} does; `forkmaster abandon` gives up a canary, and `--to` names the \
             generation to go back to"
        );
        Some(Problem::new(format_args!("generation {}", coming.id), text))
    }

    fn open_logs(&mut self, loaded: Loaded, shared: &mut Shared) {
        let Step::Reading { began } = self.preparing.step else { return };
        let (error, access) = logs::names(&loaded.settings);
        let chore = Chore::OpenLogs { error, access };
        self.preparing.chore = Some(shared.chores.give(chore, shared.clock.now()));
        self.preparing.step = Step::OpeningLogs { began, loaded: Box::new(loaded) };
    }

    fn on_logs(&mut self, opened: Result<Opened, logs::NotOpened>, shared: &mut Shared) -> Option<Event> {
        let Step::OpeningLogs { loaded, began } = std::mem::take(&mut self.preparing.step) else { return None };
        let result = opened
            .map_err(|error| refusal(error.to_string(), error.exit_code()))
            .and_then(|opened| self.prepare(*loaded, opened, shared));
        Some(self.end_round(began, result, shared))
    }

    /// Who asked for what the present round makes, in words.
    pub fn asked(&mut self) -> String {
        self.history.take_askers(&self.preparing.askers)
    }

    fn refuse(&mut self, refusal: Refusal, shared: &mut Shared) -> Option<Event> {
        match std::mem::take(&mut self.preparing.step) {
            Step::Idle => None,
            Step::Reading { began } | Step::OpeningLogs { began, .. } => {
                Some(self.end_round(began, Err(refusal), shared))
            }
        }
    }

    /// The next round begins at once where somebody has asked for it.
    fn end_round(
        &mut self,
        began: Instant,
        result: Result<(GenerationId, Plan), Refusal>,
        shared: &mut Shared,
    ) -> Event {
        if result.is_err() {
            let asked = self.asked();
            self.history.note_refused(asked);
        }
        let (verb, askers) = (self.preparing.deploy.verb(), std::mem::take(&mut self.preparing.askers));
        let held_back = std::mem::take(&mut self.preparing.held_back);
        self.give_back(held_back, shared);
        self.begin_round(shared);
        if std::mem::take(&mut self.reopening.after_round) {
            self.ask_to_reopen_logs(shared);
        }
        Event::Configured { verb, askers, began, result }
    }

    fn on_reopened(&mut self, reopened: Reopened, shared: &mut Shared) {
        match reopened.error {
            None => {}
            Some(Ok(mut error_log)) => {
                error_log.made.take().into_iter().for_each(Made::keep);
                shared.log.turn_to(error_log);
                log::info!("log reopened");
            }
            Some(Err(error)) => self.reopening.fail(format!("log cannot be reopened: {error}")),
        }
        for (generation, access) in reopened.access {
            match (access, self.generations.get_mut(&generation)) {
                (Ok(mut access), Some(processes)) => {
                    if self.supervisor.has_committed(generation) {
                        access.made.take().into_iter().for_each(Made::keep);
                    }
                    let before = processes.access.replace(access);
                    self.give_back(before.and_then(|log| log.made), shared);
                }
                (Ok(access), None) => self.give_back(access.made, shared),
                (Err(error), _) => self.reopening.fail(format!("access log cannot be reopened: {error}")),
            }
        }
        self.hand_out_logs(shared);
    }

    fn end_reopening(&mut self, shared: &mut Shared) {
        self.reopening.chore = None;
        let failed = std::mem::take(&mut self.reopening.failed);
        let outcome = if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) };
        for asker in std::mem::take(&mut self.reopening.askers) {
            self.reopening.reopened.push((asker, outcome.clone()));
        }
        if std::mem::take(&mut self.reopening.again) {
            self.ask_to_reopen_logs(shared);
        }
    }
}
