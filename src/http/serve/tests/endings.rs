//! How answers end, what their clients see of it, and what is told: with all bytes, without, or with nobody who wants them.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fixture::{settings, Client, Fixture, Gate, Voice, PATIENCE};
use super::flush_batch::Silent;
use crate::serve::{EarlyHints, Exchange, How, IsProxy, Listener, Server, Settings, Wake, Written};

const LARGE: usize = 16 * 1024 * 1024;

/// The path says what the answer is like; it is also the request's record.
fn app(mut exchange: Exchange, gate: &Gate, voice: &Voice) {
    let path = String::from_utf8_lossy(exchange.path()).into_owned();
    voice.say(path.clone());
    let mut record = exchange.take_record();
    record.extend_from_slice(path.as_bytes());
    exchange.leave_record(record);
    exchange.start(b"200 OK", &[]).expect("valid");
    match path.as_str() {
        "/stream" => {
            let piece = vec![b'x'; LARGE / 64];
            (0..64).take_while(|_| exchange.write(&piece) != Written::Gone).for_each(drop);
        }
        "/cut" => {
            exchange.write(b"begun");
            return exchange.fail(500);
        }
        "/gate" => {
            gate.pass();
            exchange.write_all(b"passed");
        }
        "/file" | "/unreadable" | "/late-file" => {
            let mut options = std::fs::File::options();
            options.write(true).create(true).truncate(true).read(path != "/unreadable");
            let name = std::env::temp_dir().join(format!("forkmaster-endings{}-{}", &path[1..], std::process::id()));
            let file = options.open(&name).expect("file");
            std::fs::remove_file(&name).expect("unlink");
            file.set_len(4 * LARGE as u64).expect("truncate");
            let deadline = Instant::now() + PATIENCE;
            while path == "/late-file" && !exchange.disconnected() {
                assert!(Instant::now() < deadline, "nobody leaves");
                std::thread::yield_now();
            }
            let written = exchange.send_file(file.as_raw_fd(), 0).expect("an answer");
            assert_eq!(written, Some(if path == "/file" { Written::Done } else { Written::Gone }), "{path}");
            voice.say("sent");
            file.set_len(LARGE as u64).expect("truncate");
        }
        "/asks" => {
            let deadline = Instant::now() + PATIENCE;
            while !exchange.disconnected() {
                assert!(Instant::now() < deadline, "nobody leaves");
                std::thread::yield_now();
            }
            voice.say("disconnected");
        }
        "/hints" => {
            let mut hints = EarlyHints::begin();
            hints.add(b"Link", b"</a.css>").expect("valid");
            exchange.early_hints(hints);
            exchange.write_all(b"hinted");
            let mut late = EarlyHints::begin();
            late.add(b"Link", b"</late.css>").expect("valid");
            exchange.early_hints(late);
        }
        _whole => drop(exchange.write_all(b"whole")),
    }
    exchange.finish().expect("valid");
}

fn ask(client: &mut Client, path: &str, version: &str) {
    client.send(format!("GET {path} HTTP/{version}\r\nHost: h\r\n\r\n"));
}

/// The bytes up to the end of the connection, and whether that was a reset.
fn read_to_the_end(client: &mut Client) -> (usize, bool) {
    let mut bytes = 0;
    let mut place = vec![0; 64 * 1024];
    loop {
        match client.stream.read(&mut place) {
            Ok(0) => return (bytes, false),
            Ok(length) => bytes += length,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (bytes, true),
            Err(error) => panic!("{error}"),
        }
    }
}

fn reset(client: Client) {
    let socket = socket2::Socket::from(client.stream);
    socket.set_linger(Some(Duration::ZERO)).expect("setsockopt");
}

#[test]
fn complete_answers_end_cleanly_and_are_told() {
    let fixture = Fixture::new(settings(), app);
    for (path, version, length) in [("/whole", "1.1", 5), ("/whole", "1.0", 5), ("/stream", "1.1", LARGE)] {
        let mut client = fixture.client();
        ask(&mut client, path, version);
        assert_eq!(client.answer().body.len(), length);
        assert_eq!(fixture.expect_end(path), (How::Complete, length as u64), "{path} {version}");
    }
    // Only the close ends this one.
    let mut client = fixture.client();
    ask(&mut client, "/stream", "1.0");
    client.head();
    let buffered = client.buffered();
    assert_eq!(read_to_the_end(&mut client), (LARGE - buffered, false));
    assert_eq!(fixture.expect_end("/stream"), (How::Complete, LARGE as u64));
    fixture.stop();
}

/// As found: it was told that the client had left.
#[test]
fn a_file_that_cannot_be_read_to_its_end_is_a_cut_answer() {
    let fixture = Fixture::new(settings(), app);
    for path in ["/file", "/unreadable"] {
        let mut client = fixture.client();
        ask(&mut client, path, "1.1");
        fixture.expect_app("sent");
        let length = client.head().field("content-length").map(str::to_string);
        assert_eq!(length, Some((4 * LARGE).to_string()));
        let bytes = client.buffered() + read_to_the_end(&mut client).0;
        assert!(bytes < 4 * LARGE, "{bytes}");
        assert_eq!(fixture.expect_end(path), (How::Cut, bytes as u64), "{path}");
    }
    fixture.stop();
}

/// As found: all of it was told as sent.
#[test]
fn nothing_of_a_file_is_sent_to_a_client_that_has_left() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    ask(&mut client, "/late-file", "1.1");
    fixture.expect_app("/late-file");
    reset(client);
    assert_eq!(fixture.expect_end("/late-file"), (How::ClientLeft, 0));
    fixture.stop();
}

