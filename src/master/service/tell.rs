//! What the master says to its processes, and how it ends them.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use forkmaster_wire::message::{GenerationId, ToTemplate, ToWorker, WorkerId};
use forkmaster_wire::scoreboard::Scoreboard;
use forkmaster_wire::text::cut_text;

use super::processes::WorkerProcess;
use super::{name, watch, Service};
use crate::children::Who;
use crate::facts::outcome::Refusal;
use crate::shared::Shared;

impl Service {
    /// Gives the logs as they are now to everyone who writes to them.
    pub fn hand_out_logs(&self, shared: &Shared) {
        let error_log = match shared.log.fd() {
            Ok(error_log) => error_log,
            Err(error) => return log::error!("workers go on with the old log: {error}"),
        };
        for (processes, template) in
            self.generations.values().filter_map(|processes| Some((processes, processes.template.as_ref()?)))
        {
            template.tell_with(&ToTemplate::Logs, &processes.logs(&error_log));
        }
        for worker in self.workers.values() {
            if let Some(processes) = self.generations.get(&worker.generation) {
                worker.tell_with(&ToWorker::Logs, &processes.logs(&error_log));
            }
        }
    }

    pub fn tell_template(&self, generation: GenerationId, message: &ToTemplate) {
        if let Some(template) = self.generations.get(&generation).and_then(|processes| processes.template.as_ref()) {
            template.tell(message);
        }
    }

    pub fn tell_worker(&self, worker: WorkerId, message: &ToWorker) {
        if let Some(worker) = self.workers.get(&worker) {
            worker.tell(message);
        }
    }

    /// Tells a worker to serve. Where workers of another generation take connections at this moment, both sides are shown the
    /// other's scoreboard.
    pub fn serve(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.tell(&ToWorker::Serve);
        // It may have forgotten what it was told before it last stopped serving.
        worker.beside = None;
        let generation = worker.generation;
        let others: Vec<(WorkerId, GenerationId)> = self
            .workers
            .iter()
            .filter(|(_, other)| other.generation != generation && self.accepts(other))
            .map(|(id, other)| (*id, other.generation))
            .collect();
        for (other, others_generation) in others {
            self.show_board(other, generation);
            self.show_board(id, others_generation);
        }
    }

    /// A worker sees whether threads of another generation are free.
    fn show_board(&mut self, id: WorkerId, generation: GenerationId) {
        let (Some(worker), Some(processes)) = (self.workers.get_mut(&id), self.generations.get(&generation)) else {
            return;
        };
        if worker.beside == Some(generation) {
            return;
        }
        worker.beside = Some(generation);
        let board = &processes.board;
        match board.for_readers() {
            Ok(fd) => {
                let (cells, threads) = (board.cells(), board.threads());
                let message = ToWorker::Beside { generation, cells, threads, layout: Scoreboard::layout() };
                worker.tell_with(&message, &[fd.as_fd()]);
            }
            // It goes on as if it were alone.
            Err(error) => log::debug!("{} is not shown generation {generation}: {error}", name(worker)),
        }
    }

    fn accepts(&self, worker: &WorkerProcess) -> bool {
        let processes = self.generations.get(&worker.generation);
        processes.is_some_and(|processes| processes.board.cell(worker.cell).accepting.load(Ordering::Relaxed) == 1)
    }

    /// Whoever works at the application may be looking at a browser and not at the log.
    pub fn show_refusal(&self, refusal: &Refusal) {
        let text = format!("{}\n\n{}", refusal.reason, refusal.details);
        for worker in self.workers.values() {
            if self.generations.get(&worker.generation).is_some_and(|processes| processes.settings.dev) {
                worker.tell(&ToWorker::Refused { text: cut_text(&text) });
            }
        }
    }

    /// A worker is dead, and the kernel may have woken it, and nobody else, for a connection that it had no time to take.
    pub fn have_others_look(&self, dead: WorkerId) {
        if !self.workers.get(&dead).is_some_and(|worker| self.accepts(worker)) {
            return;
        }
        for (id, worker) in &self.workers {
            if *id != dead && self.accepts(worker) {
                worker.tell(&ToWorker::Look);
            }
        }
    }

    /// SIGKILL. Every request that it cuts gets a line, since nobody else will ever tell of it.
    pub fn kill(&mut self, id: WorkerId, shared: &Shared) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        // Before its introduction there is nothing to signal yet: the supervisor asks again when the pid is known.
        if worker.pid.is_none() {
            return;
        }
        worker.killed = true;
        if let Some(processes) = self.generations.get(&worker.generation) {
            for running in watch::running(&processes.board, worker.cell) {
                let age = watch::age(&running).as_secs_f64();
                log::warn!("{} cut request {} after={age:.3}s", name(worker), running.shown());
            }
        }
        shared.children.kill(Who::Worker(id));
    }

    /// For `Mutant::KillOldFirst` only.
    pub fn kill_all_workers(&self, shared: &Shared) {
        for id in self.workers.keys() {
            shared.children.kill(Who::Worker(*id));
        }
    }
}
