//! A reload, up to the point where the supervisor takes over: what was read becomes a generation, and new addresses
//! are bound. Whatever is wrong here changes nothing, and whoever asked hears it.

use std::collections::BTreeMap;

use forkmaster_wire::limits;
use forkmaster_wire::message::{GenerationId, ListenerId};
use forkmaster_wire::mutant::{self, Mutant};

use super::open_files::{self, Verdict};
use super::processes::GenerationProcesses;
use super::Service;
use crate::config::change::Fixed;
use crate::config::settings::{App, Bind, Settings};
use crate::config::{self, Loaded};
use crate::exit_code::ExitCode;
use crate::facts::outcome::Refusal;
use crate::listeners::{ListenError, Listeners};
use crate::logs::Opened;
use crate::shared::Shared;
use crate::supervisor::asks::{AskedCanary, Deploy};
use crate::supervisor::canary::CanaryPlan;
use crate::supervisor::generation::Plan;
use crate::supervisor::verdict::Bounds;

impl Service {
    /// Binds what is new and makes the generation; also the first one.
    pub fn prepare(
        &mut self,
        loaded: Loaded,
        logs: Opened,
        shared: &mut Shared,
    ) -> Result<(GenerationId, Plan), Refusal> {
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        let settings = loaded.settings;
        match open_files::verdict(&settings, limits::open_files()) {
            Verdict::Enough => {}
            Verdict::InTurns(sentence) => log::warn!("{sentence}"),
            Verdict::TooFew(sentence) => {
                self.give_back_all(logs, shared);
                return Err(refusal(sentence, ExitCode::Configuration));
            }
        }
        if self.fixed.is_none() {
            self.fixed = Some(Fixed::of(&settings));
            self.set_hooks(&settings);
        }
        let predecessor = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id));
        let in_place = predecessor.is_some_and(|before| config::again::in_place(&settings.app, &before.settings.app));
        let Bound { of_workers: listeners, of_services } = match bind(&settings, &mut shared.listeners) {
            Ok(bound) => bound,
            Err(error) => {
                self.give_back_all(logs, shared);
                return Err(refusal(error.to_string(), error.exit_code()));
            }
        };
        self.last_generation += 1;
        let generation = GenerationId(self.last_generation);
        let changes: Vec<String> = match self.earlier.written() {
            Some(before) => config::change::diff(before, &loaded.effective).iter().map(ToString::to_string).collect(),
            None => Vec::new(),
        };
        self.announce(generation, &settings.app, in_place, &changes);
        let unknown = |listener: &&ListenerId| !self.supervisor.knows_listener(**listener);
        let all = listeners.iter().chain(of_services.values().flatten());
        let bound: Vec<ListenerId> = all.filter(unknown).copied().collect();
        let began = shared.clock.now();
        let written = loaded.effective;
        let processes = GenerationProcesses::new(settings, written, listeners, in_place, began);
        let mut processes = match processes {
            Ok(processes) => processes,
            Err(error) => {
                self.close_listeners(&bound, shared);
                self.give_back_all(logs, shared);
                return Err(refusal(format!("no scoreboard: {}", limits::explain(&error)), ExitCode::of(&error)));
            }
        };
        (processes.error_log, processes.access) = (logs.error, logs.access);
        processes.service_listeners = of_services;
        processes.back = self.preparing.back();
        processes.origin = processes.back.map(|back| self.earlier.origin_of(back));
        processes.changes = changes;
        if self.last_generation > 1 {
            processes.asked = self.asked();
        }
        processes.turned_away_before = self.totals().turned_away;
        if let Deploy::Paused { command, timeout, maintenance, force: _ } = self.preparing.deploy() {
            (processes.pause_timeout, processes.pause_command) = (Some(*timeout), command.clone());
            processes.pause_maintenance.clone_from(maintenance);
        }
        processes.canary = canary(self.preparing.deploy(), &processes.settings);
        let plan = processes.plan();
        self.generations.insert(generation, processes);
        if mutant::is(Mutant::KillOldFirst) {
            self.kill_all_workers(shared);
        }
        Ok((generation, plan))
    }

    /// Logs what the generation is made of.
    fn announce(&self, generation: GenerationId, app: &App, in_place: bool, changes: &[String]) {
        log::info!(
            "generation gen={generation} release={} python={}",
            app.release.display(),
            app.interpreter.executable.display()
        );
        if let Some(back) = self.preparing.back() {
            log::info!("generation gen={generation} is made as gen={back} was");
        }
        if in_place && !app.preload {
            log::info!("generation gen={generation} in place: code on disk is not pinned; preload = true pins it");
        }
        if !changes.is_empty() {
            log::info!("generation gen={generation} changes {}", changes.join("; "));
        }
    }
}

/// The workers' listeners, and those of services by their names. If one cannot be had, nothing has changed.
fn bind(settings: &Settings, listeners: &mut Listeners) -> Result<Bound, ListenError> {
    let services = settings.services.iter().filter(|service| !service.bind.is_empty());
    let all: Vec<Bind> =
        services.clone().flat_map(|service| &service.bind).chain(&settings.server.bind).cloned().collect();
    listeners.bind(&all)?;
    // All of them are there by now, and only looked up.
    let mut of_services = BTreeMap::new();
    for service in services {
        of_services.insert(service.name.clone(), listeners.bind(&service.bind)?);
    }
    Ok(Bound { of_workers: listeners.bind(&settings.server.bind)?, of_services })
}

struct Bound {
    of_workers: Vec<ListenerId>,
    of_services: BTreeMap<String, Vec<ListenerId>>,
}

/// As the settings say, or as whoever asks for this deploy does. Who goes back, or pauses, is in no mood for one.
fn canary(deploy: &Deploy, settings: &Settings) -> Option<CanaryPlan> {
    let written = settings.reload.canary;
    let asked = match deploy {
        Deploy::OnDisk { canary, .. } => canary.unwrap_or(AskedCanary { workers: written.workers, hold: None }),
        Deploy::Paused { .. } | Deploy::Back { .. } => return None,
    };
    // In development there is one worker.
    (asked.workers > 0 && !settings.dev).then(|| CanaryPlan {
        workers: asked.workers,
        hold: asked.hold.unwrap_or(written.hold),
        bounds: Bounds {
            min_requests: written.min_requests,
            max_errors: written.max_errors,
            max_latency: written.max_latency,
        },
    })
}

pub fn refusal(reason: String, exit_code: ExitCode) -> Refusal {
    Refusal { exit_code, ..Refusal::new(reason) }
}
