//! What the loop, the app threads and the handles share.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::serve::base::settings::Settings;
use crate::serve::conn::request::Request;
use crate::serve::conn::rules::Rules;
use crate::serve::io::copies::Copies;
use crate::serve::io::file_threads::FileThreads;
use crate::serve::io::socket;

use super::fair_line::Alike;
use super::mailbox::Mailbox;
use super::mode::Command;
use super::run_queue::RunQueue;
use super::streams::Streams;

/// Requests for one path run the same code.
impl Alike for Box<Request> {
    fn likeness(&self) -> &[u8] {
        self.path()
    }
}

pub struct Shared {
    pub rules: Rules,
    pub run_queue: RunQueue<Box<Request>>,
    pub mailbox: Mailbox,
    pub copies: Copies,
    pub files: FileThreads,
    /// Somebody has waited too long for its connection to be taken (`admission`).
    behind: AtomicBool,
    /// Connections may wait in the kernel's queue for a thread: nobody has looked since the last one was taken.
    lined_up: AtomicBool,
    /// Where other workers leave connections.
    queue: Option<RawFd>,
    streams: Mutex<Streams>,
    /// Every answer from now on says `Connection: close`.
    closing: AtomicBool,
    /// Requests of which app threads have come back since the start.
    completed: AtomicU64,
    /// The loop hears of no new connection until a thread is free.
    awaits_thread: AtomicBool,
}

impl Shared {
    /// `fds`: of the listeners, and last of epoll. `queue`: where other workers leave connections.
    pub fn new(settings: Settings, fds: &[RawFd], queue: Option<RawFd>) -> io::Result<Shared> {
        let files = FileThreads::new();
        Ok(Shared {
            run_queue: RunQueue::new(settings.threads, settings.connections)?,
            mailbox: Mailbox::new(settings.connections)?,
            copies: Copies::new(settings.connections, fds),
            streams: Mutex::new(Streams::new(settings.live_bytes_per_s_min)),
            rules: Rules::new(settings, &files),
            files,
            behind: AtomicBool::new(false),
            lined_up: AtomicBool::new(false),
            queue,
            closing: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            awaits_thread: AtomicBool::new(false),
        })
    }

    #[cold]
    pub fn command(&self, command: Command) {
        if !self.is_forgotten() {
            self.mailbox.command(command);
        }
    }

    /// An app thread is free again. It does not matter who still has its request: another thread of the application may write
    /// to a slow client for hours.
    pub fn complete(&self) {
        // The loop stores `awaits_thread` before it counts free threads, we the other way round: one of us sees the other.
        self.completed.fetch_add(1, Ordering::SeqCst);
        if self.awaits_thread.load(Ordering::SeqCst) {
            self.mailbox.wake();
        }
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }

    /// From now on the loop wants to know when a thread comes back, or no longer.
    pub fn set_awaits_thread(&self, awaits: bool) {
        self.awaits_thread.store(awaits, Ordering::SeqCst);
    }

    /// The monitor keeps the loop, and all who wait are put in order.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    pub fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::Relaxed);
    }

    pub fn set_lined_up(&self, lined_up: bool) {
        self.lined_up.store(lined_up, Ordering::Relaxed);
    }

    /// Somebody may wait for a thread, here or in the kernel's queue.
    pub fn may_be_wanted(&self) -> bool {
        self.run_queue.has_waiting() || self.lined_up.load(Ordering::Relaxed)
    }

    /// Somebody waits for a thread. The kernel is asked where only it knows.
    pub fn is_wanted(&self) -> bool {
        let is_lined_up = || self.copies.listeners().chain(self.queue).any(socket::is_readable);
        self.may_be_wanted() && (self.run_queue.has_waiting() || is_lined_up())
    }

    pub fn streams(&self) -> MutexGuard<'_, Streams> {
        // Nothing panics while it is held.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_closing(&self) -> bool {
        self.rules.settings.keepalive_timeout.is_none() || self.closing.load(Ordering::Relaxed)
    }

    pub fn set_closing(&self, closing: bool) {
        self.closing.store(closing, Ordering::Relaxed);
    }

    pub fn is_forgotten(&self) -> bool {
        self.copies.is_forgotten()
    }

    /// In a forked child: closes everything, without a lock and without an allocation.
    pub fn forget_in_child(&self) {
        self.copies.forget(self.run_queue.fds().chain([self.mailbox.waker()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::tests::fixture::settings;

    #[test]
    fn the_loop_is_told_of_a_thread_where_it_awaits_one() {
        let shared = Shared::new(settings(), &[], None).expect("eventfds");
        assert!(shared.mailbox.fall_asleep());
        shared.complete();
        assert!(shared.mailbox.fall_asleep());
        shared.set_awaits_thread(true);
        shared.complete();
        assert!(!shared.mailbox.fall_asleep());
        assert_eq!(shared.completed(), 2);
    }
}
