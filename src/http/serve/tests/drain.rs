//! Draining, stopping, retiring, and serving again.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::fixture::{app, settings, Client, Fixture, Told, PATIENCE};
use crate::serve::{Listener, Page, Settings};

#[test]
fn draining_finishes_what_was_begun() {
    let fixture = Fixture::new(settings(), app);
    let mut idle = fixture.client();
    assert!(!idle.get("/hello").closes());
    let mut silent = fixture.client();
    fixture.expect(&Told::Connections(2));
    let mut half = fixture.client();
    half.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Le");
    fixture.expect(&Told::Connections(3));
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");

    fixture.handle.drain(vec![]);
    fixture.expect(&Told::Draining);
    // Left to the other workers: nobody here accepts it.
    let mut late = fixture.client();
    late.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");

    fixture.gate.open();
    let answer = running.answer();
    assert_eq!((answer.text(), answer.closes()), ("passed", true));
    running.expect_closed();
    let answer = half.send("ngth: 3\r\n\r\nabc").answer();
    assert_eq!((answer.text(), answer.closes()), ("abc", true));
    for client in [&mut idle, &mut silent] {
        let answer = client.get("/hello");
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
        client.expect_closed();
    }
    drop((running, half, idle, silent));
    fixture.expect(&Told::Done(0));
    fixture.join();
}

