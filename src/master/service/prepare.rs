//! A reload, up to the point where the supervisor takes over: the configuration is read afresh by its name, the
//! release and its venv are followed and pinned, and new addresses are bound. Whatever is wrong here changes
//! nothing, and whoever asked hears it.

use std::io;

use forkmaster_wire::message::{GenerationId, ListenerId};
use forkmaster_wire::mutant::{self, Mutant};

use super::processes::GenerationProcesses;
use super::Service;
use crate::config::change::Fixed;
use crate::config::settings::{Identity, Settings};
use crate::config::{self, Loaded};
use crate::exit_code::ExitCode;
use crate::facts::outcome::Refusal;
use crate::logs::{AccessLog, ErrorLog, Named};
use crate::shared::Shared;
use crate::supervisor::asks::AskId;
use crate::supervisor::generation::Plan;
use crate::supervisor::Event;

impl Service {
    /// A reload: reads the configuration afresh.
    pub fn configure(&mut self, asker: Option<AskId>, shared: &mut Shared) -> Event {
        let began = shared.clock.now();
        let result = config::read(&self.source, &shared.context, self.fixed.as_ref())
            .map_err(|problems| refusal(problems.to_string(), problems.exit_code()))
            .and_then(|loaded| self.prepare(loaded, shared));
        Event::Configured { asker, began, result }
    }

    /// Binds what is new and pins the release; also for the first generation.
    pub fn prepare(&mut self, loaded: Loaded, shared: &mut Shared) -> Result<(GenerationId, Plan), Refusal> {
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        let settings = loaded.settings;
        self.fixed.get_or_insert_with(|| Fixed::of(&settings));
        let predecessor = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id));
        let mut in_place = false;
        if let Some(predecessor) = predecessor {
            let (app, before) = (&settings.app, &predecessor.settings.app);
            in_place = app.release == before.release && app.interpreter.venv == before.interpreter.venv;
        }
        let (error_log, access) = open_logs(&settings)?;
        let server = &settings.server;
        let listeners =
            shared.listeners.bind(&server.bind).map_err(|error| refusal(error.to_string(), error.exit_code()))?;
        shared.log.turn_to(error_log);
        shared.log.set_level(settings.log.level);
        self.last_generation += 1;
        let generation = GenerationId(self.last_generation);
        let app = &settings.app;
        log::info!(
            "generation gen={generation} release={} python={}",
            app.release.display(),
            app.interpreter.executable.display()
        );
        if in_place && !app.preload {
            log::info!("generation gen={generation} in place: code on disk is not pinned; preload = true pins it");
        }
        if let Some(before) = &self.written {
            let changes = config::change::diff(before, &loaded.effective);
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            if !changes.is_empty() {
                log::info!("generation gen={generation} changes {}", changes.join("; "));
            }
        }
        let unknown = |listener: &&ListenerId| !self.supervisor.knows_listener(**listener);
        let bound: Vec<ListenerId> = listeners.iter().filter(unknown).copied().collect();
        let began = shared.clock.now();
        let mut processes = GenerationProcesses::new(settings, listeners, in_place, began).map_err(|error| {
            self.close_listeners(&bound, shared);
            refusal(format!("no scoreboard: {error}"), ExitCode::of(&error))
        })?;
        processes.access = access;
        let plan = processes.plan();
        self.written = Some(loaded.effective);
        self.generations.insert(generation, processes);
        if mutant::is(Mutant::KillOldFirst) {
            self.kill_all_workers(shared);
        }
        Ok((generation, plan))
    }
}

fn open_logs(settings: &Settings) -> Result<(ErrorLog, Option<AccessLog>), Refusal> {
    let application = settings.server.identity.as_ref().map(Identity::rights);
    let refused =
        |key: &str, error: io::Error| refusal(format!("[log] {key} cannot be opened: {error}"), ExitCode::of(&error));
    let named = Named { target: settings.log.error.clone(), application: application.clone() };
    let error_log = ErrorLog::open(&named).map_err(|error| refused("error", error))?;
    let access = settings.log.access.clone().map(|target| AccessLog::open(&Named { target, application }));
    let access = access.transpose().map_err(|error| refused("access", error))?;
    Ok((error_log, access))
}

fn refusal(reason: String, exit_code: ExitCode) -> Refusal {
    Refusal { exit_code, ..Refusal::new(reason) }
}
