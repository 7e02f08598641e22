//! Who comes behind many costly requests is not the last to be answered.

use std::time::Instant;

use super::fixture::{app, settings, Fixture, Told, PATIENCE};
use crate::serve::base::settings::BEHIND_AFTER;

/// The thread is in the first request for so long that the next have waited for too long in the kernel's queue.
fn wait_for_long() {
    let until = Instant::now() + BEHIND_AFTER * 2;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::sleep(left);
    }
}

/// As found: a thousand clients that asked for five megabytes each were all served before one that came after them.
#[test]
fn a_stranger_waits_for_one_of_the_crowd() {
    const CROWD: usize = 20;
    let fixture = Fixture::new(settings(), app);
    fixture.turns.set_alone();
    let mut crowd: Vec<_> = (0..CROWD).map(|_| fixture.client()).collect();
    for client in &mut crowd {
        client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.expect_app("at the gate");
    wait_for_long();
    fixture.gate.open();
    // From the second on it is known that somebody has waited, and all are taken in.
    let mut told = vec![Told::Accepted; CROWD - 1];
    told.push(Told::App("at the gate".to_string()));
    fixture.expect_all(&told);
    let mut stranger = fixture.client();
    stranger.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect(&Told::Accepted);
    // The loop reads in order, and refuses by itself: once it has refused this one, it has read the stranger's request.
    let mut witness = fixture.client();
    witness.send("nonsense\r\n\r\n");
    assert_eq!(witness.answer().status, 400);
    drop(witness);
    let mut passed = 2;
    let next = || fixture.expect_any_app(|text| text == "at the gate" || text.starts_with("/hello"));
    fixture.gate.open();
    if next() == "at the gate" {
        // One of the crowd may go before it. It does where the second did not come out of the line.
        fixture.gate.open();
        passed += 1;
        assert_eq!(next(), "/hello ok", "two of the crowd came before it");
    }
    assert_eq!(stranger.answer().text(), "hello");
    for _ in 0..CROWD - passed {
        fixture.gate.open();
    }
    for client in &mut crowd {
        assert_eq!(client.answer().text(), "passed");
    }
    // The line is over, and so is the order: a free thread takes who comes.
    let begun = Instant::now();
    while fixture.client().get("/hello").text() == "hello" && begun.elapsed() < BEHIND_AFTER {}
    assert!(begun.elapsed() < PATIENCE);
    fixture.stop();
}

/// While a sibling has a free thread, who waits is left to it.
#[test]
fn nobody_is_taken_in_whom_a_sibling_could_serve() {
    let fixture = Fixture::new(settings(), app);
    let mut crowd: Vec<_> = (0..3).map(|_| fixture.client()).collect();
    for client in &mut crowd {
        client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.expect_app("at the gate");
    wait_for_long();
    fixture.gate.open();
    fixture.expect_app("at the gate");
    wait_for_long();
    assert!(!fixture.has_told(&Told::Accepted), "the third is in the kernel's queue");
    fixture.gate.open();
    fixture.gate.open();
    for client in &mut crowd {
        assert_eq!(client.answer().text(), "passed");
    }
    fixture.stop();
}
