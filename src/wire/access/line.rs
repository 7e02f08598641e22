//! From a record to its line. Whatever a client sends, it stays within its line and within its field: control bytes,
//! bytes beyond ASCII, quotation marks and backslashes are escaped, and blanks too where they would end a field.

use std::io::Write;

use crate::message::{AccessFormat, AccessPart, Atom};
use crate::{percent, timestamp};

use super::record::{Facts, How, Reader};

/// pipe(7): PIPE_BUF bytes are written to a pipe as one, also while others write to it. Longer values are cut, so
/// that every line can be.
pub const LINE_BYTES_MAX: usize = libc::PIPE_BUF;

/// To what a value is cut, escapes included: the first bound with which the line is short enough.
const VALUE_BOUNDS: [usize; 4] = [LINE_BYTES_MAX, 1024, 256, 64];

/// Where a value was cut.
const CUT: &[u8] = b"...";

/// Makes lines of one format.
pub struct Lines {
    format: AccessFormat,
    origin: Origin,
    /// The latest time, since many lines have the same second.
    time: (u64, String),
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub generation: u32,
    pub slot: u32,
    pub pid: u32,
}

/// Where a value stands decides what ends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Quoted,
    /// Between blanks.
    Bare,
    Json,
}

impl Lines {
    pub fn new(format: AccessFormat, origin: Origin) -> Lines {
        Lines { format, origin, time: (u64::MAX, String::new()) }
    }

    /// Appends the line of the next record. False: there is none.
    pub fn next(&mut self, records: &mut Reader<'_>, out: &mut Vec<u8>) -> bool {
        let Some((facts, method, target)) = records.next_record() else { return false };
        let start = out.len();
        let values = Reader(records.0);
        for bound in VALUE_BOUNDS {
            out.truncate(start);
            records.0 = values.0;
            let mut line = Line { facts: &facts, method, target, values: &mut *records, bound, out };
            match &self.format {
                AccessFormat::Json => line.json(self.origin),
                AccessFormat::Line(parts) => {
                    let second = facts.at_ms / 1000;
                    if self.time.0 != second {
                        self.time.0 = second;
                        self.time.1.clear();
                        timestamp::push_common_log(&mut self.time.1, second);
                    }
                    line.template(parts, &self.time.1, self.origin);
                }
            }
            if out.len() - start < LINE_BYTES_MAX {
                break;
            }
        }
        // A template of hundreds of atoms.
        out.truncate(start + LINE_BYTES_MAX - 1);
        out.push(b'\n');
        true
    }
}

struct Line<'a, 'r> {
    facts: &'a Facts,
    method: &'a [u8],
    target: &'a [u8],
    values: &'a mut Reader<'r>,
    bound: usize,
    out: &'a mut Vec<u8>,
}

impl Line<'_, '_> {
    fn template(&mut self, parts: &[AccessPart], time: &str, origin: Origin) {
        for part in parts {
            match part {
                AccessPart::Text(text) => self.out.extend_from_slice(text.as_bytes()),
                AccessPart::Atom { atom, quoted } => {
                    let place = if *quoted { Place::Quoted } else { Place::Bare };
                    self.atom(atom, place, time, origin);
                }
            }
        }
    }

    fn atom(&mut self, atom: &Atom, place: Place, time: &str, origin: Origin) {
        let Facts { took_us, bytes, queued_us, status, how, client, .. } = *self.facts;
        // What is no first line has no target.
        let target = if self.method.is_empty() { b"" } else { self.target };
        match atom {
            Atom::RemoteAddress if client.is_unspecified() => self.format(format_args!("-")),
            Atom::RemoteAddress => self.format(format_args!("{client}")),
            Atom::Identity => self.format(format_args!("-")),
            Atom::User => {
                let user = self.values.value().and_then(basic_user).unwrap_or_default();
                self.value(&user, place);
            }
            Atom::Time => self.out.extend_from_slice(time.as_bytes()),
            Atom::RequestLine if self.method.is_empty() => self.value(self.target, place),
            Atom::RequestLine => {
                let blank: &[u8] = if place == Place::Bare { b"\\x20" } else { b" " };
                self.value(self.method, place);
                self.out.extend_from_slice(blank);
                self.value(self.target, place);
                self.out.extend_from_slice(blank);
                self.out.extend_from_slice(self.protocol());
            }
            Atom::Method => self.value(self.method, place),
            Atom::Path => {
                let mut path = Vec::new();
                percent::decode(path_and_query(target).0, &mut path);
                self.value(&path, place);
            }
            Atom::Query => self.value(path_and_query(target).1, place),
            Atom::Protocol if self.method.is_empty() => self.value(b"", place),
            Atom::Protocol => self.out.extend_from_slice(self.protocol()),
            Atom::Status if status == 0 => self.format(format_args!("-")),
            Atom::Status => self.format(format_args!("{status}")),
            Atom::BytesOrDash if bytes == 0 => self.format(format_args!("-")),
            Atom::Bytes | Atom::BytesOrDash => self.format(format_args!("{bytes}")),
            Atom::Seconds => self.format(format_args!("{}", took_us / 1_000_000)),
            Atom::Milliseconds => self.format(format_args!("{}", took_us / 1000)),
            Atom::Microseconds => self.format(format_args!("{took_us}")),
            Atom::DecimalSeconds => self.format(format_args!("{}", Seconds(took_us))),
            Atom::Pid => self.format(format_args!("<{}>", origin.pid)),
            Atom::Queued => self.format(format_args!("{queued_us}")),
            Atom::Ended => self.format(format_args!("{}", word(how))),
            Atom::Generation => self.format(format_args!("{}", origin.generation)),
            Atom::Referer
            | Atom::UserAgent
            | Atom::RequestHeader(_)
            | Atom::ResponseHeader(_)
            | Atom::Environ(_)
            | Atom::RequestId => {
                let value = self.values.value().unwrap_or_default();
                self.value(value, place);
            }
        }
    }

