//! The application's answer (PEP 3333): `start_response`, the `write` it returns, `wsgi.file_wrapper`, and how
//! what the application returned becomes bytes on the wire.
//!
//! The exchange lives in the `StartResponse` object, because the application may use that at any moment of the
//! request. It is taken out when the request ends: an application that keeps `start_response` or `write` gets an
//! exception then, never another request's connection. No borrow of it is held while application code runs.

use std::os::fd::RawFd;
use std::sync::Mutex;

use forkmaster_http::serve::{BadResponse, Exchange, Written};
use forkmaster_wire::scoreboard::{monotonic_ns, ThreadCell};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

/// What `start_response` drives: a client's exchange, or the probe's record.
pub trait Answer {
    fn start(&mut self, status: &[u8], fields: &[(&[u8], &[u8])]) -> Result<(), BadResponse>;
    fn head_sent(&self) -> bool;
}

impl Answer for Exchange {
    fn start(&mut self, status: &[u8], fields: &[(&[u8], &[u8])]) -> Result<(), BadResponse> {
        Exchange::start(self, status, fields)
    }
    fn head_sent(&self) -> bool {
        Exchange::head_sent(self)
    }
}

#[pyclass(name = "StartResponse", module = "_forkmaster")]
pub struct StartResponse {
    /// None: the request is over. The mutex is never waited for: all use is through `&mut self`.
    exchange: Mutex<Option<Exchange>>,
    started: bool,
    /// What became of the latest piece.
    latest: Written,
    response_buffer: usize,
    progress: Progress,
}

