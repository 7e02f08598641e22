//! Slow clients cost a buffer, never a thread.

use std::time::Duration;

use super::fixture::{app, settings, Fixture, Told};
use crate::serve::{Settings, Written};

const BIG: usize = 5_000_000;

#[test]
fn a_slow_reader_frees_the_thread() {
    for temp_dir in [settings().temp_dir, None] {
        let fixture = Fixture::new(Settings { temp_dir, ..settings() }, app);
        let mut slow: Vec<_> = (0..4).map(|_| fixture.client()).collect();
        for client in &mut slow {
            client.send(format!("GET /big/{BIG} HTTP/1.1\r\nHost: h\r\n\r\n"));
            fixture.expect_app(&format!("/big/{BIG} ok"));
        }
        assert_eq!(fixture.client().get("/hello").text(), "hello");
        for client in &mut slow {
            let answer = client.answer();
            assert_eq!(answer.body.len(), BIG);
            assert!(answer.body.iter().all(|&byte| byte == b'x'));
            assert_eq!(client.get("/hello").text(), "hello");
        }
        fixture.stop();
    }
}

#[test]
fn a_slow_writer_needs_no_thread() {
    let fixture = Fixture::new(settings(), app);
    let mut slow = fixture.client();
    for piece in ["POST /echo HT", "TP/1.1\r\nHost: h\r", "\nContent-Length: 6\r\n\r\n", "abc"] {
        slow.send(piece);
        assert_eq!(fixture.client().get("/hello").text(), "hello");
    }
    assert_eq!(slow.send("def").answer().text(), "abcdef");
    fixture.stop();
}

#[test]
fn backpressure_beyond_the_response_buffer() {
    const PIECES: usize = 200;
    let fixture = Fixture::new(Settings { response_buffer: 1_000_000, ..settings() }, |mut exchange, _gate, voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        let mut full = false;
        for number in 0..PIECES {
            if exchange.write(&[number as u8; 50_000]) == Written::Full {
                if !full {
                    voice.say("full");
                }
                full = true;
                assert_eq!(exchange.wait_for_room(), Written::Done);
            }
        }
        exchange.finish().expect("valid");
        voice.say("finished");
    });
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("full");
    let body = client.answer().body;
    assert_eq!(body.len(), PIECES * 50_000);
    assert!(body.chunks(50_000).enumerate().all(|(number, piece)| piece.iter().all(|&byte| byte == number as u8)));
    fixture.expect_app("finished");
    fixture.stop();
}

#[test]
fn pieces_may_be_taken_in_part() {
    let small = Settings { response_buffer: 300_000, temp_dir: None, ..settings() };
    let fixture = Fixture::new(small, |mut exchange, _gate, voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        let body = vec![b'y'; 20_000_000];
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (taken, written) = exchange.write_some(rest);
            assert!(taken <= 300_000);
            rest = &rest[taken..];
            if written == Written::Full {
                exchange.wait_for_room();
            }
        }
        exchange.finish().expect("valid");
        voice.say("finished");
    });
    let mut client = fixture.client();
    assert_eq!(client.get("/").body.len(), 20_000_000);
    fixture.expect_app("finished");
    fixture.stop();
}

#[test]
fn a_reader_that_reads_nothing_is_dropped() {
    let short = Settings { response_buffer: 100_000, write_timeout: Duration::from_millis(100), ..settings() };
    let fixture = Fixture::new(short, |mut exchange, _gate, voice| {
        let path = exchange.path().to_vec();
        exchange.start(b"200 OK", &[]).expect("valid");
        if path == b"/whole" {
            exchange.write_all(&vec![b'x'; 20_000_000]);
        } else {
            while exchange.write(&[b'x'; 50_000]) != Written::Gone {
                exchange.wait_for_room();
            }
            assert!(exchange.gone());
        }
        exchange.finish().expect("not the application's fault");
        voice.say("finished");
    });
    for path in ["/whole", "/pieces"] {
        let mut client = fixture.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        fixture.expect_all(&[Told::App("finished".to_string()), Told::Connections(0)]);
    }
    fixture.stop();
}

