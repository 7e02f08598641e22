//! Requests that have waited for a thread for longer than they may get 503. Nothing of them was begun, so whoever sent them
//! may send them again. After a stall most clients have given up, and answering them all would take as long as the line is.
//!
//! Time in which this worker did not serve does not count: a pause, or a service without workers, holds requests back on
//! purpose.

use std::time::{Duration, Instant};

use crate::proto::refusal;
use crate::serve::conn::request::Request;

use super::EventLoop;

/// How often the line is looked at, at least, while all threads are busy and nobody comes for what is in it.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(100);

/// Keeps the limit while all threads are busy.
#[derive(Debug)]
pub struct Shedding {
    /// Since when this worker takes connections.
    pub serves_since: Instant,
    /// Since when the doors are masked. Whoever has come since then has waited in the kernel's queue for less.
    masked_since: Option<Instant>,
}

impl Shedding {
    pub fn new(now: Instant) -> Shedding {
        Shedding { serves_since: now, masked_since: None }
    }

    /// The doors have been masked for so long that those who wait there may be late.
    fn is_to_look(&mut self, masked: bool, now: Instant, limit: Duration) -> bool {
        let since = match masked {
            true => *self.masked_since.get_or_insert(now),
            false => now,
        };
        let looks = now.saturating_duration_since(since) >= limit;
        if looks || !masked {
            self.masked_since = None;
        }
        looks
    }
}

impl EventLoop {
    /// A request that is ready since then is to be begun by then.
    pub(super) fn begin_by(&self, ready_at: Instant) -> Option<Instant> {
        let limit = self.shared.rules.settings.queue_limit?;
        ready_at.max(self.shedding.serves_since).checked_add(limit.time)
    }

    #[cold]
    pub(super) fn shed(&mut self, request: Box<Request>) {
        let sheds = self.shared.rules.settings.queue_limit.is_some_and(|limit| limit.sheds);
        self.metrics.shed();
        self.refuse_later(request, if sheds { refusal::SHED } else { refusal::WAITED });
    }

    /// All threads may be stuck, and then nobody else would look at those who wait.
    pub(super) fn shed_waiting(&mut self) {
        let Some(limit) = self.shared.rules.settings.queue_limit else { return };
        let now = self.now;
        while let Some(request) = self.shared.run_queue.take_if(|request| request.is_late(now)) {
            self.dispatched -= 1;
            self.shed(request);
        }
        if limit.sheds {
            let masked = self.listeners.admission.is_masked();
            if self.shedding.is_to_look(masked, now, limit.time) {
                // Those who are late are refused, and the others wait here from now on.
                self.listeners.admission.fall_behind();
            }
        }
    }

    /// When those who wait are to be looked at again.
    pub(super) fn shed_at(&self) -> Option<Instant> {
        let limit = self.shared.rules.settings.queue_limit.filter(|limit| limit.sheds)?;
        let all_busy = !self.listeners.admission.has_time(self.load());
        all_busy.then(|| self.now + (limit.time / 4).min(LOOK_AGAIN_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_outside_are_looked_at_once_a_limit_while_the_doors_are_masked() {
        let start = Instant::now();
        let mut shedding = Shedding::new(start);
        let mut at =
            |ms, masked| shedding.is_to_look(masked, start + Duration::from_millis(ms), Duration::from_millis(50));
        let looks =
            [at(0, false), at(10, true), at(59, true), at(60, true), at(61, true), at(110, true), at(111, true)];
        assert_eq!(looks, [false, false, false, true, false, false, true]);
        assert_eq!(
            [at(120, true), at(160, false), at(180, true), at(229, true), at(230, true)],
            [false, false, false, false, true]
        );
    }
}
