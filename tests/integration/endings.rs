//! How answers end: without content, cut, given up, in full; what the client sees of it, and what the access log says. What
//! the waiting ones cost. Requests that wait while a worker stands still.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::{head, Address, Connection};
use crate::harness::freezer::Freezer;
use crate::harness::machine::not_tested;
use crate::harness::master::Master;
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::{wait_for, WAIT};
use crate::proxies;

const LARGE: u64 = 20 << 20;

fn forms(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").app("wsgi_forms.py").make();
    site.flip("1");
    // Clients of a test come from this machine, and are clients all the same.
    site.set("server.workers", "1").set("http.forwarded_allow_ips", "[]");
    site
}

fn closed(master: &Master, form: &str) -> u32 {
    master.get(&format!("/closed/{form}")).text().parse().expect("a number")
}

fn connect(master: &Master) -> TcpStream {
    let Address::Tcp(address) = master.address() else { panic!("not TCP") };
    let stream = TcpStream::connect_timeout(&address, WAIT).expect("it accepts");
    stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
    stream
}

fn asking(master: &Master, target: &str, version: &str) -> TcpStream {
    let mut stream = connect(master);
    stream.write_all(format!("GET {target} HTTP/{version}\r\nHost: h\r\n\r\n").as_bytes()).expect("it is open");
    stream
}

/// Reads so many bytes.
fn take(stream: &mut TcpStream, bytes: u64) {
    let mut place = vec![0; 64 * 1024];
    let mut taken = 0;
    while taken < bytes {
        let room = place.len().min(usize::try_from(bytes - taken).unwrap_or(usize::MAX));
        match stream.read(&mut place[..room]).expect("more comes") {
            0 => panic!("closed after {taken} of {bytes} bytes"),
            length => taken += length as u64,
        }
    }
}

/// Of an answer of `LARGE` bytes of which a thousand were read: all that is left of them, and a little of the head less.
fn take_body(stream: &mut TcpStream) {
    take(stream, LARGE - 1000);
}

/// The number of bytes up to the end, and whether that was a reset.
fn take_all(stream: &mut TcpStream) -> (u64, bool) {
    let mut place = vec![0; 64 * 1024];
    let mut taken = 0;
    loop {
        match stream.read(&mut place) {
            Ok(0) => return (taken, false),
            Ok(length) => taken += length as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (taken, true),
            Err(error) => panic!("after {taken} bytes: {error}"),
        }
    }
}

/// As found: HEAD of an endless answer took a thread for ever, and no timeout ended it.
#[test]
fn an_answer_without_content_frees_its_thread() {
    let site = forms("ending_head");
    let master = site.start();
    for (request, form) in [
        ("HEAD /endless", "endless"),
        ("GET /endless_no_content", "endless_no_content"),
        ("GET /endless_not_modified", "endless_not_modified"),
    ] {
        let mut connection = master.connect();
        for number in 1..=3 {
            connection.must_send(format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert!(matches!(connection.read_to_head().expect("it is answered").status, 200 | 204 | 304), "{request}");
            assert_eq!(closed(&master, form), number, "{request}");
        }
        // The connection lives on.
        assert_eq!(connection.get_ok("/one").text(), "one");
    }
}

/// The lines of the access log, one after the other: path, status, bytes and how the answer ended.
struct Lines {
    log: PathBuf,
    seen: usize,
}

impl Lines {
    fn of(site: &Site) -> Lines {
        site.set("log.access", "'access.log'").set("log.access_format", "'%(U)s %(s)s %(B)s %(X)s %(G)s %(Q)s'");
        Lines { log: site.path().join("access.log"), seen: 0 }
    }

    /// The next one, which is the only one that has been written since.
    fn next(&mut self, path: &str) -> (String, u64, String) {
        self.seen += 1;
        let lines = wait_for("the line", || {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= self.seen).then_some(lines)
        });
        assert_eq!(lines.len(), self.seen, "{lines:?}");
        let fields: Vec<&str> = lines[self.seen - 1].split(' ').collect();
        assert_eq!((fields[0], fields[4]), (path, "1"), "{fields:?}");
        assert!(fields[5].parse::<u64>().is_ok_and(|queued| queued < 60_000_000), "{fields:?}");
        (fields[1].to_owned(), fields[2].parse().expect("a number"), fields[3].to_owned())
    }
}

