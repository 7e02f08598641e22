//! Slow and hostile clients cost nothing: a thousand of each kind while others are served, descriptors and disks
//! that are full, clients that leave.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::client::{self, head, Address};
use crate::harness::machine::can_mount;
use crate::harness::master::{Launch, Master};
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::{wait_for, WAIT};

const SLOW: usize = 1000;

/// Memory is not measured on a page of the application, so anything small will do.
fn slow_site(name: &str) -> Site {
    let site = Site::alone(name).releases(1);
    site.set("server.workers", "2").set("server.threads", "1").set("server.connections", "1024");
    // As on a loaded machine: nothing in this test is about these.
    for timeout in ["header_timeout", "body_timeout", "write_timeout"] {
        site.set(&format!("http.{timeout}"), "'120s'");
    }
    site
}

fn tcp(master: &Master) -> SocketAddr {
    match master.address() {
        Address::Tcp(address) => address,
        Address::Unix(path) => panic!("not TCP: {}", path.display()),
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, WAIT).expect("it accepts");
    stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
    stream.set_write_timeout(Some(WAIT)).expect("setsockopt");
    stream
}

/// A thousand clients want as many descriptors here.
fn raise_descriptor_limit() {
    use nix::sys::resource::{getrlimit, setrlimit, Resource};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(8192).min(hard), hard).expect("up to the hard limit anybody may");
}

fn workers_memory(master: &Master) -> u64 {
    master.wait_workers(2).iter().map(|worker| process::rss_anon_bytes(worker.pid)).sum()
}

/// How many connections the workers hold, as /proc shows them.
fn workers_sockets(master: &Master) -> usize {
    let sockets = |pid: i32| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.flatten().collect::<Vec<_>>());
        let links = entries.unwrap_or_default().into_iter().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    master.wait_workers(2).iter().map(|worker| sockets(worker.pid)).sum()
}

/// Ordinary requests, each on a connection of its own and each answered; prints how long they took.
fn ordinary_requests(what: &str, master: &Master) {
    const REQUESTS: usize = 400;
    let address = master.address();
    let mut took: Vec<Duration> = (0..REQUESTS)
        .map(|number| {
            let began = Instant::now();
            let response =
                client::get(&address, "/").unwrap_or_else(|failure| panic!("{what}, request {number}: {failure}"));
            assert_eq!((response.status, response.text().as_str()), (200, "1"), "{what}");
            began.elapsed()
        })
        .collect();
    took.sort();
    let at = |share: usize| took[REQUESTS * share / 100];
    println!(
        "{what}: {REQUESTS} ordinary requests, median {:?}, p99 {:?}, longest {:?}",
        at(50),
        at(99),
        took[REQUESTS - 1]
    );
    // A thread that is held by a slow client answers after seconds; that is what this is about, not speed.
    assert!(at(99) < Duration::from_secs(2), "{what}: p99 {:?}", at(99));
}

/// Reads an answer to its end.
fn read_answer(stream: &mut TcpStream) -> (String, usize) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
            let (mut body, length) = (bytes.len() - at - 4, length.expect("the tests' application says it"));
            while body < length {
                let count = stream.read(&mut buffer).expect("the answer goes on");
                assert!(count > 0, "cut after {body} of {length} bytes");
                body += count;
            }
            return (head, body);
        }
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "closed without an answer: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// Opens a thousand connections that have sent so much, waits until the workers hold them, serves others meanwhile,
/// lets each send the rest and checks every answer.
fn hold(what: &str, begin: &[u8], rest: &[u8], body: &str) {
    raise_descriptor_limit();
    let site = slow_site(what);
    let master = site.start();
    ordinary_requests("before", &master);
    let (memory, sockets) = (workers_memory(&master), workers_sockets(&master));
    let address = tcp(&master);
    let mut slow: Vec<TcpStream> = (0..SLOW).map(|_| connect(address)).collect();
    for stream in &mut slow {
        stream.write_all(begin).expect("the kernel takes it");
    }
    wait_for("a thousand accepted connections", || (workers_sockets(&master) >= sockets + SLOW).then_some(()));
    ordinary_requests(what, &master);
    let held = workers_memory(&master).saturating_sub(memory);
    println!("{what}: {} bytes of memory per connection", held / SLOW as u64);
    for stream in &mut slow {
        stream.write_all(rest).expect("it is still open");
    }
    for stream in &mut slow {
        let (head, length) = read_answer(stream);
        assert!(head.starts_with("HTTP/1.1 200 ") && length == body.len(), "{what}: {head}");
    }
    assert!(!master.log().contains("refused"), "{}", master.log());
}