    fn json(&mut self, origin: Origin) {
        let Facts { at_ms, took_us, bytes, queued_us, status, how, client, .. } = *self.facts;
        let mut time = String::with_capacity(32);
        timestamp::push(&mut time, at_ms / 1000, (at_ms % 1000) as u32);
        let (path, query) = path_and_query(self.target);
        self.format(format_args!("{{\"time\":\"{time}\""));
        let client = (!client.is_unspecified()).then(|| client.to_string());
        self.member("remote_addr", client.as_deref().map(str::as_bytes));
        let is_read = !self.method.is_empty();
        self.member("method", is_read.then_some(self.method));
        self.member("path", is_read.then_some(path));
        self.member("query", is_read.then_some(query));
        self.member("protocol", is_read.then(|| self.protocol()));
        if !is_read {
            self.member("request", Some(self.target).filter(|line| !line.is_empty()));
        }
        match status {
            0 => self.format(format_args!(",\"status\":null")),
            status => self.format(format_args!(",\"status\":{status}")),
        }
        self.format(format_args!(",\"bytes\":{bytes},\"duration_s\":{}", Seconds(took_us)));
        self.format(format_args!(",\"queued_s\":{},\"ended\":\"{}\"", Seconds(queued_us), word(how)));
        for name in ["host", "referer", "user_agent", "request_id"] {
            let value = self.values.value();
            self.member(name, value);
        }
        let Origin { generation, slot, pid } = origin;
        self.format(format_args!(",\"generation\":{generation},\"slot\":{slot},\"pid\":{pid}}}"));
    }

    fn member(&mut self, name: &str, value: Option<&[u8]>) {
        self.format(format_args!(",\"{name}\":"));
        match value {
            Some(value) => {
                self.out.push(b'"');
                self.escape(value, Place::Json);
                self.out.push(b'"');
            }
            None => self.out.extend_from_slice(b"null"),
        }
    }

    /// Nothing is a dash, as in every access log.
    fn value(&mut self, value: &[u8], place: Place) {
        if value.is_empty() {
            self.out.push(b'-');
        } else {
            self.escape(value, place);
        }
    }

    /// In JSON a byte beyond ASCII is the character of the same number, as in a WSGI environ; elsewhere `\xe9`, as in
    /// nginx.
    fn escape(&mut self, value: &[u8], place: Place) {
        let end = self.out.len() + self.bound;
        for byte in value {
            if self.out.len() >= end {
                self.out.extend_from_slice(CUT);
                return;
            }
            match (byte, place) {
                (b'"' | b'\\', Place::Json) => self.out.extend_from_slice(&[b'\\', *byte]),
                (b'"' | b'\\', Place::Quoted | Place::Bare) | (b' ', Place::Bare) => {
                    self.format(format_args!("\\x{byte:02x}"));
                }
                (0x20..=0x7e, _) => self.out.push(*byte),
                (_, Place::Json) => self.format(format_args!("\\u{byte:04x}")),
                (_, Place::Quoted | Place::Bare) => self.format(format_args!("\\x{byte:02x}")),
            }
        }
    }

    fn protocol(&self) -> &'static [u8] {
        if self.facts.is_http10 {
            b"HTTP/1.0"
        } else {
            b"HTTP/1.1"
        }
    }

    fn format(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a Vec cannot fail.
        let _ = self.out.write_fmt(text);
    }
}

fn word(how: How) -> &'static str {
    match how {
        How::Complete => "complete",
        How::ClientLeft => "client-left",
        How::WriteTimeout => "write-timeout",
        How::Cut => "cut",
        How::TimedOut => "request-timeout",
        How::WorkerDied => "worker-died",
        How::Refused => "refused",
    }
}

