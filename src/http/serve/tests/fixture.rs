//! A server in this process with plain Rust app threads, and clients on raw sockets: client libraries retry
//! silently and hide what happened.

use std::collections::HashMap;
use std::io::{Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::serve::{
    Body, Ending, Exchange, Handle, HandoffQueue, How, IsProxy, Listener, LiveInput, Metrics, Read, Reports, Server,
    Settings, StreamBodies, Wake,
};

/// Long enough for a busy machine, short enough to end.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn settings() -> Settings {
    Settings {
        threads: 1,
        connections: 64,
        keepalive_timeout: Some(PATIENCE * 2),
        header_timeout: PATIENCE,
        body_timeout: PATIENCE,
        write_timeout: PATIENCE,
        proxy_write_timeout: PATIENCE,
        is_proxy: IsProxy(Arc::new(|_| false)),
        request_id_header: None,
        limit_request_line: 8190,
        limit_request_fields: 100,
        limit_request_field_size: 8190,
        limit_request_head: 64 * 1024,
        body_memory: 512 * 1024,
        body_memory_alone: 64 * 1024 * 1024,
        stream_bodies: StreamBodies::Never,
        // How fast a test sends depends on what else the machine does.
        live_bytes_per_s_min: 0,
        max_body: 100 * 1024 * 1024,
        temp_dir: Some(std::env::temp_dir()),
        temp_limit: 1 << 30,
        response_buffer: 64 * 1024 * 1024,
        health_path: None,
        queue_limit: None,
        shared_requests_max: 0,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Serving,
    Draining,
    Paused,
    Maintenance,
    /// Whether connections are taken from now on.
    Accepting(bool),
    Connections(usize),
    Accepted,
    /// What the handler of the test has to say.
    App(String),
    /// The record of a request whose answer has ended, how, and with how many bytes of its body.
    Ended(String, How, u64),
    Done(usize),
}

struct Teller {
    sender: Mutex<Sender<Told>>,
    turns: Arc<Turns>,
}

/// What the loop tells of its turns, and what it hears of siblings.
#[derive(Default)]
pub struct Turns {
    count: AtomicUsize,
    ahead: AtomicBool,
    alone: AtomicBool,
}

impl Turns {
    /// How often the loop has turned.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// No sibling has a free thread from now on.
    pub fn set_alone(&self) {
        self.alone.store(true, Ordering::SeqCst);
    }

    /// Siblings have less to do from now on, or not.
    pub fn set_ahead(&self, ahead: bool) {
        self.ahead.store(ahead, Ordering::SeqCst);
    }
}

impl Teller {
    fn tell(&self, told: Told) {
        let _ = self.sender.lock().expect("no panic while locked").send(told);
    }
}

impl Metrics for Teller {
    fn accepting(&self, accepting: bool) {
        self.tell(Told::Accepting(accepting));
    }
    fn heartbeat(&self) {
        self.turns.count.fetch_add(1, Ordering::SeqCst);
    }
    fn accepted(&self) {
        self.tell(Told::Accepted);
    }
    fn connections(&self, open: usize) {
        self.tell(Told::Connections(open));
    }
    fn ended(&self, record: &mut [u8], ending: Ending) {
        self.tell(Told::Ended(String::from_utf8_lossy(record).into_owned(), ending.how, ending.body_bytes));
    }
    fn free_siblings(&self) -> usize {
        match self.turns.alone.load(Ordering::SeqCst) {
            true => 0,
            false => usize::MAX,
        }
    }
    fn describe(&self, number: u64, record: &mut Vec<u8>, _id: &mut Vec<u8>) -> bool {
        record.extend_from_slice(format!("overdue {number}").as_bytes());
        true
    }
    fn overtaken(&self, _number: u64, record: &mut [u8], ending: Ending) {
        self.ended(record, ending);
    }
    fn is_ahead(&self, _open: usize) -> bool {
        self.turns.ahead.load(Ordering::SeqCst)
    }
    fn has_room_elsewhere(&self, _connections_max: usize) -> bool {
        self.turns.ahead.load(Ordering::SeqCst)
    }
}

impl Reports for Teller {
    fn serving(&self) {
        self.tell(Told::Serving);
    }
    fn draining(&self) {
        self.tell(Told::Draining);
    }

    fn paused(&self) {
        self.tell(Told::Paused);
    }

    fn maintenance(&self) {
        self.tell(Told::Maintenance);
    }
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A door that the test opens for the application.
#[derive(Clone)]
pub struct Gate(Arc<(Mutex<usize>, std::sync::Condvar)>);

impl Gate {
    pub fn new() -> Gate {
        Gate(Arc::new((Mutex::new(0), std::sync::Condvar::new())))
    }

    pub fn open(&self) {
        *self.0 .0.lock().expect("no panic while locked") += 1;
        self.0 .1.notify_all();
    }

    pub fn pass(&self) {
        let count = self.0 .0.lock().expect("no panic while locked");
        let (mut count, timeout) =
            self.0 .1.wait_timeout_while(count, PATIENCE, |count| *count == 0).expect("no panic while locked");
        assert!(!timeout.timed_out(), "nobody opened the gate");
        *count -= 1;
    }
}

/// Tells the test something from the application.
#[derive(Clone)]
pub struct Voice(Arc<Teller>);

impl Voice {
    pub fn say(&self, text: impl Into<String>) {
        self.0.tell(Told::App(text.into()));
    }
}

pub struct Fixture {
    pub handle: Handle,
    pub gate: Gate,
    pub address: SocketAddr,
    pub turns: Arc<Turns>,
    told: Receiver<Told>,
    threads: Vec<JoinHandle<()>>,
}

impl Fixture {
    /// A serving server whose application is `handler`.
    pub fn new(settings: Settings, handler: impl Fn(Exchange, &Gate, &Voice) + Send + Sync + 'static) -> Fixture {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("fcntl");
        let fixture =
            Fixture::with(settings, address, vec![Listener { id: 0, fd: listener.into(), proxy: None }], None, handler);
        fixture.handle.serve();
        fixture.expect(&Told::Serving);
        fixture
    }

    pub fn with(
        settings: Settings,
        address: SocketAddr,
        listeners: Vec<Listener>,
        wakeup: Option<OwnedFd>,
        handler: impl Fn(Exchange, &Gate, &Voice) + Send + Sync + 'static,
    ) -> Fixture {
        Fixture::with_queue(settings, address, listeners, None, wakeup, handler)
    }

    pub fn with_queue(
        settings: Settings,
        address: SocketAddr,
        listeners: Vec<Listener>,
        queue: Option<Box<dyn HandoffQueue>>,
        wakeup: Option<OwnedFd>,
        handler: impl Fn(Exchange, &Gate, &Voice) + Send + Sync + 'static,
    ) -> Fixture {
        let (sender, told) = channel();
        let turns = Arc::new(Turns::default());
        let teller = Arc::new(Teller { sender: Mutex::new(sender), turns: Arc::clone(&turns) });
        let metrics: Arc<dyn Metrics> = Arc::<Teller>::clone(&teller);
        let reports: Arc<dyn Reports> = Arc::<Teller>::clone(&teller);
        let server = Server::new(settings, listeners, queue, metrics, reports).expect("server");
        let handle = server.handle();
        let gate = Gate::new();
        let handler = Arc::new(handler);
        let app_threads = server.start(wakeup).expect("threads");
        let threads = app_threads.into_iter().enumerate().map(|(index, mut app_thread)| {
            let (handler, gate, voice) = (Arc::clone(&handler), gate.clone(), Voice(Arc::clone(&teller)));
            std::thread::spawn(move || loop {
                if let Some(exchange) = app_thread.poll() {
                    handler(exchange, &gate, &voice);
                    continue;
                }
                match app_thread.wait() {
                    Wake::Request(exchange) => handler(exchange, &gate, &voice),
                    Wake::Signal => voice.say("signal"),
                    Wake::Done => return voice.0.tell(Told::Done(index)),
                }
            })
        });
        let threads = threads.collect();
        Fixture { handle, gate, address, turns, told, threads }
    }

    /// Waits until the server or the application has said this; what else it said before is skipped.
    pub fn expect(&self, wanted: &Told) {
        self.expect_all(std::slice::from_ref(wanted));
    }

    /// As `expect`, for several things in any order.
    pub fn expect_all(&self, wanted: &[Told]) {
        let deadline = Instant::now() + PATIENCE;
        let mut missing: Vec<&Told> = wanted.iter().collect();
        let mut seen = Vec::new();
        while !missing.is_empty() {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(told) => {
                    if let Some(found) = missing.iter().position(|missing| **missing == told) {
                        missing.remove(found);
                    }
                    seen.push(told);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{missing:?} was not told, but {seen:?}")
                }
            }
        }
    }

    /// Whether the application has said this by now.
    pub fn has_said(&self, text: &str) -> bool {
        self.told.try_iter().any(|told| told == Told::App(text.to_string()))
    }

    /// Whether the server has said this by now; what else it said is skipped.
    pub fn has_told(&self, wanted: &Told) -> bool {
        self.told.try_iter().any(|told| told == *wanted)
    }

    /// Waits until the application has said something of this kind, and returns it.
    pub fn expect_any_app(&self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Told::App(text)) if wanted(&text) => return text,
                Ok(_) => {}
                Err(error) => panic!("the application is silent: {error}"),
            }
        }
    }

    /// Waits until so many ends have been told: the records.
    pub fn expect_ends(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut records = Vec::new();
        while records.len() < count {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Told::Ended(record, ..)) => records.push(record),
                Ok(_) => {}
                Err(error) => panic!("only {} of {count} ends: {error}", records.len()),
            }
        }
        records
    }

    /// Waits until a request's answer has ended: how, and with how many bytes.
    pub fn expect_end(&self, record: &str) -> (How, u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Told::Ended(told, how, bytes)) if told == record => return (how, bytes),
                Ok(_) => {}
                Err(error) => panic!("{record} never ends: {error}"),
            }
        }
    }

    pub fn expect_app(&self, text: &str) {
        self.expect(&Told::App(text.to_string()));
    }

    pub fn client(&self) -> Client {
        Client::new(TcpStream::connect(self.address).expect("connect"))
    }

    /// Waits for the end of all app threads.
    pub fn join(self) {
        for thread in self.threads {
            let deadline = Instant::now() + PATIENCE;
            while !thread.is_finished() {
                assert!(Instant::now() < deadline, "an app thread does not end");
                std::thread::yield_now();
            }
            thread.join().expect("an app thread panicked");
        }
    }

    /// Stops at once and waits for the end.
    pub fn stop(self) {
        self.handle.stop(Duration::ZERO);
        self.join();
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn new(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        Client { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
        self
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.answer()
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> Answer {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len())).send(body);
        self.answer()
    }

    fn fill(&mut self) -> usize {
        let mut bytes = [0; 64 * 1024];
        let length = self.stream.read(&mut bytes).expect("an answer in time");
        self.buffer.extend_from_slice(&bytes[..length]);
        length
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8(self.buffer[..end].to_vec()).expect("text");
                self.buffer.drain(..end + 2);
                return line;
            }
            assert!(self.fill() > 0, "closed in the middle of a head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Bytes that were read and not taken.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill() > 0, "closed after {} of {length} bytes", self.buffer.len());
        }
        self.buffer.drain(..length).collect()
    }

    /// The head alone, as after HEAD or as 100.
    pub fn head(&mut self) -> Answer {
        let status = self.line();
        let status = status.strip_prefix("HTTP/1.1 ").expect("a status line")[..3].parse().expect("a status");
        let mut fields = HashMap::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Answer { status, fields, body: Vec::new() };
            }
            let (name, value) = line.split_once(": ").expect("a field");
            let repeated = fields.insert(name.to_ascii_lowercase(), value.to_string());
            assert!(repeated.is_none(), "{name} twice");
        }
    }

    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        if let Some(length) = answer.field("content-length") {
            let length = length.parse().expect("a length");
            answer.body = self.exactly(length);
        } else if answer.field("transfer-encoding") == Some("chunked") {
            loop {
                let length = usize::from_str_radix(&self.line(), 16).expect("a chunk size");
                let data = self.exactly(length);
                answer.body.extend_from_slice(&data);
                assert_eq!(self.line(), "");
                if length == 0 {
                    break;
                }
            }
        } else if !matches!(answer.status, 204 | 304) {
            answer.body = self.rest();
        }
        answer
    }

    /// The body of an answer of which so many bytes, head included, were taken with `exactly`.
    pub fn body_after(&mut self, taken: Vec<u8>) -> Vec<u8> {
        self.buffer.splice(..0, taken);
        self.answer().body
    }

    /// All bytes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        std::mem::take(&mut self.buffer)
    }

    /// The server has closed, without a reset and without another byte.
    pub fn expect_closed(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }

    /// Nothing comes, at least for a while in which a server would have answered often.
    pub fn expect_silence(&mut self) {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
        let read = self.stream.read(&mut [0; 1]);
        assert!(self.buffer.is_empty() && read.is_err(), "{read:?}");
        self.stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    }

    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }
}

