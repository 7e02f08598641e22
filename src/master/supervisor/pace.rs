//! How many workers of a new generation may be there at once: arithmetic over what was measured, and nothing else.
//!
//! Boots at a time follow the processors: a boot that sleeps (a database, a remote configuration) bears many beside
//! it, one that computes must not take all processors from the old generation. Processes at a time follow the memory
//! and `max_processes`. Where all new workers fit beside the old ones they take over in one step; what does not fit
//! comes in waves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::generation::{Plan, Surge};

/// Boots at a time, at the least and at the most.
const BOOTS_MIN: u32 = 2;
const BOOTS_MAX: u32 = 64;

/// What the machine has left, as the hands have measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Memory that may still be used, less a reserve. None: not known.
    pub bytes: Option<u64>,
    pub processors: u32,
    /// What one of the workers that serve takes now: the one in the middle. 0: not known.
    pub worker_bytes: u64,
}

impl Room {
    /// Nothing was measured.
    pub const UNKNOWN: Room = Room { bytes: None, processors: 1, worker_bytes: 0 };
}

/// What a worker has measured of its own boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Memory that it shares with nobody. 0: it was not asked to measure it.
    pub private_bytes: u64,
    pub wall: Duration,
    pub cpu: Duration,
}

/// What the decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub room: Room,
    pub candidate: Boot,
    /// New workers that are still to be forked.
    pub missing: u32,
    /// All worker processes there are, the candidate included.
    pub processes: u32,
}

/// How a generation rolls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// All new workers boot first, then they take over in one step.
    pub one_step: bool,
    /// Boots at a time.
    pub boots: u32,
    /// Worker processes of all generations at a time. None: no bound but `max_surge`.
    pub processes: Option<u32>,
    /// Workers that may be missing meanwhile.
    pub unavailable: u32,
    /// What one more worker costs. 0: not known.
    pub bytes_each: u64,
    pub bytes_free: Option<u64>,
}

/// Boots at a time that leave processors for those who serve.
fn boots(processors: u32, boot: Boot) -> u32 {
    if boot.wall.is_zero() {
        return processors.clamp(BOOTS_MIN, BOOTS_MAX);
    }
    // A boot without any CPU time bears as many as there may be.
    let share = boot.wall.as_secs_f64() / boot.cpu.as_secs_f64().max(1e-3);
    (f64::from(processors) * share.max(1.0)).round().clamp(f64::from(BOOTS_MIN), f64::from(BOOTS_MAX)) as u32
}

/// Memory grows after the boot: a quarter more than the candidate's, or what the old workers have come to.
fn bytes_each(candidate: u64, predecessor: u64) -> u64 {
    candidate.saturating_add(candidate / 4).max(predecessor)
}

/// How many more workers there is room for.
fn fits(plan: &Plan, measured: &Measured, each: u64) -> u32 {
    let in_memory = match (measured.room.bytes, each) {
        (Some(free), 1..) => u32::try_from(free / each).unwrap_or(u32::MAX),
        (Some(_), 0) | (None, _) => u32::MAX,
    };
    let allowed = plan.max_processes.map_or(u32::MAX, |max| max.saturating_sub(measured.processes));
    in_memory.min(allowed)
}

impl Pace {
    /// As `max_surge` and `max_unavailable` say, by their numbers alone.
    pub fn by_number(plan: &Plan) -> Pace {
        Pace {
            one_step: false,
            boots: BOOTS_MAX,
            processes: None,
            unavailable: plan.unavailable,
            bytes_each: 0,
            bytes_free: None,
        }
    }
}

