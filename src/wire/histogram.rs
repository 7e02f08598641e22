//! A histogram in shared memory: four buckets an octave, from 64 µs to more than two minutes. A percentile read from it
//! is at most a quarter too high. Atomics only; whoever reads may see a count without its sum, and the next look has
//! both.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Below 2^6 µs nothing tells requests apart; above 2^27 µs nobody waits any more.
const OCTAVE_FIRST: u32 = 6;
const OCTAVES: usize = 21;

/// One below the first octave, and one for all that is longer.
pub const BUCKETS: usize = OCTAVES * 4 + 2;

#[repr(C)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub fn record(&self, ns: u64) {
        self.buckets[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
        self.sum_ns.store(0, Ordering::Relaxed);
    }

    pub fn read(&self) -> Counted {
        let buckets = std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed));
        Counted { buckets, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

/// What a histogram held at one moment; such moments of several processes add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    #[serde(with = "as_list")]
    pub buckets: [u64; BUCKETS],
    pub sum_ns: u64,
}

impl Default for Counted {
    fn default() -> Counted {
        Counted { buckets: [0; BUCKETS], sum_ns: 0 }
    }
}

impl Counted {
    pub fn add(&mut self, other: &Counted) {
        for (sum, more) in self.buckets.iter_mut().zip(other.buckets) {
            *sum = sum.saturating_add(more);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// What has come since an earlier moment.
    pub fn since(&self, earlier: &Counted) -> Counted {
        let buckets = std::array::from_fn(|at| self.buckets[at].saturating_sub(earlier.buckets[at]));
        Counted { buckets, sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns) }
    }

    /// The larger of each: a count that a worker took back was counted all the same.
    pub fn raise(&mut self, other: &Counted) {
        for (most, now) in self.buckets.iter_mut().zip(other.buckets) {
            *most = now.max(*most);
        }
        self.sum_ns = self.sum_ns.max(other.sum_ns);
    }
}

/// serde knows arrays of up to 32 elements.
mod as_list {
    use super::BUCKETS;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(buckets: &[u64; BUCKETS], serializer: S) -> Result<S::Ok, S::Error> {
        buckets.as_slice().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u64; BUCKETS], D::Error> {
        let list = Vec::<u64>::deserialize(deserializer)?;
        list.try_into().map_err(|list: Vec<u64>| D::Error::invalid_length(list.len(), &"one for each bucket"))
    }
}

fn bucket(ns: u64) -> usize {
    let micros = ns / 1000;
    let octave = (u64::BITS - 1).saturating_sub(micros.leading_zeros());
    if octave < OCTAVE_FIRST {
        return 0;
    }
    let quarter = (micros >> (octave - 2)) & 3;
    ((octave - OCTAVE_FIRST) as usize * 4 + quarter as usize + 1).min(BUCKETS - 1)
}

/// What all of a bucket lie below, in microseconds; None for the last.
pub fn upper_micros(bucket: usize) -> Option<u64> {
    (bucket < BUCKETS - 1).then(|| (4 + bucket as u64 % 4) << (OCTAVE_FIRST + (bucket / 4) as u32 - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_the_bucket_that_has_its_bounds() {
        for micros in (0..70_000).chain([1_000_000, 60_000_000, 134_217_727, 134_217_728, u64::MAX / 1000]) {
            let found = bucket(micros * 1000);
            let lower = found.checked_sub(1).and_then(upper_micros).unwrap_or(0);
            let upper = upper_micros(found).unwrap_or(u64::MAX);
            assert!(lower <= micros && micros < upper, "{micros} lies in {lower}..{upper}");
        }
        assert_eq!((bucket(u64::MAX), upper_micros(BUCKETS - 1)), (BUCKETS - 1, None));
        // A quarter of an octave each.
        for at in 1..BUCKETS - 1 {
            let (lower, upper) = (upper_micros(at - 1).unwrap(), upper_micros(at).unwrap());
            assert!(upper > lower && upper * 4 <= lower * 5, "{lower} to {upper}");
        }
    }

    #[test]
    fn moments_add_up_and_never_go_back() {
        // SAFETY: zeroed memory is a valid histogram, as on a new scoreboard.
        let histogram: Histogram = unsafe { std::mem::zeroed() };
        histogram.record(70_000);
        histogram.record(2_000_000_000);
        let first = histogram.read();
        let mut sum = first;
        sum.add(&first);
        assert_eq!((sum.buckets.iter().sum::<u64>(), sum.sum_ns), (4, 4_000_140_000));
        assert_eq!((sum.since(&first), first.since(&sum)), (first, Counted::default()));
        histogram.clear();
        let mut most = first;
        most.raise(&histogram.read());
        assert_eq!(most, first);
    }
}
