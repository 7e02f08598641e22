//! The corpus of raw requests against the loop, with a plain Rust application: each request whole, byte by byte, and
//! split at every boundary. The client sends the next piece when the loop has read the one before: on a Unix socket
//! the kernel tells (SIOCOUTQ, unix(7)), so that every split really is one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use super::fixture::{body_of, settings, Fixture, Told, PATIENCE};
use crate::serve::io::socket;
use crate::serve::Listener;

#[path = "../../../../tests/integration/http/corpus.rs"]
pub mod table;

use table::{Answer, Case};

/// Answers with what it saw.
fn echo(fixture_path: &std::path::Path) -> Fixture {
    let listener = UnixListener::bind(fixture_path).expect("a fresh path");
    listener.set_nonblocking(true).expect("fcntl");
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = vec![Listener { id: 0, fd: listener.into(), proxy: None }];
    let fixture = Fixture::with(settings(), nowhere, listeners, None, |mut exchange, _gate, _voice| {
        let seen = [exchange.method(), b" ", exchange.target(), b"\n", &body_of(&exchange)].concat();
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(&seen);
        exchange.finish().expect("valid");
    });
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    fixture
}

struct Client {
    stream: UnixStream,
    ahead: Vec<u8>,
    /// After the answers a reset is as good as an end.
    may_reset: bool,
}

impl Client {
    /// None: the server has closed.
    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.ahead.windows(2).position(|two| two == b"\r\n") {
                let line = self.ahead.drain(..end + 2).collect::<Vec<u8>>();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill() {
                assert!(self.ahead.is_empty(), "closed in a line: {:?}", String::from_utf8_lossy(&self.ahead));
                return None;
            }
        }
    }

    fn fill(&mut self) -> bool {
        let mut bytes = [0; 64 * 1024];
        let length = match self.stream.read(&mut bytes) {
            Ok(length) => length,
            // A connection that is closed with unread data answers so, on Unix sockets as on TCP.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && self.may_reset => 0,
            Err(error) => panic!("an answer in time and no reset: {error}"),
        };
        self.ahead.extend_from_slice(&bytes[..length]);
        length > 0
    }

    /// The next answer: status, whether it says close, body. Interim answers are skipped.
    fn answer(&mut self, to_head: bool) -> Option<(u16, bool, Vec<u8>)> {
        let status: u16 = self.line()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let (mut length, mut closes) = (0, false);
        while let Some(line) = self.line().filter(|line| !line.is_empty()) {
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.parse().expect("a length");
            }
            closes |= line == "Connection: close";
        }
        if status == 100 {
            return self.answer(to_head);
        }
        let length = if to_head { 0 } else { length };
        while self.ahead.len() < length {
            assert!(self.fill(), "closed in a body");
        }
        Some((status, closes, self.ahead.drain(..length).collect()))
    }
}

fn run(path: &std::path::Path, case: &Case, pieces: &[&[u8]]) {
    let name = &case.name;
    let mut client =
        Client { stream: UnixStream::connect(path).expect("it listens"), ahead: Vec::new(), may_reset: false };
    client.stream.set_read_timeout(Some(PATIENCE)).expect("setsockopt");
    client.stream.set_write_timeout(Some(PATIENCE)).expect("setsockopt");
    for piece in pieces {
        match client.stream.write_all(piece) {
            Ok(()) => {}
            // A client that said `close` and has its answer sends to nobody.
            Err(error) if error.kind() == ErrorKind::BrokenPipe && !case.kept => break,
            Err(error) => panic!("{name}: {error}"),
        }
        let deadline = Instant::now() + PATIENCE;
        while pieces.len() > 1 && socket::unacknowledged(client.stream.as_raw_fd()) > 0 {
            assert!(Instant::now() < deadline, "{name}: the server does not read");
            std::thread::yield_now();
        }
    }
    if case.ends {
        client.stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }
    for (number, answer) in case.answers.iter().enumerate() {
        let last = number + 1 == case.answers.len();
        match answer {
            Answer::Seen(seen) => {
                let to_head = seen.method == "HEAD";
                let Some((status, closes, body)) = client.answer(to_head) else { panic!("{name}: no answer {number}") };
                assert_eq!(status, 200, "{name}: {}", String::from_utf8_lossy(&body));
                let seen = [seen.method.as_bytes(), b" ", &table::latin1(&seen.target), b"\n", &seen.body].concat();
                assert!(to_head || body == seen, "{name}: {:?}", String::from_utf8_lossy(&body));
                assert_eq!(closes, last && !case.kept && !case.ends, "{name}: Connection: close");
            }
            Answer::Refused(expected) => {
                let to_head = case.bytes.starts_with(b"HEAD ");
                let Some((status, closes, body)) = client.answer(to_head) else { panic!("{name}: no answer {number}") };
                let body = String::from_utf8_lossy(&body).into_owned();
                assert!(status == *expected && closes, "{name}: {status} {body}");
                assert!(to_head || (body.ends_with('\n') && body.len() < 100), "{name}: {body}");
            }
        }
    }
    if case.kept {
        let last = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        client.stream.write_all(last).unwrap_or_else(|error| panic!("{name}: {error}"));
        let answer = client.answer(false);
        assert_eq!(answer, Some((200, true, b"GET /last\n".to_vec())), "{name}: the request after it");
    }
    // A client that said `close` and goes on to send after its answer is on its own.
    client.may_reset = pieces.len() > 1 && !case.kept && matches!(case.answers.last(), Some(Answer::Seen(_)));
    assert_eq!(client.answer(false), None, "{name}: one answer too many");
}

fn socket_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("forkmaster-corpus-{}-{name}", std::process::id()))
}

#[test]
fn there_are_enough_cases() {
    let cases = table::cases();
    let mut distinct: Vec<&[u8]> = cases.iter().map(|case| &case.bytes[..]).collect();
    distinct.sort();
    distinct.dedup();
    println!("{} raw requests, {} distinct", cases.len(), distinct.len());
    assert!(distinct.len() >= 300);
}

#[test]
fn whole() {
    let path = socket_path("whole");
    let fixture = echo(&path);
    for case in table::cases() {
        run(&path, &case, &[&case.bytes]);
    }
    fixture.stop();
    std::fs::remove_file(path).expect("it is ours");
}

/// Beyond this the middle of a request is the same as its neighbours.
const EDGE_BYTES: usize = 300;

#[test]
fn byte_by_byte() {
    let path = socket_path("bytes");
    let fixture = echo(&path);
    for case in table::cases() {
        let (edge, rest) = case.bytes.split_at(case.bytes.len().min(EDGE_BYTES));
        let (rest, end) = rest.split_at(rest.len().saturating_sub(EDGE_BYTES));
        // The middle of long ones in pieces that are no multiple of anything.
        let pieces: Vec<&[u8]> = edge.chunks(1).chain(rest.chunks(997)).chain(end.chunks(1)).collect();
        run(&path, &case, &pieces);
    }
    fixture.stop();
    std::fs::remove_file(path).expect("it is ours");
}

#[test]
fn split_at_every_boundary() {
    let path = socket_path("split");
    let fixture = echo(&path);
    let mut splits = 0;
    for case in table::cases() {
        let length = case.bytes.len();
        let inner = (1..length).filter(|at| *at < EDGE_BYTES || length - at < EDGE_BYTES || at % 8191 < 3);
        for at in inner {
            let (one, other) = case.bytes.split_at(at);
            run(&path, &case, &[one, other]);
            splits += 1;
        }
    }
    println!("{splits} splits");
    fixture.stop();
    std::fs::remove_file(path).expect("it is ours");
}