#[test]
fn draining_waits_for_idle_connections_until_their_deadline() {
    let fixture = Fixture::new(Settings { keepalive_timeout: Some(Duration::from_millis(300)), ..settings() }, app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    fixture.handle.drain(vec![]);
    fixture.expect(&Told::Draining);
    idle.expect_closed();
    fixture.join();
}

#[test]
fn serving_again_after_a_drain() {
    let fixture = Fixture::new(settings(), app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    fixture.handle.drain(vec![]);
    fixture.expect(&Told::Draining);
    let mut late = fixture.client();
    late.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    assert!(!late.answer().closes());
    assert!(!idle.get("/hello").closes());
    fixture.stop();
}

#[test]
fn a_paused_worker_finishes_what_was_begun_and_begins_nothing_until_it_serves_again() {
    let fixture = Fixture::new(settings(), app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    let mut half = fixture.client();
    half.send("GET /hello HTTP/1.1\r\nHo");
    let mut uploads = fixture.client();
    uploads.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na");
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\nGET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect(&Told::Connections(4));
    fixture.expect_app("at the gate");

    fixture.handle.pause();
    fixture.expect(&Told::Accepting(false));
    idle.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    half.send("st: h\r\n\r\n");
    let mut late = fixture.client();
    late.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.gate.open();
    let answer = running.answer();
    assert_eq!((answer.text(), answer.closes()), ("passed", false));
    assert_eq!(uploads.send("bc").answer().text(), "abc");
    fixture.expect(&Told::Paused);
    // The second request of `running` was read already: nobody begins it.
    for client in [&mut idle, &mut half, &mut late, &mut running] {
        client.expect_silence();
    }

    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    for client in [&mut idle, &mut half, &mut late, &mut running] {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", false));
    }
    assert_eq!(uploads.get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn a_paused_worker_drains_and_stops_as_any_other() {
    for stops in [false, true] {
        let fixture = Fixture::new(settings(), app);
        let mut idle = fixture.client();
        assert_eq!(idle.get("/hello").text(), "hello");
        fixture.handle.pause();
        fixture.expect(&Told::Paused);
        idle.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut late = fixture.client();
        late.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
        match stops {
            true => fixture.handle.stop(PATIENCE),
            false => fixture.handle.drain(vec![]),
        }
        fixture.expect(&Told::Draining);
        let answer = idle.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true), "{stops}");
        idle.expect_closed();
        if stops {
            // Nobody else would.
            assert_eq!(late.answer().text(), "hello");
        }
        drop((idle, late));
        fixture.join();
    }
}

#[test]
fn kept_listeners_are_emptied_when_they_are_closed() {
    let bind = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("fcntl");
        let address = listener.local_addr().expect("its address");
        (listener, address)
    };
    let (shared, shared_address) = bind();
    let (removed, removed_address) = bind();
    let master = shared.try_clone().expect("dup");
    let listeners =
        vec![Listener { id: 1, fd: shared.into(), proxy: None }, Listener { id: 2, fd: removed.into(), proxy: None }];
    let fixture = Fixture::with(settings(), shared_address, listeners, None, app);
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    let connect = |address| Client::new(TcpStream::connect(address).expect("connect"));
    assert_eq!(connect(removed_address).get("/hello").text(), "hello");

    fixture.handle.drain(vec![2]);
    fixture.expect(&Told::Draining);
    // The kept one is still served, by this worker.
    let answer = connect(removed_address).get("/hello");
    assert_eq!((answer.text(), answer.closes()), ("hello", true));
    // The other is not: it waits for the successor.
    let mut waiting = connect(shared_address);
    waiting.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    // One more, busy, so that what follows lies in the backlog.
    let mut running = connect(removed_address);
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    let mut queued: Vec<Client> = (0..5).map(|_| connect(removed_address)).collect();
    for client in &mut queued {
        client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.handle.close_listeners(vec![2]);
    fixture.gate.open();
    assert_eq!(running.answer().text(), "passed");
    for client in &mut queued {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
    }
    drop((running, queued));
    fixture.expect(&Told::Done(0));
    assert!(TcpStream::connect(removed_address).is_err());
    fixture.join();
    let (successor, _) = master.accept().expect("the connection that was left in the queue");
    drop(successor);
}

#[test]
fn stopping_answers_the_backlog_and_closes_idle_connections() {
    let fixture = Fixture::new(settings(), app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    let mut queued: Vec<Client> = (0..5).map(|_| fixture.client()).collect();
    for client in &mut queued {
        client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    fixture.handle.stop(Duration::from_millis(50));
    fixture.expect(&Told::Draining);
    assert!(TcpStream::connect(fixture.address).is_err());
    idle.expect_closed();
    fixture.gate.open();
    assert!(running.answer().closes());
    for client in &mut queued {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
    }
    drop((running, queued));
    fixture.join();
}

#[test]
fn a_retiring_worker_refuses_what_has_not_begun() {
    let fixture = Fixture::new(settings(), app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    let mut waiting = fixture.client();
    assert_eq!(waiting.get("/hello").text(), "hello");
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    waiting.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.handle.retire();
    fixture.expect(&Told::Draining);
    assert_eq!(waiting.answer().status, 503);
    waiting.expect_closed();
    assert_eq!(idle.get("/hello").status, 503);
    fixture.gate.open();
    assert_eq!(running.answer().text(), "passed");
    drop((idle, waiting, running));
    fixture.join();
}

#[test]
fn a_worker_that_never_served_takes_nothing_when_it_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let sibling = listener.try_clone().expect("dup");
    let fixture =
        Fixture::with(settings(), address, vec![Listener { id: 0, fd: listener.into(), proxy: None }], None, app);
    let mut client = fixture.client();
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.handle.stop(Duration::ZERO);
    fixture.expect(&Told::Draining);
    fixture.join();
    sibling.accept().expect("still in the queue");
    drop(client);
}

#[test]
fn a_drain_without_connections_is_done_at_once() {
    let fixture = Fixture::new(Settings { threads: 3, ..settings() }, app);
    fixture.handle.drain(vec![]);
    fixture.join();
}

#[test]
fn every_request_of_a_drain_under_load_is_answered() {
    let fixture = Fixture::new(Settings { threads: 2, ..settings() }, app);
    // All are there when the drain begins: it closes the listener.
    let clients: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = fixture.client();
            assert_eq!(client.get("/hello").text(), "hello");
            client
        })
        .collect();
    let clients: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                let mut answers = 0;
                loop {
                    let answer = client.get("/hello");
                    assert_eq!(answer.text(), "hello");
                    answers += 1;
                    if answer.closes() {
                        client.expect_closed();
                        return answers;
                    }
                }
            })
        })
        .collect();
    for _ in 0..100 {
        fixture.expect_app("/hello ok");
    }
    fixture.handle.drain(vec![]);
    for client in clients {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !client.is_finished() {
            assert!(std::time::Instant::now() < deadline, "a client is not answered");
            std::thread::yield_now();
        }
        assert!(client.join().expect("a client failed") > 0);
    }
    fixture.join();
}

