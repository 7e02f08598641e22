//! What is known of a service by its name and lives on over deploys: how many processes operators have added or taken away,
//! and, where it runs every so often, when it is due and how its runs have ended.
//!
//! Runs begin in a fixed rhythm, the first one `every` after the rhythm began. A deploy does not shift it. One run at a time:
//! what is due while a process of the service is there, also one of the generation before, is skipped and counted.

use std::time::{Duration, Instant};

use super::services::{ServicePlan, State};
use super::worker::Exit;
use super::Supervisor;
use crate::facts::note::Note;

/// Of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Processes more (or fewer) than the settings say. Survives reloads.
    pub extra: i32,
    /// Told to have none, whatever the settings say.
    pub off: bool,
    /// Processes that were started again after they had ended by themselves.
    pub restarts: u64,
    pub rhythm: Option<Rhythm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rhythm {
    pub every: Duration,
    pub due: Instant,
    /// Runs that have ended, and those of them that have failed.
    pub runs: u64,
    pub failed: u64,
    pub skipped: u64,
    /// The log has a line about what this run has made skip.
    pub skip_told: bool,
    /// How the last one has ended.
    pub last: Option<String>,
}

impl Rhythm {
    fn new(every: Duration, now: Instant) -> Rhythm {
        Rhythm { every, due: now + every, runs: 0, failed: 0, skipped: 0, skip_told: false, last: None }
    }

    fn ended(&mut self, exit: &Exit) {
        self.runs += 1;
        self.skip_told = false;
        self.failed += u64::from(*exit != Exit::Code(0));
        self.last = Some(exit.to_string());
    }

    /// The next time after now, in the same rhythm where that is not long over.
    fn advance(&mut self, now: Instant) {
        self.due += self.every;
        if self.due <= now {
            self.due = now + self.every;
        }
    }
}

impl Supervisor {
    pub fn book(&self, name: &str) -> Option<&Book> {
        self.books.get(name)
    }

    /// Opens a book for each service of the generation that serves, and closes those of others.
    pub(super) fn keep_books(&mut self, plans: &[ServicePlan], now: Instant) {
        self.books.retain(|name, _| plans.iter().any(|plan| plan.name == *name));
        for plan in plans {
            let book = self.books.entry(plan.name.clone()).or_default();
            if book.rhythm.as_ref().map(|rhythm| rhythm.every) != plan.every {
                book.rhythm = plan.every.map(|every| Rhythm::new(every, now));
            }
        }
    }

    /// Begins the runs that are due.
    pub(super) fn keep_rhythm(&mut self, now: Instant) {
        let is_due = |book: &Book| book.rhythm.as_ref().is_some_and(|rhythm| rhythm.due <= now);
        let due: Vec<String> =
            self.books.iter().filter(|(_, book)| is_due(book)).map(|(name, _)| name.clone()).collect();
        for name in due {
            let of_it = |service: &&super::services::Service| service.name == name;
            let waiting = self.services.iter().position(|service| of_it(&service) && service.state == State::Waiting);
            let runs = self.services.iter().filter(of_it).any(|service| service.state != State::Waiting);
            let Some(rhythm) = self.books.get_mut(&name).and_then(|book| book.rhythm.as_mut()) else { continue };
            rhythm.advance(now);
            if runs {
                rhythm.skipped += 1;
                let skipped = rhythm.skipped;
                // Once a run: one of an hour that is due every second would fill the log.
                if !std::mem::replace(&mut rhythm.skip_told, true) {
                    self.note(Note::ServiceSkipped { name, skipped });
                }
            } else if let Some(at) = waiting {
                self.run_service(at, now);
            }
            // Else it is scaled to 0.
        }
    }

    /// When the next run is due.
    pub(super) fn next_run(&self) -> Option<Instant> {
        self.books.values().filter_map(|book| Some(book.rhythm.as_ref()?.due)).min()
    }

    /// A run has ended; the time until the next one.
    pub(super) fn run_ended(&mut self, name: &str, exit: &Exit, now: Instant) -> Option<Duration> {
        let rhythm = self.books.get_mut(name)?.rhythm.as_mut()?;
        rhythm.ended(exit);
        Some(rhythm.due.saturating_duration_since(now))
    }
}
