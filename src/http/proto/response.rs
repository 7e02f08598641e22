//! The head of a response: what the application says is checked (CVE-2018-1000164: CR, LF, NUL or a name that is
//! no token is a logged 500, nothing of it is sent), and framing is decided in this one place.

use super::{date, syntax, Version};

/// RFC 9110 section 7.6.1 and PEP 3333, "hop-by-hop": they are the server's business.
const HOP_BY_HOP: [&[u8]; 9] = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// What of the request decides how its answer is framed.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub version: Version,
    /// The method is HEAD.
    pub head: bool,
    /// The connection may stay: the client wants it and the server does.
    pub keep_alive: bool,
}

/// How the body's end is told (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body goes out, whatever the application writes.
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// The status line and the application's fields as bytes, ready but for the fields that are the server's.
#[derive(Clone, Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
    /// 0: not said yet, or not to the end.
    status: u16,
    /// The status of a head that is being said.
    begun: u16,
    length: Option<u64>,
    has_date: bool,
    has_server: bool,
    /// The application wants the connection to end.
    says_close: bool,
}

/// What became of a field of the application's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Kept,
    /// It says nothing that an application may decide, and harms nobody: `Connection: keep-alive`, which examples of event
    /// streams and hand-written proxies send.
    Dropped,
}

impl Head {
    /// 0 before `set`.
    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn is_set(&self) -> bool {
        self.status != 0
    }

    pub fn length(&self) -> Option<u64> {
        self.length
    }

    pub fn declare_length(&mut self, length: u64) {
        self.length = Some(length);
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.status = 0;
        self.begun = 0;
        self.length = None;
        self.has_date = false;
        self.has_server = false;
        self.says_close = false;
    }

    /// Takes the application's status (`200 OK`) and fields. On an error the head is empty again.
    pub fn set(&mut self, status: &[u8], fields: &[(&[u8], &[u8])]) -> Result<(), String> {
        self.begin(status)?;
        for (name, value) in fields {
            self.add(name, value)?;
        }
        self.end();
        Ok(())
    }

    /// `set` in steps: the status, what was said before is forgotten. It counts from `end` on.
    pub fn begin(&mut self, status: &[u8]) -> Result<(), String> {
        self.clear();
        let shown = || String::from_utf8_lossy(status).into_owned();
        let (code, reason) = status.split_at(status.len().min(3));
        let code = code
            .iter()
            .try_fold(0u16, |code, digit| digit.is_ascii_digit().then(|| code * 10 + u16::from(digit - b'0')));
        let code = match code {
            Some(code @ 200..=999) => code,
            Some(100..=199) => return Err(format!("status {:?}: an interim answer cannot be the last", shown())),
            Some(_) | None => return Err(format!("status {:?} is not three digits and a reason", shown())),
        };
        if !(reason.is_empty() || reason[0] == b' ') || !syntax::is_value(reason) {
            return Err(format!("status {:?} is not three digits and a reason", shown()));
        }
        self.bytes.extend_from_slice(b"HTTP/1.1 ");
        self.bytes.extend_from_slice(status);
        // RFC 9112 section 4: the space is there even without a reason.
        if reason.is_empty() {
            self.bytes.push(b' ');
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.begun = code;
        Ok(())
    }

    /// All fields were said.
    pub fn end(&mut self) {
        self.status = self.begun;
    }

    /// A field of ours, which the application may have set in its own way. It was checked before.
    pub fn add_missing(&mut self, name: &[u8], value: &[u8]) {
        let mut lines = self.bytes.split(|byte| *byte == b'\n');
        let is_there = lines.any(|line| {
            line.split_at_checked(name.len())
                .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(name) && rest.starts_with(b":"))
        });
        if !is_there {
            for part in [name, b": ", value, b"\r\n"] {
                self.bytes.extend_from_slice(part);
            }
        }
    }

    /// One of the application's fields. On an error the head is empty again.
    pub fn add(&mut self, name: &[u8], value: &[u8]) -> Result<Added, String> {
        self.try_add(name, value).inspect_err(|_| self.clear())
    }

