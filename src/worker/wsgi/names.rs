//! Header field names: what becomes of each, learned at its first sight, so that a usual one costs one look-up.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::environ::Common;
use super::strings::hash;

/// Names that are remembered, as they were sent. Browsers and proxies send a few dozen; the bound is for those that
/// invent names.
const NAMES_MAX: usize = 256;

/// Four places a name, so that few share one.
const PLACES: usize = 4 * NAMES_MAX;

/// A name whose places are all taken is not remembered: nobody can make look-ups slow with names that collide.
const TRIES_MAX: usize = 8;

const EMPTY: u16 = u16::MAX;

pub struct Names {
    /// In `fields`.
    places: Box<[u16]>,
    fields: Vec<Field>,
    /// One that is not remembered.
    other: Option<Field>,
}

pub struct Field {
    name: Box<[u8]>,
    /// The environ key.
    pub key: Py<PyString>,
    pub meaning: Meaning,
}

/// What a header field says besides its own environ key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Dropped: see `Field::of`.
    Dropped,
    Host,
    Cookie,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPrefix,
    /// Gunicorn's `SCRIPT_NAME`, where it is believed. It has no key of its own.
    ScriptName,
    Forwarded,
    /// One of `Common::secure_schemes`.
    SecureScheme,
    /// One of `Common::underscored`.
    Underscored,
    Other,
}

impl Names {
    pub fn new() -> Names {
        Names { places: vec![EMPTY; PLACES].into_boxed_slice(), fields: Vec::new(), other: None }
    }

    pub fn get(&mut self, py: Python<'_>, name: &[u8], common: &Common) -> &Field {
        let first = hash(name) as usize;
        for place in (first..first + TRIES_MAX).map(|place| place % PLACES) {
            let index = usize::from(self.places[place]);
            match self.fields.get(index) {
                Some(field) if *field.name == *name => return &self.fields[index],
                Some(_) => {}
                None if self.fields.len() < NAMES_MAX => {
                    self.places[place] = self.fields.len() as u16;
                    self.fields.push(Field::of(py, name, common, true));
                    return &self.fields[self.fields.len() - 1];
                }
                None => break,
            }
        }
        self.other.insert(Field::of(py, name, common, false))
    }
}

impl Field {
    fn of(py: Python<'_>, name: &[u8], common: &Common, remembered: bool) -> Field {
        let mut key = String::with_capacity(5 + name.len());
        if !name.eq_ignore_ascii_case(b"content-type") {
            key.push_str("HTTP_");
        }
        for byte in name {
            // Field names are ASCII tokens (RFC 9110 section 5.1); the parser has seen to that.
            key.push(if *byte == b'-' { '_' } else { char::from(byte.to_ascii_uppercase()) });
        }
        let meaning = Meaning::of(name, &key, common);
        // CPython 3.12 keeps interned strings for ever: whoever invents names must not get that for each.
        let key = if remembered { PyString::intern(py, &key) } else { PyString::new(py, &key) };
        Field { name: name.into(), key: key.unbind(), meaning }
    }
}

impl Meaning {
    fn of(name: &[u8], key: &str, common: &Common) -> Meaning {
        if common.believed.script_name && name.eq_ignore_ascii_case(b"script_name") {
            return Meaning::ScriptName;
        }
        let has_underscore = name.contains(&b'_');
        let is_allowed = |allowed: &String| name.eq_ignore_ascii_case(allowed.as_bytes());
        // `X_A` and `X-A` become the same key: a client could overwrite what a proxy set, so names with `_` go.
        // `Proxy` would become HTTP_PROXY, which libraries take for a setting (CVE-2016-5385, "httpoxy").
        // The length is told from the body (`Request::content_length`), which is no longer chunked.
        let dropped: [&[u8]; 3] = [b"proxy", b"content-length", b"transfer-encoding"];
        if (has_underscore && !common.underscored.iter().any(is_allowed))
            || dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped))
        {
            return Meaning::Dropped;
        }
        if has_underscore {
            return Meaning::Underscored;
        }
        let is_proto = name.eq_ignore_ascii_case(b"x-forwarded-proto");
        if !is_proto && common.secure_schemes.iter().any(|(secure, _)| name.eq_ignore_ascii_case(secure.as_bytes())) {
            return Meaning::SecureScheme;
        }
        match key {
            "HTTP_HOST" => Meaning::Host,
            "HTTP_COOKIE" => Meaning::Cookie,
            "HTTP_X_FORWARDED_FOR" => Meaning::ForwardedFor,
            "HTTP_X_FORWARDED_PROTO" => Meaning::ForwardedProto,
            "HTTP_X_FORWARDED_HOST" => Meaning::ForwardedHost,
            "HTTP_X_FORWARDED_PREFIX" => Meaning::ForwardedPrefix,
            "HTTP_FORWARDED" => Meaning::Forwarded,
            _other => Meaning::Other,
        }
    }
}
