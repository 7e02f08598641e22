//! Properties that hold for every input, checked by the tests on streams of their own and by the fuzz targets
//! (`src/http/fuzz`) on whatever they find. Each takes arbitrary bytes and panics where a property is broken.

use super::chunked::{Decoder, Piece};
use super::framing::{Claims, Framing};
use super::head::{Head, Limits, Scan, Scanner};
use super::proxy::{self, Parsed, ProxyVersion};
use super::refusal::{self, Refusal};
use super::{syntax, Version};

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits { request_line: 60, field_size: 60, fields: 4, head: 160 };

/// A request in words, up to the end of the stream or the first refusal.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Request { head: Vec<u8>, body: Vec<u8> },
    Unfinished,
    Refused(Refusal),
}

/// A connection's reading side in small: a buffer that grows, a scanner, a decoder.
#[derive(Default)]
struct Reader {
    buffer: Vec<u8>,
    scanner: Scanner,
    head: Option<(Vec<u8>, Body)>,
    body: Vec<u8>,
    outcomes: Vec<Outcome>,
}

enum Body {
    Length(u64),
    Chunked(Decoder),
}

impl Reader {
    fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.outcomes.last(), Some(Outcome::Refused(_))) {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        while match self.step() {
            Ok(more) => more,
            Err(refusal) => {
                self.outcomes.push(Outcome::Refused(refusal));
                false
            }
        } {}
    }

    fn step(&mut self) -> Result<bool, Refusal> {
        let Some((_, framing)) = &mut self.head else {
            let mut head = Head::default();
            let Some((start, end)) = head.find(&mut self.scanner, &self.buffer, &LIMITS)? else { return Ok(false) };
            let body = match head.framing {
                Framing::None => Body::Length(0),
                Framing::Length(length) => Body::Length(length),
                Framing::Chunked => Body::Chunked(Decoder::default()),
            };
            self.head = Some((self.buffer[start..end].to_vec(), body));
            self.buffer.drain(..end);
            self.scanner = Scanner::default();
            return Ok(true);
        };
        let mut input = &self.buffer[..];
        let ended = match framing {
            Body::Length(left) => {
                let take = input.len().min(*left as usize);
                self.body.extend_from_slice(&input[..take]);
                input = &input[take..];
                *left -= take as u64;
                *left == 0
            }
            Body::Chunked(decoder) => loop {
                match decoder.next(&mut input)? {
                    Piece::Data(data) => self.body.extend_from_slice(data),
                    Piece::More => break false,
                    Piece::End => break true,
                }
            },
        };
        let used = self.buffer.len() - input.len();
        self.buffer.drain(..used);
        if ended {
            if let Some((head, _)) = self.head.take() {
                self.outcomes.push(Outcome::Request { head, body: std::mem::take(&mut self.body) });
            }
        }
        Ok(ended)
    }

    fn end(mut self) -> Vec<Outcome> {
        let refused = matches!(self.outcomes.last(), Some(Outcome::Refused(_)));
        if !refused && (self.head.is_some() || !self.buffer.is_empty()) {
            self.outcomes.push(Outcome::Unfinished);
        }
        self.outcomes
    }
}

pub fn read(pieces: &[&[u8]]) -> Vec<Outcome> {
    let mut reader = Reader::default();
    for piece in pieces {
        reader.feed(piece);
    }
    reader.end()
}

/// A stream of requests: however it was split, the same requests come out of it. The first byte of `data` says
/// where to split.
pub fn requests(data: &[u8]) {
    let Some((&at, stream)) = data.split_first() else { return };
    let whole = read(&[stream]);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(read(&bytes), whole, "byte by byte: {:?}", String::from_utf8_lossy(stream));
    let (one, other) = stream.split_at(usize::from(at).min(stream.len()));
    assert_eq!(read(&[one, other]), whole, "split at {at}: {:?}", String::from_utf8_lossy(stream));
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(at).max(1)).collect();
    assert_eq!(read(&pieces), whole, "pieces of {at}: {:?}", String::from_utf8_lossy(stream));
}

