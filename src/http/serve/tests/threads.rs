//! Several app threads, signals, and children of the application.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

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
    let fixture =
        Fixture::with(settings(), address, vec![Listener { id: 0, fd: listener.into(), proxy: None }], None, app);
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

/// Who came together waits together, and not each for the whole line.
#[test]
fn connections_that_came_together_are_taken_together() {
    const KEEPERS: usize = 6;
    const NEW: usize = 6;
    let fixture = Fixture::new(settings(), |mut exchange, gate, voice| {
        let path = String::from_utf8(exchange.path().to_vec()).expect("text");
        voice.say(path.as_str());
        gate.pass();
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(b"passed");
        // The application is slow, so the monitor has the loop, and requests are dispatched while others run.
        exchange.finish_at(Instant::now(), Duration::from_millis(100)).expect("valid");
    });
    let ask = |client: &mut Client, path: &str| {
        client.send(format!("GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n"));
    };
    let mut keepers: Vec<Client> = (0..KEEPERS).map(|_| fixture.client()).collect();
    for keeper in &mut keepers {
        ask(keeper, "warm");
        fixture.gate.open();
        assert_eq!(keeper.answer().text(), "passed");
    }
    keepers.iter_mut().enumerate().for_each(|(index, keeper)| ask(keeper, &index.to_string()));
    // The thread is at the gate with one of them. From now on it has never nothing to do.
    let mut served = fixture.expect_any_app(|text| text != "/warm");
    let mut new: Vec<Client> = (0..NEW).map(|_| fixture.client()).collect();
    new.iter_mut().for_each(|client| ask(client, "new"));
    let (mut answered, mut requests) = (0, 0);
    while answered < NEW {
        fixture.gate.open();
        match served[1..].parse::<usize>() {
            Ok(index) => {
                assert_eq!(keepers[index].answer().text(), "passed");
                ask(&mut keepers[index], &index.to_string());
            }
            Err(_) => answered += 1,
        }
        requests += 1;
        assert!(requests <= 3 * (KEEPERS + NEW), "{answered} of {NEW} new ones in {requests} requests");
        served = fixture.expect_any_app(|_| true);
    }
    println!("{NEW} new ones were answered within {requests} requests");
    (0..KEEPERS).for_each(|_| fixture.gate.open());
    new.iter_mut().for_each(|client| assert_eq!(client.answer().text(), "passed"));
    keepers.iter_mut().for_each(|client| assert_eq!(client.answer().text(), "passed"));
    fixture.stop();
}

#[test]
fn the_main_thread_hears_of_signals() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("fcntl");
    let address = listener.local_addr().expect("its address");
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let listeners = vec![Listener { id: 0, fd: listener.into(), proxy: None }];
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
fn a_signal_interrupts_the_main_threads_wait() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, and nobody else in these tests uses this signal.
    unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as libc::sighandler_t) };
    let fixture = Fixture::new(settings(), |mut exchange, _gate, _voice| {
        // SAFETY: takes nothing.
        let thread = unsafe { libc::gettid() }.to_string();
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(thread.as_bytes());
        exchange.finish().expect("valid");
    });
    let thread: libc::pid_t = fixture.client().get("/").text().parse().expect("a thread id");
    // A signal that comes before the wait is lost without a wakeup descriptor: send until one was heard of.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !fixture.has_said("signal") {
        assert!(std::time::Instant::now() < deadline, "the signal is not heard of");
        // SAFETY: the thread is one of this process and alive.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR2) };
        std::thread::yield_now();
    }
    assert_eq!(fixture.client().get("/").status, 200);
    fixture.stop();
}

/// The limit is the process's, so this runs in a process of its own.
#[test]
fn running_out_of_descriptors_pauses_accepting() {
    const ALONE: &str = "FORKMASTER_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "serve::tests::threads::running_out_of_descriptors_pauses_accepting";
        let output = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("a process");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
        return;
    }
    let fixture = Fixture::new(settings(), app);
    let mut first = fixture.client();
    assert_eq!(first.get("/hello").text(), "hello");
    let late = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    // SAFETY: the limit outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 64, rlim_max: 64 }) }, 0);
    let fillers: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(!fillers.is_empty());
    late.connect(&fixture.address.into()).expect("connect");
    let mut late = Client::new(late.into());
    late.send("GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
    // Who is in stays in, and the loop does not spin.
    for _ in 0..3 {
        assert_eq!(first.get("/hello").text(), "hello");
    }
    drop(fillers);
    assert_eq!(late.answer().text(), "hello");
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
