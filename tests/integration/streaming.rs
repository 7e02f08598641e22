//! Bodies that go to the application as they come: what it reads, what ends the reading, and what attackers gain by it.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::{self, Address, Connection};
use crate::harness::master::{Launch, Master};
use crate::harness::site::Site;
use crate::harness::wait_for;

const BYTES: usize = 4_000_000;
/// More than `body_memory`, so that the body goes live before the rest is sent.
const FIRST: usize = 1_000_000;

/// Says how many live bodies have begun, and reads them in each way that a file has.
const APP: &str = r#"
import io
import os
import time
import zlib

SITE = os.path.join(os.getcwd(), "..", "..")
begun = 0


def wait_for(name):
    while not os.path.exists(os.path.join(SITE, name)):
        time.sleep(0.005)


class Digest:
    value = 1

    def update(self, piece):
        self.value = zlib.adler32(piece, self.value)


def application(environ, start_response):
    global begun
    path, body = environ["PATH_INFO"], environ["wsgi.input"]
    start = lambda text, status="200 OK": (start_response(status, [("Content-Type", "text/plain")]), [text.encode()])[1]
    if path == "/begun":
        return start(str(begun))
    if path == "/other":
        wait_for("other-end")
    if environ["REQUEST_METHOD"] == "GET":
        return start("small")
    begun += not body.seekable() and not path.startswith("/honest/")
    digest = Digest()
    how = path.rsplit("/", 1)[-1]
    if how == "read":
        digest.update(body.read())
    elif how == "pieces":
        while piece := body.read(77_777):
            digest.update(piece)
    elif how == "read1":
        while piece := body.read1():
            digest.update(piece)
    elif how == "readinto":
        place = bytearray(100_001)
        while length := body.readinto(place):
            digest.update(place[:length])
    elif how == "lines":
        for line in body:
            assert line.count(b"\n") <= 1
            digest.update(line)
    elif how == "readlines":
        for line in body.readlines():
            digest.update(line)
    elif how == "buffered":
        digest.update(io.BufferedReader(body).read())
    elif how == "mixed":
        digest.update(body.readline())
        digest.update(body.read(10))
        digest.update(body.readline(5))
        digest.update(body.read1(100))
        digest.update(body.read())
        assert body.read() == body.read(1) == body.readline() == b""
    elif how == "seek":
        try:
            body.seek(0)
        except io.UnsupportedOperation:
            return start("cannot")
        return start("can")
    elif how == "unread":
        pass
    elif how == "late":
        body.read(500_000)
        wait_for("late-end")
        try:
            outcome = len(body.read())
        except OSError as error:
            outcome = error
        with open(os.path.join(SITE, "outcome"), "w") as file:
            file.write("{} {}\n".format(body.seekable(), outcome))
    elif how == "caught":
        try:
            body.read()
        except OSError as error:
            return start("caught " + type(error).__name__, "400 Bad Request")
    else:
        body.read()
    return start("{} {} {}".format(digest.value, environ.get("CONTENT_LENGTH"), body.tell()))
"#;

/// One worker, with the setting as it is unless somebody changes it.
fn site(name: &str, threads: usize) -> Site {
    let site = Site::with_source(name, APP);
    site.set("server.workers", "1").set("server.threads", &threads.to_string());
    site
}

fn eager(site: &Site) -> Master {
    let master = site.launch(Launch::default().env("FORKMASTER_MUTANT", "bodies-are-fast"));
    master.wait_serving();
    master
}

/// Lines of many lengths.
fn body() -> Vec<u8> {
    let mut body: Vec<u8> =
        (0..).map(|number| format!("{}\n", "x".repeat(number * 37 % 5000))).take(1700).collect::<String>().into();
    body.resize(BYTES, b'y');
    body
}

fn head(path: &str, framing: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n")
}

fn begun(master: &Master) -> usize {
    master.get("/begun").text().parse().expect("a number")
}

#[test]
fn a_live_body_is_read_in_each_way_that_a_file_has() {
    let site = site("live", 2);
    let master = eager(&site);
    let body = body();
    let digest = adler32(&body);
    let mut connection = master.connect();
    let ways = ["read", "pieces", "read1", "readinto", "lines", "readlines", "buffered", "mixed"];
    for (number, way) in ways.iter().enumerate() {
        connection.must_send(head(&format!("/{way}"), &format!("Content-Length: {BYTES}")));
        connection.must_send(&body[..FIRST]);
        connection.must_send(&body[FIRST..]);
        let answer = connection.expect_answer();
        assert_eq!(answer.text(), format!("{digest} {BYTES} {BYTES}"), "{way}");
        assert_eq!(begun(&master), number + 1, "{way} was not live");
    }
    connection.must_send(head("/seek", &format!("Content-Length: {BYTES}")));
    connection.must_send(&body);
    assert_eq!(connection.expect_answer().text(), "cannot");
    assert!(!master.log().contains("ERROR"), "{}", master.log());
}

