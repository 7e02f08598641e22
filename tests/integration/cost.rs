//! What a request costs once a worker is warm: no allocation of ours, two system calls and a share of a third, and no
//! memory that stays. Seconds are for the benchmarks; what is counted here is the same on every machine.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::client::{head, Connection};
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn start(site: &Site) -> Master {
    site.build("1").app("cost.py").make();
    site.flip("1");
    site.set("server.workers", "1");
    site.start()
}

fn get(target: &str) -> Vec<u8> {
    head("GET", target, &[])
}

fn counts(connection: &mut Connection) -> Value {
    connection.get_ok("/counts").json()
}

/// Kinds of requests, each with what a browser or a client library sends along.
fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let fields = [
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("Accept-Language", "en-US,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Cookie", "a=b"),
        ("Cookie", "session=0123456789abcdef0123456789abcdef"),
        ("X-Forwarded-For", "203.0.113.9"),
    ];
    let get = |target| head("GET", target, &fields);
    let mut upload = head("POST", "/upload", &[("Content-Length", "5"), ("Content-Type", "text/plain")]);
    upload.extend_from_slice(b"12345");
    vec![
        ("a list", get("/hello")),
        ("a request of nobody", head("GET", "/hello?nobody", &fields[..4])),
        ("a query", get("/hello?a=b&c=%20d")),
        ("an encoded path", get("/hello/x%41")),
        ("a tuple without a length", get("/unsized")),
        ("a generator", get("/pieces")),
        ("write()", get("/written")),
        ("a small body", upload),
    ]
}

fn ask(connection: &mut Connection, request: &[u8]) {
    assert_eq!(connection.ask(request).status, 200);
}

/// On warm connections and, as a connection costs nothing but its descriptor, on new ones.
#[test]
fn a_warm_worker_allocates_nothing() {
    const REQUESTS: usize = 300;
    for access in ["none", "access.log"] {
        let site = Site::new("allocations");
        site.set("log.access", &format!("'{access}'"));
        // What keeps a copy of each request keeps it in memory that it has.
        site.set("reload.rehearse", if access == "none" { "0" } else { "100" });
        let master = start(&site);
        let mut connection = master.connect();
        let mut found = BTreeMap::new();
        for (name, request) in kinds() {
            for _ in 0..100 {
                ask(&mut connection, &request);
            }
            let before = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
            for _ in 0..REQUESTS {
                ask(&mut connection, &request);
            }
            let after = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
            found.insert(name, after - before);
        }
        let mut together: Vec<Connection> = (0..8).map(|_| master.connect()).collect();
        let mut busy = || {
            for _ in 0..REQUESTS / 8 {
                together.iter_mut().for_each(|connection| connection.must_send(get("/busy")));
                together.iter_mut().for_each(|connection| assert_eq!(connection.expect_answer().status, 200));
            }
        };
        busy();
        let before = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
        busy();
        let after = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
        found.insert("answers that wait for each other", after - before);
        // A client is closed a moment after it has its answer, and a later moment on a busy machine, so the next may need
        // another place than the last: there are as many as that can take.
        let mut places: Vec<Connection> = (0..48).map(|_| master.connect()).collect();
        places.iter_mut().for_each(|connection| ask(connection, &get("/hello")));
        drop(places);
        drop(together);
        let opened = |master: &Master| (0..REQUESTS).for_each(|_| ask(&mut master.connect(), &get("/hello")));
        opened(&master);
        let before = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
        opened(&master);
        let after = counts(&mut connection)["allocations"].as_u64().expect("a debug build counts");
        found.insert("a new connection each", after - before);
        // None of these is a request's: on a busy machine a thread that starts late (`closer`) makes its own context, and
        // the log's batch doubles a few times on its way to its bound while the thread that writes it gets no turn.
        let spare = if access == "none" { 1 } else { 8 };
        assert!(
            found.values().all(|count| *count <= spare),
            "in {REQUESTS} requests each, access = {access}: {found:?}"
        );
        master.term();
        master.wait_exit();
    }
}

