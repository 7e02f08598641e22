//! How many lines clients may cause: a scanner that sends a thousand bad requests a second must not fill the log, and
//! what matters in it must be found. The first ones are written, then some in each second; the others are counted.

use std::time::{Duration, Instant};

/// So many at once, as long as there was silence before.
pub const BURST: u32 = 200;

/// Then so many in each second.
pub const PER_SECOND: u32 = 20;

/// How long to wait with the count of those that were left out.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct LineRate {
    /// Lines that may be written now, and when that was so.
    room: Option<(f64, Instant)>,
    left_out: u64,
    told_at: Option<Instant>,
}

impl LineRate {
    pub const fn new() -> LineRate {
        LineRate { room: None, left_out: 0, told_at: None }
    }

    /// May another line be written? If not, it counts as left out.
    pub fn allows(&mut self, now: Instant) -> bool {
        let (room, at) = self.room.unwrap_or((f64::from(BURST), now));
        let grown = now.saturating_duration_since(at).as_secs_f64() * f64::from(PER_SECOND);
        let room = (room + grown).min(f64::from(BURST));
        let allowed = room >= 1.0;
        self.room = Some((if allowed { room - 1.0 } else { room }, now));
        self.left_out += u64::from(!allowed);
        allowed
    }

    /// How many were left out since that was last told, if it is time to tell.
    pub fn take_left_out(&mut self, now: Instant) -> Option<u64> {
        let due = self.told_at.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if self.left_out == 0 || !due {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }

    /// It could not be told after all.
    pub fn give_back(&mut self, left_out: u64) {
        self.left_out += left_out;
    }

    /// The same, whenever that was.
    pub fn take_all_left_out(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.left_out)).filter(|left_out| *left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_the_rest_is_counted() {
        let (mut rate, start) = (LineRate::new(), Instant::now());
        let written = (0..1000).filter(|_| rate.allows(start)).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(rate.take_left_out(start), Some(1000 - u64::from(BURST)));
        assert_eq!(rate.take_left_out(start), None);
        let later = start + Duration::from_millis(500);
        let written = (0..1000).filter(|_| rate.allows(later)).count();
        assert_eq!(written, PER_SECOND as usize / 2);
        // Not told again within a second.
        assert_eq!(rate.take_left_out(later), None);
        let later = later + Duration::from_secs(60);
        assert_eq!(rate.take_left_out(later), Some(1000 - u64::from(PER_SECOND) / 2));
        assert_eq!((0..1000).filter(|_| rate.allows(later)).count(), BURST as usize);
        rate.give_back(1);
        assert_eq!(rate.take_all_left_out(), Some(1001 - u64::from(BURST)));
        assert_eq!(rate.take_all_left_out(), None);
    }
}
