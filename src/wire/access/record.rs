//! A finished request as it is kept until its line is written: plain bytes one behind the other, so that keeping one
//! costs an app thread a copy and nothing else. Lines are made of them later, on another thread (`line`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::message::{AccessFormat, AccessPart, Atom};
use crate::scoreboard::Running;

/// Of one value; a line has no room for more (`line::LINE_BYTES_MAX`).
const VALUE_BYTES_MAX: usize = 4096;

/// Stands for the length of a value that is not there.
const ABSENT: u32 = u32::MAX;

/// How the answer to a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// All of it was handed to the kernel.
    Complete,
    ClientLeft,
    WriteTimeout,
    /// The application failed after the head had gone out.
    Cut,
    /// It took too long, and the client was answered in place of the application.
    TimedOut,
    /// Its worker was killed, or died, before the answer had ended.
    WorkerDied,
    /// The server has refused it, and the application has not seen it.
    Refused,
}

/// What every record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When the answer had ended, in milliseconds of Unix.
    pub at_ms: u64,
    /// Since the request was there.
    pub took_us: u64,
    /// Of the body, as far as they went out.
    pub bytes: u64,
    /// How long it waited for a thread.
    pub queued_us: u64,
    /// 0: it has none, or none that is known.
    pub status: u16,
    pub how: How,
    pub is_http10: bool,
    /// Unspecified: not known.
    pub client: IpAddr,
}

/// What a format needs besides the facts, the method and the target, in the order of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Names are in lower case.
    RequestHeader(String),
    ResponseHeader(String),
    Environ(String),
    RequestId,
}

pub fn wanted(format: &AccessFormat) -> Vec<Wanted> {
    let request = |name: &str| Some(Wanted::RequestHeader(name.to_owned()));
    let of_atom = |atom: &Atom| match atom {
        Atom::User => request("authorization"),
        Atom::Referer => request("referer"),
        Atom::UserAgent => request("user-agent"),
        Atom::RequestHeader(name) => request(name),
        Atom::ResponseHeader(name) => Some(Wanted::ResponseHeader(name.clone())),
        Atom::Environ(name) => Some(Wanted::Environ(name.clone())),
        Atom::RequestId => Some(Wanted::RequestId),
        Atom::RemoteAddress
        | Atom::Identity
        | Atom::Time
        | Atom::RequestLine
        | Atom::Method
        | Atom::Path
        | Atom::Query
        | Atom::Protocol
        | Atom::Status
        | Atom::Bytes
        | Atom::BytesOrDash
        | Atom::Seconds
        | Atom::Milliseconds
        | Atom::Microseconds
        | Atom::DecimalSeconds
        | Atom::Queued
        | Atom::Ended
        | Atom::Generation
        | Atom::Pid => None,
    };
    match format {
        AccessFormat::Json => {
            let fields = ["host", "referer", "user-agent"].into_iter().filter_map(request);
            fields.chain([Wanted::RequestId]).collect()
        }
        AccessFormat::Line(parts) => {
            let atoms = parts.iter().filter_map(|part| match part {
                AccessPart::Text(_) => None,
                AccessPart::Atom { atom, .. } => Some(atom),
            });
            atoms.filter_map(of_atom).collect()
        }
    }
}

/// What is known of an answer only at its end.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub at_ms: u64,
    pub took_us: u64,
    pub bytes: u64,
    pub how: How,
}

/// Where in a record `how` stands: behind four numbers and the status.
const HOW_AT: usize = 4 * 8 + 2;

