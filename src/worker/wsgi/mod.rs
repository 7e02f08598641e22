//! WSGI (PEP 3333): one request through the application.

mod access_recorder;
pub mod capi;
pub mod environ;
pub mod errors;
pub mod file;
pub mod forwarded;
mod held;
pub mod input;
mod live;
mod names;
pub mod progress;
mod repeated;
mod request_id;
pub mod response;
mod strings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use forkmaster_http::serve::{BadResponse, Body, Exchange};
use forkmaster_wire::scoreboard::Finished;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::access::AccessLog;
use crate::failure;
use crate::metrics::{REQUEST_BITS, TIMED_OUT};
use crate::recall::{Recall, Seen};
use crate::worker::Worker;
use access_recorder::{AccessRecorder, Ended};
use capi::{references, Capi};
use environ::{Builder, Common};
use input::Input;
use live::Live;
use progress::Progress;
use request_id::RequestIds;
use response::{Answered, ResponseSlot, Sized};

/// One app thread's way into the application.
pub struct Gateway {
    application: Py<PyAny>,
    builder: Builder,
    response: ResponseSlot,
    sized: Sized,
    /// The body of requests that have none.
    empty: Py<Input>,
    /// Of the running request, if it has a body.
    input: Option<Py<Input>>,
    progress: Progress,
    /// Numbers them on the scoreboard.
    requests: u64,
    /// How long the running one has waited for a thread.
    queued: Duration,
    /// None: they have no ids.
    ids: Option<RequestIds>,
    capi: Capi,
    worker: Arc<Worker>,
    access: Option<AccessRecorder>,
}

/// What became of a request.
enum Outcome {
    Answered {
        ended: Instant,
        took: Duration,
        status: u16,
    },
    /// An exception left the application, or its answer was no good; it has been logged. `ours`: nobody has answered in the
    /// application's place.
    Raised {
        ours: bool,
    },
    /// It took too long, its client was answered in the application's place, and that was counted then.
    Late {
        ended: Instant,
    },
}

impl Gateway {
    pub fn new(
        py: Python<'_>,
        application: Py<PyAny>,
        common: Arc<Common>,
        worker: Arc<Worker>,
        progress: Progress,
        access: Option<Arc<AccessLog>>,
        thread: u32,
    ) -> PyResult<Gateway> {
        let empty = Bound::new(py, Input::memory(PyBytes::new(py, b"")))?;
        let response_buffer = usize::try_from(common.response_buffer).unwrap_or(usize::MAX);
        let ids = common.request_id_header.clone().map(|header| RequestIds::new(py, header));
        let builder = Builder::new(py, common, &empty)?;
        let capi = Capi::find();
        let response = ResponseSlot::new(py, progress, response_buffer, capi)?;
        response.add_callables(builder.prepared(py))?;
        let access = access.map(AccessRecorder::new);
        // No two requests of a worker have the same number.
        let requests = u64::from(thread) << REQUEST_BITS;
        Ok(Gateway {
            application,
            builder,
            response,
            sized: Sized::default(),
            empty: empty.unbind(),
            input: None,
            progress,
            requests,
            queued: Duration::ZERO,
            ids,
            capi,
            worker,
            access,
        })
    }

    /// The calling thread will serve all requests of this gateway.
    pub fn is_of_this_thread(&self) {
        self.progress.is_this_thread();
    }

    /// A request has come to this thread. To be called before the interpreter's lock is taken for it: that may never be
    /// had, and the request's limit counts all the same.
    pub fn dispatched(&mut self, exchange: &mut Exchange) {
        self.requests += 1;
        exchange.set_number(self.requests);
        self.queued = exchange.begun().saturating_duration_since(exchange.ready_at());
        self.progress.begin(self.requests, self.queued, exchange);
        if let Some(ids) = &mut self.ids {
            let is_trusted = self.builder.trusts(exchange.peer());
            self.progress.id(ids.begin(exchange, is_trusted));
        }
    }

