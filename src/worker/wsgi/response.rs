//! The application's answer (PEP 3333): `start_response`, the `write` it returns, and how what the application returned
//! becomes bytes on the wire.
//!
//! The exchange lives in a `Response` object, of which the two callables are methods, because the application may use
//! them at any moment of the request. It is taken out when the request ends: an application that keeps
//! `start_response` or `write` gets an exception then, never another request's connection. No borrow of it is held
//! while application code runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use forkmaster_http::serve::{BadResponse, EarlyHints, Exchange, Written};
use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyList, PyString, PyTuple, PyType};

use super::capi::{self, references, Capi, Method};
use super::file::FileWrapper;
use super::held::{Held, Latest};
use super::progress::Progress;

/// What `start_response` drives: a client's exchange, or the probe's record.
pub trait Answer {
    /// The status; what was said before is forgotten.
    fn begin(&mut self, status: &[u8]) -> Result<(), BadResponse>;
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadResponse>;
    /// All fields were said. Without this nothing was.
    fn end(&mut self);
    fn head_sent(&self) -> bool;
}

impl Answer for Exchange {
    fn begin(&mut self, status: &[u8]) -> Result<(), BadResponse> {
        self.begin_head(status)
    }
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadResponse> {
        self.add_field(name, value)
    }
    fn end(&mut self) {
        self.end_head();
    }
    fn head_sent(&self) -> bool {
        Exchange::head_sent(self)
    }
}

/// One app thread's response and its `start_response`, used for one request after the other.
pub struct ResponseSlot {
    response: Py<Response>,
    start_response: Py<PyAny>,
    early_hints: Py<PyAny>,
    disconnected: Py<PyAny>,
    /// The request has ended while another thread of the application was inside `write()`: that thread ends it.
    left_behind: Arc<AtomicBool>,
    facts: Facts,
}

/// What a response needs to know of its thread.
#[derive(Clone, Copy)]
struct Facts {
    response_buffer: usize,
    progress: Progress,
    capi: Capi,
}

#[pyclass(name = "Response", module = "_forkmaster")]
pub struct Response {
    /// None: the request is over. The mutex is never waited for: all use is through `&mut self`.
    exchange: Mutex<Option<Exchange>>,
    /// What `start_response` returns; has a reference to this object, and goes with the request if it is not to be
    /// used again.
    write: Option<Py<PyAny>>,
    started: bool,
    /// What became of the latest piece.
    latest: Written,
    /// See `ResponseSlot::left_behind`.
    left_behind: Arc<AtomicBool>,
    facts: Facts,
}

static START_RESPONSE: Method = Method::with_names(c"start_response", start_response);
static WRITE: Method = Method::new(c"write", write);
static EARLY_HINTS: Method = Method::new(c"early_hints", early_hints);
static DISCONNECTED: Method = Method::new(c"client_disconnected", client_disconnected);

/// The key of the callable by which a request asks whether somebody still waits for its answer.
pub const CLIENT_DISCONNECTED: &str = "forkmaster.client_disconnected";

impl ResponseSlot {
    pub fn new(py: Python<'_>, progress: Progress, response_buffer: usize, capi: Capi) -> PyResult<ResponseSlot> {
        ResponseSlot::with(py, Facts { response_buffer, progress, capi })
    }

    fn with(py: Python<'_>, facts: Facts) -> PyResult<ResponseSlot> {
        let left_behind = Arc::<AtomicBool>::default();
        let response = Response {
            exchange: Mutex::default(),
            write: None,
            started: false,
            latest: Written::Done,
            left_behind: Arc::clone(&left_behind),
            facts,
        };
        let response = Bound::new(py, response)?;
        let write = WRITE.bind(&response)?;
        response.borrow_mut().write = Some(write.unbind());
        let start_response = START_RESPONSE.bind(&response)?.unbind();
        let early_hints = EARLY_HINTS.bind(&response)?.unbind();
        let disconnected = DISCONNECTED.bind(&response)?.unbind();
        let response = response.unbind();
        Ok(ResponseSlot { response, start_response, early_hints, disconnected, left_behind, facts })
    }

    /// Puts into what environs are copied from what a request may call besides `start_response`.
    pub fn add_callables(&self, environ: &Bound<'_, PyDict>) -> PyResult<()> {
        let py = environ.py();
        environ.set_item(intern!(py, "wsgi.early_hints"), self.early_hints.bind(py))?;
        environ.set_item(intern!(py, CLIENT_DISCONNECTED), self.disconnected.bind(py))
    }

