//! A reload, up to the point where the supervisor takes over: the configuration is read afresh by its name, the
//! release and its venv are followed and pinned, and new addresses are bound. Whatever is wrong here changes
//! nothing, and whoever asked hears it.

use std::time::Duration;

use forkmaster_wire::message::GenerationId;
use forkmaster_wire::mutant::{self, Mutant};

use super::processes::GenerationProcesses;
use super::Service;
use crate::config::change::Fixed;
use crate::config::{self, Loaded};
use crate::exit_code::ExitCode;
use crate::facts::snapshot::LastReload;
use crate::logs::AccessLog;
use crate::shared::Shared;
use crate::supervisor::generation::Plan;
use crate::supervisor::Verdict;

/// A first start or reload that the configuration or an address forbids.
pub struct Refused {
    pub reason: String,
    pub exit_code: ExitCode,
}

/// How a transaction ended, for whoever asked and for `status`.
pub fn outcome(generation: GenerationId, verdict: &Verdict, took: Duration) -> LastReload {
    let (ok, reason, details) = match verdict {
        Verdict::Committed => (true, String::new(), String::new()),
        Verdict::Refused(failure) => (false, failure.reason.clone(), failure.details.clone()),
        Verdict::Superseded { by } => (false, format!("superseded by a later reload (generation {by})"), String::new()),
        Verdict::Stopped => (false, "the master was told to stop".to_owned(), String::new()),
    };
    LastReload { generation: Some(generation), ok, reason, details, took_s: took.as_secs_f64() }
}

/// A generation that the supervisor may take over.
pub struct Prepared {
    pub generation: GenerationId,
    pub plan: Plan,
}

impl Service {
    /// A reload: reads the configuration afresh.
    pub fn prepare_reload(&mut self, shared: &mut Shared) -> Result<Prepared, Refused> {
        let loaded = config::read(&self.source, &shared.context, self.fixed.as_ref())
            .map_err(|problems| Refused { reason: problems.to_string(), exit_code: problems.exit_code() })?;
        self.prepare(loaded, shared)
    }

    /// Binds what is new and pins the release; also for the first generation.
    pub fn prepare(&mut self, loaded: Loaded, shared: &mut Shared) -> Result<Prepared, Refused> {
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
        let access = settings.log.access.as_ref().map(AccessLog::open).transpose().map_err(|error| {
            let exit_code = ExitCode::of(&error);
            Refused { reason: format!("[log] access cannot be opened: {error}"), exit_code }
        })?;
        let server = &settings.server;
        let listeners = shared
            .listeners
            .bind(&server.bind)
            .map_err(|error| Refused { reason: error.to_string(), exit_code: error.exit_code() })?;
        if let Err(error) = shared.log.apply(&settings.log.error, settings.log.level) {
            log::error!("[log] error cannot be opened, logging as before: {error}");
        }
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
        let plan = GenerationProcesses::plan(&settings);
        let began = shared.clock.now();
        let mut processes = GenerationProcesses::new(settings, listeners, in_place, began).map_err(|error| {
            // What was bound for it.
            self.close_unused_listeners(shared);
            let exit_code = ExitCode::of(&error);
            Refused { reason: format!("no scoreboard: {error}"), exit_code }
        })?;
        processes.access = access;
        self.written = Some(loaded.effective);
        self.generations.insert(generation, processes);
        if mutant::is(Mutant::KillOldFirst) {
            self.kill_all_workers(shared);
        }
        Ok(Prepared { generation, plan })
    }
}
