//! Threads and what they share: the standard library's, by one name for the leader, the monitor and the queues, so that a
//! model of them can bring its own.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread::{current, park, park_timeout, Thread};

/// Tells threads apart, for the price of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadMark(usize);

impl ThreadMark {
    pub fn here() -> ThreadMark {
        thread_local! {
            static HERE: u8 = const { 0 };
        }
        HERE.with(|here| ThreadMark(std::ptr::from_ref(here) as usize))
    }
}
