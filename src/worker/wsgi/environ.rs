//! The environ of a request (PEP 3333, "environ Variables"): a copy of a prepared dict that holds what most requests
//! have, and what only this request has. Keys are interned; header names and frequent values are learned (`names`,
//! `strings`). One builder an app thread: nothing here is shared or locked.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use forkmaster_http::serve::{Exchange, Local, Peer, Version};
use forkmaster_wire::percent;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::errors::Errors;
use super::file::FileWrapper;
use super::forwarded::{host_is_plausible, last_element, Believed, Client, Family, Trusted};
use super::names::{Field, Meaning, Names};
use super::repeated;
use super::strings::Strings;

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
    /// Where the application is mounted: empty, or with a slash at its beginning and none at its end.
    pub script_name: Vec<u8>,
    pub response_buffer: u64,
    pub multithread: bool,
    pub multiprocess: bool,
    pub trusted: Trusted,
    pub believed: Believed,
    /// Names in lower case, and the value that means https.
    pub secure_schemes: Vec<(String, String)>,
    /// Names with an underscore, in lower case, that trusted peers may send.
    pub underscored: Vec<String>,
    /// The field that names a request.
    pub request_id_header: Option<String>,
}

impl Common {
    /// Whether a peer is believed about where its requests come from.
    fn trusts(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Inet(peer) => self.trusted.trusts(peer.ip()),
            Peer::Unix => self.trusted.trusts_unix(),
        }
    }

    /// Whose request it is, for one that nobody makes an environ of: who its peer says, where that is believed.
    pub fn client<'a, F>(&self, peer: &Peer, fields: impl Fn() -> F) -> IpAddr
    where
        F: Iterator<Item = (&'a [u8], &'a [u8])>,
    {
        let all_of = |name: &str| {
            let values = fields().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()));
            let values: Vec<_> = values.map(|(_, value)| String::from_utf8_lossy(value)).collect();
            (!values.is_empty()).then(|| Cow::Owned(values.join(",")))
        };
        let texts = self.trusts(peer).then(|| Texts {
            client: all_of("x-forwarded-for"),
            forwarded: all_of("forwarded"),
            ..Texts::default()
        });
        let said = texts.as_ref().and_then(|texts| said(self, texts).client);
        said.map_or_else(|| address_of(peer).0, |(address, _)| address)
    }
}

pub struct Builder {
    common: Arc<Common>,
    prepared: Py<PyDict>,
    /// What the prepared dict says of the connection.
    usual: Option<Usual>,
    /// What it says of the target, which is one that came twice in a row: health checks, webhooks and services with one
    /// address have such targets. Empty: nothing.
    usual_target: Vec<u8>,
    /// The target of the latest request, if it could become the usual one.
    latest_target: Vec<u8>,
    names: Names,
    strings: Strings,
    /// For values that do not stand in the request as they are; keeps its memory.
    scratch: Vec<u8>,
    /// REMOTE_ADDR of the latest request, and its text.
    client: IpAddr,
    client_text: Py<PyString>,
}

/// Client and server address of the first request: those of all, where a proxy stands in front of one address.
struct Usual {
    client: IpAddr,
    /// None: a Unix socket, whose name and port depend on the request.
    local: Option<SocketAddr>,
}

/// Header fields that say more than their own environ key, as they came.
#[derive(Default)]
struct Noted<'a> {
    host: Option<Cow<'a, [u8]>>,
    client: Option<Cow<'a, [u8]>>,
    proto: Option<Cow<'a, [u8]>>,
    forwarded_host: Option<Cow<'a, [u8]>>,
    prefix: Option<Cow<'a, [u8]>>,
    script_name: Option<Cow<'a, [u8]>>,
    forwarded: Option<Cow<'a, [u8]>>,
    /// A field of `Common::secure_schemes` is there, so its value counts.
    secure_scheme: bool,
    /// A field of `Common::underscored` is there.
    underscored: bool,
}

