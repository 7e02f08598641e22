//! The environ of a request (PEP 3333, "environ Variables"): a copy of a prepared dict, and what only this
//! request has. Keys are interned once; names of header fields are learned, so that usual ones cost one look-up.
//! One builder an app thread: nothing here is shared or locked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use forkmaster_http::serve::{Exchange, Local, Peer, Version};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use pyo3::{ffi, intern};

use super::errors::Errors;
use super::forwarded::{host_is_plausible, last_element, Believed, Client, Family, Trusted};
use super::response::FileWrapper;
use crate::percent;

/// Names of header fields that are remembered, as they were sent. Browsers and proxies send a few dozen; the
/// bound is for those that invent names.
const NAMES_MAX: usize = 256;

/// What an environ is made from: a request of a client, or the probe.
pub trait Request {
    fn method(&self) -> &[u8];
    fn target(&self) -> &[u8];
    fn path(&self) -> &[u8];
    fn query(&self) -> &[u8];
    fn version(&self) -> Version;
    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])>;
    fn peer(&self) -> &Peer;
    fn local(&self) -> &Local;
    fn content_length(&self) -> Option<u64>;
    /// Of the connection itself, before any proxy has had its say.
    fn scheme(&self) -> Scheme;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// What all requests of a process have in common.
pub struct Common {
    pub response_buffer: u64,
    pub multithread: bool,
    pub multiprocess: bool,
    pub trusted: Trusted,
    pub believed: Believed,
    /// Names in lower case, and the value that means https.
    pub secure_schemes: Vec<(String, String)>,
    /// Names with an underscore, in lower case, that trusted peers may send.
    pub underscored: Vec<String>,
}

impl Common {
    /// Whether a peer is believed about where its requests come from.
    fn trusts(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Inet(peer) => self.trusted.trusts(peer.ip()),
            Peer::Unix => self.trusted.trusts_unix(),
        }
    }
}

pub struct Builder {
    common: Arc<Common>,
    prepared: Py<PyDict>,
    names: HashMap<Box<[u8]>, Name>,
    /// The latest peer and server address: a proxy's, or one client's keep-alive connection.
    peer: Option<(IpAddr, Py<PyString>)>,
    local: Option<(SocketAddr, Py<PyString>, Py<PyString>)>,
    /// REMOTE_ADDR of the latest request.
    client: IpAddr,
}

/// What becomes of a header field.
enum Name {
    /// Dropped: see `Name::of`.
    Dropped,
    Host(Py<PyString>),
    Cookie(Py<PyString>),
    ForwardedFor(Py<PyString>),
    ForwardedProto(Py<PyString>),
    ForwardedHost(Py<PyString>),
    ForwardedPrefix(Py<PyString>),
    Forwarded(Py<PyString>),
    /// One of `Common::secure_schemes`.
    SecureScheme(Py<PyString>),
    /// One of `Common::underscored`.
    Underscored(Py<PyString>),
    Other(Py<PyString>),
}

/// Fields that say more than their own environ key.
#[derive(Default)]
struct Noted {
    host: Option<String>,
    client: Option<String>,
    proto: Option<String>,
    forwarded_host: Option<String>,
    prefix: Option<String>,
    forwarded: Option<String>,
    /// A field of `Common::secure_schemes` is there, so its value counts.
    secure_scheme: bool,
    /// A field of `Common::underscored` is there.
    underscored: bool,
}

