//! What requests take in the application, and what follows from it. Decides only: clocks are read elsewhere.
//!
//! Every decision rests on a share of the latest requests, never on one of them:
//!
//! | decision | from | a garbage collection, a noisy neighbour | a slower processor |
//! |---|---|---|---|
//! | answers may wait for each other | half of the requests take `CLIENT_SLEEPS` or more, and fewer than one in eight more than `LONG` | makes a single request long: what waits is sent before the next one for its path | requests near the bound become long: answers go out at once, as if there were no batches |
//! | requests behind a leader may go to another worker | half of the requests take `CLIENT_SLEEPS` or more | nothing changes | a burst that lasts longer is shared sooner |
//! | the clock is read around sends | one in eight takes `bound` or more by the clock | nothing changes | a fifth of a microsecond a request of that length more |
//! | requests are measured | one in eight still does, without what sending takes | nothing changes | four system calls a request of that length more |
//! | the application waits | half of the measured ones *waited* so long | a thread that computes, or wants to, does not wait: nothing changes | nothing: computing is not waiting |
//!
//! An application that waits has the monitor keep the loop and hand requests to app threads: two switches of threads for
//! each, for which other requests run meanwhile. An application that computes gains nothing from that, however long it
//! computes, since the interpreter's lock lets one thread run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::serve::base::share::Share;

use super::long_paths::LongPaths;

/// From this on a client on the same machine has dealt with an answer and sleeps before the next one is there.
/// Clients of shorter requests often sleep, too. But while answers wait for others the monitor looks five hundred times a
/// second, and at ten microseconds a request that costs more than batches save (`bench/run --slices` shows it).
const CLIENT_SLEEPS: Duration = Duration::from_micros(30);

/// A request that takes longer gains too little from company: what waking a client costs is a thirtieth of it at the most.
/// And it would keep the answers of others waiting.
const LONG: Duration = Duration::from_micros(500);

/// A wait that is worth two switches of threads: ten to twenty microseconds on an idle machine, fifty on a busy one.
const WAIT_TOGETHER: Duration = Duration::from_micros(200);

/// With one app thread nobody else can run the next request. The loop goes on reading and writing meanwhile, for which a
/// longer wait is worth it.
const WAIT_ALONE: Duration = Duration::from_millis(1);

/// So often at least it must be so before anything follows from it: one request in so many.
const OFTEN: u32 = 8;

/// And before an application counts as one that waits. Where fewer requests wait, the monitor takes over in those.
const MOSTLY: u32 = 2;

/// How long an application that waited is taken for one that still does, although nobody waits visibly: where every
/// processor it may use is busy, waiting cannot be seen. Twice as long after each time that this was so.
const PROBE_AFTER: Duration = Duration::from_millis(50);
const PROBE_AFTER_MAX: Duration = Duration::from_millis(200);

/// So many requests are run from the loop then, and tell.
const PROBES: u32 = 3;

/// One request's times.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub begun: Instant,
    pub ended: Instant,
    /// By the caller's clock.
    pub took: Duration,
    /// The same without what is not the application's: None, the clock was not read for it.
    pub inside: Option<Duration>,
    /// For how long nobody in the process computed, although this thread wanted something: None, it was not measured.
    pub waited: Option<Duration>,
    /// It was run by the thread that took it from the loop, so that nobody else was in the application for long.
    pub from_loop: bool,
}

#[derive(Debug)]
pub struct AppTimes {
    bound: Duration,
    sleeps: Share,
    long: Share,
    long_paths: LongPaths,
    slow: Share,
    suspect: Share,
    judge: Mutex<Judge>,
    waits: AtomicBool,
}

impl AppTimes {
    pub fn new(threads: usize) -> AppTimes {
        AppTimes {
            bound: if threads == 1 { WAIT_ALONE } else { WAIT_TOGETHER },
            sleeps: Share::default(),
            long: Share::default(),
            long_paths: LongPaths::default(),
            slow: Share::default(),
            suspect: Share::default(),
            judge: Mutex::default(),
            waits: AtomicBool::new(false),
        }
    }

    /// Whether the clock is to be read around what a request that begins now sends.
    pub fn looks_closer(&self) -> bool {
        self.slow.is_at_least_one_in(OFTEN)
    }