    fn try_add(&mut self, name: &[u8], value: &[u8]) -> Result<Added, String> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        check_field(name, value)?;
        // Of the lengths that those names have; most others have another.
        let may_hop = matches!(name.len(), 2 | 7 | 10 | 16..=19);
        if may_hop && HOP_BY_HOP.iter().any(|hop| name.eq_ignore_ascii_case(hop)) {
            if self.says_nothing(name, value) {
                return Ok(Added::Dropped);
            }
            return Err(format!("header {}: hop-by-hop headers are the server's (PEP 3333)", shown()));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.length.is_some() {
                return Err("more than one Content-Length header".to_string());
            }
            let length = syntax::length(syntax::trim(value));
            self.length = Some(length.ok_or_else(|| format!("Content-Length {:?}", String::from_utf8_lossy(value)))?);
            // Written by `complete`, which knows whether it may be there.
            return Ok(Added::Kept);
        }
        self.has_date |= name.eq_ignore_ascii_case(b"date");
        self.has_server |= name.eq_ignore_ascii_case(b"server");
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(b": ");
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        Ok(Added::Kept)
    }

    /// Whether a hop-by-hop field leaves everything as it is. That the connection shall end is heard, since it harms nobody
    /// else; what would change the framing, or announces another protocol, is not.
    fn says_nothing(&mut self, name: &[u8], value: &[u8]) -> bool {
        if name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"proxy-connection") {
            return true;
        }
        let options = || value.split(|byte| *byte == b',').map(syntax::trim);
        let is_close = |option: &[u8]| option.eq_ignore_ascii_case(b"close");
        let says_nothing = name.eq_ignore_ascii_case(b"connection")
            && options().all(|option| is_close(option) || option.eq_ignore_ascii_case(b"keep-alive"));
        self.says_close |= says_nothing && options().any(is_close);
        says_nothing
    }

    /// Decides the framing and adds the server's fields and the empty line. `whole` is the body's length where
    /// all of it is there already. Returns whether the connection stays.
    pub fn complete(&mut self, asked: Asked, whole: Option<u64>, date: &[u8; date::LENGTH]) -> (Framing, bool) {
        let bodiless = matches!(self.status, 204 | 205 | 304);
        let framing = match (bodiless || asked.head, self.length.or(whole), asked.version) {
            (true, _, _) => Framing::None,
            (false, Some(length), _) => Framing::Length(length),
            (false, None, Version::Http11) => Framing::Chunked,
            (false, None, Version::Http10) => Framing::UntilClose,
        };
        let keep = asked.keep_alive && framing != Framing::UntilClose && !self.says_close;
        let length = match (self.status, asked.head) {
            // RFC 9110 section 8.6: never in 204.
            (204, _) => None,
            // RFC 9110 section 15.3.6: there is no content. Framing, unlike for 204, does not tell that (RFC 9112 section 6.3).
            (205, _) => Some(0),
            // In 304 and in answers to HEAD it is the length that GET would have had: only the application
            // knows it, and an empty body does not tell.
            (304, _) => self.length,
            (_, true) => self.length.or(whole.filter(|&length| length > 0)),
            (_, false) => self.length.or(whole),
        };
        if let Some(length) = length {
            self.bytes.extend_from_slice(b"Content-Length: ");
            push_decimal(&mut self.bytes, length);
            self.bytes.extend_from_slice(b"\r\n");
        }
        if framing == Framing::Chunked {
            self.bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if !keep {
            self.bytes.extend_from_slice(b"Connection: close\r\n");
        } else if asked.version == Version::Http10 {
            self.bytes.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        if !self.has_date {
            self.bytes.extend_from_slice(b"Date: ");
            self.bytes.extend_from_slice(date);
            self.bytes.extend_from_slice(b"\r\n");
        }
        if !self.has_server {
            self.bytes.extend_from_slice(b"Server: forkmaster\r\n");
        }
        self.bytes.extend_from_slice(b"\r\n");
        (framing, keep)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The head and a small body in one piece, for as long as `send` runs.
    pub fn with_body<T>(&mut self, body: &[u8], send: impl FnOnce(&[u8]) -> T) -> T {
        let end = self.bytes.len();
        self.bytes.extend_from_slice(body);
        let outcome = send(&self.bytes);
        self.bytes.truncate(end);
        outcome
    }

    /// The memory of a head that was cleared.
    pub fn memory(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.bytes.is_empty(), "somebody needs it");
        &mut self.bytes
    }

    /// Large heads (many cookies) are given back to the allocator.
    pub fn shrink(&mut self, bytes_max: usize) {
        if self.bytes.capacity() > bytes_max {
            self.bytes.clear();
            self.bytes.shrink_to(bytes_max);
        }
    }
}

fn check_field(name: &[u8], value: &[u8]) -> Result<(), String> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    if !syntax::is_token(name) {
        return Err(format!("header name {:?} is not a token", shown()));
    }
    if !syntax::is_value(value) {
        return Err(format!("header {}: control character in {:?}", shown(), String::from_utf8_lossy(value)));
    }
    Ok(())
}

