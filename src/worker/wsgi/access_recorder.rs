//! What of a finished request goes into its line of the access log: copied here while the request is still there,
//! made a line of later, on another thread (`access`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use forkmaster_http::serve::{Exchange, Version};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::access::{begin, value, AccessLog, Facts, Wanted};

/// The body of the answer to a request that failed before anything was sent; see the http crate's `Exchange::fail`.
const FAILED_BODY: &[u8] = b"Internal Server Error\n";

/// One app thread's way to the access log.
pub struct AccessRecorder {
    log: Arc<AccessLog>,
    /// One record; keeps its memory.
    record: Vec<u8>,
}

/// How the request ended for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// It raised, or said nothing: 500, if nothing was sent.
    Badly,
}

impl AccessRecorder {
    pub fn new(log: Arc<AccessLog>) -> AccessRecorder {
        AccessRecorder { log, record: Vec::new() }
    }

    /// To be called when the answer is complete, before the exchange is.
    pub fn note(&mut self, exchange: &Exchange, environ: Option<&Bound<'_, PyDict>>, client: IpAddr, ended: Ended) {
        let (status, sent) = exchange.sent();
        let failed = status == 0 || (ended == Ended::Badly && !exchange.head_sent());
        let (status, bytes) = match failed {
            true if exchange.method() == b"HEAD" => (500, 0),
            true => (500, FAILED_BODY.len() as u64),
            false => (status, sent),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = Facts {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            took_us: u64::try_from(exchange.ready_at().elapsed().as_micros()).unwrap_or(u64::MAX),
            bytes,
            status,
            is_http10: exchange.version() == Version::Http10,
            client,
        };
        self.record.clear();
        begin(&mut self.record, &facts, exchange.method(), exchange.target());
        for wanted in self.log.wanted() {
            match wanted {
                Wanted::RequestHeader(name) => value(&mut self.record, named(exchange.fields(), name)),
                Wanted::ResponseHeader(_) if failed => value(&mut self.record, std::iter::empty()),
                Wanted::ResponseHeader(name) => value(&mut self.record, named(lines(exchange.answer_head()), name)),
                Wanted::Environ(name) => {
                    let text = environ.and_then(|environ| environ_text(environ, name));
                    value(&mut self.record, text.iter().map(String::as_bytes));
                }
            }
        }
        self.log.push(&self.record);
    }
}

fn named<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, wanted: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value)
}

/// The fields of an answer's head. It was made by us, so nothing else than CRLF ends a line.
fn lines(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    head.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// Strings and numbers only: anything else would run code of the application.
fn environ_text(environ: &Bound<'_, PyDict>, name: &str) -> Option<String> {
    let value = environ.get_item(name).ok().flatten()?;
    match value.cast_exact::<PyString>() {
        Ok(text) => Some(text.to_string_lossy().into_owned()),
        Err(_) => value.extract::<i64>().ok().map(|number| number.to_string()),
    }
}
