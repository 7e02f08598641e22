//! What buffers may use in sum: memory and temporary files of one worker. Whoever buffers holds a `Charge`,
//! which gives back what it took when it is dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::piece::{Disposal, Piece, Spent};

/// The C library frees a smaller piece as it likes: to have its pages given back costs more than it brings.
const SPENT_BYTES_MIN: usize = 1024 * 1024;

#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    bytes_max: u64,
    /// None: what is let go of is just freed.
    disposal: Option<Box<dyn Disposal>>,
}

impl Budget {
    pub fn new(bytes_max: u64) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicU64::new(0), bytes_max, disposal: None })
    }

    pub fn with_disposal(bytes_max: u64, disposal: Box<dyn Disposal>) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicU64::new(0), bytes_max, disposal: Some(disposal) })
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

    /// Frees a piece that nobody sends any more, and what `charge` counts for it. The C library knows nothing of our bounds
    /// and keeps the pages of what is freed, up to twice the largest piece that ever was (M_TRIM_THRESHOLD, mallopt(3)), and
    /// all that lies below something else. So where much is in use, those of a large piece go back to the kernel first.
    pub fn let_go(&self, piece: Box<dyn Piece>, charge: Charge) {
        let is_tight = self.used() >= self.bytes_max / 2;
        let is_spent = is_tight && piece.bytes().len() >= SPENT_BYTES_MIN && piece.is_ours();
        match self.disposal.as_ref().filter(|_| is_spent) {
            Some(disposal) => disposal.dispose(Spent { piece, charge }),
            None => {
                drop(piece);
                drop(charge);
            }
        }
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

    /// Frees a piece that counts here with so many bytes.
    pub fn let_go(&mut self, piece: Box<dyn Piece>, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let charge = Charge { budget: Arc::clone(&self.budget), bytes };
        self.budget.let_go(piece, charge);
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
    use std::sync::{mpsc, Mutex};

    use super::*;

    #[test]
    fn the_pages_of_a_large_piece_that_is_ours_go_back_where_much_is_in_use() {
        let (spent, disposed) = mpsc::channel();
        let budget = Budget::with_disposal(8 << 20, Box::new(Noting(Mutex::new(spent))));
        let mut charge = budget.charge();
        let mut let_go = |bytes: usize, is_ours: bool| {
            assert!(charge.grow(bytes as u64));
            let before = budget.used();
            charge.let_go(Box::new(Bytes { bytes: vec![b'x'; bytes], is_ours }), bytes as u64);
            let spent = disposed.try_recv().ok();
            assert_eq!(budget.used() == before, spent.is_some(), "it counts as long as it is there");
            spent.is_some()
        };
        assert!(!let_go(SPENT_BYTES_MIN, true), "there is room enough");
        let mut others = budget.charge();
        assert!(others.grow(4 << 20));
        assert!(let_go(SPENT_BYTES_MIN, true));
        assert!(!let_go(SPENT_BYTES_MIN - 1, true), "it is small");
        assert!(!let_go(SPENT_BYTES_MIN, false), "others have it, too");
        assert_eq!(budget.used(), 4 << 20);
    }

    #[derive(Debug)]
    struct Bytes {
        bytes: Vec<u8>,
        is_ours: bool,
    }

    impl Piece for Bytes {
        fn bytes(&self) -> &[u8] {
            &self.bytes
        }
        fn is_ours(&self) -> bool {
            self.is_ours
        }
    }

    #[derive(Debug)]
    struct Noting(Mutex<mpsc::Sender<Spent>>);

    impl Disposal for Noting {
        fn dispose(&self, spent: Spent) {
            self.0.lock().unwrap().send(spent).unwrap();
        }
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
