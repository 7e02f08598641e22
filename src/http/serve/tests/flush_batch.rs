//! Answers that wait for each other. Here the test is the app thread, so that it can look between two requests.

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fixture::{settings, Client, PATIENCE};
use crate::serve::{AppThread, Exchange, Handle, Listener, Metrics, Reports, Server, Settings, Wake, Written};

/// Nobody is told of anything.
pub struct Silent;

impl Metrics for Silent {
    fn heartbeat(&self) {}
    fn accepted(&self) {}
    fn connections(&self, _open: usize) {}
}

impl Reports for Silent {
    fn serving(&self) {}
    fn draining(&self) {}
}

struct Stage {
    thread: AppThread,
    handle: Handle,
    clients: Vec<Client>,
}

/// What requests take in the application, as the server is told: long enough for clients to fall asleep.
const TOOK: Duration = Duration::from_micros(50);

impl Stage {
    /// Clients whose connections are open, and a server that knows what requests take.
    fn new(clients: usize) -> Stage {
        Stage::with(clients, settings())
    }

    fn with(clients: usize, settings: Settings) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("fcntl");
        let listeners = vec![Listener { id: 0, fd: listener.into(), proxy: None }];
        let server = Server::new(settings, listeners, None, Arc::new(Silent), Arc::new(Silent)).expect("server");
        let handle = server.handle();
        let thread = server.start(None).expect("threads").pop().expect("one app thread");
        handle.serve();
        let connect = |_| Client::new(TcpStream::connect(address).expect("connect"));
        let mut stage = Stage { thread, handle, clients: (0..clients).map(connect).collect() };
        for index in 0..clients {
            for _ in 0..8 {
                stage.ask(index);
                let exchange = stage.next();
                finish(exchange);
                assert!(stage.thread.poll().is_none());
                stage.expect_answer(index);
            }
        }
        stage
    }

    fn ask(&mut self, index: usize) {
        self.clients[index].send(format!("GET /{index} HTTP/1.1\r\nHost: h\r\n\r\n"));
    }

    fn next(&mut self) -> Exchange {
        if let Some(exchange) = self.thread.poll() {
            return exchange;
        }
        match self.thread.wait() {
            Wake::Request(exchange) => exchange,
            Wake::Signal | Wake::Done => panic!("neither was asked for"),
        }
    }

    fn expect_answer(&mut self, index: usize) {
        assert_eq!(self.clients[index].answer().text(), format!("/{index}"));
    }

    fn has_answer(&self, index: usize) -> bool {
        let stream = &self.clients[index].stream;
        stream.set_nonblocking(true).expect("fcntl");
        let outcome = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("fcntl");
        outcome.is_ok()
    }

    /// Lets all clients ask at once, until the first answer waits for the others': which, and the requests of the others
    /// have not begun. On a busy machine the monitor may have taken over before; then answers go out at once.
    fn first_waits(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no answer ever waits for another");
            (0..self.clients.len()).for_each(|index| self.ask(index));
            let exchange = self.next();
            let first = index_of(&exchange);
            finish(exchange);
            if !self.has_answer(first) {
                return first;
            }
            self.expect_answer(first);
            self.answer_all_but(first);
        }
    }

    fn answer_all_but(&mut self, first: usize) {
        for _ in 1..self.clients.len() {
            let exchange = self.next();
            finish(exchange);
        }
        // It is here that the thread comes back to the loop.
        assert!(self.thread.poll().is_none());
        for index in (0..self.clients.len()).filter(|&index| index != first) {
            self.expect_answer(index);
        }
    }

    /// The monitor has the loop: each answer goes out while the thread is still busy with the others.
    fn answer_the_last(&mut self, requests: usize) {
        for _ in 0..requests {
            let exchange = self.next();
            let index = index_of(&exchange);
            finish(exchange);
            self.expect_answer(index);
        }
    }

    fn stop(mut self) {
        self.handle.stop(Duration::ZERO);
        assert!(matches!(self.thread.wait(), Wake::Done));
    }
}

fn index_of(exchange: &Exchange) -> usize {
    let path = String::from_utf8(exchange.path().to_vec()).expect("text");
    path[1..].parse().expect("a number in the path")
}

fn write(exchange: &mut Exchange) {
    let path = exchange.path().to_vec();
    exchange.start(b"200 OK", &[]).expect("valid");
    exchange.write_all(&path);
}

fn finish(mut exchange: Exchange) {
    write(&mut exchange);
    exchange.finish_at(Instant::now(), TOOK).expect("valid");
}

#[test]
fn answers_of_a_batch_wait_for_each_other() {
    let mut stage = Stage::new(4);
    let first = stage.first_waits();
    stage.answer_all_but(first);
    stage.expect_answer(first);
    stage.stop();
}

