//! Whoever reads the log after a death knows what died of what: the request that was running, the directory that was
//! missing, the memory that was short.

use std::fs;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::cgroup::Cgroup;
use crate::harness::client::head;
use crate::harness::for_each_preload;
use crate::harness::machine::{can_mount, not_tested};
use crate::harness::site::Site;

#[test]
fn the_requests_of_a_worker_that_died_are_named() {
    let site = Site::with_releases("lost_requests", 1);
    site.set("server.workers", "1").set("server.threads", "2");
    let master = site.start();
    let mut running = master.connect();
    running.must_send(head("GET", "/stream?pieces=2&pause=60", &[]));
    running.read_past(" 0\n");
    let worker = master.workers().remove(0);
    let mut deadly = master.connect();
    deadly.must_send(head("GET", "/crash?secret=1", &[]));
    for path in ["/stream", "/crash"] {
        master.wait_log(&format!("worker gen=1 slot=0 pid={} lost request \"GET {path}\" after=*s", worker.pid));
    }
    assert!(!master.log().contains("secret"), "a query may hold secrets");
    // A worker that ends in order has lost nothing.
    let mark = master.mark();
    let worker = master.wait_serving().remove(0);
    assert_eq!(master.get("/").pid(), worker.pid);
    kill(Pid::from_raw(worker.pid), Signal::SIGTERM).expect("a serving worker is there");
    master.wait_log_after(mark, &format!("pid={} finishing -> gone cause=\"exit code 0\"", worker.pid));
    assert!(!master.log_after(mark).contains("lost request"), "{}", master.log_after(mark));
}

/// A pruned release is not the interpreter's fault.
#[test]
fn a_release_directory_that_is_gone_is_named() {
    let site = Site::new("pruned_release");
    // The interpreter stays: it is not in the release.
    site.build("1").make();
    let venv = site.path().join("venv");
    fs::rename(site.release_path("1").join("venv"), &venv).expect("it is our directory");
    site.flip("1");
    site.set("app.venv", &format!("{venv:?}"));
    let master = site.start();
    let template = master.wait_settled().template_pid;
    let mark = master.mark();
    fs::rename(site.release_path("1"), site.release_path("pruned")).expect("it is our directory");
    kill(Pid::from_raw(template), Signal::SIGKILL).expect("the template is there");
    let gone = site.release_path("1");
    master.wait_log_after(mark, &format!("the release directory {} is gone", gone.display()));
    // Whoever serves goes on.
    assert_eq!(master.get("/").status, 200);
}

/// SIGKILL has no sender; the cgroup counts whom the kernel has killed for want of memory.
#[test]
fn a_worker_that_the_kernel_kills_for_want_of_memory_is_named_so() {
    if !can_mount() {
        return;
    }
    let site = Site::with_releases("oom", 1);
    site.set("server.workers", "1");
    let Some(cgroup) = Cgroup::with_limit(&site, 256 << 20) else {
        return not_tested("it needs a memory cgroup that can be made");
    };
    let master = site.launch(cgroup.launch());
    let worker = master.wait_serving().remove(0);
    // A kill that is nobody's want of memory first.
    kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("a serving worker is there");
    master.wait_log(&format!("pid={} * -> gone cause=\"SIGKILL\"", worker.pid));
    let worker =
        master.wait_or_exit("another worker", || master.workers().into_iter().find(|new| new.pid != worker.pid));
    assert!(!master.log().contains("out of memory"), "{}", master.log());
    let mut greedy = master.connect();
    greedy.must_send(head("GET", "/grow?mib=400", &[]));
    master
        .wait_log(&format!("worker gen=1 slot=0 pid={} was killed: out of memory: cgroup limit 256.0 MiB", worker.pid));
    master.wait_serving();
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

/// Whoever asked hears it, whichever process it was.
#[test]
fn a_release_that_needs_more_memory_than_there_is_is_refused_for_that() {
    if !can_mount() {
        return;
    }
    for_each_preload(|preload| {
        let site = Site::with_releases(&format!("oom_reload_preload_{preload}"), 1);
        site.build("2").file("app.py", "HOARD = bytearray(400 << 20)\n").make();
        site.set("app.preload", preload);
        let Some(cgroup) = Cgroup::with_limit(&site, 256 << 20) else {
            return not_tested("it needs a memory cgroup that can be made");
        };
        let master = site.launch(cgroup.launch());
        master.wait_serving();
        site.flip("2");
        let refused = master.cli(&["reload"]);
        assert!(!refused.ok(), "{refused}");
        assert!(refused.text().contains("SIGKILL, out of memory: cgroup limit 256.0 MiB"), "{refused}");
        assert_eq!(master.get("/").text(), "1");
        master.stop();
    });
}
