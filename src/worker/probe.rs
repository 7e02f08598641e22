//! Requests through the application before it serves clients: the probe, which proves what an import cannot (settings,
//! templates, a database that answers), and those of `warmup`, which fill caches and prove nothing.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use forkmaster_http::serve::{BadResponse, Local, Peer, Version};
use forkmaster_wire::message::{Boot, Failure, Probe, ProofStep};
use pyo3::prelude::*;
use pyo3::types::{PyAny, PyBool, PyBytes};

use crate::failure::{failure, summary, traceback};
use crate::wsgi::capi::Capi;
use crate::wsgi::environ::{Builder, Common, Request, Scheme};
use crate::wsgi::input::Input;
use crate::wsgi::response::{close, listed, start, Answer, CLIENT_DISCONNECTED};

/// What the configuration writes where no host is set.
const DEFAULT_HOST: &str = "localhost";

/// How much of a refused answer's body is kept for the details: an error page in plain text says why.
const BODY_BYTES_KEPT: usize = 4 * 1024;

/// Sends the probe. A redirect is a failure like any other status that is not accepted: nothing says that where
/// it leads works.
pub fn run(py: Python<'_>, application: &Bound<'_, PyAny>, common: Arc<Common>, probe: &Probe) -> Result<(), Failure> {
    let line = format!("probe GET {}", probe.path);
    let record = match request(py, application, common, probe) {
        Ok(record) => record,
        Err(error) => {
            let reason = format!("{line} raised {}", summary(py, &error));
            return Err(failure(ProofStep::Probe, reason, &traceback(py, &error)));
        }
    };
    let Some(status) = record.status else {
        return Err(failure(ProofStep::Probe, format!("{line} was answered without start_response"), ""));
    };
    let code = status.get(..3).and_then(|code| code.parse::<u16>().ok());
    let accepted = |code: u16| match probe.status.as_slice() {
        [] => (200..300).contains(&code),
        listed => listed.contains(&code),
    };
    if code.is_some_and(accepted) {
        return Ok(());
    }
    let place = record.location.as_ref().map(|location| format!(" to {location}")).unwrap_or_default();
    let body = String::from_utf8_lossy(&record.body);
    // A page for browsers tells an operator nothing.
    let details = Some(body.trim()).filter(|body| !body.starts_with('<')).unwrap_or_default();
    let cure = cure(probe, code.unwrap_or_default(), record.location.as_deref());
    let cure = cure.map(|cure| format!("; {cure}")).unwrap_or_default();
    Err(failure(ProofStep::Probe, format!("{line} answered {status}{place}{cure}"), details))
}

/// Two answers of frameworks say less of the application than of the probe: to a Host that is not allowed, and to a
/// request without TLS.
fn cure(probe: &Probe, code: u16, location: Option<&str>) -> Option<String> {
    let write = |host: &str, scheme: &str| {
        let scheme = if scheme == "http" { String::new() } else { format!(", scheme = \"{scheme}\"") };
        format!("write probe = {{ path = \"{}\", host = \"{host}\"{scheme} }}", probe.path)
    };
    match (code, location) {
        (301 | 302 | 303 | 307 | 308, Some(location)) => {
            let to_https = location.strip_prefix("https://").filter(|_| probe.scheme == "http");
            Some(match to_https {
                Some(rest) => {
                    // A redirect names the host that the application knows itself by, or only repeats ours.
                    let host = rest.split('/').next().filter(|host| !host.is_empty()).unwrap_or(&probe.host);
                    format!("the probe came by http: {}", write(host, "https"))
                }
                None => "a redirect proves nothing: probe what it leads to".to_owned(),
            })
        }
        (400 | 421, _) if probe.host == DEFAULT_HOST => Some(format!(
            "its Host was {DEFAULT_HOST}: where the application checks that (Django's ALLOWED_HOSTS), {}",
            write("shop.example", &probe.scheme)
        )),
        (400 | 421, _) => Some(format!("its Host was {}: the application may not allow that", probe.host)),
        (_, _) => None,
    }
}

/// Whose requests `warm_up` tells of, and how loudly.
pub struct Told<'a> {
    pub name: &'a dyn Display,
    pub level: log::Level,
}

/// Fills what the first requests would fill. An answer is an answer, whatever its status; only what raised is worth a
/// warning, since the release is proved already.
pub fn warm_up(py: Python<'_>, application: &Bound<'_, PyAny>, common: &Arc<Common>, boot: &Boot, who: &Told<'_>) {
    for probe in &boot.warmup {
        let began = Instant::now();
        let outcome = request(py, application, Arc::clone(common), probe);
        let took = began.elapsed().as_millis();
        match outcome.map(|record| record.status) {
            Ok(Some(status)) => {
                log::log!(who.level, "{}: warmup GET {} answered {status} after={took}ms", who.name, probe.path)
            }
            Ok(None) => log::warn!("{}: warmup GET {} was answered without start_response", who.name, probe.path),
            Err(error) => {
                let raised = summary(py, &error);
                log::warn!("{}: warmup GET {} raised {raised} after={took}ms", who.name, probe.path)
            }
        }
    }
}