/// An answer that is its head alone ends the application's output, whether it went out or waits.
#[test]
fn an_answer_that_waits_is_no_less_whole() {
    let mut stage = Stage::new(2);
    let deadline = Instant::now() + PATIENCE;
    let mut waited = false;
    while !waited {
        assert!(Instant::now() < deadline, "no answer ever waits for another");
        for (index, client) in stage.clients.iter_mut().enumerate() {
            client.send(format!("HEAD /{index} HTTP/1.1\r\nHost: h\r\n\r\n"));
        }
        for _ in 0..2 {
            let mut exchange = stage.next();
            let index = index_of(&exchange);
            exchange.start(b"200 OK", &[]).expect("valid");
            assert_eq!(exchange.write(b"piece"), Written::Gone);
            waited |= !stage.has_answer(index);
            exchange.finish_at(Instant::now(), TOOK).expect("valid");
        }
        assert!(stage.thread.poll().is_none());
        for client in &mut stage.clients {
            assert_eq!(client.head().status, 200);
        }
    }
    stage.stop();
}

#[test]
fn no_answer_waits_for_the_application() {
    let mut stage = Stage::new(4);
    let first = stage.first_waits();
    let slow = stage.next();
    stage.expect_answer(first);
    let second = index_of(&slow);
    finish(slow);
    stage.expect_answer(second);
    stage.answer_the_last(2);
    stage.stop();
}

/// What an application does after its answer, in `close()` for example, may take long too.
#[test]
fn no_answer_waits_for_its_own_end() {
    let mut stage = Stage::new(5);
    let mut garbage = stage.clients.pop().expect("one of five");
    let first = stage.first_waits();
    let mut late = stage.next();
    let second = index_of(&late);
    // The loop answers this without the application: the monitor has it.
    assert_eq!(garbage.send("garbage\r\n\r\n").answer().status, 400);
    write(&mut late);
    stage.expect_answer(second);
    stage.expect_answer(first);
    late.finish_at(Instant::now(), TOOK).expect("valid");
    drop(garbage);
    stage.answer_the_last(2);
    stage.stop();
}

/// A single client never waits: there is nothing to wait for. On a busy machine the kernel may hand an answer over a moment
/// after it was sent; one that waited would not be there in any round.
#[test]
fn an_answer_without_company_goes_out_at_once() {
    const ROUNDS: usize = 100;
    let mut stage = Stage::new(1);
    let mut at_once = 0;
    for _ in 0..ROUNDS {
        stage.ask(0);
        let exchange = stage.next();
        finish(exchange);
        at_once += usize::from(stage.has_answer(0));
        stage.expect_answer(0);
    }
    assert!(at_once > ROUNDS / 2, "{at_once} of {ROUNDS}");
    stage.stop();
}

/// An answer that is too large to wait is queued where the socket is full, and its client has all of its time.
#[test]
fn a_large_answer_in_a_volley_is_not_cut() {
    const LARGE: usize = 8 << 20;
    const SOME: usize = 300_000;
    let write_timeout = Duration::from_millis(300);
    let mut stage = Stage::with(4, Settings { write_timeout, ..settings() });
    let begun = Instant::now();
    for _ in 0..3 {
        // Each time on a connection on which nothing was queued for longer than the timeout.
        while begun.elapsed() < write_timeout {
            std::thread::yield_now();
        }
        // The monitor has had the loop meanwhile. Not any more.
        let first = stage.first_waits();
        stage.answer_all_but(first);
        stage.expect_answer(first);
        (0..4).for_each(|index| stage.ask(index));
        let mut exchange = stage.next();
        let first = index_of(&exchange);
        let mut client = stage.clients.remove(first);
        let (reads, has_read) = channel();
        let (goes_on, go_on) = channel();
        let reader = std::thread::spawn(move || {
            client.head();
            let some = client.exactly(SOME).len();
            reads.send(()).expect("the test waits");
            go_on.recv_timeout(PATIENCE).expect("the test goes on");
            let length = some + client.exactly(LARGE - some).len();
            (client, length)
        });
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(&vec![b'x'; LARGE]);
        // There is a little room in the socket again when the loop looks.
        has_read.recv_timeout(PATIENCE).expect("the client reads");
        exchange.finish_at(Instant::now(), TOOK).expect("valid");
        for _ in 1..4 {
            let exchange = stage.next();
            finish(exchange);
        }
        assert!(stage.thread.poll().is_none());
        goes_on.send(()).expect("the client waits");
        // The loop is ours to run until the large answer has gone out.
        while !reader.is_finished() {
            assert!(stage.thread.poll().is_none());
            std::thread::yield_now();
        }
        let (client, length) = reader.join().expect("the client has all of it");
        assert_eq!(length, LARGE);
        stage.clients.insert(first, client);
        (0..4).filter(|&index| index != first).for_each(|index| stage.expect_answer(index));
    }
    stage.stop();
}
