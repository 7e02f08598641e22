//! Requests that take too long: their clients get an answer, from the event loop and not from the application, the access
//! log has one line of them, and they are counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::client::head;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

const TEXT: &str = "Gateway Timeout: the request took too long\n";

fn site(name: &str, threads: u32) -> (Site, PathBuf) {
    let site = Site::with_releases(name, 1);
    site.set("server.workers", "1").set("server.threads", &threads.to_string());
    site.set("server.request_timeout", "'1s'").set("server.graceful_timeout", "'1s'");
    site.set("log.access", "'access.log'")
        .set("log.access_format", "'%(m)s %(U)s %(H)s %(s)s %(B)s %(X)s %(h)s %(D)s'");
    let log = site.path().join("access.log");
    (site, log)
}

fn lines(log: &PathBuf, count: usize) -> Vec<String> {
    wait_for("the lines", || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn timed_out(master: &Master) -> u64 {
    master.status().and_then(|status| status.0["timed_out"].as_u64()).expect("a number")
}

/// The line without its time, which is more than the limit.
fn without_time(line: &str) -> &str {
    let (line, micros) = line.rsplit_once(' ').expect("a time");
    assert!((1_000_000..60_000_000).contains(&micros.parse::<u64>().expect("a number")), "{line} {micros}");
    line
}

/// As found: its client got nothing, of which a balancer makes 502, and the access log said nothing at all. Python sleeps, or C
/// code holds the interpreter's lock: in both cases no Python can run that would answer.
#[test]
fn a_request_over_its_limit_gets_504() {
    for threads in [1, 4] {
        let (site, log) = site("overdue", threads);
        let master = site.start();
        for (number, (path, version, method, body)) in
            [("/sleep", "1.1", "GET", TEXT), ("/hold", "1.0", "GET", TEXT), ("/sleep", "1.1", "HEAD", "")]
                .into_iter()
                .enumerate()
        {
            let worker = master.wait_serving().remove(0);
            let asked = Instant::now();
            let mut stuck = master.connect();
            stuck.must_send(format!("{method} {path}?s=60 HTTP/{version}\r\nHost: h\r\n\r\n"));
            let answer =
                if method == "HEAD" { stuck.read_to_head().expect("it is answered") } else { stuck.expect_answer() };
            assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
            assert_eq!((answer.status, answer.text().as_str(), answer.closes()), (504, body, true), "{path}");
            let lines = lines(&log, number + 1);
            let expected = format!("{method} {path} HTTP/{version} 504 {} request-timeout 127.0.0.1", body.len());
            assert_eq!((without_time(&lines[number]), lines.len()), (expected.as_str(), number + 1));
            // Its worker is replaced, and nothing more is said of the request.
            master.wait_log(&format!("worker gen=1 slot=0 pid={} * -> gone", worker.pid));
            assert_eq!(timed_out(&master), number as u64 + 1);
        }
        master.stop();
        assert_eq!(lines(&log, 3).len(), 3);
    }
}

/// The request ends after all, and its worker lives on for as long as another one needs it.
#[test]
fn what_the_application_says_too_late_is_dropped() {
    let (site, log) = site("overdue_late", 2);
    site.set("server.graceful_timeout", "'30s'").set("server.request_timeouts", "{ '/stream' = '1m' }");
    let master = site.start();
    let mut stream = master.connect();
    stream.must_send(head("GET", "/stream?pieces=2&pause=5", &[]));
    stream.read_past(" 0\n");
    let mut late = master.connect();
    let file = site.path().join("end");
    late.must_send(head("GET", &format!("/until?file={}", file.display()), &[]));
    // A request behind it is nobody's any more.
    late.must_send(head("GET", "/", &[]));
    assert_eq!(late.expect_answer().status, 504);
    std::fs::write(&file, "").expect("it can be made");
    master.wait_log("terminating -> draining");
    assert!(late.read().is_err(), "one answer");
    stream.read_past(" 1\n");
    let lines = lines(&log, 2);
    assert_eq!(without_time(&lines[0]), format!("GET /until HTTP/1.1 504 {} request-timeout 127.0.0.1", TEXT.len()));
    assert!(lines[1].starts_with("GET /stream HTTP/1.1 200 ") && lines.len() == 2, "{lines:?}");
    assert_eq!(timed_out(&master), 1);
    // One answer, one count: 504, and the stream.
    let status = master.status().expect("it answers");
    assert_eq!(status.0["requests"].as_u64(), Some(2), "{status:?}");
}

/// Half of an answer cannot be taken back.
#[test]
fn an_answer_that_has_begun_is_cut_with_its_worker() {
    let (site, _log) = site("overdue_begun", 1);
    let master = site.start();
    let mut begun = master.connect();
    begun.must_send(head("GET", "/stream?pieces=2&pause=60", &[]));
    begun.read_past(" 0\n");
    assert!(begun.read().is_err());
    // A thread's number may have these digits, too.
    assert!(!master.log().contains(" 504"), "{}", master.log());
    assert_eq!(timed_out(&master), 0);
}

/// Their worker is not replaced, since what it runs may take so long.
#[test]
fn requests_that_wait_too_long_for_a_thread_get_503() {
    let (site, _log) = site("overdue_waiting", 1);
    site.set("server.request_timeouts", "{ '/until' = '1m' }");
    let master = site.start();
    // A connection is taken when a thread is free.
    let mut waiting = master.connect();
    waiting.get_ok("/");
    let mut running = master.connect();
    let file = site.path().join("end");
    running.must_send(head("GET", &format!("/until?file={}", file.display()), &[]));
    wait_for("it to run", || master.status().filter(|status| status.0["generations"][0]["workers"][0]["busy"] == 1));
    waiting.must_send(head("GET", "/sleep?s=60", &[]));
    let answer = waiting.expect_answer();
    assert_eq!((answer.status, answer.header("retry-after"), answer.closes()), (503, Some("5"), true));
    std::fs::write(&file, "").expect("it can be made");
    assert_eq!(running.expect_answer().status, 200);
    assert_eq!(master.get("/").status, 200);
    assert!(!master.log().contains("terminating"), "{}", master.log());
}