#[test]
fn chunked_bodies_go_live_for_listed_paths() {
    let site = site("live-chunked", 2);
    site.set("http.stream_bodies", "['/upload/']");
    let master = eager(&site);
    let body = body();
    let chunks =
        body.chunks(99_999).map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    let sent = [chunks.collect::<Vec<_>>().concat(), b"0\r\n\r\n".to_vec()].concat();
    let mut connection = master.connect();
    for (number, way) in ["read", "pieces", "read1", "lines", "readlines", "mixed"].iter().enumerate() {
        connection.must_send(head(&format!("/upload/{way}"), "Transfer-Encoding: chunked"));
        connection.must_send(&sent);
        assert_eq!(connection.expect_answer().text(), format!("{} None {BYTES}", adler32(&body)), "{way}");
        assert_eq!(begun(&master), number + 1, "{way} was not live");
    }
    // Elsewhere it is whole, and has a length.
    connection.must_send(head("/read", "Transfer-Encoding: chunked"));
    connection.must_send(&sent);
    assert_eq!(connection.expect_answer().text(), format!("{} {BYTES} {BYTES}", adler32(&body)));
    assert_eq!(begun(&master), ["read", "pieces", "read1", "lines", "readlines", "mixed"].len());
}

/// Each of these is a worker of its own: who has stopped once makes the others go to files.
#[test]
fn a_client_that_stops_or_leaves_is_no_fault_of_the_application() {
    for (way, status) in [("read", 408), ("lines", 408), ("caught", 400)] {
        let site = site("live-stops", 1);
        let master = eager(&site);
        let mut connection = master.connect();
        connection.must_send(head(&format!("/{way}"), &format!("Content-Length: {BYTES}")));
        connection.must_send(&body()[..FIRST]);
        let answer = connection.expect_answer();
        assert!(answer.status == status && answer.closes(), "{way}: {}", answer.status);
        if way == "caught" {
            assert_eq!(answer.text(), "caught TimeoutError");
        } else {
            master.wait_log("408 request body not received in time");
        }
        assert_eq!(master.get("/").text(), "small");
        // Nothing of it is the application's error.
        assert!(!master.log().contains("Traceback"), "{}", master.log());
    }
    let site = site("live-leaves", 1);
    let master = eager(&site);
    let mut connection = master.connect();
    connection.must_send(head("/read", &format!("Content-Length: {BYTES}")));
    connection.must_send(&body()[..FIRST]);
    drop(connection);
    master.wait_log("400 the request ends too early");
    // The answer comes, and then the end.
    let mut connection = master.connect();
    connection.must_send(head("/unread", &format!("Content-Length: {BYTES}")));
    connection.must_send(body());
    let answer = connection.expect_answer();
    assert!(answer.status == 200 && answer.closes());
    assert_eq!(begun(&master), 2);
    assert!(!master.log().contains("Traceback"), "{}", master.log());
}

/// What attackers do once their bodies are live.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Attack {
    Stop,
    /// They send a little now and then: less than the least pace, and more than any timeout between two bytes would notice.
    Trickle,
}

/// Clients that begin fast and then send no more, or next to nothing, on all threads and more, again and again. Others are
/// answered all the time, honest uploads too; where there is one thread, one of them has to wait, once.
#[test]
fn uploads_that_stop_or_trickle_hold_no_thread() {
    thread::scope(|scope| {
        for threads in [1, 4] {
            for way in [Attack::Stop, Attack::Trickle] {
                scope.spawn(move || attack(threads, way));
            }
        }
    });
}

