//! Request heads (RFC 9112 sections 2 to 5): read at once if they came in one piece, else found line by line as bytes arrive
//! and then read.
//!
//! `Scanner` finds the head's end, looks at every byte once, and enforces what concerns lines: CRLF only, no
//! folding, the limits. Every bound is a position in the stream, so how the bytes were split changes nothing.
//! `Head` then reads the complete head with httparse and adds the checks that httparse leaves to its caller. A head that
//! came in one piece, as most do, is read without the scanner; if something is wrong with it, the scanner says what.

use std::mem::MaybeUninit;

use memchr::memchr2;

use super::framing::{Claims, Framing};
use super::refusal::{self, Refusal};
use super::{syntax, target, Version};

/// RFC 9112 section 2.2 asks to ignore at least one empty line before a request.
const BLANK_LINES_MAX: u32 = 2;

/// Fields whose parsing needs no allocation; the default limit is 100.
const FIELDS_ON_STACK: usize = 128;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Without its CRLF, as the next one. 414 above.
    pub request_line: usize,
    /// Name, colon and value of one field. 431 above, as for the next two.
    pub field_size: usize,
    pub fields: usize,
    /// From the first byte of the request line to the empty line.
    pub head: usize,
}

/// A range in the connection's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part`, a slice of `whole`, is in it.
    fn locate(whole: &[u8], part: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(part.is_empty() || start + part.len() <= whole.len());
        Span { start: start as u32, end: (start + part.len()) as u32 }
    }

    pub fn of<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    More,
    /// The head is `bytes[start..end]`, its empty line included.
    Complete {
        start: usize,
        end: usize,
    },
}

/// Looks for the end of a head in a buffer that grows at its end.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Where the request line begins: after empty lines.
    start: usize,
    /// Where the current line begins.
    line: usize,
    /// Up to here there is neither CR nor LF in the current line.
    seen: usize,
    blank_lines: u32,
    /// None: the current line is the request line.
    fields: Option<usize>,
}

impl Scanner {
    /// It has not looked at anything yet.
    fn is_fresh(&self) -> bool {
        self.line == 0 && self.seen == 0
    }

    /// Whether anything but empty lines has come.
    pub fn has_begun(&self, bytes: &[u8]) -> bool {
        bytes.len() > self.start
    }

    /// The request line, as far as it has come.
    pub fn request_line<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.start..).unwrap_or_default()
    }

    pub fn scan(&mut self, bytes: &[u8], limits: &Limits) -> Result<Scan, Refusal> {
        loop {
            let head_bound = self.start + limits.head;
            // A line that begins where the head must have ended is not looked at: that it is too long is known
            // before its first byte has come.
            if let Some(&first) = bytes.get(self.line).filter(|_| self.line < head_bound) {
                self.check_first(first)?;
            }
            let (line_limit, line_refusal) = match self.fields {
                None => (limits.request_line, refusal::REQUEST_LINE_LONG),
                Some(_) => (limits.field_size, refusal::FIELD_LONG),
            };
            let line_bound = self.line + line_limit + 2;
            let bound = line_bound.min(head_bound);
            let window = bytes.len().min(bound);
            let found = memchr2(b'\r', b'\n', bytes.get(self.seen..window).unwrap_or_default());
            // Of a CR at the end of what there is, only the next byte tells what it is.
            let end = found.map(|found| self.seen + found).filter(|&end| bytes[end] == b'\n' || end + 1 < window);
            let Some(end) = end else {
                if bytes.len() >= bound {
                    return Err(if line_bound <= head_bound { line_refusal } else { refusal::HEAD_LONG });
                }
                self.seen = found.map_or(window, |found| self.seen + found);
                return Ok(Scan::More);
            };
            match bytes[end..window] {
                [b'\r', b'\n', ..] => {}
                [b'\r', ..] => return Err(refusal::BARE_CR),
                _ => return Err(refusal::BARE_LF),
            }
            let line = &bytes[self.line..end];
            let next = end + 2;
            match self.fields {
                None if line.is_empty() => {
                    self.blank_lines += 1;
                    if self.blank_lines > BLANK_LINES_MAX {
                        return Err(refusal::BLANK_LINES);
                    }
                    self.start = next;
                }
                None => self.fields = Some(0),
                Some(_) if line.is_empty() => return Ok(Scan::Complete { start: self.start, end: next }),
                Some(count) if count == limits.fields => return Err(refusal::FIELDS_MANY),
                Some(count) => self.fields = Some(count + 1),
            }
            self.line = next;
            self.seen = next;
        }
    }

    /// What a line's first byte gives away, so that TLS on a plain port is answered at once.
    fn check_first(&self, first: u8) -> Result<(), Refusal> {
        match (self.fields, first) {
            (_, b'\r') => Ok(()),
            (_, b'\n') => Err(refusal::BARE_LF),
            (None, byte) if syntax::is_token_byte(byte) => Ok(()),
            (None, _) => Err(refusal::NOT_HTTP),
            (Some(_), b' ' | b'\t') => Err(refusal::FOLDED),
            (Some(_), byte) if syntax::is_token_byte(byte) => Ok(()),
            (Some(_), _) => Err(refusal::FIELD_NAME),
        }
    }
}

