//! Listeners from generation to generation: opened for the next one, accepted from by the last worker that has them,
//! closed when no generation has them any more.

use forkmaster_wire::message::{GenerationId, ListenerId, ToWorker, WorkerId};

use super::Service;
use crate::exit_code::ExitCode;
use crate::shared::Shared;
use crate::supervisor::Event;

impl Service {
    pub fn open_listeners(&mut self, generation: GenerationId, shared: &mut Shared) -> Event {
        let Some(processes) = self.generations.get(&generation) else {
            return Event::ListenersRefused {
                generation,
                reason: "forgotten".to_owned(),
                exit_code: ExitCode::Refused.into(),
            };
        };
        match shared.listeners.open(&processes.listeners, &processes.access()) {
            Ok(warnings) => {
                for warning in warnings {
                    log::warn!("{warning}");
                }
                let before = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id));
                let is_new = |id: &ListenerId| before.is_none_or(|before| !before.listeners.contains(id));
                for id in processes.listeners.iter().filter(|id| is_new(id)) {
                    if let Some(address) = shared.listeners.address(*id) {
                        log::info!("listening on {address}");
                    }
                }
                Event::ListenersOpen { generation }
            }
            Err(error) => {
                let exit_code = i32::from(error.exit_code());
                Event::ListenersRefused { generation, reason: error.to_string(), exit_code }
            }
        }
    }

    /// The generation serves from now on: its backlog, mode and owner of sockets hold, and what only its predecessor had
    /// is closed.
    pub fn commit_listeners(&mut self, generation: GenerationId, shared: &mut Shared) {
        self.close_unused_listeners(shared);
        if let Some(processes) = self.generations.get(&generation) {
            for failure in shared.listeners.adapt(&processes.listeners, &processes.access()) {
                log::error!("{failure}");
            }
        }
    }

    /// Listeners that a worker accepts from and that whoever follows it does not have: it goes on with them until
    /// the commit, since nobody else would serve who connects there.
    pub fn listeners_without_heir(&self, id: WorkerId) -> Vec<ListenerId> {
        let Some(worker) = self.workers.get(&id) else { return Vec::new() };
        // Until workers change places, the heir is the next worker of the generation that serves.
        let successor = self.supervisor.exchanging().filter(|generation| generation.id != worker.generation);
        let heir = successor.or(self.supervisor.serving());
        let Some(heir) = heir.and_then(|generation| self.generations.get(&generation.id)) else { return Vec::new() };
        worker.listeners.iter().filter(|listener| !heir.listeners.contains(listener)).copied().collect()
    }

    /// Closes listeners that neither the serving generation nor one in a transaction has. The master's copy goes
    /// first; then the workers that still have them accept what is queued and close theirs: the last close(2) is
    /// what makes the kernel refuse.
    pub fn close_unused_listeners(&mut self, shared: &mut Shared) {
        let used: Vec<ListenerId> = [self.supervisor.serving(), self.supervisor.in_transaction()]
            .into_iter()
            .flatten()
            .filter_map(|generation| self.generations.get(&generation.id))
            .flat_map(|processes| processes.listeners.iter().copied())
            .collect();
        let unused: Vec<ListenerId> = shared.listeners.ids().into_iter().filter(|id| !used.contains(id)).collect();
        shared.listeners.close(&unused);
        for worker in self.workers.values_mut() {
            let (listeners, kept): (Vec<ListenerId>, Vec<ListenerId>) =
                worker.listeners.iter().partition(|listener| unused.contains(listener));
            worker.listeners = kept;
            if !listeners.is_empty() {
                worker.tell(&ToWorker::CloseListeners { listeners });
            }
        }
    }
}
