//! Requests in, answers out, and what is refused.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use super::fixture::{app, body_of, settings, Client, Fixture, Told, PATIENCE};
use crate::serve::{Listener, Local, Peer, Settings};

#[test]
fn keep_alive() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    for _ in 0..3 {
        let answer = client.get("/hello");
        assert_eq!((answer.status, answer.text(), answer.closes()), (200, "hello", false));
        assert_eq!(answer.field("content-length"), Some("5"));
        assert_eq!(answer.field("server"), Some("forkmaster"));
        assert_eq!(answer.field("date").map(str::len), Some(29));
    }
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(client.answer().closes());
    client.expect_closed();
    fixture.stop();
}

/// The kernel keeps a connection to itself while that says nothing, but not for long.
#[test]
fn a_silent_connection_is_taken_all_the_same() {
    let fixture = Fixture::new(settings(), app);
    let mut early = fixture.client();
    assert!(!fixture.has_told(&Told::Accepted));
    assert_eq!(early.get("/hello").text(), "hello");
    fixture.expect(&Told::Accepted);
    let mut late = fixture.client();
    fixture.expect(&Told::Accepted);
    assert_eq!(late.get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn http_1_0() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().field("connection"), Some("keep-alive"));
    client.send("GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.text(), answer.closes()), ("one two three", true));
    assert_eq!(answer.field("transfer-encoding"), None);
    let mut client = fixture.client();
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    assert!(client.answer().closes());
    client.expect_closed();
    fixture.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let fixture = Fixture::new(Settings { threads: 2, ..settings() }, app);
    let mut client = fixture.client();
    let mut bytes = Vec::new();
    for number in 0..50 {
        let body = format!("body {number}");
        bytes.extend_from_slice(
            format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        );
        bytes.extend_from_slice(b"GET /pieces HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    client.send(bytes);
    for number in 0..50 {
        assert_eq!(client.answer().text(), format!("body {number}"));
        assert_eq!(client.answer().text(), "one two three");
    }
    fixture.stop();
}

#[test]
fn bodies_by_length_and_by_chunks() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    assert_eq!(client.post("/echo", b"hello").text(), "hello");
    assert_eq!(client.post("/echo", b"").text(), "");
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in ["3\r", "\nab", "c\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: dropped\r\n", "\r\n"] {
        client.send(piece);
    }
    assert_eq!(client.answer().text(), "abcdefg");
    assert_eq!(client.get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn large_bodies_lie_in_a_file() {
    let fixture = Fixture::new(Settings { body_memory: 1000, ..settings() }, app);
    let mut client = fixture.client();
    let body: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
    let answer = client.post("/echo", &body);
    assert_eq!(answer.field("x-body"), Some("file"));
    assert!(answer.body == body);
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(700) {
        client.send(format!("{:x}\r\n", chunk.len())).send(chunk).send("\r\n");
    }
    let answer = client.send("0\r\n\r\n").answer();
    assert_eq!(answer.field("x-body"), Some("file"));
    assert!(answer.body == body);
    assert_eq!(client.post("/echo", b"small").field("x-body"), Some("memory"));
    fixture.stop();
}

/// Without temporary files one body may be as large as all together, and no larger.
#[test]
fn without_temporary_files_bodies_share_what_memory_they_have() {
    let alone = Settings { temp_dir: None, body_memory: 1000, body_memory_alone: 100_000, ..settings() };
    let fixture = Fixture::new(alone, app);
    let mut one = fixture.client();
    let body = vec![b'x'; 90_000];
    let answer = one.post("/echo", &body);
    assert_eq!((answer.field("x-body"), answer.body == body), (Some("memory"), true));
    // What has come of one counts against the other.
    one.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 90000\r\n\r\n").send(&body[..80_000]);
    let mut other = fixture.client();
    let budget = Arc::clone(&fixture.handle.shared.rules.bodies);
    while budget.used() < 80_000 {
        std::thread::yield_now();
    }
    assert_eq!(other.post("/echo", &body[..30_000]).status, 503);
    one.send(&body[80_000..]);
    assert_eq!(one.answer().status, 200);
    fixture.stop();
}

#[test]
fn bodies_that_find_no_place() {
    let chunked = |bytes: usize| {
        let chunk = format!("64\r\n{}\r\n", "x".repeat(100));
        format!("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(bytes / 100))
    };
    let plain = |bytes: usize| format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {bytes}\r\n\r\n");
    let small =
        Settings { body_memory: 1000, body_memory_alone: 2000, max_body: 10_000, temp_limit: 5_000, ..settings() };
    let nowhere = Settings { temp_dir: None, ..small.clone() };
    for (settings, request, status) in [
        (small.clone(), plain(10_001), 413),
        (small.clone(), chunked(10_100), 413),
        (Settings { temp_limit: 1 << 20, ..small.clone() }, chunked(10_100), 413),
        (small.clone(), plain(6_000), 503),
        (small.clone(), chunked(9_000) + "0\r\n\r\n", 503),
        (nowhere.clone(), plain(2_001), 413),
        (nowhere, chunked(2_100), 413),
    ] {
        let fixture = Fixture::new(settings, app);
        let mut client = fixture.client();
        client.send(&request);
        let answer = client.answer();
        assert_eq!(answer.status, status);
        assert!(answer.closes());
        client.half_close();
        client.expect_closed();
        fixture.stop();
    }
}

#[test]
fn a_hundred_is_sent_only_if_the_body_will_be_read() {
    let fixture = Fixture::new(Settings { max_body: 1000, ..settings() }, app);
    let mut client = fixture.client();
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.head().status, 100);
    assert_eq!(client.send("abc").answer().text(), "abc");
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(client.answer().text(), "abc");
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n");
    assert_eq!(client.answer().status, 413);
    let mut client = fixture.client();
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: miracles\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.answer().status, 417);
    fixture.stop();
}

#[test]
fn refused_requests_end_the_connection() {
    let fixture = Fixture::new(Settings { limit_request_line: 100, ..settings() }, app);
    let next = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n";
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_string(), 400),
        ("GET / HTTP/1.1\nHost: h\n\n".to_string(), 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n".to_string(), 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_string(), 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n".to_string(), 501),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n".to_string(), 505),
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(200)), 414),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{}", "A: b\r\n".repeat(200)), 431),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n".to_string(), 501),
        ("\x16\x03\x01\x02\x00".to_string(), 400),
    ] {
        let mut client = fixture.client();
        client.send(format!("{request}{next}"));
        let answer = client.answer();
        assert_eq!(answer.status, status, "{request:?}");
        assert!(answer.closes());
        // Without a reset, although much was not read.
        client.send(next);
        client.half_close();
        client.expect_closed();
    }
    fixture.stop();
}