/// A head that was read. It owns no bytes: spans point into the buffer the head lies in.
#[derive(Clone, Debug)]
pub struct Head {
    pub version: Version,
    pub framing: Framing,
    /// The client would like the connection to stay (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// The client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    method: Span,
    target: Span,
    /// None: `/`, where the target has none.
    path: Option<Span>,
    query: Span,
    /// Of an absolute-form target without a Host field beside it (HTTP/1.0).
    host: Option<Span>,
    fields: Vec<(Span, Span)>,
    /// The last Host that was found valid: clients repeat theirs.
    known_host: Vec<u8>,
}

/// Longer ones are not kept.
const KNOWN_HOST_BYTES_MAX: usize = 64;

impl Default for Head {
    fn default() -> Self {
        Head {
            version: Version::Http11,
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            method: Span::default(),
            target: Span::default(),
            path: None,
            query: Span::default(),
            host: None,
            fields: Vec::new(),
            known_host: Vec::new(),
        }
    }
}

impl Head {
    /// Finds the head that `bytes` begin with, and reads it: where it starts and ends. None: it is not all there yet.
    pub fn find(
        &mut self,
        scanner: &mut Scanner,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Option<(usize, usize)>, Refusal> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if scanner.is_fresh() {
            if let Some(end) = self.read_at_once(bytes, limits) {
                return Ok(Some((0, end)));
            }
        }
        let Scan::Complete { start, end } = scanner.scan(bytes, limits)? else { return Ok(None) };
        self.read(bytes, start, end, limits)?;
        Ok(Some((start, end)))
    }

    /// Reads a head that is all there and of which a scanner would say nothing, and returns its end. None: a scanner has to
    /// say what it is. Never the other way round: nothing is accepted here that a scanner would not accept.
    fn read_at_once(&mut self, bytes: &[u8], limits: &Limits) -> Option<usize> {
        // So that nothing in it can be too long. Only the number of fields is left to be counted.
        let bound = limits.request_line.min(limits.field_size).min(limits.head);
        if bytes.len() > bound || limits.fields > FIELDS_ON_STACK {
            return None;
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
        let end = self.read_with(bytes, 0, &mut fields).ok()?;
        // httparse takes a bare LF for the end of a line too, and skips any number of empty lines.
        let begins_a_line = |(name, _): &(Span, Span)| bytes[..name.start as usize].ends_with(b"\r\n");
        let is_strict = self.method.start == 0
            && bytes[..end].ends_with(b"\r\n\r\n")
            && self.fields.len() <= limits.fields
            && self.fields.iter().all(begins_a_line);
        is_strict.then_some(end)
    }

    /// Reads the complete head that `bytes` begin with at `start` and end with at `end`. Spans are of `bytes`.
    pub fn read(&mut self, bytes: &[u8], start: usize, end: usize, limits: &Limits) -> Result<(), Refusal> {
        let whole = &bytes[..end];
        if limits.fields <= FIELDS_ON_STACK {
            let mut fields = [const { MaybeUninit::uninit() }; FIELDS_ON_STACK];
            self.read_with(whole, start, &mut fields)?;
        } else {
            let mut fields = vec![MaybeUninit::uninit(); limits.fields];
            self.read_with(whole, start, &mut fields)?;
        }
        Ok(())
    }

    /// And where it ends.
    fn read_with<'b>(
        &mut self,
        whole: &'b [u8],
        start: usize,
        storage: &mut [MaybeUninit<httparse::Header<'b>>],
    ) -> Result<usize, Refusal> {
        let bytes = &whole[start..];
        let mut request = httparse::Request::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, storage);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            // The scanner saw the empty line, so httparse took some line for something else.
            Ok(httparse::Status::Partial) => return Err(refusal::REQUEST_LINE),
            Err(error) => return Err(translate(error, bytes)),
        };
        let (Some(method), Some(uri), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(refusal::REQUEST_LINE);
        };
        let (method, uri) = (method.as_bytes(), uri.as_bytes());
        self.version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        self.method = Span::locate(whole, method);
        self.target = Span::locate(whole, uri);

