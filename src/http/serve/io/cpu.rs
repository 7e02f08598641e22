//! What the kernel knows of the processor time of this process and this thread.

use std::time::{Duration, Instant};

use nix::sys::resource::{getrusage, UsageWho};
use nix::time::{clock_gettime, ClockId};

use crate::serve::base::sync::ThreadMark;

/// What all threads of the process have computed so far.
pub fn process_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How often this thread gave its processor up to wait for something. Being preempted does not count.
pub fn voluntary_switches() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// What a request needs to know of its beginning, to tell at its end for how long it waited.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    process: Duration,
    switches: i64,
    thread: ThreadMark,
    /// When these were known: what asking for them takes is not the request's time.
    since: Instant,
}

impl Measure {
    pub fn begin() -> Measure {
        let (process, switches, thread) = (process_time(), voluntary_switches(), ThreadMark::here());
        Measure { process, switches, thread, since: Instant::now() }
    }

    pub fn took(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Of the time since, until `now`, how long nobody in this process computed: nothing, where this thread never wanted to wait.
    pub fn waited(self, now: Instant) -> Duration {
        if self.thread == ThreadMark::here() && self.switches == voluntary_switches() {
            return Duration::ZERO;
        }
        self.took(now).saturating_sub(process_time().saturating_sub(self.process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Other tests of this process may compute meanwhile, which can only make it less.
    #[test]
    fn a_thread_that_computes_does_not_wait() {
        let measure = Measure::begin();
        let begun = Instant::now();
        let mut sum = 0u64;
        while begun.elapsed() < Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        assert_eq!(measure.waited(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_waits_gives_its_processor_up() {
        let before = voluntary_switches();
        let (_sender, receiver) = channel::<()>();
        assert!(receiver.recv_timeout(Duration::from_millis(5)).is_err());
        assert!(voluntary_switches() > before);
    }
}