/// The system calls of a worker while requests were answered: names, in the order of each thread.
fn trace_of(site: &Site, master: &Master, during: impl FnOnce()) -> BTreeMap<i32, Vec<String>> {
    let pid = master.wait_serving()[0].pid;
    let trace = site.path().join("strace.txt");
    let mut strace = Command::new(Machine::get().program("strace"))
        .args(["-f", "-s", "0", "-o"])
        .arg(&trace)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace starts");
    let tracer = strace.id().to_string();
    // All threads are attached when the last one is.
    wait_for("strace", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        tasks.flatten().all(|task| tracer_of(pid, &task.file_name().to_string_lossy()) == tracer).then_some(())
    });
    during();
    let strace_pid = nix::unistd::Pid::from_raw(strace.id() as i32);
    nix::sys::signal::kill(strace_pid, nix::sys::signal::Signal::SIGINT).expect("it is our child");
    strace.wait().expect("it ends");
    let mut calls: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for line in std::fs::read_to_string(trace).expect("strace wrote it").lines() {
        // `4711 recvfrom(5, ""..., 4096, MSG_DONTWAIT, NULL, NULL) = 60`. A call that another thread's line interrupts
        // is counted at its beginning, not where it is `<... resumed>`.
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let name = call.trim_start().split('(').next().unwrap_or_default();
        if let (Ok(thread), true) = (
            thread.parse(),
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit()),
        ) {
            calls.entry(thread).or_default().push(name.to_string());
        }
    }
    calls
}

fn count(calls: &BTreeMap<i32, Vec<String>>, name: &str) -> usize {
    calls.values().flatten().filter(|call| *call == name).count()
}

fn tracer_of(pid: i32, task: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.unwrap_or_default().trim().to_string()
}

/// One recv, one send and one wait a request where one client asks at a time, and nothing else: no lock, no wake-up.
/// A traced process is slow, so now and then the monitor thread takes over in the middle; what lies between two requests
/// that the main thread has read itself is the same in all other cases.
#[test]
fn a_request_costs_two_calls_and_a_wait() {
    const REQUESTS: usize = 500;
    let site = Site::new("calls");
    let master = start(&site);
    let mut connection = master.connect();
    let request = head("GET", "/hello", &[]);
    ask(&mut connection, &request);
    let calls = trace_of(&site, &master, || (0..REQUESTS).for_each(|_| ask(&mut connection, &request)));
    let main = &calls[&master.wait_serving()[0].pid];
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for calls in main.join(" ").split("recvfrom").skip(1) {
        *kinds.entry(calls.trim().to_string()).or_default() += 1;
    }
    println!("{REQUESTS} requests: {kinds:?}");
    let usual = kinds.get("sendto epoll_wait").copied().unwrap_or(0);
    assert!(usual > REQUESTS / 2, "after recvfrom: {kinds:?}");
    assert_eq!((count(&calls, "recvfrom"), count(&calls, "sendto")), (REQUESTS, REQUESTS), "{kinds:?}");
}

/// What came together is fetched together, and answered in one go.
#[test]
fn a_batch_costs_one_wait() {
    const ROUNDS: usize = 20;
    const CLIENTS: usize = 30;
    let site = Site::new("batch");
    let master = start(&site);
    let mut connections: Vec<Connection> = (0..CLIENTS).map(|_| master.connect()).collect();
    let request = head("GET", "/hello", &[]);
    connections.iter_mut().for_each(|connection| ask(connection, &request));
    let pid = master.wait_serving()[0].pid;
    let calls = trace_of(&site, &master, || {
        for _ in 0..ROUNDS {
            // So that all requests are there before the first one is read.
            let worker = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).expect("it runs");
            connections.iter_mut().for_each(|connection| connection.must_send(&request));
            nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGCONT).expect("it is stopped");
            for connection in &mut connections {
                assert_eq!(connection.expect_answer().status, 200);
            }
        }
    });
    let waits = count(&calls, "epoll_wait");
    println!("{ROUNDS} rounds of {CLIENTS} clients: {waits} waits");
    let answers = (count(&calls, "recvfrom"), count(&calls, "sendto"));
    assert_eq!(answers, (ROUNDS * CLIENTS, ROUNDS * CLIENTS));
    assert!(waits <= ROUNDS * CLIENTS / 4, "{waits} waits for {ROUNDS} batches");
}

