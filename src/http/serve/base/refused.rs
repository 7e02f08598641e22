//! What can be told of a request that the server refuses: the application never sees it, and its bytes may be no head at
//! all. It reads nothing and decides nothing.

use std::time::Duration;

use crate::proto::head::Head;
use crate::proto::Version;

use super::address::Peer;

/// How much is kept of a first line that is no request line.
const LINE_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no request, is too large, or is too late.
    Unfit,
    /// The service is paused for a maintenance, and the request may be as good as any.
    Maintenance,
}

#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    pub why: Why,
    pub status: u16,
    pub peer: &'a Peer,
    /// What a proxy of ours calls it.
    pub id: Option<&'a [u8]>,
    /// How long it has waited for a thread.
    pub waited: Duration,
    pub head: ReadSoFar<'a>,
}

/// How much of a head could be read.
#[derive(Clone, Copy, Debug)]
pub enum ReadSoFar<'a> {
    /// All of it; the bytes are those that it was read from.
    Head(&'a Head, &'a [u8]),
    /// Its first line, as far as it has come.
    Line(&'a [u8]),
}

/// Empty method: the request's first line is none, and stands in `target` as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstLine<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub version: Version,
}

impl<'a> Refused<'a> {
    pub fn first_line(&self) -> FirstLine<'a> {
        match self.head {
            ReadSoFar::Head(head, bytes) => {
                FirstLine { method: head.method(bytes), target: head.target(bytes), version: head.version }
            }
            ReadSoFar::Line(line) => split(line),
        }
    }

    /// Still percent-encoded; empty: not known.
    pub fn path(&self) -> &'a [u8] {
        match self.head {
            ReadSoFar::Head(head, bytes) => head.path(bytes),
            ReadSoFar::Line(line) => {
                let line = split(line);
                let target = if line.method.is_empty() { b"" } else { line.target };
                target.split(|byte| *byte == b'?').next().unwrap_or_default()
            }
        }
    }

    /// None where the head could not be read.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let head = match self.head {
            ReadSoFar::Head(head, bytes) => Some((head, bytes)),
            ReadSoFar::Line(_) => None,
        };
        head.into_iter().flat_map(|(head, bytes)| head.fields(bytes))
    }
}

/// `bytes` begin with a line. It is taken apart where it is whole and of the form that RFC 9112 section 3 has.
fn split(bytes: &[u8]) -> FirstLine<'_> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let mut words = line.split(|byte| *byte == b' ');
    let three = (words.next(), words.next(), words.next(), words.next());
    let version = |word: &[u8]| match word {
        b"HTTP/1.1" => Some(Version::Http11),
        b"HTTP/1.0" => Some(Version::Http10),
        _other => None,
    };
    if let (Some(method), Some(target), Some(protocol), None) = three {
        if let Some(version) = version(protocol).filter(|_| end.is_some() && !method.is_empty() && !target.is_empty()) {
            return FirstLine { method, target, version };
        }
    }
    FirstLine { method: b"", target: &line[..line.len().min(LINE_BYTES_MAX)], version: Version::Http11 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_is_taken_apart_or_left_as_it_is() {
        let none = |target| FirstLine { method: b"", target, version: Version::Http11 };
        let whole = |version| FirstLine { method: b"GET", target: b"/a?b", version };
        let long = [b'x'; 5000];
        let cases: [(&[u8], FirstLine<'_>); 9] = [
            (b"GET /a?b HTTP/1.1\r\nHost", whole(Version::Http11)),
            (b"GET /a?b HTTP/1.0\n", whole(Version::Http10)),
            (b"GET /a?b HTTP/1.1", none(b"GET /a?b HTTP/1.1")),
            (b"GET /a?b HTTP/2.0\r\n", none(b"GET /a?b HTTP/2.0")),
            (b"GET /a b HTTP/1.1\r\n", none(b"GET /a b HTTP/1.1")),
            (b"GET  HTTP/1.1\r\n", none(b"GET  HTTP/1.1")),
            (b"\x16\x03\x01\x02", none(b"\x16\x03\x01\x02")),
            (b"\r\n", none(b"")),
            (&long, none(&long[..LINE_BYTES_MAX])),
        ];
        for (bytes, expected) in cases {
            assert_eq!(split(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