        let mut claims = Claims::default();
        let mut connection = ConnectionOptions::default();
        let mut host = None;
        let mut has_type = false;
        let mut expect = Expect::Nothing;
        self.fields.clear();
        for field in request.headers.iter() {
            // httparse has checked every byte of both (`every_byte_of_a_field_is_judged` holds it to that).
            let (name, value) = (field.name.as_bytes(), field.value);
            let value = syntax::trim(value);
            match name.len() {
                4 if name.eq_ignore_ascii_case(b"host") => {
                    if host.replace(self.fields.len()).is_some() {
                        return Err(refusal::HOST_REPEATED);
                    }
                    // Empty: none is known, and none is valid.
                    if value.is_empty() || self.known_host != value {
                        if !target::is_host(value) {
                            return Err(refusal::HOST_INVALID);
                        }
                        self.known_host.clear();
                        if value.len() <= KNOWN_HOST_BYTES_MAX {
                            self.known_host.extend_from_slice(value);
                        }
                    }
                }
                6 if name.eq_ignore_ascii_case(b"expect") => expect.add(value),
                10 if name.eq_ignore_ascii_case(b"connection") => connection.add(value),
                // What the body is must not depend on who reads the fields (RFC 9110 section 5.3: no list).
                12 if name.eq_ignore_ascii_case(b"content-type") => {
                    if has_type {
                        return Err(refusal::TYPE_REPEATED);
                    }
                    has_type = true;
                }
                14 if name.eq_ignore_ascii_case(b"content-length") => claims.content_length(value)?,
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => claims.transfer_encoding(value),
                _ => {}
            }
            self.fields.push((Span::locate(whole, name), Span::locate(whole, value)));
        }

        // RFC 9112 section 3.2: HTTP/1.1 without Host is 400, also for absolute-form.
        if host.is_none() && self.version == Version::Http11 {
            return Err(refusal::HOST_MISSING);
        }
        let target = target::parse(method, uri)?;
        // The `*` of an absolute OPTIONS is not in the buffer; the target's end is as good as any place to say so.
        self.path = match target.path {
            Some(b"*") if uri != b"*" => Some(ASTERISK),
            Some(path) => Some(Span::locate(whole, path)),
            None => None,
        };
        self.query = if target.query.is_empty() { Span::default() } else { Span::locate(whole, target.query) };
        // Section 3.2.2: the target's authority replaces what Host says.
        self.host = target.authority.map(|authority| Span::locate(whole, authority));
        if let (Some(authority), Some(index)) = (self.host, host) {
            self.fields[index].1 = authority;
            self.host = None;
        }
        self.framing = claims.framing(self.version)?;
        self.keep_alive = connection.keeps_alive(self.version);
        self.expects_continue = match (expect, self.version) {
            // RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is ignored.
            (Expect::Nothing, _) | (_, Version::Http10) => false,
            (Expect::Continue, Version::Http11) => true,
            (Expect::Unknown, Version::Http11) => return Err(refusal::EXPECTATION),
        };
        Ok(start + length)
    }

    pub fn method<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.method.of(bytes)
    }

    pub fn target<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.target.of(bytes)
    }

    /// Still percent-encoded.
    pub fn path<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.path {
            None => b"/",
            Some(ASTERISK) => b"*",
            Some(span) => span.of(bytes),
        }
    }

    /// Without the `?`.
    pub fn query<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.query.of(bytes)
    }

    /// Field lines in order, values trimmed; Host is the authority that counts.
    pub fn fields<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let host = self.host.map(|authority| (&b"Host"[..], authority.of(bytes)));
        host.into_iter().chain(self.fields.iter().map(|(name, value)| (name.of(bytes), value.of(bytes))))
    }
}

/// Stands for a path that the buffer does not hold.
const ASTERISK: Span = Span { start: u32::MAX, end: u32::MAX };