/// As found: uploads were read to their end, however large, before they were turned away.
#[test]
fn a_maintenance_waits_for_no_body_and_its_answer_is_seen() {
    let fixture = Fixture::new(settings(), app);
    let heads = ["Content-Length: 5000000", "Transfer-Encoding: chunked"].map(|framing| {
        format!("POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nExpect: 100-continue\r\n{framing}\r\n\r\n")
    });
    let begin = |head: &String| {
        let mut client = fixture.client();
        client.send(head);
        client
    };
    let mut begun: Vec<Client> = heads.iter().map(begin).collect();
    for client in &mut begun {
        assert_eq!(client.head().status, 100);
        client.send("1");
    }
    fixture.handle.pause();
    fixture.expect(&Told::Accepting(false));
    fixture.handle.maintenance(None);
    fixture.expect(&Told::Maintenance);
    let away = |client: &mut Client| {
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (503, "Service Unavailable: the service is paused\n"));
        client.expect_closed();
    };
    // Nothing more comes of these, and it is not waited for.
    begun.iter_mut().for_each(away);
    for head in &heads {
        let mut client = begin(head);
        // Those that send much before they look for an answer.
        client.send("1".repeat(3_000_000));
        away(&mut client);
    }
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    drop(begun);
    fixture.stop();
}

#[test]
fn a_maintenance_finishes_what_was_begun_and_turns_all_others_away() {
    let mut changed = settings();
    changed.health_path = Some(b"/healthz".to_vec());
    let fixture = Fixture::new(changed, app);
    let mut idle = fixture.client();
    assert_eq!(idle.get("/hello").text(), "hello");
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\nGET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    fixture.handle.pause();
    fixture.expect(&Told::Accepting(false));
    let page = Page { content_type: b"text/html; charset=utf-8".to_vec(), body: b"<p>back soon</p>".to_vec() };
    fixture.handle.maintenance(Some(page));
    fixture.expect(&Told::Maintenance);
    // Whoever was idle, whoever comes, and a body that has come.
    let away = |client: &mut Client, request: &str| {
        let answer = client.send(request).answer();
        assert_eq!((answer.status, answer.text(), answer.closes()), (503, "<p>back soon</p>", true));
        assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(answer.field("retry-after"), Some("10"));
        client.expect_closed();
    };
    away(&mut idle, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    away(&mut fixture.client(), "GET /gate HTTP/1.0\r\n\r\n");
    away(&mut fixture.client(), "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    let mut asks = fixture.client();
    let answer = asks.get("/healthz");
    assert_eq!((answer.status, answer.text()), (503, "paused\n"));
    let mut heads = fixture.client();
    heads.send("HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    let head = heads.head();
    assert_eq!((head.status, head.field("content-length")), (503, Some("16")));
    heads.expect_closed();
    // Those whose head has not come count as nothing that was begun.
    let mut half = fixture.client();
    half.send("GET /hello HTTP/1.1\r\nHo");
    fixture.gate.open();
    assert_eq!(running.answer().text(), "passed");
    assert_eq!(running.answer().status, 503);
    fixture.expect(&Told::Paused);
    fixture.handle.maintenance(None);
    fixture.expect(&Told::Maintenance);
    assert_eq!(half.send("st: h\r\n\r\n").answer().text(), "Service Unavailable: the service is paused\n");
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    assert_eq!(asks.get("/healthz").text(), "ok\n");
    drop((idle, running, asks, heads, half));
    fixture.stop();
}
