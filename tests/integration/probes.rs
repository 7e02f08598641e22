//! `[status] bind`: what kubelet and Prometheus ask, and what strangers at that door can do to others.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{self, Address, Connection};
use crate::harness::load::Load;
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process::{fd_count, Process};
use crate::harness::site::Site;
use crate::harness::wait_for;

fn site(name: &str, releases: usize) -> Site {
    let site = Site::with_releases(name, releases);
    site.set("status.bind", "['127.0.0.1:0']");
    site
}

/// Where the master's own address is.
fn door(master: &Master) -> Address {
    let line = master.wait_log("status at *: /livez, /readyz, /metrics");
    let address = line.split("status at ").nth(1).and_then(|rest| rest.split(": /livez").next());
    Address::Tcp(address.and_then(|text| text.parse::<SocketAddr>().ok()).expect("it is bound to an address"))
}

fn page(door: &Address, target: &str) -> (u16, String) {
    let answer = client::get(door, target).unwrap_or_else(|error| panic!("{target}: {error}"));
    assert!(answer.closes(), "one request a connection");
    (answer.status, answer.text())
}

#[test]
fn probes_follow_the_service_from_its_start_to_its_end() {
    let site = Site::new("probes");
    site.build("1").import_s(1.0).make();
    site.flip("1");
    site.set("status.bind", "['127.0.0.1:0', 'unix:status.sock']");
    site.set("server.shutdown_delay", "'3s'");
    let master = site.spawn();
    let door = door(&master);
    // Alive from the first moment, ready with the first worker.
    assert_eq!(page(&door, "/livez"), (200, "ok\n".to_string()));
    assert_eq!(page(&door, "/readyz"), (503, "starting\n".to_string()));
    wait_for("readiness", || (page(&door, "/readyz").0 == 200).then_some(()));
    client::get(&master.address(), "/").expect("it is ready");
    master.wait_serving();
    assert_eq!(page(&door, "/readyz"), (200, "generation 1: 2 of 2 workers serve\n".to_string()));
    assert_eq!(page(&Address::Unix(site.path().join("status.sock")), "/livez").0, 200);
    assert_eq!(page(&door, "/other").0, 404);
    // Why a release was refused may be the last line of a traceback, and anybody may ask here.
    std::fs::write(site.release_path("1").join("app.py"), "raise RuntimeError('secret')\n").expect("a release");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    let refused = "generation 1: 2 of 2 workers serve; the last reload was refused: the log says why\n";
    assert_eq!(page(&door, "/readyz"), (200, refused.to_string()));
    // Load balancers learn of the end while requests are still answered.
    master.term();
    wait_for("readiness to go off", || (page(&door, "/readyz").0 == 503).then_some(()));
    assert_eq!(page(&door, "/livez").0, 200);
    client::get(&master.address(), "/").expect("it still serves");
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(!site.path().join("status.sock").exists(), "the socket file is left");
}