impl Builder {
    pub fn new(py: Python<'_>, common: Arc<Common>) -> PyResult<Builder> {
        let prepared = PyDict::new(py);
        prepared.set_item(intern!(py, "SCRIPT_NAME"), intern!(py, ""))?;
        prepared.set_item(intern!(py, "SERVER_SOFTWARE"), concat!("forkmaster/", env!("CARGO_PKG_VERSION")))?;
        prepared.set_item(intern!(py, "wsgi.version"), PyTuple::new(py, [1, 0])?)?;
        prepared.set_item(intern!(py, "wsgi.errors"), Bound::new(py, Errors)?)?;
        prepared.set_item(intern!(py, "wsgi.multithread"), common.multithread)?;
        prepared.set_item(intern!(py, "wsgi.multiprocess"), common.multiprocess)?;
        prepared.set_item(intern!(py, "wsgi.run_once"), false)?;
        // The body has been read to its end before the application is called; reading never blocks.
        prepared.set_item(intern!(py, "wsgi.input_terminated"), true)?;
        prepared.set_item(intern!(py, "wsgi.file_wrapper"), py.get_type::<FileWrapper>())?;
        let prepared = prepared.unbind();
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Ok(Builder { common, prepared, names: HashMap::new(), peer: None, local: None, client })
    }