impl<'a> Noted<'a> {
    fn place(&mut self, meaning: Meaning) -> Option<&mut Option<Cow<'a, [u8]>>> {
        match meaning {
            Meaning::Host => Some(&mut self.host),
            Meaning::ForwardedFor => Some(&mut self.client),
            Meaning::ForwardedProto => Some(&mut self.proto),
            Meaning::ForwardedHost => Some(&mut self.forwarded_host),
            Meaning::ForwardedPrefix => Some(&mut self.prefix),
            Meaning::ScriptName => Some(&mut self.script_name),
            Meaning::Forwarded => Some(&mut self.forwarded),
            Meaning::SecureScheme => {
                self.secure_scheme = true;
                None
            }
            Meaning::Underscored => {
                self.underscored = true;
                None
            }
            Meaning::Dropped | Meaning::Cookie | Meaning::Other => None,
        }
    }

    /// Whether a proxy may have said anything.
    fn says_anything(&self) -> bool {
        let origin = [&self.client, &self.proto, &self.forwarded];
        let names = [&self.forwarded_host, &self.prefix, &self.script_name];
        let mut fields = origin.into_iter().chain(names);
        self.secure_scheme || fields.any(|field| field.is_some())
    }
}

impl Builder {
    pub fn new(py: Python<'_>, common: Arc<Common>, empty: &Bound<'_, PyAny>) -> PyResult<Builder> {
        let prepared = PyDict::new(py);
        let mut strings = Strings::new();
        prepared.set_item(intern!(py, "REQUEST_METHOD"), intern!(py, "GET"))?;
        prepared.set_item(intern!(py, "QUERY_STRING"), intern!(py, ""))?;
        prepared.set_item(intern!(py, "SCRIPT_NAME"), strings.get(py, &common.script_name)?)?;
        prepared.set_item(intern!(py, "SERVER_PROTOCOL"), intern!(py, "HTTP/1.1"))?;
        prepared.set_item(intern!(py, "SERVER_SOFTWARE"), concat!("forkmaster/", env!("CARGO_PKG_VERSION")))?;
        prepared.set_item(intern!(py, "wsgi.version"), PyTuple::new(py, [1, 0])?)?;
        prepared.set_item(intern!(py, "wsgi.url_scheme"), intern!(py, "http"))?;
        prepared.set_item(intern!(py, "wsgi.input"), empty)?;
        prepared.set_item(intern!(py, "wsgi.errors"), Bound::new(py, Errors)?)?;
        prepared.set_item(intern!(py, "wsgi.multithread"), common.multithread)?;
        prepared.set_item(intern!(py, "wsgi.multiprocess"), common.multiprocess)?;
        prepared.set_item(intern!(py, "wsgi.run_once"), false)?;
        // The body has been read to its end before the application is called; reading never blocks.
        prepared.set_item(intern!(py, "wsgi.input_terminated"), true)?;
        prepared.set_item(intern!(py, "wsgi.file_wrapper"), py.get_type::<FileWrapper>())?;
        Ok(Builder {
            common,
            prepared: prepared.unbind(),
            usual: None,
            usual_target: Vec::new(),
            latest_target: Vec::new(),
            names: Names::new(),
            strings,
            scratch: Vec::new(),
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_text: PyString::new(py, "127.0.0.1").unbind(),
        })
    }