/// Each way in which an answer ends has one line, written when it ends.
#[test]
fn the_access_log_says_what_went_out_and_how_it_ended() {
    let site = forms("ending_lines");
    let mut lines = Lines::of(&site);
    let master = site.start();
    let complete = |bytes| ("200".to_owned(), bytes, "complete".to_owned());
    // All of it, in one piece and in many, to those who keep the connection and to those who do not.
    for version in ["1.1", "1.0"] {
        drop(asking(&master, "/one", version).read(&mut [0; 1000]));
        assert_eq!(lines.next("/one"), complete(3));
    }
    assert_eq!(master.get("/generated").text(), "012");
    assert_eq!(lines.next("/generated"), complete(3));
    // An exception before the head, and one after it.
    assert_eq!(master.get("/raises_at_once").status, 500);
    let refused = "Internal Server Error\n".len() as u64;
    assert_eq!(lines.next("/raises_at_once"), ("500".to_owned(), refused, "complete".to_owned()));
    let (_, was_reset) = take_all(&mut asking(&master, "/raises_in_the_middle", "1.0"));
    assert!(was_reset);
    assert_eq!(lines.next("/raises_in_the_middle"), ("200".to_owned(), 5, "cut".to_owned()));
    // A download that takes longer than its application.
    let mut slow = asking(&master, "/large", "1.1");
    take(&mut slow, 1000);
    assert_eq!(closed(&master, "large"), 0);
    assert_eq!(lines.next("/closed/large").2, "complete");
    take_body(&mut slow);
    assert_eq!(lines.next("/large"), complete(LARGE));
    // One whose client leaves.
    let mut leaving = asking(&master, "/large", "1.1");
    take(&mut leaving, 1_000_000);
    drop(leaving);
    let (status, bytes, how) = lines.next("/large");
    assert_eq!((status.as_str(), how.as_str()), ("200", "client-left"));
    assert!((900_000..LARGE).contains(&bytes), "{bytes}");
}

/// As found: to HTTP/1.0, which nginx speaks unless told otherwise, a download that was given up looked complete, and so it
/// did in the log.
#[test]
fn a_reader_that_is_given_up_can_tell_and_so_can_the_log() {
    let site = forms("ending_silence");
    site.set("http.write_timeout", "'1s'");
    let mut lines = Lines::of(&site);
    let master = site.start();
    let mut silent = asking(&master, "/large_stream", "1.0");
    let (status, bytes, how) = lines.next("/large_stream");
    assert_eq!((status.as_str(), how.as_str()), ("200", "write-timeout"));
    assert!((1..LARGE).contains(&bytes), "{bytes}");
    let (taken, was_reset) = take_all(&mut silent);
    assert!(was_reset && taken < LARGE, "{taken} bytes, reset: {was_reset}");
}

/// As found: nginx asks by HTTP/1.0, and took the downloads of a worker that was killed for complete ones.
#[test]
fn a_killed_worker_ends_no_download_cleanly() {
    let site = forms("ending_kill");
    let master = site.start();
    for version in ["1.0", "1.1"] {
        let mut stream = asking(&master, "/large_stream", version);
        take(&mut stream, 1_000_000);
        let worker = master.wait_serving()[0].pid;
        kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it runs");
        let (taken, was_reset) = take_all(&mut stream);
        assert!(taken + 1_000_000 < LARGE, "{taken}");
        // By HTTP/1.1 the last chunk is missing, so that any end is told from a clean one.
        assert!(was_reset || version == "1.1", "HTTP/{version}: a clean end after {taken} bytes");
        wait_for("another worker", || master.wait_serving().first().map(|now| now.pid).filter(|pid| *pid != worker));
    }
}

/// The same through nginx with nothing set: its client gets no last chunk.
#[test]
fn a_download_that_is_cut_behind_nginx_is_an_error_for_its_client() {
    let site = forms("ending_nginx");
    let master = site.start();
    let Address::Tcp(upstream) = master.address() else { panic!("not TCP") };
    let (_nginx, address) = proxies::nginx(&site, upstream);
    let mut stream = TcpStream::connect_timeout(&address, WAIT).expect("it accepts");
    stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").expect("it is open");
    take(&mut stream, 1_000_000);
    kill(Pid::from_raw(master.wait_serving()[0].pid), Signal::SIGKILL).expect("it runs");
    let (mut place, mut end) = (vec![0; 64 * 1024], Vec::new());
    loop {
        match stream.read(&mut place) {
            Ok(0) => break,
            Ok(length) => end = [&end[end.len().saturating_sub(5)..], &place[..length]].concat(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                break;
            }
        }
    }
    assert!(!end.ends_with(b"0\r\n\r\n"), "a clean end");
}

fn memory(master: &Master) -> u64 {
    process::rss_anon_bytes(master.wait_serving()[0].pid)
}

/// A client for which the kernel keeps next to nothing: else that would take all that the client leaves.
fn narrow(master: &Master) -> TcpStream {
    let Address::Tcp(address) = master.address() else { panic!("a TCP address") };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("setsockopt");
    socket.connect(&address.into()).expect("it accepts");
    socket.set_read_timeout(Some(WAIT)).expect("setsockopt");
    socket.into()
}

/// What queues of a worker may hold in sum.
const QUEUES: u64 = 64 << 20;

