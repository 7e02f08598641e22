//! What a turn, a queue, a thread and a silent moment may cost at most.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fixture::{app, settings, Client, Fixture, PATIENCE};
use crate::serve::base::budget::Budget;
use crate::serve::base::names::Blocking;
use crate::serve::base::settings::{
    BUFFER_IDLE_BYTES, MEMORY_BYTES_MAX, SEGMENT_BYTES, SHARE_BYTES_MAX, TURN_BYTES_MAX,
};
use crate::serve::conn::answering::{End, Part};
use crate::serve::conn::request::Request;
use crate::serve::event_loop::interface::{Loop, Step};
use crate::serve::event_loop::mode::Command;
use crate::serve::event_loop::shared::Shared;
use crate::serve::event_loop::EventLoop;
use crate::serve::{Exchange, Listener, Metrics, Reports, Server, Settings, Written};

struct Silent;

impl Metrics for Silent {
    fn heartbeat(&self) {}
    fn accepted(&self) {}
    fn connections(&self, _open: usize) {}
}

impl Reports for Silent {
    fn serving(&self) {}
    fn draining(&self) {}
}

/// A loop that the test turns itself.
struct Turns {
    shared: Arc<Shared>,
    event_loop: EventLoop,
    address: SocketAddr,
}

impl Turns {
    fn new(settings: Settings) -> Turns {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("fcntl");
        let listeners = vec![Listener { id: 0, fd: listener.into(), proxy: None }];
        let Server { shared, event_loop } =
            Server::new(settings, listeners, None, Arc::new(Silent), Arc::new(Silent)).expect("a server");
        shared.command(Command::Serve);
        Turns { shared, event_loop, address }
    }

    /// One turn. How many requests were answered in it.
    fn turn(&mut self) -> usize {
        Loop::fetch(&mut self.event_loop, true);
        let mut answered = 0;
        loop {
            match Loop::step(&mut self.event_loop, Blocking::Allowed) {
                Step::Request(request) => self.answer(request),
                Step::Idle => return answered,
                Step::Done => panic!("nobody stopped it"),
            }
            answered += 1;
        }
    }

    /// As an app thread does it, without one.
    fn answer(&mut self, mut request: Box<Request>) {
        let large = [b'x'; 8000];
        let fields: &[(&[u8], &[u8])] = if request.path() == b"/large" { &[(b"X-Large", &large)] } else { &[] };
        request.answer.head.set(b"200 OK", fields).expect("valid");
        request.send(Part { whole: Some(2), ..Part::new(b"ok") }, &self.shared.rules.temp, false);
        request.decide_after(End::Complete);
        self.shared.complete();
        self.event_loop.take_back(request, Instant::now());
    }
}

/// As found: under load the monitor took the event of a signal, and the main thread, which led next, slept on.
#[test]
fn a_signal_that_another_thread_has_seen_is_kept_for_the_main_thread() {
    let (wakeup, mut interpreter) = std::io::pipe().expect("pipe");
    let Turns { mut event_loop, .. } = Turns::new(settings());
    event_loop.watch_signals(wakeup.as_raw_fd()).expect("epoll_ctl");
    interpreter.write_all(&[15]).expect("write");
    for _ in 0..2 {
        assert!(!Loop::fetch(&mut event_loop, false), "it is the main thread's");
        assert!(matches!(Loop::step(&mut event_loop, Blocking::Allowed), Step::Idle));
    }
    assert!(Loop::fetch(&mut event_loop, true));
}

