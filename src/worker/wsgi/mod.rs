//! WSGI (PEP 3333): one request through the application.

mod account;
pub mod environ;
pub mod errors;
pub mod forwarded;
pub mod input;
pub mod response;

use std::sync::Arc;

use forkmaster_http::serve::{BadResponse, Body, Exchange};
use forkmaster_wire::scoreboard::monotonic_ns;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::access::AccessLog;
use crate::failure;
use crate::worker::Worker;
use account::{Account, Ended};
use environ::{Builder, Common};
use input::Input;
use response::{Answered, Progress, StartResponse};

/// One app thread's way into the application.
pub struct Gateway {
    application: Py<PyAny>,
    builder: Builder,
    /// The body of requests that have none: it has no state worth speaking of.
    empty: Py<Input>,
    progress: Progress,
    response_buffer: usize,
    worker: Arc<Worker>,
    account: Option<Account>,
}

impl Gateway {
    pub fn new(
        py: Python<'_>,
        application: Py<PyAny>,
        common: Arc<Common>,
        worker: Arc<Worker>,
        progress: Progress,
        access: Option<Arc<AccessLog>>,
    ) -> PyResult<Gateway> {
        let empty = Py::new(py, Input::memory(PyBytes::new(py, b"")))?;
        let response_buffer = usize::try_from(common.response_buffer).unwrap_or(usize::MAX);
        let builder = Builder::new(py, common)?;
        let account = access.map(Account::new);
        Ok(Gateway { application, builder, empty, progress, response_buffer, worker, account })
    }

    /// Answers one request, whatever the application does. Nothing that it raises leaves here: a SystemExit ends
    /// the request, not the worker.
    pub fn serve(&mut self, py: Python<'_>, exchange: Exchange) {
        let started_ns = monotonic_ns();
        let request = self.worker.begin();
        self.progress.begin(request, started_ns, exchange.method(), exchange.path());
        let raised = match self.call(py, exchange) {
            Ok(()) => false,
            Err(()) => true,
        };
        self.progress.end();
        self.worker.finished(monotonic_ns().saturating_sub(started_ns), raised);
    }

    /// `Err` where an exception left the application; it has been logged.
    fn call(&mut self, py: Python<'_>, exchange: Exchange) -> Result<(), ()> {
        let environ = match self.environ(py, &exchange) {
            Ok(environ) => environ,
            Err(error) => {
                self.log_exception(py, &environ::request_line(&exchange), &error);
                self.note(&exchange, None, Ended::Badly);
                exchange.fail(500);
                return Err(());
            }
        };
        let response = match Bound::new(py, StartResponse::new(exchange, self.progress, self.response_buffer)) {
            Ok(response) => response,
            // Out of memory. The exchange is gone with the object, which answers 500.
            Err(error) => {
                self.log_exception(py, "a request", &error);
                return Err(());
            }
        };
        let answered = response::answer(py, self.application.bind(py), environ.as_any(), &response);
        // The borrow can fail only while another thread of the application is inside `write()`; then the exchange
        // goes when that thread is done with the object.
        let Some(exchange) = response.try_borrow_mut().ok().and_then(|mut response| response.take()) else {
            log::error!("{}: a thread of the application still writes after the response has ended", self.worker);
            return Err(());
        };
        match answered {
            // The line of a good request is never written: it is made from the environ only where it is needed.
            Answered::Completely => {
                self.note(&exchange, Some(&environ), Ended::Well);
                exchange.finish().map_err(|BadResponse(text)| {
                    let line = line_of(&environ).unwrap_or_default();
                    log::error!("{}: bad response to {line}: {text}", self.worker);
                })
            }
            Answered::Raised(error) => {
                self.log_exception(py, &environ::request_line(&exchange), &error);
                self.note(&exchange, Some(&environ), Ended::Badly);
                exchange.fail(500);
                Err(())
            }
        }
    }

    /// For the access log. A child that the application forked has none.
    fn note(&mut self, exchange: &Exchange, environ: Option<&Bound<'_, PyDict>>, ended: Ended) {
        if let Some(account) = &mut self.account {
            if !self.worker.is_forked_child() {
                account.note(exchange, environ, self.builder.client(), ended);
            }
        }
    }

    fn environ<'py>(&mut self, py: Python<'py>, exchange: &Exchange) -> PyResult<Bound<'py, PyDict>> {
        let input = match exchange.body() {
            Body::Memory([]) => self.empty.bind(py).clone(),
            Body::Memory(bytes) => Bound::new(py, Input::memory(PyBytes::new(py, bytes)))?,
            Body::File { file, length } => Bound::new(py, Input::file(file, length)?)?,
        };
        self.builder.build(py, exchange, input.into_any())
    }

    fn log_exception(&self, py: Python<'_>, line: &str, error: &PyErr) {
        log::error!("{}: exception in {line}\n{}", self.worker, failure::traceback(py, error));
    }
}

fn line_of(environ: &Bound<'_, PyDict>) -> PyResult<String> {
    let py = environ.py();
    let method = environ.as_any().get_item(intern!(py, "REQUEST_METHOD"))?;
    let target = environ.as_any().get_item(intern!(py, "RAW_URI"))?;
    let line: String = format!("{} {}", method.str()?, target.str()?);
    Ok(line.escape_default().to_string())
}
