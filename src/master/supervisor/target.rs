//! How many workers are wanted: what the settings say, and what operators have added or taken away since.

use serde::{Deserialize, Serialize};

use super::generation::Plan;
use crate::facts::outcome::Refusal;

/// In the worst case each slot has one process that serves, one that boots and one that leaves, and each needs a
/// cell of the generation's scoreboard.
const PROCESSES_A_SLOT: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Workers more (or fewer) than the settings say. Survives reloads.
    extra: i32,
    /// Told to have none: the sockets are held, and what comes waits in the backlog.
    off: bool,
}

impl Target {
    /// How many workers a generation with this plan should have.
    pub fn wanted(&self, plan: &Plan) -> u32 {
        if self.off {
            return 0;
        }
        self.wanted_when_on(plan)
    }

    /// The same, whether they are switched off or not.
    pub fn wanted_when_on(&self, plan: &Plan) -> u32 {
        let wanted = i64::from(plan.workers) + i64::from(self.extra);
        wanted.clamp(1, i64::from(most(plan))) as u32
    }

    /// So many workers more or fewer. Steps end at one: only `set` switches the last one off. Returns how many are
    /// wanted from now on, or why there cannot be so many.
    pub fn scale(&mut self, by: i32, plan: &Plan) -> Result<u32, Refusal> {
        let before = self.wanted(plan);
        let wanted = i64::from(before) + i64::from(by);
        if before == 0 && wanted <= 0 {
            return Ok(0);
        }
        self.set(wanted.clamp(1, u32::MAX.into()) as u32, plan)
    }

    /// So many workers; 0 switches them off.
    pub fn set(&mut self, wanted: u32, plan: &Plan) -> Result<u32, Refusal> {
        if wanted > most(plan) {
            return Err(Refusal::new(match (plan.max_processes, plan.bound()) {
                (Some(max), Some(bound)) if max.saturating_sub(1) <= most(plan) => match plan.open_files {
                    Some(_) => format!("{wanted} workers are too many, with one more that proves a release: {bound}"),
                    None => format!("{wanted} workers are too many for {bound}"),
                },
                (Some(_) | None, _) => format!(
                    "{wanted} workers are more than the {} that a scoreboard for workers = {} has room for; set `workers` \
                     and reload",
                    most(plan),
                    plan.workers
                ),
            }));
        }
        self.off = wanted == 0;
        if wanted > 0 {
            self.extra = (i64::from(wanted) - i64::from(plan.workers)) as i32;
        }
        Ok(wanted)
    }

    /// Nobody is wanted.
    pub fn is_off(&self) -> bool {
        self.off
    }
}

/// One process less than `max_processes`, so that a release can still be proved.
fn most(plan: &Plan) -> u32 {
    let by_cells = (plan.cells / PROCESSES_A_SLOT).max(plan.workers);
    let allowed = plan.max_processes.map_or(u32::MAX, |max| max.saturating_sub(1));
    by_cells.min(allowed.max(plan.workers)).max(1)
}
