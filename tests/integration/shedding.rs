//! `[server] queue_timeout`: who has waited too long for a thread gets 503 without Python, so that an overload ends with its
//! cause, and not when the line is worked off.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{self, head, Address, Connection};
use crate::harness::master::Master;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::wait_for;

const LIMIT: Duration = Duration::from_millis(400);

/// Of 50 ms each: six seconds of work for one thread.
const CROWD: usize = 120;

/// Counts what it runs. `/hold` lasts until the file `end` is there.
const COUNTS: &str = r#"
import os
import time

END = os.path.join(os.getcwd(), "..", "..", "end")
ran = 0


def application(environ, start_response):
    global ran
    path = environ["PATH_INFO"]
    if path == "/work":
        ran += 1
        time.sleep(0.05)
    while path == "/hold" and not os.path.exists(END):
        time.sleep(0.005)
    body = b"%d" % ran
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"#;

fn site(name: &str) -> Site {
    let site = Site::with_source(name, COUNTS);
    site.set("server.workers", "1").set("server.queue_timeout", &format!("'{}ms'", LIMIT.as_millis()));
    site
}

/// The only thread is with this request until the file is there.
fn hold(master: &Master) -> Connection {
    let mut holding = master.connect();
    holding.must_send(head("GET", "/hold", &[]));
    wait_for("it to run", || master.status().filter(|status| status.0["generations"][0]["workers"][0]["busy"] == 1));
    holding
}

fn end(site: &Path) {
    std::fs::write(site.join("end"), "").expect("it can be made");
}

fn crowd(master: &Master) -> Vec<Connection> {
    let address = master.address();
    let mut crowd: Vec<Connection> = (0..CROWD).map(|_| Connection::to(&address)).collect();
    for connection in &mut crowd {
        connection.must_send(head("GET", "/work", &[]));
    }
    crowd
}

fn expect_shed(crowd: &mut [Connection]) {
    for connection in crowd {
        let answer = connection.expect_answer();
        assert_eq!((answer.status, answer.header("Retry-After"), answer.closes()), (503, Some("5"), true));
        assert_eq!(answer.text(), "Service Unavailable: all workers are busy\n");
    }
}

fn shed(master: &Master) -> u64 {
    master.status().and_then(|status| status.0["shed"].as_u64()).expect("a number")
}

/// They are answered while the thread is still stuck, and the application never hears of them.
#[test]
fn who_comes_during_a_stall_is_refused_in_time_and_the_next_is_served_at_once() {
    let site = site("shed");
    site.set("status.bind", "['unix:status.sock']");
    let master = site.start();
    let mut holding = hold(&master);
    let mut crowd = crowd(&master);
    expect_shed(&mut crowd);
    assert_eq!(shed(&master), CROWD as u64);
    // Who has not waited for so long is served, after whoever runs.
    let mut last = master.connect();
    last.must_send(head("GET", "/", &[]));
    end(site.path());
    assert_eq!(holding.expect_answer().text(), "0");
    assert_eq!(last.expect_answer().text(), "0");
    let metrics = client::get(&Address::Unix(site.path().join("status.sock")), "/metrics").expect("a page").text();
    assert!(metrics.contains(&format!("\nforkmaster_requests_shed_total {CROWD}\n")), "{metrics}");
    master.wait_log("refused 127.0.0.1:*: 503 all workers are busy (queue_timeout)");
}

/// Nobody could look at them while they came: their time in the kernel's queue counts.
#[test]
fn a_frozen_worker_does_not_work_off_what_came_meanwhile() {
    let site = site("shed_frozen");
    let master = site.start();
    let pid = master.wait_serving()[0].pid;
    let worker = Process::of(pid).expect("it serves");
    worker.signal(Signal::SIGSTOP);
    // The signal is sent, and each thread stops when it next comes to it: one that still runs would answer the first of them.
    wait_for("all its threads to stop", || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let states = threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
        states.into_iter().all(|status| status.contains("\nState:\tT")).then_some(())
    });
    let mut crowd = crowd(&master);
    // An upload has waited just as long, and as found it had to come to its end before it heard that.
    crowd.push(master.connect());
    let upload = head("POST", "/work", &[("Content-Length", "50000000")]);
    crowd[CROWD].must_send([upload, vec![b'x'; 100_000]].concat());
    let sent = Instant::now();
    wait_for("them to be late", || (sent.elapsed() > LIMIT).then_some(()));
    worker.signal(Signal::SIGCONT);
    expect_shed(&mut crowd);
    assert_eq!((master.get("/").text(), shed(&master)), ("0".to_string(), CROWD as u64 + 1));
}

/// A pause holds requests back on purpose, and whoever begins to serve takes what has waited for that.
#[test]
fn time_in_which_nobody_serves_does_not_count() {
    let site = site("shed_paused");
    let master = site.start();
    for (hold, go_on) in [(&["pause"][..], &["resume"][..]), (&["scale", "0"], &["scale", "1"])] {
        assert!(master.cli(hold).ok());
        let mut waiting = master.connect();
        waiting.must_send(head("GET", "/", &[]));
        let sent = Instant::now();
        wait_for("it to be late", || (sent.elapsed() > LIMIT).then_some(()));
        assert!(master.cli(go_on).ok());
        assert_eq!(waiting.expect_answer().status, 200, "after {hold:?}");
    }
    assert_eq!(shed(&master), 0);
}
