//! `health_path`: a request that only asks whether this process serves. The loop answers it, before Python and whatever
//! Host it names, so that a probe neither waits for a thread nor meets the application's checks. It stands in no access
//! log and counts as no request. Whether the application is well is not asked here.

use crate::serve::conn::answering::{End, Part};
use crate::serve::conn::request::Request;

use super::mode::Mode;
use super::EventLoop;

impl EventLoop {
    pub(super) fn asks_for_health(&self, request: &Request) -> bool {
        let path = self.shared.rules.settings.health_path.as_deref();
        path.is_some_and(|path| request.path() == path) && matches!(request.method(), b"GET" | b"HEAD")
    }

    /// 503 once the service was told to stop: nobody should send it anything more. And during a maintenance: whoever asks
    /// shall take another one.
    #[cold]
    pub(super) fn answer_health(&mut self, mut request: Box<Request>) {
        let (status, body): (&[u8], &[u8]) = match (self.stopping, self.mode) {
            (true, _) => (b"503 Service Unavailable", b"stopping\n"),
            (false, Mode::Maintenance) => (b"503 Service Unavailable", b"paused\n"),
            (
                false,
                Mode::Paused
                | Mode::Serving
                | Mode::Draining
                | Mode::Yielding
                | Mode::Aside
                | Mode::Retiring
                | Mode::Held,
            ) => (b"200 OK", b"ok\n"),
        };
        let fields: [(&[u8], &[u8]); 2] =
            [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Cache-Control", b"no-store")];
        let valid = request.answer.head.set(status, &fields);
        debug_assert!(valid.is_ok(), "{valid:?}");
        let part = Part { whole: Some(body.len() as u64), last: true, ..Part::new(body) };
        // What became of it `settle` sees as well.
        let _delivery = request.send(part, &self.shared.rules.no_files, self.shared.is_closing());
        request.decide_after(End::Complete);
        // Its body may have been about to go live: nobody reads it.
        self.end_unread(&mut request);
        self.settle(request);
    }
}
