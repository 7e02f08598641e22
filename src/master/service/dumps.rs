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
    /// A template that does not catch the signal yet, since Python itself still starts, would die of it.
    pub fn dump_template(&self, generation: GenerationId, shared: &Shared) {
        let template = self.generations.get(&generation).and_then(|processes| processes.template.as_ref());
        let signal = libc::SIGRTMIN() + 3;
        if template.is_some_and(|template| catches(template.pid, signal)) {
            shared.children.signal(Who::Template(generation), signal);
        }
    }

    /// Logs what faulthandler has written, and says it.
    pub fn log_stacks(&mut self, id: WorkerId) -> Option<WorkerEvent> {
        log_stacks(self.workers.get_mut(&id)?).map(|text| WorkerEvent::Stacks { text })
    }

    /// Asks a worker for its stacks that has done nothing wrong but take long.
    pub fn look_at_boot(&mut self, id: WorkerId) {
        self.last_stacks += 1;
        if let Some(worker) = self.workers.get(&id) {
            worker.tell(&ToWorker::Stacks { id: self.last_stacks });
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

/// Logs what faulthandler has written. None: nothing.
pub fn log_stacks(worker: &mut WorkerProcess) -> Option<String> {
    let text = std::mem::take(&mut worker.stacks_text);
    if text.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    log::warn!("{} Python stacks, from faulthandler:\n{text}", name(worker));
    Some(text)
}

/// Whether a process has a handler for the signal: `SigCgt` of proc_pid_status(5), a mask in hexadecimal digits.
fn catches(pid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