fn request(py: Python<'_>, application: &Bound<'_, PyAny>, common: Arc<Common>, probe: &Probe) -> PyResult<Record> {
    let fields = vec![("Host", probe.host.as_str()), ("User-Agent", "forkmaster-probe"), ("Accept", "*/*")];
    let asked = Asked { target: &probe.path, is_https: probe.scheme.eq_ignore_ascii_case("https"), fields };
    send(py, application, common, &asked, Reads::All)
}

/// A GET that no client has sent.
pub struct Asked<'a> {
    /// Path and query.
    pub target: &'a str,
    pub is_https: bool,
    pub fields: Vec<(&'a str, &'a str)>,
}

/// How much of an answer's body is read: an application may raise while it is made, and may never end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    All,
    /// Until there is something that a server would send, and the head with it.
    Beginning,
}

/// Has the application answer.
pub fn send(
    py: Python<'_>,
    application: &Bound<'_, PyAny>,
    common: Arc<Common>,
    asked: &Asked<'_>,
    reads: Reads,
) -> PyResult<Record> {
    let request = ProbeRequest::new(asked);
    let empty = Bound::new(py, Input::memory(PyBytes::new(py, b"")))?;
    let environ = Builder::new(py, common, &empty)?.build(py, &request, None)?;
    // Nobody leaves: `bool()` is False.
    environ.set_item(CLIENT_DISCONNECTED, py.get_type::<PyBool>())?;
    let answer = Bound::new(py, ProbeAnswer { record: Mutex::default() })?;
    let result = application.call1((environ, &answer))?;
    let read = (|| -> PyResult<()> {
        for piece in result.try_iter()? {
            answer.get().keep(&piece?)?;
            if reads == Reads::Beginning && answer.get().has_body() {
                break;
            }
        }
        Ok(())
    })();
    let closed = close(&result);
    read.and(closed)?;
    Ok(answer.get().take())
}

/// What the application answered.
#[derive(Default)]
pub struct Record {
    pub status: Option<String>,
    location: Option<String>,
    body: Vec<u8>,
}

impl Answer for Record {
    fn begin(&mut self, status: &[u8]) -> Result<(), BadResponse> {
        self.status = Some(String::from_utf8_lossy(status).into_owned());
        self.location = None;
        Ok(())
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadResponse> {
        if name.eq_ignore_ascii_case(b"location") {
            self.location = Some(String::from_utf8_lossy(value).into_owned());
        }
        Ok(())
    }

    fn end(&mut self) {}

    fn head_sent(&self) -> bool {
        !self.body.is_empty()
    }
}

/// `start_response` of the probe, and the `write` that it returns.
#[pyclass(frozen, name = "ProbeAnswer", module = "_forkmaster")]
struct ProbeAnswer {
    record: Mutex<Record>,
}

impl ProbeAnswer {
    fn keep(&self, piece: &Bound<'_, PyAny>) -> PyResult<()> {
        let piece = piece.cast::<PyBytes>()?.as_bytes();
        let mut record = self.lock();
        let room = BODY_BYTES_KEPT.saturating_sub(record.body.len());
        record.body.extend_from_slice(&piece[..piece.len().min(room)]);
        Ok(())
    }

    fn has_body(&self) -> bool {
        !self.lock().body.is_empty()
    }

    fn take(&self) -> Record {
        std::mem::take(&mut *self.lock())
    }

    /// Held only for a few instructions, never while Python code runs.
    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[pymethods]
impl ProbeAnswer {
    #[pyo3(signature = (status, headers, exc_info=None, /))]
    fn __call__<'py>(
        this: &Bound<'py, Self>,
        status: &Bound<'py, PyAny>,
        headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // Reading `headers` may run application code, so the record is filled in a copy.
        let mut record = this.get().take();
        let again = record.status.is_some();
        let headers = listed(headers);
        let started = headers.and_then(|headers| start(&mut record, &Capi::find(), again, status, &headers, exc_info));
        *this.get().lock() = record;
        started?;
        this.getattr("write")
    }

    #[pyo3(signature = (data, /))]
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.keep(data)
    }
}

/// As an environ is made from it.
struct ProbeRequest<'a> {
    asked: &'a Asked<'a>,
    peer: Peer,
    local: Local,
}

impl ProbeRequest<'_> {
    fn new<'a>(asked: &'a Asked<'a>) -> ProbeRequest<'a> {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // Without a connection, name and port of the server are those that the probe asks for.
        ProbeRequest { asked, peer: Peer::Inet(nowhere), local: Local::Unix(Default::default()) }
    }
}

impl Request for ProbeRequest<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn target(&self) -> &[u8] {
        self.asked.target.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.asked.target.split('?').next().unwrap_or_default().as_bytes()
    }
    fn query(&self) -> &[u8] {
        self.asked.target.split_once('?').map(|(_, query)| query).unwrap_or_default().as_bytes()
    }
    fn version(&self) -> Version {
        Version::Http11
    }
    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.asked.fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }
    fn peer(&self) -> &Peer {
        &self.peer
    }
    fn local(&self) -> &Local {
        &self.local
    }
    fn content_length(&self) -> Option<u64> {
        None
    }
    fn scheme(&self) -> Scheme {
        if self.asked.is_https {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }
}
