//! The master's time: it stands still while the master does not run. A frozen container (or a laptop that slept)
//! wakes up long after all deadlines; without this it would kill every worker for a silence that was its own.

use std::time::{Duration, Instant};

/// A loop that wakes this much later than it asked for was frozen, not busy.
const FROZEN_AFTER: Duration = Duration::from_secs(2);

pub struct Clock {
    /// The sum of all freezes, which `now` leaves out.
    frozen: Duration,
    /// When the latest freeze ended, and how long it was; real time.
    latest: Option<(Instant, Duration)>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { frozen: Duration::ZERO, latest: None }
    }

    /// Of a process that was this one before an exec.
    pub fn with_frozen(frozen: Duration) -> Clock {
        Clock { frozen, latest: None }
    }

    pub fn frozen(&self) -> Duration {
        self.frozen
    }

    /// The time that decisions are made with.
    pub fn now(&self) -> Instant {
        Instant::now() - self.frozen
    }

    /// To be told of each wait: when it began and how long it was to last at most. Returns how long the master was frozen in it.
    pub fn waited(&mut self, began: Instant, at_most: Duration) -> Option<Duration> {
        self.note(began, at_most, Instant::now())
    }

    fn note(&mut self, began: Instant, at_most: Duration, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(began).saturating_sub(at_most);
        if late < FROZEN_AFTER {
            return None;
        }
        self.frozen += late;
        self.latest = Some((now, late));
        Some(late)
    }

    /// How long something has lasted by the master's time. `real`: by the system's clock. The latest freeze is left out if it lies
    /// within.
    pub fn lasted(&self, real: Duration) -> Duration {
        match self.latest {
            Some((ended, late)) if ended.elapsed() < real => real.saturating_sub(late),
            Some(_) | None => real,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_does_not_count_and_a_busy_moment_does() {
        let mut clock = Clock::new();
        let began = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(clock.note(began, second, began + second * 2), None);
        assert_eq!(clock.note(began, second, began + second * 61), Some(second * 60));
        assert_eq!(clock.frozen, second * 60);
        assert!(clock.now() + second * 59 < Instant::now());
    }
}
