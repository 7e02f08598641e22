//! Takes the `Measures` of a service for `/metrics`, and keeps what they count: what processes that are gone have
//! counted, and what happened.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use forkmaster_wire::message::GenerationId;
use forkmaster_wire::scoreboard::Scoreboard;
use serde::{Deserialize, Serialize};

use super::watch::resident_bytes;
use super::Service;
use crate::facts::measures::{Measures, OfGeneration, OfListener, OfService, Tally, Totals};
use crate::facts::note::Note;
use crate::facts::outcome::{End, Reload};
use crate::facts::snapshot::Handoffs;
use crate::shared::Shared;

/// What was counted and is not on any scoreboard any more.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Of all processes that are gone.
    gone: Totals,
    /// The same by generation, as long as it has processes.
    gone_of: BTreeMap<GenerationId, Totals>,
    restarts_of: BTreeMap<GenerationId, BTreeMap<String, u64>>,
    /// The highest that was ever shown.
    shown: Totals,
    tally: Tally,
}

impl Counted {
    /// A process is gone, and its cell will be another's.
    pub fn fold(&mut self, generation: GenerationId, board: &Scoreboard, cell: u32) {
        let totals = of_cell(board, cell);
        self.gone.add(&totals);
        self.gone_of.entry(generation).or_default().add(&totals);
    }

    /// Requests that ended with their worker.
    pub fn lose(&mut self, generation: GenerationId, requests: u64) {
        self.gone.lost += requests;
        self.gone_of.entry(generation).or_default().lost += requests;
    }

    pub fn forget(&mut self, generation: GenerationId) {
        self.gone_of.remove(&generation);
        self.restarts_of.remove(&generation);
    }

    /// Of its processes that are gone.
    pub fn gone_of(&self, generation: GenerationId) -> Totals {
        self.gone_of.get(&generation).copied().unwrap_or_default()
    }

    /// Its workers that were replaced, by the reason.
    pub fn restarts_of(&self, generation: GenerationId) -> BTreeMap<String, u64> {
        self.restarts_of.get(&generation).cloned().unwrap_or_default()
    }

    fn restart(&mut self, generation: GenerationId, why: &'static str) {
        self.tally.restart(why);
        *self.restarts_of.entry(generation).or_default().entry(why.to_owned()).or_default() += 1;
    }

    pub fn note(&mut self, note: &Note) {
        match note {
            Note::Due { why, worker } => self.restart(worker.generation, why),
            Note::Worker { to: "terminating", worker, .. } => self.restart(worker.generation, "timeout"),
            Note::WorkerLeaves { worker, .. } => self.restart(worker.generation, "leave"),
            Note::WorkerGone {
                from: "opening" | "serving" | "pausing" | "paused" | "exiting",
                expected: false,
                cause,
                worker,
                ..
            } => {
                self.restart(worker.generation, if cause.starts_with("exit code") { "exit" } else { "signal" });
            }
            Note::BootFailed { .. } | Note::BootFailedAgain { .. } => self.tally.boots_failed += 1,
            _other => {}
        }
    }

    /// The first start is none.
    pub fn reload(&mut self, reload: &Reload) {
        self.tally.reload(reload);
    }
}

impl Service {
    /// What all processes have counted since the start.
    pub fn totals(&self) -> Totals {
        let mut totals = self.counted.gone;
        for worker in self.workers.values() {
            if let Some(processes) = self.generations.get(&worker.generation) {
                totals.add(&of_cell(&processes.board, worker.cell));
            }
        }
        totals
    }

