//! What is remembered of deploys: collected here from what the supervisor concludes and the scoreboards count, kept in
//! memory, and in a file where there is a place for it. A file that cannot be written costs one line of the log and
//! nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use forkmaster_wire::message::GenerationId;
use forkmaster_wire::timestamp;

use super::measures::of_cell;
use super::watch::resident_bytes;
use super::Service;
use crate::chores::{Chore, ChoreId};
use crate::config::settings::App;
use crate::facts::history::{Deploy, Entry, Grown, Growth, Served};
use crate::facts::note::Note;
use crate::facts::outcome::Reload;
use crate::shared::Shared;
use crate::supervisor::asks::AskId;

/// Entries that are kept in memory; the file has more.
const ENTRIES_MAX: usize = 200;

/// As many as a person wants to see at a glance.
const DEPLOYS_SHOWN_MAX: usize = 10;

/// Whoever asks for more deploys at a time than this is a script gone wild.
const ASKERS_MAX: usize = 100;

#[derive(Default)]
pub struct History {
    /// None: it is not written, or there is no place for it.
    pub(super) path: Option<PathBuf>,
    /// Oldest first.
    pub(super) entries: VecDeque<Entry>,
    /// Lines that are not in the file yet; the first `writing` of them are on their way to it. Where the way was closed (a
    /// full disk) they go with the next deploy's. One that gets there twice counts once.
    pub(super) unwritten: VecDeque<String>,
    chore: Option<ChoreId>,
    writing: usize,
    /// The latest write failed, and that was told.
    failed: bool,
    /// Who asks for deploys, in words.
    askers: BTreeMap<AskId, String>,
    /// The same of a deploy that was refused before it had a generation.
    refused: Option<String>,
}

impl History {
    pub fn note_asker(&mut self, ask: AskId, who: String) {
        // Later asks have higher numbers. One that came to nothing before it was a deploy is not asked for again.
        if self.askers.len() >= ASKERS_MAX {
            self.askers.pop_first();
        }
        self.askers.insert(ask, who);
    }

    /// Who asked, in words, now that the deploy begins. Nobody in particular is a signal.
    pub fn take_askers(&mut self, asks: &[AskId]) -> String {
        let who: Vec<String> = asks.iter().filter_map(|ask| self.askers.remove(ask)).collect();
        match who.is_empty() {
            true => "signal".to_owned(),
            false => who.join(", "),
        }
    }

    pub fn note_refused(&mut self, who: String) {
        self.refused = Some(who);
    }
}

impl Service {
    /// Reads what earlier masters have left.
    pub fn open_history(&mut self, path: Option<PathBuf>, app: App, shared: &mut Shared) {
        let Some(path) = path else { return };
        shared.chores.give(Chore::ReadHistory { path: path.clone(), app: Box::new(app) }, shared.clock.now());
        self.history.path = Some(path);
    }

    pub fn on_history_read(&mut self, earlier: Vec<Entry>, warning: Option<String>) {
        if let Some(warning) = warning {
            log::warn!("{warning}");
        }
        for entry in earlier.into_iter().rev().take(ENTRIES_MAX) {
            self.history.entries.push_front(entry);
        }
    }

    /// True: it was the history's.
    pub fn on_history_kept(&mut self, chore: ChoreId, kept: Result<(), String>, shared: &mut Shared) -> bool {
        if self.history.chore != Some(chore) {
            return false;
        }
        self.history.chore = None;
        let written = std::mem::take(&mut self.history.writing);
        match kept {
            Ok(()) => {
                self.history.failed = false;
                self.history.unwritten.drain(..written);
                self.write_history(shared);
            }
            Err(reason) if !std::mem::replace(&mut self.history.failed, true) => {
                log::warn!("the history is not written: {reason}; nothing else is affected, and this is said once");
            }
            Err(_) => {}
        }
        true
    }

    fn remember(&mut self, entry: Entry, shared: &mut Shared) {
        if self.history.path.is_some() {
            self.history.unwritten.push_back(entry.to_line() + "\n");
            if self.history.unwritten.len() > ENTRIES_MAX {
                self.history.unwritten.pop_front();
                self.history.writing = self.history.writing.saturating_sub(1);
            }
        }
        self.history.entries.push_back(entry);
        if self.history.entries.len() > ENTRIES_MAX {
            self.history.entries.pop_front();
        }
        self.write_history(shared);
    }

    /// One chore at a time, so that lines stay in their order.
    fn write_history(&mut self, shared: &mut Shared) {
        let Some(path) = self.history.path.clone().filter(|_| self.history.chore.is_none()) else { return };
        let lines = Vec::from_iter(self.history.unwritten.iter().cloned());
        if !lines.is_empty() {
            self.history.writing = lines.len();
            self.history.chore = Some(shared.chores.give(Chore::KeepHistory { path, lines }, shared.clock.now()));
        }
    }

    /// How long a release took to prove itself is part of its deploy.
    pub fn note_proved(&mut self, note: &Note, now: Instant) {
        let Note::Proved { generation, .. } = note else { return };
        if let Some(processes) = self.generations.get_mut(generation) {
            processes.proved_s = Some(now.saturating_duration_since(processes.began).as_secs_f64());
        }
    }

