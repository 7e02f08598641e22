//! Which bodies go to the application as they come, so that a thread waits for their clients. Decides only.
//!
//! | A body that no longer fits into memory | goes |
//! |---|---|
//! | has come fast (`LIVE_BYTES_PER_S_MIN`), and its rest takes less than two seconds at that pace | to the application, within the bounds below |
//! | comes more slowly, or might take longer | to a file, and to the application when it is complete |
//!
//! At most half of the threads read such bodies. Where there is only one thread, it reads a body while no other request
//! waits, and others may come after it in line.
//!
//! A client must keep a pace while a thread waits for it, and a much faster pace while other requests want that thread: at
//! once where it is the only thread, otherwise from the fourth second of waiting on. One client that is too slow for those
//! who wait costs all clients: for a minute no body goes live, then for two, and so on. Bodies that stand in line for the
//! only thread by then must not stop either: others would wait for each of their clients in turn.

use std::time::{Duration, Instant};

use crate::serve::base::settings::{
    LIVE_ALONE_IN_LINE_MAX, LIVE_PACE_BYTES_PER_S, LIVE_PACE_WANTED_BYTES_PER_S, LIVE_REST_MAX, LIVE_WINDOW,
    LIVE_WINDOW_MISTRUSTED, MISTRUST, MISTRUST_MAX,
};
use crate::serve::conn::live_body::Patience;

/// A thread has waited for a client for longer than the whole rest of its body was to take.
const TOO_LONG: Duration = LIVE_WINDOW.saturating_add(LIVE_REST_MAX);

#[derive(Debug)]
pub struct Streams {
    /// Live bodies whose request is not answered, those included that wait for a thread.
    live: usize,
    bytes_per_s_min: u64,
    mistrusted_until: Option<Instant>,
    mistrust: Duration,
}

/// A body that no longer fits into memory.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub came: u64,
    /// Since its head was there.
    pub took: Duration,
    /// None: not known.
    pub left: Option<u64>,
}

/// The threads when it comes.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    pub count: usize,
    /// Requests with the threads or in line for one, those with live bodies included.
    pub requests: u64,
}

impl Candidate {
    fn is_fast(self, bytes_per_s_min: u64) -> bool {
        let took_us = self.took.as_micros().max(1);
        let per_s = u128::from(self.came) * 1_000_000 / took_us;
        let rest_s = u128::from(self.left.unwrap_or(0)) / per_s.max(1);
        per_s >= u128::from(bytes_per_s_min) && (bytes_per_s_min == 0 || rest_s < u128::from(LIVE_REST_MAX.as_secs()))
    }
}

impl Streams {
    /// `bytes_per_s_min`: how fast a body must have come; 0: it need not.
    pub fn new(bytes_per_s_min: u64) -> Streams {
        Streams { live: 0, bytes_per_s_min, mistrusted_until: None, mistrust: MISTRUST }
    }

    pub fn admits(&self, candidate: Candidate, threads: Threads, now: Instant) -> bool {
        let others = threads.requests.saturating_sub(self.live as u64);
        let has_room = match threads.count {
            // The one that runs is no reason: its end is the beginning of this one.
            0 | 1 => others <= 1 && self.live <= LIVE_ALONE_IN_LINE_MAX,
            count => self.live < count / 2,
        };
        has_room && !self.is_mistrusted(now) && candidate.is_fast(self.bytes_per_s_min)
    }

    /// How long a thread waits for the client of a live body. `wanted`: others wait for a thread. `waited`: for how long it has
    /// waited so far, in sum.
    pub fn patience(&self, threads: usize, wanted: bool, waited: Duration, now: Instant) -> Patience {
        let is_alone = threads <= 1;
        if !wanted || (!is_alone && waited < TOO_LONG) {
            return Patience { window: LIVE_WINDOW, bytes_per_s_min: LIVE_PACE_BYTES_PER_S };
        }
        let window = if is_alone && self.is_mistrusted(now) { LIVE_WINDOW_MISTRUSTED } else { LIVE_WINDOW };
        Patience { window, bytes_per_s_min: LIVE_PACE_WANTED_BYTES_PER_S }
    }

    /// None goes live, and those that are get less patience where there is one thread.
    pub fn is_mistrusted(&self, now: Instant) -> bool {
        self.mistrusted_until.is_some_and(|until| now < until)
    }

    pub fn begin(&mut self) {
        self.live += 1;
    }

