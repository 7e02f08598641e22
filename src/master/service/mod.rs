//! The hands of one application: its processes and what is known of them. It decides nothing: the supervisor's actions
//! come in, and what happens goes out as events.

pub mod birth;
pub mod canary;
pub mod child;
pub mod command;
pub mod commit;
pub mod deaths;
pub mod dumps;
mod earlier;
pub mod heirs;
pub mod history;
pub mod hooks;
pub mod inbox;
mod made_logs;
pub mod measures;
pub mod not_started;
pub mod oom;
pub mod open_files;
pub mod output;
pub mod pages;
pub mod prepare;
pub mod preparing;
pub mod processes;
pub mod program;
pub mod python;
pub mod readiness;
pub mod room;
pub mod saved;
pub mod services;
mod slow;
pub mod snapshot;
mod stacks;
pub mod standing;
pub mod start;
pub mod tell;
pub mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use forkmaster_wire::message::{GenerationId, WorkerId};

use crate::config::change::Fixed;
use crate::config::Source as ConfigSource;
use crate::facts::note::Note;
use crate::facts::outcome::{End, Reload};
use crate::logs::LastLines;
use crate::supervisor::services::ServiceId;
use crate::supervisor::{Event, Supervisor};

use canary::Trial;
use earlier::Earlier;
use history::History;
use hooks::Hooks;
use measures::Counted;
use oom::OomKills;
use pages::Pages;
use preparing::{Preparing, Reopening};
use processes::{GenerationProcesses, WorkerProcess};
use readiness::Readiness;
use services::ServiceProcess;
use slow::SlowLog;
use tell::OwedLogs;

/// Events on their way to the supervisor, in the order in which they happened.
pub type EventQueue = VecDeque<Event>;

pub struct Service {
    pub source: ConfigSource,
    pub supervisor: Supervisor,
    pub generations: BTreeMap<GenerationId, GenerationProcesses>,
    pub workers: BTreeMap<WorkerId, WorkerProcess>,
    pub last_generation: u32,
    /// How often a reload was asked for.
    pub reloads: u64,
    pub last_reload: Option<Reload>,
    /// The latest refusal, until a reload is good.
    pub last_refusal: Option<Reload>,
    /// The same of an upgrade, until one is good or a reload is.
    pub refused_upgrade: Option<Reload>,
    /// What a reload cannot change; None until the first start.
    pub fixed: Option<Fixed>,
    earlier: Earlier,
    pub counted: Counted,
    pub trial: Trial,
    /// The start.
    began: Instant,
    pub history: History,
    pub services: BTreeMap<ServiceId, ServiceProcess>,
    /// Where services say that they are ready; made for the first that wants to.
    readiness: Option<Readiness>,
    preparing: Preparing,
    reopening: Reopening,
    pages: Pages,
    hooks: Hooks,
    oom: OomKills,
    owed_logs: Option<OwedLogs>,
    pub last_lines: LastLines,
    last_stacks: u64,
    slow: SlowLog,
    /// What the hands have noticed and nobody has told yet.
    noticed: Vec<Note>,
    /// When the scoreboards, and memory, are looked at again.
    look_at: Instant,
    rss_at: Instant,
}

impl Service {
    pub fn new(source: ConfigSource, now: Instant) -> Service {
        Service {
            source,
            supervisor: Supervisor::new(),
            generations: BTreeMap::new(),
            workers: BTreeMap::new(),
            last_generation: 0,
            reloads: 0,
            last_reload: None,
            last_refusal: None,
            refused_upgrade: None,
            fixed: None,
            earlier: Earlier::default(),
            counted: Counted::default(),
            trial: Trial::default(),
            began: now,
            history: History::default(),
            services: BTreeMap::new(),
            readiness: None,
            preparing: Preparing::default(),
            reopening: Reopening::default(),
            pages: Pages::default(),
            hooks: Hooks::default(),
            oom: OomKills::watch(),
            owed_logs: None,
            last_lines: LastLines::default(),
            last_stacks: 0,
            slow: SlowLog::default(),
            noticed: Vec::new(),
            look_at: now,
            rss_at: now,
        }
    }

    /// A reload, or the start, has ended.
    pub fn concluded(&mut self, reload: Reload) {
        self.trial = Trial::default();
        if self.last_reload.is_some() {
            self.counted.reload(&reload);
            self.hook_reload(&reload);
        }
        match &reload.end {
            End::Committed => (self.last_refusal, self.refused_upgrade) = (None, None),
            End::Refused(refusal) => {
                self.show_refusal(refusal);
                self.last_refusal = Some(reload.clone());
                self.refused_upgrade = None;
            }
            End::Superseded { .. } | End::Stopped => {}
        }
        self.last_reload = Some(reload);
    }

    /// Nothing has changed, and that is shown.
    pub fn upgrade_refused(&mut self, reload: Reload) {
        self.refused_upgrade = Some(reload);
    }

    /// Somebody works at the application.
    pub fn develops(&self) -> bool {
        self.generations.values().any(|processes| processes.settings.dev)
    }

    /// What was noticed since it was last asked.
    pub fn take_noticed(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.noticed)
    }

    /// When something is to be looked at, at the latest.
    pub fn wake_at(&self) -> Instant {
        let logs = self.owed_logs.as_ref().map(|owed| owed.at);
        let deadlines = self.supervisor.next_deadline().into_iter().chain(self.hooks.next_deadline()).chain(logs);
        deadlines.fold(self.look_at, Instant::min)
    }
}

/// How log lines name a worker.
pub fn name(worker: &WorkerProcess) -> String {
    let pid = worker.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    format!("worker gen={} slot={} pid={pid}", worker.generation, worker.slot)
}