    /// To be called before `enter`, and before the environ is made. Where the application has kept something of the last
    /// request, that stays the last one's, and the next one's callables are to be added again: true.
    pub fn renew(&mut self, py: Python<'_>) -> PyResult<bool> {
        if self.is_left(py) {
            return Ok(false);
        }
        let next = ResponseSlot::with(py, self.facts)?;
        // Or the two would keep each other for ever. Where it is borrowed, its borrower does it.
        if let Ok(mut response) = self.response.bind(py).try_borrow_mut() {
            response.write = None;
        }
        *self = next;
        Ok(true)
    }

    /// A request begins.
    pub fn enter(&self, py: Python<'_>, exchange: Exchange) {
        let mut response = self.response.bind(py).borrow_mut();
        response.started = false;
        response.latest = Written::Done;
        *response.slot() = Some(exchange);
    }

    /// Nobody but us has any of the objects: five references to the response are ours and its methods', and two of those
    /// stand in what environs are copied from.
    fn is_left(&self, py: Python<'_>) -> bool {
        let methods = [(&self.start_response, 1), (&self.early_hints, 2), (&self.disconnected, 2)];
        let is_ours = |(method, ours): (&Py<PyAny>, isize)| references(method.bind(py)) == ours;
        if references(self.response.bind(py)) != 5 || !methods.into_iter().all(is_ours) {
            return false;
        }
        let Ok(response) = self.response.bind(py).try_borrow() else { return false };
        response.write.as_ref().is_some_and(|write| references(write.bind(py)) == 1)
    }

