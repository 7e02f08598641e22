//! What buffers may use in sum: memory and temporary files of one worker. Whoever buffers holds a `Charge`,
//! which gives back what it took when it is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// So much must have come and gone: less is no more than a fifth of what may be used.
const TRIMMED_BYTES_MIN: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    bytes_max: u64,
    /// Bytes of large pieces that have come and gone since the C library was last asked to give memory back.
    gone: AtomicU64,
}

impl Budget {
    pub fn new(bytes_max: u64) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicU64::new(0), bytes_max, gone: AtomicU64::new(0) })
    }

    pub fn left(&self) -> u64 {
        self.bytes_max.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn charge(self: &Arc<Budget>) -> Charge {
        Charge { budget: Arc::clone(self), bytes: 0 }
    }

    /// A large piece is freed before long, whether or not it was counted here.
    pub fn note_gone(&self, bytes: u64) {
        self.gone.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether memory that was freed matters: much of it was, and much is in use besides. True once for each time.
    pub fn is_to_trim(&self) -> bool {
        let matters = self.used() >= self.bytes_max / 2 && self.gone.load(Ordering::Relaxed) >= TRIMMED_BYTES_MIN;
        matters && self.gone.swap(0, Ordering::Relaxed) > 0
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the budget still has for whoever comes first.
    pub fn left(&self) -> u64 {
        self.budget.left()
    }

    pub fn note_gone(&self, bytes: u64) {
        self.budget.note_gone(bytes);
    }

    /// Takes more; false if the sum would exceed the budget.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Takes more although the budget may be exceeded: for bytes that have to be kept.
    pub fn force(&mut self, bytes: u64) {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    pub fn release(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn clear(&mut self) {
        self.release(self.bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_matters_where_much_is_in_use() {
        let budget = Budget::new(64 << 20);
        let mut charge = budget.charge();
        budget.note_gone(TRIMMED_BYTES_MIN);
        assert!(!budget.is_to_trim(), "there is room enough");
        assert!(charge.grow(40 << 20) && budget.is_to_trim() && !budget.is_to_trim());
        charge.note_gone(TRIMMED_BYTES_MIN - 1);
        assert!(!budget.is_to_trim());
        charge.note_gone(1);
        assert!(budget.is_to_trim());
    }

    #[test]
    fn charges_are_given_back() {
        let budget = Budget::new(10);
        let mut one = budget.charge();
        let mut other = budget.charge();
        assert!(one.grow(6) && !other.grow(5) && other.grow(4));
        assert_eq!(budget.left(), 0);
        drop(one);
        assert_eq!(budget.left(), 6);
        other.force(20);
        assert_eq!((budget.left(), other.bytes()), (0, 24));
        other.release(100);
        assert_eq!(budget.left(), 10);
    }
}
