//! Workers and templates that die, hang or grow. Deaths are known by exact exit status and at once; a service that
//! serves is never stopped by one that cannot start.

use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::{self, head, Connection};
use crate::harness::load::Load;
use crate::harness::machine::Machine;
use crate::harness::master::{Master, Worker};
use crate::harness::process::{self, rss_anon_bytes};
use crate::harness::site::{app_source, Site};
use crate::harness::{for_each_preload, wait_for};

/// A worker that died is noticed within this time: far below every deadline of the configuration.
const AT_ONCE: Duration = Duration::from_secs(5);

fn kill_worker(worker: &Worker, signal: Signal) {
    kill(Pid::from_raw(worker.pid), signal).expect("a serving worker is there");
}

/// Waits until as many workers as configured serve without the one that died.
fn wait_replaced(master: &Master, old: &Worker) -> Vec<Worker> {
    master.wait_or_exit("a replacement", || {
        let now = master.workers();
        let replaced = now.len() == master.configured_workers() && now.iter().all(|worker| worker.pid != old.pid);
        replaced.then_some(now)
    })
}

#[test]
fn a_killed_worker_is_replaced_and_its_cause_is_logged() {
    let site = Site::with_releases("killed_worker", 1);
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    let died = Instant::now();
    kill_worker(&victim, Signal::SIGKILL);
    master.wait_log(&format!("worker gen=1 slot={} pid={} * -> gone cause=\"SIGKILL\"", victim.slot, victim.pid));
    let now = wait_replaced(&master, &victim);
    assert!(died.elapsed() < AT_ONCE, "{:?}", died.elapsed());
    assert!(now.iter().any(|worker| worker.slot == victim.slot), "the slot outlives its worker");
}

#[test]
fn exit_codes_and_crashes_of_a_worker_are_named() {
    for (path, expected) in [("/exit?code=7", "exit code 7"), ("/crash", "SIGSEGV")] {
        let site = Site::with_releases("worker_causes", 1);
        let master = site.start();
        let failed = client::get(&master.address(), path);
        assert!(failed.is_err(), "{path} was answered");
        master.wait_log(&format!("worker gen=1 slot=* pid=* * -> gone cause=\"{expected}*"));
        master.wait_serving();
        assert_eq!(master.get("/").text(), "1");
    }
}

#[test]
fn sysexit_in_a_request_ends_that_request_only_or_its_worker_never_the_service() {
    let site = Site::with_releases("sysexit", 1);
    let master = site.start();
    let _ = client::get(&master.address(), "/sysexit");
    master.wait_serving();
    for _ in 0..10 {
        assert_eq!(master.get("/").text(), "1");
    }
    assert!(master.exited().is_none());
}

/// A hook that the virtualenv's sitecustomize installs in the template: it runs `action` at a fork, once per file
/// `trigger` that the test puts into the release.
fn fork_hook(when: &str, action: &str) -> String {
    format!(
        "import os, signal\n\
         def hook():\n\
         \x20   here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))))\n\
         \x20   try:\n\
         \x20       os.unlink(os.path.join(here, 'trigger'))\n\
         \x20   except FileNotFoundError:\n\
         \x20       return\n\
         \x20   {action}\n\
         os.register_at_fork({when}=hook)\n"
    )
}

/// Kills one worker while `trigger` is set, so that its replacement dies at the chosen point, and expects that the
/// slot is filled soon all the same.
fn dies_while_starting(name: &str, file: &str, source: &str, expected_in_log: &str) {
    let site = Site::new(name);
    // No deadline may be what notices the death.
    site.set("server.boot_timeout", "'10m'");
    site.build("1").file(file, source).file("good.py", &app_source("app.py")).make();
    site.flip("1");
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    let mark = master.mark();
    site.write("releases/1/trigger", "");
    let died = Instant::now();
    kill_worker(&victim, Signal::SIGKILL);
    master.wait_log_after(mark, expected_in_log);
    wait_replaced(&master, &victim);
    assert!(died.elapsed() < AT_ONCE, "{:?}", died.elapsed());
    assert!(!site.release_path("1").join("trigger").exists(), "the hook did not run");
    assert_eq!(master.get("/").text(), "1");
    assert!(master.children().iter().all(|child| !child.is_zombie()), "{}", process::table(&master.children()));
}

