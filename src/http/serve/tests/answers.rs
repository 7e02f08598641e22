//! What the application says, and what goes out.

use std::io::Write;
use std::os::fd::AsRawFd;

use super::fixture::{app, settings, Fixture};
use crate::serve::Written;

#[test]
fn framing() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    let answer = client.get("/pieces");
    assert_eq!((answer.text(), answer.field("transfer-encoding")), ("one two three", Some("chunked")));
    let answer = client.get("/length/5");
    assert_eq!((answer.text(), answer.field("content-length")), ("12345", Some("5")));
    let answer = client.get("/empty");
    assert_eq!((answer.status, answer.field("content-length")), (204, None));
    client.send("HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().field("content-length"), Some("5"));
    client.send("HEAD /pieces HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().field("transfer-encoding"), None);
    assert_eq!(client.get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn an_answer_longer_than_declared_is_cut_and_reported() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    assert_eq!(client.get("/length/3").text(), "123");
    fixture.expect_app("/length/3 the body is longer than its Content-Length, 3 bytes");
    client.expect_closed();
    fixture.stop();
}

#[test]
fn an_answer_shorter_than_declared_closes_the_connection() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    client.send("GET /length/9 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().field("content-length"), Some("9"));
    assert_eq!(client.rest(), b"12345");
    fixture.expect_app("/length/9 the body has 5 bytes, its Content-Length says 9");
    fixture.stop();
}

#[test]
fn answers_that_never_began() {
    let fixture = Fixture::new(settings(), app);
    for (path, status) in [("/nothing", 500), ("/drop", 500), ("/fail", 502)] {
        let mut client = fixture.client();
        let answer = client.get(path);
        assert_eq!((answer.status, answer.closes()), (status, true), "{path}");
        client.expect_closed();
    }
    fixture.stop();
}

#[test]
fn an_answer_that_breaks_off_can_be_told() {
    let fixture = Fixture::new(settings(), |mut exchange, _gate, _voice| {
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write(b"half");
    });
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").head();
    assert_eq!(client.rest(), b"4\r\nhalf\r\n");
    let mut client = fixture.client();
    client.send("GET / HTTP/1.0\r\n\r\n").head();
    // Without a length only a reset tells.
    let mut bytes = [0; 100];
    let outcome = loop {
        match std::io::Read::read(&mut client.stream, &mut bytes) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error.kind()),
        }
    };
    assert_eq!(outcome, Err(std::io::ErrorKind::ConnectionReset));
    fixture.stop();
}

#[test]
fn start_may_be_repeated_until_the_head_is_out() {
    let fixture = Fixture::new(settings(), |mut exchange, _gate, voice| {
        exchange.start(b"200 OK", &[(b"A", b"b"), (b"Content-Length", b"9")]).expect("valid");
        assert!(exchange.start(b"200 OK", &[(b"A", b"b\r\nc: d")]).is_err());
        exchange.start(b"500 Oops", &[]).expect("valid");
        assert!(!exchange.head_sent());
        assert_eq!(exchange.write(b"x"), Written::Done);
        assert!(exchange.head_sent());
        assert!(exchange.start(b"200 OK", &[]).is_err());
        assert_eq!(exchange.status(), 500);
        exchange.finish().expect("valid");
        voice.say("finished");
    });
    let mut client = fixture.client();
    let answer = client.get("/");
    assert_eq!((answer.status, answer.field("a"), answer.text()), (500, None, "x"));
    fixture.expect_app("finished");
    fixture.stop();
}

#[test]
fn files_are_sent_from_their_offset() {
    let path = std::env::temp_dir().join(format!("forkmaster-sendfile-{}", std::process::id()));
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("file");
    std::fs::remove_file(&path).expect("unlink");
    let content: Vec<u8> = (0..6_000_000u32).map(|number| (number / 7) as u8).collect();
    file.write_all(&content).expect("write");
    let expected = content.clone();
    let fixture = Fixture::new(settings(), move |mut exchange, _gate, voice| {
        let query = exchange.query().to_vec();
        let file = file.try_clone().expect("dup");
        let fields: &[(&[u8], &[u8])] = if query == b"limited" { &[(b"Content-Length", b"20")] } else { &[] };
        exchange.start(b"200 OK", fields).expect("valid");
        if query == b"late" {
            exchange.write(b"first");
            assert_eq!(exchange.send_file(file.as_raw_fd(), 10).expect("a file"), None);
        } else {
            assert_eq!(exchange.send_file(file.as_raw_fd(), 10).expect("a file"), Some(Written::Done));
        }
        drop(file);
        exchange.finish().expect("valid");
        voice.say("free");
    });
    let mut client = fixture.client();
    client.send("GET /?all HTTP/1.1\r\nHost: h\r\n\r\n");
    // The thread is free before the client has read a byte.
    fixture.expect_app("free");
    assert!(client.answer().body == expected[10..]);
    assert!(client.get("/?limited").body == expected[10..30]);
    assert_eq!(client.get("/?late").text(), "first");
    client.send("HEAD /?all HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().field("content-length"), Some("5999990"));
    client.send("GET /?all HTTP/1.0\r\n\r\n");
    assert!(client.answer().body == expected[10..]);
    fixture.stop();
}

#[test]
fn a_pipe_is_no_file_to_send() {
    let fixture = Fixture::new(settings(), |mut exchange, _gate, _voice| {
        let (reader, _writer) = std::io::pipe().expect("pipe");
        exchange.start(b"200 OK", &[]).expect("valid");
        assert_eq!(exchange.send_file(reader.as_raw_fd(), 0).expect("an answer"), None);
        exchange.write_all(b"pieces");
        exchange.finish().expect("valid");
    });
    assert_eq!(fixture.client().get("/").text(), "pieces");
    fixture.stop();
}