/// As found: 32 uploads had 44 MiB written to temporary files between two looks at anything else.
#[test]
fn a_turn_moves_so_much_and_no_more() {
    const UPLOADS: usize = 24;
    const SENT: usize = 1024 * 1024;
    let mut turns = Turns::new(settings());
    let mut clients: Vec<(TcpStream, usize)> = (0..UPLOADS)
        .map(|_| {
            let mut client = TcpStream::connect(turns.address).expect("connect");
            client.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n").expect("it has room");
            client.set_nonblocking(true).expect("fcntl");
            (client, 0)
        })
        .collect();
    let piece = vec![b'x'; 64 * 1024];
    let deadline = Instant::now() + PATIENCE;
    let (mut before, mut most) = (0, 0);
    while turns.event_loop.received_bytes() < (UPLOADS * SENT) as u64 / 2 {
        assert!(Instant::now() < deadline, "{} bytes came", turns.event_loop.received_bytes());
        for (client, sent) in &mut clients {
            while *sent < SENT {
                match client.write(&piece) {
                    Ok(length) => *sent += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!(turns.turn(), 0);
        most = most.max(turns.event_loop.received_bytes().saturating_sub(before));
        before = turns.event_loop.received_bytes();
    }
    let bound = TURN_BYTES_MAX + SHARE_BYTES_MAX;
    assert!(most <= bound as u64, "{most} bytes in a turn");
    // Nobody was left out.
    assert!(clients.iter().all(|(_, sent)| *sent > SHARE_BYTES_MAX / 2));
}

/// As found: of 300 requests that lay in the kernel when a frozen worker went on, 235 were reset.
#[test]
fn what_came_in_time_is_read_before_a_client_is_given_up() {
    // More than a batch of events has.
    const CLIENTS: usize = 100;
    let header_timeout = Duration::from_millis(400);
    let keepalive_timeout = Some(header_timeout);
    let mut turns = Turns::new(Settings { connections: 128, keepalive_timeout, header_timeout, ..settings() });
    let request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::new(TcpStream::connect(turns.address).expect("connect"))).collect();
    let answer_all = |turns: &mut Turns| {
        let deadline = Instant::now() + PATIENCE;
        let mut answered = 0;
        while answered < CLIENTS {
            assert!(Instant::now() < deadline, "{answered} of {CLIENTS}");
            answered += turns.turn();
        }
    };
    clients.iter_mut().for_each(|client| {
        client.send(request);
    });
    answer_all(&mut turns);
    // Some idle, some in the middle of a head.
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    clients.iter_mut().skip(CLIENTS / 2).for_each(|client| {
        client.send(&request[..10]);
    });
    assert_eq!(turns.turn(), 0);
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(if index < CLIENTS / 2 { &request[..] } else { &request[10..] });
    }
    // Nobody turns the loop meanwhile.
    std::thread::sleep(header_timeout * 2);
    answer_all(&mut turns);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

/// As found: a connection that had sent a body of 16,000 bytes, or had an answer with a head of 8,000, kept as much for its life
/// and longer.
#[test]
fn idle_connections_and_free_places_keep_little() {
    const CLIENTS: usize = 20;
    let mut turns = Turns::new(settings());
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::new(TcpStream::connect(turns.address).expect("connect"))).collect();
    let request = [&b"POST /large HTTP/1.1\r\nHost: h\r\nContent-Length: 16000\r\n\r\n"[..], &[b'x'; 16_000]].concat();
    let deadline = Instant::now() + PATIENCE;
    let mut answered = 0;
    for client in &mut clients {
        client.send(&request);
    }
    while answered < CLIENTS {
        assert!(Instant::now() < deadline, "{answered} of {CLIENTS}");
        answered += turns.turn();
    }
    let (bytes, idle) = turns.event_loop.kept_bytes();
    assert_eq!(idle, CLIENTS);
    assert!(bytes <= CLIENTS * 3 * BUFFER_IDLE_BYTES, "{bytes} bytes in {CLIENTS} idle connections");
    drop(clients);
    while turns.event_loop.open_connections() > 0 {
        assert!(Instant::now() < deadline, "they are never closed");
        turns.turn();
    }
    let (bytes, free) = turns.event_loop.kept_bytes();
    assert_eq!(free, CLIENTS);
    assert!(bytes <= CLIENTS * 3 * BUFFER_IDLE_BYTES, "{bytes} bytes in {CLIENTS} free places");
}

/// A client that sends nothing is given up as before.
#[test]
fn silence_has_its_end() {
    let header_timeout = Duration::from_millis(50);
    let keepalive_timeout = Some(header_timeout);
    let fixture = Fixture::new(Settings { keepalive_timeout, header_timeout, ..settings() }, app);
    let mut client = fixture.client();
    assert_eq!(client.get("/hello").text(), "hello");
    client.expect_closed();
    let mut client = fixture.client();
    assert_eq!(client.send("GET /hello HT").answer().status, 408);
    client.expect_closed();
    fixture.stop();
}

/// As found: HEAD of an endless answer kept its thread for ever.
#[test]
fn an_answer_without_content_ends_with_its_head() {
    let fixture = Fixture::new(settings(), |mut exchange: Exchange, _gate, voice| {
        const MANY: usize = 1000;
        let status: &[u8] = if exchange.path() == b"/none" { b"204 No Content" } else { b"200 OK" };
        exchange.start(status, &[]).expect("valid");
        let pieces = (1..MANY).find(|_| exchange.write(b"event") == Written::Gone);
        assert!(!exchange.gone(), "the client is there");
        exchange.finish().expect("valid");
        voice.say(format!("{pieces:?} pieces"));
    });
    let mut client = fixture.client();
    for request in ["HEAD /events", "HEAD /events", "GET /none"] {
        client.send(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(matches!(client.head().status, 200 | 204));
        fixture.expect_app("Some(1) pieces");
    }
    fixture.stop();
}

/// As found: one thread of the application that still wrote to a slow client, and no connection was accepted any more.
#[test]
fn an_answer_left_to_another_thread_takes_no_place() {
    let kept = Arc::<Mutex<Vec<Exchange>>>::default();
    let keeps = Arc::clone(&kept);
    let fixture = Fixture::new(settings(), move |exchange, gate, voice| {
        if exchange.path() == b"/stray" {
            keeps.lock().expect("no panic while locked").push(exchange);
            voice.say("left behind");
        } else {
            app(exchange, gate, voice);
        }
    });
    let mut stray = fixture.client();
    stray.send("GET /stray HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("left behind");
    for _ in 0..5 {
        assert_eq!(fixture.client().get("/hello").text(), "hello");
    }
    for exchange in kept.lock().expect("no panic while locked").drain(..) {
        exchange.fail(502);
    }
    assert_eq!(stray.answer().status, 502);
    fixture.stop();
}

/// As found: without temporary space 30 clients that read nothing had 626 MiB of answers kept for them.
#[test]
fn an_answer_waits_where_neither_memory_nor_files_have_room() {
    const BODY: usize = 32 * 1024 * 1024;
    let settings = Settings { temp_dir: None, ..settings() };
    let fixture = Fixture::new(settings, |mut exchange: Exchange, gate, voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        let body = vec![b'x'; BODY];
        assert!(!exchange.has_room_for(BODY));
        let (mut rest, mut written) = (&body[..], Written::Done);
        let mut waited = false;
        while !rest.is_empty() {
            if written == Written::Full {
                if !std::mem::replace(&mut waited, true) {
                    voice.say("full");
                    gate.pass();
                }
                assert_eq!(exchange.wait_for_room(), Written::Done);
            }
            let taken;
            (taken, written) = exchange.write_some_of(rest, Some(BODY as u64));
            rest = &rest[taken..];
        }
        exchange.finish().expect("valid");
        voice.say(if waited { "had to wait" } else { "never waited" });
    });
    let memory = Arc::clone(&fixture.handle.shared.rules.memory);
    let mut others = memory.charge();
    assert!(others.grow(MEMORY_BYTES_MAX));
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("full");
    let beyond = memory.used() - MEMORY_BYTES_MAX;
    assert!(beyond <= 2 * SEGMENT_BYTES as u64, "{beyond} bytes");
    fixture.gate.open();
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.len()), (200, BODY));
    fixture.expect_app("had to wait");
    fixture.stop();
}