/// An answer that comes before the answer (103, RFC 8297): fields for a client that can begin with them.
#[derive(Debug)]
pub struct EarlyHints(Vec<u8>);

impl EarlyHints {
    pub fn begin() -> EarlyHints {
        EarlyHints(b"HTTP/1.1 103 Early Hints\r\n".to_vec())
    }

    pub fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        check_field(name, value)?;
        let framing: [&[u8]; 1] = [b"content-length"];
        if HOP_BY_HOP.iter().chain(&framing).any(|other| name.eq_ignore_ascii_case(other)) {
            return Err(format!("header {}: not in an interim answer", String::from_utf8_lossy(name)));
        }
        for part in [name, b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
        Ok(())
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

fn push_decimal(bytes: &mut Vec<u8>, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    bytes.extend_from_slice(&digits[at..]);
}

/// A chunk's size line.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLine {
    bytes: [u8; 18],
    start: usize,
}

impl ChunkLine {
    pub fn new(length: usize) -> ChunkLine {
        let mut bytes = *b"0000000000000000\r\n";
        let mut start = 16;
        let mut rest = length as u64;
        loop {
            start -= 1;
            bytes[start] = b"0123456789abcdef"[(rest & 15) as usize];
            rest >>= 4;
            if rest == 0 {
                break;
            }
        }
        ChunkLine { bytes, start }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8; date::LENGTH] = b"Thu, 01 Jan 1970 00:00:00 GMT";
    const ASKED: Asked = Asked { version: Version::Http11, head: false, keep_alive: true };

    fn framed(status: &str, fields: &[(&[u8], &[u8])], asked: Asked, whole: Option<u64>) -> (Framing, bool, String) {
        let mut head = Head::default();
        head.set(status.as_bytes(), fields).expect("valid");
        let (framing, keep) = head.complete(asked, whole, DATE);
        (framing, keep, String::from_utf8(head.bytes().to_vec()).expect("text"))
    }

    #[test]
    fn framing_is_decided_here() {
        let http10 = Asked { version: Version::Http10, ..ASKED };
        let to_head = Asked { head: true, ..ASKED };
        let length: &[(&[u8], &[u8])] = &[(b"content-length", b"5")];
        let cases = [
            ("200 OK", length, ASKED, None, Framing::Length(5), true, "Content-Length: 5"),
            ("200 OK", &[], ASKED, Some(3), Framing::Length(3), true, "Content-Length: 3"),
            ("200 OK", &[], ASKED, None, Framing::Chunked, true, "Transfer-Encoding: chunked"),
            ("200 OK", &[], http10, None, Framing::UntilClose, false, "Connection: close"),
            ("200 OK", length, http10, None, Framing::Length(5), true, "Connection: keep-alive"),
            ("200 OK", length, to_head, None, Framing::None, true, "Content-Length: 5"),
            ("200 OK", &[], to_head, Some(7), Framing::None, true, "Content-Length: 7"),
            ("304 Not Modified", length, ASKED, Some(0), Framing::None, true, "Content-Length: 5"),
            (
                "200 OK",
                length,
                Asked { keep_alive: false, ..ASKED },
                None,
                Framing::Length(5),
                false,
                "Connection: close",
            ),
        ];
        for (status, fields, asked, whole, framing, keep, line) in cases {
            let (got, got_keep, text) = framed(status, fields, asked, whole);
            assert_eq!((got, got_keep), (framing, keep), "{status} {asked:?}");
            assert!(text.contains(&format!("\r\n{line}\r\n")), "{text}");
            assert!(text.ends_with("\r\n\r\n"));
        }
        for (status, asked, whole) in
            [("204 No Content", ASKED, Some(0)), ("200 OK", to_head, Some(0)), ("304 X", ASKED, None)]
        {
            let (framing, _, text) = framed(status, &[], asked, whole);
            assert_eq!(framing, Framing::None);
            assert!(!text.contains("Content-Length") && !text.contains("Transfer-Encoding"), "{text}");
        }
        assert!(!framed("204 No Content", length, ASKED, None).2.contains("Content-Length"));
        for (fields, whole) in [(length, None), (&[][..], Some(7)), (&[][..], None)] {
            let (framing, keep, text) = framed("205 Reset Content", fields, ASKED, whole);
            assert_eq!((framing, keep), (Framing::None, true));
            assert!(text.contains("\r\nContent-Length: 0\r\n") && !text.contains("chunked"), "{text}");
        }
    }

