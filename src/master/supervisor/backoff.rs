//! How long a slot or a template waits before its next process: never a hot loop, never slower than needed after
//! a single accident.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The first pause after a failed boot, doubled each time.
pub const FIRST: Duration = Duration::from_millis(100);

/// The longest pause: a service that depends on something broken looks for it twice a minute.
pub const LONGEST: Duration = Duration::from_secs(30);

/// A process that served for so long was sound; its death starts the count anew. As s6 and systemd count.
pub const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Deaths in a row without a sound life between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a boot that failed.
    pub fn after_failed_boot(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        pause(self.failures)
    }

    /// The pause after the death of a process that had come up. The first one costs nothing: a worker that was
    /// killed is replaced at once.
    pub fn after_death(&mut self, served: Duration) -> Duration {
        if served >= SOUND_AFTER {
            self.failures = 0;
        }
        let pause = pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_costs_nothing_and_a_crash_loop_slows_down() {
        let mut backoff = Backoff::default();
        let young = Duration::from_secs(1);
        let pauses: Vec<u128> = (0..12).map(|_| backoff.after_death(young).as_millis()).collect();
        assert_eq!(pauses[..5], [0, 100, 200, 400, 800]);
        assert_eq!(pauses[11], LONGEST.as_millis());
        assert_eq!(backoff.after_death(SOUND_AFTER), Duration::ZERO);
        assert_eq!(backoff.after_failed_boot(), FIRST * 2);
    }
}