    /// What every environ is a copy of.
    pub fn prepared<'py>(&self, py: Python<'py>) -> &Bound<'py, PyDict> {
        self.prepared.bind(py)
    }

    pub fn trusts(&self, peer: &Peer) -> bool {
        self.common.trusts(peer)
    }

    /// REMOTE_ADDR of the latest environ, as it was made.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// `input`: None for a request without a body.
    pub fn build<'py, R: Request>(
        &mut self,
        py: Python<'py>,
        request: &R,
        input: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        if self.usual.is_none() {
            self.prepare_for(py, request)?;
        }
        let environ = self.prepared.bind(py).copy()?;
        let mut noted = Noted::default();
        self.set_fields(py, &environ, request, &mut noted)?;
        match request.method() {
            b"GET" => {}
            method => environ.set_item(intern!(py, "REQUEST_METHOD"), self.strings.get(py, method)?)?,
        }
        let query = request.query();
        if request.target() == self.usual_target {
            self.latest_target.clear();
        } else {
            self.set_target(py, &environ, request)?;
        }
        if !query.is_empty() {
            environ.set_item(intern!(py, "QUERY_STRING"), self.strings.get(py, query)?)?;
        }
        if request.version() == Version::Http10 {
            environ.set_item(intern!(py, "SERVER_PROTOCOL"), intern!(py, "HTTP/1.0"))?;
        }
        if let Some(input) = input {
            environ.set_item(intern!(py, "wsgi.input"), input)?;
        }
        // A chunked body has been decoded; its length is known now.
        if let Some(length) = request.content_length() {
            let mut digits = [0; DECIMAL_BYTES_MAX];
            environ.set_item(intern!(py, "CONTENT_LENGTH"), self.strings.get(py, decimal(length, &mut digits))?)?;
        }
        self.set_origin(py, &environ, request, &noted)?;
        Ok(environ)
    }

    fn set_target<R: Request>(&mut self, py: Python<'_>, environ: &Bound<'_, PyDict>, request: &R) -> PyResult<()> {
        let (target, path) = (request.target(), request.path());
        let text = self.strings.get(py, target)?;
        let is_plain = path == target && !path.contains(&b'%') && self.common.script_name.is_empty();
        if is_plain {
            environ.set_item(intern!(py, "PATH_INFO"), &text)?;
        } else {
            percent::decode(path, &mut self.scratch);
            let below = below(&self.scratch, &self.common.script_name);
            environ.set_item(intern!(py, "PATH_INFO"), self.strings.get(py, below)?)?;
        }
        // Gunicorn's name, and that of uWSGI, mod_wsgi and waitress.
        environ.set_item(intern!(py, "RAW_URI"), &text)?;
        environ.set_item(intern!(py, "REQUEST_URI"), &text)?;
        if is_plain && target.len() <= USUAL_TARGET_BYTES_MAX {
            if self.latest_target == target {
                let prepared = self.prepared.bind(py);
                // Until all three are there, the dict says nothing that may be used.
                self.usual_target.clear();
                for key in [intern!(py, "PATH_INFO"), intern!(py, "RAW_URI"), intern!(py, "REQUEST_URI")] {
                    prepared.set_item(key, &text)?;
                }
                std::mem::swap(&mut self.usual_target, &mut self.latest_target);
            } else {
                self.latest_target.clear();
                self.latest_target.extend_from_slice(target);
            }
        }
        Ok(())
    }

    /// The first request's addresses are most likely those of the next ones too. And the dict gets room for the keys
    /// that requests add: a copy has the size of its original, so none has to grow while it is filled.
    #[cold]
    fn prepare_for<R: Request>(&mut self, py: Python<'_>, request: &R) -> PyResult<()> {
        let prepared = self.prepared.bind(py).clone();
        let (client, _) = address_of(request.peer());
        self.set_client(py, client)?;
        prepared.set_item(intern!(py, "REMOTE_ADDR"), self.client_text.bind(py))?;
        let local = match request.local() {
            Local::Inet(local) => {
                self.set_server(py, &prepared, *local)?;
                Some(*local)
            }
            Local::Unix(_) => None,
        };
        self.usual = Some(Usual { client, local });
        // Every request replaces these. That costs less than adding them.
        for key in [intern!(py, "PATH_INFO"), intern!(py, "RAW_URI"), intern!(py, "REQUEST_URI")] {
            prepared.set_item(key, intern!(py, ""))?;
        }
        // A dict doubles when two thirds of it are taken; it stays what it is when items go.
        let keys: Vec<_> = (0..ROOM).map(|number| PyString::new(py, &format!("room for {number}"))).collect();
        for key in &keys {
            prepared.set_item(key, py.None())?;
        }
        for key in &keys {
            prepared.del_item(key)?;
        }
        Ok(())
    }

    fn set_fields<'a, R: Request>(
        &mut self,
        py: Python<'_>,
        environ: &Bound<'_, PyDict>,
        request: &'a R,
        noted: &mut Noted<'a>,
    ) -> PyResult<()> {
        let mut repeats = 0;
        for (name, value) in request.fields() {
            let Field { key, meaning, .. } = self.names.get(py, name, &self.common);
            let place = noted.place(*meaning);
            if matches!(meaning, Meaning::Dropped | Meaning::Underscored) {
                continue;
            }
            if *meaning == Meaning::ScriptName {
                if let Some(place) = place {
                    *place = Some(Cow::Borrowed(value));
                }
                continue;
            }
            let entries = environ.len();
            environ.set_item(key, self.strings.get(py, value)?)?;
            let mut value = Cow::Borrowed(value);
            // Nothing was added: this name was there before. That is rare enough to go through all fields again, a few times.
            let is_repeated = environ.len() == entries;
            repeats += u32::from(is_repeated);
            if is_repeated && repeats <= repeated::FEW {
                repeated::join(request, name, repeated::separator(*meaning), &mut self.scratch);
                environ.set_item(key, self.strings.get(py, &self.scratch)?)?;
                if place.is_some() {
                    value = Cow::Owned(self.scratch.clone());
                }
            }
            if let Some(place) = place {
                *place = Some(value);
            }
        }
        if repeats > repeated::FEW {
            self.set_repeated(py, environ, request, noted)?;
        }
        if noted.underscored && self.common.trusts(request.peer()) {
            self.set_underscored(py, environ, request)?;
        }
        Ok(())
    }

    /// Joins the values of all names that are there more than once, however many there are.
    #[cold]
    fn set_repeated<'a, R: Request>(
        &mut self,
        py: Python<'_>,
        environ: &Bound<'_, PyDict>,
        request: &'a R,
        noted: &mut Noted<'a>,
    ) -> PyResult<()> {
        for (name, values) in repeated::values(request) {
            let Field { key, meaning, .. } = self.names.get(py, name, &self.common);
            if matches!(meaning, Meaning::Dropped | Meaning::Underscored | Meaning::ScriptName) {
                continue;
            }
            let joined = values.join(repeated::separator(*meaning));
            environ.set_item(key, self.strings.get(py, &joined)?)?;
            if let Some(place) = noted.place(*meaning) {
                *place = Some(Cow::Owned(joined));
            }
        }
        Ok(())
    }

    /// After all others: what the proxy says with an underscore replaces what its client says with a hyphen, since
    /// both have the same key.
    #[cold]
    fn set_underscored<R: Request>(
        &mut self,
        py: Python<'_>,
        environ: &Bound<'_, PyDict>,
        request: &R,
    ) -> PyResult<()> {
        for (name, value) in request.fields() {
            let Field { key, meaning, .. } = self.names.get(py, name, &self.common);
            if *meaning == Meaning::Underscored {
                environ.set_item(key, self.strings.get(py, value)?)?;
            }
        }
        for (name, values) in repeated::values(request) {
            let Field { key, meaning, .. } = self.names.get(py, name, &self.common);
            if *meaning == Meaning::Underscored {
                let joined = values.join(repeated::separator(*meaning));
                environ.set_item(key, self.strings.get(py, &joined)?)?;
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
        noted: &Noted<'_>,
    ) -> PyResult<()> {
        let common = &*self.common;
        let texts = (noted.says_anything() && common.trusts(request.peer())).then(|| Texts::of(noted));
        let said = texts.as_ref().map(|texts| said(common, texts)).unwrap_or_default();
        let (mut client, mut port) = address_of(request.peer());
        if let Some((address, its_port)) = said.client {
            client = address;
            // The peer's port is not the client's; unless a proxy says it, there is none to tell.
            port = its_port;
        }
        let mut scheme = request.scheme();
        if texts.is_some() {
            scheme = said_scheme(common, request, noted, said.proto.as_deref()).unwrap_or(scheme);
        }
        if let Some(host) = &said.host {
            environ.set_item(intern!(py, "HTTP_HOST"), self.strings.get(py, host.as_bytes())?)?;
        }
        if let Some(prefix) = said.prefix {
            percent::decode(prefix.as_bytes(), &mut self.scratch);
            environ.set_item(intern!(py, "SCRIPT_NAME"), self.strings.get(py, &self.scratch)?)?;
        }
        if let Some(name) = said.script_name {
            environ.set_item(intern!(py, "SCRIPT_NAME"), self.strings.get(py, name.as_bytes())?)?;
            percent::decode(request.path(), &mut self.scratch);
            let below = below(&self.scratch, name.as_bytes());
            environ.set_item(intern!(py, "PATH_INFO"), self.strings.get(py, below)?)?;
        }
        if client != self.client {
            self.set_client(py, client)?;
        }
        let usual = self.usual.as_ref();
        if usual.is_none_or(|usual| usual.client != client) {
            environ.set_item(intern!(py, "REMOTE_ADDR"), &self.client_text)?;
        }
        if let Some(port) = port {
            let mut digits = [0; DECIMAL_BYTES_MAX];
            let port = decimal(u64::from(port), &mut digits);
            environ.set_item(intern!(py, "REMOTE_PORT"), self.strings.get(py, port)?)?;
        }
        if scheme == Scheme::Https {
            environ.set_item(intern!(py, "wsgi.url_scheme"), intern!(py, "https"))?;
        }
        match request.local() {
            Local::Inet(local) if usual.is_some_and(|usual| usual.local == Some(*local)) => Ok(()),
            Local::Inet(local) => self.set_server(py, environ, *local),
            Local::Unix(_) => {
                let host = said.host.as_deref().map(str::as_bytes).or(noted.host.as_deref()).unwrap_or_default();
                let (name, port) = host_and_port(host, scheme);
                environ.set_item(intern!(py, "SERVER_NAME"), self.strings.get(py, name)?)?;
                environ.set_item(intern!(py, "SERVER_PORT"), self.strings.get(py, port)?)
            }
        }
    }

    fn set_client(&mut self, py: Python<'_>, client: IpAddr) -> PyResult<()> {
        // The longest is of IPv6 with an IPv4 address at its end: INET6_ADDRSTRLEN (inet_ntop(3)).
        let mut text = [0; 46];
        let mut rest = &mut text[..];
        let fits = write!(rest, "{client}");
        debug_assert!(fits.is_ok());
        let left = rest.len();
        let length = text.len() - left;
        self.client_text = self.strings.get(py, &text[..length])?.unbind();
        self.client = client;
        Ok(())
    }

    fn set_server(&mut self, py: Python<'_>, environ: &Bound<'_, PyDict>, local: SocketAddr) -> PyResult<()> {
        let name = local.ip().to_canonical().to_string();
        let port = local.port().to_string();
        environ.set_item(intern!(py, "SERVER_NAME"), self.strings.get(py, name.as_bytes())?)?;
        environ.set_item(intern!(py, "SERVER_PORT"), self.strings.get(py, port.as_bytes())?)
    }
}

/// What of a path lies below where the application is mounted. A proxy that has taken the mount off already, and a
/// probe that never had it, are served as well, as waitress does it.
fn below<'a>(path: &'a [u8], mount: &[u8]) -> &'a [u8] {
    match path.strip_prefix(mount) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
        Some(_) | None => path,
    }
}