#[test]
fn a_worker_that_dies_before_it_introduces_itself() {
    let hook = fork_hook("after_in_child", "os.kill(os.getpid(), signal.SIGKILL)");
    dies_while_starting(
        "dies_first",
        "site-packages/sitecustomize.py",
        &hook,
        "worker gen=1 slot=* starting -> gone cause=\"SIGKILL\"",
    );
}

#[test]
fn a_worker_that_exits_before_it_introduces_itself() {
    let hook = fork_hook("after_in_child", "os._exit(9)");
    dies_while_starting(
        "exits_first",
        "site-packages/sitecustomize.py",
        &hook,
        "worker gen=1 slot=* starting -> gone cause=\"exit code 9\"",
    );
}

#[test]
fn a_worker_that_dies_during_the_import() {
    let app = "import os, signal\nhere = os.path.dirname(os.path.abspath(__file__))\n\
               try:\n\
               \x20   os.unlink(os.path.join(here, 'trigger'))\n\
               \x20   os.kill(os.getpid(), signal.SIGKILL)\n\
               except FileNotFoundError:\n\
               \x20   pass\n\
               from good import application\n";
    dies_while_starting("dies_in_import", "app.py", app, "worker gen=1 slot=* starting -> gone cause=\"SIGKILL\"");
}

/// The thread is started by the import and kills the process as soon as anything is asked: after Ready.
#[test]
fn a_worker_that_dies_right_after_it_is_ready() {
    let app = "import os, signal, threading, time\nhere = os.path.dirname(os.path.abspath(__file__))\n\
               def end():\n\
               \x20   while True:\n\
               \x20       try:\n\
               \x20           os.unlink(os.path.join(here, 'trigger'))\n\
               \x20       except FileNotFoundError:\n\
               \x20           time.sleep(0.01)\n\
               \x20       else:\n\
               \x20           os.kill(os.getpid(), signal.SIGKILL)\n\
               threading.Thread(target=end, daemon=True).start()\n\
               from good import application\n";
    let site = Site::new("dies_when_ready");
    site.build("1").file("app.py", app).file("good.py", &app_source("app.py")).make();
    site.flip("1");
    let master = site.start();
    for _ in 0..3 {
        let mark = master.mark();
        site.write("releases/1/trigger", "");
        master.wait_log_after(mark, "worker gen=1 slot=* pid=* -> gone cause=\"SIGKILL\"");
        master.wait_log_after(mark, "worker gen=1 slot=* pid=* starting -> ready");
        master.wait_serving();
    }
}

#[test]
fn a_middle_process_that_dies_before_it_forks() {
    let hook = fork_hook("before", "os.kill(os.getpid(), signal.SIGKILL)");
    let site = Site::new("middle_dies");
    site.set("server.boot_timeout", "'10m'");
    site.build("1").file("site-packages/sitecustomize.py", &hook).make();
    site.flip("1");
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    site.write("releases/1/trigger", "");
    kill_worker(&victim, Signal::SIGKILL);
    wait_replaced(&master, &victim);
    assert_eq!(master.wait_serving().len(), 2);
}

