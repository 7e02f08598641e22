//! What a death took along, and what it came of where the exit status does not say: the requests that the worker was
//! running, and the kernel's OOM killer. It logs and counts; of each request that nobody else will ever tell of there is a
//! line in the access log.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use forkmaster_wire::access::line::{Lines, Origin};
use forkmaster_wire::access::record::{self, End, How, Reader};
use forkmaster_wire::message::{Access, GenerationId, WorkerId};
use forkmaster_wire::scoreboard::Running;

use super::processes::WorkerProcess;
use super::{name, watch, Service};
use crate::supervisor::worker::Exit;

impl Service {
    /// How the worker really ended: whoever asked for it hears that, too.
    pub fn explain_death(&mut self, id: WorkerId, exit: Exit, now: Instant) -> Exit {
        // `kill` has named what it cuts.
        let Some(worker) = self.workers.get(&id).filter(|worker| !worker.killed) else { return exit };
        match self.oom.explain_exit(&exit, now) {
            Some(reason) => {
                log::error!("{} was killed: {reason}", name(worker));
                Exit::OutOfMemory(reason)
            }
            None => exit,
        }
    }

    /// The same for a template.
    pub fn explain_template_death(&mut self, generation: GenerationId, exit: Exit, now: Instant) -> Exit {
        match self.oom.explain_exit(&exit, now) {
            Some(reason) => {
                log::error!("template gen={generation} was killed: {reason}");
                Exit::OutOfMemory(reason)
            }
            None => exit,
        }
    }

    /// Called when the worker has been reaped and its cell is still its own.
    pub fn name_death(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Some(processes) = self.generations.get(&worker.generation) else { return };
        let mut lost = Vec::new();
        for running in watch::running(&processes.board, worker.cell) {
            if !worker.killed {
                let age = watch::age(&running).as_secs_f64();
                log::error!("{} lost request {} after={age:.3}s", name(worker), running.shown());
            }
            // The others had their line with their answer.
            if !running.answered {
                lost.push(running);
            }
        }
        self.counted.lose(worker.generation, lost.len() as u64);
        let (Some(log), Some(access)) = (&processes.access, processes.access_line()) else { return };
        let lines = lines(worker, &access, &lost);
        if !lines.is_empty() {
            if let Err(error) = self.last_lines.write(log, &lines) {
                log::error!("access log: {} lines of {} are lost: {error}", lost.len(), name(worker));
            }
        }
    }
}

/// Lines of the access log for requests that ended with their worker. Whether a client has had a part of its answer only
/// the dead process knew, so they have no status.
fn lines(worker: &WorkerProcess, access: &Access, lost: &[Running]) -> Vec<u8> {
    let origin = Origin {
        generation: worker.generation.0,
        slot: worker.slot.0,
        pid: worker.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
    };
    let wanted = record::wanted(&access.format);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut records = Vec::new();
    // They are as bad as any, whatever status a line must have at least.
    for running in lost.iter().filter(|running| access.wants(running.path(), u16::MAX)) {
        let begun = records.len();
        record::begin_running(&mut records, running, 0, &wanted);
        let took_us = (watch::age(running).as_micros() as u64).saturating_add(running.queued_us);
        record::end(
            &mut records[begun..],
            End { at_ms: at.as_millis() as u64, took_us, bytes: 0, how: How::WorkerDied },
        );
    }
    let (mut reader, mut lines, mut out) = (Reader(&records), Lines::new(access.format.clone(), origin), Vec::new());
    while lines.next(&mut reader, &mut out) {}
    out
}