/// A page of metrics as Prometheus' own parser reads it: name and labels, and the value.
fn parsed(page: &str) -> BTreeMap<String, f64> {
    let program = "import sys\nfrom prometheus_client.parser import text_string_to_metric_families as read\n\
                   for family in read(sys.stdin.read()):\n\
                   \x20   assert family.documentation and family.type in ('counter', 'gauge', 'histogram'), family\n\
                   \x20   for s in family.samples:\n\
                   \x20       labels = ','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))\n\
                   \x20       print(f'{s.name}{{{labels}}}\\t{s.value}')\n";
    let python = Machine::get().venv("prometheus").join("bin/python");
    let mut child = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the virtualenv has a Python");
    child.stdin.take().expect("it is piped").write_all(page.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let sample = |line: &str| {
        let (name, value) = line.split_once('\t').expect("a tab");
        (name.to_string(), value.parse().expect("a number"))
    };
    let samples: Vec<(String, f64)> = text.lines().map(sample).collect();
    let found: BTreeMap<String, f64> = samples.iter().cloned().collect();
    assert_eq!(found.len(), samples.len(), "a sample stands twice:\n{page}");
    found
}

fn metrics(door: &Address) -> BTreeMap<String, f64> {
    let (status, text) = page(door, "/metrics");
    assert_eq!(status, 200);
    parsed(&text)
}

#[test]
fn metrics_are_read_by_prometheus_and_count_what_happened() {
    let site = site("metrics", 2);
    let master = site.start();
    let (door, address) = (door(&master), master.address());
    master.wait_serving();
    for _ in 0..5 {
        assert_eq!(client::get(&address, "/").expect("it serves").status, 200);
    }
    assert_eq!(client::get(&address, "/no-such-path").expect("it serves").status, 404);
    assert_eq!(client::get(&address, "/fail").expect("it serves").status, 500);
    assert_eq!(client::get(&address, "/sleep?s=0.3").expect("it serves").status, 200);
    // A request is counted when its thread is done with it, which may be after its client has the answer.
    let found = wait_for("all to be counted", || {
        let found = metrics(&door);
        (found["forkmaster_requests_total{status=2xx}"] == 6.0).then_some(found)
    });
    let value = |name: &str| found.get(name).copied().unwrap_or_else(|| panic!("no {name} in {found:#?}"));
    assert_eq!(
        (value("forkmaster_requests_total{status=4xx}"), value("forkmaster_requests_total{status=5xx}")),
        (1.0, 1.0)
    );
    assert_eq!(value("forkmaster_generation_requests_total{generation=1,status=2xx}"), 6.0);
    assert_eq!(value("forkmaster_application_errors_total{}"), 1.0);
    assert_eq!(value("http_server_request_duration_seconds_count{}"), 8.0);
    assert_eq!(value("forkmaster_request_queue_seconds_count{}"), 8.0);
    let busy = value("forkmaster_thread_busy_seconds_total{}");
    assert!((0.3..10.0).contains(&busy), "{busy}");
    // The bucket of the one that slept: four an octave.
    let above = value("http_server_request_duration_seconds_bucket{le=0.262144}");
    assert!(above < 8.0, "{above}");
    assert_eq!(value("forkmaster_workers{generation=1,state=serving}"), 2.0);
    assert_eq!((value("forkmaster_workers_desired{}"), value("forkmaster_threads_max{}")), (2.0, 2.0));
    assert_eq!((value("forkmaster_ready{}"), value("forkmaster_generation{}")), (1.0, 1.0));
    assert!(value("forkmaster_worker_resident_memory_bytes{generation=1,worker=0}") > 1e6);
    assert_eq!(value(&format!("forkmaster_listen_queue{{listener={address}}}")), 0.0);
    assert!(value(&format!("forkmaster_listen_queue_limit{{listener={address}}}")) >= 128.0);
    assert_eq!(value("forkmaster_reloads_total{result=committed}"), 0.0, "the start is no reload");

    // A reload, one that is refused, a worker that is killed.
    site.flip("2");
    master.reload();
    site.build("3").file("app.py", "import nothing_of_that_name\n").make();
    site.flip("3");
    assert!(!master.cli(&["reload"]).ok());
    Process::of(master.workers()[0].pid).expect("it serves").signal(Signal::SIGKILL);
    let found = wait_for("the death to be counted", || {
        let found = metrics(&door);
        (found["forkmaster_worker_restarts_total{reason=signal}"] == 1.0).then_some(found)
    });
    assert_eq!(found["forkmaster_reloads_total{result=committed}"], 1.0);
    assert_eq!(found["forkmaster_reloads_total{result=refused}"], 1.0);
    assert_eq!(found["forkmaster_last_reload_success{}"], 0.0);
}

#[test]
fn counters_never_go_back_while_workers_come_and_go_under_load() {
    let site = site("counters", 2);
    let master = site.start();
    let door = door(&master);
    let load = Load::on(&master.address()).closing(2).keeping(2).start();
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    let mut look = || {
        let found = metrics(&door);
        for (name, before) in &last {
            let counts = ["_total", "_bucket", "_count", "_sum"].iter().any(|part| name.contains(part));
            // A generation without processes has no samples of its own any more.
            if counts && !name.contains("generation=") {
                let now = found.get(name).copied().unwrap_or_else(|| panic!("{name} is gone"));
                assert!(now >= *before, "{name} went from {before} to {now}");
            }
        }
        last = found;
    };
    for round in 0..4 {
        load.wait_answers(50);
        look();
        match round % 2 {
            0 => drop(master.reload()),
            _ => Process::of(master.workers()[0].pid).expect("it serves").signal(Signal::SIGTERM),
        }
        look();
    }
    let report = load.stop();
    let answered = report.answers.len() as f64;
    wait_for("all answers to be counted", || {
        (metrics(&door)["forkmaster_requests_total{status=2xx}"] >= answered).then_some(())
    });
}

/// Everything at once: 200 connections that say nothing, slow ones, garbage, ten megabytes, and people who leave.
#[test]
fn strangers_at_the_door_disturb_nobody() {
    let site = site("strangers", 2);
    let master = site.start();
    let door = door(&master);
    let Address::Tcp(address) = door else { unreachable!("it is TCP") };
    master.wait_serving();
    let before = fd_count(master.pid());
    let load = Load::on(&master.address()).keeping(2).start();
    let silent: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(address).expect("it is taken or refused")).collect();
    let mut slow = TcpStream::connect(address).expect("it is taken");
    let flood = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).expect("it is taken");
        let garbage = vec![b'x'; 1 << 20];
        // It is cut off at some point.
        (0..10).take_while(|_| stream.write_all(&garbage).is_ok()).count()
    });
    for _ in 0..50 {
        let _ = slow.write_all(b"G");
        let mut garbage = TcpStream::connect(address).expect("it is taken");
        garbage.write_all(b"\0\xff\x16\x03\x01 \r\n\r\n").expect("it is sent");
        drop(TcpStream::connect(address).expect("it is taken"));
        let asked = Instant::now();
        assert_eq!(page(&door, "/livez").0, 200);
        assert_eq!(page(&door, "/metrics").0, 200);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
    assert!(flood.join().expect("it ends") < 10, "ten megabytes were read");
    assert!(master.status().is_some_and(|status| status.ready()));
    // Bounded, whoever is there.
    assert!(fd_count(master.pid()) <= before + 80, "{} descriptors", fd_count(master.pid()));
    load.stop().assert_no_failures();
    let mut first = &silent[0];
    first.set_read_timeout(Some(Duration::from_secs(15))).expect("it is a socket");
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)), "who says nothing is closed");
    drop(silent);
    master.reload();
    let mut connection = Connection::to(&door);
    assert_eq!(connection.get("/readyz").expect("it answers").status, 200);
}

#[test]
fn an_address_that_is_taken_ends_the_start_with_the_code_for_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = taken.local_addr().expect("it is bound");
    let site = Site::with_releases("status_taken", 1);
    site.set("status.bind", &format!("['{address}']"));
    let master = site.spawn();
    assert_eq!(master.wait_exit().code(), Some(75));
    assert!(!master.log_lines(&format!("[status] bind: cannot listen on {address}: ")).is_empty(), "{}", master.log());
}
