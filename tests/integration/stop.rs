//! The end. TERM finishes what runs, a second TERM does not wait, and a master that was killed leaves nothing.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{self, head, Address, Connection, Failure};
use crate::harness::load::Load;
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for, wait_within};

fn assert_can_be_bound(address: &Address) {
    let Address::Tcp(address) = address else { panic!("a TCP address is expected") };
    // std sets SO_REUSEADDR, as every server does; a listener that still is held anywhere makes this fail.
    let bound = wait_within(Duration::from_secs(2), || TcpListener::bind(address).ok());
    assert!(bound.is_some(), "{address} is still taken");
}

/// A request that is in the application, and says so by being busy for some seconds.
fn running_request(master: &Master, seconds: f64) -> Connection {
    let mut connection = master.connect();
    connection.must_send(head("GET", &format!("/sleep?s={seconds}"), &[]));
    // The other worker answers a later connection, so this one was accepted (a listener's queue is in order).
    master.get("/");
    connection
}

#[test]
fn term_finishes_what_runs_and_exits_0() {
    let site = Site::with_releases("term", 1);
    let master = site.start();
    let address = master.address();
    let mut running = running_request(&master, 2.0);
    master.term();
    let response = running.expect_answer();
    assert_eq!(response.text(), "1");
    assert!(response.closes(), "every answer says Connection: close");
    assert_eq!(master.wait_exit().code(), Some(0));
    master.assert_nothing_left();
    assert_can_be_bound(&address);
    assert_eq!(client::get(&address, "/").err(), Some(Failure::Refused));
    master.assert_quiet_log();
}

#[test]
fn term_with_nothing_to_do_is_quick() {
    let site = Site::with_releases("term_idle", 1);
    let master = site.start();
    let asked = Instant::now();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn term_under_load_cuts_no_answer() {
    let site = Site::with_releases("term_load", 1);
    let master = site.start();
    let load = Load::on(&master.address()).closing(4).keeping(4).posting(50_000).start();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    let report = load.stop();
    // Clients that come later find nobody, and an idle connection may be closed while its next request is under way.
    // An answer that was begun must be whole.
    let cut: Vec<_> =
        report.failures.iter().filter(|failed| failed.what.contains("cut") || failed.what.contains("wrong")).collect();
    assert!(cut.is_empty(), "{cut:?}");
}

#[test]
fn term_answers_half_sent_requests() {
    let site = Site::with_releases("term_half", 1);
    let master = site.start();
    let mut half = master.connect();
    half.must_send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhello");
    master.get("/");
    let mark = master.mark();
    master.term();
    master.wait_log_after(mark, "stopping");
    assert_eq!(half.ask("world").text(), "helloworld");
    assert_eq!(master.wait_exit().code(), Some(0));
}

#[test]
fn term_closes_idle_connections_after_two_seconds() {
    let site = Site::with_releases("term_keepalive", 1);
    let master = site.start();
    let mut idle = master.connect();
    idle.get_ok("/");
    let asked = Instant::now();
    master.term();
    assert!(idle.closed_within(Duration::from_secs(10)), "the idle connection stays open");
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
}

#[test]
fn an_idle_connection_may_still_ask_once_after_term() {
    let site = Site::with_releases("term_idle_asks", 1);
    let master = site.start();
    let mut idle = master.connect();
    idle.get_ok("/");
    let mark = master.mark();
    let workers = master.workers();
    master.term();
    // Both have confirmed that they stop, the one that holds the connection among them.
    for worker in workers {
        let line = format!("worker gen=1 slot={} pid={} closing -> draining", worker.slot, worker.pid);
        master.wait_log_after(mark, &line);
    }
    let response = idle.get_ok("/");
    assert_eq!((response.status, response.closes()), (200, true));
}

#[test]
fn a_request_longer_than_graceful_timeout_is_killed_and_named() {
    let site = Site::with_releases("graceful_timeout", 1);
    site.set("server.graceful_timeout", "'1s'");
    let master = site.start();
    let mut running = running_request(&master, 30.0);
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(running.read().is_err());
    master.wait_log("/sleep");
    master.assert_nothing_left();
}

#[test]
fn a_second_term_exits_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let site = Site::with_releases("second_term", 1);
        let master = site.start();
        let address = master.address();
        let _running = running_request(&master, 20.0);
        let mark = master.mark();
        master.term();
        master.wait_log_after(mark, "stopping");
        let asked = Instant::now();
        master.signal(signal);
        master.wait_exit();
        assert!(asked.elapsed() < Duration::from_secs(2), "{signal} took {:?}", asked.elapsed());
        master.assert_nothing_left();
        assert_can_be_bound(&address);
    }
}

#[test]
fn int_stops_at_once() {
    let site = Site::with_releases("int", 1);
    let master = site.start();
    let _running = running_request(&master, 20.0);
    let asked = Instant::now();
    master.signal(Signal::SIGINT);
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    master.assert_nothing_left();
}

#[test]
fn a_killed_master_leaves_nothing() {
    for_each_preload(|preload| {
        let site = Site::with_releases("kill_9", 1);
        site.set("app.preload", preload);
        let master = site.start();
        let address = master.address();
        let _busy = running_request(&master, 30.0);
        master.signal(Signal::SIGKILL);
        master.wait_exit();
        master.assert_nothing_left();
        assert_can_be_bound(&address);
    });
}

