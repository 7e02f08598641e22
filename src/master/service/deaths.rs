//! What a death took along, and what it came of where the exit status does not say: the requests that the worker was
//! running, and the kernel's OOM killer. It only logs.

use std::time::Instant;

use forkmaster_wire::message::{GenerationId, WorkerId};

use super::{name, watch, Service};
use crate::supervisor::worker::Exit;

impl Service {
    /// Called when the worker has been reaped and its cell is still its own.
    pub fn name_death(&mut self, id: WorkerId, exit: &Exit, now: Instant) {
        let Some(worker) = self.workers.get(&id) else { return };
        // `kill` has named what it cuts.
        if worker.killed {
            return;
        }
        if let Some(reason) = self.oom.explain_exit(exit, now) {
            log::error!("{} was killed: {reason}", name(worker));
        }
        let Some(processes) = self.generations.get(&worker.generation) else { return };
        for running in watch::running(&processes.board, worker.cell) {
            let age = watch::age(&running).as_secs_f64();
            log::error!("{} lost request \"{}\" after={age:.3}s", name(worker), running.text);
        }
    }

    /// The same for a template.
    pub fn name_template_death(&mut self, generation: GenerationId, exit: &Exit, now: Instant) {
        if let Some(reason) = self.oom.explain_exit(exit, now) {
            log::error!("template gen={generation} was killed: {reason}");
        }
    }
}