#[cold]
fn translate(error: httparse::Error, bytes: &[u8]) -> Refusal {
    match error {
        httparse::Error::HeaderName => refusal::FIELD_NAME,
        httparse::Error::HeaderValue => refusal::FIELD_VALUE,
        httparse::Error::TooManyHeaders => refusal::FIELDS_MANY,
        httparse::Error::Version if names_a_version(bytes) => refusal::VERSION,
        // The scanner has checked every line's end, so NewLine is about what stands before it.
        httparse::Error::Token | httparse::Error::Version | httparse::Error::Status | httparse::Error::NewLine => {
            refusal::REQUEST_LINE
        }
    }
}

/// Whether the request line is well-formed and ends with `HTTP/` digit `.` digit: then 505 is the honest answer.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(_), Some(_), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

#[derive(Default)]
struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
}

impl ConnectionOptions {
    fn add(&mut self, value: &[u8]) {
        for option in syntax::list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112 section 9.3.
    fn keeps_alive(&self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }
}

#[derive(Clone, Copy)]
enum Expect {
    Nothing,
    Continue,
    Unknown,
}

impl Expect {
    fn add(&mut self, value: &[u8]) {
        *self = match (*self, value.eq_ignore_ascii_case(b"100-continue")) {
            (Expect::Nothing | Expect::Continue, true) => Expect::Continue,
            (Expect::Unknown, true) | (_, false) => Expect::Unknown,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { request_line: 100, field_size: 100, fields: 5, head: 400 }
    }

    fn read(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
        let mut head = Head::default();
        match Scanner::default().scan(bytes, &limits())? {
            Scan::More => Ok(None),
            Scan::Complete { start, end } => head.read(bytes, start, end, &limits()).map(|()| Some(head)),
        }
    }

    /// Names and values that httparse takes are not looked at again. It looks at short and long ones in different ways.
    #[test]
    fn every_byte_of_a_field_is_judged() {
        for length in [1, 7, 8, 15, 16, 31, 32, 33, 70] {
            for at in 0..length {
                for byte in 0..=255u8 {
                    let mut text = vec![b'x'; length];
                    text[at] = byte;
                    let name = [b"GET / HTTP/1.1\r\nHost: h\r\n", &text[..], b": v\r\n\r\n"].concat();
                    // A colon ends the name, and one has to stand before it.
                    let is_name = syntax::is_token_byte(byte) || (byte == b':' && at > 0);
                    assert_eq!(read(&name).is_ok(), is_name, "byte {byte:#x} at {at} of a name of {length}");
                    let value = [b"GET / HTTP/1.1\r\nHost: h\r\nn: ", &text[..], b"\r\n\r\n"].concat();
                    let is_value = syntax::is_value_byte(byte);
                    assert_eq!(read(&value).is_ok(), is_value, "byte {byte:#x} at {at} of a value of {length}");
                }
            }
        }
    }

    fn accepted(bytes: &[u8]) -> Head {
        read(bytes).unwrap_or_else(|refusal| panic!("{bytes:?}: {refusal:?}")).expect("complete")
    }

    #[test]
    fn a_plain_request() {
        let bytes = b"\r\nGET /a?b=c HTTP/1.1\r\nHost: h\r\nX: \t v w \t\r\nEmpty:\r\n\r\nrest";
        let head = accepted(bytes);
        assert_eq!(head.method(bytes), b"GET");
        assert_eq!(head.target(bytes), b"/a?b=c");
        assert_eq!(head.path(bytes), b"/a");
        assert_eq!(head.query(bytes), b"b=c");
        let fields: Vec<_> = head.fields(bytes).collect();
        assert_eq!(fields, [(&b"Host"[..], &b"h"[..]), (b"X", b"v w"), (b"Empty", b"")]);
        assert!(head.keep_alive);
        assert_eq!(head.framing, Framing::None);
    }

    #[test]
    fn the_targets_authority_replaces_host() {
        let bytes = b"GET http://a:1/p HTTP/1.1\r\nA: b\r\nHost: other\r\n\r\n";
        let head = accepted(bytes);
        assert_eq!(head.fields(bytes).collect::<Vec<_>>(), [(&b"A"[..], &b"b"[..]), (b"Host", b"a:1")]);
        let bytes = b"GET http://a HTTP/1.0\r\n\r\n";
        let head = accepted(bytes);
        assert_eq!(head.fields(bytes).collect::<Vec<_>>(), [(&b"Host"[..], &b"a"[..])]);
        assert_eq!(head.path(bytes), b"/");
        let bytes = b"OPTIONS http://a HTTP/1.0\r\n\r\n";
        assert_eq!(accepted(bytes).path(bytes), b"*");
    }

    #[test]
    fn keep_alive_by_version() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
        ] {
            assert_eq!(accepted(text.as_bytes()).keep_alive, expected, "{text}");
        }
    }