/// As found: the C library kept the memory of objects that had been sent, and a request waited while it gave that back.
#[test]
fn the_pages_of_what_nobody_reads_go_back_before_it_is_freed() {
    const BODY: usize = 40 * 1024 * 1024;
    /// What of it is there when it is freed.
    #[derive(Debug)]
    struct Bytes(Vec<u8>, bool, Mutex<Sender<(usize, u64)>>, Arc<Budget>);
    impl crate::serve::Piece for Bytes {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
        fn is_ours(&self) -> bool {
            self.1
        }
    }
    impl Drop for Bytes {
        fn drop(&mut self) {
            let left = self.0.iter().filter(|byte| **byte == b'x').count();
            self.2.lock().expect("nothing panics").send((left, self.3.used())).expect("the test waits");
        }
    }
    let (sender, freed) = channel();
    let make: Arc<Mutex<Option<Arc<Budget>>>> = Arc::default();
    let budget = Arc::clone(&make);
    let fixture = Fixture::new(settings(), move |mut exchange: Exchange, _gate, voice| {
        let is_ours = exchange.path() != b"/shared";
        let budget = budget.lock().expect("nothing panics").clone().expect("it is there");
        let piece = Bytes(vec![b'x'; BODY], is_ours, Mutex::new(sender.clone()), budget);
        exchange.start(b"200 OK", &[]).expect("valid");
        let piece = Mutex::new(Some(piece));
        let body = vec![b'x'; BODY];
        let hold = || -> Box<dyn crate::serve::Piece> {
            Box::new(piece.lock().expect("nothing panics").take().expect("it is held once"))
        };
        exchange.write_all_held(&body, &hold, true);
        exchange.finish().expect("valid");
        voice.say("answered");
    });
    let shared = &fixture.handle.shared;
    *make.lock().expect("nothing panics") = Some(Arc::clone(&shared.rules.memory));
    for (path, leaves) in [("/shared", false), ("/ours", false), ("/ours", true)] {
        shared.files.set_stuck(true);
        let mut client = fixture.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        fixture.expect_app("answered");
        if leaves {
            client.exactly(1000);
            drop(client);
        } else {
            assert_eq!(client.answer().body.len(), BODY);
        }
        if path == "/shared" {
            // By whoever sent the last byte of it.
            assert_eq!(freed.recv_timeout(PATIENCE), Ok((BODY, BODY as u64)));
            continue;
        }
        let deadline = Instant::now() + PATIENCE;
        while shared.files.count().1 == 0 {
            assert!(Instant::now() < deadline, "no thread was asked");
            std::thread::yield_now();
        }
        assert_eq!(shared.rules.memory.used(), BODY as u64, "it is there, so it counts");
        shared.files.set_stuck(false);
        let (left, used) = freed.recv_timeout(PATIENCE).expect("it is freed");
        assert!(left < 2 * 64 * 1024, "{left} bytes are left: more than two pages");
        assert_eq!(used, BODY as u64);
    }
    fixture.stop();
}

/// As found: 40 clients that each left the last 1.5 MB of a 20 MiB object in the queue had 800 MiB kept for them.
#[test]
fn an_object_counts_as_long_as_a_byte_of_it_is_wanted() {
    #[derive(Debug)]
    struct Bytes(Vec<u8>);
    impl crate::serve::Piece for Bytes {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }
    const BODY: usize = 16 * 1024 * 1024;
    let fixture = Fixture::new(settings(), |mut exchange: Exchange, _gate, voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        let body = vec![b'x'; BODY];
        exchange.write_all_held(&body, &|| Box::new(Bytes(body.clone())), true);
        exchange.finish().expect("valid");
        voice.say("answered");
    });
    let memory = Arc::clone(&fixture.handle.shared.rules.memory);
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("answered");
    assert_eq!(memory.used(), BODY as u64);
    // Most of it is read: all of it is there nevertheless.
    let some = client.exactly(BODY / 8);
    assert_eq!(memory.used(), BODY as u64);
    assert_eq!(client.body_after(some).len(), BODY);
    fixture.stop();
    assert_eq!(memory.used(), 0);
}