#[test]
fn a_client_that_leaves_ends_the_answer_not_the_thread() {
    let fixture = Fixture::new(settings(), |mut exchange, gate, voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write(b"first");
        voice.say("began");
        gate.pass();
        while exchange.write(&[b'x'; 1000]) != Written::Gone {
            std::thread::yield_now();
        }
        assert!(exchange.gone());
        exchange.finish().expect("not the application's fault");
        voice.say("finished");
    });
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("began");
    drop(client);
    fixture.gate.open();
    fixture.expect_all(&[Told::App("finished".to_string()), Told::Connections(0)]);
    // In the middle of a head and of a body.
    for piece in ["GET / HT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"] {
        let mut client = fixture.client();
        client.send(piece);
        fixture.expect(&Told::Connections(1));
        drop(client);
        fixture.expect(&Told::Connections(0));
    }
    fixture.stop();
}

/// A byte now and then moves the timer on, and is too little all the same.
#[test]
fn a_body_that_dribbles_is_refused() {
    let short = Settings { body_timeout: Duration::from_millis(200), ..settings() };
    for head in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let fixture = Fixture::new(short.clone(), app);
        let mut slow = fixture.client();
        slow.send(format!("POST /echo HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\nfffff\r\n"));
        let began = std::time::Instant::now();
        let pause = Duration::from_millis(20);
        slow.stream.set_read_timeout(Some(pause)).expect("setsockopt");
        let mut first = [0];
        // Each try to read is the pause between two bytes.
        while std::io::Read::read(&mut slow.stream, &mut first).is_err() {
            assert!(began.elapsed() < super::fixture::PATIENCE, "it may dribble for ever");
            slow.send("x");
        }
        slow.stream.set_read_timeout(Some(super::fixture::PATIENCE)).expect("setsockopt");
        let answer = slow.rest();
        assert!(answer.starts_with(b"TTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
        // Longer than a silence would have been allowed to last.
        assert!(began.elapsed() >= short.body_timeout);
        fixture.stop();
    }
}

/// One that is fast enough may take many times the timeout in all.
#[test]
fn a_slow_body_may_take_long() {
    let short = Settings { body_timeout: Duration::from_millis(100), ..settings() };
    let fixture = Fixture::new(short.clone(), app);
    let mut slow = fixture.client();
    let began = std::time::Instant::now();
    let mut sent = 0;
    slow.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    while began.elapsed() < short.body_timeout * 5 {
        slow.send("40\r\n").send([b'x'; 64]).send("\r\n");
        sent += 64;
        // A pace of more than the minimum, not a wait for something.
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(slow.send("0\r\n\r\n").answer().body.len(), sent);
    fixture.stop();
}

#[test]
fn a_reader_that_dribbles_is_dropped() {
    let short = Settings { write_timeout: Duration::from_millis(200), ..settings() };
    let fixture = Fixture::new(short, app);
    // Small buffers, or the kernel would hold most of the answer.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    socket.set_recv_buffer_size(4096).expect("setsockopt");
    socket.connect(&fixture.address.into()).expect("connect");
    let mut slow = super::fixture::Client::new(socket.into());
    slow.send("GET /big/50000000 HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("/big/50000000 ok");
    let began = std::time::Instant::now();
    let mut byte = [0];
    loop {
        assert!(began.elapsed() < super::fixture::PATIENCE, "it may dribble for ever");
        match std::io::Read::read(&mut slow.stream, &mut byte) {
            Ok(1) => {}
            // What the server has closed with unsent bytes ends with FIN or RST.
            Ok(_) | Err(_) => break,
        }
        if fixture.has_told(&Told::Connections(0)) {
            break;
        }
        // A pace, not a wait for something.
        std::thread::sleep(Duration::from_millis(10));
    }
    fixture.stop();
}

/// It takes its time, but it does take: more than the minimum, less than what makes the socket writable again.
#[test]
fn a_reader_that_is_slow_but_reads_is_served_to_the_end() {
    let short = Settings { write_timeout: Duration::from_millis(200), ..settings() };
    let fixture = Fixture::new(short.clone(), app);
    let mut slow = fixture.client();
    slow.send(format!("GET /big/{} HTTP/1.1\r\nHost: h\r\n\r\n", 4 * BIG));
    fixture.expect_app(&format!("/big/{} ok", 4 * BIG));
    let began = std::time::Instant::now();
    let mut taken = Vec::new();
    while began.elapsed() < short.write_timeout * 8 {
        // Enough for the receiver to announce a larger window each time.
        taken.extend(slow.exactly(128 * 1024));
        // A pace, not a wait for something.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(slow.body_after(taken).len(), 4 * BIG);
    fixture.stop();
}

/// A client that sends a lot before it looks at its answer still gets it, and no reset.
#[test]
fn a_refused_upload_is_read_so_that_the_answer_arrives() {
    const UPLOAD: usize = 50_000_000;
    let fixture = Fixture::new(Settings { max_body: 1000, ..settings() }, app);
    for head in ["Content-Length: 50000000", "Transfer-Encoding: chunked"] {
        let mut client = fixture.client();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n2faf080\r\n"));
        for _ in 0..UPLOAD / 100_000 {
            client.send([b'x'; 100_000]);
        }
        assert_eq!(client.answer().status, 413, "{head}");
        client.half_close();
        client.expect_closed();
    }
    fixture.stop();
}

/// Chunks of one byte must not cost a system call each.
#[test]
fn tiny_chunks_of_a_large_body_are_gathered() {
    const CHUNKS: usize = 1_000_000;
    let fixture = Fixture::new(Settings { body_memory: 1000, ..settings() }, app);
    let mut client = fixture.client();
    let began = std::time::Instant::now();
    client.send("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..CHUNKS / 1000 {
        client.send("1\r\nx\r\n".repeat(1000));
    }
    let answer = client.send("0\r\n\r\n").answer();
    assert_eq!((answer.body.len(), answer.field("x-body")), (CHUNKS, Some("file")));
    println!("{CHUNKS} chunks of one byte in {:?}", began.elapsed());
    fixture.stop();
}

/// Announced bytes take no room from others.
#[test]
fn announcing_much_costs_nothing() {
    let small = Settings { temp_limit: 200_000, body_memory: 1000, ..settings() };
    let fixture = Fixture::new(small, app);
    let mut announcing: Vec<_> = (0..20).map(|_| fixture.client()).collect();
    for client in &mut announcing {
        client.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 150000\r\n\r\nx");
    }
    fixture.expect(&Told::Connections(20));
    let answer = fixture.client().post("/echo", &[b'y'; 150_000]);
    assert_eq!((answer.status, answer.body.len()), (200, 150_000));
    drop(announcing);
    fixture.stop();
}

/// A large body that somebody owns is not copied for a slow reader, and is let go of when it was sent or the client left.
#[test]
fn a_held_body_is_sent_from_where_it_is() {
    #[derive(Debug)]
    struct Owned(std::sync::Arc<Vec<u8>>);
    impl crate::serve::Piece for Owned {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
    }
    let body = std::sync::Arc::new((0..BIG).map(|number| (number / 7) as u8).collect::<Vec<u8>>());
    let owned = std::sync::Arc::clone(&body);
    let fixture = Fixture::new(settings(), move |mut exchange, _gate, voice| {
        // One byte less than there are: what is declared counts.
        let length = (BIG - 1).to_string();
        let declared = exchange.path() == b"/declared";
        let fields: &[(&[u8], &[u8])] = if declared { &[(b"Content-Length", length.as_bytes())] } else { &[] };
        exchange.start(b"200 OK", fields).expect("valid");
        let hold = std::sync::Arc::clone(&owned);
        exchange.write_all_held(&owned, &|| Box::new(Owned(std::sync::Arc::clone(&hold))), false);
        assert_eq!(exchange.finish().is_err(), declared);
        voice.say("free");
    });
    for (path, length) in [("/", BIG), ("/declared", BIG - 1)] {
        let mut slow = fixture.client();
        slow.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        fixture.expect_app("free");
        assert!(slow.answer().body == body[..length]);
    }
    let mut leaving = fixture.client();
    leaving.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("free");
    drop(leaving);
    fixture.expect(&Told::Connections(0));
    fixture.stop();
    // The test's own, and nobody else's: the handler has gone with the server.
    assert_eq!(std::sync::Arc::strong_count(&body), 1);
}
