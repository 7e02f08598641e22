//! A busy worker shares its line: a whole request for which no thread is free goes to the queue while another worker has a
//! free thread. Where none has, it stays in line here, and is looked at again with each turn of the loop.
//!
//! While an app thread leads, each request that was fetched waits for those before it. They are over in a moment, most of the
//! time; where a turn lasts, the rest of it goes to workers that have nothing to do.

use std::time::Duration;

use crate::serve::base::observers::Giving;
use crate::serve::conn::request::Request;
use crate::serve::event_loop::mode::Mode;
use crate::serve::event_loop::EventLoop;

use super::rules::InLine;

/// How soon a line is looked at again, where nothing else happens.
pub const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl EventLoop {
    /// Offers the next request to the others, if it would wait here. None: it goes.
    pub(in crate::serve::event_loop) fn share_line(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        let load = self.load();
        let not_begun = (self.ready.len() + self.later.len() + 1) as u64;
        let line = InLine {
            threads: load.threads,
            // In the application, or in line for a thread before this one.
            before: load.dispatched.saturating_sub(load.completed).saturating_sub(not_begun),
            lying_max: self.shared.rules.settings.shared_requests_max,
        };
        match line.would_wait() {
            true => self.share_one(request, line),
            false => Some(request),
        }
    }

    /// Offers those that wait in line already.
    pub(in crate::serve::event_loop) fn share_waiting(&mut self) {
        while self.has_line() {
            let Some(request) = self.shared.run_queue.take() else { return };
            let (threads, lying_max) = (self.load().threads, self.shared.rules.settings.shared_requests_max);
            // Whoever stands in the run queue waits.
            if let Some(request) = self.share_one(request, InLine { threads, before: threads, lying_max }) {
                self.shared.run_queue.put_back(request);
                return;
            }
        }
    }

    /// An app thread that leads is about to be away with a request. What was fetched with it has waited for `LOOK_AGAIN`, and
    /// would wait on.
    pub(in crate::serve::event_loop) fn share_rest(&mut self) {
        let lying_max = self.shared.rules.settings.shared_requests_max;
        let lasts = self.now.saturating_duration_since(self.fetched_at) >= LOOK_AGAIN;
        if lasts && lying_max > 0 && self.mode == Mode::Serving && self.has_more() {
            self.share_fetched(lying_max);
        }
    }

    #[cold]
    fn share_fetched(&mut self, lying_max: usize) {
        let threads = self.load().threads;
        let line = InLine { threads, before: threads, lying_max };
        while line.has_taker(self.metrics.idle_siblings(), || self.handoff.lying()) {
            let Some(request) = self.next_fetched() else { return };
            if let Some(request) = self.offer_shared(request) {
                self.ready.push_front(request);
                return;
            }
        }
    }

    /// Requests wait for a thread here that another worker might have.
    pub(in crate::serve::event_loop) fn has_line(&self) -> bool {
        let shares = self.shared.rules.settings.shared_requests_max > 0 && self.mode == Mode::Serving;
        shares && self.shared.run_queue.has_waiting()
    }

    fn share_one(&mut self, request: Box<Request>, line: InLine) -> Option<Box<Request>> {
        match line.has_taker(self.metrics.free_siblings(), || self.handoff.lying()) {
            true => self.offer_shared(request),
            false => Some(request),
        }
    }

    /// Some: it stays.
    #[cold]
    fn offer_shared(&mut self, request: Box<Request>) -> Option<Box<Request>> {
        if self.mode != Mode::Serving || request.moved {
            return Some(request);
        }
        let kept = self.offer_whole(request, Giving::Shared);
        self.dispatched -= u64::from(kept.is_none());
        kept
    }
}
