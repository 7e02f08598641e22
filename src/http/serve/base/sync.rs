//! Threads and what they share: the standard library's, by one name for the leader, the monitor and the queues, so that a
//! model of them can bring its own. Under `--cfg loom` it is loom's, which runs every interleaving of a model's threads.

#[cfg(loom)]
pub use self::model::*;
#[cfg(not(loom))]
pub use self::real::*;

#[cfg(not(loom))]
mod real {
    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub use std::sync::{Condvar, Mutex, MutexGuard};
    pub use std::thread::{current, park, park_timeout, Thread};

    thread_local! {
        pub static HERE: u8 = const { 0 };
    }
}

#[cfg(loom)]
mod model {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use loom::sync::atomic::{self, fence};

    pub use loom::sync::atomic::AtomicUsize;
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use loom::thread::{current, park, Thread};

    loom::thread_local! {
        // Boxed: what the address tells apart must not be moved or shared.
        pub static HERE: Box<u8> = Box::new(0);
    }

    /// A model has no clock: the time is over at once, or whenever the others have got on.
    pub fn park_timeout(_: Duration) {
        loom::thread::yield_now();
    }

    /// loom knows no order among all `SeqCst` accesses, only among fences. Between two fences an access is where the
    /// order of all has it.
    fn ordered<T>(ordering: Ordering, access: impl FnOnce() -> T) -> T {
        if ordering != Ordering::SeqCst {
            return access();
        }
        fence(Ordering::SeqCst);
        let value = access();
        fence(Ordering::SeqCst);
        value
    }

    #[derive(Debug)]
    pub struct AtomicBool(atomic::AtomicBool);

    impl AtomicBool {
        pub fn new(value: bool) -> AtomicBool {
            AtomicBool(atomic::AtomicBool::new(value))
        }

        pub fn load(&self, ordering: Ordering) -> bool {
            ordered(ordering, || self.0.load(ordering))
        }

        pub fn store(&self, value: bool, ordering: Ordering) {
            ordered(ordering, || self.0.store(value, ordering));
        }

        pub fn swap(&self, value: bool, ordering: Ordering) -> bool {
            ordered(ordering, || self.0.swap(value, ordering))
        }
    }

    #[derive(Debug)]
    pub struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> AtomicU64 {
            AtomicU64(atomic::AtomicU64::new(value))
        }

        pub fn load(&self, ordering: Ordering) -> u64 {
            ordered(ordering, || self.0.load(ordering))
        }

        pub fn store(&self, value: u64, ordering: Ordering) {
            ordered(ordering, || self.0.store(value, ordering));
        }

        pub fn compare_exchange(&self, from: u64, to: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
            ordered(success, || self.0.compare_exchange(from, to, success, failure))
        }
    }
}

/// Tells threads apart, for the price of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadMark(usize);

impl ThreadMark {
    pub fn here() -> ThreadMark {
        HERE.with(|here| ThreadMark(std::ptr::from_ref::<u8>(here) as usize))
    }
}
