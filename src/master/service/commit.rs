//! The commit: from here on a generation's settings are the service's. Before it nothing that all generations share has
//! changed, so that a reload that is refused leaves nothing behind.

use forkmaster_wire::message::{GenerationId, ListenerId};

use super::Service;
use crate::config::Loaded;
use crate::footprint;
use crate::shared::Shared;

impl Service {
    pub fn commit(&mut self, generation: GenerationId, close: &[ListenerId], shared: &mut Shared) {
        self.commit_listeners(generation, close, shared);
        self.keep_logs(generation);
        let Some(processes) = self.generations.get_mut(&generation) else { return };
        let error_log = processes.error_log.take();
        let handed_out = error_log.is_some();
        if let Some(error_log) = error_log {
            shared.log.turn_to(error_log);
        }
        shared.log.set_level(processes.settings.log.level);
        shared.log.set_form(processes.settings.log.form);
        let settings = processes.settings.clone();
        self.set_hooks(&settings);
        let Some(processes) = self.generations.get_mut(&generation) else { return };
        let (settings, effective) = (processes.settings.clone(), processes.written.clone());
        let loaded = Loaded { settings, warnings: Vec::new(), effective };
        self.earlier.committed(generation, loaded, processes.back);
        let took = shared.clock.now().saturating_duration_since(processes.began).as_millis();
        log::info!("generation gen={generation} committed after={took}ms");
        if handed_out {
            self.hand_out_logs(shared);
        }
        if std::mem::take(&mut self.reopening.at_commit) {
            self.ask_to_reopen_logs(shared);
        }
        footprint::let_go_of_what_a_deploy_took();
    }
}