    #[test]
    fn date_and_server_are_the_applications_if_it_wants() {
        let (_, _, text) = framed("200 OK", &[(b"date", b"now"), (b"SERVER", b"mine")], ASKED, Some(0));
        assert!(text.contains("date: now\r\nSERVER: mine\r\n") && !text.contains("Date:") && !text.contains("Server:"));
        let (_, _, text) = framed("200", &[], ASKED, Some(0));
        assert!(text.starts_with("HTTP/1.1 200 \r\n"), "{text}");
        assert!(text.contains("Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: forkmaster\r\n"), "{text}");
    }

    #[test]
    fn what_the_application_may_not_say() {
        let one = |name: &'static [u8], value: &'static [u8]| Head::default().set(b"200 OK", &[(name, value)]);
        for (name, value) in [
            (&b"A\r\nB"[..], &b"c"[..]),
            (b"", b"c"),
            (b"A ", b"c"),
            (b"A:", b"c"),
            (b"\xe9", b"c"),
            (b"A", b"b\r\nc: d"),
            (b"A", b"b\n"),
            (b"A", b"\0"),
            (b"A", b"\x7f"),
            (b"Connection", b"upgrade"),
            (b"Connection", b"close, X-Other"),
            (b"Connection", b""),
            (b"Transfer-Encoding", b"chunked"),
            (b"Upgrade", b"h2c"),
            (b"Content-Length", b"-1"),
            (b"Content-Length", b"1, 1"),
            (b"Content-Length", b""),
        ] {
            assert!(one(name, value).is_err(), "{name:?}: {value:?}");
        }
        let twice: &[(&[u8], &[u8])] = &[(b"Content-Length", b"1"), (b"content-length", b"1")];
        assert!(Head::default().set(b"200 OK", twice).is_err());
        for status in [&b""[..], b"20", b"200OK", b"2000", b"abc", b"200 O\nK", b"101 Switching", b"099 x", b"-20 x"] {
            assert!(Head::default().set(status, &[]).is_err(), "{status:?}");
        }
        let mut head = Head::default();
        assert!(head.set(b"200 OK", &[(b"A", b"\n")]).is_err() && !head.is_set() && head.bytes().is_empty());
    }

    #[test]
    fn what_says_nothing_is_dropped_and_an_end_is_heard() {
        for (name, value, kept) in [
            (&b"Connection"[..], &b"keep-alive"[..], true),
            (b"connection", b"Keep-Alive, CLOSE", false),
            (b"Keep-Alive", b"timeout=5", true),
            (b"Proxy-Connection", b"keep-alive", true),
        ] {
            let mut head = Head::default();
            head.begin(b"200 OK").expect("valid");
            assert_eq!(head.add(name, value), Ok(Added::Dropped));
            head.end();
            let (_, keep) = head.complete(ASKED, Some(0), DATE);
            let text = String::from_utf8_lossy(head.bytes());
            assert_eq!((keep, text.contains("Connection: close")), (kept, !kept), "{text}");
            assert!(!text.to_ascii_lowercase().contains("keep-alive"), "{text}");
        }
    }

    #[test]
    fn early_hints_are_fields_and_no_framing() {
        let mut hints = EarlyHints::begin();
        hints.add(b"Link", b"</a.css>; rel=preload").expect("valid");
        for (name, value) in
            [(&b"Content-Length"[..], &b"1"[..]), (b"Connection", b"close"), (b"A", b"b\r\nc: d"), (b"", b"b")]
        {
            assert!(hints.add(name, value).is_err(), "{name:?}");
        }
        assert_eq!(hints.end(), b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
    }

    #[test]
    fn chunk_lines() {
        assert_eq!(ChunkLine::new(0).bytes(), b"0\r\n");
        assert_eq!(ChunkLine::new(10).bytes(), b"a\r\n");
        assert_eq!(ChunkLine::new(usize::MAX).bytes(), b"ffffffffffffffff\r\n");
    }
}
