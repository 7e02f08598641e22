//! HTTP/1.1 on raw sockets. No retries, no pool, no reconnecting: whatever a client can see of a reload is seen
//! here, and every way to fail is a value that a test can count.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::journal;

/// No answer of the tests' applications takes longer, so a client that waits this long waits for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a request can fail as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Refused,
    Reset,
    /// The connection was closed before a byte of the answer came.
    NoAnswer,
    /// The connection was closed in the middle of the answer, after so many bytes.
    Cut(usize),
    TimedOut,
    Malformed(String),
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused => f.write_str("connection refused"),
            Failure::Reset => f.write_str("connection reset"),
            Failure::NoAnswer => f.write_str("closed without an answer"),
            Failure::Cut(bytes) => write!(f, "answer cut after {bytes} bytes"),
            Failure::TimedOut => write!(f, "no answer within {} s", READ_TIMEOUT.as_secs()),
            Failure::Malformed(what) => write!(f, "malformed answer: {what}"),
            Failure::Other(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Failure::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Failure::Reset,
            // A socket with SO_RCVTIMEO reports EAGAIN (socket(7)).
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Other(error.to_string()),
        }
    }
}

/// One answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Names as they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Status codes of the 1xx answers before it.
    pub interim: Vec<u16>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The release that answered.
    pub fn release(&self) -> &str {
        self.header("X-Release").unwrap_or("")
    }

    /// The worker that answered.
    pub fn pid(&self) -> i32 {
        self.header("X-Pid").and_then(|pid| pid.parse().ok()).unwrap_or(0)
    }

    /// Whether the server said that this was the connection's last answer.
    pub fn closes(&self) -> bool {
        let said = self.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("Connection"));
        said.flat_map(|(_, value)| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection.
pub struct Connection {
    stream: Stream,
    /// Bytes that were read and belong to the next answer.
    ahead: Vec<u8>,
    /// Just before connect().
    pub opened: Instant,
}

impl Connection {
    /// The port at this end.
    pub fn local_port(&self) -> Option<u16> {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr().ok().map(|address| address.port()),
            Stream::Unix(_) => None,
        }
    }

    pub fn open(address: &Address) -> Result<Connection, Failure> {
        let opened = Instant::now();
        let stream = match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, READ_TIMEOUT)?;
                stream.set_read_timeout(Some(READ_TIMEOUT))?;
                stream.set_write_timeout(Some(READ_TIMEOUT))?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(READ_TIMEOUT))?;
                stream.set_write_timeout(Some(READ_TIMEOUT))?;
                Stream::Unix(stream)
            }
        };
        Ok(Connection { stream, ahead: Vec::new(), opened })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes.as_ref())?,
            Stream::Unix(stream) => stream.write_all(bytes.as_ref())?,
        }
        Ok(())
    }

    /// Ends the sending direction.
    pub fn finish_sending(&mut self) -> Result<(), Failure> {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write)?,
            Stream::Unix(stream) => stream.shutdown(std::net::Shutdown::Write)?,
        }
        Ok(())
    }

    /// Ends it with a reset.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = self.stream {
            // Where the other end was quicker there is nothing to reset.
            let _ = socket2::Socket::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Opens a connection that must be accepted.
    #[track_caller]
    pub fn to(address: &Address) -> Connection {
        Connection::open(address).unwrap_or_else(|failure| panic!("no connection to {address}: {failure}"))
    }

    /// Sends, and fails the test where that cannot be done.
    #[track_caller]
    pub fn must_send(&mut self, bytes: impl AsRef<[u8]>) {
        if let Err(failure) = self.send(bytes) {
            panic!("cannot send: {failure}");
        }
    }

    /// Reads one answer, of whatever status, and fails the test where none comes.
    #[track_caller]
    pub fn expect_answer(&mut self) -> Response {
        self.read().unwrap_or_else(|failure| panic!("no answer: {failure}"))
    }

    /// Sends a request and reads its answer, of whatever status.
    #[track_caller]
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Response {
        self.must_send(bytes);
        self.expect_answer()
    }

    /// One GET that must be answered with 200; the connection stays open.
    #[track_caller]
    pub fn get_ok(&mut self, target: &str) -> Response {
        let response = self.get(target).unwrap_or_else(|failure| panic!("GET {target}: {failure}"));
        assert_eq!(response.status, 200, "GET {target}: {}", response.text());
        response
    }

    /// Reads bytes until `needle` is among them, and returns all that came. For answers that are made step by step:
    /// what must not be there yet is not in the returned text.
    #[track_caller]
    pub fn read_past(&mut self, needle: &str) -> String {
        let seen = loop {
            if find(&self.ahead, needle.as_bytes()).is_some() {
                break Ok(());
            }
            match self.read_some() {
                Ok(0) => break Err(Failure::Cut(self.ahead.len())),
                Ok(_) => {}
                Err(failure) => break Err(failure),
            }
        };
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.ahead)).into_owned();
        if let Err(failure) = seen {
            panic!("waited for {needle:?}: {failure}, after {text:?}");
        }
        text
    }

    /// One GET on this connection, which stays open.
    pub fn get(&mut self, target: &str) -> Result<Response, Failure> {
        self.send(head("GET", target, &[]))?;
        self.read()
    }

    /// One POST on this connection, which stays open.
    pub fn post(&mut self, target: &str, body: &[u8]) -> Result<Response, Failure> {
        let mut request = head("POST", target, &[("Content-Length", &body.len().to_string())]);
        request.extend_from_slice(body);
        // A server may answer and close before it has read the body; what it said counts, not that the rest could
        // not be sent.
        let sent = self.send(request);
        match self.read() {
            Ok(response) => Ok(response),
            Err(failure) => sent.and(Err(failure)),
        }
    }

    /// Reads one answer to a request other than HEAD.
    pub fn read(&mut self) -> Result<Response, Failure> {
        self.read_answer(false)
    }

    /// Reads one answer to a HEAD request: it has no body whatever its fields say (RFC 9112 section 6.3).
    pub fn read_to_head(&mut self) -> Result<Response, Failure> {
        self.read_answer(true)
    }

    /// Reads one answer whose body may end early; true: it did, and the body has what came.
    pub fn read_partly(&mut self) -> Result<(Response, bool), Failure> {
        let mut response = self.read_final_head()?;
        match self.read_body(&mut response, false) {
            Ok(()) => Ok((response, false)),
            Err(Failure::Cut(_)) => Ok((response, true)),
            Err(failure) => Err(failure),
        }
    }

    /// Waits for the server to close; true: it sent nothing before that.
    pub fn closed_within(&mut self, limit: Duration) -> bool {
        let _ = self.set_read_timeout(limit);
        let closed = self.ahead.is_empty() && matches!(self.read_some(), Ok(0));
        let _ = self.set_read_timeout(READ_TIMEOUT);
        closed
    }

    /// Takes what is there within the limit, to look at bytes themselves.
    pub fn read_available(&mut self, limit: Duration) -> Result<Vec<u8>, Failure> {
        self.set_read_timeout(limit)?;
        let read = self.read_some();
        self.set_read_timeout(READ_TIMEOUT)?;
        match read {
            Ok(_) | Err(Failure::TimedOut) => Ok(std::mem::take(&mut self.ahead)),
            Err(failure) => Err(failure),
        }
    }

    fn set_read_timeout(&self, limit: Duration) -> Result<(), Failure> {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit))?,
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit))?,
        }
        Ok(())
    }

    fn read_some(&mut self) -> Result<usize, Failure> {
        let mut buffer = [0; 65536];
        let count = loop {
            let read = match &mut self.stream {
                Stream::Tcp(stream) => stream.read(&mut buffer),
                Stream::Unix(stream) => stream.read(&mut buffer),
            };
            match read {
                // A socket with a timeout is not restarted after a stopped process goes on (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.ahead.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    fn read_answer(&mut self, to_head: bool) -> Result<Response, Failure> {
        let mut response = self.read_final_head()?;
        let read = self.read_body(&mut response, to_head);
        journal::note_answer(&response);
        read.map(|()| response)
    }

    /// The head of an answer that is no 1xx.
    fn read_final_head(&mut self) -> Result<Response, Failure> {
        let mut interim = Vec::new();
        loop {
            let (status, headers) = self.read_head()?;
            if (100..200).contains(&status) {
                interim.push(status);
                continue;
            }
            return Ok(Response { status, headers, body: Vec::new(), interim });
        }
    }

    /// Where it fails, the response has what came of the body.
    fn read_body(&mut self, response: &mut Response, to_head: bool) -> Result<(), Failure> {
        let coding = response.header("Transfer-Encoding").map(str::to_ascii_lowercase);
        let length = response.header("Content-Length").map(str::to_string);
        let bodiless = to_head || response.status == 204 || response.status == 304;
        match (bodiless, coding.as_deref(), length) {
            (true, _, _) => {}
            (false, Some("chunked"), None) => self.read_chunks(&mut response.body)?,
            (false, Some(other), _) => return Err(Failure::Malformed(format!("Transfer-Encoding {other}"))),
            (false, None, Some(length)) => {
                let length = length.parse().map_err(|_| Failure::Malformed(format!("Content-Length {length}")))?;
                self.take_into(length, &mut response.body)?;
            }
            (false, None, None) => {
                while self.read_some()? > 0 {}
                response.body = std::mem::take(&mut self.ahead);
            }
        }
        Ok(())
    }

    fn read_head(&mut self) -> Result<(u16, Vec<(String, String)>), Failure> {
        let end = loop {
            if let Some(at) = find(&self.ahead, b"\r\n\r\n") {
                break at;
            }
            if self.read_some()? == 0 {
                return Err(match self.ahead.len() {
                    0 => Failure::NoAnswer,
                    bytes => Failure::Cut(bytes),
                });
            }
        };
        let head = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
        self.ahead.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap_or("");
        let status = start.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| Failure::Malformed(start.to_string()))?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| Failure::Malformed(line.to_string()))?;
            headers.push((name.to_string(), value.trim().to_string()));
        }
        Ok((status, headers))
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> Result<(), Failure> {
        loop {
            let line = self.take_line()?;
            let size =
                usize::from_str_radix(&line, 16).map_err(|_| Failure::Malformed(format!("chunk size {line:?}")))?;
            self.take_into(size, body)?;
            let end = self.take_line()?;
            if !end.is_empty() {
                return Err(Failure::Malformed(format!("{end:?} after a chunk")));
            }
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn take_line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(at) = find(&self.ahead, b"\r\n") {
                let line = String::from_utf8_lossy(&self.ahead[..at]).into_owned();
                self.ahead.drain(..at + 2);
                return Ok(line);
            }
            self.more()?;
        }
    }

    fn take_into(&mut self, count: usize, body: &mut Vec<u8>) -> Result<(), Failure> {
        while self.ahead.len() < count {
            if let Err(failure) = self.more() {
                body.append(&mut self.ahead);
                return Err(failure);
            }
        }
        body.extend(self.ahead.drain(..count));
        Ok(())
    }

    fn more(&mut self) -> Result<(), Failure> {
        match self.read_some() {
            Ok(0) | Err(Failure::Reset) => Err(Failure::Cut(self.ahead.len())),
            Ok(_) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

/// A request head with a Host field.
pub fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    head.into_bytes()
}

/// One GET on a connection of its own, closed after it.
pub fn get(address: &Address, target: &str) -> Result<Response, Failure> {
    let mut connection = Connection::open(address)?;
    connection.send(head("GET", target, &[("Connection", "close")]))?;
    connection.read()
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
