//! Kept templates: when a generation has committed, the template of the one before lives on for `rollback_window`. A
//! rollback to that one forks its workers from it, so nothing is imported again. A generation that goes back is a new one,
//! with a number of its own: the template moves to it, and back again where the rollback comes to nothing. So a template has
//! one owner at any time, and is stopped with it.
//!
//! | Keep | Event | Next | What is done |
//! |---|---|---|---|
//! | No | a successor commits | Until | the template is not stopped; one that was kept before is |
//! | Until | its time is over, memory is short, another commit | No | the template is told to stop |
//! | Until | its template dies | No | forgotten |
//! | Until | a rollback | Lent | the template moves to the new generation |
//! | Lent | the rollback is refused, superseded | Until, or No | the template moves back, if it still lives and its time is not over |
//! | Lent | the rollback commits | No | it is that generation's |
//!
//! What is kept proves nothing: the new generation's workers prove themselves as ever before one of them serves.

use std::time::Instant;

use forkmaster_wire::message::GenerationId;

use super::generation::{Generation, State};
use super::pace::{pace, Measured, Pace, Room};
use super::template::Template;
use super::{Action, Phase, Supervisor};
use crate::facts::note::Note;

/// What becomes of a generation's template when its workers are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// It ends with them.
    #[default]
    No,
    Until(Instant),
    /// A rollback that has not committed yet has it.
    Lent {
        until: Instant,
    },
}

impl Keep {
    pub fn deadline(self) -> Option<Instant> {
        match self {
            Keep::Until(until) => Some(until),
            // The rollback has deadlines of its own.
            Keep::No | Keep::Lent { .. } => None,
        }
    }
}

/// For `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTemplate {
    /// The generation that it is a way back to.
    pub generation: GenerationId,
    pub until: Instant,
}

impl Supervisor {
    /// The template that is kept at the moment.
    pub fn kept(&self) -> Option<KeptTemplate> {
        self.generations.iter().find_map(|generation| match generation.keep {
            Keep::Until(until) => Some(KeptTemplate { generation: generation.id, until }),
            Keep::No | Keep::Lent { .. } => None,
        })
    }

    /// The generation whose template was given up for want of memory, and its size, until the next commit.
    pub fn given_up(&self) -> Option<(GenerationId, u64)> {
        self.given_up
    }

    /// The generation at `at` has committed, and this one served before.
    pub(super) fn keep_previous(&mut self, at: usize, predecessor: Option<usize>, now: Instant) {
        self.given_up = None;
        let window = self.generations[at].plan.rollback_window;
        if let Some(lender) = self.generations[at].lender.take().and_then(|lender| self.index(lender)) {
            self.generations[lender].keep = Keep::No;
        }
        for other in (0..self.generations.len()).filter(|other| *other != at) {
            let is_there = self.generations[other].template.ready_since().is_some();
            if Some(other) == predecessor && is_there && !window.is_zero() {
                self.generations[other].keep = Keep::Until(now + window);
            } else {
                self.stop_keeping(other, now);
            }
        }
    }

    fn stop_keeping(&mut self, at: usize, now: Instant) {
        self.generations[at].keep = Keep::No;
        self.stop_template(at, now);
    }

    pub(super) fn expire_kept(&mut self, at: usize, now: Instant) {
        if self.generations[at].keep.deadline().is_some_and(|until| until <= now) {
            self.stop_keeping(at, now);
        }
    }

    /// The new generation goes back to one whose template is kept: that becomes its own, and is ready. False: there is none.
    pub(super) fn fork_from_kept(&mut self, at: usize, now: Instant) -> bool {
        let origin = self.generations[at].origin;
        let is_it = |lender: &usize| {
            let lender = &self.generations[*lender];
            let kept = matches!(lender.keep, Keep::Until(until) if until > now);
            kept && lender.origin == origin && lender.template.ready_since().is_some()
        };
        let Some(lender) = (0..self.generations.len()).find(is_it) else { return false };
        let Keep::Until(until) = self.generations[lender].keep else { return false };
        self.generations[lender].keep = Keep::Lent { until };
        self.generations[at].lender = Some(self.generations[lender].id);
        self.move_template(lender, at, now);
        true
    }