    /// Whether a request that begins now is to be measured, which costs system calls.
    pub fn measures(&self) -> bool {
        self.waits() || self.suspect.is_at_least_one_in(OFTEN)
    }

    /// The application waits: the monitor keeps the loop.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Whether an answer may wait for others.
    pub fn may_defer(&self) -> bool {
        self.are_worth_moving() && !self.long.is_at_least_one_in(OFTEN) && !self.waits()
    }

    /// Whether a request takes so long that another worker may be had for it: moving its connection costs some ten
    /// microseconds. Bursts of shorter ones last long only where the processor was busy with something else.
    pub fn are_worth_moving(&self) -> bool {
        self.sleeps.is_at_least_one_in(2)
    }

    /// Whether a request for this path will probably take long: answers that wait are sent before it begins.
    pub fn is_long(&self, path: &[u8]) -> bool {
        self.long_paths.has(path)
    }

    /// A request for this path has ended.
    pub fn note(&self, path: &[u8], took: Duration) {
        self.long_paths.note(path, took > LONG);
    }

    /// A request has ended.
    pub fn record(&self, times: Times) {
        let took = times.took;
        self.sleeps.record(took >= CLIENT_SLEEPS);
        self.long.record(took > LONG);
        self.slow.record(took >= self.bound);
        self.suspect.record(times.inside.is_some_and(|inside| inside >= self.bound));
        if times.waited.is_none() && !self.waits() {
            return;
        }
        let waited = times.waited.is_some_and(|waited| waited >= self.bound);
        let mut judge = self.judge.lock().unwrap_or_else(PoisonError::into_inner);
        self.waits.store(judge.hear(waited, times), Ordering::Relaxed);
    }
}

/// Whether the application waits.
#[derive(Debug, Default)]
struct Judge {
    verdict: Verdict,
    waits: Share,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    #[default]
    Computes,
    Waits {
        /// Not looked at again before.
        until: Instant,
        patience: Duration,
    },
    /// Requests are run from the loop, as if it computed, to see.
    Probed { since: Instant, seen: u32, waited: u32, patience: Duration },
}