#[test]
fn a_template_that_dies_in_the_middle_of_a_spawn() {
    // The hook runs in the template.
    let hook = fork_hook("before", "os.kill(os.getpid(), signal.SIGKILL)");
    let site = Site::new("template_dies_in_spawn");
    site.set("server.boot_timeout", "'10m'");
    site.build("1").file("site-packages/sitecustomize.py", &hook).make();
    site.flip("1");
    let master = site.start();
    let serving = master.status().and_then(|status| status.serving()).expect("it serves");
    let victim = master.wait_serving().remove(0);
    let load = Load::on(&master.address()).start();
    site.write("releases/1/trigger", "");
    // The other worker goes on; what the killed one had in hand may fail, so it is idle when it dies.
    let report = load.stop();
    report.assert_no_failures();
    let died = Instant::now();
    kill_worker(&victim, Signal::SIGKILL);
    let template = master.wait_or_exit("another template", || {
        let now = master.status()?.serving()?.template_pid;
        (now != 0 && now != serving.template_pid).then_some(now)
    });
    wait_replaced(&master, &victim);
    assert!(died.elapsed() < AT_ONCE, "{:?}", died.elapsed());
    master.wait_serving();
    let mut children: Vec<i32> = master.children().iter().map(|child| child.pid).collect();
    let mut expected: Vec<i32> = master.workers().iter().map(|worker| worker.pid).chain([template]).collect();
    children.sort();
    expected.sort();
    assert_eq!(children, expected, "exactly the workers and one template");
}

#[test]
fn a_dead_template_is_started_again_and_touches_no_worker() {
    for_each_preload(|preload| {
        let site = Site::with_releases("dead_template", 1);
        site.set("app.preload", preload);
        let master = site.start();
        let before = master.wait_serving();
        let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
        let load = Load::on(&master.address()).closing(2).keeping(2).start();
        kill(Pid::from_raw(template), Signal::SIGKILL).expect("the template is there");
        master.wait_log("template gen=1 * -> gone cause=\"SIGKILL\"");
        master.wait_or_exit("another template", || {
            let now = master.status()?.serving()?.template_pid;
            (now != 0 && now != template).then_some(())
        });
        load.wait_answers(20);
        load.stop().assert_no_failures();
        assert_eq!(master.workers(), before);
        // The new one can fork.
        kill_worker(&before[0], Signal::SIGKILL);
        wait_replaced(&master, &before[0]);
    });
}

#[test]
fn a_release_that_cannot_start_any_more_is_tried_with_backoff_and_the_rest_serves_on() {
    let site = Site::with_releases("backoff", 1);
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    site.write("releases/1/app.py", "raise RuntimeError('edited in place')\n");
    let mark = master.mark();
    kill_worker(&victim, Signal::SIGKILL);
    // 0.1 s, doubled each time: five attempts within 3.1 s and no more than six in 5 s.
    wait_for("some attempts", || (attempts(&master, mark) >= 4).then_some(()));
    let started = Instant::now();
    let before = attempts(&master, mark);
    let load = Load::on(&master.address()).closing(2).keeping(1).start();
    wait_for("three seconds of service", || (started.elapsed() > Duration::from_secs(3)).then_some(()));
    load.stop().assert_no_failures();
    let more = attempts(&master, mark) - before;
    assert!(more <= 3, "{more} attempts in three seconds: no backoff");
    // Repaired: the slot is filled again without a reload.
    site.write("releases/1/app.py", &app_source("app.py"));
    master.wait_workers(2);
}

fn attempts(master: &Master, mark: usize) -> usize {
    master.log_after(mark).lines().filter(|line| line.contains("failed to boot")).count()
}

#[test]
fn a_request_over_request_timeout_has_its_stacks_logged_and_its_worker_replaced_first() {
    let site = Site::with_releases("request_timeout", 1);
    site.set("server.request_timeout", "'1s'").set("server.graceful_timeout", "'2s'").set("server.workers", "1");
    let master = site.start();
    let address = master.address();
    let victim = master.wait_serving().remove(0);
    let mut stuck = Connection::to(&address);
    stuck.must_send(head("GET", "/sleep?s=60", &[]));
    let asked = Instant::now();
    let line = master.wait_log("GET /sleep");
    assert!(!line.contains("s=60"), "the query may hold secrets: {line}");
    // The stack names the function that hangs.
    master.wait_log("in sleep");
    let response = wait_for("an answer of the replacement", || client::get(&address, "/").ok());
    assert_ne!(response.pid(), victim.pid);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(stuck.expect_answer().status, 504);
    master.wait_log(&format!("pid={} terminating -> killed", victim.pid));
    let log = master.log();
    let ready = log
        .lines()
        .position(|line| line.contains("starting -> ready") && !line.contains(&format!("pid={} ", victim.pid)));
    let killed = log.lines().position(|line| line.contains(&format!("pid={} terminating -> killed", victim.pid)));
    assert!(ready.is_some() && killed.is_some() && ready < killed, "the replacement is not ready first:\n{log}");
}