/// As found: objects of which little is left counted with that little: 40 of these cost 800 MiB.
#[test]
fn readers_that_stop_near_the_end_cost_what_they_hold() {
    let site = forms("ending_held");
    site.set("http.write_timeout", "'120s'");
    let master = site.start();
    assert_eq!(master.get("/one").text(), "one");
    let before = memory(&master);
    let mut readers: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut reader = narrow(&master);
            reader.write_all(&head("GET", "/large", &[])).expect("it is open");
            take(&mut reader, LARGE - 1_500_000);
            reader
        })
        .collect();
    let held = || memory(&master).saturating_sub(before);
    // The object of the last answer, which lies in a file by now, goes back to the kernel within a second or two: the C library
    // would keep the memory of one that was freed (M_TRIM_THRESHOLD, mallopt(3)).
    println!("{} MiB when the last object was freed", held() >> 20);
    wait_for("memory within the bounds", || (held() <= QUEUES + QUEUES / 5).then_some(()));
    let held = held();
    assert!(held > QUEUES / 2, "{} MiB: nothing is held, and nothing is shown", held >> 20);
    for reader in &mut readers {
        take(reader, 1_500_000);
    }
}

/// As found: without temporary space answers went to memory without any bound: 626 MiB for 30 of these.
#[test]
fn silent_readers_without_temporary_space_cost_no_more_than_queues_may() {
    let site = forms("ending_silent");
    site.set("server.temp_limit", "'1MiB'").set("http.write_timeout", "'120s'");
    let master = site.start();
    assert_eq!(master.get("/one").text(), "one");
    let before = memory(&master);
    for target in ["/large", "/large_stream"] {
        let mut readers: Vec<TcpStream> = (0..30).map(|_| asking(&master, target, "1.1")).collect();
        let held = || memory(&master).saturating_sub(before);
        let mut most = 0;
        // Who reads lets the others go on. The object that a thread waits with counts, too.
        for (number, reader) in readers.iter_mut().enumerate() {
            take(reader, 1000);
            most = most.max(held());
            // What one has taken goes back to the kernel within a second or two.
            if number % 10 == 9 {
                wait_for("memory within the bounds", || (held() <= QUEUES + QUEUES / 5).then_some(()));
            }
            take_body(reader);
        }
        assert!(most <= QUEUES + QUEUES / 5 + LARGE, "{target}: {} MiB", most >> 20);
        // Pieces wait in the application.
        let least = if target == "/large" { QUEUES / 2 } else { 0 };
        assert!(most >= least, "{target}: {} MiB: nothing is held, and nothing is shown", most >> 20);
    }
}

/// As found: of 300 requests that waited for a worker that was stopped for longer than `keepalive_timeout`, none was
/// answered.
#[test]
fn requests_that_wait_for_a_stopped_worker_are_answered() {
    let site = impatient("ending_stopped");
    let master = site.start();
    let worker = Pid::from_raw(master.wait_serving()[0].pid);
    requests_that_wait_are_answered(
        &master,
        || kill(worker, Signal::SIGSTOP).expect("it runs"),
        |()| kill(worker, Signal::SIGCONT).expect("it is stopped"),
    );
}

/// The same for all of the service, as `docker pause` has it.
#[test]
fn requests_that_wait_for_a_frozen_service_are_answered() {
    let site = impatient("ending_frozen");
    let Some(freezer) = Freezer::new(&site) else {
        return not_tested("it needs a cgroup that can be made and frozen");
    };
    let master = site.launch(freezer.launch());
    let worker = master.wait_serving()[0].pid;
    requests_that_wait_are_answered(&master, || freezer.freeze(), drop);
    assert_eq!(master.wait_serving()[0].pid, worker, "time that it was frozen counted");
}

fn impatient(name: &str) -> Site {
    let site = forms(name);
    site.set("http.keepalive_timeout", "'2s'").set("http.header_timeout", "'2s'");
    site
}

fn requests_that_wait_are_answered<T>(master: &Master, stop: impl FnOnce() -> T, go_on: impl FnOnce(T)) {
    let mut connections: Vec<Connection> = (0..300).map(|_| master.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.get_ok("/one").text(), "one");
    }
    let stopped = stop();
    connections.iter_mut().for_each(|connection| connection.must_send(head("GET", "/one", &[])));
    // What is waited for is the time itself.
    std::thread::sleep(Duration::from_secs(3));
    go_on(stopped);
    for connection in &mut connections {
        assert_eq!(connection.expect_answer().text(), "one");
    }
}

#[test]
fn an_application_may_hint_and_ask_whether_its_client_is_there() {
    let site = forms("ending_asks");
    site.set("server.threads", "2");
    let master = site.start();
    for (version, hints) in
        [("1.1", "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nX-Blanks: a\r\n\r\n"), ("1.0", "")]
    {
        let mut stream = asking(&master, "/hinted", version);
        stream.shutdown(Shutdown::Write).expect("it is open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let rest = answer.strip_prefix(hints).unwrap_or_else(|| panic!("{answer}"));
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("one"), "{answer}");
    }
    for number in 1..=2 {
        let watched = asking(&master, "/watched", "1.1");
        wait_for("the application to ask", || (closed(&master, "asked") == number).then_some(()));
        if number == 1 {
            watched.shutdown(Shutdown::Write).expect("it is open");
        }
        drop(watched);
        wait_for("the application to know", || (closed(&master, "watched") == number).then_some(()));
    }
}