    /// Answers one request, whatever the application does. Nothing that it raises leaves here: a SystemExit ends
    /// the request, not the worker. Returns the time when it had ended.
    pub fn serve(&mut self, py: Python<'_>, exchange: Exchange) -> Instant {
        let begun = exchange.begun();
        let queued = self.queued;
        self.progress.got_lock();
        self.worker.begin();
        let (ended, finished, raised) = match self.call(py, exchange) {
            Outcome::Answered { ended, took, status } => (ended, Some((took, status)), false),
            Outcome::Raised { ours } => {
                let now = Instant::now();
                // Also where a head was sent before: the client did not get what it says.
                (now, ours.then(|| (now.saturating_duration_since(begun), 500)), true)
            }
            Outcome::Late { ended } => (ended, None, false),
        };
        self.progress.end(finished.map_or(TIMED_OUT, |(_, status)| status), ended);
        let finished = finished.map(|(took, status)| Finished {
            status,
            latency_ns: took.as_nanos() as u64,
            queued_ns: queued.as_nanos() as u64,
        });
        self.worker.finished(finished, raised);
        ended
    }

    fn call(&mut self, py: Python<'_>, mut exchange: Exchange) -> Outcome {
        if let Some(page) = self.worker.refusal_page(&exchange) {
            return self.show_refusal(exchange, &page);
        }
        let environ = match self.renew(py).and_then(|()| self.environ(py, &mut exchange)) {
            Ok(environ) => environ,
            Err(error) => return self.fail(py, exchange, None, &error),
        };
        self.progress.client(self.builder.client());
        if let Some(Err(error)) = self.ids.as_ref().map(|ids| ids.put(&environ)) {
            return self.fail(py, exchange, Some(&environ), &error);
        }
        self.response.enter(py, exchange);
        let answered = response::answer(
            py,
            &self.capi,
            self.application.bind(py),
            environ.as_any(),
            &self.response,
            &mut self.sized,
        );
        // Where another thread of the application is inside `write()`, the exchange goes when that is done with it.
        let Some(mut exchange) = self.response.leave(py) else {
            log::error!("{}: a thread of the application still writes after the response has ended", self.worker);
            return Outcome::Raised { ours: true };
        };
        self.give_body_back(py, &exchange, &environ);
        match answered {
            // The line of a good request is never written: it is made from the environ only where it is needed.
            Answered::Completely => {
                if !exchange.claim() {
                    // Nothing of it goes out, so it cannot be wrong.
                    let _refused = exchange.finish();
                    return Outcome::Late { ended: Instant::now() };
                }
                self.note(&mut exchange, Some(&environ), Ended::Well);
                let ended = Instant::now();
                let took = ended.saturating_duration_since(exchange.begun());
                let status = exchange.status();
                if let Some(recall) = self.worker.recall() {
                    remember(recall, &exchange, &environ, status, took, ended);
                }
                match exchange.finish_at(ended, took) {
                    Ok(()) => Outcome::Answered { ended, took, status },
                    Err(BadResponse(text)) => {
                        let line = line_of(&environ).unwrap_or_default();
                        log::error!("{}: bad response to {line}{}: {text}", self.worker, self.shown_id());
                        Outcome::Raised { ours: true }
                    }
                }
            }
            Answered::Raised(error) => match exchange.body_failure() {
                // Its body ended too early or came too slowly: the client's fault, and none of the application's.
                Some((status, reason)) => {
                    let ended = Instant::now();
                    if !exchange.claim() {
                        exchange.fail(status);
                        return Outcome::Late { ended };
                    }
                    log::info!("refused {}: {status} {reason}", exchange.peer());
                    self.note(&mut exchange, Some(&environ), Ended::Badly(status));
                    let took = ended.saturating_duration_since(exchange.begun());
                    exchange.fail(status);
                    Outcome::Answered { ended, took, status }
                }
                None => self.fail(py, exchange, Some(&environ), &error),
            },
        }
    }

    /// In place of the application's answer.
    #[cold]
    fn show_refusal(&self, mut exchange: Exchange, page: &str) -> Outcome {
        let length = page.len().to_string();
        let fields: [(&[u8], &[u8]); 3] = [
            (b"Content-Type", b"text/html; charset=utf-8"),
            (b"Content-Length", length.as_bytes()),
            (b"Cache-Control", b"no-store"),
        ];
        let started = exchange.start(b"500 Internal Server Error", &fields);
        // It is small, and where the client has gone nobody misses it.
        let _ = started.map(|()| exchange.write_all(page.as_bytes()));
        self.note(&mut exchange, None, Ended::Well);
        let (ended, begun) = (Instant::now(), exchange.begun());
        let took = ended.saturating_duration_since(begun);
        match exchange.finish_at(ended, took) {
            Ok(()) => Outcome::Answered { ended, took, status: 500 },
            Err(BadResponse(text)) => {
                log::error!("{}: the page of a refusal: {text}", self.worker);
                Outcome::Raised { ours: true }
            }
        }
    }