    /// The generation is given up: what it has forked from goes back to whom it is of, or ends.
    pub(super) fn give_back_template(&mut self, at: usize, now: Instant) {
        let lender = self.generations[at].lender.take().and_then(|lender| self.index(lender));
        let Some(lender) = lender else { return self.stop_template(at, now) };
        let lives = self.generations[at].template.ready_since().is_some();
        match self.generations[lender].keep {
            Keep::Lent { until } if lives && until > now && self.phase == Phase::Running => {
                self.generations[lender].keep = Keep::Until(until);
                self.move_template(at, lender, now);
            }
            Keep::No | Keep::Until(_) | Keep::Lent { .. } => {
                self.generations[lender].keep = Keep::No;
                self.stop_template(at, now);
            }
        }
    }

    fn move_template(&mut self, from: usize, to: usize, now: Instant) {
        let template = std::mem::replace(&mut self.generations[from].template, Template::Gone);
        // Whom it was to fork for its former owner is not waited for.
        self.generations[to].template = match template.ready_since() {
            Some(since) => Template::Ready { since },
            None => template,
        };
        let (from, generation) = (self.generations[from].id, self.generations[to].id);
        self.note(Note::TemplateMoves { generation, from });
        self.actions.push(Action::MoveTemplate { from, to: generation });
        self.watch_forks(to, false, now);
    }

    /// How a generation may roll, or a canary boot: where memory is the bound, and a kept template's would help, that goes
    /// first.
    pub(super) fn pace_or_give_up(&mut self, at: usize, measured: Measured, now: Instant) -> Pace {
        let plan = &self.generations[at].plan;
        let decided = pace(plan, &measured);
        let (Some(bytes), Some(_)) = (measured.room.bytes, self.kept()) else { return decided };
        let more = Room { bytes: Some(bytes.saturating_add(self.kept_bytes)), ..measured.room };
        let without = pace(plan, &Measured { room: more, ..measured });
        let better = without.one_step && !decided.one_step || without.processes > decided.processes;
        if !better {
            return decided;
        }
        self.give_up_kept(now);
        without
    }

    /// One more worker would not fit.
    pub(super) fn on_memory_short(&mut self, kept_bytes: u64, now: Instant) {
        self.kept_bytes = kept_bytes;
        self.give_up_kept(now);
    }

    fn give_up_kept(&mut self, now: Instant) {
        let is_kept = |at: &usize| matches!(self.generations[*at].keep, Keep::Until(_));
        let Some(at) = (0..self.generations.len()).find(is_kept) else { return };
        let (generation, bytes) = (self.generations[at].id, self.kept_bytes);
        self.given_up = Some((generation, bytes));
        self.note(Note::KeptGivenUp { generation, bytes });
        self.stop_keeping(at, now);
    }

    /// An upgrade in place goes on without it.
    pub(super) fn give_up_rest(&mut self, now: Instant) {
        let rests = |generation: &Generation| generation.state == State::Kept && generation.keep != Keep::No;
        if let Some(at) = self.generations.iter().position(rests) {
            self.stop_keeping(at, now);
        }
    }

    /// The last worker is gone, and the template lives on.
    pub(super) fn settle_kept(&mut self, at: usize) {
        let generation = &mut self.generations[at];
        if generation.template == Template::Gone && matches!(generation.keep, Keep::Until(_)) {
            // It has died.
            generation.keep = Keep::No;
        }
        let rests = generation.state == State::Draining && generation.workers.is_empty();
        if rests && generation.keep != Keep::No && self.phase == Phase::Running {
            self.change_generation(at, State::Kept);
        }
    }
}