    /// REMOTE_ADDR of the latest environ, as it was made.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    pub fn build<'py, R: Request>(
        &mut self,
        py: Python<'py>,
        request: &R,
        input: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let environ = self.prepared.bind(py).copy()?;
        let mut noted = Noted::default();
        self.set_fields(py, &environ, request, &mut noted)?;
        environ.set_item(intern!(py, "REQUEST_METHOD"), method(py, request.method())?)?;
        environ.set_item(intern!(py, "PATH_INFO"), latin1(py, &percent::decode(request.path()))?)?;
        environ.set_item(intern!(py, "QUERY_STRING"), latin1(py, request.query())?)?;
        environ.set_item(intern!(py, "RAW_URI"), latin1(py, request.target())?)?;
        let protocol = match request.version() {
            Version::Http10 => intern!(py, "HTTP/1.0"),
            Version::Http11 => intern!(py, "HTTP/1.1"),
        };
        environ.set_item(intern!(py, "SERVER_PROTOCOL"), protocol)?;
        environ.set_item(intern!(py, "wsgi.input"), input)?;
        // A chunked body has been decoded; its length is known now.
        if let Some(length) = request.content_length() {
            environ.set_item(intern!(py, "CONTENT_LENGTH"), length.to_string())?;
        }
        self.set_origin(py, &environ, request, &noted)?;
        Ok(environ)
    }

    fn set_fields<R: Request>(
        &mut self,
        py: Python<'_>,
        environ: &Bound<'_, PyDict>,
        request: &R,
        noted: &mut Noted,
    ) -> PyResult<()> {
        for (name, value) in request.fields() {
            let learned;
            let meaning = match self.names.get(name) {
                Some(meaning) => meaning,
                None => {
                    learned = Name::of(py, name, &self.common);
                    if self.names.len() < NAMES_MAX {
                        self.names.entry(name.into()).or_insert(learned)
                    } else {
                        &learned
                    }
                }
            };
            let (key, note) = match meaning {
                Name::Dropped => continue,
                Name::Underscored(_) => {
                    noted.underscored = true;
                    continue;
                }
                Name::Host(key) => (key, Some(&mut noted.host)),
                Name::ForwardedFor(key) => (key, Some(&mut noted.client)),
                Name::ForwardedProto(key) => (key, Some(&mut noted.proto)),
                Name::ForwardedHost(key) => (key, Some(&mut noted.forwarded_host)),
                Name::ForwardedPrefix(key) => (key, Some(&mut noted.prefix)),
                Name::Forwarded(key) => (key, Some(&mut noted.forwarded)),
                Name::SecureScheme(key) => {
                    noted.secure_scheme = true;
                    (key, None)
                }
                Name::Cookie(key) | Name::Other(key) => (key, None),
            };
            let entries = environ.len();
            environ.set_item(key, latin1(py, value)?)?;
            // Nothing was added: this name was there before. That is rare enough to go through all fields again.
            let repeated = environ.len() == entries;
            let separator: &[u8] = if matches!(meaning, Name::Cookie(_)) { b"; " } else { b"," };
            let joined = if repeated { join(request, name, separator) } else { Vec::new() };
            if repeated {
                environ.set_item(key, latin1(py, &joined)?)?;
            }
            if let Some(note) = note {
                let value = if repeated { &joined } else { value };
                *note = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        if noted.underscored && self.common.trusts(request.peer()) {
            self.set_underscored(py, environ, request)?;
        }
        Ok(())
    }

    /// After all others: what the proxy says with an underscore replaces what its client says with a hyphen, since
    /// both have the same key.
    fn set_underscored<R: Request>(&self, py: Python<'_>, environ: &Bound<'_, PyDict>, request: &R) -> PyResult<()> {
        for (name, value) in request.fields() {
            if let Name::Underscored(key) = Name::of(py, name, &self.common) {
                environ.set_item(key, latin1(py, value)?)?;
            }
        }
        Ok(())
    }

    /// Who asks, by which scheme, and under which name we were addressed: from the connection, corrected by what
    /// a trusted proxy says.
    fn set_origin<R: Request>(
        &mut self,
        py: Python<'_>,
        environ: &Bound<'_, PyDict>,
        request: &R,
        noted: &Noted,
    ) -> PyResult<()> {
        let common = Arc::clone(&self.common);
        let trusted = common.trusts(request.peer());
        let (mut client, mut port) = match request.peer() {
            Peer::Inet(peer) => (peer.ip().to_canonical(), Some(peer.port())),
            // A Unix socket's peer is a process of this machine. Applications expect an address that parses.
            Peer::Unix => (IpAddr::V4(Ipv4Addr::LOCALHOST), None),
        };
        let mut scheme = request.scheme();
        let mut host = noted.host.as_deref().map(Cow::Borrowed);
        if trusted {
            let said = said(&common, noted);
            if let Some((address, its_port)) = said.client {
                client = address;
                // The peer's port is not the client's; unless a proxy says it, there is none to tell.
                port = its_port;
            }
            scheme = said_scheme(&common, request, noted, said.proto.as_deref()).unwrap_or(scheme);
            if let Some(said_host) = said.host {
                environ.set_item(intern!(py, "HTTP_HOST"), latin1(py, said_host.as_bytes())?)?;
                host = Some(said_host);
            }
            if let Some(prefix) = said.prefix {
                environ.set_item(intern!(py, "SCRIPT_NAME"), latin1(py, &percent::decode(prefix.as_bytes()))?)?;
            }
        }
        self.client = client;
        environ.set_item(intern!(py, "REMOTE_ADDR"), self.remote_addr(py, client)?)?;
        if let Some(port) = port {
            environ.set_item(intern!(py, "REMOTE_PORT"), port.to_string())?;
        }
        let scheme_name = match scheme {
            Scheme::Http => intern!(py, "http"),
            Scheme::Https => intern!(py, "https"),
        };
        environ.set_item(intern!(py, "wsgi.url_scheme"), scheme_name)?;
        match request.local() {
            Local::Inet(local) => {
                let (name, port) = self.server_address(py, *local);
                environ.set_item(intern!(py, "SERVER_NAME"), name)?;
                environ.set_item(intern!(py, "SERVER_PORT"), port)?;
            }
            Local::Unix(_) => {
                let (name, port) = host_and_port(&host.unwrap_or_default(), scheme);
                environ.set_item(intern!(py, "SERVER_NAME"), name)?;
                environ.set_item(intern!(py, "SERVER_PORT"), port)?;
            }
        }
        Ok(())
    }

    fn remote_addr<'py>(&mut self, py: Python<'py>, address: IpAddr) -> PyResult<Bound<'py, PyString>> {
        if let Some((_, text)) = self.peer.as_ref().filter(|(known, _)| *known == address) {
            return Ok(text.bind(py).clone());
        }
        let text = PyString::new(py, &address.to_string());
        self.peer = Some((address, text.clone().unbind()));
        Ok(text)
    }

    fn server_address<'py>(
        &mut self,
        py: Python<'py>,
        address: SocketAddr,
    ) -> (Bound<'py, PyString>, Bound<'py, PyString>) {
        if let Some((_, name, port)) = self.local.as_ref().filter(|(known, ..)| *known == address) {
            return (name.bind(py).clone(), port.bind(py).clone());
        }
        let name = PyString::new(py, &address.ip().to_canonical().to_string());
        let port = PyString::new(py, &address.port().to_string());
        self.local = Some((address, name.clone().unbind(), port.clone().unbind()));
        (name, port)
    }
}