/// A head that was read at once is what it would have been line by line, and the other way round: the same refusal, the same
/// end, the same head.
pub fn at_once(data: &[u8]) {
    let roomy = Limits { request_line: 1000, field_size: 1000, fields: 10, head: 10_000 };
    for limits in [LIMITS, roomy] {
        let (mut head, mut other) = (Head::default(), Head::default());
        let found = head.find(&mut Scanner::default(), data, &limits);
        let scanned = match Scanner::default().scan(data, &limits) {
            Ok(Scan::More) => Ok(None),
            Ok(Scan::Complete { start, end }) => other.read(data, start, end, &limits).map(|()| Some((start, end))),
            Err(refusal) => Err(refusal),
        };
        assert_eq!(found, scanned, "{:?}", String::from_utf8_lossy(data));
        if let Ok(Some(_)) = found {
            assert_eq!(format!("{head:?}"), format!("{other:?}"), "{:?}", String::from_utf8_lossy(data));
        }
    }
}

/// A head that is accepted has one reading: nothing in it ends a line early, and written again from what was
/// understood it is understood in the same way.
pub fn head(data: &[u8]) {
    at_once(data);
    let (Ok(Scan::Complete { start, end }), mut head) = (Scanner::default().scan(data, &LIMITS), Head::default())
    else {
        return;
    };
    if head.read(data, start, end, &LIMITS).is_err() {
        return;
    }
    let bytes = &data[start..end];
    for (at, &byte) in bytes.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| bytes[before]);
        assert_eq!(
            byte == b'\n',
            before == Some(b'\r'),
            "a line end that is none: {:?}",
            String::from_utf8_lossy(bytes)
        );
        assert!(
            byte == b'\t' || byte == b'\r' || byte == b'\n' || (byte >= 0x20 && byte != 0x7f),
            "control byte {byte}"
        );
    }
    assert!(syntax::is_token(head.method(data)) && !head.target(data).contains(&b' '));
    let version: &[u8] = match head.version {
        Version::Http10 => b"HTTP/1.0",
        Version::Http11 => b"HTTP/1.1",
    };
    let mut again = [head.method(data), b" ", head.target(data), b" ", version, b"\r\n"].concat();
    for (name, value) in head.fields(data) {
        assert!(syntax::is_token(name) && value == syntax::trim(value));
        again.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
    }
    again.extend_from_slice(b"\r\n");
    // Written anew it may be longer: a space after each colon, and the Host of an absolute-form target.
    let roomy = Limits { request_line: 1000, field_size: 1000, fields: 10, head: 10_000 };
    let mut second = Head::default();
    let scan = Scanner::default().scan(&again, &roomy);
    assert_eq!(scan, Ok(Scan::Complete { start: 0, end: again.len() }), "{:?}", String::from_utf8_lossy(&again));
    assert_eq!(second.read(&again, 0, again.len(), &roomy), Ok(()), "{:?}", String::from_utf8_lossy(&again));
    assert_eq!((second.framing, second.keep_alive), (head.framing, head.keep_alive));
    assert_eq!(second.expects_continue, head.expects_continue);
    assert_eq!((second.path(&again), second.query(&again)), (head.path(data), head.query(data)));
    assert!(second.fields(&again).eq(head.fields(data)));
}