/// Begins the record of a request of which its app thread cannot tell: what the scoreboard knows of it. All other values are
/// absent.
pub fn begin_running(record: &mut Vec<u8>, running: &Running, status: u16, wanted: &[Wanted]) {
    let facts = Facts {
        // These are known at the end.
        at_ms: 0,
        took_us: 0,
        bytes: 0,
        how: How::Complete,
        queued_us: running.queued_us,
        status,
        is_http10: running.is_http10,
        client: running.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    begin(record, &facts, running.method(), running.path());
    for wanted in wanted {
        let id = Some(running.id.as_bytes()).filter(|id| *wanted == Wanted::RequestId && !id.is_empty());
        value(record, id.into_iter());
    }
}

/// The end of a request whose record was begun before.
pub fn end(record: &mut [u8], end: End) {
    for (place, number) in record.chunks_exact_mut(8).zip([end.at_ms, end.took_us, end.bytes]) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    if let Some(how) = record.get_mut(HOW_AT) {
        *how = code(end.how);
    }
}

fn code(how: How) -> u8 {
    match how {
        How::Complete => 0,
        How::ClientLeft => 1,
        How::WriteTimeout => 2,
        How::Cut => 3,
        How::TimedOut => 4,
        How::WorkerDied => 5,
        How::Refused => 6,
    }
}

fn decode(code: u8) -> How {
    match code {
        1 => How::ClientLeft,
        2 => How::WriteTimeout,
        3 => How::Cut,
        4 => How::TimedOut,
        5 => How::WorkerDied,
        6 => How::Refused,
        _complete => How::Complete,
    }
}

/// Begins a record. Its values follow, one for each of `wanted`. Without a method the request's first line is none, and
/// stands in `target` as far as it has come.
pub fn begin(record: &mut Vec<u8>, facts: &Facts, method: &[u8], target: &[u8]) {
    for number in [facts.at_ms, facts.took_us, facts.bytes, facts.queued_us] {
        record.extend_from_slice(&number.to_ne_bytes());
    }
    record.extend_from_slice(&facts.status.to_ne_bytes());
    record.push(code(facts.how));
    record.push(u8::from(facts.is_http10));
    let address = match facts.client {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    record.extend_from_slice(&address.octets());
    value(record, std::iter::once(method));
    value(record, std::iter::once(target));
}

/// Adds a value, several of a name joined as RFC 9110 section 5.3 has it; none: it is absent.
pub fn value<'a>(record: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    let start = record.len();
    record.extend_from_slice(&ABSENT.to_ne_bytes());
    let first = record.len();
    let mut present = false;
    for value in values {
        if present {
            record.extend_from_slice(b", ");
        }
        present = true;
        let room = (first + VALUE_BYTES_MAX).saturating_sub(record.len());
        record.extend_from_slice(&value[..value.len().min(room)]);
    }
    if present {
        let length = (record.len() - first) as u32;
        record[start..first].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Takes records apart.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The facts, method and target of the next record; None at the end.
    pub fn next_record(&mut self) -> Option<(Facts, &'a [u8], &'a [u8])> {
        let (at_ms, took_us, bytes, queued_us) = (self.number()?, self.number()?, self.number()?, self.number()?);
        let status = u16::from_ne_bytes(self.take(2)?.try_into().ok()?);
        let how = decode(*self.take(1)?.first()?);
        let is_http10 = self.take(1)? == [1];
        let octets: [u8; 16] = self.take(16)?.try_into().ok()?;
        let client = IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
        let facts = Facts { at_ms, took_us, bytes, queued_us, status, how, is_http10, client };
        Some((facts, self.value().unwrap_or_default(), self.value().unwrap_or_default()))
    }

    /// The next of the record's values; None: it is absent.
    pub fn value(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_ne_bytes(self.take(4)?.try_into().ok()?);
        if length == ABSENT {
            return None;
        }
        self.take(length as usize)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out() {
        let mut records = Vec::new();
        for client in ["192.0.2.1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let how = How::Complete;
            let facts =
                Facts { at_ms: 0, took_us: 0, bytes: 0, queued_us: 4, status: 200, how, is_http10: true, client };
            let start = records.len();
            begin(&mut records, &facts, b"GET", b"/x");
            end(&mut records[start..], End { at_ms: 1, took_us: 2, bytes: 3, how: How::WriteTimeout });
            value(&mut records, [&b"a"[..], b"b"].into_iter());
            value(&mut records, std::iter::empty());
            value(&mut records, std::iter::once(&b""[..]));
            value(&mut records, std::iter::once(&[b'x'; 10_000][..]));
        }
        let mut reader = Reader(&records);
        for _ in 0..2 {
            let (facts, method, target) = reader.next_record().unwrap();
            assert_eq!((facts.at_ms, facts.took_us, facts.bytes, facts.queued_us), (1, 2, 3, 4));
            assert_eq!(facts.how, How::WriteTimeout);
            assert_eq!((facts.status, facts.is_http10, method, target), (200, true, &b"GET"[..], &b"/x"[..]));
            assert!(["192.0.2.1", "2001:db8::1"].contains(&facts.client.to_string().as_str()));
            assert_eq!(reader.value(), Some(&b"a, b"[..]));
            assert_eq!(reader.value(), None);
            assert_eq!(reader.value(), Some(&b""[..]));
            assert_eq!(reader.value().unwrap().len(), VALUE_BYTES_MAX);
        }
        assert!(reader.next_record().is_none());
    }
}
