//! Listeners from generation to generation: opened for the next one, accepted from by the last worker that has them,
//! closed when no generation has them any more.

use forkmaster_wire::message::{GenerationId, ListenerId, ToWorker};

use super::Service;
use crate::facts::outcome::Refusal;
use crate::shared::Shared;
use crate::supervisor::Event;

impl Service {
    pub fn open_listeners(&mut self, generation: GenerationId, shared: &mut Shared) -> Event {
        let Some(processes) = self.generations.get(&generation) else {
            return Event::ListenersRefused { generation, refusal: Refusal::new("forgotten") };
        };
        let all = processes.all_listeners();
        match shared.listeners.open(&all, &processes.access()) {
            Ok(warnings) => {
                for warning in warnings {
                    log::warn!("{warning}");
                }
                let before = self.supervisor.serving().and_then(|generation| self.generations.get(&generation.id));
                let before = before.map(|before| before.all_listeners()).unwrap_or_default();
                for id in all.iter().filter(|id| !before.contains(id)) {
                    if let Some(address) = shared.listeners.address(*id) {
                        log::info!("listening on {address}");
                    }
                }
                Event::ListenersOpen { generation }
            }
            Err(error) => {
                let refusal = Refusal { exit_code: error.exit_code(), ..Refusal::new(error.to_string()) };
                Event::ListenersRefused { generation, refusal }
            }
        }
    }

    /// The generation serves from now on: its backlog, mode and owner of sockets hold, and what only its predecessor had
    /// is closed.
    pub fn commit_listeners(&mut self, generation: GenerationId, close: &[ListenerId], shared: &mut Shared) {
        self.close_listeners(close, shared);
        if let Some(processes) = self.generations.get(&generation) {
            for failure in shared.listeners.adapt(&processes.all_listeners(), &processes.access()) {
                log::error!("{failure}");
            }
        }
    }

    /// The master's copies go first; then the workers that still have them accept what is queued and close theirs: the
    /// last close(2) is what makes the kernel refuse.
    pub fn close_listeners(&mut self, unused: &[ListenerId], shared: &mut Shared) {
        shared.listeners.close(unused);
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