#[test]
fn stacks_know_the_main_thread_of_an_application_without_threading() {
    let site = Site::new("no_threading");
    // The oldest Python there is: from 3.13 on the interpreter itself knows its main thread.
    site.build("1").python(Machine::get().each_minor()[0]).make();
    site.flip("1");
    let app =
        "import time\n\n\ndef application(environ, start_response):\n    if environ['PATH_INFO'] == '/hang':\n        \
               time.sleep(60)\n    start_response('204 No Content', [])\n    return []\n";
    site.write("releases/1/app.py", app);
    site.set("server.request_timeout", "'1s'").set("server.graceful_timeout", "'1s'");
    let master = site.start();
    master.wait_serving();
    let mut stuck = master.connect();
    stuck.must_send(head("GET", "/hang", &[]));
    master.wait_log("Python stacks:");
    master.wait_log("Thread MainThread");
}

#[test]
fn a_worker_that_holds_the_interpreter_lock_is_found_too() {
    let site = Site::with_releases("hold", 1);
    site.set("server.request_timeout", "'1s'").set("server.graceful_timeout", "'1s'");
    let master = site.start();
    let address = master.address();
    let mut stuck = Connection::to(&address);
    stuck.must_send(head("GET", "/hold?s=60", &[]));
    master.wait_log("GET /hold");
    // faulthandler's form: no Python ran in that process.
    master.wait_log("in hold");
    assert_eq!(stuck.expect_answer().status, 504);
    master.wait_workers(2);
    assert_eq!(client::get(&address, "/").expect("it is answered").text(), "1");
}

#[test]
fn other_requests_of_a_worker_that_is_going_may_finish() {
    let site = Site::with_releases("others_finish", 1);
    site.set("server.request_timeout", "'2s'").set("server.graceful_timeout", "'10s'");
    site.set("server.workers", "1").set("server.threads", "4");
    let master = site.start();
    let address = master.address();
    let mut stuck = Connection::to(&address);
    stuck.must_send(head("GET", "/sleep?s=60", &[]));
    // Its stream makes progress all the time, so its own limit is never reached, and it ends after 4 s.
    let mut stream = Connection::to(&address);
    let response = stream.ask(head("GET", "/stream?pieces=20&pause=0.2", &[]));
    assert_eq!(response.text().lines().count(), 20);
    assert_eq!(stuck.expect_answer().status, 504);
}

#[test]
fn a_stream_with_progress_is_not_a_stuck_request() {
    let site = Site::with_releases("progress", 1);
    site.set("server.request_timeout", "'1s'");
    let master = site.start();
    let mut stream = master.connect();
    assert_eq!(stream.ask(head("GET", "/stream?pieces=8&pause=0.5", &[])).text().lines().count(), 8);
    master.assert_quiet_log();
}

#[test]
fn request_timeouts_by_prefix() {
    let site = Site::with_releases("prefix_timeouts", 1);
    site.set("server.request_timeout", "'1s'").set("server.request_timeouts", "{ '/slow-' = 'none', '/sleep' = '1m' }");
    let master = site.start();
    let mut sleeper = master.connect();
    assert_eq!(sleeper.get_ok("/sleep?s=2.5").text(), "1");
    let mut uploader = master.connect();
    assert_eq!(uploader.post("/slow-echo?s=2.5", b"x").expect("it has no limit").text(), "x");
    master.assert_quiet_log();
}

