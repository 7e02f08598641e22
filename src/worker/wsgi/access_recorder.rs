//! What of a request goes into its line of the access log: copied here when the application is done with it, completed
//! when its answer has ended (`metrics`), made a line of later, on another thread (`access`).

use std::net::IpAddr;
use std::sync::Arc;

use forkmaster_http::serve::{Exchange, Version};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::access::{begin, value, AccessLog, Facts, How, Wanted};

/// One app thread's way to the access log.
pub struct AccessRecorder {
    log: Arc<AccessLog>,
}

/// How the request ended for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// It raised, or said nothing, or its client did not send what it promised: this status, if nothing was sent.
    Badly(u16),
}

impl AccessRecorder {
    pub fn new(log: Arc<AccessLog>) -> AccessRecorder {
        AccessRecorder { log }
    }

    /// To be called when the application has no more to say, before the exchange is told.
    pub fn note(
        &self,
        exchange: &mut Exchange,
        environ: Option<&Bound<'_, PyDict>>,
        client: IpAddr,
        id: Option<&[u8]>,
        ended: Ended,
    ) {
        let status = exchange.status();
        let (failed, status) = match ended {
            Ended::Badly(instead) if !exchange.head_sent() => (true, instead),
            Ended::Well | Ended::Badly(_) if status == 0 => (true, 500),
            Ended::Well | Ended::Badly(_) => (false, status),
        };
        if !self.log.wants(exchange.path(), status) {
            return;
        }
        let queued = exchange.begun().saturating_duration_since(exchange.ready_at());
        let facts = Facts {
            // These are known at the end.
            at_ms: 0,
            took_us: 0,
            bytes: 0,
            how: How::Complete,
            queued_us: u64::try_from(queued.as_micros()).unwrap_or(u64::MAX),
            status,
            is_http10: exchange.version() == Version::Http10,
            client,
        };
        let mut record = exchange.take_record();
        begin(&mut record, &facts, exchange.method(), exchange.target());
        for wanted in self.log.wanted() {
            match wanted {
                Wanted::RequestId => value(&mut record, id.into_iter()),
                Wanted::RequestHeader(name) => value(&mut record, named(exchange.fields(), name)),
                Wanted::ResponseHeader(_) if failed => value(&mut record, std::iter::empty()),
                Wanted::ResponseHeader(name) => value(&mut record, named(lines(exchange.answer_head()), name)),
                Wanted::Environ(name) => {
                    let text = environ.and_then(|environ| environ_text(environ, name));
                    value(&mut record, text.iter().map(String::as_bytes));
                }
            }
        }
        exchange.leave_record(record);
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
