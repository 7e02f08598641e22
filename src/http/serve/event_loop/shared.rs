//! What the loop, the app threads and the handles share.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::serve::base::settings::Settings;
use crate::serve::conn::request::Request;
use crate::serve::conn::rules::Rules;
use crate::serve::io::copies::Copies;

use super::mailbox::Mailbox;
use super::mode::Command;
use super::run_queue::RunQueue;

pub struct Shared {
    pub rules: Rules,
    pub run_queue: RunQueue<Box<Request>>,
    pub mailbox: Mailbox,
    pub copies: Copies,
    /// Every answer from now on says `Connection: close`.
    closing: AtomicBool,
    /// Requests of which app threads have come back since the start.
    completed: AtomicU64,
}

impl Shared {
    pub fn new(settings: Settings, fds: &[RawFd]) -> io::Result<Shared> {
        Ok(Shared {
            run_queue: RunQueue::new(settings.threads, settings.connections)?,
            mailbox: Mailbox::new(settings.connections)?,
            copies: Copies::new(settings.connections, fds),
            rules: Rules::new(settings),
            closing: AtomicBool::new(false),
            completed: AtomicU64::new(0),
        })
    }

    pub fn command(&self, command: Command) {
        if !self.is_forgotten() {
            self.mailbox.command(command);
        }
    }

    /// An app thread is free again. It does not matter who still has its request: another thread of the application may write
    /// to a slow client for hours.
    pub fn complete(&self) {
        self.completed.fetch_add(1, Ordering::Release);
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
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
