//! Connections that go from one worker to another: two servers in this process, one listener, and a queue between them
//! that the test can fill and break.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::fixture::{app, settings, Client, Fixture, Told, PATIENCE};
use super::flush_batch::Silent;
use crate::serve::base::names::Blocking;
use crate::serve::event_loop::handoff::sharing::LOOK_AGAIN;
use crate::serve::event_loop::interface::{Loop, Step};
use crate::serve::event_loop::EventLoop;
use crate::serve::{Given, Handle, HandoffQueue, Listener, Luggage, Server, Settings, Taken};

#[derive(Clone)]
struct Queue(Arc<(Mutex<State>, EventFd)>);

struct State {
    lying: VecDeque<(OwnedFd, Luggage, Vec<u8>)>,
    room: usize,
    broken: bool,
}

impl Queue {
    fn new() -> Queue {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE;
        let event = EventFd::from_value_and_flags(0, flags).expect("eventfd");
        Queue(Arc::new((Mutex::new(State { lying: VecDeque::new(), room: usize::MAX, broken: false }), event)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0 .0.lock().expect("no panic while locked")
    }

    fn wait_lying(&self, count: usize) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.state().lying.len() != count {
            assert!(std::time::Instant::now() < deadline, "{} connections lie in the queue", self.state().lying.len());
            std::thread::yield_now();
        }
    }
}

impl HandoffQueue for Queue {
    fn receiver(&self) -> RawFd {
        self.0 .1.as_raw_fd()
    }

    fn give(&mut self, socket: BorrowedFd<'_>, luggage: &Luggage, bytes: [&[u8]; 3]) -> Given {
        let mut state = self.state();
        if state.broken {
            return Given::Broken;
        }
        if state.lying.len() >= state.room {
            return Given::Full;
        }
        let socket = socket.try_clone_to_owned().expect("dup");
        state.lying.push_back((socket, luggage.clone(), bytes.concat()));
        self.0 .1.write(1).expect("it counts");
        Given::Sent
    }

    fn lying(&self) -> usize {
        self.state().lying.len()
    }

    fn take(&mut self, bytes: &mut Vec<u8>) -> Taken {
        let mut state = self.state();
        if state.broken {
            return Taken::Broken;
        }
        let Some((socket, luggage, read)) = state.lying.pop_front() else { return Taken::Empty };
        self.0 .1.read().expect("it counts");
        bytes.extend_from_slice(&read);
        Taken::Connection { socket, luggage }
    }
}

/// An old worker, which serves, and a new one, which does not yet.
struct Workers {
    old: Fixture,
    new: Fixture,
    queue: Queue,
}

fn workers(old: Settings, new: Settings) -> Workers {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let queue = Queue::new();
    let worker = |settings: Settings| {
        let listeners = vec![Listener { id: 7, fd: listener.try_clone().expect("dup").into(), proxy: None }];
        Fixture::with_queue(settings, address, listeners, Some(Box::new(queue.clone())), None, app)
    };
    let workers = Workers { old: worker(old), new: worker(new), queue: queue.clone() };
    workers.old.handle.serve();
    workers.old.expect(&Told::Serving);
    workers
}

impl Workers {
    fn idle(&self) -> Client {
        let mut client = self.old.client();
        let answer = client.get("/hello");
        assert_eq!((answer.text(), answer.closes()), ("hello", false));
        client
    }

    fn at_the_gate(&self) -> Client {
        let mut client = self.old.client();
        client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
        self.old.expect_app("at the gate");
        client
    }

    fn drain_old(&self) {
        self.old.handle.drain(vec![]);
        self.old.expect(&Told::Draining);
    }

