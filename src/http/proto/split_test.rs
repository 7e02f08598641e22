//! The property that all of `proto` is built for: how the bytes of a stream were split changes nothing.

use super::chunked::{Decoder, Piece};
use super::framing::Framing;
use super::head::{Head, Limits, Scan, Scanner};
use super::refusal::Refusal;

const LIMITS: Limits = Limits { request_line: 60, field_size: 60, fields: 4, head: 160 };

/// Requests in words, up to the end of the stream or the first refusal.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
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
            let Scan::Complete { start, end } = self.scanner.scan(&self.buffer, &LIMITS)? else { return Ok(false) };
            let mut head = Head::default();
            head.read(&self.buffer, start, end, &LIMITS)?;
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

fn read(pieces: &[&[u8]]) -> Vec<Outcome> {
    let mut reader = Reader::default();
    for piece in pieces {
        reader.feed(piece);
    }
    reader.end()
}

#[test]
fn every_split_gives_the_same_requests() {
    let streams: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\nPOST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /c HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n A: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA\r: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\nB: c\r\nC: d\r\nD: e\r\nE: f\r\n\r\n",
        b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n\r\n",
        b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nA: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\nC: ddddddddddddddddddddddddddddddddddddddddddddddddd\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"\rGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"GET /unfinished HTTP/1.1\r\nHost",
    ];
    for stream in streams {
        let expected = read(&[stream]);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), expected, "one by one: {:?}", String::from_utf8_lossy(stream));
        for one in 0..=stream.len() {
            for two in one..=stream.len() {
                let pieces = [&stream[..one], &stream[one..two], &stream[two..]];
                assert_eq!(read(&pieces), expected, "{one} {two}: {:?}", String::from_utf8_lossy(stream));
            }
        }
    }
}

/// Streams that nobody would think of: pieces of requests, bytes that matter, and chance. Nothing may panic, and
/// byte by byte must be the same as at once.
#[test]
fn chance_finds_no_split_that_matters() {
    const PIECES: [&[u8]; 24] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b HTTP/1.1\r\n",
        b"GET http://h/p HTTP/1.0\r\n",
        b"Host: h\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"abc",
        b"3\r\n",
        b"0\r\n",
        b";x=y",
        b":",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"f",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"\r\n\r\n",
        b"T: u\r\n",
    ];
    // xorshift64 with a fixed seed: the same streams every time.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for _ in 0..20_000 {
        // Half of the streams begin as a request that is valid so far, so that bodies are reached.
        let mut stream = if next(2) == 0 { Vec::new() } else { b"POST / HTTP/1.1\r\nHost: h\r\n".to_vec() };
        for _ in 0..next(12) {
            stream.extend_from_slice(PIECES[next(PIECES.len())]);
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), read(&[&stream]), "{:?}", String::from_utf8_lossy(&stream));
    }
}