/// A million requests of every kind, with values that no cache has: neither objects of Python's nor memory of ours
/// stay behind.
#[test]
fn memory_is_constant_over_a_million_requests() {
    const REQUESTS: usize = 1_000_000;
    const TOGETHER: usize = 50;
    let site = Site::alone("leaks");
    let master = start(&site);
    let mut connection = master.connect();
    let kinds = kinds();
    let mut number = 0;
    let mut send = |connection: &mut Connection, requests: usize| {
        for _ in 0..requests / TOGETHER {
            let mut together = Vec::new();
            for _ in 0..TOGETHER {
                let (_, request) = &kinds[number % kinds.len()];
                // Names and values that are new each time, in place of the last line's end.
                together.extend_from_slice(request);
                if !request.starts_with(b"POST") {
                    together.truncate(together.len() - 2);
                    together.extend_from_slice(format!("X-Name-{}: value {number}\r\n\r\n", number % 1000).as_bytes());
                }
                number += 1;
            }
            connection.must_send(&together);
            for _ in 0..TOGETHER {
                assert_eq!(connection.expect_answer().status, 200);
            }
        }
    };
    send(&mut connection, 20_000);
    let before = counts(&mut connection);
    send(&mut connection, REQUESTS);
    let after = counts(&mut connection);
    println!("before: {before}, after: {after}");
    let grown = |name: &str| after[name].as_i64().expect("a number") - before[name].as_i64().expect("a number");
    // Blocks: caches of the interpreter itself. Pages: 1 MiB, a byte a request.
    assert!(grown("blocks") < 500 && grown("resident_pages") < 256, "before: {before}, after: {after}");
}

/// The response object serves one request after the other, but not where the application keeps a part of it.
#[test]
fn what_an_application_keeps_of_a_request_is_dead() {
    let site = Site::new("kept");
    let master = start(&site);
    let mut connection = master.connect();
    for _ in 0..3 {
        for _ in 0..2 {
            assert_eq!(connection.get_ok("/keeping").text(), "kept");
        }
        assert_eq!(connection.get_ok("/hello").text(), "hello");
        let outcomes = connection.get_ok("/using-kept").json();
        assert_eq!(outcomes, serde_json::json!(vec!["this request is over"; 4]), "{outcomes}");
    }
}

/// It may write on from a thread of its own, and the worker serves on; what is cut is that answer alone.
#[test]
fn a_request_that_is_left_while_it_writes_harms_no_other() {
    let site = Site::new("left");
    site.set("server.threads", "2");
    site.set("server.response_buffer", "'100KiB'");
    let master = start(&site);
    let mut slow = master.connect();
    slow.must_send(head("GET", "/leaving", &[]));
    let began = slow.read_available(std::time::Duration::from_secs(10)).expect("the first bytes come");
    assert!(began.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&began[..50.min(began.len())]));
    let mut connection = master.connect();
    assert_eq!(connection.get("/leave").expect("an answer").status, 200);
    wait_for("the request to be left", || {
        master.log().contains("still writes after the response has ended").then_some(())
    });
    let worker = master.wait_serving()[0].pid;
    // More requests than there are threads.
    for _ in 0..5 {
        assert_eq!(connection.get_ok("/hello").text(), "hello");
    }
    drop((slow, connection));
    assert_eq!(master.wait_serving()[0].pid, worker, "the worker was replaced");
    master.term();
    assert!(master.wait_exit().success());
    let log = master.log();
    assert!(!log.contains("killed") && !log.contains("KILL"), "it did not end by itself");
}

/// CPython 3.12 never frees interned strings.
#[test]
fn invented_names_of_fields_are_not_kept() {
    for python in Machine::get().each_minor() {
        let site = Site::new("names");
        site.build("1").python(python).app("cost.py").make();
        site.flip("1");
        site.set("server.workers", "1");
        let master = site.start();
        let mut connection = master.connect();
        let mut number = 0;
        let mut invent = |connection: &mut Connection, requests: usize| {
            for _ in 0..requests {
                let fields: Vec<(String, String)> =
                    (0..20).map(|field| (format!("X-{number}-{field}-{}", "n".repeat(200)), "v".to_string())).collect();
                let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
                ask(connection, &head("GET", "/hello", &fields));
                number += 1;
            }
        };
        invent(&mut connection, 100);
        let before = counts(&mut connection)["resident_pages"].as_i64().expect("a number");
        // 12 MB of names.
        invent(&mut connection, 2500);
        let after = counts(&mut connection)["resident_pages"].as_i64().expect("a number");
        assert!(after - before < 512, "{}: {before} pages, then {after}", python.minor);
    }
}