/// As found: to an HTTP/1.0 client, nginx by default, a cut download looked complete.
#[test]
fn a_cut_answer_is_never_a_clean_end() {
    let write_timeout = Duration::from_millis(200);
    let fixture = Fixture::new(Settings { write_timeout, ..settings() }, app);
    let mut client = fixture.client();
    ask(&mut client, "/cut", "1.0");
    client.head();
    assert!(read_to_the_end(&mut client).1, "the application failed");
    assert_eq!(fixture.expect_end("/cut"), (How::Cut, 5));
    let mut client = fixture.client();
    ask(&mut client, "/stream", "1.0");
    let (how, sent) = fixture.expect_end("/stream");
    assert!(how == How::WriteTimeout && sent > 0 && sent < LARGE as u64, "{how:?} {sent}");
    let (bytes, was_reset) = read_to_the_end(&mut client);
    assert!(was_reset && bytes < LARGE, "{bytes} bytes, reset: {was_reset}");
    fixture.stop();
}

#[test]
fn a_client_that_leaves_is_told_as_such() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    ask(&mut client, "/stream", "1.1");
    client.exactly(1000);
    reset(client);
    let (how, sent) = fixture.expect_end("/stream");
    assert!(how == How::ClientLeft && sent >= 1000 && sent < LARGE as u64, "{how:?} {sent}");
    fixture.stop();
}

/// As found: behind nginx a download of more than a gigabyte was cut when nginx had its buffers full.
#[test]
fn a_proxy_may_stop_reading_for_longer() {
    let write_timeout = Duration::from_millis(50);
    let is_proxy = IsProxy(Arc::new(|_| true));
    let fixture = Fixture::new(Settings { write_timeout, is_proxy, ..settings() }, app);
    let mut client = fixture.client();
    ask(&mut client, "/stream", "1.1");
    fixture.expect_app("/stream");
    // What is waited for is that nothing happens.
    std::thread::sleep(write_timeout * 10);
    assert_eq!(client.answer().body.len(), LARGE);
    assert_eq!(fixture.expect_end("/stream"), (How::Complete, LARGE as u64));
    fixture.stop();
}

/// As found: after an overload a worker ran the requests of all who had given up before it answered anybody.
#[test]
fn a_request_whose_client_has_gone_is_never_run() {
    let fixture = Fixture::new(settings(), app);
    let mut clients: Vec<Client> = (0..10).map(|_| fixture.client()).collect();
    for client in &mut clients {
        ask(client, "/whole", "1.1");
        assert_eq!(client.answer().text(), "whole");
    }
    let mut next = || clients.pop().expect("there are enough");
    let mut first = next();
    ask(&mut first, "/gate", "1.1");
    fixture.expect_app("/gate");
    for _ in 0..3 {
        let mut client = next();
        ask(&mut client, "/abandoned", "1.1");
        // The loop answers this without the application: what came before it has seen.
        assert_eq!(next().send("garbage\r\n\r\n").answer().status, 400);
        reset(client);
        assert_eq!(next().send("garbage\r\n\r\n").answer().status, 400);
    }
    fixture.gate.open();
    assert_eq!(first.answer().text(), "passed");
    let mut last = fixture.client();
    ask(&mut last, "/last", "1.1");
    assert_eq!(last.answer().text(), "whole");
    let ran = fixture.expect_any_app(|path| path == "/abandoned" || path == "/last");
    assert_eq!(ran, "/last");
    fixture.stop();
}

#[test]
fn an_application_may_ask_whether_somebody_waits() {
    let fixture = Fixture::new(settings(), app);
    for how in ["fin", "reset"] {
        let mut client = fixture.client();
        ask(&mut client, "/asks", "1.1");
        fixture.expect_app("/asks");
        assert!(!fixture.has_said("disconnected"));
        if how == "reset" {
            reset(client);
        } else {
            drop(client);
        }
        fixture.expect_app("disconnected");
    }
    fixture.stop();
}

#[test]
fn early_hints_come_before_the_answer_to_those_who_know_them() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    for _ in 0..2 {
        ask(&mut client, "/hints", "1.1");
        let hints = client.head();
        assert_eq!((hints.status, hints.field("link"), hints.fields.len()), (103, Some("</a.css>"), 1));
        assert_eq!(client.answer().text(), "hinted");
    }
    let mut client = fixture.client();
    ask(&mut client, "/hints", "1.0");
    assert_eq!(client.answer().status, 200);
    fixture.stop();
}

/// As found: the answer waited in the kernel for the connection's end, which is a reset where the client has sent more. The test
/// is the app thread, so that the client can send it while the request runs.
#[test]
fn a_client_that_sends_more_than_its_last_request_gets_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let listeners = vec![Listener { id: 0, fd: listener.into(), proxy: None }];
    let server = Server::new(settings(), listeners, None, Arc::new(Silent), Arc::new(Silent)).expect("server");
    server.handle().serve();
    let mut thread = server.start(None).expect("threads").pop().expect("one app thread");
    for more in ["\r\n", "GET /2 HTTP/1.1\r\n"] {
        let mut client = Client::new(TcpStream::connect(address).expect("connect"));
        client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let Wake::Request(mut exchange) = thread.wait() else { panic!("nothing else was asked for") };
        client.send(more);
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all_held(b"passed", &|| unreachable!("the socket takes so little"), true);
        exchange.finish().expect("valid");
        assert!(thread.poll().is_none());
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("passed", true), "{more:?}");
    }
}
