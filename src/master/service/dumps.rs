//! Python stacks of a worker that is stuck: asked for by message, then by the signal for faulthandler, whose handler
//! needs no GIL, and logged.

use std::time::{Duration, Instant};

use forkmaster_wire::message::{ToWorker, WorkerId};

use super::inbox::READS_PER_PASS_MAX;
use super::processes::{Dump, WorkerProcess};
use super::{name, watch, Service};
use crate::children::Who;
use crate::shared::Shared;
use crate::supervisor::worker::{Event as WorkerEvent, Stuck};

/// Time for a worker to answer a request for its stacks, then for faulthandler to write them.
const STACKS_WITHIN: Duration = Duration::from_millis(500);

/// A hundred threads of a hundred frames; faulthandler itself stops at 100 of each.
const STACKS_BYTES_MAX: usize = 1024 * 1024;

impl Service {
    /// When an answer is overdue.
    pub fn dump_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        self.workers.values().filter_map(|worker| match worker.dump {
            Dump::None => None,
            Dump::Asked { answer_by } | Dump::Signalled { answer_by } => Some(answer_by),
        })
    }

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
    pub fn escalate_dumps(&mut self, shared: &Shared) {
        let now = shared.clock.now();
        for (id, worker) in &mut self.workers {
            match worker.dump {
                Dump::Asked { answer_by } if answer_by <= now => {
                    worker.dump = Dump::Signalled { answer_by: now + STACKS_WITHIN };
                    shared.children.signal(Who::Worker(*id), libc::SIGRTMIN() + 3);
                }
                Dump::Signalled { answer_by } if answer_by <= now => {
                    worker.dump = Dump::None;
                    log_stacks(worker);
                }
                Dump::None | Dump::Asked { .. } | Dump::Signalled { .. } => {}
            }
        }
    }

    /// Logs what is stuck, and asks for the stacks.
    pub fn dump_stacks(&mut self, id: WorkerId, shared: &Shared) {
        self.last_stacks += 1;
        let answer_by = shared.clock.now() + STACKS_WITHIN;
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
        worker.dump = Dump::Asked { answer_by };
        worker.tell(&ToWorker::Stacks { id: self.last_stacks });
    }

    /// Whether a terminated worker may be killed now. Its stacks are waited for, since they are the reason why.
    pub fn check_stuck(&self, id: WorkerId, stuck: Stuck, shared: &Shared) -> Option<WorkerEvent> {
        let worker = self.workers.get(&id)?;
        let processes = self.generations.get(&worker.generation)?;
        if worker.dump != Dump::None {
            return Some(WorkerEvent::StillStuck { others: 1 });
        }
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
