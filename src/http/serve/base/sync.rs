//! Threads and what they share. Under `--cfg loom` these are loom's, which runs a test with every order of events that
//! the memory model allows (`run/leader_loom_test.rs`); else they are the standard library's.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
#[cfg(loom)]
pub use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(loom)]
pub use loom::thread::{current, park, Thread};

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
#[cfg(not(loom))]
pub use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub use std::thread::{current, park, park_timeout, Thread};

/// A model knows no time: a timeout may be over at any moment.
#[cfg(loom)]
pub fn park_timeout(_time: std::time::Duration) {
    loom::thread::yield_now();
}

/// Tells threads apart, for the price of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadMark(#[cfg(not(loom))] usize, #[cfg(loom)] loom::thread::ThreadId);

impl ThreadMark {
    #[cfg(not(loom))]
    pub fn here() -> ThreadMark {
        thread_local! {
            static HERE: u8 = const { 0 };
        }
        HERE.with(|here| ThreadMark(std::ptr::from_ref(here) as usize))
    }

    #[cfg(loom)]
    pub fn here() -> ThreadMark {
        ThreadMark(loom::thread::current().id())
    }
}