    #[cold]
    fn fail(
        &mut self,
        py: Python<'_>,
        mut exchange: Exchange,
        environ: Option<&Bound<'_, PyDict>>,
        error: &PyErr,
    ) -> Outcome {
        let line = environ::request_line(&exchange);
        log::error!("{}: exception in {line}{}\n{}", self.worker, self.shown_id(), failure::traceback(py, error));
        let ours = exchange.claim();
        if ours {
            self.note(&mut exchange, environ, Ended::Badly(500));
        }
        exchange.fail(500);
        Outcome::Raised { ours }
    }

    /// Of the running request, for log lines.
    fn shown_id(&self) -> String {
        let id = self.ids.as_ref().map(|ids| String::from_utf8_lossy(ids.current()));
        id.map_or_else(String::new, |id| format!(" id={id}"))
    }

    /// For the access log. A child that the application forked has none.
    fn note(&self, exchange: &mut Exchange, environ: Option<&Bound<'_, PyDict>>, ended: Ended) {
        if let Some(access) = &self.access {
            if !self.worker.is_forked_child() {
                let id = self.ids.as_ref().map(RequestIds::current);
                access.note(exchange, environ, self.builder.client(), id, ended);
            }
        }
    }

    fn renew(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.response.renew(py)? {
            self.response.add_callables(self.builder.prepared(py))?;
        }
        Ok(())
    }

    fn environ<'py>(&mut self, py: Python<'py>, exchange: &mut Exchange) -> PyResult<Bound<'py, PyDict>> {
        let input = match exchange.take_body() {
            Some(body) => Some(Input::buffer(body)),
            None => match exchange.body() {
                Body::Memory([]) => None,
                Body::Memory(bytes) => Some(Input::memory(PyBytes::new(py, bytes))),
                Body::File { file, length } => Some(Input::file(file, length)?),
                Body::Live(live) => Some(Input::live(Live::new(live, exchange.content_length(), self.progress))),
            },
        };
        let input = input.map(|input| Bound::new(py, input)).transpose()?;
        if input.is_none() {
            // A thread of the application that reads it now has it from an earlier request, and finds nothing in it.
            if let Ok(mut empty) = self.empty.bind(py).try_borrow_mut() {
                empty.rewind();
            }
        }
        self.input = input.as_ref().map(|input| input.clone().unbind());
        self.builder.build(py, exchange, input.map(Bound::into_any))
    }

    /// A large body's memory serves the next one, unless the application has kept a way to it: only we have the environ,
    /// and only we, and the environ where the application has left it there, have its input.
    fn give_body_back(&mut self, py: Python<'_>, exchange: &Exchange, environ: &Bound<'_, PyDict>) {
        let Some(input) = self.input.take() else { return };
        let input = input.bind(py);
        if references(environ) != 1 {
            return;
        }
        let in_environ = environ.get_item(intern!(py, "wsgi.input")).ok().flatten().is_some_and(|held| held.is(input));
        if references(input) == 1 + isize::from(in_environ) {
            let buffer = input.try_borrow_mut().ok().and_then(|mut input| input.take_buffer());
            buffer.into_iter().for_each(|buffer| exchange.give_body_back(buffer));
        }
    }
}

/// For the rehearsal of the next release.
fn remember(
    recall: &Recall,
    exchange: &Exchange,
    environ: &Bound<'_, PyDict>,
    status: u16,
    took: Duration,
    at: Instant,
) {
    if exchange.method() != b"GET" || exchange.content_length().is_some_and(|length| length > 0) {
        return;
    }
    let is_https = || {
        let scheme = environ.get_item(intern!(environ.py(), "wsgi.url_scheme")).ok().flatten();
        scheme.is_some_and(|scheme| scheme.extract::<String>().is_ok_and(|scheme| scheme == "https"))
    };
    recall.note(&Seen { target: exchange.target(), fields: || exchange.fields(), status, took, at }, is_https);
}

fn line_of(environ: &Bound<'_, PyDict>) -> PyResult<String> {
    let py = environ.py();
    let method = environ.as_any().get_item(intern!(py, "REQUEST_METHOD"))?;
    let target = environ.as_any().get_item(intern!(py, "RAW_URI"))?;
    let line: String = format!("{} {}", method.str()?, target.str()?);
    Ok(line.escape_default().to_string())
}
