//! Takes the `Snapshot` of a service: the states that the supervisor knows, joined with what the scoreboards count. It
//! reads and changes nothing.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use forkmaster_wire::message::GenerationId;
use forkmaster_wire::scoreboard::Scoreboard;

use super::processes::GenerationProcesses;
use super::{watch, Service};
use crate::config::settings::{AccessTarget, LogTarget};
use crate::facts::outcome::Reload;
use crate::facts::snapshot::{
    Generation, Kept, Listener, Logs, Place, Running, Runs, ServiceProcess, Snapshot, Template, Word, Worker,
};
use crate::listeners::Listeners;
use crate::shared::Shared;
use crate::supervisor::generation::{Generation as GenerationState, State as GenerationPhase};
use crate::supervisor::rhythm::Rhythm;
use crate::supervisor::worker::Worker as WorkerState;

impl Service {
    pub fn snapshot(&self, shared: &Shared) -> Snapshot {
        let totals = self.totals();
        let now = shared.clock.now();
        let generations = self.supervisor.generations().iter();
        Snapshot {
            name: self.generations.values().next().map(|processes| processes.settings.name.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            executable: shared.context.executable.clone(),
            pid: std::process::id(),
            state: Word::Borrowed(self.supervisor.word()),
            ready: self.supervisor.is_ready(),
            uptime_s: now.saturating_duration_since(self.began).as_secs_f64(),
            generations: generations.filter_map(|generation| self.shown(generation, &shared.listeners, now)).collect(),
            listeners: self.serving_addresses(&shared.listeners),
            requests: totals.requests,
            accepted: totals.accepted,
            errors: totals.errors,
            timed_out: totals.timed_out,
            shed: totals.shed,
            turned_away: totals.turned_away,
            lost: totals.lost,
            handoffs: totals.handoffs,
            logs: self.places(),
            kept: self.kept(now),
            last_reload: self.last_reload.as_ref().map(Reload::shown),
            last_refusal: self.refused_upgrade.as_ref().or(self.last_refusal.as_ref()).map(Reload::shown),
        }
    }

    fn kept(&self, now: Instant) -> Option<Kept> {
        if let Some(kept) = self.supervisor.kept() {
            let left_s = kept.until.saturating_duration_since(now).as_secs_f64();
            return Some(Kept { generation: kept.generation.0, given_up: false, bytes: self.kept_bytes(), left_s });
        }
        let (generation, bytes) = self.supervisor.given_up()?;
        Some(Kept { generation: generation.0, given_up: true, bytes, left_s: 0.0 })
    }

    /// The error log is the one that the serving generation has brought.
    fn places(&self) -> Option<Logs> {
        let serving = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id))?;
        let log = &serving.settings.log;
        let path = |path: &Path| Place(path.to_string_lossy().into_owned());
        let error = match &log.error {
            LogTarget::Stderr => Place("stderr".to_owned()),
            LogTarget::File(file) => path(file),
        };
        let access = log.access.as_ref().map(|target| match target {
            AccessTarget::Stdout => Place("stdout".to_owned()),
            AccessTarget::File(file) => path(file),
        });
        Some(Logs { error, access })
    }

    fn serving_addresses(&self, listeners: &Listeners) -> Vec<Listener> {
        let serving = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id));
        let ids = serving.map_or(&[][..], |processes| &processes.listeners);
        let addresses = ids.iter().filter_map(|id| listeners.address(*id));
        addresses.map(|address| Listener { address: address.to_string() }).collect()
    }

    fn shown(&self, generation: &GenerationState, listeners: &Listeners, now: Instant) -> Option<Generation> {
        let processes = self.generations.get(&generation.id)?;
        let app = &processes.settings.app;
        Some(Generation {
            generation: generation.id,
            state: Word::Borrowed(generation.state.word()),
            release: app.release.clone(),
            venv: app.interpreter.venv.clone(),
            python: processes.interpreter.as_ref().map(|interpreter| interpreter.version.clone()),
            preload: app.preload,
            in_place: processes.in_place,
            bodies_in_memory: processes.bodies_in_memory,
            age_s: now.saturating_duration_since(processes.began).as_secs_f64(),
            workers_wanted: self.supervisor.wanted_of(generation),
            workers_when_on: self.supervisor.wanted_when_on(generation),
            waiting: generation.waiting(),
            canary: match generation.state {
                GenerationPhase::Rolling { .. } | GenerationPhase::Serving => generation.tried.clone(),
                // Its end is told with the reload's.
                GenerationPhase::Proving
                | GenerationPhase::Draining
                | GenerationPhase::Kept
                | GenerationPhase::Abandoned => None,
            },
            template: Template {
                pid: processes.template.as_ref().map(|template| template.pid),
                state: Word::Borrowed(generation.template.word()),
            },
            workers: generation.workers.iter().map(|worker| self.shown_worker(worker, processes, now)).collect(),
            services: self.shown_services(generation.id, processes, listeners, now),
        })
    }

    fn shown_services(
        &self,
        generation: GenerationId,
        processes: &GenerationProcesses,
        listeners: &Listeners,
        now: Instant,
    ) -> Vec<ServiceProcess> {
        let addresses = |name: &str| {
            let ids = processes.service_listeners.get(name).map_or(&[][..], |ids| ids);
            ids.iter().filter_map(|id| listeners.address(*id).map(str::to_owned)).collect()
        };
        let services = self.supervisor.services().iter().filter(|service| service.generation == generation);
        let shown = services.map(|service| ServiceProcess {
            name: service.name.clone(),
            number: service.number,
            pid: service.pid,
            state: Word::Borrowed(service.word()),
            restarts: service.restarts,
            listeners: addresses(&service.name),
            runs: self.supervisor.book(&service.name).and_then(|book| Some(runs(book.rhythm.as_ref()?, now))),
        });
        shown.collect()
    }

    fn shown_worker(&self, worker: &WorkerState, processes: &GenerationProcesses, now: Instant) -> Worker {
        let process = self.workers.get(&worker.id);
        let cell = process.map(|process| processes.board.cell(process.cell));
        Worker {
            slot: worker.slot,
            pid: worker.pid,
            state: Word::Borrowed(worker.state.word()),
            age_s: now.saturating_duration_since(worker.born).as_secs_f64(),
            requests: cell.map_or(0, |cell| cell.requests.load(Ordering::Relaxed)),
            busy: cell.map_or(0, |cell| cell.busy.load(Ordering::Relaxed)),
            connections: cell.map_or(0, |cell| cell.connections.load(Ordering::Relaxed)),
            private_bytes: cell.map_or(0, |cell| cell.private_bytes.load(Ordering::Relaxed)),
            pss_bytes: cell.map_or(0, |cell| cell.pss_bytes.load(Ordering::Relaxed)),
            resident_bytes: worker.pid.and_then(watch::resident_bytes).unwrap_or(0),
            running: process.map_or_else(Vec::new, |process| running(&processes.board, process.cell)),
        }
    }
}

fn runs(rhythm: &Rhythm, now: Instant) -> Runs {
    Runs {
        every_s: rhythm.every.as_secs_f64(),
        next_s: rhythm.due.saturating_duration_since(now).as_secs_f64(),
        ended: rhythm.runs,
        failed: rhythm.failed,
        skipped: rhythm.skipped,
        last: rhythm.last.clone(),
    }
}

fn running(board: &Scoreboard, cell: u32) -> Vec<Running> {
    let mut requests: Vec<_> = watch::running(board, cell).collect();
    requests.sort_unstable_by_key(|running| running.started_ns);
    let shown = requests.iter().map(|running| {
        let (method, path) = running.text.split_once(' ').unwrap_or((&running.text, ""));
        let client = running.client.map(|client| client.to_string());
        Running { method: method.to_owned(), path: path.to_owned(), age_s: watch::age(running).as_secs_f64(), client }
    });
    shown.collect()
}
