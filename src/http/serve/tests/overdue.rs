//! Requests that take too long: their clients are answered in place of the application, once, and nothing that it still
//! writes reaches them.

use std::time::Duration;

use super::fixture::{settings, Client, Fixture, Gate, Told, Voice};
use crate::serve::{EarlyHints, Exchange, How, QueueLimit, Settings};

const TEXT: &str = "Gateway Timeout: the request took too long\n";

/// The path ends with the request's number, and says what the application does.
fn app(mut exchange: Exchange, gate: &Gate, voice: &Voice) {
    let path = String::from_utf8_lossy(exchange.path()).into_owned();
    let (what, number) = path.rsplit_once('/').expect("a number");
    exchange.set_number(number.parse().expect("a number"));
    let mut record = exchange.take_record();
    record.extend_from_slice(format!("app {number}").as_bytes());
    exchange.leave_record(record);
    exchange.start(b"200 OK", &[]).expect("valid");
    voice.say(path.clone());
    let written = match what {
        "/gate" => {
            gate.pass();
            exchange.write_all(b"passed")
        }
        "/hinted" => {
            let mut hints = EarlyHints::begin();
            hints.add(b"Link", b"</a.css>").expect("valid");
            exchange.early_hints(hints);
            voice.say("hinted");
            gate.pass();
            exchange.write_all(b"passed")
        }
        "/begun" => {
            exchange.write(b"begun");
            voice.say("begun");
            gate.pass();
            exchange.write(b" ended")
        }
        "/dropped" => {
            gate.pass();
            return drop(exchange);
        }
        _fast => exchange.write_all(b"fast"),
    };
    voice.say(format!("{written:?} {number}"));
    exchange.finish().expect("valid");
}

fn ask(client: &mut Client, method: &str, path: &str, version: &str) {
    client.send(format!("{method} {path} HTTP/{version}\r\nHost: h\r\n\r\n"));
}

#[test]
fn a_client_gets_504_and_nothing_of_what_the_application_says_later() {
    for threads in [1, 4] {
        let fixture = Fixture::new(Settings { threads, ..settings() }, app);
        let mut client = fixture.client();
        ask(&mut client, "GET", "/gate/7", "1.1");
        ask(&mut client, "GET", "/fast/8", "1.1");
        fixture.expect_app("/gate/7");
        fixture.handle.overdue(7);
        let answer = client.answer();
        assert_eq!((answer.status, answer.text(), answer.closes()), (504, TEXT, true));
        // A request behind it is not answered, and what the client still sends does no harm.
        client.send(vec![b'x'; 100_000]);
        client.expect_closed();
        assert_eq!(fixture.expect_end("overdue 7"), (How::TimedOut, TEXT.len() as u64));
        if threads > 1 {
            assert_eq!(fixture.client().get("/fast/9").text(), "fast");
            assert_eq!(fixture.expect_ends(1), ["app 9"]);
        }
        // Said again, as the master does.
        fixture.handle.overdue(7);
        fixture.gate.open();
        fixture.expect_app("Gone 7");
        assert_eq!(fixture.client().get("/fast/10").text(), "fast");
        // Nothing more of it is told.
        assert_eq!(fixture.expect_ends(1), ["app 10"]);
        fixture.stop();
    }
}

#[test]
fn every_kind_of_client_can_read_it() {
    let fixture = Fixture::new(settings(), app);
    for (number, method, version, body) in [(1, "HEAD", "1.1", ""), (2, "GET", "1.0", TEXT), (3, "HEAD", "1.0", "")] {
        for what in ["gate", "dropped"] {
            let mut client = fixture.client();
            ask(&mut client, method, &format!("/{what}/{number}"), version);
            fixture.expect_app(&format!("/{what}/{number}"));
            fixture.handle.overdue(number);
            let head = client.head();
            let length = TEXT.len().to_string();
            assert_eq!((head.status, head.field("content-length"), head.closes()), (504, Some(length.as_str()), true));
            assert_eq!(client.rest(), body.as_bytes());
            fixture.gate.open();
            fixture.expect(&Told::Connections(0));
        }
    }
    let mut client = fixture.client();
    ask(&mut client, "GET", "/hinted/4", "1.1");
    fixture.expect_app("hinted");
    fixture.handle.overdue(4);
    assert_eq!((client.head().status, client.answer().status), (103, 504));
    client.expect_closed();
    fixture.gate.open();
    fixture.stop();
}

#[test]
fn an_answer_that_has_begun_goes_on() {
    let fixture = Fixture::new(settings(), app);
    let mut client = fixture.client();
    ask(&mut client, "GET", "/begun/7", "1.1");
    fixture.expect_app("begun");
    fixture.handle.overdue(7);
    // No request has this number any more, or ever had.
    fixture.handle.overdue(6);
    fixture.gate.open();
    assert_eq!(client.answer().text(), "begun ended");
    assert_eq!(fixture.expect_end("app 7").0, How::Complete);
    fixture.handle.overdue(7);
    assert_eq!(client.get("/fast/8").text(), "fast");
    fixture.stop();
}

/// Whoever is first: the client has one answer, whole, and one end is told.
#[test]
fn two_answers_never_mix() {
    for threads in [1, 2] {
        let fixture = Fixture::new(Settings { threads, ..settings() }, app);
        let mut answers = [0, 0];
        for number in 1..=400u64 {
            let mut client = fixture.client();
            ask(&mut client, "GET", &format!("/fast/{number}"), "1.0");
            for _ in 0..number % 20 {
                fixture.handle.overdue(number);
            }
            let all = String::from_utf8(client.rest()).expect("text");
            let is_ours = all.starts_with("HTTP/1.1 504 ") && all.ends_with(TEXT);
            assert!(is_ours || (all.starts_with("HTTP/1.1 200 ") && all.ends_with("\r\n\r\nfast")), "{all}");
            assert_eq!(all.matches("HTTP/1.1").count(), 1, "{all}");
            answers[usize::from(is_ours)] += 1;
        }
        let ends = fixture.expect_ends(400);
        let mut numbers: Vec<&str> = ends.iter().filter_map(|record| record.split(' ').next_back()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 400, "some ended twice");
        assert!(answers[0] > 0, "{answers:?}");
        fixture.stop();
    }
}

#[test]
fn a_request_that_cannot_begin_gets_503() {
    let limit = QueueLimit { time: Duration::from_millis(200), sheds: false };
    let fixture = Fixture::new(Settings { queue_limit: Some(limit), ..settings() }, app);
    // A connection is accepted when a thread is free.
    let [mut first, mut second] = [fixture.client(), fixture.client()];
    assert_eq!(second.get("/fast/0").text(), "fast");
    ask(&mut first, "GET", "/gate/1", "1.1");
    fixture.expect_app("/gate/1");
    ask(&mut second, "GET", "/fast/2", "1.1");
    let answer = second.answer();
    assert_eq!((answer.status, answer.field("retry-after"), answer.closes()), (503, Some("5"), true));
    second.expect_closed();
    fixture.gate.open();
    assert_eq!(first.answer().text(), "passed");
    assert!(!fixture.has_said("/fast/2"));
    fixture.stop();
}