    /// A start, a reload or a rollback has ended.
    pub fn remember_deploy(&mut self, reload: &Reload, shared: &mut Shared) {
        let shown = reload.shown();
        let mut deploy = Deploy {
            at: timestamp_now(),
            master: std::process::id(),
            generation: reload.generation,
            result: reload.end.word().to_owned(),
            reason: shown.reason,
            took_s: shown.took_s,
            canary: shown.canary,
            rehearsal: shown.rehearsal,
            ..Deploy::default()
        };
        let turned_away = self.totals().turned_away;
        let of_generation = reload.generation.and_then(|generation| self.generations.get(&generation));
        match of_generation {
            Some(processes) => {
                deploy.asked.clone_from(&processes.asked);
                deploy.release.clone_from(&processes.settings.app.release);
                deploy.revision.clone_from(&processes.settings.app.revision);
                deploy.python = processes.interpreter.as_ref().map(|interpreter| interpreter.version.clone());
                deploy.in_place = processes.in_place;
                deploy.back = processes.back;
                deploy.command.clone_from(&processes.pause_command);
                deploy.turned_away = turned_away.saturating_sub(processes.turned_away_before);
                deploy.changes.clone_from(&processes.changes);
                deploy.proved_s = processes.proved_s;
            }
            None => deploy.asked = self.history.refused.take().unwrap_or_default(),
        }
        self.remember(Entry::Deploy(Box::new(deploy)), shared);
    }

    /// The last process of a generation is gone.
    pub fn remember_served(&mut self, generation: GenerationId, shared: &mut Shared) {
        let served = self.served(generation, shared.clock.now());
        if let Some(served) = served.filter(|served| served.requests > 0) {
            self.remember(Entry::Served(Box::new(served)), shared);
        }
    }

    /// `now`: by the master's clock, as all that it keeps.
    fn served(&self, generation: GenerationId, now: Instant) -> Option<Served> {
        let processes = self.generations.get(&generation)?;
        let mut totals = self.counted.gone_of(generation);
        let mut grown = processes.grown;
        for worker in self.workers.values().filter(|worker| worker.generation == generation) {
            totals.add(&of_cell(&processes.board, worker.cell));
            worker.growth.into_iter().for_each(|growth| grown.add(growth));
        }
        let mut served = Served {
            at: timestamp_now(),
            master: std::process::id(),
            generation: generation.0,
            revision: processes.settings.app.revision.clone(),
            release: processes.settings.app.release.clone(),
            serving: self.supervisor.serving().is_some_and(|serving| serving.id == generation),
            age_s: now.saturating_duration_since(processes.began).as_secs_f64(),
            restarts: self.counted.restarts_of(generation),
            growth_bytes_per_1000: grown.bytes_per_1000(),
            ..Served::default()
        };
        served.count(&totals);
        Some(served)
    }

    /// All that is remembered, and what the generations do that still have processes.
    pub fn history(&self, now: Instant) -> Vec<Entry> {
        let live = self.generations.keys().filter_map(|generation| self.served(*generation, now));
        let live = live.map(|served| Entry::Served(Box::new(served)));
        self.history.entries.iter().cloned().chain(live).collect()
    }

    /// The latest deploys that are remembered, the latest first.
    pub fn deploys(&self) -> Vec<Deploy> {
        let deploy = |entry: &Entry| match entry {
            Entry::Deploy(deploy) => Some(Deploy::clone(deploy)),
            Entry::Served(_) => None,
        };
        self.history.entries.iter().rev().filter_map(deploy).take(DEPLOYS_SHOWN_MAX).collect()
    }

    /// Looks at the memory of the workers that have answered something since the last look. Of an idle one there is nothing
    /// to learn, and an idle master is to touch little of its code. True: there was one to look at.
    pub fn look_at_growth(&mut self) -> bool {
        let mut has_looked = false;
        for worker in self.workers.values_mut() {
            let Some(processes) = self.generations.get(&worker.generation) else { continue };
            let requests = processes.board.cell(worker.cell).requests.load(std::sync::atomic::Ordering::Relaxed);
            if !Growth::is_due(worker.growth, requests) {
                continue;
            }
            if let Some(bytes) = worker.pid.and_then(resident_bytes) {
                worker.growth = Growth::look(worker.growth, bytes, requests);
                has_looked = true;
            }
        }
        has_looked
    }
}

/// How a write went, in words.
pub fn kept(result: io::Result<()>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn timestamp_now() -> String {
    let mut text = String::new();
    timestamp::push_now(&mut text);
    text
}

/// The memory of a worker that is gone counts for its generation.
pub fn fold(grown: &mut Grown, growth: Option<Growth>) {
    growth.into_iter().for_each(|growth| grown.add(growth));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As found: after a hundred asks that never became a deploy, each deploy was said to come from a signal.
    #[test]
    fn asks_that_came_to_nothing_hide_no_later_one() {
        let mut history = History::default();
        (1..=500).for_each(|ask| history.note_asker(AskId(ask), format!("pid={ask}")));
        assert_eq!(history.take_askers(&[AskId(499), AskId(500)]), "pid=499, pid=500");
        assert!(history.askers.len() < ASKERS_MAX);
    }
}