    /// The end of the request. None: another thread of the application is inside `write()`, and ends it when it is done.
    pub fn leave(&self, py: Python<'_>) -> Option<Exchange> {
        match self.response.bind(py).try_borrow_mut() {
            Ok(mut response) => response.slot().take(),
            Err(_) => {
                self.left_behind.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Response {
    fn slot(&mut self) -> &mut Option<Exchange> {
        // A poisoned mutex means a panic in the http crate: the exchange is then as dead as the request.
        match self.exchange.get_mut() {
            Ok(slot) => slot,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn live(&mut self) -> PyResult<&mut Exchange> {
        self.slot().as_mut().ok_or_else(over)
    }

    /// Sends a piece, as far as the buffers reach at once. False: the client is gone.
    fn send(&mut self, py: Python<'_>, piece: &[u8]) -> PyResult<bool> {
        let mut rest = piece;
        let _in_hand = self.live()?.in_hand(piece.len());
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
    /// `last`: nothing of the application runs any more in this request.
    fn send_whole<'py>(
        &mut self,
        py: Python<'py>,
        body: &Bound<'py, PyBytes>,
        latest: &Latest<'py>,
        last: bool,
    ) -> PyResult<bool> {
        let bytes = body.as_bytes();
        let whole = bytes.len() <= self.facts.response_buffer;
        let exchange = self.live()?;
        if whole && !exchange.head_sent() && exchange.has_room_for(bytes.len()) {
            self.latest = exchange.write_all_held(bytes, &|| Box::new(latest.hold(body)), last);
            return Ok(self.latest != Written::Gone);
        }
        if whole && !exchange.head_sent() && !bytes.is_empty() {
            let in_hand = exchange.in_hand(bytes.len());
            let (taken, written) = exchange.write_some_of(bytes, Some(bytes.len() as u64));
            drop(in_hand);
            self.latest = written;
            return self.send(py, &bytes[taken..]);
        }
        self.send(py, bytes)
    }

    /// PEP 3333 has `write()` raise "if the application tries to write() past that point": as many bytes as were declared.
    fn check_length(&mut self, sent: bool) -> PyResult<bool> {
        if !sent && self.slot().as_ref().is_some_and(Exchange::is_beyond_length) {
            return Err(PyValueError::new_err("write() of more bytes than the declared Content-Length"));
        }
        Ok(sent)
    }

    /// Waits where the buffers are full. It is always the next piece that waits, not the one that filled them:
    /// behind the last piece nobody has to. That is without the interpreter's lock, and not the application's
    /// time. False: the client is gone.
    fn has_room(&mut self, py: Python<'_>) -> PyResult<bool> {
        if self.latest == Written::Full {
            let progress = self.facts.progress;
            let exchange = self.live()?;
            progress.leave();
            let room = py.detach(|| {
                let room = exchange.wait_for_room();
                progress.want_lock();
                room
            });
            progress.enter();
            self.latest = room;
        }
        Ok(self.latest != Written::Gone)
    }
}

/// `start_response(status, headers, exc_info=None)`. Its arguments are positional (PEP 3333). But wsgiref, Gunicorn and others take
/// them by these names, so there are applications that give them so.
unsafe extern "C" fn start_response(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    if names.is_null() {
        // SAFETY: what this function was called with, and no argument has a name.
        return unsafe { start_response_in_order(this, arguments, count) };
    }
    let places: [&[&str]; 3] = [&["status"], &["headers", "response_headers"], &["exc_info"]];
    // SAFETY: the arguments of a `FastNamed` function.
    match unsafe { capi::in_order("start_response", arguments, count, names, places) } {
        // SAFETY: so many living objects, which the caller holds.
        Ok((ordered, given)) => unsafe { start_response_in_order(this, ordered.as_ptr(), given) },
        Err(error) => {
            Python::attach(|py| error.restore(py));
            std::ptr::null_mut()
        }
    }
}

/// # Safety
/// As `capi::enter` with a response.
unsafe fn start_response_in_order(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: bound to responses only (`ResponseSlot::new`).
    unsafe {
        capi::enter::<Response>(this, arguments, count, |this, arguments| {
            let (Some(status), Some(headers), 2..=3) = (arguments.get(0), arguments.get(1), arguments.len()) else {
                return Err(arity("start_response", "2 or 3 arguments", arguments.len()));
            };
            let headers = listed(&headers)?;
            let mut response = this.try_borrow_mut()?;
            let (again, capi) = (response.started, response.facts.capi);
            start(response.live()?, &capi, again, &status, &headers, arguments.get(2).as_ref())?;
            response.started = true;
            let write = response.write.as_ref().map(|write| write.bind(this.py()).clone());
            write.ok_or_else(over)
        })
    }
}

/// The callable that `start_response` returns, for applications that cannot be written as iterables.
unsafe extern "C" fn write(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: bound to responses only (`ResponseSlot::new`).
    unsafe {
        capi::enter::<Response>(this, arguments, count, |this, arguments| {
            let (Some(data), 1) = (arguments.get(0), arguments.len()) else {
                return Err(arity("write", "1 argument", arguments.len()));
            };
            let data = piece(&data)?;
            let mut response = this.try_borrow_mut()?;
            let sent = response.send(this.py(), data.as_bytes()).and_then(|sent| response.check_length(sent));
            // Where nothing goes out, a loop that never ends must not pass for progress.
            if sent.as_ref().is_ok_and(|sent| *sent) {
                response.facts.progress.enter();
            }
            // The lock is held from here to the borrow's end, so the other thread cannot leave in between.
            let left = response.left_behind.load(Ordering::Relaxed);
            let ended = left.then(|| (response.slot().take(), response.write.take()));
            drop(response);
            drop(ended);
            sent.map(|_| this.py().None().into_bound(this.py()))
        })
    }
}

/// `wsgi.early_hints`: an interim answer with these headers. Nothing where it is too late, or the client knows no such answers.
unsafe extern "C" fn early_hints(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: bound to responses only (`ResponseSlot::new`).
    unsafe {
        capi::enter::<Response>(this, arguments, count, |this, arguments| {
            let (Some(headers), 1) = (arguments.get(0), arguments.len()) else {
                return Err(arity("early_hints", "1 argument", arguments.len()));
            };
            let headers = listed(&headers)?;
            let mut response = this.try_borrow_mut()?;
            let capi = response.facts.capi;
            let exchange = response.live()?;
            let mut hints = EarlyHints::begin();
            add_fields(&capi, &headers, |name, value| hints.add(name, value).map_err(BadResponse))?;
            exchange.early_hints(hints);
            Ok(this.py().None().into_bound(this.py()))
        })
    }
}

/// Whether the client has left, or has at least said that it sends no more; so it is when the request is over.
unsafe extern "C" fn client_disconnected(
    this: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: bound to responses only (`ResponseSlot::new`).
    unsafe {
        capi::enter::<Response>(this, arguments, count, |this, arguments| {
            if arguments.len() != 0 {
                return Err(arity("client_disconnected", "no arguments", arguments.len()));
            }
            // Where another thread has it, it is sending to the client.
            let disconnected = match this.try_borrow_mut() {
                Ok(mut response) => response.slot().as_ref().is_none_or(Exchange::disconnected),
                Err(_) => false,
            };
            Ok(PyBool::new(this.py(), disconnected).to_owned().into_any())
        })
    }
}

fn arity(callable: &str, taken: &str, given: usize) -> PyErr {
    PyTypeError::new_err(format!("{callable} takes {taken}, {given} were given"))
}

fn over() -> PyErr {
    PyRuntimeError::new_err("this request is over")
}

/// The headers as a list. Any iterable is taken; reading one that is no list may run code of the application, which
/// therefore ends here.
pub fn listed<'py>(headers: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    match headers.cast_exact::<PyList>() {
        Ok(list) => Ok(list.clone()),
        Err(_) => Ok(headers.py().get_type::<PyList>().call1((headers,))?.cast_into::<PyList>()?),
    }
}

/// Checks and applies a call of `start_response`.
pub fn start(
    answer: &mut impl Answer,
    capi: &Capi,
    again: bool,
    status: &Bound<'_, PyAny>,
    headers: &Bound<'_, PyList>,
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
    capi.latin1(string(status, "the status")?, |status| answer.begin(status))?.map_err(bad)?;
    add_fields(capi, headers, |name, value| answer.field(name, value))?;
    answer.end();
    Ok(())
}

/// Gives each header of a list on as bytes.
fn add_fields(
    capi: &Capi,
    headers: &Bound<'_, PyList>,
    mut add: impl FnMut(&[u8], &[u8]) -> Result<(), BadResponse>,
) -> PyResult<()> {
    for header in headers.iter() {
        let pair = header.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
        let pair =
            pair.ok_or_else(|| PyTypeError::new_err("response headers must be a list of tuples (name, value)"))?;
        let (name, value) = (pair.get_item(0)?, pair.get_item(1)?);
        let (name, value) = (string(&name, "a header's name")?, string(&value, "a header's value")?);
        capi.latin1(name, |name| capi.latin1(value, |value| add(name, without_blanks(value))))??.map_err(bad)?;
    }
    Ok(())
}

/// A field goes out with one blank before its value, and none that the application has put around it (RFC 9110 5.6.3:
/// a sender should generate OWS as a single space; Django passes cookies with one before them).
fn without_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn bad(BadResponse(text): BadResponse) -> PyErr {
    PyValueError::new_err(text)
}

fn string<'a, 'py>(text: &'a Bound<'py, PyAny>, what: &str) -> PyResult<&'a Bound<'py, PyString>> {
    text.cast::<PyString>().map_err(|_| {
        let kind = text.get_type();
        let kind = kind.name().map(|name| name.to_string()).unwrap_or_default();
        PyTypeError::new_err(format!("{what} must be a str, not {kind}"))
    })
}

fn piece<'a, 'py>(piece: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    piece.cast::<PyBytes>().map_err(|_| {
        let kind = piece.get_type();
        let kind = kind.name().map(|name| name.to_string()).unwrap_or_default();
        PyTypeError::new_err(format!("the application's output must be bytes, not {kind}"))
    })
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
    capi: &Capi,
    application: &Bound<'_, PyAny>,
    environ: &Bound<'_, PyAny>,
    slot: &ResponseSlot,
    sized: &mut Sized,
) -> Answered {
    let result = match capi.call(application, environ, slot.start_response.bind(py)) {
        Ok(result) => result,
        Err(error) => return Answered::Raised(error),
    };
    let response = slot.response.bind(py);
    let mut latest = Latest::default();
    if let Some(only) = only_piece(&result) {
        // Lists and tuples have no `close`.
        let sent = send_only(py, &only, response, &mut latest);
        drop((only, result));
        let_go(response, latest.end());
        return match sent {
            Ok(()) => Answered::Completely,
            Err(error) => Answered::Raised(error),
        };
    }
    let sent = send_result(py, &result, response, &mut latest, sized);
    if let Ok(response) = response.try_borrow() {
        response.facts.progress.enter();
    }
    let closed = close(&result);
    drop(result);
    let_go(response, latest.end());
    match (sent, closed) {
        (Ok(()), Ok(())) => Answered::Completely,
        (Err(error), Ok(())) | (Ok(()), Err(error)) => Answered::Raised(error),
        (Err(error), Err(second)) => {
            log::error!("close() of the response raised as well: {}", crate::failure::summary(py, &second));
            Answered::Raised(error)
        }
    }
}

/// Frees what nobody sends any more.
fn let_go(response: &Bound<'_, Response>, spent: Option<Held>) {
    let Some(spent) = spent else { return };
    if let Ok(mut response) = response.try_borrow_mut() {
        if let Some(exchange) = response.slot() {
            exchange.let_go(Box::new(spent));
        }
    }
}

fn send_only<'py>(
    py: Python<'py>,
    only: &Bound<'py, PyAny>,
    response: &Bound<'py, Response>,
    latest: &mut Latest<'py>,
) -> PyResult<()> {
    let body = piece(only)?;
    latest.next(body);
    let mut response = response.try_borrow_mut()?;
    require_started(&response)?;
    response.send_whole(py, body, latest, true)?;
    Ok(())
}

fn send_result<'py>(
    py: Python<'py>,
    result: &Bound<'py, PyAny>,
    response: &Bound<'py, Response>,
    latest: &mut Latest<'py>,
    sized: &mut Sized,
) -> PyResult<()> {
    if let Ok(wrapper) = result.cast_exact::<FileWrapper>() {
        if send_file(py, wrapper.get(), response)? {
            return Ok(());
        }
    }
    let mut whole = has_one_piece(result, sized)?;
    for item in result.try_iter()? {
        let item = item?;
        let body = piece(&item)?;
        if body.as_bytes().is_empty() {
            continue;
        }
        let_go(response, latest.next(body));
        let mut response = response.try_borrow_mut()?;
        require_started(&response)?;
        let whole = std::mem::take(&mut whole);
        let sent =
            if whole { response.send_whole(py, body, latest, false) } else { response.send(py, body.as_bytes()) };
        if !sent? {
            return Ok(());
        }
        response.facts.progress.enter();
    }
    let response = response.try_borrow()?;
    require_started(&response)
}

/// The one item of a list or tuple of one: then the length is known before the head goes out.
fn only_piece<'py>(result: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    if let Ok(list) = result.cast_exact::<PyList>() {
        return if list.len() == 1 { list.get_item(0).ok() } else { None };
    }
    let tuple = result.cast_exact::<PyTuple>().ok()?;
    if tuple.len() == 1 {
        tuple.get_item(0).ok()
    } else {
        None
    }
}

