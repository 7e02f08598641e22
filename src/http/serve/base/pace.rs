//! The minimum rate: whoever sends or takes too little for a whole timeout is treated as if silent. Timers count
//! from one byte to the next; a client that dribbles would move them for ever.

use std::time::{Duration, Instant};

use crate::serve::base::settings::BYTES_PER_S_MIN;

/// A stretch of time, at least as long as the timeout that it belongs to, and the bytes counted when it began.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    since: Instant,
    bytes: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The window is not over.
    Open,
    /// It was fast enough; the next window has begun.
    Kept,
    Slow,
}

impl Window {
    pub fn begin(now: Instant, bytes: i64) -> Window {
        Window { since: now, bytes }
    }

    /// Looks at the count when the window may be over. What is asked for is the timeout's worth, however late the
    /// look comes: a process that was stopped for a minute must not take it for the clients' fault.
    pub fn look(&mut self, now: Instant, bytes: i64, timeout: Duration) -> Pace {
        if now.duration_since(self.since) < timeout {
            return Pace::Open;
        }
        self.close(now, bytes, timeout)
    }

    /// As `look`, although the window is not over: there is nothing to wait for.
    pub fn close(&mut self, now: Instant, bytes: i64, timeout: Duration) -> Pace {
        let wanted = timeout.as_millis().saturating_mul(u128::from(BYTES_PER_S_MIN)) / 1000;
        let came = u128::try_from(bytes.saturating_sub(self.bytes)).unwrap_or(0);
        if came < wanted {
            return Pace::Slow;
        }
        *self = Window::begin(now, bytes);
        Pace::Kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_judged_when_it_is_over() {
        let timeout = Duration::from_secs(10);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut window = Window::begin(start, 100);
        assert_eq!(window.look(at(9), 101, timeout), Pace::Open);
        assert_eq!(window.look(at(10), 2500, timeout), Pace::Kept);
        assert_eq!(window.look(at(19), 2500, timeout), Pace::Open);
        assert_eq!(window.look(at(60), 4900, timeout), Pace::Kept);
        assert_eq!(window.look(at(70), 7299, timeout), Pace::Slow);
        assert_eq!(window.close(at(61), 4901, timeout), Pace::Slow);
    }
}
