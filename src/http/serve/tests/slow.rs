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