    fn serve_new(&self) {
        self.new.handle.serve();
        self.new.expect(&Told::Serving);
    }
}

fn ask(client: &mut Client) {
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
}

#[test]
fn a_drain_closes_no_connection() {
    let workers = workers(settings(), settings());
    let mut idle = workers.idle();
    let mut half = workers.old.client();
    half.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Le");
    workers.old.expect(&Told::Connections(2));
    let mut body = workers.old.client();
    body.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na");
    workers.old.expect(&Told::Connections(3));
    let mut running = workers.at_the_gate();

    workers.drain_old();
    workers.queue.wait_lying(2);
    ask(&mut idle);
    half.send("ngth: 3\r\n\r\nabc");
    body.send("bc");
    workers.serve_new();
    let answer = idle.answer();
    assert_eq!((answer.text(), answer.closes()), ("hello", false));
    workers.new.expect_app("/echo ok");
    let answer = half.answer();
    assert_eq!((answer.text(), answer.closes()), ("abc", false));
    workers.old.gate.open();
    // These had begun, so their worker answers them, and gives them away then.
    for (client, text) in [(&mut running, "passed"), (&mut body, "abc")] {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), (text, false));
        assert_eq!(client.get("/hello").text(), "hello");
        workers.new.expect_app("/hello ok");
    }
    workers.old.join();
    drop((idle, half, body, running));
    workers.new.stop();
}

#[test]
fn a_connection_that_waits_for_room_is_not_read() {
    let workers = workers(settings(), settings());
    let mut clients: Vec<Client> = (0..3).map(|_| workers.idle()).collect();
    workers.queue.state().room = 1;
    workers.drain_old();
    while workers.old.has_said("/hello ok") {}
    clients.iter_mut().for_each(ask);
    // Longer than a full queue is left alone.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!workers.old.has_said("/hello ok"));
    workers.serve_new();
    for client in &mut clients {
        assert!(!client.answer().closes());
    }
    assert!(!workers.old.has_said("/hello ok"));
    workers.old.join();
    workers.new.stop();
}

#[test]
fn without_a_queue_each_connection_gets_one_more_answer() {
    let workers = workers(settings(), settings());
    let (mut idle, mut running) = (workers.idle(), workers.at_the_gate());
    workers.queue.state().broken = true;
    workers.drain_old();
    workers.old.gate.open();
    assert!(running.answer().closes());
    assert!(idle.get("/hello").closes());
    idle.expect_closed();
    workers.old.join();
    // It finds out when it is told to end.
    workers.new.stop();
}

#[test]
fn requests_that_have_not_begun_leave_a_worker_that_will_be_killed() {
    let workers = workers(settings(), settings());
    let (mut waiting, mut posted, mut idle) = (workers.idle(), workers.idle(), workers.idle());
    let mut running = workers.at_the_gate();
    ask(&mut waiting);
    posted.send("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    workers.old.handle.retire();
    workers.old.expect(&Told::Draining);
    workers.serve_new();
    assert_eq!(waiting.answer().text(), "hello");
    assert_eq!(posted.answer().text(), "abc");
    assert_eq!(idle.get("/hello").text(), "hello");
    workers.old.gate.open();
    assert_eq!(running.answer().text(), "passed");
    workers.old.join();
    workers.new.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order_by_both() {
    let workers = workers(settings(), settings());
    let mut client = workers.old.client();
    client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\nGET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    ask(&mut client);
    workers.old.expect_app("at the gate");
    workers.drain_old();
    workers.serve_new();
    workers.old.gate.open();
    for text in ["passed", "hello", "hello"] {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), (text, false));
    }
    workers.old.join();
    workers.new.stop();
}

#[test]
fn whoever_serves_again_keeps_what_could_not_go() {
    let workers = workers(settings(), settings());
    let mut idle = workers.idle();
    workers.queue.state().room = 0;
    workers.drain_old();
    ask(&mut idle);
    workers.old.handle.serve();
    workers.old.expect(&Told::Serving);
    assert!(!idle.answer().closes());
    assert!(!idle.get("/hello").closes());
    workers.old.stop();
    workers.new.stop();
}