/// Where the scoreboard is told that application code was left and entered.
#[derive(Clone, Copy)]
pub struct Progress(&'static ThreadCell);

impl Progress {
    /// The board is mapped for the life of the process.
    pub fn new(cell: &'static ThreadCell) -> Progress {
        Progress(cell)
    }

    pub fn begin(self, request: u64, now_ns: u64, method: &[u8], path: &[u8]) {
        self.0.begin(request, now_ns, method, path);
    }

    /// Into application code; also said again after each piece of output, since `request_timeout` counts from
    /// the latest.
    pub fn enter(self) {
        self.0.enter(monotonic_ns());
    }

    pub fn leave(self) {
        self.0.leave();
    }

    pub fn end(self) {
        self.0.end();
    }
}

impl StartResponse {
    pub fn new(exchange: Exchange, progress: Progress, response_buffer: usize) -> StartResponse {
        let exchange = Mutex::new(Some(exchange));
        StartResponse { exchange, started: false, latest: Written::Done, response_buffer, progress }
    }

    /// The end of the request.
    pub fn take(&mut self) -> Option<Exchange> {
        self.slot().take()
    }

    fn slot(&mut self) -> &mut Option<Exchange> {
        // A poisoned mutex means a panic in the http crate: the exchange is then as dead as the request.
        match self.exchange.get_mut() {
            Ok(slot) => slot,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn live(&mut self) -> PyResult<&mut Exchange> {
        self.slot().as_mut().ok_or_else(|| PyRuntimeError::new_err("this request is over"))
    }

    /// Sends a piece, as far as the buffers reach at once. False: the client is gone.
    fn send(&mut self, py: Python<'_>, piece: &[u8]) -> PyResult<bool> {
        let mut rest = piece;
        while !rest.is_empty() {
            if !self.has_room(py)? {
                return Ok(false);
            }
            let (taken, written) = self.live()?.write_some(rest);
            rest = &rest[taken..];
            self.latest = written;
        }
        Ok(self.latest != Written::Gone)
    }

    /// The whole body in one piece: its length goes into the head, if nothing was sent before. One that is larger
    /// than the buffers is sent as they have room, so that a client that does not read costs no more than them.
    fn send_whole(&mut self, py: Python<'_>, body: &[u8]) -> PyResult<bool> {
        let whole = body.len() <= self.response_buffer;
        let exchange = self.live()?;
        if whole && !exchange.head_sent() {
            self.latest = exchange.write_all(body);
            return Ok(self.latest != Written::Gone);
        }
        self.send(py, body)
    }

    /// Waits where the buffers are full. It is always the next piece that waits, not the one that filled them:
    /// behind the last piece nobody has to. That is without the interpreter's lock, and not the application's
    /// time. False: the client is gone.
    fn has_room(&mut self, py: Python<'_>) -> PyResult<bool> {
        if self.latest == Written::Full {
            let progress = self.progress;
            let exchange = self.live()?;
            progress.leave();
            let room = py.detach(|| exchange.wait_for_room());
            progress.enter();
            self.latest = room;
        }
        Ok(self.latest != Written::Gone)
    }
}

#[pymethods]
impl StartResponse {
    #[pyo3(signature = (status, headers, exc_info=None, /))]
    fn __call__(
        this: &Bound<'_, Self>,
        status: &Bound<'_, PyAny>,
        headers: &Bound<'_, PyAny>,
        exc_info: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Write> {
        let mut response = this.try_borrow_mut()?;
        let again = response.started;
        start(response.live()?, again, status, headers, exc_info)?;
        response.started = true;
        Ok(Write { response: this.clone().unbind() })
    }
}

/// The callable that `start_response` returns, for applications that cannot be written as iterables.
#[pyclass(frozen, name = "Write", module = "_forkmaster")]
pub struct Write {
    response: Py<StartResponse>,
}

#[pymethods]
impl Write {
    #[pyo3(signature = (data, /))]
    fn __call__(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let data = piece(data)?;
        let mut response = self.response.bind(py).try_borrow_mut()?;
        response.send(py, data.as_bytes())?;
        response.progress.enter();
        Ok(())
    }
}

/// Checks and applies a call of `start_response`.
pub fn start(
    answer: &mut impl Answer,
    again: bool,
    status: &Bound<'_, PyAny>,
    headers: &Bound<'_, PyAny>,
    exc_info: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    match exc_info.filter(|exc_info| !exc_info.is_none()) {
        // PEP 3333: what was sent cannot be taken back, so the application's own exception goes on.
        Some(exc_info) if answer.head_sent() => {
            let exc_info = exc_info.cast::<PyTuple>()?;
            let value = exc_info.get_item(1)?;
            let value = value.call_method1("with_traceback", (exc_info.get_item(2)?,))?;
            return Err(PyErr::from_value(value));
        }
        Some(_) => {}
        None if again => {
            return Err(PyRuntimeError::new_err("start_response was called again without exc_info"));
        }
        None => {}
    }
    let status = latin1_bytes(status, "the status")?;
    let mut strings = Vec::new();
    for header in headers.try_iter()? {
        let header = header?;
        let (name, value) = header
            .extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()
            .map_err(|_| PyTypeError::new_err("response headers must be a list of tuples (name, value)"))?;
        strings.push((latin1_bytes(&name, "a header's name")?, latin1_bytes(&value, "a header's value")?));
    }
    let fields: Vec<(&[u8], &[u8])> = strings.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    answer.start(status.as_bytes(), &fields).map_err(|BadResponse(text)| PyValueError::new_err(text))
}

/// A "native string" of PEP 3333 as the bytes that it stands for.
fn latin1_bytes<'py>(text: &Bound<'py, PyAny>, what: &str) -> PyResult<Bound<'py, PyBytes>> {
    let Ok(text) = text.cast::<PyString>() else {
        let kind = text.get_type();
        return Err(PyTypeError::new_err(format!("{what} must be a str, not {}", kind.name()?)));
    };
    // SAFETY: `text` is a str; the result is a new reference to bytes, or null with an exception set.
    let bytes = unsafe { pyo3::ffi::PyUnicode_AsLatin1String(text.as_ptr()) };
    // SAFETY: as above.
    let bytes = unsafe { Bound::from_owned_ptr_or_err(text.py(), bytes) }?;
    Ok(bytes.cast_into::<PyBytes>()?)
}

fn piece<'a, 'py>(piece: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    piece.cast::<PyBytes>().map_err(|_| {
        let kind = piece.get_type();
        let kind = kind.name().map(|name| name.to_string()).unwrap_or_default();
        PyTypeError::new_err(format!("the application's output must be bytes, not {kind}"))
    })
}

/// `wsgi.file_wrapper`. As an iterable it is what PEP 3333 shows; given back by the application for a plain
/// file, the file is sent by the kernel.
#[pyclass(frozen, name = "FileWrapper", module = "_forkmaster")]
pub struct FileWrapper {
    file: Py<PyAny>,
    block_bytes: usize,
}

#[pymethods]
impl FileWrapper {
    #[new]
    #[pyo3(signature = (filelike, blksize=8192))]
    fn new(filelike: Py<PyAny>, blksize: usize) -> FileWrapper {
        FileWrapper { file: filelike, block_bytes: blksize.max(1) }
    }

    #[getter]
    fn filelike(&self, py: Python<'_>) -> Py<PyAny> {
        self.file.clone_ref(py)
    }

    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let block = self.file.bind(py).call_method1(intern!(py, "read"), (self.block_bytes,))?;
        Ok(block.is_truthy()?.then_some(block))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        close(self.file.bind(py))
    }
}

impl FileWrapper {
    /// The descriptor, positioned where the application would read next. None: not a plain file of Python's.
    /// Only Python's own binary files are taken: others have a `fileno()` too and read something else than its
    /// bytes (gzip.GzipFile), or have read ahead of what they tell.
    fn plain_file(&self, py: Python<'_>) -> PyResult<Option<RawFd>> {
        let file = self.file.bind(py);
        let io = py.import(intern!(py, "io"))?;
        let plain = io.getattr(intern!(py, "FileIO"))?;
        let raw = if file.get_type().is(&io.getattr(intern!(py, "BufferedReader"))?)
            || file.get_type().is(&io.getattr(intern!(py, "BufferedRandom"))?)
        {
            file.getattr(intern!(py, "raw"))?
        } else {
            file.clone()
        };
        if !raw.get_type().is(&plain) {
            return Ok(None);
        }
        let position = file.call_method0(intern!(py, "tell"));
        let (Ok(position), Ok(descriptor)) = (position, file.call_method0(intern!(py, "fileno"))) else {
            return Ok(None);
        };
        let (position, descriptor): (i64, RawFd) = (position.extract()?, descriptor.extract()?);
        // A buffered file has read ahead of what it tells.
        // SAFETY: any descriptor and offset may be given.
        let moved = unsafe { libc::lseek(descriptor, position, libc::SEEK_SET) };
        Ok((moved == position).then_some(descriptor))
    }
}

/// How answering went.
pub enum Answered {
    /// The application has given all it wanted to give, or the client left.
    Completely,
    /// It raised; the exception says what.
    Raised(PyErr),
}

/// Calls the application and sends what it returns. `close()` of the result is called exactly once in every
/// case; a client that left ends the iteration silently.
pub fn answer(
    py: Python<'_>,
    application: &Bound<'_, PyAny>,
    environ: &Bound<'_, PyAny>,
    response: &Bound<'_, StartResponse>,
) -> Answered {
    let result = match application.call1((environ, response)) {
        Ok(result) => result,
        Err(error) => return Answered::Raised(error),
    };
    let sent = send_result(py, &result, response);
    response.borrow().progress.enter();
    let closed = close(&result);
    match (sent, closed) {
        (Ok(()), Ok(())) => Answered::Completely,
        (Err(error), Ok(())) | (Ok(()), Err(error)) => Answered::Raised(error),
        (Err(error), Err(second)) => {
            log::error!("close() of the response raised as well: {}", crate::failure::summary(py, &second));
            Answered::Raised(error)
        }
    }
}

fn send_result(py: Python<'_>, result: &Bound<'_, PyAny>, response: &Bound<'_, StartResponse>) -> PyResult<()> {
    if let Some(only) = only_piece(result)? {
        let body = piece(&only)?;
        let mut response = response.try_borrow_mut()?;
        require_started(&response)?;
        response.send_whole(py, body.as_bytes())?;
        return Ok(());
    }
    if let Ok(wrapper) = result.cast_exact::<FileWrapper>() {
        if send_file(py, wrapper.get(), response)? {
            return Ok(());
        }
    }
    let mut whole = has_one_piece(result)?;
    for item in result.try_iter()? {
        let item = item?;
        let body = piece(&item)?;
        if body.as_bytes().is_empty() {
            continue;
        }
        let mut response = response.try_borrow_mut()?;
        require_started(&response)?;
        let body = body.as_bytes();
        let sent = if std::mem::take(&mut whole) { response.send_whole(py, body) } else { response.send(py, body) };
        if !sent? {
            return Ok(());
        }
        response.progress.enter();
    }
    let response = response.try_borrow()?;
    require_started(&response)
}

/// The one item of a list or tuple of one: then the length is known before the head goes out.
fn only_piece<'py>(result: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    if let Ok(list) = result.cast_exact::<PyList>() {
        return if list.len() == 1 { list.get_item(0).map(Some) } else { Ok(None) };
    }
    match result.cast_exact::<PyTuple>() {
        Ok(tuple) if tuple.len() == 1 => tuple.get_item(0).map(Some),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Any other iterable that says that it has one piece (PEP 3333, "Handling the Content-Length Header"). It is asked
/// by its type, since most have no length and an exception costs more than a request should.
fn has_one_piece(result: &Bound<'_, PyAny>) -> PyResult<bool> {
    if !result.get_type().hasattr(intern!(result.py(), "__len__"))? {
        return Ok(false);
    }
    Ok(result.len()? == 1)
}

fn send_file(py: Python<'_>, wrapper: &FileWrapper, response: &Bound<'_, StartResponse>) -> PyResult<bool> {
    let Some(file) = wrapper.plain_file(py)? else { return Ok(false) };
    let mut response = response.try_borrow_mut()?;
    require_started(&response)?;
    let exchange = response.live()?;
    // The disk is read here: not a time to hold up other threads.
    match py.detach(|| exchange.send_file(file))? {
        Some(written) => {
            response.latest = written;
            Ok(true)
        }
        None => Ok(false),
    }
}

fn require_started(response: &StartResponse) -> PyResult<()> {
    if response.started {
        return Ok(());
    }
    Err(PyRuntimeError::new_err("the application returned output without calling start_response"))
}

/// Calls `close()` where there is one.
pub fn close(object: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some(close) = object.getattr_opt(intern!(object.py(), "close"))? {
        close.call0()?;
    }
    Ok(())
}