/// What a trusted proxy says of its client.
struct Said<'a> {
    client: Option<Client>,
    proto: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
    prefix: Option<&'a str>,
}

fn said<'a>(common: &Common, noted: &'a Noted) -> Said<'a> {
    let Common { trusted, believed, .. } = common;
    let host_of = |host: Option<Cow<'a, str>>| host.filter(|host| believed.host && host_is_plausible(host));
    match believed.family {
        Family::Forwarded => {
            let hops = noted.forwarded.as_deref().and_then(|field| trusted.forwarded(field)).unwrap_or_default();
            Said { client: hops.client, proto: hops.proto, host: host_of(hops.host), prefix: None }
        }
        Family::XForwarded => {
            let client = noted.client.as_deref().filter(|_| believed.client);
            let proto = noted.proto.as_deref().filter(|_| believed.proto);
            let prefix = noted.prefix.as_deref().filter(|_| believed.prefix).map(last_element);
            Said {
                client: client.and_then(|field| trusted.client(field)),
                proto: proto.map(|field| last_element(field).into()),
                host: host_of(noted.forwarded_host.as_deref().map(|field| last_element(field).into())),
                prefix: prefix.map(|prefix| prefix.trim_end_matches('/')).filter(|prefix| prefix.starts_with('/')),
            }
        }
    }
}

/// The scheme that a trusted proxy tells. Where its fields contradict each other it is the one that claims less:
/// an application that takes http for https sends cookies and passwords in the clear. None: it tells nothing.
fn said_scheme<R: Request>(common: &Common, request: &R, noted: &Noted, proto: Option<&str>) -> Option<Scheme> {
    let of_proto = match proto {
        Some(proto) if proto.eq_ignore_ascii_case("https") => Some(Scheme::Https),
        Some(proto) if proto.eq_ignore_ascii_case("http") => Some(Scheme::Http),
        Some(_) | None => None,
    };
    if !noted.secure_scheme {
        return of_proto;
    }
    let is_https = |(name, value): (&[u8], &[u8])| {
        // X-Forwarded-Proto has had its say.
        let known = common.secure_schemes.iter().filter(|(known, _)| known != "x-forwarded-proto");
        let known = known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
        known.map(|(_, wanted)| value.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    let all_https = request.fields().filter_map(is_https).all(|is_https| is_https);
    if all_https && of_proto != Some(Scheme::Http) {
        Some(Scheme::Https)
    } else {
        Some(Scheme::Http)
    }
}

impl Name {
    fn of(py: Python<'_>, name: &[u8], common: &Common) -> Name {
        let has_underscore = name.contains(&b'_');
        let is_allowed = |allowed: &String| name.eq_ignore_ascii_case(allowed.as_bytes());
        // `X_A` and `X-A` become the same key: a client could overwrite what a proxy set, so names with `_` go.
        // `Proxy` would become HTTP_PROXY, which libraries take for a setting (CVE-2016-5385, "httpoxy").
        // The length is told from the body (`Request::content_length`), which is no longer chunked.
        let dropped: [&[u8]; 3] = [b"proxy", b"content-length", b"transfer-encoding"];
        if (has_underscore && !common.underscored.iter().any(is_allowed))
            || dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped))
        {
            return Name::Dropped;
        }
        let mut key = String::with_capacity(5 + name.len());
        if !name.eq_ignore_ascii_case(b"content-type") {
            key.push_str("HTTP_");
        }
        for byte in name {
            // Field names are ASCII tokens (RFC 9110 section 5.1); the parser has seen to that.
            key.push(if *byte == b'-' { '_' } else { char::from(byte.to_ascii_uppercase()) });
        }
        let interned = PyString::intern(py, &key).unbind();
        if has_underscore {
            return Name::Underscored(interned);
        }
        let is_proto = name.eq_ignore_ascii_case(b"x-forwarded-proto");
        if !is_proto && common.secure_schemes.iter().any(|(secure, _)| name.eq_ignore_ascii_case(secure.as_bytes())) {
            return Name::SecureScheme(interned);
        }
        match key.as_str() {
            "HTTP_HOST" => Name::Host(interned),
            "HTTP_COOKIE" => Name::Cookie(interned),
            "HTTP_X_FORWARDED_FOR" => Name::ForwardedFor(interned),
            "HTTP_X_FORWARDED_PROTO" => Name::ForwardedProto(interned),
            "HTTP_X_FORWARDED_HOST" => Name::ForwardedHost(interned),
            "HTTP_X_FORWARDED_PREFIX" => Name::ForwardedPrefix(interned),
            "HTTP_FORWARDED" => Name::Forwarded(interned),
            _other => Name::Other(interned),
        }
    }
}