/// Any other iterable that says that it has one piece (PEP 3333, "Handling the Content-Length Header"). It is asked
/// by its type, since most have no length and an exception costs more than a request should; and that once, since an
/// application answers with the same few types again and again.
///
/// A type that has `len()` says nothing of its objects: a proxy (wrapt's, in which ddtrace wraps answers) always has it,
/// and raises where the object behind it has none. Then there is no length, as for wsgiref.
fn has_one_piece(result: &Bound<'_, PyAny>, sized: &mut Sized) -> PyResult<bool> {
    if !sized.is(&result.get_type())? {
        return Ok(false);
    }
    match result.len() {
        Ok(length) => Ok(length == 1),
        Err(error) if error.is_instance_of::<PyException>(result.py()) => Ok(false),
        // KeyboardInterrupt and its like are no answer.
        Err(error) => Err(error),
    }
}

/// Whether objects of a type have a length: of the latest type that was asked about.
#[derive(Default)]
pub struct Sized(Option<(Py<PyType>, bool)>);

impl Sized {
    fn is(&mut self, kind: &Bound<'_, PyType>) -> PyResult<bool> {
        if let Some((_, has_length)) = self.0.as_ref().filter(|(known, _)| known.is(kind)) {
            return Ok(*has_length);
        }
        let has_length = kind.hasattr(intern!(kind.py(), "__len__"))?;
        self.0 = Some((kind.clone().unbind(), has_length));
        Ok(has_length)
    }
}

fn send_file(py: Python<'_>, wrapper: &FileWrapper, response: &Bound<'_, Response>) -> PyResult<bool> {
    let Some((file, offset)) = wrapper.plain_file(py)? else { return Ok(false) };
    let mut response = response.try_borrow_mut()?;
    require_started(&response)?;
    let exchange = response.live()?;
    // The disk is read here: not a time to hold up other threads.
    match py.detach(|| exchange.send_file(file, offset))? {
        Some(written) => {
            response.latest = written;
            Ok(true)
        }
        None => Ok(false),
    }
}

fn require_started(response: &Response) -> PyResult<()> {
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