fn attack(threads: usize, way: Attack) {
    let name = format!("{threads} threads, {way:?}");
    let site = site(&format!("live-attack-{threads}-{way:?}"), threads);
    site.set("http.body_timeout", "'60s'");
    let master = eager(&site);
    let address = master.address();
    let Address::Tcp(tcp) = address else { panic!("not TCP") };
    let (body, digest) = (body(), adler32(&body()));
    let begin = || {
        let mut stream = TcpStream::connect(tcp).expect("it accepts");
        stream.write_all(head("/read", &format!("Content-Length: {BYTES}")).as_bytes()).expect("it is open");
        stream.write_all(&body[..FIRST]).expect("it is open");
        stream
    };
    let (held, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let mut waited = Vec::new();
    thread::scope(|scope| {
        if way == Attack::Trickle {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for stream in held.lock().expect("nobody panics").iter_mut() {
                        // Some have been given up.
                        let _ = TcpStream::write(stream, &[b'x'; 1024]);
                    }
                    // Not a wait for something: 20 KiB a second.
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
        for _ in 0..8 {
            let more: Vec<TcpStream> = (0..2 * threads).map(|_| begin()).collect();
            held.lock().expect("nobody panics").extend(more);
            for number in 0..5 {
                let asked = Instant::now();
                if number == 2 {
                    let answer = Connection::to(&address).post("/honest/pieces", &body).expect("it is answered");
                    assert_eq!(answer.text(), format!("{digest} {BYTES} {BYTES}"), "{name}");
                } else {
                    assert_eq!(client::get(&address, "/").expect("it is answered").text(), "small", "{name}");
                }
                waited.push(asked.elapsed());
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let long = waited.iter().filter(|waited| **waited >= Duration::from_secs(1)).count();
    println!("{name}: {long} of {} waited, the longest {:?}", waited.len(), waited.iter().max());
    assert!(long <= usize::from(threads == 1), "{name}: {waited:?}");
    // Until one has been given up. Those that stood in line behind it are not waited for in the same way: as found, that
    // made four seconds of it.
    assert!(waited.iter().all(|waited| *waited < Duration::from_millis(3500)), "{name}: {waited:?}");
    let live = begun(&master);
    // Half of the threads, or what stood in line for the only one; from then on nobody is trusted.
    let most = if threads == 1 { 3 } else { threads / 2 };
    assert!((1..=most).contains(&live), "{name}: {live} went live");
    assert!(master.log_lines("too slowly for a thread to wait").len() <= live);
    // They hear why, and that is all that they hear.
    master.wait_log("408 request body not received in time");
    drop(held);
    assert_eq!(master.get("/").text(), "small");
    assert!(!master.log().contains("Traceback"), "{}", master.log());
}

/// A request that takes too long is answered while its body comes. What the client still sends is nobody's, and the application,
/// which goes on to read, hears that.
#[test]
fn a_live_body_of_a_request_over_its_limit_is_nobodys() {
    let site = site("live-overdue", 2);
    site.set("server.request_timeout", "'1s'").set("server.request_timeouts", "{ '/other' = '1m' }");
    site.set("server.graceful_timeout", "'30s'");
    site.set("log.access", "'access.log'").set("log.access_format", "'%(m)s %(U)s %(s)s %(B)s %(X)s'");
    let master = eager(&site);
    // Its worker lives on for as long as somebody needs it.
    let mut other = master.connect();
    other.must_send("GET /other HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for("it to run", || master.status().filter(|status| status.0["generations"][0]["workers"][0]["busy"] == 1));
    let mut late = master.connect();
    late.must_send(head("/late", &format!("Content-Length: {BYTES}")));
    late.must_send(&body()[..FIRST]);
    let answer = late.expect_answer();
    const TEXT: &str = "Gateway Timeout: the request took too long\n";
    assert_eq!((answer.status, answer.text().as_str(), answer.closes()), (504, TEXT, true));
    // Closing with this unread would be a reset, and the answer might be lost.
    late.must_send(&body()[FIRST..]);
    std::fs::write(site.path().join("late-end"), "").expect("it can be made");
    let outcome = wait_for("the end of the reading", || {
        let text = std::fs::read_to_string(site.path().join("outcome")).ok()?;
        text.strip_suffix('\n').map(str::to_owned)
    });
    assert_eq!(outcome, "False this request is over");
    assert!(late.read().is_err(), "one answer");
    std::fs::write(site.path().join("other-end"), "").expect("it can be made");
    assert_eq!(other.expect_answer().text(), "small");
    let lines = wait_for("the lines", || {
        let text = std::fs::read_to_string(site.path().join("access.log")).unwrap_or_default();
        (text.lines().count() >= 2).then_some(text)
    });
    assert_eq!(lines, format!("POST /late 504 {} request-timeout\nGET /other 200 5 complete\n", TEXT.len()));
    let counts = |status: &serde_json::Value| ["requests", "timed_out", "lost"].map(|name| status[name].as_u64());
    wait_for("the counts", || {
        master.status().filter(|status| counts(&status.0) == [Some(2), Some(1), Some(0)]).map(drop)
    });
    // A new worker serves, in which bodies go live as ever.
    let mut next = master.connect();
    next.must_send(head("/read", &format!("Content-Length: {BYTES}")));
    next.must_send(body());
    assert_eq!(next.expect_answer().text(), format!("{} {BYTES} {BYTES}", adler32(&body())));
    assert!(!master.log().contains("Traceback"), "{}", master.log());
}

/// As zlib has it.
fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}
