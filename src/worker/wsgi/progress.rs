//! What an app thread is at, for the master, which watches `request_timeout`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use forkmaster_http::serve::{Exchange, Version};
use forkmaster_wire::scoreboard::{monotonic_ns, ThreadCell};

/// Where the scoreboard is told that application code was left and entered.
#[derive(Clone, Copy)]
pub struct Progress {
    cell: &'static ThreadCell,
    clock: Clock,
}

/// `Instant` is CLOCK_MONOTONIC too, and keeps its number to itself.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    ns: u64,
}

impl Clock {
    fn ns(self, instant: Instant) -> u64 {
        let since = instant.checked_duration_since(self.instant).map_or(0, |since| since.as_nanos() as u64);
        self.ns + since
    }
}

impl Progress {
    /// The board is mapped for the life of the process.
    pub fn new(cell: &'static ThreadCell) -> Progress {
        Progress { cell, clock: Clock { instant: Instant::now(), ns: monotonic_ns() } }
    }

    /// Before the lock is taken.
    pub fn begin(self, request: u64, queued: Duration, exchange: &Exchange) {
        let begun = exchange.begun();
        self.cell.arrived(queued.as_micros() as u64, exchange.version() == Version::Http10);
        // The board counts in nanoseconds of the same clock. It was read a moment ago for most requests.
        self.cell.begin(request, self.clock.ns(begun), exchange.method(), exchange.path());
    }

    pub fn got_lock(self) {
        self.cell.got_lock();
    }

    /// After a wait for the client, before the lock is taken again.
    pub fn want_lock(self) {
        self.cell.want_lock(monotonic_ns());
    }

    /// Into application code; also said again after each piece of output, since `request_timeout` counts from
    /// the latest.
    pub fn enter(self) {
        self.cell.enter(monotonic_ns());
    }

    pub fn leave(self) {
        self.cell.leave();
    }

    /// The calling thread is the one that this is about. CPython's `threading.get_ident()` is pthread_self(3).
    pub fn is_this_thread(self) {
        // A number in glibc and an address in musl.
        // SAFETY: has no preconditions and cannot fail.
        let thread = unsafe { libc::pthread_self() } as usize;
        self.cell.is_thread(thread as u64);
    }

    pub fn id(self, id: &[u8]) {
        self.cell.id(id);
    }

    pub fn client(self, client: IpAddr) {
        self.cell.client(client);
    }

    pub fn end(self, status: u16, ended: Instant) {
        self.cell.end(status, self.clock.ns(ended));
    }
}
