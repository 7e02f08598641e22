//! Bodies that the application reads as they come.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use socket2::SockRef;

use super::fixture::{body_of, read_live, settings, wait_until, Fixture, Gate, Voice};
use crate::serve::{Body, Exchange, Settings, StreamBodies};

const BYTES: usize = 3_000_000;
const FIRST: usize = 200_000;
const CHUNK: usize = 70_001;

fn live() -> Settings {
    Settings { body_memory: 64 * 1024, stream_bodies: StreamBodies::Fast, ..settings() }
}

fn body() -> Vec<u8> {
    (0..BYTES).map(|number| (number / 7 % 251) as u8).collect()
}

fn head(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {BYTES}\r\n\r\n")
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let pieces = body.chunks(CHUNK);
    let mut bytes: Vec<u8> =
        pieces.flat_map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).collect();
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Says when it has a live body, and what became of reading it.
fn reads(mut exchange: Exchange, _: &Gate, voice: &Voice) {
    let Body::Live(input) = exchange.body() else {
        let bytes = body_of(&exchange).len();
        voice.say(format!("whole {bytes}"));
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(b"whole");
        return exchange.finish().expect("valid");
    };
    voice.say("live");
    match read_live(&input) {
        Ok(bytes) => {
            let is_right = bytes == body();
            exchange.start(b"200 OK", &[]).expect("valid");
            exchange.write_all(if is_right { b"right" } else { b"wrong" });
            exchange.finish().expect("valid");
        }
        Err(error) => {
            voice.say(format!("failed: {error}"));
            let (status, _) = exchange.body_failure().expect("it has failed");
            exchange.fail(status);
        }
    }
}