#[test]
fn a_thousand_slow_heads() {
    hold("slow heads", b"GET / HTTP/1.1\r\nHost: loc", b"alhost\r\n\r\n", "1");
}

#[test]
fn a_thousand_slow_bodies() {
    let begin = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\nbegin";
    let rest = vec![b'x'; 1995];
    hold("slow bodies", begin, &rest, &"x".repeat(2000));
}

#[test]
fn a_thousand_slow_chunked_bodies() {
    let begin = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n7d";
    let rest = [b"0\r\n".to_vec(), vec![b'x'; 2000], b"\r\n0\r\n\r\n".to_vec()].concat();
    hold("slow chunked bodies", begin, &rest, &"x".repeat(2003));
}

/// Connections that are only kept: what one costs.
#[test]
fn a_thousand_idle_connections() {
    raise_descriptor_limit();
    let site = slow_site("idle");
    let master = site.start();
    ordinary_requests("before", &master);
    let memory = workers_memory(&master);
    let address = tcp(&master);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(&head("GET", "/", &[])).expect("it is open");
        read_answer(stream)
    };
    let mut kept: Vec<TcpStream> = (0..SLOW)
        .map(|_| {
            let mut stream = connect(address);
            ask(&mut stream);
            stream
        })
        .collect();
    ordinary_requests("idle connections", &master);
    println!("idle: {} bytes of memory per connection", workers_memory(&master).saturating_sub(memory) / SLOW as u64);
    for stream in &mut kept {
        assert!(ask(stream).0.starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn a_thousand_slow_readers_of_five_megabytes() {
    const BYTES: usize = 5_000_000;
    raise_descriptor_limit();
    let site = slow_site("slow readers");
    // Five gigabytes wait in files; the default of 4 GiB per worker is enough for the half of them.
    site.set("server.temp_limit", "'8GiB'");
    let master = site.start();
    ordinary_requests("before", &master);
    let memory = workers_memory(&master);
    let address = tcp(&master);
    let request = head("GET", &format!("/big?bytes={BYTES}"), &[]);
    let mut slow: Vec<TcpStream> = (0..SLOW)
        .map(|_| {
            // A small window, so that the server and not the kernel has to keep the answer.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
            socket.set_recv_buffer_size(16 * 1024).expect("setsockopt");
            socket.connect(&address.into()).expect("it accepts");
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
            stream.write_all(&request).expect("the kernel takes it");
            stream
        })
        .collect();
    // The first bytes of each: it was answered, and whoever answered it is free again.
    let mut first = [0; 12];
    for stream in &mut slow {
        stream.read_exact(&mut first).expect("the answer begins");
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    ordinary_requests("slow readers", &master);
    let held = workers_memory(&master).saturating_sub(memory);
    println!("slow readers: {} KiB of memory per connection", held / SLOW as u64 / 1024);
    // Every tenth to the end, byte for byte as long; the others leave in the middle of their answer.
    let mut buffer = vec![0; 256 * 1024];
    for stream in slow.iter_mut().step_by(10) {
        let mut count = first.len();
        let mut head_bytes = Vec::new();
        let mut length = None;
        while length.is_none_or(|length| count < length) {
            let read = stream.read(&mut buffer).expect("the answer goes on");
            assert!(read > 0, "cut after {count} bytes");
            count += read;
            if length.is_none() {
                head_bytes.extend_from_slice(&buffer[..read]);
                let end = head_bytes.windows(4).position(|window| window == b"\r\n\r\n");
                length = end.map(|end| first.len() + end + 4 + BYTES);
            }
        }
        assert_eq!(Some(count), length);
    }
    drop(slow);
    ordinary_requests("after they left", &master);
}

/// A byte every now and then keeps no place: heads, bodies and readers are cut off after their timeout.
#[test]
fn dribbling_clients_lose_their_place() {
    let site = Site::with_releases("dribble", 1);
    site.set("http.header_timeout", "'1s'").set("http.body_timeout", "'1s'").set("http.write_timeout", "'1s'");
    // From here, and yet no proxy of ours.
    site.set("http.forwarded_allow_ips", "[]");
    let master = site.start();
    let address = tcp(&master);
    for (begin, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\nX: ", "408"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n", "408"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", "408"),
    ] {
        let mut stream = connect(address);
        stream.write_all(begin.as_bytes()).expect("it is open");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("setsockopt");
        let began = Instant::now();
        let mut answer = [0; 12];
        loop {
            assert!(began.elapsed() < WAIT, "{begin:?}: a byte every 100 ms keeps its place");
            // The wait for an answer is the pace of the bytes.
            match stream.read(&mut answer) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    stream.write_all(b"x").expect("it is open until it is answered");
                }
                Err(error) => panic!("{begin:?}: {error}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"), "{begin:?}");
    }
    master.wait_log("408 request head not complete in time (header_timeout)");
    master.wait_log("408 request body not received in time (body_timeout)");
    let mut reader = connect(address);
    reader.write_all(&head("GET", "/big?bytes=50000000", &[])).expect("it is open");
    let began = Instant::now();
    let mut byte = [0];
    while !master.log().contains("does not take its answer") {
        assert!(began.elapsed() < WAIT, "a reader of a byte now and then keeps its place");
        let _ = reader.read(&mut byte);
        // A pace, not a wait for something.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(master.get("/").text(), "1");
}

/// A worker that has no descriptor left says so once, and goes on when it has one again.
#[test]
fn a_worker_without_descriptors_waits_and_goes_on() {
    let site = Site::with_releases("emfile", 1);
    site.set("server.workers", "1");
    let launch = Launch {
        before_exec: Some(Box::new(|| {
            let limit = libc::rlimit { rlim_cur: 60, rlim_max: 60 };
            // SAFETY: setrlimit is async-signal-safe and `limit` outlives the call.
            match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })),
        ..Launch::default()
    };
    let master = site.launch(launch);
    master.wait_serving();
    let address = tcp(&master);
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..80 {
        let mut stream = connect(address);
        stream.write_all(b"GET / HTTP/1.1\r\n").expect("the kernel takes it");
        held.push(stream);
    }
    master.wait_log("accepting pauses, new connections wait");
    // A held one is finished although no new one can be accepted.
    held[0].write_all(b"Host: h\r\n\r\n").expect("it is open");
    assert!(read_answer(&mut held[0]).0.starts_with("HTTP/1.1 200 "));
    held.clear();
    assert_eq!(master.get("/").text(), "1");
    master.wait_log("accepting goes on");
    let pauses = master.log().lines().filter(|line| line.contains("accepting pauses")).count();
    assert!(pauses <= 3, "{pauses} lines for one shortage");
}

/// The directory for temporary files is full: the body that needs one gets 503, an answer waits for its client, and
/// everything else goes on.
#[test]
fn a_full_disk_fails_one_request() {
    if !can_mount() {
        return;
    }
    let site = Site::with_releases("full_disk", 1);
    std::fs::create_dir(site.path().join("small")).expect("it is our directory");
    site.set("server.temp_dir", "'small'").set("server.workers", "1").set("http.stream_bodies", "'never'");
    let mount = format!("mount -t tmpfs -o size=256k none {}/small && exec \"$@\"", site.path().display());
    let through = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount, "sh"];
    let through = through.iter().map(|word| (*word).to_string()).collect();
    let master = site.launch(Launch { through, ..Launch::default() });
    master.wait_serving();
    let mut connection = master.connect();
    let response = connection.post("/echo", &vec![b'x'; 2_000_000]).expect("it is answered");
    assert_eq!(response.status, 503, "{}", response.text());
    master.wait_log("temporary file for a request body: No space left on device");
    master.wait_log("503 the temporary file for the request body cannot be written (temp_dir)");
    assert_eq!(master.get("/").text(), "1");
    // An answer that is too large to stay in memory, and would be buffered in a file.
    let mut reader = master.connect();
    reader.must_send(head("GET", "/big?bytes=80000000", &[]));
    master.wait_log("temporary file for a response: No space left on device");
    assert_eq!(reader.expect_answer().body.len(), 80_000_000);
    let mut connection = master.connect();
    assert_eq!(connection.post("/echo", b"small").expect("it is answered").text(), "small");
}

/// Clients that leave in every state cost no line that is an error, no worker and no connection.
#[test]
fn clients_that_leave_are_no_errors() {
    let site = Site::with_releases("leaving", 1);
    let master = site.start();
    let address = tcp(&master);
    for bytes in [
        &b""[..],
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc",
        b"GET /big?bytes=5000000 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /stream?pause=0.01 HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        for reset in [false, true] {
            let socket = socket2::Socket::from(connect(address));
            if reset {
                // Closing then sends RST.
                socket.set_linger(Some(Duration::ZERO)).expect("setsockopt");
            }
            let mut stream = TcpStream::from(socket);
            stream.write_all(bytes).expect("the kernel takes it");
            drop(stream);
            assert_eq!(master.get("/").text(), "1");
        }
    }
    wait_for("the end of all connections", || {
        let sockets = workers_sockets(&master);
        (sockets <= idle_sockets(&master)).then_some(())
    });
    master.assert_quiet_log();
}

/// What two workers have without clients: a channel each, the listener, and both ends of the handoff queue.
fn idle_sockets(master: &Master) -> usize {
    4 * master.wait_workers(2).len()
}