/// Sends requests, one connection each, until every worker has another pid.
fn recycled(site: &Site, more: impl Fn(&Master)) {
    let master = site.start();
    let before = master.wait_serving();
    let load = Load::on(&master.address()).closing(3).keeping(3).posting(10_000).start();
    wait_for("other workers", || {
        more(&master);
        let now = master.workers();
        (now.len() == before.len() && now.iter().all(|worker| before.iter().all(|old| old.pid != worker.pid)))
            .then_some(())
    });
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert!(!master.log().contains("SIGKILL"), "workers are drained, not killed");
}

#[test]
fn max_requests_replaces_workers_without_a_failure() {
    let site = Site::with_releases("max_requests", 1);
    site.set("server.max_requests", "200").set("server.max_requests_jitter", "50");
    recycled(&site, |_| ());
}

#[test]
fn max_lifetime_replaces_workers_without_a_failure() {
    let site = Site::with_releases("max_lifetime", 1);
    site.set("server.max_lifetime", "'2s'");
    recycled(&site, |_| ());
}

#[test]
fn max_rss_replaces_workers_without_a_failure() {
    let site = Site::with_releases("max_rss", 1);
    site.set("server.max_rss", "'200MiB'");
    recycled(&site, |master| {
        if master.workers().iter().all(|worker| rss_anon_bytes(worker.pid) < 300 << 20) {
            client::get(&master.address(), "/grow?mib=50").expect("it is answered");
        }
    });
}

#[test]
fn every_worker_ends_once_in_the_log() {
    // Their requests end by themselves at about the moment in which they are to be killed.
    let site = Site::with_releases("ends_once", 1);
    site.set("server.graceful_timeout", "'1s'").set("server.request_timeout", "'1s'");
    let master = site.start();
    for _ in 0..3 {
        let mut stuck = master.connect();
        stuck.must_send(head("GET", "/sleep?s=2", &[]));
        let _ = stuck.read();
    }
    master.wait_serving();
    master.stop();
    let log = master.log();
    let mut ends: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" worker gen=") && line.contains("-> gone"))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("pid=")))
        .collect();
    let all = ends.len();
    ends.sort();
    ends.dedup();
    assert_eq!(all, ends.len(), "a worker ended twice:\n{log}");
}