#[test]
fn a_stop_answers_what_lies_in_the_queue() {
    let workers = workers(settings(), settings());
    let (mut idle, mut held) = (workers.idle(), workers.idle());
    workers.queue.state().room = 1;
    workers.drain_old();
    workers.queue.wait_lying(1);
    ask(&mut idle);
    ask(&mut held);
    // All are told at about the same time, and who drained takes part: nobody else may be there.
    workers.old.handle.stop(PATIENCE);
    assert!(idle.answer().closes());
    assert!(held.answer().closes());
    workers.old.join();
    workers.new.handle.stop(Duration::ZERO);
    workers.new.join();
}

/// As found: a client got an answer of a release that was given up, or that was replaced, or 503 of a worker that was to be killed,
/// although a worker that serves was there.
#[test]
fn a_stop_leaves_what_lies_in_the_queue_to_whoever_is_meant_to_serve() {
    // What the other one was told, besides to stop; whether it runs a request, without which it ends before that.
    type Tells = fn(&Handle);
    let cases: [(&str, bool, Tells); 4] = [
        ("nothing", false, |_| {}),
        ("to drain before it served", false, |worker| worker.drain(vec![])),
        ("that it is replaced", true, |worker| {
            worker.drain(vec![]);
            worker.stand_aside();
        }),
        ("that it will be killed", true, |worker| worker.retire()),
    ];
    for (case, serves, told) in cases {
        for orphaned in [false, true] {
            let workers = workers(settings(), Settings { threads: 2, ..settings() });
            let running = serves.then(|| {
                workers.old.handle.pause();
                workers.old.expect(&Told::Paused);
                workers.serve_new();
                let mut client = workers.new.client();
                client.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
                workers.new.expect_app("at the gate");
                told(&workers.new.handle);
                workers.new.expect(&Told::Draining);
                workers.old.handle.serve();
                workers.old.expect(&Told::Serving);
                client
            });
            let mut clients: Vec<Client> = (0..3).map(|_| workers.idle()).collect();
            workers.old.handle.pause();
            workers.queue.wait_lying(3);
            clients.iter_mut().for_each(ask);
            if !serves {
                told(&workers.new.handle);
            }
            match orphaned {
                true => workers.new.handle.orphaned(),
                false => workers.new.handle.stop(PATIENCE),
            }
            workers.new.expect(&Told::Draining);
            if let Some(mut running) = running {
                workers.new.gate.open();
                assert_eq!(running.answer().text(), "passed");
            }
            workers.new.join();
            assert_eq!(workers.queue.state().lying.len(), 3, "it was told {case}");
            workers.old.handle.stop(PATIENCE);
            for client in &mut clients {
                let answer = client.answer();
                assert_eq!((answer.status, answer.text()), (200, "hello"), "{case}");
            }
            workers.old.join();
        }
    }
}

/// The master was killed between the word to drain here and the word to serve there.
#[test]
fn an_orphan_that_has_yielded_answers_whoever_waits() {
    let workers = workers(settings(), settings());
    let mut idle = workers.idle();
    workers.old.handle.yield_to_successors();
    workers.old.expect(&Told::Draining);
    workers.queue.wait_lying(1);
    ask(&mut idle);
    let mut late: Vec<Client> = (0..3).map(|_| workers.old.client()).collect();
    late.iter_mut().for_each(ask);
    workers.new.handle.orphaned();
    workers.new.join();
    workers.old.handle.orphaned();
    for client in late.iter_mut().chain([&mut idle]) {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", true));
    }
    workers.old.join();
}