    /// `waited`: for how long a thread waited for the client. `slow`: it was given up. True: none will go live for a while.
    pub fn end(&mut self, waited: Duration, slow: bool, wanted: bool, now: Instant) -> bool {
        self.live = self.live.saturating_sub(1);
        let broken = slow || (wanted && waited >= TOO_LONG);
        if broken {
            // An hour of good behaviour, and all is forgotten.
            let forgotten = self.mistrusted_until.is_some_and(|until| now > until + MISTRUST_MAX);
            self.mistrust = if forgotten { MISTRUST } else { self.mistrust };
            self.mistrusted_until = Some(now + self.mistrust);
            self.mistrust = (self.mistrust * 2).min(MISTRUST_MAX);
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::base::settings::LIVE_BYTES_PER_S_MIN;

    const FAST: Candidate = Candidate { came: 1 << 20, took: Duration::from_millis(10), left: Some(50 << 20) };

    fn threads(count: usize, requests: u64) -> Threads {
        Threads { count, requests }
    }

    #[test]
    fn half_of_the_threads_read_live_bodies() {
        let now = Instant::now();
        let mut streams = Streams::new(LIVE_BYTES_PER_S_MIN);
        for live in 0..2 {
            assert!(streams.admits(FAST, threads(4, 3 + live), now));
            streams.begin();
        }
        assert!(!streams.admits(FAST, threads(4, 2), now));
        assert!(!streams.end(Duration::from_secs(1), false, true, now));
        assert!(streams.admits(FAST, threads(4, 2), now));
    }

    #[test]
    fn the_only_thread_reads_one_while_nobody_waits() {
        let now = Instant::now();
        let mut streams = Streams::new(LIVE_BYTES_PER_S_MIN);
        assert!(streams.admits(FAST, threads(1, 0), now) && streams.admits(FAST, threads(1, 1), now));
        assert!(!streams.admits(FAST, threads(1, 2), now), "somebody waits");
        streams.begin();
        // Another upload comes after it.
        assert!(streams.admits(FAST, threads(1, 1), now));
        streams.begin();
        assert!(streams.admits(FAST, threads(1, 3), now) && !streams.admits(FAST, threads(1, 4), now));
    }

    #[test]
    fn who_is_slow_goes_to_a_file() {
        let now = Instant::now();
        let streams = Streams::new(LIVE_BYTES_PER_S_MIN);
        let admits = |candidate| streams.admits(candidate, threads(4, 0), now);
        assert!(admits(FAST) && admits(Candidate { left: None, ..FAST }));
        assert!(!admits(Candidate { took: Duration::from_millis(100), ..FAST }));
        // At a hundred megabytes a second, this is too much.
        assert!(!admits(Candidate { left: Some(1 << 30), ..FAST }));
        assert!(admits(Candidate { took: Duration::ZERO, ..FAST }));
    }

    #[test]
    fn who_keeps_a_thread_that_others_want_must_be_fast() {
        let now = Instant::now();
        let mut streams = Streams::new(LIVE_BYTES_PER_S_MIN);
        let asks = |streams: &Streams, threads, wanted, waited_s| {
            let patience = streams.patience(threads, wanted, Duration::from_secs(waited_s), now);
            (patience.window, patience.bytes_per_s_min)
        };
        let (calm, hurried) = ((LIVE_WINDOW, LIVE_PACE_BYTES_PER_S), (LIVE_WINDOW, LIVE_PACE_WANTED_BYTES_PER_S));
        for threads in [1, 4] {
            assert_eq!(asks(&streams, threads, false, 1000), calm, "nobody waits");
            assert_eq!(asks(&streams, threads, true, 4), hurried);
        }
        // There are others that read no bodies.
        assert_eq!((asks(&streams, 1, true, 0), asks(&streams, 4, true, 3)), (hurried, calm));
        streams.end(Duration::ZERO, true, true, now);
        assert_eq!(asks(&streams, 1, true, 0), (LIVE_WINDOW_MISTRUSTED, LIVE_PACE_WANTED_BYTES_PER_S));
        assert_eq!(asks(&streams, 4, true, 4), hurried);
    }

    #[test]
    fn trust_is_lost_for_longer_each_time() {
        let now = Instant::now();
        let at = |minutes: u64| now + Duration::from_secs(60 * minutes);
        let mut streams = Streams::new(LIVE_BYTES_PER_S_MIN);
        let admits = |streams: &Streams, now| streams.admits(FAST, threads(4, 0), now);
        assert!(!streams.end(Duration::from_secs(60), false, false, now), "nobody had to wait for that");
        assert!(streams.end(Duration::from_secs(2), true, false, now));
        assert!(!admits(&streams, now) && admits(&streams, at(1)));
        assert!(streams.end(Duration::from_secs(60), false, true, at(1)));
        assert!(!admits(&streams, at(2)) && admits(&streams, at(3)));
        for _ in 0..20 {
            assert!(streams.end(Duration::ZERO, true, true, at(3)));
        }
        assert!(!admits(&streams, at(62)) && admits(&streams, at(63)));
        assert!(streams.end(Duration::ZERO, true, true, at(200)));
        assert!(!admits(&streams, at(200)) && admits(&streams, at(201)));
    }
}
