//! How often something is so, of the latest times. A decision that rests on it is not made by an outlier: not by a garbage
//! collection, nor by a neighbour that takes the processor for a moment.

use std::sync::atomic::{AtomicU32, Ordering};

const ONE: u32 = 1 << 16;

/// The share is over about so many of the latest times. From never, five times in a row bring it above an eighth; from
/// always, it takes some seventy times to come below it.
const WEIGHT: u32 = 32;

/// Threads may overwrite each other's figure: it is an estimate.
#[derive(Debug, Default)]
pub struct Share(AtomicU32);

impl Share {
    pub fn record(&self, is_so: bool) {
        let share = self.0.load(Ordering::Relaxed);
        // Rounded up, or it would never come down to nothing.
        let share = share - share.div_ceil(WEIGHT) + if is_so { ONE / WEIGHT } else { 0 };
        self.0.store(share, Ordering::Relaxed);
    }

    /// In at least one of so many times.
    pub fn is_at_least_one_in(&self, times: u32) -> bool {
        self.0.load(Ordering::Relaxed) >= ONE / times
    }

    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times: impl Iterator<Item = bool>) -> Share {
        let share = Share::default();
        times.for_each(|is_so| share.record(is_so));
        share
    }

    #[test]
    fn outliers_decide_nothing() {
        // One in fifty, also two in a row; one in fifty is more than garbage collections and preemptions are.
        let share = after((0..10_000).map(|index| index % 50 == 0 || index % 700 == 1));
        assert!(!share.is_at_least_one_in(8));
        let share = Share::default();
        for index in 0..10_000 {
            share.record(index % 50 < 2);
            assert!(!share.is_at_least_one_in(8), "after {index}");
        }
    }

    #[test]
    fn what_is_so_often_is_soon_seen() {
        let share = Share::default();
        let until = |share: &Share, wanted: bool, is_so: bool| {
            (1..).find(|_| {
                share.record(is_so);
                share.is_at_least_one_in(8) == wanted
            })
        };
        assert_eq!(until(&share, true, true), Some(5));
        (0..1000).for_each(|_| share.record(true));
        assert!(share.is_at_least_one_in(1) || share.is_at_least_one_in(2));
        assert!(until(&share, false, false).is_some_and(|times| (50..80).contains(&times)));
        (0..10_000).for_each(|_| share.record(false));
        assert!(!share.is_at_least_one_in(ONE));
    }
}