/// Longer ones are seldom the same twice.
const USUAL_TARGET_BYTES_MAX: usize = 128;

/// Keys that are put into the prepared dict and taken out again, so that it has room for those that requests add.
const ROOM: usize = 6;

/// Of a u64.
const DECIMAL_BYTES_MAX: usize = 20;

fn decimal(number: u64, digits: &mut [u8; DECIMAL_BYTES_MAX]) -> &[u8] {
    let mut start = digits.len();
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

fn address_of(peer: &Peer) -> (IpAddr, Option<u16>) {
    match peer {
        Peer::Inet(peer) => (peer.ip().to_canonical(), Some(peer.port())),
        // A Unix socket's peer is a process of this machine. Applications expect an address that parses.
        Peer::Unix => (IpAddr::V4(Ipv4Addr::LOCALHOST), None),
    }
}

/// What a proxy may have said, as text.
#[derive(Default)]
struct Texts<'a> {
    client: Option<Cow<'a, str>>,
    proto: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
    prefix: Option<Cow<'a, str>>,
    script_name: Option<Cow<'a, str>>,
    forwarded: Option<Cow<'a, str>>,
}

impl<'a> Texts<'a> {
    fn of(noted: &'a Noted<'_>) -> Texts<'a> {
        let text = |field: &'a Option<Cow<'_, [u8]>>| field.as_deref().map(String::from_utf8_lossy);
        Texts {
            client: text(&noted.client),
            proto: text(&noted.proto),
            host: text(&noted.forwarded_host),
            prefix: text(&noted.prefix),
            script_name: text(&noted.script_name),
            forwarded: text(&noted.forwarded),
        }
    }
}