#[test]
fn whoever_yields_ends_when_its_successors_serve_or_serves_again() {
    let workers = workers(settings(), settings());
    let mut idle = workers.idle();
    workers.old.handle.yield_to_successors();
    workers.old.expect(&Told::Draining);
    workers.old.handle.serve();
    workers.old.expect(&Told::Serving);
    assert_eq!(idle.get("/hello").text(), "hello");
    workers.old.handle.yield_to_successors();
    workers.old.expect(&Told::Draining);
    workers.serve_new();
    assert_eq!(idle.get("/hello").text(), "hello");
    assert!(!workers.old.has_told(&Told::Done(0)), "it ended before it was told that others serve");
    workers.old.handle.stand_aside();
    workers.old.join();
    drop(idle);
    workers.new.stop();
}

#[test]
fn limits_hold_for_heads_that_have_not_begun() {
    let workers = workers(settings(), Settings { limit_request_line: 20, ..settings() });
    let mut half = workers.old.client();
    let long = format!("GET /hello?{} HTTP/1.1\r\n", "x".repeat(50));
    half.send(&long);
    workers.old.expect(&Told::Connections(1));
    workers.drain_old();
    workers.serve_new();
    half.send("Host: h\r\n\r\n");
    assert_eq!(half.answer().status, 200);
    half.send(&long).send("Host: h\r\n\r\n");
    assert_eq!(half.answer().status, 414);
    workers.old.join();
    workers.new.stop();
}

#[test]
fn a_full_table_takes_nothing_and_closes_nothing() {
    let workers = workers(settings(), Settings { connections: 1, ..settings() });
    let mut first = workers.idle();
    let mut second = workers.idle();
    workers.drain_old();
    workers.serve_new();
    assert_eq!(first.get("/hello").text(), "hello");
    ask(&mut second);
    assert_eq!(first.get("/hello").text(), "hello");
    workers.queue.wait_lying(1);
    drop(first);
    assert_eq!(second.answer().text(), "hello");
    workers.old.join();
    workers.new.stop();
}

#[test]
fn an_address_that_is_given_up_takes_its_connections_along() {
    let workers = workers(settings(), settings());
    let (mut idle, mut running) = (workers.idle(), workers.at_the_gate());
    workers.old.handle.drain(vec![7]);
    workers.old.expect(&Told::Draining);
    workers.serve_new();
    workers.old.gate.open();
    assert!(running.answer().closes());
    assert!(idle.get("/hello").closes());
    workers.old.handle.close_listeners(vec![7]);
    workers.old.join();
    workers.new.stop();
}

#[test]
fn a_worker_without_the_listener_says_that_it_closes() {
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let workers = workers(settings(), settings());
    let mut idle = workers.idle();
    let queue: Box<dyn HandoffQueue> = Box::new(workers.queue.clone());
    let other = Fixture::with_queue(settings(), address, Vec::new(), Some(queue), None, app);
    workers.drain_old();
    other.handle.serve();
    let answer = idle.get("/hello");
    assert_eq!((answer.text(), answer.closes()), ("hello", true));
    workers.old.join();
    other.stop();
    workers.new.stop();
}

#[test]
fn a_request_that_would_wait_goes_to_whoever_is_free() {
    let shares = Settings { shared_requests_max: 2, ..settings() };
    let workers = workers(shares.clone(), shares);
    let (mut one, mut two) = (workers.idle(), workers.idle());
    let mut running = workers.at_the_gate();
    workers.serve_new();
    // The monitor leads once the request at the gate has taken a few milliseconds.
    for client in [&mut one, &mut two] {
        assert_eq!(client.get("/hello").text(), "hello");
        workers.new.expect_app("/hello ok");
        // It stays with the worker that was free, until that is busy.
        assert_eq!(client.get("/hello").text(), "hello");
        workers.new.expect_app("/hello ok");
    }
    workers.old.gate.open();
    assert_eq!(running.answer().text(), "passed");
    drop((one, two, running));
    workers.old.stop();
    workers.new.stop();
}

