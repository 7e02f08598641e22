//! A sign of life means "can answer": requests count from their dispatch, and a worker in which nobody gets the
//! interpreter's lock is replaced, with its stacks in the log.

use std::time::{Duration, Instant};

use crate::harness::client::{self, Connection};
use crate::harness::master::Master;
use crate::harness::site::Site;

/// `/hold` starts a thread of C code that takes the interpreter's lock and never gives it back; `/busy` is C code that
/// keeps it for some seconds within a request, as a long computation does.
const HOLD: &str = "import ctypes, os, threading, time\n\
    libc = ctypes.PyDLL(None)\n\
    def application(environ, start_response):\n\
    \x20   path = environ['PATH_INFO']\n\
    \x20   if path == '/hold':\n\
    \x20       threading.Timer(.2, lambda: libc.sleep(1000)).start()\n\
    \x20   if path == '/busy':\n\
    \x20       libc.sleep(6)\n\
    \x20   body = str(os.getpid()).encode()\n\
    \x20   start_response('200 OK', [('Content-Length', str(len(body)))])\n\
    \x20   return [body]\n";

fn hold(name: &str, workers: u32, threads: u32) -> (Site, Master, i32) {
    let site = Site::with_source(name, HOLD);
    site.set("server.workers", &workers.to_string()).set("server.threads", &threads.to_string());
    site.set("server.request_timeout", "'2s'");
    let master = site.start();
    let held = master.get("/hold").text().parse().expect("a pid");
    (site, master, held)
}

#[test]
fn a_worker_whose_interpreter_is_held_between_requests_is_replaced_after_the_limit_of_a_request() {
    for (workers, threads) in [(1, 1), (1, 4), (2, 1), (2, 4)] {
        let (_site, master, held) = hold(&format!("hold_{workers}_{threads}"), workers, threads);
        let began = Instant::now();
        // Requests come in all the time; those that the held worker takes wait for their end.
        let address = master.address();
        while master.log_lines(&format!("pid={held} * -> gone")).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(30), "not replaced");
            if let Ok(mut connection) = Connection::open(&address) {
                let _ = connection.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                let _ = connection.closed_within(Duration::from_millis(100));
            }
        }
        master.wait_log(&format!(
            "worker gen=1 slot=* pid={held} request \"GET /\" exceeds request_timeout (2.0s): *s waiting for the \
             interpreter's lock; replacing the worker"
        ));
        master.wait_log(&format!("pid={held} Python stacks, from faulthandler:"));
        master.wait_workers(workers as usize);
        assert_ne!(master.get("/").text(), held.to_string());
    }
}

#[test]
fn a_worker_whose_interpreter_is_held_is_replaced_although_nobody_asks() {
    let (_site, master, held) = hold("hold_idle", 1, 4);
    let gone = || (!master.log_lines(&format!("pid={held} * -> gone")).is_empty()).then_some(());
    let found = crate::harness::wait_within(Duration::from_secs(60), gone);
    assert!(found.is_some(), "not replaced");
    master.wait_log(&format!("pid={held} has given no sign of life for 30s: replacing it"));
    master.wait_log(&format!("pid={held} Python stacks, from faulthandler:"));
    assert_ne!(master.get("/").text(), held.to_string());
}

#[test]
fn c_code_within_a_request_may_keep_the_lock_for_as_long_as_the_request_may_take() {
    let site = Site::with_source("hold_within", HOLD);
    site.set("server.workers", "1").set("server.threads", "4").set("server.request_timeout", "'20s'");
    let master = site.start();
    let pid = master.get("/").text();
    assert_eq!(client::get(&master.address(), "/busy").expect("it is answered").text(), pid);
    assert_eq!(master.get("/").text(), pid);
    assert_eq!(master.log_lines("replacing").len(), 0);
}

#[test]
fn what_the_application_starts_hears_its_signals() {
    let site = Site::with_source(
        "subprocess_signals",
        "import subprocess\n\
         def application(environ, start_response):\n\
         \x20   body = subprocess.check_output(['grep', 'SigIgn', '/proc/self/status'])\n\
         \x20   start_response('200 OK', [('Content-Length', str(len(body)))])\n\
         \x20   return [body]\n",
    );
    let master = site.start();
    let text = master.get("/").text();
    let ignored = text.split_whitespace().nth(1).and_then(|mask| u64::from_str_radix(mask, 16).ok()).expect("a mask");
    // HUP, USR1, USR2, WINCH: bit n-1 is signal n.
    assert_eq!(ignored & (1 << 0 | 1 << 9 | 1 << 11 | 1 << 27), 0, "{text}");
}

#[test]
fn a_reason_of_control_characters_and_a_configuration_of_thousands_of_networks_arrive() {
    let site = Site::with_source("odd_reason", "raise ValueError('\\x01' * 30000)");
    let refused = site.spawn();
    assert_eq!(refused.wait_exit().code(), Some(69));
    refused.wait_log("generation gen=1 refused: ValueError: ???");

    let site = Site::with_releases("many_networks", 1);
    let networks: Vec<String> = (0..6000).map(|n| format!("'10.{}.{}.0/24'", n / 250, n % 250)).collect();
    site.set("http.forwarded_allow_ips", &format!("[{}]", networks.join(", ")));
    let master = site.start();
    assert_eq!(master.get("/").status, 200);
}