/// What a trusted proxy says of its client.
#[derive(Default)]
struct Said<'a> {
    client: Option<Client>,
    proto: Option<Cow<'a, str>>,
    host: Option<Cow<'a, str>>,
    prefix: Option<&'a str>,
    script_name: Option<&'a str>,
}

fn said<'a>(common: &Common, texts: &'a Texts<'_>) -> Said<'a> {
    let Common { trusted, believed, .. } = common;
    let host_of = |host: Option<Cow<'a, str>>| host.filter(|host| believed.host && host_is_plausible(host));
    let mount = |text: &'a str| Some(last_element(text).trim_end_matches('/')).filter(|mount| mount.starts_with('/'));
    let script_name = texts.script_name.as_deref().and_then(mount);
    match believed.family {
        Family::Forwarded => {
            let hops = texts.forwarded.as_deref().and_then(|field| trusted.forwarded(field)).unwrap_or_default();
            Said { client: hops.client, proto: hops.proto, host: host_of(hops.host), prefix: None, script_name }
        }
        Family::XForwarded => {
            let client = texts.client.as_deref().filter(|_| believed.client);
            let proto = texts.proto.as_deref().filter(|_| believed.proto);
            let prefix = texts.prefix.as_deref().filter(|_| believed.prefix).and_then(mount);
            Said {
                client: client.and_then(|field| trusted.client(field)),
                proto: proto.map(|field| last_element(field).into()),
                host: host_of(texts.host.as_deref().map(|field| last_element(field).into())),
                prefix,
                script_name,
            }
        }
    }
}

/// The scheme that a trusted proxy tells. Where its fields contradict each other it is the one that claims less:
/// an application that takes http for https sends cookies and passwords in the clear. None: it tells nothing.
fn said_scheme<R: Request>(common: &Common, request: &R, noted: &Noted<'_>, proto: Option<&str>) -> Option<Scheme> {
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

/// SERVER_NAME and SERVER_PORT where the connection has none: a Unix socket. Both must be non-empty strings.
fn host_and_port(host: &[u8], scheme: Scheme) -> (&[u8], &[u8]) {
    let default_port: &[u8] = match scheme {
        Scheme::Http => b"80",
        Scheme::Https => b"443",
    };
    // The colons of an IPv6 address stand in brackets (RFC 3986 section 3.2.2).
    let (name, port) = match host.iter().rposition(|&byte| byte == b':') {
        Some(colon) if !host[colon + 1..].contains(&b']') => (&host[..colon], &host[colon + 1..]),
        Some(_) | None => (host, &b""[..]),
    };
    let port = if !port.is_empty() && port.iter().all(u8::is_ascii_digit) { port } else { default_port };
    let name = if name.is_empty() { b"localhost" } else { name };
    (name, port)
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
