//! Python stacks of a worker that is stuck: asked for by message, then by the signal for faulthandler, whose handler
//! needs no GIL, and logged.

use forkmaster_wire::message::{GenerationId, ToWorker, WorkerId};

use super::inbox::READS_PER_PASS_MAX;
use super::processes::WorkerProcess;
use super::{name, watch, Service};
use crate::children::Who;
use crate::shared::Shared;
use crate::supervisor::worker::{Event as WorkerEvent, Stuck};

/// A hundred threads of a hundred frames; faulthandler itself stops at 100 of each.
const STACKS_BYTES_MAX: usize = 1024 * 1024;

impl Service {
    /// faulthandler writes a word at a time; the log gets the whole when the dump is over.
    pub fn read_stacks(&mut self, id: WorkerId, shared: &mut Shared) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let mut bytes = [0; 4096];
        for _ in 0..READS_PER_PASS_MAX {
            let Ok(read @ 1..) = nix::unistd::read(&worker.stacks, &mut bytes) else { return };
            let room = STACKS_BYTES_MAX.saturating_sub(worker.stacks_text.len());
            worker.stacks_text.extend_from_slice(&bytes[..read.min(room)]);
        }
        shared.sources.mark_unread(worker.stacks_token);
    }

    /// Where C code holds the GIL no message is answered; faulthandler's signal handler needs no GIL.
    pub fn signal_stacks(&self, id: WorkerId, shared: &Shared) {
        shared.children.signal(Who::Worker(id), libc::SIGRTMIN() + 3);
    }

    /// A template has no pipe for it: faulthandler writes to its error log, also while a fork handler holds the GIL.
    pub fn dump_template(&self, generation: GenerationId, shared: &Shared) {
        shared.children.signal(Who::Template(generation), libc::SIGRTMIN() + 3);
    }

    /// Logs what faulthandler has written.
    pub fn log_stacks(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            log_stacks(worker);
        }
    }

    /// Logs what is stuck, and asks for the stacks.
    pub fn ask_stacks(&mut self, id: WorkerId, shared: &Shared) {
        self.last_stacks += 1;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(processes) = self.generations.get(&worker.generation) {
            let look = watch::look(&processes.board, worker.cell, &processes.settings.server, &shared.clock);
            for (running, inside, limit) in &look.stuck {
                let at = if running.waits_for_lock {
                    "waiting for the interpreter's lock"
                } else {
                    "in the application without progress"
                };
                log::error!(
                    "{} request \"{}\" exceeds request_timeout ({:.1}s): {:.1}s {at}; replacing the worker",
                    name(worker),
                    running.text,
                    limit.as_secs_f64(),
                    inside.as_secs_f64()
                );
            }
            if look.stuck.is_empty() {
                let silent = watch::SILENT_AFTER.as_secs();
                log::error!("{} has given no sign of life for {silent}s: replacing it", name(worker));
            }
        }
        worker.tell(&ToWorker::Stacks { id: self.last_stacks });
    }

    /// Whether a terminated worker may be killed now.
    pub fn check_stuck(&self, id: WorkerId, stuck: Stuck, shared: &Shared) -> Option<WorkerEvent> {
        let worker = self.workers.get(&id)?;
        let processes = self.generations.get(&worker.generation)?;
        if !watch::still_runs(&processes.board, worker.cell, stuck) {
            return Some(WorkerEvent::Unstuck);
        }
        let look = watch::look(&processes.board, worker.cell, &processes.settings.server, &shared.clock);
        Some(WorkerEvent::StillStuck { others: look.others })
    }
}

/// Logs what faulthandler has written.
pub fn log_stacks(worker: &mut WorkerProcess) {
    let text = std::mem::take(&mut worker.stacks_text);
    if !text.is_empty() {
        log::warn!("{} Python stacks, from faulthandler:\n{}", name(worker), String::from_utf8_lossy(&text).trim_end());
    }
}
