//! Several app threads, signals, and children of the application.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fixture::{app, settings, Client, Fixture, PATIENCE};
use crate::serve::{AppThread, Exchange, Handle, Listener, Settings};

#[test]
fn what_crosses_threads_may() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<AppThread>();
    send::<Exchange>();
    sync::<Exchange>();
    send::<Handle>();
    sync::<Handle>();
}

#[test]
fn two_threads_run_two_requests() {
    let fixture = Fixture::new(Settings { threads: 2, ..settings() }, app);
    let mut blocked = fixture.client();
    blocked.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    let mut second = fixture.client();
    second.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    fixture.gate.open();
    fixture.gate.open();
    assert_eq!(blocked.answer().text(), "passed");
    assert_eq!(second.answer().text(), "passed");
    fixture.stop();
}

#[test]
fn connections_are_taken_only_while_a_thread_is_free() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let sibling = listener.try_clone().expect("dup");
    let fixture = Fixture::with(settings(), address, vec![Listener { id: 0, fd: listener.into() }], None, app);
    fixture.handle.serve();
    let mut running = fixture.client();
    running.send("GET /gate HTTP/1.1\r\nHost: h\r\n\r\n");
    fixture.expect_app("at the gate");
    let mut waiting = fixture.client();
    waiting.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    // A sibling with a free thread gets it.
    let (taken, _) = sibling.accept().expect("still in the queue");
    drop((taken, waiting));
    fixture.gate.open();
    assert_eq!(running.answer().text(), "passed");
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn busy_keep_alive_clients_do_not_shut_out_new_ones() {
    let fixture = Fixture::new(settings(), app);
    let address = fixture.address;
    static NEW: AtomicUsize = AtomicUsize::new(0);
    let keepers: Vec<_> = (0..6)
        .map(|_| {
            let mut client = fixture.client();
            std::thread::spawn(move || {
                let deadline = std::time::Instant::now() + PATIENCE;
                while NEW.load(Ordering::Relaxed) < 50 {
                    assert!(std::time::Instant::now() < deadline, "new clients starve");
                    assert_eq!(client.get("/hello").text(), "hello");
                }
            })
        })
        .collect();
    for _ in 0..50 {
        let mut client = Client::new(TcpStream::connect(address).expect("connect"));
        assert_eq!(client.get("/hello").text(), "hello");
        NEW.fetch_add(1, Ordering::Relaxed);
    }
    for keeper in keepers {
        keeper.join().expect("a keep-alive client failed");
    }
    fixture.stop();
}

#[test]
fn the_main_thread_hears_of_signals() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let listeners = vec![Listener { id: 0, fd: listener.into() }];
    let fixture = Fixture::with(settings(), address, listeners, Some(reader.into()), app);
    fixture.handle.serve();
    writer.write_all(&[15]).expect("write");
    fixture.expect_app("signal");
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    writer.write_all(&[15]).expect("write");
    fixture.expect_app("signal");
    // The end of the pipe is one more, and then there is silence.
    drop(writer);
    fixture.expect_app("signal");
    assert_eq!(fixture.client().get("/hello").text(), "hello");
    fixture.stop();
}

#[test]
fn a_forked_child_holds_nothing_and_serves_nothing() {
    let fixture = Fixture::new(settings(), |mut exchange, gate, voice| {
        if exchange.path() == b"/fork" {
            voice.say("forking");
            gate.pass();
        }
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(b"from the parent");
        exchange.finish().expect("valid");
    });
    let mut idle = fixture.client();
    assert_eq!(idle.get("/").text(), "from the parent");
    let (reader, writer) = std::io::pipe().expect("pipe");
    let (gate_reader, gate_writer) = std::io::pipe().expect("pipe");
    fixture.handle.forked();
    // SAFETY: the child calls async-signal-safe functions only, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        use std::os::fd::AsRawFd;
        fixture.handle.forget_in_child();
        let mut byte = [1u8];
        // SAFETY: plain calls with buffers of this frame. The child lives until the parent closes its pipe.
        unsafe {
            libc::close(gate_writer.as_raw_fd());
            libc::write(writer.as_raw_fd(), byte.as_ptr().cast(), 1);
            libc::read(gate_reader.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
            libc::_exit(0);
        }
    }
    drop(writer);
    let mut told = [0; 1];
    std::io::Read::read_exact(&mut { reader }, &mut told).expect("the child has forgotten");
    // The child lives. That the client sees the end shows that it holds no copy of the connection.
    idle.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(idle.answer().text(), "from the parent");
    idle.expect_closed();
    drop(gate_writer);
    // SAFETY: waits for our own child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    fixture.stop();
}