#[test]
fn silence_has_its_limits() {
    let short = Duration::from_millis(50);
    let fixture = Fixture::new(
        Settings { keepalive_timeout: Some(short), header_timeout: short, body_timeout: short, ..settings() },
        app,
    );
    let mut silent = fixture.client();
    silent.expect_closed();
    let mut kept = fixture.client();
    assert_eq!(kept.get("/hello").status, 200);
    kept.expect_closed();
    let mut head = fixture.client();
    assert_eq!(head.send("GET / HT").answer().status, 408);
    let mut body = fixture.client();
    assert_eq!(body.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na").answer().status, 408);
    fixture.expect(&Told::Connections(0));
    fixture.stop();
}

/// A read stops before the urgent byte, and the rest lies behind it.
#[test]
fn what_comes_behind_an_urgent_byte_is_read() {
    let fixture = Fixture::new(Settings { header_timeout: PATIENCE * 2, ..settings() }, app);
    let mut client = fixture.client();
    assert_eq!(client.get("/hello").text(), "hello");
    client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    client.send("GET /hel");
    SockRef::from(&client.stream).send_out_of_band(b"!").expect("it is connected");
    client.send("lo HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.gate.open();
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().text(), "hello");
    fixture.stop();
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    client.half_close();
    assert_eq!(client.answer().text(), "hello");
    client.expect_closed();
    let mut client = fixture.client();
    client.send("GET /hello HTT");
    client.half_close();
    assert_eq!(client.answer().text(), "Bad Request: the request ends too early\n");
    client.expect_closed();
    let mut client = fixture.client();
    client.half_close();
    client.expect_closed();
    fixture.stop();
}

#[test]
fn what_a_request_tells() {
    let fixture = Fixture::new(settings(), |mut exchange, _gate, voice| {
        let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields: Vec<_> = exchange.fields().map(|(name, value)| format!("{}={}", show(name), show(value))).collect();
        let (Peer::Inet(peer), Local::Inet(local)) = (exchange.peer(), exchange.local()) else { panic!("TCP") };
        assert!(peer.ip().is_loopback() && local.ip().is_loopback());
        voice.say(format!(
            "{} {} {} {} {:?} {} {:?}",
            show(exchange.method()),
            show(exchange.target()),
            show(exchange.path()),
            show(exchange.query()),
            exchange.version(),
            fields.join(";"),
            exchange.content_length()
        ));
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.finish().expect("an empty answer");
    });
    let mut client = fixture.client();
    client.send("PURGE http://x:1/p%20q?r=s HTTP/1.1\r\nHost: h\r\nA_b:  c \r\nA_b: d\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().field("content-length"), Some("0"));
    fixture.expect_app("PURGE http://x:1/p%20q?r=s /p%20q r=s Http11 Host=x:1;A_b=c;A_b=d;Content-Length=0 Some(0)");
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    fixture.expect_app("GET / /  Http11 Host=h None");
    fixture.stop();
}

#[test]
fn unix_sockets() {
    let path = std::env::temp_dir().join(format!("forkmaster-http-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("bind");
    listener.set_nonblocking(true).expect("fcntl");
    let anywhere = "127.0.0.1:0".parse().expect("an address");
    let expected = path.clone();
    let fixture = Fixture::with(
        settings(),
        anywhere,
        vec![Listener { id: 7, fd: listener.into(), proxy: None }],
        None,
        move |mut exchange, _gate, _voice| {
            assert!(matches!(exchange.peer(), Peer::Unix));
            assert!(matches!(exchange.local(), Local::Unix(path) if *path == expected));
            let body = body_of(&exchange);
            exchange.start(b"200 OK", &[]).expect("valid");
            exchange.write_all(&body);
            exchange.finish().expect("valid");
        },
    );
    fixture.handle.serve();
    let stream = UnixStream::connect(&path).expect("connect");
    // The helper knows TCP streams; on a descriptor, read and write are the same.
    let mut client = Client::new(TcpStream::from(std::os::fd::OwnedFd::from(stream)));
    for _ in 0..2 {
        assert_eq!(client.post("/", b"over a path").text(), "over a path");
    }
    drop(client);
    fixture.stop();
    std::fs::remove_file(&path).expect("unlink");
}

#[test]
fn a_blocking_listener_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let error =
        crate::serve::event_loop::listeners::Listeners::new(vec![Listener { id: 3, fd: listener.into(), proxy: None }]);
    assert!(error.is_err_and(|error| error.to_string().contains("listener 3")));
}

#[test]
fn a_full_table_closes_the_longest_idle_connection() {
    let fixture = Fixture::new(Settings { connections: 3, ..settings() }, app);
    let mut clients: Vec<Client> = (0..3).map(|_| fixture.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/hello").text(), "hello");
    }
    // The first is used again, so the second is the longest idle.
    assert_eq!(clients[0].get("/hello").text(), "hello");
    let mut fourth = fixture.client();
    assert_eq!(fourth.get("/hello").text(), "hello");
    clients[1].expect_closed();
    assert_eq!(clients[0].get("/hello").text(), "hello");
    assert_eq!(clients[2].get("/hello").text(), "hello");
    // None idle: the fifth waits in the backlog until one is.
    drop(clients.remove(1));
    clients.push(fourth);
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: h\r\nX: ");
    }
    let mut fifth = fixture.client();
    fifth.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    for client in &mut clients {
        assert_eq!(client.send("y\r\n\r\n").answer().text(), "hello");
    }
    assert_eq!(fifth.answer().text(), "hello");
    fixture.stop();
}

/// Whoever sends requests without end has a share of each turn, and no more.
#[test]
fn an_endless_pipeline_shuts_out_nobody() {
    let fixture = Fixture::new(settings(), app);
    let mut endless = fixture.client();
    let mut reading = endless.stream.try_clone().expect("dup");
    let writer = std::thread::spawn(move || {
        let requests = "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
        // Until the server has had enough.
        while std::io::Write::write_all(&mut endless.stream, requests.as_bytes()).is_ok() {}
    });
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 64 * 1024];
        let mut answered = 0;
        while let Ok(length @ 1..) = std::io::Read::read(&mut reading, &mut bytes) {
            answered += length;
        }
        answered
    });
    fixture.expect_app("/hello ok");
    for _ in 0..50 {
        assert_eq!(fixture.client().get("/hello").text(), "hello");
    }
    // Commands have their turn too; the drain ends the pipeline with a last answer.
    fixture.handle.drain(vec![]);
    fixture.expect(&Told::Draining);
    assert!(reader.join().expect("the reader ends") > 0);
    writer.join().expect("the writer ends");
    fixture.join();
}

/// The last answer and the end of its connection come together, and nothing waits for what does not come.
#[test]
fn an_answer_that_ends_its_connection_comes_with_its_end() {
    #[derive(Debug)]
    struct Nothing;
    impl crate::serve::Piece for Nothing {
        fn bytes(&self) -> &[u8] {
            b""
        }
    }
    let fixture = Fixture::new(settings(), |mut exchange, _gate, _voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all_held(b"whole", &|| Box::new(Nothing), true);
        exchange.finish().expect("valid");
    });
    for close in [true, false] {
        let mut client = fixture.client();
        let option = if close { "Connection: close\r\n" } else { "" };
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{option}\r\n"));
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("whole", close));
        if close {
            client.expect_closed();
        } else {
            assert_eq!(client.get("/").text(), "whole");
        }
    }
    fixture.stop();
}
