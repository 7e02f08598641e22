//! Log files that the opening for a new generation has made: a reload that is refused leaves none behind. A commit
//! keeps them. Otherwise a chore removes them, unless another log is the same file: then that log decides.

use forkmaster_wire::message::GenerationId;

use super::Service;
use crate::chores::Chore;
use crate::files::Made;
use crate::logs::Opened;
use crate::shared::Shared;
use crate::supervisor::worker::State as WorkerState;

impl Service {
    /// The generation is the service's: its files stay.
    pub fn keep_logs(&mut self, generation: GenerationId) {
        let Some(processes) = self.generations.get_mut(&generation) else { return };
        let error = processes.error_log.as_mut().and_then(|log| log.made.take());
        let access = processes.access.as_mut().and_then(|log| log.made.take());
        error.into_iter().chain(access).for_each(Made::keep);
    }

    /// The generation will never be the service's. Nobody has written to its error log. Its access log is needed for as
    /// long as its workers answer requests.
    pub fn abandon_logs(&mut self, generation: GenerationId, shared: &mut Shared) {
        let may_answer = |state: &WorkerState| match state {
            WorkerState::Starting { .. }
            | WorkerState::Lost { .. }
            | WorkerState::Ready
            | WorkerState::Exiting { .. }
            | WorkerState::Killed { .. } => false,
            WorkerState::Opening { .. }
            | WorkerState::Serving { .. }
            | WorkerState::Pausing { .. }
            | WorkerState::Paused { .. }
            | WorkerState::Kept { .. }
            | WorkerState::Closing { .. }
            | WorkerState::Draining { .. }
            | WorkerState::Terminating { .. }
            | WorkerState::Finishing { .. } => true,
        };
        let workers = self.supervisor.generations().iter().filter(|known| known.id == generation);
        let answers = workers.flat_map(|known| &known.workers).any(|worker| may_answer(&worker.state));
        let Some(processes) = self.generations.get_mut(&generation) else { return };
        let error = processes.error_log.take().and_then(|log| log.made);
        let access = processes.access.as_mut().filter(|_| !answers).and_then(|log| log.made.take());
        self.give_back(error.into_iter().chain(access), shared);
    }

    /// The generation's last process is gone.
    pub fn forget(&mut self, generation: GenerationId, shared: &mut Shared) {
        self.counted.forget(generation);
        let Some(processes) = self.generations.remove(&generation) else { return };
        self.give_back_all(Opened { error: processes.error_log, access: processes.access }, shared);
    }

    /// These logs will be nobody's.
    pub fn give_back_all(&mut self, opened: Opened, shared: &mut Shared) {
        let error = opened.error.and_then(|log| log.made);
        let access = opened.access.and_then(|log| log.made);
        self.give_back(error.into_iter().chain(access), shared);
    }

    /// Has files removed that nobody else has opened. While logs are being opened nobody knows whether these are theirs.
    pub fn give_back(&mut self, made: impl IntoIterator<Item = Made>, shared: &mut Shared) {
        let mut unused = Vec::new();
        for made in made {
            if self.preparing.opens_logs() {
                self.preparing.held_back.push(made);
            } else if shared.log.node() == Some(made.node()) {
                made.keep();
            } else if let Some(made) = self.pass_on(made) {
                unused.push(made);
            }
        }
        if !unused.is_empty() {
            shared.chores.give(Chore::Remove(unused), shared.clock.now());
        }
    }

    /// Gives the file to another log that is the same one. Returns it where there is none.
    fn pass_on(&mut self, made: Made) -> Option<Made> {
        let node = Some(made.node());
        for (id, processes) in &mut self.generations {
            let error = processes.error_log.iter_mut().map(|log| (log.node, &mut log.made));
            let access = processes.access.iter_mut().map(|log| (log.node, &mut log.made));
            if let Some((_, place)) = error.chain(access).find(|(theirs, _)| *theirs == node) {
                match self.supervisor.has_committed(*id) {
                    true => made.keep(),
                    false => *place = Some(made),
                }
                return None;
            }
        }
        Some(made)
    }
}