/// C code that keeps the interpreter lock: no Python can run that would notice the end.
#[test]
fn a_killed_master_leaves_no_worker_that_holds_the_interpreter_lock() {
    let site = Site::with_releases("kill_9_hold", 1);
    let master = site.start();
    let mut busy = master.connect();
    busy.must_send(head("GET", "/hold?s=30", &[]));
    master.get("/");
    master.signal(Signal::SIGKILL);
    master.wait_exit();
    master.assert_nothing_left();
}

#[test]
fn a_master_killed_while_a_release_imports_leaves_nothing() {
    let site = Site::new("kill_9_proving");
    site.release("1");
    site.build("2").import_s(60.0).make();
    site.flip("1");
    let master = site.start();
    site.flip("2");
    master.hup();
    master.wait_log("worker gen=2 slot=* pid=*");
    master.signal(Signal::SIGKILL);
    master.wait_exit();
    master.assert_nothing_left();
}

#[test]
fn term_while_a_release_proves_itself_stops_at_once() {
    for_each_preload(|preload| {
        let site = Site::new("term_proving");
        site.release("1");
        site.build("2").import_s(60.0).make();
        site.flip("1");
        site.set("app.preload", preload);
        let master = site.start();
        site.flip("2");
        master.hup();
        master.wait_log("generation gen=2*proving");
        let asked = Instant::now();
        master.term();
        assert_eq!(master.wait_exit().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        master.assert_nothing_left();
    });
}

#[test]
fn term_during_the_first_start_stops_at_once() {
    let site = Site::new("term_first_start");
    site.build("1").import_s(60.0).make();
    site.flip("1");
    let master = site.spawn();
    master.wait_log("generation gen=1*proving");
    let asked = Instant::now();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    master.assert_nothing_left();
}

#[test]
fn shutdown_delay_goes_on_accepting() {
    let site = Site::with_releases("shutdown_delay", 1);
    site.set("server.shutdown_delay", "'2s'");
    let master = site.start();
    let address = master.address();
    assert!(master.status().is_some_and(|status| status.ready()));
    let asked = Instant::now();
    master.term();
    wait_for("readiness to go off", || (!master.status()?.ready()).then_some(()));
    let mut answered = 0;
    while asked.elapsed() < Duration::from_millis(1500) {
        client::get(&address, "/").expect("the balancer still sends requests");
        answered += 1;
    }
    assert!(answered > 0);
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn the_stop_command_waits_for_the_end() {
    let site = Site::with_releases("stop_command", 1);
    let master = site.start();
    let output = master.cli(&["stop"]);
    assert!(output.ok(), "{output}");
    assert_eq!(master.wait_exit().code(), Some(0));
    master.assert_nothing_left();
    assert!(!site.path().join("control.sock").exists(), "the control socket is left");
    let output = master.cli(&["status"]);
    assert!(!output.ok(), "nobody is there to answer: {output}");
}

#[test]
fn atexit_runs_and_threads_are_joined_when_a_worker_drains() {
    let site = Site::new("atexit");
    let app = "import atexit, threading, time\nfrom good import application\n\
               atexit.register(print, 'atexit ran', flush=True)\n\
               threading.Thread(target=lambda: (time.sleep(0.3), print('thread ended', flush=True))).start()\n";
    site.build("1").file("good.py", &crate::harness::site::app_source("app.py")).file("app.py", app).make();
    site.flip("1");
    site.set("server.workers", "1");
    let master = site.start();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    wait_for("the application's last words", || {
        let said = master.stdout();
        (said.contains("atexit ran") && said.contains("thread ended")).then_some(())
    });
}

/// Old workers that end at once must not take the processors from those that still finish and from the new ones.
#[test]
fn a_worker_that_ends_steps_back_and_its_threads_do_not() {
    let site = Site::new("step_back");
    let app = "import os, threading, time\nfrom good import application\n\
               def priority(thread):\n\
               \x20   return os.getpriority(os.PRIO_PROCESS, thread)\n\
               def watch(main, usual):\n\
               \x20   while priority(main) == usual:\n\
               \x20       time.sleep(0.01)\n\
               \x20   print('main', priority(main) - usual, 'thread', priority(0) - usual, flush=True)\n\
               threading.Thread(target=watch, args=(threading.get_native_id(), priority(0))).start()\n";
    site.build("1").file("good.py", &crate::harness::site::app_source("app.py")).file("app.py", app).make();
    site.flip("1");
    site.set("server.workers", "1");
    let master = site.start();
    master.wait_serving();
    assert_eq!(master.stdout(), "");
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert_eq!(master.stdout(), "main 10 thread 0\n");
}

/// A process that a debugger holds cannot be reaped, as one in the kernel's own hands cannot. The stop ends without it
/// and says what it is.
#[test]
fn a_worker_that_does_not_die_is_named_as_such() {
    let site = Site::with_releases("undying", 1);
    site.set("server.workers", "1").set("server.graceful_timeout", "'1s'");
    let master = site.start();
    let worker = master.wait_serving()[0].pid;
    let strace = Machine::get().program("strace");
    let mut command = Command::new(strace);
    command.args(["-f", "-o", "/dev/null", "-p", &worker.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut tracer = command.spawn().expect("strace starts");
    wait_for("strace", || process::status_field(worker, "TracerPid:").filter(|pid| pid != "0"));
    let tracer_pid = nix::unistd::Pid::from_raw(tracer.id() as i32);
    nix::sys::signal::kill(tracer_pid, Signal::SIGSTOP).expect("it is our child");
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    master.wait_log(&format!("ERROR pid={worker} is still there after SIGKILL: "));
    assert!(master.log_lines("was started by the application").is_empty(), "{}", master.log());
    tracer.kill().expect("it is our child");
    tracer.wait().expect("it ends");
    master.assert_nothing_left();
}
