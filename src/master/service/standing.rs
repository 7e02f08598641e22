//! How the service stands, taken from what the supervisor knows. It changes nothing.

use super::Service;
use crate::facts::outcome::{End, Reload};
use crate::facts::standing::{Held, Phase, Standing};

impl Service {
    pub fn standing(&self) -> Standing {
        let supervisor = &self.supervisor;
        let coming = supervisor.in_transaction();
        let refused = |reload: &Reload| match &reload.end {
            End::Refused(refusal) => refusal.reason.lines().next().map(|reason| (reload.verb, reason.to_owned())),
            End::Committed | End::Superseded { .. } | End::Stopped => None,
        };
        let serving = supervisor.serving();
        Standing {
            phase: match (supervisor.is_running(), serving) {
                (false, _) => Phase::Stopping,
                (true, None) => Phase::Starting,
                (true, Some(_)) if coming.is_some() || self.is_preparing() => Phase::Reloading,
                (true, Some(_)) => Phase::Running,
            },
            ready: supervisor.is_ready(),
            serving: serving.map(|generation| (generation.id, generation.serving(), supervisor.wanted_of(generation))),
            coming: coming.map(|generation| (generation.id, generation.state.word())),
            held: supervisor.held().map(|_| match supervisor.turns_away() {
                true => Held::TurnedAway,
                false => Held::Waiting,
            }),
            reloads: self.reloads,
            processes: supervisor.generations().iter().map(|generation| generation.workers.len()).sum(),
            refused: self.last_reload.as_ref().and_then(refused),
        }
    }
}