    #[test]
    fn expectations() {
        assert!(accepted(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n").expects_continue);
        assert!(!accepted(b"PUT / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
        assert!(!accepted(b"PUT / HTTP/1.0\r\nExpect: magic\r\n\r\n").expects_continue);
        assert_eq!(read(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: magic\r\n\r\n").err(), Some(refusal::EXPECTATION));
    }

    #[test]
    fn refused() {
        let with = |fields: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        let cases: Vec<(String, Refusal)> = vec![
            ("\x16\x03\x01".into(), refusal::NOT_HTTP),
            ("\r\n\r\n\r\n".into(), refusal::BLANK_LINES),
            ("\nGET / HTTP/1.1\r\n".into(), refusal::BARE_LF),
            ("GET / HTTP/1.1\n".into(), refusal::BARE_LF),
            ("GET / HTTP/1.1\r\nHost: h\n".into(), refusal::BARE_LF),
            ("GET / HTTP/1.1\r\r\n".into(), refusal::BARE_CR),
            (with("A: b\rc"), refusal::BARE_CR),
            (with("A: b\r\n c"), refusal::FOLDED),
            (with(" A: b"), refusal::FOLDED),
            (with("A : b"), refusal::FIELD_NAME),
            (with("A\u{e9}: b"), refusal::FIELD_NAME),
            (with(": b"), refusal::FIELD_NAME),
            (with("A b"), refusal::FIELD_NAME),
            (with("A"), refusal::FIELD_NAME),
            (with("A: \0"), refusal::FIELD_VALUE),
            (with("A: \x1b"), refusal::FIELD_VALUE),
            (with("A: \x7f"), refusal::FIELD_VALUE),
            ("GET / HTTP/2.0\r\nHost: h\r\n\r\n".into(), refusal::VERSION),
            ("GET / HTTP/1.2\r\nHost: h\r\n\r\n".into(), refusal::VERSION),
            ("GET / HTTP/1.10\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET / http/1.1\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET /\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET /  HTTP/1.1\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n".into(), refusal::REQUEST_LINE),
            ("GET a HTTP/1.1\r\nHost: h\r\n\r\n".into(), refusal::TARGET),
            ("CONNECT a:1 HTTP/1.1\r\nHost: h\r\n\r\n".into(), refusal::CONNECT),
            ("GET / HTTP/1.1\r\n\r\n".into(), refusal::HOST_MISSING),
            ("GET http://h/ HTTP/1.1\r\n\r\n".into(), refusal::HOST_MISSING),
            (with("Host: h"), refusal::HOST_REPEATED),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), refusal::HOST_INVALID),
            ("GET / HTTP/1.0\r\nHost: a b\r\n\r\n".into(), refusal::HOST_INVALID),
            (with("Content-Length: 1\r\nContent-Length: 1"), refusal::LENGTH_REPEATED),
            (with("Content-Type: a/b\r\nContent-Type: a/b"), refusal::TYPE_REPEATED),
            (with("Content-Length: 1x"), refusal::LENGTH_INVALID),
            (with("Content-Length: 1\r\nTransfer-Encoding: chunked"), refusal::LENGTH_AND_CODING),
            (format!("GET /{} HTTP/1.1\r\n", "a".repeat(87)), refusal::REQUEST_LINE_LONG),
            ("G".repeat(102), refusal::REQUEST_LINE_LONG),
            (with(&format!("A: {}", "b".repeat(98))), refusal::FIELD_LONG),
            (with(&"A: b\r\n".repeat(5)), refusal::FIELDS_MANY),
            (with(&format!("A: {}\r\n", "b".repeat(95)).repeat(4)), refusal::HEAD_LONG),
        ];
        for (text, expected) in cases {
            let bytes: Vec<u8> = text.chars().map(|c| c as u8).collect();
            assert_eq!(read(&bytes).err(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn limits_are_exact() {
        let line = format!("GET /{} HTTP/1.1", "a".repeat(100 - 14));
        assert_eq!(line.len(), 100);
        accepted(format!("{line}\r\nHost: h\r\n\r\n").as_bytes());
        accepted(format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "b".repeat(97)).as_bytes());
        accepted(format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(4)).as_bytes());
        assert!(matches!(read(&b"G".repeat(101)), Ok(None)));
    }
}
