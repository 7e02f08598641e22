//! Python stacks of a worker that is stuck: asked for by message, then by the signal for faulthandler, whose handler
//! needs no GIL, and logged.

use forkmaster_wire::message::{GenerationId, ToWorker, WorkerId};
use forkmaster_wire::scoreboard::Scoreboard;

use super::inbox::READS_PER_PASS_MAX;
use super::processes::WorkerProcess;
use super::slow::Looked;
use super::{name, stacks, watch, Service};
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

    /// Takes what faulthandler has written: it is the answer, since there was no other.
    pub fn take_stacks(&mut self, id: WorkerId, shared: &Shared) -> Option<WorkerEvent> {
        let worker = self.workers.get_mut(&id)?;
        let text = std::mem::take(&mut worker.stacks_text);
        if text.is_empty() {
            // The worker's own answer may come later, and is still wanted then.
            self.tell_slow(id, None, shared);
            return Some(WorkerEvent::Stacks { text: String::new() });
        }
        worker.stacks_asked = false;
        Some(self.stacks_told(id, String::from_utf8_lossy(&text).trim_end(), ", from faulthandler", shared))
    }

    /// A worker has told its stacks. None: nobody waits for them, since faulthandler was asked meanwhile.
    pub fn on_stacks(&mut self, id: WorkerId, text: &str, shared: &Shared) -> Option<WorkerEvent> {
        let worker = self.workers.get_mut(&id)?;
        if !std::mem::take(&mut worker.stacks_asked) {
            return None;
        }
        Some(self.stacks_told(id, text, "", shared))
    }

    /// Says which thread runs which request, and logs it where it is for the log.
    fn stacks_told(&mut self, id: WorkerId, text: &str, from: &str, shared: &Shared) -> WorkerEvent {
        self.tell_slow(id, Some(text), shared);
        let Some(worker) = self.workers.get_mut(&id) else { return WorkerEvent::Stacks { text: text.to_owned() } };
        let is_logged = std::mem::take(&mut worker.stacks_logged);
        let text = match self.generations.get(&worker.generation) {
            Some(processes) => with_requests(text, &processes.board, worker.cell),
            None => text.to_owned(),
        };
        if is_logged {
            log::warn!("{} Python stacks{from}:\n{}", name(worker), text.trim_end());
        }
        WorkerEvent::Stacks { text }
    }

    /// The slow requests that wait for these stacks have their lines.
    fn tell_slow(&mut self, id: WorkerId, text: Option<&str>, shared: &Shared) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Some(processes) = self.generations.get(&worker.generation) else { return };
        let at = Looked { id, name: worker.name(), board: &processes.board, cell: worker.cell };
        self.slow.on_stacks(at, text, &shared.clock, &mut self.noticed);
    }

    /// Asks a worker for its stacks that has done nothing wrong but take long.
    pub fn look_at(&mut self, id: WorkerId) {
        self.ask(id, true);
    }

    /// The same for the lines of slow requests only.
    pub fn look_at_slow(&mut self, id: WorkerId) {
        self.ask(id, false);
    }

    fn ask(&mut self, id: WorkerId, is_logged: bool) {
        self.last_stacks += 1;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.stacks_text.clear();
        worker.stacks_asked = true;
        worker.stacks_logged |= is_logged;
        worker.tell(&ToWorker::Stacks { id: self.last_stacks });
    }

    /// Logs what is stuck, and asks for the stacks.
    pub fn ask_stacks(&mut self, id: WorkerId, shared: &Shared) {
        let Some(worker) = self.workers.get(&id) else { return };
        if let Some(processes) = self.generations.get(&worker.generation) {
            let look = watch::look(&processes.board, worker.cell, &processes.settings.server, &shared.clock);
            for (running, inside, limit) in &look.stuck {
                let at = if running.waits_for_lock {
                    "waiting for the interpreter's lock"
                } else {
                    "in the application without progress"
                };
                log::error!(
                    "{} request {} exceeds request_timeout ({:.1}s): {:.1}s {at}; replacing the worker",
                    name(worker),
                    running.shown(),
                    limit.as_secs_f64(),
                    inside.as_secs_f64()
                );
            }
            if look.stuck.is_empty() {
                let silent = watch::SILENT_AFTER.as_secs();
                log::error!("{} has given no sign of life for {silent}s: replacing it", name(worker));
            }
        }
        self.ask(id, true);
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

/// Logs what faulthandler had written of a worker that is gone.
pub fn log_last_stacks(worker: &WorkerProcess) {
    if worker.stacks_asked && !worker.stacks_text.is_empty() {
        let text = String::from_utf8_lossy(&worker.stacks_text);
        log::warn!("{} Python stacks, from faulthandler:\n{}", name(worker), text.trim_end());
    }
}

/// The stacks, and what each thread runs.
fn with_requests(text: &str, board: &Scoreboard, cell: u32) -> String {
    stacks::with_requests(text, |ident| {
        let mut threads = (0..board.threads()).map(|thread| board.thread(cell, thread));
        let running = threads.find(|thread| thread.ident() == Some(ident))?.running()?;
        let client = running.client.map_or_else(String::new, |client| format!(" of {client}"));
        Some(format!("runs {}{client} for {:.1}s", running.shown(), watch::age(&running).as_secs_f64()))
    })
}

/// Whether a process has a handler for the signal: `SigCgt` of proc_pid_status(5), a mask in hexadecimal digits.
fn catches(pid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read(format!("/proc/{pid}/status")) else { return false };
    // Its first line has the process's name, which may be any bytes.
    let status = String::from_utf8_lossy(&status);
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
