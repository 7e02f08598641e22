//! What the master says to its processes, and how it ends them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forkmaster_wire::limits;
use forkmaster_wire::message::{GenerationId, ToTemplate, ToWorker, WorkerId};
use forkmaster_wire::scoreboard::Scoreboard;
use forkmaster_wire::text::cut_text;

use super::processes::WorkerProcess;
use super::{name, watch, Service};
use crate::children::Who;
use crate::facts::outcome::Refusal;
use crate::shared::Shared;

/// A worker reads its channel at once, and what was on its way to it leaves room for the next.
const LOGS_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Somebody else of the same user has as many descriptors on their way as the limit allows.
const LOGS_WITHIN: Duration = Duration::from_secs(60);

/// Who is still to get the logs.
pub struct OwedLogs {
    to: Vec<Who>,
    /// When to try.
    pub at: Instant,
    until: Instant,
}

impl Service {
    /// Gives the logs as they are now to everyone who writes to them.
    pub fn hand_out_logs(&mut self, shared: &Shared) {
        let templates = self.generations.iter().filter(|(_, processes)| processes.template.is_some());
        let templates = templates.map(|(generation, _)| Who::Template(*generation));
        let to = templates.chain(self.workers.keys().map(|worker| Who::Worker(*worker))).collect();
        let now = shared.clock.now();
        self.owed_logs = Some(OwedLogs { to, at: now, until: now + LOGS_WITHIN });
        self.hand_out_owed_logs(shared);
    }

    /// Whoever has not got them yet, since too many descriptors were on their way, is tried again.
    pub fn hand_out_owed_logs(&mut self, shared: &Shared) {
        let now = shared.clock.now();
        let Some(OwedLogs { to, until, .. }) = self.owed_logs.take_if(|owed| owed.at <= now) else { return };
        let error_log = match shared.log.fd() {
            Ok(error_log) => error_log,
            Err(error) => return log::error!("workers go on with the old log: {}", limits::explain(&error)),
        };
        let mut still = Vec::new();
        for who in to {
            match self.hand_logs_to(who, &error_log) {
                Err(error) if limits::is_no_room(&error) && error.kind() != io::ErrorKind::WouldBlock => {
                    if now >= until {
                        log::error!("{who:?} goes on with the old log: {}", limits::explain(&error));
                    } else {
                        still.push(who);
                    }
                }
                // Or it is dying, or does not read, which its deadlines notice.
                Ok(()) | Err(_) => {}
            }
        }
        self.owed_logs = (!still.is_empty()).then_some(OwedLogs { to: still, at: now + LOGS_AGAIN_AFTER, until });
    }

    fn hand_logs_to(&self, who: Who, error_log: &OwnedFd) -> io::Result<()> {
        let (generation, worker) = match who {
            Who::Template(generation) => (generation, None),
            Who::Worker(id) => match self.workers.get(&id) {
                Some(worker) => (worker.generation, Some(worker)),
                None => return Ok(()),
            },
            Who::Hook(_) | Who::Command(_) | Who::Service(_) | Who::NewBinary | Who::Stray => return Ok(()),
        };
        let Some(processes) = self.generations.get(&generation) else { return Ok(()) };
        let logs = processes.logs(error_log);
        match (worker, &processes.template) {
            (Some(worker), _) => worker.channel.send(&ToWorker::Logs, &logs),
            (None, Some(template)) => template.channel.send(&ToTemplate::Logs, &logs),
            (None, None) => Ok(()),
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
