//! How many workers are wanted: what the settings say, and what operators have added or taken away since.

use super::generation::Plan;
use crate::facts::outcome::Refusal;

/// In the worst case each slot has one process that serves, one that boots and one that leaves, and each needs a
/// cell of the generation's scoreboard.
const PROCESSES_A_SLOT: u32 = 3;

#[derive(Debug, Default)]
pub struct Target {
    /// Workers more (or fewer) than the settings say, from TTIN and TTOU. Survives reloads.
    extra: i32,
}

impl Target {
    /// How many workers a generation with this plan should have.
    pub fn wanted(&self, plan: &Plan) -> u32 {
        let wanted = i64::from(plan.workers) + i64::from(self.extra);
        wanted.clamp(1, i64::from(most(plan))) as u32
    }

    /// Returns how many are wanted from now on, at least one; or why there cannot be so many.
    pub fn scale(&mut self, by: i32, plan: &Plan) -> Result<u32, Refusal> {
        let wanted = i64::from(self.wanted(plan)) + i64::from(by);
        if wanted > i64::from(most(plan)) {
            return Err(Refusal::new(match plan.max_processes {
                Some(max) if max.saturating_sub(1) <= most(plan) => format!("{wanted} workers are too many for max_processes = {max}"),
                Some(_) | None => format!(
                    "{wanted} workers are more than the {} that a scoreboard for workers = {} has room for; set `workers` \
                     and reload",
                    most(plan),
                    plan.workers
                ),
            }));
        }
        let wanted = wanted.max(1);
        self.extra = (wanted - i64::from(plan.workers)) as i32;
        Ok(wanted as u32)
    }
}

/// One process less than `max_processes`, so that a release can still be proved.
fn most(plan: &Plan) -> u32 {
    let by_cells = (plan.cells / PROCESSES_A_SLOT).max(plan.workers);
    let allowed = plan.max_processes.map_or(u32::MAX, |max| max.saturating_sub(1));
    by_cells.min(allowed.max(plan.workers)).max(1)
}