#[test]
fn a_template_that_hangs_is_killed_and_started_again() {
    let site = Site::with_releases("template_hangs", 1);
    site.set("server.boot_timeout", "'3s'");
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
    kill(Pid::from_raw(template), Signal::SIGSTOP).expect("the template is there");
    kill_worker(&victim, Signal::SIGKILL);
    master.wait_log("template gen=1 does not fork: killed");
    wait_replaced(&master, &victim);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn an_application_that_ignores_sigchld_while_its_template_imports_it_is_served() {
    let app = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfrom good import application\n";
    let site = Site::new("ignores_sigchld");
    site.set("app.preload", "true");
    site.build("1").file("app.py", app).file("good.py", &app_source("app.py")).make();
    site.flip("1");
    let master = site.start();
    assert_eq!(master.wait_serving().len(), 2);
    assert_eq!(master.get("/").text(), "1");
    master.assert_quiet_log();
}

/// Python that finds the worker's end of its channel, as code that means no good would.
const FIND_CHANNEL: &str = "import os, signal, socket, threading, time\n\
    def channel():\n\
    \x20   found = []\n\
    \x20   for fd in map(int, os.listdir('/proc/self/fd')):\n\
    \x20       try:\n\
    \x20           copy = socket.socket(fileno=os.dup(fd))\n\
    \x20       except OSError:\n\
    \x20           continue\n\
    \x20       if copy.family == socket.AF_UNIX and copy.type == socket.SOCK_SEQPACKET:\n\
    \x20           found.append((fd, copy))\n\
    \x20   return min(found)[1]\n";

/// One of two workers writes `packet` to its channel for ever, as soon as it finds the file `trigger`.
fn floods_its_channel(name: &str, packet: &str) -> (Site, Master) {
    let app = format!(
        "{FIND_CHANNEL}\
         here = os.path.dirname(os.path.abspath(__file__))\n\
         def flood(to):\n\
         \x20   while True:\n\
         \x20       to.send(b'{packet}')\n\
         def wait():\n\
         \x20   while True:\n\
         \x20       try:\n\
         \x20           os.unlink(os.path.join(here, 'trigger'))\n\
         \x20       except FileNotFoundError:\n\
         \x20           time.sleep(0.01)\n\
         \x20       else:\n\
         \x20           to = channel()\n\
         \x20           [threading.Thread(target=flood, args=(to,), daemon=True).start() for _ in range(2)]\n\
         \x20           return\n\
         threading.Thread(target=wait, daemon=True).start()\n\
         from good import application\n"
    );
    let site = Site::new(name);
    site.build("1").file("app.py", &app).file("good.py", &app_source("app.py")).make();
    site.flip("1");
    let master = site.start();
    master.wait_serving();
    site.write("releases/1/trigger", "");
    wait_for("the flood", || (!site.release_path("1").join("trigger").exists()).then_some(()));
    (site, master)
}

#[test]
fn a_worker_that_floods_its_channel_keeps_the_master_from_nothing() {
    let (_site, master) = floods_its_channel("flood", "\"Draining\"");
    for _ in 0..20 {
        assert!(master.status().is_some_and(|status| status.ready()), "the master does not answer");
    }
    let victim = master.workers().remove(0);
    kill_worker(&victim, Signal::SIGKILL);
    wait_replaced(&master, &victim);
    master.stop();
}

#[test]
fn a_worker_that_writes_nonsense_to_its_channel_is_replaced() {
    let (_site, master) = floods_its_channel("nonsense", "nonsense");
    master.wait_log("worker gen=1 slot=* serving -> killed");
    master.wait_workers(2);
    assert_eq!(master.get("/").text(), "1");
    assert_eq!(master.log_lines("its channel:").len(), 1, "one line, not one for each packet");
}

#[test]
fn a_worker_cannot_make_the_master_kill_somebody_else() {
    // In the template, before the fork: the word of the application comes first, with the template's credentials.
    let hook = format!(
        "{FIND_CHANNEL}\
         def path():\n\
         \x20   here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))))\n\
         \x20   return os.path.join(here, 'trigger')\n\
         def lie():\n\
         \x20   if os.path.exists(path()):\n\
         \x20       channel().send(b'{{\"Hello\":{{\"pid\":%s}}}}' % open(path(), 'rb').read())\n\
         def hang():\n\
         \x20   try:\n\
         \x20       os.unlink(path())\n\
         \x20   except FileNotFoundError:\n\
         \x20       return\n\
         \x20   time.sleep(20)\n\
         \x20   os._exit(0)\n\
         os.register_at_fork(before=lie, after_in_child=hang)\n"
    );
    let site = Site::new("somebody_else");
    site.set("server.boot_timeout", "'3s'");
    site.build("1").file("site-packages/sitecustomize.py", &hook).make();
    site.flip("1");
    let master = site.start();
    let victim = master.wait_serving().remove(0);
    let mut innocent = std::process::Command::new("sleep").arg("60").spawn().expect("sleep(1) is everywhere");
    site.write("releases/1/trigger", &innocent.id().to_string());
    kill_worker(&victim, Signal::SIGKILL);
    master.wait_log("is somebody else's, or another one was known before: not believed");
    wait_replaced(&master, &victim);
    let lives = innocent.try_wait().expect("it is our child").is_none();
    innocent.kill().expect("it is our child");
    innocent.wait().expect("it is our child");
    assert!(lives, "the master has killed a process that is not its own");
}