impl Judge {
    /// True: it waits.
    fn hear(&mut self, waited: bool, times: Times) -> bool {
        let now = times.ended;
        self.verdict = match self.verdict {
            // Beside others in the application nobody can be seen to wait for anything but the lock.
            Verdict::Computes if !times.from_loop => Verdict::Computes,
            Verdict::Computes => {
                self.waits.record(waited);
                if self.waits.is_at_least_one_in(MOSTLY) {
                    Verdict::Waits { until: now + PROBE_AFTER, patience: PROBE_AFTER }
                } else {
                    Verdict::Computes
                }
            }
            Verdict::Waits { until, patience } => {
                self.waits.record(waited);
                if now >= until && !self.waits.is_at_least_one_in(OFTEN) {
                    Verdict::Probed { since: now, seen: 0, waited: 0, patience }
                } else {
                    Verdict::Waits { until, patience }
                }
            }
            Verdict::Probed { since, seen, waited: before, patience } if times.from_loop && times.begun >= since => {
                let (seen, before) = (seen + 1, before + u32::from(waited));
                if seen < PROBES {
                    Verdict::Probed { since, seen, waited: before, patience }
                } else if before * 2 > seen {
                    let patience = (patience * 2).min(PROBE_AFTER_MAX);
                    Verdict::Waits { until: now + patience, patience }
                } else {
                    self.waits.clear();
                    Verdict::Computes
                }
            }
            probed @ Verdict::Probed { .. } => probed,
        };
        matches!(self.verdict, Verdict::Waits { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        /// A request that took so long, of which nobody computed for `waited`.
        fn request(&mut self, times: &AppTimes, took: Duration, waited: Duration) {
            let begun = self.0;
            self.0 += took;
            let from_loop = !times.waits();
            let inside = times.looks_closer().then_some(took);
            let waited = times.measures().then_some(waited);
            times.record(Times { begun, ended: self.0, took, inside, waited, from_loop });
        }
    }

    const MS: Duration = Duration::from_millis(1);
    const US: Duration = Duration::from_micros(1);

    /// As the fault was: one request over 200 us switched batches off for 100 ms.
    #[test]
    fn one_long_request_ends_no_batches() {
        let (times, mut clock) = (AppTimes::new(1), Clock(Instant::now()));
        (0..50).for_each(|_| clock.request(&times, 70 * US, Duration::ZERO));
        assert!(times.may_defer());
        clock.request(&times, 30 * MS, 30 * MS);
        assert!(times.may_defer() && !times.measures());
        // Where one in five is long, answers do not wait for it.
        (0..200).for_each(|index| clock.request(&times, if index % 5 == 0 { 2 * MS } else { 70 * US }, Duration::ZERO));
        assert!(!times.may_defer());
        (0..100).for_each(|_| clock.request(&times, 70 * US, Duration::ZERO));
        assert!(times.may_defer());
    }

    #[test]
    fn clients_that_do_not_sleep_get_their_answers_at_once() {
        let (times, mut clock) = (AppTimes::new(1), Clock(Instant::now()));
        (0..100).for_each(|_| clock.request(&times, 5 * US, Duration::ZERO));
        assert!(!times.may_defer());
        // A single long one makes no average.
        clock.request(&times, 5 * MS, Duration::ZERO);
        assert!(!times.may_defer());
    }

    /// A tracer, or a socket that is slow to take its bytes: that is not the application.
    #[test]
    fn sending_is_not_the_applications_time() {
        let (times, now) = (AppTimes::new(1), Instant::now());
        for _ in 0..1000 {
            let inside = times.looks_closer().then_some(50 * US);
            times.record(Times { begun: now, ended: now, took: 2 * MS, inside, waited: None, from_loop: true });
        }
        assert!(times.looks_closer() && !times.measures());
    }

    #[test]
    fn computing_is_not_waiting_however_long_it_takes() {
        let (times, mut clock) = (AppTimes::new(4), Clock(Instant::now()));
        (0..1000).for_each(|_| clock.request(&times, 5 * MS, 20 * US));
        assert!(times.measures() && !times.waits());
    }

    #[test]
    fn waiting_is_seen_after_a_few_requests_and_forgotten_when_it_ends() {
        let (times, mut clock) = (AppTimes::new(4), Clock(Instant::now()));
        let until_it_waits = (1..100).find(|_| {
            clock.request(&times, 2 * MS, 1700 * US);
            times.waits()
        });
        assert!(until_it_waits.is_some_and(|requests| requests <= 40), "{until_it_waits:?}");
        assert!(!times.may_defer());
        // It computes from now on.
        let begun = clock.0;
        while times.measures() {
            clock.request(&times, MS / 2, Duration::ZERO);
            assert!(clock.0 - begun < 400 * MS, "it is never forgotten");
            if !times.waits() && clock.0 - begun > PROBE_AFTER_MAX {
                break;
            }
        }
        assert!(!times.waits());
    }

    /// Eight threads that wait for a database and fill the lock's time with what they compute: nobody is seen to wait, but
    /// would be, if they came one by one.
    #[test]
    fn waits_that_others_fill_are_found_by_a_probe() {
        let (times, mut clock) = (AppTimes::new(8), Clock(Instant::now()));
        let begun = clock.0;
        let mut in_mode = Duration::ZERO;
        while clock.0 - begun < Duration::from_secs(10) {
            let before = clock.0;
            if times.waits() {
                clock.request(&times, 300 * US, Duration::ZERO);
                in_mode += clock.0 - before;
            } else {
                clock.request(&times, 2300 * US, 2000 * US);
            }
        }
        assert!(in_mode > Duration::from_millis(9_500), "only {in_mode:?} of 10 s");
    }

    #[test]
    fn one_that_alternates_each_second_is_known_most_of_the_time() {
        let (times, mut clock) = (AppTimes::new(4), Clock(Instant::now()));
        let begun = clock.0;
        let mut wrong = Duration::ZERO;
        while clock.0 - begun < Duration::from_secs(10) {
            let waits = (clock.0 - begun).as_secs() % 2 == 1;
            let before = clock.0;
            clock.request(&times, 2300 * US, if waits { 2 * MS } else { Duration::ZERO });
            if waits != times.waits() {
                wrong += clock.0 - before;
            }
        }
        assert!(wrong < Duration::from_millis(2_000), "{wrong:?} of 10 s");
    }
}