/// Microseconds as seconds.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Of the absolute-form only what stands behind the authority.
fn path_and_query(target: &[u8]) -> (&[u8], &[u8]) {
    let target = match target.windows(3).position(|three| three == b"://") {
        Some(at) if !target.starts_with(b"/") => {
            let rest = &target[at + 3..];
            let path = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
            path.map_or(&b"/"[..], |at| &rest[at..])
        }
        Some(_) | None => target,
    };
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, b""),
    }
}

/// The user of `Basic dXNlcjpwYXNzd29yZA==` (RFC 7617), never the password.
fn basic_user(authorization: &[u8]) -> Option<Vec<u8>> {
    let (scheme, credentials) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for digit in credentials.iter().filter(|byte| **byte != b' ').take_while(|byte| **byte != b'=') {
        bits = bits << 6 | u32::from(base64(*digit)?);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    decoded.truncate(colon);
    Some(decoded)
}

/// RFC 4648 section 4.
fn base64(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _other => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::{begin, value, wanted};
    use super::*;

    const ORIGIN: Origin = Origin { generation: 3, slot: 1, pid: 4711 };

    fn facts() -> Facts {
        let client = "192.0.2.1".parse().unwrap();
        let (queued_us, how) = (1_500, How::ClientLeft);
        let (at_ms, took_us) = (1_795_389_959_007, 1_234_567);
        Facts { at_ms, took_us, bytes: 42, queued_us, status: 200, how, is_http10: false, client }
    }

    fn line(format: AccessFormat, facts: &Facts, method: &[u8], target: &[u8], values: &[Option<&[u8]>]) -> String {
        assert_eq!(wanted(&format).len(), values.len());
        let mut records = Vec::new();
        begin(&mut records, facts, method, target);
        for one in values {
            value(&mut records, one.iter().copied());
        }
        let mut out = Vec::new();
        let mut reader = Reader(&records);
        let mut lines = Lines::new(format, ORIGIN);
        assert!(lines.next(&mut reader, &mut out) && !lines.next(&mut reader, &mut out));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.len() <= LINE_BYTES_MAX);
        text.trim_end().to_owned()
    }

    fn atoms(atoms: &[(Atom, bool)]) -> AccessFormat {
        let mut parts = Vec::new();
        for (atom, quoted) in atoms {
            parts.push(AccessPart::Atom { atom: atom.clone(), quoted: *quoted });
            parts.push(AccessPart::Text("|".to_owned()));
        }
        AccessFormat::Line(parts)
    }

    #[test]
    fn every_atom() {
        let all = atoms(&[
            (Atom::RemoteAddress, false),
            (Atom::Identity, false),
            (Atom::User, false),
            (Atom::Time, false),
            (Atom::RequestLine, true),
            (Atom::Method, false),
            (Atom::Path, true),
            (Atom::Query, false),
            (Atom::Protocol, false),
            (Atom::Status, false),
            (Atom::Bytes, false),
            (Atom::BytesOrDash, false),
            (Atom::Referer, true),
            (Atom::UserAgent, true),
            (Atom::Seconds, false),
            (Atom::Milliseconds, false),
            (Atom::Microseconds, false),
            (Atom::DecimalSeconds, false),
            (Atom::Pid, false),
            (Atom::Queued, false),
            (Atom::Ended, false),
            (Atom::Generation, false),
            (Atom::RequestHeader("x".to_owned()), true),
            (Atom::ResponseHeader("y".to_owned()), true),
            (Atom::Environ("z".to_owned()), true),
        ]);
        let values: [Option<&[u8]>; 6] =
            [Some(b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), Some(b"http://a/"), None, Some(b"i"), Some(b"o"), Some(b"e")];
        assert_eq!(
            line(all, &facts(), b"GET", b"/a%20b?c=%0a", &values),
            "192.0.2.1|-|Aladdin|[22/Nov/2026:23:25:59 +0000]|GET /a%20b?c=%0a HTTP/1.1|GET|/a b|c=%0a|HTTP/1.1|200|42|42|\
             http://a/|-|1|1234|1234567|1.234567|<4711>|1500|client-left|3|i|o|e|"
        );
        let nothing = Facts { bytes: 0, is_http10: true, ..facts() };
        let some = atoms(&[(Atom::BytesOrDash, false), (Atom::Bytes, false), (Atom::Protocol, false)]);
        assert_eq!(line(some, &nothing, b"GET", b"/", &[]), "-|0|HTTP/1.0|");
    }

    #[test]
    fn a_request_without_a_first_line_has_a_line() {
        let refused = Facts { status: 400, how: How::Refused, ..facts() };
        let all = || {
            let bare = [Atom::Method, Atom::Path, Atom::Query, Atom::Protocol, Atom::Status, Atom::Ended];
            let bare = bare.into_iter().map(|atom| (atom, false));
            atoms(&[(Atom::RequestLine, true)].into_iter().chain(bare).collect::<Vec<_>>())
        };
        assert_eq!(line(all(), &refused, b"", b"\x16\x03 x", &[]), "\\x16\\x03 x|-|-|-|-|400|refused|");
        assert_eq!(line(all(), &refused, b"", b"", &[]), "-|-|-|-|-|400|refused|");
        let json = |target| line(AccessFormat::Json, &refused, b"", target, &[None; 4]);
        let nothing = "\"method\":null,\"path\":null,\"query\":null,\"protocol\":null,";
        assert!(
            json(b"\x16").contains(&format!("{nothing}\"request\":\"\\u0016\",\"status\":400")),
            "{}",
            json(b"\x16")
        );
        assert!(json(b"").contains(&format!("{nothing}\"request\":null,\"status\":400")), "{}", json(b""));
        assert!(!line(AccessFormat::Json, &facts(), b"GET", b"/", &[None; 4]).contains("\"request\":"));
    }

    #[test]
    fn nothing_that_a_client_sends_leaves_its_field() {
        let quoted = atoms(&[(Atom::UserAgent, true), (Atom::Path, true)]);
        let evil = b"a\" \\ \x00\x07\x7f\xe9\xff b";
        assert_eq!(
            line(quoted, &facts(), b"GET", b"/%0a%22%0d%C3%A9", &[Some(evil)]),
            "a\\x22 \\x5c \\x00\\x07\\x7f\\xe9\\xff b|/\\x0a\\x22\\x0d\\xc3\\xa9|"
        );
        let bare = atoms(&[(Atom::User, false), (Atom::Path, false), (Atom::RequestLine, false)]);
        assert_eq!(
            line(bare, &facts(), b"GET", b"/a%20-%20b", &[Some(b"basic YSAtIFtiOmM=")]),
            "a\\x20-\\x20[b|/a\\x20-\\x20b|GET\\x20/a%20-%20b\\x20HTTP/1.1|"
        );
        let json = line(
            AccessFormat::Json,
            &facts(),
            b"GET",
            b"/\xe9\"?q=\\",
            &[Some(b"h"), None, Some(b"x\x1b[0m\xff"), None],
        );
        assert_eq!(
            json,
            "{\"time\":\"2026-11-22T23:25:59.007Z\",\"remote_addr\":\"192.0.2.1\",\"method\":\"GET\",\
             \"path\":\"/\\u00e9\\\"\",\"query\":\"q=\\\\\",\"protocol\":\"HTTP/1.1\",\"status\":200,\"bytes\":42,\
             \"duration_s\":1.234567,\"queued_s\":0.001500,\"ended\":\"client-left\",\"host\":\"h\",\"referer\":null,\"user_agent\":\"x\\u001b[0m\\u00ff\",\
             \"request_id\":null,\"generation\":3,\"slot\":1,\"pid\":4711}"
        );
    }

    #[test]
    fn long_values_are_cut_and_the_line_stays_whole() {
        let long = [b'\xff'; 4096];
        let json = line(AccessFormat::Json, &facts(), b"GET", &long, &[Some(&long), Some(&long), Some(b"agent"), None]);
        assert!(
            json.ends_with("\"user_agent\":\"agent\",\"request_id\":null,\"generation\":3,\"slot\":1,\"pid\":4711}"),
            "{json}"
        );
        assert_eq!(json.matches("...\"").count(), 3, "{json}");
        let many = atoms(&vec![(Atom::UserAgent, true); 300]);
        let values = vec![Some(&long[..]); 300];
        assert_eq!(line(many, &facts(), b"GET", b"/", &values).len(), LINE_BYTES_MAX - 1);
        // A long URL alone is whole.
        let target = [&b"/"[..], &[b'x'; 3000]].concat();
        let request = line(atoms(&[(Atom::RequestLine, true)]), &facts(), b"GET", &target, &[]);
        assert_eq!(request.len(), target.len() + "GET  HTTP/1.1|".len());
    }

    #[test]
    fn users_and_targets_that_are_none() {
        for none in [&b""[..], b"Basic", b"Bearer abcdef", b"Basic ****", b"Basic YWJj"] {
            assert_eq!(basic_user(none), None, "{none:?}");
        }
        let cases: [(&[u8], &[u8], &[u8]); 6] = [
            (b"/a?b?c", b"/a", b"b?c"),
            (b"*", b"*", b""),
            (b"http://h/p?q", b"/p", b"q"),
            (b"http://h", b"/", b""),
            (b"http://h?q", b"", b"q"),
            (b"/r?to=http://h/", b"/r", b"to=http://h/"),
        ];
        for (target, path, query) in cases {
            assert_eq!(path_and_query(target), (path, query));
        }
    }
}