    /// Its counters never go back, whatever an application does to its worker's cell.
    pub fn measures(&mut self, shared: &Shared) -> Measures {
        let now = self.totals();
        self.counted.shown.raise(&now);
        let totals = self.counted.shown;
        let serving = self.supervisor.serving();
        let threads = serving.and_then(|generation| self.generations.get(&generation.id));
        let listeners = threads.map_or(&[][..], |processes| &processes.listeners);
        Measures {
            version: env!("CARGO_PKG_VERSION"),
            ready: self.supervisor.is_ready(),
            paused: self.supervisor.held().is_some(),
            maintenance: self.supervisor.turns_away(),
            uptime_s: shared.clock.now().saturating_duration_since(self.began).as_secs_f64(),
            totals,
            tally: self.counted.tally.clone(),
            last_reload_ok: self.last_reload.as_ref().map(|reload| reload.end == End::Committed),
            serving: serving.map(|generation| (generation.id, self.supervisor.wanted_of(generation))),
            generations: self.supervisor.generations().iter().filter_map(|one| self.measured(one.id)).collect(),
            bodies_in_memory: threads.is_some_and(|processes| processes.bodies_in_memory),
            threads_max: serving.zip(threads).map_or(0, |(generation, processes)| {
                generation.serving() as u64 * u64::from(processes.settings.server.threads)
            }),
            listeners: shared
                .listeners
                .queues(listeners)
                .into_iter()
                .map(|(address, queue)| OfListener { address, queue })
                .collect(),
            services: self.measured_services(),
            master_bytes: resident_bytes(std::process::id() as i32).unwrap_or(0),
        }
    }

    fn measured_services(&self) -> Vec<OfService> {
        let Some(serving) = self.supervisor.serving() else { return Vec::new() };
        let measured = serving.plan.services.iter().map(|plan| {
            let processes = self.supervisor.services().iter().filter(|of| of.generation == serving.id);
            let running = processes.filter(|of| of.name == plan.name && of.word() == "running").count() as u64;
            let book = self.supervisor.book(&plan.name).cloned().unwrap_or_default();
            let runs = book.rhythm.map(|rhythm| [rhythm.runs - rhythm.failed, rhythm.failed, rhythm.skipped]);
            let wanted = self.supervisor.wanted_processes(plan);
            OfService { name: plan.name.clone(), wanted, running, restarts: book.restarts, runs }
        });
        measured.collect()
    }

    fn measured(&self, id: GenerationId) -> Option<OfGeneration> {
        let generation = self.supervisor.generations().iter().find(|generation| generation.id == id)?;
        let processes = self.generations.get(&id)?;
        let mut measured = OfGeneration {
            generation: id,
            workers: BTreeMap::new(),
            totals: self.counted.gone_of.get(&id).copied().unwrap_or_default(),
            busy: 0,
            connections: 0,
            memory: BTreeMap::new(),
        };
        for worker in &generation.workers {
            *measured.workers.entry(worker.state.word()).or_default() += 1;
            let Some(process) = self.workers.get(&worker.id) else { continue };
            measured.totals.add(&of_cell(&processes.board, process.cell));
            let cell = processes.board.cell(process.cell);
            measured.busy += u64::from(cell.busy.load(Ordering::Relaxed).min(processes.board.threads()));
            measured.connections += u64::from(cell.connections.load(Ordering::Relaxed));
            let resident = process.pid.and_then(resident_bytes).unwrap_or(0);
            *measured.memory.entry(worker.slot).or_default() += resident;
        }
        Some(measured)
    }
}

pub fn of_cell(board: &Scoreboard, cell: u32) -> Totals {
    let cell = board.cell(cell);
    Totals {
        requests: cell.requests.load(Ordering::Relaxed),
        accepted: cell.accepted.load(Ordering::Relaxed),
        handoffs: Handoffs {
            // Before `shared`, which a worker counts first: what is read here as given is not read as left where it was shared.
            given: cell.given.load(Ordering::Acquire),
            shared: cell.shared.load(Ordering::Relaxed),
            taken: cell.adopted.load(Ordering::Relaxed),
            queue_full: cell.queue_full.load(Ordering::Relaxed),
            lost: cell.unusable.load(Ordering::Relaxed),
        },
        errors: cell.errors.load(Ordering::Relaxed),
        timed_out: cell.timed_out.load(Ordering::Relaxed),
        shed: cell.shed.load(Ordering::Relaxed),
        turned_away: cell.turned_away.load(Ordering::Relaxed),
        // Counted when their worker is gone.
        lost: 0,
        status: std::array::from_fn(|class| cell.status[class].load(Ordering::Relaxed)),
        latency: cell.latency.read(),
        queued: cell.queued.read(),
    }
}