/// Decides how a proved generation rolls.
pub fn pace(plan: &Plan, measured: &Measured) -> Pace {
    let each = bytes_each(measured.candidate.private_bytes, measured.room.worker_bytes);
    let by_number = Pace { bytes_each: each, bytes_free: measured.room.bytes, ..Pace::by_number(plan) };
    let boots = match plan.surge {
        Surge::Workers(_) => return by_number,
        Surge::All => BOOTS_MAX,
        Surge::Auto => boots(measured.room.processors, measured.candidate),
    };
    let fits = match plan.surge {
        Surge::All => fits(plan, measured, 0),
        Surge::Auto | Surge::Workers(_) => fits(plan, measured, each),
    };
    match fits {
        fits if fits >= measured.missing => Pace { one_step: true, boots, ..by_number },
        // An old worker goes before a new one comes.
        0 => Pace { boots: 1, processes: Some(measured.processes), unavailable: plan.unavailable.max(1), ..by_number },
        fits => Pace { boots: boots.min(fits), processes: Some(measured.processes + fits), ..by_number },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn measured(free_mib: u64, missing: u32) -> Measured {
        Measured {
            room: Room { bytes: Some(free_mib * MIB), processors: 2, worker_bytes: 90 * MIB },
            candidate: Boot {
                private_bytes: 80 * MIB,
                wall: Duration::from_millis(500),
                cpu: Duration::from_millis(500),
            },
            missing,
            processes: missing + 2,
        }
    }

    fn auto(workers: u32) -> Plan {
        Plan { surge: Surge::Auto, ..plan(workers) }
    }

    #[test]
    fn a_boot_that_sleeps_bears_many_and_one_that_computes_leaves_processors() {
        let boot =
            |wall, cpu| Boot { private_bytes: 0, wall: Duration::from_millis(wall), cpu: Duration::from_millis(cpu) };
        assert_eq!(boots(2, boot(500, 500)), 2);
        assert_eq!(boots(8, boot(500, 500)), 8);
        assert_eq!(boots(2, boot(600, 100)), 12);
        assert_eq!(boots(2, boot(10_000, 1)), 64);
        assert_eq!(boots(1, boot(100, 100)), 2, "two at the least");
        assert_eq!(boots(128, boot(100, 100)), 64);
        // More threads than one, so more CPU than time.
        assert_eq!(boots(4, boot(100, 400)), 4);
        assert_eq!(boots(4, Boot::default()), 4, "nothing was measured");
    }

    #[test]
    fn where_all_fit_they_take_over_in_one_step() {
        let pace = pace(&auto(8), &measured(4096, 7));
        assert!(pace.one_step && pace.processes.is_none(), "{pace:?}");
        assert_eq!((pace.boots, pace.bytes_each), (2, 100 * MIB));
    }

    #[test]
    fn room_for_two_more_makes_waves_of_two() {
        let pace = pace(&auto(8), &measured(230, 7));
        assert_eq!((pace.one_step, pace.boots, pace.processes, pace.unavailable), (false, 2, Some(11), 0));
    }

    #[test]
    fn room_for_none_takes_one_worker_away_first_but_never_the_only_one() {
        let none = pace(&auto(8), &measured(50, 7));
        assert_eq!((none.one_step, none.boots, none.processes, none.unavailable), (false, 1, Some(9), 1));
        // The candidate is the one new worker, and it is there.
        let only = pace(&auto(1), &measured(0, 0));
        assert_eq!((only.one_step, only.unavailable), (true, 0));
    }

    #[test]
    fn the_old_workers_size_counts_where_it_is_the_greater() {
        let mut grown = measured(700, 7);
        grown.room.worker_bytes = 300 * MIB;
        assert_eq!(pace(&auto(8), &grown).processes, Some(9 + 2));
    }

    #[test]
    fn max_processes_bounds_every_kind_of_surge_but_a_number() {
        let bound = |surge| Plan { surge, max_processes: Some(12), ..plan(8) };
        assert_eq!(pace(&bound(Surge::All), &measured(4096, 7)).processes, Some(12));
        assert_eq!(pace(&bound(Surge::Auto), &measured(4096, 7)).processes, Some(12));
        assert_eq!(pace(&bound(Surge::Workers(1)), &measured(4096, 7)).processes, None);
        // What memory is there is no matter for whoever has asked for all at once.
        let all = Plan { surge: Surge::All, ..plan(8) };
        assert!(pace(&all, &measured(1, 7)).one_step);
    }

    #[test]
    fn memory_that_is_not_known_bounds_nothing() {
        let unknown = Measured { room: Room { bytes: None, ..measured(0, 7).room }, ..measured(0, 7) };
        assert!(pace(&auto(8), &unknown).one_step);
    }
}
