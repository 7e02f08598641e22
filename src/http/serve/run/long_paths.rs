//! Paths whose latest request took long. Answers that wait for each other do not wait for such a one: they are sent before
//! it begins. Decides only.
//!
//! A path is one of `PATHS` numbers, by a hash that no client can know. Who shares the number shares what is known. A
//! garbage collection or a neighbour on the processor makes a path one of these until its next request has ended, for
//! which an answer or two go out alone.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

const PATHS: usize = 256;
const BITS: usize = u64::BITS as usize;

/// Threads note what they know without a lock: it is an estimate.
#[derive(Debug, Default)]
pub struct LongPaths {
    hasher: RandomState,
    long: [AtomicU64; PATHS / BITS],
}

impl LongPaths {
    /// A request for this path has ended.
    pub fn note(&self, path: &[u8], is_long: bool) {
        if !is_long && self.is_empty() {
            return;
        }
        let (word, bit) = self.place(path);
        if is_long {
            word.fetch_or(bit, Ordering::Relaxed);
        } else if word.load(Ordering::Relaxed) & bit != 0 {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    pub fn has(&self, path: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let (word, bit) = self.place(path);
        word.load(Ordering::Relaxed) & bit != 0
    }

    fn is_empty(&self) -> bool {
        self.long.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    fn place(&self, path: &[u8]) -> (&AtomicU64, u64) {
        let number = self.hasher.hash_one(path) as usize % PATHS;
        (&self.long[number / BITS], 1 << (number % BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_long_from_a_long_request_to_the_next_short_one() {
        let paths = LongPaths::default();
        paths.note(b"/", false);
        assert!(!paths.has(b"/report") && !paths.has(b"/"));
        paths.note(b"/report", true);
        assert!(paths.has(b"/report"));
        paths.note(b"/report", true);
        paths.note(b"/report", false);
        assert!(!paths.has(b"/report") && paths.is_empty());
    }
}