pub fn body_of(exchange: &Exchange) -> Vec<u8> {
    match exchange.body() {
        Body::Live(input) => read_live(&input).expect("it comes to its end"),
        Body::Memory(bytes) => bytes.to_vec(),
        Body::File { file, length } => {
            let mut bytes = Vec::new();
            let mut file = std::fs::File::from(file.try_clone_to_owned().expect("dup"));
            file.read_to_end(&mut bytes).expect("read");
            assert_eq!(bytes.len() as u64, length);
            bytes
        }
    }
}

/// A live body to its end.
pub fn read_live(input: &LiveInput) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut place = vec![0; 50_000];
    loop {
        match input.read(&mut place)? {
            Read::Bytes(length) => bytes.extend_from_slice(&place[..length]),
            Read::End => return Ok(bytes),
            Read::Nothing => input.wait(),
        }
    }
}

/// A small application: what it does, the path says.
pub fn app(mut exchange: Exchange, gate: &Gate, voice: &Voice) {
    let path = String::from_utf8(exchange.path().to_vec()).expect("text");
    let number = || path.rsplit('/').next().and_then(|text| text.parse::<usize>().ok()).expect("a number in the path");
    let start = |exchange: &mut Exchange, fields: &[(&[u8], &[u8])]| exchange.start(b"200 OK", fields).expect("valid");
    match path.split('/').nth(1).unwrap_or_default() {
        "hello" => {
            start(&mut exchange, &[(b"Content-Type", b"text/plain")]);
            exchange.write_all(b"hello");
        }
        "echo" => {
            let kind: &[u8] = match exchange.body() {
                Body::Memory(_) => b"memory",
                Body::File { .. } => b"file",
                Body::Live(_) => b"live",
            };
            let body = body_of(&exchange);
            assert_eq!(exchange.content_length().unwrap_or(body.len() as u64), body.len() as u64);
            exchange.start(b"200 OK", &[(b"X-Body", kind)]).expect("valid");
            exchange.write_all(&body);
        }
        "pieces" => {
            start(&mut exchange, &[]);
            for piece in [&b"one "[..], b"", b"two ", b"three"] {
                exchange.write(piece);
            }
        }
        "big" => {
            start(&mut exchange, &[]);
            exchange.write_all(&vec![b'x'; number()]);
        }
        "gate" => {
            voice.say("at the gate");
            gate.pass();
            start(&mut exchange, &[]);
            exchange.write_all(b"passed");
        }
        "length" => {
            let length = number().to_string();
            start(&mut exchange, &[(b"Content-Length", length.as_bytes())]);
            exchange.write(b"12345");
        }
        "empty" => {
            exchange.start(b"204 No Content", &[(b"Content-Length", b"0")]).expect("valid");
        }
        "drop" => return drop(exchange),
        "fail" => return exchange.fail(502),
        "nothing" => {}
        other => panic!("no such path: {other}"),
    }
    let outcome = exchange.finish();
    voice.say(match outcome {
        Ok(()) => format!("{path} ok"),
        Err(bad) => format!("{path} {}", bad.0),
    });
}