#[test]
fn the_application_runs_before_the_body_is_there_and_the_connection_goes_on() {
    for threads in [1, 4] {
        let fixture = Fixture::new(Settings { threads, ..live() }, reads);
        let mut client = fixture.client();
        let body = body();
        for _ in 0..2 {
            client.send(head("/")).send(&body[..FIRST]);
            fixture.expect_app("live");
            client.send(&body[FIRST..]);
            assert_eq!(client.answer().text(), "right");
        }
        // The next request comes with the last bytes of the body, and was read by whoever read those.
        client.send(head("/")).send(&body[..FIRST]);
        fixture.expect_app("live");
        client.send([&body[FIRST..], b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"].concat());
        assert_eq!((client.answer().text(), client.answer().text()), ("right", "whole"));
        fixture.stop();
    }
}

#[test]
fn a_chunked_body_goes_live_where_its_path_is_listed() {
    let stream_bodies = StreamBodies::Under(vec!["/upload/".to_string()]);
    let fixture = Fixture::new(Settings { stream_bodies, ..live() }, reads);
    let mut client = fixture.client();
    let bytes = chunked(&body());
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(head("/upload/1")).send(&bytes[..FIRST]);
    fixture.expect_app("live");
    client.send([&bytes[FIRST..], b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"].concat());
    assert_eq!((client.answer().text(), client.answer().text()), ("right", "whole"));
    client.send(head("/other")).send(&bytes);
    assert_eq!(client.answer().text(), "whole");
    fixture.expect_app(&format!("whole {BYTES}"));
    // One that is no body.
    let whole_chunks = chunked(&body()[..3 * CHUNK]);
    client.send(head("/upload/2")).send(&whole_chunks[..whole_chunks.len() - b"0\r\n\r\n".len()]);
    fixture.expect_app("live");
    client.send(b"no size\r\n");
    let answer = client.answer();
    assert!(answer.status == 400 && answer.closes());
    fixture.stop();
}

#[test]
fn what_is_not_allowed_goes_to_a_file() {
    let fixture = Fixture::new(Settings { stream_bodies: StreamBodies::Never, ..live() }, reads);
    assert_eq!(fixture.client().post("/", &body()).text(), "whole");
    fixture.stop();
    let fixture = Fixture::new(live(), reads);
    let bytes = chunked(&body());
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(fixture.client().send(head).send(bytes).answer().text(), "whole");
    fixture.stop();
    // No machine is as fast as this.
    let fixture = Fixture::new(Settings { live_bytes_per_s_min: u64::MAX, ..live() }, reads);
    assert_eq!(fixture.client().post("/", &body()).text(), "whole");
    fixture.stop();
}

/// The thread is free after two seconds, and no other client is waited for.
#[test]
fn a_client_that_stops_is_given_up_and_no_other_is_trusted() {
    let fixture = Fixture::new(live(), reads);
    let mut client = fixture.client();
    client.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("live");
    let answer = client.answer();
    assert!(answer.status == 408 && answer.closes());
    fixture.expect_app("failed: request body not received in time");
    let mut second = fixture.client();
    second.send(head("/")).send(&body()[..FIRST]);
    assert_eq!(fixture.client().get("/").text(), "whole");
    second.send(&body()[FIRST..]);
    assert_eq!(second.answer().text(), "whole");
    fixture.stop();
}

#[test]
fn a_client_that_leaves_ends_the_read() {
    let fixture = Fixture::new(Settings { threads: 2, ..live() }, reads);
    let mut client = fixture.client();
    client.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("live");
    client.stream.shutdown(Shutdown::Write).expect("it is open");
    fixture.expect_app("failed: the request ends too early");
    assert_eq!(client.answer().status, 400);
    let mut client = fixture.client();
    client.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("live");
    SockRef::from(&client.stream).set_linger(Some(std::time::Duration::ZERO)).expect("setsockopt");
    drop(client);
    fixture.expect_app("failed: the client has left in the middle of the request");
    assert_eq!(fixture.client().get("/").text(), "whole");
    fixture.stop();
}

/// An application that answers without reading, or after a half: the client gets the answer, and then the end.
#[test]
fn what_is_not_read_ends_the_connection() {
    for takes in [0, BYTES / 2] {
        let fixture = Fixture::new(live(), move |mut exchange, _, voice| {
            let Body::Live(input) = exchange.body() else { panic!("it is whole") };
            voice.say("live");
            let mut left = takes;
            let mut place = vec![0; 10_000];
            while left > 0 {
                match input.read(&mut place).expect("it comes") {
                    crate::serve::Read::Bytes(bytes) => left = left.saturating_sub(bytes),
                    crate::serve::Read::Nothing => input.wait(),
                    crate::serve::Read::End => panic!("it has ended"),
                }
            }
            exchange.start(b"413 Payload Too Large", &[]).expect("valid");
            exchange.write_all(b"no");
            exchange.finish().expect("valid");
            assert!(input.read(&mut place).is_err(), "the request is over");
            voice.say("over");
        });
        let mut client = fixture.client();
        client.send(head("/")).send(&body()[..FIRST]);
        fixture.expect_app("live");
        client.send(&body()[FIRST..]);
        fixture.expect_app("over");
        let answer = client.answer();
        assert!(answer.status == 413 && answer.closes() && answer.text() == "no");
        fixture.stop();
    }
}

/// Half of the threads read live bodies, and the others are there for everybody else.
#[test]
fn half_of_the_threads_are_left() {
    let fixture = Fixture::new(Settings { threads: 4, ..live() }, reads);
    let mut uploads: Vec<_> = (0..3).map(|_| fixture.client()).collect();
    for client in &mut uploads[..2] {
        client.send(head("/")).send(&body()[..FIRST]);
        fixture.expect_app("live");
    }
    uploads[2].send(head("/")).send(body());
    assert_eq!(uploads[2].answer().text(), "whole");
    for client in &mut uploads[..2] {
        client.send(&body()[FIRST..]);
        assert_eq!(client.answer().text(), "right");
    }
    fixture.stop();
}

/// What the loop answers itself takes no thread, and has no body that would.
#[test]
fn a_body_for_the_health_path_is_no_live_one_for_ever() {
    let fixture = Fixture::new(Settings { threads: 2, health_path: Some(b"/healthz".to_vec()), ..live() }, reads);
    for _ in 0..2 {
        let mut client = fixture.client();
        client.send(head("/healthz").replace("POST", "GET")).send(&body()[..FIRST]);
        let answer = client.answer();
        assert!(answer.closes() && answer.text() == "ok\n");
    }
    let mut client = fixture.client();
    client.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("live");
    client.send(&body()[FIRST..]);
    assert_eq!(client.answer().text(), "right");
    fixture.stop();
}

/// Faster than the least pace, and slower than a client may be while others wait for its thread.
#[test]
fn a_thread_that_others_wait_for_is_not_held_for_long() {
    let fixture = Fixture::new(Settings { threads: 2, ..live() }, |exchange, gate, voice| {
        if exchange.path() == b"/gate" {
            voice.say("at the gate");
            gate.pass();
        }
        reads(exchange, gate, voice);
    });
    let mut slow = fixture.client();
    slow.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("live");
    let mut busy = fixture.client();
    busy.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    let mut waits = fixture.client();
    waits.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut sending = slow.stream.try_clone().expect("dup");
    // It ends when the client is given up, or with the body.
    let sender = std::thread::spawn(move || {
        for _ in 0..150 {
            if sending.write_all(&[0; 16 * 1024]).is_err() {
                return;
            }
            // Not a wait for something: 160 KiB a second.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(waits.answer().text(), "whole");
    assert_eq!(slow.answer().status, 408);
    fixture.gate.open();
    assert_eq!(busy.answer().text(), "whole");
    sender.join().expect("it does not panic");
    fixture.stop();
}

/// As found: the only thread was taken for wanted as soon as it had a request of a new connection, so a client that paused was
/// given up where nobody waited.
#[test]
fn the_only_thread_is_not_wanted_where_nobody_waits() {
    let fixture = Fixture::new(live(), |exchange, gate, voice| {
        voice.say("at the gate");
        gate.pass();
        reads(exchange, gate, voice);
    });
    let shared = &fixture.handle.shared;
    let mut first = fixture.client();
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    wait_until("the loop stops listening", || shared.may_be_wanted());
    assert!(!shared.is_wanted());
    let mut second = fixture.client();
    second.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("somebody waits", || shared.is_wanted());
    fixture.gate.open();
    assert_eq!(first.answer().text(), "whole");
    fixture.gate.open();
    assert_eq!(second.answer().text(), "whole");
    fixture.stop();
}

#[test]
fn an_answer_may_begin_before_the_body_ends() {
    let fixture = Fixture::new(live(), |mut exchange, _, voice| {
        let Body::Live(input) = exchange.body() else { panic!("it is whole") };
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write(b"first ");
        voice.say("answers");
        let bytes = read_live(&input).expect("it comes to its end");
        exchange.write(if bytes == body() { b"right" } else { b"wrong" });
        exchange.finish().expect("valid");
    });
    let mut client = fixture.client();
    client.send(head("/")).send(&body()[..FIRST]);
    fixture.expect_app("answers");
    client.send(&body()[FIRST..]);
    let answer = client.answer();
    assert!(answer.closes() && answer.text() == "first right");
    fixture.stop();
}

/// 100 goes out before the body comes, and not a second time.
#[test]
fn a_client_may_wait_to_be_told_to_go_on() {
    let fixture = Fixture::new(live(), reads);
    let mut client = fixture.client();
    client.send(head("/").replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n"));
    assert_eq!(client.head().status, 100);
    client.send(&body()[..FIRST]);
    fixture.expect_app("live");
    client.send(&body()[FIRST..]);
    assert_eq!(client.answer().text(), "right");
    fixture.stop();
}
