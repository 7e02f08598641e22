//! Several servers at one listener: one is woken for a connection, it takes it at once, and no connection is lost to a
//! process that was woken and does nothing.

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::fixture::{app, settings, Fixture, Told, PATIENCE};
use crate::serve::base::settings::HEARTBEAT;
use crate::serve::{Listener, Settings};

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    listener
}

/// A server at a listener that others have too.
fn server(listener: &TcpListener, settings: Settings) -> Fixture {
    let address = listener.local_addr().expect("its address");
    let fd = listener.try_clone().expect("dup").into();
    let fixture = Fixture::with(settings, address, vec![Listener { id: 0, fd, proxy: None }], None, app);
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    fixture
}

/// Turns that a loop makes because of the time alone, in so much of it.
fn turns_of_time(began: Instant) -> usize {
    (began.elapsed().as_millis() / HEARTBEAT.as_millis()) as usize + 1
}

#[test]
fn one_worker_turns_for_a_connection_and_the_others_sleep() {
    const SERVERS: usize = 8;
    const CONNECTIONS: usize = 100;
    let listener = listener();
    let servers: Vec<Fixture> = (0..SERVERS).map(|_| server(&listener, settings())).collect();
    let count = || servers.iter().map(|server| server.turns.count()).collect::<Vec<_>>();
    let (before, began) = (count(), Instant::now());
    for _ in 0..CONNECTIONS {
        assert_eq!(servers[0].client().get("/hello").text(), "hello");
    }
    let by_time = turns_of_time(began);
    let turns: Vec<usize> = count().iter().zip(before).map(|(after, before)| after - before).collect();
    // It is told of the connection, of its end, and now and then of a request that came later than the connection. If all
    // were woken, each connection would cost eight.
    let sum: usize = turns.iter().sum();
    assert!(sum <= 3 * CONNECTIONS + SERVERS * by_time, "{turns:?}");
    servers.into_iter().for_each(Fixture::stop);
}

/// Whoever has more than others is woken after them, and nobody waits for anything.
#[test]
fn a_worker_that_is_ahead_goes_to_the_back_of_the_line() {
    const CONNECTIONS: usize = 60;
    let listener = listener();
    let servers: Vec<Fixture> = (0..3).map(|_| server(&listener, settings())).collect();
    servers.iter().for_each(|server| server.turns.set_ahead(true));
    let (before, began): (Vec<usize>, _) =
        (servers.iter().map(|server| server.turns.count()).collect(), Instant::now());
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = servers[0].client();
        assert_eq!(client.get("/hello").text(), "hello");
        clients.push(client);
    }
    let by_time = turns_of_time(began);
    for (server, before) in servers.iter().zip(before) {
        let turns = server.turns.count() - before;
        // A third of the connections, a turn for each, where all get their processor at once; fewer on a busy machine. Without
        // going back the first one would have all of them.
        assert!(turns > by_time, "{turns} turns, {by_time} by time");
    }
    drop(clients);
    servers.into_iter().for_each(Fixture::stop);
}

/// It was the first in the kernel's line, was woken for a connection, and does not take it: so is a worker that is killed
/// or stopped in that moment.
struct Squatter(JoinHandle<()>);

impl Squatter {
    fn at(listener: &TcpListener) -> Squatter {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        epoll.add(listener, EpollEvent::new(flags, 0)).expect("epoll_ctl");
        let (sender, task) = channel();
        let thread = std::thread::spawn(move || {
            let mut events = [EpollEvent::empty()];
            let limit = EpollTimeout::try_from(PATIENCE).expect("it fits");
            sender.send(std::fs::read_link("/proc/thread-self").expect("proc(5)")).expect("it is awaited");
            assert_eq!(epoll.wait(&mut events, limit), Ok(1));
        });
        let task = task.recv().expect("it runs");
        // Who does not sleep yet is passed over.
        while !std::fs::read_to_string(format!("/proc/{}/stat", task.display())).expect("it lives").contains(") S ") {
            std::thread::yield_now();
        }
        Squatter(thread)
    }

    fn expect_woken(self) {
        self.0.join().expect("it was woken");
    }
}

#[test]
fn a_connection_is_found_whose_worker_died_between_being_woken_and_taking_it() {
    let listener = listener();
    let squatter = Squatter::at(&listener);
    let server = server(&listener, settings());
    let mut client = server.client();
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    squatter.expect_woken();
    server.handle.look();
    assert_eq!(client.answer().text(), "hello");
    server.stop();
}

/// Nobody tells of a process that is stopped, or gets no processor.
#[test]
fn a_connection_is_found_whose_worker_is_stopped() {
    let listener = listener();
    let squatter = Squatter::at(&listener);
    let server = server(&listener, settings());
    let before = server.turns.count();
    let mut client = server.client();
    client.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    squatter.expect_woken();
    assert_eq!(client.answer().text(), "hello");
    // Its next turn was soon enough.
    let turns = server.turns.count() - before;
    assert!(turns <= 3, "{turns} turns");
    server.stop();
}