#[test]
fn where_all_are_busy_the_first_that_is_free_takes_it_back() {
    let shares = Settings { shared_requests_max: 2, ..settings() };
    let workers = workers(shares.clone(), shares);
    let mut waiting: Vec<Client> = (0..4).map(|_| workers.idle()).collect();
    let mut running = workers.at_the_gate();
    waiting.iter_mut().for_each(ask);
    // No more lie there than there are threads, and the others wait here.
    workers.queue.wait_lying(2);
    workers.old.gate.open();
    assert_eq!(running.answer().text(), "passed");
    for client in &mut waiting {
        let answer = client.answer();
        assert_eq!((answer.text(), answer.closes()), ("hello", false));
    }
    assert_eq!(workers.queue.state().lying.len(), 0);
    drop((waiting, running));
    workers.old.stop();
    workers.new.stop();
}

/// As found: the longest idle connection was closed although another worker had a place for it.
#[test]
fn a_full_table_hands_its_longest_idle_connection_over() {
    let workers = workers(Settings { connections: 2, ..settings() }, settings());
    let (mut longest, mut idle) = (workers.idle(), workers.idle());
    workers.old.turns.set_ahead(true);
    let mut third = workers.idle();
    workers.queue.wait_lying(1);
    workers.new.handle.serve();
    workers.new.expect(&Told::Serving);
    for client in [&mut longest, &mut idle, &mut third] {
        let answer = client.get("/hello");
        assert_eq!((answer.text(), answer.closes()), ("hello", false));
    }
    drop((longest, idle, third));
    workers.old.stop();
    workers.new.stop();
}

/// A loop that the test steps itself, as an app thread that leads would, with the requests of so many clients fetched.
fn fetched(clients: usize, settings: Settings, queue: &Queue) -> (EventLoop, Handle, Vec<Client>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let listeners = vec![Listener { id: 7, fd: listener.into(), proxy: None }];
    let server = Server::new(settings, listeners, Some(Box::new(queue.clone())), Arc::new(Silent), Arc::new(Silent));
    let server = server.expect("server");
    let handle = server.handle();
    handle.serve();
    let mut event_loop = server.into_loop();
    let mut clients: Vec<Client> =
        (0..clients).map(|_| Client::new(TcpStream::connect(address).expect("connect"))).collect();
    // They have begun, so that all of them are taken.
    clients.iter_mut().for_each(|client| _ = client.send("GET /hello HTTP/1.1\r\n"));
    loop {
        assert!(matches!(event_loop.step(Blocking::Allowed), Step::Idle));
        if event_loop.open_connections() == clients.len() {
            break;
        }
        event_loop.fetch(false);
    }
    clients.iter_mut().for_each(|client| _ = client.send("Host: h\r\n\r\n"));
    event_loop.fetch(false);
    (event_loop, handle, clients)
}

/// As found: a thread that led gave nothing of its turn away, however long that lasted.
#[test]
fn the_rest_of_a_turn_that_lasts_goes_to_whoever_has_nothing_to_do() {
    for (lying_max, lasts, given) in
        [(8, LOOK_AGAIN, 3), (2, LOOK_AGAIN, 2), (8, LOOK_AGAIN - Duration::from_nanos(1), 0), (0, LOOK_AGAIN, 0)]
    {
        let queue = Queue::new();
        let (mut event_loop, handle, _clients) =
            fetched(4, Settings { shared_requests_max: lying_max, ..settings() }, &queue);
        let Step::Request(_running) = event_loop.step(Blocking::Forbidden) else { panic!("four have asked") };
        event_loop.set_now(event_loop.now() + lasts);
        event_loop.share_rest();
        assert_eq!(queue.lying(), given, "{lying_max} {lasts:?}");
        for kept in 0..3 - given {
            handle.shared.complete();
            let step = event_loop.step(Blocking::Forbidden);
            assert!(matches!(step, Step::Request(_)), "{lying_max} {lasts:?} {kept}");
        }
        assert!(matches!(event_loop.step(Blocking::Allowed), Step::Idle));
    }
}