impl Request for Exchange {
    fn method(&self) -> &[u8] {
        Exchange::method(self)
    }
    fn target(&self) -> &[u8] {
        Exchange::target(self)
    }
    fn path(&self) -> &[u8] {
        Exchange::path(self)
    }
    fn query(&self) -> &[u8] {
        Exchange::query(self)
    }
    fn version(&self) -> Version {
        Exchange::version(self)
    }
    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        Exchange::fields(self)
    }
    fn peer(&self) -> &Peer {
        Exchange::peer(self)
    }
    fn local(&self) -> &Local {
        Exchange::local(self)
    }
    fn content_length(&self) -> Option<u64> {
        Exchange::content_length(self)
    }
    fn scheme(&self) -> Scheme {
        if self.secure() {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }
}

/// All values of the fields of one name, in order (RFC 9110 section 5.3; RFC 6265 section 5.4 for cookies).
fn join<R: Request>(request: &R, name: &[u8], separator: &[u8]) -> Vec<u8> {
    let values = request.fields().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let mut joined = Vec::new();
    for (place, value) in values.enumerate() {
        if place > 0 {
            joined.extend_from_slice(separator);
        }
        joined.extend_from_slice(value);
    }
    joined
}

/// SERVER_NAME and SERVER_PORT where the connection has none: a Unix socket. Both must be non-empty strings.
fn host_and_port(host: &str, scheme: Scheme) -> (String, String) {
    let default_port = match scheme {
        Scheme::Http => "80",
        Scheme::Https => "443",
    };
    // The colons of an IPv6 address stand in brackets (RFC 3986 section 3.2.2).
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        Some(_) | None => (host, ""),
    };
    let port = if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) { port } else { default_port };
    let name = if name.is_empty() { "localhost" } else { name };
    (name.to_owned(), port.to_owned())
}

fn method<'py>(py: Python<'py>, method: &[u8]) -> PyResult<Bound<'py, PyString>> {
    match method {
        b"GET" => Ok(intern!(py, "GET").clone()),
        b"POST" => Ok(intern!(py, "POST").clone()),
        b"HEAD" => Ok(intern!(py, "HEAD").clone()),
        other => latin1(py, other),
    }
}

/// A "native string" of PEP 3333: bytes as the code points of the same number.
pub fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: pointer and length are of one slice; its length fits, since slices have at most isize::MAX bytes.
    let string = unsafe { ffi::PyUnicode_DecodeLatin1(bytes.as_ptr().cast(), bytes.len() as isize, std::ptr::null()) };
    // SAFETY: a new reference, or null with an exception set.
    let string = unsafe { Bound::from_owned_ptr_or_err(py, string) }?;
    Ok(string.cast_into::<PyString>()?)
}

/// A request's first line for the log, on one line whatever the client sent.
pub fn request_line<R: Request>(request: &R) -> String {
    let mut line = String::new();
    for byte in request.method().iter().chain(b" ").chain(request.target()) {
        match byte {
            0x20..=0x7e => line.push(char::from(*byte)),
            // Writing to a String cannot fail.
            other => drop(write!(line, "\\x{other:02x}")),
        }
    }
    line
}
