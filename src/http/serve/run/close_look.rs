//! What is noted of a request in the application while the application is looked at closely. Most requests have none of
//! it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::serve::io::cpu::Measure;

use super::app_times::AppTimes;

#[derive(Debug)]
pub struct CloseLook(Box<Notes>);

thread_local! {
    /// Notes of this thread's last request that was looked at, to be used again: no request allocates. They are not a part
    /// of the exchange, which is moved several times and has no notes as a rule.
    static SPARE: Cell<Option<Box<Notes>>> = const { Cell::new(None) };
}

#[derive(Debug, Default)]
struct Notes {
    /// When the request began, by a clock that was read for it; None: the time of its sends need not be known.
    clocked: Option<Instant>,
    /// What sending has taken, where the clock is read for it.
    sending: Duration,
    /// None: it is not measured.
    measure: Option<Measure>,
}

impl CloseLook {
    /// None: nobody needs to know more than when the request began and ended.
    pub fn begin(times: &AppTimes) -> Option<CloseLook> {
        let (measures, looks_closer) = (times.measures(), times.looks_closer());
        if !measures && !looks_closer {
            return None;
        }
        let measure = measures.then(Measure::begin);
        let clocked = looks_closer.then(Instant::now);
        let mut notes = SPARE.take().unwrap_or_default();
        *notes = Notes { clocked, sending: Duration::ZERO, measure };
        Some(CloseLook(notes))
    }

    pub fn clocks_sends(&self) -> bool {
        self.0.clocked.is_some()
    }

    pub fn sent(&mut self, took: Duration) {
        self.0.sending += took;
    }

    /// How long the request took. The loop's clock is that of the answer before, and what measuring costs lies between.
    pub fn took(&self, now: Instant, took: Duration) -> Duration {
        self.0.measure.map_or(took, |measure| measure.took(now).min(took))
    }

    /// The same without what sending took.
    pub fn inside(&self, now: Instant) -> Option<Duration> {
        self.0.clocked.map(|clocked| now.saturating_duration_since(clocked).saturating_sub(self.0.sending))
    }

    /// For how long nobody in the process computed meanwhile.
    pub fn waited(&self, now: Instant) -> Option<Duration> {
        self.0.measure.map(|measure| measure.waited(now).saturating_sub(self.0.sending))
    }

    /// The request has ended, and was recorded.
    pub fn end(self) {
        SPARE.set(Some(self.0));
    }
}