/// Lines of the input are values of Content-Length (those that begin with `l`) and Transfer-Encoding fields. What is
/// accepted is what a few sentences of RFC 9112 section 6 allow, written down a second time here.
pub fn framing(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let version = if first & 1 == 0 { Version::Http11 } else { Version::Http10 };
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    let mut claims = Claims::default();
    let mut outcome = Ok(());
    for line in rest.split(|&byte| byte == b'\n') {
        match line.split_first() {
            Some((b'l', value)) => {
                lengths.push(value);
                outcome = outcome.and_then(|()| claims.content_length(value));
            }
            Some((_, value)) => {
                codings.push(value);
                claims.transfer_encoding(value);
            }
            None => {}
        }
    }
    let digits = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = |value: &[u8]| std::str::from_utf8(value).ok().filter(|_| digits(value))?.parse::<u64>().ok();
    let chunked = |value: &[u8]| {
        let text = String::from_utf8_lossy(value).to_ascii_lowercase();
        text.trim_matches([' ', '\t']) == "chunked"
    };
    let expected = match (&lengths[..], &codings[..], version) {
        ([], [], _) => Some(Framing::None),
        ([one], [], _) => number(one).map(Framing::Length),
        ([], [one], Version::Http11) if chunked(one) => Some(Framing::Chunked),
        _ => None,
    };
    assert_eq!(outcome.and_then(|()| claims.framing(version)).ok(), expected, "{lengths:?} {codings:?}");
}

/// A chunked body: however it was split it decodes to the same bytes; what was decoded, encoded again as one chunk,
/// decodes to the same; and there are never more bytes than came.
pub fn chunked(data: &[u8]) {
    let Some((&at, input)) = data.split_first() else { return };
    let whole = decode(&[input]);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(decode(&bytes), whole, "byte by byte: {:?}", String::from_utf8_lossy(input));
    let pieces: Vec<&[u8]> = input.chunks(usize::from(at).max(1)).collect();
    assert_eq!(decode(&pieces), whole, "pieces of {at}: {:?}", String::from_utf8_lossy(input));
    let Ok((body, Some(rest))) = whole else { return };
    assert!(body.len() + rest < input.len());
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
    let encoded = [if body.is_empty() { b"" } else { &chunk[..] }, b"0\r\n\r\n"].concat();
    assert_eq!(decode(&[&encoded]), Ok((body, Some(0))));
}

/// The decoded body, and how many bytes came after its end; None where it has not ended.
fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<usize>), Refusal> {
    let mut decoder = Decoder::default();
    let mut body = Vec::new();
    let mut rest = None;
    for piece in pieces {
        let mut input = *piece;
        if let Some(rest) = &mut rest {
            *rest += input.len();
            continue;
        }
        loop {
            match decoder.next(&mut input)? {
                Piece::Data(data) => body.extend_from_slice(data),
                Piece::More => break,
                Piece::End => {
                    rest = Some(input.len());
                    break;
                }
            }
        }
    }
    Ok((body, rest))
}

/// A PROXY header: one byte more never changes what was said before, a refusal names this listener's setting, and
/// what is understood of a line of version 1 gives the same when it is written again.
pub fn proxy(data: &[u8]) {
    let Some((&first, input)) = data.split_first() else { return };
    let version = if first & 1 == 0 { ProxyVersion::V1 } else { ProxyVersion::V2 };
    let whole = proxy::parse(version, input);
    for end in 0..input.len() {
        match proxy::parse(version, &input[..end]) {
            Ok(Parsed::More) => {}
            early => {
                assert_eq!(early, whole, "{end} bytes of {:?}", String::from_utf8_lossy(input));
                break;
            }
        }
    }
    match whole {
        Ok(Parsed::More) => assert!(input.len() < 4096),
        Ok(Parsed::Complete { header, end }) => {
            assert!(end <= input.len() && end <= 4096);
            let Some((source, destination)) = header.addresses else { return };
            // A version 1 line names one family for both.
            if source.is_ipv4() != destination.is_ipv4() {
                return;
            }
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
            let Ok(Parsed::Complete { header: again, end }) = proxy::parse(ProxyVersion::V1, line.as_bytes()) else {
                panic!("{line:?} is not understood");
            };
            assert_eq!((again.addresses, end), (header.addresses, line.len()));
        }
        Err(refused) => assert!(refused == refusal::PROXY_MISSING || refused == refusal::PROXY_INVALID),
    }
}
